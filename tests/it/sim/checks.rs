//! What engines answer between operations, compared with the model.

use smolstore::{Error, Event};

use super::world::READER;
use super::{All, Engine, Sim};

impl Sim {
    pub(super) fn check(&self, engine: usize, store: &Engine, name: &str) {
        self.check_all(engine, store, name);
    }

    /// All that a stream holds, compared with the model.
    pub(super) fn check_all(&self, engine: usize, store: &Engine, name: &str) -> Option<All> {
        let mut w = self.world();
        // What is left over from an operation that failed may still be under way.
        if w.down || w.adrift[engine] || w.failure.is_some() {
            return None;
        }
        let (faults, calm) = (w.faults, std::mem::replace(&mut w.calm, true));
        let dir = w.dir(name).ok();
        let stream = dir.and_then(|dir| w.stream(dir));
        drop(w);
        let acknowledged = self.model(|model| model.known(stream).first);
        let read = || -> Result<(u64, Vec<Event>), Error> {
            let stream = store.stream(name)?;
            let first = stream.first()?;
            let mut events = stream.read(first.saturating_sub(2))?;
            for _ in 0..first.min(2) {
                match events.next() {
                    Some(Err(Error::Dropped)) => {}
                    Some(Err(error)) if !matches!(error, Error::Damaged { .. }) => {
                        return Err(error);
                    }
                    // A drop whose sync failed may be undone, and nobody was told that it holds.
                    Some(Ok(_)) if first > acknowledged => return Err(Error::Again),
                    other => self.fail(format!("{other:?} before event {first} of {name}")),
                }
            }
            Ok((first, events.collect::<Result<_, _>>()?))
        };
        // It may tell once more what failed before.
        let all = read().or_else(|_| read());
        let mut w = self.world();
        w.calm = calm;
        let blocked = w.faults > faults;
        // Whoever has the lock may be at work on what others have found behind the end.
        let published = dir.filter(|_| w.nested).map(|dir| w.published(dir));
        // It may have a log only now.
        let stream = dir.and_then(|dir| w.stream(dir));
        drop(w);
        match (all, dir) {
            (Ok((first, mut kept)), Some(_)) => {
                let compared = self.model(|model| match stream {
                    Some(stream) => model.compare(stream, first, &kept, published),
                    None if first == 0 && kept.is_empty() => Ok(()),
                    None => Err("it has no log, and events".into()),
                });
                if let Err(why) = compared {
                    self.fail(format!("stream {name}, {why}"));
                }
                let mut events = self.model(|model| model.remember(stream, first));
                events.append(&mut kept);
                if !events.iter().map(|event| event.index).eq(0..events.len() as u64) {
                    self.fail(format!("the events of stream {name} are not counted from 0"));
                }
                return Some(All { events, first });
            }
            (Err(Error::NotFound), None) => {}
            (Err(Error::Again), _) => {}
            (Err(_), _) if blocked => {}
            (all, _) => {
                let what = all.map_or_else(|error| error.to_string(), |_| "it is there".into());
                self.fail(format!("reading {name} without faults: {what}"));
            }
        }
        None
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.world().streams().keys().cloned().collect()
    }

    /// Each stream that ever held events has its name, or was removed when it may have held none.
    pub(super) fn find_all(&self) {
        let mut w = self.world();
        for (stream, may_be_empty) in self.model(|model| model.streams().collect::<Vec<_>>()) {
            let removed = may_be_empty && w.removed.contains(&stream);
            let home = w.home(stream);
            let named = home.map_or(removed, |(dir, name)| w.may_be_at(dir, name));
            if !named {
                let why = format!("stream {stream} is at {home:?}, which it cannot be");
                return w.fail(why);
            }
        }
    }

    /// What a reader sees that may not write, and so does not recover anything.
    pub(super) fn look(&self) {
        self.find_all();
        let writes = self.world().writes;
        let store = self.store(READER);
        for name in self.names() {
            self.check(READER, &store, &name);
        }
        if self.world().writes != writes {
            self.fail("reading only, something was written");
        }
    }
}
