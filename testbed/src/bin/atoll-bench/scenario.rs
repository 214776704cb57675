//! `atoll-bench scenario`: rounds of faults from a seed, with checkers.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use atoll_testbed::disk::{self, DiskKind};
use atoll_testbed::scenario::{self, Kind, Report, Scenario};
use clap::Args;

/// Which, and how long.
#[derive(Debug, Clone, Args)]
pub(crate) struct ScenarioArgs {
    /// What goes wrong [default: every kind, one after the other]
    #[arg(long, value_enum)]
    kind: Option<Kind>,
    /// Where the rounds come from [default: the clock]
    #[arg(long)]
    seed: Option<u64>,
    /// How many
    #[arg(long, default_value_t = 10)]
    rounds: usize,
    /// What the nodes' disks are
    #[arg(long, value_enum, default_value_t = DiskKind::Xfs)]
    disk: DiskKind,
    /// Only print the rounds, as for a build that repairs
    #[arg(long)]
    dry_run: bool,
}

/// Runs them.
pub(crate) async fn run(atoll: &Path, args: ScenarioArgs) -> Result<()> {
    let atoll: PathBuf = atoll.to_owned();
    tokio::task::spawn_blocking(move || run_now(&atoll, &args)).await.context("it panicked")?
}

fn run_now(atoll: &Path, args: &ScenarioArgs) -> Result<()> {
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    let seed = args.seed.unwrap_or(clock.as_secs());
    for kind in args.kind.map_or_else(|| Kind::ALL.to_vec(), |kind| vec![kind]) {
        if args.dry_run {
            let scenario = Scenario::plan(kind, seed, args.rounds, args.disk, true);
            println!("{kind}, seed {seed}: {:?}", scenario.shape);
            for round in &scenario.rounds {
                println!("{}", serde_json::to_string(round)?);
            }
            continue;
        }
        if kind.needs_disks()
            && let Some(why) = disk::why_not()?
        {
            println!("SKIPPED {kind}: {why}");
            continue;
        }
        println!("{kind}, seed {seed}, {} rounds", args.rounds);
        let report = scenario::run(kind, seed, args.rounds, args.disk, Some(atoll))?;
        tell(kind, seed, report);
    }
    Ok(())
}

fn tell(kind: Kind, seed: u64, report: Report) {
    let Report { rounds, acknowledged, unknown, reads, failed, mut times, .. } = report;
    times.sort();
    let median = times.get(times.len() / 2).copied().unwrap_or_default();
    let longest = times.last().copied().unwrap_or(Duration::ZERO);
    println!(
        "{kind}, seed {seed}: {rounds} rounds right; {acknowledged} operations acknowledged, \
         {unknown} of open outcome, {reads} reads meanwhile, {failed} failed where they may; a \
         round took {median:.1?} in the middle, {longest:.1?} at most"
    );
    match kind {
        Kind::Partition => println!("{} packets were kept back", report.packets_cut),
        Kind::Corruption => println!("{} chunks were found corrupt", report.corrupt_found),
        Kind::PowerCut | Kind::KillLoop | Kind::FullDisk => {}
    }
    for line in report.cannot_tell {
        println!("CANNOT TELL {line}");
    }
}
