//! README and manual: short, well-formed, and where other tests find the blocks that they run.

use crate::harness::*;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

const README: &str = include_str!("../../README.md");

/// The page of the manual in this section, as it is in the repository.
fn page(section: u8) -> String {
    let name = format!("scripts/dist/smolstore.{section}");
    text(&read(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)))
}

/// The literal block of a page of the manual that holds these words, as a reader sees it.
#[track_caller]
pub fn block(section: u8, words: &str) -> String {
    let page = page(section);
    let blocks = page.split("\n.Bd -literal").skip(1).filter_map(|rest| rest.split_once('\n'));
    let mut blocks = blocks.filter_map(|(_, rest)| Some(rest.split_once("\n.Ed")?.0));
    let block = blocks.find(|block| block.contains(words)).expect(words);
    let lines = block.lines().map(|line| line.strip_prefix("\\&").unwrap_or(line));
    lines.map(|line| line.replace("\\e", "\\") + "\n").collect()
}

#[test]
fn the_readme_is_read_to_the_end() {
    let words = |text: &str| text.split_whitespace().count();
    assert!(words(README) <= 1_500, "{} words", words(README));
    // The first event in and out.
    let (before, _) = README.split_once("$ cat orders/events\n").unwrap();
    assert!(words(before) <= 200, "{} words", words(before));
    assert!(before.contains("scripts/install") && before.contains(">> orders/events"));
}

#[test]
fn the_pages_of_the_manual_are_well_formed() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/dist");
    for section in [5, 7, 8] {
        let name = format!("smolstore.{section}");
        let mut mandoc = Command::new("mandoc");
        let out = mandoc.args(["-T", "lint", &name]).current_dir(&dir).output().unwrap();
        let said = text(&out.stdout) + &text(&out.stderr);
        // It does not know all of the manual of this machine.
        let known = ["mandoc.db", "referenced manual not found"];
        let wrong: Vec<_> =
            said.lines().filter(|line| !known.iter().any(|known| line.contains(known))).collect();
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }
}

#[test]
fn man_shows_a_page_of_the_repository() {
    let shown =
        sh("sh", "MANPAGER=cat man scripts/dist/smolstore.7", env!("CARGO_MANIFEST_DIR").as_ref());
    assert!(ok(&shown).contains("GUARANTEES"));
}

#[test]
fn the_errors_of_the_readme_are_in_the_manual() {
    let (_, table) = README.split_once("## Errors").unwrap();
    let rows = table.split("\n## ").next().unwrap().lines().filter(|row| row.starts_with("| E"));
    let cells = rows.filter_map(|row| row.split('|').nth(1));
    let errors: Vec<_> =
        cells.flat_map(str::split_whitespace).filter(|word| word.starts_with('E')).collect();
    assert!(errors.len() > 8, "{errors:?}");
    for error in errors {
        let error = error.trim_end_matches(',');
        assert!(page(7).contains(&format!(".Er {error}")), "{error}");
    }
}

/// The line of a crontab in the README, as cron would run it.
#[test]
fn retention_is_a_line_of_a_crontab() {
    let line = README.lines().find_map(|line| line.strip_prefix("    0 3 * * * ")).unwrap();
    let m = Mnt::new();
    let line = line.replace("\\%", "%").replace("/mnt/events", m.path().to_str().unwrap());
    let in_manual = line.split_once("&& ").unwrap().1;
    assert_eq!(block(7, "30 days ago"), format!("{in_manual}\n"));
    let s = m.stream("orders");
    append(s.join("events"), "old\n");
    let second = mtime(s.join("at/0")) / 1_000_000_000 + 1;
    eventually("the next second", || {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        now.as_secs() > second.try_into().unwrap()
    });
    append(s.join("events"), "new\n");
    let aged = |ago: &str| line.replace("30 days ago", ago);
    ok(&sh("sh", &line, "/".as_ref()));
    assert_eq!(text(&read(s.join("events"))), "old\nnew\n");
    ok(&sh("sh", &aged(&format!("@{second}")), "/".as_ref()));
    assert_eq!(text(&read(s.join("events"))), "new\n");
    // A stream that is not there tells no index, and nothing is dropped.
    let strange = sh("sh", &aged("tomorrow").replace("readlink orders", "readlink no"), m.path());
    assert!(!strange.status.success());
    assert_eq!(text(&read(s.join("events"))), "new\n");
}

#[test]
fn who_ends_a_follower_reads_it_without_a_pipe() {
    let m = Mnt::new();
    let s = m.stream("s");
    let status = m.path().join(".status");
    let start = |script: &str| {
        let mut shell = Command::new("sh");
        shell.args(["-c", script]).current_dir(m.path()).stdout(Stdio::piped());
        let shell = shell.spawn().unwrap();
        let waits =
            |line: &str| line.starts_with("smolstore_waiting_readers ") && line.ends_with(" 1");
        eventually("it waits", || text(&read(&status)).lines().any(waits));
        shell
    };
    let said = |mut shell: std::process::Child| {
        assert!(wait(&mut shell, Duration::from_secs(10)).is_some());
        std::io::read_to_string(shell.stdout.take().unwrap()).unwrap()
    };
    for script in ["sed 1q s/follow/next", "grep -m 1 WORD s/follow/next"] {
        let shell = start(script);
        append(s.join("events"), "a WORD\n");
        assert_eq!(said(shell), "a WORD\n", "{script}");
    }
    let mut shell = start("cat s/follow/next | sed 1q");
    append(s.join("events"), "a\n");
    assert!(wait(&mut shell, Duration::from_millis(500)).is_none());
    append(s.join("events"), "b\n");
    assert_eq!(said(shell), "a\n");
}

#[test]
fn what_was_open_when_the_daemon_was_killed_stays_dead() {
    let m = Mnt::new();
    let s = m.stream("s");
    let mut open = appender(s.join("lines")).unwrap();
    m.kill(libc::SIGKILL);
    m.restart();
    let dead = [libc::ENOTCONN, libc::ECONNABORTED];
    assert!(dead.contains(&errno_of(open.write_all(b"a\n"))));
    append(s.join("lines"), "b\n");
    assert_eq!(text(&read(s.join("events"))), "b\n");
}

// ---- what smolstore(7) says of programs and limits, and no other test shows ------------------

#[test]
fn a_lock_of_a_file_holds_within_one_mount_and_for_that_file() {
    let m = Mnt::new();
    m.stream("s");
    let other = Mnt::on(m.store(), &[]);
    let script = format!(
        "exec 9< s/events
        flock 9 && ! flock -n s/events true && flock -n s/lines true && flock -n {}/s/events true",
        other.path().display()
    );
    ok(&sh("sh", &script, m.path()));
}

#[test]
fn rm_of_an_empty_stream_fails_where_rmdir_works() {
    let m = Mnt::new();
    let s = m.stream("s");
    assert!(!sh("sh", "rm -r s", m.path()).status.success());
    ok(&sh("sh", "rmdir s", m.path()));
    assert!(!s.exists());
}

/// Tells whether `s/events` was reported as changed since the last line, and the count of `s`.
const INOTIFY: &str = r#"
import ctypes, os, sys
libc = ctypes.CDLL(None)
watch = libc.inotify_init1(os.O_NONBLOCK)
assert libc.inotify_add_watch(watch, b"s/events", 2) >= 0 # IN_MODIFY
def fired():
    try: return len(os.read(watch, 4096)) > 0
    except BlockingIOError: return False
count = lambda: int(open("s/count").read())
file = os.open("s/events", os.O_WRONLY | os.O_APPEND)
os.write(file, b"a\n")
print(fired(), count())
os.close(file)
print(fired(), count())
for name in ["s/lines", "s/new", "s/from/next", sys.argv[1] + "/s/events"]:
    file = os.open(name, os.O_WRONLY | os.O_APPEND)
    os.write(file, b"a\n")
    os.close(file)
print(fired(), count())
"#;

#[test]
fn inotify_fires_at_the_write_to_events_and_at_nothing_else() {
    let m = Mnt::new();
    m.stream("s");
    let other = Mnt::on(m.store(), &[]);
    let mut python = Command::new("python3");
    python.args(["-c", INOTIFY]).arg(other.path()).current_dir(m.path());
    assert_eq!(ok(&python.output().unwrap()), "True 0\nFalse 1\nFalse 5\n");
}

#[test]
fn read_of_bash_times_out_on_a_pipe_from_a_follower_only() {
    let m = Mnt::new();
    m.stream("s");
    let script = "status=0; timeout 2 bash -c 'read -t 0.2 -r line < s/follow/next' || status=$?
        test $status = 124
        timeout 10 bash -c 'exec 3< <(exec cat s/follow/next); cat=$!
            while read -t 0.2 -r line; do :; done <&3; kill $cat'";
    ok(&sh("bash", &format!("set -e\n{script}"), m.path()));
}

#[test]
fn four_followers_use_up_the_threads_of_node() {
    crate::harness::need("node", "nodejs");
    let m = Mnt::new();
    let s = m.stream("s");
    let script = "const fs = require('fs'); let answered = 0
        for (let n = 0; n < 4; n++) fs.open('s/follow/next', 'r', (e, file) =>
            fs.read(file, Buffer.alloc(9), 0, 9, null, () => console.log('event')))
        setTimeout(() => fs.stat('s', () => answered++), 500)
        setTimeout(() => console.log('answered', answered), 1500)";
    let mut node = Command::new("node");
    node.args(["-e", script]).current_dir(m.path()).stdout(Stdio::piped());
    let mut node = node.spawn().unwrap();
    std::thread::sleep(Duration::from_secs(3));
    append(s.join("events"), "a\n");
    assert!(wait(&mut node, Duration::from_secs(30)).is_some());
    let said = std::io::read_to_string(node.stdout.take().unwrap()).unwrap();
    assert_eq!(said, format!("answered 0\n{}", "event\n".repeat(4)));
}

/// Runs a script whose mounts end with it, beside directories `store` and `mnt`; `$smolstore` is the program.
fn in_namespace(script: &str) {
    let dir = public_dir();
    for name in ["store", "mnt"] {
        std::fs::create_dir(dir.path().join(name)).unwrap();
    }
    let prelude =
        "until_() { n=0; until \"$@\"; do sleep 0.05; n=$((n + 1)); test $n -lt 200; done; }";
    let script = format!("set -e\n{prelude}\n{script}");
    let mut shell = Command::new("unshare");
    shell.args(["-mpf", "--mount-proc", "--kill-child", "sh", "-c", &script]);
    shell.env("smolstore", env!("CARGO_BIN_EXE_smolstore")).current_dir(dir.path());
    ok(&shell.output().unwrap());
}

#[test]
fn a_killed_writer_that_the_daemon_cannot_see_looks_like_one_that_closes() {
    in_namespace(
        "unshare -pf --kill-child $smolstore store mnt -f & daemon=$!
        until_ mountpoint -q mnt
        mkdir mnt/s
        python3 -c 'import os, time; os.write(1, b\"a\\n\"); open(\"written\", \"w\"); time.sleep(60)' >> mnt/s/events &
        writer=$!
        until_ test -e written
        kill -9 $writer
        until_ grep -q 1 mnt/s/count
        umount mnt
        wait $daemon",
    );
}

#[test]
fn a_daemon_lives_as_long_as_another_namespace_holds_its_mount() {
    in_namespace(
        "$smolstore store mnt -f & daemon=$!
        until_ mountpoint -q mnt
        unshare -m --propagation private sleep 60 & holder=$!
        until_ grep -q sleep /proc/$holder/comm
        umount mnt
        sleep 0.5
        kill -0 $daemon
        kill $holder
        wait $daemon",
    );
}
