//! Daemons that are killed and power that is cut while events are dropped.

use super::machine::Machine;
use crate::harness::*;
use crate::sim::env;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

/// Event `n`: some are longer than a page, and there are holes soon.
fn event(n: u64) -> String {
    format!("{n} {}\n", "x".repeat(n as usize * 389 % 6000))
}

/// What holds of a stream of such events of which those before `least` were dropped.
fn check(s: &Path, least: u64, appended: u64) {
    let first: u64 = text(&read(s.join("first"))).trim().parse().unwrap();
    let count = count(s);
    assert!(first >= least && count >= appended, "{first} {least} {count} {appended}");
    let kept: String = (first..count).map(event).collect();
    assert!(text(&read(s.join("events"))) == kept, "from {first} to {count}");
    if first > 0 {
        assert_eq!(errno_of(fs::metadata(s.join(format!("at/{}", first - 1)))), libc::ENODATA);
    }
    if first < count {
        assert_eq!(text(&read(s.join(format!("at/{first}")))), event(first).trim_end_matches('\n'));
    }
}

/// Appends and drops, one after the other, until `crash` makes that fail, again and again. What was
/// acknowledged holds, and is never undone.
fn crashes(m: &Mnt, rounds: u64, mut crash: impl FnMut(u64)) {
    let s = m.stream("s");
    append(s.join("events"), event(0));
    let (first, next) = (AtomicU64::new(0), AtomicU64::new(1));
    for round in 0..rounds {
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            let user = scope.spawn(|| {
                while !over.load(SeqCst) {
                    let n = next.load(SeqCst);
                    if try_append(s.join(format!("from/{n}")), event(n)).is_ok() {
                        next.store(n + 1, SeqCst);
                    }
                    let keep = n.div_ceil(2) + n % 5;
                    if n % 3 == 0
                        && keep <= n
                        && fs::write(s.join("first"), keep.to_string()).is_ok()
                    {
                        first.fetch_max(keep, SeqCst);
                    }
                }
            });
            thread::sleep(Duration::from_millis(40 + round * 37 % 100));
            over.store(true, SeqCst);
            crash(round);
            user.join().unwrap();
        });
        check(&s, first.load(SeqCst), next.load(SeqCst));
        next.store(count(&s), SeqCst);
    }
    assert!(first.load(SeqCst) > 10, "dropped up to {first:?}");
    ok(&smolstore(["check".as_ref(), m.store()]).output().unwrap());
}

#[test]
fn what_was_dropped_stays_dropped_when_daemons_are_killed() {
    let m = Mnt::new();
    crashes(&m, env("SMOLSTORE_KILLS").unwrap_or(16), |_| {
        m.kill(libc::SIGKILL);
        m.restart();
    });
}

/// Of what the disk was told last all, some or nothing is there. No write is torn, as in `crash`: with
/// every other sector of one, ext4 and XFS at times refused to mount.
fn powers_fail(mkfs: &str) {
    let machine = Machine::new(mkfs, 1024);
    crashes(&machine.m, env("SMOLSTORE_IMAGES").unwrap_or(6), |round| {
        machine.cut(round as usize % 4, |write, _| match round % 3 {
            0 => true,
            1 => (write + round as usize).is_multiple_of(2),
            _ => false,
        });
    });
}

#[test]
fn what_was_dropped_stays_dropped_when_the_power_fails_on_ext4() {
    powers_fail("mkfs.ext4 -q");
}

#[test]
fn what_was_dropped_stays_dropped_when_the_power_fails_on_xfs() {
    powers_fail("mkfs.xfs -q");
}

#[test]
fn what_was_dropped_stays_dropped_when_the_power_fails_on_btrfs() {
    powers_fail("mkfs.btrfs -q");
}
