//! The reading half of an open file: how far it was read, who waits there for more.

use std::sync::{Arc, Mutex};

use crate::disk::Real;
use crate::error::{Error, Result};
use crate::node::{Kind, Node};
use crate::objects::Objects;
use crate::stream::{Cursor, Stream};
use crate::sys::lock;
use crate::wait::{Answer, Waiters, Wake, Why};

/// The reading half of an open file.
pub struct Reader {
    pub(crate) node: Node,
    stream: Arc<Stream<Real>>,
    waiters: Arc<Waiters>,
    /// What it shows begins here in the stream's view; and how much of that, when it is fixed.
    base: u64,
    len: u64,
    state: Mutex<State>,
}

/// How far an open file was read.
#[derive(Default)]
struct State {
    cursor: Cursor,
    /// Of JSON, what is still to come.
    objects: Option<Objects>,
    /// Of a follower, where it is: those who share it share what comes.
    end: u64,
    /// Whoever reads knows that this is the end. A follower's file has none, unless its wait is over,
    /// which is then told once.
    ended: bool,
    /// A poller is parked, with this ticket: the kernel knows it by the open file, so one is enough.
    polled: bool,
    ticket: u64,
    /// Of `count` or `first`: what it said.
    number: String,
}

impl Reader {
    /// Of a file that shows the view from `base` on, `len` bytes of it.
    pub(crate) fn new(
        node: Node,
        stream: Arc<Stream<Real>>,
        waiters: Arc<Waiters>,
        (base, len): (u64, u64),
    ) -> Reader {
        let until = if node.kind == Kind::At { node.index + 1 } else { u64::MAX };
        let objects = node.json.then(|| Objects::new(node.index..until, base));
        let ended = node.kind == Kind::Follow;
        let state = Mutex::new(State { objects, ended, ..State::default() });
        Reader { node, stream, waiters, base, len, state }
    }

    /// Where `offset` is in the stream's view.
    fn view(&self, offset: u64) -> u64 {
        self.base.saturating_add(offset)
    }

    /// How far it was read.
    fn seen(&self) -> u64 {
        let state = lock(&self.state);
        state.objects.as_ref().map_or(self.view(state.end), Objects::seen)
    }

    /// Its size, and when it was written.
    pub(crate) fn size(&self) -> Result<(u64, u64)> {
        let tip = self.stream.tip()?;
        let size = if self.node.flows() { 1 } else { tip.view.saturating_sub(self.base) };
        Ok((size.min(self.len), tip.time))
    }

    /// Up to `size` bytes from `offset` on; fewer only at the end.
    fn read(&self, offset: u64, size: usize) -> Result<Vec<u8>> {
        match self.node.kind {
            Kind::New => Ok(Vec::new()),
            _ if self.node.flows() => self.read_next(size),
            kind @ (Kind::Count | Kind::First) => {
                let number = &mut lock(&self.state).number;
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
                let mut cursor = std::mem::take(&mut lock(&self.state).cursor);
                let bytes = self.stream.read_view(self.view(offset), size, &mut cursor)?;
                let mut reader = lock(&self.state);
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
        let mut reader = lock(&self.state);
        let reader = &mut *reader;
        let view = self.view(reader.end);
        let mut bytes = match &mut reader.objects {
            Some(objects) => objects.peek(&self.stream, size)?.to_vec(),
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
        if !std::mem::replace(&mut lock(&self.state).ended, true) {
            return answer(Ok(Vec::new()));
        }
        match (read, wait) {
            (Err(error), _) => answer(Err(error)),
            (Ok(_), None) => answer(Err(Error::Again)),
            (Ok(_), Some(thread)) => {
                let wake = self.answer_later(size, thread, answer);
                self.wait(self.seen(), Some(thread), wake);
            }
        }
    }

    fn answer_later(self: &Arc<Self>, size: usize, thread: u32, answer: Answer<Vec<u8>>) -> Wake {
        let open = self.clone();
        Box::new(move |why| match why {
            Why::Signal => answer(Err(Error::Interrupted)),
            Why::End => answer(Ok(Vec::new())),
            Why::More => match open.read_next(size) {
                // Another one has it, and an empty answer would be the end.
                Ok(bytes) if bytes.is_empty() => {
                    let wake = open.answer_later(size, thread, answer);
                    open.wait(open.seen(), Some(thread), wake);
                }
                // The stream may be gone, and with it what could have come.
                Err(Error::NotFound) => answer(Ok(Vec::new())),
                read => answer(read),
            },
        })
    }

    /// Whether there is something this open file has not read. If it is a file that grows, `notify`
    /// is called when there is more, also when there is something now: an edge-triggered epoll asks
    /// but once. Where a read at the end does not wait, the end is such a thing, once: busybox's
    /// `read` polls before each read, and would never come to it.
    pub fn poll<N: FnOnce() + Send + 'static>(self: &Arc<Self>, notify: Option<N>) -> Result<bool> {
        if !matches!(self.node.kind, Kind::Events | Kind::Lines | Kind::From | Kind::Follow) {
            return Ok(true);
        }
        let (end, ended) = (self.seen(), lock(&self.state).ended);
        if lock(&self.state).objects.as_ref().is_some_and(Objects::ready) {
            return Ok(true);
        }
        let news = match self.stream.news() {
            // A stream that is gone has an end, too.
            Err(_) if !ended => return Ok(true),
            news => news?,
        };
        if let Some(notify) = notify
            && !std::mem::replace(&mut lock(&self.state).polled, true)
        {
            let open = self.clone();
            let wake = move |why| {
                let mut reader = lock(&open.state);
                reader.polled = false;
                reader.ended &= why != Why::End;
                drop(reader);
                notify();
            };
            let ticket = self.wait(news.max(end), None, Box::new(wake));
            lock(&self.state).ticket = ticket;
        }
        Ok(!ended || end < news)
    }

    fn wait(self: &Arc<Self>, seen: u64, thread: Option<u32>, wake: Wake) -> u64 {
        let ticket = self.waiters.park(&self.stream, seen, thread, wake);
        // What was committed before it could be seen to wait.
        if self.stream.news().map_or(true, |news| seen < news) {
            self.waiters.wake(&self.stream);
        }
        ticket
    }

    /// The last close. Nobody polls it any more.
    pub(crate) fn release(&self) {
        let state = lock(&self.state);
        let (polled, ticket) = (state.polled, state.ticket);
        drop(state);
        if polled {
            self.waiters.leave(&self.stream, ticket);
        }
    }
}
