//! What tests of whole masters share: a running master, a user, chunkservers in memory.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use atoll_net::{
    Answer, CallError, CallOptions, ClusterCa, Context, Endpoint, NetError, Role, ServeLimits,
    Service, ShutdownTrigger,
};
use atoll_proto::chunk::{ChunkRequest, ChunkResponse, ChunkStat};
use atoll_proto::cluster::{ClusterView, NodeInfo, NodeKind};
use atoll_proto::content::Extent;
use atoll_proto::error::WireResult;
use atoll_proto::manifest::{self, Page, Root};
use atoll_proto::master::{AdmitPage, Change, Changed, MasterRequest, MasterResponse, ObjectKind};
use atoll_proto::namespace::{Caller, NamespaceOp, NamespaceQuery, NamespaceReply};
use atoll_proto::publish::SiteOp;
use atoll_proto::receipt::{Receipt, ReceiptKey};
use atoll_proto::{
    AliasName, ChunkId, ClusterId, Code, Content, DeployId, Epoch, InodeId, NodeId, SessionId,
    WireError,
};
use bytes::Bytes;
use tokio::task::JoinHandle;

use crate::config::Config;
use crate::run::{RunError, run};

pub(super) const CLUSTER: ClusterId = ClusterId([9; 16]);
pub(super) const SECRET: &str = "open sesame";
pub(super) const WAIT: Duration = Duration::from_secs(20);

pub(super) fn call_options(token: Option<&str>) -> CallOptions {
    let options = CallOptions::within(Duration::from_secs(10));
    match token {
        Some(token) => options.token(token),
        None => options,
    }
}

/// Tries until it works, or gives the last error after a long time.
pub(super) async fn eventually<T, F: Future<Output = Result<T, String>>>(
    mut attempt: impl FnMut() -> F,
) -> T {
    let end = tokio::time::Instant::now() + WAIT;
    loop {
        match attempt().await {
            Ok(value) => return value,
            Err(error) if tokio::time::Instant::now() > end => panic!("{error}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

/// A master that runs in this process.
pub(super) struct Running {
    pub(super) addr: SocketAddr,
    pub(super) stop: ShutdownTrigger,
    pub(super) task: JoinHandle<Result<(), RunError>>,
}

impl Running {
    pub(super) async fn stop(self) {
        self.stop.trigger();
        self.task.await.unwrap().unwrap();
    }
}

pub(super) fn config(ca: &ClusterCa, dir: &Path, id: u64) -> Config {
    let home = dir.join(format!("master-{id}"));
    let name = format!("master-{id}");
    ca.issue(Role::Master, &name).unwrap().save(&home.join("identity")).unwrap();
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    Config {
        name,
        id,
        listen: any,
        advertise: None,
        admin: any,
        data: home.join("data"),
        identity: home.join("identity"),
        cluster: CLUSTER,
        zone: Some("atoll.test".into()),
        url_template: None,
        bootstrap: true,
        peers: vec![],
        bootstrap_token_hash: Some(ChunkId::of(SECRET.as_bytes())),
        chunk_bytes: 1 << 20,
        ready_file: Some(home.join("ready.json")),
        placement_settle_ms: 100,
        collect_after_ms: 24 * 3600 * 1000,
        collect_every_ms: 60_000,
        audit_days: 0,
        replace_after_ms: 6000,
    }
}

pub(super) fn start(config: &Config) -> (ShutdownTrigger, JoinHandle<Result<(), RunError>>) {
    let (stop, shutdown) = atoll_net::shutdown::pair();
    let config = config.clone();
    let task = atoll_net::task::spawn("master", async move { run(config, shutdown).await });
    (stop, task)
}

pub(super) async fn start_and_wait(config: &Config) -> Running {
    let file = config.ready_file.clone().unwrap();
    drop(std::fs::remove_file(&file));
    let end = tokio::time::Instant::now() + WAIT;
    let (mut stop, mut task) = start(config);
    loop {
        if task.is_finished() {
            match task.await.unwrap() {
                // The socket of an earlier run is closed a moment after its end.
                Err(RunError::Net(NetError::Bind { .. })) => (stop, task) = start(config),
                other => panic!("the master ended early: {other:?}"),
            }
        }
        if let Ok(text) = std::fs::read_to_string(&file) {
            let ready: serde_json::Value = serde_json::from_str(&text).unwrap();
            let addr = ready["addr"].as_str().unwrap().parse().unwrap();
            return Running { addr, stop, task };
        }
        assert!(tokio::time::Instant::now() < end, "the master does not get ready");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A user with a token.
pub(super) struct User {
    pub(super) endpoint: Endpoint,
    pub(super) masters: Vec<SocketAddr>,
    pub(super) token: Option<String>,
    pub(super) session: SessionId,
    pub(super) number: u64,
}

impl User {
    pub(super) async fn new(ca: &ClusterCa, masters: Vec<SocketAddr>, token: &str) -> User {
        let endpoint = Endpoint::client(&ca.issue(Role::Client, "user").unwrap()).unwrap();
        let token = Some(token.to_owned());
        let mut user = User { endpoint, masters, token, session: SessionId(0), number: 0 };
        let opened = user.ask(&MasterRequest::OpenSession { name: "test".into() }).await;
        match opened {
            Ok(MasterResponse::Session { session, cluster }) => {
                assert_eq!(cluster, CLUSTER);
                user.session = session;
            }
            Ok(other) => panic!("{other:?}"),
            // Some tests want a user who is refused.
            Err(error) => assert_eq!(error.code, Code::Denied),
        }
        user
    }

    /// Asks whichever master leads.
    pub(super) async fn ask(&self, request: &MasterRequest) -> Result<MasterResponse, WireError> {
        self.ask_with_body(request).await.map(|(answer, _)| answer)
    }

    /// The same, for answers with a body.
    pub(super) async fn ask_with_body(
        &self,
        request: &MasterRequest,
    ) -> Result<(MasterResponse, Bytes), WireError> {
        let answer = eventually(async || {
            let mut last = String::new();
            for addr in &self.masters {
                let options = call_options(self.token.as_deref());
                let body = Vec::new();
                match self.endpoint.call(*addr, Role::Master, request, body, options).await {
                    Ok(answered) => return Ok(Ok(answered)),
                    Err(CallError::Refused(error))
                        if !matches!(error.code, Code::NotLeader | Code::Unavailable) =>
                    {
                        return Ok(Err(error));
                    }
                    Err(error) => last = error.to_string(),
                }
            }
            Err(last)
        });
        answer.await
    }

    pub(super) async fn change(&mut self, change: Change) -> Result<Changed, WireError> {
        self.number += 1;
        self.change_number(self.number, change).await
    }

    pub(super) async fn change_number(
        &self,
        number: u64,
        change: Change,
    ) -> Result<Changed, WireError> {
        let (session, acked_below) = (self.session, 0);
        let request = MasterRequest::Change { session, number, acked_below, change };
        match self.ask(&request).await? {
            MasterResponse::Changed { reply, .. } => Ok(reply),
            other => panic!("{other:?}"),
        }
    }

    pub(super) async fn query(&self, query: NamespaceQuery) -> Result<NamespaceReply, WireError> {
        match self.ask(&MasterRequest::Namespace(query)).await? {
            MasterResponse::Namespace { reply, .. } => Ok(reply),
            other => panic!("{other:?}"),
        }
    }

    pub(super) async fn view(&self) -> ClusterView {
        match self.ask(&MasterRequest::Cluster { known_index: None }).await.unwrap() {
            MasterResponse::Cluster(Some(view)) => *view,
            other => panic!("{other:?}"),
        }
    }

    pub(super) async fn mkdir(&mut self, name: &str) -> Result<Changed, WireError> {
        self.change(mkdir(name)).await
    }
}

pub(super) fn mkdir(name: &str) -> Change {
    Change::Namespace(NamespaceOp::Mkdir {
        parent: InodeId::ROOT,
        name: name.into(),
        mode: 0o755,
        caller: Caller { uid: 0, gid: 0 },
    })
}

/// A chunkserver that keeps chunks in memory and answers as a real one does.
pub(super) struct Server {
    pub(super) chunks: Mutex<HashMap<ChunkId, Bytes>>,
}

impl Service for Server {
    type Request = ChunkRequest;
    type Response = ChunkResponse;

    fn operation(_: &ChunkRequest) -> &'static str {
        "chunk"
    }

    async fn call(
        &self,
        _: Context,
        request: ChunkRequest,
        _: Bytes,
    ) -> WireResult<Answer<ChunkResponse>> {
        let ChunkRequest::GetMany(wanted) = request else {
            return Err(WireError::invalid("not asked in these tests"));
        };
        let chunks = self.chunks.lock().unwrap();
        let found: Vec<Option<Bytes>> =
            wanted.ids.iter().map(|id| chunks.get(id).cloned()).collect();
        let len = |bytes: &Bytes| u32::try_from(bytes.len()).unwrap();
        let lens = found.iter().map(|bytes| bytes.as_ref().map(len)).collect();
        let head = ChunkResponse::Many { lens, complete: true };
        Ok(Answer::with_body(head, found.into_iter().flatten().collect()))
    }
}

pub(super) struct ServerNode {
    pub(super) id: NodeId,
    pub(super) key: ReceiptKey,
    pub(super) server: Arc<Server>,
    pub(super) endpoint: Endpoint,
    pub(super) stop: ShutdownTrigger,
}

impl ServerNode {
    pub(super) async fn start(ca: &ClusterCa, master: SocketAddr, id: u64) -> ServerNode {
        let name = format!("chunkserver-{id}");
        let identity = ca.issue(Role::Chunkserver, &name).unwrap();
        let endpoint = Endpoint::bind(([127, 0, 0, 1], 0).into(), &identity).unwrap();
        let server = Arc::new(Server { chunks: Mutex::default() });
        let (stop, shutdown) = atoll_net::shutdown::pair();
        let (serving, service) = (endpoint.clone(), server.clone());
        atoll_net::task::spawn("test-chunkserver", async move {
            serving.serve(service, ServeLimits::default(), shutdown).await;
        });
        let id = NodeId(id);
        let key = ReceiptKey([0; 32]);
        let mut node = ServerNode { id, key, server, endpoint, stop };
        node.key = node.register(master).await;
        node
    }

    /// As at its start. Returns the key for receipts.
    pub(super) async fn register(&self, master: SocketAddr) -> ReceiptKey {
        let id = self.id;
        let info = NodeInfo {
            id,
            name: format!("chunkserver-{id}"),
            kind: NodeKind::Chunkserver,
            addr: self.endpoint.local_addr(),
            zone: format!("z{id}"),
            region: "eu".into(),
            weight: 1,
            edge: None,
        };
        match self.ask(master, &MasterRequest::Register { info }).await.unwrap() {
            MasterResponse::Registered { receipt_key: Some(key), .. } => key,
            other => panic!("{other:?}"),
        }
    }

    pub(super) async fn heartbeat(&self, master: SocketAddr) -> MasterResponse {
        let stat = ChunkStat { total_bytes: 3000, free_bytes: 1500, ..ChunkStat::default() };
        let request =
            MasterRequest::Heartbeat { node: self.id, ready: true, stat: Some(stat), tree: None };
        let options = call_options(None);
        let called = self.endpoint.call(master, Role::Master, &request, Vec::new(), options);
        called.await.unwrap().0
    }

    pub(super) async fn ask(
        &self,
        master: SocketAddr,
        request: &MasterRequest,
    ) -> Result<MasterResponse, WireError> {
        let options = call_options(None);
        let called = self.endpoint.call(master, Role::Master, request, Vec::new(), options).await;
        match called {
            Ok((answer, _)) => Ok(answer),
            Err(CallError::Refused(error)) => Err(error),
            Err(error) => panic!("{error}"),
        }
    }

    pub(super) fn put(&self, session: SessionId, chunks: &[Bytes]) -> Receipt {
        self.put_at(Epoch(1), session, chunks)
    }

    pub(super) fn put_at(&self, epoch: Epoch, session: SessionId, chunks: &[Bytes]) -> Receipt {
        let mut stored = self.server.chunks.lock().unwrap();
        let mut receipt = Vec::new();
        for bytes in chunks {
            let id = ChunkId::of(bytes);
            stored.insert(id, bytes.clone());
            receipt.push((id, u32::try_from(bytes.len()).unwrap()));
        }
        Receipt::sign(&self.key, self.id, session, epoch, u64::MAX, receipt)
    }
}

/// A site of one page with one file.
pub(super) struct SmallSite {
    pub(super) data: Bytes,
    pub(super) leaf: Bytes,
    pub(super) root: Bytes,
}

impl SmallSite {
    pub(super) fn new(text: &str) -> SmallSite {
        let data = Bytes::from(text.to_owned());
        let len = u32::try_from(data.len()).unwrap();
        let content = Content::from_extents(vec![Extent { id: Some(ChunkId::of(&data)), len }]);
        let leaf = Page::LeafV1(vec![manifest::Entry {
            path: "index.html".into(),
            mode: 0o644,
            mtime_ns: 0,
            content,
            content_type: "text/html".into(),
            header_rule: None,
            variants: vec![],
            base: None,
        }]);
        let leaf = Bytes::from(leaf.encode());
        let top = manifest::Child {
            last: "index.html".into(),
            id: ChunkId::of(&leaf),
            len: u32::try_from(leaf.len()).unwrap(),
            files: 1,
        };
        let bytes = u64::from(len);
        let root = Page::RootV1(Root { top: Some(top), files: 1, bytes, rules: None });
        SmallSite { data, leaf, root: Bytes::from(root.encode()) }
    }

    pub(super) fn deploy(&self) -> DeployId {
        ChunkId::of(&self.root)
    }

    pub(super) fn admit(&self, receipts: Vec<Receipt>) -> Change {
        let page = |bytes: &Bytes| AdmitPage { id: ChunkId::of(bytes), kind: ObjectKind::Page };
        Change::Admit { pages: vec![page(&self.leaf), page(&self.root)], receipts }
    }

    pub(super) fn publish(&self, if_current: Option<Option<DeployId>>) -> Change {
        Change::Site(SiteOp::Publish {
            site: "blog".parse().unwrap(),
            alias: AliasName::production(),
            deploy: self.deploy(),
            if_current,
            message: "first".into(),
            create: true,
        })
    }
}

pub(super) async fn placed(user: &User, epoch: u64) -> ClusterView {
    eventually(async || {
        let view = user.view().await;
        match view.table.epoch >= Epoch(epoch) {
            true => Ok(view),
            false => Err("no table".to_owned()),
        }
    })
    .await
}
