//! Other users: who may read and append; daemons that are not root's; user namespaces. And backups.

use crate::harness::*;
use crate::manual::block;
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

const MODES: [u32; 11] =
    [0o700, 0o750, 0o755, 0o770, 0o777, 0o711, 0o733, 0o070, 0o007, 0o444, 0o000];

/// Everything that may be read, and everything that may be appended to.
const READ: &str = "events lines new count from/0 from/beginning from/newest from/@0 at/0 at/newest \
                    at/@0 follow/0 follow/newest";
const APPEND: &str = "events lines new from/next from/@99999999999 at/next at/@99999999999";

/// Becomes the user `$USER` (uid, gid, groups), then tries every name of the streams given; prints the name of each that did not say EACCES or EPERM.
const TRY: &str = r#"
import ctypes, os, sys
uid, gid, *groups = map(int, os.environ["USER"].split())
os.setgroups(groups)
os.setresgid(gid, gid, gid)
os.setresuid(uid, uid, uid)
if "NAMESPACE" in os.environ:
    assert ctypes.CDLL(None).unshare(0x10000000) == 0 # CLONE_NEWUSER
def may(what, deed):
    try: deed()
    except PermissionError: return
    print(stream, what)
def read(name):
    os.read(os.open(name, os.O_RDONLY | os.O_NONBLOCK), 1)
def append(name):
    fd = os.open(name, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, b"event")
    os.close(fd)
def rename():
    os.rename(stream, stream + "x")
    os.rename(stream + "x", stream)
names = os.environ
for stream in sys.argv[1:]:
    s = stream + "/"
    for name in names["READ"].split(): may("read " + name, lambda: read(s + name))
    for name in names["APPEND"].split(): may("append " + name, lambda: append(s + name))
    for name in ["", "from", "at", "follow"]: may("list " + name, lambda: os.listdir(s + name))
    may("stat", lambda: os.stat(s + "events"))
    may("readlink", lambda: os.readlink(s + "from/next"))
    may("fsync", lambda: os.fsync(os.open(stream, os.O_RDONLY)))
    may("chmod", lambda: os.chmod(stream, os.stat(stream).st_mode))
    may("rename", rename)
"#;

/// What the bits of one class (7 is all) and the owner may do, as [`TRY`] prints it.
fn rights(stream: &str, bits: u32, owner: bool) -> String {
    let (r, w, x) = (bits & 4 != 0, bits & 2 != 0, bits & 1 != 0);
    let mut may = Vec::new();
    let mut add = |right: bool, what: &str| {
        if right {
            may.push(format!("{stream} {what}\n"));
        }
    };
    for name in READ.split_whitespace() {
        add(r && x, &format!("read {name}"));
    }
    for name in APPEND.split_whitespace() {
        add(w && x, &format!("append {name}"));
    }
    for name in ["", "from", "at", "follow"] {
        add(r && (x || name.is_empty()), &format!("list {name}"));
    }
    add(x, "stat");
    add(x, "readlink");
    add(r, "fsync");
    add(owner, "chmod");
    add(owner, "rename");
    may.concat()
}

/// What [`TRY`] prints.
fn may(user: &str, streams: &[String], dir: &Path) -> String {
    let names = format!("READ='{READ}' APPEND='{APPEND}'");
    let script = format!("{names} {user} exec python3 -c '{TRY}' {}", streams.join(" "));
    ok(&sh("sh", &script, dir))
}

#[test]
fn nobody_reads_or_appends_where_the_modes_say_no() {
    let m = Mnt::with(&["-o", "allow_other"]);
    fs::set_permissions(m.store(), Permissions::from_mode(0o1777)).unwrap();
    let names = MODES.map(|mode| format!("{mode:03o}"));
    for (name, mode) in names.iter().zip(MODES) {
        let s = m.stream(name);
        append(s.join("events"), "event\n");
        chown(&s, Some(1000), Some(1000)).unwrap();
        fs::set_permissions(&s, Permissions::from_mode(mode)).unwrap();
    }
    let counts = || names.each_ref().map(|name| count(&m.path().join(name)));
    for (shift, user) in [
        (6, "USER='1000 1000'"),
        (3, "USER='1001 1000'"),
        (3, "USER='1001 1001 7 1000'"),
        (0, "USER='1001 1001'"),
        // With all capabilities, in a user namespace.
        (0, "NAMESPACE= USER='1001 1001'"),
    ] {
        let before = counts();
        let may = may(user, &names, m.path());
        let (mut want, mut after) = (String::new(), before);
        for (i, mode) in MODES.iter().enumerate() {
            let bits = mode >> shift & 7;
            want += &rights(&names[i], bits, shift == 6);
            if bits & 3 == 3 {
                after[i] += APPEND.split_whitespace().count() as u64;
            }
        }
        assert_eq!(may, want, "{user}");
        assert_eq!(counts(), after, "{user}");
    }
}

#[test]
fn a_mount_without_allow_other_is_closed_to_others() {
    let m = Mnt::new();
    let s = m.stream("s");
    append(s.join("events"), "event\n");
    for dir in [&s, m.store()] {
        fs::set_permissions(dir, Permissions::from_mode(0o777)).unwrap();
    }
    assert_eq!(may("USER='1000 1000'", &[s.display().to_string()], m.store()), "");
    let out =
        sh("sh", "setpriv --reuid 1000 --clear-groups mkdir mnt/x", m.path().parent().unwrap());
    assert!(text(&out.stderr).contains("ermission denied"), "{out:?}");
    assert_eq!(count(&s), 1);
}

#[test]
fn who_may_write_to_the_store_lends_it_no_names() {
    // Of streams, by links in place of directories; the mount looks before, and may look too early.
    let m = Mnt::new();
    append(m.stream("closed").join("events"), "secret\n");
    m.stream("empty");
    for name in ["closed", "empty"] {
        let link = m.store().join(format!("to {name}"));
        std::os::unix::fs::symlink(name, &link).unwrap();
        let store = smolstore::Store::open(m.store(), false).unwrap();
        let name = link.file_name().unwrap();
        assert!(store.stream(name).is_err());
        assert!(store.remove(name).is_err());
        assert!(fs::symlink_metadata(m.path().join(name)).is_err());
    }
    assert_eq!(count(&m.path().join("closed")), 1);
}

/// A script whose daemon is an ordinary user's: `$me` runs a command as that user, `$other` as
/// another one, and `fails WORDS COMMAND` wants it to fail with these words. It has a /dev with
/// a /dev/fuse for all, an /etc/fuse.conf that says `conf`, and `store` and `mnt` that are the user's.
fn as_user(conf: &str, script: &str) -> Output {
    let dir = public_dir();
    let prelude = r#"
        set -e
        mount -t tmpfs -o mode=755 none /dev
        for device in 'null c 1 3' 'urandom c 1 9' 'fuse c 10 229'; do mknod -m 666 /dev/$device; done
        echo "$CONF" > conf
        mount --bind conf /etc/fuse.conf
        cp "$SMOLSTORE" smolstore
        mkdir store mnt
        chown 1000:1000 store mnt
        me="setpriv --reuid 1000 --regid 1000 --clear-groups"
        other="setpriv --reuid 1001 --regid 1001 --clear-groups"
        fails() {
            words=$1; shift
            if said=$("$@" 2>&1); then echo "succeeded: $*"; exit 1; fi
            case $said in *"$words"*) ;; *) echo "$*: $said, not: $words"; exit 1 ;; esac
        }
        gone() {
            tries=500
            while pidof -q smolstore || mountpoint -q mnt; do
                sleep 0.02; tries=$((tries - 1)); test $tries -gt 0 || { echo still there; exit 1; }
            done
        }
    "#;
    // The namespaces end, and with them daemon and mount, whatever became of the script.
    let mut child = Command::new("unshare")
        .args(["-mpf", "--mount-proc", "--kill-child", "sh", "-c"])
        .arg(format!("{prelude}{script}"))
        .env("SMOLSTORE", env!("CARGO_BIN_EXE_smolstore"))
        .env("CONF", conf)
        .env("LC_ALL", "C.UTF-8")
        .current_dir(dir.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    if wait(&mut child, Duration::from_secs(60)).is_none() {
        child.kill().unwrap();
        panic!("not within 60 s: {:?}", child.wait_with_output());
    }
    child.wait_with_output().unwrap()
}

#[test]
fn a_daemon_of_an_ordinary_user() {
    ok(&as_user(
        "",
        r#"
        fails user_allow_other $me ./smolstore store mnt -o allow_other
        $me ./smolstore store mnt
        $me sh -c 'mkdir mnt/s && chmod 777 mnt/s && echo a >> mnt/s/events'
        test "$(stat -c %u:%g:%a store/s)" = 1000:1000:777
        # Neither for another user, nor for root.
        for name in mnt mnt/s mnt/s/events mnt/s/at/0; do
            fails 'ermission denied' cat $name
            fails 'ermission denied' $other cat $name
        done
        fails 'ermission denied' $other sh -c 'echo b >> mnt/s/events'
        fails 'ermission denied' mkdir mnt/s2
        $me fusermount3 -u mnt
        gone

        $me ./smolstore store mnt
        kill -9 $(pidof smolstore)
        fails 'not connected' $me sh -c 'while cat mnt/s/events; do sleep 0.02; done; cat mnt/s/events'
        $me ./smolstore store mnt
        test "$($me cat mnt/s/events)" = a
        test "$(grep -c " $PWD/mnt " /proc/self/mountinfo)" = 1
        kill $(pidof smolstore)
        gone

        # A mount point, or a store, that is not theirs.
        fails mnt $other ./smolstore store mnt
        mkdir other && chown 1001 other
        fails other $me ./smolstore other mnt
        fails other $me ./smolstore store other
        "#,
    ));
}

#[test]
fn a_daemon_of_an_ordinary_user_lets_others_in() {
    ok(&as_user(
        "user_allow_other",
        r#"
        chmod 1777 store
        $me ./smolstore store mnt -o allow_other
        $me sh -c 'umask 0; mkdir mnt/open; mkdir -m 755 mnt/shown; mkdir -m 700 mnt/closed
            for s in open shown closed; do echo a >> mnt/$s/events; done'
        $other sh -c 'echo b >> mnt/open/events'
        test "$($other cat mnt/open/events mnt/shown/events)" = "$(printf 'a\nb\na')"
        fails 'ermission denied' $other sh -c 'echo b >> mnt/shown/events'
        fails 'ermission denied' $other cat mnt/closed/events
        echo root >> mnt/closed/events
        test "$($me cat mnt/closed/count)" = 2
        # The daemon has no right to give a directory away.
        fails 'not permitted' $other mkdir mnt/theirs
        test ! -e store/theirs
        fails 'not permitted' chown 1001 mnt/open
        fails 'not permitted' $other rmdir mnt/closed
        kill $(pidof smolstore)
        gone
        "#,
    ));
}

#[test]
fn a_user_namespace_has_its_own_mount() {
    ok(&as_user(
        "",
        r#"
        # It needs none.
        mount --bind /dev/null "$(command -v fusermount3)"
        $me unshare -Urm --propagation private sh -ec '
            for options in ro,noatime noatime allow_other; do
                if test $options = ro,noatime; then
                    ./smolstore store mnt; mkdir mnt/s; echo a >> mnt/s/events; umount mnt
                fi
                ./smolstore store mnt -o $options
                test "$(cat mnt/s/at/0)" = a
                test "$(stat -c %u mnt/s)" = 0
                if test $options != ro,noatime; then
                    echo $options >> mnt/s/events
                    mkdir mnt/$options
                    # Of ids that are not of the namespace there are none.
                    if chown 5 mnt/s; then exit 1; fi
                fi
                umount mnt
            done'
        test "$(stat -c %u:%g store/allow_other)" = 1000:1000
        ./smolstore store mnt
        test "$(cat mnt/s/events)" = "$(printf 'a\nnoatime\nallow_other')"
        "#,
    ));
}

// ---- backup ----------------------------------------------------------------------------------

/// Appends to three streams without a pause, copies the store three times while that goes on, and
/// opens each copy: what was acknowledged before it began is there, and nothing but what came after.
fn copied_under_load(disk: &Path, before_each: &str, words: &str) {
    let (store, copy) = (disk.join("store"), disk.join("copy"));
    let script = block(8, words).replace("/srv/events", store.to_str().unwrap());
    let script = script.replace("/backup/events", copy.to_str().unwrap());
    let script = format!("set -e; {before_each}\n{script}");
    let m = Mnt::on(&store, &[]);
    // Lines, and bytes in a line: many pages in an event, many events in a page, one event.
    let loads = [("wide", 10, 20_000), ("many", 300, 40), ("--one *", 1, 100)];
    let acknowledged = loads.map(|_| AtomicU64::new(0));
    for (name, ..) in loads {
        m.stream(name);
    }
    fs::set_permissions(m.stream("empty"), Permissions::from_mode(0o700)).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let stop = Stop(&stop);
        for ((name, lines, len), acknowledged) in loads.iter().zip(&acknowledged) {
            let (events, stop) = (m.path().join(name).join("events"), stop.0);
            scope.spawn(move || {
                for n in 0u64.. {
                    append(&events, format!("{n:0len$}\n").repeat(*lines));
                    acknowledged.fetch_add(*lines as u64, SeqCst);
                    if stop.load(SeqCst) {
                        return;
                    }
                    // The longer a copy's log, the longer its check.
                    std::thread::sleep(Duration::from_millis(3));
                }
            });
        }
        for round in 1..=3 {
            let far = |n: &AtomicU64| n.load(SeqCst) > 20 * round;
            eventually("they append", || acknowledged.iter().all(far));
            let before = acknowledged.each_ref().map(|n| n.load(SeqCst));
            ok(&sh("bash", &script, disk));
            ok(&smolstore([Path::new("check"), &copy]).output().unwrap());
            let c = Mnt::on(&copy, &["-o", "ro"]);
            for ((name, ..), before) in loads.iter().zip(before) {
                let (from, to) = (m.path().join(name), c.path().join(name));
                assert!(count(&to) >= before, "{name}: {} of {before}", count(&to));
                // It may hold a batch whose commit was still at the disk.
                eventually("the copy is behind", || count(&from) >= count(&to));
                let copied = read(to.join("events"));
                assert!(read(from.join("events")).starts_with(&copied), "{name}");
            }
            let empty = fs::metadata(c.path().join("empty")).unwrap();
            assert_eq!(empty.permissions().mode() & 0o777, 0o700);
            assert!(!c.log().contains("damage"), "{}", c.log());
        }
    });
    ok(&sh("bash", "rm -rf restored && cp -a copy restored", disk));
    let restored = Mnt::on(&disk.join("restored"), &[]);
    for (name, ..) in loads {
        let stream = restored.path().join(name);
        let before = count(&stream);
        append(stream.join("events"), "more\n");
        assert_eq!(count(&stream), before + 1);
    }
}

/// Ends the load, also when the test panics.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}

#[test]
fn a_live_store_is_copied_with_cp() {
    let dir = public_dir();
    fs::create_dir(dir.path().join("store")).unwrap();
    copied_under_load(dir.path(), "mkdir -p copy", "log\" cp");
}

#[test]
fn a_live_store_is_copied_with_rsync() {
    let dir = public_dir();
    fs::create_dir(dir.path().join("store")).unwrap();
    copied_under_load(dir.path(), "mkdir -p copy", "rsync");
}

#[test]
fn a_live_store_is_copied_by_snapshot_and_by_reference() {
    let disk = SmallDisk::of("mkfs.btrfs -q", 600);
    ok(&sh("bash", "btrfs -q subvolume create store", &disk.path()));
    let fresh = "test ! -e copy || btrfs -q subvolume delete copy";
    copied_under_load(&disk.path(), fresh, "snapshot");
    ok(&sh("bash", &format!("{fresh}; rm -r store; mkdir store"), &disk.path()));
    copied_under_load(&disk.path(), "mkdir -p copy", "reflink");
}

/// A copy by reference that is slow: commits come between its log and its index.
#[test]
fn a_copy_by_reference_has_no_log_older_than_its_index() {
    const SLOW: &str = r#"#!/bin/sh
        case "$*" in
            *"/store/. "*)
                cd store && mkdir -p ../copy/s && /bin/cp -a .smolstore ../copy && /bin/cp -a s/log ../copy/s &&
                    echo between >> ../mnt/s/events && exec /bin/cp -a s/index ../copy/s ;;
            *) shift 2; exec /bin/cp -a "$@" ;;
        esac"#;
    let m = Mnt::new();
    append(m.stream("s").join("events"), "before\n");
    let root = m.path().parent().unwrap();
    fs::create_dir(root.join("slow")).unwrap();
    fs::write(root.join("slow/cp"), SLOW).unwrap();
    fs::set_permissions(root.join("slow/cp"), Permissions::from_mode(0o755)).unwrap();
    let (store, copy) = (m.store(), root.join("copy"));
    let script = block(8, "reflink").replace("/srv/events", store.to_str().unwrap());
    let script = script.replace("/backup/events", copy.to_str().unwrap());
    ok(&sh("bash", &format!("set -e; PATH=$PWD/slow:$PATH\n{script}"), root));
    ok(&smolstore([Path::new("check"), &copy]).output().unwrap());
    let copied = Mnt::on(&copy, &[]);
    assert_eq!(read(copied.path().join("s/events")), b"before\nbetween\n");
    append(copied.path().join("s/from/2"), "after\n");
}

#[test]
fn rsync_sees_what_came_within_a_second_in_a_log_of_the_same_size() {
    let dir = public_dir();
    let (store, copy) = (dir.path().join("store"), dir.path().join("copy"));
    fs::create_dir(&store).unwrap();
    fs::create_dir(&copy).unwrap();
    let script = block(8, "rsync").replace("/srv/events", store.to_str().unwrap());
    let script = script.replace("/backup/events", copy.to_str().unwrap());
    let m = Mnt::on(&store, &[]);
    let s = m.stream("s");
    for n in 1..=5 {
        append(s.join("events"), "event\n");
        ok(&sh("bash", &format!("set -e\n{script}"), dir.path()));
        let c = Mnt::on(&copy, &["-o", "ro"]);
        assert_eq!(count(&c.path().join("s")), n);
    }
}
