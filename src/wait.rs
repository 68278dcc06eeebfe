//! Waiting for the next event, with a read or a poll. Nobody who waits holds a thread: what is kept
//! is the reply.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use crate::disk::{Disk, Real};
use crate::error::{Error, Result};
use crate::open::Open;
use crate::stream::lock;

/// Called with what was read.
pub type Answer = Box<dyn FnOnce(Result<Vec<u8>>) + Send>;

/// Somebody who waits for the next event. It holds no thread.
pub(crate) enum Waiter {
    Reader {
        size: usize,
        /// The thread that reads, 0 when it is in a pid namespace that we cannot see.
        pid: u32,
        /// How often it was looked at.
        looks: u32,
        answer: Answer,
    },
    Poller {
        notify: Box<dyn FnOnce() + Send>,
    },
}

pub(crate) struct Parked<D: Disk> {
    id: u64,
    pub(crate) open: Arc<Open<D>>,
    /// It waits for what is behind this.
    offset: u64,
    waiter: Waiter,
}

impl<D: Disk> Parked<D> {
    /// Answers with what there is now, if only the end; or that there is a signal.
    fn wake(self, interrupted: bool) {
        match self.waiter {
            Waiter::Reader { answer, .. } if interrupted => answer(Err(Error::Interrupted)),
            Waiter::Reader { size, answer, .. } => {
                let read = self.open.read(self.offset, size);
                // The stream may be gone, and with it what could have come.
                let gone = read == Err(Error::NotFound);
                answer(if gone { Ok(Vec::new()) } else { read });
            }
            Waiter::Poller { notify } => {
                lock(&self.open.read).polled = false;
                notify();
            }
        }
    }
}

/// How often [`Waiters::look`] is to be called.
pub const LOOKS_A_SECOND: u32 = 8;

/// Those who wait.
pub struct Waiters<D: Disk = Real>(Mutex<All<D>>);

struct All<D: Disk> {
    /// By stream. The lock is never held while a stream is looked at, which may take its time.
    parked: HashMap<usize, Vec<Parked<D>>>,
    last: u64,
}

impl<D: Disk> Default for Waiters<D> {
    fn default() -> Self {
        Waiters(Mutex::new(All {
            parked: HashMap::new(),
            last: 0,
        }))
    }
}

impl<D: Disk> Waiters<D> {
    /// Keeps a waiter for what is behind `offset`.
    pub(crate) fn park(&self, open: Arc<Open<D>>, offset: u64, waiter: Waiter) {
        let mut all = lock(&self.0);
        all.last += 1;
        let id = all.last;
        all.parked.entry(open.key()).or_default().push(Parked {
            id,
            open,
            offset,
            waiter,
        });
    }

    /// Takes out those of a stream that `which` says.
    pub(crate) fn take(&self, key: usize, which: impl Fn(&Parked<D>) -> bool) -> Vec<Parked<D>> {
        let mut all = lock(&self.0);
        let Some(here) = all.parked.get_mut(&key) else {
            return Vec::new();
        };
        let taken = here.extract_if(.., |parked| which(parked)).collect();
        if here.is_empty() {
            all.parked.remove(&key);
        }
        taken
    }

    /// Answers those who wait for more of a stream, when there is; `end`: all of them.
    pub(crate) fn wake(&self, key: usize, end: bool) {
        let first = |all: &All<D>| Some(all.parked.get(&key)?.first()?.open.stream.clone());
        let Some(stream) = first(&lock(&self.0)) else {
            return;
        };
        // An error is for them to see.
        let view = stream.tip().map_or(u64::MAX, |tip| tip.view());
        let ready =
            |parked: &Parked<D>| end || view > parked.open.base.saturating_add(parked.offset);
        for parked in self.take(key, ready) {
            parked.wake(false);
        }
    }

    /// Looks after all who wait: for what other mounts have committed, and for signals. Of a
    /// reader that we cannot see nothing is known: once a second it may look itself.
    pub fn look(&self, interrupted: impl Fn(u32) -> bool) {
        let mut readers = Vec::new();
        for (key, here) in &mut lock(&self.0).parked {
            for parked in here {
                if let Waiter::Reader { pid, looks, .. } = &mut parked.waiter {
                    *looks += 1;
                    readers.push((*key, parked.id, *pid, *looks));
                }
            }
        }
        for (key, id, pid, looks) in readers {
            let signal = match pid {
                0 => looks > LOOKS_A_SECOND,
                pid => interrupted(pid),
            };
            for parked in self.take(key, |parked| signal && parked.id == id) {
                parked.wake(true);
            }
        }
        for key in self.streams() {
            self.wake(key, false);
        }
    }

    /// Ends all waits: to the readers it is the end of the file.
    pub fn end(&self) {
        for key in self.streams() {
            self.wake(key, true);
        }
    }

    fn streams(&self) -> Vec<usize> {
        lock(&self.0).parked.keys().copied().collect()
    }
}
