//! What the mounts of a store on different hosts tell each other: which streams they changed. So a host
//! that waits for events of a thousand streams asks for a page of each other host, not for one of each
//! stream.
//!
//! Each mount has a page of its own, the file `.news/N` that it holds the lock of: how many changes it
//! told of ever, and the names of the last of them, by their checksums. It is a hint: without it, or when
//! a host dies before it told, the streams are looked at in turn.

use std::collections::HashSet;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use crate::sys::{crc32c, lock};

/// So often a second a host tells, and asks.
pub const TOLD_A_SECOND: u32 = 16;

/// Where the pages are in the store.
const DIR: &str = ".news";
/// So many names are in a page, behind the number of all that were told ever; that comes again at its
/// end, for a page that is read while it is written.
const NAMES: usize = (4096 - 16) / 4;

/// Aligned, as O_DIRECT wants it.
#[repr(C, align(4096))]
#[derive(Debug)]
struct Page([u8; 4096]);

impl Page {
    fn told(&self) -> Option<u64> {
        let (begin, end) = (self.0.first_chunk()?, self.0.last_chunk()?);
        (begin == end).then(|| u64::from_le_bytes(*begin))
    }

    fn tell(&mut self, names: &[u32]) {
        let mut told = self.told().unwrap_or_default();
        for name in names {
            let at = 8 + (told % NAMES as u64) as usize * 4;
            self.0[at..at + 4].copy_from_slice(&name.to_le_bytes());
            told += 1;
        }
        self.0[..8].copy_from_slice(&told.to_le_bytes());
        self.0[4088..].copy_from_slice(&told.to_le_bytes());
    }

    /// The names that were told behind the first `seen`; None where they are not all there any more.
    fn since(&self, seen: u64) -> Option<impl Iterator<Item = u32>> {
        let told = self.told()?;
        let all = (seen..=seen + NAMES as u64).contains(&told);
        let name = |told: u64| {
            let at = 8 + (told % NAMES as u64) as usize * 4;
            self.0[at..].first_chunk().map_or(0, |name| u32::from_le_bytes(*name))
        };
        all.then(|| (seen..told).map(name))
    }
}

/// What was heard of other hosts.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Heard {
    /// Any stream may have changed.
    any: bool,
    names: HashSet<u32>,
}

impl Heard {
    /// Whether the stream of this name may have changed.
    pub(crate) fn of(&self, name: &Path) -> bool {
        self.any || self.names.contains(&key(name))
    }
}

/// Names that have the same are taken for one: it costs a look.
pub(crate) fn key(name: &Path) -> u32 {
    crc32c(0, name.as_os_str().as_encoded_bytes())
}

/// The pages of a store.
#[derive(Debug)]
pub struct News {
    dir: PathBuf,
    /// To be told.
    pending: Mutex<Vec<u32>>,
    /// Our page, with its number.
    own: Mutex<Option<(usize, File, Page)>>,
    /// Those that are there, and how much was told in each that we know of.
    others: Mutex<Vec<(File, u64)>>,
}

impl News {
    pub(crate) fn new(store: &Path) -> News {
        News {
            dir: store.join(DIR),
            pending: Mutex::default(),
            own: Mutex::default(),
            others: Mutex::default(),
        }
    }

    /// The stream of this name changed: others hear of it when it is sent.
    pub(crate) fn tell(&self, name: &Path) {
        let mut pending = lock(&self.pending);
        // More than a page holds are as good as all.
        if pending.len() <= NAMES {
            pending.push(key(name));
        }
    }

    /// Writes what is to be told to our page.
    ///
    /// # Errors
    /// It is tried again the next time.
    pub fn send(&self) -> io::Result<()> {
        let mut own = lock(&self.own);
        let (number, file, mut page) = match own.take() {
            Some(own) => own,
            None => self.claim()?,
        };
        let names = std::mem::take(&mut *lock(&self.pending));
        if !names.is_empty() {
            page.tell(&names);
            let sent = file.write_all_at(&page.0, 0);
            sent.inspect_err(|_| lock(&self.pending).extend(names))?;
        }
        *own = Some((number, file, page));
        Ok(())
    }

    /// The first page that no other mount has.
    fn claim(&self) -> io::Result<(usize, File, Page)> {
        match DirBuilder::new().mode(0o700).create(&self.dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        for number in 0.. {
            let file = self.open(number, true)?;
            match file.try_lock() {
                Ok(()) => {
                    // Whoever had it before was heard, too.
                    let page = read(&file)?;
                    return Ok((number, file, page));
                }
                Err(std::fs::TryLockError::WouldBlock) => {}
                Err(std::fs::TryLockError::Error(error)) => return Err(error),
            }
        }
        Err(io::ErrorKind::StorageFull.into())
    }

    fn open(&self, number: usize, own: bool) -> io::Result<File> {
        let mut options = OpenOptions::new();
        options.read(true).write(own).create(own).mode(0o600);
        options.custom_flags(libc::O_DIRECT | libc::O_NOFOLLOW);
        options.open(self.dir.join(number.to_string()))
    }

    /// What others told since the last time. `new`: also those whose pages were not there then.
    pub(crate) fn hear(&self, new: bool) -> Heard {
        let (own, mut others) = (lock(&self.own).as_ref().map(|own| own.0), lock(&self.others));
        let mut heard = Heard::default();
        let mut hear = || {
            while new || others.is_empty() {
                match self.open(others.len(), false) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                    file => others.push((file?, 0)),
                }
            }
            for (number, (file, seen)) in others.iter_mut().enumerate() {
                if own == Some(number) {
                    continue;
                }
                let page = read(file)?;
                match page.since(*seen) {
                    Some(names) => heard.names.extend(names),
                    None => heard.any = true,
                }
                *seen = page.told().unwrap_or(*seen);
            }
            Ok::<_, io::Error>(())
        };
        if hear().is_err() {
            // They may be dead, and STORE be mounted anew.
            others.clear();
            heard.any = true;
        }
        heard
    }
}

fn read(file: &File) -> io::Result<Page> {
    let mut page = Page([0; 4096]);
    file.read_at(&mut page.0, 0)?;
    Ok(page)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_is_heard_once_by_each() {
        let dir = std::env::temp_dir().join(format!("smolstore-news-{}", std::process::id()));
        std::fs::create_dir(&dir).unwrap();
        let hosts = [0, 1, 2].map(|_| News::new(&dir));
        assert!(hosts[1].hear(true).names.is_empty());
        hosts.iter().for_each(|host| host.send().unwrap());
        assert!(hosts[1].hear(true) == Heard::default());
        hosts[0].tell(Path::new("s"));
        hosts[0].tell(Path::new("t"));
        assert_eq!(hosts[1].hear(false), Heard::default());
        hosts[0].send().unwrap();
        for host in &hosts[1..] {
            let heard = host.hear(true);
            assert!(["s", "t"].map(Path::new).into_iter().all(|name| heard.of(name)));
            assert!(!heard.of(Path::new("u")));
            assert_eq!(host.hear(false), Heard::default());
        }
        assert_eq!(hosts[0].hear(true), Heard::default());
        // More than a page holds.
        (0..=NAMES).for_each(|_| hosts[0].tell(Path::new("s")));
        hosts[0].send().unwrap();
        assert!(hosts[1].hear(false).any);
        assert_eq!(hosts[1].hear(false), Heard::default());
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_page_that_is_being_written_is_read_again() {
        let mut page = Page([0; 4096]);
        page.tell(&[7]);
        let torn = Page(std::array::from_fn(|i| if i < 8 { page.0[i] } else { 0 }));
        assert!(torn.since(0).is_none());
        assert_eq!(page.since(0).unwrap().collect::<Vec<_>>(), [7]);
    }
}
