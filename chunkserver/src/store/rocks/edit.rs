//! A change under way: records by id, and at the end everything that follows from them, in one
//! batch.

use std::collections::{BTreeMap, HashMap};

use atoll_proto::{ChunkId, PgId};

use super::db::{Batch, Db};
use super::schema::{self, Family};
use super::{index_failure, nonsense};
use crate::store::tally::{Bucket, BucketKey, bucket_key};
use crate::store::{Record, StoreError, Totals};

/// Changes of records that will be made together.
pub(super) struct Edit<'a> {
    db: &'a Db,
    batch: Batch<'a>,
    records: HashMap<ChunkId, Change>,
}

/// What a record is in the database, and what it is to be.
struct Change {
    old: Option<Record>,
    new: Option<Record>,
}

/// An edit that is ready to be written.
pub(super) struct Edited<'a> {
    /// The changes.
    pub(super) batch: Batch<'a>,
    /// The totals once they are made.
    pub(super) totals: Totals,
    /// Groups whose digests they change.
    pub(super) groups: Vec<PgId>,
}

impl<'a> Edit<'a> {
    /// An edit that changes nothing yet.
    pub(super) fn new(db: &'a Db) -> Self {
        Self { db, batch: db.batch(), records: HashMap::new() }
    }

    /// What it changes, as it is before.
    pub(super) fn db(&self) -> &'a Db {
        self.db
    }

    /// The record of a chunk as the edit so far leaves it.
    pub(super) fn record(&self, id: &ChunkId) -> Result<Option<Record>, StoreError> {
        match self.records.get(id) {
            Some(change) => Ok(change.new),
            None => read_record(self.db, id),
        }
    }

    /// Replaces the record of a chunk, which is `now` as the edit so far leaves it.
    pub(super) fn set(&mut self, id: &ChunkId, now: Option<Record>, new: Option<Record>) {
        self.records.entry(*id).or_insert(Change { old: now, new: None }).new = new;
    }

    /// Stores the bytes of a chunk.
    pub(super) fn put_bytes(&mut self, id: &ChunkId, bytes: &[u8]) {
        self.batch.put(Family::Chunks, &schema::chunk_key(id), bytes);
    }

    /// Sets a single value.
    pub(super) fn put_meta(&mut self, key: &[u8], value: &[u8]) {
        self.batch.put(Family::Meta, key, value);
    }

    /// Adds what follows from the changes of records.
    pub(super) fn finish(self, mut totals: Totals) -> Result<Edited<'a>, StoreError> {
        let Self { db, mut batch, records } = self;
        let mut buckets: BTreeMap<BucketKey, Bucket> = BTreeMap::new();
        for (id, Change { old, new }) in &records {
            if old == new {
                continue;
            }
            follow(&mut batch, id, old.as_ref(), new.as_ref());
            totals.change(old.as_ref(), new.as_ref());
            if old.is_some_and(|it| it.counts()) == new.is_some_and(|it| it.counts()) {
                continue;
            }
            let key = bucket_key(id);
            let bucket = match buckets.entry(key) {
                std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
                std::collections::btree_map::Entry::Vacant(entry) => {
                    entry.insert(read_bucket(db, key)?)
                }
            };
            bucket.change(id, old.as_ref(), new.as_ref());
        }
        for (key, bucket) in &buckets {
            match bucket.count {
                0 => batch.delete(Family::Buckets, &schema::bucket_key(*key)),
                _ => batch.put(Family::Buckets, &schema::bucket_key(*key), &bucket.encode()),
            }
        }
        batch.put(Family::Meta, schema::TOTALS, &totals.encode());
        let mut groups: Vec<PgId> = buckets.keys().map(|(pg, _)| *pg).collect();
        groups.dedup();
        Ok(Edited { batch, totals, groups })
    }
}

/// Writes a record, and the families that repeat a part of it.
fn follow(batch: &mut Batch<'_>, id: &ChunkId, old: Option<&Record>, new: Option<&Record>) {
    let key = schema::chunk_key(id);
    match new {
        Some(record) => batch.put(Family::Index, &key, &record.encode()),
        None => batch.delete(Family::Index, &key),
    }
    if old.is_some_and(Record::has_bytes) && !new.is_some_and(Record::has_bytes) {
        batch.delete(Family::Chunks, &key);
    }
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

/// The record of a chunk as it is in the database.
pub(super) fn read_record(db: &Db, id: &ChunkId) -> Result<Option<Record>, StoreError> {
    let value = db.get(Family::Index, &schema::chunk_key(id)).map_err(index_failure)?;
    let Some(value) = value else { return Ok(None) };
    Record::decode(value.as_ref()).map(Some).ok_or_else(|| nonsense("an entry of the index"))
}

fn read_bucket(db: &Db, key: BucketKey) -> Result<Bucket, StoreError> {
    let value = db.get(Family::Buckets, &schema::bucket_key(key)).map_err(index_failure)?;
    let Some(value) = value else { return Ok(Bucket::default()) };
    Bucket::decode(value.as_ref()).ok_or_else(|| nonsense("a bucket"))
}
