//! Verifying a stream: every frame, every entry of the index, and what lies behind the last event.
//! Changes nothing, waits for nobody but in the last moment, and needs no more memory than the
//! longest event takes.

use std::ffi::OsStr;
use std::fmt;
use std::path::Path;

use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::frame::Found;
use crate::log::{ENTRIES, Files, Scan};
use crate::recover::Walk;
use crate::spill::PIECE;
use crate::store::Store;

/// What a check tells of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// Acknowledged data is damaged, or the index wrong.
    Fault {
        /// The first event affected,
        first: u64,
        /// and the last.
        last: u64,
        /// Where the first one begins, or should: bytes from the beginning of the log.
        at: u64,
        /// What is wrong.
        what: String,
    },
    /// Nothing is wrong, but worth knowing: the next use of the stream does something about it.
    Note(String),
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Finding::Fault { first, last, at, what } if first == last => {
                write!(f, "event {first} at byte {at}: {what}")
            }
            Finding::Fault { first, last, at, what } => {
                write!(f, "events {first} to {last} from byte {at}: {what}")
            }
            Finding::Note(what) => f.write_str(what),
        }
    }
}

impl<D: Disk> Store<D> {
    /// Verifies the stream `name`, which may be in use meanwhile; hands what it finds to `tell`,
    /// and to `progress` how many events and bytes of the log it has verified so far.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Os`] when its files cannot be opened. What cannot be read is a
    /// fault.
    pub fn check(
        &self,
        name: impl AsRef<OsStr>,
        tell: &mut dyn FnMut(Finding),
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<()> {
        let (disk, name) = (&self.shared.disk, Path::new(name.as_ref()));
        if !crate::disk::is_stream_name(name.as_os_str()) || disk.identity(name).is_err() {
            return Err(Error::NotFound);
        }
        let os = |what: &str| Error::os(format!("{}/{what}", name.display()));
        let open = |what| match disk.open(&name.join(what), false) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(os(what)(error)),
        };
        let (log, index) = (open("log")?, open("index")?);
        let Some(log) = log else {
            // One that was never used has neither.
            if index.is_some() {
                tell(Finding::Fault {
                    first: 0,
                    last: 0,
                    at: 0,
                    what: "there is an index, but no log".into(),
                });
            }
            return Ok(());
        };
        let identity = disk.stat(&log).map_err(os("log"))?.identity;
        let index = index.map_or_else(|| disk.scratch(), Ok).map_err(os("index"))?;
        let files = Files::new(disk.clone(), name.into(), false, (log, index), identity);
        let mut check = Check {
            files: &files,
            scan: files.scan(PIECE),
            walk: Walk::default(),
            ends: (0, Vec::new()),
            holes: 0,
            to_the_end: false,
            gap: false,
            tell,
        };
        // What is committed meanwhile is little the second time, and none under the lock.
        check.counted(progress)?;
        check.counted(progress)?;
        disk.lock(&files.log, true).map_err(os("log"))?;
        let indexed = check.counted(progress)?;
        check.behind(indexed)?;
        disk.unlock(&files.log).map_err(os("log"))
    }
}

struct Check<'a, D: Disk> {
    files: &'a Files<D>,
    scan: Scan<'a, D>,
    /// How far it came.
    walk: Walk,
    /// A part of the index: the first event, and where it and those behind it end.
    ends: (u64, Vec<u64>),
    /// Entries that are not there.
    holes: u64,
    /// What is wrong reaches to the count: what is behind it is no batch, as far as is known.
    to_the_end: bool,
    /// Without an index that is the log's own something in the middle is wrong: recovery ends there.
    gap: bool,
    tell: &'a mut dyn FnMut(Finding),
}

impl<D: Disk> Check<'_, D> {
    /// Verifies the events up to the count, which it returns; all there are when the index has none.
    fn counted(&mut self, progress: &mut dyn FnMut(u64, u64)) -> Result<Option<u64>> {
        let indexed = self.files.header()?;
        // What was read before the count is what was there before.
        self.scan = self.files.scan(PIECE);
        while indexed.is_none_or(|count| self.walk.next < count) {
            let (n, at) = (self.walk.next, self.walk.at);
            let what = match self.scan.frame(n, at) {
                Ok(Found::Frame(frame)) => {
                    let follows = self.walk.step(&frame);
                    if !follows {
                        self.walk = Walk::new(n + 1, at + frame.size(), Some(&frame));
                        self.fault(n, n, at, "it does not follow from the event before");
                    }
                    self.to_the_end = false;
                    self.entry(indexed, n, at)?;
                    progress(self.walk.next, self.walk.at);
                    continue;
                }
                Ok(Found::Bad) => Some("its checksum does not hold".to_owned()),
                // What recovery takes for the end.
                _ if indexed.is_none() => break,
                Ok(_) => None,
                Err(error) => Some(error.to_string()),
            };
            if !self.resume(indexed, what)? {
                break;
            }
        }
        Ok(indexed)
    }

    /// Goes on behind a frame that is not valid, and tells of it: `what` is wrong, or it looks like
    /// the end of the log. False when that is the end.
    fn resume(&mut self, indexed: Option<u64>, what: Option<String>) -> Result<bool> {
        let (n, at) = (self.walk.next, self.walk.at);
        let extent = self.scan.extent(at).unwrap_or(0) as u64;
        let len = self.len()?;
        for next in n + 1..indexed.unwrap_or(n + 2) {
            let by_index = match indexed {
                Some(count) => self.end(next - 1, count)?,
                None => Some(0),
            };
            // Its own length may be right, too.
            let by_length = if next == n + 1 { at + extent } else { 0 };
            for begin in [by_index.unwrap_or(0), by_length] {
                if (at + 1..len).contains(&begin)
                    && let Ok(Found::Frame(frame)) = self.scan.frame(next, begin)
                {
                    self.walk.skip(begin - at, &frame);
                    self.walk.next = next;
                    self.gap = indexed.is_none();
                    let what = what.unwrap_or("its header is damaged, others follow".into());
                    self.fault(n, next - 1, at, &what);
                    return Ok(true);
                }
            }
            if by_index.is_none() {
                break;
            }
        }
        let Some(count) = indexed else {
            return Ok(false);
        };
        // The last one ends where the index says.
        let end = self.end(count - 1, count)?.unwrap_or(0).max(at);
        self.walk = Walk { time: self.walk.time, ..Walk::new(count, end, None) };
        self.to_the_end = true;
        let what = what.unwrap_or_else(|| format!("the log ends here, the index counts {count}"));
        self.fault(n, count - 1, at, &what);
        Ok(true)
    }

    /// Compares with the index where event `n` ends, which is where the walk is; it begins at `at`.
    fn entry(&mut self, indexed: Option<u64>, n: u64, at: u64) -> Result<()> {
        let Some(count) = indexed else {
            return Ok(());
        };
        match self.end(n, count)?.unwrap_or(0) {
            0 => self.holes += 1,
            end if end != self.walk.at => {
                let right = self.walk.at;
                let what = format!("the index says that it ends at byte {end}, not {right}");
                self.fault(n, n, at, &what);
            }
            _ => {}
        }
        Ok(())
    }

    /// Where event `n` of `count` ends, by the index; None when that is too short to say.
    fn end(&mut self, n: u64, count: u64) -> Result<Option<u64>> {
        let (first, ends) = &self.ends;
        let mut into = n.checked_sub(*first).and_then(|n| usize::try_from(n).ok());
        if into.is_none_or(|into| into >= ends.len()) {
            let most = usize::try_from(count - n).map_or(ENTRIES, |left| left.min(ENTRIES));
            self.ends = (n, self.files.ends(n, most)?);
            into = Some(0);
        }
        Ok(into.and_then(|into| self.ends.1.get(into)).copied())
    }

    /// Looks at what lies behind the last event.
    fn behind(&mut self, indexed: Option<u64>) -> Result<()> {
        let len = self.len()?;
        let count = indexed.unwrap_or(self.walk.whole);
        while let Ok(Found::Frame(frame)) = self.scan.frame(self.walk.next, self.walk.at)
            && self.walk.step(&frame)
        {}
        let Walk { whole, end, .. } = self.walk;
        if whole < count {
            self.fault(whole, count - 1, end, "the index counts it, but its batch has no end");
            return Ok(());
        }
        if indexed.is_none() {
            // That of a copy is right, though no use of the stream goes by it.
            let (claimed, _) = self.files.claim()?;
            let more = self.files.leads_beyond(&mut self.scan, self.walk.next)?;
            if claimed > whole {
                let here = if more { "damaged, others follow" } else { "the log ends here" };
                let what = format!("{here}, an index made for another log counts {claimed}");
                self.fault(whole, claimed - 1, end, &what);
            } else if whole > 0 && !self.gap {
                self.note("it has no index of its own, as in a copy: the next use makes one");
            }
            self.gap |= more;
        }
        if whole > count {
            self.note(&format!(
                "{} events behind the count, of a commit that did not come to its end: the next use adopts them",
                whole - count
            ));
        }
        match self.files.zeros(&mut self.scan, end, len) {
            // What is damaged is told already.
            Ok(clean) if clean || self.to_the_end || self.gap => {}
            Ok(_) if indexed.is_none() => {
                self.note(
                    "what lies behind the last event does not check: the next use cuts it off, and keeps a copy",
                );
            }
            Ok(_) => {
                self.note(
                    "a batch without its end behind the last event: the next use cuts it off",
                );
            }
            Err(error) => self.fault(whole, whole, end, &error.to_string()),
        }
        if self.holes > 0 {
            self.note(&format!(
                "{} entries of its index are missing: reads go around them",
                self.holes
            ));
        }
        Ok(())
    }

    fn len(&self) -> Result<u64> {
        let stat = self.files.disk.stat(&self.files.log);
        Ok(stat.map_err(self.files.os("log"))?.len)
    }

    fn fault(&mut self, first: u64, last: u64, at: u64, what: &str) {
        let what = what.into();
        (self.tell)(Finding::Fault { first, last, at, what });
    }

    fn note(&mut self, what: &str) {
        (self.tell)(Finding::Note(what.into()));
    }
}
