//! Events of any bytes and of any size, exactly as they were given.

use crate::commit::put;
use crate::harness::*;
use std::fs;
use std::path::Path;

/// More than fits anywhere on the way.
const LARGE: usize = (16 << 20) + 1;

/// So many bytes of every value, newlines and NULs among them, not the same in every 256.
fn bytes(len: usize) -> Vec<u8> {
    (0..len as u64).map(|n| (n.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8).collect()
}

/// Event `n` is these bytes exactly, by `at` and by `from`.
#[track_caller]
fn is(stream: &Path, n: u64, event: &[u8]) {
    let at = stream.join(format!("at/{n}"));
    assert_eq!(fs::metadata(&at).unwrap().len(), event.len() as u64);
    assert!(read(at) == event, "at/{n} differs");
    let from = stream.join(format!("from/{n}"));
    assert_eq!(fs::metadata(&from).unwrap().len(), event.len() as u64 + 1);
    assert!(read(from) == [event, b"\n"].concat(), "from/{n} differs");
}

#[test]
fn an_event_may_hold_any_bytes() {
    let m = Mnt::new();
    let s = m.stream("s");
    let every: Vec<u8> = (0..=255).collect();
    for event in [
        &b"\n"[..],
        b"\n\n\n",
        b"\0",
        b"\0\0\n\0",
        b"\nleading and trailing\n",
        b"no newline",
        b"\r\n",
        b"\xff\xfe\x80",
        &every,
        &every.repeat(1000),
    ] {
        let n = count(&s);
        put(s.join("new"), event).unwrap();
        is(&s, n, event);
        put(s.join(format!("at/{}", n + 1)), event).unwrap();
        is(&s, n + 1, event);
    }
}

#[test]
fn an_event_may_have_any_size() {
    let m = Mnt::new();
    let s = m.stream("s");
    for len in [1, 2, 4080, 4095, 4096, 4097, 65536, 1 << 20, (1 << 20) + 1, LARGE - 2, LARGE] {
        let (n, event) = (count(&s), bytes(len));
        put(s.join("new"), &event).unwrap();
        is(&s, n, &event);
        put(s.join(format!("at/{}", n + 1)), &event).unwrap();
        is(&s, n + 1, &event);
    }
}

#[test]
fn events_and_lines_take_a_line_of_any_size() {
    let m = Mnt::new();
    for name in ["events", "lines", "from/next"] {
        let s = m.stream(name.replace('/', "-"));
        let line = vec![b'x'; LARGE];
        append(s.join(name), [&b"before\n"[..], &line, b"\nafter\n"].concat());
        append(s.join(name), &line); // without its newline
        assert_eq!(count(&s), 4, "{name}");
        assert_eq!(read(s.join("at/0")), b"before");
        assert!(read(s.join("at/1")) == line, "{name}");
        assert_eq!(read(s.join("at/2")), b"after");
        is(&s, 3, &line);
    }
}

#[test]
fn binary_events_among_lines_stay_apart() {
    let m = Mnt::new();
    let s = m.stream("s");
    append(s.join("events"), "line\n");
    put(s.join("new"), "two\nlines\n").unwrap();
    append(s.join("events"), "line\n");
    assert_eq!(read(s.join("from/0")), b"line\ntwo\nlines\n\nline\n");
    assert_eq!(read(s.join("from/2")), b"line\n");
    assert_eq!(read(s.join("at/1")), b"two\nlines\n");
}
