//! Reading, while the disk may fail and others are at work: right, or an error.

use std::sync::Arc;

use smolstore::check::Finding;
use smolstore::{Error, Event};

use super::world::lock;
use super::{All, Engine, Sim, Stream};

impl Sim {
    /// Reads in all ways, while the disk may fail: right, or an error.
    pub(super) fn read(&self, engine: usize, store: &Engine, name: &str) {
        let before = self.before(name);
        let Some(stream) = self.stream(engine, store, name) else {
            return;
        };
        self.note(format!("  {engine} reads {name}"));
        let before = self.opened(before, name);
        let dropped = self.model(|model| model.known(before.stream)).first;
        let (Ok(first), Ok(count)) = (stream.first(), stream.count()) else { return };
        let mut seen: Vec<(u64, Result<Event, Error>)> = Vec::new();
        for _ in 0..4 {
            let n = self.roll(count as usize + 1) as u64;
            let event = stream.event(n);
            let right = match &event {
                Ok(_) => (first..count).contains(&n),
                Err(Error::Dropped) => n < first,
                Err(error) => *error == Error::NotFound && n == count,
            };
            if self.quiet(&before) && !right {
                self.fail(format!("event {n} of {first}..{count}: {event:?}"));
            }
            seen.push((n, event));
        }
        let from = self.roll(count as usize + 1) as u64;
        for (n, event) in (from..).zip(stream.read(from).into_iter().flatten()) {
            seen.push((n, event));
        }
        let Some(log) = before.stream.filter(|_| self.stands(&before)) else { return };
        let view = self.read_view(&stream, log, self.a_byte(before.stream, first));
        let times: Vec<u64> =
            seen.iter().filter_map(|(_, e)| Some(e.as_ref().ok()?.time)).collect();
        let time = self.a_time(&times);
        let since = stream.since(time);
        let (quiet, sound) = (self.quiet(&before), self.sound(&before));
        if !self.stands(&before) {
            return;
        }
        // What is counted is durable.
        self.model(|model| model.raise(log, count));
        let Some(all) = self.check_all(engine, store, name) else {
            return;
        };
        self.world().count("reads compared");
        let known = self.model(|model| model.known(before.stream));
        for (n, event) in seen {
            let right = match &event {
                Ok(event) => n >= dropped && all.events.get(n as usize) == Some(event),
                Err(Error::Dropped) => n < known.most(),
                Err(Error::NotFound) => n >= count || !sound,
                // What cannot be read passes for damaged.
                Err(_) => !sound,
            };
            if !right {
                self.fail(format!("event {n} of {name} read as {event:?}, {dropped} were dropped"));
            }
        }
        self.check_view(&all, &view, [dropped, known.most(), count], [quiet, sound]);
        let Ok(since) = since else {
            if sound {
                self.fail(format!("since {time} is {since:?}"));
            }
            return;
        };
        let (earlier, later) = all.events.split_at((since as usize).min(all.events.len()));
        let right = (since >= dropped || since >= count)
            && (earlier.last().is_none_or(|event| event.time < time) || known.may_begin(since))
            && later.first().is_none_or(|event| event.time >= time || since >= count);
        if !right {
            self.fail(format!("since {time} is {since}, of {dropped}..{count}"));
        }
    }

    /// `check` finds nothing wrong where nothing is.
    pub(super) fn verify(&self, engine: usize, store: &Engine, name: &str) {
        let before = self.before(name);
        let (mut found, mut verified) = (Vec::new(), 0);
        let mut progress = |events, _| verified = events;
        let result = store.check(name, &mut |finding| found.push(finding), &mut progress);
        self.note(format!("  {engine} verifies {name}: {result:?}, {found:?}"));
        let wrong = found.iter().any(|finding| matches!(finding, Finding::Fault { .. }));
        let missing = result == Err(Error::NotFound) && before.dir.is_none();
        if wrong && self.sound(&before) || result.is_err() && !missing && self.quiet(&before) {
            self.fail(format!("checking {name}: {result:?}, {found:?}"));
        }
        let least = self.model(|model| model.known(before.stream)).floor;
        let most = before.dir.map_or(0, |dir| self.world().tip(dir).count);
        if self.quiet(&before) && !(least..=most).contains(&verified) {
            self.fail(format!("checking {name}: {verified} events of {least} to {most}"));
        }
        self.world().count("streams verified");
    }

    /// A time to look for: that of an event, or near it.
    fn a_time(&self, seen: &[u64]) -> u64 {
        let time = seen.get(self.roll(seen.len())).copied().unwrap_or_default();
        [0, u64::MAX, time - time.min(1), time, time + 1][self.roll(5)]
    }

    /// A place in the view: anywhere, or where what is kept begins, or just before.
    fn a_byte(&self, stream: Option<u64>, first: u64) -> u64 {
        let gone = self.model(|model| model.remember(stream, first));
        let gone: usize = gone.iter().map(|event| event.bytes.len() + 1).sum();
        match self.roll(4) {
            0 => gone.saturating_sub(self.roll(2)) as u64,
            _ => self.roll([100, 3000, 100_000][self.roll(3)]) as u64,
        }
    }

    /// Reads a part of the view in order: its offset, the bytes, and how that ended.
    fn read_view(&self, stream: &Arc<Stream>, of: u64, from: u64) -> View {
        let (mut bytes, mut ended) = (Vec::new(), Ok(true));
        // The hint may be from long ago.
        let mut cursor = lock(&self.cursors).get(&of).copied().unwrap_or_default();
        for _ in 0..6 {
            let size = 1 + self.roll([100, 5000, 100_000][self.roll(3)]);
            ended = stream.read_view(from + bytes.len() as u64, size, &mut cursor).map(|more| {
                bytes.extend(&more);
                more.len() == size
            });
            if ended != Ok(true) {
                break;
            }
        }
        lock(&self.cursors).insert(of, cursor);
        View { from, bytes, ended }
    }

    /// `dropped`: those before it were dropped before; those before `most` may have been meanwhile.
    fn check_view(
        &self,
        all: &All,
        View { from, bytes, ended }: &View,
        [dropped, most, count]: [u64; 3],
        [quiet, sound]: [bool; 2],
    ) {
        let line = |event: &Event| [&event.bytes[..], b"\n"].concat();
        let text: Vec<u8> = all.events.iter().flat_map(line).collect();
        let rest = text.get(*from as usize..).unwrap_or_default();
        let (here, counted) = (from + bytes.len() as u64, all.view(count));
        let right = match ended {
            Ok(whole) => *whole || here >= counted || !quiet,
            Err(Error::Dropped) => here < all.view(most),
            Err(_) => !sound,
        };
        let none = bytes.is_empty() || *from >= all.view(dropped);
        if !right || !none || !rest.starts_with(bytes) {
            let len = bytes.len();
            self.fail(format!(
                "the view from {from}: {len} bytes, {ended:?}, of {dropped}..{count}: {counted}"
            ));
        }
    }
}

/// What was read of the view: whether all that was asked for was there.
struct View {
    from: u64,
    bytes: Vec<u8>,
    ended: Result<bool, Error>,
}
