//! Open files of the tree: what a writer has gathered since its last commit, who is to be told
//! what became of it, how far a reader has come.
//!
//! Several processes may share one open file, and each close of each of them commits: see "Who
//! commits on close" in the README.

use std::cmp::Ordering;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::batch::Shape;
use crate::commit;
use crate::disk::Real;
use crate::error::{Error, Result};
use crate::node::{Kind, Node};
use crate::proc::Ending;
use crate::stream::{Cursor, Stream, lock};
use crate::wait::{Waiter, Waiters, Wake, Why};

/// Called with what became of a request.
pub type Answer<R> = Box<dyn FnOnce(Result<R>) + Send>;
type Batch = commit::Batch<Real>;

/// An open file of a stream.
pub struct Open {
    kind: Kind,
    stream: Arc<Stream<Real>>,
    /// What it shows begins here in the stream's view; and how much of that, when it is fixed.
    base: u64,
    len: u64,
    append: bool,
    /// Each write commits its complete lines, and is told what became of them.
    through: bool,
    reader: Mutex<Reader>,
    writer: Mutex<Writer>,
    waiters: Arc<Waiters>,
}

/// How far an open file was read.
#[derive(Default)]
struct Reader {
    cursor: Cursor,
    /// Of a follower, where it is: those who share it share what comes.
    end: u64,
    /// Whoever reads knows that this is the end. A follower's file has none, unless its wait is over,
    /// which is then told once.
    ended: bool,
    /// A poller is parked, with this ticket: the kernel knows it by the open file, so one is enough.
    polled: bool,
    ticket: u64,
    /// What `count` said.
    count: Option<u64>,
}

/// What an open file has gathered since its last commit.
#[derive(Default)]
struct Writer {
    batch: Option<Batch>,
    /// For each lock owner with bytes not yet committed: up to where it wrote.
    owners: HashMap<u64, u64>,
    /// Who wrote last.
    last: u64,
    /// Bytes ever taken.
    taken: u64,
    /// A write or commit failed, and the owners are still to be told.
    failed: Option<Error>,
    /// The index the next batch is promised.
    guard: Option<u64>,
    /// Where it was opened without O_APPEND: the end of the file, as its writers know it. There they
    /// write, or not at all.
    end: Option<u64>,
    /// The one event there can be is committed.
    sealed: bool,
    /// Whose bytes are being committed: an owner for each batch it has some in.
    in_flight: Vec<u64>,
    /// Guarded commits that wait for the one before, which says what they are promised.
    held: VecDeque<Submit>,
}

/// Puts a batch in the stream's queue, with its guard: see [`Stream::enqueue`].
type Submit = Box<dyn FnOnce(&Open, Option<u64>) -> bool + Send>;

/// Who learns by an answer what became of the bytes it wrote.
#[derive(Clone, Copy)]
enum Told {
    /// There is nobody left, or all learn it by what they do next.
    Nobody,
    Owner(u64),
    /// One of those who wrote; which is not said.
    Somebody,
}

impl Told {
    fn owner(self) -> Option<u64> {
        match self {
            Told::Owner(owner) => Some(owner),
            Told::Nobody | Told::Somebody => None,
        }
    }
}

impl Writer {
    /// Gives up the batch; its owners are to be told.
    fn fail(&mut self, error: &Error) {
        self.batch = None;
        self.failed = (!self.owners.is_empty()).then(|| error.clone());
    }

    /// Takes what is to be committed out of the batch.
    fn take(&mut self, all: bool) -> Result<Option<Batch>> {
        let tally = self.batch.as_ref().map(Batch::tally).unwrap_or_default();
        if all || tally.torn() == 0 {
            return Ok(self.batch.take());
        }
        if tally.complete == 0 {
            return Ok(None);
        }
        let mut batch = self.batch.take();
        let torn = batch.as_mut().map(Batch::split_torn).transpose();
        self.batch = torn.inspect_err(|error| self.fail(error))?;
        Ok(batch)
    }

    /// Takes what is to be committed because `owner`, who has written, closes the file.
    fn leave(&mut self, owner: u64, ending: &Ending) -> Result<Option<Batch>> {
        let last = self.last == owner;
        match ending {
            Ending::Closed => self.take(last),
            Ending::Killed { .. } if self.owners.is_empty() => {
                self.batch = None;
                Ok(None)
            }
            // Others wrote, too. The complete lines stay, and come when one of them closes.
            Ending::Killed { .. } if last => {
                self.batch = self.take(false)?;
                Ok(None)
            }
            Ending::Killed { .. } => Ok(None),
            Ending::Unknown => {
                let complete = self.take(false);
                if last {
                    self.batch = None;
                }
                complete
            }
        }
    }

    /// How many events a batch comes to.
    fn events(batch: Option<&Batch>) -> u64 {
        batch.map_or(0, |batch| batch.tally().all_events())
    }

    /// Those with bytes in what was just taken out of the batch.
    fn riders(&mut self) -> Vec<u64> {
        let rest = self.batch.as_ref().map_or(0, |rest| rest.tally().len);
        let boundary = self.taken - rest;
        // A line that began in what was taken may end in the rest, which must not come alone.
        let rides = |end: u64| end <= boundary || rest > 0;
        let riders = self.owners.iter().filter(|(_, end)| rides(**end));
        let riders = riders.map(|(owner, _)| *owner).collect();
        self.owners.retain(|_, end| *end > boundary);
        riders
    }
}

impl Open {
    /// Opens a file of a stream; `flags` as in open(2).
    pub(crate) fn new(
        Node { kind, index, .. }: Node,
        stream: Arc<Stream<Real>>,
        flags: i32,
        waiters: Arc<Waiters>,
    ) -> Result<Open> {
        let write = flags & libc::O_ACCMODE != libc::O_RDONLY;
        let append = flags & libc::O_APPEND != 0;
        let one = kind == Kind::New || (kind == Kind::At && write);
        let (mut base, mut len) = (0, u64::MAX);
        let mut writer = Writer::default();
        match kind {
            _ if flags & libc::O_TRUNC != 0 && !one => return Err(Error::NotPermitted),
            Kind::New | Kind::Events | Kind::Lines => {}
            Kind::Count | Kind::From | Kind::At | Kind::Follow if !write => {}
            Kind::From | Kind::At => match index.cmp(&stream.taken()?) {
                Ordering::Less => {
                    stream.refused(&Error::Exists);
                    return Err(Error::Exists);
                }
                Ordering::Equal => writer.guard = Some(index),
                Ordering::Greater => return Err(Error::NotFound),
            },
            _ => return Err(Error::NotPermitted),
        }
        match kind {
            Kind::From | Kind::Follow => base = stream.view(index)?,
            Kind::At if write => len = 0,
            Kind::At => (base, len, _) = stream.meta(index)?,
            _ => {}
        }
        if write && !append && !one {
            writer.end = Some(stream.tip()?.view().saturating_sub(base));
        }
        Ok(Open {
            kind,
            stream,
            base,
            len,
            append,
            through: !one && (kind == Kind::Lines || flags & libc::O_DSYNC != 0),
            reader: Mutex::new(Reader { ended: kind == Kind::Follow, ..Reader::default() }),
            writer: Mutex::new(writer),
            waiters,
        })
    }

    // ---- reading -----------------------------------------------------------------------------

    /// Where `offset` is in the stream's view.
    fn view(&self, offset: u64) -> u64 {
        self.base.saturating_add(offset)
    }

    /// How far it was read.
    fn seen(&self) -> u64 {
        self.view(lock(&self.reader).end)
    }

    /// Up to `size` bytes from `offset` on; fewer only at the end.
    fn read(&self, offset: u64, size: usize) -> Result<Vec<u8>> {
        match self.kind {
            Kind::New => Ok(Vec::new()),
            Kind::Follow => self.read_next(size),
            Kind::Count => {
                let mut reader = lock(&self.reader);
                let count = match reader.count {
                    // Who reads on gets the rest of the same number.
                    Some(count) if offset > 0 => count,
                    _ => self.stream.count()?,
                };
                reader.count = Some(count);
                let offset = usize::try_from(offset).unwrap_or(usize::MAX);
                Ok(format!("{count}\n").bytes().skip(offset).take(size).collect())
            }
            _ => {
                let left = usize::try_from(self.len.saturating_sub(offset)).unwrap_or(usize::MAX);
                let size = size.min(left);
                // Not under the lock: others may read somewhere else.
                let mut cursor = std::mem::take(&mut lock(&self.reader).cursor);
                let bytes = self.stream.read_view(self.view(offset), size, &mut cursor)?;
                let mut reader = lock(&self.reader);
                reader.cursor = cursor;
                reader.end = reader.end.max(offset.saturating_add(bytes.len() as u64));
                reader.ended = bytes.is_empty() && size > 0;
                Ok(bytes)
            }
        }
    }

    /// What a follower has not read, up to `size` bytes. If there is more it ends with an event, when
    /// one fits in: no two of those who share the file are to get halves of it.
    fn read_next(&self, size: usize) -> Result<Vec<u8>> {
        let mut reader = lock(&self.reader);
        let reader = &mut *reader;
        let view = self.view(reader.end);
        let mut bytes = self.stream.read_view(view, size, &mut reader.cursor)?;
        if bytes.len() == size
            && let Some(last) = bytes.iter().rposition(|byte| *byte == b'\n')
        {
            bytes.truncate(last + 1);
        }
        reader.end += bytes.len() as u64;
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
        if self.kind == Kind::Follow && offset > 0 {
            // A later piece of a long read, which the first one answers; it may come before that.
            return answer(Ok(Vec::new()));
        }
        let read = self.read(offset, size);
        let nothing = match &read {
            Ok(bytes) => bytes.is_empty(),
            Err(error) => *error == Error::NotFound,
        };
        if self.kind != Kind::Follow || !nothing {
            return answer(read);
        }
        if !std::mem::replace(&mut lock(&self.reader).ended, true) {
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
                // Another one has it, and an empty answer would be the end. What comes from here on
                // is seen at the next look.
                Ok(bytes) if bytes.is_empty() => {
                    let wake = open.answer_later(size, thread, answer);
                    open.park(open.seen(), Some(thread), wake);
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
        if !matches!(self.kind, Kind::Events | Kind::Lines | Kind::From | Kind::Follow) {
            return Ok(true);
        }
        let (end, ended) = {
            let reader = lock(&self.reader);
            (self.view(reader.end), reader.ended)
        };
        let news = match self.stream.news() {
            // A stream that is gone has an end, too.
            Err(_) if !ended => return Ok(true),
            news => news?,
        };
        if let Some(notify) = notify
            && !std::mem::replace(&mut lock(&self.reader).polled, true)
        {
            let open = self.clone();
            let wake = move |why| {
                let mut reader = lock(&open.reader);
                reader.polled = false;
                reader.ended &= why != Why::End;
                drop(reader);
                notify();
            };
            let ticket = self.wait(news.max(end), None, Box::new(wake));
            lock(&self.reader).ticket = ticket;
        }
        Ok(!ended || end < news)
    }

    fn park(self: &Arc<Self>, seen: u64, thread: Option<u32>, wake: Wake) -> u64 {
        self.waiters.park(Waiter { stream: self.stream.clone(), seen, thread, wake })
    }

    fn wait(self: &Arc<Self>, seen: u64, thread: Option<u32>, wake: Wake) -> u64 {
        let ticket = self.park(seen, thread, wake);
        // What was committed before it could be seen to wait.
        if self.stream.news().map_or(true, |news| seen < news) {
            self.waiters.wake(&self.stream);
        }
        ticket
    }

    /// The last close. Nobody polls it any more. What is pending was not closed by any process, which
    /// is so with io_uring's own files: then this commits.
    pub(crate) fn release(self: &Arc<Self>) {
        let (polled, ticket) = {
            let reader = lock(&self.reader);
            (reader.polled, reader.ticket)
        };
        if polled {
            self.waiters.leave(&self.stream, ticket);
        }
        let mut writer = lock(&self.writer);
        if let Some(batch) = writer.batch.take() {
            self.commit(writer, Ok(Some(batch)), Told::Nobody, Box::new(drop));
        }
    }

    // ---- writing -----------------------------------------------------------------------------

    fn shape(&self) -> Shape {
        match self.kind {
            Kind::New | Kind::At => Shape::One,
            _ => Shape::Lines,
        }
    }

    /// Takes `bytes` into the batch, and answers when the write is to return.
    pub fn write(self: &Arc<Self>, owner: u64, offset: u64, bytes: &[u8], answer: Answer<()>) {
        let mut writer = lock(&self.writer);
        // What it takes along from earlier writes is to be told of, too: a long write(2) comes in
        // pieces, and of an error behind the first it learns nothing.
        let alone = writer.batch.is_none();
        let gathered = self.gather(&mut writer, owner, offset, bytes);
        if gathered.is_err() || !self.through {
            drop(writer);
            return answer(gathered);
        }
        let complete = writer.take(false);
        let told = if alone { Told::Owner(owner) } else { Told::Nobody };
        self.commit(writer, complete, told, answer);
    }

    fn gather(&self, writer: &mut Writer, owner: u64, offset: u64, bytes: &[u8]) -> Result<()> {
        let one = self.shape() == Shape::One;
        if writer.sealed || (one && !writer.in_flight.is_empty()) {
            return Err(Error::Invalid);
        }
        let end = writer.taken + bytes.len() as u64;
        if let Some(error) = writer.failed.clone() {
            if self.through {
                // Once is enough where nothing else is pending.
                writer.owners.remove(&owner);
                writer.failed = None;
            } else {
                // Whoever is to be told of earlier bytes is to be told of those.
                writer.owners.entry(owner).or_insert(end);
            }
            return Err(error);
        }
        let alone = writer.batch.is_none();
        writer.owners.insert(owner, end);
        let mut push = || {
            self.is_at_the_end(writer, offset)?;
            // A commit in flight moves the guard.
            if let Some(guard) = writer.guard.filter(|_| writer.in_flight.is_empty())
                && self.stream.taken()? != guard
            {
                return Err(Error::Exists);
            }
            let new = || self.stream.batch(self.shape());
            let batch = writer.batch.get_or_insert_with(new);
            // One event is written from its beginning to its end.
            if one && !self.append && offset != batch.tally().len {
                return Err(Error::Invalid);
            }
            batch.push(bytes)
        };
        push().inspect_err(|error| {
            self.stream.refused(error);
            if self.through && alone {
                // Who wrote this is told by the answer, and free to try again.
                writer.owners.remove(&owner);
            }
            writer.fail(error);
        })?;
        (writer.taken, writer.last) = (end, owner);
        writer.end = writer.end.map(|_| offset.saturating_add(bytes.len() as u64));
        Ok(())
    }

    /// Where it was opened without O_APPEND, whether a write at `offset` is one to the end. If so the
    /// end is promised to the batch that begins there.
    fn is_at_the_end(&self, writer: &mut Writer, offset: u64) -> Result<()> {
        let Some(end) = writer.end else {
            return Ok(());
        };
        if writer.batch.is_some() || !writer.in_flight.is_empty() {
            return if offset == end { Ok(()) } else { Err(Error::NotPermitted) };
        }
        let tip = self.stream.tip()?;
        let now = tip.view().saturating_sub(self.base);
        // A newline that its last batch lacked may be between.
        let known = offset == end && writer.guard == Some(tip.count);
        if offset == now || known {
            writer.guard = Some(tip.count);
            return Ok(());
        }
        self.stream.taken()?;
        // Somebody else has moved the end since.
        Err(if (end..now).contains(&offset) { Error::Exists } else { Error::NotPermitted })
    }

    /// ftruncate(2): drops what is pending of one event, or says that it is as long.
    pub(crate) fn truncate(&self, size: u64) -> Result<()> {
        let mut writer = lock(&self.writer);
        let pending = writer.batch.as_ref().map_or(0, |batch| batch.tally().len);
        match () {
            () if self.shape() != Shape::One => return Err(Error::NotPermitted),
            () if writer.sealed || !writer.in_flight.is_empty() => return Err(Error::Invalid),
            () if size == pending => return Ok(()),
            () if size > 0 => return Err(Error::NotPermitted),
            () => {}
        }
        writer.batch = None;
        if writer.failed.is_none() {
            writer.owners.clear();
        }
        Ok(())
    }

    /// A process closes the file. What it wrote is committed, and then answered; `ending` says why
    /// it closes, and is asked only where that matters. If that abandons events: how many, and why.
    pub fn flush(
        self: &Arc<Self>,
        owner: u64,
        ending: impl FnOnce() -> Ending,
        answer: Answer<()>,
    ) -> Option<(u64, Ending)> {
        let mut writer = lock(&self.writer);
        let wrote = writer.owners.remove(&owner).is_some();
        if !wrote && !writer.in_flight.contains(&owner) {
            drop(writer);
            answer(Ok(()));
            return None;
        }
        let mut abandoned = None;
        let taken = match writer.failed.clone() {
            _ if !wrote => Ok(None),
            Some(error) => {
                writer.fail(&error);
                Err(error)
            }
            None => {
                let (before, ending) = (Writer::events(writer.batch.as_ref()), ending());
                let taken = writer.leave(owner, &ending);
                if let Ok(taken) = &taken {
                    let kept =
                        Writer::events(writer.batch.as_ref()) + Writer::events(taken.as_ref());
                    abandoned = (before > kept).then(|| (before - kept, ending));
                }
                taken
            }
        };
        self.commit(writer, taken, Told::Owner(owner), answer);
        abandoned
    }

    /// Commits all there is, whoever wrote it.
    pub fn sync(self: &Arc<Self>, answer: Answer<()>) {
        let mut writer = lock(&self.writer);
        // Who asks is not said. When only one has written it is that one.
        let mut owners = writer.owners.keys().chain(&writer.in_flight).copied();
        let first = owners.next();
        let told = match first {
            Some(only) if owners.all(|owner| owner == only) => Told::Owner(only),
            _ => Told::Somebody,
        };
        let taken = match writer.failed.clone() {
            Some(error) => {
                told.owner().map(|only| writer.owners.remove(&only));
                writer.fail(&error);
                Err(error)
            }
            None => Ok(writer.batch.take()),
        };
        self.commit(writer, taken, told, answer);
    }

    /// Commits what was taken out of the batch, and answers when that is durable, and what others
    /// are committing through this open file, too. When it fails `told` learns so by the answer,
    /// all others who had bytes in it by what they do next.
    fn commit(
        self: &Arc<Self>,
        mut writer: MutexGuard<'_, Writer>,
        taken: Result<Option<Batch>>,
        told: Told,
        answer: Answer<()>,
    ) {
        let busy = !writer.in_flight.is_empty();
        let (batch, mut riders) = match taken {
            Ok(Some(batch)) => (batch, writer.riders()),
            // It takes its place in the queue behind theirs.
            Ok(None) if busy => (self.stream.batch(Shape::Lines), Vec::new()),
            nothing => {
                drop(writer);
                return answer(nothing.map(drop));
            }
        };
        riders.retain(|rider| Some(*rider) != told.owner());
        writer.in_flight.extend(riders.iter().copied().chain(told.owner()));
        let events = batch.tally().all_events();
        let open = self.clone();
        let finish = move |result: Result<u64>| {
            let more = result.is_ok() && events > 0;
            answer(open.finish(result, events, riders, told));
            if more {
                open.waiters.wake(&open.stream);
            }
        };
        let enqueue = move |open: &Open, guard: Option<u64>| {
            let guard = guard.filter(|_| events > 0);
            open.stream.enqueue(batch, guard, Box::new(finish))
        };
        if busy && writer.guard.is_some() {
            writer.held.push_back(Box::new(enqueue));
            return;
        }
        // Before another one can come here: an empty batch must not overtake what it waits for.
        let leads = enqueue(self, writer.guard);
        drop(writer);
        if leads {
            self.stream.commit_queue();
        }
    }

    /// A commit of so many events has ended; `riders` and who is told had bytes in it. Says what to
    /// tell.
    fn finish(&self, result: Result<u64>, events: u64, riders: Vec<u64>, told: Told) -> Result<()> {
        let mut writer = lock(&self.writer);
        for rider in riders.iter().copied().chain(told.owner()) {
            let at = writer.in_flight.iter().position(|owner| *owner == rider);
            at.map(|at| writer.in_flight.swap_remove(at));
        }
        // What became of the bytes it had in earlier batches, while it waited for this one.
        let earlier = writer.failed.clone().filter(|_| match told {
            Told::Nobody => false,
            // Not what became of bytes that it has written since.
            Told::Owner(owner) => {
                writer.owners.get(&owner) == Some(&0) && writer.owners.remove(&owner).is_some()
            }
            Told::Somebody => true,
        });
        if let Some(error) = &earlier {
            writer.fail(error);
        }
        match &result {
            Ok(first) if events > 0 => {
                writer.guard = writer.guard.map(|_| first + events);
                writer.sealed = self.shape() == Shape::One;
            }
            Err(error) if !riders.is_empty() => {
                writer.owners.extend(riders.into_iter().map(|rider| (rider, 0)));
                writer.fail(error);
            }
            _ => {}
        }
        let (next, guard) = (writer.held.pop_front(), writer.guard);
        let leads = next.is_some_and(|enqueue| enqueue(self, guard));
        drop(writer);
        if leads {
            self.stream.commit_queue();
        }
        match earlier {
            // Some of it is stored, some is not.
            Some(error) if events > 0 && result.is_ok() => Err(self.stream.unknown(&error)),
            Some(error) => result.and(Err(error)),
            None => result.map(drop),
        }
    }
}
