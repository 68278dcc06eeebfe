//! The writing half of an open file: what was gathered since the last commit, who is to be told what
//! became of it.
//!
//! Several processes may share one open file, and each close of each of them commits: see "Who
//! commits on close" in the README.

use std::sync::{Arc, MutexGuard};

use crate::batch::Shape;
use crate::error::{Error, Result};
use crate::node::{Horizon, Kind, horizon};
use crate::open::{Batch, Open, Writing};
use crate::proc::Ending;
use crate::stream::Done;
use crate::sys::lock;
use crate::wait::Answer;

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

/// How many events a batch comes to.
fn events(batch: Option<&Batch>) -> u64 {
    batch.map_or(0, |batch| batch.tally().all_events())
}

impl Writing {
    /// Gives up the batch; its owners are to be told.
    fn fail(&mut self, error: &Error) {
        self.batch = None;
        self.failed = (!self.owners.is_empty()).then(|| error.clone());
    }

    /// Only of a long write by io_uring or AIO do several pieces come at a time, and then one may
    /// overtake another: better no batch than one with its bytes in another order.
    fn is_in_order(&mut self, place: (u64, u64)) -> Result<()> {
        let latest = std::mem::replace(&mut self.latest, place);
        if place.0 < latest.0 && place.1 < latest.1 {
            let what = "the pieces of an asynchronous write, which came in another order".into();
            return Err(Error::Os { errno: libc::EIO, what });
        }
        Ok(())
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
        self.batch = batch.as_mut().map(Batch::split_torn).transpose()?;
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

impl Open {
    /// Takes `bytes` into the batch, and answers when the write is to return.
    /// `place` is the kernel's number of the write, and its offset.
    pub fn write(
        self: &Arc<Self>,
        owner: u64,
        place: (u64, u64),
        bytes: &[u8],
        answer: Answer<()>,
    ) {
        if self.node.kind == Kind::First {
            return answer(self.drop_before(bytes));
        }
        let mut state = lock(&self.writing);
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

    fn gather(
        &self,
        state: &mut Writing,
        owner: u64,
        place: (u64, u64),
        bytes: &[u8],
    ) -> Result<()> {
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
            state.is_in_order(place)?;
            self.is_at_the_end(state, offset)?;
            // A commit in flight moves the guard.
            if let Some(guard) = state.guard.filter(|_| state.in_flight.is_empty())
                && self.stream.taken()? != guard
            {
                return Err(Error::Exists);
            }
            let batch = state.batch.get_or_insert_with(|| self.stream.batch(self.shape));
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

    /// Where it was opened without O_APPEND, whether a write at `offset` is one to the end. If so the
    /// end is promised to the batch that begins there.
    fn is_at_the_end(&self, state: &mut Writing, offset: u64) -> Result<()> {
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

    /// Drops the events before the one whose index `bytes` are, in one write: its error is seen where
    /// that of a close is not.
    fn drop_before(&self, bytes: &[u8]) -> Result<()> {
        let number = str::from_utf8(bytes).unwrap_or_default();
        // Some write the end of a line by itself.
        if number == "\n" && lock(&self.writing).dropped {
            return Ok(());
        }
        let number = number.strip_suffix('\n').unwrap_or(number);
        let Some(Horizon::Index(first)) = horizon(number.as_ref()) else {
            return Err(Error::Invalid);
        };
        self.stream.drop_before(first)?;
        lock(&self.writing).dropped = true;
        Ok(())
    }

    /// ftruncate(2): drops what is pending of one event, or says that it is as long.
    pub(crate) fn truncate(&self, size: u64) -> Result<()> {
        let mut state = lock(&self.writing);
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
        let mut state = lock(&self.writing);
        let wrote = state.owners.remove(&owner);
        if wrote.is_none() && !state.in_flight.contains(&owner) {
            drop(state);
            answer(Ok(()));
            return None;
        }
        let mut abandoned = None;
        let taken = match state.failed.clone() {
            _ if wrote.is_none() => Ok(None),
            Some(error) => Err(error),
            None => {
                let (before, ending) = (events(state.batch.as_ref()), ending());
                let last = wrote == Some(state.written);
                let taken = state.leave(last, &ending);
                if let Ok(taken) = &taken {
                    let kept = events(state.batch.as_ref()) + events(taken.as_ref());
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
        let mut state = lock(&self.writing);
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
                Err(error)
            }
            None => Ok(state.batch.take()),
        };
        self.commit(state, taken, told, answer);
    }

    /// The last close. What is pending was not closed by any process, which is so with io_uring's own
    /// files: then this commits.
    pub(crate) fn commit_rest(self: &Arc<Self>) {
        let mut state = lock(&self.writing);
        if let Some(batch) = state.batch.take() {
            self.commit(state, Ok(Some(batch)), Told::Nobody, Box::new(drop));
        }
    }

    /// Commits what was taken out of the batch, and answers when that is durable, and what others
    /// are committing through this file, too. When it fails, or what to take did, `told` learns so by
    /// the answer, all others who had bytes in it by what they do next.
    fn commit(
        self: &Arc<Self>,
        mut state: MutexGuard<'_, Writing>,
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
                let nothing = nothing.inspect_err(|error| state.fail(error)).map(drop);
                drop(state);
                return answer(nothing);
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
        if busy && state.guard.is_some() {
            state.held.push_back((batch, Box::new(finish)));
            return;
        }
        // Before another one can come here: an empty batch must not overtake what it waits for.
        let leads = self.enqueue(batch, state.guard, Box::new(finish));
        drop(state);
        if leads {
            self.stream.commit_queue();
        }
    }

    /// Puts a batch in the stream's queue: see [`Stream::enqueue`](crate::Stream::enqueue). One without
    /// events is promised nothing.
    fn enqueue(&self, batch: Batch, guard: Option<u64>, done: Done) -> bool {
        let guard = guard.filter(|_| batch.tally().all_events() > 0);
        self.stream.enqueue(batch, guard, done)
    }

    /// A commit of so many events has ended; `riders` and who is told had bytes in it. Says what to
    /// tell.
    fn finish(&self, result: Result<u64>, events: u64, riders: Vec<u64>, told: Told) -> Result<()> {
        let mut state = lock(&self.writing);
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
        let earlier = earlier.inspect(|error| state.fail(error));
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
        let leads = next.is_some_and(|(batch, done)| self.enqueue(batch, guard, done));
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
