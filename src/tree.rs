//! The mounted tree: paths, nodes, attributes, open files. Knows nothing of fuser.
//!
//! ```text
//! /.status
//! /S/{events,lines,new,count}   /S/{from,at,follow}/{N,beginning,newest,next,@SECONDS}
//! ```
//!
//! A node number holds all there is to know of a node but the stream's name, so that memory does
//! not grow with the events that were ever looked at. The kernel says when it forgets a stream.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, Metadata, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::disk::{Real, is_stream_name};
use crate::error::{Error, Result};
use crate::open::Open;
use crate::store::Store;
use crate::stream::Stream;
use crate::sys::{self, lock};
use crate::wait::Waiters;

// ---- nodes -----------------------------------------------------------------------------------

/// A place in the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node {
    pub(crate) kind: Kind,
    /// Our number for the stream, never 0; of the root it is 0.
    stream: u32,
    /// Of a view the horizon; of a link its place in [`NAMED`], or behind those where it points.
    pub(crate) index: u64,
}

/// The kinds of nodes; the root's number is the one that FUSE has for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Root = 1,
    Stream,
    Events,
    Lines,
    New,
    Count,
    FromDir,
    AtDir,
    FollowDir,
    From,
    At,
    Follow,
    Link,
    Status,
}

const KINDS: [Kind; 14] = {
    use Kind::*;
    [
        Root, Stream, Events, Lines, New, Count, FromDir, AtDir, FollowDir, From, At, Follow, Link,
        Status,
    ]
};
/// What is in the directory of a stream.
const FILES: [(&str, Kind); 7] = [
    ("events", Kind::Events),
    ("lines", Kind::Lines),
    ("new", Kind::New),
    ("count", Kind::Count),
    ("from", Kind::FromDir),
    ("at", Kind::AtDir),
    ("follow", Kind::FollowDir),
];
/// What the daemon tells of itself, at the root; not listed, for what is listed there are streams.
const STATUS: &str = ".status";
/// The named horizons. A link to any other is looked up anew each time.
const NAMED: [&str; 3] = ["beginning", "newest", "next"];

const ROOT: Node = Node { kind: Kind::Root, stream: 0, index: 0 };
const STREAM_BITS: u32 = 24;
/// So many events of a stream can be addressed.
const INDICES: u64 = (1 << 36) - 4;

/// How long the kernel may believe a name or mode that another mount may change.
const SHORT: Duration = Duration::from_secs(1);
/// How long it may believe names that stay as long as their stream.
const LONG: Duration = Duration::from_secs(24 * 3600);

impl Node {
    /// The directory of a stream.
    fn stream(stream: u32) -> Node {
        Node { stream, ..ROOT }.beside(Kind::Stream, 0)
    }

    /// Its number, which is its inode number: `index << 28 | stream << 4 | kind`.
    pub fn number(self) -> u64 {
        (self.index << STREAM_BITS | u64::from(self.stream)) << 4 | self.kind as u64
    }

    /// The node of a number. NotFound for one that was never given out.
    fn of(number: u64) -> Result<Node> {
        let kind = KINDS.iter().find(|kind| **kind as u64 == number & 0xf);
        Ok(Node {
            kind: *kind.ok_or(Error::NotFound)?,
            stream: (number >> 4) as u32 & ((1 << STREAM_BITS) - 1),
            index: number >> (STREAM_BITS + 4),
        })
    }

    /// Another node of the same stream.
    fn beside(self, kind: Kind, index: u64) -> Node {
        Node { kind, index, ..self }
    }

    /// What a directory of horizons shows.
    fn view(self) -> Option<Kind> {
        match self.kind {
            Kind::FromDir => Some(Kind::From),
            Kind::AtDir => Some(Kind::At),
            Kind::FollowDir => Some(Kind::Follow),
            _ => None,
        }
    }

    /// What it is to stat(2).
    pub fn file_type(self) -> Type {
        match self.kind {
            Kind::Root | Kind::Stream => Type::Directory,
            Kind::Link => Type::Link,
            _ if self.view().is_some() => Type::Directory,
            _ => Type::File,
        }
    }

    /// How long the kernel may believe its name, and its attributes.
    pub fn lifetimes(self) -> (Duration, Duration) {
        match self.kind {
            Kind::Root | Kind::Stream => (SHORT, SHORT),
            Kind::Link if self.index >= NAMED.len() as u64 => (Duration::ZERO, Duration::ZERO),
            _ => (LONG, Duration::ZERO),
        }
    }
}

/// A horizon as it is written in a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Horizon {
    Index(u64),
    /// Its place in [`NAMED`].
    Named(u64),
    /// Nanoseconds since the Unix epoch.
    Time(u64),
}

/// Reads a horizon: an index in plain decimal, a name, or `@` and seconds with an optional
/// fraction.
fn horizon(name: &OsStr) -> Option<Horizon> {
    let name = name.to_str()?;
    if let Some((place, _)) = (0..).zip(NAMED).find(|(_, named)| *named == name) {
        return Some(Horizon::Named(place));
    }
    let Some(time) = name.strip_prefix('@') else {
        let index: u64 = name.parse().ok()?;
        return (index.to_string() == name).then_some(Horizon::Index(index));
    };
    let (seconds, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    if !digits(seconds) || !digits(fraction) {
        return None;
    }
    // Rounded up to a nanosecond: the first event at or after.
    let nanos: u64 = format!("{fraction:0<9}")[..9].parse().ok()?;
    let more = fraction.bytes().skip(9).any(|b| b != b'0');
    // Beyond what a time can be there is no event.
    let seconds: u64 = seconds.parse().unwrap_or(u64::MAX);
    let time = seconds.saturating_mul(1_000_000_000);
    Some(Horizon::Time(time.saturating_add(nanos + u64::from(more))))
}

/// What a node is to stat(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// A directory.
    Directory,
    /// A regular file.
    File,
    /// A symbolic link.
    Link,
}

/// What stat(2) tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr {
    /// Of what.
    pub node: Node,
    /// Bytes.
    pub size: u64,
    /// When it was modified.
    pub time: SystemTime,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

// ---- names -----------------------------------------------------------------------------------

/// A stream that the kernel knows.
struct Known {
    /// Its name, unless that has another number by now, or none.
    name: OsString,
    /// Inode number of its directory in the store.
    inode: u64,
    /// How often the kernel was told of its nodes, less what it forgot.
    lookups: u64,
}

#[derive(Default)]
struct Streams {
    known: HashMap<u32, Known>,
    numbers: HashMap<OsString, u32>,
    last: u32,
}

impl Streams {
    /// The number of the stream `name`, a new one when it is not the directory it was.
    fn number(&mut self, name: &OsStr, inode: u64) -> Result<u32> {
        if let Some(number) = self.numbers.get(name)
            && self.known.get(number).is_some_and(|it| it.inode == inode)
        {
            return Ok(*number);
        }
        let mut numbers = (self.last + 1..1 << STREAM_BITS).chain(1..=self.last);
        let free = numbers.find(|number| !self.known.contains_key(number));
        self.last = free.ok_or_else(|| Error::Os {
            errno: libc::ENFILE,
            what: "more streams in use than there are numbers".into(),
        })?;
        let known = Known { name: name.into(), inode, lookups: 0 };
        self.known.insert(self.last, known);
        self.numbers.insert(name.into(), self.last);
        Ok(self.last)
    }

    fn name(&self, number: u32) -> Option<&OsString> {
        let name = &self.known.get(&number)?.name;
        (self.numbers.get(name) == Some(&number)).then_some(name)
    }

    fn rename(&mut self, from: &OsStr, to: &OsStr) {
        // What had the new name has none now.
        self.numbers.remove(to);
        if let Some(number) = self.numbers.remove(from) {
            self.numbers.insert(to.into(), number);
            self.known.entry(number).and_modify(|known| known.name = to.into());
        }
    }

    /// The kernel is about to be told of a node.
    fn remember(&mut self, number: u32) {
        if let Some(known) = self.known.get_mut(&number) {
            known.lookups += 1;
        }
    }

    fn forget(&mut self, number: u32, lookups: u64) {
        let Some(known) = self.known.get_mut(&number) else {
            return;
        };
        known.lookups = known.lookups.saturating_sub(lookups);
        if known.lookups == 0 {
            if let Some(name) = self.name(number).cloned() {
                self.numbers.remove(&name);
            }
            self.known.remove(&number);
        }
    }
}

enum Handle {
    File(Arc<Open>),
    /// The status, as it was then.
    Text(Arc<str>),
    /// A directory, and its entries when it was last read from the beginning.
    Directory(Node, Entries),
}

/// What is in a directory.
pub type Entries = Arc<Vec<(Node, OsString)>>;

// ---- the tree --------------------------------------------------------------------------------

/// The mounted tree.
pub struct Tree {
    store: Store,
    root: PathBuf,
    /// Nobody but the owner of the mount may enter.
    private: Option<u32>,
    streams: Mutex<Streams>,
    handles: Mutex<HashMap<u64, Handle>>,
    next_handle: AtomicU64,
    waiters: Arc<Waiters>,
    began: Instant,
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
            streams: Mutex::default(),
            handles: Mutex::default(),
            next_handle: AtomicU64::new(1),
            waiters: Arc::default(),
            began: Instant::now(),
            tracing: AtomicBool::new(false),
        }
    }

    fn status(&self) -> String {
        let open = lock(&self.handles).len();
        self.store.status().text(&[
            ("open_files", "gauge", "Open files and directories", open as f64),
            (
                "waiting_readers",
                "gauge",
                "Reads and polls that wait for an event",
                self.waiters.len() as f64,
            ),
            (
                "uptime_seconds",
                "gauge",
                "Seconds since the mount",
                self.began.elapsed().as_secs_f64(),
            ),
        ])
    }

    /// Those who wait for events.
    pub fn waiters(&self) -> &Arc<Waiters> {
        &self.waiters
    }

    /// Tells the operator.
    pub fn log(&self, line: &str) {
        self.store.log(line);
    }

    /// The name of a node's stream; none for the root.
    fn name(&self, node: Node) -> Result<OsString> {
        if matches!(node.kind, Kind::Root | Kind::Status) {
            return Ok(OsString::new());
        }
        let streams = lock(&self.streams);
        let name = streams.name(node.stream);
        name.cloned().ok_or(Error::NotFound)
    }

    fn stream(&self, node: Node) -> Result<Arc<Stream<Real>>> {
        self.store.stream(self.name(node)?)
    }

    fn metadata(&self, name: &OsStr) -> Result<Metadata> {
        match fs::symlink_metadata(self.root.join(name)) {
            Ok(metadata) if metadata.is_dir() => Ok(metadata),
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(Error::os(name.display())(error))
            }
            _ => Err(Error::NotFound),
        }
    }

    // ---- attributes --------------------------------------------------------------------------

    /// stat(2).
    pub fn attr(&self, number: u64) -> Result<Attr> {
        self.attr_of(Node::of(number)?)
    }

    fn attr_of(&self, node: Node) -> Result<Attr> {
        let name = self.name(node)?;
        let directory = self.metadata(&name)?;
        let mut attr = Attr {
            node,
            size: directory.len(),
            time: directory.modified().unwrap_or(UNIX_EPOCH),
            mode: directory.mode() & 0o7777,
            uid: directory.uid(),
            gid: directory.gid(),
        };
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
                let (size, time) = size(node, &self.store.stream(&name)?)?;
                attr.size = size;
                if time > 0 {
                    attr.time = UNIX_EPOCH + Duration::from_nanos(time);
                }
            }
        }
        Ok(attr)
    }

    /// chmod(2), chown(2), truncate(2). Times are what they are, and touch(1) is content.
    pub fn change(
        &self,
        number: u64,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
    ) -> Result<Attr> {
        let node = Node::of(number)?;
        let attr = self.attr_of(node)?;
        let nothing = matches!(node.kind, Kind::New | Kind::At) && attr.size == 0;
        if size.is_some_and(|size| size != 0 || !nothing) {
            return Err(Error::NotPermitted);
        }
        let mode = mode.map_or(attr.mode, |mode| mode & 0o7777);
        let (uid, gid) = (uid.unwrap_or(attr.uid), gid.unwrap_or(attr.gid));
        if (mode, uid, gid) == (attr.mode, attr.uid, attr.gid) {
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
        self.make(&self.name(node)?, mode, (uid, gid))?;
        self.attr_of(node)
    }

    /// Gives the directory of a stream this mode and owner (uid, gid).
    fn make(&self, name: &OsStr, mode: u32, owner: (u32, u32)) -> Result<()> {
        let path = self.root.join(name);
        let made = sys::directory(&path).and_then(|(_held, path)| {
            chown(&path, Some(owner.0), Some(owner.1))?;
            fs::set_permissions(&path, Permissions::from_mode(mode))
        });
        made.map_err(Error::os(path.display()))
    }

    /// Space and files of the file system the store is on: statvfs(3).
    pub fn space(&self) -> Result<libc::statvfs> {
        sys::statvfs(&self.root).map_err(Error::os(self.root.display()))
    }

    // ---- names -------------------------------------------------------------------------------

    /// The node `name` in the directory `parent`. The kernel has to [`Tree::forget`] it.
    pub fn lookup(&self, parent: u64, name: &OsStr) -> Result<Attr> {
        let node = self.find(Node::of(parent)?, name)?;
        let attr = || match node.kind {
            // Its place is known, its event is not there yet.
            Kind::At if node.index >= self.stream(node)?.count()? => {
                Err(self.stream(node)?.absent(node.index))
            }
            _ => self.attr_of(node),
        };
        attr().inspect_err(|_| self.forget(node.number(), 1))
    }

    /// Finds a node that the kernel will be told of, unless that is taken back by `forget`.
    fn find(&self, parent: Node, name: &OsStr) -> Result<Node> {
        let node = match (parent.view(), horizon(name)) {
            (Some(_), Some(Horizon::Named(place))) => parent.beside(Kind::Link, place),
            (Some(_), Some(Horizon::Time(time))) => {
                let index = self.stream(parent)?.since(time)?.min(INDICES);
                parent.beside(Kind::Link, NAMED.len() as u64 + index)
            }
            (Some(view), Some(Horizon::Index(index)))
                if index <= self.stream(parent)?.count()?.min(INDICES) =>
            {
                parent.beside(view, index)
            }
            (Some(_), Some(Horizon::Index(index))) => {
                return Err(self.stream(parent)?.absent(index));
            }
            _ if parent.kind == Kind::Root && is_stream_name(name) => {
                let inode = self.metadata(name)?.ino();
                let mut streams = lock(&self.streams);
                let stream = streams.number(name, inode)?;
                // Before the lock is given back: the kernel may be forgetting it at this moment.
                streams.remember(stream);
                return Ok(Node::stream(stream));
            }
            _ if parent.kind == Kind::Root && name == STATUS => parent.beside(Kind::Status, 0),
            _ if parent.kind == Kind::Stream => {
                let kind = FILES.iter().find(|(file, _)| *file == name);
                parent.beside(kind.ok_or(Error::NotFound)?.1, 0)
            }
            _ => return Err(Error::NotFound),
        };
        lock(&self.streams).remember(node.stream);
        Ok(node)
    }

    /// The kernel has forgotten `lookups` of the times it was told of a node.
    pub fn forget(&self, number: u64, lookups: u64) {
        if let Ok(node) = Node::of(number) {
            lock(&self.streams).forget(node.stream, lookups);
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
        let count = || self.stream(node)?.count();
        // As in [`NAMED`].
        let index = match node.index {
            0 => 0,
            1 => count()?.saturating_sub(1),
            2 => count()?,
            to => to - NAMED.len() as u64,
        };
        Ok(index.to_string())
    }

    /// mkdir(2) by the user `owner` (uid, gid).
    pub fn mkdir(&self, parent: u64, name: &OsStr, mode: u32, owner: (u32, u32)) -> Result<Attr> {
        if Node::of(parent)? != ROOT {
            return Err(Error::NotPermitted);
        }
        self.store.create(name, mode)?;
        let owned = || {
            let (store, made) = (self.metadata("".as_ref())?, self.metadata(name)?);
            // A store that hands its group down does so here, as any directory would.
            match store.mode() & libc::S_ISGID {
                0 => self.make(name, mode, owner),
                setgid => self.make(name, mode | setgid, (owner.0, made.gid())),
            }
        };
        // Our own umask has had its say.
        owned().inspect_err(|_| {
            // Nobody has seen it yet.
            let _ = fs::remove_dir(self.root.join(name));
        })?;
        self.lookup(parent, name)
    }

    /// rmdir(2).
    pub fn rmdir(&self, parent: u64, name: &OsStr) -> Result<()> {
        if Node::of(parent)? != ROOT {
            return Err(Error::NotPermitted);
        }
        let stream = self.store.stream(name)?;
        self.store.remove(name)?;
        self.waiters.end_those_of(&stream);
        lock(&self.streams).numbers.remove(name);
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
        self.store.rename(from.1, to.1)?;
        lock(&self.streams).rename(from.1, to.1);
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

    /// Whether a node is read as a pipe is: what comes, and not from any place.
    pub fn follows(number: u64) -> bool {
        Node::of(number).is_ok_and(|node| node.kind == Kind::Follow)
    }

    /// open(2); `flags` as there.
    pub fn open(&self, number: u64, flags: i32) -> Result<u64> {
        if flags & libc::O_ACCMODE != libc::O_RDONLY && self.store.read_only() {
            return Err(Error::ReadOnly);
        }
        let node = Node::of(number)?;
        if node.kind == Kind::Status {
            return match flags & libc::O_ACCMODE {
                libc::O_RDONLY => Ok(self.keep(Handle::Text(self.status().into()))),
                _ => Err(Error::NotPermitted),
            };
        }
        let open = Open::new(node, self.stream(node)?, flags, self.waiters.clone())?;
        Ok(self.keep(Handle::File(Arc::new(open))))
    }

    /// creat(2): only `at/N`, where N is the next index.
    pub fn create(&self, parent: u64, name: &OsStr, flags: i32) -> Result<(Attr, u64)> {
        let parent = Node::of(parent)?;
        if parent.view().is_none() || !matches!(horizon(name), Some(Horizon::Index(_))) {
            return Err(Error::NotPermitted);
        }
        let node = self.find(parent, name)?;
        let created = || Ok((self.attr_of(node)?, self.open(node.number(), flags)?));
        created().inspect_err(|_| self.forget(node.number(), 1))
    }

    fn keep(&self, handle: Handle) -> u64 {
        let number = self.next_handle.fetch_add(1, Relaxed);
        lock(&self.handles).insert(number, handle);
        number
    }

    /// An open file.
    pub fn file(&self, handle: u64) -> Result<Arc<Open>> {
        match lock(&self.handles).get(&handle) {
            Some(Handle::File(open)) => Ok(open.clone()),
            _ => Err(Error::Invalid),
        }
    }

    /// The last close of an open file or directory. What was not committed is gone.
    pub fn release(&self, handle: u64) -> Result<()> {
        // Dropped after the lock: a batch given up may have space to give back.
        let handle = lock(&self.handles).remove(&handle);
        match handle.ok_or(Error::Invalid)? {
            Handle::File(open) => open.release(),
            Handle::Text(_) | Handle::Directory(..) => {}
        }
        Ok(())
    }

    /// What an open file of the `number` shows, when that is none of a stream's.
    pub fn text(&self, number: u64, handle: u64) -> Option<Arc<str>> {
        if number != ROOT.beside(Kind::Status, 0).number() {
            return None;
        }
        match lock(&self.handles).get(&handle) {
            Some(Handle::Text(text)) => Some(text.clone()),
            _ => None,
        }
    }

    /// opendir(3).
    pub fn opendir(&self, number: u64) -> Result<u64> {
        let node = Node::of(number)?;
        Ok(self.keep(Handle::Directory(node, Arc::default())))
    }

    /// readdir(3): the entries of an open directory, as they are now or, unless it is read from
    /// the `beginning`, were then.
    pub fn entries(&self, handle: u64, beginning: bool) -> Result<Entries> {
        let node = match lock(&self.handles).get(&handle) {
            Some(Handle::Directory(node, _)) if beginning => *node,
            Some(Handle::Directory(_, entries)) => return Ok(entries.clone()),
            _ => return Err(Error::Invalid),
        };
        let entries = Arc::new(self.list(node)?);
        let read = Handle::Directory(node, entries.clone());
        lock(&self.handles).entry(handle).and_modify(|handle| *handle = read);
        Ok(entries)
    }

    fn list(&self, node: Node) -> Result<Vec<(Node, OsString)>> {
        let mut entries = vec![(node, ".".into()), (node, "..".into())];
        match node.kind {
            Kind::Root => {
                for name in self.store.streams()? {
                    let name = name.map_err(Error::os("the store"))?;
                    // One that nobody has looked up has no number yet.
                    let number = lock(&self.streams).numbers.get(&name).copied();
                    entries.push((Node::stream(number.unwrap_or(0)), name));
                }
            }
            Kind::Stream => {
                entries.extend(FILES.map(|(name, kind)| (node.beside(kind, 0), name.into())));
            }
            _ => {
                let links = (0..).zip(NAMED);
                entries.extend(links.map(|(n, name)| (node.beside(Kind::Link, n), name.into())));
            }
        }
        Ok(entries)
    }
}

/// Size of a file, and when it was written, 0 for never.
fn size(node: Node, stream: &Arc<Stream<Real>>) -> Result<(u64, u64)> {
    let tip = stream.tip()?;
    let size = match node.kind {
        Kind::New => 0,
        // A follower's file has no end, as a pipe has none. It is not empty, which sendfile(2), as in
        // busybox cat, would take for the end; and not longer, or Java would take that for available.
        Kind::Follow => 1,
        Kind::Count => tip.count.to_string().len() as u64 + 1,
        Kind::From => tip.view.saturating_sub(stream.view(node.index)?),
        Kind::At => match stream.meta(node.index) {
            Ok((_, len, time)) => return Ok((len, time)),
            // Created, but not written yet.
            Err(Error::NotFound) => 0,
            Err(error) => return Err(error),
        },
        _ => tip.view,
    };
    Ok((size, tip.time))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::ffi::OsStringExt;

    #[test]
    fn horizons_are_as_documented() {
        let horizon = |name: &str| super::horizon(name.as_ref());
        for (name, index) in [("0", 0), ("7", 7), ("120", 120)] {
            assert_eq!(horizon(name), Some(Horizon::Index(index)));
        }
        for (name, nanos) in [
            ("@0", 0),
            ("@1", 1_000_000_000),
            ("@1.5", 1_500_000_000),
            ("@1.000000001", 1_000_000_001),
            ("@1.0000000010", 1_000_000_001),
            ("@1.0000000011", 1_000_000_002),
            ("@99999999999999999999999", u64::MAX),
        ] {
            assert_eq!(horizon(name), Some(Horizon::Time(nanos)), "{name}");
        }
        assert_eq!(horizon("newest"), Some(Horizon::Named(1)));
        for name in [
            "",
            "01",
            "+1",
            "-1",
            "1.0",
            " 1",
            "0x1",
            "@",
            "@-1",
            "@.5",
            "@1.",
            "@1.2.3",
            "Next",
            "99999999999999999999999",
        ] {
            assert_eq!(horizon(name), None, "{name}");
        }
    }

    proptest! {
        #[test]
        fn any_name_is_a_horizon_or_not(name: Vec<u8>) {
            horizon(&OsString::from_vec(name));
        }

        #[test]
        fn a_node_is_its_number(stream in 1u32..1 << STREAM_BITS, index in 0..=INDICES) {
            prop_assert_eq!(ROOT.number(), 1);
            for kind in KINDS {
                let node = Node::stream(stream).beside(kind, index);
                prop_assert_eq!(Node::of(node.number()), Ok(node));
            }
            let link = Node::stream(stream).beside(Kind::Link, INDICES + NAMED.len() as u64);
            prop_assert_eq!(Node::of(link.number()), Ok(link));
        }

        #[test]
        fn any_number_is_a_node_or_not(number: u64) {
            let _ = Node::of(number);
        }
    }
}
