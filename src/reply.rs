//! What fuser is replied: the tree's answers in its terms.

use std::time::Duration;

use fuser::{
    Errno, FileAttr, FileType, FopenFlags, Generation, INodeNo, OpenFlags, ReplyAttr, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyPoll, ReplyStatfs,
    ReplyWrite,
};

use crate::attr::Attr;
use crate::node::{Node, Type};

/// What all of fuser's replies have in common.
pub(crate) trait Reply: Send + 'static {
    fn refuse(self, errno: Errno);
}

macro_rules! replies {
    ($($reply:ident)*) => {
        $(impl Reply for $reply {
            fn refuse(self, errno: Errno) {
                self.error(errno);
            }
        })*
    };
}

replies!(ReplyAttr ReplyCreate ReplyData ReplyDirectory ReplyEmpty ReplyEntry ReplyOpen ReplyPoll);
replies!(ReplyStatfs ReplyWrite);

pub(crate) fn file_type(kind: Type) -> FileType {
    match kind {
        Type::Directory => FileType::Directory,
        Type::File => FileType::RegularFile,
        Type::Link => FileType::Symlink,
    }
}

pub(crate) fn file_attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.inode),
        size: attr.size,
        blocks: attr.size.div_ceil(512),
        atime: attr.time,
        mtime: attr.time,
        ctime: attr.time,
        crtime: attr.time,
        kind: file_type(attr.node.file_type()),
        perm: attr.mode as u16,
        // Also of a directory, as of one that does not count those in it.
        nlink: 1,
        uid: attr.uid,
        gid: attr.gid,
        rdev: 0,
        blksize: 1 << 17,
        flags: 0,
    }
}

// What a request is told that succeeded.

pub(crate) fn empty(reply: ReplyEmpty, (): ()) {
    reply.ok();
}

pub(crate) fn attr(reply: ReplyAttr, attr: Attr) {
    reply.attr(&attr.node.attr_lifetime(), &file_attr(&attr));
}

/// Attributes of a node that is new to the kernel. fuser takes their inode number for the node's; so
/// they are not to be believed, and whoever asks is told the real one by [`attr`].
pub(crate) fn entry_attr(attr: &Attr) -> FileAttr {
    FileAttr { ino: INodeNo(attr.node.number()), ..file_attr(attr) }
}

pub(crate) fn entry(reply: ReplyEntry, attr: Attr) {
    let (name, attributes) = (attr.node.name_lifetime(), Duration::ZERO);
    reply.entry_with_ttls(&attributes, &name, &entry_attr(&attr), Generation(0));
}

/// How a file of a node is opened with these flags of open(2).
pub(crate) fn open_flags(node: INodeNo, flags: OpenFlags) -> FopenFlags {
    let mut how = FopenFlags::FOPEN_DIRECT_IO;
    // Whoever waits in a follower must not hold the lock of its position.
    how.set(FopenFlags::FOPEN_STREAM, Node::of(node.0).is_ok_and(Node::flows));
    // Who only reads has nothing to commit.
    how.set(FopenFlags::FOPEN_NOFLUSH, flags.0 & libc::O_ACCMODE == libc::O_RDONLY);
    how
}
