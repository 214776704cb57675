//! Proxies between one node and the masters, for the node's own questions: registration,
//! heartbeats, the publish log. What others ask the node does not pass here.

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};

use super::{Direction, Passed, Proxy, Way};
use crate::cluster::DevCluster;
use crate::ready::Node;

/// The links of one node to every master.
pub struct MasterLinks(Vec<Proxy>);

impl MasterLinks {
    /// Proxies in front of every master, so far without a node that uses them.
    ///
    /// # Errors
    /// When no socket can be had.
    pub async fn open(cluster: &DevCluster, seed: u64) -> Result<Self> {
        let mut proxies = Vec::new();
        for (number, master) in cluster.ready().masters.iter().enumerate() {
            proxies.push(Proxy::udp(master.addr, seed.wrapping_add(number as u64)).await?);
        }
        Ok(Self(proxies))
    }

    /// Makes a node of this cluster ask the masters through the proxies: its configuration is
    /// changed, and it is started again. Holds until `atoll dev` itself is started anew, which
    /// writes all configurations. Blocks; the proxies' runtime must have another thread.
    ///
    /// # Errors
    /// When the node's configuration cannot be found or names other masters, or when it does not
    /// come back.
    pub fn lead(&self, cluster: &DevCluster, node: Node) -> Result<()> {
        let path = configuration(cluster, node)?;
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("the configuration {}", path.display()))?;
        let mut changed = text.clone();
        for proxy in &self.0 {
            let named = format!("\"{}\"", proxy.target());
            ensure!(text.contains(&named), "{} does not name {named}", path.display());
            changed = changed.replace(&named, &format!("\"{}\"", proxy.addr()));
        }
        std::fs::write(&path, changed)?;
        cluster.stop_node(node)?;
        cluster.start_node(node)
    }

    /// Where the masters are reached through the proxies.
    pub fn addrs(&self) -> Vec<std::net::SocketAddr> {
        self.0.iter().map(Proxy::addr).collect()
    }

    /// From now on this direction of all of them is so.
    pub fn set(&self, direction: Direction, way: Way) {
        self.0.iter().for_each(|proxy| proxy.set(direction, way));
    }

    /// From now on both directions of all of them are so.
    pub fn set_both(&self, way: Way) {
        self.0.iter().for_each(|proxy| proxy.set_both(way));
    }

    /// What passed so far over all of them.
    pub fn passed(&self) -> Passed {
        self.0.iter().map(Proxy::passed).fold(Passed::default(), |sum, one| Passed {
            passed: sum.passed + one.passed,
            lost: sum.lost + one.lost,
        })
    }
}

/// The file on a node's command line.
///
/// # Errors
/// When the node does not run, or was started without one.
pub fn configuration(cluster: &DevCluster, node: Node) -> Result<PathBuf> {
    let pid = cluster.pid(node).with_context(|| format!("{node} does not run"))?;
    let process = cluster.processes().into_iter().find(|process| process.pid == pid);
    let arguments = process.with_context(|| format!("{node} has ended"))?.arguments;
    let at = arguments.iter().position(|word| word == "--config");
    let path = at.and_then(|at| arguments.get(at + 1));
    path.map(PathBuf::from).with_context(|| format!("{node} was started as {arguments:?}"))
}
