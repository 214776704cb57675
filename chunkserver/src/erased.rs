//! Chunks that were taken down: they are refused, and deleted wherever they turn up.
//!
//! [`crate::tasks::erase`] follows the masters' list and fills this; every put comes by here.

use std::collections::HashSet;
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use atoll_proto::erase::{Erased, Erasure};
use atoll_proto::{ChunkId, Code, WireError, WireResult};

use crate::node::{Node, to_wire};
use crate::store::NewChunk;

/// The chunks that are erased, as far as the masters have told.
#[derive(Debug, Default)]
pub(crate) struct Refused(RwLock<HashSet<ChunkId>>);

impl Refused {
    /// Follows changes of the list.
    pub(crate) fn learn(&self, changes: &[Erased]) {
        let mut refused = self.0.write().unwrap_or_else(PoisonError::into_inner);
        for change in changes {
            match change.what {
                Erasure::Erased => refused.insert(change.id),
                Erasure::Withheld | Erasure::Lifted => refused.remove(&change.id),
            };
        }
    }

    /// All of them, in no order.
    pub(crate) fn all(&self) -> Vec<ChunkId> {
        self.read().iter().copied().collect()
    }

    /// Refuses chunks that are erased.
    ///
    /// # Errors
    /// Names the first of them.
    pub(crate) fn check<'a>(&self, ids: impl IntoIterator<Item = &'a ChunkId>) -> WireResult<()> {
        let refused = self.read();
        match ids.into_iter().find(|id| refused.contains(*id)) {
            None => Ok(()),
            Some(id) => Err(refusal(id)),
        }
    }

    /// Those of the chunks that are erased.
    fn of(&self, ids: &[ChunkId]) -> Vec<ChunkId> {
        let refused = self.read();
        ids.iter().filter(|id| refused.contains(*id)).copied().collect()
    }

    fn read(&self) -> RwLockReadGuard<'_, HashSet<ChunkId>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Node {
    /// Stores verified chunks, durably, unless one is erased: the only way for bytes to get in.
    ///
    /// # Errors
    /// As the store's, or `Erased`.
    pub(crate) async fn keep(&self, chunks: Vec<NewChunk>) -> WireResult<()> {
        let ids: Vec<ChunkId> = chunks.iter().map(|chunk| chunk.id).collect();
        self.erased.check(&ids)?;
        self.writer.put(chunks).await.map_err(to_wire)?;
        // What was erased while it was on its way to the disk was deleted before it came there.
        let late = self.erased.of(&ids);
        let Some(first) = late.first().copied() else { return Ok(()) };
        let erase = self.at_the_disk("erase", move |store| store.erase(&late, 0));
        erase.await?.map_err(to_wire)?;
        Err(refusal(&first))
    }
}

fn refusal(id: &ChunkId) -> WireError {
    let message = format!(
        "chunk {id} was erased (`atoll invalidate --erase`) and is not kept any more; allow it \
         again with `atoll invalidate SITE --path PATH --unerase`"
    );
    WireError::new(Code::Erased, message)
}
