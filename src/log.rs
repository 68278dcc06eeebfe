//! The open log and index of a stream: reading pages, recovering.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use crate::disk::{Disk, Held};
use crate::error::{Error, Result};
use crate::page::{self, Block, HEAD, Head, INDEX_HEAD, PAGE, Spot};
use crate::spill::{PIECE, read_full, write_all};
use crate::sys::lock;
use crate::walk::{self, Evidence, Found, Gap, Pages, Tip};

/// No checksum but one in four thousand million.
pub(crate) const GONE: u32 = u32::MAX;
/// What is said when others keep on renaming, removing and creating.
pub(crate) const FLEETING: &str = "it does not stay this stream's";

/// The open files of a stream.
pub(crate) struct Files<D: Disk> {
    pub(crate) disk: Arc<D>,
    /// The stream's directory.
    pub(crate) name: PathBuf,
    /// They may be written to.
    pub(crate) write: bool,
    /// None where it is not there and may not be made.
    pub(crate) log: Option<D::File>,
    /// The same; nobody commits without one.
    pub(crate) index: Option<D::File>,
    /// Tells the log from every other file on this machine, 0 when there is none.
    pub(crate) identity: u64,
    /// As it was last seen; without a seed before the first commit.
    pub(crate) head: Mutex<Head>,
    /// The end is not known, for the disk lost acknowledged events or recovery failed: what there is
    /// before it, and why.
    pub(crate) intact: Option<(Tip, Error)>,
    /// Why nothing can be appended, until they are opened again.
    pub(crate) unmended: Option<Error>,
    /// What stood behind the end then, of a commit without an end: see [`Files::behind`].
    pub(crate) dead: u32,
    /// What the index began with when the end of the stream was last worked out from it.
    pub(crate) seen: Mutex<(u64, u64)>,
    /// Where an event was found last: whoever looks one up, opens and reads it asks three times.
    pub(crate) found: Mutex<Option<(u64, Spot)>>,
}

impl<D: Disk> Files<D> {
    /// Opens log and index of the stream in the directory `name`, as far as they are there or, to
    /// `write`, can be made. They are to be recovered before anything else.
    pub(crate) fn open(disk: &Arc<D>, name: &Path, write: bool) -> Result<Files<D>> {
        for _ in 0..8 {
            let files = Files::open_both(disk.clone(), name.into(), write)?;
            // Where that is so once the index is open, that is its own, however others create and rename.
            if files.matched()? {
                return Ok(files);
            }
        }
        Err(Error::os(name.join("log").display())(std::io::Error::other(FLEETING)))
    }

    fn open_both(disk: Arc<D>, name: PathBuf, write: bool) -> Result<Files<D>> {
        let mut files = Files {
            disk,
            name,
            write,
            log: None,
            index: None,
            identity: 0,
            head: Mutex::default(),
            intact: None,
            unmended: None,
            dead: 0,
            seen: Mutex::default(),
            found: Mutex::default(),
        };
        files.log = files.open_one("log")?;
        files.write &= files.unmended.is_none();
        files.index = files.open_one("index")?;
        // One that is only not there yet, for want of room, is no bar to appending.
        files.write &= files.unmended.is_none() || files.index.is_none();
        files.identity = match &files.log {
            Some(log) => files.disk.stat(log).map_err(files.os("log"))?.identity,
            None if files.disk.identity(&files.name).is_err() => return Err(Error::NotFound),
            None => 0,
        };
        Ok(files)
    }

    /// Whether the log is the one that its name leads to.
    pub(crate) fn matched(&self) -> Result<bool> {
        match self.disk.identity(&self.name.join("log")) {
            Ok(identity) => Ok(identity == self.identity),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(self.identity == 0),
            Err(error) => Err(self.os("log")(error)),
        }
    }

    /// None where there is no such file.
    fn open_one(&mut self, what: &str) -> Result<Option<D::File>> {
        let path = self.name.join(what);
        let opened = self.disk.open(&path, self.write).or_else(|error| {
            // A file system that became read-only by an error, or full, can be read all the same.
            let denied = [libc::EROFS, libc::EACCES, libc::ENOSPC, libc::EDQUOT].map(Some);
            if !self.write || !denied.contains(&error.raw_os_error()) {
                return Err(error);
            }
            self.unmended = Some(self.os(what)(error));
            self.disk.open(&path, false)
        });
        match opened {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            opened => opened.map(Some).map_err(self.os(what)),
        }
    }

    pub(crate) fn title(&self) -> String {
        self.name.to_string_lossy().into_owned()
    }

    /// Adds which file of the stream an error of the operating system is about.
    pub(crate) fn os(&self, what: &str) -> impl FnOnce(std::io::Error) -> Error {
        move |error| Error::os(format!("{}/{what}", self.title()))(error)
    }

    pub(crate) fn damaged(&self, index: u64, what: &'static str) -> Error {
        Error::Damaged { stream: self.title(), index, what }
    }

    /// The log, where it must be there.
    pub(crate) fn log(&self) -> Result<&D::File> {
        self.log.as_ref().ok_or(Error::NotFound)
    }

    pub(crate) fn seed(&self) -> u64 {
        lock(&self.head).seed
    }

    /// What stands at the beginning of the log; zeros where it does not reach.
    pub(crate) fn head_bytes(&self) -> Result<[u8; HEAD]> {
        let mut head = [0; HEAD];
        read_full(&*self.disk, self.log.as_ref(), &mut head, 0).map_err(self.os("log"))?;
        Ok(head)
    }

    /// The head as it is now, or when it does not check was: another mount may have dropped events.
    pub(crate) fn head(&self) -> Result<Head> {
        let mut known = lock(&self.head);
        if known.seed != 0
            && let Some(head) = Head::decode(&self.head_bytes()?)
            && head.seed == known.seed
            && head.first > known.first
        {
            *known = head;
        }
        Ok(*known)
    }

    /// Whether a log without events has the head that it had.
    fn same_head(&self) -> Result<bool> {
        let (bytes, known) = (self.head_bytes()?, *lock(&self.head));
        let zeros = known.seed == 0 && bytes == [0; HEAD];
        Ok(zeros || Head::decode(&bytes) == Some(known))
    }

    /// Whether what is `behind` the end `tip` is something, or that is not what it was; but for what was
    /// known to be left of a commit that did not come to its end.
    pub(crate) fn is_new(&self, behind: u32, tip: &Tip) -> Result<bool> {
        match behind {
            0 => Ok(false),
            // Another commit may have begun with the same block, and come to its end.
            known if known == self.dead => {
                walk::leads_on(&mut self.scan(PIECE)?, self.seed(), *tip)
            }
            _ => Ok(true),
        }
    }

    /// What follows the end `tip`: 0 for nothing, or the checksum of the first block of a commit that
    /// is in progress, or that nobody answers for any more; [`GONE`] where the end is not what it was.
    pub(crate) fn behind(&self, tip: &Tip) -> Result<u32> {
        let seed = self.seed();
        // No further than to where the next block ends.
        let mut scan = self.scan_to(0, page::place(tip.end) + PAGE);
        let known = tip.at == 0 || scan.block(seed, tip.at)?.is_some_and(|b| b.crc == tip.crc);
        if !known || (tip.count == 0 && !self.same_head()?) {
            return Ok(GONE);
        }
        let behind = scan.block(seed, page::place(tip.end))?;
        Ok(behind.filter(|block| tip.leads_to(block)).map_or(0, |block| block.crc))
    }

    /// Whether nobody is at work on `log`, the log, so that nobody answers any more for what stands behind
    /// the end `tip`. Nobody waits for a commit only because it is under way; who only looks has the lock
    /// shared, and NFS gives who may not write no other one.
    pub(crate) fn is_left(&self, log: &D::File, tip: &Tip) -> Result<bool> {
        let held = Held::try_new(self.disk.clone(), Some(log), true).map_err(self.os("log"))?;
        let index = self.index_head()?;
        Ok(held.is_some() && (index == *lock(&self.seen) || index.0 == tip.at))
    }

    /// `last`, 0 where nothing sound says so, and the seed of the log it is about.
    pub(crate) fn index_head(&self) -> Result<(u64, u64)> {
        let mut head = [0; INDEX_HEAD];
        read_full(&*self.disk, self.index.as_ref(), &mut head, 0).map_err(self.os("index"))?;
        Ok(page::decode_index(&head))
    }

    /// Makes the commits up to the block at `last` visible to readers in every process.
    pub(crate) fn publish(&self, last: u64, seed: u64) -> Result<()> {
        let Some(index) = &self.index else {
            return self.unmended.clone().map_or(Err(Error::ReadOnly), Err);
        };
        let words = page::encode_index(last, seed);
        write_all(&*self.disk, index, &words, 0).map_err(self.os("index"))?;
        self.disk.tell(&self.name);
        Ok(())
    }

    /// Makes the names of log, index and stream durable.
    pub(crate) fn sync_names(&self) -> Result<()> {
        self.disk.sync_dir(&self.name).map_err(self.os(""))?;
        self.disk.sync_dir("".as_ref()).map_err(Error::os("the store"))
    }

    /// Reads so many bytes at a time, also behind the end of the stream: to recover it.
    pub(crate) fn scan(&self, window: usize) -> Result<Scan<'_, D>> {
        Ok(self.scan_to(window, self.len()?))
    }

    /// The same up to the end `tip`, and not much further: what is behind it may be changing, and a host
    /// remember for a while that the log is shorter.
    pub(crate) fn scan_seen(&self, window: usize, tip: &Tip) -> Scan<'_, D> {
        self.scan_to(window, tip.end.next_multiple_of(PAGE))
    }

    /// The same of a log that ends at `len`, or before.
    pub(crate) fn scan_to(&self, window: usize, len: u64) -> Scan<'_, D> {
        let window = window.next_multiple_of(PAGE as usize).max(PAGE as usize);
        Scan { files: self, bytes: Vec::new(), from: 0, window, len }
    }

    /// The index, if there was one, still has its name.
    pub(crate) fn has_index(&self) -> Result<bool> {
        let stat = self.index.as_ref().map(|index| self.disk.stat(index));
        Ok(stat.transpose().map_err(self.os("index"))?.is_none_or(|stat| stat.named))
    }

    /// How long the log is: bytes.
    pub(crate) fn len(&self) -> Result<u64> {
        let stat = self.log.as_ref().map(|log| self.disk.stat(log));
        Ok(stat.transpose().map_err(self.os("log"))?.map_or(0, |stat| stat.len))
    }

    // ---- recovery ----------------------------------------------------------------------------

    /// What there is of the stream. `known`: the end that this process knows to be durable.
    pub(crate) fn find_out(
        &self,
        known: Tip,
        damaged: &mut dyn FnMut(Gap),
    ) -> Result<Found<Error>> {
        let evidence = Evidence { head: self.head_bytes()?, index: self.index_head()?, known };
        *lock(&self.seen) = evidence.index;
        walk::recover(&mut self.scan(PIECE)?, &evidence, damaged)
    }

    /// Recovers the stream; its end. None when the log has no name any more. `pending`: so many bytes
    /// are to be appended soon.
    pub(crate) fn recover(&mut self, known: Tip, pending: u64, tell: &Tell) -> Result<Option<Tip>> {
        // As this process left it: what is behind the end need not be read.
        let (head, index) = (Head::decode(&self.head_bytes()?), self.index_head()?);
        if let Some(head) = head.filter(|head| known.at > 0 && index == (known.at, head.seed)) {
            (self.head, self.seen) = (Mutex::new(head), Mutex::new(index));
            if self.behind(&known) == Ok(0) {
                return Ok(Some(known));
            }
        }
        // What needs nothing to be done needs no lock. What looks damaged may be what another process
        // is writing.
        let mut whole = true;
        let mut found = self.find_out(known, &mut |_| whole = false)?;
        whole &= found.lost.is_none() && found.failed.is_none();
        self.head = Mutex::new(found.head);
        // Without an index nothing else says what is acknowledged.
        let told = self.index.is_some() || self.log.is_none();
        let published = found.is_published(*lock(&self.seen));
        let sound = whole && told && published;
        let long = page::grown(found.tip.end + pending) + PAGE;
        let more = self.behind(&found.tip)? != 0 || self.len()? > long;
        let left = |log| self.is_left(log, &found.tip);
        if !sound || more && self.log.as_ref().map_or(Ok(false), left)? {
            let held = Held::new(self.disk.clone(), self.log.as_ref(), !self.write);
            let held = held.map_err(self.os("log"))?;
            // A log that was not there yet has come since.
            if !self.matched()? || !self.has_index()? {
                return Ok(None);
            }
            let unmended;
            let before = whole.then_some(found);
            (found, unmended) = self.recover_locked(before, known, pending, tell)?;
            self.head = Mutex::new(found.head);
            // What cannot be read there is for who reads there.
            self.dead = self.behind(&found.tip).unwrap_or(0);
            held.release().map_err(self.os("log"))?;
            self.unmended = self.unmended.take().or(unmended);
        }
        if let Some(what) = found.lost {
            let error = self.damaged(found.tip.count, what);
            tell(&error.to_string());
            self.intact = Some((found.tip, error));
        } else if let Some(error) = found.failed {
            // What was durable before can be read.
            self.intact = Some((found.from, error));
        }
        Ok(Some(self.intact.as_ref().map_or(found.tip, |_| known)))
    }

    fn recover_locked(
        &self,
        before: Option<Found<Error>>,
        known: Tip,
        pending: u64,
        tell: &Tell,
    ) -> Result<(Found<Error>, Option<Error>)> {
        let found = match before {
            // As its last block is, so is all before it: they are chained. A log is read once.
            Some(found)
                if self.head_bytes()? == found.head.encode() && self.behind(&found.tip)? == 0 =>
            {
                found
            }
            _ => self.find_out(known, &mut |gap| tell(&self.tell_of(gap)))?,
        };
        let mended = match &found.failed {
            _ if found.lost.is_some() => Ok(()),
            Some(error) => Err(error.clone()),
            None if self.write => self.mend(&found, pending, tell),
            None => Err(Error::ReadOnly),
        };
        let Err(error) = mended else {
            return Ok((found, None));
        };
        // What cannot be written again is read as the disk has it.
        let again = self.settle().and_then(|()| self.find_out(known, &mut |_| {}));
        let failed = |failed| Found { failed: Some(failed), ..found };
        Ok((again.unwrap_or_else(failed), Some(error)))
    }

    /// Makes the last commit durable and visible, when it is not known to be.
    fn mend(&self, found: &Found<Error>, pending: u64, tell: &Tell) -> Result<()> {
        let index @ (last, seed) = self.index_head()?;
        // What was published since it was found was durable then.
        if !found.is_published(index) {
            if let Some(start) = found.start {
                self.rewrite(found, start)?;
            }
            if last > 0 && seed != found.head.seed {
                let index = self.index.as_ref().map(|index| self.disk.set_len(index, 0));
                index.transpose().map_err(self.os("index"))?;
            }
            self.publish(found.tip.at, found.head.seed)?;
            *lock(&self.seen) = (found.tip.at, found.head.seed);
            let name = self.title();
            tell(&match found.tip.count - found.from.count {
                more if last > 0 => {
                    format!("stream {name:?}: recovered {more} events that a crash left behind")
                }
                _ => format!("stream {name:?}: made its index again"),
            });
        }
        let len = page::grown(found.tip.end + pending);
        if self.len()? > len + PAGE {
            // What a large commit that did not come to its end has left.
            self.disk.set_len(self.log()?, len).map_err(self.os("log"))?;
        }
        Ok(())
    }

    /// Writes the last commit again in place, for it may be in the page cache only or on pages whose
    /// sync failed, and syncs it: it is durable then. With the head, which came with the first one.
    fn rewrite(&self, found: &Found<Error>, start: u64) -> Result<()> {
        let (disk, log) = (&*self.disk, self.log()?);
        let mut piece = vec![0; PIECE];
        let mut at = start;
        write_all(disk, log, &found.head.encode(), 0).map_err(self.os("log"))?;
        while at < found.tip.end {
            let most = usize::try_from(found.tip.end - at).map_or(PIECE, |left| left.min(PIECE));
            let read = disk.read_at(log, &mut piece[..most], at).map_err(self.os("log"))?;
            if read == 0 {
                return Err(self.os("log")(std::io::ErrorKind::UnexpectedEof.into()));
            }
            write_all(disk, log, &piece[..read], at).map_err(self.os("log"))?;
            at += read as u64;
        }
        if !self.stands(found, start)? {
            return Err(self.os("log")(std::io::Error::other("what a failed sync left is gone")));
        }
        disk.sync_data(log).map_err(self.os("log"))?;
        self.sync_names()
    }

    /// Whether the last commit is still what was found: the cache may have let go of what a failed sync
    /// left in it, before that was read to be written again.
    fn stands(&self, found: &Found<Error>, start: u64) -> Result<bool> {
        let mut scan = self.scan(PIECE)?;
        let Some(first) = scan.block(found.head.seed, start)? else {
            return Ok(false);
        };
        let walked = walk::walk(&mut scan, found.head.seed, Tip::from(&first), 0, &mut |_| {})?;
        Ok(walked.tip == found.tip)
    }

    /// Makes the disk say what it holds, where nothing may be written: the cache may hold what a
    /// failed sync lost.
    fn settle(&self) -> Result<()> {
        let Some(log) = &self.log else {
            return Ok(());
        };
        let synced = self.disk.sync_data(log).map_err(self.os("log"));
        match synced.and_then(|()| self.sync_names()) {
            // A file system that can only be read has nothing to sync.
            Err(Error::Os { errno: libc::EROFS, .. }) | Ok(()) => {}
            Err(error) => return Err(error),
        }
        // It may be damaged, and say more than a file can be long.
        let last = self.index_head()?.0.min(self.len()?);
        self.disk.forget(log, last - last % PAGE).map_err(self.os("log"))
    }

    fn tell_of(&self, gap: Gap) -> String {
        let error = self.damaged(gap.first, "it does not check");
        format!("{error}, nor do those behind it up to event {}", gap.last())
    }
}

/// Tells the operator.
pub(crate) type Tell<'a> = dyn Fn(&str) + 'a;

/// Reads a log a window at a time. Of what cannot be read as much as can be.
pub(crate) struct Scan<'a, D: Disk> {
    files: &'a Files<D>,
    bytes: Vec<u8>,
    /// Where the first of them is in the log; a page begins there.
    from: u64,
    window: usize,
    len: u64,
}

impl<D: Disk> Scan<'_, D> {
    /// Of which stream.
    pub(crate) fn files(&self) -> &Files<D> {
        self.files
    }

    /// The block at `at`, when it can be read and checks.
    pub(crate) fn sound(&mut self, seed: u64, at: u64) -> Option<Block> {
        self.block(seed, at).ok().flatten()
    }

    fn fill(&mut self, from: u64, window: usize) -> Result<()> {
        let files = self.files;
        let most = usize::try_from(self.len - from).unwrap_or(window);
        self.bytes.resize(window.min(most), 0);
        self.from = from;
        let read = read_full(&*files.disk, files.log.as_ref(), &mut self.bytes, from);
        if let Ok(read) = read
            && read < self.bytes.len()
        {
            self.len = from + read as u64;
        }
        self.bytes.truncate(*read.as_ref().unwrap_or(&0));
        read.map(drop).map_err(files.os("log"))
    }
}

impl<D: Disk> Pages for Scan<'_, D> {
    type Error = Error;

    fn page(&mut self, at: u64) -> Result<&[u8]> {
        if at >= self.len {
            return Ok(&[]);
        }
        let page = at - at % PAGE;
        let whole = (page + PAGE).min(self.len);
        let whole = self.from <= page && whole <= self.from + self.bytes.len() as u64;
        if !whole {
            // One page that cannot be read must not take others with it.
            self.fill(page, self.window).or_else(|_| self.fill(page, PAGE as usize))?;
        }
        let end = self.bytes.len().min((page + PAGE - self.from) as usize);
        let begin = end.min((at - self.from) as usize);
        Ok(&self.bytes[begin..end])
    }

    fn end(&self) -> u64 {
        self.len
    }
}
