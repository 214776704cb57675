//! Family `Delta`: which chunks became live and which were collected, in the order of the log.
//!
//! Chunkservers tail it. It reaches back a bounded number of deltas; who is further behind compares
//! trees instead. Written by [`super::objects`] only.

use atoll_proto::ChunkId;
use atoll_proto::master::Delta;
use serde::{Deserialize, Serialize};

use super::counters::{self, Counter};
use super::{Family, Order, Read, StoreError, Transaction, decode, u64_at};

/// A delta as it is stored; its log index is in the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Row {
    id: ChunkId,
    live: bool,
}

fn key(index: u64, ordinal: u32) -> Vec<u8> {
    Family::Delta.key(&[&index.to_be_bytes(), &ordinal.to_be_bytes()])
}

/// Adds a delta of the log entry that is being applied.
pub(super) fn append(
    tx: &mut Transaction<'_>,
    index: u64,
    id: &ChunkId,
    live: bool,
) -> Result<(), StoreError> {
    let key = key(index, tx.next_ordinal());
    tx.put_value(key, &Row { id: *id, live });
    counters::add(tx, Counter::DeltaEntries, 1)?;
    counters::set(tx, Counter::DeltaLast, index);
    Ok(())
}

/// Log index up to which deltas may be missing: 0 when none ever was dropped.
pub(crate) fn floor(read: &impl Read) -> Result<u64, StoreError> {
    counters::get(read, Counter::DeltaFloor)
}

/// Log index of the latest delta.
pub(crate) fn last(read: &impl Read) -> Result<u64, StoreError> {
    counters::get(read, Counter::DeltaLast)
}

/// How many are kept now.
pub(crate) fn count(read: &impl Read) -> Result<u64, StoreError> {
    counters::get(read, Counter::DeltaEntries)
}

/// Visits the deltas of log indexes greater than `after`, in order; `false` ends it.
pub(crate) fn after(
    read: &impl Read,
    after: u64,
    visit: &mut dyn FnMut(Delta) -> bool,
) -> Result<(), StoreError> {
    let (_, to) = Family::Delta.prefix(&[]);
    let from = key(after.saturating_add(1), 0);
    read.scan(&from, &to, Order::Ascending, &mut |key, value| {
        let Row { id, live } = decode(key, value)?;
        Ok(visit(Delta { index: u64_at(key, 1)?, id, live }))
    })
}

/// Drops the oldest deltas beyond `keep`, at least those of one log index and about `most` at a
/// time. All of one index go together, so that the floor says exactly what is left.
pub(crate) fn expire(tx: &mut Transaction<'_>, keep: u64, most: usize) -> Result<(), StoreError> {
    let excess = count(tx)?.saturating_sub(keep);
    let wanted = usize::try_from(excess).unwrap_or(usize::MAX).min(most);
    if wanted == 0 {
        return Ok(());
    }
    let (from, to) = Family::Delta.prefix(&[]);
    let mut keys: Vec<Vec<u8>> = Vec::new();
    let mut floor = 0;
    tx.scan(&from, &to, Order::Ascending, &mut |key, _| {
        let index = u64_at(key, 1)?;
        if keys.len() >= wanted && index != floor {
            return Ok(false);
        }
        floor = index;
        keys.push(key.to_vec());
        Ok(true)
    })?;
    let dropped = i64::try_from(keys.len()).unwrap_or(i64::MAX);
    counters::add(tx, Counter::DeltaEntries, -dropped)?;
    counters::set(tx, Counter::DeltaFloor, floor);
    for key in keys {
        tx.delete(key);
    }
    Ok(())
}

/// Drops all of them: nobody's position is within reach any more.
pub(crate) fn drop_all(tx: &mut Transaction<'_>, floor: u64) -> Result<(), StoreError> {
    let (from, to) = Family::Delta.prefix(&[]);
    let mut keys: Vec<Vec<u8>> = Vec::new();
    tx.scan(&from, &to, Order::Ascending, &mut |key, _| {
        keys.push(key.to_vec());
        Ok(true)
    })?;
    for key in keys {
        tx.delete(key);
    }
    counters::set(tx, Counter::DeltaEntries, 0);
    counters::set(tx, Counter::DeltaFloor, floor);
    counters::set(tx, Counter::DeltaLast, floor);
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::super::testing::TestStore;
    use super::*;
    use proptest::prelude::*;

    fn all(read: &impl Read, from: u64) -> Vec<Delta> {
        let mut found = Vec::new();
        after(read, from, &mut |delta| {
            found.push(delta);
            true
        })
        .unwrap();
        found
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn deltas_round_trip_in_order_and_expire_by_whole_entries(
            sizes in proptest::collection::vec(0usize..5, 1..12), keep in 0u64..20,
        ) {
            let store = TestStore::new();
            let mut expected = Vec::new();
            for (number, size) in sizes.iter().enumerate() {
                let index = 10 + 3 * number as u64;
                let mut tx = Transaction::new(&store.rocks);
                for n in 0..*size {
                    let id = ChunkId::of(&[number as u8, n as u8]);
                    let live = n % 2 == 0;
                    append(&mut tx, index, &id, live).unwrap();
                    expected.push(Delta { index, id, live });
                }
                tx.commit().unwrap();
            }
            prop_assert_eq!(&all(&store.rocks, 0), &expected);
            prop_assert_eq!(count(&store.rocks).unwrap(), expected.len() as u64);
            let last_index = expected.last().map_or(0, |delta| delta.index);
            prop_assert_eq!(last(&store.rocks).unwrap(), last_index);
            for from in [9, 10, 11, 13, 100] {
                let later: Vec<_> =
                    expected.iter().filter(|delta| delta.index > from).copied().collect();
                prop_assert_eq!(all(&store.rocks, from), later);
            }
            let mut tx = Transaction::new(&store.rocks);
            expire(&mut tx, keep, 1000).unwrap();
            tx.commit().unwrap();
            let floor = floor(&store.rocks).unwrap();
            let kept: Vec<_> =
                expected.iter().filter(|delta| delta.index > floor).copied().collect();
            prop_assert_eq!(&all(&store.rocks, 0), &kept);
            prop_assert!(kept.len() as u64 <= keep);
            prop_assert_eq!(count(&store.rocks).unwrap(), kept.len() as u64);
            let mut tx = Transaction::new(&store.rocks);
            drop_all(&mut tx, 999).unwrap();
            prop_assert!(all(&tx, 0).is_empty());
        }
    }
}
