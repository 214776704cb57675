//! Where chunks belong, as far as this node knows: the last cluster view and the fence, in memory
//! and on disk.
//!
//! [`crate::tasks`] brings views from the masters; [`crate::ops`] asks for the table. On disk they
//! let a node that starts while no master answers know what it knew.

use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwapOption;
use atoll_proto::cluster::ClusterView;
use atoll_proto::ids::PG_COUNT;
use atoll_proto::{ClusterId, Epoch};

use crate::fence::{Fence, Outdated};
use crate::store::{ChunkStore, Meta, StoreError};

/// Why a view or an answer of a master is not followed.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum NotFollowed {
    #[error(transparent)]
    Outdated(#[from] Outdated),
    #[error("it belongs to cluster {theirs}, this node to {ours}: check `masters`")]
    Foreign { ours: ClusterId, theirs: ClusterId },
    #[error("its placement table has {0} groups instead of {PG_COUNT}")]
    Table(usize),
    #[error("what it said cannot be kept: {0}")]
    Store(#[from] StoreError),
}

pub(crate) struct Placement {
    cluster: ClusterId,
    store: Arc<dyn ChunkStore>,
    view: ArcSwapOption<ClusterView>,
    fence: Mutex<Fence>,
    /// One change at a time, from reading the fence to having it on disk.
    changing: tokio::sync::Mutex<()>,
}

impl Placement {
    /// What is known from before. Blocks.
    pub(crate) fn load(cluster: ClusterId, store: Arc<dyn ChunkStore>) -> Result<Self, StoreError> {
        let nonsense = |what: &str| StoreError::Disk {
            verb: "read what the masters said before",
            reason: format!("{what} makes no sense"),
        };
        let fence = match store.load(Meta::Fence)? {
            None => Fence::default(),
            Some(bytes) => Fence::decode(&bytes).ok_or_else(|| nonsense("the fence"))?,
        };
        // A view is only a cache: one that cannot be read is fetched again.
        let view = store.load(Meta::View)?.and_then(|bytes| {
            atoll_proto::decode::<ClusterView>(&bytes)
                .inspect_err(
                    |error| tracing::warn!(%error, "the stored cluster view is unreadable"),
                )
                .ok()
        });
        Ok(Self {
            cluster,
            store,
            view: ArcSwapOption::new(view.map(Arc::new)),
            fence: Mutex::new(fence),
            changing: tokio::sync::Mutex::new(()),
        })
    }

    pub(crate) fn view(&self) -> Option<Arc<ClusterView>> {
        self.view.load_full()
    }

    pub(crate) fn fence(&self) -> Fence {
        *self.fence.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The highest epoch there is, even if its table is not here yet.
    pub(crate) fn epoch(&self) -> Epoch {
        self.fence().epoch
    }

    /// Whether a table is older than what a master spoke of.
    pub(crate) fn is_behind(&self) -> bool {
        self.view.load().as_ref().is_none_or(|view| view.table.epoch < self.epoch())
    }

    /// A master said that this is the epoch, and its term.
    pub(crate) async fn hear(
        &self,
        cluster: ClusterId,
        epoch: Epoch,
        term: u64,
    ) -> Result<(), NotFollowed> {
        self.check_cluster(cluster)?;
        let _changing = self.changing.lock().await;
        let before = self.fence();
        let after = before.admit(epoch, term)?;
        if after != before {
            self.save(after, vec![(Meta::Fence, after.encode())]).await?;
        }
        Ok(())
    }

    /// Takes over a view, unless a newer one is here. True if it was taken.
    pub(crate) async fn adopt(&self, view: ClusterView) -> Result<bool, NotFollowed> {
        self.check_cluster(view.cluster)?;
        if view.table.members.len() != usize::from(PG_COUNT) {
            return Err(NotFollowed::Table(view.table.members.len()));
        }
        let _changing = self.changing.lock().await;
        let before = self.fence();
        let after = before.admit(view.table.epoch, before.term)?;
        let current = self.view();
        if let Some(current) = current.as_deref()
            && current.table.epoch == view.table.epoch
            && current.index > view.index
        {
            return Ok(false);
        }
        let values = vec![(Meta::Fence, after.encode()), (Meta::View, atoll_proto::encode(&view))];
        // Nodes come and go, and are asked for again after a start; only tables must be kept.
        if current.is_none_or(|current| current.table.epoch != view.table.epoch) {
            self.save(after, values).await?;
        }
        self.view.store(Some(Arc::new(view)));
        Ok(true)
    }

    /// Whether a master is of this cluster.
    pub(crate) fn check_cluster(&self, theirs: ClusterId) -> Result<(), NotFollowed> {
        if theirs == self.cluster {
            return Ok(());
        }
        Err(NotFollowed::Foreign { ours: self.cluster, theirs })
    }

    async fn save(&self, after: Fence, values: Vec<(Meta, Vec<u8>)>) -> Result<(), StoreError> {
        let store = Arc::clone(&self.store);
        let saved = atoll_net::task::spawn_blocking("save-placement", move || store.save(&values));
        saved.await.unwrap_or(Err(StoreError::Closed))?;
        *self.fence.lock().unwrap_or_else(PoisonError::into_inner) = after;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use atoll_proto::cluster::PgTable;

    use super::*;
    use crate::store::memory::MemoryStore;

    const CLUSTER: ClusterId = ClusterId([1; 16]);

    fn view(epoch: u64, index: u64) -> ClusterView {
        ClusterView {
            cluster: CLUSTER,
            index,
            chunk_bytes: 1 << 20,
            nodes: Vec::new(),
            table: PgTable { epoch: Epoch(epoch), ..PgTable::empty() },
            zone: None,
            url_template: None,
        }
    }

    #[tokio::test]
    async fn what_was_heard_survives_a_start() {
        let store = Arc::new(MemoryStore::default());
        let placement = Placement::load(CLUSTER, store.clone()).unwrap();
        assert!(placement.is_behind());
        assert!(placement.adopt(view(3, 10)).await.unwrap());
        placement.hear(CLUSTER, Epoch(4), 9).await.unwrap();
        assert!(placement.is_behind());

        let again = Placement::load(CLUSTER, store).unwrap();
        assert_eq!(again.fence(), Fence { epoch: Epoch(4), term: 9 });
        assert_eq!(again.view().unwrap().table.epoch, Epoch(3));
    }

    #[tokio::test]
    async fn an_older_or_foreign_master_is_not_followed() {
        let placement = Placement::load(CLUSTER, Arc::new(MemoryStore::default())).unwrap();
        placement.adopt(view(3, 10)).await.unwrap();
        placement.hear(CLUSTER, Epoch(3), 7).await.unwrap();
        assert!(placement.hear(ClusterId([2; 16]), Epoch(9), 9).await.is_err());
        assert!(placement.hear(CLUSTER, Epoch(2), 7).await.is_err());
        assert!(placement.hear(CLUSTER, Epoch(3), 6).await.is_err());
        assert!(placement.adopt(view(2, 99)).await.is_err());
        assert!(!placement.adopt(view(3, 9)).await.unwrap());
        let mut short = view(5, 20);
        short.table.members.pop();
        assert!(placement.adopt(short).await.is_err());
        assert_eq!(placement.epoch(), Epoch(3));
    }
}
