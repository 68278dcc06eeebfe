//! The files of the simulated disk, and what a crash or a failed sync makes of them.

use std::collections::BTreeMap;

/// splitmix64.
pub(super) struct Rng(pub(super) u64);

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

pub(super) const SECTOR: usize = 512;
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
    pub(super) cache: Vec<u8>,
    pub(super) disk: Vec<u8>,
    dirty: BTreeMap<usize, Vec<Sector>>,
    lens: Vec<usize>,
}

/// How much of what was not synced survives.
#[derive(Clone, Copy)]
pub(super) enum Luck {
    None,
    All,
    /// Any version of each sector.
    Any,
    /// One sector in so many is lost, or survives.
    Most(usize),
    Few(usize),
}

impl Luck {
    pub(super) fn roll(rng: &mut Rng) -> Luck {
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
    pub(super) fn version(self, rng: &mut Rng, versions: usize) -> usize {
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
    pub(super) fn write(&mut self, bytes: &[u8], at: usize) {
        let end = at + bytes.len();
        if end > self.cache.len() {
            self.cache.resize(end, 0);
            self.lens.push(end);
        }
        self.cache[at..end].copy_from_slice(bytes);
        self.touch(at, end);
    }
    pub(super) fn set_len(&mut self, len: usize) {
        let old = self.cache.len();
        self.cache.resize(len, 0);
        self.lens.push(len);
        self.touch(len, old.max(len));
    }
    /// fdatasync; of a shorter length it promises nothing, no data needs it.
    pub(super) fn sync(&mut self) {
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
    pub(super) fn lose(&mut self, rng: &mut Rng, luck: Luck) {
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
    pub(super) fn crash(&mut self, rng: &mut Rng, luck: Luck) -> (usize, usize, usize) {
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
    pub(super) fn hand_over(&mut self) {
        self.disk.resize(self.cache.len(), 0);
        self.lens.clear();
        for n in std::mem::take(&mut self.dirty).into_keys() {
            let now = sector(&self.cache, n);
            put(&mut self.disk, n, &now);
        }
        self.cache.clone_from(&self.disk);
    }
    /// A file that holds this, durably.
    pub(super) fn holding(bytes: &[u8]) -> Inode {
        Inode { cache: bytes.to_vec(), disk: bytes.to_vec(), ..Inode::default() }
    }
}

pub(super) type Entries = BTreeMap<String, u64>;

/// A directory; its changes since the last sync, each of which may survive a crash or not.
#[derive(Clone, Default)]
pub(super) struct Dir {
    pub(super) now: Entries,
    pub(super) disk: Entries,
    pub(super) changes: Vec<Vec<(String, Option<u64>)>>,
}

impl Dir {
    pub(super) fn change(&mut self, change: Vec<(String, Option<u64>)>) {
        apply(&mut self.now, &change);
        self.changes.push(change);
    }
}

pub(super) fn apply(entries: &mut Entries, change: &[(String, Option<u64>)]) {
    for (name, ino) in change {
        match ino {
            Some(ino) => entries.insert(name.clone(), *ino),
            None => entries.remove(name),
        };
    }
}
