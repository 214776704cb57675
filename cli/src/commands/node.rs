//! `atoll node`: the machines of the cluster.

use atoll_proto::cluster::{NodeKind, NodeView};
use clap::Subcommand;
use serde::Serialize;

use crate::connect::Context;
use crate::report::Failure;
use crate::table;

/// List the nodes of the cluster
#[derive(Debug, Subcommand)]
#[command(after_help = "EXAMPLES
  atoll node ls")]
pub(crate) enum NodeCommand {
    /// List chunkservers and edges, where they are and whether they are up
    #[command(after_help = "EXAMPLES
  atoll node ls
  atoll node ls --json")]
    Ls,
}

#[derive(Serialize)]
struct NodesObject<'a> {
    epoch: u64,
    nodes: &'a [NodeView],
}

/// Does it.
pub(crate) async fn run(context: &Context, command: NodeCommand) -> Result<(), Failure> {
    let NodeCommand::Ls = command;
    let cluster = context.cluster().await?;
    let view = cluster.refresh_view().await?;
    if context.out.json() {
        return context.out.object(&NodesObject { epoch: view.table.epoch.0, nodes: &view.nodes });
    }
    let rows: Vec<Vec<String>> = view.nodes.iter().map(row).collect();
    let heading = [">id", "name", "kind", "state", "address", "zone", "region", ">weight"];
    context.out.line(table::render(&heading, &rows))
}

fn row(node: &NodeView) -> Vec<String> {
    let info = &node.info;
    let kind = match (&info.edge, info.kind) {
        (Some(edge), _) if edge.shield && !edge.serves => "shield",
        (_, NodeKind::Edge) => "edge",
        (_, NodeKind::Chunkserver) => "chunkserver",
    };
    let state = match (node.state, node.ready) {
        (atoll_proto::cluster::NodeState::Down, _) => "down",
        (atoll_proto::cluster::NodeState::Up, false) => "up, not ready",
        (atoll_proto::cluster::NodeState::Up, true) => "ready",
    };
    vec![
        info.id.to_string(),
        info.name.clone(),
        kind.to_owned(),
        state.to_owned(),
        info.addr.to_string(),
        info.zone.clone(),
        info.region.clone(),
        info.weight.to_string(),
    ]
}
