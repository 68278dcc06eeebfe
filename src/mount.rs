//! Mounts, serves, unmounts.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs::{self, File};
use std::io::{self, PipeWriter, Read, Write};
use std::mem::ManuallyDrop;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio, exit};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use fuser::{Config, MountOption, Session, SessionACL};
use smolstore::disk::Real;
use smolstore::fuse::Fuse;
use smolstore::news::{News, TOLD_A_SECOND, WORDS};
use smolstore::tree::Tree;
use smolstore::wait::{LOOKS_A_SECOND, Waiters};
use smolstore::{Store, sys};

/// What the command line asks for.
#[derive(Default)]
pub(crate) struct Arguments {
    pub(crate) store: PathBuf,
    pub(crate) mount_point: PathBuf,
    pub(crate) foreground: bool,
    pub(crate) read_only: bool,
    pub(crate) allow_other: bool,
    pub(crate) single_host: bool,
    pub(crate) flags: BTreeMap<&'static str, MountOption>,
}

/// Threads that take requests. Those of a commit wait for the disk, one for each stream.
const THREADS: usize = 88;
/// Those that commits take of their own, and some to spare.
const MORE_THREADS: usize = 16;
/// fuser's buffer for each.
const BUFFER: usize = 16 << 20;

/// Leaves a child to serve the mount, and returns when it does; in the child what failed.
pub(crate) fn in_background(arguments: &Arguments) -> Result<(), String> {
    let (mut serves, report) = io::pipe().map_err(|error| format!("a pipe: {error}"))?;
    if sys::fork().map_err(|error| format!("cannot start in the background: {error}"))? {
        drop(serves);
        // Not closed before `main` has said what failed: the parent, which reads the end of the pipe
        // then, may be the first process of a container, and its exit the end of this one.
        return mount(arguments, Some(&mut ManuallyDrop::new(report)));
    }
    drop(report);
    // A child that could not has said why.
    serves.read_exact(&mut [0]).or_else(|_| exit(1))
}

/// Mounts, tells `report`, and serves until a signal or an unmount.
pub(crate) fn mount(arguments: &Arguments, report: Option<&mut PipeWriter>) -> Result<(), String> {
    let signals = sys::Signals::block().map_err(|error| format!("signals: {error}"))?;
    sys::set_limits();
    rehearse().map_err(|error| {
        format!(
            "no room for {THREADS} threads: {error}; each takes 18 MiB of address space, see \
             'ulimit -v' and 'ulimit -u' (systemd: LimitAS=, TasksMax=)"
        )
    })?;
    let (store_path, mount_point) = check_paths(arguments)?;

    let to_stderr = arguments.foreground;
    let log = move |line: &str| log_line(to_stderr, line);
    std::panic::set_hook(Box::new(move |fault| log(&fault.to_string())));
    let text = |error: smolstore::Error| error.to_string();
    let disk = Real::new(&store_path, arguments.single_host).map_err(text)?;
    let news = disk.news();
    let store = Store::with_log(disk, arguments.read_only, Box::new(log)).map_err(text)?;
    let private = (!arguments.allow_other).then_some(sys::user().0);
    let tree = Arc::new(Tree::new(store, store_path.clone(), private));
    let session = Session::new(Fuse(tree.clone()), &mount_point, &config(arguments, &store_path))
        .and_then(Session::spawn)
        .map_err(|error| explain(&mount_point, &error))?;
    // Unmounted by somebody else. The rest of the session is kept: it would unmount what others have
    // mounted at the same place since.
    let (serving, place, alone) = (session.guard, mount_point.clone(), news.is_none());
    static SERVES: AtomicBool = AtomicBool::new(false);
    std::thread::spawn(move || {
        let ended = serving.join();
        if !SERVES.load(SeqCst) {
            // Nobody answers whoever is about to ask below.
            eprintln!("smolstore: {}: it cannot serve: {ended:?}", place.display());
            let _ = detach(&place);
            exit(1);
        }
        end(alone);
    });
    // Answered by the threads just started.
    let device = fs::metadata(&mount_point).map_err(at(&mount_point))?.dev();
    SERVES.store(true, SeqCst);
    let waiters = tree.waiters.clone();
    std::thread::spawn(move || look_after(&waiters, device, alone));
    if let Some(news) = news {
        let (tree, read_only) = (tree.clone(), arguments.read_only);
        std::thread::spawn(move || keep_in_touch(&news, &tree, read_only));
    }
    if let Some(report) = report {
        sys::detach().map_err(|error| format!("cannot leave the terminal: {error}"))?;
        // The parent may be gone; the mount is there all the same.
        let _ = report.write_all(&[0]);
    }
    notify("READY=1");
    while signals.wait() == libc::SIGUSR1 {
        let tracing = !tree.tracing.fetch_xor(true, SeqCst);
        log(if tracing { "tracing requests" } else { "tracing no more" });
    }
    notify("STOPPING=1");
    tree.waiters.end();
    if let Err(error) = unmount(&mount_point, device) {
        log(&format!("{}: cannot unmount: {error}", mount_point.display()));
    }
    end(alone);
}

/// Ends the process, once other hosts were told what changed last.
fn end(alone: bool) -> ! {
    if !alone {
        std::thread::sleep(2 * Duration::from_secs(1) / TOLD_A_SECOND);
    }
    exit(0);
}

/// Takes the threads and the address space that fuser and commits will, and gives them back: where
/// fuser gets none it ends, or the process does, and the mount is there without an answer.
fn rehearse() -> Result<(), Box<dyn Error>> {
    let mut held = Vec::new();
    for _ in 0..THREADS + MORE_THREADS {
        let mut buffer: Vec<u8> = Vec::new();
        // So much is left for all else: a thread that gets none of that ends the process.
        Vec::<u8>::new().try_reserve_exact(16 * BUFFER)?;
        buffer.try_reserve_exact(BUFFER)?;
        let (up, is_up) = mpsc::channel();
        let thread = std::thread::Builder::new().spawn(move || {
            let _ = up.send(());
            std::thread::park();
        });
        held.push((buffer, thread?));
        is_up.recv()?;
    }
    for (_, thread) in held {
        thread.thread().unpark();
        // It has done nothing that could have failed.
        let _ = thread.join();
    }
    Ok(())
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

/// Tells other hosts what changed, and hears what they tell. STORE may hang: those who wait are looked
/// after by another thread, for their signals.
fn keep_in_touch(news: &News, tree: &Tree, read_only: bool) {
    let mut left = [false; WORDS];
    for turn in 0.. {
        std::thread::sleep(Duration::from_secs(1) / TOLD_A_SECOND);
        if !read_only {
            // It is tried again the next time, and nobody depends on it.
            let _ = news.send();
        }
        tree.waiters.hear(news, turn, &mut left);
        if turn % (2 * TOLD_A_SECOND) == 0 {
            tree.rest();
        }
    }
}

/// Looks after those who wait, for as long as there is a mount. `alone`: no other host mounts the store.
fn look_after(waiters: &Arc<Waiters>, device: u64, alone: bool) {
    for look in 0u32.. {
        std::thread::sleep(Duration::from_secs(1) / LOOKS_A_SECOND);
        waiters.look_for_signals();
        let second = look.is_multiple_of(LOOKS_A_SECOND);
        if alone {
            waiters.look(second);
        }
        // Who waits keeps a mount alive that was detached lazily.
        if second && !mounted(device, "").unwrap_or(true) {
            waiters.end();
        }
    }
}

/// Says of an error where it happened.
pub(crate) fn at(path: &Path) -> impl FnOnce(io::Error) -> String + use<> {
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
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(format!(
                "{shown}: the {what} does not exist: create it with 'mkdir {shown}' (to check a \
                 store it is 'smolstore check STORE')"
            )),
            Err(error) => Err(at(path)(error)),
        }
    };
    let (_, store) = directory(&arguments.store, "store")?;
    not_within_a_mount(&store)?;
    // Not stat(2), which the kernel may answer from its cache for a while.
    let there = sys::statfs(&arguments.mount_point);
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

/// What is seen through a mount is no store.
pub(crate) fn not_within_a_mount(path: &Path) -> Result<(), String> {
    let device = fs::metadata(path).map_err(at(path))?.dev();
    if mounted(device, " - fuse.smolstore ").unwrap_or(false) {
        let shown = path.display();
        return Err(format!(
            "{shown}: this is within a mount of a store, which is not the store: that is what \
             'findmnt -no SOURCE -T {shown}' names"
        ));
    }
    Ok(())
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
    // Nobody is asked: STORE may hang, and with it who would answer.
    let there = sys::stat(None, mount_point, libc::AT_STATX_DONT_SYNC);
    let there = there.map(|there| libc::makedev(there.stx_dev_major, there.stx_dev_minor));
    if there.ok() != Some(device) {
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
