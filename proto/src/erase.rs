//! Erased chunks: bytes that were taken down and must be nowhere any more.
//!
//! The masters keep a list of them, in the order in which they changed. Chunkservers and edges
//! follow that list ([`crate::master::MasterRequest::Erased`]): they delete what it names before
//! they ask for what comes next, and refuse it from then on.

use serde::{Deserialize, Serialize};

use crate::{ByteName, ChunkId, DeployId, Epoch, InodeId, SiteName};

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

/// A part of the list, in the order of last changes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErasedPart {
    /// Log index at which the list began: 0, or where a state was restored. Who followed one that
    /// began elsewhere forgets all of it, and asks for this one from 0 on.
    pub began: u64,
    /// About `limits::ERASED_PART`; all of one log index are in one answer.
    pub erased: Vec<Erased>,
    /// Everything up to this log index is in `erased`.
    pub upto: u64,
    /// There is more: ask again.
    pub more: bool,
    /// The placement epoch when this was read. Each lift begins a new one, so bytes that were put
    /// under a later epoch may be put after a lift, of which this does not tell.
    pub epoch: Epoch,
}

/// A chunk to erase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Doomed {
    /// Which.
    pub id: ChunkId,
    /// Pages, lists and files that the search found to refer to it. When there are others, nothing
    /// is erased.
    pub refs: u64,
}

/// Something that leads to an erased chunk, as the search saw it. When it is not so any more, nothing
/// is erased.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Parent {
    /// A page of a manifest, or a list of chunks.
    Page {
        /// Which.
        id: ChunkId,
        /// What the search found to refer to it: pages, deploys and files.
        refs: u64,
        /// Those of its children that are erased, or lead to what is.
        below: Vec<ChunkId>,
    },
    /// A file of the namespace.
    File {
        /// Which.
        inode: InodeId,
        /// The id of its content.
        content: ChunkId,
    },
    /// A deploy.
    Deploy {
        /// Of which site.
        site: SiteName,
        /// Which.
        deploy: DeployId,
    },
}

/// A path that an erasure named, and the chunks it had in deploys of the site.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Named {
    /// The path.
    pub path: ByteName,
    /// The chunks.
    pub chunks: Vec<ChunkId>,
}

/// What one erasure was about: kept, so that it can be lifted by the same paths whatever became of
/// the deploys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErasureRecord {
    /// For the sake of which site.
    pub site: SiteName,
    /// Milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// What was named.
    pub named: Vec<Named>,
    /// The lists that are withheld because of it.
    pub lists: Vec<ChunkId>,
}

/// Who has carried out what the list says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErasedBy {
    /// Chunkservers that have.
    pub done: Vec<String>,
    /// Chunkservers that have not, or were not heard of since.
    pub waiting: Vec<String>,
    /// Edges and shields whose caches have no such bytes any more.
    pub caches_done: Vec<String>,
    /// Those that have not said so.
    pub caches_waiting: Vec<String>,
}
