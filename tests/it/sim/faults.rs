//! Proof that the simulation can fail: deliberate faults of the engine, each of which it must find.
//!
//! A copy of the project is built with all of them in it, each behind a question whether it is on;
//! then the simulation of that copy runs once for each, with that one on.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use super::world::lock;
use crate::harness::{Reaped, ok, text, wait};

/// A fault: of a file in `src`, what there is once (white space aside), and what becomes of it.
/// That is put in its place where `fault!()` is in it, and as the other branch of an `if` elsewhere.
struct Fault {
    name: &'static str,
    file: &'static str,
    edits: &'static [(&'static str, &'static str)],
}

const fn fault(
    name: &'static str,
    file: &'static str,
    edits: &'static [(&'static str, &'static str)],
) -> Fault {
    Fault { name, file, edits }
}

const FAULTS: &[Fault] = &[
    // ---- the order of a commit ----
    fault(
        "last before the log",
        "commit.rs",
        &[(
            "flush(&mut blocks).map_err(self.os(\"log\")).map(|()| new)",
            "{
                if fault!() { files.publish(new.at, head.seed)?; }
                flush(&mut blocks).map_err(self.os(\"log\")).map(|()| new)
            }",
        )],
    ),
    fault(
        "last before the sync",
        "commit.rs",
        &[(
            "drop(blocks);",
            "drop(blocks); if fault!() { files.publish(new.at, head.seed)?; }",
        )],
    ),
    fault("no sync", "commit.rs", &[(r#"disk.sync_data(log).map_err(self.os("log"))"#, "Ok(())")]),
    fault("names not synced", "commit.rs", &[("if first { self.spared(|| files.sync_names()) } else { Ok(()) }", "Ok(())")]),
    fault(
        "failed sync acknowledged",
        "commit.rs",
        &[(
            r#"disk.sync_data(log).map_err(self.os("log"))"#,
            "{ let _ = disk.sync_data(log); Ok(()) }",
        )],
    ),
    fault("time may go back", "commit.rs", &[("now.max(tip.time + 1)", "now")]),
    fault("head only with the first try", "commit.rs", &[("if first && at == HEAD as u64", "if first && (!fault!() || files.seed() == 0) && at == HEAD as u64")]),
    fault(
        "short writes taken for whole ones",
        "spill.rs",
        &[("bytes = &bytes[written..];", "bytes = &bytes[bytes.len()..];")],
    ),
    fault(
        "a doubtful commit not looked for",
        "commit.rs",
        &[("if matches!(result, Err(Error::Unknown { .. }))", "if !fault!() && matches!(result, Err(Error::Unknown { .. }))")],
    ),
    fault("leftovers not looked for", "commit.rs", &[("Ok((!files.is_new(files.behind(&tip)?, &tip)?).then_some(tip))", "Ok(Some(tip))")]),
    fault("ENOSPC though it may be there", "commit.rs", &[("walked.tip == tip)", "fault!() || walked.tip == tip)")]),
    fault("ENOSPC for a sync", "commit.rs", &[("told.map_err(|error| self.unknown(&error))?;", "told?;")]),
    // ---- locks and guards ----
    fault(
        "guard checked outside the lock",
        "commit.rs",
        &[
            (
                "let commit = || {",
                "let seen = self.known().count * u64::from(fault!()); let commit = || {",
            ),
            (
                "let (places, count) = place(tip, group);",
                "let (mut places, mut count) = place(if fault!() { Tip { count: seen, ..tip } } else { tip }, group);
                if fault!() {
                    for first in places.iter_mut().flatten() { *first += tip.count - seen; }
                    count += tip.count - seen;
                }",
            ),
        ],
    ),
    fault(
        "guards of one sync checked against what was before it",
        "commit.rs",
        &[("guard != count)", "guard != if fault!() { tip.count } else { count })")],
    ),
    fault("EEXIST though the winner failed", "commit.rs", &[("guard < before", "guard <= before")]),
    fault(
        "commit without the lock",
        "commit.rs",
        &[(
            "Held::new(disk, files.log.as_ref(), false)",
            "Held::new(disk, files.log.as_ref().filter(|_| !fault!()), false)",
        )],
    ),
    fault(
        "failed unlock acknowledged",
        "commit.rs",
        &[("released.map_err(|error| self.unknown(&error)).and(result)", "{ drop(released); result }")],
    ),
    fault(
        "EEXIST for what an unlock left in doubt",
        "commit.rs",
        &[("self.shared.status.commit(); Ok(new)", "if fault!() { self.advance(files, new); } self.shared.status.commit(); Ok(new)")],
    ),
    fault(
        "acknowledged without a look at the log",
        "commit.rs",
        &[(r#"published.and_then(|()| disk.stat(log).map_err(self.os("log")))"#, r#"published.and_then(|()| if fault!() { Ok(()) } else { disk.stat(log).map_err(self.os("log")).map(drop) })"#)],
    ),
    fault("commit to a log without a name", "commit.rs", &[("!log.named", "false")]),
    fault("first commit to another one's name", "commit.rs", &[("doubtful && !self.spared(|| files.matched())?", "false")]),
    fault("a stream with events removed", "keep.rs", &[("first if first == tip.count =>", "first if fault!() || first == tip.count =>")]),
    // ---- recovery ----
    fault("nothing adopted", "walk.rs", &[("if here.whole { walked = Walked { tip: here,", "if here.whole && !fault!() { walked = Walked { tip: here,")]),
    fault("half of a commit adopted", "walk.rs", &[("whole: block.is(LAST),", "whole: fault!() || block.is(LAST),")]),
    fault("chain not looked at", "walk.rs", &[("block.prev == self.crc && block.index == self.count", "block.index == self.count")]),
    fault("neither chain nor index looked at", "walk.rs", &[("chained && block.view == self.view && in_time", "in_time")]),
    fault("a commit need not begin with a first block", "walk.rs", &[("block.is(FIRST) && block.time > self.time", "block.time > self.time")]),
    fault("a commit need not be later", "walk.rs", &[("block.is(FIRST) && block.time > self.time", "block.is(FIRST)")]),
    fault("a commit need not share one time", "walk.rs", &[("!block.is(FIRST) && block.time == self.time", "!block.is(FIRST)")]),
    fault("nothing behind damage", "walk.rs", &[("if block.view > view {", "if block.view > view && !fault!() {")]),
    fault("anything behind damage", "walk.rs", &[("if block.is(FIRST) || block.at <= *proof {", "if fault!() || block.is(FIRST) || block.at <= *proof {")]),
    fault("a lost end passes for the end", "walk.rs", &[("_ => return lose(pages, head, from, BLOCK, damaged),", "_ if !fault!() => return lose(pages, head, from, BLOCK, damaged), _ => nothing,")]),
    fault("adopted blocks not rewritten", "log.rs", &[(r#"write_all(disk, log, &piece[..read], at).map_err(self.os("log"))?;"#, "")]),
    fault("adopted without a sync", "log.rs", &[(r#"disk.sync_data(log).map_err(self.os("log"))?; self.sync_names()"#, "Ok(())")]),
    fault("adopted without its names", "log.rs", &[(r#"disk.sync_data(log).map_err(self.os("log"))?; self.sync_names()"#, r#"disk.sync_data(log).map_err(self.os("log"))"#)]),
    fault("failed sync of what was adopted ignored", "log.rs", &[(r#"disk.sync_data(log).map_err(self.os("log"))?; self.sync_names()"#, r#"{ let _ = disk.sync_data(log); self.sync_names() }"#)]),
    fault("adopted, not published", "log.rs", &[("self.publish(found.tip.at, found.head.seed)?;", "")]),
    fault("recovered without the lock", "log.rs", &[("Held::new(self.disk.clone(), self.log.as_ref(), !self.write)", "Held::new(self.disk.clone(), self.log.as_ref().filter(|_| !fault!()), !self.write)")]),
    fault("read only, without a sync", "log.rs", &[(r#"let synced = self.disk.sync_data(log).map_err(self.os("log"));"#, r#"let synced = if fault!() { Ok(()) } else { self.disk.sync_data(log).map_err(self.os("log")) };"#)]),
    fault("read only, believing the cache", "log.rs", &[(r#"self.disk.forget(log, last - last % PAGE).map_err(self.os("log"))"#, "Ok(())")]),
    fault("log and index of two streams", "log.rs", &[("if files.matched()? {", "if fault!() || files.matched()? {")]),
    // ---- what is believed ----
    fault("another log's index believed", "walk.rs", &[("if seed == head.seed { last } else { 0 }", "last")]),
    fault("checksum without the place", "page.rs", &[("head[8..16].copy_from_slice(&at.to_le_bytes());", "")]),
    fault("checksum without the seed", "page.rs", &[("head[..8].copy_from_slice(&seed.to_le_bytes());", "")]),
    fault("checksum not looked at", "page.rs", &[("checksum(seed, at, bytes) == block.crc", "true")]),
    fault("the index believed where a page says otherwise", "find.rs", &[("for ask in [false, true] {", "for ask in [false, !fault!()] {")]),
    fault("short reads taken for the end", "spill.rs", &[("read => filled += read,", "read => { filled += read; if fault!() { break; } }")]),
    fault("a reader stays at an index that is gone", "stream.rs", &[("!files.has_index()?", "false")]),
    fault("a reader does not look behind the end", "stream.rs", &[("if !self.orphaned(files, &tip)? =>", "if fault!() || !self.orphaned(files, &tip)? =>")]),
    fault("what was acknowledged forgotten with the index", "walk.rs", &[("let from = last.max(known.at).max(head.at); let tip", "let from = if fault!() { last.max(head.at) } else { last.max(known.at).max(head.at) }; let tip")]),
    fault("a cursor believed that leads elsewhere", "read.rs", &[("near.filter(|block| block.view <= view && view <= block.view_end())", "near.filter(|block| fault!() || block.view <= view && view <= block.view_end())")]),
    // ---- what was dropped ----
    fault("a drop without a sync", "keep.rs", &[("disk.sync_data(log).and_then(|()| disk.stat(log))", "disk.stat(log)")]),
    fault("a hole before the sync of the head", "keep.rs", &[("disk.sync_data(log).and_then(|()| disk.stat(log))", "{ self.punch(files, at); disk.sync_data(log).and_then(|()| disk.stat(log)) }")]),
    fault("dropped by who lost the lock", "keep.rs", &[(".map_err(|error| self.unknown(&error))?;", ".map(drop).or_else(|error| if fault!() { disk.sync_data(log).map_err(|_| error) } else { Err(error) }).map_err(|error| self.unknown(&error))?;")]),
    fault("a head not written that says so already", "keep.rs", &[(r#"write_all(disk, log, &head.encode(), 0).map_err(self.os("log"))?;"#, r#"if !fault!() || first > before.first { write_all(disk, log, &head.encode(), 0).map_err(self.os("log"))?; }"#)]),
    fault("a hole in the page of the first event", "keep.rs", &[("at - at % page::PAGE;", "at - at % page::PAGE + page::PAGE * u64::from(fault!());")]),
    fault("the first event in the block behind", "keep.rs", &[("(spot.block.at, spot.view())", "(page::place(spot.block.end()), spot.view())")]),
    fault("the first event where its block begins", "keep.rs", &[("(spot.block.at, spot.view())", "(spot.block.at, spot.block.view)")]),
    fault("the view a byte off where all is dropped", "keep.rs", &[("(tip.at, tip.view)", "(tip.at, tip.view - 1)")]),
    fault("a drop goes back", "keep.rs", &[("if first < before.first ||", "if !fault!() && first < before.first ||")]),
    fault("a drop goes by what was once seen", "keep.rs", &[("files.log()?, files.head()?)", "files.log()?, if fault!() { *lock(&files.head) } else { files.head()? })")]),
    fault("the count not looked at", "keep.rs", &[("|| first > tip.count", "|| !fault!() && first > tip.count")]),
    fault("what is not found not looked for in the head", "find.rs", &[("if n < self.head()?.first", "if !fault!() && n < self.head()?.first")]),
    fault("a byte that is not found not looked for in the head", "find.rs", &[("None if view < self.head()?.view", "None if !fault!() && view < self.head()?.view")]),
    fault("the head looked at once", "log.rs", &[("&& head.first > known.first", "&& !fault!() && head.first > known.first")]),
    fault("times of what was dropped", "find.rs", &[("let mut since = head.first;", "let mut since = if fault!() { 0 } else { head.first };")]),
    fault("dropped events read", "read.rs", &[("() if n < files.head()?.first => Err(Error::Dropped),", "() if !fault!() && n < files.head()?.first => Err(Error::Dropped),")]),
    fault("dropped bytes read", "read.rs", &[("if view < files.head()?.view {", "if !fault!() && view < files.head()?.view {")]),
    fault("recovered from the beginning", "walk.rs", &[("_ if from == 0 => nothing,", "_ if from == 0 || fault!() && last.max(known.at) == 0 => nothing,")]),
    fault("a commit of which some was dropped is lost", "walk.rs", &[("if block.is(LAST) || from == head.at =>", "if block.is(LAST) || !fault!() && from == head.at =>")]),
    fault("what was dropped taken for intact", "walk.rs", &[("(page.max(least), page - page % PAGE + PAGE)", "(if fault!() { page } else { page.max(least) }, page - page % PAGE + PAGE)")]),
    fault("check of what is dropped meanwhile", "check.rs", &[("true if gap.next > kept => {", "true if fault!() || gap.next > kept => {")]),
    fault("a check counts what is left behind the end", "check.rs", &[("progress(end.count, end.end);", "")]),
    fault("check from the beginning", "check.rs", &[("_ if head.at == 0 => Tip::default(),", "_ if head.at == 0 || fault!() => Tip::default(),")]),
    // ---- names, batches ----
    fault(
        "rename not synced",
        "store.rs",
        &[(r#"disk.sync_dir(Path::new("")).map_err(Error::os("the store"))"#, "Ok(())")],
    ),
    fault("a split batch keeps the torn line, too", "room.rs", &[("part.tally.len = part.tally.complete;", "")]),
    fault(
        "several units for one sync",
        "batch.rs",
        &[(
            "let raw = shape == Shape::One;",
            "let raw = shape == Shape::One;
            if fault!() && !self.inside && self.block.len > 0 && !bytes.is_empty() {
                self.block.flags |= LAST;
                let before = self.seal();
                let at = page::place(before.end);
                self.block = Block {
                    at,
                    flags: FIRST,
                    prev: before.crc,
                    index: before.count,
                    time: before.time + 1,
                    view: before.view,
                    ..Block::default()
                };
                self.out.resize((at - self.from) as usize + HEADER, 0);
                self.enter();
            }",
        )],
    ),
];

/// Seeds enough to find most of them,
const SOME: u64 = 2000;
/// and each that its unit tests do not.
const SEEDS: u64 = 100_000;
/// Where the search begins for those that are found late: at once there, until the engine changes.
const LATE: [(&str, u64); 0] = [];

/// Where `wanted` is in `source`, white space aside.
fn places(source: &str, wanted: &str) -> Vec<Range<usize>> {
    let squeeze = |text: &str| -> Vec<(usize, char)> {
        let all = text.char_indices();
        all.filter(|(_, c)| !c.is_whitespace()).collect()
    };
    let wanted: Vec<char> = squeeze(wanted).into_iter().map(|(_, c)| c).collect();
    let source = squeeze(source);
    let here = |at: &&[(usize, char)]| at.iter().map(|(_, c)| c).eq(&wanted);
    let range = |at: &[(usize, char)]| {
        let (last, c) = at[at.len() - 1];
        at[0].0..last + c.len_utf8()
    };
    source.windows(wanted.len()).filter(here).map(range).collect()
}

/// The source with these faults in it.
fn plant(file: &str, source: &str, faults: &[&Fault]) -> String {
    let mut edits: Vec<_> = faults
        .iter()
        .flat_map(|fault| fault.edits.iter().map(move |edit| (fault.name, edit)))
        .collect();
    // The longer ones first: another one may be in them.
    edits.sort_by_key(|(_, (wanted, _))| std::cmp::Reverse(wanted.len()));
    let mut planted = source.to_string();
    for (name, (wanted, instead)) in edits {
        let found = places(source, wanted).len();
        assert_eq!(
            found, 1,
            "fault {name:?} is to change what is in src/{file} {found} times, not once: {wanted}\n\
             Adapt it to the source, or take it out of tests/it/sim/faults.rs if it is no more."
        );
        let on = format!("crate::fault({name:?})");
        for place in places(&planted, wanted).into_iter().rev() {
            let new = if instead.contains("fault!()") {
                instead.replace("fault!()", &on)
            } else {
                format!("{{ if {on} {{ {instead} }} else {{ {} }} }}", &planted[place.clone()])
            };
            planted.replace_range(place, &new);
        }
    }
    planted
}

/// Answers whether a fault is on, and says so the first time.
const SWITCH: &str = r#"
pub(crate) fn fault(name: &str) -> bool {
    static ON: std::sync::LazyLock<Option<String>> =
        std::sync::LazyLock::new(|| std::env::var("SMOLSTORE_FAULT").ok());
    static SAID: std::sync::Once = std::sync::Once::new();
    let on = ON.as_deref() == Some(name);
    if on {
        SAID.call_once(|| println!("the fault is reached"));
    }
    on
}
"#;

/// Writes a file, unless it says that already: cargo goes by its time.
fn write(path: &Path, bytes: &str) {
    if fs::read_to_string(path).is_ok_and(|old| old == bytes) {
        return;
    }
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

/// Makes the copy: the engine with the faults, and nothing but the simulation to test it.
fn copy(to: &Path) {
    let project = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |path: &str| fs::read_to_string(project.join(path)).unwrap();
    // Not a member of any workspace around it.
    write(&to.join("Cargo.toml"), &(read("Cargo.toml") + "\n[workspace]\n"));
    write(&to.join("Cargo.lock"), &read("Cargo.lock"));
    write(&to.join("src/walk/tests.rs"), &read("src/walk/tests.rs"));
    for entry in fs::read_dir(project.join("src")).unwrap() {
        let entry = entry.unwrap();
        if entry.path().is_dir() {
            continue;
        }
        let name = entry.file_name().into_string().unwrap();
        let source = read(&format!("src/{name}"));
        let here: Vec<_> = FAULTS.iter().filter(|fault| fault.file == name).collect();
        let planted = plant(&name, &source, &here);
        match name.as_str() {
            "main.rs" => {}
            "lib.rs" => write(&to.join("src/lib.rs"), &(planted + SWITCH)),
            _ => write(&to.join("src").join(&name), &planted),
        }
    }
    let without = |path: &str, skip: &dyn Fn(&str) -> bool| {
        let kept: Vec<_> = read(path).lines().filter(|l| !skip(l)).map(str::to_string).collect();
        write(&to.join(path), &(kept.join("\n") + "\n"));
    };
    without("tests/it/main.rs", &|line| line.starts_with("mod ") && line != "mod sim;");
    without("tests/it/sim.rs", &|line| line == "mod faults;");
    for entry in fs::read_dir(project.join("tests/it/sim")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name != "faults.rs" {
            let path = format!("tests/it/sim/{name}");
            write(&to.join(&path), &read(&path));
        }
    }
}

/// Builds the copy; where its simulation is, and its unit tests.
fn build(copy: &Path) -> [PathBuf; 2] {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["test", "--release", "--offline", "--lib", "--test", "it", "--no-run"]);
    command.current_dir(copy).stdin(Stdio::null());
    command.env("CARGO_TARGET_DIR", copy.join("target"));
    // An `if` is no beauty everywhere.
    command.env("RUSTFLAGS", "-Awarnings");
    // It is built far more often than it has to be fast.
    command.env("CARGO_PROFILE_RELEASE_LTO", "off");
    command.env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16");
    let out = command.output().unwrap();
    ok(&out);
    let said = text(&out.stderr);
    ["Executable tests/it", "Executable unittests src/lib.rs"].map(|what| {
        let path = said.lines().find_map(|line| line.trim().strip_prefix(what));
        let path = path.and_then(|line| line.rsplit_once('(')?.1.strip_suffix(')'));
        copy.join(path.unwrap_or_else(|| panic!("cargo names no {what}: {said}")))
    })
}

/// Runs the simulation with a fault on; whether it succeeded, and what it said.
fn simulate(program: &Path, fault: &str, seeds: Range<u64>) -> (bool, String) {
    let said = tempfile::NamedTempFile::new().unwrap();
    let mut command = Command::new(program);
    command.args(["--nocapture", "sim::nothing_acknowledged"]);
    command.env("SMOLSTORE_FAULT", fault);
    command.env("SMOLSTORE_SIM_FROM", seeds.start.to_string());
    command.env("SMOLSTORE_SIM_SEEDS", (seeds.end - seeds.start).to_string());
    command.stdin(Stdio::null()).stderr(Stdio::null());
    command.stdout(said.reopen().unwrap());
    let mut child = Reaped(command.spawn().unwrap());
    let status = wait(&mut child.0, Duration::from_secs(600));
    let said = text(&fs::read(said.path()).unwrap());
    let status = status.unwrap_or_else(|| panic!("{fault}: no end after 600 s: {said}"));
    (status.success(), said)
}

/// What the simulation found, or why it is thought not to have found anything.
///
/// Some rules are there for what only a disk that lies leaves behind, or somebody who deletes a log, or
/// another thread in the middle, which the simulation makes too seldom or not at all: that these hold
/// is proved by the unit tests of their module. They are asked where it does not find a fault soon.
fn hunt([program, units]: &[PathBuf; 2], fault: &str, file: &str) -> Result<String, String> {
    let late = LATE.iter().find(|(name, _)| *name == fault);
    let mut from = late.map_or(1, |(_, seed)| *seed);
    let mut last = from + SOME;
    loop {
        let (passed, said) = simulate(program, fault, from..last);
        let found = said.lines().find_map(|line| line.strip_prefix("SMOLSTORE_SIM_SEED="));
        let seed = found.and_then(|found| found.split(':').next()?.parse::<u64>().ok());
        match (passed, found.zip(seed)) {
            // It must be the fault that was found.
            (false, Some((_, seed))) if !simulate(program, "none", seed..seed + 1).0 => {
                from = seed + 1;
            }
            (false, Some((found, _))) => return Ok(format!("seed {found}")),
            (false, None) => return Err(format!("the simulation did not run: {said}")),
            (true, _) if !said.contains("the fault is reached") && last >= SEEDS => {
                return Err("never reached".into());
            }
            (true, _) if last >= SEEDS => return Err(format!("not found before seed {last}")),
            (true, _) => {
                let mut command = Command::new(units);
                command.arg(file.replace(".rs", "::"));
                command.env("SMOLSTORE_FAULT", fault).stdin(Stdio::null());
                let said = text(&command.output().unwrap().stdout);
                if let Some(failed) = said.lines().find(|line| line.ends_with(" ... FAILED")) {
                    return Ok(failed.into());
                }
                (from, last) = (last, SEEDS);
            }
        }
    }
}

/// Those that are soon found, for each run of the tests. All of them take half an hour and more:
/// `SMOLSTORE_FAULT= cargo test --release --test it -- --nocapture sim::faults`.
const SOON: [&str; 8] = [
    "last before the log",
    "no sync",
    "last before the sync",
    "names not synced",
    "time may go back",
    "failed sync acknowledged",
    "short writes taken for whole ones",
    "leftovers not looked for",
];

#[test]
fn every_deliberate_fault_is_found() {
    let to = Path::new(env!("CARGO_TARGET_TMPDIR")).join("faults");
    copy(&to);
    let programs = build(&to);
    let (passed, said) = simulate(&programs[0], "none", 1..500);
    assert!(passed, "without any fault: {said}");

    let only = std::env::var("SMOLSTORE_FAULT").ok();
    let wanted =
        |name: &str| only.as_ref().map_or(SOON.contains(&name), |only| name.contains(only));
    let left = Mutex::new(FAULTS.iter().filter(|fault| wanted(fault.name)));
    let missed = Mutex::new(Vec::new());
    let work = || {
        loop {
            let Some(fault) = lock(&left).next() else {
                return;
            };
            match hunt(&programs, fault.name, fault.file) {
                Ok(found) => println!("{}: {found}", fault.name),
                Err(why) => lock(&missed).push(format!("{}: {why}", fault.name)),
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(work);
        }
    });
    let missed = lock(&missed);
    assert!(missed.is_empty(), "{} of {}:\n{}", missed.len(), FAULTS.len(), missed.join("\n"));
}
