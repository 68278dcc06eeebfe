//! A whole machine: a daemon, its store on a real file system on a disk of the tests' own.

use super::device::{Device, Image};
use crate::harness::*;
use std::cell::RefCell;
use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use tempfile::TempDir;

/// A daemon, its store on a file system on a disk whose power can be cut.
pub struct Machine {
    pub m: Mnt,
    disk: RefCell<Option<Looped>>,
    pub device: Device,
    point: PathBuf,
    _base: TempDir,
}

impl Machine {
    pub fn new(mkfs: &str, mib: u64) -> Machine {
        let base = TempDir::new().unwrap();
        let root = base.path().canonicalize().unwrap();
        let device = Device::new(mib << 20, Image::of(&image(mkfs, mib, &root)));
        let point = root.join("disk");
        fs::create_dir(&point).unwrap();
        let disk = Looped::new(&device.path(), &point);
        fs::create_dir(point.join("store")).unwrap();
        Machine {
            m: Mnt::on(&point.join("store"), &[]),
            disk: RefCell::new(Some(disk)),
            device,
            point,
            _base: base,
        }
    }

    /// The power fails, see [`Device::cut`], and comes back.
    pub fn cut(&self, writes: usize, stays: impl Fn(usize, usize) -> bool) -> usize {
        let (image, unflushed) = self.device.cut(writes, stays);
        // The daemon can answer nobody any more; then it may be let go.
        let point = CString::new(self.m.path().as_os_str().as_bytes()).unwrap();
        unsafe { libc::umount2(point.as_ptr(), libc::MNT_FORCE) };
        self.device.off();
        self.m.kill(libc::SIGKILL);
        *self.disk.borrow_mut() = None;
        self.device.on(image);
        self.remount();
        self.m.restart();
        unflushed
    }

    /// Mounts the file system anew, with nothing cached; the daemon must be gone.
    pub fn remount(&self) {
        let mut disk = self.disk.borrow_mut();
        *disk = None;
        *disk = Some(Looped::new(&self.device.path(), &self.point));
    }
}
