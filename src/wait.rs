//! Waiting for the next event, with a read or a poll. Nobody who waits holds a thread: what is kept
//! is the reply.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::disk::Real;
use crate::open::Open;
use crate::stream::{Stream, lock};

/// How often [`Waiters::look`] is to be called.
pub const LOOKS_A_SECOND: u32 = 8;

/// Called when the wait is over: there is more, or the end; or, when it says so, a signal.
pub(crate) type Wake = Box<dyn FnOnce(&Open, bool) + Send>;

/// Somebody who waits for what is behind `offset` in an open file.
pub(crate) struct Waiter {
    pub(crate) open: Arc<Open>,
    offset: u64,
    /// The thread that reads, 0 when it is in a pid namespace that we cannot see. A poller has none:
    /// signals are not ours to tell it of.
    thread: Option<u32>,
    /// With the thread it tells one wait from all others: a thread waits once at a time.
    since: Instant,
    wake: Wake,
}

/// Those who wait, by stream. The lock is never held while a stream or a process is looked at, which
/// may take its time.
#[derive(Default)]
pub struct Waiters(Mutex<HashMap<usize, Vec<Waiter>>>);

fn key(stream: &Arc<Stream<Real>>) -> usize {
    Arc::as_ptr(stream) as usize
}

impl Waiters {
    /// Keeps a waiter for what is behind `offset`.
    pub(crate) fn park(&self, open: &Arc<Open>, offset: u64, thread: Option<u32>, wake: Wake) {
        let waiter = Waiter {
            open: open.clone(),
            offset,
            thread,
            since: Instant::now(),
            wake,
        };
        let mut all = lock(&self.0);
        all.entry(key(&open.stream)).or_default().push(waiter);
    }

    /// Takes out those of a stream that `which` says.
    pub(crate) fn take(
        &self,
        stream: &Arc<Stream<Real>>,
        which: impl Fn(&Waiter) -> bool,
    ) -> Vec<Waiter> {
        let mut all = lock(&self.0);
        let Some(here) = all.get_mut(&key(stream)) else {
            return Vec::new();
        };
        here.extract_if(.., |waiter| which(waiter)).collect()
    }

    /// Answers those who wait for more of a stream, when there is; `end`: all of them.
    pub(crate) fn wake(&self, stream: &Arc<Stream<Real>>, end: bool) {
        let waiting = lock(&self.0).get(&key(stream)).map_or(0, Vec::len);
        if waiting == 0 {
            return;
        }
        // An error is for them to see.
        let view = stream.tip().map_or(u64::MAX, |tip| tip.view());
        let ready = |waiter: &Waiter| end || waiter.open.base.saturating_add(waiter.offset) < view;
        for waiter in self.take(stream, ready) {
            (waiter.wake)(&waiter.open, false);
        }
    }

    /// Looks after all who wait: for what other mounts have committed, and for signals. Of a
    /// reader that we cannot see nothing is known: once a second it may look itself.
    pub fn look(&self, interrupted: impl Fn(u32) -> bool) {
        let reader = |waiter: &Waiter| Some((waiter.open.clone(), waiter.thread?, waiter.since));
        let readers: Vec<_> = lock(&self.0)
            .values()
            .flatten()
            .filter_map(reader)
            .collect();
        for (open, thread, since) in readers {
            let signal = match thread {
                0 => since.elapsed() > Duration::from_secs(1),
                thread => interrupted(thread),
            };
            let it = |waiter: &Waiter| (waiter.thread, waiter.since) == (Some(thread), since);
            for waiter in self.take(&open.stream, |waiter| signal && it(waiter)) {
                (waiter.wake)(&open, true);
            }
        }
        self.wake_all(false);
    }

    /// Ends all waits: to the readers it is the end of the file.
    pub fn end(&self) {
        self.wake_all(true);
    }

    fn wake_all(&self, end: bool) {
        let mut streams = Vec::new();
        lock(&self.0).retain(|_, here| {
            streams.extend(here.first().map(|waiter| waiter.open.stream.clone()));
            !here.is_empty()
        });
        for stream in streams {
            self.wake(&stream, end);
        }
    }
}
