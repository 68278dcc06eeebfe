//! A disk that is in memory, and fails like real ones: see [`World`].

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use smolstore::disk::{Disk, Names, Stat};

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn errno<T>(code: i32) -> io::Result<T> {
    Err(io::Error::from_raw_os_error(code))
}

/// splitmix64.
pub(super) struct Rng(u64);

impl Rng {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    pub(super) fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
    pub(super) fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

const SECTOR: usize = 512;
type Sector = [u8; SECTOR];

fn sector(bytes: &[u8], n: usize) -> Sector {
    let mut out = [0; SECTOR];
    let from = bytes.get(n * SECTOR..).unwrap_or_default();
    let len = from.len().min(SECTOR);
    out[..len].copy_from_slice(&from[..len]);
    out
}

fn put(bytes: &mut [u8], n: usize, sector: &Sector) {
    let to = bytes.get_mut(n * SECTOR..).unwrap_or_default();
    let len = to.len().min(SECTOR);
    to[..len].copy_from_slice(&sector[..len]);
}

/// A file: what the page cache shows, what the platter holds, and what each sector and the length
/// were in between. A crash keeps one version of each sector, and of the length.
#[derive(Default)]
pub(super) struct Inode {
    cache: Vec<u8>,
    disk: Vec<u8>,
    dirty: BTreeMap<usize, Vec<Sector>>,
    lens: Vec<usize>,
}

/// How much of what was not synced survives.
#[derive(Clone, Copy)]
enum Luck {
    None,
    All,
    /// Each one in so many.
    Some(usize),
}

impl Luck {
    fn roll(rng: &mut Rng) -> Luck {
        match rng.below(8) {
            0 => Luck::None,
            1 => Luck::All,
            n => Luck::Some([2, 2, 2, 3, 8, 20][n - 2]),
        }
    }
    fn version(self, rng: &mut Rng, versions: usize) -> usize {
        match self {
            Luck::None => 0,
            Luck::All => versions,
            Luck::Some(2) => rng.below(versions + 1),
            Luck::Some(3) if rng.one_in(3) => 0,
            // Nearly all survives, or nearly nothing does.
            Luck::Some(8) if rng.one_in(8) => 0,
            Luck::Some(20) if !rng.one_in(8) => 0,
            Luck::Some(_) => versions,
        }
    }
}

impl Inode {
    fn touch(&mut self, from: usize, to: usize) {
        for n in from / SECTOR..to.div_ceil(SECTOR) {
            let version = sector(&self.cache, n);
            self.dirty.entry(n).or_default().push(version);
        }
    }
    fn write(&mut self, bytes: &[u8], at: usize) {
        let end = at + bytes.len();
        if end > self.cache.len() {
            self.cache.resize(end, 0);
            self.lens.push(end);
        }
        self.cache[at..end].copy_from_slice(bytes);
        self.touch(at, end);
    }
    fn set_len(&mut self, len: usize) {
        let old = self.cache.len();
        self.cache.resize(len, 0);
        self.lens.push(len);
        self.touch(len, old.max(len));
    }
    /// fsync; of a shorter length fdatasync promises nothing, no data needs it.
    fn sync(&mut self, all: bool) {
        let shorter = self.cache.len() < self.disk.len() && !all;
        let end = self.cache.len().div_ceil(SECTOR);
        if !shorter {
            self.disk.resize(self.cache.len(), 0);
            self.lens.clear();
        }
        for (n, versions) in std::mem::take(&mut self.dirty) {
            if shorter && n >= end {
                self.dirty.insert(n, versions);
            } else {
                let mut now = sector(&self.cache, n);
                let edge = self.cache.len().saturating_sub(n * SECTOR).min(SECTOR);
                now[edge..].copy_from_slice(&sector(&self.disk, n)[edge..]);
                put(&mut self.disk, n, &now);
            }
        }
        if shorter {
            self.lens = vec![self.cache.len()];
        }
    }
    /// A sync that fails: some is written, and all of it passes for clean from now on.
    fn lose(&mut self, rng: &mut Rng, luck: Luck) {
        for (n, versions) in std::mem::take(&mut self.dirty) {
            if let Some(kept) = luck.version(rng, versions.len()).checked_sub(1) {
                let end = (n + 1) * SECTOR;
                if self.disk.len() < end.min(self.cache.len()) {
                    self.disk.resize(end.min(self.cache.len()), 0);
                }
                put(&mut self.disk, n, &versions[kept]);
            }
        }
    }
    /// The page cache lets go of what it believes to be on the disk.
    pub(super) fn evict(&mut self) {
        for n in 0..self.cache.len().div_ceil(SECTOR) {
            if !self.dirty.contains_key(&n) {
                let old = sector(&self.disk, n);
                put(&mut self.cache, n, &old);
            }
        }
    }
    fn crash(&mut self, rng: &mut Rng, luck: Luck) {
        let mut lens = std::mem::take(&mut self.lens);
        lens.insert(0, self.disk.len());
        let len = lens[luck.version(rng, lens.len() - 1)];
        self.disk.resize(len.max(self.disk.len()), 0);
        for (n, versions) in std::mem::take(&mut self.dirty) {
            if let Some(kept) = luck.version(rng, versions.len()).checked_sub(1) {
                put(&mut self.disk, n, &versions[kept]);
            }
        }
        self.disk.truncate(len);
        self.cache.clone_from(&self.disk);
    }
}

pub(super) type Entries = BTreeMap<String, u64>;

/// A directory; its changes since the last sync, each of which may survive a crash or not.
#[derive(Clone, Default)]
pub(super) struct Dir {
    now: Entries,
    disk: Entries,
    changes: Vec<Vec<(String, Option<u64>)>>,
}

impl Dir {
    fn change(&mut self, change: Vec<(String, Option<u64>)>) {
        apply(&mut self.now, &change);
        self.changes.push(change);
    }
}

fn apply(entries: &mut Entries, change: &[(String, Option<u64>)]) {
    for (name, ino) in change {
        match ino {
            Some(ino) => entries.insert(name.clone(), *ino),
            None => entries.remove(name),
        };
    }
}

pub(super) struct Held {
    ino: u64,
    handle: u64,
    engine: usize,
    shared: bool,
}

/// A defect of the disk itself, or of what the engine makes of it: each must be noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Defect {
    /// fdatasync does nothing: as if the engine never called it.
    SyncData,
    /// fsync does nothing: a cut, an adopted batch, stay in the cache.
    SyncAll,
    /// Only names are never synced.
    SyncDir,
    /// A lock does not keep others out.
    Lock,
    /// A cut does nothing: what is left of a batch stays.
    Cut,
    /// Rewriting what is there already is skipped: adopted frames stay where they were lost.
    Rewrite,
}

/// What happens at a coming disk call.
pub(super) type Hook = Box<dyn FnOnce() + Send>;

pub(super) struct World {
    pub(super) rng: Rng,
    pub(super) files: BTreeMap<u64, Inode>,
    pub(super) dirs: BTreeMap<u64, Dir>,
    pub(super) locks: Vec<Held>,
    pub(super) last: u64,
    pub(super) clock: u64,
    /// The incarnation of each engine that lives.
    pub(super) alive: [u64; 2],
    pub(super) down: bool,
    /// Faults are off.
    pub(super) calm: bool,
    pub(super) full: bool,
    /// One call in so many fails.
    pub(super) rate: Option<usize>,
    /// At which call to crash, the machine or only the engine.
    pub(super) doom: Option<(u64, bool)>,
    pub(super) hook: Option<(u64, Hook)>,
    pub(super) defect: Option<Defect>,
    pub(super) verbose: bool,
    pub(super) trace: Vec<String>,
    pub(super) failure: Option<String>,
    /// Faults of any kind; those that a stream may stop for.
    pub(super) faults: u64,
    pub(super) grave: u64,
    pub(super) writes: u64,
    pub(super) calls: u64,
    pub(super) stats: Stats,
}

/// How often what happened.
pub(super) type Stats = BTreeMap<&'static str, u64>;

const ROOT: u64 = 1;

impl World {
    pub(super) fn new(seed: u64, defect: Option<Defect>, verbose: bool) -> World {
        World {
            rng: Rng(seed),
            files: BTreeMap::new(),
            dirs: [(ROOT, Dir::default())].into(),
            locks: Vec::new(),
            last: ROOT,
            clock: 1_700_000_000_000_000_000,
            alive: [0; 2],
            down: false,
            calm: false,
            full: false,
            rate: None,
            doom: None,
            hook: None,
            defect,
            verbose,
            trace: Vec::new(),
            failure: None,
            faults: 0,
            grave: 0,
            writes: 0,
            calls: 0,
            stats: Stats::new(),
        }
    }
    pub(super) fn count(&mut self, what: &'static str) {
        *self.stats.entry(what).or_default() += 1;
    }
    pub(super) fn note(&mut self, line: String) {
        if self.verbose {
            println!("{line}");
        }
        self.trace.push(line);
    }
    pub(super) fn dir(&self, name: &str) -> io::Result<u64> {
        match name {
            "" => Ok(ROOT),
            _ => {
                let ino = self.dirs[&ROOT].now.get(name);
                ino.copied().map_or_else(|| errno(libc::ENOENT), Ok)
            }
        }
    }
    /// The directory of a path and the last name of it.
    fn place(&self, path: &Path) -> io::Result<(u64, String)> {
        let path = path.to_str().unwrap();
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        Ok((self.dir(dir)?, name.to_string()))
    }
    fn ino(&self, path: &Path) -> io::Result<u64> {
        let (dir, name) = self.place(path)?;
        let ino = self.dirs[&dir].now.get(&name);
        ino.copied().map_or_else(|| errno(libc::ENOENT), Ok)
    }
    pub(super) fn fresh(&mut self) -> u64 {
        self.last += 1;
        self.last
    }
    fn name_of(&self, ino: u64) -> Option<(u64, String)> {
        let mut all = self
            .dirs
            .iter()
            .flat_map(|(dir, d)| d.now.iter().map(move |e| (*dir, e)));
        all.find(|(_, (_, found))| **found == ino)
            .map(|(dir, (name, _))| (dir, name.clone()))
    }
    pub(super) fn unlink(&mut self, path: &Path) -> io::Result<()> {
        self.ino(path)?;
        let (dir, name) = self.place(path)?;
        let change = vec![(name, None)];
        self.dirs.get_mut(&dir).unwrap().change(change);
        Ok(())
    }
    /// Only who holds the lock of a stream's log may change the stream's files.
    fn check_lock(&mut self, ino: u64, engine: usize) {
        let Some((dir, name)) = self.name_of(ino) else {
            return;
        };
        let log = self.dirs[&dir].now.get("log").copied();
        let held = |h: &Held| Some(h.ino) == log && h.engine == engine && !h.shared;
        if !self.locks.iter().any(held) && self.defect.is_none() {
            self.fail(format!("engine {engine} changed {name} without the lock"));
        }
    }
    pub(super) fn fail(&mut self, why: String) {
        self.note(format!("FAILED: {why}"));
        self.failure.get_or_insert(why);
    }
    pub(super) fn die(&mut self, machine: bool, engine: usize) {
        self.note(format!("    {}", if machine { "CRASH" } else { "KILLED" }));
        self.doom = None;
        self.grave += 1;
        self.faults += 1;
        if machine {
            self.down = true;
            self.locks.clear();
            self.count("crashes");
        } else {
            self.count("kills");
            self.alive[engine] += 1;
            self.locks.retain(|held| held.engine != engine);
            if self.rng.one_in(2) {
                // While another engine mends what this one left.
                self.doom = Some((self.rng.next() % 60, true));
            }
        }
    }
    /// The machine starts again, with what survived.
    pub(super) fn reboot(&mut self) {
        let World {
            rng, files, dirs, ..
        } = self;
        let (data, names) = (Luck::roll(rng), Luck::roll(rng));
        for dir in dirs.values_mut() {
            for change in std::mem::take(&mut dir.changes) {
                if names.version(rng, 1) == 1 {
                    apply(&mut dir.disk, &change);
                }
            }
            dir.now.clone_from(&dir.disk);
        }
        let root = dirs[&ROOT].now.clone();
        dirs.retain(|ino, _| *ino == ROOT || root.values().any(|dir| dir == ino));
        files.retain(|ino, _| dirs.values().any(|dir| dir.now.values().any(|i| i == ino)));
        for file in files.values_mut() {
            file.crash(rng, data);
        }
        self.down = false;
        self.doom = None;
        self.full = false;
        self.locks.clear();
        for alive in &mut self.alive {
            *alive += 1;
        }
        // The clock of a machine may be wrong after it.
        self.clock -= self.rng.next() % [1000, 1_000_000_000][self.rng.below(2)];
    }
}

#[derive(Clone)]
pub(super) struct SimDisk {
    pub(super) world: Arc<Mutex<World>>,
    pub(super) engine: usize,
    pub(super) incarnation: u64,
}

pub(super) struct SimFile {
    world: Arc<Mutex<World>>,
    ino: u64,
    handle: u64,
}

impl Drop for SimFile {
    fn drop(&mut self) {
        let mut world = lock(&self.world);
        world.locks.retain(|held| held.handle != self.handle);
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Read,
    Name,
    Write,
    Sync,
    Unlock,
}

impl SimDisk {
    /// A disk call: something else may happen first, the world may end before or behind it, it may
    /// be told to `fail`.
    fn call<R>(
        &self,
        kind: Kind,
        what: impl FnOnce() -> String,
        run: impl FnOnce(&mut World, bool, bool) -> io::Result<R>,
    ) -> io::Result<R> {
        let mut world = lock(&self.world);
        if !world.calm && world.hook.as_ref().is_some_and(|hook| hook.0 == 0) {
            let hook = world.hook.take();
            drop(world);
            hook.unwrap().1();
            world = lock(&self.world);
        } else if let Some(hook) = &mut world.hook {
            hook.0 = hook.0.saturating_sub(1);
        }
        let w = &mut *world;
        w.calls += 1;
        if w.down || w.alive[self.engine] != self.incarnation {
            w.faults += 1;
            return errno(libc::EIO);
        }
        let (mut fail, mut doomed) = (false, None);
        if !w.calm {
            if let Some(doom) = &mut w.doom {
                doom.0 = doom.0.wrapping_sub(1);
                if doom.0 == u64::MAX {
                    doomed = w.doom.take();
                }
            }
            fail = w.rate.is_some_and(|rate| w.rng.one_in(rate));
        }
        if w.verbose || fail || doomed.is_some() {
            let failing = if fail { "  FAILS" } else { "" };
            let line = format!("    {} {}{failing}", self.engine, what());
            w.note(line);
        }
        if let Some((_, machine)) = doomed {
            if w.rng.one_in(3) {
                w.die(machine, self.engine);
                return errno(libc::EIO);
            }
            // A write may be cut short by it; what a crash does to it is seen at the reboot.
            let short = !machine && kind == Kind::Write && w.rng.one_in(2);
            let result = run(w, false, short);
            w.die(machine, self.engine);
            // A file locks the world when it is dropped.
            drop(world);
            drop(result);
            return errno(libc::EIO);
        }
        if fail {
            w.faults += 1;
            w.count("faults");
            w.grave += u64::from(kind != Kind::Unlock);
        }
        if fail && (kind == Kind::Read || kind == Kind::Name) {
            return errno([libc::EIO, libc::ENOMEM][w.rng.below(2)]);
        }
        let short = !w.calm && w.rng.one_in(12);
        let result = run(w, fail, short);
        if w.verbose && result.is_err() {
            w.note("        failed".into());
        }
        result
    }
}

impl Disk for SimDisk {
    type File = SimFile;

    fn open(&self, path: &Path, create: bool) -> io::Result<SimFile> {
        let what = || format!("open {} {create}", path.display());
        self.call(Kind::Read, what, |w, _, _| {
            let (dir, name) = w.place(path)?;
            let ino = match w.dirs[&dir].now.get(&name) {
                Some(ino) => *ino,
                None if create && w.full && !w.calm => {
                    w.faults += 1;
                    return errno(libc::ENOSPC);
                }
                None if create => {
                    let ino = w.fresh();
                    w.files.insert(ino, Inode::default());
                    let change = vec![(name, Some(ino))];
                    w.dirs.get_mut(&dir).unwrap().change(change);
                    ino
                }
                None => return errno(libc::ENOENT),
            };
            let (world, handle) = (self.world.clone(), w.fresh());
            Ok(SimFile { world, ino, handle })
        })
    }

    fn scratch(&self) -> io::Result<SimFile> {
        self.call(
            Kind::Read,
            || "scratch".into(),
            |w, _, _| {
                let (world, ino, handle) = (self.world.clone(), w.fresh(), w.fresh());
                w.files.insert(ino, Inode::default());
                Ok(SimFile { world, ino, handle })
            },
        )
    }

    fn read_at(&self, file: &SimFile, bytes: &mut [u8], at: u64) -> io::Result<usize> {
        let len = bytes.len();
        let what = || format!("read {} {len}+{at}", file.ino);
        self.call(Kind::Read, what, |w, _, short| {
            let from = w.files[&file.ino].cache.get(at as usize..);
            let from = from.unwrap_or_default();
            let mut len = from.len().min(len);
            bytes[..len].copy_from_slice(&from[..len]);
            if short && len > 1 {
                len = 1 + w.rng.below(len - 1);
            }
            Ok(len)
        })
    }

    fn write_at(&self, file: &SimFile, bytes: &[u8], at: u64) -> io::Result<usize> {
        let what = || format!("write {} {}+{at}", file.ino, bytes.len());
        self.call(Kind::Write, what, |w, fail, short| {
            let at = at as usize;
            let index = w.name_of(file.ino).is_some_and(|(_, name)| name == "index");
            if !index || at < 16 {
                // Of the index only the count; a reader may mend the hints behind it.
                w.check_lock(file.ino, self.engine);
            }
            let mut len = bytes.len();
            // A few bytes are written whole or not at all.
            let partly = (short || fail) && len > SECTOR;
            if partly {
                len = 1 + w.rng.below(len - 1);
            }
            let old = w.files[&file.ino].cache.len();
            let full = w.full && !w.calm && at + len > old && w.name_of(file.ino).is_some();
            if full {
                w.faults += 1;
                len = old.saturating_sub(at).min(len);
            }
            w.writes += u64::from(w.name_of(file.ino).is_some());
            let kept = if fail && !partly { 0 } else { len };
            let rewrite = w.defect == Some(Defect::Rewrite);
            let inode = w.files.get_mut(&file.ino).unwrap();
            let same = inode.cache.get(at..at + kept) == Some(&bytes[..kept]);
            if kept > 0 && !(rewrite && same) {
                inode.write(&bytes[..kept], at);
            }
            match (fail, full && len == 0) {
                (true, _) if w.rng.one_in(2) => {
                    w.grave -= 1; // The disk says no; the engine must cope.
                    errno(libc::ENOSPC)
                }
                (true, _) => errno(libc::EIO),
                (_, true) => errno(libc::ENOSPC),
                _ => Ok(len),
            }
        })
    }

    fn reserve(&self, file: &SimFile, from: u64, to: u64) -> io::Result<()> {
        let what = || format!("reserve {} {from}..{to}", file.ino);
        self.call(Kind::Write, what, |w, fail, _| {
            w.check_lock(file.ino, self.engine);
            let mut to = to as usize;
            let full = w.full && !w.calm;
            if fail || full {
                to = from as usize + w.rng.below(to - from as usize);
            }
            if full {
                to = from as usize;
                w.faults += 1;
            }
            w.writes += 1;
            let inode = w.files.get_mut(&file.ino).unwrap();
            if inode.cache.len() < to {
                inode.write(&vec![0; to - from as usize], from as usize);
            }
            if full || (fail && w.rng.one_in(2)) {
                w.grave -= u64::from(fail);
                return errno(libc::ENOSPC);
            }
            if fail { errno(libc::EIO) } else { Ok(()) }
        })
    }

    fn set_len(&self, file: &SimFile, len: u64) -> io::Result<()> {
        let what = || format!("set_len {} {len}", file.ino);
        self.call(Kind::Name, what, |w, _, _| {
            w.check_lock(file.ino, self.engine);
            w.writes += 1;
            if w.defect != Some(Defect::Cut) {
                w.files.get_mut(&file.ino).unwrap().set_len(len as usize);
            }
            Ok(())
        })
    }

    fn sync_data(&self, file: &SimFile) -> io::Result<()> {
        self.sync(file, false)
    }

    fn sync_all(&self, file: &SimFile) -> io::Result<()> {
        self.sync(file, true)
    }

    fn stat(&self, file: &SimFile) -> io::Result<Stat> {
        let what = || format!("stat {}", file.ino);
        self.call(Kind::Read, what, |w, _, _| {
            Ok(Stat {
                len: w.files[&file.ino].cache.len() as u64,
                named: w.name_of(file.ino).is_some(),
                identity: file.ino,
            })
        })
    }

    fn lock(&self, file: &SimFile, shared: bool) -> io::Result<()> {
        let what = || format!("lock {} {shared}", file.ino);
        self.call(Kind::Read, what, |w, _, _| {
            let others = |h: &&Held| h.ino == file.ino && !(h.shared && shared);
            let holder = w.locks.iter().find(others).map(|h| h.engine);
            if let Some(holder) = holder.filter(|_| w.defect != Some(Defect::Lock)) {
                // It would wait for whom it interrupts.
                if holder == self.engine {
                    w.fail("an engine waits for itself".into());
                }
                w.faults += 1;
                return errno(libc::EWOULDBLOCK);
            }
            w.locks.push(Held {
                ino: file.ino,
                handle: file.handle,
                engine: self.engine,
                shared,
            });
            Ok(())
        })
    }

    fn unlock(&self, file: &SimFile) -> io::Result<()> {
        let what = || format!("unlock {}", file.ino);
        self.call(Kind::Unlock, what, |w, fail, _| {
            w.locks.retain(|held| held.handle != file.handle);
            if fail { errno(libc::EIO) } else { Ok(()) }
        })
    }

    fn identity(&self, path: &Path) -> io::Result<u64> {
        let what = || format!("identity {}", path.display());
        self.call(Kind::Read, what, |w, _, _| w.ino(path))
    }

    fn create_dir(&self, path: &Path, _: u32) -> io::Result<()> {
        let what = || format!("mkdir {}", path.display());
        self.call(Kind::Name, what, |w, _, _| {
            let (dir, name) = w.place(path)?;
            if w.dirs[&dir].now.contains_key(&name) {
                return errno(libc::EEXIST);
            }
            let ino = w.fresh();
            w.dirs.insert(ino, Dir::default());
            let change = vec![(name, Some(ino))];
            w.dirs.get_mut(&dir).unwrap().change(change);
            Ok(())
        })
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        let what = || format!("rmdir {}", path.display());
        self.call(Kind::Name, what, |w, _, _| {
            if !w.dirs[&w.ino(path)?].now.is_empty() {
                return errno(libc::ENOTEMPTY);
            }
            w.unlink(path)
        })
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let what = || format!("unlink {}", path.display());
        self.call(Kind::Name, what, |w, _, _| w.unlink(path))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let what = || format!("rename {} {}", from.display(), to.display());
        self.call(Kind::Name, what, |w, _, _| {
            let (ino, (dir, old), (_, new)) = (w.ino(from)?, w.place(from)?, w.place(to)?);
            if let Ok(replaced) = w.ino(to)
                && !w.dirs[&replaced].now.is_empty()
            {
                return errno(libc::ENOTEMPTY);
            }
            let change = vec![(old, None), (new, Some(ino))];
            w.dirs.get_mut(&dir).unwrap().change(change);
            Ok(())
        })
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let what = || format!("sync_dir {:?}", path.display());
        self.call(Kind::Name, what, |w, _, _| {
            let dir = w.dir(path.to_str().unwrap())?;
            if w.defect != Some(Defect::SyncDir) {
                let dir = w.dirs.get_mut(&dir).unwrap();
                dir.disk.clone_from(&dir.now);
                dir.changes.clear();
            }
            Ok(())
        })
    }

    fn streams(&self) -> io::Result<Names> {
        self.call(
            Kind::Read,
            || "streams".into(),
            |w, _, _| {
                let names: Vec<_> = w.dirs[&ROOT].now.keys().cloned().collect();
                Ok(Box::new(names.into_iter().map(|n| Ok(OsString::from(n)))) as Names)
            },
        )
    }

    fn now(&self) -> u64 {
        let mut w = lock(&self.world);
        w.clock += w.rng.next() % 1000;
        if w.rng.one_in(20) {
            w.clock -= w.rng.next() % 5000;
        }
        w.clock
    }
}

impl SimDisk {
    fn sync(&self, file: &SimFile, all: bool) -> io::Result<()> {
        let what = || format!("sync {} {all}", file.ino);
        self.call(Kind::Sync, what, |w, fail, _| {
            let World { rng, files, .. } = w;
            let inode = files.get_mut(&file.ino).unwrap();
            if fail {
                let luck = Luck::roll(rng);
                if !rng.one_in(4) {
                    inode.lose(rng, luck);
                }
                if rng.one_in(3) {
                    inode.evict();
                }
                return errno(libc::EIO);
            }
            let broken = if all {
                Defect::SyncAll
            } else {
                Defect::SyncData
            };
            if w.defect != Some(broken) {
                inode.sync(all);
            }
            Ok(())
        })
    }
}
