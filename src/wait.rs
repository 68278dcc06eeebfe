//! Waiting for the next event, with a read or a poll. Nobody who waits holds a thread: what is kept
//! is the reply.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::disk::Real;
use crate::error::Result;
use crate::news::{Heard, News, TOLD_A_SECOND, WORDS, word};
use crate::proc::{Signalled, signalled};
use crate::stream::{Glance, Stream};
use crate::sys::lock;

/// How often [`Waiters::look`] is to be called.
pub const LOOKS_A_SECOND: u32 = 8;

/// Called with what became of a request.
pub type Answer<R> = Box<dyn FnOnce(Result<R>) + Send>;

/// Called when the wait is over.
type Wake = Box<dyn FnOnce(Why) + Send>;

/// Why a wait is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    /// There is more to read, or an error to see.
    More,
    /// There is a signal to attend to.
    Signal,
    /// Nothing more will come.
    End,
}

/// Somebody who waits for more of a stream.
struct Waiter {
    stream: Arc<Stream<Real>>,
    /// It has seen all up to here in the stream's view.
    seen: u64,
    /// The thread that reads, 0 when it is in a pid namespace that we cannot see. A poller has none:
    /// signals are not ours to tell it of.
    thread: Option<u32>,
    wake: Wake,
    /// Tells it from all others.
    ticket: u64,
    since: Instant,
    /// At the last look its process, which has more threads, had a signal to attend to.
    looked: bool,
}

/// Those who wait, by stream. The lock is never held while a stream or a process is looked at, which
/// may take its time.
#[derive(Default)]
pub struct Waiters {
    parked: Mutex<HashMap<usize, Vec<Waiter>>>,
    tickets: AtomicU64,
    /// Nobody is to wait any more.
    ended: AtomicBool,
}

fn key(stream: &Arc<Stream<Real>>) -> usize {
    Arc::as_ptr(stream) as usize
}

impl Waiters {
    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        lock(&self.parked).values().map(Vec::len).sum()
    }

    /// What is to tell a waiter from all others.
    pub(crate) fn ticket(&self) -> u64 {
        self.tickets.fetch_add(1, SeqCst)
    }

    /// Keeps somebody who has `seen` so much of a stream's view.
    pub(crate) fn park(
        &self,
        stream: &Arc<Stream<Real>>,
        seen: u64,
        thread: Option<u32>,
        ticket: u64,
        wake: Wake,
    ) {
        stream.waiting.fetch_add(1, SeqCst);
        let waiter = Waiter {
            stream: stream.clone(),
            seen,
            thread,
            wake,
            ticket,
            since: Instant::now(),
            looked: false,
        };
        lock(&self.parked).entry(key(stream)).or_default().push(waiter);
        if self.ended.load(SeqCst) {
            self.end_those_of(stream);
        }
        // What was committed before it could be seen to wait.
        if stream.news().map_or(true, |news| seen < news) {
            self.wake(stream);
        }
    }

    /// Forgets a waiter of a stream, if it still waits.
    pub(crate) fn leave(&self, stream: &Arc<Stream<Real>>, ticket: u64) {
        drop(self.take(stream, |waiter| waiter.ticket == ticket));
    }

    /// Takes out those of a stream that `which` says.
    fn take(&self, stream: &Arc<Stream<Real>>, which: impl Fn(&mut Waiter) -> bool) -> Vec<Waiter> {
        let mut all = lock(&self.parked);
        let Some(here) = all.get_mut(&key(stream)) else {
            return Vec::new();
        };
        let taken: Vec<_> = here.extract_if(.., |waiter| which(waiter)).collect();
        stream.waiting.fetch_sub(taken.len(), SeqCst);
        taken
    }

    /// Answers those who wait for more of a stream, when there is.
    pub(crate) fn wake(&self, stream: &Arc<Stream<Real>>) {
        if stream.waiting.load(SeqCst) == 0 {
            return;
        }
        // An error is for them to see.
        let news = stream.news().unwrap_or(u64::MAX);
        for waiter in self.take(stream, |waiter| waiter.seen < news) {
            (waiter.wake)(Why::More);
        }
    }

    /// Ends all waits for more of a stream.
    pub(crate) fn end_those_of(&self, stream: &Arc<Stream<Real>>) {
        for waiter in self.take(stream, |_| true) {
            (waiter.wake)(Why::End);
        }
    }

    /// Looks after all who wait: for signals. Of a reader that we cannot see nothing is known: once a
    /// second it may look itself.
    pub fn look_for_signals(&self) {
        let reader = |waiter: &Waiter| Some((waiter.stream.clone(), waiter.thread?, waiter.ticket));
        let readers: Vec<_> = lock(&self.parked).values().flatten().filter_map(reader).collect();
        for (stream, thread, ticket) in readers {
            let signalled = signalled(thread);
            let interrupted = |waiter: &mut Waiter| {
                if waiter.ticket != ticket {
                    return false;
                }
                // One for the process is about to be taken by another of its threads, if that waits
                // for it; then it is gone the next time.
                let again = std::mem::replace(&mut waiter.looked, signalled == Signalled::Process);
                match signalled {
                    Signalled::No => false,
                    Signalled::Process => again,
                    Signalled::Thread => true,
                    Signalled::Unknown => waiter.since.elapsed() > Duration::from_secs(1),
                }
            };
            for waiter in self.take(&stream, interrupted) {
                (waiter.wake)(Why::Signal);
            }
        }
    }

    /// Looks for what other mounts of this host have committed; `names`: and removed.
    pub fn look(self: &Arc<Self>, names: bool) {
        for (stream, seen) in self.streams() {
            self.glance(stream, seen, names);
        }
    }

    /// Looks at the streams that other hosts told of, and at those that were `left` to be looked at.
    /// `turn`: how often it was called before.
    pub fn hear(self: &Arc<Self>, news: &News, turn: u32, left: &mut Heard) {
        if self.len() == 0 {
            return;
        }
        let heard = news.hear(turn.is_multiple_of(TOLD_A_SECOND)).unwrap_or([true; WORDS]);
        let before = std::mem::replace(left, [false; WORDS]);
        // Who waits only now looked after it could be seen to wait.
        for (stream, seen) in self.streams() {
            let word = word(&stream.name());
            // About once a minute nobody need tell of it: a host may have died before it did.
            let due = heard[word] || before[word] || turn as usize % (2 * WORDS) == 2 * word;
            left[word] |= due && !self.glance(stream, seen, true);
        }
    }

    /// Answers those who wait for more of a stream, when there is. False where it could not be looked at.
    fn glance(self: &Arc<Self>, stream: Arc<Stream<Real>>, seen: u64, names: bool) -> bool {
        match stream.glance(seen, names) {
            Glance::Nothing => {}
            Glance::Busy => return false,
            // Whose lock somebody holds must not keep this thread from the others.
            Glance::More => {
                let waiters = self.clone();
                let wake = move || waiters.wake(&stream);
                // Without a thread it is tried again at the next look.
                return std::thread::Builder::new().spawn(wake).is_ok();
            }
            Glance::Gone => self.end_those_of(&stream),
        }
        true
    }

    /// Ends all waits, also those to come: to the readers it is the end of the file.
    pub fn end(&self) {
        self.ended.store(true, SeqCst);
        for (stream, _) in self.streams() {
            self.end_those_of(&stream);
        }
    }

    /// The streams that somebody waits for, and what all of those have seen of the view.
    fn streams(&self) -> Vec<(Arc<Stream<Real>>, u64)> {
        let mut all = lock(&self.parked);
        all.retain(|_, here| !here.is_empty());
        let first = all.values().filter_map(|here| here.iter().min_by_key(|waiter| waiter.seen));
        first.map(|waiter| (waiter.stream.clone(), waiter.seen)).collect()
    }
}
