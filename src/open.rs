//! Open files of the tree, and who may open what.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::ffi::OsString;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use crate::batch::Shape;
use crate::disk::Real;
use crate::error::{Error, Result};
use crate::node::{Horizon, Kind, Node, Type, horizon};
use crate::reader::Reader;
use crate::stream::Stream;
use crate::sys::lock;
use crate::wait::{Answer, Waiters};
use crate::writer::{State, Writer};

/// An open file of a stream.
pub struct Open {
    /// What was read.
    pub reader: Arc<Reader>,
    /// What was written.
    pub writer: Arc<Writer>,
    /// Of `first`: events were dropped by it.
    dropped: Option<AtomicBool>,
}

impl Open {
    /// Opens a file of a stream; `flags` as in open(2).
    pub(crate) fn new(
        node: Node,
        stream: Arc<Stream<Real>>,
        flags: i32,
        waiters: Arc<Waiters>,
    ) -> Result<Open> {
        let Node { kind, index, .. } = node;
        let write = flags & libc::O_ACCMODE != libc::O_RDONLY;
        let append = flags & libc::O_APPEND != 0;
        let one = kind == Kind::New || (kind == Kind::At && write);
        let (mut base, mut len) = (0, u64::MAX);
        let mut state = State::default();
        match kind {
            Kind::First => {}
            _ if write && node.json => return Err(Error::NotPermitted),
            _ if flags & libc::O_TRUNC != 0 && !one => return Err(Error::NotPermitted),
            Kind::New | Kind::Events | Kind::Lines => {}
            Kind::Count | Kind::From | Kind::At | Kind::Follow if !write => {}
            Kind::From | Kind::At => match index.cmp(&stream.taken()?) {
                Ordering::Less => {
                    stream.refused(&Error::Exists);
                    return Err(Error::Exists);
                }
                Ordering::Equal => state.guard = Some(index),
                Ordering::Greater => return Err(Error::NotFound),
            },
            _ => return Err(Error::NotPermitted),
        }
        match kind {
            Kind::Events | Kind::Lines | Kind::From | Kind::Follow => {
                base = match stream.view(index) {
                    // Who appends does not care where it begins.
                    Err(Error::Dropped) if node.begins() && write && append => 0,
                    // The name leads to another one since events were dropped: the kernel asks again.
                    Err(Error::Dropped) if node.begins() => return Err(Error::Stale),
                    view => view?,
                };
            }
            Kind::At if write => len = 0,
            Kind::At => (base, len, _) = stream.meta(index)?,
            _ => {}
        }
        if write && !append && !one {
            state.end = Some(stream.tip()?.view.saturating_sub(base));
        }
        let through = !one && (kind == Kind::Lines || flags & libc::O_DSYNC != 0);
        let shape = if one { Shape::One } else { Shape::Lines };
        let state = Mutex::new(state);
        let reader = Reader::new(node, stream.clone(), waiters.clone(), (base, len));
        let writer = Writer { stream, waiters, shape, base, append, through, state };
        let dropped = (kind == Kind::First).then(AtomicBool::default);
        Ok(Open { reader: Arc::new(reader), writer: Arc::new(writer), dropped })
    }

    /// Takes what is written by `owner`; see [`Writer::write`].
    pub fn write(&self, owner: u64, place: (u64, u64), bytes: &[u8], answer: Answer<()>) {
        match &self.dropped {
            Some(dropped) => answer(self.drop_before(dropped, bytes)),
            None => self.writer.write(owner, place, bytes, answer),
        }
    }

    /// Drops the events before the one whose index `bytes` are, in one write: its error is seen where
    /// that of a close is not.
    fn drop_before(&self, dropped: &AtomicBool, bytes: &[u8]) -> Result<()> {
        let number = str::from_utf8(bytes).unwrap_or_default();
        // Some write the end of a line by itself.
        if number == "\n" && dropped.load(Relaxed) {
            return Ok(());
        }
        let number = number.strip_suffix('\n').unwrap_or(number);
        let Some(Horizon::Index(first)) = horizon(number.as_ref()) else {
            return Err(Error::Invalid);
        };
        self.writer.stream.drop_before(first)?;
        dropped.store(true, Relaxed);
        Ok(())
    }

    /// The last close.
    pub(crate) fn release(&self) {
        self.reader.release();
        self.writer.release();
    }
}

/// What is in a directory: inode numbers, types, names.
pub type Entries = Arc<Vec<(u64, Type, OsString)>>;

/// What an open file or directory is.
#[derive(Clone)]
pub(crate) enum Handle {
    File(Arc<Open>),
    /// The status, as it was then.
    Text(Arc<str>),
    /// A directory, and its entries when it was last read from the beginning.
    Directory(Node, Arc<Mutex<Entries>>),
}

/// All that is open, by number.
#[derive(Default)]
pub(crate) struct Handles {
    open: Mutex<HashMap<u64, Handle>>,
    last: AtomicU64,
}

impl Handles {
    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        lock(&self.open).len()
    }

    /// Keeps one; its number.
    pub(crate) fn keep(&self, handle: Handle) -> u64 {
        let number = self.last.fetch_add(1, Relaxed);
        lock(&self.open).insert(number, handle);
        number
    }

    pub(crate) fn get(&self, number: u64) -> Result<Handle> {
        lock(&self.open).get(&number).cloned().ok_or(Error::Invalid)
    }

    /// Takes one out. It is dropped without the lock: a batch given up may have space to give back.
    pub(crate) fn take(&self, number: u64) -> Result<Handle> {
        lock(&self.open).remove(&number).ok_or(Error::Invalid)
    }

    /// One that has this file open.
    pub(crate) fn of(&self, node: Node) -> Option<Arc<Open>> {
        lock(&self.open).values().find_map(|handle| match handle {
            Handle::File(open) if open.reader.node == node => Some(open.clone()),
            _ => None,
        })
    }
}
