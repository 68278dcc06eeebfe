//! One stream: its open files, and reading. `mend` opens and recovers, [`crate::commit`] appends.
//!
//! Readers take no lock: they believe the count, and check every frame.

use std::cmp::Ordering;
use std::collections::{HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use crate::commit::{Queue, Room};
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::frame::{self, Found, Frame};
use crate::index::{self, view_offset};
use crate::log::{Files, Scan};
use crate::recover::Walk;
use crate::spill::{Ceiling, PIECE};
use crate::status::Status;

/// At most this many streams have their files open, beside those in the middle of a request.
const OPEN: usize = 256;
/// An event of this size is kept after it was checked, for it is likely read in pieces.
const BIG: u64 = 512 << 10;

/// Locks, also after a panic: what is guarded is only ever replaced as a whole.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// As [`lock`]; None when somebody has it.
fn try_lock<T>(mutex: &Mutex<T>) -> Option<MutexGuard<'_, T>> {
    match mutex.try_lock() {
        Err(TryLockError::WouldBlock) => None,
        Err(TryLockError::Poisoned(guard)) => Some(guard.into_inner()),
        Ok(guard) => Some(guard),
    }
}

/// What all streams of a store share.
pub(crate) struct Shared<D: Disk> {
    pub(crate) disk: Arc<D>,
    pub(crate) read_only: bool,
    pub(crate) log: Box<dyn Fn(&str) + Send + Sync>,
    pub(crate) ceiling: Arc<Ceiling>,
    pub(crate) status: Status,
    /// How many threads are committing for others.
    pub(crate) leading: AtomicUsize,
    /// How many are making room for a write.
    pub(crate) reserving: AtomicUsize,
    /// Streams that take no appends, by the identity of their log: this outlives any cache.
    pub(crate) stopped: Mutex<HashMap<u64, &'static str>>,
    /// Those with open files; the next to close them is in front. None when all were let go of.
    open: Mutex<Option<VecDeque<Arc<Stream<D>>>>>,
    /// The last large event read.
    big: Mutex<Option<Big>>,
}

impl<D: Disk> Shared<D> {
    pub(crate) fn new(disk: D, read_only: bool, log: Box<dyn Fn(&str) + Send + Sync>) -> Self {
        Shared {
            disk: Arc::new(disk),
            read_only,
            log,
            ceiling: Arc::default(),
            status: Status::default(),
            leading: AtomicUsize::new(0),
            reserving: AtomicUsize::new(0),
            stopped: Mutex::default(),
            open: Mutex::new(Some(VecDeque::new())),
            big: Mutex::default(),
        }
    }

    /// Takes in a stream that has just opened its files, and closes those of another one: the
    /// first that was not used since it was last looked at (the CLOCK algorithm).
    fn admit(&self, stream: Arc<Stream<D>>) {
        let mut open = lock(&self.open);
        let Some(open) = &mut *open else {
            return;
        };
        open.push_back(stream);
        let mut spared = 0;
        while open.len() > OPEN && spared < 2 * OPEN {
            let Some(oldest) = open.pop_front() else {
                return;
            };
            // One that is being opened or closed right now is left to whoever does it.
            let idle = !oldest.used.swap(false, Relaxed);
            let files = try_lock(&oldest.files).filter(|_| idle);
            let closed = files.map(|mut files| *files = None).is_some();
            if !closed {
                open.push_back(oldest);
                spared += 1;
            }
        }
    }

    /// Lets go of all streams: each of them holds this.
    pub(crate) fn close(&self) {
        *lock(&self.open) = None;
    }
}

/// Identity of the log, index, header of the frame, line.
type Big = (u64, u64, [u8; frame::HEADER], Arc<[u8]>);

/// The end of a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tip {
    /// How many events there are.
    pub(crate) count: u64,
    /// Log offset behind the last one.
    pub(crate) end: u64,
    /// When the last one was committed, 0 when there is none.
    pub(crate) time: u64,
    /// It may come to less: the disk lost some of them, or who only reads saw what is not counted.
    pub(crate) guessed: bool,
}

impl Tip {
    pub(crate) fn view(&self) -> u64 {
        view_offset(self.count, self.end)
    }
}

/// What a glance at a stream shows.
pub(crate) enum Glance {
    /// There is more than was seen, or an error; to see it somebody may have to be waited for.
    More,
    Nothing,
    /// It was removed, or another mount renamed it.
    Gone,
}

/// Where a reader was: event and log offset. A hint, checked when used.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cursor(pub(crate) u64, pub(crate) u64);

/// An event as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Its place in the stream, from 0.
    pub index: u64,
    /// When it was committed: nanoseconds since the Unix epoch. Strictly greater from batch to
    /// batch, the same within one.
    pub time: u64,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// A stream of a store: see [`Store::stream`](crate::store::Store::stream).
pub struct Stream<D: Disk> {
    pub(crate) shared: Arc<Shared<D>>,
    pub(crate) name: Mutex<PathBuf>,
    /// The identity of the log when it was last opened, 0 before.
    pub(crate) identity: Mutex<u64>,
    pub(crate) files: Mutex<Option<Arc<Files<D>>>>,
    pub(crate) used: AtomicBool,
    pub(crate) tip: Mutex<Tip>,
    pub(crate) queue: Mutex<Queue<D>>,
    /// Held while the log changes.
    pub(crate) writer: Mutex<()>,
    /// How long log and index were when last seen.
    pub(crate) room: Mutex<Room>,
    /// Log bytes and events of batches not yet committed.
    pub(crate) pending: Mutex<(u64, u64)>,
}

impl<D: Disk> Stream<D> {
    pub(crate) fn new(shared: Arc<Shared<D>>, name: PathBuf) -> Arc<Stream<D>> {
        Arc::new(Stream {
            shared,
            name: Mutex::new(name),
            identity: Mutex::new(0),
            files: Mutex::new(None),
            used: AtomicBool::new(false),
            tip: Mutex::default(),
            queue: Mutex::new(Queue { jobs: VecDeque::new(), leading: false }),
            writer: Mutex::default(),
            room: Mutex::default(),
            pending: Mutex::default(),
        })
    }

    pub(crate) fn name(&self) -> PathBuf {
        lock(&self.name).clone()
    }

    /// Gives the stream another name by `rename`, while it commits nothing.
    pub(crate) fn rename(
        self: &Arc<Self>,
        name: &Path,
        rename: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let _writer = lock(&self.writer);
        let files = self.files()?;
        // Closing what is open gives the lock back; it would also sync the old name's directory.
        self.disk().lock(&files.log, false).map_err(self.os("log"))?;
        let renamed = rename();
        if renamed.is_ok() {
            *lock(&self.name) = name.into();
        }
        let unlocked = self.disk().unlock(&files.log).map_err(self.os("log"));
        self.close();
        renamed.and(unlocked)
    }

    pub(crate) fn identity(&self) -> u64 {
        *lock(&self.identity)
    }

    pub(crate) fn disk(&self) -> &D {
        &self.shared.disk
    }

    pub(crate) fn title(&self) -> String {
        self.name().to_string_lossy().into_owned()
    }

    pub(crate) fn os(&self, what: &str) -> impl FnOnce(std::io::Error) -> Error {
        move |error| Error::os(format!("{}/{what}", self.title()))(error)
    }

    // ---- files -------------------------------------------------------------------------------

    pub(crate) fn files(self: &Arc<Self>) -> Result<Arc<Files<D>>> {
        let mut slot = lock(&self.files);
        self.used.store(true, Relaxed);
        if let Some(files) = &*slot {
            return Ok(files.clone());
        }
        let files = Arc::new(self.open()?);
        *slot = Some(files.clone());
        drop(slot);
        self.shared.admit(self.clone());
        Ok(files)
    }

    /// Closes the files: the next to need them opens them again, by name.
    pub(crate) fn close(&self) {
        *lock(&self.files) = None;
        if let Some(open) = &mut *lock(&self.shared.open) {
            open.retain(|stream| !std::ptr::eq(&raw const **stream, self));
        }
    }

    // ---- reading -----------------------------------------------------------------------------

    pub(crate) fn files_and_tip(self: &Arc<Self>) -> Result<(Arc<Files<D>>, Tip)> {
        // What is opened anew is right, unless it changed again.
        for turn in 0..3 {
            let files = self.files()?;
            let index = self.disk().stat(&files.index).map_err(self.os("index"))?;
            let stale = match (index.named, files.counted) {
                // There may be room by now.
                _ if files.full() => turn == 0,
                (true, true) => false,
                // One that does not count stays what it is until it does.
                (true, false) => {
                    files.header()?.is_some() || (!files.write && self.gave_way(&files)?)
                }
                // The index was deleted, or the stream. Where we may not make another, it is an old
                // or a private one until there is one.
                (false, _) => {
                    files.write
                        || self.disk().identity(&self.name().join("index")).is_ok()
                        || self.gave_way(&files)?
                }
            };
            if !stale && let Some(tip) = self.tip_of(&files)? {
                return Ok((files, tip));
            }
            drop(files);
            self.close();
        }
        Err(self.os("index")(std::io::Error::other("it does not stay this stream's")))
    }

    /// Where there is no index and we may not make one: whether others had one meanwhile, and
    /// appended behind the end that we saw, or in the place of what the disk lost. What we have may
    /// count half of their batches.
    fn gave_way(&self, files: &Files<D>) -> Result<bool> {
        if self.identity() == 0 {
            // There was no log.
            return Ok(self.disk().identity(&files.name.join("log")).is_ok());
        }
        let (tip, mut scan) = (*lock(&self.tip), files.scan(0));
        // By its header: the event may be large.
        let is_of = |scan: &mut Scan<'_, D>, at, time: u64| {
            let head = scan.fill(at, frame::HEADER);
            head.map(|head| head.get(8..16) == Some(&time.to_le_bytes()))
        };
        if files.lost.is_none()
            && let Some(last) = tip.count.checked_sub(1)
        {
            let at = match files.entry(last)? {
                // A hole, which one of our own has not.
                0 if last > 0 && files.counted => return Ok(true),
                0 => files.locate(&mut scan, last).ok(),
                at => Some(at),
            };
            // What cannot be read is not another one.
            if !at.is_some_and(|at| is_of(&mut scan, at, tip.time).unwrap_or(true)) {
                // What was only found, not counted, is damaged until there is another one.
                let mut walk = files.last_sound(&mut scan, last)?;
                let next = scan.frame(walk.next, walk.at);
                return Ok(
                    !tip.guessed || matches!(next, Ok(Found::Frame(next)) if walk.step(&next))
                );
            }
        }
        let (end, from) = match files.lost {
            Some(lost) => (lost, files.last_sound(&mut scan, lost)?),
            None => (tip.count, Walk { time: tip.time, ..Walk::new(tip.count, tip.end, None) }),
        };
        let mut walk = *files.torn();
        // A batch without its end may be long, and is walked over once.
        if !walk.inside || is_of(&mut scan, from.at, walk.time) != Ok(true) {
            walk = from;
        }
        while let Ok(Found::Frame(frame)) = scan.frame(walk.next, walk.at)
            && walk.step(&frame)
        {}
        *files.torn() = walk;
        Ok(walk.whole > end)
    }

    /// How much there is to see now; None when the index is not this log's any more.
    pub(crate) fn tip_of(&self, files: &Files<D>) -> Result<Option<Tip>> {
        let tip = *lock(&self.tip);
        if !files.counted {
            return Ok(Some(tip));
        }
        let Some(count) = files.header()? else {
            return Ok(None);
        };
        let lost = files.lost.is_some();
        match count.cmp(&tip.count) {
            // Never less than was seen already. What a lost stream's index counts is all that is known
            // of it.
            Ordering::Less if !(lost && tip.guessed) => return Ok(Some(tip)),
            Ordering::Equal if tip.guessed == lost => return Ok(Some(tip)),
            Ordering::Greater if !lost => {}
            // What was seen is counted now, or came to nothing and others appended in its place.
            _ => return Ok(None),
        }
        // By its last event: the index may have a hole where that begins.
        let mut scan = files.scan(0);
        let at = match files.locate(&mut scan, count - 1) {
            // Recovery finds out what is there, and what is missing.
            Err(Error::Damaged { .. }) => return Ok(None),
            at => at?,
        };
        let last = match scan.frame(count - 1, at)? {
            Found::Frame(frame) if frame.last => frame,
            // Or it is half of a batch, in the place of others that the disk lost.
            _ => return Ok(None),
        };
        let mut seen = lock(&self.tip);
        if count > seen.count {
            *seen = Tip { count, end: at + last.size(), time: last.time, guessed: false };
        }
        Ok(Some(*seen))
    }

    /// How much there is to see now.
    pub(crate) fn tip(self: &Arc<Self>) -> Result<Tip> {
        Ok(self.files_and_tip()?.1)
    }

    /// Whoever has seen less than this of the view has something to see: more, or an error.
    pub(crate) fn news(self: &Arc<Self>) -> Result<u64> {
        let (files, tip) = self.files_and_tip()?;
        Ok(files.ended(tip.count).map_or(u64::MAX, |()| tip.view()))
    }

    /// Whether there is more than up to the view offset `seen`, for who must not wait for anybody. It
    /// opens nothing for good: that may take the log's lock.
    pub(crate) fn glance(&self, seen: u64) -> Glance {
        let Some(slot) = try_lock(&self.files) else {
            // Somebody is opening them: the next time.
            return Glance::Nothing;
        };
        let (files, tip) = (slot.clone(), *lock(&self.tip));
        drop(slot);
        let named = |files: &Files<D>| self.disk().stat(&files.index).is_ok_and(|stat| stat.named);
        match files {
            Some(files) if files.ended(tip.count).is_err() => Glance::More,
            Some(files) if files.counted && !files.full() && named(&files) => {
                self.used.store(true, Relaxed);
                match self.tip_of(&files) {
                    Ok(Some(tip)) if tip.view() <= seen => Glance::Nothing,
                    _ => Glance::More,
                }
            }
            Some(files)
                if !(files.write || files.counted && named(&files))
                    && self.gave_way(&files).unwrap_or(true) =>
            {
                Glance::More
            }
            // What somebody else came to know meanwhile.
            _ if tip.view() > seen => Glance::More,
            _ => self.glance_by_name(tip.count),
        }
    }

    /// Whether there are more than `seen` events in what has the stream's name.
    fn glance_by_name(&self, seen: u64) -> Glance {
        let (disk, name, known) = (self.disk(), self.name(), self.identity());
        let open = |what| disk.open(&name.join(what), false);
        let none = |error: &std::io::Error| error.kind() == std::io::ErrorKind::NotFound;
        let gone = || match try_lock(&self.writer) {
            Some(_) if self.name() == name => Glance::Gone,
            // Renamed here in this moment: who does that tells those who wait.
            _ => Glance::Nothing,
        };
        let files = match (open("log"), open("index")) {
            // Where it may not be made there is none before the first writer comes.
            (Err(error), _) if none(&error) && (known != 0 || disk.identity(&name).is_err()) => {
                return gone();
            }
            (Ok(log), index) => disk.stat(&log).map(|stat| (log, index, stat.identity)),
            (Err(error), _) => Err(error),
        };
        match files {
            Ok((_, _, identity)) if ![0, identity].contains(&known) => gone(),
            Ok((log, Ok(index), identity)) => {
                let files = (log, index);
                let disk = self.shared.disk.clone();
                match Files::new(disk, name.clone(), false, files, identity).header() {
                    Ok(Some(count)) if count > seen => Glance::More,
                    _ => Glance::Nothing,
                }
            }
            // Without an index nobody has committed since it was deleted.
            _ => Glance::Nothing,
        }
    }

    /// The count, for who is told that an index below it is taken: those events must not go.
    pub(crate) fn taken(self: &Arc<Self>) -> Result<u64> {
        let seen = || {
            let (files, tip) = self.files_and_tip()?;
            Ok((files.unmended.clone().filter(|_| tip.guessed), tip.count))
        };
        let mut found = seen()?;
        if found.0.is_some() {
            // What could not be written to may be by now.
            self.close();
            found = seen()?;
        }
        found.0.map_or(Ok(found.1), Err)
    }

    /// The number of events.
    pub fn count(self: &Arc<Self>) -> Result<u64> {
        Ok(self.tip()?.count)
    }

    /// The view offset of event `n`; `n` may be the count, NotFound when it is more.
    pub(crate) fn view(self: &Arc<Self>, n: u64) -> Result<u64> {
        let (files, tip) = self.files_and_tip()?;
        match n {
            0 => Ok(0),
            n if n > tip.count => Err(Error::NotFound),
            n if n == tip.count => Ok(tip.view()),
            n => Ok(view_offset(n, files.locate(&mut files.scan(0), n)?)),
        }
    }

    /// Looks at event `n`. NotFound when there is none.
    fn look<R>(self: &Arc<Self>, n: u64, look: impl FnOnce(u64, Frame<'_>) -> R) -> Result<R> {
        let (files, tip) = self.files_and_tip()?;
        if n >= tip.count {
            return Err(Error::NotFound);
        }
        let mut scan = files.scan(0);
        let at = files.locate(&mut scan, n)?;
        match scan.frame(n, at)? {
            Found::Frame(frame) => Ok(look(at, frame)),
            _ => Err(files.damaged(n, "its checksum does not hold")),
        }
    }

    /// Event `n`: its view offset, its length and its time.
    pub(crate) fn meta(self: &Arc<Self>, n: u64) -> Result<(u64, u64, u64)> {
        self.look(n, |at, frame| {
            let len = frame.payload().len() as u64;
            (view_offset(n, at), len, frame.time)
        })
    }

    /// One event. NotFound when there is none of that index.
    pub fn event(self: &Arc<Self>, n: u64) -> Result<Event> {
        self.look(n, |_, frame| Event {
            index: n,
            time: frame.time,
            bytes: frame.payload().to_vec(),
        })
    }

    /// The events from `n` on, up to the last there is now. NotFound when `n` is beyond the count.
    /// Where the disk lost events, an error behind the last: there may have been more.
    pub fn read(self: &Arc<Self>, n: u64) -> Result<impl Iterator<Item = Result<Event>> + use<D>> {
        let (files, Tip { count, .. }) = self.files_and_tip()?;
        if n > count {
            return Err(Error::NotFound);
        }
        let stream = self.clone();
        let mut ready = Vec::new().into_iter();
        let mut next = n..count + u64::from(files.lost.is_some());
        drop(files);
        Ok(std::iter::from_fn(move || {
            if ready.len() == 0 && !next.is_empty() {
                match stream.some(next.start, count) {
                    Ok(events) => ready = events.into_iter(),
                    Err(error) => return next.next().map(|_| Err(error)),
                }
            }
            next.next()?;
            ready.next().map(Ok)
        }))
    }

    /// At least one of the events `n..count`, as many as are in a piece of the log.
    fn some(self: &Arc<Self>, n: u64, count: u64) -> Result<Vec<Event>> {
        let (files, tip) = self.files_and_tip()?;
        if n == tip.count {
            files.ended(n)?;
        }
        let mut scan = files.scan(usize::try_from(tip.end).map_or(PIECE, |end| end.min(PIECE)));
        let mut at = files.locate(&mut scan, n)?;
        let (end, mut events) = (at + PIECE as u64, Vec::new());
        for index in n..count {
            match scan.frame(index, at)? {
                Found::Frame(frame) if at < end => {
                    at += frame.size();
                    events.push(Event { index, time: frame.time, bytes: frame.payload().to_vec() });
                }
                _ if events.is_empty() => {
                    return Err(files.damaged(index, "its checksum does not hold"));
                }
                _ => break,
            }
        }
        Ok(events)
    }

    /// The first event committed at or after `time` (nanoseconds since the Unix epoch); the count
    /// when there is none.
    pub fn since(self: &Arc<Self>, time: u64) -> Result<u64> {
        let (files, tip) = self.files_and_tip()?;
        // Where the disk lost what the count covers there are no times.
        let (mut low, mut high) = (0, files.lost.unwrap_or(tip.count));
        drop(files);
        while low < high {
            let middle = low + (high - low) / 2;
            // A damaged event has no time; those behind it do.
            let mut at = middle;
            let found = loop {
                match self.meta(at) {
                    Err(Error::Damaged { .. }) if at + 1 < high => at += 1,
                    found => break found?,
                }
            };
            if found.2 < time {
                low = at + 1;
            } else {
                high = middle;
            }
        }
        Ok(low)
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
        let (files, tip) = self.files_and_tip()?;
        let left = usize::try_from(tip.view().saturating_sub(view)).unwrap_or(usize::MAX);
        if left == 0 && size > 0 {
            files.ended(tip.count)?;
        }
        let size = size.min(left);
        let mut out = Vec::with_capacity(size);
        if size == 0 {
            return Ok(out);
        }
        // Some more than asked for: the headers, guessed from the events' mean size.
        let headers = u128::from(tip.end) * size as u128 / u128::from(tip.view().max(1));
        let window = usize::try_from(headers).unwrap_or(size) + 4096;
        let mut scan = files.scan(window.min(2 * size + 4096));
        let (mut n, mut at) = self.seek(&files, &mut scan, &tip, view, *cursor)?;
        let mut skip = usize::try_from(view - view_offset(n, at)).unwrap_or(usize::MAX);
        while out.len() < size && n < tip.count {
            // Most are whole in the window, and in what is asked for: those are soon copied.
            let mut window = if skip == 0 { scan.fill(at, 0).unwrap_or_default() } else { &[] };
            while n < tip.count
                && let Found::Frame(frame) = frame::decode(n, window)
                && frame.line.len() <= size - out.len()
            {
                out.extend_from_slice(frame.line);
                *cursor = Cursor(n, at);
                window = &window[frame::HEADER + frame.line.len()..];
                n += 1;
                at += frame.size();
            }
            if out.len() == size || n == tip.count {
                break;
            }
            let line = match self.line(&files, &mut scan, n, at) {
                Ok(line) => line,
                Err(error) if out.is_empty() => return Err(error),
                Err(_) => break,
            };
            if skip >= line.len() {
                // The end of a stream that lost events is a guess.
                return Err(files.damaged(n, "it has no place in the log"));
            }
            *cursor = Cursor(n, at);
            let end = line.len().min(skip + size - out.len());
            out.extend_from_slice(&line[skip..end]);
            skip = 0;
            n += 1;
            at += (frame::HEADER + line.len()) as u64;
        }
        if out.is_empty() {
            return Err(files.damaged(n, "it has no place in the log"));
        }
        Ok(out)
    }

    /// The event in which `view` lies, and where that begins.
    fn seek(
        &self,
        files: &Files<D>,
        scan: &mut Scan<'_, D>,
        tip: &Tip,
        view: u64,
        Cursor(n, at): Cursor,
    ) -> Result<(u64, u64)> {
        // The event where the last read ended, or the one behind it.
        if let Some(into) = view.checked_sub(view_offset(n, at))
            && n < tip.count
            && let Ok(line) = self.line(files, scan, n, at)
        {
            match line.len() as u64 {
                len if into < len => return Ok((n, at)),
                len if into == len => return Ok((n + 1, at + frame::HEADER as u64 + len)),
                _ => {}
            }
        }
        // What is not there, or a hole, is taken to be behind.
        let hint = |n| Ok(files.entry(n)?).map(|at| if at == 0 { u64::MAX } else { at });
        let n = index::event_at(view, tip.count, hint)?;
        let at = files.entry(n)?;
        if let Some(into) = view.checked_sub(view_offset(n, at))
            && self.line(files, scan, n, at).is_ok_and(|line| into < line.len() as u64)
        {
            return Ok((n, at));
        }
        // Some entry on the way is a hole or damaged, or this event is.
        let n = index::event_at(view, tip.count, |n| files.locate(scan, n))?;
        Ok((n, files.locate(scan, n)?))
    }

    /// Event `n`, which begins at `at`, and its newline.
    fn line<'a>(
        &self,
        files: &Files<D>,
        scan: &'a mut Scan<'_, D>,
        n: u64,
        at: u64,
    ) -> Result<Line<'a>> {
        let big = scan.extent(at)? as u64 >= BIG;
        // Another event may have come in its place, and has another time.
        let head = scan.fill(at, frame::HEADER)?.first_chunk().copied().unwrap_or_default();
        if big
            && let Some((identity, index, known, line)) = &*lock(&self.shared.big)
            && (*identity, *index, *known) == (files.identity, n, head)
        {
            return Ok(Line::Big(line.clone()));
        }
        match scan.frame(n, at)? {
            Found::Frame(frame) if big => {
                let line: Arc<[u8]> = frame.line.into();
                *lock(&self.shared.big) = Some((files.identity, n, head, line.clone()));
                Ok(Line::Big(line))
            }
            Found::Frame(frame) => Ok(Line::Small(frame.line)),
            _ => Err(files.damaged(n, "its checksum does not hold")),
        }
    }
}

/// An event and its newline, checked.
enum Line<'a> {
    Small(&'a [u8]),
    Big(Arc<[u8]>),
}

impl std::ops::Deref for Line<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Line::Small(line) => line,
            Line::Big(line) => line,
        }
    }
}
