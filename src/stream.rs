//! One stream: its open files, its end, and reading. [`crate::commit`] appends.
//!
//! Streams take no lock: they believe `last`, and check every block.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use crate::batch::{Shape, Tally};
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::log::{FLEETING, Files, GONE};
use crate::page;
use crate::spill::{Ceiling, Spill};
use crate::status::Status;
use crate::sys::{lock, try_lock};
use crate::walk::Tip;

/// At most this many streams have their files open, beside those in the middle of a request, those that
/// somebody waits for and those used since the last turn; fewer where there are not so many descriptors.
const OPEN: usize = 800;

/// What all streams of a store share.
pub(crate) struct Shared<D: Disk> {
    pub(crate) disk: Arc<D>,
    pub(crate) read_only: bool,
    pub(crate) log: Box<dyn Fn(&str) + Send + Sync>,
    pub(crate) ceiling: Arc<Ceiling>,
    pub(crate) status: Status,
    /// How many threads are committing for others.
    pub(crate) leading: AtomicUsize,
    /// Those used lately, which may have open files; the next to close them is in front. None when all were
    /// let go of.
    open: Mutex<Option<VecDeque<Arc<Stream<D>>>>>,
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
            open: Mutex::new(Some(VecDeque::new())),
        }
    }

    /// Takes in a stream that has just opened its files.
    fn admit(&self, stream: Arc<Stream<D>>) {
        if let Some(open) = &mut *lock(&self.open)
            && !open.iter().any(|other| Arc::ptr_eq(other, &stream))
        {
            open.push_back(stream);
        }
        self.close_idle(OPEN, false);
    }

    /// Lets go of streams that were not used since they were last looked at here (the CLOCK algorithm),
    /// until there are no more than `most`; `all`: also where somebody waits. False when no files were
    /// closed.
    fn close_idle(&self, most: usize, all: bool) -> bool {
        // Without the lock: that may take its time.
        let mut closed = Vec::new();
        let mut open = lock(&self.open);
        let Some(open) = &mut *open else {
            return false;
        };
        for _ in 0..open.len() {
            if open.len() <= most {
                break;
            }
            let Some(oldest) = open.pop_front() else {
                break;
            };
            match oldest.take_unused(all) {
                Some(files) => closed.extend(files),
                None => open.push_back(oldest),
            }
        }
        !closed.is_empty()
    }

    /// Closes the files of streams that were not used since the last time and that nobody waits for. Of the
    /// streams it is still known what they were.
    pub(crate) fn rest(&self) {
        let mut closed = Vec::new();
        for stream in lock(&self.open).iter().flatten() {
            closed.extend(stream.take_unused(false).flatten());
        }
    }

    /// Lets go of all streams: each of them holds this.
    pub(crate) fn close(&self) {
        *lock(&self.open) = None;
    }
}

/// What a glance at a stream shows.
pub(crate) enum Glance {
    /// There is more than was seen, or an error; to see it somebody may have to be waited for.
    More,
    Nothing,
    /// It was removed.
    Gone,
    /// Somebody is opening its files: the next time.
    Busy,
}

/// Where a reader was. A hint, checked when used.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cursor(pub(crate) u64);

/// An event as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Its place in the stream, from 0.
    pub index: u64,
    /// When it was committed: nanoseconds since the Unix epoch. Strictly greater from commit to
    /// commit, the same within one.
    pub time: u64,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// What is known to be durable, and in which log: its identity when it was last opened, 0 before.
#[derive(Clone, Copy, Default)]
struct Known {
    identity: u64,
    tip: Tip,
}

/// A stream of a store: see [`Store::stream`](crate::store::Store::stream).
pub struct Stream<D: Disk> {
    pub(crate) shared: Arc<Shared<D>>,
    pub(crate) name: Mutex<PathBuf>,
    /// None: the next to use it opens it by name, and recovers it.
    files: Mutex<Option<Arc<Files<D>>>>,
    used: AtomicBool,
    /// So many wait for more of it.
    pub(crate) waiting: AtomicUsize,
    known: Mutex<Known>,
    /// Held while the log changes.
    pub(crate) writer: Mutex<()>,
    /// Log bytes of batches not yet committed, at most.
    pub(crate) pending: AtomicU64,
    pub(crate) queue: Mutex<Queue<D>>,
    /// How long the log was when last seen.
    pub(crate) room: AtomicU64,
    /// It was said that the clock is behind.
    pub(crate) late: AtomicBool,
}

/// Called with the index of a batch's first event, or why there is none.
pub type Done = Box<dyn FnOnce(Result<u64>) + Send>;

pub(crate) struct Job<D: Disk> {
    pub(crate) batch: Batch<D>,
    pub(crate) guard: Option<u64>,
    pub(crate) begun: Instant,
    pub(crate) done: Done,
}

/// Batches that wait for a commit.
pub(crate) struct Queue<D: Disk> {
    pub(crate) jobs: VecDeque<Job<D>>,
    /// A thread is committing, and will look here again. Without one the queue is empty.
    pub(crate) leading: bool,
}

/// Events gathered for one commit. Dropped without one, it leaves nothing.
pub struct Batch<D: Disk> {
    pub(crate) stream: Arc<Stream<D>>,
    /// At least one; what is written goes to the last.
    pub(crate) parts: Vec<Part<D>>,
    /// Bytes written.
    pub(crate) len: u64,
    /// Bytes of log.
    pub(crate) reserved: u64,
}

/// Bytes of a batch that divide into events in one way.
pub(crate) struct Part<D: Disk> {
    pub(crate) shape: Shape,
    pub(crate) tally: Tally,
    pub(crate) spill: Spill<D>,
}

impl<D: Disk> Stream<D> {
    pub(crate) fn new(shared: Arc<Shared<D>>, name: PathBuf) -> Arc<Stream<D>> {
        Arc::new(Stream {
            shared,
            name: Mutex::new(name),
            files: Mutex::new(None),
            used: AtomicBool::new(false),
            waiting: AtomicUsize::new(0),
            known: Mutex::default(),
            writer: Mutex::default(),
            pending: AtomicU64::new(0),
            queue: Mutex::new(Queue { jobs: VecDeque::new(), leading: false }),
            room: AtomicU64::new(0),
            late: AtomicBool::new(false),
        })
    }

    pub(crate) fn name(&self) -> PathBuf {
        lock(&self.name).clone()
    }

    pub(crate) fn identity(&self) -> u64 {
        lock(&self.known).identity
    }

    /// What is known to be durable.
    pub(crate) fn known(&self) -> Tip {
        lock(&self.known).tip
    }

    /// So much is durable in the log of `files`. What is known never goes back.
    pub(crate) fn advance(&self, files: &Files<D>, new: Tip) {
        let mut known = lock(&self.known);
        if known.identity == files.identity && new.count >= known.tip.count {
            known.tip = new;
        }
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

    // ---- files and the end -------------------------------------------------------------------

    pub(crate) fn files(self: &Arc<Self>) -> Result<Arc<Files<D>>> {
        let mut slot = lock(&self.files);
        self.used.store(true, Relaxed);
        if let Some(files) = &*slot {
            return Ok(files.clone());
        }
        let files = Arc::new(self.spared(|| self.open())?);
        *slot = Some(files.clone());
        self.shared.admit(self.clone());
        Ok(files)
    }

    /// Runs what takes descriptors: before there are none, idle streams give up theirs.
    pub(crate) fn spared<R>(&self, run: impl Fn() -> Result<R>) -> Result<R> {
        let mut tries = 0;
        loop {
            match run() {
                // What another thread has made them give up may be free only now.
                Err(Error::Os { errno: libc::EMFILE | libc::ENFILE, .. })
                    if self.shared.close_idle(0, true) || tries < 8 =>
                {
                    tries += 1;
                    std::thread::yield_now();
                }
                result => return result,
            }
        }
    }

    /// Takes the files, if there are any, of one that was not used since the last time; `all`: also where
    /// somebody waits. None of one that was, or is being used, opened or closed right now.
    fn take_unused(&self, all: bool) -> Option<Option<Arc<Files<D>>>> {
        let waited = !all && self.waiting.load(Relaxed) > 0;
        let idle = !self.used.swap(false, Relaxed) && !waited;
        let mut files = try_lock(&self.files).filter(|_| idle)?;
        // In the middle of a request they stay open in any case, and others would open them again.
        let unused = files.as_ref().is_none_or(|files| Arc::strong_count(files) == 1);
        unused.then(|| files.take())
    }

    /// Closes the files: the next to need them opens them again, by name, and recovers.
    pub(crate) fn close(&self) {
        self.close_if(|_| true);
    }

    /// The same, unless others are open by now.
    pub(crate) fn give_up(&self, files: &Files<D>) {
        self.close_if(|now| std::ptr::eq(now, files));
    }

    fn close_if(&self, these: impl Fn(&Files<D>) -> bool) {
        let mut files = lock(&self.files);
        if files.as_ref().is_some_and(|files| these(files)) {
            if let Some(open) = &mut *lock(&self.shared.open) {
                open.retain(|stream| !std::ptr::eq(&raw const **stream, self));
            }
            *files = None;
        }
    }

    /// Opens the files and recovers the stream.
    fn open(&self) -> Result<Files<D>> {
        for _ in 0..8 {
            let (disk, write) = (&self.shared.disk, !self.shared.read_only);
            let mut files = Files::open(disk, &self.name(), write)?;
            let known = {
                let mut known = lock(&self.known);
                if known.identity != files.identity {
                    // There idle files are closed, and another host may have given the name to another one.
                    if self.disk().direct() && ![known.identity, files.identity].contains(&0) {
                        return Err(Error::NotFound);
                    }
                    // Another stream has the name, or the first one.
                    *known = Known { identity: files.identity, tip: Tip::default() };
                }
                known.tip
            };
            let pending = self.pending.load(Relaxed);
            if let Some(tip) = files.recover(known, pending, &self.shared.log)? {
                self.advance(&files, tip);
                return Ok(files);
            }
        }
        Err(self.os("log")(std::io::Error::other(FLEETING)))
    }

    /// The files, and how much there is to see now.
    pub(crate) fn look(self: &Arc<Self>) -> Result<(Arc<Files<D>>, Tip)> {
        self.opened(|files| Ok(self.seen(files)?.map(|tip| (files.clone(), tip))))
    }

    /// The same for who asks what is at the end, and may try again what is not there: nobody has left a
    /// commit behind it.
    pub(crate) fn look_at_end(self: &Arc<Self>) -> Result<(Arc<Files<D>>, Tip)> {
        self.opened(|files| match self.seen(files)? {
            Some(tip) if !self.orphaned(files, &tip)? => Ok(Some((files.clone(), tip))),
            _ => Ok(None),
        })
    }

    /// What `run` comes to with the files; None: they are to be opened again.
    pub(crate) fn opened<R>(
        self: &Arc<Self>,
        mut run: impl FnMut(&Arc<Files<D>>) -> Result<Option<R>>,
    ) -> Result<R> {
        let mut failed = false;
        // Each turn finds what another process left; nobody can do that forever.
        for _ in 0..16 {
            let files = self.files()?;
            let result = run(&files);
            if !matches!(result, Ok(Some(_))) {
                self.give_up(&files);
            }
            match result {
                Ok(Some(result)) => return Ok(result),
                // Files that fail may be dead, and STORE be mounted anew.
                Err(error) if failed => return Err(error),
                again => failed |= again.is_err(),
            }
        }
        Err(self.os("log")(std::io::Error::other(FLEETING)))
    }

    /// Whether a commit stands behind the end that nobody is at work on any more: what became of it must
    /// be certain before who does not find it tries it again.
    fn orphaned(&self, files: &Files<D>, tip: &Tip) -> Result<bool> {
        if files.log.is_none() || files.intact.is_some() {
            return Ok(false);
        }
        // What cannot be read there is for who reads there; and what has another name by now for others.
        let behind = files.behind(tip).unwrap_or(0);
        if !files.is_new(behind, tip).unwrap_or(false) || !files.matched()? {
            return Ok(false);
        }
        if behind == GONE {
            return Ok(true);
        }
        // Another descriptor than that by which a thread of ours may have the lock.
        let open = || self.disk().open(&files.name.join("log"), false).map_err(self.os("log"));
        let left = files.is_left(&self.spared(open)?, tip)?;
        // Who is at work may be finding out: then these are not the files any more.
        Ok(left
            || lock(&self.files).as_ref().is_none_or(|now| !std::ptr::eq(&raw const **now, files)))
    }

    /// How much there is to see now; None where the stream is to be opened again.
    pub(crate) fn seen(&self, files: &Files<D>) -> Result<Option<Tip>> {
        let Known { identity, tip: known } = *lock(&self.known);
        if files.identity != identity {
            return Ok(None);
        }
        // No less than was seen already, though some of it is lost.
        let more = files.intact.as_ref().filter(|(intact, _)| intact.count > known.count);
        let tip = more.map_or(known, |(intact, _)| *intact);
        if files.index.is_none() {
            // Nobody commits without one, which may have come and gone since.
            let there = self.disk().identity(&files.name.join("index")).is_ok();
            let more = || files.is_new(files.behind(&tip)?, &tip);
            let more = files.intact.is_none() && more().unwrap_or(false);
            return Ok((!there && !more).then_some(tip));
        }
        if !files.has_index()? {
            return Ok(None);
        }
        let index @ (last, seed) = files.index_head()?;
        let ours = last == 0 || seed == files.seed();
        if index == *lock(&files.seen) || (last == tip.at && ours && files.intact.is_none()) {
            return Ok(Some(tip));
        }
        if files.intact.is_some() || seed != files.seed() {
            return Ok(None);
        }
        let mut scan = files.scan_to(0, last + page::PAGE);
        let block = scan.sound(seed, last);
        let Some(new) = block.map(|block| Tip::from(&block)).filter(|new| new.whole) else {
            return Ok(None);
        };
        self.advance(files, new);
        *lock(&files.seen) = index;
        Ok(Some(self.known()))
    }

    /// How much there is to see now.
    pub(crate) fn tip(self: &Arc<Self>) -> Result<Tip> {
        Ok(self.look()?.1)
    }

    /// An error where the end is not known. Where that may come right the next to ask tries again.
    pub(crate) fn ended(&self, files: &Files<D>) -> Result<()> {
        let Some((_, error)) = &files.intact else {
            return Ok(());
        };
        if files.unmended.is_some() {
            self.close();
        }
        Err(error.clone())
    }

    /// That there is no event `n`; or why nobody knows.
    pub(crate) fn absent(&self, files: &Files<D>, n: u64) -> Error {
        match self.ended(files).err() {
            Some(Error::Damaged { stream, what, .. }) => Error::Damaged { stream, index: n, what },
            error => error.unwrap_or(Error::NotFound),
        }
    }

    /// Whoever has seen less than this of the view has something to see: more, or an error.
    pub(crate) fn news(self: &Arc<Self>) -> Result<u64> {
        let (files, tip) = self.look_at_end()?;
        Ok(self.ended(&files).map_or(u64::MAX, |()| tip.view))
    }

    /// Whether there is nothing new, as far as one read tells.
    fn quiet(&self, files: &Files<D>, seen: u64) -> bool {
        let tip = self.known();
        files.index.is_some()
            && files.intact.is_none()
            && tip.view <= seen
            && files.index_head().is_ok_and(|head| head == (tip.at, files.seed()))
    }

    /// Whether there is more than up to the view offset `seen`, for who must not wait for anybody: it
    /// opens nothing, for that may take the log's lock. `names`: and whether it still has its files, which
    /// is asked seldom: to find the index gone while a stream is being removed makes it anew.
    pub(crate) fn glance(&self, seen: u64, names: bool) -> Glance {
        let files = match try_lock(&self.files).as_deref() {
            None => return Glance::Busy,
            Some(None) => return Glance::More,
            Some(Some(files)) => files.clone(),
        };
        if !names && self.quiet(&files, seen) {
            return Glance::Nothing;
        }
        // An error is no sign that it is gone: it is for those to see who wait.
        let named = match &files.log {
            Some(log) => self.disk().stat(log).map_or(true, |stat| stat.named),
            None => {
                let there = self.disk().identity(&files.name);
                there.err().is_none_or(|error| error.kind() != std::io::ErrorKind::NotFound)
            }
        };
        match self.seen(&files) {
            _ if !named => Glance::Gone,
            Ok(Some(tip)) if tip.view <= seen && files.intact.is_none() => Glance::Nothing,
            _ => Glance::More,
        }
    }
}
