//! What tests do to a store behind its back.

use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;

use atoll_proto::ChunkId;

use super::edit::Edit;
use super::read::read_row;
use super::room::Leave;
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

    /// Deletes a chunk as a deletion does whose blocks the file system did not take back.
    pub(crate) fn leave_hole(&self, id: &ChunkId) {
        let slot = self.reader();
        let open = slot.open.as_ref().expect("open in tests");
        let row = read_row(&open.db, id).expect("the test's disk works").expect("it is there");
        let spot = row.spot().expect("it is in a segment");
        let mut edit = Edit::new(&open.db);
        edit.set(id, Some(row), None);
        let edited = edit.finish(self.totals_shown(), &open.segments).expect("the disk works");
        edited.batch.write(true).expect("the test's disk works");
        assert_eq!(edited.freed.holes, [(spot, row.record.len)]);
        *self.shown() = edited.totals;
    }

    fn totals_shown(&self) -> Totals {
        *self.shown()
    }

    /// Makes the store act as after a write that failed, while its small chunks are being written
    /// anew, and puts something.
    pub(crate) fn fail_while_rewriting(&self, chunk: &NewChunk) -> Result<(), StoreError> {
        let mut put = None;
        let rewritten = self.rewrite(|_| {
            self.broken.store(true, Ordering::Release);
            put = Some(self.put(std::slice::from_ref(chunk), Leave::Reserve));
            Ok(())
        });
        assert!(rewritten.is_err(), "what is rewritten must be the store that is in use");
        put.expect("it was tried").map(drop)
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
