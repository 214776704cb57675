//! Chunkservers join and leave a running cluster, and nobody notices.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use atoll_testbed::http::Version;
use atoll_testbed::tree::random;
use atoll_testbed::{DevCluster, Node, Tree, seed, wait};
use serde_json::Value;

use super::{ensure_served_everywhere, number, text, word};

const PATIENCE: Duration = Duration::from_secs(60);

/// What `atoll node ls` says of a node.
fn listed(cluster: &DevCluster, name: &str) -> Result<Value> {
    let nodes = cluster.json(&["node", "ls"])?;
    let found = nodes["nodes"].as_array().context("a list of nodes")?.iter();
    let mut found = found.filter(|node| text(&node["info"], "name") == name);
    found.next().cloned().with_context(|| format!("no {name} in {nodes}"))
}

/// A tree with some files of several chunks.
fn heavy(seed: u64, files: usize) -> Tree {
    let mut tree = Tree::ordinary(seed, 20);
    let mut rng = seed::rng(seed);
    for number in 0..files {
        tree.put(&format!("heavy/{number}.bin"), random(&mut rng, (5 << 20) / 2));
    }
    tree
}

/// Every file of an uploaded tree, from the chunkservers.
fn ensure_kept(cluster: &DevCluster, at: &str, tree: &Tree) -> Result<()> {
    for (path, content) in &tree.files {
        let Ok(path) = std::str::from_utf8(path) else { continue };
        let found = cluster.atoll(&["cat", &format!("{at}/{path}")])?.ok()?;
        ensure!(found.stdout == *content, "{at}/{path} differs");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chunkserver_joins_a_running_cluster_and_survives_its_restart() -> Result<()> {
    let seed = seed::or(31);
    let cluster = DevCluster::builder().chunkservers(3).edges(1).shields(1).seed(seed).start()?;
    let tree = heavy(seed, 4);
    let source = cluster.work().join("site");
    tree.write(&source)?;
    cluster.deploy(&source, "before")?;
    what_makes_no_sense_is_refused(&cluster)?;

    let data = cluster.data();
    let add = ["dev", "add", "chunkserver", "--zone", "z4", "--data", word(&data)];
    let added = cluster.atoll(&add)?.ok()?;
    ensure!(added.stderr.contains("added chunkserver-4 in zone z4"), "{added}");
    let four = listed(&cluster, "chunkserver-4")?;
    ensure!(text(&four["info"], "zone") == "z4" && four["duty"] == "active", "{four}");
    let ready = cluster.ready();
    ensure!(ready.chunkservers.iter().any(|c| c.id == 4 && c.zone == "z4"), "{ready:?}");
    ensure!(cluster.pid(Node::chunkserver(4)).is_some(), "chunkserver-4 does not run");
    // It gets its share, a little at a time, and nothing is missing meanwhile.
    wait::until("it gets groups", PATIENCE, || {
        Ok((number(&listed(&cluster, "chunkserver-4")?, "groups") > 0).then_some(()))
    })?;
    cluster.atoll(&["upload", word(&source), "/tree"])?.ok()?;
    cluster.deploy(&source, "after")?;
    ensure_kept(&cluster, "/tree", &tree)?;
    for site in ["before", "after"] {
        ensure_served_everywhere(&cluster, site, &tree, &[Version::H2]).await?;
    }

    cluster.stop_dev()?;
    cluster.start_dev()?;
    ensure!(cluster.pid(Node::chunkserver(4)).is_some(), "it is not resumed");
    ensure_kept(&cluster, "/tree", &tree)?;
    cluster.ensure_all_run()?;
    cluster.finish()
}

fn what_makes_no_sense_is_refused(cluster: &DevCluster) -> Result<()> {
    let refused = |arguments: &[&str], code: i32, words: &str| -> Result<()> {
        let outcome = cluster.atoll(arguments)?.expect_code(code)?;
        ensure!(outcome.stderr.contains(words), "{words:?} is not said: {outcome}");
        Ok(())
    };
    refused(&["node", "drain", "nobody"], 1, "there is no node nobody")?;
    refused(&["node", "drain", "edge-1"], 1, "is an edge")?;
    refused(&["node", "rm", "chunkserver-1"], 4, "atoll node drain chunkserver-1")?;
    refused(&["node", "replace", "1", "1"], 1, "the one to be replaced")?;
    refused(&["node", "replace", "1", "9"], 1, "there is no node 9")?;
    refused(&["dev", "rm", "edge", "1", "--data", word(&cluster.data())], 1, "no chunkserver")?;
    // Three are needed: the groups stay, and the reason is said.
    cluster.atoll(&["node", "drain", "2"])?.ok()?;
    ensure!(listed(cluster, "chunkserver-2")?["duty"] == "draining");
    refused(&["node", "drain", "chunkserver-2", "--wait"], 1, "add one")?;
    ensure!(number(&listed(cluster, "chunkserver-2")?, "groups") == 4096);
    cluster.atoll(&["node", "undrain", "chunkserver-2"])?.ok()?;
    ensure!(listed(cluster, "chunkserver-2")?["duty"] == "active");
    Ok(())
}
