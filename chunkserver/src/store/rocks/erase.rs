//! Erasing: bytes that must not be on this disk any more, also not where nothing refers to them.
//!
//! Large chunks are overwritten where they are before their blocks are given back. So is what was
//! deleted before and could not be given back then; and whatever is behind the valid end of a segment
//! file, which a crash or a failed write left there, is cut off.
//!
//! Small chunks are inside RocksDB, which only ever appends: there the files with everything that is
//! kept are written anew, and the old ones deleted. That takes as long as reading and writing all
//! small chunks does, once for each erasure that may concern them. It is noted in the write that
//! takes them out of the index, and done again after a crash. Reads and writes go on meanwhile.
//!
//! What the file system or the medium under it makes of blocks that were overwritten or given back
//! is beyond this.

use std::sync::{Arc, PoisonError};

use atoll_proto::ChunkId;

use super::db::{Db, DbError};
use super::open::Open;
use super::read::{file_failure, read_fills, read_holes};
use super::{EDIT_RECORDS, RocksStore, failure, schema};
use crate::store::{ChunkStore, Meta, Purged, Space, StoreError};

/// The values of [`Meta::Rewrite`].
const DUE: &[u8] = &[1];
const DONE: &[u8] = &[0];

impl RocksStore {
    /// As [`ChunkStore::erase`].
    pub(super) fn erase_all(&self, ids: &[ChunkId], upto: u64) -> Result<Purged, StoreError> {
        let _alone = self.erasing.lock().unwrap_or_else(PoisonError::into_inner);
        self.free_for_deleting();
        let erased = self.erase_and_rewrite(ids, upto);
        self.take_ballast();
        erased
    }

    fn erase_and_rewrite(&self, ids: &[ChunkId], upto: u64) -> Result<Purged, StoreError> {
        let before = self.load(Meta::Erased)?.and_then(|value| schema::decode_u64(&value));
        let news = upto > before.unwrap_or(0);
        let mut purged = Purged::default();
        let mut in_segments = 0;
        for some in ids.chunks(EDIT_RECORDS) {
            let (of_some, of_segments) = self.erase_some(some)?;
            purged.chunks += of_some.chunks;
            purged.bytes += of_some.bytes;
            in_segments += of_segments;
        }
        if news || purged.chunks > 0 {
            self.wipe_leavings()?;
        }
        // One that is not found may have been deleted before, which leaves its bytes in the
        // database's files.
        let unseen = news && in_segments < ids.len() as u64;
        if unseen || self.load(Meta::Rewrite)?.is_some_and(|value| value != DONE) {
            self.rewrite(Db::rewrite_chunks)?;
        }
        if news {
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
            if purged.chunks > in_segments {
                edit.put_meta(Meta::Rewrite.key(), DUE);
            }
            Ok(((purged, in_segments), purged.chunks > 0))
        })
    }

    /// Overwrites in the segments what no record names.
    fn wipe_leavings(&self) -> Result<(), StoreError> {
        let failed = |error| file_failure("overwrite what deleted chunks have left", &error);
        self.edit("note what was overwritten", true, |Open { db, segments }, edit| {
            let holes = read_holes(db)?;
            for (spot, len) in &holes {
                segments.wipe(*spot, *len).map_err(failed)?;
                segments.punch(*spot, *len).map_err(failed)?;
                edit.emptied(*spot);
            }
            let fills: Vec<_> =
                read_fills(db)?.iter().map(|(segment, fill)| (*segment, fill.end)).collect();
            segments.cut(&fills).map_err(failed)?;
            Ok(((), !holes.is_empty()))
        })
    }

    /// Writes all that is kept in the database anew. The database is not held meanwhile: whoever has to
    /// open it again ends this.
    pub(super) fn rewrite(
        &self,
        write: impl FnOnce(&Db) -> Result<(), DbError>,
    ) -> Result<(), StoreError> {
        const VERB: &str = "write the small chunks anew";
        self.save(&[(Meta::Rewrite, DUE.to_vec())])?;
        let db = self.read(|Open { db, .. }| {
            let needed = db.chunk_bytes().map_err(|error| failure(VERB, error))?;
            let Space { free, reserve, .. } = self.measure()?;
            if free < needed.saturating_add(reserve) {
                return Err(StoreError::Full { free, reserve: needed.saturating_add(reserve) });
            }
            Ok(Arc::clone(db))
        })?;
        let written = write(&db);
        // One that was given up meanwhile says nothing of having stopped half way.
        let in_use = self.read(|open| Ok(Arc::ptr_eq(&open.db, &db)));
        drop(db);
        written.map_err(|error| failure(VERB, error))?;
        if !in_use? {
            let reason = "the database was opened again meanwhile".to_owned();
            return Err(StoreError::Disk { verb: VERB, reason });
        }
        self.save(&[(Meta::Rewrite, DONE.to_vec())])
    }
}
