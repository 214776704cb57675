//! A handle on a cluster: keeps a session, caches the view; [`leader`] finds the leading master.

mod leader;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use atoll_net::call::CallOptions;
use atoll_net::endpoint::Endpoint;
use atoll_net::identity::Identity;
use atoll_net::masters::KnownMasters;
use atoll_net::task::Boxed;
use atoll_proto::cluster::ClusterView;
use atoll_proto::master::{Change, Changed, MasterRequest, MasterResponse};
use atoll_proto::masters::{MasterView, MastersOp};
use atoll_proto::namespace::{NamespaceOp, NamespaceQuery, NamespaceReply};
use atoll_proto::publish::{Published, SiteOp};
use atoll_proto::{ChunkId, Code, NodeId, SessionId, limits};
use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::locate::Load;
use crate::session::{Open, Session};
use crate::{ClientConfig, ClientError};

/// A cached view older than this is refreshed before it is used.
const VIEW_FRESH: Duration = Duration::from_secs(2);
/// How long a node that failed is asked last.
const SUSPECT_FOR: Duration = Duration::from_secs(2);
/// How long a new handle waits to hear which masters there are beside those it was told of.
const LEARN_WAIT: Duration = Duration::from_secs(2);
/// Requests of a session that may be open at once; the master allows 1,024.
const OPEN_CHANGES: usize = 512;

/// A handle on a cluster. Cheap to clone.
#[derive(Clone)]
pub struct Cluster {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    endpoint: Endpoint,
    masters: Arc<KnownMasters>,
    token: Option<Arc<str>>,
    pub(crate) zone: Option<String>,
    /// Which of the masters is asked first: the one that answered last.
    leader: watch::Sender<usize>,
    /// Held by whoever looks for the leader while a master is silent.
    looking: tokio::sync::Semaphore,
    name: String,
    view: ArcSwapOption<(Instant, Arc<ClusterView>)>,
    view_lock: tokio::sync::Mutex<()>,
    session: tokio::sync::Mutex<Option<Arc<Session>>>,
    change_room: tokio::sync::Semaphore,
    nodes: Mutex<HashMap<NodeId, NodeLoad>>,
}

#[derive(Default)]
struct NodeLoad {
    in_flight: u64,
    suspect_until: Option<Instant>,
    /// When it last answered anything.
    heard: Option<Instant>,
}

impl Cluster {
    /// Opens an endpoint with the configured identity and checks that a master answers.
    ///
    /// # Errors
    /// `Config` when the identity cannot be read, `Unreachable` when no master answers, `Refused`
    /// when the token is not accepted.
    pub async fn connect(config: &ClientConfig, name: &str) -> Result<Self, ClientError> {
        let bad = |error: &dyn std::fmt::Display| ClientError::Config {
            path: config.identity.clone(),
            reason: error.to_string(),
        };
        let identity = Identity::load(&config.identity).map_err(|error| bad(&error))?;
        let endpoint = Endpoint::client(&identity).map_err(|error| bad(&error))?;
        let token = config.token.as_deref().map(Arc::from);
        let cluster = Self::named(
            endpoint,
            (config.masters.clone(), config.remembers.clone()),
            token,
            config.zone_hint.clone(),
            name.to_owned(),
        );
        let learned = async {
            cluster.inner.masters.is_due();
            if let Ok(Err(error)) = tokio::time::timeout(LEARN_WAIT, cluster.learn_masters()).await
            {
                tracing::debug!(%error, "cannot learn which masters there are");
            }
        };
        let (view, ()) = tokio::join!(cluster.refresh_view(), learned);
        view?;
        cluster.learn_when_idle();
        Ok(cluster)
    }

    /// A handle that uses an endpoint the caller has. Asks nobody yet.
    pub fn new(
        endpoint: Endpoint,
        masters: Vec<SocketAddr>,
        token: Option<Arc<str>>,
        zone: Option<String>,
    ) -> Self {
        let name = endpoint.identity_peer().name.clone();
        Self::named(endpoint, (masters, None), token, zone, name)
    }

    /// The same for one that keeps in this file which masters there are, and reads it now: masters may
    /// have come and gone since the configuration was written.
    pub fn remembering(
        endpoint: Endpoint,
        masters: Vec<SocketAddr>,
        file: PathBuf,
        zone: Option<String>,
    ) -> Self {
        let name = endpoint.identity_peer().name.clone();
        Self::named(endpoint, (masters, Some(file)), None, zone, name)
    }

    fn named(
        endpoint: Endpoint,
        (masters, file): (Vec<SocketAddr>, Option<PathBuf>),
        token: Option<Arc<str>>,
        zone: Option<String>,
        name: String,
    ) -> Self {
        let masters = KnownMasters::new(endpoint.identity_peer().cluster, masters, file);
        Self {
            inner: Arc::new(Inner {
                endpoint,
                masters: Arc::new(masters),
                token,
                zone,
                leader: watch::Sender::new(0),
                looking: tokio::sync::Semaphore::new(leader::LOOKING_MAX),
                name,
                view: ArcSwapOption::empty(),
                view_lock: tokio::sync::Mutex::new(()),
                session: tokio::sync::Mutex::new(None),
                change_room: tokio::sync::Semaphore::new(OPEN_CHANGES),
                nodes: Mutex::new(HashMap::new()),
            }),
        }
    }

    /// The endpoint calls go through.
    pub fn endpoint(&self) -> &Endpoint {
        &self.inner.endpoint
    }

    /// Asks the leading master, looking for it among all masters until the deadline. Only for
    /// requests that may be executed twice; changes go through [`Cluster::change`].
    ///
    /// # Errors
    /// `Refused` with the master's reason; `Unreachable` or `Deadline` when none answers.
    pub async fn master(
        &self,
        request: &MasterRequest,
        deadline: Duration,
    ) -> Result<MasterResponse, ClientError> {
        self.master_with_body(request, deadline).await.map(|(answer, _)| answer)
    }

    /// The same, for answers with a body.
    pub(crate) fn master_with_body<'a>(
        &'a self,
        request: &'a MasterRequest,
        deadline: Duration,
    ) -> Boxed<'a, Result<(MasterResponse, Bytes), ClientError>> {
        Box::pin(async move { self.ask_masters(request, deadline, &mut false).await })
    }

    pub(crate) fn options(&self, deadline: Duration) -> CallOptions {
        let options = CallOptions::within(deadline);
        match &self.inner.token {
            Some(token) => options.token(token.clone()),
            None => options,
        }
    }

    /// Makes a change exactly once, however often it must be sent. Returns its log index.
    ///
    /// # Errors
    /// `Refused` with the reason; `Deadline` or `Unreachable` when the outcome stayed unknown.
    pub fn change(&self, change: Change) -> Boxed<'_, Result<(u64, Changed), ClientError>> {
        Box::pin(self.change_once(change))
    }

    async fn change_once(&self, change: Change) -> Result<(u64, Changed), ClientError> {
        match self.send_change(change).await {
            Ok((index, changed, _)) => Ok((index, changed)),
            Err((error, _)) => Err(error),
        }
    }

    /// Sends a change under a number of its own, which stays in use until it is dropped. Without one
    /// the change was not sent.
    pub(crate) async fn send_change(
        &self,
        mut change: Change,
    ) -> Result<(u64, Changed, Open), (ClientError, Option<Open>)> {
        let _room = self.inner.change_room.acquire().await;
        for again in [true, false] {
            let session = self.open_session().await.map_err(|error| (error, None))?;
            let (open, acked_below) = session.begin();
            let number = open.number;
            let request =
                MasterRequest::Change { session: session.id, number, acked_below, change };
            let deadline = deadline_of(&request);
            let mut may_be_done = false;
            let answer = self.ask_masters(&request, deadline, &mut may_be_done);
            match Box::pin(answer).await.map(|(answer, _)| answer) {
                Ok(MasterResponse::Changed { index, reply }) => return Ok((index, reply, open)),
                Ok(_) => return Err((ClientError::unexpected("the master"), Some(open))),
                Err(error) => {
                    let forgotten = matches!(&error, ClientError::Refused(refusal)
                        if refusal.code == Code::NotFound && refusal.message.starts_with("session unknown"));
                    if !(forgotten && again) {
                        return Err((error, Some(open)));
                    }
                    self.forget_session(session.id).await;
                    // Under another number it could be done twice.
                    if may_be_done {
                        let what = "the master, which forgot the session of the change meanwhile";
                        let error =
                            ClientError::Deadline { what: what.to_owned(), after: deadline };
                        return Err((error, Some(open)));
                    }
                    let MasterRequest::Change { change: taken, .. } = request else {
                        return Err((ClientError::unexpected("this program"), None));
                    };
                    change = taken;
                }
            }
        }
        Err((ClientError::unexpected("the master"), None))
    }

    /// The id of this client's session, opening it when there is none.
    ///
    /// # Errors
    /// As [`Cluster::master`].
    pub async fn session(&self) -> Result<SessionId, ClientError> {
        Ok(self.open_session().await?.id)
    }

    async fn open_session(&self) -> Result<Arc<Session>, ClientError> {
        let mut slot = self.inner.session.lock().await;
        if let Some(session) = &*slot {
            return Ok(session.clone());
        }
        let request = MasterRequest::OpenSession { name: self.inner.name.clone() };
        match self.master(&request, limits::METADATA_DEADLINE).await? {
            MasterResponse::Session { session, .. } => {
                let session = Arc::new(Session::new(session));
                *slot = Some(session.clone());
                Ok(session)
            }
            _ => Err(ClientError::unexpected("the master")),
        }
    }

    async fn forget_session(&self, id: SessionId) {
        let mut slot = self.inner.session.lock().await;
        if slot.as_ref().is_some_and(|session| session.id == id) {
            *slot = None;
        }
    }

    /// A change of the namespace.
    ///
    /// # Errors
    /// `Missing` when the content's chunks must be uploaded (again); else as [`Cluster::change`].
    pub async fn namespace(&self, op: NamespaceOp) -> Result<NamespaceReply, ClientError> {
        match self.change(Change::Namespace(op)).await?.1 {
            Changed::Namespace(reply) => Ok(reply),
            Changed::Missing { ids } => Err(ClientError::Missing { ids }),
            _ => Err(ClientError::unexpected("the master")),
        }
    }

    /// A question about the namespace.
    ///
    /// # Errors
    /// As [`Cluster::master`].
    pub async fn query(&self, query: NamespaceQuery) -> Result<NamespaceReply, ClientError> {
        let request = MasterRequest::Namespace(query);
        match self.master(&request, limits::METADATA_DEADLINE).await? {
            MasterResponse::Namespace { reply, .. } => Ok(reply),
            _ => Err(ClientError::unexpected("the master")),
        }
    }

    /// A change of sites, aliases or deploys.
    ///
    /// # Errors
    /// As [`Cluster::change`].
    pub async fn site(&self, op: SiteOp) -> Result<Published, ClientError> {
        match self.change(Change::Site(op)).await?.1 {
            Changed::Site(published) => Ok(published),
            Changed::Missing { ids } => Err(ClientError::Missing { ids }),
            _ => Err(ClientError::unexpected("the master")),
        }
    }

    /// The masters.
    ///
    /// # Errors
    /// As [`Cluster::master`].
    pub async fn masters(&self) -> Result<Vec<MasterView>, ClientError> {
        match self.master(&MasterRequest::Masters, limits::METADATA_DEADLINE).await? {
            MasterResponse::Masters(masters) => Ok(masters),
            _ => Err(ClientError::unexpected("the master")),
        }
    }

    /// A step of a change of the masters; the masters after it.
    ///
    /// # Errors
    /// As [`Cluster::master`].
    pub async fn change_masters(&self, op: MastersOp) -> Result<Vec<MasterView>, ClientError> {
        let request = MasterRequest::ChangeMasters(op);
        match self.master(&request, limits::METADATA_DEADLINE * 3).await? {
            MasterResponse::Masters(masters) => Ok(masters),
            _ => Err(ClientError::unexpected("the master")),
        }
    }

    /// Which of these chunks the cluster holds.
    ///
    /// # Errors
    /// As [`Cluster::master`].
    pub async fn known(&self, ids: &[ChunkId]) -> Result<Vec<bool>, ClientError> {
        let mut known = Vec::with_capacity(ids.len());
        for part in ids.chunks(limits::IDS_MAX / 4) {
            let request = MasterRequest::Known { ids: part.to_vec() };
            match self.master(&request, limits::METADATA_DEADLINE).await? {
                MasterResponse::Known(some) if some.len() == part.len() => known.extend(some),
                _ => return Err(ClientError::unexpected("the master")),
            }
        }
        Ok(known)
    }

    /// Nodes and placement, from the cache when it is fresh.
    ///
    /// # Errors
    /// As [`Cluster::master`], but only when there is no view at all: an old one is better than
    /// none while the masters are away.
    pub async fn view(&self) -> Result<Arc<ClusterView>, ClientError> {
        match &*self.inner.view.load() {
            Some(cached) if cached.0.elapsed() < VIEW_FRESH => Ok(cached.1.clone()),
            Some(cached) => {
                // One refreshes; the others go on with what there is.
                if let Ok(_held) = self.inner.view_lock.try_lock() {
                    let now = (Instant::now(), cached.1.clone());
                    self.inner.view.store(Some(Arc::new(now)));
                    let cluster = self.clone();
                    atoll_net::task::spawn("client-view", async move {
                        if let Err(error) = cluster.refresh_view().await {
                            tracing::debug!(%error, "the view could not be refreshed");
                        }
                    });
                }
                Ok(cached.1.clone())
            }
            None => self.refresh_view().await,
        }
    }

    /// Nodes and placement as last heard, however old; asks nobody.
    pub fn last_view(&self) -> Option<Arc<ClusterView>> {
        self.inner.view.load().as_ref().map(|cached| cached.1.clone())
    }

    /// Nodes and placement, asked for now.
    ///
    /// # Errors
    /// As [`Cluster::master`].
    pub async fn refresh_view(&self) -> Result<Arc<ClusterView>, ClientError> {
        let _held = self.inner.view_lock.lock().await;
        let cached = self.last_view();
        let request =
            MasterRequest::Cluster { known_index: cached.as_ref().map(|view| view.index) };
        let view = match self.master(&request, limits::METADATA_DEADLINE).await? {
            MasterResponse::Cluster(Some(view)) => Arc::from(view),
            MasterResponse::Cluster(None) => {
                cached.ok_or_else(|| ClientError::unexpected("the master"))?
            }
            _ => return Err(ClientError::unexpected("the master")),
        };
        self.inner.view.store(Some(Arc::new((Instant::now(), Arc::clone(&view)))));
        Ok(view)
    }

    /// Notes that a call to a node begins; dropping the guard ends it.
    pub(crate) fn begin(&self, node: NodeId) -> InFlight {
        self.with_node(node, |load| load.in_flight += 1);
        InFlight { cluster: self.clone(), node }
    }

    /// Notes that a node failed: it is asked last for a while.
    pub(crate) fn suspect(&self, node: NodeId) {
        self.with_node(node, |load| load.suspect_until = Some(Instant::now() + SUSPECT_FOR));
    }

    /// Notes that a node answered, whatever it said: it is alive.
    pub(crate) fn heard(&self, node: NodeId) {
        self.with_node(node, |load| load.heard = Some(Instant::now()));
    }

    /// Whether a node has answered nothing at all since then.
    pub(crate) fn is_silent(&self, node: NodeId, since: Instant) -> bool {
        self.with_node(node, |load| load.heard.is_none_or(|heard| heard < since))
    }

    /// Ends once a node has answered nothing at all for this long, counted from now. A busy node
    /// answers other requests meanwhile; one that is frozen, cut off or gone answers none.
    pub(crate) async fn silence(&self, node: NodeId, bound: Duration) {
        let mut since = Instant::now();
        loop {
            tokio::time::sleep_until(since + bound).await;
            match self.with_node(node, |load| load.heard) {
                Some(heard) if heard > since => since = heard,
                _ => return,
            }
        }
    }

    fn with_node<R>(&self, node: NodeId, change: impl FnOnce(&mut NodeLoad) -> R) -> R {
        let mut nodes = self.inner.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        change(nodes.entry(node).or_default())
    }
}

fn deadline_of(request: &MasterRequest) -> Duration {
    match request {
        // The master reads the pages from the chunkservers first.
        MasterRequest::Change { change: Change::Admit { .. }, .. } => Duration::from_secs(60),
        // A change is retried past a change of leader.
        _ => limits::METADATA_DEADLINE * 3,
    }
}

impl Load for Cluster {
    fn in_flight(&self, node: NodeId) -> u64 {
        self.with_node(node, |load| load.in_flight)
    }

    fn suspect(&self, node: NodeId) -> bool {
        self.with_node(node, |load| load.suspect_until.is_some_and(|until| Instant::now() < until))
    }
}

/// A call under way to a node.
pub(crate) struct InFlight {
    cluster: Cluster,
    node: NodeId,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.cluster.with_node(self.node, |load| load.in_flight = load.in_flight.saturating_sub(1));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use atoll_net::identity::{ClusterCa, Role};
    use atoll_proto::ClusterId;

    use super::*;

    #[tokio::test]
    async fn a_node_that_answers_anything_is_not_silent() {
        let ca = ClusterCa::create(ClusterId([1; 16])).unwrap();
        let identity = ca.issue(Role::Client, "test").unwrap();
        let endpoint = Endpoint::client(&identity).unwrap();
        let cluster = Cluster::new(endpoint, Vec::new(), None, None);
        let (busy, frozen) = (NodeId(1), NodeId(2));
        let bound = Duration::from_millis(200);
        let began = Instant::now();
        let answers = async {
            while began.elapsed() < bound * 3 {
                cluster.heard(busy);
                tokio::time::sleep(bound / 20).await;
            }
        };
        let silent = async {
            cluster.silence(frozen, bound).await;
            cluster.is_silent(frozen, began) && !cluster.is_silent(busy, began)
        };
        let (frozen_is_silent, ()) = tokio::join!(silent, answers);
        assert!(frozen_is_silent);
        let answered = Instant::now();
        cluster.heard(busy);
        cluster.silence(busy, bound).await;
        assert!(answered.elapsed() >= bound, "counted from the last answer");
    }
}
