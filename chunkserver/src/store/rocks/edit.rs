//! A change under way: records by id, and at the end everything that follows from them, in one
//! batch.

use std::collections::{BTreeMap, HashMap, btree_map};

use atoll_proto::{ChunkId, PgId};

use super::db::{Batch, Db};
use super::frame;
use super::read::{read_bucket, read_fill, read_row};
use super::schema::{self, Family, Fill, Place, Row};
use super::segments::{Appended, Segments, Spot};
use crate::store::tally::{Bucket, BucketKey, bucket_key};
use crate::store::{Record, StoreError, Totals};

/// Changes of records that will be made together.
pub(super) struct Edit<'a> {
    db: &'a Db,
    batch: Batch<'a>,
    rows: HashMap<ChunkId, Change>,
    appended: Option<Appended>,
}

/// What is in the index, and what is to be.
struct Change {
    old: Option<Row>,
    new: Option<Row>,
}

/// An edit that is ready to be written.
pub(super) struct Edited<'a> {
    /// The changes.
    pub(super) batch: Batch<'a>,
    /// The totals once they are made.
    pub(super) totals: Totals,
    /// Groups whose digests they change.
    pub(super) groups: Vec<PgId>,
    /// What they make valid in the segments.
    pub(super) appended: Option<Appended>,
    /// What can be deleted from the segments once they are made, and on disk.
    pub(super) freed: Freed,
}

/// What nothing refers to any more.
#[derive(Debug, Default)]
pub(super) struct Freed {
    /// Chunks, with their lengths.
    pub(super) holes: Vec<(Spot, u32)>,
    /// Whole files.
    pub(super) segments: Vec<u32>,
}

impl<'a> Edit<'a> {
    /// An edit that changes nothing yet.
    pub(super) fn new(db: &'a Db) -> Self {
        Self { db, batch: db.batch(), rows: HashMap::new(), appended: None }
    }

    /// What the index has of a chunk as the edit so far leaves it.
    pub(super) fn row(&self, id: &ChunkId) -> Result<Option<Row>, StoreError> {
        match self.rows.get(id) {
            Some(change) => Ok(change.new),
            None => read_row(self.db, id),
        }
    }

    /// Replaces the record of a chunk, which is `now` as the edit so far leaves it. Its bytes stay
    /// where they are.
    pub(super) fn set(&mut self, id: &ChunkId, now: Option<Row>, new: Option<Record>) {
        let place = now.map_or(Place::Database, |row| row.place);
        self.replace(id, now, new.map(|record| Row { record, place }));
    }

    /// As [`Edit::set`], with the bytes in the database.
    pub(super) fn put(&mut self, id: &ChunkId, now: Option<Row>, record: Record, bytes: &[u8]) {
        self.batch.put(Family::Chunks, &schema::chunk_key(id), bytes);
        self.replace(id, now, Some(Row { record, place: Place::Database }));
    }

    /// As [`Edit::set`], with the bytes at a spot of the segments.
    pub(super) fn place(&mut self, id: &ChunkId, now: Option<Row>, record: Record, spot: Spot) {
        self.replace(id, now, Some(Row { record, place: Place::Segment(spot) }));
    }

    /// Makes what was appended to the segments valid.
    pub(super) fn append(&mut self, appended: Appended) {
        self.appended = Some(appended);
    }

    /// Sets a single value.
    pub(super) fn put_meta(&mut self, key: &[u8], value: &[u8]) {
        self.batch.put(Family::Meta, key, value);
    }

    /// A hole is one by now.
    pub(super) fn emptied(&mut self, spot: Spot) {
        self.batch.delete(Family::Holes, &schema::hole_key(spot));
    }

    fn replace(&mut self, id: &ChunkId, now: Option<Row>, new: Option<Row>) {
        self.rows.entry(*id).or_insert(Change { old: now, new: None }).new = new;
    }

    /// Adds what follows from the changes of records.
    pub(super) fn finish(
        self,
        mut totals: Totals,
        segments: &Segments,
    ) -> Result<Edited<'a>, StoreError> {
        let Self { db, mut batch, rows, appended } = self;
        let mut buckets: BTreeMap<BucketKey, Bucket> = BTreeMap::new();
        let mut fills: BTreeMap<u32, Fill> = BTreeMap::new();
        let mut freed = Freed::default();
        if let Some(appended) = &appended {
            loaded(&mut fills, appended.segment, |segment| read_fill(db, segment))?.end =
                appended.end;
        }
        for (id, Change { old, new }) in rows.iter().filter(|(_, it)| it.old != it.new) {
            let records = (old.map(|row| row.record), new.map(|row| row.record));
            let (before, after) = (records.0.as_ref(), records.1.as_ref());
            write_row(&mut batch, id, old.as_ref(), new.as_ref());
            follow(&mut batch, id, before, after);
            totals.change(before, after);
            if before.is_some_and(Record::counts) != after.is_some_and(Record::counts) {
                loaded(&mut buckets, bucket_key(id), |key| read_bucket(db, key))?
                    .change(id, before, after);
            }
            let spots = (old.and_then(|row| row.spot()), new.and_then(|row| row.spot()));
            if spots.0 == spots.1 {
                continue;
            }
            if let (Some(spot), Some(record)) = (spots.1, after) {
                let fill = loaded(&mut fills, spot.segment, |segment| read_fill(db, segment))?;
                fill.chunks = fill.chunks.saturating_add(1);
                fill.blocks = fill.blocks.saturating_add(frame::blocks(record.len));
            }
            if let (Some(spot), Some(record)) = (spots.0, before) {
                let fill = loaded(&mut fills, spot.segment, |segment| read_fill(db, segment))?;
                fill.chunks = fill.chunks.saturating_sub(1);
                fill.blocks = fill.blocks.saturating_sub(frame::blocks(record.len));
                freed.holes.push((spot, record.len));
            }
        }
        write_buckets(&mut batch, &buckets);
        write_fills(&mut batch, &fills, &mut freed, segments);
        batch.put(Family::Meta, schema::TOTALS, &schema::totals_value(&totals, false));
        let mut groups: Vec<PgId> = buckets.keys().map(|(pg, _)| *pg).collect();
        groups.dedup();
        Ok(Edited { batch, totals, groups, appended, freed })
    }
}

impl Freed {
    /// Whether there is nothing to delete.
    pub(super) fn is_empty(&self) -> bool {
        self.holes.is_empty() && self.segments.is_empty()
    }
}

/// The value of a key, which is read if it is not there yet.
fn loaded<K: Ord + Copy, V>(
    map: &mut BTreeMap<K, V>,
    key: K,
    read: impl FnOnce(K) -> Result<V, StoreError>,
) -> Result<&mut V, StoreError> {
    match map.entry(key) {
        btree_map::Entry::Occupied(entry) => Ok(entry.into_mut()),
        btree_map::Entry::Vacant(entry) => Ok(entry.insert(read(key)?)),
    }
}

/// Writes the index's entry, and deletes bytes from the database that are not needed there.
fn write_row(batch: &mut Batch<'_>, id: &ChunkId, old: Option<&Row>, new: Option<&Row>) {
    let key = schema::chunk_key(id);
    match new {
        Some(row) => batch.put(Family::Index, &key, &row.encode()),
        None => batch.delete(Family::Index, &key),
    }
    let is_in_database = |row: Option<&Row>| {
        row.is_some_and(|row| row.record.has_bytes() && row.place == Place::Database)
    };
    if is_in_database(old) && !is_in_database(new) {
        batch.delete(Family::Chunks, &key);
    }
}

/// Writes the families that repeat a part of a record.
fn follow(batch: &mut Batch<'_>, id: &ChunkId, old: Option<&Record>, new: Option<&Record>) {
    let key = schema::chunk_key(id);
    match (old.is_some_and(Record::is_lacking), new.is_some_and(Record::is_lacking)) {
        (false, true) => batch.put(Family::Lacking, &key, &[]),
        (true, false) => batch.delete(Family::Lacking, &key),
        (true, true) | (false, false) => {}
    }
    let due = |record: &&Record| record.is_condemned();
    let before = old.filter(due).map(|record| record.at_ms);
    let after = new.filter(due).map(|record| record.at_ms);
    if before != after {
        if let Some(at_ms) = before {
            batch.delete(Family::Quarantine, &schema::quarantine_key(at_ms, id));
        }
        if let Some(at_ms) = after {
            batch.put(Family::Quarantine, &schema::quarantine_key(at_ms, id), &[]);
        }
    }
}

fn write_buckets(batch: &mut Batch<'_>, buckets: &BTreeMap<BucketKey, Bucket>) {
    for (key, bucket) in buckets {
        let key = schema::bucket_key(*key);
        match bucket.count {
            0 => batch.delete(Family::Buckets, &key),
            _ => batch.put(Family::Buckets, &key, &bucket.encode()),
        }
    }
}

/// Writes how the segments are filled; files of which nothing is left are freed as a whole.
fn write_fills(
    batch: &mut Batch<'_>,
    fills: &BTreeMap<u32, Fill>,
    freed: &mut Freed,
    segments: &Segments,
) {
    for (segment, fill) in fills {
        let key = schema::segment_key(*segment);
        if fill.chunks == 0 && !segments.is_open_ended(*segment) {
            batch.delete(Family::Segments, &key);
            freed.segments.push(*segment);
        } else {
            batch.put(Family::Segments, &key, &fill.encode());
        }
    }
    let Freed { holes, segments } = freed;
    holes.retain(|(spot, _)| !segments.contains(&spot.segment));
    for (spot, len) in holes {
        batch.put(Family::Holes, &schema::hole_key(*spot), &len.to_be_bytes());
    }
}
