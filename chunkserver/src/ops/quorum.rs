//! When a put is durable enough: pure.
//!
//! Two of three members must have it on disk. Where the members of a group are in several zones,
//! those two must be in two of them, as long as a member of another zone may still answer soon:
//! a put is not refused, and not held up for long, because a zone is away
//! (docs/decisions/0007-zones-in-the-quorum.md).

use std::collections::{BTreeMap, BTreeSet};

use atoll_proto::cluster::ClusterView;
use atoll_proto::{ChunkId, NodeId, PgId};

/// How far each placement group of a put is. All chunks of a group have the same members, and a
/// member answers for all of its chunks at once.
#[derive(Debug)]
pub(super) struct Quorum(Vec<Need>);

#[derive(Debug)]
struct Need {
    needed: usize,
    seats: Vec<Seat>,
}

/// A member of a group.
#[derive(Debug)]
struct Seat {
    node: NodeId,
    /// `None` if the member is not known.
    zone: Option<String>,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nothing was heard of it yet.
    Open,
    /// The same, and it is not waited for unless it must be.
    Doubted,
    /// It has the chunks on disk.
    Durable,
    Failed,
}

impl Quorum {
    /// For these chunks, with every member still to be heard from; those in `doubted` failed a
    /// moment ago, or are silent or down.
    pub(super) fn new<'a>(
        view: &ClusterView,
        ids: impl IntoIterator<Item = &'a ChunkId>,
        doubted: &BTreeSet<NodeId>,
    ) -> Self {
        let groups: BTreeSet<PgId> = ids.into_iter().map(ChunkId::pg).collect();
        let mut zones: BTreeMap<NodeId, Option<String>> = BTreeMap::new();
        let mut seat = |node: NodeId| {
            let zone = zones
                .entry(node)
                .or_insert_with(|| view.node(node).map(|node| node.info.zone.clone()));
            let state = if doubted.contains(&node) { State::Doubted } else { State::Open };
            Seat { node, zone: zone.clone(), state }
        };
        let mut need = |pg: PgId| Need {
            needed: view.table.durable_quorum(pg),
            seats: view.table.of(pg).iter().map(|node| seat(*node)).collect(),
        };
        Self(groups.into_iter().map(&mut need).collect())
    }

    /// A member has its chunks on disk, or failed to.
    pub(super) fn heard(&mut self, member: NodeId, durable: bool) {
        self.set(member, if durable { State::Durable } else { State::Failed });
    }

    /// A member has been silent for so long that nobody waits for it who need not.
    pub(super) fn doubt(&mut self, member: NodeId) {
        self.set(member, State::Doubted);
    }

    fn set(&mut self, member: NodeId, state: State) {
        let seats = self.0.iter_mut().flat_map(|need| &mut need.seats);
        seats.filter(|seat| seat.node == member).for_each(|seat| seat.state = state);
    }

    /// Enough members have every chunk.
    pub(super) fn met(&self) -> bool {
        self.0.iter().all(Need::is_met)
    }

    /// Some chunk cannot reach its quorum any more.
    pub(super) fn hopeless(&self) -> bool {
        self.0.iter().any(|need| {
            let may = |seat: &&Seat| seat.state != State::Failed;
            need.seats.iter().filter(may).count() < need.needed
        })
    }
}

impl Need {
    fn is_met(&self) -> bool {
        let durable: Vec<&Seat> =
            self.seats.iter().filter(|seat| seat.state == State::Durable).collect();
        if durable.len() < self.needed {
            return false;
        }
        let zones: BTreeSet<&Option<String>> = durable.iter().map(|seat| &seat.zone).collect();
        let more = |seat: &Seat| seat.state == State::Open && !zones.contains(&seat.zone);
        self.needed < 2 || zones.len() >= 2 || !self.seats.iter().any(more)
    }
}

#[cfg(test)]
mod tests {
    use atoll_proto::cluster::{Duty, NodeInfo, NodeKind, NodeState, NodeView, PgTable};
    use atoll_proto::{ClusterId, Epoch, limits};
    use proptest::prelude::*;

    use super::*;

    /// One member per zone named, all members of every group.
    fn view(zones: &[&str]) -> ClusterView {
        let node = |(id, zone): (u64, &&str)| NodeView {
            info: NodeInfo {
                id: NodeId(id),
                name: format!("chunkserver-{id}"),
                kind: NodeKind::Chunkserver,
                addr: ([127, 0, 0, 1], 1).into(),
                zone: (*zone).to_owned(),
                region: String::new(),
                weight: 1,
                edge: None,
            },
            state: NodeState::Up,
            ready: true,
            duty: Duty::Active,
        };
        let nodes: Vec<NodeView> = (1..).zip(zones).map(node).collect();
        let mut table = PgTable { epoch: Epoch(1), ..PgTable::empty() };
        let ids: Vec<NodeId> = nodes.iter().map(|node| node.info.id).collect();
        table.members.iter_mut().for_each(|group| group.clone_from(&ids));
        ClusterView {
            cluster: ClusterId([1; 16]),
            index: 1,
            chunk_bytes: limits::CHUNK_BYTES,
            nodes,
            table,
            zone: None,
            url_template: None,
        }
    }

    fn quorum(zones: &[&str], doubted: &[u64]) -> Quorum {
        let doubted = doubted.iter().copied().map(NodeId).collect();
        Quorum::new(&view(zones), &[ChunkId([1; 32]), ChunkId([2; 32])], &doubted)
    }

    #[test]
    fn two_of_three_are_enough_and_one_is_not() {
        let mut quorum = quorum(&["a", "b", "c"], &[]);
        quorum.heard(NodeId(1), true);
        assert!(!quorum.met() && !quorum.hopeless());
        quorum.heard(NodeId(2), false);
        assert!(!quorum.met() && !quorum.hopeless());
        quorum.heard(NodeId(3), true);
        assert!(quorum.met());
    }

    #[test]
    fn two_failures_of_three_are_hopeless() {
        let mut quorum = quorum(&["a", "a", "a"], &[]);
        quorum.heard(NodeId(1), false);
        assert!(!quorum.hopeless());
        quorum.heard(NodeId(2), false);
        assert!(quorum.hopeless() && !quorum.met());
    }

    #[test]
    fn a_single_server_is_its_own_quorum() {
        let mut quorum = quorum(&["a"], &[]);
        assert!(!quorum.met());
        quorum.heard(NodeId(1), true);
        assert!(quorum.met());
    }

    #[test]
    fn two_zones_are_waited_for_as_long_as_there_is_hope() {
        let one_zone = || {
            let mut quorum = quorum(&["a", "a", "b"], &[]);
            quorum.heard(NodeId(1), true);
            quorum.heard(NodeId(2), true);
            assert!(!quorum.met() && !quorum.hopeless());
            quorum
        };
        let mut stored = one_zone();
        stored.heard(NodeId(3), true);
        assert!(stored.met());
        let mut failed = one_zone();
        failed.heard(NodeId(3), false);
        assert!(failed.met());
        let mut silent = one_zone();
        silent.doubt(NodeId(3));
        assert!(silent.met());
        let mut known = quorum(&["a", "a", "b"], &[3]);
        known.heard(NodeId(1), true);
        assert!(!known.met());
        known.heard(NodeId(2), true);
        assert!(known.met());
    }

    #[test]
    fn a_doubted_member_still_counts_and_is_needed_where_there_is_no_other() {
        let mut quorum = quorum(&["a", "b"], &[2]);
        quorum.heard(NodeId(1), true);
        assert!(!quorum.met() && !quorum.hopeless());
        quorum.heard(NodeId(2), true);
        assert!(quorum.met());
    }

    proptest! {
        /// Whatever is heard: never met with fewer than two copies, nor in one zone while an
        /// open member is in another; and once everybody was heard it is met or hopeless.
        #[test]
        fn the_rule_holds_for_everything_that_can_be_heard(
            zones in prop::collection::vec(prop::sample::select(vec!["a", "b", "c"]), 2..5),
            heard in prop::collection::vec((1..5u64, any::<bool>()), 0..8),
            all: bool,
        ) {
            let mut quorum = quorum(&zones, &[]);
            let mut state = BTreeMap::new();
            for (member, durable) in heard {
                if member <= zones.len() as u64 && !state.contains_key(&member) {
                    quorum.heard(NodeId(member), durable);
                    state.insert(member, durable);
                }
            }
            if all {
                for member in 1..=zones.len() as u64 {
                    state.entry(member).or_insert_with(|| {
                        quorum.heard(NodeId(member), true);
                        true
                    });
                }
            }
            let zone = |member: u64| zones[member as usize - 1];
            let durable: Vec<u64> = state.iter().filter(|(_, it)| **it).map(|(m, _)| *m).collect();
            let in_zones: BTreeSet<&str> = durable.iter().map(|member| zone(*member)).collect();
            let open: Vec<u64> =
                (1..=zones.len() as u64).filter(|member| !state.contains_key(member)).collect();
            let elsewhere = open.iter().any(|member| !in_zones.contains(zone(*member)));
            let expected = durable.len() >= 2 && (in_zones.len() >= 2 || !elsewhere);
            prop_assert_eq!(quorum.met(), expected);
            prop_assert!(!open.is_empty() || quorum.met() || quorum.hopeless());
        }
    }
}
