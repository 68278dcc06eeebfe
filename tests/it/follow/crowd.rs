//! Many who wait: each is woken, none holds up another, and they cost next to nothing.

use super::{A_WHILE, Follower, ms, three};
use crate::harness::*;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

fn threads(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/task")).unwrap().count()
}

/// The CPU time a process has used, in seconds.
fn cpu(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    let ticks = |n: usize| fields[n - 3].parse::<f64>().unwrap();
    (ticks(14) + ticks(15)) / unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as f64
}

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
