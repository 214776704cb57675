//! How long a publish takes from its commit to its return, by the number of edges and their
//! distance.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use atoll_client::{Cluster, Wait, wait_applied};
use atoll_proto::publish::SiteOp;
use atoll_proto::{AliasName, DeployId};
use atoll_testbed::many_edges::ManyEdges;
use atoll_testbed::metrics::Scrape;
use atoll_testbed::{DevCluster, Fault, Node};

use crate::Scale;
use crate::table::{Report, Table, figure};

const SITE: &str = "latency";
const EDGES: [usize; 3] = [2, 20, 200];
const DELAYS_MS: [u64; 2] = [0, 100];
/// Publishes of each kind.
const PUBLISHES: usize = 200;
/// Edges, and shields that they are behind.
const RELAYED: [(usize, usize); 4] = [(200, 0), (200, 2), (1000, 0), (1000, 3)];
/// Publishes of each of these.
const PUBLISHES_RELAYED: usize = 100;
/// Until all edges follow through their shields.
const SETTLE: Duration = Duration::from_secs(180);
/// How long publishes go on before they count.
const WARM_UP: Duration = Duration::from_secs(8);
/// For one publish.
const PATIENCE: Duration = Duration::from_secs(60);
/// What a publish may take beyond one and a half of the slowest round trip.
const ALLOWANCE_MS: f64 = 30.0;

/// Measures, on a cluster of its own for each number of edges and distance.
pub(crate) async fn measure(atoll: &Path, scale: Scale, report: &mut Report) -> Result<()> {
    let columns = ["edges", "one-way delay ms", "publishes", "p50 ms", "p99 ms", "bound ms"];
    let mut table = Table::new("Publish latency", &columns);
    // Logs of hundreds of edges within this process are of no use.
    drop(atoll_net::telemetry::init("bench", "error"));
    for delay_ms in DELAYS_MS {
        for edges in EDGES {
            let mut times = one(atoll, edges, delay_ms, scale.of(PUBLISHES)).await?;
            times.sort();
            let round_trip_ms = 2.0 * delay_ms as f64;
            table.row([
                edges.to_string(),
                delay_ms.to_string(),
                times.len().to_string(),
                figure(quantile_ms(&times, 0.50)),
                figure(quantile_ms(&times, 0.99)),
                figure(1.5 * round_trip_ms + ALLOWANCE_MS),
            ]);
        }
    }
    table.note(
        "From the moment the commit is known to the return, of promotes by the client library, one \
         after the other. The edges run within the bench's process, each with an identity and a \
         lease of its own, their data in memory, and share the machine's cores with the cluster. \
         The delay is between edges and masters, each way, made by a proxy in the same process; \
         the bound is 1.5 × the round trip that it makes + 30 ms.",
    );
    report.add(table);
    Ok(())
}

async fn one(atoll: &Path, edges: usize, delay_ms: u64, publishes: usize) -> Result<Vec<Duration>> {
    let cluster = DevCluster::builder().binary(atoll).edges(1).shields(0).start()?;
    let deploys = two_deploys(&cluster)?;
    // Only simulated ones are counted and waited for.
    Fault::Stop(Node::edge(1)).apply(&cluster)?;
    let delay = (delay_ms > 0).then(|| Duration::from_millis(delay_ms));
    let many = ManyEdges::start(&cluster, edges, delay, 0).await?;
    let client = cluster.client().await?;
    let mut times = Vec::new();
    // The first ones bring the pages of both deploys to every edge. And for some seconds all edges
    // fetch views of the cluster that grow with each other's arrival.
    let (began, mut number) = (Instant::now(), 0);
    while times.len() < publishes {
        let deploy = deploys[number % deploys.len()];
        let took = publish(&client, deploy, edges).await?;
        number += 1;
        if number > 4 && began.elapsed() > WARM_UP {
            times.push(took);
        }
    }
    many.finish().await?;
    Fault::Start(Node::edge(1)).apply(&cluster)?;
    cluster.finish()?;
    Ok(times)
}

/// What the leading master did for publishes through shields.
pub(crate) async fn measure_relay(atoll: &Path, scale: Scale, report: &mut Report) -> Result<()> {
    let columns = [
        "edges",
        "shields",
        "publishes",
        "p50 ms",
        "p99 ms",
        "messages at the master per publish",
        "KiB at the master per publish",
    ];
    let mut table = Table::new("Publishes through shields", &columns);
    drop(atoll_net::telemetry::init("bench", "error"));
    for (edges, shields) in RELAYED {
        let publishes = scale.of(PUBLISHES_RELAYED);
        let mut relayed = Box::pin(through(atoll, scale.of(edges), shields, publishes)).await?;
        relayed.times.sort();
        table.row([
            scale.of(edges).to_string(),
            shields.to_string(),
            relayed.times.len().to_string(),
            figure(quantile_ms(&relayed.times, 0.50)),
            figure(quantile_ms(&relayed.times, 0.99)),
            figure(relayed.messages / publishes as f64),
            figure(relayed.bytes / 1024.0 / publishes as f64),
        ]);
    }
    table.note(
        "As above, without a delay. With no shield every edge follows the master. Messages are \
         requests that the master answered about the publish log and leases (`watch`, `renew`, \
         `relay`), bytes those of all frames in both directions, both over the time of all \
         publishes, so that renewals and questions for the view are in them.",
    );
    report.add(table);
    Ok(())
}

/// Publishes, and what passed at the master meanwhile.
struct Relayed {
    times: Vec<Duration>,
    messages: f64,
    bytes: f64,
}

async fn through(atoll: &Path, edges: usize, shields: usize, publishes: usize) -> Result<Relayed> {
    let cluster = DevCluster::builder().binary(atoll).edges(1).shields(shields).start()?;
    let deploys = two_deploys(&cluster)?;
    Fault::Stop(Node::edge(1)).apply(&cluster)?;
    let many = ManyEdges::start(&cluster, edges, None, shields).await?;
    let client = cluster.client().await?;
    let mut number = 0;
    let mut next = || {
        number += 1;
        deploys[number % deploys.len()]
    };
    let began = Instant::now();
    let mut settled = 0;
    // Until every edge has found its shield, and has the pages of both deploys.
    while settled < 4 || began.elapsed() < WARM_UP {
        let before = master(&cluster)?.sum("atoll_master_relayed_acks_total");
        publish(&client, next(), edges).await?;
        let acks = master(&cluster)?.sum("atoll_master_relayed_acks_total") - before;
        let all = shields == 0 || acks >= edges as f64;
        settled = if all { settled + 1 } else { 0 };
        ensure!(began.elapsed() < SETTLE, "only {acks} of {edges} edges follow through shields");
        if !all {
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }
    let before = master(&cluster)?;
    let mut times = Vec::new();
    for _ in 0..publishes {
        times.push(publish(&client, next(), edges).await?);
    }
    let after = master(&cluster)?;
    many.finish().await?;
    Fault::Start(Node::edge(1)).apply(&cluster)?;
    cluster.finish()?;
    let messages = |scrape: &Scrape| -> f64 {
        let of = |operation: &str| {
            let label = format!("operation=\"{operation}\"");
            scrape.sum_where("atoll_net_requests_total", &label)
        };
        of("watch") + of("relay") + of("renew")
    };
    let bytes = |scrape: &Scrape| scrape.sum("atoll_net_bytes_total");
    Ok(Relayed {
        times,
        messages: messages(&after) - messages(&before),
        bytes: bytes(&after) - bytes(&before),
    })
}

fn master(cluster: &DevCluster) -> Result<Scrape> {
    let ready = cluster.ready();
    let admin = ready.masters.first().and_then(|master| master.admin);
    Scrape::of(admin.context("the master has metrics")?)
}

/// Two deploys of one site, to move its alias between.
fn two_deploys(cluster: &DevCluster) -> Result<Vec<DeployId>> {
    let source = cluster.work().join("site");
    std::fs::create_dir_all(&source)?;
    let mut deploys = Vec::new();
    for number in 0..2 {
        std::fs::write(source.join("version.txt"), format!("version {number}"))?;
        let done = cluster.deploy(&source, SITE)?;
        let id = done["deploy"].as_str().context("a deploy has an id")?;
        deploys.push(id.parse::<DeployId>().ok().with_context(|| format!("{id} is no id"))?);
    }
    Ok(deploys)
}

/// From the commit to the return.
async fn publish(client: &Cluster, deploy: DeployId, edges: usize) -> Result<Duration> {
    let op = SiteOp::MoveAlias {
        site: SITE.parse()?,
        alias: AliasName::production(),
        deploy: Some(deploy),
        if_current: None,
    };
    let published = client.site(op).await?;
    let committed = Instant::now();
    let waited = wait_applied(client, published.seq, Wait::All, PATIENCE).await?;
    let took = committed.elapsed();
    ensure!(waited.waiting.is_empty(), "not confirmed by {:?}", waited.waiting);
    ensure!(waited.acked.len() >= edges, "only {} of {edges} confirmed", waited.acked.len());
    Ok(took)
}

/// The time that this share of all took at most.
fn quantile_ms(sorted: &[Duration], share: f64) -> f64 {
    let at = (sorted.len() as f64 * share).ceil() as usize;
    let found = sorted.get(at.saturating_sub(1)).copied().unwrap_or_default();
    found.as_secs_f64() * 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_of_what_was_measured() {
        let times: Vec<Duration> = (1..=200).map(Duration::from_millis).collect();
        assert!((quantile_ms(&times, 0.50) - 100.0).abs() < 1e-9);
        assert!((quantile_ms(&times, 0.99) - 198.0).abs() < 1e-9);
        assert!(quantile_ms(&[], 0.5).abs() < 1e-9);
    }
}
