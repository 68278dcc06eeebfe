//! Format 2 as the design describes it, a second time and as plainly as it can be said: what a log should hold is
//! worked out here, not by what is being tested.

use std::os::unix::fs::FileExt;

pub const PAGE: usize = 4096;
pub const HEAD: usize = 40;
pub const HEADER: usize = 40;

pub const FIRST: u16 = 1;
pub const LAST: u16 = 2;
pub const CONT: u16 = 4;
pub const MORE: u16 = 8;

/// A block whose checksum holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    pub at: usize,
    pub flags: u16,
    pub crc: u32,
    pub prev: u32,
    pub events: u64,
    pub index: u64,
    pub time: u64,
    pub view: usize,
    pub payload: Vec<u8>,
}

impl Block {
    pub fn end(&self) -> usize {
        self.at + HEADER + self.payload.len()
    }

    /// The event of the byte behind it.
    pub fn next(&self) -> u64 {
        self.index + self.events
    }

    /// As it is in a log of this seed.
    pub fn encode(&self, seed: u64) -> Vec<u8> {
        let mut bytes = (self.payload.len() as u16).to_le_bytes().to_vec();
        bytes.extend(self.flags.to_le_bytes());
        let mut rest = self.prev.to_le_bytes().to_vec();
        rest.extend((self.events as u32).to_le_bytes());
        for word in [self.index, self.time, self.view as u64] {
            rest.extend(word.to_le_bytes());
        }
        rest.extend(&self.payload);
        let place = [seed.to_le_bytes(), (self.at as u64).to_le_bytes()].concat();
        bytes.extend(crc32c(&[&place[..], &bytes, &rest].concat()).to_le_bytes());
        bytes.extend(rest);
        bytes
    }
}

/// CRC-32C, bit by bit.
pub fn crc32c(bytes: &[u8]) -> u32 {
    let crc = bytes.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ ((crc & 1) * 0x82f6_3b78))
    });
    !crc
}

pub fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

/// What an index begins with that says: the last block is there, of a log of this seed.
pub fn index_head(last: u64, seed: u64) -> [u8; 16] {
    let [at, seed] = [last, seed].map(u64::to_le_bytes);
    let check = u64::from(crc32c(&[seed, at].concat()) as u16) << 48;
    [(last | check).to_le_bytes(), seed].concat().try_into().unwrap()
}

/// Where an index says that the last block is; 0 where that is damaged.
pub fn last(index: &[u8]) -> u64 {
    let (last, seed) = (u64_at(index, 0) & ((1 << 48) - 1), u64_at(index, 8));
    if index[..16] == index_head(last, seed) { last } else { 0 }
}

/// Makes the index of a stream in this directory say that the last block is there.
pub fn set_last(stream: &std::path::Path, last: u64) {
    let index = std::fs::File::options().read(true).write(true).open(stream.join("index")).unwrap();
    let mut seed = [0; 8];
    index.read_exact_at(&mut seed, 8).unwrap();
    index.write_all_at(&index_head(last, u64::from_le_bytes(seed)), 0).unwrap();
}

/// What the head of a log says: seed, first, at, view; when it checks.
pub fn head(log: &[u8]) -> Option<[u64; 4]> {
    let head = log.get(..HEAD)?;
    let checks = u32_at(head, 4) == crc32c(&[&head[..4], &head[8..]].concat());
    (&head[..4] == b"smo2" && checks).then(|| [8, 16, 24, 32].map(|at| u64_at(head, at)))
}

/// The block at `at`, when it checks.
pub fn block(log: &[u8], seed: u64, at: usize) -> Option<Block> {
    let page = &log[..log.len().min(at - at % PAGE + PAGE)];
    let header = page.get(at..at + HEADER)?;
    let len = usize::from(u16::from_le_bytes([header[0], header[1]]));
    let block = Block {
        at,
        flags: u16::from_le_bytes([header[2], header[3]]),
        crc: u32_at(header, 4),
        prev: u32_at(header, 8),
        events: u32_at(header, 12).into(),
        index: u64_at(header, 16),
        time: u64_at(header, 24),
        view: u64_at(header, 32) as usize,
        payload: page.get(at + HEADER..at + HEADER + len)?.to_vec(),
    };
    (len > 0 && u32_at(&block.encode(seed), 4) == block.crc).then_some(block)
}

/// Where the block behind one that ends there begins.
pub fn place(end: usize) -> usize {
    let left = PAGE - end % PAGE;
    if left < HEADER + 1 { end + left } else { end }
}

/// All blocks of a log, one behind the other, in which nothing is damaged.
pub fn blocks(log: &[u8]) -> Vec<Block> {
    let Some([seed, ..]) = head(log) else {
        return Vec::new();
    };
    let mut found: Vec<Block> = Vec::new();
    loop {
        let (at, crc) = found.last().map_or((HEAD, 0), |last| (place(last.end()), last.crc));
        match block(log, seed, at).filter(|block| block.prev == crc) {
            Some(block) => found.push(block),
            None => return found,
        }
    }
}
