//! The master as a service: what every operation shares, and the way from a request to its file
//! in [`crate::ops`].

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use atoll_net::{Answer, Context, Endpoint, Service, Shutdown};
use atoll_proto::cluster::{NodeView, PgTable};
use atoll_proto::error::WireResult;
use atoll_proto::master::{MasterRequest, MasterResponse};
use atoll_proto::receipt::ReceiptKey;
use atoll_proto::{ChunkId, ClusterId, WireError};
use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::admission::Admission;
use crate::audit::Audit;
use crate::auth::{self, Principal};
use crate::disk::DiskGuard;
use crate::finishing::Finishing;
use crate::live::Live;
use crate::liveness::Liveness;
use crate::ops::backup::Backups;
use crate::ops::change::{Numbers, store_failed};
use crate::ops::{
    audit, backup, change, cluster, deltas, deploys, enrol, erased, farewell, greet, heartbeat,
    known, masters, objects, open_session, query, register, relay, renew, seal, sites, status,
    tokens, wait_applied, walk, watch as follow,
};
use crate::policies::Policies;
use crate::raft::Consensus;
use crate::roster::Roster;
use crate::store::meta::ClusterRecord;
use crate::store::{duties, groups, meta};
use crate::trees::Trees;

/// What the configuration says and operations need.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// Which cluster this is.
    pub(crate) cluster: ClusterId,
    /// The DNS zone of the sites.
    pub(crate) zone: Option<String>,
    /// What a site's URL looks like.
    pub(crate) url_template: Option<String>,
    /// Chunk size for new files, when the cluster is made.
    pub(crate) chunk_bytes: u32,
    /// Whether it forms a cluster when it knows of none.
    pub(crate) bootstrap: bool,
    /// Hash of the first token, when the cluster is made.
    pub(crate) bootstrap_token: Option<ChunkId>,
    /// How long the set of chunkservers must be quiet before placement, in milliseconds.
    pub(crate) placement_settle_ms: u64,
    /// How long nothing must have referred to a chunk before it is collected, in milliseconds.
    pub(crate) collect_after_ms: u64,
    /// How often such chunks are looked for, in milliseconds.
    pub(crate) collect_every_ms: u64,
    /// How often all references are counted again, in days; 0 for never.
    pub(crate) audit_days: u64,
    /// The data directory.
    pub(crate) data: std::path::PathBuf,
    /// How long a chunkserver may be silent before others take its place, in milliseconds.
    pub(crate) replace_after_ms: u64,
}

/// One master.
pub(crate) struct Master {
    pub(crate) consensus: Consensus,
    pub(crate) endpoint: Endpoint,
    pub(crate) settings: Settings,
    pub(crate) disk: DiskGuard,
    /// Counts acknowledgements by edges, to wake who waits for them.
    pub(crate) acknowledged: watch::Sender<u64>,
    pub(crate) shutdown: Shutdown,
    /// What nodes should have, to compare it with what they have.
    pub(crate) trees: Arc<Trees>,
    /// Moves of groups that are about to finish.
    pub(crate) finishing: Finishing,
    /// What placement would do and cannot, with the reason, for people.
    pub(crate) placement: Mutex<Vec<String>>,
    /// The recount of references.
    pub(crate) audit: Audit,
    /// The copy that a backup is read from.
    pub(crate) backups: Backups,
    /// Live sites.
    pub(crate) live: Live,
    /// Whether it takes part in consensus.
    pub(crate) admission: Admission,
    liveness: Mutex<Liveness>,
    /// Which policies edges may go by.
    pub(crate) policies: Mutex<Policies>,
    /// The placement table of the latest epoch that was asked for.
    table: Mutex<Arc<PgTable>>,
    /// What was last found in the publish log.
    pub(crate) found: Mutex<follow::Found>,
    /// The nodes as of their latest change.
    pub(crate) roster: Mutex<Arc<Roster>>,
}

impl Master {
    pub(crate) fn new(
        consensus: Consensus,
        endpoint: Endpoint,
        settings: Settings,
        admission: Admission,
        shutdown: Shutdown,
    ) -> Master {
        Master {
            consensus,
            endpoint,
            settings,
            disk: DiskGuard::default(),
            acknowledged: watch::Sender::new(0),
            shutdown,
            trees: Arc::default(),
            finishing: Finishing::default(),
            placement: Mutex::default(),
            audit: Audit::default(),
            backups: Backups::default(),
            live: Live::default(),
            admission,
            liveness: Mutex::new(Liveness::new(None, Instant::now(), crate::clock::boot_ns())),
            policies: Mutex::default(),
            table: Mutex::new(Arc::new(PgTable::empty())),
            found: Mutex::default(),
            roster: Mutex::default(),
        }
    }

    /// What is heard of the nodes under this leadership: another one begins anew, here and nowhere
    /// else, so that nothing that was heard under it is forgotten. Never held across an await.
    pub(crate) fn liveness(&self) -> MutexGuard<'_, Liveness> {
        let mut liveness = self.liveness.lock().unwrap_or_else(PoisonError::into_inner);
        let leadership = self.consensus.leadership();
        if liveness.leadership() != leadership {
            *liveness = Liveness::new(leadership, Instant::now(), crate::clock::boot_ns());
        }
        liveness
    }

    /// All nodes with how they do.
    pub(crate) fn node_views(&self) -> WireResult<Vec<NodeView>> {
        let roster = self.roster()?;
        let views = self.liveness().views(roster.all(), Instant::now());
        self.with_duties(views)
    }

    /// The same, of nodes that were just looked at.
    pub(crate) fn with_duties(&self, mut views: Vec<NodeView>) -> WireResult<Vec<NodeView>> {
        let duties = duties::all(&*self.consensus.state()).map_err(store_failed)?;
        for (node, record) in duties {
            if let Some(view) = views.iter_mut().find(|view| view.info.id == node) {
                view.duty = record.duty();
            }
        }
        Ok(views)
    }

    /// The placement table. Cached by epoch: it has thousands of rows and rarely changes.
    pub(crate) fn table(&self) -> WireResult<Arc<PgTable>> {
        let state = self.consensus.state();
        let epoch = groups::epoch(&*state).map_err(store_failed)?;
        let mut cached = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if cached.epoch != epoch {
            *cached = Arc::new(groups::table(&state.view()).map_err(store_failed)?);
        }
        Ok(cached.clone())
    }

    /// The table by which receipts count, for a change that is under way
    /// ([`Finishing::rely`]).
    pub(crate) fn cover_table(&self) -> WireResult<Arc<PgTable>> {
        Ok(self.finishing.cover(self.table()?))
    }

    /// What was decided when the cluster was made.
    pub(crate) fn cluster_record(&self) -> WireResult<ClusterRecord> {
        let record = meta::cluster(&*self.consensus.state()).map_err(store_failed)?;
        record.ok_or_else(|| WireError::unavailable("the master is starting: try again shortly"))
    }

    pub(crate) fn receipt_key(&self) -> WireResult<ReceiptKey> {
        Ok(self.cluster_record()?.receipt_key)
    }

    /// The address of the socket.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.endpoint.local_addr()
    }

    async fn answer(
        &self,
        context: Context,
        request: MasterRequest,
        body: Bytes,
    ) -> WireResult<Answer<MasterResponse>> {
        if let MasterRequest::Greet { id, incarnation } = request {
            auth::authorise(self, &context, &request).await?;
            return greet::greet(self, id, incarnation).map(Answer::head);
        }
        if let MasterRequest::Raft { message } = &request {
            auth::authorise(self, &context, &request).await?;
            if !self.admission.is_admitted() {
                return Err(WireError::unavailable("this master is not taken in yet"));
            }
            let message = self.consensus.answer(message, &body).await?;
            return Ok(Answer::head(MasterResponse::Raft { message }));
        }
        self.consensus.check_leads()?;
        self.cluster_record()?;
        let principal = auth::authorise(self, &context, &request).await?;
        if let MasterRequest::Backup(ask) = request {
            return backup::backup(self, ask).await;
        }
        Box::pin(self.dispatch(&context, &principal, request)).await.map(Answer::head)
    }

    async fn dispatch(
        &self,
        context: &Context,
        principal: &Principal,
        request: MasterRequest,
    ) -> WireResult<MasterResponse> {
        match request {
            MasterRequest::OpenSession { name } => {
                open_session::open_session(self, context, principal, name).await
            }
            MasterRequest::Change { session, number, acked_below, change } => {
                let numbers = Numbers { session, number, acked_below };
                change::change(self, context, principal, numbers, change).await
            }
            MasterRequest::Namespace(question) => query::query(self, question).await,
            MasterRequest::Cluster { known_index } => cluster::cluster(self, known_index).await,
            MasterRequest::Known { ids } => known::known(self, ids).await,
            MasterRequest::Sites => sites::sites(self, principal).await,
            MasterRequest::Site { site } => sites::site(self, &site).await,
            MasterRequest::Deploys { site, before, limit } => {
                deploys::deploys(self, &site, before, limit).await
            }
            MasterRequest::Watch { after, edge, wait_ms } => {
                follow::watch(self, context, principal, after, edge, wait_ms).await
            }
            MasterRequest::WaitApplied { seq, wait_ms } => {
                wait_applied::wait_applied(self, context, seq, wait_ms).await
            }
            MasterRequest::WaitPublished { seq, wait_ms } => {
                wait_applied::wait_published(self, context, seq, wait_ms).await
            }
            MasterRequest::Renew { node, ready, applied } => {
                renew::renew(self, principal, node, ready, applied).await
            }
            MasterRequest::Enrol { node } => enrol::enrol(self, principal, node).await,
            MasterRequest::Relay { shield, acks, renewals } => {
                relay::relay(self, principal, shield, &acks, &renewals).await
            }
            MasterRequest::Farewell { node, number } => {
                farewell::farewell(self, principal, node, number).await
            }
            MasterRequest::Register { info } => register::register(self, context, info).await,
            MasterRequest::Heartbeat { node, ready, stat, tree } => {
                heartbeat::heartbeat(self, context, node, ready, stat, tree).await
            }
            MasterRequest::Status => status::status(self).await,
            MasterRequest::Tokens => {
                self.consensus.read().await?;
                tokens::list(self)
            }
            MasterRequest::Deltas { node, after, wait_ms } => {
                deltas::deltas(self, context, principal, node, after, wait_ms).await
            }
            MasterRequest::Walk { node, epoch, index, asks } => {
                walk::walk(self, principal, node, epoch, index, asks).await
            }
            MasterRequest::Erased { after, node, wait_ms } => {
                erased::erased(self, context, principal, after, node, wait_ms).await
            }
            MasterRequest::ErasedBy { index } => erased::erased_by(self, index).await,
            MasterRequest::Erasures { site, after } => erased::erasures(self, site, after).await,
            MasterRequest::Unreferenced { after } => erased::unreferenced(self, after).await,
            MasterRequest::Objects { ids } => objects::objects(self, ids).await,
            MasterRequest::Seal { site } => seal::seal(self, context, &site).await,
            MasterRequest::Audit { start } => Ok(audit::audit(self, start)),
            MasterRequest::Masters => masters::list(self).await,
            MasterRequest::ChangeMasters(op) => masters::change(self, context, op).await,
            MasterRequest::Backup(_) | MasterRequest::Raft { .. } | MasterRequest::Greet { .. } => {
                Err(WireError::internal("answered elsewhere"))
            }
        }
    }
}

/// The service that the endpoint serves.
pub(crate) struct MasterService(pub(crate) Arc<Master>);

impl Service for MasterService {
    type Request = MasterRequest;
    type Response = MasterResponse;

    fn operation(request: &MasterRequest) -> &'static str {
        match request {
            MasterRequest::OpenSession { .. } => "open_session",
            MasterRequest::Change { .. } => "change",
            MasterRequest::Namespace(_) => "query",
            MasterRequest::Cluster { .. } => "cluster",
            MasterRequest::Known { .. } => "known",
            MasterRequest::Sites => "sites",
            MasterRequest::Site { .. } => "site",
            MasterRequest::Deploys { .. } => "deploys",
            MasterRequest::Watch { .. } => "watch",
            MasterRequest::WaitApplied { .. } => "wait_applied",
            MasterRequest::Farewell { .. } => "farewell",
            MasterRequest::Renew { .. } => "renew",
            MasterRequest::Enrol { .. } => "enrol",
            MasterRequest::Relay { .. } => "relay",
            MasterRequest::WaitPublished { .. } => "wait_published",
            MasterRequest::Register { .. } => "register",
            MasterRequest::Heartbeat { .. } => "heartbeat",
            MasterRequest::Status => "status",
            MasterRequest::Tokens => "tokens",
            MasterRequest::Raft { .. } => "raft",
            MasterRequest::Audit { .. } => "audit",
            MasterRequest::Backup(_) => "backup",
            MasterRequest::Deltas { .. } => "deltas",
            MasterRequest::Walk { .. } => "walk",
            MasterRequest::Objects { .. } => "objects",
            MasterRequest::Seal { .. } => "seal",
            MasterRequest::Erased { .. } => "erased",
            MasterRequest::ErasedBy { .. } => "erased_by",
            MasterRequest::Erasures { .. } => "erasures",
            MasterRequest::Unreferenced { .. } => "unreferenced",
            MasterRequest::Greet { .. } => "greet",
            MasterRequest::Masters => "masters",
            MasterRequest::ChangeMasters(_) => "change_masters",
        }
    }

    async fn call(
        &self,
        context: Context,
        request: MasterRequest,
        body: Bytes,
    ) -> WireResult<Answer<MasterResponse>> {
        self.0.answer(context, request, body).await
    }
}

/// The leader's clock, milliseconds since the Unix epoch.
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
