//! Strange writes: at any place, in any parts, from anywhere.

use super::{Bystander, MAX, NOWHERE, said};
use crate::harness::*;
use std::fs::{File, OpenOptions};
use std::io::{self, Seek, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::ptr::null_mut;

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
