//! Hostile users: whatever they ask for, however much of it, and however long they hold on to it,
//! the daemon lives on in bounded memory and serves everyone else.

mod calls;
mod holders;
mod names;
mod writes;

use crate::harness::*;
use std::io;
use std::path::PathBuf;

const PEAK_KIB_MAX: u64 = 128 * 1024;

/// Somebody who has nothing to do with it.
struct Bystander<'a> {
    m: &'a Mnt,
    stream: PathBuf,
    appended: u64,
}

impl<'a> Bystander<'a> {
    fn new(m: &'a Mnt) -> Bystander<'a> {
        let stream = m.stream("bystander");
        Bystander { m, stream, appended: 0 }
    }

    /// Can append and read, and the daemon has not taken too much for that.
    #[track_caller]
    fn is_served(&mut self) {
        let (s, n) = (self.stream.clone(), self.appended);
        within(20, move || {
            let line = format!("{n}\n");
            append(s.join("events"), &line);
            assert_eq!(count(&s), n + 1);
            assert_eq!(text(&read(s.join(format!("from/{n}")))), line);
            assert_eq!(text(&read(s.join("at/0"))), "0");
        });
        self.appended += 1;
        let peak = self.m.rss_peak_kib();
        assert!(peak < PEAK_KIB_MAX, "{peak} KiB");
    }
}

/// What a system call said: a number, or why not.
fn said(result: i64) -> io::Result<u64> {
    u64::try_from(result).map_err(|_| io::Error::last_os_error())
}

const MAX: i64 = i64::MAX;
/// An address of nothing.
const NOWHERE: *const libc::c_void = std::ptr::without_provenance(8);
