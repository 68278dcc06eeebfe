//! The mounted tree: every row of its table, and what ordinary tools see of it.

mod horizons;
mod listing;
mod metadata;
mod streams;
mod tools;

use std::fs;
use std::path::Path;

const LINKS: [&str; 3] = ["beginning", "newest", "next"];

fn size(path: impl AsRef<Path>) -> u64 {
    fs::metadata(path).unwrap().len()
}

fn link(path: impl AsRef<Path>) -> String {
    fs::read_link(path).unwrap().into_os_string().into_string().unwrap()
}
