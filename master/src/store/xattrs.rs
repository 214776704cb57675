//! Family `Xattr`: extended attributes.

use atoll_proto::{ByteName, InodeId};

use super::{Family, Order, Read, StoreError, Transaction};

const NAME_AT: usize = 1 + 8;

fn key(inode: InodeId, name: &[u8]) -> Vec<u8> {
    Family::Xattr.key(&[&inode.0.to_be_bytes(), name])
}

pub(crate) fn get(
    read: &impl Read,
    inode: InodeId,
    name: &[u8],
) -> Result<Option<Vec<u8>>, StoreError> {
    read.get(&key(inode, name))
}

pub(crate) fn put(tx: &mut Transaction<'_>, inode: InodeId, name: &[u8], value: &[u8]) {
    tx.put(key(inode, name), value.to_vec());
}

pub(crate) fn remove(tx: &mut Transaction<'_>, inode: InodeId, name: &[u8]) {
    tx.delete(key(inode, name));
}

/// All names of an inode in order, each with the length of its value. Bounded where they are set.
pub(crate) fn list(read: &impl Read, inode: InodeId) -> Result<Vec<(ByteName, usize)>, StoreError> {
    let (from, to) = Family::Xattr.prefix(&[&inode.0.to_be_bytes()]);
    let mut found = Vec::new();
    read.scan(&from, &to, Order::Ascending, &mut |key, value| {
        let name = key.get(NAME_AT..).unwrap_or_default();
        found.push((ByteName::from(name), value.len()));
        Ok(true)
    })?;
    Ok(found)
}

/// Removes all of an inode.
pub(crate) fn remove_all(tx: &mut Transaction<'_>, inode: InodeId) -> Result<(), StoreError> {
    for (name, _) in list(tx, inode)? {
        remove(tx, inode, name.as_bytes());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::super::testing::TestStore;
    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn attributes_round_trip_and_go_together(
            all in proptest::collection::btree_map(
                proptest::collection::vec(any::<u8>(), 1..6), any::<Vec<u8>>(), 0..12),
            inode: u32,
        ) {
            let store = TestStore::new();
            let (inode, next) = (InodeId(u64::from(inode)), InodeId(u64::from(inode) + 1));
            let mut tx = Transaction::new(&store.rocks);
            put(&mut tx, next, b"user.other", b"stays");
            for (name, value) in &all {
                put(&mut tx, inode, name, value);
            }
            tx.commit().unwrap();
            let listed: BTreeMap<Vec<u8>, usize> =
                list(&store.rocks, inode).unwrap().into_iter().map(|(n, len)| (n.0, len)).collect();
            let lengths = all.iter().map(|(name, value)| (name.clone(), value.len())).collect();
            prop_assert_eq!(listed, lengths);
            for (name, value) in &all {
                let found = get(&store.rocks, inode, name).unwrap();
                prop_assert_eq!(found.as_ref(), Some(value));
            }
            let mut tx = Transaction::new(&store.rocks);
            remove_all(&mut tx, inode).unwrap();
            tx.commit().unwrap();
            prop_assert_eq!(list(&store.rocks, inode).unwrap(), vec![]);
            prop_assert_eq!(list(&store.rocks, next).unwrap().len(), 1);
        }
    }
}
