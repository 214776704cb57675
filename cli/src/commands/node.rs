//! `atoll node`: the machines of the cluster, and which of them keep data.
//!
//! A verb asks the masters to change what a chunkserver is for; the masters then move its groups
//! by themselves, whether this program goes on running or not.

mod leave;
mod ls;

use atoll_client::Cluster;
use atoll_proto::cluster::{ClusterView, NodeKind, NodeView};
use atoll_proto::master::{Change, Changed, NodeOp};
use clap::{Args, Subcommand};

use crate::cluster_path::unexpected;
use crate::connect::Context;
use crate::report::Failure;

/// List, drain, replace and remove the nodes of the cluster
#[derive(Debug, Subcommand)]
#[command(after_help = "EXAMPLES
  atoll node ls
  atoll node drain chunkserver-2 --wait
  atoll node rm chunkserver-2")]
pub(crate) enum NodeCommand {
    /// List chunkservers and edges, where they are, how they do and what they keep
    #[command(after_help = "EXAMPLES
  atoll node ls
  atoll node ls --json

`groups` are the placement groups a chunkserver keeps; with `+n` it is still read for n more that
are moving away from it. `in sync` says whether it has exactly what it should have.")]
    Ls,
    /// Move what a chunkserver keeps, or an edge's visitors, to others; it serves on meanwhile
    #[command(after_help = "EXAMPLES
  atoll node drain chunkserver-2
  atoll node drain 2 --wait
  atoll node drain edge-1

An edge leaves the DNS answers within seconds and serves on whoever still comes. Of a chunkserver
the groups move. Without --wait, and when this program is stopped, the move goes on; how many
groups are left is in `atoll node ls`. Once none is, `atoll node rm` forgets the server.
`atoll node undrain` changes your mind.")]
    Drain(DrainArgs),
    /// Let a node that was draining, or a chunkserver that was declared lost, have its share again
    #[command(after_help = "EXAMPLES
  atoll node undrain chunkserver-2")]
    Undrain(OneNode),
    /// Declare a chunkserver lost: others, the new one among them, take over its groups at once
    #[command(after_help = "EXAMPLES
  atoll node replace chunkserver-2 chunkserver-5 --wait

For a server that will not come back. The new one must be running. For one that still works,
`atoll node drain` is gentler. Afterwards `atoll node rm` forgets the old one.")]
    Replace(ReplaceArgs),
    /// Forget a chunkserver that keeps no groups, or an edge that is off; its id is never used again
    #[command(after_help = "EXAMPLES
  atoll node rm chunkserver-2
  atoll node rm chunkserver-2 --force

With --force a server that still keeps groups is declared lost, its groups are given to others, and
then it is forgotten, even if something was only there.

No publish waits for a removed edge. One that may still answer visitors is not removed; --force
says of one that serves on without the masters, as the policies of its sites have it, that it is
off.")]
    Rm(RmArgs),
}

/// Which node.
#[derive(Debug, Args)]
pub(crate) struct OneNode {
    /// Id or name, as `atoll node ls` shows them
    #[arg(value_name = "NODE")]
    node: String,
}

/// A node to be drained.
#[derive(Debug, Args)]
pub(crate) struct DrainArgs {
    #[command(flatten)]
    one: OneNode,
    /// Return once nothing is left on it
    #[arg(long)]
    wait: bool,
}

/// A node and the one that takes its place.
#[derive(Debug, Args)]
pub(crate) struct ReplaceArgs {
    /// Id or name of the lost one
    #[arg(value_name = "OLD")]
    old: String,
    /// Id or name of the new one
    #[arg(value_name = "NEW")]
    new: String,
    /// Return once everything has its copies again
    #[arg(long)]
    wait: bool,
}

/// A node to be removed.
#[derive(Debug, Args)]
pub(crate) struct RmArgs {
    #[command(flatten)]
    one: OneNode,
    /// A chunkserver also while it keeps groups; an edge also where a policy lets it serve on
    #[arg(long)]
    force: bool,
}

/// Does it.
pub(crate) async fn run(context: &Context, command: NodeCommand) -> Result<(), Failure> {
    let cluster = context.cluster().await?;
    match command {
        NodeCommand::Ls => ls::run(context, &cluster).await,
        NodeCommand::Drain(DrainArgs { one, wait }) => {
            leave::drain(context, &cluster, &one.node, wait).await
        }
        NodeCommand::Undrain(OneNode { node }) => leave::undrain(context, &cluster, &node).await,
        NodeCommand::Replace(ReplaceArgs { old, new, wait }) => {
            leave::replace(context, &cluster, &old, &new, wait).await
        }
        NodeCommand::Rm(RmArgs { one, force }) => {
            leave::remove(context, &cluster, &one.node, force).await
        }
    }
}

/// The node with this id or name.
fn find<'a>(view: &'a ClusterView, typed: &str) -> Result<&'a NodeView, Failure> {
    let by_name = view.nodes.iter().find(|node| node.info.name == typed);
    let by_id = || {
        let id: u64 = typed.parse().ok()?;
        view.nodes.iter().find(|node| node.info.id.0 == id)
    };
    by_name.or_else(by_id).ok_or_else(|| {
        let names: Vec<&str> = view.nodes.iter().map(|node| node.info.name.as_str()).collect();
        Failure::Failed(format!("there is no node {typed}; there are {}", names.join(", ")))
    })
}

/// The chunkserver with this id or name.
fn find_chunkserver<'a>(view: &'a ClusterView, typed: &str) -> Result<&'a NodeView, Failure> {
    let node = find(view, typed)?;
    if node.info.kind == NodeKind::Chunkserver {
        return Ok(node);
    }
    Err(Failure::Failed(format!(
        "{} is an edge: it keeps no chunks that could move; only chunkservers are replaced",
        node.info.name
    )))
}

async fn change(cluster: &Cluster, op: NodeOp) -> Result<(), Failure> {
    match cluster.change(Change::Node(op)).await?.1 {
        Changed::Node => Ok(()),
        _ => Err(unexpected("node")),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use atoll_proto::cluster::{Duty, EdgeInfo, NodeInfo, NodeState, PgTable};
    use atoll_proto::{ClusterId, NodeId};

    use super::*;

    pub(crate) fn view() -> ClusterView {
        let node = |id: u64, name: &str, edge: Option<EdgeInfo>| NodeView {
            info: NodeInfo {
                id: NodeId(id),
                name: name.into(),
                kind: if edge.is_some() { NodeKind::Edge } else { NodeKind::Chunkserver },
                addr: ([127, 0, 0, 1], 9).into(),
                zone: "z1".into(),
                region: "eu".into(),
                weight: 100,
                edge,
            },
            state: NodeState::Up,
            ready: true,
            duty: Duty::Active,
        };
        let edge = EdgeInfo {
            serves: true,
            shield: false,
            dns: false,
            public: vec![],
            http_port: 1,
            https_port: 2,
        };
        ClusterView {
            cluster: ClusterId([0; 16]),
            index: 1,
            chunk_bytes: 1 << 20,
            nodes: vec![node(1, "c1", None), node(2, "7", None), node(101, "e1", Some(edge))],
            table: PgTable::empty(),
            zone: None,
            url_template: None,
        }
    }

    #[test]
    fn a_node_is_found_by_name_and_by_id() {
        let view = view();
        assert_eq!(find(&view, "c1").unwrap().info.id, NodeId(1));
        assert_eq!(find(&view, "2").unwrap().info.name, "7");
        assert_eq!(find(&view, "7").unwrap().info.id, NodeId(2), "names come first");
        let text = find(&view, "nobody").unwrap_err().to_string();
        assert!(text.contains("nobody") && text.contains("c1, 7, e1"), "{text}");
        let text = find_chunkserver(&view, "e1").unwrap_err().to_string();
        assert!(text.contains("is an edge"), "{text}");
    }
}
