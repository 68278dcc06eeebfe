//! What every test needs: a real mount that cleans up after itself, and shells to run in it.
//!
//! Tests are threads of one process, so nothing here changes its directory, umask or signals.

use std::ffi::{CString, OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, IntoRawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::channel;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long anything is waited for that happens at once, on a machine that is not busy.
const PATIENCE: Duration = Duration::from_secs(60);

/// The program under test, not yet started.
pub fn smolstore<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_smolstore"));
    command.args(args).stdin(Stdio::null());
    command
}

/// One mounted store and the daemon that serves it.
pub struct Mnt {
    base: Option<TempDir>,
    store: PathBuf,
    point: PathBuf,
    log: PathBuf,
    args: Vec<String>,
    env: Vec<(&'static str, PathBuf)>,
    child: Mutex<Child>,
}

impl Mnt {
    /// A fresh store, mounted.
    pub fn new() -> Mnt {
        Mnt::with(&[])
    }

    /// A fresh store, mounted with these further arguments.
    pub fn with(args: &[&str]) -> Mnt {
        Mnt::start(None, args, &[])
    }

    /// A fresh store, mounted by a daemon with these variables in its environment.
    pub fn in_env(env: &[(&'static str, PathBuf)]) -> Mnt {
        Mnt::start(None, &[], env)
    }

    /// An existing store, mounted at a fresh place; the store stays when this is dropped.
    pub fn on(store: &Path, args: &[&str]) -> Mnt {
        Mnt::start(Some(store), args, &[])
    }

    /// An existing store, mounted by a daemon with these variables in its environment.
    pub fn on_in_env(store: &Path, env: &[(&'static str, PathBuf)]) -> Mnt {
        Mnt::start(Some(store), &[], env)
    }

    fn start(store: Option<&Path>, args: &[&str], env: &[(&'static str, PathBuf)]) -> Mnt {
        let base = public_dir();
        let root = base.path().canonicalize().unwrap();
        let store = store.map_or_else(|| root.join("store"), Path::to_path_buf);
        let (point, log) = (root.join("mnt"), root.join("log"));
        fs::create_dir(&point).unwrap();
        if store.starts_with(&root) {
            fs::create_dir(&store).unwrap();
        }
        let args: Vec<String> = args.iter().map(ToString::to_string).collect();
        let env = env.to_vec();
        let child = Mutex::new(spawn(&store, &point, &args, &env, &log));
        // From here on Drop cleans up, also when the wait below panics.
        let base = Some(base);
        let mnt = Mnt { base, store, point, log, args, env, child };
        mnt.wait_until_it_serves();
        mnt
    }

    fn wait_until_it_serves(&self) {
        let parent = fs::metadata(self.point.parent().unwrap()).unwrap().dev();
        let until = Instant::now() + PATIENCE;
        // Attributes may be cached, so that a dead mount seems to live; statfs always asks.
        while !asked(&self.point) || fs::metadata(&self.point).map_or(true, |m| m.dev() == parent) {
            let ended = self.child().try_wait().unwrap();
            assert!(
                ended.is_none() && Instant::now() < until,
                "no mount at {} ({}); it said: {:?}",
                self.point.display(),
                ended.map_or("in time".to_string(), |status| status.to_string()),
                self.log(),
            );
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// The mount point.
    pub fn path(&self) -> &Path {
        &self.point
    }

    /// The store's directory on disk.
    pub fn store(&self) -> &Path {
        &self.store
    }

    fn child(&self) -> MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The daemon's process id.
    pub fn pid(&self) -> u32 {
        self.child().id()
    }

    /// What the daemon has said on standard error so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap()).into_owned()
    }

    /// Makes a stream and answers its directory.
    pub fn stream(&self, name: impl AsRef<Path>) -> PathBuf {
        let path = self.point.join(name);
        fs::create_dir(&path).unwrap_or_else(|e| panic!("mkdir {}: {e}", path.display()));
        path
    }

    /// Sends the daemon a signal; after SIGKILL it is gone when this returns.
    pub fn kill(&self, signal: i32) {
        let mut child = self.child();
        // A reaped process id may be somebody else's by now.
        if child.try_wait().unwrap().is_none() {
            assert_eq!(unsafe { libc::kill(child.id().cast_signed(), signal) }, 0);
        }
        if signal == libc::SIGKILL {
            child.wait().unwrap();
        }
    }

    /// Waits for the daemon's exit, not longer than this.
    pub fn wait(&self, limit: Duration) -> Option<ExitStatus> {
        wait(&mut self.child(), limit)
    }

    /// SIGTERM must unmount and exit with success.
    pub fn stop(&self) {
        self.kill(libc::SIGTERM);
        let status = self.wait(PATIENCE);
        let status = status.unwrap_or_else(|| panic!("still there after SIGTERM"));
        assert!(status.success(), "{status}: {}", self.log());
        assert_eq!(mounted(&self.point), None, "still mounted after SIGTERM");
    }

    /// The same store at the same place by a new daemon; the log continues.
    pub fn restart(&self) {
        if self.wait(Duration::ZERO).is_none() {
            self.stop();
        }
        *self.child() = spawn(&self.store, &self.point, &self.args, &self.env, &self.log);
        self.wait_until_it_serves();
    }

    /// The most memory the daemon ever held.
    pub fn rss_peak_kib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find(|l| l.starts_with("VmHWM:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// How many files the daemon holds open.
    pub fn open_files(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap().count()
    }
}

impl Drop for Mnt {
    fn drop(&mut self) {
        self.kill(libc::SIGTERM);
        if self.wait(Duration::from_secs(5)).is_none() {
            self.kill(libc::SIGKILL);
        }
        unmount(&self.point);
        if mounted(&self.point).is_some() {
            // Deleting through a live mount would delete streams.
            self.base.take().map(TempDir::keep);
        }
        if std::thread::panicking() {
            eprintln!("the daemon said: {}", self.log());
        }
    }
}

fn spawn(
    store: &Path,
    point: &Path,
    args: &[String],
    env: &[(&'static str, PathBuf)],
    log: &Path,
) -> Child {
    let log = OpenOptions::new().create(true).append(true).open(log).unwrap();
    let mut command = smolstore([store.as_os_str(), point.as_os_str(), "-f".as_ref()]);
    command.args(args).stdout(Stdio::null()).stderr(log);
    command.envs(env.iter().map(|(name, value)| (name, value)));
    command.spawn().unwrap()
}

/// A temporary directory that other users may enter.
pub fn public_dir() -> TempDir {
    let dir = TempDir::new().unwrap();
    fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
    dir
}

/// A child that does not outlive its test.
pub struct Reaped(pub Child);

impl Drop for Reaped {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits for a child's exit, not longer than this.
pub fn wait(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let until = Instant::now() + limit;
    loop {
        let status = child.try_wait().unwrap();
        if status.is_some() || Instant::now() >= until {
            return status;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Detaches what is mounted there, if anything is, dead or alive.
pub fn unmount(point: &Path) {
    let path = CString::new(point.as_os_str().as_bytes()).unwrap();
    while mounted(point).is_some() && unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) } == 0
    {
    }
}

/// The line of /proc/self/mountinfo of what is mounted there.
pub fn mounted(point: &Path) -> Option<String> {
    let all = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let here = |l: &&str| l.split(' ').nth(4).map(Path::new) == Some(point);
    all.lines().rfind(here).map(str::to_string)
}

/// Does a FUSE daemon answer there?
fn asked(point: &Path) -> bool {
    let path = CString::new(point.as_os_str().as_bytes()).unwrap();
    let mut out = std::mem::MaybeUninit::<libc::statfs>::zeroed();
    let said = unsafe { libc::statfs(path.as_ptr(), out.as_mut_ptr()) };
    said == 0 && unsafe { out.assume_init() }.f_type == libc::FUSE_SUPER_MAGIC
}

/// A file system on a loop device, mounted as long as this lives.
pub struct Looped(PathBuf);

impl Looped {
    /// Mounts `image`, a file that holds a file system, at `point`.
    pub fn new(image: &Path, point: &Path) -> Looped {
        let mut mount = Command::new("mount");
        let mount = mount.args(["-o", "loop"]).arg(image).arg(point);
        let looped = Looped(point.to_path_buf());
        ok(&mount.output().unwrap());
        looped
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Looped {
    fn drop(&mut self) {
        // The loop device frees itself with its last user.
        unmount(&self.0);
    }
}

/// A small file system of its own on a loop device, to be filled up.
pub struct SmallDisk {
    disk: Looped,
    _base: TempDir,
}

impl SmallDisk {
    /// An ext4.
    pub fn new(mib: u64) -> SmallDisk {
        SmallDisk::of("mkfs.ext4 -q -m 0", mib)
    }

    /// What this command makes of a file of that size.
    pub fn of(mkfs: &str, mib: u64) -> SmallDisk {
        let base = TempDir::new().unwrap();
        let root = base.path().canonicalize().unwrap();
        let image = image(mkfs, mib, &root);
        fs::create_dir(root.join("disk")).unwrap();
        SmallDisk { disk: Looped::new(&image, &root.join("disk")), _base: base }
    }

    pub fn path(&self) -> PathBuf {
        self.disk.path().to_path_buf()
    }

    /// Takes up all room there is, also what became free since it was last called. Starts no
    /// program: its exec would close our files, which waits for commits in progress.
    pub fn fill(&self) {
        let filler = self.path().join("filler");
        let filler = OpenOptions::new().create(true).append(true).open(filler);
        let filler = filler.unwrap();
        for piece in [16 << 20, 1 << 20, 64 << 10, 4 << 10] {
            let mut taken = 0;
            while taken == 0 {
                let end = filler.metadata().unwrap().len().cast_signed();
                taken = unsafe { libc::fallocate(filler.as_raw_fd(), 0, end, piece) };
            }
            let error = io::Error::last_os_error();
            assert_eq!(error.raw_os_error(), Some(libc::ENOSPC), "{error}");
        }
        filler.sync_all().unwrap();
    }

    /// Gives back what `fill` took.
    pub fn empty(&self) {
        fs::remove_file(self.path().join("filler")).unwrap();
        self.settle();
    }

    /// What was removed is free once the journal says so.
    pub fn settle(&self) {
        File::open(self.path()).unwrap().sync_all().unwrap();
    }
}

/// Makes a file system, in a file in `dir`.
pub fn image(mkfs: &str, mib: u64, dir: &Path) -> PathBuf {
    let image = dir.join("image");
    File::create(&image).unwrap().set_len(mib << 20).unwrap();
    ok(&sh("sh", &format!("{mkfs} image"), dir));
    image
}

/// Runs a script in a shell ("bash", "busybox sh", also "python3") and waits for it.
pub fn sh(shell: &str, script: &str, cwd: &Path) -> Output {
    let mut words = shell.split(' ');
    let mut command = Command::new(words.next().unwrap());
    command.args(words).arg("-c").arg(script).current_dir(cwd);
    command.env("LC_ALL", "C.UTF-8").stdin(Stdio::null());
    command.output().unwrap_or_else(|e| panic!("{shell}: {e}"))
}

/// The standard output of a command that must have succeeded.
#[track_caller]
pub fn ok(out: &Output) -> String {
    let (stdout, stderr) = (text(&out.stdout), text(&out.stderr));
    assert!(out.status.success(), "{}\nstdout: {stdout}\nstderr: {stderr}", out.status);
    stdout
}

/// Bytes as text to look at.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[track_caller]
pub fn read(path: impl AsRef<Path>) -> Vec<u8> {
    let path = path.as_ref();
    fs::read(path).unwrap_or_else(|e| panic!("read {}: {e}", path.display()))
}

/// One open, one write, one close, all of which must succeed: one batch.
#[track_caller]
pub fn append(path: impl AsRef<Path>, bytes: impl AsRef<[u8]>) {
    let path = path.as_ref();
    try_append(path, bytes).unwrap_or_else(|e| panic!("append to {}: {e}", path.display()));
}

/// One open, one write, one close, and the first error among them.
pub fn try_append(path: impl AsRef<Path>, bytes: impl AsRef<[u8]>) -> io::Result<()> {
    let mut file = appender(path)?;
    file.write_all(bytes.as_ref())?;
    close(file)
}

/// Opens with O_APPEND | O_WRONLY.
pub fn appender(path: impl AsRef<Path>) -> io::Result<File> {
    OpenOptions::new().append(true).open(path)
}

/// Closes a file and says what close(2) said, which `drop` does not.
pub fn close(file: File) -> io::Result<()> {
    match unsafe { libc::close(file.into_raw_fd()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[track_caller]
pub fn count(stream: &Path) -> u64 {
    let number = String::from_utf8(read(stream.join("count"))).unwrap();
    number.strip_suffix('\n').unwrap().parse().unwrap()
}

/// When it was modified, in nanoseconds since the epoch: for `at/N`, when event N was committed.
#[track_caller]
pub fn mtime(path: impl AsRef<Path>) -> i64 {
    let meta = fs::metadata(path).unwrap();
    meta.mtime() * 1_000_000_000 + meta.mtime_nsec()
}

/// The names in a directory, sorted.
#[track_caller]
pub fn names(dir: &Path) -> Vec<OsString> {
    let entries = fs::read_dir(dir).unwrap();
    let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name()).collect();
    names.sort();
    names
}

/// The errno of what must have failed.
#[track_caller]
pub fn errno_of<T>(result: io::Result<T>) -> i32 {
    let error = result.err().expect("it must fail");
    error.raw_os_error().unwrap_or_else(|| panic!("no errno: {error}"))
}

/// Fails the test when a program is not there which `scripts/test` installs.
#[track_caller]
pub fn need(tool: &str, package: &str) {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).any(|dir| dir.join(tool).is_file());
    assert!(found, "no {tool}: scripts/test should have installed the package {package}");
}

/// Waits for something to become true.
#[track_caller]
pub fn eventually(what: &str, mut is_true: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !is_true() {
        assert!(Instant::now() < until, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Runs it in a thread: a request that is never answered is a failure, not a hang.
#[track_caller]
pub fn within<R: Send + 'static>(seconds: u64, run: impl FnOnce() -> R + Send + 'static) -> R {
    let (sender, answer) = channel();
    std::thread::spawn(move || sender.send(run()));
    let answer = answer.recv_timeout(Duration::from_secs(seconds));
    answer.unwrap_or_else(|e| panic!("no answer in {seconds} s: {e}"))
}

/// xorshift64: the same numbers each time.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit as u64) as usize
    }

    /// An event: any byte but the newline.
    pub fn event(&mut self, len: usize) -> Vec<u8> {
        let byte = |b: usize| if b == 10 { b'|' } else { b as u8 };
        (0..len).map(|_| byte(self.below(256))).collect()
    }
}
