//! The command: arguments, exit code, `check`.

mod mount;

use std::ffi::OsString;
use std::fs;
use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use fuser::MountOption;
use mount::Arguments;
use smolstore::check::Finding;
use smolstore::{Error, Store, sys};

const HELP: &str = "\
smolstore: an event store whose whole client library is the file system

usage: smolstore STORE MOUNTPOINT [-f] [-o OPTION[,OPTION...]]...
       smolstore check STORE [STREAM...]

Mounts the store in the directory STORE (an empty one becomes a store) at MOUNTPOINT.
Goes to the background once the mount serves requests, and exits 0 only then.

  -f             stay in the foreground, log to standard error instead of syslog
  -o ro          read-only: the store is not written to in any way
  -o allow_other let other users in; modes and owners decide what they may do
  -o single_host no other host mounts this store: for file systems where two could not
  -h, --help     print this
  -V, --version  print the version

The options of mount(8) that hold for any file system are accepted.
SIGTERM and SIGINT unmount, SIGUSR1 turns the tracing of requests on and off. Exit status: 0 mounted (with -f: unmounted), 1 failed, 2 usage.

check verifies all that is in STORE, or those streams, and changes nothing; they may be in use. It
prints a line for each fault. Exit status: 0 healthy, 1 faults found, 2 it could not check all.
";

enum Parsed {
    Mount(Arguments),
    Check(Vec<PathBuf>),
    Print(&'static str),
}

/// The flags of a mount.
const FLAGS: [(&str, MountOption); 8] = [
    ("dev", MountOption::Dev),
    ("nodev", MountOption::NoDev),
    ("suid", MountOption::Suid),
    ("nosuid", MountOption::NoSuid),
    ("exec", MountOption::Exec),
    ("noexec", MountOption::NoExec),
    ("atime", MountOption::Atime),
    ("noatime", MountOption::NoAtime),
];
/// Options for mount(8), systemd and others; or what we do in any case.
const IGNORED: &str = "\
    defaults auto noauto nofail _netdev user nouser users nousers owner group relatime norelatime \
    strictatime nostrictatime lazytime nolazytime diratime nodiratime sync async dirsync silent \
    loud iversion noiversion mand nomand symfollow default_permissions";

fn parse(arguments: impl Iterator<Item = OsString>) -> Result<Parsed, String> {
    let mut arguments = arguments.peekable();
    let checks = arguments.next_if(|first| first == "check").is_some();
    let mut parsed = Arguments::default();
    let mut paths = Vec::new();
    while let Some(argument) = arguments.next() {
        match argument.to_str().unwrap_or_default() {
            "-h" | "--help" => return Ok(Parsed::Print(HELP)),
            "-V" | "--version" => {
                return Ok(Parsed::Print(concat!("smolstore ", env!("CARGO_PKG_VERSION"), "\n")));
            }
            "--" => paths.extend(arguments.by_ref().map(PathBuf::from)),
            option if checks && option.starts_with('-') => {
                return Err(format!("check knows no option {option}"));
            }
            "-f" => parsed.foreground = true,
            option if option.starts_with("-o") => {
                let mut options = option[2..].to_string();
                if options.is_empty() {
                    let next = arguments.next().ok_or("-o needs an option")?;
                    options = next.to_string_lossy().into_owned();
                }
                options.split(',').try_for_each(|option| parsed.option(option))?;
            }
            option if option.len() > 1 && option.starts_with('-') => {
                return Err(format!("unknown option {option}"));
            }
            _ => paths.push(argument.into()),
        }
    }
    if checks {
        return Ok(Parsed::Check(paths));
    }
    [parsed.store, parsed.mount_point] = <[PathBuf; 2]>::try_from(paths)
        .map_err(|_| "a STORE and a MOUNTPOINT are needed, and no more")?;
    Ok(Parsed::Mount(parsed))
}

impl Arguments {
    fn option(&mut self, option: &str) -> Result<(), String> {
        if let Some((name, flag)) = FLAGS.iter().find(|(name, _)| *name == option) {
            // Of opposites the last one holds, as for mount(8).
            self.flags.insert(name.trim_start_matches("no"), flag.clone());
            return Ok(());
        }
        match option {
            "ro" => self.read_only = true,
            "rw" => self.read_only = false,
            "allow_other" => self.allow_other = true,
            "single_host" => self.single_host = true,
            "remount" => return Err("remount is not possible: unmount and mount again".into()),
            _ if option.is_empty() || IGNORED.split(' ').any(|ignored| ignored == option) => {}
            _ if option.starts_with("x-") || option.starts_with("comment=") => {}
            _ => return Err(format!("unknown mount option {option}")),
        }
        Ok(())
    }
}

fn main() -> ExitCode {
    let arguments = match parse(std::env::args_os().skip(1)) {
        Ok(Parsed::Mount(arguments)) => arguments,
        Ok(Parsed::Check(paths)) => {
            return check(paths).unwrap_or_else(|message| {
                eprintln!("smolstore: {message}");
                ExitCode::from(2)
            });
        }
        Ok(Parsed::Print(text)) => {
            // Whoever closed the pipe does not want it.
            let _ = io::stdout().write_all(text.as_bytes());
            return ExitCode::SUCCESS;
        }
        Err(message) => {
            eprintln!("smolstore: {message}\nTry 'smolstore --help'.");
            return ExitCode::from(2);
        }
    };
    sys::close_inherited();
    let started = match arguments.foreground {
        true => mount::mount(&arguments, None),
        false => mount::in_background(&arguments),
    };
    if let Err(message) = started {
        eprintln!("smolstore: {message}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// `smolstore check STORE [STREAM...]`.
fn check(paths: Vec<PathBuf>) -> Result<ExitCode, String> {
    let mut paths = paths.into_iter();
    let path = paths.next().ok_or("check needs a STORE\nTry 'smolstore --help'.")?;
    mount::not_within_a_mount(&path)?;
    let mark = path.join(".smolstore");
    fs::metadata(&mark).map_err(|error| {
        format!(
            "{}: no store: {error}; name the directory that you mount, as in \
             'smolstore STORE MOUNTPOINT'",
            mark.display()
        )
    })?;
    let store = Store::open(&path, true).map_err(|error| error.to_string())?;
    // A shell that completes a name adds a slash.
    let mut names: Vec<PathBuf> = paths.map(|name| name.components().collect()).collect();
    let listed = names.is_empty();
    if listed {
        let streams = store.streams().map_err(|error| error.to_string())?;
        let streams: io::Result<Vec<_>> = streams.map(|name| name.map(PathBuf::from)).collect();
        names = streams.map_err(mount::at(&path))?;
        names.sort();
    }
    let (mut streams, mut events, mut bytes, mut faults) = (0u64, 0, 0, 0u64);
    let (mut failed, mut shown) = (false, Instant::now());
    let terminal = io::stderr().is_terminal();
    for name in &names {
        let mut here = (0, 0);
        let mut tell = |finding: Finding| {
            clear(terminal);
            faults += u64::from(matches!(finding, Finding::Fault { .. }));
            // A closed pipe is seen by the exit status of who reads.
            let _ = writeln!(io::stdout(), "stream {name:?}, {finding}");
        };
        let mut progress = |n, at| {
            here = (n, at);
            if terminal && shown.elapsed() > Duration::from_millis(200) {
                shown = Instant::now();
                clear(true);
                eprint!("{}: {n} events, {} MB", name.display(), at / 1_000_000);
            }
        };
        match store.check(name, &mut tell, &mut progress) {
            Ok(()) => streams += 1,
            // Removed while we came to it.
            Err(Error::NotFound) if listed => {}
            Err(error) => {
                clear(terminal);
                eprintln!("smolstore: stream {name:?}: {error}");
                failed = true;
            }
        }
        (events, bytes) = (events + here.0, bytes + here.1);
    }
    clear(terminal);
    let found = match faults {
        0 if failed => "not all of it could be checked".into(),
        0 => "no faults".to_owned(),
        1 => "1 fault".into(),
        faults => format!("{faults} faults"),
    };
    let _ = writeln!(io::stdout(), "{streams} streams, {events} events, {bytes} bytes: {found}");
    Ok(ExitCode::from(if failed { 2 } else { u8::from(faults > 0) }))
}

/// Takes the progress off the terminal.
fn clear(terminal: bool) {
    if terminal {
        eprint!("\r\x1b[K");
    }
}
