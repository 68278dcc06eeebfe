//! One event: `new` and `at/N`.

use super::batches;
use crate::harness::*;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

#[test]
fn new_is_one_event_committed_by_close() {
    let m = Mnt::new();
    let s = m.stream("s");
    let mut file = File::create(s.join("new")).unwrap();
    file.write_all(b"one\ntwo\n").unwrap();
    file.write_all(b"\nthree").unwrap();
    assert_eq!(count(&s), 0);
    close(file).unwrap();
    assert_eq!(count(&s), 1);
    assert_eq!(read(s.join("at/0")), b"one\ntwo\n\nthree");
}

#[test]
fn one_fsync_commits_the_one_event_and_a_write_after_it_is_einval() {
    let m = Mnt::new();
    let s = m.stream("s");
    for (n, name) in ["new", "at/1", "new"].into_iter().enumerate() {
        let mut file = File::create(s.join(name)).unwrap();
        file.write_all(b"one\ntwo").unwrap();
        file.sync_data().unwrap();
        assert_eq!(count(&s), n as u64 + 1);
        assert_eq!(errno_of(file.write(b"more")), libc::EINVAL, "{name}");
        drop(file);
        assert_eq!(count(&s), n as u64 + 1);
        assert_eq!(read(s.join(format!("at/{n}"))), b"one\ntwo");
    }
}

#[test]
fn a_second_fsync_of_the_one_event_and_its_close_are_no_ops() {
    let m = Mnt::new();
    let s = m.stream("s");
    let mut file = File::create(s.join("new")).unwrap();
    file.write_all(b"one").unwrap();
    file.sync_all().unwrap();
    file.sync_all().unwrap();
    close(file).unwrap();
    assert_eq!(batches(&s), ["one\n"]);
}

#[test]
fn tools_that_write_a_file_write_one_event() {
    let m = Mnt::new();
    let s = m.stream("s");
    let base = tempfile::TempDir::new().unwrap();
    let source = base.path().join("source");
    fs::write(&source, "two\nlines\n").unwrap();
    for (n, command) in [
        "cat SOURCE > new",
        "cat SOURCE >> new",
        "cp SOURCE new",
        "tee new < SOURCE",
        "tee -a new < SOURCE",
        "dd of=new bs=3 < SOURCE",
        "cp SOURCE at/6",
        "cat SOURCE > at/7",
        "tee at/8 < SOURCE",
    ]
    .into_iter()
    .enumerate()
    {
        ok(&sh("sh", &command.replace("SOURCE", source.to_str().unwrap()), &s));
        assert_eq!(count(&s), n as u64 + 1, "{command}");
        assert_eq!(read(s.join(format!("at/{n}"))), b"two\nlines\n", "{command}");
    }
}

#[test]
fn one_event_is_written_from_front_to_back() {
    let m = Mnt::new();
    let s = m.stream("s");
    let file = File::create(s.join("new")).unwrap();
    file.write_all_at(b"abc", 0).unwrap();
    file.write_all_at(b"def", 3).unwrap();
    close(file).unwrap();
    assert_eq!(read(s.join("at/0")), b"abcdef");
    for offset in [0, 2, 10] {
        let file = File::create(s.join("new")).unwrap();
        file.write_all_at(b"abc", 0).unwrap();
        assert_eq!(errno_of(file.write_all_at(b"x", offset)), libc::EINVAL, "at {offset}");
        assert_eq!(errno_of(close(file)), libc::EINVAL, "at {offset}");
        assert_eq!(count(&s), 1, "nothing of it is stored");
    }
}

#[test]
fn sync_flags_do_not_cut_the_one_event() {
    let m = Mnt::new();
    let s = m.stream("s");
    let mut options = OpenOptions::new();
    let mut file = options.write(true).custom_flags(libc::O_DSYNC).open(s.join("new")).unwrap();
    file.write_all(b"one\n").unwrap();
    file.write_all(b"two\n").unwrap();
    assert_eq!(count(&s), 0);
    close(file).unwrap();
    assert_eq!(read(s.join("at/0")), b"one\ntwo\n");
}
