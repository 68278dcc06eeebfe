//! Blocks one after the other, and what recovery is to do.
//!
//! The instant of commit is the return of `fdatasync` on the log; the instant of visibility is the
//! write of `last`, the first word of the index, which names the last block known to be durable. It
//! is never synced on the way, so a crash can leave it behind the log, never ahead of it. What is
//! left behind the end (of a crash, a full disk, a failed sync) is never cut: it fits no chain.
//!
//! A commit is only begun when the one before it is durable. So a block that begins a commit proves
//! that all before it was acknowledged, also where some of that is damaged.
//!
//! Pure: what it reads is handed to it as [`Pages`].

use crate::page::{self, Block, CONT, FIRST, HEAD, Head, LAST, PAGE};

/// What a log holds.
pub trait Pages {
    /// Why it cannot be read.
    type Error;

    /// The bytes from `at` to the end of its page; fewer where the log ends, none behind it.
    fn page(&mut self, at: u64) -> Result<&[u8], Self::Error>;

    /// How long the log is: bytes.
    fn end(&self) -> u64;

    /// The block at `at`, when it checks.
    fn block(&mut self, seed: u64, at: u64) -> Result<Option<Block>, Self::Error> {
        Ok(page::decode(seed, at, self.page(at)?).map(|(block, _)| block))
    }

    /// The next block of the page that `at` is in, there or at any place behind: damage costs the
    /// blocks it is in, and no other bytes check.
    fn next(&mut self, seed: u64, at: u64) -> Result<Option<Block>, Self::Error> {
        let mut at = at.max(HEAD as u64);
        let end = at - at % PAGE + PAGE;
        while at < end {
            // Of its length, with which a block begins, one byte may be 0.
            match self.page(at)?.iter().position(|byte| *byte != 0) {
                None => break,
                Some(zeros @ 2..) => at += zeros as u64 - 1,
                Some(_) => match self.block(seed, at)? {
                    Some(block) => return Ok(Some(block)),
                    None => at += 1,
                },
            }
        }
        Ok(None)
    }
}

/// A place between two blocks, and what there is before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tip {
    /// Where the block before it begins; 0 when there is none.
    pub at: u64,
    /// Where that ends.
    pub end: u64,
    /// Its checksum, 0 when there is none.
    pub crc: u32,
    /// How many events end before this place.
    pub count: u64,
    /// The offset in the view.
    pub view: u64,
    /// The time of the last block, 0 when there is none.
    pub time: u64,
    /// The last block ends a commit, or there is none.
    pub whole: bool,
}

impl Default for Tip {
    /// The place before the first block.
    fn default() -> Tip {
        Tip { at: 0, end: HEAD as u64, crc: 0, count: 0, view: 0, time: 0, whole: true }
    }
}

impl From<&Block> for Tip {
    /// The place behind a block.
    fn from(block: &Block) -> Tip {
        Tip {
            at: block.at,
            end: block.end(),
            crc: block.crc,
            count: block.next(),
            view: block.view_end(),
            time: block.time,
            whole: block.is(LAST),
        }
    }
}

impl Tip {
    /// The place before a block, whatever is there.
    fn before(block: &Block) -> Tip {
        let whole = block.is(FIRST);
        Tip {
            at: 0,
            end: block.at,
            crc: block.prev,
            count: block.index,
            view: block.view,
            time: block.time.saturating_sub(u64::from(whole)),
            whole,
        }
    }

    /// Whether `block` is the one behind this place.
    pub fn leads_to(&self, block: &Block) -> bool {
        let in_time = match self.whole {
            true => block.is(FIRST) && block.time > self.time,
            false => !block.is(FIRST) && block.time == self.time,
        };
        let chained = block.prev == self.crc && block.index == self.count;
        chained && block.view == self.view && in_time
    }
}

/// How far a walk came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Walked {
    /// The end of the last whole commit, or where the walk began.
    pub tip: Tip,
    /// Where that commit begins, when the walk met all of it.
    pub start: Option<u64>,
}

/// Events that are damaged: from the first up to the one behind the last; and where that is in the
/// log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// The first event affected,
    pub first: u64,
    /// the first one behind it that is not,
    pub next: u64,
    /// the place of the first block that does not check.
    pub at: u64,
}

impl Gap {
    /// From event `first` to a block behind the damage, in which one may end that began there.
    fn new(first: u64, behind: &Block, at: u64) -> Gap {
        Gap { first, next: behind.index + u64::from(behind.is(CONT)), at }
    }

    /// The last event affected, at least.
    pub fn last(&self) -> u64 {
        self.next.saturating_sub(1).max(self.first)
    }
}

/// Goes from the place `from` over all blocks that follow. Tells of what is `damaged`. `proof`: the
/// place of a block that was acknowledged, 0 when none is known.
///
/// # Errors
/// Where the log cannot be read, and nothing behind proves that more was acknowledged.
pub fn walk<P: Pages>(
    pages: &mut P,
    seed: u64,
    from: Tip,
    mut proof: u64,
    damaged: &mut dyn FnMut(Gap),
) -> Result<Walked, P::Error> {
    let mut walked = Walked { tip: from, start: None };
    let (mut here, mut begin) = (from, None);
    loop {
        let at = page::place(here.end);
        let found = pages.block(seed, at);
        let block = match found {
            Ok(Some(block)) if here.leads_to(&block) => block,
            other => {
                let Some(block) = beyond(pages, seed, at, here.view, &mut proof)? else {
                    return other.map(|_| walked);
                };
                damaged(Gap::new(here.count, &block, at));
                // All before it was acknowledged.
                walked = Walked { tip: Tip::before(&block), start: None };
                begin = None;
                block
            }
        };
        if block.is(FIRST) {
            begin = Some(block.at);
        }
        here = Tip::from(&block);
        if here.whole {
            walked = Walked { tip: here, start: begin.or(Some(block.at)) };
        }
    }
}

/// Whether a whole commit follows the place `from`.
///
/// # Errors
/// Where the log cannot be read.
pub fn leads_on<P: Pages>(pages: &mut P, seed: u64, from: Tip) -> Result<bool, P::Error> {
    let mut here = from;
    while let Some(block) = pages.block(seed, page::place(here.end))?
        && here.leads_to(&block)
    {
        here = Tip::from(&block);
        if here.whole {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The next block behind damage at `at`, if it or one behind it begins a commit. `proof`: such a one,
/// or one that was acknowledged, as far as one is known.
fn beyond<P: Pages>(
    pages: &mut P,
    seed: u64,
    mut at: u64,
    view: u64,
    proof: &mut u64,
) -> Result<Option<Block>, P::Error> {
    let (mut found, mut failed) = (None, None);
    while at < pages.end() {
        let block = match pages.next(seed, at) {
            Ok(Some(block)) => block,
            // What cannot be read is passed over, too.
            other => {
                failed = failed.or(other.err());
                at += PAGE - at % PAGE;
                continue;
            }
        };
        if block.view > view {
            let first = *found.get_or_insert(block);
            if block.is(FIRST) || block.at <= *proof {
                *proof = block.at.max(*proof);
                return Ok(Some(first));
            }
        }
        at = block.end();
    }
    failed.map_or(Ok(None), Err)
}

/// What is known of a stream before its log is walked.
#[derive(Clone, Copy, Debug)]
pub struct Evidence {
    /// What stands at the beginning of the log; zeros where nothing does.
    pub head: [u8; HEAD],
    /// `last`, and the seed of the log it is about: the first two words of the index.
    pub index: (u64, u64),
    /// The end that this process last knew to be durable, at least.
    pub known: Tip,
}

/// What there is of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found<E> {
    /// The head of the log; without a seed when there are no events yet.
    pub head: Head,
    /// The end of what is known to be durable without a walk.
    pub from: Tip,
    /// The end; of a stream that is lost, of what is intact.
    pub tip: Tip,
    /// Where the last whole commit begins, when it is not known to be durable: it may be in the page
    /// cache only, or on pages whose sync has failed. Those before it are.
    pub start: Option<u64>,
    /// The disk lost acknowledged events, and what is missing: no more can be appended.
    pub lost: Option<&'static str>,
    /// What is behind `from` cannot be read.
    pub failed: Option<E>,
}

impl<E> Found<E> {
    fn new(head: Head, tip: Tip) -> Self {
        Found { head, from: tip, tip, start: None, lost: None, failed: None }
    }

    /// Whether an index that begins so says where the end is, if there are events: others may know of no
    /// other word.
    pub fn is_published(&self, index: (u64, u64)) -> bool {
        self.tip.at == 0 || index == (self.tip.at, self.head.seed)
    }
}

/// Recovers a stream, in memory.
///
/// # Errors
/// Where the log cannot be read behind what is known to be durable.
pub fn recover<P: Pages>(
    pages: &mut P,
    evidence: &Evidence,
    damaged: &mut dyn FnMut(Gap),
) -> Result<Found<P::Error>, P::Error> {
    let Evidence { head, index: (last, seed), known } = *evidence;
    let nothing = Tip::default();
    if head == [0; HEAD] && last == 0 && known.at == 0 {
        return Ok(Found::new(Head::default(), nothing));
    }
    let Some(head) = Head::decode(&head) else {
        let head = Head::mended(&head).unwrap_or(Head { seed, ..Head::default() });
        let from = last.max(known.at).max(head.at);
        return lose(pages, head, from, "the head of the log is damaged", damaged);
    };
    // The index of another log says nothing of this one.
    let last = if seed == head.seed { last } else { 0 };
    // What was dropped was acknowledged, and `last` may have been left behind by a power cut.
    let from = last.max(known.at).max(head.at);
    let tip = match pages.block(head.seed, from) {
        _ if from == 0 => nothing,
        Ok(Some(block)) if block.is(LAST) || from == head.at => Tip::from(&block),
        // The first block that is kept is damaged, and nothing else says what follows.
        _ if from == head.at && last.max(known.at) == 0 => {
            // Where all up to it was dropped, the first event kept begins in the next one.
            match beyond(pages, head.seed, from, head.view.saturating_sub(1), &mut 0)? {
                Some(block) => {
                    if block.view > head.view {
                        damaged(Gap::new(head.first, &block, from));
                    }
                    Tip::before(&block)
                }
                None => return lose(pages, head, from, BLOCK, damaged),
            }
        }
        // It may be there the next time.
        Err(error) => {
            let found = lose(pages, head, from, BLOCK, damaged)?;
            return Ok(Found { lost: None, failed: Some(error), ..found });
        }
        _ => return lose(pages, head, from, BLOCK, damaged),
    };
    match walk(pages, head.seed, tip, 0, damaged) {
        Ok(Walked { tip: end, start }) if end.whole => {
            Ok(Found { tip: end, start, ..Found::new(head, tip) })
        }
        Ok(_) => lose(pages, head, from, "the last commit is damaged", damaged),
        Err(error) => Ok(Found { failed: Some(error), ..Found::new(head, tip) }),
    }
}

const BLOCK: &str = "the last block of the log is damaged or missing";

/// What is intact of a log of which the block at `from` is not.
fn lose<P: Pages>(
    pages: &mut P,
    head: Head,
    from: u64,
    lost: &'static str,
    damaged: &mut dyn FnMut(Gap),
) -> Result<Found<P::Error>, P::Error> {
    let mut tip = None;
    // What was dropped is no part of it, though it may be there.
    let least = head.at.max(HEAD as u64);
    let mut page = page::first_in_page(from.min(pages.end()));
    while tip.is_none() {
        let (mut at, end) = (page.max(least), page - page % PAGE + PAGE);
        // What cannot be read is as damaged as what does not check.
        while at < end
            && let Ok(Some(block)) = pages.next(head.seed, at)
            && block.at <= from
        {
            tip = Some(Tip::from(&block));
            at = block.end();
        }
        if page <= least {
            break;
        }
        page = page::first_in_page(page - 1);
    }
    let end = least.min(pages.end()).max(HEAD as u64);
    let before = Tip { end, count: head.first, view: head.view, ..Tip::default() };
    let tip = tip.unwrap_or(before);
    let walked = walk(pages, head.seed, tip, 0, damaged).unwrap_or(Walked { tip, start: None });
    Ok(Found { tip: walked.tip, lost: Some(lost), ..Found::new(head, tip) })
}

#[cfg(test)]
mod tests;
