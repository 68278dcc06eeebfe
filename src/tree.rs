//! The mounted tree: names, attributes, open files. Knows nothing of fuser.

use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, Metadata};
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::attr::{Attr, identity, make, size};
use crate::disk::{Disk, Real, is_stream_name};
use crate::error::{Error, Result};
use crate::names::Names;
use crate::node::{FILES, Horizon, INDICES, Kind, NAMED, Node, ROOT, STATUS, Type, horizon};
use crate::open::{Entries, Handle, Handles, Open};
use crate::proc::ending;
use crate::store::Store;
use crate::stream::Stream;
use crate::sys::{self, lock};
use crate::wait::{Answer, Waiters};

/// The mounted tree.
pub struct Tree {
    store: Store,
    root: PathBuf,
    /// Nobody but the owner of the mount may enter.
    private: Option<u32>,
    names: Mutex<Names>,
    handles: Handles,
    began: Instant,
    /// Those who wait for events.
    pub waiters: Arc<Waiters>,
    /// Each request is to be told to the operator.
    pub tracing: AtomicBool,
}

impl Tree {
    /// The tree of the store at `root`. `private` to the user, when given.
    pub fn new(store: Store, root: PathBuf, private: Option<u32>) -> Tree {
        Tree {
            store,
            root,
            private,
            names: Mutex::default(),
            handles: Handles::default(),
            began: Instant::now(),
            waiters: Arc::default(),
            tracing: AtomicBool::new(false),
        }
    }

    fn status(&self) -> String {
        let (open, waiting) = (self.handles.len(), self.waiters.len());
        let uptime = self.began.elapsed().as_secs_f64();
        self.store.status().text(&[
            ("open_files", "gauge", "Open files and directories", open as f64),
            ("waiting_readers", "gauge", "Reads and polls that wait for an event", waiting as f64),
            ("uptime_seconds", "gauge", "Seconds since the mount", uptime),
        ])
    }

    /// Closes the files of streams that were not used since the last time and that nobody waits for:
    /// where hosts share them, one that has a file open slows down the one that writes to it.
    pub fn rest(&self) {
        self.store.shared.rest();
    }

    /// Tells the operator.
    pub fn log(&self, line: &str) {
        self.store.log(line);
    }

    /// Name and identity of a node's stream; none for the root.
    fn known(&self, node: Node) -> Result<(OsString, u64)> {
        if matches!(node.kind, Kind::Root | Kind::Status) {
            return Ok((OsString::new(), 0));
        }
        let names = lock(&self.names);
        let (name, identity) = names.get(node.stream).ok_or(Error::NotFound)?;
        Ok((name.clone(), identity))
    }

    fn name(&self, node: Node) -> Result<OsString> {
        Ok(self.known(node)?.0)
    }

    fn stream(&self, node: Node) -> Result<Arc<Stream<Real>>> {
        self.store.stream(self.name(node)?)
    }

    fn metadata(&self, name: &OsStr) -> Result<Metadata> {
        let found = fs::symlink_metadata(self.root.join(name));
        match self.store.shared.disk.there(found) {
            Ok(metadata) if metadata.is_dir() => Ok(metadata),
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(Error::os(name.display())(error))
            }
            _ => Err(Error::NotFound),
        }
    }

    /// Tells the directory of a stream from all others.
    fn identity(&self, name: &OsStr) -> Result<u64> {
        self.metadata(name)?;
        identity(&self.root.join(name)).map_err(Error::os(name.display()))
    }

    // ---- attributes --------------------------------------------------------------------------

    /// stat(2).
    pub fn attr(&self, number: u64) -> Result<Attr> {
        self.attr_of(Node::of(number)?)
    }

    fn attr_of(&self, node: Node) -> Result<Attr> {
        let (name, identity) = self.known(node)?;
        let mut attr = Attr::new(node, identity, &self.metadata(&name)?);
        if let Some(user) = self.private.filter(|_| node == ROOT) {
            attr.mode &= 0o700;
            attr.uid = user;
        }
        match node.file_type() {
            Type::Directory => {}
            Type::File if node.kind == Kind::Status => {
                attr.mode &= 0o444;
                attr.size = self.status().len() as u64;
                attr.time = SystemTime::now();
            }
            Type::Link => {
                attr.mode = 0o777;
                attr.size = self.target(node)?.len() as u64;
            }
            Type::File => {
                attr.mode &= 0o666;
                let (size, time) = match size(node, &self.store.stream(&name)?, None) {
                    // Who has it open keeps it; but of an event the time is not known any more.
                    Err(Error::Dropped) if node.kind != Kind::At => match self.handles.of(node) {
                        Some(open) => size(node, &open.stream, Some(open.base))?,
                        // Its name leads to another one now.
                        None if node.begins() => {
                            return self.attr_of(self.file_of(node, node.kind)?);
                        }
                        None => return Err(Error::Dropped),
                    },
                    sized => sized?,
                };
                attr.size = size;
                if time > 0 {
                    attr.time = UNIX_EPOCH + Duration::from_nanos(time);
                }
            }
        }
        Ok(attr)
    }

    /// truncate(2), by the open file `handle` when it has one. Only what is not committed can go.
    pub fn truncate(&self, number: u64, handle: Option<u64>, size: u64) -> Result<()> {
        match handle {
            _ if Node::of(number)?.kind == Kind::First && size == 0 => Ok(()),
            Some(handle) => self.file(handle)?.truncate(size),
            None => Err(Error::NotPermitted),
        }
    }

    /// chmod(2), chown(2). Times are what they are, and touch(1) is content. So are those who copy a
    /// file to an event with its mode and owner: it has none.
    pub fn change(
        &self,
        number: u64,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
    ) -> Result<Attr> {
        let node = Node::of(number)?;
        let attr = self.attr_of(node)?;
        let mode = mode.map_or(attr.mode, |mode| mode & 0o7777);
        let (uid, gid) = (uid.unwrap_or(attr.uid), gid.unwrap_or(attr.gid));
        let same = (mode, uid, gid) == (attr.mode, attr.uid, attr.gid);
        if same || matches!(node.kind, Kind::New | Kind::At | Kind::First) {
            return Ok(attr);
        }
        // A private root does not show what it is.
        let changes = node.kind == Kind::Stream || (node == ROOT && self.private.is_none());
        if !changes {
            return Err(Error::NotPermitted);
        }
        if self.store.read_only() {
            return Err(Error::ReadOnly);
        }
        let path = self.root.join(self.name(node)?);
        make(&path, mode, (uid, gid)).map_err(Error::os(path.display()))?;
        self.attr_of(node)
    }

    /// Space and files of the file system the store is on: statfs(2).
    pub fn space(&self) -> Result<libc::statfs> {
        sys::statfs(&self.root).map_err(Error::os(self.root.display()))
    }

    // ---- names -------------------------------------------------------------------------------

    /// The node `name` in the directory `parent`. The kernel has to [`Tree::forget`] it.
    pub fn lookup(&self, parent: u64, name: &OsStr) -> Result<Attr> {
        let (node, there) = self.find(Node::of(parent)?, name)?;
        let attr = if there { self.attr_of(node) } else { Err(Error::NotFound) };
        attr.inspect_err(|_| self.forget(node.number(), 1))
    }

    /// Finds a node that the kernel will be told of, unless that is taken back by `forget`; and whether it
    /// is there, or an event that is the next to come.
    fn find(&self, parent: Node, name: &OsStr) -> Result<(Node, bool)> {
        let plain = name.as_bytes().strip_suffix(b".json").map(OsStr::from_bytes);
        let mut there = true;
        let node = match (parent.view(), horizon(plain.unwrap_or(name))) {
            (Some(_), Some(Horizon::Named(place))) => parent.beside(Kind::Link, place),
            (Some(_), Some(Horizon::Time(time))) => {
                let index = self.stream(parent)?.since(time)?.min(INDICES);
                parent.beside(Kind::Link, NAMED.len() as u64 + index)
            }
            (Some(_), Some(Horizon::Index(n))) if n > INDICES => return Err(Error::NotFound),
            (Some(view), Some(Horizon::Index(index))) => {
                there = self.stream(parent)?.has(index)? || view != Kind::At;
                parent.beside(view, index)
            }
            _ if parent.kind == Kind::Root && is_stream_name(name) => {
                let identity = self.identity(name)?;
                return Ok((Node::stream(lock(&self.names).number(name, identity)?), true));
            }
            _ if parent.kind == Kind::Root && name == STATUS => parent.beside(Kind::Status, 0),
            _ if parent.kind == Kind::Stream => {
                let kind = FILES.iter().find(|(file, _)| *file == name);
                self.file_of(parent, kind.ok_or(Error::NotFound)?.1)?
            }
            _ => return Err(Error::NotFound),
        };
        lock(&self.names).remember(node.stream);
        Ok((Node { json: plain.is_some() && parent.view().is_some(), ..node }, there))
    }

    /// The file of this kind in the directory of a stream.
    fn file_of(&self, parent: Node, kind: Kind) -> Result<Node> {
        let mut file = parent.beside(kind, 0);
        if file.begins() {
            file.index = self.stream(parent)?.first()?.min(INDICES);
        }
        Ok(file)
    }

    /// The kernel has forgotten `lookups` of the times it was told of a node.
    pub fn forget(&self, number: u64, lookups: u64) {
        if let Ok(node) = Node::of(number) {
            lock(&self.names).forget(node.stream, lookups);
        }
    }

    /// readlink(2).
    pub fn readlink(&self, number: u64) -> Result<String> {
        match Node::of(number)? {
            node if node.kind == Kind::Link => self.target(node),
            _ => Err(Error::Invalid),
        }
    }

    /// Where a link points.
    fn target(&self, node: Node) -> Result<String> {
        let stream = self.stream(node)?;
        // As in [`NAMED`].
        let index = match node.index {
            0 => stream.first()?,
            1 => stream.count()?.saturating_sub(1).max(stream.first()?),
            2 => stream.count()?,
            to => to - NAMED.len() as u64,
        };
        Ok(if node.json { format!("{index}.json") } else { index.to_string() })
    }

    /// mkdir(2) by the user `owner` (uid, gid). The stream is theirs before it has its name, so that
    /// nobody else's can be taken for it, whatever other mounts do meanwhile.
    pub fn mkdir(&self, parent: u64, name: &OsStr, mode: u32, owner: (u32, u32)) -> Result<Attr> {
        match () {
            () if Node::of(parent)? != ROOT => return Err(Error::NotPermitted),
            () if self.store.read_only() => return Err(Error::ReadOnly),
            () if !is_stream_name(name) => return Err(Error::Invalid),
            () => {}
        }
        let made = self.nameless()?;
        let named = || {
            let (store, new) = (fs::metadata(&self.root)?, fs::metadata(&made)?);
            // A store that hands its group down does so here, as any directory would.
            let (mode, owner) = match store.mode() & libc::S_ISGID {
                0 => (mode, owner),
                setgid => (mode | setgid, (owner.0, new.gid())),
            };
            make(&made, mode, owner)?;
            let found = (fs::metadata(&made)?, identity(&made)?);
            sys::rename_new(&made, &self.root.join(name)).map(|()| found)
        };
        let (metadata, identity) = named().map_err(|error| {
            let _ = fs::remove_dir(&made);
            match error.kind() {
                ErrorKind::AlreadyExists | ErrorKind::DirectoryNotEmpty => Error::Exists,
                _ => Error::os(name.display())(error),
            }
        })?;
        let number = lock(&self.names).number(name, identity)?;
        Ok(Attr::new(Node::stream(number), identity, &metadata))
    }

    /// Makes a directory in the store that is no stream.
    fn nameless(&self) -> Result<PathBuf> {
        let make = || {
            let path = self.root.join(format!(".smolstore.{:x}", self.store.shared.disk.random()?));
            DirBuilder::new().mode(0o700).create(&path).map(|()| path)
        };
        make().map_err(Error::os("the store"))
    }

    /// rmdir(2).
    pub fn rmdir(&self, parent: u64, name: &OsStr) -> Result<()> {
        if Node::of(parent)? != ROOT {
            return Err(Error::NotPermitted);
        }
        let stream = self.store.stream(name)?;
        self.store.remove(name)?;
        self.waiters.end_those_of(&stream);
        lock(&self.names).remove(name);
        Ok(())
    }

    /// rename(2). `replace` an empty stream that has the name.
    pub fn rename(&self, from: (u64, &OsStr), to: (u64, &OsStr), replace: bool) -> Result<()> {
        if (Node::of(from.0)?, Node::of(to.0)?) != (ROOT, ROOT) {
            return Err(Error::NotPermitted);
        }
        if !replace && self.metadata(to.1).is_ok() {
            return Err(Error::Exists);
        }
        let stream = self.store.stream(from.1)?;
        let replaced = self.store.stream(to.1);
        self.store.rename(from.1, to.1)?;
        lock(&self.names).rename(from.1, to.1);
        replaced.iter().for_each(|replaced| self.waiters.end_those_of(replaced));
        // First what was committed before, by other mounts, too.
        self.waiters.wake(&stream);
        self.waiters.end_those_of(&stream);
        Ok(())
    }

    /// fsync(2) of a directory.
    pub fn sync_names(&self, number: u64) -> Result<()> {
        let node = Node::of(number)?;
        if node != ROOT {
            self.store.sync(&self.name(node)?)?;
        }
        self.store.sync("".as_ref())
    }

    // ---- open files and directories ----------------------------------------------------------

    /// open(2); `flags` as there.
    pub fn open(&self, number: u64, flags: i32) -> Result<u64> {
        if flags & libc::O_ACCMODE != libc::O_RDONLY && self.store.read_only() {
            return Err(Error::ReadOnly);
        }
        let node = Node::of(number)?;
        if node.kind == Kind::Status {
            return match flags & libc::O_ACCMODE {
                libc::O_RDONLY => Ok(self.handles.keep(Handle::Text(self.status().into()))),
                _ => Err(Error::NotPermitted),
            };
        }
        let open = Open::new(node, self.stream(node)?, flags, self.waiters.clone())?;
        Ok(self.handles.keep(Handle::File(Arc::new(open))))
    }

    /// creat(2): only `at/N`, where N is the next index.
    pub fn create(&self, parent: u64, name: &OsStr, flags: i32) -> Result<(Attr, u64)> {
        let parent = Node::of(parent)?;
        if parent.view().is_none() || !matches!(horizon(name), Some(Horizon::Index(_))) {
            return Err(Error::NotPermitted);
        }
        let (node, _) = self.find(parent, name)?;
        let created = || match node.kind {
            Kind::At => Ok((self.attr_of(node)?, self.open(node.number(), flags)?)),
            _ => Err(Error::NotPermitted),
        };
        created().inspect_err(|_| self.forget(node.number(), 1))
    }

    /// An open file.
    pub fn file(&self, handle: u64) -> Result<Arc<Open>> {
        match self.handles.get(handle)? {
            Handle::File(open) => Ok(open),
            _ => Err(Error::Invalid),
        }
    }

    /// close(2) of a file by the thread `pid`.
    pub fn flush(&self, open: &Arc<Open>, owner: u64, pid: u32, answer: Answer<()>) {
        let Some((events, ending)) = open.flush(owner, || ending(pid), answer) else {
            return;
        };
        self.store.status().abandoned(events);
        let name = open.stream.name();
        self.log(&format!(
            "stream {name:?}: pid {pid} {ending} before it committed what it wrote; events dropped: \
             {events}; a program that runs for long should write to `lines`"
        ));
    }

    /// The last close of an open file or directory.
    pub fn release(&self, handle: u64) -> Result<()> {
        if let Handle::File(open) = self.handles.take(handle)? {
            open.stop_polling();
            open.commit_rest();
        }
        Ok(())
    }

    /// What an open file of the `number` shows, when that is none of a stream's.
    pub fn text(&self, number: u64, handle: u64) -> Option<Arc<str>> {
        if number != ROOT.beside(Kind::Status, 0).number() {
            return None;
        }
        match self.handles.get(handle) {
            Ok(Handle::Text(text)) => Some(text),
            _ => None,
        }
    }

    /// opendir(3).
    pub fn opendir(&self, number: u64) -> Result<u64> {
        let node = Node::of(number)?;
        Ok(self.handles.keep(Handle::Directory(node, Arc::default())))
    }

    /// readdir(3): the entries of an open directory, as they are now or, unless it is read from
    /// the `beginning`, were then.
    pub fn entries(&self, handle: u64, beginning: bool) -> Result<Entries> {
        let Handle::Directory(node, entries) = self.handles.get(handle)? else {
            return Err(Error::Invalid);
        };
        if beginning {
            let listed = Arc::new(self.list(node)?);
            *lock(&entries) = listed;
        }
        Ok(lock(&entries).clone())
    }

    fn list(&self, node: Node) -> Result<Vec<(u64, Type, OsString)>> {
        let (_, identity) = self.known(node)?;
        let entry = |node: Node, name: &str| {
            let identity = if node == ROOT { 0 } else { identity };
            (node.inode(identity), node.file_type(), name.into())
        };
        let mut entries = vec![entry(node, "."), entry(node.parent(), "..")];
        match node.kind {
            Kind::Root => {
                let stream = Node::stream(0);
                for name in self.store.streams()? {
                    let name = name.map_err(Error::os("the store"))?;
                    // One that was just removed or renamed.
                    if let Ok(identity) = self.identity(&name) {
                        entries.push((stream.inode(identity), stream.file_type(), name));
                    }
                }
            }
            Kind::Stream => {
                for (name, kind) in FILES {
                    // What cannot be read is listed all the same.
                    let file = self.file_of(node, kind).unwrap_or(node.beside(kind, 0));
                    entries.push(entry(file, name));
                }
            }
            // Who goes through a tree and follows its links would wait there for ever.
            Kind::FollowDir => {}
            _ => {
                let links = (0..).zip(NAMED);
                entries.extend(links.map(|(n, name)| entry(node.beside(Kind::Link, n), name)));
            }
        }
        Ok(entries)
    }
}
