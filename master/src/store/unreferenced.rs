//! Family `Unreferenced`: the objects that nothing refers to, oldest first, so that collection
//! finds them without looking at the others. Written by [`super::objects`] only.

use atoll_proto::ChunkId;

use super::counters::{self, Counter};
use super::{Family, Order, Read, StoreError, Transaction, u64_at};

fn key(at_ms: u64, id: &ChunkId) -> Vec<u8> {
    Family::Unreferenced.key(&[&at_ms.to_be_bytes(), id.as_bytes()])
}

/// Nothing refers to the object since then.
pub(super) fn insert(tx: &mut Transaction<'_>, at_ms: u64, id: &ChunkId) -> Result<(), StoreError> {
    tx.put(key(at_ms, id), Vec::new());
    counters::add(tx, Counter::Unreferenced, 1).map(drop)
}

/// Something does again, or it is collected.
pub(super) fn remove(tx: &mut Transaction<'_>, at_ms: u64, id: &ChunkId) -> Result<(), StoreError> {
    tx.delete(key(at_ms, id));
    counters::add(tx, Counter::Unreferenced, -1).map(drop)
}

/// How many there are.
pub(crate) fn count(read: &impl Read) -> Result<u64, StoreError> {
    counters::get(read, Counter::Unreferenced)
}

/// Up to `limit` objects that nothing refers to since before `before_ms`, oldest first, after the
/// one named by `after`.
pub(crate) fn older(
    read: &impl Read,
    before_ms: u64,
    after: Option<&(u64, ChunkId)>,
    limit: usize,
) -> Result<Vec<(u64, ChunkId)>, StoreError> {
    let mut found = Vec::new();
    let from = match after {
        // The key right behind it.
        Some((at_ms, id)) => {
            let mut key = key(*at_ms, id);
            key.push(0);
            key
        }
        None => Family::Unreferenced.key(&[]),
    };
    let to = Family::Unreferenced.key(&[&before_ms.to_be_bytes()]);
    if limit == 0 || from >= to {
        return Ok(found);
    }
    read.scan(&from, &to, Order::Ascending, &mut |key, _| {
        let id = key.get(9..).and_then(|id| <[u8; 32]>::try_from(id).ok());
        let id = id.ok_or_else(|| StoreError::malformed(key, &"not a chunk id"))?;
        found.push((u64_at(key, 1)?, ChunkId(id)));
        Ok(found.len() < limit)
    })?;
    Ok(found)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::super::testing::TestStore;
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn unreferenced_round_trip_oldest_first(
            rows in proptest::collection::btree_set((0u64..50, any::<u8>()), 0..30),
            before in 0u64..60, limit in 1usize..10,
        ) {
            let store = TestStore::new();
            let mut tx = Transaction::new(&store.rocks);
            let mut expected = Vec::new();
            for (at_ms, n) in &rows {
                let id = ChunkId::of(&[*n]);
                insert(&mut tx, *at_ms, &id).unwrap();
                expected.push((*at_ms, id));
            }
            tx.commit().unwrap();
            prop_assert_eq!(count(&store.rocks).unwrap(), expected.len() as u64);
            expected.sort();
            expected.retain(|(at_ms, _)| *at_ms < before);
            let mut found = Vec::new();
            loop {
                let part = older(&store.rocks, before, found.last(), limit).unwrap();
                prop_assert!(part.len() <= limit);
                if part.is_empty() {
                    break;
                }
                found.extend(part);
            }
            prop_assert_eq!(&found, &expected);
            let mut tx = Transaction::new(&store.rocks);
            for (at_ms, n) in &rows {
                remove(&mut tx, *at_ms, &ChunkId::of(&[*n])).unwrap();
            }
            prop_assert!(older(&tx, u64::MAX, None, 1).unwrap().is_empty());
            prop_assert_eq!(count(&tx).unwrap(), 0);
        }
    }
}
