//! What is in the database, as values.

use std::io;

use atoll_proto::{ChunkId, PgId};
use bytes::Bytes;

use super::db::{Db, DbError};
use super::schema::{self, Family, Fill, Place, Row};
use super::segments::{ReadError, Segments, Spot};
use crate::store::tally::{Bucket, BucketKey};
use crate::store::{Record, StoreError, Totals};

/// What the index has of a chunk.
pub(super) fn read_row(db: &Db, id: &ChunkId) -> Result<Option<Row>, StoreError> {
    let value = db.get(Family::Index, &schema::chunk_key(id)).map_err(index_failure)?;
    let Some(value) = value else { return Ok(None) };
    Row::decode(value.as_ref()).map(Some).ok_or_else(|| nonsense("an entry of the index"))
}

/// Records in the order of ids, from a key on and after an id, up to and without `end`.
pub(super) fn records<'a>(
    db: &'a Db,
    first: &[u8],
    end: Option<Vec<u8>>,
    after: Option<&ChunkId>,
) -> impl Iterator<Item = Result<(ChunkId, Record), StoreError>> + use<'a> {
    let skipped = after.copied();
    let after = after.map(schema::chunk_key);
    let from = after.as_ref().map_or(first, |key| first.max(&key[..]));
    let entries = db.scan(Family::Index, from, end).map(|entry| {
        let (key, value) = entry.map_err(index_failure)?;
        let id = schema::key_chunk(&key).ok_or_else(|| nonsense("a key of the index"))?;
        let row = Row::decode(&value).ok_or_else(|| nonsense("an entry of the index"))?;
        Ok((id, row.record))
    });
    entries.filter(move |entry| !matches!(entry, Ok((id, _)) if Some(*id) == skipped))
}

/// The bytes of a chunk, which should be where the index has them.
pub(super) fn read_bytes(
    db: &Db,
    segments: &Segments,
    id: &ChunkId,
    row: &Row,
) -> Result<Bytes, StoreError> {
    let damaged = |reason: String| StoreError::Corrupt { id: *id, reason };
    if let Place::Segment(spot) = row.place {
        return segments.read(spot, row.record.len).map_err(|error| match error {
            ReadError::Damaged(reason) => damaged(reason),
            ReadError::Failed(error) => file_failure("read a chunk", &error),
        });
    }
    match db.get(Family::Chunks, &schema::chunk_key(id)) {
        Ok(Some(value)) if value.as_ref().len() as u64 == u64::from(row.record.len) => {
            Ok(Bytes::copy_from_slice(value.as_ref()))
        }
        Ok(Some(value)) => {
            Err(damaged(format!("{} bytes instead of {}", value.as_ref().len(), row.record.len)))
        }
        Ok(None) => Err(damaged("its bytes are gone".to_owned())),
        Err(DbError::Damaged(reason) | DbError::Unreadable(reason)) => Err(damaged(reason)),
        Err(error) => Err(failure("read a chunk", error)),
    }
}

/// The oldest chunks that were to be deleted before a moment.
pub(super) fn read_due(db: &Db, before_ms: u64, limit: usize) -> Result<Vec<ChunkId>, StoreError> {
    let end = before_ms.to_be_bytes().to_vec();
    let mut due = Vec::new();
    for entry in db.scan(Family::Quarantine, &[], Some(end)).take(limit) {
        let (key, _) = entry.map_err(index_failure)?;
        let named = schema::key_quarantine(&key);
        due.push(named.ok_or_else(|| nonsense("a key of the quarantine"))?.1);
    }
    Ok(due)
}

/// The buckets of a group that have chunks.
pub(super) fn read_buckets(
    db: &Db,
    pg: PgId,
    mut found: impl FnMut(u8, Bucket),
) -> Result<(), StoreError> {
    let first = schema::bucket_key((pg, 0));
    for entry in db.scan(Family::Buckets, &first, None) {
        let (key, value) = entry.map_err(index_failure)?;
        let (of, number) = schema::key_bucket(&key).ok_or_else(|| nonsense("a bucket's key"))?;
        if of != pg {
            break;
        }
        found(number, Bucket::decode(&value).ok_or_else(|| nonsense("a bucket"))?);
    }
    Ok(())
}

/// One bucket.
pub(super) fn read_bucket(db: &Db, key: BucketKey) -> Result<Bucket, StoreError> {
    let value = db.get(Family::Buckets, &schema::bucket_key(key)).map_err(index_failure)?;
    let Some(value) = value else { return Ok(Bucket::default()) };
    Bucket::decode(value.as_ref()).ok_or_else(|| nonsense("a bucket"))
}

/// How a segment is filled.
pub(super) fn read_fill(db: &Db, segment: u32) -> Result<Fill, StoreError> {
    let value = db.get(Family::Segments, &schema::segment_key(segment)).map_err(index_failure)?;
    let Some(value) = value else { return Ok(Fill::default()) };
    Fill::decode(value.as_ref()).ok_or_else(|| nonsense("an entry of the segments"))
}

/// How all segments are filled, in the order of their numbers.
pub(super) fn read_fills(db: &Db) -> Result<Vec<(u32, Fill)>, StoreError> {
    let entries = db.scan(Family::Segments, &[], None).map(|entry| {
        let (key, value) = entry.map_err(index_failure)?;
        let segment = schema::key_segment(&key).ok_or_else(|| nonsense("a segment's key"))?;
        let fill = Fill::decode(&value).ok_or_else(|| nonsense("an entry of the segments"))?;
        Ok((segment, fill))
    });
    entries.collect()
}

/// What is still to be deleted from the segments.
pub(super) fn read_holes(db: &Db) -> Result<Vec<(Spot, u32)>, StoreError> {
    let entries = db.scan(Family::Holes, &[], None).map(|entry| {
        let (key, value) = entry.map_err(index_failure)?;
        schema::hole(&key, &value).ok_or_else(|| nonsense("a hole"))
    });
    entries.collect()
}

/// The totals, and whether the store was closed after they were written.
pub(super) fn read_totals(db: &Db) -> Result<(Totals, bool), StoreError> {
    let value = db.get(Family::Meta, schema::TOTALS).map_err(index_failure)?;
    match value {
        None => Ok((Totals::default(), true)),
        Some(value) => schema::value_totals(value.as_ref()).ok_or_else(|| nonsense("the totals")),
    }
}

/// A failure of the database as callers see it.
pub(super) fn failure(verb: &'static str, error: DbError) -> StoreError {
    match error {
        DbError::Damaged(reason) => StoreError::Damaged { reason },
        DbError::Full(_) => StoreError::Full { free: 0, reserve: 0 },
        error => StoreError::Disk { verb, reason: error.into_reason() },
    }
}

/// A failure to read what belongs to the index.
pub(super) fn index_failure(error: DbError) -> StoreError {
    match error {
        // Nothing else has what an unreadable sector of it had.
        DbError::Unreadable(reason) => StoreError::Damaged { reason },
        error => failure("read the index of the chunks", error),
    }
}

/// A failure of a file as callers see it.
pub(super) fn file_failure(verb: &'static str, error: &io::Error) -> StoreError {
    match error.kind() {
        io::ErrorKind::StorageFull => StoreError::Full { free: 0, reserve: 0 },
        _ => StoreError::Disk { verb, reason: error.to_string() },
    }
}

/// Something in the database that this program did not write.
pub(super) fn nonsense(what: &str) -> StoreError {
    StoreError::Damaged { reason: format!("{what} makes no sense") }
}
