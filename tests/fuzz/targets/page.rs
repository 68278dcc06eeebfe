//! Bytes <-> head and blocks.

use super::Input;
use smolstore::page::{self, Block, Head};
use smolstore::sys::crc32c;

pub(super) const PAGE: usize = 4096;
pub(super) const HEAD: usize = 40;
pub(super) const HEADER: usize = 40;
pub(super) const FIRST: u16 = 1;
pub(super) const LAST: u16 = 2;
pub(super) const CONT: u16 = 4;
pub(super) const MORE: u16 = 8;
pub(super) const RAW: u16 = 16;

/// A block as the format has it; sets its length and its checksum.
pub(super) fn encode(seed: u64, block: &mut Block, payload: &[u8]) -> Vec<u8> {
    block.len = payload.len() as u16;
    let words = [block.index, block.time, block.view].map(u64::to_le_bytes).concat();
    let front = [block.len.to_le_bytes(), block.flags.to_le_bytes()].concat();
    let rest = [&block.prev.to_le_bytes()[..], &block.events.to_le_bytes(), &words, payload];
    let rest = rest.concat();
    block.crc = checksum(seed, block.at, &front, &rest);
    [&front[..], &block.crc.to_le_bytes(), &rest].concat()
}

fn checksum(seed: u64, at: u64, front: &[u8], rest: &[u8]) -> u32 {
    let place = [seed.to_le_bytes(), at.to_le_bytes()];
    [&place[0], &place[1], front, rest].iter().fold(0, |crc, bytes| crc32c(crc, bytes))
}

/// The block at `at`, of which `bytes` are what the log has there, when there is a valid one.
pub(super) fn parse(seed: u64, at: u64, bytes: &[u8]) -> Option<(Block, &[u8])> {
    let number = |at: usize, len: usize| {
        bytes[at..at + len].iter().rfold(0u64, |n, byte| n << 8 | u64::from(*byte))
    };
    let len = usize::from(u16::from_le_bytes(*bytes.first_chunk()?));
    let whole = bytes.get(..HEADER + len).filter(|_| len > 0)?;
    let block = Block {
        at,
        len: len as u16,
        flags: number(2, 2) as u16,
        crc: number(4, 4) as u32,
        prev: number(8, 4) as u32,
        events: number(12, 4) as u32,
        index: number(16, 8),
        time: number(24, 8),
        view: number(32, 8),
    };
    let bounded = [block.index, block.time, block.view].iter().all(|n| *n < u64::MAX / 2);
    let sound = checksum(seed, at, &whole[..4], &whole[8..]) == block.crc;
    let known = block.flags < 32 && seed != 0;
    (sound && bounded && known).then_some((block, &whole[HEADER..]))
}

/// A head as the format has it.
pub(super) fn head(head: &Head) -> Vec<u8> {
    let words = [head.seed, head.first, head.at, head.view].map(u64::to_le_bytes).concat();
    let crc = crc32c(0, &[b"smo2", &words[..]].concat());
    [b"smo2", &crc.to_le_bytes()[..], &words].concat()
}

/// Where the block behind one that ends at `end` is.
pub(super) fn place(end: u64) -> u64 {
    let into = end % PAGE as u64;
    if into + 41 > PAGE as u64 { end - into + PAGE as u64 } else { end }
}

/// Any bytes are read as the format says; what is written is read again, only whole, and only at
/// its own place.
pub fn run(bytes: &[u8]) {
    let mut input = Input(bytes);
    let (how, seed) = (input.byte(), input.u64().max(1));
    let at = input.u64() >> input.below(64);
    assert_eq!(page::place(at >> 1), place(at >> 1));
    match how % 4 {
        0 => any_head(&mut input, how),
        1 => {
            let mut bytes = input.0.to_vec();
            if how & 4 != 0 && bytes.len() > HEADER {
                mend(seed, at, &mut bytes);
            }
            assert_eq!(page::decode(seed, at, &bytes), parse(seed, at, &bytes));
        }
        2 => round_trip(seed, at, how, &mut input),
        _ => begins(seed, how, input.0),
    }
}

/// No fuzzer finds a checksum.
fn mend(seed: u64, at: u64, bytes: &mut [u8]) {
    let len = usize::from(u16::from_le_bytes([bytes[0], bytes[1]])) % (bytes.len() - HEADER + 1);
    bytes[..2].copy_from_slice(&(len as u16).to_le_bytes());
    let crc = checksum(seed, at, &bytes[..4], &bytes[8..HEADER + len]);
    bytes[4..8].copy_from_slice(&crc.to_le_bytes());
}

fn any_head(input: &mut Input<'_>, how: u8) {
    let any: [u8; HEAD] = input.array();
    let words = [8, 16, 24, 32].map(|at| u64::from_le_bytes(any[at..at + 8].try_into().unwrap()));
    let told = Head { seed: words[0], first: words[1], at: words[2], view: words[3] };
    let sound = head(&told)[..] == any && told.seed != 0;
    assert_eq!(Head::decode(&any), sound.then_some(told));
    // Now with its magic and checksum.
    let mut bytes = told.encode();
    assert_eq!(bytes[..], head(&told));
    let decoded = Head::decode(&bytes);
    assert!(decoded.is_none_or(|head| head == told) && decoded.is_some() != (told.seed == 0));
    bytes[usize::from(how) % HEAD] ^= input.byte();
    assert_eq!(Head::mended(&bytes), decoded);
}

fn round_trip(seed: u64, at: u64, how: u8, input: &mut Input<'_>) {
    let [flags, prev, events] = [(); 3].map(|()| input.u64());
    let [index, time, view] = [(); 3].map(|()| input.u64() >> 2);
    let (prev, events) = (prev as u32, events as u32);
    let mut block =
        Block { at, flags: flags as u16 % 32, prev, events, index, time, view, ..Block::default() };
    let payload = if input.is_empty() { &b"\n"[..] } else { input.0 };
    let mut bytes = encode(seed, &mut block, payload);
    let mut other = Block { crc: !block.crc, ..block };
    let mut sealed = [&[how; HEADER][..], payload].concat();
    other.seal(seed, &mut sealed);
    assert_eq!((&sealed, other), (&bytes, block));
    assert_eq!(page::decode(seed, at, &bytes), Some((block, payload)));
    assert_eq!(page::decode(seed ^ 1 << (how % 64), at, &bytes), None);
    assert_eq!(page::decode(seed, at ^ 1 << (how % 64), &bytes), None);
    assert_eq!(page::decode(seed, at, &bytes[..bytes.len() - 1]), None);
    let wrong = usize::from(how) * 7 % bytes.len();
    bytes[wrong] ^= 1 << (how % 8);
    assert_eq!(page::decode(seed, at, &bytes), None);
}

/// The events that begin in a block, by counting.
pub(super) fn begin_in(block: &Block, payload: &[u8]) -> Vec<(u64, usize)> {
    let mut begin = Vec::from_iter((block.flags & CONT == 0).then_some((block.index, 0)));
    let mut n = block.index;
    if block.flags & RAW == 0 {
        for (at, _) in payload.iter().enumerate().filter(|(_, byte)| **byte == b'\n') {
            n += 1;
            begin.extend((at + 1 < payload.len()).then_some((n, at + 1)));
        }
    }
    begin
}

fn begins(seed: u64, how: u8, payload: &[u8]) {
    let Some(last) = payload.last() else { return };
    let newlines = payload.iter().filter(|byte| **byte == b'\n').count() as u32;
    let (raw, cont) = (how & 4 != 0, how & 8 != 0);
    let (more, events) = match raw {
        true => (how & 16 != 0, u32::from(how & 16 == 0)),
        false => (*last != b'\n', newlines),
    };
    let flags = [(cont, CONT), (more, MORE), (raw, RAW)].map(|(set, flag)| u16::from(set) * flag);
    let block = Block { flags: flags.iter().sum(), events, index: seed >> 60, ..Block::default() };
    let first = block.index.saturating_sub(2);
    let begun = (first..block.next() + 3).filter_map(|n| Some((n, block.begins(payload, n)?)));
    assert_eq!(begun.collect::<Vec<_>>(), begin_in(&block, payload));
    let ended = (first..block.next() + 3).filter_map(|n| Some((n, block.ends(payload, n)?)));
    let ends = payload.iter().enumerate().filter(|(at, byte)| match raw {
        true => events > 0 && at + 1 == payload.len(),
        false => **byte == b'\n',
    });
    let ends = (block.index..).zip(ends.map(|(at, _)| at));
    assert_eq!(ended.collect::<Vec<_>>(), ends.collect::<Vec<_>>());
}
