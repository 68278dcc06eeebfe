//! The few effects the engine needs, as one trait; and the real disk.
//!
//! Paths are relative to the store. Every method is one system call or close to it, so that a
//! simulated disk can stop the world between any two of them.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::ops::Deref;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::error::{Error, Result};
use crate::news::News;
use crate::page::PAGE;
use crate::{hosts, sys};

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

    /// Whether a write is one of the whole pages that it touches: then only who has the lock writes.
    fn direct(&self) -> bool {
        false
    }

    /// Tells other hosts that the stream of this name changed.
    fn tell(&self, _name: &Path) {}

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
    /// Takes it, unless it has to be waited for.
    fn try_lock(&self, file: &Self::File, shared: bool) -> io::Result<bool>;
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
pub struct Real {
    root: PathBuf,
    /// Where other hosts may mount it, what they tell each other; then log and index bypass the page cache.
    news: Option<Arc<News>>,
}

/// An open file of the operating system.
#[derive(Debug)]
pub struct Opened {
    file: File,
    /// It was opened with O_DIRECT.
    direct: bool,
}

impl Deref for Opened {
    type Target = File;

    fn deref(&self) -> &File {
        &self.file
    }
}

impl Real {
    /// A directory that no other host mounts.
    pub fn local(root: impl Into<PathBuf>) -> Real {
        Real { root: root.into(), news: None }
    }

    /// A directory on any file system, if it can be used there. `single_host`: no other host mounts it.
    ///
    /// # Errors
    /// [`Error::Foreign`] where that is not safe, and what to do.
    pub fn new(root: &Path, single_host: bool) -> Result<Real> {
        let shown = root.display();
        let found = sys::statfs(root).and_then(|found| Ok((found.f_type, mount_of(root)?)));
        let (f_type, mount) = found.map_err(Error::os(&shown))?;
        let direct = hosts::direct(f_type, &mount).or_else(|why| match single_host {
            true => Ok(false),
            false => Err(Error::Foreign(format!(
                "{shown}: {why}; hosts may share a store on CephFS or NFSv4, and where no other host \
                 mounts it '-o single_host' says so"
            ))),
        })?;
        let news = direct.then(|| Arc::new(News::new(root)));
        Ok(Real { root: root.into(), news })
    }

    /// Where it is.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// What hosts that share it tell each other.
    pub fn news(&self) -> Option<Arc<News>> {
        self.news.clone()
    }

    /// Whether a file that is there can be read as those of streams will be.
    pub(crate) fn probe(&self, path: &Path) -> Result<()> {
        let read = self.open(path, false).and_then(|file| self.read_at(&file, &mut [0], 0));
        match read {
            Err(error) if self.direct() && error.kind() != io::ErrorKind::NotFound => {
                Err(Error::Foreign(format!(
                    "{}: other hosts may mount it, but it takes no O_DIRECT: {error}",
                    self.root.display()
                )))
            }
            _ => Ok(()),
        }
    }

    /// What was answered about a name in the store. A host that was cut off is told that nothing is
    /// there, or not for it: where the store itself is not there that says nothing of the name.
    pub(crate) fn there<R>(&self, answer: io::Result<R>) -> io::Result<R> {
        use io::ErrorKind::{NotFound, PermissionDenied};
        answer.map_err(|error| match error.kind() {
            NotFound | PermissionDenied
                if self.direct() && File::open(self.root.join(MARK)).is_err() =>
            {
                io::Error::from_raw_os_error(libc::EIO)
            }
            _ => error,
        })
    }

    /// Runs `call` with a path to a file of a stream that leads through no symbolic link: who may
    /// make a stream's directory, or owns it, must not lend us the names of others.
    fn file<R>(&self, path: &Path, call: impl FnOnce(&Path) -> io::Result<R>) -> io::Result<R> {
        let (stream, name) = (path.parent(), path.file_name());
        let (_held, stream) = sys::directory(&self.root.join(stream.unwrap_or(Path::new(""))))?;
        call(&stream.join(name.unwrap_or_default()))
    }
}

/// The file that makes a directory a store.
pub(crate) const MARK: &str = ".smolstore";

/// The line of /proc/self/mountinfo of the mount that a directory is in; empty where it is not seen.
fn mount_of(path: &Path) -> io::Result<String> {
    let directory = File::open(path)?;
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let about = read(&format!("/proc/self/fdinfo/{}", directory.as_raw_fd()));
    let id = about.lines().find_map(|line| line.strip_prefix("mnt_id:")).unwrap_or_default();
    let mounts = read("/proc/self/mountinfo");
    let line = mounts.lines().find(|line| line.split(' ').next() == Some(id.trim()));
    Ok(line.unwrap_or_default().into())
}

/// Memory for the pages that hold `len` bytes from `at` on, and where the first of those is in it:
/// aligned, as O_DIRECT wants it.
fn pages(at: u64, len: usize) -> (Vec<u8>, usize) {
    let (page, len) = (PAGE as usize, (at % PAGE) as usize + len);
    let memory = vec![0; len.next_multiple_of(page) + page];
    let first = memory.as_ptr().align_offset(page);
    (memory, first)
}

/// So many zeros are written at a time.
const ZEROS: usize = 256 << 10;

impl Disk for Real {
    type File = Opened;

    fn direct(&self) -> bool {
        self.news.is_some()
    }

    fn tell(&self, name: &Path) {
        if let Some(news) = &self.news {
            news.tell(name);
        }
    }

    fn open(&self, path: &Path, create: bool) -> io::Result<Opened> {
        let mut options = OpenOptions::new();
        options.read(true).write(create).create(create).mode(0o600);
        let direct = if self.direct() { libc::O_DIRECT } else { 0 };
        options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | direct);
        let file = self.there(self.file(path, |path| options.open(path)))?;
        Ok(Opened { file, direct: self.direct() })
    }

    fn scratch(&self) -> io::Result<Opened> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).mode(0o600);
        let file = match options.clone().custom_flags(libc::O_TMPFILE).open(&self.root) {
            // A file system without them: take a name, and take it away.
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                let name = format!(".scratch-{}-{}", std::process::id(), self.now());
                let path = self.root.join(name);
                let file = options.create_new(true).open(&path)?;
                fs::remove_file(path)?;
                Ok(file)
            }
            result => result,
        };
        Ok(Opened { file: file?, direct: false })
    }

    fn read_at(&self, file: &Opened, bytes: &mut [u8], at: u64) -> io::Result<usize> {
        if !file.direct {
            return file.read_at(bytes, at);
        }
        let (mut memory, first) = pages(at, bytes.len());
        let (before, len) = ((at % PAGE) as usize, memory.len() - PAGE as usize);
        let read = file.read_at(&mut memory[first..first + len], at - at % PAGE)?;
        let read = read.saturating_sub(before).min(bytes.len());
        bytes[..read].copy_from_slice(&memory[first + before..][..read]);
        Ok(read)
    }

    fn write_at(&self, file: &Opened, bytes: &[u8], at: u64) -> io::Result<usize> {
        if file.direct {
            return write_pages(file, bytes, at);
        }
        file.write_at(bytes, at)
    }

    fn reserve(&self, file: &Opened, from: u64, filled: u64, to: u64) -> io::Result<()> {
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
            match self.write_at(file, &zeros[..len], at)? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                written => at += written as u64,
            }
        }
        Ok(())
    }

    fn punch(&self, file: &Opened, from: u64, to: u64) -> io::Result<()> {
        sys::punch(file, from, to)
    }

    fn forget(&self, file: &Opened, from: u64) -> io::Result<()> {
        if file.direct { Ok(()) } else { sys::forget(file, from) }
    }

    fn set_len(&self, file: &Opened, len: u64) -> io::Result<()> {
        file.set_len(len)
    }

    fn sync_data(&self, file: &Opened) -> io::Result<()> {
        file.sync_data()
    }

    fn stat(&self, file: &Opened) -> io::Result<Stat> {
        let found = sys::stat(Some(file), Path::new(""), 0)?;
        Ok(Stat { len: found.stx_size, named: found.stx_nlink > 0, identity: identity(&found) })
    }

    fn lock(&self, file: &Opened, shared: bool) -> io::Result<()> {
        if shared { file.lock_shared() } else { file.lock() }
    }

    fn try_lock(&self, file: &Opened, shared: bool) -> io::Result<bool> {
        match if shared { file.try_lock_shared() } else { file.try_lock() } {
            Ok(()) => Ok(true),
            Err(TryLockError::WouldBlock) => Ok(false),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    fn unlock(&self, file: &Opened) -> io::Result<()> {
        file.unlock()
    }

    fn identity(&self, path: &Path) -> io::Result<u64> {
        Ok(identity(&self.there(sys::stat(None, &self.root.join(path), 0))?))
    }

    fn create_dir(&self, path: &Path, mode: u32) -> io::Result<()> {
        DirBuilder::new().mode(mode).create(self.root.join(path))
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir(self.root.join(path))
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.file(path, |path| fs::remove_file(path))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(self.root.join(from), self.root.join(to))
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let mut directory = OpenOptions::new();
        directory.read(true).custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW);
        directory.open(self.root.join(path))?.sync_all()
    }

    fn streams(&self) -> io::Result<Names> {
        Ok(Box::new(fs::read_dir(&self.root)?.filter_map(|entry| {
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
        sys::random()
    }
}

/// Writes the whole pages that hold `bytes` from `at` on, the first and the last of them with what else
/// is there.
fn write_pages(file: &File, bytes: &[u8], at: u64) -> io::Result<usize> {
    let (page, before) = (PAGE as usize, (at % PAGE) as usize);
    let (mut memory, first) = pages(at, bytes.len());
    let (len, end) = (memory.len() - page, before + bytes.len());
    let whole = &mut memory[first..first + len];
    let from = at - at % PAGE;
    let torn = !end.is_multiple_of(page);
    for (there, partial) in
        [(0, before > 0 || torn && len == page), (len - page, torn && len > page)]
    {
        let at = from + there as u64;
        // What it did not read would be overwritten, unless it is behind the end.
        if partial
            && let read @ ..PAGE = file.read_at(&mut whole[there..][..page], at)? as u64
            && sys::stat(Some(file), Path::new(""), 0)?.stx_size > at + read
        {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    whole[before..end].copy_from_slice(bytes);
    let written = file.write_at(whole, from)?;
    Ok(written.saturating_sub(before).min(bytes.len()))
}

/// A lock that is given back when it is dropped, also by a panic.
pub(crate) struct Held<'a, D: Disk> {
    disk: Arc<D>,
    file: Option<&'a D::File>,
}

impl<'a, D: Disk> Held<'a, D> {
    /// Waits for the lock of a file, if there is one.
    pub(crate) fn new(
        disk: Arc<D>,
        file: Option<&'a D::File>,
        shared: bool,
    ) -> std::io::Result<Self> {
        file.map_or(Ok(()), |file| disk.lock(file, shared))?;
        Ok(Held { disk, file })
    }

    /// None when somebody else has the lock.
    pub(crate) fn try_new(
        disk: Arc<D>,
        file: Option<&'a D::File>,
        shared: bool,
    ) -> std::io::Result<Option<Self>> {
        let free = file.map_or(Ok(true), |file| disk.try_lock(file, shared))?;
        Ok(free.then(|| Held { disk, file }))
    }

    pub(crate) fn release(mut self) -> std::io::Result<()> {
        self.file.take().map_or(Ok(()), |file| self.disk.unlock(file))
    }
}

impl<D: Disk> Drop for Held<'_, D> {
    fn drop(&mut self) {
        if let Some(file) = self.file {
            // The files are closed then, which drops the lock in any case.
            let _ = self.disk.unlock(file);
        }
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
