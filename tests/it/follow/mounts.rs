//! Other mounts of the store: what they commit arrives, and nothing they do holds up who waits.

use super::{A_WHILE, Follower, SOON, ms, three};
use crate::harness::*;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::thread::sleep;
use std::time::Instant;

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
