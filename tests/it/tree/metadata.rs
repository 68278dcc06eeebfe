//! What stat(2) and statfs(2) say: types, modes, owners, sizes, times, and room.

use super::{LINKS, link, size};
use crate::harness::*;
use std::ffi::CString;
use std::fs::{self, File, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

const FILES: [&str; 4] = ["count", "events", "lines", "new"];

fn mode(path: impl AsRef<Path>) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o7777
}

#[test]
fn types_modes_and_owners_are_those_of_the_streams_directory() {
    let m = Mnt::new();
    let s = m.stream("s");
    append(s.join("events"), "one\n");
    for bits in [0o755, 0o700, 0o777, 0o550] {
        fs::set_permissions(&s, Permissions::from_mode(bits)).unwrap();
        chown(&s, Some(1234), Some(5678)).unwrap();
        for name in ["", "from", "at"] {
            let meta = fs::metadata(s.join(name)).unwrap();
            assert!(meta.is_dir(), "{name}");
            assert_eq!(
                (meta.mode() & 0o7777, meta.uid(), meta.gid()),
                (bits, 1234, 5678),
                "{name}"
            );
        }
        for name in FILES.iter().chain(&["from/0", "from/1", "at/0"]) {
            let meta = fs::metadata(s.join(name)).unwrap();
            assert!(meta.is_file(), "{name}");
            let want = (bits & 0o666, 1234, 5678);
            assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.gid()), want, "{name}");
        }
    }
    for dir in ["from", "at"] {
        for name in LINKS.iter().chain(&["@0", "@0.5"]) {
            let meta = fs::symlink_metadata(s.join(dir).join(name)).unwrap();
            assert!(meta.is_symlink(), "{dir}/{name}");
            assert_eq!(meta.len(), link(s.join(dir).join(name)).len() as u64, "{dir}/{name}");
        }
    }
}

#[test]
fn chmod_and_chown_of_a_stream_outlive_a_remount() {
    let m = Mnt::new();
    let s = m.stream("s");
    append(s.join("events"), "one\n");
    fs::set_permissions(&s, Permissions::from_mode(0o710)).unwrap();
    chown(&s, Some(11), Some(12)).unwrap();
    m.restart();
    for (path, bits) in
        [(s.clone(), 0o710), (s.join("events"), 0o600), (m.store().join("s"), 0o710)]
    {
        let meta = fs::metadata(&path).unwrap();
        assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.gid()), (bits, 11, 12), "{path:?}");
    }
}

#[test]
fn mkdir_respects_mode_and_umask() {
    let m = Mnt::new();
    ok(&sh("sh", "umask 027; mkdir a; umask 0; mkdir b; mkdir -m 700 c", m.path()));
    for (name, dir, file) in [("a", 0o750, 0o640), ("b", 0o777, 0o666), ("c", 0o700, 0o600)] {
        let s = m.path().join(name);
        assert_eq!((mode(&s), mode(s.join("events"))), (dir, file), "{name}");
        assert_eq!(mode(m.store().join(name)), dir, "{name}");
    }
}

#[test]
fn other_users_may_do_what_the_modes_say() {
    let m = Mnt::with(&["-o", "allow_other"]);
    for (name, bits) in [("closed", 0o755), ("open", 0o777)] {
        fs::set_permissions(m.stream(name), Permissions::from_mode(bits)).unwrap();
    }
    fs::set_permissions(m.store(), Permissions::from_mode(0o1777)).unwrap();
    eventually("the store's mode shows", || mode(m.path()) == 0o1777);
    let nobody = "setpriv --reuid 65534 --regid 65534 --clear-groups";
    let script = format!(
        "set -e; {nobody} sh -c 'mkdir mine; echo a >> mine/events; echo b >> open/events; cat closed/count'
         if {nobody} sh -c 'echo c >> closed/events'; then exit 1; fi
         if {nobody} chmod 777 closed; then exit 1; fi
         if {nobody} rmdir closed; then exit 1; fi"
    );
    assert_eq!(ok(&sh("sh", &script, m.path())), "0\n");
    let meta = fs::metadata(m.path().join("mine")).unwrap();
    assert_eq!((meta.uid(), meta.gid()), (65534, 65534));
    assert_eq!(["mine", "open", "closed"].map(|s| count(&m.path().join(s))), [1, 1, 0]);
}

#[test]
fn size_is_right_at_every_stat_and_grows() {
    let m = Mnt::new();
    let s = m.stream("s");
    let open = File::open(s.join("events")).unwrap();
    let mut total = 0;
    for n in 0..25_u64 {
        assert_eq!((size(s.join("events")), open.metadata().unwrap().len()), (total, total));
        assert_eq!(size(s.join("count")), n.to_string().len() as u64 + 1);
        let event = vec![b'x'; (n * n * 37) as usize];
        append(s.join("events"), [&event[..], b"\n"].concat());
        assert_eq!(size(s.join("at").join(n.to_string())), event.len() as u64);
        assert_eq!(size(s.join("from").join(n.to_string())), event.len() as u64 + 1);
        assert_eq!(size(s.join("from").join((n + 1).to_string())), 0);
        total += event.len() as u64 + 1;
    }
    for name in FILES.iter().chain(&["from/7", "at/7", "from/newest", "at/newest"]) {
        assert_eq!(size(s.join(name)), read(s.join(name)).len() as u64, "{name}");
    }
}

#[test]
fn mtime_is_the_commit_time() {
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as i64;
    let m = Mnt::new();
    let s = m.stream("s");
    // The kernel's coarse clock may lag a tick behind.
    let before = now() - 20_000_000;
    append(s.join("events"), "a\nb\n");
    append(s.join("events"), "c\n");
    let after = now() + 20_000_000;
    let times: Vec<_> = (0..3).map(|n| mtime(s.join(format!("at/{n}")))).collect();
    assert!(before <= times[0] && times[2] <= after, "{before} {times:?} {after}");
    assert_eq!(times[0], times[1], "one batch, one time");
    assert!(times[1] < times[2], "{times:?}");
    assert_eq!(mtime(s.join("events")), times[2]);
    m.restart();
    assert_eq!((0..3).map(|n| mtime(s.join(format!("at/{n}")))).collect::<Vec<_>>(), times);
}

#[test]
fn statfs_is_that_of_the_backing_file_system() {
    let statfs = |path: &Path| {
        let path = CString::new(path.as_os_str().as_bytes()).unwrap();
        let mut out = std::mem::MaybeUninit::<libc::statvfs>::uninit();
        assert_eq!(unsafe { libc::statvfs(path.as_ptr(), out.as_mut_ptr()) }, 0);
        unsafe { out.assume_init() }
    };
    let m = Mnt::new();
    m.stream("s");
    let disk = statfs(m.store());
    for path in [m.path().to_path_buf(), m.path().join("s/events")] {
        let seen = statfs(&path);
        assert_eq!(seen.f_blocks * seen.f_frsize, disk.f_blocks * disk.f_frsize);
        assert_eq!((seen.f_files, seen.f_namemax), (disk.f_files, disk.f_namemax));
    }
    ok(&sh("sh", "df . && df -i .", m.path()));
}
