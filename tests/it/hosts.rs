//! A store on a file system that hosts share, imitated on this one (`hosts/shared.c`, preloaded into the
//! daemon of each host). scripts/cluster-test has the real thing.

use crate::harness::*;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use tempfile::TempDir;

const CEPH: &str = "00c36400";
const PLAN9: &str = "01021997";

/// `shared.c`, compiled.
fn library() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let new = dir.join(format!("shared.{}.so", std::process::id()));
        let mut cc = Command::new("cc");
        cc.args(["-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o"]);
        cc.arg(&new).arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/hosts/shared.c"));
        ok(&cc.output().unwrap_or_else(|e| panic!("cc: {e}")));
        // Another run of the tests may be using it.
        let library = dir.join("shared.so");
        fs::rename(new, &library).unwrap();
        library
    })
}

/// What happens to a host; see `shared.c`.
struct Host(TempDir);

impl Host {
    fn new() -> Host {
        Host(TempDir::new().unwrap())
    }

    /// From now on this is so.
    fn is(&self, what: &str) {
        fs::write(self.0.path().join(what), "").unwrap();
    }

    /// No longer.
    fn is_not(&self, what: &str) {
        fs::remove_file(self.0.path().join(what)).unwrap();
    }

    /// How often it did this.
    fn did(&self, what: &str) -> usize {
        let all = fs::read(self.0.path().join(what));
        all.map_or(0, |all| all.len())
    }

    fn env(&self, kind: &str) -> [(&'static str, PathBuf); 3] {
        let host = self.0.path().to_path_buf();
        [("LD_PRELOAD", library().to_path_buf()), ("HOST", host), ("TYPE", kind.into())]
    }

    /// Mounts a store there.
    fn mount(&self, store: &Path) -> Mnt {
        Mnt::on_in_env(store, &self.env(CEPH))
    }

    /// Tries to, on a file system of this type; what it says.
    fn refused(&self, kind: &str, store: &Path, args: &[&str]) -> String {
        let point = TempDir::new().unwrap();
        let mut command = smolstore([store, point.path()]);
        let out = command.args(args).envs(self.env(kind)).output().unwrap();
        unmount(point.path());
        assert_eq!(out.status.code(), Some(1), "{}", text(&out.stderr));
        text(&out.stderr)
    }
}

/// An empty directory to be a store.
fn store(base: &TempDir) -> PathBuf {
    let store = base.path().canonicalize().unwrap().join("store");
    fs::create_dir(&store).unwrap();
    store
}

#[test]
fn hosts_see_what_others_wrote() {
    let base = public_dir();
    let (store, hosts) = (store(&base), [Host::new(), Host::new()]);
    let mounts = [0, 1].map(|n| hosts[n].mount(&store));
    mounts[0].stream("s");
    let s = [0, 1].map(|n| mounts[n].path().join("s"));
    let (mut random, mut all) = (Random(7), Vec::new());
    for n in 0..80 {
        let len = [1, 100, 3000, 4096, 9000, 300_000][random.below(6)];
        let batch = [random.event(len), b"\n".to_vec()].concat();
        let writer = &s[random.below(2)];
        append(writer.join(if n % 3 == 0 { "events".into() } else { format!("from/{n}") }), &batch);
        all.extend(batch);
        for s in &s {
            assert_eq!(count(s), n + 1);
            assert!(read(s.join("events")) == all, "after {n}");
        }
        let taken = try_append(s[random.below(2)].join(format!("from/{n}")), "late\n");
        assert_eq!(errno_of(taken), libc::EEXIST);
    }
    drop(mounts);
    ok(&smolstore([Path::new("check"), &store]).output().unwrap());
    let m = Mnt::on(&store, &[]);
    assert!(all.ends_with(&read(m.path().join("s/from/40"))));
}

/// What all of a stream's files are to stat(2) and read(2); those of an event that is kept, too.
fn shown(stream: &Path) -> Vec<(String, u64, Vec<u8>)> {
    let event = count(stream) - 1;
    let files = ["events", "lines", "count", "first"].map(str::to_owned);
    let views =
        ["from", "at"].map(|view| [format!("{view}/{event}"), format!("{view}/{event}.json")]);
    let one = |file: String| {
        let path = stream.join(&file);
        (file, fs::metadata(&path).unwrap().ino(), read(path))
    };
    files.into_iter().chain(views.into_iter().flatten()).map(one).collect()
}

#[test]
fn hosts_show_the_same_names_and_numbers() {
    let base = public_dir();
    let (store, hosts) = (store(&base), [Host::new(), Host::new()]);
    let mounts = [0, 1].map(|n| hosts[n].mount(&store));
    let [here, there] = [0, 1].map(|n| mounts[n].path());
    let second = Duration::from_secs(1);
    assert_eq!(names(there).len(), 0);
    append(mounts[0].stream("s").join("events"), "one\ntwo\nthree\nfour\nfive\n");
    std::thread::sleep(second);
    assert_eq!(shown(&there.join("s")), shown(&here.join("s")));
    fs::write(there.join("s/first"), "2").unwrap();
    assert_eq!(text(&read(here.join("s/first"))), "2\n");
    assert_eq!(errno_of(fs::read(here.join("s/at/1"))), libc::ENODATA);
    assert_eq!(shown(&there.join("s")), shown(&here.join("s")));
    fs::rename(here.join("s"), here.join("t")).unwrap();
    std::thread::sleep(second);
    assert_eq!(names(there), ["t"]);
    assert!(!there.join("s").exists());
    assert_eq!(shown(&there.join("t")), shown(&here.join("t")));
    let checked = smolstore([Path::new("check"), &store]).envs(hosts[1].env(CEPH)).output();
    let checked = ok(&checked.unwrap());
    assert!(checked.ends_with("bytes: no faults\n"), "{checked}");
    fs::write(there.join("t/first"), "5").unwrap();
    fs::remove_dir(there.join("t")).unwrap();
    std::thread::sleep(second);
    assert!(!here.join("t").exists());
    assert_eq!(names(here).len(), 0);
}

#[test]
fn what_a_file_system_lacks_is_done_without() {
    let base = public_dir();
    let (store, hosts) = (store(&base), [Host::new(), Host::new()]);
    hosts.iter().for_each(|host| host.is("lacking"));
    let mounts = [0, 1].map(|n| hosts[n].mount(&store));
    let s = [0, 1].map(|n| mounts[n].path().join("s"));
    mounts[0].stream("s");
    // More than is kept in memory.
    let large = "0123456789abcde\n".repeat(1 << 15);
    append(s[0].join("events"), &large);
    append(s[1].join("events"), "one\ntwo\n");
    assert!(read(s[0].join("events")) == [large.as_bytes(), b"one\ntwo\n"].concat());
    fs::write(s[1].join("first"), (1 << 15).to_string()).unwrap();
    assert_eq!(text(&read(s[0].join("events"))), "one\ntwo\n");
    let seen = shown(&s[0]);
    assert_eq!(shown(&s[1]), seen);
    mounts[0].stop();
    mounts[0].restart();
    assert_eq!(shown(&s[0]), seen, "after a remount");
    for host in &hosts {
        assert!(host.did("lacked") > 0);
    }
    let log = mounts[1].log();
    assert!(log.contains("what was dropped keeps its space"), "{log}");
}

#[test]
fn what_hosts_could_not_share_is_refused_by_name() {
    let base = public_dir();
    let (store, host) = (store(&base), Host::new());
    let said = host.refused(PLAN9, &store, &[]);
    assert!(said.contains("it is not known to show all hosts the same"), "{said}");
    assert!(said.contains("-o single_host") && said.lines().count() == 1, "{said}");
    assert_eq!(names(&store).len(), 0);
    // O_DIRECT, where it must be, is no matter of who says what.
    host.is("indirect");
    for args in [&[][..], &["-o", "single_host"]] {
        let said = host.refused(CEPH, &store, args);
        assert!(said.contains("O_DIRECT") && said.lines().count() == 1, "{said}");
    }
    host.is_not("indirect");
    let point = TempDir::new().unwrap();
    let mut command = smolstore([store.as_path(), point.path()]);
    ok(&command.args(["-o", "single_host"]).envs(host.env(PLAN9)).output().unwrap());
    fs::create_dir(point.path().join("s")).unwrap();
    append(point.path().join("s/events"), "one\n");
    assert_eq!(text(&read(point.path().join("s/events"))), "one\n");
    unmount(point.path());
}

#[test]
fn a_store_that_was_mounted_anew_goes_on() {
    let base = public_dir();
    let (store, host) = (store(&base), Host::new());
    let m = host.mount(&store);
    let (s, idle) = (m.stream("s"), m.stream("idle"));
    append(s.join("events"), "one\n");
    append(idle.join("events"), "one\n");
    let mut follower = fs::File::open(s.join("follow/next")).unwrap();
    let writer = appender(s.join("events"));
    let next = std::thread::spawn(move || {
        let mut bytes = [0; 99];
        let len = follower.read(&mut bytes).unwrap();
        text(&bytes[..len])
    });
    host.is("anew");
    // Each is the first use of files that are dead.
    append(s.join("events"), "two\n");
    assert_eq!(text(&read(idle.join("events"))), "one\n");
    assert_eq!(within(60, move || next.join().unwrap()), "two\n");
    host.is("anew");
    let mut writer = writer.unwrap();
    writer.write_all(b"three\n").unwrap();
    close(writer).unwrap();
    host.is("anew");
    let rename = || fs::rename(&idle, m.path().join("renamed"));
    // It may be told of it once.
    rename().or_else(|_| rename()).unwrap();
    assert_eq!(text(&read(s.join("events"))), "one\ntwo\nthree\n");
}

#[test]
fn a_host_that_is_fenced_is_told_of_an_error_and_comes_back() {
    let base = public_dir();
    let (store, host) = (store(&base), Host::new());
    let m = host.mount(&store);
    let s = m.stream("s");
    append(s.join("events"), "one\n");
    let follow = || {
        let mut follower = fs::File::open(s.join("follow/next")).unwrap();
        std::thread::spawn(move || follower.read(&mut [0; 99]))
    };
    let waiting = follow();
    host.is("fenced");
    let told = within(60, move || waiting.join().unwrap());
    assert_eq!(errno_of(told), libc::EIO, "a follower's end of file");
    for file in ["events", "count", "from/0", "at/0", "at/1"] {
        assert_eq!(errno_of(fs::read(s.join(file))), libc::EIO, "{file}");
    }
    for file in ["events", "lines", "new", "from/1"] {
        assert_eq!(errno_of(try_append(s.join(file), "lost\n")), libc::EIO, "{file}");
    }
    assert_eq!(errno_of(fs::read(m.path().join("other/count"))), libc::EIO);
    host.is_not("fenced");
    let waiting = follow();
    append(s.join("from/1"), "two\n");
    assert_eq!(within(60, move || waiting.join().unwrap()).unwrap(), 4);
    assert_eq!(text(&read(s.join("events"))), "one\ntwo\n");
    assert!(!m.path().join("other").exists());
}

#[test]
fn a_daemon_ends_also_while_its_store_hangs() {
    let base = public_dir();
    let (store, host) = (store(&base), Host::new());
    let m = host.mount(&store);
    append(m.stream("s").join("events"), "one\n");
    host.is("hung");
    // What the kernel knows of the mount is old by then.
    std::thread::sleep(Duration::from_millis(1100));
    m.kill(libc::SIGTERM);
    let ended = m.wait(Duration::from_secs(20));
    host.is_not("hung");
    assert!(ended.is_some(), "it has to be killed");
}

#[test]
fn who_may_have_lost_the_lock_truncates_nothing() {
    let base = public_dir();
    let (store, host) = (store(&base), Host::new());
    let m = host.mount(&store);
    let s = m.stream("s");
    append(s.join("events"), "one\n");
    let before = host.did("truncated");
    let large = "0123456789abcde\n".repeat(1 << 16);
    let mut writer = appender(s.join("events")).unwrap();
    writer.write_all(large.as_bytes()).unwrap();
    host.is("unwritten");
    assert_eq!(errno_of(close(writer)), libc::EIO);
    // Fenced before it can do anything about it.
    assert_eq!(host.did("truncated"), before);
    host.is_not("unwritten");
    append(s.join("from/1"), "two\n");
    assert_eq!(text(&read(s.join("events"))), "one\ntwo\n");
}

/// An entry of the index is written with the page it is in, and the first of those holds `last`.
#[test]
fn who_only_reads_writes_no_hints() {
    let base = public_dir();
    let (store, host) = (store(&base), Host::new());
    let m = host.mount(&store);
    let s = m.stream("s");
    append(s.join("events"), "0123456789abcde\n".repeat(1 << 14));
    m.stop();
    let index = store.join("s/index");
    let mut bytes = read(&index);
    bytes[16..].fill(0);
    fs::write(&index, &bytes).unwrap();
    m.restart();
    assert_eq!(text(&read(s.join("at/9999"))), "0123456789abcde");
    assert!(read(&index) == bytes);
}

#[test]
fn two_first_mounts_of_an_empty_store() {
    let base = public_dir();
    let (store, hosts) = (store(&base), [Host::new(), Host::new()]);
    let first = hosts[0].mount(&store);
    first.stream("s");
    // It looked just before the other one was done.
    hosts[1].is("unmarked");
    let second = hosts[1].mount(&store);
    append(second.path().join("s/events"), "one\n");
    assert_eq!(text(&read(first.path().join("s/events"))), "one\n");
    let all = || names(&store) == [".news", ".smolstore", "s"];
    eventually("a page for what they tell each other", all);
}

#[test]
fn one_look_from_another_host_keeps_nothing_open() {
    let base = public_dir();
    let (store, hosts) = (store(&base), [Host::new(), Host::new()]);
    let mounts = [0, 1].map(|n| hosts[n].mount(&store));
    append(mounts[0].stream("s").join("events"), "one\n");
    let s = mounts[1].path().join("s");
    assert_eq!(count(&s), 1);
    let fds = format!("/proc/{}/fd", mounts[1].pid());
    let is_open = |what: &str| {
        let mut files =
            fs::read_dir(&fds).unwrap().flat_map(|fd| fs::read_link(fd.unwrap().path()));
        files.any(|file| file == store.join("s").join(what))
    };
    assert!(is_open("log") && is_open("index"));
    eventually("log and index are closed", || !is_open("log") && !is_open("index"));
    // Who waits is to hear of what comes; and a file that somebody has open can be read on.
    let mut follower = fs::File::open(s.join("follow/beginning")).unwrap();
    let mut reader = fs::File::open(s.join("events")).unwrap();
    std::thread::sleep(Duration::from_secs(5));
    append(mounts[0].path().join("s/events"), "two\n");
    let mut all = String::new();
    reader.read_to_string(&mut all).unwrap();
    assert_eq!(all, "one\ntwo\n");
    let mut some = [0; 8];
    follower.read_exact(&mut some).unwrap();
    assert_eq!(some, *b"one\ntwo\n");
}

/// As a rotation does, while somebody here has it open and is idle.
#[test]
fn what_was_opened_goes_into_no_other_stream_of_its_name() {
    let base = public_dir();
    let (store, hosts) = (store(&base), [Host::new(), Host::new()]);
    let mounts = [0, 1].map(|n| hosts[n].mount(&store));
    let [s, there] = [0, 1].map(|n| mounts[n].path().join("s"));
    append(mounts[0].stream("s").join("events"), "one\n");
    let mut writer = appender(s.join("events")).unwrap();
    std::thread::sleep(Duration::from_secs(5));
    fs::rename(&there, mounts[1].path().join("old")).unwrap();
    fs::create_dir(&there).unwrap();
    append(there.join("events"), "new\n");
    let written = writer.write_all(b"two\n").and_then(|()| close(writer));
    assert_eq!(errno_of(written), libc::ENOENT);
    assert_eq!(text(&read(there.join("events"))), "new\n");
}

#[test]
fn followers_hear_of_what_other_hosts_commit_and_cost_nothing_while_idle() {
    let base = public_dir();
    let (store, hosts) = (store(&base), [Host::new(), Host::new()]);
    let mounts = [0, 1].map(|n| hosts[n].mount(&store));
    let streams: Vec<_> = (0..200).map(|n| mounts[0].stream(format!("s{n}"))).collect();
    streams.iter().for_each(|s| append(s.join("events"), "one\n"));
    let (seen, news) = std::sync::mpsc::channel();
    for n in 0..streams.len() {
        let mut follower =
            fs::File::open(mounts[1].path().join(format!("s{n}/follow/next"))).unwrap();
        let seen = seen.clone();
        std::thread::spawn(move || {
            while let Ok(len @ 1..) = follower.read(&mut [0; 99]) {
                let _ = seen.send((n, len));
            }
            let _ = seen.send((n, 0));
        });
    }
    std::thread::sleep(Duration::from_secs(2));
    hosts[1].is("counted");
    std::thread::sleep(Duration::from_secs(3));
    hosts[1].is_not("counted");
    let idle = hosts[1].did("asked") / 3;
    assert!(idle < 100, "{idle} requests a second");
    for n in 0..5 {
        append(mounts[0].path().join(format!("s{n}/events")), "two\n");
        let begun = Instant::now();
        assert_eq!(news.recv_timeout(Duration::from_secs(10)), Ok((n, 4)));
        assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    }
    fs::write(streams[7].join("first"), "1").unwrap();
    fs::remove_dir(&streams[7]).unwrap();
    assert_eq!(news.recv_timeout(Duration::from_secs(10)), Ok((7, 0)));
    // Who goes tells before it does.
    append(mounts[0].path().join("s9/events"), "two\n");
    mounts[0].stop();
    assert_eq!(news.recv_timeout(Duration::from_secs(10)), Ok((9, 4)));
}
