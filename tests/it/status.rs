//! What the daemon tells of itself: `.status`, the trace of requests, readiness.

use crate::harness::{
    Mnt, append, appender, close, errno_of, eventually, names, ok, public_dir, read, sh, smolstore,
    text, try_append, unmount,
};
use crate::manual::block;
use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::Duration;

fn value(root: &Path, name: &str) -> f64 {
    let status = text(&read(root.join(".status")));
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let line = line.unwrap_or_else(|| panic!("no {name} in {status}"));
    line.trim().parse().unwrap()
}

#[test]
fn the_status_counts_what_was_done() {
    let mnt = Mnt::new();
    let root = mnt.path();
    let s = mnt.stream("s");
    let before = value(root, "smolstore_commits_total");
    append(s.join("events"), "a\nbc\n");
    append(s.join("from/2"), "d\n");
    let lost = try_append(s.join("from/2"), "late\n");
    assert_eq!(errno_of(lost), libc::EEXIST);
    // When it was opened, or when it writes.
    assert_eq!(value(root, "smolstore_guards_lost_total"), 1.0);
    let guarded = appender(s.join("from/3")).unwrap();
    append(s.join("events"), "e\n");
    assert_eq!(errno_of((&guarded).write(b"late\n")), libc::EEXIST);
    assert!(close(guarded).is_err());
    assert_eq!(value(root, "smolstore_guards_lost_total"), 2.0);
    assert_eq!(value(root, "smolstore_commits_total"), before + 3.0);
    assert_eq!(value(root, "smolstore_batches_total"), 3.0);
    assert_eq!(value(root, "smolstore_events_total"), 4.0);
    assert_eq!(value(root, "smolstore_bytes_total"), 9.0);
    assert_eq!(value(root, "smolstore_errors_total"), 0.0);
    // Somebody has taken its files away.
    let gone = mnt.stream("gone");
    let mut batch = appender(gone.join("events")).unwrap();
    batch.write_all(b"late\n").unwrap();
    fs::remove_dir_all(mnt.store().join("gone")).unwrap();
    assert_eq!(errno_of(close(batch)), libc::ENOENT);
    assert_eq!(value(root, "smolstore_errors_total"), 1.0);
    let quantiles = ["0.5", "0.99", "1"]
        .map(|share| value(root, &format!("smolstore_commit_seconds{{quantile=\"{share}\"}}")));
    assert!(quantiles[0] > 0.0 && quantiles.is_sorted(), "{quantiles:?}");
    assert!(value(root, "smolstore_uptime_seconds") > 0.0);
    let version = concat!("smolstore_info{version=\"", env!("CARGO_PKG_VERSION"), "\"}");
    assert_eq!(value(root, version), 1.0);
    let open = value(root, "smolstore_open_files");
    let held = fs::File::open(s.join("events")).unwrap();
    assert_eq!(value(root, "smolstore_open_files"), open + 1.0);
    drop(held);
    assert_eq!(value(root, "smolstore_waiting_readers"), 0.0);
    let mut waiting = crate::harness::Reaped(
        std::process::Command::new("cat").arg(s.join("follow/next")).spawn().unwrap(),
    );
    eventually("a reader waits", || value(root, "smolstore_waiting_readers") == 1.0);
    waiting.0.kill().unwrap();
}

#[test]
fn the_status_is_a_file_like_any_other() {
    let mnt = Mnt::new();
    let (root, status) = (mnt.path(), mnt.path().join(".status"));
    // What is listed are streams.
    assert!(names(root).is_empty());
    assert_eq!(ok(&sh("bash", "ls; stat -c %A .status", root)), "-r--r--r--\n");
    // Reads by one byte agree with one read, whatever happens meanwhile.
    let script = "exec 3< .status; mkdir s; while IFS= read -r line; do echo x >> s/events; \
                  echo \"$line\"; done <&3 | grep -c '^smolstore_[a-z_]*total *0$'";
    for shell in ["bash", "dash", "busybox sh"] {
        assert_eq!(ok(&sh(shell, script, root)), "10\n", "{shell}");
        sh("bash", "mv s s$RANDOM$RANDOM", root);
        mnt.restart();
    }
    let busy = fs::OpenOptions::new().append(true).open(&status);
    assert_eq!(errno_of(busy), libc::EPERM);
    assert_eq!(errno_of(fs::remove_file(&status)), libc::EPERM);
    assert_eq!(errno_of(fs::create_dir(&status)), libc::EEXIST);
    assert_eq!(fs::metadata(&status).unwrap().size(), read(&status).len() as u64);
}

#[test]
fn the_status_is_what_prometheus_reads() {
    let mnt = Mnt::new();
    append(mnt.stream("s").join("events"), "event\n");
    let dir = public_dir();
    let place = dir.path().to_str().unwrap();
    let script = block(8, "smolstore.prom").replace("/var/lib/prometheus/node-exporter", place);
    ok(&sh("sh", &script.replace("MOUNTPOINT", mnt.path().to_str().unwrap()), dir.path()));
    assert_eq!(names(dir.path()), ["smolstore.prom"]);
    // Each value follows a line that says what it is, and one of its type.
    let script = r##"awk '/^# HELP [a-z_]+ ./ { name = $3; next } $0 ~ "^# TYPE " name " (counter|gauge|summary)$" { next }
        $1 ~ "^" name "(_sum|_count)?({[a-z]+=\"[^\"]+\"})?$" && $2 ~ /^[0-9.]+$/ && NF == 2 { n++; next }
        { print; exit } END { print n }' smolstore.prom"##;
    assert_eq!(ok(&sh("sh", script, dir.path())), "19\n");
}

#[test]
fn requests_are_traced_from_one_sigusr1_to_the_next() {
    let mnt = Mnt::new();
    let s = mnt.stream("s");
    append(s.join("events"), "untraced\n");
    let said = |what: &str| mnt.log().contains(what);
    assert!(!said("trace:"));
    mnt.kill(libc::SIGUSR1);
    eventually("it says so", || said("tracing requests"));
    append(s.join("events"), "traced\n");
    try_append(s.join("at/0"), "late").unwrap_err();
    eventually("requests are traced", || {
        said("trace: open ") && said(" 7 at 9 by pid ") && said(": it exists already, ")
    });
    mnt.kill(libc::SIGUSR1);
    eventually("it says so", || said("tracing no more"));
    let log = mnt.log();
    append(s.join("events"), "untraced\n");
    assert_eq!(mnt.log(), log);
}

#[test]
fn readiness_is_told_to_systemd() {
    let dir = public_dir();
    let [store, point, socket] = ["store", "mnt", "socket"].map(|name| dir.path().join(name));
    fs::create_dir(&store).unwrap();
    fs::create_dir(&point).unwrap();
    let notified = UnixDatagram::bind(&socket).unwrap();
    notified.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut command = smolstore([store.as_os_str(), point.as_os_str(), "-f".as_ref()]);
    let mut daemon = crate::harness::Reaped(command.env("NOTIFY_SOCKET", &socket).spawn().unwrap());
    let mut said = [0; 64];
    let mut heard = || {
        let len = notified.recv(&mut said).unwrap();
        text(&said[..len])
    };
    assert_eq!(heard(), "READY=1");
    fs::create_dir(point.join("it serves")).unwrap();
    unsafe { libc::kill(daemon.0.id().cast_signed(), libc::SIGTERM) };
    assert_eq!(heard(), "STOPPING=1");
    assert!(crate::harness::wait(&mut daemon.0, Duration::from_secs(10)).unwrap().success());
    unmount(&point);
}

#[test]
fn mode_and_owner_of_the_root_are_those_of_the_store() {
    let mnt = Mnt::with(&["-o", "allow_other"]);
    ok(&sh("bash", "chmod 1777 . && chown 1000:1001 .", mnt.path()));
    let store = fs::metadata(mnt.store()).unwrap();
    assert_eq!((store.mode() & 0o7777, store.uid(), store.gid()), (0o1777, 1000, 1001));
    // A group is handed down as in any directory.
    ok(&sh("bash", "chmod 2777 . && mkdir s", mnt.path()));
    let stream = fs::metadata(mnt.path().join("s")).unwrap();
    assert_eq!((stream.mode() & 0o2000, stream.uid(), stream.gid()), (0o2000, 0, 1001));
    // A private mount shows not that mode but who may enter: nobody may change it there.
    let private = Mnt::on(mnt.store(), &[]);
    let refused = sh("bash", "chmod 777 .", private.path());
    assert!(text(&refused.stderr).contains("not permitted"), "{refused:?}");
}
