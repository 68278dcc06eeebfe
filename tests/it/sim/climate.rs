//! What may befall a disk call, and how often that is so in the world of a seed.

use super::files::{Luck, Rng};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum When {
    Before,
    During,
    After,
}

/// What befalls one disk call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Strike {
    /// The machine goes down.
    Crash(When),
    /// The process of the engine ends.
    Kill(When),
    /// Another host takes the engine's locks away, and drops what it writes. It is told of it by
    /// what it asks next, but for writes and syncs.
    CutOff,
    /// The call fails; with ENOSPC where it takes up room.
    Fail(i32),
}

impl Strike {
    pub(super) const ALL: [Strike; 9] = [
        Strike::Crash(When::Before),
        Strike::Crash(When::During),
        Strike::Crash(When::After),
        Strike::Kill(When::Before),
        Strike::Kill(When::During),
        Strike::Kill(When::After),
        Strike::CutOff,
        Strike::Fail(libc::EIO),
        Strike::Fail(libc::ENOSPC),
    ];

    fn roll(rng: &mut Rng) -> Strike {
        let when = rng.one_of(&[When::Before, When::During, When::After]);
        match rng.below(12) {
            0..=7 => Strike::Crash(when),
            8..=10 => Strike::Kill(when),
            _ => Strike::CutOff,
        }
    }
}

/// What befalls the call after so many.
#[derive(Clone, Copy)]
pub(super) struct Doom {
    pub(super) after: u64,
    pub(super) strike: Strike,
    /// Those that change nothing count, too.
    pub(super) reads: bool,
}

impl Doom {
    pub(super) fn roll(rng: &mut Rng) -> Doom {
        let reads = rng.one_in(2);
        Doom { after: rng.next() % if reads { 60 } else { 12 }, strike: Strike::roll(rng), reads }
    }
}

/// What kind of disk call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Read,
    Lock,
    /// Of a name.
    Make,
    Write,
    Cut,
    Sync,
    Unlock,
}

impl Kind {
    const ALL: [Kind; 7] =
        [Kind::Read, Kind::Lock, Kind::Make, Kind::Write, Kind::Cut, Kind::Sync, Kind::Unlock];
}

/// How the world of a seed is. Each has its own, for what is rare with all of it at once.
pub(super) struct Climate {
    /// One failure follows another.
    pub(super) rates: &'static [Option<usize>],
    /// Only calls of these kinds fail.
    pub(super) weak: &'static [Kind],
    /// The steps ahead of a log find no room, often.
    pub(super) tight: bool,
    /// The clock may go back so many nanoseconds in a crash.
    pub(super) back: u64,
    /// How often the machine goes down: a step in so many.
    pub(super) crashes: usize,
    /// All batches end at a multiple of this: what is old fits where it does not belong. 0: anywhere.
    pub(super) unit: usize,
    /// Up to so many batches are committed at once.
    pub(super) together: usize,
    /// The second engine is on another host, which may crash alone.
    pub(super) hosts: bool,
    /// So many names are in use.
    pub(super) names: usize,
    /// Of a hundred operations so many remove a stream, and so many rename one.
    pub(super) changes: usize,
    /// Of a hundred operations so many drop events.
    pub(super) drops: usize,
    /// Of a hundred operations so many take an index away, or some of what it says.
    pub(super) unlinks: usize,
    /// So many of the sectors that were written survive everywhere.
    pub(super) luck: Option<Luck>,
}

impl Climate {
    pub(super) fn roll(rng: &mut Rng) -> Climate {
        let mixed = Climate {
            rates: rng.one_of(&[
                &[None][..],
                &[None, None, Some(40)],
                &[None, None, None, None, Some(40), Some(15), Some(5), Some(2)],
                &[Some(15), Some(5), Some(2)],
            ]),
            weak: rng.one_of(&[
                &Kind::ALL[..],
                &Kind::ALL,
                &Kind::ALL,
                &[Kind::Write],
                &[Kind::Write, Kind::Cut],
                &[Kind::Sync],
                &[Kind::Sync, Kind::Cut],
                &[Kind::Unlock],
            ]),
            tight: rng.one_in(4),
            back: rng.one_of(&[0, 1000, 1_000_000_000, 3_600_000_000_000]),
            crashes: rng.one_of(&[3, 15, 40]),
            unit: rng.one_of(&[0, 0, 0, 128, 256, 512, 512, 4096]),
            together: rng.one_of(&[1, 2, 4]),
            hosts: rng.one_in(3),
            names: rng.one_of(&[1, 1, 2, 3, 5]),
            unlinks: rng.one_of(&[0, 2, 10]),
            changes: 3,
            drops: rng.one_of(&[0, 5, 30]),
            luck: rng.one_of(&[None, None, None, None, Some(Luck::All), Some(Luck::Most(8))]),
        };
        match rng.below(6) {
            // What is cut off comes back, and fits.
            0 => Climate {
                rates: &[None, Some(6), Some(3), Some(2)],
                weak: rng.one_of(&[&[Kind::Write][..], &[Kind::Sync], &[Kind::Write, Kind::Sync]]),
                tight: true,
                crashes: 3,
                unit: rng.one_of(&[128, 256, 512, 512]),
                together: 4,
                names: 1,
                unlinks: 0,
                luck: None,
                ..mixed
            },
            // Many streams are young, and change their names.
            1 => Climate { names: 2, changes: 15, ..mixed },
            // An index is a rare thing, and blocks get lost alone.
            2 => Climate { unlinks: 10, crashes: 3, unit: 512, names: 1, luck: None, ..mixed },
            _ => mixed,
        }
    }
}
