//! Consensus between nodes of this process: a new node that needs entries which are purged
//! already receives a snapshot.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use atoll_net::{Answer, ClusterCa, Context, Endpoint, Role, ServeLimits, Service};
use atoll_proto::ClusterId;
use atoll_proto::error::WireResult;
use atoll_proto::master::{MasterRequest, MasterResponse};
use bytes::Bytes;
use openraft::BasicNode;
use tokio::time::Instant;

use super::{Consensus, Grown, LogBounds, Storage};
use crate::operation::{Operation, Outcome};
use crate::store::{Read, meta, sessions};

struct RaftService(Consensus);

impl Service for RaftService {
    type Request = MasterRequest;
    type Response = MasterResponse;

    fn operation(_: &MasterRequest) -> &'static str {
        "raft"
    }

    async fn call(
        &self,
        _: Context,
        request: MasterRequest,
        body: Bytes,
    ) -> WireResult<Answer<MasterResponse>> {
        let MasterRequest::Raft { message } = request else { panic!("{request:?}") };
        let message = self.0.answer(&message, &body).await?;
        Ok(Answer::head(MasterResponse::Raft { message }))
    }
}

struct Node {
    consensus: Consensus,
    endpoint: Endpoint,
    _stop: atoll_net::ShutdownTrigger,
    _data: tempfile::TempDir,
}

async fn node(ca: &ClusterCa, id: u64) -> Node {
    bounded(ca, id, LogBounds::default()).await
}

async fn bounded(ca: &ClusterCa, id: u64, bounds: LogBounds) -> Node {
    let identity = ca.issue(Role::Master, &format!("master-{id}")).unwrap();
    let endpoint = Endpoint::bind(([127, 0, 0, 1], 0).into(), &identity).unwrap();
    let data = tempfile::tempdir().unwrap();
    let storage = Storage::open(data.path()).unwrap();
    let started = Consensus::start(id, storage, endpoint.clone(), BTreeMap::new(), bounds);
    let consensus = started.await.unwrap();
    let (stop, shutdown) = atoll_net::shutdown::pair();
    let (serving, service) = (endpoint.clone(), Arc::new(RaftService(consensus.clone())));
    atoll_net::task::spawn("test-raft", async move {
        serving.serve(service, ServeLimits::default(), shutdown).await;
    });
    Node { consensus, endpoint, _stop: stop, _data: data }
}

async fn open_session(node: &Node) -> Outcome {
    // Long enough that snapshot and entries need several parts.
    let name = "x".repeat(100_000);
    let operation = Operation::OpenSession { name, owner: "o".into() };
    let deadline = Instant::now() + Duration::from_secs(10);
    node.consensus.propose(&operation, deadline).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_needs_purged_entries_gets_a_snapshot() {
    let ca = ClusterCa::create(ClusterId([4; 16])).unwrap();
    let (one, two) = (node(&ca, 1).await, node(&ca, 2).await);
    let addr = one.endpoint.local_addr();
    one.consensus.bootstrap(BTreeMap::from([(1, addr)])).await.unwrap();
    one.consensus.raft.wait(None).current_leader(1, "bootstrap").await.unwrap();
    for _ in 0..30 {
        open_session(&one).await;
    }
    let index = one.consensus.applied().borrow().index;
    one.consensus.snapshot().await;
    let metrics = one.consensus.raft.wait(Some(Duration::from_secs(10)));
    let made = |metrics: &openraft::RaftMetrics<u64, BasicNode>| {
        metrics.snapshot.is_some_and(|log_id| log_id.index >= index)
    };
    metrics.metrics(made, "snapshot").await.unwrap();
    one.consensus.raft.trigger().purge_log(index).await.unwrap();
    let metrics = one.consensus.raft.wait(Some(Duration::from_secs(10)));
    let purged = |metrics: &openraft::RaftMetrics<u64, BasicNode>| {
        metrics.purged.is_some_and(|log_id| log_id.index >= index)
    };
    metrics.metrics(purged, "purge").await.unwrap();
    open_session(&one).await;

    let learner = BasicNode::new(two.endpoint.local_addr());
    let added = one.consensus.raft.add_learner(2, learner, true);
    tokio::time::timeout(Duration::from_secs(30), added).await.unwrap().unwrap();
    let last = open_session(&one).await;
    let Outcome::Session(last) = last else { panic!("{last:?}") };
    let end = Instant::now() + Duration::from_secs(10);
    while sessions::get(&*two.consensus.state(), last).unwrap().is_none() {
        assert!(Instant::now() < end, "the new node does not follow");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(two.consensus.check_leads().unwrap_err().message.contains("master 1"));
    assert!(meta::applied(&*two.consensus.state()).unwrap().is_some());
    let (from, to) = crate::store::Family::Session.prefix(&[]);
    let mut count = 0;
    two.consensus
        .state()
        .scan(&from, &to, crate::store::Order::Ascending, &mut |_, _| {
            count += 1;
            Ok(true)
        })
        .unwrap();
    assert_eq!(count, 32);
    two.consensus.stop().await;
    one.consensus.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_proposals_share_entries() {
    let ca = ClusterCa::create(ClusterId([4; 16])).unwrap();
    let one = node(&ca, 1).await;
    let addr = one.endpoint.local_addr();
    one.consensus.bootstrap(BTreeMap::from([(1, addr)])).await.unwrap();
    one.consensus.raft.wait(None).current_leader(1, "bootstrap").await.unwrap();
    let before = one.consensus.applied().borrow().index;
    let operation = Operation::OpenSession { name: "n".into(), owner: "o".into() };
    let deadline = Instant::now() + Duration::from_secs(10);
    let began = std::time::Instant::now();
    let all = (0..2000).map(|_| one.consensus.propose(&operation, deadline));
    let mut sessions: Vec<_> = futures_util::future::join_all(all)
        .await
        .into_iter()
        .map(|reply| match reply.unwrap() {
            Outcome::Session(session) => session,
            other => panic!("{other:?}"),
        })
        .collect();
    let entries = one.consensus.applied().borrow().index - before;
    eprintln!("2000 proposals: {entries} entries, {:?}", began.elapsed());
    sessions.sort();
    sessions.dedup();
    assert_eq!(sessions.len(), 2000);
    assert!(entries < 100, "{entries} entries for 2000 proposals");

    let began = std::time::Instant::now();
    for _ in 0..50 {
        open_session(&one).await;
    }
    eprintln!("50 proposals one by one: {:?}", began.elapsed());
    one.consensus.read().await.unwrap();
    one.consensus.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_stays_short_and_who_is_far_behind_catches_up_while_changes_go_on() {
    let ca = ClusterCa::create(ClusterId([4; 16])).unwrap();
    let few = LogBounds {
        snapshot_entries: 1_000_000,
        snapshot_bytes: 3 << 20,
        kept_entries: 1000,
        kept_bytes: 1 << 20,
    };
    let (one, two) = (bounded(&ca, 1, few).await, bounded(&ca, 2, few).await);
    let addr = one.endpoint.local_addr();
    one.consensus.bootstrap(BTreeMap::from([(1, addr)])).await.unwrap();
    one.consensus.raft.wait(None).current_leader(1, "bootstrap").await.unwrap();

    // Only bytes bound it: there are few entries, of 100 kB each.
    let mut grown = Grown::default();
    let end = Instant::now() + Duration::from_secs(60);
    let purged = |node: &Node| node.consensus.raft.metrics().borrow().purged;
    while purged(&one).is_none() {
        assert!(Instant::now() < end, "entries are never dropped");
        open_session(&one).await;
        one.consensus.compact(&mut grown).await;
    }
    let first = purged(&one).unwrap().index;
    let kept = one.consensus.applied().borrow().index - first;
    assert!(kept < few.kept_entries / 2, "{kept} entries are kept");

    // The new one needs what was dropped, and gets it while changes go on.
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let busy = {
        let consensus = one.consensus.clone();
        atoll_net::task::spawn("changes", async move {
            let mut made = 0;
            let name = "x".repeat(10_000);
            while !*stopped.borrow() {
                let operation = Operation::OpenSession { name: name.clone(), owner: "o".into() };
                let deadline = Instant::now() + Duration::from_secs(10);
                consensus.propose(&operation, deadline).await.unwrap();
                made += 1;
            }
            made
        })
    };
    let deadline = Instant::now() + Duration::from_secs(30);
    let addr = two.endpoint.local_addr();
    one.consensus.add_learner(2, addr, deadline).await.unwrap();
    let caught_up = || {
        let members = one.consensus.members();
        members.iter().any(|member| member.id == 2 && member.log_index > 0 && member.behind < 20)
    };
    let end = Instant::now() + Duration::from_secs(60);
    while !caught_up() {
        assert!(Instant::now() < end, "{:?}", one.consensus.members());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    stop.send_replace(true);
    assert!(busy.await.unwrap() > 0, "no change was made meanwhile");
    assert!(two.consensus.raft.metrics().borrow().snapshot.is_some(), "it got no snapshot");
    one.consensus.set_voters([1, 2].into(), None, deadline).await.unwrap();
    let last = open_session(&one).await;
    let Outcome::Session(last) = last else { panic!("{last:?}") };
    let end = Instant::now() + Duration::from_secs(10);
    while sessions::get(&*two.consensus.state(), last).unwrap().is_none() {
        assert!(Instant::now() < end, "the new node does not follow");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    one.consensus.set_voters([1].into(), Some(2), deadline).await.unwrap();
    assert_eq!(one.consensus.members().len(), 1);
    two.consensus.stop().await;
    one.consensus.stop().await;
}
