//! Deploys: many small files, one changed file, none.

use std::time::Duration;

use anyhow::{Context as _, Result};
use atoll_testbed::tree::random;
use atoll_testbed::{DevCluster, Node, Tree, process, seed};
use serde_json::Value;

use crate::Scale;
use crate::table::{Report, Table, figure, median};

const SITE: &str = "bench";
const PHASES: [&str; 5] = ["scan", "upload", "commit", "wait", "total"];

/// CPU seconds of each role so far.
fn cpu(cluster: &DevCluster) -> Vec<(&'static str, Duration)> {
    let mut sums: Vec<(&'static str, Duration)> = Vec::new();
    for node in cluster.ready().nodes() {
        let spent = cluster.pid(node).and_then(|pid| process::cpu_time(pid).ok());
        let spent = spent.unwrap_or_default();
        match sums.iter_mut().find(|(role, _)| *role == role_of(node)) {
            Some((_, sum)) => *sum += spent,
            None => sums.push((role_of(node), spent)),
        }
    }
    sums
}

fn role_of(node: Node) -> &'static str {
    node.role_word()
}

fn phases(done: &Value) -> Result<Vec<f64>> {
    PHASES
        .iter()
        .map(|phase| done["elapsed_ms"][phase].as_f64().with_context(|| format!("{phase}: {done}")))
        .collect()
}

/// The middle of several deploys, phase by phase.
fn medians(runs: &[Vec<f64>]) -> Vec<f64> {
    (0..PHASES.len()).map(|at| median(runs.iter().map(|run| run[at]).collect())).collect()
}

/// Measures.
pub(crate) fn measure(cluster: &DevCluster, scale: Scale, report: &mut Report) -> Result<()> {
    let files = scale.of(10_000);
    let source = cluster.work().join("many");
    let mut rng = seed::rng(1);
    let mut tree = Tree::default();
    for number in 0..files {
        let path = format!("d{}/f{number}.bin", number % 100);
        tree.put(&path, random(&mut rng, 4096));
    }
    tree.write(&source)?;
    let mut table = Table::new(
        "Deploys",
        &["workload", "scan ms", "upload ms", "commit ms", "wait ms", "total ms", "files/s"],
    );
    let row = |name: &str, phases: &[f64], files: usize| {
        let mut cells = vec![name.to_owned()];
        cells.extend(phases.iter().map(|ms| figure(*ms)));
        cells.push(figure(files as f64 / (phases[PHASES.len() - 1].max(1.0) / 1000.0)));
        cells
    };
    let before = cpu(cluster);
    let first = phases(&cluster.deploy(&source, SITE)?)?;
    let after = cpu(cluster);
    table.row(row(&format!("{files} files of 4 KiB, all new"), &first, files));

    let runs = scale.of(10).max(3);
    let mut changed = Vec::new();
    let mut unchanged = Vec::new();
    for round in 0..runs {
        tree.put("d7/f7.bin", format!("round {round}"));
        std::fs::write(source.join("d7/f7.bin"), format!("round {round}"))?;
        changed.push(phases(&cluster.deploy(&source, SITE)?)?);
        unchanged.push(phases(&cluster.deploy(&source, SITE)?)?);
    }
    table.row(row("the same with one file changed, median", &medians(&changed), files));
    table.row(row("the same unchanged, median", &medians(&unchanged), files));

    let spent: Vec<String> = after
        .iter()
        .zip(&before)
        .map(|((role, after), (_, before))| {
            format!("{role} {}", figure(after.saturating_sub(*before).as_secs_f64()))
        })
        .collect();
    table.note(format!("CPU seconds of the first deploy by role: {}.", spent.join(", ")));
    table.note(where_time_goes(&first));
    report.add(table);
    Ok(())
}

fn where_time_goes(phases: &[f64]) -> String {
    let total = phases[PHASES.len() - 1].max(1.0);
    let shares: Vec<String> = PHASES
        .iter()
        .zip(phases)
        .take(PHASES.len() - 1)
        .map(|(phase, ms)| format!("{phase} {:.0} %", 100.0 * ms / total))
        .collect();
    format!("Where the first deploy's time goes: {}.", shares.join(", "))
}
