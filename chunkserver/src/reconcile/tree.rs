//! The roots of all groups of this node, kept up to date lazily: only groups whose digests changed
//! are read and hashed anew, and only when somebody wants to know.
//!
//! [`crate::tasks::heartbeat`] refreshes them; [`super::session`] starts a walk from them.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use atoll_proto::cluster::PgTable;
use atoll_proto::ids::PG_COUNT;
use atoll_proto::tree::{Digest, GroupTree, NodeTree};
use atoll_proto::{Epoch, NodeId, PgId};
use tokio::time::Instant;

use crate::store::{ChunkStore, StoreError};

/// A refresh is followed by this many times its own duration without one: so that heartbeats spend
/// at most a twentieth of a core on trees, however much is written. The first one, and walks of few
/// groups ([`Trees::fresh_roots`]), are not counted.
const REST: u32 = 20;

/// Of more groups than this the roots are not brought up to date out of turn.
const FRESH_MAX: usize = 512;

/// The trees of one node.
#[derive(Debug)]
pub(crate) struct Trees(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    roots: Vec<Digest>,
    /// Groups whose root is not known to be right.
    stale: BTreeSet<PgId>,
    /// Groups whose root changed and was in no look yet.
    changed: BTreeSet<PgId>,
    /// Over the groups kept at this epoch, as of the last look.
    top: Option<(Epoch, Digest)>,
    rest_until: Option<Instant>,
}

/// What a node has, at an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Look {
    /// The table that says which groups it keeps.
    pub(crate) epoch: Epoch,
    /// The deltas up to here are in it; later ones may be.
    pub(crate) index: u64,
    /// Over everything.
    pub(crate) root: Digest,
    /// Groups whose root is another since the last look.
    pub(crate) changed: Vec<PgId>,
    /// The store had begun anew before this look.
    pub(crate) refilling: bool,
}

impl Default for Trees {
    fn default() -> Self {
        Self(Mutex::new(Inner {
            roots: vec![[0; 32]; usize::from(PG_COUNT)],
            stale: (0..PG_COUNT).map(PgId).collect(),
            changed: BTreeSet::new(),
            top: None,
            rest_until: None,
        }))
    }
}

impl Trees {
    /// Brings everything up to date; `None` if that was done a moment ago and was much work.
    /// Blocks.
    ///
    /// # Errors
    /// When the disk fails; what was not read stays to be read.
    pub(crate) fn look(
        &self,
        store: &dyn ChunkStore,
        table: &PgTable,
        node: NodeId,
        now: Instant,
    ) -> Result<Option<Look>, StoreError> {
        let mut inner = self.lock();
        if inner.rest_until.is_some_and(|until| now < until) {
            return Ok(None);
        }
        let refilling = store.refilling();
        // First the index: what is applied after it makes the groups newer than they claim to be,
        // and the master knows that it changed them.
        let index = store.applied()?;
        let keeps = |pg: PgId| table.of(pg).contains(&node);
        inner.refresh(store, keeps)?;
        let known = inner.top.filter(|(epoch, _)| *epoch == table.epoch);
        if known.is_none() {
            inner.changed = (0..PG_COUNT).map(PgId).filter(|pg| keeps(*pg)).collect();
        }
        let changed: Vec<PgId> = std::mem::take(&mut inner.changed).into_iter().collect();
        let root = match known {
            Some((_, root)) if changed.is_empty() => root,
            Some(_) | None => NodeTree::new(&inner.roots, keeps).root(),
        };
        // The first look reads everything, once. A rest after it would be long, and what is mended
        // in the meantime would look as if it differed.
        let first = inner.top.replace((table.epoch, root)).is_none();
        let rest = now.elapsed().min(Duration::from_secs(1)) * REST;
        inner.rest_until = (!first).then(|| now + rest);
        Ok(Some(Look { epoch: table.epoch, index, root, changed, refilling }))
    }

    /// The roots as of the last look.
    pub(crate) fn roots(&self) -> Vec<Digest> {
        self.lock().roots.clone()
    }

    /// The roots as of now, unless very many changed since the last look: a walk from old ones
    /// would go down to what was mended a moment ago. What changed is still news to the next look.
    /// Blocks.
    ///
    /// # Errors
    /// When the disk fails; what was not read stays to be read.
    pub(crate) fn fresh_roots(
        &self,
        store: &dyn ChunkStore,
        keeps: impl Fn(PgId) -> bool,
    ) -> Result<Vec<Digest>, StoreError> {
        let mut inner = self.lock();
        inner.stale.extend(store.changed_groups());
        if inner.stale.iter().filter(|pg| keeps(**pg)).count() <= FRESH_MAX {
            inner.refresh(store, keeps)?;
        }
        Ok(inner.roots.clone())
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn refresh(
        &mut self,
        store: &dyn ChunkStore,
        keeps: impl Fn(PgId) -> bool,
    ) -> Result<(), StoreError> {
        self.stale.extend(store.changed_groups());
        let due: Vec<PgId> = self.stale.iter().copied().filter(|pg| keeps(*pg)).collect();
        for pg in due {
            let leaves = store.buckets(pg)?;
            let empty = leaves.iter().all(|leaf| *leaf == [0; 32]);
            let root = if empty { [0; 32] } else { GroupTree::new(&leaves).root() };
            self.stale.remove(&pg);
            if std::mem::replace(&mut self.roots[usize::from(pg.0)], root) != root {
                self.changed.insert(pg);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use atoll_proto::ChunkId;
    use bytes::Bytes;

    use super::*;
    use crate::store::memory::MemoryStore;
    use crate::store::{Mark, NewChunk};

    const NODE: NodeId = NodeId(1);

    fn table(epoch: u64, groups: impl IntoIterator<Item = u16>) -> PgTable {
        let mut table = PgTable { epoch: Epoch(epoch), ..PgTable::empty() };
        groups.into_iter().for_each(|pg| table.members[usize::from(pg)].push(NODE));
        table
    }

    fn store(store: &MemoryStore, text: &'static str) -> PgId {
        let bytes = Bytes::from_static(text.as_bytes());
        let id = ChunkId::of(&bytes);
        store.put_batch(&[NewChunk { id, bytes, epoch: Epoch(1), at_ms: 0 }]).unwrap();
        store.mark(&[(id, Mark::Live)], 0, Some(store.applied().unwrap() + 1)).unwrap();
        id.pg()
    }

    fn look(trees: &Trees, store: &MemoryStore, table: &PgTable) -> Look {
        let later = Instant::now() + Duration::from_secs(100);
        trees.lock().rest_until = None;
        trees.look(store, table, NODE, later).unwrap().unwrap()
    }

    #[test]
    fn only_what_changed_is_told_and_all_of_a_new_table() {
        let (trees, memory) = (Trees::default(), MemoryStore::default());
        let all = table(1, 0..PG_COUNT);
        let first = look(&trees, &memory, &all);
        assert_eq!((first.changed.len(), first.index), (usize::from(PG_COUNT), 0));
        let pg = store(&memory, "one");
        let second = look(&trees, &memory, &all);
        assert_eq!((&second.changed[..], second.index), (&[pg][..], 1));
        assert_ne!(second.root, first.root);
        let third = look(&trees, &memory, &all);
        assert_eq!(third, Look { changed: Vec::new(), ..second });

        let other = table(2, (0..PG_COUNT).filter(|other| *other != pg.0));
        let fourth = look(&trees, &memory, &other);
        assert_eq!(fourth.root, first.root, "a group that is not kept counts as empty");
        let back = look(&trees, &memory, &table(3, [pg.0]));
        assert_eq!((&back.changed[..], back.root), (&[pg][..], third.root));
    }

    #[test]
    fn much_work_is_followed_by_rest_and_nothing_is_missed() {
        let (trees, memory) = (Trees::default(), MemoryStore::default());
        let all = table(1, 0..PG_COUNT);
        let now = Instant::now();
        assert!(trees.look(&memory, &all, NODE, now).unwrap().is_some());
        // None after the first, which is much work only once.
        assert!(trees.look(&memory, &all, NODE, now).unwrap().is_some());
        let pg = store(&memory, "two");
        assert!(trees.look(&memory, &all, NODE, now).unwrap().is_none());
        let later = now + Duration::from_secs(60);
        let look = trees.look(&memory, &all, NODE, later).unwrap().unwrap();
        assert_eq!(look.changed, [pg]);
    }

    #[test]
    fn a_walk_starts_from_roots_of_now_and_the_next_look_still_tells() {
        let (trees, memory) = (Trees::default(), MemoryStore::default());
        let all = table(1, 0..PG_COUNT);
        look(&trees, &memory, &all);
        let before = trees.roots();
        let pg = store(&memory, "three");
        assert_eq!(trees.roots(), before);
        let fresh = trees.fresh_roots(&memory, |_| true).unwrap();
        assert_ne!(fresh[usize::from(pg.0)], before[usize::from(pg.0)]);
        assert_eq!(look(&trees, &memory, &all).changed, [pg]);
    }
}
