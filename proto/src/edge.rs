//! What edges ask of shields. A shield is an edge in another role.

use serde::{Deserialize, Serialize};

use crate::publish::{PublishEntry, PublishSnapshot};
use crate::relay::{RelayedAck, RelayedGrant, RelayedRenewal};
use crate::{ChunkId, Seq};

/// A request to an edge in the role shield. Variant numbers are stable: only append.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum EdgeRequest {
    /// One whole chunk, from the shield's cache or fetched by it (once, however many ask).
    Chunk {
        /// Which.
        id: ChunkId,
    },
    /// Follow the publish log through the shield (`relay`). Waits until there is an entry after
    /// `after`, or `wait_ms`. Answered with `Log` or `Snapshot`.
    Follow {
        /// The last entry the asker knows; 0 for none.
        after: Seq,
        /// For the master: the asker has applied this.
        ack: Option<RelayedAck>,
        /// How long to wait at most, in milliseconds.
        wait_ms: u32,
    },
    /// Ask the master for a lease through the shield. Answered with `Renewed`.
    Renew {
        /// For the master.
        renewal: RelayedRenewal,
    },
}

/// A shield's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum EdgeResponse {
    /// The whole chunk is the body.
    Chunk {
        /// Whether it was in the shield's cache.
        hit: bool,
    },
    /// To `Follow`: entries in order; empty when the wait ended.
    Log {
        /// At most `limits::WATCH_ENTRIES_MAX`.
        entries: Vec<PublishEntry>,
        /// The asker is up to date with this entry once it has applied `entries`.
        upto: Seq,
    },
    /// To `Follow` when the shield does not know every entry after `after`.
    Snapshot(Box<PublishSnapshot>),
    /// To `Renew`: from the master. `None`: it has no key of the asker, which should turn to it.
    Renewed(Option<RelayedGrant>),
}
