//! Calls of the daemon that are answered with an error (`faults.c`, preloaded).

use crate::format::{HEAD, HEADER, PAGE, blocks};
use crate::harness::*;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;
use tempfile::TempDir;

pub const EIO: i32 = libc::EIO;
/// What is said of the stream `s` when a commit fails.
pub const UNKNOWN: &str = r#"stream "s": a commit may have happened or not: "#;

/// What fails now; see `faults.c`.
struct Faults {
    base: TempDir,
}

impl Faults {
    /// A mount whose daemon meets them.
    fn new() -> (Faults, Mnt) {
        let base = TempDir::new().unwrap();
        let faults = Faults { base };
        faults.are(&[]);
        let env = [("LD_PRELOAD", library().to_path_buf()), ("FAULTS", faults.path())];
        (faults, Mnt::in_env(&env))
    }

    fn path(&self) -> PathBuf {
        self.base.path().join("faults")
    }

    /// From now on these, and no others.
    fn are(&self, lines: &[&str]) {
        let new = self.base.path().join("new");
        fs::write(&new, lines.join("\n")).unwrap();
        fs::rename(new, self.path()).unwrap();
    }

    /// How many calls have met one.
    fn struck(&self) -> usize {
        let struck = fs::read_to_string(self.base.path().join("faults.struck"));
        struck.unwrap_or_default().lines().count()
    }
}

/// `faults.c`, compiled.
fn library() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let new = dir.join(format!("faults.{}.so", std::process::id()));
        let mut cc = Command::new("cc");
        cc.args(["-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o"]);
        cc.arg(&new).arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/disks/faults.c"));
        ok(&cc.output().unwrap_or_else(|e| panic!("cc: {e}")));
        // Another run of the tests may be using it.
        let library = dir.join("faults.so");
        fs::rename(new, &library).unwrap();
        library
    })
}

/// Nothing can be appended to a stream of `n` events in any way.
#[track_caller]
fn refuses(s: &Path, n: u64) {
    let files = ["events", "lines", "new", "from/next"].map(str::to_string);
    for file in files.into_iter().chain([format!("from/{n}")]) {
        let result = try_append(s.join(&file), "refused\n");
        assert_eq!(errno_of(result), EIO, "{file}");
    }
    let result = crate::commit::put(s.join(format!("at/{n}")), "refused");
    assert_eq!(errno_of(result), EIO, "at/{n}");
}

/// The outcome is unknown until the disk works again: the next use finds it out then.
#[test]
fn a_failed_sync_is_told_and_the_next_use_finds_out() {
    let (faults, m) = Faults::new();
    let (s, other) = (m.stream("s"), m.stream("other"));
    append(s.join("events"), "first\n");
    append(other.join("events"), "first\n");
    let mut held = appender(s.join("events")).unwrap();
    faults.are(&["fdatasync s/log 5 0 0 0"]);
    let lost = try_append(s.join("events"), "lost\nlost\n");
    assert_eq!(errno_of(lost), EIO);
    assert_eq!(faults.struck(), 1, "it is not tried again");
    assert!(m.log().contains(UNKNOWN), "{}", m.log());
    append(other.join("events"), "second\n");
    assert_eq!(text(&read(s.join("at/0"))), "first");
    for file in ["events", "count", "at/1"] {
        assert_eq!(errno_of(fs::read(s.join(file))), EIO, "nobody knows the end: {file}");
    }
    refuses(&s, 1);
    faults.are(&[]);
    assert_eq!(text(&read(s.join("at/1"))), "lost");
    assert_eq!(text(&read(s.join("events"))), "first\nlost\nlost\n");
    append(s.join("from/3"), "again\n");
    held.write_all(b"held\n").unwrap();
    close(held).unwrap();
    append(other.join("events"), "third\n");
    for _ in 0..2 {
        assert_eq!(text(&read(s.join("events"))), "first\nlost\nlost\nagain\nheld\n");
        assert_eq!(text(&read(other.join("events"))), "first\nsecond\nthird\n");
        m.restart();
    }
}

#[test]
fn all_batches_that_share_a_failed_sync_are_told() {
    let (faults, m) = Faults::new();
    let s = m.stream("s");
    append(s.join("events"), "first\n");
    // The first commit waits in its sync until the others have queued up behind it.
    faults.are(&["fdatasync s/log 0 0 0 0"]);
    let batch = |n: usize| format!("{n}\n").repeat(n + 1);
    std::thread::scope(|scope| {
        let append = |n| {
            let events = s.join("events");
            scope.spawn(move || try_append(events, batch(n)))
        };
        let before = append(0);
        eventually("the first is in its sync", || faults.struck() == 1);
        let writers: Vec<_> = (1..9).map(append).collect();
        // They are in the queue when they do not come back; there is nothing to see of that.
        std::thread::sleep(Duration::from_millis(300));
        faults.are(&["fdatasync s/log 5 1 0 0"]);
        before.join().unwrap().unwrap();
        for writer in writers {
            assert_eq!(errno_of(writer.join().unwrap()), EIO);
        }
    });
    assert_eq!(faults.struck(), 2, "one sync for all of them");
    refuses(&s, 2);
    faults.are(&[]);
    // They are one commit: all of them are there, or none.
    let all = text(&read(s.join("events")));
    let mut expected = "first\n0\n".to_string();
    let mut order: Vec<usize> = all.lines().skip(2).map(|line| line.parse().unwrap()).collect();
    order.dedup();
    expected.extend(order.iter().map(|n| batch(*n)));
    assert_eq!(all, expected, "each in one piece");
    order.sort_unstable();
    assert!(order.is_empty() || order == (1..9).collect::<Vec<_>>(), "{order:?}");
    let next = count(&s);
    append(s.join(format!("from/{next}")), "again\n");
    m.restart();
    assert_eq!(text(&read(s.join("events"))), all + "again\n");
}

#[test]
fn a_failed_batch_is_there_or_not() {
    for fault in ["fdatasync s/log 5 0 0 0", "pwrite s/log 5 0 100 9999"] {
        for (remounted, again) in [(false, 1), (true, 1), (true, 2)] {
            let (faults, m) = Faults::new();
            let s = m.stream("s");
            append(s.join("events"), "first\n");
            faults.are(&[fault]);
            for _ in 0..again {
                let result = try_append(s.join("events"), "a batch\nof two\n");
                assert_eq!(errno_of(result), EIO);
            }
            assert!(m.log().contains(UNKNOWN), "{}", m.log());
            faults.are(&[]);
            if remounted {
                m.restart();
            }
            let known = text(&read(s.join("events")));
            append(s.join(format!("from/{}", known.lines().count())), "again\n");
            let all = text(&read(s.join("events")));
            let may_be = ["first\nagain\n", "first\na batch\nof two\nagain\n"];
            assert!(may_be.contains(&&*all) && all.starts_with(&known), "{all:?}");
            m.restart();
            assert_eq!(text(&read(s.join("events"))), all, "what became of it stays so");
        }
    }
}

#[test]
fn a_failed_write_to_the_log_takes_its_batch_alone() {
    let (faults, m) = Faults::new();
    let s = m.stream("s");
    append(s.join("events"), "first\n");
    for n in 1..4 {
        // The second sector of the batch.
        faults.are(&["pwrite s/log 5 0 512 9999"]);
        let lost = try_append(s.join("events"), "x\n".repeat(1000));
        assert_eq!(errno_of(lost), EIO);
        assert_eq!(faults.struck(), n);
        assert_eq!(m.log().matches("s/log: Input/output error").count(), n);
        faults.are(&[]);
        append(s.join(format!("from/{n}")), "good\n");
    }
    m.restart();
    let all = "first\ngood\ngood\ngood\n";
    assert_eq!(text(&read(s.join("events"))), all);
}

#[test]
fn a_failed_write_to_the_index_leaves_its_batch_in_doubt() {
    let (faults, m) = Faults::new();
    let s = m.stream("s");
    append(s.join("events"), "first\n");
    faults.are(&["pwrite s/index 5 0 0 9999"]);
    let doubt = try_append(s.join("from/1"), "a batch\nof two\n");
    assert_eq!(errno_of(doubt), EIO);
    assert_eq!(faults.struck(), 1);
    assert!(m.log().contains(&format!("{UNKNOWN}s/index")), "{}", m.log());
    // The log could be written: what recovery cannot say in the index it reads all the same.
    assert_eq!(text(&read(s.join("events"))), "first\na batch\nof two\n");
    faults.are(&[]);
    // What the README says to do.
    let there = match fs::read(s.join("at/1")) {
        Ok(event) => event == b"a batch",
        Err(_) => match try_append(s.join("from/1"), "a batch\nof two\n") {
            Ok(()) => true,
            Err(error) => error.raw_os_error() == Some(libc::EEXIST),
        },
    };
    assert!(there);
    assert_eq!(text(&read(s.join("events"))), "first\na batch\nof two\n");
    m.restart();
    assert_eq!(text(&read(s.join("events"))), "first\na batch\nof two\n");
}

#[test]
fn a_failed_read_is_told_who_reads_there_alone() {
    let (faults, m) = Faults::new();
    let (s, other) = (m.stream("s"), m.stream("other"));
    append(other.join("events"), "other\n");
    // Each takes more than two pages of its log.
    let line = |n: u64| format!("{n:0>8175}\n");
    append(s.join("events"), (0..8).map(line).collect::<String>());
    let all = read(s.join("events"));
    for again in [false, true] {
        if again {
            m.restart();
        }
        let struck = faults.struck();
        // A page that holds nothing but a part of event 3.
        faults.are(&["pread s/log 5 0 28672 32768"]);
        for n in (0..8).filter(|n| *n != 3) {
            let at = read(s.join(format!("at/{n}")));
            assert_eq!(text(&at) + "\n", line(n));
        }
        assert_eq!(errno_of(fs::read(s.join("at/3"))), EIO);
        assert_eq!(errno_of(fs::read(s.join("from/3"))), EIO);
        assert!(read(s.join("from/4")).starts_with(&all[4 * 8176..]));
        let copy = "cat events > $DIR/copy; echo $?";
        let dir = TempDir::new().unwrap();
        let copy = copy.replace("$DIR", dir.path().to_str().unwrap());
        assert_eq!(ok(&sh("sh", &copy, &s)), "1\n");
        // One block a page, behind the head in the first.
        let before = 7 * (PAGE - HEADER) - HEAD;
        assert!(read(dir.path().join("copy")) == all[..before], "up to it");
        assert!(m.log().contains(r#"stream "s", event 3: "#), "{}", m.log());
        assert!(faults.struck() > struck);
        append(s.join("events"), "still takes them\n");
        assert_eq!(text(&read(other.join("events"))), "other\n");
        faults.are(&[]);
        assert_eq!(text(&read(s.join("at/3"))) + "\n", line(3));
        assert!(read(s.join("events")).starts_with(&all));
    }
}

/// A place that lies in this page of the log of `s`, and does not read.
fn bad_page(at: usize) -> String {
    let page = at - at % PAGE;
    format!("pread s/log 5 0 {page} {}", page + PAGE)
}

#[test]
fn a_failed_read_while_it_recovers_changes_nothing() {
    let (faults, m) = Faults::new();
    let s = m.stream("s");
    // Each takes more than two pages of its log.
    let line = |n: u64| format!("{n:0>8175}\n");
    for n in 0..8 {
        append(s.join("events"), line(n));
    }
    let all = read(s.join("events"));
    let (log, index) = (m.store().join("s/log"), m.store().join("s/index"));
    let blocks = blocks(&read(&log));
    let last = blocks.last().unwrap();
    let inside = |n| blocks.iter().find(|b| b.index == n && b.events == 0 && b.at % PAGE == 0);
    let [three, seven] = [3, 7].map(|n| bad_page(inside(n).unwrap().at));
    let behind = format!("pread s/log 5 0 {} 999999", last.end().next_multiple_of(PAGE));
    for (delete, bad) in [
        (false, &*behind),
        (false, &*bad_page(last.at)),
        (false, "pread s/index 5 0 0 4096"),
        (true, &*seven),
        (true, &*behind),
    ] {
        m.stop();
        if delete {
            fs::remove_file(&index).unwrap();
        }
        let file = File::options().write(true).open(&log).unwrap();
        let longer = (last.end().next_multiple_of(PAGE) + PAGE) as u64;
        file.set_len(longer.max(file.metadata().unwrap().len())).unwrap();
        let before = read(&log);
        faults.are(&[bad]);
        m.restart();
        for file in ["events", "from/next", "count"] {
            let refused = fs::read(s.join(file));
            assert_eq!(errno_of(refused), EIO, "{delete} {bad} {file}");
        }
        refuses(&s, 8);
        assert!(read(&log) == before, "{delete} {bad}");
        faults.are(&[]);
        assert!(read(s.join("events")) == all, "{delete} {bad}");
    }

    // What stands behind it says that it was acknowledged: the others can be read.
    for (delete, bad, lost) in [(false, &seven, 7), (true, &three, 3)] {
        m.stop();
        if delete {
            fs::remove_file(&index).unwrap();
        }
        faults.are(&[bad]);
        m.restart();
        assert_eq!(count(&s), 8);
        for n in 0..8 {
            match fs::read(s.join(format!("at/{n}"))) {
                Ok(event) => assert_eq!(text(&event) + "\n", line(n)),
                Err(error) => assert_eq!((error.raw_os_error(), n), (Some(EIO), lost)),
            }
        }
        assert_eq!(errno_of(fs::read(s.join(format!("at/{lost}")))), EIO);
        faults.are(&[]);
        assert!(read(s.join("events")) == all);
    }
    append(s.join("from/8"), "takes them\n");
}

#[test]
fn a_failed_sync_while_it_recovers_is_told_until_it_works() {
    let (faults, m) = Faults::new();
    let s = m.stream("s");
    append(s.join("events"), "first\n");
    faults.are(&["pwrite s/index 5 0 0 9999"]);
    let doubt = try_append(s.join("events"), "a batch\nof two\n");
    assert_eq!(errno_of(doubt), EIO);
    faults.are(&["fdatasync s/log 5 0 0 0"]);
    m.restart();
    refuses(&s, 1);
    refuses(&s, 3);
    assert_eq!(text(&read(s.join("at/0"))), "first");
    assert_eq!(errno_of(fs::read(s.join("at/1"))), EIO, "nobody knows");
    faults.are(&[]);
    append(s.join("from/3"), "again\n");
    for _ in 0..2 {
        assert_eq!(text(&read(s.join("events"))), "first\na batch\nof two\nagain\n");
        m.restart();
    }
}

#[test]
fn a_failed_temporary_file_takes_its_batch_alone() {
    let (faults, m) = Faults::new();
    let s = m.stream("s");
    let large = "0123456789abcde\n".repeat(1 << 16);
    append(s.join("events"), "first\n");
    for (n, fault) in
        ["open store 5 0 0 0", "pwrite deleted) 5 0 0 999999999", "pread deleted) 5 0 0 999999999"]
            .iter()
            .enumerate()
    {
        faults.are(&[fault]);
        let lost = try_append(s.join("events"), &large);
        assert_eq!(errno_of(lost), EIO, "{fault}");
        assert_eq!(faults.struck(), n + 1, "{fault}");
        append(s.join(format!("from/{}", n + 1)), "good\n");
    }
    faults.are(&[]);
    append(s.join("events"), &large);
    m.restart();
    let all = format!("first\ngood\ngood\ngood\n{large}");
    assert!(read(s.join("events")) == all.as_bytes());
}

#[test]
fn a_stream_whose_names_cannot_be_synced_acknowledges_nothing_yet() {
    let (faults, m) = Faults::new();
    for (n, fault) in ["fsync /s0 5 0 0 0", "fsync store 5 0 0 0"].iter().enumerate() {
        let s = m.stream(format!("s{n}"));
        let struck = faults.struck();
        faults.are(&[fault]);
        let lost = try_append(s.join("events"), "unknown\n");
        assert_eq!(errno_of(lost), EIO, "{fault}");
        assert_eq!(faults.struck(), struck + 1, "{fault}");
        assert_eq!(errno_of(fs::read(s.join("at/0"))), EIO, "{fault}: nobody knows");
        refuses(&s, 0);
        faults.are(&[]);
        let known = text(&read(s.join("events")));
        assert!(["", "unknown\n"].contains(&&*known), "{known:?}");
        append(s.join(format!("from/{}", known.lines().count())), "good\n");
        m.restart();
        assert_eq!(text(&read(s.join("events"))), known + "good\n", "{fault}");
    }
}

/// A file system that has shut down may say so to who syncs a file only: XFS.
#[test]
fn a_rename_that_may_not_outlive_a_crash_is_an_error() {
    let (faults, m) = Faults::new();
    let s = m.stream("s");
    append(s.join("events"), "one\n");
    for fault in ["fdatasync /log 5 0 0 0", "fsync store 5 0 0 0"] {
        faults.are(&[fault]);
        let renamed = fs::rename(&s, m.path().join("t"));
        assert_eq!(errno_of(renamed), EIO, "{fault}");
        faults.are(&[]);
        // It has the new name, or it has not.
        let _ = fs::rename(m.path().join("t"), &s);
        assert_eq!(read(s.join("events")), b"one\n", "{fault}");
    }
}
