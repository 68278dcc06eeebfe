//! A log as it may be found: commits, what other attempts left, dropped events, damage.
//!
//! No fuzzer finds a checksum, so its bytes are a script that writes blocks.

use super::Input;
use super::page::{CONT, FIRST, HEAD, HEADER, LAST, MORE, PAGE, RAW, encode, head, place};
use smolstore::page::{Block, Head};
use smolstore::walk::Tip;

pub(super) const SEED: u64 = 0x5eed;

/// Longer logs are slow, and no different.
const LONG: usize = 64 << 10;

/// A part of a commit: lines, or one event of any bytes.
pub(super) struct Part {
    pub(super) raw: bool,
    pub(super) bytes: Vec<u8>,
}

/// The blocks of a commit, each with its bytes.
pub(super) fn lay(tip: &Tip, time: u64, parts: &[Part]) -> Vec<(Block, Vec<u8>)> {
    // Lines that come one after the other share blocks.
    let mut runs: Vec<Part> = Vec::new();
    for Part { raw, bytes } in parts.iter().filter(|part| part.raw || !part.bytes.is_empty()) {
        let torn = *raw || !bytes.ends_with(b"\n");
        let bytes = [&bytes[..], &b"\n"[..usize::from(torn)]].concat();
        match runs.last_mut() {
            Some(last) if !raw && !last.raw => last.bytes.extend(bytes),
            _ => runs.push(Part { raw: *raw, bytes }),
        }
    }
    let (mut blocks, mut block) = (Vec::new(), Block { prev: tip.crc, ..Block::default() });
    (block.at, block.index, block.view, block.time) = (place(tip.end), tip.count, tip.view, time);
    for (run, Part { raw, bytes }) in runs.iter().enumerate() {
        let mut from = 0;
        while from < bytes.len() {
            let to = bytes.len().min(from + PAGE - block.at as usize % PAGE - HEADER);
            let payload = &bytes[from..to];
            let ends = |to: usize| if *raw { to == bytes.len() } else { bytes[to - 1] == b'\n' };
            let newlines = payload.iter().filter(|byte| **byte == b'\n').count() as u32;
            block.events = if *raw { u32::from(ends(to)) } else { newlines };
            let flags = [
                (FIRST, blocks.is_empty()),
                (LAST, run + 1 == runs.len() && to == bytes.len()),
                (CONT, from > 0 && !ends(from)),
                (MORE, !ends(to)),
                (RAW, *raw),
            ];
            block.flags = flags.iter().map(|(flag, set)| flag * u16::from(*set)).sum();
            let encoded = encode(SEED, &mut block, payload);
            blocks.push((block, encoded));
            block.at = place(block.at + (HEADER + payload.len()) as u64);
            (block.prev, block.view) = (block.crc, block.view + payload.len() as u64);
            block.index += u64::from(block.events);
            from = to;
        }
    }
    blocks
}

/// What a script made.
pub(super) struct Found {
    pub(super) log: Vec<u8>,
    /// Where the blocks begin that were the end of what was acknowledged, one after the other.
    pub(super) ends: Vec<u64>,
    /// Nothing but what a crash or a disk can leave is there.
    pub(super) real: bool,
}

struct Script<'a> {
    input: Input<'a>,
    found: Found,
    head: Head,
    tip: Tip,
    /// Where each event begins: its block, and its offset in the view.
    begins: Vec<(u64, u64)>,
}

/// Makes a log of what the input says up to a zero, or all of it.
pub(super) fn run(input: &mut Input<'_>) -> Found {
    let head = Head { seed: SEED, ..Head::default() };
    let found = Found { log: Vec::new(), ends: vec![0], real: true };
    let (input_of, tip) = (Input(input.0), Tip::default());
    let mut script = Script { input: input_of, found, head, tip, begins: Vec::new() };
    while script.found.log.len() < LONG && script.step() {}
    *input = script.input;
    script.found
}

impl Script<'_> {
    fn step(&mut self) -> bool {
        match self.input.byte() {
            0 => return false,
            how @ 1..0x70 => self.commit(how),
            how @ 0x70..0x90 => self.attempt(how),
            0x90..0xa8 => self.drop_some(),
            0xa8..0xb0 => {
                let more = 64 * self.input.below(256);
                let len = self.found.log.len() + more;
                self.found.log.resize(len, 0);
            }
            0xb0..0xd8 => self.damage(),
            0xd8..0xe0 => {
                let cut = self.input.u16() % (self.found.log.len() + 1);
                self.found.log.truncate(self.found.log.len() - cut);
            }
            0xe0..0xf0 => self.copy(),
            how => self.odd(how),
        }
        true
    }

    fn parts(&mut self, n: u8) -> Vec<Part> {
        let left = PAGE - place(self.tip.end) as usize % PAGE - HEADER;
        let part = |input: &mut Input<'_>| {
            let (how, fill) = (input.byte(), input.byte());
            let bytes = match how % 16 {
                0..10 => input.take(usize::from(how >> 4) + 1).to_vec(),
                10..12 => b"some lines\nof some\nlength\n".repeat(usize::from(how)),
                12..14 => vec![fill; 16 * usize::from(fill)],
                14 => vec![b'x'; 2 * PAGE - 2 * HEADER - usize::from(fill)],
                // Ends about where a page does.
                _ => {
                    let pages = usize::from(fill / 4 % 3) * (PAGE - HEADER);
                    vec![b'y'; (left + pages).saturating_sub(usize::from(fill % 4))]
                }
            };
            Part { raw: how & 16 != 0, bytes }
        };
        let parts: Vec<Part> = (0..n).map(|_| part(&mut self.input)).collect();
        let empty = parts.iter().all(|part| !part.raw && part.bytes.is_empty());
        if empty { vec![Part { raw: false, bytes: b"\n".to_vec() }] } else { parts }
    }

    fn put(&mut self, at: u64, bytes: &[u8]) {
        let (log, at) = (&mut self.found.log, at as usize);
        if log.len() < HEAD {
            log.resize(HEAD, 0);
            log.copy_from_slice(&head(&self.head));
        }
        log.resize(log.len().max(at + bytes.len()), 0);
        log[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn commit(&mut self, how: u8) {
        let parts = self.parts(1 + how % 4);
        for (block, bytes) in lay(&self.tip, self.tip.time + 1 + u64::from(how), &parts) {
            self.put(block.at, &bytes);
            let begin = super::page::begin_in(&block, &bytes[HEADER..]);
            self.begins.extend(begin.iter().map(|(_, at)| (block.at, block.view + *at as u64)));
            self.tip = super::model::behind(&block);
        }
        self.found.ends.push(self.tip.at);
    }

    /// A commit of which not all blocks came to the disk, and which nobody has adopted.
    fn attempt(&mut self, how: u8) {
        let parts = self.parts(1 + how % 4);
        let blocks = lay(&self.tip, self.tip.time + 1 + u64::from(how), &parts);
        let mut there = self.input.u64();
        // One at least is missing.
        there &= !(1 << (u64::from(how) % blocks.len().min(64) as u64));
        for (n, (block, bytes)) in blocks.iter().enumerate() {
            if there >> (n % 64) & 1 == 1 {
                self.put(block.at, bytes);
            }
        }
    }

    /// Drops the events before one, and gives back the pages that hold only those.
    fn drop_some(&mut self) {
        let n = self.input.u16();
        let (first, count) = (self.head.first, self.tip.count);
        if self.tip.count == 0 {
            return;
        }
        self.head.first = first + n as u64 % (count.saturating_sub(first) + 1);
        let at = self.begins.get(self.head.first as usize);
        (self.head.at, self.head.view) = at.copied().unwrap_or((self.tip.at, self.tip.view));
        self.put(0, &head(&self.head));
        let to = (self.head.at as usize - self.head.at as usize % PAGE).min(self.found.log.len());
        if n & 1 == 1 && to > PAGE {
            self.found.log[PAGE..to].fill(0);
        }
    }

    /// A byte, some bytes, or a page.
    fn damage(&mut self) {
        let (how, at) = (self.input.byte(), self.input.u16() * 4 + self.input.below(8));
        if self.found.log.is_empty() {
            return;
        }
        let at = at % self.found.log.len();
        let (from, to) = match how % 8 {
            0 => (at - at % PAGE, at - at % PAGE + PAGE),
            1 => (at - at % 512, at - at % 512 + 512),
            _ => (at, at + 1),
        };
        let to = to.min(self.found.log.len());
        match how {
            0x80.. => self.found.log[from..to].iter_mut().for_each(|byte| *byte ^= how | 1),
            _ => self.found.log[from..to].fill(how >> 3),
        }
    }

    /// Bytes of the log at another place.
    fn copy(&mut self) {
        let (from, to, len) = (self.input.u16() * 4, self.input.u16() * 4, self.input.u16());
        let log = &mut self.found.log;
        let from = from % (log.len() + 1);
        let piece = log[from..log.len().min(from + len)].to_vec();
        let to = to % (log.len() + 1);
        log.resize(log.len().max(to + piece.len()), 0);
        log[to..to + piece.len()].copy_from_slice(&piece);
    }

    /// A block, or a head, that nobody would write.
    fn odd(&mut self, how: u8) {
        self.found.real = false;
        let number = |near: u64, input: &mut Input<'_>| match input.byte() {
            0..0x80 => near,
            by @ 0x80..0xf0 => near.saturating_add_signed(i64::from(by.cast_signed()) + 0x48),
            _ => input.u64() >> 2,
        };
        let input = &mut self.input;
        let tip = &self.tip;
        let (index, view) = (number(tip.count, input), number(tip.view, input));
        let (time, at) = (number(tip.time + 1, input), number(place(tip.end), input));
        if how & 7 == 7 {
            self.head = Head { first: index, at, view, ..self.head };
            return self.put(0, &head(&self.head));
        }
        let payload = input.bytes();
        let (flags, prev) = (u16::from(input.byte()), if how & 8 == 0 { tip.crc } else { 1 });
        let at = place(at % (self.found.log.len() as u64 + 2 * PAGE as u64)).max(HEAD as u64);
        let room = PAGE - at as usize % PAGE - HEADER;
        let payload = if payload.is_empty() { b"\n" } else { &payload[..room.min(payload.len())] };
        let events = payload.iter().filter(|byte| **byte == b'\n').count() as u32;
        let mut block = Block { at, len: 0, flags, crc: 0, prev, events, index, time, view };
        let bytes = encode(SEED, &mut block, payload);
        self.put(at, &bytes);
        if how & 1 == 1 {
            self.tip = super::model::behind(&block);
        }
    }
}
