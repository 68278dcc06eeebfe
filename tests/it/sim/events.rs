//! The events that the engines are given.

use smolstore::walk::Tip;

use super::Sim;
use super::files::Rng;
use super::forge;
use super::model::mark;

impl Sim {
    /// The events of a batch that comes behind `tip`, as far as is known.
    pub(super) fn events(&self, id: u64, dir: u64, tip: &mut Tip) -> Vec<Vec<u8>> {
        let mut w = self.world();
        let unit = w.climate.unit as u64;
        if unit > 0 {
            let log = w.log(dir).to_vec();
            return unit_events(id, &mut w.rng, tip, unit, &log);
        }
        let rng = &mut w.rng;
        let (count, most) = match rng.below(400) {
            0 => (9000, 1),
            1 => (40, 70_000),
            2..=7 => (12, 40_000),
            8..=15 => (400, 4),
            16..=40 => (2, 30_000),
            41..=160 => (1, 1500),
            161..=240 => (1 + rng.below(6), 40),
            _ => (1 + rng.below(6), 1500),
        };
        let mut events = Vec::new();
        for i in 0..count {
            let mut event = if i == 0 { mark(id) } else { Vec::new() };
            let len = event.len() + rng.below(most + 1);
            match rng.below(12) {
                0 => event.resize(len, 0),
                // It looks like blocks to come.
                1 => (0..3).for_each(|_| event.extend(forge::forge(rng, 0, tip.end, tip))),
                _ => random(&mut event, rng, len),
            }
            events.push(event);
        }
        if rng.one_in(2) {
            // Then they are lines, too.
            for byte in events.iter_mut().flatten() {
                *byte = if *byte == b'\n' { b' ' } else { *byte };
            }
        }
        events
    }
}

fn random(event: &mut Vec<u8>, rng: &mut Rng, len: usize) {
    while event.len() < len {
        event.extend(rng.next().to_le_bytes());
    }
    event.truncate(len);
}

/// Events that end in the log at a multiple of `unit`, behind `tip`, which goes there: lines, or one
/// event of any bytes, with what looks like blocks where others may begin.
fn unit_events(id: u64, rng: &mut Rng, tip: &mut Tip, unit: u64, log: &[u8]) -> Vec<Vec<u8>> {
    let mut to = tip.end - tip.end % unit + unit * rng.one_of(&[1, 1, 1, 2, 3, 9]);
    while forge::capacity(tip.end, to) < 9 {
        to += unit;
    }
    let mut bytes = mark(id);
    random(&mut bytes, rng, forge::capacity(tip.end, to) - 1);
    let one = rng.one_in(2);
    if one {
        forge::plant(&mut bytes, rng, tip, unit, log);
    } else {
        for byte in &mut bytes[8..] {
            // Here and there a line ends.
            *byte = if rng.one_in(200) { b'\n' } else { (*byte).max(b' ') };
        }
    }
    let events: Vec<Vec<u8>> = match one {
        true => vec![bytes],
        false => bytes.split(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect(),
    };
    *tip = Tip { end: to, count: tip.count + events.len() as u64, ..*tip };
    events
}
