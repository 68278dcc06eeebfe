//! Damage: whatever became of the bytes of a log or an index, what is served is right or an error.
//!
//! The engine works on the real disk here, on files that were damaged in every way of a kind: each
//! byte flipped, each length cut, each older state of a tail put back. What is to be expected is worked
//! out from the format, see `format.rs`. `daemon` does it to a daemon that is running.
//!
//! A damaged block costs the events that have bytes in it, and no other. Where the block at `last` is damaged or missing the stream is *lost*: what is
//! intact is read, its end is an error, and nothing is appended.
//!
//! Without an index nobody knows what was acknowledged last: what is damaged in the last commit cannot be
//! told from a commit that never came to its end, and goes in silence. All else holds without one, too.

mod bench;
mod daemon;
mod kinds;
mod loss;
mod pairs;
mod recovery;
mod want;

use crate::format::{Block, blocks};
use crate::harness::*;
use smolstore::disk::Real;
use smolstore::{Store, Stream};
use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use tempfile::TempDir;

/// A store in memory with a stream `s` of so many one-event batches; its log and index.
fn stream_of(count: u64, event: impl Fn(u64) -> String) -> (TempDir, File, File) {
    let dir = TempDir::new_in("/dev/shm").or_else(|_| TempDir::new()).unwrap();
    let store = Store::open(dir.path(), false).unwrap();
    store.create("s", 0o755).unwrap();
    let stream = store.stream("s").unwrap();
    for n in 0..count {
        stream.append([event(n)], None).unwrap();
    }
    let open = |name| File::options().read(true).write(true).open(dir.path().join(name)).unwrap();
    let files = (open("s/log"), open("s/index"));
    (dir, files.0, files.1)
}

/// That stream, by a mount of its own.
fn opened(store: &Path, read_only: bool) -> Arc<Stream<Real>> {
    Store::open(store, read_only).unwrap().stream("s").unwrap()
}

/// The log in that store, and its blocks.
fn log_in(dir: &TempDir) -> (Vec<u8>, Vec<Block>) {
    let log = read(dir.path().join("s/log"));
    let blocks = blocks(&log);
    (log, blocks)
}
