//! When what a program wrote becomes events: fsync, close, and who may do either.
//!
//! Where processes share an open file they are Python's, forked from one small script that runs
//! in the stream's directory: this process has many threads and must not fork.

mod batch;
mod failed;
mod lines;
mod one_event;
mod refused;
mod shared;

use crate::harness::*;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::process::Output;

/// The stream as its batches, each as `events` shows it: the events of one batch share their
/// commit time, those of two do only where they shared a sync, which takes two writers at once.
#[track_caller]
pub fn batches(stream: &Path) -> Vec<String> {
    let mut batches: Vec<String> = Vec::new();
    let mut last = None;
    for n in 0..count(stream) {
        let event = stream.join(format!("at/{n}"));
        let meta = fs::metadata(&event).unwrap();
        let time = Some((meta.mtime(), meta.mtime_nsec()));
        if last != time {
            batches.push(String::new());
            last = time;
        }
        let batch = batches.last_mut().unwrap();
        *batch += &text(&read(event));
        batch.push('\n');
    }
    assert_eq!(text(&read(stream.join("events"))), batches.concat());
    batches
}

/// Opens, writes, closes what is neither appended to nor there yet: `new` and `at/N`.
pub fn put(path: impl AsRef<Path>, bytes: impl AsRef<[u8]>) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes.as_ref())?;
    close(file)
}

/// What `python` scripts begin with.
const PRELUDE: &str = r"
import os, resource, signal, subprocess, sys, threading, time, traceback
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
signal.signal(signal.SIGINT, signal.SIG_DFL)
signal.alarm(120)  # nothing stays behind

def appender(path='events', flags=0):
    return os.open(path, os.O_WRONLY | os.O_APPEND | flags)

def count():
    return int(open('count').read())

def fork(body):
    pid = os.fork()
    if pid == 0:
        signal.alarm(120)
        try:
            body()
        except BaseException:
            traceback.print_exc()
            os._exit(70)
        os._exit(0)
    return pid

def wait(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def in_child(body):
    assert wait(fork(body)) == 0

def die(sig):
    if sig != signal.SIGKILL:
        signal.signal(sig, signal.SIG_DFL)
    os.kill(os.getpid(), sig)

class Gate:
    'One process waits until another has come this far.'
    def __init__(self):
        self.out, self.into = os.pipe()
    def open(self):
        os.write(self.into, b'.')
    def wait(self):
        os.read(self.out, 1)

def error(call, *args):
    'The name of the errno.'
    try:
        call(*args)
    except OSError as e:
        return os.strerror(e.errno)
";

/// Runs a Python script in the stream's directory.
pub fn python(stream: &Path, script: &str) -> Output {
    let first = script.lines().find(|line| !line.trim().is_empty()).unwrap_or("");
    let indent = first.len() - first.trim_start().len();
    let script: Vec<&str> = script.lines().map(|line| line.get(indent..).unwrap_or("")).collect();
    sh("python3 -I", &format!("{PRELUDE}\n{}", script.join("\n")), stream)
}

/// One write(2), all of it.
#[track_caller]
fn write_once(mut file: &File, bytes: &[u8]) {
    assert_eq!(file.write(bytes).unwrap(), bytes.len());
}

type Commit = fn(File) -> io::Result<()>;

/// The ways to say "now".
const COMMITS: [(&str, Commit); 3] =
    [("fsync", |file| file.sync_all()), ("fdatasync", |file| file.sync_data()), ("close", close)];

const LINE_BY_LINE: [(&str, i32); 3] =
    [("lines", 0), ("events", libc::O_SYNC), ("events", libc::O_DSYNC)];

fn line_appender(stream: &Path, (name, flags): (&str, i32)) -> File {
    let mut options = OpenOptions::new();
    options.write(true).custom_flags(libc::O_APPEND | flags);
    options.open(stream.join(name)).unwrap()
}

/// A disk on which there is no room for what [`too_much`] is, and a mount of a store on it.
pub fn small() -> (SmallDisk, Mnt) {
    let disk = SmallDisk::new(24);
    let store = disk.path().join("store");
    fs::create_dir(&store).unwrap();
    let m = Mnt::on(&store, &[]);
    (disk, m)
}

/// More than a small disk has room for.
pub fn too_much() -> Vec<u8> {
    vec![b'x'; 32 << 20]
}
