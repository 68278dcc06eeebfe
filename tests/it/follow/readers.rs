//! Ordinary programs wait, each in its way, for the first event of a stream.

use super::{Follower, three};
use crate::commit::python;
use crate::harness::*;
use std::fs;
use std::time::{Duration, Instant};

/// A program waits quietly for the first event of a stream, and prints it.
#[track_caller]
fn waits(tool: &str, command: &[&str]) -> Follower {
    need(tool, tool);
    let m = Mnt::new();
    let s = m.stream("s");
    let mut program = Follower::start(&s, command);
    program.is_quiet(Duration::from_secs(5));
    let start = Instant::now();
    append(s.join("events"), "{\"n\":1}\n");
    let (when, line) = program.next();
    assert_eq!(line, "{\"n\":1}", "{tool}");
    eprintln!("{tool}: {:?}", when - start);
    program
}

#[test]
fn bash_read_waits() {
    waits("bash", &["bash", "-c", "read -r line < follow/0 && echo \"$line\""]).ends_well();
    let bash = "while read -r line; do echo \"$line\"; done < follow/0";
    waits("bash", &["bash", "-c", bash]);
}

#[test]
fn python_waits() {
    let python = |script: &str| waits("python3", &["python3", "-ISuc", script]);
    python("for line in open('follow/0'): print(line, end='')");
    python("import os; print(os.read(os.open('follow/0', 0), 99).decode(), end='')").ends_well();
    python("import asyncio\nprint(asyncio.run(asyncio.to_thread(open('follow/0').readline)))")
        .ends_well();
    python(
        "
import selectors
selector = selectors.DefaultSelector()
selector.register(open('follow/0', 'rb', buffering=0), selectors.EVENT_READ)
(key, _), = selector.select()
print(key.fileobj.read(99).decode(), end='')",
    )
    .ends_well();
}

#[test]
fn python_asyncio_waits_without_a_thread() {
    let script = "
import asyncio
async def main():
    file = open('follow/0', 'rb', buffering=0)
    ready = asyncio.Event()
    asyncio.get_running_loop().add_reader(file, ready.set)
    await ready.wait()
    print(file.read(99).decode(), end='')
asyncio.run(main())";
    waits("python3", &["python3", "-ISuc", script]).ends_well();
}

#[test]
fn node_waits() {
    let script = "require('fs').createReadStream('follow/0').pipe(process.stdout)";
    waits("node", &["node", "-e", script]);
}

#[test]
fn java_waits() {
    need("java", "default-jdk-headless");
    let dir = public_dir();
    let source = dir.path().join("Wait.java");
    let program = r#"
import java.io.*;
class Wait {
    public static void main(String[] args) throws IOException {
        try (var reader = new BufferedReader(new FileReader("follow/0"))) {
            System.out.println(reader.readLine());
        }
    }
}"#;
    fs::write(&source, program).unwrap();
    waits("java", &["java", source.to_str().unwrap()]).ends_well();
}

#[test]
fn perl_waits() {
    let perl = "open F, '<', 'follow/0'; $| = 1; print while <F>; die $! if $!";
    waits("perl", &["perl", "-e", perl]);
}

#[test]
fn awk_waits() {
    waits("gawk", &["gawk", "{ print; fflush() }", "follow/0"]);
    waits("busybox", &["busybox", "awk", "{ print; fflush() }", "follow/0"]);
}

#[test]
fn mawk_waits() {
    waits("mawk", &["mawk", "-W", "interactive", "{ print }", "follow/0"]);
}

#[test]
fn grep_waits() {
    waits("grep", &["grep", "-m1", "n", "follow/0"]).ends_well();
    waits("grep", &["grep", "--line-buffered", "n", "follow/0"]);
}

#[test]
fn jq_waits() {
    waits("jq", &["jq", "--unbuffered", "-c", ".", "follow/0"]);
}

#[test]
fn head_and_others_wait() {
    waits("head", &["head", "-n1", "follow/0"]).ends_well();
    waits("busybox", &["busybox", "head", "-n1", "follow/0"]).ends_well();
    waits("sed", &["sed", "-u", "", "follow/0"]);
    waits("dd", &["dd", "if=follow/0", "bs=4096", "count=1", "status=none"]).ends_well();
    waits("bash", &["bash", "-c", "cat follow/0 | tee /dev/null | cat"]);
}

/// It asks the kernel to copy, which looks at the size and takes it for the end: sendfile(2) must fail
/// where it cannot wait, and not say that there is nothing.
#[test]
fn who_has_the_kernel_copy_waits() {
    waits("busybox", &["busybox", "cat", "follow/0"]);
    waits("bash", &["bash", "-c", "busybox cat follow/0 | busybox cat"]);
    let m = Mnt::new();
    let s = three(&m);
    let copy = m.store().parent().unwrap().join("copy");
    let script = format!("exec busybox cat follow/newest > {}", copy.display());
    let _cat = Follower::sh(&s, &script);
    let holds = |bytes: &[u8]| fs::read(&copy).is_ok_and(|copied| copied == bytes);
    eventually("what is there is copied", || holds(b"2\n"));
    append(s.join("events"), "3\n");
    eventually("what comes is copied", || holds(b"2\n3\n"));
    ok(&python(
        &s,
        r"
        into = os.pipe()[1]
        for name in ['follow/0', 'follow/newest', 'follow/next']:
            assert error(os.sendfile, into, os.open(name, 0), None, 99) == 'Invalid argument', name
        ",
    ));
}
