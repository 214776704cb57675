//! Erased chunks: bytes that were taken down and must be nowhere any more.
//!
//! The masters keep a list of them, in the order in which they changed. Chunkservers and edges
//! follow that list ([`crate::master::MasterRequest::Erased`]): they delete what it names before
//! they ask for what comes next, and refuse it from then on.

use serde::{Deserialize, Serialize};

use crate::ChunkId;

/// What holds for a chunk that was ever erased.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Erasure {
    /// Its bytes are deleted wherever they are found, and nobody may bring them back.
    Erased,
    /// A list of chunks, some of which are erased. It says no more than their names, and stays; but
    /// what it is the content of is not served.
    Withheld,
    /// Lifted: it may be uploaded again.
    Lifted,
}

/// A chunk of the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Erased {
    /// Log index of its last change.
    pub index: u64,
    /// Which.
    pub id: ChunkId,
    /// What holds for it now.
    pub what: Erasure,
}

/// A chunk to erase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Doomed {
    /// Which.
    pub id: ChunkId,
    /// References to it that the asker knows of; when there are others now, nothing is erased.
    /// `None`: whatever refers to it.
    pub refs: Option<u64>,
}

/// Who has carried out what the list says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErasedBy {
    /// Chunkservers that have.
    pub done: Vec<String>,
    /// Chunkservers that have not, or were not heard of since.
    pub waiting: Vec<String>,
}
