//! Those who hold on to it: open files, pending batches, reads and writes half done, locks.

use super::Bystander;
use crate::commit::{batches, python};
use crate::follow::{Follower, status_kib};
use crate::harness::*;
use std::fs::{self, File};
use std::io::{self, BufRead, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Begins the scripts that open many files: in processes of their own, for what this one has open
/// would pass to other tests' children.
const MANY: &str = "
import errno, os, resource, sys
hard = max(12000, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
resource.setrlimit(resource.RLIMIT_NOFILE, (12000, hard))
def say(*what):
    print(*what, flush=True)
    sys.stdin.readline()
";

/// A script that says how far it is, and goes on when told to.
struct Script {
    child: Reaped,
    said: io::Lines<io::BufReader<std::process::ChildStdout>>,
}

impl Script {
    fn start(dir: &Path, script: &str) -> Script {
        let mut python = Command::new("python3");
        python.args(["-Ic", &format!("{MANY}{script}")]).current_dir(dir);
        python.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = Reaped(python.spawn().unwrap());
        let said = io::BufReader::new(child.0.stdout.take().unwrap()).lines();
        Script { child, said }
    }

    #[track_caller]
    fn says(&mut self) -> String {
        self.said.next().expect("it ended").unwrap()
    }

    fn goes_on(&mut self) {
        let stdin = self.child.0.stdin.as_mut().unwrap();
        stdin.write_all(b"\n").unwrap();
    }
}

#[test]
fn whoever_holds_thousands_of_pending_batches_keeps_nobody_from_a_small_one() {
    need("python3", "python3");
    let m = Mnt::new();
    let mut bystander = Bystander::new(&m);
    for n in 0..100 {
        m.stream(format!("s{n}"));
    }
    // More than there is memory for, and more than there are temporary files for.
    let script = r"
files, refused = [], 0
for n in range(6400):
    files.append(os.open('s%d/events' % (n % 100), os.O_WRONLY | os.O_APPEND))
    try:
        os.write(files[-1], (b'%7d\n' % n) * 2048)
    except OSError as e:
        assert e.errno == errno.ENFILE, e
        refused += 1
say(refused)
failed = 0
for file in files[:3200]:
    os.close(file)
for file in files[3200:4800]:
    try:
        os.close(file)
    except OSError as e:
        assert e.errno == errno.ENFILE, e
        failed += 1
say(failed)
";
    let mut holder = Script::start(m.path(), script);
    let refused: u64 = holder.says().parse().unwrap();
    eprintln!(
        "6,400 pending batches of 16 KiB, {refused} refused: {} KiB, {} files",
        m.rss_peak_kib(),
        m.open_files()
    );
    assert!((1..3400).contains(&refused), "{refused}");
    for _ in 0..20 {
        bystander.is_served();
    }
    let counts = || (0..100).map(|n| count(&m.path().join(format!("s{n}")))).sum::<u64>();
    assert_eq!(counts(), 0, "nothing is committed yet");
    holder.goes_on();
    let failed: u64 = holder.says().parse().unwrap();
    assert_eq!(counts(), 2048 * (4800 - failed), "what was closed is committed");
    for n in 0..100 {
        let events = text(&read(m.path().join(format!("s{n}/events"))));
        let mut batches = events.as_bytes().chunks(2048 * 8);
        let whole = batches.all(|batch| batch.chunks(8).all(|line| *line == batch[..8]));
        assert!(whole, "s{n}: a batch is not in one piece");
    }
    holder.child.0.kill().unwrap();
    eventually("all is given back", || m.open_files() < 400);
    assert_eq!(counts(), 2048 * (4800 - failed), "of a killed writer nothing is left");
    bystander.is_served();
}

#[test]
fn ten_thousand_files_opened_and_never_closed() {
    need("python3", "python3");
    let m = Mnt::new();
    let mut bystander = Bystander::new(&m);
    for n in 0..10 {
        append(m.stream(format!("s{n}")).join("events"), "0\n1\n2\n");
    }
    let script = r"
import select
poll = select.poll()
kinds = ['events', 'lines', 'new', 'count', 'at/1', 'from/2', 'follow/3', '', 'from', 'from/newest']
for n in range(10000):
    kind = kinds[n // 10 % 10]
    file = os.open('s%d/%s' % (n % 10, kind), os.O_RDONLY | os.O_NONBLOCK)
    if kind in ('events', 'from/2', 'follow/3'):
        poll.register(file, select.POLLIN)
    if kind in ('', 'from'):
        assert len(os.listdir(file)) >= 3
    elif kind == 'follow/3':
        try:
            os.read(file, 100)
        except BlockingIOError:
            pass
    else:
        os.read(file, 3)
poll.poll(0)
say('open')
";
    let mut after = Vec::new();
    for _ in 0..3 {
        let mut holder = Script::start(m.path(), script);
        assert_eq!(holder.says(), "open");
        assert!(m.open_files() < 1000, "{} files", m.open_files());
        bystander.is_served();
        holder.child.0.kill().unwrap();
        holder.child.0.wait().unwrap();
        bystander.is_served();
        after.push(status_kib(m.pid(), "VmRSS:"));
    }
    eprintln!("after 10,000 files each: {after:?} KiB, at most {}", m.rss_peak_kib());
    assert!(after[2] < after[0] + 4096, "{after:?} KiB");
}

#[test]
fn a_reader_that_stops_mid_way_holds_up_nobody() {
    let m = Mnt::new();
    let mut bystander = Bystander::new(&m);
    let s = m.stream("s");
    let lines = 1_500_000;
    let mut all: Vec<u8> = (0..lines).flat_map(|n| format!("{n:15}\n").into_bytes()).collect();
    append(s.join("events"), &all);
    // Stopped at any moment, in the middle of reads of many sizes.
    let mut random = Random(14);
    for turn in 0..12 {
        let size = ["4k", "1M", "64M"][turn % 3];
        let command = format!("exec dd if=events of=/dev/null bs={size} status=none");
        let mut reader = Follower::sh(&s, &command);
        std::thread::sleep(Duration::from_micros(random.below(15_000) as u64));
        reader.signal(libc::SIGSTOP);
        bystander.is_served();
        reader.signal(libc::SIGCONT);
        let status = wait(&mut reader.child, Duration::from_secs(30));
        assert!(status.is_some_and(|status| status.success()));
    }
    // Stopped with a full pipe, while others go on with the same stream.
    let mut cat = Command::new("cat");
    cat.arg("events").current_dir(&s).stdout(Stdio::piped());
    let mut cat = Reaped(cat.spawn().unwrap());
    let pid = cat.0.id().cast_signed();
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(unsafe { libc::kill(pid, libc::SIGSTOP) }, 0);
    for n in 0..20 {
        append(s.join("events"), format!("{n:15}\n"));
        all.extend(format!("{n:15}\n").into_bytes());
        assert_eq!(count(&s), lines + n + 1);
        bystander.is_served();
    }
    assert!(read(s.join("events")) == all);
    assert_eq!(unsafe { libc::kill(pid, libc::SIGCONT) }, 0);
    let mut got = Vec::new();
    cat.0.stdout.take().unwrap().read_to_end(&mut got).unwrap();
    assert!(got == all, "{} of {} bytes", got.len(), all.len());
}

#[test]
fn a_writer_that_stops_mid_way_holds_up_nobody() {
    need("python3", "python3");
    let m = Mnt::new();
    let mut bystander = Bystander::new(&m);
    let script = "
import os, signal, sys
file = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND)
os.write(file, b'a\\nb')
print('pending', flush=True)
os.kill(os.getpid(), signal.SIGSTOP)
try:
    os.write(file, b'c\\n')
    os.close(file)
    print('committed', flush=True)
except OSError as e:
    print(e.strerror, flush=True)
";
    for (turn, (file, ends)) in [
        ("events", "committed"),
        ("lines", "committed"),
        ("from/1", "File exists"),
        ("new", "committed"),
        ("events", "killed"),
        ("new", "killed"),
    ]
    .into_iter()
    .enumerate()
    {
        let s = m.stream(format!("s{turn}"));
        append(s.join("events"), "first\n");
        let mut writer = Follower::start(&s, &["python3", "-Ic", script, file]);
        writer.prints(&["pending"]);
        eventually("it stops", || writer.state() == 'T');
        let other = s.clone();
        within(20, move || {
            append(other.join("events"), "other\n");
            append(other.join("from/next"), "more\n".repeat(500));
            assert_eq!(count(&other), 502 + u64::from(file == "lines"));
        });
        bystander.is_served();
        if ends == "killed" {
            writer.child.kill().unwrap();
            writer.child.wait().unwrap();
        } else {
            writer.signal(libc::SIGCONT);
            writer.prints(&[ends]);
            writer.ends_well();
        }
        let mut want = vec!["first\n".to_string(), "other\n".into(), "more\n".repeat(500)];
        match (file, ends) {
            ("lines", _) => {
                want.insert(1, "a\n".into());
                want.push("bc\n".into());
            }
            ("events", "committed") => want.push("a\nbc\n".into()),
            ("new", "committed") => want.push("a\nbc\n\n".into()),
            _ => {}
        }
        assert!(batches(&s) == want, "{file} {ends}: {:?}", count(&s));
    }
}

#[test]
fn processes_that_open_and_close_and_fork_without_end() {
    need("python3", "python3");
    let m = Mnt::new();
    let mut bystander = Bystander::new(&m);
    let path = m.path().to_path_buf();
    let storm = std::thread::spawn(move || {
        python(
            &path,
            r"
            import random
            def user(seed):
                some = random.Random(seed)
                held = []
                for turn in range(400):
                    name = 's%d' % some.randrange(6)
                    try:
                        what = some.randrange(10)
                        if what == 0: os.mkdir(name)
                        elif what == 1: os.rmdir(name)
                        elif what == 2: os.rename(name, 's%d' % some.randrange(6))
                        elif what == 3: os.listdir(name + '/from')
                        elif what == 4: open(name + '/from/newest').read()
                        elif what == 5: held.append(os.open(name + '/follow/next', os.O_RDONLY))
                        elif what == 6: os.close(held.pop())
                        elif what == 7:
                            # A child that inherits all, and goes.
                            child = os.fork()
                            if child == 0: os._exit(0)
                            os.waitpid(child, 0)
                        else:
                            held.append(appender(name + '/' + some.choice(['events', 'lines', 'from/next'])))
                            os.write(held[-1], b'%d %d\n' % (seed, turn))
                    except (OSError, IndexError): pass
                if seed % 2: die(signal.SIGKILL)
            users = [fork(lambda seed=seed: user(seed)) for seed in range(16)]
            for user in users: wait(user)
        ",
        )
    });
    while !storm.is_finished() {
        bystander.is_served();
    }
    ok(&storm.join().unwrap());
    bystander.is_served();
    for name in names(m.path()).iter().filter(|name| *name != "bystander") {
        let s = m.path().join(name);
        let all = text(&read(s.join("events")));
        assert_eq!(all.lines().count() as u64, count(&s));
        let line = |line: &str| line.split(' ').filter(|n| n.parse::<u32>().is_ok()).count() == 2;
        assert!(all.lines().all(line), "{name:?}: {all}");
    }
    // Half of them were killed with something pending, which is all that is said.
    let log = m.log();
    let mut lines = log.lines();
    assert!(lines.all(|line| line.contains("died by signal 9 before it committed")), "{log}");
    assert!(m.open_files() < 200, "{} files", m.open_files());
}

/// A slow disk, or another mount that was stopped in the middle of its commits. There is room for a
/// short line in what a log has in advance; for a long one the write has to make some.
#[test]
fn commits_that_take_long_hold_up_nobody_else() {
    let m = Mnt::new();
    let mut bystander = Bystander::new(&m);
    let streams: Vec<_> = (0..100).map(|n| m.stream(format!("s{n}"))).collect();
    for s in &streams {
        append(s.join("events"), "first\n");
    }
    let lock = |n: usize| {
        let log = File::open(m.store().join(format!("s{n}/log"))).unwrap();
        log.lock().unwrap();
        log
    };
    let lines = ["second\n".to_owned(), "x".repeat(100_000) + "\n"];
    for line in &lines {
        let locks: Vec<File> = (0..streams.len()).map(lock).collect();
        std::thread::scope(|scope| {
            // Dropped before the scope waits for the writers, also when somebody was not served.
            let locks = locks;
            for s in &streams {
                scope.spawn(|| append(s.join("events"), line));
            }
            std::thread::sleep(Duration::from_millis(500));
            for _ in 0..5 {
                bystander.is_served();
            }
            drop(locks);
        });
    }
    for s in &streams {
        assert_eq!(batches(s), ["first\n", &lines[0], &lines[1]]);
    }
}

/// Readers take no lock, not even the first of a stream.
#[test]
fn a_lock_that_is_held_on_a_log_holds_up_no_reader() {
    let m = Mnt::new();
    append(m.stream("s").join("events"), "event\n".repeat(300));
    m.restart();
    let mut bystander = Bystander::new(&m);
    let log = File::open(m.store().join("s/log")).unwrap();
    log.lock().unwrap();
    let (done, all) = std::sync::mpsc::channel();
    for n in 0..200 {
        let (s, done) = (m.path().join("s"), done.clone());
        std::thread::spawn(move || {
            let name = ["from", "at", "follow"][n % 3];
            let there = fs::symlink_metadata(s.join(format!("{name}/{n}"))).is_ok();
            done.send(there && read(s.join(format!("at/{n}"))) == b"event").unwrap();
        });
    }
    bystander.is_served();
    for _ in 0..200 {
        assert_eq!(all.recv_timeout(Duration::from_secs(30)), Ok(true));
    }
    drop(log);
    append(m.path().join("s/events"), "more\n");
}
