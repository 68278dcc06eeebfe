//! The recipes of smolstore(7), each word for word.

use crate::harness::*;
use crate::manual::block;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A program in the manual's words; it, and all that it started, ends with the test.
struct Program(Child);

impl Program {
    fn start(command: &[&str], dir: &Path, env: &[(&str, &str)]) -> Program {
        need(command[0], if command[0] == "node" { "nodejs" } else { command[0] });
        let mut program = Command::new(command[0]);
        program.args(&command[1..]).current_dir(dir).envs(env.iter().copied());
        program.stdin(Stdio::null()).stdout(Stdio::piped());
        Program(program.process_group(0).spawn().unwrap())
    }

    /// Whether it ends well.
    fn succeeds(&mut self) -> bool {
        wait(&mut self.0, Duration::from_secs(60)).expect("it ends").success()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // What has ended and was waited for may be another's number by now.
        if self.0.try_wait().unwrap().is_none() {
            unsafe { libc::kill(-self.0.id().cast_signed(), libc::SIGKILL) };
            self.0.wait().unwrap();
        }
    }
}

fn lines(path: impl AsRef<Path>) -> Vec<String> {
    text(&read(path)).lines().map(str::to_owned).collect()
}

#[test]
fn a_decision_that_nobody_overtakes() {
    let m = Mnt::new();
    append(m.stream("account").join("events"), "{\"eur\": 10}\n");
    let program = block(7, "not enough");
    let withdraw = || Program::start(&["python3", "-c", &program, "account", "3"], m.path(), &[]);
    let mut all: Vec<_> = (0..8).map(|_| withdraw()).collect();
    let ended = all.iter_mut().map(Program::succeeds).filter(|paid| *paid);
    assert_eq!(ended.count(), 3);
    assert_eq!(lines(m.path().join("account/from/1")), ["{\"eur\": -3}"; 3]);
}

#[test]
fn a_projection_that_never_misses_or_repeats() {
    let m = Mnt::new();
    let (orders, totals) = (m.stream("orders"), m.stream("totals"));
    let program = block(7, "totals/count");
    let mut projection = Program::start(&["python3", "-c", &program], m.path(), &[]);
    for n in 1..=40 {
        // Two lines, and one event.
        fs::write(orders.join("new"), "{\"item\": \"tea\",\n\"eur\": 2}").unwrap();
        if n % 10 == 5 {
            // Anywhere in its work.
            drop(projection);
            projection = Program::start(&["python3", "-c", &program], m.path(), &[]);
        }
    }
    eventually("it comes to the end", || count(&totals) == 40);
    let wanted: Vec<_> = (1..=40).map(|n| format!("{{\"tea\": {}}}", 2 * n)).collect();
    assert_eq!(lines(totals.join("events")), wanted);
}

#[test]
fn a_projection_into_sql() {
    let m = Mnt::new();
    let orders = m.stream("orders");
    let db = m.path().with_file_name("totals.db").display().to_string();
    let program = block(7, "sqlite3");
    let start = || Program::start(&["python3", "-c", &program, &db], m.path(), &[]);
    let mut projection = start();
    for n in 0..40 {
        // What holds a newline is one event, though not one line.
        let order = format!("{{\"item\": \"{}\",\n\"eur\": 2}}", ["tea", "pot"][n % 2]);
        fs::write(orders.join("new"), order).unwrap();
        if n % 10 == 5 {
            // Anywhere in its work.
            drop(projection);
            projection = start();
        }
    }
    let totals = format!(
        "python3 -c 'import sqlite3; db = sqlite3.connect(\"{db}\")
for row in db.execute(\"SELECT * FROM totals ORDER BY done\"): print(*row)'"
    );
    let totals = || text(&sh("sh", &totals, m.path()).stdout);
    eventually("it comes to the end", || totals() == "tea 40 38\npot 40 39\n");
    drop(projection);
}

#[test]
fn workers_that_share_jobs() {
    let m = Mnt::new();
    let [jobs, claims, done] = ["jobs", "claims", "done"].map(|name| m.stream(name));
    let program = block(7, "LEASE");
    let worker =
        |lease| Program::start(&["python3", "-c", &program], m.path(), &[("LEASE", lease)]);
    // Its first worker dies of it.
    let begun = m.path().with_file_name("begun");
    let fatal = format!("mkdir {0} && sleep 600; echo fatal >> done/events\n", begun.display());
    append(jobs.join("events"), fatal);
    let first = worker("2");
    eventually("the first works", || begun.exists());
    drop(first);
    let more: String = (0..20).map(|n| format!("echo {n} >> done/events\n")).collect();
    append(jobs.join("events"), more);
    let others = [worker("600"), worker("600"), worker("600")];
    eventually("all is done", || count(&done) == 21 && count(&claims) == 43);
    drop(others);
    let mut all = lines(done.join("events"));
    all.sort_by_key(|line| line.parse().unwrap_or(20));
    let wanted: Vec<_> = (0..20).map(|n| n.to_string()).chain(["fatal".into()]).collect();
    assert_eq!(all, wanted);
}

#[test]
fn trying_again_and_storing_once() {
    let m = Mnt::new();
    let orders = m.stream("orders");
    let program = block(7, "n=$1");
    let tries = [("0", "a"), ("0", "a"), ("1", "b"), ("1", "c"), ("1", "b")];
    let stored = tries.map(|(n, event)| {
        let command = ["bash", "-c", &program, "bash", n, event];
        Program::start(&command, m.path(), &[]).succeeds()
    });
    assert_eq!(stored, [true, true, true, false, true]);
    assert_eq!(read(orders.join("events")), b"a\nb\n");
}

/// The recipe that moves `orders` from one store to another, with the places of these mounts.
fn moving(m: &Mnt, other: &Mnt) -> String {
    let mut program = block(7, "/srv/archive");
    for (theirs, ours) in [
        ("/srv/events", m.store()),
        ("/mnt/events", m.path()),
        ("/srv/archive", other.store()),
        ("/mnt/archive", other.path()),
    ] {
        program = program.replace(theirs, ours.to_str().unwrap());
    }
    program
}

#[test]
fn moving_a_stream_to_another_store() {
    let (m, other) = (Mnt::new(), Mnt::new());
    let orders = m.stream("orders");
    append(orders.join("events"), "a\n");
    append(orders.join("events"), "b\nc\n");
    let times = |s: &Path| [0, 1, 2].map(|n| mtime(s.join(format!("at/{n}"))));
    let before = times(&orders);
    ok(&sh("bash", &moving(&m, &other), m.store()));
    assert!(names(m.path()).is_empty() && !orders.exists());
    let moved = other.path().join("orders");
    assert_eq!(read(moved.join("events")), b"a\nb\nc\n");
    assert_eq!(times(&moved), before);
    append(moved.join("from/3"), "d\n");
    assert_eq!(count(&moved), 4);
}

#[test]
fn what_comes_while_a_stream_is_moved_is_kept() {
    let (m, other) = (Mnt::new(), Mnt::new());
    let orders = m.stream("orders");
    append(orders.join("events"), "a\n");
    // A program that has it open, and goes on after the copy.
    let program = moving(&m, &other).replace("\ncat ", "\necho late >&3\ncat ");
    let failed = sh("bash", &format!("exec 3>> orders/lines\n{program}"), m.path());
    assert!(text(&failed.stderr).contains("Directory not empty"), "{failed:?}");
    assert_eq!(read(m.path().join("moved/events")), b"late\n");
    assert_eq!(read(other.path().join("orders/events")), b"a\n");
}

/// The copy that the recipe speaks of, in the same words.
#[test]
fn a_copy_of_a_stream_in_another_store() {
    let (m, other) = (Mnt::new(), Mnt::new());
    let orders = m.stream("orders");
    append(orders.join("events"), "a\nb\n");
    let program = moving(&m, &other).replace("/moved", "/orders");
    let lines: Vec<_> = program.lines().collect();
    let copy = [&lines[..1], &lines[2..lines.len() - 2]].concat().join("\n");
    ok(&sh("bash", &copy, m.store()));
    let copied = other.path().join("orders");
    eventually("its mount sees it", || copied.exists());
    append(copied.join("from/2"), "c\n");
    assert_eq!((count(&copied), count(&orders)), (3, 2));
}

#[test]
fn following_from_node() {
    let m = Mnt::new();
    let orders = m.stream("orders");
    append(orders.join("events"), "{\"item\": \"old\", \"eur\": 1}\n");
    let mut node = Program::start(&["node", "-e", &block(7, "child_process")], m.path(), &[]);
    let waits =
        |line: &String| line.starts_with("smolstore_waiting_readers ") && line.ends_with(" 1");
    eventually("it follows", || lines(m.path().join(".status")).iter().any(waits));
    append(orders.join("events"), "{\"item\": \"tea\", \"eur\": 4}\n");
    append(orders.join("events"), "{\"item\": \"pot\", \"eur\": 30, \"last\": true}\n");
    assert!(node.succeeds());
    let said = std::io::read_to_string(node.0.stdout.take().unwrap()).unwrap();
    assert_eq!(said, "tea: 4\npot: 30\n");
}

#[test]
fn rotating_a_log() {
    const PROGRAM: &str = "trap 'exec 3>> log/lines' HUP; exec 3>> log/lines; n=0
        while sleep 0.01; do echo $n >&3; n=$((n + 1)); done";
    let m = Mnt::new();
    let log = m.stream("log");
    let program = Program::start(&["bash", "-c", PROGRAM], m.path(), &[]);
    eventually("it logs", || count(&log) > 3);
    let pid = program.0.id().to_string();
    ok(&sh("bash", &format!("PID={pid}\n{}", block(7, "HUP")), m.path()));
    eventually("it logs anew", || count(&log) > 3);
    drop(program);
    let rotated = names(m.path()).into_iter().find(|name| name != "log").unwrap();
    let all = [lines(m.path().join(rotated).join("events")), lines(log.join("events"))].concat();
    let wanted: Vec<_> = (0..all.len()).map(|n| n.to_string()).collect();
    assert_eq!(all, wanted);
}

/// The replica of smolstore(8), stopped and started again.
#[test]
fn a_replica_holds_each_event_once() {
    let (m, replica) = (Mnt::new(), Mnt::new());
    let (from, to) = (m.stream("orders"), replica.stream("orders"));
    let script = block(8, "/mnt/replica")
        .replace("/mnt/events", m.path().to_str().unwrap())
        .replace("/mnt/replica", replica.path().to_str().unwrap());
    let mut all = String::new();
    for batch in ["a\n\n b \\n c\n", "d\n", "e\nf\n"] {
        append(from.join("events"), batch);
        all += batch;
        let _copier = Program::start(&["bash", "-c", &script], m.path(), &[]);
        within(60, {
            let (to, all) = (to.clone(), all.clone());
            move || {
                while text(&read(to.join("events"))) != all {
                    std::thread::sleep(Duration::from_millis(20));
                }
            }
        });
    }
}
