//! The engine without a mount: what it asks of the disk, and that it is a `Vec` for each stream.

use crate::format::{self, CONT, LAST, MORE, blocks, u64_at};
use proptest::prelude::*;
use smolstore::disk::{Disk, Names, Opened, Real, Stat};
use smolstore::{Error, Store, Stream, batch::Shape, stream::Cursor};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Barrier, Mutex};
use tempfile::TempDir;

/// The real disk, with a record of what changes it, and switches that make it fail.
struct Watched {
    real: Real,
    seen: Arc<Seen>,
}

#[derive(Default)]
struct Seen {
    calls: Mutex<Vec<&'static str>>,
    /// What was read of which file: the place, and how many bytes were asked for.
    reads: Mutex<Vec<(&'static str, u64, usize)>>,
    fail_sync: AtomicBool,
    over_quota: AtomicBool,
    /// There is no room in a log from there on, 0 for no end.
    full: AtomicU64,
    /// Whoever unlocks is told that it was cut off, as on a distributed file system.
    cut_off: AtomicBool,
    /// What writes to an index answer, 0 for nothing wrong,
    fail_index: AtomicI32,
    /// from this offset on.
    fail_from: AtomicU64,
    /// What the store logged.
    said: Mutex<Vec<String>>,
    /// Each sync waits until as many are under way.
    meet: Mutex<Option<Arc<Barrier>>>,
}

impl Seen {
    fn note(&self, call: &'static str) {
        self.calls.lock().unwrap().push(call);
    }

    fn take(&self) -> Vec<&'static str> {
        std::mem::take(&mut self.calls.lock().unwrap())
    }

    fn take_reads(&self) -> Vec<(&'static str, u64, usize)> {
        std::mem::take(&mut self.reads.lock().unwrap())
    }
}

/// An open file that knows whether it is a log.
struct Named(Opened, &'static str);

impl Disk for Watched {
    type File = Named;

    fn open(&self, path: &Path, create: bool) -> io::Result<Named> {
        let name = if path.ends_with("log") { "log" } else { "index" };
        Ok(Named(self.real.open(path, create)?, name))
    }
    fn scratch(&self) -> io::Result<Named> {
        Ok(Named(self.real.scratch()?, "scratch"))
    }
    fn read_at(&self, file: &Named, bytes: &mut [u8], at: u64) -> io::Result<usize> {
        self.seen.reads.lock().unwrap().push((file.1, at, bytes.len()));
        self.real.read_at(&file.0, bytes, at)
    }
    fn write_at(&self, file: &Named, bytes: &[u8], at: u64) -> io::Result<usize> {
        self.seen.note(file.1);
        let errno = self.seen.fail_index.load(SeqCst);
        if file.1 == "index" && errno != 0 && at >= self.seen.fail_from.load(SeqCst) {
            return Err(io::Error::from_raw_os_error(errno));
        }
        let full = self.seen.full.load(SeqCst);
        if file.1 == "log" && full > 0 && at + bytes.len() as u64 > full {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        self.real.write_at(&file.0, bytes, at)
    }
    fn reserve(&self, file: &Named, from: u64, filled: u64, to: u64) -> io::Result<()> {
        if self.seen.over_quota.load(SeqCst) {
            return Err(io::Error::from_raw_os_error(libc::EDQUOT));
        }
        self.real.reserve(&file.0, from, filled, to)
    }
    fn punch(&self, file: &Named, from: u64, to: u64) -> io::Result<()> {
        self.seen.note("punch");
        self.real.punch(&file.0, from, to)
    }
    fn forget(&self, file: &Named, from: u64) -> io::Result<()> {
        self.real.forget(&file.0, from)
    }
    fn set_len(&self, file: &Named, len: u64) -> io::Result<()> {
        self.seen.note("cut");
        self.real.set_len(&file.0, len)
    }
    fn sync_data(&self, file: &Named) -> io::Result<()> {
        self.seen.note("sync");
        let meet = self.seen.meet.lock().unwrap().clone();
        if let Some(meet) = meet {
            meet.wait();
        }
        if self.seen.fail_sync.load(SeqCst) {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        self.real.sync_data(&file.0)
    }
    fn stat(&self, file: &Named) -> io::Result<Stat> {
        self.real.stat(&file.0)
    }
    fn lock(&self, file: &Named, shared: bool) -> io::Result<()> {
        self.real.lock(&file.0, shared)
    }
    fn try_lock(&self, file: &Named, shared: bool) -> io::Result<bool> {
        self.real.try_lock(&file.0, shared)
    }
    fn unlock(&self, file: &Named) -> io::Result<()> {
        self.real.unlock(&file.0)?;
        let cut_off = self.seen.cut_off.load(SeqCst);
        if cut_off { Err(io::Error::from_raw_os_error(libc::EIO)) } else { Ok(()) }
    }
    fn identity(&self, path: &Path) -> io::Result<u64> {
        self.real.identity(path)
    }
    fn create_dir(&self, path: &Path, mode: u32) -> io::Result<()> {
        self.real.create_dir(path, mode)
    }
    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.real.remove_dir(path)
    }
    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.real.remove_file(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.real.rename(from, to)
    }
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.seen.note("sync names");
        self.real.sync_dir(path)
    }
    fn streams(&self) -> io::Result<Names> {
        self.real.streams()
    }
    fn now(&self) -> u64 {
        self.real.now()
    }
    fn random(&self) -> io::Result<u64> {
        self.real.random()
    }
}

type Watching = Arc<Store<Watched>>;

fn watched(dir: &TempDir) -> (Watching, Arc<Seen>) {
    let (path, seen) = (dir.path().to_path_buf(), Arc::new(Seen::default()));
    let disk = Watched { real: Real::local(path), seen: seen.clone() };
    let log = seen.clone();
    let log = move |line: &str| log.said.lock().unwrap().push(line.into());
    (Arc::new(Store::on(disk, false, Box::new(log))), seen)
}

fn payloads<D: Disk>(store: &Store<D>, name: &str, from: u64) -> Vec<Vec<u8>> {
    let events = store.stream(name).unwrap().read(from).unwrap();
    events.map(|event| event.unwrap().bytes).collect()
}

/// A store with a stream `s` that holds one event, `kept`; and what is watched.
fn with_one() -> (TempDir, Watching, Arc<Seen>, Arc<Stream<Watched>>) {
    let dir = TempDir::new().unwrap();
    let (store, seen) = watched(&dir);
    store.create("s", 0o755).unwrap();
    let s = store.stream("s").unwrap();
    s.append(["kept"], None).unwrap();
    seen.take();
    (dir, store, seen, s)
}

/// It fits no chain, so there is nothing to be done about it.
#[test]
fn what_is_left_behind_the_end_is_neither_shown_nor_cut() {
    let (dir, ..) = with_one();
    let path = dir.path().join("s/log");
    let log = File::options().write(true).open(&path).unwrap();
    let end = blocks(&fs::read(&path).unwrap())[0].end() as u64;
    log.write_all_at(b"the rest of a batch", end).unwrap();
    let (store, seen) = watched(&dir);
    assert_eq!(payloads(&store, "s", 0), [b"kept"]);
    assert_eq!(seen.take(), [""; 0]);
    store.stream("s").unwrap().append(["next"], None).unwrap();
    assert_eq!(seen.take(), ["log", "sync", "index"]);
    assert_eq!(payloads(&store, "s", 0), [b"kept", b"next"]);
}

/// `check` and mounts that may not write share the lock of a log while they find out what there is.
#[test]
fn a_use_waits_for_those_who_only_look_at_a_commit_without_an_end() {
    let (dir, ..) = with_one();
    let path = dir.path().join("s/log");
    let log = File::options().read(true).write(true).open(&path).unwrap();
    let bytes = fs::read(&path).unwrap();
    let ([seed, ..], last) = (format::head(&bytes).unwrap(), &blocks(&bytes)[0]);
    let torn = format::Block {
        at: last.end(),
        flags: format::FIRST,
        prev: last.crc,
        index: last.next(),
        time: last.time + 1,
        view: last.view + last.payload.len(),
        ..last.clone()
    };
    log.write_all_at(&torn.encode(seed), torn.at as u64).unwrap();
    let (store, seen) = watched(&dir);
    log.lock_shared().unwrap();
    let looking = unlock_soon(log);
    assert_eq!(store.stream("s").unwrap().count(), Ok(1));
    assert_eq!(seen.take(), [""; 0]);
    looking.join().unwrap();
}

/// As when the stream is being removed, or made durable again.
#[test]
fn who_may_not_write_waits_for_who_is_at_work_on_a_log_without_an_index() {
    let (dir, ..) = with_one();
    fs::remove_file(dir.path().join("s/index")).unwrap();
    let path = dir.path().join("s/log");
    let log = File::options().read(true).write(true).open(&path).unwrap();
    let bytes = fs::read(&path).unwrap();
    let [seed, ..] = format::head(&bytes).unwrap();
    // A first commit that did not come to its end.
    let torn = format::Block { flags: format::FIRST, ..blocks(&bytes)[0].clone() };
    log.write_all_at(&torn.encode(seed), torn.at as u64).unwrap();
    log.lock().unwrap();
    let at_work = unlock_soon(log);
    let store = Store::on(Real::local(dir.path()), true, Box::new(|_| {}));
    assert_eq!(store.stream("s").unwrap().count(), Ok(0));
    at_work.join().unwrap();
}

fn unlock_soon(log: File) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(300));
        log.unlock().unwrap();
    })
}

/// With the clock behind and an event cut at the end of a page, two commits may begin with the same block.
#[test]
fn a_commit_that_begins_as_one_without_an_end_did_is_another() {
    let (dir, ..) = with_one();
    let path = dir.path().join("s/log");
    let log = File::options().read(true).write(true).open(&path).unwrap();
    let bytes = fs::read(&path).unwrap();
    let ([seed, ..], last) = (format::head(&bytes).unwrap(), &blocks(&bytes)[0]);
    let begin = format::Block {
        at: last.end(),
        flags: format::FIRST | format::MORE,
        prev: last.crc,
        events: 0,
        index: last.next(),
        time: last.time + 1,
        view: last.view + last.payload.len(),
        payload: b"x".to_vec(),
        ..last.clone()
    };
    log.write_all_at(&begin.encode(seed), begin.at as u64).unwrap();
    let (store, _) = watched(&dir);
    let s = store.stream("s").unwrap();
    assert_eq!(s.count(), Ok(1));
    let begun = blocks(&fs::read(&path).unwrap())[1].clone();
    let end = format::Block {
        at: begun.end(),
        flags: format::LAST | format::CONT,
        prev: begun.crc,
        events: 1,
        view: begun.view + 1,
        payload: b"y\n".to_vec(),
        ..begun
    };
    log.write_all_at(&end.encode(seed), end.at as u64).unwrap();
    assert_eq!(s.count(), Ok(2));
    assert_eq!(s.append(["next"], None), Ok(2));
    assert_eq!(payloads(&store, "s", 0), [&b"kept"[..], b"xy", b"next"]);
}

/// While somebody is at work on the log only the index tells a reader of what was acknowledged.
#[test]
fn an_index_that_says_the_same_of_another_log_is_not_the_one_that_was_seen() {
    let (dir, store, ..) = with_one();
    store.create("t", 0o755).unwrap();
    let t = store.stream("t").unwrap();
    t.append(["kept"], None).unwrap();
    t.append(["more"], None).unwrap();
    drop(store);
    // As from a backup that mixed them up.
    fs::copy(dir.path().join("t/index"), dir.path().join("s/index")).unwrap();
    let reader = Store::on(Real::local(dir.path()), true, Box::new(|_| {}));
    let reader = reader.stream("s").unwrap();
    assert_eq!(reader.count(), Ok(1));
    let (store, _) = watched(&dir);
    store.stream("s").unwrap().append(["more"], None).unwrap();
    let log = File::open(dir.path().join("s/log")).unwrap();
    log.lock().unwrap();
    assert_eq!(reader.count(), Ok(2));
}

#[test]
fn an_index_that_says_nothing_any_more_is_not_the_one_that_was_made_again() {
    let (dir, ..) = with_one();
    let index = dir.path().join("s/index");
    fs::remove_file(&index).unwrap();
    let (one, _) = watched(&dir);
    let s = one.stream("s").unwrap();
    assert_eq!(s.count(), Ok(1));
    let (other, _) = watched(&dir);
    other.stream("s").unwrap().append(["more"], None).unwrap();
    File::options().write(true).open(&index).unwrap().write_all_at(&[0; 16], 0).unwrap();
    let log = File::open(dir.path().join("s/log")).unwrap();
    log.lock().unwrap();
    let at_work = unlock_soon(log);
    assert_eq!(s.count(), Ok(2));
    at_work.join().unwrap();
}

#[test]
fn who_opened_an_empty_stream_sees_its_events_though_the_index_reads_as_it_did_then() {
    let dir = TempDir::new().unwrap();
    let (one, _) = watched(&dir);
    one.create("s", 0o755).unwrap();
    let s = one.stream("s").unwrap();
    assert_eq!(s.count(), Ok(0));
    let other = watched(&dir).0.stream("s").unwrap();
    other.append(["dropped", "too"], None).unwrap();
    other.drop_before(2).unwrap();
    let index = dir.path().join("s/index");
    File::options().write(true).open(index).unwrap().write_all_at(&[0; 16], 0).unwrap();
    let log = File::open(dir.path().join("s/log")).unwrap();
    log.lock().unwrap();
    let at_work = unlock_soon(log);
    assert_eq!((s.first(), s.count()), (Ok(2), Ok(2)));
    at_work.join().unwrap();
}

/// Of a `last` that is further on nobody could say that it is sound.
#[test]
fn no_log_gets_longer_than_its_index_can_tell() {
    // Where a file may be that long, and need not take up the space.
    let dir = TempDir::new_in("/dev/shm").unwrap();
    let store = Store::open(dir.path(), false).unwrap();
    store.create("s", 0o755).unwrap();
    store.stream("s").unwrap().append(["kept"], None).unwrap();
    drop(store);
    let log = File::options().read(true).write(true).open(dir.path().join("s/log")).unwrap();
    let bytes = fs::read(dir.path().join("s/log")).unwrap();
    let [seed, ..] = format::head(&bytes).unwrap();
    // As when all before it was dropped.
    let at = (1 << 48) - 200;
    let block = format::Block { at, index: 7, view: 70, ..blocks(&bytes)[0].clone() };
    log.write_all_at(&block.encode(seed), at as u64).unwrap();
    let head = smolstore::page::Head { seed, first: 7, at: at as u64, view: 70 };
    log.write_all_at(&head.encode(), 0).unwrap();
    format::set_last(&dir.path().join("s"), at as u64);
    let s = Store::open(dir.path(), false).unwrap().stream("s").unwrap();
    let refused = s.append(["more"], None);
    assert!(matches!(refused, Err(Error::Os { errno: libc::EFBIG, .. })), "{refused:?}");
    assert_eq!((s.count(), s.event(7).unwrap().bytes), (Ok(8), b"kept".to_vec()));
}

/// It may be in the page cache only, or on pages whose sync has failed. Those before it are durable.
#[test]
fn the_last_of_what_a_crash_left_is_written_again_and_synced_before_it_is_shown() {
    let (dir, _, _, s) = with_one();
    for n in 1..4 {
        s.append([format!("{n}")], None).unwrap();
    }
    format::set_last(&dir.path().join("s"), 40);
    let (store, seen) = watched(&dir);
    assert_eq!(store.stream("s").unwrap().count(), Ok(4));
    // With the head, which might have come with it.
    assert_eq!(seen.take(), ["log", "log", "sync", "sync names", "sync names", "index"]);
    let (store, seen) = watched(&dir);
    assert_eq!(store.stream("s").unwrap().count(), Ok(4));
    assert_eq!(seen.take(), [""; 0], "once");
}

#[test]
fn a_commit_is_one_sync_and_the_word_that_shows_it_comes_last() {
    let dir = TempDir::new().unwrap();
    let (store, seen) = watched(&dir);
    store.create("s", 0o755).unwrap();
    let s = store.stream("s").unwrap();
    seen.take();
    s.append(["first"], None).unwrap();
    assert_eq!(
        seen.take(),
        ["index", "log", "sync", "sync names", "sync names", "index"],
        "there is room for what comes last, and before it all names are durable"
    );
    for _ in 0..3 {
        s.append(["one", "more"], None).unwrap();
        assert_eq!(seen.take(), ["log", "sync", "index"]);
    }
    s.append(["x".repeat(5000)], None).unwrap();
    assert_eq!(seen.take(), ["log", "index", "sync", "index"], "with the entry of a page");
    s.append([""; 0], None).unwrap();
    assert!(seen.take().is_empty(), "no events, nothing happens");
}

/// So many bytes of this file were read.
fn bytes_of(reads: &[(&'static str, u64, usize)], file: &str) -> usize {
    reads.iter().filter(|(name, ..)| *name == file).map(|(.., len)| len).sum()
}

/// A stream of 8 MiB in which event n is at byte 40 n of the view, in commits of 1,000 events.
fn long(dir: &TempDir) -> u64 {
    let store = Store::open(dir.path(), false).unwrap();
    store.create("s", 0o755).unwrap();
    let s = store.stream("s").unwrap();
    for n in 0..200u64 {
        s.append((n * 1000..(n + 1) * 1000).map(|n| format!("{n:0>39}")), None).unwrap();
    }
    200_000
}

/// Not the log.
#[test]
fn the_first_use_of_a_stream_reads_one_block_and_what_came_after_it() {
    let dir = TempDir::new().unwrap();
    let count = long(&dir);
    let (store, seen) = watched(&dir);
    let s = store.stream("s").unwrap();
    assert_eq!(s.count(), Ok(count));
    let reads = seen.take_reads();
    let log = blocks(&fs::read(dir.path().join("s/log")).unwrap());
    let last = log.last().unwrap().at as u64;
    let others =
        reads.iter().filter(|(file, at, _)| *file == "log" && *at != 0 && at + 4096 <= last);
    assert_eq!(others.count(), 0, "{reads:?}");
    // And the room ahead: were there damage, what is behind would have to be found.
    let ahead = fs::metadata(dir.path().join("s/log")).unwrap().len() - last;
    assert!(bytes_of(&reads, "log") as u64 <= ahead + 2 * (256 << 10), "{reads:?}");
    assert!(bytes_of(&reads, "index") < 100, "{reads:?}");
    // What came after it: a quarter.
    let earlier = log[log.len() * 3 / 4..].iter().find(|block| block.flags & LAST > 0).unwrap().at;
    format::set_last(&dir.path().join("s"), earlier as u64);
    let (store, seen) = watched(&dir);
    assert_eq!(store.stream("s").unwrap().count(), Ok(count));
    let reads = seen.take_reads();
    let before = reads
        .iter()
        .filter(|(file, at, _)| *file == "log" && *at != 0 && at + 4096 <= earlier as u64);
    assert_eq!(before.count(), 0, "{reads:?}");
}

#[test]
fn with_its_index_deleted_a_log_is_read_once() {
    let dir = TempDir::new().unwrap();
    let count = long(&dir);
    fs::remove_file(dir.path().join("s/index")).unwrap();
    let len = fs::metadata(dir.path().join("s/log")).unwrap().len();
    for read_only in [true, false] {
        let (path, seen) = (dir.path().to_path_buf(), Arc::new(Seen::default()));
        let disk = Watched { real: Real::local(path), seen: seen.clone() };
        let store = Store::on(disk, read_only, Box::new(|_| {}));
        let s = store.stream("s").unwrap();
        assert_eq!(s.count(), Ok(count));
        let reads = seen.take_reads();
        // Who may write nothing gives up the cache, and reads what the disk has.
        let times = if read_only { 2 } else { 1 };
        assert!(bytes_of(&reads, "log") as u64 <= times * len + (2 << 20), "of {len}: {reads:?}");
        assert!(reads.len() as u64 <= times * len / (256 << 10) + 50, "{}", reads.len());
        seen.take_reads();
        for n in [0, 77_777, count - 1] {
            assert_eq!(s.event(n).unwrap().bytes, format!("{n:0>39}").as_bytes());
        }
        // A search among 2,000 pages that tell of themselves.
        assert!(seen.take_reads().len() < 200);
    }
    // Made again as pages are met.
    let (store, seen) = watched(&dir);
    let s = store.stream("s").unwrap();
    s.event(77_777).unwrap();
    seen.take_reads();
    s.event(77_777).unwrap();
    let reads = seen.take_reads();
    let pages: BTreeSet<u64> = reads.iter().filter(|r| r.0 == "log").map(|r| r.1 / 4096).collect();
    assert!(pages.len() <= 3, "head, end and one: {reads:?}");
}

#[test]
fn to_read_a_small_event_is_a_page_of_the_log_and_a_few_words_of_the_index() {
    let dir = TempDir::new().unwrap();
    let count = long(&dir);
    let log_blocks = blocks(&fs::read(dir.path().join("s/log")).unwrap());
    let end = log_blocks.last().unwrap().at as u64;
    let (store, seen) = watched(&dir);
    let s = store.stream("s").unwrap();
    for n in [0, 1, 12_345, 100_000, 100_001, count - 1] {
        seen.take_reads();
        let event = s.event(n).unwrap();
        assert_eq!(event.bytes, format!("{n:0>39}").as_bytes());
        let reads = seen.take_reads();
        // But for the head, and a look whether there is more at the end.
        let other = |at: u64| at > 0 && at / 4096 != end / 4096;
        let log = reads.iter().filter(|(file, at, _)| *file == "log" && other(*at));
        let pages: BTreeSet<u64> =
            log.flat_map(|(_, at, len)| at / 4096..(at + *len as u64).div_ceil(4096)).collect();
        // Two where it lies across their border.
        let cut = log_blocks
            .iter()
            .any(|b| (b.index == n && b.flags & CONT > 0) || (b.next() == n && b.flags & MORE > 0));
        assert!(pages.len() <= 1 + usize::from(cut), "{n}: {reads:?}");
        // log2 of 2,000 pages.
        assert!(bytes_of(&reads, "index") <= 30 * 16, "{n}: {reads:?}");
    }
}

#[test]
fn batches_that_wait_share_a_sync() {
    let dir = TempDir::new().unwrap();
    let (store, seen) = watched(&dir);
    store.create("s", 0o755).unwrap();
    let s = store.stream("s").unwrap();
    s.append(["first"], None).unwrap();
    seen.take();
    // The first commit waits in its sync until the others have queued up behind it.
    let gate = Arc::new(Barrier::new(2));
    *seen.meet.lock().unwrap() = Some(gate.clone());
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..9)
            .map(|n| {
                let writer = scope.spawn({
                    let s = s.clone();
                    move || s.append([format!("{n}")], None).unwrap()
                });
                if n == 0 {
                    while !seen.calls.lock().unwrap().contains(&"sync") {
                        std::thread::yield_now();
                    }
                }
                writer
            })
            .collect();
        // They are in the queue when they do not come back; there is nothing to see of that.
        std::thread::sleep(std::time::Duration::from_millis(300));
        *seen.meet.lock().unwrap() = None;
        gate.wait();
        let mut indices: Vec<u64> = writers.into_iter().map(|w| w.join().unwrap()).collect();
        indices.sort_unstable();
        assert_eq!(indices, (1..=9).collect::<Vec<_>>());
    });
    let syncs = seen.take().iter().filter(|call| **call == "sync").count();
    assert_eq!(syncs, 2, "one for the first, one for the eight behind it");
}

#[test]
fn streams_sync_in_parallel() {
    let dir = TempDir::new().unwrap();
    let (store, seen) = watched(&dir);
    for name in ["a", "b", "c"] {
        store.create(name, 0o755).unwrap();
    }
    // No sync comes back before three are under way.
    *seen.meet.lock().unwrap() = Some(Arc::new(Barrier::new(3)));
    std::thread::scope(|scope| {
        for name in ["a", "b", "c"] {
            let store = &store;
            scope.spawn(move || store.stream(name).unwrap().append(["x"], None).unwrap());
        }
    });
}

/// What became of it is found out by whoever comes next: it is there, or it is not, for good.
#[test]
fn a_failed_sync_leaves_its_commit_in_doubt_until_the_next_use() {
    let (dir, store, seen, s) = with_one();
    store.create("other", 0o755).unwrap();
    let other = store.stream("other").unwrap();
    other.append(["x"], None).unwrap();
    seen.fail_sync.store(true, SeqCst);
    let failed = s.append(["doubt"], None).unwrap_err();
    assert!(matches!(failed, Error::Unknown { .. }), "{failed}");
    assert_eq!(failed.errno(), libc::EIO);
    // Nobody is told anything that the next might be told otherwise.
    for _ in 0..2 {
        assert_eq!(s.count().unwrap_err().errno(), libc::EIO);
        assert_eq!(s.event(1).unwrap_err().errno(), libc::EIO);
        assert_eq!(s.append(["more"], None).unwrap_err().errno(), libc::EIO);
    }
    assert_eq!(other.event(0).unwrap().bytes, b"x");
    seen.fail_sync.store(false, SeqCst);
    assert_eq!(s.append(["retry"], Some(1)), Err(Error::Exists));
    assert_eq!(payloads(&store, "s", 0), [&b"kept"[..], b"doubt"]);
    let (store, _) = watched(&dir);
    assert_eq!(store.stream("s").unwrap().append(["again"], None), Ok(2));
}

/// Whatever the error: the log has it.
#[test]
fn a_commit_that_fails_behind_its_log_is_in_doubt_and_there_for_the_next_use() {
    for errno in [libc::EIO, libc::ENOSPC] {
        let (_dir, store, seen, s) = with_one();
        seen.fail_index.store(errno, SeqCst);
        let failed = s.append(["may", "be"], Some(1)).unwrap_err();
        assert!(matches!(failed, Error::Unknown { .. }), "{failed}");
        assert_eq!(failed.errno(), libc::EIO);
        assert_eq!(s.count(), Ok(3), "durable by now");
        s.append(["more"], Some(3)).unwrap_err();
        seen.fail_index.store(0, SeqCst);
        // Who retries with the guard learns it.
        assert_eq!(s.append(["may", "be"], Some(1)), Err(Error::Exists));
        let retried = s.append(["more"], Some(3));
        assert!([Ok(3), Err(Error::Exists)].contains(&retried), "{retried:?}");
        assert_eq!(payloads(&store, "s", 0), [&b"kept"[..], b"may", b"be", b"more"]);
    }
}

/// Before anything is written to the log there must be room for the word that shows it.
#[test]
fn a_first_commit_without_room_in_the_index_is_refused() {
    let dir = TempDir::new().unwrap();
    let (store, seen) = watched(&dir);
    store.create("s", 0o755).unwrap();
    let s = store.stream("s").unwrap();
    seen.fail_index.store(libc::ENOSPC, SeqCst);
    assert_eq!(s.append(["no room"], None).unwrap_err().errno(), libc::ENOSPC);
    seen.fail_index.store(0, SeqCst);
    assert_eq!(s.append(["first"], Some(0)), Ok(0));
    assert_eq!(payloads(&store, "s", 0), [b"first"]);
}

#[test]
fn an_index_of_another_log_that_cannot_be_emptied_costs_nothing_but_appends() {
    let (dir, ..) = with_one();
    let index = File::options().write(true).open(dir.path().join("s/index")).unwrap();
    index.write_all_at(&[1; 32], 0).unwrap();
    let (store, seen) = watched(&dir);
    seen.fail_index.store(libc::ENOSPC, SeqCst);
    let s = store.stream("s").unwrap();
    for _ in 0..2 {
        assert_eq!(payloads(&store, "s", 0), [b"kept"]);
    }
    s.append(["more"], None).unwrap_err();
    seen.fail_index.store(0, SeqCst);
    let retried = s.append(["more"], Some(1));
    assert!([Ok(1), Err(Error::Exists)].contains(&retried), "{retried:?}");
    assert_eq!(payloads(&store, "s", 0), [b"kept", b"more"]);
}

/// A stream may outlive its store, which must not keep it alive.
#[test]
fn a_stream_that_outlives_its_store_closes_its_files() {
    let dir = TempDir::new().unwrap();
    let (store, seen) = watched(&dir);
    store.create("s", 0o755).unwrap();
    let s = store.stream("s").unwrap();
    drop(store);
    assert_eq!(s.append(["event"], None), Ok(0));
    fs::remove_file(dir.path().join("s/index")).unwrap();
    assert_eq!(s.count(), Ok(1), "opened again");
    drop(s);
    assert_eq!(Arc::strong_count(&seen), 1, "somebody has the disk");
}

/// Whoever asks whether what it had handed in is durable, and had nothing in what failed.
#[test]
fn a_batch_without_events_is_not_told_of_the_failure_of_others() {
    let dir = TempDir::new().unwrap();
    let (store, seen) = watched(&dir);
    store.create("s", 0o755).unwrap();
    let s = store.stream("s").unwrap();
    s.append(["kept"], None).unwrap();
    let (done, told) = std::sync::mpsc::channel();
    let submit = |events: &str| {
        let mut batch = s.batch(Shape::Lines);
        batch.push(events.as_bytes()).unwrap();
        let (done, events) = (done.clone(), events.to_owned());
        s.submit(batch, None, Box::new(move |result| done.send((events, result)).unwrap()));
    };
    // The first commit waits in its sync until the others have queued up behind it.
    let gate = Arc::new(Barrier::new(2));
    *seen.meet.lock().unwrap() = Some(gate.clone());
    seen.take();
    std::thread::scope(|scope| {
        scope.spawn(|| submit("first\n"));
        while !seen.calls.lock().unwrap().contains(&"sync") {
            std::thread::yield_now();
        }
        submit("no room\n");
        submit("");
        seen.fail_index.store(libc::ENOSPC, SeqCst);
        *seen.meet.lock().unwrap() = None;
        gate.wait();
    });
    drop(done);
    let told: Vec<_> = told.iter().map(|(events, result)| (events, result.is_ok())).collect();
    let expected = [("first\n", false), ("no room\n", false), ("", true)];
    assert_eq!(told, expected.map(|(events, told)| (events.to_owned(), told)));
}

/// Nobody is to be told that it is stored by who lost the lock; who asks is told what there is.
#[test]
fn a_commit_by_who_was_cut_off_is_in_doubt() {
    let (_dir, store, seen, s) = with_one();
    seen.cut_off.store(true, SeqCst);
    let failed = s.append(["in doubt"], None).unwrap_err();
    assert!(matches!(failed, Error::Unknown { .. }), "{failed:?}");
    seen.cut_off.store(false, SeqCst);
    assert_eq!(s.append(["later"], Some(1)), Err(Error::Exists));
    assert_eq!(payloads(&store, "s", 0), [&b"kept"[..], b"in doubt"]);
}

/// The disk lost a megabyte of a log and a part of the index. Whoever reads all events one by one, as the
/// README says, does not look for each through all events that are lost before it: through their pages at
/// most.
#[test]
fn many_damaged_events_in_a_row_are_passed_soon() {
    let dir = TempDir::new().unwrap();
    let (store, _) = watched(&dir);
    store.create("s", 0o755).unwrap();
    const COUNT: u64 = 60_000;
    let events = (0..COUNT).map(|n| format!("{n:0>39}"));
    store.stream("s").unwrap().append(events, None).unwrap();
    drop(store);
    let [log, index] = ["s/log", "s/index"].map(|name| dir.path().join(name));
    let found = blocks(&fs::read(&log).unwrap());
    let lost = &found[found.len() / 4..found.len() * 3 / 4];
    let (from, to) = (&lost[0], &lost[lost.len() - 1]);
    let log = File::options().write(true).open(log).unwrap();
    log.write_all_at(&vec![0; to.end() - from.at], from.at as u64).unwrap();
    let index = File::options().write(true).open(index).unwrap();
    index.write_all_at(&[0; 16 * 100], 16 + (to.at / 4096 * 16) as u64 - 16 * 100).unwrap();
    let (store, seen) = watched(&dir);
    let s = store.stream("s").unwrap();
    // The first and the last that are lost may begin and end on a page that is intact.
    for n in (0..COUNT).step_by(7).chain([from.index, to.next(), COUNT - 1]) {
        seen.take_reads();
        let is_lost = (from.index..to.next() + 1).contains(&n);
        assert_eq!(s.event(n).is_err(), is_lost, "{n}");
        let reads = seen.take_reads().len();
        assert!(reads < 3 * lost.len() + 100, "{n}: {reads}");
    }
    s.since(u64::MAX).unwrap();
}

/// They are hints: what was committed without them is found, and they are made again.
#[test]
fn a_commit_whose_entries_find_no_room_is_committed() {
    let (dir, _, seen, s) = with_one();
    seen.fail_index.store(libc::ENOSPC, SeqCst);
    seen.fail_from.store(16, SeqCst);
    let mut batch = s.batch(Shape::Lines);
    batch.push("1\n22\n\n".repeat(20_000).as_bytes()).unwrap();
    assert_eq!(s.commit(batch, None), Ok(1));
    assert_eq!(s.append(["last"], Some(60_001)), Ok(60_001));
    assert_eq!(s.event(40_001).unwrap().bytes, b"22");
    let index = || fs::read(dir.path().join("s/index")).unwrap();
    assert_eq!(index().len(), 16);
    seen.fail_index.store(0, SeqCst);
    for n in [0, 40_001, 60_001] {
        s.event(n).unwrap();
    }
    // Those that were met say which event and which byte their page begins with.
    let log = blocks(&fs::read(dir.path().join("s/log")).unwrap());
    let mut known = 0;
    for (page, entry) in index()[16..].as_chunks::<16>().0.iter().enumerate() {
        let first = log.iter().find(|block| block.at / 4096 == page).unwrap();
        let says = (u64_at(entry, 0), u64_at(entry, 8));
        assert!([(0, 0), (first.index, first.view as u64)].contains(&says), "{page}: {says:?}");
        known += usize::from(says != (0, 0));
    }
    assert!(known > 3, "{known}");
}

/// It must not take others with it that share its sync.
#[test]
fn of_a_group_one_that_meets_a_full_disk_fails_alone() {
    let (dir, _, seen, s) = with_one();
    let (done, told) = std::sync::mpsc::channel();
    let submit = |name: &'static str, len: usize| {
        let mut batch = s.batch(Shape::Lines);
        batch.push(&[name.as_bytes(), &vec![b'x'; len]].concat()).unwrap();
        let done = done.clone();
        s.submit(batch, None, Box::new(move |result| done.send((name, result)).unwrap()));
    };
    let gate = Arc::new(Barrier::new(2));
    *seen.meet.lock().unwrap() = Some(gate.clone());
    std::thread::scope(|scope| {
        scope.spawn(|| submit("first", 0));
        while !seen.calls.lock().unwrap().contains(&"sync") {
            std::thread::yield_now();
        }
        submit("second", 0);
        submit("large", 100_000);
        submit("third", 0);
        seen.full.store(40_000, SeqCst);
        *seen.meet.lock().unwrap() = None;
        gate.wait();
    });
    drop(done);
    let mut told: Vec<_> =
        told.iter().map(|(name, result)| (name, result.map_err(|e| e.errno()))).collect();
    told.sort_unstable();
    let expected =
        [("first", Ok(1)), ("large", Err(libc::ENOSPC)), ("second", Ok(2)), ("third", Ok(3))];
    assert_eq!(told, expected);
    let (again, _) = watched(&dir);
    assert_eq!(payloads(&again, "s", 0), [&b"kept"[..], b"first", b"second", b"third"]);
}

#[test]
fn a_quota_is_met_by_the_write_and_nothing_of_the_batch_is_stored() {
    let dir = TempDir::new().unwrap();
    let (store, seen) = watched(&dir);
    store.create("s", 0o755).unwrap();
    let s = store.stream("s").unwrap();
    s.append(["kept"], None).unwrap();
    seen.over_quota.store(true, SeqCst);
    let mut batch = s.batch(Shape::Lines);
    let refused = batch.push(&[b'x'; 10_000]).unwrap_err();
    assert_eq!(refused.errno(), libc::EDQUOT);
    drop(batch);
    seen.over_quota.store(false, SeqCst);
    assert_eq!(s.append(["later"], None), Ok(1));
    assert_eq!(payloads(&store, "s", 0), [&b"kept"[..], b"later"]);
}

#[test]
fn where_the_disk_lost_events_the_end_is_an_error() {
    let dir = TempDir::new().unwrap();
    let store = Store::open(dir.path(), false).unwrap();
    store.create("s", 0o755).unwrap();
    let s = store.stream("s").unwrap();
    for n in 0..5 {
        s.append([format!("event {n}")], None).unwrap();
    }
    drop((s, store));
    let path = dir.path().join("s/log");
    let last = blocks(&fs::read(&path).unwrap())[4].at as u64;
    File::options().write(true).open(&path).unwrap().write_all_at(b"E", last + 40).unwrap();
    let store = Store::open(dir.path(), false).unwrap();
    let s = store.stream("s").unwrap();
    let read = |n| s.read(n).unwrap().map(|event| event.map(|event| event.index));
    let damaged = |error: &Error| matches!(error, Error::Damaged { .. });
    assert_eq!(s.count(), Ok(4));
    assert_eq!(s.event(0).unwrap().bytes, b"event 0");
    let from_3: Vec<_> = read(3).collect();
    assert!(matches!(&from_3[..], [Ok(3), Err(error)] if damaged(error)), "{from_3:?}");
    let from_4: Vec<_> = read(4).collect();
    assert!(matches!(&from_4[..], [Err(error)] if damaged(error)), "{from_4:?}");
    for n in [4, 5, 1000] {
        assert!(s.event(n).is_err_and(|error| damaged(&error)), "nobody knows of {n}");
    }
    let view = |offset, size| s.read_view(offset, size, &mut Cursor::default());
    assert_eq!(view(0, 8).unwrap(), b"event 0\n");
    assert!(view(32, 8).is_err_and(|error| damaged(&error)), "not the end: {:?}", view(32, 8));
    assert_eq!(view(32, 0), Ok(Vec::new()), "a reader of one event ends behind it");
}

#[test]
fn a_stream_renamed_or_removed_by_another_process_is_not_mistaken_for_its_successor() {
    let dir = TempDir::new().unwrap();
    let [ours, theirs] = [(), ()].map(|()| Store::open(dir.path(), false).unwrap());
    ours.create("s", 0o755).unwrap();
    let open = ours.stream("s").unwrap();
    open.append(["a"], None).unwrap();
    theirs.rename("s", "t").unwrap();
    theirs.create("s", 0o755).unwrap();
    theirs.stream("s").unwrap().append(["b"], None).unwrap();
    // What is open is the stream it was, by name it is the new one.
    assert_eq!(open.append(["c"], None), Ok(1));
    assert_eq!(payloads(&ours, "s", 0), [b"b"]);
    assert_eq!(payloads(&ours, "t", 0), [b"a", b"c"]);
    ours.create("gone", 0o755).unwrap();
    let open = ours.stream("gone").unwrap();
    theirs.remove("gone").unwrap();
    assert_eq!(open.append(["x"], None), Err(Error::NotFound));
    assert_eq!(ours.stream("gone").err(), Some(Error::NotFound));
}

#[derive(Clone, Debug)]
enum Op {
    Create(usize),
    Append(usize, Vec<Vec<u8>>),
    Guarded(usize, i64, Vec<Vec<u8>>),
    Lines(usize, Vec<u8>),
    Abandon(usize, Vec<u8>),
    Read(usize, prop::sample::Index),
    Since(usize, prop::sample::Index),
    Rename(usize, usize),
    Remove(usize),
    DeleteIndex(usize),
    Reopen,
    /// The next operations go to the other of two stores on the directory.
    Switch,
}

fn op() -> impl Strategy<Value = Op> {
    let stream = || 0..3_usize;
    let event = prop_oneof![
        8 => prop::collection::vec(any::<u8>(), 0..40),
        1 => (1..70_000_usize).prop_map(|len| vec![b'x'; len]),
    ];
    let events = || prop::collection::vec(event.clone(), 0..5);
    let lines = "[a-c\n]{0,60}".prop_map(String::into_bytes);
    prop_oneof![
        3 => stream().prop_map(Op::Create),
        8 => (stream(), events()).prop_map(|(s, e)| Op::Append(s, e)),
        4 => (stream(), -1..2_i64, events()).prop_map(|(s, g, e)| Op::Guarded(s, g, e)),
        4 => (stream(), lines.clone()).prop_map(|(s, l)| Op::Lines(s, l)),
        1 => (stream(), lines).prop_map(|(s, l)| Op::Abandon(s, l)),
        6 => (stream(), any::<prop::sample::Index>()).prop_map(|(s, i)| Op::Read(s, i)),
        2 => (stream(), any::<prop::sample::Index>()).prop_map(|(s, i)| Op::Since(s, i)),
        1 => (stream(), stream()).prop_map(|(s, t)| Op::Rename(s, t)),
        1 => stream().prop_map(Op::Remove),
        1 => stream().prop_map(Op::DeleteIndex),
        1 => Just(Op::Reopen),
        2 => Just(Op::Switch),
    ]
}

const NAMES: [&str; 3] = ["a", "b", "c"];

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn a_store_is_a_vec_for_each_name(ops in prop::collection::vec(op(), 1..60)) {
        let dir = TempDir::new().unwrap();
        let open = || Store::open(dir.path(), false).unwrap();
        let mut stores = [open(), open()];
        let mut model: [Option<Vec<Vec<u8>>>; 3] = [None, None, None];
        for op in ops {
            let store = &stores[0];
            match op {
                Op::Switch => stores.swap(0, 1),
                Op::Reopen => stores[0] = open(),
                Op::Create(n) => {
                    let made = store.create(NAMES[n], 0o755);
                    prop_assert_eq!(made.is_ok(), model[n].is_none());
                    model[n].get_or_insert_default();
                }
                Op::Remove(n) => {
                    let removed = store.remove(NAMES[n]);
                    prop_assert_eq!(removed.is_ok(), model[n].as_ref().is_some_and(Vec::is_empty));
                    if removed.is_ok() {
                        model[n] = None;
                    }
                }
                Op::Rename(from, to) => {
                    let free = from == to || model[to].as_ref().is_none_or(Vec::is_empty);
                    let renamed = store.rename(NAMES[from], NAMES[to]);
                    prop_assert_eq!(renamed.is_ok(), model[from].is_some() && free);
                    if renamed.is_ok() && from != to {
                        model[to] = model[from].take();
                    }
                }
                Op::DeleteIndex(n) => {
                    let _ = std::fs::remove_file(dir.path().join(NAMES[n]).join("index"));
                }
                Op::Append(n, _) | Op::Guarded(n, _, _) | Op::Lines(n, _) | Op::Abandon(n, _)
                | Op::Read(n, _) | Op::Since(n, _) => {
                    let stream = store.stream(NAMES[n]);
                    let Some(events) = &mut model[n] else {
                        prop_assert_eq!(stream.err(), Some(Error::NotFound));
                        continue;
                    };
                    let (stream, next) = (stream.unwrap(), events.len() as u64);
                    match op {
                        Op::Append(_, new) => {
                            prop_assert_eq!(stream.append(&new, None), Ok(next));
                            events.extend(new);
                        }
                        Op::Guarded(_, off, new) => {
                            let guard = next.saturating_add_signed(off);
                            let done = stream.append(&new, Some(guard));
                            if guard == next {
                                prop_assert_eq!(done, Ok(next));
                                events.extend(new);
                            } else {
                                prop_assert_eq!(done, Err(Error::Exists));
                            }
                        }
                        Op::Lines(_, bytes) => {
                            let mut batch = stream.batch(Shape::Lines);
                            for piece in bytes.chunks(7) {
                                batch.push(piece).unwrap();
                            }
                            prop_assert_eq!(stream.commit(batch, None), Ok(next));
                            let lines = bytes.split_inclusive(|b| *b == b'\n');
                            events.extend(lines.map(|l| l.strip_suffix(b"\n").unwrap_or(l).to_vec()));
                        }
                        Op::Abandon(_, bytes) => {
                            stream.batch(Shape::Lines).push(&bytes).unwrap();
                        }
                        Op::Read(_, at) => {
                            let at = at.index(events.len() + 2);
                            let got = stream.read(at as u64).map(|all| {
                                all.map(|event| event.unwrap().bytes).collect::<Vec<_>>()
                            });
                            match events.get(at..) {
                                Some(rest) => prop_assert_eq!(got.unwrap(), rest),
                                None => prop_assert_eq!(got, Err(Error::NotFound)),
                            }
                            let one = stream.event(at as u64).map(|event| event.bytes);
                            prop_assert_eq!(one.ok(), events.get(at).cloned());
                        }
                        Op::Since(_, at) if !events.is_empty() => {
                            let time = stream.event(at.index(events.len()) as u64).unwrap().time;
                            let since = stream.since(time).unwrap();
                            prop_assert_eq!(stream.event(since).unwrap().time, time);
                            prop_assert!(since == 0 || stream.event(since - 1).unwrap().time < time);
                            let last = stream.event(next - 1).unwrap().time;
                            prop_assert_eq!(stream.since(last + 1), Ok(next));
                        }
                        _ => {}
                    }
                }
            }
            for (name, events) in NAMES.iter().zip(&model) {
                let count = stores[0].stream(name).ok().map(|s| s.count().unwrap());
                prop_assert_eq!(count, events.as_ref().map(|e| e.len() as u64));
            }
        }
        let last = open();
        for (name, events) in NAMES.iter().zip(&model) {
            if let Some(events) = events {
                prop_assert_eq!(&payloads(&last, name, 0), events);
            }
        }
    }
}
