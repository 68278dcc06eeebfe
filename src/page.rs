//! Bytes <-> head, blocks and index entries: format 2, and every constant of it.
//!
//! ```text
//! STORE/<stream>/log      pages of 4 KiB; the first begins with the head, then blocks
//! STORE/<stream>/index    last u48 | check u16 | seed u64 | for each page of the log: index u64 | view u64
//!
//! head:   magic u32 | crc u32 | seed u64 | first u64 | at u64 | view u64
//! block:  len u16 | flags u16 | crc u32 | prev u32 | events u32 | index u64 | time u64 | view u64 | payload
//! ```
//!
//! All of it little-endian. The payload of a block is what a reader sees: a part of the *view*, which
//! is all events, each followed by one newline. A block stays within its page, and the next one
//! begins at its end, or on the next page where no block would fit: see [`place`].
//!
//! A checksum is CRC-32C (Castagnoli, RFC 3720 appendix B.4). That of a block covers the log's seed,
//! which no user knows, and the block's place: what users write is never taken for a block, nor a
//! block of another log or place. `prev` is the checksum of the block before: what an older attempt
//! left behind fits no chain.
//!
//! Pure: knows no file, clock or thread.

use crate::sys::{crc32c, newline};

/// What is damaged, and what is written at once where a file system must be asked for whole
/// blocks: bytes of a page.
pub const PAGE: u64 = 4096;
/// Bytes of the head, with which a log begins.
pub const HEAD: usize = 40;
/// Bytes of a block before its payload.
pub const HEADER: usize = 40;
/// Bytes of the index before its first entry: `last` and the seed.
pub const INDEX_HEAD: usize = 16;
/// Bytes of an entry of the index.
pub const ENTRY: usize = 16;

/// No index, offset in the view or time reaches this: sums of them cannot overflow.
pub const MAX: u64 = u64::MAX >> 1;
/// No log is as long: bytes.
pub const LONGEST: u64 = 1 << 48;

const MAGIC: [u8; 4] = *b"smo2";

/// The first block of a commit.
pub const FIRST: u16 = 1;
/// The last block of a commit.
pub const LAST: u16 = 2;
/// Its first event began before.
pub const CONT: u16 = 4;
/// Its last event goes on in the next block.
pub const MORE: u16 = 8;
/// Of one event of any bytes, alone in its blocks. Otherwise each newline ends an event.
pub const RAW: u16 = 16;

/// What a log says of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// Tells this log from every other; never 0.
    pub seed: u64,
    /// The first event that is kept.
    pub first: u64,
    /// The offset of the block in which that begins; 0 when nothing was ever dropped.
    pub at: u64,
    /// The offset in the view at which that begins.
    pub view: u64,
}

impl Head {
    /// As it is in the log.
    pub fn encode(&self) -> [u8; HEAD] {
        let mut bytes = [0; HEAD];
        bytes[..4].copy_from_slice(&MAGIC);
        for (field, value) in [self.seed, self.first, self.at, self.view].into_iter().enumerate() {
            bytes[8 + 8 * field..][..8].copy_from_slice(&value.to_le_bytes());
        }
        let crc = crc32c(crc32c(0, &MAGIC), &bytes[8..]);
        bytes[4..8].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// None when it does not check.
    pub fn decode(bytes: &[u8; HEAD]) -> Option<Head> {
        let head = Head {
            seed: u64_at(bytes, 8),
            first: u64_at(bytes, 16),
            at: u64_at(bytes, 24),
            view: u64_at(bytes, 32),
        };
        (head.encode() == *bytes && head.seed != 0).then_some(head)
    }

    /// What a head was of which one byte is damaged: the checksum tells which, and what it was.
    /// Without the seed no block of the log could be told from what users wrote.
    pub fn mended(bytes: &[u8; HEAD]) -> Option<Head> {
        (0..HEAD).find_map(|at| {
            let mut other = *bytes;
            (0..=u8::MAX).find_map(|byte| {
                other[at] = byte;
                Head::decode(&other)
            })
        })
    }
}

/// A block but for its payload; that its checksum holds is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Block {
    /// Where it begins in the log.
    pub at: u64,
    /// Bytes of its payload, at least 1.
    pub len: u16,
    /// [`FIRST`], [`LAST`], [`CONT`], [`MORE`], [`RAW`].
    pub flags: u16,
    /// Its checksum.
    pub crc: u32,
    /// The checksum of the block before, 0 for the first.
    pub prev: u32,
    /// So many events end in it.
    pub events: u32,
    /// The event to which its first byte belongs.
    pub index: u64,
    /// When it was committed: nanoseconds since the Unix epoch.
    pub time: u64,
    /// The offset of its first byte in the view.
    pub view: u64,
}

impl Block {
    /// Whether a flag is set.
    pub fn is(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    /// The offset in the log behind it.
    pub fn end(&self) -> u64 {
        self.at + HEADER as u64 + u64::from(self.len)
    }

    /// The offset in the view behind it.
    pub fn view_end(&self) -> u64 {
        self.view + u64::from(self.len)
    }

    /// The event to which the byte behind it belongs.
    pub fn next(&self) -> u64 {
        self.index + u64::from(self.events)
    }

    /// Where event `n` begins in its payload, if it does.
    pub fn begins(&self, payload: &[u8], n: u64) -> Option<usize> {
        if n == self.index {
            return (!self.is(CONT)).then_some(0);
        }
        let begin = self.ends(payload, n.checked_sub(1)?)? + 1;
        (begin < payload.len()).then_some(begin)
    }

    /// Where the newline behind event `n` is in its payload, if it is.
    pub fn ends(&self, payload: &[u8], n: u64) -> Option<usize> {
        let mut begin = 0;
        for _ in 0..n.checked_sub(self.index)? {
            begin += self.ends_first(&payload[begin..])? + 1;
        }
        self.ends_first(&payload[begin..]).map(|end| begin + end)
    }

    /// Where the newline behind the first event is in `rest`, the end of its payload; None when that
    /// goes on in the next block, or there is none.
    pub fn ends_first(&self, rest: &[u8]) -> Option<usize> {
        match self.is(RAW) {
            true => rest.len().checked_sub(1).filter(|_| self.events > 0),
            false => newline(rest),
        }
    }

    /// Writes header and checksum before its payload, which `bytes` holds already, behind
    /// [`HEADER`] bytes.
    pub fn seal(&mut self, seed: u64, bytes: &mut [u8]) {
        bytes[..2].copy_from_slice(&self.len.to_le_bytes());
        bytes[2..4].copy_from_slice(&self.flags.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.prev.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.events.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.index.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.time.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.view.to_le_bytes());
        self.crc = checksum(seed, self.at, bytes);
        bytes[4..8].copy_from_slice(&self.crc.to_le_bytes());
    }
}

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

/// The block at offset `at` of the log with this seed, and its payload; `bytes` are what is there,
/// up to the end of the page at most. None when it does not check.
pub fn decode(seed: u64, at: u64, bytes: &[u8]) -> Option<(Block, &[u8])> {
    let header: &[u8; HEADER] = bytes.first_chunk()?;
    // Whoever looks for a block byte by byte finds few that have no other flags.
    if u16::from_le_bytes([header[2], header[3]]) > FIRST | LAST | CONT | MORE | RAW {
        return None;
    }
    let block = Block {
        at,
        len: u16::from_le_bytes([header[0], header[1]]),
        flags: u16::from_le_bytes([header[2], header[3]]),
        crc: u32_at(header, 4),
        prev: u32_at(header, 8),
        events: u32_at(header, 12),
        index: u64_at(header, 16),
        time: u64_at(header, 24),
        view: u64_at(header, 32),
    };
    let bytes = bytes.get(..HEADER + usize::from(block.len))?;
    let bounded = block.index.max(block.view).max(block.time) < MAX;
    // Without a seed, what users wrote could be taken for one.
    let checks = seed != 0 && block.len > 0 && bounded && checksum(seed, at, bytes) == block.crc;
    checks.then_some((block, &bytes[HEADER..]))
}

/// Where the block behind one that ends at `end` begins: there, or on the next page if no block
/// with a payload fits.
pub fn place(end: u64) -> u64 {
    match PAGE - end % PAGE {
        left if left > HEADER as u64 => end,
        left => end + left,
    }
}

/// Where the first block of the page lies that `at` is in.
pub fn first_in_page(at: u64) -> u64 {
    (at - at % PAGE).max(HEAD as u64)
}

/// What an index begins with: `last`, in its upper 16 bits a checksum, and the seed. A damaged `last`
/// must not be taken for a place in a log that the disk lost: behind the end may lie what was never
/// acknowledged.
pub fn encode_index(last: u64, seed: u64) -> [u8; INDEX_HEAD] {
    let [at, seed] = [last, seed].map(u64::to_le_bytes);
    let check = u64::from(crc32c(crc32c(0, &seed), &at)) << 48;
    let mut bytes = [0; INDEX_HEAD];
    bytes[..8].copy_from_slice(&(last | check).to_le_bytes());
    bytes[8..].copy_from_slice(&seed);
    bytes
}

/// `last` and the seed that an index begins with; of one that is damaged, or not there, no `last`: 0.
pub fn decode_index(bytes: &[u8; INDEX_HEAD]) -> (u64, u64) {
    let (last, seed) = (u64_at(bytes, 0) % LONGEST, u64_at(bytes, 8));
    let checks = encode_index(last, seed) == *bytes;
    (if checks { last } else { 0 }, seed)
}

/// Where in the index the entry of the page lies that `at` is in.
pub fn entry_at(at: u64) -> u64 {
    INDEX_HEAD as u64 + at / PAGE * ENTRY as u64
}

/// At most so many bytes of log hold `bytes` of a batch.
pub fn room(bytes: u64) -> u64 {
    // A page holds less by its header, by what is left behind its last block, and the first and
    // last one by what others have there.
    bytes + (bytes / (PAGE - 2 * HEADER as u64) + 3) * 2 * HEADER as u64
}

/// How long a log that must hold `needed` bytes is made: to whole pages, and an eighth ahead (at
/// most [`STEP`]), so that most commits change no file size and `fdatasync` need not touch the
/// journal, while a small stream takes one page.
pub fn grown(needed: u64) -> u64 {
    (needed + (needed / 8).min(STEP)).next_multiple_of(PAGE)
}

/// The most that a log is longer than needed, beside rounding to pages: bytes.
pub const STEP: u64 = 4 << 20;

fn checksum(seed: u64, at: u64, block: &[u8]) -> u32 {
    let mut head = [0; 20];
    head[..8].copy_from_slice(&seed.to_le_bytes());
    head[8..16].copy_from_slice(&at.to_le_bytes());
    head[16..].copy_from_slice(&block[..4]);
    crc32c(crc32c(0, &head), &block[8..])
}

/// The number at `at` of `bytes`, which has it.
pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

fn u32_at(bytes: &[u8; HEADER], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod tests {
    use super::*;
    use prop::collection::vec;
    use prop::sample::Index;
    use proptest::prelude::*;

    const SEED: u64 = 0x0102_0304_0506_0708;

    /// A block of any flags and the documented bytes of it.
    fn sealed(seed: u64, mut block: Block, payload: &[u8]) -> (Block, Vec<u8>) {
        block.len = u16::try_from(payload.len()).unwrap();
        let mut bytes = [&[0; HEADER][..], payload].concat();
        block.seal(seed, &mut bytes);
        (block, bytes)
    }

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn layout_is_as_documented() {
        // The checksums are from another program.
        let head = Head { seed: SEED, first: 3, at: 40, view: 9 }.encode();
        let expected = "736d6f32_b11c4898_0807060504030201_0300000000000000_2800000000000000_09000000\
                        00000000";
        assert_eq!(hex(&head), expected.replace('_', ""));

        let block = Block { at: PAGE, flags: FIRST | LAST, prev: 0x0a0b_0c0d, ..Block::default() };
        let block = Block { events: 2, index: 5, time: 7, view: 11, ..block };
        let (_, bytes) = sealed(SEED, block, b"a\n\n");
        let expected = "0300_0300_81f410bb_0d0c0b0a_02000000_0500000000000000_0700000000000000_0b0000\
                        0000000000_610a0a";
        assert_eq!(hex(&bytes), expected.replace('_', ""));
        assert_eq!([FIRST, LAST, CONT, MORE, RAW], [1, 2, 4, 8, 16]);
        let (_, bytes) = sealed(0, block, b"a\n\n");
        assert_eq!(decode(0, PAGE, &bytes), None, "no log has the seed 0");
    }

    /// By what is damaged alone it is known whether it can be mended: a checksum is linear. So one
    /// head stands for all.
    #[test]
    fn one_damaged_byte_of_a_head_is_mended() {
        let head = Head { seed: SEED, first: 3, at: 40, view: 9 };
        let bytes = head.encode();
        assert_eq!(Head::decode(&bytes), Some(head));
        let step = if cfg!(miri) { 100 } else { 1 };
        for (at, wrong) in
            (0..HEAD).flat_map(|at| (1..=u8::MAX).map(move |wrong| (at, wrong))).step_by(step)
        {
            let mut damaged = bytes;
            damaged[at] ^= wrong;
            assert_eq!(Head::decode(&damaged), None);
            assert_eq!(Head::mended(&damaged), Some(head), "byte {at} is wrong by {wrong}");
        }
        assert_eq!(Head::mended(&[0; HEAD]), None);
    }

    #[test]
    fn one_damaged_byte_of_last_or_its_seed_is_no_last() {
        for last in [0, 40, 4096, LONGEST - 1] {
            let bytes = encode_index(last, SEED);
            assert_eq!(decode_index(&bytes), (last, SEED));
            for (at, wrong) in (0..INDEX_HEAD).flat_map(|at| (1..=u8::MAX).map(move |by| (at, by)))
            {
                let mut damaged = bytes;
                damaged[at] ^= wrong;
                assert_eq!(decode_index(&damaged).0, 0, "byte {at} is wrong by {wrong}");
            }
        }
        assert_eq!(decode_index(&[0; INDEX_HEAD]), (0, 0));
        assert_eq!(hex(&encode_index(0x0102_0304, SEED)), "04030201000074310807060504030201");
    }

    #[test]
    fn a_block_begins_where_the_last_one_ends_if_it_fits() {
        for end in HEAD as u64..2 * PAGE {
            let left = PAGE - end % PAGE;
            let next = if left > HEADER as u64 { end } else { end + left };
            assert_eq!(place(end), next);
        }
    }

    /// Events by their lines, where each begins.
    fn counted(block: &Block, payload: &[u8]) -> Vec<(u64, usize)> {
        let mut begins = Vec::from_iter((!block.is(CONT)).then_some((block.index, 0)));
        let mut n = block.index;
        for (at, byte) in payload.iter().enumerate().filter(|_| !block.is(RAW)) {
            n += u64::from(*byte == b'\n');
            if *byte == b'\n' && at + 1 < payload.len() {
                begins.push((n, at + 1));
            }
        }
        begins
    }

    proptest! {
        #[test]
        fn what_is_sealed_decodes(
            seed in 1u64.., at: u64, flags in 0..=FIRST | LAST | CONT | MORE | RAW, prev: u32, events: u32,
            index in 0..MAX, time in 0..MAX, view in 0..MAX,
            payload in vec(any::<u8>(), 1..300), behind: Vec<u8>,
        ) {
            let block = Block { at, flags, prev, events, index, time, view, ..Block::default() };
            let (block, mut bytes) = sealed(seed, block, &payload);
            bytes.extend(behind);
            prop_assert_eq!(decode(seed, at, &bytes), Some((block, &payload[..])));
        }

        #[test]
        fn a_block_is_valid_only_whole_and_at_its_place(
            seed in 1u64.., at: u64, other in 1u64..,
            payload in vec(any::<u8>(), 1..100), byte: Index, wrong in 1u8..,
        ) {
            let (_, mut bytes) = sealed(seed, Block { at, ..Block::default() }, &payload);
            prop_assert_eq!(decode(other, at, &bytes).is_some(), other == seed);
            prop_assert_eq!(decode(seed, other, &bytes).is_some(), other == at);
            let byte = byte.index(bytes.len());
            prop_assert_eq!(decode(seed, at, &bytes[..byte]), None);
            bytes[byte] ^= wrong;
            prop_assert_eq!(decode(seed, at, &bytes), None);
        }

        #[test]
        fn any_bytes_are_a_block_or_not(seed: u64, at: u64, bytes: Vec<u8>) {
            decode(seed, at, &bytes);
            bytes.first_chunk().map(Head::decode);
        }

        #[test]
        fn events_begin_where_counting_says(
            payload in "[ab\n]{1,40}", cont: bool, raw: bool, index in 0u64..3,
        ) {
            let payload = payload.as_bytes();
            let events = match raw {
                true => 1,
                false => payload.iter().filter(|byte| **byte == b'\n').count() as u32,
            };
            let more = payload.last() != Some(&b'\n');
            let flags = [(cont, CONT), (raw, RAW), (more, MORE)];
            let flags = flags.map(|(set, flag)| u16::from(set) * flag).iter().sum();
            let block = Block { flags, events, index, ..Block::default() };
            let (block, _) = sealed(1, block, payload);
            let begins = (0..50).filter_map(|n| Some((n, block.begins(payload, n)?)));
            prop_assert_eq!(begins.collect::<Vec<_>>(), counted(&block, payload));
        }
    }
}
