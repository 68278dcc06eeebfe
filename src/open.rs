//! Open files of the tree, and who may open what.

use std::cmp::Ordering;
use std::sync::{Arc, Mutex};

use crate::batch::Shape;
use crate::disk::Real;
use crate::error::{Error, Result};
use crate::node::{Kind, Node};
use crate::reader::Reader;
use crate::stream::Stream;
use crate::wait::Waiters;
use crate::writer::{State, Writer};

/// An open file of a stream.
pub struct Open {
    /// What was read.
    pub reader: Arc<Reader>,
    /// What was written.
    pub writer: Arc<Writer>,
}

impl Open {
    /// Opens a file of a stream; `flags` as in open(2).
    pub(crate) fn new(
        Node { kind, index, .. }: Node,
        stream: Arc<Stream<Real>>,
        flags: i32,
        waiters: Arc<Waiters>,
    ) -> Result<Open> {
        let write = flags & libc::O_ACCMODE != libc::O_RDONLY;
        let append = flags & libc::O_APPEND != 0;
        let one = kind == Kind::New || (kind == Kind::At && write);
        let (mut base, mut len) = (0, u64::MAX);
        let mut state = State::default();
        match kind {
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
            Kind::From | Kind::Follow => base = stream.view(index)?,
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
        let reader = Reader::new(kind, stream.clone(), waiters.clone(), (base, len));
        let writer = Writer { stream, waiters, shape, base, append, through, state };
        Ok(Open { reader: Arc::new(reader), writer: Arc::new(writer) })
    }

    /// The last close.
    pub(crate) fn release(&self) {
        self.reader.release();
        self.writer.release();
    }
}
