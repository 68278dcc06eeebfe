//! A plain file, and a stream through the mount: the same open, write, fdatasync, close, with the
//! same buffers. Two things differ, for they are what smolstore is about: close commits there, so
//! that only the plain file is synced before it is closed; and it has `from/N` and `follow/N` for
//! what takes a computation, or polling, with a file.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::IntoRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::{Client, workloads::add};

#[derive(Clone, Copy, PartialEq)]
enum How {
    /// One open file; write, fdatasync.
    Sync,
    /// One open file with O_DSYNC; write.
    Dsync,
    /// Open, write, close.
    Close,
}

pub struct Files {
    directory: PathBuf,
    events: PathBuf,
    mount: bool,
    how: How,
    open: Option<File>,
    lines: Vec<u8>,
}

impl Files {
    /// `kind` is `mount` or `plain`, a colon, and how to write.
    pub fn connect(kind: &str, root: &str, stream: &str) -> Files {
        let (kind, how) = kind.split_once(':').unwrap_or((kind, "close"));
        let directory = Path::new(root).join(stream);
        let files = Files {
            events: directory.join("events"),
            mount: match kind {
                "mount" => true,
                "plain" => false,
                other => panic!("no store of kind {other:?}"),
            },
            how: match how {
                "sync" => How::Sync,
                "dsync" => How::Dsync,
                "close" => How::Close,
                other => panic!("no way to write {other:?}"),
            },
            directory,
            open: None,
            lines: Vec::new(),
        };
        files.make();
        files
    }

    /// The directory and, where it does not come with it, the file; their names durable.
    fn make(&self) {
        let _ = fs::create_dir(&self.directory);
        if !self.mount && !self.events.exists() {
            // Another writer may be doing the same.
            let mut options = OpenOptions::new();
            options.append(true).create(true);
            options.open(&self.events).expect("create");
            let sync = |path: &Path| File::open(path).and_then(|d| d.sync_all());
            sync(&self.directory).expect("fsync of the directory");
            let above = self.directory.parent().expect("a parent");
            sync(above).expect("fsync of the directory above");
        }
    }

    fn open(&self) -> File {
        let mut options = OpenOptions::new();
        options.append(true);
        if self.how == How::Dsync {
            options.custom_flags(libc::O_DSYNC);
        }
        options.open(&self.events).expect("open")
    }
}

fn close(file: File) {
    let closed = unsafe { libc::close(file.into_raw_fd()) };
    assert_eq!(closed, 0, "close: {}", std::io::Error::last_os_error());
}

impl Client for Files {
    fn append(&mut self, event: &[u8], times: usize) {
        if times == 1 || self.lines.len() != times * (event.len() + 1) {
            self.lines.clear();
            for _ in 0..times {
                self.lines.extend_from_slice(event);
                self.lines.push(b'\n');
            }
        }
        if self.how == How::Close {
            let mut file = self.open();
            file.write_all(&self.lines).expect("write");
            if !self.mount {
                file.sync_data().expect("fdatasync");
            }
            return close(file);
        }
        if self.open.is_none() {
            self.open = Some(self.open());
        }
        let file = self.open.as_mut().expect("just opened");
        file.write_all(&self.lines).expect("write");
        if self.how == How::Sync {
            file.sync_data().expect("fdatasync");
        }
    }

    fn scan(&mut self) -> (u64, u64) {
        let mut file = File::open(&self.events).expect("open");
        let mut buffer = vec![0; 1 << 20];
        let (mut bytes, mut sum) = (0, 0);
        loop {
            match file.read(&mut buffer).expect("read") {
                0 => break,
                read => {
                    bytes += read as u64;
                    sum += add(&buffer[..read]);
                }
            }
        }
        assert!(sum > 0);
        (bytes / 101, bytes)
    }

    fn seek(&mut self, n: u64) {
        let mut line = [0; 101];
        if self.mount {
            let file = File::open(self.directory.join(format!("from/{n}"))).expect("open");
            file.read_exact_at(&mut line, 0).expect("read");
            assert_eq!(line[100], b'\n');
            close(file);
        } else {
            // Of a file where every line has the same length; others would need an index.
            let file = File::open(&self.events).expect("open");
            file.read_exact_at(&mut line, n * 101).expect("read");
            close(file);
        }
    }

    fn follow(&mut self, ready: &mut dyn FnMut(), each: &mut dyn FnMut(&[u8]) -> bool) {
        assert!(self.mount, "nobody says when a plain file grows");
        let mut file = File::open(self.directory.join("follow/next")).expect("open");
        ready();
        let (mut buffer, mut filled) = (vec![0; 4096], 0);
        loop {
            let read = file.read(&mut buffer[filled..]).expect("read");
            assert!(read > 0, "a follower never comes to the end");
            filled += read;
            while let Some(end) = buffer[..filled].iter().position(|&byte| byte == b'\n') {
                if !each(&buffer[..end]) {
                    return;
                }
                buffer.copy_within(end + 1..filled, 0);
                filled -= end + 1;
            }
        }
    }
}
