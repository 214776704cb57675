//! Family `Bucket`: the digests of the live ids, by placement group and bucket.
//!
//! What a chunkserver has is compared with these, level by level ([`atoll_proto::tree`]). Written
//! by [`super::objects`] only.

use atoll_proto::tree::{BUCKETS, Digest, SetHash, bucket_of};
use atoll_proto::{ChunkId, PgId};
use serde::{Deserialize, Serialize};

use super::{Family, Order, POOL, Read, StoreError, Transaction, decode};

/// A bucket that is not empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Bucket {
    /// The set hash of its ids.
    pub(crate) digest: Digest,
    /// How many there are.
    pub(crate) count: u32,
}

fn key(pg: PgId, bucket: u8) -> Vec<u8> {
    Family::Bucket.key(&[&[POOL], &pg.0.to_be_bytes(), &[bucket]])
}

/// The bucket a chunk is in; `None` for an empty one.
#[cfg(test)]
pub(crate) fn get(read: &impl Read, id: &ChunkId) -> Result<Option<Bucket>, StoreError> {
    read.get_value(&key(id.pg(), bucket_of(id)))
}

/// A chunk that was not in the table is now.
pub(super) fn insert(tx: &mut Transaction<'_>, id: &ChunkId) -> Result<(), StoreError> {
    let key = key(id.pg(), bucket_of(id));
    let Bucket { digest, count } =
        tx.get_value(&key)?.unwrap_or(Bucket { digest: Digest::default(), count: 0 });
    let mut hash = SetHash::from_bytes(&digest);
    hash.insert(id);
    let count = count.checked_add(1);
    let count = count.ok_or_else(|| StoreError::malformed(&key, &"a bucket is full"))?;
    tx.put_value(key, &Bucket { digest: hash.to_bytes(), count });
    Ok(())
}

/// A chunk that was in the table is not any more.
pub(super) fn remove(tx: &mut Transaction<'_>, id: &ChunkId) -> Result<(), StoreError> {
    let key = key(id.pg(), bucket_of(id));
    let missing = || StoreError::malformed(&key, &"a bucket lost a chunk it did not have");
    let Bucket { digest, count } = tx.get_value(&key)?.ok_or_else(missing)?;
    let mut hash = SetHash::from_bytes(&digest);
    hash.remove(id);
    match count.checked_sub(1).ok_or_else(missing)? {
        0 => tx.delete(key),
        count => tx.put_value(key, &Bucket { digest: hash.to_bytes(), count }),
    }
    Ok(())
}

/// The digests of all buckets of a group: the leaves of its tree.
pub(crate) fn leaves(read: &impl Read, pg: PgId) -> Result<Box<[Digest; BUCKETS]>, StoreError> {
    let mut leaves = Box::new([Digest::default(); BUCKETS]);
    let (from, to) = Family::Bucket.prefix(&[&[POOL], &pg.0.to_be_bytes()]);
    read.scan(&from, &to, Order::Ascending, &mut |key, value| {
        let bucket: Bucket = decode(key, value)?;
        let number = key.get(4).copied();
        let number = number.ok_or_else(|| StoreError::malformed(key, &"the key is too short"))?;
        leaves[usize::from(number)] = bucket.digest;
        Ok(true)
    })?;
    Ok(leaves)
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
        fn buckets_round_trip(mut numbers in proptest::collection::vec(any::<u32>(), 1..20)) {
            numbers.sort_unstable();
            numbers.dedup();
            let store = TestStore::new();
            // All in one group and bucket: what differs is behind the 20th bit.
            let ids: Vec<ChunkId> = numbers
                .iter()
                .map(|n| {
                    let mut bytes = [0xab; 32];
                    bytes[28..].copy_from_slice(&n.to_be_bytes());
                    ChunkId(bytes)
                })
                .collect();
            let mut tx = Transaction::new(&store.rocks);
            let mut hash = SetHash::default();
            for id in &ids {
                insert(&mut tx, id).unwrap();
                hash.insert(id);
            }
            tx.commit().unwrap();
            let bucket = get(&store.rocks, &ids[0]).unwrap().unwrap();
            prop_assert_eq!(bucket, Bucket {
                digest: hash.to_bytes(),
                count: u32::try_from(ids.len()).unwrap(),
            });
            let pg = ids[0].pg();
            let leaves = leaves(&store.rocks, pg).unwrap();
            prop_assert_eq!(leaves[usize::from(bucket_of(&ids[0]))], bucket.digest);
            prop_assert_eq!(leaves.iter().filter(|leaf| **leaf != [0; 32]).count(), 1);
            let mut tx = Transaction::new(&store.rocks);
            for id in &ids {
                remove(&mut tx, id).unwrap();
            }
            prop_assert_eq!(get(&tx, &ids[0]).unwrap(), None);
            prop_assert!(remove(&mut tx, &ids[0]).is_err());
        }
    }
}
