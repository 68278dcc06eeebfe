//! The end of a wait: the stream or its name goes away, or the mount does.

use super::{Follower, ms, three};
use crate::harness::*;
use std::fs;
use std::path::Path;
use std::time::Duration;

/// A waiting cat on the stream `s` of `of` comes to the end of the file when `what` is done.
#[track_caller]
fn ends_when(of: &Mnt, what: impl FnOnce(&Path)) {
    let s = of.path().join("s");
    let mut cat = Follower::cat(&s, "follow/next");
    cat.is_quiet(ms(50));
    what(of.path());
    cat.ends_well();
}

#[test]
fn rename_ends_the_waits() {
    let m = Mnt::new();
    three(&m);
    ends_when(&m, |path| {
        fs::rename(path.join("s"), path.join("t")).unwrap();
    });
    let cat = Follower::cat(&m.path().join("t"), "follow/2");
    append(m.path().join("t/events"), "3\n");
    cat.prints(&["2", "3"]);
}

#[test]
fn rmdir_ends_the_waits() {
    let m = Mnt::new();
    m.stream("s");
    ends_when(&m, |path| fs::remove_dir(path.join("s")).unwrap());
}

#[test]
fn a_stream_that_takes_the_name_ends_the_waits() {
    let m = Mnt::new();
    m.stream("s");
    append(m.stream("t").join("events"), "other\n");
    ends_when(&m, |path| {
        fs::rename(path.join("t"), path.join("s")).unwrap();
    });
}

#[test]
fn another_mount_that_removes_the_stream_ends_the_waits() {
    let m = Mnt::new();
    m.stream("s");
    let other = Mnt::on(m.store(), &[]);
    ends_when(&m, |_| fs::remove_dir(other.path().join("s")).unwrap());
}

/// A rename elsewhere is not noticed: the open file goes on with the stream it was opened on.
#[test]
fn another_mount_that_renames_the_stream_loses_no_event() {
    let m = Mnt::new();
    let s = three(&m);
    let other = Mnt::on(m.store(), &[]);
    let cat = Follower::cat(&s, "follow/next");
    fs::rename(other.path().join("s"), other.path().join("t")).unwrap();
    append(other.path().join("t/events"), "3\n");
    cat.prints(&["3"]);
}

#[test]
fn sigterm_ends_the_waits() {
    let m = Mnt::new();
    three(&m);
    ends_when(&m, |_| m.stop());
}

#[test]
fn a_lazy_unmount_ends_the_waits() {
    let m = Mnt::new();
    three(&m);
    ends_when(&m, unmount);
    assert!(m.wait(Duration::from_secs(5)).is_some(), "the daemon is there still");
}

#[test]
fn a_forced_unmount_and_a_killed_daemon_end_the_waits() {
    for end in [true, false] {
        let m = Mnt::new();
        let s = three(&m);
        let mut cat = Follower::cat(&s, "follow/next");
        if end {
            ok(&sh("sh", "umount -f -l mnt", m.path().parent().unwrap()));
        } else {
            m.kill(libc::SIGKILL);
        }
        assert_eq!(cat.ends().code(), Some(1), "an error, which no event is lost by");
    }
}
