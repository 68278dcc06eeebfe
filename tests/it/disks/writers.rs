//! Processes that append without end (`writer.py`), and what must be there of what they appended.

use crate::concurrent::whole_batches;
use crate::harness::*;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use tempfile::TempDir;

/// What appends how: functions of `writer.py`.
pub const KINDS: [&str; 11] = [
    "by_close", "by_close", "by_fsync", "by_fsync", "by_write", "by_lines", "spilled", "new",
    "guarded", "guarded", "maker",
];

pub struct Writers {
    notes: TempDir,
    processes: BTreeMap<String, Reaped>,
    /// What was seen of the streams that all append to, and must stay.
    seen: [Vec<u8>; 2],
    /// Events of our own in the first.
    probes: usize,
}

/// The streams that all append to; only the guarded to the second.
const STREAMS: [&str; 2] = ["s", "g"];

impl Writers {
    /// Makes the streams, and starts a process for each of `kinds`.
    pub fn start(m: &Mnt, kinds: &[&str]) -> Writers {
        for name in STREAMS {
            m.stream(name);
        }
        let notes = TempDir::new().unwrap();
        let mut processes = BTreeMap::new();
        for (n, kind) in kinds.iter().enumerate() {
            let name = format!("{kind}-{n}");
            let mut command = Command::new("python3");
            command.args(["-I", "-c", include_str!("writer.py"), kind, &name]);
            command.arg(m.path()).arg(notes.path().join(&name));
            command.stdin(Stdio::null());
            processes.insert(name, Reaped(command.spawn().unwrap()));
        }
        Writers {
            notes,
            processes,
            seen: Default::default(),
            probes: 0,
        }
    }

    fn lines(&self, name: &str) -> String {
        // None when the process has yet to make it.
        std::fs::read_to_string(self.notes.path().join(name)).unwrap_or_default()
    }

    /// What a writer has noted: its batches that were acknowledged, and the errors of the others.
    fn notes(&self, name: &str) -> (Vec<usize>, BTreeSet<String>) {
        let (mut acknowledged, mut errors) = (Vec::new(), BTreeSet::new());
        for line in self.lines(name).split_inclusive('\n').filter_map(|l| l.strip_suffix('\n')) {
            match line.split_once(' ') {
                None => acknowledged.push(line.parse().unwrap()),
                Some((_, errno)) => drop(errors.insert(errno.to_string())),
            }
        }
        (acknowledged, errors)
    }

    pub fn acknowledged(&self) -> usize {
        let of = |name: &String| self.notes(name).0.len();
        self.processes.keys().map(of).sum()
    }

    /// The errors that writers have met.
    pub fn errors(&self) -> BTreeSet<String> {
        let of = |name: &String| self.notes(name).1;
        self.processes.keys().flat_map(of).collect()
    }

    fn of<'a>(&'a self, kinds: &'a [&str]) -> impl Iterator<Item = &'a String> {
        let kind = |name: &str| name.split('-').next().map(str::to_string);
        let names = self.processes.keys();
        names.filter(move |name| kinds.contains(&&*kind(name).unwrap()))
    }

    /// Each of these gets something more acknowledged.
    #[track_caller]
    pub fn go_on(&mut self, kinds: &[&str]) {
        let progress = |name: &String| self.notes(name).0.len();
        let before: Vec<_> = self.of(kinds).map(progress).collect();
        assert!(!before.is_empty());
        eventually("all writers go on", || {
            let mut all = self.of(kinds).map(progress).zip(&before);
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

    /// What each of these has met last is one of these errors; the guarded do not say.
    pub fn meet(&self, kinds: &[&str], errors: &[&str]) -> bool {
        self.of(kinds).all(|name| {
            let notes = self.lines(name);
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

    /// Whatever was acknowledged or seen is there, in order, and every batch is whole.
    #[track_caller]
    pub fn check(&mut self, m: &Mnt) {
        let notes: BTreeMap<_, _> = self
            .processes
            .keys()
            .map(|name| (name.clone(), self.notes(name).0))
            .collect();
        for (stream, seen) in STREAMS.iter().zip(&mut self.seen) {
            let now = read(m.path().join(stream).join("events"));
            assert!(now.starts_with(seen), "{stream}: what was seen has changed");
            *seen = now;
        }
        let [s, g] = &self.seen;
        let (mut s, g) = (whole_batches(&text(s)), whole_batches(&text(g)));
        s.extend(g);
        for (name, acknowledged) in &notes {
            if name.starts_with("maker") {
                made(m.path(), name, acknowledged);
                continue;
            }
            let found = s.remove(name).unwrap_or_default();
            assert!(found.is_sorted_by(|a, b| a < b), "{name}: {found:?}");
            let lost = acknowledged.iter().find(|n| found.binary_search(n).is_err());
            assert_eq!(lost, None, "{name}: acknowledged and not there");
            if name.starts_with("guarded") {
                let all = (0..found.len()).collect::<Vec<_>>();
                assert_eq!(found, all, "{name}: not each once");
            }
        }
        let own = s.remove("probe").unwrap_or_default();
        assert_eq!(own, (0..self.probes).collect::<Vec<_>>());
        assert!(s.is_empty(), "{s:?}");
    }

    /// They can be appended to.
    #[track_caller]
    pub fn probe(&mut self, m: &Mnt) {
        let event = format!("probe {} 1 of 1\n", self.probes);
        append(m.path().join("s/events"), event);
        self.probes += 1;
    }

    /// A shell appends an event of several blocks `through` something.
    pub fn echo(&mut self, m: &Mnt, through: &str) -> Output {
        let event = format!("probe {} 1 of 1 $(printf %09999d 0)", self.probes);
        let out = sh("bash", &format!("echo {event} {through} s/events"), m.path());
        self.probes += usize::from(out.status.success());
        out
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
