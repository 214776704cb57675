//! After a store was not closed: whether everything that follows from the records does.
//!
//! A crash alone cannot make it wrong, for all of it changes in one write. A disk that damages the
//! last entries of the database's list of files can: RocksDB may then open with some flushed
//! changes gone, and later ones from its log in place. The records that are left are taken as they
//! are, and the rest is made to follow from them; what is missing shows in the digests.

use std::collections::{BTreeMap, BTreeSet};

use super::db::{Batch, Db};
use super::frame;
use super::read::{failure, index_failure, nonsense, read_totals};
use super::schema::{self, Family, Fill, Row};
use crate::store::tally::{Bucket, BucketKey, bucket_key};
use crate::store::{StoreError, Totals};

/// So many corrections are written at once.
const CORRECTIONS: usize = 16_384;
const VERB: &str = "correct the index of the chunks";

/// What follows from the records.
#[derive(Default)]
struct Expected {
    totals: Totals,
    buckets: BTreeMap<BucketKey, Bucket>,
    fills: BTreeMap<u32, Fill>,
    lacking: BTreeSet<Box<[u8]>>,
    quarantine: BTreeSet<Box<[u8]>>,
}

/// Corrections on their way to the database.
struct Corrections<'a> {
    db: &'a Db,
    batch: Batch<'a>,
    waiting: usize,
    made: u64,
}

/// Reads all records and corrects what does not follow from them. Says how much that was.
pub(super) fn verify(db: &Db) -> Result<u64, StoreError> {
    let mut expected = Expected::default();
    for entry in db.scan(Family::Index, &[], None) {
        let (key, value) = entry.map_err(index_failure)?;
        let row = Row::decode(&value).ok_or_else(|| nonsense("an entry of the index"))?;
        expected.add(key, &row)?;
    }
    let mut corrections = Corrections { db, batch: db.batch(), waiting: 0, made: 0 };
    correct_totals(&mut corrections, &expected.totals)?;
    correct_fills(&mut corrections, expected.fills)?;
    let buckets = expected.buckets.into_iter();
    let buckets =
        buckets.map(|(key, bucket)| (schema::bucket_key(key).into(), bucket.encode().into()));
    correct(&mut corrections, Family::Buckets, buckets.collect())?;
    let nothing = |key| (key, Box::default());
    correct(
        &mut corrections,
        Family::Lacking,
        expected.lacking.into_iter().map(nothing).collect(),
    )?;
    correct(
        &mut corrections,
        Family::Quarantine,
        expected.quarantine.into_iter().map(nothing).collect(),
    )?;
    corrections.write()?;
    Ok(corrections.made)
}

impl Expected {
    fn add(&mut self, key: Box<[u8]>, row: &Row) -> Result<(), StoreError> {
        let id = schema::key_chunk(&key).ok_or_else(|| nonsense("a key of the index"))?;
        let record = &row.record;
        self.totals.change(None, Some(record));
        if record.counts() {
            self.buckets.entry(bucket_key(&id)).or_default().change(&id, None, Some(record));
        }
        if record.is_condemned() {
            self.quarantine.insert(schema::quarantine_key(record.at_ms, &id).into());
        }
        if let Some(spot) = row.spot() {
            let blocks = frame::blocks(record.len);
            let fill = self.fills.entry(spot.segment).or_default();
            fill.end = fill.end.max(spot.block.saturating_add(blocks));
            fill.chunks = fill.chunks.saturating_add(1);
            fill.blocks = fill.blocks.saturating_add(blocks);
        }
        if record.is_lacking() {
            self.lacking.insert(key);
        }
        Ok(())
    }
}

fn correct_totals(corrections: &mut Corrections<'_>, expected: &Totals) -> Result<(), StoreError> {
    let (found, _) = read_totals(corrections.db)?;
    // Two of them say what ever happened, which the records do not.
    let Totals { corrupt_found, repaired, .. } = found;
    let expected = Totals { corrupt_found, repaired, ..*expected };
    if found != expected {
        corrections.put(Family::Meta, schema::TOTALS, &schema::totals_value(&expected, false))?;
    }
    Ok(())
}

fn correct_fills(
    corrections: &mut Corrections<'_>,
    mut expected: BTreeMap<u32, Fill>,
) -> Result<(), StoreError> {
    for entry in corrections.db.scan(Family::Segments, &[], None) {
        let (key, value) = entry.map_err(index_failure)?;
        let segment = schema::key_segment(&key).ok_or_else(|| nonsense("a segment's key"))?;
        let found = Fill::decode(&value).ok_or_else(|| nonsense("an entry of the segments"))?;
        let mut fill = expected.remove(&segment).unwrap_or_default();
        // What was deleted from the end of a file was there before.
        fill.end = fill.end.max(found.end);
        if fill != found {
            corrections.put(Family::Segments, &key, &fill.encode())?;
        }
    }
    for (segment, fill) in expected {
        corrections.put(Family::Segments, &schema::segment_key(segment), &fill.encode())?;
    }
    Ok(())
}

/// Makes a family hold exactly these entries.
fn correct(
    corrections: &mut Corrections<'_>,
    family: Family,
    mut expected: BTreeMap<Box<[u8]>, Box<[u8]>>,
) -> Result<(), StoreError> {
    for entry in corrections.db.scan(family, &[], None) {
        let (key, value) = entry.map_err(index_failure)?;
        match expected.remove(&key) {
            Some(wanted) if wanted == value => {}
            Some(wanted) => corrections.put(family, &key, &wanted)?,
            None => corrections.delete(family, &key)?,
        }
    }
    for (key, value) in expected {
        corrections.put(family, &key, &value)?;
    }
    Ok(())
}

impl Corrections<'_> {
    fn put(&mut self, family: Family, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        self.batch.put(family, key, value);
        self.one_more()
    }

    fn delete(&mut self, family: Family, key: &[u8]) -> Result<(), StoreError> {
        self.batch.delete(family, key);
        self.one_more()
    }

    fn one_more(&mut self) -> Result<(), StoreError> {
        self.made += 1;
        self.waiting += 1;
        if self.waiting >= CORRECTIONS { self.write() } else { Ok(()) }
    }

    fn write(&mut self) -> Result<(), StoreError> {
        if self.waiting == 0 {
            return Ok(());
        }
        self.waiting = 0;
        let batch = std::mem::replace(&mut self.batch, self.db.batch());
        batch.write(true).map_err(|error| failure(VERB, error))
    }
}
