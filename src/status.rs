//! What a store has done since it was opened: counters, and how long commits took; and the text
//! format of Prometheus (its "Exposition formats", version 0.0.4), in which they are told.
//!
//! Knows no file, clock or thread.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Four buckets for each power of two nanoseconds: a quantile is right to a quarter.
const BUCKETS: usize = 4 * 64;

/// What is counted, and what that is.
const COUNTERS: [(&str, &str); 10] = [
    ("commits_total", "Commits, one sync each"),
    ("batches_total", "Batches committed"),
    ("events_total", "Events committed"),
    ("bytes_total", "Bytes of the batches committed"),
    ("guards_lost_total", "Appends refused with EEXIST"),
    ("errors_total", "Appends refused with another error"),
    ("batches_abandoned_total", "Batches whose writer was killed"),
    ("events_abandoned_total", "Events of those batches"),
    ("events_dropped_total", "Events dropped"),
    ("bytes_dropped_total", "Bytes of the events dropped"),
];

/// Counters that only grow.
#[derive(Debug)]
pub struct Status {
    /// In the order of [`COUNTERS`].
    counters: [AtomicU64; COUNTERS.len()],
    /// Batches by how long they took.
    took: [AtomicU64; BUCKETS],
    longest: AtomicU64,
    /// Nanoseconds that all of them took.
    total: AtomicU64,
}

impl Default for Status {
    fn default() -> Status {
        let took = [const { AtomicU64::new(0) }; BUCKETS];
        let (longest, total) = (AtomicU64::default(), AtomicU64::default());
        Status { counters: Default::default(), took, longest, total }
    }
}

impl Status {
    fn add(&self, from: usize, counts: &[u64]) {
        for (counter, count) in self.counters[from..].iter().zip(counts) {
            counter.fetch_add(*count, Relaxed);
        }
    }

    /// A commit, which is one sync, was durable.
    pub fn commit(&self) {
        self.add(0, &[1]);
    }

    /// A batch of so many events and bytes was acknowledged, so many nanoseconds after it was
    /// handed in.
    pub fn batch(&self, events: u64, bytes: u64, nanos: u64) {
        self.add(1, &[1, events, bytes]);
        self.took[bucket(nanos)].fetch_add(1, Relaxed);
        self.longest.fetch_max(nanos, Relaxed);
        self.total.fetch_add(nanos, Relaxed);
    }

    /// An append was refused, because its guard was lost or because of an error.
    pub fn refused(&self, guard: bool) {
        self.add(if guard { 4 } else { 5 }, &[1]);
    }

    /// A batch of so many events was given up, for its writer was killed.
    pub fn abandoned(&self, events: u64) {
        self.add(6, &[1, events]);
    }

    /// So many events, and bytes of the view, were dropped.
    pub fn dropped(&self, events: u64, bytes: u64) {
        self.add(8, &[events, bytes]);
    }

    /// Not more than a quarter above the time within which this share of the batches was
    /// acknowledged, in nanoseconds.
    fn quantile(&self, share: f64) -> u64 {
        let took = self.took.each_ref().map(|bucket| bucket.load(Relaxed));
        let wanted = (share * took.iter().sum::<u64>() as f64).ceil() as u64;
        let mut seen = 0;
        let found = took.iter().position(|batches| {
            seen += batches;
            seen >= wanted.max(1)
        });
        let longest = self.longest.load(Relaxed);
        found.map_or(0, |bucket| edge(bucket).min(longest))
    }

    /// All of it as text, always of the same length, for some programs copy no more than a file had
    /// when they looked; and what else there is to tell: name, kind ("counter" or "gauge"), what it
    /// is, value.
    pub fn text(&self, more: &[(&str, &str, &str, f64)]) -> String {
        let counters = COUNTERS.iter().zip(&self.counters);
        let counters = counters
            .map(|((name, what), counter)| (*name, "counter", *what, counter.load(Relaxed) as f64));
        let version = env!("CARGO_PKG_VERSION");
        let mut text = format!(
            "# HELP smolstore_info The version that runs.\n# TYPE smolstore_info gauge\n\
             smolstore_info{{version=\"{version}\"}} 1\n"
        );
        for (name, kind, what, value) in counters.chain(more.iter().copied()) {
            // Writing to a string cannot fail.
            let _ = write!(
                text,
                "# HELP smolstore_{name} {what}.\n# TYPE smolstore_{name} {kind}\nsmolstore_{name} {value:>20}\n"
            );
        }
        let name = "smolstore_commit_seconds";
        let _ = writeln!(
            text,
            "# HELP {name} From a batch's close or fsync to its acknowledgement.\n# TYPE {name} summary"
        );
        for (which, nanos) in [
            ("{quantile=\"0.5\"}", self.quantile(0.5)),
            ("{quantile=\"0.99\"}", self.quantile(0.99)),
            ("{quantile=\"1\"}", self.longest.load(Relaxed)),
            ("_sum", self.total.load(Relaxed)),
        ] {
            let _ = writeln!(text, "{name}{which} {:>20}", nanos as f64 / 1e9);
        }
        let _ = writeln!(text, "{name}_count {:>20}", self.counters[1].load(Relaxed));
        text
    }
}

/// The bucket of so many nanoseconds: their highest bit, and the two below.
fn bucket(nanos: u64) -> usize {
    let nanos = nanos.max(4);
    let bits = nanos.ilog2();
    4 * bits as usize + (nanos >> (bits - 2)) as usize % 4
}

/// The most that a bucket holds.
fn edge(bucket: usize) -> u64 {
    let (bits, quarter) = (bucket / 4, bucket as u64 % 4);
    ((u128::from(quarter + 5) << bits >> 2) - 1).min(u128::from(u64::MAX)) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_bucket_is_right_to_a_quarter(nanos in 4u64..) {
            let edge = edge(bucket(nanos));
            prop_assert!(edge >= nanos && edge - nanos <= nanos / 4, "{nanos} {edge}");
            prop_assert!(edge == u64::MAX || bucket(edge + 1) == bucket(nanos) + 1);
        }
    }

    #[test]
    fn quantiles_are_of_what_was_told() {
        let status = Status::default();
        assert_eq!(status.quantile(0.5), 0);
        for micros in 1..=100 {
            status.batch(2, 10, micros * 1000);
        }
        assert!((50_000..=63_000).contains(&status.quantile(0.5)));
        assert!((99_000..=100_000).contains(&status.quantile(0.99)));
        status.refused(true);
        status.commit();
        let more = |value| [("open_files", "gauge", "Open files", value)];
        let text = status.text(&more(3.0));
        let long = Status::default();
        long.batch(1, 1, 123_456_789_012);
        assert_eq!(text.len(), long.text(&more(12_345.678_901)).len());
        for line in [
            "smolstore_commits_total 1",
            "smolstore_batches_total 100",
            "smolstore_events_total 200",
            "smolstore_bytes_total 1000",
            "smolstore_guards_lost_total 1",
            "smolstore_errors_total 0",
            "# TYPE smolstore_open_files gauge",
            "smolstore_open_files 3",
            "smolstore_commit_seconds{quantile=\"1\"} 0.0001",
            "smolstore_commit_seconds_sum 0.00505",
            "smolstore_commit_seconds_count 100",
        ] {
            let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
            assert!(text.lines().any(|found| words(found) == words(line)), "{line}: {text}");
        }
    }
}
