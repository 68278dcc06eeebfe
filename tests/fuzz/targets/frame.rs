//! Bytes <-> frame.

use super::Input;
use smolstore::frame::{Found, HEADER, MAX_EVENT, decode, encode, extent};

/// A frame, as the format describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Parsed<'a> {
    pub(super) first: bool,
    pub(super) last: bool,
    pub(super) time: u64,
    pub(super) payload: &'a [u8],
}

impl Parsed<'_> {
    pub(super) fn size(&self) -> usize {
        HEADER + self.payload.len() + 1
    }
}

/// The frame of event `index` at the beginning of `bytes`, when there is a valid one.
pub(super) fn parse(index: u64, bytes: &[u8]) -> Option<Parsed<'_>> {
    let (head, rest) = bytes.split_at_checked(16)?;
    let number = |bytes: &[u8]| bytes.iter().rfold(0, |n, &b| n << 8 | u64::from(b));
    let (word, crc, time) = (number(&head[..4]), number(&head[4..8]), number(&head[8..]));
    let payload = rest.get(..(word % (1 << 30)) as usize)?;
    let sound =
        payload.len() <= 16 * 1024 * 1024 && time > 0 && rest.get(payload.len()) == Some(&10);
    let covered = [&index.to_le_bytes(), &head[..4], &head[8..], payload].concat();
    let checks = sound && u64::from(smolstore::sys::crc32c(0, &covered)) == crc;
    checks.then_some(Parsed { first: word >> 30 & 1 == 1, last: word >> 31 == 1, time, payload })
}

/// Any bytes are read as the format says; what is written is read again, only whole and only at
/// its own index.
pub fn run(bytes: &[u8]) {
    let mut input = Input(bytes);
    let (index, how) = (input.u64(), input.byte());
    let mut bytes = input.0.to_vec();
    if how & 1 == 1 && bytes.len() > HEADER {
        mend(index, &mut bytes);
    }
    reads_as_documented(index, &bytes);
    for at in 0..bytes.len().min(64) {
        reads_as_documented(index, &bytes[at..]);
    }
    round_trip(index, how, &bytes);
}

/// Makes a frame of what is nearly one: no fuzzer finds a checksum.
fn mend(index: u64, bytes: &mut [u8]) {
    let length = (bytes.len() - HEADER - 1) as u32;
    let word = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) & 0xc000_0000 | length;
    bytes[..4].copy_from_slice(&word.to_le_bytes());
    *bytes.last_mut().unwrap() = b'\n';
    let payload = &bytes[HEADER..bytes.len() - 1];
    let covered = [&index.to_le_bytes(), &bytes[..4], &bytes[8..16], payload].concat();
    bytes[4..8].copy_from_slice(&smolstore::sys::crc32c(0, &covered).to_le_bytes());
}

fn reads_as_documented(index: u64, bytes: &[u8]) {
    let expected = parse(index, bytes);
    let extent = extent(bytes);
    assert!((HEADER..=HEADER + MAX_EVENT + 1).contains(&extent));
    match decode(index, bytes) {
        Found::Frame(frame) => {
            let found = Parsed {
                first: frame.first,
                last: frame.last,
                time: frame.time,
                payload: frame.payload(),
            };
            assert_eq!(Some(found), expected);
            assert_eq!(frame.size(), extent as u64);
            assert_eq!(frame.line.last(), Some(&b'\n'));
        }
        Found::Zeros => assert!(bytes[..HEADER].iter().all(|&b| b == 0)),
        // More bytes can be had; so many tell.
        Found::Short(needed) => {
            assert!(needed > bytes.len() && expected.is_none());
            assert!(bytes.len() < HEADER || needed == extent);
            if needed > HEADER && needed < 1 << 14 {
                let mut longer = bytes.to_vec();
                longer.resize(needed, b'\n');
                assert!(!matches!(decode(index, &longer), Found::Short(_)));
            }
        }
        Found::Bad => assert!(bytes.len() >= HEADER && expected.is_none()),
    }
}

fn round_trip(index: u64, how: u8, payload: &[u8]) {
    let (first, last) = (how & 2 != 0, how & 4 != 0);
    let time = 1 + u64::from(how);
    let mut bytes = vec![how; 3];
    encode(&mut bytes, index, time, first, last, payload);
    let bytes = &mut bytes[3..];
    let written = Parsed { first, last, time, payload };
    assert_eq!(parse(index, bytes), Some(written));
    reads_as_documented(index, bytes);
    assert_eq!(decode(index ^ 1 << (how % 64), bytes), Found::Bad);
    let whole = bytes.len();
    assert!(
        matches!(decode(index, &bytes[..whole - 1]), Found::Short(n) if n == whole || whole == HEADER + 1)
    );
    let at = usize::from(how) * 7 % whole;
    bytes[at] ^= 1 << (how % 8);
    assert!(!matches!(decode(index, bytes), Found::Frame(_)));
}
