//! What a use makes of a log and an index as others left them, or while others are at work on them.

use super::{payloads, watched, with_one};
use crate::format::{self, blocks};
use smolstore::disk::Real;
use smolstore::{Error, Store, stream::Cursor};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use tempfile::TempDir;

/// It fits no chain, so there is nothing to be done about it.
#[test]
fn what_is_left_behind_the_end_is_neither_shown_nor_cut() {
    let (dir, ..) = with_one();
    let path = dir.path().join("s/log");
    let log = File::options().write(true).open(&path).unwrap();
    let end = blocks(&fs::read(&path).unwrap())[0].end() as u64;
    log.write_all_at(b"the rest of a batch", end).unwrap();
    let (store, seen) = watched(&dir);
    assert_eq!(payloads(&store, "s", 0), [b"kept"]);
    assert_eq!(seen.take(), [""; 0]);
    store.stream("s").unwrap().append(["next"], None).unwrap();
    assert_eq!(seen.take(), ["log", "sync", "index"]);
    assert_eq!(payloads(&store, "s", 0), [b"kept", b"next"]);
}

/// `check` and mounts that may not write share the lock of a log while they find out what there is.
#[test]
fn a_use_waits_for_those_who_only_look_at_a_commit_without_an_end() {
    let (dir, ..) = with_one();
    let path = dir.path().join("s/log");
    let log = File::options().read(true).write(true).open(&path).unwrap();
    let bytes = fs::read(&path).unwrap();
    let ([seed, ..], last) = (format::head(&bytes).unwrap(), &blocks(&bytes)[0]);
    let torn = format::Block {
        at: last.end(),
        flags: format::FIRST,
        prev: last.crc,
        index: last.next(),
        time: last.time + 1,
        view: last.view + last.payload.len(),
        ..last.clone()
    };
    log.write_all_at(&torn.encode(seed), torn.at as u64).unwrap();
    let (store, seen) = watched(&dir);
    log.lock_shared().unwrap();
    let looking = unlock_soon(log);
    assert_eq!(store.stream("s").unwrap().count(), Ok(1));
    assert_eq!(seen.take(), [""; 0]);
    looking.join().unwrap();
}

/// As when the stream is being removed, or made durable again.
#[test]
fn who_may_not_write_waits_for_who_is_at_work_on_a_log_without_an_index() {
    let (dir, ..) = with_one();
    fs::remove_file(dir.path().join("s/index")).unwrap();
    let path = dir.path().join("s/log");
    let log = File::options().read(true).write(true).open(&path).unwrap();
    let bytes = fs::read(&path).unwrap();
    let [seed, ..] = format::head(&bytes).unwrap();
    // A first commit that did not come to its end.
    let torn = format::Block { flags: format::FIRST, ..blocks(&bytes)[0].clone() };
    log.write_all_at(&torn.encode(seed), torn.at as u64).unwrap();
    log.lock().unwrap();
    let at_work = unlock_soon(log);
    let store = Store::on(Real::local(dir.path()), true, Box::new(|_| {}));
    assert_eq!(store.stream("s").unwrap().count(), Ok(0));
    at_work.join().unwrap();
}

fn unlock_soon(log: File) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(300));
        log.unlock().unwrap();
    })
}

/// With the clock behind and an event cut at the end of a page, two commits may begin with the same block.
#[test]
fn a_commit_that_begins_as_one_without_an_end_did_is_another() {
    let (dir, ..) = with_one();
    let path = dir.path().join("s/log");
    let log = File::options().read(true).write(true).open(&path).unwrap();
    let bytes = fs::read(&path).unwrap();
    let ([seed, ..], last) = (format::head(&bytes).unwrap(), &blocks(&bytes)[0]);
    let begin = format::Block {
        at: last.end(),
        flags: format::FIRST | format::MORE,
        prev: last.crc,
        events: 0,
        index: last.next(),
        time: last.time + 1,
        view: last.view + last.payload.len(),
        payload: b"x".to_vec(),
        ..last.clone()
    };
    log.write_all_at(&begin.encode(seed), begin.at as u64).unwrap();
    let (store, _) = watched(&dir);
    let s = store.stream("s").unwrap();
    assert_eq!(s.count(), Ok(1));
    let begun = blocks(&fs::read(&path).unwrap())[1].clone();
    let end = format::Block {
        at: begun.end(),
        flags: format::LAST | format::CONT,
        prev: begun.crc,
        events: 1,
        view: begun.view + 1,
        payload: b"y\n".to_vec(),
        ..begun
    };
    log.write_all_at(&end.encode(seed), end.at as u64).unwrap();
    assert_eq!(s.count(), Ok(2));
    assert_eq!(s.append(["next"], None), Ok(2));
    assert_eq!(payloads(&store, "s", 0), [&b"kept"[..], b"xy", b"next"]);
}

/// While somebody is at work on the log only the index tells a reader of what was acknowledged.
#[test]
fn an_index_that_says_the_same_of_another_log_is_not_the_one_that_was_seen() {
    let (dir, store, ..) = with_one();
    store.create("t", 0o755).unwrap();
    let t = store.stream("t").unwrap();
    t.append(["kept"], None).unwrap();
    t.append(["more"], None).unwrap();
    drop(store);
    // As from a backup that mixed them up.
    fs::copy(dir.path().join("t/index"), dir.path().join("s/index")).unwrap();
    let reader = Store::on(Real::local(dir.path()), true, Box::new(|_| {}));
    let reader = reader.stream("s").unwrap();
    assert_eq!(reader.count(), Ok(1));
    let (store, _) = watched(&dir);
    store.stream("s").unwrap().append(["more"], None).unwrap();
    let log = File::open(dir.path().join("s/log")).unwrap();
    log.lock().unwrap();
    assert_eq!(reader.count(), Ok(2));
}

#[test]
fn an_index_that_says_nothing_any_more_is_not_the_one_that_was_made_again() {
    let (dir, ..) = with_one();
    let index = dir.path().join("s/index");
    fs::remove_file(&index).unwrap();
    let (one, _) = watched(&dir);
    let s = one.stream("s").unwrap();
    assert_eq!(s.count(), Ok(1));
    let (other, _) = watched(&dir);
    other.stream("s").unwrap().append(["more"], None).unwrap();
    File::options().write(true).open(&index).unwrap().write_all_at(&[0; 16], 0).unwrap();
    let log = File::open(dir.path().join("s/log")).unwrap();
    log.lock().unwrap();
    let at_work = unlock_soon(log);
    assert_eq!(s.count(), Ok(2));
    at_work.join().unwrap();
}

#[test]
fn who_opened_an_empty_stream_sees_its_events_though_the_index_reads_as_it_did_then() {
    let dir = TempDir::new().unwrap();
    let (one, _) = watched(&dir);
    one.create("s", 0o755).unwrap();
    let s = one.stream("s").unwrap();
    assert_eq!(s.count(), Ok(0));
    let other = watched(&dir).0.stream("s").unwrap();
    other.append(["dropped", "too"], None).unwrap();
    other.drop_before(2).unwrap();
    let index = dir.path().join("s/index");
    File::options().write(true).open(index).unwrap().write_all_at(&[0; 16], 0).unwrap();
    let log = File::open(dir.path().join("s/log")).unwrap();
    log.lock().unwrap();
    let at_work = unlock_soon(log);
    assert_eq!((s.first(), s.count()), (Ok(2), Ok(2)));
    at_work.join().unwrap();
}

/// Who published it had synced it.
#[test]
fn a_commit_that_is_published_while_it_is_waited_for_is_not_written_again() {
    let (dir, ..) = with_one();
    let stream = dir.path().join("s");
    format::set_last(&stream, 0);
    let log = File::open(stream.join("log")).unwrap();
    log.lock().unwrap();
    let at_work = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(300));
        format::set_last(&stream, 40);
        log.unlock().unwrap();
    });
    let (store, seen) = watched(&dir);
    assert_eq!(store.stream("s").unwrap().count(), Ok(1));
    at_work.join().unwrap();
    assert_eq!(seen.take(), [""; 0]);
}

/// It may be in the page cache only, or on pages whose sync has failed. Those before it are durable.
#[test]
fn the_last_of_what_a_crash_left_is_written_again_and_synced_before_it_is_shown() {
    let (dir, _, _, s) = with_one();
    for n in 1..4 {
        s.append([format!("{n}")], None).unwrap();
    }
    format::set_last(&dir.path().join("s"), 40);
    let (store, seen) = watched(&dir);
    assert_eq!(store.stream("s").unwrap().count(), Ok(4));
    // With the head, which might have come with it.
    assert_eq!(seen.take(), ["log", "log", "sync", "sync names", "sync names", "index"]);
    let (store, seen) = watched(&dir);
    assert_eq!(store.stream("s").unwrap().count(), Ok(4));
    assert_eq!(seen.take(), [""; 0], "once");
}

#[test]
fn where_the_disk_lost_events_the_end_is_an_error() {
    let dir = TempDir::new().unwrap();
    let store = Store::open(dir.path(), false).unwrap();
    store.create("s", 0o755).unwrap();
    let s = store.stream("s").unwrap();
    for n in 0..5 {
        s.append([format!("event {n}")], None).unwrap();
    }
    drop((s, store));
    let path = dir.path().join("s/log");
    let last = blocks(&fs::read(&path).unwrap())[4].at as u64;
    File::options().write(true).open(&path).unwrap().write_all_at(b"E", last + 40).unwrap();
    let store = Store::open(dir.path(), false).unwrap();
    let s = store.stream("s").unwrap();
    let read = |n| s.read(n).unwrap().map(|event| event.map(|event| event.index));
    let damaged = |error: &Error| matches!(error, Error::Damaged { .. });
    assert_eq!(s.count(), Ok(4));
    assert_eq!(s.event(0).unwrap().bytes, b"event 0");
    let from_3: Vec<_> = read(3).collect();
    assert!(matches!(&from_3[..], [Ok(3), Err(error)] if damaged(error)), "{from_3:?}");
    let from_4: Vec<_> = read(4).collect();
    assert!(matches!(&from_4[..], [Err(error)] if damaged(error)), "{from_4:?}");
    for n in [4, 5, 1000] {
        assert!(s.event(n).is_err_and(|error| damaged(&error)), "nobody knows of {n}");
    }
    let view = |offset, size| s.read_view(offset, size, &mut Cursor::default());
    assert_eq!(view(0, 8).unwrap(), b"event 0\n");
    assert!(view(32, 8).is_err_and(|error| damaged(&error)), "not the end: {:?}", view(32, 8));
    assert_eq!(view(32, 0), Ok(Vec::new()), "a reader of one event ends behind it");
}
