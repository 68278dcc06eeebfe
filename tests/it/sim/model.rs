//! What must be true of the streams, whatever happened to the disk.

use std::collections::{BTreeMap, BTreeSet};

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
    /// The stream it was meant for; None when it may be another.
    pub(super) meant: Option<u64>,
    /// The stream that has it, once that is certain.
    pub(super) home: Option<u64>,
    /// It was acknowledged or seen here, and must stay.
    pub(super) place: Option<u64>,
    /// Its time, once it was seen.
    pub(super) time: Option<u64>,
    /// It was refused, and must never be seen.
    pub(super) refused: bool,
}

impl Attempt {
    /// Where it ends in the stream that has it, once that is known.
    fn end(&self, stream: u64) -> Option<u64> {
        let place = self.place.filter(|_| self.home == Some(stream))?;
        Some(place + self.events.len() as u64)
    }

    pub(super) fn in_doubt(&self) -> bool {
        self.place.is_none() && !self.refused
    }
}

/// What is known of a stream.
#[derive(Clone, Default)]
pub(super) struct Known {
    /// There were at least so many events, durably.
    pub(super) floor: u64,
    /// The events before it were dropped, and that was acknowledged.
    pub(super) first: u64,
    /// Those before any of these may have been dropped, too.
    tried: BTreeSet<u64>,
    /// The first event that was there when it was last looked at.
    seen: u64,
}

impl Known {
    /// It keeps all events from this one on.
    pub(super) fn most(&self) -> u64 {
        self.tried.last().map_or(self.first, |tried| self.first.max(*tried))
    }

    /// Whether this may be the first event that it keeps.
    pub(super) fn may_begin(&self, first: u64) -> bool {
        first == self.first || first > self.first && self.tried.contains(&first)
    }

    /// Whether it may keep nothing.
    pub(super) fn may_be_empty(&self) -> bool {
        self.floor <= self.most()
    }
}

/// All that anybody tried, and what is known of it. Streams go by the inode of their log: one that
/// was removed, though its directory was not, and is used again is another.
#[derive(Default)]
pub(super) struct Model {
    pub(super) attempts: BTreeMap<u64, Attempt>,
    streams: BTreeMap<u64, Known>,
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
    pub(super) fn known(&self, stream: Option<u64>) -> Known {
        stream.and_then(|stream| self.streams.get(&stream)).cloned().unwrap_or_default()
    }

    fn stream(&mut self, stream: u64) -> &mut Known {
        self.streams.entry(stream).or_default()
    }

    pub(super) fn raise(&mut self, stream: u64, floor: u64) {
        let known = self.stream(stream);
        known.floor = floor.max(known.floor);
    }

    /// Somebody is about to drop the events before `first`.
    pub(super) fn dropping(&mut self, stream: u64, first: u64) {
        self.stream(stream).tried.insert(first);
    }

    /// That was acknowledged.
    pub(super) fn dropped(&mut self, stream: u64, first: u64) {
        let known = self.stream(stream);
        known.first = first.max(known.first);
    }

    /// The stream is another file now.
    pub(super) fn moved(&mut self, from: u64, to: u64) {
        let known = self.streams.remove(&from);
        self.streams.extend(known.map(|known| (to, known)));
        for attempt in self.attempts.values_mut() {
            for stream in attempt.home.iter_mut().chain(&mut attempt.meant) {
                *stream = if *stream == from { to } else { *stream };
            }
        }
    }

    /// These streams are no more.
    pub(super) fn forget(&mut self, removed: &BTreeSet<u64>) {
        self.streams.retain(|stream, _| !removed.contains(stream));
    }

    /// Streams that ever held events, durably, and whether they may be empty.
    pub(super) fn streams(&self) -> impl Iterator<Item = (u64, bool)> + '_ {
        let held = self.streams.iter().filter(|(_, known)| known.floor > 0);
        held.map(|(stream, known)| (*stream, known.may_be_empty()))
    }

    pub(super) fn in_doubt(&self, stream: Option<u64>) -> bool {
        let mut attempts = self.attempts.values();
        attempts.any(|a| (a.meant.is_none() || a.meant == stream) && a.in_doubt())
    }

    /// Whether a stream certainly keeps nothing.
    pub(super) fn is_empty(&self, stream: Option<u64>) -> bool {
        let known = self.known(stream);
        let nowhere = |a: &Attempt| a.place.is_some() && a.home.is_none();
        known.floor == known.first
            && known.first == known.most()
            && !self.in_doubt(stream)
            && !self.attempts.values().any(nowhere)
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
            Err(_) if home.is_none() => attempt.meant = None,
            Err(_) => {}
        }
        Ok(())
    }

    /// What was in doubt, and is not there after a recovery of everything, never comes.
    pub(super) fn settle(&mut self) {
        for attempt in self.attempts.values_mut() {
            attempt.refused |= attempt.in_doubt();
        }
        for known in self.streams.values_mut() {
            known.first = known.seen.max(known.first);
            known.tried.clear();
        }
    }

    /// The batch that the first of the kept events is in the middle of, and its place.
    fn cut(&self, stream: u64, first: u64) -> Option<(u64, u64)> {
        let cut = |(id, attempt): (&u64, &Attempt)| {
            let (place, end) = (attempt.place?, attempt.end(stream)?);
            (place < first && first < end).then_some((*id, place))
        };
        self.attempts.iter().find_map(cut)
    }

    /// Compares what a stream keeps from the event `first` on with what it must. What is seen must
    /// stay. `least`: while another engine is at work, so many events.
    pub(super) fn compare(
        &mut self,
        stream: u64,
        first: u64,
        kept: &[Event],
        least: Option<u64>,
    ) -> Result<(), String> {
        let count = first + kept.len() as u64;
        let known = self.stream(stream);
        if !known.may_begin(first) {
            let (least, most) = (known.first, known.most());
            return Err(format!("its first event is {first}, not {least}, or up to {most}"));
        }
        known.seen = first;
        let placed = self.compare_batches(stream, first, kept)?;
        let here = |a: &&Attempt| a.end(stream).is_some_and(|end| end > first);
        let there = self.attempts.values().filter(here).count();
        let floor = self.stream(stream).floor;
        let all = there == placed && count >= floor;
        if !least.map_or(all, |least| count >= least) {
            return Err(format!(
                "{placed} of {there} batches are there, and {count} of {floor} events"
            ));
        }
        self.raise(stream, count);
        Ok(())
    }

    /// How many batches there are.
    fn compare_batches(
        &mut self,
        stream: u64,
        first: u64,
        kept: &[Event],
    ) -> Result<usize, String> {
        let cut = self.cut(stream, first);
        let (mut rest, mut began, mut time, mut group, mut placed) = (kept, 0, 0, 0, 0);
        while let [event, ..] = rest {
            let at = event.index;
            let cut = cut.filter(|_| at == first);
            let id = cut.map(|(id, _)| id).or_else(|| id_of(event));
            let Some((id, attempt)) = id.and_then(|id| Some((id, self.attempts.get_mut(&id)?)))
            else {
                return Err(format!("event {at}: nobody wrote this batch"));
            };
            let begin = cut.map_or(at, |(_, place)| place);
            let events = &attempt.events[(at - begin) as usize..];
            let batch = &rest[..rest.len().min(events.len())];
            let same = |event: &Event| event.time == batch[0].time;
            let wrong: Vec<_> = [
                (!events.iter().eq(batch.iter().map(|e| &e.bytes)), "is not whole"),
                (!batch.iter().all(same), "has not one time"),
                (attempt.time.is_some_and(|time| time != event.time), "has another time"),
                (attempt.refused, "was refused"),
                (attempt.place.is_some_and(|place| place != begin), "moved"),
                (attempt.home.is_some_and(|home| home != stream), "is another stream's"),
                (attempt.guard.is_some_and(|guard| guard != begin), "was guarded"),
                (attempt.ended < began, "is out of order"),
                (event.time < time, "is earlier"),
                (event.time == time && attempt.group != group, "is not later"),
            ]
            .into_iter()
            .filter_map(|(wrong, what)| wrong.then_some(what))
            .collect();
            if !wrong.is_empty() {
                return Err(format!("event {at}: batch {id:x} {}", wrong.join(", ")));
            }
            (attempt.place, attempt.home) = (Some(begin), Some(stream));
            attempt.time = Some(event.time);
            placed += 1;
            (began, time, group) = (attempt.began, event.time, attempt.group);
            rest = &rest[batch.len()..];
        }
        Ok(placed)
    }

    /// The events of a stream that were dropped, as they were.
    pub(super) fn remember(&self, stream: Option<u64>, first: u64) -> Vec<Event> {
        let here = |a: &&Attempt| stream.and_then(|s| a.end(s)).is_some() && a.place < Some(first);
        let mut batches: Vec<&Attempt> = self.attempts.values().filter(here).collect();
        batches.sort_by_key(|attempt| attempt.place);
        let mut all = Vec::new();
        for attempt in batches {
            let time = attempt.time.unwrap_or_default();
            for (index, bytes) in (attempt.place.unwrap_or_default()..first).zip(&attempt.events) {
                all.push(Event { index, time, bytes: bytes.clone() });
            }
        }
        all
    }

    /// An acknowledged batch that no stream was found to hold.
    pub(super) fn homeless(&self) -> Option<u64> {
        let mut all = self.attempts.iter();
        let lost = |a: &Attempt| a.place.is_some() && a.home.is_none();
        let found = all.find(|(_, attempt)| lost(attempt));
        found.map(|(id, _)| *id)
    }
}
