//! What is refused: to write anywhere but at the end, and to truncate.

use super::batches;
use crate::harness::*;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

#[test]
fn writing_without_append_is_eperm_but_at_the_end() {
    let m = Mnt::new();
    let s = m.stream("s");
    append(s.join("events"), "kept\n");
    for (name, end) in [("events", 5), ("lines", 5), ("from/1", 0), ("from/next", 0)] {
        for flags in [0, libc::O_TRUNC, libc::O_CREAT, libc::O_CREAT | libc::O_TRUNC] {
            for reading_too in [false, true] {
                let mut options = OpenOptions::new();
                options.read(reading_too).write(true).custom_flags(flags);
                let opened = options.open(s.join(name));
                if flags & libc::O_TRUNC != 0 {
                    assert_eq!(errno_of(opened), libc::EPERM, "{name} {flags:o} {reading_too}");
                    continue;
                }
                for at in [0, end - 1, end + 1, 1i64 << 40] {
                    let file = options.open(s.join(name)).unwrap();
                    if at >= 0 && at != end {
                        let written = file.write_at(b"x\n", at as u64);
                        assert_eq!(errno_of(written), libc::EPERM, "{name} {flags:o} {at}");
                    }
                }
            }
        }
    }
    assert_eq!(batches(&s), ["kept\n"]);
}

#[test]
fn truncate_is_eperm_by_open_by_path_and_by_descriptor() {
    let m = Mnt::new();
    let s = m.stream("s");
    append(s.join("events"), "kept\n");
    for name in ["events", "lines", "from/1"] {
        let mut options = OpenOptions::new();
        let append = options.write(true).custom_flags(libc::O_APPEND | libc::O_TRUNC);
        assert_eq!(errno_of(append.open(s.join(name))), libc::EPERM, "{name} open");
        let file = appender(s.join(name)).unwrap();
        assert_eq!(errno_of(file.set_len(0)), libc::EPERM, "{name} ftruncate");
        assert_eq!(errno_of(file.set_len(1 << 20)), libc::EPERM, "{name} ftruncate");
        let truncate = format!("import os; os.truncate('{name}', 0)");
        assert!(
            text(&sh("python3 -I", &truncate, &s).stderr).contains("PermissionError"),
            "{name}"
        );
    }
    assert_eq!(batches(&s), ["kept\n"]);
}

#[test]
fn a_refused_truncate_does_not_hurt_the_batch() {
    let m = Mnt::new();
    let s = m.stream("s");
    let mut file = appender(s.join("events")).unwrap();
    file.write_all(b"one\n").unwrap();
    assert_eq!(errno_of(file.set_len(0)), libc::EPERM);
    file.write_all(b"two\n").unwrap();
    close(file).unwrap();
    assert_eq!(batches(&s), ["one\ntwo\n"]);
}
