//! Opening a stream: what is found of it, and the steps that [`crate::recover`] decides on.

use std::io;

use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::frame::{self, Found};
use crate::index::{self, entry_at};
use crate::log::Files;
use crate::recover::{Decision, Facts, Walk, decide};
use crate::spill::PIECE;
use crate::stream::{Stream, Tip, lock};

/// What a walk over the end of a log found.
struct Survey {
    facts: Facts,
    /// What the index counts, also when it is another log's.
    claimed: u64,
    /// The last place that the index is right about: the walk began there.
    start: Walk,
    /// Where it ended.
    walk: Walk,
    /// An index of another log leads to events behind where it ended.
    more: bool,
    /// Log offset of the first event beyond the count.
    beyond: u64,
}

impl<D: Disk> Stream<D> {
    /// Opens log and index by name, and recovers the stream.
    pub(crate) fn open(&self) -> Result<Files<D>> {
        // Where nothing is to be done nobody who holds the lock is waited for.
        self.open_files(false).or_else(|_| self.open_files(true))
    }

    /// Without the lock an error where anything is to be done.
    pub(crate) fn open_files(&self, locked: bool) -> Result<Files<D>> {
        let (disk, name) = (self.disk(), self.name());
        let missing = |error: io::Error, what| match error.kind() {
            io::ErrorKind::NotFound => Error::NotFound,
            _ => self.os(what)(error),
        };
        let open = |what, write| match disk.open(&name.join(what), write) {
            // A stream that nobody wrote to, or whose index is to be rebuilt, in a store that is
            // not to be written to.
            Err(error) if !write && error.kind() == io::ErrorKind::NotFound => {
                disk.identity(&name).map_err(|error| missing(error, ""))?;
                disk.scratch().map_err(self.os(what))
            }
            result => result.map_err(|error| missing(error, what)),
        };
        if !locked {
            // Or it would be made.
            disk.identity(&name.join("index")).map_err(|error| missing(error, "index"))?;
        }
        let mut write = !self.shared.read_only;
        let mut log = open("log", write);
        if write && log.as_ref().is_err_and(|error| error.errno() == libc::EROFS) {
            // What is there can be read, as from a file system that became read-only by an error.
            write = false;
            log = open("log", write);
        }
        let log = log?;
        let before = *lock(&self.tip);
        let stat = || disk.stat(&log).map_err(self.os("log"));
        let (known, mut found) = (self.identity(), stat()?);
        if known != 0 && known != found.identity {
            // Another stream got our name while our files were closed.
            return Err(Error::NotFound);
        }
        if locked {
            disk.lock(&log, !write).map_err(self.os("log"))?;
            // Whoever fails from here on drops the file, and with it the lock.
            found = stat()?;
        }
        let named = || disk.identity(&name.join("log")).ok();
        if locked && write && named() != Some(found.identity) {
            // Removed or renamed while we waited: the index would be another stream's.
            return Err(Error::NotFound);
        }
        let index = open("index", write)?;
        let disk = self.shared.disk.clone();
        let mut files = Files::new(disk.clone(), name, write, (log, index), found.identity);
        let to_do = || self.os("log")(io::Error::other("it is to be recovered"));
        if !locked && files.header()?.is_none() {
            // All of the log would be read to know it.
            return Err(to_do());
        }
        // What was acknowledged is not to be forgotten with its index.
        let acknowledged = known == found.identity && !before.guessed;
        let survey = self.survey(&files, found.len, if acknowledged { before.count } else { 0 })?;
        let nothing = Decision::Use { adopt: false, cut: false };
        if !locked && decide(survey.facts) != nothing {
            return Err(to_do());
        }
        let tip = self.recover(&mut files, &survey, found.len)?;
        if files.lost.is_some() || !files.write {
            self.tell_of_foreign(&survey, tip.count);
        }
        if known != found.identity {
            *lock(&self.tip) = Tip::default();
        }
        // One that is made for us alone says nothing of what gets its name.
        *lock(&self.identity) = if found.named { found.identity } else { 0 };
        if locked {
            // Whoever was cut off meanwhile has not made durable what it adopted.
            disk.stat(&files.log).map_err(files.os("log"))?;
            disk.unlock(&files.log).map_err(self.os("log"))?;
        }
        let mut seen = lock(&self.tip);
        // What a lost stream was thought to hold ends with the loss: an append there would be over
        // a hole.
        if tip.count >= seen.count || seen.guessed {
            *seen = tip;
        }
        Ok(files)
    }

    /// Mends what can be, under the lock unless nothing is to be done.
    fn recover(&self, files: &mut Files<D>, found: &Survey, len: u64) -> Result<Tip> {
        let Walk { whole: count, end, whole_time: time, .. } = found.walk;
        let tip = Tip { count, end, time, guessed: false };
        let indexed = found.facts.indexed;
        match decide(found.facts) {
            Decision::Lost => self.lose(files, found, tip),
            Decision::Use { .. } if !files.write => {
                let guessed = indexed != Some(tip.count);
                if guessed {
                    files.counted = indexed.is_some();
                    let mapped = self.map_aside(files, found.start, tip.count);
                    // Where nothing can be written at all entries are derived when met.
                    mapped.or_else(|error| indexed.map(drop).ok_or(error))?;
                }
                if !self.shared.read_only {
                    files.unmended = Some(Error::ReadOnly);
                }
                Ok(Tip { guessed, ..tip })
            }
            Decision::Use { adopt, cut } => {
                match self.mend(files, found, tip, (adopt, cut), len) {
                    // Whoever only reads needs none of it, if what is read stays: what is counted,
                    // for that is what other mounts show.
                    Err(error) if error.no_room() => {
                        if indexed.is_none() {
                            // All of it is shown, and may be in the page cache only.
                            self.sync_log(files)?;
                        }
                        files.counted = indexed.is_some();
                        files.unmended = Some(error);
                        let (end, time) = (found.beyond, found.start.time);
                        return Ok(indexed.map_or(tip, |count| Tip { count, end, time, ..tip }));
                    }
                    mended => mended?,
                }
                Ok(tip)
            }
        }
    }

    fn mend(
        &self,
        files: &mut Files<D>,
        found: &Survey,
        tip: Tip,
        (adopt, cut): (bool, bool),
        len: u64,
    ) -> Result<()> {
        if cut {
            if found.facts.indexed.is_none() && !found.facts.clean {
                self.keep(files, tip, len)?;
            }
            self.cut(files, tip.end).map_err(files.os("log"))?;
            // Before anything else can fail: nobody would do it again.
            self.sync_log(files)?;
            // The index of a large batch that never came is long, too. It may stay so.
            let counted = tip.count + lock(&self.pending).1;
            let (disk, len) = (self.disk(), index::grown(entry_at(counted)));
            if disk.stat(&files.index).is_ok_and(|index| index.len > len) {
                let _ = disk.set_len(&files.index, len);
            }
        }
        if tip.end > found.beyond {
            let written = files.copy(found.beyond, tip.end, &files.log);
            written.map_err(files.os("log"))?;
            self.sync_log(files)?;
        }
        if adopt {
            self.count_in(files, found, tip.count)?;
        }
        Ok(())
    }

    fn sync_log(&self, files: &Files<D>) -> Result<()> {
        if self.disk().sync_all(&files.log).is_err() {
            // Next time there would be nothing to cut, and this would be forgotten.
            return Err(self.stop(files, "its log failed to sync"));
        }
        Ok(())
    }

    fn survey(&self, files: &Files<D>, len: u64, known: u64) -> Result<Survey> {
        let mut scan = files.scan(usize::try_from(len).map_or(PIECE, |len| len.min(PIECE)));
        let (claimed, indexed) = files.claim()?;
        let counted = indexed.unwrap_or(0).max(known);
        let start = files.last_sound(&mut scan, indexed.unwrap_or(0))?;
        let (mut walk, mut beyond, mut gap) = (start, start.at, false);
        loop {
            if indexed.is_some_and(|count| walk.next <= count) {
                beyond = walk.at;
            }
            let size = match scan.frame(walk.next, walk.at) {
                Ok(Found::Frame(frame)) if walk.step(&frame) => continue,
                Ok(Found::Bad) if indexed.is_none() => scan.extent(walk.at)? as u64,
                // What the count covers and a bad disk does not give is lost. Beyond the count
                // nothing may be cut for that.
                Err(Error::Os { errno, .. }) if errno == libc::EIO && walk.next < counted => {
                    break;
                }
                found => {
                    found?;
                    break;
                }
            };
            let Found::Frame(behind) = scan.frame(walk.next + 1, walk.at + size)? else {
                break;
            };
            gap = true;
            walk.skip(size, &behind);
        }
        let more = indexed.is_none() && files.leads_beyond(&mut scan, walk.next)?;
        gap |= more;
        let facts = Facts {
            indexed,
            known,
            whole: walk.whole,
            gap,
            clean: walk.whole < counted || files.zeros(&mut scan, walk.end, len)?,
            long: len > index::grown(walk.end + lock(&self.pending).0),
        };
        Ok(Survey { facts, claimed, start, walk, more, beyond })
    }

    /// Keeps what is to be cut off, for the day that somebody finds it was not garbage: without an
    /// index nothing tells how much was acknowledged, and one damaged length hides all behind it.
    fn keep(&self, files: &Files<D>, tip: Tip, len: u64) -> Result<()> {
        let disk = self.disk();
        let name = format!("cut-{}-{}", tip.end, disk.now());
        let path = files.name.join(&name);
        let copy = || {
            let file = disk.open(&path, true)?;
            files.copy(tip.end, len, &file)?;
            disk.sync_all(&file)?;
            disk.sync_dir(&files.name)
        };
        copy().map_err(|error| {
            // The next one to open the stream tries again: a full disk must not fill with halves.
            let _ = disk.remove_file(&path);
            files.os(&name)(error)
        })?;
        (self.shared.log)(&format!(
            "stream {:?}: it has no index, and no batch that is whole follows its {} events: what \
             lies there was cut off and is kept as {name:?} beside the log, at the offset it had",
            files.title(),
            tip.count
        ));
        Ok(())
    }

    /// Logs that an index which is not this log's counts more than the log's `count` events.
    fn tell_of_foreign(&self, found: &Survey, count: u64) {
        let Survey { facts: Facts { indexed: None, .. }, claimed, .. } = *found else {
            return;
        };
        if claimed > count {
            // It may be right, as that of a copy is, or have nothing to do with this log.
            (self.shared.log)(&format!(
                "stream {:?}: an index that was made for another log counts {claimed} events, the \
                 log has {count}",
                self.title()
            ));
        }
    }

    /// Enters adopted events in the index, and moves the count.
    fn count_in(&self, files: &mut Files<D>, found: &Survey, count: u64) -> Result<()> {
        let (disk, indexed) = (self.disk(), found.facts.indexed);
        let index = files.name.join("index");
        let fresh = count == 0 && disk.stat(&files.index).is_ok_and(|stat| stat.len == 0);
        if indexed.is_none() && !fresh {
            // Who has it open is to see that it is another one: in place, as many events as it had
            // would look the same. That is what is left where the directory is not ours to change.
            match disk.replace(&index, &files.index) {
                Ok(other) => files.index = other,
                // Until all entries are there it must not pass for ours.
                Err(_) => disk.set_len(&files.index, 0).map_err(files.os("index"))?,
            }
            // Nobody will see that count again.
            self.tell_of_foreign(found, count);
        }
        files.map(found.start.next, found.start.at, count)?;
        if indexed.unwrap_or(0) == 0 && count > 0 {
            files.sync_names()?;
        }
        files.publish(count)?;
        if count == 0 {
            return Ok(());
        }
        let name = files.title();
        (self.shared.log)(&match indexed {
            Some(before) => {
                let adopted = count - before;
                format!("stream {name:?}: recovered {adopted} events that a crash left behind")
            }
            None => {
                files.sync_index().inspect_err(|_| {
                    // Not ours until it is durable: a torn batch would look like damage without it.
                    if disk.set_len(&files.index, 0).is_err() && disk.remove_file(&index).is_err() {
                        self.stop(files, "its index failed to sync");
                    }
                })?;
                format!("stream {name:?}: rebuilt its index")
            }
        });
        Ok(())
    }

    /// Writes the entries of the events from `start` on where the index must not be changed.
    fn map_aside(&self, files: &mut Files<D>, start: Walk, count: u64) -> Result<()> {
        let scratch = self.disk().scratch().map_err(files.os("index"))?;
        files.over = Some((start.next, scratch));
        files.map(start.next, start.at, count).map(drop)
    }

    /// The disk lost acknowledged events: what is intact is `tip` and perhaps more behind it.
    fn lose(&self, files: &mut Files<D>, found: &Survey, tip: Tip) -> Result<Tip> {
        let indexed = found.facts.indexed;
        // Another mount may see more of it, and append.
        files.counted = indexed.is_some();
        let count = indexed.map_or(tip.count, |count| count.max(tip.count));
        // What is left of a batch that lost its end is intact.
        let lost = found.walk.next.min(count);
        (files.lost, files.more) = (Some(lost), found.more);
        let end = match count - lost {
            _ if indexed.is_none() => {
                self.map_aside(files, Walk::default(), count)?;
                tip.end
            }
            // All there are, but for what only this process knows of.
            _ if count == tip.count => tip.end,
            0 => found.beyond,
            // Where the count covers what is not there, reading must come to it, and fail.
            missing => (found.beyond + frame::OVERHEAD * missing).max(files.entry(count)?),
        };
        let what = if found.facts.gap {
            "it or events before it are missing or damaged, and without an index of its own nothing \
             says how many there were; the stream takes no appends"
        } else {
            "acknowledged events are missing or damaged; the stream takes no appends"
        };
        (self.shared.log)(&files.damaged(lost, what).to_string());
        Ok(Tip { count, end, guessed: true, ..tip })
    }
}
