//! Family `Below`: pages and lists that lead to erased chunks.
//!
//! Written when something is erased, and by admissions of pages that refer to one of these. So a
//! deploy can be refused whose pages are all known, and a file whose lists are, although a chunk far
//! below them is nowhere.

use std::collections::HashSet;

use atoll_proto::ChunkId;
use atoll_proto::erase::Erasure;

use super::{Family, Read, StoreError, Transaction, erased};

fn key(id: &ChunkId) -> Vec<u8> {
    Family::Below.key(&[id.as_bytes()])
}

/// What is lost below a page or list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Lost {
    /// One that may not come back.
    pub(crate) erased: Option<ChunkId>,
    /// Those that have to be uploaded again, up to the number that was asked for.
    pub(crate) absent: Vec<ChunkId>,
}

/// The children of a page or list that are erased, or lead to what is; empty for one that never
/// lost anything.
pub(crate) fn get(read: &impl Read, id: &ChunkId) -> Result<Vec<ChunkId>, StoreError> {
    Ok(read.get_value(&key(id))?.unwrap_or_default())
}

/// Whether something below a page or list was ever erased.
pub(crate) fn has(read: &impl Read, id: &ChunkId) -> Result<bool, StoreError> {
    read.has(&key(id))
}

/// These children, too, are erased, or lead to what is.
pub(crate) fn add(
    tx: &mut Transaction<'_>,
    id: &ChunkId,
    children: &[ChunkId],
) -> Result<(), StoreError> {
    let mut all = get(tx, id)?;
    all.extend(children);
    all.sort_unstable();
    all.dedup();
    tx.put_value(key(id), &all);
    Ok(())
}

/// The page or list is collected.
pub(super) fn remove(tx: &mut Transaction<'_>, id: &ChunkId) -> Result<(), StoreError> {
    let key = key(id);
    if tx.has(&key)? {
        tx.delete(key);
    }
    Ok(())
}

/// What the cluster does not have of a chunk and all that is below it.
pub(crate) fn lost(read: &impl Read, id: &ChunkId, most: usize) -> Result<Lost, StoreError> {
    let (mut lost, mut seen, mut left) = (Lost::default(), HashSet::new(), vec![*id]);
    while let Some(id) = left.pop() {
        if !seen.insert(id) {
            continue;
        }
        match erased::get(read, &id)? {
            Some(record) if record.what == Erasure::Erased => {
                lost.erased = Some(id);
                return Ok(lost);
            }
            Some(record) if record.is_hidden() && lost.absent.len() < most => lost.absent.push(id),
            _ => {}
        }
        left.extend(get(read, &id)?);
    }
    Ok(lost)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use atoll_proto::Epoch;
    use proptest::prelude::*;

    use super::super::testing::TestStore;
    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn below_round_trip(id: [u8; 32], children in proptest::collection::vec(any::<[u8; 32]>(), 0..9)) {
            let (store, id) = (TestStore::new(), ChunkId(id));
            let mut children: Vec<ChunkId> = children.into_iter().map(ChunkId).collect();
            let mut tx = Transaction::new(&store.rocks);
            for child in &children {
                add(&mut tx, &id, &[*child]).unwrap();
                add(&mut tx, &id, &[*child]).unwrap();
            }
            tx.commit().unwrap();
            children.sort_unstable();
            children.dedup();
            prop_assert_eq!(get(&store.rocks, &id).unwrap(), children.clone());
            prop_assert_eq!(has(&store.rocks, &id).unwrap(), !children.is_empty());
            let mut tx = Transaction::new(&store.rocks);
            remove(&mut tx, &id).unwrap();
            prop_assert!(!has(&tx, &id).unwrap());
        }
    }

    #[test]
    fn what_is_lost_is_found_however_deep() {
        let store = TestStore::new();
        let [root, index, leaf, chunk, other] =
            ["root", "index", "leaf", "chunk", "other"].map(|text| ChunkId::of(text.as_bytes()));
        let mut tx = Transaction::new(&store.rocks);
        for (parent, child) in [(root, index), (index, leaf), (leaf, chunk), (leaf, other)] {
            add(&mut tx, &parent, &[child]).unwrap();
        }
        let none = Lost::default();
        assert_eq!(lost(&tx, &root, 9).unwrap(), none, "it was, and is not any more");
        let absent =
            erased::Record { index: 1, what: Erasure::Lifted, absent: true, epoch: Epoch(1) };
        erased::put(&mut tx, &chunk, &absent).unwrap();
        assert_eq!(lost(&tx, &root, 9).unwrap().absent, [chunk]);
        assert_eq!(lost(&tx, &chunk, 9).unwrap().absent, [chunk]);
        let what = Erasure::Erased;
        erased::put(&mut tx, &other, &erased::Record { what, ..absent }).unwrap();
        assert_eq!(lost(&tx, &root, 9).unwrap().erased, Some(other));
    }
}
