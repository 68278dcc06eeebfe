//! What there is beside the engines: files, names, locks, a clock, and what goes wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use smolstore::page::{self, Block};
use smolstore::walk::Tip;

use super::climate::{Climate, Doom, Kind, Strike, When};
use super::disk::SimFile;
use super::files::{Dir, Entries, Inode, Luck, Rng, apply};
use super::forge;

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn errno<T>(code: i32) -> io::Result<T> {
    Err(io::Error::from_raw_os_error(code))
}

pub(super) struct Held {
    pub(super) ino: u64,
    pub(super) handle: u64,
    pub(super) engine: usize,
    pub(super) shared: bool,
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
    pub(super) told_by: Kind,
    pub(super) down: bool,
    /// The host that holds what is not written back.
    pub(super) host: usize,
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
    /// The page cache lets go of a file after so many calls.
    pub(super) fades: Option<(u64, u64)>,
    /// Another engine is at work right now.
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
pub(super) const ENDLESS: u64 = 5_000_000;

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
            fades: None,
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
    pub(super) fn place(&self, path: &Path) -> io::Result<(u64, String)> {
        let path = path.to_str().unwrap();
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        Ok((self.dir(dir)?, name.to_string()))
    }
    pub(super) fn ino(&self, path: &Path) -> io::Result<u64> {
        let (dir, name) = self.place(path)?;
        let ino = self.dirs[&dir].now.get(&name);
        ino.copied().map_or_else(|| errno(libc::ENOENT), Ok)
    }
    pub(super) fn fresh(&mut self) -> u64 {
        self.last += 1;
        self.last
    }
    pub(super) fn name_of(&self, ino: u64) -> Option<(u64, &str)> {
        self.dirs.iter().find_map(|(dir, d)| {
            let (name, _) = d.now.iter().find(|(_, found)| **found == ino)?;
            Some((*dir, name.as_str()))
        })
    }
    pub(super) fn is(&self, ino: u64, what: &str) -> bool {
        self.name_of(ino).is_some_and(|(_, name)| name == what)
    }
    pub(super) fn change(&mut self, dir: u64, change: Vec<(String, Option<u64>)>) {
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
            self.files.insert(ino, Inode::holding(bytes));
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
    pub(super) fn check_lock(&mut self, ino: u64, engine: usize) {
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
    pub(super) fn holder(&self, file: &SimFile, shared: bool) -> Option<usize> {
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
    pub(super) fn cut_off(&mut self, engine: usize) {
        self.note("    CUT OFF".into());
        self.faults += 1;
        self.adrift[engine] = true;
        self.told_by = self.rng.one_of(&[Kind::Read, Kind::Unlock]);
        self.locks.retain(|held| held.engine != engine);
    }
    /// Which host an engine is on.
    pub(super) fn host_of(&self, engine: usize) -> usize {
        usize::from(self.climate.hosts && engine == 1)
    }
    /// Another host comes to see the files: one at a time holds what is not written back.
    pub(super) fn hand_over(&mut self, host: usize) {
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
        let file = |dir: u64, name: &str| {
            let file = self.files.get(self.dirs[&dir].now.get(name)?)?;
            Some(Inode::holding(&file.cache))
        };
        let (log, index, from) = (file(dir, "log")?, file(other, "index")?, self.stream(dir)?);
        for (name, copy) in [("log", log), ("index", index)] {
            let ino = self.fresh();
            self.files.insert(ino, copy);
            self.change(dir, vec![(name.into(), Some(ino))]);
        }
        self.settle_names(dir);
        self.count("restored from a backup");
        Some((from, self.stream(dir)?))
    }
    /// What a failed sync lost is in the cache for a while.
    pub(super) fn fade(&mut self) {
        let Some((ino, left)) = self.fades.take() else { return };
        if left > 0 {
            self.fades = Some((ino, left - 1));
        } else if let Some(inode) = self.files.get_mut(&ino) {
            inode.evict(0);
            self.faults += 1;
            self.note("    it fades".into());
        }
    }
    /// What befalls this call.
    pub(super) fn strike(&mut self, kind: Kind) -> Option<Strike> {
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
    pub(super) fn fails(&mut self, kind: Kind) -> Option<i32> {
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
    pub(super) fn inject(&mut self, code: i32, kind: Kind) {
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
pub(super) fn due(slot: &mut Option<(u64, Hook)>) -> Option<Hook> {
    match slot {
        Some((0, _)) => slot.take().map(|(_, hook)| hook),
        Some((left, _)) => {
            *left -= 1;
            None
        }
        None => None,
    }
}
