//! The engine without a mount: what it asks of the disk, and that it is a `Vec` for each stream.

use proptest::prelude::*;
use smolstore::disk::{Disk, Names, Real, Stat};
use smolstore::{Error, Store, batch::Shape, stream::Cursor};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering::SeqCst};
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
    fail_sync: AtomicBool,
    over_quota: AtomicBool,
    /// There is no room for temporary files.
    no_scratch: AtomicBool,
    /// Whoever unlocks is told that it was cut off, as on a distributed file system.
    cut_off: AtomicBool,
    /// What writes to an index answer, 0 for nothing wrong.
    fail_index: AtomicI32,
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
}

/// An open file that knows whether it is a log.
struct Named(File, &'static str);

impl Disk for Watched {
    type File = Named;

    fn open(&self, path: &Path, create: bool) -> io::Result<Named> {
        let name = if path.ends_with("log") { "log" } else { "index" };
        Ok(Named(self.real.open(path, create)?, name))
    }
    fn scratch(&self) -> io::Result<Named> {
        if self.seen.no_scratch.load(SeqCst) {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        Ok(Named(self.real.scratch()?, "scratch"))
    }
    fn read_at(&self, file: &Named, bytes: &mut [u8], at: u64) -> io::Result<usize> {
        self.real.read_at(&file.0, bytes, at)
    }
    fn write_at(&self, file: &Named, bytes: &[u8], at: u64) -> io::Result<usize> {
        self.seen.note(file.1);
        let errno = self.seen.fail_index.load(SeqCst);
        if file.1 == "index" && errno != 0 {
            return Err(io::Error::from_raw_os_error(errno));
        }
        self.real.write_at(&file.0, bytes, at)
    }
    fn reserve(&self, file: &Named, from: u64, to: u64, large: bool) -> io::Result<()> {
        if self.seen.over_quota.load(SeqCst) {
            return Err(io::Error::from_raw_os_error(libc::EDQUOT));
        }
        self.real.reserve(&file.0, from, to, large)
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
    fn sync_all(&self, file: &Named) -> io::Result<()> {
        self.seen.note("sync all");
        self.real.sync_all(&file.0)
    }
    fn stat(&self, file: &Named) -> io::Result<Stat> {
        self.real.stat(&file.0)
    }
    fn lock(&self, file: &Named, shared: bool) -> io::Result<()> {
        self.real.lock(&file.0, shared)
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
    fn replace(&self, path: &Path, old: &Named) -> io::Result<Named> {
        Ok(Named(self.real.replace(path, &old.0)?, old.1))
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
}

fn watched(dir: &TempDir) -> (Arc<Store<Watched>>, Arc<Seen>) {
    let (path, seen) = (dir.path().to_path_buf(), Arc::new(Seen::default()));
    let disk = Watched { real: Real::new(path.clone(), path), seen: seen.clone() };
    let log = seen.clone();
    let log = move |line: &str| log.said.lock().unwrap().push(line.into());
    (Arc::new(Store::on(disk, false, Box::new(log))), seen)
}

fn payloads<D: Disk>(store: &Store<D>, name: &str, from: u64) -> Vec<Vec<u8>> {
    let events = store.stream(name).unwrap().read(from).unwrap();
    events.map(|event| event.unwrap().bytes).collect()
}

/// Or it might come back beneath what is written there: so rarely that the simulation finds it by
/// one seed in a hundred thousand.
#[test]
fn what_recovery_cuts_off_is_durable_before_anything_else() {
    let dir = TempDir::new().unwrap();
    let store = Store::open(dir.path(), false).unwrap();
    store.create("s", 0o755).unwrap();
    store.stream("s").unwrap().append(["kept"], None).unwrap();
    drop(store);
    let log = File::options().write(true).open(dir.path().join("s/log")).unwrap();
    log.write_all_at(b"the rest of a batch", 100).unwrap();
    let (store, seen) = watched(&dir);
    assert_eq!(payloads(&store, "s", 0), [b"kept"]);
    assert_eq!(seen.take(), ["cut", "sync all"]);
}

#[test]
fn a_commit_is_one_sync_and_the_count_comes_last() {
    let dir = TempDir::new().unwrap();
    let (store, seen) = watched(&dir);
    store.create("s", 0o755).unwrap();
    let s = store.stream("s").unwrap();
    seen.take();
    s.append(["first"], None).unwrap();
    assert_eq!(
        seen.take(),
        ["index", "sync all", "sync names", "sync names", "log", "sync", "index", "index"],
        "before the first event the index and all names are durable"
    );
    for _ in 0..3 {
        s.append(["one", "more"], None).unwrap();
        assert_eq!(seen.take(), ["log", "sync", "index", "index"]);
    }
    s.append([""; 0], None).unwrap();
    assert!(seen.take().is_empty(), "no events, nothing happens");
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

#[test]
fn a_failed_sync_stops_the_stream_until_the_next_mount() {
    let dir = TempDir::new().unwrap();
    let (store, seen) = watched(&dir);
    store.create("s", 0o755).unwrap();
    store.create("other", 0o755).unwrap();
    let s = store.stream("s").unwrap();
    s.append(["kept"], None).unwrap();
    seen.fail_sync.store(true, SeqCst);
    let failed = s.append(["lost"], None).unwrap_err();
    assert_eq!(failed.errno(), libc::EIO);
    seen.fail_sync.store(false, SeqCst);
    // Also when everything that could remember it in a cache is gone.
    drop(s);
    for n in 0..600 {
        let name = format!("s{n}");
        store.create(&name, 0o755).unwrap();
        store.stream(&name).unwrap();
    }
    let s = store.stream("s").unwrap();
    let refused = s.append(["again"], None).unwrap_err();
    assert!(matches!(refused, Error::Stopped { .. }), "{refused}");
    assert_eq!(payloads(&store, "s", 0), [b"kept"]);
    store.stream("other").unwrap().append(["x"], None).unwrap();

    let (store, _) = watched(&dir);
    let s = store.stream("s").unwrap();
    assert_eq!(s.append(["again"], None), Ok(1));
    assert_eq!(payloads(&store, "s", 0), [&b"kept"[..], b"again"]);
}

#[test]
fn a_commit_that_fails_behind_its_log_is_eio_and_its_batch_may_be_there() {
    let dir = TempDir::new().unwrap();
    let (store, seen) = watched(&dir);
    store.create("s", 0o755).unwrap();
    let s = store.stream("s").unwrap();
    s.append(["kept"], None).unwrap();
    seen.fail_index.store(libc::EIO, SeqCst);
    let failed = s.append(["may", "be"], Some(1)).unwrap_err();
    assert!(matches!(failed, Error::Unknown { .. }), "{failed}");
    assert_eq!(failed.errno(), libc::EIO);
    assert_eq!(s.count(), Ok(1), "not acknowledged, not visible");
    seen.fail_index.store(0, SeqCst);
    // It was durable, so the next commit adopts it; who retries with the guard learns that.
    assert_eq!(s.append(["may", "be"], Some(1)), Err(Error::Exists));
    assert_eq!(payloads(&store, "s", 0), [&b"kept"[..], b"may", b"be"]);
}

#[test]
fn a_commit_whose_count_finds_no_room_is_taken_back() {
    let dir = TempDir::new().unwrap();
    let (store, seen) = watched(&dir);
    store.create("s", 0o755).unwrap();
    let s = store.stream("s").unwrap();
    s.append(["kept"], None).unwrap();
    seen.fail_index.store(libc::ENOSPC, SeqCst);
    let failed = s.append(["no", "room"], Some(1)).unwrap_err();
    assert_eq!(failed.errno(), libc::ENOSPC);
    seen.fail_index.store(0, SeqCst);
    assert_eq!(s.append(["later"], Some(1)), Ok(1));
    assert_eq!(payloads(&store, "s", 0), [&b"kept"[..], b"later"]);
}

/// Where an index of another log is made again it is said what it counted, also when that fails.
#[test]
fn what_a_foreign_index_counts_is_said_before_it_goes() {
    let dir = TempDir::new().unwrap();
    let store = Store::open(dir.path(), false).unwrap();
    store.create("s", 0o755).unwrap();
    store.stream("s").unwrap().append(["event"], None).unwrap();
    drop(store);
    let index = File::options().write(true).open(dir.path().join("s/index")).unwrap();
    index.write_all_at(&4u64.to_le_bytes(), 0).unwrap();
    index.write_all_at(&[1; 8], 8).unwrap();
    let (store, seen) = watched(&dir);
    seen.fail_index.store(libc::ENOSPC, SeqCst);
    for _ in 0..2 {
        assert_eq!(payloads(&store, "s", 0), [b"event"]);
        let said = seen.said.lock().unwrap();
        let foreign = said.iter().filter(|line| line.contains("counts 4 events, the log has 1"));
        assert_eq!(foreign.count(), 1, "{said:?}");
    }
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

/// The cut may not have happened: simulation, seed 1795643724000056414.
#[test]
fn a_batch_taken_back_by_who_was_cut_off_is_in_doubt() {
    let dir = TempDir::new().unwrap();
    let (store, seen) = watched(&dir);
    store.create("s", 0o755).unwrap();
    let s = store.stream("s").unwrap();
    s.append(["kept"], None).unwrap();
    seen.fail_index.store(libc::ENOSPC, SeqCst);
    seen.cut_off.store(true, SeqCst);
    let failed = s.append(["in doubt"], None).unwrap_err();
    assert!(matches!(failed, Error::Unknown { .. }), "{failed:?}");
    seen.fail_index.store(0, SeqCst);
    seen.cut_off.store(false, SeqCst);
    assert_eq!(s.append(["later"], Some(1)), Ok(1));
    assert_eq!(payloads(&store, "s", 0), [&b"kept"[..], b"later"]);
}

/// More events than there is memory for their entries, without room for a temporary file.
#[test]
fn a_batch_whose_entries_find_no_room_until_the_sync_is_committed() {
    let dir = TempDir::new().unwrap();
    let (store, seen) = watched(&dir);
    store.create("s", 0o755).unwrap();
    let s = store.stream("s").unwrap();
    let mut batch = s.batch(Shape::Lines);
    batch.push("1\n22\n\n".repeat(20_000).as_bytes()).unwrap();
    seen.no_scratch.store(true, SeqCst);
    assert_eq!(s.commit(batch, None), Ok(0));
    assert_eq!(s.append(["last"], Some(60_000)), Ok(60_000));
    assert_eq!(s.event(40_000).unwrap().bytes, b"22");
    // Each entry is there: eight bytes for where each event ends.
    let index = std::fs::read(dir.path().join("s/index")).unwrap();
    let ends = index[16..].as_chunks::<8>().0[..60_001].iter().map(|end| u64::from_le_bytes(*end));
    let lens = [17 + 1, 17 + 2, 17].into_iter().cycle().take(60_000).chain([17 + 4]);
    let expected = lens.scan(0, |at, len| {
        *at += len;
        Some(*at)
    });
    assert!(ends.eq(expected));
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

/// What a crash leaves of an index may count less than there is, and lead nowhere.
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
    let [log, index] = ["s/log", "s/index"].map(|name| dir.path().join(name));
    let mut bytes = std::fs::read(&index).unwrap();
    bytes[0] = 3;
    bytes[16..].fill(0);
    std::fs::write(&index, bytes).unwrap();
    let mut bytes = std::fs::read(&log).unwrap();
    bytes[24 + 20] ^= 1;
    std::fs::write(&log, bytes).unwrap();
    let store = Store::open(dir.path(), false).unwrap();
    let s = store.stream("s").unwrap();
    let read = |n| s.read(n).unwrap().map(|event| event.map(|event| event.index));
    let damaged = |error: &Error| matches!(error, Error::Damaged { .. });
    assert_eq!(s.count(), Ok(3));
    assert_eq!(s.event(0).unwrap().bytes, b"event 0");
    let from_0: Vec<_> = read(0).collect();
    assert!(matches!(&from_0[..2], [Ok(0), Err(error)] if damaged(error)), "{from_0:?}");
    let from_3: Vec<_> = read(3).collect();
    assert!(matches!(&from_3[..], [Err(error)] if damaged(error)), "{from_3:?}");
    let view = |offset, size| s.read_view(offset, size, &mut Cursor::default());
    assert_eq!(view(0, 8).unwrap(), b"event 0\n");
    assert!(view(24, 8).is_err_and(|error| damaged(&error)), "not the end: {:?}", view(24, 8));
    assert_eq!(view(24, 0), Ok(Vec::new()), "a reader of one event ends behind it");
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
