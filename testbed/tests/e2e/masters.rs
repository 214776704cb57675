//! Masters join, are replaced and leave while the cluster serves; ids are never used again. A deploy
//! and a copy into the mount run through the death of the leader without an error.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use atoll_client::ClientConfig;
use atoll_testbed::http::Version;
use atoll_testbed::metrics::Scrape;
use atoll_testbed::process::Running;
use atoll_testbed::proxy::configuration;
use atoll_testbed::{DevCluster, Fault, Node, Tree, seed, wait};
use serde_json::Value;

use super::{ensure_served_everywhere, number, text, word};

const PATIENCE: Duration = Duration::from_secs(60);

/// The masters of `atoll node ls`: id, and whether it votes and leads.
fn masters(cluster: &DevCluster) -> Result<Vec<(u64, bool, bool)>> {
    let nodes = cluster.json(&["node", "ls"])?;
    let list = nodes["masters"].as_array().context("a list of masters")?;
    let one =
        |master: &Value| (number(master, "id"), master["voter"] == true, master["leads"] == true);
    Ok(list.iter().map(one).collect())
}

fn voters(cluster: &DevCluster) -> Result<Vec<u64>> {
    let all = masters(cluster)?.into_iter().filter(|(_, voter, _)| *voter);
    Ok(all.map(|(id, ..)| id).collect())
}

fn leader(cluster: &DevCluster) -> Result<Node> {
    let found = masters(cluster)?.into_iter().find(|(_, _, leads)| *leads);
    Ok(Node::master(found.context("a master leads")?.0))
}

fn dev(cluster: &DevCluster, words: &[&str]) -> Result<atoll_testbed::Outcome> {
    cluster.tell(format_args!("dev {}", words.join(" ")));
    let data = cluster.data();
    cluster.atoll(&[&["dev"][..], words, &["--data", word(&data)]].concat())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_master_becomes_three_and_the_first_leaves() -> Result<()> {
    let seed = seed::or(54);
    let cluster = DevCluster::builder().masters(1).edges(1).shields(0).seed(seed).start()?;
    let tree = Tree::ordinary(seed, 10);
    let source = cluster.work().join("site");
    tree.write(&source)?;
    cluster.deploy(&source, "before")?;

    for id in [2, 3] {
        let added = dev(&cluster, &["add", "master"])?.ok()?;
        ensure!(added.stderr.contains(&format!("added master-{id}")), "{added}");
    }
    ensure!(voters(&cluster)? == [1, 2, 3], "{:?}", masters(&cluster)?);
    // They have what there was before they came, and a majority decides without the first.
    dev(&cluster, &["rm", "master", "1"])?.ok()?;
    ensure!(voters(&cluster)? == [2, 3], "{:?}", masters(&cluster)?);
    cluster.deploy(&source, "after")?;

    // A number is never used again, and what makes no sense changes nothing.
    let addr = cluster.ready().masters[0].addr.to_string();
    let refused = |arguments: &[&str], reason: &str| -> Result<()> {
        let outcome = cluster.atoll(arguments)?;
        ensure!(outcome.code != Some(0) && outcome.stderr.contains(reason), "{outcome}");
        Ok(())
    };
    refused(&["node", "add", "master-1", &addr], "another address or port")?;
    refused(&["node", "add", "master-9", "127.0.0.1:1"], "does not answer")?;
    refused(&["node", "add", "chunkserver-9", &addr], "not the name of a master")?;
    refused(&["node", "rm", "master-9"], "there is no master 9")?;
    refused(&["node", "replace", "master-2", "master-9"], "--addr")?;
    cluster.atoll(&["node", "rm", "master-1"])?.ok()?;

    // The first one is not missed after a restart either.
    cluster.stop_dev()?;
    cluster.start_dev()?;
    cluster.wait_healthy()?;
    ensure!(voters(&cluster)? == [2, 3], "{:?}", masters(&cluster)?);
    ensure_served_everywhere(&cluster, "before", &tree, &[Version::H2]).await?;
    ensure_served_everywhere(&cluster, "after", &tree, &[Version::H2]).await?;
    let next = dev(&cluster, &["add", "master"])?.ok()?;
    ensure!(next.stderr.contains("added master-4"), "{next}");
    cluster.finish()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_told_of_the_first_master_only_finds_those_that_came_later() -> Result<()> {
    let seed = seed::or(60);
    let cluster =
        DevCluster::builder().masters(1).edges(1).shields(0).mounted().seed(seed).start()?;
    let tree = Tree::ordinary(seed, 10);
    let source = cluster.work().join("site");
    tree.write(&source)?;
    cluster.deploy(&source, "before")?;
    let nodes = [Node::chunkserver(1), Node::chunkserver(2), Node::edge(1)];
    let mut told = Vec::new();
    for node in nodes {
        let path = configuration(&cluster, node)?;
        let text = fs::read_to_string(&path)?;
        told.push((node, path, text));
    }
    let old = cluster.work().join("old.toml");
    ClientConfig::load(&cluster.ready().config)?.save(&old)?;

    let others: Vec<String> = [2, 3]
        .into_iter()
        .map(|id| {
            dev(&cluster, &["add", "master"])?.ok()?;
            let ready = cluster.ready();
            let added = ready.masters.iter().find(|master| master.id == id);
            Ok(added.context("it is listed")?.addr.to_string())
        })
        .collect::<Result<_>>()?;
    cluster.tell("everybody hears of them");
    cluster.atoll(&["ls", "/", "--config", word(&old)])?.ok()?;
    let ready = cluster.ready();
    for node in nodes {
        let file = ready.data(node).context("it has data")?.join("masters.json");
        wait::until("the masters that came", PATIENCE, || {
            let text = fs::read_to_string(&file).unwrap_or_default();
            Ok(others.iter().all(|addr| text.contains(addr)).then_some(()))
        })?;
    }
    dev(&cluster, &["rm", "master", "1"])?.ok()?;
    for (node, path, text) in &told {
        ensure!(!others.iter().any(|addr| text.contains(addr)), "{}: {text}", path.display());
        fs::write(path, text)?;
        cluster.stop_node(*node)?;
        cluster.start_node(*node)?;
    }
    cluster.wait_healthy()?;
    cluster.atoll(&["ls", "/", "--config", word(&old)])?.ok()?;
    // The mount was not used since it was made.
    fs::write(cluster.mount().join("note"), "after")?;
    cluster.deploy(&source, "after")?;
    ensure_served_everywhere(&cluster, "before", &tree, &[Version::H2]).await?;
    ensure_served_everywhere(&cluster, "after", &tree, &[Version::H2]).await?;
    cluster.finish()
}

#[test]
fn a_master_that_was_being_added_when_everything_ended_gets_its_vote_later() -> Result<()> {
    let cluster =
        DevCluster::builder().masters(1).edges(1).shields(0).seed(seed::or(58)).start()?;
    let data = cluster.data();
    let two = Node::master(2);
    let adding = cluster.start_atoll(&["dev", "add", "master", "--data", word(&data)])?;
    wait::until("the new process", PATIENCE, || Ok(cluster.pid(two)))?;
    cluster.kill9_dev()?;
    adding.finish(PATIENCE)?;
    cluster.start_dev()?;
    ensure!(voters(&cluster)? == [1, 2], "{:?}", masters(&cluster)?);
    cluster.wait_healthy()?;
    cluster.finish()
}

#[test]
fn a_master_joins_while_the_leader_dies() -> Result<()> {
    let seed = seed::or(59);
    let cluster = DevCluster::builder().masters(3).edges(1).shields(0).seed(seed).start()?;
    let mut add = cluster.command();
    add.args(["dev", "add", "master", "--data", word(&cluster.data())]);
    let joins = || -> Result<bool> { Ok(masters(&cluster)?.iter().any(|(id, ..)| *id == 4)) };
    let (died, adding) = kill_leader_amid(&cluster, add, joins)?;
    adding.finish(Duration::from_secs(120))?.ok()?;
    cluster.start_node(died)?;
    ensure!(voters(&cluster)? == [1, 2, 3, 4], "{:?}", masters(&cluster)?);
    cluster.wait_healthy()?;
    cluster.finish()
}

#[test]
fn a_master_takes_the_place_of_another_in_one_step() -> Result<()> {
    let seed = seed::or(55);
    let cluster = DevCluster::builder().masters(3).edges(1).shields(0).seed(seed).start()?;
    // A copy without a vote first: made by hand, as on a real cluster.
    dev(&cluster, &["add", "master"])?.ok()?;
    ensure!(voters(&cluster)? == [1, 2, 3, 4], "{:?}", masters(&cluster)?);
    let lead = leader(&cluster)?;
    let old = [1, 2, 3].into_iter().find(|id| *id != lead.id).context("a follower")?;
    Fault::Kill(Node::master(old)).apply(&cluster)?;
    let name = format!("master-{old}");
    let outcome = cluster.json(&["node", "replace", &name, "master-4"])?;
    ensure!(text(&outcome, "duty") == "voter", "{outcome}");
    let left = voters(&cluster)?;
    ensure!(left.len() == 3 && !left.contains(&old) && left.contains(&4), "{left:?}");
    // Again is no mistake, and the leader can be replaced too.
    cluster.atoll(&["node", "replace", &name, "master-4"])?.ok()?;
    let before = leader(&cluster)?;
    cluster.atoll(&["node", "rm", &before.to_string()])?.ok()?;
    wait::until("another leader", PATIENCE, || {
        let now = leader(&cluster)?;
        Ok((now != before).then_some(()))
    })?;
    cluster.atoll(&["mkdir", "/still-works"])?.ok()?;
    Fault::Stop(before).apply(&cluster)?;
    cluster.atoll(&["ls", "/still-works"])?.ok()?;
    cluster.finish()
}

/// Chunks that the chunkservers have stored since they started.
fn stored(cluster: &DevCluster) -> Result<f64> {
    let ready = cluster.ready();
    let mut sum = 0.0;
    for server in &ready.chunkservers {
        let admin = server.admin.context("its metrics are somewhere")?;
        sum += Scrape::of(admin)?.sum("atoll_chunk_stored_total");
    }
    Ok(sum)
}

/// Files below a directory.
fn files(directory: &Path) -> Result<usize> {
    let mut count = 0;
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        count += if path.is_dir() { files(&path)? } else { 1 };
    }
    Ok(count)
}

/// Starts a command and kills the leader as soon as so much of what it does is done.
fn kill_leader_amid(
    cluster: &DevCluster,
    command: Command,
    begun: impl Fn() -> Result<bool>,
) -> Result<(Node, Running)> {
    let leads = leader(cluster)?;
    let running = Running::start(command)?;
    wait::until("the first part of it", PATIENCE, || Ok(begun()?.then_some(())))?;
    cluster.kill9(leads)?;
    Ok((leads, running))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deploy_runs_through_the_death_of_the_leader() -> Result<()> {
    let seed = seed::or(56);
    let cluster = DevCluster::builder().masters(3).edges(1).shields(0).seed(seed).start()?;
    let tree = Tree::ordinary(seed, 3000);
    let source = cluster.work().join("site");
    tree.write(&source)?;
    cluster.tell("a deploy of thousands of files");
    let mut deploy = cluster.command();
    deploy.args(["deploy", word(&source), "--site", "big", "--create"]);
    let before = stored(&cluster)?;
    let uploads = || -> Result<bool> { Ok(stored(&cluster)? >= before + 300.0) };
    let (died, running) = kill_leader_amid(&cluster, deploy, uploads)?;
    running.finish(Duration::from_secs(180))?.ok()?;
    cluster.start_node(died)?;
    cluster.wait_healthy()?;
    ensure_served_everywhere(&cluster, "big", &tree, &[Version::H2]).await?;
    cluster.finish()
}

#[test]
fn a_copy_into_the_mount_runs_through_the_death_of_the_leader() -> Result<()> {
    let seed = seed::or(57);
    let cluster =
        DevCluster::builder().masters(3).edges(1).shields(0).mounted().seed(seed).start()?;
    let tree = Tree::ordinary(seed, 400);
    let source = cluster.work().join("tree");
    tree.write(&source)?;
    let target = cluster.mount().join("copy");
    let mut copy = Command::new("cp");
    copy.args(["-r", word(&source), word(&target)]);
    let copies = || -> Result<bool> { Ok(files(&target)? >= 20) };
    let (died, running) = kill_leader_amid(&cluster, copy, copies)?;
    running.finish(Duration::from_secs(180))?.ok()?;
    tree.ensure_equals(&Tree::read(&target)?, "the copy in the mount")?;
    cluster.start_node(died)?;
    cluster.wait_healthy()?;
    tree.ensure_equals(&Tree::read(&target)?, "the copy, once the master is back")?;
    cluster.finish()
}
