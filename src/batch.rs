//! Bytes of a writer -> events -> blocks.
//!
//! [`Tally`] follows the bytes of a batch as they are written, whatever pieces they come in;
//! [`Blocks`] makes blocks of them at the commit, when index and time are known.
//!
//! Pure: knows no file, clock or thread.

use crate::page::{self, Block, CONT, ENTRY, FIRST, HEADER, LAST, MORE, PAGE, RAW};
use crate::walk::Tip;

/// How the bytes of a batch divide into events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// A line is an event; the last one may lack its newline.
    Lines,
    /// All of it is one event.
    One,
}

/// What is known of a batch from the bytes written so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Bytes written.
    pub len: u64,
    /// Bytes up to the end of the last complete event.
    pub complete: u64,
    /// Complete events.
    pub events: u64,
}

impl Tally {
    /// Counts `bytes` in. The event of [`Shape::One`] is never complete before the batch is.
    pub fn push(&mut self, shape: Shape, bytes: &[u8]) {
        if shape == Shape::Lines
            && let Some(last) = bytes.iter().rposition(|&b| b == b'\n')
        {
            self.complete = self.len + last as u64 + 1;
            self.events += newlines(bytes);
        }
        self.len += bytes.len() as u64;
    }

    /// Bytes behind the last complete event.
    pub fn torn(&self) -> u64 {
        self.len - self.complete
    }

    /// The events there are when the batch ends here.
    pub fn all_events(&self) -> u64 {
        self.events + u64::from(self.torn() > 0)
    }
}

fn newlines(bytes: &[u8]) -> u64 {
    // Blocks of 255 let the compiler count in bytes.
    let count = |block: &[u8]| u64::from(block.iter().fold(0u8, |n, &b| n + u8::from(b == b'\n')));
    bytes.chunks(255).map(count).sum()
}

/// Makes the blocks of one commit, each as large as its page and the commit allow.
pub struct Blocks {
    seed: u64,
    /// Whole blocks, and the one being filled; what is between them is zeros.
    out: Vec<u8>,
    /// Where `out` goes in the log.
    from: u64,
    /// The block being filled; of no length before the first.
    block: Block,
    /// The last event has begun, and not ended.
    inside: bool,
    /// Entries of the index, one for each page that begins with a block of ours,
    entries: Vec<u8>,
    /// from the one of this offset on.
    paged: Option<u64>,
}

impl Blocks {
    /// For a commit at `time`, behind `tip`.
    pub fn new(seed: u64, tip: &Tip, time: u64) -> Blocks {
        let at = page::place(tip.end);
        let block = Block {
            at,
            flags: FIRST,
            prev: tip.crc,
            index: tip.count,
            view: tip.view,
            time,
            ..Block::default()
        };
        let (out, entries) = (vec![0; HEADER], Vec::new());
        let mut blocks = Blocks { seed, out, from: at, block, inside: false, entries, paged: None };
        blocks.enter();
        blocks
    }

    /// Adds bytes of a batch of this shape.
    pub fn push(&mut self, shape: Shape, mut bytes: &[u8]) {
        let raw = shape == Shape::One;
        while !bytes.is_empty() {
            let (now, rest) = bytes.split_at(self.room(raw).min(bytes.len()));
            self.out.extend_from_slice(now);
            // No more than a page.
            self.block.len += now.len() as u16;
            self.inside = raw || now.last() != Some(&b'\n');
            if !raw {
                self.block.events += newlines(now) as u32;
            }
            bytes = rest;
        }
    }

    /// The batch ends: so does its last event.
    pub fn end(&mut self, shape: Shape) {
        match shape {
            Shape::Lines if self.inside => self.push(shape, b"\n"),
            Shape::Lines => {}
            Shape::One => {
                self.push(shape, b"\n");
                self.block.events = 1;
                self.inside = false;
            }
        }
    }

    /// Bytes of log made so far and not yet taken.
    pub fn len(&self) -> usize {
        self.out.len()
    }

    /// Whether there are none: never, for a block is always being filled.
    pub fn is_empty(&self) -> bool {
        self.out.is_empty()
    }

    /// Takes the blocks that are whole: where they go, and their bytes.
    pub fn take(&mut self) -> (u64, Vec<u8>) {
        let rest = self.out.split_off((self.block.at - self.from) as usize);
        let from = std::mem::replace(&mut self.from, self.block.at);
        (from, std::mem::replace(&mut self.out, rest))
    }

    /// Takes entries of the index: where they go, and their bytes.
    pub fn take_entries(&mut self) -> Option<(u64, Vec<u8>)> {
        let from = self.paged.take()?;
        Some((page::entry_at(from), std::mem::take(&mut self.entries)))
    }

    /// Ends the commit, which holds at least one event: the tip behind it; all of it is whole now.
    pub fn finish(&mut self) -> Tip {
        self.block.flags |= LAST;
        let tip = self.seal();
        // What is taken next ends here.
        self.block.at = tip.end;
        tip
    }

    /// How much more the block being filled takes, or a new one where it takes no more.
    fn room(&mut self, raw: bool) -> usize {
        let room = (PAGE - self.block.at % PAGE) as usize - HEADER - usize::from(self.block.len);
        let begun = self.block.len > 0;
        // An event of any bytes is alone in its blocks.
        let other = begun && (raw != self.block.is(RAW) || (raw && !self.inside));
        if room > 0 && !other {
            self.block.flags |= if raw { RAW } else { 0 };
            return room;
        }
        let before = self.seal();
        let at = page::place(before.end);
        self.block = Block {
            at,
            flags: if self.inside { CONT } else { 0 },
            prev: before.crc,
            index: before.count,
            time: before.time,
            view: before.view,
            ..Block::default()
        };
        self.out.resize((at - self.from) as usize + HEADER, 0);
        self.enter();
        self.room(raw)
    }

    /// Keeps the entry of the page that the block being filled begins, if it does.
    fn enter(&mut self) {
        if self.block.at.is_multiple_of(PAGE) {
            self.paged.get_or_insert(self.block.at);
            self.entries.extend_from_slice(&self.block.index.to_le_bytes());
            self.entries.extend_from_slice(&self.block.view.to_le_bytes());
            debug_assert!(self.entries.len().is_multiple_of(ENTRY));
        }
    }

    fn seal(&mut self) -> Tip {
        self.block.flags |= if self.inside { MORE } else { 0 };
        let at = (self.block.at - self.from) as usize;
        self.block.seal(self.seed, &mut self.out[at..]);
        Tip::from(&self.block)
    }
}
