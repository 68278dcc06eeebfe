//! Waiting for the next event: follow/H, and poll(2) on what grows.

mod crowd;
mod delivery;
mod end;
mod loss;
mod mounts;
mod poll;
mod readers;
mod signals;
mod tail;

use crate::harness::*;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// What the issue gives 250 ms, on a machine that is busy with other tests.
const SOON: Duration = Duration::from_secs(2);
/// Long enough for a program that was just started to read what there is.
const A_WHILE: Duration = Duration::from_millis(1500);

const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// A program that runs on, and the lines it prints, as they come.
pub struct Follower {
    pub child: Child,
    lines: Receiver<(Instant, String)>,
}

impl Follower {
    pub fn start(dir: &Path, command: &[&str]) -> Follower {
        let mut process = Command::new(command[0]);
        process.args(&command[1..]).current_dir(dir);
        // In a group that is not orphaned: only there does a terminal's Ctrl-Z stop anything.
        process.process_group(0).env("LC_ALL", "C.UTF-8");
        process.stdin(Stdio::null()).stdout(Stdio::piped());
        let spawned = process.spawn();
        let mut child = spawned.unwrap_or_else(|e| panic!("{}: {e}", command[0]));
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                let _ = sender.send((Instant::now(), line));
            }
        });
        Follower { child, lines }
    }

    pub fn sh(dir: &Path, script: &str) -> Follower {
        Follower::start(dir, &["sh", "-c", script])
    }

    fn cat(stream: &Path, file: &str) -> Follower {
        let cat = Follower::start(stream, &["cat", file]);
        sleep(A_WHILE);
        cat
    }

    /// The next line, and when it came.
    #[track_caller]
    pub fn next(&self) -> (Instant, String) {
        let line = self.lines.recv_timeout(Duration::from_secs(20));
        line.expect("no line within 20 s")
    }

    #[track_caller]
    pub fn prints(&self, expected: &[&str]) {
        for line in expected {
            assert_eq!(self.next().1, *line);
        }
    }

    /// Nothing is printed for as long, and the program waits.
    #[track_caller]
    fn is_quiet(&mut self, time: Duration) {
        let line = self.lines.recv_timeout(time);
        assert_eq!(line, Err(RecvTimeoutError::Timeout));
        assert_eq!(self.child.try_wait().unwrap(), None, "it ended");
    }

    pub fn signal(&self, signal: i32) {
        assert_eq!(unsafe { libc::kill(self.child.id().cast_signed(), signal) }, 0);
    }

    /// The letter of /proc/PID/status.
    pub fn state(&self) -> char {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        status.split("State:\t").nth(1).unwrap().chars().next().unwrap()
    }

    #[track_caller]
    fn ends(&mut self) -> ExitStatus {
        let status = wait(&mut self.child, SOON);
        status.expect("it must end soon")
    }

    /// It came to the end of the file.
    #[track_caller]
    pub fn ends_well(&mut self) {
        let status = self.ends();
        assert!(status.success(), "{status}");
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.child.kill();
        // Not `wait` without end: if it cannot be killed, that is a failure and not a hang.
        if wait(&mut self.child, Duration::from_secs(5)).is_none() {
            eprintln!("{} cannot be killed", self.child.id());
        }
    }
}

/// A stream of three events.
fn three(m: &Mnt) -> std::path::PathBuf {
    let s = m.stream("s");
    append(s.join("events"), "0\n1\n2\n");
    s
}

pub fn status_kib(pid: u32, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|l| l.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
