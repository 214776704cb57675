//! `atoll-bench`: what a cluster on this machine does per second, and whether it stays right for
//! minutes under faults.
//!
//! `make bench` runs the workloads and writes the table; `make soak` runs random operations and
//! faults with checkers. Both drive the binary they are given, from outside. Nothing here decides
//! whether a figure is good.

mod deploys;
mod dns;
mod latency;
mod machine;
mod model;
mod mounts;
mod publishes;
mod redeploy;
mod requests;
mod scenario;
mod soak;
mod storage;
mod table;
mod unknown;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use atoll_testbed::DevCluster;
use clap::{Args, Parser, Subcommand};

use crate::table::Report;

/// Measures a cluster on this machine, or keeps one under faults.
#[derive(Debug, Parser)]
#[command(name = "atoll-bench", version)]
struct Cli {
    /// The `atoll` binary
    #[arg(long, value_name = "PATH", default_value = "target/release/atoll", global = true)]
    atoll: PathBuf,
    #[command(flatten)]
    bench: BenchArgs,
    #[command(subcommand)]
    command: Option<Command>,
}

/// Which measurements.
#[derive(Debug, Args)]
struct BenchArgs {
    /// A tenth of everything: whether it works, not how fast; only printed, unless --out is given
    #[arg(long)]
    quick: bool,
    /// Where the table is written [default: docs/BENCHMARKS.md]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Only these: deploy, redeploy, requests, unknown-urls, mount, latency, relay, idle, freeze, kill-write, flip, reconcile, rebuild, drain
    #[arg(long, value_name = "WORKLOAD")]
    only: Vec<String>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Random operations and faults from a seed, with checkers
    Soak(soak::SoakArgs),
    /// Rounds of faults from a seed, with checkers: power cuts, kill loops, damage, partitions
    Scenario(scenario::ScenarioArgs),
    /// Publishes under faults from a seed, with visitors at every edge: none may see a stale answer
    Publishes(publishes::PublishesArgs),
    /// A name server alone, until Ctrl-C, for load generators
    Dns(dns::DnsArgs),
}

/// How much of each workload.
#[derive(Debug, Clone, Copy)]
struct Scale {
    quick: bool,
}

impl Scale {
    /// This many, or a tenth.
    fn of(self, count: usize) -> usize {
        if self.quick { count.div_ceil(10) } else { count }
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let cli = Cli::parse();
    match cli.command {
        Some(Command::Soak(args)) => Box::pin(soak::run(&cli.atoll, &args)).await,
        Some(Command::Scenario(args)) => scenario::run(&cli.atoll, args).await,
        Some(Command::Publishes(args)) => publishes::run(&cli.atoll, args).await,
        Some(Command::Dns(args)) => dns::run(args).await,
        None => Box::pin(bench(&cli.atoll, &cli.bench)).await,
    }
}

async fn bench(atoll: &Path, args: &BenchArgs) -> Result<()> {
    let scale = Scale { quick: args.quick };
    let wanted = |name: &str| args.only.is_empty() || args.only.iter().any(|only| only == name);
    let mut report = Report::default();
    if ["deploy", "redeploy", "requests", "unknown-urls"].into_iter().any(wanted) {
        let cluster = DevCluster::builder().binary(atoll).start()?;
        if wanted("deploy") {
            note("deploys");
            deploys::measure(&cluster, scale, &mut report)?;
        }
        if wanted("redeploy") {
            note("redeploys");
            Box::pin(redeploy::measure(&cluster, scale, &mut report)).await?;
        }
        if wanted("requests") {
            note("requests");
            Box::pin(requests::measure(&cluster, scale, &mut report)).await?;
        }
        if wanted("unknown-urls") {
            note("URLs that do not exist");
            Box::pin(unknown::measure(&cluster, scale, &mut report)).await?;
        }
        cluster.finish()?;
    }
    if wanted("mount") {
        note("the mount");
        let cluster = DevCluster::builder().binary(atoll).edges(1).mounted().start()?;
        mounts::measure(&cluster, scale, &mut report)?;
        cluster.finish()?;
    }
    if wanted("latency") {
        note("publishes");
        Box::pin(latency::measure(atoll, scale, &mut report)).await?;
    }
    if wanted("relay") {
        note("publishes through shields");
        Box::pin(latency::measure_relay(atoll, scale, &mut report)).await?;
    }
    if storage::NAMES.into_iter().any(wanted) {
        let (atoll, only) = (atoll.to_owned(), args.only.clone());
        report = tokio::task::spawn_blocking(move || {
            let wanted = |name: &str| only.is_empty() || only.iter().any(|only| only == name);
            storage::measure(&atoll, wanted, scale, &mut report).map(|()| report)
        })
        .await
        .context("a measurement panicked")??;
    }
    let text = report.markdown(&machine::facts(atoll)?, args.quick);
    println!("{text}");
    let out = match (&args.out, args.quick) {
        (Some(out), _) => out.clone(),
        (None, false) => PathBuf::from("docs/BENCHMARKS.md"),
        (None, true) => return Ok(()),
    };
    std::fs::write(&out, text).with_context(|| format!("write {}", out.display()))?;
    eprintln!("written to {}", out.display());
    Ok(())
}

fn note(what: &str) {
    eprintln!("measuring {what} …");
}
