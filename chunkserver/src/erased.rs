//! Chunks that were taken down: they are refused, and deleted wherever they turn up.
//!
//! [`crate::tasks::erase`] follows the masters' list and fills this. Requests are refused early by
//! it; what decides is the store, which checks within the write ([`crate::store::ChunkStore::refuse`]).
//!
//! Nor are they served. A server that starts may have been away when something was taken down, so its
//! reads wait for the list; but not for ever, because what it has must be there without masters too.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use atoll_proto::erase::{Erased, Erasure};
use atoll_proto::{ChunkId, WireResult};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::node::{Node, to_wire};
use crate::store::{NewChunk, StoreError};

/// The chunks that are erased, as far as the masters have told.
#[derive(Debug)]
pub(crate) struct Refused {
    all: Mutex<Arc<HashSet<ChunkId>>>,
    /// Whether the list was heard since the start.
    heard: watch::Sender<bool>,
    /// Reads wait for it until then.
    patient_until: Instant,
}

impl Refused {
    /// Nothing is known yet, and reads wait for it for at most `patience`.
    pub(crate) fn new(patience: Duration) -> Refused {
        let patient_until = Instant::now() + patience;
        Refused { all: Mutex::default(), heard: watch::Sender::new(false), patient_until }
    }

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
        drop(refused);
        self.heard.send_replace(true);
    }

    /// All of them, to whom it serves: waits until the list was heard, or not to be had in time.
    pub(crate) async fn before_serving(&self) -> Arc<HashSet<ChunkId>> {
        if !*self.heard.borrow() {
            let mut heard = self.heard.subscribe();
            let heard = heard.wait_for(|heard| *heard);
            if tokio::time::timeout_at(self.patient_until, heard).await.is_err() {
                tracing::debug!("serving without the list of erased chunks: no master answers");
            }
        }
        self.all()
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
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    const LONG: Duration = Duration::from_secs(600);

    #[tokio::test]
    async fn nothing_is_served_before_the_list_is_heard() {
        let refused = Refused::new(LONG);
        let id = ChunkId::of(b"taken down");
        let mut serving = Box::pin(refused.before_serving());
        assert!(futures_util::poll!(&mut serving).is_pending());
        refused.learn(&[Erased { index: 1, id, what: Erasure::Erased }], true);
        assert!(serving.await.contains(&id));
        assert!(refused.before_serving().await.contains(&id));
    }

    #[tokio::test]
    async fn without_masters_it_is_not_waited_for_for_ever() {
        let refused = Refused::new(Duration::ZERO);
        assert!(refused.before_serving().await.is_empty());
    }
}
