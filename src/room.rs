//! Batches, and the room that they take up in the log before they are committed.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use crate::batch::{Shape, Tally};
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::log::Files;
use crate::page;
use crate::spill::Spill;
use crate::stream::{Batch, Part, Stream};
use crate::sys::newline;

impl<D: Disk> Stream<D> {
    /// An empty batch, to be filled with [`Batch::push`] and committed with [`Stream::commit`].
    pub fn batch(self: &Arc<Self>, shape: Shape) -> Batch<D> {
        Batch { stream: self.clone(), parts: vec![self.part(shape)], len: 0, reserved: 0 }
    }

    fn part(&self, shape: Shape) -> Part<D> {
        let spill = Spill::new(self.shared.disk.clone(), self.shared.ceiling.clone());
        Part { shape, tally: Tally::default(), spill }
    }

    /// Makes the log, which ends at `end` at least, as long as needed, and a step ahead.
    pub(crate) fn grow(&self, files: &Files<D>, end: u64, needed: u64) -> Result<()> {
        // A host may remember for a while how long it was; before the first block there is nothing.
        let end = if end == page::HEAD as u64 { 0 } else { end };
        let len = self.room.load(Relaxed).max(end);
        if needed <= len {
            return Ok(());
        }
        let (log, to) = (files.log()?, page::grown(needed));
        let filled = needed.next_multiple_of(page::PAGE).min(to);
        if let Err(error) = self.disk().reserve(log, len, filled, to).map_err(self.os("log")) {
            let got = files.len()?;
            self.room.store(got, Relaxed);
            // The step ahead may have been too much, what is needed not.
            if got < needed {
                if error.no_room() {
                    // Give back what was taken: others may need it.
                    self.disk().set_len(log, len).map_err(self.os("log"))?;
                    self.room.store(len, Relaxed);
                }
                return Err(error);
            }
            return Ok(());
        }
        self.room.store(to, Relaxed);
        Ok(())
    }

    /// Takes up room for `bytes` more of log, so that it is the write that meets a full disk, not the
    /// commit; where somebody has the lock it is the commit.
    fn reserve(self: &Arc<Self>, bytes: u64) -> Result<()> {
        let pending = self.pending.fetch_add(bytes, Relaxed) + bytes;
        let end = self.known().end;
        if self.shared.read_only {
            return Err(Error::ReadOnly);
        }
        if self.room.load(Relaxed) >= end + pending {
            return Ok(());
        }
        self.try_locked(|files, tip| self.grow(files, tip.end, tip.end + pending))
    }

    /// A batch is committed or given up. What was reserved for a large one goes back.
    fn release(self: &Arc<Self>, bytes: u64) {
        let pending = self.pending.fetch_sub(bytes, Relaxed) - bytes;
        // A host that may have lost the lock must not cut what others have written.
        if bytes < page::STEP || self.disk().direct() {
            return;
        }
        // When it does not work the space is given back when the stream is opened next.
        let _ = self.try_locked(|files, tip| {
            let keep = page::grown(tip.end + pending);
            if self.room.load(Relaxed) > keep {
                self.disk().set_len(files.log()?, keep).map_err(self.os("log"))?;
                self.room.store(keep, Relaxed);
            }
            Ok(())
        });
    }
}

impl<D: Disk> Batch<D> {
    /// Adds bytes. After an error the batch cannot be committed, only dropped.
    pub fn push(&mut self, bytes: &[u8]) -> Result<()> {
        self.len += bytes.len() as u64;
        let needed = self.room();
        let more = needed - std::mem::replace(&mut self.reserved, needed);
        self.stream.reserve(more)?;
        // There is at least one.
        let Some(part) = self.parts.last_mut() else {
            return Err(Error::Fault);
        };
        part.spill.push(bytes)?;
        part.tally.push(part.shape, bytes);
        Ok(())
    }

    /// Adds one event of any bytes, to a batch of lines.
    pub fn event(&mut self, bytes: &[u8]) -> Result<()> {
        let shape = match newline(bytes) {
            Some(_) => Shape::One,
            None => Shape::Lines,
        };
        if shape == Shape::One || self.parts.last().is_none_or(|part| part.shape != shape) {
            self.parts.push(self.stream.part(shape));
        }
        self.push(bytes)?;
        if shape == Shape::Lines { self.push(b"\n") } else { Ok(()) }
    }

    /// Bytes written.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// At most so many bytes of log it takes: each part has blocks of its own.
    pub(crate) fn room(&self) -> u64 {
        page::room(self.len + self.parts.len() as u64 * 2 * page::HEADER as u64)
    }

    /// Whether nothing was written.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn all_events(&self) -> u64 {
        self.parts.iter().map(|part| part.tally.all_events()).sum()
    }

    /// What is known of what was pushed last.
    pub(crate) fn tally(&self) -> Tally {
        self.parts.last().map(|part| part.tally).unwrap_or_default()
    }

    /// Takes away what is behind the last complete event of a batch of lines. After an error neither
    /// can be committed.
    pub fn split_torn(&mut self) -> Result<Batch<D>> {
        let mut torn = self.stream.batch(Shape::Lines);
        if let Some(part) = self.parts.last_mut() {
            let rest = part.spill.split_off(part.tally.complete)?;
            torn.parts[0].spill = rest;
            torn.len = part.tally.torn();
            torn.parts[0].tally.len = torn.len;
            part.tally.len = part.tally.complete;
            self.len -= torn.len;
        }
        // Nothing is reserved before anything is written.
        let kept = self.room().min(self.reserved);
        torn.reserved = self.reserved - kept;
        self.reserved = kept;
        Ok(torn)
    }
}

impl<D: Disk> Drop for Batch<D> {
    fn drop(&mut self) {
        self.stream.release(self.reserved);
    }
}
