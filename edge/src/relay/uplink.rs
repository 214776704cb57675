//! An edge's half: whom it asks for the publish log and for its lease. A shield of its region that is
//! well, if there is one, and otherwise, or as soon as that does not answer, lags or refuses, a master.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use atoll_client::{ClientError, Cluster};
use atoll_net::call::{CallError, CallOptions};
use atoll_net::identity::Role;
use atoll_proto::edge::{EdgeRequest, EdgeResponse};
use atoll_proto::master::{MasterRequest, MasterResponse};
use atoll_proto::publish::{PublishEntry, PublishSnapshot};
use atoll_proto::relay::{Asked, Lag, RelayKey, RelayedAck, RelayedRenewal};
use atoll_proto::{Code, NodeId, Seq, limits};
use tokio::time::Instant;

use crate::clock;
use crate::fetch::shield::{Shield, Shields};
use crate::index::Index;

/// How much longer than it may hold a request a master may take.
const SLACK: Duration = Duration::from_secs(3);
/// How long a shield that failed is not asked; doubled each time, until it answers.
const REST_FIRST: Duration = Duration::from_secs(2);
const REST_MAX: Duration = Duration::from_secs(30);
/// How long after the masters gave no key they are asked for one again.
const ENROL_AGAIN: Duration = Duration::from_secs(5);
/// How long asking for one may take.
const ENROL: Duration = Duration::from_secs(1);

/// What there is to apply.
#[derive(Debug)]
pub(crate) enum News {
    /// Entries in order; having applied them the edge is up to date with the second.
    Log(Vec<PublishEntry>, Seq),
    /// The whole state.
    Snapshot(Box<PublishSnapshot>),
}

/// What came of asking for a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Renewed {
    /// It is granted.
    Granted,
    /// The edge has not applied enough.
    Behind,
    /// The masters do not know the node.
    Unknown,
}

/// Why nothing was heard.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UplinkError {
    #[error(transparent)]
    Master(#[from] ClientError),
    #[error("the master answered with the wrong kind of message")]
    Unexpected,
}

/// The way to the masters.
pub(crate) struct Uplink {
    cluster: Cluster,
    own: NodeId,
    /// `None`: this edge always asks the masters.
    shields: Option<Arc<Shields>>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// What this edge seals with.
    key: Option<RelayKey>,
    /// When the masters may be asked for one.
    enrol_from: Option<Instant>,
    /// The number of the last renewal through a shield; the next has a higher one.
    number: u64,
    /// The last acknowledgement under this key that a shield passed on.
    acked: Option<Seq>,
    /// Shields that are not asked for a while.
    resting: HashMap<NodeId, Rest>,
    lag: Lag,
}

#[derive(Clone, Copy)]
struct Rest {
    until: Instant,
    period: Duration,
}

impl State {
    /// The number of the next renewal through a shield.
    fn numbered(&mut self) -> u64 {
        self.number += 1;
        self.number
    }
}

impl Uplink {
    pub(crate) fn new(cluster: Cluster, own: NodeId, shields: Option<Arc<Shields>>) -> Uplink {
        Uplink { cluster, own, shields, state: Mutex::default() }
    }

    /// The masters themselves, for what is not asked through shields.
    pub(crate) fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// The masters were told of this run of the edge: what it had from them before is void.
    pub(crate) fn registered(&self) {
        let mut state = self.state();
        (state.key, state.acked, state.enrol_from) = (None, None, None);
    }

    /// What comes after an entry. Asking says that everything up to it is applied, if `known`.
    ///
    /// # Errors
    /// When neither a shield nor a master answers.
    pub(crate) async fn follow(
        &self,
        after: Seq,
        known: bool,
        wait: Duration,
    ) -> Result<News, UplinkError> {
        if let Some((shield, key)) = self.relay(Instant::now())
            && let Some(news) = self.follow_shield(&shield, &key, after, known, wait).await
        {
            count_follow("shield");
            return Ok(news);
        }
        let request = MasterRequest::Watch {
            after,
            edge: Some(self.own),
            wait_ms: u32::try_from(wait.as_millis()).unwrap_or(u32::MAX),
        };
        let news = match self.cluster.master(&request, wait + SLACK).await? {
            MasterResponse::Log { entries, upto } => News::Log(entries, upto),
            MasterResponse::Snapshot(snapshot) => News::Snapshot(snapshot),
            _ => return Err(UplinkError::Unexpected),
        };
        count_follow("master");
        Ok(news)
    }

    async fn follow_shield(
        &self,
        shield: &Shield,
        key: &RelayKey,
        after: Seq,
        known: bool,
        wait: Duration,
    ) -> Option<News> {
        let wait = wait.min(limits::RELAY_WAIT);
        let said = self.state().acked == Some(after);
        let ack = (known && !said).then(|| RelayedAck::sealed(key, self.own, after));
        let wait_ms = u32::try_from(wait.as_millis()).unwrap_or(u32::MAX);
        let request = EdgeRequest::Follow { after, ack, wait_ms };
        let asked = Instant::now();
        match self.ask(shield, &request, wait + limits::RELAY_PATIENCE).await {
            Ok(EdgeResponse::Log { entries, upto })
                if entries.is_empty() && upto == after && asked.elapsed() < wait / 2 =>
            {
                // Asked again at once, it would keep both of us busy for nothing.
                self.rest(shield, &"it does not wait for news");
                None
            }
            Ok(EdgeResponse::Log { entries, upto }) if upto >= after => {
                if entries.is_empty() && upto == after && ack.is_some() {
                    let mut state = self.state();
                    // Under another key it would have to be said again.
                    if state.key.as_ref() == Some(key) {
                        state.acked = Some(after);
                    }
                }
                self.is_well(shield);
                Some(News::Log(entries, upto))
            }
            Ok(EdgeResponse::Snapshot(snapshot)) if snapshot.seq > after || !known => {
                self.is_well(shield);
                Some(News::Snapshot(snapshot))
            }
            Ok(_) => {
                self.rest(shield, &"it answered with something that makes no sense");
                None
            }
            Err(CallError::Refused(error)) if error.code == Code::Denied => {
                self.forget_key(key);
                None
            }
            Err(error) => {
                self.rest(shield, &error);
                None
            }
        }
    }

    /// Asks for a lease, and notes it in the index.
    ///
    /// # Errors
    /// When neither a shield nor a master answers.
    pub(crate) async fn renew(&self, index: &Index, ready: bool) -> Result<Renewed, UplinkError> {
        self.enrol().await;
        if let Some((shield, key)) = self.relay(Instant::now())
            && let Some(renewed) = self.renew_at_shield(&shield, &key, index, ready).await
        {
            return Ok(renewed);
        }
        // Before the request is sent: the master may grant it at any time from then on.
        let sent_ns = clock::boot_ns();
        let request = MasterRequest::Renew { node: self.own, ready, applied: applied(index) };
        match self.cluster.master(&request, limits::LEASE_RENEW_EVERY).await? {
            MasterResponse::Renewed { known: false, .. } => {
                // No publish waits for it any more.
                index.lease_is_over();
                Ok(Renewed::Unknown)
            }
            MasterResponse::Renewed { granted: true, .. } => {
                index.renewed(sent_ns);
                Ok(Renewed::Granted)
            }
            MasterResponse::Renewed { .. } => Ok(Renewed::Behind),
            _ => Err(UplinkError::Unexpected),
        }
    }

    async fn renew_at_shield(
        &self,
        shield: &Shield,
        key: &RelayKey,
        index: &Index,
        ready: bool,
    ) -> Option<Renewed> {
        let number = self.state().numbered();
        // Before anything of it is sent.
        let asked = Asked::new(number, clock::boot_ns());
        let renewal = RelayedRenewal::sealed(key, self.own, number, ready, applied(index));
        let request = EdgeRequest::Renew { renewal };
        let grant = match self.ask(shield, &request, limits::RELAY_RENEW).await {
            Ok(EdgeResponse::Renewed(Some(grant))) => grant,
            Ok(EdgeResponse::Renewed(None)) => {
                self.forget_key(key);
                return None;
            }
            Ok(_) => {
                self.rest(shield, &"it answered with something that makes no sense");
                return None;
            }
            Err(error) => {
                self.rest(shield, &error);
                return None;
            }
        };
        let sent_ns = asked.counts_from(grant.number).filter(|_| grant.edge == self.own);
        let Some(sent_ns) = sent_ns.filter(|_| grant.is_of(key)) else {
            tracing::warn!(shield = %shield.id, "a shield handed on a grant that is not ours");
            self.rest(shield, &"it handed on a grant that is not ours");
            return None;
        };
        // That it hands on the log is what counts: what it did wrong there is not forgotten for this.
        let seq = index.table().seq();
        let behind = self.state().lag.stays_behind(seq, Some(grant.last), clock::boot_ns());
        if behind {
            self.rest(shield, &"it is behind");
        }
        if !grant.granted {
            return Some(Renewed::Behind);
        }
        index.renewed(sent_ns);
        Some(Renewed::Granted)
    }

    /// Gets a key, if there is somebody to use it with and none is at hand.
    async fn enrol(&self) {
        let now = Instant::now();
        {
            let state = self.state();
            let early = state.enrol_from.is_some_and(|from| now < from);
            if state.key.is_some() || early || self.choose(&state, now).is_none() {
                return;
            }
        }
        let request = MasterRequest::Enrol { node: self.own };
        let answer = self.cluster.master(&request, ENROL).await;
        let mut state = self.state();
        match answer {
            Ok(MasterResponse::Enrolled { key: Some(key) }) => {
                (state.key, state.acked) = (Some(key), None);
            }
            answer => {
                tracing::debug!(?answer, "the masters gave no key to speak through shields with");
                state.enrol_from = Some(now + ENROL_AGAIN);
            }
        }
    }

    /// Whom to ask instead of the masters, and what to seal with.
    fn relay(&self, now: Instant) -> Option<(Shield, RelayKey)> {
        let state = self.state();
        let key = state.key?;
        Some((self.choose(&state, now)?, key))
    }

    fn choose(&self, state: &State, now: Instant) -> Option<Shield> {
        let rests = |id| state.resting.get(&id).is_some_and(|rest: &Rest| now < rest.until);
        self.shields.as_ref()?.of_region(self.own, |id| !rests(id))
    }

    async fn ask(
        &self,
        shield: &Shield,
        request: &EdgeRequest,
        deadline: Duration,
    ) -> Result<EdgeResponse, CallError> {
        let options = CallOptions::within(deadline);
        let call = self.cluster.endpoint().call::<_, EdgeResponse>(
            shield.addr,
            Role::Edge,
            request,
            Vec::new(),
            options,
        );
        call.await.map(|(answer, _)| answer)
    }

    fn is_well(&self, shield: &Shield) {
        self.state().resting.remove(&shield.id);
    }

    /// Leaves a shield alone for a while.
    fn rest(&self, shield: &Shield, reason: &dyn std::fmt::Display) {
        tracing::debug!(shield = %shield.id, %reason, "leaving a shield alone for a while");
        metrics::counter!("atoll_edge_relay_left_total").increment(1);
        let now = Instant::now();
        let mut state = self.state();
        state.lag.forget();
        state.acked = None;
        // Those that are gone for good are forgotten in time.
        state.resting.retain(|_, rest| now < rest.until + REST_MAX);
        let rest = state.resting.get(&shield.id).copied();
        let period = match rest {
            // Two questions that failed at the same time.
            Some(rest) if now < rest.until => return,
            Some(rest) => (rest.period * 2).min(REST_MAX),
            None => REST_FIRST,
        };
        state.resting.insert(shield.id, Rest { until: now + period, period });
    }

    /// The masters do not take what is sealed with this key.
    fn forget_key(&self, key: &RelayKey) {
        let mut state = self.state();
        if state.key.as_ref() == Some(key) {
            (state.key, state.acked) = (None, None);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The last entry that is in force, if any is known. What was erased while this node was away must be
/// known before it serves.
fn applied(index: &Index) -> Option<Seq> {
    let table = index.table();
    (table.is_known() && index.erased_known().is_some()).then(|| table.seq())
}

fn count_follow(through: &'static str) {
    metrics::counter!("atoll_edge_follows_total", "through" => through).increment(1);
}
