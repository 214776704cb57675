//! What follows from a change of records: the totals, the buckets' digests, and which groups have
//! to be compared anew. Plain functions, used by all back ends.

use std::sync::atomic::{AtomicU64, Ordering};

use atoll_proto::tree::{SetHash, bucket_of};
use atoll_proto::{ChunkId, PgId, ids::PG_COUNT};

use super::record::{Body, Record};

/// What the store counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Chunks that are present.
    pub chunks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Chunks ever found corrupt.
    pub corrupt_found: u64,
    /// Chunks in quarantine.
    pub quarantined: u64,
    /// Chunks that are live and not here in good order.
    pub lacking: u64,
    /// Chunks ever that were lacking and are here again.
    pub repaired: u64,
}

/// What a chunk's place in the trees is called: its group and the bucket within it.
pub(super) type BucketKey = (PgId, u8);

/// The live and present chunks of one bucket, summed up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Bucket {
    /// The set of their ids.
    pub(super) digest: SetHash,
    /// How many there are.
    pub(super) count: u32,
}

/// Groups whose digests changed, until somebody asks.
#[derive(Debug)]
pub(super) struct ChangedGroups([AtomicU64; PG_COUNT as usize / 64]);

impl Totals {
    /// Counts a record that was `old` and is `new`.
    pub(super) fn change(&mut self, old: Option<&Record>, new: Option<&Record>) {
        let is = |record: Option<&Record>, body| record.is_some_and(|it| it.body == body);
        let lacked = old.is_some_and(Record::is_lacking);
        for (record, count) in
            [(old, u64::wrapping_sub as fn(u64, u64) -> u64), (new, u64::wrapping_add)]
        {
            let Some(record) = record else { continue };
            if record.body == Body::Present {
                self.chunks = count(self.chunks, 1);
                self.bytes = count(self.bytes, u64::from(record.len));
            }
            if record.body == Body::Quarantined {
                self.quarantined = count(self.quarantined, 1);
            }
            if record.is_lacking() {
                self.lacking = count(self.lacking, 1);
            }
        }
        if is(new, Body::Corrupt) && !is(old, Body::Corrupt) {
            self.corrupt_found += 1;
        }
        if lacked && new.is_some_and(Record::counts) {
            self.repaired += 1;
        }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let Self { chunks, bytes, corrupt_found, quarantined, lacking, repaired } = *self;
        [chunks, bytes, corrupt_found, quarantined, lacking, repaired]
            .map(u64::to_be_bytes)
            .concat()
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (words, []) = bytes.as_chunks::<8>() else { return None };
        let words: &[[u8; 8]; 6] = words.try_into().ok()?;
        let [chunks, bytes, corrupt_found, quarantined, lacking, repaired] =
            words.map(u64::from_be_bytes);
        Some(Self { chunks, bytes, corrupt_found, quarantined, lacking, repaired })
    }
}

impl Bucket {
    /// Follows a record of this bucket that was `old` and is `new`. True if that changed it.
    pub(super) fn change(
        &mut self,
        id: &ChunkId,
        old: Option<&Record>,
        new: Option<&Record>,
    ) -> bool {
        match (old.is_some_and(Record::counts), new.is_some_and(Record::counts)) {
            (false, true) => {
                self.digest.insert(id);
                self.count = self.count.wrapping_add(1);
                true
            }
            (true, false) => {
                self.digest.remove(id);
                self.count = self.count.wrapping_sub(1);
                true
            }
            (true, true) | (false, false) => false,
        }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        [&self.digest.to_bytes()[..], &self.count.to_be_bytes()].concat()
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (digest, count) = bytes.split_first_chunk()?;
        let count = u32::from_be_bytes(count.try_into().ok()?);
        Some(Self { digest: SetHash::from_bytes(digest), count })
    }
}

/// The bucket of a chunk.
pub(super) fn bucket_key(id: &ChunkId) -> BucketKey {
    (id.pg(), bucket_of(id))
}

impl ChangedGroups {
    /// Every group counts as changed: nobody has looked yet.
    pub(super) fn all() -> Self {
        Self(std::array::from_fn(|_| AtomicU64::new(u64::MAX)))
    }

    /// To be called once the change can be read: whoever drains and then reads must not miss it.
    pub(super) fn note(&self, pg: PgId) {
        if let Some(word) = self.0.get(usize::from(pg.0 / 64)) {
            word.fetch_or(1 << (pg.0 % 64), Ordering::AcqRel);
        }
    }

    /// As if all had been noted.
    pub(super) fn note_all(&self) {
        for word in &self.0 {
            word.store(u64::MAX, Ordering::Release);
        }
    }

    /// The groups noted since the last call, in order.
    pub(super) fn drain(&self) -> Vec<PgId> {
        let mut out = Vec::new();
        for (first, word) in (0u16..).step_by(64).zip(&self.0) {
            let mut bits = word.swap(0, Ordering::AcqRel);
            while bits != 0 {
                let lowest = bits.trailing_zeros();
                bits &= bits - 1;
                out.push(PgId(first + u16::try_from(lowest).unwrap_or_default()));
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn totals_round_trip(words: [u64; 6], noise: Vec<u8>) {
            let [chunks, bytes, corrupt_found, quarantined, lacking, repaired] = words;
            let totals = Totals { chunks, bytes, corrupt_found, quarantined, lacking, repaired };
            prop_assert_eq!(Totals::decode(&totals.encode()), Some(totals));
            prop_assert_eq!(Totals::decode(&noise).is_some(), noise.len() == 48);
        }

        #[test]
        fn buckets_round_trip(digest: [u8; 32], count: u32, noise: Vec<u8>) {
            let bucket = Bucket { digest: SetHash::from_bytes(&digest), count };
            prop_assert_eq!(Bucket::decode(&bucket.encode()), Some(bucket));
            prop_assert_eq!(Bucket::decode(&noise).is_some(), noise.len() == 36);
        }

        #[test]
        fn changed_groups_are_told_once(groups in prop::collection::btree_set(0..PG_COUNT, 0..50)) {
            let changed = ChangedGroups::all();
            prop_assert_eq!(changed.drain().len(), usize::from(PG_COUNT));
            for pg in groups.iter().chain(&groups) {
                changed.note(PgId(*pg));
            }
            let drained: Vec<u16> = changed.drain().into_iter().map(|pg| pg.0).collect();
            prop_assert_eq!(drained, groups.into_iter().collect::<Vec<u16>>());
            prop_assert!(changed.drain().is_empty());
        }
    }
}
