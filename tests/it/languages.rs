//! Programs in other languages, each with its ordinary file calls, in the directory of a stream.

use crate::commit::{batches, python};
use crate::harness::*;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use tempfile::TempDir;

/// What a command prints that must succeed in this directory.
#[track_caller]
fn run(dir: &Path, command: &[&str]) -> String {
    let mut process = Command::new(command[0]);
    process.args(&command[1..]).current_dir(dir).env("LC_ALL", "C.UTF-8").stdin(Stdio::null());
    ok(&process.output().unwrap_or_else(|e| panic!("{}: {e}", command[0])))
}

/// The program every language here writes: append two lines and close; append two lines, print
/// the count, sync, print the count, append what has no newline and close; print all events.
#[track_caller]
fn speaks(command: &[&str]) {
    let m = Mnt::new();
    let s = m.stream("s");
    assert_eq!(run(&s, command), "2\n4\none\ntwo\nthree\nfour\nfive\n", "{}", command[0]);
    assert_eq!(batches(&s), ["one\ntwo\n", "three\nfour\n", "five\n"], "{}", command[0]);
}

// Python.

#[test]
fn python_speaks() {
    need("python3", "python3");
    let program = r"
import os
def print_file(name):
    with open(name) as f:
        for line in f:
            print(line, end='')

with open('events', 'a') as f:
    f.write('one\n')
    print('two', file=f)
with open('events', 'a') as f:
    f.write('three\nfour\n')
    f.flush()
    print_file('count')
    os.fsync(f.fileno())
    print_file('count')
    f.write('five')
print_file('events')
";
    speaks(&["python3", "-c", program]);
}

/// The batches a Python script makes of a fresh stream.
#[track_caller]
fn by_python(script: &str) -> Vec<String> {
    need("python3", "python3");
    let m = Mnt::new();
    let s = m.stream("s");
    ok(&python(&s, script));
    batches(&s)
}

#[test]
fn python_flush_is_no_commit() {
    let made = by_python(
        r"
        with open('events', 'a') as f:
            print('one', file=f, flush=True)
            print('two', file=f, flush=True)
            assert count() == 0
        assert count() == 2
        ",
    );
    assert_eq!(made, ["one\ntwo\n"]);
}

#[test]
fn python_writes_one_batch_however_often_its_buffer_is_full() {
    let made = by_python(
        r"
        import json
        with open('events', 'a') as f:
            for n in range(1000):
                json.dump({'n': n, 'text': 'x' * 100}, f)
                f.write('\n')
            assert count() == 0
        assert [json.loads(line)['n'] for line in open('events')] == list(range(1000))
        ",
    );
    assert_eq!(made.len(), 1);
}

#[test]
fn python_logging_keeps_lines_open_and_is_visible_at_once() {
    let made = by_python(
        r"
        import logging
        log = logging.getLogger()
        log.addHandler(logging.FileHandler('lines'))
        for n in range(5):
            log.error('message %d', n)
            assert count() == n + 1
        ",
    );
    assert_eq!(made, (0..5).map(|n| format!("message {n}\n")).collect::<Vec<_>>());
}

#[test]
fn python_os_open_with_dsync_commits_each_write() {
    let made = by_python(
        r"
        fd = os.open('events', os.O_WRONLY | os.O_APPEND | os.O_DSYNC)
        os.write(fd, b'one\ntwo\n')
        assert count() == 2
        os.write(fd, b'three\n')
        assert count() == 3
        os.close(fd)
        ",
    );
    assert_eq!(made, ["one\ntwo\n", "three\n"]);
}

#[test]
fn python_pathlib_appends_and_reads() {
    let made = by_python(
        r"
        from pathlib import Path
        with Path('events').open('a') as f: f.write('one\ntwo\n')
        Path('new').write_bytes(b'three\0')
        assert Path('count').read_text() == '3\n'
        assert Path('events').read_bytes() == b'one\ntwo\nthree\0\n'
        assert Path('at/newest').read_bytes() == b'three\0'
        assert Path('from/2').stat().st_size == 7
        assert not Path('at/3').exists()
        assert error(Path('events').write_text, 'x') == 'Operation not permitted'
        ",
    );
    assert_eq!(made, ["one\ntwo\n", "three\0\n"]);
}

#[test]
fn python_shutil_copies_events_out_and_in() {
    let made = by_python(
        r"
        import shutil, tempfile
        with open('events', 'a') as f: f.write('one\ntwo\n' * 5_000)
        with tempfile.TemporaryDirectory() as d:
            for name in 'events', 'from/0', 'from/9990', 'at/1', 'count':
                shutil.copyfile(name, f'{d}/copy')
                assert open(f'{d}/copy').read() == open(name).read(), name
                shutil.copy(name, f'{d}/copy')
                assert open(f'{d}/copy').read() == open(name).read(), name
        shutil.copyfile('from/9997', 'new')
        with open('events', 'ab') as out, open('from/9999', 'rb') as f:
            shutil.copyfileobj(f, out)
        ",
    );
    assert_eq!(made[1..], ["two\none\ntwo\n\n", "two\ntwo\none\ntwo\n\n"]);
}

#[test]
fn python_appends_at_the_end_wherever_it_seeks() {
    let made = by_python(
        r"
        with open('events', 'ab') as f:
            assert f.tell() == 0
            f.write(b'one\n')
        with open('events', 'ab') as f:
            assert f.tell() == 4
            f.seek(0)
            assert f.tell() == 0
            f.write(b'two\n')
            f.flush()
            f.seek(1)
            f.write(b'three\n')
        with open('events', 'a+') as f:
            f.seek(4)
            assert f.read() == 'two\nthree\n'
            f.seek(0)
            assert f.readline() == 'one\n'
            f.write('four\n')
        ",
    );
    assert_eq!(made, ["one\n", "two\nthree\n", "four\n"]);
}

#[test]
fn python_mode_x_guards_an_index() {
    let made = by_python(
        r"
        with open('at/0', 'x') as f: f.write('zero')
        assert error(open, 'at/0', 'x') == 'File exists'
        assert error(open, 'at/2', 'x') == 'No such file or directory'
        with open('at/1', 'xb') as f: f.write(b'one')
        ",
    );
    assert_eq!(made, ["zero\n", "one\n"]);
}

#[test]
fn python_hands_an_open_stream_to_a_subprocess() {
    let made = by_python(
        r"
        with open('events', 'a') as f:
            subprocess.run(['seq', '3'], stdout=f, check=True)
            assert count() == 3
            subprocess.run('echo out; echo err >&2', shell=True, stdout=f, stderr=f, check=True)
        ",
    );
    assert_eq!(made.concat(), "1\n2\n3\nout\nerr\n");
}

// Node.

#[test]
fn node_speaks() {
    need("node", "nodejs");
    let program = r"
const fs = require('fs');
const print = name => process.stdout.write(fs.readFileSync(name));
fs.appendFileSync('events', 'one\ntwo\n');
const fd = fs.openSync('events', 'a');
fs.writeSync(fd, 'three\n');
fs.writeSync(fd, 'four\n');
print('count');
fs.fsyncSync(fd);
print('count');
fs.writeSync(fd, 'five');
fs.closeSync(fd);
print('events');
";
    speaks(&["node", "-e", program]);
}

#[test]
fn node_streams_write_one_batch_and_read_it() {
    need("node", "nodejs");
    let m = Mnt::new();
    let s = m.stream("s");
    let program = r"
const fs = require('fs');
const out = fs.createWriteStream('events', { flags: 'a' });
for (let n = 0; n < 1000; n++) out.write(`line ${n} ${'x'.repeat(200)}\n`);
out.end('last');
out.on('close', () => fs.createReadStream('events').pipe(process.stdout));
";
    let expected: String = (0..1000).map(|n| format!("line {n} {}\n", "x".repeat(200))).collect();
    let said = run(&s, &["node", "-e", program]);
    assert!(said == expected + "last\n");
    assert_eq!(batches(&s), [said]);
}

#[test]
fn node_promises_append_and_read_line_by_line() {
    need("node", "nodejs");
    let m = Mnt::new();
    let s = m.stream("s");
    let program = r"
const fs = require('fs'), { once } = require('events');
(async () => {
    await fs.promises.appendFile('events', 'one\ntwo\n');
    await fs.promises.writeFile('new', 'three');
    await fs.promises.writeFile('at/3', 'four', { flag: 'wx' });
    await fs.promises.writeFile('at/3', 'x', { flag: 'wx' }).catch(e => console.log(e.code));
    await fs.promises.writeFile('events', 'x').catch(e => console.log(e.code));
    const file = await fs.promises.open('from/1');
    for await (const line of file.readLines()) console.log(line);
})();
";
    assert_eq!(run(&s, &["node", "-e", program]), "EEXIST\nEPERM\ntwo\nthree\nfour\n");
    assert_eq!(batches(&s), ["one\ntwo\n", "three\n", "four\n"]);
}

// Perl.

#[test]
fn perl_speaks() {
    need("perl", "perl");
    let program = r#"
use strict; use warnings; use IO::Handle;
sub print_file { open(my $f, '<', $_[0]) or die $!; print while <$f>; }
open(my $f, '>>', 'events') or die $!;
print $f "one\n"; print $f "two\n";
close($f) or die $!;
open($f, '>>', 'events') or die $!;
print $f "three\nfour\n";
$f->flush or die $!;
print_file('count');
$f->sync or die $!;
print_file('count');
print $f "five";
close($f) or die $!;
print_file('events');
"#;
    speaks(&["perl", "-e", program]);
}

#[test]
fn perl_reads_random_places_and_hears_of_errors() {
    need("perl", "perl");
    let m = Mnt::new();
    let s = m.stream("s");
    append(s.join("events"), "one\ntwo\nthree\n");
    let program = r#"
use strict; use warnings; use Fcntl;
open(my $f, '<', 'events') or die $!;
seek($f, -6, 2) or die $!; print scalar <$f>;
seek($f, 4, 0) or die $!; print scalar <$f>;
print -s 'events', "\n";
open($f, '>', 'events') and die; print "$!\n";
sysopen($f, 'from/1', O_WRONLY | O_APPEND) and die; print "$!\n";
"#;
    let expected = "three\ntwo\n14\nOperation not permitted\nFile exists\n";
    assert_eq!(run(&s, &["perl", "-e", program]), expected);
}

// awk, which cannot sync but close and open again.

/// The awks that are here, gawk and busybox's among them.
fn awks() -> Vec<Vec<&'static str>> {
    need("gawk", "gawk");
    need("busybox", "busybox");
    need("mawk", "mawk");
    vec![vec!["gawk"], vec!["busybox", "awk"], vec!["mawk"]]
}

#[test]
fn awks_speak() {
    let program = r#"
function print_file(name,   line) {
    while ((getline line < name) > 0) print line
    close(name)
}
BEGIN {
    print "one" >> "events"; print "two" >> "events"
    close("events")
    print "three" >> "events"; print "four" >> "events"
    fflush("events")
    print_file("count")
    close("events")
    print_file("count")
    printf "five" >> "events"
    close("events")
    print_file("events")
}"#;
    for awk in awks() {
        speaks(&[&awk[..], &[program]].concat());
    }
}

#[test]
fn awks_split_one_stream_into_others() {
    for awk in awks() {
        let m = Mnt::new();
        let (all, a, b) = (m.stream("all"), m.stream("a"), m.stream("b"));
        append(all.join("events"), "a 1\nb 2\na 3\nb 4\na 5\n");
        // A child in the middle inherits both open files.
        let program = r#"{ print $2 >> ($1 "/events"); fflush($1 "/events"); system("true") }"#;
        run(m.path(), &[&awk[..], &[program, "all/events"]].concat());
        assert_eq!(batches(&a), ["1\n3\n5\n"], "{awk:?}");
        assert_eq!(batches(&b), ["2\n4\n"], "{awk:?}");
    }
}

// Java.

#[test]
fn java_speaks() {
    need("java", "default-jdk-headless");
    let dir = TempDir::new().unwrap();
    let source = dir.path().join("Speaks.java");
    let program = r#"
import java.io.*;
import java.nio.file.*;
import java.util.List;
import static java.nio.file.StandardOpenOption.*;

public class Speaks {
    static void print(String name) throws IOException {
        try (var in = new BufferedReader(new FileReader(name))) {
            for (String line; (line = in.readLine()) != null;) System.out.println(line);
        }
    }
    public static void main(String[] args) throws IOException {
        Files.write(Path.of("events"), List.of("one", "two"), CREATE, APPEND);
        try (var out = new FileOutputStream("events", true)) {
            out.write("three\n".getBytes());
            out.write("four\n".getBytes());
            print("count");
            out.getFD().sync();
            print("count");
            out.write("five".getBytes());
        }
        print("events");
    }
}
"#;
    fs::write(&source, program).unwrap();
    speaks(&["java", source.to_str().unwrap()]);
}

#[test]
fn java_nio_appends_guards_and_reads() {
    need("java", "default-jdk-headless");
    let dir = TempDir::new().unwrap();
    let source = dir.path().join("Nio.java");
    let program = r#"
import java.io.*;
import java.nio.ByteBuffer;
import java.nio.channels.FileChannel;
import java.nio.file.*;
import static java.nio.file.StandardOpenOption.*;

public class Nio {
    static final Path EVENTS = Path.of("events"), ONE = Path.of("at/1");
    public static void main(String[] args) throws IOException {
        try (var channel = FileChannel.open(EVENTS, APPEND)) {
            channel.write(ByteBuffer.wrap("zero\n".getBytes()));
            channel.force(false);
            System.out.println(Files.size(EVENTS));
        }
        Files.write(ONE, "one".getBytes(), CREATE_NEW, WRITE);
        try {
            Files.write(ONE, "x".getBytes(), CREATE_NEW, WRITE);
        } catch (FileAlreadyExistsException e) {
            System.out.println("taken");
        }
        try (var writer = Files.newBufferedWriter(EVENTS, APPEND)) {
            for (int n = 0; n < 10000; n++) writer.write("line " + n + "\n");
        }
        try (var file = new RandomAccessFile("from/1", "r")) {
            file.seek(file.length() - 10);
            System.out.println(file.readLine());
        }
        System.out.println(new String(Files.readAllBytes(ONE)));
        System.out.println(Files.readAllLines(EVENTS).size());
    }
}
"#;
    fs::write(&source, program).unwrap();
    let m = Mnt::new();
    let s = m.stream("s");
    let said = run(&s, &["java", source.to_str().unwrap()]);
    assert_eq!(said, "5\ntaken\nline 9999\none\n10002\n");
    assert_eq!(count(&s), 10002);
}

// C.

#[test]
fn c_speaks() {
    need("cc", "gcc");
    let dir = TempDir::new().unwrap();
    let program = r#"
#include <assert.h>
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

static void print(const char *name) {
    char line[100];
    FILE *f = fopen(name, "r");
    assert(f);
    while (fgets(line, sizeof line, f)) fputs(line, stdout);
    assert(fclose(f) == 0);
}

int main(void) {
    int fd = open("events", O_WRONLY | O_APPEND);
    assert(write(fd, "one\nt", 5) == 5 && write(fd, "wo\n", 3) == 3 && close(fd) == 0);
    FILE *f = fopen("events", "a");
    assert(f && fputs("three\nfour\n", f) >= 0 && fflush(f) == 0);
    print("count");
    assert(fdatasync(fileno(f)) == 0);
    print("count");
    assert(fprintf(f, "five") == 4 && fclose(f) == 0);
    print("events");
}
"#;
    fs::write(dir.path().join("speaks.c"), program).unwrap();
    run(dir.path(), &["cc", "-o", "speaks", "speaks.c"]);
    speaks(&[dir.path().join("speaks").to_str().unwrap()]);
}
