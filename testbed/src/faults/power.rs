//! Power cuts: the disks of some or all nodes stop first, then their processes, so that no process
//! outlives its disk by more than a moment, and none can save anything any more.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;

use crate::cluster::DevCluster;
use crate::disk::LossyDisk;
use crate::ready::Node;
use crate::{process, wait};

/// Until killed processes must be gone.
const GONE_TIMEOUT: Duration = Duration::from_secs(20);

/// Cuts the power of these nodes, or of all and of `atoll dev` when none is named.
pub(super) fn cut(cluster: &DevCluster, nodes: &[Node]) -> Result<()> {
    let disks = disks(cluster, nodes)?;
    if nodes.is_empty() {
        cluster.tell("the power goes");
    } else {
        cluster.tell(format_args!("the power of {nodes:?} goes"));
    }
    let start = Instant::now();
    std::thread::scope(|scope| {
        let cuts: Vec<_> = disks.iter().map(|disk| scope.spawn(|| disk.cut())).collect();
        cuts.into_iter()
            .try_for_each(|cut| cut.join().map_err(|_| anyhow::anyhow!("a cut panicked"))?)
    })?;
    let took = start.elapsed();
    if nodes.is_empty() {
        cluster.kill9_all()?;
    } else {
        let pids: Vec<u32> = nodes.iter().filter_map(|node| cluster.pid(*node)).collect();
        for pid in &pids {
            // One that saw its disk fail may have ended by itself.
            process::signal(*pid, Signal::SIGKILL).ok();
        }
        wait::holds("end of the nodes without power", GONE_TIMEOUT, || {
            pids.iter().all(|pid| process::state(*pid).is_none())
        })?;
    }
    cluster.tell(format_args!("{} disks were cut within {took:.1?}", disks.len()));
    Ok(())
}

/// The power comes back: the disks recover, the nodes start.
pub(super) fn back(cluster: &DevCluster, nodes: &[Node]) -> Result<()> {
    mount(&disks(cluster, nodes)?)?;
    cluster.tell("the disks are back");
    if nodes.is_empty() {
        return cluster.start_dev();
    }
    nodes.iter().try_for_each(|node| cluster.start_node(*node))
}

/// The power of everything comes back, and goes again so many milliseconds later: wherever nodes
/// are in their recovery then.
///
/// # Errors
/// When there are no lossy disks, or of the machine.
pub fn flicker(cluster: &DevCluster, after_ms: u64) -> Result<()> {
    mount(&disks(cluster, &[])?)?;
    cluster.launch_dev()?;
    // How long the power stays is part of the fault, not a wait for something.
    sleep(Duration::from_millis(after_ms));
    cut(cluster, &[])
}

fn mount(disks: &[&LossyDisk]) -> Result<()> {
    std::thread::scope(|scope| {
        let backs: Vec<_> = disks.iter().map(|disk| scope.spawn(|| disk.back())).collect();
        backs
            .into_iter()
            .try_for_each(|back| back.join().map_err(|_| anyhow::anyhow!("a mount panicked"))?)
    })
}

fn disks<'a>(cluster: &'a DevCluster, nodes: &[Node]) -> Result<Vec<&'a LossyDisk>> {
    let all = cluster.disks();
    ensure!(!all.is_empty(), "this cluster was made without lossy disks");
    if nodes.is_empty() {
        return Ok(all.iter().map(|(_, disk)| disk).collect());
    }
    let find = |node: &Node| {
        let found = all.iter().find(|(owner, _)| owner == node);
        found.map(|(_, disk)| disk).with_context(|| format!("{node} has no lossy disk"))
    };
    nodes.iter().map(find).collect()
}

/// Kills and starts a node again and again; each time it lives so many milliseconds.
pub(super) fn kill_loop(cluster: &DevCluster, node: Node, lives_ms: &[u64]) -> Result<()> {
    for life_ms in lives_ms {
        // The length of a life is part of the fault, not a wait for something.
        sleep(Duration::from_millis(*life_ms));
        cluster.kill9(node)?;
        cluster.start_node(node)?;
    }
    Ok(())
}
