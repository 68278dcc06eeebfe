//! Streams are made, renamed and removed, through this mount and through others.

use super::size;
use crate::harness::*;
use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

/// Who looks opens it by its name, also in the middle of it.
#[test]
fn a_stream_is_removed_while_others_look_at_it() {
    let m = Mnt::new();
    let others = Mnt::on(m.store(), &[]);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for mount in [&m, &others] {
            scope.spawn(|| {
                while !done.load(SeqCst) {
                    // It is there or not.
                    let _ = fs::read(mount.path().join("s/count"));
                }
            });
        }
        let removed = || -> io::Result<()> {
            for _ in 0..50 {
                let s = m.stream("s");
                append(s.join("events"), "event\n");
                fs::write(s.join("first"), "1")?;
                fs::remove_dir(s)?;
            }
            Ok(())
        };
        let removed = removed();
        done.store(true, SeqCst);
        removed.unwrap();
    });
}

#[test]
fn a_stream_may_have_any_name_a_directory_may() {
    let m = Mnt::new();
    let mut long = vec![b'n'; 255];
    let raw: [&[u8]; 9] = [
        "ünï→".as_bytes(),
        b"a b",
        b"new\nline",
        b"\xff\xfe",
        b"events",
        b"0",
        b"*",
        b"-rf",
        &long,
    ];
    for name in raw {
        append(m.stream(OsStr::from_bytes(name)).join("events"), name);
    }
    m.restart();
    let want: BTreeSet<OsString> = raw.iter().map(|n| OsStr::from_bytes(n).into()).collect();
    assert_eq!(names(m.path()), want.into_iter().collect::<Vec<_>>());
    for name in raw {
        let events = read(m.path().join(OsStr::from_bytes(name)).join("events"));
        assert_eq!(events, [name, b"\n"].concat());
    }
    long.push(b'n');
    assert_eq!(
        errno_of(fs::create_dir(m.path().join(OsStr::from_bytes(&long)))),
        libc::ENAMETOOLONG
    );
    assert_eq!(errno_of(fs::metadata(m.path().join(".smolstore"))), libc::ENOENT);
    assert_eq!(errno_of(fs::metadata(m.path().join("none"))), libc::ENOENT);
}

#[test]
fn rename_takes_open_files_along() {
    let m = Mnt::new();
    let (s, t) = (m.stream("s"), m.path().join("t"));
    append(s.join("events"), "a\n");
    let mut reader = File::open(s.join("events")).unwrap();
    let mut writer = appender(s.join("events")).unwrap();
    fs::rename(&s, &t).unwrap();
    assert_eq!(names(m.path()), ["t"]);
    assert_eq!(errno_of(fs::metadata(&s)), libc::ENOENT);
    io::Write::write_all(&mut writer, b"b\n").unwrap();
    close(writer).unwrap();
    append(t.join("events"), "c\n");
    let mut seen = String::new();
    reader.read_to_string(&mut seen).unwrap();
    assert_eq!(seen, "a\nb\nc\n");
    m.restart();
    assert_eq!(read(t.join("events")), b"a\nb\nc\n");
    // The old name is free.
    append(m.stream("s").join("events"), "other\n");
    assert_eq!((count(&s), count(&t)), (1, 3));
}

#[test]
fn rename_never_loses_a_stream() {
    let m = Mnt::new();
    let (s, t) = (m.stream("s"), m.stream("t"));
    append(s.join("events"), "of s\n");
    append(t.join("events"), "of t\n");
    let errno = errno_of(fs::rename(&s, &t));
    assert!([libc::EEXIST, libc::ENOTEMPTY].contains(&errno), "{errno}");
    assert_eq!(errno_of(fs::rename(m.path().join("none"), m.path().join("u"))), libc::ENOENT);
    assert_eq!(errno_of(fs::rename(&s, m.path().join(".s"))), libc::EINVAL);
    assert!(fs::rename(&s, t.join("s")).is_err());
    assert!(fs::rename(s.join("events"), s.join("else")).is_err());
    assert_eq!(names(m.path()), ["s", "t"]);
    assert_eq!(
        (read(s.join("events")), read(t.join("events"))),
        (b"of s\n".to_vec(), b"of t\n".to_vec())
    );
}

#[test]
fn rmdir_removes_an_empty_stream_only() {
    let m = Mnt::new();
    let s = m.stream("s");
    assert_eq!(errno_of(fs::create_dir(&s)), libc::EEXIST);
    let mut writer = appender(s.join("events")).unwrap();
    fs::remove_dir(&s).unwrap();
    assert!(names(m.path()).is_empty() && !m.store().join("s").exists());
    assert_eq!(errno_of(fs::remove_dir(&s)), libc::ENOENT);
    let late = io::Write::write_all(&mut writer, b"late\n").and_then(|()| close(writer));
    assert_eq!(errno_of(late), libc::ENOENT);
    m.stream("s");
    assert_eq!(count(&s), 0);
    append(s.join("events"), "a\n");
    assert_eq!(errno_of(fs::remove_dir(&s)), libc::ENOTEMPTY);
    assert!(fs::remove_dir(s.join("from")).is_err());
    assert_eq!(read(s.join("events")), b"a\n");
}

#[test]
fn mkdir_says_what_mkdir_did() {
    let m = Mnt::new();
    let round = AtomicUsize::new(0);
    let rounds = 1000;
    let name = |n: usize| format!("s{n}");
    std::thread::scope(|scope| {
        // What another mount does, fast enough to come between: it removes the new stream, and makes
        // one of that name.
        scope.spawn(|| {
            let now = || Some(round.load(SeqCst)).filter(|n| *n < rounds);
            while let Some(n) = now() {
                let taken = m.store().join(name(n));
                if fs::remove_dir(&taken).and_then(|()| fs::create_dir(&taken)).is_ok() {
                    std::thread::sleep(Duration::from_micros(200));
                    fs::remove_dir(&taken).expect("it is a stranger's");
                }
            }
        });
        let failed = (0..rounds).find_map(|n| {
            round.store(n, SeqCst);
            fs::create_dir(m.path().join(name(n))).err()
        });
        round.store(rounds, SeqCst);
        assert!(failed.is_none(), "{failed:?}");
    });
    ok(&sh("sh", "rmdir s* 2>/dev/null || true", m.path()));
    assert_eq!(names(m.store()), [".smolstore"]);
}

#[test]
fn two_mounts_of_one_store_see_each_other() {
    let one = Mnt::new();
    let two = Mnt::on(one.store(), &[]);
    let here = one.stream("s");
    let there = two.path().join("s");
    eventually("the stream shows", || there.exists());
    let mut reader = File::open(there.join("events")).unwrap();
    for n in 0..50 {
        append(here.join("events"), format!("here {n}\n"));
        assert_eq!(count(&there), 2 * n + 1);
        append(there.join("events"), format!("there {n}\n"));
        assert_eq!(count(&here), 2 * n + 2);
    }
    let all: String = (0..50).map(|n| format!("here {n}\nthere {n}\n")).collect();
    let mut seen = String::new();
    reader.read_to_string(&mut seen).unwrap();
    assert_eq!(seen, all);
    assert_eq!(read(here.join("events")), all.as_bytes());
    assert_eq!(size(here.join("events")), all.len() as u64);

    fs::rename(&here, one.path().join("t")).unwrap();
    let there = two.path().join("t");
    eventually("the new name shows", || there.exists());
    eventually("the old name is gone", || !two.path().join("s").exists());
    append(one.path().join("t/events"), "renamed\n");
    reader.read_to_string(&mut seen).unwrap();
    assert!(seen.ends_with("\nrenamed\n"), "an open reader stays with its stream");
    append(there.join("events"), "back\n");
    assert_eq!(count(&one.path().join("t")), 102);

    one.stream("empty");
    eventually("the empty one shows", || two.path().join("empty").exists());
    fs::remove_dir(two.path().join("empty")).unwrap();
    eventually("it is gone here too", || {
        names(one.path()) == ["t"] && !one.path().join("empty").exists()
    });
}
