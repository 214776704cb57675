//! What tests do to a store behind its back.

use std::os::unix::fs::FileExt;

use atoll_proto::ChunkId;

use super::read::read_row;
use super::schema::{self, Family};
use super::{RocksStore, segments};
use crate::store::tally::bucket_key;
use crate::store::{NewChunk, StoreError, Totals};

impl RocksStore {
    /// Replaces the bytes of a chunk behind the index's back, as a failing disk would.
    pub(crate) fn damage(&self, id: &ChunkId, wrong: &[u8]) {
        let slot = self.reader();
        let open = slot.open.as_ref().expect("open in tests");
        match read_row(&open.db, id).expect("the test's disk works").and_then(|row| row.spot()) {
            Some(spot) => {
                let path = segments::path(&self.dir.join("segments"), spot.segment);
                let file = std::fs::OpenOptions::new().write(true).open(path);
                let file = file.expect("the test's segments are there");
                file.write_all_at(wrong, segments::offset(spot.block))
                    .expect("the test's disk works");
            }
            None => {
                let mut batch = open.db.batch();
                batch.put(Family::Chunks, &schema::chunk_key(id), wrong);
                batch.write(true).expect("the test's disk works");
            }
        }
    }

    /// Writes everything that the database has in memory to its files.
    pub(crate) fn flush(&self) {
        let slot = self.reader();
        assert_eq!(slot.open.as_ref().expect("open in tests").db.flush(), Ok(true));
    }

    /// Writes to the database without asking whether there is room.
    pub(crate) fn put_blindly(&self, chunk: &NewChunk) -> Result<(), StoreError> {
        let slot = self.reader();
        let mut batch = slot.open.as_ref().expect("open in tests").db.batch();
        batch.put(Family::Chunks, &schema::chunk_key(&chunk.id), &chunk.bytes);
        self.written(batch.write(true), "store chunks")
    }

    /// Makes wrong what follows from the records, and keeps those.
    pub(crate) fn forget_what_follows(&self, id: &ChunkId) {
        let slot = self.reader();
        let mut batch = slot.open.as_ref().expect("open in tests").db.batch();
        let bucket = bucket_key(id);
        batch.delete(Family::Buckets, &schema::bucket_key(bucket));
        batch.put(Family::Buckets, &schema::bucket_key((bucket.0, !bucket.1)), &[7; 36]);
        batch.put(Family::Lacking, &schema::chunk_key(id), &[]);
        batch.put(Family::Quarantine, &schema::quarantine_key(1, id), &[]);
        batch.put(Family::Segments, &schema::segment_key(0), &[0; 12]);
        batch.put(Family::Meta, schema::TOTALS, &schema::totals_value(&Totals::default(), false));
        batch.write(true).expect("the test's disk works");
    }
}
