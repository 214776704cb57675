//! The file that `atoll dev --ready` writes, as the contract of the outside describes it.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

/// A running cluster. Fields that this crate does not need may be added to the file freely.
#[derive(Debug, Clone, Deserialize)]
pub struct Ready {
    /// The client configuration.
    pub config: PathBuf,
    /// The certificate that signs the edges' certificates.
    pub ca: PathBuf,
    /// Every master.
    pub masters: Vec<MasterReady>,
    /// Every chunkserver.
    pub chunkservers: Vec<ChunkserverReady>,
    /// Every edge and shield.
    pub edges: Vec<EdgeReady>,
    /// Name servers of the zone.
    pub dns: Vec<DnsReady>,
    /// Where the cluster is mounted, if asked for.
    pub mount: Option<PathBuf>,
}

/// A master.
#[derive(Debug, Clone, Deserialize)]
pub struct MasterReady {
    /// Its number.
    pub id: u64,
    /// QUIC.
    pub addr: SocketAddr,
    /// `/metrics`, if told.
    #[serde(default)]
    pub admin: Option<SocketAddr>,
    /// Its process.
    pub pid: u32,
    /// Its data directory.
    pub data: PathBuf,
}

/// A chunkserver.
#[derive(Debug, Clone, Deserialize)]
pub struct ChunkserverReady {
    /// Its number.
    pub id: u64,
    /// QUIC.
    pub addr: SocketAddr,
    /// `/metrics`, if told.
    #[serde(default)]
    pub admin: Option<SocketAddr>,
    /// The zone it stands in.
    pub zone: String,
    /// Its process.
    pub pid: u32,
    /// Its data directory.
    pub data: PathBuf,
}

/// An edge or a shield.
#[derive(Debug, Clone, Deserialize)]
pub struct EdgeReady {
    /// `edge-1`, `shield-1`.
    pub name: String,
    /// `edge` or `shield`.
    pub role: String,
    /// The region it stands in.
    pub region: String,
    /// Plain HTTP.
    pub http: SocketAddr,
    /// TLS on TCP, QUIC on UDP.
    pub https: SocketAddr,
    /// `/livez`, `/readyz`, `/metrics`.
    pub admin: SocketAddr,
    /// QUIC, if told.
    #[serde(default)]
    pub addr: Option<SocketAddr>,
    /// Its process.
    pub pid: u32,
    /// Its data directory.
    pub data: PathBuf,
}

/// A name server.
#[derive(Debug, Clone, Deserialize)]
pub struct DnsReady {
    /// UDP and TCP.
    pub addr: SocketAddr,
    /// The zone it answers for.
    pub zone: String,
}

/// What a child of `atoll dev` does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeRole {
    /// Metadata.
    Master,
    /// Chunks.
    Chunkserver,
    /// Visitors.
    Edge,
    /// Between edges and chunkservers.
    Shield,
}

/// One child of `atoll dev`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Node {
    /// What it does.
    pub role: NodeRole,
    /// Which of its role, from 1.
    pub id: u64,
}

impl Node {
    /// A master.
    pub fn master(id: u64) -> Self {
        Self { role: NodeRole::Master, id }
    }

    /// A chunkserver.
    pub fn chunkserver(id: u64) -> Self {
        Self { role: NodeRole::Chunkserver, id }
    }

    /// An edge.
    pub fn edge(id: u64) -> Self {
        Self { role: NodeRole::Edge, id }
    }

    /// A shield.
    pub fn shield(id: u64) -> Self {
        Self { role: NodeRole::Shield, id }
    }

    /// The role's word on the command line.
    pub fn role_word(self) -> &'static str {
        match self.role {
            NodeRole::Master => "master",
            NodeRole::Chunkserver => "chunkserver",
            NodeRole::Edge => "edge",
            NodeRole::Shield => "shield",
        }
    }
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.role_word(), self.id)
    }
}

impl Ready {
    /// Reads the file.
    ///
    /// # Errors
    /// When it is absent or not as promised.
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("ready file {}", path.display()))
    }

    /// The edges that answer visitors, without the shields.
    pub fn visitor_edges(&self) -> impl Iterator<Item = &EdgeReady> {
        self.edges.iter().filter(|edge| edge.role == "edge")
    }

    /// The process of a node, as of when the file was written.
    pub fn pid(&self, node: Node) -> Option<u32> {
        match node.role {
            NodeRole::Master => self.masters.iter().find(|m| m.id == node.id).map(|m| m.pid),
            NodeRole::Chunkserver => {
                self.chunkservers.iter().find(|c| c.id == node.id).map(|c| c.pid)
            }
            NodeRole::Edge | NodeRole::Shield => self.edge(node).map(|e| e.pid),
        }
    }

    /// Where other nodes reach a node, and where its own calls come from.
    pub fn addr(&self, node: Node) -> Option<SocketAddr> {
        match node.role {
            NodeRole::Master => self.masters.iter().find(|m| m.id == node.id).map(|m| m.addr),
            NodeRole::Chunkserver => {
                self.chunkservers.iter().find(|c| c.id == node.id).map(|c| c.addr)
            }
            NodeRole::Edge | NodeRole::Shield => self.edge(node).and_then(|e| e.addr),
        }
    }

    /// The data directory of a node.
    pub fn data(&self, node: Node) -> Option<&Path> {
        match node.role {
            NodeRole::Master => {
                self.masters.iter().find(|m| m.id == node.id).map(|m| m.data.as_path())
            }
            NodeRole::Chunkserver => {
                self.chunkservers.iter().find(|c| c.id == node.id).map(|c| c.data.as_path())
            }
            NodeRole::Edge | NodeRole::Shield => self.edge(node).map(|e| e.data.as_path()),
        }
    }

    /// The entry of an edge or shield.
    pub fn edge(&self, node: Node) -> Option<&EdgeReady> {
        let name = node.to_string();
        self.edges.iter().find(|edge| edge.name == name)
    }

    /// Every child.
    pub fn nodes(&self) -> Vec<Node> {
        let masters = self.masters.iter().map(|m| Node::master(m.id));
        let chunkservers = self.chunkservers.iter().map(|c| Node::chunkserver(c.id));
        let edges = self.edges.iter().filter_map(|edge| {
            let (role, id) = edge.name.rsplit_once('-')?;
            let id = id.parse().ok()?;
            match role {
                "edge" => Some(Node::edge(id)),
                "shield" => Some(Node::shield(id)),
                _ => None,
            }
        });
        masters.chain(chunkservers).chain(edges).collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn the_contracts_example_is_read() {
        let text = r#"{"config":"/c","ca":"/ca.pem",
         "masters":[{"id":1,"addr":"127.0.0.1:1","pid":1,"data":"/m"}],
         "chunkservers":[{"id":1,"addr":"127.0.0.1:2","zone":"z1","pid":2,"data":"/s"}],
         "edges":[{"name":"edge-1","role":"edge","region":"eu","http":"127.0.0.1:3",
           "https":"127.0.0.1:4","admin":"127.0.0.1:5","pid":3,"data":"/e"}],
         "dns":[{"addr":"127.0.0.1:6","zone":"atoll.test"}],"mount":null}"#;
        let ready: Ready = serde_json::from_str(text).unwrap();
        assert_eq!(ready.pid(Node::chunkserver(1)), Some(2));
        assert_eq!(ready.nodes().len(), 3);
        assert_eq!(ready.pid(Node::edge(1)), Some(3));
        assert_eq!(ready.pid(Node::edge(2)), None);
    }
}
