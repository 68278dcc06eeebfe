//! The mounted tree: paths, nodes, attributes, open files. Knows nothing of fuser.
//!
//! ```text
//! /S/{events,lines,new,count}   /S/{from,at,follow}/{N,beginning,newest,next,@SECONDS}
//! ```
//!
//! A node number holds all there is to know of a node but the stream's name, so that memory does
//! not grow with the events that were ever looked at. The kernel says when it forgets a stream.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, Metadata};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use crate::disk::{Names, Real};
use crate::error::{Error, Result};
use crate::open::{Open, Writer};
use crate::store::Store;
use crate::stream::{Cursor, Stream, lock};
use crate::wait::{Parked, Waiters};

// ---- nodes -----------------------------------------------------------------------------------

/// What a directory of horizons shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum View {
    From,
    At,
    Follow,
}

/// A place in the tree; `u32` is our number for a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Node {
    Root,
    Stream(u32),
    Events(u32),
    Lines(u32),
    New(u32),
    Count(u32),
    Views(u32, View),
    View(u32, View, u64),
    Link(u32, Link),
}

/// A horizon with a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Link {
    Beginning,
    Newest,
    Next,
    /// `@SECONDS`, which is looked up anew each time.
    To(u64),
}

/// The files of a stream's directory.
const ENTRIES: [&str; 7] = ["events", "lines", "new", "count", "from", "at", "follow"];
/// The named horizons.
const LINKS: [(&str, Link); 3] = [
    ("beginning", Link::Beginning),
    ("newest", Link::Newest),
    ("next", Link::Next),
];

const ROOT: u64 = 1;
const STREAM_BITS: u32 = 24;
const INDEX_BITS: u32 = 36;
/// So many events of a stream can be addressed.
const INDICES: u64 = (1 << INDEX_BITS) - 4;

impl Node {
    /// `index << 28 | stream << 4 | kind`; a stream's number is never 0, so this is never [`ROOT`].
    fn number(self) -> u64 {
        let (kind, stream, index) = match self {
            Node::Root => return ROOT,
            Node::Stream(stream) => (0, stream, 0),
            Node::Events(stream) => (1, stream, 0),
            Node::Lines(stream) => (2, stream, 0),
            Node::New(stream) => (3, stream, 0),
            Node::Count(stream) => (4, stream, 0),
            Node::Views(stream, View::From) => (5, stream, 0),
            Node::Views(stream, View::At) => (6, stream, 0),
            Node::Views(stream, View::Follow) => (7, stream, 0),
            Node::View(stream, View::From, index) => (8, stream, index),
            Node::View(stream, View::At, index) => (9, stream, index),
            Node::View(stream, View::Follow, index) => (10, stream, index),
            Node::Link(stream, Link::Beginning) => (11, stream, 0),
            Node::Link(stream, Link::Newest) => (11, stream, 1),
            Node::Link(stream, Link::Next) => (11, stream, 2),
            Node::Link(stream, Link::To(index)) => (11, stream, index + 3),
        };
        index << (STREAM_BITS + 4) | u64::from(stream) << 4 | kind
    }

    /// The node of a number. NotFound for one that was never given out.
    fn of(number: u64) -> Result<Node> {
        let stream = (number >> 4) as u32 & ((1 << STREAM_BITS) - 1);
        let index = number >> (STREAM_BITS + 4);
        Ok(match number & 0xf {
            _ if number == ROOT => Node::Root,
            0 => Node::Stream(stream),
            1 => Node::Events(stream),
            2 => Node::Lines(stream),
            3 => Node::New(stream),
            4 => Node::Count(stream),
            5 => Node::Views(stream, View::From),
            6 => Node::Views(stream, View::At),
            7 => Node::Views(stream, View::Follow),
            8 => Node::View(stream, View::From, index),
            9 => Node::View(stream, View::At, index),
            10 => Node::View(stream, View::Follow, index),
            11 => Node::Link(
                stream,
                match index {
                    0 => Link::Beginning,
                    1 => Link::Newest,
                    2 => Link::Next,
                    to => Link::To(to - 3),
                },
            ),
            _ => return Err(Error::NotFound),
        })
    }

    fn stream(self) -> Option<u32> {
        match self {
            Node::Root => None,
            Node::Stream(stream)
            | Node::Events(stream)
            | Node::Lines(stream)
            | Node::New(stream)
            | Node::Count(stream)
            | Node::Views(stream, _)
            | Node::View(stream, _, _)
            | Node::Link(stream, _) => Some(stream),
        }
    }

    fn kind(self) -> Kind {
        match self {
            Node::Root | Node::Stream(_) | Node::Views(..) => Kind::Directory,
            Node::Link(..) => Kind::Link,
            _ => Kind::File,
        }
    }
}

/// A horizon as it is written in a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Horizon {
    Index(u64),
    Named(Link),
    /// Nanoseconds since the Unix epoch.
    Time(u64),
}

/// Reads a horizon: an index in plain decimal, a name, or `@` and seconds with an optional
/// fraction.
fn horizon(name: &[u8]) -> Option<Horizon> {
    let name = std::str::from_utf8(name).ok()?;
    if let Some((_, link)) = LINKS.iter().find(|(link, _)| *link == name) {
        return Some(Horizon::Named(*link));
    }
    let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    if let Some(time) = name.strip_prefix('@') {
        let (seconds, fraction) = time.split_once('.').unwrap_or((time, "0"));
        if !digits(seconds) || !digits(fraction) {
            return None;
        }
        // Rounded up to a nanosecond: the first event at or after.
        let nanos: u64 = format!("{fraction:0<9}")[..9].parse().ok()?;
        let more = fraction.bytes().skip(9).any(|b| b != b'0');
        // Beyond what a time can be there is no event.
        let seconds = seconds.parse().unwrap_or(u64::MAX);
        let time = seconds.saturating_mul(1_000_000_000);
        return Some(Horizon::Time(time.saturating_add(nanos + u64::from(more))));
    }
    let plain = digits(name) && (name == "0" || !name.starts_with('0'));
    plain.then(|| name.parse().ok().map(Horizon::Index))?
}

/// What kind of file a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
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
    /// The node's number, which is its inode number.
    pub number: u64,
    /// What it is.
    pub kind: Kind,
    /// Bytes.
    pub size: u64,
    /// Modified: nanoseconds since the Unix epoch.
    pub time: u64,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// It may be believed for a while: only another mount can change it.
    pub steady: bool,
}

/// A change of attributes; what is None stays.
#[derive(Clone, Copy, Debug, Default)]
pub struct Change {
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Bytes.
    pub size: Option<u64>,
}

// ---- names -----------------------------------------------------------------------------------

/// A stream that the kernel knows.
struct Known {
    /// None when the name went to another stream, or away.
    name: Option<OsString>,
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
        if let Some(&number) = self.numbers.get(name) {
            if self
                .known
                .get(&number)
                .is_some_and(|known| known.inode == inode)
            {
                return Ok(number);
            }
            self.unname(name);
        }
        if self.known.len() as u64 >= (1 << STREAM_BITS) - 1 {
            return Err(Error::Os {
                errno: libc::ENFILE,
                what: "more streams in use than there are numbers".into(),
            });
        }
        loop {
            self.last = (self.last + 1) & ((1 << STREAM_BITS) - 1);
            if self.last != 0 && !self.known.contains_key(&self.last) {
                break;
            }
        }
        let known = Known {
            name: Some(name.into()),
            inode,
            lookups: 0,
        };
        self.known.insert(self.last, known);
        self.numbers.insert(name.into(), self.last);
        Ok(self.last)
    }

    fn unname(&mut self, name: &OsStr) {
        if let Some(number) = self.numbers.remove(name)
            && let Some(known) = self.known.get_mut(&number)
        {
            known.name = None;
        }
    }

    fn rename(&mut self, from: &OsStr, to: &OsStr) {
        self.unname(to);
        if let Some(number) = self.numbers.remove(from) {
            self.numbers.insert(to.into(), number);
            if let Some(known) = self.known.get_mut(&number) {
                known.name = Some(to.into());
            }
        }
    }

    fn forget(&mut self, number: u32, lookups: u64) {
        if let Some(known) = self.known.get_mut(&number) {
            known.lookups = known.lookups.saturating_sub(lookups);
            if known.lookups == 0 {
                let known = self.known.remove(&number);
                if let Some(name) = known.and_then(|known| known.name) {
                    self.numbers.remove(&name);
                }
            }
        }
    }
}

/// An open directory.
pub struct Listing {
    node: Node,
    at: Mutex<Position>,
}

/// Where the kernel is in the root's listing.
#[derive(Default)]
struct Position {
    names: Option<Names>,
    offset: u64,
    /// Read from the store, but there was no room for it.
    kept: Option<OsString>,
}

enum Handle {
    File(Arc<Open>),
    Directory(Arc<Listing>),
}

// ---- the tree --------------------------------------------------------------------------------

/// A found node, and whether its name holds as long as its stream does.
pub type Found = (Attr, bool);

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
        }
    }

    /// Those who wait for events.
    pub fn waiters(&self) -> &Waiters {
        &self.waiters
    }

    /// Tells the operator.
    pub fn log(&self, line: &str) {
        self.store.log(line);
    }

    /// The directory that holds the store.
    pub fn root(&self) -> &std::path::Path {
        &self.root
    }

    fn name(&self, node: Node) -> Result<OsString> {
        let streams = lock(&self.streams);
        let known = node.stream().and_then(|stream| streams.known.get(&stream));
        known
            .and_then(|known| known.name.clone())
            .ok_or(Error::NotFound)
    }

    fn stream(&self, node: Node) -> Result<Arc<Stream<Real>>> {
        self.store.stream(self.name(node)?)
    }

    fn metadata(&self, name: &OsStr) -> Result<Metadata> {
        match fs::symlink_metadata(self.root.join(name)) {
            Ok(metadata) if metadata.is_dir() => Ok(metadata),
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::os(name.display())(error))
            }
            _ => Err(Error::NotFound),
        }
    }

    fn attr_of(&self, node: Node) -> Result<Attr> {
        let name = match node {
            Node::Root => OsString::new(),
            node => self.name(node)?,
        };
        let directory = self.metadata(&name)?;
        let mut attr = Attr {
            number: node.number(),
            kind: node.kind(),
            size: directory.len(),
            time: u64::try_from(directory.mtime())
                .unwrap_or(0)
                .saturating_mul(1_000_000_000)
                + u64::try_from(directory.mtime_nsec()).unwrap_or(0),
            mode: directory.mode() & 0o7777,
            uid: directory.uid(),
            gid: directory.gid(),
            steady: matches!(node, Node::Root | Node::Stream(_)),
        };
        match (node, self.private) {
            (Node::Root, Some(user)) => {
                attr.mode &= 0o700;
                attr.uid = user;
            }
            (Node::Root | Node::Stream(_) | Node::Views(..), _) => {}
            (Node::Link(_, link), _) => {
                attr.mode = 0o777;
                attr.size = self.target(node, link)?.len() as u64;
            }
            _ => {
                let stream = self.store.stream(&name)?;
                attr.mode &= 0o666;
                (attr.size, attr.time) = size(node, &stream, attr.time)?;
            }
        }
        Ok(attr)
    }

    /// stat(2).
    pub fn attr(&self, number: u64) -> Result<Attr> {
        self.attr_of(Node::of(number)?)
    }

    /// The node `name` in the directory `parent`. The kernel has to [`Tree::forget`] it.
    pub fn lookup(&self, parent: u64, name: &OsStr) -> Result<Found> {
        let node = self.find(Node::of(parent)?, name)?;
        let steady = !matches!(node, Node::Stream(_) | Node::Link(_, Link::To(_)));
        // Before it is looked at: the kernel may be forgetting it at this moment.
        self.remember(node);
        let attr = self.attr_of(node).and_then(|attr| match node {
            Node::View(_, View::At, index) if index >= self.stream(node)?.count()? => {
                Err(Error::NotFound)
            }
            _ => Ok(attr),
        });
        let attr = attr.inspect_err(|_| self.forget(node.number(), 1))?;
        Ok((attr, steady))
    }

    fn find(&self, parent: Node, name: &OsStr) -> Result<Node> {
        let bytes = name.as_encoded_bytes();
        match parent {
            Node::Root => {
                if !crate::disk::is_stream_name(name) {
                    return Err(Error::NotFound);
                }
                let inode = self.metadata(name)?.ino();
                let stream = lock(&self.streams).number(name, inode)?;
                Ok(Node::Stream(stream))
            }
            Node::Stream(stream) => match bytes {
                b"events" => Ok(Node::Events(stream)),
                b"lines" => Ok(Node::Lines(stream)),
                b"new" => Ok(Node::New(stream)),
                b"count" => Ok(Node::Count(stream)),
                b"from" => Ok(Node::Views(stream, View::From)),
                b"at" => Ok(Node::Views(stream, View::At)),
                b"follow" => Ok(Node::Views(stream, View::Follow)),
                _ => Err(Error::NotFound),
            },
            Node::Views(stream, view) => match horizon(bytes).ok_or(Error::NotFound)? {
                Horizon::Named(link) => Ok(Node::Link(stream, link)),
                Horizon::Time(time) => {
                    let index = self.stream(parent)?.since(time)?;
                    Ok(Node::Link(stream, Link::To(index.min(INDICES))))
                }
                Horizon::Index(index) if index > self.stream(parent)?.count()?.min(INDICES) => {
                    Err(Error::NotFound)
                }
                Horizon::Index(index) => Ok(Node::View(stream, view, index)),
            },
            _ => Err(Error::NotFound),
        }
    }

    fn remember(&self, node: Node) {
        let mut streams = lock(&self.streams);
        let stream = node.stream();
        if let Some(known) = stream.and_then(|stream| streams.known.get_mut(&stream)) {
            known.lookups += 1;
        }
    }

    /// The kernel has forgotten `lookups` of the times it was told of a node.
    pub fn forget(&self, number: u64, lookups: u64) {
        if let Some(stream) = Node::of(number).ok().and_then(Node::stream) {
            lock(&self.streams).forget(stream, lookups);
        }
    }

    /// readlink(2).
    pub fn readlink(&self, number: u64) -> Result<String> {
        match Node::of(number)? {
            node @ Node::Link(_, link) => self.target(node, link),
            _ => Err(Error::Invalid),
        }
    }

    fn target(&self, node: Node, link: Link) -> Result<String> {
        let count = || self.stream(node)?.count();
        let index = match link {
            Link::Beginning => 0,
            Link::Newest => count()?.saturating_sub(1),
            Link::Next => count()?,
            Link::To(index) => index,
        };
        Ok(index.to_string())
    }

    /// mkdir(2) by the user `owner` (uid, gid).
    pub fn mkdir(&self, parent: u64, name: &OsStr, mode: u32, owner: (u32, u32)) -> Result<Found> {
        if Node::of(parent)? != Node::Root {
            return Err(Error::NotPermitted);
        }
        self.store.create(name, mode)?;
        let path = self.root.join(name);
        let own = || -> std::io::Result<()> {
            let made = fs::symlink_metadata(&path)?;
            if (made.uid(), made.gid()) != owner {
                chown(&path, Some(owner.0), Some(owner.1))?;
            }
            // Our own umask has had its say.
            if made.mode() & 0o7777 != mode {
                fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
            }
            Ok(())
        };
        if let Err(error) = own() {
            // Nobody has seen it yet.
            let _ = fs::remove_dir(&path);
            return Err(Error::os(path.display())(error));
        }
        self.lookup(parent, name)
    }

    /// rmdir(2).
    pub fn rmdir(&self, parent: u64, name: &OsStr) -> Result<()> {
        if Node::of(parent)? != Node::Root {
            return Err(Error::NotPermitted);
        }
        let stream = self.store.stream(name)?;
        self.store.remove(name)?;
        self.waiters.wake(Arc::as_ptr(&stream) as usize, true);
        lock(&self.streams).unname(name);
        Ok(())
    }

    /// rename(2). `replace` an empty stream that has the name.
    pub fn rename(&self, from: (u64, &OsStr), to: (u64, &OsStr), replace: bool) -> Result<()> {
        if (from.0, to.0) != (ROOT, ROOT) {
            return Err(Error::NotPermitted);
        }
        if !replace && self.metadata(to.1).is_ok() {
            return Err(Error::Exists);
        }
        let stream = self.store.stream(from.1)?;
        self.store.rename(from.1, to.1)?;
        self.waiters.wake(Arc::as_ptr(&stream) as usize, true);
        lock(&self.streams).rename(from.1, to.1);
        Ok(())
    }

    /// chmod(2), chown(2), truncate(2). Times are what they are, and touch(1) is content.
    pub fn change(&self, number: u64, change: Change) -> Result<Attr> {
        let node = Node::of(number)?;
        let attr = self.attr_of(node)?;
        let nothing = matches!(node, Node::New(_) | Node::View(_, View::At, _)) && attr.size == 0;
        if change.size.is_some_and(|size| size != 0 || !nothing) {
            return Err(Error::NotPermitted);
        }
        let new = |new: Option<u32>, old| new.filter(|new| *new != old);
        let mode = new(change.mode.map(|mode| mode & 0o7777), attr.mode);
        let (uid, gid) = (new(change.uid, attr.uid), new(change.gid, attr.gid));
        if mode.is_none() && uid.is_none() && gid.is_none() {
            return Ok(attr);
        }
        let Node::Stream(_) = node else {
            return Err(Error::NotPermitted);
        };
        if self.store.read_only() {
            return Err(Error::ReadOnly);
        }
        let path = self.root.join(self.name(node)?);
        let os = || Error::os(path.display());
        if uid.is_some() || gid.is_some() {
            chown(&path, uid, gid).map_err(os())?;
        }
        if let Some(mode) = mode {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).map_err(os())?;
        }
        self.attr_of(node)
    }

    /// Whether a node is read as a pipe is: what comes, and not from any place.
    pub fn follows(number: u64) -> bool {
        matches!(Node::of(number), Ok(Node::View(_, View::Follow, _)))
    }

    /// open(2); `flags` as there.
    pub fn open(&self, number: u64, flags: i32) -> Result<u64> {
        let node = Node::of(number)?;
        self.open_node(node, flags, false)
    }

    fn open_node(&self, node: Node, flags: i32, create: bool) -> Result<u64> {
        let write = flags & libc::O_ACCMODE != libc::O_RDONLY;
        let append = flags & libc::O_APPEND != 0;
        if write && self.store.read_only() {
            return Err(Error::ReadOnly);
        }
        let stream = self.stream(node)?;
        let (mut base, mut len, mut guard) = (0, u64::MAX, None);
        match node {
            Node::Events(_) | Node::Lines(_) if !write || append => {}
            Node::New(_) => {}
            Node::Count(_) if !write => {}
            Node::View(_, View::From, index) if !write || append => {
                if write {
                    guard = Some(index);
                    if index != stream.count()? {
                        return Err(Error::Exists);
                    }
                }
                base = stream.view(index)?;
            }
            Node::View(_, View::Follow, index) if !write => base = stream.view(index)?,
            Node::View(_, View::At, index) if create => {
                guard = Some(index);
                len = 0;
            }
            Node::View(_, View::At, index) => {
                (base, len, _) = stream.meta(index)?;
                if write {
                    return Err(Error::Exists);
                }
            }
            _ => return Err(Error::NotPermitted),
        }
        let seen = match node {
            Node::Count(_) => stream.count()?,
            _ => 0,
        };
        let through = matches!(node, Node::Lines(_)) || flags & libc::O_DSYNC != 0;
        let open = Open {
            node,
            stream,
            base,
            len,
            append,
            through,
            cursor: Mutex::new(Cursor(seen, 0)),
            writer: Mutex::new(Writer {
                guard,
                ..Writer::default()
            }),
            read: Mutex::default(),
            waiters: self.waiters.clone(),
        };
        Ok(self.keep(Handle::File(Arc::new(open))))
    }

    /// creat(2): only `at/N`, where N is the next index.
    pub fn create(&self, parent: u64, name: &OsStr, flags: i32) -> Result<(Found, u64)> {
        let Node::Views(stream, view) = Node::of(parent)? else {
            return Err(Error::NotPermitted);
        };
        let Some(Horizon::Index(index)) = horizon(name.as_encoded_bytes()) else {
            return Err(Error::NotPermitted);
        };
        let node = Node::View(stream, view, index);
        let count = self.stream(node)?.count()?;
        if index < count {
            return Err(Error::Exists);
        }
        if index > count || index > INDICES || view != View::At {
            return Err(Error::NotFound);
        }
        if flags & libc::O_ACCMODE == libc::O_RDONLY {
            // Nothing would ever be there.
            return Err(Error::NotFound);
        }
        let attr = self.attr_of(node)?;
        let handle = self.open_node(node, flags, true)?;
        self.remember(node);
        Ok(((attr, false), handle))
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
    pub fn release(&self, handle: u64) {
        // Dropped after the lock: a batch given up may have space to give back.
        let handle = lock(&self.handles).remove(&handle);
        if let Some(Handle::File(open)) = handle
            && lock(&open.read).polled
        {
            let parked = |parked: &Parked<Real>| Arc::ptr_eq(&parked.open, &open);
            drop(self.waiters.take(open.key(), parked));
        }
    }

    /// opendir(3).
    pub fn opendir(&self, number: u64) -> Result<u64> {
        let listing = Listing {
            node: Node::of(number)?,
            at: Mutex::default(),
        };
        Ok(self.keep(Handle::Directory(Arc::new(listing))))
    }

    /// readdir(3): calls `add` with the offset behind, node number, kind and name of each entry
    /// from `offset` on, until it says that there is no more room.
    pub fn readdir(
        &self,
        handle: u64,
        offset: u64,
        mut add: impl FnMut(u64, u64, Kind, &OsStr) -> bool,
    ) -> Result<()> {
        let listing = match lock(&self.handles).get(&handle) {
            Some(Handle::Directory(listing)) => listing.clone(),
            _ => return Err(Error::Invalid),
        };
        let here = listing.node.number();
        for (i, dots) in (0..)
            .zip([".", ".."])
            .skip(usize::try_from(offset).unwrap_or(2))
        {
            if add(i + 1, here, Kind::Directory, dots.as_ref()) {
                return Ok(());
            }
        }
        let fixed: Vec<(Node, &str)> = match listing.node {
            Node::Root => return self.list_streams(&listing, offset.max(2), add),
            Node::Stream(_) => ENTRIES
                .iter()
                .filter_map(|name| Some((self.find(listing.node, name.as_ref()).ok()?, *name)))
                .collect(),
            Node::Views(stream, _) => LINKS
                .iter()
                .map(|(name, link)| (Node::Link(stream, *link), *name))
                .collect(),
            _ => return Err(Error::Invalid),
        };
        for (i, (node, name)) in (2..).zip(fixed) {
            if i >= offset && add(i + 1, node.number(), node.kind(), name.as_ref()) {
                break;
            }
        }
        Ok(())
    }

    fn list_streams(
        &self,
        listing: &Listing,
        offset: u64,
        mut add: impl FnMut(u64, u64, Kind, &OsStr) -> bool,
    ) -> Result<()> {
        // The node number of a stream that nobody has looked up is not known: as libfuse says it.
        const UNKNOWN: u64 = 0xffff_ffff;
        let mut at = lock(&listing.at);
        if at.names.is_none() || at.offset != offset {
            // From the beginning, or where seekdir(3) went: there is no shorter way.
            *at = Position {
                names: Some(self.store.streams()?),
                offset: 2,
                kept: None,
            };
        }
        loop {
            let name = match at.kept.take() {
                Some(name) => name,
                None => match at.names.as_mut().and_then(Iterator::next) {
                    Some(name) => name.map_err(Error::os("the store"))?,
                    None => return Ok(()),
                },
            };
            if at.offset >= offset {
                let number = lock(&self.streams).numbers.get(&name).copied();
                let number = number.map_or(UNKNOWN, |stream| Node::Stream(stream).number());
                if add(at.offset + 1, number, Kind::Directory, &name) {
                    at.kept = Some(name);
                    return Ok(());
                }
            }
            at.offset += 1;
        }
    }

    /// fsync(2) of a directory.
    pub fn sync_names(&self, number: u64) -> Result<()> {
        let node = Node::of(number)?;
        if node != Node::Root {
            self.store.sync(self.name(node)?.as_ref())?;
        }
        self.store.sync("".as_ref())
    }
}

/// Size and time of a file.
fn size(node: Node, stream: &Arc<Stream<Real>>, born: u64) -> Result<(u64, u64)> {
    let tip = stream.tip()?;
    let time = if tip.time == 0 { born } else { tip.time };
    Ok(match node {
        Node::New(_) => (0, time),
        // A follower's file has no end, as a pipe has none. It is not empty, which sendfile(2), as in
        // busybox cat, would take for the end; and not longer, or Java would take that for available.
        Node::View(_, View::Follow, _) => (1, time),
        Node::Count(_) => (tip.count.to_string().len() as u64 + 1, time),
        Node::View(_, View::From, index) => (tip.view().saturating_sub(stream.view(index)?), time),
        Node::View(_, View::At, index) => match stream.meta(index) {
            Ok((_, len, time)) => (len, time),
            // Created, but not written yet.
            Err(Error::NotFound) => (0, time),
            Err(error) => return Err(error),
        },
        _ => (tip.view(), time),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn horizons_are_as_documented() {
        let horizon = |name: &str| super::horizon(name.as_bytes());
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
        assert_eq!(horizon("newest"), Some(Horizon::Named(Link::Newest)));
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
            horizon(&name);
        }

        #[test]
        fn a_node_is_its_number(stream in 1u32..1 << STREAM_BITS, index in 0..=INDICES) {
            for node in [
                Node::Root, Node::Stream(stream), Node::Events(stream), Node::Lines(stream),
                Node::New(stream), Node::Count(stream), Node::Views(stream, View::From),
                Node::Views(stream, View::At), Node::Views(stream, View::Follow),
                Node::View(stream, View::From, index), Node::View(stream, View::At, index),
                Node::View(stream, View::Follow, index), Node::Link(stream, Link::Beginning),
                Node::Link(stream, Link::Newest), Node::Link(stream, Link::Next),
                Node::Link(stream, Link::To(index)),
            ] {
                prop_assert_eq!(Node::of(node.number()), Ok(node));
            }
        }

        #[test]
        fn any_number_is_a_node_or_not(number: u64) {
            let _ = Node::of(number);
        }
    }
}
