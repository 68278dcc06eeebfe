//! The disk damages what it holds: each event is right then, or known to be damaged, or the end is
//! known to be lost; and damage costs the blocks it is in, nothing else.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use smolstore::page::{Block, FIRST, HEAD, Head, LAST};
use smolstore::stream::Cursor;
use smolstore::{Error, Event};

use super::files::Rng;
use super::world::READER;
use super::{All, Sim, Stream, forge};

/// What becomes of the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Index {
    Intact,
    /// It is gone, or what it begins with is damaged.
    Lost,
    /// Some hints are wrong.
    Hints,
}

/// What was damaged, and what must be there all the same.
#[derive(Clone, Debug)]
struct Harm {
    /// All events there were.
    all: Vec<Event>,
    /// Those before it were dropped.
    first: u64,
    /// Those that are kept and of whose blocks no byte is damaged.
    intact: Vec<bool>,
    index: Index,
    /// There was damage in the log.
    log: bool,
    head: bool,
    /// The first block that is kept is not what it was.
    at: bool,
    /// The last block is not what it was.
    last: bool,
    /// Without a word on the end: so many events are there at least.
    least: u64,
    /// An engine knew the end from before.
    live: bool,
}

impl Harm {
    /// Whether an event must be read right.
    fn must(&self, n: u64) -> bool {
        let known = self.live || matches!(self.index, Index::Intact | Index::Hints);
        self.intact[n as usize] && (known || n < self.least)
    }

    /// Whether the end must be known to be lost.
    fn must_end(&self) -> bool {
        let told = matches!(self.index, Index::Intact | Index::Hints);
        !self.live && (self.head || self.last && told)
    }

    /// Whether it may be.
    fn may_end(&self) -> bool {
        self.must_end()
            // What was dropped was acknowledged.
            || self.index == Index::Lost && self.at
            || self.live && (self.last || self.head)
    }
}

impl Sim {
    /// Damages one or two streams.
    pub(super) fn damage(&self) {
        for name in self.names().into_iter().take(2) {
            self.stop_all();
            self.world().reboot();
            self.restart();
            let (Some(first), Some(other)) = (self.engine(0), self.engine(1)) else { return };
            let Some(all) = self.check_all(0, &first, &name).filter(|all| all.count() > 0) else {
                continue;
            };
            let live = self.roll(3) == 0;
            // Whoever has it open keeps what it knows.
            let open = live.then(|| first.stream(&name));
            drop(other);
            if !live {
                drop(first);
                self.stop_all();
            }
            let harm = self.harm(&name, all, live);
            self.world().count(format!("damaged streams, index {:?}", harm.index).to_lowercase());
            let last = [Some(READER), None][self.roll(2)];
            for engine in last.into_iter().chain([0, 1]) {
                if self.engine(engine).is_none() {
                    self.start(engine);
                }
                let own = live && engine == 0;
                let harm = Harm { live: own, ..harm.clone() };
                if let ControlFlow::Break(why) = self.examine(engine, &name, &harm) {
                    return self
                        .fail(format!("{why}: {engine} on {name}, damaged: {}", harm.tell()));
                }
            }
            drop(open);
        }
    }

    fn stop_all(&self) {
        (0..super::ENGINES).for_each(|engine| self.stop(engine));
    }

    /// Damages log and index of a stream that holds `all`.
    fn harm(&self, name: &str, all: All, live: bool) -> Harm {
        let mut w = self.world();
        w.calm = true;
        let stream = w.dir(name).unwrap_or_default();
        let mut log = w.log(stream).to_vec();
        let Some((head, blocks)) = forge::blocks(&log) else {
            w.fail(format!("{name} has events and no head"));
            return Harm::none(all);
        };
        let end = blocks.last().map_or(0, Block::end);
        let times = w.rng.one_of(&[0, 1, 1, 1, 2, 3]);
        let mut spots = Vec::new();
        for _ in 0..times {
            let at = w.rng.below(end as usize);
            let (from, to) = match w.rng.below(12) {
                0 => (at - at % 512, (at - at % 512 + 512).min(log.len())),
                1 => (at, log.len()),
                _ => (at, at + 1),
            };
            let before = log[from..to].to_vec();
            match to - from {
                1 => log[from] ^= 1 << w.rng.below(8),
                _ => log[from..to].fill(0),
            }
            let wrong = (from..to).filter(|at| log[*at] != before[at - from] && (*at as u64) < end);
            spots.extend(wrong);
        }
        // What was damaged twice may be what it was.
        spots.retain(|at| log[*at] != w.log(stream)[*at]);
        let bad = Head::decode(log.first_chunk().unwrap_or(&[0; HEAD])).is_none();
        let mut index = w.rng.one_of(&[Index::Intact, Index::Lost, Index::Hints]);
        if bad && index == Index::Lost {
            // Nobody can tell then what is a block.
            index = Index::Intact;
        }
        w.overwrite(stream, "log", &log);
        let some = &spots[..spots.len().min(4)];
        w.note(format!("  {name}: {end} bytes, damaged at {some:?}, index {index:?}, live {live}"));
        match index {
            Index::Intact => {}
            Index::Lost if w.rng.below(2) == 0 => {
                let _ = w.unlink(Path::new(&format!("{name}/index")));
                w.settle_names(stream);
            }
            Index::Lost | Index::Hints => {
                let mut bytes = w.index(stream).to_vec();
                spoil(&mut w.rng, &mut bytes, index == Index::Lost);
                w.overwrite(stream, "index", &bytes);
            }
        }
        let sound = |block: &&Block| {
            !spots.iter().any(|at| (block.at..block.end()).contains(&(*at as u64)))
        };
        let intact = |n: u64| blocks.iter().filter(|b| forge::holds(b, n)).all(|b| sound(&b));
        let begin = blocks.iter().rposition(|b| b.is(FIRST) && sound(&b));
        let least = begin.map_or(0, |begin| {
            let rest = &blocks[begin..];
            let ends = rest.iter().position(|b| b.is(LAST));
            match ends.filter(|ends| rest[..=*ends].iter().all(|b| sound(&b))) {
                Some(ends) => rest[ends].next(),
                None => rest[0].index,
            }
        });
        Harm {
            intact: (0..all.count()).map(|n| n >= all.first && intact(n)).collect(),
            first: all.first,
            all: all.events,
            index,
            log: !spots.is_empty(),
            head: bad,
            at: {
                let ends = blocks.iter().position(|b| b.is(LAST)).map_or(0, |last| last + 1);
                head.at > 0 && !blocks[..ends].iter().all(|b| sound(&b))
            },
            last: blocks.last().is_some_and(|block| !sound(&block)),
            least,
            live,
        }
    }

    /// Reads in all ways, then appends.
    fn examine(&self, engine: usize, name: &str, harm: &Harm) -> ControlFlow<String> {
        let Some(store) = self.engine(engine) else { return ControlFlow::Continue(()) };
        let stream = match store.stream(name) {
            Ok(stream) => stream,
            Err(error) => return ControlFlow::Break(format!("it cannot be opened: {error}")),
        };
        let writes = self.world().writes;
        let there = stream.count().unwrap_or(u64::MAX);
        let most = harm.all.len() as u64;
        let told = matches!(harm.index, Index::Intact | Index::Hints) || harm.live;
        let least = if told && !harm.may_end() { most } else { harm.least };
        // What was dropped was acknowledged.
        let dropped = if harm.head { 0 } else { harm.first };
        let lowest = if harm.may_end() { dropped } else { least };
        if !(lowest..=most).contains(&there) {
            return ControlFlow::Break(format!("{there} of {least} to {most} events are there"));
        }
        let some: Vec<u64> = match most {
            0..60 => (0..most).collect(),
            _ => (0..60).map(|_| self.roll(most as usize) as u64).collect(),
        };
        for n in some.iter().copied() {
            self.right(harm, n, there, &stream.event(n))?;
        }
        let mut ended = None;
        for (n, event) in (0..).zip(stream.read(0).into_iter().flatten()) {
            match n < there {
                true => self.right(harm, n, there, &event)?,
                false => ended = event.err(),
            }
        }
        let lost = ended.is_some();
        if lost != matches!(ended, Some(Error::Damaged { index, .. }) if index <= there) {
            return ControlFlow::Break(format!("behind the last event: {ended:?}"));
        }
        if lost && !harm.may_end() || !lost && harm.must_end() {
            return ControlFlow::Break(format!("the end is known to be lost: {lost}"));
        }
        view(&stream, harm, &some)?;
        if engine == READER {
            let wrote = self.world().writes != writes;
            return if wrote {
                ControlFlow::Break("it wrote".into())
            } else {
                ControlFlow::Continue(())
            };
        }
        // Of what is stored now it is for the next to say whether it can be read.
        Self::goes_on(&stream, most, lost)
    }

    /// Whether this may be what there is of event `n`.
    fn right(
        &self,
        harm: &Harm,
        n: u64,
        there: u64,
        event: &Result<Event, Error>,
    ) -> ControlFlow<String> {
        let fits = match event {
            // Of a head that is damaged nobody may know it.
            Err(Error::Dropped) => n < harm.first,
            _ if n < harm.first && !harm.head => false,
            Ok(event) => harm.all.get(n as usize) == Some(event),
            Err(Error::NotFound) => n >= there && !harm.must(n),
            Err(Error::Damaged { .. }) => !harm.must(n),
            Err(_) => false,
        };
        match fits {
            true => ControlFlow::Continue(()),
            false => ControlFlow::Break(format!("event {n} of {there} is {event:?}")),
        }
    }

    /// Appends go on where the end is known, and nowhere else.
    fn goes_on(stream: &Arc<Stream>, count: u64, lost: bool) -> ControlFlow<String> {
        let guarded = stream.append([b"more"], Some(count + 1));
        match guarded {
            Err(Error::Exists) if !lost => ControlFlow::Continue(()),
            Err(Error::Stopped { .. }) if lost => ControlFlow::Continue(()),
            other => ControlFlow::Break(format!("an append to it: {other:?}")),
        }
    }
}

impl Harm {
    fn none(All { events: all, first }: All) -> Harm {
        let intact = vec![true; all.len()];
        let (index, least) = (Index::Intact, all.len() as u64);
        let [log, head, at, last, live] = [false; 5];
        Harm { all, first, intact, index, log, head, at, last, least, live }
    }

    fn tell(&self) -> String {
        let Harm { first, index, head, at, last, least, live, log, .. } = self;
        format!(
            "first {first}, index {index:?}, log {log}, head {head}, at {at}, last {last}, \
             least {least}, live {live}"
        )
    }
}

/// Each byte of the view that must be right is.
fn view(stream: &Arc<Stream>, harm: &Harm, some: &[u64]) -> ControlFlow<String> {
    let mut at = 0;
    for event in &harm.all {
        let line = [&event.bytes[..], b"\n"].concat();
        if some.contains(&event.index) && harm.must(event.index) {
            let mut got = Vec::new();
            while got.len() < line.len() {
                let (from, left) = (at + got.len() as u64, line.len() - got.len());
                match stream.read_view(from, left, &mut Cursor::default()) {
                    Ok(more) if !more.is_empty() => got.extend(more),
                    other => {
                        let why = format!("the view at {from} of event {}: {other:?}", event.index);
                        return ControlFlow::Break(why);
                    }
                }
            }
            if got != line {
                return ControlFlow::Break(format!("the view of event {} is wrong", event.index));
            }
        }
        at += line.len() as u64;
    }
    ControlFlow::Continue(())
}

/// Makes an index say something else: of pages, also of the end or of which log it is.
fn spoil(rng: &mut Rng, index: &mut [u8], begin: bool) {
    if begin {
        index[rng.below(16)] ^= 1 + rng.below(255) as u8;
    }
    for _ in 0..rng.below(4) {
        if index.len() > 16 {
            let at = 16 + rng.below(index.len() - 16);
            index[at] ^= 1 << rng.below(8);
        }
    }
}
