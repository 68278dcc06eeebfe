//! Disks without room, without inodes, beyond a quota: on small file systems of each kind, while
//! processes append.

use super::writers::{KINDS, Writers};
use crate::harness::*;
use crate::sim::env;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

const EXT4: &str = "mkfs.ext4 -q -m 0";
const XFS: &str = "mkfs.xfs -q";
const BTRFS: &str = "mkfs.btrfs -q";

/// A directory `store` on a small disk, and a mount of it.
fn on(disk: &SmallDisk) -> Mnt {
    let store = disk.path().join("store");
    fs::create_dir(&store).unwrap();
    Mnt::on(&store, &[])
}

/// Takes room away, again and again, until these kinds of writers meet this error; nothing that
/// was acknowledged suffers, nothing is there by half, also after a remount in between; and all go
/// on when there is room again.
fn runs_out(
    m: &Mnt,
    (kinds, errno): (&[&str], &str),
    mut take: impl FnMut(),
    mut give: impl FnMut(),
    without: impl Fn(&mut Writers),
) {
    let mut writers = Writers::start(m, &KINDS);
    writers.all_go_on();
    let rounds = env("SMOLSTORE_ROUNDS").unwrap_or(3);
    for round in 0..rounds {
        eventually("no writer has room", || {
            take();
            writers.meet(kinds, &[errno])
        });
        writers.check(m);
        match round % 3 {
            0 => {}
            1 => m.restart(),
            _ => {
                m.kill(libc::SIGKILL);
                m.restart();
            }
        }
        eventually("no writer has room", || {
            take();
            writers.meet(kinds, &[errno])
        });
        writers.check(m);
        without(&mut writers);
        let rest: Vec<_> = KINDS.into_iter().filter(|k| !kinds.contains(k)).collect();
        if !rest.is_empty() {
            writers.go_on(&rest);
        }
        writers.check(m);
        give();
        writers.all_go_on();
        writers.probe(m);
        writers.check(m);
    }
    writers.stop();
    writers.check(m);
    m.restart();
    writers.check(m);
    let said = m.log();
    assert!(!said.contains("takes no appends"), "{said}");
    println!("{rounds} rounds, {} acknowledged", writers.acknowledged());
    println!("{:?} {said}", writers.errors());
}

// ---- blocks ----------------------------------------------------------------------------------

/// A file that takes up all room there is.
struct Filler(PathBuf);

impl Filler {
    fn take(&self) {
        let file = File::options().create(true).append(true).open(&self.0);
        let file = file.unwrap();
        for piece in [16 << 20, 1 << 20, 64 << 10, 4 << 10] {
            let mut taken = 0;
            while taken == 0 {
                let end = file.metadata().unwrap().len() as i64;
                taken = unsafe { libc::fallocate(file.as_raw_fd(), 0, end, piece) };
            }
            let error = io::Error::last_os_error();
            assert_eq!(error.raw_os_error(), Some(libc::ENOSPC), "{error}");
        }
    }

    fn give(&self) {
        fs::remove_file(&self.0).unwrap();
        settle(self.0.parent().unwrap());
    }
}

/// What was removed is free once the journal says so.
fn settle(disk: &Path) {
    File::open(disk).unwrap().sync_all().unwrap();
}

/// A shell appends until it is told this; what it was not told is there.
#[track_caller]
fn a_shell_is_told(writers: &mut Writers, m: &Mnt, through: &str, error: &str) {
    // What writers give up may leave some room for it.
    for _ in 0..1000 {
        let out = writers.echo(m, through);
        if !out.status.success() {
            assert!(text(&out.stderr).contains(error), "{}", text(&out.stderr));
            return;
        }
    }
    panic!("it is not told: {error}");
}

fn fills_up(mkfs: &str, mib: u64, through: &str) {
    let disk = SmallDisk::of(mkfs, mib);
    let m = on(&disk);
    let filler = Filler(disk.path().join("filler"));
    let told = |writers: &mut Writers| {
        a_shell_is_told(writers, &m, through, "No space left on device");
    };
    let (take, give) = (|| filler.take(), || filler.give());
    runs_out(&m, (&KINDS, "ENOSPC"), take, give, told);
}

#[test]
fn a_full_ext4() {
    fills_up(EXT4, 24, ">>");
}

#[test]
fn a_full_xfs() {
    fills_up(XFS, 300, ">>");
}

/// Where each write takes new blocks only the commit may meet it, of which bash tells nothing.
#[test]
fn a_full_btrfs() {
    fills_up(BTRFS, 128, "| cat >>");
}

// ---- inodes ----------------------------------------------------------------------------------

/// These need inodes; whoever appends to a stream that is there does not.
const NEED_INODES: [&str; 2] = ["spilled", "maker"];

fn inodes_run_out(mkfs: &str, mib: u64) {
    let disk = SmallDisk::of(mkfs, mib);
    let m = on(&disk);
    let dir = disk.path().join("inodes");
    fs::create_dir(&dir).unwrap();
    let mut made = 0;
    let take = || {
        while File::create(dir.join(made.to_string())).is_ok() {
            made += 1;
        }
    };
    let give = || {
        fs::remove_dir_all(&dir).unwrap();
        fs::create_dir(&dir).unwrap();
        settle(&disk.path());
    };
    let told = |_: &mut Writers| {
        let made = fs::create_dir(m.path().join("one more"));
        assert_eq!(errno_of(made), libc::ENOSPC);
    };
    runs_out(&m, (&NEED_INODES, "ENOSPC"), take, give, told);
}

#[test]
fn an_ext4_without_inodes() {
    inodes_run_out("mkfs.ext4 -q -m 0 -N 512", 64);
}

#[test]
fn an_xfs_without_inodes() {
    inodes_run_out("mkfs.xfs -q -i maxpct=1", 300);
}

// ---- quota -----------------------------------------------------------------------------------

/// btrfs has the only quota that needs nothing from the kernel's configuration, and that holds for
/// root.
#[test]
fn a_quota() {
    let disk = SmallDisk::of(BTRFS, 256);
    let btrfs = |script: &str| ok(&sh("sh", script, &disk.path()));
    btrfs("btrfs quota enable . && btrfs subvolume create store");
    let group = "0/$(btrfs inspect-internal rootid store)";
    let limit = |limit: &str| btrfs(&format!("btrfs qgroup limit {limit} {group} ."));
    let m = Mnt::on(&disk.path().join("store"), &[]);
    let told = |writers: &mut Writers| {
        a_shell_is_told(writers, &m, "| cat >>", "Disk quota exceeded");
    };
    let (take, give) = (|| drop(limit("1M")), || drop(limit("none")));
    runs_out(&m, (&KINDS, "EDQUOT"), take, give, told);
}
