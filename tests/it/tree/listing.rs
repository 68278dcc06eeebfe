//! What is listed: streams, their files and links, and nothing else.

use super::LINKS;
use crate::harness::*;
use std::collections::BTreeSet;
use std::ffi::{CStr, CString, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

fn shown(dir: &Path) -> Vec<String> {
    let names = names(dir).into_iter().map(|n| n.into_string().unwrap());
    names.filter(|n| n != "follow").collect()
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
