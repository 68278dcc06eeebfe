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
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant, SystemTime};

use fuser::{
    BsdFileFlags, Errno, FileHandle, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, OpenFlags, PollEvents, PollFlags, PollNotifier, RenameFlags,
    ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen,
    ReplyPoll, ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};

use crate::error::{Error, Result};
use crate::node::Node;
use crate::open::Open;
use crate::reply::{Reply, attr, empty, entry, entry_attr, file_type, open_flags};
use crate::tree::Tree;
use crate::wait::Answer;

/// The longest write that arrives in one piece: 256 KiB times the threads is what their buffers
/// may take.
const MAX_WRITE: u32 = 256 << 10;

/// The file system that fuser serves.
pub struct Fuse(pub Arc<Tree>);

impl Fuse {
    /// Runs a request and replies to it. A fault in it is an error like any other, and its user's
    /// alone.
    fn run<P: Reply, R>(
        &self,
        asked: Asked,
        reply: P,
        request: impl FnOnce() -> Result<R>,
        ok: impl FnOnce(P, R),
    ) {
        let result = catch_unwind(AssertUnwindSafe(request)).unwrap_or(Err(Error::Fault));
        answer(&self.0, asked, reply, result, ok);
    }

    /// What is asked, when it is to be traced.
    fn asked(&self, request: &Request, what: std::fmt::Arguments) -> Asked {
        let tracing = self.0.tracing.load(Relaxed);
        tracing.then(|| (Instant::now(), format!("{what} by pid {}", request.pid())))
    }

    /// Hands a request to an open file, which replies to it from wherever it ends. A fault drops
    /// the reply, which fuser then answers with EIO.
    fn hand_over<P: Reply, R>(
        &self,
        asked: Asked,
        handle: FileHandle,
        reply: P,
        request: impl FnOnce(Arc<Open>, Answer<R>),
        ok: impl FnOnce(P, R) + Send + 'static,
    ) {
        let tree = self.0.clone();
        let answer = move |result| answer(&tree, asked, reply, result, ok);
        let run = || match self.0.file(handle.0) {
            Ok(file) => request(file, Box::new(answer)),
            Err(error) => answer(Err(error)),
        };
        if catch_unwind(AssertUnwindSafe(run)).is_err() {
            self.0.log("a request ended in a fault");
        }
    }
}

/// Replies. What is the store's fault is for the operator to know.
fn answer<P: Reply, R>(
    tree: &Tree,
    asked: Asked,
    reply: P,
    result: Result<R>,
    ok: impl FnOnce(P, R),
) {
    if let Some((began, what)) = asked {
        let how = result.as_ref().err().map_or("ok".into(), Error::to_string);
        tree.log(&format!("trace: {what}: {how}, {:?}", began.elapsed()));
    }
    match result {
        Ok(value) => ok(reply, value),
        Err(error) => {
            let errno = error.errno();
            // That a stream stopped was said when it did.
            if errno == libc::EIO && !matches!(error, Error::Stopped { .. }) {
                tree.log(&error.to_string());
            }
            reply.refuse(Errno::from_i32(errno));
        }
    }
}

/// When a request came that is to be traced, and what it says.
type Asked = Option<(Instant, String)>;

impl Filesystem for Fuse {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // An older kernel has less; what is missing is slower, or mmap fails there.
        let wanted = InitFlags::FUSE_ASYNC_DIO
            | InitFlags::FUSE_ATOMIC_O_TRUNC
            | InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP
            | InitFlags::FUSE_AUTO_INVAL_DATA
            | InitFlags::FUSE_PARALLEL_DIROPS;
        let _ = config.add_capabilities(wanted & config.capabilities());
        let _ = config.set_max_write(MAX_WRITE);
        let _ = config.set_max_background(256);
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let asked = self.asked(request, format_args!("lookup {parent} {name:?}"));
        self.run(asked, reply, || self.0.lookup(parent.0, name), entry);
    }

    fn forget(&self, _: &Request, node: INodeNo, lookups: u64) {
        self.0.forget(node.0, lookups);
    }

    fn getattr(&self, request: &Request, node: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let asked = self.asked(request, format_args!("getattr {node}"));
        self.run(asked, reply, || self.0.attr(node.0), attr);
    }

    fn setattr(
        &self,
        request: &Request,
        node: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        _: Option<TimeOrNow>,
        _: Option<SystemTime>,
        handle: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let asked = self.asked(
            request,
            format_args!("setattr {node} mode {mode:?} owner {uid:?} {gid:?} size {size:?}"),
        );
        let change = || {
            let cut = |size| self.0.truncate(node.0, handle.map(|handle| handle.0), size);
            size.map_or(Ok(()), cut)?;
            self.0.change(node.0, mode, uid, gid)
        };
        self.run(asked, reply, change, attr);
    }

    fn readlink(&self, request: &Request, node: INodeNo, reply: ReplyData) {
        let asked = self.asked(request, format_args!("readlink {node}"));
        let ok = |reply: ReplyData, target: String| reply.data(target.as_bytes());
        self.run(asked, reply, || self.0.readlink(node.0), ok);
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
        let asked = self.asked(request, format_args!("mkdir {name:?} {mode:o}"));
        let owner = (request.uid(), request.gid());
        let mode = mode & !umask & 0o7777;
        self.run(asked, reply, || self.0.mkdir(parent.0, name, mode, owner), entry);
    }

    fn unlink(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EPERM);
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let asked = self.asked(request, format_args!("rmdir {name:?}"));
        self.run(asked, reply, || self.0.rmdir(parent.0, name), empty);
    }

    fn rename(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let asked = self.asked(request, format_args!("rename {name:?} {newname:?}"));
        if !(flags - RenameFlags::RENAME_NOREPLACE).is_empty() {
            return reply.error(Errno::EINVAL);
        }
        let (from, to) = ((parent.0, name), (newparent.0, newname));
        let replace = flags.is_empty();
        self.run(asked, reply, || self.0.rename(from, to, replace), empty);
    }

    fn open(&self, request: &Request, node: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let asked = self.asked(request, format_args!("open {node} {:#x}", flags.0));
        let how = open_flags(node, flags);
        let ok = move |reply: ReplyOpen, handle| reply.opened(FileHandle(handle), how);
        self.run(asked, reply, || self.0.open(node.0, flags.0), ok);
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        _: u32,
        _: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let asked = self.asked(request, format_args!("create {parent} {name:?} {flags:#x}"));
        let ok = |reply: ReplyCreate, (attr, handle)| {
            let (attr, direct) = (entry_attr(&attr), FopenFlags::FOPEN_DIRECT_IO);
            reply.created(&Duration::ZERO, &attr, Generation(0), FileHandle(handle), direct);
        };
        self.run(asked, reply, || self.0.create(parent.0, name, flags), ok);
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
        let asked = self.asked(request, format_args!("read {handle} {size} at {offset}"));
        // A read for the page cache, in the name of nobody: mmap, or sendfile(2) and splice(2), which
        // do not wait. To EINVAL they who use these answer by reading themselves.
        if owner.is_none() && Node::of(node.0).is_ok_and(Node::flows) {
            return reply.error(Errno::EINVAL);
        }
        if let Some(text) = self.0.text(node.0, handle.0) {
            let from = usize::try_from(offset).map_or(text.len(), |from| from.min(text.len()));
            let to = text.len().min(from.saturating_add(size as usize));
            return reply.data(&text.as_bytes()[from..to]);
        }
        let wait = (flags.0 & libc::O_NONBLOCK == 0).then_some(request.pid());
        let read = |file: Arc<Open>, answer| file.read_on(offset, size as usize, wait, answer);
        let ok = |reply: ReplyData, bytes: Vec<u8>| reply.data(&bytes);
        self.hand_over(asked, handle, reply, read, ok);
    }

    fn poll(
        &self,
        request: &Request,
        _: INodeNo,
        handle: FileHandle,
        notifier: PollNotifier,
        _: PollEvents,
        flags: PollFlags,
        reply: ReplyPoll,
    ) {
        let asked = self.asked(request, format_args!("poll {handle}"));
        let later = flags.contains(PollFlags::FUSE_POLL_SCHEDULE_NOTIFY);
        // Who no longer polls is told nothing.
        let notify = later.then_some(|| drop(notifier.notify()));
        // The status is as ready as any file.
        let poll = || self.0.file(handle.0).map_or(Ok(true), |file| file.poll(notify));
        self.run(asked, reply, poll, |reply: ReplyPoll, ready| {
            let write = PollEvents::POLLOUT | PollEvents::POLLWRNORM;
            let read = PollEvents::POLLIN | PollEvents::POLLRDNORM;
            reply.poll(if ready { read | write } else { write });
        });
    }

    fn write(
        &self,
        request: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        bytes: &[u8],
        how: WriteFlags,
        _: OpenFlags,
        owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let asked = self.asked(request, format_args!("write {handle} {} at {offset}", bytes.len()));
        if how.contains(WriteFlags::FUSE_WRITE_CACHE) {
            // A page of a shared mapping: not an append.
            return reply.error(Errno::EPERM);
        }
        // A request holds no more than MAX_WRITE.
        let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let owner = owner.map_or(0, |owner| owner.0);
        let place = (request.unique().0, offset);
        let write = |file: Arc<Open>, answer| file.write(owner, place, bytes, answer);
        let ok = move |reply: ReplyWrite, ()| reply.written(len);
        self.hand_over(asked, handle, reply, write, ok);
    }

    fn flush(
        &self,
        request: &Request,
        _: INodeNo,
        handle: FileHandle,
        owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        let asked = self.asked(request, format_args!("flush {handle}"));
        let pid = request.pid();
        let flush = |file: Arc<Open>, answer| self.0.flush(&file, owner.0, pid, answer);
        self.hand_over(asked, handle, reply, flush, empty);
    }

    fn fsync(&self, request: &Request, _: INodeNo, handle: FileHandle, _: bool, reply: ReplyEmpty) {
        let asked = self.asked(request, format_args!("fsync {handle}"));
        self.hand_over(asked, handle, reply, |file, answer| file.sync(answer), empty);
    }

    fn release(
        &self,
        request: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        let asked = self.asked(request, format_args!("release {handle}"));
        self.run(asked, reply, || self.0.release(handle.0), empty);
    }

    fn opendir(&self, request: &Request, node: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let asked = self.asked(request, format_args!("opendir {node}"));
        let ok = |reply: ReplyOpen, handle| reply.opened(FileHandle(handle), FopenFlags::empty());
        self.run(asked, reply, || self.0.opendir(node.0), ok);
    }

    fn readdir(
        &self,
        request: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        reply: ReplyDirectory,
    ) {
        let asked = self.asked(request, format_args!("readdir {handle} {offset}"));
        let entries = || self.0.entries(handle.0, offset == 0);
        self.run(asked, reply, entries, |mut reply: ReplyDirectory, entries| {
            let behind = usize::try_from(offset).unwrap_or(usize::MAX);
            for (next, (inode, kind, name)) in (1..).zip(&*entries).skip(behind) {
                if reply.add(INodeNo(*inode), next, file_type(*kind), name) {
                    break;
                }
            }
            reply.ok();
        });
    }

    fn releasedir(
        &self,
        request: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        reply: ReplyEmpty,
    ) {
        let asked = self.asked(request, format_args!("releasedir {handle}"));
        self.run(asked, reply, || self.0.release(handle.0), empty);
    }

    fn fsyncdir(
        &self,
        request: &Request,
        node: INodeNo,
        _: FileHandle,
        _: bool,
        reply: ReplyEmpty,
    ) {
        let asked = self.asked(request, format_args!("fsyncdir {node}"));
        self.run(asked, reply, || self.0.sync_names(node.0), empty);
    }

    fn statfs(&self, request: &Request, _: INodeNo, reply: ReplyStatfs) {
        let asked = self.asked(request, format_args!("statfs"));
        let ok = |reply: ReplyStatfs, stat: libc::statfs| {
            reply.statfs(
                stat.f_blocks,
                stat.f_bfree,
                stat.f_bavail,
                stat.f_files,
                stat.f_ffree,
                u32::try_from(stat.f_bsize).unwrap_or(4096),
                u32::try_from(stat.f_namelen).unwrap_or(255),
                u32::try_from(stat.f_frsize).unwrap_or(4096),
            );
        };
        self.run(asked, reply, || self.0.space(), ok);
    }
}
