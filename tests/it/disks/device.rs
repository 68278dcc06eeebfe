//! A disk of the tests' own: a file, on a FUSE of this process, to set a loop device up on.
//!
//! It has a volatile cache, as real disks do. What was written since the last flush may be there
//! after a power cut or not, each sector by itself; what was flushed is. And it may have bad
//! sectors.

use crate::harness::unmount;
use fuser::{
    Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite,
    Request, Session, WriteFlags,
};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, UNIX_EPOCH};
use tempfile::TempDir;

const SECTOR: usize = 512;
const BLOCK: usize = 4096;

/// What a disk holds; blocks of zeros are left out.
#[derive(Clone, Default)]
pub struct Image(BTreeMap<u64, Arc<[u8; BLOCK]>>);

impl Image {
    /// The contents of a file.
    pub fn of(path: &Path) -> Image {
        let (file, mut image) = (File::open(path).unwrap(), Image::default());
        let len = file.metadata().unwrap().len();
        let mut block = [0; BLOCK];
        for at in (0..len).step_by(BLOCK) {
            file.read_exact_at(&mut block, at).unwrap();
            if block != [0; BLOCK] {
                image.put(at, &block);
            }
        }
        image
    }

    /// Whole sectors, of which no block holds more than one.
    fn put(&mut self, at: u64, mut bytes: &[u8]) {
        let (mut block, mut skip) = (at / BLOCK as u64, at as usize % BLOCK);
        while !bytes.is_empty() {
            let (here, rest) = bytes.split_at(bytes.len().min(BLOCK - skip));
            let to = self.0.entry(block).or_insert_with(|| Arc::new([0; BLOCK]));
            Arc::make_mut(to)[skip..skip + here.len()].copy_from_slice(here);
            (block, skip, bytes) = (block + 1, 0, rest);
        }
    }

    fn get(&self, at: u64, len: usize) -> Vec<u8> {
        let skip = at as usize % BLOCK;
        let mut bytes = Vec::with_capacity(len + 2 * BLOCK);
        for block in at / BLOCK as u64..(at + len as u64).div_ceil(BLOCK as u64) {
            let held = self.0.get(&block);
            bytes.extend(held.map_or([0; BLOCK], |block| **block));
        }
        bytes.drain(..skip);
        bytes.truncate(len);
        bytes
    }
}

#[derive(Default)]
struct State {
    now: Image,
    durable: Image,
    /// Written since the last flush.
    cache: Vec<(u64, Vec<u8>)>,
    /// How often it was switched on. Each time it is another file, which nobody has cached.
    life: u64,
    /// The power is cut: nobody gets an answer.
    held: bool,
    /// Writes and reads of these bytes fail; of none, everything does.
    bad: Option<&'static [u8]>,
}

struct Disk {
    size: u64,
    state: Mutex<State>,
    resumed: Condvar,
}

/// The disk, switched on.
pub struct Device {
    base: TempDir,
    disk: Arc<Disk>,
}

impl Device {
    pub fn new(size: u64, image: Image) -> Device {
        let state = State {
            now: image.clone(),
            durable: image,
            ..State::default()
        };
        let disk = Arc::new(Disk {
            size,
            state: Mutex::new(state),
            resumed: Condvar::new(),
        });
        let device = Device {
            base: TempDir::new().unwrap(),
            disk: disk.clone(),
        };
        let mut config = Config::default();
        config.n_threads = Some(2);
        let session = Session::new(Served(disk), device.base.path(), &config).unwrap();
        std::thread::spawn(move || session.run());
        device
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.disk.state.lock().unwrap()
    }

    /// The file that is the disk now.
    pub fn path(&self) -> PathBuf {
        let life = self.state().life;
        self.base
            .path()
            .canonicalize()
            .unwrap()
            .join(life.to_string())
    }

    /// The power fails: from this moment on nobody gets an answer. Of the sectors that were not
    /// flushed those stay for which `stays(write, sector)` holds; says how many writes there were.
    /// Go on with [`Device::off`].
    pub fn cut(&self, stays: impl Fn(usize, usize) -> bool) -> (Image, usize) {
        let mut state = self.state();
        state.held = true;
        let mut image = state.durable.clone();
        for (n, (at, bytes)) in state.cache.iter().enumerate() {
            for (sector, bytes) in bytes.chunks(SECTOR).enumerate() {
                if stays(n, sector) {
                    image.put(at + (sector * SECTOR) as u64, bytes);
                }
            }
        }
        (image, state.cache.len())
    }

    /// Who still waits for an answer gets one that means nothing.
    pub fn off(&self) {
        let mut state = self.state();
        state.held = false;
        state.life += 1;
        self.disk.resumed.notify_all();
    }

    /// It is switched on again, and holds this.
    pub fn on(&self, image: Image) {
        let mut state = self.state();
        state.now = image.clone();
        state.durable = image;
        state.cache.clear();
    }

    /// From now on these bytes can be neither written nor read; no bytes: nothing works.
    pub fn spoil(&self, bytes: Option<&'static [u8]>) {
        self.state().bad = bytes;
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.off();
        unmount(&self.base.path().canonicalize().unwrap());
    }
}

impl Disk {
    /// Runs a request to the disk as it was in one of its lives, if it is in that still.
    fn run<R>(&self, node: INodeNo, run: impl FnOnce(&mut State) -> R) -> Option<R> {
        let mut state = self.state.lock().unwrap();
        while state.held {
            state = self.resumed.wait(state).unwrap();
        }
        (node.0 - FIRST == state.life).then(|| run(&mut state))
    }

    fn attr(&self, node: INodeNo) -> FileAttr {
        let root = node == INodeNo::ROOT;
        FileAttr {
            ino: node,
            size: self.size,
            blocks: self.size / SECTOR as u64,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: if root {
                FileType::Directory
            } else {
                FileType::RegularFile
            },
            perm: if root { 0o700 } else { 0o600 },
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: BLOCK as u32,
            flags: 0,
        }
    }
}

fn holds(bytes: &[u8], bad: Option<&[u8]>) -> bool {
    let all = |bad: &[u8]| bad.is_empty() || bytes.windows(bad.len()).any(|window| window == bad);
    bad.is_some_and(all)
}

/// The node of the file `0`.
const FIRST: u64 = INodeNo::ROOT.0 + 1;
const LONG: Duration = Duration::from_secs(24 * 3600);

struct Served(Arc<Disk>);

impl Filesystem for Served {
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match name.to_str().and_then(|name| name.parse::<u64>().ok()) {
            Some(life) => {
                let attr = self.0.attr(INodeNo(FIRST + life));
                reply.entry(&LONG, &attr, Generation(0));
            }
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, node: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&LONG, &self.0.attr(node));
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn read(
        &self,
        _: &Request,
        node: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let read = self.0.run(node, |state| {
            let bytes = state.now.get(offset, size as usize);
            (!holds(&bytes, state.bad)).then_some(bytes)
        });
        match read {
            Some(Some(bytes)) => reply.data(&bytes),
            Some(None) => reply.error(Errno::EIO),
            None => reply.data(&vec![0; size as usize]),
        }
    }

    fn write(
        &self,
        _: &Request,
        node: INodeNo,
        _: FileHandle,
        offset: u64,
        bytes: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let written = self.0.run(node, |state| {
            if holds(bytes, state.bad) {
                return false;
            }
            state.now.put(offset, bytes);
            state.cache.push((offset, bytes.to_vec()));
            true
        });
        match written {
            Some(false) => reply.error(Errno::EIO),
            _ => reply.written(bytes.len() as u32),
        }
    }

    fn fsync(&self, _: &Request, node: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let flushed = self.0.run(node, |state| {
            let works = state.bad.is_none_or(|bad| !bad.is_empty());
            for (at, bytes) in std::mem::take(&mut state.cache)
                .into_iter()
                .filter(|_| works)
            {
                state.durable.put(at, &bytes);
            }
            works
        });
        match flushed {
            Some(false) => reply.error(Errno::EIO),
            _ => reply.ok(),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }
}
