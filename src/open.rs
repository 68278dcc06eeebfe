//! Open files of the tree: what a writer has gathered since its last commit, who is to be told
//! what became of it, how far a reader has come.
//!
//! Several processes may share one open file, and each close of each of them commits: see the
//! design, "Who commits on close".

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::batch::Shape;
use crate::commit::Batch;
use crate::disk::{Disk, Real};
use crate::error::{Error, Result};
use crate::proc::Ending;
use crate::stream::{Cursor, Stream, lock};
use crate::tree::{Node, View};
use crate::wait::{Answer, Waiter, Waiters};

/// Called with the outcome of a commit.
pub type Done = Box<dyn FnOnce(Result<()>) + Send>;

/// An open file of a stream.
pub struct Open<D: Disk = Real> {
    pub(crate) node: Node,
    pub(crate) stream: Arc<Stream<D>>,
    /// What it shows begins here in the stream's view; and how much of that, when it is fixed.
    pub(crate) base: u64,
    pub(crate) len: u64,
    pub(crate) append: bool,
    /// Each write commits its complete lines.
    pub(crate) through: bool,
    pub(crate) cursor: Mutex<Cursor>,
    pub(crate) writer: Mutex<Writer<D>>,
    pub(crate) read: Mutex<Read>,
    pub(crate) waiters: Arc<Waiters<D>>,
}

/// How far an open file was read.
#[derive(Default)]
pub(crate) struct Read {
    pub(crate) end: u64,
    /// It was told that this is the end.
    pub(crate) ended: bool,
    /// A poller is parked: the kernel knows it by the open file, so one is enough.
    pub(crate) polled: bool,
}

/// What an open file has gathered since its last commit.
pub(crate) struct Writer<D: Disk> {
    pub(crate) batch: Option<Batch<D>>,
    /// For each lock owner with bytes not yet committed: up to where it wrote.
    pub(crate) owners: HashMap<u64, u64>,
    /// Who wrote last.
    pub(crate) last: u64,
    /// Bytes ever taken.
    pub(crate) taken: u64,
    /// A write or commit failed, and these owners are still to be told.
    pub(crate) failed: Option<Error>,
    /// The index the next batch is promised.
    pub(crate) guard: Option<u64>,
    /// The one event there can be is committed.
    pub(crate) sealed: bool,
    /// Whose bytes are being committed: an owner for each batch it has some in.
    pub(crate) in_flight: Vec<u64>,
}

impl<D: Disk> Default for Writer<D> {
    fn default() -> Self {
        Writer {
            batch: None,
            owners: HashMap::new(),
            last: 0,
            taken: 0,
            failed: None,
            guard: None,
            sealed: false,
            in_flight: Vec::new(),
        }
    }
}

impl<D: Disk> Writer<D> {
    fn fail(&mut self, error: &Error, owner: u64) {
        self.batch = None;
        self.failed = Some(error.clone());
        self.owners.insert(owner, self.taken);
    }

    /// Takes what is to be committed out of the batch.
    fn take(&mut self, all: bool) -> Result<Option<Batch<D>>> {
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
}

impl<D: Disk> Open<D> {
    fn shape(&self) -> Shape {
        match self.node {
            Node::New(_) | Node::View(_, View::At, _) => Shape::One,
            _ => Shape::Lines,
        }
    }

    /// Up to `size` bytes from `offset` on; fewer only at the end.
    pub fn read(&self, offset: u64, size: usize) -> Result<Vec<u8>> {
        match self.node {
            Node::New(_) => Ok(Vec::new()),
            Node::Count(_) => {
                let mut seen = lock(&self.cursor);
                if offset == 0 {
                    // Who reads on gets the rest of the same number.
                    seen.0 = self.stream.count()?;
                }
                let text = format!("{}\n", seen.0);
                let from = usize::try_from(offset).map_or(text.len(), |from| from.min(text.len()));
                let to = text.len().min(from.saturating_add(size));
                Ok(text.as_bytes()[from..to].to_vec())
            }
            _ => {
                let left = self.len.saturating_sub(offset);
                let size = usize::try_from(left).map_or(size, |left| left.min(size));
                let mut cursor = *lock(&self.cursor);
                let view = self.base.saturating_add(offset);
                let bytes = self.stream.read_view(view, size, &mut cursor)?;
                let mut read = lock(&self.read);
                read.end = read.end.max(offset.saturating_add(bytes.len() as u64));
                read.ended = bytes.is_empty() && size > 0;
                drop(read);
                *lock(&self.cursor) = cursor;
                Ok(bytes)
            }
        }
    }

    /// Like [`Open::read`], but where a follower would come to the end `answer` is called when
    /// there is more, or the thread `pid` has a signal to attend to.
    pub fn read_on(self: &Arc<Self>, offset: u64, size: usize, wait: Option<u32>, answer: Answer) {
        let bytes = self.read(offset, size);
        let follows = matches!(self.node, Node::View(_, View::Follow, _));
        match (bytes, wait) {
            (Ok(bytes), Some(pid)) if follows && bytes.is_empty() && size > 0 => {
                let reader = Waiter::Reader {
                    size,
                    pid,
                    looks: 0,
                    answer,
                };
                self.wait(offset, reader);
            }
            (Ok(bytes), None) if follows && bytes.is_empty() => answer(Err(Error::Again)),
            (bytes, _) => answer(bytes),
        }
    }

    /// Whether there is something this open file has not read. When not, and it is a file that
    /// grows, `notify` is called when there is. Where a read at the end does not wait, the end is
    /// such a thing, once: busybox's `read` polls before each read, and would never come to it.
    pub fn poll(self: &Arc<Self>, notify: Option<Box<dyn FnOnce() + Send>>) -> Result<bool> {
        let grows = !matches!(
            self.node,
            Node::New(_) | Node::Count(_) | Node::View(_, View::At, _)
        );
        let follows = matches!(self.node, Node::View(_, View::Follow, _));
        let mut read = lock(&self.read);
        let end = read.end;
        let ready = !grows || (!follows && !read.ended) || self.more(end)?;
        let park = !ready && notify.is_some() && !std::mem::replace(&mut read.polled, true);
        drop(read);
        if let (true, Some(notify)) = (park, notify) {
            self.wait(end, Waiter::Poller { notify });
        }
        Ok(ready)
    }

    /// Whether there is something behind `offset`.
    fn more(&self, offset: u64) -> Result<bool> {
        Ok(self.stream.tip()?.view() > self.base.saturating_add(offset))
    }

    fn wait(self: &Arc<Self>, offset: u64, waiter: Waiter) {
        self.waiters.park(self.clone(), offset, waiter);
        // What was committed before it could be seen to wait.
        if self.more(offset).unwrap_or(true) {
            self.waiters.wake(self.key(), false);
        }
    }

    /// Its stream, among those that are waited for.
    pub(crate) fn key(&self) -> usize {
        Arc::as_ptr(&self.stream) as usize
    }

    /// Takes `bytes` into the batch, and calls `done` when the write is to return.
    pub fn write(self: &Arc<Self>, owner: u64, offset: u64, bytes: &[u8], done: Done) {
        let mut writer = lock(&self.writer);
        if let Err(error) = self.gather(&mut writer, owner, offset, bytes) {
            drop(writer);
            return done(Err(error));
        }
        if !self.through {
            drop(writer);
            return done(Ok(()));
        }
        match writer.take(false) {
            Ok(None) => {
                drop(writer);
                done(Ok(()));
            }
            Ok(Some(batch)) => self.commit(writer, batch, None, done),
            Err(error) => {
                writer.fail(&error, owner);
                drop(writer);
                done(Err(error));
            }
        }
    }

    fn gather(&self, writer: &mut Writer<D>, owner: u64, offset: u64, bytes: &[u8]) -> Result<()> {
        if let Some(error) = writer.failed.clone() {
            writer.owners.insert(owner, writer.taken);
            return Err(error);
        }
        if writer.sealed {
            return Err(Error::Invalid);
        }
        let mut take = || {
            if let Some(guard) = writer.guard.filter(|_| writer.in_flight.is_empty())
                && self.stream.count()? != guard
            {
                return Err(Error::Exists);
            }
            let shape = self.shape();
            let batch = writer.batch.get_or_insert_with(|| self.stream.batch(shape));
            // One event is written from its beginning to its end.
            if shape == Shape::One && !self.append && offset != batch.tally().len {
                return Err(Error::Invalid);
            }
            batch.push(bytes)
        };
        take().inspect_err(|error| writer.fail(error, owner))?;
        writer.taken += bytes.len() as u64;
        writer.owners.insert(owner, writer.taken);
        writer.last = owner;
        Ok(())
    }

    /// A process closes the file. What it wrote is committed, and `done` called; `ending` says why
    /// it closes, and is asked only where that matters.
    pub fn flush(self: &Arc<Self>, owner: u64, ending: impl FnOnce() -> Ending, done: Done) {
        let mut writer = lock(&self.writer);
        if writer.owners.remove(&owner).is_none() {
            if writer.in_flight.contains(&owner) {
                return self.settle(writer, done);
            }
            drop(writer);
            return done(Ok(()));
        }
        if let Some(error) = writer.failed.clone() {
            if writer.owners.is_empty() {
                writer.failed = None;
            }
            drop(writer);
            return done(Err(error));
        }
        let last = writer.last == owner;
        let taken = match ending() {
            Ending::Closed => writer.take(last),
            Ending::Killed if writer.owners.is_empty() => {
                writer.batch = None;
                Ok(None)
            }
            // Others wrote, too. The complete lines stay, and come when one of them closes.
            Ending::Killed if last => writer.take(false).map(|complete| {
                writer.batch = complete;
                None
            }),
            Ending::Killed => Ok(None),
            Ending::Unknown => {
                let complete = writer.take(false);
                if last {
                    writer.batch = None;
                }
                complete
            }
        };
        match taken {
            Ok(Some(batch)) => self.commit(writer, batch, Some(owner), done),
            Ok(None) => self.settle(writer, done),
            Err(error) => {
                if !writer.owners.is_empty() {
                    writer.batch = None;
                    writer.failed = Some(error.clone());
                }
                drop(writer);
                done(Err(error));
            }
        }
    }

    /// Commits all there is, whoever wrote it.
    pub fn sync(self: &Arc<Self>, done: Done) {
        let mut writer = lock(&self.writer);
        // Who asks is not said. When only one has written it is that one.
        let only = (writer.owners.len() == 1).then_some(writer.last);
        if let Some(error) = writer.failed.clone() {
            if writer.owners.len() <= 1 {
                writer.owners.clear();
                writer.failed = None;
            }
            drop(writer);
            return done(Err(error));
        }
        match writer.batch.take() {
            Some(batch) => self.commit(writer, batch, only, done),
            None => self.settle(writer, done),
        }
    }

    /// Calls `done` when what others are committing through this open file is durable.
    fn settle(self: &Arc<Self>, writer: MutexGuard<'_, Writer<D>>, done: Done) {
        if writer.in_flight.is_empty() {
            drop(writer);
            return done(Ok(()));
        }
        drop(writer);
        // It takes its place in the queue behind theirs.
        let nothing = self.stream.batch(Shape::Lines);
        let done = Box::new(move |result: Result<u64>| done(result.map(drop)));
        self.stream.submit(nothing, None, done);
    }

    /// Commits `batch`. When that fails, `told` learns it by this, all others who had bytes in it
    /// by what they do next.
    fn commit(
        self: &Arc<Self>,
        mut writer: MutexGuard<'_, Writer<D>>,
        batch: Batch<D>,
        told: Option<u64>,
        done: Done,
    ) {
        let rest = writer.batch.as_ref().map_or(0, |rest| rest.tally().len);
        let boundary = writer.taken - rest;
        let mut gone: HashMap<u64, u64> = writer
            .owners
            .extract_if(|_, end| *end <= boundary)
            .collect();
        if rest > 0 {
            // A line that began in this batch may end in the rest, which must not come alone.
            gone.extend(&writer.owners);
        }
        let riders: Vec<u64> = gone.keys().copied().chain(told).collect();
        if let Some(told) = told {
            gone.remove(&told);
        }
        writer.in_flight.extend(&riders);
        let events = batch.tally().all_events();
        let guard = writer.guard.filter(|_| events > 0);
        drop(writer);
        let open = self.clone();
        let finish = move |result: Result<u64>| {
            let mut writer = lock(&open.writer);
            for rider in riders {
                let at = writer.in_flight.iter().position(|owner| *owner == rider);
                at.map(|at| writer.in_flight.swap_remove(at));
            }
            let mut woken = false;
            match &result {
                Ok(first) if events > 0 => {
                    writer.guard = writer.guard.map(|_| first + events);
                    writer.sealed = open.shape() == Shape::One;
                    woken = true;
                }
                Err(error) if !gone.is_empty() => {
                    writer.batch = None;
                    writer.failed = Some(error.clone());
                    writer.owners.extend(gone);
                }
                _ => {}
            }
            drop(writer);
            done(result.map(drop));
            if woken {
                open.waiters.wake(open.key(), false);
            }
        };
        self.stream.submit(batch, guard, Box::new(finish));
    }
}
