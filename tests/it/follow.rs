//! Waiting for the next event: follow/H, and poll(2) on what grows.

use crate::commit::python;
use crate::format;
use crate::harness::*;
use crate::languages::need;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// What the issue gives 250 ms, on a machine that is busy with other tests.
const SOON: Duration = Duration::from_secs(2);
/// Long enough for a program that was just started to read what there is.
const A_WHILE: Duration = Duration::from_millis(1500);

const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// A program that runs on, and the lines it prints, as they come.
pub struct Follower {
    pub child: Child,
    lines: Receiver<(Instant, String)>,
}

impl Follower {
    pub fn start(dir: &Path, command: &[&str]) -> Follower {
        let mut process = Command::new(command[0]);
        process.args(&command[1..]).current_dir(dir);
        // In a group that is not orphaned: only there does a terminal's Ctrl-Z stop anything.
        process.process_group(0).env("LC_ALL", "C.UTF-8");
        process.stdin(Stdio::null()).stdout(Stdio::piped());
        let spawned = process.spawn();
        let mut child = spawned.unwrap_or_else(|e| panic!("{}: {e}", command[0]));
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                let _ = sender.send((Instant::now(), line));
            }
        });
        Follower { child, lines }
    }

    pub fn sh(dir: &Path, script: &str) -> Follower {
        Follower::start(dir, &["sh", "-c", script])
    }

    fn cat(stream: &Path, file: &str) -> Follower {
        let cat = Follower::start(stream, &["cat", file]);
        sleep(A_WHILE);
        cat
    }

    /// The next line, and when it came.
    #[track_caller]
    pub fn next(&self) -> (Instant, String) {
        let line = self.lines.recv_timeout(Duration::from_secs(20));
        line.expect("no line within 20 s")
    }

    #[track_caller]
    pub fn prints(&self, expected: &[&str]) {
        for line in expected {
            assert_eq!(self.next().1, *line);
        }
    }

    /// Nothing is printed for as long, and the program waits.
    #[track_caller]
    fn is_quiet(&mut self, time: Duration) {
        let line = self.lines.recv_timeout(time);
        assert_eq!(line, Err(RecvTimeoutError::Timeout));
        assert_eq!(self.child.try_wait().unwrap(), None, "it ended");
    }

    pub fn signal(&self, signal: i32) {
        assert_eq!(unsafe { libc::kill(self.child.id().cast_signed(), signal) }, 0);
    }

    /// The letter of /proc/PID/status.
    pub fn state(&self) -> char {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        status.split("State:\t").nth(1).unwrap().chars().next().unwrap()
    }

    #[track_caller]
    fn ends(&mut self) -> ExitStatus {
        let status = wait(&mut self.child, SOON);
        status.expect("it must end soon")
    }

    /// It came to the end of the file.
    #[track_caller]
    pub fn ends_well(&mut self) {
        let status = self.ends();
        assert!(status.success(), "{status}");
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.child.kill();
        // Not `wait` without end: if it cannot be killed, that is a failure and not a hang.
        if wait(&mut self.child, Duration::from_secs(5)).is_none() {
            eprintln!("{} cannot be killed", self.child.id());
        }
    }
}

/// A stream of three events.
fn three(m: &Mnt) -> std::path::PathBuf {
    let s = m.stream("s");
    append(s.join("events"), "0\n1\n2\n");
    s
}

/// Stream `s` of the daemon with the events 0, 1, 2, ..., each a commit of its own that begins on a
/// page which the one before does not begin on.
fn pages(m: &Mnt, events: u64) -> std::path::PathBuf {
    let s = m.stream("s");
    for n in 0..events {
        append(s.join("events"), page(n) + "\n");
    }
    s
}

fn page(n: u64) -> String {
    format!("{n:0>5000}")
}

/// Where in the log of `s` event `n` begins, when each is a commit.
fn begins(m: &Mnt, n: u64) -> u64 {
    let blocks = format::blocks(&read(m.store().join("s/log")));
    let first = blocks.iter().find(|b| b.index == n && b.flags & format::FIRST != 0);
    first.unwrap().at as u64
}

/// The stream of three, and somebody who has read it and waits for more.
fn waiting(m: &Mnt) -> (std::path::PathBuf, Follower) {
    let s = three(m);
    let cat = Follower::cat(&s, "follow/beginning");
    cat.prints(&["0", "1", "2"]);
    (s, cat)
}

fn threads(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/task")).unwrap().count()
}

pub fn status_kib(pid: u32, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|l| l.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// The CPU time a process has used, in seconds.
fn cpu(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    let ticks = |n: usize| fields[n - 3].parse::<f64>().unwrap();
    (ticks(14) + ticks(15)) / unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as f64
}

// What a follower gets.

#[test]
fn each_horizon_gives_what_is_there_and_then_each_commit() {
    let m = Mnt::new();
    for (horizon, there) in [
        ("beginning", &["0", "1", "2"][..]),
        ("newest", &["2"]),
        ("next", &[]),
        ("0", &["0", "1", "2"]),
        ("1", &["1", "2"]),
        ("3", &[]),
        ("@0", &["0", "1", "2"]),
        ("@9999999999", &[]),
    ] {
        let s = m.stream(format!("s{horizon}"));
        append(s.join("events"), "0\n1\n2\n");
        let mut cat = Follower::cat(&s, &format!("follow/{horizon}"));
        cat.prints(there);
        cat.is_quiet(ms(50));
        append(s.join("events"), "3\n4\n");
        cat.prints(&["3", "4"]);
        append(s.join("new"), "5");
        append(s.join("lines"), "6\n");
        append(s.join("from/next"), "7\n");
        cat.prints(&["5", "6", "7"]);
        cat.is_quiet(ms(50));
    }
}

#[test]
fn an_empty_stream_is_followed_from_its_first_event() {
    let m = Mnt::new();
    for horizon in ["0", "newest", "next", "beginning", "@0"] {
        let s = m.stream(format!("s{horizon}"));
        let cat = Follower::cat(&s, &format!("follow/{horizon}"));
        append(s.join("events"), "first\n");
        cat.prints(&["first"]);
    }
}

#[test]
fn a_batch_is_delivered_when_it_is_committed() {
    let m = Mnt::new();
    let s = m.stream("s");
    let mut cat = Follower::cat(&s, "follow/0");
    let file = appender(s.join("events")).unwrap();
    io::Write::write_all(&mut &file, b"one\ntwo\n").unwrap();
    cat.is_quiet(A_WHILE);
    file.sync_all().unwrap();
    cat.prints(&["one", "two"]);
}

#[test]
fn small_reads_wait_at_the_end_only_and_there_are_no_places() {
    let m = Mnt::new();
    let s = three(&m);
    let file = File::open(s.join("follow/1")).unwrap();
    let mut byte = [0];
    for expected in b"1\n2\n" {
        (&file).read_exact(&mut byte).unwrap();
        assert_eq!(byte[0], *expected);
    }
    assert_eq!((&file).read(&mut []).unwrap(), 0, "nothing asked, nothing waited for");
    assert_eq!(errno_of(file.read_at(&mut byte, 2)), libc::ESPIPE);
    assert_eq!(errno_of((&file).rewind()), libc::ESPIPE);
    let events = s.join("events");
    let later = std::thread::spawn(move || {
        sleep(A_WHILE);
        append(events, "3\n");
    });
    let mut rest = [0; 100];
    assert_eq!((&file).read(&mut rest).unwrap(), 2);
    assert_eq!(&rest[..2], b"3\n");
    later.join().unwrap();
}

#[test]
fn a_file_opened_with_nonblock_is_told_to_come_again() {
    let m = Mnt::new();
    let s = three(&m);
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(libc::O_NONBLOCK);
    let mut file = options.open(s.join("follow/newest")).unwrap();
    let mut bytes = [0; 100];
    assert_eq!(file.read(&mut bytes).unwrap(), 2);
    assert_eq!(errno_of(file.read(&mut bytes)), libc::EAGAIN);
    append(s.join("events"), "3\n");
    assert_eq!(file.read(&mut bytes).unwrap(), 2);
    assert_eq!(errno_of(file.read(&mut bytes)), libc::EAGAIN);
    // events and from/ have an end in any case.
    let mut file = options.open(s.join("from/next")).unwrap();
    assert_eq!(file.read(&mut bytes).unwrap(), 0);
}

#[test]
fn nonblock_may_be_set_on_an_open_file() {
    let m = Mnt::new();
    let s = m.stream("s");
    ok(&python(
        &s,
        r"
        import fcntl
        fd = os.open('follow/0', os.O_RDONLY)
        fcntl.fcntl(fd, fcntl.F_SETFL, os.O_NONBLOCK)
        assert error(os.read, fd, 9) == 'Resource temporarily unavailable'
        ",
    ));
}

#[test]
fn a_follower_says_no_size_and_takes_no_writes() {
    let m = Mnt::new();
    let s = three(&m);
    let path = s.join("follow/0");
    let meta = fs::metadata(&path).unwrap();
    assert!(meta.is_file());
    // Not 0, nor what there is: see `who_has_the_kernel_copy_waits`, and `java_waits`.
    assert_eq!(meta.len(), 1);
    let next = File::open(s.join("follow/next")).unwrap();
    assert_eq!(next.metadata().unwrap().len(), 1);
    assert_eq!(errno_of(appender(&path)), libc::EPERM);
    let mut options = OpenOptions::new();
    assert_eq!(errno_of(options.write(true).open(&path)), libc::EPERM);
    assert_eq!(errno_of(options.read(true).open(&path)), libc::EPERM);
    assert_eq!(errno_of(options.create(true).open(s.join("follow/3"))), libc::EPERM);
    assert_eq!(errno_of(File::open(s.join("follow/4"))), libc::ENOENT);
    assert!(names(&s.join("follow")).is_empty());
}

#[test]
fn cat_into_a_file_follows() {
    // GNU cat copies in the kernel where it can, and only as much as a file's size.
    let m = Mnt::new();
    let s = three(&m);
    let copy = m.store().parent().unwrap().join("copy");
    let _cat = Follower::sh(&s, &format!("exec cat follow/0 > {}", copy.display()));
    let holds = |bytes: &[u8]| fs::read(&copy).is_ok_and(|copied| copied == bytes);
    eventually("what is there is copied", || holds(b"0\n1\n2\n"));
    append(s.join("events"), "3\n");
    eventually("what comes is copied", || holds(b"0\n1\n2\n3\n"));
    append(s.join("events"), "4\n");
    eventually("all that comes is copied", || holds(b"0\n1\n2\n3\n4\n"));
}

#[test]
fn a_commit_through_another_mount_arrives() {
    let m = Mnt::new();
    let s = three(&m);
    let other = Mnt::on(m.store(), &[]);
    let cat = Follower::cat(&s, "follow/next");
    for n in 0..5 {
        let start = Instant::now();
        append(other.path().join("s/events"), format!("{n}\n"));
        let (when, line) = cat.next();
        assert_eq!(line, n.to_string());
        assert!(when - start < SOON, "{:?}", when - start);
        eprintln!("another mount's commit after {:?}", when - start);
    }
}

#[test]
fn a_read_only_mount_follows() {
    let m = Mnt::new();
    let s = three(&m);
    let other = Mnt::on(m.store(), &["-o", "ro"]);
    let cat = Follower::cat(&other.path().join("s"), "follow/next");
    append(s.join("events"), "3\n");
    cat.prints(&["3"]);
}

/// What others append with an index that comes and goes is news, too.
#[test]
fn a_read_only_mount_follows_without_an_index() {
    let m = Mnt::new();
    let s = three(&m);
    let other = Mnt::on(m.store(), &["-o", "ro"]);
    let cat = Follower::cat(&other.path().join("s"), "follow/2");
    cat.prints(&["2"]);
    for n in 3..6 {
        fs::remove_file(m.store().join("s/index")).unwrap();
        append(s.join("events"), format!("{n}\n"));
        fs::remove_file(m.store().join("s/index")).unwrap();
        cat.prints(&[&n.to_string()]);
        assert_eq!(count(&s), n + 1);
    }
}

// Signals.

const WAITING: [&str; 2] = [
    "ulimit -c 0; exec cat follow/next",
    "ulimit -c 0; exec python3 -ISc '
import signal
signal.signal(signal.SIGINT, signal.SIG_DFL)
print(open(\"follow/next\").readline())'",
];

#[test]
fn signals_end_a_waiting_reader() {
    let m = Mnt::new();
    let s = three(&m);
    for program in WAITING {
        for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGKILL, libc::SIGQUIT, libc::SIGHUP] {
            let mut reader = Follower::sh(&s, program);
            reader.is_quiet(A_WHILE);
            let start = Instant::now();
            reader.signal(signal);
            assert_eq!(reader.ends().signal(), Some(signal), "{program}");
            eprintln!("signal {signal} after {:?}", start.elapsed());
        }
    }
}

/// Its index is gone: whoever looks at it would have to recover it, and waits for that.
#[test]
fn a_stream_that_cannot_be_opened_holds_up_no_other_wait() {
    let m = Mnt::new();
    let [s, t] = ["s", "t"].map(|name| m.stream(name));
    let mut stuck = Follower::cat(&s, "follow/next");
    let mut others = [(), ()].map(|()| Follower::cat(&t, "follow/next"));
    stuck.is_quiet(A_WHILE);
    for reader in &mut others {
        reader.is_quiet(A_WHILE);
    }
    append(s.join("events"), "first\n");
    stuck.prints(&["first"]);
    stuck.is_quiet(A_WHILE);
    let log = File::open(m.store().join("s/log")).unwrap();
    log.lock().unwrap();
    fs::remove_file(m.store().join("s/index")).unwrap();
    std::thread::sleep(A_WHILE);
    // One more mount's events come, too.
    let second = Mnt::on(m.store(), &[]);
    append(second.path().join("t/events"), "more\n");
    others[1].prints(&["more"]);
    others[0].prints(&["more"]);
    others[0].signal(libc::SIGINT);
    assert_eq!(others[0].ends().signal(), Some(libc::SIGINT));
    second.stop();
    m.stop();
    others[1].ends_well();
    stuck.ends_well();
}

/// A poller has no thread that waits, but each poll looks at the stream.
#[test]
fn a_stream_that_cannot_be_opened_holds_up_no_end() {
    let m = Mnt::new();
    let s = m.stream("s");
    let script = "
import select
fd = open('follow/next')
print('polls', flush=True)
while True:
    select.select([fd], [], [], .1)
";
    let poller = Follower::start(&s, &["python3", "-ISc", script]);
    poller.prints(&["polls"]);
    append(s.join("events"), "first\n");
    let log = File::open(m.store().join("s/log")).unwrap();
    log.lock().unwrap();
    fs::remove_file(m.store().join("s/index")).unwrap();
    sleep(A_WHILE);
    m.stop();
}

/// Behind the last event there are the zeros of another mount's batch, which is not committed yet:
/// who opens the stream would cut them off, under the lock.
#[test]
fn what_other_mounts_commit_comes_beside_a_large_batch_of_theirs() {
    let m = Mnt::new();
    let s = m.stream("s");
    append(s.join("events"), "first\n");
    let mut reader = Follower::cat(&s, "follow/next");
    let second = Mnt::on(m.store(), &[]);
    let there = second.path().join("s/events");
    let mut large = appender(&there).unwrap();
    large.write_all(&b"0123456789abcde\n".repeat(2 << 20)).unwrap();
    // Whoever has no index of its own any more opens all anew.
    fs::remove_file(m.store().join("s/index")).unwrap();
    append(&there, "second\n");
    reader.prints(&["second"]);
    append(&there, "third\n");
    reader.prints(&["third"]);
    reader.is_quiet(ms(0));
    drop(large);
}

#[test]
fn a_rename_keeps_nothing_from_who_waits() {
    let m = Mnt::new();
    let second = Mnt::on(m.store(), &[]);
    let names = ["a", "b", "c"];
    let mut readers = names.map(|name| {
        let s = m.stream(name);
        append(s.join("events"), "first\n");
        Follower::cat(&s, "follow/next")
    });
    for (reader, name) in readers.iter_mut().zip(names) {
        append(second.path().join(name).join("events"), "second\n");
        fs::rename(m.path().join(name), m.path().join(name.repeat(2))).unwrap();
        reader.prints(&["second"]);
    }
}

/// What a stat saw nobody was woken for, and then the stream's files were closed for others.
#[test]
fn what_somebody_else_saw_comes_to_who_waits() {
    let m = Mnt::new();
    let s = m.stream("s");
    append(s.join("events"), "first\n");
    let others: Vec<_> = (0..560).map(|n| m.stream(format!("o{n}")).join("events")).collect();
    let reader = Follower::cat(&s, "follow/next");
    let second = Mnt::on(m.store(), &[]);
    let there = second.path().join("s/events");
    for n in 0..8 {
        append(&there, format!("{n}\n"));
        for path in std::iter::once(&s.join("events")).chain(&others) {
            fs::metadata(path).unwrap();
        }
        reader.prints(&[&n.to_string()]);
    }
}

/// An index that is another log's is believed in nothing, and what is damaged ends no daemon.
#[test]
fn who_follows_a_damaged_stream_gets_what_is_intact() {
    let m = Mnt::new();
    let s = pages(&m, 3);
    m.stop();
    let [log, index] = ["log", "index"].map(|name| {
        let path = m.store().join("s").join(name);
        File::options().write(true).open(path).unwrap()
    });
    log.write_all_at(b"?", begins(&m, 0) + 16).unwrap();
    index.write_all_at(&7u64.to_le_bytes(), 8).unwrap();
    index.write_all_at(&(1u64 << 40).to_le_bytes(), 16 + 2 * 8).unwrap();
    m.restart();
    let mut reader = Follower::cat(&s, "follow/2");
    reader.prints(&[&page(2)]);
    reader.is_quiet(A_WHILE);
    m.stop();
    reader.ends_well();
}

/// A consumer may be started before its producer, also where it must not write.
#[test]
fn who_only_reads_may_wait_for_the_first_event() {
    let m = Mnt::new();
    fs::create_dir(m.store().join("s")).unwrap();
    let read_only = Mnt::on(m.store(), &["-o", "ro"]);
    let mut reader = Follower::cat(&read_only.path().join("s"), "follow/0");
    reader.is_quiet(A_WHILE);
    append(m.path().join("s/events"), "first\n");
    reader.prints(&["first"]);
    append(m.path().join("s/events"), "second\n");
    reader.prints(&["second"]);
    reader.is_quiet(ms(0));
}

/// Another stream has the name, and somebody holds its lock.
#[test]
fn a_stream_that_was_replaced_holds_up_no_other_wait() {
    let m = Mnt::new();
    let [s, t] = ["s", "t"].map(|name| m.stream(name));
    let mut gone = Follower::cat(&s, "follow/next");
    let mut other = Follower::cat(&t, "follow/next");
    gone.is_quiet(A_WHILE);
    let there = m.store().join("s");
    let new = m.store().join(".new");
    fs::create_dir(&new).unwrap();
    let log = File::create(new.join("log")).unwrap();
    log.lock().unwrap();
    fs::remove_dir_all(&there).unwrap();
    fs::rename(&new, &there).unwrap();
    sleep(A_WHILE);
    let second = Mnt::on(m.store(), &[]);
    append(second.path().join("t/events"), "more\n");
    other.prints(&["more"]);
    other.signal(libc::SIGINT);
    assert_eq!(other.ends().signal(), Some(libc::SIGINT));
    gone.ends_well();
}

/// An event is damaged, and so is the last one: nothing says what there was.
#[test]
fn who_polls_at_the_end_of_a_stream_that_lost_events_is_told() {
    let m = Mnt::new();
    let s = pages(&m, 4);
    m.stop();
    let log = File::options().write(true).open(m.store().join("s/log")).unwrap();
    for damaged in [begins(&m, 1), begins(&m, 3)] {
        log.write_all_at(b"?", damaged + 16).unwrap();
    }
    // Also where the last one ends.
    let last = format::last(&read(m.store().join("s/index")));
    log.write_all_at(b"?", last + 16).unwrap();
    m.restart();
    let script = "
import select
fd = os.open('follow/2', os.O_RDONLY)
assert os.read(fd, 5001) == b'2'.zfill(5000) + b'\\n'
assert select.select([fd], [], [], 5)[0]
print(error(os.read, fd, 100))
";
    assert_eq!(ok(&python(&s, script)), "Input/output error\n");
}

/// What it waits at is not there any more, and the index has another end: it is not taken for the end.
#[test]
fn who_waits_at_the_end_of_a_stream_that_loses_events_is_told() {
    let m = Mnt::new();
    let (s, mut cat) = waiting(&m);
    let store = m.store().join("s");
    let log = OpenOptions::new().write(true).open(store.join("log")).unwrap();
    log.write_all_at(b"!", begins(&m, 0) + 16).unwrap();
    format::set_last(&store, 41);
    assert_eq!(cat.ends().code(), Some(1), "an error, not the end");
    assert_eq!(read(s.join("count")), b"3\n");
}

/// The last event and the index are gone.
#[test]
fn who_waits_behind_an_event_that_got_lost_with_the_index_is_told() {
    let m = Mnt::new();
    let (s, mut cat) = waiting(&m);
    let store = m.store().join("s");
    let log = OpenOptions::new().write(true).open(store.join("log")).unwrap();
    log.write_all_at(&[0; 18], begins(&m, 0)).unwrap();
    fs::remove_file(store.join("index")).unwrap();
    assert_eq!(cat.ends().code(), Some(1), "an error, not the end");
    assert_eq!(read(s.join("count")), b"3\n");
}

#[test]
fn python_raises_keyboard_interrupt_out_of_a_wait() {
    let m = Mnt::new();
    let s = three(&m);
    let script = "
try:
    open('follow/next').readline()
except KeyboardInterrupt:
    print('interrupted', flush=True)
";
    let mut reader = Follower::start(&s, &["python3", "-ISc", script]);
    reader.is_quiet(A_WHILE);
    reader.signal(libc::SIGINT);
    reader.prints(&["interrupted"]);
    reader.ends_well();
}

#[test]
fn a_waiting_reader_can_be_stopped_and_continued() {
    let m = Mnt::new();
    let s = three(&m);
    for program in WAITING {
        for signal in [libc::SIGTSTP, libc::SIGSTOP, libc::SIGTTIN] {
            let mut reader = Follower::sh(&s, program);
            reader.is_quiet(A_WHILE);
            reader.signal(signal);
            eventually("it is stopped", || reader.state() == 'T');
            append(s.join("events"), "meanwhile\n");
            reader.is_quiet(A_WHILE);
            reader.signal(libc::SIGCONT);
            reader.prints(&["meanwhile"]);
        }
    }
}

#[test]
fn a_process_ends_while_its_threads_wait() {
    let m = Mnt::new();
    let s = three(&m);
    let script = "
import os, threading, time
def follow():
    open('follow/next').readline()
for _ in range(20):
    threading.Thread(target=follow).start()
time.sleep(.4)
os._exit(7)
";
    let mut reader = Follower::start(&s, &["python3", "-ISc", script]);
    reader.is_quiet(ms(100));
    let status = wait(&mut reader.child, Duration::from_secs(5));
    assert_eq!(status.expect("it must end").code(), Some(7));
}

/// Signals a program does not attend to must not show: perl, node and awk take EINTR for an error.
#[test]
fn no_reader_is_told_of_signals_it_does_not_handle() {
    need("perl", "perl");
    let m = Mnt::new();
    let s = three(&m);
    let perl = r#"
use POSIX;
POSIX::sigprocmask(SIG_BLOCK, POSIX::SigSet->new(SIGUSR1, SIGRTMIN));
$SIG{USR2} = 'IGNORE';
open(my $file, '<', 'follow/next') or die;
sysread($file, my $bytes, 100) // die "sysread: $!";
print $bytes;
"#;
    let python = "
import os, signal
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1, signal.SIGRTMIN])
signal.signal(signal.SIGUSR2, signal.SIG_IGN)
print(os.read(os.open('follow/next', os.O_RDONLY), 100).decode(), end='')
";
    for command in [["perl", "-e", perl], ["python3", "-ISc", python]] {
        let mut reader = Follower::start(&s, &command);
        reader.is_quiet(ms(600));
        for signal in [
            libc::SIGCHLD,
            libc::SIGWINCH,
            libc::SIGURG,
            libc::SIGCONT,
            libc::SIGUSR1,
            libc::SIGUSR2,
            libc::SIGRTMIN(),
        ] {
            reader.signal(signal);
            reader.is_quiet(ms(200));
        }
        append(s.join("events"), "line\n");
        reader.prints(&["line"]);
        reader.ends_well();
    }
}

#[test]
fn a_handler_runs_while_its_program_waits() {
    need("perl", "perl");
    let m = Mnt::new();
    let s = three(&m);
    let python = "
import signal
signal.signal(signal.SIGUSR1, lambda *_: print('handled', flush=True))
print(open('follow/next').readline())
";
    let mut reader = Follower::start(&s, &["python3", "-ISc", python]);
    reader.is_quiet(A_WHILE);
    for _ in 0..3 {
        reader.signal(libc::SIGUSR1);
        reader.prints(&["handled"]);
        reader.is_quiet(ms(200));
    }
    append(s.join("events"), "line\n");
    reader.prints(&["line"]);
    // A program that asks for EINTR, which is how it gets out of the wait, has it.
    let perl = r"$SIG{ALRM} = sub { print qq(handled\n) }; $| = 1; alarm 1;
open(my $file, '<', 'follow/next') or die; defined sysread($file, my $b, 9) or print qq($!\n);";
    let mut reader = Follower::start(&s, &["perl", "-e", perl]);
    reader.prints(&["handled", "Interrupted system call"]);
    reader.ends_well();
}

#[test]
fn timeout_ends_a_wait() {
    let m = Mnt::new();
    let s = three(&m);
    let start = Instant::now();
    let out = sh("sh", "timeout 1 cat follow/0", &s);
    assert_eq!(text(&out.stdout), "0\n1\n2\n");
    assert_eq!(out.status.code(), Some(124));
    assert!(start.elapsed() < SOON + ms(1000));
}

// The end of a wait.

/// A waiting cat on the stream `s` of `of` comes to the end of the file when `what` is done.
#[track_caller]
fn ends_when(of: &Mnt, what: impl FnOnce(&Path)) {
    let s = of.path().join("s");
    let mut cat = Follower::cat(&s, "follow/next");
    cat.is_quiet(ms(50));
    what(of.path());
    cat.ends_well();
}

#[test]
fn rename_ends_the_waits() {
    let m = Mnt::new();
    three(&m);
    ends_when(&m, |path| {
        fs::rename(path.join("s"), path.join("t")).unwrap();
    });
    let cat = Follower::cat(&m.path().join("t"), "follow/2");
    append(m.path().join("t/events"), "3\n");
    cat.prints(&["2", "3"]);
}

#[test]
fn rmdir_ends_the_waits() {
    let m = Mnt::new();
    m.stream("s");
    ends_when(&m, |path| fs::remove_dir(path.join("s")).unwrap());
}

#[test]
fn a_stream_that_takes_the_name_ends_the_waits() {
    let m = Mnt::new();
    m.stream("s");
    append(m.stream("t").join("events"), "other\n");
    ends_when(&m, |path| {
        fs::rename(path.join("t"), path.join("s")).unwrap();
    });
}

#[test]
fn another_mount_that_removes_the_stream_ends_the_waits() {
    let m = Mnt::new();
    m.stream("s");
    let other = Mnt::on(m.store(), &[]);
    ends_when(&m, |_| fs::remove_dir(other.path().join("s")).unwrap());
}

/// A rename elsewhere is not noticed: the open file goes on with the stream it was opened on.
#[test]
fn another_mount_that_renames_the_stream_loses_no_event() {
    let m = Mnt::new();
    let s = three(&m);
    let other = Mnt::on(m.store(), &[]);
    let cat = Follower::cat(&s, "follow/next");
    fs::rename(other.path().join("s"), other.path().join("t")).unwrap();
    append(other.path().join("t/events"), "3\n");
    cat.prints(&["3"]);
}

#[test]
fn sigterm_ends_the_waits() {
    let m = Mnt::new();
    three(&m);
    ends_when(&m, |_| m.stop());
}

#[test]
fn a_lazy_unmount_ends_the_waits() {
    let m = Mnt::new();
    three(&m);
    ends_when(&m, unmount);
    assert!(m.wait(Duration::from_secs(5)).is_some(), "the daemon is there still");
}

#[test]
fn a_forced_unmount_and_a_killed_daemon_end_the_waits() {
    for end in [true, false] {
        let m = Mnt::new();
        let s = three(&m);
        let mut cat = Follower::cat(&s, "follow/next");
        if end {
            ok(&sh("sh", "umount -f -l mnt", m.path().parent().unwrap()));
        } else {
            m.kill(libc::SIGKILL);
        }
        assert_eq!(cat.ends().code(), Some(1), "an error, which no event is lost by");
    }
}

// Many who wait.

/// So many threads, each with its own open file; prints "waiting", and how many got the event.
const CROWD: &str = "
import os, sys, threading
threading.stack_size(1 << 16)
n = int(sys.argv[1])
got, opened = [], []
def follow():
    fd = os.open('follow/next', os.O_RDONLY)
    opened.append(fd)
    got.append(os.read(fd, 100))
threads = [threading.Thread(target=follow) for _ in range(n)]
for t in threads: t.start()
while len(opened) < n: pass
print('waiting', flush=True)
for t in threads: t.join()
print(got.count(b'line\\n'), flush=True)
";

#[test]
fn a_thousand_wait_and_all_get_the_event() {
    let m = Mnt::new();
    let s = three(&m);
    let mut crowd = Follower::start(&s, &["python3", "-ISc", CROWD, "1000"]);
    crowd.prints(&["waiting"]);
    crowd.is_quiet(A_WHILE);
    assert!(threads(m.pid()) < 100, "{} threads", threads(m.pid()));
    // Everything else is served.
    let start = Instant::now();
    let o = m.stream("o");
    for n in 0..20 {
        append(o.join("events"), format!("{n}\n"));
        assert_eq!(count(&o), n + 1);
        assert_eq!(read(s.join("events")), b"0\n1\n2\n");
    }
    eprintln!("20 commits and reads beside 1,000 who wait: {:?}", start.elapsed());
    assert!(start.elapsed() < Duration::from_secs(5));
    // At no cost while nothing happens.
    let before = cpu(m.pid());
    crowd.is_quiet(Duration::from_secs(5));
    let used = (cpu(m.pid()) - before) / 5.0;
    eprintln!("CPU of 1,000 who wait: {:.1} % of a core", used * 100.0);
    assert!(used < 0.5);
    let start = Instant::now();
    append(s.join("events"), "line\n");
    let (when, all) = crowd.next();
    assert_eq!(all, "1000");
    eprintln!("1,000 got the event within {:?}", when - start);
    crowd.ends_well();
}

#[test]
fn a_thousand_who_wait_can_be_killed() {
    let m = Mnt::new();
    let s = three(&m);
    let mut crowd = Follower::start(&s, &["python3", "-ISc", CROWD, "1000"]);
    crowd.prints(&["waiting"]);
    crowd.signal(libc::SIGTERM);
    let status = wait(&mut crowd.child, Duration::from_secs(5));
    assert_eq!(status.expect("it must end").signal(), Some(libc::SIGTERM));
}

#[test]
fn who_stops_reading_holds_up_nobody() {
    let m = Mnt::new();
    let s = three(&m);
    // One is stopped while it waits, one while it has something to read, one writes to a full pipe.
    let stopped = Follower::cat(&s, "follow/next");
    stopped.signal(libc::SIGSTOP);
    let mut full = Follower::sh(&s, "cat follow/0 | sleep 1000");
    let busy = Follower::sh(&s, "exec cat follow/0 follow/0 > /dev/null");
    busy.signal(libc::SIGSTOP);
    let mut cat = Follower::cat(&s, "follow/next");
    let line = "x".repeat(999);
    for _ in 0..20 {
        append(s.join("events"), format!("{line}\n").repeat(100));
    }
    for _ in 0..2000 {
        assert_eq!(cat.next().1, line);
    }
    cat.is_quiet(ms(50));
    full.is_quiet(ms(0));
    stopped.signal(libc::SIGCONT);
    for _ in 0..2000 {
        assert_eq!(stopped.next().1, line);
    }
    full.signal(libc::SIGTERM);
    // The shell's children are in its group.
    unsafe { libc::kill(-full.child.id().cast_signed(), libc::SIGKILL) };
}

/// A commit that comes between an answer and the next wait must not be slept through until the
/// next look: each line is asked for as soon as the last one came.
#[test]
fn no_wakeup_is_lost() {
    let m = Mnt::new();
    let s = m.stream("s");
    let cats: Vec<Follower> = (0..4).map(|_| Follower::cat(&s, "follow/0")).collect();
    let mut slow = 0;
    for n in 0..500 {
        let start = Instant::now();
        append(s.join("events"), format!("{n}\n"));
        for cat in &cats {
            let (when, line) = cat.next();
            assert_eq!(line, n.to_string());
            slow += u32::from(when - start > ms(60));
        }
    }
    eprintln!("{slow} of 2000 lines came later than 60 ms");
    assert!(slow < 100, "{slow}");
}

// poll, select, epoll.

#[test]
fn poll_tells_of_what_was_not_read() {
    let m = Mnt::new();
    for file in ["events", "from/1", "follow/1", "from/next", "follow/newest"] {
        let s = m.stream(file.replace('/', "-"));
        append(s.join("events"), "0\n1\n2\n");
        ok(&python(
            &s,
            &format!(
                r"
        import select, threading, time
        fd = os.open('{file}', os.O_RDONLY)
        poll, epoll = select.poll(), select.epoll()
        poll.register(fd, select.POLLIN)
        epoll.register(fd, select.EPOLLIN)
        def ready(seconds):
            'Whether it is readable, as all three say.'
            begin = time.monotonic()
            said = [bool(select.select([fd], [], [], seconds)[0]),
                    bool(poll.poll(seconds * 1000)), bool(epoll.poll(seconds))]
            assert said in ([True] * 3, [False] * 3), said
            return said[0]
        def drain():
            'Where a read at the end does not wait, the end is one of the things to be read.'
            while ready(0):
                last = os.read(fd, 1)
            assert bool(last) == ('{file}'.startswith('follow'))
        def append(text):
            with open('events', 'a') as f:
                f.write(text)
        assert ready(0) and ready(5), 'there is something'
        if '{file}' != 'from/next':
            assert os.read(fd, 1)
            assert ready(0), 'level-triggered: there is more'
        drain()
        assert not ready(0) and not ready(.2), 'all is read'
        append('3\n')
        assert ready(5) and ready(0)
        drain()
        assert not ready(.1)
        for wait in (lambda: select.select([fd], [], [], 10)[0], lambda: poll.poll(10_000),
                     lambda: epoll.poll(10)):
            threading.Timer(.3, append, ['x\n']).start()
            begin = time.monotonic()
            assert wait(), 'woken by a commit'
            assert .2 < time.monotonic() - begin < 2, time.monotonic() - begin
            assert os.read(fd, 1) == b'x'
            assert ready(0)
            drain()
        "
            ),
        ));
    }
}

#[test]
fn poll_of_what_does_not_grow_is_ready() {
    let m = Mnt::new();
    let s = three(&m);
    ok(&python(
        &s,
        r"
        import select
        for name in ['count', 'at/1', 'new']:
            fd = os.open(name, os.O_RDONLY)
            assert select.select([fd], [], [], 0)[0], name
        fd = os.open('lines', os.O_WRONLY | os.O_APPEND)
        assert select.select([], [fd], [], 0)[1]
        ",
    ));
}

#[test]
fn poll_is_woken_by_another_mount() {
    let m = Mnt::new();
    let s = three(&m);
    let other = Mnt::on(m.store(), &[]);
    let script = "
import os, select
fd = os.open('follow/next', os.O_RDONLY)
print(select.select([fd], [], [], 20)[0] == [fd], os.read(fd, 100))
";
    let mut reader = Follower::start(&s, &["python3", "-ISc", script]);
    reader.is_quiet(A_WHILE);
    append(other.path().join("s/events"), "3\n");
    reader.prints(&["True b'3\\n'"]);
}

#[test]
fn a_poll_with_many_streams_says_which() {
    let m = Mnt::new();
    let s = m.stream("s0");
    for n in 1..50 {
        m.stream(format!("s{n}"));
    }
    ok(&python(
        &s,
        r"
        import selectors
        selector = selectors.DefaultSelector()
        for n in range(50):
            selector.register(open(f'../s{n}/follow/0', 'rb', buffering=0), selectors.EVENT_READ, n)
        for n in (7, 0, 49):
            assert selector.select(.05) == []
            with open(f'../s{n}/events', 'a') as f:
                f.write(f'{n}\n')
            (key, _), = selector.select(5)
            assert key.data == n and key.fileobj.read(100) == b'%d\n' % n
        ",
    ));
}

/// A program that polls with a short timeout asks again and again, and then goes away.
#[test]
fn polling_a_quiet_stream_takes_no_memory() {
    let m = Mnt::new();
    let s = three(&m);
    let poll = r"
        import select
        for _ in range(10):
            fd = os.open('follow/next', os.O_RDONLY)
            for _ in range(3000):
                assert not select.select([fd], [], [], 1e-6)[0]
            os.close(fd)
        ";
    ok(&python(&s, poll));
    let before = status_kib(m.pid(), "VmRSS:");
    ok(&python(&s, poll));
    ok(&python(&s, poll));
    let grown = status_kib(m.pid(), "VmRSS:").saturating_sub(before);
    eprintln!("60,000 polls: {grown} KiB");
    assert!(grown < 2000, "{grown} KiB");
}

// Programs.

/// A program waits quietly for the first event of a stream, and prints it.
#[track_caller]
fn waits(tool: &str, command: &[&str]) -> Follower {
    need(tool, tool);
    let m = Mnt::new();
    let s = m.stream("s");
    let mut program = Follower::start(&s, command);
    program.is_quiet(Duration::from_secs(5));
    let start = Instant::now();
    append(s.join("events"), "{\"n\":1}\n");
    let (when, line) = program.next();
    assert_eq!(line, "{\"n\":1}", "{tool}");
    eprintln!("{tool}: {:?}", when - start);
    program
}

#[test]
fn bash_read_waits() {
    waits("bash", &["bash", "-c", "read -r line < follow/0 && echo \"$line\""]).ends_well();
    let bash = "while read -r line; do echo \"$line\"; done < follow/0";
    waits("bash", &["bash", "-c", bash]);
}

#[test]
fn python_waits() {
    let python = |script: &str| waits("python3", &["python3", "-ISuc", script]);
    python("for line in open('follow/0'): print(line, end='')");
    python("import os; print(os.read(os.open('follow/0', 0), 99).decode(), end='')").ends_well();
    python("import asyncio\nprint(asyncio.run(asyncio.to_thread(open('follow/0').readline)))")
        .ends_well();
    python(
        "
import selectors
selector = selectors.DefaultSelector()
selector.register(open('follow/0', 'rb', buffering=0), selectors.EVENT_READ)
(key, _), = selector.select()
print(key.fileobj.read(99).decode(), end='')",
    )
    .ends_well();
}

#[test]
fn python_asyncio_waits_without_a_thread() {
    let script = "
import asyncio
async def main():
    file = open('follow/0', 'rb', buffering=0)
    ready = asyncio.Event()
    asyncio.get_running_loop().add_reader(file, ready.set)
    await ready.wait()
    print(file.read(99).decode(), end='')
asyncio.run(main())";
    waits("python3", &["python3", "-ISuc", script]).ends_well();
}

#[test]
fn node_waits() {
    let script = "require('fs').createReadStream('follow/0').pipe(process.stdout)";
    waits("node", &["node", "-e", script]);
}

#[test]
fn java_waits() {
    need("java", "default-jdk-headless");
    let dir = public_dir();
    let source = dir.path().join("Wait.java");
    let program = r#"
import java.io.*;
class Wait {
    public static void main(String[] args) throws IOException {
        try (var reader = new BufferedReader(new FileReader("follow/0"))) {
            System.out.println(reader.readLine());
        }
    }
}"#;
    fs::write(&source, program).unwrap();
    waits("java", &["java", source.to_str().unwrap()]).ends_well();
}

#[test]
fn perl_waits() {
    let perl = "open F, '<', 'follow/0'; $| = 1; print while <F>; die $! if $!";
    waits("perl", &["perl", "-e", perl]);
}

#[test]
fn awk_waits() {
    waits("gawk", &["gawk", "{ print; fflush() }", "follow/0"]);
    waits("busybox", &["busybox", "awk", "{ print; fflush() }", "follow/0"]);
}

#[test]
fn mawk_waits() {
    waits("mawk", &["mawk", "-W", "interactive", "{ print }", "follow/0"]);
}

#[test]
fn grep_waits() {
    waits("grep", &["grep", "-m1", "n", "follow/0"]).ends_well();
    waits("grep", &["grep", "--line-buffered", "n", "follow/0"]);
}

#[test]
fn jq_waits() {
    waits("jq", &["jq", "--unbuffered", "-c", ".", "follow/0"]);
}

#[test]
fn head_and_others_wait() {
    waits("head", &["head", "-n1", "follow/0"]).ends_well();
    waits("busybox", &["busybox", "head", "-n1", "follow/0"]).ends_well();
    waits("sed", &["sed", "-u", "", "follow/0"]);
    waits("dd", &["dd", "if=follow/0", "bs=4096", "count=1", "status=none"]).ends_well();
    waits("bash", &["bash", "-c", "cat follow/0 | tee /dev/null | cat"]);
}

/// It asks the kernel to copy, which looks at the size and takes it for the end: sendfile(2) must fail
/// where it cannot wait, and not say that there is nothing.
#[test]
fn who_has_the_kernel_copy_waits() {
    waits("busybox", &["busybox", "cat", "follow/0"]);
    waits("bash", &["bash", "-c", "busybox cat follow/0 | busybox cat"]);
    let m = Mnt::new();
    let s = three(&m);
    let copy = m.store().parent().unwrap().join("copy");
    let script = format!("exec busybox cat follow/newest > {}", copy.display());
    let _cat = Follower::sh(&s, &script);
    let holds = |bytes: &[u8]| fs::read(&copy).is_ok_and(|copied| copied == bytes);
    eventually("what is there is copied", || holds(b"2\n"));
    append(s.join("events"), "3\n");
    eventually("what comes is copied", || holds(b"2\n3\n"));
    ok(&python(
        &s,
        r"
        into = os.pipe()[1]
        for name in ['follow/0', 'follow/newest', 'follow/next']:
            assert error(os.sendfile, into, os.open(name, 0), None, 99) == 'Invalid argument', name
        ",
    ));
}

// Catching up.

/// A follower started half-way, while a writer appends, gets all, once and in order.
#[test]
fn a_follower_started_half_way_gets_all() {
    const EVENTS: usize = 1_000_000;
    let m = Mnt::new();
    let s = m.stream("s");
    let events = s.join("events");
    let mut source = Vec::new();
    for n in 0..EVENTS {
        io::Write::write_all(&mut source, format!("event {n} {}\n", "x".repeat(n % 50)).as_bytes())
            .unwrap();
    }
    let start = Instant::now();
    let pieces: Vec<&[u8]> = source.chunks(source.len() / 200 + 1).collect();
    let write = |pieces: &[&[u8]]| {
        // A piece is cut anywhere: `events` would make an event of what is torn.
        let mut torn = Vec::new();
        for piece in pieces {
            torn.extend_from_slice(piece);
            let end = torn.iter().rposition(|b| *b == b'\n').unwrap() + 1;
            append(&events, torn.drain(..end).collect::<Vec<u8>>());
        }
        torn
    };
    let torn = write(&pieces[..100]);
    let mut file = File::open(s.join("follow/0")).unwrap();
    let length = source.len();
    let follower = std::thread::spawn(move || {
        let mut got = vec![0; length];
        file.read_exact(&mut got).unwrap();
        got
    });
    let first = [torn.as_slice(), pieces[100]].concat();
    let mut rest = vec![first.as_slice()];
    rest.extend(&pieces[101..]);
    assert_eq!(write(&rest), b"");
    let got = follower.join().unwrap();
    eprintln!("{EVENTS} events written and followed: {:?}", start.elapsed());
    assert!(got == source, "what was followed is not what was written");
    assert_eq!(count(&s), EVENTS as u64);
}

/// Single commits, so that most reads wait; several followers, one through another mount.
#[test]
fn followers_miss_and_repeat_nothing() {
    let m = Mnt::new();
    let s = m.stream("s");
    let other = Mnt::on(m.store(), &[]);
    let there = other.path().join("s");
    let cats: Vec<Follower> = [(&s, "0"), (&s, "beginning"), (&there, "0"), (&s, "@0")]
        .map(|(dir, horizon)| Follower::start(dir, &["cat", &format!("follow/{horizon}")]))
        .into();
    sleep(A_WHILE);
    for n in 0..600 {
        append((if n % 7 == 0 { &there } else { &s }).join("events"), format!("{n}\n"));
    }
    for cat in &cats {
        for n in 0..600 {
            assert_eq!(cat.next().1, n.to_string());
        }
    }
}

// tail.

/// tail prints what is there and then what comes.
#[track_caller]
fn tails(command: &[&str], there: &[&str]) {
    let m = Mnt::new();
    let s = three(&m);
    let mut all = vec!["stdbuf", "-oL"];
    all.extend(command);
    let mut tail = Follower::start(&s, &all);
    tail.prints(there);
    tail.is_quiet(A_WHILE);
    for n in ["3", "4"] {
        append(s.join("events"), format!("{n}\n"));
        tail.prints(&[n]);
    }
    append(s.join("events"), "5\n6\n");
    tail.prints(&["5", "6"]);
    // GNU tail -F looks at the name again after some rounds without news.
    tail.is_quiet(Duration::from_secs(7));
    append(s.join("events"), "7\n");
    tail.prints(&["7"]);
    tail.is_quiet(ms(1500));
}

#[test]
fn gnu_tail_follows() {
    tails(&["tail", "-f", "events"], &["0", "1", "2"]);
    tails(&["tail", "-f", "from/1"], &["1", "2"]);
    tails(&["tail", "-n1", "-f", "events"], &["2"]);
}

#[test]
fn gnu_tail_follows_a_named_horizon() {
    tails(&["tail", "-f", "from/newest"], &["2"]);
    tails(&["tail", "-n0", "-f", "from/beginning"], &[]);
}

#[test]
fn gnu_tail_follows_by_name() {
    tails(&["tail", "-F", "events"], &["0", "1", "2"]);
    tails(&["tail", "-F", "from/1"], &["1", "2"]);
}

#[test]
fn busybox_tail_follows() {
    tails(&["busybox", "tail", "-f", "events"], &["0", "1", "2"]);
    tails(&["busybox", "tail", "-f", "from/1"], &["1", "2"]);
    tails(&["busybox", "tail", "-f", "from/newest"], &["2"]);
}

#[test]
fn busybox_tail_follows_by_name() {
    tails(&["busybox", "tail", "-F", "events"], &["0", "1", "2"]);
    tails(&["busybox", "tail", "-F", "from/1"], &["1", "2"]);
}

/// tail with what waits itself. (busybox tail wants the end first, which never comes.)
#[test]
fn gnu_tail_reads_a_follower() {
    for options in ["-n+1", "-fn+1"] {
        let m = Mnt::new();
        let s = three(&m);
        let tail = Follower::start(&s, &["stdbuf", "-oL", "tail", options, "follow/1"]);
        tail.prints(&["1", "2"]);
        append(s.join("events"), "3\n");
        tail.prints(&["3"]);
    }
}

/// A named horizon stands for another file after each commit, and tail -F goes after the name: what
/// it printed already comes again. The README says to use -f there.
#[test]
fn tail_f_by_name_of_a_named_horizon_repeats_events() {
    let m = Mnt::new();
    let s = three(&m);
    let tail = Follower::start(&s, &["stdbuf", "-oL", "busybox", "tail", "-F", "from/newest"]);
    tail.prints(&["2"]);
    append(s.join("events"), "3\n");
    tail.prints(&["3", "3"]);
}

// How long it takes.

/// From before close(2) of the append to the line in the pipe of a waiting cat.
#[test]
fn a_line_comes_at_once() {
    let m = Mnt::new();
    let s = m.stream("s");
    let script = "
import os, subprocess, time
cat = subprocess.Popen(['cat', 'follow/0'], stdout=subprocess.PIPE, bufsize=0)
time.sleep(.3)
took = []
for n in range(500):
    fd = os.open('events', os.O_WRONLY | os.O_APPEND)
    os.write(fd, b'%d\\n' % n)
    begin = time.monotonic()
    os.close(fd)
    assert os.read(cat.stdout.fileno(), 100) == b'%d\\n' % n
    took.append(time.monotonic() - begin)
    time.sleep(.002)
took.sort()
cat.kill()
print('p50 %.0f p99 %.0f max %.0f' % tuple(1e6 * took[n] for n in (250, 495, 499)))
";
    let out = ok(&sh("python3 -I", script, &s));
    eprintln!("commit to delivery, us: {out}");
    let p50: f64 = out.split(' ').nth(1).unwrap().parse().unwrap();
    assert!(p50 < 50_000.0, "{out}");
}
