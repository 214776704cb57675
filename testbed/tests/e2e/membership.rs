//! Chunkservers join and leave a running cluster, and nobody notices.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use atoll_testbed::http::Version;
use atoll_testbed::tree::random;
use atoll_testbed::{DevCluster, Node, Tree, seed, wait};
use serde_json::Value;

use super::{ensure_served_everywhere, number, text, word};

const PATIENCE: Duration = Duration::from_secs(60);

/// What `atoll node ls` says of a node.
pub(super) fn listed(cluster: &DevCluster, name: &str) -> Result<Value> {
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
    refused(&["node", "replace", "edge-1", "1"], 1, "is an edge")?;
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chunkserver_is_drained_under_load_and_removed() -> Result<()> {
    let seed = seed::or(32);
    let cluster = DevCluster::builder().chunkservers(4).edges(2).shields(1).seed(seed).start()?;
    let tree = heavy(seed, 12);
    let source = cluster.work().join("site");
    tree.write(&source)?;
    cluster.deploy(&source, "kept")?;
    cluster.atoll(&["upload", word(&source), "/tree"])?.ok()?;

    let drain = ["node", "drain", "chunkserver-2", "--wait", "--json"];
    let mut drain = cluster.start_atoll(&drain)?;
    let (mut rounds, mut heavies) = (0_u64, BTreeSet::new());
    while !drain.ended()? {
        // New data goes up while groups move, and old data is read from wherever it is by then.
        let mut more = Tree::default();
        let mut rng = seed::rng(seed + 1000 + rounds);
        more.put("index.html", format!("round {rounds}"));
        more.put("new.bin", random(&mut rng, 3 << 20));
        let folder = cluster.work().join(format!("round-{rounds}"));
        more.write(&folder)?;
        cluster.deploy(&folder, "changing")?;
        ensure_served_everywhere(&cluster, "changing", &more, &[Version::H3]).await?;
        cluster.atoll(&["upload", word(&folder), &format!("/round-{rounds}")])?.ok()?;
        let old = rounds % 12;
        let found = cluster.atoll(&["cat", &format!("/tree/heavy/{old}.bin")])?.ok()?;
        let expected = tree.content(&format!("heavy/{old}.bin")).context("it was put")?;
        ensure!(found.stdout == *expected, "heavy/{old}.bin differs in round {rounds}");
        heavies.insert(old);
        rounds += 1;
    }
    let drained = drain.finish(Duration::from_secs(5))?.ok()?.last()?;
    ensure!(number(&drained, "groups") == 0 && number(&drained, "groups_leaving") == 0);
    cluster.tell(format_args!("drained after {rounds} rounds, {} files read", heavies.len()));
    ensure!(rounds > 0, "the drain was over before anything was asked");

    let two = listed(&cluster, "chunkserver-2")?;
    ensure!(number(&two, "groups") == 0 && two["duty"] == "draining", "{two}");
    clean(&cluster)?;
    cluster.atoll(&["node", "rm", "chunkserver-2"])?.ok()?;
    cluster.atoll(&["dev", "rm", "chunkserver", "2", "--data", word(&cluster.data())])?.ok()?;
    ensure!(listed(&cluster, "chunkserver-2").is_err(), "it is still listed");
    ensure_kept(&cluster, "/tree", &tree)?;
    ensure_served_everywhere(&cluster, "kept", &tree, &[Version::H2]).await?;
    clean(&cluster)?;
    // The others are started without it, however many the command line says.
    cluster.stop_dev()?;
    cluster.start_dev()?;
    ensure!(cluster.pid(Node::chunkserver(2)).is_none(), "it was started again");
    ensure!(cluster.data().join("nodes/chunkserver-2").is_dir(), "its data is kept");
    ensure_kept(&cluster, "/tree", &tree)?;
    cluster.finish()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_chunkservers_are_replaced_by_hand_and_a_drain_is_taken_back() -> Result<()> {
    let seed = seed::or(33);
    let cluster = DevCluster::builder().chunkservers(4).edges(1).shields(1).seed(seed).start()?;
    let tree = heavy(seed, 6);
    let source = cluster.work().join("site");
    tree.write(&source)?;
    cluster.deploy(&source, "kept")?;
    cluster.atoll(&["upload", word(&source), "/tree"])?.ok()?;
    clean(&cluster)?;

    // What has moved by then returns, and nothing is lacking.
    let before = number(&listed(&cluster, "chunkserver-1")?, "groups");
    cluster.atoll(&["node", "drain", "chunkserver-1"])?.ok()?;
    wait::until("some of it has moved", PATIENCE, || {
        let one = listed(&cluster, "chunkserver-1")?;
        Ok((number(&one, "groups") < before).then_some(()))
    })?;
    cluster.atoll(&["node", "undrain", "chunkserver-1"])?.ok()?;
    clean(&cluster)?;
    let one = listed(&cluster, "chunkserver-1")?;
    ensure!(one["duty"] == "active" && number(&one, "groups") > 0, "{one}");
    ensure_kept(&cluster, "/tree", &tree)?;

    // Lost for good: a new one and the others take its groups over.
    cluster.kill9(Node::chunkserver(2))?;
    let data = cluster.data();
    cluster.atoll(&["dev", "add", "chunkserver", "--data", word(&data)])?.ok()?;
    let replace = ["node", "replace", "chunkserver-2", "chunkserver-5", "--wait"];
    cluster.atoll(&replace)?.ok()?;
    let (two, five) = (listed(&cluster, "chunkserver-2")?, listed(&cluster, "chunkserver-5")?);
    ensure!(number(&two, "groups") == 0 && two["duty"] == "gone", "{two}");
    ensure!(number(&five, "groups") > 0, "{five}");
    clean(&cluster)?;
    cluster.atoll(&["node", "rm", "chunkserver-2"])?.ok()?;
    ensure!(listed(&cluster, "chunkserver-2").is_err(), "it is still listed");
    ensure_kept(&cluster, "/tree", &tree)?;

    // Another one, given up with what it has.
    cluster.kill9(Node::chunkserver(4))?;
    cluster.atoll(&["node", "rm", "chunkserver-4"])?.expect_code(4)?;
    cluster.atoll(&["node", "rm", "chunkserver-4", "--force"])?.ok()?;
    clean(&cluster)?;
    ensure!(listed(&cluster, "chunkserver-4").is_err(), "it is still listed");
    ensure_kept(&cluster, "/tree", &tree)?;
    ensure_served_everywhere(&cluster, "kept", &tree, &[Version::H2]).await?;
    cluster.atoll(&["fsck", "--json"])?.ok()?;
    for number in ["2", "4"] {
        cluster.atoll(&["dev", "rm", "chunkserver", number, "--data", word(&data)])?.ok()?;
    }
    cluster.finish()
}

/// `atoll status` says that every group has all its copies.
fn clean(cluster: &DevCluster) -> Result<()> {
    wait::until("status is clean", PATIENCE, || {
        let outcome = cluster.atoll(&["status", "--json"])?;
        let status = outcome.last()?;
        let groups = &status["placement_groups"];
        if outcome.code == Some(0) && groups["clean"] == groups["total"] {
            Ok(Some(()))
        } else {
            bail!("{status}")
        }
    })
}
