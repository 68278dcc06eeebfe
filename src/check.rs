//! Verifying a stream: every block, every entry of the index, and what lies behind the end. Changes
//! nothing, waits for nobody but in the last moment, and needs the memory of a window.

use std::ffi::OsStr;
use std::fmt;
use std::path::Path;

use crate::disk::{Disk, Held, is_stream_name};
use crate::error::{Error, Result};
use crate::log::{Files, Scan};
use crate::page::{Block, Head, PAGE, decode};
use crate::spill::PIECE;
use crate::store::Store;
use crate::sys::lock;
use crate::walk::{self, Gap, Pages, Tip};

/// What a check tells of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// Acknowledged data is damaged.
    Fault {
        /// The first event affected,
        first: u64,
        /// and the last, at least.
        last: u64,
        /// Where the first block that does not check begins: bytes from the beginning of the log.
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

impl From<Gap> for Finding {
    fn from(gap: Gap) -> Finding {
        let what = "its checksum does not hold".into();
        Finding::Fault { first: gap.first, last: gap.last(), at: gap.at, what }
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
        if !is_stream_name(name.as_os_str()) || disk.identity(name).is_err() {
            return Err(Error::NotFound);
        }
        let files = Files::open(disk, name, false)?;
        let bytes = files.head_bytes()?;
        let (last, seed) = files.index_head()?;
        let head = Head::decode(&bytes).or_else(|| Head::mended(&bytes));
        // Without a head and a `last` there are no events.
        let lost = Head { seed: if last > 0 { seed } else { 0 }, ..Head::default() };
        let head = head.unwrap_or(lost);
        *lock(&files.head) = head;
        let mut scan = files.scan(PIECE)?;
        let durable =
            scan.sound(seed, last).filter(|_| seed == head.seed).map(|block| Tip::from(&block));
        let from = match scan.sound(head.seed, head.at) {
            _ if head.at == 0 => Tip::default(),
            Some(block) => Tip::from(&block),
            None => Tip { end: head.at, count: head.first, view: head.view, ..Tip::default() },
        };
        // What was acknowledged when we came does not change any more, and is most of it.
        let limit = durable.map_or(scan.end(), |tip| tip.end);
        let mut pages = Checked { scan, limit, here: from, wrong: 0, progress };
        let proof = durable.map_or(0, |tip| tip.at);
        // Also where the block at `last` is damaged itself.
        let acknowledged = if seed == head.seed { last.max(proof) } else { 0 };
        let mut sure = true;
        let walked = walk::walk(&mut pages, head.seed, from, proof, &mut |gap| {
            // Another mount may have dropped it meanwhile.
            let kept = files.head().map_or(0, |head| head.first);
            match gap.at < acknowledged {
                true if gap.next > kept => {
                    tell(Gap { first: gap.first.max(kept), ..gap }.into());
                }
                true => {}
                // Or be writing it.
                false => sure = false,
            }
        });
        let Checked { here, wrong, progress, .. } = pages;
        let tip = walked.map_or_else(
            |error| {
                let (n, what) = (here.count, error.to_string());
                tell(Finding::Fault { first: n, last: n, at: here.end, what });
                here
            },
            |walked| walked.tip,
        );
        if wrong > 0 {
            let what = format!("{wrong} entries of its index are wrong: reads go around them");
            tell(Finding::Note(what));
        }
        let end = verdict(&files, &head, if sure { tip } else { Tip::default() }, tell)?;
        // What is left behind it was looked at, too.
        progress(end.count, end.end);
        Ok(())
    }
}

/// What recovery would do with a stream that was verified up to `known`; the end that it would find.
fn verdict<D: Disk>(
    files: &Files<D>,
    head: &Head,
    known: Tip,
    tell: &mut dyn FnMut(Finding),
) -> Result<Tip> {
    let held = Held::new(files.disk.clone(), files.log.as_ref(), true).map_err(files.os("log"))?;
    let (last, seed) = files.index_head()?;
    let now = Head::decode(&files.head_bytes()?);
    // Where the index says how much there is, that must be there.
    let ours = last > 0 && seed == now.unwrap_or(*head).seed;
    // And without the lock a commit may be seen that fails, and is gone.
    let block = files.scan_seen(0, &known).sound(head.seed, known.at);
    let stands = now == Some(*head) && block.is_some_and(|block| Tip::from(&block) == known);
    let known = if ours || !stands { Tip::default() } else { known };
    let mut gaps = Vec::new();
    let mut found = files.find_out(known, &mut |gap| gaps.push(gap))?;
    if found.lost.is_some() && known.at > 0 {
        // What a failed sync left in the cache may be gone since it was looked at.
        gaps.clear();
        found = files.find_out(Tip::default(), &mut |gap| gaps.push(gap))?;
    }
    if files.log.is_none() && !files.matched()? {
        // Its first commit came meanwhile.
        return Ok(Tip::default());
    }
    gaps.into_iter().for_each(|gap| tell(gap.into()));
    held.release().map_err(files.os("log"))?;
    let count = found.tip.count;
    let lost = found.lost.map(|what| {
        format!(
            "{what}: acknowledged events are lost, no more can be appended; take the stream from a \
             backup, or append what can be read of it to a new one"
        )
    });
    if let Some(what) = lost.or(found.failed.map(|error| error.to_string())) {
        tell(Finding::Fault { first: count, last: count, at: found.tip.end, what });
    } else if !ours && (count > 0 || last > 0) {
        let what = "it has no index of its own, as in a copy: the next use makes one";
        tell(Finding::Note(what.into()));
    } else if count > found.from.count {
        tell(Finding::Note(format!(
            "{} events of a commit that did not come to its end: the next use adopts them",
            count - found.from.count
        )));
    }
    Ok(found.tip)
}

/// A log up to `limit`, which counts what is read of it, and what the index says wrongly.
struct Checked<'a, D: Disk> {
    scan: Scan<'a, D>,
    limit: u64,
    /// Behind the last block.
    here: Tip,
    wrong: u64,
    progress: &'a mut dyn FnMut(u64, u64),
}

impl<D: Disk> Pages for Checked<'_, D> {
    type Error = Error;

    fn page(&mut self, at: u64) -> Result<&[u8]> {
        let most = usize::try_from(self.limit.saturating_sub(at)).unwrap_or(usize::MAX);
        let bytes = self.scan.page(at)?;
        Ok(&bytes[..most.min(bytes.len())])
    }

    fn end(&self) -> u64 {
        self.limit
    }

    fn block(&mut self, seed: u64, at: u64) -> Result<Option<Block>> {
        let block = decode(seed, at, self.page(at)?).map(|(block, _)| block);
        if let Some(block) = block {
            self.here = Tip::from(&block);
            (self.progress)(block.next(), block.end());
            self.wrong += u64::from(at.is_multiple_of(PAGE) && !self.scan.files().agrees(&block));
        }
        Ok(block)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::Real;

    #[test]
    fn what_is_dropped_during_a_check_is_no_damage_and_what_was_dropped_not_verified() {
        let dir = tempfile::tempdir().unwrap();
        let [store, other] =
            [0; 2].map(|_| Store::on(Real::local(dir.path()), false, Box::new(|_| {})));
        store.create("s", 0o755).unwrap();
        // More than is read at once.
        store.stream("s").unwrap().append(vec![[b'x'; 5000]; 200], None).unwrap();
        let (mut found, mut verified) = (Vec::new(), Vec::new());
        for _ in 0..2 {
            verified.clear();
            let mut progress = |events, _| {
                if verified.is_empty() {
                    other.stream("s").unwrap().drop_before(199).unwrap();
                }
                verified.push(events);
            };
            store.check("s", &mut |finding| found.push(finding), &mut progress).unwrap();
        }
        assert_eq!((&found[..], verified.iter().find(|events| **events < 199)), (&[][..], None));
    }
}
