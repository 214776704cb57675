//! Duties and moves at the state machine: what each does, and what it refuses at every
//! interleaving.

#![allow(clippy::unwrap_used, reason = "tests")]

use atoll_proto::cluster::{Duty, EdgeInfo, NodeInfo, NodeKind, PgTable};
use atoll_proto::ids::PG_COUNT;
use atoll_proto::master::{Changed, NodeOp};
use atoll_proto::{Code, Epoch, NodeId, PgId, WireError};

use super::tests::Machine;
use crate::operation::{LoggedChange, Operation, Outcome};
use crate::store::duties::{self, DutyRecord};
use crate::store::{groups, leaving, nodes};

const PG: PgId = PgId(5);

fn ids(members: &[u64]) -> Vec<NodeId> {
    members.iter().copied().map(NodeId).collect()
}

fn info(id: u64, name: &str) -> NodeInfo {
    NodeInfo {
        id: NodeId(id),
        name: name.into(),
        kind: NodeKind::Chunkserver,
        addr: ([127, 0, 0, 1], 9).into(),
        zone: "z".into(),
        region: "r".into(),
        weight: 1,
        edge: None,
    }
}

/// Chunkservers 1 to 6, edge 101, and group 5 on 1, 2 and 3, at epoch 1.
struct Cluster(Machine);

impl Cluster {
    fn new() -> Cluster {
        let mut cluster = Cluster(Machine::new());
        for id in 1..=6 {
            cluster.register(info(id, &format!("c{id}"))).unwrap();
        }
        let edge = EdgeInfo {
            serves: true,
            shield: false,
            dns: false,
            public: vec![],
            http_port: 1,
            https_port: 2,
        };
        let kind = NodeKind::Edge;
        cluster.register(NodeInfo { kind, edge: Some(edge), ..info(101, "e1") }).unwrap();
        cluster.moves(&[], &[(PG, &[1, 2, 3])]).unwrap();
        assert_eq!(cluster.table().epoch, Epoch(1));
        cluster
    }

    fn register(&mut self, info: NodeInfo) -> Result<Outcome, WireError> {
        self.0.apply(&[Operation::RegisterNode(info)]).remove(0)
    }

    fn node(&mut self, op: NodeOp) -> Result<(), WireError> {
        let reply = self.0.change(LoggedChange::Node(op))?;
        assert_eq!(reply, Changed::Node);
        Ok(())
    }

    fn drain(&mut self, id: u64) -> Result<(), WireError> {
        self.node(NodeOp::Drain { node: NodeId(id) })
    }

    fn lose(&mut self, id: u64) -> Result<(), WireError> {
        self.node(NodeOp::Lose { node: NodeId(id) })
    }

    fn remove(&mut self, id: u64) -> Result<(), WireError> {
        self.node(NodeOp::Remove { node: NodeId(id) })
    }

    fn moves(
        &mut self,
        finished: &[(PgId, &[u64])],
        moved: &[(PgId, &[u64])],
    ) -> Result<(), WireError> {
        let base = self.table().epoch;
        self.moves_from(base, finished, moved)
    }

    fn moves_from(
        &mut self,
        base: Epoch,
        finished: &[(PgId, &[u64])],
        moved: &[(PgId, &[u64])],
    ) -> Result<(), WireError> {
        let list = |groups: &[(PgId, &[u64])]| {
            groups.iter().map(|(pg, members)| (*pg, ids(members))).collect()
        };
        let (finished, moved) = (list(finished), list(moved));
        let before = self.table();
        let result = self.0.apply(&[Operation::MoveGroups { base, finished, moved }]).remove(0);
        if result.is_err() {
            assert_eq!(self.table(), before, "what is refused changes nothing");
        }
        result.map(|outcome| assert_eq!(outcome, Outcome::Done))
    }

    fn table(&self) -> PgTable {
        groups::table(&self.0.store.rocks).unwrap()
    }

    fn duty(&self, id: u64) -> Duty {
        duties::duty(&self.0.store.rocks, NodeId(id)).unwrap()
    }

    fn assert_group(&self, members: &[u64], old: &[u64]) {
        let table = self.table();
        assert_eq!((table.of(PG), table.leaving(PG)), (&ids(members)[..], &ids(old)[..]));
    }
}

fn says(result: Result<(), WireError>, code: Code, words: &str) {
    let error = result.unwrap_err();
    assert_eq!(error.code, code, "{error}");
    assert!(error.message.contains(words), "{error}");
}

#[test]
fn a_node_drains_moves_and_is_removed_for_ever() {
    let mut cluster = Cluster::new();
    cluster.drain(3).unwrap();
    cluster.drain(3).unwrap();
    assert_eq!(cluster.duty(3), Duty::Draining);
    says(cluster.remove(3), Code::Conflict, "keeps 1 placement groups");
    cluster.moves(&[], &[(PG, &[1, 2, 4])]).unwrap();
    cluster.assert_group(&[1, 2, 4], &[3]);
    assert_eq!(cluster.table().epoch, Epoch(2));
    says(cluster.remove(3), Code::Conflict, "still being filled");
    let abandon = NodeOp::RemoveGone { node: NodeId(3) };
    says(cluster.node(abandon), Code::Conflict, "still being filled");
    cluster.moves(&[(PG, &[4, 1, 2])], &[]).unwrap();
    cluster.assert_group(&[4, 1, 2], &[]);
    cluster.remove(3).unwrap();

    assert!(nodes::get(&cluster.0.store.rocks, NodeId(3)).unwrap().is_none());
    says(cluster.remove(3), Code::NotFound, "removed before");
    says(cluster.drain(3), Code::NotFound, "removed before");
    let again = cluster.register(info(3, "c3")).unwrap_err();
    assert!(again.code == Code::Exists && again.message.contains("never used again"), "{again}");
    // The name is free; the number is not.
    cluster.register(info(7, "c3")).unwrap();
    assert_eq!(cluster.duty(7), Duty::Active);
}

#[test]
fn only_chunkservers_that_there_are_have_duties() {
    let mut cluster = Cluster::new();
    for op in [
        |node| NodeOp::Drain { node },
        |node| NodeOp::Undrain { node },
        |node| NodeOp::Lose { node },
    ] {
        says(cluster.node(op(NodeId(99))), Code::NotFound, "there is no node 99");
    }
    says(cluster.node(NodeOp::Lose { node: NodeId(101) }), Code::Invalid, "e1 is an edge");
    // Name servers send no visitors to an edge that is draining.
    cluster.drain(101).unwrap();
    assert_eq!(cluster.duty(101), Duty::Draining);
    cluster.node(NodeOp::Undrain { node: NodeId(101) }).unwrap();
    assert_eq!(cluster.duty(101), Duty::Active);
    cluster.drain(101).unwrap();
    says(cluster.remove(99), Code::NotFound, "there is no node 99");
    // Whether an edge may be forgotten is for the leader to know.
    cluster.remove(101).unwrap();
    says(cluster.remove(101), Code::NotFound, "removed before");
    says(cluster.remove(1), Code::Conflict, "atoll node drain c1");
    // An active server without groups may go at once.
    cluster.remove(6).unwrap();
}

#[test]
fn duties_go_back_and_forth() {
    let mut cluster = Cluster::new();
    cluster.drain(1).unwrap();
    cluster.node(NodeOp::Undrain { node: NodeId(1) }).unwrap();
    assert_eq!(duties::get(&cluster.0.store.rocks, NodeId(1)).unwrap(), None);
    cluster.lose(1).unwrap();
    says(cluster.drain(1), Code::Conflict, "declared lost");
    cluster.lose(1).unwrap();
    cluster.node(NodeOp::Undrain { node: NodeId(1) }).unwrap();
    assert_eq!(cluster.duty(1), Duty::Active);
}

#[test]
fn silence_changes_a_duty_only_while_it_is_what_the_leader_saw() {
    let mut cluster = Cluster::new();
    let set = |cluster: &mut Cluster, id, from, to| {
        let node = NodeId(id);
        cluster.0.apply(&[Operation::SetDuty { node, from, to }]).remove(0)
    };
    cluster.drain(2).unwrap();
    assert!(set(&mut cluster, 2, Duty::Active, Duty::Gone).is_err(), "drained meanwhile");
    set(&mut cluster, 2, Duty::Draining, Duty::Gone).unwrap();
    let record = duties::get(&cluster.0.store.rocks, NodeId(2)).unwrap().unwrap();
    assert_eq!(record.returns_to(), Some(Duty::Draining));
    // An operator gives it up for good before it comes back.
    cluster.lose(2).unwrap();
    let record = duties::get(&cluster.0.store.rocks, NodeId(2)).unwrap().unwrap();
    assert_eq!((record.duty(), record.returns_to()), (Duty::Gone, None));
    set(&mut cluster, 4, Duty::Active, Duty::Gone).unwrap();
    set(&mut cluster, 4, Duty::Gone, Duty::Active).unwrap();
    assert_eq!(duties::get(&cluster.0.store.rocks, NodeId(4)).unwrap(), None);
    assert!(set(&mut cluster, 101, Duty::Active, Duty::Gone).is_err());
    cluster.remove(6).unwrap();
    assert!(set(&mut cluster, 6, Duty::Gone, Duty::Active).is_err());
    let record = duties::get(&cluster.0.store.rocks, NodeId(6)).unwrap();
    assert!(matches!(record, Some(DutyRecord::Removed { .. })));
}

#[test]
fn a_group_never_loses_all_it_had_at_once() {
    let mut cluster = Cluster::new();
    cluster.lose(1).unwrap();
    cluster.lose(2).unwrap();
    says(cluster.moves(&[], &[(PG, &[4, 5, 6])]), Code::Invalid, "lose all");
    cluster.lose(3).unwrap();
    {
        // An operator gave up all of them: the group can be written again, and is read from them
        // should one come back.
        let mut cluster = Cluster::new();
        (1..=3).for_each(|id| cluster.lose(id).unwrap());
        cluster.moves(&[], &[(PG, &[4, 5, 6])]).unwrap();
        cluster.assert_group(&[4, 5, 6], &[1, 2, 3]);
    }
    cluster.moves(&[], &[(PG, &[1, 4, 5])]).unwrap();
    cluster.assert_group(&[1, 4, 5], &[2, 3]);
    // The last of them is lost too, before the others were filled: it stays to be read from.
    cluster.moves(&[], &[(PG, &[4, 5, 6])]).unwrap();
    cluster.assert_group(&[4, 5, 6], &[2, 3, 1]);
    let since = leaving::get(&cluster.0.store.rocks, PG).unwrap().unwrap().since;
    // It comes back, and is taken in again in place of another.
    cluster.node(NodeOp::Undrain { node: NodeId(1) }).unwrap();
    cluster.lose(6).unwrap();
    cluster.moves(&[], &[(PG, &[4, 5, 1])]).unwrap();
    cluster.assert_group(&[4, 5, 1], &[2, 3, 6]);
    assert!(leaving::get(&cluster.0.store.rocks, PG).unwrap().unwrap().since > since);
    // Those that are given up for good no longer count once an operator says so.
    says(cluster.remove(2), Code::Conflict, "still being filled");
    let epoch = cluster.table().epoch;
    cluster.node(NodeOp::RemoveGone { node: NodeId(2) }).unwrap();
    cluster.assert_group(&[4, 5, 1], &[3, 6]);
    assert!(cluster.table().epoch > epoch);
}

#[test]
fn a_group_moves_once_at_a_time() {
    let mut cluster = Cluster::new();
    cluster.drain(2).unwrap();
    cluster.drain(3).unwrap();
    cluster.moves(&[], &[(PG, &[1, 2, 4])]).unwrap();
    says(cluster.moves(&[], &[(PG, &[1, 4, 5])]), Code::Invalid, "moves already");
    // A member that is lost meanwhile cannot wait.
    cluster.lose(2).unwrap();
    cluster.moves(&[], &[(PG, &[1, 4, 5])]).unwrap();
    cluster.assert_group(&[1, 4, 5], &[3, 2]);
    // Finishing names the members that were waited for.
    says(cluster.moves(&[(PG, &[1, 2, 4])], &[]), Code::Invalid, "other members");
    says(cluster.moves(&[(PgId(6), &[])], &[]), Code::Invalid, "does not move");
    cluster.moves(&[(PG, &[5, 4, 1])], &[]).unwrap();
    cluster.assert_group(&[5, 4, 1], &[]);
    says(cluster.moves(&[(PG, &[5, 4, 1])], &[]), Code::Invalid, "does not move");
}

#[test]
fn what_makes_no_sense_is_refused_whole() {
    let mut cluster = Cluster::new();
    let other = PgId(9);
    let refuse = |cluster: &mut Cluster, members: &[u64], code, words| {
        // A good change beside it is not made either.
        says(cluster.moves(&[], &[(other, &[1, 2]), (PG, members)]), code, words);
    };
    refuse(&mut cluster, &[1, 2, 2], Code::Invalid, "twice");
    refuse(&mut cluster, &[1, 2], Code::Invalid, "fewer");
    refuse(&mut cluster, &[], Code::Invalid, "too few");
    refuse(&mut cluster, &[1, 2, 3, 4], Code::Invalid, "too many");
    refuse(&mut cluster, &[4, 1, 2], Code::Invalid, "read first");
    refuse(&mut cluster, &[2, 1, 4], Code::Invalid, "read first");
    refuse(&mut cluster, &[1, 2, 99], Code::NotFound, "not registered");
    refuse(&mut cluster, &[1, 2, 101], Code::Invalid, "cannot go to e1");
    cluster.drain(4).unwrap();
    refuse(&mut cluster, &[1, 2, 4], Code::Invalid, "cannot go to c4");
    cluster.lose(4).unwrap();
    refuse(&mut cluster, &[1, 2, 4], Code::Invalid, "cannot go to c4");
    says(cluster.moves(&[(PG, &[1, 2, 3])], &[(PG, &[1, 2, 5])]), Code::Invalid, "named twice");
    says(cluster.moves(&[], &[(PgId(PG_COUNT), &[1])]), Code::Invalid, "is none");
    // Worked out from a table that changed meanwhile.
    let base = cluster.table().epoch;
    cluster.moves(&[], &[(other, &[1, 2])]).unwrap();
    says(cluster.moves_from(base, &[], &[(PG, &[1, 2, 5])]), Code::StaleEpoch, "at epoch 2");
    // Nothing at all is no new epoch.
    let epoch = cluster.table().epoch;
    cluster.moves(&[], &[]).unwrap();
    assert_eq!(cluster.table().epoch, epoch);
    // A group that is short gets more, whether it moves or not, and nobody leaves for that.
    cluster.moves(&[], &[(other, &[1, 2, 5])]).unwrap();
    assert_eq!(cluster.table().leaving(other), []);
}
