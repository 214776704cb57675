//! What edges ask of shields. A shield is an edge in another role.

use serde::{Deserialize, Serialize};

use crate::ChunkId;

/// A request to an edge in the role shield. Variant numbers are stable: only append.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum EdgeRequest {
    /// One whole chunk, from the shield's cache or fetched by it (once, however many ask).
    Chunk {
        /// Which.
        id: ChunkId,
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
}
