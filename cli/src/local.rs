//! A cluster on this machine whose roles a program runs itself: the identities, ports and
//! configuration files that `atoll dev` makes, without its processes. The testbed's in-process
//! cluster is started from these.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::dev::layout::{DataLock, Layout};
use crate::dev::plan::{Kind, NodeName, Wanted};
use crate::dev::prepare::{Prepared, prepare};
use crate::dev::ready::{Process, ReadyObject};
use crate::dev::{ZONE, probe};
use crate::report::Failure;

/// Why the files cannot be made, or the cluster does not serve. The text says what and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct LocalError(String);

impl From<Failure> for LocalError {
    fn from(failure: Failure) -> Self {
        Self(failure.to_string())
    }
}

/// How many nodes of each kind, as in the arguments of `atoll dev`; `None` for as many as that
/// starts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Metadata.
    pub masters: Option<u16>,
    /// Chunks.
    pub chunkservers: Option<u16>,
    /// Visitors, and DNS.
    pub edges: Option<u16>,
    /// Misses of the edges.
    pub shields: Option<u16>,
}

/// Whose `run` a node needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LocalRole {
    /// `atoll_master::run`.
    Master,
    /// `atoll_chunkserver::run`.
    Chunkserver,
    /// `atoll_edge::run`, also for a shield.
    Edge,
}

/// A node of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalNode {
    /// Such as `edge-1`.
    pub name: String,
    /// What it does.
    pub role: LocalRole,
    /// Its configuration file.
    pub config: PathBuf,
    /// The file it writes once it is ready; not there before.
    pub ready: PathBuf,
}

/// The files of a cluster. Nobody else uses its data directory while this lives.
#[derive(Debug)]
pub struct LocalCluster {
    layout: Layout,
    prepared: Prepared,
    _lock: DataLock,
}

impl LocalCluster {
    /// Makes all files below `data`, or finds those of before.
    ///
    /// # Errors
    /// When they cannot be written, are of another shape, or no ports are free.
    pub fn prepare(data: &Path, counts: Counts) -> Result<Self, LocalError> {
        let layout = Layout::new(data)?;
        layout.create()?;
        let lock = layout.lock()?;
        let wanted = Wanted {
            masters: counts.masters,
            chunkservers: counts.chunkservers,
            edges: counts.edges,
            shields: counts.shields,
        };
        let prepared = prepare(&layout, wanted, None)?;
        Ok(Self { layout, prepared, _lock: lock })
    }

    /// The nodes, in the order in which they start: the others need the masters.
    pub fn nodes(&self) -> Vec<LocalNode> {
        let node = |name: &NodeName| LocalNode {
            name: name.to_string(),
            role: match name.kind {
                Kind::Master => LocalRole::Master,
                Kind::Chunkserver => LocalRole::Chunkserver,
                Kind::Edge | Kind::Shield => LocalRole::Edge,
            },
            config: self.layout.config(*name),
            ready: self.layout.ready(&name.to_string()),
        };
        self.prepared.names.iter().map(node).collect()
    }

    /// The client configuration.
    pub fn client_config(&self) -> PathBuf {
        self.layout.client_config()
    }

    /// Where everything is, as `atoll dev --ready` writes it (JSON); every process is this one.
    ///
    /// # Errors
    /// Never for a cluster that was prepared.
    pub fn describe(&self) -> Result<String, LocalError> {
        let process = |name: &NodeName| Process {
            name: *name,
            ports: self.prepared.ports[name],
            pid: std::process::id(),
            data: self.layout.node(*name),
            zone: self.prepared.record.zone(*name),
        };
        let object = ReadyObject::new(
            self.layout.client_config(),
            self.layout.web_ca().join("ca.pem"),
            ZONE,
            None,
            self.prepared.names.iter().map(process).collect(),
        );
        serde_json::to_string(&object).map_err(|error| LocalError(error.to_string()))
    }

    /// Waits until the cluster is healthy, every group has all its members, and every edge
    /// answers visitors.
    ///
    /// # Errors
    /// When it is not so within `bound`; says why.
    pub async fn until_serving(&self, bound: Duration) -> Result<(), LocalError> {
        let edges = self.prepared.ports.iter().filter(|(name, _)| name.kind == Kind::Edge);
        let https: Vec<u16> = edges.filter_map(|(_, ports)| ports.https).collect();
        let (_running, never) = atoll_net::shutdown::pair();
        drop(Box::pin(probe::until_serving(&self.layout, &https, bound, &never)).await?);
        Ok(())
    }
}
