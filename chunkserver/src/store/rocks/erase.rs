//! Erasing: bytes that must not be on this disk any more, also not where nothing refers to them.
//!
//! Large chunks are overwritten where they are before their blocks are given back. So is what was
//! deleted before and could not be given back then; and whatever is behind the valid end of a segment
//! file, which a crash or a failed write left there, is cut off.
//!
//! Small chunks are inside RocksDB, which only ever appends: there the files with everything that is
//! kept are written anew, and the old ones deleted. That takes as long as reading and writing all
//! small chunks does, for each erasure that names a chunk which is in no segment, whether it was ever
//! here or not. It is noted in the write that takes them out of the index, and done again after a
//! crash. Reads and writes go on meanwhile; they wait while chunks in segments are overwritten.
//!
//! What the file system or the medium under it makes of blocks that were overwritten or given back
//! is beyond this.

use std::sync::{Arc, PoisonError};

use atoll_proto::{ChunkId, Epoch};

use super::db::{Db, DbError};
use super::open::Open;
use super::read::{file_failure, read_fills, read_holes};
use super::{EDIT_RECORDS, RocksStore, failure, schema};
use crate::store::{ChunkStore, Meta, Space, StoreError, Wiped};

/// The values of [`Meta::Rewrite`].
const DUE: &[u8] = &[1];
const DONE: &[u8] = &[0];

impl RocksStore {
    /// As [`ChunkStore::erase`].
    pub(super) fn erase_all(
        &self,
        ids: &[ChunkId],
        epoch: Epoch,
        upto: u64,
    ) -> Result<Wiped, StoreError> {
        let _alone = self.erasing.lock().unwrap_or_else(PoisonError::into_inner);
        if ids.is_empty() {
            // Only lifts: or all that was erased before would look like news at the next start.
            if self.is_news(upto)? {
                self.note_erased(upto)?;
            }
            return Ok(Wiped::default());
        }
        self.free_for_deleting();
        let erased = self.erase_and_rewrite(ids, epoch, upto);
        self.take_ballast();
        erased
    }

    /// Whether something was erased since this was last noted.
    fn is_news(&self, upto: u64) -> Result<bool, StoreError> {
        let before = self.load(Meta::Erased)?.and_then(|value| schema::decode_u64(&value));
        Ok(upto > before.unwrap_or(0))
    }

    fn note_erased(&self, upto: u64) -> Result<(), StoreError> {
        self.save(&[(Meta::Erased, upto.to_be_bytes().to_vec())])
    }

    fn erase_and_rewrite(
        &self,
        ids: &[ChunkId],
        epoch: Epoch,
        upto: u64,
    ) -> Result<Wiped, StoreError> {
        let news = self.is_news(upto)?;
        let mut wiped = Wiped::default();
        let mut in_segments = 0;
        for some in ids.chunks(EDIT_RECORDS) {
            let (of_some, of_segments) = self.erase_some(some, epoch)?;
            wiped.chunks += of_some.chunks;
            wiped.bytes += of_some.bytes;
            wiped.newer += of_some.newer;
            in_segments += of_segments;
        }
        if wiped.newer > 0 {
            // The list has changed since: it is asked for again before the long part, in which what
            // was put since could not be read. What is due then stands in the index.
            return Ok(wiped);
        }
        if news || wiped.chunks > 0 {
            self.wipe_leavings()?;
        }
        // One that is not found may have been deleted before, which leaves its bytes in the
        // database's files.
        let unseen = news && in_segments < ids.len() as u64;
        if unseen || self.load(Meta::Rewrite)?.is_some_and(|value| value != DONE) {
            self.rewrite(Db::rewrite_chunks)?;
        }
        if news {
            self.note_erased(upto)?;
        }
        Ok(wiped)
    }

    /// Erases some chunks from the index and the segments. Says how many were in the segments.
    fn erase_some(&self, ids: &[ChunkId], epoch: Epoch) -> Result<(Wiped, u64), StoreError> {
        self.edit("erase chunks", true, |open, edit| {
            let (mut wiped, mut in_segments) = (Wiped::default(), 0);
            for id in ids {
                let Some(old) = edit.row(id)?.filter(|row| row.record.has_bytes()) else {
                    continue;
                };
                if !old.record.is_erased_by(epoch) {
                    wiped.newer += 1;
                    continue;
                }
                if let Some(spot) = old.spot() {
                    let done = open.segments.wipe(spot, old.record.len);
                    done.map_err(|error| file_failure("overwrite a chunk", &error))?;
                    in_segments += 1;
                }
                edit.set(id, Some(old), None);
                wiped.chunks += 1;
                wiped.bytes += u64::from(old.record.len);
            }
            if wiped.chunks > in_segments {
                edit.put_meta(Meta::Rewrite.key(), DUE);
            }
            Ok(((wiped, in_segments), wiped.chunks > 0))
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
