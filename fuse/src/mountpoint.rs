//! The directory a mount is on: what is there already, its readahead, unmounting it.
//!
//! Everything here may block on the file system itself and is called from threads that may.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use nix::sys::statvfs::statvfs;

/// The type our mounts have in the table of mounts.
const FS_TYPE: &str = "fuse.atoll";
/// How far the kernel reads ahead.
const READAHEAD_KB: u32 = 4096;

/// What is at a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    /// A directory to mount on.
    Directory,
    /// A mount of ours that works.
    Mounted,
    /// A FUSE mount whose process is gone.
    Dead,
}

/// A line of the table of mounts.
#[derive(Debug, PartialEq, Eq)]
struct Line {
    device: String,
    fs_type: String,
}

/// Looks at a directory.
///
/// # Errors
/// When it is no directory or cannot be looked at.
pub(crate) fn inspect(dir: &Path) -> io::Result<Found> {
    match std::fs::metadata(dir) {
        Ok(metadata) if !metadata.is_dir() => Err(io::ErrorKind::NotADirectory.into()),
        Ok(_) => {
            let ours = top_mount(dir)?.is_some_and(|line| line.fs_type == FS_TYPE);
            if !ours {
                return Ok(Found::Directory);
            }
            // Attributes may come from the kernel's memory; this asks the process.
            match statvfs(dir) {
                Err(Errno::ENOTCONN) => Ok(Found::Dead),
                _ => Ok(Found::Mounted),
            }
        }
        Err(error) if error.raw_os_error() == Some(libc::ENOTCONN) => Ok(Found::Dead),
        Err(error) => Err(error),
    }
}

/// Unmounts; `lazy` takes it out of the tree even while it is in use.
///
/// # Errors
/// `EBUSY` when it is in use and not `lazy`; `EINVAL` when nothing is mounted there.
pub(crate) fn unmount(dir: &Path, lazy: bool) -> io::Result<()> {
    let flags = if lazy { MntFlags::MNT_DETACH } else { MntFlags::empty() };
    match umount2(dir, flags) {
        Ok(()) => Ok(()),
        // Ordinary users unmount through the program that mounted for them.
        Err(Errno::EPERM) => unmount_by_program(dir, lazy),
        Err(errno) => Err(errno.into()),
    }
}

fn unmount_by_program(dir: &Path, lazy: bool) -> io::Result<()> {
    let output =
        Command::new("fusermount3").args(if lazy { ["-uz"] } else { ["-u"] }).arg(dir).output()?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if text.contains("busy") {
        return Err(Errno::EBUSY.into());
    }
    Err(io::Error::other(text))
}

/// Makes the kernel read ahead further than its 128 KiB. Not permitted to ordinary users, and
/// only a matter of speed.
pub(crate) fn raise_readahead(dir: &Path) -> io::Result<()> {
    let Some(line) = top_mount(dir)?.filter(|line| line.fs_type == FS_TYPE) else {
        return Err(io::ErrorKind::NotFound.into());
    };
    let setting = format!("/sys/class/bdi/{}/read_ahead_kb", line.device);
    std::fs::write(setting, READAHEAD_KB.to_string())
}

/// The device number of what is mounted there, if it is ours.
#[cfg(test)]
pub(crate) fn device(dir: &Path) -> io::Result<Option<String>> {
    let line = top_mount(dir)?.filter(|line| line.fs_type == FS_TYPE);
    Ok(line.map(|line| line.device))
}

fn top_mount(dir: &Path) -> io::Result<Option<Line>> {
    // The parent is resolved, not the directory itself: that would ask the mount.
    let dir = absolute(dir)?;
    let table = std::fs::read_to_string("/proc/self/mountinfo")?;
    Ok(table.lines().filter_map(|line| parse(line, &dir)).next_back())
}

fn absolute(dir: &Path) -> io::Result<PathBuf> {
    match (dir.parent(), dir.file_name()) {
        (Some(parent), Some(name)) => {
            let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
            Ok(parent.canonicalize()?.join(name))
        }
        _ => dir.canonicalize(),
    }
}

/// A line of /proc/self/mountinfo, if it is about this directory (proc_pid_mountinfo(5)).
fn parse(line: &str, dir: &Path) -> Option<Line> {
    let (left, right) = line.split_once(" - ")?;
    let mut fields = left.split(' ').skip(2);
    let device = fields.next()?.to_owned();
    let point = unescape(fields.nth(1)?);
    let fs_type = right.split(' ').next()?.to_owned();
    (Path::new(&point) == dir).then_some(Line { device, fs_type })
}

/// Undoes the octal escapes for space, tab, newline and backslash.
fn unescape(text: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(text.to_owned(), |text, (escaped, plain)| text.replace(escaped, plain))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_line_of_the_table_is_understood() {
        let line = "36 35 0:52 / /mnt/a\\040b rw,noatime shared:1 - fuse.atoll atoll rw";
        let found = parse(line, Path::new("/mnt/a b")).unwrap();
        assert_eq!((found.device.as_str(), found.fs_type.as_str()), ("0:52", "fuse.atoll"));
        assert_eq!(parse(line, Path::new("/mnt")), None);
        assert_eq!(parse("nonsense", Path::new("/mnt")), None);
    }

    #[test]
    fn a_plain_directory_is_free_to_mount_on() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(inspect(dir.path()).unwrap(), Found::Directory);
        let file = dir.path().join("file");
        std::fs::write(&file, "x").unwrap();
        assert_eq!(inspect(&file).unwrap_err().kind(), io::ErrorKind::NotADirectory);
    }
}
