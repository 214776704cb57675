//! Where the copies of chunks are, by what each chunkserver says that it lacks.

use std::collections::{HashMap, HashSet};

use atoll_client::Cluster;
use atoll_proto::cluster::{ClusterView, NodeKind, NodeState};
use atoll_proto::master::Status;
use atoll_proto::{ChunkId, NodeId};

use crate::commands::status;
use crate::report::Failure;

/// Chunks that one server may lack before the list is cut.
const LACKING_MAX: usize = 1_000_000;

/// How a chunk does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Every server that should have it and can be asked has it.
    Good,
    /// It can be read, but some server that should have it does not.
    Few,
    /// Nobody who can be asked has it, but somebody could not be asked.
    Unreachable,
    /// Nobody has it in good order.
    Lost,
}

/// What the chunkservers lack.
#[derive(Debug, Default)]
pub(super) struct Copies {
    lacking: HashMap<ChunkId, Vec<NodeId>>,
    /// Those of them that some server which lacks them has not asked all the others for yet.
    untried: HashSet<ChunkId>,
    /// Servers that could not be asked.
    silent: HashSet<NodeId>,
    /// Why each of them could not.
    pub(super) reasons: Vec<String>,
    /// Copies that were given up after trying all sources again and again.
    pub(super) dead_letters: u64,
    /// Some server lacks more than was listed.
    pub(super) cut: bool,
}

impl Copies {
    /// Asks every chunkserver.
    pub(super) async fn ask(cluster: &Cluster, view: &ClusterView) -> Result<Copies, Failure> {
        let status = status::settled(cluster).await?;
        Ok(Self::of(cluster, view, &status).await)
    }

    /// Asks every chunkserver, going by a status that was just asked for.
    pub(super) async fn of(cluster: &Cluster, view: &ClusterView, status: &Status) -> Copies {
        let mut copies = Copies::default();
        for server in status.chunkservers.iter().filter(|server| server.up) {
            let name = &server.name;
            // It does not know itself yet what it lacks.
            if server.stat.refilling {
                copies
                    .silent(server.id, format!("{name} lost its store and is being filled again"));
            } else if server.in_sync.is_none() && server.groups > 0 {
                copies.silent(server.id, format!("{name} has not been compared yet"));
            } else if status::differs(server, status) {
                copies.reasons.push(format!("{name} has not exactly what it should have"));
            }
        }
        let servers = view.nodes.iter().filter(|node| node.info.kind == NodeKind::Chunkserver);
        for node in servers {
            let (id, name) = (node.info.id, &node.info.name);
            if node.state == NodeState::Down && !is_relied_on(view, id) {
                continue;
            }
            if node.state == NodeState::Down {
                copies.silent(id, format!("{name} is down"));
                continue;
            }
            if copies.silent.contains(&id) {
                continue;
            }
            match cluster.lacking(id, LACKING_MAX).await {
                Ok((lacking, all)) => {
                    copies.cut |= !all;
                    for lacking in lacking {
                        copies.dead_letters += u64::from(lacking.dead);
                        if lacking.attempts == 0 {
                            copies.untried.insert(lacking.id);
                        }
                        copies.lacking.entry(lacking.id).or_default().push(id);
                    }
                }
                Err(error) => copies.silent(id, format!("{name} cannot be asked: {error}")),
            }
        }
        copies
    }

    fn silent(&mut self, node: NodeId, reason: String) {
        self.silent.insert(node);
        self.reasons.push(reason);
    }

    /// Chunks that somebody lacks.
    pub(super) fn lacking(&self) -> usize {
        self.lacking.len()
    }

    /// Chunks that somebody lacks and that may still come: all but those of which every server that
    /// should have them was asked in vain.
    pub(super) fn to_fetch(&self, view: &ClusterView) -> usize {
        let gone = |id: &&ChunkId| {
            let alone = view.table.readers(id.pg()).nth(1).is_none();
            (alone || !self.untried.contains(*id)) && self.state(view, id) == State::Lost
        };
        let gone = self.lacking.keys().filter(gone).count();
        (self.lacking.len() - gone).max(usize::from(self.cut))
    }

    /// How a chunk does, going by what was asked.
    pub(super) fn state(&self, view: &ClusterView, id: &ChunkId) -> State {
        let lack = self.lacking.get(id).map_or(&[][..], Vec::as_slice);
        let (mut has, mut unknown) = (0, 0);
        for reader in view.table.readers(id.pg()) {
            if lack.contains(&reader) {
                continue;
            }
            if self.silent.contains(&reader) || view.node(reader).is_none() {
                unknown += 1;
            } else {
                has += 1;
            }
        }
        match (has, unknown) {
            (0, 0) if lack.is_empty() => State::Unreachable,
            (0, 0) => State::Lost,
            (0, _) => State::Unreachable,
            _ if lack.is_empty() => State::Good,
            _ => State::Few,
        }
    }
}

/// Whether a chunkserver is needed for any group. One that was replaced is not, nor one that has
/// been drained.
fn is_relied_on(view: &ClusterView, id: NodeId) -> bool {
    view.table.groups_of(id) != (0, 0)
}

#[cfg(test)]
mod tests {
    use atoll_proto::cluster::{Duty, NodeInfo, NodeView, PgTable};
    use atoll_proto::{ClusterId, Epoch};

    use super::*;

    fn view(members: &[u64]) -> ClusterView {
        let node = |id: &u64| NodeView {
            info: NodeInfo {
                id: NodeId(*id),
                name: format!("c{id}"),
                kind: NodeKind::Chunkserver,
                addr: ([127, 0, 0, 1], 1).into(),
                zone: "z".into(),
                region: "r".into(),
                weight: 1,
                edge: None,
            },
            state: NodeState::Up,
            ready: true,
            duty: Duty::Active,
        };
        let mut table = PgTable::empty();
        table.epoch = Epoch(1);
        table.members.iter_mut().for_each(|group| {
            group.extend(members.iter().map(|id| NodeId(*id)));
        });
        ClusterView {
            cluster: ClusterId([1; 16]),
            index: 1,
            chunk_bytes: 1 << 20,
            nodes: members.iter().map(node).collect(),
            table,
            zone: None,
            url_template: None,
        }
    }

    #[test]
    fn a_chunk_is_lost_only_when_everybody_was_asked() {
        let view = view(&[1, 2, 3]);
        let id = ChunkId::of(b"x");
        let state = |lack: &[u64], silent: &[u64]| {
            let copies = Copies {
                lacking: HashMap::from([(id, lack.iter().map(|id| NodeId(*id)).collect())]),
                silent: silent.iter().map(|id| NodeId(*id)).collect(),
                ..Copies::default()
            };
            copies.state(&view, &id)
        };
        assert_eq!(Copies::default().state(&view, &id), State::Good);
        assert_eq!(state(&[2], &[]), State::Few);
        assert_eq!(state(&[1, 2], &[3]), State::Unreachable);
        assert_eq!(state(&[1, 2, 3], &[]), State::Lost);
        assert_eq!(state(&[], &[1, 2]), State::Good);
        assert_eq!(state(&[], &[1, 2, 3]), State::Unreachable);
        assert_eq!(state(&[1], &[2]), State::Few);
        let mut moving = view.clone();
        moving.table.leaving = vec![(id.pg(), vec![NodeId(4)])];
        moving.nodes.push(NodeView {
            info: NodeInfo { id: NodeId(4), ..moving.nodes[0].info.clone() },
            ..moving.nodes[0].clone()
        });
        let copies = Copies {
            lacking: HashMap::from([(id, vec![NodeId(1), NodeId(2), NodeId(3)])]),
            ..Copies::default()
        };
        assert_eq!(copies.state(&moving, &id), State::Few, "an old member still has it");
    }

    #[test]
    fn what_nobody_has_is_not_waited_for_once_everybody_was_asked() {
        let three = view(&[1, 2, 3]);
        let id = ChunkId::of(b"x");
        let lacking = |lack: &[u64]| Copies {
            lacking: HashMap::from([(id, lack.iter().map(|id| NodeId(*id)).collect())]),
            ..Copies::default()
        };
        assert_eq!(Copies::default().to_fetch(&three), 0);
        assert_eq!(lacking(&[1, 2]).to_fetch(&three), 1);
        assert_eq!(lacking(&[1, 2, 3]).to_fetch(&three), 0);
        let untried = Copies { untried: HashSet::from([id]), ..lacking(&[1, 2, 3]) };
        assert_eq!(untried.to_fetch(&three), 1, "it may be in somebody's quarantine");
        let silent = Copies { silent: HashSet::from([NodeId(3)]), ..lacking(&[1, 2]) };
        assert_eq!(silent.to_fetch(&three), 1, "the one that is silent may have it");
        let cut = Copies { cut: true, ..lacking(&[1, 2, 3]) };
        assert_eq!(cut.to_fetch(&three), 1, "there is more that was not listed");
        // A server without others to ask never asks.
        let alone = Copies { untried: HashSet::from([id]), ..lacking(&[1]) };
        assert_eq!(alone.to_fetch(&view(&[1])), 0);
    }

    #[test]
    fn a_server_without_groups_is_not_relied_on() {
        let mut view = view(&[1, 2, 3]);
        assert!(is_relied_on(&view, NodeId(1)) && !is_relied_on(&view, NodeId(4)));
        view.table.leaving = vec![(ChunkId::of(b"x").pg(), vec![NodeId(4)])];
        assert!(is_relied_on(&view, NodeId(4)), "it still has what moves away from it");
    }
}
