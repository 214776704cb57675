//! The schema: which keys there are, what they hold, who changes them.
//!
//! Everything a master keeps of the replicated state is in one RocksDB key space, filled only by
//! applying Raft log entries ([`crate::raft`]). A key starts with the byte of its [`Family`];
//! integers in keys are big-endian, so that keys sort as numbers; values are postcard. There is
//! one file per family with the functions that read and write it. [`rocks`] alone knows RocksDB.

pub(crate) mod aliases;
pub(crate) mod below;
pub(crate) mod buckets;
pub(crate) mod counters;
pub(crate) mod deltas;
pub(crate) mod dentries;
pub(crate) mod deploys;
pub(crate) mod duties;
pub(crate) mod erased;
pub(crate) mod erasures;
pub(crate) mod group_states;
pub(crate) mod groups;
pub(crate) mod inodes;
pub(crate) mod leaving;
pub(crate) mod live;
pub(crate) mod masters;
pub(crate) mod meta;
pub(crate) mod nodes;
pub(crate) mod objects;
pub(crate) mod publish_log;
pub(crate) mod rocks;
pub(crate) mod sessions;
pub(crate) mod sites;
pub(crate) mod tokens;
mod transaction;
pub(crate) mod unreferenced;
pub(crate) mod upgrade;
pub(crate) mod wal;
pub(crate) mod xattrs;

use serde::de::DeserializeOwned;

pub(crate) use transaction::Transaction;

/// The format of keys and values, kept in the state and in the identity file. A build refuses a
/// format it does not know and turns an older one into this one ([`upgrade`]).
pub(crate) const FORMAT_VERSION: u32 = 5;
/// The oldest format this build can turn into its own.
pub(crate) const FORMAT_VERSION_MIN: u32 = 1;

/// The only pool there is: replicated chunks.
const POOL: u8 = 0;

/// The key families. Numbers are stable on disk: only append.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Family {
    /// Single facts. Key: a [`meta::Fact`] byte. Value: depends on the fact (cluster record,
    /// applied log id, membership, the state's clock). Changed by every log entry.
    Meta = 1,
    /// Numbers. Key: a [`counters::Counter`] byte. Value: u64 big-endian. Changed by most entries.
    Counter = 2,
    /// Inodes of the namespace. Key: inode (u64). Value: [`inodes::Inode`]: attributes and
    /// content, link target or parent. Changed by every operation on the inode.
    Inode = 3,
    /// Directory entries. Key: parent inode (u64), name bytes. Value: inode and kind. Rewritten
    /// by rename and exchange.
    Dentry = 4,
    /// The object table: every chunk the cluster must keep. Key: pool (one byte, 0 today; erasure
    /// coded pools later), placement group (u16), chunk id (32 bytes). Value:
    /// [`objects::Object`]: references, length, kind, since when unreferenced. Changed in the
    /// entry that changes what refers to the chunk.
    Object = 5,
    /// Chunkservers and edges. Key: node id (u64). Value: `NodeInfo`. Changed when a node
    /// registers with other facts.
    Node = 6,
    /// Names of nodes. Key: name bytes. Value: node id (u64 big-endian). Immutable while the
    /// node exists.
    NodeName = 7,
    /// Members of placement groups. Key: pool (one byte), placement group (u16). Value: list of
    /// node ids in order of preference. Changed by placement only, with the epoch.
    Group = 8,
    /// Sites. Key: name. Value: `Site`. Changed by its owner.
    Site = 9,
    /// Host names that sites own. Key: domain. Value: site name. Immutable while owned.
    Domain = 10,
    /// Aliases. Key: site name, 0, alias name. Value: [`aliases::AliasRecord`]: where it points
    /// and where it pointed before. Changed by publishing and moving.
    Alias = 11,
    /// Deploys. Key: site name, 0, deploy id (32 bytes). Value: `Deploy`. Rewritten when it is
    /// published again.
    Deploy = 12,
    /// Deploys in order. Key: site name, 0, seq (u64). Value: deploy id. Moves when the deploy is
    /// published again.
    DeployBySeq = 13,
    /// The publish log. Key: seq (u64). Value: `PublishEntry`. Immutable; the oldest are deleted
    /// past the retention.
    PublishLog = 14,
    /// Client sessions. Key: session id (u64). Value: [`sessions::Session`]. Changed by every
    /// request of the session; deleted when expired.
    Session = 15,
    /// Replies of sessions, for repeats. Key: session id (u64), request number (u64). Value:
    /// [`sessions::StoredReply`]. Immutable; deleted when acknowledged.
    Reply = 16,
    /// Tokens. Key: BLAKE3 of the secret. Value: [`tokens::TokenRecord`]. Immutable until removed.
    Token = 17,
    /// Tokens by their public id. Key: token id (u64). Value: BLAKE3 of the secret. Immutable.
    TokenById = 18,
    /// What became live and what was collected, for chunkservers. Key: log index (u64), ordinal
    /// within it (u32). Value: chunk id and whether it is live. Immutable; the oldest are deleted
    /// past the retention. Follows `Object`.
    Delta = 19,
    /// Digests of the live ids. Key: pool (one byte), placement group (u16), bucket (one byte).
    /// Value: [`buckets::Bucket`]; none for an empty bucket. Follows `Object`.
    Bucket = 20,
    /// Placement groups as a whole. Key: pool (one byte), placement group (u16). Value:
    /// [`group_states::GroupState`]: last change, number of live chunks. Follows `Object`.
    GroupState = 21,
    /// Objects without references. Key: since when, milliseconds since the Unix epoch (u64), chunk
    /// id (32 bytes). Value: empty. Follows `Object`.
    Unreferenced = 22,
    /// What is wanted of chunkservers, and numbers that must not be used again. Key: node id
    /// (u64). Value: [`duties::DutyRecord`]. Changed by operators, and by the leader for a node
    /// that is silent for long; kept for ever once the node was removed.
    NodeDuty = 23,
    /// Groups on the move. Key: pool (one byte), placement group (u16). Value:
    /// [`leaving::Leaving`]: the members before, and since when. Changed by placement only, with
    /// the epoch; deleted when the move is finished.
    Leaving = 24,
    /// What was sealed last of live sites. Key: site name. Value: deploy id. Changed when the site's
    /// directory is sealed anew; deleted with the site, and when it follows another directory.
    Live = 25,
    /// Chunks that were ever erased. Key: chunk id (32 bytes). Value: [`erased::Record`]: what
    /// holds now, since which log index. Changed by erasing and lifting, and when a lifted chunk is
    /// uploaded; never deleted.
    Erased = 26,
    /// The same in the order of their last change. Key: log index (u64), chunk id (32 bytes). Value:
    /// empty. Follows `Erased`.
    ErasedByIndex = 27,
    /// Pages and lists that lead to erased chunks. Key: chunk id (32 bytes). Value: those of their
    /// children that are erased, or lead to what is. Changed by erasing, and by admitting a page that
    /// refers to one; deleted when the page is collected.
    Below = 28,
    /// What erasures named. Key: site name, 0, hash of what is named (32 bytes). Value:
    /// `ErasureRecord`. Immutable; deleted when all of it was lifted.
    Erasures = 29,
    /// Extended attributes. Key: inode (u64), name bytes. Value: the attribute's bytes. Changed by
    /// their owner, and with the permission bits for those that hold access rules; deleted with
    /// the inode. An inode that has any says so in its mode.
    Xattr = 30,
    /// Every master there ever was. Key: master id (u64). Value: [`masters::MasterRecord`]: its
    /// incarnation, and whether it was retired. Kept for ever, so that no id is used twice.
    Master = 31,
}

impl Family {
    /// A key of this family.
    pub(crate) fn key(self, parts: &[&[u8]]) -> Vec<u8> {
        let mut key = Vec::with_capacity(1 + parts.iter().map(|part| part.len()).sum::<usize>());
        key.push(self as u8);
        for part in parts {
            key.extend_from_slice(part);
        }
        key
    }

    /// Every key of this family that starts with these parts: from the first bound (inclusive) to
    /// the second (exclusive).
    pub(crate) fn prefix(self, parts: &[&[u8]]) -> (Vec<u8>, Vec<u8>) {
        let from = self.key(parts);
        let to = prefix_end(&from);
        (from, to)
    }
}

/// The smallest key greater than every key with this prefix. Families are below 0xff, so there
/// always is one.
fn prefix_end(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while end.last() == Some(&0xff) {
        end.pop();
    }
    let last = end.last_mut().expect("a family byte is below 0xff");
    *last += 1;
    end
}

/// In which order a scan goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// From the smallest key.
    Ascending,
    /// From the greatest key.
    Descending,
}

/// Called for each key and value; `false` ends the scan.
pub(crate) type Visit<'a> = dyn FnMut(&[u8], &[u8]) -> Result<bool, StoreError> + 'a;

/// Reading: the database, a moment of it, or a transaction on top of it.
pub(crate) trait Read {
    /// The value of a key.
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError>;

    /// Visits every key in `from..to`.
    fn scan(
        &self,
        from: &[u8],
        to: &[u8],
        order: Order,
        visit: &mut Visit<'_>,
    ) -> Result<(), StoreError>;

    /// The decoded value of a key.
    fn get_value<T: DeserializeOwned>(&self, key: &[u8]) -> Result<Option<T>, StoreError>
    where
        Self: Sized,
    {
        self.get(key)?.map(|bytes| decode(key, &bytes)).transpose()
    }

    /// Whether there is such a key.
    fn has(&self, key: &[u8]) -> Result<bool, StoreError> {
        Ok(self.get(key)?.is_some())
    }

    /// Whether any key is in `from..to`.
    fn any(&self, from: &[u8], to: &[u8]) -> Result<bool, StoreError> {
        let mut found = false;
        self.scan(from, to, Order::Ascending, &mut |_, _| {
            found = true;
            Ok(false)
        })?;
        Ok(found)
    }
}

/// Decodes a stored value; the key names it in the error.
pub(crate) fn decode<T: DeserializeOwned>(key: &[u8], bytes: &[u8]) -> Result<T, StoreError> {
    atoll_proto::decode(bytes).map_err(|error| StoreError::malformed(key, &error))
}

/// The big-endian integer at `at` in a key.
pub(crate) fn u64_at(key: &[u8], at: usize) -> Result<u64, StoreError> {
    let bytes = key.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
    bytes.map(u64::from_be_bytes).ok_or_else(|| StoreError::malformed(key, &"the key is too short"))
}

/// The disk failed or holds what it should not. The master stops: nothing sensible can be done.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum StoreError {
    /// RocksDB or the file system refused.
    #[error("the master's database cannot {verb}: {reason}")]
    Io {
        /// What was tried.
        verb: &'static str,
        /// What was the answer.
        reason: String,
    },
    /// A value does not decode.
    #[error("the master's database holds a malformed value under key {key}: {reason}")]
    Malformed {
        /// The key in hex.
        key: String,
        /// What is wrong.
        reason: String,
    },
    /// The write-ahead log of the Raft log has a hole.
    #[error(
        "the log of this master is damaged: {file} is not what was written from byte {at} on, and \
         changes that were acknowledged are behind it; nothing was changed"
    )]
    Damaged {
        /// The damaged file.
        file: String,
        /// Where the damage begins.
        at: u64,
    },
}

impl StoreError {
    pub(crate) fn io(verb: &'static str, reason: &impl ToString) -> StoreError {
        StoreError::Io { verb, reason: reason.to_string() }
    }

    pub(crate) fn malformed(key: &[u8], reason: &impl ToString) -> StoreError {
        StoreError::Malformed { key: atoll_proto::ids::hex(key), reason: reason.to_string() }
    }
}

/// A database in a directory that is removed with the value.
#[cfg(test)]
pub(crate) mod testing {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::rocks::{Rocks, Tuning};
    use super::{Order, Read};

    pub(crate) struct TestStore {
        pub(crate) rocks: Rocks,
        dir: tempfile::TempDir,
    }

    impl TestStore {
        pub(crate) fn new() -> TestStore {
            let dir = tempfile::tempdir().unwrap();
            TestStore { rocks: Rocks::open(dir.path(), Tuning::State).unwrap(), dir }
        }

        pub(crate) fn reopen(self) -> TestStore {
            let TestStore { rocks, dir } = self;
            drop(rocks);
            TestStore { rocks: Rocks::open(dir.path(), Tuning::State).unwrap(), dir }
        }

        /// Every key and value.
        pub(crate) fn dump(&self) -> Vec<(Vec<u8>, Vec<u8>)> {
            let mut all = Vec::new();
            self.rocks
                .scan(&[0], &[0xff], Order::Ascending, &mut |key, value| {
                    all.push((key.to_vec(), value.to_vec()));
                    Ok(true)
                })
                .unwrap();
            all
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_before_its_sibling() {
        assert_eq!(prefix_end(&[3, 0xff, 0xff]), vec![4]);
        assert_eq!(prefix_end(&[3, 1]), vec![3, 2]);
        let (from, to) = Family::Alias.prefix(&[b"site", &[0]]);
        assert!(from < to);
        assert!(Family::Alias.key(&[b"site", &[0], b"zzz"]) < to);
        assert!(Family::Alias.key(&[b"site-b", &[0], b"a"]) >= to);
    }

    #[test]
    fn family_numbers_are_stable() {
        let numbers = [
            Family::Meta as u8,
            Family::Counter as u8,
            Family::Inode as u8,
            Family::Dentry as u8,
            Family::Object as u8,
            Family::Node as u8,
            Family::NodeName as u8,
            Family::Group as u8,
            Family::Site as u8,
            Family::Domain as u8,
            Family::Alias as u8,
            Family::Deploy as u8,
            Family::DeployBySeq as u8,
            Family::PublishLog as u8,
            Family::Session as u8,
            Family::Reply as u8,
            Family::Token as u8,
            Family::TokenById as u8,
            Family::Delta as u8,
            Family::Bucket as u8,
            Family::GroupState as u8,
            Family::Unreferenced as u8,
            Family::NodeDuty as u8,
            Family::Leaving as u8,
            Family::Live as u8,
            Family::Erased as u8,
            Family::ErasedByIndex as u8,
            Family::Below as u8,
            Family::Erasures as u8,
            Family::Xattr as u8,
            Family::Master as u8,
        ];
        assert_eq!(numbers.to_vec(), (1..=31).collect::<Vec<u8>>());
    }
}
