//! The reading half of an open file: how far it was read, who waits there for more.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::node::Kind;
use crate::objects::Objects;
use crate::open::Open;
use crate::sys::lock;
use crate::wait::{Answer, Why};

impl Open {
    /// Where `offset` is in the stream's view.
    fn view(&self, offset: u64) -> u64 {
        self.base.saturating_add(offset)
    }

    /// How far it was read.
    fn seen(&self) -> u64 {
        let state = lock(&self.reading);
        state.objects.as_ref().map_or(self.view(state.end), Objects::seen)
    }

    /// Up to `size` bytes from `offset` on; fewer only at the end.
    fn read(&self, offset: u64, size: usize) -> Result<Vec<u8>> {
        match self.node.kind {
            Kind::New => Ok(Vec::new()),
            _ if self.node.flows() => self.read_next(size),
            kind @ (Kind::Count | Kind::First) => {
                let number = &mut lock(&self.reading).number;
                // Who reads on gets the rest of the same number.
                if offset == 0 || number.is_empty() {
                    let first = kind == Kind::First;
                    let n = if first { self.stream.first()? } else { self.stream.count()? };
                    *number = format!("{n}\n");
                }
                let offset = usize::try_from(offset).unwrap_or(usize::MAX);
                Ok(number.bytes().skip(offset).take(size).collect())
            }
            _ => {
                let left = usize::try_from(self.len.saturating_sub(offset)).unwrap_or(usize::MAX);
                let size = size.min(left);
                // Not under the lock: others may read somewhere else.
                let mut cursor = std::mem::take(&mut lock(&self.reading).cursor);
                let bytes = self.stream.read_view(self.view(offset), size, &mut cursor)?;
                let mut reader = lock(&self.reading);
                reader.cursor = cursor;
                reader.end = reader.end.max(offset.saturating_add(bytes.len() as u64));
                reader.ended = bytes.is_empty() && size > 0;
                Ok(bytes)
            }
        }
    }

    /// What was not read of a file that flows, up to `size` bytes. If there is more it ends with an event, when
    /// one fits in: no two of those who share the file are to get halves of it.
    fn read_next(&self, size: usize) -> Result<Vec<u8>> {
        let mut reader = lock(&self.reading);
        let reader = &mut *reader;
        let view = self.view(reader.end);
        let mut bytes = match &mut reader.objects {
            Some(objects) => objects.peek(size)?.to_vec(),
            None => self.stream.read_view(view, size, &mut reader.cursor)?,
        };
        if bytes.len() == size
            && let Some(last) = bytes.iter().rposition(|byte| *byte == b'\n')
        {
            bytes.truncate(last + 1);
        }
        reader.end += bytes.len() as u64;
        if let Some(objects) = &mut reader.objects {
            objects.advance(bytes.len());
        }
        if self.node.kind != Kind::Follow {
            reader.ended = bytes.is_empty();
        }
        Ok(bytes)
    }

    /// Answers with up to `size` bytes from `offset` on. Where a follower would come to the end it
    /// does so when there is more, or the thread `wait` has a signal to attend to.
    pub fn read_on(
        self: &Arc<Self>,
        offset: u64,
        size: usize,
        wait: Option<u32>,
        answer: Answer<Vec<u8>>,
    ) {
        if size == 0 || self.node.flows() && offset > 0 {
            // A later piece of a long read, which the first one answers; it may come before that.
            return answer(Ok(Vec::new()));
        }
        let read = self.read(offset, size);
        let nothing = match &read {
            Ok(bytes) => bytes.is_empty(),
            Err(error) => *error == Error::NotFound,
        };
        if self.node.kind != Kind::Follow || !nothing {
            return answer(read);
        }
        if !std::mem::replace(&mut lock(&self.reading).ended, true) {
            return answer(Ok(Vec::new()));
        }
        match (read, wait) {
            (Err(error), _) => answer(Err(error)),
            (Ok(_), None) => answer(Err(Error::Again)),
            (Ok(_), Some(thread)) => self.answer_later(size, thread, answer),
        }
    }

    fn answer_later(self: &Arc<Self>, size: usize, thread: u32, answer: Answer<Vec<u8>>) {
        let open = self.clone();
        let wake = move |why| match why {
            Why::Signal => answer(Err(Error::Interrupted)),
            Why::End => answer(Ok(Vec::new())),
            Why::More => match open.read_next(size) {
                // Another one has it, and an empty answer would be the end.
                Ok(bytes) if bytes.is_empty() => open.answer_later(size, thread, answer),
                // The stream may be gone, and with it what could have come.
                Err(Error::NotFound) => answer(Ok(Vec::new())),
                read => answer(read),
            },
        };
        let ticket = self.waiters.ticket();
        self.waiters.park(&self.stream, self.seen(), Some(thread), ticket, Box::new(wake));
    }

    /// Whether there is something this open file has not read. If it is a file that grows, `notify`
    /// is called when there is more, also when there is something now: an edge-triggered epoll asks
    /// but once. Where a read at the end does not wait, the end is such a thing, once: busybox's
    /// `read` polls before each read, and would never come to it.
    pub fn poll<N: FnOnce() + Send + 'static>(self: &Arc<Self>, notify: Option<N>) -> Result<bool> {
        if !matches!(self.node.kind, Kind::Events | Kind::Lines | Kind::From | Kind::Follow) {
            return Ok(true);
        }
        let end = self.seen();
        let reading = lock(&self.reading);
        let ready = !reading.ended || reading.objects.as_ref().is_some_and(Objects::ready);
        drop(reading);
        let news = match self.stream.news() {
            // A stream that is gone has an end, too.
            Err(_) if ready => return Ok(true),
            news => news?,
        };
        if let Some(notify) = notify {
            // Nobody has seen all where the end is not known: it may be mended, and then comes more.
            let seen = if news == u64::MAX { end } else { news.max(end) };
            let ticket = self.waiters.ticket();
            if *lock(&self.reading).polled.get_or_insert(ticket) == ticket {
                let open = self.clone();
                let wake = move |why| {
                    let mut reading = lock(&open.reading);
                    reading.polled = None;
                    reading.ended &= why != Why::End;
                    drop(reading);
                    notify();
                };
                self.waiters.park(&self.stream, seen, None, ticket, Box::new(wake));
            }
        }
        Ok(ready || end < news)
    }

    /// The last close. Nobody polls it any more.
    pub(crate) fn stop_polling(&self) {
        let polled = lock(&self.reading).polled;
        if let Some(ticket) = polled {
            self.waiters.leave(&self.stream, ticket);
        }
    }
}
