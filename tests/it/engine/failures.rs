//! Commits that fail, or find no room: which are refused, which are in doubt, and whom it concerns.

use super::{payloads, watched, with_one};
use crate::format::{self, blocks, u64_at};
use smolstore::{Error, Store, batch::Shape};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Barrier};
use tempfile::TempDir;

/// Of a `last` that is further on nobody could say that it is sound.
#[test]
fn no_log_gets_longer_than_its_index_can_tell() {
    // Where a file may be that long, and need not take up the space.
    let dir = TempDir::new_in("/dev/shm").unwrap();
    let store = Store::open(dir.path(), false).unwrap();
    store.create("s", 0o755).unwrap();
    store.stream("s").unwrap().append(["kept"], None).unwrap();
    drop(store);
    let log = File::options().read(true).write(true).open(dir.path().join("s/log")).unwrap();
    let bytes = fs::read(dir.path().join("s/log")).unwrap();
    let [seed, ..] = format::head(&bytes).unwrap();
    // As when all before it was dropped.
    let at = (1 << 48) - 200;
    let block = format::Block { at, index: 7, view: 70, ..blocks(&bytes)[0].clone() };
    log.write_all_at(&block.encode(seed), at as u64).unwrap();
    let head = smolstore::page::Head { seed, first: 7, at: at as u64, view: 70 };
    log.write_all_at(&head.encode(), 0).unwrap();
    format::set_last(&dir.path().join("s"), at as u64);
    let s = Store::open(dir.path(), false).unwrap().stream("s").unwrap();
    let refused = s.append(["more"], None);
    assert!(matches!(refused, Err(Error::Os { errno: libc::EFBIG, .. })), "{refused:?}");
    assert_eq!((s.count(), s.event(7).unwrap().bytes), (Ok(8), b"kept".to_vec()));
}

/// What became of it is found out by whoever comes next: it is there, or it is not, for good.
#[test]
fn a_failed_sync_leaves_its_commit_in_doubt_until_the_next_use() {
    let (dir, store, seen, s) = with_one();
    store.create("other", 0o755).unwrap();
    let other = store.stream("other").unwrap();
    other.append(["x"], None).unwrap();
    seen.fail_sync.store(true, SeqCst);
    let failed = s.append(["doubt"], None).unwrap_err();
    assert!(matches!(failed, Error::Unknown { .. }), "{failed}");
    assert_eq!(failed.errno(), libc::EIO);
    // Nobody is told anything that the next might be told otherwise.
    for _ in 0..2 {
        assert_eq!(s.count().unwrap_err().errno(), libc::EIO);
        assert_eq!(s.event(1).unwrap_err().errno(), libc::EIO);
        assert_eq!(s.append(["more"], None).unwrap_err().errno(), libc::EIO);
    }
    assert_eq!(other.event(0).unwrap().bytes, b"x");
    seen.fail_sync.store(false, SeqCst);
    assert_eq!(s.append(["retry"], Some(1)), Err(Error::Exists));
    assert_eq!(payloads(&store, "s", 0), [&b"kept"[..], b"doubt"]);
    let (store, _) = watched(&dir);
    assert_eq!(store.stream("s").unwrap().append(["again"], None), Ok(2));
}

/// Whatever the error: the log has it.
#[test]
fn a_commit_that_fails_behind_its_log_is_in_doubt_and_there_for_the_next_use() {
    for errno in [libc::EIO, libc::ENOSPC] {
        let (_dir, store, seen, s) = with_one();
        seen.fail_index.store(errno, SeqCst);
        let failed = s.append(["may", "be"], Some(1)).unwrap_err();
        assert!(matches!(failed, Error::Unknown { .. }), "{failed}");
        assert_eq!(failed.errno(), libc::EIO);
        assert_eq!(s.count(), Ok(3), "durable by now");
        s.append(["more"], Some(3)).unwrap_err();
        seen.fail_index.store(0, SeqCst);
        // Who retries with the guard learns it.
        assert_eq!(s.append(["may", "be"], Some(1)), Err(Error::Exists));
        let retried = s.append(["more"], Some(3));
        assert!([Ok(3), Err(Error::Exists)].contains(&retried), "{retried:?}");
        assert_eq!(payloads(&store, "s", 0), [&b"kept"[..], b"may", b"be", b"more"]);
    }
}

/// Before anything is written to the log there must be room for the word that shows it.
#[test]
fn a_first_commit_without_room_in_the_index_is_refused() {
    let dir = TempDir::new().unwrap();
    let (store, seen) = watched(&dir);
    store.create("s", 0o755).unwrap();
    let s = store.stream("s").unwrap();
    seen.fail_index.store(libc::ENOSPC, SeqCst);
    assert_eq!(s.append(["no room"], None).unwrap_err().errno(), libc::ENOSPC);
    seen.fail_index.store(0, SeqCst);
    assert_eq!(s.append(["first"], Some(0)), Ok(0));
    assert_eq!(payloads(&store, "s", 0), [b"first"]);
}

#[test]
fn an_index_of_another_log_that_cannot_be_emptied_costs_nothing_but_appends() {
    let (dir, ..) = with_one();
    let index = File::options().write(true).open(dir.path().join("s/index")).unwrap();
    index.write_all_at(&[1; 32], 0).unwrap();
    let (store, seen) = watched(&dir);
    seen.fail_index.store(libc::ENOSPC, SeqCst);
    let s = store.stream("s").unwrap();
    for _ in 0..2 {
        assert_eq!(payloads(&store, "s", 0), [b"kept"]);
    }
    s.append(["more"], None).unwrap_err();
    seen.fail_index.store(0, SeqCst);
    let retried = s.append(["more"], Some(1));
    assert!([Ok(1), Err(Error::Exists)].contains(&retried), "{retried:?}");
    assert_eq!(payloads(&store, "s", 0), [b"kept", b"more"]);
}

/// Whoever asks whether what it had handed in is durable, and had nothing in what failed.
#[test]
fn a_batch_without_events_is_not_told_of_the_failure_of_others() {
    let dir = TempDir::new().unwrap();
    let (store, seen) = watched(&dir);
    store.create("s", 0o755).unwrap();
    let s = store.stream("s").unwrap();
    s.append(["kept"], None).unwrap();
    let (done, told) = std::sync::mpsc::channel();
    let submit = |events: &str| {
        let mut batch = s.batch(Shape::Lines);
        batch.push(events.as_bytes()).unwrap();
        let (done, events) = (done.clone(), events.to_owned());
        s.submit(batch, None, Box::new(move |result| done.send((events, result)).unwrap()));
    };
    // The first commit waits in its sync until the others have queued up behind it.
    let gate = Arc::new(Barrier::new(2));
    *seen.meet.lock().unwrap() = Some(gate.clone());
    seen.take();
    std::thread::scope(|scope| {
        scope.spawn(|| submit("first\n"));
        while !seen.calls.lock().unwrap().contains(&"sync") {
            std::thread::yield_now();
        }
        submit("no room\n");
        submit("");
        seen.fail_index.store(libc::ENOSPC, SeqCst);
        *seen.meet.lock().unwrap() = None;
        gate.wait();
    });
    drop(done);
    let told: Vec<_> = told.iter().map(|(events, result)| (events, result.is_ok())).collect();
    let expected = [("first\n", false), ("no room\n", false), ("", true)];
    assert_eq!(told, expected.map(|(events, told)| (events.to_owned(), told)));
}

/// Nobody is to be told that it is stored by who lost the lock; who asks is told what there is.
#[test]
fn a_commit_by_who_was_cut_off_is_in_doubt() {
    let (_dir, store, seen, s) = with_one();
    seen.cut_off.store(true, SeqCst);
    let failed = s.append(["in doubt"], None).unwrap_err();
    assert!(matches!(failed, Error::Unknown { .. }), "{failed:?}");
    seen.cut_off.store(false, SeqCst);
    assert_eq!(s.append(["later"], Some(1)), Err(Error::Exists));
    assert_eq!(payloads(&store, "s", 0), [&b"kept"[..], b"in doubt"]);
}

/// They are hints: what was committed without them is found, and they are made again.
#[test]
fn a_commit_whose_entries_find_no_room_is_committed() {
    let (dir, _, seen, s) = with_one();
    seen.fail_index.store(libc::ENOSPC, SeqCst);
    seen.fail_from.store(16, SeqCst);
    let mut batch = s.batch(Shape::Lines);
    batch.push("1\n22\n\n".repeat(20_000).as_bytes()).unwrap();
    assert_eq!(s.commit(batch, None), Ok(1));
    assert_eq!(s.append(["last"], Some(60_001)), Ok(60_001));
    assert_eq!(s.event(40_001).unwrap().bytes, b"22");
    let index = || fs::read(dir.path().join("s/index")).unwrap();
    assert_eq!(index().len(), 16);
    seen.fail_index.store(0, SeqCst);
    for n in [0, 40_001, 60_001] {
        s.event(n).unwrap();
    }
    // Those that were met say which event and which byte their page begins with.
    let log = blocks(&fs::read(dir.path().join("s/log")).unwrap());
    let mut known = 0;
    for (page, entry) in index()[16..].as_chunks::<16>().0.iter().enumerate() {
        let first = log.iter().find(|block| block.at / 4096 == page).unwrap();
        let says = (u64_at(entry, 0), u64_at(entry, 8));
        assert!([(0, 0), (first.index, first.view as u64)].contains(&says), "{page}: {says:?}");
        known += usize::from(says != (0, 0));
    }
    assert!(known > 3, "{known}");
}

/// It must not take others with it that share its sync.
#[test]
fn of_a_group_one_that_meets_a_full_disk_fails_alone() {
    let (dir, _, seen, s) = with_one();
    let (done, told) = std::sync::mpsc::channel();
    let submit = |name: &'static str, len: usize| {
        let mut batch = s.batch(Shape::Lines);
        batch.push(&[name.as_bytes(), &vec![b'x'; len]].concat()).unwrap();
        let done = done.clone();
        s.submit(batch, None, Box::new(move |result| done.send((name, result)).unwrap()));
    };
    let gate = Arc::new(Barrier::new(2));
    *seen.meet.lock().unwrap() = Some(gate.clone());
    std::thread::scope(|scope| {
        scope.spawn(|| submit("first", 0));
        while !seen.calls.lock().unwrap().contains(&"sync") {
            std::thread::yield_now();
        }
        submit("second", 0);
        submit("large", 100_000);
        submit("third", 0);
        seen.full.store(40_000, SeqCst);
        *seen.meet.lock().unwrap() = None;
        gate.wait();
    });
    drop(done);
    let mut told: Vec<_> =
        told.iter().map(|(name, result)| (name, result.map_err(|e| e.errno()))).collect();
    told.sort_unstable();
    let expected =
        [("first", Ok(1)), ("large", Err(libc::ENOSPC)), ("second", Ok(2)), ("third", Ok(3))];
    assert_eq!(told, expected);
    let (again, _) = watched(&dir);
    assert_eq!(payloads(&again, "s", 0), [&b"kept"[..], b"first", b"second", b"third"]);
}

#[test]
fn a_quota_is_met_by_the_write_and_nothing_of_the_batch_is_stored() {
    let dir = TempDir::new().unwrap();
    let (store, seen) = watched(&dir);
    store.create("s", 0o755).unwrap();
    let s = store.stream("s").unwrap();
    s.append(["kept"], None).unwrap();
    seen.over_quota.store(true, SeqCst);
    let mut batch = s.batch(Shape::Lines);
    let refused = batch.push(&[b'x'; 10_000]).unwrap_err();
    assert_eq!(refused.errno(), libc::EDQUOT);
    drop(batch);
    seen.over_quota.store(false, SeqCst);
    assert_eq!(s.append(["later"], None), Ok(1));
    assert_eq!(payloads(&store, "s", 0), [&b"kept"[..], b"later"]);
}
