//! The appending half of a stream: batches, the queue in front of a commit, the commit.
//!
//! A commit is one write to the log and one `fdatasync`; the index follows, its count last. All
//! of it happens under the stream's mutex and the flock(2) of its log, which is all that several
//! processes on one store share. Batches that arrive while one is being synced wait in a queue
//! and share the next sync.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, mpsc};
use std::time::Instant;

use crate::batch::{Shape, Tally};
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::frame;
use crate::index::{self, entry_at};
use crate::log::{Files, read_full};
use crate::spill::{Spill, write_all};
use crate::stream::{Stream, Tip, lock};

/// So many of the callers' threads may be committing; beyond that a commit gets one of its own, so
/// that slow ones leave a mount with threads for those who want something else.
const LEADERS: usize = 72;
/// So many may wait in the callers' threads for a log's lock to make room for a write.
const RESERVING: usize = 8;
/// The end of a log: a frame ends with a newline, and none follows.
const END: [u8; 1 + frame::HEADER] = {
    let mut end = [0; 1 + frame::HEADER];
    end[0] = b'\n';
    end
};
/// Batches in memory share a sync up to this many bytes of log; a larger one goes alone.
const GROUP: u64 = 1 << 20;

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Room {
    pub(crate) log: u64,
    pub(crate) index: u64,
}

/// Called with the index of a batch's first event, or why there is none.
pub type Done = Box<dyn FnOnce(Result<u64>) + Send>;

pub(crate) struct Job<D: Disk> {
    batch: Batch<D>,
    guard: Option<u64>,
    begun: Instant,
    done: Done,
}

pub(crate) struct Queue<D: Disk> {
    pub(crate) jobs: VecDeque<Job<D>>,
    /// A thread is committing, and will look here again. Without one the queue is empty.
    pub(crate) leading: bool,
}

impl<D: Disk> Stream<D> {
    /// An empty batch, to be filled with [`Batch::push`] and committed with [`Stream::commit`].
    pub fn batch(self: &Arc<Self>, shape: Shape) -> Batch<D> {
        Batch {
            stream: self.clone(),
            shape,
            tally: Tally::default(),
            spill: Spill::new(self.shared.disk.clone(), self.shared.ceiling.clone()),
            reserved: (0, 0),
        }
    }

    /// Appends `events`, any bytes each, as one batch; returns the index of the first. With a
    /// `guard` only if that index is the guard, else [`Error::Exists`]. When it returns they are
    /// durable. No events: nothing happens.
    pub fn append<E: AsRef<[u8]>>(
        self: &Arc<Self>,
        events: impl IntoIterator<Item = E>,
        guard: Option<u64>,
    ) -> Result<u64> {
        let mut batch = self.batch(Shape::Sized);
        for event in events {
            let event = event.as_ref();
            let len = u32::try_from(event.len()).map_err(|_| Error::TooLong)?;
            batch.push(&[&len.to_le_bytes(), event].concat())?;
        }
        self.commit(batch, guard)
    }

    /// Commits a batch, like [`Stream::append`].
    ///
    /// # Errors
    /// [`Error::Invalid`] for a batch of another stream.
    pub fn commit(self: &Arc<Self>, batch: Batch<D>, guard: Option<u64>) -> Result<u64> {
        if !Arc::ptr_eq(self, &batch.stream) {
            return Err(Error::Invalid);
        }
        let (done, answer) = mpsc::channel();
        let done = Box::new(move |result| {
            // Whoever asked is waiting below.
            let _ = done.send(result);
        });
        if self.enqueue(batch, guard, done) {
            self.commit_group();
            if !self.idle() {
                // Those that came meanwhile must not keep this caller from going on.
                self.shared.leading.fetch_add(1, Relaxed);
                if !self.lead_elsewhere() {
                    self.lead();
                }
            }
        }
        let lost = |_| self.os("log")(std::io::Error::other("the commit was given up"));
        answer.recv().map_err(lost)?
    }

    /// Commits a batch and calls `done`; here, or on the thread that is committing already. That
    /// one also commits what others bring meanwhile, so nobody has to wait in a thread.
    pub fn submit(self: &Arc<Self>, batch: Batch<D>, guard: Option<u64>, done: Done) {
        if self.enqueue(batch, guard, done) {
            self.commit_queue();
        }
    }

    /// Commits what is in the queue: for who was told so by [`Stream::enqueue`].
    pub(crate) fn commit_queue(self: &Arc<Self>) {
        let leading = self.shared.leading.fetch_add(1, Relaxed);
        if leading < LEADERS || !self.lead_elsewhere() {
            self.lead();
        }
    }

    /// Leaves the lead to a thread of its own. False when there are no more threads.
    fn lead_elsewhere(self: &Arc<Self>) -> bool {
        let stream = self.clone();
        let thread = std::thread::Builder::new().spawn(move || stream.lead());
        thread.is_ok()
    }

    /// Puts a batch in the queue. True when nobody is committing: it is for the caller to.
    pub(crate) fn enqueue(&self, batch: Batch<D>, guard: Option<u64>, done: Done) -> bool {
        let mut queue = lock(&self.queue);
        queue.jobs.push_back(Job { batch, guard, begun: Instant::now(), done });
        !std::mem::replace(&mut queue.leading, true)
    }

    /// Commits what is in the queue, as one of the leaders that are counted.
    fn lead(self: &Arc<Self>) {
        while !self.idle() {
            self.commit_group();
        }
        self.shared.leading.fetch_sub(1, Relaxed);
    }

    fn idle(&self) -> bool {
        let mut queue = lock(&self.queue);
        queue.leading = !queue.jobs.is_empty();
        !queue.leading
    }

    /// Commits the next batch and those behind it that fit, with one sync.
    fn commit_group(self: &Arc<Self>) {
        let mut group = Vec::new();
        let mut size = 0;
        let mut queue = lock(&self.queue);
        while let Some(job) = queue.jobs.front() {
            size += job.batch.tally.log_bytes();
            if size > GROUP && !group.is_empty() {
                break;
            }
            group.extend(queue.jobs.pop_front());
        }
        drop(queue);
        // What was durable before this group, as far as is known.
        let known = Some(*lock(&self.tip)).filter(|tip| !tip.guessed);
        let mut before = known.map_or(0, |tip| tip.count);
        let commit = || {
            self.locked(|files, tip| {
                before = tip.count;
                let (places, new) = self.place(tip, &group);
                self.write(files, tip, new, &group, &places).map(|()| places)
            })
        };
        let outcome = catch_unwind(AssertUnwindSafe(commit));
        let outcome = outcome.unwrap_or_else(|_| Err(self.unknown(&"a fault in smolstore")));
        let status = &self.shared.status;
        for (i, job) in group.into_iter().enumerate() {
            let result = match &outcome {
                Ok(places) => places[i].clone().map(|place| place.first),
                // Nothing of it can have failed.
                Err(_) if job.batch.tally.len == 0 && job.guard.is_none() => Ok(before),
                // A guard that lost to what is durable is told so, whatever became of the others.
                Err(_) if job.guard.is_some_and(|guard| guard < before) => Err(Error::Exists),
                Err(error) => Err(error.clone()),
            };
            let (tally, took) = (job.batch.tally, job.begun.elapsed());
            match &result {
                Ok(_) if tally.len == 0 => {}
                Ok(_) => status.batch(tally.all_events(), tally.len, took.as_nanos() as u64),
                Err(error) => self.refused(error),
            }
            // A fault there must not keep this thread from those who wait behind.
            let told = catch_unwind(AssertUnwindSafe(|| {
                (job.done)(result);
                // What it had reserved goes back, which may take its time.
                drop(job.batch);
            }));
            if told.is_err() {
                (self.shared.log)("the answer to a commit ended in a fault");
            }
        }
    }

    /// Counts an append that was refused.
    pub(crate) fn refused(&self, error: &Error) {
        self.shared.status.refused(*error == Error::Exists);
    }

    /// The place of each batch, or why it gets none; and the tip behind all but for its end.
    fn place(&self, tip: Tip, group: &[Job<D>]) -> (Vec<Result<Place>>, Tip) {
        let mut new = tip;
        let places = group.iter().map(|job| {
            if job.guard.is_some_and(|guard| guard != new.count) {
                return Err(Error::Exists);
            }
            let first = new.count;
            let events = job.batch.tally.all_events();
            if events > 0 {
                let Some(later) = new.time.checked_add(1) else {
                    // No clock says so. Whoever could write such a log must not stop the others.
                    let why = "no time is later than that of its last event";
                    return Err(Error::Stopped { stream: self.title(), why });
                };
                new.count += events;
                let now = self.disk().now();
                // Where the clock is behind, too, attempts differ in their times, but for one in a
                // thousand: of two whose syncs failed a crash may leave sectors of both, which must
                // not make one batch. A prime, for a clock may tick in steps.
                new.time = if now < later { later.saturating_add(now % 1021) } else { now };
            }
            let (last, time) = (new.count, new.time);
            Ok(Place { first, last, time })
        });
        (places.collect(), new)
    }

    /// Steps 2 to 5 of a commit: log, sync, index, count.
    fn write(
        &self,
        files: &Files<D>,
        tip: Tip,
        new: Tip,
        group: &[Job<D>],
        places: &[Result<Place>],
    ) -> Result<()> {
        if new.count == tip.count {
            return Ok(());
        }
        let disk = self.disk();
        let placed = || {
            group
                .iter()
                .zip(places)
                .filter_map(|(job, place)| place.as_ref().ok().map(|place| (&job.batch, place)))
        };
        let bytes: u64 = placed().map(|(batch, _)| batch.tally.log_bytes()).sum();
        if tip.count == 0 {
            // Once more: after a sync that failed the next may succeed without what that one lost.
            files.publish(0)?;
            files.sync_index()?;
            files.sync_names()?;
        }
        self.grow_index(files, new.count)?;
        // Where there is no room for the step ahead there may be for the batch.
        let _ = self.grow_log(files, tip.end + bytes);
        // Whoever holds all the room there is for batches keeps no other one from its commit.
        let ends = Some(Spill::new(self.shared.disk.clone(), Arc::default()));
        let mut writer =
            Writer { stream: self, files, out: Vec::new(), at: tip.end, some: Vec::new(), ends };
        let mut frames = || {
            for (batch, place) in placed() {
                writer.batch(batch, place)?;
            }
            writer.flush()
        };
        if let Err(error) = frames() {
            return Err(self.undo(files, tip.end, error));
        }
        let Writer { at: end, ends, out, .. } = writer;
        // Those who wait for the disk at the same time may be many.
        drop(out);
        if disk.sync_data(&files.log).is_err() {
            // What became of the pages is not known, and trying again may lie. The stream stops in
            // any case; the cut spares its recovery a batch that may look damaged.
            let cut = self.cut(files, tip.end);
            let _ = cut.and_then(|()| disk.sync_all(&files.log));
            return Err(self.stop(files, "its log failed to sync"));
        }
        let index = || -> Result<()> {
            match &ends {
                Some(ends) => {
                    ends.pieces(0, |at, bytes| files.hint(entry_at(tip.count) + at, bytes))?;
                }
                None => files.map(tip.count, tip.end, new.count).map(drop)?,
            }
            files.publish(new.count)?;
            disk.stat(&files.log).map_err(self.os("log")).map(drop)
        };
        index().map_err(|error| match error {
            // Where the count finds no room all of it can be undone, if nobody has seen it.
            full if full.no_room() && files.header() == Ok(Some(tip.count)) => {
                self.undo(files, tip.end, full)
            }
            error => self.unknown(&error),
        })?;
        *lock(&self.tip) = Tip { end, ..new };
        self.shared.status.commit();
        Ok(())
    }

    /// Takes back what was written of a batch that failed, before anything else is written there;
    /// says what is to be told of it.
    fn undo(&self, files: &Files<D>, end: u64, error: Error) -> Error {
        let disk = self.disk();
        let mut head = [0; frame::HEADER];
        // Frames are written in order: without the first there is none.
        if read_full(disk, &files.log, &mut head, end).is_ok() && head == [0; frame::HEADER] {
            return error;
        }
        match self.cut(files, end).map_err(self.os("log")) {
            // As for an acknowledgement: whoever was cut off may only be told by this stat.
            Ok(()) if disk.sync_all(&files.log).is_ok() && disk.stat(&files.log).is_ok() => error,
            // Where each write takes new blocks to cut needs room, too. Whoever has something to
            // write next recovers first: what is there is then cut off, or adopted.
            Err(full) if full.no_room() => self.unknown(&error),
            _ => {
                self.stop(files, "a batch that failed could not be cut off again");
                self.unknown(&error)
            }
        }
    }

    pub(crate) fn cut(&self, files: &Files<D>, end: u64) -> std::io::Result<()> {
        lock(&self.room).log = end;
        self.disk().set_len(&files.log, end)
    }

    pub(crate) fn unknown(&self, error: &dyn std::fmt::Display) -> Error {
        Error::Unknown { stream: self.title(), why: error.to_string() }
    }

    /// Takes no more appends until the next mount has recovered the stream.
    pub(crate) fn stop(&self, files: &Files<D>, why: &'static str) -> Error {
        lock(&self.shared.stopped).insert(files.identity, why);
        let error = Error::Stopped { stream: self.title(), why };
        (self.shared.log)(&error.to_string());
        error
    }

    /// Runs `remove` under the locks of the stream, unless it holds events.
    pub(crate) fn empty(self: &Arc<Self>, remove: impl FnOnce() -> Result<()>) -> Result<()> {
        self.locked(|_, tip| match tip.count {
            0 => remove(),
            _ => Err(Error::NotEmpty),
        })
    }

    /// Runs `change` on the stream as it is, under its locks.
    fn locked<R>(self: &Arc<Self>, change: impl FnOnce(&Files<D>, Tip) -> Result<R>) -> Result<R> {
        if self.shared.read_only {
            return Err(Error::ReadOnly);
        }
        let disk = self.disk();
        let _writer = lock(&self.writer);
        // Each turn finds what another process left; nobody can do that forever.
        for turn in 0..16 {
            let mut files = self.files()?;
            if files.lost.is_some() {
                // It may have been given up meanwhile, and the index deleted.
                files = self.files_and_tip()?.0;
            }
            let stopped = lock(&self.shared.stopped).get(&files.identity).copied();
            let lost = files.lost.map(|_| "the disk lost acknowledged events");
            if let Some(why) = stopped.or(lost) {
                return Err(Error::Stopped { stream: self.title(), why });
            }
            if let Some(full) = &files.unmended {
                if turn > 0 {
                    return Err(full.clone());
                }
                // There may be room by now.
                drop(files);
                self.close();
                continue;
            }
            disk.lock(&files.log, false).map_err(self.os("log"))?;
            let held = Held { disk, file: Some(&files.log) };
            let log = disk.stat(&files.log).map_err(self.os("log"))?;
            let index = disk.stat(&files.index).map_err(self.os("index"))?;
            let mut ready = log.named && index.named;
            if ready && let Some(tip) = self.tip_of(&files)? {
                if tip.count == 0 {
                    // The first commit makes the name durable: it must be the stream's still.
                    let named = disk.identity(&files.name.join("log")).ok();
                    if named != Some(files.identity) {
                        return Err(Error::NotFound);
                    }
                }
                let (mut around, first) = (END, usize::from(tip.end == 0));
                let from = tip.end + first as u64 - 1;
                let read = read_full(disk, &files.log, &mut around[first..], from);
                read.map_err(self.os("log"))?;
                // Another one crashed in the middle of a commit, or the log was cut short, or the
                // disk lost what was there.
                ready = around == END && log.len >= tip.end;
                if ready {
                    *lock(&self.room) = Room { log: log.len, index: index.len };
                    let result = change(&files, tip);
                    let released = held.release();
                    return match (released, result) {
                        (Err(error), Ok(_)) => {
                            // Nobody is to be told EEXIST for it.
                            *lock(&self.tip) = tip;
                            Err(self.unknown(&self.os("log")(error)))
                        }
                        // Nor that nothing is stored, by who only believed to cut it off again.
                        (Err(_), Err(full)) if full.no_room() => Err(self.unknown(&full)),
                        (_, result) => result,
                    };
                }
            }
            drop(held);
            if !log.named {
                // Removed; another stream may have its name by now, and then it is that.
                *lock(&self.identity) = 0;
            }
            drop(files);
            self.close();
        }
        Err(self.os("log")(std::io::Error::other("it does not stay recovered")))
    }

    fn grow_log(&self, files: &Files<D>, needed: u64) -> Result<()> {
        let len = lock(&self.room).log;
        lock(&self.room).log = self.grow(&files.log, "log", len, needed)?;
        Ok(())
    }

    fn grow_index(&self, files: &Files<D>, count: u64) -> Result<()> {
        let len = lock(&self.room).index;
        lock(&self.room).index = self.grow(&files.index, "index", len, entry_at(count))?;
        Ok(())
    }

    /// Makes a file of length `len` as long as needed; says how long it is now.
    fn grow(&self, file: &D::File, what: &str, len: u64, needed: u64) -> Result<u64> {
        if needed <= len {
            return Ok(len);
        }
        let large = lock(&self.pending).0 > index::MAX_STEP;
        let result = self.disk().reserve(file, len, index::grown(needed), large);
        if let Err(error) = result {
            // The step ahead may have been too much, what is needed not.
            let got = self.disk().stat(file).map_err(self.os(what))?.len;
            if got >= needed {
                return Ok(got);
            }
            // Give back what was taken: others may need it.
            let _ = self.disk().set_len(file, len);
            return Err(self.os(what)(error));
        }
        Ok(index::grown(needed))
    }

    /// Takes up room for `bytes` more of log and `events` more of index, so that it is the write
    /// that meets a full disk, not the commit.
    fn reserve(self: &Arc<Self>, bytes: u64, events: u64) -> Result<()> {
        let (bytes, events) = {
            let mut pending = lock(&self.pending);
            pending.0 += bytes;
            pending.1 += events;
            *pending
        };
        let (tip, room) = (*lock(&self.tip), *lock(&self.room));
        if room.log >= tip.end + bytes && room.index >= entry_at(tip.count + events) {
            return Ok(());
        }
        // Beyond a few it is the commit that meets a full disk: whoever holds a log's lock for long
        // must not hold up all there is.
        let reserving = &self.shared.reserving;
        let reserved = match reserving.fetch_add(1, Relaxed) {
            ..RESERVING => self.locked(|files, tip| {
                self.grow_index(files, tip.count + events)?;
                self.grow_log(files, tip.end + bytes)
            }),
            _ => Ok(()),
        };
        reserving.fetch_sub(1, Relaxed);
        reserved
    }

    /// A batch is committed or given up. What was reserved for a large one goes back.
    fn release(self: &Arc<Self>, bytes: u64, events: u64) {
        {
            let mut pending = lock(&self.pending);
            pending.0 -= bytes;
            pending.1 -= events;
        }
        if bytes < index::MAX_STEP {
            return;
        }
        // When it does not work the space is given back at the next mount.
        let _ = self.locked(|files, tip| {
            let left = *lock(&self.pending);
            // No step ahead: that is not of zeros.
            let keep = (tip.end + left.0).next_multiple_of(4096);
            if lock(&self.room).log > keep {
                self.cut(files, keep).map_err(self.os("log"))?;
            }
            let keep = index::grown(entry_at(tip.count + left.1));
            let room = &mut lock(&self.room).index;
            if *room > keep {
                *room = keep;
                let cut = self.disk().set_len(&files.index, keep);
                cut.map_err(self.os("index"))?;
            }
            Ok(())
        });
    }
}

/// Where a batch goes: its events are `first..last`.
#[derive(Clone, Copy)]
struct Place {
    first: u64,
    last: u64,
    time: u64,
}

/// Writes frames to the log.
struct Writer<'a, D: Disk> {
    stream: &'a Stream<D>,
    files: &'a Files<D>,
    out: Vec<u8>,
    /// Where `out` goes.
    at: u64,
    /// Where the events in `out` end, as it will be in the index;
    some: Vec<u8>,
    /// and those before. They wait for the sync: a batch that a crash takes leaves no entries.
    /// None when there is no room: the log says it, too.
    ends: Option<Spill<D>>,
}

impl<D: Disk> Writer<'_, D> {
    fn batch(&mut self, batch: &Batch<D>, place: &Place) -> Result<()> {
        let mut n = place.first;
        batch.spill.events(batch.shape, |event| {
            let (first, last) = (n == place.first, n + 1 == place.last);
            frame::encode(&mut self.out, n, place.time, first, last, event);
            n += 1;
            self.some.extend((self.at + self.out.len() as u64).to_le_bytes());
            if self.out.len() as u64 >= GROUP {
                self.flush()?;
            }
            Ok(())
        })
    }

    fn flush(&mut self) -> Result<()> {
        let (disk, log) = (self.stream.disk(), &self.files.log);
        write_all(disk, log, &self.out, self.at).map_err(self.stream.os("log"))?;
        let kept = self.ends.take().map(|mut ends| ends.push(&self.some).map(|()| ends));
        self.ends = kept.and_then(Result::ok);
        self.at += self.out.len() as u64;
        self.out.clear();
        self.some.clear();
        Ok(())
    }
}

/// Gives the lock back when it is dropped, also by a panic.
struct Held<'a, D: Disk> {
    disk: &'a D,
    file: Option<&'a D::File>,
}

impl<D: Disk> Held<'_, D> {
    fn release(mut self) -> std::io::Result<()> {
        self.file.take().map_or(Ok(()), |file| self.disk.unlock(file))
    }
}

impl<D: Disk> Drop for Held<'_, D> {
    fn drop(&mut self) {
        if let Some(file) = self.file {
            // The stream is opened again, which drops the lock in any case.
            let _ = self.disk.unlock(file);
        }
    }
}

/// Events gathered for one commit. Dropped without one, it leaves nothing.
pub struct Batch<D: Disk> {
    stream: Arc<Stream<D>>,
    shape: Shape,
    tally: Tally,
    spill: Spill<D>,
    reserved: (u64, u64),
}

impl<D: Disk> Batch<D> {
    /// Adds bytes. After an error the batch cannot be committed, only dropped.
    pub fn push(&mut self, bytes: &[u8]) -> Result<()> {
        let mut tally = self.tally;
        tally.push(self.shape, bytes).map_err(|_| Error::TooLong)?;
        let needed = (tally.log_bytes(), tally.all_events());
        let more = (needed.0 - self.reserved.0, needed.1 - self.reserved.1);
        self.reserved = needed;
        self.stream.reserve(more.0, more.1)?;
        self.spill.push(bytes)?;
        self.tally = tally;
        Ok(())
    }

    pub(crate) fn tally(&self) -> Tally {
        self.tally
    }

    /// Takes away what is behind the last complete event. After an error neither can be committed.
    pub fn split_torn(&mut self) -> Result<Batch<D>> {
        let mut torn = self.stream.batch(self.shape);
        torn.spill = self.spill.split_off(self.tally.complete)?;
        torn.tally.len = self.tally.torn();
        self.tally.len = self.tally.complete;
        let kept = (self.tally.log_bytes(), self.tally.all_events());
        torn.reserved = (self.reserved.0 - kept.0, self.reserved.1 - kept.1);
        self.reserved = kept;
        Ok(torn)
    }
}

impl<D: Disk> Drop for Batch<D> {
    fn drop(&mut self) {
        self.stream.release(self.reserved.0, self.reserved.1);
    }
}
