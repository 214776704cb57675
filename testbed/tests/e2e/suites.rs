//! The suites that others wrote for file systems: pjdfstest (rules of POSIX, as several users) and
//! fsx (random operations on one file against a model). Both are programs from crates.io that
//! `scripts/suites.sh` builds into the target folder.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use atoll_testbed::{DevCluster, process, seed};

use super::word;

/// Longest run of one suite, loaded machines included.
const SUITE: Duration = Duration::from_secs(280);

/// The variables by which `make soak` asks fsx for more.
const SEEDS: &str = "ATOLL_FSX_SEEDS";
const OPERATIONS: &str = "ATOLL_FSX_OPERATIONS";

/// Every user a Debian system has anyway; every feature that Linux has.
const PJDFSTEST: &str = r#"
[features]
posix_fallocate = {}
rename_ctime = {}
utimensat = {}
utime_now = {}
[settings]
naptime = 0.01
allow_remount = false
[dummy_auth]
entries = [["nobody", "nogroup"], ["daemon", "daemon"]]
"#;

/// Every operation there is.
const FSX: &str = "
flen = 1048576
[opsize]
max = 131072
min = 1
align = 1
[weights]
read = 10
write = 10
mapread = 5
mapwrite = 5
truncate = 2
fsync = 1
fdatasync = 1
close_open = 1
invalidate = 1
punch_hole = 1
posix_fallocate = 1
sendfile = 1
copy_file_range = 1
posix_fadvise = 1
";

/// The case that asks for LINK_MAX by pathconf(3), which glibc answers from a table of the file
/// systems it knows; FUSE is not in it. `namespace/make.rs` has the limit and its error.
const LINK_MAX: &str = "link::link_count_max";

/// A program that `scripts/suites.sh` builds.
fn tool(name: &str) -> Result<PathBuf> {
    let binary = atoll_testbed::cluster::find_binary()?;
    let target = binary.parent().and_then(Path::parent).context("the target folder")?;
    let tool = target.join("tools/bin").join(name);
    ensure!(tool.exists(), "{} is missing: `scripts/gate.sh tools` builds it", tool.display());
    Ok(tool)
}

/// A number from the environment, or else this one.
fn setting(name: &str, default: u64) -> Result<u64> {
    std::env::var(name).map_or(Ok(default), |text| text.parse().context(name.to_owned()))
}

fn mounted() -> Result<(DevCluster, PathBuf)> {
    ensure!(nix::unistd::geteuid().is_root(), "these suites act as several users: run as root");
    let cluster = DevCluster::builder().start()?;
    let mount = cluster.work().join("mount");
    fs::create_dir(&mount)?;
    cluster.atoll(&["mount", "--allow-other", word(&mount)])?.ok()?;
    Ok((cluster, mount))
}

/// Names of the cases by their outcome: (passed, failed, skipped).
type Cases = (BTreeSet<String>, BTreeSet<String>, BTreeSet<String>);

fn pjdfstest(cluster: &DevCluster, dir: &Path) -> Result<Cases> {
    let config = cluster.work().join("pjdfstest.toml");
    fs::write(&config, PJDFSTEST)?;
    fs::create_dir(dir)?;
    let mut command = Command::new(tool("pjdfstest")?);
    command.arg("-c").arg(&config).arg("-p").arg(dir).current_dir(cluster.work());
    let outcome = process::run(command, SUITE)?;
    let (mut passed, mut failed, mut skipped) = Cases::default();
    for line in outcome.text().lines() {
        // Colours end in m, and a case is a line of its name and its outcome.
        let line: String = line
            .split('\u{1b}')
            .map(|part| {
                part.split_once('m')
                    .filter(|(code, _)| code.starts_with('['))
                    .map_or(part, |(_, text)| text)
            })
            .collect();
        let mut words = line.split_whitespace();
        let (Some(name), Some(word), None) = (words.next(), words.next(), words.next()) else {
            continue;
        };
        match word {
            "ok" => passed.insert(name.to_owned()),
            "skipped" => skipped.insert(name.to_owned()),
            "FAILED" => failed.insert(name.to_owned()),
            _ => false,
        };
    }
    ensure!(passed.len() > 300, "pjdfstest says something else than expected: {outcome}");
    Ok((passed, failed, skipped))
}

#[test]
fn pjdfstest_passes_on_the_mount_as_on_a_disk() -> Result<()> {
    let (cluster, mount) = mounted()?;
    let on_disk = pjdfstest(&cluster, &cluster.work().join("on-disk"))?;
    let (passed, failed, skipped) = pjdfstest(&cluster, &mount.join("suite"))?;
    ensure!(failed.is_empty(), "{} cases fail: {failed:?}", failed.len());
    // Nothing is left out that the disk is asked, but for what glibc does not let anybody ask.
    let left_out: Vec<&String> =
        skipped.difference(&on_disk.2).filter(|name| *name != LINK_MAX).collect();
    ensure!(left_out.is_empty(), "skipped on the mount alone: {left_out:?}");
    let unasked = usize::from(skipped.contains(LINK_MAX));
    ensure!(passed.len() + unasked >= on_disk.0.len(), "{} of {}", passed.len(), on_disk.0.len());
    cluster.atoll(&["umount", word(&mount)])?.ok()?;
    cluster.finish()
}

#[test]
fn fsx_finds_the_mount_to_be_as_its_model() -> Result<()> {
    let (cluster, mount) = mounted()?;
    let config = cluster.work().join("fsx.toml");
    fs::write(&config, FSX)?;
    let (first, seeds, operations) = (seed::or(1), setting(SEEDS, 4)?, setting(OPERATIONS, 3000)?);
    for seed in first..first + seeds {
        let mut command = Command::new(tool("fsx")?);
        command.arg("-f").arg(&config).args(["-N", &operations.to_string()]);
        command.args(["-S", &seed.to_string()]).arg("-P").arg(cluster.work());
        command.arg(mount.join(format!("file-{seed}"))).current_dir(cluster.work());
        let outcome = process::run(command, SUITE + Duration::from_millis(operations * 20))?;
        outcome.ok().with_context(|| format!("fsx with seed {seed}"))?;
        fs::remove_file(mount.join(format!("file-{seed}")))?;
    }
    cluster.atoll(&["umount", word(&mount)])?.ok()?;
    cluster.finish()
}
