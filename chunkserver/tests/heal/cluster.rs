//! Whole chunkservers on loopback, on stores in memory that the test can reach into, with the
//! tests' own master.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use atoll_chunkserver::store::memory::MemoryStore;
use atoll_chunkserver::store::{Body, ChunkStore, NewChunk, Record};
use atoll_chunkserver::{Config, Pauses, Point, RunError, run, run_on};
use atoll_net::{
    CallError, CallOptions, ClusterCa, Endpoint, Role, ServeLimits, ShutdownTrigger, shutdown,
};
use atoll_proto::chunk::{ChunkRequest, ChunkResponse, ChunkStat, Get};
use atoll_proto::{ChunkId, ClusterId, Epoch, NodeId};
use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;

use super::master::{Master, State};

pub(crate) const CLUSTER: ClusterId = ClusterId([7; 16]);
/// Nothing here waits longer; reaching it is a failure.
const DEADLINE: Duration = Duration::from_secs(60);

struct Server {
    stop: ShutdownTrigger,
    running: JoinHandle<Result<(), RunError>>,
}

/// Changes a configuration.
type Tune = fn(&mut Config);

pub(crate) struct Cluster {
    authority: ClusterCa,
    dir: tempfile::TempDir,
    master_addr: SocketAddr,
    pub(crate) master: Arc<Master>,
    state: watch::Receiver<State>,
    client: Endpoint,
    stores: Mutex<BTreeMap<u64, Arc<MemoryStore>>>,
    servers: Mutex<BTreeMap<u64, Server>>,
    pauses: Mutex<Option<Arc<dyn Pauses>>>,
    tune: Tune,
    _stop: ShutdownTrigger,
}

impl Cluster {
    /// A master; servers are started one by one.
    pub(crate) fn new(tune: Tune) -> Self {
        let authority = ClusterCa::create(CLUSTER).unwrap();
        let (stop, stopped) = shutdown::pair();
        let (send, state) = watch::channel(State::new());
        let master = Arc::new(Master(send));
        let identity = authority.issue(Role::Master, "master-1").unwrap();
        let endpoint = Endpoint::bind(any_port(), &identity).unwrap();
        let master_addr = endpoint.local_addr();
        let service = master.clone();
        let limits = ServeLimits { drain: Duration::from_secs(1), ..ServeLimits::default() };
        tokio::spawn(async move { endpoint.serve(service, limits, stopped).await });
        let client = Endpoint::client(&authority.issue(Role::Client, "test").unwrap()).unwrap();
        Self {
            authority,
            dir: tempfile::tempdir().unwrap(),
            master_addr,
            master,
            state,
            client,
            stores: Mutex::default(),
            servers: Mutex::default(),
            pauses: Mutex::default(),
            tune,
            _stop: stop,
        }
    }

    /// With this many servers.
    pub(crate) async fn start(servers: u64) -> Self {
        Self::start_with(servers, |_| {}).await
    }

    pub(crate) async fn start_with(servers: u64, tune: Tune) -> Self {
        let cluster = Self::new(tune);
        cluster.start_servers(servers).await;
        cluster
    }

    pub(crate) async fn start_servers(&self, servers: u64) {
        for id in 1..=servers {
            self.start_server(id);
        }
        self.until_registered(servers).await;
    }

    /// Waits until so many servers were heard.
    pub(crate) async fn until_registered(&self, servers: u64) {
        self.until("all are registered", |state| {
            state.nodes.len() as u64 == servers && state.in_sync.len() as u64 == servers
        })
        .await;
    }

    /// Work of servers started after this can be held up.
    pub(crate) fn hold(&self, pauses: Arc<dyn Pauses>) {
        *self.pauses.lock().unwrap() = Some(pauses);
    }

    fn config(&self, id: u64) -> Config {
        let name = format!("chunkserver-{id}");
        let identity = self.dir.path().join(format!("identity-{id}"));
        self.authority.issue(Role::Chunkserver, &name).unwrap().save(&identity).unwrap();
        let mut config = Config {
            id,
            name,
            cluster: CLUSTER,
            listen: any_port(),
            advertise: None,
            admin: any_port(),
            data: self.data(id),
            identity,
            masters: vec![self.master_addr],
            zone: format!("z{id}"),
            region: "eu".to_owned(),
            weight: 100,
            reserve_bytes: None,
            ready_file: None,
            repair_bytes_per_s: None,
            repair_retry_ms: 1000,
            scrub_days: 7.0,
            sweep_every_s: 3600,
            pending_lifetime_ms: 1 << 40,
            quarantine_lifetime_ms: 1 << 40,
        };
        (self.tune)(&mut config);
        config
    }

    /// The store of a server, whether it runs or not; an empty one at first.
    pub(crate) fn store(&self, id: u64) -> Arc<MemoryStore> {
        let mut stores = self.stores.lock().unwrap();
        Arc::clone(stores.entry(id).or_default())
    }

    pub(crate) fn start_server(&self, id: u64) {
        let (stop, stopped) = shutdown::pair();
        let pauses = self.pauses.lock().unwrap().clone();
        let running = tokio::spawn(run_on(self.config(id), self.store(id), pauses, stopped));
        self.servers.lock().unwrap().insert(id, Server { stop, running });
    }

    /// Starts a server with its chunks on the disk, in [`Cluster::data`].
    pub(crate) fn start_on_disk(&self, id: u64) {
        let (stop, stopped) = shutdown::pair();
        let running = tokio::spawn(run(self.config(id), stopped));
        self.servers.lock().unwrap().insert(id, Server { stop, running });
    }

    /// Where a server has its data.
    pub(crate) fn data(&self, id: u64) -> PathBuf {
        self.dir.path().join(format!("data-{id}"))
    }

    pub(crate) async fn stop_server(&self, id: u64) {
        let server = self.servers.lock().unwrap().remove(&id).unwrap();
        server.stop.trigger();
        server.running.await.unwrap().unwrap();
    }

    /// A stopped server starts with another disk, which is empty.
    pub(crate) fn start_wiped(&self, id: u64) {
        self.stores.lock().unwrap().remove(&id);
        self.start_server(id);
    }

    pub(crate) async fn stop(self) {
        let ids: Vec<u64> = self.servers.lock().unwrap().keys().copied().collect();
        for id in ids {
            self.stop_server(id).await;
        }
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut State)) {
        self.master.0.send_modify(change);
    }

    pub(crate) fn state(&self) -> State {
        self.state.borrow().clone()
    }

    /// Waits until the master knows something.
    pub(crate) async fn until(&self, what: &str, reached: impl FnMut(&State) -> bool) {
        let mut state = self.state.clone();
        let reached = tokio::time::timeout(DEADLINE, state.wait_for(reached)).await.is_ok();
        if !reached {
            let state = self.state();
            let State { in_sync, stats, .. } = state;
            panic!("never: {what}; in_sync {in_sync:?}; {stats:#?}");
        }
    }

    /// Waits until something holds that nobody tells of.
    pub(crate) async fn holds(&self, what: &str, mut holds: impl FnMut() -> bool) {
        let wait = async {
            while !holds() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        if tokio::time::timeout(DEADLINE, wait).await.is_err() {
            panic!("never: {what}; {:#?}", self.state().stats);
        }
    }

    /// Waits until the master has found that all servers have exactly what they should have, in
    /// comparisons made from now on.
    pub(crate) async fn until_in_sync(&self) {
        self.change(|state| state.in_sync.clear());
        self.until("all is equal", |state| {
            state.nodes.keys().all(|node| state.in_sync.get(node) == Some(&Some(true)))
        })
        .await;
    }

    /// Waits for this many more steps of walks of a node.
    pub(crate) async fn until_walked(&self, node: u64, steps: u64) {
        let so_far = |state: &State| state.walks.get(&NodeId(node)).map_or(0, |walks| walks.0);
        let before = so_far(&self.state());
        self.until("walked", |state| so_far(state) >= before + steps).await;
    }

    /// Waits for a heartbeat from now on.
    pub(crate) async fn until_heard(&self, node: u64) {
        self.change(|state| drop(state.stats.remove(&NodeId(node))));
        self.until("heard", |state| state.stats.contains_key(&NodeId(node))).await;
    }

    pub(crate) fn stat(&self, node: u64) -> ChunkStat {
        self.state().stats.get(&NodeId(node)).cloned().unwrap_or_default()
    }

    pub(crate) async fn get(&self, from: u64, id: ChunkId) -> Result<Bytes, CallError> {
        let get = ChunkRequest::Get(Get { id, offset: 0, len: u32::MAX });
        self.ask(from, get).await.map(|(_, body)| body)
    }

    pub(crate) async fn ask(
        &self,
        server: u64,
        request: ChunkRequest,
    ) -> Result<(ChunkResponse, Bytes), CallError> {
        let addr = self.state().nodes[&NodeId(server)].addr;
        let options = CallOptions::within(Duration::from_secs(10));
        self.client.call(addr, Role::Chunkserver, &request, vec![], options).await
    }

    pub(crate) fn record(&self, server: u64, id: &ChunkId) -> Option<Record> {
        self.store(server).record(id).unwrap()
    }

    pub(crate) fn body(&self, server: u64, id: &ChunkId) -> Option<(bool, Body)> {
        self.record(server, id).map(|record| (record.live, record.body))
    }

    /// Puts chunks onto the disks of servers, as if clients had done it long ago.
    pub(crate) fn put(&self, servers: &[u64], chunks: &[NewChunk]) {
        for server in servers {
            self.store(*server).put_batch(chunks).unwrap();
        }
    }
}

/// Holds the work up at a point, until it is let go.
pub(crate) struct Hold {
    point: Point,
    /// How often the work has come there.
    pub(crate) waiting: watch::Sender<usize>,
    /// With permits nothing is held up any more.
    pub(crate) go: Arc<Semaphore>,
}

impl Hold {
    pub(crate) fn at(point: Point) -> Arc<Self> {
        let go = Arc::new(Semaphore::new(0));
        Arc::new(Self { point, waiting: watch::Sender::new(0), go })
    }
}

impl Pauses for Hold {
    fn at(&self, point: Point) -> BoxFuture<'static, ()> {
        if point != self.point {
            return async {}.boxed();
        }
        self.waiting.send_modify(|count| *count += 1);
        let go = Arc::clone(&self.go);
        async move { drop(go.acquire().await) }.boxed()
    }
}

/// Some different chunks.
pub(crate) fn chunks(count: u32) -> Vec<NewChunk> {
    (0..count).map(|n| chunk(&n.to_be_bytes().repeat(30))).collect()
}

pub(crate) fn chunk(bytes: &[u8]) -> NewChunk {
    let bytes = Bytes::copy_from_slice(bytes);
    NewChunk { id: ChunkId::of(&bytes), bytes, epoch: Epoch(1), at_ms: 1 }
}

pub(crate) fn ids(chunks: &[NewChunk]) -> Vec<ChunkId> {
    chunks.iter().map(|chunk| chunk.id).collect()
}

/// Ids of one group, of chunks that nobody has.
pub(crate) fn ids_of_one_group(count: u8) -> Vec<ChunkId> {
    (0..count)
        .map(|n| {
            let mut bytes = [n; 32];
            bytes[..2].copy_from_slice(&[0x77, 0x70 | (n & 0x0f)]);
            ChunkId(bytes)
        })
        .collect()
}

fn any_port() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}
