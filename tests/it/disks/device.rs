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

pub const SECTOR: usize = 512;
pub const BLOCK: usize = 4096;

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

impl State {
    /// Whether this is the disk now, and not what it was before the power failed.
    fn is(&self, node: INodeNo) -> bool {
        node.0 - FIRST == self.life
    }

    fn cannot(&self, bytes: &[u8]) -> bool {
        let holds = |bad: &[u8]| bytes.windows(bad.len()).any(|window| window == bad);
        self.bad.is_some_and(|bad| bad.is_empty() || holds(bad))
    }
}

struct Disk {
    size: u64,
    state: Mutex<State>,
    changed: Condvar,
}

/// The disk, switched on.
pub struct Device {
    base: TempDir,
    disk: Arc<Disk>,
}

impl Device {
    pub fn new(size: u64, image: Image) -> Device {
        let state = State { now: image.clone(), durable: image, ..State::default() };
        let disk = Arc::new(Disk { size, state: Mutex::new(state), changed: Condvar::new() });
        let device = Device { base: TempDir::new().unwrap(), disk: disk.clone() };
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
        self.base.path().canonicalize().unwrap().join(life.to_string())
    }

    /// The power fails as soon as so many writes wait to be flushed, or after a while: from then on
    /// nobody gets an answer. Of those writes the sectors stay for which `stays(write, byte)`
    /// holds, with the first byte's place in the write; says how many there were. Go on with [`Device::off`].
    pub fn cut(&self, writes: usize, stays: impl Fn(usize, usize) -> bool) -> (Image, usize) {
        let (state, fewer) = (self.state(), |state: &mut State| state.cache.len() < writes);
        let limit = Duration::from_secs(1);
        let waited = self.disk.changed.wait_timeout_while(state, limit, fewer);
        let (mut state, _) = waited.unwrap();
        state.held = true;
        let mut image = state.durable.clone();
        for (n, (at, bytes)) in state.cache.iter().enumerate() {
            for (from, bytes) in (0..).step_by(SECTOR).zip(bytes.chunks(SECTOR)) {
                if stays(n, from) {
                    image.put(at + from as u64, bytes);
                }
            }
        }
        (image, state.cache.len())
    }

    /// Who still waits for an answer gets one, and what is written from now on is lost.
    pub fn off(&self) {
        let mut state = self.state();
        state.held = false;
        state.life += 1;
        self.disk.changed.notify_all();
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
    /// Waits for the power to be back, or off for good.
    fn state(&self) -> MutexGuard<'_, State> {
        let state = self.state.lock().unwrap();
        self.changed.wait_while(state, |state| state.held).unwrap()
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
            kind: if root { FileType::Directory } else { FileType::RegularFile },
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
        let state = self.0.state();
        let bytes = state.now.get(offset, size as usize);
        if state.is(node) && state.cannot(&bytes) {
            return reply.error(Errno::EIO);
        }
        reply.data(&bytes);
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
        let mut state = self.0.state();
        if state.is(node) {
            if state.cannot(bytes) {
                return reply.error(Errno::EIO);
            }
            state.now.put(offset, bytes);
            state.cache.push((offset, bytes.to_vec()));
            self.0.changed.notify_all();
        }
        reply.written(bytes.len() as u32);
    }

    fn fsync(&self, _: &Request, node: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        let mut state = self.0.state();
        if state.is(node) {
            if state.bad.is_some_and(<[u8]>::is_empty) {
                return reply.error(Errno::EIO);
            }
            for (at, bytes) in std::mem::take(&mut state.cache) {
                state.durable.put(at, &bytes);
            }
        }
        reply.ok();
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }
}
