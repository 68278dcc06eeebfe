//! Signals to who waits: a wait ends, stops and goes on as that of a pipe does.

use super::{A_WHILE, Follower, SOON, ms, three};
use crate::harness::*;
use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

const WAITING: [&str; 2] = [
    "ulimit -c 0; exec cat follow/next",
    "ulimit -c 0; exec python3 -ISc '
import signal
signal.signal(signal.SIGINT, signal.SIG_DFL)
print(open(\"follow/next\").readline())'",
];

#[test]
fn signals_end_a_waiting_reader() {
    let m = Mnt::new();
    let s = three(&m);
    for program in WAITING {
        for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGKILL, libc::SIGQUIT, libc::SIGHUP] {
            let mut reader = Follower::sh(&s, program);
            reader.is_quiet(A_WHILE);
            let start = Instant::now();
            reader.signal(signal);
            assert_eq!(reader.ends().signal(), Some(signal), "{program}");
            eprintln!("signal {signal} after {:?}", start.elapsed());
        }
    }
}

#[test]
fn python_raises_keyboard_interrupt_out_of_a_wait() {
    let m = Mnt::new();
    let s = three(&m);
    let script = "
try:
    open('follow/next').readline()
except KeyboardInterrupt:
    print('interrupted', flush=True)
";
    let mut reader = Follower::start(&s, &["python3", "-ISc", script]);
    reader.is_quiet(A_WHILE);
    reader.signal(libc::SIGINT);
    reader.prints(&["interrupted"]);
    reader.ends_well();
}

#[test]
fn a_waiting_reader_can_be_stopped_and_continued() {
    let m = Mnt::new();
    let s = three(&m);
    for program in WAITING {
        for signal in [libc::SIGTSTP, libc::SIGSTOP, libc::SIGTTIN] {
            let mut reader = Follower::sh(&s, program);
            reader.is_quiet(A_WHILE);
            reader.signal(signal);
            eventually("it is stopped", || reader.state() == 'T');
            append(s.join("events"), "meanwhile\n");
            reader.is_quiet(A_WHILE);
            reader.signal(libc::SIGCONT);
            reader.prints(&["meanwhile"]);
        }
    }
}

#[test]
fn a_process_ends_while_its_threads_wait() {
    let m = Mnt::new();
    let s = three(&m);
    let script = "
import os, threading, time
def follow():
    open('follow/next').readline()
for _ in range(20):
    threading.Thread(target=follow).start()
time.sleep(.4)
os._exit(7)
";
    let mut reader = Follower::start(&s, &["python3", "-ISc", script]);
    reader.is_quiet(ms(100));
    let status = wait(&mut reader.child, Duration::from_secs(5));
    assert_eq!(status.expect("it must end").code(), Some(7));
}

/// Signals a program does not attend to must not show: perl, node and awk take EINTR for an error.
#[test]
fn no_reader_is_told_of_signals_it_does_not_handle() {
    need("perl", "perl");
    let m = Mnt::new();
    let s = three(&m);
    let perl = r#"
use POSIX;
POSIX::sigprocmask(SIG_BLOCK, POSIX::SigSet->new(SIGUSR1, SIGRTMIN));
$SIG{USR2} = 'IGNORE';
open(my $file, '<', 'follow/next') or die;
sysread($file, my $bytes, 100) // die "sysread: $!";
print $bytes;
"#;
    let python = "
import os, signal
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1, signal.SIGRTMIN])
signal.signal(signal.SIGUSR2, signal.SIG_IGN)
print(os.read(os.open('follow/next', os.O_RDONLY), 100).decode(), end='')
";
    for command in [["perl", "-e", perl], ["python3", "-ISc", python]] {
        let mut reader = Follower::start(&s, &command);
        reader.is_quiet(ms(600));
        for signal in [
            libc::SIGCHLD,
            libc::SIGWINCH,
            libc::SIGURG,
            libc::SIGCONT,
            libc::SIGUSR1,
            libc::SIGUSR2,
            libc::SIGRTMIN(),
        ] {
            reader.signal(signal);
            reader.is_quiet(ms(200));
        }
        append(s.join("events"), "line\n");
        reader.prints(&["line"]);
        reader.ends_well();
    }
}

#[test]
fn a_handler_runs_while_its_program_waits() {
    need("perl", "perl");
    let m = Mnt::new();
    let s = three(&m);
    let python = "
import signal
signal.signal(signal.SIGUSR1, lambda *_: print('handled', flush=True))
print(open('follow/next').readline())
";
    let mut reader = Follower::start(&s, &["python3", "-ISc", python]);
    reader.is_quiet(A_WHILE);
    for _ in 0..3 {
        reader.signal(libc::SIGUSR1);
        reader.prints(&["handled"]);
        reader.is_quiet(ms(200));
    }
    append(s.join("events"), "line\n");
    reader.prints(&["line"]);
    // A program that asks for EINTR, which is how it gets out of the wait, has it.
    let perl = r"$SIG{ALRM} = sub { print qq(handled\n) }; $| = 1; alarm 1;
open(my $file, '<', 'follow/next') or die; defined sysread($file, my $b, 9) or print qq($!\n);";
    let mut reader = Follower::start(&s, &["perl", "-e", perl]);
    reader.prints(&["handled", "Interrupted system call"]);
    reader.ends_well();
}

#[test]
fn timeout_ends_a_wait() {
    let m = Mnt::new();
    let s = three(&m);
    let start = Instant::now();
    let out = sh("sh", "timeout 1 cat follow/0", &s);
    assert_eq!(text(&out.stdout), "0\n1\n2\n");
    assert_eq!(out.status.code(), Some(124));
    assert!(start.elapsed() < SOON + ms(1000));
}
