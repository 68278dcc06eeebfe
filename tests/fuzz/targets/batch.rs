//! Bytes of a writer -> events -> blocks, whatever pieces they come in.

use super::memory::Memory;
use super::page::place;
use super::script::{Part, SEED, lay};
use super::{Input, model};
use smolstore::batch::{Blocks, Shape, Tally};
use smolstore::page::room;
use smolstore::stream::{Batch, Stream};
use smolstore::walk::Tip;
use std::collections::BTreeMap;
use std::sync::{Arc, mpsc};

/// The bytes of a batch, and where they are cut into writes.
struct Written {
    shape: Shape,
    bytes: Vec<u8>,
    cuts: Vec<usize>,
}

impl Written {
    /// A piece is what a byte says: some bytes of the input, or one of them many times; 0 ends it.
    fn of(shape: Shape, input: &mut Input<'_>) -> Written {
        let (mut bytes, mut cuts) = (Vec::new(), vec![0]);
        while !input.is_empty() && bytes.len() < 1 << 20 {
            match input.byte() {
                0 => break,
                // More than is kept in memory; of one line.
                0xff => bytes.resize(bytes.len() + (256 << 10) - 128 + input.below(256), b'x'),
                long @ 0xf0.. => bytes.resize(bytes.len() + usize::from(long) * 16, input.byte()),
                len => bytes.extend(input.take(usize::from(len) % 64)),
            }
            cuts.push(bytes.len());
        }
        Written { shape, bytes, cuts }
    }

    fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        self.cuts.windows(2).map(|cut| &self.bytes[cut[0]..cut[1]])
    }

    fn events(&self) -> Vec<&[u8]> {
        match self.shape {
            Shape::Lines => lines(&self.bytes).0,
            Shape::One => Vec::from_iter(Some(&self.bytes[..]).filter(|bytes| !bytes.is_empty())),
        }
    }

    fn tally(&self) {
        let (mut tally, mut done) = (Tally::default(), 0);
        for piece in self.pieces() {
            tally.push(self.shape, piece);
            done += piece.len();
            assert_eq!(tally, tally_of(self.shape, &self.bytes[..done]));
            assert_eq!(tally.torn(), tally.len - tally.complete);
            assert_eq!(tally.all_events(), tally.events + u64::from(tally.torn() > 0));
        }
    }

    fn batch(&self, stream: &Arc<Stream<Memory>>) -> Batch<Memory> {
        let mut batch = stream.batch(self.shape);
        assert!(self.pieces().all(|piece| batch.push(piece) == Ok(())));
        batch
    }
}

/// The events of a batch of lines, and whether the last lacks its newline.
fn lines(bytes: &[u8]) -> (Vec<&[u8]>, bool) {
    let mut lines: Vec<&[u8]> = bytes.split(|&b| b == b'\n').collect();
    let torn = lines.pop_if(|last| last.is_empty()).is_none();
    (lines, torn)
}

fn tally_of(shape: Shape, bytes: &[u8]) -> Tally {
    let len = bytes.len() as u64;
    if shape == Shape::One {
        return Tally { len, ..Tally::default() };
    }
    let (lines, torn) = lines(bytes);
    let last = if torn { lines[lines.len() - 1].len() as u64 } else { 0 };
    Tally { len, complete: len - last, events: (lines.len() - usize::from(torn)) as u64 }
}

/// However the bytes are cut, tally, blocks and events are the same.
pub fn run(bytes: &[u8]) {
    let mut input = Input(bytes);
    let how = input.byte();
    let mut all = Vec::new();
    while !input.is_empty() && all.len() < 8 {
        let shape = if input.byte() % 4 == 0 { Shape::One } else { Shape::Lines };
        all.push(Written::of(shape, &mut input));
    }
    if all.iter().map(|written| written.bytes.len()).sum::<usize>() < 1 << 15 {
        all.iter().for_each(Written::tally);
        blocks(&all, how);
    }
    match how % 3 {
        0 => single(&all),
        1 => grouped(&all),
        _ => torn(&all),
    }
}

/// They are what the format says, in the order in which they are taken, and no more than was
/// reserved for them.
fn blocks(all: &[Written], how: u8) {
    let mut all: Vec<&Written> = all.iter().filter(|written| !written.bytes.is_empty()).collect();
    all.truncate(1 + usize::from(how) % 8);
    if all.is_empty() {
        return;
    }
    let end = 40 + u64::from(how) * 33;
    let tip = Tip { end, crc: 7, count: 3, view: 9, time: 5, ..Tip::default() };
    let mut blocks = Blocks::new(SEED, &tip, 6);
    let (mut log, mut entries) = (BTreeMap::new(), BTreeMap::new());
    let mut take = |blocks: &mut Blocks| {
        let (at, bytes) = blocks.take();
        log.extend(bytes.into_iter().enumerate().map(|(i, byte)| (at + i as u64, byte)));
        let (at, bytes) = blocks.take_entries().unwrap_or_default();
        entries.extend(bytes.into_iter().enumerate().map(|(i, byte)| (at + i as u64, byte)));
    };
    for (n, written) in all.iter().enumerate() {
        for (i, piece) in written.pieces().enumerate() {
            blocks.push(written.shape, piece);
            if how >> (i % 8) & 1 == 1 {
                take(&mut blocks);
            }
        }
        // Twice where it changes nothing.
        (0..1 + n % 2).filter(|i| *i == 0 || written.shape == Shape::Lines).for_each(|_| {
            blocks.end(written.shape);
        });
    }
    let new = blocks.finish();
    take(&mut blocks);
    assert!(blocks.is_empty());

    let part = |written: &&Written| Part {
        raw: written.shape == Shape::One,
        bytes: written.bytes.clone(),
    };
    let laid = lay(&tip, 6, &all.iter().map(part).collect::<Vec<_>>());
    for (block, bytes) in &laid {
        assert!((block.at..).zip(bytes).all(|(at, byte)| log.get(&at) == Some(byte)));
        if block.at.is_multiple_of(4096) {
            let entry = [block.index.to_le_bytes(), block.view.to_le_bytes()].concat();
            let at = 16 + block.at / 4096 * 16;
            assert!((at..).zip(entry).all(|(at, byte)| entries.remove(&at) == Some(byte)));
        }
    }
    assert!(entries.is_empty());
    let (last, _) = laid.last().expect("there are events");
    assert_eq!(new, model::behind(last));
    assert_eq!(
        (log.first_key_value().map(|first| *first.0), new.end),
        (Some(place(end)), model::behind(last).end)
    );
    let bytes: usize = all.iter().map(|written| written.bytes.len() + 80).sum();
    assert!(new.end - end <= room(bytes as u64));
}

fn store() -> (smolstore::Store<Memory>, Arc<Stream<Memory>>) {
    let store = Memory::new(1).store(false);
    let stream = store.stream("s").unwrap();
    (store, stream)
}

fn holds(stream: &Arc<Stream<Memory>>, expected: &[&[u8]]) {
    assert_eq!(stream.count(), Ok(expected.len() as u64));
    for (event, expected) in stream.read(0).unwrap().zip(expected) {
        assert_eq!(event.unwrap().bytes, *expected);
    }
}

/// Batch by batch.
fn single(all: &[Written]) {
    let (_store, stream) = store();
    let mut expected = Vec::new();
    for written in all {
        let batch = written.batch(&stream);
        assert_eq!(stream.commit(batch, Some(expected.len() as u64)), Ok(expected.len() as u64));
        expected.extend(written.events());
    }
    holds(&stream, &expected);
}

/// All that comes while one batch is committed shares the next commit.
fn grouped(all: &[Written]) {
    let (_store, stream) = store();
    let (told, answers) = mpsc::channel();
    let batches: Vec<_> = all.iter().map(|written| written.batch(&stream)).collect();
    let (later, answer) = (stream.clone(), told.clone());
    let first = Box::new(move |result| {
        answer.send(result).unwrap();
        for batch in batches {
            let answer = answer.clone();
            later.submit(batch, None, Box::new(move |result| answer.send(result).unwrap()));
        }
    });
    drop(told);
    let mut batch = stream.batch(Shape::Lines);
    batch.push(b"first").unwrap();
    stream.submit(batch, None, first);
    let mut expected = vec![&b"first"[..]];
    let mut places = vec![Ok(0)];
    for written in all {
        places.push(Ok(expected.len() as u64));
        expected.extend(written.events());
    }
    assert_eq!(answers.iter().collect::<Vec<_>>(), places);
    holds(&stream, &expected);
}

/// Complete lines first, what is behind them later.
fn torn(all: &[Written]) {
    let (_store, stream) = store();
    let mut expected = Vec::new();
    for written in all {
        let mut batch = written.batch(&stream);
        if written.shape == Shape::Lines {
            let torn = batch.split_torn().unwrap();
            assert_eq!(stream.commit(batch, None), Ok(expected.len() as u64));
            batch = torn;
        }
        stream.commit(batch, None).unwrap();
        expected.extend(written.events());
    }
    holds(&stream, &expected);
}
