//! The command itself: arguments, exit codes, messages, signals, what the kernel says of the mount.

use crate::harness::*;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Two empty directories, to be store and mount point; what a test left mounted goes with them.
struct Dirs {
    root: PathBuf,
    _base: TempDir,
}

impl Dirs {
    fn new() -> Dirs {
        let base = public_dir();
        let root = base.path().canonicalize().unwrap();
        for name in ["store", "mnt"] {
            fs::create_dir(root.join(name)).unwrap();
        }
        Dirs { root, _base: base }
    }

    fn join(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }
}

impl Drop for Dirs {
    fn drop(&mut self) {
        // A daemon in the background exits when its mount is gone.
        unmount(&self.join("mnt"));
    }
}

/// Runs what should end by itself, and ends it if it does not.
fn run(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    if wait(&mut child, Duration::from_secs(20)).is_none() {
        child.kill().unwrap();
        panic!("still running after 20 s: {command:?}: {:?}", child.wait_with_output());
    }
    child.wait_with_output().unwrap()
}

/// Exit 1 with one line on standard error that names this.
#[track_caller]
fn refused(out: &Output, names: impl AsRef<Path>) {
    let (said, names) = (text(&out.stderr), names.as_ref().display().to_string());
    assert_eq!(out.status.code(), Some(1), "{said}");
    assert!(said.lines().count() == 1 && said.ends_with('\n'), "not one line: {said:?}");
    assert!(said.contains(&names), "does not name {names}: {said}");
    assert!(text(&out.stdout).is_empty());
}

/// Processes whose command line names this path.
fn processes(path: &Path) -> Vec<u32> {
    let names = |pid: &u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|b| *b == 0).any(|arg| text(arg) == path.display().to_string())
    };
    let all = fs::read_dir("/proc")
        .unwrap()
        .filter_map(|e| e.unwrap().file_name().to_str()?.parse().ok());
    all.filter(names).collect()
}

#[test]
fn help_and_version() {
    let help = run(&mut smolstore(["--help"]));
    assert!(help.status.success() && help.stderr.is_empty());
    let said = text(&help.stdout);
    assert!(["STORE", "MOUNTPOINT", "-f", "-o"].iter().all(|word| said.contains(word)), "{said}");
    let version = run(&mut smolstore(["--version"]));
    assert!(version.status.success() && version.stderr.is_empty());
    assert!(text(&version.stdout).contains(env!("CARGO_PKG_VERSION")));
}

#[test]
fn usage_is_exit_2() {
    let dirs = Dirs::new();
    let (store, mnt) =
        (dirs.join("store").display().to_string(), dirs.join("mnt").display().to_string());
    let (store, mnt) = (store.as_str(), mnt.as_str());
    let wrong: [(&[&str], &str); 8] = [
        (&[], ""),
        (&[store], ""),
        (&[store, mnt, "third"], ""),
        (&[store, mnt, "--frobnicate"], "--frobnicate"),
        (&[store, mnt, "-q"], "-q"),
        (&[store, mnt, "-o"], "-o"),
        (&[store, mnt, "-o", "ro,frobnicate"], "frobnicate"),
        (&[store, mnt, "-o", "frobnicate=7"], "frobnicate"),
    ];
    for (args, names) in wrong {
        let out = run(&mut smolstore(args));
        let said = text(&out.stderr);
        assert_eq!(out.status.code(), Some(2), "{args:?}: {said}");
        assert!(
            !said.is_empty() && said.contains(names) && out.stdout.is_empty(),
            "{args:?}: {said}"
        );
    }
    assert_eq!(mounted(&dirs.join("mnt")), None);
    assert!(names(&dirs.join("store")).is_empty(), "a usage error touches nothing");
}

#[test]
fn it_goes_to_the_background_once_it_serves() {
    let dirs = Dirs::new();
    let mnt = dirs.join("mnt");
    let to = |name| File::create(dirs.join(name)).unwrap();
    let mut command = smolstore([dirs.join("store"), mnt.clone()]);
    let status =
        command.stdout(to("out")).stderr(to("err")).current_dir(&dirs.root).status().unwrap();
    assert!(status.success(), "{}", text(&read(dirs.join("err"))));
    // At once, without any wait.
    append_one(&mnt.join("s"));
    assert!(read(dirs.join("out")).is_empty() && read(dirs.join("err")).is_empty());

    let daemons = processes(&mnt);
    assert_eq!(daemons.len(), 1, "one daemon");
    let proc = PathBuf::from(format!("/proc/{}", daemons[0]));
    for fd in 0..3 {
        let file = fs::read_link(proc.join(format!("fd/{fd}"))).unwrap();
        assert!(!file.starts_with(&dirs.root), "the daemon holds its caller's {}", file.display());
    }
    assert!(
        !fs::read_link(proc.join("cwd")).unwrap().starts_with(&dirs.root),
        "its directory would stay busy"
    );

    ok(&sh("sh", "umount mnt", &dirs.root));
    eventually("the daemon exits", || processes(&mnt).is_empty());
}

#[test]
fn a_daemon_in_the_background_ends_by_sigterm() {
    let dirs = Dirs::new();
    let mnt = dirs.join("mnt");
    assert!(smolstore([dirs.join("store"), mnt.clone()]).status().unwrap().success());
    let daemon = || processes(&mnt);
    let pids = daemon();
    assert_eq!(pids.len(), 1, "one daemon");
    assert_eq!(unsafe { libc::kill(pids[0].cast_signed(), libc::SIGTERM) }, 0);
    eventually("it unmounts", || mounted(&mnt).is_none());
    eventually("it exits", || daemon().is_empty());
}

#[test]
fn relative_paths_are_those_of_the_caller() {
    let dirs = Dirs::new();
    let status = smolstore(["store", "mnt"]).current_dir(&dirs.root).status().unwrap();
    assert!(status.success());
    append_one(&dirs.join("mnt/s"));
    assert!(dirs.join("store/s").is_dir());
    let line = mounted(&dirs.join("mnt")).unwrap();
    assert!(line.contains(&dirs.join("store").display().to_string()), "{line}");
}

/// The first use of a new stream.
fn append_one(stream: &Path) {
    fs::create_dir(stream).unwrap();
    append(stream.join("events"), "a\n");
    assert_eq!(read(stream.join("events")), b"a\n");
}

#[test]
fn an_empty_directory_becomes_a_store() {
    let dirs = Dirs::new();
    fs::create_dir(dirs.join("store/lost+found")).unwrap();
    let m = Mnt::on(&dirs.join("store"), &[]);
    assert_eq!(names(&dirs.join("store")), [".smolstore", "lost+found"]);
    assert!(names(m.path()).is_empty());
    assert_eq!(names(Mnt::new().store()), [".smolstore"]);
}

#[test]
fn a_store_that_is_none_is_refused() {
    let dirs = Dirs::new();
    let (store, mnt) = (dirs.join("store"), dirs.join("mnt"));
    let mount = |store: &Path| run(&mut smolstore([store, &mnt, "-f".as_ref()]));
    refused(&mount(&dirs.join("missing")), dirs.join("missing"));
    fs::write(dirs.join("file"), "").unwrap();
    refused(&mount(&dirs.join("file")), dirs.join("file"));
    fs::write(store.join("mine"), "precious").unwrap();
    refused(&mount(&store), &store);
    assert_eq!(names(&store), ["mine"], "a foreign directory is left alone");
    fs::remove_file(store.join("mine")).unwrap();
    Mnt::on(&store, &[]).stop();
    let marker = text(&read(store.join(".smolstore")));
    fs::write(store.join(".smolstore"), marker.replace(|c: char| c.is_ascii_digit(), "999"))
        .unwrap();
    refused(&mount(&store), &store);
    // The same without -f: whoever called learns of it.
    refused(&run(&mut smolstore([&store, &mnt])), &store);
    assert_eq!(mounted(&mnt), None);
}

#[test]
fn a_mount_point_that_cannot_be_is_refused() {
    let dirs = Dirs::new();
    let (store, mnt) = (dirs.join("store"), dirs.join("mnt"));
    let mount = |store: &Path, mnt: &Path| run(&mut smolstore([store, mnt, "-f".as_ref()]));
    refused(&mount(&store, &dirs.join("missing")), dirs.join("missing"));
    fs::write(dirs.join("file"), "").unwrap();
    refused(&mount(&store, &dirs.join("file")), dirs.join("file"));
    Mnt::on(&store, &[]).stop();
    fs::create_dir(store.join("inside")).unwrap();
    refused(&mount(&store, &store.join("inside")), store.join("inside"));
    refused(&mount(&store, &store), &store);
    fs::create_dir(mnt.join("inside")).unwrap();
    refused(&mount(&mnt.join("inside"), &mnt), &mnt);
    assert!(names(&mnt.join("inside")).is_empty());
    refused(&run(&mut smolstore([&store, &dirs.join("missing")])), dirs.join("missing"));
}

#[test]
fn a_busy_mount_point_is_refused() {
    let (m, dirs) = (Mnt::new(), Dirs::new());
    let s = m.stream("s");
    append(s.join("events"), "a\n");
    for store in [m.store(), &dirs.join("store")] {
        for background in [&["-f"][..], &[]] {
            refused(&run(smolstore([store, m.path()]).args(background)), m.path());
        }
    }
    assert_eq!(read(s.join("events")), b"a\n", "the first goes on");
    m.stop();
}

#[test]
fn without_dev_fuse_it_says_so() {
    let dirs = Dirs::new();
    let (bin, store, mnt) = (env!("CARGO_BIN_EXE_smolstore"), dirs.join("store"), dirs.join("mnt"));
    for flag in ["-f", ""] {
        let dev = "mount -t tmpfs none /dev && mknod -m 666 /dev/null c 1 3";
        let start = format!("exec {bin} {} {} {flag}", store.display(), mnt.display());
        let script = format!("{dev} && export PATH=/none && {start}");
        refused(&run(Command::new("unshare").args(["-m", "sh", "-c", &script])), "/dev/fuse");
    }
}

#[test]
fn without_the_right_to_mount_it_says_so() {
    let dirs = Dirs::new();
    // The build directory may be closed to others.
    ok(&sh("sh", &format!("cp {} smolstore", env!("CARGO_BIN_EXE_smolstore")), &dirs.root));
    for name in ["store", "mnt"] {
        chown(dirs.join(name), Some(65534), Some(65534)).unwrap();
    }
    fs::set_permissions(dirs.join("smolstore"), PermissionsExt::from_mode(0o755)).unwrap();
    // Where the device is open to all, as most distributions have it, the kernel refuses the mount.
    // And where fusermount3 is installed it would help.
    let dev = "for helper in /usr/bin/fusermount3 /usr/bin/fusermount; do
                   test ! -e $helper || mount --bind /dev/null $helper
               done
               mount -t tmpfs -o mode=755 none /dev && mknod -m 666 /dev/null c 1 3";
    for mode in [600, 666] {
        let nobody = "setpriv --reuid 65534 --regid 65534 --clear-groups env PATH=/none";
        let script = format!(
            "{dev} && mknod -m {mode} /dev/fuse c 10 229 &&
             exec {nobody} $PWD/smolstore $PWD/store $PWD/mnt -f"
        );
        let mut unshare = Command::new("unshare");
        let out = run(unshare.args(["-m", "sh", "-c", &script]).current_dir(&dirs.root));
        let device = text(&out.stderr).contains("/dev/fuse");
        refused(&out, if device { PathBuf::from("/dev/fuse") } else { dirs.join("mnt") });
    }
}

#[test]
fn sigterm_and_sigint_unmount() {
    for signal in [libc::SIGTERM, libc::SIGINT] {
        let m = Mnt::new();
        append(m.stream("s").join("events"), "a\n");
        m.kill(signal);
        let status = m.wait(Duration::from_secs(10)).expect("it exits");
        assert!(status.success(), "{status}: {}", m.log());
        assert_eq!(mounted(m.path()), None);
        m.restart();
        assert_eq!(read(m.path().join("s/events")), b"a\n");
    }
}

#[test]
fn open_files_do_not_keep_it_from_stopping() {
    let m = Mnt::new();
    let s = m.stream("s");
    append(s.join("events"), "a\n");
    let _reader = File::open(s.join("events")).unwrap();
    let mut writer = appender(s.join("events")).unwrap();
    std::io::Write::write_all(&mut writer, b"uncommitted\n").unwrap();
    let mut inside = Reaped(Command::new("sleep").arg("60").current_dir(&s).spawn().unwrap());
    let start = Instant::now();
    m.stop();
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    assert!(inside.0.try_wait().unwrap().is_none());
    assert!(close(writer).is_err(), "nobody is there to commit it");
    m.restart();
    assert_eq!(read(s.join("events")), b"a\n", "what was not committed is dropped");
}

#[test]
fn a_dead_mount_is_taken_over() {
    let m = Mnt::new();
    let s = m.stream("s");
    append(s.join("events"), "a\n");
    let points = || {
        let all = fs::read_to_string("/proc/self/mountinfo").unwrap();
        all.lines().filter(|l| l.split(' ').nth(4).map(Path::new) == Some(m.path())).count()
    };
    for _ in 0..2 {
        m.kill(libc::SIGKILL);
        // Attributes may be cached for a moment.
        let dead = |e: io::Error| e.raw_os_error() == Some(libc::ENOTCONN);
        eventually("it is dead", || fs::metadata(m.path()).is_err_and(dead));
        assert_eq!(points(), 1);
        m.restart();
        assert_eq!(points(), 1);
        assert_eq!(read(s.join("events")), b"a\n");
    }
    m.stop();
}

#[test]
fn an_unmount_from_outside_ends_it() {
    for umount in ["umount mnt", "umount -l mnt"] {
        let m = Mnt::new();
        m.stream("s");
        // In the foreground nobody is told that it has looked at its mount and is no longer busy there.
        let unmounts = || sh("sh", umount, m.path().parent().unwrap()).status.success();
        eventually(umount, unmounts);
        assert!(m.wait(Duration::from_secs(10)).is_some(), "{umount}: it goes on without a mount");
        assert_eq!(mounted(m.path()), None);
        m.restart();
        assert_eq!(count(&m.path().join("s")), 0);
    }
}

#[test]
fn the_kernel_shows_type_and_store() {
    let m = Mnt::new();
    let line = mounted(m.path()).unwrap();
    let (_, what) = line.split_once(" - ").unwrap();
    assert!(what.starts_with(&format!("fuse.smolstore {} ", m.store().display())), "{line}");
}

#[test]
fn options_of_mount_and_fstab_are_accepted() {
    let options = [
        "nofail,_netdev,noauto,user,x-foo,x-systemd.automount,dev,suid,rw",
        "rw,nosuid,nodev,noexec,noatime",
    ];
    for options in options {
        let m = Mnt::with(&["-o", options]);
        append(m.stream("s").join("events"), "a\n");
        m.stop();
    }
    let m = Mnt::with(&["-o", "noatime", "-o", "ro"]);
    assert_eq!(errno_of(fs::create_dir(m.path().join("s"))), libc::EROFS);
    m.stop();

    // As mount(8) calls it: the options come last, nothing is in PATH; exit 0 must mean mounted.
    let dirs = Dirs::new();
    let mut command = smolstore([dirs.join("store"), dirs.join("mnt")]);
    command.args(["-o", "rw,noauto,nofail,dev,suid"]).env("PATH", "/none");
    assert!(command.status().unwrap().success());
    append_one(&dirs.join("mnt/s"));
}

#[test]
fn a_mount_made_right_after_an_unmount_stays() {
    let dirs = Dirs::new();
    let (store, mnt) = (dirs.join("store"), dirs.join("mnt"));
    for n in 0..20 {
        assert!(smolstore([&store, &mnt]).status().unwrap().success());
        // The daemon before this one may still be about to end.
        std::thread::sleep(std::time::Duration::from_millis(10 * (n % 5)));
        fs::create_dir(mnt.join(format!("s{n}"))).unwrap();
        let status = Command::new("umount").arg(&mnt).status().unwrap();
        assert!(status.success(), "mount {n} is still there");
    }
    assert!(!fs::exists(mnt.join("s0")).unwrap());
    assert_eq!(fs::read_dir(&store).unwrap().count(), 21, "20 streams and the mark");
}

#[test]
fn in_the_background_it_logs_to_syslog() {
    let dirs = Dirs::new();
    // With a /dev of its own, so that it is not the machine's syslog.
    let script = r#"
        mount -t tmpfs -o mode=755 none /dev && mknod -m 666 /dev/null c 1 3 &&
            mknod -m 666 /dev/fuse c 10 229 || exit 1
        python3 -c '
import socket
log = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
log.bind("/dev/log")
log.settimeout(10)
open("ready", "w").close()
print(log.recv(1000).decode())' > heard & listener=$!
        while ! test -e ready; do sleep 0.05; done
        $SMOLSTORE store mnt && mkdir mnt/s && echo event >> mnt/s/events && umount mnt &&
            printf X | dd of=store/s/log bs=1 seek=85 conv=notrunc status=none &&
            $SMOLSTORE store mnt || exit 1
        cat mnt/s/at/0; wait $listener; umount mnt"#;
    let out = run(Command::new("unshare")
        .args(["-m", "sh", "-c", script])
        .env("SMOLSTORE", env!("CARGO_BIN_EXE_smolstore"))
        .current_dir(&dirs.root));
    let heard = text(&read(dirs.join("heard")));
    assert!(heard.starts_with("<28>smolstore["), "{heard:?} {out:?}");
    assert!(heard.contains(r#"stream "s", event 0"#), "{heard:?}");
}

#[test]
fn what_it_needs_is_taken_at_the_start_or_it_says_what_is_missing() {
    let dirs = Dirs::new();
    let (store, mnt) = (dirs.join("store"), dirs.join("mnt"));
    let bin = env!("CARGO_BIN_EXE_smolstore");
    for limit in [100_000, 500_000, 1_500_000, 1_700_000, 2_000_000, 2_500_000, 3_000_000] {
        let command = format!("ulimit -v {limit}; {bin} {} {}", store.display(), mnt.display());
        let out = run(Command::new("sh").args(["-c", &command]));
        let said = text(&out.stderr);
        if out.status.success() {
            // Then it goes on.
            let stream = mnt.join(format!("s{limit}"));
            fs::create_dir(&stream).unwrap();
            let all = "for n in $(seq 100); do echo $n | cat >> events & done; wait; cat count";
            assert_eq!(ok(&sh("sh", all, &stream)), "100\n");
            ok(&run(Command::new("umount").arg(&mnt)));
            eventually("it has ended", || processes(&store).is_empty());
        } else {
            assert_eq!(said.lines().count(), 1, "{limit}: {said}");
            assert!(said.contains("ulimit -v"), "{limit}: {said}");
            assert_eq!(mounted(&mnt), None);
        }
    }
}

#[test]
fn a_mistake_is_told_what_to_do() {
    let (m, dirs) = (Mnt::new(), Dirs::new());
    let (store, mnt) = (dirs.join("store"), dirs.join("mnt"));
    let stream = m.stream("s");
    let says = |out: &Output, words: &[&str]| {
        let said = text(&out.stderr);
        assert!(!out.status.success() && said.lines().count() == 1, "{said}");
        assert!(words.iter().all(|word| said.contains(word)), "{said}");
    };
    let mut typo = smolstore([Path::new("chek"), &store]);
    says(&run(typo.current_dir(&dirs.root)), &["chek", "smolstore check STORE"]);
    let check = |path: &Path| run(&mut smolstore([Path::new("check"), path]));
    says(&check(&mnt), &["no store", "smolstore STORE MOUNTPOINT"]);
    says(&check(&dirs.join("missing")), &["missing"]);
    for path in [m.path(), &stream] {
        says(&check(path), &["within a mount", "findmnt"]);
        says(&run(&mut smolstore([path, &mnt])), &["within a mount", "findmnt"]);
    }
    assert_eq!(mounted(&mnt), None);
}

#[test]
fn a_daemon_keeps_no_file_of_who_started_it() {
    let dirs = Dirs::new();
    let (store, mnt) = (dirs.join("store"), dirs.join("mnt"));
    let bin = env!("CARGO_BIN_EXE_smolstore");
    let start =
        format!("flock lock {bin} {} {} && flock -n lock true", store.display(), mnt.display());
    ok(&sh("sh", &start, &dirs.root));
    append_one(&mnt.join("s"));
    ok(&run(Command::new("umount").arg(&mnt)));
    eventually("it has ended", || processes(&store).is_empty());
}
