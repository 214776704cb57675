//! A full disk under one node: the others go on, and nothing acknowledged is wrong.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use atoll_testbed::http::Version;
use atoll_testbed::tree::random;
use atoll_testbed::{DevCluster, Fault, Node, Tree, process, seed, wait};
use nix::mount::{MntFlags, umount2};

use super::ensure_served_everywhere;

/// A small file system of memory under a directory, until dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Puts it there; what was in the directory stays in it.
    fn under(directory: &Path, size: &str) -> Result<Self> {
        let aside = directory.with_extension("aside");
        std::fs::rename(directory, &aside)?;
        std::fs::create_dir(directory)?;
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]).arg(directory);
        process::run(command, Duration::from_secs(10))?.ok().context("mounting needs root")?;
        let disk = Self(directory.to_owned());
        let mut copy = Command::new("cp");
        copy.arg("-a").arg(format!("{}/.", aside.display())).arg(directory);
        process::run(copy, Duration::from_secs(30))?.ok()?;
        Ok(disk)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        umount2(&self.0, MntFlags::MNT_DETACH).ok();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_under_one_chunkserver_loses_nothing() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: only root can mount the small disk this test fills");
        return Ok(());
    }
    let seed = seed::or(12);
    let cluster = DevCluster::builder().seed(seed).start()?;
    let node = Node::chunkserver(2);
    let data = cluster.ready().data(node).context("a data directory")?.to_owned();
    Fault::Stop(node).apply(&cluster)?;
    let disk = SmallDisk::under(&data, "640m")?;
    Fault::Start(node).apply(&cluster)?;
    cluster.wait_healthy()?;

    let mut rng = seed::rng(seed);
    let mut trees = Vec::new();
    let fill = Fault::FillDisk { node, leave_bytes: 6 << 20 };
    for number in 0..4 {
        let mut tree = Tree::ordinary(seed + number, 30);
        for file in 0..6 {
            tree.put(&format!("big/{file}.bin"), random(&mut rng, 2 << 20));
        }
        let site = format!("full-{number}");
        let source = cluster.work().join(&site);
        tree.write(&source)?;
        cluster.deploy(&source, &site).with_context(|| format!("deploy {number}: {fill:?}"))?;
        trees.push((site, tree));
        if number == 0 {
            fill.apply(&cluster)?;
        }
    }
    for (site, tree) in &trees {
        ensure_served_everywhere(&cluster, site, tree, &[Version::H2]).await?;
    }

    // With room again, after a restart, and without the other two's caches: all is still right.
    if cluster.pid(node).is_some() {
        Fault::Stop(node).apply(&cluster)?;
    }
    fill.undo(&cluster)?;
    Fault::Start(node).apply(&cluster)?;
    for (site, tree) in &trees {
        ensure_served_everywhere(&cluster, site, tree, &[Version::H1]).await?;
    }
    let source = cluster.work().join("after");
    trees[0].1.write(&source)?;
    cluster.deploy(&source, "after")?;
    ensure!(cluster.pid(node).is_some(), "{node} died: {}", cluster.node_log(node));
    cluster.stop_dev()?;
    drop(disk);
    cluster.finish()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_edge_with_a_full_disk_serves_what_is_published() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED: only root can mount the small disk this test fills");
        return Ok(());
    }
    let seed = seed::or(13);
    let cluster = DevCluster::builder().seed(seed).start()?;
    let node = Node::edge(2);
    let data = cluster.ready().data(node).context("a data directory")?.to_owned();
    Fault::Stop(node).apply(&cluster)?;
    let disk = SmallDisk::under(&data, "64m")?;
    Fault::Start(node).apply(&cluster)?;
    cluster.wait_healthy()?;

    let trees: Vec<Tree> = (0..3).map(|number| Tree::ordinary(seed + number, 30)).collect();
    for (number, tree) in trees.iter().enumerate() {
        tree.write(&cluster.work().join(number.to_string()))?;
    }
    let deploy = |number: usize| cluster.deploy(&cluster.work().join(number.to_string()), "full");
    deploy(0)?;
    let fill = Fault::FillDisk { node, leave_bytes: 0 };
    fill.apply(&cluster)?;
    let done = deploy(1)?;
    ensure!(done["edges_down"] == serde_json::json!([]), "the edge is waited for: {done}");
    ensure!(done["edges"] == 3 && done["edges_acked"] == 3, "it confirms: {done}");
    ensure_served_everywhere(&cluster, "full", &trees[1], &[Version::H2]).await?;
    // Behind what is in force.
    wait::holds("the edge says that its disk is full", Duration::from_secs(60), || {
        cluster.node_log(node).contains("cannot be stored")
    })?;

    // What it has on disk is older; it must not serve that after a restart.
    Fault::Restart(node).apply(&cluster)?;
    ensure_served_everywhere(&cluster, "full", &trees[1], &[Version::H2]).await?;
    fill.undo(&cluster)?;
    deploy(2)?;
    ensure_served_everywhere(&cluster, "full", &trees[2], &[Version::H1]).await?;
    cluster.stop_dev()?;
    drop(disk);
    cluster.finish()
}
