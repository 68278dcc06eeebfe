//! What a follower gets: what is there, and then each commit, once and in order.

use super::{A_WHILE, Follower, ms, three};
use crate::commit::python;
use crate::harness::*;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::thread::sleep;
use std::time::Instant;

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
