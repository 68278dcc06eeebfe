//! The writing half of an open file: what was gathered since the last commit, who is to be told what
//! became of it.
//!
//! Several processes may share one open file, and each close of each of them commits: see "Who
//! commits on close" in the README.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::batch::Shape;
use crate::disk::Real;
use crate::error::{Error, Result};
use crate::proc::Ending;
use crate::stream::{self, Stream};
use crate::sys::lock;
use crate::wait::{Answer, Waiters};

type Batch = stream::Batch<Real>;

/// The writing half of an open file.
pub struct Writer {
    pub(crate) stream: Arc<Stream<Real>>,
    pub(crate) waiters: Arc<Waiters>,
    pub(crate) shape: Shape,
    /// What the file shows begins here in the stream's view.
    pub(crate) base: u64,
    pub(crate) append: bool,
    /// Each write commits its complete lines, and is told what became of them.
    pub(crate) through: bool,
    pub(crate) state: Mutex<State>,
}

/// What an open file has gathered since its last commit.
#[derive(Default)]
pub(crate) struct State {
    batch: Option<Batch>,
    /// For each lock owner with bytes not yet committed: up to where it wrote.
    owners: HashMap<u64, u64>,
    /// Bytes ever written: up to where the last one of them wrote.
    written: u64,
    /// The kernel's number and the offset of the write taken last.
    latest: (u64, u64),
    /// A write or commit failed, and the owners are still to be told.
    failed: Option<Error>,
    /// The index the next batch is promised.
    pub(crate) guard: Option<u64>,
    /// Where it was opened without O_APPEND: the end of the file, as its writers know it. There they
    /// write, or not at all.
    pub(crate) end: Option<u64>,
    /// The one event there can be is committed.
    sealed: bool,
    /// Whose bytes are being committed: an owner for each batch it has some in.
    in_flight: Vec<u64>,
    /// Guarded commits that wait for the one before, which says what they are promised.
    held: VecDeque<Submit>,
}

/// Puts a batch in the stream's queue, with its guard: see [`Stream::enqueue`].
type Submit = Box<dyn FnOnce(&Writer, Option<u64>) -> bool + Send>;

/// Who learns by an answer what became of the bytes it wrote.
#[derive(Clone, Copy)]
enum Told {
    /// There is nobody left, or all learn it by what they do next.
    Nobody,
    Owner(u64),
    /// One of those who wrote; which is not said.
    Somebody,
}

impl Told {
    fn owner(self) -> Option<u64> {
        match self {
            Told::Owner(owner) => Some(owner),
            Told::Nobody | Told::Somebody => None,
        }
    }
}

impl State {
    /// Gives up the batch; its owners are to be told.
    fn fail(&mut self, error: &Error) {
        self.batch = None;
        self.failed = (!self.owners.is_empty()).then(|| error.clone());
    }

    /// Takes what is to be committed out of the batch.
    fn take(&mut self, all: bool) -> Result<Option<Batch>> {
        let tally = self.batch.as_ref().map(Batch::tally).unwrap_or_default();
        if all || tally.torn() == 0 {
            return Ok(self.batch.take());
        }
        if tally.complete == 0 {
            return Ok(None);
        }
        let mut batch = self.batch.take();
        let torn = batch.as_mut().map(Batch::split_torn).transpose();
        self.batch = torn.inspect_err(|error| self.fail(error))?;
        Ok(batch)
    }

    /// Takes what is to be committed because an owner closes the file who has written, as the `last`
    /// of them or not.
    fn leave(&mut self, last: bool, ending: &Ending) -> Result<Option<Batch>> {
        match ending {
            Ending::Closed => self.take(last),
            Ending::Killed { .. } => {
                if self.owners.is_empty() {
                    self.batch = None;
                } else if last {
                    // Others wrote, too. The complete lines stay, and come when one of them closes.
                    self.batch = self.take(false)?;
                }
                Ok(None)
            }
            Ending::Unknown => {
                let complete = self.take(false);
                if last {
                    self.batch = None;
                }
                complete
            }
        }
    }

    /// How many events a batch comes to.
    fn events(batch: Option<&Batch>) -> u64 {
        batch.map_or(0, |batch| batch.tally().all_events())
    }

    /// Those with bytes in what was just taken out of the batch.
    fn riders(&mut self) -> Vec<u64> {
        let rest = self.batch.as_ref().map_or(0, |rest| rest.tally().len);
        let boundary = self.written - rest;
        // A line that began in what was taken may end in the rest, which must not come alone.
        let rides = |end: u64| end <= boundary || rest > 0;
        let riders = self.owners.iter().filter(|(_, end)| rides(**end));
        let riders = riders.map(|(owner, _)| *owner).collect();
        self.owners.retain(|_, end| *end > boundary);
        riders
    }
}

impl Writer {
    /// Takes `bytes` into the batch, and answers when the write is to return.
    /// `place` is the kernel's number of the write, and its offset.
    pub fn write(
        self: &Arc<Self>,
        owner: u64,
        place: (u64, u64),
        bytes: &[u8],
        answer: Answer<()>,
    ) {
        let mut state = lock(&self.state);
        // What it takes along from earlier writes is to be told of, too: a long write(2) comes in
        // pieces, and of an error behind the first it learns nothing.
        let alone = state.batch.is_none();
        let gathered = self.gather(&mut state, owner, place, bytes);
        if gathered.is_err() || !self.through {
            drop(state);
            return answer(gathered);
        }
        let complete = state.take(false);
        let told = if alone { Told::Owner(owner) } else { Told::Nobody };
        self.commit(state, complete, told, answer);
    }

    fn gather(&self, state: &mut State, owner: u64, place: (u64, u64), bytes: &[u8]) -> Result<()> {
        let (one, offset) = (self.shape == Shape::One, place.1);
        if state.sealed || (one && !state.in_flight.is_empty()) {
            return Err(Error::Invalid);
        }
        state.written += bytes.len() as u64;
        let end = state.written;
        if let Some(error) = state.failed.clone() {
            if self.through {
                // Once is enough where nothing else is pending.
                state.owners.remove(&owner);
                state.failed = None;
            } else {
                // Whoever is to be told of earlier bytes is to be told of those.
                state.owners.entry(owner).or_insert(end);
            }
            return Err(error);
        }
        let alone = state.batch.is_none();
        state.owners.insert(owner, end);
        let mut push = || {
            self.is_in_order(state, place)?;
            self.is_at_the_end(state, offset)?;
            // A commit in flight moves the guard.
            if let Some(guard) = state.guard.filter(|_| state.in_flight.is_empty())
                && self.stream.taken()? != guard
            {
                return Err(Error::Exists);
            }
            let new = || self.stream.batch(self.shape);
            let batch = state.batch.get_or_insert_with(new);
            // One event is written from its beginning to its end.
            if one && !self.append && offset != batch.tally().len {
                return Err(Error::Invalid);
            }
            batch.push(bytes)
        };
        push().inspect_err(|error| {
            self.stream.refused(error);
            if self.through && alone {
                // Who wrote this is told by the answer, and free to try again.
                state.owners.remove(&owner);
            }
            state.fail(error);
        })?;
        state.end = state.end.map(|_| offset.saturating_add(bytes.len() as u64));
        Ok(())
    }

    /// Only of a long write by io_uring or AIO do several pieces come at a time, and then one may
    /// overtake another: better no batch than one with its bytes in another order.
    fn is_in_order(&self, state: &mut State, place: (u64, u64)) -> Result<()> {
        let latest = std::mem::replace(&mut state.latest, place);
        if place.0 < latest.0 && place.1 < latest.1 {
            let what = "the pieces of an asynchronous write, which came in another order".into();
            return Err(Error::Os { errno: libc::EIO, what });
        }
        Ok(())
    }

    /// Where it was opened without O_APPEND, whether a write at `offset` is one to the end. If so the
    /// end is promised to the batch that begins there.
    fn is_at_the_end(&self, state: &mut State, offset: u64) -> Result<()> {
        let Some(end) = state.end else {
            return Ok(());
        };
        if state.batch.is_some() || !state.in_flight.is_empty() {
            return if offset == end { Ok(()) } else { Err(Error::NotPermitted) };
        }
        let tip = self.stream.tip()?;
        let now = tip.view.saturating_sub(self.base);
        // A newline that its last batch lacked may be between.
        let known = offset == end && state.guard == Some(tip.count);
        if offset == now || known {
            state.guard = Some(tip.count);
            return Ok(());
        }
        self.stream.taken()?;
        // Somebody else has moved the end since.
        Err(if (end..now).contains(&offset) { Error::Exists } else { Error::NotPermitted })
    }

    /// ftruncate(2): drops what is pending of one event, or says that it is as long.
    pub(crate) fn truncate(&self, size: u64) -> Result<()> {
        let mut state = lock(&self.state);
        let pending = state.batch.as_ref().map_or(0, |batch| batch.tally().len);
        match () {
            () if self.shape != Shape::One => return Err(Error::NotPermitted),
            () if state.sealed || !state.in_flight.is_empty() => return Err(Error::Invalid),
            () if size == pending => return Ok(()),
            () if size > 0 => return Err(Error::NotPermitted),
            () => {}
        }
        state.batch = None;
        if state.failed.is_none() {
            state.owners.clear();
        }
        Ok(())
    }

    /// A process closes the file. What it wrote is committed, and then answered; `ending` says why
    /// it closes, and is asked only where that matters. If that abandons events: how many, and why.
    pub fn flush(
        self: &Arc<Self>,
        owner: u64,
        ending: impl FnOnce() -> Ending,
        answer: Answer<()>,
    ) -> Option<(u64, Ending)> {
        let mut state = lock(&self.state);
        let wrote = state.owners.remove(&owner);
        if wrote.is_none() && !state.in_flight.contains(&owner) {
            drop(state);
            answer(Ok(()));
            return None;
        }
        let mut abandoned = None;
        let taken = match state.failed.clone() {
            _ if wrote.is_none() => Ok(None),
            Some(error) => {
                state.fail(&error);
                Err(error)
            }
            None => {
                let (before, ending) = (State::events(state.batch.as_ref()), ending());
                let last = wrote == Some(state.written);
                let taken = state.leave(last, &ending);
                if let Ok(taken) = &taken {
                    let kept = State::events(state.batch.as_ref()) + State::events(taken.as_ref());
                    abandoned = (before > kept).then(|| (before - kept, ending));
                }
                taken
            }
        };
        self.commit(state, taken, Told::Owner(owner), answer);
        abandoned
    }

    /// Commits all there is, whoever wrote it.
    pub fn sync(self: &Arc<Self>, answer: Answer<()>) {
        let mut state = lock(&self.state);
        // Who asks is not said. When only one has written it is that one.
        let mut owners = state.owners.keys().chain(&state.in_flight).copied();
        let first = owners.next();
        let told = match first {
            Some(only) if owners.all(|owner| owner == only) => Told::Owner(only),
            _ => Told::Somebody,
        };
        let taken = match state.failed.clone() {
            Some(error) => {
                told.owner().map(|only| state.owners.remove(&only));
                state.fail(&error);
                Err(error)
            }
            None => Ok(state.batch.take()),
        };
        self.commit(state, taken, told, answer);
    }

    /// The last close. What is pending was not closed by any process, which is so with io_uring's own
    /// files: then this commits.
    pub(crate) fn release(self: &Arc<Self>) {
        let mut state = lock(&self.state);
        if let Some(batch) = state.batch.take() {
            self.commit(state, Ok(Some(batch)), Told::Nobody, Box::new(drop));
        }
    }

    /// Commits what was taken out of the batch, and answers when that is durable, and what others
    /// are committing through this file, too. When it fails `told` learns so by the answer,
    /// all others who had bytes in it by what they do next.
    fn commit(
        self: &Arc<Self>,
        mut state: MutexGuard<'_, State>,
        taken: Result<Option<Batch>>,
        told: Told,
        answer: Answer<()>,
    ) {
        let busy = !state.in_flight.is_empty();
        let (batch, mut riders) = match taken {
            Ok(Some(batch)) => (batch, state.riders()),
            // It takes its place in the queue behind theirs.
            Ok(None) if busy => (self.stream.batch(Shape::Lines), Vec::new()),
            nothing => {
                drop(state);
                return answer(nothing.map(drop));
            }
        };
        riders.retain(|rider| Some(*rider) != told.owner());
        state.in_flight.extend(riders.iter().copied().chain(told.owner()));
        let events = batch.tally().all_events();
        let this = self.clone();
        let finish = move |result: Result<u64>| {
            let more = result.is_ok() && events > 0;
            answer(this.finish(result, events, riders, told));
            if more {
                this.waiters.wake(&this.stream);
            }
        };
        let enqueue = move |this: &Writer, guard: Option<u64>| {
            let guard = guard.filter(|_| events > 0);
            this.stream.enqueue(batch, guard, Box::new(finish))
        };
        if busy && state.guard.is_some() {
            state.held.push_back(Box::new(enqueue));
            return;
        }
        // Before another one can come here: an empty batch must not overtake what it waits for.
        let leads = enqueue(self, state.guard);
        drop(state);
        if leads {
            self.stream.commit_queue();
        }
    }

    /// A commit of so many events has ended; `riders` and who is told had bytes in it. Says what to
    /// tell.
    fn finish(&self, result: Result<u64>, events: u64, riders: Vec<u64>, told: Told) -> Result<()> {
        let mut state = lock(&self.state);
        for rider in riders.iter().copied().chain(told.owner()) {
            let at = state.in_flight.iter().position(|owner| *owner == rider);
            at.map(|at| state.in_flight.swap_remove(at));
        }
        // What became of the bytes it had in earlier batches, while it waited for this one.
        let earlier = state.failed.clone().filter(|_| match told {
            Told::Nobody => false,
            // Not what became of bytes that it has written since.
            Told::Owner(owner) => {
                state.owners.get(&owner) == Some(&0) && state.owners.remove(&owner).is_some()
            }
            Told::Somebody => true,
        });
        if let Some(error) = &earlier {
            state.fail(error);
        }
        match &result {
            Ok(first) if events > 0 => {
                state.guard = state.guard.map(|_| first + events);
                state.sealed = self.shape == Shape::One;
            }
            Err(error) if self.through || !riders.is_empty() => {
                if let Some(owner) = told.owner().filter(|_| self.through) {
                    // What is behind the last newline of its write failed with that.
                    state.owners.remove(&owner);
                }
                state.owners.extend(riders.into_iter().map(|rider| (rider, 0)));
                state.fail(error);
            }
            _ => {}
        }
        let (next, guard) = (state.held.pop_front(), state.guard);
        let leads = next.is_some_and(|enqueue| enqueue(self, guard));
        drop(state);
        if leads {
            self.stream.commit_queue();
        }
        match earlier {
            // Some of it is stored, some is not.
            Some(error) if events > 0 && result.is_ok() => Err(self.stream.unknown(&error)),
            Some(error) => result.and(Err(error)),
            None => result.map(drop),
        }
    }
}
