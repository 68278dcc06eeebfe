//! Which file systems several hosts may share, and whether a store can be kept on one.
//!
//! There the page cache of a host is another truth: it does not hear of what others write in place.
//! So log and index bypass it (O_DIRECT), where the locks are those of all hosts. What is not known to
//! keep its word then is refused: acknowledged events would go without an error.
//!
//! Pure: what it decides by is handed to it.

/// File systems of one host: statfs(2)'s `f_type`.
const LOCAL: [i64; 23] = [
    0xef53,      // ext2, ext3, ext4
    0x5846_5342, // XFS
    0x9123_683e, // btrfs
    0x0102_1994, // tmpfs
    0x8584_58f6, // ramfs
    0x794c_7630, // overlayfs
    0x2fc1_2fc1, // ZFS
    0xca45_1a4e, // bcachefs
    0xf2f5_2010, // F2FS
    0x5265_4973, // reiserfs
    0x3153_464a, // JFS
    0x3434,      // NILFS
    0x2405_1905, // UBIFS
    0x72b6,      // JFFS2
    0xf15f,      // eCryptfs
    0x6175_6673, // aufs
    0x4d44,      // FAT
    0x2011_bab0, // exFAT
    0x7366_746e, // NTFS
    0x482b,      // HFS+
    0x1501_3346, // UDF
    0x9660,      // ISO 9660
    0x7371_7368, // squashfs
];
const CEPH: i64 = 0x00c3_6400;
const NFS: i64 = 0x6969;
const FUSE: i64 = 0x6573_5546;

/// Whether log and index are to bypass the page cache, on a file system of this `f_type` and with this
/// line of /proc/self/mountinfo, if it is known.
///
/// # Errors
/// What kind it is and why no two hosts may have a store there.
pub(crate) fn direct(f_type: i64, mount: &str) -> Result<bool, String> {
    let mut fields = mount.split_once(" - ").map_or("", |(_, rest)| rest).split(' ');
    let (kind, options) = (fields.next().unwrap_or_default(), fields.nth(1).unwrap_or_default());
    let has = |option| options.split(',').any(|one| one == option);
    let why = match (f_type, kind) {
        (FUSE, "fuseblk" | "fuse.fuse-overlayfs") => return Ok(false),
        (FUSE, "fuse.ceph-fuse") => return Ok(true),
        (FUSE, "fuse.glusterfs") => "its caches do not hear of what other hosts write",
        (CEPH, _) if has("recover_session=clean") => {
            "with recover_session=clean a host that was cut off goes on as if it had its locks"
        }
        (CEPH, _) => return Ok(true),
        (NFS, _) if has("local_lock=none") => return Ok(true),
        (NFS, _) => "with nolock or local_lock the hosts do not see each other's locks",
        (f_type, _) if LOCAL.contains(&f_type) => return Ok(false),
        _ => "it is not known to show all hosts the same",
    };
    Err(if kind.is_empty() { format!("type {f_type:#x}: {why}") } else { format!("{kind}: {why}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on(f_type: i64, kind: &str, options: &str) -> Result<bool, String> {
        direct(
            f_type,
            &format!("36 35 0:50 / /srv rw,relatime shared:1 - {kind} a:/b rw,{options}"),
        )
    }

    #[test]
    fn local_ones_are_as_ever() {
        assert_eq!(on(0xef53, "ext4", "data=ordered"), Ok(false));
        assert_eq!(on(0x0102_1994, "tmpfs", "size=1k"), Ok(false));
        assert_eq!(on(FUSE, "fuseblk", "allow_other"), Ok(false));
        // Below a chroot there may be no line.
        assert_eq!(direct(0xef53, ""), Ok(false));
    }

    #[test]
    fn what_keeps_its_word_when_asked_directly() {
        assert_eq!(on(FUSE, "fuse.ceph-fuse", "user_id=0"), Ok(true));
        assert_eq!(on(CEPH, "ceph", "name=admin,acl"), Ok(true));
        assert_eq!(on(NFS, "nfs4", "vers=4.2,local_lock=none,addr=::1"), Ok(true));
        assert_eq!(on(NFS, "nfs", "vers=3,local_lock=none"), Ok(true));
    }

    #[test]
    fn what_does_not_is_refused_by_name() {
        for (f_type, kind, options, why) in [
            (CEPH, "ceph", "recover_session=clean", "ceph: with recover_session=clean"),
            (NFS, "nfs", "vers=3,nolock,local_lock=all", "nfs: with nolock"),
            (NFS, "nfs4", "vers=4.2,local_lock=flock", "nfs4: with nolock or local_lock"),
            (FUSE, "fuse.glusterfs", "", "fuse.glusterfs: its caches"),
            (FUSE, "fuse.juicefs", "", "fuse.juicefs: it is not known"),
            (FUSE, "fuse", "", "fuse: it is not known"),
            (FUSE, "virtiofs", "", "virtiofs: it is not known"),
            (0xfe53_4d42, "cifs", "", "cifs: it is not known"),
            (0x0102_1997, "9p", "", "9p: it is not known"),
            (0x0116_1970, "gfs2", "", "gfs2: it is not known"),
            (0x7461_636f, "ocfs2", "", "ocfs2: it is not known"),
            (0x0bd0_0bd0, "lustre", "", "lustre: it is not known"),
        ] {
            assert!(on(f_type, kind, options).unwrap_err().starts_with(why), "{kind}");
        }
        assert!(direct(FUSE, "").unwrap_err().starts_with("type 0x65735546: "));
        assert!(direct(NFS, "").is_err());
    }
}
