//! The appending half of a stream: batches, the queue in front of a commit, the commit.
//!
//! A commit is one write to the log and one `fdatasync`; then `last` makes it visible. All of it
//! happens under the stream's mutex and the flock(2) of its log, which is all that several
//! processes on one store share. Batches that arrive while one is being synced wait in a queue
//! and share the next sync.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, mpsc};
use std::time::Instant;

use crate::batch::{Blocks, Shape};
use crate::disk::{Disk, Held};
use crate::error::{Error, Result};
use crate::log::Files;
use crate::page::{self, HEAD};
use crate::spill::{PIECE, write_all};
use crate::stream::{Batch, Done, Job, Stream};
use crate::sys::{lock, try_lock};
use crate::walk::{self, Tip};

/// So many of the callers' threads may be committing; beyond that a commit gets one of its own, so
/// that slow ones leave a mount with threads for those who want something else.
const LEADERS: usize = 72;
/// Batches share a sync up to this many bytes; a larger one goes alone.
const GROUP: u64 = 1 << 20;
/// So many bytes of log are written at once.
const WRITE: usize = 256 << 10;
/// A clock that is behind by more is worth a line in the operator's log: nanoseconds.
const LATE: u64 = 1_000_000_000;

impl<D: Disk> Stream<D> {
    /// Appends `events`, any bytes each, as one batch; returns the index of the first. With a
    /// `guard` only if that index is the guard, else [`Error::Exists`]. When it returns they are
    /// durable. No events: nothing happens.
    pub fn append<E: AsRef<[u8]>>(
        self: &Arc<Self>,
        events: impl IntoIterator<Item = E>,
        guard: Option<u64>,
    ) -> Result<u64> {
        let mut batch = self.batch(Shape::Lines);
        for event in events {
            batch.event(event.as_ref())?;
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
        self.submit(batch, guard, done);
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
        if self.shared.leading.fetch_add(1, Relaxed) < LEADERS || !self.lead_elsewhere() {
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
            size += job.batch.len();
            if size > GROUP && !group.is_empty() {
                break;
            }
            group.extend(queue.jobs.pop_front());
        }
        drop(queue);
        let results = self.attempt(&group);
        let status = &self.shared.status;
        for (job, result) in group.into_iter().zip(results) {
            let (events, len) = (job.batch.all_events(), job.batch.len());
            match &result {
                Ok(_) if len == 0 => {}
                Ok(_) => status.batch(events, len, job.begun.elapsed().as_nanos() as u64),
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

    /// Commits these batches as one unit: what each is to be told.
    fn attempt(self: &Arc<Self>, group: &[Job<D>]) -> Vec<Result<u64>> {
        // What was durable before, as far as is known.
        let mut before = self.known().count;
        let commit = || {
            self.locked(|files, tip| {
                before = tip.count;
                let (places, count) = place(tip, group);
                let some = count > tip.count;
                let new = if some { self.write(files, tip, group, &places)? } else { tip };
                Ok((places, files.clone(), new))
            })
        };
        let outcome = catch_unwind(AssertUnwindSafe(commit));
        let fault = |_| {
            self.close();
            Err(self.unknown(&"a fault in smolstore"))
        };
        match outcome.unwrap_or_else(fault) {
            Ok((places, files, new)) => {
                self.advance(&files, new);
                places
            }
            // One that finds no room must not take others with it.
            Err(error) if error.no_room() && group.len() > 1 => {
                group.chunks(1).flat_map(|job| self.attempt(job)).collect()
            }
            Err(error) => {
                let told = |job: &Job<D>| match job.guard {
                    // Nothing of it can have failed.
                    None if job.batch.is_empty() => Ok(before),
                    // A guard that lost to what is durable is told so, whatever became of the others.
                    Some(guard) if guard < before => Err(Error::Exists),
                    _ => Err(error.clone()),
                };
                group.iter().map(told).collect()
            }
        }
    }

    /// Steps 2 to 5 of a commit: room, blocks, sync, `last`; the end then, if the lock still holds.
    fn write(
        &self,
        files: &Files<D>,
        tip: Tip,
        group: &[Job<D>],
        places: &[Result<u64>],
    ) -> Result<Tip> {
        let (disk, log) = (self.disk(), files.log()?);
        let placed = || group.iter().zip(places).filter(|(_, place)| place.is_ok());
        let bytes: u64 = placed().map(|(job, _)| job.batch.room()).sum();
        if tip.end + bytes >= page::LONGEST {
            return Err(self.os("log")(std::io::Error::from_raw_os_error(libc::EFBIG)));
        }
        let first = tip.count == 0;
        let mut head = *lock(&files.head);
        if first {
            // Of an odd number no time comes to 0.
            head.seed =
                if head.seed == 0 { disk.random().map_err(self.os("log"))? | 1 } else { head.seed };
            // It takes up room for what is to be written last.
            files.publish(0, head.seed)?;
        }
        // Where there is no room for the step ahead there may be for the batch.
        let _ = self.grow(files, tip.end, tip.end + bytes);
        let mut blocks = Blocks::new(head.seed, &tip, self.time(tip)?);
        let flush = |blocks: &mut Blocks| -> std::io::Result<()> {
            match blocks.take() {
                // While there are no events, with the head: it may be in the cache only.
                (at, bytes) if first && at == HEAD as u64 => {
                    write_all(disk, log, &[&head.encode()[..], &bytes].concat(), 0)?;
                }
                (at, bytes) => write_all(disk, log, &bytes, at)?,
            }
            if let Some(((at, entries), index)) = blocks.take_entries().zip(files.index.as_ref()) {
                // Hints: without them the pages are asked.
                let _ = write_all(disk, index, &entries, at);
            }
            Ok(())
        };
        let mut fill = || -> Result<Tip> {
            // Of any bytes, but without any, it is no event, as it was counted.
            let parts = placed().flat_map(|(job, _)| &job.batch.parts);
            for part in parts.filter(|part| part.tally.len > 0) {
                part.spill.pieces(0, |_, bytes| {
                    blocks.push(part.shape, bytes);
                    match blocks.len() {
                        WRITE.. => flush(&mut blocks).map_err(self.os("log")),
                        _ => Ok(()),
                    }
                })?;
                blocks.end(part.shape);
            }
            let new = blocks.finish();
            flush(&mut blocks).map_err(self.os("log")).map(|()| new)
        };
        let new = match fill() {
            // It comes to nothing, unless what an older attempt left of the same bytes completes it.
            Err(error)
                if error.no_room()
                    && walk::walk(&mut files.scan(PIECE)?, head.seed, tip, 0, &mut |_| {})
                        .is_ok_and(|walked| walked.tip == tip) =>
            {
                return Err(error);
            }
            filled => filled.map_err(|error| self.unknown(&error))?,
        };
        // Those who wait for the disk at the same time may be many.
        drop(blocks);
        let synced = disk.sync_data(log).map_err(self.os("log"));
        let named = || if first { self.spared(|| files.sync_names()) } else { Ok(()) };
        let published =
            synced.and_then(|()| named()).and_then(|()| files.publish(new.at, head.seed));
        // A client cut off from a distributed file system may learn it here.
        let told = published.and_then(|()| disk.stat(log).map_err(self.os("log")));
        told.map_err(|error| self.unknown(&error))?;
        if first {
            *lock(&files.head) = head;
        }
        self.shared.status.commit();
        Ok(new)
    }

    /// The time of a commit behind `tip`.
    fn time(&self, tip: Tip) -> Result<u64> {
        let now = self.disk().now();
        if tip.time > now.saturating_add(LATE) && !self.late.swap(true, Relaxed) {
            let ahead = (tip.time - now) / LATE;
            (self.shared.log)(&format!(
                "stream {:?}: the clock is {ahead} s behind the time of its last event; until it \
                 has caught up, new events get that time and a nanosecond more each",
                self.title()
            ));
        }
        let time = now.max(tip.time + 1);
        // Blocks have no later one. No clock says so: whoever could write such a log must not stop
        // the others.
        let why = "no time is later than that of its last event";
        let stopped = Error::Stopped { stream: self.title(), why };
        if time < page::MAX { Ok(time) } else { Err(stopped) }
    }

    /// What became of a commit is not known.
    pub(crate) fn unknown(&self, error: &dyn std::fmt::Display) -> Error {
        Error::Unknown { stream: self.title(), why: error.to_string() }
    }

    /// Runs `change` on the stream as it is, under its locks.
    pub(crate) fn locked<R>(
        self: &Arc<Self>,
        change: impl FnOnce(&Arc<Files<D>>, Tip) -> Result<R>,
    ) -> Result<R> {
        if self.shared.read_only {
            return Err(Error::ReadOnly);
        }
        let _writer = lock(&self.writer);
        let (mut change, mut again) = (Some(change), false);
        self.opened(|files| {
            if let Some(error) = &files.unmended {
                let tried = std::mem::replace(&mut again, true);
                return Ok(tried.then(|| Err(error.clone())));
            }
            if files.intact.is_some() {
                let why = "the disk lost acknowledged events";
                let stopped = Error::Stopped { stream: self.title(), why };
                return Ok(self.seen(files)?.map(|_| Err(stopped)));
            }
            match self.hold(files, true) {
                Ok(Some((held, tip))) => {
                    let change = change.take().map(|change| change(files, tip));
                    Ok(change.map(|changed| self.release_after(files, held, changed)))
                }
                Ok(None) => Ok(None),
                // Another stream has the name now.
                Err(Error::NotFound) => Ok(Some(Err(Error::NotFound))),
                Err(error) => Err(error),
            }
        })?
    }

    /// As [`Stream::locked`], but nothing happens where somebody has the lock, or the files are to be opened
    /// again.
    pub(crate) fn try_locked(
        self: &Arc<Self>,
        change: impl FnOnce(&Files<D>, Tip) -> Result<()>,
    ) -> Result<()> {
        let Some(_writer) = try_lock(&self.writer) else {
            return Ok(());
        };
        let files = self.files()?;
        if files.intact.is_some() || files.unmended.is_some() {
            return Ok(());
        }
        match self.hold(&files, false) {
            Ok(Some((held, tip))) => self.release_after(&files, held, change(&files, tip)),
            Ok(None) => Ok(()),
            // Another stream has the name now.
            Err(Error::NotFound) => Err(Error::NotFound),
            Err(_) => {
                self.give_up(&files);
                Ok(())
            }
        }
    }

    /// The lock of the log and the end of the stream, when it can be appended to as it is; None when not,
    /// or when somebody else has the lock, unless that is to be waited for.
    fn hold<'a>(&self, files: &'a Files<D>, wait: bool) -> Result<Option<(Held<'a, D>, Tip)>> {
        let disk = self.shared.disk.clone();
        let held = match wait {
            true => Held::new(disk, files.log.as_ref(), false).map(Some),
            false => Held::try_new(disk, files.log.as_ref(), false),
        };
        let Some(held) = held.map_err(self.os("log"))? else {
            return Ok(None);
        };
        Ok(self.ready(files)?.map(|tip| (held, tip)))
    }

    /// Nobody is to be told that something is stored, or not, by who may have lost the lock. What became
    /// of a commit the next to use the stream finds out.
    fn release_after<R>(&self, files: &Files<D>, held: Held<D>, result: Result<R>) -> Result<R> {
        let released = held.release().map_err(self.os("log"));
        let result = released.map_err(|error| self.unknown(&error)).and(result);
        if matches!(result, Err(Error::Unknown { .. })) {
            self.give_up(files);
        }
        result
    }

    /// The end of a stream that can be appended to as it is, under the locks: the files have their
    /// names, `last` is known, and nobody has left a commit behind it. None: to be opened again.
    fn ready(&self, files: &Files<D>) -> Result<Option<Tip>> {
        let Some(tip) = self.seen(files)?.filter(|_| files.intact.is_none()) else {
            return Ok(None);
        };
        let log = self.disk().stat(files.log()?).map_err(self.os("log"))?;
        self.room.store(log.len, Relaxed);
        if !log.named {
            return Ok(None);
        }
        // The first commit makes the name durable: it must be the stream's still. NFS gives a file that is
        // removed while it is open another name, under which nobody would find it.
        let doubtful = tip.count == 0 || self.disk().direct();
        if doubtful && !self.spared(|| files.matched())? {
            return Err(Error::NotFound);
        }
        // A commit without an end is overwritten.
        Ok((!files.is_new(files.behind(&tip)?, &tip)?).then_some(tip))
    }
}

/// The place of each batch, or why it gets none; and the count behind all.
fn place<D: Disk>(tip: Tip, group: &[Job<D>]) -> (Vec<Result<u64>>, u64) {
    let mut count = tip.count;
    let places = group.iter().map(|job| {
        if job.guard.is_some_and(|guard| guard != count) {
            return Err(Error::Exists);
        }
        let first = count;
        count += job.batch.all_events();
        Ok(first)
    });
    (places.collect(), count)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::disk::Real;
    use crate::page::Head;
    use crate::store::Store;

    fn stream() -> (tempfile::TempDir, Store, Arc<Stream<Real>>) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::on(Real::local(dir.path()), false, Box::new(|_| {}));
        store.create("s", 0o755).unwrap();
        let s = store.stream("s").unwrap();
        (dir, store, s)
    }

    /// That of an earlier try, on a page whose sync failed, may go from the cache at any moment.
    #[test]
    fn while_there_are_no_events_the_head_is_written_each_time() {
        let (dir, _store, s) = stream();
        let log = File::options().read(true).write(true).open(dir.path().join("s/log")).unwrap();
        let head = Head { seed: 7, ..Head::default() };
        log.write_all_at(&head.encode(), 0).unwrap();
        s.close();
        let files = s.files().unwrap();
        log.write_all_at(&[0; HEAD], 0).unwrap();
        let mut batch = s.batch(Shape::Lines);
        batch.event(b"kept").unwrap();
        let job = Job { batch, guard: None, begun: Instant::now(), done: Box::new(|_| {}) };
        s.write(&files, Tip::default(), &[job], &[Ok(0)]).unwrap();
        let mut written = [0; HEAD];
        log.read_exact_at(&mut written, 0).unwrap();
        assert_eq!(Head::decode(&written), Some(head));
    }

    /// What became of it the next to use the stream finds out, whatever its files were thought to hold.
    #[test]
    fn files_of_which_something_is_in_doubt_are_opened_again() {
        let (_dir, _store, s) = stream();
        s.append(["kept"], None).unwrap();
        let before = s.files().unwrap();
        let doubt: Result<()> = s.locked(|_, _| Err(s.unknown(&"the cable was cut")));
        assert!(matches!(doubt, Err(Error::Unknown { .. })), "{doubt:?}");
        assert!(!Arc::ptr_eq(&before, &s.files().unwrap()));
    }

    #[test]
    fn nothing_is_committed_to_a_log_that_was_deleted() {
        let (dir, _store, s) = stream();
        s.append(["kept"], None).unwrap();
        std::fs::remove_file(dir.path().join("s/log")).unwrap();
        let refused = s.append(["more"], None);
        assert!(matches!(refused, Err(Error::Stopped { .. })), "{refused:?}");
    }
}
