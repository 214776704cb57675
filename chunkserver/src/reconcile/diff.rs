//! What two sides disagree on, one level at a time: plain functions, tested by the thousand.
//!
//! [`super::walk`] calls them with what the other side answered, which may be anything: whatever
//! is not exactly as it must be is an error, and the caller gives up.

use atoll_proto::tree::{BUCKETS, Digest, SetHash, bucket_of};
use atoll_proto::{ChunkId, PgId};

/// The ids on which two sides disagree.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Difference {
    /// There and not here.
    pub(crate) missing: Vec<ChunkId>,
    /// Here and not there.
    pub(crate) extra: Vec<ChunkId>,
}

/// The places at which two lists of digests differ.
///
/// # Errors
/// When they do not have the same number.
pub(crate) fn differing(here: &[Digest], there: &[Digest]) -> Result<Vec<usize>, String> {
    if here.len() != there.len() {
        return Err(format!("{} digests instead of {}", there.len(), here.len()));
    }
    let pairs = here.iter().zip(there).enumerate();
    Ok(pairs.filter(|(_, (here, there))| here != there).map(|(at, _)| at).collect())
}

/// What differs between two sorted lists of ids.
pub(crate) fn compare_ids(here: &[ChunkId], there: &[ChunkId]) -> Difference {
    let mut difference = Difference::default();
    let (mut ours, mut theirs) = (here.iter().peekable(), there.iter().peekable());
    loop {
        match (ours.peek(), theirs.peek()) {
            (Some(our), Some(their)) if our == their => {
                ours.next();
                theirs.next();
            }
            (Some(our), their) if their.is_none_or(|their| our < their) => {
                difference.extra.push(**our);
                ours.next();
            }
            (_, Some(their)) => {
                difference.missing.push(**their);
                theirs.next();
            }
            (Some(_), None) | (None, None) => return difference,
        }
    }
}

/// Checks that an answer is a bucket's ids: of that bucket, sorted, none twice; and, where it is
/// known, exactly those that its digest sums up.
///
/// # Errors
/// When it is not.
pub(crate) fn check_ids(
    pg: PgId,
    bucket: u8,
    ids: &[ChunkId],
    digest: Option<&Digest>,
) -> Result<(), String> {
    if let Some(id) = ids.iter().find(|id| id.pg() != pg || bucket_of(id) != bucket) {
        return Err(format!("chunk {id} is not in bucket {bucket} of group {}", pg.0));
    }
    if !ids.is_sorted_by(|one, next| one < next) {
        return Err(format!("the ids of bucket {bucket} of group {} are not in order", pg.0));
    }
    let Some(digest) = digest else { return Ok(()) };
    let mut sum = SetHash::default();
    ids.iter().for_each(|id| sum.insert(id));
    if sum.to_bytes() == *digest {
        return Ok(());
    }
    Err(format!("the ids of bucket {bucket} of group {} are not those of its digest", pg.0))
}

/// The number of a bucket among all buckets of all groups: the first 20 bits of its ids.
fn place(pg: PgId, bucket: u8) -> u32 {
    u32::from(pg.0) * 256 + u32::from(bucket)
}

/// The greatest id before a bucket's first, to start a list after; `None` when there is none.
pub(crate) fn before(pg: PgId, bucket: u8) -> Option<ChunkId> {
    let number = place(pg, bucket).checked_sub(1)?;
    let mut bytes = [0xff; 32];
    bytes[..4].copy_from_slice(&((number << 12) | 0xfff).to_be_bytes());
    Some(ChunkId(bytes))
}

/// Adds ids to the digests of their buckets.
pub(crate) fn add_ids(leaves: &mut [Digest; BUCKETS], ids: &[ChunkId]) {
    for id in ids {
        let leaf = &mut leaves[usize::from(bucket_of(id))];
        let mut sum = SetHash::from_bytes(leaf);
        sum.insert(id);
        *leaf = sum.to_bytes();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn ids(numbers: &BTreeSet<u16>) -> Vec<ChunkId> {
        let mut ids: Vec<ChunkId> = numbers.iter().map(|n| ChunkId::of(&n.to_be_bytes())).collect();
        ids.sort();
        ids
    }

    proptest! {
        #[test]
        fn ids_differ_as_sets_do(
            here in prop::collection::btree_set(0..300u16, 0..200),
            there in prop::collection::btree_set(0..300u16, 0..200),
        ) {
            let found = compare_ids(&ids(&here), &ids(&there));
            prop_assert_eq!(found.missing, ids(&there.difference(&here).copied().collect()));
            prop_assert_eq!(found.extra, ids(&here.difference(&there).copied().collect()));
        }

        #[test]
        fn digests_differ_where_they_were_changed(
            here: Vec<[u8; 32]>, changed in prop::collection::btree_set(0..64usize, 0..10),
        ) {
            let mut there = here.clone();
            let changed: Vec<usize> = changed.into_iter().filter(|at| *at < here.len()).collect();
            for at in &changed {
                there[*at][0] ^= 1;
            }
            prop_assert_eq!(differing(&here, &there).unwrap(), changed);
            there.push([0; 32]);
            prop_assert!(differing(&here, &there).is_err());
        }

        #[test]
        fn the_id_before_a_bucket_is_the_last_outside(bytes: [u8; 32]) {
            let id = ChunkId(bytes);
            let (pg, bucket) = (id.pg(), bucket_of(&id));
            match before(pg, bucket) {
                None => prop_assert_eq!((pg, bucket), (PgId(0), 0)),
                Some(last) => {
                    prop_assert!(last < id);
                    prop_assert_eq!(place(last.pg(), bucket_of(&last)) + 1, place(pg, bucket));
                    prop_assert!(last.0[4..].iter().all(|byte| *byte == 0xff));
                }
            }
        }
    }

    #[test]
    fn a_bucket_with_wrong_ids_is_noticed() {
        let (low, high) =
            (ChunkId([0; 32]), ChunkId([&[0u8; 31][..], &[1]].concat().try_into().unwrap()));
        let mut leaves = [[0; 32]; BUCKETS];
        add_ids(&mut leaves, &[low, high]);
        let check = |ids: &[ChunkId]| check_ids(PgId(0), 0, ids, Some(&leaves[0]));
        assert!(check(&[low, high]).is_ok());
        assert!(check(&[high, low]).unwrap_err().contains("order"));
        assert!(check(&[low, low]).unwrap_err().contains("order"));
        assert!(check(&[low]).unwrap_err().contains("digest"));
        assert!(check(&[]).unwrap_err().contains("digest"));
        assert!(check(&[low, ChunkId([9; 32])]).unwrap_err().contains("not in bucket"));
        assert!(check_ids(PgId(0), 0, &[low], None).is_ok());
    }
}
