//! Which replica to ask, and in which order. Pure: views and random numbers are arguments.

use std::net::SocketAddr;

use atoll_proto::NodeId;
use atoll_proto::cluster::{ClusterView, NodeState};
use atoll_proto::ids::PgId;

/// A member of a placement group and how to reach it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Replica {
    /// Which node.
    pub node: NodeId,
    /// Where it listens.
    pub addr: SocketAddr,
}

/// What a client knows about the nodes beside the view.
pub trait Load {
    /// Requests of ours that this node has not answered yet.
    fn in_flight(&self, node: NodeId) -> u64;
    /// Whether it failed lately.
    fn suspect(&self, node: NodeId) -> bool;
}

/// The members of a group in the order a read should try them: own zone first; within that the
/// less loaded of two drawn by chance comes first ("power of two choices", Mitzenmacher 2001);
/// those that are down or failed lately come last.
pub fn read_order(
    view: &ClusterView,
    pg: PgId,
    zone: Option<&str>,
    load: &impl Load,
    random: u64,
) -> Vec<Replica> {
    let mut members: Vec<(bool, bool, Replica)> = view
        .table
        .of(pg)
        .iter()
        .filter_map(|id| view.node(*id))
        .map(|node| {
            let away = zone.is_some_and(|zone| zone != node.info.zone);
            let bad = node.state == NodeState::Down || load.suspect(node.info.id);
            (bad, away, Replica { node: node.info.id, addr: node.info.addr })
        })
        .collect();
    if !members.is_empty() {
        let turn = usize::try_from(random % members.len() as u64).unwrap_or(0);
        members.rotate_left(turn);
    }
    members.sort_by_key(|(bad, away, _)| (*bad, *away));
    let equal = members.len() > 1 && (members[0].0, members[0].1) == (members[1].0, members[1].1);
    if equal && load.in_flight(members[1].2.node) < load.in_flight(members[0].2.node) {
        members.swap(0, 1);
    }
    members.into_iter().map(|(_, _, replica)| replica).collect()
}

/// The members of a group in the order a write should try them as head: the table's order, with
/// those that are down or failed lately last.
pub fn write_order(view: &ClusterView, pg: PgId, load: &impl Load) -> Vec<Replica> {
    let mut members: Vec<(bool, Replica)> = view
        .table
        .of(pg)
        .iter()
        .filter_map(|id| view.node(*id))
        .map(|node| {
            let bad = node.state == NodeState::Down || load.suspect(node.info.id);
            (bad, Replica { node: node.info.id, addr: node.info.addr })
        })
        .collect();
    members.sort_by_key(|(bad, _)| *bad);
    members.into_iter().map(|(_, replica)| replica).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use atoll_proto::cluster::{NodeInfo, NodeKind, NodeView, PgTable};
    use atoll_proto::{ClusterId, Epoch};

    use super::*;

    struct Fixed {
        busy: Vec<u64>,
        suspect: Option<u64>,
    }

    impl Load for Fixed {
        fn in_flight(&self, node: NodeId) -> u64 {
            self.busy.get(usize::try_from(node.0).unwrap()).copied().unwrap_or(0)
        }
        fn suspect(&self, node: NodeId) -> bool {
            self.suspect == Some(node.0)
        }
    }

    fn view() -> ClusterView {
        let node = |id: u64, zone: &str| NodeView {
            info: NodeInfo {
                id: NodeId(id),
                name: format!("chunkserver-{id}"),
                kind: NodeKind::Chunkserver,
                addr: format!("127.0.0.1:{}", 7000 + id).parse().unwrap(),
                zone: zone.to_owned(),
                region: "r".to_owned(),
                weight: 1,
                edge: None,
            },
            state: NodeState::Up,
            ready: true,
            duty: atoll_proto::cluster::Duty::Active,
        };
        let mut table = PgTable::empty();
        table.epoch = Epoch(1);
        table.members[0] = vec![NodeId(1), NodeId(2), NodeId(3)];
        ClusterView {
            cluster: ClusterId([0; 16]),
            index: 1,
            chunk_bytes: 1 << 20,
            nodes: vec![node(1, "z1"), node(2, "z2"), node(3, "z2")],
            table,
            zone: None,
            url_template: None,
        }
    }

    #[test]
    fn own_zone_comes_first_and_the_suspect_last() {
        let idle = Fixed { busy: vec![], suspect: None };
        for random in 0..6 {
            let order = read_order(&view(), PgId(0), Some("z1"), &idle, random);
            assert_eq!(order[0].node, NodeId(1));
            assert_eq!(order.len(), 3);
        }
        let bad = Fixed { busy: vec![], suspect: Some(1) };
        for random in 0..6 {
            let order = read_order(&view(), PgId(0), Some("z1"), &bad, random);
            assert_eq!(order[2].node, NodeId(1));
            assert_eq!(write_order(&view(), PgId(0), &bad)[0].node, NodeId(2));
        }
    }

    #[test]
    fn the_busier_of_two_is_passed_over() {
        let busy = Fixed { busy: vec![0, 0, 9, 0], suspect: None };
        for random in 0..6 {
            assert_eq!(read_order(&view(), PgId(0), Some("z2"), &busy, random)[0].node, NodeId(3));
        }
    }

    #[test]
    fn an_unplaced_group_has_no_replicas() {
        let idle = Fixed { busy: vec![], suspect: None };
        assert!(read_order(&view(), PgId(1), None, &idle, 7).is_empty());
    }
}
