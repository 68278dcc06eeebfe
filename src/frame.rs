//! Bytes <-> frame: one event as it lies in a log, and every constant of the format.
//!
//! ```text
//! len u32 | crc u32 | time u64 | payload (len bytes) | '\n'        little-endian
//! ```
//!
//! `len`: the low 30 bits are the payload's length; bit 30 is set on the first event of a batch,
//! bit 31 on its last. `crc`: CRC-32C (Castagnoli, RFC 3720 appendix B.4) of (index u64, len u32,
//! time u64, payload), so that a frame is valid only at its own index. `time`: nanoseconds since
//! the Unix epoch, never 0; with it a valid frame is never all zeros, and preallocated zeros mark
//! the end of a log by themselves.
//!
//! Pure: knows no file, clock or thread.

use crate::sys::crc32c;

/// Bytes of a frame before its payload.
pub const HEADER: usize = 16;
/// Bytes of a frame beside its payload: the header and the newline behind it.
pub const OVERHEAD: u64 = HEADER as u64 + 1;
/// The longest payload of one event: 16 MiB.
pub const MAX_EVENT: usize = 16 << 20;

const FIRST: u32 = 1 << 30;
const LAST: u32 = 1 << 31;
const LENGTH: u32 = FIRST - 1;

/// An event as found in a log, its checksum verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// It begins a batch.
    pub first: bool,
    /// It ends a batch.
    pub last: bool,
    /// When its batch was committed: nanoseconds since the Unix epoch.
    pub time: u64,
    /// The event's bytes and the newline behind them, which is not part of the event.
    pub line: &'a [u8],
}

impl<'a> Frame<'a> {
    /// The event's bytes.
    pub fn payload(&self) -> &'a [u8] {
        &self.line[..self.line.len() - 1]
    }

    /// Bytes the frame takes in the log.
    pub fn size(&self) -> u64 {
        (HEADER + self.line.len()) as u64
    }
}

/// What lies at a place of a log.
#[derive(Debug, PartialEq, Eq)]
pub enum Found<'a> {
    /// A frame that is valid for the index asked for.
    Frame(Frame<'a>),
    /// Zeros where a header would be: nothing was written here.
    Zeros,
    /// This many bytes are needed to tell.
    Short(usize),
    /// Anything else.
    Bad,
}

/// Appends to `out` the frame of event `index`. `payload` is at most [`MAX_EVENT`] bytes.
pub fn encode(out: &mut Vec<u8>, index: u64, time: u64, first: bool, last: bool, payload: &[u8]) {
    debug_assert!(payload.len() <= MAX_EVENT && time != 0);
    let mut len = u32::try_from(payload.len()).unwrap_or(LENGTH);
    len |= if first { FIRST } else { 0 } | if last { LAST } else { 0 };
    let mut header = [0; HEADER];
    header[..4].copy_from_slice(&len.to_le_bytes());
    header[4..8].copy_from_slice(&checksum(index, len, time, payload).to_le_bytes());
    header[8..].copy_from_slice(&time.to_le_bytes());
    out.reserve(HEADER + payload.len() + 1);
    out.extend_from_slice(&header);
    out.extend_from_slice(payload);
    out.push(b'\n');
}

/// How many bytes the frame takes that `bytes` begins with, as far as its header tells.
pub fn extent(bytes: &[u8]) -> usize {
    match bytes.first_chunk::<4>() {
        Some(len) if bytes[4..].iter().take(12).any(|&b| b != 0) => {
            let length = (u32::from_le_bytes(*len) & LENGTH) as usize;
            if length > MAX_EVENT { HEADER } else { HEADER + length + 1 }
        }
        _ => HEADER,
    }
}

/// Reads what `bytes` begins with, taken as the frame of event `index`.
pub fn decode(index: u64, bytes: &[u8]) -> Found<'_> {
    let Some((header, rest)) = bytes.split_first_chunk::<HEADER>() else {
        return Found::Short(HEADER);
    };
    if *header == [0; HEADER] {
        return Found::Zeros;
    }
    let len = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
    let crc = u32::from_le_bytes([header[4], header[5], header[6], header[7]]);
    let [.., t0, t1, t2, t3, t4, t5, t6, t7] = *header;
    let time = u64::from_le_bytes([t0, t1, t2, t3, t4, t5, t6, t7]);
    let length = (len & LENGTH) as usize;
    if length > MAX_EVENT || time == 0 {
        return Found::Bad;
    }
    let Some(line) = rest.get(..=length) else {
        return Found::Short(HEADER + length + 1);
    };
    if line[length] != b'\n' || crc != checksum(index, len, time, &line[..length]) {
        return Found::Bad;
    }
    Found::Frame(Frame { first: len & FIRST != 0, last: len & LAST != 0, time, line })
}

fn checksum(index: u64, len: u32, time: u64, payload: &[u8]) -> u32 {
    // In the words it is read in again at once: the processor need not wait for memory.
    let mut head = [0; 20];
    head[..8].copy_from_slice(&index.to_le_bytes());
    head[8..16].copy_from_slice(&(time << 32 | u64::from(len)).to_le_bytes());
    head[16..].copy_from_slice(&((time >> 32) as u32).to_le_bytes());
    crc32c(crc32c(0, &head), payload)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn framed(index: u64, first: bool, last: bool, payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        encode(&mut out, index, 7, first, last, payload);
        out
    }

    #[test]
    fn layout_is_as_documented() {
        let bytes = framed(3, true, false, b"ab");
        assert_eq!(&bytes[..4], &[2, 0, 0, 0x40]);
        assert_eq!(&bytes[8..16], &7u64.to_le_bytes());
        assert_eq!(&bytes[16..], b"ab\n");
    }

    #[test]
    fn zeros_short_and_garbage_are_told_apart() {
        assert_eq!(decode(0, &[0; 40]), Found::Zeros);
        assert_eq!(decode(0, &[0; 15]), Found::Short(16));
        assert_eq!(decode(0, &[0xff; 40]), Found::Bad);
        let bytes = framed(0, true, true, b"abc");
        assert_eq!(decode(0, &bytes[..17]), Found::Short(20));
    }

    proptest! {
        #[test]
        fn what_is_encoded_decodes(index: u64, time in 1u64.., first: bool, last: bool,
                                   payload: Vec<u8>, behind: Vec<u8>) {
            let mut out = Vec::new();
            encode(&mut out, index, time, first, last, &payload);
            let size = out.len() as u64;
            out.extend(behind);
            let Found::Frame(frame) = decode(index, &out) else { panic!("not a frame") };
            prop_assert_eq!((frame.first, frame.last, frame.time), (first, last, time));
            prop_assert_eq!(frame.payload(), &payload[..]);
            prop_assert_eq!(frame.size(), size);
        }

        #[test]
        fn a_frame_is_valid_only_at_its_index_and_whole(index: u64, other: u64, payload: Vec<u8>,
                                                        at: prop::sample::Index, bit in 0u8..8) {
            let mut bytes = framed(index, true, true, &payload);
            if other != index {
                prop_assert_eq!(decode(other, &bytes), Found::Bad);
            }
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            prop_assert!(!matches!(decode(index, &bytes), Found::Frame(_)));
        }

        #[test]
        fn any_bytes_decode_to_something(index: u64, bytes: Vec<u8>) {
            decode(index, &bytes);
        }
    }
}
