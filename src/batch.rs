//! Bytes of a writer -> events.
//!
//! Pure: knows no file, clock or thread. [`Tally`] follows the bytes of a batch as they are
//! written, whatever pieces they come in; [`Shape::next`] takes them apart again at the commit,
//! when index and time are known.

use crate::frame::{MAX_EVENT, OVERHEAD};
use crate::sys::newline;

/// How the bytes of a batch divide into events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// A line is an event; the last one may lack its newline.
    Lines,
    /// All of it is one event.
    One,
    /// Before each event its length, a little-endian u32.
    Sized,
}

impl Shape {
    /// The next event at the beginning of `bytes`, and how many bytes it took. None when there is
    /// none yet; `whole` says that no more bytes will come.
    pub fn next(self, bytes: &[u8], whole: bool) -> Option<(&[u8], usize)> {
        match self {
            Shape::Lines => match newline(bytes) {
                Some(end) => Some((&bytes[..end], end + 1)),
                None if whole && !bytes.is_empty() => Some((bytes, bytes.len())),
                None => None,
            },
            Shape::One => whole.then_some((bytes, bytes.len())),
            Shape::Sized => {
                let (len, rest) = bytes.split_first_chunk()?;
                let len = u32::from_le_bytes(*len) as usize;
                Some((rest.get(..len)?, 4 + len))
            }
        }
    }
}

/// An event is longer than [`MAX_EVENT`].
#[derive(Debug, PartialEq, Eq)]
pub struct TooLong;

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
    /// Counts `bytes` in. Of [`Shape::Sized`] they must be whole events, of [`Shape::One`] the
    /// event is never complete before the batch is.
    pub fn push(&mut self, shape: Shape, bytes: &[u8]) -> Result<(), TooLong> {
        let torn = self.torn();
        match shape {
            Shape::One if self.len + bytes.len() as u64 > MAX_EVENT as u64 => return Err(TooLong),
            Shape::One => {}
            Shape::Lines => {
                if torn + bytes.len() as u64 > MAX_EVENT as u64 {
                    check_lines(torn, bytes)?;
                }
                if let Some(last) = bytes.iter().rposition(|&b| b == b'\n') {
                    self.complete = self.len + last as u64 + 1;
                    self.events += newlines(bytes);
                }
            }
            Shape::Sized => {
                if bytes.len() > MAX_EVENT + 4 {
                    return Err(TooLong);
                }
                self.events += 1;
                self.complete = self.len + bytes.len() as u64;
            }
        }
        self.len += bytes.len() as u64;
        Ok(())
    }

    /// Bytes behind the last complete event.
    pub fn torn(&self) -> u64 {
        self.len - self.complete
    }

    /// The events there are when the batch ends here.
    pub fn all_events(&self) -> u64 {
        self.events + u64::from(self.torn() > 0)
    }

    /// At most this many bytes of log the batch takes when it ends here.
    pub fn log_bytes(&self) -> u64 {
        self.len + OVERHEAD * self.all_events()
    }
}

fn newlines(bytes: &[u8]) -> u64 {
    // Blocks of 255 let the compiler count in bytes.
    let count = |block: &[u8]| u64::from(block.iter().fold(0u8, |n, &b| n + u8::from(b == b'\n')));
    bytes.chunks(255).map(count).sum()
}

fn check_lines(torn: u64, bytes: &[u8]) -> Result<(), TooLong> {
    let mut before = torn;
    for line in bytes.split(|&b| b == b'\n') {
        if before + line.len() as u64 > MAX_EVENT as u64 {
            return Err(TooLong);
        }
        before = 0;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn split(shape: Shape, mut bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut events = Vec::new();
        while let Some((event, used)) = shape.next(bytes, true).filter(|(_, used)| *used > 0) {
            events.push(event.to_vec());
            bytes = &bytes[used..];
        }
        events
    }

    #[test]
    fn lines_are_events_as_documented() {
        let split = |bytes: &str| split(Shape::Lines, bytes.as_bytes());
        assert_eq!(split("a\n\nb\r\n"), [&b"a"[..], b"", b"b\r"]);
        assert_eq!(split("a\nb"), [b"a", b"b"]);
        assert_eq!(split("\n"), [b""]);
        assert!(split("").is_empty());
        assert_eq!(Shape::Lines.next(b"torn", false), None);
    }

    #[test]
    fn the_longest_event_is_16_mib() {
        let line = vec![b'x'; MAX_EVENT + 1];
        for (shape, before) in [(Shape::Lines, &b"before\n"[..]), (Shape::One, b"")] {
            let mut tally = Tally::default();
            tally.push(shape, before).unwrap();
            assert_eq!(tally.push(shape, &line), Err(TooLong));
            tally.push(shape, &line[1..]).unwrap();
            assert_eq!(tally.push(shape, b"y"), Err(TooLong));
        }
    }

    proptest! {
        #[test]
        fn lines_are_what_a_line_reader_sees(bytes in "[ab\n]{0,300}", cuts: Vec<prop::sample::Index>) {
            let expected: Vec<Vec<u8>> = bytes.split_inclusive('\n')
                .map(|line| line.strip_suffix('\n').unwrap_or(line).as_bytes().to_vec()).collect();
            prop_assert_eq!(split(Shape::Lines, bytes.as_bytes()), expected.clone());

            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            cuts.sort_unstable();
            let mut tally = Tally::default();
            let mut from = 0;
            for to in cuts.into_iter().chain([bytes.len()]) {
                tally.push(Shape::Lines, &bytes.as_bytes()[from..to]).unwrap();
                from = to;
            }
            prop_assert_eq!(tally.len, bytes.len() as u64);
            prop_assert_eq!(tally.all_events(), expected.len() as u64);
            prop_assert_eq!(tally.complete, bytes.rfind('\n').map_or(0, |at| at as u64 + 1));
        }

        #[test]
        fn sized_events_hold_any_bytes(events: Vec<Vec<u8>>) {
            let mut bytes = Vec::new();
            for event in &events {
                bytes.extend(u32::try_from(event.len()).unwrap().to_le_bytes());
                bytes.extend(event);
            }
            prop_assert_eq!(split(Shape::Sized, &bytes), events);
        }

        #[test]
        fn newlines_are_counted_and_found(bytes in prop::collection::vec(prop_oneof![Just(b'\n'), any::<u8>()], 0..2000)) {
            prop_assert_eq!(newlines(&bytes), bytes.iter().filter(|&&b| b == b'\n').count() as u64);
            prop_assert_eq!(newline(&bytes), bytes.iter().position(|&b| b == b'\n'));
        }
    }
}
