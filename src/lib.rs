//! An event store whose whole client library is the file system: the engine, usable without a
//! mount, and the mount.
//!
//! The map, from the pure core to the edge; each module knows only those above it,
//! and `sys`:
//!
//! | module      | what it does                                    | must not know             |
//! |-------------|-------------------------------------------------|---------------------------|
//! | [`frame`]   | bytes <-> frame, every constant of the format   | files, clock, threads     |
//! | [`index`]   | entries; view offset <-> event                  | files, clock, threads     |
//! | [`batch`]   | bytes of a writer -> events                     | files, clock, threads     |
//! | [`recover`] | what was found of a stream -> what to do        | files, clock, threads     |
//! | [`status`]  | what was done so far, counted                   | files, clock, threads     |
//! | [`error`]   | one error type, one match to errno              |                           |
//! | `sys`       | system calls that std lacks; all of `unsafe`    |                           |
//! | [`disk`]    | the few effects the engine needs, as one trait  | streams                   |
//! | `spill`     | a batch until its commit, in bounded memory     | streams                   |
//! | `log`       | log and index of a stream: where its events are | batches                   |
//! | [`stream`]  | its open files, reading                         | names, the mounted tree   |
//! | `mend`      | open and recover                                | names, the mounted tree   |
//! | [`commit`]  | append: batches, their queue, the commit        | names, the mounted tree   |
//! | [`store`]   | names -> streams                                | the mounted tree          |
//! | [`check`]   | verify a stream, change nothing                 | the mounted tree          |
//! | [`proc`]    | what /proc says of the process behind a request |                           |
//! | [`wait`]    | those who wait for the next event               | fuser                     |
//! | [`node`]    | places in the mounted tree, horizons            | files, clock, threads     |
//! | `names`     | numbers for the streams that the kernel knows   | files, clock, threads     |
//! | [`attr`]    | what stat(2) tells                              | fuser                     |
//! | [`reader`]  | open files: how far they were read              | fuser                     |
//! | [`writer`]  | open files: who wrote what, who is told         | fuser                     |
//! | [`open`]    | open files: who may open what                   | fuser                     |
//! | [`tree`]    | the mounted tree: names, attributes, open files | fuser                     |
//! | `reply`     | the tree's answers in fuser's terms             |                           |
//! | [`fuse`]    | fuser's requests: convert, call, reply          |                           |
//!
//! Some are cut for length, not for layers: stream, mend and commit are one type.
//!
//! `main` reads the arguments, creates every resource, and waits for signals.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod attr;
pub mod batch;
pub mod check;
pub mod commit;
pub mod disk;
pub mod error;
pub mod frame;
pub mod fuse;
pub mod index;
mod log;
mod mend;
mod names;
pub mod node;
pub mod open;
pub mod proc;
pub mod reader;
pub mod recover;
mod reply;
mod spill;
pub mod status;
pub mod store;
pub mod stream;
#[doc(hidden)]
pub mod sys;
pub mod tree;
pub mod wait;
pub mod writer;

pub use error::{Error, Result};
pub use store::Store;
pub use stream::{Event, Stream};
