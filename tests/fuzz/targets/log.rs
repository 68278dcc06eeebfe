//! Any log and any index, given to the engine.
//!
//! No fuzzer finds a checksum, so the bytes are a script that writes frames, most of them in order,
//! and then damages them. What is expected is worked out from the log and index that come of it.

use super::Input;
use super::frame::{Parsed, parse};
use super::memory::{LOG, Memory};
use smolstore::frame::{HEADER, encode};
use smolstore::stream::{Cursor, Event, Stream};
use smolstore::{Error, Result, Store};
use std::collections::BTreeMap;
use std::sync::Arc;

// ---- the files -------------------------------------------------------------------------------

/// A log and an index as they may be found.
struct Found {
    log: Vec<u8>,
    index: Option<Vec<u8>>,
    /// Where the frames of the events were put.
    places: BTreeMap<u64, usize>,
    /// One event was put behind the other, and none seems to be at two places.
    plain: bool,
    outcome: Outcome,
}

/// Longer logs are slow, and no different.
const LONG: usize = 2 << 20;

struct Script<'a> {
    input: Input<'a>,
    found: Found,
    next: u64,
    time: u64,
    /// Behind the last frame.
    end: usize,
}

impl Script<'_> {
    fn run(bytes: &[u8]) -> Found {
        let mut input = Input(bytes);
        let plan = Plan::of(&mut input);
        let found = Found {
            log: Vec::new(),
            index: None,
            places: BTreeMap::new(),
            plain: true,
            outcome: Outcome::Open,
        };
        let mut script = Script { input, found, next: 0, time: 100, end: 0 };
        while !script.input.is_empty() && script.found.log.len() < LONG {
            script.step();
        }
        let mut found = script.found;
        found.index = plan.index(&found);
        found.plain = found.is_plain();
        found.outcome = found.outcome();
        found
    }

    fn step(&mut self) {
        let log = &mut self.found.log;
        match self.input.byte() {
            how @ 0..0x80 => self.batch(usize::from(how) % 4 + 1),
            0x80..0xa0 => self.odd_frame(),
            0xa0..0xb0 => log.resize(log.len() + self.input.below(64), 0),
            0xb0..0xb8 => log.resize(log.len() + 512 * self.input.below(64), 0),
            0xb8..0xd0 => log.extend(self.input.bytes()),
            how @ 0xd0..0xf0 if !log.is_empty() => {
                let at = log.len() - 1 - self.input.u16() % log.len();
                log[at] ^= 1 << (how % 8);
            }
            _ => {
                let cut = self.input.u16() % (log.len() + 1);
                log.truncate(log.len() - cut);
            }
        }
    }

    fn batch(&mut self, len: usize) {
        self.time = self.time.saturating_add(1 + u64::from(self.input.byte()));
        for i in 0..len {
            let payload = self.payload();
            self.frame(self.next, i == 0, i + 1 == len, &payload);
        }
    }

    /// A frame that need not fit.
    fn odd_frame(&mut self) {
        let how = self.input.byte();
        let index = match how >> 2 & 7 {
            0 => self.next.wrapping_add(1),
            1 => self.next.saturating_sub(1),
            2 => self.input.u64(),
            _ => self.next,
        };
        self.time = match how >> 5 {
            0 => self.time - 1,
            1 => self.input.u64(),
            2 | 3 => self.time.saturating_add(1),
            4 => u64::MAX - u64::from(self.input.byte() % 4),
            _ => self.time,
        };
        self.time = self.time.max(1);
        let payload = self.payload();
        self.frame(index, how & 1 != 0, how & 2 != 0, &payload);
    }

    fn frame(&mut self, index: u64, first: bool, last: bool, payload: &[u8]) {
        let found = &mut self.found;
        found.plain &= index == found.places.len() as u64 && found.log.len() == self.end;
        found.places.insert(index, found.log.len());
        encode(&mut found.log, index, self.time, first, last, payload);
        self.next = index.wrapping_add(1);
        self.end = found.log.len();
    }

    fn payload(&mut self) -> Vec<u8> {
        match self.input.byte() {
            len @ 0..0xe0 => self.input.take(usize::from(len) % 40).to_vec(),
            len @ 0xe0..0xf0 => vec![len; usize::from(len % 16) * 300],
            // Something that looks like the next events.
            ahead @ 0xf0..0xf8 => {
                self.found.plain = false;
                let mut inner = Vec::new();
                encode(
                    &mut inner,
                    self.next.wrapping_add(u64::from(ahead % 4)),
                    self.time,
                    true,
                    true,
                    b"inside",
                );
                inner
            }
            // Around the engine's buffers.
            long => {
                let base = [4 << 10, 256 << 10, 512 << 10][usize::from(long) % 3];
                vec![long; base + usize::from(self.input.byte()) - 128]
            }
        }
    }
}

/// What the index is to say.
struct Plan<'a> {
    kind: u8,
    count: u8,
    far: u64,
    edits: Vec<(u8, u8, u8)>,
    raw: &'a [u8],
}

impl<'a> Plan<'a> {
    fn of(input: &mut Input<'a>) -> Plan<'a> {
        let (kind, count) = (input.byte(), input.byte());
        Plan {
            kind,
            count,
            far: if count > 0xf0 { input.u64() } else { 0 },
            edits: (0..kind >> 4).map(|_| (input.byte(), input.byte(), input.byte())).collect(),
            raw: if kind % 16 > 13 { input.bytes() } else { &[] },
        }
    }

    fn index(&self, found: &Found) -> Option<Vec<u8>> {
        let mut identity = LOG;
        match self.kind % 16 {
            0 | 1 => return None,
            2 => identity += 1,
            14 => return Some(self.raw.to_vec()),
            _ => {}
        }
        let frames = chain(&found.log);
        let top = found.places.last_key_value().map_or(0, |(n, _)| n.saturating_add(1)).min(500);
        let mut ends: Vec<u64> =
            frames.iter().map(|(at, frame)| (at + frame.size()) as u64).collect();
        // Beyond damage, too.
        ends.extend(
            (ends.len() as u64 + 1..top).map(|n| found.places.get(&n).map_or(0, |at| *at as u64)),
        );
        // Often the count is right, or nearly.
        let whole = whole(&frames) as u64;
        let count = match self.count {
            0 => whole,
            near @ 1..=0x80 => (whole + 4).saturating_sub(u64::from(near) % 16),
            any @ 0x81..=0xf0 => u64::from(any - 0x81),
            _ => self.far,
        };
        for &(n, how, by) in &self.edits {
            let n = usize::from(n) % (ends.len() + 1);
            ends.resize(ends.len().max(n + 1), 0);
            ends[n] = match how % 4 {
                0 => 0,
                1 => ends[n].wrapping_add_signed(i64::from(by.cast_signed())),
                2 => u64::from(by) << (how >> 2),
                _ => ends[usize::from(by) % ends.len()],
            };
        }
        let words = [count, identity].into_iter().chain(ends);
        let mut index: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
        if self.kind % 16 == 3 {
            index.truncate(self.count.into());
        }
        Some(index)
    }
}

// ---- what is expected ------------------------------------------------------------------------

/// The valid frames from the beginning on, and where they are.
fn chain(log: &[u8]) -> Vec<(usize, Parsed<'_>)> {
    let (mut frames, mut at) = (Vec::new(), 0);
    while let Some(frame) = parse(frames.len() as u64, &log[at..]) {
        frames.push((at, frame));
        at += frame.size();
    }
    frames
}

/// How many of the frames are a batch, alone or with those before: one that begins with a first
/// frame, ends with its last, shares one time that is later than `after`.
fn first_batch(frames: &[(usize, Parsed<'_>)], after: u64) -> Option<usize> {
    let (_, head) = frames.first().filter(|(_, head)| head.first && head.time > after)?;
    let len = 1 + frames.iter().position(|(_, frame)| frame.last)?;
    let rest = &frames[1..len];
    let fits = rest.iter().all(|(_, frame)| !frame.first && frame.time == head.time);
    fits.then_some(len)
}

/// How many events are in whole batches.
fn whole(frames: &[(usize, Parsed<'_>)]) -> usize {
    let (mut whole, mut time) = (0, 0);
    while let Some(len) = first_batch(&frames[whole..], time) {
        time = frames[whole].1.time;
        whole += len;
    }
    whole
}

/// What the engine must make of the files, where that is certain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// These events, in whole batches.
    Whole(usize),
    /// Acknowledged events are lost.
    Lost,
    /// It depends on which entries are believed.
    Open,
}

impl Found {
    fn word(&self, at: usize) -> Option<u64> {
        let bytes = self.index.as_ref()?.get(at..)?.get(..8)?;
        Some(u64::from_le_bytes(bytes.try_into().unwrap()))
    }

    /// The count, when the index is this log's.
    fn count(&self) -> Option<u64> {
        (self.word(8)? == LOG).then_some(self.word(0)?)
    }

    /// Where the index says that event `n` begins.
    fn entry(&self, n: u64) -> Option<usize> {
        match n {
            0 => Some(0),
            _ => Some(self.word(usize::try_from(n.checked_mul(8)?).ok()? + 8)? as usize),
        }
    }

    fn frame(&self, n: u64, at: usize) -> Option<Parsed<'_>> {
        parse(n, self.log.get(at..)?)
    }

    /// No event seems to be at two places: each frame is where it was put, and no entry points to
    /// a copy.
    fn is_plain(&self) -> bool {
        let entries = self.index.as_ref().map_or(0, |index| index.len() as u64 / 8);
        let at_home = |n: u64| match self.entry(n) {
            Some(at) if self.frame(n, at).is_some() => self.places.get(&n) == Some(&at),
            _ => true,
        };
        let chain = chain(&self.log);
        let home = (0..).zip(&chain).all(|(n, (at, _))| self.places.get(&n) == Some(at));
        self.plain && home && (0..entries).all(at_home)
    }

    /// It is known which bytes each event has, if any.
    fn certain(&self) -> bool {
        self.plain || self.outcome != Outcome::Open
    }

    /// A frame that does not check, with a valid one directly behind, ends the chain.
    fn has_gap(&self, chain: &[(usize, Parsed<'_>)]) -> bool {
        let at = chain.last().map_or(0, |(at, frame)| at + frame.size());
        let Some((head, rest)) = self.log[at..].split_at_checked(HEADER) else {
            return false;
        };
        let len = (u32::from_le_bytes(head[..4].try_into().unwrap()) << 2 >> 2) as usize;
        let told = head[4..].iter().any(|&byte| byte != 0) && len <= 16 << 20;
        if head == [0; HEADER] || (told && head[8..] != [0; 8] && rest.len() <= len) {
            return false;
        }
        let size = HEADER + if told { len + 1 } else { 0 };
        self.frame(chain.len() as u64 + 1, at + size).is_some()
    }

    /// The index of another log leads to an event behind event `n` that is valid there.
    fn leads_beyond(&self, n: u64) -> bool {
        let words = self.index.as_ref().map_or(0, |index| index.len() as u64 / 8);
        let claimed = self.word(8).and(self.word(0)).unwrap_or(0);
        (n + 1..=claimed.min(words.saturating_sub(2))).any(|n| {
            let (Some(at), Some(end)) = (self.entry(n - 1), self.entry(n)) else { return false };
            let frame = self.frame(n - 1, at).filter(|_| at > 0 || n == 1);
            frame.is_some_and(|frame| at + frame.size() == end)
        })
    }

    fn outcome(&self) -> Outcome {
        let chain = chain(&self.log);
        let whole = whole(&chain);
        // Behind the whole batches there is nothing, or a batch whose last frames are missing.
        let torn = &chain[whole..];
        let after = whole.checked_sub(1).map_or(0, |last| chain[last].1.time);
        let fits = |len: usize| {
            let mut torn = torn[..len].to_vec();
            let last = torn.last_mut().map(|(_, frame)| frame.last = true);
            last.is_none() || first_batch(&torn, after) == Some(len)
        };
        let next = whole + (0..=torn.len()).rev().find(|len| fits(*len)).unwrap();
        let fits = next == chain.len();
        let (plain, count) = (self.plain, self.count());
        match count.map(|count| count.checked_sub(1)) {
            None if fits && self.has_gap(&chain) => Outcome::Lost,
            None if self.leads_beyond(next as u64) => Outcome::Lost,
            None => Outcome::Whole(whole),
            // The last event counted is not there, or ends no batch, or there are whole batches at
            // least up to it.
            Some(Some(last)) if plain && self.at_its_place(last).is_none() => Outcome::Lost,
            // The count ends inside a batch that has no end: no crash leaves that.
            Some(Some(last)) if plain && self.is_torn(last, self.places[&last]) => Outcome::Lost,
            Some(Some(last)) if plain && last < whole as u64 && !chain[last as usize].1.last => {
                Outcome::Open
            }
            Some(last) if plain && last.is_none_or(|last| last < whole as u64) => {
                Outcome::Whole(whole)
            }
            Some(_) => Outcome::Open,
        }
    }

    /// The frame of an event, when it is valid where it was put.
    fn at_its_place(&self, n: u64) -> Option<Parsed<'_>> {
        self.frame(n, *self.places.get(&n)?)
    }

    /// The batch that the frame is in goes on behind it, and does not end.
    fn is_torn(&self, n: u64, at: usize) -> bool {
        let (mut n, mut at, mut time) = (n, at, None);
        while let Some(frame) = self.frame(n, at) {
            let fits = time.is_none_or(|time| time == frame.time && !frame.first);
            if frame.last || !fits {
                return !fits;
            }
            (n, at, time) = (n.wrapping_add(1), at + frame.size(), Some(frame.time));
        }
        time.is_some()
    }

    /// Such a frame is in the log.
    fn holds(&self, event: &Event) -> bool {
        let guess = self.places.get(&event.index).copied();
        let is_it = |at: usize| {
            let frame = self.frame(event.index, at);
            frame.is_some_and(|f| (f.time, f.payload) == (event.time, &event.bytes[..]))
        };
        let newline = |at: &usize| self.log.get(at + HEADER + event.bytes.len()) == Some(&b'\n');
        guess.is_some_and(is_it) || (0..self.log.len()).filter(newline).any(is_it)
    }
}

/// Tells what the files were, when something does not hold.
impl Drop for Found {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let words = self.index.as_ref().map(|index| index.len() as u64 / 8);
        eprintln!("count {:?}, {words:?} words in the index", self.count());
        eprintln!("log of {} bytes: {} frames from 0 on", self.log.len(), chain(&self.log).len());
        for (&n, &at) in &self.places {
            let frame = self.frame(n, at).map(|f| (f.first, f.last, f.time, f.payload.len()));
            eprintln!("  event {n} at {at}, the index says {:?}: {frame:?}", self.entry(n));
        }
    }
}

// ---- what is seen ----------------------------------------------------------------------------

/// A store opened on the disk, and what it says of its stream.
struct View {
    _store: Store<Memory>,
    stream: Arc<Stream<Memory>>,
    count: u64,
    events: BTreeMap<u64, Result<Event>>,
}

impl View {
    /// Opens the disk, and reads all there is, one by one.
    fn of(disk: &Memory, read_only: bool, found: &Found) -> View {
        let store = disk.store(read_only);
        let stream = store.stream("s").expect("any stream can be opened");
        let count = stream.count().expect("any stream can be counted");
        let known = found.places.len().max(chain(&found.log).len()) as u64 + 4;
        let far = [count / 2, count.saturating_sub(1)];
        let indices = (0..count.min(known)).chain(far.into_iter().filter(|n| *n < count));
        let events = indices.map(|n| (n, stream.event(n))).collect();
        assert_eq!(stream.event(count), Err(Error::NotFound));
        assert!(stream.read(count.saturating_add(1)).err() == Some(Error::NotFound));
        View { _store: store, stream, count, events }
    }

    fn intact(&self) -> impl Iterator<Item = &Event> {
        self.events.values().filter_map(|event| event.as_ref().ok())
    }

    /// The other one says the same, if not more.
    fn is_in(&self, other: &View, found: &Found) {
        for event in self.intact().filter(|_| found.certain()) {
            let there = other.events.get(&event.index).cloned();
            let there = there.unwrap_or_else(|| other.stream.event(event.index));
            assert_eq!(there.as_ref(), Ok(event));
        }
        assert!(other.count >= self.count);
    }

    /// Reading in order gives what reading one by one gives, up to the first damage.
    fn reads_in_order(&self, from: u64, found: &Found) {
        for (n, event) in (from..).zip(self.stream.read(from).unwrap().take(self.events.len())) {
            let alone = self.events.get(&n);
            match event {
                Ok(event) if found.certain() => {
                    assert!(alone.is_none_or(|alone| *alone == Ok(event)));
                }
                Ok(event) => assert!(event.index == n && found.holds(&event)),
                Err(_) => return assert!(!found.certain() || alone.is_none_or(Result::is_err)),
            }
        }
    }

    /// The view is the events, a line each, and read as it is written from any offset on.
    fn is_a_view(&self, input: &mut Input<'_>) {
        let mut lines = Vec::new();
        for n in 0..self.count {
            let event = self.events[&n].as_ref().expect("it is intact");
            lines.extend(event.bytes.iter().chain(b"\n"));
        }
        let mut cursor = Cursor::default();
        // In not too many steps.
        let step = 1 + usize::from(input.byte()) + lines.len() / 100;
        let mut at = 0;
        loop {
            let read = self.stream.read_view(at as u64, step, &mut cursor).unwrap();
            assert_eq!(read, lines[at..lines.len().min(at + step)]);
            if read.is_empty() {
                break;
            }
            at += read.len();
        }
        for _ in 0..4 {
            let (at, len) = ((input.u16() * lines.len()) >> 16, input.u16());
            let read = self.stream.read_view(at as u64, len, &mut cursor).unwrap();
            assert_eq!(read, lines[at..lines.len().min(at + len)]);
        }
        assert_eq!(self.stream.read_view(u64::MAX, 10, &mut cursor), Ok(Vec::new()));
    }

    /// The first event at or after a time is found.
    fn is_found_by_time(&self) {
        let events: Vec<&Event> = self.intact().collect();
        for time in
            events.iter().flat_map(|event| [event.time, event.time.saturating_add(1)]).take(20)
        {
            let first = events.iter().position(|event| event.time >= time);
            assert_eq!(self.stream.since(time), Ok(first.unwrap_or(events.len()) as u64));
        }
    }
}

/// Whatever is there, the engine says what is intact, loses nothing that is counted, and a second
/// recovery finds what the first left.
pub fn run(bytes: &[u8]) {
    let found = Script::run(bytes);
    let disk = Memory::new(1000);
    disk.put("log", found.log.clone());
    if let Some(index) = &found.index {
        disk.put("index", index.clone());
    }
    // What is done with the stream is taken from the same bytes: it need not be independent.
    let input = &mut Input(bytes);
    let outcome = found.outcome;

    let before = View::of(&disk, true, &found);
    assert_eq!(disk.changes(), 0, "opened for reading only");
    check_events(&found, &before);
    if let Outcome::Whole(whole) = outcome {
        assert_eq!(before.count, whole as u64);
        before.is_a_view(input);
        before.is_found_by_time();
    }
    before.reads_in_order(u64::from(input.byte()).min(before.count), &found);
    drop(before.stream.since(input.u64()));

    let first = View::of(&disk, false, &found);
    assert_eq!(first.count, before.count);
    before.is_in(&first, &found);
    // Behind damage reading for reading only, which mends no entries, may find less.
    if outcome != Outcome::Open {
        first.is_in(&before, &found);
    }
    first.reads_in_order(0, &found);
    let log = disk.get("log").unwrap();
    check_log(&found, &log);
    // No events, for a guard that nothing can meet: whether any would be taken.
    let lost = first.stream.append([""; 0], Some(u64::MAX)) != Err(Error::Exists);
    assert!(!lost || log.len() == found.log.len(), "it takes no appends, and was changed");
    drop(first);

    let index = disk.get("index");
    let again = View::of(&disk, false, &found);
    before.is_in(&again, &found);
    // Reading mends entries. Where damage hid the way to intact events it may do so no longer.
    if !lost || outcome == Outcome::Lost {
        assert_eq!(again.count, before.count, "recovered twice");
        assert_eq!(disk.get("log").unwrap(), log, "recovered twice");
        assert_eq!(disk.get("index"), index, "recovered twice");
    }
    let mended = disk.get("log").unwrap();
    let last = again.events.get(&again.count.wrapping_sub(1));
    let spent = last.is_some_and(|last| last.as_ref().is_ok_and(|last| last.time == u64::MAX));
    match again.stream.append(["new", ""], Some(again.count)) {
        // No batch can be later.
        appended if spent => {
            assert!(matches!(appended, Err(Error::Stopped { .. })), "{appended:?}");
            // There may be more room than there was.
            let now = disk.get("log").unwrap();
            let more = now.strip_prefix(&mended[..]).expect("it takes no appends");
            assert!(more.iter().all(|&byte| byte == 0), "it takes no appends");
        }
        Err(Error::Stopped { .. }) => {
            assert!(!matches!(outcome, Outcome::Whole(_)));
            assert!(lost && disk.get("log").unwrap() == log, "it takes no appends");
        }
        appended => {
            assert_eq!(appended, Ok(again.count));
            assert_ne!(outcome, Outcome::Lost);
            appends(&found, &disk, &again);
        }
    }
}

/// Each event is what the log holds for its index; whatever is intact and has a right entry, or
/// nothing but intact ones before it, can be read.
fn check_events(found: &Found, view: &View) {
    for event in view.intact() {
        assert!(found.holds(event), "{event:?}");
    }
    if let Some(count) = found.count() {
        assert!(view.count >= count.min(1 << 48));
    }
    if !found.plain {
        return;
    }
    let chain = chain(&found.log).len() as u64;
    for (&n, event) in &view.events {
        let Some(&at) = found.places.get(&n) else {
            assert!(event.is_err());
            continue;
        };
        // Only the first event can begin at 0, where holes point to.
        let reachable =
            n < chain || (found.count().is_some() && found.entry(n) == Some(at) && at > 0);
        if reachable && let Some(frame) = found.frame(n, at) {
            let bytes = frame.payload.to_vec();
            let index = n;
            let time = frame.time;
            assert_eq!(*event, Ok(Event { index, time, bytes }));
        }
    }
}

/// Recovery only ever cuts off the end, and only what belongs to no whole batch.
fn check_log(found: &Found, after: &[u8]) {
    assert!(found.log.starts_with(after), "recovery wrote something new");
    match found.outcome {
        Outcome::Lost => assert_eq!(after.len(), found.log.len()),
        Outcome::Open => {}
        Outcome::Whole(whole) => {
            let chain = chain(&found.log);
            let end = whole.checked_sub(1).map_or(0, |last| chain[last].0 + chain[last].1.size());
            let rest = &found.log[end..];
            assert!(after.len() >= end && after[end..].iter().all(|&byte| byte == 0));
            // So many zeros at most are taken in advance; more are given back.
            let zeros = rest.iter().all(|&byte| byte == 0);
            match rest.len() {
                few if zeros && few <= end / 8 => assert_eq!(after.len(), found.log.len()),
                some if zeros && some <= end / 8 + 4096 => {}
                _ => assert_eq!(after.len(), end),
            }
        }
    }
}

/// What was appended is there at once and later, behind what was there; also without an index.
fn appends(found: &Found, disk: &Memory, before: &View) {
    // Another frame for that very index, and an entry that leads there: see Limits in the README.
    let forged = |n| found.entry(n).is_some_and(|at| found.frame(n, at).is_some());
    if !found.plain && (forged(before.count) || forged(before.count + 1)) {
        return;
    }
    let check = |disk: &Memory| {
        let view = View::of(disk, false, found);
        assert_eq!(view.count, before.count + 2);
        before.is_in(&view, found);
        let new = [view.stream.event(before.count), view.stream.event(before.count + 1)];
        let [first, second] = new.map(|event| event.expect("it was appended"));
        assert_eq!((&first.bytes[..], &second.bytes[..]), (&b"new"[..], &b""[..]));
        assert_eq!(first.time, second.time);
        if let Some(Ok(last)) = before.events.get(&before.count.wrapping_sub(1)) {
            assert!(last.time < first.time);
        }
    };
    check(&disk.copy());
    if matches!(found.outcome, Outcome::Whole(_)) {
        let disk = disk.copy();
        disk.remove("index");
        check(&disk);
    }
}
