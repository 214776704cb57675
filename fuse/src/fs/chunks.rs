//! A small cache of chunks in memory, least recently used out first.
//!
//! Chunks never change, so nothing here is ever stale. Concurrent readers of one chunk cause one
//! read of the store.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use atoll_client::ClientError;
use atoll_proto::ChunkId;
use bytes::Bytes;
use tokio::sync::OnceCell;

use super::Store;

/// The cache.
#[derive(Debug)]
pub(crate) struct Chunks {
    limit: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    held: HashMap<ChunkId, (Bytes, u64)>,
    by_use: BTreeMap<u64, ChunkId>,
    loading: HashMap<ChunkId, Arc<OnceCell<Bytes>>>,
    bytes: u64,
    uses: u64,
}

impl Chunks {
    pub(crate) fn new(limit: u64) -> Chunks {
        Chunks { limit, state: Mutex::new(State::default()) }
    }

    /// The bytes of a chunk, from memory or from the store.
    pub(crate) async fn get<S: Store>(&self, store: &S, id: ChunkId) -> Result<Bytes, ClientError> {
        let cell = {
            let mut state = self.lock();
            if let Some(bytes) = state.touch(&id) {
                return Ok(bytes);
            }
            state.loading.entry(id).or_default().clone()
        };
        let loaded = cell.get_or_try_init(|| store.read_chunk(id)).await.cloned();
        // Also after a failure, so that the next reader starts afresh.
        self.lock().loading.remove(&id);
        let bytes = loaded?;
        self.put(id, bytes.clone());
        Ok(bytes)
    }

    /// Keeps a chunk that is known to have this id.
    pub(crate) fn put(&self, id: ChunkId, bytes: Bytes) {
        self.lock().insert(id, bytes, self.limit);
    }

    /// The bytes of a chunk if they are at hand.
    pub(crate) fn peek(&self, id: ChunkId) -> Option<Bytes> {
        self.lock().touch(&id)
    }

    /// Whether a chunk is here or on its way.
    pub(crate) fn expects(&self, id: &ChunkId) -> bool {
        let state = self.lock();
        state.held.contains_key(id) || state.loading.contains_key(id)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn touch(&mut self, id: &ChunkId) -> Option<Bytes> {
        let (bytes, used) = self.held.get_mut(id)?;
        self.by_use.remove(used);
        self.uses += 1;
        *used = self.uses;
        self.by_use.insert(self.uses, *id);
        Some(bytes.clone())
    }

    fn insert(&mut self, id: ChunkId, bytes: Bytes, limit: u64) {
        if self.touch(&id).is_some() {
            return;
        }
        self.uses += 1;
        self.bytes += bytes.len() as u64;
        self.held.insert(id, (bytes, self.uses));
        self.by_use.insert(self.uses, id);
        while self.bytes > limit
            && let Some((_, oldest)) = self.by_use.pop_first()
            && let Some((bytes, _)) = self.held.remove(&oldest)
        {
            self.bytes -= bytes.len() as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn the_least_recently_used_goes_first() {
        let chunks = Chunks::new(20);
        let ids: Vec<ChunkId> = (0..3_u8).map(|n| ChunkId::of(&[n])).collect();
        chunks.put(ids[0], Bytes::from(vec![0; 10]));
        chunks.put(ids[1], Bytes::from(vec![1; 10]));
        assert!(chunks.peek(ids[0]).is_some());
        chunks.put(ids[2], Bytes::from(vec![2; 10]));
        assert!(!chunks.expects(&ids[1]));
        assert!(chunks.expects(&ids[0]) && chunks.expects(&ids[2]));
        assert_eq!(chunks.lock().bytes, 20);
    }
}
