//! `atoll-bench publishes`: publishes under faults, with visitors at every edge.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use atoll_testbed::publishes::{self, Plan, Policy, Report};
use clap::Args;

/// Which, and how long.
#[derive(Debug, Clone, Args)]
pub(crate) struct PublishesArgs {
    /// How many clusters, one after the other; each has the next seed
    #[arg(long, default_value_t = 1)]
    clusters: u64,
    /// Rounds on each
    #[arg(long, default_value_t = 20)]
    rounds: usize,
    /// Where the rounds come from [default: the clock]
    #[arg(long)]
    seed: Option<u64>,
    /// What edges may do past their lease [default: every policy in turn, by cluster]
    #[arg(long, value_enum)]
    policy: Option<Policy>,
    /// Masters: 1 or 3
    #[arg(long, default_value_t = 1)]
    masters: usize,
    /// Edges; one of them is always well
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(2..=16))]
    edges: u64,
    /// Shields, one in each of three regions and then again; edges of their regions follow the publish
    /// log through them
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(0..=9))]
    shields: u64,
    /// Nothing goes wrong; then no request may fail either
    #[arg(long)]
    no_faults: bool,
}

/// Runs them.
pub(crate) async fn run(atoll: &Path, args: PublishesArgs) -> Result<()> {
    let atoll = atoll.to_owned();
    tokio::task::spawn_blocking(move || run_now(&atoll, &args)).await.context("it panicked")?
}

fn run_now(atoll: &Path, args: &PublishesArgs) -> Result<()> {
    ensure!([1, 3].contains(&args.masters), "--masters is 1 or 3");
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    let first = args.seed.unwrap_or(clock.as_secs());
    for number in 0..args.clusters {
        let turn = usize::try_from(number)? % Policy::ALL.len();
        let plan = Plan {
            seed: first.wrapping_add(number),
            rounds: args.rounds,
            masters: args.masters,
            edges: usize::try_from(args.edges)?,
            shields: usize::try_from(args.shields)?,
            policy: args.policy.unwrap_or(Policy::ALL[turn]),
            calm: args.no_faults,
        };
        println!("{plan}");
        let report = publishes::run(&plan, Some(atoll))?;
        tell(&plan, report);
    }
    Ok(())
}

fn tell(plan: &Plan, report: Report) {
    let Report { rounds, acknowledged, unconfirmed, answers, failed, log, slow_syncs, mut times } =
        report;
    times.sort();
    let median = times.get(times.len() / 2).copied().unwrap_or_default();
    let longest = times.last().copied().unwrap_or(Duration::ZERO);
    println!(
        "seed {}, {}: {rounds} rounds right; {acknowledged} publishes acknowledged, {unconfirmed} \
         not, {log} entries in the log; {answers} answers, none stale; {failed} requests refused \
         or unanswered; {slow_syncs} syncs made slow; a round took {median:.1?} in the middle, {longest:.1?} at most",
        plan.seed,
        plan.policy.as_str()
    );
}
