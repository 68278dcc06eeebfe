//! Bytes of a writer -> events, whatever pieces they come in.

use super::Input;
use super::memory::Memory;
use smolstore::batch::{Shape, Tally, TooLong};
use smolstore::frame::MAX_EVENT;

/// The bytes of a batch, and where they are cut into writes.
struct Written {
    bytes: Vec<u8>,
    cuts: Vec<usize>,
}

impl Written {
    /// A piece is what a byte says: some bytes of the input, or one of them many times.
    fn of(input: &mut Input<'_>) -> Written {
        let (mut bytes, mut cuts) = (Vec::new(), vec![0]);
        while !input.is_empty() && bytes.len() < 1 << 20 {
            match input.byte() {
                // More than is kept in memory; of one line.
                0xff => bytes.resize(bytes.len() + (256 << 10) - 128 + input.below(256), b'x'),
                long @ 0xf0.. => bytes.resize(bytes.len() + usize::from(long) * 16, input.byte()),
                len => bytes.extend(input.take(usize::from(len) % 64)),
            }
            cuts.push(bytes.len());
        }
        Written { bytes, cuts }
    }

    fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        self.cuts.windows(2).map(|cut| &self.bytes[cut[0]..cut[1]])
    }
}

/// The events of a batch of lines, and whether the last lacks its newline.
fn lines(bytes: &[u8]) -> (Vec<&[u8]>, bool) {
    let mut lines: Vec<&[u8]> = bytes.split(|&b| b == b'\n').collect();
    let torn = lines.pop_if(|last| last.is_empty()).is_none();
    (lines, torn)
}

/// However the bytes are cut, the events, the tally and the refusals are the same.
pub fn run(bytes: &[u8]) {
    let mut input = Input(bytes);
    let how = input.byte();
    if how % 4 == 3 {
        return sized(&mut input);
    }
    let written = Written::of(&mut input);
    let shape = if how % 4 == 2 { Shape::One } else { Shape::Lines };
    if written.bytes.len() < 1 << 14 {
        tallies(shape, &written, 0);
        tallies(shape, &written, MAX_EVENT - usize::from(how));
        splits(&written.bytes, how);
    }
    commits(shape, &written, how);
}

/// The tally of the bytes so far, behind `before` bytes of the first line.
fn tally_of(shape: Shape, before: usize, bytes: &[u8]) -> Result<Tally, TooLong> {
    let (mut lens, torn) = match shape {
        Shape::Lines => {
            let (lines, torn) = lines(bytes);
            (lines.iter().map(|line| line.len()).collect(), torn)
        }
        _ => (vec![bytes.len(); usize::from(!bytes.is_empty())], !bytes.is_empty()),
    };
    if lens.is_empty() {
        lens.push(0);
    }
    lens[0] += before;
    if lens.iter().any(|len| *len > MAX_EVENT) {
        return Err(TooLong);
    }
    let all = before + bytes.len();
    let torn = torn || bytes.is_empty();
    let last = if torn { lens[lens.len() - 1] } else { 0 };
    Ok(Tally {
        len: all as u64,
        complete: (all - last) as u64,
        events: (lens.len() - usize::from(torn)) as u64,
    })
}

/// Piece by piece, also behind a line that is already nearly as long as one may be.
fn tallies(shape: Shape, written: &Written, before: usize) {
    let mut tally = Tally { len: before as u64, ..Tally::default() };
    let mut whole = tally;
    let mut done = 0;
    for piece in written.pieces() {
        let unchanged = tally;
        let pushed = tally.push(shape, piece);
        done += piece.len();
        match tally_of(shape, before, &written.bytes[..done]) {
            Err(TooLong) => {
                assert_eq!((pushed, tally), (Err(TooLong), unchanged));
                break;
            }
            Ok(expected) => assert_eq!((pushed, tally), (Ok(()), expected)),
        }
        assert_eq!(tally.torn(), tally.len - tally.complete);
        assert_eq!(tally.all_events(), tally.events + u64::from(tally.torn() > 0));
        assert!(tally.log_bytes() >= tally.len + 16 * tally.all_events());
    }
    let expected = tally_of(shape, before, &written.bytes);
    assert_eq!(whole.push(shape, &written.bytes).map(|()| whole), expected);
}

/// Reading through a window that grows, as a batch in a file is read back, and as a whole.
fn splits(bytes: &[u8], how: u8) {
    let step = 1 + usize::from(how);
    let (mut found, mut from, mut to) = (Vec::new(), 0, 0);
    while from < bytes.len() {
        match Shape::Lines.next(&bytes[from..to], to == bytes.len()) {
            Some((event, used)) => {
                found.push(event);
                from += used;
            }
            None => to = (to + step).min(bytes.len()),
        }
    }
    assert_eq!(found, lines(bytes).0);
    assert_eq!(Shape::One.next(bytes, false), None);
    assert_eq!(Shape::One.next(bytes, true), Some((bytes, bytes.len())));
}

/// The engine stores these events, in a batch or two.
fn commits(shape: Shape, written: &Written, how: u8) {
    let store = Memory::new(1).store(false);
    let stream = store.stream("s").unwrap();
    let mut batch = stream.batch(shape);
    for piece in written.pieces() {
        assert_eq!(batch.push(piece), Ok(()));
    }
    let expected = match shape {
        Shape::Lines => lines(&written.bytes).0,
        _ => vec![&written.bytes[..]; usize::from(!written.bytes.is_empty())],
    };
    let torn = (how & 4 != 0).then(|| batch.split_torn().unwrap());
    assert_eq!(stream.commit(batch, Some(0)), Ok(0));
    let first = stream.count().unwrap();
    if let Some(torn) = torn {
        assert_eq!(stream.commit(torn, None), Ok(first));
    }
    assert_eq!(stream.count(), Ok(expected.len() as u64));
    for (event, expected) in stream.read(0).unwrap().zip(&expected) {
        assert_eq!(event.unwrap().bytes, *expected);
    }
}

/// Events with their lengths before them; what is not one whole event is none yet.
fn sized(input: &mut Input<'_>) {
    let any = input.0;
    if let Some((event, used)) = Shape::Sized.next(any, true) {
        let len = u32::from_le_bytes([any[0], any[1], any[2], any[3]]) as usize;
        assert_eq!((event, used), (&any[4..4 + len], 4 + len));
    } else {
        assert!(
            any.len() < 4
                || any.len() - 4 < u32::from_le_bytes([any[0], any[1], any[2], any[3]]) as usize
        );
    }
    let (mut events, mut bytes, mut tally) = (Vec::new(), Vec::new(), Tally::default());
    while !input.is_empty() {
        let event = input.bytes();
        let one = [&(event.len() as u32).to_le_bytes()[..], event].concat();
        assert_eq!(tally.push(Shape::Sized, &one), Ok(()));
        bytes.extend(one);
        events.push(event);
    }
    assert_eq!((tally.len, tally.complete), (bytes.len() as u64, bytes.len() as u64));
    assert_eq!((tally.events, tally.all_events()), (events.len() as u64, events.len() as u64));
    let mut rest = &bytes[..];
    for event in events {
        let (found, used) = Shape::Sized.next(rest, false).unwrap();
        assert_eq!((found, used), (event, 4 + event.len()));
        rest = &rest[used..];
    }
    assert!(rest.is_empty());
}
