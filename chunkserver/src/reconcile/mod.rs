//! Keeping what is here equal to what should be here, at a cost that follows the differences.
//!
//! The master's object table is the authority. [`crate::tasks::feed`] follows its changes;
//! [`tree`] sums up what is here and [`report`] tells the master, which compares; [`session`]
//! walks down what differs ([`walk`], [`diff`], [`known`]); [`queue`] orders what has to be
//! fetched; [`breaker`] says whether anything may be dropped. Only `session` does input and output:
//! the rest is plain state, and tasks drive it.

pub(crate) mod breaker;
pub(crate) mod diff;
pub(crate) mod known;
pub(crate) mod pace;
pub(crate) mod pause;
pub(crate) mod queue;
pub(crate) mod report;
pub(crate) mod session;
pub(crate) mod tree;
pub(crate) mod walk;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use atoll_proto::chunk::ChunkStat;
use atoll_proto::ids::PG_COUNT;
use atoll_proto::master::{Orders, TreeReport};
use atoll_proto::{ChunkId, PgId};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use breaker::Breaker;
use pause::{Pauses, Point};
use queue::{Millis, Queue};
use report::Reporter;
use tree::Trees;

/// What is the operator's to choose.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings {
    /// Most bytes per second that repair fetches; `None` for no limit.
    pub(crate) repair_bytes_per_s: Option<u64>,
    /// Pause after the first round of a repair that had no success.
    pub(crate) repair_pause: Duration,
    /// Every chunk is verified once in this time.
    pub(crate) scrub_period: Duration,
    /// How often what nobody needs is looked for.
    pub(crate) sweep_every: Duration,
    /// How long a chunk that never became live is kept, in milliseconds.
    pub(crate) pending_lifetime_ms: u64,
    /// How long bytes stay in quarantine, in milliseconds.
    pub(crate) quarantine_lifetime_ms: u64,
}

/// What the tasks that keep this node in order share.
pub(crate) struct Upkeep {
    pub(crate) settings: Settings,
    pub(crate) trees: Arc<Trees>,
    /// Held while marks are set, so that what a walk found and what the feed brings are put into
    /// one order.
    pub(crate) feed: tokio::sync::Mutex<Feed>,
    /// Somebody wants to know how far this node is: ask the master now.
    pub(crate) feed_wanted: Notify,
    /// What the last comparisons said.
    pub(crate) compared: watch::Sender<Compared>,
    /// Look at what nobody needs now.
    pub(crate) sweep_now: Notify,
    /// What the scrubber has done.
    pub(crate) scrubbed: Scrubbed,
    /// What the last heartbeats said of a store that was begun anew: all that should be here is
    /// here, and what was set aside may go.
    pub(crate) refilled: AtomicBool,
    /// Taking back what was set aside takes long or fails: repair waits for it no longer.
    pub(crate) salvage_slow: AtomicBool,
    /// What the masters want; `None` before one has answered.
    pub(crate) orders: watch::Sender<Option<Orders>>,
    reporter: Mutex<Reporter>,
    breaker: Mutex<Breaker>,
    queue: Mutex<Queue>,
    queue_changed: Notify,
    /// The last thing that was lacking has been mended.
    mended: Notify,
    started: Instant,
    pauses: Option<Arc<dyn Pauses>>,
    compared_bytes: AtomicU64,
    roots_compared: AtomicU64,
    mismatches: AtomicU64,
}

/// How far the master's feed was followed.
#[derive(Debug)]
pub(crate) struct Feed {
    /// Since this position the feed has been asked for as the present placement table wants it.
    pub(crate) since: u64,
    /// Nothing more was known to come at the last answer.
    pub(crate) caught_up: bool,
    /// For each group, the index of the last delta applied since the start.
    moved: Vec<u64>,
}

/// What comparisons with the master have said since a walk last looked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Compared {
    /// The last answer about everything.
    pub(crate) in_sync: Option<bool>,
    /// Groups that differ.
    pub(crate) differ: BTreeSet<PgId>,
    /// Grows when something happened after which a walk may find more than it did before.
    pub(crate) upheavals: u64,
}

/// What the scrubber tells.
#[derive(Debug, Default)]
pub(crate) struct Scrubbed {
    /// When the byte that waits longest was verified, in milliseconds since 1970; 0 for none.
    pub(crate) oldest_ms: AtomicU64,
    /// The last order carried out.
    pub(crate) order: AtomicU64,
}

impl Feed {
    fn new() -> Self {
        Self { since: 0, caught_up: false, moved: vec![0; usize::from(PG_COUNT)] }
    }

    /// A delta of this group was applied.
    pub(crate) fn note(&mut self, pg: PgId, index: u64) {
        if let Some(moved) = self.moved.get_mut(usize::from(pg.0)) {
            *moved = index.max(*moved);
        }
    }

    /// The index of a group's last delta since the start, or 0.
    pub(crate) fn moved(&self, pg: PgId) -> u64 {
        self.moved.get(usize::from(pg.0)).copied().unwrap_or_default()
    }

    /// The feed goes on from another place.
    pub(crate) fn begin_at(&mut self, since: u64) {
        self.since = since;
        self.moved.fill(0);
        self.caught_up = false;
    }
}

impl Upkeep {
    pub(crate) fn new(settings: Settings, pauses: Option<Arc<dyn Pauses>>) -> Self {
        Self {
            settings,
            trees: Arc::default(),
            feed: tokio::sync::Mutex::new(Feed::new()),
            feed_wanted: Notify::new(),
            compared: watch::Sender::default(),
            sweep_now: Notify::new(),
            scrubbed: Scrubbed::default(),
            refilled: AtomicBool::new(false),
            salvage_slow: AtomicBool::new(false),
            orders: watch::Sender::default(),
            reporter: Mutex::default(),
            breaker: Mutex::default(),
            queue: Mutex::new(Queue::new(settings.repair_pause)),
            queue_changed: Notify::new(),
            mended: Notify::new(),
            started: Instant::now(),
            pauses,
            compared_bytes: AtomicU64::new(0),
            roots_compared: AtomicU64::new(0),
            mismatches: AtomicU64::new(0),
        }
    }

    /// Milliseconds since the start.
    pub(crate) fn elapsed(&self) -> Millis {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    pub(crate) fn reporter(&self) -> MutexGuard<'_, Reporter> {
        lock(&self.reporter)
    }

    pub(crate) fn breaker(&self) -> MutexGuard<'_, Breaker> {
        lock(&self.breaker)
    }

    pub(crate) fn queue(&self) -> MutexGuard<'_, Queue> {
        lock(&self.queue)
    }

    /// These chunks are lacking; they are fetched after `delay`.
    pub(crate) fn lack(&self, ids: Vec<ChunkId>, delay: Duration) {
        if ids.is_empty() {
            return;
        }
        let delay = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
        self.enqueue(ids, self.elapsed().saturating_add(delay));
        self.queue_changed.notify_one();
    }

    /// Puts chunks into the queue of repair, and counts what had to make way.
    pub(crate) fn enqueue(&self, ids: impl IntoIterator<Item = ChunkId>, due: Millis) {
        let let_go = self.queue().push(ids, due);
        if let_go > 0 {
            metrics::counter!("atoll_chunk_dead_letters_let_go_total").increment(let_go);
            tracing::warn!(let_go, "dead letters made way for what may be fetched");
        }
    }

    /// The queue may have something to do that it had not before.
    pub(crate) fn wake_repair(&self) {
        self.queue_changed.notify_one();
    }

    /// Waits until the queue changed.
    pub(crate) async fn queue_changed(&self) {
        self.queue_changed.notified().await;
    }

    /// Nothing is waiting for repair any more.
    pub(crate) fn tell_mended(&self) {
        self.mended.notify_one();
    }

    /// Waits until the last thing that was lacking has been mended.
    pub(crate) async fn mended(&self) {
        self.mended.notified().await;
    }

    /// Something happened after which this node may not know all that is live.
    pub(crate) fn upheaval(&self) {
        self.compared.send_modify(|compared| compared.upheavals += 1);
    }

    /// The master has compared a report. If what is present is all that should be, then what is
    /// `lacking` should not be: that is to be looked at as well.
    pub(crate) fn heard(
        &self,
        report: &TreeReport,
        in_sync: Option<bool>,
        differ: &[PgId],
        lacking: u64,
    ) {
        self.reporter().answered(report, in_sync);
        if in_sync.is_some() {
            let roots = report.groups.len() as u64 + 1;
            let wrong = differ.len() as u64 + u64::from(in_sync == Some(false));
            self.count_roots(roots, wrong);
        } else if !differ.is_empty() {
            self.count_roots(report.groups.len() as u64, differ.len() as u64);
        }
        let told: BTreeSet<PgId> = report.groups.iter().map(|(pg, _)| *pg).collect();
        self.compared.send_if_modified(|compared| {
            let before = compared.clone();
            let equal = in_sync.map(|same| same && lacking == 0);
            compared.in_sync = equal.or(compared.in_sync);
            compared.differ.retain(|pg| in_sync != Some(true) && !told.contains(pg));
            compared.differ.extend(differ);
            *compared != before
        });
    }

    /// A master said what it wants.
    pub(crate) fn order(&self, orders: Orders) {
        let goes_on = self.breaker().hear(orders);
        let before = self.orders.send_replace(Some(orders));
        if before == Some(orders) {
            return;
        }
        tracing::info!(?orders, "new orders");
        let asked = |before: Orders| orders.scrub > before.scrub || orders.release > before.release;
        if before.is_some_and(asked) {
            self.queue().revive(self.elapsed(), |_| true);
            self.wake_repair();
        }
        if goes_on {
            self.sweep_now.notify_one();
            self.upheaval();
        }
    }

    /// Bytes of comparison went over the network, in a `heartbeat` or a `walk`.
    pub(crate) fn count_bytes(&self, by: &'static str, bytes: usize) {
        self.compared_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        metrics::counter!("atoll_chunk_compared_bytes_total", "by" => by).increment(bytes as u64);
    }

    /// Roots were compared, and so many differed.
    pub(crate) fn count_roots(&self, compared: u64, differ: u64) {
        self.roots_compared.fetch_add(compared, Ordering::Relaxed);
        self.mismatches.fetch_add(differ, Ordering::Relaxed);
        metrics::counter!("atoll_chunk_roots_compared_total").increment(compared);
        metrics::counter!("atoll_chunk_mismatches_total").increment(differ);
    }

    /// Adds what is known here to what a server tells of itself.
    pub(crate) fn tell(&self, stat: &mut ChunkStat, now_ms: u64) {
        let oldest_ms = self.scrubbed.oldest_ms.load(Ordering::Relaxed);
        let any = stat.chunks > 0 && oldest_ms > 0;
        stat.oldest_unverified_s = any.then(|| now_ms.saturating_sub(oldest_ms) / 1000);
        stat.scrubbed = self.scrubbed.order.load(Ordering::Relaxed);
        stat.dead_letters = self.queue().dead() as u64;
        stat.compared_bytes = self.compared_bytes.load(Ordering::Relaxed);
        stat.roots_compared = self.roots_compared.load(Ordering::Relaxed);
        stat.mismatches = self.mismatches.load(Ordering::Relaxed);
        stat.halted = self.breaker().reason();
    }

    /// A point at which a test may hold the work up.
    pub(crate) async fn pause(&self, point: Point) {
        if let Some(pauses) = &self.pauses {
            pauses.at(point).await;
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
