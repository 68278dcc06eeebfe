//! Disks that fail: sectors that can be neither written nor read, and all of them at once.

use super::failing::{EIO, UNKNOWN};
use super::machine::Machine;
use super::writers::{KINDS, Writers};
use crate::format::{self, HEAD};
use crate::harness::*;
use std::fs;
use std::path::Path;

/// What the disk can neither write nor read.
const BAD: &[u8] = b"no disk shall take this";

fn cannot_write(mkfs: &str) {
    let machine = Machine::new(mkfs, 512);
    let m = &machine.m;
    let (s, other) = (m.stream("s"), m.stream("other"));
    append(s.join("events"), "first\n");
    append(other.join("events"), "first\n");
    let bad = [BAD, b"\nand more\n"].concat();
    machine.device.spoil(Some(BAD));
    for _ in 0..2 {
        assert_eq!(errno_of(try_append(s.join("events"), &bad)), EIO);
        assert!(m.log().contains(UNKNOWN), "{}", m.log());
        assert_eq!(text(&read(s.join("at/0"))), "first");
    }
    append(other.join("events"), "second\n");
    // Of other bytes the sector takes what it is given.
    m.restart();
    append(s.join("from/1"), "again\n");
    let check = || {
        assert_eq!(text(&read(s.join("events"))), "first\nagain\n");
        assert_eq!(text(&read(other.join("events"))), "first\nsecond\n");
    };
    check();
    machine.device.spoil(None);
    machine.cut(0, |_, _| false);
    check();
    append(s.join("from/2"), &bad);
}

#[test]
fn a_sector_that_cannot_be_written_on_ext4() {
    cannot_write("mkfs.ext4 -q");
}

#[test]
fn a_sector_that_cannot_be_written_on_xfs() {
    cannot_write("mkfs.xfs -q");
}

#[test]
fn a_sector_that_cannot_be_written_on_btrfs() {
    cannot_write("mkfs.btrfs -q");
}

fn cannot_read(mkfs: &str) {
    let machine = Machine::new(mkfs, 512);
    let m = &machine.m;
    let (s, other) = (m.stream("s"), m.stream("other"));
    append(other.join("events"), "other\n");
    // Kernels read in pieces of up to 2 MiB, and such a piece is readable or not.
    let line = |n: u64| match n {
        1 => [&vec![b'x'; 3 << 20][..], BAD, &vec![b'x'; 3 << 20]].concat(),
        n => vec![b'0' + n as u8; 6 << 20],
    };
    for n in 0..3 {
        append(s.join("events"), line(n));
    }
    m.stop();
    machine.remount();
    machine.device.spoil(Some(BAD));
    m.restart();
    assert_eq!(errno_of(fs::read(s.join("at/1"))), EIO);
    assert_eq!(errno_of(fs::read(s.join("from/1"))), EIO);
    assert!(m.log().contains(r#"stream "s", event 1: "#), "{}", m.log());
    assert!(read(s.join("at/0")) == line(0));
    assert!(read(s.join("at/2")) == line(2));
    append(s.join("from/3"), "more\n");
    assert_eq!(text(&read(other.join("events"))), "other\n");
    machine.device.spoil(None);
    assert!(read(s.join("at/1")) == line(1));
    assert_eq!(text(&read(s.join("from/3"))), "more\n");
}

#[test]
fn a_sector_that_cannot_be_read_on_ext4() {
    cannot_read("mkfs.ext4 -q");
}

#[test]
fn a_sector_that_cannot_be_read_on_xfs() {
    cannot_read("mkfs.xfs -q");
}

#[test]
fn a_sector_that_cannot_be_read_on_btrfs() {
    cannot_read("mkfs.btrfs -q");
}

/// The whole disk fails while processes append, and works again after the machine was switched off.
fn dies(mkfs: &str) {
    let machine = Machine::new(mkfs, 512);
    let mut writers = Writers::start(&machine.m);
    for _ in 0..2 {
        writers.all_go_on();
        machine.device.spoil(Some(b""));
        eventually("all have met it", || writers.meet(&KINDS, &["EIO", "EROFS"]));
        machine.device.spoil(None);
        machine.cut(0, |_, _| true);
        writers.check(&machine.m);
        writers.probe(&machine.m);
    }
    writers.all_go_on();
    println!("{}", writers.report());
}

#[test]
fn a_disk_that_dies_below_ext4() {
    dies("mkfs.ext4 -q");
}

#[test]
fn a_disk_that_dies_below_xfs() {
    dies("mkfs.xfs -q");
}

#[test]
fn a_disk_that_dies_below_btrfs() {
    dies("mkfs.btrfs -q");
}

/// As ext4 becomes after an error. Streams that were not open before can be read, too.
#[test]
fn a_file_system_that_became_read_only_can_be_read() {
    let disk = SmallDisk::new(24);
    let store = disk.path().join("store");
    fs::create_dir(&store).unwrap();
    let m = Mnt::on(&store, &[]);
    let [whole, behind, bare] = ["whole", "behind", "bare"].map(|name| m.stream(name));
    for s in [&whole, &behind, &bare] {
        append(s.join("events"), "one\n");
        append(s.join("events"), "two\n");
    }
    m.stop();
    // What a crash leaves: it is to be recovered.
    format::set_last(&store.join("behind"), HEAD as u64);
    fs::remove_file(store.join("bare/index")).unwrap();
    m.restart();
    let remount = |how: &str| {
        let to = disk.path().display().to_string();
        ok(&sh("sh", &format!("mount -o remount,{how} {to}"), Path::new("/")));
    };
    remount("ro");
    for _ in 0..2 {
        assert_eq!(text(&read(whole.join("events"))), "one\ntwo\n");
        assert_eq!(text(&read(behind.join("events"))), "one\ntwo\n", "what `last` lags behind");
        assert_eq!(text(&read(bare.join("events"))), "one\ntwo\n");
        assert_eq!(errno_of(try_append(whole.join("events"), "refused\n")), libc::EROFS);
        // Which may be in memory only: nobody is told that its index is taken.
        for guard in ["from/1", "from/2"] {
            assert_eq!(errno_of(try_append(behind.join(guard), "refused\n")), libc::EROFS);
        }
    }
    remount("rw");
    for s in [&whole, &behind, &bare] {
        assert_eq!(errno_of(try_append(s.join("from/1"), "refused\n")), libc::EEXIST);
        append(s.join("from/2"), "three\n");
        assert_eq!(text(&read(s.join("events"))), "one\ntwo\nthree\n");
    }
}
