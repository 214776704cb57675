//! Edges that speak through a shield: what the master takes from it, and what not.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::net::SocketAddr;

use atoll_net::{ClusterCa, Endpoint, Role};
use atoll_proto::cluster::{EdgeInfo, NodeInfo, NodeKind};
use atoll_proto::error::WireResult;
use atoll_proto::master::{Change, Changed, MasterRequest, MasterResponse};
use atoll_proto::publish::{Published, SiteOp};
use atoll_proto::relay::{RelayKey, RelayedAck, RelayedGrant, RelayedRenewal};
use atoll_proto::{Code, NodeId, Seq, limits};

use super::harness::{CLUSTER, SECRET, User, call_options, config, start_and_wait};

/// An edge or a shield.
struct EdgeNode {
    info: NodeInfo,
    endpoint: Endpoint,
    master: SocketAddr,
}

impl EdgeNode {
    async fn start(ca: &ClusterCa, master: SocketAddr, id: u64, shield: bool) -> EdgeNode {
        let name = format!("edge-{id}");
        let endpoint = Endpoint::client(&ca.issue(Role::Edge, &name).unwrap()).unwrap();
        let edge = EdgeInfo {
            serves: !shield,
            shield,
            dns: false,
            public: vec![],
            http_port: 80,
            https_port: 443,
        };
        let info = NodeInfo {
            id: NodeId(id),
            name,
            kind: NodeKind::Edge,
            addr: ([127, 0, 0, 1], 1).into(),
            zone: "z".into(),
            region: "eu".into(),
            weight: 1,
            edge: Some(edge),
        };
        let node = EdgeNode { info, endpoint, master };
        node.register().await;
        node
    }

    async fn ask(&self, request: MasterRequest) -> WireResult<MasterResponse> {
        let (to, options) = (self.master, call_options(None));
        match self.endpoint.call(to, Role::Master, &request, Vec::new(), options).await {
            Ok((answer, _)) => Ok(answer),
            Err(atoll_net::CallError::Refused(error)) => Err(error),
            Err(error) => panic!("{error}"),
        }
    }

    async fn register(&self) {
        self.ask(MasterRequest::Register { info: self.info.clone() }).await.unwrap();
    }

    async fn enrol(&self) -> RelayKey {
        match self.ask(MasterRequest::Enrol { node: self.info.id }).await.unwrap() {
            MasterResponse::Enrolled { key: Some(key) } => key,
            other => panic!("{other:?}"),
        }
    }

    async fn relay(
        &self,
        acks: &[RelayedAck],
        renewals: &[RelayedRenewal],
    ) -> WireResult<(Vec<bool>, Vec<Option<RelayedGrant>>)> {
        let (acks, renewals) = (acks.to_vec(), renewals.to_vec());
        let request = MasterRequest::Relay { shield: self.info.id, acks, renewals };
        match self.ask(request).await? {
            MasterResponse::Relayed { acks, renewals } => Ok((acks, renewals)),
            other => panic!("{other:?}"),
        }
    }
}

async fn waiting(user: &User, seq: Seq) -> Vec<String> {
    match user.ask(&MasterRequest::WaitPublished { seq, wait_ms: 0 }).await.unwrap() {
        MasterResponse::Confirmed { waiting, .. } => waiting,
        other => panic!("{other:?}"),
    }
}

async fn create(user: &mut User, site: &str) -> Seq {
    let create = SiteOp::Create { site: site.parse().unwrap(), domains: vec![] };
    match user.change(Change::Site(create)).await.unwrap() {
        Changed::Site(Published { seq, .. }) => seq,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_what_an_edge_has_sealed_itself_counts() {
    let dir = tempfile::tempdir().unwrap();
    let ca = ClusterCa::create(CLUSTER).unwrap();
    let master = start_and_wait(&config(&ca, dir.path(), 1)).await;
    let mut user = User::new(&ca, vec![master.addr], SECRET).await;
    let edges = [
        EdgeNode::start(&ca, master.addr, 101, false).await,
        EdgeNode::start(&ca, master.addr, 102, false).await,
    ];
    let shield = EdgeNode::start(&ca, master.addr, 201, true).await;
    let seq = create(&mut user, "blog").await;
    assert_eq!(waiting(&user, seq).await, ["edge-101", "edge-102", "edge-201"]);
    let (one, two) = (edges[0].info.id, edges[1].info.id);
    let (first, second) = (edges[0].enrol().await, edges[1].enrol().await);

    // Of the one as it is; of the other not under the one's key, and nothing of the future.
    let good = RelayedAck::sealed(&first, one, seq);
    let forged = RelayedAck::sealed(&first, two, seq);
    let future = RelayedAck::sealed(&second, two, Seq(1 << 40));
    let stranger = RelayedAck::sealed(&first, NodeId(9), seq);
    let (taken, _) = shield.relay(&[forged, good, future, stranger], &[]).await.unwrap();
    assert_eq!(taken, [false, true, false, false]);
    assert_eq!(waiting(&user, seq).await, ["edge-102", "edge-201"]);

    // Said again, and one that comes late: nothing is taken back.
    let late = RelayedAck::sealed(&first, one, Seq(0));
    assert_eq!(shield.relay(&[good, late], &[]).await.unwrap().0, [true, true]);
    assert_eq!(waiting(&user, seq).await, ["edge-102", "edge-201"]);

    // A lease for what is applied, sealed for the renewal that was asked.
    let renewal = RelayedRenewal::sealed(&first, one, 7, true, Some(seq));
    let behind = RelayedRenewal::sealed(&second, two, 8, true, None);
    let forged = RelayedRenewal { applied: Some(seq), ..behind };
    let (_, granted) = shield.relay(&[], &[renewal, behind, forged]).await.unwrap();
    assert_eq!(granted[0], Some(RelayedGrant::sealed(&first, one, 7, true, seq)));
    assert_eq!(granted[1], Some(RelayedGrant::sealed(&second, two, 8, false, seq)));
    assert_eq!(granted[2], None);
    // Repeated, it is worth nothing: the edge may be gone by now.
    assert_eq!(shield.relay(&[], &[renewal]).await.unwrap().1, [None]);

    // Who is no shield speaks for nobody else, and a shield only as itself.
    assert_eq!(edges[1].relay(&[good], &[]).await.unwrap_err().code, Code::Denied);
    let as_shield = MasterRequest::Relay { shield: NodeId(201), acks: vec![], renewals: vec![] };
    assert_eq!(edges[1].ask(as_shield).await.unwrap_err().code, Code::Denied);
    let other = MasterRequest::Enrol { node: one };
    assert_eq!(edges[1].ask(other).await.unwrap_err().code, Code::Denied);
    let many = vec![good; limits::RELAY_ITEMS_MAX + 1];
    assert_eq!(shield.relay(&many, &[]).await.unwrap_err().code, Code::Limit);

    // Another run of the edge: what the one before said counts no more.
    edges[0].register().await;
    let next = create(&mut user, "shop").await;
    let old = RelayedAck::sealed(&first, one, next);
    assert_eq!(shield.relay(&[old], &[renewal]).await.unwrap(), (vec![false], vec![None]));
    let key = edges[0].enrol().await;
    assert_ne!(key, first);
    let good = RelayedAck::sealed(&key, one, next);
    assert_eq!(shield.relay(&[old, good], &[]).await.unwrap().0, [false, true]);
    // So it is after the first half of a farewell.
    edges[0].ask(MasterRequest::Farewell { node: one, number: None }).await.unwrap();
    assert_eq!(shield.relay(&[good], &[]).await.unwrap().0, [false]);
    master.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_edge_that_starts_again_needs_what_its_earlier_run_may_have_confirmed() {
    let dir = tempfile::tempdir().unwrap();
    let ca = ClusterCa::create(CLUSTER).unwrap();
    let master = start_and_wait(&config(&ca, dir.path(), 1)).await;
    let mut user = User::new(&ca, vec![master.addr], SECRET).await;
    let edge = EdgeNode::start(&ca, master.addr, 101, false).await;
    let before = create(&mut user, "blog").await;
    let renew = async |applied| {
        let renew = MasterRequest::Renew { node: NodeId(101), ready: true, applied: Some(applied) };
        match edge.ask(renew).await.unwrap() {
            MasterResponse::Renewed { known: true, granted } => granted,
            other => panic!("{other:?}"),
        }
    };
    assert!(renew(before).await);
    // Nobody has confirmed this one yet, so a lease as of the one before is safe, ...
    let seq = create(&mut user, "shop").await;
    assert!(renew(before).await);
    // ... but not for an edge that may have confirmed it and lost it since.
    edge.register().await;
    assert!(!renew(before).await);
    assert!(renew(seq).await);
    master.stop().await;
}
