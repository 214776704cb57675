//! Whole chunkservers on loopback, with a master that only this test knows: puts are relayed,
//! survive the loss of one server, and are refused without a quorum.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use atoll_chunkserver::{Config, RunError};
use atoll_net::{
    Answer, CallError, CallOptions, ClusterCa, Context, Endpoint, Role, ServeLimits, Service,
    ShutdownTrigger, shutdown,
};
use atoll_proto::chunk::{ChunkRequest, ChunkResponse, Get, Put};
use atoll_proto::cluster::{ClusterView, Duty, NodeInfo, NodeKind, NodeState, NodeView, PgTable};
use atoll_proto::master::{MasterRequest, MasterResponse, Orders};
use atoll_proto::receipt::ReceiptKey;
use atoll_proto::{
    ChunkId, ClusterId, Code, Epoch, NodeId, SessionId, WireError, WireResult, limits,
};
use bytes::Bytes;
use tokio::sync::watch;
use tokio::task::JoinHandle;

const CLUSTER: ClusterId = ClusterId([7; 16]);
const KEY: ReceiptKey = ReceiptKey([3; 32]);
const SESSION: SessionId = SessionId(4);

/// What the test's master knows and says.
#[derive(Debug, Clone)]
struct State {
    cluster: ClusterId,
    epoch: u64,
    nodes: BTreeMap<NodeId, NodeInfo>,
    ready: BTreeMap<NodeId, bool>,
    registrations: u64,
    forgotten: bool,
}

struct Master(watch::Sender<State>);

impl Master {
    fn view(&self) -> ClusterView {
        let state = self.0.borrow();
        let mut table = PgTable::empty();
        table.epoch = Epoch(state.epoch);
        table.members.iter_mut().for_each(|group| group.extend(state.nodes.keys()));
        let up = |info: &NodeInfo| NodeView {
            info: info.clone(),
            state: NodeState::Up,
            ready: true,
            duty: Duty::Active,
        };
        ClusterView {
            cluster: state.cluster,
            index: state.registrations,
            chunk_bytes: limits::CHUNK_BYTES,
            nodes: state.nodes.values().map(up).collect(),
            table,
            zone: None,
            url_template: None,
        }
    }
}

impl Service for Master {
    type Request = MasterRequest;
    type Response = MasterResponse;

    fn operation(_: &MasterRequest) -> &'static str {
        "test"
    }

    async fn call(
        &self,
        _: Context,
        request: MasterRequest,
        _: Bytes,
    ) -> WireResult<Answer<MasterResponse>> {
        let answer = match request {
            MasterRequest::Register { info } => {
                self.0.send_modify(|state| {
                    state.nodes.insert(info.id, info);
                    state.epoch += 1;
                    state.registrations += 1;
                    state.forgotten = false;
                });
                let state = self.0.borrow();
                MasterResponse::Registered {
                    cluster: state.cluster,
                    receipt_key: Some(KEY),
                    epoch: Epoch(state.epoch),
                    term: 1,
                }
            }
            MasterRequest::Heartbeat { node, ready, .. } => {
                self.0.send_modify(|state| {
                    state.ready.insert(node, ready);
                });
                let state = self.0.borrow();
                let known = !state.forgotten;
                MasterResponse::Heard {
                    epoch: Epoch(state.epoch),
                    term: 1,
                    known,
                    orders: Orders::default(),
                    in_sync: None,
                    differ: Vec::new(),
                }
            }
            MasterRequest::Cluster { .. } => MasterResponse::Cluster(Some(Box::new(self.view()))),
            other => return Err(WireError::invalid(format!("not in this test: {other:?}"))),
        };
        Ok(Answer::head(answer))
    }
}

struct Server {
    stop: ShutdownTrigger,
    running: JoinHandle<Result<(), RunError>>,
}

impl Server {
    async fn stop(self) {
        self.stop.trigger();
        self.running.await.unwrap().unwrap();
    }
}

struct Rig {
    authority: ClusterCa,
    dir: tempfile::TempDir,
    master_addr: SocketAddr,
    state: watch::Receiver<State>,
    change: Arc<Master>,
    client: Endpoint,
    servers: Mutex<BTreeMap<u64, Server>>,
    zones: &'static [&'static str],
    _stop: ShutdownTrigger,
}

/// A member that takes every request and answers none, as a process does that was stopped.
struct Frozen;

impl Service for Frozen {
    type Request = ChunkRequest;
    type Response = ChunkResponse;

    fn operation(_: &ChunkRequest) -> &'static str {
        "test"
    }

    async fn call(
        &self,
        _: Context,
        _: ChunkRequest,
        _: Bytes,
    ) -> WireResult<Answer<ChunkResponse>> {
        std::future::pending().await
    }
}

impl Rig {
    /// A master and this many chunkservers, all ready and all knowing each other, each in its own
    /// zone.
    async fn start(servers: u64) -> Self {
        Self::start_in(&["z1", "z2", "z3"], servers).await
    }

    /// As [`Rig::start`], in these zones.
    async fn start_in(zones: &'static [&'static str], servers: u64) -> Self {
        let authority = ClusterCa::create(CLUSTER).unwrap();
        let (stop, stopped) = shutdown::pair();
        let (send, state) = watch::channel(State {
            cluster: CLUSTER,
            epoch: 100,
            nodes: BTreeMap::new(),
            ready: BTreeMap::new(),
            registrations: 0,
            forgotten: false,
        });
        let change = Arc::new(Master(send));
        let endpoint = endpoint(&authority, Role::Master, "master-1");
        let master_addr = endpoint.local_addr();
        let service = change.clone();
        tokio::spawn(async move { endpoint.serve(service, limits_of_test(), stopped).await });
        let client = endpoint_of_client(&authority);
        let dir = tempfile::tempdir().unwrap();
        let servers_now = Mutex::default();
        let rig = Self {
            authority,
            dir,
            master_addr,
            state,
            change,
            client,
            servers: servers_now,
            zones,
            _stop: stop,
        };
        for id in 1..=servers {
            rig.start_server(id);
        }
        rig.until(|state| state.ready.values().filter(|ready| **ready).count() as u64 == servers)
            .await;
        rig
    }

    fn config(&self, id: u64) -> Config {
        let name = format!("chunkserver-{id}");
        let identity = self.dir.path().join(format!("identity-{id}"));
        self.authority.issue(Role::Chunkserver, &name).unwrap().save(&identity).unwrap();
        Config {
            id,
            name,
            cluster: CLUSTER,
            listen: any_port(),
            advertise: None,
            admin: any_port(),
            data: self.data(id),
            identity,
            masters: vec![self.master_addr],
            zone: self.zone(id),
            region: "eu".to_owned(),
            weight: 100,
            reserve_bytes: None,
            ready_file: Some(self.dir.path().join(format!("ready-{id}.json"))),
            repair_bytes_per_s: None,
            repair_retry_ms: 1000,
            scrub_days: 7.0,
            sweep_every_s: 3600,
            pending_lifetime_ms: 1 << 40,
            quarantine_lifetime_ms: 1 << 40,
        }
    }

    fn zone(&self, id: u64) -> String {
        self.zones[usize::try_from(id).unwrap() - 1].to_owned()
    }

    /// Another member, which never answers; it is taken to be up. Waits until the first server
    /// knows of it.
    async fn add_frozen(&self, id: u64) -> ShutdownTrigger {
        let name = format!("chunkserver-{id}");
        let endpoint = endpoint(&self.authority, Role::Chunkserver, &name);
        let info = NodeInfo {
            id: NodeId(id),
            name,
            kind: NodeKind::Chunkserver,
            addr: endpoint.local_addr(),
            zone: self.zone(id),
            region: "eu".to_owned(),
            weight: 100,
            edge: None,
        };
        let (stop, stopped) = shutdown::pair();
        tokio::spawn(async move {
            endpoint.serve(Arc::new(Frozen), limits_of_test(), stopped).await;
        });
        self.change.0.send_modify(|state| {
            state.nodes.insert(info.id, info);
            state.epoch += 1;
            state.registrations += 1;
        });
        stop
    }

    fn data(&self, id: u64) -> PathBuf {
        self.dir.path().join(format!("data-{id}"))
    }

    fn start_server(&self, id: u64) {
        let (stop, stopped) = shutdown::pair();
        let running = tokio::spawn(atoll_chunkserver::run(self.config(id), stopped));
        self.servers.lock().unwrap().insert(id, Server { stop, running });
    }

    async fn stop_server(&self, id: u64) {
        let server = self.servers.lock().unwrap().remove(&id).unwrap();
        server.stop().await;
    }

    async fn stop_all(&self) {
        let servers = std::mem::take(&mut *self.servers.lock().unwrap());
        for server in servers.into_values() {
            server.stop().await;
        }
    }

    async fn until(&self, reached: impl FnMut(&State) -> bool) {
        let mut state = self.state.clone();
        let reached = state.wait_for(reached);
        drop(tokio::time::timeout(Duration::from_secs(30), reached).await.unwrap().unwrap());
    }

    fn addr(&self, id: u64) -> SocketAddr {
        self.state.borrow().nodes[&NodeId(id)].addr
    }

    fn epoch(&self) -> Epoch {
        Epoch(self.state.borrow().epoch)
    }

    async fn put(
        &self,
        head: u64,
        epoch: Epoch,
        bytes: &[u8],
        wait: Duration,
    ) -> Result<ChunkResponse, CallError> {
        let chunks = vec![(ChunkId::of(bytes), bytes.len() as u32)];
        let put = ChunkRequest::Put(Put { session: SESSION, epoch, chunks, relay: true });
        let body = vec![Bytes::copy_from_slice(bytes)];
        let options = CallOptions::within(wait);
        let answer = self.client.call(self.addr(head), Role::Chunkserver, &put, body, options);
        answer.await.map(|(head, _): (ChunkResponse, Bytes)| head)
    }

    async fn get(&self, from: u64, bytes: &[u8]) -> Result<Bytes, CallError> {
        let get = Get { id: ChunkId::of(bytes), offset: 0, len: u32::MAX };
        let options = CallOptions::within(Duration::from_secs(5));
        let answer: Result<(ChunkResponse, Bytes), CallError> = self
            .client
            .call(self.addr(from), Role::Chunkserver, &ChunkRequest::Get(get), vec![], options)
            .await;
        answer.map(|(_, body)| body)
    }

    /// Puts, with an epoch that may have changed in between; returns the servers with receipts.
    async fn put_well(&self, head: u64, bytes: &[u8]) -> Vec<NodeId> {
        let answer = self.put(head, self.epoch(), bytes, limits::CHUNK_DEADLINE).await;
        let ChunkResponse::Stored { receipts, .. } = answer.unwrap() else { panic!("no receipts") };
        let named = (ChunkId::of(bytes), bytes.len() as u32);
        for receipt in &receipts {
            assert!(receipt.verify(&KEY, SESSION, 0));
            assert_eq!(receipt.chunks, [named]);
        }
        let mut nodes: Vec<NodeId> = receipts.iter().map(|receipt| receipt.node).collect();
        nodes.sort();
        nodes
    }
}

fn any_port() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

fn endpoint(authority: &ClusterCa, role: Role, name: &str) -> Endpoint {
    Endpoint::bind(any_port(), &authority.issue(role, name).unwrap()).unwrap()
}

fn endpoint_of_client(authority: &ClusterCa) -> Endpoint {
    Endpoint::client(&authority.issue(Role::Client, "test").unwrap()).unwrap()
}

fn limits_of_test() -> ServeLimits {
    ServeLimits { drain: Duration::from_secs(1), ..ServeLimits::default() }
}

fn refusal(answer: Result<ChunkResponse, CallError>) -> WireError {
    match answer {
        Err(CallError::Refused(error)) => error,
        other => panic!("not refused: {other:?}"),
    }
}

/// Asks until the chunk is there: the member that was not waited for stores it all the same.
async fn until_there(rig: &Rig, id: u64, bytes: &[u8]) {
    let tries = async {
        while rig.get(id, bytes).await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), tries).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn puts_survive_the_loss_of_one_server_and_need_two() {
    let rig = Rig::start(3).await;
    let first = vec![1; 300_000];
    let nodes = rig.put_well(1, &first).await;
    assert!(nodes.len() >= 2, "{nodes:?}");
    for id in 1..=3 {
        until_there(&rig, id, &first).await;
        assert_eq!(rig.get(id, &first).await.unwrap(), first);
    }

    rig.stop_server(3).await;
    let second = b"while one is down".to_vec();
    assert_eq!(rig.put_well(1, &second).await, [NodeId(1), NodeId(2)]);
    // A dead peer is known by now: puts take no longer than those who live.
    let started = std::time::Instant::now();
    for n in 0..20u8 {
        assert_eq!(rig.put_well(1 + u64::from(n % 2), &[n; 100]).await, [NodeId(1), NodeId(2)]);
    }
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());

    rig.stop_server(2).await;
    let error = refusal(rig.put(1, rig.epoch(), b"alone", Duration::from_secs(6)).await);
    assert_eq!(error.code, Code::TooFewReplicas, "{error}");
    assert!(error.message.contains("node 2") && error.message.contains("node 3"), "{error}");
    assert_eq!(rig.get(1, &second).await.unwrap(), second, "reads go on");

    rig.start_server(2);
    rig.until(|state| state.registrations == 4 && state.ready[&NodeId(2)]).await;
    assert_eq!(rig.get(2, &second).await.unwrap(), second, "and survive a restart");
    assert_eq!(rig.put_well(2, b"again").await, [NodeId(1), NodeId(2)]);
    rig.stop_all().await;
}

/// Far less than 40 puts take that all wait for a frozen member, and far more than they need.
const NOT_WAITED_FOR: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_member_is_not_waited_for() {
    let rig = Rig::start(2).await;
    let _frozen = rig.add_frozen(3).await;
    let started = std::time::Instant::now();
    for n in 0..20u8 {
        assert_eq!(rig.put_well(1 + u64::from(n % 2), &[n; 100]).await, [NodeId(1), NodeId(2)]);
    }
    // More than may be on its way to one peer.
    for n in 0..24u8 {
        let large = vec![n; 4 << 20];
        assert_eq!(rig.put_well(1, &large).await, [NodeId(1), NodeId(2)]);
    }
    assert!(started.elapsed() < NOT_WAITED_FOR, "{:?}", started.elapsed());
    rig.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_zone_is_waited_for_but_not_for_long() {
    let rig = Rig::start_in(&["near", "near", "far", "far"], 3).await;
    // Both zones answer: the copies are in both, whoever is faster.
    for n in 0..20u8 {
        let nodes = rig.put_well(1 + u64::from(n % 2), &[n; 100]).await;
        assert!(nodes.contains(&NodeId(3)), "{nodes:?}");
    }
    rig.stop_server(3).await;
    rig.change.0.send_modify(|state| {
        state.nodes.remove(&NodeId(3));
        state.epoch += 1;
    });
    let _frozen = rig.add_frozen(4).await;
    let started = std::time::Instant::now();
    for n in 0..40u8 {
        assert_eq!(rig.put_well(1, &[n; 101]).await, [NodeId(1), NodeId(2)]);
    }
    assert!(started.elapsed() < NOT_WAITED_FOR, "{:?}", started.elapsed());
    rig.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn epochs_are_followed_both_ways() {
    let rig = Rig::start(2).await;
    let old = rig.epoch();
    // The master has a new table of which the servers have not heard yet; the client has.
    rig.change.0.send_modify(|state| state.epoch += 10);
    rig.put_well(1, b"newer than the server's").await;
    let error = refusal(rig.put(1, old, b"older", Duration::from_secs(5)).await);
    assert_eq!(error.code, Code::StaleEpoch);
    assert!(error.message.contains(&rig.epoch().to_string()), "{error}");
    // A table that no master has.
    let ahead = Epoch(rig.epoch().0 + 1);
    let error = refusal(rig.put(1, ahead, b"from the future", Duration::from_secs(5)).await);
    assert_eq!(error.code, Code::Unavailable, "{error}");
    rig.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_that_forgot_a_node_hears_of_it_again() {
    let rig = Rig::start(1).await;
    rig.change.0.send_modify(|state| state.forgotten = true);
    rig.until(|state| state.registrations == 2).await;
    let ready = rig.dir.path().join("ready-1.json");
    let written = async {
        while !ready.exists() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), written).await.unwrap();
    let text = std::fs::read_to_string(ready).unwrap();
    assert!(text.contains(&rig.addr(1).to_string()) && text.contains("\"admin\""), "{text}");
    rig.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_cluster_stays_outside() {
    let rig = Rig::start(1).await;
    let other = ClusterCa::create(ClusterId([8; 16])).unwrap();
    let stranger = endpoint_of_client(&other);
    let options = CallOptions::within(Duration::from_secs(3));
    let answer: Result<(ChunkResponse, Bytes), CallError> =
        stranger.call(rig.addr(1), Role::Chunkserver, &ChunkRequest::Stat, vec![], options).await;
    assert!(matches!(answer, Err(CallError::Unreachable { .. })), "{answer:?}");
    rig.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_of_another_cluster_or_from_the_past_is_not_followed() {
    let rig = Rig::start(1).await;
    rig.put_well(1, b"before").await;
    rig.stop_server(1).await;
    let known = rig.epoch().0;
    for change in [
        &(|state: &mut State| state.epoch = 0) as &dyn Fn(&mut State),
        &(|state: &mut State| (state.epoch, state.cluster) = (known + 9, ClusterId([8; 16]))),
    ] {
        let before = rig.state.borrow().registrations;
        rig.change.0.send_modify(|state| {
            state.ready.clear();
            change(state);
        });
        rig.start_server(1);
        // It tries several times, says nothing of readiness, and serves reads.
        rig.until(|state| state.registrations >= before + 2).await;
        assert_ne!(rig.state.borrow().ready.get(&NodeId(1)), Some(&true));
        assert_eq!(rig.get(1, b"before").await.unwrap(), &b"before"[..]);
        let error = refusal(rig.put(1, Epoch(known), b"after", Duration::from_secs(2)).await);
        assert_eq!(error.code, Code::Unavailable, "{error}");
        rig.stop_server(1).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_data_of_another_node_is_refused() {
    let rig = Rig::start(1).await;
    rig.stop_server(1).await;
    let mine = |data: &Path| Config { data: data.to_owned(), ..rig.config(2) };
    let (_trigger, stopped) = shutdown::pair();
    let error = atoll_chunkserver::run(mine(&rig.data(1)), stopped.clone()).await.unwrap_err();
    assert!(matches!(error, RunError::ForeignData { .. }), "{error}");
    let certificate = Config { identity: rig.config(1).identity, ..rig.config(2) };
    let error = atoll_chunkserver::run(certificate, stopped).await.unwrap_err();
    assert!(matches!(error, RunError::Certificate { .. }), "{error}");
}
