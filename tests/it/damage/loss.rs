//! The disk lost what was acknowledged: the end is an error, and nothing goes behind it.

use super::{log_in, opened, stream_of};
use crate::format::{self, blocks};
use crate::harness::*;
use smolstore::check::Finding;
use smolstore::stream::Cursor;
use smolstore::{Error, Store};
use std::fs;
use std::os::unix::fs::FileExt;

/// The log ends in the middle of the commit that `last` says was acknowledged.
#[test]
fn an_acknowledged_commit_without_its_end_is_a_loss() {
    let event = |n: u64| format!("{n:0>1000}");
    for cut in [0, 1, 500, 3000, 5000, 9000] {
        let (dir, log, _) = stream_of(4, |n| n.to_string());
        opened(dir.path(), false).append((4..20).map(event), None).unwrap();
        let (_, blocks) = log_in(&dir);
        let begin = blocks[4].at;
        log.set_len((begin + cut) as u64).unwrap();
        let intact = self::blocks(&read(dir.path().join("s/log")));
        let (count, at) = (intact.last().unwrap().next(), intact.last().unwrap().end() as u64);
        let mut found = Vec::new();
        let store = Store::open(dir.path(), true).unwrap();
        store.check("s", &mut |finding| found.push(finding), &mut |_, _| {}).unwrap();
        let [Finding::Fault { first, at: found_at, what, .. }] = &found[..] else {
            panic!("{cut}: {found:?}");
        };
        assert_eq!((*first, *found_at), (count, at), "{cut}");
        assert!(what.contains("no more can be appended") && what.contains("backup"), "{what}");
        let stream = opened(dir.path(), false);
        assert_eq!(stream.count(), Ok(count));
        assert!((4..count).all(|n| stream.event(n).unwrap().bytes == event(n).as_bytes()));
        for n in [count, count + 1, 1000] {
            let error = stream.event(n).unwrap_err();
            assert!(matches!(error, Error::Damaged { .. }), "{cut} {n}: {error}");
        }
        let end: usize = intact.iter().map(|block| block.payload.len()).sum();
        for from in [end, end + 1, end + 1000, 1 << 39] {
            let read = stream.read_view(from as u64, 10, &mut Cursor::default());
            assert!(matches!(read, Err(Error::Damaged { .. })), "{cut} {from}: {read:?}");
        }
        let refused = stream.append(["more"], None);
        assert!(matches!(refused, Err(Error::Stopped { .. })), "{cut}: {refused:?}");
        assert_eq!(log.metadata().unwrap().len(), (begin + cut) as u64, "something was cut off");
    }
}

/// What was thought to be there is not where the next event goes, in the same mount.
#[test]
fn a_stream_whose_lost_event_was_given_up_takes_the_next_one_in_its_place() {
    let (dir, log, index) = stream_of(4, |n| format!("event {n}"));
    let last = &log_in(&dir).1[3];
    log.write_all_at(&[0; 48], last.at as u64).unwrap();
    let stream = opened(dir.path(), false);
    assert_eq!(stream.count(), Ok(3));
    assert!(matches!(stream.append(["more"], None), Err(Error::Stopped { .. })));
    drop(index);
    fs::remove_file(dir.path().join("s/index")).unwrap();
    assert_eq!(stream.append(["more"], None), Ok(3));
    let again = opened(dir.path(), false);
    assert_eq!(again.count(), Ok(4));
    assert_eq!(again.event(3).unwrap().bytes, b"more");
}

/// With the index goes what the disk knew of them; a mount that has shown them still does.
#[test]
fn events_that_were_shown_and_got_lost_with_the_index_stop_the_stream() {
    let (dir, log, _index) = stream_of(4, |n| format!("event {n}"));
    let [reader, stream] = [true, false].map(|read_only| opened(dir.path(), read_only));
    for stream in [&reader, &stream] {
        assert_eq!(stream.count(), Ok(4));
    }
    log.write_all_at(&[0; 96], log_in(&dir).1[2].at as u64).unwrap();
    fs::remove_file(dir.path().join("s/index")).unwrap();
    let refused = stream.append(["more"], None);
    assert!(matches!(refused, Err(Error::Stopped { .. })), "over a hole: {refused:?}");
    for stream in [&reader, &stream] {
        assert_eq!(stream.count(), Ok(4), "no less than before");
        assert_eq!(stream.event(1).unwrap().bytes, b"event 1");
        for n in 2..5 {
            assert!(matches!(stream.event(n), Err(Error::Damaged { .. })), "{n}");
        }
    }
}

/// The disk lost what this mount knows to be there, and nobody has told it.
#[test]
fn nothing_is_appended_behind_a_last_block_that_is_not_what_it_was() {
    for other_appends in [false, true] {
        let (dir, log, index) = stream_of(4, |n| format!("event {n}"));
        let stream = opened(dir.path(), false);
        assert_eq!(stream.count(), Ok(4));
        log.write_all_at(&[0; 48], log_in(&dir).1[3].at as u64).unwrap();
        if other_appends {
            // In the same place: `last` comes to say what it said.
            index.write_all_at(&[0; 16], 0).unwrap();
            let other = opened(dir.path(), false);
            assert_eq!(other.append(["longer than event 3"], None), Ok(3));
            assert_eq!(stream.append(["more"], None), Ok(4));
            let again = opened(dir.path(), true);
            assert_eq!(again.event(3).unwrap().bytes, b"longer than event 3");
            assert_eq!(again.event(4).unwrap().bytes, b"more");
        } else {
            let refused = stream.append(["more"], None);
            assert!(matches!(refused, Err(Error::Stopped { .. })), "{refused:?}");
        }
    }
}

/// It is not the event that it was, and longer: that is no hang, and no half of it.
#[test]
fn another_event_in_the_place_of_the_last_is_whole_or_an_error() {
    let (dir, log, index) = stream_of(4, |n| format!("event {n}"));
    let stream = opened(dir.path(), true);
    assert_eq!(stream.count(), Ok(4));
    log.write_all_at(&[0; 48], log_in(&dir).1[3].at as u64).unwrap();
    index.write_all_at(&[0; 16], 0).unwrap();
    assert_eq!(opened(dir.path(), false).append(["longer than event 3"], None), Ok(3));
    let got = within(30, move || stream.event(3));
    assert!(got.is_err() || got.unwrap().bytes == b"longer than event 3");
}

/// Whoever only reads must not stay at what it found.
#[test]
fn a_stream_that_lost_events_is_looked_at_anew_when_its_index_is() {
    let (dir, ..) = stream_of(3, |n| format!("event {n}"));
    format::set_last(&dir.path().join("s"), 3000);
    let reader = opened(dir.path(), true);
    assert_eq!(reader.count(), Ok(3));
    assert!(matches!(reader.event(3), Err(Error::Damaged { .. })));
    fs::remove_file(dir.path().join("s/index")).unwrap();
    let writer = opened(dir.path(), false);
    assert_eq!(writer.append(["event 3"], None), Ok(3));
    assert_eq!(reader.event(3).unwrap().bytes, b"event 3");
    assert_eq!(writer.append(["event 4"], None), Ok(4));
    assert_eq!(reader.count(), Ok(5));
}
