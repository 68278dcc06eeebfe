//! Horizons: the count, the numbers up to it, the named links, and `@` with a time.

use super::link;
use crate::harness::*;
use std::fs::{self, File};
use std::io::Read;

/// Nanoseconds as the decimal seconds of an `@` link.
fn at(ns: i64) -> String {
    format!("@{}.{:09}", ns / 1_000_000_000, ns % 1_000_000_000)
}

#[test]
fn count_is_decimal_with_a_newline() {
    let m = Mnt::new();
    let s = m.stream("s");
    assert_eq!(read(s.join("count")), b"0\n");
    append(s.join("events"), "x\n".repeat(9));
    assert_eq!(read(s.join("count")), b"9\n");
    append(s.join("events"), "x\n");
    assert_eq!(read(s.join("count")), b"10\n");
}

#[test]
fn named_links_say_where_they_point() {
    let m = Mnt::new();
    let s = m.stream("s");
    for (events, newest, next) in [("", "0", "0"), ("a\n", "0", "1"), ("b\nc\n", "2", "3")] {
        append(s.join("events"), events);
        for dir in ["from", "at"] {
            let d = s.join(dir);
            assert_eq!(link(d.join("beginning")), "0");
            assert_eq!(link(d.join("newest")), newest);
            assert_eq!(link(d.join("next")), next);
        }
    }
    assert_eq!(read(s.join("from/beginning")), b"a\nb\nc\n");
    assert_eq!(read(s.join("from/newest")), b"c\n");
    assert_eq!(read(s.join("from/next")), b"");
    assert_eq!(read(s.join("at/newest")), b"c");
}

#[test]
fn an_open_file_never_moves() {
    let m = Mnt::new();
    let s = m.stream("s");
    append(s.join("events"), "a\nb\n");
    let mut newest = File::open(s.join("from/newest")).unwrap();
    append(s.join("events"), "c\n");
    let mut seen = String::new();
    newest.read_to_string(&mut seen).unwrap();
    assert_eq!(seen, "b\nc\n");
}

#[test]
fn at_seconds_is_the_first_event_from_then_on() {
    let m = Mnt::new();
    let s = m.stream("s");
    for dir in ["from", "at"] {
        assert_eq!(link(s.join(dir).join("@0")), "0", "empty stream");
    }
    append(s.join("events"), "a\nb\n");
    append(s.join("events"), "c\n");
    let (first, second) = (mtime(s.join("at/0")), mtime(s.join("at/2")));
    for dir in ["from", "at"] {
        let to = |name: String| link(s.join(dir).join(name));
        assert_eq!(to("@0".into()), "0");
        assert_eq!(to("@1.5".into()), "0");
        assert_eq!(to(at(first - 1)), "0", "before the first");
        assert_eq!(to(at(first)), "0", "at the first");
        assert_eq!(to(at(first + 1)), "2", "after the first");
        assert_eq!(to(at(second)), "2", "at the last");
        assert_eq!(to(at(second + 1)), "3", "after the last");
        assert_eq!(to(format!("@{}", first / 1_000_000_000)), "0", "whole seconds");
        assert_eq!(to("@9999999999".into()), "3", "far ahead");
        for garbage in ["@", "@-1", "@+1", "@1.2.3", "@x", "@1x", "@ 1", "@1e9", "@."] {
            assert_eq!(
                errno_of(fs::read_link(s.join(dir).join(garbage))),
                libc::ENOENT,
                "{garbage}"
            );
        }
    }
    assert_eq!(read(s.join("from").join(at(second))), b"c\n");
    assert_eq!(ok(&sh("sh", "cat s/from/@$(date -d '1 hour ago' +%s)", m.path())), "a\nb\nc\n");
}

#[test]
fn a_horizon_is_a_plain_decimal_up_to_the_count() {
    let m = Mnt::new();
    let s = m.stream("s");
    append(s.join("events"), "a\nb\n");
    for (horizon, want) in [("0", "a\nb\n"), ("1", "b\n"), ("2", "")] {
        assert_eq!(read(s.join("from").join(horizon)), want.as_bytes());
    }
    let beyond = ["3", "18446744073709551615", "18446744073709551616", "99999999999999999999999"];
    for name in
        ["00", "01", "+1", "-1", "-0", "1 ", " 1", "1.0", "0x1", "end"].iter().chain(&beyond)
    {
        for dir in ["from", "at"] {
            let path = s.join(dir).join(name);
            assert_eq!(errno_of(File::open(&path)), libc::ENOENT, "{path:?}");
        }
    }
    assert_eq!(read(s.join("at/1")), b"b");
    assert_eq!(errno_of(fs::metadata(s.join("at/2"))), libc::ENOENT);
}
