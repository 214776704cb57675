//! The types openraft is used with: what an entry holds and what applying it gives.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::snapshot::SnapshotStream;
use crate::operation::OpReply;

openraft::declare_raft_types!(
    /// The consensus protocol with our entries.
    pub(crate) TypeConfig:
        D = EntryData,
        R = EntryReply,
        NodeId = u64,
        Node = openraft::BasicNode,
        SnapshotData = SnapshotStream,
);

/// What one log entry asks the state machine to do: many operations, gathered for one fsync.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EntryData {
    /// The leader's clock when it proposed the entry, nanoseconds since the Unix epoch. Applying
    /// knows no other time.
    pub(crate) at_ns: u64,
    /// Encoded [`crate::operation::Operation`]s, applied in order.
    pub(crate) operations: Vec<Bytes>,
}

/// What applying an entry gave.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct EntryReply {
    /// One answer per operation, in order.
    pub(crate) replies: Vec<OpReply>,
}

pub(crate) type Raft = openraft::Raft<TypeConfig>;
pub(crate) type Entry = openraft::Entry<TypeConfig>;
pub(crate) type LogId = openraft::LogId<u64>;
pub(crate) type Vote = openraft::Vote<u64>;
pub(crate) type StoredMembership = openraft::StoredMembership<u64, openraft::BasicNode>;
pub(crate) type SnapshotMeta = openraft::SnapshotMeta<u64, openraft::BasicNode>;
pub(crate) type StorageError = openraft::StorageError<u64>;
pub(crate) type StorageIoError = openraft::StorageIOError<u64>;
