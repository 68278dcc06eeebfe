//! What /proc says of the process behind a request.
//!
//! The kernel sends the same FLUSH for a close and for the death of a process. Whether the process
//! is exiting, and of what, is in `/proc/PID/stat`: proc_pid_stat(5), fields 9 and 52.

use std::{fmt, fs};

use crate::sys;

/// Why a writer's file is being closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It called close, exec or exit.
    Closed,
    /// A signal killed it.
    Killed {
        /// The name of the program.
        program: String,
        /// The signal's number.
        signal: u64,
    },
    /// It is exiting, and possibly killed; we are not allowed to know.
    Unknown,
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Ending::Closed => f.write_str("closed"),
            Ending::Killed { program, signal } => write!(f, "({program}) died by signal {signal}"),
            Ending::Unknown => f.write_str("ended, perhaps by a signal,"),
        }
    }
}

/// The task is exiting; from the kernel's include/linux/sched.h.
const PF_EXITING: u64 = 0x4;
/// A signal ended the task, which is also so for the other threads of a process that calls exit.
const PF_SIGNALED: u64 = 0x400;

/// Why the thread `pid` is closing a file. `pid` 0 is a thread in a pid namespace that we cannot
/// see; all that can be said is that it closes.
pub(crate) fn ending(pid: u32) -> Ending {
    // Who has memory is not exiting. It may be in the middle of an exec, waiting for our answer
    // with the lock held that reading `stat` waits for (and ps, for the whole machine to see);
    // reading `status` does not.
    match fs::read_to_string(format!("/proc/{pid}/status")) {
        Ok(status) if !status.contains("\nVmSize:") => {}
        _ => return Ending::Closed,
    }
    let permitted = || fs::read_link(format!("/proc/{pid}/root")).is_ok();
    judge(&fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default(), permitted)
}

/// Whether a thread has a signal to attend to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Signalled {
    /// It has none.
    No,
    /// It has, or is gone.
    Thread,
    /// Its process has, and one of its threads, perhaps another, will take it.
    Process,
    /// It is hidden from us.
    Unknown,
}

/// Whether the thread `pid` has a signal to attend to; 0 is one in a pid namespace that we cannot see.
pub(crate) fn signalled(pid: u32) -> Signalled {
    match fs::read_to_string(format!("/proc/{pid}/status")) {
        Ok(status) => pending(&status),
        Err(_) if sys::exists(pid) => Signalled::Unknown,
        Err(_) => Signalled::Thread,
    }
}

/// Reads a status file: a signal is pending, for the thread or its process, and not blocked.
fn pending(status: &str) -> Signalled {
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
    let mask = |name: &str| {
        let mask = field(name).map(|mask| u64::from_str_radix(mask.trim(), 16));
        mask.and_then(Result::ok).unwrap_or(0)
    };
    let open = !mask("SigBlk:");
    let alone = field("Threads:").is_some_and(|threads| threads.trim() == "1");
    match (mask("SigPnd:") & open != 0, mask("ShdPnd:") & open != 0) {
        (false, false) => Signalled::No,
        (false, true) if !alone => Signalled::Process,
        _ => Signalled::Thread,
    }
}

/// Reads a stat file. `permitted` says whether the kernel shows us what it hides from strangers,
/// which includes the exit code.
fn judge(stat: &str, permitted: impl FnOnce() -> bool) -> Ending {
    // The name of the program, field 2, is in parentheses and may hold spaces and parentheses.
    let (name, fields) = stat.rsplit_once(") ").unwrap_or_default();
    let field = |n: usize| fields.split(' ').nth(n - 3).and_then(|f| f.trim().parse().ok());
    let flags: u64 = field(9).unwrap_or(0);
    let exit_code: u64 = field(52).unwrap_or(0);
    match () {
        () if flags & PF_EXITING == 0 => Ending::Closed,
        () if exit_code & 0x7f != 0 => Ending::Killed {
            program: name.split_once('(').unwrap_or_default().1.into(),
            signal: exit_code & 0x7f,
        },
        () if flags & PF_SIGNALED == 0 || permitted() => Ending::Closed,
        () => Ending::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stat(flags: u64, exit_code: u64) -> String {
        let mut fields = vec!["0".to_owned(); 50];
        fields[0] = "R".to_owned();
        fields[9 - 3] = flags.to_string();
        fields[52 - 3] = exit_code.to_string();
        format!("17 (a) b (c) {}\n", fields.join(" "))
    }

    #[test]
    fn a_signal_is_told_from_an_exit() {
        let killed = |signal| Ending::Killed { program: "a) b (c".into(), signal };
        let exiting = PF_EXITING;
        let signaled = PF_EXITING | PF_SIGNALED;
        for (flags, exit_code, permitted, expected) in [
            (0, 0, true, Ending::Closed),
            (PF_SIGNALED, 9, true, Ending::Closed),
            (exiting, 0, true, Ending::Closed),
            (exiting, 3 << 8, true, Ending::Closed),
            (signaled, 9, true, killed(9)),
            (signaled, 11 | 0x80, true, killed(11)),
            (signaled, 0, true, Ending::Closed),
            (signaled, 0, false, Ending::Unknown),
            (exiting, 0, false, Ending::Closed),
        ] {
            assert_eq!(judge(&stat(flags, exit_code), || permitted), expected);
        }
        assert_eq!(judge("", || true), Ending::Closed);
    }

    #[test]
    fn a_signal_is_pending_unless_it_is_blocked() {
        let status = |threads: u32, thread: u32, process: u32, blocked: u32| {
            pending(&format!(
                "Name:\tx\nThreads:\t{threads}\nSigQ:\t1/9\nSigPnd:\t{thread:016x}\n\
                 ShdPnd:\t{process:016x}\nSigBlk:\t{blocked:016x}\nSigIgn:\t0000000000000000\n"
            ))
        };
        assert_eq!(status(1, 0, 0, 2), Signalled::No);
        assert_eq!(status(4, 2, 2, 2), Signalled::No);
        assert_eq!(status(4, 2, 0, 0), Signalled::Thread);
        assert_eq!(status(1, 0, 0x4000, 2), Signalled::Thread);
        assert_eq!(status(4, 0, 0x4000, 2), Signalled::Process);
    }
}
