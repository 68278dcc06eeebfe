//! Disks without room, without inodes, beyond a quota: small file systems of each kind.

use super::writers::{KINDS, Writers};
use crate::commit::python;
use crate::harness::*;
use crate::sim::env;
use std::fs::{self, File};
use std::io::Write;

const EXT4: (&str, u64) = ("mkfs.ext4 -q -m 0", 24);
const XFS: (&str, u64) = ("mkfs.xfs -q", 300);
const BTRFS: (&str, u64) = ("mkfs.btrfs -q", 128);

/// A small disk, and a mount of a store on it.
fn disk((mkfs, mib): (&str, u64)) -> (Mnt, SmallDisk) {
    let disk = SmallDisk::of(mkfs, mib);
    let store = disk.path().join("store");
    fs::create_dir(&store).unwrap();
    (Mnt::on(&store, &[]), disk)
}

/// While all kinds of writers append, takes what they need until these have met this error, and
/// gives it back, again and again. Nothing that was acknowledged suffers, nothing that was refused
/// is there, nothing is there by half, and all go on when there is room; also after a remount.
fn runs_out(m: &Mnt, kinds: &[&str], errno: &str, mut take: impl FnMut(), mut give: impl FnMut()) {
    let mut writers = Writers::start(m);
    writers.all_go_on();
    let rest: Vec<_> = KINDS.into_iter().filter(|k| !kinds.contains(k)).collect();
    let rounds = env("SMOLSTORE_ROUNDS").unwrap_or(3);
    for round in 0..rounds {
        let mut run_out = |writers: &mut Writers| {
            // What one writer gives up another may take.
            eventually("it has run out", || {
                take();
                writers.meet(kinds, &[errno])
            });
            writers.go_on(&rest);
            writers.check(m);
        };
        run_out(&mut writers);
        if round % 3 == 1 {
            m.kill(libc::SIGKILL);
        }
        if round % 3 > 0 {
            m.restart();
            run_out(&mut writers);
        }
        give();
        writers.all_go_on();
        writers.probe(m);
        writers.check(m);
    }
    writers.stop();
    m.restart();
    writers.check(m);
    assert!(!m.log().contains("takes no appends"), "{}", m.log());
    println!("{errno}: {rounds} rounds, {}", writers.report());
}

/// What a crash leaves behind the end is nobody's: it is not kept, and the room is given back.
#[test]
fn what_is_behind_the_end_is_given_back() {
    let (m, disk) = disk((EXT4.0, 48));
    let store = m.store();
    let [s, other] = ["s", "other"].map(|name| m.stream(name));
    append(s.join("events"), "one\n");
    append(other.join("events"), "one\n");
    m.stop();
    let mut log = File::options().append(true).open(store.join("s/log")).unwrap();
    log.write_all(&[0xab; 16 << 20]).unwrap();
    fs::remove_file(store.join("s/index")).unwrap();
    disk.fill();
    m.restart();
    for _ in 0..3 {
        assert_eq!(text(&read(s.join("events"))), "one\n");
        assert!(names(&store.join("s")).iter().all(|name| name == "log" || name == "index"));
    }
    disk.empty();
    append(s.join("events"), "two\n");
    assert_eq!(text(&read(s.join("events"))), "one\ntwo\n");
    assert_eq!(names(&store.join("s")), ["index", "log"]);
    assert!(log.metadata().unwrap().len() < 1 << 20);
    append(other.join("events"), "x".repeat(100_000) + "\n");
    m.restart();
    assert_eq!(text(&read(s.join("events"))), "one\ntwo\n");
}

// ---- blocks ----------------------------------------------------------------------------------

fn fills_up(of: (&str, u64)) {
    let (m, disk) = disk(of);
    runs_out(&m, &KINDS, "ENOSPC", || disk.fill(), || disk.empty());
}

#[test]
fn a_full_ext4() {
    fills_up(EXT4);
}

#[test]
fn a_full_xfs() {
    fills_up(XFS);
}

#[test]
fn a_full_btrfs() {
    fills_up(BTRFS);
}

/// One event after the other `through` something; the first that fails says so.
fn shells_are_told(of: (&str, u64), through: &str) {
    let (m, disk) = disk(of);
    let s = m.stream("s");
    append(s.join("events"), "event 0\n");
    disk.fill();
    // What the log has in reserve is used up first; not one event may get lost unnoticed.
    for (shell, said) in [("bash", "No space left"), ("dash", "I/O error")] {
        let script = format!(
            "n=$(cat count); while [ $n -lt 100000 ]; do echo event $n {through} events || break; \
             n=$((n + 1)); done; echo $n"
        );
        let out = sh(shell, &script, &s);
        let acknowledged: u64 = ok(&out).trim().parse().unwrap();
        let stderr = text(&out.stderr);
        // cat has its own words for it.
        let told = stderr.contains(said) || stderr.contains("No space left");
        assert!(told, "{shell}: {stderr}");
        assert_eq!(count(&s), acknowledged, "{shell}");
    }
    for file in ["events", "lines"] {
        let large = "x\n".repeat(4096);
        let refused = try_append(s.join(file), large);
        assert_eq!(errno_of(refused), libc::ENOSPC, "{file}");
    }
    let events = |n: u64| (0..n).map(|n| format!("event {n}\n")).collect::<String>();
    let n = count(&s);
    assert!(text(&read(s.join("events"))) == events(n));
    disk.empty();
    ok(&sh("bash", &format!("echo event {n} {through} events"), &s));
    assert!(text(&read(s.join("events"))) == events(n + 1));
    m.restart();
    assert!(text(&read(s.join("events"))) == events(n + 1));
}

#[test]
fn every_shells_builtin_is_told_of_a_full_ext4() {
    shells_are_told(EXT4, ">>");
}

#[test]
fn every_shells_builtin_is_told_of_a_full_xfs() {
    shells_are_told(XFS, ">>");
}

/// Where each write takes new blocks only the commit may meet it, of which a builtin says nothing.
#[test]
fn every_command_is_told_of_a_full_btrfs() {
    shells_are_told(BTRFS, "| cat >>");
}

fn too_large((mkfs, mib): (&str, u64)) {
    let (m, _disk) = disk((mkfs, mib));
    let s = m.stream("s");
    append(s.join("events"), "one\n");
    let line = "0123456789abcde\n";
    for _ in 0..2 {
        // In pieces, for it need not be in memory.
        let mut file = appender(s.join("events")).unwrap();
        let piece = line.repeat(1 << 16);
        let refused = (0..2 * mib).try_for_each(|_| file.write_all(piece.as_bytes()));
        assert_eq!(errno_of(refused), libc::ENOSPC);
        assert_eq!(errno_of(close(file)), libc::ENOSPC);
        assert_eq!(read(s.join("events")), b"one\n");
    }
    // All that room is free again.
    let all = format!("one\n{}", line.repeat(1 << 18));
    append(s.join("events"), &all[4..]);
    m.restart();
    assert!(text(&read(s.join("events"))) == all);
}

#[test]
fn a_batch_larger_than_ext4() {
    too_large(EXT4);
}

#[test]
fn a_batch_larger_than_xfs() {
    too_large(XFS);
}

#[test]
fn a_batch_larger_than_btrfs() {
    too_large(BTRFS);
}

/// The close is of one batch, the failure of the next one, which the same process begins meanwhile.
#[test]
fn a_close_is_not_told_of_what_came_after_it() {
    let (m, disk) = disk(EXT4);
    let s = m.stream("s");
    append(s.join("events"), "zero\n");
    let log = m.store().join("s/log");
    let script = format!(
        r"
        import fcntl
        fd = appender()
        os.write(fd, b'one\n')
        log = open('{}')
        fcntl.flock(log, fcntl.LOCK_EX)
        waiting = ':%d ' % os.fstat(log.fileno()).st_ino
        copy, said = os.dup(fd), {{}}
        def note(what, call, *args):
            said[what] = error(call, *args)
        def start(*args):
            thread = threading.Thread(target=note, args=args)
            thread.start()
            return thread
        closes = start('close', os.close, copy)
        while not any('->' in l and waiting in l for l in open('/proc/locks')): time.sleep(0.01)
        # Where the lock is not free the log makes no room: it is the temporary file that finds none.
        def write_on():
            while True: os.write(fd, b'x' * (1 << 20))
        start('write', write_on).join()
        fcntl.flock(log, fcntl.LOCK_UN)
        closes.join()
        full = 'No space left on device'
        assert said == {{'close': None, 'write': full}}, said
        assert error(os.write, fd, b'two\n') == full
        assert error(os.close, fd) == full
        ",
        log.display()
    );
    disk.fill();
    ok(&python(&s, &script));
    assert_eq!(text(&read(s.join("events"))), "zero\none\n");
}

// ---- inodes ----------------------------------------------------------------------------------

/// These need inodes; whoever appends to a stream that is there does not.
const NEED_INODES: [&str; 2] = ["spilled", "maker"];

fn inodes_run_out(of: (&str, u64)) {
    let (m, disk) = disk(of);
    let dir = disk.path().join("inodes");
    fs::create_dir(&dir).unwrap();
    let mut made = 0;
    let take = || {
        while File::create(dir.join(made.to_string())).is_ok() {
            made += 1;
        }
    };
    let give = || {
        fs::remove_dir_all(&dir).unwrap();
        fs::create_dir(&dir).unwrap();
        disk.settle();
    };
    runs_out(&m, &NEED_INODES, "ENOSPC", take, give);
}

#[test]
fn an_ext4_without_inodes() {
    inodes_run_out(("mkfs.ext4 -q -m 0 -N 512", 64));
}

#[test]
fn an_xfs_without_inodes() {
    inodes_run_out(("mkfs.xfs -q -i maxpct=1", 300));
}

// ---- quota -----------------------------------------------------------------------------------

/// Of btrfs, for its quotas need nothing of the kernel's configuration and bind root, too.
#[test]
fn a_quota() {
    let (mkfs, _) = BTRFS;
    let disk = SmallDisk::of(mkfs, 256);
    let btrfs = |script: &str| ok(&sh("sh", script, &disk.path()));
    btrfs("btrfs quota enable . && btrfs subvolume create store");
    let group = "0/$(btrfs inspect-internal rootid store)";
    let limit = |limit: &str| drop(btrfs(&format!("btrfs qgroup limit {limit} {group} .")));
    let m = Mnt::on(&disk.path().join("store"), &[]);
    runs_out(&m, &KINDS, "EDQUOT", || limit("1M"), || limit("none"));
}
