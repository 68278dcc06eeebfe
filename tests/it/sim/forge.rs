//! What the simulation itself knows of the format: the blocks of a log, where an event is in it, and
//! bytes that look like blocks, for events to hold.

use smolstore::page::{self, Block, FIRST, HEAD, HEADER, Head, LAST, PAGE};
use smolstore::walk::Tip;

use super::files::Rng;

/// The head of a log and all blocks of whole commits, from the one on in which the first event kept
/// begins, as far as they are there one after the other.
pub(super) fn blocks(log: &[u8]) -> Option<(Head, Vec<Block>)> {
    let head = Head::decode(log.first_chunk::<HEAD>()?)?;
    let (mut tip, mut all, mut whole) = (Tip::default(), Vec::new(), 0);
    loop {
        let dropped = all.is_empty() && head.at > 0;
        let at = if dropped { head.at } else { page::place(tip.end) };
        let end = ((at - at % PAGE + PAGE) as usize).min(log.len());
        let bytes = log.get(at as usize..end).unwrap_or_default();
        let block = page::decode(head.seed, at, bytes).map(|(block, _)| block);
        let Some(block) = block.filter(|block| dropped || tip.leads_to(block)) else {
            all.truncate(whole);
            return Some((head, all));
        };
        tip = Tip::from(&block);
        all.push(block);
        whole = if tip.whole { all.len() } else { whole };
    }
}

/// How many bytes of a batch go between a place behind a block and another one.
pub(super) fn capacity(end: u64, to: u64) -> usize {
    let (mut at, mut bytes) = (page::place(end), 0);
    while at < to {
        let next = to.min(at - at % PAGE + PAGE);
        bytes += next.saturating_sub(at + HEADER as u64);
        at = next;
    }
    bytes as usize
}

/// Whether part of an event is in a block.
pub(super) fn holds(block: &Block, n: u64) -> bool {
    let end = block.next() + u64::from(block.is(page::MORE));
    (block.index..end).contains(&n)
}

/// A block with the right layout and fields that may fit, but another seed, with which it checks.
pub(super) fn forge(rng: &mut Rng, seed: u64, at: u64, before: &Tip) -> Vec<u8> {
    let mut bytes = vec![b'!'; HEADER + 1 + rng.below(40)];
    let mut block = Block {
        at,
        len: (bytes.len() - HEADER) as u16,
        flags: rng.one_of(&[FIRST, LAST, FIRST | LAST, FIRST | LAST]),
        prev: before.crc,
        events: 1,
        index: before.count + rng.below(4) as u64,
        time: before.time + 1 + rng.below(2) as u64 * (page::MAX / 4),
        view: before.view + rng.below(3) as u64 * 500,
        ..Block::default()
    };
    block.seal(seed, &mut bytes);
    bytes
}

/// Puts what looks like blocks into the bytes of an event, where others may begin that are written
/// over it: it begins behind `tip`. Some are copies of real ones, from another place of this log.
pub(super) fn plant(event: &mut [u8], rng: &mut Rng, tip: &Tip, unit: u64, log: &[u8]) {
    let known = blocks(log).map(|(_, blocks)| blocks).unwrap_or_default();
    let begin = page::place(tip.end) + HEADER as u64;
    let mut at = begin.next_multiple_of(unit);
    loop {
        let before = Tip { count: tip.count + 1, view: tip.view + at - begin, ..*tip };
        let copied = known.get(rng.below(known.len())).filter(|_| rng.one_in(3));
        let bytes = match copied {
            Some(block) => log[block.at as usize..block.end() as usize].to_vec(),
            None => forge(rng, 0, at, &before),
        };
        // Where that is in the event: each page it reaches has a block of its own.
        let from = capacity(tip.end, at);
        if from < 8 {
            at += unit;
            continue;
        }
        let Some(to) = event.get_mut(from..) else { return };
        let len = bytes.len().min(to.len());
        to[..len].copy_from_slice(&bytes[..len]);
        if len < bytes.len() {
            return;
        }
        at += unit;
    }
}
