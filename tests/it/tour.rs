//! The README's tour, run as it stands: what it shows is what happens.
//!
//! Lines that begin with `$ ` are commands, `> ` continues one, all else is their output. A `…` in
//! the output stands for what differs from run to run, on that line.

use crate::harness::{eventually, mounted, unmount, wait};
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;

const SECTION: &str = "## A five-minute tour";
const LIMIT: Duration = Duration::from_secs(60);
/// Printed after each command, to tell the outputs apart.
const MARK: char = '\x1e';
/// The places the README speaks of; the test has its own.
const STORE: &str = "/srv/events";
const POINT: &str = "/mnt/events";

#[test]
fn every_command_and_output_is_real() {
    let steps = steps(include_str!("../../README.md"));
    assert!(steps.len() > 20, "a tour of {} commands only?", steps.len());
    let mut session = Session::start(&script(&steps));
    let output = session.output();

    let outputs: Vec<&str> = output.split(MARK).collect();
    let wrong = (0..steps.len()).filter_map(|n| steps[n].differs(outputs.get(n)));
    let wrong: Vec<String> = wrong.collect();
    assert!(wrong.is_empty(), "README.md differs from what happens\n{}", wrong.join("\n"));
    assert_eq!(outputs.len(), steps.len() + 1, "more outputs than commands:\n{output}");

    assert_eq!(mounted(&session.point), None, "the tour ends unmounted");
    eventually("the daemon exits after umount", || session.daemons().is_empty());
}

/// A command of the tour and what the README says it prints.
struct Step {
    line: usize,
    command: String,
    expected: Vec<String>,
}

impl Step {
    /// What to tell when the command printed something else.
    fn differs(&self, output: Option<&&str>) -> Option<String> {
        let output: Vec<&str> = output.copied().unwrap_or("(never run)").lines().collect();
        let same = self.expected.len() == output.len()
            && self.expected.iter().zip(&output).all(|(pattern, line)| matches(pattern, line));
        let tell = || {
            let expected = self.expected.join("\n  ");
            let Step { line, command, .. } = self;
            format!("line {line}: $ {command}\n  {expected}\nreally:\n  {}\n", output.join("\n  "))
        };
        (!same).then(tell)
    }
}

fn steps(readme: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let (mut in_section, mut in_block) = (false, false);
    for (number, line) in (1..).zip(readme.lines()) {
        if !in_block {
            in_section = if line.starts_with("## ") { line == SECTION } else { in_section };
            in_block = in_section && line == "```console";
        } else if line == "```" {
            in_block = false;
        } else if let Some(command) = line.strip_prefix("$ ") {
            steps.push(Step { line: number, command: command.into(), expected: Vec::new() });
        } else {
            let step = steps.last_mut().expect("a block begins with a command");
            match line.strip_prefix("> ") {
                Some(more) => step.command = format!("{}\n{more}", step.command),
                None => step.expected.push(line.into()),
            }
        }
    }
    steps
}

/// All commands as one script, with a mark after each.
fn script(steps: &[Step]) -> String {
    let mark = format!("printf '\\{:03o}'\n", u32::from(MARK));
    steps.iter().map(|step| format!("{}\n{mark}", step.command)).collect()
}

fn matches(pattern: &str, line: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('…') else {
        return pattern == line;
    };
    let Some(line) = line.strip_prefix(first) else {
        return false;
    };
    let mut cuts = line.char_indices().map(|(at, _)| at).chain([line.len()]);
    cuts.any(|at| matches(rest, &line[at..]))
}

/// A bash that runs the tour in directories of its own. Whatever it leaves goes with it.
struct Session {
    dir: Option<TempDir>,
    store: PathBuf,
    point: PathBuf,
    bash: Child,
}

impl Session {
    fn start(script: &str) -> Session {
        let dir = TempDir::new().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let (store, point) = (root.join("store"), root.join("mnt"));
        let script = script.replace(STORE, store.to_str().unwrap());
        fs::write(root.join("tour"), script.replace(POINT, point.to_str().unwrap())).unwrap();
        let output = File::create(root.join("output")).unwrap();

        let program = Path::new(env!("CARGO_BIN_EXE_smolstore"));
        let path = std::env::var("PATH").unwrap_or_default();
        let path = format!("{}:{path}", program.parent().unwrap().display());
        let mut bash = Command::new("bash");
        bash.args(["--noprofile", "--norc", "tour"]).current_dir(&root);
        bash.env("PATH", path).env("LC_ALL", "C.UTF-8").env_remove("BASH_ENV");
        bash.stdin(Stdio::null()).stdout(output.try_clone().unwrap()).stderr(output);
        // A group of its own, so that all of it can be killed.
        let bash = bash.process_group(0).spawn().unwrap();
        Session { dir: Some(dir), store, point, bash }
    }

    /// All it printed, in the words of the README.
    fn output(&mut self) -> String {
        let status = wait(&mut self.bash, LIMIT);
        let output = fs::read(self.store.with_file_name("output")).unwrap();
        let output = String::from_utf8_lossy(&output);
        assert!(status.is_some(), "the tour hangs; so far it printed:\n{output}");
        let output: String = output.split_inclusive(['\n', MARK]).map(as_at_a_prompt).collect();
        let output = output.replace(self.store.to_str().unwrap(), STORE);
        output.replace(self.point.to_str().unwrap(), POINT)
    }

    /// The daemon, found by its argument because it went to the background.
    fn daemons(&self) -> Vec<i32> {
        let names = fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().file_name());
        let pids = names.filter_map(|name| name.to_str()?.parse().ok());
        let ours = |pid: &i32| {
            let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            arguments
                .split(|&byte| byte == 0)
                .any(|argument| argument == self.store.as_os_str().as_bytes())
        };
        pids.filter(ours).collect()
    }
}

/// A script's `tour: line 7: FILE: File exists` is `bash: FILE: File exists` at a prompt.
fn as_at_a_prompt(line: &str) -> String {
    let message = line.strip_prefix("tour: line ").and_then(|rest| rest.split_once(": "));
    message.map_or_else(|| line.into(), |(_number, message)| format!("bash: {message}"))
}

impl Drop for Session {
    fn drop(&mut self) {
        if self.bash.try_wait().unwrap().is_none() {
            unsafe { libc::kill(-self.bash.id().cast_signed(), libc::SIGKILL) };
            self.bash.wait().unwrap();
        }
        for pid in self.daemons() {
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
        unmount(&self.point);
        if mounted(&self.point).is_some() {
            // Deleting through a live mount would delete streams.
            self.dir.take().map(TempDir::keep);
        }
    }
}
