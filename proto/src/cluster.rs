//! The nodes and the placement group table, as clients cache them.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::{ClusterId, Epoch, NodeId, PgId, ids::PG_COUNT, limits};

/// What a node does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeKind {
    /// Keeps chunks.
    Chunkserver,
    /// Serves visitors (roles edge, shield, dns in any mix).
    Edge,
}

/// Whether a node is to be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeState {
    /// Heard of lately.
    Up,
    /// Silent for longer than `limits::HEARTBEAT_LOST`.
    Down,
}

/// A node as its owner describes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInfo {
    /// Its number; never used again after the node is removed.
    pub id: NodeId,
    /// Its name, unique in the cluster, also in its certificate.
    pub name: String,
    /// What it does.
    pub kind: NodeKind,
    /// Where other nodes reach it (QUIC).
    pub addr: SocketAddr,
    /// Failure domain: replicas go to different zones.
    pub zone: String,
    /// Where it is, for visitors: edges answer near ones.
    pub region: String,
    /// Share of the data relative to other chunkservers.
    pub weight: u32,
    /// Set for edges.
    pub edge: Option<EdgeInfo>,
}

/// What an edge tells of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EdgeInfo {
    /// Serves visitors over HTTP.
    pub serves: bool,
    /// Is a shield: fills other edges' misses.
    pub shield: bool,
    /// Answers DNS.
    pub dns: bool,
    /// Public addresses that DNS answers may hold.
    pub public: Vec<std::net::IpAddr>,
    /// Plain HTTP port.
    pub http_port: u16,
    /// HTTPS port, one number for TCP and UDP.
    pub https_port: u16,
}

/// What the operator wants of a chunkserver.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Duty {
    /// It keeps its share of the data.
    #[default]
    Active,
    /// Its groups move to others; it serves until they have.
    Draining,
    /// It was gone for so long, or was replaced: its groups go to others without waiting for it.
    Gone,
}

/// A node and how it does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeView {
    /// What it is.
    pub info: NodeInfo,
    /// Whether it is heard of.
    pub state: NodeState,
    /// Whether it says it can do its work (an edge: has the publish log and a certificate).
    pub ready: bool,
    /// What the operator wants of it.
    pub duty: Duty,
}

/// The members of every placement group. Stored in the replicated state; placement code only
/// proposes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PgTable {
    /// Grows with every change.
    pub epoch: Epoch,
    /// One list of ordered members per placement group, [`PG_COUNT`] of them. Those that entered
    /// in the move under way come last, one for each that is leaving.
    pub members: Vec<Vec<NodeId>>,
    /// Groups on the move, sorted: who had the chunks before and is not a member any more. They
    /// are read from, not written to, until every member is known to have everything.
    pub leaving: Vec<(PgId, Vec<NodeId>)>,
}

impl PgTable {
    /// A table without members, for a cluster that has no chunkservers yet.
    pub fn empty() -> Self {
        Self {
            epoch: Epoch(0),
            members: vec![Vec::new(); usize::from(PG_COUNT)],
            leaving: Vec::new(),
        }
    }

    /// The members of a placement group, in order of preference.
    pub fn of(&self, pg: PgId) -> &[NodeId] {
        self.members.get(usize::from(pg.0)).map_or(&[], Vec::as_slice)
    }

    /// Who had the chunks of a group before its move and still has them.
    pub fn leaving(&self, pg: PgId) -> &[NodeId] {
        let at = self.leaving.binary_search_by_key(&pg, |(pg, _)| *pg);
        at.map_or(&[], |at| self.leaving[at].1.as_slice())
    }

    /// Members that are taken to have what the group should have.
    pub fn settled(&self, pg: PgId) -> &[NodeId] {
        self.split(pg).0
    }

    /// Members that entered in the move under way and may still lack chunks.
    pub fn filling(&self, pg: PgId) -> &[NodeId] {
        self.split(pg).1
    }

    /// Everybody a chunk of the group may be read from, those that are most likely to have it
    /// first: members that did not just enter, old members, members that are still filling.
    pub fn readers(&self, pg: PgId) -> impl Iterator<Item = NodeId> {
        let (settled, filling) = self.split(pg);
        settled.iter().chain(self.leaving(pg)).chain(filling).copied()
    }

    /// Whether the group is on its way to other members.
    pub fn is_moving(&self, pg: PgId) -> bool {
        !self.leaving(pg).is_empty()
    }

    /// In how many groups a node is a member, and from how many it is leaving.
    pub fn groups_of(&self, node: NodeId) -> (usize, usize) {
        let member = self.members.iter().filter(|members| members.contains(&node)).count();
        let leaving = self.leaving.iter().filter(|(_, old)| old.contains(&node)).count();
        (member, leaving)
    }

    fn split(&self, pg: PgId) -> (&[NodeId], &[NodeId]) {
        let members = self.of(pg);
        members.split_at(members.len().saturating_sub(self.leaving(pg).len()))
    }

    /// How many members must have a chunk on disk before a write is acknowledged.
    pub fn durable_quorum(&self, pg: PgId) -> usize {
        self.of(pg).len().clamp(1, limits::REPLICAS_DURABLE)
    }
}

/// What a client needs to find everything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterView {
    /// Which cluster this is.
    pub cluster: ClusterId,
    /// The log index this view was read at.
    pub index: u64,
    /// Chunk size for new files, in bytes.
    pub chunk_bytes: u32,
    /// All nodes but the masters.
    pub nodes: Vec<NodeView>,
    /// Where chunks are.
    pub table: PgTable,
    /// The DNS zone under which sites have names, such as `atoll.test`.
    pub zone: Option<String>,
    /// What a site's URL looks like from outside, with `{site}` in it; none when unknown.
    pub url_template: Option<String>,
}

impl ClusterView {
    /// The node with this id.
    pub fn node(&self, id: NodeId) -> Option<&NodeView> {
        self.nodes.iter().find(|node| node.info.id == id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(ids: &[u64]) -> Vec<NodeId> {
        ids.iter().copied().map(NodeId).collect()
    }

    #[test]
    fn a_moving_group_is_read_where_its_chunks_were() {
        let mut table = PgTable::empty();
        table.members[5] = nodes(&[1, 2, 4]);
        table.members[9] = nodes(&[1, 2]);
        table.leaving = vec![(PgId(5), nodes(&[3]))];
        assert_eq!(table.settled(PgId(5)), nodes(&[1, 2]));
        assert_eq!(table.filling(PgId(5)), nodes(&[4]));
        assert_eq!(table.readers(PgId(5)).collect::<Vec<_>>(), nodes(&[1, 2, 3, 4]));
        assert!(table.is_moving(PgId(5)) && !table.is_moving(PgId(9)));
        assert_eq!(table.readers(PgId(9)).collect::<Vec<_>>(), nodes(&[1, 2]));
        assert_eq!(table.groups_of(NodeId(1)), (2, 0));
        assert_eq!(table.groups_of(NodeId(3)), (0, 1));
        // More old members than members: nobody is settled, everybody is asked.
        table.leaving = vec![(PgId(9), nodes(&[3, 4, 5]))];
        assert_eq!(table.readers(PgId(9)).collect::<Vec<_>>(), nodes(&[3, 4, 5, 1, 2]));
        assert_eq!(table.readers(PgId(7)).count(), 0);
    }
}
