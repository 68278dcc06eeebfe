//! The system calls and the one instruction that std does not have. The only file with `unsafe`.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

/// Continues the CRC-32C `crc` over `bytes`; begin with 0. The instruction computes the register
/// of RFC 3720 appendix B.4, which is inverted before and after.
pub fn crc32c(crc: u32, bytes: &[u8]) -> u32 {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("sse4.2") {
        // SAFETY: the processor has SSE 4.2, as just checked.
        return unsafe { crc32c_sse(crc, bytes) };
    }
    crc32c_table(crc, bytes)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "sse4.2")]
fn crc32c_sse(crc: u32, bytes: &[u8]) -> u32 {
    use std::arch::x86_64::{_mm_crc32_u8, _mm_crc32_u64};
    let (words, rest) = bytes.as_chunks::<8>();
    let mut wide = u64::from(!crc);
    for word in words {
        wide = _mm_crc32_u64(wide, u64::from_le_bytes(*word));
    }
    // The instruction leaves the upper half zero.
    let mut crc = (wide & u64::from(u32::MAX)) as u32;
    for byte in rest {
        crc = _mm_crc32_u8(crc, *byte);
    }
    !crc
}

/// For processors without the instruction: Sarwate's table, one byte at a time.
fn crc32c_table(crc: u32, bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut i = 0;
        while i < 256 {
            let mut crc = i as u32;
            let mut bit = 0;
            while bit < 8 {
                crc = (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg());
                bit += 1;
            }
            table[i] = crc;
            i += 1;
        }
        table
    };
    let step = |crc: u32, byte: &u8| (crc >> 8) ^ TABLE[usize::from(crc as u8 ^ byte)];
    !bytes.iter().fold(!crc, step)
}

/// Where the first newline is: memchr(3), which libc has for every vector unit there is.
pub fn newline(bytes: &[u8]) -> Option<usize> {
    let start = bytes.as_ptr();
    // SAFETY: it reads the bytes of the slice and no more.
    let found = unsafe { libc::memchr(start.cast(), i32::from(b'\n'), bytes.len()) };
    (!found.is_null()).then(|| found as usize - start as usize)
}

/// Locks, also after a panic: what is guarded is only ever replaced as a whole.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// As [`lock`]; None when somebody has it.
pub(crate) fn try_lock<T>(mutex: &Mutex<T>) -> Option<MutexGuard<'_, T>> {
    match mutex.try_lock() {
        Err(TryLockError::WouldBlock) => None,
        Err(TryLockError::Poisoned(guard)) => Some(guard.into_inner()),
        Ok(guard) => Some(guard),
    }
}

fn check(result: i32) -> io::Result<i32> {
    match result {
        -1 => Err(io::Error::last_os_error()),
        result => Ok(result),
    }
}

fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

/// Reserves blocks for the bytes `from..to` of `file` and makes it that long; they read as zeros.
pub fn allocate(file: &File, from: u64, to: u64) -> io::Result<()> {
    fallocate(file, 0, from, to)
}

/// Gives the blocks of the bytes `from..to` of `file` back; they read as zeros then.
pub fn punch(file: &File, from: u64, to: u64) -> io::Result<()> {
    fallocate(file, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, from, to)
}

fn fallocate(file: &File, mode: i32, from: u64, to: u64) -> io::Result<()> {
    let offset = libc::off_t::try_from(from).map_err(io::Error::other)?;
    let len = libc::off_t::try_from(to - from).map_err(io::Error::other)?;
    // SAFETY: a plain system call on a descriptor that is open as long as `file` is borrowed.
    check(unsafe { libc::fallocate(file.as_raw_fd(), mode, offset, len) }).map(drop)
}

/// Gives up what the page cache holds of `file` from `from` on, but for what is to be written.
pub fn forget(file: &File, from: u64) -> io::Result<()> {
    let offset = libc::off_t::try_from(from).map_err(io::Error::other)?;
    // SAFETY: a plain system call on a descriptor that is open as long as `file` is borrowed.
    match unsafe { libc::posix_fadvise(file.as_raw_fd(), offset, 0, libc::POSIX_FADV_DONTNEED) } {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

/// The directory at `path`, unless a symbolic link is there, and a path to it that holds as long as
/// it is open, whatever is renamed meanwhile.
pub fn directory(path: &Path) -> io::Result<(File, PathBuf)> {
    let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW;
    let directory = File::options().read(true).custom_flags(flags).open(path)?;
    let path = format!("/proc/thread-self/fd/{}", directory.as_raw_fd());
    Ok((directory, path.into()))
}

/// What a file system knows a directory by, of which it gives no two the same: its file handle.
pub fn handle(path: &Path) -> io::Result<Vec<u8>> {
    #[repr(C)]
    struct Handle {
        head: libc::file_handle,
        // MAX_HANDLE_SZ of linux/exportfs.h.
        bytes: [u8; 128],
    }
    let path = c_path(path)?;
    let head = libc::file_handle { handle_bytes: 128, handle_type: 0, f_handle: [] };
    let (mut handle, mut mount) = (Handle { head, bytes: [0; 128] }, 0);
    // SAFETY: `path` ends with a NUL, `bytes` follows `head` without a gap and is as long as it says,
    // and the pointer is to both of them.
    check(unsafe {
        let handle = (&raw mut handle).cast();
        libc::name_to_handle_at(libc::AT_FDCWD, path.as_ptr(), handle, &raw mut mount, 0)
    })?;
    Ok(handle.bytes[..(handle.head.handle_bytes as usize).min(128)].to_vec())
}

/// Renames a directory to what nothing has for a name.
pub fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    let (old, new) = (c_path(from)?, c_path(to)?);
    let (here, flags) = (libc::AT_FDCWD, libc::RENAME_NOREPLACE);
    // SAFETY: both paths end with a NUL.
    let renamed = unsafe {
        libc::syscall(libc::SYS_renameat2, here, old.as_ptr(), here, new.as_ptr(), flags)
    };
    match io::Error::last_os_error() {
        _ if renamed == 0 => Ok(()),
        // Some network file systems cannot. There an empty directory may be replaced.
        error if error.raw_os_error() == Some(libc::EINVAL) => match to.symlink_metadata() {
            Ok(_) => Err(io::ErrorKind::AlreadyExists.into()),
            Err(_) => std::fs::rename(from, to),
        },
        error => Err(error),
    }
}

/// Kind, space and files of the file system that holds `path`: statfs(2).
pub fn statfs(path: &Path) -> io::Result<libc::statfs> {
    let path = c_path(path)?;
    let mut stat = std::mem::MaybeUninit::uninit();
    // SAFETY: `path` ends with a NUL, and `stat` has room for what the call writes.
    check(unsafe { libc::statfs(path.as_ptr(), stat.as_mut_ptr()) })?;
    // SAFETY: the call succeeded, so it has filled all of it.
    Ok(unsafe { stat.assume_init() })
}

/// Length, links, number, birth and device of an open file, or of what is at `path`, which is then
/// not followed; `how` to ask, beside that: AT_STATX flags. Not its times, for which std's `metadata`
/// asks, too: once they were asked for, a kernel with multigrain timestamps (6.13) gives the next
/// write a new one, and an ext4 without a journal writes that to the disk with each fdatasync.
pub fn stat(file: Option<&File>, path: &Path, how: i32) -> io::Result<libc::statx> {
    let path = c_path(path)?;
    let flags = libc::AT_EMPTY_PATH | libc::AT_SYMLINK_NOFOLLOW | how;
    let wanted = libc::STATX_SIZE | libc::STATX_NLINK | libc::STATX_INO | libc::STATX_BTIME;
    let file = file.map_or(libc::AT_FDCWD, File::as_raw_fd);
    let mut found = std::mem::MaybeUninit::uninit();
    // SAFETY: `path` ends with a NUL, and `found` has room for what the call writes.
    check(unsafe { libc::statx(file, path.as_ptr(), flags, wanted, found.as_mut_ptr()) })?;
    // SAFETY: the call succeeded, so it has filled all of it.
    Ok(unsafe { found.assume_init() })
}

/// Effective user and group id of this process.
pub fn user() -> (u32, u32) {
    // SAFETY: these calls take nothing and cannot fail.
    unsafe { (libc::geteuid(), libc::getegid()) }
}

/// Splits off a child: true in that, false in the parent.
///
/// Only while the process has a single thread; `main` calls it first of all.
pub fn fork() -> io::Result<bool> {
    // SAFETY: there is one thread, so the child has everything the parent had, locks included.
    check(unsafe { libc::fork() }).map(|pid| pid == 0)
}

/// Leaves the terminal and the working directory: a session of its own, and /dev/null for the
/// standard streams.
pub fn detach() -> io::Result<()> {
    std::env::set_current_dir("/")?;
    let null = File::options().read(true).write(true).open("/dev/null")?;
    // SAFETY: plain system calls on descriptors that exist; std's handles to 0, 1 and 2 stay valid.
    unsafe {
        check(libc::setsid())?;
        for fd in 0..3 {
            check(libc::dup2(null.as_raw_fd(), fd))?;
        }
    }
    Ok(())
}

/// Closes all files but the standard streams: whoever started us may wait for the end of one of
/// them, or hold a lock by it. To be called before any is opened.
pub fn close_inherited() {
    // SAFETY: nobody here knows any of them. A kernel that cannot leaves them open.
    unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, 0) };
}

/// A number that nobody can guess: getrandom(2), for which there need be no /dev.
pub fn random() -> io::Result<u64> {
    let mut bytes = [0; 8];
    // SAFETY: it writes no more than the bytes there are.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    match usize::try_from(got) {
        Ok(8) => Ok(u64::from_ne_bytes(bytes)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Whether there is a thread of this number, also one that is hidden from us; of 0 always.
pub(crate) fn exists(thread: u32) -> bool {
    // SAFETY: signal 0 is none; the call only looks.
    let sent = check(unsafe { libc::kill(thread.cast_signed(), 0) });
    sent.map_or_else(|error| error.raw_os_error() == Some(libc::EPERM), |_| true)
}

/// Unmounts what is mounted at `path`; `lazily` also when it is in use.
pub fn unmount(path: &Path, lazily: bool) -> io::Result<()> {
    let path = c_path(path)?;
    let flags = if lazily { libc::MNT_DETACH } else { 0 };
    // SAFETY: `path` ends with a NUL.
    check(unsafe { libc::umount2(path.as_ptr(), flags) }).map(drop)
}

/// Lets this process open as many files as it is allowed to, and take memory page by page: fuser
/// has a buffer of 16 MiB for each thread, of which little is used.
pub fn set_limits() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid rlimit for both calls, and the others take only numbers. When
    // one fails all stays as it was.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
        }
        // Or a huge page of each buffer would be taken,
        libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0);
        // and all of it, when glibc has learnt from the first to recycle such large ones.
        #[cfg(target_env = "gnu")]
        {
            // Of few arenas what one thread frees another takes, and it is in the cache.
            libc::mallopt(libc::M_ARENA_MAX, 2);
            libc::mallopt(libc::M_MMAP_THRESHOLD, 8 << 20);
            // Nor give back after each read what the next one takes again, page by page.
            libc::mallopt(libc::M_TRIM_THRESHOLD, 1 << 20);
        }
    }
}

/// SIGINT, SIGTERM, SIGHUP and SIGUSR1, blocked in this thread and those it will start.
pub struct Signals(libc::sigset_t);

impl Signals {
    /// Blocks them. To be called before any thread is started.
    pub fn block() -> io::Result<Signals> {
        let mut set = std::mem::MaybeUninit::uninit();
        // SAFETY: sigemptyset initialises the set that the other calls use.
        unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            let mut set = set.assume_init();
            for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGUSR1] {
                libc::sigaddset(&raw mut set, signal);
            }
            check(libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()))?;
            Ok(Signals(set))
        }
    }

    /// Waits for one of them.
    pub fn wait(&self) -> i32 {
        let mut signal = 0;
        // SAFETY: the set is initialised, and `signal` has room for the answer.
        unsafe { libc::sigwait(&raw const self.0, &raw mut signal) };
        signal
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn crc32c_of_the_rfc() {
        // RFC 3720 appendix B.4, and the check value of the CRC catalogue.
        for crc in [crc32c, crc32c_table] {
            assert_eq!(crc(0, &[0; 32]), 0x8a91_36aa);
            assert_eq!(crc(0, &[0xff; 32]), 0x62a8_ab43);
            assert_eq!(crc(0, b"123456789"), 0xe306_9283);
        }
    }

    proptest! {
        #[test]
        fn table_and_instruction_agree(head: Vec<u8>, tail: Vec<u8>) {
            let whole = [&head[..], &tail].concat();
            prop_assert_eq!(crc32c(crc32c(0, &head), &tail), crc32c_table(0, &whole));
        }
    }
}
