//! The mounted tree: any names and numbers, in any order, on a real store.

use super::page::head;
use super::script::{Part, SEED, lay};
use super::{Input, model};
use smolstore::attr::Attr;
use smolstore::error::Result;
use smolstore::node::Type;
use smolstore::open::Open;
use smolstore::page::Head;
use smolstore::proc::Ending;
use smolstore::tree::Tree;
use smolstore::walk::Tip;
use smolstore::{Error, Store};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::{SystemTime, UNIX_EPOCH};
use tempfile::TempDir;

// ---- the grammar -----------------------------------------------------------------------------

/// A horizon as the README has it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Horizon {
    /// Plain decimal, no sign, no leading zeros.
    Index(String),
    Beginning,
    Newest,
    Next,
    /// Whole seconds, without leading zeros, and the digits of the fraction.
    At(String, String),
}

/// `beginning | newest | next | 0 | [1-9][0-9]* | @[0-9]+(\.[0-9]+)?`
fn horizon(name: &[u8]) -> Option<Horizon> {
    let digits = |bytes: &[u8]| bytes.iter().take_while(|b| b.is_ascii_digit()).count();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    match name {
        b"beginning" => Some(Horizon::Beginning),
        b"newest" => Some(Horizon::Newest),
        b"next" => Some(Horizon::Next),
        b"0" => Some(Horizon::Index("0".into())),
        [b'1'..=b'9', rest @ ..] => {
            (digits(rest) == rest.len()).then(|| Horizon::Index(text(name)))
        }
        [b'@', rest @ ..] => {
            let (seconds, rest) = rest.split_at(digits(rest));
            let fraction = match rest {
                [] => &[],
                [b'.', fraction @ ..] if !fraction.is_empty() => fraction,
                _ => return None,
            };
            let sound = !seconds.is_empty() && digits(fraction) == fraction.len();
            let seconds = text(seconds);
            let seconds = seconds.trim_start_matches('0').to_string();
            sound.then(|| Horizon::At(seconds, text(fraction)))
        }
        _ => None,
    }
}

/// Orders two numbers by their digits, of any length, without leading zeros.
fn by_digits(a: &str, b: &str) -> std::cmp::Ordering {
    a.len().cmp(&b.len()).then(a.cmp(b))
}

/// Whether an event of this time (in nanoseconds) is at or after the seconds and their fraction.
fn is_since(time: u64, seconds: &str, fraction: &str) -> bool {
    let whole = (time / 1_000_000_000).to_string();
    let whole = whole.trim_start_matches('0');
    let nanos = format!("{:09}", time % 1_000_000_000);
    let width = fraction.len().max(9);
    let (nanos, fraction) = (format!("{nanos:0<width$}"), format!("{fraction:0<width$}"));
    by_digits(whole, seconds).then(nanos.cmp(&fraction)).is_ge()
}

/// Any file name that does not start with a dot and is not `lost+found`.
fn names_a_stream(name: &[u8]) -> bool {
    !name.is_empty() && !name.contains(&b'/') && name[0] != b'.' && name != b"lost+found"
}

/// What the kernel takes for a file name at all.
fn names_a_file(name: &[u8]) -> bool {
    name.len() <= 255 && !name.contains(&0)
}

// ---- the model -------------------------------------------------------------------------------

/// A stream: its events, and when they were committed where that is known.
#[derive(Clone, Debug, Default)]
struct Model {
    events: Vec<(Vec<u8>, u64)>,
    /// Another one of the same name has another.
    id: usize,
}

impl Model {
    fn count(&self) -> usize {
        self.events.len()
    }

    fn view(&self, from: usize) -> Vec<u8> {
        let lines = self.events[from..].iter();
        lines.flat_map(|(event, _)| event.iter().chain(b"\n")).copied().collect()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum View {
    From,
    At,
    Follow,
}

/// A place in the tree; streams by their ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Root,
    Stream(usize),
    Views(usize, View),
    /// Shows the view from an event on.
    Lines(usize, usize),
    At(usize, usize),
    Follow(usize, usize),
    New(usize),
    Count(usize),
    /// Nothing is dropped here.
    First(usize),
    /// Leads to an index as of now.
    Link(usize, usize),
    /// What the daemon tells of itself.
    Status,
}

struct World {
    tree: Tree,
    dir: TempDir,
    streams: BTreeMap<Vec<u8>, Model>,
    /// What the tree has told, and not been told to forget.
    known: BTreeMap<u64, Place>,
    last_id: usize,
}

const ROOT: u64 = 1;

/// After each step the tree is as the model says; at the end also for who opens it anew.
pub fn run(bytes: &[u8]) {
    let mut input = Input(bytes);
    let mut world = World::new(&mut input);
    for _ in 0..40 {
        if input.is_empty() {
            break;
        }
        world.step(&mut input);
    }
    world.holds();
    world.reopen(true);
    world.holds();
    assert_eq!(world.tree.mkdir(ROOT, "x".as_ref(), 0o755, user()).err(), Some(Error::ReadOnly));
}

fn nanos(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap();
    u64::try_from(since.as_nanos()).unwrap()
}

/// What there is to read now; nothing where a reader would wait.
fn read(file: &Arc<Open>, offset: u64, size: usize) -> Result<Vec<u8>> {
    let (answer, answered) = mpsc::channel();
    let answer = Box::new(move |read| answer.send(read).unwrap());
    file.read_on(offset, size, None, answer);
    match answered.recv().unwrap() {
        Err(Error::Again) => Ok(Vec::new()),
        read => read,
    }
}

fn user() -> (u32, u32) {
    smolstore::sys::user()
}

impl World {
    /// A store with the stream `t`, whose events have known times.
    fn new(input: &mut Input<'_>) -> World {
        let base = Path::new("/dev/shm");
        let dir = if base.is_dir() { TempDir::new_in(base) } else { TempDir::new() };
        let dir = dir.unwrap();
        let (mut log, mut tip) = (head(&Head { seed: SEED, ..Head::default() }), Tip::default());
        let (mut model, mut time) = (Model::default(), 0);
        for _ in 0..input.below(5) {
            let step = u64::from(input.byte());
            time += match step % 4 {
                0 => 1 + step,
                1 => step * 1_000_000_000,
                2 => 500_000_000,
                _ => 1 + (input.u64() >> 4),
            };
            let event = input.take(step as usize % 9);
            for (block, bytes) in lay(&tip, time, &[Part { raw: true, bytes: event.to_vec() }]) {
                log.extend(bytes);
                tip = model::behind(&block);
            }
            model.events.push((event.to_vec(), time));
        }
        let store = Store::open(dir.path(), false).unwrap();
        store.create("t", 0o755).unwrap();
        std::fs::write(dir.path().join("t/log"), log).unwrap();
        World {
            tree: Tree::new(store, dir.path().into(), None),
            dir,
            streams: BTreeMap::from([(b"t".to_vec(), model)]),
            known: BTreeMap::from([(ROOT, Place::Root)]),
            last_id: 0,
        }
    }

    fn reopen(&mut self, read_only: bool) {
        let store = Store::open(self.dir.path(), read_only).unwrap();
        self.tree = Tree::new(store, self.dir.path().into(), None);
        self.known = BTreeMap::from([(ROOT, Place::Root)]);
    }

    fn step(&mut self, input: &mut Input<'_>) {
        match input.byte() % 16 {
            0..6 => self.walk(input),
            6 => self.mkdir(input),
            7 => self.rmdir(input),
            8 => self.rename(input),
            9 | 10 => self.append(input),
            11 => self.create(input),
            12 => self.list(input),
            13 => self.anything(input),
            14 => self.forget(input),
            _ => self.reopen(false),
        }
    }

    fn model(&self, id: usize) -> &Model {
        let mut all = self.streams.values();
        all.find(|model| model.id == id).expect("it is there")
    }

    /// A name: one that means something, one that nearly does, or any bytes.
    fn name(&self, input: &mut Input<'_>) -> Vec<u8> {
        const NAMES: [&[u8]; 24] = [
            b"t",
            b"a",
            b"b",
            b"events",
            b"lines",
            b"new",
            b"count",
            b"from",
            b"at",
            b"follow",
            b"beginning",
            b"newest",
            b"next",
            b"lost+found",
            b".smolstore",
            b"..",
            b".",
            b"",
            b"a/b",
            b"@",
            b"00",
            b"-1",
            b"18446744073709551616",
            b"\xc3\xa4 \xff\n",
        ];
        match input.byte() {
            n @ 0..0x60 => NAMES[usize::from(n) % NAMES.len()].to_vec(),
            n @ 0x60..0x90 => (n % 8).to_string().into(),
            n @ 0x90..0xc0 => self.time_name(n, input),
            // Around the longest that a file system takes.
            n @ 0xc0..0xc4 => vec![b'x'; 253 + usize::from(n % 4)],
            _ => input.bytes().to_vec(),
        }
    }

    /// `@` and about the time of an event, with more or fewer digits.
    fn time_name(&self, n: u8, input: &mut Input<'_>) -> Vec<u8> {
        let times: Vec<u64> = self.streams.values().flat_map(|m| &m.events).map(|e| e.1).collect();
        let time = times.get(usize::from(n) % (times.len() + 1)).copied().unwrap_or(0);
        let how = input.byte();
        let time = time.saturating_add_signed([0, 1, -1, 500_000_000][usize::from(how) % 4]);
        let (seconds, nanos) = (time / 1_000_000_000, time % 1_000_000_000);
        match how >> 2 & 7 {
            0 => format!("@{seconds}"),
            1 => format!("@{seconds}.{nanos:09}0"),
            2 => format!("@{seconds}.{nanos:09}1"),
            3 => format!("@0{seconds}.{:03}", nanos / 1_000_000),
            4 => format!("@{seconds}.{nanos:09}."),
            5 => format!("@{seconds}{seconds}"),
            _ => format!("@{seconds}.{nanos:09}"),
        }
        .into()
    }

    /// What there is of this name.
    fn expected(&self, parent: Place, name: &[u8]) -> Option<Place> {
        match parent {
            Place::Root if name == b".status" => Some(Place::Status),
            Place::Root => {
                Some(Place::Stream(self.streams.get(name).filter(|_| names_a_stream(name))?.id))
            }
            Place::Stream(id) => match name {
                b"events" | b"lines" => Some(Place::Lines(id, 0)),
                b"new" => Some(Place::New(id)),
                b"count" => Some(Place::Count(id)),
                b"first" => Some(Place::First(id)),
                b"from" => Some(Place::Views(id, View::From)),
                b"at" => Some(Place::Views(id, View::At)),
                b"follow" => Some(Place::Views(id, View::Follow)),
                _ => None,
            },
            Place::Views(id, view) => {
                let model = self.model(id);
                let count = model.count();
                match horizon(name)? {
                    Horizon::Beginning => Some(Place::Link(id, 0)),
                    Horizon::Newest => Some(Place::Link(id, count.saturating_sub(1))),
                    Horizon::Next => Some(Place::Link(id, count)),
                    Horizon::At(seconds, fraction) => {
                        let first =
                            model.events.iter().position(|e| is_since(e.1, &seconds, &fraction));
                        Some(Place::Link(id, first.unwrap_or(count)))
                    }
                    Horizon::Index(n) => {
                        let last = if view == View::At { count.checked_sub(1)? } else { count };
                        let there = by_digits(&n, &last.to_string()).is_le();
                        let n = n.parse().ok().filter(|_| there)?;
                        Some(match view {
                            View::From => Place::Lines(id, n),
                            View::At => Place::At(id, n),
                            View::Follow => Place::Follow(id, n),
                        })
                    }
                }
            }
            _ => None,
        }
    }

    fn walk(&mut self, input: &mut Input<'_>) {
        let (mut at, mut place) = (ROOT, Place::Root);
        for _ in 0..1 + input.below(4) {
            let name = self.name(input);
            match self.lookup(at, place, &name) {
                Some((number, found)) => (at, place) = (number, found),
                None => return,
            }
        }
        self.read(at, place, input);
    }

    /// Looks a name up: it is there, as expected, or it is not.
    fn lookup(&mut self, at: u64, place: Place, name: &[u8]) -> Option<(u64, Place)> {
        let expected = self.expected(place, name);
        match (self.tree.lookup(at, OsStr::from_bytes(name)), expected) {
            (Ok(attr), Some(found)) => {
                self.is_as(attr, found);
                if let Place::Link(_, to) = found {
                    assert_eq!(self.tree.readlink(attr.node.number()), Ok(to.to_string()));
                }
                self.known.insert(attr.node.number(), found);
                Some((attr.node.number(), found))
            }
            (Err(error), None) => {
                let no_file = place == Place::Root && !names_a_file(name);
                assert!(error == Error::NotFound || no_file, "{name:?}: {error}");
                None
            }
            (found, expected) => {
                panic!("{name:?} in {place:?} is {found:?}, and should be {expected:?}")
            }
        }
    }

    fn is_as(&self, attr: Attr, place: Place) {
        let (kind, size) = match place {
            Place::Root | Place::Stream(_) | Place::Views(..) => (Type::Directory, None),
            Place::Lines(id, from) => (Type::File, Some(self.model(id).view(from).len())),
            Place::At(id, n) => (Type::File, self.model(id).events.get(n).map(|e| e.0.len())),
            Place::Status => (Type::File, None),
            Place::Follow(..) => (Type::File, Some(1)),
            Place::New(_) => (Type::File, Some(0)),
            Place::Count(id) => (Type::File, Some(self.model(id).count().to_string().len() + 1)),
            Place::First(_) => (Type::File, Some(2)),
            Place::Link(_, to) => (Type::Link, Some(to.to_string().len())),
        };
        assert_eq!(attr.node.file_type(), kind, "{place:?}");
        assert!(size.is_none_or(|size| attr.size == size as u64), "{place:?}: {attr:?}");
        if let Place::At(id, n) = place {
            assert_eq!(Some(nanos(attr.time)), self.model(id).events.get(n).map(|e| e.1));
        }
    }

    /// A file gives what the model has, from any offset on.
    fn read(&self, number: u64, place: Place, input: &mut Input<'_>) {
        let bytes = match place {
            Place::Lines(id, from) | Place::Follow(id, from) => self.model(id).view(from),
            Place::At(id, n) => self.model(id).events[n].0.clone(),
            Place::Count(id) => format!("{}\n", self.model(id).count()).into(),
            Place::First(_) => b"0\n".to_vec(),
            Place::New(_) => Vec::new(),
            Place::Status => {
                let handle = self.tree.open(number, libc::O_RDONLY).unwrap();
                let text = self.tree.text(number, handle).unwrap();
                assert!(text.starts_with("# HELP smolstore_"));
                return self.tree.release(handle).unwrap();
            }
            _ => {
                assert_eq!(
                    self.tree.open(number, libc::O_RDONLY).err(),
                    Some(self.not_a_file(place))
                );
                return;
            }
        };
        let handle = self.tree.open(number, libc::O_RDONLY).unwrap();
        let file = self.tree.file(handle).unwrap();
        assert_eq!(read(&file, 0, bytes.len() + 10).unwrap(), bytes);
        let (mut from, len) = (usize::from(input.byte()), usize::from(input.byte()));
        if let Place::Follow(..) = place {
            // It goes on where it was.
            from = bytes.len();
        }
        let part = bytes.iter().skip(from).take(len).copied();
        assert!(read(&file, from as u64, len).unwrap().into_iter().eq(part));
        self.tree.release(handle).unwrap();
        assert!(self.tree.file(handle).is_err());
    }

    fn not_a_file(&self, place: Place) -> Error {
        match place {
            Place::Root => Error::NotFound,
            _ => Error::NotPermitted,
        }
    }

    // ---- changes of names ----

    fn mkdir(&mut self, input: &mut Input<'_>) {
        let (parent, place) = self.some_number(input);
        let name = self.name(input);
        let made = self.tree.mkdir(parent, OsStr::from_bytes(&name), 0o755, user());
        if place != Place::Root {
            return assert_eq!(made.err(), Some(Error::NotPermitted));
        }
        match made {
            Ok(attr) => {
                assert!(
                    names_a_stream(&name)
                        && names_a_file(&name)
                        && !self.streams.contains_key(&name)
                );
                self.last_id += 1;
                let model = Model { events: Vec::new(), id: self.last_id };
                self.streams.insert(name, model);
                self.known.insert(attr.node.number(), Place::Stream(self.last_id));
            }
            Err(Error::Invalid) => assert!(!names_a_stream(&name)),
            Err(Error::Exists) => assert!(self.streams.contains_key(&name)),
            Err(error) => assert!(!names_a_file(&name), "mkdir {name:?}: {error}"),
        }
    }

    fn rmdir(&mut self, input: &mut Input<'_>) {
        let (parent, place) = self.some_number(input);
        let name = self.name(input);
        let removed = self.tree.rmdir(parent, OsStr::from_bytes(&name));
        let count = self.streams.get(&name).map(Model::count);
        match (place, count) {
            (Place::Root, Some(0)) => {
                assert_eq!(removed, Ok(()));
                self.gone(&name);
            }
            (Place::Root, Some(_)) => assert_eq!(removed, Err(Error::NotEmpty)),
            (Place::Root, None) => assert!(removed == Err(Error::NotFound) || !names_a_file(&name)),
            _ => assert_eq!(removed, Err(Error::NotPermitted)),
        }
    }

    /// A stream is no more: whoever still has its numbers is told so.
    fn gone(&mut self, name: &[u8]) {
        let id = self.streams.remove(name).unwrap().id;
        let (gone, known) = std::mem::take(&mut self.known)
            .into_iter()
            .partition(|(_, place)| place.stream() == Some(id));
        self.known = known;
        let gone: BTreeMap<u64, Place> = gone;
        for number in gone.into_keys() {
            assert_eq!(self.tree.attr(number).err(), Some(Error::NotFound));
        }
    }

    fn rename(&mut self, input: &mut Input<'_>) {
        let replace = input.byte() & 1 == 1;
        let (from, to) = (self.name(input), self.name(input));
        if from == to {
            // The kernel itself answers that.
            return;
        }
        let names = [&from, &to].map(|name| OsStr::from_bytes(name));
        let renamed = self.tree.rename((ROOT, names[0]), (ROOT, names[1]), replace);
        let there = self.streams.contains_key(&from);
        let free = self.streams.get(&to).is_none_or(|model| model.count() == 0);
        let allowed = replace || !self.streams.contains_key(&to);
        let sound = names_a_stream(&to) && names_a_file(&to);
        assert_eq!(
            renamed.is_ok(),
            there && free && allowed && sound,
            "{from:?} to {to:?}: {renamed:?}"
        );
        if renamed.is_ok() {
            if self.streams.contains_key(&to) {
                self.gone(&to);
            }
            let model = self.streams.remove(&from).unwrap();
            self.streams.insert(to, model);
        }
    }

    fn forget(&mut self, input: &mut Input<'_>) {
        let (number, place) = self.some_number(input);
        let Some(id) = place.stream() else {
            return self.tree.forget(number, 1);
        };
        self.tree.forget(number, u64::MAX);
        self.known.retain(|_, place| place.stream() != Some(id));
        assert_eq!(self.tree.attr(number).err(), Some(Error::NotFound));
    }

    /// One of the numbers that the tree has told.
    fn some_number(&self, input: &mut Input<'_>) -> (u64, Place) {
        let n = input.byte();
        // Often the root.
        let n = usize::from(n.saturating_sub(0x80)) % self.known.len();
        self.known.iter().nth(n).map(|(number, place)| (*number, *place)).unwrap()
    }

    // ---- appends ----

    /// Opens, writes and closes one of the files that take events.
    fn append(&mut self, input: &mut Input<'_>) {
        let name = self.name(input);
        let Some((stream, place)) = self.lookup(ROOT, Place::Root, &name) else {
            return;
        };
        let file = [&b"events"[..], b"lines", b"new", b"from"][input.below(4)];
        let Some((mut number, mut place)) = self.lookup(stream, place, file) else {
            panic!("{file:?} is in every stream");
        };
        let id = place.stream().unwrap();
        if file == b"from" {
            let name = self.name(input);
            match self.lookup(number, place, &name) {
                Some(found) => (number, place) = found,
                None => return,
            }
        }
        let opened = self.tree.open(number, libc::O_WRONLY | libc::O_APPEND);
        let taken = match place {
            Place::Lines(_, from) if file == b"from" => from < self.model(id).count(),
            Place::Lines(..) | Place::New(_) => false,
            _ => return assert_eq!(opened, Err(Error::NotPermitted)),
        };
        if taken {
            return assert_eq!(opened, Err(Error::Exists));
        }
        let bytes = self.write(opened.unwrap(), input);
        let events = match place {
            Place::New(_) => vec![bytes.clone(); usize::from(!bytes.is_empty())],
            _ => bytes
                .split_inclusive(|&b| b == b'\n')
                .map(|l| l.strip_suffix(b"\n").unwrap_or(l).to_vec())
                .collect(),
        };
        self.appended(id, events);
    }

    /// Writes in pieces, and closes.
    fn write(&self, handle: u64, input: &mut Input<'_>) -> Vec<u8> {
        let file = self.tree.file(handle).unwrap();
        let (done, answers) = mpsc::channel();
        let done = || {
            let done = done.clone();
            Box::new(move |result: Result<()>| done.send(result).unwrap())
        };
        let mut bytes = Vec::new();
        for n in 0..input.below(4) {
            let piece = input.bytes();
            file.write(7, (n as u64, bytes.len() as u64), piece, done());
            assert_eq!(answers.recv(), Ok(Ok(())));
            bytes.extend(piece);
        }
        assert_eq!(file.flush(7, || Ending::Closed, done()), None);
        assert_eq!(answers.recv(), Ok(Ok(())));
        self.tree.release(handle).unwrap();
        bytes
    }

    /// The events are there; their times are later than those before.
    fn appended(&mut self, id: usize, events: Vec<Vec<u8>>) {
        let (name, _) = self.streams.iter().find(|(_, model)| model.id == id).unwrap();
        let name = name.clone();
        let (_, stream) = self.lookup_path(&[&name, b"at"]);
        for event in events {
            let n = self.model(id).count();
            let attr = self.tree.lookup(stream, n.to_string().as_ref()).unwrap();
            let time = nanos(attr.time);
            let model = self.streams.get_mut(&name).unwrap();
            assert!(model.events.last().is_none_or(|last| last.1 <= time));
            model.events.push((event, time));
        }
        self.holds();
    }

    fn lookup_path(&mut self, path: &[&[u8]]) -> (Place, u64) {
        let (mut at, mut place) = (ROOT, Place::Root);
        for name in path {
            (at, place) = self.lookup(at, place, name).expect("it is there");
        }
        (place, at)
    }

    /// Creates `at/N`, or may not.
    fn create(&mut self, input: &mut Input<'_>) {
        let (parent, place) = self.some_number(input);
        let name = self.name(input);
        let created =
            self.tree.create(parent, OsStr::from_bytes(&name), libc::O_WRONLY | libc::O_CREAT);
        let (Place::Views(id, view), Some(Horizon::Index(n))) = (place, horizon(&name)) else {
            return assert_eq!(created.err(), Some(Error::NotPermitted));
        };
        let count = self.model(id).count().to_string();
        match by_digits(&n, &count) {
            std::cmp::Ordering::Less => {
                let taken =
                    [Error::NotPermitted, Error::Exists][usize::from(view == View::At)].clone();
                assert_eq!(created.err(), Some(taken));
            }
            std::cmp::Ordering::Equal if view == View::At => {
                let (_, handle) = created.unwrap();
                let bytes = self.write(handle, input);
                self.appended(id, vec![bytes.clone(); usize::from(!bytes.is_empty())]);
            }
            // A number that no index can be is not even that.
            _ => assert!([Error::NotFound, Error::NotPermitted].contains(&created.unwrap_err())),
        }
    }

    // ---- directories and numbers ----

    /// Lists a directory.
    fn list(&mut self, input: &mut Input<'_>) {
        let (number, place) = self.some_number(input);
        let mut expected: Vec<&[u8]> = match place {
            Place::Root => self.streams.keys().map(Vec::as_slice).collect(),
            Place::Stream(_) => {
                vec![b"events", b"lines", b"new", b"count", b"first", b"from", b"at", b"follow"]
            }
            Place::Views(_, View::Follow) => Vec::new(),
            Place::Views(..) => vec![b"beginning", b"newest", b"next"],
            _ => Vec::new(),
        };
        let file =
            expected.is_empty() && !matches!(place, Place::Root | Place::Views(_, View::Follow));
        expected.extend([&b"."[..], b".."]);
        let handle = self.tree.opendir(number).unwrap();
        let listed = self.tree.entries(handle, true);
        if !file {
            let listed = listed.unwrap();
            let mut names: Vec<&[u8]> = listed.iter().map(|entry| entry.2.as_bytes()).collect();
            names.sort_unstable();
            expected.sort_unstable();
            assert_eq!(names, expected);
            assert_eq!(*self.tree.entries(handle, false).unwrap(), *listed);
        }
        self.tree.release(handle).unwrap();
    }

    /// Whatever number and name the kernel comes with, it gets an answer.
    fn anything(&mut self, input: &mut Input<'_>) {
        let (known, _) = self.some_number(input);
        let number = match input.byte() {
            bit @ 0..64 => known ^ 1 << bit,
            _ => input.u64(),
        };
        let name = self.name(input);
        let name = OsStr::from_bytes(&name);
        drop(self.tree.attr(number));
        drop(self.tree.readlink(number));
        drop(self.tree.sync_names(number));
        let flags = [libc::O_RDONLY, libc::O_WRONLY, libc::O_WRONLY | libc::O_APPEND, libc::O_RDWR];
        if let Ok(handle) = self.tree.open(number, flags[input.below(4)]) {
            // The status has an open file of another kind.
            if let Ok(file) = self.tree.file(handle) {
                drop(read(&file, input.u64(), input.u16()));
            }
            self.tree.release(handle).unwrap();
        }
        if let Ok((_, handle)) = self.tree.create(number, name, libc::O_WRONLY) {
            self.tree.release(handle).unwrap();
        }
        drop(self.tree.truncate(number, Some(input.u64()), input.u64()));
        drop(self.tree.truncate(number, None, input.u64()));
        drop(self.tree.change(number, None, None, None));
        let handle = self.tree.opendir(number);
        drop(handle.and_then(|handle| self.tree.entries(handle, input.byte() & 1 == 0)));
        drop(self.tree.lookup(number, name));
        drop(self.tree.file(input.u64()));
        self.holds();
    }

    /// All that was told still is so.
    fn holds(&mut self) {
        for (number, place) in &self.known {
            let attr = self.tree.attr(*number).unwrap();
            // A link moves; a file that is created may have no event yet.
            match place {
                Place::Link(..) => assert_eq!(attr.node.file_type(), Type::Link),
                place => self.is_as(attr, *place),
            }
        }
        for name in self.streams.keys().cloned().collect::<Vec<_>>() {
            let (place, number) = self.lookup_path(&[&name, b"events"]);
            self.read(number, place, &mut Input(&[]));
        }
    }
}

impl Place {
    fn stream(self) -> Option<usize> {
        match self {
            Place::Root | Place::Status => None,
            Place::Stream(id) | Place::Views(id, _) | Place::Lines(id, _) | Place::At(id, _) => {
                Some(id)
            }
            Place::Follow(id, _)
            | Place::New(id)
            | Place::Count(id)
            | Place::First(id)
            | Place::Link(id, _) => Some(id),
        }
    }
}
