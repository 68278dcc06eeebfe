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
        let (program, script) = if python {
            ("python3", PYTHON)
        } else {
            ("sh", SHELL)
        };
        let mut command = Command::new(program);
        command
            .args(["-c", script, "script"])
            .arg(stream)
            .arg(&name)
            .arg(batches.to_string());
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        Writer {
            name,
            process: command.spawn().unwrap(),
        }
    }

    /// Waits for its end; how many of its batches were acknowledged.
    fn acknowledged(&mut self) -> usize {
        let mut said = String::new();
        self.process
            .stdout
            .take()
            .unwrap()
            .read_to_string(&mut said)
            .unwrap();
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
fn twelve(streams: &[&Path], round: &str, batches: usize) -> Vec<Writer> {
    let start = |n: usize| {
        let stream = streams[n / 2 % streams.len()];
        Writer::start(
            n.is_multiple_of(2),
            format!("{round}writer{n}"),
            stream,
            batches,
        )
    };
    (0..12).map(start).collect()
}

/// How many batches each writer has in the stream, which holds whole batches and nothing else,
/// each writer's in order.
#[track_caller]
fn whole_batches(stream: &Path) -> HashMap<String, usize> {
    let mut found: HashMap<String, usize> = HashMap::new();
    let events = text(&read(stream.join("events")));
    let mut lines = events.lines();
    while let Some(first) = lines.next() {
        let words: Vec<&str> = first.split(' ').collect();
        let [writer, batch, "1", "of", n] = words[..] else {
            panic!("not a first line: {first}")
        };
        for line in 2..=n.parse().unwrap() {
            assert_eq!(
                lines.next(),
                Some(&*format!("{writer} {batch} {line} of {n}"))
            );
        }
        let expected = found.entry(writer.to_string()).or_default();
        assert_eq!(
            *expected,
            batch.parse().unwrap(),
            "the next batch of {writer}"
        );
        *expected += 1;
    }
    assert_eq!(count(stream), events.lines().count() as u64);
    found
}

#[test]
fn twelve_processes_append_to_one_stream() {
    let m = Mnt::new();
    let s = m.stream("s");
    for mut writer in twelve(&[&s], "", 200) {
        assert_eq!(writer.acknowledged(), 200, "{}", writer.name);
    }
    let found = whole_batches(&s);
    assert!(
        found.len() == 12 && found.values().all(|&n| n == 200),
        "{found:?}"
    );
}

#[test]
fn twelve_processes_append_through_two_mounts_of_one_store() {
    let one = Mnt::new();
    let two = Mnt::on(one.store(), &[]);
    let streams = [one.stream("s"), two.path().join("s")];
    for mut writer in twelve(&[&streams[0], &streams[1]], "", 200) {
        assert_eq!(writer.acknowledged(), 200, "{}", writer.name);
    }
    for stream in streams {
        let found = whole_batches(&stream);
        assert!(
            found.len() == 12 && found.values().all(|&n| n == 200),
            "{found:?}"
        );
    }
}

#[test]
fn what_was_acknowledged_survives_the_daemon_being_killed_in_the_middle() {
    let m = Mnt::new();
    let s = m.stream("s");
    let mut settled = HashMap::new();
    for round in 0..5 {
        let before = count(&s);
        let writers = twelve(&[&s], &format!("round{round}"), usize::MAX >> 1);
        eventually("they write", || count(&s) > before + 500);
        m.kill(libc::SIGKILL);
        let acknowledged: Vec<_> = writers
            .into_iter()
            .map(|mut w| (w.name.clone(), w.acknowledged()))
            .collect();
        m.restart();

        let found = whole_batches(&s);
        for (writer, batches) in &settled {
            assert_eq!(
                found.get(writer),
                Some(batches),
                "{writer} of an earlier round"
            );
        }
        for (writer, acknowledged) in acknowledged {
            // The one under way may be there or not.
            let batches = found.get(&writer).copied().unwrap_or(0);
            let may_be = acknowledged..=acknowledged + 1;
            assert!(
                may_be.contains(&batches),
                "{writer}: {batches} batches, not {may_be:?}"
            );
        }
        settled = found;
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
