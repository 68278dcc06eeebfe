//! Who follows a stream that is damaged, or lost events, gets what is intact, and is told.

use super::{A_WHILE, Follower, three};
use crate::commit::python;
use crate::format;
use crate::harness::*;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;

/// Stream `s` of the daemon with the events 0, 1, 2, ..., each a commit of its own that begins on a
/// page which the one before does not begin on.
fn pages(m: &Mnt, events: u64) -> std::path::PathBuf {
    let s = m.stream("s");
    for n in 0..events {
        append(s.join("events"), page(n) + "\n");
    }
    s
}

fn page(n: u64) -> String {
    format!("{n:0>5000}")
}

/// Where in the log of `s` event `n` begins, when each is a commit.
fn begins(m: &Mnt, n: u64) -> u64 {
    let blocks = format::blocks(&read(m.store().join("s/log")));
    let first = blocks.iter().find(|b| b.index == n && b.flags & format::FIRST != 0);
    first.unwrap().at as u64
}

/// The stream of three, and somebody who has read it and waits for more.
fn waiting(m: &Mnt) -> (std::path::PathBuf, Follower) {
    let s = three(m);
    let cat = Follower::cat(&s, "follow/beginning");
    cat.prints(&["0", "1", "2"]);
    (s, cat)
}

/// An index that is another log's is believed in nothing, and what is damaged ends no daemon.
#[test]
fn who_follows_a_damaged_stream_gets_what_is_intact() {
    let m = Mnt::new();
    let s = pages(&m, 3);
    m.stop();
    let [log, index] = ["log", "index"].map(|name| {
        let path = m.store().join("s").join(name);
        File::options().write(true).open(path).unwrap()
    });
    log.write_all_at(b"?", begins(&m, 0) + 16).unwrap();
    index.write_all_at(&7u64.to_le_bytes(), 8).unwrap();
    index.write_all_at(&(1u64 << 40).to_le_bytes(), 16 + 2 * 8).unwrap();
    m.restart();
    let mut reader = Follower::cat(&s, "follow/2");
    reader.prints(&[&page(2)]);
    reader.is_quiet(A_WHILE);
    m.stop();
    reader.ends_well();
}

/// An event is damaged, and so is the last one: nothing says what there was.
#[test]
fn who_polls_at_the_end_of_a_stream_that_lost_events_is_told() {
    let m = Mnt::new();
    let s = pages(&m, 4);
    m.stop();
    let log = File::options().write(true).open(m.store().join("s/log")).unwrap();
    for damaged in [begins(&m, 1), begins(&m, 3)] {
        log.write_all_at(b"?", damaged + 16).unwrap();
    }
    // Also where the last one ends.
    let last = format::last(&read(m.store().join("s/index")));
    log.write_all_at(b"?", last + 16).unwrap();
    m.restart();
    let script = "
import select
fd = os.open('follow/2', os.O_RDONLY)
assert os.read(fd, 5001) == b'2'.zfill(5000) + b'\\n'
assert select.select([fd], [], [], 5)[0]
print(error(os.read, fd, 100))
";
    assert_eq!(ok(&python(&s, script)), "Input/output error\n");
}

/// What it waits at is not there any more, and the index has another end: it is not taken for the end.
#[test]
fn who_waits_at_the_end_of_a_stream_that_loses_events_is_told() {
    let m = Mnt::new();
    let (s, mut cat) = waiting(&m);
    let store = m.store().join("s");
    let log = OpenOptions::new().write(true).open(store.join("log")).unwrap();
    log.write_all_at(b"!", begins(&m, 0) + 16).unwrap();
    format::set_last(&store, 41);
    assert_eq!(cat.ends().code(), Some(1), "an error, not the end");
    assert_eq!(read(s.join("count")), b"3\n");
}

/// The last event and the index are gone.
#[test]
fn who_waits_behind_an_event_that_got_lost_with_the_index_is_told() {
    let m = Mnt::new();
    let (s, mut cat) = waiting(&m);
    let store = m.store().join("s");
    let log = OpenOptions::new().write(true).open(store.join("log")).unwrap();
    log.write_all_at(&[0; 18], begins(&m, 0)).unwrap();
    fs::remove_file(store.join("index")).unwrap();
    assert_eq!(cat.ends().code(), Some(1), "an error, not the end");
    assert_eq!(read(s.join("count")), b"3\n");
}
