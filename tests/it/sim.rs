//! Deterministic simulation: the real engine on a simulated disk, driven by a seed.
//!
//! Two engines (two `Store`s, as two mounts would be) and one that only reads share one disk and
//! run from one thread: another one runs *inside* a disk call of the first. The disk crashes,
//! fails, fills up and forgets as real ones may. After each step what the engines answer is
//! compared with a model, which knows of every batch whether it was acknowledged, refused, or left
//! in doubt.
//!
//! The same seed is the same run; `SMOLSTORE_SIM_SEED=7 scripts/sim` prints each disk call of it.

mod checks;
mod climate;
mod disk;
mod events;
mod faults;
mod files;
mod forge;
mod harm;
mod model;
mod names;
mod reads;
mod work;
mod world;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use smolstore::stream::Cursor;
use smolstore::{Event, Store};

use climate::{Doom, Strike};
use disk::SimDisk;
use model::Model;
use world::{ENGINES, Hook, READER, Stats, World, lock};

type Engine = Store<SimDisk>;
type Stream = smolstore::Stream<SimDisk>;
/// The incarnation of an engine, and it.
type Running = Option<(u64, Arc<Engine>)>;

/// All events of a stream, those that were dropped as they were once seen.
struct All {
    events: Vec<Event>,
    /// The first that is kept.
    first: u64,
}

impl All {
    fn count(&self) -> u64 {
        self.events.len() as u64
    }

    /// The offset in the view of event `n`.
    fn view(&self, n: u64) -> u64 {
        self.events.iter().take(n as usize).map(|event| event.bytes.len() as u64 + 1).sum()
    }
}

struct Sim {
    world: Arc<Mutex<World>>,
    engines: Mutex<[Running; ENGINES]>,
    model: Mutex<Model>,
    /// Where the last reader of each stream was.
    cursors: Mutex<BTreeMap<u64, Cursor>>,
    /// Nothing goes wrong but one disk call.
    single: bool,
}

impl Sim {
    fn world(&self) -> MutexGuard<'_, World> {
        lock(&self.world)
    }

    fn model<R>(&self, look: impl FnOnce(&mut Model) -> R) -> R {
        look(&mut lock(&self.model))
    }

    fn roll(&self, n: usize) -> usize {
        self.world().rng.below(n)
    }

    fn note(&self, line: impl Into<String>) {
        self.world().note(line.into());
    }

    fn fail(&self, why: impl Into<String>) {
        self.world().fail(why.into());
    }

    // ---- engines ----

    fn store(&self, engine: usize) -> Arc<Engine> {
        let disk =
            SimDisk { world: self.world.clone(), engine, incarnation: self.world().alive[engine] };
        let world = self.world.clone();
        let log = move |line: &str| {
            let mut w = lock(&world);
            for what in ["recovered", "made its index again", "does not check"] {
                if line.contains(what) {
                    w.count(format!("an engine says {what:?}"));
                }
            }
            w.note(format!("    log: {line}"));
        };
        Arc::new(Store::on(disk, engine == READER, Box::new(log)))
    }

    fn start(&self, engine: usize) {
        let store = self.store(engine);
        let alive = self.world().alive[engine];
        lock(&self.engines)[engine] = Some((alive, store));
    }

    fn stop(&self, engine: usize) {
        let store = lock(&self.engines)[engine].take();
        drop(store);
    }

    fn engine(&self, engine: usize) -> Option<Arc<Engine>> {
        let engines = lock(&self.engines);
        engines[engine].as_ref().map(|(_, store)| store.clone())
    }

    /// Starts again what went down.
    fn mend(&self, crash: bool) {
        let crash = crash || self.world().down;
        if crash {
            (0..ENGINES).for_each(|engine| self.stop(engine));
            self.world().reboot();
            self.note("  reboot");
            self.look();
            // What was removed never comes back.
            let removed = std::mem::take(&mut self.world().removed);
            self.model(|model| model.forget(&removed));
        }
        self.restart();
        if crash && self.roll(4) == 0 {
            self.settle();
            if self.roll(3) == 0 {
                self.restore();
            }
        }
    }

    /// Starts the engines that do not run.
    fn restart(&self) {
        for engine in 0..ENGINES {
            let mut w = self.world();
            if std::mem::take(&mut w.adrift[engine]) {
                w.alive[engine] += 1;
            }
            let alive = w.alive[engine];
            drop(w);
            let old = lock(&self.engines)[engine].take_if(|(born, _)| *born != alive);
            drop(old);
            if self.engine(engine).is_none() {
                self.start(engine);
            }
        }
    }

    /// What an engine sees after a crash, once it has recovered everything, is all there is.
    fn settle(&self) {
        let store = self.engine(0).unwrap();
        for name in self.names() {
            self.check(0, &store, &name);
        }
        self.model(Model::settle);
        self.note("  settled");
    }

    /// A stream comes back from a backup.
    fn restore(&self) {
        (0..ENGINES).for_each(|engine| self.stop(engine));
        let names = self.names();
        if !names.is_empty() {
            let [one, mut other] = [0; 2].map(|_| &names[self.roll(names.len())]);
            if self.world().tip_of(one).count == 0 {
                // A log without a head and an index that tells of events: who could say which is right?
                other = one;
            }
            self.note(format!("  restore {one} with the index of {other}"));
            let moved = self.world().restore(one, other);
            if let Some((from, to)) = moved {
                self.model(|model| model.moved(from, to));
            }
            self.look();
        }
        self.restart();
    }

    // ---- a run ----

    fn step(self: &Arc<Sim>) {
        let mut w = self.world();
        let faults = w.faults;
        let engine = [0, 0, 1, 1, READER][w.rng.below(5)];
        let other = (engine + 1 + w.rng.below(ENGINES - 1)) % ENGINES;
        if !self.single {
            let rates = w.climate.rates;
            w.rate = w.rng.one_of(rates);
            if w.doom.is_none() && w.rng.one_in(6) {
                w.doom = Some(Doom::roll(&mut w.rng));
            }
        }
        if w.rng.one_in(3) {
            w.waits = w.rng.one_in(3);
            let after = w.rng.next() % 30;
            w.hook = Some((after, self.meanwhile(other)));
        }
        drop(w);
        self.operate(engine, false);
        let hook = self.world().hook.take();
        drop(hook);
        let mut w = self.world();
        w.rate = None;
        w.count("steps");
        if !w.locks.is_empty() {
            w.fail("a lock was left behind".into());
        }
        let crashes = w.climate.crashes;
        let crash = !self.single && w.rng.one_in(crashes);
        let look = w.faults > faults && !w.down && w.rng.one_in(2);
        let down = w.down;
        drop(w);
        if !down {
            self.find_all();
        }
        if look && !crash {
            self.look();
        }
        self.mend(crash);
    }

    /// Another engine does something in the middle of an operation.
    fn meanwhile(self: &Arc<Sim>, engine: usize) -> Hook {
        let sim = self.clone();
        Box::new(move || {
            {
                let mut w = sim.world();
                w.count("operations in the middle of another");
                w.faults += 1;
                w.nested = true;
            }
            sim.note("    meanwhile:");
            sim.operate(engine, true);
            while sim.roll(3) == 0 {
                sim.operate(engine, true);
            }
            sim.world().nested = false;
            sim.note("    back:");
        })
    }

    /// In the end, without faults, everything is there and every stream takes appends.
    fn finish(self: &Arc<Sim>) {
        {
            let mut w = self.world();
            (w.full, w.doom) = (false, None);
            w.climate.tight = false;
        }
        (0..ENGINES).for_each(|engine| self.stop(engine));
        let crash = !self.single && self.roll(2) == 0;
        self.mend(crash);
        self.look();
        for round in 0..2 {
            let store = self.engine(round).unwrap();
            for name in self.names() {
                self.check(round, &store, &name);
                self.append(round, &store, &name);
                self.check(round, &store, &name);
            }
            drop(store);
            self.mend(true);
        }
        if let Some(id) = self.model(|model| model.homeless()) {
            self.fail(format!("batch {id:x} was acknowledged, and is nowhere"));
        }
        if !self.single && self.world().failure.is_none() && self.roll(6) == 0 {
            self.damage();
        }
    }

    fn run(self: &Arc<Sim>, steps: usize) {
        self.mend(false);
        let done = catch_unwind(AssertUnwindSafe(|| {
            for _ in 0..steps {
                self.step();
                if self.world().failure.is_some() {
                    return;
                }
            }
            self.finish();
        }));
        if done.is_err() {
            self.fail("panicked");
        }
        // The hooks hold the simulation, which holds them.
        let hooks = {
            let mut w = self.world();
            (w.hook.take(), w.mate.take())
        };
        drop(hooks);
    }
}

const CALLS: &str = "disk calls";
/// Those that something may befall.
const TURNS: &str = "disk calls outside of checks";

/// What a run came to: how often what happened, and a number that another run does not have.
type Outcome = Result<(Stats, u64), String>;

/// What is to go wrong in a run.
#[derive(Clone, Copy)]
enum Plan {
    Anything,
    Nothing,
    /// This befalls the disk call after so many, and nothing else happens.
    Strike(u64, Strike),
}

/// Runs a seed; the trace when something is wrong.
fn run(seed: u64, plan: Plan, verbose: bool) -> Outcome {
    let mut world = World::new(seed, verbose);
    let single = !matches!(plan, Plan::Anything);
    if let Plan::Strike(after, strike) = plan {
        world.doom = Some(Doom { after, strike, reads: true });
    }
    let steps = world.rng.below(if single { 6 } else { 50 });
    let sim = Arc::new(Sim {
        world: Arc::new(Mutex::new(world)),
        engines: Mutex::default(),
        model: Mutex::default(),
        cursors: Mutex::default(),
        single,
    });
    sim.run(5 + steps);
    let mut w = sim.world();
    if let Some(why) = &w.failure {
        let trace = w.trace.join("\n");
        return Err(format!("{trace}\nSMOLSTORE_SIM_SEED={seed}: {why}"));
    }
    let all = [("runs", 1), (CALLS, w.calls), (TURNS, w.turns)];
    let mut stats = w.stats.clone();
    stats.extend(all.map(|(what, n)| (what.to_string(), n)));
    Ok((stats, w.rng.next()))
}

fn add(all: &mut Stats, stats: Stats) {
    for (what, count) in stats {
        *all.entry(what).or_default() += count;
    }
}

fn print(title: &str, all: &Stats) {
    println!("{title}:");
    for (what, count) in all {
        println!("{count:>12} {what}");
    }
}

/// A number from the environment, for longer runs.
pub fn env(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn nothing_acknowledged_is_lost_in_any_simulated_run() {
    if let Some(seed) = env("SMOLSTORE_SIM_SEED") {
        run(seed, Plan::Anything, true).map_err(|_| seed).unwrap();
        return;
    }
    let first = env("SMOLSTORE_SIM_FROM").unwrap_or(1);
    let seeds = env("SMOLSTORE_SIM_SEEDS").unwrap_or(u64::MAX);
    let limit = Duration::from_secs(env("SMOLSTORE_SIM_SECONDS").unwrap_or(10));
    let (start, mut all, mut failed) = (Instant::now(), Stats::new(), 0);
    let mut seed = first;
    while seed - first < seeds && (seeds < u64::MAX || start.elapsed() < limit) {
        match run(seed, Plan::Anything, false) {
            Ok(outcome) => {
                if seed < first + 3 {
                    let again = run(seed, Plan::Anything, false);
                    assert_eq!(again, Ok(outcome.clone()), "seed {seed} is not repeatable");
                }
                add(&mut all, outcome.0);
            }
            Err(trace) => {
                println!("{trace}\n");
                failed += 1;
                // More of them, to see what they have in common, when asked for.
                assert!(
                    failed < env("SMOLSTORE_SIM_FAILURES").unwrap_or(1),
                    "{failed} seeds failed"
                );
            }
        }
        seed += 1;
    }
    print(&format!("seeds {first}..{seed}"), &all);
    assert_eq!(failed, 0);
}

/// Each disk call of some short runs is struck in every way, one in each run.
#[test]
fn one_failure_at_any_disk_call_is_survived() {
    let first = env("SMOLSTORE_SIM_FROM").unwrap_or(1);
    let limit = Duration::from_secs(env("SMOLSTORE_SIM_SECONDS").unwrap_or(5));
    let (start, mut all) = (Instant::now(), Stats::new());
    let mut seed = first;
    while start.elapsed() < limit {
        let calls = match run(seed, Plan::Nothing, false) {
            Ok((stats, _)) => stats[TURNS],
            Err(trace) => panic!("{trace}"),
        };
        for (after, strike) in (0..calls).flat_map(|n| Strike::ALL.map(|strike| (n, strike))) {
            match run(seed, Plan::Strike(after, strike), false) {
                Ok((stats, _)) => add(&mut all, stats),
                Err(trace) => panic!("{trace}\n{strike:?} at call {after}"),
            }
        }
        seed += 1;
    }
    print(&format!("every call of seeds {first}..{seed} struck"), &all);
}
