//! The mounted tree: every row of its table, and what ordinary tools see of it.

use crate::harness::*;
use std::collections::BTreeSet;
use std::ffi::{CStr, CString, OsStr, OsString};
use std::fs::{self, File, Permissions};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

const FILES: [&str; 4] = ["count", "events", "lines", "new"];
const LINKS: [&str; 3] = ["beginning", "newest", "next"];

fn mode(path: impl AsRef<Path>) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o7777
}

fn size(path: impl AsRef<Path>) -> u64 {
    fs::metadata(path).unwrap().len()
}

fn link(path: impl AsRef<Path>) -> String {
    fs::read_link(path).unwrap().into_os_string().into_string().unwrap()
}

fn shown(dir: &Path) -> Vec<String> {
    let names = names(dir).into_iter().map(|n| n.into_string().unwrap());
    names.filter(|n| n != "follow").collect()
}

/// Nanoseconds as the decimal seconds of an `@` link.
fn at(ns: i64) -> String {
    format!("@{}.{:09}", ns / 1_000_000_000, ns % 1_000_000_000)
}

#[test]
fn ls_shows_streams_their_files_and_the_named_links() {
    let m = Mnt::new();
    assert!(names(m.path()).is_empty());
    let s = m.stream("s");
    m.stream("t");
    assert_eq!(shown(m.path()), ["s", "t"]);
    for events in ["", "one\ntwo\n"] {
        append(s.join("events"), events);
        assert_eq!(shown(&s), ["at", "count", "events", "first", "from", "lines", "new"]);
        assert_eq!(shown(&s.join("from")), LINKS);
        assert_eq!(shown(&s.join("at")), LINKS);
    }
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
fn count_is_decimal_with_a_newline() {
    let m = Mnt::new();
    let s = m.stream("s");
    assert_eq!(read(s.join("count")), b"0\n");
    append(s.join("events"), "x\n".repeat(9));
    assert_eq!(read(s.join("count")), b"9\n");
    append(s.join("events"), "x\n");
    assert_eq!(read(s.join("count")), b"10\n");
}

#[test]
fn named_links_say_where_they_point() {
    let m = Mnt::new();
    let s = m.stream("s");
    for (events, newest, next) in [("", "0", "0"), ("a\n", "0", "1"), ("b\nc\n", "2", "3")] {
        append(s.join("events"), events);
        for dir in ["from", "at"] {
            let d = s.join(dir);
            assert_eq!(link(d.join("beginning")), "0");
            assert_eq!(link(d.join("newest")), newest);
            assert_eq!(link(d.join("next")), next);
        }
    }
    assert_eq!(read(s.join("from/beginning")), b"a\nb\nc\n");
    assert_eq!(read(s.join("from/newest")), b"c\n");
    assert_eq!(read(s.join("from/next")), b"");
    assert_eq!(read(s.join("at/newest")), b"c");
}

#[test]
fn an_open_file_never_moves() {
    let m = Mnt::new();
    let s = m.stream("s");
    append(s.join("events"), "a\nb\n");
    let mut newest = File::open(s.join("from/newest")).unwrap();
    append(s.join("events"), "c\n");
    let mut seen = String::new();
    newest.read_to_string(&mut seen).unwrap();
    assert_eq!(seen, "b\nc\n");
}

#[test]
fn at_seconds_is_the_first_event_from_then_on() {
    let m = Mnt::new();
    let s = m.stream("s");
    for dir in ["from", "at"] {
        assert_eq!(link(s.join(dir).join("@0")), "0", "empty stream");
    }
    append(s.join("events"), "a\nb\n");
    append(s.join("events"), "c\n");
    let (first, second) = (mtime(s.join("at/0")), mtime(s.join("at/2")));
    for dir in ["from", "at"] {
        let to = |name: String| link(s.join(dir).join(name));
        assert_eq!(to("@0".into()), "0");
        assert_eq!(to("@1.5".into()), "0");
        assert_eq!(to(at(first - 1)), "0", "before the first");
        assert_eq!(to(at(first)), "0", "at the first");
        assert_eq!(to(at(first + 1)), "2", "after the first");
        assert_eq!(to(at(second)), "2", "at the last");
        assert_eq!(to(at(second + 1)), "3", "after the last");
        assert_eq!(to(format!("@{}", first / 1_000_000_000)), "0", "whole seconds");
        assert_eq!(to("@9999999999".into()), "3", "far ahead");
        for garbage in ["@", "@-1", "@+1", "@1.2.3", "@x", "@1x", "@ 1", "@1e9", "@."] {
            assert_eq!(
                errno_of(fs::read_link(s.join(dir).join(garbage))),
                libc::ENOENT,
                "{garbage}"
            );
        }
    }
    assert_eq!(read(s.join("from").join(at(second))), b"c\n");
    assert_eq!(ok(&sh("sh", "cat s/from/@$(date -d '1 hour ago' +%s)", m.path())), "a\nb\nc\n");
}

#[test]
fn a_horizon_is_a_plain_decimal_up_to_the_count() {
    let m = Mnt::new();
    let s = m.stream("s");
    append(s.join("events"), "a\nb\n");
    for (horizon, want) in [("0", "a\nb\n"), ("1", "b\n"), ("2", "")] {
        assert_eq!(read(s.join("from").join(horizon)), want.as_bytes());
    }
    let beyond = ["3", "18446744073709551615", "18446744073709551616", "99999999999999999999999"];
    for name in
        ["00", "01", "+1", "-1", "-0", "1 ", " 1", "1.0", "0x1", "end"].iter().chain(&beyond)
    {
        for dir in ["from", "at"] {
            let path = s.join(dir).join(name);
            assert_eq!(errno_of(File::open(&path)), libc::ENOENT, "{path:?}");
        }
    }
    assert_eq!(read(s.join("at/1")), b"b");
    assert_eq!(errno_of(fs::metadata(s.join("at/2"))), libc::ENOENT);
}

#[test]
fn a_stream_may_have_any_name_a_directory_may() {
    let m = Mnt::new();
    let mut long = vec![b'n'; 255];
    let raw: [&[u8]; 9] = [
        "ünï→".as_bytes(),
        b"a b",
        b"new\nline",
        b"\xff\xfe",
        b"events",
        b"0",
        b"*",
        b"-rf",
        &long,
    ];
    for name in raw {
        append(m.stream(OsStr::from_bytes(name)).join("events"), name);
    }
    m.restart();
    let want: BTreeSet<OsString> = raw.iter().map(|n| OsStr::from_bytes(n).into()).collect();
    assert_eq!(names(m.path()), want.into_iter().collect::<Vec<_>>());
    for name in raw {
        let events = read(m.path().join(OsStr::from_bytes(name)).join("events"));
        assert_eq!(events, [name, b"\n"].concat());
    }
    long.push(b'n');
    assert_eq!(
        errno_of(fs::create_dir(m.path().join(OsStr::from_bytes(&long)))),
        libc::ENAMETOOLONG
    );
    assert_eq!(errno_of(fs::metadata(m.path().join(".smolstore"))), libc::ENOENT);
    assert_eq!(errno_of(fs::metadata(m.path().join("none"))), libc::ENOENT);
}

#[test]
fn what_is_no_stream_in_the_store_does_not_show() {
    let m = Mnt::new();
    m.stream("s");
    for dir in [".hidden", "lost+found"] {
        fs::create_dir(m.store().join(dir)).unwrap();
    }
    fs::write(m.store().join("file"), "").unwrap();
    assert_eq!(names(m.path()), ["s"]);
    for name in [".hidden", "lost+found", "file"] {
        assert_eq!(errno_of(fs::metadata(m.path().join(name))), libc::ENOENT, "{name}");
    }
}

#[test]
fn rename_takes_open_files_along() {
    let m = Mnt::new();
    let (s, t) = (m.stream("s"), m.path().join("t"));
    append(s.join("events"), "a\n");
    let mut reader = File::open(s.join("events")).unwrap();
    let mut writer = appender(s.join("events")).unwrap();
    fs::rename(&s, &t).unwrap();
    assert_eq!(names(m.path()), ["t"]);
    assert_eq!(errno_of(fs::metadata(&s)), libc::ENOENT);
    io::Write::write_all(&mut writer, b"b\n").unwrap();
    close(writer).unwrap();
    append(t.join("events"), "c\n");
    let mut seen = String::new();
    reader.read_to_string(&mut seen).unwrap();
    assert_eq!(seen, "a\nb\nc\n");
    m.restart();
    assert_eq!(read(t.join("events")), b"a\nb\nc\n");
    // The old name is free.
    append(m.stream("s").join("events"), "other\n");
    assert_eq!((count(&s), count(&t)), (1, 3));
}

#[test]
fn rename_never_loses_a_stream() {
    let m = Mnt::new();
    let (s, t) = (m.stream("s"), m.stream("t"));
    append(s.join("events"), "of s\n");
    append(t.join("events"), "of t\n");
    let errno = errno_of(fs::rename(&s, &t));
    assert!([libc::EEXIST, libc::ENOTEMPTY].contains(&errno), "{errno}");
    assert_eq!(errno_of(fs::rename(m.path().join("none"), m.path().join("u"))), libc::ENOENT);
    assert_eq!(errno_of(fs::rename(&s, m.path().join(".s"))), libc::EINVAL);
    assert!(fs::rename(&s, t.join("s")).is_err());
    assert!(fs::rename(s.join("events"), s.join("else")).is_err());
    assert_eq!(names(m.path()), ["s", "t"]);
    assert_eq!(
        (read(s.join("events")), read(t.join("events"))),
        (b"of s\n".to_vec(), b"of t\n".to_vec())
    );
}

#[test]
fn rmdir_removes_an_empty_stream_only() {
    let m = Mnt::new();
    let s = m.stream("s");
    assert_eq!(errno_of(fs::create_dir(&s)), libc::EEXIST);
    let mut writer = appender(s.join("events")).unwrap();
    fs::remove_dir(&s).unwrap();
    assert!(names(m.path()).is_empty() && !m.store().join("s").exists());
    assert_eq!(errno_of(fs::remove_dir(&s)), libc::ENOENT);
    let late = io::Write::write_all(&mut writer, b"late\n").and_then(|()| close(writer));
    assert_eq!(errno_of(late), libc::ENOENT);
    m.stream("s");
    assert_eq!(count(&s), 0);
    append(s.join("events"), "a\n");
    assert_eq!(errno_of(fs::remove_dir(&s)), libc::ENOTEMPTY);
    assert!(fs::remove_dir(s.join("from")).is_err());
    assert_eq!(read(s.join("events")), b"a\n");
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

#[test]
fn ordinary_tools_work() {
    let m = Mnt::new();
    let s = m.stream("s");
    append(s.join("events"), "one\n".repeat(1000));
    let run = |script: &str| ok(&sh("bash", &format!("set -e; {script}"), m.path()));
    assert_eq!(run("touch s/events; cat s/count"), "1000\n");
    assert_eq!(run("stat -c '%F %s' s/events"), "regular file 4000\n");
    assert_eq!(
        run("find . -type f | sort"),
        "./s/count\n./s/events\n./s/first\n./s/lines\n./s/new\n"
    );
    let found = run("find . -mindepth 1 | grep -v s/follow | sort");
    let want = [
        "s",
        "s/at",
        "s/at/beginning",
        "s/at/newest",
        "s/at/next",
        "s/count",
        "s/events",
        "s/first",
        "s/from",
    ];
    let rest = ["s/from/beginning", "s/from/newest", "s/from/next", "s/lines", "s/new"];
    assert_eq!(found, want.iter().chain(&rest).map(|n| format!("./{n}\n")).collect::<String>());
    let du: u64 = run("du -b s/events | cut -f1").trim().parse().unwrap();
    assert_eq!(du, 4000);
    run("du -s . && ls -laR . && grep -c one s/events && wc -l < s/events");
    assert_eq!(run("head -c 8 s/events; tail -n 1 s/events"), "one\none\none\n");
    assert_eq!(run("realpath --relative-to=. s/from/newest"), "s/from/999\n");
}

#[test]
fn copies_are_complete() {
    let m = Mnt::new();
    let s = m.stream("s");
    let all = (0..5000).map(|n| format!("event {n}\n")).collect::<String>();
    append(s.join("events"), &all);
    let to = tempfile::tempdir().unwrap();
    let copy = to.path().join("copy").display().to_string();
    let mut tools =
        vec![("cp", format!("cp s/events {copy}")), ("cat", format!("cat s/events > {copy}"))];
    tools.push(("tar", format!("tar c s/events | tar xO > {copy}")));
    tools.push(("rsync", format!("rsync s/events {copy}")));
    tools.push((
        "python3",
        format!("python3 -c 'import shutil; shutil.copyfile(\"s/events\", \"{copy}\")'"),
    ));
    for (tool, script) in tools {
        if have(tool) {
            ok(&sh("sh", &script, m.path()));
            assert!(read(&copy) == all.as_bytes(), "{tool}");
            fs::remove_file(&copy).unwrap();
        }
    }
}

#[test]
fn mmap_shows_what_read_shows() {
    if !have("python3") {
        return;
    }
    let m = Mnt::new();
    append(m.stream("s").join("events"), "one\n".repeat(3000));
    let script = "
import mmap, os
def check(file, flags):
    with mmap.mmap(file.fileno(), 0, flags=flags, prot=mmap.PROT_READ) as view:
        assert view[:] == open('s/events', 'rb').read(), (len(view), flags)
kept = open('s/events', 'rb')
old = mmap.mmap(kept.fileno(), 0, prot=mmap.PROT_READ)
for batch in range(5):
    for flags in (mmap.MAP_SHARED, mmap.MAP_PRIVATE):
        check(open('s/events', 'rb'), flags)
        check(kept, flags)
    with open('s/events', 'a') as f:
        f.write('more %d\\n' % batch * 700)
assert old[:] == b'one\\n' * 3000
";
    ok(&sh("python3", script, m.path()));
}

#[test]
fn directories_can_be_synced() {
    let m = Mnt::new();
    let s = m.stream("s");
    for dir in [m.path(), &s, &s.join("from"), &s.join("at")] {
        let dir = File::open(dir).unwrap();
        dir.sync_all().unwrap();
        dir.sync_data().unwrap();
    }
    ok(&sh("sh", "sync . s s/events", m.path()));
}

/// A directory read with the C library, which can go back.
struct Dir(*mut libc::DIR);

impl Dir {
    fn open(path: &Path) -> Dir {
        let path = CString::new(path.as_os_str().as_bytes()).unwrap();
        let dir = unsafe { libc::opendir(path.as_ptr()) };
        assert!(!dir.is_null());
        Dir(dir)
    }

    fn next(&self) -> Option<Vec<u8>> {
        let entry = unsafe { libc::readdir(self.0) };
        let name = |e: *mut libc::dirent| unsafe { CStr::from_ptr((*e).d_name.as_ptr()) };
        (!entry.is_null()).then(|| name(entry).to_bytes().to_vec())
    }

    fn rest(&self) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| self.next()).collect()
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        unsafe { libc::closedir(self.0) };
    }
}

#[test]
fn a_root_with_twenty_thousand_streams_lists_each_once() {
    let m = Mnt::new();
    let want: BTreeSet<OsString> =
        (0..20_000).map(|n| format!("a stream with number {n:05}").into()).collect();
    for name in &want {
        m.stream(name);
    }
    assert!(names(m.path()).iter().eq(&want), "names missing or twice");
    let out = ok(&sh("sh", "ls -f | grep -c 'a stream'; find . -maxdepth 1 | wc -l", m.path()));
    assert_eq!(out, "20000\n20001\n");

    let dir = Dir::open(m.path());
    let all = dir.rest();
    unsafe { libc::rewinddir(dir.0) };
    let mut marks = vec![];
    for (n, name) in all.iter().enumerate() {
        if n % 997 == 0 {
            marks.push((n, unsafe { libc::telldir(dir.0) }));
        }
        assert_eq!(dir.next().as_ref(), Some(name), "after rewinddir");
    }
    for (n, mark) in marks.into_iter().rev() {
        unsafe { libc::seekdir(dir.0, mark) };
        assert_eq!(dir.next().as_ref(), Some(&all[n]), "after seekdir");
    }
    unsafe { libc::seekdir(dir.0, libc::telldir(dir.0)) };
    assert_eq!(dir.rest(), all[1..], "the rest after seekdir");
    m.stream("a new one");
    unsafe { libc::rewinddir(dir.0) };
    assert!(dir.rest().contains(&b"a new one".to_vec()), "rewinddir looks again");
}

#[test]
fn two_mounts_of_one_store_see_each_other() {
    let one = Mnt::new();
    let two = Mnt::on(one.store(), &[]);
    let here = one.stream("s");
    let there = two.path().join("s");
    eventually("the stream shows", || there.exists());
    let mut reader = File::open(there.join("events")).unwrap();
    for n in 0..50 {
        append(here.join("events"), format!("here {n}\n"));
        assert_eq!(count(&there), 2 * n + 1);
        append(there.join("events"), format!("there {n}\n"));
        assert_eq!(count(&here), 2 * n + 2);
    }
    let all: String = (0..50).map(|n| format!("here {n}\nthere {n}\n")).collect();
    let mut seen = String::new();
    reader.read_to_string(&mut seen).unwrap();
    assert_eq!(seen, all);
    assert_eq!(read(here.join("events")), all.as_bytes());
    assert_eq!(size(here.join("events")), all.len() as u64);

    fs::rename(&here, one.path().join("t")).unwrap();
    let there = two.path().join("t");
    eventually("the new name shows", || there.exists());
    eventually("the old name is gone", || !two.path().join("s").exists());
    append(one.path().join("t/events"), "renamed\n");
    reader.read_to_string(&mut seen).unwrap();
    assert!(seen.ends_with("\nrenamed\n"), "an open reader stays with its stream");
    append(there.join("events"), "back\n");
    assert_eq!(count(&one.path().join("t")), 102);

    one.stream("empty");
    eventually("the empty one shows", || two.path().join("empty").exists());
    fs::remove_dir(two.path().join("empty")).unwrap();
    eventually("it is gone here too", || {
        names(one.path()) == ["t"] && !one.path().join("empty").exists()
    });
}
