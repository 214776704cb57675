//! Family `Object`: the object table, the authority on which chunks the cluster keeps.
//!
//! Counts change in the log entry that changes what refers to the chunk. Nothing is ever removed
//! here yet: an object without references remembers since when.

use atoll_proto::ChunkId;
use atoll_proto::master::ObjectKind;
use serde::{Deserialize, Serialize};

use super::counters::{self, Counter};
use super::{Family, Read, StoreError, Transaction};

/// The only pool there is: replicated chunks.
const POOL: u8 = 0;

/// A chunk the cluster keeps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Object {
    /// How many files, pages, lists and deploys refer to it.
    pub(crate) refs: u64,
    /// Its length in bytes.
    pub(crate) len: u32,
    /// What it holds. A page or list counts its children.
    pub(crate) kind: ObjectKind,
    /// Log index since when nothing refers to it; `None` while something does.
    pub(crate) zero_since: Option<u64>,
}

fn key(id: &ChunkId) -> Vec<u8> {
    Family::Object.key(&[&[POOL], &id.pg().0.to_be_bytes(), id.as_bytes()])
}

pub(crate) fn get(read: &impl Read, id: &ChunkId) -> Result<Option<Object>, StoreError> {
    read.get_value(&key(id))
}

pub(crate) fn has(read: &impl Read, id: &ChunkId) -> Result<bool, StoreError> {
    read.has(&key(id))
}

/// Whether the cluster keeps no chunk at all.
pub(crate) fn is_empty(read: &impl Read) -> Result<bool, StoreError> {
    let (from, to) = Family::Object.prefix(&[]);
    Ok(!read.any(&from, &to)?)
}

/// Sets what a chunk holds; one that is new has no references.
pub(crate) fn set_kind(
    tx: &mut Transaction<'_>,
    id: &ChunkId,
    len: u32,
    kind: ObjectKind,
    index: u64,
) -> Result<(), StoreError> {
    let object = match get(tx, id)? {
        Some(object) => Object { kind, ..object },
        None => Object { refs: 0, len, kind, zero_since: Some(index) },
    };
    tx.put_value(key(id), &object);
    Ok(())
}

/// One more thing refers to the chunk; a chunk that is new gets this length and kind.
pub(crate) fn add_ref(
    tx: &mut Transaction<'_>,
    id: &ChunkId,
    len: u32,
    kind: ObjectKind,
) -> Result<(), StoreError> {
    let mut object = get(tx, id)?.unwrap_or(Object { refs: 0, len, kind, zero_since: None });
    if object.refs == 0 {
        counters::add(tx, Counter::ChunksLive, 1)?;
    }
    object.refs += 1;
    object.zero_since = None;
    tx.put_value(key(id), &object);
    Ok(())
}

/// One thing fewer refers to the chunk.
pub(crate) fn drop_ref(
    tx: &mut Transaction<'_>,
    id: &ChunkId,
    index: u64,
) -> Result<(), StoreError> {
    let key = key(id);
    let missing = || StoreError::malformed(&key, &"a chunk lost a reference it did not have");
    let mut object: Object = tx.get_value(&key)?.ok_or_else(missing)?;
    object.refs = object.refs.checked_sub(1).ok_or_else(missing)?;
    if object.refs == 0 {
        counters::add(tx, Counter::ChunksLive, -1)?;
        object.zero_since = Some(index);
    }
    tx.put_value(key, &object);
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::super::testing::TestStore;
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn objects_round_trip(id: [u8; 32], len: u32, adds in 1u64..5) {
            let store = TestStore::new();
            let id = ChunkId(id);
            let mut tx = Transaction::new(&store.rocks);
            for _ in 0..adds {
                add_ref(&mut tx, &id, len, ObjectKind::Data).unwrap();
            }
            tx.commit().unwrap();
            let object = Object { refs: adds, len, kind: ObjectKind::Data, zero_since: None };
            prop_assert_eq!(get(&store.rocks, &id).unwrap(), Some(object));
            prop_assert_eq!(counters::get(&store.rocks, Counter::ChunksLive).unwrap(), 1);
            let mut tx = Transaction::new(&store.rocks);
            for _ in 0..adds {
                drop_ref(&mut tx, &id, 99).unwrap();
            }
            prop_assert_eq!(get(&tx, &id).unwrap().unwrap().zero_since, Some(99));
            prop_assert_eq!(counters::get(&tx, Counter::ChunksLive).unwrap(), 0);
            prop_assert!(drop_ref(&mut tx, &id, 100).is_err());
            prop_assert!(!is_empty(&tx).unwrap());
        }
    }
}
