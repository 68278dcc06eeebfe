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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page::{HEAD, room};
    use crate::walk::{self, Pages, Walked};
    use prop::collection::vec;
    use prop::sample::Index;
    use proptest::prelude::*;

    type Part = (Shape, Vec<u8>);

    /// A commit's blocks as they are in the log, which begins with zeros; the entries of the index,
    /// which does, too; the tip.
    #[derive(Debug, PartialEq)]
    struct Made {
        log: Vec<u8>,
        index: Vec<u8>,
        tip: Tip,
    }

    impl Made {
        fn put(file: &mut Vec<u8>, (at, bytes): (u64, Vec<u8>)) {
            assert!(bytes.is_empty() || at as usize >= file.len(), "from front to back, once");
            file.resize(file.len().max(at as usize), 0);
            file.extend(bytes);
        }

        fn take(&mut self, blocks: &mut Blocks) {
            Made::put(&mut self.log, blocks.take());
            blocks.take_entries().into_iter().for_each(|some| Made::put(&mut self.index, some));
        }

        /// Each part in as many pieces as there are cuts and one; what is whole is taken at some.
        fn of(tip: &Tip, parts: &[Part], cuts: &[(Index, bool)]) -> Made {
            let mut blocks = Blocks::new(7, tip, tip.time + 1);
            let mut made = Made { log: Vec::new(), index: Vec::new(), tip: *tip };
            for (shape, bytes) in parts {
                let cut = |(cut, take): &(Index, bool)| (cut.index(bytes.len() + 1), *take);
                let mut cuts: Vec<_> = cuts.iter().map(cut).collect();
                cuts.sort_unstable();
                let mut from = 0;
                for (to, take) in cuts.into_iter().chain([(bytes.len(), false)]) {
                    blocks.push(*shape, &bytes[from..to]);
                    from = to;
                    if take {
                        made.take(&mut blocks);
                    }
                }
                blocks.end(*shape);
            }
            made.tip = blocks.finish();
            made.take(&mut blocks);
            assert_eq!((blocks.len(), blocks.take_entries()), (0, None), "all of it is taken");
            made
        }

        /// Block by block, each where the one before leads, with what is documented of it.
        fn checked(&self, tip: &Tip) -> Vec<(Block, &[u8])> {
            let (mut blocks, mut here) = (Vec::new(), *tip);
            while here.end < self.tip.end {
                let at = page::place(here.end);
                let left = self.log.len().min((at - at % PAGE + PAGE) as usize);
                let (block, payload) = page::decode(7, at, &self.log[at as usize..left]).unwrap();
                assert!(here.leads_to(&block) && block.time == tip.time + 1);
                let newlines = payload.iter().filter(|byte| **byte == b'\n').count() as u32;
                let (ended, open) = match block.is(RAW) {
                    true => (u32::from(!block.is(MORE)), block.is(MORE)),
                    false => (newlines, payload.last() != Some(&b'\n')),
                };
                assert_eq!((block.events, block.is(MORE)), (ended, open));
                if at.is_multiple_of(PAGE) {
                    let entry = page::entry_at(at) as usize;
                    let expected = [block.index.to_le_bytes(), block.view.to_le_bytes()].concat();
                    assert_eq!(self.index[entry..][..ENTRY], expected);
                }
                here = Tip::from(&block);
                blocks.push((block, payload));
            }
            assert_eq!(here, self.tip);
            for pair in blocks.windows(2) {
                let [(one, _), (next, _)] = pair else { continue };
                assert_eq!(one.is(MORE), next.is(CONT));
                // As large as page and commit allow.
                let full = one.end().is_multiple_of(PAGE);
                assert!(full || (!one.is(MORE) && (one.is(RAW) || next.is(RAW))));
            }
            blocks
        }
    }

    impl Pages for &Made {
        type Error = ();

        fn page(&mut self, at: u64) -> Result<&[u8], ()> {
            let end = self.log.len().min((at - at % PAGE + PAGE) as usize);
            Ok(self.log.get(at as usize..end).unwrap_or_default())
        }

        fn end(&self) -> u64 {
            self.log.len() as u64
        }
    }

    /// Each event and a newline.
    fn view(parts: &[Part]) -> (Vec<u8>, u64) {
        let (mut view, mut events) = (Vec::new(), 0);
        for (shape, bytes) in parts {
            view.extend(bytes);
            if *shape == Shape::One || !matches!(bytes.last(), None | Some(b'\n')) {
                view.push(b'\n');
            }
            events += match shape {
                Shape::One => 1,
                Shape::Lines => bytes.split_inclusive(|byte| *byte == b'\n').count() as u64,
            };
        }
        (view, events)
    }

    /// Short ones mostly, some over a few pages.
    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        let byte = || prop_oneof![Just(b'\n'), Just(b'a'), any::<u8>()];
        let short = vec(byte(), 1..40);
        prop_oneof![4 => short, 1 => vec(byte(), 3900..4200), 1 => vec(0u8.., 8000..9000)]
    }

    fn part() -> impl Strategy<Value = Part> {
        let shape = prop_oneof![Just(Shape::Lines), Just(Shape::One)];
        (shape, bytes())
    }

    /// Any place in a page.
    fn tip() -> impl Strategy<Value = Tip> {
        let end = HEAD as u64..2 * PAGE + 1;
        (end, any::<u32>(), 0..1000u64, 0..100_000u64).prop_map(|(end, crc, count, view)| Tip {
            at: end.saturating_sub(41),
            end,
            crc,
            count,
            view,
            time: 5,
            whole: true,
        })
    }

    #[test]
    fn blocks_are_as_documented() {
        let parts = [(Shape::Lines, b"a\n\nb".to_vec()), (Shape::One, b"x\ny".to_vec())];
        let made = Made::of(&Tip::default(), &parts, &[]);
        let blocks = made.checked(&Tip::default());
        let told = |(block, payload): &(Block, &[u8])| {
            (block.at, block.flags, block.events, block.index, block.view, payload.to_vec())
        };
        let expected = [
            (40, FIRST, 3, 0, 0, b"a\n\nb\n".to_vec()),
            (85, LAST | RAW, 1, 3, 5, b"x\ny\n".to_vec()),
        ];
        assert_eq!(blocks.iter().map(told).collect::<Vec<_>>(), expected);
        assert_eq!((made.tip.end, made.tip.count, made.tip.view), (129, 4, 9));
    }

    proptest! {
        #[test]
        fn blocks_hold_the_view_however_it_came(
            tip in tip(), parts in vec(part(), 1..6), cuts in vec(any::<(Index, bool)>(), 0..6),
        ) {
            let made = Made::of(&tip, &parts, &[]);
            prop_assert_eq!(&Made::of(&tip, &parts, &cuts), &made);
            let blocks = made.checked(&tip);
            let (view, events) = view(&parts);
            let payloads: Vec<&[u8]> = blocks.iter().map(|(_, payload)| *payload).collect();
            prop_assert_eq!(payloads.concat(), view);
            prop_assert_eq!(made.tip.count, tip.count + events);
            let bytes = parts.iter().map(|(_, bytes)| bytes.len()).sum::<usize>() as u64;
            let most = room(bytes + parts.len() as u64 * 2 * HEADER as u64);
            prop_assert!(made.tip.end - tip.end <= most);

            let walked = walk::walk(&mut &made, 7, tip, 0, &mut |gap| panic!("{gap:?}"));
            let start = Some(page::place(tip.end));
            prop_assert_eq!(walked, Ok(Walked { tip: made.tip, start }));
        }

        #[test]
        fn a_tally_is_what_a_line_reader_sees(bytes in "[ab\n]{0,300}", cuts: Vec<Index>) {
            let lines = bytes.split_inclusive('\n').count() as u64;
            let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            cuts.sort_unstable();
            for shape in [Shape::Lines, Shape::One] {
                let (mut tally, mut from) = (Tally::default(), 0);
                for &to in cuts.iter().chain([&bytes.len()]) {
                    tally.push(shape, &bytes.as_bytes()[from..to]);
                    from = to;
                }
                let (complete, events) = match shape {
                    Shape::Lines => (bytes.rfind('\n').map_or(0, |at| at as u64 + 1), lines),
                    Shape::One => (0, lines.min(1)),
                };
                let expected = (bytes.len() as u64, complete, events);
                prop_assert_eq!((tally.len, tally.complete, tally.all_events()), expected);
                prop_assert_eq!(tally.torn(), tally.len - tally.complete);
            }
        }

        #[test]
        fn newlines_are_counted(bytes in vec(prop_oneof![Just(b'\n'), any::<u8>()], 0..2000)) {
            prop_assert_eq!(newlines(&bytes), bytes.iter().filter(|&&b| b == b'\n').count() as u64);
        }
    }
}
