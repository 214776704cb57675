//! Plans on random clusters: how much moves, where it ends, what it never does.

#![allow(clippy::unwrap_used, reason = "tests")]

use atoll_proto::ids::PG_COUNT;
use proptest::prelude::*;

use super::super::deal;
use super::*;

const REPLICAS: usize = 3;

fn server(id: u64, zone: u64, weight: u32) -> Server {
    let candidate = Candidate { id: NodeId(id), zone: format!("z{zone}"), weight };
    Server { candidate, duty: Duty::Active, up: true, full: false, given_up: false }
}

fn servers(zones: &[u64]) -> Vec<Server> {
    zones.iter().zip(1..).map(|(zone, id)| server(id, *zone, 100)).collect()
}

/// A table and what changes it, as the state machine does.
struct Cluster {
    table: PgTable,
    servers: Vec<Server>,
    ideals: Ideals,
    /// Members that entered, in all.
    entered: usize,
    /// The same by the group they entered.
    touched: HashSet<PgId>,
    slow: HashSet<PgId>,
}

impl Cluster {
    fn dealt(servers: Vec<Server>) -> Cluster {
        let mut table = PgTable::empty();
        let candidates: Vec<Candidate> = servers.iter().map(|it| it.candidate.clone()).collect();
        for (pg, members) in deal(&table, &candidates, REPLICAS) {
            table.members[usize::from(pg.0)] = members;
        }
        let (touched, slow) = (HashSet::new(), HashSet::new());
        Cluster { table, servers, ideals: Ideals::default(), entered: 0, touched, slow }
    }

    fn plan(&mut self) -> Plan {
        self.ideals.refresh(&self.servers, PG_COUNT, REPLICAS);
        plan(&self.table, &self.servers, &self.ideals, REPLICAS, &self.slow)
    }

    fn duty(&self, id: NodeId) -> Duty {
        self.servers.iter().find(|server| server.candidate.id == id).unwrap().duty
    }

    /// As `ops::move_groups` does, with its conditions as assertions.
    fn apply(&mut self, plan: &Plan) {
        for (pg, members) in &plan.moved {
            let before = self.table.of(*pg).to_vec();
            let kept: Vec<NodeId> =
                before.iter().copied().filter(|id| members.contains(id)).collect();
            assert!(members.starts_with(&kept), "{before:?} {members:?}");
            let given_up = |id: &NodeId| {
                self.servers.iter().any(|server| server.candidate.id == *id && server.given_up)
            };
            assert!(!kept.is_empty() || before.iter().all(given_up), "{before:?} {members:?}");
            assert!((before.len()..=REPLICAS).contains(&members.len()), "{before:?} {members:?}");
            let distinct: HashSet<_> = members.iter().collect();
            assert_eq!(distinct.len(), members.len());
            let was_moving = self.table.is_moving(*pg);
            let mut old = self.table.leaving(*pg).to_vec();
            for id in before.iter().filter(|id| !members.contains(id)) {
                assert!(!was_moving || self.duty(*id) == Duty::Gone, "moved twice at once");
                old.push(*id);
            }
            for id in members.iter().filter(|id| !before.contains(id)) {
                assert_eq!(self.duty(*id), Duty::Active);
                self.entered += 1;
                self.touched.insert(*pg);
            }
            old.retain(|id| !members.contains(id));
            self.table.leaving.retain(|(moving, _)| moving != pg);
            if !old.is_empty() {
                self.table.leaving.push((*pg, old));
            }
            self.table.members[usize::from(pg.0)] = members.clone();
        }
        self.table.leaving.sort();
    }

    /// Applies plans until nothing changes; every move finishes between two plans.
    fn settle(&mut self) {
        for _ in 0..1000 {
            self.table.leaving.clear();
            let plan = self.plan();
            if plan.moved.is_empty() {
                return;
            }
            self.apply(&plan);
            assert!(self.table.leaving.len() <= REPAIR_MAX);
        }
        panic!("the plan never ends");
    }

    fn groups_of(&self, id: u64) -> usize {
        self.table.groups_of(NodeId(id)).0
    }

    fn set(&mut self, id: u64, duty: Duty) {
        let found = self.servers.iter_mut().find(|server| server.candidate.id == NodeId(id));
        let server = found.unwrap();
        server.duty = duty;
        server.up = duty != Duty::Gone;
    }

    fn assert_spread(&self) {
        let active: Vec<&Server> =
            self.servers.iter().filter(|server| server.duty == Duty::Active).collect();
        let zones: HashSet<&str> =
            active.iter().map(|server| server.candidate.zone.as_str()).collect();
        for members in &self.table.members {
            let used: HashSet<&str> = active
                .iter()
                .filter(|server| members.contains(&server.candidate.id))
                .map(|server| server.candidate.zone.as_str())
                .collect();
            assert_eq!(used.len(), zones.len().min(REPLICAS), "{members:?}");
        }
    }
}

#[test]
fn draining_one_of_four_moves_its_groups_only() {
    for zones in [[1, 2, 3, 4], [1, 2, 3, 1], [1, 1, 2, 2], [1, 1, 1, 1]] {
        let mut cluster = Cluster::dealt(servers(&zones));
        let had = cluster.groups_of(2);
        assert!(had > 0);
        cluster.set(2, Duty::Draining);
        cluster.settle();
        assert_eq!(cluster.groups_of(2), 0, "{zones:?}");
        assert!(cluster.entered >= had);
        assert!(cluster.entered * 10 <= had * 11, "{} moved for {had}", cluster.entered);
        assert!(cluster.table.members.iter().all(|members| members.len() == REPLICAS));
        cluster.assert_spread();
    }
}

#[test]
fn a_server_that_joins_gets_its_share_and_no_more_moves() {
    let mut cluster = Cluster::dealt(servers(&[1, 2, 3]));
    assert_eq!(cluster.plan().moved, vec![]);
    cluster.servers.push(server(4, 4, 100));
    let first = cluster.plan();
    assert_eq!(first.moved.len(), REBALANCE_MAX);
    cluster.settle();
    let share = cluster.groups_of(4) as f64 / f64::from(PG_COUNT);
    assert!((0.72..0.78).contains(&share), "{share}");
    assert_eq!(cluster.entered, cluster.groups_of(4));
    cluster.assert_spread();
    // A smaller one beside others of its zone gets less than they have.
    let mut cluster = Cluster::dealt(servers(&[1, 1, 2, 2, 3, 3]));
    cluster.servers.push(server(7, 1, 50));
    cluster.settle();
    let share = cluster.groups_of(7) as f64 / cluster.groups_of(1) as f64;
    assert!((0.3..0.8).contains(&share), "{share}");
    cluster.assert_spread();
}

#[test]
fn what_is_gone_is_replaced_first_and_beside_a_move() {
    let mut cluster = Cluster::dealt(servers(&[1, 2, 3, 4, 5]));
    cluster.set(1, Duty::Draining);
    let plan = cluster.plan();
    assert_eq!(plan.moved.len(), DRAIN_MAX);
    cluster.apply(&plan);
    assert_eq!(cluster.plan().moved, vec![], "as many drain as may at a time");
    // A member of some of those under way, and of others, is lost.
    cluster.set(2, Duty::Gone);
    let plan = cluster.plan();
    let moved: HashSet<PgId> = plan.moved.iter().map(|(pg, _)| *pg).collect();
    let mut beside = 0;
    for (pg, _) in &cluster.table.leaving {
        if cluster.table.of(*pg).contains(&NodeId(2)) {
            assert!(moved.contains(pg), "a lost member cannot wait for the end of the move");
            beside += 1;
        }
    }
    assert!(beside > 0);
    assert_eq!(moved.len() - beside, REPAIR_MAX - DRAIN_MAX);
    cluster.apply(&plan);
    cluster.settle();
    assert_eq!((cluster.groups_of(1), cluster.groups_of(2)), (0, 0));
    assert_eq!(cluster.plan(), Plan::default());
    cluster.assert_spread();
}

#[test]
fn the_group_with_the_fewest_members_left_comes_first() {
    let mut cluster = Cluster::dealt(servers(&[1, 2, 3, 4, 5, 6]));
    cluster.set(1, Duty::Gone);
    cluster.set(2, Duty::Gone);
    let left = |cluster: &Cluster, pg: PgId| {
        cluster.table.of(pg).iter().filter(|id| cluster.duty(**id) != Duty::Gone).count()
    };
    let plan = cluster.plan();
    let order: Vec<usize> = plan.moved.iter().map(|(pg, _)| left(&cluster, *pg)).collect();
    assert!(order.is_sorted() && order[0] == 1, "{order:?}");
    // Both at once: one move.
    assert!(plan.moved[0].1.iter().all(|id| cluster.duty(*id) == Duty::Active));
    cluster.settle();
    assert_eq!(cluster.plan(), Plan::default());
}

#[test]
fn with_too_few_servers_groups_keep_what_they_have() {
    let mut cluster = Cluster::dealt(servers(&[1, 2, 3]));
    for duty in [Duty::Draining, Duty::Gone] {
        cluster.set(2, duty);
        let plan = cluster.plan();
        assert_eq!(plan.moved, vec![]);
        assert_eq!((plan.stuck, plan.lost), (usize::from(PG_COUNT), 0));
    }
    // One more, and they move.
    cluster.servers.push(server(4, 1, 100));
    cluster.settle();
    assert_eq!((cluster.groups_of(2), cluster.groups_of(4)), (0, usize::from(PG_COUNT)));
    // All gone: nothing is given up, but writes get somewhere to go.
    let mut cluster = Cluster::dealt(servers(&[1]));
    cluster.set(1, Duty::Gone);
    cluster.servers.push(server(2, 2, 100));
    let plan = cluster.plan();
    assert_eq!(plan.lost, usize::from(PG_COUNT));
    assert_eq!(plan.moved[0].1, vec![NodeId(1), NodeId(2)]);
    // Given up by an operator: others take over.
    let mut cluster = Cluster::dealt(servers(&[1, 2, 3]));
    for id in 1..=3 {
        cluster.set(id, Duty::Gone);
        cluster.servers.push(server(id + 3, id, 100));
    }
    assert_eq!((cluster.plan().moved, cluster.plan().stuck), (vec![], usize::from(PG_COUNT)));
    cluster.servers.iter_mut().for_each(|it| it.given_up = it.duty == Duty::Gone);
    let plan = cluster.plan();
    assert_eq!(plan.moved.len(), usize::from(PG_COUNT), "there is nothing to copy");
    assert!(plan.moved.iter().all(|(_, to)| to.len() == 3 && to.iter().all(|id| id.0 > 3)));
}

#[test]
fn moves_that_may_never_end_keep_no_other_from_moving() {
    let mut cluster = Cluster::dealt(servers(&[1, 2, 3, 4]));
    cluster.servers.push(server(5, 5, 100));
    let first = cluster.plan();
    assert_eq!(first.moved.len(), REBALANCE_MAX);
    cluster.apply(&first);
    assert_eq!(cluster.plan().moved, vec![], "so many are on the move already");
    cluster.slow.insert(first.moved[0].0);
    assert_eq!(cluster.plan().moved.len(), 1);
    // A chain of losses: the group stays as it is before it waits for too many.
    let mut cluster = Cluster::dealt(servers(&[1, 2, 3]));
    cluster.servers.push(server(9, 9, 100));
    let old: Vec<NodeId> = (20..20 + LEAVING_MAX as u64).map(NodeId).collect();
    cluster.table.leaving = vec![(PgId(0), old)];
    cluster.set(1, Duty::Gone);
    let plan = cluster.plan();
    assert_eq!((plan.stuck, plan.moved.len()), (1, REPAIR_MAX - 1));
    assert!(plan.moved.iter().all(|(pg, _)| *pg != PgId(0)));
}

#[test]
fn full_silent_and_weightless_servers_get_nothing() {
    let mut cluster = Cluster::dealt(servers(&[1, 2, 3]));
    cluster.servers.push(Server { full: true, ..server(4, 4, 100) });
    cluster.servers.push(Server { up: false, ..server(5, 5, 100) });
    cluster.servers.push(server(6, 6, 0));
    cluster.set(3, Duty::Draining);
    let plan = cluster.plan();
    assert_eq!((plan.moved.len(), plan.stuck), (0, usize::from(PG_COUNT)));
    // Nor does a group move for even shares while one of its members is silent.
    cluster.set(3, Duty::Active);
    cluster.servers[3].full = false;
    cluster.servers[0].up = false;
    assert_eq!(cluster.plan().moved, vec![]);
}

#[test]
fn a_new_zone_is_used_before_shares_are_evened() {
    let mut cluster = Cluster::dealt(servers(&[1, 1, 1, 2]));
    cluster.servers.push(server(5, 3, 1));
    let plan = cluster.plan();
    for (_, members) in &plan.moved {
        assert!(members.contains(&NodeId(5)), "{members:?}");
    }
    cluster.settle();
    cluster.assert_spread();
}

fn any_servers() -> impl Strategy<Value = Vec<Server>> {
    proptest::collection::vec((0u64..4, 1u32..4), 3..9).prop_map(|list| {
        list.into_iter().zip(1..).map(|((zone, weight), id)| server(id, zone, weight)).collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    #[test]
    fn draining_moves_little_more_than_it_must(servers in any_servers(), which in 0usize..9) {
        let count = servers.len();
        prop_assume!(count > REPLICAS);
        let mut cluster = Cluster::dealt(servers);
        let id = (which % count) as u64 + 1;
        let had = cluster.groups_of(id);
        cluster.set(id, Duty::Draining);
        cluster.settle();
        prop_assert_eq!(cluster.groups_of(id), 0);
        prop_assert!(cluster.entered * 10 <= had * 11 + 10, "{} for {}", cluster.entered, had);
        cluster.assert_spread();
    }

    #[test]
    fn whatever_happens_it_ends_where_no_plan_changes_it(
        servers in any_servers(),
        events in proptest::collection::vec((0usize..9, 0u8..4, any::<bool>()), 1..5),
    ) {
        let mut cluster = Cluster::dealt(servers);
        for (which, what, finishes) in events {
            let id = (which % cluster.servers.len()) as u64 + 1;
            match what {
                0 => cluster.set(id, Duty::Draining),
                1 => cluster.set(id, Duty::Gone),
                2 => cluster.set(id, Duty::Active),
                _ => {
                    let next = cluster.servers.len() as u64 + 1;
                    cluster.servers.push(server(next, next % 5, 2));
                }
            }
            // In the middle of moves, or after them.
            let plan = cluster.plan();
            cluster.apply(&plan);
            if finishes {
                cluster.table.leaving.clear();
            }
        }
        cluster.table.leaving.clear();
        cluster.settle();
        let active = cluster.servers.iter().filter(|it| it.duty == Duty::Active).count();
        if active >= REPLICAS {
            for pg in 0..PG_COUNT {
                let members = cluster.table.of(PgId(pg));
                let all_gone = members.iter().all(|id| cluster.duty(*id) == Duty::Gone);
                prop_assert!(
                    all_gone || members.iter().all(|id| cluster.duty(*id) == Duty::Active),
                    "{:?}", members
                );
            }
        }
    }
}
