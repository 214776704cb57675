//! Storage under faults: short scenarios of every kind, each from a fixed seed. `make soak` runs
//! long ones. After every round everything acknowledged reads back right, every way there is.

use anyhow::{Result, ensure};
use atoll_testbed::disk::{self, DiskKind};
use atoll_testbed::scenario::{self, Kind, Report};
use atoll_testbed::seed;

/// Runs a scenario; `None` where this user cannot have the disks it needs.
fn run(kind: Kind, default_seed: u64, rounds: usize, disk: DiskKind) -> Result<Option<Report>> {
    if kind.needs_disks()
        && let Some(why) = disk::why_not()?
    {
        eprintln!("SKIPPED {kind}: {why}");
        return Ok(None);
    }
    let report = scenario::run(kind, seed::or(default_seed), rounds, disk, None)?;
    ensure!(report.acknowledged > 0 && report.rounds == rounds, "{report:?}");
    Ok(Some(report))
}

#[test]
fn everything_acknowledged_survives_power_cuts() -> Result<()> {
    run(Kind::PowerCut, 7, 2, DiskKind::Xfs).map(drop)
}

#[test]
fn everything_acknowledged_survives_kill_loops() -> Result<()> {
    run(Kind::KillLoop, 9, 2, DiskKind::Ext4).map(drop)
}

#[test]
fn wrong_bytes_on_a_disk_are_never_served() -> Result<()> {
    run(Kind::Corruption, 1, 2, DiskKind::Ext4).map(drop)
}

#[test]
fn cut_links_harm_nothing_acknowledged() -> Result<()> {
    run(Kind::Partition, 3, 2, DiskKind::Ext4).map(drop)
}

#[test]
fn full_disks_harm_nothing_acknowledged() -> Result<()> {
    run(Kind::FullDisk, 6, 2, DiskKind::Ext4).map(drop)
}
