//! The command: arguments, wiring, signals, exit code.

use std::fs;
use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio, exit};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use fuser::{Config, MountOption, Session, SessionACL};
use smolstore::check::Finding;
use smolstore::fuse::Fuse;
use smolstore::tree::Tree;
use smolstore::wait::LOOKS_A_SECOND;
use smolstore::{Error, Store, proc, sys};

const HELP: &str = "\
smolstore: an event store whose whole client library is the file system

usage: smolstore STORE MOUNTPOINT [-f] [-o OPTION[,OPTION...]]...
       smolstore check STORE [STREAM...]

Mounts the store in the directory STORE (an empty one becomes a store) at MOUNTPOINT.
Goes to the background once the mount serves requests, and exits 0 only then.

  -f             stay in the foreground, log to standard error instead of syslog
  -o ro          read-only: the store is not written to in any way
  -o allow_other let other users in; modes and owners decide what they may do
  -h, --help     print this
  -V, --version  print the version

The options of mount(8) that hold for any file system are accepted.
SIGTERM and SIGINT unmount. Exit status: 0 mounted (with -f: unmounted), 1 failed, 2 usage.

check verifies all that is in STORE, or those streams, and changes nothing; they may be in use. It
prints a line for each fault. Exit status: 0 healthy, 1 faults found, 2 it could not check all.
";

/// Threads that take requests. Those of a commit wait for the disk, one for each stream.
const THREADS: usize = 64;

/// What the command line asks for.
struct Arguments {
    store: PathBuf,
    mount_point: PathBuf,
    foreground: bool,
    read_only: bool,
    allow_other: bool,
    options: Vec<MountOption>,
}

enum Parsed {
    Mount(Arguments),
    Print(String),
}

fn parse(arguments: impl Iterator<Item = std::ffi::OsString>) -> Result<Parsed, String> {
    let mut paths = Vec::new();
    let (mut foreground, mut literal) = (false, false);
    let mut given = Vec::new();
    let mut arguments = arguments;
    while let Some(argument) = arguments.next() {
        match argument.to_str() {
            Some(option) if !literal && option.len() > 1 && option.starts_with('-') => match option
            {
                "-h" | "--help" => return Ok(Parsed::Print(HELP.into())),
                "-V" | "--version" => {
                    let version = env!("CARGO_PKG_VERSION");
                    return Ok(Parsed::Print(format!("smolstore {version}\n")));
                }
                "-f" => foreground = true,
                "--" => literal = true,
                "-o" => {
                    let options = arguments.next().ok_or("-o needs an option")?;
                    given.push(options.to_string_lossy().into_owned());
                }
                option => match option.strip_prefix("-o") {
                    Some(options) => given.push(options.into()),
                    None => return Err(format!("unknown option {option}")),
                },
            },
            _ => paths.push(PathBuf::from(argument)),
        }
    }
    let [store, mount_point] = <[PathBuf; 2]>::try_from(paths)
        .map_err(|_| "a STORE and a MOUNTPOINT are needed, and no more")?;
    let mut arguments = Arguments {
        store,
        mount_point,
        foreground,
        read_only: false,
        allow_other: false,
        options: Vec::new(),
    };
    for option in given.iter().flat_map(|options| options.split(',')) {
        arguments.option(option)?;
    }
    Ok(Parsed::Mount(arguments))
}

impl Arguments {
    fn option(&mut self, option: &str) -> Result<(), String> {
        let kernel = match option {
            "ro" => {
                self.read_only = true;
                return Ok(());
            }
            "rw" => {
                self.read_only = false;
                return Ok(());
            }
            "allow_other" => {
                self.allow_other = true;
                return Ok(());
            }
            "dev" => MountOption::Dev,
            "nodev" => MountOption::NoDev,
            "suid" => MountOption::Suid,
            "nosuid" => MountOption::NoSuid,
            "exec" => MountOption::Exec,
            "noexec" => MountOption::NoExec,
            "atime" => MountOption::Atime,
            "noatime" => MountOption::NoAtime,
            // For mount(8), systemd and others; or what we do in any case.
            ""
            | "defaults"
            | "auto"
            | "noauto"
            | "nofail"
            | "_netdev"
            | "user"
            | "nouser"
            | "users"
            | "nousers"
            | "owner"
            | "group"
            | "relatime"
            | "norelatime"
            | "strictatime"
            | "nostrictatime"
            | "lazytime"
            | "nolazytime"
            | "diratime"
            | "nodiratime"
            | "sync"
            | "async"
            | "dirsync"
            | "silent"
            | "loud"
            | "default_permissions" => return Ok(()),
            other if other.starts_with("x-") || other.starts_with("comment=") => return Ok(()),
            "remount" => return Err("remount is not possible: unmount and mount again".into()),
            other => return Err(format!("unknown mount option {other}")),
        };
        // Of opposites the last one holds, as for mount(8).
        let opposite = match kernel {
            MountOption::Dev => MountOption::NoDev,
            MountOption::NoDev => MountOption::Dev,
            MountOption::Suid => MountOption::NoSuid,
            MountOption::NoSuid => MountOption::Suid,
            MountOption::Exec => MountOption::NoExec,
            MountOption::NoExec => MountOption::Exec,
            MountOption::Atime => MountOption::NoAtime,
            _ => MountOption::Atime,
        };
        self.options
            .retain(|given| *given != opposite && *given != kernel);
        self.options.push(kernel);
        Ok(())
    }
}

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1).peekable();
    if arguments.next_if(|first| first == "check").is_some() {
        return check(arguments.map(PathBuf::from)).unwrap_or_else(|message| {
            eprintln!("smolstore: {message}");
            ExitCode::from(2)
        });
    }
    let arguments = match parse(arguments) {
        Ok(Parsed::Mount(arguments)) => arguments,
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
    let started = if arguments.foreground {
        mount(&arguments, None)
    } else {
        in_background(&arguments)
    };
    match started {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("smolstore: {message}");
            ExitCode::FAILURE
        }
    }
}

/// Leaves a child to serve the mount; returns when it does.
fn in_background(arguments: &Arguments) -> Result<(), String> {
    let (mut serves, report) = io::pipe().map_err(|error| format!("a pipe: {error}"))?;
    match sys::fork().map_err(|error| format!("cannot start in the background: {error}"))? {
        None => {
            drop(serves);
            mount(arguments, Some(report.into()))
        }
        Some(_) => {
            drop(report);
            let mut word = Vec::new();
            match serves.read_to_end(&mut word) {
                Ok(_) if !word.is_empty() => Ok(()),
                // The child has said why.
                _ => exit(1),
            }
        }
    }
}

/// Mounts, tells `report`, and serves until a signal or an unmount.
fn mount(arguments: &Arguments, report: Option<OwnedFd>) -> Result<(), String> {
    let signals = sys::Signals::block().map_err(|error| format!("signals: {error}"))?;
    sys::set_limits();
    let (store_path, mount_point) = check_paths(arguments)?;

    let to_stderr = arguments.foreground;
    std::panic::set_hook(Box::new(move |fault| {
        log_line(to_stderr, &fault.to_string());
    }));
    let log = move |line: &str| log_line(to_stderr, line);
    let store = Store::with_log(&store_path, arguments.read_only, Box::new(log))
        .map_err(|error| error.to_string())?;

    let (user, _) = sys::user();
    let private = (!arguments.allow_other).then_some(user);
    let tree = Arc::new(Tree::new(store, store_path.clone(), private));
    let mut config = Config::default();
    config.n_threads = Some(THREADS);
    // fuser's own filter would let others write to a file they were handed, and then not commit.
    // Root may have all requests come in; the mode of the tree's root keeps others out.
    config.acl = if arguments.allow_other || user == 0 {
        SessionACL::All
    } else {
        SessionACL::Owner
    };
    config.mount_options = vec![
        MountOption::FSName(store_path.display().to_string()),
        // fuser leaves Subtype out of a direct mount.
        MountOption::CUSTOM("subtype=smolstore".into()),
        MountOption::DefaultPermissions,
    ];
    config.mount_options.extend(arguments.options.clone());
    if arguments.read_only {
        config.mount_options.push(MountOption::RO);
    }
    // Unmounted by somebody else. Not by way of fuser's destructors: they unmount what others have
    // mounted at the same place since.
    let serving = Arc::new(AtomicBool::new(false));
    let served = serving.clone();
    let ended = move || {
        if served.load(Relaxed) {
            exit(0);
        }
    };
    let fuse = Fuse::new(tree.clone(), Box::new(ended));
    let session =
        Session::new(fuse, &mount_point, &config).map_err(|error| explain(&mount_point, &error))?;
    serving.store(true, Relaxed);
    std::thread::spawn(move || session.run());
    // Answered by the threads just started.
    let device = fs::metadata(&mount_point)
        .map_err(|error| format!("{}: {error}", mount_point.display()))?
        .dev();
    let waiting = tree.clone();
    std::thread::spawn(move || {
        let mut was_mounted = true;
        for look in 0u32.. {
            std::thread::sleep(Duration::from_secs(1) / LOOKS_A_SECOND);
            waiting.waiters().look(proc::interrupted);
            // Who waits keeps a mount alive that was detached lazily.
            if look % LOOKS_A_SECOND == 0 {
                let is_mounted = mounted(device);
                if was_mounted && !is_mounted {
                    waiting.waiters().end();
                }
                was_mounted = is_mounted;
            }
        }
    });
    if let Some(report) = report {
        sys::detach().map_err(|error| format!("cannot leave the terminal: {error}"))?;
        // The parent may be gone; the mount is there all the same.
        let _ = fs::File::from(report).write_all(b"serving");
    }
    signals.wait();
    tree.waiters().end();
    if let Err(error) = unmount(&mount_point, device) {
        log_line(
            to_stderr,
            &format!("{}: cannot unmount: {error}", mount_point.display()),
        );
    }
    exit(0);
}

/// The paths as they will be used, when they can be.
fn check_paths(arguments: &Arguments) -> Result<(PathBuf, PathBuf), String> {
    let (store, mount_point) = (&arguments.store, &arguments.mount_point);
    let directory = |path: &Path, what: &str, advice: &str| -> Result<PathBuf, String> {
        let shown = path.display();
        match path
            .canonicalize()
            .and_then(|path| Ok((fs::metadata(&path)?, path)))
        {
            Ok((metadata, path)) if metadata.is_dir() => Ok(path),
            Ok(_) => Err(format!("{shown}: the {what} must be a directory")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(format!(
                "{shown}: the {what} does not exist: create it with 'mkdir {shown}'{advice}"
            )),
            Err(error) => Err(format!("{shown}: {error}")),
        }
    };
    let store = directory(store, "store", "; an empty directory becomes a store")?;
    // Not stat(2), which the kernel may answer from its cache for a while.
    if let Err(error) = sys::statvfs(mount_point)
        && error.raw_os_error() == Some(libc::ENOTCONN)
    {
        // What a killed daemon has left.
        detach(mount_point)
            .map_err(|error| format!("{}: a dead mount: {error}", mount_point.display()))?;
    }
    let mount_point = directory(mount_point, "mount point", "")?;
    if mount_point.starts_with(&store) {
        return Err(format!(
            "{}: the mount point is inside the store {}: choose one outside of it",
            mount_point.display(),
            store.display()
        ));
    }
    if store.starts_with(&mount_point) {
        return Err(format!(
            "{}: the mount point would hide the store {}: choose one beside it",
            mount_point.display(),
            store.display()
        ));
    }
    // "id parent major:minor root mount-point options ... - type source options"; blanks escaped.
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let ours = |line: &str| {
        let (place, kind) = line.split_once(" - ")?;
        let at = place.split(' ').nth(4)?;
        let escaped = mount_point.to_str()?.replace('\\', "\\134");
        let escaped = escaped.replace(' ', "\\040").replace('\t', "\\011");
        (at == escaped.replace('\n', "\\012") && kind.starts_with("fuse.smolstore ")).then_some(())
    };
    if mounts.lines().any(|line| ours(line).is_some()) {
        return Err(format!(
            "{}: busy: a store is mounted there already; 'umount {0}' first",
            mount_point.display()
        ));
    }
    Ok((store, mount_point))
}

/// What to do when fuser could not mount.
fn explain(mount_point: &Path, error: &io::Error) -> String {
    let mount_point = mount_point.display();
    if let Err(device) = fs::File::options().read(true).write(true).open("/dev/fuse") {
        return format!(
            "{mount_point}: cannot mount: /dev/fuse: {device}; it takes 'modprobe fuse', in a \
             container '--device /dev/fuse'"
        );
    }
    if error.to_string().contains("user_allow_other") {
        return format!(
            "{mount_point}: no right to let other users in: /etc/fuse.conf must say user_allow_other"
        );
    }
    match (error.kind(), sys::user()) {
        (io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied, (user, _)) if user != 0 => {
            format!(
                "{mount_point}: no right to mount: run it as root, or install fusermount3 \
                 (Debian: fuse3) and own the mount point"
            )
        }
        (io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied, _) => format!(
            "{mount_point}: no right to mount: CAP_SYS_ADMIN is missing; in a container \
             '--cap-add SYS_ADMIN'"
        ),
        _ => format!("{mount_point}: cannot mount: {}", error.to_string().trim()),
    }
}

/// Unmounts what is at `mount_point`, unless somebody has mounted something else there since.
fn unmount(mount_point: &Path, device: u64) -> io::Result<()> {
    if fs::metadata(mount_point).map(|there| there.dev()).ok() != Some(device) {
        return Ok(());
    }
    // Readers that were just told of the end are about to close.
    for _ in 0..10 {
        match sys::unmount(mount_point, false) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                std::thread::sleep(Duration::from_millis(30));
            }
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => break,
            result => return result,
        }
    }
    detach(mount_point)
}

/// Whether the file system is mounted anywhere that we can see.
fn mounted(device: u64) -> bool {
    let number = format!(" {}:{} ", libc::major(device), libc::minor(device));
    fs::read_to_string("/proc/self/mountinfo").map_or(true, |mounts| mounts.contains(&number))
}

/// Takes a mount away from its place; who still uses it gets ENOTCONN when we are gone.
fn detach(mount_point: &Path) -> io::Result<()> {
    match sys::unmount(mount_point, true) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            let status = Command::new("fusermount3")
                .args(["-u", "-z", "--"])
                .arg(mount_point)
                .stderr(Stdio::null())
                .status()?;
            if status.success() { Ok(()) } else { Err(error) }
        }
        result => result,
    }
}

/// Standard error in the foreground, syslog (RFC 3164, facility daemon, level warning) otherwise.
fn log_line(to_stderr: bool, line: &str) {
    if to_stderr {
        let _ = writeln!(io::stderr(), "smolstore: {line}");
        return;
    }
    let pid = std::process::id();
    // Without a syslog there is nowhere left to say it.
    let _ = UnixDatagram::unbound().and_then(|socket| {
        socket.send_to(
            format!("<28>smolstore[{pid}]: {line}").as_bytes(),
            "/dev/log",
        )
    });
}

/// `smolstore check STORE [STREAM...]`.
fn check(mut arguments: impl Iterator<Item = PathBuf>) -> Result<ExitCode, String> {
    let path = arguments.next().ok_or("check needs a STORE")?;
    let mark = path.join(".smolstore");
    fs::metadata(&mark).map_err(|error| format!("{}: no store: {error}", mark.display()))?;
    let store = Store::open(&path, true).map_err(|error| error.to_string())?;
    let mut names: Vec<PathBuf> = arguments.collect();
    let listed = names.is_empty();
    if listed {
        let streams = store.streams().map_err(|error| error.to_string())?;
        let streams: io::Result<Vec<_>> = streams.map(|name| name.map(PathBuf::from)).collect();
        names = streams.map_err(|error| format!("{}: {error}", path.display()))?;
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
    let _ = writeln!(
        io::stdout(),
        "{streams} streams, {events} events, {bytes} bytes: {found}"
    );
    Ok(ExitCode::from(if failed {
        2
    } else {
        u8::from(faults > 0)
    }))
}

/// Takes the progress off the terminal.
fn clear(terminal: bool) {
    if terminal {
        eprint!("\r\x1b[K");
    }
}
