//! What must be true of the streams, whatever happened to the disk.

use std::collections::BTreeMap;

use smolstore::{Error, Event};

/// A batch that someone tried to append.
pub(super) struct Attempt {
    pub(super) events: Vec<Vec<u8>>,
    pub(super) guard: Option<u64>,
    /// The first of those that may share a commit with it.
    pub(super) group: u64,
    /// Disk calls before and behind it.
    pub(super) began: u64,
    pub(super) ended: u64,
    /// The stream it was meant for, when names had changed so often; 0 when it may be another.
    pub(super) meant: u64,
    /// The stream that has it, once that is certain.
    pub(super) home: Option<u64>,
    /// It was acknowledged or seen here, and must stay.
    pub(super) place: Option<u64>,
    /// It was refused, and must never be seen.
    pub(super) refused: bool,
}

impl Attempt {
    pub(super) fn in_doubt(&self) -> bool {
        self.place.is_none() && !self.refused
    }
}

/// All that anybody tried, and what is known of it. Streams go by the inode of their directory.
#[derive(Default)]
pub(super) struct Model {
    pub(super) attempts: BTreeMap<u64, Attempt>,
    /// There were at least so many events in a stream, durably.
    floors: BTreeMap<u64, u64>,
}

/// The number of the attempt that an event names, if it does.
fn id_of(event: &Event) -> Option<u64> {
    let id = std::str::from_utf8(event.bytes.get(..8)?).ok()?;
    u64::from_str_radix(id, 16).ok()
}

/// How the first event of an attempt begins.
pub(super) fn mark(id: u64) -> Vec<u8> {
    format!("{id:08x}").into_bytes()
}

impl Model {
    pub(super) fn floor(&self, stream: u64) -> u64 {
        self.floors.get(&stream).copied().unwrap_or(0)
    }

    pub(super) fn raise(&mut self, stream: u64, floor: u64) {
        let known = self.floors.entry(stream).or_default();
        *known = floor.max(*known);
    }

    /// Streams that hold events, durably.
    pub(super) fn streams(&self) -> impl Iterator<Item = u64> + '_ {
        let holds = |(stream, floor): (&u64, &u64)| (*floor > 0).then_some(*stream);
        self.floors.iter().filter_map(holds)
    }

    pub(super) fn in_doubt(&self, stream: u64) -> bool {
        let mut attempts = self.attempts.values();
        attempts.any(|a| [stream, 0].contains(&a.meant) && a.in_doubt())
    }

    /// An append was answered. `home`: the stream, where that is certain.
    pub(super) fn answered(
        &mut self,
        id: u64,
        result: &Result<u64, Error>,
        now: u64,
        home: Option<u64>,
    ) -> Result<(), String> {
        let Some(attempt) = self.attempts.get_mut(&id) else {
            return Ok(());
        };
        attempt.ended = now;
        let nothing_stored = |error: &Error| {
            *error == Error::Exists
                || matches!(error, Error::Os { errno, .. } if *errno == libc::ENOSPC)
        };
        match result {
            Ok(first) => {
                let wrong = attempt.place.is_some_and(|place| place != *first)
                    || attempt.home.is_some_and(|known| home.is_some_and(|h| h != known))
                    || attempt.guard.is_some_and(|guard| guard != *first);
                if wrong {
                    return Err(format!("append {id:x} was seen elsewhere"));
                }
                attempt.place = Some(*first);
                attempt.home = attempt.home.or(home);
                let end = first + attempt.events.len() as u64;
                if let Some(home) = home {
                    self.raise(home, end);
                }
            }
            Err(error) if nothing_stored(error) => {
                if attempt.place.is_some() {
                    return Err(format!("append {id:x} was refused, but is there"));
                }
                attempt.refused = true;
            }
            Err(_) if home.is_none() => attempt.meant = 0,
            Err(_) => {}
        }
        Ok(())
    }

    /// What was in doubt, and is not there after a recovery of everything, never comes.
    pub(super) fn settle(&mut self) {
        for attempt in self.attempts.values_mut() {
            attempt.refused |= attempt.in_doubt();
        }
    }

    /// Compares what a stream holds with what it must. What is seen must stay. `least`: while another
    /// engine is at work, so many events.
    pub(super) fn compare(
        &mut self,
        stream: u64,
        all: &[Event],
        least: Option<u64>,
    ) -> Result<(), String> {
        let (mut at, mut began, mut time, mut group, mut placed) = (0, 0, 0, 0, 0);
        while at < all.len() {
            let first = &all[at];
            let Some(attempt) = id_of(first).and_then(|id| self.attempts.get_mut(&id)) else {
                return Err(format!("event {at}: nobody wrote this batch"));
            };
            let batch = &all[at..all.len().min(at + attempt.events.len())];
            let (place, home) = (attempt.place, attempt.home);
            let same = |event: &Event| event.time == first.time;
            let wrong: Vec<_> = [
                (!attempt.events.iter().eq(batch.iter().map(|e| &e.bytes)), "is not whole"),
                (!batch.iter().all(same), "has not one time"),
                (attempt.refused, "was refused"),
                (place.is_some_and(|place| place != at as u64), "moved"),
                (home.is_some_and(|home| home != stream), "is another stream's"),
                (attempt.guard.is_some_and(|guard| guard != at as u64), "was guarded"),
                (attempt.ended < began, "is out of order"),
                (first.time < time, "is earlier"),
                (first.time == time && attempt.group != group, "is not later"),
            ]
            .into_iter()
            .filter_map(|(wrong, what)| wrong.then_some(what))
            .collect();
            if !wrong.is_empty() {
                let mark = String::from_utf8_lossy(&first.bytes[..8]).into_owned();
                return Err(format!("event {at}: batch {mark} {}", wrong.join(", ")));
            }
            (attempt.place, attempt.home) = (Some(at as u64), Some(stream));
            placed += 1;
            (began, time, group) = (attempt.began, first.time, attempt.group);
            at += batch.len();
        }
        let here = |a: &&Attempt| a.home == Some(stream) && a.place.is_some();
        let (known, count) = (self.attempts.values().filter(here).count(), all.len());
        let all = known as u64 == placed && count as u64 >= self.floor(stream);
        if !least.map_or(all, |least| count as u64 >= least) {
            let floor = self.floor(stream);
            return Err(format!(
                "{placed} of {known} batches are there, and {count} of {floor} events"
            ));
        }
        self.raise(stream, count as u64);
        Ok(())
    }

    /// An acknowledged batch that no stream was found to hold.
    pub(super) fn homeless(&self) -> Option<u64> {
        let mut all = self.attempts.iter();
        let found = all.find(|(_, attempt)| attempt.place.is_some() && attempt.home.is_none());
        found.map(|(id, _)| *id)
    }
}
