//! Family `Counter`: numbers that only the state machine changes.

use super::{Family, Read, StoreError, Transaction};

/// Which number. Numbers of counters are stable on disk: only append.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Counter {
    /// The last inode number given out.
    LastInode = 1,
    /// The last session id given out.
    LastSession = 2,
    /// The last public token id given out.
    LastToken = 3,
    /// Inodes in use.
    Inodes = 4,
    /// Entries of the object table with references.
    ChunksLive = 5,
    /// Seq of the latest entry of the publish log.
    PublishSeq = 6,
    /// Seq of the latest entry that was dropped from the publish log; 0 when none was.
    PublishFloor = 7,
    /// Entries in the publish log.
    PublishEntries = 8,
    /// Epoch of the placement table.
    Epoch = 9,
    /// Log index of the last change of nodes or placement.
    ViewChanged = 10,
    /// Log index up to which deltas were dropped; 0 when none was.
    DeltaFloor = 11,
    /// Deltas that are kept.
    DeltaEntries = 12,
    /// How often an operator released what was frozen or halted.
    CollectionRelease = 13,
    /// How often an operator asked for a scrub.
    ScrubAsked = 14,
    /// Entries of the object table without references.
    Unreferenced = 15,
    /// References that were given up but had never been counted: something is wrong with the
    /// counts until the auditor has looked.
    Miscounts = 16,
    /// Log index of the latest delta.
    DeltaLast = 17,
    /// Chunks that were ever erased.
    Erased = 18,
    /// Log index of the latest change of one.
    ErasedLast = 19,
    /// Log index at which the list of erased chunks began anew, when the state was restored.
    ErasedBegan = 20,
}

fn key(counter: Counter) -> Vec<u8> {
    Family::Counter.key(&[&[counter as u8]])
}

/// The number; 0 when it was never set.
pub(crate) fn get(read: &impl Read, counter: Counter) -> Result<u64, StoreError> {
    let key = key(counter);
    match read.get(&key)? {
        None => Ok(0),
        Some(bytes) => <[u8; 8]>::try_from(bytes.as_slice())
            .map(u64::from_be_bytes)
            .map_err(|error| StoreError::malformed(&key, &error)),
    }
}

pub(crate) fn set(tx: &mut Transaction<'_>, counter: Counter, value: u64) {
    tx.put(key(counter), value.to_be_bytes().to_vec());
}

/// Adds and returns the sum. A sum below zero is a bug elsewhere and reported as such.
pub(crate) fn add(
    tx: &mut Transaction<'_>,
    counter: Counter,
    delta: i64,
) -> Result<u64, StoreError> {
    let sum = get(tx, counter)?
        .checked_add_signed(delta)
        .ok_or_else(|| StoreError::malformed(&key(counter), &"the counter left its range"))?;
    set(tx, counter, sum);
    Ok(sum)
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
        fn counters_round_trip(values in proptest::collection::vec(any::<u64>(), 3)) {
            let store = TestStore::new();
            let counters = [Counter::LastInode, Counter::Epoch, Counter::ViewChanged];
            let mut tx = Transaction::new(&store.rocks);
            for (counter, value) in counters.iter().zip(&values) {
                set(&mut tx, *counter, *value);
            }
            tx.commit().unwrap();
            for (counter, value) in counters.iter().zip(&values) {
                prop_assert_eq!(get(&store.rocks, *counter).unwrap(), *value);
            }
        }
    }

    #[test]
    fn below_zero_is_an_error() {
        let store = TestStore::new();
        let mut tx = Transaction::new(&store.rocks);
        assert_eq!(add(&mut tx, Counter::Inodes, 2).unwrap(), 2);
        assert_eq!(add(&mut tx, Counter::Inodes, -2).unwrap(), 0);
        assert!(add(&mut tx, Counter::Inodes, -1).is_err());
    }
}
