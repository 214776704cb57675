//! Chunks that were taken down: they are refused, and deleted wherever they turn up.
//!
//! [`crate::tasks::erase`] follows the masters' list and fills this. Requests are refused early by
//! it; what decides is the store, which checks within the write ([`crate::store::ChunkStore::refuse`]).

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use atoll_proto::erase::{Erased, Erasure};
use atoll_proto::{ChunkId, WireResult};

use crate::node::{Node, to_wire};
use crate::store::{NewChunk, StoreError};

/// The chunks that are erased, as far as the masters have told.
#[derive(Debug, Default)]
pub(crate) struct Refused(Mutex<Arc<HashSet<ChunkId>>>);

impl Refused {
    /// Follows changes of the list; `anew` when they are all of it.
    pub(crate) fn learn(&self, changes: &[Erased], anew: bool) {
        let mut refused = self.lock();
        let mut all = if anew { HashSet::new() } else { HashSet::clone(&refused) };
        for change in changes {
            match change.what {
                Erasure::Erased => all.insert(change.id),
                Erasure::Withheld | Erasure::Lifted => all.remove(&change.id),
            };
        }
        *refused = Arc::new(all);
    }

    /// All of them.
    pub(crate) fn all(&self) -> Arc<HashSet<ChunkId>> {
        Arc::clone(&self.lock())
    }

    /// Refuses chunks that are erased.
    ///
    /// # Errors
    /// Names the first of them.
    pub(crate) fn check<'a>(&self, ids: impl IntoIterator<Item = &'a ChunkId>) -> WireResult<()> {
        let refused = self.all();
        match ids.into_iter().find(|id| refused.contains(*id)) {
            None => Ok(()),
            Some(id) => Err(to_wire(StoreError::Erased { id: *id })),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Arc<HashSet<ChunkId>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Node {
    /// Stores verified chunks, durably, unless one is erased: the only way for bytes to get in.
    ///
    /// # Errors
    /// As the store's; `Erased` also when others of them are stored.
    pub(crate) async fn keep(&self, chunks: Vec<NewChunk>) -> WireResult<()> {
        self.writer.put(chunks).await.map_err(to_wire)
    }
}
