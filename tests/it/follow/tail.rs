//! tail(1), of GNU and of busybox: what is there, and then what comes.

use super::{A_WHILE, Follower, ms, three};
use crate::harness::*;
use std::time::Duration;

/// tail prints what is there and then what comes.
#[track_caller]
fn tails(command: &[&str], there: &[&str]) {
    let m = Mnt::new();
    let s = three(&m);
    let mut all = vec!["stdbuf", "-oL"];
    all.extend(command);
    let mut tail = Follower::start(&s, &all);
    tail.prints(there);
    tail.is_quiet(A_WHILE);
    for n in ["3", "4"] {
        append(s.join("events"), format!("{n}\n"));
        tail.prints(&[n]);
    }
    append(s.join("events"), "5\n6\n");
    tail.prints(&["5", "6"]);
    // GNU tail -F looks at the name again after some rounds without news.
    tail.is_quiet(Duration::from_secs(7));
    append(s.join("events"), "7\n");
    tail.prints(&["7"]);
    tail.is_quiet(ms(1500));
}

#[test]
fn gnu_tail_follows() {
    tails(&["tail", "-f", "events"], &["0", "1", "2"]);
    tails(&["tail", "-f", "from/1"], &["1", "2"]);
    tails(&["tail", "-n1", "-f", "events"], &["2"]);
}

#[test]
fn gnu_tail_follows_a_named_horizon() {
    tails(&["tail", "-f", "from/newest"], &["2"]);
    tails(&["tail", "-n0", "-f", "from/beginning"], &[]);
}

#[test]
fn gnu_tail_follows_by_name() {
    tails(&["tail", "-F", "events"], &["0", "1", "2"]);
    tails(&["tail", "-F", "from/1"], &["1", "2"]);
}

#[test]
fn busybox_tail_follows() {
    tails(&["busybox", "tail", "-f", "events"], &["0", "1", "2"]);
    tails(&["busybox", "tail", "-f", "from/1"], &["1", "2"]);
    tails(&["busybox", "tail", "-f", "from/newest"], &["2"]);
}

#[test]
fn busybox_tail_follows_by_name() {
    tails(&["busybox", "tail", "-F", "events"], &["0", "1", "2"]);
    tails(&["busybox", "tail", "-F", "from/1"], &["1", "2"]);
}

/// tail with what waits itself. (busybox tail wants the end first, which never comes.)
#[test]
fn gnu_tail_reads_a_follower() {
    for options in ["-n+1", "-fn+1"] {
        let m = Mnt::new();
        let s = three(&m);
        let tail = Follower::start(&s, &["stdbuf", "-oL", "tail", options, "follow/1"]);
        tail.prints(&["1", "2"]);
        append(s.join("events"), "3\n");
        tail.prints(&["3"]);
    }
}

/// A named horizon stands for another file after each commit, and tail -F goes after the name: what
/// it printed already comes again. The README says to use -f there.
#[test]
fn tail_f_by_name_of_a_named_horizon_repeats_events() {
    let m = Mnt::new();
    let s = three(&m);
    let tail = Follower::start(&s, &["stdbuf", "-oL", "busybox", "tail", "-F", "from/newest"]);
    tail.prints(&["2"]);
    append(s.join("events"), "3\n");
    tail.prints(&["3", "3"]);
}
