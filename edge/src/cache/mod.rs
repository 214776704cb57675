//! Chunks close at hand, keyed by their hash: memory over disk.
//!
//! [`crate::fetch::Chunks`] asks here first and hands over what it fetched. Keyed by content, so a
//! publish never makes anything here wrong, and unchanged bytes survive every deploy. Everything
//! that enters was verified by the caller; everything that is read from disk is verified here.
//! A hit in memory takes a shared lock on one of a few parts; it moves nothing.

pub mod disk;
mod drops;
pub mod s3fifo;

use std::collections::HashSet;
use std::io;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use atoll_proto::ChunkId;
use bytes::Bytes;

use disk::DiskTier;
use drops::Drops;
pub use drops::Epoch;
use s3fifo::S3Fifo;

/// Memory is divided into parts of at least this many bytes, so that a few large chunks do not
/// fill one.
const PART_BYTES_MIN: usize = 32 << 20;
const PARTS_MAX: usize = 16;
/// What an entry costs beside its bytes.
const ENTRY_OVERHEAD: usize = 160;

/// The two tiers.
#[derive(Debug)]
pub struct Cache {
    parts: Vec<RwLock<S3Fifo<ChunkId, Bytes>>>,
    disk: Option<Arc<DiskTier>>,
    drops: RwLock<Drops>,
}

impl Cache {
    /// A cache in memory only.
    pub fn in_memory(ram_bytes: usize) -> Cache {
        let parts = (ram_bytes / PART_BYTES_MIN).clamp(1, PARTS_MAX);
        let part = || RwLock::new(S3Fifo::new(ram_bytes / parts));
        Cache { parts: (0..parts).map(|_| part()).collect(), disk: None, drops: RwLock::default() }
    }

    /// A cache with a disk tier in `dir`. Blocking: it reads the headers of what is there.
    ///
    /// # Errors
    /// When the directory cannot be used.
    pub fn open(ram_bytes: usize, dir: &Path, disk_bytes: u64) -> io::Result<Cache> {
        let disk = DiskTier::open(dir, disk_bytes)?;
        Ok(Cache { disk: Some(Arc::new(disk)), ..Cache::in_memory(ram_bytes) })
    }

    /// The moment, as drops count it: bytes that were got hold of before a chunk was dropped are
    /// not taken in after it.
    pub fn epoch(&self) -> Epoch {
        Epoch(self.drops().epoch)
    }

    /// A chunk from memory. Its second hit has it written to disk.
    pub fn memory(&self, id: &ChunkId) -> Option<Bytes> {
        let (bytes, hits) = {
            let part = self.read(id);
            let (bytes, hits) = part.get(id)?;
            (bytes.clone(), hits)
        };
        if hits == 2
            && let Some(disk) = &self.disk
        {
            // Under this lock no drop begins; one that came before has emptied memory.
            let drops = self.drops();
            if !drops.is_barred(id) && self.read(id).peek(id).is_some() {
                disk.put(*id, bytes.clone());
            }
        }
        Some(bytes)
    }

    /// A chunk from disk, verified; it is in memory afterwards.
    pub async fn disk(&self, id: ChunkId) -> Option<Bytes> {
        let disk = self.disk.clone()?;
        let since = {
            let drops = self.drops();
            if drops.is_barred(&id) || !disk.contains(&id) {
                return None;
            }
            Epoch(drops.epoch)
        };
        let read = atoll_net::task::spawn_blocking("cache-read", move || disk.read(&id));
        let bytes = read.await.ok().flatten()?;
        self.insert(id, bytes.clone(), since);
        Some(bytes)
    }

    /// Takes in a chunk whose bytes were verified, unless it was dropped after `since`.
    pub fn insert(&self, id: ChunkId, bytes: Bytes, since: Epoch) {
        let drops = self.drops();
        if !drops.admits(&id, since) {
            return;
        }
        let cost = bytes.len() + ENTRY_OVERHEAD;
        let evicted = self.write(&id).insert(id, bytes, cost);
        for entry in evicted {
            metrics::counter!("atoll_edge_cache_evicted_total", "tier" => "memory").increment(1);
            if entry.hits > 0
                && !drops.is_barred(&entry.key)
                && let Some(disk) = &self.disk
            {
                disk.put(entry.key, entry.value);
            }
        }
    }

    /// Has a chunk written to disk although it was not asked for twice, unless it was dropped
    /// after `since`: manifest pages, without which a restarted edge could not tell what exists.
    pub fn keep(&self, id: ChunkId, bytes: &Bytes, since: Epoch) {
        let drops = self.drops();
        if let Some(disk) = &self.disk
            && drops.admits(&id, since)
        {
            disk.put(id, bytes.clone());
        }
    }

    /// Drops chunks from both tiers; what is on its way into them now does not get in. Returns
    /// how many were in memory.
    pub async fn drop_chunks(&self, ids: Vec<ChunkId>) -> usize {
        self.change_drops(|drops| drops.bar(&ids));
        let dropped = ids.iter().filter(|id| self.write(id).remove(id).is_some()).count();
        let ids = self.drop_from_disk(ids).await;
        self.change_drops(|drops| drops.unbar(&ids));
        dropped
    }

    /// Drops everything, in the same way.
    pub async fn clear(&self) {
        self.change_drops(|drops| drops.all_barred += 1);
        for part in &self.parts {
            let mut part = part.write().unwrap_or_else(PoisonError::into_inner);
            let keys: Vec<ChunkId> = part.keys().copied().collect();
            keys.iter().for_each(|id| drop(part.remove(id)));
        }
        if let Some(disk) = self.disk.clone() {
            let work = move || {
                disk.flush();
                disk.ids().iter().for_each(|id| disk.drop_chunk(id));
            };
            if atoll_net::task::spawn_blocking("cache-clear", work).await.is_err() {
                tracing::error!("clearing the disk cache panicked");
            }
        }
        self.change_drops(Drops::end_of_all);
    }

    /// From now on nothing of these chunks is taken in or given out, and of all others it may be.
    /// What is on its way in does not get in either. Quick: the disk is left to
    /// [`Cache::erase_from_disk`]. Returns how many were in memory.
    pub fn refuse(&self, erased: Arc<HashSet<ChunkId>>) -> usize {
        let new: Vec<ChunkId> = {
            let drops = self.drops();
            erased.iter().filter(|id| !drops.erased.contains(*id)).copied().collect()
        };
        self.change_drops(|drops| drops.erased = erased);
        new.iter().filter(|id| self.write(id).remove(id).is_some()).count()
    }

    /// Sees to it that no file has bytes of the chunks that are refused, whatever happens to the power.
    /// Returns how many times they were there.
    ///
    /// # Errors
    /// When the disk refuses; then some may still be there.
    pub async fn erase_from_disk(&self) -> io::Result<u64> {
        let (Some(disk), erased) = (self.disk.clone(), self.drops().erased.clone()) else {
            return Ok(0);
        };
        let work = move || {
            disk.flush();
            disk.erase(&erased)
        };
        let work = atoll_net::task::spawn_blocking("cache-erase", work);
        work.await.unwrap_or_else(|error| Err(io::Error::other(error)))
    }

    /// Waits until nothing dropped so far would return after a power cut.
    ///
    /// # Errors
    /// When the disk refuses.
    pub async fn sync_drops(&self) -> io::Result<()> {
        let Some(disk) = self.disk.clone() else {
            return Ok(());
        };
        let work = atoll_net::task::spawn_blocking("cache-sync", move || disk.sync_drops());
        work.await.unwrap_or_else(|error| Err(io::Error::other(error)))
    }

    async fn drop_from_disk(&self, ids: Vec<ChunkId>) -> Vec<ChunkId> {
        let Some(disk) = self.disk.clone() else {
            return ids;
        };
        let dropped = ids.clone();
        let work = move || {
            disk.flush();
            dropped.iter().for_each(|id| disk.drop_chunk(id));
        };
        if atoll_net::task::spawn_blocking("cache-drop", work).await.is_err() {
            tracing::error!("dropping chunks from the disk cache panicked");
        }
        ids
    }

    fn drops(&self) -> RwLockReadGuard<'_, Drops> {
        self.drops.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn change_drops(&self, change: impl FnOnce(&mut Drops)) {
        change(&mut self.drops.write().unwrap_or_else(PoisonError::into_inner));
    }

    /// Waits until everything on its way to disk is there.
    pub async fn flush(&self) {
        if let Some(disk) = self.disk.clone()
            && atoll_net::task::spawn_blocking("cache-flush", move || disk.flush()).await.is_err()
        {
            tracing::error!("flushing the disk cache panicked");
        }
    }

    /// Bytes in memory.
    pub fn memory_bytes(&self) -> usize {
        let bytes = |part: &RwLock<S3Fifo<ChunkId, Bytes>>| {
            part.read().unwrap_or_else(PoisonError::into_inner).bytes()
        };
        self.parts.iter().map(bytes).sum()
    }

    fn part(&self, id: &ChunkId) -> &RwLock<S3Fifo<ChunkId, Bytes>> {
        // Not the first byte: that one chooses the placement group.
        &self.parts[usize::from(id.0[31]) % self.parts.len()]
    }

    fn read(&self, id: &ChunkId) -> RwLockReadGuard<'_, S3Fifo<ChunkId, Bytes>> {
        self.part(id).read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, id: &ChunkId) -> RwLockWriteGuard<'_, S3Fifo<ChunkId, Bytes>> {
        self.part(id).write().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn chunk(seed: u8) -> (ChunkId, Bytes) {
        let bytes = Bytes::from(vec![seed; 1000]);
        (ChunkId::of(&bytes), bytes)
    }

    #[tokio::test]
    async fn one_hit_wonders_are_not_written() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(1 << 20, dir.path(), 64 << 20).unwrap();
        let (once, twice) = (chunk(1), chunk(2));
        for (id, bytes) in [&once, &twice] {
            cache.insert(*id, bytes.clone(), cache.epoch());
            assert_eq!(cache.memory(id).unwrap(), bytes);
        }
        cache.memory(&twice.0);
        cache.flush().await;
        drop(cache);
        let cache = Cache::open(1 << 20, dir.path(), 64 << 20).unwrap();
        assert!(cache.disk(once.0).await.is_none());
        assert_eq!(cache.disk(twice.0).await.unwrap(), twice.1);
        assert_eq!(cache.memory(&twice.0).unwrap(), twice.1);
    }

    #[tokio::test]
    async fn dropped_chunks_are_gone_from_both_tiers() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(1 << 20, dir.path(), 64 << 20).unwrap();
        let (id, bytes) = chunk(3);
        cache.insert(id, bytes.clone(), cache.epoch());
        cache.keep(id, &bytes, cache.epoch());
        assert_eq!(cache.drop_chunks(vec![id]).await, 1);
        assert!(cache.memory(&id).is_none());
        assert!(cache.disk(id).await.is_none());
    }

    #[tokio::test]
    async fn what_was_got_before_a_drop_is_not_taken_in_after_it() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(1 << 20, dir.path(), 64 << 20).unwrap();
        let ((id, bytes), (other, others)) = (chunk(3), chunk(4));
        let before = cache.epoch();
        cache.drop_chunks(vec![id]).await;
        cache.insert(id, bytes.clone(), before);
        cache.keep(id, &bytes, before);
        cache.insert(other, others, before);
        assert!(cache.memory(&id).is_none() && cache.disk(id).await.is_none());
        assert!(cache.memory(&other).is_some(), "only what was dropped");
        cache.insert(id, bytes.clone(), cache.epoch());
        cache.keep(id, &bytes, cache.epoch());
        let before = cache.epoch();
        cache.clear().await;
        cache.sync_drops().await.unwrap();
        cache.insert(other, bytes.clone(), before);
        assert!(cache.memory(&id).is_none() && cache.disk(id).await.is_none());
        assert!(cache.memory(&other).is_none());
        drop(cache);
        let cache = Cache::open(1 << 20, dir.path(), 64 << 20).unwrap();
        assert!(cache.disk(id).await.is_none());
    }

    #[tokio::test]
    async fn what_was_used_goes_to_disk_when_it_must_leave_memory() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(20_000, dir.path(), 64 << 20).unwrap();
        let (id, bytes) = chunk(0);
        cache.insert(id, bytes.clone(), cache.epoch());
        cache.memory(&id);
        for seed in 1..60 {
            let (id, bytes) = chunk(seed);
            cache.insert(id, bytes, cache.epoch());
        }
        cache.flush().await;
        assert!(cache.memory(&id).is_none());
        assert_eq!(cache.disk(id).await.unwrap(), bytes);
        assert!(cache.memory_bytes() <= 20_000);
        assert!(cache.disk(chunk(1).0).await.is_none());
    }
}
