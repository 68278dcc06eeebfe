//! The few effects the engine needs, as one trait; and the real disk.
//!
//! Paths are relative to the store. Every method is one system call or close to it, so that a
//! simulated disk can stop the world between any two of them.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::sys;

/// What [`Disk::stat`] tells of an open file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Its length in bytes.
    pub len: u64,
    /// It still has a name.
    pub named: bool,
    /// Tells this file from every other that ever had its name, copies included: the inode number
    /// mixed with the time of birth. Never 0.
    pub identity: u64,
}

/// The names of streams.
pub type Names = Box<dyn Iterator<Item = io::Result<OsString>> + Send>;

/// What the engine asks of the operating system.
pub trait Disk: Send + Sync + 'static {
    /// An open file.
    type File: Send + Sync + 'static;

    /// Opens a file for reading, and for writing where it is to be created when absent.
    fn open(&self, path: &Path, create: bool) -> io::Result<Self::File>;
    /// An empty file without a name, gone when it is dropped.
    fn scratch(&self) -> io::Result<Self::File>;
    /// pread(2): may return less than asked for.
    fn read_at(&self, file: &Self::File, bytes: &mut [u8], at: u64) -> io::Result<usize>;
    /// pwrite(2): may write less than asked for.
    fn write_at(&self, file: &Self::File, bytes: &[u8], at: u64) -> io::Result<usize>;
    /// Makes `from..to`, which is the end of the file, read as zeros and take up its space where
    /// the file system can promise that. What is before `filled` is about to be written.
    fn reserve(&self, file: &Self::File, from: u64, filled: u64, to: u64) -> io::Result<()>;
    /// Gives the space of `from..to` back; it reads as zeros then, as far as that can be done.
    fn punch(&self, file: &Self::File, from: u64, to: u64) -> io::Result<()>;
    /// Gives up what the page cache holds of a file from `from` on and is not to be written.
    fn forget(&self, file: &Self::File, from: u64) -> io::Result<()>;
    /// ftruncate(2).
    fn set_len(&self, file: &Self::File, len: u64) -> io::Result<()>;
    /// fdatasync(2).
    fn sync_data(&self, file: &Self::File) -> io::Result<()>;
    /// fstat(2).
    fn stat(&self, file: &Self::File) -> io::Result<Stat>;
    /// Waits for the lock of a file, flock(2): shared for readers, else exclusive.
    fn lock(&self, file: &Self::File, shared: bool) -> io::Result<()>;
    /// Takes it exclusively, unless that has to be waited for.
    fn try_lock(&self, file: &Self::File) -> io::Result<bool>;
    /// Gives it back.
    fn unlock(&self, file: &Self::File) -> io::Result<()>;
    /// The identity of the file at `path`.
    fn identity(&self, path: &Path) -> io::Result<u64>;
    /// mkdir(2).
    fn create_dir(&self, path: &Path, mode: u32) -> io::Result<()>;
    /// rmdir(2).
    fn remove_dir(&self, path: &Path) -> io::Result<()>;
    /// unlink(2).
    fn remove_file(&self, path: &Path) -> io::Result<()>;
    /// rename(2).
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// fsync(2) of a directory: its names are durable.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
    /// The names of the directories in the store, dot names and lost+found left out.
    fn streams(&self) -> io::Result<Names>;
    /// The clock: nanoseconds since the Unix epoch.
    fn now(&self) -> u64;
    /// A number that nobody can guess.
    fn random(&self) -> io::Result<u64>;
}

/// A directory of the operating system.
#[derive(Debug)]
pub struct Real(pub PathBuf);

impl Real {
    /// Runs `call` with a path to a file of a stream that leads through no symbolic link: who may
    /// make a stream's directory, or owns it, must not lend us the names of others.
    fn file<R>(&self, path: &Path, call: impl FnOnce(&Path) -> io::Result<R>) -> io::Result<R> {
        let (stream, name) = (path.parent(), path.file_name());
        let (_held, stream) = sys::directory(&self.0.join(stream.unwrap_or(Path::new(""))))?;
        call(&stream.join(name.unwrap_or_default()))
    }
}

/// So many zeros are written at a time.
const ZEROS: usize = 256 << 10;
/// A write of so many bytes is a piece of a large batch: the disk need not wait for the last one.
const LARGE: usize = 1 << 20;

impl Disk for Real {
    type File = File;

    fn open(&self, path: &Path, create: bool) -> io::Result<File> {
        let mut options = OpenOptions::new();
        options.read(true).write(create).create(create).mode(0o600);
        options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
        self.file(path, |path| options.open(path))
    }

    fn scratch(&self) -> io::Result<File> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).mode(0o600);
        match options.clone().custom_flags(libc::O_TMPFILE).open(&self.0) {
            // A file system without them: take a name, and take it away.
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                let name = format!(".scratch-{}-{}", std::process::id(), self.now());
                let path = self.0.join(name);
                let file = options.create_new(true).open(&path)?;
                fs::remove_file(path)?;
                Ok(file)
            }
            result => result,
        }
    }

    fn read_at(&self, file: &File, bytes: &mut [u8], at: u64) -> io::Result<usize> {
        file.read_at(bytes, at)
    }

    fn write_at(&self, file: &File, bytes: &[u8], at: u64) -> io::Result<usize> {
        let written = file.write_at(bytes, at)?;
        if bytes.len() >= LARGE {
            sys::begin_writeback(file);
        }
        Ok(written)
    }

    fn reserve(&self, file: &File, from: u64, filled: u64, to: u64) -> io::Result<()> {
        let mut at = match sys::allocate(file, from, filled) {
            Ok(()) => filled,
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => from,
            Err(error) => return Err(error),
        };
        // Blocks that hold zeros, not unwritten ones: to fill those in later is a change of
        // metadata, and costs each commit a journal write.
        let zeros = vec![0; usize::try_from(to - at).map_or(ZEROS, |len| len.min(ZEROS))];
        while at < to {
            let len = usize::try_from(to - at).map_or(zeros.len(), |left| left.min(zeros.len()));
            file.write_all_at(&zeros[..len], at)?;
            at += len as u64;
        }
        Ok(())
    }

    fn punch(&self, file: &File, from: u64, to: u64) -> io::Result<()> {
        sys::punch(file, from, to)
    }

    fn forget(&self, file: &File, from: u64) -> io::Result<()> {
        sys::forget(file, from)
    }

    fn set_len(&self, file: &File, len: u64) -> io::Result<()> {
        file.set_len(len)
    }

    fn sync_data(&self, file: &File) -> io::Result<()> {
        file.sync_data()
    }

    fn stat(&self, file: &File) -> io::Result<Stat> {
        let found = sys::stat(Some(file), Path::new(""))?;
        Ok(Stat { len: found.stx_size, named: found.stx_nlink > 0, identity: identity(&found) })
    }

    fn lock(&self, file: &File, shared: bool) -> io::Result<()> {
        if shared { file.lock_shared() } else { file.lock() }
    }

    fn try_lock(&self, file: &File) -> io::Result<bool> {
        match file.try_lock() {
            Ok(()) => Ok(true),
            Err(TryLockError::WouldBlock) => Ok(false),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    fn unlock(&self, file: &File) -> io::Result<()> {
        file.unlock()
    }

    fn identity(&self, path: &Path) -> io::Result<u64> {
        Ok(identity(&sys::stat(None, &self.0.join(path))?))
    }

    fn create_dir(&self, path: &Path, mode: u32) -> io::Result<()> {
        DirBuilder::new().mode(mode).create(self.0.join(path))
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir(self.0.join(path))
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.file(path, |path| fs::remove_file(path))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(self.0.join(from), self.0.join(to))
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let mut directory = OpenOptions::new();
        directory.read(true).custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW);
        directory.open(self.0.join(path))?.sync_all()
    }

    fn streams(&self) -> io::Result<Names> {
        Ok(Box::new(fs::read_dir(&self.0)?.filter_map(|entry| {
            let stream = |entry: &fs::DirEntry| -> io::Result<bool> {
                Ok(is_stream_name(&entry.file_name()) && entry.file_type()?.is_dir())
            };
            match entry.and_then(|entry| Ok(stream(&entry)?.then(|| entry.file_name()))) {
                Ok(name) => name.map(Ok),
                Err(error) => Some(Err(error)),
            }
        })))
    }

    fn now(&self) -> u64 {
        // Before 1970 or after 2554 the log's own order of times takes over.
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_nanos()).map_or(u64::MAX / 4, |now| now.min(u64::MAX / 4))
    }

    fn random(&self) -> io::Result<u64> {
        let mut bytes = [0; 8];
        File::open("/dev/urandom")?.read_exact(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }
}

/// Whether `name` can be that of a stream.
pub fn is_stream_name(name: &std::ffi::OsStr) -> bool {
    let bytes = name.as_encoded_bytes();
    !bytes.is_empty() && bytes[0] != b'.' && bytes != b"lost+found" && !bytes.contains(&b'/')
}

fn identity(found: &libc::statx) -> u64 {
    // Where the file system keeps no time of birth the inode number has to do.
    let known = found.stx_mask & libc::STATX_BTIME != 0;
    let born = u64::try_from(found.stx_btime.tv_sec).ok().filter(|_| known);
    let nanos = u64::from(found.stx_btime.tv_nsec);
    let born = born.map_or(0, |seconds| seconds.wrapping_mul(1_000_000_000).wrapping_add(nanos));
    (found.stx_ino.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ born).max(1)
}
