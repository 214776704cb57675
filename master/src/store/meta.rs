//! Family `Meta`: single facts about the state.

use atoll_proto::{ClusterId, receipt::ReceiptKey};
use serde::{Deserialize, Serialize};

use super::{Family, Read, StoreError, Transaction};
use crate::raft::entry::{LogId, StoredMembership};

/// Which fact. Numbers are stable on disk: only append.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Fact {
    /// [`ClusterRecord`]. Immutable once set.
    Cluster = 1,
    /// The log id of the last applied entry. Changed by every entry.
    Applied = 2,
    /// The last applied membership of the masters.
    Membership = 3,
    /// The state's clock: the greatest time of an applied entry, nanoseconds since the Unix
    /// epoch. Never goes back.
    Clock = 4,
    /// Why nothing may be collected, as text. Set by an operator and by a restore; absent while
    /// collection goes on.
    Frozen = 5,
    /// [`Audited`]: the last complete recount of references.
    Audited = 6,
}

/// A recount of all references that was complete.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Audited {
    /// Log index of the state that was counted.
    pub(crate) index: u64,
    /// When it was recorded, milliseconds since the Unix epoch.
    pub(crate) at_ms: u64,
}

/// What is decided once, when a cluster is made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ClusterRecord {
    /// Which cluster this is.
    pub(crate) cluster: ClusterId,
    /// The format of keys and values.
    pub(crate) format: u32,
    /// Signs the receipts of chunkservers.
    pub(crate) receipt_key: ReceiptKey,
    /// Chunk size for new files, in bytes.
    pub(crate) chunk_bytes: u32,
}

fn key(fact: Fact) -> Vec<u8> {
    Family::Meta.key(&[&[fact as u8]])
}

pub(crate) fn cluster(read: &impl Read) -> Result<Option<ClusterRecord>, StoreError> {
    read.get_value(&key(Fact::Cluster))
}

pub(crate) fn set_cluster(tx: &mut Transaction<'_>, record: &ClusterRecord) {
    tx.put_value(key(Fact::Cluster), record);
}

pub(crate) fn applied(read: &impl Read) -> Result<Option<LogId>, StoreError> {
    read.get_value(&key(Fact::Applied))
}

pub(crate) fn set_applied(tx: &mut Transaction<'_>, log_id: &LogId) {
    tx.put_value(key(Fact::Applied), log_id);
}

pub(crate) fn membership(read: &impl Read) -> Result<StoredMembership, StoreError> {
    Ok(read.get_value(&key(Fact::Membership))?.unwrap_or_default())
}

pub(crate) fn set_membership(tx: &mut Transaction<'_>, membership: &StoredMembership) {
    tx.put_value(key(Fact::Membership), membership);
}

pub(crate) fn clock_ns(read: &impl Read) -> Result<u64, StoreError> {
    Ok(read.get_value(&key(Fact::Clock))?.unwrap_or(0))
}

pub(crate) fn set_clock_ns(tx: &mut Transaction<'_>, at_ns: u64) {
    tx.put_value(key(Fact::Clock), &at_ns);
}

/// Why nothing may be collected; `None` while collection goes on.
pub(crate) fn frozen(read: &impl Read) -> Result<Option<String>, StoreError> {
    read.get_value(&key(Fact::Frozen))
}

pub(crate) fn set_frozen(tx: &mut Transaction<'_>, reason: Option<&str>) {
    match reason {
        Some(reason) => tx.put_value(key(Fact::Frozen), &reason),
        None => tx.delete(key(Fact::Frozen)),
    }
}

/// The last complete recount.
pub(crate) fn audited(read: &impl Read) -> Result<Option<Audited>, StoreError> {
    read.get_value(&key(Fact::Audited))
}

pub(crate) fn set_audited(tx: &mut Transaction<'_>, audited: Audited) {
    tx.put_value(key(Fact::Audited), &audited);
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
        fn facts_round_trip(
            cluster: [u8; 16], secret: [u8; 32], chunk_bytes: u32, clock: u64, index: u64,
        ) {
            let store = TestStore::new();
            let record = ClusterRecord {
                cluster: ClusterId(cluster),
                format: super::super::FORMAT_VERSION,
                receipt_key: ReceiptKey(secret),
                chunk_bytes,
            };
            let log_id = LogId::new(openraft::CommittedLeaderId::new(3, 1), index);
            let mut tx = Transaction::new(&store.rocks);
            set_cluster(&mut tx, &record);
            set_clock_ns(&mut tx, clock);
            set_applied(&mut tx, &log_id);
            set_frozen(&mut tx, Some("restored"));
            set_audited(&mut tx, Audited { index, at_ms: clock });
            tx.commit().unwrap();
            prop_assert_eq!(frozen(&store.rocks).unwrap(), Some("restored".to_owned()));
            prop_assert_eq!(audited(&store.rocks).unwrap(), Some(Audited { index, at_ms: clock }));
            let mut tx = Transaction::new(&store.rocks);
            set_frozen(&mut tx, None);
            prop_assert_eq!(frozen(&tx).unwrap(), None);
            prop_assert_eq!(super::cluster(&store.rocks).unwrap(), Some(record));
            prop_assert_eq!(clock_ns(&store.rocks).unwrap(), clock);
            prop_assert_eq!(applied(&store.rocks).unwrap(), Some(log_id));
            prop_assert_eq!(membership(&store.rocks).unwrap(), StoredMembership::default());
        }
    }
}
