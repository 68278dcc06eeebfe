//! What ordinary tools see of it, and what they do with it.

use crate::harness::*;
use std::fs::{self, File};

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
        need(tool, tool);
        ok(&sh("sh", &script, m.path()));
        assert!(read(&copy) == all.as_bytes(), "{tool}");
        fs::remove_file(&copy).unwrap();
    }
}

#[test]
fn mmap_shows_what_read_shows() {
    need("python3", "python3");
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
