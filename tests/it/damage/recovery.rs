//! What recovery makes of each log and index: the rules of the design, one by one.

use super::{log_in, opened, stream_of};
use crate::format::{self, Block, PAGE};
use crate::harness::*;
use smolstore::{Error, Store};
use std::fs::{self, Permissions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown, fchown};

/// What recovery makes of each index with each log: the rules of the design, one by one.
#[test]
fn each_state_of_log_and_index_becomes_what_the_rules_say() {
    let event = |n: u64| format!("event {n:02}");
    for (log_is, index_is) in (0..10).flat_map(|log| (0..5).map(move |index| (log, index))) {
        let (dir, log, index) = stream_of(6, event);
        let (bytes, blocks) = log_in(&dir);
        let clear = |from: usize| log.write_all_at(&vec![0; PAGE - from], from as u64).unwrap();
        let [at_1, at_3, at_4] = [1, 3, 4].map(|n| blocks[n].at);
        // `last` names event 3, or there is none, or only that of another log.
        let known = index_is == 0;
        // Events that are counted, whether the stream is lost.
        let (count, lost) = match log_is {
            0 => (6, false),
            1 => (clear(at_4), (4, false)).1,
            // A commit that did not come to its end.
            2 => {
                clear(at_4);
                let torn = Block { flags: format::FIRST, ..blocks[4].clone() };
                let seed = format::head(&bytes).unwrap()[0];
                log.write_all_at(&torn.encode(seed), at_4 as u64).unwrap();
                (4, false)
            }
            3 => {
                clear(at_4);
                log.write_all_at(&[b'E'; 40], at_4 as u64).unwrap();
                (4, false)
            }
            4 => (log.set_len(at_4 as u64 + 42).unwrap(), (4, false)).1,
            // What `last` names is not there, or damaged.
            5 => (log.set_len(at_3 as u64 + 42).unwrap(), (3, known)).1,
            6 => {
                clear(at_4);
                log.write_all_at(b"E", at_3 as u64 + 40).unwrap();
                (3, known)
            }
            // What is behind it begins commits: it was acknowledged.
            7 => {
                clear(at_4);
                log.write_all_at(b"E", at_1 as u64 + 40).unwrap();
                (4, false)
            }
            8 => {
                clear(at_4);
                log.write_all_at(b"E", 2).unwrap();
                (4, true)
            }
            _ => (log.set_len(0).unwrap(), (0, known)).1,
        };
        format::set_last(&dir.path().join("s"), at_3 as u64);
        match index_is {
            0 => {}
            1 => index.write_all_at(&[0; 8], 0).unwrap(),
            2 => index.write_all_at(b"another!", 8).unwrap(),
            3 => index.set_len(7).unwrap(),
            _ => fs::remove_file(dir.path().join("s/index")).unwrap(),
        }
        let found = read(dir.path().join("s/log"));
        let state = format!("log {log_is}, index {index_is}");
        for read_only in [true, false] {
            let stream = opened(dir.path(), read_only);
            assert_eq!(stream.count(), Ok(count), "{state}");
            for n in 0..count {
                let hit = log_is == 7 && n == 1;
                assert_eq!(stream.event(n).is_err(), hit, "{state}, event {n}");
            }
            let appended = stream.append(["more"], None);
            let now = read(dir.path().join("s/log"));
            if read_only || lost {
                let refused = matches!(appended, Err(Error::ReadOnly | Error::Stopped { .. }));
                assert!(refused && now == found, "{state}: {appended:?}");
                continue;
            }
            assert_eq!(appended, Ok(count), "{state}");
            assert!(now.len() >= found.len(), "{state}: it was cut");
            assert_eq!(opened(dir.path(), true).count(), Ok(count + 1), "{state}");
        }
    }
}

/// A page is damaged, and of the index a part is missing, or wrong.
#[test]
fn what_is_intact_around_damage_is_found_whatever_the_index_says() {
    const COUNT: u64 = 40;
    let event = |n: u64| format!("{n:0>1500}");
    let (dir, log, index) = stream_of(COUNT, event);
    let ((whole, blocks), hints) = (log_in(&dir), read(dir.path().join("s/index")));
    let pages = blocks.last().unwrap().end().div_ceil(PAGE);
    let holder = |n: u64| blocks.iter().filter(move |b| b.index <= n && n <= b.next());
    for (bad, hole) in (0..pages - 1).flat_map(|bad| (0..pages).map(move |hole| (bad, hole))) {
        log.write_all_at(&whole, 0).unwrap();
        index.write_all_at(&hints, 0).unwrap();
        let first = blocks.iter().find(|block| block.at / PAGE == bad).unwrap();
        log.write_all_at(b"E", first.at as u64 + 50).unwrap();
        let wrong = [0, 0xff][(bad + hole) % 2];
        index.write_all_at(&vec![wrong; 16 * (pages - hole)], 16 + 16 * hole as u64).unwrap();
        for read_only in [true, false] {
            let stream = opened(dir.path(), read_only);
            for n in 0..COUNT {
                let found = stream.event(n).map(|event| text(&event.bytes));
                let event = event(n);
                let hit = holder(n).any(|b| {
                    b.at / PAGE == bad
                        && (b.index < n || b.flags & format::CONT == 0 || b.next() > n)
                });
                match found {
                    Ok(found) => assert!(found == event, "{bad} {hole} {n}"),
                    Err(error) => {
                        assert!(
                            hit && matches!(error, Error::Damaged { .. }),
                            "{bad} {hole} {n}: {error}"
                        );
                    }
                }
            }
        }
    }
}

/// No clock says so, but whoever may write to the log can: there is no later time for a next batch.
#[test]
fn a_stream_of_the_last_time_there_is_takes_no_appends() {
    const LAST: u64 = (u64::MAX >> 1) - 1;
    let late = |time| {
        let (dir, log, _) = stream_of(2, |n| n.to_string());
        let (bytes, blocks) = log_in(&dir);
        let last = &blocks[1];
        let (at, index, view) = (last.end(), last.next(), last.view + last.payload.len());
        let payload = b"late\n".to_vec();
        let late = Block { at, index, view, prev: last.crc, time, payload, ..last.clone() };
        log.write_all_at(&late.encode(format::head(&bytes).unwrap()[0]), at as u64).unwrap();
        dir
    };
    let dir = late(LAST);
    let store = Store::open(dir.path(), false).unwrap();
    let stream = store.stream("s").unwrap();
    assert_eq!(stream.event(2).map(|event| (event.time, event.bytes)), Ok((LAST, b"late".into())));
    assert_eq!([1, LAST, u64::MAX].map(|time| stream.since(time)), [Ok(0), Ok(2), Ok(3)]);
    let before = read(dir.path().join("s/log"));
    for guard in [None, Some(3)] {
        let refused = stream.append(["more"], guard);
        assert!(matches!(refused, Err(Error::Stopped { .. })), "{refused:?}");
    }
    assert_eq!(stream.append(["more"], Some(2)), Err(Error::Exists));
    assert_eq!(read(dir.path().join("s/log")), before);
    store.check("s", &mut |found| panic!("{found}"), &mut |_, _| {}).unwrap();
    // The one before is as good as any.
    let dir = late(LAST - 1);
    let stream = opened(dir.path(), false);
    assert_eq!(stream.append(["last"], None), Ok(3));
    assert_eq!(stream.event(3).map(|event| event.time), Ok(LAST));
    assert!(stream.append(["more"], None).is_err());
}

/// An index that others made, and appended with, may be gone before anybody looks.
#[test]
fn what_others_appended_is_shown_though_their_index_is_gone() {
    for empty in [false, true] {
        let (dir, ..) = stream_of(if empty { 0 } else { 4 }, |n| format!("event {n}"));
        let reader = opened(dir.path(), true);
        let before = reader.count().unwrap();
        opened(dir.path(), false).append(["a batch", "of two"], None).unwrap();
        fs::remove_file(dir.path().join("s/index")).unwrap();
        assert_eq!(reader.count(), Ok(before + 2));
    }
}

/// Somebody's index, made again by root, is still theirs.
#[test]
fn an_index_that_is_made_again_keeps_its_owner_and_mode() {
    let (dir, _log, index) = stream_of(4, |n| format!("event {n}"));
    fchown(&index, Some(1234), Some(5678)).unwrap();
    index.set_permissions(Permissions::from_mode(0o640)).unwrap();
    index.write_all_at(&[7; 16], 0).unwrap();
    let stream = opened(dir.path(), false);
    assert_eq!(stream.count(), Ok(4));
    let made = fs::metadata(dir.path().join("s/index")).unwrap();
    assert_eq!((made.uid(), made.gid(), made.mode() & 0o7777), (1234, 5678, 0o640));
    let last = log_in(&dir).1[3].at as u64;
    assert_eq!(format::last(&read(dir.path().join("s/index"))), last);
}

/// The directory of a stream may be closed to changes (chmod, chattr +i): it is read all the same.
#[test]
fn an_index_in_a_directory_that_cannot_be_changed_is_made_again() {
    let (dir, _log, index) = stream_of(4, |n| format!("event {n}"));
    index.write_all_at(&[0; 16], 0).unwrap();
    let s = dir.path().join("s");
    fs::set_permissions(&s, Permissions::from_mode(0o555)).unwrap();
    fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
    for file in ["log", "index"] {
        chown(s.join(file), Some(1234), Some(1234)).unwrap();
    }
    let root = dir.path().to_path_buf();
    let user = move || {
        // Of this thread only, as libc's own call is not.
        assert_eq!(unsafe { libc::syscall(libc::SYS_setresuid, 1234, 1234, 1234) }, 0);
        let stream = opened(&root, false);
        assert_eq!(stream.count(), Ok(4));
        assert_eq!(stream.append(["more"], None), Ok(4));
    };
    std::thread::spawn(user).join().unwrap();
}
