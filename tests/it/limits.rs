//! Bounded resources: descriptors and memory of the daemon, whatever its users do.

use crate::commit::batches;
use crate::harness::*;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};

const FILES_MAX: usize = 2_000;
const PEAK_KIB_MAX: u64 = 200 * 1024;

#[track_caller]
fn bounded(m: &Mnt) {
    let (files, peak) = (m.open_files(), m.rss_peak_kib());
    assert!(files < FILES_MAX, "{files} files open");
    assert!(peak < PEAK_KIB_MAX, "{peak} KiB");
}

/// Opens many files in a process of its own, as descriptors of this one would pass to other tests' children.
const HOLDER: &str = "
import os, resource, sys
hard = max(12000, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
resource.setrlimit(resource.RLIMIT_NOFILE, (12000, hard))
files = []
for n in range(10000):
    files.append(os.open('s%d/events' % (n % 200), os.O_WRONLY | os.O_APPEND))
    os.write(files[-1], b'pending %d\\n' % n)
print('pending', flush=True)
sys.stdin.readline()
for file in files[:5000]:
    os.close(file)
print('half', flush=True)
sys.stdin.readline()
";

#[test]
fn ten_thousand_open_files_with_a_batch_each() {
    need("python3", "python3");
    let m = Mnt::new();
    let streams: Vec<_> = (0..200).map(|n| m.stream(format!("s{n}"))).collect();
    let mut python = Command::new("python3");
    python.args(["-c", HOLDER]).current_dir(m.path()).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut python = Reaped(python.spawn().unwrap());
    let mut said = BufReader::new(python.0.stdout.take().unwrap()).lines();
    let mut go_on = python.0.stdin.take().unwrap();

    assert_eq!(said.next().unwrap().unwrap(), "pending");
    bounded(&m);
    assert!(streams.iter().all(|s| count(s) == 0), "nothing is committed yet");
    let other = m.stream("other");
    append(other.join("events"), "served\n");
    assert_eq!(read(other.join("events")), b"served\n");

    go_on.write_all(b"\n").unwrap();
    assert_eq!(said.next().unwrap().unwrap(), "half");
    bounded(&m);
    assert!(streams.iter().all(|s| count(s) == 25), "what was closed is committed");

    // What was acknowledged survives the daemon, what was not does not.
    m.kill(libc::SIGKILL);
    m.restart();
    for (n, s) in streams.iter().enumerate() {
        let want: String = (0..25).map(|k| format!("pending {}\n", n + 200 * k)).collect();
        assert_eq!(text(&read(s.join("events"))), want);
    }
    drop(go_on);
}

#[test]
fn three_thousand_streams_touched_once() {
    let m = Mnt::new();
    let limited = || limit_files(&m, FILES_MAX as u64 - 1);
    limited();
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let m = &m;
            scope.spawn(move || {
                for n in (thread..3_000).step_by(8) {
                    let s = m.stream(format!("s{n}"));
                    append(s.join("events"), format!("the one of {n}\n"));
                    assert_eq!(count(&s), 1);
                }
            });
        }
    });
    let check = || {
        for n in 0..3_000 {
            let events = read(m.path().join(format!("s{n}/events")));
            assert_eq!(text(&events), format!("the one of {n}\n"));
        }
        bounded(&m);
    };
    check();
    m.kill(libc::SIGKILL);
    m.restart();
    limited();
    check();
}

/// The daemon may have so many descriptors; streams that nobody uses give up theirs.
fn limit_files(m: &Mnt, most: u64) {
    let pid = m.pid().cast_signed();
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    let (of, none) = (libc::RLIMIT_NOFILE, std::ptr::null_mut());
    assert_eq!(unsafe { libc::prlimit(pid, of, none, &raw mut limit) }, 0);
    // Only so that it can be lifted again.
    limit.rlim_cur = most;
    assert_eq!(unsafe { libc::prlimit(pid, of, &raw const limit, none) }, 0);
}

#[test]
fn idle_streams_give_up_their_descriptors_to_those_in_use() {
    let m = Mnt::new();
    let streams: Vec<PathBuf> = (0..200).map(|n| m.stream(format!("s{n}"))).collect();
    limit_files(&m, 64);
    let mut followers = Vec::new();
    for s in &streams {
        append(s.join("events"), "one\n");
        followers.push(fs::File::open(s.join("follow/0")).unwrap());
    }
    let mut bytes = [0; 4];
    for (mut follower, s) in followers.iter().zip(&streams) {
        follower.read_exact(&mut bytes).unwrap();
        append(s.join("events"), "two\n");
        follower.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"two\n");
    }
}

#[test]
fn emfile_where_no_descriptor_is_left() {
    let m = Mnt::new();
    let s = m.stream("s");
    limit_files(&m, m.open_files() as u64);
    assert_eq!(errno_of(try_append(s.join("events"), "lost\n")), libc::EMFILE);
    limit_files(&m, 64);
    append(s.join("events"), "one\n");
    assert_eq!(batches(&s), ["one\n"]);
}

#[test]
fn two_hundred_thousand_streams() {
    const STREAMS: usize = 200_000;
    let m = Mnt::new();
    m.stop();
    // As the mount would make them, without as many requests.
    for n in 0..STREAMS {
        fs::create_dir(m.store().join(format!("s{n}"))).unwrap();
    }
    m.restart();
    let mut seen = vec![false; STREAMS];
    for name in names(m.path()) {
        let n: usize = name.to_str().unwrap()[1..].parse().unwrap();
        assert!(!std::mem::replace(&mut seen[n], true), "s{n} came twice");
    }
    assert!(seen.iter().all(|seen| *seen), "one is missing");
    let last = m.path().join("s199999");
    append(last.join("events"), "x\n");
    fs::rename(&last, m.path().join("renamed")).unwrap();
    fs::remove_dir(m.path().join("s7")).unwrap();
    assert!(!m.path().join("s7").exists() && !last.exists());
    assert_eq!(count(&m.path().join("renamed")), 1);
    // What `ls -l` does; the kernel, and so the daemon, keeps the names it was told.
    for n in (0..STREAMS - 1).filter(|n| *n != 7) {
        assert!(fs::metadata(m.path().join(format!("s{n}"))).unwrap().is_dir());
    }
    bounded(&m);
}
