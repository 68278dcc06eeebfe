//! The fuzz targets of `tests/fuzz`, without a fuzzer: over the corpus, and over variations of it.
//!
//! `scripts/fuzz` runs them under libFuzzer. An input that it finds to fail goes to the corpus, and
//! fails here as long as the fault is there.

#[path = "../fuzz/targets/mod.rs"]
mod targets;

use std::fs;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use targets::{Run, TARGETS};

/// Inputs made of the corpus, for each target: so many that all take a few seconds.
const VARIATIONS: u64 = if cfg!(miri) { 0 } else { 3000 };

fn corpus(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(target);
    let files = fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    let mut files: Vec<PathBuf> = files.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() > 10, "no corpus in {}", dir.display());
    files.into_iter().map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

/// SplitMix64, of Steele, Lea and Flood.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}

/// A few changes to an input, as fuzzers make them; parts come from another one.
fn vary(mut bytes: Vec<u8>, other: &[u8], random: &mut Random) -> Vec<u8> {
    for _ in 0..1 + random.below(6) {
        let at = random.below(bytes.len() + 1);
        match random.below(6) {
            0 => bytes.insert(at, random.next() as u8),
            1 => bytes.truncate(at),
            2 => {
                let from = random.below(other.len() + 1);
                let to = other.len().min(from + 1 + random.below(40));
                bytes.splice(at..at, other[from..to].iter().copied());
            }
            3 => drop(bytes.drain(at..bytes.len().min(at + 8))),
            _ if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            _ => bytes.push(random.next() as u8),
        }
    }
    bytes
}

fn check(run: Run, target: &str, bytes: &[u8], what: &str) {
    if catch_unwind(|| run(bytes)).is_err() {
        let hex: String = bytes.iter().map(|b| format!("\\x{b:02x}")).collect();
        panic!(
            "{target} fails on {what}; again:\n  printf '{hex}' > tests/fuzz/corpus/{target}/new"
        );
    }
}

fn replay(target: &str) {
    let run = TARGETS.iter().find(|(name, _)| *name == target).unwrap().1;
    let mut corpus = corpus(target);
    let begun = Instant::now();
    if cfg!(miri) {
        corpus.sort_by_key(|(_, bytes)| bytes.len());
    }
    for (path, bytes) in &corpus {
        // Miri takes many minutes for all of it. It sees the short ones.
        if cfg!(miri) && begun.elapsed() > Duration::from_secs(100) {
            break;
        }
        check(run, target, bytes, &path.display().to_string());
    }
    for seed in 0..VARIATIONS {
        let mut random = Random(seed);
        let [one, other] = [(); 2].map(|()| &corpus[random.below(corpus.len())].1);
        let bytes = vary(one.clone(), other, &mut random);
        check(run, target, &bytes, &format!("variation {seed}"));
    }
}

#[test]
fn any_bytes_are_a_head_a_block_or_neither() {
    replay("page");
}

#[test]
fn any_log_is_recovered_as_the_model_says() {
    replay("walk");
}

#[test]
fn any_pieces_of_a_batch_are_the_same_blocks_and_events() {
    replay("batch");
}

#[test]
fn any_log_and_index_are_read_as_far_as_they_are_intact() {
    replay("log");
}

#[test]
fn any_names_are_what_the_grammar_says() {
    replay("tree");
}
