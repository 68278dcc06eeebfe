//! What changes more than the end of a stream: its first event, its name, its files.

use std::path::Path;
use std::sync::Arc;

use smolstore::Error;

use super::work::NAMES;
use super::world::READER;
use super::{All, Engine, Sim};

impl Sim {
    /// Somebody deletes an index, or it loses some of what it says.
    pub(super) fn rob(&self, name: &str) {
        let index = Path::new(name).join("index");
        let mut w = self.world();
        if w.rng.one_in(2) {
            if w.unlink(&index).is_ok() {
                w.note(format!("  unlink {name}/index"));
                w.count("indexes deleted");
            }
        } else if w.spoil(&index) {
            w.note(format!("  spoil {name}/index"));
            w.count("indexes spoiled");
        }
    }

    /// Drops the events before one that is there, or is not.
    pub(super) fn drop_before(self: &Arc<Sim>, engine: usize, store: &Engine, name: &str) {
        // Nobody takes the name away meanwhile: what was dropped, and of what, would be in doubt.
        let others = std::mem::replace(&mut self.world().steady, true);
        let emptied = self.drop_some(engine, store, name).unwrap_or(false);
        self.world().steady = others;
        if emptied && !others && self.roll(3) == 0 {
            self.remove(engine, store, name);
        }
    }

    /// Whether all events were dropped.
    fn drop_some(&self, engine: usize, store: &Engine, name: &str) -> Option<bool> {
        let stream = self.stream(engine, store, name)?;
        // What was never seen nobody could tell from what is missing.
        let reader = self.store(READER);
        let (who, seen) = if self.roll(2) == 0 { (engine, store) } else { (READER, &*reader) };
        let All { events, first } = self.check_all(who, seen, name)?;
        let (count, before) = (events.len() as u64, self.before(name));
        let (log, known) = (before.stream?, self.model(|model| model.known(before.stream)));
        let n = match self.roll(8) {
            0 | 1 => count,
            2 => first,
            3 => known.most(),
            4 => [first.saturating_sub(1), count + 1_000_000][self.roll(2)],
            _ => first + self.roll((count - first) as usize + 1) as u64,
        };
        let there = n <= count.max(known.most());
        if there {
            self.model(|model| model.dropping(log, n));
        }
        let mut result = stream.drop_before(n);
        if matches!(result, Err(Error::Unknown { .. })) && self.roll(2) == 0 {
            self.note(format!("  {engine} drops {n} in {name}: {result:?}, again"));
            result = stream.drop_before(n);
        }
        self.note(format!("  {engine} drops {n} of {count} in {name}: {result:?}"));
        let (quiet, sound) = (self.quiet(&before), self.sound(&before));
        let now = self.model(|model| model.known(before.stream));
        let fits = match &result {
            Ok(()) => there && n >= now.first,
            Err(Error::Invalid) => !there || n < now.most(),
            Err(Error::Damaged { .. }) => !sound,
            // It has no name any more, or not yet.
            Err(Error::NotFound) => count == 0 || !quiet,
            Err(Error::Stopped { .. }) => false,
            Err(_) => !quiet,
        };
        if !fits {
            self.fail(format!("{result:?} is not an answer to drop {n} of {first}..{count}"));
        }
        self.world().count(match &result {
            Ok(()) => "drops acknowledged",
            Err(Error::Invalid) => "drops refused",
            Err(_) => "drops failed",
        });
        if result.is_ok() {
            self.model(|model| model.dropped(log, n));
        }
        Some(result.is_ok() && n == count)
    }

    /// An engine is asked for what may remove the stream of this name.
    fn removing<R>(&self, engine: usize, name: &str, run: impl FnOnce() -> R) -> R {
        self.world().removing[engine] = Some(name.into());
        let result = run();
        self.world().removing[engine] = None;
        result
    }

    pub(super) fn remove(self: &Arc<Sim>, engine: usize, store: &Engine, name: &str) {
        let before = self.before(name);
        let (known, empty) =
            self.model(|model| (model.known(before.stream), model.is_empty(before.stream)));
        let result = self.removing(engine, name, || store.remove(name));
        self.note(format!("  {engine} removes {name}: {result:?}"));
        let quiet = self.quiet(&before);
        let there = before.dir.is_some() && self.world().dir(name).ok() == before.dir;
        let fits = match &result {
            Ok(()) => !there,
            Err(Error::NotFound) => before.dir.is_none() || !quiet,
            Err(Error::NotEmpty) => !quiet || !empty,
            Err(Error::Os { errno: libc::ENOTEMPTY, .. }) => !quiet,
            Err(Error::Damaged { .. }) => false,
            Err(_) => !quiet,
        };
        if !fits || (quiet && result.is_ok() && !known.may_be_empty()) {
            self.fail(format!("{result:?} is not an answer to remove {name}"));
        }
        if result.is_ok() {
            let what = if known.floor > 0 { "emptied streams removed" } else { "streams removed" };
            self.world().count(what);
            if self.roll(3) == 0 {
                // And the name used anew.
                self.append(engine, store, name);
            }
        }
    }

    pub(super) fn rename(self: &Arc<Sim>, engine: usize, store: &Engine, from: &str) {
        let to = NAMES[self.roll(NAMES.len())];
        let (before, taken) = (self.before(from), self.before(to));
        let result = self.removing(engine, to, || store.rename(from, to));
        self.note(format!("  {engine} renames {from} to {to}: {result:?}"));
        let quiet = self.quiet(&before);
        let fits = match &result {
            Ok(()) => true,
            Err(Error::NotFound) => before.dir.is_none() || !quiet,
            Err(Error::NotEmpty) => taken.dir.is_some() || !quiet,
            Err(Error::Os { errno: libc::ENOTEMPTY, .. }) => !quiet,
            Err(Error::Damaged { .. }) => false,
            Err(_) => !quiet,
        };
        let now = self.world().dir(to).ok();
        if !fits || (quiet && result.is_ok() && now != before.dir) {
            self.fail(format!("{result:?} is not an answer to rename {from} {to}"));
        }
        if result.is_ok() && from != to {
            let mut w = self.world();
            w.count("streams renamed");
            if quiet && let Some(stream) = now {
                // It has this name for good, until somebody tries to change it.
                w.names.insert(stream, vec![to.into()]);
            }
            drop(w);
            if self.roll(3) == 0 {
                // And another stream the old one.
                self.append(engine, store, from);
            }
        }
    }
}
