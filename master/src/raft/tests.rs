//! Consensus between nodes of this process: a new node that needs entries which are purged
//! already receives a snapshot.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use atoll_net::{Answer, ClusterCa, Context, Endpoint, Role, ServeLimits, Service};
use atoll_proto::error::WireResult;
use atoll_proto::master::{MasterRequest, MasterResponse};
use atoll_proto::{ClusterId, Code, WireError};
use bytes::Bytes;
use futures_util::FutureExt;
use openraft::error::RPCError;
use openraft::network::{RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::VoteRequest;
use openraft::{BasicNode, ChangeMembers};
use tokio::time::Instant;

use super::network::Network;
use super::{Consensus, Grown, LogBounds, Storage};
use crate::operation::{Operation, Outcome};
use crate::store::{Read, meta, sessions};

struct RaftService {
    consensus: Consensus,
    bodies: AtomicUsize,
    refused: Arc<AtomicUsize>,
    /// Answers as a version does that knows no messages that say whom they are for.
    earlier: Arc<AtomicBool>,
}

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
        let left = |left: usize| left.checked_sub(1);
        if !body.is_empty()
            && self.bodies.fetch_update(Ordering::SeqCst, Ordering::SeqCst, left).is_err()
        {
            self.refused.fetch_add(1, Ordering::SeqCst);
            return Err(WireError::unavailable("no more"));
        }
        if self.earlier.load(Ordering::SeqCst) && super::network::is_addressed(&message, &body) {
            self.refused.fetch_add(1, Ordering::SeqCst);
            return Err(WireError::invalid("Raft message: unknown"));
        }
        let message = self.consensus.answer(&message, &body).await?;
        Ok(Answer::head(MasterResponse::Raft { message }))
    }
}

struct Node {
    consensus: Consensus,
    endpoint: Endpoint,
    refused: Arc<AtomicUsize>,
    earlier: Arc<AtomicBool>,
    stop: atoll_net::ShutdownTrigger,
    data: tempfile::TempDir,
}

async fn node(ca: &ClusterCa, id: u64) -> Node {
    bounded(ca, id, LogBounds::default()).await
}

async fn bounded(ca: &ClusterCa, id: u64, bounds: LogBounds) -> Node {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    start(ca, id, tempfile::tempdir().unwrap(), any, bounds, usize::MAX).await
}

/// A node with this data, which takes so many messages that have a body and none after them.
async fn start(
    ca: &ClusterCa,
    id: u64,
    data: tempfile::TempDir,
    addr: SocketAddr,
    bounds: LogBounds,
    bodies: usize,
) -> Node {
    let identity = ca.issue(Role::Master, &format!("master-{id}")).unwrap();
    // The one before may still be letting go.
    let endpoint = eventually(|| Endpoint::bind(addr, &identity).ok()).await;
    let storage = eventually(|| Storage::open(data.path()).ok()).await;
    let started = Consensus::start(id, storage, endpoint.clone(), BTreeMap::new(), bounds);
    let consensus = started.await.unwrap();
    let (stop, shutdown) = atoll_net::shutdown::pair();
    let refused = Arc::new(AtomicUsize::new(0));
    let earlier = Arc::new(AtomicBool::new(false));
    let bodies = bodies.into();
    let service = RaftService { consensus: consensus.clone(), bodies, refused, earlier };
    let (serving, service) = (endpoint.clone(), Arc::new(service));
    let (refused, earlier) = (service.refused.clone(), service.earlier.clone());
    atoll_net::task::spawn("test-raft", async move {
        serving.serve(service, ServeLimits::default(), shutdown).await;
    });
    Node { consensus, endpoint, refused, earlier, stop, data }
}

impl Node {
    /// Ends it as a crash would, and gives what it leaves.
    async fn end(self) -> (tempfile::TempDir, SocketAddr) {
        let addr = self.endpoint.local_addr();
        self.stop.trigger();
        self.consensus.stop().await;
        self.endpoint.close().await;
        (self.data, addr)
    }
}

/// Tries until it is so.
async fn until(what: &str, mut so: impl FnMut() -> bool) {
    let so = eventually(|| so().then_some(()));
    tokio::time::timeout(Duration::from_secs(60), so).await.expect(what);
}

async fn eventually<T>(mut attempt: impl FnMut() -> Option<T>) -> T {
    loop {
        match attempt() {
            Some(value) => return value,
            None => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
}

/// Three nodes that vote, and which of them leads.
async fn three(ca: &ClusterCa) -> (Vec<Node>, usize) {
    let nodes = vec![node(ca, 1).await, node(ca, 2).await, node(ca, 3).await];
    let addrs = (1..).zip(nodes.iter().map(|node| node.endpoint.local_addr())).collect();
    nodes[0].consensus.bootstrap(addrs).await.unwrap();
    let at = leading(&nodes).await;
    (nodes, at)
}

/// The one that a majority confirms as leader.
async fn leading(nodes: &[Node]) -> usize {
    let end = Instant::now() + Duration::from_secs(30);
    loop {
        for (at, node) in nodes.iter().enumerate() {
            if node.consensus.leads() && node.consensus.read().await.is_ok() {
                return at;
            }
        }
        assert!(Instant::now() < end, "nobody leads");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn within() -> Instant {
    Instant::now() + Duration::from_secs(20)
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
    let addr = two.endpoint.local_addr();
    add_learner(&one, 2, addr).await;
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
    set_voters(&one, [1, 2].into(), None).await;
    let last = open_session(&one).await;
    let Outcome::Session(last) = last else { panic!("{last:?}") };
    let end = Instant::now() + Duration::from_secs(10);
    while sessions::get(&*two.consensus.state(), last).unwrap().is_none() {
        assert!(Instant::now() < end, "the new node does not follow");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    set_voters(&one, [1].into(), Some(2)).await;
    assert_eq!(one.consensus.members().len(), 1);
    two.consensus.stop().await;
    one.consensus.stop().await;
}

async fn add_learner(leader: &Node, id: u64, addr: SocketAddr) {
    let changing = leader.consensus.begin_change(within()).await.unwrap();
    leader.consensus.add_learner(&changing, (id, addr), within()).await.unwrap();
}

async fn set_voters(leader: &Node, voters: BTreeSet<u64>, leaves: Option<u64>) {
    let changing = leader.consensus.begin_change(within()).await.unwrap();
    leader.consensus.set_voters(&changing, voters, leaves, within()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_for_another_is_refused_and_earlier_versions_follow() {
    let ca = ClusterCa::create(ClusterId([4; 16])).unwrap();
    let (one, two) = (node(&ca, 1).await, node(&ca, 2).await);
    let addr = one.endpoint.local_addr();
    one.consensus.bootstrap(BTreeMap::from([(1, addr)])).await.unwrap();
    one.consensus.raft.wait(None).current_leader(1, "bootstrap").await.unwrap();
    let nothing = Bytes::new();
    let other = two.consensus.answer(&super::network::vote_to(7), &nothing).await.unwrap_err();
    assert_eq!(other.code, Code::Conflict, "{other}");
    assert!(two.consensus.log_is_empty().unwrap());
    // Who is refused waits before it asks again.
    let mut network = Network::new(one.endpoint.clone(), BTreeMap::new());
    let mut link = network.new_client(7, &BasicNode::new(two.endpoint.local_addr())).await;
    let request = VoteRequest { vote: openraft::Vote::new(1, 9), last_log_id: None };
    let refused = link.vote(request, RPCOption::new(Duration::from_secs(20))).await.unwrap_err();
    assert!(matches!(refused, RPCError::Unreachable(_)), "{refused}");

    two.earlier.store(true, Ordering::SeqCst);
    add_learner(&one, 2, two.endpoint.local_addr()).await;
    until("it has something", || one.consensus.has_acknowledged(2)).await;
    assert!(two.refused.load(Ordering::SeqCst) > 0);
    assert_eq!(one.consensus.member_at(two.endpoint.local_addr()), Some(2));
    set_voters(&one, [1, 2].into(), None).await;
    open_session(&one).await;
    two.consensus.stop().await;
    one.consensus.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_are_changed_by_one_at_a_time() {
    let ca = ClusterCa::create(ClusterId([4; 16])).unwrap();
    let one = node(&ca, 1).await;
    let addr = one.endpoint.local_addr();
    one.consensus.bootstrap(BTreeMap::from([(1, addr)])).await.unwrap();
    one.consensus.raft.wait(None).current_leader(1, "bootstrap").await.unwrap();
    let changing = one.consensus.begin_change(within()).await.unwrap();
    let soon = Instant::now() + Duration::from_millis(100);
    let refused = one.consensus.begin_change(soon).await.err().unwrap();
    assert_eq!(refused.code, Code::Conflict, "{refused}");
    drop(changing);
    drop(one.consensus.begin_change(within()).await.unwrap());
    one.consensus.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn voters_are_not_set_by_what_is_no_longer_so() {
    let ca = ClusterCa::create(ClusterId([4; 16])).unwrap();
    let (nodes, at) = three(&ca).await;
    let leader = &nodes[at];
    let all: BTreeSet<u64> = nodes.iter().map(|node| node.consensus.id()).collect();
    let rest: BTreeSet<u64> =
        all.iter().copied().filter(|id| *id != nodes[(at + 1) % 3].consensus.id()).collect();
    let changing = leader.consensus.begin_change(within()).await.unwrap();
    // As another leader would meanwhile.
    let change = ChangeMembers::RemoveVoters(all.difference(&rest).copied().collect());
    leader.consensus.raft.change_membership(change, false).await.unwrap();
    let late = leader.consensus.set_voters(&changing, all, None, within()).await.unwrap_err();
    assert_eq!(late.code, Code::Conflict, "{late}");
    drop(changing);
    leader.consensus.see_members(within()).await.unwrap();
    let voters = leader.consensus.members().into_iter().map(|member| member.id);
    assert_eq!(voters.collect::<BTreeSet<u64>>(), rest);
    set_voters(leader, rest, None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_leaves_does_not_think_that_it_leads() {
    let ca = ClusterCa::create(ClusterId([4; 16])).unwrap();
    let (mut nodes, at) = three(&ca).await;
    let old = nodes.remove(at);
    let id = old.consensus.id();
    let others: BTreeSet<u64> = nodes.iter().map(|node| node.consensus.id()).collect();
    set_voters(&old, others, Some(id)).await;
    until("it leads no more", || !old.consensus.leads()).await;
    assert_eq!(old.consensus.leadership(), None);
    assert!(old.consensus.check_leads().is_err());
    assert_ne!(old.consensus.position().leader, Some(id));
    assert!(old.consensus.leadership_changed(true).await);
    let at = leading(&nodes).await;
    open_session(&nodes[at]).await;
    let members = nodes[at].consensus.members();
    assert!(members.len() == 2 && members.iter().all(|member| member.id != id), "{members:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_decides_alone_tells_the_leader_that_left_and_nobody_else() {
    let ca = ClusterCa::create(ClusterId([4; 16])).unwrap();
    let (mut nodes, at) = three(&ca).await;
    let old = nodes.remove(at);
    let last = nodes.remove(0);
    let (id, term) = (old.consensus.id(), old.consensus.term());
    let operation = Operation::RetireMaster { id };
    old.consensus.propose(&operation, within()).await.unwrap();
    set_voters(&old, [last.consensus.id()].into(), Some(id)).await;
    until("it decides alone", || last.consensus.leads() && last.consensus.votes_alone()).await;
    until("the other leads no more", || !old.consensus.leads()).await;

    let says = async |vote: openraft::Vote<u64>| {
        let message = super::network::append_under(vote);
        last.consensus.answer(&message, &Bytes::new()).await
    };
    let answer = says(openraft::Vote::new_committed(term, id)).await.unwrap();
    assert!(super::network::unseats(&answer));
    let own = last.consensus.term();
    for vote in [
        openraft::Vote::new_committed(term, 7),
        openraft::Vote::new_committed(own + 5, id),
        openraft::Vote::new_committed(own, id),
        openraft::Vote::new_committed(own, last.consensus.id()),
    ] {
        let refused = says(vote).await.unwrap_err();
        assert!(refused.message.contains("decides alone"), "{vote}: {refused}");
    }
    assert!(last.consensus.leads() && last.consensus.term() == own);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_was_removed_counts_for_nothing_when_it_is_back() {
    let ca = ClusterCa::create(ClusterId([4; 16])).unwrap();
    let (mut nodes, at) = three(&ca).await;
    let gone = if at == 2 { 1 } else { 2 };
    // It is away while it is removed: it still believes that it votes.
    let gone = nodes.remove(gone);
    let id = gone.consensus.id();
    let (data, addr) = gone.end().await;
    let at = leading(&nodes).await;
    let rest: BTreeSet<u64> = nodes.iter().map(|node| node.consensus.id()).collect();
    set_voters(&nodes[at], rest, Some(id)).await;
    let (leader, term) = (nodes[at].consensus.id(), nodes[at].consensus.term());
    let back = start(&ca, id, data, addr, LogBounds::default(), usize::MAX).await;
    let believes = |node: &Node| node.consensus.members().iter().any(|one| one.id == id);
    until("it believes that it votes", || believes(&back)).await;

    // It stands for election again and again, and nobody minds.
    let first = back.consensus.term();
    until("it stands for election", || back.consensus.term() > first + 2).await;
    open_session(&nodes[at]).await;
    assert_eq!((leading(&nodes).await, nodes[at].consensus.id()), (at, leader));
    assert_eq!(nodes[at].consensus.term(), term, "it unseated the leader");

    // Nor is its voice one of the two that are needed.
    let left = nodes.remove(1 - at);
    let lone = nodes.remove(0);
    let before = lone.consensus.term();
    let left_id = left.consensus.id();
    let (data, addr) = left.end().await;
    let seen = back.consensus.term();
    until("it stands for election again", || back.consensus.term() > seen + 2).await;
    let refused = lone.consensus.read().await.unwrap_err();
    assert!(refused.message.contains("are the other masters running?"), "{refused}");
    assert!(!back.consensus.leads());
    let operation = Operation::OpenSession { name: "n".into(), owner: "o".into() };
    let soon = Instant::now() + Duration::from_secs(1);
    let late = lone.consensus.propose(&operation, soon).await.unwrap_err();
    assert_eq!(late.code, Code::Deadline, "{late}");
    assert_eq!(lone.consensus.term(), before);
    // Nothing was lacking but the one that votes.
    let left = start(&ca, left_id, data, addr, LogBounds::default(), usize::MAX).await;
    let both = [lone, left];
    let at = leading(&both).await;
    open_session(&both[at]).await;
    assert!(!back.consensus.leads());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_of_voters_that_stopped_half_way_is_finished() {
    let ca = ClusterCa::create(ClusterId([4; 16])).unwrap();
    let (nodes, at) = three(&ca).await;
    let leader = &nodes[at];
    let stays: BTreeSet<u64> = [leader.consensus.id(), nodes[(at + 1) % 3].consensus.id()].into();
    let joint = || {
        let metrics = leader.consensus.raft.server_metrics();
        let metrics = metrics.borrow();
        metrics.membership_config.membership().get_joint_config().len() == 2
    };
    {
        // Not looked at again after the first step: nobody asks for the second.
        let change = ChangeMembers::ReplaceAllVoters(stays.clone());
        let mut change = Box::pin(leader.consensus.raft.change_membership(change, false));
        assert!(change.as_mut().now_or_never().is_none());
        until("the first step", joint).await;
    }
    open_session(leader).await;
    assert!(joint());
    drop(leader.consensus.begin_change(within()).await.unwrap());
    assert!(!joint());
    let voters = leader.consensus.members().into_iter().map(|member| member.id);
    assert_eq!(voters.collect::<BTreeSet<u64>>(), stays);
    drop(leader.consensus.begin_change(within()).await.unwrap());
    open_session(leader).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_stops_half_way_is_sent_again_to_who_was_restarted() {
    let ca = ClusterCa::create(ClusterId([4; 16])).unwrap();
    let one = node(&ca, 1).await;
    let addr = one.endpoint.local_addr();
    one.consensus.bootstrap(BTreeMap::from([(1, addr)])).await.unwrap();
    one.consensus.raft.wait(None).current_leader(1, "bootstrap").await.unwrap();
    // No file of the state gets smaller by compression: several parts.
    for _ in 0..40 {
        let name: String = (0..100_000).map(|_| rand::random_range('0'..='z')).collect();
        let operation = Operation::OpenSession { name, owner: "o".into() };
        one.consensus.propose(&operation, within()).await.unwrap();
    }
    let index = one.consensus.applied().borrow().index;
    one.consensus.snapshot().await;
    let snapshot = |node: &Node| node.consensus.raft.metrics().borrow().snapshot;
    until("a snapshot", || snapshot(&one).is_some_and(|made| made.index >= index)).await;
    one.consensus.raft.trigger().purge_log(index).await.unwrap();
    until("a purge", || one.consensus.raft.metrics().borrow().purged.is_some()).await;

    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let (data, bounds) = (tempfile::tempdir().unwrap(), LogBounds::default());
    let two = start(&ca, 2, data, any, bounds, 2).await;
    let addr = two.endpoint.local_addr();
    add_learner(&one, 2, addr).await;
    until("a part that is refused", || two.refused.load(Ordering::SeqCst) > 0).await;
    assert!(snapshot(&two).is_none());
    let (data, addr) = two.end().await;
    let half = std::fs::metadata(data.path().join("incoming")).unwrap().len();
    assert!(half > 1 << 20, "{half} bytes had come");

    let two = start(&ca, 2, data, addr, bounds, usize::MAX).await;
    assert_eq!(meta::applied(&*two.consensus.state()).unwrap(), None);
    let Outcome::Session(last) = open_session(&one).await else { panic!() };
    let there = || sessions::get(&*two.consensus.state(), last).unwrap().is_some();
    until("it has everything", there).await;
    assert!(snapshot(&two).is_some());
    let rows = |node: &Node| {
        let mut rows = Vec::new();
        let state = node.consensus.state();
        let (from, to) = crate::store::Family::Session.prefix(&[]);
        let order = crate::store::Order::Ascending;
        state
            .scan(&from, &to, order, &mut |key, value| {
                rows.push((key.to_vec(), value.to_vec()));
                Ok(true)
            })
            .unwrap();
        rows
    };
    assert_eq!(rows(&one), rows(&two));
    assert!(!two.data.path().join("incoming").exists());
}
