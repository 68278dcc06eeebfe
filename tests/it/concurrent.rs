//! Many writers at once: batches stay whole, each writer's order is kept, nothing acknowledged
//! is lost and nothing is there twice.
//!
//! Writer W's batch B is the lines "W B 1 of N" to "W B N of N", N being 1 to 5. A writer prints a
//! line for each batch whose close succeeded, and ends at the first failure.

use crate::harness::*;
use std::collections::HashMap;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;

const PYTHON: &str = r"
import os, sys
stream, me, batches = sys.argv[2:4] + [int(sys.argv[4])]
for batch in range(batches):
    lines = batch % 5 + 1
    fd = os.open(stream + '/events', os.O_WRONLY | os.O_APPEND)
    for line in range(1, lines + 1):
        os.write(fd, f'{me} {batch} {line} of {lines}\n'.encode())
    os.close(fd)
    os.write(1, b'acknowledged\n')
";

const SHELL: &str = r#"
batch=0
while [ $batch -lt $3 ]; do
    lines=$((batch % 5 + 1))
    seq -f "$2 $batch %g of $lines" $lines | cat >> "$1"/events || exit
    echo acknowledged
    batch=$((batch + 1))
done
"#;

/// A process that appends: killed when dropped, should it still be there.
struct Writer {
    name: String,
    process: Child,
}

impl Writer {
    fn start(python: bool, name: String, stream: &Path, batches: usize) -> Writer {
        let (program, script) = if python { ("python3", PYTHON) } else { ("sh", SHELL) };
        let mut command = Command::new(program);
        command.args(["-c", script, "script"]).arg(stream).arg(&name).arg(batches.to_string());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        Writer { name, process: command.spawn().unwrap() }
    }

    /// Waits for its end; how many of its batches were acknowledged.
    fn acknowledged(&mut self) -> usize {
        let mut said = String::new();
        self.process.stdout.take().unwrap().read_to_string(&mut said).unwrap();
        said.lines().count()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // Both fail when it has ended, which is as good.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Twelve writers, Python and shells, dealt out over the directories that show one stream.
fn twelve(streams: &[&Path], batches: usize) -> Vec<Writer> {
    let start = |n: usize| {
        let stream = streams[n / 2 % streams.len()];
        Writer::start(n.is_multiple_of(2), format!("writer{n}"), stream, batches)
    };
    (0..12).map(start).collect()
}

/// The batches of each writer in `events`, which are whole batches and nothing else.
#[track_caller]
pub fn whole_batches(events: &str) -> HashMap<String, Vec<usize>> {
    let mut found: HashMap<String, Vec<usize>> = HashMap::new();
    let mut lines = events.lines();
    while let Some(first) = lines.next() {
        let words: Vec<&str> = first.splitn(5, ' ').collect();
        let [writer, batch, "1", "of", rest] = words[..] else {
            panic!("not a first line: {first}")
        };
        let n = rest.split(' ').next().unwrap_or_default();
        for line in 2..=n.parse().unwrap() {
            let expected = format!("{writer} {batch} {line} of {rest}");
            assert_eq!(lines.next(), Some(&*expected));
        }
        let batches = found.entry(writer.to_string()).or_default();
        batches.push(batch.parse().unwrap());
    }
    found
}

/// Twelve writers have so many batches each in the stream, in order.
#[track_caller]
fn all_of_twelve(stream: &Path, batches: usize) {
    let events = text(&read(stream.join("events")));
    assert_eq!(count(stream), events.lines().count() as u64);
    let found = whole_batches(&events);
    assert_eq!(found.len(), 12);
    for (writer, found) in found {
        assert_eq!(found, (0..batches).collect::<Vec<_>>(), "{writer}");
    }
}

#[test]
fn twelve_processes_append_to_one_stream() {
    let m = Mnt::new();
    let s = m.stream("s");
    for mut writer in twelve(&[&s], 200) {
        assert_eq!(writer.acknowledged(), 200, "{}", writer.name);
    }
    all_of_twelve(&s, 200);
}

#[test]
fn twelve_processes_append_through_two_mounts_of_one_store() {
    let one = Mnt::new();
    let two = Mnt::on(one.store(), &[]);
    let streams = [one.stream("s"), two.path().join("s")];
    for mut writer in twelve(&[&streams[0], &streams[1]], 200) {
        assert_eq!(writer.acknowledged(), 200, "{}", writer.name);
    }
    for stream in streams {
        all_of_twelve(&stream, 200);
    }
}

#[test]
fn sixty_four_threads_append_to_a_stream_each() {
    let m = Mnt::new();
    thread::scope(|scope| {
        for n in 0..64 {
            let s = m.stream(format!("s{n}"));
            scope.spawn(move || {
                let mut expected = String::new();
                for batch in 0..20 {
                    let lines = format!("{n} {batch} first\n{n} {batch} last\n");
                    append(s.join("events"), &lines);
                    expected += &lines;
                    assert_eq!(text(&read(s.join("events"))), expected);
                }
                assert_eq!(count(&s), 40);
            });
        }
    });
}
