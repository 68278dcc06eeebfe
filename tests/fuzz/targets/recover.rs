//! The walk over frames, the decision, and both together over logs that a crash left.

use super::Input;
use smolstore::frame::Frame;
use smolstore::recover::{Decision, Facts, Walk, decide};

/// Any frames, any facts, and the crashes there can be.
pub fn run(bytes: &[u8]) {
    let mut input = Input(bytes);
    match input.byte() % 4 {
        0 => walks(&mut input),
        1 => decides(&mut input),
        _ => survives(&mut input),
    }
}

const LINE: &[u8] = &[b'\n'; 64];

fn frame(first: bool, last: bool, time: u64, len: usize) -> Frame<'static> {
    let line = &LINE[..=len];
    Frame { first, last, time, line }
}

// ---- the walk --------------------------------------------------------------------------------

/// Whether the frames are whole batches and the beginning of one more: each begins with a first
/// frame, ends with a last one, shares one time, and that is later than the batch's before.
fn are_batches(frames: &[Frame<'_>], inside: bool) -> bool {
    let mut batches: Vec<&[Frame<'_>]> = Vec::new();
    let mut rest = frames;
    while let Some(last) = rest.iter().position(|frame| frame.last) {
        let (batch, behind) = rest.split_at(last + 1);
        batches.push(batch);
        rest = behind;
    }
    batches.extend((!rest.is_empty()).then_some(rest));
    let sound = |(n, batch): (usize, &&[Frame<'_>])| {
        let flags = batch.iter().map(|frame| frame.first);
        let flags_fit = flags.eq((0..batch.len()).map(|i| i == 0 && !(inside && n == 0)));
        flags_fit && batch.iter().all(|frame| frame.time == batch[0].time)
    };
    let times: Vec<u64> = batches.iter().map(|batch| batch[0].time).collect();
    batches.iter().enumerate().all(sound) && times.is_sorted_by(|a, b| a < b)
}

fn walks(input: &mut Input<'_>) {
    let start = input.byte();
    let (next, at) = (1 + (input.u64() >> 16), input.u64() >> 2);
    // What has been walked over since the beginning, or since a frame that does not check.
    let mut over: Vec<Frame<'static>> = Vec::new();
    let mut walk = Walk::default();
    if start & 1 == 1 {
        let before = frame(start & 2 != 0, start & 4 != 0, 1 + u64::from(start), 0);
        walk = Walk::new(next, at, Some(&before));
        let whole = next - u64::from(!before.last);
        assert_eq!((walk.next, walk.at, walk.whole, walk.end), (next, at, whole, at));
        over.push(before);
    }
    // The first frame may be in the middle of its batch.
    let mut inside = over.first().is_some_and(|frame| !frame.first);
    let mut time = 1 + u64::from(start);
    let mut whole = (walk.whole, walk.end, walk.whole_time);
    while !input.is_empty() {
        let how = input.byte();
        time = match how >> 2 & 3 {
            0 => time.saturating_add(1),
            3 => input.u64().max(1),
            _ => time,
        };
        let frame = frame(how & 1 != 0, how & 2 != 0, time, usize::from(how >> 5));
        if how & 16 != 0 && input.below(4) == 0 {
            let (before, size) = (walk, u64::from(input.byte()) + 17);
            walk.skip(size, &frame);
            assert_eq!((walk.next, walk.at), (before.next + 1, before.at + size));
            inside = !frame.first;
            over.clear();
        }
        let before = walk;
        let fits = are_batches(&[&over[..], &[frame]].concat(), inside);
        assert_eq!(walk.step(&frame), fits);
        if !fits {
            assert_eq!(walk, before);
            continue;
        }
        over.push(frame);
        assert_eq!((walk.next, walk.at), (before.next + 1, before.at + frame.size()));
        if frame.last {
            whole = (walk.next, walk.at, frame.time);
        }
        assert_eq!((walk.whole, walk.end, walk.whole_time), whole);
    }
}

// ---- the decision ----------------------------------------------------------------------------

/// The table of `src/recover.rs`, row by row.
fn table(facts: Facts) -> Decision {
    let rest = !facts.clean || facts.long;
    match (facts.indexed, facts.gap) {
        // Fewer events than are counted, or known of.
        (Some(n), _) if n > facts.whole => Decision::Lost,
        _ if facts.known > facts.whole => Decision::Lost,
        // A frame that does not check, a valid one directly behind, and no count to say more.
        (None, true) => Decision::Lost,
        // As many as are counted.
        (Some(n), _) if n == facts.whole => Decision::Use { adopt: false, cut: rest },
        // More than are counted, or none are counted.
        _ => Decision::Use { adopt: true, cut: rest },
    }
}

fn decides(input: &mut Input<'_>) {
    let how = input.byte();
    let (count, whole) = match how & 1 {
        0 => (input.byte().into(), input.byte().into()),
        _ => (input.u64(), input.u64()),
    };
    let facts = Facts {
        indexed: (how & 2 != 0).then_some(count),
        known: if how & 32 != 0 { input.byte().into() } else { 0 },
        whole,
        gap: how & 4 != 0,
        clean: how & 8 != 0,
        long: how & 16 != 0,
    };
    assert_eq!(decide(facts), table(facts), "{facts:?}");
}

// ---- both, after a crash ---------------------------------------------------------------------

/// What lies behind the frames that a walk can read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tail {
    Zeros,
    Garbage,
}

/// What recovery sees: frames, what is behind them, the count.
fn recover(frames: &[Frame<'_>], from: usize, tail: Tail, indexed: Option<u64>) -> (Walk, Facts) {
    let mut walk = Walk::default();
    if from > 0 {
        let at = frames[..from].iter().map(Frame::size).sum();
        walk = Walk::new(from as u64, at, Some(&frames[from - 1]));
    }
    let rest = &frames[from..];
    let read = rest.iter().take_while(|frame| walk.step(frame)).count();
    let facts = Facts {
        indexed,
        known: 0,
        whole: walk.whole,
        gap: false,
        clean: read == rest.len() && !walk.inside && tail == Tail::Zeros,
        long: false,
    };
    (walk, facts)
}

/// Batches were written; some are counted, some more are whole in the log, and one may be torn.
/// Whatever is sound of the index, all whole batches are there after recovery and nothing else;
/// recovering once more finds nothing to do.
fn survives(input: &mut Input<'_>) {
    let (tail, index) = (input.byte(), input.byte());
    let (mut frames, mut ends) = (Vec::new(), vec![0]);
    while !input.is_empty() && frames.len() < 200 {
        let (len, time) = (1 + input.below(5), 10 + ends.len() as u64);
        frames.extend((0..len).map(|i| frame(i == 0, i + 1 == len, time, input.below(64))));
        ends.push(frames.len());
    }
    let torn = ends.len() > 1 && tail & 2 != 0;
    if torn {
        // Without its last frame, at least.
        ends.pop();
        let least = ends[ends.len() - 1];
        frames.truncate(least + usize::from(tail >> 4) % (frames.len() - least));
    }
    let whole = ends[ends.len() - 1];
    let tail = if tail & 1 == 1 { Tail::Garbage } else { Tail::Zeros };
    let indexed = (index & 1 == 1).then(|| ends[usize::from(index >> 1) % ends.len()]);
    // The last sound entry: any up to the count.
    let from = indexed.map_or(0, |count| usize::from(index) % (count + 1));
    let (walk, facts) = recover(&frames, from, tail, indexed.map(|n| n as u64));
    let Decision::Use { adopt, cut } = decide(facts) else {
        panic!("nothing is lost: {facts:?}");
    };
    assert_eq!(
        (walk.whole, walk.whole_time),
        (whole as u64, if whole == 0 { 0 } else { frames[whole - 1].time })
    );
    assert_eq!(walk.end, frames[..whole].iter().map(Frame::size).sum());
    assert_eq!(adopt, indexed != Some(whole));
    assert_eq!(cut, frames.len() > whole || tail == Tail::Garbage);
    frames.truncate(whole);
    let (_, facts) = recover(&frames, whole, Tail::Zeros, Some(whole as u64));
    assert_eq!(decide(facts), Decision::Use { adopt: false, cut: false });
    if whole > 0 {
        // And had the disk lost one that was counted, that would be said.
        let (_, facts) = recover(&frames[..whole - 1], 0, Tail::Zeros, Some(whole as u64));
        assert_eq!(decide(facts), Decision::Lost);
    }
}
