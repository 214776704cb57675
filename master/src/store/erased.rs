//! Families `Erased` and `ErasedByIndex`: chunks that were taken down.
//!
//! An erased object stays in the object table as long as something refers to it, so that counts
//! stay right; but it is *hidden*: chunkservers are told that it was collected, and it is in no
//! digest ([`super::objects`] sees to that). An entry is never removed: who was away must learn
//! that it was lifted.

use atoll_proto::erase::{Erased, Erasure};
use atoll_proto::{ChunkId, Epoch};
use serde::{Deserialize, Serialize};

use super::counters::{self, Counter};
use super::{Family, Order, Read, StoreError, Transaction, u64_at};

/// What is kept of a chunk that was ever erased.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Log index of its last change.
    pub(crate) index: u64,
    /// What holds for it.
    pub(crate) what: Erasure,
    /// Lifted, and not uploaded since: the object table may have it, but its bytes are nowhere.
    pub(crate) absent: bool,
    /// Receipts of earlier epochs count for nothing: they are for bytes that were erased since.
    pub(crate) epoch: Epoch,
}

impl Record {
    /// Whether an object of the table is to be on no chunkserver.
    pub(crate) fn is_hidden(&self) -> bool {
        match self.what {
            Erasure::Erased => true,
            Erasure::Lifted => self.absent,
            Erasure::Withheld => false,
        }
    }
}

fn key(id: &ChunkId) -> Vec<u8> {
    Family::Erased.key(&[id.as_bytes()])
}

fn index_key(index: u64, id: &ChunkId) -> Vec<u8> {
    Family::ErasedByIndex.key(&[&index.to_be_bytes(), id.as_bytes()])
}

/// What is known of a chunk; `None` for one that was never erased.
pub(crate) fn get(read: &impl Read, id: &ChunkId) -> Result<Option<Record>, StoreError> {
    read.get_value(&key(id))
}

/// Whether an object of the table is to be on no chunkserver.
pub(crate) fn is_hidden(read: &impl Read, id: &ChunkId) -> Result<bool, StoreError> {
    Ok(get(read, id)?.is_some_and(|record| record.is_hidden()))
}

/// Whether nothing may refer to the chunk anew.
pub(crate) fn is_refused(read: &impl Read, id: &ChunkId) -> Result<bool, StoreError> {
    Ok(get(read, id)?.is_some_and(|record| record.what == Erasure::Erased))
}

/// Whether the table has an object whose bytes have to be uploaded before anything may refer to it.
pub(crate) fn is_absent(read: &impl Read, id: &ChunkId) -> Result<bool, StoreError> {
    Ok(get(read, id)?.is_some_and(|record| record.what == Erasure::Lifted && record.absent))
}

/// Whether a receipt of this epoch can be for bytes that are there now.
pub(crate) fn admits_receipt(
    read: &impl Read,
    id: &ChunkId,
    epoch: Epoch,
) -> Result<bool, StoreError> {
    let record = get(read, id)?;
    Ok(record.is_none_or(|record| match record.what {
        Erasure::Erased => false,
        Erasure::Lifted => epoch >= record.epoch,
        Erasure::Withheld => true,
    }))
}

/// How many there are.
pub(crate) fn count(read: &impl Read) -> Result<u64, StoreError> {
    counters::get(read, Counter::Erased)
}

/// Log index of the latest change; not before the list began.
pub(crate) fn last(read: &impl Read) -> Result<u64, StoreError> {
    Ok(counters::get(read, Counter::ErasedLast)?.max(began(read)?))
}

/// Log index at which the list began: 0, or where the state was restored.
pub(crate) fn began(read: &impl Read) -> Result<u64, StoreError> {
    counters::get(read, Counter::ErasedBegan)
}

/// Those who follow the list are to say that they have it up to here, whether or not anything of it
/// has changed.
pub(crate) fn ask_anew(tx: &mut Transaction<'_>, index: u64) -> Result<(), StoreError> {
    let last = last(tx)?.max(index);
    counters::set(tx, Counter::ErasedLast, last);
    Ok(())
}

/// The list is another than those who followed it know, although it may look the same: the state
/// was restored.
pub(crate) fn begin_at(tx: &mut Transaction<'_>, index: u64) {
    counters::set(tx, Counter::ErasedBegan, index);
}

/// Sets what holds for a chunk.
pub(super) fn put(
    tx: &mut Transaction<'_>,
    id: &ChunkId,
    record: &Record,
) -> Result<(), StoreError> {
    match get(tx, id)? {
        Some(before) => tx.delete(index_key(before.index, id)),
        None => drop(counters::add(tx, Counter::Erased, 1)?),
    }
    tx.put(index_key(record.index, id), Vec::new());
    tx.put_value(key(id), record);
    let last = counters::get(tx, Counter::ErasedLast)?.max(record.index);
    counters::set(tx, Counter::ErasedLast, last);
    Ok(())
}

/// Up to about `limit` chunks that changed after a log index, in order; all that changed at one
/// index are together. Says whether that is all.
pub(crate) fn after(
    read: &impl Read,
    index: u64,
    limit: usize,
) -> Result<(Vec<Erased>, bool), StoreError> {
    let from = Family::ErasedByIndex.key(&[&index.saturating_add(1).to_be_bytes()]);
    let (_, to) = Family::ErasedByIndex.prefix(&[]);
    let (mut rows, mut end) = (Vec::new(), true);
    read.scan(&from, &to, Order::Ascending, &mut |key, _| {
        let index = u64_at(key, 1)?;
        if rows.len() >= limit && rows.last().is_some_and(|(last, _)| *last != index) {
            end = false;
            return Ok(false);
        }
        rows.push((index, id_at(key, 9)?));
        Ok(true)
    })?;
    let mut found = Vec::with_capacity(rows.len());
    for (index, id) in rows {
        let record = get(read, &id)?;
        let record = record.ok_or_else(|| StoreError::malformed(&key(&id), &"it is missing"))?;
        found.push(Erased { index, id, what: record.what });
    }
    Ok((found, end))
}

/// The chunks of a range of ids that are hidden, sorted.
pub(super) fn hidden_between(
    read: &impl Read,
    low: &ChunkId,
    high: &ChunkId,
) -> Result<Vec<ChunkId>, StoreError> {
    let mut to = key(high);
    to.push(0);
    let mut hidden = Vec::new();
    read.scan(&key(low), &to, Order::Ascending, &mut |key, value| {
        let record: Record = super::decode(key, value)?;
        if record.is_hidden() {
            hidden.push(id_at(key, 1)?);
        }
        Ok(true)
    })?;
    Ok(hidden)
}

fn id_at(key: &[u8], at: usize) -> Result<ChunkId, StoreError> {
    let id = key.get(at..).and_then(|id| <[u8; 32]>::try_from(id).ok());
    id.map(ChunkId).ok_or_else(|| StoreError::malformed(key, &"not a chunk id"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::super::testing::TestStore;
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_restored_list_begins_where_nobody_has_been() {
        let store = TestStore::new();
        let mut tx = Transaction::new(&store.rocks);
        let record = Record { index: 7, what: Erasure::Erased, absent: true, epoch: Epoch(0) };
        put(&mut tx, &ChunkId::of(b"a"), &record).unwrap();
        assert_eq!((began(&tx).unwrap(), last(&tx).unwrap()), (0, 7));
        begin_at(&mut tx, 900);
        assert_eq!((began(&tx).unwrap(), last(&tx).unwrap()), (900, 900));
        put(&mut tx, &ChunkId::of(b"b"), &Record { index: 901, ..record }).unwrap();
        assert_eq!(last(&tx).unwrap(), 901);
        assert_eq!(after(&tx, 0, 9).unwrap().0.len(), 2, "what is older is told too");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn erased_round_trip_in_order_of_change(
            changes in proptest::collection::vec((any::<u8>(), 0u8..3), 1..40), limit in 1usize..9,
        ) {
            let store = TestStore::new();
            let mut tx = Transaction::new(&store.rocks);
            let mut expected: Vec<Erased> = Vec::new();
            for (at, (n, kind)) in changes.iter().enumerate() {
                // Three changes in one entry.
                let index = 10 + at as u64 / 3;
                let id = ChunkId::of(&[*n]);
                let what = [Erasure::Erased, Erasure::Withheld, Erasure::Lifted][usize::from(*kind)];
                let record = Record { index, what, absent: true, epoch: Epoch(3) };
                put(&mut tx, &id, &record).unwrap();
                prop_assert_eq!(get(&tx, &id).unwrap(), Some(record));
                expected.retain(|erased| erased.id != id);
                expected.push(Erased { index, id, what });
            }
            tx.commit().unwrap();
            expected.sort_by_key(|erased| (erased.index, erased.id));
            prop_assert_eq!(count(&store.rocks).unwrap(), expected.len() as u64);
            let (mut found, mut index) = (Vec::new(), 0);
            loop {
                let (some, end) = after(&store.rocks, index, limit).unwrap();
                prop_assert!(some.len() < limit + 3);
                index = some.last().map_or(index, |last| last.index);
                found.extend(some);
                if end {
                    break;
                }
            }
            prop_assert_eq!(&found, &expected);
            let all = hidden_between(&store.rocks, &ChunkId([0; 32]), &ChunkId([0xff; 32])).unwrap();
            let hidden = expected.iter().filter(|it| it.what != Erasure::Withheld).count();
            prop_assert_eq!(all.len(), hidden);
            prop_assert!(all.is_sorted());
        }
    }
}
