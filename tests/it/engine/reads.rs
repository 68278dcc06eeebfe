//! How much of a log and an index is read, for what.

use super::{Seen, Watched, watched};
use crate::format::{self, CONT, LAST, MORE, blocks};
use smolstore::Store;
use smolstore::disk::Real;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use tempfile::TempDir;

/// So many bytes of this file were read.
fn bytes_of(reads: &[(&'static str, u64, usize)], file: &str) -> usize {
    reads.iter().filter(|(name, ..)| *name == file).map(|(.., len)| len).sum()
}

/// A stream of 8 MiB in which event n is at byte 40 n of the view, in commits of 1,000 events.
fn long(dir: &TempDir) -> u64 {
    let store = Store::open(dir.path(), false).unwrap();
    store.create("s", 0o755).unwrap();
    let s = store.stream("s").unwrap();
    for n in 0..200u64 {
        s.append((n * 1000..(n + 1) * 1000).map(|n| format!("{n:0>39}")), None).unwrap();
    }
    200_000
}

/// Not the log.
#[test]
fn the_first_use_of_a_stream_reads_one_block_and_what_came_after_it() {
    let dir = TempDir::new().unwrap();
    let count = long(&dir);
    let (store, seen) = watched(&dir);
    let s = store.stream("s").unwrap();
    assert_eq!(s.count(), Ok(count));
    let reads = seen.take_reads();
    let log = blocks(&fs::read(dir.path().join("s/log")).unwrap());
    let last = log.last().unwrap().at as u64;
    let others =
        reads.iter().filter(|(file, at, _)| *file == "log" && *at != 0 && at + 4096 <= last);
    assert_eq!(others.count(), 0, "{reads:?}");
    // And the room ahead: were there damage, what is behind would have to be found.
    let ahead = fs::metadata(dir.path().join("s/log")).unwrap().len() - last;
    assert!(bytes_of(&reads, "log") as u64 <= ahead + 2 * (256 << 10), "{reads:?}");
    assert!(bytes_of(&reads, "index") < 100, "{reads:?}");
    // What came after it: a quarter.
    let earlier = log[log.len() * 3 / 4..].iter().find(|block| block.flags & LAST > 0).unwrap().at;
    format::set_last(&dir.path().join("s"), earlier as u64);
    let (store, seen) = watched(&dir);
    assert_eq!(store.stream("s").unwrap().count(), Ok(count));
    let reads = seen.take_reads();
    let before = reads
        .iter()
        .filter(|(file, at, _)| *file == "log" && *at != 0 && at + 4096 <= earlier as u64);
    assert_eq!(before.count(), 0, "{reads:?}");
}

#[test]
fn with_its_index_deleted_a_log_is_read_once() {
    let dir = TempDir::new().unwrap();
    let count = long(&dir);
    fs::remove_file(dir.path().join("s/index")).unwrap();
    let len = fs::metadata(dir.path().join("s/log")).unwrap().len();
    for read_only in [true, false] {
        let (path, seen) = (dir.path().to_path_buf(), Arc::new(Seen::default()));
        let disk = Watched { real: Real::local(path), seen: seen.clone() };
        let store = Store::on(disk, read_only, Box::new(|_| {}));
        let s = store.stream("s").unwrap();
        assert_eq!(s.count(), Ok(count));
        let reads = seen.take_reads();
        // Who may write nothing gives up the cache, and reads what the disk has.
        let times = if read_only { 2 } else { 1 };
        assert!(bytes_of(&reads, "log") as u64 <= times * len + (2 << 20), "of {len}: {reads:?}");
        assert!(reads.len() as u64 <= times * len / (256 << 10) + 50, "{}", reads.len());
        seen.take_reads();
        for n in [0, 77_777, count - 1] {
            assert_eq!(s.event(n).unwrap().bytes, format!("{n:0>39}").as_bytes());
        }
        // A search among 2,000 pages that tell of themselves.
        assert!(seen.take_reads().len() < 200);
    }
    // Made again as pages are met.
    let (store, seen) = watched(&dir);
    let s = store.stream("s").unwrap();
    s.event(77_777).unwrap();
    seen.take_reads();
    s.event(77_777).unwrap();
    let reads = seen.take_reads();
    let pages: BTreeSet<u64> = reads.iter().filter(|r| r.0 == "log").map(|r| r.1 / 4096).collect();
    assert!(pages.len() <= 3, "head, end and one: {reads:?}");
}

#[test]
fn to_read_a_small_event_is_a_page_of_the_log_and_a_few_words_of_the_index() {
    let dir = TempDir::new().unwrap();
    let count = long(&dir);
    let log_blocks = blocks(&fs::read(dir.path().join("s/log")).unwrap());
    let end = log_blocks.last().unwrap().at as u64;
    let (store, seen) = watched(&dir);
    let s = store.stream("s").unwrap();
    for n in [0, 1, 12_345, 100_000, 100_001, count - 1] {
        seen.take_reads();
        let event = s.event(n).unwrap();
        assert_eq!(event.bytes, format!("{n:0>39}").as_bytes());
        let reads = seen.take_reads();
        // But for the head, and a look whether there is more at the end.
        let other = |at: u64| at > 0 && at / 4096 != end / 4096;
        let log = reads.iter().filter(|(file, at, _)| *file == "log" && other(*at));
        let pages: BTreeSet<u64> =
            log.flat_map(|(_, at, len)| at / 4096..(at + *len as u64).div_ceil(4096)).collect();
        // Two where it lies across their border.
        let cut = log_blocks
            .iter()
            .any(|b| (b.index == n && b.flags & CONT > 0) || (b.next() == n && b.flags & MORE > 0));
        assert!(pages.len() <= 1 + usize::from(cut), "{n}: {reads:?}");
        // log2 of 2,000 pages.
        assert!(bytes_of(&reads, "index") <= 30 * 16, "{n}: {reads:?}");
    }
}

/// The disk lost a megabyte of a log and a part of the index. Whoever reads all events one by one, as the
/// README says, does not look for each through all events that are lost before it: through their pages at
/// most.
#[test]
fn many_damaged_events_in_a_row_are_passed_soon() {
    let dir = TempDir::new().unwrap();
    let (store, _) = watched(&dir);
    store.create("s", 0o755).unwrap();
    const COUNT: u64 = 60_000;
    let events = (0..COUNT).map(|n| format!("{n:0>39}"));
    store.stream("s").unwrap().append(events, None).unwrap();
    drop(store);
    let [log, index] = ["s/log", "s/index"].map(|name| dir.path().join(name));
    let found = blocks(&fs::read(&log).unwrap());
    let lost = &found[found.len() / 4..found.len() * 3 / 4];
    let (from, to) = (&lost[0], &lost[lost.len() - 1]);
    let log = File::options().write(true).open(log).unwrap();
    log.write_all_at(&vec![0; to.end() - from.at], from.at as u64).unwrap();
    let index = File::options().write(true).open(index).unwrap();
    index.write_all_at(&[0; 16 * 100], 16 + (to.at / 4096 * 16) as u64 - 16 * 100).unwrap();
    let (store, seen) = watched(&dir);
    let s = store.stream("s").unwrap();
    // The first and the last that are lost may begin and end on a page that is intact.
    for n in (0..COUNT).step_by(7).chain([from.index, to.next(), COUNT - 1]) {
        seen.take_reads();
        let is_lost = (from.index..to.next() + 1).contains(&n);
        assert_eq!(s.event(n).is_err(), is_lost, "{n}");
        let reads = seen.take_reads().len();
        assert!(reads < 3 * lost.len() + 100, "{n}: {reads}");
    }
    s.since(u64::MAX).unwrap();
}
