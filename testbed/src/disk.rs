//! Disks that lose power: a file system of a node's own, on an image behind a loop device.
//!
//! [`LossyDisk::cut`] shuts the file system down without writing its log back. From then on every
//! access fails, and after [`LossyDisk::back`] there is exactly what was synced: what a power cut
//! leaves. Needs root, loop devices and `mkfs`; [`why_not`] tells tests what is missing.

#![allow(unsafe_code, reason = "neither std nor nix calls the shutdown of a file system")]

use std::fs::{self, File};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use nix::mount::{MntFlags, umount2};
use serde::{Deserialize, Serialize};

use crate::{process, wait};

/// Until `mkfs` or `mount` must have ended.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(60);
/// Until the last open file of killed processes must be gone.
const UMOUNT_TIMEOUT: Duration = Duration::from_secs(20);
/// `FS_IOC_SHUTDOWN`, also `XFS_IOC_GOINGDOWN` and `EXT4_IOC_SHUTDOWN`: `_IOR('X', 125, u32)`.
const SHUTDOWN: libc::c_ulong = 0x8004_587d;
/// Nothing that is still in memory reaches the disk, not even the log.
const NO_LOG_FLUSH: u32 = 2;

/// What kind of file system.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub enum DiskKind {
    /// ext4, with its ordinary journal (`data=ordered`).
    Ext4,
    /// XFS.
    Xfs,
}

impl DiskKind {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Ext4, Self::Xfs];
    /// The smallest image in bytes that `mkfs.xfs` accepts.
    pub const BYTES_MIN: u64 = 320 << 20;

    /// The kernel's name of it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
        }
    }

    fn mkfs(self, image: &Path) -> Command {
        let mut command = Command::new(format!("mkfs.{}", self.as_str()));
        match self {
            // Without lazy initialisation: no kernel thread writes to the image afterwards.
            Self::Ext4 => command.args(["-q", "-F", "-E", "lazy_itable_init=0,nodiscard"]),
            Self::Xfs => command.args(["-q", "-f", "-K"]),
        };
        command.arg(image);
        command
    }
}

/// Why there can be no lossy disks here: `None` when there can. Only a user who is not root is
/// told so; with root what is missing is a defect of the machine, which fails the test.
///
/// # Errors
/// As root, when there are no loop devices.
pub fn why_not() -> Result<Option<&'static str>> {
    if !nix::unistd::geteuid().is_root() {
        return Ok(Some("only root can mount the disks this test cuts the power of"));
    }
    ensure!(
        Path::new("/dev/loop-control").exists(),
        "/dev/loop-control is missing: power cuts cannot be tested on this machine (load the \
         kernel module: modprobe loop; in a container: --privileged)"
    );
    Ok(None)
}

/// One disk.
#[derive(Debug)]
pub struct LossyDisk {
    kind: DiskKind,
    image: PathBuf,
    mount: PathBuf,
}

impl LossyDisk {
    /// Makes an image of so many bytes (sparse) and mounts it on a directory, which is made.
    ///
    /// # Errors
    /// When it cannot be made or mounted.
    pub fn make(kind: DiskKind, image: &Path, mount: &Path, bytes: u64) -> Result<Self> {
        File::create_new(image)
            .and_then(|file| file.set_len(bytes))
            .with_context(|| format!("make {}", image.display()))?;
        process::run(kind.mkfs(image), COMMAND_TIMEOUT)?.ok()?;
        fs::create_dir_all(mount)?;
        let disk = Self { kind, image: image.to_owned(), mount: mount.to_owned() };
        disk.mount()?;
        // A node expects an empty directory.
        let lost = disk.mount.join("lost+found");
        if lost.exists() {
            fs::remove_dir(&lost)?;
        }
        File::open(&disk.mount)?.sync_all()?;
        Ok(disk)
    }

    /// What it is.
    pub fn kind(&self) -> DiskKind {
        self.kind
    }

    /// The image's file.
    pub fn image(&self) -> &Path {
        &self.image
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.mount
    }

    fn mount(&self) -> Result<()> {
        let mut command = Command::new("mount");
        command.args(["-t", self.kind.as_str(), "-o", "loop"]).arg(&self.image).arg(&self.mount);
        process::run(command, COMMAND_TIMEOUT)?.ok()?;
        Ok(())
    }

    /// Cuts the power: nothing that is not synced yet is ever written, every access fails.
    ///
    /// # Errors
    /// When the file system cannot be shut down.
    pub fn cut(&self) -> Result<()> {
        let root = File::open(&self.mount)
            .with_context(|| format!("open {} to cut its power", self.mount.display()))?;
        let flags = NO_LOG_FLUSH;
        // SAFETY: the request reads one u32 behind the pointer, which outlives the call; the
        // descriptor is open.
        let answer = unsafe { libc::ioctl(root.as_raw_fd(), SHUTDOWN, &raw const flags) };
        if answer != 0 {
            let error = std::io::Error::last_os_error();
            bail!("shut down the file system of {}: {error}", self.mount.display());
        }
        Ok(())
    }

    /// The power comes back: mounted anew, which recovers its log. Every process that had files
    /// open on it must have ended.
    ///
    /// # Errors
    /// When something still uses it, or when it cannot be mounted.
    pub fn back(&self) -> Result<()> {
        self.unmount()?;
        self.mount()
    }

    /// Whether it is mounted.
    pub fn is_mounted(&self) -> bool {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let place = format!(" {} ", self.mount.display());
        mounts.lines().any(|line| line.contains(&place))
    }

    /// Unmounts it if it is mounted. The image stays.
    ///
    /// # Errors
    /// When something uses it until the deadline.
    pub fn unmount(&self) -> Result<()> {
        let what = format!("unmount {}", self.mount.display());
        wait::until(&what, UMOUNT_TIMEOUT, || {
            if !self.is_mounted() {
                return Ok(Some(()));
            }
            // Never lazily: a second mount of an image that is still in use would destroy it.
            umount2(&self.mount, MntFlags::empty())?;
            Ok(None)
        })
    }
}

impl Drop for LossyDisk {
    fn drop(&mut self) {
        if self.unmount().is_err() {
            // Nothing more happens to the image, so a lazy end is safe now.
            umount2(&self.mount, MntFlags::MNT_DETACH).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::io::Write as _;

    use super::*;

    /// A cut that lost nothing, or lost synced bytes, would prove nothing about a node on it.
    #[test]
    fn a_power_cut_loses_what_was_not_synced_and_nothing_else() {
        if let Some(why) = why_not().unwrap() {
            eprintln!("SKIPPED: {why}");
            return;
        }
        let work = tempfile::tempdir().unwrap();
        for kind in DiskKind::ALL {
            let image = work.path().join(kind.as_str()).with_extension("img");
            let disk =
                LossyDisk::make(kind, &image, &work.path().join("disk"), DiskKind::BYTES_MIN)
                    .unwrap();
            let at = |name: &str| disk.path().join(name);
            for round in 0u8..2 {
                let write = |name: &str, sync: bool| {
                    let mut file =
                        File::options().create(true).append(true).open(at(name)).unwrap();
                    file.write_all(&[round + 1; 100_000]).unwrap();
                    if sync {
                        file.sync_all().unwrap();
                    }
                    file
                };
                drop(write("synced", true));
                File::open(disk.path()).unwrap().sync_all().unwrap();
                fs::rename(at("synced"), at("renamed")).unwrap();
                let mut appended = write("appended", true);
                File::open(disk.path()).unwrap().sync_all().unwrap();
                appended.write_all(b"a tail nobody synced").unwrap();
                let unsynced = write("unsynced", false);
                fs::create_dir(at("new directory")).unwrap();
                disk.cut().unwrap();
                assert!(unsynced.sync_all().is_err(), "{kind:?}: a sync after the cut");
                assert!(File::create(at("after")).is_err(), "{kind:?}: a new file after the cut");
                drop((unsynced, appended));
                disk.back().unwrap();
                let kept = fs::read(at("renamed")).unwrap();
                assert_eq!(kept, [round + 1; 100_000], "{kind:?}: the synced file");
                let length = 100_000 * (u64::from(round) + 1);
                let found = fs::metadata(at("appended")).unwrap().len();
                assert_eq!(found, length, "{kind:?}: synced, and the tail");
                let unsynced = fs::metadata(at("unsynced")).map_or(0, |meta| meta.len());
                assert_eq!(unsynced, 0, "{kind:?}: the unsynced file");
                assert!(!at("new directory").exists(), "{kind:?}: the unsynced directory");
                fs::remove_file(at("renamed")).unwrap();
            }
            disk.unmount().unwrap();
            assert!(!disk.is_mounted());
        }
    }
}
