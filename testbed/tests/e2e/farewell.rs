//! An edge that is stopped in order says farewell: no publish waits for it, and from then on it
//! answers nothing, so that none of its visitors gets what is older than a publish that returned.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use atoll_testbed::cluster::host;
use atoll_testbed::http::{Connection, Trust, Version};
use atoll_testbed::{DevCluster, Node, Tree, seed, wait};
use bytes::Bytes;
use serde_json::Value;

use super::number;

const SITE: &str = "news";
const PATH: &str = "/version.txt";

/// What visitors of the edge that stops look for.
#[derive(Default)]
struct Watch {
    /// The deploy of the newer version has returned.
    newer: AtomicBool,
    end: AtomicBool,
    answers: AtomicUsize,
    wrong: AtomicUsize,
}

impl Watch {
    /// Asks again and again on one connection, and on a new one when that breaks.
    async fn visit(self: Arc<Self>, version: Version, edge: SocketAddr, trust: Trust, old: Bytes) {
        while !self.end.load(Ordering::SeqCst) {
            let Ok(mut visitor) = Connection::open(version, edge, &host(SITE), &trust).await else {
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            };
            while !self.end.load(Ordering::SeqCst) {
                let newer = self.newer.load(Ordering::SeqCst);
                let Ok(answer) = visitor.get(PATH).await else { break };
                self.answers.fetch_add(1, Ordering::SeqCst);
                if newer && answer.body == old {
                    self.wrong.fetch_add(1, Ordering::SeqCst);
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_edge_that_stopped_in_order_is_not_waited_for_and_answers_nothing_old() -> Result<()> {
    let seed = seed::or(21);
    let cluster = DevCluster::builder().seed(seed).start()?;
    let bodies = ["version one", "version two", "version three"].map(Bytes::from);
    for (number, body) in bodies.iter().enumerate() {
        let mut tree = Tree::ordinary(seed, 20);
        tree.put(&PATH[1..], body.clone());
        tree.write(&cluster.work().join(number.to_string()))?;
    }
    cluster.deploy(&cluster.work().join("0"), SITE)?;

    let leaves = Node::edge(2);
    let ready = cluster.ready();
    let addr = ready.edge(leaves).context("edge-2")?.https;
    let watch = Arc::new(Watch::default());
    let mut visitors = Vec::new();
    for version in Version::ALL {
        let visit = watch.clone().visit(version, addr, cluster.trust()?, bodies[0].clone());
        visitors.push(tokio::spawn(visit));
    }
    wait::holds("visitors are answered", Duration::from_secs(30), || {
        watch.answers.load(Ordering::SeqCst) > 100
    })?;

    cluster.stop_node(leaves)?;
    // One that merely went silent would be waited for another ten seconds.
    let told = edge_status(&cluster, "edge-2")?;
    ensure!(number(&told, "lease_ms") == 0 && told["ready"] == false, "{told}");
    let done = cluster.deploy(&cluster.work().join("1"), SITE)?;
    watch.newer.store(true, Ordering::SeqCst);
    cluster.tell(format_args!("deployed: {done}"));
    ensure!(done["edges_down"] == serde_json::json!(["edge-2"]), "{done}");
    ensure!(number(&done, "edges") == number(&done, "edges_acked"), "{done}");

    cluster.start_node(leaves)?;
    let mut visitor = cluster.visit(Version::H2, addr, SITE).await?;
    let answer = visitor.get(PATH).await?;
    ensure!(answer.status == 200 && answer.body == bodies[1], "{answer:?}");
    // It is waited for again: now that it is back, it takes part.
    let done = cluster.deploy(&cluster.work().join("2"), SITE)?;
    ensure!(done["edges_down"] == serde_json::json!([]), "{done}");
    watch.end.store(true, Ordering::SeqCst);
    for visitor in visitors {
        visitor.await?;
    }
    let wrong = watch.wrong.load(Ordering::SeqCst);
    let answers = watch.answers.load(Ordering::SeqCst);
    ensure!(wrong == 0, "{wrong} of {answers} answers were older than a deploy that had returned");
    cluster.finish()
}

fn edge_status(cluster: &DevCluster, name: &str) -> Result<Value> {
    let status = cluster.atoll(&["status", "--json"])?.last()?;
    let edges = status["edges"].as_array().cloned().unwrap_or_default();
    edges.into_iter().find(|edge| edge["name"] == name).with_context(|| format!("{status}"))
}
