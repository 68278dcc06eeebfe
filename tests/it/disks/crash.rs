//! Daemons that are killed and power that is cut while processes append, again and again.

use super::device::{BLOCK, SECTOR};
use super::machine::Machine;
use super::writers::Writers;
use crate::harness::*;
use crate::sim::env;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;
use std::thread::sleep;
use std::time::Duration;

/// A number below `n`, the same for the same `what`.
fn random(what: impl Hash, n: u64) -> u64 {
    let mut hasher = DefaultHasher::new();
    what.hash(&mut hasher);
    hasher.finish() % n
}

/// So many crashes; then from the start again, for each check reads all there is.
const CHAIN: u64 = 24;

/// Lets processes append, and crashes again and again. Mostly it is looked whether all is there and
/// all can go on; now and then it crashes again before, in its recovery.
fn crashes(m: &Mnt, numbers: Range<u64>, mut crash: impl FnMut(u64)) {
    let mut writers = Writers::start(m);
    writers.all_go_on();
    for n in numbers {
        sleep(Duration::from_millis(random(n, 100)));
        crash(n);
        if n % 3 > 0 {
            writers.check(m);
            writers.probe(m);
            writers.all_go_on();
        }
    }
    writers.stop();
    writers.check(m);
    assert!(!m.log().contains("takes no appends"), "{}", m.log());
    let recovered = m.log().matches("recovered").count();
    println!("{}; {recovered} times events were recovered", writers.report());
}

#[test]
fn what_was_acknowledged_survives_a_daemon_that_is_killed() {
    let kills = env("SMOLSTORE_KILLS").unwrap_or(24);
    for first in (0..kills).step_by(CHAIN as usize) {
        let m = Mnt::new();
        crashes(&m, first..kills.min(first + CHAIN), |_| {
            m.kill(libc::SIGKILL);
            m.restart();
        });
    }
    println!("{kills} kills");
}

/// The file system may find any of so many bytes written, and the others of the same write not.
fn powers_fail(mkfs: &str, torn: usize) {
    let images = env("SMOLSTORE_IMAGES").unwrap_or(8);
    let mut unflushed = 0;
    for first in (0..images).step_by(CHAIN as usize) {
        let machine = Machine::new(mkfs, 1024);
        crashes(&machine.m, first..images.min(first + CHAIN), |n| {
            let writes = random((n, "writes"), 4) as usize;
            unflushed += machine.cut(writes, |write, byte| match n % 4 {
                // What the disk was told last it has.
                0 => true,
                1 => random((n, write, byte / torn), 2) == 0,
                2 => random((n, write), 2) == 0,
                _ => false,
            });
        });
    }
    assert!(unflushed > 0, "no cut had anything to take away");
    println!("{mkfs}: {images} images, {unflushed} writes in them were not flushed");
}

#[test]
fn what_was_acknowledged_survives_a_power_cut_on_ext4() {
    powers_fail("mkfs.ext4 -q", SECTOR);
}

#[test]
fn what_was_acknowledged_survives_a_power_cut_on_xfs() {
    // Its own recovery takes a block of a directory for written whole if its first sector is new
    // (`xlog_recover_get_buf_lsn`), and refuses to mount when it was torn behind that.
    powers_fail("mkfs.xfs -q", BLOCK);
}

#[test]
fn what_was_acknowledged_survives_a_power_cut_on_btrfs() {
    powers_fail("mkfs.btrfs -q", SECTOR);
}
