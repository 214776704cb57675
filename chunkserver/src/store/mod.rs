//! What a chunkserver keeps on disk, and the one trait through which the rest of the role sees it.
//!
//! [`record`] says how a chunk's record may change, [`tally`] what follows from that: plain
//! functions that every back end uses. [`rocks`] keeps it all on a disk; its page `schema` says
//! how. [`memory`] keeps it in maps, for tests of everything above; one battery of tests runs on
//! both. [`writer`] gathers concurrent puts into batches.
//!
//! Nothing here knows of peers, placement or policy: how long something is kept, and whether it
//! may be dropped at all, is for the caller to decide.

use std::collections::HashSet;
use std::sync::Arc;

use atoll_proto::tree::{BUCKETS, Digest};
use atoll_proto::{ChunkId, Epoch, PgId};
use bytes::Bytes;

pub mod memory;
mod record;
pub mod rocks;
mod tally;
#[cfg(test)]
mod tests;
pub mod writer;

pub use record::{Body, Mark, Record};
pub use rocks::FORMAT;
pub use tally::Totals;

/// A chunk on its way to the disk. Its bytes have been checked against its id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewChunk {
    /// Its name.
    pub id: ChunkId,
    /// Its bytes.
    pub bytes: Bytes,
    /// The placement epoch under which it came.
    pub epoch: Epoch,
    /// When it came, in milliseconds since 1970.
    pub at_ms: u64,
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
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batched {
    /// Chunks written.
    pub written: usize,
    /// Bytes of chunks written.
    pub bytes: u64,
    /// Chunks that were here already and were not written again.
    pub known: usize,
    /// Chunks that were taken down, and were not written ([`ChunkStore::refuse`]).
    pub refused: Vec<ChunkId>,
}

/// What a list of marks did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Marked {
    /// Chunks that became live and are not here in good order, in the order of the marks.
    pub lacking: Vec<ChunkId>,
    /// Present chunks that went to quarantine.
    pub quarantined: u64,
}

/// What a purge deleted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Purged {
    /// Chunks whose bytes are gone.
    pub chunks: u64,
    /// How many bytes that were.
    pub bytes: u64,
}

/// What an erasure did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wiped {
    /// Chunks whose bytes are gone.
    pub chunks: u64,
    /// How many bytes that were.
    pub bytes: u64,
    /// Chunks that were left, because they were put under a newer epoch.
    pub newer: u64,
}

/// What was taken back from stores that were set aside.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Salvaged {
    /// Chunks that are present now and were not.
    pub chunks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// There is nothing more to take back.
    pub complete: bool,
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
    /// The last order to verify everything, and how far it was carried out.
    Scrub,
    /// The log index up to which erased chunks are in no file.
    Erased,
    /// Whether the database's files have to be written anew, because chunks in it were erased.
    Rewrite,
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
    /// The index itself is damaged. The store sets itself aside and begins anew, empty, before
    /// its next use: see [`ChunkStore::refilling`].
    #[error("the index of the chunks is damaged: {reason}")]
    Damaged {
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
    /// The chunk was taken down.
    #[error(
        "chunk {id} was erased (`atoll invalidate --erase`) and is not kept any more; allow it \
         again with `atoll invalidate SITE --path PATH --unerase`"
    )]
    Erased {
        /// Which.
        id: ChunkId,
    },
    /// The disk does not keep up.
    #[error("the disk does not keep up with the writes; try again, or another chunkserver")]
    Busy,
    /// The store is shut.
    #[error("the chunk store is closed")]
    Closed,
}

/// A store of chunks. Calls block: on a disk they belong on a thread that may wait.
///
/// Every change is atomic, with all that follows from it: a record, the digest of its bucket, the
/// totals and the lists of what is lacking and what is in quarantine always agree, whatever
/// happens to the process or the power. A change that is *synced* is on disk when the call
/// returns; one that is not may be undone by a loss of power, but never survives one that came
/// before it.
///
/// # Errors
/// Every call may fail because the disk does, or with [`StoreError::Damaged`]; then it changed
/// nothing.
pub trait ChunkStore: Send + Sync + 'static {
    /// Stores chunks. When it returns without an error all of them are present on disk, synced,
    /// whatever happens to the process or the power. Chunks that are present already, as a look at
    /// their bytes shows, are not written again; if their time is more than an hour old, they get the new one. Good bytes
    /// replace those of a chunk in any other state. Their bytes must have been verified by the
    /// caller.
    ///
    /// # Errors
    /// [`StoreError::Full`], or the disk fails: then none of the chunks counts as stored, and the
    /// totals do not change.
    fn put_batch(&self, batch: &[NewChunk]) -> Result<Batched, StoreError>;

    /// Follows what the master said, in order, and stores `applied`, the position in its feed, in
    /// the same change. Not synced.
    ///
    /// [`Mark::Live`] makes a chunk live, and known if it was not. [`Mark::Collected`] makes it
    /// not live and moves its bytes, if they are present, to quarantine.
    ///
    /// # Errors
    /// When the disk fails.
    fn mark(
        &self,
        marks: &[(ChunkId, Mark)],
        now_ms: u64,
        applied: Option<u64>,
    ) -> Result<Marked, StoreError>;

    /// The last position stored by [`ChunkStore::mark`]; 0 if there is none.
    ///
    /// # Errors
    /// When the disk fails.
    fn applied(&self) -> Result<u64, StoreError>;

    /// Makes chunks not live that the master does not have, without moving their bytes: they may
    /// be about to become live, and are as young as if they had been put now. Not synced. Says
    /// how many were live.
    ///
    /// # Errors
    /// When the disk fails.
    fn forget_live(&self, ids: &[ChunkId], now_ms: u64) -> Result<u64, StoreError>;

    /// Moves those of the chunks to quarantine that are present and not live, and that were last put,
    /// or came to be as they are, before `before_ms`: a put that was acknowledged at any time before
    /// the move keeps its chunk. Not synced. Says how many.
    ///
    /// # Errors
    /// When the disk fails.
    fn quarantine_older(
        &self,
        ids: &[ChunkId],
        before_ms: u64,
        now_ms: u64,
    ) -> Result<u64, StoreError>;

    /// As [`ChunkStore::quarantine_older`], whenever they were put.
    ///
    /// # Errors
    /// When the disk fails.
    fn quarantine(&self, ids: &[ChunkId], now_ms: u64) -> Result<u64, StoreError> {
        self.quarantine_older(ids, u64::MAX, now_ms)
    }

    /// Makes all chunks of a group not live and moves what is present to quarantine: this node is
    /// no member of the group any more. Not synced, and atomic only for each chunk. Says how many
    /// chunks were live or present.
    ///
    /// # Errors
    /// When the disk fails.
    fn release_group(&self, pg: PgId, now_ms: u64) -> Result<u64, StoreError>;

    /// Makes a chunk in quarantine present, if its bytes, read once more, are good; if they are
    /// not, it is corrupt from then on. Synced. True if it is present now and was not.
    ///
    /// # Errors
    /// When the disk fails.
    fn restore(&self, id: &ChunkId, now_ms: u64) -> Result<bool, StoreError>;

    /// Takes a present chunk out of service if its bytes, read once more, are still wrong. Synced.
    /// True if it was taken out.
    ///
    /// # Errors
    /// When the disk fails.
    fn spoil(&self, id: &ChunkId, now_ms: u64) -> Result<bool, StoreError>;

    /// Deletes the bytes of at most `limit` chunks that are not live and have been in quarantine,
    /// or corrupt, since before `before_ms`, oldest first, and gives back their room. Synced.
    /// Works on a full disk.
    ///
    /// # Errors
    /// When the disk fails.
    fn purge(&self, before_ms: u64, limit: usize) -> Result<Purged, StoreError>;

    /// From now on these chunks are not stored, and no others are refused. A put that has not ended
    /// by then has either been made, or is refused.
    fn refuse(&self, refused: Arc<HashSet<ChunkId>>);

    /// Deletes the bytes of chunks that were taken down, whatever state they are in, so that they
    /// are in no file of the store any more, also not where an earlier deletion, or a write
    /// that failed, left them. Chunks that are not here are passed over, unless they were erased
    /// after the log index of the last call. What a crash, or an error, leaves undone is done by the
    /// next call. Synced; `upto` is the log index up to which everything is erased now. What was set
    /// aside is not looked at. Chunks that were put under a newer epoch than `epoch` are left, and
    /// counted: whether they are meant has to be asked again, and until then `upto` does not hold.
    ///
    /// # Errors
    /// When the disk fails, or has no room to write the other chunks anew; then some may be erased.
    fn erase(&self, ids: &[ChunkId], epoch: Epoch, upto: u64) -> Result<Wiped, StoreError>;

    /// The whole chunk as it is on disk, if it is present. The caller verifies the hash; a range
    /// is cut from the whole, because only the whole can be verified.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] when the store itself notices, or the disk fails.
    fn get(&self, id: &ChunkId) -> Result<Option<Bytes>, StoreError>;

    /// The next read of this chunk is to be from the disk, as far as that can be had: what is in
    /// memory says nothing about the disk.
    fn forget_cached(&self, _id: &ChunkId) {}

    /// What is known of a chunk.
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
        Ok(record.filter(|record| record.body == Body::Present).map(|record| record.len))
    }

    /// Up to `limit` records of any kind in the order of ids, starting after `after`.
    ///
    /// # Errors
    /// When the disk fails.
    fn list(
        &self,
        after: Option<&ChunkId>,
        limit: usize,
    ) -> Result<Vec<(ChunkId, Record)>, StoreError>;

    /// As [`ChunkStore::list`], within one group.
    ///
    /// # Errors
    /// When the disk fails.
    fn list_group(
        &self,
        pg: PgId,
        after: Option<&ChunkId>,
        limit: usize,
    ) -> Result<Vec<(ChunkId, Record)>, StoreError>;

    /// Up to `limit` chunks that are live and not present, in the order of ids, starting after
    /// `after`.
    ///
    /// # Errors
    /// When the disk fails.
    fn lacking(
        &self,
        after: Option<&ChunkId>,
        limit: usize,
    ) -> Result<Vec<(ChunkId, Body)>, StoreError>;

    /// The digests of a group's buckets, over the chunks that are live and present.
    ///
    /// # Errors
    /// When the disk fails.
    fn buckets(&self, pg: PgId) -> Result<Box<[Digest; BUCKETS]>, StoreError>;

    /// How many chunks of a group are live and present.
    ///
    /// # Errors
    /// When the disk fails.
    fn group_count(&self, pg: PgId) -> Result<u64, StoreError>;

    /// The chunks of a bucket that are live and present, sorted.
    ///
    /// # Errors
    /// When the disk fails.
    fn bucket_ids(&self, pg: PgId, bucket: u8) -> Result<Vec<ChunkId>, StoreError>;

    /// The groups whose digests changed since this was last asked; at first all groups. Whoever
    /// asks reads their buckets after that.
    fn changed_groups(&self) -> Vec<PgId>;

    /// For every group when all of it was last read and verified, as
    /// [`ChunkStore::set_scrubbed`] was told.
    ///
    /// # Errors
    /// When the disk fails.
    fn scrubbed(&self) -> Result<Vec<Option<u64>>, StoreError>;

    /// Remembers that all of a group was read and verified at this time. Not synced.
    ///
    /// # Errors
    /// When the disk fails.
    fn set_scrubbed(&self, pg: PgId, at_ms: u64) -> Result<(), StoreError>;

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

    /// Whether an earlier store could not be read and was set aside, and this one, which began
    /// empty, is being filled anew.
    fn refilling(&self) -> bool;

    /// Whether [`ChunkStore::salvage`] has yet to go through something that was set aside.
    fn unsalvaged(&self) -> bool;

    /// Takes chunks back from stores that were set aside, as far as their bytes are good, going on
    /// where the last call stopped; reads about `bytes_max` bytes. What it takes back is present,
    /// and live only if the master said so since. What it has been through is deleted, as it goes
    /// on: it needs room for a few chunks, and leaves less of the reserve free than puts do.
    ///
    /// # Errors
    /// When the disk fails or is full.
    fn salvage(&self, now_ms: u64, bytes_max: u64) -> Result<Salvaged, StoreError>;

    /// What was set aside is not needed any more: deletes it, unless something is left to salvage.
    /// May take long. Says whether the refill is over.
    ///
    /// # Errors
    /// When the disk fails; a part may be deleted then.
    fn finish_refill(&self) -> Result<bool, StoreError>;

    /// Flushes and shuts the store. Every later call fails with [`StoreError::Closed`].
    fn close(&self);
}

impl Meta {
    /// Every key.
    pub const ALL: [Self; 8] = [
        Self::Format,
        Self::Cluster,
        Self::Node,
        Self::Fence,
        Self::View,
        Self::Scrub,
        Self::Erased,
        Self::Rewrite,
    ];
}

impl Marked {
    /// Adds what one mark did to a record that was `old` and is `new`.
    fn note(&mut self, id: &ChunkId, old: Option<&Record>, new: Option<&Record>) {
        let was_live = old.is_some_and(|old| old.live);
        if !was_live && new.is_some_and(Record::is_lacking) {
            self.lacking.push(*id);
        }
        let was_present = old.is_some_and(|old| old.body == Body::Present);
        if was_present && new.is_some_and(|new| new.body == Body::Quarantined) {
            self.quarantined += 1;
        }
    }
}

impl Salvaged {
    /// Adds what was stored.
    fn note(&mut self, batched: &Batched) {
        self.chunks += batched.written as u64;
        self.bytes += batched.bytes;
    }
}

/// The length of a chunk as the index keeps it. Chunks are far shorter than 4 GiB: the limits of
/// a frame see to that.
fn len_of(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).expect("a chunk is at most limits::CHUNK_BYTES_MAX long")
}
