//! Which moves are about to finish, and which changes still rely on what old members vouched for.
//!
//! A receipt of an old member counts while it is leaving, so a commit may rest on one. Between the
//! check of its receipts and its entry in the log the old member must not go, or a chunk would be
//! acknowledged that fewer members have than was promised. So a move finishes in two steps: its
//! old members stop counting for new changes ([`Finishing::begin`]), and once every change that
//! began before is in the log ([`Finishing::settled`]) the state machine may drop them, if the
//! members have the group as it is then. Plain state, kept by the leader.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use atoll_proto::PgId;
use atoll_proto::cluster::PgTable;

/// Moves that are about to finish, and changes under way.
#[derive(Debug, Default)]
pub(crate) struct Finishing {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The number of the next change.
    next: u64,
    /// Changes under way.
    open: BTreeSet<u64>,
    /// Groups whose old members do not count any more, and the first change that knew it.
    groups: BTreeMap<PgId, u64>,
    /// The table without those old members, as long as neither it nor `groups` changes.
    table: Option<(Arc<PgTable>, Arc<PgTable>)>,
}

/// A change under way that may rely on receipts of old members.
#[derive(Debug)]
pub(crate) struct Relying<'a> {
    finishing: &'a Finishing,
    number: u64,
}

impl Drop for Relying<'_> {
    fn drop(&mut self) {
        self.finishing.lock().open.remove(&self.number);
    }
}

impl Finishing {
    /// A change begins; it ends when the value is dropped, after its entry is applied.
    pub(crate) fn rely(&self) -> Relying<'_> {
        let mut state = self.lock();
        let number = state.next;
        state.next += 1;
        state.open.insert(number);
        Relying { finishing: self, number }
    }

    /// A number for the changes that begin from now on.
    pub(crate) fn mark(&self) -> u64 {
        self.lock().next
    }

    /// Whether all changes that began before a mark are in the log, or never will be.
    pub(crate) fn passed(&self, mark: u64) -> bool {
        self.lock().open.first().is_none_or(|first| *first >= mark)
    }

    /// The table by which receipts count: old members of groups that are about to finish are left
    /// out. To be asked for after [`Finishing::rely`].
    pub(crate) fn cover(&self, table: Arc<PgTable>) -> Arc<PgTable> {
        let mut state = self.lock();
        if table.leaving.is_empty() || state.groups.is_empty() {
            return table;
        }
        if let Some((of, cover)) = &state.table
            && Arc::ptr_eq(of, &table)
        {
            return cover.clone();
        }
        let mut cover = PgTable::clone(&table);
        cover.leaving.retain(|(pg, _)| !state.groups.contains_key(pg));
        let cover = Arc::new(cover);
        state.table = Some((table, cover.clone()));
        cover
    }

    /// These groups, and no others, are about to finish.
    pub(crate) fn begin(&self, groups: &[PgId]) {
        let mut state = self.lock();
        let next = state.next;
        let began = groups.iter().map(|pg| (*pg, state.groups.get(pg).copied().unwrap_or(next)));
        state.groups = began.collect();
        state.table = None;
    }

    /// Those of the groups that are about to finish on whose old members no change relies.
    pub(crate) fn settled(&self) -> Vec<PgId> {
        let state = self.lock();
        let first = state.open.first().copied().unwrap_or(u64::MAX);
        state.groups.iter().filter(|(_, began)| first >= **began).map(|(pg, _)| *pg).collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use atoll_proto::NodeId;

    #[test]
    fn a_move_waits_for_the_changes_that_began_before() {
        let finishing = Finishing::default();
        let early = finishing.rely();
        finishing.begin(&[PgId(1), PgId(2)]);
        assert_eq!(finishing.settled(), []);
        let late = finishing.rely();
        assert_eq!(finishing.settled(), []);
        // Begun again, later, with another beside it.
        finishing.begin(&[PgId(2), PgId(3)]);
        drop(early);
        assert_eq!(finishing.settled(), [PgId(2)]);
        drop(late);
        assert_eq!(finishing.settled(), [PgId(2), PgId(3)]);
        finishing.begin(&[]);
        assert_eq!(finishing.settled(), []);
    }

    #[test]
    fn a_mark_is_passed_when_what_began_before_is_over() {
        let finishing = Finishing::default();
        assert!(finishing.passed(finishing.mark()));
        let early = finishing.rely();
        let mark = finishing.mark();
        let late = finishing.rely();
        assert!(!finishing.passed(mark));
        drop(early);
        assert!(finishing.passed(mark), "what began later does not count");
        drop(late);
    }

    #[test]
    fn old_members_of_a_finishing_group_do_not_count() {
        let finishing = Finishing::default();
        let mut table = PgTable::empty();
        table.leaving = vec![(PgId(1), vec![NodeId(9)]), (PgId(2), vec![NodeId(9)])];
        let table = Arc::new(table);
        assert!(Arc::ptr_eq(&finishing.cover(table.clone()), &table));
        finishing.begin(&[PgId(1)]);
        let cover = finishing.cover(table.clone());
        assert_eq!(cover.leaving, vec![(PgId(2), vec![NodeId(9)])]);
        assert!(Arc::ptr_eq(&finishing.cover(table.clone()), &cover));
        finishing.begin(&[]);
        assert_eq!(finishing.cover(table).leaving.len(), 2);
    }
}
