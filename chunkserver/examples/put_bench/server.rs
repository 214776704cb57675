//! A whole chunkserver in this process, asked over QUIC: what a client's put of one copy costs.

use std::error::Error;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use atoll_chunkserver::{Config, RunError};
use atoll_net::{
    Answer, CallError, CallOptions, ClusterCa, Context, Endpoint, Role, ServeLimits, Service,
    ShutdownTrigger, shutdown, task,
};
use atoll_proto::chunk::{ChunkRequest, ChunkResponse, Put};
use atoll_proto::cluster::{ClusterView, Duty, NodeInfo, NodeState, NodeView, PgTable};
use atoll_proto::master::{MasterRequest, MasterResponse, Orders};
use atoll_proto::receipt::ReceiptKey;
use atoll_proto::{ClusterId, Epoch, NodeId, SessionId, WireError, WireResult, limits};
use bytes::Bytes;
use tokio::sync::watch;
use tokio::task::JoinHandle;

const CLUSTER: ClusterId = ClusterId([7; 16]);
const EPOCH: Epoch = Epoch(1);
const ID: NodeId = NodeId(1);
/// Until it is ready, and of one put.
const PATIENCE: Duration = Duration::from_secs(60);

/// Knows one chunkserver, which is the only member of every group.
struct Master(watch::Sender<(Option<NodeInfo>, bool)>);

impl Master {
    fn view(&self) -> ClusterView {
        let mut table = PgTable::empty();
        table.epoch = EPOCH;
        table.members.iter_mut().for_each(|group| group.push(ID));
        let up = |info: NodeInfo| NodeView {
            info,
            state: NodeState::Up,
            ready: true,
            duty: Duty::Active,
        };
        ClusterView {
            cluster: CLUSTER,
            index: 1,
            chunk_bytes: limits::CHUNK_BYTES,
            nodes: self.0.borrow().0.clone().map(up).into_iter().collect(),
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
        "bench"
    }

    async fn call(
        &self,
        _: Context,
        request: MasterRequest,
        _: Bytes,
    ) -> WireResult<Answer<MasterResponse>> {
        Ok(Answer::head(match request {
            MasterRequest::Register { info } => {
                self.0.send_modify(|state| state.0 = Some(info));
                MasterResponse::Registered {
                    cluster: CLUSTER,
                    receipt_key: Some(ReceiptKey([3; 32])),
                    epoch: EPOCH,
                    term: 1,
                }
            }
            MasterRequest::Heartbeat { ready, .. } => {
                self.0.send_modify(|state| state.1 = ready);
                MasterResponse::Heard {
                    epoch: EPOCH,
                    term: 1,
                    known: true,
                    orders: Orders::default(),
                    in_sync: None,
                    differ: Vec::new(),
                }
            }
            MasterRequest::Cluster { .. } => MasterResponse::Cluster(Some(Box::new(self.view()))),
            other => return Err(WireError::invalid(format!("not in this bench: {other:?}"))),
        }))
    }
}

pub(crate) struct Server {
    client: Endpoint,
    addr: SocketAddr,
    stops: [ShutdownTrigger; 2],
    running: JoinHandle<Result<(), RunError>>,
}

impl Server {
    /// Starts one with its data here; returns once it is ready.
    pub(crate) async fn start(dir: &Path) -> Result<Self, Box<dyn Error>> {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let authority = ClusterCa::create(CLUSTER)?;
        let (stop, stopped) = shutdown::pair();
        let (send, mut state) = watch::channel((None, false));
        let endpoint = Endpoint::bind(any, &authority.issue(Role::Master, "master-1")?)?;
        let master = endpoint.local_addr();
        drop(task::spawn("master", async move {
            endpoint.serve(Arc::new(Master(send)), ServeLimits::default(), stopped).await;
        }));
        let identity = dir.join("identity");
        authority.issue(Role::Chunkserver, "chunkserver-1")?.save(&identity)?;
        let config = Config {
            id: ID.0,
            name: "chunkserver-1".to_owned(),
            cluster: CLUSTER,
            listen: any,
            advertise: None,
            admin: any,
            data: dir.join("data"),
            identity,
            masters: vec![master],
            zone: "z1".to_owned(),
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
        let (stop_too, stopped) = shutdown::pair();
        let running = task::spawn("chunkserver", atoll_chunkserver::run(config, stopped));
        let ready = state.wait_for(|state| state.0.is_some() && state.1);
        let addr = match tokio::time::timeout(PATIENCE, ready).await?? {
            found if found.0.is_some() => found.0.as_ref().map(|info| info.addr),
            _ => None,
        };
        let client = Endpoint::client(&authority.issue(Role::Client, "bench")?)?;
        let addr = addr.ok_or("it has no address")?;
        Ok(Self { client, addr, stops: [stop_too, stop], running })
    }

    /// What puts a chunk.
    pub(crate) fn client(&self) -> Client {
        Client { endpoint: self.client.clone(), addr: self.addr }
    }

    pub(crate) async fn stop(self) -> Result<(), Box<dyn Error>> {
        self.stops[0].trigger();
        self.running.await??;
        self.stops[1].trigger();
        Ok(())
    }
}

#[derive(Clone)]
pub(crate) struct Client {
    endpoint: Endpoint,
    addr: SocketAddr,
}

impl Client {
    /// Puts a chunk; returns when it is durable.
    pub(crate) async fn put(
        &self,
        id: atoll_proto::ChunkId,
        bytes: Bytes,
    ) -> Result<(), CallError> {
        let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let (session, chunks) = (SessionId(4), vec![(id, len)]);
        let put = ChunkRequest::Put(Put { session, epoch: EPOCH, chunks, relay: true });
        let options = CallOptions::within(PATIENCE);
        let call = self.endpoint.call(self.addr, Role::Chunkserver, &put, vec![bytes], options);
        let answer: (ChunkResponse, Bytes) = call.await?;
        drop(answer);
        Ok(())
    }
}
