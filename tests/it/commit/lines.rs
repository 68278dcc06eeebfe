//! Lines as they come: `lines`, O_SYNC, O_DSYNC; and writes that the kernel splits.

use super::{LINE_BY_LINE, batches, line_appender, write_once};
use crate::harness::*;
use std::fs;

#[test]
fn each_write_commits_its_complete_lines() {
    let m = Mnt::new();
    for (n, how) in LINE_BY_LINE.into_iter().enumerate() {
        let s = m.stream(format!("s{n}"));
        let file = line_appender(&s, how);
        for (write, events) in [("a\nb\nto", 2), ("r", 2), ("n\n", 3), ("\n", 4), ("last", 4)] {
            write_once(&file, write.as_bytes());
            assert_eq!(count(&s), events, "{how:?} {write:?}");
        }
        close(file).unwrap();
        assert_eq!(batches(&s), ["a\nb\n", "torn\n", "\n", "last\n"], "{how:?}");
    }
}

/// Lines of a length which divides no power of two, numbered, above 5 MiB together.
fn five_mib() -> Vec<u8> {
    (0..=(5 << 20) / 101).flat_map(|n| format!("{n:0100}\n").into_bytes()).collect()
}

#[test]
fn a_large_write_which_the_kernel_splits_is_still_one_batch() {
    let m = Mnt::new();
    let s = m.stream("s");
    let lines = five_mib();
    let file = appender(s.join("events")).unwrap();
    write_once(&file, &lines);
    assert_eq!(count(&s), 0);
    close(file).unwrap();
    assert_eq!(count(&s), lines.len() as u64 / 101);
    assert!(read(s.join("events")) == lines);
    let time = |n: u64| fs::metadata(s.join(format!("at/{n}"))).unwrap().modified().unwrap();
    assert_eq!(time(0), time(count(&s) - 1));
}

#[test]
fn a_large_write_tears_no_line_where_each_write_commits() {
    let m = Mnt::new();
    let mut lines = five_mib();
    let complete = lines.len() as u64 / 101;
    lines.extend(b"torn");
    for (n, how) in LINE_BY_LINE.into_iter().enumerate() {
        let s = m.stream(format!("s{n}"));
        let file = line_appender(&s, how);
        write_once(&file, &lines);
        assert_eq!(count(&s), complete, "{how:?}: the complete lines, before write returns");
        write_once(&file, b" no more\n");
        assert_eq!(count(&s), complete + 1, "{how:?}");
        close(file).unwrap();
        let whole = [&lines[..], b" no more\n"].concat();
        assert!(read(s.join("events")) == whole, "{how:?}: what was written reads back");
    }
}
