//! When what a program wrote becomes events: fsync, close, and who may do either.
//!
//! Where processes share an open file they are Python's, forked from one small script that runs
//! in the stream's directory: this process has many threads and must not fork.

use crate::harness::*;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::process::Output;

/// The stream as its batches, each as `events` shows it: the events of one batch share their
/// commit time, those of two do only where they shared a sync, which takes two writers at once.
#[track_caller]
pub fn batches(stream: &Path) -> Vec<String> {
    let mut batches: Vec<String> = Vec::new();
    let mut last = None;
    for n in 0..count(stream) {
        let event = stream.join(format!("at/{n}"));
        let meta = fs::metadata(&event).unwrap();
        let time = Some((meta.mtime(), meta.mtime_nsec()));
        if last != time {
            batches.push(String::new());
            last = time;
        }
        let batch = batches.last_mut().unwrap();
        *batch += &text(&read(event));
        batch.push('\n');
    }
    assert_eq!(text(&read(stream.join("events"))), batches.concat());
    batches
}

/// Opens, writes, closes what is neither appended to nor there yet: `new` and `at/N`.
pub fn put(path: impl AsRef<Path>, bytes: impl AsRef<[u8]>) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes.as_ref())?;
    close(file)
}

/// What `python` scripts begin with.
const PRELUDE: &str = r"
import os, resource, signal, subprocess, sys, threading, time, traceback
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
signal.signal(signal.SIGINT, signal.SIG_DFL)
signal.alarm(120)  # nothing stays behind

def appender(path='events', flags=0):
    return os.open(path, os.O_WRONLY | os.O_APPEND | flags)

def count():
    return int(open('count').read())

def fork(body):
    pid = os.fork()
    if pid == 0:
        signal.alarm(120)
        try:
            body()
        except BaseException:
            traceback.print_exc()
            os._exit(70)
        os._exit(0)
    return pid

def wait(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def in_child(body):
    assert wait(fork(body)) == 0

def die(sig):
    if sig != signal.SIGKILL:
        signal.signal(sig, signal.SIG_DFL)
    os.kill(os.getpid(), sig)

class Gate:
    'One process waits until another has come this far.'
    def __init__(self):
        self.out, self.into = os.pipe()
    def open(self):
        os.write(self.into, b'.')
    def wait(self):
        os.read(self.out, 1)

def error(call, *args):
    'The name of the errno.'
    try:
        call(*args)
    except OSError as e:
        return os.strerror(e.errno)
";

/// Runs a Python script in the stream's directory.
pub fn python(stream: &Path, script: &str) -> Output {
    let first = script.lines().find(|line| !line.trim().is_empty()).unwrap_or("");
    let indent = first.len() - first.trim_start().len();
    let script: Vec<&str> = script.lines().map(|line| line.get(indent..).unwrap_or("")).collect();
    sh("python3 -I", &format!("{PRELUDE}\n{}", script.join("\n")), stream)
}

/// One write(2), all of it.
#[track_caller]
fn write_once(mut file: &File, bytes: &[u8]) {
    assert_eq!(file.write(bytes).unwrap(), bytes.len());
}

type Commit = fn(File) -> io::Result<()>;

/// The ways to say "now".
const COMMITS: [(&str, Commit); 3] =
    [("fsync", |file| file.sync_all()), ("fdatasync", |file| file.sync_data()), ("close", close)];

// Batches.

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

// Lines as they come: `lines`, O_SYNC, O_DSYNC.

const LINE_BY_LINE: [(&str, i32); 3] =
    [("lines", 0), ("events", libc::O_SYNC), ("events", libc::O_DSYNC)];

fn line_appender(stream: &Path, (name, flags): (&str, i32)) -> File {
    let mut options = OpenOptions::new();
    options.write(true).custom_flags(libc::O_APPEND | flags);
    options.open(stream.join(name)).unwrap()
}

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

// Who commits on close.

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

// A failed write.

/// A disk on which there is no room for what [`too_much`] is, and a mount of a store on it.
pub fn small() -> (SmallDisk, Mnt) {
    let disk = SmallDisk::new(24);
    let store = disk.path().join("store");
    fs::create_dir(&store).unwrap();
    let m = Mnt::on(&store, &[]);
    (disk, m)
}

/// More than a small disk has room for.
pub fn too_much() -> Vec<u8> {
    vec![b'x'; 32 << 20]
}

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

// Refused.

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

// One event: `new` and `at/N`.

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
