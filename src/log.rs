//! The open log and index of a stream: where its events are, and the checks on the way there.
//!
//! An entry of the index is a hint: a power cut may leave it as a hole, a bad disk as anything.
//! It is believed when a frame that is valid for the event's index lies there, and derived again
//! from the nearest one before it otherwise.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::frame::{self, Found};
use crate::index::entry_at;
use crate::recover::Walk;
use crate::spill::{PIECE, write_all};

/// So many entries are kept in memory until they are written to the index.
pub(crate) const ENTRIES: usize = 8192;

/// The open files of a stream, recovered.
pub(crate) struct Files<D: Disk> {
    pub(crate) disk: Arc<D>,
    /// The stream's directory.
    pub(crate) name: PathBuf,
    /// Log and index may be written to.
    pub(crate) write: bool,
    pub(crate) log: D::File,
    pub(crate) index: D::File,
    pub(crate) identity: u64,
    /// Where nothing may be written: entries from this one on are in a file of our own.
    pub(crate) over: Option<(u64, D::File)>,
    /// The index has the count. Otherwise it is what recovery found, and does not change.
    pub(crate) counted: bool,
    /// The disk lost acknowledged events, from this one on.
    pub(crate) lost: Option<u64>,
    /// What it lost is followed by others for sure: an index of another log leads to them.
    pub(crate) more: bool,
    /// There was no room to recover it, or nothing can be written: it can be read as it is.
    pub(crate) unmended: Option<Error>,
    /// Events that neither the index nor the log before them leads to, as was seen: whoever reads
    /// all of them one by one need not look for each through all before it.
    pub(crate) barren: Mutex<Range<u64>>,
    /// How far a walk came behind all that is shown, inside a batch without its end.
    torn: Mutex<Walk>,
}

impl<D: Disk> Files<D> {
    /// Log and index of the stream in the directory `name`, as they are.
    pub(crate) fn new(
        disk: Arc<D>,
        name: PathBuf,
        write: bool,
        (log, index): (D::File, D::File),
        identity: u64,
    ) -> Files<D> {
        Files {
            disk,
            name,
            write,
            log,
            index,
            identity,
            over: None,
            counted: true,
            lost: None,
            more: false,
            unmended: None,
            barren: Mutex::default(),
            torn: Mutex::default(),
        }
    }

    /// It waits for room to be recovered.
    pub(crate) fn full(&self) -> bool {
        self.unmended.as_ref().is_some_and(Error::no_room)
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

    /// An error where `count` events are all there is to see, but others may have followed: what
    /// an index counts that a crash left behind is less than was acknowledged.
    pub(crate) fn ended(&self, count: u64) -> Result<()> {
        if self.lost.is_none() {
            return Ok(());
        }
        let mut scan = self.scan(0);
        let end = match count.checked_sub(1) {
            Some(last) => Self::sound(&mut scan, count, self.entry(last)?, self.entry(count)?),
            None => Some(Walk::default()),
        };
        match end {
            Some(end)
                if !self.more && !end.inside && self.zeros(&mut scan, end.at, end.at + 1)? =>
            {
                Ok(())
            }
            _ => Err(self.damaged(count, "the disk lost events, and others may have followed")),
        }
    }

    pub(crate) fn scan(&self, window: usize) -> Scan<'_, D> {
        Scan { files: self, bytes: Vec::new(), start: 0, window }
    }

    /// The count, when the index is this log's.
    pub(crate) fn header(&self) -> Result<Option<u64>> {
        Ok(self.claim()?.1)
    }

    /// What the index counts, made for whatever log, and the count when it is this log's.
    pub(crate) fn claim(&self) -> Result<(u64, Option<u64>)> {
        let mut header = [0; 16];
        let read = read_full(&*self.disk, &self.index, &mut header, 0).map_err(self.os("index"))?;
        if read < header.len() {
            return Ok((0, None));
        }
        let (words, _) = header.as_chunks();
        let [count, identity] = [words[0], words[1]].map(u64::from_le_bytes);
        // A count that no disk can hold is damage: then any that is more than there is will do.
        let count = count.min(1 << 48);
        Ok((count, (identity == self.identity).then_some(count)))
    }

    /// Whether the log is zero from `from` up to `to`.
    pub(crate) fn zeros(&self, scan: &mut Scan<'_, D>, from: u64, to: u64) -> Result<bool> {
        let mut at = from;
        while at < to {
            let bytes = scan.fill(at, 1)?;
            if bytes.is_empty() {
                break;
            }
            if bytes.iter().any(|&byte| byte != 0) {
                return Ok(false);
            }
            at += bytes.len() as u64;
        }
        Ok(true)
    }

    /// Writes `from..to` of the log to the same place of `file`, which may be the log.
    pub(crate) fn copy(&self, from: u64, to: u64, file: &D::File) -> std::io::Result<()> {
        let mut piece = vec![0; PIECE];
        let mut at = from;
        while at < to {
            let most = usize::try_from(to - at).map_or(PIECE, |left| left.min(PIECE));
            match read_full(&*self.disk, &self.log, &mut piece[..most], at)? {
                0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
                read => write_all(&*self.disk, file, &piece[..read], at)?,
            }
            at += most as u64;
        }
        Ok(())
    }

    /// What the index says of where event `n` begins: a hint.
    pub(crate) fn entry(&self, n: u64) -> Result<u64> {
        if n == 0 {
            return Ok(0);
        }
        let file = match &self.over {
            Some((from, over)) if n > *from => over,
            _ => &self.index,
        };
        let mut entry = [0; 8];
        // What is not there reads as zero, as a hole does, and no event but the first begins there.
        read_full(&*self.disk, file, &mut entry, entry_at(n - 1)).map_err(self.os("index"))?;
        // Nor does one begin where no file can be.
        Ok(Some(u64::from_le_bytes(entry)).filter(|at| *at < 1 << 62).unwrap_or(0))
    }

    /// What the index says of where `most` events from `n` on end: hints, and fewer when it is short.
    pub(crate) fn ends(&self, n: u64, most: usize) -> Result<Vec<u64>> {
        let mut bytes = vec![0; 8 * most];
        let read = |bytes: &mut [u8], file, n| {
            read_full(&*self.disk, file, bytes, entry_at(n)).map_err(self.os("index"))
        };
        let mut filled = read(&mut bytes, &self.index, n)?;
        if let Some((from, over)) = &self.over {
            let kept = usize::try_from(from.saturating_sub(n)).map_or(most, |n| n.min(most));
            bytes[filled.min(8 * kept)..].fill(0);
            filled = 8 * kept + read(&mut bytes[8 * kept..], over, n.max(*from))?;
        }
        let (ends, _) = bytes[..filled].as_chunks();
        Ok(ends.iter().map(|end| u64::from_le_bytes(*end)).collect())
    }

    /// Writes entries at this place of the index, where there is room for them: those that are
    /// missing are derived when met.
    pub(crate) fn hint(&self, at: u64, entries: &[u8]) -> Result<()> {
        let file = self.over.as_ref().map_or(&self.index, |(_, over)| over);
        match write_all(&*self.disk, file, entries, at).map_err(self.os("index")) {
            Err(full) if full.no_room() => Ok(()),
            written => written,
        }
    }

    /// Derives the entries of the events `n..to`, of which the first begins at `at`; says where
    /// event `to` begins.
    pub(crate) fn map(&self, n: u64, at: u64, to: u64) -> Result<u64> {
        let mut scan = self.scan(PIECE);
        let (mut from, mut at, mut ends) = (n, at, Vec::new());
        for n in n..to {
            at = self.behind(&mut scan, n, at, to)?;
            ends.extend(at.to_le_bytes());
            if ends.len() == 8 * ENTRIES || n + 1 == to {
                if self.write || self.over.is_some() {
                    self.hint(entry_at(from), &ends)?;
                }
                from = n + 1;
                ends.clear();
            }
        }
        Ok(at)
    }

    /// Where the event ends that begins at `at`, also when it is damaged: then where its length
    /// and the index say so, or one of them and the next event is there.
    pub(crate) fn behind(
        &self,
        scan: &mut Scan<'_, D>,
        n: u64,
        at: u64,
        count: u64,
    ) -> Result<u64> {
        if let Found::Frame(frame) = scan.frame(n, at)? {
            return Ok(at + frame.size());
        }
        let ends = [self.entry(n + 1)?, at + scan.extent(at)? as u64];
        for end in ends.into_iter().filter(|end| *end > at) {
            let valid = matches!(scan.frame(n + 1, end)?, Found::Frame(_));
            if valid || (n + 1 == count && ends[0] == ends[1]) {
                return Ok(end);
            }
        }
        Err(self.damaged(n, "it and its place in the log are damaged"))
    }

    /// The walk from event `n` on, when it begins at `at`, and the event before it at `before`: a
    /// frame that is valid for that one lies there and ends at `at`.
    fn sound(scan: &mut Scan<'_, D>, n: u64, before: u64, at: u64) -> Option<Walk> {
        // One that cannot be read is no worse than one that is wrong; see `entry` for 0.
        if before < at
            && (before > 0 || n == 1)
            && scan.extent(before).is_ok_and(|size| before + size as u64 == at)
            && let Ok(Found::Frame(frame)) = scan.frame(n - 1, before)
        {
            return Some(Walk::new(n, at, Some(&frame)));
        }
        None
    }

    /// The last of the events up to `n` whose place the index knows. Looks at each entry on the
    /// way: it may be all that leads to the intact events behind damage.
    pub(crate) fn last_sound(&self, scan: &mut Scan<'_, D>, n: u64) -> Result<Walk> {
        if n > 0
            && let Some(walk) = Self::sound(scan, n, self.entry(n - 1)?, self.entry(n)?)
        {
            return Ok(walk);
        }
        let len = |file| Ok(self.disk.stat(file).map_err(self.os(""))?.len);
        let over = self.over.as_ref().map_or(Ok(0), |(_, over)| len(over))?;
        // Neither index nor log need be as long as a damaged one says.
        let entries = len(&self.index)?.max(over).saturating_sub(entry_at(0)) / 8;
        let end = len(&self.log)?;
        let barren = self.barren().clone();
        let (mut n, mut most, mut scan) = (n.min(entries), 1, self.scan(PIECE));
        while n > 0 {
            if barren.contains(&n) {
                n = barren.start - 1;
            }
            // Longer and longer pieces, each from where event `low` begins.
            let low = n.saturating_sub(most);
            let mut begins = if low == 0 { vec![0] } else { Vec::new() };
            let first = low.saturating_sub(1);
            begins.extend(self.ends(first, (n - first) as usize)?);
            for (i, pair) in begins.windows(2).enumerate().rev() {
                if pair[0] < pair[1] && pair[1] <= end {
                    scan.reach_back(pair[0]);
                    if let Some(walk) = Self::sound(&mut scan, low + 1 + i as u64, pair[0], pair[1])
                    {
                        return Ok(walk);
                    }
                }
            }
            (n, most) = (low, (2 * most).min(ENTRIES as u64));
        }
        Ok(Walk::default())
    }

    pub(crate) fn torn(&self) -> MutexGuard<'_, Walk> {
        self.torn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there is an event behind event `n`, where the index says so, made for whatever log:
    /// a frame is only valid at its own place in a stream.
    pub(crate) fn leads_beyond(&self, scan: &mut Scan<'_, D>, n: u64) -> Result<bool> {
        let (claimed, _) = self.claim()?;
        Ok(claimed > n && self.last_sound(scan, claimed)?.next > n)
    }

    fn barren(&self) -> MutexGuard<'_, Range<u64>> {
        self.barren.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where event `n` begins; `n` may be the count.
    pub(crate) fn locate(&self, scan: &mut Scan<'_, D>, n: u64) -> Result<u64> {
        let at = self.entry(n)?;
        if n == 0 || (at > 0 && matches!(scan.frame(n, at)?, Found::Frame(_))) {
            return Ok(at);
        }
        let walk = self.last_sound(scan, n)?;
        if walk.next == n {
            return Ok(walk.at);
        }
        match self.map(walk.next, walk.at, n) {
            Err(Error::Damaged { index, .. }) => {
                *self.barren() = index + 1..n + 1;
                Err(self.damaged(n, "its place in the log is lost, for those before are damaged"))
            }
            result => result,
        }
    }

    /// Makes the names of the stream durable.
    pub(crate) fn sync_names(&self) -> Result<()> {
        let sync = |path: &Path| self.disk.sync_dir(path);
        sync(&self.name).and_then(|()| sync(Path::new(""))).map_err(self.os(""))
    }

    /// Makes it durable that there is a count. After a crash in the middle of a batch recovery
    /// must find one: without it, a torn batch may look like acknowledged events damaged.
    pub(crate) fn sync_index(&self) -> Result<()> {
        self.disk.sync_all(&self.index).map_err(self.os("index"))
    }

    /// Makes the count visible.
    pub(crate) fn publish(&self, count: u64) -> Result<()> {
        let mut header = [0; 16];
        header[..8].copy_from_slice(&count.to_le_bytes());
        header[8..].copy_from_slice(&self.identity.to_le_bytes());
        write_all(&*self.disk, &self.index, &header, 0).map_err(self.os("index"))
    }
}

/// Reads a log forward, frame by frame, through a window.
pub(crate) struct Scan<'a, D: Disk> {
    files: &'a Files<D>,
    bytes: Vec<u8>,
    start: u64,
    window: usize,
}

impl<D: Disk> Scan<'_, D> {
    /// The bytes from `at` on, at least `need` of them unless the file ends before.
    pub(crate) fn fill(&mut self, at: u64, need: usize) -> Result<&[u8]> {
        let mut skip = usize::try_from(at.wrapping_sub(self.start)).unwrap_or(usize::MAX);
        if skip.saturating_add(need) > self.bytes.len() {
            self.read(at, need)?;
            skip = 0;
        }
        Ok(&self.bytes[skip..])
    }

    fn read(&mut self, at: u64, need: usize) -> Result<()> {
        let (disk, log) = (&*self.files.disk, &self.files.log);
        self.start = at;
        self.bytes.resize(need.max(self.window).max(4096), 0);
        let mut read = read_full(disk, log, &mut self.bytes, at);
        if read.is_err() {
            // One bad sector must not hide its neighbours.
            self.bytes.truncate(need);
            read = read_full(disk, log, &mut self.bytes, at);
        }
        self.bytes.truncate(*read.as_ref().unwrap_or(&0));
        read.map_err(self.files.os("log")).map(drop)
    }

    /// Reads what is before `at`, too, for those who come from behind.
    fn reach_back(&mut self, at: u64) {
        let into = at.checked_sub(self.start).and_then(|into| usize::try_from(into).ok());
        if into.is_none_or(|into| into + frame::HEADER > self.bytes.len()) {
            let (behind, window) = (at + frame::HEADER as u64, self.window as u64);
            // What fails is read again, alone.
            let _ = self.fill(behind.saturating_sub(window), 1);
        }
    }

    /// The bytes that the frame at `at` takes, as far as its header tells.
    pub(crate) fn extent(&mut self, at: u64) -> Result<usize> {
        Ok(frame::extent(self.fill(at, frame::HEADER)?))
    }

    pub(crate) fn frame(&mut self, n: u64, at: u64) -> Result<Found<'_>> {
        let need = self.extent(at)?;
        Ok(frame::decode(n, self.fill(at, need)?))
    }
}

/// Fills `bytes` from `at` on, unless the file ends before.
pub(crate) fn read_full<D: Disk>(
    disk: &D,
    file: &D::File,
    bytes: &mut [u8],
    at: u64,
) -> std::io::Result<usize> {
    let (mut read, mut again) = (0, 3);
    while read < bytes.len() {
        match disk.read_at(file, &mut bytes[read..], at + read as u64)? {
            // A distributed file system may answer short of what it says the length is.
            0 if again > 0 && disk.stat(file)?.len > at + read as u64 => again -= 1,
            0 => break,
            more => read += more,
        }
    }
    Ok(read)
}
