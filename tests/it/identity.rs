//! Inode numbers: which file is which, for good.

use crate::harness::*;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::{Path, PathBuf};

/// All there is of a stream, as a walk may come to it.
const NODES: [&str; 21] = [
    "",
    "events",
    "lines",
    "new",
    "count",
    "first",
    "from",
    "at",
    "follow",
    "from/0",
    "from/1",
    "from/2",
    "at/0",
    "at/1",
    "follow/0",
    "follow/1",
    "from/0.json",
    "at/0.json",
    "follow/1.json",
    "from/newest",
    "at/beginning",
];

fn inode(path: impl AsRef<Path>) -> u64 {
    fs::symlink_metadata(path).unwrap().ino()
}

/// The numbers of all nodes of these streams, looked up in this order.
fn inodes(root: &Path, streams: &[&str]) -> BTreeMap<PathBuf, u64> {
    let paths = streams.iter().flat_map(|stream| NODES.map(|node| Path::new(stream).join(node)));
    paths.map(|path| (path.clone(), inode(root.join(&path)))).collect()
}

#[test]
fn inode_numbers_are_the_same_after_a_remount_and_all_differ() {
    let m = Mnt::new();
    for stream in ["a", "b"] {
        append(m.stream(stream).join("events"), "x\ny\n");
    }
    let before = inodes(m.path(), &["a", "b"]);
    let distinct: BTreeSet<u64> = before.values().copied().collect();
    assert_eq!(distinct.len(), before.len(), "{before:?}");
    assert_eq!(inode(m.path()), 1);
    m.restart();
    assert_eq!(inodes(m.path(), &["b", "a"]), before);
    // What the kernel has forgotten it asks for again.
    ok(&sh("sh", "sync; echo 2 > /proc/sys/vm/drop_caches", m.path()));
    assert_eq!(inodes(m.path(), &["a", "b"]), before);
    let other = Mnt::on(m.store(), &[]);
    assert_eq!(inodes(other.path(), &["b", "a"]), before);
    // A name keeps its file, and a file its number.
    fs::rename(m.path().join("a"), m.path().join("c")).unwrap();
    for (node, number) in inodes(m.path(), &["c"]) {
        let old = Path::new("a").join(node.strip_prefix("c").unwrap());
        assert_eq!(number, before[&old], "{node:?}");
    }
}

#[test]
fn a_stream_made_anew_has_other_numbers() {
    let m = Mnt::new();
    let mut seen = BTreeSet::new();
    for n in 0..20 {
        // Where it counts from the beginning is no new beginning of the numbers.
        if n % 5 == 0 {
            m.restart();
        }
        let s = m.stream("s");
        assert!(seen.insert(inode(&s)), "{n}");
        assert!(seen.insert(inode(s.join("events"))), "{n}");
        fs::remove_dir(s).unwrap();
    }
}

#[test]
fn readdir_stat_and_fstat_give_the_same_number() {
    let m = Mnt::new();
    for stream in ["a", "b", "c"] {
        append(m.stream(stream).join("events"), "x\n");
    }
    // Not yet looked up by this mount.
    m.restart();
    let listed = |dir: &Path| {
        let entries = fs::read_dir(dir).unwrap().map(Result::unwrap);
        entries.map(|entry| (entry.path(), entry.ino())).collect::<Vec<_>>()
    };
    let root = listed(m.path());
    assert_eq!(root.len(), 3);
    for dir in ["a", "a/from", "a/at"].map(|dir| m.path().join(dir)) {
        for (path, number) in listed(&dir).into_iter().chain(root.clone()) {
            assert_eq!(inode(&path), number, "{}", path.display());
        }
    }
    for name in ["a/events", "a/lines", "a/count", "a/from/1", "a/at/0", "a/follow/0"] {
        let path = m.path().join(name);
        let file = File::open(&path).unwrap();
        assert_eq!(file.metadata().unwrap().ino(), inode(&path), "{name}");
        assert_eq!(file.metadata().unwrap().ino(), inode(&path), "{name}");
    }
    // Of what was just made, too.
    let made = File::create(m.path().join("a/at/1")).unwrap();
    let number = made.metadata().unwrap().ino();
    drop(made);
    append(m.path().join("a/events"), "y\n");
    assert_eq!(inode(m.path().join("a/at/1")), number);
    let events = inode(m.path().join("a/events"));
    let said = ok(&sh("sh", &format!("find . -inum {events}; ls -i a/events"), m.path()));
    assert_eq!(said, format!("./a/events\n{events} a/events\n"));
    // `..` and `.` as well; and no directory says how many are in it.
    let said = ok(&sh("sh", "ls -ai1 a/from | head -n 2; stat -c %i a/from a", m.path()));
    let numbers: Vec<&str> = said.split_whitespace().filter(|word| word.len() > 2).collect();
    assert_eq!(numbers[..2], numbers[2..], "{said}");
    assert_eq!(ok(&sh("sh", "stat -c %h . a a/from a/events", m.path())), "1\n1\n1\n1\n");
}

#[test]
fn perl_finds_what_is_in_directories() {
    need("perl", "perl");
    let m = Mnt::new();
    append(m.stream("s").join("events"), "x\n");
    let find = "use File::Find; $File::Find::dont_use_nlink = 0;
                find(sub { print qq($File::Find::name\\n) }, '.');";
    let perl = std::process::Command::new("perl").args(["-e", find]).current_dir(m.path()).output();
    let said = ok(&perl.unwrap());
    assert!(said.contains("./s/from/newest"), "{said}");
}

#[test]
fn an_incremental_tar_takes_each_stream_for_itself() {
    let m = Mnt::new();
    for stream in ["a", "b"] {
        append(m.stream(stream).join("events"), format!("{stream}\n"));
    }
    let dir = public_dir();
    let tar = |n: u8, order: &str| {
        let to = dir.path().display();
        let script = format!(
            "stat {order} >{to}/said && tar --no-check-device -g {to}/list -cvf {to}/{n}.tar \
             --exclude=follow . | grep -v '/$'"
        );
        text(&sh("sh", &script, m.path()).stdout)
    };
    assert!(tar(1, "a b").contains("./a/events"));
    m.restart();
    let again = tar(2, "b a");
    // Links that point elsewhere, and what is made as it is looked at, have no times of their own.
    assert!(!again.contains("events"), "{again}");
    // What tar takes for a directory that was renamed it renames.
    let restore = "mkdir to; for n in 1 2; do tar -g /dev/null -xf $n.tar -C to || exit; done
                   cat to/a/events to/b/events";
    assert_eq!(ok(&sh("sh", restore, dir.path())), "a\nb\n");
}
