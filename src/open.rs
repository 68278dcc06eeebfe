//! Open files of the tree, and who may open what.

use std::cmp::Ordering;
use std::collections::{HashMap, VecDeque};
use std::ffi::OsString;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use crate::batch::Shape;
use crate::disk::Real;
use crate::error::{Error, Result};
use crate::node::{Kind, Node, Type};
use crate::objects::Objects;
use crate::stream::{self, Cursor, Done, Stream};
use crate::sys::lock;
use crate::wait::Waiters;

pub(crate) type Batch = stream::Batch<Real>;

/// An open file of a stream: the module `reader` reads it, `writer` writes it.
pub struct Open {
    pub(crate) node: Node,
    pub(crate) stream: Arc<Stream<Real>>,
    pub(crate) waiters: Arc<Waiters>,
    /// What it shows begins here in the stream's view; and how much of that, when it is fixed.
    pub(crate) base: u64,
    pub(crate) len: u64,
    pub(crate) shape: Shape,
    pub(crate) append: bool,
    /// Each write commits its complete lines, and is told what became of them.
    pub(crate) through: bool,
    pub(crate) reading: Mutex<Reading>,
    pub(crate) writing: Mutex<Writing>,
}

/// How far an open file was read.
#[derive(Default)]
pub(crate) struct Reading {
    pub(crate) cursor: Cursor,
    /// Of JSON, what is still to come.
    pub(crate) objects: Option<Objects>,
    /// Of a follower, where it is: those who share it share what comes.
    pub(crate) end: u64,
    /// Whoever reads knows that this is the end. A follower's file has none, unless its wait is over,
    /// which is then told once.
    pub(crate) ended: bool,
    /// A poller is parked, with this ticket: the kernel knows it by the open file, so one is enough.
    pub(crate) polled: Option<u64>,
    /// Of `count` or `first`: what it said.
    pub(crate) number: String,
}

/// What an open file has gathered since its last commit.
#[derive(Default)]
pub(crate) struct Writing {
    pub(crate) batch: Option<Batch>,
    /// For each lock owner with bytes not yet committed: up to where it wrote.
    pub(crate) owners: HashMap<u64, u64>,
    /// Bytes ever written: up to where the last one of them wrote.
    pub(crate) written: u64,
    /// The kernel's number and the offset of the write taken last.
    pub(crate) latest: (u64, u64),
    /// A write or commit failed, and the owners are still to be told.
    pub(crate) failed: Option<Error>,
    /// The index the next batch is promised.
    pub(crate) guard: Option<u64>,
    /// Where it was opened without O_APPEND: the end of the file, as its writers know it. There they
    /// write, or not at all.
    pub(crate) end: Option<u64>,
    /// The one event there can be is committed.
    pub(crate) sealed: bool,
    /// Of `first`: events were dropped by it.
    pub(crate) dropped: bool,
    /// Whose bytes are being committed: an owner for each batch it has some in.
    pub(crate) in_flight: Vec<u64>,
    /// Guarded commits that wait for the one before, which says what they are promised.
    pub(crate) held: VecDeque<(Batch, Done)>,
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
        let mut writing = Writing::default();
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
                Ordering::Equal => writing.guard = Some(index),
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
            writing.end = Some(stream.tip()?.view.saturating_sub(base));
        }
        let through = !one && (kind == Kind::Lines || flags & libc::O_DSYNC != 0);
        let shape = if one { Shape::One } else { Shape::Lines };
        let until = if kind == Kind::At { index + 1 } else { u64::MAX };
        let objects = node.json.then(|| Objects::new(stream.clone(), index..until, base));
        let reading = Reading { objects, ended: kind == Kind::Follow, ..Reading::default() };
        let (reading, writing) = (Mutex::new(reading), Mutex::new(writing));
        Ok(Open { node, stream, waiters, base, len, shape, append, through, reading, writing })
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
            Handle::File(open) if open.node == node => Some(open.clone()),
            _ => None,
        })
    }
}
