//! What a stream keeps: dropping old events, removal, another name.

use std::path::Path;
use std::sync::Arc;

use crate::disk::{Disk, Held};
use crate::error::{Error, Result};
use crate::log::Files;
use crate::page::{self, Head};
use crate::spill::write_all;
use crate::stream::Stream;
use crate::sys::lock;

impl<D: Disk> Stream<D> {
    /// Drops the events before `first`, durably. Their pages are given back to the file system where
    /// it can; indices never change.
    ///
    /// # Errors
    /// [`Error::Invalid`] where there is no such event, nor the next to come, or it is dropped already.
    pub fn drop_before(self: &Arc<Self>, first: u64) -> Result<()> {
        self.locked(|files, tip| {
            let (disk, log, before) = (self.disk(), files.log()?, files.head()?);
            if first < before.first || first > tip.count {
                return Err(Error::Invalid);
            }
            if tip.count == 0 {
                return Ok(());
            }
            let (at, view) = match first {
                // The place belongs to the event: who has read the head may go by it.
                _ if first == before.first => (before.at, before.view),
                _ if first == tip.count => (tip.at, tip.view),
                _ => {
                    let spot = files.event(&mut files.scan_seen(0, &tip), &tip, first)?;
                    (spot.block.at, spot.view())
                }
            };
            let head = Head { first, at, view, ..before };
            // A host that crashes must not leave a `last` to the others that is before the first event.
            // Written anew, for what a failed sync was to write counts as written.
            files.publish(tip.at, before.seed)?;
            let index = files.index.as_ref().map_or(Ok(()), |index| disk.sync_data(index));
            index.map_err(self.os("index"))?;
            // Also when it says so already: an earlier try may be in the cache only.
            write_all(disk, log, &head.encode(), 0).map_err(self.os("log"))?;
            // A client cut off from a distributed file system may learn it at the second.
            let synced = disk.sync_data(log).and_then(|()| disk.stat(log));
            synced.map_err(self.os("log")).map_err(|error| self.unknown(&error))?;
            *lock(&files.head) = head;
            self.shared.status.dropped(first - before.first, view - before.view);
            self.punch(files, at);
            Ok(())
        })
    }

    /// Gives back the whole pages of the log before that of the block at `at`, but for the first one, and
    /// what the index says of them. The drop holds also where that cannot be done.
    fn punch(&self, files: &Files<D>, at: u64) {
        let page = |at: u64| at - at % page::PAGE;
        let log = files.log.as_ref().map(|log| (log, page(at)));
        let index = files.index.as_ref().map(|index| (index, page(page::entry_at(at))));
        for (file, to) in log.into_iter().chain(index).filter(|(_, to)| *to > page::PAGE) {
            if let Err(error) = self.disk().punch(file, page::PAGE, to) {
                (self.shared.log)(&format!(
                    "stream {:?}: what was dropped keeps its space: {error}",
                    self.title()
                ));
            }
        }
    }

    // ---- names -------------------------------------------------------------------------------

    /// Runs `remove` under the locks of the stream, with the count, unless it keeps events, or its name leads
    /// to `other` by now.
    pub(crate) fn empty(
        self: &Arc<Self>,
        other: Option<u64>,
        remove: impl FnOnce(u64) -> Result<()>,
    ) -> Result<()> {
        self.locked(|files, tip| match files.head()?.first {
            _ if Some(files.identity) == other || !files.matched()? => Err(Error::NotFound),
            first if first == tip.count => remove(first),
            _ => Err(Error::NotEmpty),
        })
    }

    /// Gives the stream another name by `rename`, while it commits nothing.
    pub(crate) fn rename(
        self: &Arc<Self>,
        name: &Path,
        rename: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let _writer = lock(&self.writer);
        let files = self.files()?;
        let held = Held::new(self.shared.disk.clone(), files.log.as_ref(), false);
        let held = held.map_err(self.os("log")).inspect_err(|_| self.close())?;
        let renamed = rename();
        if renamed.is_ok() {
            *lock(&self.name) = name.into();
        }
        // XFS reports a shutdown to who syncs a file, not to who syncs the directory.
        let synced = files.log.as_ref().map_or(Ok(()), |log| self.disk().sync_data(log));
        let released = synced.and_then(|()| held.release()).map_err(self.os("log"));
        self.close();
        renamed.and(released)
    }
}
