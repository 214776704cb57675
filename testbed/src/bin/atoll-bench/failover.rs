//! `atoll-bench failover`: masters under faults, with a history that is judged after every round.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use atoll_testbed::failover::{self, Hurt, Plan, Report, percentile};
use clap::Args;

/// Which, and how long.
#[derive(Debug, Clone, Args)]
pub(crate) struct FailoverArgs {
    /// How many clusters, one after the other; each has the next seed
    #[arg(long, default_value_t = 1)]
    clusters: u64,
    /// Rounds on each
    #[arg(long, default_value_t = 20)]
    rounds: usize,
    /// Where the rounds come from [default: the clock]
    #[arg(long)]
    seed: Option<u64>,
    /// Masters: 3 or 5
    #[arg(long, default_value_t = 3)]
    masters: usize,
    /// Only faults of this kind; may be given several times [default: all]
    #[arg(long, value_enum)]
    only: Vec<Hurt>,
}

/// Runs them.
pub(crate) async fn run(atoll: &Path, args: FailoverArgs) -> Result<()> {
    let atoll = atoll.to_owned();
    tokio::task::spawn_blocking(move || run_now(&atoll, &args)).await.context("it panicked")?
}

fn run_now(atoll: &Path, args: &FailoverArgs) -> Result<()> {
    ensure!([3, 5].contains(&args.masters), "--masters is 3 or 5");
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    let first = args.seed.unwrap_or(clock.as_secs());
    let mut all = Report::default();
    for number in 0..args.clusters {
        let plan = Plan {
            seed: first.wrapping_add(number),
            rounds: args.rounds,
            masters: args.masters,
            only: args.only.clone(),
        };
        println!("{plan}");
        let report = failover::run(&plan, Some(atoll))?;
        tell(&format!("seed {}", plan.seed), &report);
        all.rounds += report.rounds;
        all.operations += report.operations;
        all.unknown += report.unknown;
        all.needless_terms += report.needless_terms;
        all.times.extend(report.times);
        for (hurt, times) in report.gaps {
            all.gaps.entry(hurt).or_default().extend(times);
        }
    }
    if args.clusters > 1 {
        tell("in all", &all);
    }
    Ok(())
}

fn tell(what: &str, report: &Report) {
    let Report { rounds, operations, unknown, needless_terms, times, .. } = report;
    let longest = times.iter().max().copied().unwrap_or(Duration::ZERO);
    println!(
        "{what}: {rounds} rounds right; {operations} operations, {unknown} of unknown outcome; \
         {needless_terms} elections without a fault; a round took {longest:.1?} at most"
    );
    let line = |name: &str, times: &[Duration]| {
        let of = |percent| percentile(times, percent).unwrap_or_default();
        println!(
            "  {name:16} {:4} times; to the next acknowledged change: p50 {:.2?}, p99 {:.2?}, \
             longest {:.2?}",
            times.len(),
            of(50),
            of(99),
            of(100)
        );
    };
    for (hurt, times) in &report.gaps {
        line(hurt.as_str(), times);
    }
    line("leader lost", &report.failovers());
}
