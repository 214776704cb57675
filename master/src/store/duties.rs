//! Family `NodeDuty`: what is wanted of chunkservers, and the numbers of nodes that were removed.

use atoll_proto::NodeId;
use atoll_proto::cluster::Duty;
use serde::{Deserialize, Serialize};

use super::{Family, Order, Read, StoreError, Transaction, decode, u64_at};

/// What is wanted of a node. A node without a record is active.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum DutyRecord {
    /// A node of the cluster.
    Serving {
        /// What is wanted of it.
        duty: Duty,
        /// Since when, milliseconds since the Unix epoch.
        since_ms: u64,
        /// The duty it takes up again by itself once it is heard of: it was taken to be gone
        /// because of its silence, not by an operator.
        returns_to: Option<Duty>,
    },
    /// It is no node of the cluster any more; its number is never used again.
    Removed {
        /// When, milliseconds since the Unix epoch.
        at_ms: u64,
    },
}

impl DutyRecord {
    /// What is wanted of the node.
    pub(crate) fn duty(&self) -> Duty {
        match self {
            DutyRecord::Serving { duty, .. } => *duty,
            DutyRecord::Removed { .. } => Duty::Gone,
        }
    }

    /// What it goes back to by itself, if it does.
    pub(crate) fn returns_to(&self) -> Option<Duty> {
        match self {
            DutyRecord::Serving { returns_to, .. } => *returns_to,
            DutyRecord::Removed { .. } => None,
        }
    }
}

fn key(node: NodeId) -> Vec<u8> {
    Family::NodeDuty.key(&[&node.0.to_be_bytes()])
}

pub(crate) fn get(read: &impl Read, node: NodeId) -> Result<Option<DutyRecord>, StoreError> {
    read.get_value(&key(node))
}

/// What is wanted of a node.
pub(crate) fn duty(read: &impl Read, node: NodeId) -> Result<Duty, StoreError> {
    Ok(get(read, node)?.map_or(Duty::Active, |record| record.duty()))
}

/// Whether this number belonged to a node that was removed.
pub(crate) fn is_removed(read: &impl Read, node: NodeId) -> Result<bool, StoreError> {
    Ok(matches!(get(read, node)?, Some(DutyRecord::Removed { .. })))
}

pub(crate) fn put(tx: &mut Transaction<'_>, node: NodeId, record: DutyRecord) {
    tx.put_value(key(node), &record);
}

/// The node is active, as one without a record is.
pub(crate) fn clear(tx: &mut Transaction<'_>, node: NodeId) {
    tx.delete(key(node));
}

/// All records by node; those that were removed among them.
pub(crate) fn all(read: &impl Read) -> Result<Vec<(NodeId, DutyRecord)>, StoreError> {
    let (from, to) = Family::NodeDuty.prefix(&[]);
    let mut found = Vec::new();
    read.scan(&from, &to, Order::Ascending, &mut |key, value| {
        found.push((NodeId(u64_at(key, 1)?), decode(key, value)?));
        Ok(true)
    })?;
    Ok(found)
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
        fn duties_round_trip(id: u64, since_ms: u64, back: bool, removed: bool) {
            let store = TestStore::new();
            let node = NodeId(id);
            let returns_to = back.then_some(Duty::Draining);
            let record = match removed {
                true => DutyRecord::Removed { at_ms: since_ms },
                false => DutyRecord::Serving { duty: Duty::Gone, since_ms, returns_to },
            };
            prop_assert_eq!(duty(&store.rocks, node).unwrap(), Duty::Active);
            let mut tx = Transaction::new(&store.rocks);
            put(&mut tx, node, record);
            tx.commit().unwrap();
            prop_assert_eq!(get(&store.rocks, node).unwrap(), Some(record));
            prop_assert_eq!(duty(&store.rocks, node).unwrap(), Duty::Gone);
            prop_assert_eq!(is_removed(&store.rocks, node).unwrap(), removed);
            prop_assert_eq!(all(&store.rocks).unwrap(), vec![(node, record)]);
            let mut tx = Transaction::new(&store.rocks);
            clear(&mut tx, node);
            tx.commit().unwrap();
            prop_assert_eq!(all(&store.rocks).unwrap(), vec![]);
        }
    }
}
