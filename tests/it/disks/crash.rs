//! Daemons that are killed and power that is cut while processes append, again and again.

use super::machine::Machine;
use super::writers::{KINDS, Writers};
use crate::harness::*;
use crate::sim::env;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::thread::sleep;
use std::time::Duration;

/// A number below `n`, the same for the same `what`.
fn random(what: impl Hash, n: u64) -> u64 {
    let mut hasher = DefaultHasher::new();
    what.hash(&mut hasher);
    hasher.finish() % n
}

// ---- killed ----------------------------------------------------------------------------------

#[test]
fn what_was_acknowledged_survives_the_daemon_being_killed() {
    let kills = env("SMOLSTORE_KILLS").unwrap_or(24);
    let mut acknowledged = 0;
    // Now and then from the start again, for each check reads all there is.
    for first in (0..kills).step_by(24) {
        let m = Mnt::new();
        let mut writers = Writers::start(&m, &KINDS);
        writers.all_go_on();
        for kill in first..kills.min(first + 24) {
            // Every other time nobody looks in between, so that it is also killed while it recovers.
            sleep(Duration::from_millis(random(kill, 100)));
            m.kill(libc::SIGKILL);
            m.restart();
            if kill % 2 == 0 {
                writers.check(&m);
                writers.probe(&m);
                writers.all_go_on();
            }
        }
        writers.stop();
        writers.check(&m);
        assert!(!m.log().contains("takes no appends"), "{}", m.log());
        acknowledged += writers.acknowledged();
        println!("errors: {:?}", writers.errors());
    }
    println!("{kills} kills, {acknowledged} batches acknowledged");
}

// ---- without power ---------------------------------------------------------------------------

/// Cuts the power again and again while writers append.
fn powers_fail(mkfs: &str, mib: u64) {
    let images = env("SMOLSTORE_IMAGES").unwrap_or(8);
    let mut acknowledged = 0;
    for first in (0..images).step_by(8) {
        let mut machine = Machine::new(mkfs, mib);
        let mut writers = Writers::start(&machine.m, &KINDS);
        writers.all_go_on();
        for image in first..images.min(first + 8) {
            sleep(Duration::from_millis(random(image, 100)));
            machine.cut(|write, sector| match image % 4 {
                // What the disk was told last, it has.
                0 => true,
                1 => random((image, write, sector), 2) == 0,
                2 => false,
                _ => random((image, write), 2) == 0,
            });
            // Every fourth time the power fails again before anybody looks.
            if image % 4 != 3 {
                writers.check(&machine.m);
                writers.probe(&machine.m);
                writers.all_go_on();
            }
        }
        writers.stop();
        writers.check(&machine.m);
        let said = machine.m.log();
        assert!(!said.contains("takes no appends"), "{said}");
        acknowledged += writers.acknowledged();
        println!("errors: {:?}", writers.errors());
    }
    println!("{images} images, {acknowledged} batches acknowledged");
}

#[test]
fn what_was_acknowledged_survives_a_power_cut_on_ext4() {
    powers_fail("mkfs.ext4 -q", 1024);
}

#[test]
fn what_was_acknowledged_survives_a_power_cut_on_xfs() {
    powers_fail("mkfs.xfs -q", 1024);
}

#[test]
fn what_was_acknowledged_survives_a_power_cut_on_btrfs() {
    powers_fail("mkfs.btrfs -q", 1024);
}
