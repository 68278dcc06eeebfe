//! Processes that append without end (`writer.py`), and what must be there of what they appended.

use crate::concurrent::whole_batches;
use crate::harness::*;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tempfile::TempDir;

/// Who appends how: functions of `writer.py`, a process for each.
pub const KINDS: [&str; 11] = [
    "by_close", "by_close", "by_fsync", "by_fsync", "by_write", "by_lines", "spilled", "new",
    "guarded", "guarded", "maker",
];

/// The streams that all append to; the guarded to the second.
const STREAMS: [&str; 2] = ["s", "g"];

/// What our own batches are named after.
const PROBE: &str = "probe";

pub struct Writers {
    notes: TempDir,
    processes: BTreeMap<String, Reaped>,
    /// What was seen of the streams, and must stay.
    seen: [Vec<u8>; 2],
    probes: usize,
}

/// What a writer has noted of its batches.
#[derive(Default)]
struct Notes {
    acknowledged: Vec<usize>,
    failed: Vec<(usize, String)>,
}

impl Notes {
    fn of(path: &Path) -> Notes {
        let mut notes = Notes::default();
        // None when the process has yet to make it; and it may be in the middle of a line.
        let all = fs::read_to_string(path).unwrap_or_default();
        for line in all.split_inclusive('\n').filter_map(|l| l.strip_suffix('\n')) {
            match line.split_once(' ') {
                None => notes.acknowledged.push(line.parse().unwrap()),
                Some((batch, errno)) => notes.failed.push((batch.parse().unwrap(), errno.into())),
            }
        }
        notes
    }

    /// Compares with what is there: all that was acknowledged, in order, each batch once; none that
    /// was refused.
    #[track_caller]
    fn check(&self, name: &str, found: &[usize]) {
        assert!(found.is_sorted_by(|a, b| a < b), "{name}: {found:?}");
        let there = |batch: &usize| found.binary_search(batch).is_ok();
        let lost = self.acknowledged.iter().find(|batch| !there(batch));
        assert_eq!(lost, None, "{name}: acknowledged and not there");
        let refused = |errno: &str| ["ENOSPC", "EDQUOT", "ENOENT"].contains(&errno);
        let mut refused = self.failed.iter().filter(|(_, errno)| refused(errno));
        let stored = refused.find(|(batch, _)| there(batch));
        assert_eq!(stored, None, "{name}: refused and there");
    }
}

impl Writers {
    /// Makes the streams, and starts a process for each of [`KINDS`].
    pub fn start(m: &Mnt) -> Writers {
        for name in STREAMS {
            m.stream(name);
        }
        let notes = TempDir::new().unwrap();
        let start = |(n, kind): (usize, &str)| {
            let name = format!("{kind}-{n}");
            let mut command = Command::new("python3");
            command.args(["-I", "-c", include_str!("writer.py"), kind, &name]);
            command.arg(m.path()).arg(notes.path().join(&name));
            (name, Reaped(command.stdin(Stdio::null()).spawn().unwrap()))
        };
        Writers {
            processes: KINDS.into_iter().enumerate().map(start).collect(),
            notes,
            seen: Default::default(),
            probes: 0,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.notes.path().join(name)
    }

    /// The writers of these kinds.
    fn of(&self, kinds: &[&str]) -> Vec<&str> {
        let is = |name: &&str| name.rsplit_once('-').is_some_and(|(kind, _)| kinds.contains(&kind));
        let names = self.processes.keys().map(String::as_str);
        names.filter(is).collect()
    }

    /// Each of these gets something more acknowledged.
    #[track_caller]
    pub fn go_on(&mut self, kinds: &[&str]) {
        let progress = |name: &&str| Notes::of(&self.path(name)).acknowledged.len();
        let names = self.of(kinds);
        let before: Vec<_> = names.iter().map(progress).collect();
        eventually("all writers go on", || {
            let mut all = names.iter().map(progress).zip(&before);
            all.all(|(now, before)| now > *before)
        });
        for (name, process) in &mut self.processes {
            assert!(process.0.try_wait().unwrap().is_none(), "{name} ended");
        }
    }

    #[track_caller]
    pub fn all_go_on(&mut self) {
        self.go_on(&KINDS);
    }

    /// What each of these has met last is one of these errors. The guarded do not say.
    pub fn meet(&self, kinds: &[&str], errors: &[&str]) -> bool {
        self.of(kinds).iter().all(|name| {
            let notes = fs::read_to_string(self.path(name)).unwrap_or_default();
            let last = notes.lines().last().and_then(|line| line.split_once(' '));
            last.is_some_and(|(_, errno)| errors.contains(&errno)) || name.starts_with("guarded")
        })
    }

    pub fn stop(&mut self) {
        for process in self.processes.values_mut() {
            process.0.kill().unwrap();
            process.0.wait().unwrap();
        }
    }

    /// An append of our own.
    #[track_caller]
    pub fn probe(&mut self, m: &Mnt) {
        let event = format!("{PROBE} {} 1 of 1\n", self.probes);
        append(m.path().join("s/events"), event);
        let notes = fs::File::options().create(true).append(true).open(self.path(PROBE));
        writeln!(notes.unwrap(), "{}", self.probes).unwrap();
        self.probes += 1;
    }

    /// What was acknowledged or seen is there, each batch whole; what was refused is not.
    #[track_caller]
    pub fn check(&mut self, m: &Mnt) {
        let names = self.processes.keys().map(String::as_str).chain([PROBE]);
        // Noted before we look at the streams: the writers go on.
        let notes: Vec<_> = names.map(|name| (name, Notes::of(&self.path(name)))).collect();
        let mut found = BTreeMap::new();
        for (stream, seen) in STREAMS.iter().zip(&mut self.seen) {
            let now = read(m.path().join(stream).join("events"));
            assert!(now.starts_with(seen), "{stream}: what was seen has changed");
            found.extend(whole_batches(&text(&now)));
            *seen = now;
        }
        for (name, notes) in notes {
            if name.starts_with("maker") {
                made(m.path(), name, &notes.acknowledged);
                continue;
            }
            let found = found.remove(name).unwrap_or_default();
            notes.check(name, &found);
            if name.starts_with("guarded") {
                let once = (0..found.len()).collect::<Vec<_>>();
                assert_eq!(found, once, "{name}: not each once");
            }
        }
        assert!(found.is_empty(), "{found:?}");
    }

    /// For the reader of long runs.
    pub fn report(&self) -> String {
        let (mut acknowledged, mut errors) = (0, BTreeSet::new());
        for name in self.processes.keys() {
            let notes = Notes::of(&self.path(name));
            acknowledged += notes.acknowledged.len();
            errors.extend(notes.failed.into_iter().map(|(_, errno)| errno));
        }
        format!("{acknowledged} batches acknowledged, others met {errors:?}")
    }
}

/// A stream for each batch of a `maker`.
#[track_caller]
fn made(root: &Path, name: &str, acknowledged: &[usize]) {
    for batch in acknowledged {
        let renamed = if batch % 2 == 1 { "-renamed" } else { "" };
        let events = text(&read(root.join(format!("{name}-{batch}{renamed}/events"))));
        let found = whole_batches(&events);
        assert_eq!(found.len(), 1, "{events}");
        assert_eq!(found[name], [*batch], "{events}");
    }
}
