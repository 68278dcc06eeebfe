//! The index: where each event ends in the log, and the arithmetic between the two offsets an
//! event has.
//!
//! ```text
//! count u64 | identity of the log u64 | end of event 0 u64 | end of event 1 u64 | ...
//! ```
//!
//! The *log offset* of an event counts the frame headers before it, its *view offset* does not:
//! the view is what `events` shows, each event and a newline. `log_offset(n) = view_offset(n) +
//! 16 n`, so one number per event serves both.
//!
//! Pure: knows no file, clock or thread.

use crate::frame::HEADER;

/// Bytes before the first entry: the count and the log's identity.
pub const ENTRIES: u64 = 16;

/// Where in the index the entry of event `n` is; also the index's length when `n` is the count.
pub fn entry_at(n: u64) -> u64 {
    ENTRIES + 8 * n
}

/// The view offset of event `n`, whose frame begins at log offset `log`. Saturates, because `log`
/// may come from a damaged index.
pub fn view_offset(n: u64, log: u64) -> u64 {
    log.saturating_sub(HEADER as u64 * n)
}

/// The last of the events `0..count` that begins at or before `view`, found by bisection;
/// `offset(n)` is the log offset of event `n`. Event 0 begins at 0, `count` is not 0.
pub fn event_at<E>(
    view: u64,
    count: u64,
    mut offset: impl FnMut(u64) -> Result<u64, E>,
) -> Result<u64, E> {
    let (mut low, mut high) = (0, count);
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if view_offset(middle, offset(middle)?) <= view {
            low = middle;
        } else {
            high = middle;
        }
    }
    Ok(low)
}

/// How long a file that must hold `needed` bytes is made: to full blocks, and an eighth ahead (at
/// most 4 MiB), so that most commits change no file size and `fdatasync` need not touch the
/// journal, while a small stream takes one block.
pub fn grown(needed: u64) -> u64 {
    (needed + (needed / 8).min(MAX_STEP)).next_multiple_of(4096)
}

/// The most that a file is longer than needed, beside rounding to blocks.
pub const MAX_STEP: u64 = 4 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn bisection_agrees_with_counting(lens in prop::collection::vec(0u64..50, 1..200), at: prop::sample::Index) {
            let mut starts = vec![0];
            for len in &lens {
                starts.push(starts[starts.len() - 1] + len + 17);
            }
            let count = lens.len() as u64;
            let view = at.index(usize::try_from(view_offset(count, starts[lens.len()])).unwrap()) as u64;
            let found = event_at(view, count, |n| Ok::<_, ()>(starts[usize::try_from(n).unwrap()])).unwrap();
            let expected = (0..count).rfind(|&n| view_offset(n, starts[usize::try_from(n).unwrap()]) <= view);
            prop_assert_eq!(Some(found), expected);
        }

        #[test]
        fn files_grow_in_proportion(needed in 1u64..1 << 40) {
            let len = grown(needed);
            prop_assert!(len >= needed && len.is_multiple_of(4096) && len - needed <= needed / 8 + 4096);
            prop_assert!(len - needed <= MAX_STEP + 4096);
        }
    }

    #[test]
    fn a_small_stream_takes_one_block() {
        assert_eq!((grown(1), grown(3600), grown(4096)), (4096, 4096, 8192));
    }
}
