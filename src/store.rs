//! Names -> streams.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Weak};

use crate::disk::{Disk, Names, Real, is_stream_name};
use crate::error::{Error, Result};
use crate::status::Status;
use crate::stream::{Shared, Stream};
use crate::sys::lock;

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
        Store::with_log(path.as_ref(), read_only, Box::new(|_| {}))
    }

    /// Like [`Store::open`]; what an operator should know is handed to `log`, a line each.
    pub fn with_log(
        path: &Path,
        read_only: bool,
        log: Box<dyn Fn(&str) + Send + Sync>,
    ) -> Result<Store> {
        prepare(path, read_only)?;
        Ok(Store::on(Real(path.into()), read_only, log))
    }
}

/// Makes sure that `path` holds a store of a format we know.
fn prepare(path: &Path, read_only: bool) -> Result<()> {
    let os = |path: &Path| Error::os(path.display().to_string());
    let mark = path.join(".smolstore");
    match fs::read_to_string(&mark) {
        Ok(format) if format == FORMAT => return Ok(()),
        Ok(format) => {
            return Err(Error::Foreign(format!(
                "{}: format {:?} is not known to this version of smolstore",
                mark.display(),
                format.trim_end()
            )));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(os(&mark)(error)),
    }
    for entry in fs::read_dir(path).map_err(os(path))? {
        let name = entry.map_err(os(path))?.file_name();
        // What a crash left of an attempt to write the mark.
        let unfinished = name.as_encoded_bytes().starts_with(b".smolstore.");
        if name != "lost+found" && !unfinished {
            return Err(Error::Foreign(format!(
                "{}: not a store, for it has no file .smolstore, and not empty: it holds {name:?}",
                path.display()
            )));
        }
    }
    if read_only {
        // A store without streams.
        return Ok(());
    }
    // Whole or not at all: the name comes last.
    let new = path.join(format!(".smolstore.{}", std::process::id()));
    let write = || -> io::Result<()> {
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o644)
            .open(&new)?;
        io::Write::write_all(&mut file, FORMAT.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, &mark)?;
        fs::File::open(path)?.sync_all()
    };
    write().map_err(os(&mark))
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
        let disk = &self.shared.disk;
        stream.empty(|| {
            // Without its log the index would tell of events that got lost.
            let removed = disk
                .remove_file(&name.join("index"))
                .and_then(|()| disk.sync_dir(&name))
                .and_then(|()| disk.remove_file(&name.join("log")));
            // The directory may hold what is not ours; then the stream stays, still empty.
            removed.and_then(|()| disk.remove_dir(&name)).map_err(Error::os(name.display()))
        })?;
        stream.close();
        lock(&self.streams).remove(name.as_os_str());
        Ok(())
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
        match self.remove(&to) {
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
