//! Streams and their names: what is open stays what it was, and a store is a `Vec` for each name.

use super::{payloads, watched, with_one};
use proptest::prelude::*;
use smolstore::page::HEAD;
use smolstore::{Error, Store, batch::Shape};
use std::fs;
use std::sync::Arc;
use tempfile::TempDir;

/// A stream may outlive its store, which must not keep it alive.
#[test]
fn a_stream_that_outlives_its_store_closes_its_files() {
    let dir = TempDir::new().unwrap();
    let (store, seen) = watched(&dir);
    store.create("s", 0o755).unwrap();
    let s = store.stream("s").unwrap();
    drop(store);
    assert_eq!(s.append(["event"], None), Ok(0));
    fs::remove_file(dir.path().join("s/index")).unwrap();
    assert_eq!(s.count(), Ok(1), "opened again");
    drop(s);
    assert_eq!(Arc::strong_count(&seen), 1, "somebody has the disk");
}

#[test]
fn a_stream_renamed_or_removed_by_another_process_is_not_mistaken_for_its_successor() {
    let dir = TempDir::new().unwrap();
    let [ours, theirs] = [(), ()].map(|()| Store::open(dir.path(), false).unwrap());
    ours.create("s", 0o755).unwrap();
    let open = ours.stream("s").unwrap();
    open.append(["a"], None).unwrap();
    theirs.rename("s", "t").unwrap();
    theirs.create("s", 0o755).unwrap();
    theirs.stream("s").unwrap().append(["b"], None).unwrap();
    // What is open is the stream it was, by name it is the new one.
    assert_eq!(open.append(["c"], None), Ok(1));
    assert_eq!(payloads(&ours, "s", 0), [b"b"]);
    assert_eq!(payloads(&ours, "t", 0), [b"a", b"c"]);
    ours.create("gone", 0o755).unwrap();
    let open = ours.stream("gone").unwrap();
    theirs.remove("gone").unwrap();
    assert_eq!(open.append(["x"], None), Err(Error::NotFound));
    assert_eq!(ours.stream("gone").err(), Some(Error::NotFound));
}

/// Or a host that crashes leaves a `last` to the others that is before the first event.
#[test]
fn a_drop_makes_durable_what_there_is_before_it_says_what_is_kept() {
    let (_dir, _, seen, s) = with_one();
    s.append(vec![[b'x'; 5000]; 3], None).unwrap();
    seen.take();
    s.drop_before(3).unwrap();
    assert_eq!(seen.take(), ["index", "sync", "log", "sync", "punch"]);
}

/// Who verifies the stream meanwhile goes by the place that it read.
#[test]
fn to_drop_what_is_dropped_moves_nothing() {
    let (dir, _, _, s) = with_one();
    let head = || fs::read(dir.path().join("s/log")).unwrap()[..HEAD].to_vec();
    s.drop_before(1).unwrap();
    let before = head();
    s.append(["more"], None).unwrap();
    s.drop_before(1).unwrap();
    assert_eq!(head(), before);
    assert_eq!((s.first(), s.event(1).unwrap().bytes), (Ok(1), b"more".to_vec()));
}

#[derive(Clone, Debug)]
enum Op {
    Create(usize),
    Append(usize, Vec<Vec<u8>>),
    Guarded(usize, i64, Vec<Vec<u8>>),
    Lines(usize, Vec<u8>),
    Abandon(usize, Vec<u8>),
    Read(usize, prop::sample::Index),
    Since(usize, prop::sample::Index),
    Rename(usize, usize),
    Remove(usize),
    DeleteIndex(usize),
    Reopen,
    /// The next operations go to the other of two stores on the directory.
    Switch,
}

fn op() -> impl Strategy<Value = Op> {
    let stream = || 0..3_usize;
    let event = prop_oneof![
        8 => prop::collection::vec(any::<u8>(), 0..40),
        1 => (1..70_000_usize).prop_map(|len| vec![b'x'; len]),
    ];
    let events = || prop::collection::vec(event.clone(), 0..5);
    let lines = "[a-c\n]{0,60}".prop_map(String::into_bytes);
    prop_oneof![
        3 => stream().prop_map(Op::Create),
        8 => (stream(), events()).prop_map(|(s, e)| Op::Append(s, e)),
        4 => (stream(), -1..2_i64, events()).prop_map(|(s, g, e)| Op::Guarded(s, g, e)),
        4 => (stream(), lines.clone()).prop_map(|(s, l)| Op::Lines(s, l)),
        1 => (stream(), lines).prop_map(|(s, l)| Op::Abandon(s, l)),
        6 => (stream(), any::<prop::sample::Index>()).prop_map(|(s, i)| Op::Read(s, i)),
        2 => (stream(), any::<prop::sample::Index>()).prop_map(|(s, i)| Op::Since(s, i)),
        1 => (stream(), stream()).prop_map(|(s, t)| Op::Rename(s, t)),
        1 => stream().prop_map(Op::Remove),
        1 => stream().prop_map(Op::DeleteIndex),
        1 => Just(Op::Reopen),
        2 => Just(Op::Switch),
    ]
}

const NAMES: [&str; 3] = ["a", "b", "c"];

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn a_store_is_a_vec_for_each_name(ops in prop::collection::vec(op(), 1..60)) {
        let dir = TempDir::new().unwrap();
        let open = || Store::open(dir.path(), false).unwrap();
        let mut stores = [open(), open()];
        let mut model: [Option<Vec<Vec<u8>>>; 3] = [None, None, None];
        for op in ops {
            let store = &stores[0];
            match op {
                Op::Switch => stores.swap(0, 1),
                Op::Reopen => stores[0] = open(),
                Op::Create(n) => {
                    let made = store.create(NAMES[n], 0o755);
                    prop_assert_eq!(made.is_ok(), model[n].is_none());
                    model[n].get_or_insert_default();
                }
                Op::Remove(n) => {
                    let removed = store.remove(NAMES[n]);
                    prop_assert_eq!(removed.is_ok(), model[n].as_ref().is_some_and(Vec::is_empty));
                    if removed.is_ok() {
                        model[n] = None;
                    }
                }
                Op::Rename(from, to) => {
                    let free = from == to || model[to].as_ref().is_none_or(Vec::is_empty);
                    let renamed = store.rename(NAMES[from], NAMES[to]);
                    prop_assert_eq!(renamed.is_ok(), model[from].is_some() && free);
                    if renamed.is_ok() && from != to {
                        model[to] = model[from].take();
                    }
                }
                Op::DeleteIndex(n) => {
                    let _ = std::fs::remove_file(dir.path().join(NAMES[n]).join("index"));
                }
                Op::Append(n, _) | Op::Guarded(n, _, _) | Op::Lines(n, _) | Op::Abandon(n, _)
                | Op::Read(n, _) | Op::Since(n, _) => {
                    let stream = store.stream(NAMES[n]);
                    let Some(events) = &mut model[n] else {
                        prop_assert_eq!(stream.err(), Some(Error::NotFound));
                        continue;
                    };
                    let (stream, next) = (stream.unwrap(), events.len() as u64);
                    match op {
                        Op::Append(_, new) => {
                            prop_assert_eq!(stream.append(&new, None), Ok(next));
                            events.extend(new);
                        }
                        Op::Guarded(_, off, new) => {
                            let guard = next.saturating_add_signed(off);
                            let done = stream.append(&new, Some(guard));
                            if guard == next {
                                prop_assert_eq!(done, Ok(next));
                                events.extend(new);
                            } else {
                                prop_assert_eq!(done, Err(Error::Exists));
                            }
                        }
                        Op::Lines(_, bytes) => {
                            let mut batch = stream.batch(Shape::Lines);
                            for piece in bytes.chunks(7) {
                                batch.push(piece).unwrap();
                            }
                            prop_assert_eq!(stream.commit(batch, None), Ok(next));
                            let lines = bytes.split_inclusive(|b| *b == b'\n');
                            events.extend(lines.map(|l| l.strip_suffix(b"\n").unwrap_or(l).to_vec()));
                        }
                        Op::Abandon(_, bytes) => {
                            stream.batch(Shape::Lines).push(&bytes).unwrap();
                        }
                        Op::Read(_, at) => {
                            let at = at.index(events.len() + 2);
                            let got = stream.read(at as u64).map(|all| {
                                all.map(|event| event.unwrap().bytes).collect::<Vec<_>>()
                            });
                            match events.get(at..) {
                                Some(rest) => prop_assert_eq!(got.unwrap(), rest),
                                None => prop_assert_eq!(got, Err(Error::NotFound)),
                            }
                            let one = stream.event(at as u64).map(|event| event.bytes);
                            prop_assert_eq!(one.ok(), events.get(at).cloned());
                        }
                        Op::Since(_, at) if !events.is_empty() => {
                            let time = stream.event(at.index(events.len()) as u64).unwrap().time;
                            let since = stream.since(time).unwrap();
                            prop_assert_eq!(stream.event(since).unwrap().time, time);
                            prop_assert!(since == 0 || stream.event(since - 1).unwrap().time < time);
                            let last = stream.event(next - 1).unwrap().time;
                            prop_assert_eq!(stream.since(last + 1), Ok(next));
                        }
                        _ => {}
                    }
                }
            }
            for (name, events) in NAMES.iter().zip(&model) {
                let count = stores[0].stream(name).ok().map(|s| s.count().unwrap());
                prop_assert_eq!(count, events.as_ref().map(|e| e.len() as u64));
            }
        }
        let last = open();
        for (name, events) in NAMES.iter().zip(&model) {
            if let Some(events) = events {
                prop_assert_eq!(&payloads(&last, name, 0), events);
            }
        }
    }
}
