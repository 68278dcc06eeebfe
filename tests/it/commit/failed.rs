//! A failed write: its batch is dropped, and it is told until a commit says so, too.

use super::{COMMITS, LINE_BY_LINE, batches, line_appender, python, small, too_much};
use crate::harness::*;
use std::io::Write;

#[test]
fn a_failed_write_drops_its_batch_and_fails_alike_until_a_commit_says_so_too() {
    let (_disk, m) = small();
    for (name, commit) in &COMMITS[..2] {
        let s = m.stream(name);
        let mut file = appender(s.join("events")).unwrap();
        file.write_all(b"first\n").unwrap();
        file.write_all(b"second\nand ").unwrap();
        assert_eq!(errno_of(file.write_all(&too_much())), libc::ENOSPC);
        for _ in 0..2 {
            assert_eq!(errno_of(file.write_all(b"fourth\n")), libc::ENOSPC);
        }
        assert_eq!(errno_of(commit(file.try_clone().unwrap())), libc::ENOSPC, "{name}");
        drop(file);
        assert_eq!(count(&s), 0, "{name}");
    }
    let s = m.stream("close");
    let mut file = appender(s.join("events")).unwrap();
    file.write_all(b"first\n").unwrap();
    assert_eq!(errno_of(file.write_all(&too_much())), libc::ENOSPC);
    assert_eq!(errno_of(close(file)), libc::ENOSPC);
    assert_eq!(count(&s), 0);
}

#[test]
fn after_the_failure_was_said_the_same_open_file_works() {
    let (_disk, m) = small();
    let ways = ["os.fsync(fd)", "os.fdatasync(fd)", "os.close(os.dup(fd))"];
    for (n, said_by) in ways.into_iter().enumerate() {
        let s = m.stream(format!("s{n}"));
        let script = format!(
            r"
            fd = appender()
            def write(data):
                while data: data = data[os.write(fd, data):]
            write(b'first\n')
            assert error(write, b'x' * (32 << 20)) == 'No space left on device'
            assert error(write, b'fourth\n') == 'No space left on device'
            assert error(lambda: {said_by}) == 'No space left on device'
            write(b'fifth\n')
            os.close(fd)
            "
        );
        ok(&python(&s, &script));
        assert_eq!(batches(&s), ["fifth\n"], "{said_by}");
    }
}

#[test]
fn a_child_which_never_wrote_does_not_clear_a_failure() {
    let (_disk, m) = small();
    let s = m.stream("s");
    ok(&python(
        &s,
        r"
        fd = appender()
        def write(data):
            while data: data = data[os.write(fd, data):]
        write(b'first\n')
        assert error(write, b'x' * (32 << 20)) == 'No space left on device'
        in_child(lambda: None)
        assert error(write, b'fourth\n') == 'No space left on device'
        assert error(os.close, fd) == 'No space left on device'
        ",
    ));
    assert_eq!(count(&s), 0);
}

#[test]
fn complete_lines_which_were_committed_stay_when_a_later_one_fails() {
    let (_disk, m) = small();
    for (n, how) in LINE_BY_LINE.into_iter().enumerate() {
        let s = m.stream(format!("s{n}"));
        let mut file = line_appender(&s, how);
        file.write_all(b"kept\n").unwrap();
        assert_eq!(errno_of(file.write_all(&too_much())), libc::ENOSPC, "{how:?}");
        // Nothing is pending where each write commits by itself.
        file.write_all(b"works again\n").unwrap();
        file.sync_all().unwrap();
        close(file).unwrap();
        assert_eq!(batches(&s), ["kept\n", "works again\n"], "{how:?}");
    }
}
