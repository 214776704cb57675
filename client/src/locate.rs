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

/// Everybody who may have a group's chunks, in the order a read should try them: own zone first;
/// within that the less loaded of two drawn by chance comes first ("power of two choices",
/// Mitzenmacher 2001). Members that are still filling come after those that surely have everything
/// (the old members of a moving group among these), for they may answer that a chunk is not there;
/// those that are down or failed lately come last.
pub fn read_order(
    view: &ClusterView,
    pg: PgId,
    zone: Option<&str>,
    load: &impl Load,
    random: u64,
) -> Vec<Replica> {
    let filling = view.table.filling(pg);
    let mut readers: Vec<((bool, bool, bool), Replica)> = view
        .table
        .readers(pg)
        .filter_map(|id| view.node(id))
        .map(|node| {
            let id = node.info.id;
            let away = zone.is_some_and(|zone| zone != node.info.zone);
            let bad = node.state == NodeState::Down || load.suspect(id);
            ((bad, filling.contains(&id), away), Replica { node: id, addr: node.info.addr })
        })
        .collect();
    if !readers.is_empty() {
        let turn = usize::try_from(random % readers.len() as u64).unwrap_or(0);
        readers.rotate_left(turn);
    }
    readers.sort_by_key(|(rank, _)| *rank);
    let equal = readers.len() > 1 && readers[0].0 == readers[1].0;
    if equal && load.in_flight(readers[1].1.node) < load.in_flight(readers[0].1.node) {
        readers.swap(0, 1);
    }
    readers.into_iter().map(|(_, replica)| replica).collect()
}

/// The members of a group in the order a write should try them as head: the table's order, with
/// those that are down or failed lately last. Old members of a moving group are not written to.
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

    fn moving() -> ClusterView {
        let mut view = view();
        let mut four = view.nodes[0].clone();
        four.info.id = NodeId(4);
        four.info.addr.set_port(7004);
        view.nodes.push(four);
        // Member 3 is leaving, and member 4, in the reader's zone, takes its place.
        view.table.members[0] = vec![NodeId(1), NodeId(2), NodeId(4)];
        view.table.leaving = vec![(PgId(0), vec![NodeId(3)])];
        view
    }

    #[test]
    fn a_moving_group_is_read_where_its_chunks_surely_are() {
        let idle = Fixed { busy: vec![], suspect: None };
        for random in 0..8 {
            let order = read_order(&moving(), PgId(0), Some("z1"), &idle, random);
            let order: Vec<u64> = order.iter().map(|replica| replica.node.0).collect();
            assert_eq!((order[0], order[3]), (1, 4), "{order:?}");
            let far = read_order(&moving(), PgId(0), Some("z2"), &idle, random);
            assert!([2, 3].contains(&far[0].node.0) && far[3].node == NodeId(4));
            // Better one that may not have it than one that does not answer.
            let bad = Fixed { busy: vec![], suspect: Some(3) };
            let order = read_order(&moving(), PgId(0), None, &bad, random);
            assert_eq!((order[2].node, order[3].node), (NodeId(4), NodeId(3)));
            let writes = write_order(&moving(), PgId(0), &idle);
            assert!(writes.iter().all(|replica| replica.node != NodeId(3)));
        }
        let mut down = moving();
        down.nodes[0].state = NodeState::Down;
        assert_eq!(read_order(&down, PgId(0), None, &idle, 3)[3].node, NodeId(1));
    }

    #[test]
    fn an_unplaced_group_has_no_replicas() {
        let idle = Fixed { busy: vec![], suspect: None };
        assert!(read_order(&view(), PgId(1), None, &idle, 7).is_empty());
    }
}
