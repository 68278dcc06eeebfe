//! An event store whose whole client library is the file system: the engine, usable without a
//! mount, and the mount.
//!
//! The map, from the pure core to the edge; each module knows only those above it,
//! and `sys`:
//!
//! | module      | what it does                                    | must not know             |
//! |-------------|-------------------------------------------------|---------------------------|
//! | [`page`]    | bytes <-> blocks, every constant of the format  | files, clock, threads     |
//! | [`walk`]    | blocks in order; what recovery is to do         | files, clock, threads     |
//! | [`batch`]   | bytes of a writer -> events -> blocks           | files, clock, threads     |
//! | [`status`]  | what was done so far, counted                   | files, clock, threads     |
//! | [`error`]   | one error type, one match to errno              |                           |
//! | `hosts`     | which file systems hosts may share              | files, clock, threads     |
//! | `sys`       | system calls that std lacks; all of `unsafe`    |                           |
//! | [`news`]    | what hosts tell each other of a shared store     | streams                   |
//! | [`disk`]    | the few effects the engine needs, as one trait  | streams                   |
//! | `spill`     | a batch until its commit, in bounded memory     | streams                   |
//! | `log`       | open log and index of a stream; recovery        | batches                   |
//! | `find`      | where an event, a byte, a time is in a log      | batches                   |
//! | [`stream`]  | its open files, and its end                     | names, the mounted tree   |
//! | `read`      | its events, and bytes of its view               | names, the mounted tree   |
//! | `room`      | batches, and the room that they take up         | names, the mounted tree   |
//! | `commit`    | the queue in front of a commit, the commit      | names, the mounted tree   |
//! | `keep`      | dropping old events, removal, another name      | names, the mounted tree   |
//! | [`store`]   | names -> streams                                | the mounted tree          |
//! | [`check`]   | verify a stream, change nothing                 | the mounted tree          |
//! | [`proc`]    | what /proc says of the process behind a request |                           |
//! | [`wait`]    | those who wait for the next event               | fuser                     |
//! | [`node`]    | places in the mounted tree, horizons            | files, clock, threads     |
//! | [`json`]    | events as JSON                                  | files, clock, threads     |
//! | `objects`   | the events of a stream as JSON, in pieces       | fuser                     |
//! | `names`     | numbers for the streams that the kernel knows   | files, clock, threads     |
//! | [`attr`]    | what stat(2) tells                              | fuser                     |
//! | [`open`]    | open files: who may open what                   | fuser                     |
//! | `reader`    | open files: how far they were read              | fuser                     |
//! | `writer`    | open files: who wrote what, who is told         | fuser                     |
//! | [`tree`]    | the mounted tree: names, attributes, open files | fuser                     |
//! | `reply`     | the tree's answers in fuser's terms             |                           |
//! | [`fuse`]    | fuser's requests: convert, call, reply          |                           |
//!
//! `main` reads the arguments, creates every resource, and waits for signals.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod attr;
pub mod batch;
pub mod check;
mod commit;
pub mod disk;
pub mod error;
mod find;
pub mod fuse;
mod hosts;
pub mod json;
mod keep;
mod log;
mod names;
pub mod news;
pub mod node;
mod objects;
pub mod open;
pub mod page;
pub mod proc;
mod read;
mod reader;
mod reply;
mod room;
mod spill;
pub mod status;
pub mod store;
pub mod stream;
#[doc(hidden)]
pub mod sys;
pub mod tree;
pub mod wait;
pub mod walk;
mod writer;

pub use error::{Error, Result};
pub use store::Store;
pub use stream::{Event, Stream};
