//! What was found of a stream -> what to do with it. Total and pure.
//!
//! The instant of commit is the return of `fdatasync` on the log: from then on a batch is never
//! given up. The instant of visibility is the write of the count, the last eight bytes of a
//! commit. The count is never synced on the way, so a crash can leave it behind the log, never
//! ahead of it. With that, log and index are in one of these states:
//!
//! | index                        | log                                        | what is done            |
//! |------------------------------|--------------------------------------------|-------------------------|
//! | counts n, entries sound      | n events, then zeros                       | nothing                 |
//! | counts n, entries are holes or wrong | n events, then zeros               | entries derived when met|
//! | counts n                     | n events, then more zeros than are taken in advance | cut: of a large batch that never came |
//! | counts n                     | n events, some damaged before one that the index knows  | nothing: these alone cannot be read |
//! | counts n                     | n events, whole batches more, then zeros   | adopt the batches: the crash came between the sync and the count, or took the count's page |
//! | counts n                     | n events (and whole batches), then a batch without its end, or anything but zeros | adopt, cut the rest: its commit was never acknowledged |
//! | counts n                     | fewer than n events that check             | lost: the disk gave up acknowledged data; no appends, what is intact stays readable |
//! | counts n                     | the n-th is inside a batch without its end | lost, too               |
//! | absent, cut short of its header, or another log's | whole batches, or nothing, then zeros | adopt all: the index is made again, as another file |
//! | absent, or another log's     | whole batches, then anything else          | adopt, keep a copy of the rest beside the log, cut it: nothing says how much was acknowledged |
//! | absent, or another log's     | a frame that does not check, a valid one directly behind | lost       |
//! | another log's, as in a copy  | a frame that does not check, a valid one behind it where that index says | lost |
//! | any                          | fewer events than this process knows of    | lost: they were acknowledged, whatever the index says |
//!
//! What the count covers and the disk does not give (EIO) is as lost as what does not check; an
//! error beyond the count is the caller's, and nothing is changed for it. Where there is no room to
//! adopt or cut, what is counted can be read, and each append tries again. A store that is open for
//! reading only walks in memory and changes nothing.
//!
//! To adopt is to write the batches again in place and sync them before the count moves: they may
//! be in the page cache only, or on pages whose sync has failed. To cut is ftruncate and fsync,
//! before anything is written there again: otherwise old frames may come back beneath new ones.
//!
//! The order of the log's batches follows VSR's and TigerBeetle's habit of making recovery a table
//! (`src/vsr/journal.zig`).

use crate::frame::Frame;

/// A walk over frames, one after the other, that knows where the last whole batch ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Walk {
    /// Index of the next frame.
    pub next: u64,
    /// Log offset of the next frame.
    pub at: u64,
    /// The time of the frame before it, 0 when there is none.
    pub time: u64,
    /// The frame before it did not end its batch.
    pub inside: bool,
    /// Events up to the end of the last whole batch. A walk begun inside a batch, of which it has
    /// not seen the end, counts one less than there are before where it began.
    pub whole: u64,
    /// Log offset there, or where it began.
    pub end: u64,
    /// Time of the last whole batch.
    pub whole_time: u64,
}

impl Walk {
    /// A walk that begins at event `next` at log offset `at`, behind the frame `before`.
    pub fn new(next: u64, at: u64, before: Option<&Frame<'_>>) -> Walk {
        let time = before.map_or(0, |frame| frame.time);
        let inside = before.is_some_and(|frame| !frame.last);
        Walk { next, at, time, inside, whole: next - u64::from(inside), end: at, whole_time: time }
    }

    /// Goes over `frame`. False, and nothing changes, when it does not continue the log: a batch
    /// begins with a first frame, shares one time, and that is later than the batch's before.
    #[must_use]
    pub fn step(&mut self, frame: &Frame<'_>) -> bool {
        let fits = if self.inside {
            !frame.first && frame.time == self.time
        } else {
            frame.first && frame.time > self.time
        };
        if !fits {
            return false;
        }
        self.next += 1;
        self.at += frame.size();
        self.time = frame.time;
        self.inside = !frame.last;
        if frame.last {
            (self.whole, self.end, self.whole_time) = (self.next, self.at, self.time);
        }
        true
    }

    /// Goes over a frame of `size` bytes that does not check, to the valid one behind it.
    pub fn skip(&mut self, size: u64, behind: &Frame<'_>) {
        self.next += 1;
        self.at += size;
        self.inside = !behind.first;
        self.time = behind.time - u64::from(behind.first);
    }
}

/// What was found of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The count, when there is an index and it is this log's.
    pub indexed: Option<u64>,
    /// So many events this process knows to have been acknowledged, 0 when it knows nothing.
    pub known: u64,
    /// Events up to the end of the last whole batch that a walk from the last sound entry reached.
    pub whole: u64,
    /// The walk went over a frame that does not check, to a valid one directly behind it; or the
    /// index of another log, which is none, leads to one behind where the walk ended.
    pub gap: bool,
    /// Behind the last whole batch there are only zeros.
    pub clean: bool,
    /// There are many more zeros than preallocation leaves: of a large batch that never came.
    pub long: bool,
}

/// What to do with a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Acknowledged events are missing or damaged: take no appends, change nothing.
    Lost,
    /// It can be used, after these steps.
    Use {
        /// Write what is beyond the count again, sync, and move the count.
        adopt: bool,
        /// Cut off what lies behind the last whole batch, and sync.
        cut: bool,
    },
}

/// Decides. See the table above.
pub fn decide(facts: Facts) -> Decision {
    match facts.indexed {
        Some(count) if facts.whole < count => Decision::Lost,
        None if facts.gap => Decision::Lost,
        _ if facts.whole < facts.known => Decision::Lost,
        count => {
            Decision::Use { adopt: count != Some(facts.whole), cut: !facts.clean || facts.long }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_combination_is_decided_as_the_table_says() {
        for indexed in [None, Some(0), Some(1), Some(2), Some(3)] {
            for bits in 0..128u8 {
                let facts = Facts {
                    indexed,
                    known: u64::from(bits >> 5),
                    whole: u64::from(bits >> 3 & 3),
                    gap: bits & 1 != 0,
                    clean: bits & 2 != 0,
                    long: bits & 4 != 0,
                };
                match decide(facts) {
                    Decision::Lost => assert!(match indexed {
                        _ if facts.known > facts.whole => true,
                        Some(count) => count > facts.whole,
                        None => facts.gap,
                    }),
                    Decision::Use { adopt, cut } => {
                        assert!(indexed.is_none_or(|count| count <= facts.whole));
                        assert!(facts.known <= facts.whole);
                        assert!(indexed.is_some() || !facts.gap);
                        assert_eq!(adopt, indexed != Some(facts.whole));
                        assert_eq!(cut, !facts.clean || facts.long);
                    }
                }
            }
        }
    }

    fn frame(first: bool, last: bool, time: u64) -> Frame<'static> {
        Frame { first, last, time, line: b"x\n" }
    }

    #[test]
    fn a_walk_stops_where_the_batches_stop() {
        let mut walk = Walk::default();
        assert!(!walk.step(&frame(false, true, 5)), "a batch begins with FIRST");
        assert!(walk.step(&frame(true, false, 5)));
        assert!(!walk.step(&frame(false, true, 6)), "a batch shares one time");
        assert!(!walk.step(&frame(true, true, 5)), "a batch ends before the next");
        assert_eq!((walk.next, walk.whole), (1, 0));
        assert!(walk.step(&frame(false, true, 5)));
        assert_eq!((walk.whole, walk.end, walk.whole_time), (2, 36, 5));
        assert!(!walk.step(&frame(true, true, 5)), "time increases");
        assert!(walk.step(&frame(true, true, 6)));
    }

    #[test]
    fn a_walk_may_begin_inside_a_batch() {
        let mut walk = Walk::new(7, 100, Some(&frame(true, false, 5)));
        assert_eq!((walk.whole, walk.end), (6, 100), "it may have no end");
        assert!(!walk.step(&frame(true, true, 6)));
        assert!(walk.step(&frame(false, true, 5)));
        assert_eq!(walk.whole, 8);
    }
}
