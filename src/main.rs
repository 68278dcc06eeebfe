//! The command: arguments, wiring, signals, exit code.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, IsTerminal, PipeWriter, Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio, exit};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use fuser::{Config, MountOption, Session, SessionACL};
use smolstore::check::Finding;
use smolstore::fuse::Fuse;
use smolstore::tree::Tree;
use smolstore::wait::{LOOKS_A_SECOND, Waiters};
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
SIGTERM and SIGINT unmount, SIGUSR1 turns the tracing of requests on and off. Exit status: 0 mounted (with -f: unmounted), 1 failed, 2 usage.

check verifies all that is in STORE, or those streams, and changes nothing; they may be in use. It
prints a line for each fault. Exit status: 0 healthy, 1 faults found, 2 it could not check all.
";

/// Threads that take requests. Those of a commit wait for the disk, one for each stream.
const THREADS: usize = 88;

/// What the command line asks for.
#[derive(Default)]
struct Arguments {
    store: PathBuf,
    mount_point: PathBuf,
    foreground: bool,
    read_only: bool,
    allow_other: bool,
    flags: BTreeMap<&'static str, MountOption>,
}

enum Parsed {
    Mount(Arguments),
    Print(String),
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

fn parse(mut arguments: impl Iterator<Item = OsString>) -> Result<Parsed, String> {
    let mut parsed = Arguments::default();
    let mut paths = Vec::new();
    while let Some(argument) = arguments.next() {
        match argument.to_str().unwrap_or_default() {
            "-h" | "--help" => return Ok(Parsed::Print(HELP.into())),
            "-V" | "--version" => {
                let version = env!("CARGO_PKG_VERSION");
                return Ok(Parsed::Print(format!("smolstore {version}\n")));
            }
            "-f" => parsed.foreground = true,
            "--" => paths.extend(arguments.by_ref().map(PathBuf::from)),
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
            "remount" => return Err("remount is not possible: unmount and mount again".into()),
            _ if option.is_empty() || IGNORED.split(' ').any(|ignored| ignored == option) => {}
            _ if option.starts_with("x-") || option.starts_with("comment=") => {}
            _ => return Err(format!("unknown mount option {option}")),
        }
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
    let started = match arguments.foreground {
        true => mount(&arguments, None),
        false => in_background(&arguments),
    };
    if let Err(message) = started {
        eprintln!("smolstore: {message}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// Leaves a child to serve the mount; returns when it does.
fn in_background(arguments: &Arguments) -> Result<(), String> {
    let (mut serves, mut report) = io::pipe().map_err(|error| format!("a pipe: {error}"))?;
    match sys::fork().map_err(|error| format!("cannot start in the background: {error}"))? {
        None => {
            drop(serves);
            if let Err(message) = mount(arguments, Some(&mut report)) {
                eprintln!("smolstore: {message}");
            }
            // Only now does the parent read the end of the pipe: as the first process of a
            // container its exit is the end of this one.
            exit(1);
        }
        Some(_) => {
            drop(report);
            // A child that could not has said why.
            serves.read_exact(&mut [0]).or_else(|_| exit(1))
        }
    }
}

/// Mounts, tells `report`, and serves until a signal or an unmount.
fn mount(arguments: &Arguments, report: Option<&mut PipeWriter>) -> Result<(), String> {
    let signals = sys::Signals::block().map_err(|error| format!("signals: {error}"))?;
    sys::set_limits();
    let (store_path, mount_point) = check_paths(arguments)?;
    let mount_error = at(&mount_point);

    let to_stderr = arguments.foreground;
    let log = move |line: &str| log_line(to_stderr, line);
    std::panic::set_hook(Box::new(move |fault| log(&fault.to_string())));
    let store = Store::with_log(&store_path, arguments.read_only, Box::new(log))
        .map_err(|error| error.to_string())?;
    let private = (!arguments.allow_other).then_some(sys::user().0);
    let tree = Arc::new(Tree::new(store, store_path.clone(), private));
    let session = Session::new(Fuse(tree.clone()), &mount_point, &config(arguments, &store_path))
        .and_then(Session::spawn)
        .map_err(|error| explain(&mount_point, &error))?;
    // Unmounted by somebody else. The rest of the session is kept: it would unmount what others have
    // mounted at the same place since.
    let serving = session.guard;
    std::thread::spawn(move || {
        let _ = serving.join();
        exit(0);
    });
    // Answered by the threads just started.
    let device = fs::metadata(&mount_point).map_err(mount_error)?.dev();
    let waiting = tree.clone();
    std::thread::spawn(move || look_after(waiting.waiters(), device));
    if let Some(report) = report {
        sys::detach().map_err(|error| format!("cannot leave the terminal: {error}"))?;
        // The parent may be gone; the mount is there all the same.
        let _ = report.write_all(&[0]);
    }
    notify("READY=1");
    while signals.wait() == libc::SIGUSR1 {
        let tracing = !tree.tracing.fetch_xor(true, Relaxed);
        log(if tracing { "tracing requests" } else { "tracing no more" });
    }
    notify("STOPPING=1");
    tree.waiters().end();
    if let Err(error) = unmount(&mount_point, device) {
        log(&format!("{}: cannot unmount: {error}", mount_point.display()));
    }
    exit(0);
}

/// Tells systemd, where it started us and wants to know: sd_notify(3).
fn notify(state: &str) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    let address = match path.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(&path),
    };
    // Without an answer it will say itself that we are late.
    let _ =
        UnixDatagram::unbound().and_then(|socket| socket.send_to_addr(state.as_bytes(), &address?));
}

fn config(arguments: &Arguments, store: &Path) -> Config {
    let mut config = Config::default();
    config.n_threads = Some(THREADS);
    // fuser's own filter would let others write to a file they were handed, and then not commit.
    // Root may have all requests come in; the mode of the tree's root keeps others out.
    config.acl = match arguments.allow_other || sys::user().0 == 0 {
        true => SessionACL::All,
        false => SessionACL::Owner,
    };
    config.mount_options = arguments.flags.values().cloned().collect();
    if arguments.read_only {
        config.mount_options.push(MountOption::RO);
    }
    config.mount_options.extend([
        MountOption::FSName(store.display().to_string()),
        // fuser leaves Subtype out of a direct mount.
        MountOption::CUSTOM("subtype=smolstore".into()),
        MountOption::DefaultPermissions,
    ]);
    config
}

/// Looks after those who wait, for as long as there is a mount.
fn look_after(waiters: &Arc<Waiters>, device: u64) {
    let mut was_mounted = true;
    for look in 0u32.. {
        std::thread::sleep(Duration::from_secs(1) / LOOKS_A_SECOND);
        waiters.look(proc::signalled);
        // Who waits keeps a mount alive that was detached lazily.
        if look % LOOKS_A_SECOND == 0 {
            let is_mounted = mounted(device, "").unwrap_or(true);
            if was_mounted && !is_mounted {
                waiters.end();
            }
            was_mounted = is_mounted;
        }
    }
}

/// Says of an error where it happened.
fn at(path: &Path) -> impl FnOnce(io::Error) -> String + use<> {
    let path = path.display().to_string();
    move |error| format!("{path}: {error}")
}

/// The paths as they will be used, when they can be.
fn check_paths(arguments: &Arguments) -> Result<(PathBuf, PathBuf), String> {
    let directory = |path: &Path, what: &str| {
        let shown = path.display();
        let found = path.canonicalize().and_then(|path| Ok((fs::metadata(&path)?, path)));
        match found {
            Ok((metadata, path)) if metadata.is_dir() => Ok((metadata, path)),
            Ok(_) => Err(format!("{shown}: the {what} must be a directory")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(format!("{shown}: the {what} does not exist: create it with 'mkdir {shown}'"))
            }
            Err(error) => Err(at(path)(error)),
        }
    };
    let (_, store) = directory(&arguments.store, "store")?;
    // Not stat(2), which the kernel may answer from its cache for a while.
    let there = sys::statvfs(&arguments.mount_point);
    if there.is_err_and(|error| error.raw_os_error() == Some(libc::ENOTCONN)) {
        // What a killed daemon has left.
        detach(&arguments.mount_point).map_err(at(&arguments.mount_point))?;
    }
    let (root, mount_point) = directory(&arguments.mount_point, "mount point")?;
    let shown = mount_point.display();
    if mount_point.starts_with(&store) || store.starts_with(&mount_point) {
        let store = store.display();
        return Err(format!(
            "{shown}: the mount point and the store {store} must not be inside each other"
        ));
    }
    // The root of any FUSE file system has this number.
    if root.ino() == 1 && mounted(root.dev(), " - fuse.smolstore ").unwrap_or(false) {
        return Err(format!(
            "{shown}: busy: a store is mounted there already; 'umount {shown}' first"
        ));
    }
    Ok((store, mount_point))
}

/// What to do when fuser could not mount.
fn explain(mount_point: &Path, error: &io::Error) -> String {
    let no_right =
        matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied);
    let why = if let Err(device) = File::options().read(true).write(true).open("/dev/fuse") {
        let advice = match device.raw_os_error() {
            Some(libc::EACCES) => "it is usually open to all: 'chmod 666 /dev/fuse'",
            _ => "it takes 'modprobe fuse', in a container '--device /dev/fuse'",
        };
        format!("cannot mount: /dev/fuse: {device}; {advice}")
    } else if error.to_string().contains("user_allow_other") {
        "no right to let other users in: /etc/fuse.conf must say user_allow_other".into()
    } else if no_right && sys::user().0 != 0 {
        "no right to mount: run it as root, or install fusermount3 (Debian: fuse3) and own the \
         mount point"
            .into()
    } else if no_right {
        "no right to mount: CAP_SYS_ADMIN is missing; in a container '--cap-add SYS_ADMIN', and \
         '--security-opt apparmor=unconfined' where there is AppArmor"
            .into()
    } else {
        format!("cannot mount: {}", error.to_string().trim())
    };
    format!("{}: {why}", mount_point.display())
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

/// Whether the file system is mounted anywhere that we can see, with this in its line.
fn mounted(device: u64, how: &str) -> io::Result<bool> {
    let number = format!(" {}:{} ", libc::major(device), libc::minor(device));
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    Ok(mounts.lines().any(|line| line.contains(&number) && line.contains(how)))
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
        socket.send_to(format!("<28>smolstore[{pid}]: {line}").as_bytes(), "/dev/log")
    });
}

/// `smolstore check STORE [STREAM...]`.
fn check(arguments: impl Iterator<Item = PathBuf>) -> Result<ExitCode, String> {
    let mut arguments = arguments.peekable();
    match arguments.peek().and_then(|first| first.to_str()) {
        Some("--") => drop(arguments.next()),
        Some("-h" | "--help") => {
            let _ = io::stdout().write_all(HELP.as_bytes());
            return Ok(ExitCode::SUCCESS);
        }
        Some(option) if option.starts_with('-') => {
            return Err(format!("check knows no option {option}\nTry 'smolstore --help'."));
        }
        _ => {}
    }
    let path = arguments.next().ok_or("check needs a STORE\nTry 'smolstore --help'.")?;
    let mark = path.join(".smolstore");
    fs::metadata(&mark).map_err(|error| format!("{}: no store: {error}", mark.display()))?;
    let store = Store::open(&path, true).map_err(|error| error.to_string())?;
    // A shell that completes a name adds a slash.
    let mut names: Vec<PathBuf> = arguments.map(|name| name.components().collect()).collect();
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
    let _ = writeln!(io::stdout(), "{streams} streams, {events} events, {bytes} bytes: {found}");
    Ok(ExitCode::from(if failed { 2 } else { u8::from(faults > 0) }))
}

/// Takes the progress off the terminal.
fn clear(terminal: bool) {
    if terminal {
        eprint!("\r\x1b[K");
    }
}
