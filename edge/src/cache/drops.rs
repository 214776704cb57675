//! What is being dropped, and what was: pure.
//!
//! [`super::Cache`] asks it before it takes bytes in, under a lock that no drop begins under. So
//! bytes that were read from disk, or fetched, before a drop cannot come in behind it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use atoll_proto::ChunkId;

/// Dropped chunks that are remembered one by one; beyond, all fetches under way count as older.
const REMEMBERED_MAX: usize = 65_536;

/// A moment between drops.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Epoch(pub(super) u64);

/// Drops under way and past.
#[derive(Debug, Default)]
pub(super) struct Drops {
    /// Grows with every drop.
    pub(super) epoch: u64,
    /// Drops of everything that are under way.
    pub(super) all_barred: u32,
    /// Chunks that are being dropped, and how many times over.
    barred: HashMap<ChunkId, u32>,
    /// The epoch that began when a chunk had been dropped.
    dropped: HashMap<ChunkId, u64>,
    /// Chunks that were taken down: nothing of them is taken in, whenever it was got hold of.
    pub(super) erased: Arc<HashSet<ChunkId>>,
    /// Bytes from before this epoch are taken in of no chunk.
    floor: u64,
}

impl Drops {
    /// Whether the chunk is being dropped now, or was taken down.
    pub(super) fn is_barred(&self, id: &ChunkId) -> bool {
        self.all_barred > 0 || self.barred.contains_key(id) || self.erased.contains(id)
    }

    /// Whether bytes of the chunk may be taken in that somebody set out for at `since`.
    pub(super) fn admits(&self, id: &ChunkId, since: Epoch) -> bool {
        let dropped = self.dropped.get(id).copied().unwrap_or(0);
        !self.is_barred(id) && since.0 >= self.floor.max(dropped)
    }

    /// Begins to drop chunks.
    pub(super) fn bar(&mut self, ids: &[ChunkId]) {
        for id in ids {
            *self.barred.entry(*id).or_insert(0) += 1;
        }
    }

    /// They are dropped.
    pub(super) fn unbar(&mut self, ids: &[ChunkId]) {
        self.epoch += 1;
        for id in ids {
            if let Some(count) = self.barred.get_mut(id) {
                *count -= 1;
                if *count == 0 {
                    self.barred.remove(id);
                }
            }
            self.dropped.insert(*id, self.epoch);
        }
        if self.dropped.len() > REMEMBERED_MAX {
            self.floor = self.epoch;
            self.dropped.clear();
        }
    }

    /// Everything is dropped.
    pub(super) fn end_of_all(&mut self) {
        self.epoch += 1;
        self.all_barred = self.all_barred.saturating_sub(1);
        self.floor = self.epoch;
        self.dropped.clear();
    }
}
