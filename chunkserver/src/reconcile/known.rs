//! What this node knows to be live, whether it is here or not: this side of a walk.
//!
//! The trees of the heartbeat are over what is live *and present*. A walk is to find out what this
//! node has not heard of, not what it has yet to fetch; so what is known to be lacking is added.
//! Reading blocks. A chunk that changes between two reads makes a group look different that is
//! not, which costs another question; it is never taken for a difference of ids.

use std::collections::HashMap;

use atoll_proto::tree::{Digest, GroupTree, NodeTree, bucket_of};
use atoll_proto::{ChunkId, PgId};

use super::diff::{add_ids, before};
use super::walk::Local;
use crate::store::{ChunkStore, StoreError};

/// Lacking chunks read at a time.
const READ_MAX: usize = 4096;

/// This side of one walk.
pub(crate) struct Known<'a> {
    store: &'a dyn ChunkStore,
    trees: &'a mut Cache,
}

/// The trees made during one walk; it outlives the calls that block.
#[derive(Debug, Default)]
pub(crate) struct Cache(HashMap<PgId, GroupTree>);

impl<'a> Known<'a> {
    pub(crate) fn new(store: &'a dyn ChunkStore, trees: &'a mut Cache) -> Self {
        Self { store, trees }
    }
}

impl Cache {
    /// A group is done: its tree is not needed any more.
    pub(crate) fn forget(&mut self, pg: PgId) {
        self.0.remove(&pg);
    }
}

impl Local for Known<'_> {
    fn tree(&mut self, pg: PgId) -> Result<&GroupTree, StoreError> {
        if !self.trees.0.contains_key(&pg) {
            // In this order: what is repaired in between is counted twice rather than not at all.
            let lacking = lacking_of(self.store, pg, None)?;
            let mut leaves = self.store.buckets(pg)?;
            add_ids(&mut leaves, &lacking);
            self.trees.0.insert(pg, GroupTree::new(&leaves));
        }
        Ok(&self.trees.0[&pg])
    }

    fn ids(&mut self, pg: PgId, bucket: u8) -> Result<Vec<ChunkId>, StoreError> {
        let mut ids = lacking_of(self.store, pg, Some(bucket))?;
        ids.append(&mut self.store.bucket_ids(pg, bucket)?);
        ids.sort_unstable();
        ids.dedup();
        Ok(ids)
    }
}

/// The tree over everything this node knows to be live, given the roots of what is present.
///
/// # Errors
/// When the disk fails.
pub(crate) fn node_tree(
    store: &dyn ChunkStore,
    mut roots: Vec<Digest>,
    keeps: impl Fn(PgId) -> bool,
) -> Result<NodeTree, StoreError> {
    // In the order of ids, so that no more than what one group lacks is held at a time: however much
    // is lacking in all, that is a small part of it, for ids are hashes.
    let mut after: Option<ChunkId> = None;
    let mut ids: Vec<ChunkId> = Vec::new();
    loop {
        let some = store.lacking(after.as_ref(), READ_MAX)?;
        for (id, _) in &some {
            if ids.first().is_some_and(|first| first.pg() != id.pg()) {
                add_lacking(store, &mut roots, &ids)?;
                ids.clear();
            }
            ids.push(*id);
        }
        let Some((last, _)) = some.last().filter(|_| some.len() == READ_MAX) else { break };
        after = Some(*last);
    }
    add_lacking(store, &mut roots, &ids)?;
    Ok(NodeTree::new(&roots, keeps))
}

/// Makes the root of a group one over what is present and these ids, which it lacks.
fn add_lacking(
    store: &dyn ChunkStore,
    roots: &mut [Digest],
    ids: &[ChunkId],
) -> Result<(), StoreError> {
    let Some(pg) = ids.first().map(ChunkId::pg) else { return Ok(()) };
    let mut leaves = store.buckets(pg)?;
    add_ids(&mut leaves, ids);
    if let Some(root) = roots.get_mut(usize::from(pg.0)) {
        *root = GroupTree::new(&leaves).root();
    }
    Ok(())
}

/// How many chunks of a group are live as far as this node knows.
///
/// # Errors
/// When the disk fails.
pub(crate) fn count(store: &dyn ChunkStore, pg: PgId) -> Result<u64, StoreError> {
    let lacking = lacking_of(store, pg, None)?.len() as u64;
    Ok(store.group_count(pg)?.saturating_add(lacking))
}

/// The chunks of a group, or of one bucket, that are lacking.
///
/// # Errors
/// When the disk fails.
pub(crate) fn lacking_of(
    store: &dyn ChunkStore,
    pg: PgId,
    bucket: Option<u8>,
) -> Result<Vec<ChunkId>, StoreError> {
    let within =
        |id: &ChunkId| id.pg() == pg && bucket.is_none_or(|bucket| bucket_of(id) == bucket);
    let mut after = before(pg, bucket.unwrap_or(0));
    let mut ids = Vec::new();
    loop {
        let some = store.lacking(after.as_ref(), READ_MAX)?;
        let count = ids.len();
        ids.extend(some.iter().map(|(id, _)| *id).take_while(within));
        if some.len() < READ_MAX || ids.len() - count < some.len() {
            return Ok(ids);
        }
        after = ids.last().copied();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use atoll_proto::Epoch;
    use atoll_proto::ids::PG_COUNT;
    use bytes::Bytes;

    use super::*;
    use crate::store::memory::MemoryStore;
    use crate::store::{Mark, NewChunk};

    #[test]
    fn what_is_known_does_not_depend_on_what_is_here() {
        let (full, part) = (MemoryStore::default(), MemoryStore::default());
        let mut ids = Vec::new();
        for n in 0..200u8 {
            let bytes = Bytes::from(vec![n; 3]);
            let chunk = NewChunk { id: ChunkId::of(&bytes), bytes, epoch: Epoch(1), at_ms: 0 };
            ids.push(chunk.id);
            for (store, stored) in [(&full, true), (&part, n % 3 == 0)] {
                store.mark(&[(chunk.id, Mark::Live)], 0, None).unwrap();
                if stored {
                    store.put_batch(std::slice::from_ref(&chunk)).unwrap();
                }
            }
        }
        let roots = |store: &MemoryStore| -> Vec<Digest> {
            let leaves = (0..PG_COUNT).map(|pg| store.buckets(PgId(pg)).unwrap());
            leaves.map(|leaves| GroupTree::new(&leaves).root()).collect()
        };
        assert_ne!(roots(&full), roots(&part));
        let tree = |store: &MemoryStore| node_tree(store, roots(store), |_| true).unwrap();
        assert_eq!(tree(&full), tree(&part));
        for id in ids {
            let (pg, bucket) = (id.pg(), bucket_of(&id));
            let (mut one, mut two) = (Cache::default(), Cache::default());
            let mut full = Known::new(&full, &mut one);
            let mut part = Known::new(&part, &mut two);
            assert_eq!(full.tree(pg).unwrap(), part.tree(pg).unwrap());
            assert_eq!(full.ids(pg, bucket).unwrap(), part.ids(pg, bucket).unwrap());
            assert!(full.ids(pg, bucket).unwrap().contains(&id));
            assert_eq!(count(full.store, pg).unwrap(), count(part.store, pg).unwrap());
        }
    }

    #[test]
    fn the_last_groups_end_is_the_end_of_all_ids() {
        let store = MemoryStore::default();
        let last = ChunkId([0xff; 32]);
        store.mark(&[(last, Mark::Live), (ChunkId([0; 32]), Mark::Live)], 0, None).unwrap();
        assert_eq!(lacking_of(&store, last.pg(), None).unwrap(), [last]);
        assert_eq!(lacking_of(&store, last.pg(), Some(255)).unwrap(), [last]);
        assert!(lacking_of(&store, last.pg(), Some(254)).unwrap().is_empty());
        assert_eq!(lacking_of(&store, PgId(0), Some(0)).unwrap(), [ChunkId([0; 32])]);
        assert!(lacking_of(&store, PgId(1), None).unwrap().is_empty());
    }
}
