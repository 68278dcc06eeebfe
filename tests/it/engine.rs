//! The engine without a mount: what it asks of the disk, and that it is a `Vec` for each stream.

mod commits;
mod failures;
mod reads;
mod recovery;
mod streams;

use smolstore::disk::{Disk, Names, Opened, Real, Stat};
use smolstore::{Store, Stream};
use std::io;
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
