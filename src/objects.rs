//! The events of a stream as JSON, one object and line each, read in pieces of any size.
//!
//! States: what was made and not yet handed out; then what is left of a long event, if it is in the
//! middle of one; then the events from the next one on.

use std::ops::Range;
use std::sync::Arc;

use crate::disk::Real;
use crate::error::{Error, Result};
use crate::json;
use crate::spill::PIECE;
use crate::stream::{Cursor, Stream};

/// A long event is made into JSON so many bytes at a time.
const BYTES: usize = PIECE - PIECE % json::TRIPLE;

/// Events as JSON, and how far they were read.
pub(crate) struct Objects {
    stream: Arc<Stream<Real>>,
    /// The events that are still to be made into JSON.
    events: Range<u64>,
    /// Where the first of them begins in the stream's view.
    view: u64,
    /// What was made, and how much of it was handed out.
    made: Vec<u8>,
    given: usize,
    /// What is left of an event that is too long to be in memory as a whole: bytes of the view, and
    /// whether it is text.
    long: Option<(Range<u64>, bool)>,
    cursor: Cursor,
}

impl Objects {
    /// Of these events, as far as there are any; the first of them begins at `view`.
    pub(crate) fn new(stream: Arc<Stream<Real>>, events: Range<u64>, view: u64) -> Objects {
        let (made, cursor) = (Vec::new(), Cursor::default());
        Objects { stream, events, view, made, given: 0, long: None, cursor }
    }

    /// All of the view before this was made into JSON.
    pub(crate) fn seen(&self) -> u64 {
        self.view
    }

    /// Whether there is something to hand out, whatever comes.
    pub(crate) fn ready(&self) -> bool {
        self.long.is_some() || self.given < self.made.len()
    }

    /// Up to `size` bytes of what comes next; fewer only at the end, or before an error.
    pub(crate) fn peek(&mut self, size: usize) -> Result<&[u8]> {
        if self.made.len() - self.given < size {
            self.made.drain(..self.given);
            self.given = 0;
        }
        while self.made.len() - self.given < size {
            match self.make() {
                Ok(true) => {}
                Err(error) if self.made.is_empty() => return Err(error),
                Ok(false) | Err(_) => break,
            }
        }
        let left = &self.made[self.given..];
        Ok(&left[..left.len().min(size)])
    }

    /// So many bytes of that were handed out.
    pub(crate) fn advance(&mut self, bytes: usize) {
        self.given += bytes;
    }

    /// Makes more. False at the end.
    fn make(&mut self) -> Result<bool> {
        if let Some((left, text)) = self.long.clone() {
            return self.make_of_long(left, text).map(|()| true);
        }
        let (files, tip) = self.stream.look_at_end()?;
        let count = tip.count.min(self.events.end);
        if self.events.start >= count {
            // The end, or nobody knows.
            return match self.stream.absent(&files, self.events.start) {
                Error::NotFound => Ok(false),
                _ if count == self.events.end => Ok(false),
                error => Err(error),
            };
        }
        let some = self.stream.some(self.events.start, count)?;
        if some.is_empty() {
            self.begin_long()?;
        }
        for event in some {
            let text = str::from_utf8(&event.bytes).is_ok();
            json::begin(event.index, event.time, text, &mut self.made);
            json::piece(&event.bytes, text, &mut self.made);
            json::end(&mut self.made);
            self.events.start += 1;
            self.view += event.bytes.len() as u64 + 1;
        }
        Ok(true)
    }

    /// Begins with an event that is not to be in memory as a whole. That it is text is known when all
    /// of it was read: it is read twice.
    fn begin_long(&mut self) -> Result<()> {
        let (view, len, time) = self.stream.meta(self.events.start)?;
        let (mut at, mut text) = (view, true);
        while text && at < view + len {
            let bytes = self.read(at..view + len)?;
            match json::text(&bytes) {
                Some(whole) if whole > 0 => at += whole as u64,
                _ => text = false,
            }
        }
        json::begin(self.events.start, time, text, &mut self.made);
        self.long = Some((view..view + len, text));
        Ok(())
    }

    fn make_of_long(&mut self, left: Range<u64>, text: bool) -> Result<()> {
        if left.is_empty() {
            json::end(&mut self.made);
            self.long = None;
            self.events.start += 1;
            self.view = left.end + 1;
            return Ok(());
        }
        let bytes = self.read(left.clone())?;
        json::piece(&bytes, text, &mut self.made);
        self.long = Some((left.start + bytes.len() as u64..left.end, text));
        Ok(())
    }

    /// The next bytes of a long event: all of a piece, or an error.
    fn read(&mut self, left: Range<u64>) -> Result<Vec<u8>> {
        let most = usize::try_from(left.end - left.start).map_or(BYTES, |left| left.min(BYTES));
        let mut bytes = Vec::with_capacity(most);
        while bytes.len() < most {
            let at = left.start + bytes.len() as u64;
            let more = self.stream.read_view(at, most - bytes.len(), &mut self.cursor)?;
            if more.is_empty() {
                return Err(Error::NotFound);
            }
            bytes.extend(more);
        }
        Ok(bytes)
    }
}
