//! Chunks in RocksDB: the only file that knows the library.
//!
//! Chunks of 4 KiB and more go to blob files, which compaction does not rewrite;
//! each byte is written twice, to the log and to its blob file. There is one writer at a time
//! (the totals are its), and one sync per batch: RocksDB's own group commit does not help large
//! values. Reads share a lock that is only ever taken exclusively to open the database again.
//!
//! **A full disk.** Puts are refused unless, beside the reserve, there is room to write everything
//! twice that is not in blob files yet: so a flush never fails for lack of room, nor does opening
//! the database after a crash, which flushes too. If something else fills the disk, RocksDB may
//! refuse all further writes; then the database is opened again before the next put, or for
//! reading only while that is impossible.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use atoll_proto::ChunkId;
use bytes::Bytes;
use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamily, ColumnFamilyDescriptor, DB, DBCompressionType,
    Direction, ErrorKind, FlushOptions, IteratorMode, Options, WriteBatch, WriteOptions,
};

use super::{
    Batched, ChunkStore, FORMAT, Meta, NewChunk, Record, Space, State, StoreError, Totals,
    chunk_key, key_chunk, len_of,
};

const CHUNKS: &str = "chunks";
const INDEX: &str = "index";
const META: &str = "meta";
/// RocksDB's name for the bytes that are in the log but not in blob files or tables.
const UNFLUSHED: &str = "rocksdb.cur-size-all-mem-tables";

/// Shorter chunks stay in the tree, where compaction may rewrite them.
const BLOB_BYTES_MIN: u64 = 4 << 10;
const BLOB_FILE_BYTES: u64 = 256 << 20;
/// Chunks wait in this much memory for their blob file; the log is as long.
const CHUNK_BUFFER_BYTES: usize = 64 << 20;
const CHUNK_BUFFERS: i32 = 3;
const SMALL_BUFFER_BYTES: usize = 8 << 20;
const WAL_BYTES_MAX: u64 = 256 << 20;
const CACHE_BYTES: usize = 64 << 20;
const BACKGROUND_JOBS: i32 = 2;
const LOG_FILE_BYTES: usize = 4 << 20;
const LOG_FILES: usize = 3;
/// The default reserve: this, or a fiftieth of the disk if that is less.
const RESERVE_BYTES: u64 = 256 << 20;
/// RocksDB's name for the number of buffers that wait to be flushed.
const NOT_YET_FLUSHED: &str = "rocksdb.num-immutable-mem-table";
/// With less than this in memory a flush would give back no room worth the wait.
const FLUSH_BYTES_MIN: u64 = 2 << 20;
/// RocksDB deletes a superfluous log a moment after the flush.
const LOG_DELETED_AFTER: Duration = Duration::from_millis(500);
/// How long a flush may take before it counts as stuck.
const FLUSH_WAIT_MAX: Duration = Duration::from_secs(5);
const FLUSH_POLL_EVERY: Duration = Duration::from_millis(2);
/// How often opening a failed database again is tried at most.
const MEND_EVERY: Duration = Duration::from_secs(1);

/// A store in a directory.
pub struct RocksStore {
    dir: PathBuf,
    reserve: Option<u64>,
    db: RwLock<Option<DB>>,
    /// Held over every write: there is one writer.
    keeper: Mutex<Keeper>,
    totals: Mutex<Totals>,
    broken: AtomicBool,
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
        let opened = DB::open_cf_descriptors(&options(create), dir, families());
        // Opening flushes the log. On a disk without room for that, reads still work.
        let broken = !create && opened.as_ref().is_err_and(is_full);
        let db = match opened {
            Err(error) if broken => {
                tracing::error!(dir = %dir.display(), %error, "no room: serving reads only");
                open_for_reading(dir)
            }
            opened => Some(opened.map_err(|error| disk("open the chunk store", &error))?),
        };
        let db = db.ok_or(StoreError::Full { free: 0, reserve: reserve.unwrap_or_default() })?;
        let totals = read_totals(&db)?;
        Ok(Self {
            dir: dir.to_owned(),
            reserve,
            db: RwLock::new(Some(db)),
            keeper: Mutex::new(Keeper { mended: None, closed: false }),
            totals: Mutex::new(totals),
            broken: AtomicBool::new(broken),
        })
    }

    fn keeper(&self) -> MutexGuard<'_, Keeper> {
        self.keeper.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn shown(&self) -> MutexGuard<'_, Totals> {
        self.totals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reader(&self) -> RwLockReadGuard<'_, Option<DB>> {
        self.db.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses a write for which there is no room: for the log now, and for blob files later.
    fn check_room(&self, db: &DB, incoming: u64) -> Result<(), StoreError> {
        let wanted = incoming.saturating_mul(2);
        let unflushed = db
            .property_int_value_cf(family(db, CHUNKS), UNFLUSHED)
            .map_err(|error| disk("see what is not flushed", &error))?
            .unwrap_or(u64::from(u32::MAX));
        if self.check_free(wanted.saturating_add(unflushed)).is_ok() {
            return Ok(());
        }
        if unflushed < FLUSH_BYTES_MIN {
            return self.check_free(wanted.saturating_add(unflushed));
        }
        self.check_free(wanted)?;
        // What is flushed gives back its room in the log.
        match flush(db) {
            Ok(true) => self.await_free(wanted),
            Ok(false) => {
                self.broken.store(true, Ordering::Release);
                let reason = "the flush does not end".to_owned();
                Err(StoreError::Disk { verb: "flush chunks", reason })
            }
            Err(error) => {
                self.broken.store(true, Ordering::Release);
                Err(self.failure("flush chunks", &error))
            }
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
            std::thread::sleep(FLUSH_POLL_EVERY);
        }
    }

    fn check_free(&self, wanted: u64) -> Result<(), StoreError> {
        let Space { free, reserve, .. } = self.space()?;
        if free < reserve.saturating_add(wanted) {
            return Err(StoreError::Full { free, reserve });
        }
        Ok(())
    }

    /// Writes a batch and syncs it. After a failure the store is broken until it is mended.
    fn write(&self, db: &DB, batch: WriteBatch, verb: &'static str) -> Result<(), StoreError> {
        let mut options = WriteOptions::default();
        options.set_sync(true);
        db.write_opt(batch, &options).map_err(|error| {
            self.broken.store(true, Ordering::Release);
            tracing::error!(dir = %self.dir.display(), %error, "cannot {verb}");
            self.failure(verb, &error)
        })
    }

    fn failure(&self, verb: &'static str, error: &rocksdb::Error) -> StoreError {
        match self.space() {
            Ok(space) if is_full(error) => {
                StoreError::Full { free: space.free, reserve: space.reserve }
            }
            _ => disk(verb, error),
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
        match DB::open_cf_descriptors(&options(false), &self.dir, families()) {
            Ok(db) => {
                *self.shown() = read_totals(&db)?;
                *slot = Some(db);
                self.broken.store(false, Ordering::Release);
                tracing::info!(dir = %self.dir.display(), "the chunk store is writable again");
                Ok(())
            }
            Err(error) => {
                *slot = open_for_reading(&self.dir);
                drop(slot);
                Err(self.failure(verb, &error))
            }
        }
    }
}

impl ChunkStore for RocksStore {
    fn put_batch(&self, batch: &[NewChunk]) -> Result<Batched, StoreError> {
        let mut keeper = self.keeper();
        self.mend(&mut keeper)?;
        let slot = self.reader();
        let db = slot.as_ref().ok_or(StoreError::Closed)?;
        let mut done = Batched::default();
        let mut totals = self.totals();
        let mut seen = HashSet::new();
        let mut write = WriteBatch::default();
        for NewChunk { id, bytes, epoch } in batch {
            // A present entry is on disk: it was read from synced state, because the only writer
            // is here, and what a crash left in the log was synced when the store was opened.
            let known = !seen.insert(*id) || is_present(read_record(db, id)?);
            if known {
                done.known += 1;
                continue;
            }
            let record = Record { state: State::Present, len: len_of(bytes), epoch: *epoch };
            write.put_cf(family(db, CHUNKS), chunk_key(id), bytes);
            write.put_cf(family(db, INDEX), chunk_key(id), record.encode());
            totals.added(record.len);
            done.written += 1;
            done.bytes += u64::from(record.len);
        }
        if done.written > 0 {
            self.check_room(db, done.bytes)?;
            write.put_cf(family(db, META), Meta::Totals.key(), totals.encode());
            self.write(db, write, "store chunks")?;
            *self.shown() = totals;
        }
        Ok(done)
    }

    fn get(&self, id: &ChunkId) -> Result<Option<Bytes>, StoreError> {
        let slot = self.reader();
        let db = slot.as_ref().ok_or(StoreError::Closed)?;
        read_chunk(db, id)
    }

    fn record(&self, id: &ChunkId) -> Result<Option<Record>, StoreError> {
        let slot = self.reader();
        read_record(slot.as_ref().ok_or(StoreError::Closed)?, id)
    }

    fn quarantine(&self, id: &ChunkId) -> Result<bool, StoreError> {
        let _keeper = self.keeper();
        let slot = self.reader();
        let db = slot.as_ref().ok_or(StoreError::Closed)?;
        let Some(record) = read_record(db, id)?.filter(|r| r.state == State::Present) else {
            return Ok(false);
        };
        match read_chunk(db, id) {
            Ok(Some(bytes)) if ChunkId::of(&bytes) == *id => return Ok(false),
            Ok(_) | Err(StoreError::Corrupt { .. }) => {}
            Err(error) => return Err(error),
        }
        let mut totals = self.totals();
        totals.spoiled(record.len);
        let record = Record { state: State::Corrupt, ..record };
        let mut write = WriteBatch::default();
        write.put_cf(family(db, INDEX), chunk_key(id), record.encode());
        write.put_cf(family(db, META), Meta::Totals.key(), totals.encode());
        self.write(db, write, "take a corrupt chunk out of service")?;
        *self.shown() = totals;
        Ok(true)
    }

    fn list(
        &self,
        after: Option<&ChunkId>,
        limit: usize,
    ) -> Result<Vec<(ChunkId, Record)>, StoreError> {
        let slot = self.reader();
        let db = slot.as_ref().ok_or(StoreError::Closed)?;
        let from = after.map(chunk_key);
        let mode = match &from {
            Some(key) => IteratorMode::From(key, Direction::Forward),
            None => IteratorMode::Start,
        };
        let mut out = Vec::new();
        for entry in db.iterator_cf(family(db, INDEX), mode) {
            let (key, value) = entry.map_err(|error| disk("read the index", &error))?;
            if from.as_ref().is_some_and(|from| from[..] == key[..]) {
                continue;
            }
            if out.len() >= limit {
                break;
            }
            let id = key_chunk(&key).ok_or_else(|| nonsense("a key of the index"))?;
            let record = Record::decode(&value).ok_or_else(|| nonsense("an index entry"))?;
            out.push((id, record));
        }
        Ok(out)
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
        let slot = self.reader();
        let db = slot.as_ref().ok_or(StoreError::Closed)?;
        db.get_cf(family(db, META), key.key())
            .map_err(|error| disk("read from the chunk store", &error))
    }

    fn save(&self, values: &[(Meta, Vec<u8>)]) -> Result<(), StoreError> {
        let mut keeper = self.keeper();
        self.mend(&mut keeper)?;
        let slot = self.reader();
        let db = slot.as_ref().ok_or(StoreError::Closed)?;
        let mut write = WriteBatch::default();
        for (key, value) in values {
            write.put_cf(family(db, META), key.key(), value);
        }
        self.write(db, write, "save the node's state")
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
                match flush(&db) {
                    Ok(true) => {}
                    Ok(false) => {
                        tracing::warn!("closing the chunk store without waiting for its flush")
                    }
                    Err(error) => {
                        tracing::warn!(%error, "cannot flush the chunk store to close it")
                    }
                }
            }
            db.cancel_all_background_work(true);
        }
    }
}

impl Drop for RocksStore {
    fn drop(&mut self) {
        self.close();
    }
}

fn options(create: bool) -> Options {
    let mut options = Options::default();
    options.create_if_missing(create);
    options.create_missing_column_families(create);
    // All families are flushed together, so that no small one holds back the log.
    options.set_atomic_flush(true);
    options.set_max_total_wal_size(WAL_BYTES_MAX);
    options.set_track_and_verify_wals_in_manifest(true);
    options.set_max_background_jobs(BACKGROUND_JOBS);
    options.set_bytes_per_sync(1 << 20);
    options.set_max_log_file_size(LOG_FILE_BYTES);
    options.set_keep_log_file_num(LOG_FILES);
    options.set_stats_dump_period_sec(0);
    options
}

fn families() -> Vec<ColumnFamilyDescriptor> {
    let cache = Cache::new_lru_cache(CACHE_BYTES);
    let table = || {
        let mut table = BlockBasedOptions::default();
        table.set_block_cache(&cache);
        table.set_bloom_filter(10.0, false);
        table.set_cache_index_and_filter_blocks(true);
        table
    };
    let small = || {
        let mut options = Options::default();
        options.set_block_based_table_factory(&table());
        options.set_compression_type(DBCompressionType::Lz4);
        options.set_write_buffer_size(SMALL_BUFFER_BYTES);
        options
    };
    let mut chunks = small();
    chunks.set_write_buffer_size(CHUNK_BUFFER_BYTES);
    chunks.set_max_write_buffer_number(CHUNK_BUFFERS);
    chunks.set_enable_blob_files(true);
    chunks.set_min_blob_size(BLOB_BYTES_MIN);
    chunks.set_blob_file_size(BLOB_FILE_BYTES);
    chunks.set_blob_compression_type(DBCompressionType::None);
    // Collection of blob files rewrites the oldest quarter of them on every compaction, garbage or
    // not; and there is no garbage while nothing is deleted.
    chunks.set_enable_blob_gc(false);
    vec![
        ColumnFamilyDescriptor::new(CHUNKS, chunks),
        ColumnFamilyDescriptor::new(INDEX, small()),
        ColumnFamilyDescriptor::new(META, small()),
    ]
}

/// Flushes everything that is in memory, and waits for it, but not for ever: while RocksDB tries
/// to recover from a failed write, its own waiting flush would. Says whether it came to an end.
fn flush(db: &DB) -> Result<bool, rocksdb::Error> {
    let mut options = FlushOptions::default();
    options.set_wait(false);
    let all = [CHUNKS, INDEX, META].map(|name| family(db, name));
    db.flush_cfs_opt(&all, &options)?;
    let started = Instant::now();
    loop {
        let mut waiting = 0;
        for family in all {
            waiting += db.property_int_value_cf(family, NOT_YET_FLUSHED)?.unwrap_or(0);
        }
        if waiting == 0 || started.elapsed() > FLUSH_WAIT_MAX {
            return Ok(waiting == 0);
        }
        std::thread::sleep(FLUSH_POLL_EVERY);
    }
}

fn is_full(error: &rocksdb::Error) -> bool {
    error.as_ref().contains("No space left")
}

fn open_for_reading(dir: &Path) -> Option<DB> {
    match DB::open_cf_descriptors_read_only(&options(false), dir, families(), false) {
        Ok(db) => Some(db),
        Err(error) => {
            tracing::error!(dir = %dir.display(), %error, "cannot even read the chunk store");
            None
        }
    }
}

fn family<'a>(db: &'a DB, name: &str) -> &'a ColumnFamily {
    db.cf_handle(name).expect("the database is only ever opened with all of its families")
}

fn read_record(db: &DB, id: &ChunkId) -> Result<Option<Record>, StoreError> {
    let value = db
        .get_pinned_cf(family(db, INDEX), chunk_key(id))
        .map_err(|error| disk("read the index", &error))?;
    value.map(|value| Record::decode(&value).ok_or_else(|| nonsense("an index entry"))).transpose()
}

fn read_chunk(db: &DB, id: &ChunkId) -> Result<Option<Bytes>, StoreError> {
    let Some(record) = read_record(db, id)?.filter(|r| r.state == State::Present) else {
        return Ok(None);
    };
    let damaged = |reason: String| StoreError::Corrupt { id: *id, reason };
    match db.get_pinned_cf(family(db, CHUNKS), chunk_key(id)) {
        Ok(Some(value)) if value.len() as u64 == u64::from(record.len) => {
            Ok(Some(Bytes::copy_from_slice(&value)))
        }
        Ok(Some(value)) => Err(damaged(format!("{} bytes instead of {}", value.len(), record.len))),
        Ok(None) => Err(damaged("its bytes are gone".to_owned())),
        Err(error) if is_damage(&error) => Err(damaged(error.into_string())),
        Err(error) => Err(disk("read a chunk", &error)),
    }
}

fn is_present(record: Option<Record>) -> bool {
    record.is_some_and(|record| record.state == State::Present)
}

/// A failed checksum, or a file that is gone: no later try will find the bytes.
fn is_damage(error: &rocksdb::Error) -> bool {
    error.kind() == ErrorKind::Corruption || error.as_ref().contains("No such file")
}

fn read_totals(db: &DB) -> Result<Totals, StoreError> {
    let value = db
        .get_cf(family(db, META), Meta::Totals.key())
        .map_err(|error| disk("read the totals", &error))?;
    match value {
        None => Ok(Totals::default()),
        Some(value) => Totals::decode(&value).ok_or_else(|| nonsense("the totals")),
    }
}

fn disk(verb: &'static str, error: &rocksdb::Error) -> StoreError {
    StoreError::Disk { verb, reason: error.as_ref().to_owned() }
}

fn nonsense(what: &str) -> StoreError {
    StoreError::Disk { verb: "read the chunk store", reason: format!("{what} makes no sense") }
}

#[cfg(test)]
impl RocksStore {
    /// Replaces the bytes of a chunk behind the index's back, as a failing disk would.
    pub(crate) fn spoil(&self, id: &ChunkId, wrong: &[u8]) {
        let slot = self.reader();
        let db = slot.as_ref().expect("open in tests");
        db.put_cf(family(db, CHUNKS), chunk_key(id), wrong).expect("the test's disk works");
    }

    /// Writes everything to blob files.
    pub(crate) fn flush(&self) {
        let slot = self.reader();
        assert!(flush(slot.as_ref().expect("open in tests")).expect("the test's disk works"));
    }

    /// Stores a chunk without asking whether there is room.
    pub(crate) fn put_blindly(&self, chunk: &NewChunk) -> Result<(), StoreError> {
        let slot = self.reader();
        let db = slot.as_ref().expect("open in tests");
        let mut write = WriteBatch::default();
        write.put_cf(family(db, CHUNKS), chunk_key(&chunk.id), &chunk.bytes);
        self.write(db, write, "store chunks")
    }
}
