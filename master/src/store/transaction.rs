//! A transaction: changes on top of the database that later reads see, written in one batch.
//!
//! The state machine makes one per log entry. There is one writer, so nothing is locked. A single
//! operation of the entry can be undone ([`Transaction::rollback`]), so that operations may check
//! as they go and still change nothing when they fail.

use std::collections::BTreeMap;

use super::rocks::{Batch, Rocks};
use super::{Family, Order, Read, StoreError, Visit};

type Slot = Option<Vec<u8>>;

/// Changes that are not written yet.
#[derive(Debug)]
pub(crate) struct Transaction<'a> {
    base: &'a Rocks,
    /// `None` is a deleted key.
    overlay: BTreeMap<Vec<u8>, Slot>,
    /// What the overlay held before each change since the savepoint.
    undo: Vec<(Vec<u8>, Option<Slot>)>,
    /// How many ordinals were given out.
    ordinals: u32,
}

impl<'a> Transaction<'a> {
    /// No changes yet.
    pub(crate) fn new(base: &'a Rocks) -> Transaction<'a> {
        Transaction { base, overlay: BTreeMap::new(), undo: Vec::new(), ordinals: 0 }
    }

    /// Sets a key.
    pub(crate) fn put(&mut self, key: Vec<u8>, value: Vec<u8>) {
        self.set(key, Some(value));
    }

    /// Sets a key to an encoded value.
    pub(crate) fn put_value<T: serde::Serialize>(&mut self, key: Vec<u8>, value: &T) {
        self.set(key, Some(atoll_proto::encode(value)));
    }

    /// Removes a key; one that is not there is fine.
    pub(crate) fn delete(&mut self, key: Vec<u8>) {
        self.set(key, None);
    }

    /// A number that grows within this transaction, for keys that are in the order of its changes.
    /// What is rolled back leaves a gap.
    pub(crate) fn next_ordinal(&mut self) -> u32 {
        let ordinal = self.ordinals;
        self.ordinals = ordinal.checked_add(1).expect("an entry holds far fewer changes");
        ordinal
    }

    /// The keys of a family that are set or deleted, in order.
    pub(crate) fn changed(&self, family: Family) -> impl Iterator<Item = &[u8]> {
        let (from, to) = family.prefix(&[]);
        self.overlay.range(from..to).map(|(key, _)| key.as_slice())
    }

    /// From here on, [`Transaction::rollback`] undoes.
    pub(crate) fn savepoint(&mut self) {
        self.undo.clear();
    }

    /// Undoes every change since the savepoint.
    pub(crate) fn rollback(&mut self) {
        for (key, before) in self.undo.drain(..).rev() {
            match before {
                Some(slot) => drop(self.overlay.insert(key, slot)),
                None => drop(self.overlay.remove(&key)),
            }
        }
    }

    /// Writes everything at once. Not synced: the Raft log is.
    pub(crate) fn commit(self) -> Result<(), StoreError> {
        self.finish(false)
    }

    /// The same, for changes that no log holds: on disk when this returns.
    pub(crate) fn commit_synced(self) -> Result<(), StoreError> {
        self.finish(true)
    }

    fn finish(self, sync: bool) -> Result<(), StoreError> {
        let mut batch = Batch::default();
        for (key, slot) in &self.overlay {
            match slot {
                Some(value) => batch.put(key, value),
                None => batch.delete(key),
            }
        }
        self.base.write(batch, sync)
    }

    fn set(&mut self, key: Vec<u8>, slot: Slot) {
        let before = self.overlay.insert(key.clone(), slot);
        self.undo.push((key, before));
    }
}

impl Read for Transaction<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        match self.overlay.get(key) {
            Some(slot) => Ok(slot.clone()),
            None => self.base.get(key),
        }
    }

    fn scan(
        &self,
        from: &[u8],
        to: &[u8],
        order: Order,
        visit: &mut Visit<'_>,
    ) -> Result<(), StoreError> {
        if from >= to {
            return Ok(());
        }
        let range = self.overlay.range(from.to_vec()..to.to_vec());
        match order {
            Order::Ascending => merge(range, self.base, from, to, order, visit),
            Order::Descending => merge(range.rev(), self.base, from, to, order, visit),
        }
    }
}

/// Visits the union of overlay and base in order; the overlay wins.
fn merge<'k>(
    overlay: impl Iterator<Item = (&'k Vec<u8>, &'k Slot)>,
    base: &Rocks,
    from: &[u8],
    to: &[u8],
    order: Order,
    visit: &mut Visit<'_>,
) -> Result<(), StoreError> {
    let mut overlay = overlay.peekable();
    let mut stopped = false;
    let precedes = |a: &[u8], b: &[u8]| match order {
        Order::Ascending => a < b,
        Order::Descending => a > b,
    };
    base.scan(from, to, order, &mut |key, value| {
        while let Some((own, slot)) = overlay.next_if(|(own, _)| precedes(own, key)) {
            if let Some(own_value) = slot
                && !visit(own, own_value)?
            {
                stopped = true;
                return Ok(false);
            }
        }
        let go_on = match overlay.next_if(|(own, _)| own.as_slice() == key) {
            Some((_, None)) => true,
            Some((own, Some(own_value))) => visit(own, own_value)?,
            None => visit(key, value)?,
        };
        stopped = !go_on;
        Ok(go_on)
    })?;
    if stopped {
        return Ok(());
    }
    for (own, slot) in overlay {
        if let Some(own_value) = slot
            && !visit(own, own_value)?
        {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::super::rocks::Tuning;
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, Clone)]
    enum Step {
        Put(u8, u8),
        Delete(u8),
        Savepoint,
        Rollback,
        Commit,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (0u8..12, any::<u8>()).prop_map(|(k, v)| Step::Put(k, v)),
            3 => (0u8..12).prop_map(Step::Delete),
            1 => Just(Step::Savepoint),
            1 => Just(Step::Rollback),
            1 => Just(Step::Commit),
        ]
    }

    fn all(read: &impl Read, from: u8, to: u8, order: Order) -> Vec<(u8, u8)> {
        let mut found = Vec::new();
        read.scan(&[from], &[to], order, &mut |key, value| {
            found.push((key[0], value[0]));
            Ok(true)
        })
        .unwrap();
        found
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn reads_see_the_changes_and_rollback_undoes_them(
            steps in proptest::collection::vec(step(), 0..60), from in 0u8..12, to in 0u8..12,
        ) {
            let dir = tempfile::tempdir().unwrap();
            let rocks = Rocks::open(dir.path(), Tuning::State).unwrap();
            let mut tx = Transaction::new(&rocks);
            let mut model = BTreeMap::new();
            let mut saved = model.clone();
            for step in steps {
                match step {
                    Step::Put(k, v) => { tx.put(vec![k], vec![v]); model.insert(k, v); }
                    Step::Delete(k) => { tx.delete(vec![k]); model.remove(&k); }
                    Step::Savepoint => { tx.savepoint(); saved = model.clone(); }
                    Step::Rollback => { tx.rollback(); model = saved.clone(); }
                    Step::Commit => {
                        tx.commit().unwrap();
                        tx = Transaction::new(&rocks);
                        saved = model.clone();
                    }
                }
                let mut expected: Vec<_> = model
                    .iter()
                    .filter(|(k, _)| (from..to).contains(*k))
                    .map(|(k, v)| (*k, *v))
                    .collect();
                prop_assert_eq!(&all(&tx, from, to, Order::Ascending), &expected);
                expected.reverse();
                prop_assert_eq!(all(&tx, from, to, Order::Descending), expected);
            }
        }
    }
}
