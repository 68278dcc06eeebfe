//! Two faults at once.
//!
//! They may cost the end of the stream: where the index counts too little, or is gone, nothing
//! tells a damaged event from a batch that a crash has torn. What must hold all the same: nothing
//! wrong is ever served, the other stream is as it was, a store that is open for reading only
//! writes nothing, and what is appended afterwards is there to stay.

use super::bench::{BATCHES, Bench, Fault, Says, Which::Index, Which::Log};
use crate::harness::*;
use smolstore::stream::Cursor;
use smolstore::{Error, Event, Store};

impl Bench {
    fn any_fault(&mut self) -> Fault {
        let which = [Log, Index][self.random.below(2)];
        let end = self.end(which);
        let at = self.random.below(end + 40);
        match self.random.below(8) {
            0..=3 => Fault::Flip(which, at, 1 << self.random.below(8)),
            4 => Fault::Cut(which, at),
            5 => Fault::Delete,
            kind => {
                let to = if kind == 6 { usize::MAX } else { at + self.random.below(end) };
                Fault::Replay(which, at, to, self.random.below(BATCHES.len()))
            }
        }
    }

    /// Says how many events are left to be counted.
    fn two(&mut self) -> usize {
        let faults = [self.any_fault(), self.any_fault()];
        let _says = Says(&faults);
        let damaged = self.damaged(&faults);
        let mut events = self.events.clone();
        self.put(&damaged);
        nothing_wrong(&events, 0, &self.open(true), &mut self.random);
        assert!(self.bytes() == damaged, "a read-only store wrote");
        let store = self.open(false);
        let count = nothing_wrong(&events, 0, &store, &mut self.random);
        let (stream, batch) = (store.stream("s").unwrap(), self.batch());
        let mut new = 0;
        match stream.append(&batch, None) {
            Err(error) => assert_eq!(error.errno(), libc::EIO, "{error}"),
            Ok(place) => {
                assert_eq!(place, count);
                events.truncate(usize::try_from(place).unwrap());
                new = batch.len();
                for (n, bytes) in (place..).zip(batch) {
                    let event = stream.event(n).unwrap();
                    assert!(event.bytes == bytes, "event {n}");
                    events.push(event);
                }
                nothing_wrong(&events, new, &store, &mut self.random);
            }
        }
        drop((stream, store));
        nothing_wrong(&events, new, &self.open(false), &mut self.random);
        usize::try_from(count).unwrap()
    }
}

/// Whatever can be read is right, and the newest `new` events can be. Says the count.
fn nothing_wrong(events: &[Event], new: usize, store: &Store, random: &mut Random) -> u64 {
    let other = store.stream("other").unwrap();
    assert_eq!(other.event(0).unwrap().bytes, b"untouched");
    let stream = store.stream("s").unwrap();
    let (count, len) = (stream.count().unwrap(), events.len() as u64);
    assert!(new == 0 || count == len, "count {count}");
    let old = events.len() - new;
    let right = |n: usize, got: smolstore::Result<Event>| match got {
        Ok(got) => assert!(events.get(n) == Some(&got), "event {n}"),
        Err(Error::NotFound) => assert!(n as u64 >= count, "event {n}"),
        Err(error) => assert!(
            !(old..events.len()).contains(&n) && error.errno() == libc::EIO,
            "event {n}: {error}"
        ),
    };
    for n in 0..=events.len() {
        right(n, stream.event(n as u64));
    }
    let mut all = stream.read(0).unwrap().take(events.len() + 1).enumerate();
    all.by_ref().for_each(|(n, event)| right(n, event));
    let view: Vec<u8> =
        events.iter().flat_map(|event| [&event.bytes[..], b"\n"].concat()).collect();
    let mut cursor = Cursor::default();
    for _ in 0..12 {
        let at = random.below(view.len());
        if let Ok(bytes) = stream.read_view(at as u64, 1 + random.below(900), &mut cursor) {
            assert!(view[at..].starts_with(&bytes), "the view from {at} on");
        }
    }
    for time in [0, events[0].time, u64::MAX] {
        let _ = stream.since(time);
    }
    count
}

#[test]
fn two_faults_at_once() {
    const PAIRS: usize = 4000;
    let mut bench = Bench::new(5);
    let all = bench.events.len();
    let counts: Vec<usize> = (0..PAIRS).map(|_| bench.two()).collect();
    let shorter = counts.iter().filter(|count| **count < all).count();
    eprintln!("{PAIRS} pairs of faults: {shorter} cost the end of the stream");
}
