//! Places in the mounted tree: names, numbers, horizons. Pure: knows no file, clock or thread.
//!
//! ```text
//! /.status
//! /S/{events,lines,new,count,first}   /S/{from,at,follow}/{N,beginning,newest,next,@SECONDS}[.json]
//! ```
//!
//! A node number holds all there is to know of a node but the stream's name, so that memory does
//! not grow with the events that were ever looked at.

use std::ffi::OsStr;
use std::time::Duration;

use crate::error::{Error, Result};

/// A place in the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node {
    pub(crate) kind: Kind,
    /// Of a horizon: it shows its events as JSON.
    pub(crate) json: bool,
    /// Our number for the stream, never 0; of the root it is 0.
    pub(crate) stream: u32,
    /// Of a view the horizon; of a link its place in [`NAMED`], or behind those where it points; of
    /// `events` and `lines` the first event kept, for without those before it is another file.
    pub(crate) index: u64,
}

/// The kinds of nodes; the root's number is the one that FUSE has for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Root = 1,
    Stream,
    Events,
    Lines,
    New,
    Count,
    First,
    FromDir,
    AtDir,
    FollowDir,
    From,
    At,
    Follow,
    Link,
    Status,
}

const KINDS: [Kind; 15] = {
    use Kind::*;
    [
        Root, Stream, Events, Lines, New, Count, First, FromDir, AtDir, FollowDir, From, At,
        Follow, Link, Status,
    ]
};
/// What is in the directory of a stream.
pub(crate) const FILES: [(&str, Kind); 8] = [
    ("events", Kind::Events),
    ("lines", Kind::Lines),
    ("new", Kind::New),
    ("count", Kind::Count),
    ("first", Kind::First),
    ("from", Kind::FromDir),
    ("at", Kind::AtDir),
    ("follow", Kind::FollowDir),
];
/// What the daemon tells of itself, at the root; not listed, for what is listed there are streams.
pub(crate) const STATUS: &str = ".status";
/// The named horizons. A link to any other is looked up anew each time.
pub(crate) const NAMED: [&str; 3] = ["beginning", "newest", "next"];

pub(crate) const ROOT: Node = Node { kind: Kind::Root, json: false, stream: 0, index: 0 };
pub(crate) const STREAM_BITS: u32 = 23;
/// So many events of a stream can be addressed.
pub(crate) const INDICES: u64 = (1 << 36) - 4;

/// How long the kernel may believe a name or mode that another mount may change.
const LIFETIME: Duration = Duration::from_secs(1);

impl Node {
    /// The directory of a stream.
    pub(crate) fn stream(stream: u32) -> Node {
        Node { stream, ..ROOT }.beside(Kind::Stream, 0)
    }

    /// Its number: `index << 28 | stream << 5 | json << 4 | kind`.
    pub fn number(self) -> u64 {
        (self.index << STREAM_BITS | u64::from(self.stream)) << 5 | self.tag()
    }

    /// What it is, in five bits.
    fn tag(self) -> u64 {
        u64::from(self.json) << 4 | self.kind as u64
    }

    /// The node of a number. NotFound for one that was never given out.
    pub(crate) fn of(number: u64) -> Result<Node> {
        let kind = KINDS.iter().find(|kind| **kind as u64 == number & 0xf);
        Ok(Node {
            kind: *kind.ok_or(Error::NotFound)?,
            json: number & 0x10 > 0,
            stream: (number >> 5) as u32 & ((1 << STREAM_BITS) - 1),
            index: number >> (STREAM_BITS + 5),
        })
    }

    /// Its inode number, for good, of a stream with this `identity` (the root has 0). Within a stream
    /// all differ; those of two meet by chance. 53 bits, for JavaScript has no longer ones.
    pub(crate) fn inode(self, identity: u64) -> u64 {
        identity.wrapping_add(self.index << 5 | self.tag()) & ((1 << 53) - 1)
    }

    /// Another node of the same stream.
    pub(crate) fn beside(self, kind: Kind, index: u64) -> Node {
        Node { kind, index, json: false, ..self }
    }

    /// The directory that it is in.
    pub(crate) fn parent(self) -> Node {
        match self.kind {
            Kind::Root | Kind::Stream | Kind::Status => ROOT,
            _ => self.beside(Kind::Stream, 0),
        }
    }

    /// What a directory of horizons shows.
    pub(crate) fn view(self) -> Option<Kind> {
        match self.kind {
            Kind::FromDir => Some(Kind::From),
            Kind::AtDir => Some(Kind::At),
            Kind::FollowDir => Some(Kind::Follow),
            _ => None,
        }
    }

    /// What it is to stat(2).
    pub fn file_type(self) -> Type {
        match self.kind {
            Kind::Root | Kind::Stream => Type::Directory,
            Kind::Link => Type::Link,
            _ if self.view().is_some() => Type::Directory,
            _ => Type::File,
        }
    }

    /// How long the kernel may believe its name.
    pub fn name_lifetime(self) -> Duration {
        match self.kind {
            Kind::Link if self.index >= NAMED.len() as u64 => Duration::ZERO,
            _ => LIFETIME,
        }
    }

    /// How long it may believe what a stat said: the way to each file is through its stream.
    pub fn attr_lifetime(self) -> Duration {
        match self.kind {
            Kind::Root | Kind::Stream => LIFETIME,
            _ => Duration::ZERO,
        }
    }

    /// Whether it begins with the first event that is kept.
    pub(crate) fn begins(self) -> bool {
        matches!(self.kind, Kind::Events | Kind::Lines)
    }

    /// Whether it is read as a pipe is: what comes, and not from any place. JSON has no size that
    /// could be told without reading all events, nor a place that could be found.
    pub fn flows(self) -> bool {
        self.kind == Kind::Follow || self.json
    }
}

/// A horizon as it is written in a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Horizon {
    Index(u64),
    /// Its place in [`NAMED`].
    Named(u64),
    /// Nanoseconds since the Unix epoch.
    Time(u64),
}

/// Reads a horizon: an index in plain decimal, a name, or `@` and seconds with an optional
/// fraction.
pub(crate) fn horizon(name: &OsStr) -> Option<Horizon> {
    let name = name.to_str()?;
    if let Some((place, _)) = (0..).zip(NAMED).find(|(_, named)| *named == name) {
        return Some(Horizon::Named(place));
    }
    let Some(time) = name.strip_prefix('@') else {
        let index: u64 = name.parse().ok()?;
        return (index.to_string() == name).then_some(Horizon::Index(index));
    };
    let (seconds, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    if !digits(seconds) || !digits(fraction) {
        return None;
    }
    // Rounded up to a nanosecond: the first event at or after.
    let nanos: u64 = format!("{fraction:0<9}")[..9].parse().ok()?;
    let more = fraction.bytes().skip(9).any(|b| b != b'0');
    // Beyond what a time can be there is no event.
    let seconds: u64 = seconds.parse().unwrap_or(u64::MAX);
    let time = seconds.saturating_mul(1_000_000_000);
    Some(Horizon::Time(time.saturating_add(nanos + u64::from(more))))
}

/// What a node is to stat(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// A directory.
    Directory,
    /// A regular file.
    File,
    /// A symbolic link.
    Link,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt;

    #[test]
    fn horizons_are_as_documented() {
        let horizon = |name: &str| super::horizon(name.as_ref());
        for (name, index) in [("0", 0), ("7", 7), ("120", 120)] {
            assert_eq!(horizon(name), Some(Horizon::Index(index)));
        }
        for (name, nanos) in [
            ("@0", 0),
            ("@1", 1_000_000_000),
            ("@1.5", 1_500_000_000),
            ("@1.000000001", 1_000_000_001),
            ("@1.0000000010", 1_000_000_001),
            ("@1.0000000011", 1_000_000_002),
            ("@99999999999999999999999", u64::MAX),
        ] {
            assert_eq!(horizon(name), Some(Horizon::Time(nanos)), "{name}");
        }
        assert_eq!(horizon("newest"), Some(Horizon::Named(1)));
        for name in [
            "",
            "01",
            "+1",
            "-1",
            "1.0",
            " 1",
            "0x1",
            "@",
            "@-1",
            "@.5",
            "@1.",
            "@1.2.3",
            "Next",
            "99999999999999999999999",
        ] {
            assert_eq!(horizon(name), None, "{name}");
        }
    }

    proptest! {
        #[test]
        fn any_name_is_a_horizon_or_not(name: Vec<u8>) {
            horizon(&OsString::from_vec(name));
        }

        #[test]
        fn a_node_is_its_number(stream in 1u32..1 << STREAM_BITS, index in 0..=INDICES) {
            prop_assert_eq!(ROOT.number(), 1);
            for kind in KINDS {
                let node = Node::stream(stream).beside(kind, index);
                for node in [node, Node { json: true, ..node }] {
                    prop_assert_eq!(Node::of(node.number()), Ok(node));
                }
            }
            let link = Node::stream(stream).beside(Kind::Link, INDICES + NAMED.len() as u64);
            prop_assert_eq!(Node::of(link.number()), Ok(link));
        }

        #[test]
        fn inode_numbers_differ_within_a_stream(identity: u64, a in 0..=INDICES, b in 0..=INDICES) {
            let all = |index| {
                let nodes = KINDS.map(|kind| Node::stream(1).beside(kind, index));
                let both = nodes.into_iter().flat_map(|node| [node, Node { json: true, ..node }]);
                both.map(|node| node.inode(identity)).collect::<Vec<_>>()
            };
            let (these, those) = (all(a), all(b));
            prop_assert!(a == b || these.iter().all(|inode| !those.contains(inode)));
            let mut distinct = these;
            distinct.sort_unstable();
            distinct.dedup();
            prop_assert_eq!(distinct.len(), 2 * KINDS.len());
        }

        #[test]
        fn any_number_is_a_node_or_not(number: u64) {
            let _ = Node::of(number);
        }
    }
}
