//! Acknowledged means durable: any one chunkserver may be killed, and the whole cluster too.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use atoll_testbed::http::Version;
use atoll_testbed::tree::{random, url_path};
use atoll_testbed::{DevCluster, Fault, Node, Tree, seed, wait};

use super::{disk_bytes, ensure_served_everywhere, word};

const MIB: u64 = 1 << 20;

/// A tree that takes a moment to upload.
fn heavy(seed: u64) -> Tree {
    let mut tree = Tree::ordinary(seed, 40);
    let mut rng = seed::rng(seed);
    for number in 0..12 {
        tree.put(&format!("heavy/{number}.bin"), random(&mut rng, (5 << 20) / 2));
    }
    tree
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_chunkserver_may_be_killed_during_a_deploy_and_during_reads() -> Result<()> {
    let seed = seed::or(5);
    let cluster = DevCluster::builder().seed(seed).start()?;
    for id in 1..=3 {
        let node = Node::chunkserver(id);
        let fault = Fault::Kill(node);
        let (site, tree) = (format!("site-{id}"), heavy(seed + id));
        let source = cluster.work().join(&site);
        tree.write(&source)?;

        let data = cluster.ready().data(node).context("a data directory")?.to_owned();
        let before = disk_bytes(&data);
        let mut deploy =
            cluster.start_atoll(&["deploy", word(&source), "--site", &site, "--create"])?;
        wait::until("the upload runs", Duration::from_secs(60), || {
            Ok((deploy.ended()? || disk_bytes(&data) > before + 4 * MIB).then_some(()))
        })?;
        ensure!(!deploy.ended()?, "the deploy was over before {node} could be killed");
        fault.apply(&cluster)?;
        deploy.finish(Duration::from_secs(120))?.ok().with_context(|| format!("{fault:?}"))?;
        ensure_served_everywhere(&cluster, &site, &tree, &[Version::H2]).await?;
        fault.undo(&cluster)?;
        cluster.wait_healthy()?;

        killed_during_reads(&cluster, node, seed + 100 + id).await?;
    }
    cluster.ensure_all_run()?;
    cluster.finish()
}

/// A site that no edge has in its cache is read while the node dies.
async fn killed_during_reads(cluster: &DevCluster, node: Node, seed: u64) -> Result<()> {
    let (site, tree) = (format!("read-{}", node.id), heavy(seed));
    let source = cluster.work().join(&site);
    tree.write(&source)?;
    cluster.deploy(&source, &site)?;
    let fault = Fault::Kill(node);
    let (_, edge) = cluster.edges().remove(1);
    let mut visitor = cluster.visit(Version::H3, edge, &site).await?;
    for (number, (path, content)) in tree.files.iter().enumerate() {
        if number == tree.files.len() / 3 {
            fault.apply(cluster)?;
        }
        let answer = visitor.get(&url_path(path)).await.with_context(|| format!("{fault:?}"))?;
        ensure!(
            answer.status == 200 && answer.body == *content,
            "{fault:?}: {}: {}",
            path.escape_ascii(),
            answer.status
        );
    }
    fault.undo(cluster)?;
    cluster.wait_healthy()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_acknowledged_survives_kill_9_of_the_whole_cluster() -> Result<()> {
    let seed = seed::or(6);
    let cluster = DevCluster::builder().seed(seed).start()?;
    let tree = Tree::generate(seed, 100);
    let source = cluster.work().join("site");
    tree.write(&source)?;
    cluster.deploy(&source, "kept")?;
    cluster.atoll(&["mkdir", "/dir"])?.ok()?;
    cluster.atoll(&["upload", word(&source), "/dir/tree"])?.ok()?;
    let mut second = tree.clone();
    for round in 0..3 {
        second.put("version.txt", format!("round {round}"));
        second.write(&source)?;
        cluster.deploy(&source, "changing")?;
        cluster.kill9_dev()?;
        cluster.start_dev()?;
        cluster.wait_healthy()?;
        let versions = [Version::ALL[round]];
        ensure_served_everywhere(&cluster, "kept", &tree, &versions).await?;
        ensure_served_everywhere(&cluster, "changing", &second, &versions).await?;
        for path in ["sizes/three-and-a-half.bin", "index.html", "sizes/empty.bin"] {
            let found = cluster.atoll(&["cat", &format!("/dir/tree/{path}")])?.ok()?;
            ensure!(Some(&found.stdout[..]) == tree.content(path).map(|c| &c[..]), "{path}");
        }
    }
    cluster.finish()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_chunkserver_delays_but_fails_nothing() -> Result<()> {
    let seed = seed::or(7);
    let cluster = DevCluster::builder().seed(seed).start()?;
    let tree = Tree::generate(seed, 80);
    let source = cluster.work().join("site");
    tree.write(&source)?;
    let fault = Fault::Freeze(Node::chunkserver(1));
    fault.apply(&cluster)?;
    cluster.deploy(&source, "slow")?;
    ensure_served_everywhere(&cluster, "slow", &tree, &[Version::H2]).await?;
    fault.undo(&cluster)?;
    cluster.wait_healthy()?;
    cluster.finish()
}
