//! What clients, masters and peers ask of a chunkserver.

use serde::{Deserialize, Serialize};

use crate::{
    ChunkId, Epoch, NodeId, SessionId, limits,
    receipt::Receipt,
    tree::{Ask, Found},
};

/// A request to a chunkserver. Variant numbers are stable on the wire: only append.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChunkRequest {
    /// Store chunks. The body is their bytes one after the other.
    Put(Put),
    /// Read part of one chunk. The body of the answer is the bytes.
    Get(Get),
    /// Read several whole chunks; the answer says which of them are in the body.
    GetMany(GetMany),
    /// Which of these chunks are here?
    Has {
        /// At most `limits::IDS_MAX`.
        ids: Vec<ChunkId>,
    },
    /// How the server does.
    Stat,
    /// Between servers: steps down the tree of what this one has that is live, so that a new
    /// member learns from an old one what to fetch.
    Walk {
        /// Epoch of the placement table the sender used.
        epoch: Epoch,
        /// At most `limits::WALK_ASKS_MAX`; of `Ask::Tops` and `Ask::Groups` none.
        asks: Vec<Ask>,
    },
    /// Chunks that are live and lacking here, for `fsck`.
    Lacking {
        /// Only ids after this one.
        after: Option<ChunkId>,
        /// At most this many (and at most `limits::PUT_CHUNKS_MAX`).
        limit: u32,
    },
}

/// Store chunks: sent once by the client to the head, which relays to the other members.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Put {
    /// The session that will commit them.
    pub session: SessionId,
    /// Epoch of the placement table the sender used.
    pub epoch: Epoch,
    /// What the body holds, in order. At most `limits::PUT_CHUNKS_MAX`, all in placement groups
    /// of which the receiver is a member.
    pub chunks: Vec<(ChunkId, u32)>,
    /// True for the client's request: relay to the other members, and answer when enough of them
    /// have the chunks on disk. False between servers.
    pub relay: bool,
}

/// Read part of one chunk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Get {
    /// Which.
    pub id: ChunkId,
    /// First byte.
    pub offset: u32,
    /// How many bytes; past the end is cut. `u32::MAX` for all.
    pub len: u32,
}

/// Read several whole chunks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetMany {
    /// Which, at most `limits::PUT_CHUNKS_MAX`.
    pub ids: Vec<ChunkId>,
}

/// A chunkserver's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChunkResponse {
    /// To `Put`: a receipt of each server that has (some of) the chunks on disk.
    Stored {
        /// For each chunk at least the durable quorum of its group is among them.
        receipts: Vec<Receipt>,
        /// Members that could not be reached or failed, for the log.
        failed: Vec<NodeId>,
    },
    /// To `Get`: the bytes are the body. The server has verified the whole chunk's hash.
    Bytes {
        /// Length of the whole chunk.
        chunk_len: u32,
    },
    /// To `GetMany`: lengths in the order asked; `None` for chunks that are not here or did not
    /// fit in the body any more (then `complete` is false). Present ones follow one another in
    /// the body.
    Many {
        /// One entry per id asked.
        lens: Vec<Option<u32>>,
        /// False when the body limit cut the answer short: ask again for the rest.
        complete: bool,
    },
    /// To `Has`: one entry per id asked.
    Present(Vec<bool>),
    /// To `Stat`.
    Stat(ChunkStat),
    /// To `Walk`: one answer per question.
    Found {
        /// Log index up to which the answering server has applied the master's deltas.
        index: u64,
        /// One entry per ask.
        found: Vec<Found>,
    },
    /// To `Lacking`, sorted by id.
    Lacking(Vec<Lacking>),
}

/// A live chunk that a member does not have in good order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lacking {
    /// Which.
    pub id: ChunkId,
    /// Its bytes are here, but wrong.
    pub corrupt: bool,
    /// How often fetching it from all the others failed since the server started.
    pub attempts: u32,
    /// It was given up: it is tried again only rarely.
    pub dead: bool,
}

/// How a chunkserver does; also sent with heartbeats.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkStat {
    /// Chunks it has.
    pub chunks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes free on its disk.
    pub free_bytes: u64,
    /// Size of its disk.
    pub total_bytes: u64,
    /// Chunks found with a wrong hash since it was set up.
    pub corrupt_found: u64,
    /// Live chunks of its groups that it lacks, dead letters among them.
    pub lacking: u64,
    /// Those that were given up after trying all sources again and again.
    pub dead_letters: u64,
    /// Chunks in quarantine.
    pub quarantined: u64,
    /// Chunks fetched from peers because they were lacking, since it was set up.
    pub repaired: u64,
    /// Seconds since the byte that waits longest for verification was last verified; `None`
    /// while it has no chunk.
    pub oldest_unverified_s: Option<u64>,
    /// The last scrub order (see `Orders::scrub`) that was carried out completely.
    pub scrubbed: u64,
    /// Bytes of comparison sent: roots and walks, both ways.
    pub compared_bytes: u64,
    /// Roots compared.
    pub roots_compared: u64,
    /// Roots that differed.
    pub mismatches: u64,
    /// Why dropping chunks has stopped until an operator releases it; `None` while it has not.
    pub halted: Option<String>,
    /// A store that could not be read was set aside, and this one is being filled anew.
    pub refilling: bool,
}

impl ChunkStat {
    /// Whether the disk has no room for the largest chunk beside what puts leave free, by the limit
    /// that holds unless it is configured. Nothing is known of a disk that was never told of.
    pub fn disk_is_full(&self) -> bool {
        let least = disk_reserve(self.total_bytes).saturating_add(limits::CHUNK_BYTES_MAX.into());
        self.total_bytes > 0 && self.free_bytes < least
    }
}

/// What puts leave free on a disk of this size, unless it is configured.
pub fn disk_reserve(total_bytes: u64) -> u64 {
    limits::DISK_RESERVE_BYTES.min(total_bytes / limits::DISK_RESERVE_PART)
}
