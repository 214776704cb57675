//! A shield's half: hands entries on to the edges that follow it, and gathers what they say for the
//! master. It answers for nobody: what an edge is told comes from the master, or is an error, upon
//! which the edge turns to the master itself.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use atoll_client::{ClientError, Cluster};
use atoll_net::shutdown::Shutdown;
use atoll_proto::edge::EdgeResponse;
use atoll_proto::error::WireResult;
use atoll_proto::master::{MasterRequest, MasterResponse};
use atoll_proto::publish::PublishEntry;
use atoll_proto::relay::{Gathered, Next, RelayedAck, RelayedGrant, RelayedRenewal, Tail};
use atoll_proto::{Code, NodeId, Seq, WireError, limits};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::Instant;

use crate::clock;
use crate::index::Index;

/// An answer must leave this long before the caller stops waiting.
const MARGIN: Duration = Duration::from_millis(100);
/// How often a shield makes sure that it still holds a lease while edges wait.
const CHECK_EVERY: Duration = Duration::from_millis(500);
/// How long an edge that knows more than this shield waits for it to come on.
const AHEAD: Duration = Duration::from_millis(500);
/// How long asking a master for older entries may take.
const OLDER: Duration = Duration::from_secs(1);
/// Messages to the master under way at once.
const IN_FLIGHT_MAX: usize = 16;

/// Whether an acknowledgement was taken; or what a renewal came to.
type Told<T> = oneshot::Sender<WireResult<T>>;

/// What waits for the master's answer.
enum Item {
    Ack(RelayedAck, Told<bool>),
    Renewal(RelayedRenewal, Told<Option<RelayedGrant>>),
}

impl Item {
    /// Whether it is of no use any more. An acknowledgement is, also when the edge has got the next
    /// entry before this one was sent: somebody waits for it at the master.
    fn is_given_up(&self) -> bool {
        match self {
            Item::Ack(..) => false,
            Item::Renewal(_, told) => told.is_closed(),
        }
    }
}

/// The relay of a shield.
pub struct Hub {
    index: Arc<Index>,
    tail: Mutex<Tail>,
    /// The last entry in `tail`.
    news: watch::Sender<Seq>,
    gathered: Mutex<Gathered<Item>>,
    /// Rung when something was gathered.
    bell: Notify,
    cluster: Cluster,
    shutdown: Shutdown,
    /// What the masters last said comes after an entry that the tail does not reach back to: asked
    /// once for all edges that were away for the same time.
    older: tokio::sync::Mutex<Option<(Seq, EdgeResponse)>>,
}

impl Hub {
    /// A relay that knows what the index does.
    pub fn new(index: Arc<Index>, cluster: Cluster, shutdown: Shutdown) -> Hub {
        let mut tail = Tail::default();
        tail.restart(index.table().seq());
        Hub {
            index,
            news: watch::Sender::new(tail.upto()),
            tail: Mutex::new(tail),
            gathered: Mutex::default(),
            bell: Notify::new(),
            cluster,
            shutdown,
            older: tokio::sync::Mutex::default(),
        }
    }

    /// The masters answered this to the question for what is after an entry.
    pub(crate) fn heard(&self, after: Seq, entries: &[PublishEntry], upto: Seq) {
        let mut tail = self.tail();
        tail.extend(after, entries, upto);
        let upto = tail.upto();
        drop(tail);
        self.news.send_replace(upto);
    }

    /// A snapshot is in force: entries up to its end are not known one by one.
    pub(crate) fn begin_at(&self, seq: Seq) {
        self.tail().restart(seq);
        // Asked for again if somebody needs it.
        if let Ok(mut older) = self.older.try_lock() {
            *older = None;
        }
        self.news.send_replace(seq);
    }

    /// Answers an edge that follows the log through this shield. Its acknowledgement is with the
    /// master before it is told that there is nothing new.
    ///
    /// # Errors
    /// When this shield is not up to date itself, or the master did not take the acknowledgement
    /// (`Denied`): then the edge does better to ask the master.
    pub async fn follow(
        &self,
        after: Seq,
        ack: Option<RelayedAck>,
        wait: Duration,
        deadline: Instant,
    ) -> WireResult<EdgeResponse> {
        self.check_current()?;
        let told = ack.map(|ack| self.acknowledge(ack)).transpose()?;
        let mut taken = std::pin::pin!(taken(told));
        let mut is_taken = false;
        let began = Instant::now();
        let until = (began + wait.min(limits::RELAY_WAIT)).min(deadline - MARGIN);
        let mut news = self.news.subscribe();
        loop {
            news.borrow_and_update();
            let next = self.tail().after(after);
            let now = Instant::now();
            match next {
                Next::Nothing if now >= until && is_taken => {
                    return Ok(EdgeResponse::Log { entries: Vec::new(), upto: after });
                }
                Next::Nothing => {}
                Next::Entries(entries, upto) => {
                    self.gathered().handed_on();
                    return Ok(EdgeResponse::Log { entries, upto });
                }
                Next::TooOld => return self.older_than_tail(after).await,
                Next::Ahead if now >= began + AHEAD => return Err(behind()),
                Next::Ahead => {}
            }
            let look = if now >= until { deadline - MARGIN } else { until.min(now + CHECK_EVERY) };
            let look = look.max(now + Duration::from_millis(1));
            tokio::select! {
                outcome = &mut taken, if !is_taken => {
                    outcome?;
                    is_taken = true;
                }
                // The sender lives as long as this.
                _ = news.changed() => {}
                () = self.shutdown.wait() => return Err(stopping()),
                () = tokio::time::sleep_until(look) => {
                    self.check_current()?;
                    if now >= until {
                        return Err(unconfirmed());
                    }
                }
            }
        }
    }

    /// Asks the master for an edge's lease, with those of others.
    ///
    /// # Errors
    /// When this shield is not up to date itself, or the master does not answer.
    pub async fn renew(&self, renewal: RelayedRenewal) -> WireResult<EdgeResponse> {
        self.check_current()?;
        let (told, answer) = oneshot::channel();
        self.gather(|gathered, now_ns| gathered.renewal(Item::Renewal(renewal, told), now_ns))?;
        let grant = tokio::select! {
            grant = answer => grant.unwrap_or_else(|_| Err(unconfirmed()))?,
            () = self.shutdown.wait() => return Err(stopping()),
        };
        Ok(EdgeResponse::Renewed(grant))
    }

    /// A shield that holds a lease was told by the master, not long ago, that it is up to date.
    fn check_current(&self) -> WireResult<()> {
        if self.index.lease().valid(clock::boot_ns()) {
            return Ok(());
        }
        Err(WireError::unavailable("this shield holds no lease itself: ask a master"))
    }

    /// For an edge that was away for longer than the tail reaches back. The masters say whether it
    /// gets the entries it lacks or the whole state, for which it must drop what it has cached; one
    /// that knows nothing yet gets the state as it is here.
    async fn older_than_tail(&self, after: Seq) -> WireResult<EdgeResponse> {
        let table = self.index.table();
        if after == Seq(0) && table.seq() > after {
            self.gathered().handed_on();
            return Ok(EdgeResponse::Snapshot(Box::new(table.to_snapshot())));
        }
        let mut older = self.older.lock().await;
        if let Some((of, answer)) = &*older
            && *of == after
        {
            self.gathered().handed_on();
            return Ok(answer.clone());
        }
        // In no one's name: it acknowledges nothing.
        let request = MasterRequest::Watch { after, edge: None, wait_ms: 0 };
        let answer = match self.cluster.master(&request, OLDER).await {
            Ok(MasterResponse::Log { entries, upto }) if upto > after => {
                EdgeResponse::Log { entries, upto }
            }
            Ok(MasterResponse::Snapshot(snapshot)) => EdgeResponse::Snapshot(snapshot),
            answer => {
                tracing::debug!(?answer, "the masters were asked for older entries");
                return Err(unconfirmed());
            }
        };
        *older = Some((after, answer.clone()));
        self.gathered().handed_on();
        Ok(answer)
    }

    fn acknowledge(&self, ack: RelayedAck) -> WireResult<oneshot::Receiver<WireResult<bool>>> {
        let (told, taken) = oneshot::channel();
        self.gather(|gathered, now_ns| gathered.acknowledgement(Item::Ack(ack, told), now_ns))?;
        Ok(taken)
    }

    fn gather(&self, add: impl FnOnce(&mut Gathered<Item>, u64)) -> WireResult<()> {
        let mut gathered = self.gathered();
        if gathered.len() >= limits::RELAY_WAITING_MAX {
            return Err(WireError::unavailable("too much waits at this shield: ask a master"));
        }
        add(&mut gathered, clock::boot_ns());
        drop(gathered);
        self.bell.notify_one();
        Ok(())
    }

    fn tail(&self) -> MutexGuard<'_, Tail> {
        self.tail.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn gathered(&self) -> MutexGuard<'_, Gathered<Item>> {
        self.gathered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn behind() -> WireError {
    WireError::unavailable("this shield is behind: ask a master")
}

fn stopping() -> WireError {
    WireError::unavailable("this shield is stopping: ask a master")
}

fn unconfirmed() -> WireError {
    WireError::unavailable("the masters did not answer this shield: ask one yourself")
}

/// Ends once the master has an acknowledgement, if there is one.
async fn taken(told: Option<oneshot::Receiver<WireResult<bool>>>) -> WireResult<()> {
    let Some(told) = told else { return Ok(()) };
    if told.await.unwrap_or_else(|_| Err(unconfirmed()))? {
        return Ok(());
    }
    let message = "the master does not take what you say through a shield: ask it yourself";
    Err(WireError::new(Code::Denied, message))
}

/// Sends what is gathered to the masters, until shutdown.
pub(crate) async fn run(hub: Arc<Hub>, own: NodeId) {
    let work = async {
        let mut under_way = FuturesUnordered::new();
        loop {
            let due = hub.gathered().due_ns();
            let room = under_way.len() < IN_FLIGHT_MAX;
            let now_ns = clock::boot_ns();
            match due {
                Some(due_ns) if due_ns <= now_ns && room => {
                    let mut items = hub.gathered().take();
                    items.retain(|item| !item.is_given_up());
                    if !items.is_empty() {
                        under_way.push(send(&hub.cluster, own, items));
                    }
                    continue;
                }
                _ => {}
            }
            let left = due.map_or(u64::MAX, |due_ns| due_ns.saturating_sub(now_ns));
            tokio::select! {
                Some(()) = under_way.next() => {}
                () = hub.bell.notified() => {}
                () = tokio::time::sleep(Duration::from_nanos(left)), if due.is_some() && room => {}
            }
        }
    };
    tokio::select! {
        () = hub.shutdown.wait() => {}
        () = work => {}
    }
}

/// One message, and the answers to those whose items it has.
async fn send(cluster: &Cluster, shield: NodeId, items: Vec<Item>) {
    let (mut acks, mut renewals) = (Vec::new(), Vec::new());
    let (mut ack_told, mut renewal_told) = (Vec::new(), Vec::new());
    for item in items {
        match item {
            Item::Ack(ack, told) => {
                acks.push(ack);
                ack_told.push(told);
            }
            Item::Renewal(renewal, told) => {
                renewals.push(renewal);
                renewal_told.push(told);
            }
        }
    }
    metrics::counter!("atoll_edge_relay_messages_total").increment(1);
    metrics::counter!("atoll_edge_relay_acks_total").increment(acks.len() as u64);
    metrics::counter!("atoll_edge_relay_renewals_total").increment(renewals.len() as u64);
    let sent = (acks.len(), renewals.len());
    let request = MasterRequest::Relay { shield, acks, renewals };
    let error = match cluster.master(&request, limits::RELAY_RENEW).await {
        Ok(MasterResponse::Relayed { acks, renewals }) if sent == (acks.len(), renewals.len()) => {
            for (told, taken) in ack_told.into_iter().zip(acks) {
                // Who does not wait any more has turned to the master itself.
                drop(told.send(Ok(taken)));
            }
            for (told, grant) in renewal_told.into_iter().zip(renewals) {
                drop(told.send(Ok(grant)));
            }
            return;
        }
        Ok(_) => WireError::unavailable("the master answered with the wrong kind of message"),
        Err(ClientError::Refused(error)) => {
            WireError::unavailable(format!("the master refused this shield: {error}"))
        }
        Err(error) => WireError::unavailable(format!("{error}: ask a master yourself")),
    };
    tracing::debug!(%error, "nothing was relayed");
    for told in ack_told {
        drop(told.send(Err(error.clone())));
    }
    for told in renewal_told {
        drop(told.send(Err(error.clone())));
    }
}
