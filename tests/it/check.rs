//! `smolstore check`: what is wrong is said, what is right is not called wrong, nothing changes.

use crate::format::{self, Block};
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

/// The blocks of its log: 0, 1 to 4, 5 on two pages, 6 and 7, 8, 9.
fn blocks(dir: &TempDir) -> Vec<Block> {
    let blocks = format::blocks(&fs::read(dir.path().join("s/log")).unwrap());
    assert_eq!(blocks.iter().map(|block| block.index).collect::<Vec<_>>(), [0, 1, 5, 5, 6, 8, 9]);
    blocks
}

#[test]
fn each_fault_is_a_line_and_the_exit_status_1() {
    let checksum = "its checksum does not hold";
    let backup = "acknowledged events are lost, no more can be appended; take the stream from a \
                  backup, or append what can be read of it to a new one";
    let last = format!("the last block of the log is damaged or missing: {backup}");
    for (block, into, expected) in [
        (0, 40, format!("event 0 at byte AT: {checksum}")),
        // In the payload, its length, its time.
        (1, 45, format!("events 1 to 4 from byte AT: {checksum}")),
        (1, 0, format!("events 1 to 4 from byte AT: {checksum}")),
        (1, 24, format!("events 1 to 4 from byte AT: {checksum}")),
        (2, 100, format!("event 5 at byte AT: {checksum}")),
        (3, 100, format!("event 5 at byte AT: {checksum}")),
        (5, 40, format!("event 8 at byte AT: {checksum}")),
        (6, 40, format!("event 9 at byte AT: {last}")),
    ] {
        let dir = store();
        let at = blocks(&dir)[block].at as u64;
        patch(&dir.path().join("s/log"), at + into, b"!");
        let out = check(dir.path(), &[]);
        assert_eq!(
            lines(&out)[0],
            format!("stream \"s\", {}", expected.replace("AT", &at.to_string()))
        );
        assert!(lines(&out)[1].ends_with(": 1 fault"), "{:?}", lines(&out));
        assert_eq!((lines(&out).len(), out.status.code()), (2, Some(1)));
    }

    // What is damaged before the last block is told, whatever became of that.
    let dir = store();
    let [second, end] = [2, 6].map(|n| blocks(&dir)[n].at as u64);
    patch(&dir.path().join("s/log"), second + 100, b"!");
    patch(&dir.path().join("s/log"), end + 40, b"!");
    let out = check(dir.path(), &[]);
    let wanted = [
        format!("stream \"s\", event 5 at byte {second}: {checksum}"),
        format!("stream \"s\", event 9 at byte {end}: {last}"),
    ];
    assert!(wanted.iter().all(|line| lines(&out).contains(line)), "{:?}", lines(&out));

    // The word that says how much there is leads nowhere, or the log is shorter.
    let dir = store();
    let end = blocks(&dir)[6].end();
    format::set_last(&dir.path().join("s"), 3000);
    let out = check(dir.path(), &[]);
    assert_eq!(lines(&out)[0], format!("stream \"s\", event 10 at byte {end}: {last}"));
    assert_eq!(out.status.code(), Some(1));
    for (cut, n, at) in [(6, 9, 6), (4, 6, 4), (3, 5, 3), (1, 1, 1)] {
        let dir = store();
        let at = blocks(&dir)[at].at as u64;
        let log = fs::File::options().write(true).open(dir.path().join("s/log")).unwrap();
        log.set_len(blocks(&dir)[cut].at as u64 + 10).unwrap();
        let out = check(dir.path(), &["s"]);
        assert_eq!(lines(&out)[0], format!("stream \"s\", event {n} at byte {at}: {last}"));
        assert!(lines(&out)[1].ends_with(": 1 fault"), "{:?}", lines(&out));
        assert_eq!(out.status.code(), Some(1));
    }

    // The head, in one byte and as a whole.
    for head in [&b"?"[..], &[b'?'; 40]] {
        let dir = store();
        patch(&dir.path().join("s/log"), 0, head);
        let out = check(dir.path(), &[]);
        let expected = format!(
            "stream \"s\", event 10 at byte {end}: the head of the log is damaged: {backup}"
        );
        assert_eq!(lines(&out)[0], expected);
        assert_eq!((lines(&out).len(), out.status.code()), (2, Some(1)));
    }
    for gone in [true, false] {
        let dir = store();
        let log = dir.path().join("s/log");
        if gone {
            fs::remove_file(log).unwrap();
        } else {
            fs::write(log, "").unwrap();
        }
        let out = check(dir.path(), &[]);
        assert!(
            lines(&out)[0].starts_with("stream \"s\", event 0 at byte 40: "),
            "{:?}",
            lines(&out)
        );
        assert!(lines(&out)[0].ends_with(backup), "{:?}", lines(&out));
        assert_eq!(out.status.code(), Some(1));
    }
}

/// A copy is a log like any other: it brings its index with it, and is told by its seed.
#[test]
fn a_copy_is_judged_as_what_it_was_copied_from_is() {
    for (len, count) in [(usize::MAX, 10), (150, 5), (45, 0)] {
        let dir = store();
        let copy = TempDir::new().unwrap();
        ok(&crate::harness::sh("sh", &format!("cp -r {}/. .", dir.path().display()), copy.path()));
        let log = fs::read(dir.path().join("s/log")).unwrap();
        fs::write(copy.path().join("s/log"), &log[..len.min(log.len())]).unwrap();
        let out = check(copy.path(), &["s/"]);
        if count == 10 {
            assert_eq!((lines(&out).len(), out.status.code()), (1, Some(0)), "{:?}", lines(&out));
            continue;
        }
        assert!(lines(&out)[0].starts_with(&format!("stream \"s\", event {count} at byte ")));
        assert_eq!(out.status.code(), Some(1));
        for read_only in [true, false] {
            let stream = Store::open(copy.path(), read_only).unwrap().stream("s").unwrap();
            let mut events = stream.read(0).unwrap();
            assert!(events.by_ref().take(count).all(|event| event.is_ok()));
            assert!(matches!(events.next(), Some(Err(Error::Damaged { .. }))));
            assert!(stream.append(["more"], None).is_err());
        }
        assert_eq!(lines(&check(copy.path(), &[])), lines(&out), "it changes nothing");
    }
}

#[test]
fn what_the_next_use_mends_is_no_fault() {
    for (file, change, expected) in [
        // A word that a crash left behind.
        ("index", Change::Last(1), "5 events of a commit that did not come to its end"),
        ("index", Change::Word, "it has no index of its own, as in a copy: the next use makes one"),
        // A commit that a crash cut short.
        ("log", Change::Torn, ""),
        // Entries that a power cut lost, or left.
        ("index", Change::Entry(0), ""),
        ("index", Change::Entry(0xff), "1 entries of its index are wrong: reads go around them"),
        ("index", Change::Gone, "it has no index of its own, as in a copy: the next use makes one"),
    ] {
        let dir = store();
        let path = dir.path().join("s").join(file);
        let blocks = blocks(&dir);
        match change {
            Change::Last(n) => format::set_last(&dir.path().join("s"), blocks[n].at as u64),
            // A bit of that.
            Change::Word => patch(&path, 0, &[fs::read(&path).unwrap()[0] ^ 4]),
            Change::Torn => {
                let end = blocks[6].end();
                let torn = Block {
                    at: end,
                    flags: format::FIRST,
                    index: 10,
                    prev: blocks[6].crc,
                    time: u64::MAX / 4,
                    view: blocks[6].view + 5,
                    ..blocks[6].clone()
                };
                let seed = format::head(&fs::read(&path).unwrap()).unwrap()[0];
                patch(&path, end as u64, &torn.encode(seed));
            }
            Change::Entry(byte) => patch(&path, 16 + 16, &[byte; 16]),
            Change::Gone => fs::remove_file(path).unwrap(),
        }
        let out = check(dir.path(), &[]);
        let said = lines(&out);
        assert!(said[0].contains(expected) && said.len() <= 2, "{said:?}");
        assert!(said[said.len() - 1].ends_with(": no faults"), "{said:?}");
        assert_eq!(out.status.code(), Some(0));
        // And that is what happens.
        let s = Store::open(dir.path(), false).unwrap().stream("s").unwrap();
        assert_eq!(s.count(), Ok(10));
        assert!((0..10).all(|n| s.event(n).is_ok()));
        assert_eq!(s.event(9).unwrap().bytes, b"nine");
    }
}

enum Change {
    Last(usize),
    Word,
    Torn,
    Entry(u8),
    Gone,
}

#[test]
fn any_byte_that_is_wrong_is_found() {
    let dir = store();
    let blocks = blocks(&dir);
    let [log, index] = ["s/log", "s/index"].map(|file| dir.path().join(file));
    for path in [&log, &index] {
        let right = fs::read(path).unwrap();
        let end = if path == &log { blocks[6].end() } else { right.len() };
        for (at, &byte) in right[..end].iter().enumerate() {
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
                let block = blocks.iter().find(|block| (block.at..block.end()).contains(&at));
                let of = |block: &Block| (block.index, (block.next().max(block.index + 1)) - 1);
                let expected = match block {
                    // The first page needs no entry.
                    _ if path == &index && (16..32).contains(&at) => continue,
                    _ if path == &index => {
                        // A word that names an earlier block is what a crash may leave.
                        assert_ne!((faults.len(), notes.len()), (0, 0), "byte {at} of the index");
                        continue;
                    }
                    // Only a head or a block may be damaged, or what is left at the end of a page.
                    None if at >= format::HEAD => vec![],
                    None => vec![(10, 10)],
                    Some(block) => vec![of(block)],
                };
                assert_eq!(faults, expected, "byte {at} of the log, now {wrong}");
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
    // It takes a while even at the speed of memory.
    for _ in 0..16 {
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
    assert!(out.contains("1 streams, 24000000 events, 993704800 bytes: no faults"), "{out:?}");
}

#[test]
fn what_is_intact_goes_to_a_new_stream_as_the_manual_says() {
    let dir = store();
    let at = blocks(&dir)[1].at as u64;
    patch(&dir.path().join("s/log"), at + 41, b"O");
    let mnt = Mnt::on(dir.path(), &[]);
    let script = crate::manual::block(8, "is lost").replace("old/", "s/");
    let script = script.replace("MOUNTPOINT", mnt.path().to_str().unwrap());
    let out = crate::harness::sh("bash", &script, mnt.path());
    assert_eq!(
        text(&out.stdout),
        "event 1 is lost\nevent 2 is lost\nevent 3 is lost\nevent 4 is lost\n"
    );
    let new = mnt.path().join("new");
    // The four are one block.
    assert_eq!(count(&new), 6);
    let events = crate::harness::read(new.join("events"));
    assert_eq!(events.len(), 5 + 5001 + 4 + 6 + 17 + 5);
    assert_eq!(crate::harness::read(new.join("at/4")), b"eight\nand a half");
}
