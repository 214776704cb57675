//! Erasing: bytes that must not be on this disk any more, also not where nothing refers to them.
//!
//! Large chunks are overwritten where they are before their blocks are given back. Small ones are
//! inside RocksDB, which only ever appends: there the files with everything that is kept are
//! written anew, and the old ones deleted. That takes as long as reading and writing all small
//! chunks does, once for each erasure that may concern them.
//!
//! What the file system or the medium under it makes of blocks that were overwritten or given back
//! is beyond this.

use atoll_proto::ChunkId;

use super::open::Open;
use super::read::file_failure;
use super::{EDIT_RECORDS, RocksStore, failure, schema};
use crate::store::{ChunkStore, Meta, Purged, Space, StoreError};

impl RocksStore {
    /// As [`ChunkStore::erase`].
    pub(super) fn erase_all(&self, ids: &[ChunkId], upto: u64) -> Result<Purged, StoreError> {
        self.free_for_deleting();
        let erased = self.erase_and_rewrite(ids, upto);
        self.take_ballast();
        erased
    }

    fn erase_and_rewrite(&self, ids: &[ChunkId], upto: u64) -> Result<Purged, StoreError> {
        let before = self.load(Meta::Erased)?.and_then(|value| schema::decode_u64(&value));
        let mut purged = Purged::default();
        let mut in_segments = 0;
        for some in ids.chunks(EDIT_RECORDS) {
            let (of_some, of_segments) = self.erase_some(some)?;
            purged.chunks += of_some.chunks;
            purged.bytes += of_some.bytes;
            in_segments += of_segments;
        }
        // One that is not found may have been deleted before, which leaves its bytes in the
        // database's files.
        let new = upto > before.unwrap_or(0) && in_segments < ids.len() as u64;
        if new || purged.chunks > in_segments {
            self.rewrite()?;
        }
        if upto > before.unwrap_or(0) {
            self.save(&[(Meta::Erased, upto.to_be_bytes().to_vec())])?;
        }
        Ok(purged)
    }

    /// Erases some chunks from the index and the segments. Says how many were in the segments.
    fn erase_some(&self, ids: &[ChunkId]) -> Result<(Purged, u64), StoreError> {
        self.edit("erase chunks", true, |open, edit| {
            let (mut purged, mut in_segments) = (Purged::default(), 0);
            for id in ids {
                let Some(old) = edit.row(id)?.filter(|row| row.record.has_bytes()) else {
                    continue;
                };
                if let Some(spot) = old.spot() {
                    let wiped = open.segments.wipe(spot, old.record.len);
                    wiped.map_err(|error| file_failure("overwrite a chunk", &error))?;
                    in_segments += 1;
                }
                edit.set(id, Some(old), None);
                purged.chunks += 1;
                purged.bytes += u64::from(old.record.len);
            }
            Ok(((purged, in_segments), purged.chunks > 0))
        })
    }

    /// Writes all that is kept in the database anew.
    fn rewrite(&self) -> Result<(), StoreError> {
        self.read(|Open { db, .. }| {
            let verb = "write the small chunks anew";
            let needed = db.chunk_bytes().map_err(|error| failure(verb, error))?;
            let Space { free, reserve, .. } = self.measure()?;
            if free < needed.saturating_add(reserve) {
                return Err(StoreError::Full { free, reserve: needed.saturating_add(reserve) });
            }
            db.rewrite_chunks().map_err(|error| failure(verb, error))
        })
    }
}
