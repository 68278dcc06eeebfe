//! An open file that several hold, by dup(2), fork(2) or execve(2): who commits on close.

use super::{batches, python};
use crate::harness::*;

#[test]
fn a_duplicate_closed_before_the_first_write_is_a_no_op() {
    let m = Mnt::new();
    let s = m.stream("s");
    ok(&python(
        &s,
        r"
        fd = appender()
        os.close(os.dup(fd))
        os.dup2(fd, 9); os.close(9)
        os.write(fd, b'one\ntwo\n')
        os.close(fd)
        ",
    ));
    assert_eq!(batches(&s), ["one\ntwo\n"]);
}

#[test]
fn a_closed_duplicate_commits_what_its_owner_wrote_last() {
    let m = Mnt::new();
    let s = m.stream("s");
    ok(&python(
        &s,
        r"
        fd = appender()
        os.write(fd, b'by dup')
        os.close(os.dup(fd))
        assert count() == 1
        os.write(fd, b'by dup2')
        os.dup2(fd, 9); os.dup2(0, 9)
        assert count() == 2
        os.write(fd, b'by close')
        os.close(fd)
        ",
    ));
    assert_eq!(batches(&s), ["by dup\n", "by dup2\n", "by close\n"]);
}

#[test]
fn a_child_which_never_wrote_cuts_neither_line_nor_batch() {
    let m = Mnt::new();
    let s = m.stream("s");
    for child in [
        "in_child(lambda: None)",
        "in_child(lambda: os.close(fd))",
        "in_child(lambda: os.close(os.dup(fd)))",
        "in_child(lambda: os.execvp('true', ['true']))",
        "subprocess.run(['true'], check=True)",
        "subprocess.run(['true'], check=True, pass_fds=[fd])",
        "subprocess.run(['sh', '-c', 'true; (true); true | true'], check=True, stdout=fd)",
        "os.system('true')",
        "pid = fork(lambda: time.sleep(60)); os.kill(pid, signal.SIGKILL); wait(pid)",
    ] {
        let before = count(&s);
        let script = format!(
            r"
            fd = appender()
            {child}
            os.write(fd, b'one\ntw')
            {child}
            assert count() == {before}
            os.write(fd, b'o\n')
            {child}
            assert count() == {before}
            os.close(fd)
            "
        );
        ok(&python(&s, &script));
        assert_eq!(batches(&s).last().unwrap(), "one\ntwo\n", "{child}");
        assert_eq!(count(&s), before + 2, "{child}");
    }
}

#[test]
fn a_child_which_wrote_last_commits_all_when_it_ends() {
    let m = Mnt::new();
    let ends = ["os._exit(0)", "os._exit(3)", "os.close(fd)", "os.execvp('true', ['true'])"];
    for (n, end) in ends.into_iter().enumerate() {
        let s = m.stream(format!("s{n}"));
        let script = format!(
            r"
            fd = appender()
            os.write(fd, b'parent\n')
            def body():
                os.write(fd, b'child\ntorn')
                {end}
            wait(fork(body))
            assert count() == 3
            os.write(fd, b'parent again\n')
            assert count() == 3
            os.close(fd)
            "
        );
        ok(&python(&s, &script));
        assert_eq!(batches(&s), ["parent\nchild\ntorn\n", "parent again\n"], "{end}");
    }
}

#[test]
fn a_child_which_wrote_but_not_last_commits_complete_lines() {
    let m = Mnt::new();
    let s = m.stream("s");
    ok(&python(
        &s,
        r"
        fd = appender()
        wrote, may_end = Gate(), Gate()
        def body():
            os.write(fd, b'child\n')
            wrote.open()
            may_end.wait()
        child = fork(body)
        wrote.wait()
        os.write(fd, b'parent\ntor')
        may_end.open()
        assert wait(child) == 0
        assert count() == 2
        os.write(fd, b'n\n')
        os.close(fd)
        ",
    ));
    assert_eq!(batches(&s), ["child\nparent\n", "torn\n"]);
}

#[test]
fn what_a_parent_wrote_last_its_close_commits_and_the_child_goes_on() {
    let m = Mnt::new();
    let s = m.stream("s");
    ok(&python(
        &s,
        r"
        fd = appender()
        os.write(fd, b'parent')
        may_write = Gate()
        def body():
            may_write.wait()
            os.write(fd, b'child')
        child = fork(body)
        os.close(fd)
        assert count() == 1
        may_write.open()
        assert wait(child) == 0
        ",
    ));
    assert_eq!(batches(&s), ["parent\n", "child\n"]);
}

#[test]
fn fsync_by_any_holder_commits_what_all_wrote() {
    let m = Mnt::new();
    let s = m.stream("s");
    ok(&python(
        &s,
        r"
        fd = appender()
        os.write(fd, b'parent\n')
        in_child(lambda: os.fsync(fd))
        assert count() == 1
        os.write(fd, b'more\n')
        os.close(fd)
        ",
    ));
    assert_eq!(batches(&s), ["parent\n", "more\n"]);
}

#[test]
fn exec_commits_a_batch_it_closes_and_keeps_one_it_passes_on() {
    let m = Mnt::new();
    let closed = m.stream("closed");
    let said = ok(&python(
        &closed,
        r"
        fd = appender()
        os.write(fd, b'one\ntw')
        os.execvp('cat', ['cat', 'count'])
        ",
    ));
    assert_eq!(said, "2\n");
    assert_eq!(batches(&closed), ["one\ntw\n"]);
    let kept = m.stream("kept");
    let said = ok(&python(
        &kept,
        r"
        fd = appender()
        os.write(fd, b'one\ntw')
        os.set_inheritable(fd, True)
        os.execvp('sh', ['sh', '-c', f'cat count; echo o >&{fd}'])
        ",
    ));
    assert_eq!(said, "0\n");
    assert_eq!(batches(&kept), ["one\ntwo\n"]);
}
