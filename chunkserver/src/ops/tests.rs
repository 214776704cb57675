//! The operations as the network calls them, on a store in memory: one server, no peers.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use atoll_net::{ClusterCa, Context, Endpoint, Peer, Role, Service, TraceContext};
use atoll_proto::chunk::{ChunkRequest, ChunkResponse, ChunkStat, Get, GetMany, Put};
use atoll_proto::cluster::{ClusterView, Duty, NodeInfo, NodeKind, NodeState, NodeView, PgTable};
use atoll_proto::receipt::ReceiptKey;
use atoll_proto::tree::{Ask, Found, bucket_of};
use atoll_proto::{
    ChunkId, ClusterId, Code, Epoch, NodeId, PgId, Retry, SessionId, WireError, WireResult, limits,
};
use bytes::Bytes;
use proptest::prelude::*;
use tokio::time::Instant;

use super::ChunkService;
use crate::masters::Masters;
use crate::node::Node;
use crate::placement::Placement;
use crate::reconcile::{Settings, Upkeep};
use crate::store::memory::MemoryStore;
use crate::store::writer::Writer;
use crate::store::{ChunkStore, Mark};
use crate::tasks::clock;

const CLUSTER: ClusterId = ClusterId([1; 16]);
const KEY: ReceiptKey = ReceiptKey([3; 32]);
const EPOCH: Epoch = Epoch(5);
const NAME: &str = "chunkserver-1";
const SETTINGS: Settings = Settings {
    repair_bytes_per_s: None,
    repair_pause: Duration::from_secs(1),
    scrub_period: Duration::from_secs(3600),
    sweep_every: Duration::from_secs(3600),
    pending_lifetime_ms: 1000,
    quarantine_lifetime_ms: 1000,
};

struct Rig {
    service: ChunkService,
    store: Arc<MemoryStore>,
    node: Arc<Node>,
}

impl Rig {
    /// A server that has heard from no master yet.
    fn fresh() -> Self {
        let authority = ClusterCa::create(CLUSTER).unwrap();
        let identity = authority.issue(Role::Chunkserver, NAME).unwrap();
        let endpoint = Endpoint::client(&identity).unwrap();
        let store = Arc::new(MemoryStore::default());
        let writer = Writer::start(store.clone()).unwrap();
        let masters = Masters::new(endpoint.clone(), vec![nowhere()], None);
        let placement = Placement::load(CLUSTER, store.clone()).unwrap();
        let upkeep = Upkeep::new(SETTINGS, None);
        let id = NodeId(1);
        let node = Node::new(id, endpoint, store.clone(), writer, masters, placement, upkeep);
        let node = Arc::new(node);
        Self { service: ChunkService::new(node.clone()), store, node }
    }

    /// A server that is the only member of every placement group.
    async fn alone() -> Self {
        let rig = Self::fresh();
        rig.node.placement.adopt(view(&[NodeId(1)])).await.unwrap();
        rig.node.set_receipt_key(KEY);
        rig
    }

    async fn ask(&self, role: Role, request: ChunkRequest, body: Bytes) -> WireResult<Reply> {
        self.ask_as(peer(role), request, body).await
    }

    async fn ask_as(&self, peer: Peer, request: ChunkRequest, body: Bytes) -> WireResult<Reply> {
        let context = Context {
            peer,
            remote: nowhere(),
            deadline: Instant::now() + Duration::from_secs(5),
            token: None,
            trace: TraceContext::root(),
        };
        let answer = self.service.call(context, request, body).await?;
        Ok(Reply { head: answer.head, body: answer.body.concat() })
    }

    async fn put(&self, put: Put, body: Bytes) -> WireResult<Reply> {
        self.ask(Role::Client, ChunkRequest::Put(put), body).await
    }

    async fn get(&self, id: ChunkId, offset: u32, len: u32) -> WireResult<Reply> {
        let request = ChunkRequest::Get(Get { id, offset, len });
        self.ask(Role::Edge, request, Bytes::new()).await
    }

    async fn stat(&self) -> ChunkStat {
        match self.ask(Role::Client, ChunkRequest::Stat, Bytes::new()).await.unwrap().head {
            ChunkResponse::Stat(stat) => stat,
            other => panic!("{other:?}"),
        }
    }
}

#[derive(Debug)]
struct Reply {
    head: ChunkResponse,
    body: Vec<u8>,
}

fn nowhere() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 9))
}

fn peer(role: Role) -> Peer {
    Peer { cluster: CLUSTER, role, name: NAME.to_owned() }
}

fn view(members: &[NodeId]) -> ClusterView {
    let mut table = PgTable::empty();
    table.epoch = EPOCH;
    table.members.iter_mut().for_each(|group| group.extend(members));
    let info = NodeInfo {
        id: NodeId(1),
        name: NAME.to_owned(),
        kind: NodeKind::Chunkserver,
        addr: nowhere(),
        zone: "z1".to_owned(),
        region: String::new(),
        weight: 1,
        edge: None,
    };
    ClusterView {
        cluster: CLUSTER,
        index: 1,
        chunk_bytes: limits::CHUNK_BYTES,
        nodes: vec![NodeView { info, state: NodeState::Up, ready: true, duty: Duty::Active }],
        table,
        zone: None,
        url_template: None,
    }
}

/// A put of these chunks, and its body.
fn put_of(chunks: &[&[u8]]) -> (Put, Bytes) {
    let named = chunks.iter().map(|bytes| (ChunkId::of(bytes), bytes.len() as u32)).collect();
    let put = Put { session: SessionId(8), epoch: EPOCH, chunks: named, relay: true };
    (put, Bytes::from(chunks.concat()))
}

fn code(result: WireResult<Reply>) -> Code {
    result.unwrap_err().code
}

#[tokio::test]
async fn what_was_put_is_read_back_with_a_receipt() {
    let rig = Rig::alone().await;
    let (put, body) = put_of(&[b"hello", b"", b"world!"]);
    let named = put.chunks.clone();
    let reply = rig.put(put, body).await.unwrap();
    let ChunkResponse::Stored { receipts, failed } = reply.head else { panic!("{reply:?}") };
    assert!(failed.is_empty());
    assert_eq!(receipts.len(), 1);
    let now = clock::now_ms();
    assert!(receipts[0].verify(&KEY, SessionId(8), now));
    assert!(receipts[0].expires_ms > now + 3_600_000);
    assert_eq!((receipts[0].node, receipts[0].epoch), (NodeId(1), EPOCH));
    assert_eq!(receipts[0].chunks, named);

    let id = ChunkId::of(b"world!");
    for (offset, len, wanted) in [
        (0, u32::MAX, &b"world!"[..]),
        (1, 3, b"orl"),
        (4, 100, b"d!"),
        (6, 1, b""),
        (u32::MAX, u32::MAX, b""),
    ] {
        let reply = rig.get(id, offset, len).await.unwrap();
        assert_eq!(reply.head, ChunkResponse::Bytes { chunk_len: 6 });
        assert_eq!(reply.body, wanted);
    }

    let ids = vec![ChunkId::of(b"hello"), ChunkId([9; 32]), ChunkId::of(b""), id];
    let many = ChunkRequest::GetMany(GetMany { ids: ids.clone() });
    let reply = rig.ask(Role::Master, many, Bytes::new()).await.unwrap();
    let lens = vec![Some(5), None, Some(0), Some(6)];
    assert_eq!(reply.head, ChunkResponse::Many { lens, complete: true });
    assert_eq!(reply.body, b"helloworld!");

    let has = rig.ask(Role::Client, ChunkRequest::Has { ids }, Bytes::new()).await.unwrap();
    assert_eq!(has.head, ChunkResponse::Present(vec![true, false, true, true]));
    let stat = rig.stat().await;
    assert_eq!((stat.chunks, stat.bytes), (3, 11));
}

#[tokio::test]
async fn what_was_taken_down_is_not_served_while_it_is_on_disk_yet() {
    use atoll_proto::erase::{Erased, Erasure};
    let rig = Rig::alone().await;
    let (put, body) = put_of(&[b"hello", b"world!"]);
    rig.put(put, body).await.unwrap();
    let ids = vec![ChunkId::of(b"hello"), ChunkId::of(b"world!")];
    rig.node.erased.learn(&[Erased { index: 1, id: ids[0], what: Erasure::Erased }], true);
    assert!(rig.store.has(&ids[0]).unwrap());
    let error = rig.get(ids[0], 0, 1).await.unwrap_err();
    assert_eq!((error.code, error.retry), (Code::NotFound, Retry::Elsewhere));
    let many = ChunkRequest::GetMany(GetMany { ids });
    let reply = rig.ask(Role::Edge, many, Bytes::new()).await.unwrap();
    let lens = vec![None, Some(6)];
    assert_eq!(reply.head, ChunkResponse::Many { lens, complete: true });
    assert_eq!(reply.body, b"world!");
}

#[tokio::test]
async fn a_missing_chunk_may_be_elsewhere() {
    let rig = Rig::alone().await;
    let error = rig.get(ChunkId([9; 32]), 0, 1).await.unwrap_err();
    assert_eq!((error.code, error.retry), (Code::NotFound, Retry::Elsewhere));
}

#[tokio::test]
async fn wrong_bytes_are_not_kept() {
    let rig = Rig::alone().await;
    let (put, _) = put_of(&[b"good", b"hello"]);
    assert_eq!(code(rig.put(put, Bytes::from_static(b"goodhellO")).await), Code::Corrupt);
    assert_eq!(rig.stat().await.chunks, 0);
    let long = vec![7; 1 << 20];
    let (put, _) = put_of(&[&long]);
    assert_eq!(code(rig.put(put, Bytes::from(vec![8; 1 << 20])).await), Code::Corrupt);
}

#[tokio::test]
async fn a_put_must_make_sense() {
    let rig = Rig::alone().await;
    let (put, body) = put_of(&[b"hello"]);
    assert_eq!(code(rig.put(put.clone(), Bytes::new()).await), Code::Invalid);
    assert_eq!(code(rig.put(put.clone(), Bytes::from_static(b"hello!")).await), Code::Invalid);
    let none = Put { chunks: Vec::new(), ..put.clone() };
    assert_eq!(code(rig.put(none, Bytes::new()).await), Code::Invalid);
    let long = Put { chunks: vec![(ChunkId([1; 32]), limits::CHUNK_BYTES_MAX + 1)], ..put.clone() };
    assert_eq!(code(rig.put(long, body.clone()).await), Code::Limit);
    let many =
        Put { chunks: vec![(put.chunks[0].0, 0); limits::PUT_CHUNKS_MAX + 1], ..put.clone() };
    assert_eq!(code(rig.put(many, Bytes::new()).await), Code::Limit);
    let ids = vec![ChunkId([1; 32]); limits::IDS_MAX + 1];
    assert_eq!(code(rig.ask(Role::Client, ChunkRequest::Has { ids }, body).await), Code::Limit);
    assert_eq!(rig.stat().await.chunks, 0);
}

#[tokio::test]
async fn a_stale_epoch_is_answered_with_the_new_one() {
    let rig = Rig::alone().await;
    let (put, body) = put_of(&[b"hello"]);
    let error = rig.put(Put { epoch: Epoch(4), ..put.clone() }, body.clone()).await.unwrap_err();
    assert_eq!((error.code, error.retry), (Code::StaleEpoch, Retry::Same));
    assert!(error.message.contains("the epoch is 5"), "{error}");
    // Once a master spoke of a newer epoch, the table at hand is stale too.
    rig.node.placement.hear(CLUSTER, Epoch(6), 1).await.unwrap();
    assert_eq!(code(rig.put(put, body).await), Code::StaleEpoch);
}

#[tokio::test]
async fn a_chunk_that_belongs_elsewhere_is_refused() {
    let rig = Rig::fresh();
    rig.node.placement.adopt(view(&[NodeId(2), NodeId(3)])).await.unwrap();
    rig.node.set_receipt_key(KEY);
    let (put, body) = put_of(&[b"hello"]);
    let error = rig.put(put, body).await.unwrap_err();
    assert_eq!(error.code, Code::StaleEpoch);
    assert!(error.message.contains("no member"), "{error}");
}

#[tokio::test]
async fn only_clients_and_masters_put_and_only_servers_relay() {
    let rig = Rig::alone().await;
    let (put, body) = put_of(&[b"hello"]);
    for (role, relay, allowed) in [
        (Role::Client, true, true),
        (Role::Client, false, false),
        (Role::Chunkserver, true, false),
        (Role::Chunkserver, false, true),
        (Role::Edge, true, false),
        (Role::Edge, false, false),
        (Role::Master, true, true),
        (Role::Master, false, false),
    ] {
        let request = ChunkRequest::Put(Put { relay, ..put.clone() });
        let result = rig.ask(role, request, body.clone()).await;
        assert_eq!(result.is_ok(), allowed, "{role} relay={relay}: {result:?}");
        assert!(allowed || code(result) == Code::Denied);
    }
    let stranger = Peer { name: "chunkserver-9".to_owned(), ..peer(Role::Chunkserver) };
    let request = ChunkRequest::Put(Put { relay: false, ..put });
    assert_eq!(code(rig.ask_as(stranger, request, body).await), Code::Denied);
}

#[tokio::test]
async fn another_cluster_is_refused() {
    let rig = Rig::alone().await;
    let foreign = Peer { cluster: ClusterId([2; 16]), ..peer(Role::Client) };
    let (put, body) = put_of(&[b"hello"]);
    for request in [ChunkRequest::Put(put), ChunkRequest::Stat] {
        let result = rig.ask_as(foreign.clone(), request, body.clone()).await;
        assert_eq!(code(result), Code::ForeignCluster);
    }
}

#[tokio::test]
async fn reads_need_no_master_and_puts_do() {
    let rig = Rig::fresh();
    let (put, body) = put_of(&[b"hello"]);
    assert_eq!(code(rig.put(put.clone(), body.clone()).await), Code::Unavailable);
    rig.node.placement.adopt(view(&[NodeId(1)])).await.unwrap();
    rig.node.set_receipt_key(KEY);
    rig.put(put, body).await.unwrap();
    assert_eq!(rig.get(ChunkId::of(b"hello"), 0, 9).await.unwrap().body, b"hello");
}

#[tokio::test]
async fn a_corrupt_chunk_is_never_served_and_a_put_heals_it() {
    let rig = Rig::alone().await;
    let (put, body) = put_of(&[b"hello", b"world"]);
    rig.put(put.clone(), body.clone()).await.unwrap();
    let id = ChunkId::of(b"hello");
    rig.store.damage(&id, Bytes::from_static(b"hellO"));
    for _ in 0..2 {
        let error = rig.get(id, 0, 1).await.unwrap_err();
        assert_eq!((error.code, error.retry), (Code::Corrupt, Retry::Elsewhere));
    }
    let stat = rig.stat().await;
    assert_eq!((stat.chunks, stat.corrupt_found), (1, 1));
    assert_eq!(rig.get(ChunkId::of(b"world"), 0, 5).await.unwrap().body, b"world");
    rig.put(put, body).await.unwrap();
    assert_eq!(rig.get(id, 0, 5).await.unwrap().body, b"hello");
}

#[tokio::test]
async fn a_full_store_refuses_puts_and_serves_reads() {
    let rig = Rig::alone().await;
    let (put, body) = put_of(&[b"hello"]);
    rig.put(put, body).await.unwrap();
    rig.store.resize(5);
    let (put, body) = put_of(&[b"world"]);
    let error = rig.put(put.clone(), body.clone()).await.unwrap_err();
    assert_eq!((error.code, error.retry), (Code::Full, Retry::Elsewhere));
    assert_eq!(rig.get(ChunkId::of(b"hello"), 0, 5).await.unwrap().body, b"hello");
    rig.store.resize(10);
    rig.put(put, body).await.unwrap();
}

fn any_request() -> impl Strategy<Value = ChunkRequest> {
    let id = any::<[u8; 32]>().prop_map(ChunkId);
    let ids = proptest::collection::vec(id.clone(), 0..4);
    let chunks = proptest::collection::vec((id.clone(), any::<u32>()), 0..4);
    prop_oneof![
        (any::<u64>(), 4..6u64, chunks, any::<bool>()).prop_map(|(s, e, chunks, relay)| {
            let (session, epoch) = (SessionId(s), Epoch(e));
            ChunkRequest::Put(Put { session, epoch, chunks, relay })
        }),
        (id, any::<u32>(), any::<u32>()).prop_map(|(id, offset, len)| ChunkRequest::Get(Get {
            id,
            offset,
            len
        })),
        ids.clone().prop_map(|ids| ChunkRequest::GetMany(GetMany { ids })),
        ids.prop_map(|ids| ChunkRequest::Has { ids }),
        Just(ChunkRequest::Stat),
    ]
}

#[test]
fn no_request_panics() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let rig = runtime.block_on(Rig::alone());
    proptest!(|(
        request in any_request(),
        noise: Vec<u8>,
        body: Vec<u8>,
        role in 0..4usize,
    )| {
        let decoded = atoll_proto::decode::<ChunkRequest>(&noise).ok();
        for request in decoded.into_iter().chain([request]) {
            let asked = rig.ask(Role::ALL[role], request, Bytes::from(body.clone()));
            let answer: Result<Reply, WireError> = runtime.block_on(asked);
            drop(answer);
        }
    });
}

#[tokio::test]
async fn a_walk_leads_to_what_is_live_and_refuses_what_makes_no_sense() {
    let rig = Rig::alone().await;
    let (put, body) = put_of(&[b"live", b"pending"]);
    rig.put(put, body).await.unwrap();
    let live = ChunkId::of(b"live");
    rig.store.mark(&[(live, Mark::Live), (ChunkId([9; 32]), Mark::Live)], 0, Some(7)).unwrap();
    let walk = |epoch, asks| {
        let request = ChunkRequest::Walk { epoch, asks };
        rig.ask(Role::Chunkserver, request, Bytes::new())
    };
    let (pg, bucket) = (live.pg(), bucket_of(&live));
    let ids = Ask::Ids { pg, bucket };
    let mid = bucket / 16;
    let reply = walk(EPOCH, vec![Ask::Mids { pg }, Ask::Buckets { pg, mid }, ids]).await.unwrap();
    let ChunkResponse::Found { index: 7, found } = reply.head else { panic!("{reply:?}") };
    let [Found::Digests(mids), Found::Digests(buckets), Found::Ids(found)] = &found[..] else {
        panic!("{found:?}")
    };
    assert_eq!((mids.len(), buckets.len(), &found[..]), (16, 16, &[live][..]));

    assert_eq!(code(walk(Epoch(4), vec![ids]).await), Code::StaleEpoch);
    assert_eq!(code(walk(EPOCH, vec![ids; 513]).await), Code::Limit);
    for ask in [
        Ask::Tops,
        Ask::Groups { top: 1 },
        Ask::Mids { pg: PgId(4096) },
        Ask::Buckets { pg, mid: 16 },
        Ask::Ids { pg: PgId(u16::MAX), bucket: 0 },
    ] {
        assert_eq!(code(walk(EPOCH, vec![ask]).await), Code::Invalid, "{ask:?}");
    }
    let request = ChunkRequest::Walk { epoch: EPOCH, asks: vec![ids] };
    let stranger = Peer { name: "chunkserver-9".to_owned(), ..peer(Role::Chunkserver) };
    assert_eq!(code(rig.ask_as(stranger, request.clone(), Bytes::new()).await), Code::Denied);
    assert_eq!(code(rig.ask(Role::Client, request, Bytes::new()).await), Code::Denied);
}

#[tokio::test]
async fn what_is_lacking_is_listed_in_parts() {
    let rig = Rig::alone().await;
    let ids = [1, 2, 3].map(|n| ChunkId([n; 32]));
    rig.store.mark(&ids.map(|id| (id, Mark::Live)), 0, None).unwrap();
    let list = |after, limit| {
        let request = ChunkRequest::Lacking { after, limit };
        rig.ask(Role::Client, request, Bytes::new())
    };
    for (after, limit, wanted) in [
        (None, u32::MAX, &ids[..]),
        (None, 2, &ids[..2]),
        (Some(ids[1]), 9, &ids[2..]),
        (Some(ids[2]), 9, &[]),
        (None, 0, &[]),
    ] {
        let ChunkResponse::Lacking(found) = list(after, limit).await.unwrap().head else {
            panic!("another kind of answer")
        };
        assert_eq!(found.iter().map(|it| it.id).collect::<Vec<_>>(), wanted);
        assert!(found.iter().all(|it| !it.corrupt && !it.dead && it.attempts == 0));
    }
}
