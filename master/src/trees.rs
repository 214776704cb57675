//! The trees over what placement groups and nodes should have, kept in memory while they are right.
//!
//! A tree follows from the state alone, so it is right for as long as the log index at which its
//! group last changed is the same; nothing has to be told when something changes. Roots of all groups
//! are kept (128 KiB), whole trees only of the groups that walks ask for. While nothing changes, a
//! comparison costs a few reads. All of this blocks: call it off the runtime.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use atoll_proto::cluster::PgTable;
use atoll_proto::ids::PG_COUNT;
use atoll_proto::tree::{Digest, GroupTree, NodeTree};
use atoll_proto::{Epoch, NodeId, PgId};

use crate::store::{Read, StoreError, buckets, deltas, group_states};

/// Whole trees of groups that are kept: 9 KiB each.
const GROUPS_KEPT: usize = 512;
/// Trees of nodes that are kept: 130 KiB each.
const NODES_KEPT: usize = 128;

/// The trees of one master.
#[derive(Debug)]
pub(crate) struct Trees(Mutex<Kept>);

#[derive(Debug)]
struct Kept {
    /// Index of the latest delta when `changes` was read, and for each group the log index of its
    /// last change.
    changes: Option<(u64, Arc<Vec<u64>>)>,
    /// For each group: the index of its last change for which the root holds, and the root. A
    /// group that never changed has index 0 and the root of an empty group.
    roots: Vec<(u64, Digest)>,
    groups: HashMap<PgId, (u64, Arc<GroupTree>)>,
    /// The groups in the order in which they were added.
    oldest: VecDeque<PgId>,
    /// For each node: epoch and index of the latest delta for which the tree holds.
    nodes: HashMap<NodeId, (Epoch, u64, Arc<NodeTree>)>,
}

impl Default for Trees {
    fn default() -> Trees {
        Trees(Mutex::new(Kept {
            changes: None,
            roots: vec![(0, Digest::default()); usize::from(PG_COUNT)],
            groups: HashMap::new(),
            oldest: VecDeque::new(),
            nodes: HashMap::new(),
        }))
    }
}

impl Trees {
    /// For each group the log index of its last change.
    pub(crate) fn changes(&self, read: &impl Read) -> Result<Arc<Vec<u64>>, StoreError> {
        let last = deltas::last(read)?;
        if let Some((seen, changes)) = &self.kept().changes
            && *seen == last
        {
            return Ok(changes.clone());
        }
        let states = group_states::all(read)?;
        let changes: Arc<Vec<u64>> = Arc::new(states.iter().map(|state| state.index).collect());
        self.kept().changes = Some((last, changes.clone()));
        Ok(changes)
    }

    /// The tree of one group.
    pub(crate) fn group(&self, read: &impl Read, pg: PgId) -> Result<Arc<GroupTree>, StoreError> {
        let index = group_states::get(read, pg)?.index;
        if let Some((built_at, tree)) = self.kept().groups.get(&pg)
            && *built_at == index
        {
            return Ok(tree.clone());
        }
        let tree = Arc::new(GroupTree::new(&*buckets::leaves(read, pg)?));
        let mut kept = self.kept();
        if let Some(slot) = kept.roots.get_mut(usize::from(pg.0)) {
            *slot = (index, tree.root());
        }
        if kept.groups.insert(pg, (index, tree.clone())).is_none() {
            kept.oldest.push_back(pg);
            if kept.oldest.len() > GROUPS_KEPT
                && let Some(oldest) = kept.oldest.pop_front()
            {
                kept.groups.remove(&oldest);
            }
        }
        Ok(tree)
    }

    /// The root of one group, which last changed at `index`.
    pub(crate) fn root(
        &self,
        read: &impl Read,
        pg: PgId,
        index: u64,
    ) -> Result<Digest, StoreError> {
        if let Some((built_at, root)) = self.kept().roots.get(usize::from(pg.0)).copied()
            && built_at == index
        {
            return Ok(root);
        }
        let root = GroupTree::new(&*buckets::leaves(read, pg)?).root();
        if let Some(slot) = self.kept().roots.get_mut(usize::from(pg.0)) {
            *slot = (index, root);
        }
        Ok(root)
    }

    /// Whether comparing a node's root takes a few reads only.
    pub(crate) fn is_at_hand(
        &self,
        read: &impl Read,
        node: NodeId,
        table: &PgTable,
    ) -> Result<bool, StoreError> {
        let last = deltas::last(read)?;
        let kept = self.kept();
        let seen = kept.changes.as_ref().is_some_and(|(seen, _)| *seen == last);
        let built = kept.nodes.get(&node);
        Ok(seen && built.is_some_and(|(epoch, at, _)| (*epoch, *at) == (table.epoch, last)))
    }

    /// The tree over the groups a node is a member of.
    pub(crate) fn node(
        &self,
        read: &impl Read,
        node: NodeId,
        table: &PgTable,
    ) -> Result<Arc<NodeTree>, StoreError> {
        let last = deltas::last(read)?;
        if let Some((epoch, built_at, tree)) = self.kept().nodes.get(&node)
            && *built_at == last
            && *epoch == table.epoch
        {
            return Ok(tree.clone());
        }
        let changes = self.changes(read)?;
        let mut roots = Vec::with_capacity(changes.len());
        for (pg, index) in (0u16..).zip(changes.iter()) {
            let pg = PgId(pg);
            let keeps = table.of(pg).contains(&node);
            roots.push(if keeps { self.root(read, pg, *index)? } else { Digest::default() });
        }
        let tree = Arc::new(NodeTree::new(&roots, |pg| table.of(pg).contains(&node)));
        let mut kept = self.kept();
        if kept.nodes.len() >= NODES_KEPT && !kept.nodes.contains_key(&node) {
            kept.nodes.clear();
        }
        kept.nodes.insert(node, (table.epoch, last, tree.clone()));
        Ok(tree)
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The log index of the last change of any group that a node is a member of.
pub(crate) fn newest(changes: &[u64], node: NodeId, table: &PgTable) -> u64 {
    let of_node = (0u16..).zip(changes).filter(|(pg, _)| table.of(PgId(*pg)).contains(&node));
    of_node.map(|(_, index)| *index).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use atoll_proto::ChunkId;
    use atoll_proto::master::ObjectKind;
    use atoll_proto::tree::BUCKETS;
    use proptest::prelude::*;

    use super::*;
    use crate::operation::Now;
    use crate::store::testing::TestStore;
    use crate::store::{Transaction, objects};

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(12))]
        #[test]
        fn trees_that_are_kept_are_those_that_would_be_built(
            entries in proptest::collection::vec(
                proptest::collection::vec((any::<u16>(), any::<bool>()), 1..6), 1..8),
        ) {
            let store = TestStore::new();
            let trees = Trees::default();
            let mut table = PgTable::empty();
            table.epoch = Epoch(1);
            (0..PG_COUNT).step_by(2).for_each(|pg| table.members[usize::from(pg)] = vec![NodeId(1)]);
            for (entry, index) in entries.iter().zip(1u64..) {
                let mut tx = Transaction::new(&store.rocks);
                for (n, live) in entry {
                    let id = ChunkId::of(&(n % 40).to_be_bytes());
                    let now = Now { index, at_ns: 0 };
                    if *live {
                        objects::set_kind(&mut tx, now, &id, 1, ObjectKind::Data).unwrap();
                    } else {
                        objects::collect(&mut tx, now, &id).unwrap();
                    }
                }
                tx.commit().unwrap();
                let fresh = Trees::default();
                let kept = trees.node(&store.rocks, NodeId(1), &table).unwrap();
                prop_assert_eq!(&kept, &fresh.node(&store.rocks, NodeId(1), &table).unwrap());
                let changes = trees.changes(&store.rocks).unwrap();
                prop_assert_eq!(&changes, &fresh.changes(&store.rocks).unwrap());
                for n in 0..40u16 {
                    let pg = ChunkId::of(&n.to_be_bytes()).pg();
                    let tree = trees.group(&store.rocks, pg).unwrap();
                    let leaves = buckets::leaves(&store.rocks, pg).unwrap();
                    prop_assert_eq!(&*tree, &GroupTree::new(&leaves));
                    let index = changes[usize::from(pg.0)];
                    prop_assert_eq!(trees.root(&store.rocks, pg, index).unwrap(), tree.root());
                }
                let even = (0..40u16)
                    .map(|n| ChunkId::of(&n.to_be_bytes()).pg())
                    .filter(|pg| pg.0 % 2 == 0)
                    .map(|pg| changes[usize::from(pg.0)])
                    .max();
                prop_assert_eq!(newest(&changes, NodeId(1), &table), even.unwrap_or(0));
            }
        }
    }

    #[test]
    fn a_new_epoch_makes_a_new_tree() {
        let store = TestStore::new();
        let trees = Trees::default();
        let id = ChunkId::of(b"x");
        let mut tx = Transaction::new(&store.rocks);
        objects::set_kind(&mut tx, Now { index: 1, at_ns: 0 }, &id, 1, ObjectKind::Data).unwrap();
        tx.commit().unwrap();
        let mut table = PgTable::empty();
        let without = trees.node(&store.rocks, NodeId(1), &table).unwrap();
        table.epoch = Epoch(1);
        table.members[usize::from(id.pg().0)] = vec![NodeId(1)];
        let with = trees.node(&store.rocks, NodeId(1), &table).unwrap();
        assert_ne!(with.root(), without.root());
        assert_eq!(without.root(), NodeTree::new(&[], |_| true).root());
        let leaves = Box::new([[0; 32]; BUCKETS]);
        assert_eq!(GroupTree::new(&leaves).root(), [0; 32]);
    }
}
