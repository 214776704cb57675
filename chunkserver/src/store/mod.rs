//! What a chunkserver keeps on disk, and the one trait through which the rest of the role sees it.
//!
//! This page is the schema. [`rocks`] keeps it in RocksDB (and is the only user of that library),
//! [`memory`] in a map, for tests of everything above; one battery of tests runs on both.
//! [`writer`] gathers concurrent puts into batches. Nothing here knows of peers or placement.
//!
//! ```text
//! family  key                      value                                    changes
//! chunks  pool u8, id [32]         the chunk's bytes                        never, except that a
//!                                                                           good copy may replace a
//!                                                                           corrupt one
//! index   pool u8, id [32]         version u8 = 1, state u8, len u32 BE,    state only
//!                                  epoch u64 BE (placement epoch at put)
//! meta    'f' format               version u32 BE of this page              with an upgrade
//!         'c' cluster              cluster id [16]                          never
//!         'n' node                 node id u64 BE                           never
//!         'e' fence                epoch u64 BE, term u64 BE: the highest   grows
//!                                  ever heard from a master
//!         'v' view                 the last cluster view, as encoded by     with every new view
//!                                  proto
//!         't' totals               chunks u64 BE, bytes u64 BE, corrupt     with every batch
//!                                  found u64 BE
//! ```
//! The pool byte is 0. An id starts with the 12 bits of its placement group, so all chunks of a
//! group are one range of keys, in the order of their ids. A chunk, its index entry and the totals
//! change in one write. An id is *here* if its index entry says [`State::Present`].

use atoll_proto::{ChunkId, Epoch};
use bytes::Bytes;

pub mod memory;
pub mod rocks;
#[cfg(test)]
mod tests;
pub mod writer;

/// Version of the schema on this page.
pub const FORMAT: u32 = 1;
/// The only pool there is: plain replicas.
const POOL: u8 = 0;
/// Length of a key in `chunks` and `index`.
const KEY_BYTES: usize = 33;
/// Length of a value in `index`.
const RECORD_BYTES: usize = 14;
const RECORD_VERSION: u8 = 1;

/// A chunk on its way to the disk. Its bytes have been checked against its id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewChunk {
    /// Its name.
    pub id: ChunkId,
    /// Its bytes.
    pub bytes: Bytes,
    /// The placement epoch under which it came.
    pub epoch: Epoch,
}

/// Whether a chunk may be served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It is here, as far as known in good order.
    Present,
    /// Its bytes were found not to have the hash they are named by. It is kept, for people to
    /// look at, and not served; a new put of the same id replaces it.
    Corrupt,
}

/// An entry of the index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// Whether the chunk may be served.
    pub state: State,
    /// Its length in bytes.
    pub len: u32,
    /// The placement epoch under which it was stored.
    pub epoch: Epoch,
}

/// What the store counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    /// Chunks that are present.
    pub chunks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Chunks ever found corrupt.
    pub corrupt_found: u64,
}

/// Room on the disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Space {
    /// Bytes free for this process.
    pub free: u64,
    /// Bytes in all.
    pub total: u64,
    /// Free bytes that puts must leave.
    pub reserve: u64,
}

/// What one batch did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Batched {
    /// Chunks written.
    pub written: usize,
    /// Bytes of chunks written.
    pub bytes: u64,
    /// Chunks that were here already and were not written again.
    pub known: usize,
}

/// A single value beside the chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Meta {
    /// Version of the schema.
    Format,
    /// The cluster this store belongs to.
    Cluster,
    /// The node this store belongs to.
    Node,
    /// The highest epoch and term heard from a master.
    Fence,
    /// The last cluster view.
    View,
    /// The totals.
    Totals,
}

/// Why the store could not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// No room. Reads go on; puts work again once there is room.
    #[error(
        "no room for chunks: {free} bytes are free and {reserve} must stay so; free some space or \
         add a chunkserver"
    )]
    Full {
        /// Bytes free now.
        free: u64,
        /// Bytes that must stay free.
        reserve: u64,
    },
    /// The index has the chunk, but its bytes are damaged or gone.
    #[error("chunk {id} is damaged on disk: {reason}")]
    Corrupt {
        /// Which.
        id: ChunkId,
        /// What is wrong with it.
        reason: String,
    },
    /// The disk, or the library above it, failed.
    #[error("cannot {verb}: {reason}")]
    Disk {
        /// What was tried.
        verb: &'static str,
        /// What the library said.
        reason: String,
    },
    /// The disk does not keep up.
    #[error("the disk does not keep up with the writes; try again, or another chunkserver")]
    Busy,
    /// The store is shut.
    #[error("the chunk store is closed")]
    Closed,
}

/// A store of chunks. Calls block: on a disk they belong on a thread that may wait.
pub trait ChunkStore: Send + Sync + 'static {
    /// Stores chunks. When it returns without an error all of them are on disk, synced, whatever
    /// happens to the process or the power. Chunks that are present already are not written
    /// again. Their bytes must have been verified by the caller.
    ///
    /// # Errors
    /// [`StoreError::Full`], or the disk fails: then none of the chunks counts as stored, and the
    /// totals do not change.
    fn put_batch(&self, batch: &[NewChunk]) -> Result<Batched, StoreError>;

    /// The whole chunk as it is on disk, if it is present. The caller verifies the hash; a range
    /// is cut from the whole, because only the whole can be verified.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] when the store itself notices, or the disk fails.
    fn get(&self, id: &ChunkId) -> Result<Option<Bytes>, StoreError>;

    /// The index entry, of whatever state.
    ///
    /// # Errors
    /// When the disk fails.
    fn record(&self, id: &ChunkId) -> Result<Option<Record>, StoreError>;

    /// Whether the chunk is present.
    ///
    /// # Errors
    /// When the disk fails.
    fn has(&self, id: &ChunkId) -> Result<bool, StoreError> {
        Ok(self.len(id)?.is_some())
    }

    /// The length of the chunk, if it is present.
    ///
    /// # Errors
    /// When the disk fails.
    fn len(&self, id: &ChunkId) -> Result<Option<u32>, StoreError> {
        let record = self.record(id)?;
        Ok(record.filter(|record| record.state == State::Present).map(|record| record.len))
    }

    /// Takes a chunk out of service if its bytes, read once more, are still wrong. True if it was
    /// taken out.
    ///
    /// # Errors
    /// When the disk fails.
    fn quarantine(&self, id: &ChunkId) -> Result<bool, StoreError>;

    /// Up to `limit` entries of the index in the order of ids, starting after `after`.
    ///
    /// # Errors
    /// When the disk fails or an entry makes no sense.
    fn list(
        &self,
        after: Option<&ChunkId>,
        limit: usize,
    ) -> Result<Vec<(ChunkId, Record)>, StoreError>;

    /// What the store counts.
    fn totals(&self) -> Totals;

    /// Room on the disk.
    ///
    /// # Errors
    /// When the file system does not say.
    fn space(&self) -> Result<Space, StoreError>;

    /// A value beside the chunks.
    ///
    /// # Errors
    /// When the disk fails.
    fn load(&self, key: Meta) -> Result<Option<Vec<u8>>, StoreError>;

    /// Stores values beside the chunks, all or none, synced.
    ///
    /// # Errors
    /// When the disk fails.
    fn save(&self, values: &[(Meta, Vec<u8>)]) -> Result<(), StoreError>;

    /// Flushes and shuts the store. Every later call fails with [`StoreError::Closed`].
    fn close(&self);
}

/// The key of a chunk in `chunks` and `index`.
fn chunk_key(id: &ChunkId) -> [u8; KEY_BYTES] {
    let mut key = [POOL; KEY_BYTES];
    key[1..].copy_from_slice(id.as_bytes());
    key
}

/// The id in a key of `chunks` or `index`.
fn key_chunk(key: &[u8]) -> Option<ChunkId> {
    match key.split_first() {
        Some((&POOL, id)) => id.try_into().ok().map(ChunkId),
        _ => None,
    }
}

impl Record {
    fn encode(&self) -> [u8; RECORD_BYTES] {
        let mut out = [0; RECORD_BYTES];
        out[0] = RECORD_VERSION;
        out[1] = match self.state {
            State::Present => 1,
            State::Corrupt => 2,
        };
        out[2..6].copy_from_slice(&self.len.to_be_bytes());
        out[6..].copy_from_slice(&self.epoch.0.to_be_bytes());
        out
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; RECORD_BYTES] = bytes.try_into().ok()?;
        let [RECORD_VERSION, state, a, b, c, d, epoch @ ..] = *bytes else { return None };
        let state = match state {
            1 => State::Present,
            2 => State::Corrupt,
            _ => return None,
        };
        let epoch = Epoch(u64::from_be_bytes(epoch));
        Some(Self { state, len: u32::from_be_bytes([a, b, c, d]), epoch })
    }
}

impl Meta {
    /// Every key.
    pub const ALL: [Self; 6] =
        [Self::Format, Self::Cluster, Self::Node, Self::Fence, Self::View, Self::Totals];

    /// The key in `meta`.
    fn key(self) -> &'static [u8] {
        match self {
            Self::Format => b"f",
            Self::Cluster => b"c",
            Self::Node => b"n",
            Self::Fence => b"e",
            Self::View => b"v",
            Self::Totals => b"t",
        }
    }
}

impl Totals {
    fn encode(&self) -> Vec<u8> {
        [self.chunks, self.bytes, self.corrupt_found].map(u64::to_be_bytes).concat()
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (words, []) = bytes.as_chunks::<8>() else { return None };
        let [chunks, bytes, corrupt_found] = *words else { return None };
        Some(Self {
            chunks: u64::from_be_bytes(chunks),
            bytes: u64::from_be_bytes(bytes),
            corrupt_found: u64::from_be_bytes(corrupt_found),
        })
    }

    /// The totals once a chunk of this length is present that was not.
    fn added(&mut self, len: u32) {
        self.chunks += 1;
        self.bytes += u64::from(len);
    }

    /// The totals once a present chunk of this length turned out corrupt.
    fn spoiled(&mut self, len: u32) {
        self.chunks = self.chunks.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(u64::from(len));
        self.corrupt_found += 1;
    }
}

/// The length of a chunk as the index keeps it. Chunks are far shorter than 4 GiB: the limits of
/// a frame see to that.
fn len_of(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).expect("a chunk is at most limits::CHUNK_BYTES_MAX long")
}
