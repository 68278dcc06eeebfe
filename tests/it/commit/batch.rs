//! Batches: all that is written up to a commit, and nothing of it before.

use super::{COMMITS, batches, write_once};
use crate::harness::*;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;

#[test]
fn a_batch_in_many_writes_is_invisible_until_commit_and_then_whole() {
    let m = Mnt::new();
    for (name, commit) in COMMITS {
        let s = m.stream(name);
        append(s.join("events"), "before\n");
        let mut file = appender(s.join("events")).unwrap();
        for n in 0..100 {
            write!(file, "line {n}\nand ").unwrap();
            assert_eq!(count(&s), 1, "{name}");
        }
        assert_eq!(read(s.join("events")), b"before\n", "{name}");
        assert_eq!(fs::metadata(s.join("events")).unwrap().len(), 7, "{name}");
        assert!(!s.join("at/1").exists(), "{name}");
        commit(file).unwrap();
        let whole: String = (0..100).map(|n| format!("line {n}\nand ")).collect();
        assert_eq!(batches(&s), ["before\n", &format!("{whole}\n")], "{name}");
    }
}

#[test]
fn one_open_file_commits_batch_after_batch() {
    let m = Mnt::new();
    let s = m.stream("s");
    let mut file = appender(s.join("events")).unwrap();
    file.write_all(b"a\nb\n").unwrap();
    file.sync_all().unwrap();
    file.write_all(b"c\nd").unwrap();
    file.sync_data().unwrap();
    file.write_all(b"e\n").unwrap();
    close(file).unwrap();
    assert_eq!(batches(&s), ["a\nb\n", "c\nd\n", "e\n"]);
}

#[test]
fn newlines_split_and_nothing_else_does() {
    let m = Mnt::new();
    let s = m.stream("s");
    append(s.join("events"), "a\n\n\r\nb\r\n \0\n\nlast");
    let events: Vec<Vec<u8>> = (0..count(&s)).map(|n| read(s.join(format!("at/{n}")))).collect();
    assert_eq!(events, [&b"a"[..], b"", b"\r", b"b\r", b" \0", b"", b"last"]);
    assert_eq!(read(s.join("from/0")), b"a\n\n\r\nb\r\n \0\n\nlast\n");
}

#[test]
fn zero_events_are_a_success_and_nothing() {
    let m = Mnt::new();
    let s = m.stream("s");
    for name in ["events", "lines", "new", "from/0", "at/0"] {
        for (how, commit) in COMMITS {
            let file = OpenOptions::new().append(true).create(true).open(s.join(name)).unwrap();
            commit(file).unwrap_or_else(|e| panic!("{name} {how}: {e}"));
        }
        put_nothing(&s.join(name));
        assert_eq!(count(&s), 0, "{name}");
    }
    assert!(!s.join("at/0").exists());
}

/// A write of zero bytes, then fsync, then close.
fn put_nothing(path: &Path) {
    let file = OpenOptions::new().append(true).create(true).open(path).unwrap();
    write_once(&file, b"");
    file.sync_all().unwrap();
    close(file).unwrap();
}

#[test]
fn a_guard_without_events_promises_nothing() {
    let m = Mnt::new();
    let s = m.stream("s");
    let guarded = appender(s.join("from/0")).unwrap();
    append(s.join("events"), "other\n");
    guarded.sync_all().unwrap();
    close(guarded).unwrap();
    assert_eq!(batches(&s), ["other\n"]);
}

#[test]
fn after_a_commit_of_k_events_the_same_file_guards_n_plus_k() {
    let m = Mnt::new();
    let s = m.stream("s");
    let mut file = appender(s.join("from/next")).unwrap();
    file.write_all(b"a\nb\nc\n").unwrap();
    file.sync_all().unwrap();
    file.write_all(b"d\ne").unwrap();
    file.sync_data().unwrap();
    append(s.join("events"), "other\n");
    assert_eq!(errno_of(file.write_all(b"f\n").and_then(|()| file.sync_all())), libc::EEXIST);
    drop(file);
    assert_eq!(batches(&s), ["a\nb\nc\n", "d\ne\n", "other\n"]);
}

#[test]
fn a_stopped_daemon_drops_what_was_not_committed() {
    let m = Mnt::new();
    let s = m.stream("s");
    let mut file = appender(s.join("events")).unwrap();
    file.write_all(b"kept\n").unwrap();
    file.sync_all().unwrap();
    file.write_all(b"dropped\n").unwrap();
    m.stop();
    assert!(close(file).is_err(), "close must not acknowledge what a dead mount lost");
    m.restart();
    assert_eq!(batches(&s), ["kept\n"]);
}
