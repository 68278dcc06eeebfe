//! Names -> streams.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Weak};
use std::thread;
use std::time::Duration;

use crate::disk::{Disk, MARK, Names, Real, is_stream_name};
use crate::error::{Error, Result};
use crate::status::Status;
use crate::stream::{Shared, Stream};
use crate::sys::lock;

/// So often it is tried again to remove a stream at which others look.
const TRIES: usize = 64;
/// What `.smolstore` says.
const FORMAT: &str = "smolstore 2\n";

/// A directory of streams.
///
/// ```
/// # let dir = tempfile::tempdir().unwrap();
/// # let path = dir.path();
/// use smolstore::{Error, Store};
///
/// let store = Store::open(path, false)?;
/// store.create("orders", 0o755)?;
/// let orders = store.stream("orders")?;
/// assert_eq!(orders.append(["created", "paid"], None)?, 0);
/// // Only if it becomes event 2; and once more, to see it refused.
/// assert_eq!(orders.append([b"any\0bytes\n"], Some(2))?, 2);
/// assert_eq!(orders.append(["late"], Some(2)), Err(Error::Exists));
/// assert_eq!(orders.count()?, 3);
/// assert_eq!(orders.event(1)?.bytes, b"paid");
/// let from_1: Vec<_> = orders.read(1)?.map(|event| event.map(|e| e.bytes)).collect::<Result<_, _>>()?;
/// assert_eq!(from_1, [&b"paid"[..], b"any\0bytes\n"]);
/// # Ok::<(), Error>(())
/// ```
pub struct Store<D: Disk = Real> {
    pub(crate) shared: Arc<Shared<D>>,
    streams: Mutex<HashMap<OsString, Weak<Stream<D>>>>,
}

impl Store<Real> {
    /// Opens the store in the directory `path`, an empty directory becomes one. A store opened for
    /// reading only is never written to.
    ///
    /// # Errors
    /// [`Error::Foreign`] for a directory that holds something else, or a later format.
    pub fn open(path: impl AsRef<Path>, read_only: bool) -> Result<Store> {
        // Who only reads harms nobody.
        let disk = Real::new(path.as_ref(), read_only)?;
        Store::with_log(disk, read_only, Box::new(|_| {}))
    }

    /// Like [`Store::open`], in the directory `disk`; what an operator should know is handed to `log`, a
    /// line each.
    pub fn with_log(
        disk: Real,
        read_only: bool,
        log: Box<dyn Fn(&str) + Send + Sync>,
    ) -> Result<Store> {
        prepare(&disk, read_only)?;
        disk.probe(Path::new(MARK))?;
        Ok(Store::on(disk, read_only, log))
    }
}

/// Makes sure that the directory holds a store of a format we know.
fn prepare(disk: &Real, read_only: bool) -> Result<()> {
    let path = disk.root();
    let os = Error::os(path.display());
    let mut held = OsString::new();
    // Another mount may be making it a store, and what it makes be seen before the mark.
    for _ in 0..10 {
        if marked(&path.join(MARK))? {
            return Ok(());
        }
        match foreign(path) {
            // A store without streams.
            Ok(None) if read_only => return Ok(()),
            Ok(None) => return mark(disk).map_err(os),
            Ok(Some(name)) => held = name,
            Err(error) => return Err(os(error)),
        }
        thread::sleep(Duration::from_millis(20));
    }
    Err(Error::Foreign(format!(
        "{}: not a store, for it has no file .smolstore, and not empty: it holds {held:?}",
        path.display()
    )))
}

/// Whether the file is there that makes a directory a store, of a format we know.
fn marked(mark: &Path) -> Result<bool> {
    match fs::read_to_string(mark) {
        Ok(format) if format == FORMAT => Ok(true),
        Ok(format) => Err(Error::Foreign(format!(
            "{}: format {:?} is not known to this version of smolstore",
            mark.display(),
            format.trim_end()
        ))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::os(mark.display())(error)),
    }
}

/// The name of something that no directory holds which is to become a store.
fn foreign(path: &Path) -> io::Result<Option<OsString>> {
    for entry in fs::read_dir(path)? {
        let name = entry?.file_name();
        // What a crash left of an attempt to write the mark.
        let unfinished = name.as_encoded_bytes().starts_with(b".smolstore.");
        if name != "lost+found" && !unfinished {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

/// Makes a directory a store, whole or not at all: the name comes last.
fn mark(disk: &Real) -> io::Result<()> {
    let path = disk.root();
    // Of no other host.
    let new = path.join(format!("{MARK}.{}.{}", std::process::id(), disk.now()));
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o644).open(&new)?;
    io::Write::write_all(&mut file, FORMAT.as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, path.join(MARK))?;
    fs::File::open(path)?.sync_all()
}

impl<D: Disk> Store<D> {
    /// A store on any disk, which must be one already.
    pub fn on(disk: D, read_only: bool, log: Box<dyn Fn(&str) + Send + Sync>) -> Store<D> {
        Store { shared: Arc::new(Shared::new(disk, read_only, log)), streams: Mutex::default() }
    }

    /// Whether nothing may be changed.
    pub fn read_only(&self) -> bool {
        self.shared.read_only
    }

    pub(crate) fn log(&self, line: &str) {
        (self.shared.log)(line);
    }

    /// What was done since it was opened.
    pub fn status(&self) -> &Status {
        &self.shared.status
    }

    /// The names of the streams, in no order.
    pub fn streams(&self) -> Result<Names> {
        self.shared.disk.streams().map_err(Error::os("the store"))
    }

    /// Creates a stream. Its name is durable with its first event.
    ///
    /// # Errors
    /// [`Error::Exists`]; [`Error::Invalid`] for a name that begins with a dot.
    pub fn create(&self, name: impl AsRef<OsStr>, mode: u32) -> Result<()> {
        let name = self.changeable(name.as_ref())?;
        match self.shared.disk.create_dir(&name, mode) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(Error::Exists),
            result => result.map_err(Error::os(name.display())),
        }
    }

    /// Opens a stream.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn stream(&self, name: impl AsRef<OsStr>) -> Result<Arc<Stream<D>>> {
        let name = name.as_ref();
        if !is_stream_name(name) {
            return Err(Error::NotFound);
        }
        let log = Path::new(name).join("log");
        let known = lock(&self.streams).get(name).and_then(Weak::upgrade);
        if let Some(stream) = known
            // Another process may have given the name to another stream.
            && self.shared.disk.identity(&log).ok() == Some(stream.identity())
        {
            return Ok(stream);
        }
        let stream = Stream::new(self.shared.clone(), name.into());
        // Opens it, and finds out whether it is there.
        stream.tip()?;
        let mut streams = lock(&self.streams);
        if let Some(known) = streams.get(name).and_then(Weak::upgrade)
            && known.identity() == stream.identity()
        {
            // Another thread was faster: there must be one queue for each stream.
            stream.close();
            return Ok(known);
        }
        if streams.len() >= 1024 && streams.len().is_power_of_two() {
            streams.retain(|_, stream| stream.strong_count() > 0);
        }
        streams.insert(name.into(), Arc::downgrade(&stream));
        Ok(stream)
    }

    /// Removes a stream that holds no events.
    ///
    /// # Errors
    /// [`Error::NotEmpty`], [`Error::NotFound`].
    pub fn remove(&self, name: impl AsRef<OsStr>) -> Result<()> {
        let name = self.changeable(name.as_ref())?;
        let stream = self.stream(&name)?;
        self.remove_but(&name, &stream, None)
    }

    /// Removes it unless its name leads to the stream `other` by now.
    fn remove_but(&self, name: &Path, stream: &Arc<Stream<D>>, other: Option<u64>) -> Result<()> {
        let mut removed = self.try_to_remove(name, stream, other);
        for _ in 0..TRIES {
            let Err(Error::Os { errno: libc::ENOTEMPTY, .. }) = removed else {
                break;
            };
            // Who looks at it meanwhile makes its files anew. If it holds what is not ours, the stream
            // stays, empty.
            removed = match self.stream(name) {
                Err(Error::NotFound) => Ok(()),
                again => again.and_then(|again| self.try_to_remove(name, &again, other)),
            };
        }
        // Who hears of it looks, and must not make its files anew between two tries.
        self.shared.disk.tell(name);
        removed?;
        lock(&self.streams).remove(name.as_os_str());
        Ok(())
    }

    /// ENOTEMPTY where there is something left in its directory.
    fn try_to_remove(
        &self,
        name: &Path,
        stream: &Arc<Stream<D>>,
        other: Option<u64>,
    ) -> Result<()> {
        let (disk, os) = (&self.shared.disk, || Error::os(name.display()));
        stream.empty(other, |count| {
            // Without its log the index would tell of events that got lost, if there were any.
            let removed = disk
                .remove_file(&name.join("index"))
                .and_then(|()| if count > 0 { disk.sync_dir(name) } else { Ok(()) })
                .and_then(|()| disk.remove_file(&name.join("log")));
            removed.map_err(os())
        })?;
        // NFS keeps what is removed in the directory for as long as it is open.
        stream.close();
        match disk.remove_dir(name) {
            // Another mount was faster.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed.map_err(os()),
        }
    }

    /// Renames a stream, durably. A stream without events that has the new name is replaced.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::NotEmpty`]; [`Error::Invalid`] for a name that begins with a
    /// dot.
    pub fn rename(&self, from: impl AsRef<OsStr>, to: impl AsRef<OsStr>) -> Result<()> {
        let [from, to] = [self.changeable(from.as_ref())?, self.changeable(to.as_ref())?];
        let stream = self.stream(&from)?;
        if from == to {
            return Ok(());
        }
        // Another mount may be renaming it, too, and be faster.
        let other = Some(stream.identity());
        match self.stream(&to).and_then(|there| self.remove_but(&to, &there, other)) {
            Ok(()) | Err(Error::NotFound) => {}
            Err(error) => return Err(error),
        }
        let disk = &self.shared.disk;
        stream.rename(&to, || disk.rename(&from, &to).map_err(Error::os(from.display())))?;
        let mut streams = lock(&self.streams);
        streams.remove(from.as_os_str());
        streams.insert(to.into(), Arc::downgrade(&stream));
        drop(streams);
        disk.sync_dir(Path::new("")).map_err(Error::os("the store"))
    }

    /// Makes the names in the directory of a stream durable; of the store when it is empty.
    pub(crate) fn sync(&self, name: &OsStr) -> Result<()> {
        let synced = self.shared.disk.sync_dir(Path::new(name));
        synced.map_err(Error::os(name.display()))
    }

    /// The name, when it can be that of a stream and the store may be changed.
    fn changeable(&self, name: &OsStr) -> Result<PathBuf> {
        match () {
            () if self.shared.read_only => Err(Error::ReadOnly),
            () if !is_stream_name(name) => Err(Error::Invalid),
            () => Ok(name.into()),
        }
    }
}

impl<D: Disk> Drop for Store<D> {
    fn drop(&mut self) {
        // They hold what we share with them, which holds them.
        self.shared.close();
    }
}
