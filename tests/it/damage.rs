//! Damage: whatever became of the bytes of a log or an index, what is served is right or an error.
//!
//! The engine works on the real disk here, on files that were damaged in every way of a kind: each
//! byte flipped, each length cut, each older state of a tail put back. The last tests do it to a
//! daemon that is running.

use crate::commit::batches;
use crate::harness::*;
use smolstore::check::Finding;
use smolstore::disk::Real;
use smolstore::index::{ENTRIES, entry_at};
use smolstore::stream::Cursor;
use smolstore::{Error, Event, Store, Stream};
use std::collections::HashSet;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown, fchown};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;

/// The sizes of the events of each batch. The one of 3,300 bytes lies across a page.
const BATCHES: [&[usize]; 6] =
    [&[7], &[0, 1, 40, 300, 0, 16, 121], &[23], &[0, 0], &[3300], &[5, 60, 2]];

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
        let mut bench =
            Bench { dir, events: Vec::new(), states: Vec::new(), random: Random(seed + 100) };
        bench.states.push(bench.bytes());
        for sizes in BATCHES {
            let batch: Vec<_> = sizes.iter().map(|len| random.event(*len)).collect();
            s.append(batch, None).unwrap();
            bench.states.push(bench.bytes());
        }
        bench.events = s.read(0).unwrap().map(Result::unwrap).collect();
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
        &self.states[BATCHES.len()]
    }

    /// Where the last event ends, in either file.
    fn end(&self, which: Which) -> usize {
        let count = self.events.len() as u64;
        let log: usize = self.events.iter().map(|event| event.bytes.len() + 17).sum();
        if which == Log { log } else { entry_at(count) as usize }
    }

    /// Each offset up to the end and a little behind it, some of those in the zeros there, the last.
    fn places(&self, which: Which) -> impl Iterator<Item = usize> + use<> {
        let (log, index) = self.intact();
        let file = if which == Log { log } else { index.as_ref().unwrap() };
        let (end, len) = (self.end(which), file.len());
        (0..end + 40).chain((end + 40..len).step_by(97)).chain([len - 1])
    }

    /// Makes it so on disk. Both stay the files they were: the index knows its log.
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
        for name in names(&self.dir.path().join("s")) {
            if name != "log" && name != "index" {
                fs::remove_file(self.dir.path().join("s").join(name)).unwrap();
            }
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

    fn open(&self, read_only: bool) -> Store {
        Store::open(self.dir.path(), read_only).unwrap()
    }

    /// What must hold of a stream with a single fault: exactly the events whose bytes it hit are
    /// errors.
    fn want(&self, (log, index): &Bytes) -> Want {
        let (intact, mut at) = (&self.intact().0, 0);
        let hit = |event: &Event| {
            let frame = at..at + event.bytes.len() + 17;
            at = frame.end;
            log.get(frame.clone()) != intact.get(frame)
        };
        let bad = self.events.iter().map(hit).collect();
        let ours = self.intact().1.as_ref().unwrap();
        let more = index.as_ref().is_some_and(|index| {
            let count = |index: &[u8]| index.first_chunk().map(|count| u64::from_le_bytes(*count));
            index.get(8..16) == ours.get(8..16) && count(index) > count(ours)
        });
        Want { events: self.events.clone(), bad, more }
    }

    /// A batch for behind the end.
    fn batch(&mut self) -> [Vec<u8>; 2] {
        [self.random.below(40), 0].map(|len| self.random.event(len))
    }

    /// One fault, found by a store when it opens the stream.
    fn found(&mut self, fault: Fault) {
        let _says = Says(&[fault]);
        let damaged = self.damaged(&[fault]);
        let mut want = self.want(&damaged);
        self.put(&damaged);
        let dir = self.dir.path().join("s");
        let before = names(&dir);
        want.check(&self.open(true), &mut self.random);
        assert!(self.bytes() == damaged, "a read-only store wrote");
        assert_eq!(names(&dir), before, "a read-only store wrote");

        let store = self.open(false);
        want.check(&store, &mut self.random);
        let (stream, batch) = (store.stream("s").unwrap(), self.batch());
        let appended = stream.append(&batch, None);
        if want.more || want.bad.last() == Some(&true) {
            assert_eq!(appended.unwrap_err().errno(), libc::EIO);
            assert!(self.bytes().0 == damaged.0, "it cut what the count covers");
        } else {
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
        want.check(&reader, &mut self.random);
        assert!(self.bytes() == damaged, "a read-only store wrote");
        want.check(&writer, &mut self.random);
        let batch = self.batch();
        match open[1].append(&batch, None) {
            // The newest may be damaged: nobody looked at it.
            Err(error) => assert_eq!(error.errno(), libc::EIO, "{error}"),
            Ok(place) => {
                want.appended(place, &open[1], batch);
                want.check(&writer, &mut self.random);
            }
        }
        drop((open, writer, reader));
        want.check(&self.open(false), &mut self.random);
    }
}

/// What must hold of the stream `s`.
struct Want {
    events: Vec<Event>,
    /// These must be errors, all others be there.
    bad: Vec<bool>,
    /// The index counts more than there is.
    more: bool,
}

impl Want {
    /// A batch was acknowledged, and must be there from now on.
    fn appended(&mut self, place: u64, stream: &Arc<Stream<Real>>, batch: [Vec<u8>; 2]) {
        assert_eq!(place, self.events.len() as u64);
        let last = self.events.last().unwrap().time;
        for bytes in batch {
            let event = stream.event(self.events.len() as u64).unwrap();
            assert!(event.bytes == bytes && event.time > last);
            self.events.push(event);
            self.bad.push(false);
        }
    }

    /// By every way there is to read.
    fn check(&self, store: &Store, random: &mut Random) {
        let other = store.stream("other").unwrap();
        assert_eq!(other.event(0).unwrap().bytes, b"untouched");
        let stream = store.stream("s").unwrap();
        let len = self.events.len() as u64;
        let count = stream.count().unwrap();
        assert!(count == len || self.more && count > len, "count {count}");
        for (n, event) in self.events.iter().enumerate() {
            self.served(n, stream.event(n as u64), event);
        }
        match stream.event(len) {
            Ok(_) => panic!("event {len} was never there"),
            Err(error) if self.more => assert_eq!(error.errno(), libc::EIO),
            Err(error) => assert_eq!(error, Error::NotFound),
        }
        let from = random.below(self.events.len()) * random.below(2);
        let mut events = stream.read(from as u64).unwrap();
        for (n, event) in self.events.iter().enumerate().skip(from) {
            self.served(n, events.next().expect("it ended"), event);
        }
        match events.next() {
            None => assert!(!self.more, "an end, where events are missing"),
            // Where the last one is damaged, too, nothing says that it was the last.
            Some(event) => assert!((self.more || self.bad.last() == Some(&true)) && event.is_err()),
        }
        self.check_since(&stream, random);
        self.check_view(&stream, random);
    }

    #[track_caller]
    fn served(&self, n: usize, got: smolstore::Result<Event>, event: &Event) {
        match got {
            Ok(got) => assert!(!self.bad[n] && got == *event, "event {n}"),
            Err(error) => assert!(self.bad[n] && error.errno() == libc::EIO, "{n}: {error}"),
        }
    }

    /// The first event of a time; or a damaged one before it, which may be of that time too.
    fn check_since(&self, stream: &Arc<Stream<Real>>, random: &mut Random) {
        let time = self.events[random.below(self.events.len())].time;
        for time in [0, time, time + 1, u64::MAX] {
            let found = self.events.iter().position(|event| event.time >= time);
            let found = found.unwrap_or(self.events.len());
            match stream.since(time) {
                Ok(n) => {
                    let said = usize::try_from(n).unwrap();
                    let between = self.bad.get(said..found);
                    assert!(
                        between.is_some_and(|bad| !bad.contains(&false)),
                        "{said}, not {found}"
                    );
                }
                Err(error) => assert!(self.bad.contains(&true), "{error}"),
            }
        }
    }

    /// Reads on at odd sizes, over what is damaged, and at some places.
    fn check_view(&self, stream: &Arc<Stream<Real>>, random: &mut Random) {
        let (mut view, mut starts) = (Vec::new(), Vec::new());
        for event in &self.events {
            starts.push(view.len());
            view.extend_from_slice(&event.bytes);
            view.push(b'\n');
        }
        let holder = |at| starts.partition_point(|start| *start <= at) - 1;
        let part = |at: usize, size: usize, cursor: &mut Cursor| match stream
            .read_view(at as u64, size, cursor)
        {
            Ok(bytes) => {
                let end = at + bytes.len();
                assert!(view.get(at..end) == Some(&bytes), "the view from {at} on");
                let short = end < view.len().min(at + size);
                assert!(!short || self.bad[holder(end)], "only {} at {at}", bytes.len());
                assert!(!bytes.is_empty() || at == view.len() && !self.more, "an end at {at}");
                end
            }
            Err(error) => {
                assert_eq!(error.errno(), libc::EIO, "{error}");
                let hit = at == view.len() && self.more || self.bad[holder(at)];
                assert!(hit, "at {at}: {error}");
                starts.get(holder(at) + 1).copied().unwrap_or(view.len())
            }
        };
        let (mut at, mut cursor) = (0, Cursor::default());
        while at < view.len() {
            let longest = [2, 70, 900, 9000][random.below(4)];
            at = part(at, 1 + random.below(longest), &mut cursor);
        }
        part(at, 100, &mut cursor);
        for _ in 0..4 {
            part(random.below(view.len()), 1 + random.below(400), &mut Cursor::default());
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

/// A bit of each byte, and all of them.
fn flips(bench: &mut Bench, which: Which) -> Vec<Fault> {
    let places = bench.places(which);
    let flip = |at| [1 << bench.random.below(8), 0xff].map(|bits| Fault::Flip(which, at, bits));
    places.flat_map(flip).collect()
}

/// Each of them found at the first use; every so many also made in use.
fn each(bench: &mut Bench, faults: &[Fault], every: usize) {
    for fault in faults {
        bench.found(*fault);
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
        faults.extend(bench.places(which).map(|len| Fault::Cut(which, len)));
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
            let tail = (0..end).map(|from| Fault::Replay(which, from, usize::MAX, commits));
            let block = |size| (0..end).step_by(size).map(move |at| (at, at + size));
            let blocks = [512, 4096].into_iter().flat_map(block);
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
    let mut at = 0;
    let frames = bench.events.iter().map(|event| {
        let len = event.bytes.len() + 17;
        at += len;
        (at - len, len)
    });
    let frames: Vec<_> = frames.collect();
    let blocks = (0..bench.end(Log)).step_by(512).map(|at| (at, 512));
    let blocks: Vec<_> = blocks.collect();
    let entries = (0..frames.len()).map(|n| (entry_at(n as u64) as usize, 8));
    let entries: Vec<_> = entries.collect();
    let mut faults = Vec::new();
    for (which, places) in [(Log, frames), (Log, blocks), (Index, entries)] {
        for (from, len) in &places {
            let there = places.iter().filter(|(to, its)| to != from && its == len);
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

/// The states that src/recover.rs lists, one by one: each index with each log.
#[test]
fn each_state_of_log_and_index_becomes_what_the_table_says() {
    let event = |n: u64| format!("event {n:02}");
    let mut torn = Vec::new();
    smolstore::frame::encode(&mut torn, 5, u64::MAX / 2, true, false, b"torn");
    for (log_is, index_is) in (0..8).flat_map(|log| (0..5).map(move |index| (log, index))) {
        let (dir, log, index) = stream_of(6, event);
        let clear = |from: u64| log.write_all_at(&vec![0; 4096 - from as usize], from).unwrap();
        let counted = index_is < 2;
        // Events there are, whether the stream is lost, whether a part of the log is cut off.
        let (count, lost, cut) = match log_is {
            0 => (clear(100), (4, false, false)).1,
            1 => (6, false, false),
            2 => {
                clear(125);
                log.write_all_at(&torn, 125).unwrap();
                (5, false, true)
            }
            3 => {
                clear(100);
                log.write_all_at(&[b'E'; 40], 100).unwrap();
                (4, false, true)
            }
            4 => {
                clear(100);
                log.set_len(1 << 16).unwrap();
                (4, false, false)
            }
            5 => {
                log.set_len(75).unwrap();
                (if counted { 4 } else { 3 }, counted, false)
            }
            6 => {
                clear(100);
                log.write_all_at(b"E", 75 + 16).unwrap();
                (if counted { 4 } else { 3 }, counted, true)
            }
            _ => {
                clear(100);
                log.write_all_at(b"E", 25 + 16).unwrap();
                (4, index_is > 0, false)
            }
        };
        index.write_all_at(&4u64.to_le_bytes(), 0).unwrap();
        index.write_all_at(&[0; 16], entry_at(4)).unwrap();
        match index_is {
            0 => {}
            1 => index.write_all_at(&[0; 32], entry_at(0)).unwrap(),
            2 => index.write_all_at(b"another!", 8).unwrap(),
            3 => index.set_len(15).unwrap(),
            _ => fs::remove_file(dir.path().join("s/index")).unwrap(),
        }
        let found = fs::read(dir.path().join("s/log")).unwrap();
        let state = format!("log {log_is}, index {index_is}");
        for read_only in [true, false] {
            let stream = opened(dir.path(), read_only);
            assert_eq!(stream.count(), Ok(count), "{state}");
            let bad = |n| log_is == 7 && n == 1 || count == 4 && n == 3 && matches!(log_is, 5 | 6);
            for n in 0..count {
                assert_eq!(stream.event(n).is_err(), bad(n), "{state}, event {n}");
            }
            let appended = stream.append(["more"], None);
            let now = fs::read(dir.path().join("s/log")).unwrap();
            if read_only || lost {
                let whole = matches!(appended, Err(Error::ReadOnly | Error::Stopped { .. }));
                assert!(whole && now == found, "{state}: {appended:?}");
                continue;
            }
            assert_eq!(appended, Ok(count), "{state}");
            assert_eq!(now.len(), 4096, "{state}");
            let mut names = names(&dir.path().join("s"));
            names.retain(|name| name.to_string_lossy().starts_with("cut-"));
            assert_eq!(names.len(), usize::from(cut && !counted), "{state}: {names:?}");
            for name in names {
                let kept = fs::read(dir.path().join("s").join(name)).unwrap();
                let from = count as usize * 25;
                assert!(kept[from..] == found[from..], "{state}");
            }
        }
    }
}

/// Two events in a row are damaged: nothing leads over them but the index. Of that nothing is left
/// from some event behind them on.
#[test]
fn what_is_intact_behind_damage_and_a_hole_is_found_by_any_entry() {
    const COUNT: u64 = 48;
    let event = |n: u64| format!("event {n:02}");
    let (dir, log, index) = stream_of(COUNT, event);
    let whole = [&log, &index].map(|file| {
        let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    });
    for (bad, hole) in (0..COUNT - 3).flat_map(|bad| (bad + 3..=COUNT).map(move |n| (bad, n))) {
        log.set_len(0).unwrap();
        log.write_all_at(&whole[0], 0).unwrap();
        index.write_all_at(&whole[1], 0).unwrap();
        for n in [bad, bad + 1] {
            log.write_all_at(b"E", n * 25 + 16).unwrap();
        }
        let zeros = vec![0; 8 * (COUNT - hole) as usize];
        index.write_all_at(&zeros, entry_at(hole)).unwrap();
        for read_only in [true, false] {
            let stream = opened(dir.path(), read_only);
            for n in 0..COUNT {
                let found = stream.event(n).map(|event| String::from_utf8(event.bytes).unwrap());
                if n == bad || n == bad + 1 {
                    assert!(matches!(found, Err(Error::Damaged { .. })), "{bad} {hole} {n}");
                } else {
                    assert_eq!(found, Ok(event(n)), "{bad} {hole}");
                }
            }
            if !read_only {
                assert_eq!(stream.append(["more"], None), Ok(COUNT), "{bad} {hole}");
            }
        }
    }
}

/// No clock says so, but whoever may write to the log can: there is no later time for a next batch.
#[test]
fn a_stream_of_the_last_time_there_is_takes_no_appends() {
    let (dir, log, _) = stream_of(2, |n| n.to_string());
    let mut frame = Vec::new();
    smolstore::frame::encode(&mut frame, 2, u64::MAX, true, true, b"late");
    log.write_all_at(&frame, 36).unwrap();
    let store = Store::open(dir.path(), false).unwrap();
    let stream = store.stream("s").unwrap();
    assert_eq!(
        stream.event(2).map(|event| (event.time, event.bytes)),
        Ok((u64::MAX, b"late".into()))
    );
    assert_eq!([1, u64::MAX].map(|time| stream.since(time)), [Ok(0), Ok(2)]);
    let before = fs::read(dir.path().join("s/log")).unwrap();
    for guard in [None, Some(3)] {
        let refused = stream.append(["more"], guard);
        assert!(matches!(refused, Err(Error::Stopped { .. })), "{refused:?}");
    }
    assert_eq!(stream.append(["more"], Some(2)), Err(Error::Exists));
    assert_eq!(fs::read(dir.path().join("s/log")).unwrap(), before);
    store.check("s", &mut |found| panic!("{found}"), &mut |_, _| {}).unwrap();
    // The one before is as good as any.
    let (dir, log, _) = stream_of(2, |n| n.to_string());
    frame.clear();
    smolstore::frame::encode(&mut frame, 2, u64::MAX - 1, true, true, b"late");
    log.write_all_at(&frame, 36).unwrap();
    let stream = opened(dir.path(), false);
    assert_eq!(stream.append(["last"], None), Ok(3));
    assert_eq!(stream.event(3).map(|event| event.time), Ok(u64::MAX));
    assert!(stream.append(["more"], None).is_err());
}

/// The count says that a part of a batch was acknowledged of which the end is not there.
#[test]
fn a_count_inside_a_batch_without_its_end_is_a_loss() {
    let event = |n: u64| format!("event {n:02}");
    for (at, end) in (4..7).flat_map(|at| (at..7).map(move |end| (at, end))) {
        let (dir, log, index) = stream_of(4, event);
        let stream = opened(dir.path(), false);
        stream.append((4..8).map(event), None).unwrap();
        drop(stream);
        log.set_len(end * 25 + 25).unwrap();
        index.write_all_at(&(at + 1).to_le_bytes(), 0).unwrap();
        let mut found = Vec::new();
        let store = Store::open(dir.path(), true).unwrap();
        store.check("s", &mut |finding| found.push(finding), &mut |_, _| {}).unwrap();
        let what = "the index counts it, but its batch has no end".to_string();
        assert_eq!(found, [Finding::Fault { first: 4, last: at, at: 100, what }]);
        let stream = opened(dir.path(), false);
        assert_eq!(stream.count(), Ok(at + 1));
        assert!((0..=at).all(|n| stream.event(n).unwrap().bytes == event(n).as_bytes()));
        let refused = stream.append(["more"], None);
        assert!(matches!(refused, Err(Error::Stopped { .. })), "{at} {end}: {refused:?}");
        assert_eq!(log.metadata().unwrap().len(), end * 25 + 25, "something was cut off");
        // Whatever the index says of where the last one ends.
        let lines: String = (0..=at).map(|n| event(n) + "\n").collect();
        for says in [0u64, 1 << 40] {
            index.write_all_at(&says.to_le_bytes(), entry_at(at)).unwrap();
            let stream = opened(dir.path(), false);
            let read = |from, size| stream.read_view(from, size, &mut Cursor::default());
            assert_eq!(read(0, 1000).map(|view| text(&view)), Ok(lines.clone()));
            let behind = read(lines.len() as u64, 1000);
            assert!(matches!(behind, Err(Error::Damaged { .. })), "{at} {end}: {behind:?}");
        }
    }
}

/// The end of what is not there is a guess, and a reader may ask for any place before it.
#[test]
fn there_is_an_error_anywhere_before_the_end_of_what_is_lost() {
    let (dir, log, index) = stream_of(4, |n| format!("event {n:02}"));
    log.set_len(3 * 25).unwrap();
    index.write_all_at(&(1u64 << 40).to_le_bytes(), entry_at(3)).unwrap();
    let stream = opened(dir.path(), false);
    for from in [27, 28, 1000, 1 << 39] {
        let read = stream.read_view(from, 10, &mut Cursor::default());
        assert!(matches!(read, Err(Error::Damaged { .. })), "{from}: {read:?}");
    }
}

/// What was thought to be there is not where the next event goes, in the same mount.
#[test]
fn a_stream_whose_lost_event_was_given_up_takes_the_next_one_in_its_place() {
    let (dir, log, index) = stream_of(4, |n| format!("event {n}"));
    log.write_all_at(&[0; 24], 3 * 24).unwrap();
    let stream = opened(dir.path(), false);
    assert_eq!(stream.count(), Ok(4));
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
    (1..3).for_each(shown_and_lost);
}

fn shown_and_lost(more: usize) {
    let event = |n| format!("event {n}");
    let (dir, log, _index) = stream_of(4, event);
    let store = Store::open(dir.path(), false).unwrap();
    let stream = store.stream("s").unwrap();
    assert_eq!(stream.count(), Ok(4));
    let reader = opened(dir.path(), true);
    assert_eq!(reader.count(), Ok(4));
    log.write_all_at(&[0; 2 * 24], 2 * 24).unwrap();
    fs::remove_file(dir.path().join("s/index")).unwrap();
    let refused = stream.append(["more"], None);
    assert!(matches!(refused, Err(Error::Stopped { .. })), "over a hole: {refused:?}");
    assert_eq!(stream.count(), Ok(4), "no less than before");
    assert_eq!(stream.event(1).unwrap().bytes, b"event 1");
    let lost = |stream: &Arc<Stream<Real>>, n| {
        let event = stream.event(n);
        assert!(matches!(event, Err(Error::Damaged { .. })), "{n}: {event:?}");
    };
    (2..4).for_each(|n| lost(&stream, n));
    // The next mount knows nothing of them. Who has seen them sees what comes in their place.
    let again = opened(dir.path(), false);
    assert_eq!(again.append(["longer than event 2"], None), Ok(2));
    for stream in [&stream, &reader] {
        assert_eq!(stream.count(), Ok(4));
        assert_eq!(stream.event(2).unwrap().bytes, b"longer than event 2");
        lost(stream, 3);
    }
    assert_eq!(again.append(&["longer than event 3", "5th"][..more], None), Ok(3));
    for stream in [&stream, &reader] {
        assert_eq!(stream.since(u64::MAX), Ok(3 + more as u64));
        let view = stream.read_view(28, 27, &mut Cursor::default()).unwrap();
        assert_eq!(text(&view), "event 2\nlonger than event 3");
    }
    let next = again.append(["and on"], None).unwrap();
    assert_eq!(stream.append(["and on"], None), Ok(next + 1), "nothing is missing now");
    assert_eq!(reader.event(next + 1).unwrap().bytes, b"and on");
}

/// Another mount makes the index again: this one has the file that lost its header.
#[test]
fn events_that_got_lost_with_the_header_of_the_index_are_not_appended_behind() {
    let (dir, log, index) = stream_of(4, |n| format!("event {n}"));
    let stream = opened(dir.path(), false);
    assert_eq!(stream.count(), Ok(4));
    log.write_all_at(&[0; 24], 3 * 24).unwrap();
    index.write_all_at(&[0; 16], 0).unwrap();
    let other = opened(dir.path(), false);
    assert_eq!(other.count(), Ok(3));
    let refused = stream.append(["more"], None);
    assert!(matches!(refused, Err(Error::Stopped { .. })), "over a hole: {refused:?}");
    assert_eq!(other.append(["more"], None), Ok(3));
}

/// It has as many events again before anybody looks: all of them are shown.
#[test]
fn as_many_events_in_the_place_of_lost_ones_are_shown_whole() {
    for turn in 0..6 {
        let read_only = turn < 3;
        let (dir, log, index) = stream_of(4, |n| format!("event {n}"));
        let stream = opened(dir.path(), read_only);
        assert_eq!(stream.count(), Ok(4));
        log.write_all_at(&[0; 24], 3 * 24).unwrap();
        match turn % 3 {
            0 => fs::remove_file(dir.path().join("s/index")).unwrap(),
            1 => index.write_all_at(&[0; 16], 0).unwrap(),
            _ => index.set_len(0).unwrap(),
        }
        let other = opened(dir.path(), false);
        assert_eq!(other.append(["longer than event 3"], None), Ok(3));
        let view = stream.read_view(24, 99, &mut Cursor::default()).unwrap();
        assert_eq!(text(&view), "longer than event 3\n", "{turn}");
        assert_eq!(stream.event(3).unwrap().bytes, b"longer than event 3");
    }
}

/// They are other batches, and their index is gone, too: who may not make one sees whole ones, also
/// without the entry of the last event.
#[test]
fn batches_in_the_place_of_lost_ones_are_shown_whole_without_any_index() {
    for hole in [false, true] {
        let (dir, log, file) = stream_of(4, |n| format!("event {n}"));
        if hole {
            file.write_all_at(&[0; 8], entry_at(2)).unwrap();
        }
        let reader = opened(dir.path(), true);
        assert_eq!(reader.count(), Ok(4));
        log.write_all_at(&[0; 24], 3 * 24).unwrap();
        let index = dir.path().join("s/index");
        fs::remove_file(&index).unwrap();
        let other = opened(dir.path(), false);
        assert_eq!(other.append(["a batch", "of two"], None), Ok(3));
        fs::remove_file(&index).unwrap();
        assert_eq!(reader.count(), Ok(5), "hole: {hole}");
        assert_eq!(reader.event(4).unwrap().bytes, b"of two");
    }
}

/// The index that is gone counts what was appended since anybody looked, in batches of others.
#[test]
fn what_an_index_that_is_gone_counts_is_shown_as_whole_batches() {
    for seen in [0, 4] {
        let (dir, log, _index) = stream_of(seen, |n| format!("event {n}"));
        let reader = opened(dir.path(), true);
        assert_eq!(reader.count(), Ok(seen));
        let writer = opened(dir.path(), false);
        for n in seen..seen + 3 {
            writer.append([format!("event {n}")], None).unwrap();
        }
        log.write_all_at(&[0; 3 * 24], seen * 24).unwrap();
        let index = dir.path().join("s/index");
        fs::remove_file(&index).unwrap();
        let other = opened(dir.path(), false);
        assert_eq!(other.append(["event a", "event b", "event c", "d", "e"], None), Ok(seen));
        fs::remove_file(&index).unwrap();
        assert_eq!(reader.count(), Ok(seen + 5));
        assert_eq!(reader.event(seen + 4).unwrap().bytes, b"e");
    }
}

/// Without its index less of it may be found: who had it open shows what is intact, and the end of
/// it is no end. What others append in the place of what is lost is shown in whole batches.
#[test]
fn a_stream_that_lost_events_and_its_index_is_shown_as_before() {
    for (lost, more) in [(2..4, 0), (3..6, 2), (3..6, 3), (3..6, 4)] {
        let (dir, log, _index) = stream_of(6, |n| format!("event {n}"));
        for n in lost.clone() {
            log.write_all_at(b"!", n * 24 + 20).unwrap();
        }
        let reader = opened(dir.path(), true);
        assert_eq!(reader.count(), Ok(6));
        let index = dir.path().join("s/index");
        fs::remove_file(&index).unwrap();
        assert_eq!(reader.count(), Ok(6));
        if lost.end < 6 {
            assert_eq!(reader.event(5).unwrap().bytes, b"event 5");
        }
        assert!(reader.read(6).unwrap().all(|event| event.is_err()), "others may have followed");
        if more == 0 {
            continue;
        }
        let other = opened(dir.path(), false);
        assert_eq!(other.append(vec!["batch 0"; more], None), Ok(3));
        fs::remove_file(&index).unwrap();
        let shown: Vec<_> = reader.read(0).unwrap().map_while(smolstore::Result::ok).collect();
        assert_eq!(shown.len(), 3 + more, "the batch is whole");
    }
}

/// An index that others made, and appended with, may come and go before anybody looks.
#[test]
fn what_others_appended_is_shown_though_their_index_is_gone() {
    let append = |dir: &TempDir, events: &[&str]| {
        opened(dir.path(), false).append(events, None).unwrap();
        fs::remove_file(dir.path().join("s/index")).unwrap();
    };
    let (dir, _log, _index) = stream_of(4, |n| format!("event {n}"));
    let reader = opened(dir.path(), true);
    assert_eq!(reader.count(), Ok(4));
    append(&dir, &["a batch", "of two"]);
    assert_eq!(reader.count(), Ok(6));
    append(&dir, &["more"]);
    assert_eq!(reader.count(), Ok(7));

    // A batch in the middle of being written.
    let (dir, log, _index) = stream_of(4, |n| format!("event {n}"));
    let reader = opened(dir.path(), true);
    assert_eq!(reader.count(), Ok(4));
    append(&dir, &["event 4", "event 5", "event 6"]);
    let mut last = [0; 24];
    log.read_exact_at(&mut last, 6 * 24).unwrap();
    log.write_all_at(&[0; 24], 6 * 24).unwrap();
    assert_eq!([reader.count(), reader.count()], [Ok(4), Ok(4)]);
    log.write_all_at(&last, 6 * 24).unwrap();
    assert_eq!(reader.count(), Ok(7));

    // Who emptied it left the file.
    let (dir, _log, index) = stream_of(0, |_| String::new());
    index.set_len(0).unwrap();
    let reader = opened(dir.path(), true);
    assert_eq!(reader.count(), Ok(0));
    opened(dir.path(), false).append(["first"], None).unwrap();
    index.set_len(0).unwrap();
    assert_eq!(reader.count(), Ok(1));

    // There was no log yet.
    let (dir, ..) = stream_of(0, |_| String::new());
    for name in ["s/log", "s/index"] {
        fs::remove_file(dir.path().join(name)).unwrap();
    }
    let reader = opened(dir.path(), true);
    assert_eq!(reader.count(), Ok(0));
    append(&dir, &["first"]);
    assert_eq!(reader.count(), Ok(1));
}

/// Without an index what was shown may have come to nothing. But damage is no such thing.
#[test]
fn an_event_that_is_damaged_without_an_index_is_an_error_to_who_saw_it() {
    for (at, len) in [(3 * 24, 24), (3 * 24 + 8, 1), (3 * 24 + 20, 1)] {
        let (dir, log, _index) = stream_of(4, |n| format!("event {n}"));
        fs::remove_file(dir.path().join("s/index")).unwrap();
        let reader = opened(dir.path(), true);
        assert_eq!(reader.count(), Ok(4));
        log.write_all_at(&vec![0; len], at).unwrap();
        for _ in 0..2 {
            assert_eq!(reader.count(), Ok(4), "{at} {len}");
            assert!(matches!(reader.event(3), Err(Error::Damaged { .. })));
            assert_eq!(reader.event(2).unwrap().bytes, b"event 2");
        }
        let other = opened(dir.path(), false);
        other.append(["in its", "place"], None).unwrap();
        fs::remove_file(dir.path().join("s/index")).unwrap();
        assert_eq!(reader.count(), other.count());
    }
}

/// Somebody's index, made again by root, is still theirs.
#[test]
fn an_index_that_is_made_again_keeps_its_owner_and_mode() {
    let (dir, _log, index) = stream_of(4, |n| format!("event {n}"));
    fchown(&index, Some(1234), Some(5678)).unwrap();
    index.set_permissions(Permissions::from_mode(0o640)).unwrap();
    index.write_all_at(&[0; 16], 0).unwrap();
    let stream = opened(dir.path(), false);
    assert_eq!(stream.count(), Ok(4));
    let made = fs::metadata(dir.path().join("s/index")).unwrap();
    assert_eq!((made.uid(), made.gid(), made.mode() & 0o7777), (1234, 5678, 0o640));
    assert_ne!(made.ino(), index.metadata().unwrap().ino(), "it is another one");
}

/// The directory of a stream may be closed to changes (chmod, chattr +i): it is read all the same.
#[test]
fn an_index_that_cannot_be_replaced_is_made_again_in_place() {
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

/// What was read last is kept when it is large, but not for the event that comes in its place.
#[test]
fn a_large_event_in_the_place_of_a_lost_one_is_read_from_the_disk() {
    const LEN: usize = 600_000;
    let (dir, log, _index) = stream_of(1, |_| "old".repeat(LEN / 3));
    let stream = opened(dir.path(), false);
    let view = || stream.read_view(300, 6, &mut Cursor::default()).unwrap();
    assert_eq!(view(), b"oldold");
    log.write_all_at(&vec![0; LEN + 17], 0).unwrap();
    fs::remove_file(dir.path().join("s/index")).unwrap();
    let again = opened(dir.path(), false);
    assert_eq!(again.append(["new".repeat(LEN / 3)], None), Ok(0));
    assert_eq!(view(), b"newnew");
}

/// The index was mislaid, not deleted: with it nothing is lost.
#[test]
fn a_stream_that_is_lost_without_its_index_is_looked_at_anew_with_it() {
    for read_only in [true, false] {
        let (dir, log, _index) = stream_of(6, |n| format!("event {n}"));
        let [index, aside] = ["s/index", "aside"].map(|name| dir.path().join(name));
        for damaged in [1, 3, 4] {
            log.write_all_at(b"!", damaged * 24 + 20).unwrap();
        }
        fs::rename(&index, &aside).unwrap();
        let stream = opened(dir.path(), read_only);
        assert_eq!(stream.count(), Ok(3), "two damaged ones hide all behind them");
        assert!(stream.read(3).unwrap().all(|event| event.is_err()), "and it says so");
        fs::rename(&aside, &index).unwrap();
        assert_eq!(stream.count(), Ok(6));
        assert_eq!(stream.event(5).unwrap().bytes, b"event 5");
    }
}

/// Whoever only reads must not stay at what it found.
#[test]
fn a_stream_that_lost_events_is_looked_at_anew_when_its_index_is() {
    let (dir, _log, index) = stream_of(3, |n| format!("event {n}"));
    index.write_all_at(&4u64.to_le_bytes(), 0).unwrap();
    let reader = opened(dir.path(), true);
    assert_eq!(reader.count(), Ok(4));
    assert!(reader.event(3).is_err());
    fs::remove_file(dir.path().join("s/index")).unwrap();
    let writer = opened(dir.path(), false);
    assert_eq!(writer.append(["event 3"], None), Ok(3));
    assert_eq!(reader.event(3).unwrap().bytes, b"event 3");
    assert_eq!(writer.append(["event 4"], None), Ok(4));
    assert_eq!(reader.count(), Ok(5));
}

/// The disk lost a megabyte of a log. Whoever reads all events one by one, as the README says, or
/// looks for a time in there, does not look for each through all that is lost before it.
#[test]
fn many_damaged_events_in_a_row_are_passed_soon() {
    let (dir, log, index) = stream_of(1, |_| "x".into());
    let store = Store::open(dir.path(), false).unwrap();
    let stream = store.stream("s").unwrap();
    const COUNT: u64 = 60_000;
    stream.append((1..COUNT).map(|_| "x"), None).unwrap();
    let (from, to) = (COUNT / 4, COUNT * 3 / 4);
    log.write_all_at(&vec![0; (to - from) as usize * 18], from * 18).unwrap();
    // And a part of the index.
    index.write_all_at(&[0; 8 * 1000], entry_at(to - 1000)).unwrap();
    drop((stream, store));
    let begun = std::time::Instant::now();
    let stream = opened(dir.path(), false);
    let all: Vec<u64> = (0..COUNT).filter(|n| stream.event(*n).is_ok()).collect();
    assert!(all.iter().copied().eq((0..from).chain(to + 1..COUNT)));
    stream.since(u64::MAX).unwrap();
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
}

// A running daemon.

/// The bytes of one of the files of a stream `SN`, of five events of seven bytes, are changed; says
/// which events that hits, and whether the index counts more now.
fn damage_in_use(turn: usize, stream: &Path, random: &mut Random) -> (Vec<u64>, bool) {
    let open = |name| File::options().read(true).write(true).open(stream.join(name));
    let (log, index) = (open("log").unwrap(), open("index").unwrap());
    let flip = |file: &File, at: usize, bit: usize| {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at as u64).unwrap();
        file.write_all_at(&[byte[0] ^ 1 << bit], at as u64).unwrap();
    };
    let (frame, n) = (7 + 17, random.below(5));
    let at = n * frame + random.below(frame);
    let entries = usize::try_from(entry_at(5) - ENTRIES).unwrap();
    match turn % 8 {
        0..=2 => flip(&log, at, random.below(8)),
        3 => log.set_len(at as u64).unwrap(),
        4 => index.set_len(random.below(16 + entries) as u64).unwrap(),
        5 => fs::remove_file(stream.join("index")).unwrap(),
        6 => flip(&index, 8 + random.below(8 + entries), random.below(8)),
        _ => flip(&index, 1 + random.below(7), random.below(8)),
    }
    let n = n as u64;
    match turn % 8 {
        0..=2 => (vec![n], false),
        3 => ((n..5).collect(), false),
        kind => (vec![], kind == 7),
    }
}

#[test]
fn a_daemon_that_meets_damage_says_so_and_serves_the_rest() {
    const TURNS: usize = 48;
    let (m, mut random) = (Mnt::new(), Random(6));
    let other = m.stream("other");
    let event = |n: u64| format!("event {n}\n");
    let check = |name: &str, bad: &[u64], more: bool, len: u64| {
        let s = m.path().join(name);
        assert!(count(&s) == len || more && count(&s) > len, "{name}");
        for n in 0..len {
            let got = fs::read(s.join(format!("at/{n}")));
            if bad.contains(&n) {
                assert_eq!(errno_of(got), libc::EIO, "{name} {n}");
                let line = format!("stream {name:?}, event {n}: ");
                assert!(m.log().contains(&line), "no {line:?}: {}", m.log());
            } else {
                assert_eq!(text(&got.unwrap()) + "\n", event(n), "{name}");
            }
        }
        // As far as it goes, and then an error: no end where events are missing.
        let (mut all, mut piece) = (Vec::new(), [0; 100]);
        let mut file = File::open(s.join("from/0")).unwrap();
        let ended = loop {
            match file.read(&mut piece) {
                Ok(0) => break Ok(()),
                Ok(n) => all.extend(&piece[..n]),
                Err(error) => break Err(error),
            }
        };
        let first = bad.first().copied().unwrap_or(len);
        assert_eq!(text(&all), (0..first).map(event).collect::<String>(), "{name}");
        match ended {
            Ok(()) => assert!(bad.is_empty() && !more, "{name}: an end"),
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EIO), "{name}"),
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
        let (bad, more) = damage_in_use(turn, &m.store().join(&name), &mut random);
        check(&name, &bad, more, 5);
        append(other.join("events"), event(turn as u64));
        let mut len = 5;
        match try_append(s.join("events"), event(5)) {
            Ok(()) => len = 6,
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EIO), "{name}"),
        }
        assert!(!more || len == 5, "{name}: behind what is missing");
        check(&name, &bad, more, len);
        damaged.push((name, bad, more, len));
    }
    m.restart();
    for (name, bad, more, len) in &damaged {
        check(name, bad, *more, *len);
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
    for wrong in [(1 << 40) + 5, 1 << 60, 1 << 63, u64::MAX] {
        m.stop();
        let mut options = OpenOptions::new();
        let index = options.write(true).open(m.store().join("s/index")).unwrap();
        index.write_all_at(&u64::to_le_bytes(wrong), 0).unwrap();
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
