//! The contract of `atoll dev` and of `atoll status`.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use atoll_testbed::http::Version;
use atoll_testbed::metrics::plain_get;
use atoll_testbed::{DevCluster, Node, Tree, seed, wait};
use serde_json::Value;

use super::ensure_served_everywhere;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dev_starts_resumes_and_stops_as_promised() -> Result<()> {
    let seed = seed::or(16);
    let builder = DevCluster::builder().masters(1).chunkservers(4).edges(3).shields(1);
    let cluster = builder.seed(seed).start()?;
    let ready = cluster.ready();
    ensure!(ready.masters.len() == 1 && ready.chunkservers.len() == 4, "{ready:?}");
    ensure!(ready.visitor_edges().count() == 3 && ready.edges.len() == 4, "{ready:?}");
    ensure!(ready.mount.is_none(), "{ready:?}");
    let zones: std::collections::BTreeSet<_> =
        ready.chunkservers.iter().map(|c| c.zone.clone()).collect();
    ensure!(zones.len() > 1, "copies should stand in several zones: {zones:?}");
    for node in ready.nodes() {
        ensure!(cluster.pid(node).is_some(), "{node} does not run");
        let data = ready.data(node).unwrap();
        ensure!(data.is_dir() && data.starts_with(cluster.data()), "{}", data.display());
    }
    for edge in &ready.edges {
        for path in ["/livez", "/readyz", "/metrics"] {
            let (status, body) = plain_get(edge.admin, path)?;
            ensure!(status == 200, "{}{path}: {status} {body}", edge.name);
        }
    }
    status(&cluster)?;

    let tree = Tree::ordinary(seed, 30);
    let source = cluster.work().join("site");
    tree.write(&source)?;
    cluster.deploy(&source, "resumed")?;
    nodes_stop_and_start(&cluster)?;
    ensure_served_everywhere(&cluster, "resumed", &tree, &[Version::H2]).await?;

    cluster.stop_dev()?; // SIGTERM, within 10 s, exit code 0, nothing left: checked inside
    cluster.start_dev()?;
    cluster.wait_healthy()?;
    ensure_served_everywhere(&cluster, "resumed", &tree, &Version::ALL).await?;
    let after = cluster.ready();
    for (before, after) in ready.chunkservers.iter().zip(&after.chunkservers) {
        ensure!(before.id == after.id && before.data == after.data, "{before:?} {after:?}");
    }

    cluster.kill9_dev()?; // its children stop by themselves: checked inside
    cluster.start_dev()?;
    cluster.wait_healthy()?;
    ensure_served_everywhere(&cluster, "resumed", &tree, &[Version::H3]).await?;
    two_on_one_directory(&cluster)?;
    cluster.ensure_all_run()?;
    cluster.finish()
}

fn nodes_stop_and_start(cluster: &DevCluster) -> Result<()> {
    let nodes = [Node::chunkserver(2), Node::edge(2), Node::shield(1), Node::master(1)];
    for node in nodes {
        cluster.stop_node(node)?;
        ensure!(cluster.dev_pid().is_some_and(atoll_testbed::process::alive), "dev went along");
        if node == Node::chunkserver(2) {
            wait::until(
                "status tells that a chunkserver is away",
                Duration::from_secs(40),
                || {
                    let outcome = cluster.atoll(&["status", "--json"])?;
                    let told = outcome.code == Some(1) && outcome.last()?["healthy"] == false;
                    Ok(told.then_some(()))
                },
            )?;
        }
        cluster.start_node(node)?;
        cluster.wait_healthy()?;
    }
    for node in nodes {
        cluster.restart(node)?; // kill -9
        cluster.wait_healthy()?;
    }
    Ok(())
}

/// The fields of the contract are all there.
fn status(cluster: &DevCluster) -> Result<()> {
    cluster.wait_healthy()?;
    let status = cluster.atoll(&["status", "--json"])?.ok()?.last()?;
    let has = |object: &Value, fields: &[&str]| -> Result<()> {
        for field in fields {
            ensure!(object.get(field).is_some(), "no {field} in {object}");
        }
        Ok(())
    };
    has(&status, &["healthy", "reasons", "masters", "chunkservers", "placement_groups"])?;
    has(&status, &["chunks", "edges", "reconcile"])?;
    has(&status["masters"][0], &["id", "role", "log_index"])?;
    let fields = ["id", "zone", "state", "chunks", "bytes", "oldest_unverified_s"];
    has(&status["chunkservers"][0], &fields)?;
    has(&status["placement_groups"], &["total", "clean", "degraded", "lost"])?;
    let fields =
        ["live", "under_replicated", "corrupt_found", "repaired", "quarantined", "dead_letters"];
    has(&status["chunks"], &fields)?;
    has(&status["edges"][0], &["name", "role", "region", "seq", "lease_ms", "ready"])?;
    has(&status["reconcile"], &["bytes_sent", "roots_compared", "mismatches"])?;
    ensure!(status["healthy"] == true, "{status}");
    ensure!(status["chunkservers"].as_array().is_some_and(|c| c.len() == 4), "{status}");
    Ok(())
}

/// A second `atoll dev` on a directory in use refuses, and the first goes on.
fn two_on_one_directory(cluster: &DevCluster) -> Result<()> {
    let data = cluster.data();
    let data: &Path = &data;
    let second = cluster.start_atoll(&["dev".as_ref(), "--data".as_ref(), data.as_os_str()])?;
    let outcome = second.finish(Duration::from_secs(30))?.expect_code(1)?;
    let named = data.to_string_lossy();
    ensure!(outcome.stderr.contains(&*named), "names the directory: {outcome}");
    ensure!(fs::metadata(data)?.is_dir(), "the data is still there");
    Ok(())
}
