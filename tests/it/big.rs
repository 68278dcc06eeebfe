//! Batches far larger than the memory the daemon may use.

use crate::harness::*;
use std::ffi::CString;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;

const MIB: u64 = 1 << 20;

/// A `cat FILE - >> events` which has passed the file on and waits for more.
struct Cat(Child);

impl Cat {
    fn after_the_file(file: &Path, stream: &Path) -> Cat {
        let mut command = Command::new("sh");
        command.args(["-c", "exec cat \"$1\" - >> events", "sh"]).arg(file);
        let mut cat = Cat(command.current_dir(stream).stdin(Stdio::piped()).spawn().unwrap());
        // Twice what a pipe holds: when this returns, cat is through with the file.
        cat.0.stdin.as_mut().unwrap().write_all(&more_lines()).unwrap();
        cat
    }
}

impl Drop for Cat {
    fn drop(&mut self) {
        // Both fail when it has ended, which is as good.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What comes through the pipe.
fn more_lines() -> Vec<u8> {
    b"and more\n".repeat(15_000)
}

/// A file of numbered lines, this long or a little longer, and how many they are.
fn numbered_lines(dir: &Path, bytes: u64) -> (PathBuf, u64) {
    let lines = bytes / 40; // their length, up to the first million
    let script =
        format!("yes 'an event of a handful of words..' | cat -n | head -n {lines} > lines");
    ok(&sh("sh", &script, dir));
    let file = dir.join("lines");
    assert!(fs::metadata(&file).unwrap().len() > bytes - 40);
    (file, lines)
}

/// The bytes free on the disk where this is.
fn free(path: &Path) -> u64 {
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    let mut stat = MaybeUninit::<libc::statvfs>::uninit();
    assert_eq!(unsafe { libc::statvfs(path.as_ptr(), stat.as_mut_ptr()) }, 0);
    let stat = unsafe { stat.assume_init() };
    stat.f_bfree * stat.f_frsize
}

#[test]
fn a_batch_of_a_gib_is_one_batch_in_little_memory() {
    let dir = TempDir::new().unwrap();
    let (file, lines) = numbered_lines(dir.path(), gib() << 30);
    let m = Mnt::new();
    let s = m.stream("s");

    let mut cat = Cat::after_the_file(&file, &s);
    assert_eq!(count(&s), 0, "nothing is there before the close");
    assert_eq!(fs::metadata(s.join("events")).unwrap().len(), 0);
    drop(cat.0.stdin.take());
    let status = wait(&mut cat.0, Duration::from_secs(900 * gib())).expect("cat ends");
    assert!(status.success(), "{status}");

    assert_eq!(count(&s), lines + 15_000);
    OpenOptions::new().append(true).open(&file).unwrap().write_all(&more_lines()).unwrap();
    ok(&sh("sh", &format!("cmp events {}", file.display()), &s));
    let time = |n: u64| fs::metadata(s.join(format!("at/{n}"))).unwrap().modified().unwrap();
    assert_eq!(time(0), time(count(&s) - 1), "one batch");
    little_memory(&m, "a batch");
}

/// GiB of each of the large ones: `SMOLSTORE_GIB=10` for what is promised.
fn gib() -> u64 {
    std::env::var("SMOLSTORE_GIB").ok().and_then(|gib| gib.parse().ok()).unwrap_or(1)
}

#[track_caller]
fn little_memory(m: &Mnt, what: &str) {
    eprintln!("{what}: the daemon took {} KiB", m.rss_peak_kib());
    assert!(m.rss_peak_kib() < 128 * 1024, "{what}: the daemon took {} KiB", m.rss_peak_kib());
}

#[test]
fn one_large_event_and_its_log_without_an_index_take_little_memory() {
    let m = Mnt::new();
    let s = m.stream("s");
    let bytes = gib() << 30;
    ok(&sh("sh", &format!("head -c {bytes} /dev/zero > new && echo small >> events"), &s));
    assert_eq!(fs::metadata(s.join("at/0")).unwrap().len(), bytes);
    ok(&sh("sh", &format!("head -c {bytes} /dev/zero | cmp - at/0"), &s));
    little_memory(&m, "an event");
    m.stop();
    fs::remove_file(m.store().join("s/index")).unwrap();
    m.restart();
    assert_eq!(count(&s), 2);
    assert_eq!(read(s.join("at/1")), b"small");
    ok(&sh("sh", &format!("head -c {bytes} /dev/zero | cmp - at/0"), &s));
    little_memory(&m, "its log without an index");
}

#[test]
fn many_large_events_at_once_take_little_memory() {
    let m = Mnt::new();
    let bytes = (gib() << 30) / 8;
    let streams: Vec<_> = (0..4).map(|n| m.stream(format!("s{n}"))).collect();
    std::thread::scope(|scope| {
        for s in streams.iter().chain(&streams) {
            let script = format!("head -c {bytes} /dev/zero > new");
            scope.spawn(move || ok(&sh("sh", &script, s)));
        }
    });
    std::thread::scope(|scope| {
        for s in &streams {
            assert_eq!(count(s), 2);
            let script = format!("for n in 0 1; do head -c {bytes} /dev/zero | cmp - at/$n; done");
            scope.spawn(move || ok(&sh("sh", &script, s)));
        }
    });
    little_memory(&m, "eight events at once");
}

#[test]
fn a_large_batch_whose_writer_is_killed_leaves_nothing_and_gives_the_space_back() {
    let dir = TempDir::new().unwrap();
    let (file, _) = numbered_lines(dir.path(), 256 * MIB);
    let disk = SmallDisk::new(1024);
    let store = disk.path().join("store");
    fs::create_dir(&store).unwrap();
    let m = Mnt::on(&store, &[]);
    let s = m.stream("s");
    append(s.join("events"), "before\n");

    let before = free(&store);
    let mut cat = Cat::after_the_file(&file, &s);
    assert!(free(&store) < before - 256 * MIB, "what is pending is on the store's disk");
    cat.0.kill().unwrap();
    cat.0.wait().unwrap();
    assert_eq!(read(s.join("events")), b"before\n");
    eventually("the space is given back", || free(&store) > before - 4 * MIB);
    append(s.join("events"), "later\n");
    assert_eq!(read(s.join("events")), b"before\nlater\n");
}

#[test]
fn a_large_batch_which_loses_its_index_gives_the_space_back() {
    let dir = TempDir::new().unwrap();
    let (file, _) = numbered_lines(dir.path(), 64 * MIB);
    let disk = SmallDisk::new(512);
    let store = disk.path().join("store");
    fs::create_dir(&store).unwrap();
    let m = Mnt::on(&store, &[]);
    let s = m.stream("s");

    let mut loser = appender(s.join("from/0")).unwrap();
    let before = free(&store);
    loser.write_all(&read(&file)).unwrap();
    append(s.join("events"), "winner\n");
    assert_eq!(errno_of(close(loser)), libc::EEXIST);
    assert_eq!(read(s.join("events")), b"winner\n");
    eventually("the space is given back", || free(&store) > before - 4 * MIB);
}
