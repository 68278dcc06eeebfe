//! What a commit asks of the disk, and that syncs are shared and go on side by side.

use super::watched;
use std::sync::{Arc, Barrier};
use tempfile::TempDir;

#[test]
fn a_commit_is_one_sync_and_the_word_that_shows_it_comes_last() {
    let dir = TempDir::new().unwrap();
    let (store, seen) = watched(&dir);
    store.create("s", 0o755).unwrap();
    let s = store.stream("s").unwrap();
    seen.take();
    s.append(["first"], None).unwrap();
    assert_eq!(
        seen.take(),
        ["index", "log", "sync", "sync names", "sync names", "index"],
        "there is room for what comes last, and before it all names are durable"
    );
    for _ in 0..3 {
        s.append(["one", "more"], None).unwrap();
        assert_eq!(seen.take(), ["log", "sync", "index"]);
    }
    s.append(["x".repeat(5000)], None).unwrap();
    assert_eq!(seen.take(), ["log", "index", "sync", "index"], "with the entry of a page");
    s.append([""; 0], None).unwrap();
    assert!(seen.take().is_empty(), "no events, nothing happens");
}

#[test]
fn batches_that_wait_share_a_sync() {
    let dir = TempDir::new().unwrap();
    let (store, seen) = watched(&dir);
    store.create("s", 0o755).unwrap();
    let s = store.stream("s").unwrap();
    s.append(["first"], None).unwrap();
    seen.take();
    // The first commit waits in its sync until the others have queued up behind it.
    let gate = Arc::new(Barrier::new(2));
    *seen.meet.lock().unwrap() = Some(gate.clone());
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..9)
            .map(|n| {
                let writer = scope.spawn({
                    let s = s.clone();
                    move || s.append([format!("{n}")], None).unwrap()
                });
                if n == 0 {
                    while !seen.calls.lock().unwrap().contains(&"sync") {
                        std::thread::yield_now();
                    }
                }
                writer
            })
            .collect();
        // They are in the queue when they do not come back; there is nothing to see of that.
        std::thread::sleep(std::time::Duration::from_millis(300));
        *seen.meet.lock().unwrap() = None;
        gate.wait();
        let mut indices: Vec<u64> = writers.into_iter().map(|w| w.join().unwrap()).collect();
        indices.sort_unstable();
        assert_eq!(indices, (1..=9).collect::<Vec<_>>());
    });
    let syncs = seen.take().iter().filter(|call| **call == "sync").count();
    assert_eq!(syncs, 2, "one for the first, one for the eight behind it");
}

#[test]
fn streams_sync_in_parallel() {
    let dir = TempDir::new().unwrap();
    let (store, seen) = watched(&dir);
    for name in ["a", "b", "c"] {
        store.create(name, 0o755).unwrap();
    }
    // No sync comes back before three are under way.
    *seen.meet.lock().unwrap() = Some(Arc::new(Barrier::new(3)));
    std::thread::scope(|scope| {
        for name in ["a", "b", "c"] {
            let store = &store;
            scope.spawn(move || store.stream(name).unwrap().append(["x"], None).unwrap());
        }
    });
}
