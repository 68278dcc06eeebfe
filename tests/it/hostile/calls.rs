//! System calls of every kind, on whatever file or directory.

use super::{Bystander, MAX, NOWHERE, said};
use crate::harness::*;
use std::ffi::{CStr, CString};
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::ptr::{null, null_mut};

/// A system call on an open file, which has this path.
type Call = fn(RawFd, &CStr) -> i64;

fn pread_at(fd: RawFd, at: i64) -> i64 {
    let mut bytes = [0u8; 100];
    unsafe { libc::pread(fd, bytes.as_mut_ptr().cast(), 100, at) as i64 }
}

fn read_some(fd: RawFd) -> i64 {
    unsafe { libc::read(fd, [0u8; 9].as_mut_ptr().cast(), 9) as i64 }
}

fn ioctl(fd: RawFd, request: libc::c_ulong) -> i64 {
    let mut room = [0u64; 32];
    unsafe { libc::ioctl(fd, request, room.as_mut_ptr()).into() }
}

fn set_xattr(path: &CStr, name: &CStr) -> i64 {
    unsafe { libc::setxattr(path.as_ptr(), name.as_ptr(), c"x".as_ptr().cast(), 1, 0).into() }
}

fn open(path: &CStr, flags: i32) -> i64 {
    let fd = unsafe { libc::open(path.as_ptr(), flags, 0o600) };
    if fd >= 0 {
        unsafe { libc::close(fd) };
    }
    fd.into()
}

/// A path in the same directory, or in this one.
fn beside(path: &CStr) -> CString {
    CString::new([path.to_bytes(), b"-x"].concat()).unwrap()
}

fn rename(path: &CStr, flags: u32) -> i64 {
    let (to, at) = (beside(path), libc::AT_FDCWD);
    unsafe { libc::renameat2(at, path.as_ptr(), at, to.as_ptr(), flags).into() }
}

fn lock(fd: RawFd, command: i32) -> i64 {
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = libc::F_RDLCK as libc::c_short;
    unsafe { libc::fcntl(fd, command, &raw mut lock).into() }
}

/// Refused, whatever file or directory it is.
#[rustfmt::skip]
const REFUSED: &[(&str, Call)] = &[
    ("pread before 0", |fd, _| pread_at(fd, -1)),
    ("pread at the last offset", |fd, _| pread_at(fd, MAX)),
    ("pread over the last offset", |fd, _| pread_at(fd, MAX - 1)),
    ("lseek before 0", |fd, _| unsafe { libc::lseek(fd, -5, libc::SEEK_SET) }),
    ("lseek from nowhere", |fd, _| unsafe { libc::lseek(fd, 0, 99) }),
    ("write", |fd, _| unsafe { libc::write(fd, c"x\n".as_ptr().cast(), 2) as i64 }),
    ("FS_IOC_SETFLAGS", |fd, _| ioctl(fd, 0x4008_6602)),
    ("FICLONE", |fd, _| unsafe { libc::ioctl(fd, 0x4004_9409, fd).into() }),
    ("an ioctl of nobody", |fd, _| ioctl(fd, 0xdead_beef)),
    ("fallocate", |fd, _| unsafe { libc::fallocate(fd, 0, 0, 100).into() }),
    ("punch", |fd, _| unsafe { libc::fallocate(fd, 3, 0, 100).into() }),
    ("ftruncate", |fd, _| unsafe { libc::ftruncate(fd, 0).into() }),
    ("truncate", |_, path| unsafe { libc::truncate(path.as_ptr(), 1).into() }),
    ("truncate far", |_, path| unsafe { libc::truncate(path.as_ptr(), MAX).into() }),
    ("setxattr user", |_, path| set_xattr(path, c"user.x")),
    ("setxattr security", |_, path| set_xattr(path, c"security.capability")),
    ("setxattr acl", |_, path| set_xattr(path, c"system.posix_acl_access")),
    ("removexattr", |_, path| unsafe { libc::removexattr(path.as_ptr(), c"user.x".as_ptr()).into() }),
    ("link", |_, path| unsafe { libc::link(path.as_ptr(), beside(path).as_ptr()).into() }),
    ("unlink", |_, path| unsafe { libc::unlink(path.as_ptr()).into() }),
    ("rmdir", |_, path| unsafe { libc::rmdir(path.as_ptr()).into() }),
    ("exchange", |_, path| rename(path, libc::RENAME_EXCHANGE)),
    ("whiteout", |_, path| rename(path, libc::RENAME_WHITEOUT)),
    ("a rename of nobody", |_, path| rename(path, 99)),
    ("O_TMPFILE", |_, path| open(path, libc::O_TMPFILE | libc::O_RDWR)),
    ("O_EXCL", |_, path| open(path, libc::O_CREAT | libc::O_EXCL | libc::O_WRONLY)),
    ("mknod", |_, path| unsafe { libc::mknod(path.as_ptr(), libc::S_IFREG | 0o600, 0).into() }),
    ("mkfifo beside", |_, path| unsafe { libc::mkfifo(beside(path).as_ptr(), 0o600).into() }),
    ("symlink beside", |_, path| unsafe { libc::symlink(c"x".as_ptr(), beside(path).as_ptr()).into() }),
    ("mkdir", |_, path| unsafe { libc::mkdir(path.as_ptr(), 0o700).into() }),
];

/// Refused or not, nothing comes of it.
#[rustfmt::skip]
const HARMLESS: &[(&str, Call)] = &[
    ("pread far", |fd, _| pread_at(fd, 1 << 62)),
    ("pread of nothing", |fd, _| unsafe { libc::pread(fd, null_mut(), 0, 0) as i64 }),
    ("pread to nowhere", |fd, _| unsafe { libc::pread(fd, NOWHERE.cast_mut(), 100, 0) as i64 }),
    ("lseek far", |fd, _| unsafe { libc::lseek(fd, MAX, libc::SEEK_SET) }),
    ("read there", |fd, _| unsafe { libc::lseek(fd, MAX, libc::SEEK_SET); read_some(fd) }),
    ("SEEK_DATA", |fd, _| unsafe { libc::lseek(fd, 1, libc::SEEK_DATA) }),
    ("SEEK_HOLE", |fd, _| unsafe { libc::lseek(fd, 1, libc::SEEK_HOLE) }),
    ("SEEK_END", |fd, _| unsafe { libc::lseek(fd, -1, libc::SEEK_END); read_some(fd) }),
    ("FIONREAD", |fd, _| ioctl(fd, libc::FIONREAD)),
    ("FIBMAP", |fd, _| ioctl(fd, 1)),
    ("FS_IOC_GETFLAGS", |fd, _| ioctl(fd, 0x8008_6601)),
    ("FS_IOC_FIEMAP", |fd, _| ioctl(fd, 0xc020_660b)),
    ("flock", |fd, _| unsafe { libc::flock(fd, libc::LOCK_EX | libc::LOCK_NB).into() }),
    ("F_SETLK", |fd, _| lock(fd, libc::F_SETLK)),
    ("F_OFD_SETLK", |fd, _| lock(fd, libc::F_OFD_SETLK)),
    ("F_GETLK", |fd, _| lock(fd, libc::F_GETLK)),
    ("F_ADD_SEALS", |fd, _| unsafe { libc::fcntl(fd, libc::F_ADD_SEALS, 1).into() }),
    ("F_SETPIPE_SZ", |fd, _| unsafe { libc::fcntl(fd, libc::F_SETPIPE_SZ, 1 << 20).into() }),
    ("F_SETFL", |fd, _| unsafe { libc::fcntl(fd, libc::F_SETFL, libc::O_APPEND | libc::O_DIRECT).into() }),
    ("getxattr", |_, path| unsafe { libc::getxattr(path.as_ptr(), c"user.x".as_ptr(), null_mut(), 0) as i64 }),
    ("listxattr", |_, path| unsafe { libc::listxattr(path.as_ptr(), null_mut(), 0) as i64 }),
    ("fsync", |fd, _| unsafe { libc::fsync(fd).into() }),
    ("fdatasync", |fd, _| unsafe { libc::fdatasync(fd).into() }),
    ("syncfs", |fd, _| unsafe { libc::syncfs(fd).into() }),
    ("sync_file_range", |fd, _| unsafe { libc::sync_file_range(fd, 0, 0, 7).into() }),
    ("readahead", |fd, _| unsafe { libc::readahead(fd, 0, 1 << 30) as i64 }),
    ("fadvise", |fd, _| unsafe { libc::posix_fadvise(fd, 0, 0, libc::POSIX_FADV_DONTNEED).into() }),
    ("futimens", |fd, _| unsafe { libc::futimens(fd, null()).into() }),
    ("splice", |fd, _| unsafe {
        let (_out, into) = io::pipe().unwrap();
        libc::splice(fd, null_mut(), into.as_raw_fd(), null_mut(), 100, 2) as i64
    }),
    ("sendfile", |fd, _| unsafe {
        libc::sendfile(tempfile::tempfile().unwrap().as_raw_fd(), fd, &mut 0, 100) as i64
    }),
    ("copy_file_range", |fd, _| unsafe {
        let into = tempfile::tempfile().unwrap();
        libc::copy_file_range(fd, null_mut(), into.as_raw_fd(), null_mut(), 100, 0) as i64
    }),
    ("a map of a TiB", |fd, _| unsafe {
        let how = libc::MAP_SHARED | libc::MAP_NORESERVE;
        let map = libc::mmap(null_mut(), 1 << 40, libc::PROT_READ, how, fd, 1 << 40);
        libc::munmap(map, 1 << 40).into()
    }),
    ("getdents", |fd, _| unsafe { libc::syscall(libc::SYS_getdents64, fd, [0u64; 20].as_mut_ptr(), 160) }),
    ("inotify", |_, path| unsafe {
        let watch = libc::inotify_init1(libc::IN_CLOEXEC);
        let added = libc::inotify_add_watch(watch, path.as_ptr(), libc::IN_ALL_EVENTS);
        libc::close(watch);
        added.into()
    }),
    ("O_PATH", |_, path| open(path, libc::O_PATH)),
    ("O_NOFOLLOW", |_, path| open(path, libc::O_NOFOLLOW)),
    ("O_DIRECTORY", |_, path| open(path, libc::O_DIRECTORY)),
    ("O_DIRECT", |_, path| open(path, libc::O_DIRECT)),
    ("O_SYNC", |_, path| open(path, libc::O_SYNC | libc::O_APPEND | libc::O_RDWR)),
    ("O_TRUNC", |_, path| open(path, libc::O_TRUNC | libc::O_WRONLY)),
    ("O_CREAT", |_, path| open(path, libc::O_CREAT | libc::O_RDWR)),
    ("three is no way to open", |_, path| open(path, 3)),
    ("opened a thousand times", |_, path| (0..1000).map(|_| open(path, 0)).min().unwrap()),
];

#[test]
fn system_calls_of_every_kind_are_answered_and_change_nothing() {
    let m = Mnt::new();
    let mut bystander = Bystander::new(&m);
    let s = m.stream("s");
    append(s.join("events"), "0\n1\n2\n");
    let before = names(&s);
    for file in [
        "s/events",
        "s/lines",
        "s/new",
        "s/count",
        "s/from/0",
        "s/from/3",
        "s/at/0",
        "s/at/newest",
        "s/follow/0",
        "s/follow/3",
        "s/from/@0",
        "s",
        "s/from",
        "s/at",
        "s/follow",
        ".",
    ] {
        let path = m.path().join(file);
        let all = || {
            REFUSED.iter().map(|call| (call, true)).chain(HARMLESS.iter().map(|call| (call, false)))
        };
        for ((name, call), refused) in all() {
            let path = path.clone();
            let result = within(20, move || {
                // A follower does not wait.
                let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&path);
                let name = CString::new(path.as_os_str().as_bytes()).unwrap();
                said(call(file.unwrap().as_raw_fd(), &name))
            });
            let errno = result.as_ref().err().and_then(io::Error::raw_os_error);
            assert!(errno != Some(libc::EIO), "{file}: {name}");
            assert!(!refused || errno.is_some(), "{file}: {name}: {result:?}");
        }
        assert_eq!(text(&read(s.join("events"))), "0\n1\n2\n", "{file}");
        assert_eq!((count(&s), names(&s)), (3, before.clone()), "{file}");
        assert_eq!(names(m.path()), ["bystander", "s"], "{file}");
        bystander.is_served();
    }
    assert_eq!(m.log(), "");
}
