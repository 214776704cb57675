//! The mount is a real file system: rules of POSIX, each by its section of POSIX.1-2017 (the Linux
//! pages where Linux has rules of its own), checked on a mount and, with the same code, on a plain
//! directory. A rule that the directory does not follow is a wrong rule, not a broken mount.

mod attributes;
mod bytes;
mod names;

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use atoll_testbed::DevCluster;
use nix::unistd::{Gid, Uid, setfsgid, setfsuid};

use super::word;

/// One rule: its section, what it says, and the check of it in an empty directory that anybody may
/// use.
type Rule = (&'static str, &'static str, fn(&Path) -> Result<()>);

#[test]
fn the_mount_follows_the_rules_of_posix() -> Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "this test acts as several users: run it as root");
    let cluster = DevCluster::builder().start()?;
    let (mount, disk) = (cluster.work().join("mount"), cluster.work().join("disk"));
    fs::create_dir(&mount)?;
    fs::create_dir(&disk)?;
    open_up(&disk)?;
    cluster.atoll(&["mount", "--allow-other", word(&mount)])?.ok()?;
    let mut broken = Vec::new();
    for rules in [names::RULES, attributes::RULES, bytes::RULES] {
        for (section, what, check) in rules {
            for root in [&disk, &mount] {
                if let Err(error) = check_in(root, *check) {
                    broken.push(format!("{section}: {what}: in {}: {error:#}", root.display()));
                }
            }
        }
    }
    cluster.atoll(&["umount", word(&mount)])?.ok()?;
    ensure!(broken.is_empty(), "{} broken:\n{}", broken.len(), broken.join("\n"));
    cluster.finish()
}

fn check_in(root: &Path, check: fn(&Path) -> Result<()>) -> Result<()> {
    let dir = tempfile::tempdir_in(root)?;
    open_up(dir.path())?;
    check(dir.path())
}

/// Lets everybody make files there.
fn open_up(dir: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o777)).context("chmod")
}

/// Does something as another user and group. Only this thread changes, and only towards file
/// systems; the capabilities that matter there go and come with it.
pub(super) fn as_user<T>(uid: u32, gid: u32, work: impl FnOnce() -> T) -> T {
    /// Becomes root again, also when a check panics.
    struct Back;
    impl Drop for Back {
        fn drop(&mut self) {
            setfsuid(Uid::from_raw(0));
            setfsgid(Gid::from_raw(0));
        }
    }
    let _back = Back;
    setfsgid(Gid::from_raw(gid));
    setfsuid(Uid::from_raw(uid));
    work()
}

/// The operation must fail with this errno.
fn fails<T>(errno: i32, what: &str, outcome: std::io::Result<T>) -> Result<()> {
    match outcome {
        Ok(_) => bail!("{what} succeeds and should fail with errno {errno}"),
        Err(error) if error.raw_os_error() == Some(errno) => Ok(()),
        Err(error) => bail!("{what} fails with {error}, not with errno {errno}"),
    }
}

/// As [`fails`], for calls that rustix makes.
fn refuses<T>(errno: i32, what: &str, outcome: rustix::io::Result<T>) -> Result<()> {
    fails(errno, what, outcome.map_err(Into::into))
}
