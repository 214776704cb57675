//! The operations of the store: what each reads, and what it changes.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use atoll_proto::ids::PG_COUNT;
use atoll_proto::tree::{BUCKETS, Digest};
use atoll_proto::{ChunkId, Epoch, PgId};
use bytes::Bytes;

use super::edit::Edit;
use super::frame::{BLOCK, frame_blocks};
use super::open::{self, Open};
use super::read::{
    file_failure, index_failure, nonsense, read_buckets, read_bytes, read_due, read_row, records,
};
use super::room::Leave;
use super::salvage::Progress;
use super::schema::{self, Family, Row};
use super::{EDIT_RECORDS, INDEX_BYTES, RocksStore};
use crate::store::{
    Batched, Body, ChunkStore, Mark, Marked, Meta, NewChunk, Purged, Record, Salvaged, Space,
    StoreError, Totals, Wiped, len_of,
};

impl ChunkStore for RocksStore {
    fn put_batch(&self, batch: &[NewChunk]) -> Result<Batched, StoreError> {
        self.put(batch, Leave::Reserve)
    }

    fn mark(
        &self,
        marks: &[(ChunkId, Mark)],
        now_ms: u64,
        applied: Option<u64>,
    ) -> Result<Marked, StoreError> {
        self.edit("follow what the master said", false, |_, edit| {
            let mut done = Marked::default();
            for (id, mark) in marks {
                let old = edit.row(id)?;
                let record = old.map(|row| row.record);
                let new = Record::marked(record, *mark, now_ms);
                done.note(id, record.as_ref(), new.as_ref());
                edit.set(id, old, new);
            }
            if let Some(applied) = applied {
                edit.put_meta(schema::APPLIED, &applied.to_be_bytes());
            }
            Ok((done, !marks.is_empty() || applied.is_some()))
        })
    }

    fn applied(&self) -> Result<u64, StoreError> {
        self.read(|Open { db, .. }| {
            let value = db.get(Family::Meta, schema::APPLIED).map_err(index_failure)?;
            let Some(value) = value else { return Ok(0) };
            schema::decode_u64(value.as_ref()).ok_or_else(|| nonsense("the position applied"))
        })
    }

    fn forget_live(&self, ids: &[ChunkId], now_ms: u64) -> Result<u64, StoreError> {
        self.edit("forget chunks the master does not have", false, |_, edit| {
            let mut forgotten = 0;
            for id in ids {
                if let Some(old) = edit.row(id)?.filter(|row| row.record.live) {
                    edit.set(id, Some(old), old.record.forgotten(now_ms));
                    forgotten += 1;
                }
            }
            Ok((forgotten, forgotten > 0))
        })
    }

    fn quarantine_older(
        &self,
        ids: &[ChunkId],
        before_ms: u64,
        now_ms: u64,
    ) -> Result<u64, StoreError> {
        self.edit("move chunks to quarantine", false, |_, edit| {
            let mut moved = 0;
            for id in ids {
                let old = edit.row(id)?;
                let aged = old.filter(|row| row.record.at_ms < before_ms);
                if let Some(new) = aged.and_then(|row| row.record.quarantined(now_ms)) {
                    edit.set(id, old, Some(new));
                    moved += 1;
                }
            }
            Ok((moved, moved > 0))
        })
    }

    fn release_group(&self, pg: PgId, now_ms: u64) -> Result<u64, StoreError> {
        let mut released = 0;
        let mut after = None;
        loop {
            let page = self.list_group(pg, after.as_ref(), EDIT_RECORDS)?;
            let Some((last, _)) = page.last() else { return Ok(released) };
            after = Some(*last);
            released += self.edit("release the chunks of a group", false, |_, edit| {
                let mut released = 0;
                for (id, _) in &page {
                    let needed = |row: &Row| row.record.live || row.record.body == Body::Present;
                    if let Some(old) = edit.row(id)?.filter(needed) {
                        edit.set(id, Some(old), old.record.released(now_ms));
                        released += 1;
                    }
                }
                Ok((released, released > 0))
            })?;
        }
    }

    fn restore(&self, id: &ChunkId, now_ms: u64) -> Result<bool, StoreError> {
        let good = self.examine(id, Body::Quarantined, now_ms, "take a chunk out of quarantine")?;
        Ok(good == Some(true))
    }

    fn spoil(&self, id: &ChunkId, now_ms: u64) -> Result<bool, StoreError> {
        let verb = "take a corrupt chunk out of service";
        Ok(self.examine(id, Body::Present, now_ms, verb)? == Some(false))
    }

    fn purge(&self, before_ms: u64, limit: usize) -> Result<Purged, StoreError> {
        self.free_for_deleting();
        let mut purged = self.purge_once(before_ms, limit);
        if matches!(purged, Err(StoreError::Full { .. })) && self.drop_ballast() {
            self.keeper().mended = None;
            purged = self.purge_once(before_ms, limit);
        }
        self.take_ballast();
        purged
    }

    fn refuse(&self, refused: Arc<HashSet<ChunkId>>) {
        *self.refused.write().unwrap_or_else(PoisonError::into_inner) = refused;
    }

    fn erase(&self, ids: &[ChunkId], epoch: Epoch, upto: u64) -> Result<Wiped, StoreError> {
        self.erase_all(ids, epoch, upto)
    }

    fn get(&self, id: &ChunkId) -> Result<Option<Bytes>, StoreError> {
        self.read(|Open { db, segments }| {
            let row = read_row(db, id)?.filter(|row| row.record.body == Body::Present);
            row.map(|row| read_bytes(db, segments, id, &row)).transpose()
        })
    }

    fn forget_cached(&self, id: &ChunkId) {
        // When this fails, so will the read.
        let forgotten = self.read(|Open { db, segments }| {
            if let Some(row) = read_row(db, id)?
                && let Some(spot) = row.spot()
            {
                segments.forget_cached(spot, row.record.len);
            }
            Ok(())
        });
        drop(forgotten);
    }

    fn record(&self, id: &ChunkId) -> Result<Option<Record>, StoreError> {
        self.read(|open| Ok(read_row(&open.db, id)?.map(|row| row.record)))
    }

    fn list(
        &self,
        after: Option<&ChunkId>,
        limit: usize,
    ) -> Result<Vec<(ChunkId, Record)>, StoreError> {
        self.read(|Open { db, .. }| {
            let records = records(db, &[], None, after);
            records.take(limit).collect()
        })
    }

    fn list_group(
        &self,
        pg: PgId,
        after: Option<&ChunkId>,
        limit: usize,
    ) -> Result<Vec<(ChunkId, Record)>, StoreError> {
        let (first, end) = schema::group_range(pg);
        self.read(|Open { db, .. }| records(db, &first, Some(end), after).take(limit).collect())
    }

    fn lacking(
        &self,
        after: Option<&ChunkId>,
        limit: usize,
    ) -> Result<Vec<(ChunkId, Body)>, StoreError> {
        self.read(|Open { db, .. }| {
            let from = after.map(schema::chunk_key);
            let mut out = Vec::new();
            for entry in db.scan(Family::Lacking, from.as_ref().map_or(&[], |key| &key[..]), None) {
                let (key, _) = entry.map_err(index_failure)?;
                let id = schema::key_chunk(&key).ok_or_else(|| nonsense("a lacking chunk"))?;
                if Some(&id) == after {
                    continue;
                }
                if out.len() >= limit {
                    break;
                }
                // Read later than the list: it may have come in between.
                if let Some(row) = read_row(db, &id)?.filter(|row| row.record.is_lacking()) {
                    out.push((id, row.record.body));
                }
            }
            Ok(out)
        })
    }

    fn buckets(&self, pg: PgId) -> Result<Box<[Digest; BUCKETS]>, StoreError> {
        let mut digests = Box::new([[0; 32]; BUCKETS]);
        self.read(|Open { db, .. }| {
            read_buckets(db, pg, |number, bucket| {
                digests[usize::from(number)] = bucket.digest.to_bytes();
            })
        })?;
        Ok(digests)
    }

    fn group_count(&self, pg: PgId) -> Result<u64, StoreError> {
        let mut count = 0;
        self.read(|Open { db, .. }| {
            read_buckets(db, pg, |_, bucket| count += u64::from(bucket.count))
        })?;
        Ok(count)
    }

    fn bucket_ids(&self, pg: PgId, bucket: u8) -> Result<Vec<ChunkId>, StoreError> {
        let (first, end) = schema::bucket_range((pg, bucket));
        self.read(|Open { db, .. }| {
            let mut ids = Vec::new();
            for entry in records(db, &first, Some(end), None) {
                let (id, record) = entry?;
                if record.counts() {
                    ids.push(id);
                }
            }
            Ok(ids)
        })
    }

    fn changed_groups(&self) -> Vec<PgId> {
        self.changed.drain()
    }

    fn scrubbed(&self) -> Result<Vec<Option<u64>>, StoreError> {
        let mut out = vec![None; usize::from(PG_COUNT)];
        let (first, end) = schema::scrubbed_range();
        self.read(|Open { db, .. }| {
            for entry in db.scan(Family::Meta, &first, Some(end)) {
                let (key, value) = entry.map_err(index_failure)?;
                let pg = schema::key_scrubbed(&key).map(|pg| usize::from(pg.0));
                let (Some(slot), Some(at_ms)) =
                    (pg.and_then(|pg| out.get_mut(pg)), schema::decode_u64(&value))
                else {
                    return Err(nonsense("when a group was scrubbed"));
                };
                *slot = Some(at_ms);
            }
            Ok(())
        })?;
        Ok(out)
    }

    fn set_scrubbed(&self, pg: PgId, at_ms: u64) -> Result<(), StoreError> {
        self.edit("remember what was scrubbed", false, |_, edit| {
            edit.put_meta(&schema::scrubbed_key(pg), &at_ms.to_be_bytes());
            Ok(((), true))
        })
    }

    fn totals(&self) -> Totals {
        *self.shown()
    }

    fn space(&self) -> Result<Space, StoreError> {
        self.read(|_| self.measure())
    }

    fn load(&self, key: Meta) -> Result<Option<Vec<u8>>, StoreError> {
        self.read(|Open { db, .. }| {
            let value = db.get(Family::Meta, key.key()).map_err(index_failure)?;
            Ok(value.map(|value| value.as_ref().to_vec()))
        })
    }

    fn save(&self, values: &[(Meta, Vec<u8>)]) -> Result<(), StoreError> {
        self.edit("save the node's state", true, |_, edit| {
            for (key, value) in values {
                edit.put_meta(key.key(), value);
            }
            Ok(((), true))
        })?;
        self.values().extend(values.iter().cloned());
        Ok(())
    }

    fn refilling(&self) -> bool {
        self.refilling.load(Ordering::Acquire)
    }

    fn unsalvaged(&self) -> bool {
        self.unsalvaged.load(Ordering::Acquire)
    }

    fn salvage(&self, now_ms: u64, bytes_max: u64) -> Result<Salvaged, StoreError> {
        if self.closed.load(Ordering::Acquire) {
            return Err(StoreError::Closed);
        }
        let mut progress = self.salvaging.lock().unwrap_or_else(PoisonError::into_inner);
        self.salvage_some(&mut progress, now_ms, bytes_max)
    }

    fn finish_refill(&self) -> Result<bool, StoreError> {
        let failed = |error| file_failure("delete a store that was set aside", &error);
        let mut progress = self.salvaging.lock().unwrap_or_else(PoisonError::into_inner);
        let asides = {
            // Held so that what is set aside from now on is not among them.
            let _keeper = self.keeper();
            if self.unsalvaged() || !self.is_salvaged(&progress)? {
                return Ok(false);
            }
            open::set_aside(&self.dir).map_err(failed)?
        };
        for dir in asides {
            match std::fs::remove_dir_all(&dir) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(failed(error));
                }
                _ => {}
            }
        }
        // Held so that the store does not begin anew in between.
        let _keeper = self.keeper();
        let all = open::set_aside(&self.dir).map_err(failed)?.is_empty();
        if all {
            *progress = Progress::default();
            self.refilling.store(false, Ordering::Release);
        }
        Ok(all)
    }

    fn close(&self) {
        let _keeper = self.keeper();
        if self.closed.swap(true, Ordering::AcqRel) {
            return;
        }
        let mut slot = self.slot.write().unwrap_or_else(PoisonError::into_inner);
        let Some(open) = slot.open.take() else { return };
        // What was acknowledged is in the log, and is read from there at the next start; so a store
        // that cannot write needs no flush.
        if !self.broken.load(Ordering::Acquire) {
            match open.close() {
                Ok(true) => {}
                Ok(false) => {
                    tracing::warn!("closing the chunk store without waiting for its flush")
                }
                Err(error) => tracing::warn!(?error, "cannot flush the chunk store to close it"),
            }
        }
        open.give_up();
    }
}

impl RocksStore {
    /// Stores chunks that have been verified.
    pub(super) fn put(&self, batch: &[NewChunk], leave: Leave) -> Result<Batched, StoreError> {
        if self.broken.load(Ordering::Acquire) {
            self.check_free(0)?;
        }
        self.edit("store chunks", true, |open, edit| {
            // Erasing begins behind this edit, or has made this known before.
            let refused = Arc::clone(&self.refused.read().unwrap_or_else(PoisonError::into_inner));
            let mut done = Batched::default();
            let mut again = false;
            let mut seen = HashMap::new();
            let mut new: Vec<(&NewChunk, Option<Row>)> = Vec::new();
            for chunk in batch {
                if refused.contains(&chunk.id) {
                    done.refused.push(chunk.id);
                    continue;
                }
                // A present entry is on disk: it was read from synced state, because the only
                // writer is here, nothing makes a chunk present without a sync, and what a crash
                // left in the log was synced when the store was opened.
                let old = edit.row(&chunk.id)?;
                // What it is to be acknowledged for is looked at all the same: the disk may have
                // lost it since, and here are good bytes.
                let is_present = |row: &Row| {
                    let present = row.record.body == Body::Present;
                    present && has_bytes(open, &chunk.id, row, &chunk.bytes)
                };
                if let Some(row) = old.filter(is_present) {
                    done.known += 1;
                    if let Some(record) = row.record.put_again(chunk.epoch, chunk.at_ms) {
                        edit.set(&chunk.id, old, Some(record));
                        again = true;
                    }
                } else if let Some(at) = seen.get(&chunk.id).copied() {
                    done.known += 1;
                    // Both are acknowledged, each for its epoch.
                    let first: &mut (&NewChunk, Option<Row>) = &mut new[at];
                    if chunk.epoch > first.0.epoch {
                        first.0 = chunk;
                    }
                } else {
                    seen.insert(chunk.id, new.len());
                    done.written += 1;
                    done.bytes += chunk.bytes.len() as u64;
                    new.push((chunk, old));
                }
            }
            if !new.is_empty() {
                self.store(open, edit, &new, leave)?;
            }
            let changed = again || done.written > 0;
            Ok((done, changed))
        })
    }

    /// Reads a chunk once more and follows what is found: `if_good`, or that it is corrupt.
    fn examine(
        &self,
        id: &ChunkId,
        found: Body,
        now_ms: u64,
        verb: &'static str,
    ) -> Result<Option<bool>, StoreError> {
        self.edit(verb, true, |open, edit| {
            let Some(old) = edit.row(id)?.filter(|old| old.record.body == found) else {
                return Ok((None, false));
            };
            let good = match read_bytes(&open.db, &open.segments, id, &old) {
                Ok(bytes) => ChunkId::of(&bytes) == *id,
                Err(StoreError::Corrupt { .. }) => false,
                Err(error) => return Err(error),
            };
            let new = old.record.examined(good, now_ms);
            let changes = new.body != old.record.body;
            if changes {
                edit.set(id, Some(old), Some(new));
            }
            Ok((Some(good), changes))
        })
    }

    /// Stores the bytes of chunks that are not present: large ones in segments, and there at once
    /// and synced.
    fn store(
        &self,
        open: &Open,
        edit: &mut Edit<'_>,
        chunks: &[(&NewChunk, Option<Row>)],
        leave: Leave,
    ) -> Result<(), StoreError> {
        let large = |bytes: &Bytes| bytes.len() >= self.segment_bytes_min;
        let for_segments: Vec<(ChunkId, Bytes)> = chunks
            .iter()
            .filter(|(chunk, _)| large(&chunk.bytes))
            .map(|(chunk, _)| (chunk.id, chunk.bytes.clone()))
            .collect();
        let small = chunks.iter().filter(|(chunk, _)| !large(&chunk.bytes));
        let small: u64 = small.map(|(chunk, _)| chunk.bytes.len() as u64).sum();
        let twice = small + chunks.len() as u64 * INDEX_BYTES;
        let lens = for_segments.iter().map(|(_, bytes)| len_of(bytes));
        self.check_room(&open.db, twice, frame_blocks(lens) * BLOCK as u64, leave)?;
        let mut spots = Vec::new();
        if !for_segments.is_empty() {
            let appended = open.segments.append(&for_segments);
            let appended = appended
                .map_err(|error| self.explain(file_failure("write to a segment file", &error)))?;
            self.syncs.fetch_add(1, Ordering::Relaxed);
            spots.clone_from(&appended.spots);
            edit.append(appended);
        }
        let mut spots = spots.into_iter();
        for (chunk, old) in chunks {
            let record = old.map(|row| row.record);
            let new = Record::put(record, len_of(&chunk.bytes), chunk.epoch, chunk.at_ms);
            let spot = if large(&chunk.bytes) { spots.next() } else { None };
            match spot {
                Some(spot) => edit.place(&chunk.id, *old, new, spot),
                None => edit.put(&chunk.id, *old, new, &chunk.bytes),
            }
        }
        Ok(())
    }

    fn purge_once(&self, before_ms: u64, limit: usize) -> Result<Purged, StoreError> {
        self.edit("delete chunks from quarantine", true, |open, edit| {
            let mut purged = Purged::default();
            for id in read_due(&open.db, before_ms, limit)? {
                let Some(old) = edit.row(&id)?.filter(|row| row.record.is_condemned()) else {
                    return Err(nonsense("the list of what is in quarantine"));
                };
                edit.set(&id, Some(old), None);
                purged.chunks += 1;
                purged.bytes += u64::from(old.record.len);
            }
            Ok((purged, purged.chunks > 0))
        })
    }
}

/// Whether the store gives exactly these bytes for a chunk.
fn has_bytes(open: &Open, id: &ChunkId, row: &Row, bytes: &Bytes) -> bool {
    match read_bytes(&open.db, &open.segments, id, row) {
        Ok(found) if found == *bytes => true,
        Ok(_) => {
            tracing::error!(chunk = %id, "a chunk that is put again had wrong bytes");
            false
        }
        Err(error) => {
            tracing::error!(chunk = %id, %error, "a chunk that is put again cannot be read");
            false
        }
    }
}
