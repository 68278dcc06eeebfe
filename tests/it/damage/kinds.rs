//! Each kind of fault at each place: found at the first use, or made in use.

use super::bench::{BATCHES, Bench, Fault, Which, Which::Index, Which::Log};
use crate::format::{self, HEAD, PAGE};
use std::collections::HashSet;

/// A bit of each byte, and of those that are no payload all of them, too.
fn flips(bench: &mut Bench, which: Which) -> Vec<Fault> {
    let payload = |bench: &Bench, at| {
        bench.blocks.iter().any(|block| (block.at + format::HEADER..block.end()).contains(&at))
    };
    let mut faults = Vec::new();
    for at in bench.places(which) {
        faults.push(Fault::Flip(which, at, 1 << bench.random.below(8)));
        if which == Index || !payload(bench, at) {
            faults.push(Fault::Flip(which, at, 0xff));
        }
    }
    faults
}

/// Each of them found at the first use; every so many also made in use.
fn each(bench: &mut Bench, faults: &[Fault], every: usize) {
    for fault in faults {
        bench.found(&[*fault]);
    }
    for fault in faults.iter().step_by(every) {
        bench.made(*fault);
    }
}

#[test]
fn a_byte_of_a_log_flipped() {
    let mut bench = Bench::new(1);
    let faults = flips(&mut bench, Log);
    each(&mut bench, &faults, 3);
    eprintln!("{} flips of bytes of a log", faults.len());
}

#[test]
fn a_byte_of_a_log_flipped_without_an_index() {
    let mut bench = Bench::new(8);
    let faults = flips(&mut bench, Log);
    for fault in &faults {
        bench.found(&[*fault, Fault::Delete]);
    }
    eprintln!("{} flips of bytes of a log without an index", faults.len());
}

#[test]
fn a_byte_of_each_of_several_pages_flipped() {
    let mut bench = Bench::new(9);
    for _ in 0..1000 {
        let mut faults = Vec::new();
        for page in 0..bench.end(Log).div_ceil(PAGE) {
            if bench.random.below(2) > 0 {
                let at = page * PAGE + bench.random.below(PAGE);
                faults.push(Fault::Flip(Log, at.max(HEAD), 1 << bench.random.below(8)));
            }
        }
        bench.found(&faults);
        faults.push(Fault::Delete);
        bench.found(&faults);
    }
}

#[test]
fn a_byte_of_an_index_flipped() {
    let mut bench = Bench::new(2);
    let faults = flips(&mut bench, Index);
    each(&mut bench, &faults, 1);
    eprintln!("{} flips of bytes of an index", faults.len());
}

#[test]
fn a_file_cut_anywhere_and_an_index_deleted() {
    let mut bench = Bench::new(3);
    let mut faults = Vec::new();
    for which in [Log, Index] {
        // Within a payload one place is like the next.
        let blocks = &bench.blocks;
        let edge = |at: usize| {
            blocks.iter().any(|b| {
                (b.at.saturating_sub(2)..b.at + 48).contains(&at) || at.abs_diff(b.end()) < 3
            })
        };
        let places = bench.places(which).filter(|at| which == Index || at % 7 == 0 || edge(*at));
        faults.extend(places.map(|len| Fault::Cut(which, len)));
    }
    each(&mut bench, &faults, 5);
    each(&mut bench, &[Fault::Delete], 1);
    eprintln!("{} cuts of a log or an index", faults.len());
}

#[test]
fn an_old_tail_or_page_replayed() {
    let mut bench = Bench::new(4);
    let (mut faults, mut seen) = (Vec::new(), HashSet::new());
    for which in [Log, Index] {
        let end = bench.end(which);
        // Before the first there was nothing: that is a cut.
        for commits in 1..BATCHES.len() {
            let places = (0..end).filter(|at| which == Index || at % 64 == 0 || at % PAGE < 8);
            let tail = places.map(|from| Fault::Replay(which, from, usize::MAX, commits));
            let block = |size| (0..end).step_by(size).map(move |at| (at, at + size));
            let blocks = [512, PAGE].into_iter().flat_map(block);
            let blocks = blocks.map(|(from, to)| Fault::Replay(which, from, to, commits));
            faults.extend(tail.chain(blocks).filter(|fault| seen.insert(bench.damaged(&[*fault]))));
        }
    }
    each(&mut bench, &faults, 5);
    eprintln!("{} replays of old bytes of a log or an index", faults.len());
}

#[test]
fn bytes_written_to_the_wrong_place() {
    let mut bench = Bench::new(7);
    let whole: Vec<_> =
        bench.blocks.iter().map(|block| (block.at, block.end() - block.at)).collect();
    let sectors: Vec<_> = (0..bench.end(Log)).step_by(512).map(|at| (at, 512)).collect();
    let entries: Vec<_> = (0..bench.end(Index)).step_by(8).map(|at| (at, 8)).collect();
    let mut faults = Vec::new();
    for (from, len) in &whole {
        // Over the beginning of any other, too.
        let others = whole.iter().filter(|(to, its)| to != from && its >= len);
        faults.extend(others.map(|(to, _)| Fault::Copy(Log, *from, *to, *len)));
    }
    for (which, places) in [(Log, sectors), (Index, entries)] {
        for (from, len) in &places {
            let there = places.iter().filter(|(to, _)| to != from);
            faults.extend(there.map(|(to, _)| Fault::Copy(which, *from, *to, *len)));
        }
    }
    each(&mut bench, &faults, 1);
    eprintln!("{} misplaced writes", faults.len());
}
