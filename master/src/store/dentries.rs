//! Family `Dentry`: the names in directories.

use atoll_proto::namespace::FileKind;
use atoll_proto::{ByteName, InodeId};
use serde::{Deserialize, Serialize};

use super::{Family, Order, Read, StoreError, Transaction, decode};

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Dentry {
    /// Which inode.
    pub(crate) inode: InodeId,
    /// What it is, so that listing needs no inode.
    pub(crate) kind: FileKind,
}

const NAME_AT: usize = 1 + 8;

fn key(parent: InodeId, name: &[u8]) -> Vec<u8> {
    Family::Dentry.key(&[&parent.0.to_be_bytes(), name])
}

pub(crate) fn get(
    read: &impl Read,
    parent: InodeId,
    name: &[u8],
) -> Result<Option<Dentry>, StoreError> {
    read.get_value(&key(parent, name))
}

pub(crate) fn put(tx: &mut Transaction<'_>, parent: InodeId, name: &[u8], dentry: Dentry) {
    tx.put_value(key(parent, name), &dentry);
}

pub(crate) fn remove(tx: &mut Transaction<'_>, parent: InodeId, name: &[u8]) {
    tx.delete(key(parent, name));
}

pub(crate) fn is_empty(read: &impl Read, parent: InodeId) -> Result<bool, StoreError> {
    let (from, to) = Family::Dentry.prefix(&[&parent.0.to_be_bytes()]);
    Ok(!read.any(&from, &to)?)
}

/// Up to `limit` entries after a name, in name order, and whether they are the last.
pub(crate) fn list(
    read: &impl Read,
    parent: InodeId,
    after: Option<&ByteName>,
    limit: usize,
) -> Result<(Vec<(ByteName, Dentry)>, bool), StoreError> {
    let (mut from, to) = Family::Dentry.prefix(&[&parent.0.to_be_bytes()]);
    if let Some(after) = after {
        from = key(parent, after.as_bytes());
        from.push(0);
    }
    let mut found = Vec::new();
    let mut end = true;
    read.scan(&from, &to, Order::Ascending, &mut |key, value| {
        if found.len() == limit {
            end = false;
            return Ok(false);
        }
        let name = key.get(NAME_AT..).unwrap_or_default();
        found.push((ByteName::from(name), decode(key, value)?));
        Ok(true)
    })?;
    Ok((found, end))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::super::testing::TestStore;
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn names_round_trip_in_order(
            names in proptest::collection::btree_set(
                proptest::collection::vec(any::<u8>(), 1..6), 0..20),
            parent: u32, limit in 1usize..6,
        ) {
            let store = TestStore::new();
            let parent = InodeId(u64::from(parent));
            let mut tx = Transaction::new(&store.rocks);
            let dentry = Dentry { inode: InodeId(7), kind: FileKind::Symlink };
            for name in &names {
                put(&mut tx, parent, name, dentry);
                put(&mut tx, InodeId(parent.0 + 1), name, dentry);
            }
            tx.commit().unwrap();
            let mut seen = BTreeSet::new();
            let mut after: Option<ByteName> = None;
            loop {
                let (page, end) = list(&store.rocks, parent, after.as_ref(), limit).unwrap();
                prop_assert!(page.is_sorted_by(|a, b| a.0 < b.0));
                for (name, found) in &page {
                    prop_assert_eq!(*found, dentry);
                    prop_assert!(seen.insert(name.0.clone()));
                }
                if end { break; }
                after = page.last().map(|(name, _)| name.clone());
            }
            prop_assert_eq!(&seen, &names);
            for name in &names {
                prop_assert_eq!(get(&store.rocks, parent, name).unwrap(), Some(dentry));
            }
            prop_assert_eq!(is_empty(&store.rocks, parent).unwrap(), names.is_empty());
        }
    }
}
