//! What all operations and tasks of one chunkserver share.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use atoll_net::{Endpoint, task};
use atoll_proto::chunk::ChunkStat;
use atoll_proto::cluster::ClusterView;
use atoll_proto::master::{MasterRequest, MasterResponse};
use atoll_proto::receipt::ReceiptKey;
use atoll_proto::{Code, Epoch, NodeId, WireError, WireResult};
use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::Instant;

use crate::erased::Refused;
use crate::masters::Masters;
use crate::ops::peers::Peers;
use crate::ops::traffic::Traffic;
use crate::placement::{NotFollowed, Placement};
use crate::reconcile::Upkeep;
use crate::store::writer::Writer;
use crate::store::{ChunkStore, StoreError};
use crate::tasks::clock;

/// Reads that may be at the disk at once.
const READS_MAX: usize = 64;
/// How long a master may take to tell the view.
const VIEW_DEADLINE: Duration = Duration::from_secs(3);

/// How long after the start reads wait for the list of erased chunks: long enough for a master that is
/// there, and no longer, as what is stored must be there without masters too.
const ERASED_PATIENCE: Duration = Duration::from_millis(if cfg!(test) { 0 } else { 5000 });

/// One chunkserver.
pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) endpoint: Endpoint,
    pub(crate) store: Arc<dyn ChunkStore>,
    pub(crate) writer: Writer,
    pub(crate) masters: Masters,
    pub(crate) placement: Placement,
    pub(crate) peers: Peers,
    /// What clients ask, so that upkeep makes way.
    pub(crate) traffic: Traffic,
    pub(crate) upkeep: Upkeep,
    /// Chunks that were taken down.
    pub(crate) erased: Refused,
    /// A relay found that a peer is elsewhere or knows more: look at the cluster again soon.
    pub(crate) look_again: Notify,
    receipt_key: ArcSwapOption<ReceiptKey>,
    reads: Arc<Semaphore>,
    refreshing: tokio::sync::Mutex<()>,
    /// Grows with every view that was taken over, and with the receipt key.
    views: watch::Sender<u64>,
}

impl Node {
    pub(crate) fn new(
        id: NodeId,
        endpoint: Endpoint,
        store: Arc<dyn ChunkStore>,
        writer: Writer,
        masters: Masters,
        placement: Placement,
        upkeep: Upkeep,
    ) -> Self {
        Self {
            id,
            endpoint,
            store,
            writer,
            masters,
            placement,
            peers: Peers::default(),
            traffic: Traffic::default(),
            upkeep,
            erased: Refused::new(ERASED_PATIENCE),
            look_again: Notify::new(),
            receipt_key: ArcSwapOption::empty(),
            reads: Arc::new(Semaphore::new(READS_MAX)),
            refreshing: tokio::sync::Mutex::new(()),
            views: watch::Sender::default(),
        }
    }

    /// The key that signs receipts; there is none until a master has answered.
    pub(crate) fn receipt_key(&self) -> WireResult<Arc<ReceiptKey>> {
        self.receipt_key.load_full().ok_or_else(|| {
            WireError::unavailable(format!(
                "chunkserver {} is starting: no master has answered it yet",
                self.id
            ))
        })
    }

    pub(crate) fn set_receipt_key(&self, key: ReceiptKey) {
        self.receipt_key.store(Some(Arc::new(key)));
        self.views.send_modify(|count| *count += 1);
    }

    /// Tells of every new view.
    pub(crate) fn view_changes(&self) -> watch::Receiver<u64> {
        self.views.subscribe()
    }

    /// Runs work that waits for the disk where waiting harms nobody.
    pub(crate) async fn at_the_disk<R, F>(&self, name: &'static str, work: F) -> WireResult<R>
    where
        R: Send + 'static,
        F: FnOnce(&dyn ChunkStore) -> R + Send + 'static,
    {
        let closed = || WireError::unavailable("the chunkserver is stopping");
        let turn = Arc::clone(&self.reads).acquire_owned().await.map_err(|_closed| closed())?;
        let store = Arc::clone(&self.store);
        // Who asked may be gone before the disk has answered: the work still takes its turn.
        let done = task::spawn_blocking(name, move || {
            let done = work(store.as_ref());
            drop(turn);
            done
        })
        .await;
        done.map_err(|error| WireError::internal(format!("{name} did not finish: {error}")))
    }

    /// How the server does.
    pub(crate) async fn stat(&self) -> WireResult<ChunkStat> {
        Ok(self.stat_and(|_| ()).await?.0)
    }

    /// The same, with something else that is to be seen at the disk.
    pub(crate) async fn stat_and<T: Send + 'static>(
        &self,
        look: impl FnOnce(&dyn ChunkStore) -> T + Send + 'static,
    ) -> WireResult<(ChunkStat, T)> {
        let seen = self
            .at_the_disk("stat", |store| {
                (store.totals(), store.space(), store.refilling(), look(store))
            })
            .await?;
        let (totals, space) = (seen.0, seen.1.map_err(to_wire)?);
        let mut stat = ChunkStat {
            chunks: totals.chunks,
            bytes: totals.bytes,
            free_bytes: space.free,
            total_bytes: space.total,
            corrupt_found: totals.corrupt_found,
            lacking: totals.lacking,
            quarantined: totals.quarantined,
            repaired: totals.repaired,
            refilling: seen.2,
            ..ChunkStat::default()
        };
        self.upkeep.tell(&mut stat, clock::now_ms());
        Ok((stat, seen.3))
    }

    /// The view with the table of exactly this epoch, for a put.
    ///
    /// A table that is older than the caller's is fetched first; a caller whose table is older
    /// than the newest epoch is told so.
    pub(crate) async fn view_at(
        &self,
        epoch: Epoch,
        deadline: Instant,
    ) -> WireResult<Arc<ClusterView>> {
        self.check_not_stale(epoch)?;
        if self.placement.view().is_none_or(|view| view.table.epoch < epoch) {
            let fetched = tokio::time::timeout_at(deadline, self.refresh(epoch)).await;
            if let Ok(Err(reason)) = &fetched {
                tracing::warn!(reason, %epoch, "cannot fetch the placement table of a put");
            }
        }
        self.check_not_stale(epoch)?;
        match self.placement.view() {
            Some(view) if view.table.epoch == epoch => Ok(view),
            _ => Err(WireError::unavailable(format!(
                "chunkserver {} cannot learn placement epoch {epoch} from the masters yet",
                self.id
            ))),
        }
    }

    fn check_not_stale(&self, epoch: Epoch) -> WireResult<()> {
        let newest = self.placement.epoch();
        if epoch >= newest {
            return Ok(());
        }
        Err(WireError::new(
            Code::StaleEpoch,
            format!("placement epoch {epoch} is old: the epoch is {newest}; fetch the new table"),
        ))
    }

    /// Fetches the view, unless the table of epoch `wanted` came while waiting for one's turn.
    async fn refresh(&self, wanted: Epoch) -> Result<(), String> {
        let _turn = self.refreshing.lock().await;
        if self.placement.view().is_some_and(|view| view.table.epoch >= wanted) {
            return Ok(());
        }
        self.fetch_view(None).await
    }

    /// Fetches the view if it changed since `known_index`.
    pub(crate) async fn fetch_view(&self, known_index: Option<u64>) -> Result<(), String> {
        let request = MasterRequest::Cluster { known_index };
        let answer = self.masters.ask(&request, VIEW_DEADLINE).await;
        let view = match answer.map_err(|error| error.to_string())? {
            MasterResponse::Cluster(Some(view)) => view,
            MasterResponse::Cluster(None) => return Ok(()),
            _ => return Err("the master answered with the wrong kind of message".to_owned()),
        };
        match self.placement.adopt(*view).await {
            Ok(taken) => {
                if taken {
                    self.views.send_modify(|count| *count += 1);
                }
                Ok(())
            }
            Err(error) => {
                self.distrust(&error);
                Err(error.to_string())
            }
        }
    }

    /// The master that answered last is not to be followed: another is asked next time.
    pub(crate) fn distrust(&self, error: &NotFollowed) {
        if !matches!(error, NotFollowed::Store(_)) {
            self.masters.distrust();
            metrics::counter!("atoll_chunk_masters_refused_total").increment(1);
        }
    }
}

/// A failure of the store as callers see it.
pub(crate) fn to_wire(error: StoreError) -> WireError {
    let code = match &error {
        StoreError::Full { .. } => Code::Full,
        StoreError::Corrupt { .. } => Code::Corrupt,
        StoreError::Disk { .. } => Code::Internal,
        StoreError::Erased { .. } => Code::Erased,
        StoreError::Busy | StoreError::Damaged { .. } | StoreError::Closed => Code::Unavailable,
    };
    WireError::new(code, error.to_string())
}
