//! `atoll node ls`: every node, and what chunkservers keep.

use std::collections::HashMap;

use atoll_client::Cluster;
use atoll_proto::cluster::{Duty, NodeKind, NodeState, NodeView, PgTable};
use atoll_proto::master::ChunkserverStatus;
use atoll_proto::{Code, NodeId};
use serde::Serialize;

use crate::commands::status;
use crate::connect::Context;
use crate::report::Failure;
use crate::{table, text};

#[derive(Serialize)]
struct NodesObject<'a> {
    epoch: u64,
    /// Groups on their way to other members.
    groups_moving: usize,
    nodes: Vec<NodeObject<'a>>,
}

/// A node; what it keeps is `null` for an edge, or when the token may not see it.
#[derive(Serialize)]
struct NodeObject<'a> {
    #[serde(flatten)]
    view: &'a NodeView,
    /// Groups it is a member of.
    groups: Option<usize>,
    /// Groups that are moving away from it.
    groups_leaving: Option<usize>,
    chunks: Option<u64>,
    bytes: Option<u64>,
    in_sync: Option<bool>,
}

impl<'a> NodeObject<'a> {
    fn new(view: &'a NodeView, table: &PgTable, status: Option<&ChunkserverStatus>) -> Self {
        let groups = match view.info.kind {
            NodeKind::Chunkserver => Some(table.groups_of(view.info.id)),
            NodeKind::Edge => None,
        };
        NodeObject {
            view,
            groups: groups.map(|(member, _)| member),
            groups_leaving: groups.map(|(_, leaving)| leaving),
            chunks: status.map(|status| status.stat.chunks),
            bytes: status.map(|status| status.stat.bytes),
            in_sync: status.and_then(|status| status.in_sync),
        }
    }

    fn row(&self) -> Vec<String> {
        let info = &self.view.info;
        let none = || "-".to_owned();
        let groups = match (self.groups, self.groups_leaving) {
            (Some(member), Some(leaving)) if leaving > 0 => format!("{member} +{leaving}"),
            (Some(member), _) => member.to_string(),
            (None, _) => none(),
        };
        let in_sync = match (self.in_sync, info.kind) {
            (Some(true), _) => "yes",
            (Some(false), _) => "no",
            (None, NodeKind::Chunkserver) => "unknown",
            (None, NodeKind::Edge) => "-",
        };
        vec![
            info.id.to_string(),
            info.name.clone(),
            kind(self.view).to_owned(),
            state(self.view).to_owned(),
            duty(self.view).to_owned(),
            info.zone.clone(),
            info.region.clone(),
            info.addr.to_string(),
            self.chunks.map_or_else(none, |chunks| chunks.to_string()),
            self.bytes.map_or_else(none, text::bytes),
            groups,
            in_sync.to_owned(),
        ]
    }
}

fn kind(node: &NodeView) -> &'static str {
    match (&node.info.edge, node.info.kind) {
        (Some(edge), _) if edge.shield && !edge.serves => "shield",
        (_, NodeKind::Edge) => "edge",
        (_, NodeKind::Chunkserver) => "chunkserver",
    }
}

fn state(node: &NodeView) -> &'static str {
    match (node.state, node.ready) {
        (NodeState::Down, _) => "down",
        (NodeState::Up, false) => "up, not ready",
        (NodeState::Up, true) => "ready",
    }
}

fn duty(node: &NodeView) -> &'static str {
    match (node.duty, node.info.kind) {
        (Duty::Active, NodeKind::Edge) => "-",
        (Duty::Active, _) => "active",
        (Duty::Draining, _) => "draining",
        (Duty::Gone, _) => "gone",
    }
}

pub(super) async fn run(context: &Context, cluster: &Cluster) -> Result<(), Failure> {
    let view = cluster.refresh_view().await?;
    // Any token may see the nodes; how much they keep is for those that may read.
    let status = match status::ask(cluster).await {
        Ok(status) => status.chunkservers,
        Err(failure) if failure.code() == Some(Code::Denied) => Vec::new(),
        Err(failure) => return Err(failure),
    };
    let status: HashMap<NodeId, &ChunkserverStatus> =
        status.iter().map(|server| (server.id, server)).collect();
    let nodes: Vec<NodeObject<'_>> = view
        .nodes
        .iter()
        .map(|node| NodeObject::new(node, &view.table, status.get(&node.info.id).copied()))
        .collect();
    if context.out.json() {
        let groups_moving = view.table.leaving.len();
        let object = NodesObject { epoch: view.table.epoch.0, groups_moving, nodes };
        return context.out.object(&object);
    }
    let rows: Vec<Vec<String>> = nodes.iter().map(NodeObject::row).collect();
    let heading = [
        ">id", "name", "kind", "state", "duty", "zone", "region", "address", ">chunks", ">bytes",
        ">groups", "in sync",
    ];
    context.out.line(table::render(&heading, &rows))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use atoll_proto::PgId;
    use atoll_proto::chunk::ChunkStat;

    use super::super::tests::view;
    use super::*;

    #[test]
    fn a_row_says_what_a_chunkserver_keeps_and_what_leaves_it() {
        let mut view = view();
        view.nodes[1].duty = Duty::Draining;
        view.table.members[3] = vec![NodeId(1), NodeId(2)];
        view.table.members[4] = vec![NodeId(1)];
        view.table.leaving = vec![(PgId(4), vec![NodeId(2)])];
        let status = ChunkserverStatus {
            id: NodeId(2),
            name: "7".into(),
            zone: "z1".into(),
            up: true,
            stat: ChunkStat { chunks: 5, bytes: 2048, ..ChunkStat::default() },
            duty: Duty::Draining,
            in_sync: Some(true),
            groups: 1,
        };
        let object = NodeObject::new(&view.nodes[1], &view.table, Some(&status));
        let row = object.row();
        assert_eq!(row[4], "draining");
        assert_eq!(&row[8..], ["5", "2.00 KiB", "1 +1", "yes"]);
        let json = serde_json::to_value(&object).unwrap();
        assert_eq!((&json["groups"], &json["groups_leaving"]), (&1.into(), &1.into()));
        assert_eq!((&json["duty"], &json["info"]["name"]), (&"draining".into(), &"7".into()));
        let edge = NodeObject::new(&view.nodes[2], &view.table, None);
        assert_eq!((edge.row()[4].as_str(), edge.row()[10].as_str()), ("-", "-"));
        assert!(serde_json::to_value(&edge).unwrap()["groups"].is_null());
    }
}
