//! What must hold of a damaged stream, by every way there is to read it.

use crate::harness::*;
use smolstore::disk::Real;
use smolstore::stream::Cursor;
use smolstore::{Error, Event, Store, Stream};
use std::ops::RangeInclusive;
use std::sync::Arc;

/// What becomes of a block, or an event, when there is damage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fate {
    Right,
    /// All its bytes are intact, but not the newline behind it.
    Either,
    Bad,
}

/// What there is at the end of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// No more events.
    Sound,
    /// Acknowledged events are missing: that is an error, and so are appends.
    Lost,
    /// One or the other.
    Either,
}

/// What must hold of the stream `s`.
pub struct Want {
    pub events: Vec<Event>,
    pub fates: Vec<Fate>,
    pub end: End,
    /// So many events are counted.
    pub counts: RangeInclusive<u64>,
}

impl Want {
    /// Events from `count` on are gone, which must be allowed.
    pub fn forget(&mut self, count: u64) {
        assert!(self.counts.contains(&count), "{count}");
        self.events.truncate(count as usize);
        self.fates.truncate(count as usize);
    }

    /// A batch was acknowledged, and must be there from now on.
    pub fn appended(&mut self, place: u64, stream: &Arc<Stream<Real>>, batch: [Vec<u8>; 2]) {
        assert_eq!(place, self.events.len() as u64);
        let last = self.events.last().map_or(0, |event| event.time);
        for bytes in batch {
            let event = stream.event(self.events.len() as u64).unwrap();
            assert!(event.bytes == bytes && event.time > last);
            self.events.push(event);
            self.fates.push(Fate::Right);
        }
        let count = self.events.len() as u64;
        self.counts = if self.end == End::Either { place..=count } else { count..=count };
    }

    /// By every way there is to read.
    pub fn check(&self, store: &Store, random: &mut Random) {
        // Not of every case, for it is slow.
        let one_by_one = random.below(4) == 0;
        let other = store.stream("other").unwrap();
        assert_eq!(other.event(0).unwrap().bytes, b"untouched");
        let stream = store.stream("s").unwrap();
        let (len, count) = (self.events.len(), stream.count().unwrap());
        assert!(self.counts.contains(&count), "count {count}, not {:?}", self.counts);
        let count = count as usize;
        for n in (0..len.min(count)).filter(|n| one_by_one || self.fates[*n] != Fate::Right) {
            self.served(n, stream.event(n as u64));
        }
        for n in count..=len {
            self.ended(stream.event(n as u64).map(drop).err());
        }
        let from = random.below(count + 1) * random.below(2);
        let mut events = stream.read(from as u64).unwrap();
        for n in from..count {
            self.served(n, events.next().expect("it ended"));
        }
        self.ended(Some(events.next().map_or(Error::NotFound, Result::unwrap_err)));
        self.check_since(&stream, count, random);
        self.check_view(&stream, count, random);
    }

    #[track_caller]
    fn served(&self, n: usize, got: smolstore::Result<Event>) {
        match got {
            Ok(got) => assert!(self.fates[n] != Fate::Bad && got == self.events[n], "event {n}"),
            Err(error) => {
                assert!(self.fates[n] != Fate::Right, "event {n}: {error}");
                assert!(matches!(error, Error::Damaged { .. }), "event {n}: {error}");
            }
        }
    }

    /// That there is no more is said when it is true, else that it is damaged.
    #[track_caller]
    fn ended(&self, error: Option<Error>) {
        match error {
            Some(Error::NotFound) => {
                assert_ne!(self.end, End::Lost, "an end where events are missing");
            }
            Some(Error::Damaged { .. }) => assert_ne!(self.end, End::Sound),
            other => panic!("at the end: {other:?}"),
        }
    }

    /// The first event of a time; or a damaged one before it, so that who reads from there on is told.
    fn check_since(&self, stream: &Arc<Stream<Real>>, count: usize, random: &mut Random) {
        let time = self.events[random.below(self.events.len())].time;
        for time in [0, time, time + 1, u64::MAX] {
            let found = self.events.iter().take(count).position(|event| event.time >= time);
            let found = found.unwrap_or(count);
            let said = stream.since(time).unwrap() as usize;
            let between = self.fates.get(said..found);
            let damaged = between.is_some_and(|fates| !fates.contains(&Fate::Right));
            assert!(damaged, "since {time}: {said}, not {found}");
        }
    }

    /// Reads on at odd sizes, over what is damaged, and at some places.
    fn check_view(&self, stream: &Arc<Stream<Real>>, count: usize, random: &mut Random) {
        let (mut view, mut starts) = (Vec::new(), Vec::new());
        for event in self.events.iter().take(count) {
            starts.push(view.len());
            view.extend_from_slice(&event.bytes);
            view.push(b'\n');
        }
        // Behind what is intact there may be the beginning of an event.
        starts.push(view.len());
        view.extend(self.events.get(count).map_or(&[][..], |event| &event.bytes));
        let holder = |at| starts.partition_point(|start| *start <= at) - 1;
        let fate = |at| self.fates.get(holder(at)).copied().unwrap_or(Fate::Right);
        let counted = starts[count];
        let part = |at: usize, size: usize, cursor: &mut Cursor| match stream
            .read_view(at as u64, size, cursor)
        {
            Ok(bytes) => {
                let end = at + bytes.len();
                assert!(view.get(at..end) == Some(&bytes), "the view from {at} on");
                let short = end < counted.min(at + size);
                assert!(!short || fate(end) != Fate::Right, "only {} at {at}", bytes.len());
                assert!(
                    !bytes.is_empty() || at >= counted && self.end != End::Lost,
                    "an end at {at}"
                );
                end
            }
            Err(error) => {
                assert!(matches!(error, Error::Damaged { .. }), "{error}");
                let hit = at >= counted && self.end != End::Sound || fate(at) != Fate::Right;
                assert!(hit, "at {at}: {error}");
                starts.get(holder(at) + 1).copied().unwrap_or(counted)
            }
        };
        let (mut at, mut cursor) = (0, Cursor::default());
        while at < counted {
            let longest = [2, 70, 900, 9000][random.below(4)];
            at = part(at, 1 + random.below(longest), &mut cursor);
        }
        part(counted, 100, &mut cursor);
        for _ in 0..4 * usize::from(counted > 0) {
            part(random.below(counted.max(1)), 1 + random.below(400), &mut Cursor::default());
        }
    }
}
