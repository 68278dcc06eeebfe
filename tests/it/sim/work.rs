//! What the engines are made to do.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};

use smolstore::Error;
use smolstore::batch::Shape;
use smolstore::stream::Batch;

use super::disk::SimDisk;
use super::model::Attempt;
use super::world::{Hook, READER, lock};
use super::{Engine, Sim, Stream};

pub(super) const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];

/// A batch that is ready to be committed.
struct Job {
    id: u64,
    guard: Option<u64>,
    batch: Batch<SimDisk>,
}

/// Batches that wait to be handed in, and what was answered to the others.
#[derive(Default)]
struct Line {
    waiting: VecDeque<Job>,
    order: Vec<u64>,
    answers: BTreeMap<u64, (Result<u64, Error>, u64)>,
}

/// What was known when an operation began.
#[derive(Clone, Copy)]
pub(super) struct Before {
    faults: u64,
    failed: u64,
    moves: u64,
    /// The stream's directory, if it had one, and its log.
    pub(super) dir: Option<u64>,
    pub(super) stream: Option<u64>,
}

impl Sim {
    /// One operation of one engine. `nested`: in the middle of one of another's.
    pub(super) fn operate(self: &Arc<Sim>, engine: usize, nested: bool) {
        let Some(store) = self.engine(engine) else {
            return;
        };
        let names = self.world().climate.names;
        let name = NAMES[self.roll(names).min(self.roll(names))];
        let (roll, changes) = (self.roll(100), self.world().climate.changes);
        let unlinks = self.world().climate.unlinks;
        let drops = self.world().climate.drops;
        // Nobody takes the name from who is about to drop events.
        let changes = if self.world().steady { 0 } else { changes };
        match roll {
            _ if engine == READER && roll < 15 => self.verify(engine, &store, name),
            _ if engine == READER => self.read(engine, &store, name),
            _ if roll < changes => self.remove(engine, &store, name),
            _ if roll < 2 * changes => self.rename(engine, &store, name),
            _ if roll < 2 * changes + drops => self.drop_before(engine, &store, name),
            0..=55 => self.append(engine, &store, name),
            56..=62 => self.abandon(engine, &store, name),
            63..=73 => self.read(engine, &store, name),
            74..=79 => self.check(engine, &store, name),
            80..=82 => self.verify(engine, &store, name),
            83..=86 if !nested => {
                self.note(format!("  {engine} reopens"));
                drop(store);
                self.stop(engine);
                self.start(engine);
            }
            87 | 88 => {
                let mut w = self.world();
                w.full = !w.full;
                let full = w.full;
                w.note(format!("  full: {full}"));
            }
            // In the middle of another's is when it matters.
            83..=86 | 89 => {
                self.note("  evict");
                for inode in self.world().files.values_mut() {
                    inode.evict(0);
                }
            }
            _ if 90 + unlinks > roll && !nested => {
                self.rob(name);
            }
            _ => self.append(engine, &store, name),
        }
    }

    pub(super) fn before(&self, name: &str) -> Before {
        let w = self.world();
        let (faults, failed, moves, dir) = (w.faults, w.failed, w.moves, w.dir(name).ok());
        Before { faults, failed, moves, dir, stream: dir.and_then(|dir| w.stream(dir)) }
    }

    /// The same for who has opened the stream since: it has a log by now.
    pub(super) fn opened(&self, before: Before, name: &str) -> Before {
        Before { stream: self.before(name).stream, ..before }
    }

    /// Nothing came in between that could make an answer another one.
    pub(super) fn quiet(&self, before: &Before) -> bool {
        self.world().faults == before.faults
    }

    /// Names are what they were, and streams their logs.
    pub(super) fn stands(&self, before: &Before) -> bool {
        self.world().moves == before.moves
    }

    /// No disk call failed, and names are what they were: others may have been at work.
    pub(super) fn sound(&self, before: &Before) -> bool {
        self.stands(before) && self.world().failed == before.failed && !self.world().down
    }

    /// A stream, or none for a good reason.
    pub(super) fn stream(&self, engine: usize, store: &Engine, name: &str) -> Option<Arc<Stream>> {
        let before = self.before(name);
        let stream = store.stream(name);
        if let Err(error) = &stream
            && self.quiet(&before)
            && (*error != Error::NotFound || before.dir.is_some())
        {
            self.note(format!("  {engine} opens {name}: {error}"));
            self.check(engine, store, name);
        }
        stream.ok()
    }

    // ---- appending ----

    pub(super) fn append(self: &Arc<Sim>, engine: usize, store: &Engine, name: &str) {
        let created = store.create(name, 0o755);
        let before = self.before(name);
        if created.is_ok() {
            self.note(format!("  {engine} creates {name}: {:?}", before.dir));
        }
        let Some(stream) = self.stream(engine, store, name) else {
            return;
        };
        let before = self.opened(before, name);
        let Ok(count) = stream.count() else { return };
        let in_doubt = self.model(|model| model.in_doubt(before.stream));
        let (ids, mut jobs) = (self.attempts(&before, count), VecDeque::new());
        for id in &ids {
            let events = self.model(|model| model.attempts[id].events.len());
            let guard = self.model(|model| model.attempts[id].guard);
            self.note(format!(
                "  {engine} appends {id:x} to {name}: {events} events, guard {guard:?}"
            ));
        }
        let mut left = &ids[..];
        while let [id, rest @ ..] = left {
            left = rest;
            match rest.first() {
                Some(next) if self.both_are_lines(*id, *next) => {
                    left = &rest[1..];
                    jobs.extend(self.fill_torn(&stream, *id, *next));
                }
                _ => jobs.extend(self.fill(&stream, *id)),
            }
        }
        for id in &ids {
            if !jobs.iter().any(|job| job.id == *id) {
                // It was never handed in.
                self.model(|model| model.attempts.get_mut(id).unwrap().refused = true);
                if self.quiet(&before) {
                    self.fail(format!("append {id:x} found no room"));
                }
            }
        }
        let line = self.hand_in(&stream, jobs);
        let quiet = self.quiet(&before);
        let home = before.stream.filter(|_| self.stands(&before));
        let expected = self.expected(&line.order, count);
        for (id, (result, now)) in line.answers {
            self.note(format!("    {id:x}: {result:?}"));
            let strict = (quiet && !in_doubt).then(|| &expected[&id]);
            self.judge(id, &result, strict, quiet);
            let told = self.model(|model| {
                let guard = model.attempts[&id].guard;
                if result == Err(Error::Exists)
                    && let (Some(home), Some(guard)) = (home, guard)
                    && guard <= count
                {
                    // Whoever was faster is durable.
                    model.raise(home, guard + 1);
                }
                model.answered(id, &result, now, home)
            });
            if let Err(why) = told {
                self.fail(why);
            }
            if matches!(result, Err(Error::Unknown { .. })) && home.is_some() && self.roll(2) == 0 {
                self.look_again(engine, id, name);
            }
        }
    }

    /// Who does not know what became of a batch looks before a retry: what is not found must never
    /// come, or it would be there twice. Whoever looks, unless others are at work.
    fn look_again(&self, engine: usize, id: u64, name: &str) {
        let free = !self.world().nested;
        let who = if free { [engine, 0, 1, READER][self.roll(4)] } else { engine };
        let Some(store) = self.engine(who) else { return };
        self.world().count("looks before a retry");
        self.note(format!("  {who} looks for {id:x} in {name}"));
        let seen = self.check_all(who, &store, name).is_some();
        self.model(|model| {
            if let Some(attempt) = model.attempts.get_mut(&id).filter(|_| seen) {
                attempt.refused |= attempt.in_doubt();
            }
        });
    }

    /// Tries to be made: as many batches as are committed together, their guards mostly right.
    fn attempts(&self, before: &Before, count: u64) -> Vec<u64> {
        let together = self.world().climate.together;
        let (mut next, mut ids) = (count, Vec::new());
        let mut tip = self.world().tip(before.dir.unwrap_or_default());
        for _ in 0..=self.roll(together) {
            let id = self.world().fresh();
            let events = self.events(id, before.dir.unwrap_or_default(), &mut tip);
            let guard = match self.roll(6) {
                0 | 1 => Some(next),
                2 => Some([next + 1, next.wrapping_sub(1), count][self.roll(3)]),
                _ => None,
            };
            next += events.len() as u64;
            let attempt = Attempt {
                events,
                guard,
                group: ids.first().copied().unwrap_or(id),
                began: self.world().calls,
                ended: u64::MAX,
                meant: before.stream,
                home: None,
                place: None,
                time: None,
                refused: false,
            };
            self.model(|model| model.attempts.insert(id, attempt));
            ids.push(id);
        }
        ids
    }

    fn are_lines(&self, id: u64) -> bool {
        self.model(|model| {
            let mut bytes = model.attempts[&id].events.iter().flatten();
            !bytes.any(|byte| *byte == b'\n')
        })
    }

    fn both_are_lines(&self, one: u64, other: u64) -> bool {
        self.are_lines(one) && self.are_lines(other) && self.roll(2) == 0
    }

    fn text(&self, id: u64) -> Vec<u8> {
        self.model(|model| {
            let events = &model.attempts[&id].events;
            events.iter().flat_map(|e| [&e[..], b"\n"].concat()).collect()
        })
    }

    /// Pushes `bytes` in pieces.
    fn push(&self, batch: &mut Batch<SimDisk>, mut bytes: &[u8]) -> Result<(), Error> {
        while !bytes.is_empty() {
            let (piece, rest) = bytes.split_at(1 + self.roll(bytes.len().min(100_000)));
            batch.push(piece)?;
            bytes = rest;
        }
        Ok(())
    }

    fn fill(&self, stream: &Arc<Stream>, id: u64) -> Option<Job> {
        let guard = self.model(|model| model.attempts[&id].guard);
        let mut batch;
        if self.are_lines(id) && self.roll(4) > 0 {
            batch = stream.batch(Shape::Lines);
            self.push(&mut batch, &self.text(id)).ok()?;
        } else {
            let events = self.model(|model| model.attempts[&id].events.clone());
            if events.len() == 1 && self.roll(2) == 0 {
                batch = stream.batch(Shape::One);
                self.push(&mut batch, &events[0]).ok()?;
            } else {
                batch = stream.batch(Shape::Lines);
                for event in events {
                    batch.event(&event).ok()?;
                }
            }
        }
        Some(Job { id, guard, batch })
    }

    /// Fills a batch with two attempts, up to the middle of a line, and splits it there.
    fn fill_torn(&self, stream: &Arc<Stream>, id: u64, next: u64) -> Vec<Job> {
        let (one, other) = (self.text(id), self.text(next));
        let line = other.iter().position(|b| *b == b'\n').unwrap_or(0);
        let (torn, rest) = other.split_at(self.roll(line + 1));
        let mut batch = stream.batch(Shape::Lines);
        let pushed = self.push(&mut batch, &[&one, torn].concat());
        let split = pushed.and_then(|()| batch.split_torn());
        let Ok(mut behind) = split else {
            return Vec::new();
        };
        let guard = |id| self.model(|model| model.attempts[id].guard);
        let mut jobs = vec![Job { id, guard: guard(&id), batch }];
        self.world().count("batches split");
        if self.push(&mut behind, rest).is_ok() {
            jobs.push(Job { id: next, guard: guard(&next), batch: behind });
        }
        jobs
    }

    /// Commits the batches: the first, and the others while that one is under way.
    fn hand_in(self: &Arc<Sim>, stream: &Arc<Stream>, jobs: VecDeque<Job>) -> Line {
        let line = Arc::new(Mutex::new(Line::default()));
        if jobs.len() == 1 && self.roll(2) == 0 {
            for Job { id, guard, batch } in jobs {
                self.begin(&line, id);
                let result = stream.commit(batch, guard);
                let now = self.world().calls;
                lock(&line).answers.insert(id, (result, now));
            }
        } else {
            lock(&line).waiting = jobs;
            let after = self.world().rng.next() % 40;
            self.world().mate = Some((after, self.mate(stream, &line)));
            self.submit(stream, &line);
            let mate = self.world().mate.take();
            drop(mate);
            while self.submit(stream, &line) {}
        }
        std::mem::take(&mut *lock(&line))
    }

    fn begin(&self, line: &Mutex<Line>, id: u64) {
        lock(line).order.push(id);
        let now = self.world().calls;
        self.model(|model| model.attempts.get_mut(&id).unwrap().began = now);
    }

    /// Hands in the next batch, if there is one.
    fn submit(self: &Arc<Sim>, stream: &Arc<Stream>, line: &Arc<Mutex<Line>>) -> bool {
        let Some(Job { id, guard, batch }) = lock(line).waiting.pop_front() else {
            return false;
        };
        self.begin(line, id);
        let chained = self.roll(4) == 0;
        let (sim, again, answers) = (self.clone(), stream.clone(), line.clone());
        let done = Box::new(move |result| {
            let now = sim.world().calls;
            lock(&answers).answers.insert(id, (result, now));
            // Others may come while it tells of the first.
            if chained && sim.submit(&again, &answers) {
                sim.world().count("batches handed in by an answer");
            }
        });
        stream.submit(batch, guard, done);
        true
    }

    /// Other threads hand in what waits, in the middle of the commit of the first.
    fn mate(self: &Arc<Sim>, stream: &Arc<Stream>, line: &Arc<Mutex<Line>>) -> Hook {
        let (sim, stream, line) = (self.clone(), stream.clone(), line.clone());
        Box::new(move || {
            let more = lock(&line).waiting.len();
            for _ in 0..sim.roll(more) + 1 {
                if sim.submit(&stream, &line) {
                    sim.world().count("batches handed in during a commit");
                }
            }
            let after = sim.world().rng.next() % 20;
            let again = sim.mate(&stream, &line);
            sim.world().mate = Some((after, again));
        })
    }

    /// What each batch is answered when nothing comes in between.
    fn expected(&self, order: &[u64], count: u64) -> BTreeMap<u64, Result<u64, Error>> {
        let mut next = count;
        let answer = |id: &u64| {
            let (guard, events) = self.model(|model| {
                let attempt = &model.attempts[id];
                (attempt.guard, attempt.events.len() as u64)
            });
            if guard.is_some_and(|guard| guard != next) {
                return (*id, Err(Error::Exists));
            }
            next += events;
            (*id, Ok(next - events))
        };
        order.iter().map(answer).collect()
    }

    /// Whether this may be the answer.
    fn judge(
        &self,
        id: u64,
        result: &Result<u64, Error>,
        strict: Option<&Result<u64, Error>>,
        quiet: bool,
    ) {
        let guard = self.model(|model| model.attempts[&id].guard);
        let fits = match (result, strict) {
            (result, Some(strict)) => result == strict,
            (Ok(first), None) => guard.is_none_or(|guard| guard == *first),
            (Err(Error::Exists), None) => guard.is_some(),
            // This disk loses nothing; what cannot be read passes for damaged as long.
            (Err(Error::Damaged { .. }), None) => false,
            (Err(Error::Unknown { why, .. }), None) => !quiet && !why.contains("a fault in"),
            (Err(_), None) => !quiet,
        };
        if !fits {
            self.fail(format!("{result:?} is not an answer to append {id:x}"));
        }
        self.world().count(match result {
            Ok(_) => "batches acknowledged",
            Err(Error::Exists) => "batches refused, their guard lost",
            Err(Error::Os { errno, .. }) if *errno == libc::ENOSPC => "batches refused, no room",
            Err(_) => "batches failed",
        });
    }

    fn abandon(&self, engine: usize, store: &Engine, name: &str) {
        let Some(stream) = self.stream(engine, store, name) else {
            return;
        };
        self.note(format!("  {engine} gives up a batch on {name}"));
        let mut batch = stream.batch(Shape::Lines);
        let huge = self.roll(200) == 0;
        for _ in 0..=self.roll(3) {
            let most = [2000, 2000, 2000, 2000, 2000, 200_000];
            let len = if huge { 3 << 20 } else { self.roll(most[self.roll(6)]) };
            if batch.push(&vec![b'x'; len]).is_err() {
                break;
            }
        }
        self.world().count("batches given up");
    }
}
