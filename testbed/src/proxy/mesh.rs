//! Proxies between all masters, each way of each pair for itself, and between masters and clients:
//! a master can be cut off from everybody, or from everybody but some clients.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};

use super::masters::configuration;
use super::{Proxy, Way};
use crate::cluster::DevCluster;
use crate::ready::Node;

/// The links of the masters of a cluster.
pub struct MasterMesh {
    /// By who calls and who is called.
    between: BTreeMap<(u64, u64), Proxy>,
    /// From most clients to each master.
    crowd: BTreeMap<u64, Proxy>,
    /// From the clients that may be cut off together with a master.
    captive: BTreeMap<u64, Proxy>,
}

impl MasterMesh {
    /// Proxies for every link, so far without anybody who uses them.
    ///
    /// # Errors
    /// When no socket can be had.
    pub async fn open(cluster: &DevCluster, seed: u64) -> Result<Self> {
        let masters = cluster.ready().masters;
        let mut number = seed.wrapping_mul(1009);
        let mut link = |to: SocketAddr| {
            number = number.wrapping_add(1);
            Proxy::udp(to, number)
        };
        let mut mesh =
            Self { between: BTreeMap::new(), crowd: BTreeMap::new(), captive: BTreeMap::new() };
        for to in &masters {
            mesh.crowd.insert(to.id, link(to.addr).await?);
            mesh.captive.insert(to.id, link(to.addr).await?);
            for from in masters.iter().filter(|from| from.id != to.id) {
                mesh.between.insert((from.id, to.id), link(to.addr).await?);
            }
        }
        Ok(mesh)
    }

    /// Makes the masters talk to each other through the proxies: their configurations are changed,
    /// and they are started again. Holds until `atoll dev` itself is started anew. Blocks; the
    /// proxies' runtime must have another thread.
    ///
    /// # Errors
    /// When a configuration names other masters, or when one does not come back.
    pub fn lead(&self, cluster: &DevCluster) -> Result<()> {
        for from in self.crowd.keys() {
            let node = Node::master(*from);
            let path = configuration(cluster, node)?;
            let mut text = std::fs::read_to_string(&path)
                .with_context(|| format!("the configuration {}", path.display()))?;
            for ((caller, _), proxy) in &self.between {
                let named = format!("\"{}\"", proxy.target());
                if caller == from {
                    ensure!(text.contains(&named), "{} does not name {named}", path.display());
                    text = text.replace(&named, &format!("\"{}\"", proxy.addr()));
                }
            }
            std::fs::write(&path, text)?;
            cluster.stop_node(node)?;
            cluster.start_node(node)?;
        }
        Ok(())
    }

    /// Where most clients reach the masters.
    pub fn crowd(&self) -> Vec<SocketAddr> {
        self.crowd.values().map(Proxy::addr).collect()
    }

    /// Where those clients reach them that may be cut off together with one.
    pub fn captive(&self) -> Vec<SocketAddr> {
        self.captive.values().map(Proxy::addr).collect()
    }

    /// Nothing passes between a master and anybody else; with the captive clients, who then reach
    /// no other, everything does.
    pub fn isolate(&self, master: u64, with_captive: bool) {
        for ((from, to), proxy) in &self.between {
            if *from == master || *to == master {
                proxy.set_both(Way::cut());
            }
        }
        for (to, proxy) in &self.crowd {
            if *to == master {
                proxy.set_both(Way::cut());
            }
        }
        for (to, proxy) in &self.captive {
            if (*to == master) != with_captive {
                proxy.set_both(Way::cut());
            }
        }
    }

    /// All links are well.
    pub fn mend(&self) {
        let all = self.between.values().chain(self.crowd.values()).chain(self.captive.values());
        all.for_each(|proxy| proxy.set_both(Way::default()));
    }
}
