//! Which inodes the last log entries changed, for those that keep what they have read.
//!
//! The state machine notes them before an entry becomes visible, so that whoever looks at the state
//! as of an index finds here everything that changed up to it. A ring of bounded length: who is
//! further behind is told so, and reads everything again.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use atoll_proto::InodeId;

use crate::store::{Family, StoreError, Transaction, u64_at};

/// Most changes kept: 16 bytes each.
const MARKS_MAX: usize = 65_536;

/// The ring.
#[derive(Debug, Default)]
pub(crate) struct Marks(Mutex<Ring>);

#[derive(Debug, Default)]
struct Ring {
    /// Log index and inode, in order of the log.
    ring: VecDeque<(u64, InodeId)>,
    /// Of entries up to this index the ring may lack something.
    lost: u64,
    namespace: u64,
    sites: u64,
}

impl Marks {
    fn lock(&self) -> MutexGuard<'_, Ring> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what an entry is about to change.
    pub(crate) fn note(&self, index: u64, tx: &Transaction<'_>) -> Result<(), StoreError> {
        let mut touched = Vec::new();
        for family in [Family::Inode, Family::Dentry] {
            for key in tx.changed(family) {
                touched.push(InodeId(u64_at(key, 1)?));
            }
        }
        touched.sort_unstable();
        touched.dedup();
        let sites = tx.changed(Family::Site).next().is_some();
        if touched.is_empty() && !sites {
            return Ok(());
        }
        let mut ring = self.lock();
        if sites {
            ring.sites = index;
        }
        if !touched.is_empty() {
            ring.namespace = index;
            ring.ring.extend(touched.into_iter().map(|inode| (index, inode)));
        }
        while ring.ring.len() > MARKS_MAX {
            if let Some((index, _)) = ring.ring.pop_front() {
                ring.lost = index;
            }
        }
        Ok(())
    }

    /// The state was replaced by one as of this index: anything may have changed.
    pub(crate) fn lose(&self, index: u64) {
        let ring = Ring { lost: index, namespace: index, sites: index, ..Ring::default() };
        *self.lock() = ring;
    }

    /// Log indexes of the last changes of the namespace and of sites; 0 for none since the start.
    pub(crate) fn latest(&self) -> (u64, u64) {
        let ring = self.lock();
        (ring.namespace, ring.sites)
    }

    /// The inodes that entries in `after + 1..=upto` changed; `None` when that is not known.
    pub(crate) fn between(&self, after: u64, upto: u64) -> Option<Vec<InodeId>> {
        let ring = self.lock();
        if after < ring.lost {
            return None;
        }
        let from = ring.ring.partition_point(|(index, _)| *index <= after);
        let to = ring.ring.partition_point(|(index, _)| *index <= upto).max(from);
        Some(ring.ring.range(from..to).map(|(_, inode)| *inode).collect())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::store::testing::TestStore;

    fn note(marks: &Marks, store: &TestStore, index: u64, inodes: std::ops::Range<u64>) {
        let mut tx = Transaction::new(&store.rocks);
        for inode in inodes {
            tx.put(Family::Inode.key(&[&inode.to_be_bytes()]), Vec::new());
            tx.put(Family::Dentry.key(&[&inode.to_be_bytes(), b"name"]), Vec::new());
        }
        marks.note(index, &tx).unwrap();
    }

    #[test]
    fn changes_are_found_by_index_each_once() {
        let (marks, store) = (Marks::default(), TestStore::new());
        note(&marks, &store, 3, 1..3);
        note(&marks, &store, 4, 0..0);
        note(&marks, &store, 5, 7..8);
        let ids = |ids: &[u64]| Some(ids.iter().copied().map(InodeId).collect::<Vec<_>>());
        assert_eq!(marks.between(0, 9), ids(&[1, 2, 7]));
        assert_eq!(marks.between(3, 9), ids(&[7]));
        assert_eq!(marks.between(0, 4), ids(&[1, 2]));
        assert_eq!(marks.between(9, 4), ids(&[]));
        assert_eq!(marks.latest(), (5, 0));
    }

    #[test]
    fn who_is_too_far_behind_is_told() {
        let (marks, store) = (Marks::default(), TestStore::new());
        note(&marks, &store, 1, 0..10);
        note(&marks, &store, 2, 0..MARKS_MAX as u64);
        assert_eq!(marks.between(0, 2), None);
        assert_eq!(marks.between(1, 2).unwrap().len(), MARKS_MAX);
        marks.lose(9);
        assert_eq!(marks.between(2, 9), None);
        assert_eq!(marks.between(9, 9), Some(Vec::new()));
    }
}
