//! Finding an event, a byte or a time in a log: search among the pages, then walk one.
//!
//! The index is a hint: an entry is believed when the page it is about bears it out; where it is
//! missing the page is asked itself, and the entry made again.

use std::cell::Cell;

use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::log::{Files, Scan};
use crate::page::{self, Block, ENTRY, HEADER, Head, PAGE, Spot, u64_at};
use crate::spill::{read_full, write_all};
use crate::sys::lock;
use crate::walk::{Pages, Tip};

impl<D: Disk> Files<D> {
    /// What the index says of a page, if it does.
    fn hint(&self, at: u64) -> Option<(u64, u64)> {
        let mut entry = [0; ENTRY];
        let at = page::entry_at(at);
        read_full(&*self.disk, self.index.as_ref(), &mut entry, at).ok()?;
        Some((u64_at(&entry, 0), u64_at(&entry, 8))).filter(|entry| *entry != (0, 0))
    }

    /// Whether the index says nothing wrong of the page that a block begins.
    pub(crate) fn agrees(&self, block: &Block) -> bool {
        self.hint(block.at).is_none_or(|entry| entry == (block.index, block.view))
    }

    /// With which event and offset in the view a page begins, by its entry in the index or, where
    /// there is none or `ask`, by itself: by its first block that checks. None when none does.
    fn entry(&self, scan: &mut Scan<'_, D>, at: u64, ask: bool) -> Result<Option<(u64, u64)>> {
        if let Some(entry) = self.hint(at).filter(|_| !ask) {
            return Ok(Some(entry));
        }
        let first = page::first_in_page(at);
        let Ok(Some(block)) = scan.next(self.seed(), first) else {
            return Ok(None);
        };
        if let Some(index) = self.index.as_ref().filter(|_| self.write && block.at == first)
            && !self.disk.direct()
        {
            let entry = [block.index.to_le_bytes(), block.view.to_le_bytes()].concat();
            // A hint: without it the page is asked again.
            let _ = write_all(&*self.disk, index, &entry, page::entry_at(at));
        }
        Ok(Some((block.index, block.view)))
    }

    /// Of the pages that hold what is kept of the stream: the last that is known to begin `before`
    /// what is looked for, and the first that is known not to. A page that tells nothing is passed
    /// over to its neighbour.
    fn bracket(
        &self,
        head: &Head,
        tip: &Tip,
        mut before: impl FnMut(u64) -> Result<Option<bool>>,
    ) -> Result<(u64, u64)> {
        // What is kept may be lost, and the end of what is intact lie before it.
        let (mut low, mut high) = (head.at / PAGE, tip.end.div_ceil(PAGE).max(head.at / PAGE));
        let mut known = low;
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            let mut probe = middle;
            let told = loop {
                match before(probe * PAGE)? {
                    None if probe - 1 > low => probe -= 1,
                    told => break told,
                }
            };
            match told {
                Some(false) => high = probe,
                Some(true) => (low, known) = (middle, probe),
                None => low = middle,
            }
        }
        Ok((known, high))
    }

    /// What `pick` finds in a block that is before the end.
    fn in_block(
        scan: &mut Scan<'_, D>,
        tip: &Tip,
        block: Block,
        pick: impl FnOnce(&Block, &[u8]) -> Option<usize>,
    ) -> Result<Option<Spot>> {
        let payload = scan.page(block.at)?.get(HEADER..HEADER + usize::from(block.len));
        let found = pick(&block, payload.unwrap_or_default()).filter(|_| block.at < tip.end);
        Ok(found.map(|into| Spot { block, into }))
    }

    /// The first place on the page `page`, in what is kept, that `pick` finds in a block.
    fn on_page(
        &self,
        scan: &mut Scan<'_, D>,
        (head, tip): (&Head, &Tip),
        page: u64,
        mut pick: impl FnMut(&Block, &[u8]) -> Option<usize>,
    ) -> Result<Option<Spot>> {
        let mut at = page::first_in_page(page * PAGE).max(head.at);
        while at < tip.end.min((page + 1) * PAGE) {
            let Some(block) = scan.next(self.seed(), at)? else {
                break;
            };
            let found = Self::in_block(scan, tip, block, &mut pick)?;
            if found.is_some() {
                return Ok(found);
            }
            at = block.end();
        }
        Ok(None)
    }

    /// The place that `pick` finds, on the last page whose beginning, event and offset in the view, is
    /// `before` it, or first thing on the next.
    fn find(
        &self,
        scan: &mut Scan<'_, D>,
        tip: &Tip,
        before: impl Fn(u64, u64) -> bool,
        pick: impl Fn(&Block, &[u8]) -> Option<usize>,
    ) -> Result<Option<Spot>> {
        let head = *lock(&self.head);
        // What the index says wrongly its pages know better.
        for ask in [false, true] {
            let told = |at| Ok(self.entry(scan, at, ask)?.map(|(index, view)| before(index, view)));
            let (page, next) = self.bracket(&head, tip, told)?;
            for page in [page, next] {
                // What cannot be read is for the other page to make up for.
                let found = self.on_page(scan, (&head, tip), page, &pick).ok().flatten();
                if found.is_some() {
                    return Ok(found);
                }
            }
        }
        Ok(None)
    }

    /// The event that was found last, if it is the one and still checks.
    fn found_before(
        &self,
        scan: &mut Scan<'_, D>,
        is: impl Fn(u64, &Spot) -> bool,
    ) -> Option<Spot> {
        let (_, spot) = lock(&self.found).filter(|(n, spot)| is(*n, spot))?;
        (scan.sound(self.seed(), spot.block.at) == Some(spot.block)).then_some(spot)
    }

    /// Where event `n` begins, which is kept and below the count.
    pub(crate) fn event(&self, scan: &mut Scan<'_, D>, tip: &Tip, n: u64) -> Result<Spot> {
        if let Some(spot) = self.found_before(scan, |found, _| found == n) {
            return Ok(spot);
        }
        let found =
            self.find(scan, tip, |index, _| index < n, |block, payload| block.begins(payload, n))?;
        *lock(&self.found) = found.map(|spot| (n, spot));
        found.map_or_else(|| self.missing(n), Ok)
    }

    /// Where the byte `view` of the view is, which is kept and before the end.
    pub(crate) fn byte(&self, scan: &mut Scan<'_, D>, tip: &Tip, view: u64) -> Result<Spot> {
        if let Some(spot) = self.found_before(scan, |_, spot| spot.view() == view) {
            return Ok(spot);
        }
        let holds = |block: &Block, _: &[u8]| {
            let into = view.checked_sub(block.view)?;
            (into < block.len.into()).then_some(into as usize)
        };
        // The event that begins a page last before it, as far as the pages know.
        let last = Cell::new(lock(&self.head).first);
        let before = |index: u64, begins| {
            last.set(if begins <= view { index.max(last.get()) } else { last.get() });
            begins <= view
        };
        match self.find(scan, tip, before, holds)? {
            Some(spot) => Ok(spot),
            None if view < self.head()?.view => Err(Error::Dropped),
            None => self.missing(last.get()),
        }
    }

    /// Where the newline is in the view behind event `n`, which is kept and below the count.
    pub(crate) fn end(&self, scan: &mut Scan<'_, D>, tip: &Tip, n: u64) -> Result<u64> {
        let found =
            self.find(scan, tip, |index, _| index <= n, |block, payload| block.ends(payload, n))?;
        found.map_or_else(|| self.missing(n), |spot| Ok(spot.view()))
    }

    /// The first event committed at or after `time`; a damaged one before it, which may be of that
    /// time, too. What cannot be read is an error, for nobody would know that it is too early.
    pub(crate) fn since(&self, scan: &mut Scan<'_, D>, tip: &Tip, time: u64) -> Result<u64> {
        let head = *lock(&self.head);
        let told = |at| {
            let block = scan.next(self.seed(), page::first_in_page(at))?;
            Ok(block.map(|block| block.time < time))
        };
        let (page, _) = self.bracket(&head, tip, told)?;
        // Behind the last that is known to be older.
        let mut since = head.first;
        self.on_page(scan, (&head, tip), page, |block, _| {
            since = if block.time < time { block.next().max(since) } else { since };
            (block.time >= time).then_some(0)
        })?;
        Ok(since)
    }

    /// Event `n` is not where it should be: another mount may have dropped it meanwhile.
    pub(crate) fn missing<R>(&self, n: u64) -> Result<R> {
        if n < self.head()?.first {
            return Err(Error::Dropped);
        }
        Err(self.damaged(n, "it or what leads to it does not check"))
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::disk::Real;
    use crate::error::Error;
    use crate::store::Store;

    /// Whoever looks for a byte knows of the head what it was, and of a page what the index says.
    #[test]
    fn what_is_dropped_while_it_is_looked_for_is_dropped_whatever_the_index_says() {
        let dir = tempfile::tempdir().unwrap();
        let [store, other] =
            [0; 2].map(|_| Store::on(Real::local(dir.path()), false, Box::new(|_| {})));
        store.create("s", 0o755).unwrap();
        let s = store.stream("s").unwrap();
        s.append(vec![[b'x'; 1000]; 30], None).unwrap();
        let (files, tip) = s.look().unwrap();
        let open = |name| File::options().write(true).open(dir.path().join("s").join(name));
        let index = open("index").unwrap();
        index.write_all_at(&999u64.to_le_bytes(), page::entry_at(2 * PAGE)).unwrap();
        other.stream("s").unwrap().drop_before(29).unwrap();
        // Where no holes can be made, either.
        open("log").unwrap().write_all_at(&[0; 6 * PAGE as usize], PAGE).unwrap();
        let found = files.byte(&mut files.scan_seen(0, &tip), &tip, 9000);
        assert_eq!(found.err(), Some(Error::Dropped));
    }
}
