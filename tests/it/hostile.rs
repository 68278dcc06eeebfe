//! Hostile users: whatever they ask for, however much of it, and however long they hold on to it,
//! the daemon lives on in bounded memory and serves everyone else.

use crate::commit::{batches, python};
use crate::follow::{Follower, status_kib};
use crate::harness::*;
use crate::languages::need;
use std::collections::BTreeSet;
use std::ffi::{CStr, CString, OsStr};
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, Read, Seek, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::ptr::{null, null_mut};
use std::time::Duration;

const PEAK_KIB_MAX: u64 = 128 * 1024;

/// Somebody who has nothing to do with it.
struct Bystander<'a> {
    m: &'a Mnt,
    stream: PathBuf,
    appended: u64,
}

impl<'a> Bystander<'a> {
    fn new(m: &'a Mnt) -> Bystander<'a> {
        let stream = m.stream("bystander");
        Bystander { m, stream, appended: 0 }
    }

    /// Can append and read, and the daemon has not taken too much for that.
    #[track_caller]
    fn is_served(&mut self) {
        let (s, n) = (self.stream.clone(), self.appended);
        within(20, move || {
            let line = format!("{n}\n");
            append(s.join("events"), &line);
            assert_eq!(count(&s), n + 1);
            assert_eq!(text(&read(s.join(format!("from/{n}")))), line);
            assert_eq!(text(&read(s.join("at/0"))), "0");
        });
        self.appended += 1;
        let peak = self.m.rss_peak_kib();
        assert!(peak < PEAK_KIB_MAX, "{peak} KiB");
    }
}

/// What a system call said: a number, or why not.
fn said(result: i64) -> io::Result<u64> {
    u64::try_from(result).map_err(|_| io::Error::last_os_error())
}

// Requests of every kind.

/// A system call on an open file, which has this path.
type Call = fn(RawFd, &CStr) -> i64;

const MAX: i64 = i64::MAX;
/// An address of nothing.
const NOWHERE: *const libc::c_void = std::ptr::without_provenance(8);

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

// Writes.

/// A way to write the bytes to an open file.
type Way = fn(RawFd, &[u8]) -> i64;

fn write(fd: RawFd, bytes: &[u8]) -> i64 {
    unsafe { libc::write(fd, bytes.as_ptr().cast(), bytes.len()) as i64 }
}

fn pwrite_at(fd: RawFd, bytes: &[u8], at: i64) -> i64 {
    unsafe { libc::pwrite(fd, bytes.as_ptr().cast(), bytes.len(), at) as i64 }
}

fn part(bytes: &[u8]) -> libc::iovec {
    libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() }
}

fn writev(fd: RawFd, parts: &[libc::iovec], flags: i32) -> i64 {
    unsafe { libc::pwritev2(fd, parts.as_ptr(), parts.len() as i32, 0, flags) as i64 }
}

fn holding(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file.rewind().unwrap();
    file
}

#[rustfmt::skip]
const WRITES: &[(&str, Way)] = &[
    ("at once", write),
    ("of nothing", |fd, _| write(fd, b"")),
    ("from nowhere", |fd, _| unsafe { libc::write(fd, NOWHERE, 100) as i64 }),
    ("at 0", |fd, bytes| pwrite_at(fd, bytes, 0)),
    ("at 5", |fd, bytes| pwrite_at(fd, bytes, 5)),
    ("at 2^62", |fd, bytes| pwrite_at(fd, bytes, 1 << 62)),
    ("at the last offset", |fd, bytes| pwrite_at(fd, bytes, MAX)),
    ("before 0", |fd, bytes| pwrite_at(fd, bytes, -1)),
    ("after a far seek", |fd, bytes| unsafe {
        libc::lseek(fd, MAX - 100_000, libc::SEEK_SET);
        write(fd, bytes)
    }),
    ("in 1024 parts", |fd, bytes| {
        let (ones, rest) = bytes.split_at(1000);
        let parts: Vec<_> = ones.chunks(1).chain([&[][..]; 23]).chain([rest]).map(part).collect();
        writev(fd, &parts, 0)
    }),
    ("in 1025 parts", |fd, bytes| writev(fd, &bytes.chunks(1).take(1025).map(part).collect::<Vec<_>>(), 0)),
    ("in parts of nothing", |fd, _| writev(fd, &[part(b""); 1024], 0)),
    ("in part from nowhere", |fd, bytes| {
        let nowhere = libc::iovec { iov_base: NOWHERE.cast_mut(), iov_len: 9 };
        writev(fd, &[part(bytes), nowhere], 0)
    }),
    ("RWF_HIPRI", |fd, bytes| writev(fd, &[part(bytes)], 1)),
    ("RWF_DSYNC", |fd, bytes| writev(fd, &[part(bytes)], 2)),
    ("RWF_SYNC", |fd, bytes| writev(fd, &[part(bytes)], 4)),
    ("RWF_NOWAIT", |fd, bytes| writev(fd, &[part(bytes)], 8)),
    ("RWF_APPEND", |fd, bytes| writev(fd, &[part(bytes)], 16)),
    ("RWF_NOAPPEND", |fd, bytes| writev(fd, &[part(bytes)], 32)),
    ("RWF_ATOMIC", |fd, bytes| writev(fd, &[part(bytes)], 64)),
    ("flags of nobody", |fd, bytes| writev(fd, &[part(bytes)], 1 << 30)),
    ("O_DIRECT", |fd, bytes| unsafe {
        libc::fcntl(fd, libc::F_SETFL, libc::fcntl(fd, libc::F_GETFL) | libc::O_DIRECT);
        write(fd, bytes)
    }),
    ("sendfile", |fd, bytes| unsafe {
        libc::sendfile(fd, holding(bytes).as_raw_fd(), null_mut(), bytes.len()) as i64
    }),
    ("copy_file_range", |fd, bytes| unsafe {
        libc::copy_file_range(holding(bytes).as_raw_fd(), null_mut(), fd, null_mut(), bytes.len(), 0) as i64
    }),
    ("splice", |fd, bytes| unsafe {
        let (out, mut into) = io::pipe().unwrap();
        into.write_all(bytes).unwrap();
        libc::splice(out.as_raw_fd(), null_mut(), fd, null_mut(), bytes.len(), 0) as i64
    }),
    ("fallocate", |fd, _| unsafe { libc::fallocate(fd, 0, 0, 100).into() }),
    ("ftruncate", |fd, _| unsafe { libc::ftruncate(fd, 5).into() }),
    ("of 2 GiB, of which 16 MiB are there", |fd, _| unsafe {
        let (how, len) = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE, 1 << 31);
        let zeros = libc::mmap(null_mut(), len, libc::PROT_NONE, how, -1, 0);
        assert_eq!(libc::mprotect(zeros, 16 << 20, libc::PROT_READ), 0);
        let written = libc::write(fd, zeros, len) as i64;
        assert!(zeros != libc::MAP_FAILED && libc::munmap(zeros, len) == 0);
        assert!(written <= 16 << 20, "{written}: there is no more");
        written
    }),
];

/// What a call says it has written becomes events with the close, when that says so, too; and
/// nothing else does.
#[test]
fn what_a_strange_write_says_it_wrote_is_there_and_nothing_else() {
    let m = Mnt::new();
    let mut bystander = Bystander::new(&m);
    let bytes = "0123456789abcde\n".repeat(100).into_bytes();
    let zeros = vec![0; 16 << 20];
    for file in ["events", "lines", "from/next", "new", "at/next"] {
        let mut taken = 0;
        for (turn, (name, write)) in WRITES.iter().enumerate() {
            let s = m.stream(format!("{}-{turn}", file.replace('/', "-")));
            let one = ["new", "at/next"].contains(&file);
            let mut options = OpenOptions::new();
            let options = options.append(!one).write(true).create(one);
            let path = s.join(file.replace("next", "0"));
            let open = options.open(&path).unwrap_or_else(|e| panic!("{path:?}: {e}"));
            let given = bytes.clone();
            let (wrote, closed) = within(20, move || {
                let wrote = said(write(open.as_raw_fd(), &given));
                (wrote, close(open))
            });
            let what = format!("{file}, {name}: {wrote:?}, {closed:?}");
            let len = match (&wrote, &closed) {
                (Ok(len), Ok(())) => usize::try_from(*len).unwrap(),
                _ => 0,
            };
            let written = if name.starts_with("of 2 GiB") { &zeros } else { &bytes };
            let mut all = written[..len].to_vec();
            if !all.is_empty() && (one || !all.ends_with(b"\n")) {
                all.push(b'\n');
            }
            assert!(read(s.join("events")) == all, "{what}");
            let hole = ["at 5", "at 2^62", "after a far seek"].contains(name);
            assert!(!(one && hole) || len == 0, "{what}: one event has no holes");
            taken += usize::from(len > 0);
        }
        assert!((8..20).contains(&taken), "{file}: {taken} of {}", WRITES.len());
        bystander.is_served();
    }
    assert_eq!(m.log(), "");
}

// Names.

#[test]
fn any_bytes_are_a_name_or_are_refused() {
    let m = Mnt::new();
    let mut bystander = Bystander::new(&m);
    let mut random = Random(11);
    let (mut made, mut there) = (0, BTreeSet::new());
    for turn in 0..400 {
        let len = [1, 2, 9, 100, 254, 255, 256, 1023, 5000][random.below(9)];
        let few = b".@0189-\n\\\"' *ae\xff\xc3\xa9\xd9\xa3";
        let byte = |b: usize| {
            if turn % 2 == 0 { few[b % few.len()] } else { 1 + (b % 255) as u8 }
        };
        let mut name: Vec<u8> = (0..len).map(|_| byte(random.below(1 << 16))).collect();
        name.iter_mut().filter(|b| **b == b'/').for_each(|b| *b = b'|');
        let path = m.path().join(OsStr::from_bytes(&name));
        match fs::create_dir(&path) {
            Ok(()) => {
                assert!(name[0] != b'.' && len <= 255, "{name:?}");
                append(path.join("events"), [&name[..], b"\n"].concat());
                there.insert(name);
                made += 1;
            }
            Err(error) => {
                let errno = match () {
                    () if there.contains(&name) || name == b"." || name == b".." => libc::EEXIST,
                    () if name[0] == b'.' && len < 1024 => libc::EINVAL,
                    () if len > 255 => libc::ENAMETOOLONG,
                    () => panic!("{name:?}: {error}"),
                };
                assert_eq!(error.raw_os_error(), Some(errno), "{name:?}");
            }
        }
    }
    assert!(made > 100, "{made}");
    for name in &there {
        let events = read(m.path().join(OsStr::from_bytes(name)).join("events"));
        assert!(events == [name, &b"\n"[..]].concat(), "{name:?}");
    }
    let listed = names(m.path()).into_iter().map(|name| name.as_bytes().to_vec());
    let listed: BTreeSet<_> = listed.filter(|name| name != b"bystander").collect();
    assert!(listed == there, "what is listed is what was made");
    for ((from, to), _) in there.iter().zip(there.iter().skip(1)).zip(0..50) {
        let [from, to] = [from, to].map(|name| m.path().join(OsStr::from_bytes(name)));
        assert_eq!(errno_of(fs::rename(&from, &to)), libc::ENOTEMPTY);
        assert_eq!(errno_of(fs::rename(&from, from.join("from/0"))), libc::EINVAL);
    }
    bystander.is_served();
    assert_eq!(m.log(), "");
}

/// Plain decimal up to the count, `@` and plain seconds, or one of three names.
fn is_horizon(name: &[u8], count: u64) -> bool {
    let digits = |s: &[u8]| !s.is_empty() && s.iter().all(u8::is_ascii_digit);
    if let Some(time) = name.strip_prefix(b"@") {
        return match time.iter().position(|b| *b == b'.') {
            Some(dot) => digits(&time[..dot]) && digits(&time[dot + 1..]),
            None => digits(time),
        };
    }
    let plain = digits(name) && (name == b"0" || name[0] != b'0');
    plain && std::str::from_utf8(name).unwrap().parse().is_ok_and(|n: u64| n <= count)
}

#[test]
fn any_bytes_are_a_horizon_or_are_not_there() {
    let m = Mnt::new();
    let mut bystander = Bystander::new(&m);
    let s = m.stream("s");
    append(s.join("events"), "x\n".repeat(30));
    let known = "18446744073709551615|18446744073709551616|68719476733|9223372036854775808|@|@@1|\
        @1@|@.|@1.|@.1|@-1|@+1|@1e9|@ 1|@1.1.1|@99999999999999999999|\
        @0.00000000000000000000000000001|00|01|+1|-0|1 |\n1|1\n|0x1|٣|１|²|@٣|Ⅳ|next |\
        NEXT|beginning/|new|events|at|....|30|31|29";
    let mut names: Vec<_> = known.split('|').map(|name| name.as_bytes().to_vec()).collect();
    names.extend([
        b"9".repeat(255),
        [b"@", &b"9".repeat(254)[..]].concat(),
        b"@0.".to_vec(),
        b"1".repeat(256),
    ]);
    let mut random = Random(12);
    let few = b"0123456789@.-+\n\xd9\xa3";
    for _ in 0..1500 {
        let len = 1 + random.below(6);
        names.push((0..len).map(|_| few[random.below(few.len())]).collect());
    }
    let mut there = 0;
    for name in names.iter().filter(|name| *name != b"." && *name != b"..") {
        for view in ["from", "at", "follow"] {
            let path = s.join(view).join(OsStr::from_bytes(name));
            match fs::symlink_metadata(&path) {
                Ok(_) => {
                    let end = (view, &name[..]) == ("at", b"30");
                    assert!(is_horizon(name, 30) && !end, "{path:?}");
                    there += 1;
                }
                Err(error) => {
                    let there = is_horizon(name, 30) && (view, &name[..]) != ("at", b"30");
                    let errno = error.raw_os_error().unwrap();
                    let no = [libc::ENOENT, libc::ENAMETOOLONG, libc::ENOTDIR].contains(&errno);
                    assert!(!there && no, "{path:?}: {error}");
                }
            }
        }
    }
    assert!(there > 200, "{there}");
    bystander.is_served();
    assert_eq!(m.log(), "");
}

// Directories.

/// The names that getdents64(2) gives through a buffer of so many bytes, and the offset behind each.
fn list(dir: &File, size: usize) -> io::Result<Vec<(Vec<u8>, i64)>> {
    let (mut all, mut buffer) = (Vec::new(), vec![0u8; size]);
    loop {
        let call = libc::SYS_getdents64;
        let len = said(unsafe { libc::syscall(call, dir.as_raw_fd(), buffer.as_mut_ptr(), size) })?;
        if len == 0 {
            return Ok(all);
        }
        // u64 inode, i64 offset, u16 length, u8 kind, the name and a NUL.
        let mut rest = &buffer[..len as usize];
        while !rest.is_empty() {
            let next = i64::from_ne_bytes(rest[8..16].try_into().unwrap());
            let len = usize::from(u16::from_ne_bytes([rest[16], rest[17]]));
            let name = CStr::from_bytes_until_nul(&rest[19..]).unwrap().to_bytes();
            all.push((name.to_vec(), next));
            rest = &rest[len..];
        }
    }
}

#[test]
fn a_directory_is_listed_through_any_buffer_and_from_any_place() {
    let m = Mnt::new();
    let mut bystander = Bystander::new(&m);
    for n in 0..300 {
        m.stream(format!("{}-{n}", "s".repeat(n % 200)));
    }
    for dir in ["", "bystander", "bystander/from", "bystander/follow"] {
        let path = m.path().join(dir);
        let seek = |file: &File, to: i64| unsafe { said(libc::lseek(file.as_raw_fd(), to, 0)) };
        let file = File::open(&path).unwrap();
        let all = list(&file, 1 << 20).unwrap();
        let mut sorted: Vec<_> = all.iter().map(|(name, _)| name.clone()).collect();
        sorted.sort();
        let mut want: Vec<_> = names(&path).iter().map(|n| n.as_bytes().to_vec()).collect();
        want.extend([b".".to_vec(), b"..".to_vec()]);
        want.sort();
        assert!(sorted == want, "{dir}");
        for size in [0, 1, 23] {
            let file = File::open(&path).unwrap();
            assert_eq!(errno_of(list(&file, size)), libc::EINVAL, "{dir}");
        }
        for size in [232, 233, 500, 4095, 4096, 65_537] {
            let file = File::open(&path).unwrap();
            assert!(list(&file, size).unwrap() == all, "{dir} {size}");
        }
        let mut random = Random(13);
        for _ in 0..20 {
            let n = random.below(all.len());
            seek(&file, all[n].1).unwrap();
            assert!(list(&file, 300 + random.below(9000)).unwrap() == all[n + 1..], "{dir} {n}");
        }
        assert_eq!(errno_of(seek(&file, -1)), libc::EINVAL);
        for far in [1 << 20, 1 << 31, 1 << 62, MAX] {
            if seek(&file, far).is_ok() {
                assert_eq!(list(&file, 4096).unwrap(), [], "{dir} {far}");
            }
        }
        bystander.is_served();
    }
    assert_eq!(m.log(), "");
}

// Those who hold on to it.

/// Begins the scripts that open many files: in processes of their own, for what this one has open
/// would pass to other tests' children.
const MANY: &str = "
import errno, os, resource, sys
hard = max(12000, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
resource.setrlimit(resource.RLIMIT_NOFILE, (12000, hard))
def say(*what):
    print(*what, flush=True)
    sys.stdin.readline()
";

/// A script that says how far it is, and goes on when told to.
struct Script {
    child: Reaped,
    said: io::Lines<io::BufReader<std::process::ChildStdout>>,
}

impl Script {
    fn start(dir: &Path, script: &str) -> Script {
        let mut python = Command::new("python3");
        python.args(["-Ic", &format!("{MANY}{script}")]).current_dir(dir);
        python.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = Reaped(python.spawn().unwrap());
        let said = io::BufReader::new(child.0.stdout.take().unwrap()).lines();
        Script { child, said }
    }

    #[track_caller]
    fn says(&mut self) -> String {
        self.said.next().expect("it ended").unwrap()
    }

    fn goes_on(&mut self) {
        let stdin = self.child.0.stdin.as_mut().unwrap();
        stdin.write_all(b"\n").unwrap();
    }
}

#[test]
fn whoever_holds_thousands_of_pending_batches_keeps_nobody_from_a_small_one() {
    need("python3", "python3");
    let m = Mnt::new();
    let mut bystander = Bystander::new(&m);
    for n in 0..100 {
        m.stream(format!("s{n}"));
    }
    // More than there is memory for, and more than there are temporary files for.
    let script = r"
files, refused = [], 0
for n in range(6400):
    files.append(os.open('s%d/events' % (n % 100), os.O_WRONLY | os.O_APPEND))
    try:
        os.write(files[-1], (b'%7d\n' % n) * 2048)
    except OSError as e:
        assert e.errno == errno.ENFILE, e
        refused += 1
say(refused)
failed = 0
for file in files[:3200]:
    os.close(file)
for file in files[3200:4800]:
    try:
        os.close(file)
    except OSError as e:
        assert e.errno == errno.ENFILE, e
        failed += 1
say(failed)
";
    let mut holder = Script::start(m.path(), script);
    let refused: u64 = holder.says().parse().unwrap();
    eprintln!(
        "6,400 pending batches of 16 KiB, {refused} refused: {} KiB, {} files",
        m.rss_peak_kib(),
        m.open_files()
    );
    assert!((1..3400).contains(&refused), "{refused}");
    for _ in 0..20 {
        bystander.is_served();
    }
    let counts = || (0..100).map(|n| count(&m.path().join(format!("s{n}")))).sum::<u64>();
    assert_eq!(counts(), 0, "nothing is committed yet");
    holder.goes_on();
    let failed: u64 = holder.says().parse().unwrap();
    assert_eq!(counts(), 2048 * (4800 - failed), "what was closed is committed");
    for n in 0..100 {
        let events = text(&read(m.path().join(format!("s{n}/events"))));
        let mut batches = events.as_bytes().chunks(2048 * 8);
        let whole = batches.all(|batch| batch.chunks(8).all(|line| *line == batch[..8]));
        assert!(whole, "s{n}: a batch is not in one piece");
    }
    holder.child.0.kill().unwrap();
    eventually("all is given back", || m.open_files() < 400);
    assert_eq!(counts(), 2048 * (4800 - failed), "of a killed writer nothing is left");
    bystander.is_served();
}

#[test]
fn ten_thousand_files_opened_and_never_closed() {
    need("python3", "python3");
    let m = Mnt::new();
    let mut bystander = Bystander::new(&m);
    for n in 0..10 {
        append(m.stream(format!("s{n}")).join("events"), "0\n1\n2\n");
    }
    let script = r"
import select
poll = select.poll()
kinds = ['events', 'lines', 'new', 'count', 'at/1', 'from/2', 'follow/3', '', 'from', 'from/newest']
for n in range(10000):
    kind = kinds[n // 10 % 10]
    file = os.open('s%d/%s' % (n % 10, kind), os.O_RDONLY | os.O_NONBLOCK)
    if kind in ('events', 'from/2', 'follow/3'):
        poll.register(file, select.POLLIN)
    if kind in ('', 'from'):
        assert len(os.listdir(file)) >= 3
    elif kind == 'follow/3':
        try:
            os.read(file, 100)
        except BlockingIOError:
            pass
    else:
        os.read(file, 3)
poll.poll(0)
say('open')
";
    let mut after = Vec::new();
    for _ in 0..3 {
        let mut holder = Script::start(m.path(), script);
        assert_eq!(holder.says(), "open");
        assert!(m.open_files() < 1000, "{} files", m.open_files());
        bystander.is_served();
        holder.child.0.kill().unwrap();
        holder.child.0.wait().unwrap();
        bystander.is_served();
        after.push(status_kib(m.pid(), "VmRSS:"));
    }
    eprintln!("after 10,000 files each: {after:?} KiB, at most {}", m.rss_peak_kib());
    assert!(after[2] < after[0] + 4096, "{after:?} KiB");
}

#[test]
fn a_reader_that_stops_mid_way_holds_up_nobody() {
    let m = Mnt::new();
    let mut bystander = Bystander::new(&m);
    let s = m.stream("s");
    let lines = 1_500_000;
    let mut all: Vec<u8> = (0..lines).flat_map(|n| format!("{n:15}\n").into_bytes()).collect();
    append(s.join("events"), &all);
    // Stopped at any moment, in the middle of reads of many sizes.
    let mut random = Random(14);
    for turn in 0..12 {
        let size = ["4k", "1M", "64M"][turn % 3];
        let command = format!("exec dd if=events of=/dev/null bs={size} status=none");
        let mut reader = Follower::sh(&s, &command);
        std::thread::sleep(Duration::from_micros(random.below(15_000) as u64));
        reader.signal(libc::SIGSTOP);
        bystander.is_served();
        reader.signal(libc::SIGCONT);
        let status = wait(&mut reader.child, Duration::from_secs(30));
        assert!(status.is_some_and(|status| status.success()));
    }
    // Stopped with a full pipe, while others go on with the same stream.
    let mut cat = Command::new("cat");
    cat.arg("events").current_dir(&s).stdout(Stdio::piped());
    let mut cat = Reaped(cat.spawn().unwrap());
    let pid = cat.0.id().cast_signed();
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(unsafe { libc::kill(pid, libc::SIGSTOP) }, 0);
    for n in 0..20 {
        append(s.join("events"), format!("{n:15}\n"));
        all.extend(format!("{n:15}\n").into_bytes());
        assert_eq!(count(&s), lines + n + 1);
        bystander.is_served();
    }
    assert!(read(s.join("events")) == all);
    assert_eq!(unsafe { libc::kill(pid, libc::SIGCONT) }, 0);
    let mut got = Vec::new();
    cat.0.stdout.take().unwrap().read_to_end(&mut got).unwrap();
    assert!(got == all, "{} of {} bytes", got.len(), all.len());
}

#[test]
fn a_writer_that_stops_mid_way_holds_up_nobody() {
    need("python3", "python3");
    let m = Mnt::new();
    let mut bystander = Bystander::new(&m);
    let script = "
import os, signal, sys
file = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND)
os.write(file, b'a\\nb')
print('pending', flush=True)
os.kill(os.getpid(), signal.SIGSTOP)
try:
    os.write(file, b'c\\n')
    os.close(file)
    print('committed', flush=True)
except OSError as e:
    print(e.strerror, flush=True)
";
    for (turn, (file, ends)) in [
        ("events", "committed"),
        ("lines", "committed"),
        ("from/1", "File exists"),
        ("new", "committed"),
        ("events", "killed"),
        ("new", "killed"),
    ]
    .into_iter()
    .enumerate()
    {
        let s = m.stream(format!("s{turn}"));
        append(s.join("events"), "first\n");
        let mut writer = Follower::start(&s, &["python3", "-Ic", script, file]);
        writer.prints(&["pending"]);
        eventually("it stops", || writer.state() == 'T');
        let other = s.clone();
        within(20, move || {
            append(other.join("events"), "other\n");
            append(other.join("from/next"), "more\n".repeat(500));
            assert_eq!(count(&other), 502 + u64::from(file == "lines"));
        });
        bystander.is_served();
        if ends == "killed" {
            writer.child.kill().unwrap();
            writer.child.wait().unwrap();
        } else {
            writer.signal(libc::SIGCONT);
            writer.prints(&[ends]);
            writer.ends_well();
        }
        let mut want = vec!["first\n".to_string(), "other\n".into(), "more\n".repeat(500)];
        match (file, ends) {
            ("lines", _) => {
                want.insert(1, "a\n".into());
                want.push("bc\n".into());
            }
            ("events", "committed") => want.push("a\nbc\n".into()),
            ("new", "committed") => want.push("a\nbc\n\n".into()),
            _ => {}
        }
        assert!(batches(&s) == want, "{file} {ends}: {:?}", count(&s));
    }
}

#[test]
fn processes_that_open_and_close_and_fork_without_end() {
    need("python3", "python3");
    let m = Mnt::new();
    let mut bystander = Bystander::new(&m);
    let path = m.path().to_path_buf();
    let storm = std::thread::spawn(move || {
        python(
            &path,
            r"
            import random
            def user(seed):
                some = random.Random(seed)
                held = []
                for turn in range(400):
                    name = 's%d' % some.randrange(6)
                    try:
                        what = some.randrange(10)
                        if what == 0: os.mkdir(name)
                        elif what == 1: os.rmdir(name)
                        elif what == 2: os.rename(name, 's%d' % some.randrange(6))
                        elif what == 3: os.listdir(name + '/from')
                        elif what == 4: open(name + '/from/newest').read()
                        elif what == 5: held.append(os.open(name + '/follow/next', os.O_RDONLY))
                        elif what == 6: os.close(held.pop())
                        elif what == 7:
                            # A child that inherits all, and goes.
                            child = os.fork()
                            if child == 0: os._exit(0)
                            os.waitpid(child, 0)
                        else:
                            held.append(appender(name + '/' + some.choice(['events', 'lines', 'from/next'])))
                            os.write(held[-1], b'%d %d\n' % (seed, turn))
                    except (OSError, IndexError): pass
                if seed % 2: die(signal.SIGKILL)
            users = [fork(lambda seed=seed: user(seed)) for seed in range(16)]
            for user in users: wait(user)
        ",
        )
    });
    while !storm.is_finished() {
        bystander.is_served();
    }
    ok(&storm.join().unwrap());
    bystander.is_served();
    for name in names(m.path()).iter().filter(|name| *name != "bystander") {
        let s = m.path().join(name);
        let all = text(&read(s.join("events")));
        assert_eq!(all.lines().count() as u64, count(&s));
        let line = |line: &str| line.split(' ').filter(|n| n.parse::<u32>().is_ok()).count() == 2;
        assert!(all.lines().all(line), "{name:?}: {all}");
    }
    // Half of them were killed with something pending, which is all that is said.
    let log = m.log();
    let mut lines = log.lines();
    assert!(lines.all(|line| line.contains("died by signal 9 before it committed")), "{log}");
    assert!(m.open_files() < 200, "{} files", m.open_files());
}

/// A slow disk, or another mount that was stopped in the middle of its commits. There is room for a
/// short line in what a log has in advance; for a long one the write has to make some.
#[test]
fn commits_that_take_long_hold_up_nobody_else() {
    let m = Mnt::new();
    let mut bystander = Bystander::new(&m);
    let streams: Vec<_> = (0..100).map(|n| m.stream(format!("s{n}"))).collect();
    for s in &streams {
        append(s.join("events"), "first\n");
    }
    let lock = |n: usize| {
        let log = File::open(m.store().join(format!("s{n}/log"))).unwrap();
        log.lock().unwrap();
        log
    };
    let lines = ["second\n".to_owned(), "x".repeat(100_000) + "\n"];
    for line in &lines {
        let locks: Vec<File> = (0..streams.len()).map(lock).collect();
        std::thread::scope(|scope| {
            // Dropped before the scope waits for the writers, also when somebody was not served.
            let locks = locks;
            for s in &streams {
                scope.spawn(|| append(s.join("events"), line));
            }
            std::thread::sleep(Duration::from_millis(500));
            for _ in 0..5 {
                bystander.is_served();
            }
            drop(locks);
        });
    }
    for s in &streams {
        assert_eq!(batches(s), ["first\n", &lines[0], &lines[1]]);
    }
}

/// Readers take no lock, not even the first of a stream.
#[test]
fn a_lock_that_is_held_on_a_log_holds_up_no_reader() {
    let m = Mnt::new();
    append(m.stream("s").join("events"), "event\n".repeat(300));
    m.restart();
    let mut bystander = Bystander::new(&m);
    let log = File::open(m.store().join("s/log")).unwrap();
    log.lock().unwrap();
    let (done, all) = std::sync::mpsc::channel();
    for n in 0..200 {
        let (s, done) = (m.path().join("s"), done.clone());
        std::thread::spawn(move || {
            let name = ["from", "at", "follow"][n % 3];
            let there = fs::symlink_metadata(s.join(format!("{name}/{n}"))).is_ok();
            done.send(there && read(s.join(format!("at/{n}"))) == b"event").unwrap();
        });
    }
    bystander.is_served();
    for _ in 0..200 {
        assert_eq!(all.recv_timeout(Duration::from_secs(30)), Ok(true));
    }
    drop(log);
    append(m.path().join("s/events"), "more\n");
}
