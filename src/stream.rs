//! One stream: open, append, read.
//!
//! A commit is one write to the log and one `fdatasync`; the index follows, its count last. All
//! of it happens under the stream's mutex and the flock(2) of its log, which is all that several
//! processes on one store share. Batches that arrive while one is being synced wait in a queue
//! and share the next sync. See [`crate::recover`] for what is done after a crash.
//!
//! Readers take no lock: they believe the count, and check every frame.

use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};

use crate::batch::{Shape, Tally};
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::frame::{self, Found, Frame};
use crate::index::{self, entry_at, view_offset};
use crate::recover::{Decision, Facts, Walk, decide};
use crate::spill::{Ceiling, PIECE, Spill, write_all};

/// At most this many streams have their files open, beside those in the middle of a request.
const OPEN: usize = 256;
/// Batches in memory share a sync up to this many bytes of log; a larger one goes alone.
const GROUP: u64 = 1 << 20;
/// So many entries are kept in memory until they are written to the index.
const ENTRIES: usize = 8192;
/// An event of this size is kept after it was checked, for it is likely read in pieces.
const BIG: u64 = 512 << 10;

/// Locks, also after a panic: what is guarded is only ever replaced as a whole.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What all streams of a store share.
pub(crate) struct Shared<D: Disk> {
    pub(crate) disk: Arc<D>,
    pub(crate) read_only: bool,
    pub(crate) log: Box<dyn Fn(&str) + Send + Sync>,
    ceiling: Arc<Ceiling>,
    /// Streams that take no appends, by the identity of their log: this outlives any cache.
    stopped: Mutex<HashMap<u64, &'static str>>,
    /// Those with open files; the next to close them is in front.
    open: Mutex<VecDeque<Arc<Stream<D>>>>,
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
            stopped: Mutex::default(),
            open: Mutex::default(),
            big: Mutex::default(),
        }
    }

    /// Takes in a stream that has just opened its files, and closes those of another one: the
    /// first that was not used since it was last looked at (the CLOCK algorithm).
    fn admit(&self, stream: Arc<Stream<D>>) {
        let mut open = lock(&self.open);
        open.push_back(stream);
        let mut spared = 0;
        while open.len() > OPEN && spared < 2 * OPEN {
            let Some(oldest) = open.pop_front() else {
                return;
            };
            // One that is being opened or closed right now is left to whoever does it.
            let idle = !oldest.used.swap(false, Relaxed);
            let files = oldest.files.try_lock().ok().filter(|_| idle);
            let closed = files.map(|mut files| *files = None).is_some();
            if !closed {
                open.push_back(oldest);
                spared += 1;
            }
        }
    }

    /// Lets go of all streams.
    pub(crate) fn close(&self) {
        lock(&self.open).clear();
    }
}

/// Identity of the log, index, line.
type Big = (u64, u64, Arc<[u8]>);

/// The open files of a stream, recovered.
struct Files<D: Disk> {
    log: D::File,
    index: D::File,
    identity: u64,
    /// Where nothing may be written: entries from this one on are in a file of our own.
    over: Option<(u64, D::File)>,
    /// The index has the count. Otherwise it is what recovery found, and does not change.
    counted: bool,
    /// The disk lost acknowledged events.
    lost: bool,
}

/// The end of a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tip {
    /// How many events there are.
    pub(crate) count: u64,
    /// Log offset behind the last one.
    pub(crate) end: u64,
    /// When the last one was committed, 0 when there is none.
    pub(crate) time: u64,
}

impl Tip {
    pub(crate) fn view(&self) -> u64 {
        view_offset(self.count, self.end)
    }
}

/// Where a reader was: event and log offset. A hint, checked when used.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cursor(pub(crate) u64, pub(crate) u64);

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

#[derive(Clone, Copy, Debug, Default)]
struct Room {
    log: u64,
    index: u64,
}

/// Called with the index of a batch's first event, or why there is none.
pub(crate) type Done = Box<dyn FnOnce(Result<u64>) + Send>;

struct Job<D: Disk> {
    batch: Batch<D>,
    guard: Option<u64>,
    done: Done,
}

struct Queue<D: Disk> {
    jobs: VecDeque<Job<D>>,
    /// A thread is committing, and will look here again. Without one the queue is empty.
    leading: bool,
}

/// A stream of a store: see [`Store::stream`](crate::store::Store::stream).
pub struct Stream<D: Disk> {
    shared: Arc<Shared<D>>,
    name: Mutex<PathBuf>,
    /// The identity of the log when it was last opened, 0 before.
    identity: Mutex<u64>,
    files: Mutex<Option<Arc<Files<D>>>>,
    used: AtomicBool,
    tip: Mutex<Tip>,
    queue: Mutex<Queue<D>>,
    /// Held while the log changes.
    writer: Mutex<()>,
    /// How long log and index were when last seen.
    room: Mutex<Room>,
    /// Log bytes and events of batches not yet committed.
    pending: Mutex<(u64, u64)>,
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
            queue: Mutex::new(Queue {
                jobs: VecDeque::new(),
                leading: false,
            }),
            writer: Mutex::default(),
            room: Mutex::default(),
            pending: Mutex::default(),
        })
    }

    pub(crate) fn name(&self) -> PathBuf {
        lock(&self.name).clone()
    }

    pub(crate) fn renamed(&self, name: &Path) {
        *lock(&self.name) = name.into();
    }

    pub(crate) fn identity(&self) -> u64 {
        *lock(&self.identity)
    }

    fn disk(&self) -> &D {
        &self.shared.disk
    }

    fn title(&self) -> String {
        self.name().to_string_lossy().into_owned()
    }

    fn os(&self, what: &str) -> impl FnOnce(std::io::Error) -> Error + use<D> {
        Error::os(format!("{}/{what}", self.title()))
    }

    fn damaged(&self, index: u64, what: &'static str) -> Error {
        Error::Damaged {
            stream: self.title(),
            index,
            what,
        }
    }

    // ---- files -------------------------------------------------------------------------------

    fn files(self: &Arc<Self>) -> Result<Arc<Files<D>>> {
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
        let mut open = lock(&self.shared.open);
        open.retain(|stream| !std::ptr::eq(&raw const **stream, self));
    }

    fn open(&self) -> Result<Files<D>> {
        let (disk, write) = (self.disk(), !self.shared.read_only);
        let name = self.name();
        let missing = |error: std::io::Error, what| match error.kind() {
            std::io::ErrorKind::NotFound => Error::NotFound,
            _ => self.os(what)(error),
        };
        let open = |what| match disk.open(&name.join(what), write) {
            // A stream that nobody wrote to, or whose index is to be rebuilt, in a store that is
            // not to be written to.
            Err(error) if !write && error.kind() == std::io::ErrorKind::NotFound => {
                disk.identity(&name).map_err(|error| missing(error, ""))?;
                disk.scratch().map_err(self.os(what))
            }
            result => result.map_err(|error| missing(error, what)),
        };
        let log = open("log")?;
        disk.lock(&log, !write).map_err(self.os("log"))?;
        // Whoever fails from here on drops the file, and with it the lock.
        let index = open("index")?;
        let identity = disk.stat(&log).map_err(self.os("log"))?.identity;
        let mut known = lock(&self.identity);
        if *known != 0 && *known != identity {
            // Another stream got our name while our files were closed.
            return Err(Error::NotFound);
        }
        let (files, tip) = self.recover(log, index, identity)?;
        if *known != identity {
            *lock(&self.tip) = Tip::default();
        }
        *known = identity;
        disk.unlock(&files.log).map_err(self.os("log"))?;
        let mut seen = lock(&self.tip);
        if tip.count >= seen.count {
            *seen = tip;
        }
        Ok(files)
    }

    /// Finds out in what state log and index are, under the lock, and mends what can be.
    fn recover(&self, log: D::File, index: D::File, identity: u64) -> Result<(Files<D>, Tip)> {
        let (disk, write) = (self.disk(), !self.shared.read_only);
        let len = disk.stat(&log).map_err(self.os("log"))?.len;
        let mut files = Files {
            log,
            index,
            identity,
            over: None,
            counted: true,
            lost: false,
        };
        let mut scan = self.scan(&files, PIECE);
        let indexed = self.header(&files)?;
        let mut walk = self.last_sound(&files, &mut scan, indexed.unwrap_or(0))?;
        let (from, start) = (walk.next, walk.at);
        let mut gap = false;
        // Log offset of the first event beyond the count.
        let mut beyond = start;
        loop {
            if indexed.is_some_and(|count| walk.next <= count) {
                beyond = walk.at;
            }
            let size = match scan.frame(walk.next, walk.at)? {
                Found::Frame(frame) if walk.step(&frame) => continue,
                Found::Bad if indexed.is_none() => scan.extent(walk.at)? as u64,
                _ => break,
            };
            let Found::Frame(behind) = scan.frame(walk.next + 1, walk.at + size)? else {
                break;
            };
            gap = true;
            walk.skip(size, &behind);
        }
        let facts = Facts {
            indexed,
            whole: walk.whole,
            gap,
            clean: self.zeros(&mut scan, walk.end, len)?,
            long: len > index::grown(walk.end),
        };
        drop(scan);
        let mut tip = Tip {
            count: walk.whole,
            end: walk.end,
            time: walk.whole_time,
        };
        match decide(facts) {
            Decision::Use { adopt, cut } if write => {
                if cut {
                    disk.set_len(&files.log, tip.end).map_err(self.os("log"))?;
                }
                if adopt {
                    self.rewrite(&files, beyond, tip.end)?;
                }
                if cut || adopt {
                    disk.sync_all(&files.log).map_err(self.os("log"))?;
                }
                if adopt {
                    if indexed.is_none() {
                        // Until all entries are there the index must not pass for ours.
                        disk.set_len(&files.index, 0).map_err(self.os("index"))?;
                    }
                    let fresh = indexed.unwrap_or(0) == 0 && tip.count > 0;
                    self.map(&files, from, start, tip.count)?;
                    self.publish(&files, fresh, tip.count)?;
                    let name = self.title();
                    if let Some(count) = indexed {
                        let adopted = tip.count - count;
                        (self.shared.log)(&format!(
                            "stream {name:?}: recovered {adopted} events that a crash left behind"
                        ));
                    } else if tip.count > 0 {
                        (self.shared.log)(&format!("stream {name:?}: rebuilt its index"));
                    }
                }
            }
            Decision::Use { .. } => {
                if Some(tip.count) != indexed {
                    let scratch = disk.scratch().map_err(self.os("index"))?;
                    files.over = Some((from, scratch));
                    files.counted = indexed.is_some();
                    self.map(&files, from, start, tip.count)?;
                }
            }
            Decision::Lost => {
                files.lost = true;
                files.counted = false;
                tip.count = indexed.map_or(walk.whole, |count| count.max(walk.whole));
                // Where the count covers what is not there, reading must come to it, and fail.
                let missing = frame::OVERHEAD * (tip.count - walk.whole);
                tip.end = (tip.end + missing).max(self.entry(&files, tip.count)?);
                if indexed.is_none() {
                    let scratch = disk.scratch().map_err(self.os("index"))?;
                    files.over = Some((0, scratch));
                    self.map(&files, 0, 0, tip.count)?;
                }
                let error = self.damaged(
                    walk.whole,
                    "acknowledged events are missing or damaged; the stream takes no appends",
                );
                (self.shared.log)(&error.to_string());
            }
        }
        Ok((files, tip))
    }

    /// The count, when the index is this log's.
    fn header(&self, files: &Files<D>) -> Result<Option<u64>> {
        let mut header = [0; 16];
        let read =
            read_full(self.disk(), &files.index, &mut header, 0).map_err(self.os("index"))?;
        let [count, identity] = [0, 8].map(|at| u64_at(&header, at));
        Ok((read == header.len() && identity == files.identity).then_some(count))
    }

    /// Whether the log is zero from `from` up to `to`.
    fn zeros(&self, scan: &mut Scan<'_, D>, from: u64, to: u64) -> Result<bool> {
        let mut at = from;
        while at < to {
            let bytes = scan.fill(at, 1)?;
            if bytes.is_empty() {
                break;
            }
            if bytes.iter().any(|&byte| byte != 0) {
                return Ok(false);
            }
            at += bytes.len() as u64;
        }
        Ok(true)
    }

    /// Writes a part of the log again in place.
    fn rewrite(&self, files: &Files<D>, from: u64, to: u64) -> Result<()> {
        let mut piece = vec![0; PIECE];
        let mut at = from;
        while at < to {
            let most = usize::try_from(to - at).map_or(PIECE, |left| left.min(PIECE));
            let read = read_full(self.disk(), &files.log, &mut piece[..most], at);
            match read.map_err(self.os("log"))? {
                0 => return Err(self.os("log")(std::io::ErrorKind::UnexpectedEof.into())),
                read => {
                    write_all(self.disk(), &files.log, &piece[..read], at)
                        .map_err(self.os("log"))?;
                    at += read as u64;
                }
            }
        }
        Ok(())
    }

    // ---- index entries -----------------------------------------------------------------------

    /// What the index says of where event `n` begins: a hint.
    fn entry(&self, files: &Files<D>, n: u64) -> Result<u64> {
        if n == 0 {
            return Ok(0);
        }
        let file = match &files.over {
            Some((from, over)) if n > *from => over,
            _ => &files.index,
        };
        let mut entry = [0; 8];
        // What is not there reads as zero, as a hole does, and no event but the first begins there.
        read_full(self.disk(), file, &mut entry, entry_at(n - 1)).map_err(self.os("index"))?;
        // Nor does one begin where no file can be.
        Ok(Some(u64::from_le_bytes(entry))
            .filter(|at| *at < 1 << 62)
            .unwrap_or(0))
    }

    /// Writes the ends of the events from `n` on.
    fn put_entries(&self, files: &Files<D>, n: u64, ends: &[u64]) -> Result<()> {
        let bytes: Vec<u8> = ends.iter().flat_map(|end| end.to_le_bytes()).collect();
        let file = files.over.as_ref().map_or(&files.index, |(_, over)| over);
        write_all(self.disk(), file, &bytes, entry_at(n)).map_err(self.os("index"))
    }

    /// Derives the entries of the events `n..to`, of which the first begins at `at`; says where
    /// event `to` begins.
    fn map(&self, files: &Files<D>, n: u64, at: u64, to: u64) -> Result<u64> {
        let mut scan = self.scan(files, PIECE);
        let (mut from, mut at, mut ends) = (n, at, Vec::new());
        for n in n..to {
            at = self.behind(files, &mut scan, n, at, to)?;
            ends.push(at);
            if ends.len() == ENTRIES || n + 1 == to {
                if !self.shared.read_only || files.over.is_some() {
                    self.put_entries(files, from, &ends)?;
                }
                from = n + 1;
                ends.clear();
            }
        }
        Ok(at)
    }

    /// Where the event ends that begins at `at`, also when it is damaged: then where its length
    /// and the index say so, or one of them and the next event is there.
    fn behind(
        &self,
        files: &Files<D>,
        scan: &mut Scan<'_, D>,
        n: u64,
        at: u64,
        count: u64,
    ) -> Result<u64> {
        if let Found::Frame(frame) = scan.frame(n, at)? {
            return Ok(at + frame.size());
        }
        let ends = [self.entry(files, n + 1)?, at + scan.extent(at)? as u64];
        for end in ends.into_iter().filter(|end| *end > at) {
            let valid = matches!(scan.frame(n + 1, end)?, Found::Frame(_));
            if valid || (n + 1 == count && ends[0] == ends[1]) {
                return Ok(end);
            }
        }
        Err(self.damaged(n, "it and its place in the log are damaged"))
    }

    /// Where event `n` begins, checked: the frame there is valid, or the one before ends there.
    /// The walk that could go on from there, or None when the index is wrong about it.
    fn sound(&self, files: &Files<D>, scan: &mut Scan<'_, D>, n: u64) -> Result<Option<Walk>> {
        if n == 0 {
            return Ok(Some(Walk::default()));
        }
        let at = self.entry(files, n)?;
        let before = self.entry(files, n - 1)?;
        if before < at
            && let Found::Frame(frame) = scan.frame(n - 1, before)?
            && before + frame.size() == at
        {
            return Ok(Some(Walk::new(n, at, Some(&frame))));
        }
        Ok(None)
    }

    /// The last of the events up to `n` whose place the index knows. Steps back further and
    /// further, so that a long hole is crossed soon.
    fn last_sound(&self, files: &Files<D>, scan: &mut Scan<'_, D>, n: u64) -> Result<Walk> {
        let mut back = 0;
        loop {
            if let Some(walk) = self.sound(files, scan, n.saturating_sub(back))? {
                return Ok(walk);
            }
            back = (2 * back).max(1);
        }
    }

    /// Where event `n` begins; `n` may be the count.
    fn locate(&self, files: &Files<D>, scan: &mut Scan<'_, D>, n: u64) -> Result<u64> {
        let at = self.entry(files, n)?;
        if n == 0 || (at > 0 && matches!(scan.frame(n, at)?, Found::Frame(_))) {
            return Ok(at);
        }
        let walk = self.last_sound(files, scan, n)?;
        if walk.next == n {
            return Ok(walk.at);
        }
        match self.map(files, walk.next, walk.at, n) {
            Err(Error::Damaged { .. }) => Err(self.damaged(
                n,
                "its place in the log is lost, for those before are damaged",
            )),
            result => result,
        }
    }

    // ---- reading -----------------------------------------------------------------------------

    fn scan<'a>(&'a self, files: &'a Files<D>, window: usize) -> Scan<'a, D> {
        Scan {
            disk: self.disk(),
            file: &files.log,
            stream: self,
            bytes: Vec::new(),
            start: 0,
            window,
        }
    }

    fn files_and_tip(self: &Arc<Self>) -> Result<(Arc<Files<D>>, Tip)> {
        let mut files = self.files()?;
        let named = self
            .disk()
            .stat(&files.index)
            .map_err(self.os("index"))?
            .named;
        // The index was deleted, or the stream. Where we may not make another, it is an old or
        // a private one until there is one.
        let stale = if self.shared.read_only {
            let index = self.name().join("index");
            !(files.lost || files.counted && named) && self.disk().identity(&index).is_ok()
        } else {
            files.counted && !named
        };
        if stale {
            self.close();
            files = self.files()?;
        }
        let tip = self.tip_of(&files)?;
        Ok((files, tip))
    }

    fn tip_of(&self, files: &Files<D>) -> Result<Tip> {
        let tip = *lock(&self.tip);
        if !files.counted {
            return Ok(tip);
        }
        let mut count = [0; 8];
        read_full(self.disk(), &files.index, &mut count, 0).map_err(self.os("index"))?;
        let count = u64::from_le_bytes(count);
        // Never less than was seen already: then the index was damaged meanwhile.
        if count <= tip.count {
            return Ok(tip);
        }
        let mut scan = self.scan(files, 0);
        let end = self.locate(files, &mut scan, count)?;
        let Some(walk) = self.sound(files, &mut scan, count)? else {
            return Err(self.damaged(count - 1, "the last event is damaged"));
        };
        let mut seen = lock(&self.tip);
        if count > seen.count {
            *seen = Tip {
                count,
                end,
                time: walk.time,
            };
        }
        Ok(*seen)
    }

    /// How much there is to see now.
    pub(crate) fn tip(self: &Arc<Self>) -> Result<Tip> {
        Ok(self.files_and_tip()?.1)
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
            n => Ok(view_offset(
                n,
                self.locate(&files, &mut self.scan(&files, 0), n)?,
            )),
        }
    }

    /// Looks at event `n`. NotFound when there is none.
    fn look<R>(self: &Arc<Self>, n: u64, look: impl FnOnce(u64, Frame<'_>) -> R) -> Result<R> {
        let (files, tip) = self.files_and_tip()?;
        if n >= tip.count {
            return Err(Error::NotFound);
        }
        let mut scan = self.scan(&files, 0);
        let at = self.locate(&files, &mut scan, n)?;
        match scan.frame(n, at)? {
            Found::Frame(frame) => Ok(look(at, frame)),
            _ => Err(self.damaged(n, "its checksum does not hold")),
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
    pub fn read(self: &Arc<Self>, n: u64) -> Result<impl Iterator<Item = Result<Event>> + use<D>> {
        let count = self.count()?;
        if n > count {
            return Err(Error::NotFound);
        }
        let stream = self.clone();
        let mut ready = Vec::new().into_iter();
        let mut next = n..count;
        Ok(std::iter::from_fn(move || {
            if ready.len() == 0 && next.start < count {
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
        let (files, _) = self.files_and_tip()?;
        let mut scan = self.scan(&files, PIECE);
        let mut at = self.locate(&files, &mut scan, n)?;
        let (end, mut events) = (at + PIECE as u64, Vec::new());
        for index in n..count {
            match scan.frame(index, at)? {
                Found::Frame(frame) if at < end => {
                    at += frame.size();
                    events.push(Event {
                        index,
                        time: frame.time,
                        bytes: frame.payload().to_vec(),
                    });
                }
                _ if events.is_empty() => {
                    return Err(self.damaged(index, "its checksum does not hold"));
                }
                _ => break,
            }
        }
        Ok(events)
    }

    /// The first event committed at or after `time` (nanoseconds since the Unix epoch); the count
    /// when there is none.
    pub fn since(self: &Arc<Self>, time: u64) -> Result<u64> {
        let (mut low, mut high) = (0, self.count()?);
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

    /// Up to `size` bytes of the view from `view` on; fewer only at the end or before damage.
    pub(crate) fn read_view(
        self: &Arc<Self>,
        view: u64,
        size: usize,
        cursor: &mut Cursor,
    ) -> Result<Vec<u8>> {
        let (files, tip) = self.files_and_tip()?;
        let left = usize::try_from(tip.view().saturating_sub(view)).unwrap_or(usize::MAX);
        let size = size.min(left);
        let mut out = Vec::with_capacity(size);
        if size == 0 {
            return Ok(out);
        }
        // Some more than asked for: the headers, guessed from the events' mean size.
        let headers = u128::from(tip.end) * size as u128 / u128::from(tip.view().max(1));
        let window = usize::try_from(headers).unwrap_or(size) + 4096;
        let mut scan = self.scan(&files, window.min(2 * size + 4096));
        let (mut n, mut at) = self.seek(&files, &mut scan, &tip, view, *cursor)?;
        let mut skip = usize::try_from(view - view_offset(n, at)).unwrap_or(usize::MAX);
        while out.len() < size && n < tip.count {
            let line = match self.line(&files, &mut scan, n, at) {
                Ok(line) => line,
                Err(error) if out.is_empty() => return Err(error),
                Err(_) => break,
            };
            *cursor = Cursor(n, at);
            let end = line.len().min(skip + size - out.len());
            out.extend_from_slice(&line[skip..end]);
            skip = 0;
            n += 1;
            at += (frame::HEADER + line.len()) as u64;
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
        let n = index::event_at(view, tip.count, |n| self.entry(files, n))?;
        let at = self.entry(files, n)?;
        if let Some(into) = view.checked_sub(view_offset(n, at))
            && self
                .line(files, scan, n, at)
                .is_ok_and(|line| into < line.len() as u64)
        {
            return Ok((n, at));
        }
        // Some entry on the way is a hole or damaged, or this event is.
        let n = index::event_at(view, tip.count, |n| self.locate(files, scan, n))?;
        Ok((n, self.locate(files, scan, n)?))
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
        if big
            && let Some((identity, index, line)) = &*lock(&self.shared.big)
            && (*identity, *index) == (files.identity, n)
        {
            return Ok(Line::Big(line.clone()));
        }
        match scan.frame(n, at)? {
            Found::Frame(frame) if big => {
                let line: Arc<[u8]> = frame.line.into();
                *lock(&self.shared.big) = Some((files.identity, n, line.clone()));
                Ok(Line::Big(line))
            }
            Found::Frame(frame) => Ok(Line::Small(frame.line)),
            _ => Err(self.damaged(n, "its checksum does not hold")),
        }
    }

    // ---- appending ---------------------------------------------------------------------------

    /// An empty batch, to be filled with [`Batch::push`] and committed with [`Stream::commit`].
    pub fn batch(self: &Arc<Self>, shape: Shape) -> Batch<D> {
        Batch {
            stream: self.clone(),
            shape,
            tally: Tally::default(),
            spill: Spill::new(self.shared.disk.clone(), self.shared.ceiling.clone()),
            reserved: (0, 0),
        }
    }

    /// Appends `events`, any bytes each, as one batch; returns the index of the first. With a
    /// `guard` only if that index is the guard, else [`Error::Exists`]. When it returns they are
    /// durable. No events: nothing happens.
    pub fn append<E: AsRef<[u8]>>(
        self: &Arc<Self>,
        events: impl IntoIterator<Item = E>,
        guard: Option<u64>,
    ) -> Result<u64> {
        let mut batch = self.batch(Shape::Sized);
        for event in events {
            let event = event.as_ref();
            let len = u32::try_from(event.len()).map_err(|_| Error::TooLong)?;
            batch.push(&[&len.to_le_bytes(), event].concat())?;
        }
        self.commit(batch, guard)
    }

    /// Commits a batch, like [`Stream::append`].
    pub fn commit(self: &Arc<Self>, batch: Batch<D>, guard: Option<u64>) -> Result<u64> {
        let (done, answer) = mpsc::channel();
        let done = Box::new(move |result| {
            // Whoever asked is waiting below.
            let _ = done.send(result);
        });
        if self.enqueue(batch, guard, done) {
            self.commit_group();
            if !self.idle() {
                // Those that came meanwhile must not keep this caller from going on.
                let stream = self.clone();
                std::thread::spawn(move || stream.lead());
            }
        }
        let lost = |_| self.os("log")(std::io::Error::other("the commit was given up"));
        answer.recv().map_err(lost)?
    }

    /// Commits a batch and calls `done`; here, or on the thread that is committing already. That
    /// one also commits what others bring meanwhile, so nobody has to wait in a thread.
    pub(crate) fn submit(self: &Arc<Self>, batch: Batch<D>, guard: Option<u64>, done: Done) {
        if self.enqueue(batch, guard, done) {
            self.lead();
        }
    }

    fn enqueue(&self, batch: Batch<D>, guard: Option<u64>, done: Done) -> bool {
        let mut queue = lock(&self.queue);
        queue.jobs.push_back(Job { batch, guard, done });
        !std::mem::replace(&mut queue.leading, true)
    }

    fn lead(self: &Arc<Self>) {
        while !self.idle() {
            self.commit_group();
        }
    }

    fn idle(&self) -> bool {
        let mut queue = lock(&self.queue);
        queue.leading = !queue.jobs.is_empty();
        !queue.leading
    }

    /// Commits the next batch and those behind it that fit, with one sync.
    fn commit_group(self: &Arc<Self>) {
        let mut group = Vec::new();
        let mut size = 0;
        let mut queue = lock(&self.queue);
        while let Some(job) = queue.jobs.front() {
            size += job.batch.tally.log_bytes();
            if size > GROUP && !group.is_empty() {
                break;
            }
            group.extend(queue.jobs.pop_front());
        }
        drop(queue);
        let commit = || {
            self.locked(|files, tip| {
                let (places, new) = self.place(tip, &group);
                self.write(files, tip, new, &group, &places)
                    .map(|()| places)
            })
        };
        let outcome = catch_unwind(AssertUnwindSafe(commit));
        let outcome = outcome.unwrap_or_else(|_| Err(self.unknown(&"a fault in smolstore")));
        for (i, job) in group.into_iter().enumerate() {
            let result = match &outcome {
                Ok(places) => places[i].clone().map(|place| place.first),
                // A guard that lost to what is durable is told so, whatever became of the others.
                Err(_) if job.guard.is_some_and(|guard| guard < lock(&self.tip).count) => {
                    Err(Error::Exists)
                }
                Err(error) => Err(error.clone()),
            };
            drop(job.batch);
            (job.done)(result);
        }
    }

    /// The place of each batch, or why it gets none; and the tip behind all but for its end.
    fn place(&self, tip: Tip, group: &[Job<D>]) -> (Vec<Result<Place>>, Tip) {
        let mut new = tip;
        let places = group.iter().map(|job| {
            if job.guard.is_some_and(|guard| guard != new.count) {
                return Err(Error::Exists);
            }
            let first = new.count;
            let events = job.batch.tally.all_events();
            if events > 0 {
                new.count += events;
                new.time = self.disk().now().max(new.time + 1);
            }
            let (last, time) = (new.count, new.time);
            Ok(Place { first, last, time })
        });
        (places.collect(), new)
    }

    /// Steps 2 to 5 of a commit: log, sync, index, count.
    fn write(
        &self,
        files: &Files<D>,
        tip: Tip,
        new: Tip,
        group: &[Job<D>],
        places: &[Result<Place>],
    ) -> Result<()> {
        if new.count == tip.count {
            return Ok(());
        }
        let disk = self.disk();
        let placed = || {
            group
                .iter()
                .zip(places)
                .filter_map(|(job, place)| place.as_ref().ok().map(|place| (&job.batch, place)))
        };
        let bytes: u64 = placed().map(|(batch, _)| batch.tally.log_bytes()).sum();
        self.grow_index(files, new.count)?;
        // Where there is no room for the step ahead there may be for the batch.
        let _ = self.grow_log(files, tip.end + bytes);
        let mut writer = Writer {
            stream: self,
            files,
            out: Vec::new(),
            at: tip.end,
            ends: Vec::new(),
        };
        let keep = new.count - tip.count <= ENTRIES as u64;
        let mut frames = || {
            for (batch, place) in placed() {
                writer.batch(batch, place, keep)?;
            }
            writer.flush()
        };
        if let Err(error) = frames() {
            // Cut it off before anything else is written there, and make that durable.
            let cut = self.cut(files, tip.end);
            if cut.and_then(|()| disk.sync_all(&files.log)).is_err() {
                self.stop(files, "a batch that failed could not be cut off again");
            }
            return Err(error);
        }
        if disk.sync_data(&files.log).is_err() {
            // What became of the pages is not known, and trying again may lie.
            let _ = self.cut(files, tip.end);
            return Err(self.stop(files, "its log failed to sync"));
        }
        let Writer { at: end, ends, .. } = writer;
        let index = || -> Result<()> {
            if keep {
                self.put_entries(files, tip.count, &ends)?;
            } else {
                self.map(files, tip.count, tip.end, new.count)?;
            }
            self.publish(files, tip.count == 0, new.count)?;
            disk.stat(&files.log).map_err(self.os("log")).map(drop)
        };
        index().map_err(|error| self.unknown(&error))?;
        *lock(&self.tip) = Tip { end, ..new };
        Ok(())
    }

    fn cut(&self, files: &Files<D>, end: u64) -> std::io::Result<()> {
        lock(&self.room).log = end;
        self.disk().set_len(&files.log, end)
    }

    /// Makes the count visible; before the first one, makes the stream's names durable.
    fn publish(&self, files: &Files<D>, fresh: bool, count: u64) -> Result<()> {
        if fresh {
            let sync = |path: &Path| self.disk().sync_dir(path);
            sync(&self.name())
                .and_then(|()| sync(Path::new("")))
                .map_err(self.os(""))?;
        }
        let mut header = [0; 16];
        header[..8].copy_from_slice(&count.to_le_bytes());
        header[8..].copy_from_slice(&files.identity.to_le_bytes());
        write_all(self.disk(), &files.index, &header, 0).map_err(self.os("index"))
    }

    fn unknown(&self, error: &dyn std::fmt::Display) -> Error {
        Error::Unknown {
            stream: self.title(),
            why: error.to_string(),
        }
    }

    /// Takes no more appends until the next mount has recovered the stream.
    fn stop(&self, files: &Files<D>, why: &'static str) -> Error {
        lock(&self.shared.stopped).insert(files.identity, why);
        let error = Error::Stopped {
            stream: self.title(),
            why,
        };
        (self.shared.log)(&error.to_string());
        error
    }

    /// Runs `remove` under the locks of the stream, unless it holds events.
    pub(crate) fn empty(self: &Arc<Self>, remove: impl FnOnce() -> Result<()>) -> Result<()> {
        self.locked(|_, tip| match tip.count {
            0 => remove(),
            _ => Err(Error::NotEmpty),
        })
    }

    /// Runs `change` on the stream as it is, under its locks.
    fn locked<R>(self: &Arc<Self>, change: impl FnOnce(&Files<D>, Tip) -> Result<R>) -> Result<R> {
        if self.shared.read_only {
            return Err(Error::ReadOnly);
        }
        let disk = self.disk();
        let _writer = lock(&self.writer);
        // Each turn finds what another process left; nobody can do that forever.
        for _ in 0..16 {
            let files = self.files()?;
            let stopped = lock(&self.shared.stopped).get(&files.identity).copied();
            let lost = files.lost.then_some("the disk lost acknowledged events");
            if let Some(why) = stopped.or(lost) {
                return Err(Error::Stopped {
                    stream: self.title(),
                    why,
                });
            }
            disk.lock(&files.log, false).map_err(self.os("log"))?;
            let held = Held {
                disk,
                file: Some(&files.log),
            };
            let log = disk.stat(&files.log).map_err(self.os("log"))?;
            let index = disk.stat(&files.index).map_err(self.os("index"))?;
            let mut ready = log.named && index.named;
            if ready {
                let tip = self.tip_of(&files)?;
                let mut next = [0; frame::HEADER];
                read_full(disk, &files.log, &mut next, tip.end).map_err(self.os("log"))?;
                // Another one crashed in the middle of a commit, or the log was cut short.
                ready = next == [0; frame::HEADER] && log.len >= tip.end;
                if ready {
                    *lock(&self.room) = Room {
                        log: log.len,
                        index: index.len,
                    };
                    let result = change(&files, tip);
                    let released = held.release();
                    return match released {
                        Err(error) if result.is_ok() => Err(self.unknown(&self.os("log")(error))),
                        _ => result,
                    };
                }
            }
            drop(held);
            if !log.named {
                // Removed; another stream may have its name by now, and then it is that.
                *lock(&self.identity) = 0;
            }
            drop(files);
            self.close();
        }
        Err(self.os("log")(std::io::Error::other(
            "it does not stay recovered",
        )))
    }

    fn grow_log(&self, files: &Files<D>, needed: u64) -> Result<()> {
        let len = lock(&self.room).log;
        lock(&self.room).log = self.grow(&files.log, "log", len, needed)?;
        Ok(())
    }

    fn grow_index(&self, files: &Files<D>, count: u64) -> Result<()> {
        let len = lock(&self.room).index;
        lock(&self.room).index = self.grow(&files.index, "index", len, entry_at(count))?;
        Ok(())
    }

    /// Makes a file of length `len` as long as needed; says how long it is now.
    fn grow(&self, file: &D::File, what: &str, len: u64, needed: u64) -> Result<u64> {
        if needed <= len {
            return Ok(len);
        }
        let result = self.disk().reserve(file, len, index::grown(needed));
        if let Err(error) = result {
            // The step ahead may have been too much, what is needed not.
            let got = self.disk().stat(file).map_err(self.os(what))?.len;
            if got >= needed {
                return Ok(got);
            }
            // Give back what was taken: others may need it.
            let _ = self.disk().set_len(file, len);
            return Err(self.os(what)(error));
        }
        Ok(index::grown(needed))
    }

    /// Takes up room for `bytes` more of log and `events` more of index, so that it is the write
    /// that meets a full disk, not the commit.
    fn reserve(self: &Arc<Self>, bytes: u64, events: u64) -> Result<()> {
        let (bytes, events) = {
            let mut pending = lock(&self.pending);
            pending.0 += bytes;
            pending.1 += events;
            *pending
        };
        let (tip, room) = (*lock(&self.tip), *lock(&self.room));
        if room.log >= tip.end + bytes && room.index >= entry_at(tip.count + events) {
            return Ok(());
        }
        self.locked(|files, tip| {
            self.grow_index(files, tip.count + events)?;
            self.grow_log(files, tip.end + bytes)
        })
    }

    /// A batch is committed or given up. What was reserved for a large one goes back.
    fn release(self: &Arc<Self>, bytes: u64, events: u64) {
        let left = {
            let mut pending = lock(&self.pending);
            pending.0 -= bytes;
            pending.1 -= events;
            *pending
        };
        if bytes < index::MAX_STEP {
            return;
        }
        // When it does not work the space is given back at the next mount.
        let _ = self.locked(|files, tip| {
            let keep = index::grown(tip.end + left.0);
            if lock(&self.room).log > keep {
                self.cut(files, keep).map_err(self.os("log"))?;
            }
            let keep = index::grown(entry_at(tip.count + left.1));
            let room = &mut lock(&self.room).index;
            if *room > keep {
                *room = keep;
                let cut = self.disk().set_len(&files.index, keep);
                cut.map_err(self.os("index"))?;
            }
            Ok(())
        });
    }
}

/// Where a batch goes: its events are `first..last`.
#[derive(Clone, Copy)]
struct Place {
    first: u64,
    last: u64,
    time: u64,
}

/// Writes frames to the log.
struct Writer<'a, D: Disk> {
    stream: &'a Stream<D>,
    files: &'a Files<D>,
    out: Vec<u8>,
    /// Where `out` goes.
    at: u64,
    /// Where the events end, when they are few.
    ends: Vec<u64>,
}

impl<D: Disk> Writer<'_, D> {
    fn batch(&mut self, batch: &Batch<D>, place: &Place, keep: bool) -> Result<()> {
        let mut n = place.first;
        batch.spill.events(batch.shape, |event| {
            let (first, last) = (n == place.first, n + 1 == place.last);
            frame::encode(&mut self.out, n, place.time, first, last, event);
            n += 1;
            if keep {
                self.ends.push(self.at + self.out.len() as u64);
            }
            if self.out.len() as u64 >= GROUP {
                self.flush()?;
            }
            Ok(())
        })
    }

    fn flush(&mut self) -> Result<()> {
        let (disk, log) = (self.stream.disk(), &self.files.log);
        write_all(disk, log, &self.out, self.at).map_err(self.stream.os("log"))?;
        self.at += self.out.len() as u64;
        self.out.clear();
        Ok(())
    }
}

/// Gives the lock back when it is dropped, also by a panic.
struct Held<'a, D: Disk> {
    disk: &'a D,
    file: Option<&'a D::File>,
}

impl<D: Disk> Held<'_, D> {
    fn release(mut self) -> std::io::Result<()> {
        self.file
            .take()
            .map_or(Ok(()), |file| self.disk.unlock(file))
    }
}

impl<D: Disk> Drop for Held<'_, D> {
    fn drop(&mut self) {
        if let Some(file) = self.file {
            // The stream is opened again, which drops the lock in any case.
            let _ = self.disk.unlock(file);
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

/// Events gathered for one commit. Dropped without one, it leaves nothing.
pub struct Batch<D: Disk> {
    stream: Arc<Stream<D>>,
    shape: Shape,
    tally: Tally,
    spill: Spill<D>,
    reserved: (u64, u64),
}

impl<D: Disk> Batch<D> {
    /// Adds bytes. After an error the batch cannot be committed, only dropped.
    pub fn push(&mut self, bytes: &[u8]) -> Result<()> {
        let mut tally = self.tally;
        tally.push(self.shape, bytes).map_err(|_| Error::TooLong)?;
        let needed = (tally.log_bytes(), tally.all_events());
        let more = (needed.0 - self.reserved.0, needed.1 - self.reserved.1);
        self.reserved = needed;
        self.stream.reserve(more.0, more.1)?;
        self.spill.push(bytes)?;
        self.tally = tally;
        Ok(())
    }

    pub(crate) fn tally(&self) -> Tally {
        self.tally
    }

    /// Takes away what is behind the last complete event.
    pub(crate) fn split_torn(&mut self) -> Result<Batch<D>> {
        let mut torn = self.stream.batch(self.shape);
        torn.spill = self.spill.split_off(self.tally.complete)?;
        torn.tally.len = self.tally.torn();
        self.tally.len = self.tally.complete;
        let kept = (self.tally.log_bytes(), self.tally.all_events());
        torn.reserved = (self.reserved.0 - kept.0, self.reserved.1 - kept.1);
        self.reserved = kept;
        Ok(torn)
    }
}

impl<D: Disk> Drop for Batch<D> {
    fn drop(&mut self) {
        self.stream.release(self.reserved.0, self.reserved.1);
    }
}

/// Reads a log forward, frame by frame, through a window.
struct Scan<'a, D: Disk> {
    disk: &'a D,
    file: &'a D::File,
    stream: &'a Stream<D>,
    bytes: Vec<u8>,
    start: u64,
    window: usize,
}

impl<D: Disk> Scan<'_, D> {
    /// The bytes from `at` on, at least `need` of them unless the file ends before.
    fn fill(&mut self, at: u64, need: usize) -> Result<&[u8]> {
        let skip = usize::try_from(at.wrapping_sub(self.start)).unwrap_or(usize::MAX);
        if skip
            .checked_add(need)
            .is_none_or(|end| end > self.bytes.len())
        {
            self.start = at;
            self.bytes.resize(need.max(self.window).max(4096), 0);
            let mut read = read_full(self.disk, self.file, &mut self.bytes, at);
            if read.is_err() {
                // One bad sector must not hide its neighbours.
                self.bytes.truncate(need);
                read = read_full(self.disk, self.file, &mut self.bytes, at);
            }
            let read = read.inspect_err(|_| self.bytes.clear());
            self.bytes.truncate(read.map_err(self.stream.os("log"))?);
            return Ok(&self.bytes);
        }
        Ok(&self.bytes[skip..])
    }

    /// The bytes that the frame at `at` takes, as far as its header tells.
    fn extent(&mut self, at: u64) -> Result<usize> {
        Ok(frame::extent(self.fill(at, frame::HEADER)?))
    }

    fn frame(&mut self, n: u64, at: u64) -> Result<Found<'_>> {
        let need = self.extent(at)?;
        Ok(frame::decode(n, self.fill(at, need)?))
    }
}

/// Fills `bytes` from `at` on, unless the file ends before.
fn read_full<D: Disk>(
    disk: &D,
    file: &D::File,
    bytes: &mut [u8],
    at: u64,
) -> std::io::Result<usize> {
    let (mut read, mut again) = (0, 3);
    while read < bytes.len() {
        match disk.read_at(file, &mut bytes[read..], at + read as u64)? {
            // A distributed file system may answer short of what it says the length is.
            0 if again > 0 && disk.stat(file)?.len > at + read as u64 => again -= 1,
            0 => break,
            more => read += more,
        }
    }
    Ok(read)
}

fn u64_at(bytes: &[u8; 16], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}
