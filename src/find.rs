//! Finding an event, a byte or a time in a log: search among the pages, then walk one.
//!
//! The index is a hint: an entry is believed when the page it is about bears it out; where it is
//! missing the page is asked itself, and the entry made again.

use std::cell::Cell;

use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::log::{Files, Scan, read_full};
use crate::page::{self, Block, ENTRY, Head, PAGE, u64_at};
use crate::spill::write_all;
use crate::walk::{self, Pages, Tip};

/// A byte of the view: the block in which it is, and where in its payload.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spot {
    pub(crate) block: Block,
    pub(crate) into: usize,
}

impl Spot {
    /// Its offset in the view.
    pub(crate) fn view(&self) -> u64 {
        self.block.view + self.into as u64
    }
}

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
    /// there is none or `ask`, by itself. None when its first block does not check.
    fn entry(&self, scan: &mut Scan<'_, D>, at: u64, ask: bool) -> Result<Option<(u64, u64)>> {
        if let Some(entry) = self.hint(at).filter(|_| !ask) {
            return Ok(Some(entry));
        }
        let Some(block) = scan.sound(self.seed(), page::first_in_page(at)) else {
            return Ok(None);
        };
        if let Some(index) = self.index.as_ref().filter(|_| self.write) {
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
        let (mut low, mut high) = (head.at / PAGE, tip.end.div_ceil(PAGE));
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

    /// The first place on the page `page` that `pick` finds in a block.
    fn on_page(
        &self,
        scan: &mut Scan<'_, D>,
        tip: &Tip,
        page: u64,
        mut pick: impl FnMut(&Block, &[u8]) -> Option<usize>,
    ) -> Option<Spot> {
        let mut next = Some(page::first_in_page(page * PAGE));
        while let Some(at) = next.filter(|at| *at < tip.end) {
            let (block, payload) = page::decode(self.seed(), at, scan.page(at).ok()?)?;
            if let Some(into) = pick(&block, payload) {
                return Some(Spot { block, into });
            }
            next = walk::next_in_page(&block);
        }
        None
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
        let head = self.head()?;
        // What the index says wrongly its pages know better.
        for ask in [false, true] {
            let told = |at| Ok(self.entry(scan, at, ask)?.map(|(index, view)| before(index, view)));
            let (page, next) = self.bracket(&head, tip, told)?;
            for page in [page, next] {
                let found = self.on_page(scan, tip, page, &pick);
                if found.is_some() {
                    return Ok(found);
                }
            }
        }
        Ok(None)
    }

    /// Where event `n` begins, which is kept and below the count.
    pub(crate) fn event(&self, scan: &mut Scan<'_, D>, tip: &Tip, n: u64) -> Result<Spot> {
        let found =
            self.find(scan, tip, |index, _| index < n, |block, payload| block.begins(payload, n))?;
        found.map_or_else(|| self.missing(n), Ok)
    }

    /// Where the byte `view` of the view is, which is kept and before the end.
    pub(crate) fn byte(&self, scan: &mut Scan<'_, D>, tip: &Tip, view: u64) -> Result<Spot> {
        let holds = |block: &Block, _: &[u8]| {
            let into = view.checked_sub(block.view)?;
            (into < block.len.into()).then_some(into as usize)
        };
        // The event that begins a page last before it, as far as the pages know.
        let last = Cell::new(0);
        let before = |index: u64, begins| {
            last.set(if begins <= view { index.max(last.get()) } else { last.get() });
            begins <= view
        };
        let found = self.find(scan, tip, before, holds)?;
        found.map_or_else(|| self.missing(last.get()), Ok)
    }

    /// The first event committed at or after `time`; None where the log does not say.
    pub(crate) fn since(
        &self,
        scan: &mut Scan<'_, D>,
        tip: &Tip,
        time: u64,
    ) -> Result<Option<u64>> {
        let head = self.head()?;
        let told = |at| {
            Ok(scan.sound(self.seed(), page::first_in_page(at)).map(|block| block.time < time))
        };
        let (page, next) = self.bracket(&head, tip, told)?;
        let found = [page, next].into_iter().find_map(|page| {
            self.on_page(scan, tip, page, |block, _| (block.time >= time).then_some(0))
        });
        Ok(found.map(|spot| spot.block.index.max(head.first)))
    }

    /// Event `n` is not where it should be: another mount may have dropped it meanwhile.
    pub(crate) fn missing<R>(&self, n: u64) -> Result<R> {
        if n < self.head()?.first {
            return Err(Error::Dropped);
        }
        Err(self.damaged(n, "it or what leads to it does not check"))
    }
}
