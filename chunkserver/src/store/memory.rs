//! Chunks in maps: for tests of everything above the store.
//!
//! It keeps the promises of [`ChunkStore`] except the one about the power; it can be given a
//! capacity, so that it runs full, and chunks in it can be damaged.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Bound::{Excluded, Unbounded};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use atoll_proto::ids::PG_COUNT;
use atoll_proto::tree::{BUCKETS, Digest, bucket_of};
use atoll_proto::{ChunkId, Epoch, PgId};
use bytes::Bytes;

use super::tally::{Bucket, BucketKey, ChangedGroups, bucket_key};
use super::{
    Batched, Body, ChunkStore, Mark, Marked, Meta, NewChunk, Purged, Record, Salvaged, Space,
    StoreError, Totals, Wiped, len_of,
};

/// A store in memory.
#[derive(Debug)]
pub struct MemoryStore {
    inner: Mutex<Inner>,
    changed: ChangedGroups,
}

#[derive(Debug, Default)]
struct Inner {
    records: BTreeMap<ChunkId, Record>,
    bodies: HashMap<ChunkId, Bytes>,
    refused: Arc<HashSet<ChunkId>>,
    buckets: BTreeMap<BucketKey, Bucket>,
    meta: BTreeMap<Meta, Vec<u8>>,
    scrubbed: BTreeMap<PgId, u64>,
    applied: u64,
    totals: Totals,
    capacity: u64,
    refilling: bool,
    /// What was set aside and can be taken back.
    aside: BTreeMap<ChunkId, Bytes>,
    unsalvaged: bool,
    /// Salvaging fails, as on a disk that cannot be read.
    salvage_fails: bool,
    closed: bool,
}

impl MemoryStore {
    /// An empty store with room for this many bytes.
    pub fn with_capacity(capacity: u64) -> Self {
        let inner = Inner { capacity, ..Inner::default() };
        Self { inner: Mutex::new(inner), changed: ChangedGroups::all() }
    }

    /// Changes how many bytes there is room for.
    pub fn resize(&self, capacity: u64) {
        self.lock().capacity = capacity;
    }

    /// Opens a store again that was closed, as the next start does.
    pub fn reopen(&self) {
        self.lock().closed = false;
    }

    /// Replaces the bytes of a chunk, as a failing disk would.
    pub fn damage(&self, id: &ChunkId, wrong: Bytes) {
        if let Some(bytes) = self.lock().bodies.get_mut(id) {
            *bytes = wrong;
        }
    }

    /// Loses everything but what belongs to the node, as a store does whose index is damaged and
    /// of which nothing can be taken back.
    pub fn lose_index(&self) {
        self.begin_anew(|_| BTreeMap::new());
    }

    /// Sets all chunks aside, as a store does whose index is damaged.
    pub fn set_aside(&self) {
        self.begin_anew(|inner| std::mem::take(&mut inner.bodies).into_iter().collect());
    }

    /// Whether chunks that were set aside are still there.
    pub fn has_aside(&self) -> bool {
        !self.lock().aside.is_empty()
    }

    /// From now on salvaging fails, or does not.
    pub fn fail_salvage(&self, fails: bool) {
        self.lock().salvage_fails = fails;
    }

    fn begin_anew(&self, aside: impl FnOnce(&mut Inner) -> BTreeMap<ChunkId, Bytes>) {
        let mut inner = self.lock();
        let (aside, meta) = (aside(&mut inner), std::mem::take(&mut inner.meta));
        let (capacity, salvage_fails) = (inner.capacity, inner.salvage_fails);
        let (refilling, unsalvaged) = (true, true);
        let rest = Inner::default();
        *inner = Inner { meta, capacity, refilling, aside, unsalvaged, salvage_fails, ..rest };
        self.changed.note_all();
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self) -> Result<MutexGuard<'_, Inner>, StoreError> {
        let inner = self.lock();
        if inner.closed { Err(StoreError::Closed) } else { Ok(inner) }
    }

    /// Replaces a record, with everything that follows from it.
    fn set(&self, inner: &mut Inner, id: &ChunkId, new: Option<Record>) {
        let old = match new {
            Some(record) => inner.records.insert(*id, record),
            None => inner.records.remove(id),
        };
        if !new.as_ref().is_some_and(Record::has_bytes) {
            inner.bodies.remove(id);
        }
        inner.totals.change(old.as_ref(), new.as_ref());
        let key = bucket_key(id);
        let bucket = inner.buckets.entry(key).or_default();
        if bucket.change(id, old.as_ref(), new.as_ref()) {
            self.changed.note(key.0);
        }
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::with_capacity(1 << 40)
    }
}

impl Inner {
    fn free(&self) -> u64 {
        let held: u64 = self.bodies.values().map(|bytes| bytes.len() as u64).sum();
        self.capacity.saturating_sub(held)
    }

    fn is_good(&self, id: &ChunkId) -> bool {
        self.bodies.get(id).is_some_and(|bytes| ChunkId::of(bytes) == *id)
    }

    fn has(&self, id: &ChunkId) -> bool {
        self.records.get(id).is_some_and(|record| record.body == Body::Present)
    }

    fn after<'a>(
        &'a self,
        after: Option<&ChunkId>,
    ) -> impl Iterator<Item = (ChunkId, Record)> + use<'a> {
        let from = after.map_or(Unbounded, |id| Excluded(*id));
        self.records.range((from, Unbounded)).map(|(id, record)| (*id, *record))
    }
}

impl ChunkStore for MemoryStore {
    fn put_batch(&self, batch: &[NewChunk]) -> Result<Batched, StoreError> {
        let mut inner = self.open()?;
        let new = batch.iter().filter(|chunk| !inner.has(&chunk.id));
        let incoming: u64 = new.map(|chunk| chunk.bytes.len() as u64).sum();
        if incoming > inner.free() {
            return Err(StoreError::Full { free: inner.free(), reserve: 0 });
        }
        let mut done = Batched::default();
        for chunk in batch {
            if inner.refused.contains(&chunk.id) {
                done.refused.push(chunk.id);
                continue;
            }
            let old = inner.records.get(&chunk.id).copied();
            let same = inner.bodies.get(&chunk.id) == Some(&chunk.bytes);
            if let Some(old) = old.filter(|old| old.body == Body::Present && same) {
                done.known += 1;
                if let Some(again) = old.put_again(chunk.epoch, chunk.at_ms) {
                    self.set(&mut inner, &chunk.id, Some(again));
                }
                continue;
            }
            let record = Record::put(old, len_of(&chunk.bytes), chunk.epoch, chunk.at_ms);
            inner.bodies.insert(chunk.id, chunk.bytes.clone());
            self.set(&mut inner, &chunk.id, Some(record));
            done.written += 1;
            done.bytes += u64::from(record.len);
        }
        Ok(done)
    }

    fn mark(
        &self,
        marks: &[(ChunkId, Mark)],
        now_ms: u64,
        applied: Option<u64>,
    ) -> Result<Marked, StoreError> {
        let mut inner = self.open()?;
        let mut done = Marked::default();
        for (id, mark) in marks {
            let old = inner.records.get(id).copied();
            let new = Record::marked(old, *mark, now_ms);
            done.note(id, old.as_ref(), new.as_ref());
            self.set(&mut inner, id, new);
        }
        inner.applied = applied.unwrap_or(inner.applied);
        Ok(done)
    }

    fn applied(&self) -> Result<u64, StoreError> {
        Ok(self.open()?.applied)
    }

    fn forget_live(&self, ids: &[ChunkId], now_ms: u64) -> Result<u64, StoreError> {
        let mut inner = self.open()?;
        let mut forgotten = 0;
        for id in ids {
            if let Some(old) = inner.records.get(id).copied().filter(|old| old.live) {
                self.set(&mut inner, id, old.forgotten(now_ms));
                forgotten += 1;
            }
        }
        Ok(forgotten)
    }

    fn quarantine_older(
        &self,
        ids: &[ChunkId],
        before_ms: u64,
        now_ms: u64,
    ) -> Result<u64, StoreError> {
        let mut inner = self.open()?;
        let mut moved = 0;
        for id in ids {
            let aged = inner.records.get(id).filter(|old| old.at_ms < before_ms);
            if let Some(new) = aged.and_then(|old| old.quarantined(now_ms)) {
                self.set(&mut inner, id, Some(new));
                moved += 1;
            }
        }
        Ok(moved)
    }

    fn release_group(&self, pg: PgId, now_ms: u64) -> Result<u64, StoreError> {
        let mut inner = self.open()?;
        let of_group = inner.records.iter().filter(|(id, _)| id.pg() == pg);
        let needed = of_group.filter(|(_, record)| record.live || record.body == Body::Present);
        let needed: Vec<(ChunkId, Record)> = needed.map(|(id, it)| (*id, *it)).collect();
        for (id, old) in &needed {
            self.set(&mut inner, id, old.released(now_ms));
        }
        Ok(needed.len() as u64)
    }

    fn restore(&self, id: &ChunkId, now_ms: u64) -> Result<bool, StoreError> {
        let mut inner = self.open()?;
        let found = inner.records.get(id).filter(|it| it.body == Body::Quarantined).copied();
        let Some(old) = found else { return Ok(false) };
        let good = inner.is_good(id);
        self.set(&mut inner, id, Some(old.examined(good, now_ms)));
        Ok(good)
    }

    fn spoil(&self, id: &ChunkId, now_ms: u64) -> Result<bool, StoreError> {
        let mut inner = self.open()?;
        let found = inner.records.get(id).filter(|it| it.body == Body::Present).copied();
        let Some(old) = found.filter(|_| !inner.is_good(id)) else { return Ok(false) };
        self.set(&mut inner, id, Some(old.examined(false, now_ms)));
        Ok(true)
    }

    fn purge(&self, before_ms: u64, limit: usize) -> Result<Purged, StoreError> {
        let mut inner = self.open()?;
        let condemned = inner.records.iter().filter(|(_, record)| record.is_condemned());
        let mut due: Vec<(u64, ChunkId, Record)> = condemned
            .filter(|(_, record)| record.at_ms < before_ms)
            .map(|(id, record)| (record.at_ms, *id, *record))
            .collect();
        due.sort_by_key(|(at_ms, id, _)| (*at_ms, *id));
        due.truncate(limit);
        let mut purged = Purged::default();
        for (_, id, old) in &due {
            self.set(&mut inner, id, None);
            purged.chunks += 1;
            purged.bytes += u64::from(old.len);
        }
        Ok(purged)
    }

    fn refuse(&self, refused: Arc<HashSet<ChunkId>>) {
        if let Ok(mut inner) = self.open() {
            inner.refused = refused;
        }
    }

    fn erase(&self, ids: &[ChunkId], epoch: Epoch, _upto: u64) -> Result<Wiped, StoreError> {
        let mut inner = self.open()?;
        let mut wiped = Wiped::default();
        for id in ids {
            match inner.records.get(id).filter(|old| old.has_bytes()).copied() {
                Some(old) if old.is_erased_by(epoch) => {
                    self.set(&mut inner, id, None);
                    wiped.chunks += 1;
                    wiped.bytes += u64::from(old.len);
                }
                Some(_) => wiped.newer += 1,
                None => {}
            }
        }
        Ok(wiped)
    }

    fn get(&self, id: &ChunkId) -> Result<Option<Bytes>, StoreError> {
        let inner = self.open()?;
        Ok(if inner.has(id) { inner.bodies.get(id).cloned() } else { None })
    }

    fn record(&self, id: &ChunkId) -> Result<Option<Record>, StoreError> {
        Ok(self.open()?.records.get(id).copied())
    }

    fn list(
        &self,
        after: Option<&ChunkId>,
        limit: usize,
    ) -> Result<Vec<(ChunkId, Record)>, StoreError> {
        Ok(self.open()?.after(after).take(limit).collect())
    }

    fn list_group(
        &self,
        pg: PgId,
        after: Option<&ChunkId>,
        limit: usize,
    ) -> Result<Vec<(ChunkId, Record)>, StoreError> {
        let inner = self.open()?;
        let records = inner.after(after).filter(|(id, _)| id.pg() == pg);
        Ok(records.take(limit).collect())
    }

    fn lacking(
        &self,
        after: Option<&ChunkId>,
        limit: usize,
    ) -> Result<Vec<(ChunkId, Body)>, StoreError> {
        let inner = self.open()?;
        let lacking = inner.after(after).filter(|(_, record)| record.is_lacking());
        Ok(lacking.map(|(id, record)| (id, record.body)).take(limit).collect())
    }

    fn buckets(&self, pg: PgId) -> Result<Box<[Digest; BUCKETS]>, StoreError> {
        let inner = self.open()?;
        let mut digests = Box::new([[0; 32]; BUCKETS]);
        for ((_, number), bucket) in inner.buckets.range((pg, 0)..=(pg, u8::MAX)) {
            digests[usize::from(*number)] = bucket.digest.to_bytes();
        }
        Ok(digests)
    }

    fn group_count(&self, pg: PgId) -> Result<u64, StoreError> {
        let inner = self.open()?;
        let buckets = inner.buckets.range((pg, 0)..=(pg, u8::MAX));
        Ok(buckets.map(|(_, bucket)| u64::from(bucket.count)).sum())
    }

    fn bucket_ids(&self, pg: PgId, bucket: u8) -> Result<Vec<ChunkId>, StoreError> {
        let inner = self.open()?;
        let counted = inner.records.iter().filter(|(_, record)| record.counts());
        let ids = counted.map(|(id, _)| *id);
        Ok(ids.filter(|id| id.pg() == pg && bucket_of(id) == bucket).collect())
    }

    fn changed_groups(&self) -> Vec<PgId> {
        self.changed.drain()
    }

    fn scrubbed(&self) -> Result<Vec<Option<u64>>, StoreError> {
        let inner = self.open()?;
        Ok((0..PG_COUNT).map(|pg| inner.scrubbed.get(&PgId(pg)).copied()).collect())
    }

    fn set_scrubbed(&self, pg: PgId, at_ms: u64) -> Result<(), StoreError> {
        self.open()?.scrubbed.insert(pg, at_ms);
        Ok(())
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

    fn refilling(&self) -> bool {
        self.lock().refilling
    }

    fn unsalvaged(&self) -> bool {
        self.lock().unsalvaged
    }

    fn salvage(&self, now_ms: u64, bytes_max: u64) -> Result<Salvaged, StoreError> {
        let mut done = Salvaged::default();
        let mut seen = 0;
        while seen < bytes_max {
            let mut inner = self.open()?;
            if inner.salvage_fails {
                let reason = "told to fail".to_owned();
                return Err(StoreError::Disk { verb: "salvage chunks", reason });
            }
            let Some((id, bytes)) = inner.aside.pop_first() else {
                inner.unsalvaged = false;
                done.complete = true;
                break;
            };
            drop(inner);
            seen += bytes.len() as u64;
            if ChunkId::of(&bytes) == id {
                let chunk = NewChunk { id, bytes, epoch: Epoch(0), at_ms: now_ms };
                done.note(&self.put_batch(&[chunk])?);
            }
        }
        Ok(done)
    }

    fn finish_refill(&self) -> Result<bool, StoreError> {
        let mut inner = self.open()?;
        if inner.unsalvaged {
            return Ok(false);
        }
        inner.refilling = false;
        Ok(true)
    }

    fn close(&self) {
        self.lock().closed = true;
    }
}
