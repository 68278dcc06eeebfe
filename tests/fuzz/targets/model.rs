//! What recovery finds, and what can be read then: the rules of the design's section 3, over a log
//! in memory.

use super::page::{CONT, FIRST, HEAD, LAST, PAGE, RAW, begin_in, parse, place};
use smolstore::Event;
use smolstore::page::{Block, Head};
use smolstore::walk::Tip;
use std::collections::BTreeMap;

/// The place behind a block.
pub(super) fn behind(block: &Block) -> Tip {
    let len = u64::from(block.len);
    Tip {
        at: block.at,
        end: block.at + 40 + len,
        crc: block.crc,
        count: block.index + u64::from(block.events),
        view: block.view + len,
        time: block.time,
        whole: block.flags & LAST != 0,
    }
}

/// The place before a block behind damage.
fn before(block: &Block) -> Tip {
    let first = block.flags & FIRST != 0;
    Tip {
        at: 0,
        end: block.at,
        crc: block.prev,
        count: block.index,
        view: block.view,
        time: if first { block.time.saturating_sub(1) } else { block.time },
        whole: first,
    }
}

/// The first event that is not damaged when all before this block is.
fn next(block: &Block) -> u64 {
    block.index + u64::from(block.flags & CONT != 0)
}

/// Events that are damaged, and where.
pub(super) type Gap = (u64, u64, u64);

/// What recovery makes of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Outcome {
    pub(super) head: Head,
    pub(super) tip: Tip,
    /// Where the last commit begins, when it is not known to be durable.
    pub(super) start: Option<u64>,
    pub(super) lost: bool,
    pub(super) gaps: Vec<Gap>,
}

pub(super) struct Model<'a> {
    pub(super) log: &'a [u8],
    pub(super) seed: u64,
}

impl<'a> Model<'a> {
    pub(super) fn parse(&self, at: u64) -> Option<(Block, &'a [u8])> {
        let from = usize::try_from(at).ok()?;
        let page = self.log.len().min((from / PAGE + 1).checked_mul(PAGE)?);
        parse(self.seed, at, self.log.get(from..page)?)
    }

    /// The blocks in what a page has from `at` on: damage costs those that it is in.
    fn in_page(&self, at: u64) -> Vec<(Block, &'a [u8])> {
        let (mut found, mut next) = (Vec::new(), at.max(HEAD as u64));
        let end = ((next / PAGE as u64 + 1) * PAGE as u64).min(self.log.len() as u64);
        while next < end {
            match self.parse(next) {
                Some((block, payload)) => {
                    found.push((block, payload));
                    next = behind(&block).end;
                }
                None => next += 1,
            }
        }
        found
    }

    /// Of the pages from the one on that `at` is in.
    pub(super) fn on_pages(&self, at: u64) -> Vec<(Block, &'a [u8])> {
        let first = at as usize / PAGE;
        let pages = first..self.log.len().div_ceil(PAGE);
        pages.flat_map(|page| self.in_page((page * PAGE) as u64)).collect()
    }

    /// From a place on.
    fn from(&self, at: u64) -> Vec<(Block, &'a [u8])> {
        let next = (at / PAGE as u64 + 1) * PAGE as u64;
        [self.in_page(at), self.on_pages(next)].concat()
    }

    /// Rule 4.
    fn beyond(&self, at: u64, view: u64) -> Option<Block> {
        let later = self.from(at).into_iter().map(|(block, _)| block);
        let later: Vec<Block> = later.filter(|block| block.view > view).collect();
        later.iter().any(|block| block.flags & FIRST != 0).then(|| later[0])
    }

    /// Rule 3: the end, where the last commit begins, what is damaged.
    fn walk(&self, from: Tip, gaps: &mut Vec<Gap>) -> (Tip, Option<u64>) {
        let (mut tip, mut start, mut here, mut begun) = (from, None, from, None);
        loop {
            let at = place(here.end);
            let fits = |(block, _): &(Block, &[u8])| {
                let first = block.flags & FIRST != 0;
                let later =
                    if here.whole { block.time > here.time } else { block.time == here.time };
                let place = (block.prev, block.index, block.view);
                place == (here.crc, here.count, here.view) && first == here.whole && later
            };
            let block = match self.parse(at).filter(fits) {
                Some((block, _)) => block,
                None => {
                    let Some(block) = self.beyond(at, here.view) else { return (tip, start) };
                    gaps.push((here.count, next(&block), at));
                    (tip, start, begun) = (before(&block), None, None);
                    block
                }
            };
            if block.flags & FIRST != 0 {
                begun = Some(block.at);
            }
            here = behind(&block);
            if here.whole {
                (tip, start) = (here, begun.or(Some(block.at)));
            }
        }
    }

    /// Rule 5: the end of what is intact of a log of which the block at `from` is not.
    fn lose(mut self, head: Option<Head>, from: u64) -> Outcome {
        let head = head.unwrap_or(Head { seed: self.seed, ..Head::default() });
        self.seed = head.seed;
        let mut gaps = Vec::new();
        // What was dropped is no part of it.
        let end = head.at.min(self.log.len() as u64).max(HEAD as u64);
        let none = Tip { end, count: head.first, view: head.view, ..Tip::default() };
        let kept = |block: &Block| (head.at..=from).contains(&block.at);
        let intact = self.on_pages(0).into_iter().rfind(|(block, _)| kept(block));
        let tip = intact.map_or(none, |(block, _)| behind(&block));
        let (tip, _) = self.walk(tip, &mut gaps);
        Outcome { head, tip, start: None, lost: true, gaps }
    }
}

fn decode(bytes: &[u8]) -> Option<Head> {
    let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    let head = Head { seed: word(8), first: word(16), at: word(24), view: word(32) };
    (super::page::head(&head) == bytes && head.seed != 0).then_some(head)
}

/// The head of which one byte is damaged.
fn mended(bytes: &[u8]) -> Option<Head> {
    let other = |(at, byte): (usize, u8)| {
        let mut other = bytes.to_vec();
        other[at] = byte;
        decode(&other)
    };
    (0..HEAD).flat_map(|at| (0..=255).map(move |byte| (at, byte))).find_map(other)
}

/// Recovery of a log with this index (`last`, the seed), in a process that knows an end.
pub(super) fn recover(log: &[u8], (last, seed): (u64, u64), known: &Tip) -> Outcome {
    let mut bytes = log[..log.len().min(HEAD)].to_vec();
    bytes.resize(HEAD, 0);
    let mut gaps = Vec::new();
    let end = |head, (tip, start), gaps| Outcome { head, tip, start, lost: false, gaps };
    if bytes == [0; HEAD] && last == 0 && known.at == 0 {
        return end(Head::default(), (Tip::default(), None), gaps);
    }
    let Some(head) = decode(&bytes) else {
        let head = mended(&bytes);
        let from = last.max(known.at).max(head.map_or(0, |head| head.at));
        return Model { log, seed }.lose(head, from);
    };
    let model = Model { log, seed: head.seed };
    let acknowledged = if seed == head.seed { last.max(known.at) } else { known.at };
    let from = acknowledged.max(head.at);
    let tip = match model.parse(from) {
        _ if from == 0 => Tip::default(),
        Some((block, _)) if block.flags & LAST != 0 || from == head.at => behind(&block),
        _ if acknowledged == 0 => match model.beyond(from, head.view.saturating_sub(1)) {
            Some(block) => {
                gaps.extend((block.view > head.view).then_some((head.first, next(&block), from)));
                before(&block)
            }
            None => return model.lose(Some(head), from),
        },
        _ => return model.lose(Some(head), from),
    };
    let (tip, start) = model.walk(tip, &mut gaps);
    if !tip.whole {
        return model.lose(Some(head), from);
    }
    end(head, (tip, start), gaps)
}

/// The intact blocks from the first event that is kept to the end.
pub(super) fn intact<'a>(log: &'a [u8], outcome: &Outcome) -> Vec<(Block, &'a [u8])> {
    let Outcome { head, tip, .. } = outcome;
    let model = Model { log, seed: head.seed };
    let kept = |(block, _): &(Block, &[u8])| block.at < tip.end;
    model.from(head.at).into_iter().filter(kept).collect()
}

/// The events that are kept: those that are intact, each as the log has it.
pub(super) fn events(log: &[u8], outcome: &Outcome) -> BTreeMap<u64, Event> {
    let blocks = intact(log, outcome);
    let Outcome { head, tip, .. } = outcome;
    let mut events = BTreeMap::new();
    for (i, (block, payload)) in blocks.iter().enumerate() {
        for (index, at) in begin_in(block, payload) {
            let mut event = Event { index, time: block.time, bytes: Vec::new() };
            let (mut view, mut rest) = (block.view, at);
            for (block, payload) in blocks[i..].iter().take_while(|(block, _)| {
                let here = block.view == view;
                view = behind(block).view;
                here
            }) {
                let payload = &payload[rest..];
                let end = match block.flags & RAW != 0 {
                    true => (block.events > 0).then(|| payload.len() - 1),
                    false => payload.iter().position(|byte| *byte == b'\n'),
                };
                event.bytes.extend(&payload[..end.unwrap_or(payload.len())]);
                if end.is_some() {
                    let kept = (head.first..tip.count).contains(&index);
                    events.extend(kept.then_some((index, event)));
                    break;
                }
                rest = 0;
            }
        }
    }
    events
}
