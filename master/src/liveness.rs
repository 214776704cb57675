//! Which nodes are heard of: the leader's memory, lost with the leadership.
//!
//! Plain state with the time as an argument. A new leader has heard of nobody yet, so every node
//! has a full period of grace before it counts as down.

use std::collections::HashMap;
use std::time::Duration;

use atoll_proto::chunk::ChunkStat;
use atoll_proto::cluster::{Duty, NodeInfo, NodeKind, NodeState, NodeView};
use atoll_proto::{NodeId, PgId, Seq, limits};
use tokio::time::Instant;

/// What the leader heard of the nodes.
#[derive(Debug)]
pub(crate) struct Liveness {
    /// Since when this master leads.
    since: Instant,
    nodes: HashMap<NodeId, Heard>,
    /// The last view of nodes that was handed out, and the log index when it was new.
    noticed: (Vec<(NodeId, NodeState, bool)>, u64),
}

#[derive(Debug, Clone)]
struct Heard {
    at: Instant,
    ready: bool,
    stat: ChunkStat,
    acked: Seq,
    /// Groups whose root was found equal to the master's, and at which log index last.
    synced: HashMap<PgId, u64>,
}

/// Who has applied an entry of the publish log.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    /// Live edges that have.
    pub(crate) acked: Vec<String>,
    /// Live edges that have not.
    pub(crate) waiting: Vec<String>,
    /// Edges that are down.
    pub(crate) down: Vec<String>,
}

impl Liveness {
    /// Nothing heard yet.
    pub(crate) fn new(now: Instant) -> Liveness {
        Liveness { since: now, nodes: HashMap::new(), noticed: (Vec::new(), 0) }
    }

    /// This master leads from now on: forget what was heard under an earlier leadership.
    pub(crate) fn reset(&mut self, now: Instant) {
        *self = Liveness::new(now);
    }

    /// A node has registered; it says by heartbeat when it is ready.
    pub(crate) fn registered(&mut self, node: NodeId, now: Instant) {
        let ready = false;
        let heard = self.entry(node, now);
        heard.at = now;
        heard.ready = ready;
        // It started again, perhaps on another disk.
        heard.synced.clear();
    }

    /// A heartbeat.
    pub(crate) fn heard(
        &mut self,
        node: NodeId,
        ready: bool,
        stat: Option<ChunkStat>,
        now: Instant,
    ) {
        let heard = self.entry(node, now);
        heard.at = now;
        heard.ready = ready;
        if let Some(stat) = stat {
            heard.stat = stat;
        }
    }

    /// An edge has applied the publish log up to an entry. Tells whether that is news.
    pub(crate) fn acknowledged(&mut self, edge: NodeId, upto: Seq, now: Instant) -> bool {
        let heard = self.entry(edge, now);
        heard.at = now;
        // An edge that lost its index starts again: what it says last holds.
        let news = heard.acked != upto;
        heard.acked = upto;
        news
    }

    /// Whether a node is heard of, and ready.
    pub(crate) fn state(&self, node: NodeId, now: Instant) -> (NodeState, bool) {
        match self.nodes.get(&node) {
            Some(heard) if now.duration_since(heard.at) < limits::HEARTBEAT_LOST => {
                (NodeState::Up, heard.ready)
            }
            // Not heard of under this leadership: it had no reason to be down before.
            None if now.duration_since(self.since) < limits::HEARTBEAT_LOST => {
                (NodeState::Up, true)
            }
            _ => (NodeState::Down, false),
        }
    }

    /// What a chunkserver last told of itself.
    pub(crate) fn stat(&self, node: NodeId) -> ChunkStat {
        self.nodes.get(&node).map(|heard| heard.stat.clone()).unwrap_or_default()
    }

    /// How long a node has been silent; since this master leads, when nothing was heard of it.
    pub(crate) fn silent_for(&self, node: NodeId, now: Instant) -> Duration {
        let at = self.nodes.get(&node).map_or(self.since, |heard| heard.at);
        now.duration_since(at)
    }

    /// Whether a node was found to have exactly what a group should have, as of this log index or
    /// a later one.
    pub(crate) fn synced(&self, node: NodeId, pg: PgId, since_index: u64) -> bool {
        let synced = self.nodes.get(&node).and_then(|heard| heard.synced.get(&pg));
        synced.is_some_and(|index| *index >= since_index)
    }

    /// Nodes are no members of a group any more: what was found of them does not count when they
    /// come back to it.
    pub(crate) fn forget_synced(&mut self, pg: PgId, nodes: &[NodeId]) {
        for node in nodes {
            if let Some(heard) = self.nodes.get_mut(node) {
                heard.synced.remove(&pg);
            }
        }
    }

    /// A node has exactly what a group should have as of a log index.
    #[cfg(test)]
    pub(crate) fn note_synced(&mut self, node: NodeId, pg: PgId, index: u64, now: Instant) {
        self.entry(node, now).synced.insert(pg, index);
    }

    /// The last entry of the publish log an edge has applied.
    pub(crate) fn acked(&self, edge: NodeId) -> Seq {
        self.nodes.get(&edge).map_or(Seq(0), |heard| heard.acked)
    }

    /// Milliseconds until a silent edge is no longer waited for.
    pub(crate) fn edge_left_ms(&self, edge: NodeId, now: Instant) -> u64 {
        let at = self.nodes.get(&edge).map_or(self.since, |heard| heard.at);
        let left = limits::EDGE_LOST.saturating_sub(now.duration_since(at));
        u64::try_from(left.as_millis()).unwrap_or(u64::MAX)
    }

    /// Which edges and shields have applied an entry.
    pub(crate) fn progress(&self, nodes: &[NodeInfo], seq: Seq, now: Instant) -> Progress {
        let mut progress = Progress::default();
        for info in nodes {
            let serves = info.edge.as_ref().is_some_and(|edge| edge.serves || edge.shield);
            if info.kind != NodeKind::Edge || !serves {
                continue;
            }
            let list = if self.acked(info.id) >= seq {
                &mut progress.acked
            } else if self.edge_left_ms(info.id, now) > 0 {
                &mut progress.waiting
            } else {
                &mut progress.down
            };
            list.push(info.name.clone());
        }
        progress
    }

    /// Nodes with how they do.
    pub(crate) fn views(&self, nodes: Vec<NodeInfo>, now: Instant) -> Vec<NodeView> {
        let view = |info: NodeInfo| {
            let (state, ready) = self.state(info.id, now);
            NodeView { info, state, ready, duty: Duty::Active }
        };
        nodes.into_iter().map(view).collect()
    }

    /// The log index at which the nodes' states were first seen to be as they are now.
    pub(crate) fn notice(&mut self, views: &[NodeView], index: u64) -> u64 {
        let states: Vec<_> =
            views.iter().map(|view| (view.info.id, view.state, view.ready)).collect();
        if self.noticed.0 != states {
            self.noticed = (states, index);
        }
        self.noticed.1
    }

    fn entry(&mut self, node: NodeId, now: Instant) -> &mut Heard {
        let fresh = || Heard {
            at: now,
            ready: true,
            stat: ChunkStat::default(),
            acked: Seq(0),
            synced: HashMap::new(),
        };
        self.nodes.entry(node).or_insert_with(fresh)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use atoll_proto::cluster::EdgeInfo;

    fn edge(id: u64) -> NodeInfo {
        NodeInfo {
            id: NodeId(id),
            name: format!("edge-{id}"),
            kind: NodeKind::Edge,
            addr: ([127, 0, 0, 1], 1).into(),
            zone: "z".into(),
            region: "eu".into(),
            weight: 1,
            edge: Some(EdgeInfo {
                serves: true,
                shield: false,
                dns: false,
                public: vec![],
                http_port: 1,
                https_port: 2,
            }),
        }
    }

    #[tokio::test]
    async fn a_new_leader_gives_grace_and_silence_ends_it() {
        let start = Instant::now();
        let mut liveness = Liveness::new(start);
        let node = NodeId(1);
        assert_eq!(liveness.state(node, start), (NodeState::Up, true));
        let later = start + limits::HEARTBEAT_LOST;
        assert_eq!(liveness.state(node, later), (NodeState::Down, false));
        liveness.heard(node, true, None, later);
        assert_eq!(liveness.state(node, later), (NodeState::Up, true));
        liveness.heard(node, false, None, later);
        assert_eq!(liveness.state(node, later), (NodeState::Up, false));
        let silent = later + limits::HEARTBEAT_LOST;
        assert_eq!(liveness.state(node, silent), (NodeState::Down, false));
        liveness.reset(silent);
        assert_eq!(liveness.state(node, silent).0, NodeState::Up);
    }

    #[tokio::test]
    async fn being_in_sync_is_of_an_index_and_of_a_membership() {
        let start = Instant::now();
        let mut liveness = Liveness::new(start);
        let (node, pg) = (NodeId(1), PgId(7));
        assert!(!liveness.synced(node, pg, 0));
        liveness.note_synced(node, pg, 9, start);
        assert!(liveness.synced(node, pg, 9) && !liveness.synced(node, pg, 10));
        assert!(!liveness.synced(node, PgId(8), 0));
        liveness.forget_synced(pg, &[node, NodeId(2)]);
        assert!(!liveness.synced(node, pg, 0));
        let later = start + Duration::from_secs(9);
        assert_eq!(liveness.silent_for(node, later), Duration::from_secs(9));
        assert_eq!(liveness.silent_for(NodeId(5), later), Duration::from_secs(9));
    }

    #[tokio::test]
    async fn edges_are_waited_for_until_they_are_lost() {
        let start = Instant::now();
        let mut liveness = Liveness::new(start);
        let nodes = [edge(1), edge(2)];
        assert!(liveness.acknowledged(NodeId(1), Seq(5), start));
        assert!(!liveness.acknowledged(NodeId(1), Seq(5), start));
        let progress = liveness.progress(&nodes, Seq(5), start);
        assert_eq!(progress.acked, ["edge-1"]);
        assert_eq!(progress.waiting, ["edge-2"]);
        let later = start + limits::EDGE_LOST + Duration::from_millis(1);
        let progress = liveness.progress(&nodes, Seq(6), later);
        assert_eq!(progress.down, ["edge-1", "edge-2"]);
    }

    #[tokio::test]
    async fn a_change_of_states_is_noticed_at_an_index() {
        let start = Instant::now();
        let mut liveness = Liveness::new(start);
        let up = liveness.views(vec![edge(1)], start);
        assert_eq!(liveness.notice(&up, 7), 7);
        assert_eq!(liveness.notice(&up, 9), 7);
        let down = liveness.views(vec![edge(1)], start + limits::HEARTBEAT_LOST);
        assert_eq!(liveness.notice(&down, 9), 9);
    }
}
