//! Every row of the table of errors a user may see.

use crate::format::{Block, HEADER, blocks};
use crate::harness::*;
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

#[track_caller]
fn fails<T>(errno: i32, result: io::Result<T>) {
    let said = errno_of(result);
    let name = |e| io::Error::from_raw_os_error(e).to_string();
    assert_eq!(said, errno, "{} instead of {}", name(said), name(errno));
}

#[test]
fn eperm_writing_without_append() {
    let m = Mnt::new();
    let s = m.stream("s");
    append(s.join("events"), "a\n");
    for name in ["events", "lines", "from/1"] {
        let path = s.join(name);
        // It may be about to write at the end.
        let written = |options: &mut OpenOptions| options.open(&path)?.write_at(b"x\n", 1);
        fails(libc::EPERM, written(OpenOptions::new().write(true)));
        fails(libc::EPERM, written(OpenOptions::new().read(true).write(true)));
        fails(libc::EPERM, File::create(&path));
        fails(libc::EPERM, OpenOptions::new().append(true).open(&path).and_then(|f| f.set_len(0)));
        for shell in ["bash", "dash"] {
            let out = sh(shell, &format!("echo x > s/{name}"), m.path());
            assert!(!out.status.success(), "{shell} {name}");
            assert!(
                text(&out.stderr).contains("not permitted"),
                "{shell} {name}: {}",
                text(&out.stderr)
            );
        }
    }
    assert!(!sh("sh", "truncate -s 0 s/events", m.path()).status.success());
    assert_eq!(read(s.join("events")), b"a\n");
}

#[test]
fn eperm_changing_what_a_stream_consists_of() {
    let m = Mnt::new();
    let s = m.stream("s");
    append(s.join("events"), "a\n");
    for name in ["events", "lines", "new", "count", "from/0", "at/0", "from/newest", "at/next"] {
        fails(libc::EPERM, fs::remove_file(s.join(name)));
    }
    for dir in ["", "from", "at"] {
        fails(libc::EPERM, fs::create_dir(s.join(dir).join("x")));
        fails(libc::EPERM, symlink("x", s.join(dir).join("x")));
    }
    fails(libc::EPERM, File::create_new(s.join("x")));
    for name in ["events", "lines", "count"] {
        let (path, meta) = (s.join(name), fs::metadata(s.join(name)).unwrap());
        let chmod = |bits| fs::set_permissions(&path, Permissions::from_mode(bits));
        fails(libc::EPERM, chmod(meta.mode() & 0o777 ^ 0o044));
        fails(libc::EPERM, chown(&path, Some(meta.uid() + 1), None));
        fails(libc::EPERM, chown(&path, None, Some(meta.gid() + 1)));
        chmod(meta.mode() & 0o777).expect("it changes nothing");
        chown(&path, Some(meta.uid()), Some(meta.gid())).expect("it changes nothing");
    }
    assert_eq!(read(s.join("events")), b"a\n");
}

#[test]
fn einval_a_name_with_a_dot() {
    let m = Mnt::new();
    for name in [".hidden", "..x", ".smolstore"] {
        fails(libc::EINVAL, fs::create_dir(m.path().join(name)));
    }
    m.stream("a.b.");
}

#[test]
fn eexist_what_is_taken() {
    let m = Mnt::new();
    let s = m.stream("s");
    fails(libc::EEXIST, fs::create_dir(&s));
    append(s.join("events"), "a\nb\n");
    fails(libc::EEXIST, try_append(s.join("from/0"), "x\n"));
    fails(libc::EEXIST, try_append(s.join("from/1"), "x\n"));
    fails(libc::EEXIST, File::create_new(s.join("at/1")));
    append(s.join("from/2"), "c\n");
    fails(libc::EEXIST, try_append(s.join("from/2"), "x\n"));
    assert_eq!(read(s.join("events")), b"a\nb\nc\n");
}

#[test]
fn enoent_no_such_stream_or_index() {
    let m = Mnt::new();
    let s = m.stream("s");
    append(s.join("events"), "a\n");
    fails(libc::ENOENT, File::open(m.path().join("t/events")));
    fails(libc::ENOENT, try_append(m.path().join("t/events"), "x\n"));
    fails(libc::ENOENT, fs::remove_dir(m.path().join("t")));
    fails(libc::ENOENT, File::open(s.join("at/1")));
    for beyond in ["from/2", "at/2", "from/100", "at/100"] {
        fails(libc::ENOENT, File::open(s.join(beyond)));
        fails(libc::ENOENT, try_append(s.join(beyond), "x\n"));
    }
    fails(libc::ENOENT, File::create(s.join("at/2")));
    fails(libc::ENOENT, File::open(s.join("event")));
    assert_eq!(count(&s), 1);
}

#[test]
fn enotempty_a_stream_with_events() {
    let m = Mnt::new();
    let s = m.stream("s");
    append(s.join("events"), "\n");
    fails(libc::ENOTEMPTY, fs::remove_dir(&s));
    let out = sh("sh", "rm -rf s", m.path());
    assert!(!out.status.success());
    assert_eq!(read(s.join("events")), b"\n");
}

// ENOSPC and EDQUOT: see disks/full.rs.

/// A stream `orders` of five events in three batches; the daemon is stopped.
fn orders() -> Mnt {
    let m = Mnt::new();
    let s = m.stream("orders");
    for batch in ["event 0\nevent 1\n", "event 2\n", "event 3\nevent 4\n"] {
        append(s.join("events"), batch);
    }
    m.stop();
    m
}

/// The blocks of `orders`, one for each batch.
fn blocks_of(m: &Mnt) -> Vec<Block> {
    let blocks = blocks(&read(m.store().join("orders/log")));
    assert_eq!(blocks.len(), 3);
    blocks
}

/// Where the payload of an event of `orders` starts in its log.
fn payload(m: &Mnt, n: u64) -> u64 {
    let blocks = blocks_of(m);
    let block = blocks.iter().rfind(|block| block.index <= n).unwrap();
    (block.at + HEADER) as u64 + 8 * (n - block.index)
}

fn log_of(m: &Mnt) -> File {
    OpenOptions::new().read(true).write(true).open(m.store().join("orders/log")).unwrap()
}

fn flip(m: &Mnt, offset: u64) {
    let (log, mut byte) = (log_of(m), [0]);
    log.read_exact_at(&mut byte, offset).unwrap();
    log.write_all_at(&[byte[0] ^ 1], offset).unwrap();
}

/// Events that are intact read back, the others are EIO; the log says which. Where the last ones are among
/// them nobody knows how many there were.
#[track_caller]
fn damaged(m: &Mnt, bad: &[u64]) {
    let s = m.path().join("orders");
    for n in 0..5 {
        let event = fs::read(s.join(format!("at/{n}")));
        if bad.contains(&n) {
            fails(libc::EIO, event);
            fails(libc::EIO, fs::read(s.join(format!("from/{n}"))));
            let names = |l: &str| {
                l.contains("orders")
                    && l.split(|c: char| !c.is_alphanumeric()).any(|w| w == n.to_string())
            };
            assert!(m.log().lines().any(names), "no line names orders and {n}: {}", m.log());
        } else {
            assert_eq!(event.unwrap(), format!("event {n}").as_bytes());
        }
    }
    fails(libc::EIO, fs::read(s.join("events")));
    let known = if bad.contains(&4) { bad[0] } else { 5 };
    assert_eq!(count(&s), known, "the count covers what is damaged before the end");
}

#[test]
fn eio_a_checksum_that_does_not_hold() {
    // In a payload, in a length, in flags, in a checksum, in the one before it, in an index, in a time.
    for offset in [40, 0, 2, 4, 8, 16, 24] {
        let m = orders();
        flip(&m, payload(&m, 2) - 40 + offset);
        m.restart();
        damaged(&m, &[2]);
        assert_eq!(read(m.path().join("orders/from/3")), b"event 3\nevent 4\n");
    }
}

#[test]
fn a_damaged_newline_is_never_handed_out() {
    let m = orders();
    flip(&m, payload(&m, 2) + 7);
    m.restart();
    fails(libc::EIO, fs::read(m.path().join("orders/from/2")));
    assert_eq!(read(m.path().join("orders/from/3")), b"event 3\nevent 4\n");
}

#[test]
fn eio_a_damage_done_while_mounted() {
    let m = orders();
    m.restart();
    assert_eq!(count(&m.path().join("orders")), 5);
    let offset = payload(&m, 1) + 3;
    flip(&m, offset);
    // They share a block.
    damaged(&m, &[0, 1]);
    flip(&m, offset);
    assert_eq!(read(m.path().join("orders/at/1")), b"event 1");
}

#[test]
fn eio_no_appends_after_the_disk_lost_the_newest() {
    let m = orders();
    flip(&m, payload(&m, 4));
    for _ in 0..2 {
        m.restart();
        damaged(&m, &[3, 4]);
        fails(libc::EIO, try_append(m.path().join("orders/events"), "x\n"));
        damaged(&m, &[3, 4]);
    }
}

#[test]
fn eio_a_log_shorter_than_the_count_says() {
    // In the middle of a block, between two, in the middle of a batch.
    for (event, into, bad) in [(2, 3, &[2, 3, 4][..]), (2, -40, &[2, 3, 4]), (4, 0, &[3, 4])] {
        let m = orders();
        let length = payload(&m, event).checked_add_signed(into).unwrap();
        log_of(&m).set_len(length).unwrap();
        for _ in 0..2 {
            m.restart();
            damaged(&m, bad);
            fails(libc::EIO, try_append(m.path().join("orders/events"), "x\n"));
            fails(libc::EIO, try_append(m.path().join("orders/from/5"), "x\n"));
        }
        assert!(
            log_of(&m).metadata().unwrap().len() >= length,
            "nothing that the count covers is cut"
        );
        // The way out: what is intact, copied to a new stream; other streams never noticed.
        let copy = format!(
            "mkdir new; for n in $(seq 0 {}); do cat orders/at/$n > new/new; done; cat new/events",
            bad[0] - 1
        );
        let want: String = (0..bad[0]).map(|n| format!("event {n}\n")).collect();
        assert_eq!(ok(&sh("sh", &copy, m.path())), want);
    }
}

/// What the index says was acknowledged is not begun anew in silence.
#[test]
fn eio_a_log_that_is_gone() {
    let m = orders();
    let s = m.path().join("orders");
    fs::remove_file(m.store().join("orders/log")).unwrap();
    m.restart();
    fails(libc::EIO, try_append(s.join("events"), "new\n"));
    fails(libc::EIO, fs::read(s.join("events")));
    fails(libc::EIO, fs::read(s.join("at/0")));
    assert!(m.log().contains("stream \"orders\", event 0: "), "{}", m.log());
    // Who means it says so.
    fs::remove_file(m.store().join("orders/index")).unwrap();
    append(s.join("events"), "new\n");
    assert_eq!(read(s.join("events")), b"new\n");
}

#[test]
fn an_index_can_be_deleted_or_be_anothers() {
    let all = "event 0\nevent 1\nevent 2\nevent 3\nevent 4\n";
    let m = orders();
    m.restart();
    let s = m.path().join("orders");
    let times = || (0..5).map(|n| mtime(s.join(format!("at/{n}")))).collect::<Vec<_>>();
    let before = times();
    m.stop();
    fs::remove_file(m.store().join("orders/index")).unwrap();
    m.restart();
    assert_eq!((text(&read(s.join("events"))).as_str(), count(&s), times()), (all, 5, before));
    append(s.join("events"), "event 5\n");
    assert_eq!(read(s.join("at/5")), b"event 5");

    // A copy is known by its seed. One has an index of later, which counts what it has not.
    let copies = public_dir();
    for store in ["cp", "tar"] {
        fs::create_dir(copies.path().join(store)).unwrap();
    }
    let script = format!("cp -a {0}/. cp; tar c -C {0} . | tar x -C tar", m.store().display());
    ok(&sh("sh", &script, copies.path()));
    append(s.join("events"), "event 6\n");
    ok(&sh(
        "sh",
        &format!("cp {}/orders/index tar/orders/index", m.store().display()),
        copies.path(),
    ));
    for store in ["cp", "tar"] {
        let copy = Mnt::on(&copies.path().join(store), &[]);
        if store == "tar" {
            fails(libc::EIO, try_append(copy.path().join("orders/events"), "else\n"));
            fails(libc::EIO, fs::read(copy.path().join("orders/events")));
            assert_eq!(read(copy.path().join("orders/at/5")), b"event 5");
            fs::remove_file(copies.path().join("tar/orders/index")).unwrap();
        }
        assert_eq!(
            text(&read(copy.path().join("orders/events"))),
            format!("{all}event 5\n"),
            "{store}"
        );
        append(copy.path().join("orders/from/6"), "else\n");
        assert_eq!(read(copy.path().join("orders/at/6")), b"else", "{store}");
    }
}

#[test]
fn a_torn_end_is_never_shown() {
    let m = orders();
    let log = log_of(&m);
    let end = payload(&m, 5);
    // A block that was written in part, behind the end.
    log.write_all_at(&[5, 0, 1, 0, 1, 2, 3, 4, 5], end).unwrap();
    m.restart();
    let s = m.path().join("orders");
    assert_eq!(count(&s), 5);
    append(s.join("events"), "event 5\n");
    m.restart();
    assert_eq!((count(&s), read(s.join("from/4"))), (6, b"event 4\nevent 5\n".to_vec()));
}

#[test]
fn erofs_any_change_on_a_read_only_mount() {
    let m = orders();
    let m = Mnt::on(m.store(), &["-o", "ro"]);
    let s = m.path().join("orders");
    let before = snapshot(m.store());
    fails(libc::EROFS, fs::create_dir(m.path().join("t")));
    for name in ["events", "lines", "new", "from/5"] {
        fails(libc::EROFS, try_append(s.join(name), "x\n"));
    }
    fails(libc::EROFS, File::create(s.join("at/5")));
    fails(libc::EROFS, File::create(s.join("new")));
    fails(libc::EROFS, fs::rename(&s, m.path().join("t")));
    fails(libc::EROFS, fs::remove_dir(&s));
    fails(libc::EROFS, fs::set_permissions(&s, Permissions::from_mode(0o700)));
    fails(libc::EROFS, chown(&s, Some(1), Some(1)));
    assert_eq!(read(s.join("from/3")), b"event 3\nevent 4\n");
    assert!(snapshot(m.store()) == before);
}

/// Every file of a directory: its bytes, its size on disk and when it changed.
fn snapshot(dir: &Path) -> BTreeMap<PathBuf, (Vec<u8>, u64, i64, i64)> {
    let mut found = BTreeMap::new();
    for name in names(dir) {
        let path = dir.join(name);
        let meta = fs::symlink_metadata(&path).unwrap();
        let bytes = if meta.is_file() { read(&path) } else { vec![] };
        if meta.is_dir() {
            found.extend(snapshot(&path));
        }
        found.insert(path, (bytes, meta.blocks(), meta.ctime(), meta.ctime_nsec()));
    }
    found
}

#[test]
fn a_read_only_mount_without_an_index_reads_all_and_writes_nothing() {
    let m = orders();
    fs::remove_file(m.store().join("orders/index")).unwrap();
    log_of(&m).write_all_at(b"torn", payload(&m, 5)).unwrap();
    let before = snapshot(m.store());
    let ro = Mnt::on(m.store(), &["-o", "ro"]);
    let s = ro.path().join("orders");
    assert_eq!(count(&s), 5);
    assert_eq!(read(s.join("events")), b"event 0\nevent 1\nevent 2\nevent 3\nevent 4\n");
    assert_eq!(
        (read(s.join("at/3")), read(s.join("from/4"))),
        (b"event 3".to_vec(), b"event 4\n".to_vec())
    );
    assert_eq!(fs::metadata(s.join("events")).unwrap().len(), 40);
    ro.stop();
    assert!(snapshot(m.store()) == before, "a read-only mount wrote");
}

#[test]
fn a_read_only_mount_of_damage_says_what_is_missing() {
    let m = orders();
    log_of(&m).set_len(payload(&m, 3)).unwrap();
    let before = snapshot(m.store());
    let ro = Mnt::on(m.store(), &["-o", "ro"]);
    damaged(&ro, &[3, 4]);
    assert!(snapshot(m.store()) == before);
}

#[test]
fn a_write_that_failed_fails_until_close_and_clears() {
    let disk = SmallDisk::new(24);
    let store = disk.path().join("store");
    fs::create_dir(&store).unwrap();
    let m = Mnt::on(&store, &[]);
    let s = m.stream("s");
    let mut file = appender(s.join("events")).unwrap();
    file.write_all(b"first\n").unwrap();
    disk.fill();
    fails(libc::ENOSPC, file.write_all(&vec![b'x'; 4 << 20]));
    disk.empty();
    fails(libc::ENOSPC, file.write_all(b"\nlast\n"));
    fails(libc::ENOSPC, file.sync_all());
    file.write_all(b"second\n").unwrap();
    close(file).unwrap();
    assert_eq!(read(s.join("events")), b"second\n");
}

/// Nobody has one: it is refused, not migrated.
#[test]
fn einval_a_store_of_another_format_is_refused_by_name() {
    let dir = public_dir();
    let [store, point] = ["store", "mnt"].map(|name| dir.path().join(name));
    for path in [&store, &point] {
        fs::create_dir(path).unwrap();
    }
    fs::write(store.join(".smolstore"), "smolstore 1\n").unwrap();
    let before = snapshot(&store);
    for read_only in [&[][..], &["-o", "ro"]] {
        let mut command = smolstore([store.as_os_str(), point.as_os_str(), "-f".as_ref()]);
        let out = command.args(read_only).output().unwrap();
        assert_eq!(out.status.code(), Some(1));
        let said = text(&out.stderr);
        assert!(said.contains("format \"smolstore 1\" is not known"), "{said}");
        assert_eq!(mounted(&point), None);
    }
    assert!(snapshot(&store) == before);
}
