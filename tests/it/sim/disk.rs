//! A disk that is in memory, and fails like real ones: see [`World`].

use std::ffi::OsString;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use smolstore::disk::{Disk, Names, Stat};
use smolstore::page::{HEAD, PAGE};

use super::climate::{Kind, Strike, When};
use super::files::{Dir, Inode, Luck, SECTOR};
use super::world::{ENDLESS, Held, World, due, errno, lock};

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

#[derive(Clone)]
pub(super) struct SimDisk {
    pub(super) world: Arc<Mutex<World>>,
    pub(super) engine: usize,
    pub(super) incarnation: u64,
}

pub(super) struct SimFile {
    world: Arc<Mutex<World>>,
    pub(super) ino: u64,
    pub(super) handle: u64,
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
            w.fade();
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
                // No page goes from the cache between two pieces of it.
                let within = u64::from(!(at + len as u64).is_multiple_of(PAGE));
                w.fades = w.fades.map(|(ino, left)| (ino, left.max(within)));
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
                // No file system makes room for a part of a block.
                to = from.max((from + w.rng.below(to - from)) / SECTOR * SECTOR);
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
                } else if lost {
                    w.fades = Some((file.ino, w.rng.next() % 60));
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
