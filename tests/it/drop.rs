//! Dropping old events: what is written to `first`, and what becomes of those before it.

use crate::harness::*;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

/// Ten events of ten batches: "0" to "9".
fn digits(m: &Mnt) -> std::path::PathBuf {
    let s = m.stream("s");
    for n in 0..10 {
        append(s.join("events"), format!("{n}\n"));
    }
    s
}

fn first(s: &Path) -> String {
    text(&read(s.join("first")))
}

fn link(path: impl AsRef<Path>) -> String {
    fs::read_link(path).unwrap().into_os_string().into_string().unwrap()
}

#[track_caller]
fn put(s: &Path, n: u64) {
    fs::write(s.join("first"), format!("{n}\n")).unwrap();
    assert_eq!(first(s), format!("{n}\n"));
}

/// What holds of a stream of ten digits of which those before `n` are dropped.
#[track_caller]
fn kept_from(s: &Path, n: u64) {
    let rest: String = (n..10).map(|n| format!("{n}\n")).collect();
    assert_eq!((first(s), count(s)), (format!("{n}\n"), 10));
    for file in ["events", "lines", &format!("from/{n}"), "from/beginning", "from/@0"] {
        let path = s.join(file);
        assert_eq!(text(&read(&path)), rest, "{file}");
        assert_eq!(fs::metadata(&path).unwrap().len(), rest.len() as u64, "{file}");
    }
    for dropped in 0..n {
        for dir in ["from", "at", "follow"] {
            for name in [dropped.to_string(), format!("{dropped}.json")] {
                let path = s.join(dir).join(name);
                assert_eq!(errno_of(fs::metadata(&path)), libc::ENODATA, "{path:?}");
                assert_eq!(errno_of(File::open(&path)), libc::ENODATA, "{path:?}");
                assert_eq!(errno_of(appender(&path)), libc::ENODATA, "{path:?}");
            }
        }
    }
    for event in n..10 {
        assert_eq!(text(&read(s.join(format!("at/{event}")))), event.to_string());
    }
    assert_eq!(link(s.join("at/beginning")), n.to_string());
    assert_eq!(link(s.join("at/newest")), n.max(9).to_string());
    assert_eq!(link(s.join("follow/next")), "10");
}

#[test]
fn what_is_before_first_is_dropped_for_good() {
    let m = Mnt::new();
    let s = digits(&m);
    kept_from(&s, 0);
    for n in [0, 1, 4, 4, 9, 10] {
        put(&s, n);
        kept_from(&s, n);
        // What the kernel knew it has to ask for again.
        kept_from(&s, n);
        m.kill(libc::SIGKILL);
        m.restart();
        kept_from(&s, n);
    }
    let other = Mnt::on(m.store(), &[]);
    kept_from(&other.path().join("s"), 10);
    append(s.join("from/next"), "ten\n");
    assert_eq!((read(s.join("events")), count(&s)), (b"ten\n".to_vec(), 11));
}

#[test]
fn einval_what_is_no_index_between_first_and_count() {
    let m = Mnt::new();
    let s = digits(&m);
    put(&s, 3);
    let file = OpenOptions::new().write(true).open(s.join("first")).unwrap();
    for wrong in
        ["2", "11", "", "\n", "x", "4 ", " 4", "+4", "04", "4\n\n", "4\n5\n", "4.json", "@0"]
    {
        let bytes = wrong.as_bytes();
        if !bytes.is_empty() {
            assert_eq!(errno_of((&file).write(bytes)), libc::EINVAL, "{wrong:?}");
        }
        if wrong.ends_with("\n\n") || wrong.contains("\n5") {
            // A shell may write line by line.
            continue;
        }
        // What close says bash does not tell: it is write that fails.
        for shell in ["bash", "dash", "busybox sh", "zsh"] {
            let script = format!("printf '%s' '{wrong}' > first");
            let ended = sh(shell, &script, &s).status.success();
            assert_eq!(ended, wrong.is_empty(), "{shell} {wrong:?}");
        }
    }
    close(file).unwrap();
    kept_from(&s, 3);
    let read_only = Mnt::on(m.store(), &["-o", "ro"]);
    let refused = OpenOptions::new().write(true).open(read_only.path().join("s/first"));
    assert_eq!(errno_of(refused), libc::EROFS);
    kept_from(&read_only.path().join("s"), 3);
}

#[test]
fn first_is_written_from_any_program() {
    let m = Mnt::new();
    let s = digits(&m);
    for (n, (shell, script)) in (1..).zip([
        ("bash", "echo 1 > first"),
        ("dash", "echo 2 >> first"),
        ("busybox sh", "printf 3 > first"),
        ("python3", "print(4, file=open('first', 'w'))"),
        ("python3", "import os; f = os.open('first', os.O_RDWR); os.write(f, b'5'); os.fsync(f)"),
        ("sh", "echo 6 | tee first"),
        ("sh", "echo 7 > x; cp x first || exit; rm x"),
        ("sh", "echo 8 | dd of=first conv=fsync status=none"),
        ("sh", "readlink from/@0 > first; readlink from/newest > first"),
        ("sh", "cat count > first && test -z \"$(cat events)\""),
    ]) {
        let script = script.replace(" x", " ../../x");
        ok(&sh(shell, &script, &s));
        kept_from(&s, n);
    }
    // The end of a line by itself, as `writeln!` makes it.
    let mut file = File::create(s.join("first")).unwrap();
    writeln!(file, "{}", 10).unwrap();
    close(file).unwrap();
}

#[test]
fn a_stream_without_events_can_be_removed() {
    let m = Mnt::new();
    let s = digits(&m);
    put(&s, 9);
    assert_eq!(errno_of(fs::remove_dir(&s)), libc::ENOTEMPTY);
    ok(&sh("sh", "cat s/count > s/first && rmdir s", m.path()));
    assert!(names(m.store()).iter().all(|name| name != "s"));
    // The next of its name begins anew.
    kept_from(&digits(&m), 0);
}

#[test]
fn events_without_the_first_are_another_file() {
    let m = Mnt::new();
    let s = digits(&m);
    let inode = |name: &str| fs::metadata(s.join(name)).unwrap().ino();
    let before = ["events", "lines"].map(inode);
    let mut old = File::open(s.join("events")).unwrap();
    let from = File::open(s.join("from/0")).unwrap();
    put(&s, 4);
    // Who opens it by name has the new one at once, whatever is open.
    assert_eq!(text(&read(s.join("events"))), "4\n5\n6\n7\n8\n9\n");
    eventually("it has its inode", || inode("events") != before[0]);
    let after = ["events", "lines"].map(inode);
    assert!(after.iter().all(|inode| !before.contains(inode)) && after[0] != after[1]);
    // Open files keep what they had: offsets, size, and what is not there any more is ENODATA.
    let meta = old.metadata().unwrap();
    assert_eq!((meta.ino(), meta.len(), from.metadata().unwrap().len()), (before[0], 20, 20));
    assert_eq!(errno_of(old.read(&mut [0; 4])), libc::ENODATA);
    for file in [&old, &from] {
        let mut two = [0; 4];
        file.read_exact_at(&mut two, 16).unwrap();
        assert_eq!(&two, b"8\n9\n");
    }
    old.seek(SeekFrom::Start(20)).unwrap();
    append(s.join("events"), "10\n");
    let mut rest = String::new();
    old.read_to_string(&mut rest).unwrap();
    assert_eq!((rest.as_str(), old.metadata().unwrap().len()), ("10\n", 23));
    drop((old, from));
    let script = "exec 3<> events; echo 11 >> events; stat -Lc %s /proc/self/fd/3 events";
    assert_eq!(ok(&sh("bash", script, &s)), "18\n18\n");
    m.restart();
    assert_eq!(["events", "lines"].map(inode), after);
}

#[test]
fn who_appends_or_follows_goes_on() {
    let m = Mnt::new();
    let s = digits(&m);
    let mut follower = File::open(s.join("follow/8")).unwrap();
    let mut behind = File::open(s.join("follow/0.json")).unwrap();
    let mut next = File::open(s.join("from/next")).unwrap();
    let guarded = appender(s.join("from/10")).unwrap();
    let mut batch = appender(s.join("events")).unwrap();
    batch.write_all(b"ten\n").unwrap();
    let mut buffer = [0; 64];
    assert_eq!(follower.read(&mut buffer).unwrap(), 4);
    put(&s, 10);
    assert_eq!(errno_of(behind.read(&mut buffer)), libc::ENODATA);
    (&guarded).write_all(b"guarded\n").unwrap();
    close(guarded).unwrap();
    close(batch).unwrap();
    let mut read = |file: &mut File| {
        let len = file.read(&mut buffer).unwrap();
        text(&buffer[..len])
    };
    assert_eq!(read(&mut follower), "guarded\nten\n");
    assert_eq!(read(&mut next), "guarded\nten\n");
    assert_eq!(read(&mut File::open(s.join("events")).unwrap()), "guarded\nten\n");
}

#[test]
fn of_several_drops_the_larger_wins() {
    let m = Mnt::new();
    let s = m.stream("s");
    append(s.join("events"), "x\n".repeat(1000));
    let others = [(); 2].map(|()| Mnt::on(m.store(), &[]));
    let mut stores: Vec<_> = others.iter().map(|other| other.path().join("s")).collect();
    stores.push(s.clone());
    std::thread::scope(|scope| {
        for (n, s) in stores.iter().enumerate() {
            scope.spawn(move || {
                for first in (n..=900).step_by(7) {
                    let dropped = fs::write(s.join("first"), first.to_string());
                    let seen: usize = text(&read(s.join("first"))).trim().parse().unwrap();
                    assert!(seen >= first);
                    if let Err(error) = dropped {
                        assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
                        assert!(seen > first);
                    }
                    append(s.join("events"), "y\n");
                }
            });
        }
    });
    for s in &stores {
        assert_eq!(first(s), "898\n");
        assert_eq!(read(s.join("events")).len() as u64, 2 * (count(s) - 898));
    }
    drop(others);
    m.restart();
    assert_eq!(first(&s), "898\n");
}

#[test]
fn check_backup_and_a_new_index_know_of_it() {
    let m = Mnt::new();
    let s = m.stream("s");
    let all: Vec<String> =
        (0..5000).map(|n| format!("event {n} {}\n", "x".repeat(n % 90))).collect();
    append(s.join("events"), all.concat());
    put(&s, 3000);
    let rest = all[3000..].concat();
    let check = |store: &Path| ok(&smolstore(["check".as_ref(), store]).output().unwrap());
    check(m.store());
    m.stop();
    fs::remove_file(m.store().join("s/index")).unwrap();
    m.restart();
    assert_eq!((text(&read(s.join("events"))), count(&s)), (rest.clone(), 5000));
    let copy = tempfile::TempDir::new().unwrap();
    let copied = copy.path().join("store");
    ok(&sh("sh", &format!("cp -a . {}", copied.display()), m.store()));
    check(&copied);
    let copy = Mnt::on(&copied, &[]);
    let s = copy.path().join("s");
    assert_eq!((text(&read(s.join("events"))), count(&s)), (rest, 5000));
    append(s.join("from/5000"), "more\n");
    assert_eq!(errno_of(fs::metadata(s.join("at/2999"))), libc::ENODATA);
    assert_eq!(text(&read(s.join("at/3000"))), all[3000].trim_end());
}

/// All but 8 KiB of what is dropped comes back, of log and index.
fn space_comes_back(mkfs: &str, mib: u64) {
    let disk = SmallDisk::of(mkfs, mib);
    let store = disk.path().join("store");
    fs::create_dir(&store).unwrap();
    let m = Mnt::on(&store, &[]);
    let s = m.stream("s");
    let used = || {
        disk.settle();
        ["log", "index"]
            .map(|name| fs::metadata(store.join("s").join(name)).unwrap().blocks() * 512)
    };
    for _ in 0..8 {
        append(s.join("events"), "x".repeat(1023) + "\n");
        append(s.join("events"), ("x".repeat(1023) + "\n").repeat(4096));
    }
    let kept = 4096;
    let n = count(&s) - kept;
    let (before, first_page) = (used(), 4096);
    put(&s, n);
    // The blocks take one part in a hundred more than the events in them.
    let (after, dropped) = (used(), n * 1024);
    assert!(before[0] - after[0] + 8192 >= dropped, "{mkfs}: {before:?} {after:?} {dropped}");
    assert!(after[1] <= before[1] / 2 + 2 * first_page, "{mkfs}: {before:?} {after:?}");
    assert_eq!(read(s.join("events")).len() as u64, kept * 1024);
    assert_eq!(m.log(), "");
    if mkfs.contains("btrfs") {
        // It writes nothing in place: the head needs room, too.
        return;
    }
    // A disk that is full is when events have to go.
    append(s.join("events"), "more\n");
    disk.fill();
    put(&s, count(&s) - 1);
    append(s.join("events"), "more\n".repeat(1000));
}

#[test]
fn space_comes_back_on_ext4() {
    space_comes_back("mkfs.ext4 -q -m 0", 128);
}

#[test]
fn space_comes_back_on_xfs() {
    space_comes_back("mkfs.xfs -q", 320);
}

#[test]
fn space_comes_back_on_btrfs() {
    space_comes_back("mkfs.btrfs -q", 256);
}

/// A file system that can make no holes.
const NO_HOLES: &str = r"
#define _GNU_SOURCE
#include <errno.h>
#include <sys/types.h>
#include <sys/syscall.h>
#include <unistd.h>
int fallocate(int fd, int mode, off_t from, off_t len)
{
    if (mode == 0)
        return syscall(SYS_fallocate, fd, mode, from, len);
    errno = EOPNOTSUPP;
    return -1;
}
";

#[test]
fn where_no_holes_can_be_made_the_drop_holds_all_the_same() {
    let dir = public_dir();
    fs::write(dir.path().join("no_holes.c"), NO_HOLES).unwrap();
    ok(&sh("sh", "cc -shared -fPIC -o no_holes.so no_holes.c", dir.path()));
    let m = Mnt::in_env(&[("LD_PRELOAD", dir.path().join("no_holes.so"))]);
    let s = m.stream("s");
    append(s.join("events"), "x\n".repeat(20_000));
    put(&s, 19_999);
    let said = "stream \"s\": what was dropped keeps its space: Operation not supported";
    assert!(m.log().contains(said), "{}", m.log());
    m.restart();
    assert_eq!((first(&s), text(&read(s.join("events")))), ("19999\n".into(), "x\n".into()));
}

#[test]
fn damage_where_it_would_begin_is_eio_and_the_next_event_can_be_first() {
    let m = Mnt::new();
    let s = m.stream("s");
    // One event a page, about.
    append(s.join("events"), ("x".repeat(4000) + "\n").repeat(20));
    m.stop();
    let log = OpenOptions::new().write(true).open(m.store().join("s/log")).unwrap();
    log.write_all_at(&[0xff; 2000], 10 * 4096).unwrap();
    m.restart();
    let damaged = (0..20).filter(|n| fs::read(s.join(format!("at/{n}"))).is_err());
    let damaged: Vec<u64> = damaged.collect();
    assert!((1..=2).contains(&damaged.len()), "{damaged:?}");
    let (bad, good) = (damaged[0], damaged[damaged.len() - 1] + 1);
    let begun = bad + u64::from(fs::write(s.join("first"), bad.to_string()).is_ok());
    assert!(begun <= bad + 1 && m.log().contains(&format!("event {bad}")), "{}", m.log());
    put(&s, good);
    assert_eq!(read(s.join("events")).len() as u64, (20 - good) * 4001);
    // Nothing that is kept is damaged now.
    m.restart();
    assert_eq!(read(s.join("events")).len() as u64, (20 - good) * 4001);
    append(s.join("from/20"), "more\n");
}
