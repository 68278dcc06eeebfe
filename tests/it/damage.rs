//! Damage: whatever became of the bytes of a log or an index, what is served is right or an error.
//!
//! The engine works on the real disk here, on files that were damaged in every way of a kind: each
//! byte flipped, each length cut, each older state of a tail put back. What is to be expected is worked
//! out from the format, see `format.rs`. The last tests do it to a daemon that is running.
//!
//! A damaged block costs the events that have bytes in it, and no other. Where the block at `last` is damaged or missing the stream is *lost*: what is
//! intact is read, its end is an error, and nothing is appended.
//!
//! Without an index nobody knows what was acknowledged last: what is damaged in the last commit cannot be
//! told from a commit that never came to its end, and goes in silence. All else holds without one, too.

use crate::commit::batches;
use crate::format::{self, Block, HEAD, PAGE, blocks};
use crate::harness::*;
use smolstore::check::Finding;
use smolstore::disk::Real;
use smolstore::stream::Cursor;
use smolstore::{Error, Event, Store, Stream};
use std::collections::HashSet;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{Read, Write};
use std::ops::RangeInclusive;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown, fchown};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;

/// An event up to 20 bytes short of the end of its page: nothing fits behind it.
const NEARLY: usize = usize::MAX;
/// An event up to the end of its page: its newline stands alone on the next.
const FULL: usize = usize::MAX - 1;
/// An event of so many bytes with newlines among them.
const RAW: usize = 50;

/// The sizes of the events of each batch. The one of 3,300 bytes lies across a page, and ends behind
/// the first block of the next one.
const BATCHES: [&[usize]; 10] = [
    &[7],
    &[0, 1, 40, 300, 0, 16, 121],
    &[23, RAW, 4],
    &[0, 0],
    &[3300],
    &[5, 60, 2],
    &[NEARLY],
    &[9, 400],
    &[FULL],
    &[30, 0],
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Which {
    Log,
    Index,
}

use Which::{Index, Log};

/// Log and index of a stream, byte by byte; an index may be gone.
type Bytes = (Vec<u8>, Option<Vec<u8>>);

#[derive(Clone, Copy, Debug)]
enum Fault {
    /// The bits of the byte there.
    Flip(Which, usize, u8),
    Cut(Which, usize),
    /// From there up to there it is as it was after so many commits, the length too where it ends.
    Replay(Which, usize, usize, usize),
    /// So many bytes from there were written over those there.
    Copy(Which, usize, usize, usize),
    /// The index is gone.
    Delete,
}

/// A store with a stream to be damaged, `s`, and another one.
struct Bench {
    dir: TempDir,
    events: Vec<Event>,
    /// The stream after each commit; the last is as it is now.
    states: Vec<Bytes>,
    /// The blocks of the log as it should be.
    blocks: Vec<Block>,
    random: Random,
}

impl Bench {
    fn new(seed: u64) -> Bench {
        // In memory where there is such a place: each case syncs several times.
        let dir = TempDir::new_in("/dev/shm").or_else(|_| TempDir::new()).unwrap();
        let mut random = Random(seed);
        let store = Store::open(dir.path(), false).unwrap();
        for name in ["s", "other"] {
            store.create(name, 0o755).unwrap();
        }
        let other = store.stream("other").unwrap();
        other.append(["untouched"], None).unwrap();
        let s = store.stream("s").unwrap();
        let mut bench = Bench {
            dir,
            events: Vec::new(),
            states: Vec::new(),
            blocks: Vec::new(),
            random: Random(seed + 100),
        };
        bench.states.push(bench.bytes());
        for sizes in BATCHES {
            let left = PAGE - bench.blocks.last().map_or(HEAD, Block::end) % PAGE;
            let batch: Vec<_> = sizes.iter().map(|len| sized(&mut random, *len, left)).collect();
            s.append(batch, None).unwrap();
            bench.states.push(bench.bytes());
            bench.blocks = blocks(&bench.intact().0);
        }
        bench.events = s.read(0).unwrap().map(Result::unwrap).collect();
        assert!(
            bench
                .blocks
                .iter()
                .any(|block| block.payload == b"\n" && block.flags & format::CONT > 0)
        );
        bench
    }

    fn path(&self, which: Which) -> PathBuf {
        let name = if which == Log { "s/log" } else { "s/index" };
        self.dir.path().join(name)
    }

    /// As it is on disk.
    fn bytes(&self) -> Bytes {
        (read(self.path(Log)), fs::read(self.path(Index)).ok())
    }

    /// As it should be.
    fn intact(&self) -> &Bytes {
        &self.states[self.states.len() - 1]
    }

    /// Where what matters ends, in either file.
    fn end(&self, which: Which) -> usize {
        match which {
            Log => self.blocks.last().unwrap().end(),
            Index => self.intact().1.as_ref().unwrap().len(),
        }
    }

    /// Each offset up to the end and a little behind it, some of those in the zeros there, the last.
    fn places(&self, which: Which) -> impl Iterator<Item = usize> + use<> {
        let (log, index) = self.intact();
        let file = if which == Log { log } else { index.as_ref().unwrap() };
        let (end, len) = (self.end(which), file.len());
        (0..end + 40).chain((end + 40..len).step_by(97)).chain([len - 1])
    }

    /// Makes it so on disk. Both stay the files they were.
    fn put(&self, (log, index): &Bytes) {
        let put = |which, bytes: &[u8]| {
            let mut options = OpenOptions::new();
            let file = options.write(true).create(true).truncate(false);
            let file = file.open(self.path(which)).unwrap();
            file.write_all_at(bytes, 0).unwrap();
            file.set_len(bytes.len() as u64).unwrap();
        };
        put(Log, log);
        match index {
            Some(index) => put(Index, index),
            None => fs::remove_file(self.path(Index)).unwrap_or_default(),
        }
    }

    fn damaged(&self, faults: &[Fault]) -> Bytes {
        let mut bytes = self.intact().clone();
        for fault in faults {
            self.damage(&mut bytes, *fault);
        }
        bytes
    }

    fn damage(&self, (log, index): &mut Bytes, fault: Fault) {
        let which = match fault {
            Fault::Delete => return *index = None,
            Fault::Flip(which, ..)
            | Fault::Cut(which, _)
            | Fault::Replay(which, ..)
            | Fault::Copy(which, ..) => which,
        };
        let bytes = match (which, index) {
            (Log, _) => log,
            (Index, Some(index)) => index,
            (Index, None) => return,
        };
        match fault {
            Fault::Flip(_, at, bits) => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= bits;
                }
            }
            Fault::Cut(_, len) => bytes.truncate(len),
            Fault::Replay(_, from, to, commits) => {
                let (log, index) = &self.states[commits];
                let old = if which == Log { log } else { index.as_ref().unwrap() };
                if to >= bytes.len() {
                    bytes.truncate(old.len().max(from));
                }
                for (at, byte) in bytes.iter_mut().enumerate().take(to).skip(from) {
                    *byte = old.get(at).copied().unwrap_or(0);
                }
            }
            Fault::Copy(_, from, to, len) => bytes.copy_within(from..from + len, to),
            Fault::Delete => {}
        }
    }

    /// What must hold of a stream with this damage.
    fn want(&self, damaged: &Bytes) -> Want {
        let (log, index) = damaged;
        let fates = self.fates(log);
        let of_ours =
            |index: &&Vec<u8>| index.get(8..16) == self.intact().1.as_ref().unwrap().get(8..16);
        let last = index.as_ref().filter(of_ours).map_or(0, |index| format::last(index) as usize);
        // Where recovery begins, and whether it can.
        let sound =
            |block: &&Block| log.get(block.at..block.end()) == Some(&block.encode(self.seed()));
        let begins = self.blocks.iter().filter(sound).find(|block| block.at == last);
        let lost = log.get(..HEAD) != self.intact().0.get(..HEAD)
            || last > 0 && begins.is_none_or(|block| block.flags & format::LAST == 0);
        let intact = self.blocks.iter().zip(&fates).filter(|(_, fate)| **fate == Fate::Right);
        let intact = intact.map(|(block, _)| block.next()).next_back().unwrap_or(0);
        let len = self.events.len() as u64;
        // Without an index it is the beginning of a commit that proves all before it.
        let sound = self.blocks.iter().zip(&fates).filter(|(_, fate)| **fate == Fate::Right);
        let first = |block: &Block| block.flags & format::FIRST > 0;
        let proof = sound.map(|(block, _)| block).rfind(|block| first(block));
        let proof = proof.map_or(0, |block| block.at);
        let mut damaged = self.blocks.iter().zip(&fates).filter(|(_, fate)| **fate != Fate::Right);
        let torn = damaged.find(|(block, _)| block.at >= proof).map(|(block, _)| block.at);
        let commit = |at| self.blocks.iter().rfind(|block| first(block) && block.at <= at).unwrap();
        let counts = match torn {
            _ if lost => intact.min(len)..=len,
            Some(torn) if last == 0 => commit(torn).index..=len,
            _ => len..=len,
        };
        let end = if lost { End::Lost } else { End::Sound };
        Want { events: self.events.clone(), fates: self.fates_of_events(&fates), end, counts }
    }

    fn seed(&self) -> u64 {
        format::head(&self.intact().0).unwrap()[0]
    }

    fn fates(&self, log: &[u8]) -> Vec<Fate> {
        let intact = &self.intact().0;
        let fate = |block: &Block| match log.get(block.at..block.end()) {
            bytes if bytes == intact.get(block.at..block.end()) => Fate::Right,
            _ => Fate::Bad,
        };
        self.blocks.iter().map(fate).collect()
    }

    fn fates_of_events(&self, blocks: &[Fate]) -> Vec<Fate> {
        let mut view = 0;
        let fate = |event: &Event| {
            let (begin, newline) = (view, view + event.bytes.len());
            view = newline + 1;
            let mut fate = Fate::Right;
            for (block, its) in self.blocks.iter().zip(blocks) {
                let end = block.view + block.payload.len();
                if block.view < view && end > begin {
                    // Of one whose newline alone is elsewhere all bytes are there.
                    let newline_only = block.view == newline && newline > begin;
                    fate = fate.max(if newline_only { Fate::Either.min(*its) } else { *its });
                }
            }
            fate
        };
        self.events.iter().map(fate).collect()
    }

    fn open(&self, read_only: bool) -> Store {
        Store::open(self.dir.path(), read_only).unwrap()
    }

    /// A batch for behind the end.
    fn batch(&mut self) -> [Vec<u8>; 2] {
        [self.random.below(40), 0].map(|len| self.random.event(len))
    }

    /// Damage that a store finds when it opens the stream.
    fn found(&mut self, faults: &[Fault]) {
        let _says = Says(faults);
        let damaged = self.damaged(faults);
        let mut want = self.want(&damaged);
        self.put(&damaged);
        // Each sync takes its time: one in four is looked at from all sides.
        if self.random.below(4) > 0 {
            let read_only = self.random.below(2) > 0;
            return want.check(&self.open(read_only), &mut self.random);
        }
        let dir = self.dir.path().join("s");
        let before = names(&dir);
        want.check(&self.open(true), &mut self.random);
        assert!(self.bytes() == damaged, "a read-only store wrote");
        assert_eq!(names(&dir), before, "a read-only store wrote");

        let store = self.open(false);
        want.check(&store, &mut self.random);
        let (stream, batch) = (store.stream("s").unwrap(), self.batch());
        let appended = stream.append(&batch, None);
        if want.end == End::Lost {
            assert_eq!(appended.unwrap_err().errno(), libc::EIO);
            assert!(self.bytes().0 == damaged.0, "it changed what was acknowledged");
        } else {
            want.forget(appended.clone().unwrap());
            want.appended(appended.unwrap(), &stream, batch);
            want.check(&store, &mut self.random);
        }
        drop(store);
        want.check(&self.open(false), &mut self.random);
    }

    /// One fault, made while stores have the stream open and have read it.
    fn made(&mut self, fault: Fault) {
        let _says = Says(&[fault]);
        self.put(&self.intact().clone());
        let [reader, writer] = [true, false].map(|read_only| self.open(read_only));
        let open = [&reader, &writer].map(|store| store.stream("s").unwrap());
        for stream in &open {
            let read = stream.read(0).unwrap().flatten();
            assert_eq!(read.count(), self.events.len());
        }
        let damaged = self.damaged(&[fault]);
        let mut want = self.want(&damaged);
        self.put(&damaged);
        // They know how many there were, and may have no reason to look again.
        if want.end == End::Lost {
            want.end = End::Either;
        }
        want.check(&reader, &mut self.random);
        assert!(self.bytes() == damaged, "a read-only store wrote");
        want.check(&writer, &mut self.random);
        let batch = self.batch();
        match open[1].append(&batch, None) {
            // The newest may be damaged: nobody looked at it.
            Err(error) => assert!(want.end == End::Either && error.errno() == libc::EIO, "{error}"),
            Ok(place) => {
                want.appended(place, &open[1], batch);
                want.check(&writer, &mut self.random);
            }
        }
        drop((open, writer, reader));
        want.check(&self.open(false), &mut self.random);
    }
}

/// Of a size as `BATCHES` says, where so much of the page is left.
fn sized(random: &mut Random, len: usize, left: usize) -> Vec<u8> {
    match len {
        NEARLY => random.event(left - format::HEADER - 1 - 20),
        FULL => random.event(left - format::HEADER),
        RAW => b"any\nbytes\n".repeat(5),
        len => random.event(len),
    }
}

/// What becomes of a block, or an event, when there is damage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fate {
    Right,
    /// All its bytes are intact, but not the newline behind it.
    Either,
    Bad,
}

/// What there is at the end of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// No more events.
    Sound,
    /// Acknowledged events are missing: that is an error, and so are appends.
    Lost,
    /// One or the other.
    Either,
}

/// What must hold of the stream `s`.
struct Want {
    events: Vec<Event>,
    fates: Vec<Fate>,
    end: End,
    /// So many events are counted.
    counts: RangeInclusive<u64>,
}

impl Want {
    /// Events from `count` on are gone, which must be allowed.
    fn forget(&mut self, count: u64) {
        assert!(self.counts.contains(&count), "{count}");
        self.events.truncate(count as usize);
        self.fates.truncate(count as usize);
    }

    /// A batch was acknowledged, and must be there from now on.
    fn appended(&mut self, place: u64, stream: &Arc<Stream<Real>>, batch: [Vec<u8>; 2]) {
        assert_eq!(place, self.events.len() as u64);
        let last = self.events.last().map_or(0, |event| event.time);
        for bytes in batch {
            let event = stream.event(self.events.len() as u64).unwrap();
            assert!(event.bytes == bytes && event.time > last);
            self.events.push(event);
            self.fates.push(Fate::Right);
        }
        let count = self.events.len() as u64;
        self.counts = if self.end == End::Either { place..=count } else { count..=count };
    }

    /// By every way there is to read.
    fn check(&self, store: &Store, random: &mut Random) {
        // Not of every case, for it is slow.
        let one_by_one = random.below(4) == 0;
        let other = store.stream("other").unwrap();
        assert_eq!(other.event(0).unwrap().bytes, b"untouched");
        let stream = store.stream("s").unwrap();
        let (len, count) = (self.events.len(), stream.count().unwrap());
        assert!(self.counts.contains(&count), "count {count}, not {:?}", self.counts);
        let count = count as usize;
        for n in (0..len.min(count)).filter(|n| one_by_one || self.fates[*n] != Fate::Right) {
            self.served(n, stream.event(n as u64));
        }
        for n in count..=len {
            self.ended(stream.event(n as u64).map(drop).err());
        }
        let from = random.below(count + 1) * random.below(2);
        let mut events = stream.read(from as u64).unwrap();
        for n in from..count {
            self.served(n, events.next().expect("it ended"));
        }
        self.ended(Some(events.next().map_or(Error::NotFound, Result::unwrap_err)));
        self.check_since(&stream, count, random);
        self.check_view(&stream, count, random);
    }

    #[track_caller]
    fn served(&self, n: usize, got: smolstore::Result<Event>) {
        match got {
            Ok(got) => assert!(self.fates[n] != Fate::Bad && got == self.events[n], "event {n}"),
            Err(error) => {
                assert!(self.fates[n] != Fate::Right, "event {n}: {error}");
                assert!(matches!(error, Error::Damaged { .. }), "event {n}: {error}");
            }
        }
    }

    /// That there is no more is said when it is true, else that it is damaged.
    #[track_caller]
    fn ended(&self, error: Option<Error>) {
        match error {
            Some(Error::NotFound) => {
                assert_ne!(self.end, End::Lost, "an end where events are missing");
            }
            Some(Error::Damaged { .. }) => assert_ne!(self.end, End::Sound),
            other => panic!("at the end: {other:?}"),
        }
    }

    /// The first event of a time; or a damaged one before it, so that who reads from there on is told.
    fn check_since(&self, stream: &Arc<Stream<Real>>, count: usize, random: &mut Random) {
        let time = self.events[random.below(self.events.len())].time;
        for time in [0, time, time + 1, u64::MAX] {
            let found = self.events.iter().take(count).position(|event| event.time >= time);
            let found = found.unwrap_or(count);
            let said = stream.since(time).unwrap() as usize;
            let between = self.fates.get(said..found);
            let damaged = between.is_some_and(|fates| !fates.contains(&Fate::Right));
            assert!(damaged, "since {time}: {said}, not {found}");
        }
    }

    /// Reads on at odd sizes, over what is damaged, and at some places.
    fn check_view(&self, stream: &Arc<Stream<Real>>, count: usize, random: &mut Random) {
        let (mut view, mut starts) = (Vec::new(), Vec::new());
        for event in self.events.iter().take(count) {
            starts.push(view.len());
            view.extend_from_slice(&event.bytes);
            view.push(b'\n');
        }
        // Behind what is intact there may be the beginning of an event.
        starts.push(view.len());
        view.extend(self.events.get(count).map_or(&[][..], |event| &event.bytes));
        let holder = |at| starts.partition_point(|start| *start <= at) - 1;
        let fate = |at| self.fates.get(holder(at)).copied().unwrap_or(Fate::Right);
        let counted = starts[count];
        let part = |at: usize, size: usize, cursor: &mut Cursor| match stream
            .read_view(at as u64, size, cursor)
        {
            Ok(bytes) => {
                let end = at + bytes.len();
                assert!(view.get(at..end) == Some(&bytes), "the view from {at} on");
                let short = end < counted.min(at + size);
                assert!(!short || fate(end) != Fate::Right, "only {} at {at}", bytes.len());
                assert!(
                    !bytes.is_empty() || at >= counted && self.end != End::Lost,
                    "an end at {at}"
                );
                end
            }
            Err(error) => {
                assert!(matches!(error, Error::Damaged { .. }), "{error}");
                let hit = at >= counted && self.end != End::Sound || fate(at) != Fate::Right;
                assert!(hit, "at {at}: {error}");
                starts.get(holder(at) + 1).copied().unwrap_or(counted)
            }
        };
        let (mut at, mut cursor) = (0, Cursor::default());
        while at < counted {
            let longest = [2, 70, 900, 9000][random.below(4)];
            at = part(at, 1 + random.below(longest), &mut cursor);
        }
        part(counted, 100, &mut cursor);
        for _ in 0..4 * usize::from(counted > 0) {
            part(random.below(counted.max(1)), 1 + random.below(400), &mut Cursor::default());
        }
    }
}

/// Tells of the damage when a test fails.
struct Says<'a>(&'a [Fault]);

impl Drop for Says<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the damage was {:?}", self.0);
        }
    }
}

/// A bit of each byte, and of those that are no payload all of them, too.
fn flips(bench: &mut Bench, which: Which) -> Vec<Fault> {
    let payload = |bench: &Bench, at| {
        bench.blocks.iter().any(|block| (block.at + format::HEADER..block.end()).contains(&at))
    };
    let mut faults = Vec::new();
    for at in bench.places(which) {
        faults.push(Fault::Flip(which, at, 1 << bench.random.below(8)));
        if which == Index || !payload(bench, at) {
            faults.push(Fault::Flip(which, at, 0xff));
        }
    }
    faults
}

/// Each of them found at the first use; every so many also made in use.
fn each(bench: &mut Bench, faults: &[Fault], every: usize) {
    for fault in faults {
        bench.found(&[*fault]);
    }
    for fault in faults.iter().step_by(every) {
        bench.made(*fault);
    }
}

#[test]
fn a_byte_of_a_log_flipped() {
    let mut bench = Bench::new(1);
    let faults = flips(&mut bench, Log);
    each(&mut bench, &faults, 3);
    eprintln!("{} flips of bytes of a log", faults.len());
}

#[test]
fn a_byte_of_a_log_flipped_without_an_index() {
    let mut bench = Bench::new(8);
    let faults = flips(&mut bench, Log);
    for fault in &faults {
        bench.found(&[*fault, Fault::Delete]);
    }
    eprintln!("{} flips of bytes of a log without an index", faults.len());
}

#[test]
fn a_byte_of_each_of_several_pages_flipped() {
    let mut bench = Bench::new(9);
    for _ in 0..1000 {
        let mut faults = Vec::new();
        for page in 0..bench.end(Log).div_ceil(PAGE) {
            if bench.random.below(2) > 0 {
                let at = page * PAGE + bench.random.below(PAGE);
                faults.push(Fault::Flip(Log, at.max(HEAD), 1 << bench.random.below(8)));
            }
        }
        bench.found(&faults);
        faults.push(Fault::Delete);
        bench.found(&faults);
    }
}

#[test]
fn a_byte_of_an_index_flipped() {
    let mut bench = Bench::new(2);
    let faults = flips(&mut bench, Index);
    each(&mut bench, &faults, 1);
    eprintln!("{} flips of bytes of an index", faults.len());
}

#[test]
fn a_file_cut_anywhere_and_an_index_deleted() {
    let mut bench = Bench::new(3);
    let mut faults = Vec::new();
    for which in [Log, Index] {
        // Within a payload one place is like the next.
        let blocks = &bench.blocks;
        let edge = |at: usize| {
            blocks.iter().any(|b| {
                (b.at.saturating_sub(2)..b.at + 48).contains(&at) || at.abs_diff(b.end()) < 3
            })
        };
        let places = bench.places(which).filter(|at| which == Index || at % 7 == 0 || edge(*at));
        faults.extend(places.map(|len| Fault::Cut(which, len)));
    }
    each(&mut bench, &faults, 5);
    each(&mut bench, &[Fault::Delete], 1);
    eprintln!("{} cuts of a log or an index", faults.len());
}

#[test]
fn an_old_tail_or_page_replayed() {
    let mut bench = Bench::new(4);
    let (mut faults, mut seen) = (Vec::new(), HashSet::new());
    for which in [Log, Index] {
        let end = bench.end(which);
        // Before the first there was nothing: that is a cut.
        for commits in 1..BATCHES.len() {
            let places = (0..end).filter(|at| which == Index || at % 64 == 0 || at % PAGE < 8);
            let tail = places.map(|from| Fault::Replay(which, from, usize::MAX, commits));
            let block = |size| (0..end).step_by(size).map(move |at| (at, at + size));
            let blocks = [512, PAGE].into_iter().flat_map(block);
            let blocks = blocks.map(|(from, to)| Fault::Replay(which, from, to, commits));
            faults.extend(tail.chain(blocks).filter(|fault| seen.insert(bench.damaged(&[*fault]))));
        }
    }
    each(&mut bench, &faults, 5);
    eprintln!("{} replays of old bytes of a log or an index", faults.len());
}

#[test]
fn bytes_written_to_the_wrong_place() {
    let mut bench = Bench::new(7);
    let whole: Vec<_> =
        bench.blocks.iter().map(|block| (block.at, block.end() - block.at)).collect();
    let sectors: Vec<_> = (0..bench.end(Log)).step_by(512).map(|at| (at, 512)).collect();
    let entries: Vec<_> = (0..bench.end(Index)).step_by(8).map(|at| (at, 8)).collect();
    let mut faults = Vec::new();
    for (from, len) in &whole {
        // Over the beginning of any other, too.
        let others = whole.iter().filter(|(to, its)| to != from && its >= len);
        faults.extend(others.map(|(to, _)| Fault::Copy(Log, *from, *to, *len)));
    }
    for (which, places) in [(Log, sectors), (Index, entries)] {
        for (from, len) in &places {
            let there = places.iter().filter(|(to, _)| to != from);
            faults.extend(there.map(|(to, _)| Fault::Copy(which, *from, *to, *len)));
        }
    }
    each(&mut bench, &faults, 1);
    eprintln!("{} misplaced writes", faults.len());
}

// Two faults at once. They may cost the end of the stream: where the index counts too little, or is
// gone, nothing tells a damaged event from a batch that a crash has torn. What must hold all the
// same: nothing wrong is ever served, the other stream is as it was, a store that is open for
// reading only writes nothing, and what is appended afterwards is there to stay.

impl Bench {
    fn any_fault(&mut self) -> Fault {
        let which = [Log, Index][self.random.below(2)];
        let end = self.end(which);
        let at = self.random.below(end + 40);
        match self.random.below(8) {
            0..=3 => Fault::Flip(which, at, 1 << self.random.below(8)),
            4 => Fault::Cut(which, at),
            5 => Fault::Delete,
            kind => {
                let to = if kind == 6 { usize::MAX } else { at + self.random.below(end) };
                Fault::Replay(which, at, to, self.random.below(BATCHES.len()))
            }
        }
    }

    /// Says how many events are left to be counted.
    fn two(&mut self) -> usize {
        let faults = [self.any_fault(), self.any_fault()];
        let _says = Says(&faults);
        let damaged = self.damaged(&faults);
        let mut events = self.events.clone();
        self.put(&damaged);
        nothing_wrong(&events, 0, &self.open(true), &mut self.random);
        assert!(self.bytes() == damaged, "a read-only store wrote");
        let store = self.open(false);
        let count = nothing_wrong(&events, 0, &store, &mut self.random);
        let (stream, batch) = (store.stream("s").unwrap(), self.batch());
        let mut new = 0;
        match stream.append(&batch, None) {
            Err(error) => assert_eq!(error.errno(), libc::EIO, "{error}"),
            Ok(place) => {
                assert_eq!(place, count);
                events.truncate(usize::try_from(place).unwrap());
                new = batch.len();
                for (n, bytes) in (place..).zip(batch) {
                    let event = stream.event(n).unwrap();
                    assert!(event.bytes == bytes, "event {n}");
                    events.push(event);
                }
                nothing_wrong(&events, new, &store, &mut self.random);
            }
        }
        drop((stream, store));
        nothing_wrong(&events, new, &self.open(false), &mut self.random);
        usize::try_from(count).unwrap()
    }
}

/// Whatever can be read is right, and the newest `new` events can be. Says the count.
fn nothing_wrong(events: &[Event], new: usize, store: &Store, random: &mut Random) -> u64 {
    let other = store.stream("other").unwrap();
    assert_eq!(other.event(0).unwrap().bytes, b"untouched");
    let stream = store.stream("s").unwrap();
    let (count, len) = (stream.count().unwrap(), events.len() as u64);
    assert!(new == 0 || count == len, "count {count}");
    let old = events.len() - new;
    let right = |n: usize, got: smolstore::Result<Event>| match got {
        Ok(got) => assert!(events.get(n) == Some(&got), "event {n}"),
        Err(Error::NotFound) => assert!(n as u64 >= count, "event {n}"),
        Err(error) => assert!(
            !(old..events.len()).contains(&n) && error.errno() == libc::EIO,
            "event {n}: {error}"
        ),
    };
    for n in 0..=events.len() {
        right(n, stream.event(n as u64));
    }
    let mut all = stream.read(0).unwrap().take(events.len() + 1).enumerate();
    all.by_ref().for_each(|(n, event)| right(n, event));
    let view: Vec<u8> =
        events.iter().flat_map(|event| [&event.bytes[..], b"\n"].concat()).collect();
    let mut cursor = Cursor::default();
    for _ in 0..12 {
        let at = random.below(view.len());
        if let Ok(bytes) = stream.read_view(at as u64, 1 + random.below(900), &mut cursor) {
            assert!(view[at..].starts_with(&bytes), "the view from {at} on");
        }
    }
    for time in [0, events[0].time, u64::MAX] {
        let _ = stream.since(time);
    }
    count
}

#[test]
fn two_faults_at_once() {
    const PAIRS: usize = 4000;
    let mut bench = Bench::new(5);
    let all = bench.events.len();
    let counts: Vec<usize> = (0..PAIRS).map(|_| bench.two()).collect();
    let shorter = counts.iter().filter(|count| **count < all).count();
    eprintln!("{PAIRS} pairs of faults: {shorter} cost the end of the stream");
}

/// A store in memory with a stream `s` of so many one-event batches; its log and index.
fn stream_of(count: u64, event: impl Fn(u64) -> String) -> (TempDir, File, File) {
    let dir = TempDir::new_in("/dev/shm").or_else(|_| TempDir::new()).unwrap();
    let store = Store::open(dir.path(), false).unwrap();
    store.create("s", 0o755).unwrap();
    let stream = store.stream("s").unwrap();
    for n in 0..count {
        stream.append([event(n)], None).unwrap();
    }
    let open = |name| File::options().read(true).write(true).open(dir.path().join(name)).unwrap();
    let files = (open("s/log"), open("s/index"));
    (dir, files.0, files.1)
}

/// That stream, by a mount of its own.
fn opened(store: &Path, read_only: bool) -> Arc<Stream<Real>> {
    Store::open(store, read_only).unwrap().stream("s").unwrap()
}

/// The log in that store, and its blocks.
fn log_in(dir: &TempDir) -> (Vec<u8>, Vec<Block>) {
    let log = read(dir.path().join("s/log"));
    let blocks = blocks(&log);
    (log, blocks)
}

/// What recovery makes of each index with each log: the rules of the design, one by one.
#[test]
fn each_state_of_log_and_index_becomes_what_the_rules_say() {
    let event = |n: u64| format!("event {n:02}");
    for (log_is, index_is) in (0..10).flat_map(|log| (0..5).map(move |index| (log, index))) {
        let (dir, log, index) = stream_of(6, event);
        let (bytes, blocks) = log_in(&dir);
        let clear = |from: usize| log.write_all_at(&vec![0; PAGE - from], from as u64).unwrap();
        let [at_1, at_3, at_4] = [1, 3, 4].map(|n| blocks[n].at);
        // `last` names event 3, or there is none, or only that of another log.
        let known = index_is == 0;
        // Events that are counted, whether the stream is lost.
        let (count, lost) = match log_is {
            0 => (6, false),
            1 => (clear(at_4), (4, false)).1,
            // A commit that did not come to its end.
            2 => {
                clear(at_4);
                let torn = Block { flags: format::FIRST, ..blocks[4].clone() };
                let seed = format::head(&bytes).unwrap()[0];
                log.write_all_at(&torn.encode(seed), at_4 as u64).unwrap();
                (4, false)
            }
            3 => {
                clear(at_4);
                log.write_all_at(&[b'E'; 40], at_4 as u64).unwrap();
                (4, false)
            }
            4 => (log.set_len(at_4 as u64 + 42).unwrap(), (4, false)).1,
            // What `last` names is not there, or damaged.
            5 => (log.set_len(at_3 as u64 + 42).unwrap(), (3, known)).1,
            6 => {
                clear(at_4);
                log.write_all_at(b"E", at_3 as u64 + 40).unwrap();
                (3, known)
            }
            // What is behind it begins commits: it was acknowledged.
            7 => {
                clear(at_4);
                log.write_all_at(b"E", at_1 as u64 + 40).unwrap();
                (4, false)
            }
            8 => {
                clear(at_4);
                log.write_all_at(b"E", 2).unwrap();
                (4, true)
            }
            _ => (log.set_len(0).unwrap(), (0, known)).1,
        };
        format::set_last(&dir.path().join("s"), at_3 as u64);
        match index_is {
            0 => {}
            1 => index.write_all_at(&[0; 8], 0).unwrap(),
            2 => index.write_all_at(b"another!", 8).unwrap(),
            3 => index.set_len(7).unwrap(),
            _ => fs::remove_file(dir.path().join("s/index")).unwrap(),
        }
        let found = read(dir.path().join("s/log"));
        let state = format!("log {log_is}, index {index_is}");
        for read_only in [true, false] {
            let stream = opened(dir.path(), read_only);
            assert_eq!(stream.count(), Ok(count), "{state}");
            for n in 0..count {
                let hit = log_is == 7 && n == 1;
                assert_eq!(stream.event(n).is_err(), hit, "{state}, event {n}");
            }
            let appended = stream.append(["more"], None);
            let now = read(dir.path().join("s/log"));
            if read_only || lost {
                let refused = matches!(appended, Err(Error::ReadOnly | Error::Stopped { .. }));
                assert!(refused && now == found, "{state}: {appended:?}");
                continue;
            }
            assert_eq!(appended, Ok(count), "{state}");
            assert!(now.len() >= found.len(), "{state}: it was cut");
            assert_eq!(opened(dir.path(), true).count(), Ok(count + 1), "{state}");
        }
    }
}

/// A page is damaged, and of the index a part is missing, or wrong.
#[test]
fn what_is_intact_around_damage_is_found_whatever_the_index_says() {
    const COUNT: u64 = 40;
    let event = |n: u64| format!("{n:0>1500}");
    let (dir, log, index) = stream_of(COUNT, event);
    let ((whole, blocks), hints) = (log_in(&dir), read(dir.path().join("s/index")));
    let pages = blocks.last().unwrap().end().div_ceil(PAGE);
    let holder = |n: u64| blocks.iter().filter(move |b| b.index <= n && n <= b.next());
    for (bad, hole) in (0..pages - 1).flat_map(|bad| (0..pages).map(move |hole| (bad, hole))) {
        log.write_all_at(&whole, 0).unwrap();
        index.write_all_at(&hints, 0).unwrap();
        let first = blocks.iter().find(|block| block.at / PAGE == bad).unwrap();
        log.write_all_at(b"E", first.at as u64 + 50).unwrap();
        let wrong = [0, 0xff][(bad + hole) % 2];
        index.write_all_at(&vec![wrong; 16 * (pages - hole)], 16 + 16 * hole as u64).unwrap();
        for read_only in [true, false] {
            let stream = opened(dir.path(), read_only);
            for n in 0..COUNT {
                let found = stream.event(n).map(|event| text(&event.bytes));
                let event = event(n);
                let hit = holder(n).any(|b| {
                    b.at / PAGE == bad
                        && (b.index < n || b.flags & format::CONT == 0 || b.next() > n)
                });
                match found {
                    Ok(found) => assert!(found == event, "{bad} {hole} {n}"),
                    Err(error) => {
                        assert!(
                            hit && matches!(error, Error::Damaged { .. }),
                            "{bad} {hole} {n}: {error}"
                        );
                    }
                }
            }
        }
    }
}

/// No clock says so, but whoever may write to the log can: there is no later time for a next batch.
#[test]
fn a_stream_of_the_last_time_there_is_takes_no_appends() {
    const LAST: u64 = (u64::MAX >> 1) - 1;
    let late = |time| {
        let (dir, log, _) = stream_of(2, |n| n.to_string());
        let (bytes, blocks) = log_in(&dir);
        let last = &blocks[1];
        let (at, index, view) = (last.end(), last.next(), last.view + last.payload.len());
        let payload = b"late\n".to_vec();
        let late = Block { at, index, view, prev: last.crc, time, payload, ..last.clone() };
        log.write_all_at(&late.encode(format::head(&bytes).unwrap()[0]), at as u64).unwrap();
        dir
    };
    let dir = late(LAST);
    let store = Store::open(dir.path(), false).unwrap();
    let stream = store.stream("s").unwrap();
    assert_eq!(stream.event(2).map(|event| (event.time, event.bytes)), Ok((LAST, b"late".into())));
    assert_eq!([1, LAST, u64::MAX].map(|time| stream.since(time)), [Ok(0), Ok(2), Ok(3)]);
    let before = read(dir.path().join("s/log"));
    for guard in [None, Some(3)] {
        let refused = stream.append(["more"], guard);
        assert!(matches!(refused, Err(Error::Stopped { .. })), "{refused:?}");
    }
    assert_eq!(stream.append(["more"], Some(2)), Err(Error::Exists));
    assert_eq!(read(dir.path().join("s/log")), before);
    store.check("s", &mut |found| panic!("{found}"), &mut |_, _| {}).unwrap();
    // The one before is as good as any.
    let dir = late(LAST - 1);
    let stream = opened(dir.path(), false);
    assert_eq!(stream.append(["last"], None), Ok(3));
    assert_eq!(stream.event(3).map(|event| event.time), Ok(LAST));
    assert!(stream.append(["more"], None).is_err());
}

/// The log ends in the middle of the commit that `last` says was acknowledged.
#[test]
fn an_acknowledged_commit_without_its_end_is_a_loss() {
    let event = |n: u64| format!("{n:0>1000}");
    for cut in [0, 1, 500, 3000, 5000, 9000] {
        let (dir, log, _) = stream_of(4, |n| n.to_string());
        opened(dir.path(), false).append((4..20).map(event), None).unwrap();
        let (_, blocks) = log_in(&dir);
        let begin = blocks[4].at;
        log.set_len((begin + cut) as u64).unwrap();
        let intact = self::blocks(&read(dir.path().join("s/log")));
        let (count, at) = (intact.last().unwrap().next(), intact.last().unwrap().end() as u64);
        let mut found = Vec::new();
        let store = Store::open(dir.path(), true).unwrap();
        store.check("s", &mut |finding| found.push(finding), &mut |_, _| {}).unwrap();
        let [Finding::Fault { first, at: found_at, what, .. }] = &found[..] else {
            panic!("{cut}: {found:?}");
        };
        assert_eq!((*first, *found_at), (count, at), "{cut}");
        assert!(what.contains("no more can be appended") && what.contains("backup"), "{what}");
        let stream = opened(dir.path(), false);
        assert_eq!(stream.count(), Ok(count));
        assert!((4..count).all(|n| stream.event(n).unwrap().bytes == event(n).as_bytes()));
        for n in [count, count + 1, 1000] {
            let error = stream.event(n).unwrap_err();
            assert!(matches!(error, Error::Damaged { .. }), "{cut} {n}: {error}");
        }
        let end: usize = intact.iter().map(|block| block.payload.len()).sum();
        for from in [end, end + 1, end + 1000, 1 << 39] {
            let read = stream.read_view(from as u64, 10, &mut Cursor::default());
            assert!(matches!(read, Err(Error::Damaged { .. })), "{cut} {from}: {read:?}");
        }
        let refused = stream.append(["more"], None);
        assert!(matches!(refused, Err(Error::Stopped { .. })), "{cut}: {refused:?}");
        assert_eq!(log.metadata().unwrap().len(), (begin + cut) as u64, "something was cut off");
    }
}

/// What was thought to be there is not where the next event goes, in the same mount.
#[test]
fn a_stream_whose_lost_event_was_given_up_takes_the_next_one_in_its_place() {
    let (dir, log, index) = stream_of(4, |n| format!("event {n}"));
    let last = &log_in(&dir).1[3];
    log.write_all_at(&[0; 48], last.at as u64).unwrap();
    let stream = opened(dir.path(), false);
    assert_eq!(stream.count(), Ok(3));
    assert!(matches!(stream.append(["more"], None), Err(Error::Stopped { .. })));
    drop(index);
    fs::remove_file(dir.path().join("s/index")).unwrap();
    assert_eq!(stream.append(["more"], None), Ok(3));
    let again = opened(dir.path(), false);
    assert_eq!(again.count(), Ok(4));
    assert_eq!(again.event(3).unwrap().bytes, b"more");
}

/// With the index goes what the disk knew of them; a mount that has shown them still does.
#[test]
fn events_that_were_shown_and_got_lost_with_the_index_stop_the_stream() {
    let (dir, log, _index) = stream_of(4, |n| format!("event {n}"));
    let [reader, stream] = [true, false].map(|read_only| opened(dir.path(), read_only));
    for stream in [&reader, &stream] {
        assert_eq!(stream.count(), Ok(4));
    }
    log.write_all_at(&[0; 96], log_in(&dir).1[2].at as u64).unwrap();
    fs::remove_file(dir.path().join("s/index")).unwrap();
    let refused = stream.append(["more"], None);
    assert!(matches!(refused, Err(Error::Stopped { .. })), "over a hole: {refused:?}");
    for stream in [&reader, &stream] {
        assert_eq!(stream.count(), Ok(4), "no less than before");
        assert_eq!(stream.event(1).unwrap().bytes, b"event 1");
        for n in 2..5 {
            assert!(matches!(stream.event(n), Err(Error::Damaged { .. })), "{n}");
        }
    }
}

/// The disk lost what this mount knows to be there, and nobody has told it.
#[test]
fn nothing_is_appended_behind_a_last_block_that_is_not_what_it_was() {
    for other_appends in [false, true] {
        let (dir, log, index) = stream_of(4, |n| format!("event {n}"));
        let stream = opened(dir.path(), false);
        assert_eq!(stream.count(), Ok(4));
        log.write_all_at(&[0; 48], log_in(&dir).1[3].at as u64).unwrap();
        if other_appends {
            // In the same place: `last` comes to say what it said.
            index.write_all_at(&[0; 16], 0).unwrap();
            let other = opened(dir.path(), false);
            assert_eq!(other.append(["longer than event 3"], None), Ok(3));
            assert_eq!(stream.append(["more"], None), Ok(4));
            let again = opened(dir.path(), true);
            assert_eq!(again.event(3).unwrap().bytes, b"longer than event 3");
            assert_eq!(again.event(4).unwrap().bytes, b"more");
        } else {
            let refused = stream.append(["more"], None);
            assert!(matches!(refused, Err(Error::Stopped { .. })), "{refused:?}");
        }
    }
}

/// It is not the event that it was, and longer: that is no hang, and no half of it.
#[test]
fn another_event_in_the_place_of_the_last_is_whole_or_an_error() {
    let (dir, log, index) = stream_of(4, |n| format!("event {n}"));
    let stream = opened(dir.path(), true);
    assert_eq!(stream.count(), Ok(4));
    log.write_all_at(&[0; 48], log_in(&dir).1[3].at as u64).unwrap();
    index.write_all_at(&[0; 16], 0).unwrap();
    assert_eq!(opened(dir.path(), false).append(["longer than event 3"], None), Ok(3));
    let got = within(30, move || stream.event(3));
    assert!(got.is_err() || got.unwrap().bytes == b"longer than event 3");
}

/// An index that others made, and appended with, may be gone before anybody looks.
#[test]
fn what_others_appended_is_shown_though_their_index_is_gone() {
    for empty in [false, true] {
        let (dir, ..) = stream_of(if empty { 0 } else { 4 }, |n| format!("event {n}"));
        let reader = opened(dir.path(), true);
        let before = reader.count().unwrap();
        opened(dir.path(), false).append(["a batch", "of two"], None).unwrap();
        fs::remove_file(dir.path().join("s/index")).unwrap();
        assert_eq!(reader.count(), Ok(before + 2));
    }
}

/// Somebody's index, made again by root, is still theirs.
#[test]
fn an_index_that_is_made_again_keeps_its_owner_and_mode() {
    let (dir, _log, index) = stream_of(4, |n| format!("event {n}"));
    fchown(&index, Some(1234), Some(5678)).unwrap();
    index.set_permissions(Permissions::from_mode(0o640)).unwrap();
    index.write_all_at(&[7; 16], 0).unwrap();
    let stream = opened(dir.path(), false);
    assert_eq!(stream.count(), Ok(4));
    let made = fs::metadata(dir.path().join("s/index")).unwrap();
    assert_eq!((made.uid(), made.gid(), made.mode() & 0o7777), (1234, 5678, 0o640));
    let last = log_in(&dir).1[3].at as u64;
    assert_eq!(format::last(&read(dir.path().join("s/index"))), last);
}

/// The directory of a stream may be closed to changes (chmod, chattr +i): it is read all the same.
#[test]
fn an_index_in_a_directory_that_cannot_be_changed_is_made_again() {
    let (dir, _log, index) = stream_of(4, |n| format!("event {n}"));
    index.write_all_at(&[0; 16], 0).unwrap();
    let s = dir.path().join("s");
    fs::set_permissions(&s, Permissions::from_mode(0o555)).unwrap();
    fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
    for file in ["log", "index"] {
        chown(s.join(file), Some(1234), Some(1234)).unwrap();
    }
    let root = dir.path().to_path_buf();
    let user = move || {
        // Of this thread only, as libc's own call is not.
        assert_eq!(unsafe { libc::syscall(libc::SYS_setresuid, 1234, 1234, 1234) }, 0);
        let stream = opened(&root, false);
        assert_eq!(stream.count(), Ok(4));
        assert_eq!(stream.append(["more"], None), Ok(4));
    };
    std::thread::spawn(user).join().unwrap();
}

/// Whoever only reads must not stay at what it found.
#[test]
fn a_stream_that_lost_events_is_looked_at_anew_when_its_index_is() {
    let (dir, ..) = stream_of(3, |n| format!("event {n}"));
    format::set_last(&dir.path().join("s"), 3000);
    let reader = opened(dir.path(), true);
    assert_eq!(reader.count(), Ok(3));
    assert!(matches!(reader.event(3), Err(Error::Damaged { .. })));
    fs::remove_file(dir.path().join("s/index")).unwrap();
    let writer = opened(dir.path(), false);
    assert_eq!(writer.append(["event 3"], None), Ok(3));
    assert_eq!(reader.event(3).unwrap().bytes, b"event 3");
    assert_eq!(writer.append(["event 4"], None), Ok(4));
    assert_eq!(reader.count(), Ok(5));
}

// A running daemon.

/// One of the files of a stream is changed, of whose log these are the blocks; which events that hits, for
/// better or worse, and whether the end is lost.
fn damage_in_use(turn: usize, stream: &Path, random: &mut Random) -> (Vec<u64>, bool) {
    let open = |name| File::options().read(true).write(true).open(stream.join(name));
    let (log, index) = (open("log").unwrap(), open("index").unwrap());
    let blocks = blocks(&read(stream.join("log")));
    let flip = |file: &File, at: usize, bit: usize| {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at as u64).unwrap();
        file.write_all_at(&[byte[0] ^ 1 << bit], at as u64).unwrap();
    };
    let len = index.metadata().unwrap().len() as usize;
    let hit = &blocks[random.below(blocks.len())];
    let at = hit.at + random.below(hit.end() - hit.at);
    match turn % 8 {
        0..=2 => flip(&log, at, random.below(8)),
        3 => log.set_len(at as u64).unwrap(),
        4 => index.set_len(random.below(len) as u64).unwrap(),
        5 => fs::remove_file(stream.join("index")).unwrap(),
        6 => flip(&index, 8 + random.below(len - 8), random.below(8)),
        _ => flip(&index, 1 + random.below(7), random.below(8)),
    }
    let behind = |block: &&Block| match turn % 8 {
        0..=2 => block.at >= hit.at && block.at / PAGE == hit.at / PAGE,
        3 => block.at >= hit.at,
        _ => false,
    };
    let mut bad: Vec<u64> = Vec::new();
    for block in blocks.iter().filter(behind) {
        let more = block.flags & format::MORE > 0;
        bad.extend(block.index..block.next() + u64::from(more));
    }
    bad.dedup();
    let last = hit.at == blocks[blocks.len() - 1].at;
    (bad, turn % 8 == 3 || turn % 8 < 3 && last)
}

#[test]
fn a_daemon_that_meets_damage_says_so_and_serves_the_rest() {
    const TURNS: usize = 48;
    let (m, mut random) = (Mnt::new(), Random(6));
    let other = m.stream("other");
    let event = |n: u64| format!("{n:0>1700}\n");
    let check = |name: &str, bad: &[u64], lost: bool, len: u64| {
        let s = m.path().join(name);
        let counted = count(&s);
        assert!(counted == len || lost && counted < len, "{name}: {counted}");
        let mut first = counted;
        for n in 0..len {
            match fs::read(s.join(format!("at/{n}"))) {
                Ok(got) => assert_eq!(text(&got) + "\n", event(n), "{name}"),
                Err(error) => {
                    assert!(bad.contains(&n) || n >= counted, "{name} {n}: {error}");
                    assert_eq!(error.raw_os_error(), Some(libc::EIO), "{name} {n}");
                    let line = format!("stream {name:?}, event {n}: ");
                    assert!(m.log().contains(&line), "no {line:?}: {}", m.log());
                    first = first.min(n);
                }
            }
        }
        // As far as it goes, and then an error: no end where events are missing.
        let (mut all, mut piece) = (Vec::new(), [0; 1000]);
        let mut file = File::open(s.join("from/0")).unwrap();
        let ended = loop {
            match file.read(&mut piece) {
                Ok(0) => break Ok(()),
                Ok(n) => all.extend(&piece[..n]),
                Err(error) => break Err(error),
            }
        };
        let whole: String = (0..len).map(event).collect();
        assert!(whole.starts_with(&*text(&all)), "{name}");
        assert!(all.len() >= (0..first).map(event).collect::<String>().len(), "{name}");
        match ended {
            Ok(()) => assert!(all.len() == whole.len() && !lost, "{name}: an end"),
            Err(error) => {
                assert!(first < len || lost, "{name}");
                assert_eq!(error.raw_os_error(), Some(libc::EIO), "{name}");
            }
        }
    };
    let mut damaged = Vec::new();
    for turn in 0..TURNS {
        let name = format!("s{turn}");
        let s = m.stream(&name);
        for batch in [0..2, 2..3, 3..5] {
            append(s.join("events"), batch.map(event).collect::<String>());
        }
        check(&name, &[], false, 5);
        let (bad, lost) = damage_in_use(turn, &m.store().join(&name), &mut random);
        for n in &bad {
            let got = fs::read(m.path().join(format!("{name}/at/{n}")));
            assert!(turn % 8 <= 3 || got.is_ok(), "{name} {n}");
        }
        append(other.join("events"), event(turn as u64));
        let appended = try_append(s.join("events"), event(5));
        assert_eq!(appended.is_err(), lost, "{name}: {appended:?}");
        let len = if lost { 5 } else { 6 };
        check(&name, &bad, lost, len);
        damaged.push((name, bad, lost, len));
    }
    m.restart();
    for (name, bad, lost, len) in &damaged {
        check(name, bad, *lost, *len);
    }
    let all: String = (0..TURNS as u64).map(event).collect();
    assert_eq!(text(&read(other.join("events"))), all);
}

#[test]
fn a_count_that_cannot_be_is_damage_and_no_hang() {
    let m = Mnt::new();
    m.stream("s");
    for n in 0..5 {
        append(m.path().join("s/events"), format!("event {n}\n"));
    }
    for wrong in [3000, (1 << 40) + 5, (1 << 48) - 1] {
        m.stop();
        format::set_last(&m.store().join("s"), wrong);
        m.restart();
        let s = m.path().join("s");
        within(30, move || {
            for n in 0..5 {
                let event = read(s.join(format!("at/{n}")));
                assert_eq!(event, format!("event {n}").into_bytes(), "{wrong:x}");
            }
            let mut file = File::open(s.join("from/0")).unwrap();
            let (mut all, mut piece) = (Vec::new(), [0; 4096]);
            let error = loop {
                match file.read(&mut piece) {
                    Ok(0) => panic!("{wrong:x}: an end, where events are missing"),
                    Ok(n) => all.extend(&piece[..n]),
                    Err(error) => break error,
                }
            };
            assert_eq!(error.raw_os_error(), Some(libc::EIO), "{wrong:x}");
            let intact = "event 0\nevent 1\nevent 2\nevent 3\nevent 4\n";
            assert_eq!(text(&all), intact, "{wrong:x}");
            let refused = try_append(s.join("events"), "x\n");
            assert_eq!(errno_of(refused), libc::EIO, "{wrong:x}");
        });
        let link = m.path().join("s/from/@5000000000");
        // What it says of a time behind all events is open; that it says something is not.
        let _ = within(5, move || fs::read_link(link));
        assert_eq!(m.wait(Duration::ZERO), None, "{wrong:x}: {}", m.log());
    }
}

#[test]
fn another_streams_index_copied_over_a_live_one_is_not_believed() {
    let m = Mnt::new();
    let long = m.stream("long");
    append(long.join("events"), "a longer line\n".repeat(100));
    let short = m.stream("short");
    append(short.join("events"), "x\n");
    for other in ["long", "short"] {
        let s = m.stream(format!("s-{other}"));
        append(s.join("events"), "0\n1\n");
        append(s.join("events"), "2\n");
        let mut open = appender(s.join("events")).unwrap();
        open.write_all(b"3\n").unwrap();
        ok(&sh("sh", &format!("cp {other}/index s-{other}/index"), m.store()));
        assert_eq!(text(&read(s.join("events"))), "0\n1\n2\n", "{other}");
        assert_eq!(read(s.join("at/2")), b"2", "{other}");
        close(open).unwrap();
        ok(&sh("sh", &format!("cp {other}/index s-{other}/index"), m.store()));
        append(s.join("from/4"), "4\n");
        let all = ["0\n1\n", "2\n", "3\n", "4\n"];
        assert_eq!(batches(&s), all, "{other}");
        m.restart();
        assert_eq!(batches(&s), all, "{other}");
    }
}
