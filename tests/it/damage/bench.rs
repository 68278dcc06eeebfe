//! A stream to be damaged, with all that is known of it, and the ways to damage it.

use super::want::{End, Fate, Want};
use crate::format::{self, Block, HEAD, PAGE, blocks};
use crate::harness::*;
use smolstore::{Event, Store};
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use tempfile::TempDir;

/// An event up to 20 bytes short of the end of its page: nothing fits behind it.
const NEARLY: usize = usize::MAX;
/// An event up to the end of its page: its newline stands alone on the next.
const FULL: usize = usize::MAX - 1;
/// An event of so many bytes with newlines among them.
const RAW: usize = 50;

/// The sizes of the events of each batch. The one of 3,300 bytes lies across a page, and ends behind
/// the first block of the next one.
pub const BATCHES: [&[usize]; 10] = [
    &[7],
    &[0, 1, 40, 300, 0, 16, 121],
    &[23, RAW, 4],
    &[0, 0],
    &[3300],
    &[5, 60, 2],
    &[NEARLY],
    &[9, 400],
    &[FULL],
    &[30, 0],
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    Log,
    Index,
}

use Which::{Index, Log};

/// Log and index of a stream, byte by byte; an index may be gone.
type Bytes = (Vec<u8>, Option<Vec<u8>>);

#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// The bits of the byte there.
    Flip(Which, usize, u8),
    Cut(Which, usize),
    /// From there up to there it is as it was after so many commits, the length too where it ends.
    Replay(Which, usize, usize, usize),
    /// So many bytes from there were written over those there.
    Copy(Which, usize, usize, usize),
    /// The index is gone.
    Delete,
}

/// A store with a stream to be damaged, `s`, and another one.
pub struct Bench {
    dir: TempDir,
    pub events: Vec<Event>,
    /// The stream after each commit; the last is as it is now.
    states: Vec<Bytes>,
    /// The blocks of the log as it should be.
    pub blocks: Vec<Block>,
    pub random: Random,
}

impl Bench {
    pub fn new(seed: u64) -> Bench {
        // In memory where there is such a place: each case syncs several times.
        let dir = TempDir::new_in("/dev/shm").or_else(|_| TempDir::new()).unwrap();
        let mut random = Random(seed);
        let store = Store::open(dir.path(), false).unwrap();
        for name in ["s", "other"] {
            store.create(name, 0o755).unwrap();
        }
        let other = store.stream("other").unwrap();
        other.append(["untouched"], None).unwrap();
        let s = store.stream("s").unwrap();
        let mut bench = Bench {
            dir,
            events: Vec::new(),
            states: Vec::new(),
            blocks: Vec::new(),
            random: Random(seed + 100),
        };
        bench.states.push(bench.bytes());
        for sizes in BATCHES {
            let left = PAGE - bench.blocks.last().map_or(HEAD, Block::end) % PAGE;
            let batch: Vec<_> = sizes.iter().map(|len| sized(&mut random, *len, left)).collect();
            s.append(batch, None).unwrap();
            bench.states.push(bench.bytes());
            bench.blocks = blocks(&bench.intact().0);
        }
        bench.events = s.read(0).unwrap().map(Result::unwrap).collect();
        assert!(
            bench
                .blocks
                .iter()
                .any(|block| block.payload == b"\n" && block.flags & format::CONT > 0)
        );
        bench
    }

    fn path(&self, which: Which) -> PathBuf {
        let name = if which == Log { "s/log" } else { "s/index" };
        self.dir.path().join(name)
    }

    /// As it is on disk.
    pub fn bytes(&self) -> Bytes {
        (read(self.path(Log)), fs::read(self.path(Index)).ok())
    }

    /// As it should be.
    fn intact(&self) -> &Bytes {
        &self.states[self.states.len() - 1]
    }

    /// Where what matters ends, in either file.
    pub fn end(&self, which: Which) -> usize {
        match which {
            Log => self.blocks.last().unwrap().end(),
            Index => self.intact().1.as_ref().unwrap().len(),
        }
    }

    /// Each offset up to the end and a little behind it, some of those in the zeros there, the last.
    pub fn places(&self, which: Which) -> impl Iterator<Item = usize> + use<> {
        let (log, index) = self.intact();
        let file = if which == Log { log } else { index.as_ref().unwrap() };
        let (end, len) = (self.end(which), file.len());
        (0..end + 40).chain((end + 40..len).step_by(97)).chain([len - 1])
    }

    /// Makes it so on disk. Both stay the files they were.
    pub fn put(&self, (log, index): &Bytes) {
        let put = |which, bytes: &[u8]| {
            let mut options = OpenOptions::new();
            let file = options.write(true).create(true).truncate(false);
            let file = file.open(self.path(which)).unwrap();
            file.write_all_at(bytes, 0).unwrap();
            file.set_len(bytes.len() as u64).unwrap();
        };
        put(Log, log);
        match index {
            Some(index) => put(Index, index),
            None => fs::remove_file(self.path(Index)).unwrap_or_default(),
        }
    }

    pub fn damaged(&self, faults: &[Fault]) -> Bytes {
        let mut bytes = self.intact().clone();
        for fault in faults {
            self.damage(&mut bytes, *fault);
        }
        bytes
    }

    fn damage(&self, (log, index): &mut Bytes, fault: Fault) {
        let which = match fault {
            Fault::Delete => return *index = None,
            Fault::Flip(which, ..)
            | Fault::Cut(which, _)
            | Fault::Replay(which, ..)
            | Fault::Copy(which, ..) => which,
        };
        let bytes = match (which, index) {
            (Log, _) => log,
            (Index, Some(index)) => index,
            (Index, None) => return,
        };
        match fault {
            Fault::Flip(_, at, bits) => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= bits;
                }
            }
            Fault::Cut(_, len) => bytes.truncate(len),
            Fault::Replay(_, from, to, commits) => {
                let (log, index) = &self.states[commits];
                let old = if which == Log { log } else { index.as_ref().unwrap() };
                if to >= bytes.len() {
                    bytes.truncate(old.len().max(from));
                }
                for (at, byte) in bytes.iter_mut().enumerate().take(to).skip(from) {
                    *byte = old.get(at).copied().unwrap_or(0);
                }
            }
            Fault::Copy(_, from, to, len) => bytes.copy_within(from..from + len, to),
            Fault::Delete => {}
        }
    }

    /// What must hold of a stream with this damage.
    fn want(&self, damaged: &Bytes) -> Want {
        let (log, index) = damaged;
        let fates = self.fates(log);
        let of_ours =
            |index: &&Vec<u8>| index.get(8..16) == self.intact().1.as_ref().unwrap().get(8..16);
        let last = index.as_ref().filter(of_ours).map_or(0, |index| format::last(index) as usize);
        // Where recovery begins, and whether it can.
        let sound =
            |block: &&Block| log.get(block.at..block.end()) == Some(&block.encode(self.seed()));
        let begins = self.blocks.iter().filter(sound).find(|block| block.at == last);
        let lost = log.get(..HEAD) != self.intact().0.get(..HEAD)
            || last > 0 && begins.is_none_or(|block| block.flags & format::LAST == 0);
        let intact = self.blocks.iter().zip(&fates).filter(|(_, fate)| **fate == Fate::Right);
        let intact = intact.map(|(block, _)| block.next()).next_back().unwrap_or(0);
        let len = self.events.len() as u64;
        // Without an index it is the beginning of a commit that proves all before it.
        let sound = self.blocks.iter().zip(&fates).filter(|(_, fate)| **fate == Fate::Right);
        let first = |block: &Block| block.flags & format::FIRST > 0;
        let proof = sound.map(|(block, _)| block).rfind(|block| first(block));
        let proof = proof.map_or(0, |block| block.at);
        let mut damaged = self.blocks.iter().zip(&fates).filter(|(_, fate)| **fate != Fate::Right);
        let torn = damaged.find(|(block, _)| block.at >= proof).map(|(block, _)| block.at);
        let commit = |at| self.blocks.iter().rfind(|block| first(block) && block.at <= at).unwrap();
        let counts = match torn {
            _ if lost => intact.min(len)..=len,
            Some(torn) if last == 0 => commit(torn).index..=len,
            _ => len..=len,
        };
        let end = if lost { End::Lost } else { End::Sound };
        Want { events: self.events.clone(), fates: self.fates_of_events(&fates), end, counts }
    }

    fn seed(&self) -> u64 {
        format::head(&self.intact().0).unwrap()[0]
    }

    fn fates(&self, log: &[u8]) -> Vec<Fate> {
        let intact = &self.intact().0;
        let fate = |block: &Block| match log.get(block.at..block.end()) {
            bytes if bytes == intact.get(block.at..block.end()) => Fate::Right,
            _ => Fate::Bad,
        };
        self.blocks.iter().map(fate).collect()
    }

    fn fates_of_events(&self, blocks: &[Fate]) -> Vec<Fate> {
        let mut view = 0;
        let fate = |event: &Event| {
            let (begin, newline) = (view, view + event.bytes.len());
            view = newline + 1;
            let mut fate = Fate::Right;
            for (block, its) in self.blocks.iter().zip(blocks) {
                let end = block.view + block.payload.len();
                if block.view < view && end > begin {
                    // Of one whose newline alone is elsewhere all bytes are there.
                    let newline_only = block.view == newline && newline > begin;
                    fate = fate.max(if newline_only { Fate::Either.min(*its) } else { *its });
                }
            }
            fate
        };
        self.events.iter().map(fate).collect()
    }

    pub fn open(&self, read_only: bool) -> Store {
        Store::open(self.dir.path(), read_only).unwrap()
    }

    /// A batch for behind the end.
    pub fn batch(&mut self) -> [Vec<u8>; 2] {
        [self.random.below(40), 0].map(|len| self.random.event(len))
    }

    /// Damage that a store finds when it opens the stream.
    pub fn found(&mut self, faults: &[Fault]) {
        let _says = Says(faults);
        let damaged = self.damaged(faults);
        let mut want = self.want(&damaged);
        self.put(&damaged);
        // Each sync takes its time: one in four is looked at from all sides.
        if self.random.below(4) > 0 {
            let read_only = self.random.below(2) > 0;
            return want.check(&self.open(read_only), &mut self.random);
        }
        let dir = self.dir.path().join("s");
        let before = names(&dir);
        want.check(&self.open(true), &mut self.random);
        assert!(self.bytes() == damaged, "a read-only store wrote");
        assert_eq!(names(&dir), before, "a read-only store wrote");

        let store = self.open(false);
        want.check(&store, &mut self.random);
        let (stream, batch) = (store.stream("s").unwrap(), self.batch());
        let appended = stream.append(&batch, None);
        if want.end == End::Lost {
            assert_eq!(appended.unwrap_err().errno(), libc::EIO);
            assert!(self.bytes().0 == damaged.0, "it changed what was acknowledged");
        } else {
            want.forget(appended.clone().unwrap());
            want.appended(appended.unwrap(), &stream, batch);
            want.check(&store, &mut self.random);
        }
        drop(store);
        want.check(&self.open(false), &mut self.random);
    }

    /// One fault, made while stores have the stream open and have read it.
    pub fn made(&mut self, fault: Fault) {
        let _says = Says(&[fault]);
        self.put(&self.intact().clone());
        let [reader, writer] = [true, false].map(|read_only| self.open(read_only));
        let open = [&reader, &writer].map(|store| store.stream("s").unwrap());
        for stream in &open {
            let read = stream.read(0).unwrap().flatten();
            assert_eq!(read.count(), self.events.len());
        }
        let damaged = self.damaged(&[fault]);
        let mut want = self.want(&damaged);
        self.put(&damaged);
        // They know how many there were, and may have no reason to look again.
        if want.end == End::Lost {
            want.end = End::Either;
        }
        want.check(&reader, &mut self.random);
        assert!(self.bytes() == damaged, "a read-only store wrote");
        want.check(&writer, &mut self.random);
        let batch = self.batch();
        match open[1].append(&batch, None) {
            // The newest may be damaged: nobody looked at it.
            Err(error) => assert!(want.end == End::Either && error.errno() == libc::EIO, "{error}"),
            Ok(place) => {
                want.appended(place, &open[1], batch);
                want.check(&writer, &mut self.random);
            }
        }
        drop((open, writer, reader));
        want.check(&self.open(false), &mut self.random);
    }
}

/// Of a size as `BATCHES` says, where so much of the page is left.
fn sized(random: &mut Random, len: usize, left: usize) -> Vec<u8> {
    match len {
        NEARLY => random.event(left - format::HEADER - 1 - 20),
        FULL => random.event(left - format::HEADER),
        RAW => b"any\nbytes\n".repeat(5),
        len => random.event(len),
    }
}

/// Tells of the damage when a test fails.
pub struct Says<'a>(pub &'a [Fault]);

impl Drop for Says<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the damage was {:?}", self.0);
        }
    }
}
