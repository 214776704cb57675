//! The placement task on a running master: servers are registered and heard of by hand, and what
//! they have is said by hand.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use atoll_net::{ClusterCa, Endpoint, Role, ShutdownTrigger};
use atoll_proto::chunk::ChunkStat;
use atoll_proto::cluster::{Duty, NodeInfo, NodeKind, PgTable};
use atoll_proto::ids::PG_COUNT;
use atoll_proto::master::{MasterResponse, NodeOp};
use atoll_proto::masters::Incarnation;
use atoll_proto::{NodeId, PgId, SessionId};
use tokio::time::Instant;

use super::harness::{CLUSTER, WAIT, eventually};
use crate::admission::Admission;
use crate::operation::{LoggedChange, Operation, Outcome};
use crate::raft::{Consensus, LogBounds, Storage};
use crate::server::{Master, Settings};
use crate::tasks;

struct Rig {
    master: Arc<Master>,
    stop: ShutdownTrigger,
    number: u64,
}

impl Rig {
    /// A master with these servers, all their groups dealt out, and a session: data may be there.
    async fn start(dir: &Path, servers: &[(u64, &str)]) -> Rig {
        let ca = ClusterCa::create(CLUSTER).unwrap();
        let identity = ca.issue(Role::Master, "master-1").unwrap();
        let endpoint = Endpoint::bind(([127, 0, 0, 1], 0).into(), &identity).unwrap();
        let storage = Storage::open(dir).unwrap();
        let (nobody, bounds) = (BTreeMap::new(), LogBounds::default());
        let consensus =
            Consensus::start(1, storage, endpoint.clone(), nobody, bounds).await.unwrap();
        consensus.bootstrap(BTreeMap::from([(1, endpoint.local_addr())])).await.unwrap();
        let (stop, shutdown) = atoll_net::shutdown::pair();
        let settings = Settings {
            cluster: CLUSTER,
            zone: None,
            url_template: None,
            chunk_bytes: 1 << 20,
            bootstrap: true,
            bootstrap_token: None,
            placement_settle_ms: 50,
            collect_after_ms: 24 * 3600 * 1000,
            collect_every_ms: 60_000,
            audit_days: 0,
            data: dir.to_owned(),
            replace_after_ms: 5_000,
        };
        let admission = Admission::new(Incarnation([1; 16]), BTreeMap::new(), true);
        let master = Arc::new(Master::new(consensus, endpoint, settings, admission, shutdown));
        atoll_net::task::spawn("leadership", tasks::leadership::run(master.clone()));
        let mut rig = Rig { master, stop, number: 0 };
        eventually(async || rig.master.cluster_record().map_err(|error| error.to_string())).await;
        for (id, zone) in servers {
            rig.register(*id, zone).await;
        }
        atoll_net::task::spawn("placement", tasks::placement::run(rig.master.clone()));
        rig.until("all groups are dealt out", |table| {
            table.members.iter().all(|members| members.len() == servers.len().min(3))
        })
        .await;
        let open = Operation::OpenSession { name: "test".into(), owner: "token 1".into() };
        assert_eq!(rig.propose(open).await, Outcome::Session(SessionId(1)));
        rig
    }

    async fn propose(&self, operation: Operation) -> Outcome {
        self.master.consensus.propose(&operation, Instant::now() + WAIT).await.unwrap()
    }

    async fn register(&mut self, id: u64, zone: &str) {
        let info = NodeInfo {
            id: NodeId(id),
            name: format!("c{id}"),
            kind: NodeKind::Chunkserver,
            addr: ([127, 0, 0, 1], 9).into(),
            zone: zone.into(),
            region: "r".into(),
            weight: 100,
            edge: None,
        };
        self.propose(Operation::RegisterNode(info)).await;
        self.hear(&[id]);
    }

    /// Heartbeats of these servers.
    fn hear(&self, ids: &[u64]) {
        for id in ids {
            let stat = ChunkStat { total_bytes: 100, free_bytes: 50, ..ChunkStat::default() };
            self.master.liveness().heard(NodeId(*id), true, Some(stat), Instant::now());
        }
    }

    async fn node(&mut self, op: NodeOp) {
        self.number += 1;
        let (session, number) = (SessionId(1), self.number);
        let change = LoggedChange::Node(op);
        self.propose(Operation::Numbered { session, number, acked_below: number, change }).await;
    }

    fn table(&self) -> Arc<PgTable> {
        self.master.table().unwrap()
    }

    async fn until(&self, what: &str, holds: impl Fn(&PgTable) -> bool) -> Arc<PgTable> {
        eventually(async || {
            let table = self.table();
            if holds(&table) { Ok(table) } else { Err(format!("{what}: not yet")) }
        })
        .await
    }

    /// Every member of these groups says that it has everything as of now.
    fn sync(&self, groups: impl Iterator<Item = PgId>) {
        let table = self.table();
        let index = self.master.consensus.applied().borrow().index + 1000;
        let mut liveness = self.master.liveness();
        for pg in groups {
            for member in table.of(pg) {
                liveness.note_synced(*member, pg, index, Instant::now());
            }
        }
    }

    /// Lets moves finish until this holds; the servers go on being heard of.
    async fn settle(&self, ids: &[u64], holds: impl Fn(&PgTable) -> bool) {
        eventually(async || {
            self.hear(ids);
            let table = self.table();
            self.sync(table.leaving.iter().map(|(pg, _)| *pg));
            if table.leaving.is_empty() && holds(&table) {
                Ok(())
            } else {
                Err(format!("{} groups on the move at epoch {}", table.leaving.len(), table.epoch))
            }
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drained_server_loses_its_groups_and_only_those_move() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::start(dir.path(), &[(1, "a"), (2, "b"), (3, "c"), (4, "d")]).await;
    let before = rig.table();
    let node = NodeId(2);
    rig.node(NodeOp::Drain { node }).await;
    let table = rig.until("moves begin", |table| !table.leaving.is_empty()).await;
    assert!(table.leaving.iter().all(|(_, old)| *old == [node]), "{:?}", table.leaving);
    // Only some at a time, and none finishes while a member lacks something.
    let some: Vec<PgId> = table.leaving.iter().take(10).map(|(pg, _)| *pg).collect();
    rig.sync(some.iter().copied());
    rig.hear(&[1, 2, 3, 4]);
    let table = rig.until("ten have moved", |t| some.iter().all(|pg| !t.is_moving(*pg))).await;
    for pg in &some {
        assert!(!table.of(*pg).contains(&node) && table.of(*pg).len() == 3);
    }
    let waiting = table.leaving.iter().filter(|(pg, _)| before.of(*pg).contains(&node)).count();
    assert!(waiting > 200, "{waiting}");

    rig.settle(&[1, 2, 3, 4], |table| table.groups_of(node) == (0, 0)).await;
    let after = rig.table();
    for (pg, (before, after)) in before.members.iter().zip(&after.members).enumerate() {
        if !before.contains(&node) {
            assert_eq!(before, after, "group {pg} had no reason to move");
        }
    }
    assert!(after.epoch.0 - before.epoch.0 < 100, "{} for {}", after.epoch, before.epoch);
    rig.node(NodeOp::Remove { node }).await;
    assert!(rig.master.node_views().unwrap().iter().all(|view| view.info.id != node));
    rig.stop.trigger();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_waits_for_a_change_that_may_rely_on_an_old_member() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::start(dir.path(), &[(1, "a"), (2, "b"), (3, "c"), (4, "d")]).await;
    let master = rig.master.clone();
    let relying = master.finishing.rely();
    let node = NodeId(1);
    rig.node(NodeOp::Drain { node }).await;
    let table = rig.until("moves begin", |table| !table.leaving.is_empty()).await;
    let pg = table.leaving[0].0;
    assert!(master.cover_table().unwrap().is_moving(pg), "an old member counts");
    eventually(async || {
        rig.hear(&[1, 2, 3, 4]);
        rig.sync(std::iter::once(pg));
        match master.cover_table().unwrap().is_moving(pg) {
            false => Ok(()),
            true => Err("the old member still counts for new changes".to_owned()),
        }
    })
    .await;
    assert!(rig.table().is_moving(pg), "it does not go before the change is applied");
    drop(relying);
    rig.until("the move finishes", |table| !table.is_moving(pg)).await;
    rig.stop.trigger();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_joins_gets_its_share_a_little_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::start(dir.path(), &[(1, "a"), (2, "b"), (3, "c")]).await;
    rig.register(4, "d").await;
    let table = rig.until("moves begin", |table| !table.leaving.is_empty()).await;
    assert!(table.leaving.len() <= 64, "{}", table.leaving.len());
    for (pg, _) in &table.leaving {
        assert_eq!(table.filling(*pg), [NodeId(4)]);
    }
    rig.stop.trigger();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_server_is_replaced_and_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path(), &[(1, "a"), (2, "b"), (3, "c"), (4, "d")]).await;
    let duty = |rig: &Rig| {
        let views = rig.master.node_views().unwrap();
        views.iter().find(|view| view.info.id == NodeId(4)).unwrap().duty
    };
    eventually(async || {
        rig.hear(&[1, 2, 3]);
        if duty(&rig) == Duty::Gone { Ok(()) } else { Err("not gone yet".to_owned()) }
    })
    .await;
    rig.settle(&[1, 2, 3], |table| table.groups_of(NodeId(4)) == (0, 0)).await;
    assert!(rig.table().members.iter().all(|members| members.len() == 3));
    // A new leader has heard of nobody yet: that is no sign of life of this one.
    *rig.master.liveness() = crate::liveness::Liveness::new(
        rig.master.consensus.leadership(),
        Instant::now(),
        crate::clock::boot_ns(),
    );
    for _ in 0..20 {
        rig.hear(&[1, 2, 3]);
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        assert_eq!((duty(&rig), rig.table().groups_of(NodeId(4))), (Duty::Gone, (0, 0)));
    }
    eventually(async || {
        rig.hear(&[1, 2, 3, 4]);
        if duty(&rig) == Duty::Active { Ok(()) } else { Err("not back yet".to_owned()) }
    })
    .await;
    let back = rig.until("it gets groups again", |table| table.groups_of(NodeId(4)).0 > 0).await;
    assert!(back.leaving.len() <= 64);
    rig.stop.trigger();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn groups_whose_members_are_all_given_up_can_be_written_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::start(dir.path(), &[(1, "a"), (2, "b"), (3, "c")]).await;
    for id in 4..=6 {
        rig.register(id, "d").await;
    }
    for id in 1..=3 {
        rig.node(NodeOp::Lose { node: NodeId(id) }).await;
    }
    eventually(async || {
        rig.hear(&[4, 5, 6]);
        let table = rig.table();
        let alive = |members: &Vec<NodeId>| members.iter().all(|id| id.0 >= 4);
        match table.members.iter().filter(|members| members.len() < 3 || !alive(members)).count() {
            0 => Ok(()),
            left => Err(format!("{left} groups are not dealt anew")),
        }
    })
    .await;
    // Nothing is forgotten: should one of them come back, it is read from.
    let table = rig.table();
    let kept = table.leaving.iter().filter(|(_, old)| old.iter().any(|id| id.0 < 4)).count();
    assert_eq!(kept, usize::from(PG_COUNT));
    rig.stop.trigger();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_placement_cannot_do_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::start(dir.path(), &[(1, "a"), (2, "b"), (3, "c")]).await;
    rig.node(NodeOp::Drain { node: NodeId(3) }).await;
    eventually(async || {
        rig.hear(&[1, 2, 3]);
        let notes = rig.master.placement.lock().unwrap().join("; ");
        if notes.contains("4096 placement groups stay") { Ok(()) } else { Err(notes) }
    })
    .await;
    assert_eq!(rig.table().groups_of(NodeId(3)).0, 4096);
    rig.register(4, "d").await;
    rig.settle(&[1, 2, 3, 4], |table| table.groups_of(NodeId(3)) == (0, 0)).await;
    assert!(rig.master.placement.lock().unwrap().is_empty());
    rig.stop.trigger();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_of_the_leader_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let rig = Rig::start(dir.path(), &[(1, "a")]).await;
    let notes = async || {
        let status = crate::ops::status::status(&rig.master).await.unwrap();
        let MasterResponse::Status(status) = status else { panic!() };
        status.live
    };
    rig.master.disk.set(99, 1 << 20);
    let full = notes().await;
    assert!(full.len() == 1 && full[0].contains("disk is 99 % full"), "{full:?}");
    rig.master.disk.set(50, 1 << 40);
    assert_eq!(notes().await, Vec::<String>::new());
    rig.stop.trigger();
}
