//! `smolstore check`: what is wrong is said, what is right is not called wrong, nothing changes.

use crate::harness::{Mnt, append, count, ok, smolstore, text};
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Output;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use tempfile::TempDir;

use smolstore::check::Finding;
use smolstore::{Error, Store, batch::Shape};

fn check(store: &Path, streams: &[&str]) -> Output {
    let store = store.to_str().unwrap();
    let arguments = [&["check", store], streams].concat();
    smolstore(arguments).output().unwrap()
}

fn lines(out: &Output) -> Vec<String> {
    text(&out.stdout).lines().map(str::to_owned).collect()
}

/// A store with the stream `s`: ten events in four batches, one of 5,000 bytes.
fn store() -> TempDir {
    let dir = TempDir::new().unwrap();
    let store = Store::open(dir.path(), false).unwrap();
    store.create("s", 0o755).unwrap();
    let s = store.stream("s").unwrap();
    s.append(["zero"], None).unwrap();
    s.append(["one", "two", "", "four"], None).unwrap();
    s.append([vec![b'x'; 5000]], None).unwrap();
    s.append(["six", "seven", "eight\nand a half", "nine"], None).unwrap();
    dir
}

fn patch(path: &Path, at: u64, bytes: &[u8]) {
    let file = fs::File::options().write(true).open(path).unwrap();
    file.write_all_at(bytes, at).unwrap();
}

#[test]
fn each_fault_is_a_line_and_the_exit_status_1() {
    let one_byte = |file: &str, at: u64, byte: u8| {
        let dir = store();
        patch(&dir.path().join("s").join(file), at, &[byte]);
        dir
    };
    // Event 1 begins behind "zero": 16 + 4 + 1 bytes.
    for (dir, expected) in [
        (
            one_byte("log", 21 + 16, b'O'),
            "stream \"s\", event 1 at byte 21: its checksum does not hold",
        ),
        // Its length, so that nothing but the index leads to the next.
        (
            one_byte("log", 21 + 1, 1),
            "stream \"s\", event 1 at byte 21: its checksum does not hold",
        ),
        // Its length, to one behind the end of the log.
        (
            one_byte("log", 21 + 2, 1),
            "stream \"s\", event 1 at byte 21: its header is damaged, others follow",
        ),
        (
            one_byte("index", 16 + 8, 42),
            "stream \"s\", event 1 at byte 21: the index says that it ends at byte 42, not 41",
        ),
        (
            one_byte("index", 0, 12),
            "stream \"s\", events 10 to 11 from byte 5212: the log ends here, the index counts 12",
        ),
    ] {
        let out = check(dir.path(), &[]);
        assert_eq!(lines(&out)[0], expected);
        assert!(lines(&out)[1].ends_with(": 1 fault"), "{:?}", lines(&out));
        assert_eq!((lines(&out).len(), out.status.code()), (2, Some(1)));
    }
    // The last event and its entry: it is not the rest of a batch that never came.
    let dir = one_byte("log", 5191 + 17, b'!');
    patch(&dir.path().join("s/index"), 16 + 9 * 8, &[0; 8]);
    let out = check(dir.path(), &[]);
    let expected = "stream \"s\", event 9 at byte 5191: its checksum does not hold";
    assert_eq!((lines(&out).len(), &*lines(&out)[0]), (2, expected), "{:?}", lines(&out));

    let dir = store();
    let log = fs::File::options().write(true).open(dir.path().join("s/log"));
    log.unwrap().set_len(300).unwrap();
    let out = check(dir.path(), &["s"]);
    let expected =
        "stream \"s\", events 5 to 9 from byte 99: the log ends here, the index counts 10";
    assert_eq!(lines(&out)[0], expected);
    fs::remove_file(dir.path().join("s/log")).unwrap();
    let out = check(dir.path(), &[]);
    assert_eq!(lines(&out)[0], "stream \"s\", event 0 at byte 0: there is an index, but no log");
    assert_eq!(out.status.code(), Some(1));
}

/// The copy of an index is not believed when the stream is used, but it tells how much was copied.
#[test]
fn a_copy_that_is_not_whole_is_a_fault() {
    for (len, garbage, first, at) in
        [(0, &b""[..], 0, 0), (99, b"", 5, 99), (99, b"garbage", 5, 99)]
    {
        let dir = store();
        let s = dir.path().join("s");
        let whole = fs::read(s.join("log")).unwrap();
        fs::remove_file(s.join("log")).unwrap();
        fs::write(s.join("log"), [&whole[..len], garbage].concat()).unwrap();
        let out = check(dir.path(), &[]);
        let what = "the log ends here, an index made for another log counts 10";
        let expected = format!("stream \"s\", events {first} to 9 from byte {at}: {what}");
        assert_eq!(lines(&out)[0], expected);
        assert_eq!(out.status.code(), Some(1));
    }
}

/// Nor is it taken in silence that a copy is damaged in the middle: its index leads to the rest.
#[test]
fn a_copy_that_is_damaged_is_a_loss() {
    for (at, expected) in [
        // A length.
        (
            99 + 2,
            "events 5 to 9 from byte 99: damaged, others follow, an index made for another log counts 10",
        ),
        (99 + 16, "event 5 at byte 99: its checksum does not hold"),
    ] {
        let dir = store();
        let s = dir.path().join("s");
        let mut log = fs::read(s.join("log")).unwrap();
        log[at] ^= 1;
        fs::remove_file(s.join("log")).unwrap();
        fs::write(s.join("log"), log).unwrap();
        let out = check(dir.path(), &["s/"]);
        assert_eq!(lines(&out)[0], format!("stream \"s\", {expected}"));
        assert!(lines(&out)[1].ends_with(": 1 fault"), "{:?}", lines(&out));
        for read_only in [true, false] {
            let stream = Store::open(dir.path(), read_only).unwrap().stream("s").unwrap();
            let mut events = stream.read(0).unwrap();
            assert!(events.by_ref().take(5).all(|event| event.is_ok()));
            assert!(matches!(events.next(), Some(Err(Error::Damaged { .. }))));
            assert!(stream.append(["more"], None).is_err());
        }
        assert_eq!(lines(&check(dir.path(), &[])), lines(&out), "it changes nothing");
        fs::remove_file(s.join("index")).unwrap();
        let stream = Store::open(dir.path(), false).unwrap().stream("s").unwrap();
        let known = if at == 101 { 5 } else { 10 };
        assert_eq!(stream.count(), Ok(known));
    }
}

/// Also where it is zeros, as in a copy that was made while a writer was ahead of it.
#[test]
fn a_copy_with_a_hole_does_not_end_there_in_silence() {
    let dir = store();
    let s = dir.path().join("s");
    let mut log = fs::read(s.join("log")).unwrap();
    log[99..5116].fill(0);
    fs::remove_file(s.join("log")).unwrap();
    fs::write(s.join("log"), log).unwrap();
    for read_only in [true, false] {
        let stream = Store::open(dir.path(), read_only).unwrap().stream("s").unwrap();
        let mut events = stream.read(0).unwrap();
        assert!(events.by_ref().take(5).all(|event| event.is_ok()));
        assert!(matches!(events.next(), Some(Err(Error::Damaged { .. }))));
        assert!(stream.append(["more"], None).is_err());
    }
}

#[test]
fn what_the_next_use_mends_is_no_fault() {
    let whole = fs::read(store().path().join("s/log")).unwrap();
    for (file, bytes, expected) in [
        // A count that a crash left behind.
        ("index", Some((0u64, vec![6])), "4 events behind the count"),
        // A batch that a crash cut short.
        ("log", Some((5212, whole[21..61].to_vec())), "a batch without its end"),
        // A hole that a power cut left.
        ("index", Some((32, vec![0; 16])), "2 entries of its index are missing"),
        ("index", None, "it has no index"),
    ] {
        let dir = store();
        let path = dir.path().join("s").join(file);
        match bytes {
            Some((at, bytes)) => patch(&path, at, &bytes),
            None => fs::remove_file(path).unwrap(),
        }
        let out = check(dir.path(), &[]);
        assert!(lines(&out)[0].contains(expected), "{:?}", lines(&out));
        assert!(lines(&out)[1].ends_with(": no faults"), "{:?}", lines(&out));
        assert_eq!(out.status.code(), Some(0));
        // And that is what happens.
        let s = Store::open(dir.path(), false).unwrap().stream("s").unwrap();
        assert_eq!(s.count(), Ok(10));
        assert_eq!(s.event(9).unwrap().bytes, b"nine");
    }
}

#[test]
fn any_byte_that_is_wrong_is_found() {
    let dir = store();
    let [log, index] = ["s/log", "s/index"].map(|file| dir.path().join(file));
    for (path, len) in [(&log, 5212), (&index, 16 + 80)] {
        let right = fs::read(path).unwrap();
        for (at, &byte) in right[..len].iter().enumerate() {
            for wrong in [byte ^ 1, byte ^ 0x80, !byte, 0, 0xff] {
                if wrong == byte {
                    continue;
                }
                patch(path, at as u64, &[wrong]);
                let (mut faults, mut notes) = (Vec::new(), Vec::new());
                let store = Store::open(dir.path(), true).unwrap();
                let mut tell = |finding| match finding {
                    Finding::Fault { first, last, .. } => faults.push((first, last)),
                    Finding::Note(note) => notes.push(note),
                };
                store.check("s", &mut tell, &mut |_, _| ()).unwrap();
                if path == &log {
                    let begins = [0, 21, 41, 61, 78, 99, 5116, 5136, 5158, 5191, 5212];
                    let event = begins.iter().rposition(|begin| *begin <= at).unwrap() as u64;
                    assert_eq!(faults, [(event, event)], "byte {at} of the log, now {wrong}");
                } else {
                    // A count that is too small, or none, is what a crash may leave.
                    assert_ne!((faults.len(), notes.len()), (0, 0), "byte {at} of the index");
                    assert!(at < 16 || faults.len() == 1 || wrong == 0, "byte {at}: {faults:?}");
                }
            }
            patch(path, at as u64, &[byte]);
        }
    }
    assert_eq!(lines(&check(dir.path(), &[])).len(), 1);
}

#[test]
fn what_cannot_be_checked_is_exit_status_2() {
    let dir = store();
    for (out, expected) in [
        (check(dir.path(), &["s", "t"]), "\"t\": there is no such stream"),
        (check(dir.path(), &["../x"]), "\"../x\": there is no such stream"),
        (check(&dir.path().join("s"), &[]), ".smolstore: no store"),
        (smolstore(["check"]).output().unwrap(), "check needs a STORE"),
        (smolstore(["check", "-f", "x"]).output().unwrap(), "check knows no option -f"),
    ] {
        assert_eq!(out.status.code(), Some(2));
        assert!(text(&out.stderr).contains(expected), "{}", text(&out.stderr));
    }
}

#[test]
fn a_store_in_use_is_checked_and_stays_as_it_is() {
    let mnt = Mnt::new();
    let [busy, still] = ["busy", "still"].map(|name| mnt.stream(name));
    append(still.join("events"), "a\nb\n");
    let file = |name| fs::read(mnt.store().join("still").join(name)).unwrap();
    let before = [file("log"), file("index")];
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for writer in 0..2 {
            let (busy, stop) = (&busy, &stop);
            scope.spawn(move || {
                for n in 0.. {
                    append(busy.join("events"), format!("{writer} {n}\n").repeat(1 + n % 40));
                    if stop.load(Relaxed) {
                        break;
                    }
                }
            });
        }
        let checks: Vec<Output> = (0..20).map(|_| check(mnt.store(), &[])).collect();
        stop.store(true, Relaxed);
        for out in checks {
            assert_eq!(ok(&out).lines().count(), 1, "{}", text(&out.stdout));
        }
    });
    assert_eq!([file("log"), file("index")], before);
    let events = count(&busy) + 2;
    assert!(ok(&check(mnt.store(), &[])).starts_with(&format!("2 streams, {events} events, ")));
}

#[test]
fn memory_is_bounded_and_a_terminal_sees_progress() {
    let dir = TempDir::new().unwrap();
    let store = Store::open(dir.path(), false).unwrap();
    store.create("large", 0o755).unwrap();
    let large = store.stream("large").unwrap();
    let piece = b"a line of forty bytes, and some of them.\n".repeat(6000);
    for _ in 0..4 {
        let mut batch = large.batch(Shape::Lines);
        for _ in 0..250 {
            batch.push(&piece).unwrap();
        }
        large.commit(batch, None).unwrap();
    }
    let program = env!("CARGO_BIN_EXE_smolstore");
    let script = format!(
        "ulimit -v 60000; script -qec '{program} check {}' /dev/null",
        dir.path().display()
    );
    let out = ok(&crate::harness::sh("bash", &script, dir.path()));
    assert!(out.contains("\r\x1b[Klarge: "), "{out:?}");
    assert!(out.contains("1 streams, 6000000 events, 342000000 bytes: no faults"), "{out:?}");
}

#[test]
fn what_is_intact_goes_to_a_new_stream_as_the_manual_says() {
    let dir = store();
    patch(&dir.path().join("s/log"), 21 + 16, b"O");
    let mnt = Mnt::on(dir.path(), &[]);
    let script = crate::manual::block(8, "is lost").replace("old/", "s/");
    let script = script.replace("MOUNTPOINT", mnt.path().to_str().unwrap());
    let out = crate::harness::sh("bash", &script, mnt.path());
    assert_eq!(text(&out.stdout), "event 1 is lost\n");
    let new = mnt.path().join("new");
    assert_eq!(count(&new), 9);
    let events = crate::harness::read(new.join("events"));
    assert_eq!(events.len(), 5 + 4 + 1 + 5 + 5001 + 4 + 6 + 17 + 5);
    assert_eq!(crate::harness::read(new.join("at/7")), b"eight\nand a half");
}
