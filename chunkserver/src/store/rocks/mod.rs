//! Chunks on a disk.
//!
//! `db` is the database and knows RocksDB, `schema` says what is in it, `edit` makes changes of
//! records with all that follows. There is one writer at a time (the totals are its), and one
//! sync per batch. Reads share a lock that is only ever taken exclusively to open the database
//! again.
//!
//! **A full disk.** Puts are refused unless, beside the reserve, there is room to write everything
//! twice that is not in blob files yet: so a flush never fails for lack of room, nor does opening
//! the database after a crash, which flushes too. If something else fills the disk, RocksDB may
//! refuse all further writes; then the database is opened again before the next put, or for
//! reading only while that is impossible.

mod db;
mod edit;
mod schema;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use atoll_proto::ids::PG_COUNT;
use atoll_proto::tree::{BUCKETS, Digest};
use atoll_proto::{ChunkId, PgId};
use bytes::Bytes;

use self::db::{Db, DbError};
use self::edit::{Edit, read_record};
pub use self::schema::FORMAT;
use self::schema::Family;
use super::tally::{Bucket, ChangedGroups};
use super::{
    Batched, Body, ChunkStore, Mark, Marked, Meta, NewChunk, Purged, Record, Space, StoreError,
    Totals, len_of,
};

/// The default reserve: this, or a fiftieth of the disk if that is less.
const RESERVE_BYTES: u64 = 256 << 20;
/// With less than this in memory a flush would give back no room worth the wait.
const FLUSH_BYTES_MIN: u64 = 2 << 20;
/// RocksDB deletes a superfluous log a moment after the flush.
const LOG_DELETED_AFTER: Duration = Duration::from_millis(500);
const FREE_POLL_EVERY: Duration = Duration::from_millis(2);
/// How often opening a failed database again is tried at most.
const MEND_EVERY: Duration = Duration::from_secs(1);
/// Most records that one write changes, where the caller does not say.
const EDIT_RECORDS: usize = 1024;

/// A store in a directory.
pub struct RocksStore {
    dir: PathBuf,
    reserve: Option<u64>,
    db: RwLock<Option<Db>>,
    /// Held over every write: there is one writer.
    keeper: Mutex<Keeper>,
    totals: Mutex<Totals>,
    changed: ChangedGroups,
    broken: AtomicBool,
    syncs: AtomicU64,
}

/// What belongs to the one writer.
struct Keeper {
    mended: Option<Instant>,
    closed: bool,
}

impl std::fmt::Debug for RocksStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RocksStore").field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl RocksStore {
    /// Whether a store was made in this directory.
    pub fn exists(dir: &Path) -> bool {
        dir.join("CURRENT").exists()
    }

    /// Makes an empty store, or opens the one whose making was interrupted. `reserve` is how many
    /// bytes puts leave free; `None` for the default.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn create(dir: &Path, reserve: Option<u64>) -> Result<Self, StoreError> {
        let store = Self::open_with(dir, reserve, true)?;
        store.save(&[(Meta::Format, FORMAT.to_be_bytes().to_vec())])?;
        Ok(store)
    }

    /// Opens a store that was made before.
    ///
    /// # Errors
    /// When it is not there, cannot be read, or is in use by another process.
    pub fn open(dir: &Path, reserve: Option<u64>) -> Result<Self, StoreError> {
        Self::open_with(dir, reserve, false)
    }

    fn open_with(dir: &Path, reserve: Option<u64>, create: bool) -> Result<Self, StoreError> {
        let opened = Db::open(dir, create);
        // Opening flushes the log. On a disk without room for that, reads still work.
        let broken = !create && matches!(opened, Err(DbError::Full(_)));
        let db = match opened {
            Err(error) if broken => {
                let reason = error.into_reason();
                tracing::error!(dir = %dir.display(), reason, "no room: serving reads only");
                open_for_reading(dir)
            }
            opened => Some(opened.map_err(|error| failure("open the chunk store", error))?),
        };
        let db = db.ok_or(StoreError::Full { free: 0, reserve: reserve.unwrap_or_default() })?;
        let totals = read_totals(&db)?;
        Ok(Self {
            dir: dir.to_owned(),
            reserve,
            db: RwLock::new(Some(db)),
            keeper: Mutex::new(Keeper { mended: None, closed: false }),
            totals: Mutex::new(totals),
            changed: ChangedGroups::all(),
            broken: AtomicBool::new(broken),
            syncs: AtomicU64::new(0),
        })
    }

    /// How often a file was synced, for measurements.
    pub fn syncs(&self) -> u64 {
        self.syncs.load(Ordering::Relaxed)
    }

    fn keeper(&self) -> MutexGuard<'_, Keeper> {
        self.keeper.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn shown(&self) -> MutexGuard<'_, Totals> {
        self.totals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reader(&self) -> RwLockReadGuard<'_, Option<Db>> {
        self.db.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads something.
    fn read<R>(&self, read: impl FnOnce(&Db) -> Result<R, StoreError>) -> Result<R, StoreError> {
        let slot = self.reader();
        read(slot.as_ref().ok_or(StoreError::Closed)?)
    }

    /// Makes one change as the only writer: `change` edits records; the edit is written, synced or
    /// not, if the answer comes with `true`.
    fn edit<R>(
        &self,
        verb: &'static str,
        sync: bool,
        change: impl FnOnce(&mut Edit<'_>) -> Result<(R, bool), StoreError>,
    ) -> Result<R, StoreError> {
        let mut keeper = self.keeper();
        self.mend(&mut keeper)?;
        let slot = self.reader();
        let db = slot.as_ref().ok_or(StoreError::Closed)?;
        let mut edit = Edit::new(db);
        let (answer, changed) = change(&mut edit)?;
        if changed {
            let edited = edit.finish(self.totals())?;
            self.written(edited.batch.write(sync), verb)?;
            self.syncs.fetch_add(u64::from(sync), Ordering::Relaxed);
            *self.shown() = edited.totals;
            for pg in edited.groups {
                self.changed.note(pg);
            }
        }
        Ok(answer)
    }

    /// Refuses a write for which there is no room: for the log now, and for blob files later.
    fn check_room(&self, db: &Db, incoming: u64) -> Result<(), StoreError> {
        let wanted = incoming.saturating_mul(2);
        let unflushed =
            db.unflushed().map_err(|error| failure("see what is not flushed", error))?;
        if self.check_free(wanted.saturating_add(unflushed)).is_ok() {
            return Ok(());
        }
        if unflushed < FLUSH_BYTES_MIN {
            return self.check_free(wanted.saturating_add(unflushed));
        }
        self.check_free(wanted)?;
        // What is flushed gives back its room in the log.
        match db.flush() {
            Ok(true) => self.await_free(wanted),
            Ok(false) => {
                self.broken.store(true, Ordering::Release);
                let reason = "the flush does not end".to_owned();
                Err(StoreError::Disk { verb: "flush chunks", reason })
            }
            Err(error) => self.written(Err(error), "flush chunks"),
        }
    }

    /// As [`Self::check_free`], while the log that a flush made superfluous is being deleted.
    fn await_free(&self, wanted: u64) -> Result<(), StoreError> {
        let started = Instant::now();
        loop {
            let free = self.check_free(wanted);
            if free.is_ok() || started.elapsed() > LOG_DELETED_AFTER {
                return free;
            }
            std::thread::sleep(FREE_POLL_EVERY);
        }
    }

    fn check_free(&self, wanted: u64) -> Result<(), StoreError> {
        let Space { free, reserve, .. } = self.space()?;
        if free < reserve.saturating_add(wanted) {
            return Err(StoreError::Full { free, reserve });
        }
        Ok(())
    }

    /// After a failed write the store is broken until it is mended.
    fn written(&self, outcome: Result<(), DbError>, verb: &'static str) -> Result<(), StoreError> {
        outcome.map_err(|error| {
            self.broken.store(true, Ordering::Release);
            tracing::error!(dir = %self.dir.display(), ?error, "cannot {verb}");
            self.failure(verb, error)
        })
    }

    fn failure(&self, verb: &'static str, error: DbError) -> StoreError {
        match (self.space(), error) {
            (Ok(Space { free, reserve, .. }), DbError::Full(_)) => {
                StoreError::Full { free, reserve }
            }
            (_, error) => failure(verb, error),
        }
    }

    /// Makes a store writable again that failed to write: RocksDB refuses all writes after some
    /// failures, and its binding has no way to resume but to open the database anew.
    fn mend(&self, keeper: &mut Keeper) -> Result<(), StoreError> {
        if !self.broken.load(Ordering::Acquire) {
            return Ok(());
        }
        self.check_free(0)?;
        let verb = "write to the chunk store again";
        if keeper.mended.is_some_and(|at| at.elapsed() < MEND_EVERY) {
            return Err(StoreError::Disk { verb, reason: "it failed a moment ago".to_owned() });
        }
        keeper.mended = Some(Instant::now());
        let mut slot = self.db.write().unwrap_or_else(PoisonError::into_inner);
        drop(slot.take());
        match Db::open(&self.dir, false) {
            Ok(db) => {
                *self.shown() = read_totals(&db)?;
                *slot = Some(db);
                self.broken.store(false, Ordering::Release);
                self.changed.note_all();
                tracing::info!(dir = %self.dir.display(), "the chunk store is writable again");
                Ok(())
            }
            Err(error) => {
                *slot = open_for_reading(&self.dir);
                drop(slot);
                Err(self.failure(verb, error))
            }
        }
    }

    /// Reads a chunk once more and follows what is found: `if_good`, or that it is corrupt.
    fn examine(
        &self,
        id: &ChunkId,
        found: Body,
        now_ms: u64,
        verb: &'static str,
    ) -> Result<Option<bool>, StoreError> {
        self.edit(verb, true, |edit| {
            let Some(old) = edit.record(id)?.filter(|old| old.body == found) else {
                return Ok((None, false));
            };
            let good = match read_bytes(edit.db(), id, &old) {
                Ok(bytes) => ChunkId::of(&bytes) == *id,
                Err(StoreError::Corrupt { .. }) => false,
                Err(error) => return Err(error),
            };
            let new = old.examined(good, now_ms);
            let changes = new.body != old.body;
            if changes {
                edit.set(id, Some(old), Some(new));
            }
            Ok((Some(good), changes))
        })
    }
}

impl ChunkStore for RocksStore {
    fn put_batch(&self, batch: &[NewChunk]) -> Result<Batched, StoreError> {
        self.edit("store chunks", true, |edit| {
            let mut done = Batched::default();
            let mut again = false;
            for chunk in batch {
                // A present entry is on disk: it was read from synced state, because the only
                // writer is here, nothing makes a chunk present without a sync, and what a crash
                // left in the log was synced when the store was opened.
                let old = edit.record(&chunk.id)?;
                if let Some(old) = old.filter(|old| old.body == Body::Present) {
                    done.known += 1;
                    if let Some(new) = old.put_again(chunk.at_ms) {
                        edit.set(&chunk.id, Some(old), Some(new));
                        again = true;
                    }
                    continue;
                }
                let new = Record::put(old, len_of(&chunk.bytes), chunk.epoch, chunk.at_ms);
                edit.set(&chunk.id, old, Some(new));
                edit.put_bytes(&chunk.id, &chunk.bytes);
                done.written += 1;
                done.bytes += u64::from(new.len);
            }
            if done.written > 0 {
                self.check_room(edit.db(), done.bytes)?;
            }
            Ok((done, again || done.written > 0))
        })
    }

    fn mark(
        &self,
        marks: &[(ChunkId, Mark)],
        now_ms: u64,
        applied: Option<u64>,
    ) -> Result<Marked, StoreError> {
        self.edit("follow what the master said", false, |edit| {
            let mut done = Marked::default();
            for (id, mark) in marks {
                let old = edit.record(id)?;
                let new = Record::marked(old, *mark, now_ms);
                done.note(id, old.as_ref(), new.as_ref());
                edit.set(id, old, new);
            }
            if let Some(applied) = applied {
                edit.put_meta(schema::APPLIED, &applied.to_be_bytes());
            }
            Ok((done, !marks.is_empty() || applied.is_some()))
        })
    }

    fn applied(&self) -> Result<u64, StoreError> {
        self.read(|db| {
            let value = db.get(Family::Meta, schema::APPLIED).map_err(index_failure)?;
            let Some(value) = value else { return Ok(0) };
            schema::decode_u64(value.as_ref()).ok_or_else(|| nonsense("the position applied"))
        })
    }

    fn forget_live(&self, ids: &[ChunkId], now_ms: u64) -> Result<u64, StoreError> {
        self.edit("forget chunks the master does not have", false, |edit| {
            let mut forgotten = 0;
            for id in ids {
                if let Some(old) = edit.record(id)?.filter(|old| old.live) {
                    edit.set(id, Some(old), old.forgotten(now_ms));
                    forgotten += 1;
                }
            }
            Ok((forgotten, forgotten > 0))
        })
    }

    fn quarantine(&self, ids: &[ChunkId], now_ms: u64) -> Result<u64, StoreError> {
        self.edit("move chunks to quarantine", false, |edit| {
            let mut moved = 0;
            for id in ids {
                let old = edit.record(id)?;
                if let Some(new) = old.and_then(|old| old.quarantined(now_ms)) {
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
            released += self.edit("release the chunks of a group", false, |edit| {
                let mut released = 0;
                for (id, _) in &page {
                    let old = edit.record(id)?;
                    let needed = |it: &Record| it.live || it.body == Body::Present;
                    if let Some(old) = old.filter(needed) {
                        edit.set(id, Some(old), old.released(now_ms));
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
        self.edit("delete chunks from quarantine", true, |edit| {
            let mut purged = Purged::default();
            for id in read_due(edit.db(), before_ms, limit)? {
                let Some(old) = edit.record(&id)?.filter(Record::is_condemned) else {
                    return Err(nonsense("the list of what is in quarantine"));
                };
                edit.set(&id, Some(old), None);
                purged.chunks += 1;
                purged.bytes += u64::from(old.len);
            }
            Ok((purged, purged.chunks > 0))
        })
    }

    fn get(&self, id: &ChunkId) -> Result<Option<Bytes>, StoreError> {
        self.read(|db| {
            let record = read_record(db, id)?.filter(|record| record.body == Body::Present);
            record.map(|record| read_bytes(db, id, &record)).transpose()
        })
    }

    fn record(&self, id: &ChunkId) -> Result<Option<Record>, StoreError> {
        self.read(|db| read_record(db, id))
    }

    fn list(
        &self,
        after: Option<&ChunkId>,
        limit: usize,
    ) -> Result<Vec<(ChunkId, Record)>, StoreError> {
        self.read(|db| {
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
        self.read(|db| records(db, &first, Some(end), after).take(limit).collect())
    }

    fn lacking(
        &self,
        after: Option<&ChunkId>,
        limit: usize,
    ) -> Result<Vec<(ChunkId, Body)>, StoreError> {
        self.read(|db| {
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
                if let Some(record) = read_record(db, &id)?.filter(Record::is_lacking) {
                    out.push((id, record.body));
                }
            }
            Ok(out)
        })
    }

    fn buckets(&self, pg: PgId) -> Result<Box<[Digest; BUCKETS]>, StoreError> {
        let mut digests = Box::new([[0; 32]; BUCKETS]);
        self.read(|db| {
            read_buckets(db, pg, |number, bucket| {
                digests[usize::from(number)] = bucket.digest.to_bytes();
            })
        })?;
        Ok(digests)
    }

    fn group_count(&self, pg: PgId) -> Result<u64, StoreError> {
        let mut count = 0;
        self.read(|db| read_buckets(db, pg, |_, bucket| count += u64::from(bucket.count)))?;
        Ok(count)
    }

    fn bucket_ids(&self, pg: PgId, bucket: u8) -> Result<Vec<ChunkId>, StoreError> {
        let (first, end) = schema::bucket_range((pg, bucket));
        self.read(|db| {
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
        self.read(|db| {
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
        self.edit("remember what was scrubbed", false, |edit| {
            edit.put_meta(&schema::scrubbed_key(pg), &at_ms.to_be_bytes());
            Ok(((), true))
        })
    }

    fn totals(&self) -> Totals {
        *self.shown()
    }

    fn space(&self) -> Result<Space, StoreError> {
        let stat = nix::sys::statvfs::statvfs(&self.dir).map_err(|error| StoreError::Disk {
            verb: "see how much room there is",
            reason: error.to_string(),
        })?;
        let unit = stat.fragment_size();
        let total = stat.blocks().saturating_mul(unit);
        let free = stat.blocks_available().saturating_mul(unit);
        let reserve = self.reserve.unwrap_or_else(|| RESERVE_BYTES.min(total / 50));
        Ok(Space { free, total, reserve })
    }

    fn load(&self, key: Meta) -> Result<Option<Vec<u8>>, StoreError> {
        self.read(|db| {
            let value = db.get(Family::Meta, key.key()).map_err(index_failure)?;
            Ok(value.map(|value| value.as_ref().to_vec()))
        })
    }

    fn save(&self, values: &[(Meta, Vec<u8>)]) -> Result<(), StoreError> {
        self.edit("save the node's state", true, |edit| {
            for (key, value) in values {
                edit.put_meta(key.key(), value);
            }
            Ok(((), true))
        })
    }

    fn refilling(&self) -> bool {
        false
    }

    fn finish_refill(&self) -> Result<(), StoreError> {
        Ok(())
    }

    fn close(&self) {
        let mut keeper = self.keeper();
        if std::mem::replace(&mut keeper.closed, true) {
            return;
        }
        let mut slot = self.db.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(db) = slot.take() {
            // What was acknowledged is in the log, and is read from there at the next start; so a
            // store that cannot write needs no flush.
            if !self.broken.load(Ordering::Acquire) {
                match db.flush() {
                    Ok(true) => {}
                    Ok(false) => {
                        tracing::warn!("closing the chunk store without waiting for its flush")
                    }
                    Err(error) => {
                        tracing::warn!(?error, "cannot flush the chunk store to close it")
                    }
                }
            }
            db.stop();
        }
    }
}

impl Drop for RocksStore {
    fn drop(&mut self) {
        self.close();
    }
}

fn open_for_reading(dir: &Path) -> Option<Db> {
    match Db::open_for_reading(dir) {
        Ok(db) => Some(db),
        Err(error) => {
            tracing::error!(dir = %dir.display(), ?error, "cannot even read the chunk store");
            None
        }
    }
}

/// Records in the order of ids, from a key on and after an id, up to and without `end`.
fn records<'a>(
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
        let record = Record::decode(&value).ok_or_else(|| nonsense("an entry of the index"))?;
        Ok((id, record))
    });
    entries.filter(move |entry| !matches!(entry, Ok((id, _)) if Some(*id) == skipped))
}

/// The bytes of a chunk, as the record says they should be there.
fn read_bytes(db: &Db, id: &ChunkId, record: &Record) -> Result<Bytes, StoreError> {
    let damaged = |reason: String| StoreError::Corrupt { id: *id, reason };
    match db.get(Family::Chunks, &schema::chunk_key(id)) {
        Ok(Some(value)) if value.as_ref().len() as u64 == u64::from(record.len) => {
            Ok(Bytes::copy_from_slice(value.as_ref()))
        }
        Ok(Some(value)) => {
            Err(damaged(format!("{} bytes instead of {}", value.as_ref().len(), record.len)))
        }
        Ok(None) => Err(damaged("its bytes are gone".to_owned())),
        Err(DbError::Damaged(reason)) => Err(damaged(reason)),
        Err(error) => Err(failure("read a chunk", error)),
    }
}

/// The oldest chunks that were to be deleted before a moment.
fn read_due(db: &Db, before_ms: u64, limit: usize) -> Result<Vec<ChunkId>, StoreError> {
    let end = before_ms.to_be_bytes().to_vec();
    let mut due = Vec::new();
    for entry in db.scan(Family::Quarantine, &[], Some(end)).take(limit) {
        let (key, _) = entry.map_err(index_failure)?;
        let named = schema::key_quarantine(&key);
        due.push(named.ok_or_else(|| nonsense("a key of the quarantine"))?.1);
    }
    Ok(due)
}

fn read_buckets(db: &Db, pg: PgId, mut found: impl FnMut(u8, Bucket)) -> Result<(), StoreError> {
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

fn read_totals(db: &Db) -> Result<Totals, StoreError> {
    let value = db.get(Family::Meta, schema::TOTALS).map_err(index_failure)?;
    match value {
        None => Ok(Totals::default()),
        Some(value) => Totals::decode(value.as_ref()).ok_or_else(|| nonsense("the totals")),
    }
}

fn failure(verb: &'static str, error: DbError) -> StoreError {
    match error {
        DbError::Damaged(reason) => StoreError::Damaged { reason },
        error => StoreError::Disk { verb, reason: error.into_reason() },
    }
}

fn index_failure(error: DbError) -> StoreError {
    failure("read the index of the chunks", error)
}

fn nonsense(what: &str) -> StoreError {
    StoreError::Damaged { reason: format!("{what} makes no sense") }
}

#[cfg(test)]
impl RocksStore {
    /// Replaces the bytes of a chunk behind the index's back, as a failing disk would.
    pub(crate) fn damage(&self, id: &ChunkId, wrong: &[u8]) {
        let slot = self.reader();
        let mut batch = slot.as_ref().expect("open in tests").batch();
        batch.put(Family::Chunks, &schema::chunk_key(id), wrong);
        batch.write(true).expect("the test's disk works");
    }

    /// Writes everything to blob files.
    pub(crate) fn flush(&self) {
        let slot = self.reader();
        assert_eq!(slot.as_ref().expect("open in tests").flush(), Ok(true));
    }

    /// Stores a chunk without asking whether there is room.
    pub(crate) fn put_blindly(&self, chunk: &NewChunk) -> Result<(), StoreError> {
        let slot = self.reader();
        let mut batch = slot.as_ref().expect("open in tests").batch();
        batch.put(Family::Chunks, &schema::chunk_key(&chunk.id), &chunk.bytes);
        self.written(batch.write(true), "store chunks")
    }
}
