//! How two sides find out what they disagree on, at a cost that follows the differences.
//!
//! A placement group's *live* ids are dealt into [`BUCKETS`] buckets by the 8 bits that follow the
//! group's 12. A bucket is summed up by a [`SetHash`], so that an id is added or removed in
//! constant time. A Merkle tree (`rs_merkle` with BLAKE3; this is the only file that knows it)
//! stands over the 256 digests of a group ([`GroupTree`]), and another over the groups a node keeps
//! ([`NodeTree`]). Equal roots mean equal sets; where they differ, the walk goes down 64 groups,
//! 64 roots, 16 nodes, 16 buckets and one bucket's ids at a time.
//!
//! `rs_merkle` is positional and append-only: it is given a fixed number of leaves and rebuilt
//! when one changed, never a list of chunks.

use rs_merkle::{Hasher, PartialTree};
use serde::{Deserialize, Serialize};

use crate::ids::{PG_BITS, PG_COUNT};
use crate::{ChunkId, PgId};

/// Buckets of one placement group.
pub const BUCKETS: usize = 256;
/// Children of a node in the answers of a walk within a group.
pub const MIDS: usize = 16;
/// Children of a node in the answers of a walk over the groups.
pub const TOPS: usize = 64;

/// A node of one of the trees.
pub type Digest = [u8; 32];

/// The bucket of a chunk within its placement group.
pub fn bucket_of(id: &ChunkId) -> u8 {
    let word = u32::from_be_bytes([id.0[0], id.0[1], id.0[2], id.0[3]]);
    // 8 bits after the first PG_BITS.
    ((word << PG_BITS) >> 24).to_be_bytes()[3]
}

/// A set of ids, summed up so that members come and go in constant time: the sum modulo 2^256 of
/// a hash of each ("A New Paradigm for Collision-Free Hashing", Bellare and Micciancio, 1997).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SetHash([u64; 4]);

impl SetHash {
    /// The hash of a set is kept as these bytes.
    pub fn from_bytes(bytes: &Digest) -> Self {
        let mut words = [0; 4];
        for (word, part) in words.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *word = u64::from_le_bytes(*part);
        }
        Self(words)
    }

    /// As [`SetHash::from_bytes`] reads it. The empty set is all zeros.
    pub fn to_bytes(self) -> Digest {
        let mut bytes = [0; 32];
        for (part, word) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(self.0) {
            *part = word.to_le_bytes();
        }
        bytes
    }

    /// The set with this id, which must not be in it yet.
    pub fn insert(&mut self, id: &ChunkId) {
        let mut carry = false;
        for (word, other) in self.0.iter_mut().zip(element(id).0) {
            let (sum, first) = word.overflowing_add(other);
            let (sum, second) = sum.overflowing_add(u64::from(carry));
            *word = sum;
            carry = first || second;
        }
    }

    /// The set without this id, which must be in it.
    pub fn remove(&mut self, id: &ChunkId) {
        let mut borrow = false;
        for (word, other) in self.0.iter_mut().zip(element(id).0) {
            let (rest, first) = word.overflowing_sub(other);
            let (rest, second) = rest.overflowing_sub(u64::from(borrow));
            *word = rest;
            borrow = first || second;
        }
    }
}

/// What an id adds to a set's hash.
fn element(id: &ChunkId) -> SetHash {
    let mut hasher = blake3::Hasher::new_keyed(b"atoll live set of chunks, v1\0\0\0\0");
    hasher.update(id.as_bytes());
    SetHash::from_bytes(hasher.finalize().as_bytes())
}

/// BLAKE3 for `rs_merkle`, without its copies.
#[derive(Debug, Clone)]
struct Blake3;

impl Hasher for Blake3 {
    type Hash = Digest;

    fn hash(data: &[u8]) -> Digest {
        *blake3::hash(data).as_bytes()
    }

    fn concat_and_hash(left: &Digest, right: Option<&Digest>) -> Digest {
        let Some(right) = right else { return *left };
        let mut both = [0; 64];
        both[..32].copy_from_slice(left);
        both[32..].copy_from_slice(right);
        Self::hash(&both)
    }
}

/// The layers of a tree over these leaves, whose number is a power of two.
fn layers(leaves: &[Digest]) -> Vec<Vec<Digest>> {
    let tree = PartialTree::<Blake3>::from_leaves(leaves)
        .expect("a tree over a fixed, positive number of leaves can always be built");
    tree.layer_nodes()
}

/// The layer that has so many nodes.
fn layer_of(layers: &[Vec<Digest>], nodes: usize) -> &[Digest] {
    let found = layers.iter().find(|layer| layer.len() == nodes);
    found.expect("the numbers of nodes are powers of two up to the number of leaves")
}

/// The tree over one placement group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupTree {
    root: Digest,
    mids: Vec<Digest>,
    leaves: Vec<Digest>,
}

impl GroupTree {
    /// Over the digests of all buckets.
    pub fn new(leaves: &[Digest; BUCKETS]) -> Self {
        let layers = layers(leaves);
        Self {
            root: layer_of(&layers, 1)[0],
            mids: layer_of(&layers, MIDS).to_vec(),
            leaves: leaves.to_vec(),
        }
    }

    /// Sums up the group; all zeros for one without a chunk, so that an absent group and an empty
    /// one are the same.
    pub fn root(&self) -> Digest {
        if self.leaves.iter().all(|leaf| *leaf == [0; 32]) { [0; 32] } else { self.root }
    }

    /// The [`MIDS`] nodes between the root and the buckets.
    pub fn mids(&self) -> &[Digest] {
        &self.mids
    }

    /// The buckets under one of them; none when there is no such node.
    pub fn buckets(&self, mid: u8) -> &[Digest] {
        self.leaves.chunks(BUCKETS / MIDS).nth(usize::from(mid)).unwrap_or_default()
    }
}

/// The tree over the groups a node keeps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeTree {
    root: Digest,
    tops: Vec<Digest>,
    roots: Vec<Digest>,
}

impl NodeTree {
    /// Over the roots of the groups that `keeps` names; others count as empty.
    pub fn new(roots: &[Digest], keeps: impl Fn(PgId) -> bool) -> Self {
        let leaf = |pg: u16| match roots.get(usize::from(pg)) {
            Some(root) if keeps(PgId(pg)) => *root,
            _ => [0; 32],
        };
        let leaves: Vec<Digest> = (0..PG_COUNT).map(leaf).collect();
        let layers = layers(&leaves);
        Self {
            root: layer_of(&layers, 1)[0],
            tops: layer_of(&layers, TOPS).to_vec(),
            roots: leaves,
        }
    }

    /// Sums up everything the node keeps.
    pub fn root(&self) -> Digest {
        self.root
    }

    /// The [`TOPS`] nodes between the root and the groups.
    pub fn tops(&self) -> &[Digest] {
        &self.tops
    }

    /// The groups under one of them: the first, and their roots.
    pub fn groups(&self, top: u8) -> (PgId, &[Digest]) {
        let each = self.roots.len() / TOPS;
        let first = usize::from(top) * each;
        let roots = self.roots.get(first..first + each).unwrap_or_default();
        (PgId(u16::try_from(first).unwrap_or(PG_COUNT)), roots)
    }
}

/// One step down a walk. Answered by [`Found`] of the same kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ask {
    /// The nodes over the groups of the asking node.
    Tops,
    /// The roots under one of them.
    Groups {
        /// Which, below [`TOPS`].
        top: u8,
    },
    /// The nodes of a group's tree.
    Mids {
        /// Which group.
        pg: PgId,
    },
    /// The buckets under one of them.
    Buckets {
        /// Which group.
        pg: PgId,
        /// Which node, below [`MIDS`].
        mid: u8,
    },
    /// The ids in one bucket.
    Ids {
        /// Which group.
        pg: PgId,
        /// Which bucket.
        bucket: u8,
    },
}

/// The answer to one [`Ask`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Found {
    /// The digests asked for, in order.
    Digests(Vec<Digest>),
    /// The ids of a bucket, sorted: all of them.
    Ids(Vec<ChunkId>),
    /// The group changed after the index the asker has applied: it must catch up first.
    Moved {
        /// Log index of its last change.
        index: u64,
    },
    /// Not now: the asker must give up this pass and change nothing.
    Unavailable {
        /// Why.
        reason: String,
    },
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(number: u32) -> ChunkId {
        ChunkId::of(&number.to_be_bytes())
    }

    proptest! {
        #[test]
        fn a_set_hash_depends_on_the_members_only(mut numbers: Vec<u32>, gone: Vec<u32>) {
            numbers.sort_unstable();
            numbers.dedup();
            let mut forward = SetHash::default();
            numbers.iter().for_each(|n| forward.insert(&id(*n)));
            let mut backward = SetHash::default();
            numbers.iter().rev().for_each(|n| backward.insert(&id(*n)));
            prop_assert_eq!(forward, backward);
            for n in &gone {
                backward.insert(&id(*n));
            }
            for n in gone.iter().rev() {
                backward.remove(&id(*n));
            }
            prop_assert_eq!(forward, backward);
            prop_assert_eq!(SetHash::from_bytes(&forward.to_bytes()), forward);
            numbers.iter().for_each(|n| forward.remove(&id(*n)));
            prop_assert_eq!(forward, SetHash::default());
        }

        #[test]
        fn one_changed_bucket_changes_the_path_to_it_and_nothing_else(bucket: u8) {
            let before = GroupTree::new(&[[0; 32]; BUCKETS]);
            prop_assert_eq!(before.root(), [0; 32]);
            let mut leaves = [[0; 32]; BUCKETS];
            leaves[usize::from(bucket)] = [9; 32];
            let after = GroupTree::new(&leaves);
            prop_assert_ne!(before.root(), after.root());
            let differ: Vec<usize> =
                (0..MIDS).filter(|mid| before.mids()[*mid] != after.mids()[*mid]).collect();
            prop_assert_eq!(differ, vec![usize::from(bucket) / 16]);
            let buckets = after.buckets(bucket / 16);
            prop_assert_eq!(buckets.len(), 16);
            prop_assert_eq!(buckets[usize::from(bucket) % 16], [9; 32]);
        }
    }

    #[test]
    fn buckets_are_the_bits_after_the_group() {
        let mut bytes = [0; 32];
        bytes[1] = 0xfa;
        bytes[2] = 0xb7;
        assert_eq!(bucket_of(&ChunkId(bytes)), 0xab);
        assert_eq!(ChunkId(bytes).pg(), PgId(0x00f));
    }

    #[test]
    fn only_groups_that_are_kept_count() {
        let mut roots = vec![[0; 32]; usize::from(PG_COUNT)];
        let empty = NodeTree::new(&roots, |_| true);
        roots[70] = [1; 32];
        assert_eq!(NodeTree::new(&roots, |pg| pg != PgId(70)), empty);
        let other = NodeTree::new(&roots, |_| true);
        assert_ne!(other.root(), empty.root());
        let differ: Vec<u8> = (0..64)
            .filter(|top| other.tops()[usize::from(*top)] != empty.tops()[usize::from(*top)])
            .collect();
        assert_eq!(differ, [1]);
        let (first, groups) = other.groups(1);
        assert_eq!((first, groups.len(), groups[6]), (PgId(64), 64, [1; 32]));
        assert!(other.groups(64).1.is_empty());
    }
}
