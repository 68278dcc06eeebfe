//! A disk that is in memory, and fails like real ones: see [`World`].

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use smolstore::disk::{Disk, Names, Stat};
use smolstore::page::{self, Block, HEAD, PAGE};
use smolstore::walk::Tip;

use super::forge;

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
    pub(super) fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
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
    /// Any version of each sector.
    Any,
    /// One sector in so many is lost, or survives.
    Most(usize),
    Few(usize),
}

impl Luck {
    fn roll(rng: &mut Rng) -> Luck {
        rng.one_of(&[
            Luck::None,
            Luck::All,
            Luck::Any,
            Luck::Any,
            Luck::Any,
            Luck::Most(3),
            Luck::Most(8),
            Luck::Few(8),
        ])
    }
    /// Which of so many versions survives; 0 is what was there before them.
    fn version(self, rng: &mut Rng, versions: usize) -> usize {
        match self {
            Luck::None => 0,
            Luck::All => versions,
            Luck::Any => rng.below(versions + 1),
            Luck::Most(n) => versions * usize::from(!rng.one_in(n)),
            Luck::Few(n) => versions * usize::from(rng.one_in(n)),
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
    /// fdatasync; of a shorter length it promises nothing, no data needs it.
    fn sync(&mut self) {
        let shorter = self.cache.len() < self.disk.len();
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
    /// The page cache lets go of what it believes to be on the disk, from `from` on.
    pub(super) fn evict(&mut self, from: usize) {
        for n in from / SECTOR..self.cache.len().div_ceil(SECTOR) {
            if !self.dirty.contains_key(&n) {
                let old = sector(&self.disk, n);
                put(&mut self.cache, n, &old);
            }
        }
    }
    /// Says how much was not synced and survived: of so many sectors, so many in their last
    /// version, so many in one before.
    fn crash(&mut self, rng: &mut Rng, luck: Luck) -> (usize, usize, usize) {
        let mut lens = std::mem::take(&mut self.lens);
        lens.insert(0, self.disk.len());
        let len = lens[luck.version(rng, lens.len() - 1)];
        self.disk.resize(len.max(self.disk.len()), 0);
        let dirty = std::mem::take(&mut self.dirty);
        let mut survived = (dirty.len(), 0, 0);
        for (n, versions) in dirty {
            let version = luck.version(rng, versions.len());
            survived.1 += usize::from(version == versions.len());
            survived.2 += usize::from((1..versions.len()).contains(&version));
            if let Some(kept) = version.checked_sub(1) {
                put(&mut self.disk, n, &versions[kept]);
            }
        }
        self.disk.truncate(len);
        self.cache.clone_from(&self.disk);
        survived
    }
    /// Another host is to see it: what this one has not written back goes to the disk, and of what
    /// its page cache has no more than is there.
    fn hand_over(&mut self) {
        self.disk.resize(self.cache.len(), 0);
        self.lens.clear();
        for n in std::mem::take(&mut self.dirty).into_keys() {
            let now = sector(&self.cache, n);
            put(&mut self.disk, n, &now);
        }
        self.cache.clone_from(&self.disk);
    }
    /// A copy of the file, durable.
    fn copy(&self) -> Inode {
        Inode { cache: self.cache.clone(), disk: self.cache.clone(), ..Inode::default() }
    }
}

pub(super) type Entries = BTreeMap<String, u64>;

/// A directory; its changes since the last sync, each of which may survive a crash or not.
#[derive(Clone, Default)]
pub(super) struct Dir {
    pub(super) now: Entries,
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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum When {
    Before,
    During,
    After,
}

/// What befalls one disk call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Strike {
    /// The machine goes down.
    Crash(When),
    /// The process of the engine ends.
    Kill(When),
    /// Another host takes the engine's locks away, and drops what it writes. It is told of it by
    /// what it asks next, but for writes and syncs.
    CutOff,
    /// The call fails; with ENOSPC where it takes up room.
    Fail(i32),
}

impl Strike {
    pub(super) const ALL: [Strike; 9] = [
        Strike::Crash(When::Before),
        Strike::Crash(When::During),
        Strike::Crash(When::After),
        Strike::Kill(When::Before),
        Strike::Kill(When::During),
        Strike::Kill(When::After),
        Strike::CutOff,
        Strike::Fail(libc::EIO),
        Strike::Fail(libc::ENOSPC),
    ];

    fn roll(rng: &mut Rng) -> Strike {
        let when = rng.one_of(&[When::Before, When::During, When::After]);
        match rng.below(12) {
            0..=7 => Strike::Crash(when),
            8..=10 => Strike::Kill(when),
            _ => Strike::CutOff,
        }
    }
}

/// What befalls the call after so many.
#[derive(Clone, Copy)]
pub(super) struct Doom {
    pub(super) after: u64,
    pub(super) strike: Strike,
    /// Those that change nothing count, too.
    pub(super) reads: bool,
}

impl Doom {
    pub(super) fn roll(rng: &mut Rng) -> Doom {
        let reads = rng.one_in(2);
        Doom { after: rng.next() % if reads { 60 } else { 12 }, strike: Strike::roll(rng), reads }
    }
}

/// What kind of disk call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Read,
    Lock,
    /// Of a name.
    Make,
    Write,
    Cut,
    Sync,
    Unlock,
}

impl Kind {
    const ALL: [Kind; 7] =
        [Kind::Read, Kind::Lock, Kind::Make, Kind::Write, Kind::Cut, Kind::Sync, Kind::Unlock];
}

/// How a disk call is to go.
#[derive(Default)]
struct Turn {
    fail: Option<i32>,
    short: bool,
    /// The machine goes down in the middle of a sync.
    torn: bool,
    /// The engine was cut off: what it writes goes nowhere.
    adrift: bool,
}

/// How the world of a seed is. Each has its own, for what is rare with all of it at once.
pub(super) struct Climate {
    /// One failure follows another.
    pub(super) rates: &'static [Option<usize>],
    /// Only calls of these kinds fail.
    weak: &'static [Kind],
    /// The steps ahead of a log find no room, often.
    pub(super) tight: bool,
    /// The clock may go back so many nanoseconds in a crash.
    pub(super) back: u64,
    /// How often the machine goes down: a step in so many.
    pub(super) crashes: usize,
    /// All batches end at a multiple of this: what is old fits where it does not belong. 0: anywhere.
    pub(super) unit: usize,
    /// Up to so many batches are committed at once.
    pub(super) together: usize,
    /// The second engine is on another host, which may crash alone.
    pub(super) hosts: bool,
    /// So many names are in use.
    pub(super) names: usize,
    /// Of a hundred operations so many remove a stream, and so many rename one.
    pub(super) changes: usize,
    /// Of a hundred operations so many drop events.
    pub(super) drops: usize,
    /// Of a hundred operations so many take an index away, or some of what it says.
    pub(super) unlinks: usize,
    /// So many of the sectors that were written survive everywhere.
    luck: Option<Luck>,
}

impl Climate {
    fn roll(rng: &mut Rng) -> Climate {
        let mixed = Climate {
            rates: rng.one_of(&[
                &[None][..],
                &[None, None, Some(40)],
                &[None, None, None, None, Some(40), Some(15), Some(5), Some(2)],
                &[Some(15), Some(5), Some(2)],
            ]),
            weak: rng.one_of(&[
                &Kind::ALL[..],
                &Kind::ALL,
                &Kind::ALL,
                &[Kind::Write],
                &[Kind::Write, Kind::Cut],
                &[Kind::Sync],
                &[Kind::Sync, Kind::Cut],
                &[Kind::Unlock],
            ]),
            tight: rng.one_in(4),
            back: rng.one_of(&[0, 1000, 1_000_000_000, 3_600_000_000_000]),
            crashes: rng.one_of(&[3, 15, 40]),
            unit: rng.one_of(&[0, 0, 0, 128, 256, 512, 512, 4096]),
            together: rng.one_of(&[1, 2, 4]),
            hosts: rng.one_in(3),
            names: rng.one_of(&[1, 1, 2, 3, 5]),
            unlinks: rng.one_of(&[0, 2, 10]),
            changes: 3,
            drops: rng.one_of(&[0, 5, 30]),
            luck: rng.one_of(&[None, None, None, None, Some(Luck::All), Some(Luck::Most(8))]),
        };
        match rng.below(6) {
            // What is cut off comes back, and fits.
            0 => Climate {
                rates: &[None, Some(6), Some(3), Some(2)],
                weak: rng.one_of(&[&[Kind::Write][..], &[Kind::Sync], &[Kind::Write, Kind::Sync]]),
                tight: true,
                crashes: 3,
                unit: rng.one_of(&[128, 256, 512, 512]),
                together: 4,
                names: 1,
                unlinks: 0,
                luck: None,
                ..mixed
            },
            // Many streams are young, and change their names.
            1 => Climate { names: 2, changes: 15, ..mixed },
            // An index is a rare thing, and blocks get lost alone.
            2 => Climate { unlinks: 10, crashes: 3, unit: 512, names: 1, luck: None, ..mixed },
            _ => mixed,
        }
    }
}

/// What happens at a coming disk call.
pub(super) type Hook = Box<dyn FnOnce() + Send>;

/// Two that write, one that only reads.
pub(super) const ENGINES: usize = 3;
pub(super) const READER: usize = 2;

pub(super) struct World {
    pub(super) rng: Rng,
    pub(super) climate: Climate,
    pub(super) files: BTreeMap<u64, Inode>,
    pub(super) dirs: BTreeMap<u64, Dir>,
    pub(super) locks: Vec<Held>,
    pub(super) last: u64,
    pub(super) clock: u64,
    /// The incarnation of each engine that lives.
    pub(super) alive: [u64; ENGINES],
    /// It was cut off; then something tells it: a look at a file, or an unlock.
    pub(super) adrift: [bool; ENGINES],
    told_by: Kind,
    pub(super) down: bool,
    /// The host that holds what is not written back.
    host: usize,
    /// Nothing fails.
    pub(super) calm: bool,
    pub(super) full: bool,
    /// One call in so many fails.
    pub(super) rate: Option<usize>,
    pub(super) doom: Option<Doom>,
    /// Another engine does something before the call after so many, or while this one waits for a
    /// lock.
    pub(super) hook: Option<(u64, Hook)>,
    pub(super) waits: bool,
    /// It does so right now.
    pub(super) nested: bool,
    /// Nobody changes a name.
    pub(super) steady: bool,
    /// Another thread of the same engine hands in a batch.
    pub(super) mate: Option<(u64, Hook)>,
    pub(super) verbose: bool,
    pub(super) trace: Vec<String>,
    pub(super) failure: Option<String>,
    /// Whatever may make an answer other than expected.
    pub(super) faults: u64,
    /// Those of them that are calls which failed.
    pub(super) failed: u64,
    /// The names of streams changed so often.
    pub(super) moves: u64,
    /// The names each stream may have.
    pub(super) names: BTreeMap<u64, Vec<String>>,
    /// The name of the stream that each engine is removing,
    pub(super) removing: [Option<String>; ENGINES],
    /// and the logs that were removed so: a crash may bring them back.
    pub(super) removed: BTreeSet<u64>,
    pub(super) writes: u64,
    pub(super) calls: u64,
    /// Those that something might befall.
    pub(super) turns: u64,
    pub(super) stats: Stats,
}

/// How often what happened.
pub(super) type Stats = BTreeMap<String, u64>;

const ROOT: u64 = 1;
/// No run takes so many calls, unless it does not come to an end.
const ENDLESS: u64 = 5_000_000;

impl World {
    pub(super) fn new(seed: u64, verbose: bool) -> World {
        let mut rng = Rng(seed);
        World {
            climate: Climate::roll(&mut rng),
            rng,
            files: BTreeMap::new(),
            dirs: [(ROOT, Dir::default())].into(),
            locks: Vec::new(),
            last: ROOT,
            clock: 1_700_000_000_000_000_000,
            alive: [0; ENGINES],
            adrift: [false; ENGINES],
            told_by: Kind::Unlock,
            down: false,
            host: 0,
            calm: false,
            full: false,
            rate: None,
            doom: None,
            hook: None,
            waits: false,
            nested: false,
            steady: false,
            mate: None,
            verbose,
            trace: Vec::new(),
            failure: None,
            faults: 0,
            failed: 0,
            moves: 0,
            names: BTreeMap::new(),
            removing: [const { None }; ENGINES],
            removed: BTreeSet::new(),
            writes: 0,
            calls: 0,
            turns: 0,
            stats: Stats::new(),
        }
    }
    pub(super) fn count(&mut self, what: impl Into<String>) {
        *self.stats.entry(what.into()).or_default() += 1;
    }
    pub(super) fn note(&mut self, line: String) {
        if self.verbose {
            println!("{line}");
        }
        self.trace.push(line);
    }
    pub(super) fn fail(&mut self, why: String) {
        self.note(format!("FAILED: {why}"));
        self.failure.get_or_insert(why);
    }
    /// The directory of that name.
    pub(super) fn dir(&self, name: &str) -> io::Result<u64> {
        match name {
            "" => Ok(ROOT),
            _ => {
                let ino = self.streams().get(name);
                ino.copied().map_or_else(|| errno(libc::ENOENT), Ok)
            }
        }
    }
    /// What tells the stream in a directory from all others: its log. None where there is none yet.
    pub(super) fn stream(&self, dir: u64) -> Option<u64> {
        self.dirs.get(&dir)?.now.get("log").copied()
    }
    /// The directory that a log is in, and the name of that.
    pub(super) fn home(&self, log: u64) -> Option<(u64, &str)> {
        let mut dirs = self.streams().iter();
        dirs.find_map(|(name, dir)| (self.stream(*dir) == Some(log)).then_some((*dir, &**name)))
    }
    /// Whether a stream's directory may have that name.
    pub(super) fn may_be_at(&self, dir: u64, name: &str) -> bool {
        self.names.get(&dir).is_some_and(|names| names.iter().any(|known| known == name))
    }
    pub(super) fn streams(&self) -> &Entries {
        &self.dirs[&ROOT].now
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
    fn name_of(&self, ino: u64) -> Option<(u64, &str)> {
        self.dirs.iter().find_map(|(dir, d)| {
            let (name, _) = d.now.iter().find(|(_, found)| **found == ino)?;
            Some((*dir, name.as_str()))
        })
    }
    fn is(&self, ino: u64, what: &str) -> bool {
        self.name_of(ino).is_some_and(|(_, name)| name == what)
    }
    fn change(&mut self, dir: u64, change: Vec<(String, Option<u64>)>) {
        if dir == ROOT {
            self.moves += 1;
            for (name, ino) in &change {
                let names = ino.map(|ino| self.names.entry(ino).or_default());
                if let Some(names) = names {
                    names.push(name.clone());
                }
            }
        }
        self.dirs.get_mut(&dir).unwrap().change(change);
    }
    pub(super) fn unlink(&mut self, path: &Path) -> io::Result<()> {
        self.ino(path)?;
        let (dir, name) = self.place(path)?;
        self.change(dir, vec![(name, None)]);
        Ok(())
    }
    /// The bytes of a stream's log, as they are.
    pub(super) fn log(&self, stream: u64) -> &[u8] {
        let log = self.dirs.get(&stream).and_then(|dir| dir.now.get("log"));
        log.map_or(&[], |log| &self.files[log].cache)
    }
    /// The bytes of a stream's index, as they are.
    pub(super) fn index(&self, stream: u64) -> &[u8] {
        let index = self.dirs.get(&stream).and_then(|dir| dir.now.get("index"));
        index.map_or(&[], |index| &self.files[index].cache)
    }
    /// The disk holds something else in a file than was written.
    pub(super) fn overwrite(&mut self, stream: u64, name: &str, bytes: &[u8]) {
        if let Some(ino) = self.dirs[&stream].now.get(name).copied() {
            let (cache, disk) = (bytes.to_vec(), bytes.to_vec());
            self.files.insert(ino, Inode { cache, disk, ..Inode::default() });
        }
    }
    /// The names of a stream are as they are for good.
    pub(super) fn settle_names(&mut self, stream: u64) {
        if let Some(dir) = self.dirs.get_mut(&stream) {
            dir.disk.clone_from(&dir.now);
            dir.changes.clear();
        }
    }
    /// So many events of a stream every reader is told of: those up to the block that the index names.
    pub(super) fn published(&self, stream: u64) -> u64 {
        let index = self.index(stream).first_chunk().map(page::decode_index);
        let known = forge::blocks(self.log(stream)).zip(index);
        let Some(((head, blocks), (last, _))) = known.filter(|((h, _), (_, seed))| h.seed == *seed)
        else {
            return 0;
        };
        let upto = blocks.iter().rfind(|block| block.at <= last);
        upto.filter(|_| head.seed > 0).map_or(0, Block::next)
    }
    /// The end of a stream's log.
    pub(super) fn tip(&self, stream: u64) -> Tip {
        let blocks = forge::blocks(self.log(stream));
        blocks.and_then(|(_, all)| all.last().map(Tip::from)).unwrap_or_default()
    }
    /// The end of the log of the stream of that name.
    pub(super) fn tip_of(&self, name: &str) -> Tip {
        self.dir(name).map(|stream| self.tip(stream)).unwrap_or_default()
    }
    /// An index loses some of what it says, or says something else.
    pub(super) fn spoil(&mut self, path: &Path) -> bool {
        let Ok(ino) = self.ino(path) else { return false };
        let World { rng, files, .. } = self;
        let Some(index) = files.get_mut(&ino).filter(|index| !index.cache.is_empty()) else {
            return false;
        };
        match rng.below(3) {
            0 => index.write(&[0; 16], 0),
            1 => index.write(&rng.next().to_le_bytes()[..1], rng.below(16)),
            _ => {
                for _ in 0..=rng.below(3) {
                    let at = rng.below(index.cache.len());
                    index.write(&rng.next().to_le_bytes()[..1], at);
                }
            }
        }
        true
    }
    /// Only who holds the lock of a stream's log may change the stream's files.
    fn check_lock(&mut self, ino: u64, engine: usize) {
        let Some((dir, name)) = self.name_of(ino) else {
            return;
        };
        let log = self.dirs[&dir].now.get("log").copied();
        let held = |h: &Held| Some(h.ino) == log && h.engine == engine && !h.shared;
        if !self.locks.iter().any(held) {
            let why = format!("engine {engine} changed {name} without the lock");
            self.fail(why);
        }
    }
    /// The engine that has a lock which keeps others from this one.
    fn holder(&self, file: &SimFile, shared: bool) -> Option<usize> {
        let others = |h: &&Held| h.ino == file.ino && !(h.shared && shared);
        self.locks.iter().find(others).map(|h| h.engine)
    }
    /// The machine goes down, or an engine.
    pub(super) fn die(&mut self, machine: bool, engine: usize) {
        let one = machine && self.climate.hosts && self.rng.one_in(2);
        self.note(format!(
            "    {}{}",
            if machine { "CRASH" } else { "KILLED" },
            if one { " of one host" } else { "" }
        ));
        self.doom = None;
        self.faults += 1;
        if one {
            self.host_crash(self.host_of(engine));
        } else if machine {
            self.down = true;
            self.locks.clear();
        } else {
            self.alive[engine] += 1;
            self.locks.retain(|held| held.engine != engine);
            if self.rng.one_in(2) {
                // While another engine mends what this one left.
                self.doom =
                    Some(Doom { strike: Strike::Crash(When::After), ..Doom::roll(&mut self.rng) });
            }
        }
    }
    fn cut_off(&mut self, engine: usize) {
        self.note("    CUT OFF".into());
        self.faults += 1;
        self.adrift[engine] = true;
        self.told_by = self.rng.one_of(&[Kind::Read, Kind::Unlock]);
        self.locks.retain(|held| held.engine != engine);
    }
    /// Which host an engine is on.
    fn host_of(&self, engine: usize) -> usize {
        usize::from(self.climate.hosts && engine == 1)
    }
    /// Another host comes to see the files: one at a time holds what is not written back.
    fn hand_over(&mut self, host: usize) {
        if std::mem::replace(&mut self.host, host) != host {
            self.files.values_mut().for_each(Inode::hand_over);
            for dir in self.dirs.values_mut() {
                dir.disk.clone_from(&dir.now);
                dir.changes.clear();
            }
        }
    }
    /// One host goes down, and starts again; those on the other keep what they know.
    fn host_crash(&mut self, host: usize) {
        self.count("crashes of one host of two");
        self.lose_unsynced();
        for engine in 0..ENGINES {
            if self.host_of(engine) != host {
                continue;
            }
            self.alive[engine] += 1;
            self.adrift[engine] = false;
            self.locks.retain(|held| held.engine != engine);
        }
    }
    /// What was not synced survives or not.
    fn lose_unsynced(&mut self) {
        let World { rng, files, dirs, removed, stats, climate, .. } = self;
        let names = Luck::roll(rng);
        for dir in dirs.values_mut() {
            let mut lost = Vec::new();
            for change in std::mem::take(&mut dir.changes) {
                // No file system gives a name anew that was not free.
                let held = change.iter().any(|(name, _)| lost.contains(name));
                if !held && names.version(rng, 1) == 1 {
                    apply(&mut dir.disk, &change);
                } else {
                    lost.extend(change.into_iter().map(|(name, _)| name));
                }
            }
            dir.now.clone_from(&dir.disk);
        }
        let root = dirs[&ROOT].now.clone();
        dirs.retain(|ino, _| *ino == ROOT || root.values().any(|dir| dir == ino));
        removed.retain(|log| !dirs.values().any(|dir| dir.now.get("log") == Some(log)));
        // One log may be lucky while its index is not.
        let (all, each) = (climate.luck.unwrap_or(Luck::roll(rng)), rng.one_in(2));
        for file in files.values_mut() {
            let luck = if each { Luck::roll(rng) } else { all };
            let what = match file.crash(rng, luck) {
                (0, ..) => continue,
                (_, _, 1..) => "un-synced writes that survived out of order",
                (_, 0, _) => "un-synced writes lost",
                (dirty, last, _) if last < dirty => "un-synced writes torn",
                _ => "un-synced writes that survived",
            };
            *stats.entry(what.into()).or_default() += 1;
        }
        self.moves += 1;
    }
    /// The machine starts again, with what survived.
    pub(super) fn reboot(&mut self) {
        self.count("crashes");
        self.lose_unsynced();
        let World { files, dirs, .. } = self;
        files.retain(|ino, _| dirs.values().any(|dir| dir.now.values().any(|i| i == ino)));
        self.down = false;
        self.doom = None;
        self.full = false;
        self.locks.clear();
        self.adrift = [false; ENGINES];
        for alive in &mut self.alive {
            *alive += 1;
        }
        // The clock of a machine may be wrong after it.
        self.clock -= self.rng.next() % self.climate.back.max(1);
    }
    /// A stream comes back from a backup: its log is another file, its index as it was copied, or
    /// that of another stream.
    /// Which log that was, and is now.
    pub(super) fn restore(&mut self, name: &str, other: &str) -> Option<(u64, u64)> {
        let (dir, other) = (self.dir(name).ok()?, self.dir(other).ok()?);
        let file = |dir: u64, name: &str| self.files.get(self.dirs[&dir].now.get(name)?);
        let (log, index, from) = (file(dir, "log")?, file(other, "index")?, self.stream(dir)?);
        let copies = [("log", log.copy()), ("index", index.copy())];
        for (name, copy) in copies {
            let ino = self.fresh();
            self.files.insert(ino, copy);
            self.change(dir, vec![(name.into(), Some(ino))]);
        }
        self.settle_names(dir);
        self.count("restored from a backup");
        Some((from, self.stream(dir)?))
    }
    /// What befalls this call.
    fn strike(&mut self, kind: Kind) -> Option<Strike> {
        let doom = self.doom.as_mut()?;
        if matches!(kind, Kind::Read | Kind::Lock) && !doom.reads {
            return None;
        }
        match doom.after.checked_sub(1) {
            Some(less) => {
                doom.after = less;
                None
            }
            None => self.doom.take().map(|doom| doom.strike),
        }
    }
    /// How a call fails, if it does.
    fn fails(&mut self, kind: Kind) -> Option<i32> {
        let weak = self.climate.weak.contains(&kind);
        if !self.rate.is_some_and(|rate| weak && self.rng.one_in(rate)) {
            return None;
        }
        Some(match kind {
            Kind::Read | Kind::Lock | Kind::Cut => self.rng.one_of(&[libc::EIO, libc::ENOMEM]),
            Kind::Make => self.rng.one_of(&[libc::EIO, libc::ENOMEM, libc::ENOSPC]),
            Kind::Write => self.rng.one_of(&[libc::EIO, libc::ENOSPC]),
            Kind::Sync | Kind::Unlock => libc::EIO,
        })
    }
    /// Something is not as it would be on a good disk.
    fn inject(&mut self, code: i32, kind: Kind) {
        self.faults += 1;
        self.failed += 1;
        let code = match code {
            libc::EIO => "EIO",
            libc::ENOSPC => "ENOSPC",
            _ => "ENOMEM",
        };
        self.count(format!("{code} at a {kind:?}"));
    }
}

/// The hook, when this is its call.
fn due(slot: &mut Option<(u64, Hook)>) -> Option<Hook> {
    match slot {
        Some((0, _)) => slot.take().map(|(_, hook)| hook),
        Some((left, _)) => {
            *left -= 1;
            None
        }
        None => None,
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

impl SimDisk {
    /// The world, after what happens before this call.
    fn enter(&self, kind: Kind) -> MutexGuard<'_, World> {
        let mut world = lock(&self.world);
        if world.calm {
            return world;
        }
        let hooks = match world.waits {
            true if kind == Kind::Lock => [world.hook.take().map(|(_, hook)| hook), None],
            true => [None, due(&mut world.mate)],
            false => [due(&mut world.hook), due(&mut world.mate)],
        };
        for hook in hooks.into_iter().flatten() {
            drop(world);
            hook();
            world = lock(&self.world);
        }
        world
    }

    /// A disk call: something else may happen first, the world may end before, in or behind it, it
    /// may be told to fail.
    fn call<R>(
        &self,
        kind: Kind,
        what: impl FnOnce() -> String,
        run: impl FnOnce(&mut World, Turn) -> io::Result<R>,
    ) -> io::Result<R> {
        let mut world = self.enter(kind);
        let w = &mut *world;
        w.calls += 1;
        if w.calls == ENDLESS {
            w.fail("it does not come to an end".into());
            w.down = true;
        }
        if w.down || w.alive[self.engine] != self.incarnation {
            w.faults += 1;
            w.failed += 1;
            return errno(libc::EIO);
        }
        w.hand_over(w.host_of(self.engine));
        let (mut turn, mut strike) = (Turn::default(), None);
        if !w.calm {
            w.turns += 1;
            strike = w.strike(kind);
            turn.fail = w.fails(kind);
            turn.short = w.rng.one_in(12);
        }
        match strike {
            Some(Strike::CutOff) => w.cut_off(self.engine),
            Some(Strike::Fail(libc::ENOSPC)) if !matches!(kind, Kind::Write | Kind::Make) => {}
            Some(Strike::Fail(code)) => turn.fail = Some(code),
            _ => {}
        }
        if w.verbose || turn.fail.is_some() || strike.is_some() {
            let told = turn.fail.map_or(String::new(), |code| format!("  FAILS {code}"));
            let line = format!("    {} {}{told}", self.engine, what());
            w.note(line);
        }
        if let Some(Strike::Crash(when) | Strike::Kill(when)) = strike {
            let machine = matches!(strike, Some(Strike::Crash(_)));
            let end = if machine { "crash" } else { "kill" };
            w.count(format!("{end} {when:?} a {kind:?}"));
            if when != When::Before {
                let during = when == When::During;
                let short = during && matches!(kind, Kind::Write | Kind::Cut);
                let torn = during && machine && kind == Kind::Sync;
                let turn = Turn { short, torn, ..Turn::default() };
                let result = run(w, turn);
                w.die(machine, self.engine);
                // A file locks the world when it is dropped.
                drop(world);
                drop(result);
            } else {
                w.die(machine, self.engine);
            }
            return errno(libc::EIO);
        }
        turn.adrift = w.adrift[self.engine];
        if turn.adrift {
            if strike.is_some() {
                w.count(format!("cut off before a {kind:?}"));
            }
            turn.fail = None;
            w.faults += 1;
            w.failed += 1;
            // What it writes and syncs it believes.
            if matches!(kind, Kind::Make | Kind::Cut | Kind::Lock) || kind == w.told_by {
                return errno(libc::EIO);
            }
        } else if let Some(code) = turn.fail {
            w.inject(code, kind);
            if !matches!(kind, Kind::Write | Kind::Sync | Kind::Unlock) {
                return errno(code);
            }
        }
        let result = run(w, turn);
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
        self.call(Kind::Read, what, |w, turn| {
            let (dir, name) = w.place(path)?;
            let ino = match w.dirs[&dir].now.get(&name) {
                Some(ino) => *ino,
                None if turn.adrift => return errno(libc::EIO),
                None if create && w.full && !w.calm => {
                    w.inject(libc::ENOSPC, Kind::Make);
                    return errno(libc::ENOSPC);
                }
                None if create => {
                    let ino = w.fresh();
                    w.files.insert(ino, Inode::default());
                    w.change(dir, vec![(name, Some(ino))]);
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
            Kind::Make,
            || "scratch".into(),
            |w, _| {
                let (world, ino, handle) = (self.world.clone(), w.fresh(), w.fresh());
                w.files.insert(ino, Inode::default());
                Ok(SimFile { world, ino, handle })
            },
        )
    }

    fn read_at(&self, file: &SimFile, bytes: &mut [u8], at: u64) -> io::Result<usize> {
        let len = bytes.len();
        let what = || format!("read {} {len}+{at}", file.ino);
        self.call(Kind::Read, what, |w, turn| {
            let from = w.files[&file.ino].cache.get(at as usize..);
            let from = from.unwrap_or_default();
            let mut len = from.len().min(len);
            bytes[..len].copy_from_slice(&from[..len]);
            if turn.short && len > 1 {
                len = 1 + w.rng.below(len - 1);
                w.count("short reads");
            }
            Ok(len)
        })
    }

    fn write_at(&self, file: &SimFile, bytes: &[u8], at: u64) -> io::Result<usize> {
        let what = || format!("write {} {}+{at}", file.ino, bytes.len());
        self.call(Kind::Write, what, |w, turn| {
            let at = at as usize;
            if turn.adrift {
                return Ok(bytes.len());
            }
            if !w.is(file.ino, "index") || at < 16 {
                // Of the index only the count; a reader may mend the hints behind it.
                w.check_lock(file.ino, self.engine);
            }
            let named = w.name_of(file.ino).is_some();
            w.writes += u64::from(named);
            let mut len = bytes.len();
            // A few bytes are written whole or not at all.
            let partly = (turn.short || turn.fail.is_some()) && len > SECTOR;
            if partly {
                len = 1 + w.rng.below(len - 1);
                // Nor does any file system cut within the first bytes of a sector.
                len = if at == 0 { len.max(HEAD) } else { len };
                w.count("short writes");
            } else if turn.fail.is_some() {
                len = 0;
            }
            let old = w.files[&file.ino].cache.len();
            let full = w.full && !w.calm && at + len > old && named;
            if full {
                w.inject(libc::ENOSPC, Kind::Write);
                len = old.saturating_sub(at).min(len);
            }
            if len > 0 {
                let inode = w.files.get_mut(&file.ino).unwrap();
                inode.write(&bytes[..len], at);
            }
            match turn.fail {
                Some(code) => errno(code),
                None if full && len == 0 => errno(libc::ENOSPC),
                None => Ok(len),
            }
        })
    }

    fn reserve(&self, file: &SimFile, from: u64, _: u64, to: u64) -> io::Result<()> {
        let what = || format!("reserve {} {from}..{to}", file.ino);
        self.call(Kind::Write, what, |w, turn| {
            if turn.adrift {
                return Ok(());
            }
            w.check_lock(file.ino, self.engine);
            w.writes += 1;
            let tight = w.climate.tight && w.is(file.ino, "log") && w.rng.one_in(2);
            let full = !w.calm && (w.full || tight);
            let (from, mut to) = (from as usize, to as usize);
            if full {
                w.inject(libc::ENOSPC, Kind::Write);
                to = from;
            } else if turn.fail.is_some() || turn.short {
                to = from + w.rng.below(to - from);
            }
            let inode = w.files.get_mut(&file.ino).unwrap();
            if inode.cache.len() < to {
                inode.write(&vec![0; to - from], from);
            }
            match turn.fail {
                Some(code) => errno(code),
                None if full => errno(libc::ENOSPC),
                None => Ok(()),
            }
        })
    }

    fn punch(&self, file: &SimFile, from: u64, to: u64) -> io::Result<()> {
        let what = || format!("punch {} {from}..{to}", file.ino);
        self.call(Kind::Cut, what, |w, turn| {
            w.check_lock(file.ino, self.engine);
            w.writes += 1;
            w.count("holes punched");
            let pages = (to - from) / PAGE;
            let most = if turn.short { w.rng.below(pages as usize) as u64 } else { pages };
            let inode = w.files.get_mut(&file.ino).unwrap();
            // Not synced, each page may be there again.
            inode.write(&vec![0; (most * PAGE) as usize], from as usize);
            Ok(())
        })
    }

    fn forget(&self, file: &SimFile, from: u64) -> io::Result<()> {
        let what = || format!("forget {} {from}", file.ino);
        self.call(Kind::Read, what, |w, _| {
            w.files.get_mut(&file.ino).unwrap().evict(from as usize);
            Ok(())
        })
    }

    fn set_len(&self, file: &SimFile, len: u64) -> io::Result<()> {
        let what = || format!("set_len {} {len}", file.ino);
        self.call(Kind::Cut, what, |w, _| {
            w.check_lock(file.ino, self.engine);
            w.writes += 1;
            let inode = w.files.get_mut(&file.ino).unwrap();
            inode.set_len(len as usize);
            Ok(())
        })
    }

    fn sync_data(&self, file: &SimFile) -> io::Result<()> {
        let what = || format!("sync {}", file.ino);
        self.call(Kind::Sync, what, |w, turn| {
            if turn.adrift {
                return Ok(());
            }
            let World { rng, files, .. } = w;
            let inode = files.get_mut(&file.ino).unwrap();
            let luck = Luck::roll(rng);
            if let Some(code) = turn.fail {
                let (lost, evicted) = (!rng.one_in(4), rng.one_in(3));
                if lost {
                    inode.lose(rng, luck);
                }
                if evicted {
                    inode.evict(0);
                }
                if lost {
                    w.count("failed syncs that lost their pages");
                }
                return errno(code);
            }
            if turn.torn {
                inode.lose(rng, luck);
            } else {
                inode.sync();
            }
            Ok(())
        })
    }

    fn stat(&self, file: &SimFile) -> io::Result<Stat> {
        let what = || format!("stat {}", file.ino);
        self.call(Kind::Read, what, |w, _| {
            Ok(Stat {
                len: w.files[&file.ino].cache.len() as u64,
                named: w.name_of(file.ino).is_some(),
                identity: file.ino,
            })
        })
    }

    fn lock(&self, file: &SimFile, shared: bool) -> io::Result<()> {
        let what = || format!("lock {} {shared}", file.ino);
        self.call(Kind::Lock, what, |w, _| {
            if let Some(holder) = w.holder(file, shared) {
                // It would wait for whom it interrupts.
                if holder == self.engine {
                    w.fail("an engine waits for itself".into());
                }
                w.faults += 1;
                return errno(libc::EWOULDBLOCK);
            }
            w.locks.push(Held { ino: file.ino, handle: file.handle, engine: self.engine, shared });
            Ok(())
        })
    }

    fn try_lock(&self, file: &SimFile, shared: bool) -> io::Result<bool> {
        let what = || format!("try_lock {} {shared}", file.ino);
        self.call(Kind::Lock, what, |w, _| {
            let free = w.holder(file, shared).is_none();
            if free {
                let (ino, handle, engine) = (file.ino, file.handle, self.engine);
                w.locks.push(Held { ino, handle, engine, shared });
            }
            Ok(free)
        })
    }

    fn unlock(&self, file: &SimFile) -> io::Result<()> {
        let what = || format!("unlock {}", file.ino);
        self.call(Kind::Unlock, what, |w, turn| {
            w.locks.retain(|held| held.handle != file.handle);
            turn.fail.map_or(Ok(()), errno)
        })
    }

    fn identity(&self, path: &Path) -> io::Result<u64> {
        let what = || format!("identity {}", path.display());
        self.call(Kind::Read, what, |w, _| w.ino(path))
    }

    fn create_dir(&self, path: &Path, _: u32) -> io::Result<()> {
        let what = || format!("mkdir {}", path.display());
        self.call(Kind::Make, what, |w, _| {
            let (dir, name) = w.place(path)?;
            if w.dirs[&dir].now.contains_key(&name) {
                return errno(libc::EEXIST);
            }
            let ino = w.fresh();
            w.dirs.insert(ino, Dir::default());
            w.change(dir, vec![(name, Some(ino))]);
            Ok(())
        })
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        let what = || format!("rmdir {}", path.display());
        self.call(Kind::Make, what, |w, _| {
            if !w.dirs[&w.ino(path)?].now.is_empty() {
                return errno(libc::ENOTEMPTY);
            }
            w.unlink(path)
        })
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let what = || format!("unlink {}", path.display());
        self.call(Kind::Make, what, |w, _| {
            let ino = w.ino(path)?;
            if path.ends_with("log") {
                let asked = w.removing[self.engine].as_ref();
                if asked.is_none_or(|name| path != Path::new(name).join("log")) {
                    w.fail(format!("nobody asked engine {} to remove {path:?}", self.engine));
                }
                w.removed.insert(ino);
                w.moves += 1;
            }
            w.unlink(path)
        })
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let what = || format!("rename {} {}", from.display(), to.display());
        self.call(Kind::Make, what, |w, _| {
            let (ino, (dir, old), (_, new)) = (w.ino(from)?, w.place(from)?, w.place(to)?);
            if let Ok(replaced) = w.ino(to)
                && !w.dirs[&replaced].now.is_empty()
            {
                return errno(libc::ENOTEMPTY);
            }
            w.change(dir, vec![(old, None), (new, Some(ino))]);
            Ok(())
        })
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let what = || format!("sync_dir {:?}", path.display());
        self.call(Kind::Sync, what, |w, turn| {
            if turn.adrift {
                return errno(libc::EIO);
            }
            if let Some(code) = turn.fail {
                return errno(code);
            }
            let dir = w.dir(path.to_str().unwrap())?;
            let dir = w.dirs.get_mut(&dir).unwrap();
            if !turn.torn {
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
            |w, _| {
                let names: Vec<_> = w.streams().keys().cloned().collect();
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

    fn random(&self) -> io::Result<u64> {
        self.call(Kind::Read, || "random".into(), |w, _| Ok(w.rng.next()))
    }
}
