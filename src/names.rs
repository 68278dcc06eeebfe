//! Numbers for the streams that the kernel knows, until it forgets them. Pure.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};

use crate::error::{Error, Result};
use crate::node::STREAM_BITS;

/// A stream that the kernel knows.
struct Known {
    /// Its name, unless that has another number by now, or none.
    name: OsString,
    /// Tells its directory in the store from all others, for good.
    identity: u64,
    /// How often the kernel was told of its nodes, less what it forgot.
    lookups: u64,
}

/// The streams that the kernel knows, by number and by name.
#[derive(Default)]
pub(crate) struct Names {
    known: HashMap<u32, Known>,
    numbers: HashMap<OsString, u32>,
    last: u32,
}

impl Names {
    /// The number of the stream `name`, a new one when it is not the directory it was; the kernel
    /// is about to be told of it.
    pub(crate) fn number(&mut self, name: &OsStr, identity: u64) -> Result<u32> {
        if let Some(number) = self.numbers.get(name)
            && let Some(known) = self.known.get_mut(number)
            && known.identity == identity
        {
            known.lookups += 1;
            return Ok(*number);
        }
        let mut numbers = (self.last + 1..1 << STREAM_BITS).chain(1..=self.last);
        let free = numbers.find(|number| !self.known.contains_key(number));
        self.last = free.ok_or_else(|| Error::Os {
            errno: libc::ENFILE,
            what: "more streams in use than there are numbers".into(),
        })?;
        self.known.insert(self.last, Known { name: name.into(), identity, lookups: 1 });
        self.numbers.insert(name.into(), self.last);
        Ok(self.last)
    }

    /// Name and identity of a stream, if it still has a name.
    pub(crate) fn get(&self, number: u32) -> Option<(&OsString, u64)> {
        let Known { name, identity, .. } = self.known.get(&number)?;
        (self.numbers.get(name) == Some(&number)).then_some((name, *identity))
    }

    /// What has the name has none now.
    pub(crate) fn remove(&mut self, name: &OsStr) {
        self.numbers.remove(name);
    }

    /// A stream has another name. What had that has none now.
    pub(crate) fn rename(&mut self, from: &OsStr, to: &OsStr) {
        self.numbers.remove(to);
        if let Some(number) = self.numbers.remove(from) {
            self.numbers.insert(to.into(), number);
            self.known.entry(number).and_modify(|known| known.name = to.into());
        }
    }

    /// The kernel is about to be told of a node.
    pub(crate) fn remember(&mut self, number: u32) {
        self.known.entry(number).and_modify(|known| known.lookups += 1);
    }

    /// The kernel has forgotten so many of the times it was told of nodes.
    pub(crate) fn forget(&mut self, number: u32, lookups: u64) {
        let Some(known) = self.known.get_mut(&number) else {
            return;
        };
        known.lookups = known.lookups.saturating_sub(lookups);
        if known.lookups == 0
            && let Some(Known { name, .. }) = self.known.remove(&number)
            && self.numbers.get(&name) == Some(&number)
        {
            self.numbers.remove(&name);
        }
    }
}
