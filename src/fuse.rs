//! fuser's requests: convert, call, reply.
//!
//! Every request is handled on the event loop thread that received it; a commit in progress takes
//! over the reply, so that only one thread per stream ever waits for a disk. Files are opened for
//! direct I/O: writes then arrive as made, with their lock owner, and no page cache can go stale.
//! getxattr stays unanswered (ENOSYS), or the kernel would ask for it at each write.

use std::ffi::OsStr;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, InitFlags, KernelConfig, LockOwner, OpenFlags, PollEvents, PollFlags, PollNotifier,
    RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry,
    ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};

use crate::error::{Error, Result};
use crate::tree::{Attr, Change, Found, Kind, Tree};
use crate::{proc, sys};

/// The longest write that arrives in one piece: 256 KiB times the threads is what their buffers
/// may take.
const MAX_WRITE: u32 = 256 << 10;
/// How long the kernel may believe a name or mode that another mount may change.
const SHORT: Duration = Duration::from_secs(1);
/// How long it may believe names that stay as long as their stream.
const LONG: Duration = Duration::from_secs(24 * 3600);

/// The file system that fuser serves.
pub struct Fuse(Arc<Tree>, Box<dyn Fn() + Send + Sync>);

impl Fuse {
    /// Serves `tree`; calls `ended` when the mount is gone, whoever unmounted it.
    pub fn new(tree: Arc<Tree>, ended: Box<dyn Fn() + Send + Sync>) -> Fuse {
        Fuse(tree, ended)
    }

    /// Runs a request. A fault in it is an error like any other, and its user's alone.
    fn run<R>(&self, request: impl FnOnce(&Tree) -> Result<R>) -> std::result::Result<R, Errno> {
        catch_unwind(AssertUnwindSafe(|| request(&self.0)))
            .unwrap_or_else(|_| Err(Error::Fault))
            .map_err(|error| errno(&self.0, &error))
    }

    /// Runs a request whose reply is sent from wherever it ends. A fault drops the reply, which
    /// fuser then answers with EIO.
    fn start(&self, request: impl FnOnce(&Arc<Tree>)) {
        if catch_unwind(AssertUnwindSafe(|| request(&self.0))).is_err() {
            self.0.log("a request ended in a fault");
        }
    }
}

/// The answer to an error. What is the store's fault is for the operator to know.
fn errno(tree: &Tree, error: &Error) -> Errno {
    let errno = error.errno();
    if errno == libc::EIO {
        tree.log(&error.to_string());
    }
    Errno::from_i32(errno)
}

fn time(nanos: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_nanos(nanos)
}

fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::Directory => FileType::Directory,
        Kind::File => FileType::RegularFile,
        Kind::Link => FileType::Symlink,
    }
}

fn file_attr(attr: &Attr) -> FileAttr {
    let time = time(attr.time);
    FileAttr {
        ino: INodeNo(attr.number),
        size: attr.size,
        blocks: attr.size.div_ceil(512),
        atime: time,
        mtime: time,
        ctime: time,
        crtime: time,
        kind: file_type(attr.kind),
        perm: u16::try_from(attr.mode).unwrap_or(0),
        nlink: if attr.kind == Kind::Directory { 2 } else { 1 },
        uid: attr.uid,
        gid: attr.gid,
        rdev: 0,
        blksize: 1 << 17,
        flags: 0,
    }
}

fn attr_ttl(attr: &Attr) -> Duration {
    if attr.steady { SHORT } else { Duration::ZERO }
}

fn entry(reply: ReplyEntry, (attr, steady): &Found) {
    let names = match (steady, attr.kind) {
        (true, _) => LONG,
        (false, Kind::Directory) => SHORT,
        (false, _) => Duration::ZERO,
    };
    reply.entry_with_ttls(&attr_ttl(attr), &names, &file_attr(attr), Generation(0));
}

fn empty(reply: ReplyEmpty, result: std::result::Result<(), Errno>) {
    match result {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(errno),
    }
}

impl Filesystem for Fuse {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // An older kernel has less; what is missing is slower, or mmap fails there.
        for wanted in [
            InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
            InitFlags::FUSE_AUTO_INVAL_DATA,
            InitFlags::FUSE_PARALLEL_DIROPS,
        ] {
            let _ = config.add_capabilities(wanted);
        }
        let _ = config.set_max_write(MAX_WRITE);
        let _ = config.set_max_background(256);
        Ok(())
    }

    fn destroy(&mut self) {
        (self.1)();
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.run(|tree| tree.lookup(parent.0, name)) {
            Ok(found) => entry(reply, &found),
            Err(errno) => reply.error(errno),
        }
    }

    fn forget(&self, _: &Request, node: INodeNo, lookups: u64) {
        self.0.forget(node.0, lookups);
    }

    fn getattr(&self, _: &Request, node: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.run(|tree| tree.attr(node.0)) {
            Ok(attr) => reply.attr(&attr_ttl(&attr), &file_attr(&attr)),
            Err(errno) => reply.error(errno),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        node: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        _: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let change = Change {
            mode,
            uid,
            gid,
            size,
        };
        match self.run(|tree| tree.change(node.0, change)) {
            Ok(attr) => reply.attr(&attr_ttl(&attr), &file_attr(&attr)),
            Err(errno) => reply.error(errno),
        }
    }

    fn readlink(&self, _: &Request, node: INodeNo, reply: ReplyData) {
        match self.run(|tree| tree.readlink(node.0)) {
            Ok(target) => reply.data(target.as_bytes()),
            Err(errno) => reply.error(errno),
        }
    }

    fn mknod(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(Errno::EPERM);
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        let owner = (request.uid(), request.gid());
        let mode = mode & !umask & 0o7777;
        match self.run(|tree| tree.mkdir(parent.0, name, mode, owner)) {
            Ok(found) => entry(reply, &found),
            Err(errno) => reply.error(errno),
        }
    }

    fn unlink(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EPERM);
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(reply, self.run(|tree| tree.rmdir(parent.0, name)));
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        if !(flags - RenameFlags::RENAME_NOREPLACE).is_empty() {
            return reply.error(Errno::EINVAL);
        }
        let (from, to) = ((parent.0, name), (newparent.0, newname));
        empty(
            reply,
            self.run(|tree| tree.rename(from, to, flags.is_empty())),
        );
    }

    fn open(&self, _: &Request, node: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        match self.run(|tree| tree.open(node.0, flags.0)) {
            Ok(handle) => reply.opened(FileHandle(handle), FopenFlags::FOPEN_DIRECT_IO),
            Err(errno) => reply.error(errno),
        }
    }

    fn create(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        _: u32,
        _: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        match self.run(|tree| tree.create(parent.0, name, flags)) {
            Ok(((attr, _), handle)) => reply.created(
                &Duration::ZERO,
                &file_attr(&attr),
                Generation(0),
                FileHandle(handle),
                FopenFlags::FOPEN_DIRECT_IO,
            ),
            Err(errno) => reply.error(errno),
        }
    }

    fn read(
        &self,
        request: &Request,
        node: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        flags: OpenFlags,
        owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        // A read for the page cache, in the name of nobody: mmap, or sendfile(2) and splice(2), which
        // do not wait. To EINVAL they who use these answer by reading themselves.
        if owner.is_none() && Tree::follows(node.0) {
            return reply.error(Errno::EINVAL);
        }
        self.start(|tree| {
            let answering = tree.clone();
            let answer = move |result: Result<Vec<u8>>| match result {
                Ok(bytes) => reply.data(&bytes),
                Err(error) => reply.error(errno(&answering, &error)),
            };
            let wait = (flags.0 & libc::O_NONBLOCK == 0).then_some(request.pid());
            match tree.file(handle.0) {
                Ok(file) => file.read_on(offset, size as usize, wait, Box::new(answer)),
                Err(error) => answer(Err(error)),
            }
        });
    }

    fn poll(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        notifier: PollNotifier,
        _: PollEvents,
        flags: PollFlags,
        reply: ReplyPoll,
    ) {
        let notify = || -> Box<dyn FnOnce() + Send> {
            // Who no longer polls is told nothing.
            Box::new(|| drop(notifier.notify()))
        };
        let later = flags.contains(PollFlags::FUSE_POLL_SCHEDULE_NOTIFY);
        match self.run(|tree| tree.file(handle.0)?.poll(later.then(notify))) {
            Ok(ready) => {
                let write = PollEvents::POLLOUT | PollEvents::POLLWRNORM;
                let read = PollEvents::POLLIN | PollEvents::POLLRDNORM;
                reply.poll(if ready { read | write } else { write });
            }
            Err(errno) => reply.error(errno),
        }
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        bytes: &[u8],
        how: WriteFlags,
        _: OpenFlags,
        owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        if how.contains(WriteFlags::FUSE_WRITE_CACHE) {
            // A page of a shared mapping: not an append.
            return reply.error(Errno::EPERM);
        }
        self.start(|tree| {
            // A request holds no more than MAX_WRITE.
            let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
            let answering = tree.clone();
            let done = move |result| match result {
                Ok(()) => reply.written(len),
                Err(error) => reply.error(errno(&answering, &error)),
            };
            let owner = owner.map_or(0, |owner| owner.0);
            match tree.file(handle.0) {
                Ok(file) => file.write(owner, offset, bytes, Box::new(done)),
                Err(error) => done(Err(error)),
            }
        });
    }

    fn flush(
        &self,
        request: &Request,
        _: INodeNo,
        handle: FileHandle,
        owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        self.start(|tree| {
            let answering = tree.clone();
            let done = move |result: Result<()>| {
                empty(reply, result.map_err(|error| errno(&answering, &error)));
            };
            let ending = || proc::ending(request.pid());
            match tree.file(handle.0) {
                Ok(file) => file.flush(owner.0, ending, Box::new(done)),
                Err(error) => done(Err(error)),
            }
        });
    }

    fn fsync(&self, _: &Request, _: INodeNo, handle: FileHandle, _: bool, reply: ReplyEmpty) {
        self.start(|tree| {
            let answering = tree.clone();
            let done = move |result: Result<()>| {
                empty(reply, result.map_err(|error| errno(&answering, &error)));
            };
            match tree.file(handle.0) {
                Ok(file) => file.sync(Box::new(done)),
                Err(error) => done(Err(error)),
            }
        });
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.start(|tree| tree.release(handle.0));
        reply.ok();
    }

    fn opendir(&self, _: &Request, node: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match self.run(|tree| tree.opendir(node.0)) {
            Ok(handle) => reply.opened(FileHandle(handle), FopenFlags::empty()),
            Err(errno) => reply.error(errno),
        }
    }

    fn readdir(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let listed = self.run(|tree| {
            tree.readdir(handle.0, offset, |offset, number, kind, name| {
                reply.add(INodeNo(number), offset, file_type(kind), name)
            })
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(errno) => reply.error(errno),
        }
    }

    fn releasedir(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.0.release(handle.0);
        reply.ok();
    }

    fn fsyncdir(&self, _: &Request, node: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        empty(reply, self.run(|tree| tree.sync_names(node.0)));
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let root = self.0.root();
        match self.run(|_| sys::statvfs(root).map_err(Error::os(root.display()))) {
            Ok(stat) => reply.statfs(
                stat.f_blocks,
                stat.f_bfree,
                stat.f_bavail,
                stat.f_files,
                stat.f_ffree,
                u32::try_from(stat.f_bsize).unwrap_or(4096),
                u32::try_from(stat.f_namemax).unwrap_or(255),
                u32::try_from(stat.f_frsize).unwrap_or(4096),
            ),
            Err(errno) => reply.error(errno),
        }
    }
}
