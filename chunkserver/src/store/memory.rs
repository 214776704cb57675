//! Chunks in a map: for tests of everything above the store.
//!
//! It keeps the promises of [`ChunkStore`] except the one about the power; it can be given a
//! capacity, so that it runs full, and chunks in it can be spoiled.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use atoll_proto::ChunkId;
use bytes::Bytes;

use super::{
    Batched, ChunkStore, Meta, NewChunk, Record, Space, State, StoreError, Totals, len_of,
};

/// A store in memory.
#[derive(Debug)]
pub struct MemoryStore {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    chunks: BTreeMap<ChunkId, (Record, Bytes)>,
    meta: BTreeMap<Meta, Vec<u8>>,
    totals: Totals,
    capacity: u64,
    closed: bool,
}

impl MemoryStore {
    /// An empty store with room for this many bytes.
    pub fn with_capacity(capacity: u64) -> Self {
        Self {
            inner: Mutex::new(Inner {
                chunks: BTreeMap::new(),
                meta: BTreeMap::new(),
                totals: Totals::default(),
                capacity,
                closed: false,
            }),
        }
    }

    /// Changes how many bytes there is room for.
    pub fn resize(&self, capacity: u64) {
        self.lock().capacity = capacity;
    }

    /// Replaces the bytes of a chunk, as a failing disk would.
    pub fn spoil(&self, id: &ChunkId, wrong: Bytes) {
        if let Some((_, bytes)) = self.lock().chunks.get_mut(id) {
            *bytes = wrong;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self) -> Result<MutexGuard<'_, Inner>, StoreError> {
        let inner = self.lock();
        if inner.closed { Err(StoreError::Closed) } else { Ok(inner) }
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::with_capacity(1 << 40)
    }
}

impl Inner {
    fn free(&self) -> u64 {
        self.capacity.saturating_sub(self.totals.bytes)
    }

    fn present(&self, id: &ChunkId) -> Option<&(Record, Bytes)> {
        self.chunks.get(id).filter(|(record, _)| record.state == State::Present)
    }
}

impl ChunkStore for MemoryStore {
    fn put_batch(&self, batch: &[NewChunk]) -> Result<Batched, StoreError> {
        let mut inner = self.open()?;
        let incoming: u64 = batch.iter().map(|chunk| chunk.bytes.len() as u64).sum();
        if incoming > inner.free() {
            return Err(StoreError::Full { free: inner.free(), reserve: 0 });
        }
        let mut done = Batched::default();
        for chunk in batch {
            if inner.present(&chunk.id).is_some() {
                done.known += 1;
                continue;
            }
            let len = len_of(&chunk.bytes);
            let record = Record { state: State::Present, len, epoch: chunk.epoch };
            inner.chunks.insert(chunk.id, (record, chunk.bytes.clone()));
            inner.totals.added(len);
            done.written += 1;
            done.bytes += u64::from(len);
        }
        Ok(done)
    }

    fn get(&self, id: &ChunkId) -> Result<Option<Bytes>, StoreError> {
        Ok(self.open()?.present(id).map(|(_, bytes)| bytes.clone()))
    }

    fn record(&self, id: &ChunkId) -> Result<Option<Record>, StoreError> {
        Ok(self.open()?.chunks.get(id).map(|(record, _)| *record))
    }

    fn quarantine(&self, id: &ChunkId) -> Result<bool, StoreError> {
        let mut inner = self.open()?;
        let Some((record, bytes)) = inner.chunks.get_mut(id) else { return Ok(false) };
        if record.state == State::Corrupt || ChunkId::of(bytes) == *id {
            return Ok(false);
        }
        record.state = State::Corrupt;
        let len = record.len;
        inner.totals.spoiled(len);
        Ok(true)
    }

    fn list(
        &self,
        after: Option<&ChunkId>,
        limit: usize,
    ) -> Result<Vec<(ChunkId, Record)>, StoreError> {
        use std::ops::Bound::{Excluded, Unbounded};
        let inner = self.open()?;
        let from = after.map_or(Unbounded, |id| Excluded(*id));
        let entries = inner.chunks.range((from, Unbounded)).take(limit);
        Ok(entries.map(|(id, (record, _))| (*id, *record)).collect())
    }

    fn totals(&self) -> Totals {
        self.lock().totals
    }

    fn space(&self) -> Result<Space, StoreError> {
        let inner = self.open()?;
        Ok(Space { free: inner.free(), total: inner.capacity, reserve: 0 })
    }

    fn load(&self, key: Meta) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.open()?.meta.get(&key).cloned())
    }

    fn save(&self, values: &[(Meta, Vec<u8>)]) -> Result<(), StoreError> {
        let mut inner = self.open()?;
        inner.meta.extend(values.iter().cloned());
        Ok(())
    }

    fn close(&self) {
        self.lock().closed = true;
    }
}
