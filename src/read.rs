//! Reading a stream: events, and bytes of the view.

use std::sync::Arc;

use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::log::Files;
use crate::page::{self, HEADER, Head, PAGE, Spot};
use crate::spill::PIECE;
use crate::stream::{Cursor, Event, Stream};
use crate::walk::{Pages, Tip};

impl<D: Disk> Stream<D> {
    /// The count, for who is told by it that an index is taken.
    pub(crate) fn taken(self: &Arc<Self>) -> Result<u64> {
        let (mut files, mut tip) = self.look_at_end()?;
        if files.unmended.is_some() {
            // It may have come right.
            self.close();
            (files, tip) = self.look_at_end()?;
        }
        files.unmended.clone().map_or(Ok(tip.count), Err)
    }

    /// The number of events there ever were: the index that the next one gets.
    pub fn count(self: &Arc<Self>) -> Result<u64> {
        let (files, tip) = self.look_at_end()?;
        // A commit whose outcome is not known may come to be counted.
        if files.unmended.is_some() {
            self.ended(&files)?;
        }
        Ok(tip.count)
    }

    /// Whether event `n` is there; if not, it is the next to come.
    ///
    /// # Errors
    /// NotFound when it is neither, Dropped.
    pub(crate) fn has(self: &Arc<Self>, n: u64) -> Result<bool> {
        let (files, tip) = self.look_for(n)?;
        match self.kept(&files, &tip, n) {
            Err(Error::NotFound) if n == tip.count => Ok(false),
            kept => kept.map(|()| true),
        }
    }

    /// The head of the log: which events are kept.
    pub(crate) fn head(self: &Arc<Self>) -> Result<Head> {
        self.look_at_end()?.0.head()
    }

    /// The index of the first event that is kept; the count when none is.
    pub fn first(self: &Arc<Self>) -> Result<u64> {
        Ok(self.head()?.first)
    }

    /// The files and the end; which is looked for again before it is said that event `n` is not there.
    fn look_for(self: &Arc<Self>, n: u64) -> Result<(Arc<Files<D>>, Tip)> {
        let seen = self.look()?;
        if n < seen.1.count { Ok(seen) } else { self.look_at_end() }
    }

    /// NotFound when event `n` is not there yet, Dropped when it is no more.
    fn kept(&self, files: &Files<D>, tip: &Tip, n: u64) -> Result<()> {
        match () {
            () if n >= tip.count => Err(self.absent(files, n)),
            () if n < files.head()?.first => Err(Error::Dropped),
            () => Ok(()),
        }
    }

    /// The files and the end of a stream that keeps event `n`; else as `kept`.
    fn keeps(self: &Arc<Self>, n: u64) -> Result<(Arc<Files<D>>, Tip)> {
        let (files, tip) = self.look_for(n)?;
        self.kept(&files, &tip, n).map(|()| (files, tip))
    }

    /// The view offset of event `n`; `n` may be the count, NotFound when it is more.
    pub(crate) fn view(self: &Arc<Self>, n: u64) -> Result<u64> {
        let (files, tip) = self.look()?;
        match files.head()? {
            _ if n == tip.count => Ok(tip.view),
            head if n == head.first => Ok(head.view),
            _ => {
                let (files, tip) = self.keeps(n)?;
                Ok(files.event(&mut files.scan_seen(0, &tip), &tip, n)?.view())
            }
        }
    }

    /// Event `n`: its view offset, its length and its time.
    pub(crate) fn meta(self: &Arc<Self>, n: u64) -> Result<(u64, u64, u64)> {
        let (files, tip) = self.keeps(n)?;
        let mut scan = files.scan_seen(0, &tip);
        let spot = files.event(&mut scan, &tip, n)?;
        let Spot { block, into } = spot;
        let (begin, end) = (HEADER + into, HEADER + usize::from(block.len));
        let payload = scan.page(block.at)?.get(begin..end).unwrap_or_default();
        let len = match block.ends_first(payload) {
            Some(len) => len as u64,
            None => files.end(&mut scan, &tip, n)? - spot.view(),
        };
        Ok((spot.view(), len, block.time))
    }

    /// One event. NotFound when there is none of that index, Dropped when there was.
    pub fn event(self: &Arc<Self>, n: u64) -> Result<Event> {
        let (view, len, time) = self.meta(n)?;
        let mut bytes = Vec::new();
        let mut cursor = Cursor::default();
        while (bytes.len() as u64) < len {
            let (at, left) = (view + bytes.len() as u64, len - bytes.len() as u64);
            let most = usize::try_from(left).map_or(PIECE, |left| left.min(PIECE));
            match self.read_view(at, most, &mut cursor)? {
                // It is longer than the stream was when last seen.
                none if none.is_empty() => return self.look()?.0.missing(n),
                some => bytes.extend(some),
            }
        }
        Ok(Event { index: n, time, bytes })
    }

    /// The events from `n` on, up to the last there is now. NotFound when `n` is beyond the count.
    /// Where the disk lost events, an error behind the last: there may have been more.
    pub fn read(self: &Arc<Self>, n: u64) -> Result<impl Iterator<Item = Result<Event>> + use<D>> {
        let (files, tip) = self.look_at_end()?;
        if n > tip.count {
            return Err(self.absent(&files, n));
        }
        let (stream, end) = (self.clone(), self.ended(&files));
        let (mut next, mut ready) = (n, Vec::new().into_iter());
        Ok(std::iter::from_fn(move || {
            if ready.len() == 0 && next < tip.count {
                let some = stream.some(next, tip.count).and_then(|some| match some.is_empty() {
                    true => Ok(vec![stream.event(next)?]),
                    false => Ok(some),
                });
                match some {
                    Ok(events) => ready = events.into_iter(),
                    Err(error) => {
                        next += 1;
                        return Some(Err(error));
                    }
                }
            }
            let Some(event) = ready.next() else {
                let end = (next == tip.count).then(|| end.clone().err()).flatten();
                next = u64::MAX;
                return end.map(Err);
            };
            next += 1;
            Some(Ok(event))
        }))
    }

    /// Events of `n..count`, as many as are in a piece of the log. None when the first of them is
    /// long, or damaged.
    pub(crate) fn some(self: &Arc<Self>, n: u64, count: u64) -> Result<Vec<Event>> {
        let (files, tip) = self.keeps(n)?;
        let (seed, mut scan) = (files.seed(), files.scan_seen(PIECE, &tip));
        let Spot { block, mut into } = files.event(&mut scan, &tip, n)?;
        let (mut at, mut view, limit) = (block.at, block.view, block.at + PIECE as u64);
        let (mut events, mut bytes) = (Vec::new(), Vec::new());
        while at < limit.min(tip.end)
            && let Some((block, payload)) = page::decode(seed, at, scan.page(at)?)
            && block.view == view
        {
            let mut rest = &payload[into..];
            while let Some(end) = block.ends_first(rest) {
                bytes.extend_from_slice(&rest[..end]);
                let (index, bytes) = (n + events.len() as u64, std::mem::take(&mut bytes));
                events.push(Event { index, time: block.time, bytes });
                rest = &rest[end + 1..];
            }
            bytes.extend_from_slice(rest);
            (at, view, into) = (page::place(block.end()), block.view_end(), 0);
        }
        events.truncate(usize::try_from(count - n).unwrap_or(usize::MAX));
        Ok(events)
    }

    /// The first event committed at or after `time` (nanoseconds since the Unix epoch); the count
    /// when there is none.
    pub fn since(self: &Arc<Self>, time: u64) -> Result<u64> {
        let (files, tip) = self.look_at_end()?;
        if tip.time < time {
            return Ok(tip.count);
        }
        files.head()?;
        files.since(&mut files.scan_seen(0, &tip), &tip, time)
    }

    /// Up to `size` bytes of the view (each event and a newline) from the offset `view` on; fewer
    /// only at the end or before damage. An error at the end where the disk lost events. A reader
    /// in order hands in the same `cursor` each time.
    pub fn read_view(
        self: &Arc<Self>,
        view: u64,
        size: usize,
        cursor: &mut Cursor,
    ) -> Result<Vec<u8>> {
        let (mut files, mut tip) = self.look()?;
        if tip.view <= view && size > 0 {
            (files, tip) = self.look_at_end()?;
            if tip.view <= view {
                self.ended(&files)?;
            }
        }
        let left = usize::try_from(tip.view.saturating_sub(view)).unwrap_or(usize::MAX);
        let size = size.min(left);
        let mut out = Vec::with_capacity(size);
        if size == 0 {
            return Ok(out);
        }
        if view < files.head()?.view {
            return Err(Error::Dropped);
        }
        let window = size + size / 64 + size.min(2 * PAGE as usize);
        let mut scan = files.scan_seen(window, &tip);
        let (seed, mut at) = (files.seed(), cursor.0);
        // Where the last read ended, or in the block behind.
        let near = if at > 0 { scan.sound(seed, at) } else { None };
        let near = near.filter(|block| block.view <= view && view <= block.view_end());
        match near {
            Some(block) if view == block.view_end() => at = page::place(block.end()),
            Some(_) => {}
            None => at = files.byte(&mut files.scan_seen(0, &tip), &tip, view)?.block.at,
        }
        while out.len() < size {
            let here = view + out.len() as u64;
            let block = scan.page(at).ok().and_then(|bytes| page::decode(seed, at, bytes));
            let Some((block, payload)) =
                block.filter(|(b, _)| (b.view..b.view_end()).contains(&here))
            else {
                if out.is_empty() {
                    // By the way that leads there from the index, or the error. The block may begin
                    // with events that were dropped.
                    let spot = files.byte(&mut files.scan_seen(0, &tip), &tip, here)?;
                    return files.missing(spot.block.index.max(files.head()?.first));
                }
                break;
            };
            let rest = &payload[(here - block.view) as usize..];
            out.extend_from_slice(&rest[..rest.len().min(size - out.len())]);
            *cursor = Cursor(at);
            at = page::place(block.end());
        }
        Ok(out)
    }
}
