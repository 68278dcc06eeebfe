//! A store in memory with the one stream `s`. It counts what is asked of it, so that it can be said
//! that something ends, or changes nothing.

use smolstore::Store;
use smolstore::disk::{Disk, Names, Stat};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

/// More calls than any target makes on purpose.
const ENDLESS: u64 = 4_000_000;
/// Longer than any file the targets ask for.
const LONGEST: usize = 256 << 20;

#[derive(Clone, Default)]
pub(super) struct Memory(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    files: BTreeMap<PathBuf, Inode>,
    scratches: u64,
    calls: u64,
    changes: u64,
    clock: u64,
}

#[derive(Clone)]
pub(super) struct Inode {
    number: u64,
    bytes: Arc<Mutex<Vec<u8>>>,
}

/// The numbers of the files that have names.
const LOG: u64 = 11;
const INDEX: u64 = 12;

impl Memory {
    /// A store with these files, each by its name and the number it gets.
    pub(super) fn new(clock: u64) -> Memory {
        let memory = Memory::default();
        memory.state().clock = clock;
        memory
    }

    pub(super) fn put(&self, name: &str, bytes: Vec<u8>) {
        let inode = inode(name, bytes);
        self.state().files.insert(Path::new("s").join(name), inode);
    }

    pub(super) fn remove(&self, name: &str) {
        self.state().files.remove(&Path::new("s").join(name));
    }

    /// The bytes of a file, when it is there.
    pub(super) fn get(&self, name: &str) -> Option<Vec<u8>> {
        let inode = self.state().files.get(&Path::new("s").join(name)).cloned();
        inode.map(|inode| inode.bytes.lock().unwrap().clone())
    }

    /// How many calls so far changed a file that has a name.
    pub(super) fn changes(&self) -> u64 {
        self.state().changes
    }

    pub(super) fn store(&self, read_only: bool) -> Store<Memory> {
        Store::on(self.clone(), read_only, Box::new(|_| {}))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        let mut state = self.0.lock().unwrap();
        state.calls += 1;
        assert!(state.calls < ENDLESS, "it does not end");
        state
    }

    /// A file that may be changed.
    fn change(&self, file: &Inode) -> Arc<Mutex<Vec<u8>>> {
        self.state().changes += u64::from(file.named());
        file.bytes.clone()
    }
}

fn inode(name: &str, bytes: Vec<u8>) -> Inode {
    Inode { number: if name == "log" { LOG } else { INDEX }, bytes: Arc::new(Mutex::new(bytes)) }
}

impl Inode {
    fn named(&self) -> bool {
        self.number == LOG || self.number == INDEX
    }
}

fn errno<T>(errno: i32) -> io::Result<T> {
    Err(io::Error::from_raw_os_error(errno))
}

impl Disk for Memory {
    type File = Inode;

    fn open(&self, path: &Path, create: bool) -> io::Result<Inode> {
        let mut state = self.state();
        if let Some(inode) = state.files.get(path) {
            return Ok(inode.clone());
        }
        if !create || !path.starts_with("s") {
            return errno(libc::ENOENT);
        }
        state.changes += 1;
        let inode = inode(path.file_name().unwrap().to_str().unwrap(), Vec::new());
        state.files.insert(path.into(), inode.clone());
        Ok(inode)
    }

    fn scratch(&self) -> io::Result<Inode> {
        let mut state = self.state();
        state.scratches += 1;
        Ok(Inode { number: 100 + state.scratches, bytes: Arc::default() })
    }

    fn read_at(&self, file: &Inode, bytes: &mut [u8], at: u64) -> io::Result<usize> {
        drop(self.state());
        let all = file.bytes.lock().unwrap();
        let from = all.get(at as usize..).unwrap_or_default();
        let len = from.len().min(bytes.len());
        bytes[..len].copy_from_slice(&from[..len]);
        Ok(len)
    }

    fn write_at(&self, file: &Inode, bytes: &[u8], at: u64) -> io::Result<usize> {
        let all = self.change(file);
        let (mut all, at) = (all.lock().unwrap(), at as usize);
        assert!(at < LONGEST, "a write at {at}");
        let len = all.len().max(at + bytes.len());
        all.resize(len, 0);
        all[at..at + bytes.len()].copy_from_slice(bytes);
        Ok(bytes.len())
    }

    fn reserve(&self, file: &Inode, from: u64, filled: u64, to: u64) -> io::Result<()> {
        assert_eq!(from, file.bytes.lock().unwrap().len() as u64);
        assert!(from <= filled && filled <= to);
        self.set_len(file, to)
    }

    fn punch(&self, file: &Inode, from: u64, to: u64) -> io::Result<()> {
        self.change(file).lock().unwrap()[from as usize..to as usize].fill(0);
        Ok(())
    }

    fn forget(&self, _: &Inode, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn set_len(&self, file: &Inode, len: u64) -> io::Result<()> {
        assert!((len as usize) < LONGEST, "a length of {len}");
        self.change(file).lock().unwrap().resize(len as usize, 0);
        Ok(())
    }

    fn sync_data(&self, _: &Inode) -> io::Result<()> {
        Ok(())
    }

    fn stat(&self, file: &Inode) -> io::Result<Stat> {
        let files = &self.state().files;
        Ok(Stat {
            len: file.bytes.lock().unwrap().len() as u64,
            named: files.values().any(|f| Arc::ptr_eq(&f.bytes, &file.bytes)),
            identity: file.number,
        })
    }

    fn lock(&self, _: &Inode, _: bool) -> io::Result<()> {
        Ok(())
    }

    fn try_lock(&self, _: &Inode, _: bool) -> io::Result<bool> {
        Ok(true)
    }

    fn unlock(&self, _: &Inode) -> io::Result<()> {
        Ok(())
    }

    fn identity(&self, path: &Path) -> io::Result<u64> {
        match self.state().files.get(path) {
            Some(inode) => Ok(inode.number),
            None if path == Path::new("s") => Ok(1),
            None => errno(libc::ENOENT),
        }
    }

    fn create_dir(&self, _: &Path, _: u32) -> io::Result<()> {
        errno(libc::EEXIST)
    }

    fn remove_dir(&self, _: &Path) -> io::Result<()> {
        errno(libc::ENOTEMPTY)
    }

    fn remove_file(&self, _: &Path) -> io::Result<()> {
        errno(libc::EPERM)
    }

    fn rename(&self, _: &Path, _: &Path) -> io::Result<()> {
        errno(libc::EPERM)
    }

    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn streams(&self) -> io::Result<Names> {
        Ok(Box::new([Ok("s".into())].into_iter()))
    }

    fn now(&self) -> u64 {
        let mut state = self.state();
        state.clock += 1;
        state.clock
    }

    fn random(&self) -> io::Result<u64> {
        Ok(self.state().calls)
    }
}
