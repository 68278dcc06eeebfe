//! Names of any bytes, and directories read through any buffer.

use super::{Bystander, MAX, said};
use crate::harness::*;
use std::collections::BTreeSet;
use std::ffi::{CStr, OsStr};
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;

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
