//! The bytes of a batch until its commit: in memory while they are few, then in an unnamed
//! temporary file, so that a batch of any size works with bounded memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::disk::Disk;
use crate::error::{Error, Result};

/// One batch keeps at most this many bytes in memory, and is read back in pieces of this size.
pub(crate) const PIECE: usize = 256 << 10;
/// All batches together keep at most this many bytes in memory.
const MEMORY: u64 = 32 << 20;
/// But of each so many may be: whoever holds all the rest must not keep others from small ones.
const SMALL: usize = 4 << 10;
/// At most this many batches have a temporary file.
const FILES: u64 = 4096;

/// What all batches of a store share.
#[derive(Debug, Default)]
pub(crate) struct Ceiling {
    memory: AtomicU64,
    files: AtomicU64,
}

/// The bytes of one batch.
pub(crate) struct Spill<D: Disk> {
    disk: Arc<D>,
    ceiling: Arc<Ceiling>,
    memory: Vec<u8>,
    file: Option<D::File>,
    len: u64,
}

impl<D: Disk> Spill<D> {
    pub(crate) fn new(disk: Arc<D>, ceiling: Arc<Ceiling>) -> Spill<D> {
        Spill { disk, ceiling, memory: Vec::new(), file: None, len: 0 }
    }

    /// Appends `bytes`. After an error the spill is good for nothing but to be dropped.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Result<()> {
        let new = bytes.len() as u64;
        if self.file.is_none() {
            let all = self.ceiling.memory.fetch_add(new, Relaxed) + new;
            let here = self.memory.len() + bytes.len();
            if here <= SMALL || here <= PIECE && all <= MEMORY {
                self.memory.extend_from_slice(bytes);
                self.len += new;
                return Ok(());
            }
            self.ceiling.memory.fetch_sub(new, Relaxed);
            if self.ceiling.files.fetch_add(1, Relaxed) >= FILES {
                self.ceiling.files.fetch_sub(1, Relaxed);
                return Err(Error::TooManyBatches);
            }
            let file = self.disk.scratch();
            if file.is_err() {
                self.ceiling.files.fetch_sub(1, Relaxed);
            }
            let file = self.file.insert(file.map_err(Error::os("a temporary file"))?);
            let memory = std::mem::take(&mut self.memory);
            self.ceiling.memory.fetch_sub(memory.len() as u64, Relaxed);
            write_all(&*self.disk, file, &memory, 0).map_err(Error::os("a temporary file"))?;
        }
        if let Some(file) = &self.file {
            write_all(&*self.disk, file, bytes, self.len).map_err(Error::os("a temporary file"))?;
        }
        self.len += new;
        Ok(())
    }

    /// Takes away the bytes from `at` on.
    pub(crate) fn split_off(&mut self, at: u64) -> Result<Spill<D>> {
        let mut rest = Spill::new(self.disk.clone(), self.ceiling.clone());
        self.pieces(at, |_, bytes| rest.push(bytes))?;
        if self.file.is_none() {
            // What is in memory is no longer than a piece.
            self.memory.truncate(usize::try_from(at).unwrap_or(PIECE));
            self.ceiling.memory.fetch_sub(self.len - at, Relaxed);
        }
        self.len = at;
        Ok(rest)
    }

    /// Hands the bytes from `at` on to `each`, in pieces, with where each begins.
    pub(crate) fn pieces(
        &self,
        mut at: u64,
        mut each: impl FnMut(u64, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let mut piece = vec![0; PIECE.min(usize::try_from(self.len - at).unwrap_or(PIECE))];
        while at < self.len {
            let read = self.read_at(&mut piece, at)?;
            each(at, &piece[..read])?;
            at += read as u64;
        }
        Ok(())
    }

    /// Reads at least one byte from `at` on, which is before the end.
    fn read_at(&self, bytes: &mut [u8], at: u64) -> Result<usize> {
        let most = usize::try_from(self.len - at).unwrap_or(usize::MAX);
        let most = most.min(bytes.len());
        let Some(file) = &self.file else {
            let from = usize::try_from(at).unwrap_or(PIECE);
            bytes[..most].copy_from_slice(&self.memory[from..from + most]);
            return Ok(most);
        };
        let read = self.disk.read_at(file, &mut bytes[..most], at);
        match read.map_err(Error::os("a temporary file"))? {
            0 => Err(Error::os("a temporary file")(std::io::ErrorKind::UnexpectedEof.into())),
            read => Ok(read),
        }
    }
}

impl<D: Disk> Drop for Spill<D> {
    fn drop(&mut self) {
        self.ceiling.memory.fetch_sub(self.memory.len() as u64, Relaxed);
        if self.file.is_some() {
            self.ceiling.files.fetch_sub(1, Relaxed);
        }
    }
}

/// Writes all of `bytes`.
pub(crate) fn write_all<D: Disk>(
    disk: &D,
    file: &D::File,
    mut bytes: &[u8],
    mut at: u64,
) -> std::io::Result<()> {
    while !bytes.is_empty() {
        match disk.write_at(file, bytes, at)? {
            0 => return Err(std::io::ErrorKind::WriteZero.into()),
            written => {
                bytes = &bytes[written..];
                at += written as u64;
            }
        }
    }
    Ok(())
}

/// Reads as much of `bytes` as there is. Nothing where there is no file.
pub(crate) fn read_full<D: Disk>(
    disk: &D,
    file: Option<&D::File>,
    bytes: &mut [u8],
    at: u64,
) -> std::io::Result<usize> {
    let Some(file) = file else {
        return Ok(0);
    };
    let mut filled = 0;
    while filled < bytes.len() {
        match disk.read_at(file, &mut bytes[filled..], at + filled as u64)? {
            0 => break,
            read => filled += read,
        }
    }
    Ok(filled)
}
