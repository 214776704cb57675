//! A large site of which a few files change: what travels, and how long it takes.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use atoll_testbed::http::Version;
use atoll_testbed::tree::random;
use atoll_testbed::{DevCluster, Node, Tree, seed, wait};
use serde_json::Value;

use crate::Scale;
use crate::table::{Report, Table, figure, median};

const SITE: &str = "redeploy";
const FILES: usize = 20_000;
const BYTES: usize = 4096;
const CHANGED: usize = 10;
const ROUNDS: usize = 5;
/// Bytes that a node asked others for.
const FETCHED: &str = "atoll_edge_upstream_bytes_total";
const WARMED: &str = "atoll_edge_deploys_warmed_total";
/// Until every edge has the pages of a deploy.
const PATIENCE: Duration = Duration::from_secs(120);

/// What one redeploy took.
struct Redeploy {
    wall_ms: f64,
    scan_ms: f64,
    up: f64,
    edges: f64,
    shields: f64,
}

/// Measures.
pub(crate) async fn measure(cluster: &DevCluster, scale: Scale, report: &mut Report) -> Result<()> {
    let files = scale.of(FILES);
    let mut rng = seed::rng(20);
    let name = |number: usize| format!("d{}/f{number}.bin", number % 200);
    let mut tree = Tree::default();
    for number in 0..files {
        tree.put(&name(number), random(&mut rng, BYTES));
    }
    let source = cluster.work().join(SITE);
    tree.write(&source)?;
    let edges: Vec<Node> = (1..=cluster.edges().len() as u64).map(Node::edge).collect();
    let before = sum(cluster, &edges, WARMED)?;
    cluster.deploy(&source, SITE)?;
    warm(cluster, &edges, before)?;

    let mut runs = Vec::new();
    for round in 0..scale.of(ROUNDS).max(1) {
        let changed: Vec<usize> =
            (0..CHANGED).map(|one| (one * files / CHANGED + 7 * (round + 1)) % files).collect();
        for number in &changed {
            std::fs::write(source.join(name(*number)), random(&mut rng, BYTES))?;
        }
        let warmed = sum(cluster, &edges, WARMED)?;
        let fetched = sum(cluster, &edges, FETCHED)?;
        let by_shield = cluster.metric(Node::shield(1), FETCHED)?;
        let began = Instant::now();
        let done = cluster.deploy(&source, SITE)?;
        let wall_ms = began.elapsed().as_secs_f64() * 1000.0;
        warm(cluster, &edges, warmed)?;
        // What changed is fetched by who is asked for it.
        for (_, addr) in cluster.edges() {
            let mut visitor = cluster.visit(Version::H2, addr, SITE).await?;
            for number in &changed {
                let answer = visitor.get(&format!("/{}", name(*number))).await?;
                ensure!(answer.status == 200 && answer.body.len() == BYTES, "{answer:?}");
            }
        }
        runs.push(Redeploy {
            wall_ms,
            scan_ms: field(&done["elapsed_ms"], "scan"),
            up: field(&done, "bytes_uploaded"),
            edges: sum(cluster, &edges, FETCHED)? - fetched,
            shields: cluster.metric(Node::shield(1), FETCHED)? - by_shield,
        });
    }
    let middle = |of: fn(&Redeploy) -> f64| figure(median(runs.iter().map(of).collect()));
    let columns = [
        "files",
        "changed",
        "wall ms",
        "of it the scan",
        "bytes up",
        "bytes fetched by all edges",
        "by the shield",
        "changed content + 1 MiB",
    ];
    let mut table = Table::new("Redeploy of a large site", &columns);
    table.row([
        files.to_string(),
        CHANGED.to_string(),
        middle(|run| run.wall_ms),
        middle(|run| run.scan_ms),
        middle(|run| run.up),
        middle(|run| run.edges),
        middle(|run| run.shields),
        figure((CHANGED * BYTES + (1 << 20)) as f64),
    ]);
    table.note(format!(
        "Medians of {} redeploys, the process of `atoll deploy` and all; {} edges, each asked for \
         every changed file, and one shield.",
        runs.len(),
        edges.len()
    ));
    report.add(table);
    Ok(())
}

fn sum(cluster: &DevCluster, nodes: &[Node], metric: &str) -> Result<f64> {
    nodes.iter().map(|node| cluster.metric(*node, metric)).sum()
}

/// Waits until every edge has the pages of one more deploy.
fn warm(cluster: &DevCluster, edges: &[Node], before: f64) -> Result<()> {
    wait::until("every edge to have the pages", PATIENCE, || {
        Ok((sum(cluster, edges, WARMED)? >= before + edges.len() as f64).then_some(()))
    })
}

fn field(object: &Value, name: &str) -> f64 {
    object[name].as_f64().unwrap_or_default()
}
