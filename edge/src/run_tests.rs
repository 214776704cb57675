//! Tests of a whole edge: [`super::run`] against a master and a chunkserver that speak the real
//! protocol from memory.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use atoll_net::identity::{ClusterCa, Role};
use atoll_net::service::{Answer, Context, Service};
use atoll_net::shutdown::{ShutdownTrigger, pair};
use atoll_proto::chunk::{ChunkRequest, ChunkResponse};
use atoll_proto::cluster::{ClusterView, Duty, NodeState, NodeView, PgTable};
use atoll_proto::content::Extent;
use atoll_proto::erase::ErasedPart;
use atoll_proto::manifest::Entry;
use atoll_proto::master::{MasterRequest, MasterResponse, Orders};
use atoll_proto::publish::{Alias, PublishEntry, PublishEvent, Site};
use atoll_proto::relay::{RelayKey, RelayedAck, RelayedGrant, RelayedRenewal};
use atoll_proto::{
    AliasName, ByteName, ChunkId, ClusterId, Content, DeployId, Epoch, Seq, WireError,
};
use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::*;

#[path = "run_relay_tests.rs"]
mod relayed;

const CLUSTER: ClusterId = ClusterId([9; 16]);

/// The master: a log, the nodes that registered, and what edges acknowledged.
#[derive(Default)]
struct Master {
    log: Mutex<Vec<PublishEntry>>,
    nodes: Mutex<HashMap<NodeId, NodeView>>,
    acked: Mutex<HashMap<NodeId, Seq>>,
    changed: Notify,
    /// What nodes that enrolled seal with; nobody can while there is none for them.
    keys: Mutex<HashMap<NodeId, RelayKey>>,
    relays: AtomicBool,
    /// How often a node asked for the log itself.
    watches: Mutex<HashMap<NodeId, usize>>,
    /// It grants no lease to edges.
    grants_none: AtomicBool,
}

impl Master {
    fn publish(&self, event: PublishEvent) -> Seq {
        let mut log = self.log.lock().unwrap();
        let seq = Seq(log.last().map_or(1, |last| last.seq.0 + 3));
        log.push(PublishEntry { seq, at_ms: 0, event });
        drop(log);
        self.changed.notify_waiters();
        seq
    }

    fn after(&self, seq: Seq) -> Vec<PublishEntry> {
        self.log.lock().unwrap().iter().filter(|entry| entry.seq > seq).cloned().collect()
    }

    async fn until_acked(&self, edge: u64, seq: Seq) {
        let acked = || self.acked.lock().unwrap().get(&NodeId(edge)).copied();
        let wait = async {
            while acked().is_none_or(|acked| acked < seq) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), wait).await.expect("the edge acknowledges");
    }

    async fn watch(&self, after: Seq, edge: Option<NodeId>, wait_ms: u32) -> MasterResponse {
        if let Some(edge) = edge {
            self.acked.lock().unwrap().insert(edge, after);
            *self.watches.lock().unwrap().entry(edge).or_default() += 1;
        }
        let changed = self.changed.notified();
        if self.after(after).is_empty() {
            let wait = Duration::from_millis(wait_ms.into());
            tokio::time::timeout(wait, changed).await.ok();
        }
        let entries = self.after(after);
        let upto = entries.last().map_or(after, |last| last.seq);
        MasterResponse::Log { entries, upto }
    }

    fn renew(&self, node: NodeId, ready: bool, applied: Option<Seq>) -> (bool, bool, Seq) {
        let mut nodes = self.nodes.lock().unwrap();
        let known = nodes.get_mut(&node).map(|node| node.ready = ready).is_some();
        let last = self.log.lock().unwrap().last().map_or(Seq(0), |last| last.seq);
        let is_shield = node.0 > 200;
        let may = is_shield || !self.grants_none.load(Ordering::SeqCst);
        (known, may && known && applied.is_some_and(|applied| applied >= last), last)
    }

    fn relay(&self, acks: &[RelayedAck], renewals: &[RelayedRenewal]) -> MasterResponse {
        let keys = self.keys.lock().unwrap().clone();
        let take = |ack: &RelayedAck| {
            let taken = keys.get(&ack.edge).is_some_and(|key| ack.is_of(key));
            if taken {
                self.acked.lock().unwrap().insert(ack.edge, ack.seq);
            }
            taken
        };
        let grant = |renewal: &RelayedRenewal| {
            let key = keys.get(&renewal.edge).filter(|key| renewal.is_of(key))?;
            let RelayedRenewal { edge, number, ready, applied, .. } = *renewal;
            let (_, granted, last) = self.renew(edge, ready, applied);
            Some(RelayedGrant::sealed(key, edge, number, granted, last))
        };
        let acks = acks.iter().map(take).collect();
        MasterResponse::Relayed { acks, renewals: renewals.iter().map(grant).collect() }
    }

    fn view(&self) -> ClusterView {
        let nodes: Vec<NodeView> = self.nodes.lock().unwrap().values().cloned().collect();
        let mut table = PgTable::empty();
        table.epoch = Epoch(1);
        table.members.fill(vec![NodeId(1)]);
        ClusterView {
            cluster: CLUSTER,
            index: 1 + nodes.len() as u64,
            chunk_bytes: 1 << 20,
            nodes,
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
        _context: Context,
        request: MasterRequest,
        _body: Bytes,
    ) -> Result<Answer<MasterResponse>, WireError> {
        let response = match request {
            MasterRequest::Erased { after, wait_ms, .. } => {
                tokio::time::sleep(Duration::from_millis(u64::from(wait_ms))).await;
                MasterResponse::Erased(ErasedPart { upto: after, ..ErasedPart::default() })
            }
            MasterRequest::Watch { after, edge, wait_ms } => self.watch(after, edge, wait_ms).await,
            MasterRequest::Cluster { .. } => MasterResponse::Cluster(Some(Box::new(self.view()))),
            MasterRequest::Register { info } => {
                let node =
                    NodeView { info, state: NodeState::Up, ready: false, duty: Duty::Active };
                self.nodes.lock().unwrap().insert(node.info.id, node);
                MasterResponse::Registered {
                    cluster: CLUSTER,
                    receipt_key: None,
                    epoch: Epoch(1),
                    term: 1,
                }
            }
            MasterRequest::Heartbeat { node, ready, .. } => {
                let mut nodes = self.nodes.lock().unwrap();
                let known = nodes.get_mut(&node).map(|node| node.ready = ready).is_some();
                MasterResponse::Heard {
                    epoch: Epoch(1),
                    term: 1,
                    known,
                    orders: Orders::default(),
                    in_sync: None,
                    differ: Vec::new(),
                }
            }
            MasterRequest::Renew { node, ready, applied } => {
                let (known, granted, _) = self.renew(node, ready, applied);
                MasterResponse::Renewed { known, granted }
            }
            MasterRequest::Enrol { node } if self.relays.load(Ordering::SeqCst) => {
                let key = RelayKey(rand::random());
                self.keys.lock().unwrap().insert(node, key);
                MasterResponse::Enrolled { key: Some(key) }
            }
            MasterRequest::Relay { acks, renewals, .. } => self.relay(&acks, &renewals),
            _ => return Err(WireError::invalid("not in this test")),
        };
        Ok(Answer::head(response))
    }
}

/// The chunkserver: chunks by hash, and how often they were read.
#[derive(Default)]
struct Store {
    chunks: Mutex<HashMap<ChunkId, Bytes>>,
    reads: AtomicUsize,
    lying: AtomicBool,
}

impl Store {
    fn add(&self, bytes: impl Into<Bytes>) -> ChunkId {
        let bytes = bytes.into();
        let id = ChunkId::of(&bytes);
        self.chunks.lock().unwrap().insert(id, bytes);
        id
    }

    fn deploy(&self, files: &[(&str, &str)]) -> DeployId {
        let entry = |(path, text): &(&str, &str)| {
            let id = self.add(text.as_bytes().to_vec());
            Entry {
                path: ByteName::from(*path),
                mode: 0o644,
                mtime_ns: 1,
                content: Content::from_extents(vec![Extent {
                    id: Some(id),
                    len: u32::try_from(text.len()).unwrap(),
                }]),
                content_type: "text/html".to_owned(),
                header_rule: None,
                variants: Vec::new(),
                base: None,
            }
        };
        let built = atoll_client::build(files.iter().map(entry).collect(), None).unwrap();
        for page in built.pages {
            self.add(page.bytes);
        }
        built.root
    }
}

impl Service for Store {
    type Request = ChunkRequest;
    type Response = ChunkResponse;

    fn operation(_: &ChunkRequest) -> &'static str {
        "test"
    }

    async fn call(
        &self,
        _context: Context,
        request: ChunkRequest,
        _body: Bytes,
    ) -> Result<Answer<ChunkResponse>, WireError> {
        let ChunkRequest::Get(get) = request else {
            return Err(WireError::invalid("not in this test"));
        };
        self.reads.fetch_add(1, Ordering::SeqCst);
        let found = self.chunks.lock().unwrap().get(&get.id).cloned();
        let mut bytes = found.ok_or_else(|| WireError::not_found("no such chunk"))?;
        if self.lying.load(Ordering::SeqCst) {
            bytes = Bytes::from_static(b"wrong");
        }
        let chunk_len = u32::try_from(bytes.len()).unwrap();
        Ok(Answer::with_body(ChunkResponse::Bytes { chunk_len }, vec![bytes]))
    }
}

struct Cluster {
    ca: ClusterCa,
    dir: tempfile::TempDir,
    master: Arc<Master>,
    store: Arc<Store>,
    master_addr: SocketAddr,
    stop_master: ShutdownTrigger,
    serving: Vec<JoinHandle<()>>,
}

fn loopback() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

impl Cluster {
    fn start() -> Cluster {
        let ca = ClusterCa::create(CLUSTER).unwrap();
        let (master, store) = (Arc::new(Master::default()), Arc::new(Store::default()));
        let (stop_master, shutdown) = pair();
        let mut serving = Vec::new();
        let identity = ca.issue(Role::Master, "master-1").unwrap();
        let endpoint = Endpoint::bind(loopback(), &identity).unwrap();
        let master_addr = endpoint.local_addr();
        serving.push(serve(endpoint, master.clone(), shutdown.clone()));
        let identity = ca.issue(Role::Chunkserver, "chunkserver-1").unwrap();
        let endpoint = Endpoint::bind(loopback(), &identity).unwrap();
        let info = NodeInfo {
            id: NodeId(1),
            name: "chunkserver-1".into(),
            kind: NodeKind::Chunkserver,
            addr: endpoint.local_addr(),
            zone: "z1".into(),
            region: "eu".into(),
            weight: 1,
            edge: None,
        };
        let view = NodeView { info, state: NodeState::Up, ready: true, duty: Duty::Active };
        master.nodes.lock().unwrap().insert(NodeId(1), view);
        serving.push(serve(endpoint, store.clone(), shutdown));
        let dir = tempfile::tempdir().unwrap();
        Cluster { ca, dir, master, store, master_addr, stop_master, serving }
    }

    fn config(&self, id: u64, roles: &[EdgeRole]) -> Config {
        let name = format!("edge-{id}");
        let base = self.dir.path().join(&name);
        let identity = base.join("identity");
        if !identity.exists() {
            std::fs::create_dir_all(&base).unwrap();
            self.ca.issue(Role::Edge, &name).unwrap().save(&identity).unwrap();
            let made = rcgen::generate_simple_self_signed(vec!["blog.localhost".into()]).unwrap();
            std::fs::write(base.join("web.pem"), made.cert.pem()).unwrap();
            std::fs::write(base.join("web.key"), made.signing_key.serialize_pem()).unwrap();
        }
        let serves = roles.contains(&EdgeRole::Edge);
        Config {
            name,
            id,
            region: "eu".into(),
            zone: "z1".into(),
            roles: roles.to_vec(),
            listen: loopback(),
            advertise: None,
            admin: loopback(),
            data: base.join("data"),
            identity,
            masters: vec![self.master_addr],
            relay: true,
            ready_file: Some(base.join("ready.json")),
            http: serves.then(loopback),
            https: serves.then(loopback),
            tls: serves.then(|| TlsFiles {
                cert: base.join("web.pem"),
                key: base.join("web.key"),
                authority: None,
            }),
            public: vec!["127.0.0.1".parse().unwrap()],
            weight: 1,
            ram_cache_bytes: 32 << 20,
            disk_cache_bytes: 64 << 20,
            dns_zone: Some("atoll.test".into()),
            hosts: vec!["localhost".into()],
            dns: roles.contains(&EdgeRole::Dns).then(dns::DnsConfig::default),
        }
    }

    fn publish(&self, files: &[(&str, &str)]) -> Seq {
        let deploy = self.store.deploy(files);
        let site = "blog".parse().unwrap();
        let alias = AliasName::production();
        self.master.publish(PublishEvent::AliasSet(Alias {
            site,
            alias,
            deploy,
            seq: Seq(0),
            at_ms: 0,
            earlier: vec![],
            expires_ms: None,
        }))
    }

    fn create_site(&self) {
        let name = "blog".parse().unwrap();
        self.master.publish(PublishEvent::SiteSet(Site {
            name,
            domains: vec![],
            created_ms: 0,
            settings: Default::default(),
        }));
    }

    async fn stop(self) {
        self.stop_master.trigger();
        for task in self.serving {
            task.await.unwrap();
        }
    }
}

fn serve<S: Service>(endpoint: Endpoint, service: Arc<S>, shutdown: Shutdown) -> JoinHandle<()> {
    atoll_net::task::spawn("test-serve", async move {
        let limits = ServeLimits { drain: Duration::from_millis(100), ..ServeLimits::default() };
        endpoint.serve(service, limits, shutdown).await;
        endpoint.close().await;
    })
}

/// A running edge.
struct Running {
    trigger: ShutdownTrigger,
    task: JoinHandle<Result<(), RunError>>,
    addresses: HashMap<String, SocketAddr>,
    chain: Option<PathBuf>,
}

impl Running {
    async fn start(config: Config) -> Running {
        let (trigger, shutdown) = pair();
        let ready = config.ready_file.clone().unwrap();
        let chain = config.tls.as_ref().map(|tls| tls.cert.clone());
        // What an earlier run wrote.
        std::fs::remove_file(&ready).ok();
        let task = atoll_net::task::spawn("test-edge", run(config, shutdown));
        let addresses = tokio::time::timeout(Duration::from_secs(20), read_ready(&ready));
        let addresses = addresses.await.expect("the edge becomes ready");
        Running { trigger, task, addresses, chain }
    }

    async fn get(&self, path: &str) -> String {
        use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject as _};
        let mut roots = rustls::RootCertStore::empty();
        let chain = self.chain.as_ref().unwrap();
        roots.add(CertificateDer::from_pem_file(chain).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let stream = TcpStream::connect(self.addresses["https"]).await.unwrap();
        let name = ServerName::try_from("blog.localhost").unwrap();
        let connector = tokio_rustls::TlsConnector::from(Arc::new(tls));
        let stream = connector.connect(name, stream).await.unwrap();
        exchange(stream, path).await
    }

    async fn admin(&self, path: &str) -> String {
        exchange(TcpStream::connect(self.addresses["admin"]).await.unwrap(), path).await
    }

    async fn stop(self) {
        self.trigger.trigger();
        let ended = tokio::time::timeout(Duration::from_secs(20), self.task).await;
        ended.expect("the edge stops").unwrap().unwrap();
    }
}

async fn exchange<S>(mut stream: S, path: &str) -> String
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let head = format!("GET {path} HTTP/1.1\r\nHost: blog.localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    String::from_utf8(answer).unwrap()
}

async fn read_ready(path: &Path) -> HashMap<String, SocketAddr> {
    loop {
        match std::fs::read(path) {
            Ok(bytes) => return serde_json::from_slice(&bytes).unwrap(),
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_acknowledged_is_served_and_a_restarted_edge_hears_of_the_log_first() {
    let cluster = Cluster::start();
    cluster.create_site();
    let first = cluster.publish(&[("index.html", "one"), ("same.html", "same")]);
    let edge = Running::start(cluster.config(101, &[EdgeRole::Edge])).await;
    cluster.master.until_acked(101, first).await;
    let answer = edge.get("/").await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("one"), "{answer}");
    assert!(edge.get("/same").await.ends_with("same"));

    let second = cluster.publish(&[("index.html", "two"), ("same.html", "same")]);
    cluster.master.until_acked(101, second).await;
    let reads = cluster.store.reads.load(Ordering::SeqCst);
    assert!(edge.get("/").await.ends_with("two"));
    assert!(edge.get("/same").await.ends_with("same"));
    assert!(edge.get("/nothing").await.starts_with("HTTP/1.1 404"));
    assert_eq!(cluster.store.reads.load(Ordering::SeqCst), reads + 1, "only what changed");
    let until_ready = async {
        while !edge.admin("/readyz").await.starts_with("HTTP/1.1 200") {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), until_ready).await.unwrap();
    assert!(edge.admin("/metrics").await.contains("atoll_edge_publish_seq"));
    // Asked for often enough to be worth a place on disk.
    for _ in 0..3 {
        edge.get("/").await;
    }
    edge.stop().await;
    assert!(!cluster.master.nodes.lock().unwrap()[&NodeId(101)].ready, "it said goodbye");

    let config = cluster.config(101, &[EdgeRole::Edge]);
    cluster.stop_master.trigger();
    let edge = Running::start(config).await;
    // Something newer may have been published while it was away: it must hear of the log first.
    assert!(edge.get("/").await.starts_with("HTTP/1.1 503"));
    assert!(edge.admin("/readyz").await.starts_with("HTTP/1.1 503"));
    edge.stop().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_shield_reads_the_origin_once_for_all_edges() {
    let cluster = Cluster::start();
    cluster.create_site();
    let seq = cluster.publish(&[("index.html", "hello")]);
    let shield = Running::start(cluster.config(201, &[EdgeRole::Shield])).await;
    cluster.master.until_acked(201, seq).await;
    let edges = [
        Running::start(cluster.config(101, &[EdgeRole::Edge])).await,
        Running::start(cluster.config(102, &[EdgeRole::Edge, EdgeRole::Dns])).await,
    ];
    for id in [101, 102] {
        cluster.master.until_acked(id, seq).await;
    }
    assert!(edges[1].addresses.contains_key("dns"));
    // Give the edges the time to see that the shield is ready.
    let well = || cluster.master.nodes.lock().unwrap()[&NodeId(201)].ready;
    while !well() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    tokio::time::sleep(Duration::from_millis(2500)).await;
    let reads = cluster.store.reads.load(Ordering::SeqCst);
    let answers = [edges[0].get("/").await, edges[1].get("/").await];
    assert!(answers.iter().all(|answer| answer.ends_with("hello")));
    assert!(answers[0].contains("detail=shield"), "{}", answers[0]);
    assert!(answers[1].contains("detail=shield-hit"), "{}", answers[1]);
    assert_eq!(cluster.store.reads.load(Ordering::SeqCst), reads + 1);

    // Without the shield the edges go to the origin themselves, and never pass on wrong bytes.
    shield.stop().await;
    let seq = cluster.publish(&[("index.html", "again"), ("x.html", "x")]);
    cluster.master.until_acked(101, seq).await;
    assert!(edges[0].get("/").await.ends_with("again"));
    cluster.store.lying.store(true, Ordering::SeqCst);
    assert!(edges[0].get("/x").await.starts_with("HTTP/1.1 503"));
    cluster.store.lying.store(false, Ordering::SeqCst);
    for edge in edges {
        edge.stop().await;
    }
    cluster.stop().await;
}

#[tokio::test]
async fn what_cannot_start_says_why() {
    let cluster = Cluster::start();
    let (_trigger, shutdown) = pair();
    let mut config = cluster.config(101, &[EdgeRole::Edge]);
    config.name = "somebody".into();
    let error = run(config, shutdown.clone()).await.unwrap_err().to_string();
    assert!(error.contains("somebody") && error.contains("edge-101"), "{error}");
    let taken = std::net::TcpListener::bind(loopback()).unwrap();
    let mut config = cluster.config(101, &[EdgeRole::Edge]);
    config.https = Some(taken.local_addr().unwrap());
    let error = run(config, shutdown.clone()).await.unwrap_err().to_string();
    assert!(error.contains(&taken.local_addr().unwrap().to_string()), "{error}");
    let mut config = cluster.config(101, &[EdgeRole::Edge]);
    config.tls.as_mut().unwrap().cert = "/nowhere/web.pem".into();
    let error = run(config, shutdown).await.unwrap_err().to_string();
    assert!(error.contains("/nowhere/web.pem"), "{error}");
    cluster.stop().await;
}
