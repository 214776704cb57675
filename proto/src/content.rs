//! What a file holds: a list of chunks with explicit lengths.

use serde::{Deserialize, Serialize};

use crate::{ChunkId, Malformed, WireError, limits};

/// One chunk of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Extent {
    /// The chunk; `None` is a hole that reads as zeros.
    pub id: Option<ChunkId>,
    /// Its length in bytes. Readers trust only this, never a cluster's chunk size.
    pub len: u32,
}

/// The bytes of a file, by reference.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum Content {
    /// No bytes.
    #[default]
    Empty,
    /// The extents in order.
    Extents(Vec<Extent>),
    /// More extents than fit in place: chunks that hold [`ExtentList`]s, in order.
    Lists {
        /// Length of the file in bytes.
        size: u64,
        /// The list chunks (encoded length, id).
        lists: Vec<(u32, ChunkId)>,
    },
}

/// The content of a list chunk. Versioned, because it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExtentList {
    /// Version 1.
    V1(Vec<Extent>),
}

impl ExtentList {
    /// The list as the bytes of a chunk.
    pub fn encode(&self) -> Vec<u8> {
        crate::encode(self)
    }

    /// Reads the bytes of a list chunk.
    ///
    /// # Errors
    /// When they are not a list of plausible extents.
    pub fn decode(bytes: &[u8]) -> Result<Vec<Extent>, Malformed> {
        let Self::V1(extents) = crate::decode(bytes)?;
        if extents.len() > limits::LIST_CHUNK_ENTRIES || extents.iter().any(|e| e.len == 0) {
            return Err(Malformed { reason: "extent list out of bounds".to_owned() });
        }
        Ok(extents)
    }
}

impl Content {
    /// A file of these extents; call [`Content::needs_lists`] first for long ones.
    pub fn from_extents(extents: Vec<Extent>) -> Self {
        if extents.is_empty() { Self::Empty } else { Self::Extents(extents) }
    }

    /// Whether so many extents must be stored as list chunks.
    pub fn needs_lists(extents: usize) -> bool {
        extents > limits::CONTENT_INLINE_CHUNKS_MAX
    }

    /// Length of the file in bytes.
    pub fn size(&self) -> u64 {
        match self {
            Self::Empty => 0,
            Self::Extents(extents) => extents.iter().map(|extent| u64::from(extent.len)).sum(),
            Self::Lists { size, .. } => *size,
        }
    }

    /// The chunks this content refers to directly (data chunks, or list chunks), in order.
    pub fn direct_chunks(&self) -> Vec<ChunkId> {
        match self {
            Self::Empty => Vec::new(),
            Self::Extents(extents) => extents.iter().filter_map(|extent| extent.id).collect(),
            Self::Lists { lists, .. } => lists.iter().map(|(_, id)| *id).collect(),
        }
    }

    /// The name of the whole content: the chunk id for a file of one chunk, else a
    /// domain-separated BLAKE3 of the list. It is the strong `ETag`.
    pub fn id(&self) -> ChunkId {
        match self {
            Self::Empty => ChunkId::of(b""),
            Self::Extents(extents) => match extents.as_slice() {
                [Extent { id: Some(id), .. }] => *id,
                _ => Self::derived_id(self),
            },
            Self::Lists { .. } => Self::derived_id(self),
        }
    }

    fn derived_id(&self) -> ChunkId {
        let mut hasher = blake3::Hasher::new_derive_key("atoll 2026 content list v1");
        hasher.update(&crate::encode(self));
        ChunkId(*hasher.finalize().as_bytes())
    }

    /// Checks what came from outside.
    ///
    /// # Errors
    /// When a length is zero or too large, the list is too long, or the size overflows.
    pub fn check(&self) -> Result<(), WireError> {
        let bad = |what: &str| Err(WireError::invalid(format!("bad file content: {what}")));
        match self {
            Self::Empty => Ok(()),
            Self::Extents(extents) => {
                if extents.is_empty() || extents.len() > limits::CONTENT_INLINE_CHUNKS_MAX {
                    return bad("number of extents out of range");
                }
                let too_long = |extent: &Extent| {
                    extent.len == 0 || (extent.id.is_some() && extent.len > limits::CHUNK_BYTES_MAX)
                };
                if extents.iter().any(too_long) {
                    return bad("extent length out of range");
                }
                Ok(())
            }
            Self::Lists { size, lists } => {
                if lists.is_empty() || lists.len() > limits::CONTENT_INLINE_CHUNKS_MAX {
                    return bad("number of list chunks out of range");
                }
                if lists.iter().any(|(len, _)| *len == 0 || *len > limits::CHUNK_BYTES_MAX) {
                    return bad("list chunk length out of range");
                }
                if i64::try_from(*size).is_err() {
                    return bad("size out of range");
                }
                Ok(())
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn one_chunk_gives_its_own_id() {
        let id = ChunkId::of(b"x");
        let one = Content::from_extents(vec![Extent { id: Some(id), len: 1 }]);
        assert_eq!(one.id(), id);
        let two = Content::from_extents(vec![Extent { id: Some(id), len: 1 }; 2]);
        assert_ne!(two.id(), id);
        assert_eq!(two.size(), 2);
    }

    #[test]
    fn zero_lengths_are_refused() {
        assert!(Content::Extents(vec![]).check().is_err());
        assert!(Content::Extents(vec![Extent { id: None, len: 0 }]).check().is_err());
        let list = ExtentList::V1(vec![Extent { id: None, len: 0 }]).encode();
        assert!(ExtentList::decode(&list).is_err());
    }
}
