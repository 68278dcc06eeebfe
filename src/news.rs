//! What the mounts of a store on different hosts tell each other: which streams they changed. So a host
//! that waits for events of a thousand streams asks for a page of each other host, not for one of each
//! stream.
//!
//! Each mount has a page of its own, the file `.news/N` that it holds the lock of: counters of what it
//! changed, one for all streams whose names have the same checksum modulo their number. It is a hint:
//! without it, or when a host dies before it told, the streams are looked at in turn.

use std::collections::HashSet;
use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use crate::sys::{crc32c, lock};

/// So often a second a host tells, and asks.
pub const TOLD_A_SECOND: u32 = 16;

/// Where the pages are in the store.
const DIR: &str = ".news";
/// Counters in a page.
pub const WORDS: usize = 512;

/// Aligned, as O_DIRECT wants it. A counter that is read while it is written differs from what it was,
/// or will the next time.
#[repr(C, align(4096))]
#[derive(Debug)]
struct Page([[u8; 8]; WORDS]);

/// For each counter whether a stream that has it may have changed.
pub type Heard = [bool; WORDS];

/// The counter of a stream. Another one that has the same costs a look.
pub(crate) fn word(name: &Path) -> usize {
    crc32c(0, name.as_os_str().as_encoded_bytes()) as usize % WORDS
}

/// The pages of a store.
#[derive(Debug, Default)]
pub struct News {
    dir: PathBuf,
    /// To be counted up.
    pending: Mutex<HashSet<usize>>,
    /// Our page.
    own: Mutex<Option<(File, Page)>>,
    /// Those that are there, as they were when last read; ours, too: not all that is made visible here wakes
    /// those who wait here.
    all: Mutex<Vec<(File, Page)>>,
}

impl News {
    pub(crate) fn new(store: &Path) -> News {
        News { dir: store.join(DIR), ..News::default() }
    }

    /// The stream of this name changed: others hear of it when it is sent.
    pub(crate) fn tell(&self, name: &Path) {
        lock(&self.pending).insert(word(name));
    }

    /// Writes what is to be told to our page.
    ///
    /// # Errors
    /// It is tried again the next time.
    pub fn send(&self) -> io::Result<()> {
        let mut own = lock(&self.own);
        let (file, mut page) = match own.take() {
            Some(own) => own,
            None => self.claim()?,
        };
        let words = std::mem::take(&mut *lock(&self.pending));
        if !words.is_empty() {
            for word in &words {
                let count = u64::from_le_bytes(page.0[*word]);
                page.0[*word] = count.wrapping_add(1).to_le_bytes();
            }
            let sent = file.write_all_at(page.0.as_flattened(), 0);
            sent.inspect_err(|_| lock(&self.pending).extend(words))?;
        }
        *own = Some((file, page));
        Ok(())
    }

    /// The first page that no other mount has. It counts on from where it is.
    fn claim(&self) -> io::Result<(File, Page)> {
        // Where it is not there then, no file can be made in it.
        let _ = DirBuilder::new().mode(0o700).create(&self.dir);
        let mut number = 0;
        loop {
            let file = self.open(number, true)?;
            match file.try_lock() {
                Err(TryLockError::WouldBlock) => number += 1,
                locked => {
                    locked?;
                    let page = read(&file)?;
                    return Ok((file, page));
                }
            }
        }
    }

    fn open(&self, number: usize, own: bool) -> io::Result<File> {
        let mut options = OpenOptions::new();
        options.read(true).write(own).create(own).mode(0o600);
        options.custom_flags(libc::O_DIRECT | libc::O_NOFOLLOW);
        options.open(self.dir.join(number.to_string()))
    }

    /// What all told since the last time. `new`: also those whose pages were not there then.
    ///
    /// # Errors
    /// Any stream may have changed.
    pub(crate) fn hear(&self, new: bool) -> io::Result<Heard> {
        let (mut all, mut heard) = (lock(&self.all), [false; WORDS]);
        // Files that fail may be dead, and STORE be mounted anew.
        let mut pages = std::mem::take(&mut *all);
        while new || pages.is_empty() {
            match self.open(pages.len(), false) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                file => pages.push((file?, Page([[0; 8]; WORDS]))),
            }
        }
        for (file, before) in &mut pages {
            let page = read(file)?;
            heard = std::array::from_fn(|word| heard[word] || page.0[word] != before.0[word]);
            *before = page;
        }
        *all = pages;
        Ok(heard)
    }
}

fn read(file: &File) -> io::Result<Page> {
    let mut page = Page([[0; 8]; WORDS]);
    file.read_at(page.0.as_flattened_mut(), 0)?;
    Ok(page)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The streams that this host heard of.
    fn heard(host: &News, new: bool) -> Vec<usize> {
        let heard = host.hear(new).unwrap();
        (0..WORDS).filter(|word| heard[*word]).collect()
    }

    fn words(names: &[&str]) -> Vec<usize> {
        let mut words: Vec<_> = names.iter().map(|name| word(Path::new(name))).collect();
        words.sort_unstable();
        words
    }

    #[test]
    fn what_is_told_is_heard_once_by_each() {
        let dir = tempfile::tempdir().unwrap();
        let hosts = [0, 1, 2].map(|_| News::new(dir.path()));
        let tell = |host: &News, names: &[&str]| {
            names.iter().for_each(|name| host.tell(Path::new(name)));
        };
        assert!(heard(&hosts[1], true).is_empty());
        hosts.iter().for_each(|host| host.send().unwrap());
        assert!(heard(&hosts[1], true).is_empty());
        tell(&hosts[0], &["s", "t", "s"]);
        assert!(heard(&hosts[1], false).is_empty());
        hosts[0].send().unwrap();
        for host in &hosts[1..] {
            assert_eq!(heard(host, true), words(&["s", "t"]));
            assert!(heard(host, false).is_empty());
        }
        assert_eq!(heard(&hosts[0], true), words(&["s", "t"]), "itself, too");
        // Of two at once, one of them a mount that came since and got the page of one that went.
        let [first, second, third] = hosts;
        drop(first);
        let new = News::new(dir.path());
        for (host, name) in [(&new, "t"), (&second, "u")] {
            tell(host, &[name]);
            host.send().unwrap();
        }
        assert_eq!(heard(&third, false), words(&["t", "u"]));
        assert_eq!(heard(&second, false), words(&["t", "u"]));
        assert_eq!(heard(&new, true), words(&["s", "t", "u"]), "that of one that went, too");
    }

    #[test]
    fn what_could_not_be_told_or_heard_is_the_next_time() {
        let dir = tempfile::tempdir().unwrap();
        let store = dir.path().join("store");
        let hosts = [0, 1].map(|_| News::new(&store));
        hosts[0].tell(Path::new("s"));
        assert!(hosts[0].send().is_err());
        std::fs::create_dir(&store).unwrap();
        hosts[0].send().unwrap();
        assert_eq!(heard(&hosts[1], true), words(&["s"]));
        // It cannot be read as a file.
        std::fs::create_dir(store.join(".news/1")).unwrap();
        assert!(hosts[1].hear(true).is_err());
        std::fs::remove_dir(store.join(".news/1")).unwrap();
        assert_eq!(heard(&hosts[1], false), words(&["s"]));
    }
}
