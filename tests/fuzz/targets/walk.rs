//! Any log, with any evidence of what was acknowledged, is recovered as the design says.

use super::page::{HEAD, PAGE};
use super::script::{self, SEED};
use super::{Input, model};
use smolstore::walk::{Evidence, Pages, Tip, recover};

/// A log in memory, which counts how often it is asked.
struct Log<'a> {
    bytes: &'a [u8],
    asked: usize,
}

impl Pages for Log<'_> {
    type Error = ();

    fn page(&mut self, at: u64) -> Result<&[u8], ()> {
        self.asked += 1;
        assert!(self.asked < 1_000_000, "it does not end");
        let from = self.bytes.len().min(at as usize);
        let to = self.bytes.len().min((from / PAGE + 1) * PAGE);
        Ok(&self.bytes[from..to])
    }

    fn end(&self) -> u64 {
        self.bytes.len() as u64
    }
}

/// The model and the engine find the same.
pub fn run(bytes: &[u8]) {
    let mut input = Input(bytes);
    let (which, how) = (input.byte(), input.byte());
    let far = if how >= 0xf0 { input.u64() >> 1 } else { 0 };
    let found = script::run(&mut input);
    let end = |which: u8| found.ends[found.ends.len() - 1 - usize::from(which) % found.ends.len()];
    let last = if far > 0 { far } else { end(which) };
    let seed = if how & 1 == 0 { SEED } else { u64::from(how) };
    let mut known = Tip::default();
    if how & 2 != 0 {
        known.at = end(how >> 2 & 7);
    }
    let mut head = [0; HEAD];
    head[..found.log.len().min(HEAD)].copy_from_slice(&found.log[..found.log.len().min(HEAD)]);

    let (mut log, mut gaps) = (Log { bytes: &found.log, asked: 0 }, Vec::new());
    let evidence = Evidence { head, index: (last, seed), known };
    let told = recover(&mut log, &evidence, &mut |gap| gaps.push((gap.first, gap.next, gap.at)));
    let told = told.expect("it can be read");
    assert_eq!(told.failed, None);
    let expected = model::recover(&found.log, (last, seed), &known);
    let (head, tip, start, lost) = (told.head, told.tip, told.start, told.lost.is_some());
    if lost {
        // What was told before it was known to be lost may be told again.
        gaps.drain(..gaps.len().saturating_sub(expected.gaps.len()));
    }
    assert_eq!(model::Outcome { head, tip, start, lost, gaps }, expected);
}
