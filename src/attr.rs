//! What stat(2) tells of a node, and what it comes from.

use std::fs::{self, Metadata, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::disk::Real;
use crate::error::{Error, Result};
use crate::node::{Kind, Node};
use crate::stream::Stream;
use crate::sys;

/// What stat(2) tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr {
    /// Of what.
    pub node: Node,
    /// Its inode number, for good.
    pub inode: u64,
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

impl Attr {
    /// Of a node, as far as it has that of the directory of its stream.
    pub(crate) fn new(node: Node, identity: u64, directory: &Metadata) -> Attr {
        Attr {
            node,
            inode: node.inode(identity),
            size: directory.len(),
            time: directory.modified().unwrap_or(UNIX_EPOCH),
            mode: directory.mode() & 0o7777,
            uid: directory.uid(),
            gid: directory.gid(),
        }
    }
}

/// Gives a directory this mode and owner (uid, gid), unless it is a link.
pub(crate) fn make(path: &Path, mode: u32, owner: (u32, u32)) -> io::Result<()> {
    let (_held, path) = sys::directory(path)?;
    chown(&path, Some(owner.0), Some(owner.1))?;
    fs::set_permissions(&path, Permissions::from_mode(mode))
}

/// Tells a directory from all others for good, wherever it is renamed to: by its file handle, for
/// its inode number may be another one's when it is removed. Where there are none, by when it was
/// made.
pub(crate) fn identity(path: &Path) -> io::Result<u64> {
    let handle = sys::handle(path).or_else(|_| {
        let metadata = fs::symlink_metadata(path)?;
        Ok::<_, io::Error>(format!("{} {:?}", metadata.ino(), metadata.created().ok()).into())
    })?;
    // FNV-1a.
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    Ok(handle.iter().fold(0xcbf2_9ce4_8422_2325, step))
}

/// Size of a file, which is known to begin at `base` when it is open, and when it was written, 0 for
/// never.
pub(crate) fn size(
    node: Node,
    stream: &Arc<Stream<Real>>,
    base: Option<u64>,
) -> Result<(u64, u64)> {
    let tip = stream.tip()?;
    let base = || base.map_or_else(|| stream.view(node.index), Ok);
    let size = match node.kind {
        Kind::New => 0,
        // A file that flows has no end, as a pipe has none. It is not empty, which sendfile(2), as in
        // busybox cat, would take for the end; and not longer, or Java would take that for available.
        Kind::At if node.json => return stream.meta(node.index).map(|(_, _, time)| (1, time)),
        _ if node.flows() => base().map(|_| 1)?,
        Kind::Count => tip.count.to_string().len() as u64 + 1,
        Kind::First => stream.first()?.to_string().len() as u64 + 1,
        Kind::At => match stream.meta(node.index) {
            Ok((_, len, time)) => return Ok((len, time)),
            // Created, but not written yet.
            Err(Error::NotFound) => 0,
            Err(error) => return Err(error),
        },
        _ => tip.view.saturating_sub(base()?),
    };
    Ok((size, tip.time))
}
