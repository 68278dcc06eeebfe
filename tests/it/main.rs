//! Behaviour of the mounted system, through real mounts.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs,
    unreachable_pub,
    clippy::cast_possible_truncation,
    unsafe_code,
    clippy::undocumented_unsafe_blocks
)]

mod big;
mod binary;
mod check;
mod command;
mod commit;
mod concurrent;
mod damage;
mod death;
mod disks;
mod drop;
mod engine;
mod errors;
mod follow;
mod format;
mod fuzz;
mod guard;
mod harness;
mod home;
mod hostile;
mod hosts;
mod identity;
mod json;
mod languages;
mod limits;
mod manual;
mod programs;
mod read;
mod recipes;
mod regressions;
mod shells;
mod sim;
mod status;
mod tour;
mod tree;
