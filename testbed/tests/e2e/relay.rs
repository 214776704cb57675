//! Shields relay the publish log: an edge follows and confirms through the shield of its region, and
//! goes on through the masters, at no cost in truth, when that shield dies or freezes in the middle
//! of a publish.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use atoll_testbed::http::{Connection, Version};
use atoll_testbed::metrics::Scrape;
use atoll_testbed::{DevCluster, Node, seed, wait};
use serde_json::{Value, json};

use super::{leader, number};

const SITE: &str = "news";
const PATH: &str = "/version.txt";
const PATIENCE: Duration = Duration::from_secs(90);

fn version(cluster: &DevCluster, text: &str) -> Result<PathBuf> {
    let folder = cluster.work().join(text);
    std::fs::create_dir_all(&folder)?;
    std::fs::write(folder.join(&PATH[1..]), text)?;
    Ok(folder)
}

/// How often an edge heard about the log through a shield, or from a master.
fn heard(cluster: &DevCluster, edge: Node, through: &str) -> Result<f64> {
    let label = format!("through=\"{through}\"");
    Ok(cluster.scrape(edge)?.sum_where("atoll_edge_follows_total", &label))
}

/// Waits until an edge hears about the log this way (again).
fn until_heard(cluster: &DevCluster, edge: Node, through: &str) -> Result<()> {
    let before = heard(cluster, edge, through)?;
    let what = format!("{edge} follows the log through a {through}");
    wait::until(&what, PATIENCE, || Ok((heard(cluster, edge, through)? > before).then_some(())))
}

/// Summed over all masters.
fn master_metric(cluster: &DevCluster, name: &str) -> Result<f64> {
    let mut sum = 0.0;
    for master in cluster.ready().masters {
        let admin = master.admin.context("a master has metrics")?;
        // One that was killed has none now.
        sum += Scrape::of(admin).map_or(0.0, |scrape| scrape.sum(name));
    }
    Ok(sum)
}

/// The edge answers, and with this.
async fn answers(cluster: &DevCluster, edge: Node, text: &str) -> Result<()> {
    let addr = cluster.ready().edge(edge).context("there is that edge")?.https;
    let mut visitor: Connection = cluster.visit(Version::H2, addr, SITE).await?;
    let answer = visitor.get(PATH).await?;
    ensure!(answer.status == 200 && answer.body == text, "not {text}: {answer:?}");
    Ok(())
}

fn confirmed(done: &Value, down: &Value) -> Result<()> {
    ensure!(done["edges_down"] == *down && done["edges_unreached"] == json!([]), "{done}");
    Ok(())
}

/// Deploys again and again until so many acknowledgements of one deploy came through shields: on a
/// slow machine an edge may have turned to a master for a while. Returns what was deployed.
fn until_relayed(cluster: &DevCluster, acks: f64) -> Result<String> {
    let mut turn = 0;
    wait::until("a publish is confirmed through a shield", PATIENCE, || {
        turn += 1;
        let text = format!("relayed-{turn}");
        let before = master_metric(cluster, "atoll_master_relayed_acks_total")?;
        let done = cluster.deploy(&version(cluster, &text)?, SITE)?;
        confirmed(&done, &json!([]))?;
        ensure!(number(&done, "edges_acked") == number(&done, "edges"), "{done}");
        let after = master_metric(cluster, "atoll_master_relayed_acks_total")?;
        Ok((after >= before + acks).then_some(text))
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_edge_confirms_through_its_shield_and_goes_on_without_it() -> Result<()> {
    // The fourth edge is of the region of the first and of the shield, the others of regions
    // without a shield.
    let cluster = DevCluster::builder().edges(4).shields(1).seed(seed::or(61)).start()?;
    let (near, other, far) = (Node::edge(1), Node::edge(4), Node::edge(2));
    let shield = Node::shield(1);
    cluster.deploy(&version(&cluster, "one")?, SITE)?;
    until_heard(&cluster, near, "shield")?;
    until_heard(&cluster, other, "shield")?;

    let text = until_relayed(&cluster, 2.0)?;
    for edge in [near, other, far] {
        answers(&cluster, edge, &text).await?;
    }
    ensure!(heard(&cluster, far, "shield")? == 0.0, "{far} has no shield in its region");
    let renewals = master_metric(&cluster, "atoll_master_relayed_renewals_total")?;
    ensure!(renewals > 0.0, "no lease was renewed through the shield");

    // Frozen while the edges wait at it: they hear of the publish from a master all the same. The
    // shield itself is waited for until its own lease has ended.
    cluster.freeze(shield)?;
    let done = cluster.deploy(&version(&cluster, "three")?, SITE)?;
    confirmed(&done, &json!(["shield-1"]))?;
    for edge in [near, other, far] {
        answers(&cluster, edge, "three").await?;
    }
    cluster.thaw(shield)?;
    cluster.wait_healthy()?;
    until_heard(&cluster, near, "shield")?;
    until_heard(&cluster, other, "shield")?;

    // Killed in the same place.
    cluster.kill9(shield)?;
    let done = cluster.deploy(&version(&cluster, "four")?, SITE)?;
    confirmed(&done, &json!(["shield-1"]))?;
    for edge in [near, other, far] {
        answers(&cluster, edge, "four").await?;
    }
    cluster.start_node(shield)?;
    cluster.wait_healthy()?;
    until_heard(&cluster, near, "shield")?;
    let done = cluster.deploy(&version(&cluster, "five")?, SITE)?;
    confirmed(&done, &json!([]))?;
    for edge in [near, other, far] {
        answers(&cluster, edge, "five").await?;
    }
    cluster.finish()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_master_leads_and_edges_go_on_through_their_shield() -> Result<()> {
    let builder = DevCluster::builder().masters(3).edges(1).shields(1).seed(seed::or(62));
    let cluster = builder.start()?;
    let edge = Node::edge(1);
    cluster.deploy(&version(&cluster, "one")?, SITE)?;
    until_heard(&cluster, edge, "shield")?;
    let leader = leader(&cluster)?;
    cluster.kill9(Node::master(leader))?;
    let done = cluster.deploy(&version(&cluster, "two")?, SITE)?;
    confirmed(&done, &json!([]))?;
    answers(&cluster, edge, "two").await?;
    cluster.start_node(Node::master(leader))?;
    cluster.wait_healthy()?;
    // The new leader gives the edge another key, and takes what is sealed with it.
    until_heard(&cluster, edge, "shield")?;
    let text = until_relayed(&cluster, 1.0)?;
    answers(&cluster, edge, &text).await?;
    cluster.finish()
}
