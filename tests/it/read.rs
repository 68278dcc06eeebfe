//! Reading: at any offset and length, by many, while others append.

use crate::harness::*;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

/// What a stream should hold.
struct Model {
    stream: PathBuf,
    events: Vec<Vec<u8>>,
    view: Vec<u8>,
    /// Where each event starts in the view, and the end.
    starts: Vec<usize>,
}

impl Model {
    /// A stream with many small events, some large ones and a huge one, appended in random batches.
    fn fill(stream: PathBuf) -> Model {
        let mut random = Random(0x5eed);
        let mut lens: Vec<usize> =
            (0..400).map(|n| random.below(if n % 20 == 0 { 200_000 } else { 40 })).collect();
        lens[200] = 3 << 20;
        let events: Vec<_> = lens.into_iter().map(|len| random.event(len)).collect();
        let (mut view, mut starts) = (vec![], vec![0]);
        for event in &events {
            view.extend_from_slice(event);
            view.push(b'\n');
            starts.push(view.len());
        }
        let mut n = 0;
        while n < events.len() {
            let next = events.len().min(n + 1 + random.below(30));
            append(stream.join("events"), &view[starts[n]..starts[next]]);
            n = next;
        }
        Model { stream, events, view, starts }
    }

    /// Reads at random places of a random view and compares.
    fn check(&self, random: &mut Random, rounds: usize) {
        for _ in 0..rounds {
            let n = random.below(self.events.len() + 1);
            let (path, want) = match random.below(3) {
                0 => (self.stream.join("events"), &self.view[..]),
                1 if n < self.events.len() => {
                    (self.stream.join(format!("at/{n}")), &self.events[n][..])
                }
                _ => (self.stream.join(format!("from/{n}")), &self.view[self.starts[n]..]),
            };
            let file = File::open(&path).unwrap();
            assert_eq!(file.metadata().unwrap().len(), want.len() as u64, "{path:?}");
            for _ in 0..8 {
                let offset = match random.below(8) {
                    0 => want.len() + random.below(5_000_000), // behind the end
                    1 => want.len().saturating_sub(random.below(100)),
                    2 => self.starts[random.below(self.starts.len())], // where an event starts, or near it
                    _ => random.below(want.len() + 1),
                };
                let longest = [1, 50, 5_000, 300_000][random.below(4)];
                let len = random.below(longest + 1);
                let mut got = vec![0; len];
                let read = file.read_at(&mut got, offset as u64).unwrap();
                let from = offset.min(want.len());
                let part = &want[from..want.len().min(from + len)];
                assert!(
                    got[..read] == *part,
                    "{path:?} at {offset}: {read} bytes for {} of {len}",
                    part.len()
                );
            }
        }
    }
}

#[test]
fn any_offset_and_length_agrees_with_the_model() {
    let m = Mnt::new();
    let model = Model::fill(m.stream("s"));
    assert_eq!(count(&model.stream), model.events.len() as u64);
    assert!(read(model.stream.join("events")) == model.view);
    for (n, event) in model.events.iter().enumerate() {
        assert!(read(model.stream.join(format!("at/{n}"))) == *event, "at/{n}");
    }
    std::thread::scope(|scope| {
        for seed in 1..=8 {
            let model = &model;
            scope.spawn(move || model.check(&mut Random(seed), 40));
        }
    });
    // The same from disk, by a daemon that has seen none of it.
    m.restart();
    model.check(&mut Random(99), 100);
    assert!(read(model.stream.join("events")) == model.view);
}

#[test]
fn odd_block_sizes() {
    let m = Mnt::new();
    let model = Model::fill(m.stream("s"));
    let copy = tempfile::NamedTempFile::new().unwrap();
    fs::write(copy.path(), &model.view).unwrap();
    let copy = copy.path().display();
    for block in [777, 4097, 65_521, 1_000_003, 5_000_000] {
        ok(&sh("sh", &format!("dd if=s/events bs={block} status=none | cmp - {copy}"), m.path()));
    }
    let skip = "iflag=skip_bytes,count_bytes skip=100003 count=500009 bs=4001 status=none";
    ok(&sh("bash", &format!("cmp <(dd if=s/events {skip}) <(dd if={copy} {skip})"), m.path()));
}

#[test]
fn an_open_file_reads_on_where_it_ended() {
    let m = Mnt::new();
    let s = m.stream("s");
    let mut events = File::open(s.join("events")).unwrap();
    let mut from = File::open(s.join("from/next")).unwrap();
    for n in 0..20 {
        let batch = format!("event {n}\n").repeat(n * n);
        append(s.join("events"), &batch);
        for file in [&mut events, &mut from] {
            let mut seen = String::new();
            file.read_to_string(&mut seen).unwrap();
            assert_eq!(seen, batch);
        }
    }
}

#[test]
fn tail_follows() {
    let m = Mnt::new();
    let s = m.stream("s");
    append(s.join("events"), "one\ntwo\n");
    let out = tempfile::tempdir().unwrap();
    let tail = |args: &[&str], name: &str| -> (Reaped, PathBuf) {
        let path = out.path().join(name);
        let mut tail = Command::new("tail");
        tail.args(args).current_dir(&s).stdin(Stdio::null()).stdout(File::create(&path).unwrap());
        (Reaped(tail.spawn().unwrap()), path)
    };
    let all = tail(&["-n", "+1", "-f", "events"], "all");
    let last = tail(&["-n", "1", "-f", "events"], "last");
    let newest = tail(&["-f", "from/newest"], "newest");
    let shows = |path: &Path, want: &str| eventually(want, || read(path) == want.as_bytes());
    shows(&all.1, "one\ntwo\n");
    shows(&last.1, "two\n");
    shows(&newest.1, "two\n");
    append(s.join("events"), "three\n");
    append(s.join("events"), "four\nfive\n");
    shows(&all.1, "one\ntwo\nthree\nfour\nfive\n");
    shows(&last.1, "two\nthree\nfour\nfive\n");
    shows(&newest.1, "two\nthree\nfour\nfive\n");
}

/// Ends the readers, also when the writer panics.
struct Raise<'a>(&'a AtomicBool);

impl Drop for Raise<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_reader_never_sees_a_torn_batch() {
    let m = Mnt::new();
    let s = m.stream("s");
    let done = AtomicBool::new(false);
    // Each line says how many of its batch follow.
    let whole = |view: &[u8]| view.is_empty() || view.ends_with(b" 0\n");
    std::thread::scope(|scope| {
        let readers: [fn(&Path) -> Vec<u8>; 3] = [
            |s| read(s.join("events")),
            |s| read(s.join(format!("from/{}", count(s)))),
            |s| {
                let (file, mut all) = (File::open(s.join("events")).unwrap(), vec![0; 900_000]);
                let len = file.read_at(&mut all, 0).unwrap();
                all.truncate(len);
                all
            },
        ];
        for reader in readers {
            let (s, done, whole) = (&s, &done, &whole);
            scope.spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    let view = reader(s);
                    let tail = text(&view[view.len().saturating_sub(40)..]);
                    assert!(whole(&view), "torn after {} bytes: {tail:?}", view.len());
                }
            });
        }
        let _done = Raise(&done);
        let mut random = Random(7);
        for n in 0..150 {
            let lines = 1 + random.below(50);
            let batch: String =
                (0..lines).rev().map(|left| format!("batch {n}, to come: {left}\n")).collect();
            append(s.join("events"), batch);
        }
    });
}
