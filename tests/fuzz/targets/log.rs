//! Any log and any index, given to the engine.
//!
//! What it says must be what the model finds in the log, whatever the index says but for `last`;
//! reading, or recovering twice, must not change that.

use super::Input;
use super::memory::Memory;
use super::model::{self, Outcome};
use super::script::{self, Found, SEED};
use smolstore::check::Finding;
use smolstore::page;
use smolstore::stream::{Cursor, Stream};
use smolstore::walk::Tip;
use smolstore::{Error, Event, Store};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What the index is to say.
struct Plan<'a> {
    kind: u8,
    end: u8,
    far: u64,
    edits: Vec<(u8, u8, u8)>,
    raw: &'a [u8],
}

impl<'a> Plan<'a> {
    fn of(input: &mut Input<'a>) -> Plan<'a> {
        let (kind, end) = (input.byte(), input.byte());
        Plan {
            kind,
            end,
            far: if end >= 0xf0 { input.u64() } else { 0 },
            edits: (0..kind >> 5).map(|_| (input.byte(), input.byte(), input.byte())).collect(),
            raw: if kind % 16 == 15 { input.bytes() } else { &[] },
        }
    }

    fn index(&self, found: &Found) -> Option<Vec<u8>> {
        let seed = match self.kind % 16 {
            0 | 1 => return None,
            2 => SEED + 1,
            15 => return Some(self.raw.to_vec()),
            _ => SEED,
        };
        let last = match self.end {
            0xf0.. => self.far,
            end => found.ends[found.ends.len() - 1 - usize::from(end) % found.ends.len()],
        };
        let mut words = Vec::new();
        for page in 0..found.log.len() as u64 / 4096 {
            let block = model::Model { log: &found.log, seed: SEED }.parse((page * 4096).max(40));
            words.extend(block.map_or([0, 0], |(block, _)| [block.index, block.view]));
        }
        for &(n, how, by) in &self.edits {
            let n = usize::from(n) % (words.len() + 2);
            words.resize(words.len().max(n + 1), 0);
            words[n] = match how % 4 {
                0 => 0,
                1 => words[n].wrapping_add_signed(i64::from(by.cast_signed())),
                2 => u64::from(by) << (how >> 2),
                _ => words[usize::from(by) % words.len()],
            };
        }
        let mut index = page::encode_index(last % page::LONGEST, seed).to_vec();
        index.extend(words.into_iter().flat_map(u64::to_le_bytes));
        if self.kind % 16 == 3 {
            index.truncate(self.end.into());
        }
        Some(index)
    }
}

/// What there must be to see.
struct Expected {
    outcome: Outcome,
    events: BTreeMap<u64, Event>,
    /// All blocks of the log that can be found.
    blocks: Vec<smolstore::page::Block>,
    /// The view, as far as it is intact: pieces and where they are.
    view: BTreeMap<u64, Vec<u8>>,
}

impl Expected {
    /// Of what is on the disk now.
    fn of(disk: &Memory) -> Expected {
        let (log, index) = (disk.get("log").unwrap_or_default(), disk.get("index"));
        let mut index = index.unwrap_or_default();
        index.resize(index.len().max(16), 0);
        let index = index.first_chunk().map(page::decode_index).unwrap();
        let outcome = model::recover(&log, index, &Tip::default());
        let events = model::events(&log, &outcome);
        let blocks = model::intact(&log, &outcome).into_iter();
        let view = blocks.map(|(block, payload)| (block.view, payload.to_vec())).collect();
        let model = model::Model { log: &log, seed: outcome.head.seed };
        let blocks = model.on_pages(0).into_iter().map(|(block, _)| block).collect();
        Expected { outcome, events, blocks, view }
    }

    fn count(&self) -> u64 {
        self.outcome.tip.count
    }

    /// Event `n`, as far as the error goes.
    fn event(&self, n: u64) -> Result<&Event, Option<Error>> {
        match self.events.get(&n) {
            // There may have been one, where the disk lost some.
            _ if n >= self.count() => Err(Some(Error::NotFound).filter(|_| !self.outcome.lost)),
            _ if n < self.outcome.head.first => Err(Some(Error::Dropped)),
            Some(event) => Ok(event),
            None => Err(None),
        }
    }

    /// The events that are damaged, of those that are kept.
    fn damaged(&self) -> impl Iterator<Item = u64> {
        (self.outcome.head.first..self.count()).filter(|n| !self.events.contains_key(n))
    }

    /// What is intact of the view from an offset on.
    fn view(&self, from: u64, size: usize) -> Vec<u8> {
        let (mut out, end) = (Vec::new(), self.outcome.tip.view);
        while out.len() < size && from + (out.len() as u64) < end {
            let here = from + out.len() as u64;
            let Some((at, piece)) = self.view.range(..=here).next_back() else { break };
            let Some(rest) = piece.get((here - at) as usize..).filter(|rest| !rest.is_empty())
            else {
                break;
            };
            out.extend(&rest[..rest.len().min(size - out.len())]);
        }
        out
    }
}

/// A store opened on the disk.
struct View {
    store: Store<Memory>,
    stream: Arc<Stream<Memory>>,
}

/// Tells what the log was, when something does not hold.
impl Drop for Expected {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let blocks: Vec<_> = self
                .blocks
                .iter()
                .map(|block| smolstore::page::Block { crc: 0, prev: 0, ..*block })
                .collect();
            eprintln!("{:?}\n{blocks:?}", self.outcome);
        }
    }
}

impl View {
    fn of(disk: &Memory, read_only: bool) -> View {
        let store = disk.store(read_only);
        let stream = store.stream("s").expect("any stream can be opened");
        View { store, stream }
    }

    /// All there is, one by one, in order, and as a view.
    fn shows(&self, expected: &Expected, input: &mut Input<'_>) {
        let (stream, count) = (&self.stream, expected.count());
        assert_eq!(stream.count(), Ok(count));
        assert_eq!(stream.first(), Ok(expected.outcome.head.first));
        for n in 0..count + 2 {
            let told = stream.event(n);
            match expected.event(n) {
                Ok(event) => assert_eq!(told.as_ref(), Ok(event)),
                Err(Some(error)) => assert_eq!(told, Err(error)),
                Err(None) => assert!(matches!(told, Err(Error::Damaged { .. })), "{n}: {told:?}"),
            }
        }
        let from = expected.outcome.head.first.min(count);
        let from = from + input.u16() as u64 % (count - from + 1);
        let mut n = from;
        for told in stream.read(from).unwrap() {
            match expected.event(n) {
                Ok(event) => assert_eq!(told.as_ref(), Ok(event)),
                Err(_) => assert!(told.is_err()),
            }
            n += 1;
        }
        // Where events are lost, the end is an error, too.
        assert_eq!(n, count + u64::from(expected.outcome.lost));
        self.reads(expected, input);
        if expected.damaged().next().is_none() && !expected.outcome.lost {
            self.finds_times(expected);
        }
    }

    /// The view, from any offset on.
    fn reads(&self, expected: &Expected, input: &mut Input<'_>) {
        let (first, end) = (expected.outcome.head.view, expected.outcome.tip.view);
        let mut cursor = Cursor::default();
        let mut at = first.min(end);
        for _ in 0..20 {
            let size = 1 + input.u16();
            match self.stream.read_view(at, size, &mut cursor) {
                Ok(bytes) => {
                    assert_eq!(bytes, expected.view(at, size));
                    assert!(!bytes.is_empty() || (at >= end && !expected.outcome.lost));
                    at += bytes.len() as u64;
                }
                Err(error) => {
                    assert!(matches!(error, Error::Damaged { .. }), "{error:?}");
                    assert_eq!(expected.view(at, 1), []);
                }
            }
            if at >= end || input.below(4) == 0 || expected.view(at, 1).is_empty() {
                at = first + input.u64() % (end.saturating_sub(first) + 1);
            }
        }
    }

    /// The first event at or after a time.
    fn finds_times(&self, expected: &Expected) {
        let events: Vec<&Event> = expected.events.values().collect();
        let times = events.iter().flat_map(|event| [event.time, event.time + 1]);
        for time in times.step_by(1 + events.len() / 16).chain([0, u64::MAX]) {
            let first = events.iter().find(|event| event.time >= time).map(|event| event.index);
            assert_eq!(self.stream.since(time), Ok(first.unwrap_or(expected.count())));
        }
    }

    /// What is damaged is told, and nothing else.
    fn is_checked(&self, expected: &Expected) {
        let (mut faults, mut tell) = (Vec::new(), Vec::new());
        self.store.check("s", &mut |finding| tell.push(finding), &mut |_, _| {}).unwrap();
        for finding in tell {
            if let Finding::Fault { first, last, .. } = finding {
                faults.push(first..=last);
            }
        }
        let lost = expected.outcome.lost;
        // Of a lost stream it tells that, and how far it is intact.
        for n in expected.damaged().filter(|_| !lost) {
            assert!(faults.iter().any(|fault| fault.contains(&n)), "{n} is not in {faults:?}");
        }
        assert!(!lost || !faults.is_empty());
    }
}

/// A stream with a log that nobody would write: whatever it says, it does not fail, nor go on for
/// ever.
fn odd(disk: &Memory, expected: &Expected, input: &mut Input<'_>) {
    for read_only in [true, false] {
        let view = View::of(disk, read_only);
        assert_eq!(view.stream.count(), Ok(expected.count()));
        let near = expected.count().saturating_sub(3);
        for n in (0..9).chain(near..near + 9).chain([input.u64()]) {
            drop(view.stream.event(n));
            drop(view.stream.read(n).map(|events| events.take(99).for_each(drop)));
            drop(view.stream.since(n));
            drop(view.stream.read_view(n, input.u16(), &mut Cursor::default()));
        }
        drop(view.store.check("s", &mut drop, &mut |_, _| {}));
        drop(view.stream.append(["new", ""], None));
        assert!(view.stream.count().is_ok());
    }
}

pub fn run(bytes: &[u8]) {
    let mut input = Input(bytes);
    let plan = Plan::of(&mut input);
    let found = script::run(&mut input);
    let disk = Memory::new(1 << 20);
    disk.put("log", found.log.clone());
    plan.index(&found).into_iter().for_each(|index| disk.put("index", index));
    let expected = Expected::of(&disk);
    if !found.real {
        return odd(&disk, &expected, &mut input);
    }

    let view = View::of(&disk, true);
    view.shows(&expected, &mut input);
    assert_eq!(disk.changes(), 0, "opened for reading only");
    drop(view);

    let view = View::of(&disk, false);
    view.shows(&expected, &mut input);
    let log = disk.get("log").unwrap();
    let kept = log.len().min(expected.outcome.tip.end as usize);
    assert!(found.log.starts_with(&log), "recovery wrote something new");
    assert!(found.log.len().min(expected.outcome.tip.end as usize) == kept, "it cut what is there");
    drop(view);

    let index = disk.get("index");
    let again = View::of(&disk, false);
    again.shows(&expected, &mut input);
    again.is_checked(&expected);
    assert_eq!(disk.get("log").unwrap(), log, "recovered twice");
    assert_eq!(disk.get("index"), index, "recovered twice");
    appends(&disk, &again, &expected, &mut input);
}

/// What is appended is there at once and later, behind what was there; also without an index.
fn appends(disk: &Memory, view: &View, before: &Expected, input: &mut Input<'_>) {
    let (log, count) = (disk.get("log"), before.count());
    let appended = view.stream.append([&b"new"[..], b"", b"a\nb"], Some(count));
    if before.outcome.lost {
        assert!(matches!(appended, Err(Error::Stopped { .. })), "{appended:?}");
        assert_eq!(disk.get("log"), log, "it takes no appends");
        return;
    }
    assert_eq!(appended, Ok(count));
    assert_eq!(view.stream.append(["late"], Some(count)), Err(Error::Exists));
    let expected = Expected::of(disk);
    assert_eq!(expected.count(), count + 3);
    assert!(before.events.iter().all(|(n, event)| expected.events.get(n) == Some(event)));
    let new: Vec<_> = (count..count + 3).map(|n| &expected.events[&n]).collect();
    assert_eq!(
        new.iter().map(|event| &event.bytes[..]).collect::<Vec<_>>(),
        [&b"new"[..], b"", b"a\nb"]
    );
    assert!(
        new.iter().all(|event| event.time == new[0].time && event.time > before.outcome.tip.time)
    );
    view.shows(&expected, input);
    View::of(disk, false).shows(&expected, input);
    disk.remove("index");
    let expected = Expected::of(disk);
    View::of(disk, false).shows(&expected, input);
}
