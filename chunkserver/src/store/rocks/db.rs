//! The database under the store: the only file that knows RocksDB.
//!
//! It knows families, keys and bytes, not what they mean. There is one writer at a time, and one
//! sync per batch: RocksDB's own group commit does not help large values.

use std::collections::HashSet;
use std::path::Path;
use std::time::{Duration, Instant};

use rocksdb::{
    BlockBasedOptions, BottommostLevelCompaction, Cache, ColumnFamily, ColumnFamilyDescriptor,
    CompactOptions, DB, DBCompressionType, Direction, ErrorKind, FlushOptions, IteratorMode,
    Options, ReadOptions, WriteBatch, WriteOptions,
};

use super::schema::Family;

/// Shorter values of [`Family::Chunks`] stay in the tree, where compaction may rewrite them.
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
/// RocksDB's name for the bytes that are in the log but not in blob files or tables.
const UNFLUSHED: &str = "rocksdb.cur-size-all-mem-tables";
/// RocksDB's name for the number of buffers that wait to be flushed.
const NOT_YET_FLUSHED: &str = "rocksdb.num-immutable-mem-table";
/// RocksDB's names for the bytes of blob files and of tables, and for what is dead in blob files.
const BLOB_FILES: &str = "rocksdb.live-blob-file-size";
const TABLE_FILES: &str = "rocksdb.live-sst-files-size";
const BLOB_GARBAGE: &str = "rocksdb.live-blob-file-garbage-size";
/// RocksDB's names for the options that have compaction move what lives in blob files.
const COLLECT_BLOBS: &str = "enable_blob_garbage_collection";
const COLLECT_BLOBS_YOUNG: &str = "blob_garbage_collection_age_cutoff";
/// How often all chunks are written anew until nothing dead is left: more may be deleted meanwhile.
const REWRITES_MAX: usize = 3;
/// How long a flush may take before it counts as stuck.
const FLUSH_WAIT_MAX: Duration = Duration::from_secs(5);
/// How often to look whether it is over.
const FLUSH_POLL_EVERY: Duration = Duration::from_millis(2);

/// Why the database failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum DbError {
    /// There is no room on the disk.
    Full(String),
    /// A checksum is wrong, or a file is gone or cut: no later try will do better.
    Damaged(String),
    /// The disk does not give the bytes.
    Unreadable(String),
    /// Anything else.
    Other(String),
}

/// A key and its value.
pub(super) type Entry = (Box<[u8]>, Box<[u8]>);

/// An open database.
pub(super) struct Db(DB);

/// Changes that are made together.
pub(super) struct Batch<'a> {
    db: &'a DB,
    changes: WriteBatch,
}

impl Db {
    /// Opens the database in a directory, or makes one there.
    pub(super) fn open(dir: &Path, create: bool) -> Result<Self, DbError> {
        let opened = DB::open_cf_descriptors(&options(create), dir, families());
        Ok(Self(opened.map_err(DbError::opening)?))
    }

    /// Opens it without writing anything, not even what opening a database writes.
    pub(super) fn open_for_reading(dir: &Path) -> Result<Self, DbError> {
        let opened = DB::open_cf_descriptors_read_only(&options(false), dir, families(), false);
        Ok(Self(opened.map_err(DbError::opening)?))
    }

    /// The value of a key.
    pub(super) fn get(
        &self,
        family: Family,
        key: &[u8],
    ) -> Result<Option<impl AsRef<[u8]> + use<'_>>, DbError> {
        Ok(self.0.get_pinned_cf(handle(&self.0, family), key)?)
    }

    /// Everything from the key `from` on, up to and without `end`, in order.
    pub(super) fn scan(
        &self,
        family: Family,
        from: &[u8],
        end: Option<Vec<u8>>,
    ) -> impl Iterator<Item = Result<Entry, DbError>> + use<'_> {
        let mut options = ReadOptions::default();
        if let Some(end) = end {
            options.set_iterate_upper_bound(end);
        }
        let mode = IteratorMode::From(from, Direction::Forward);
        let entries = self.0.iterator_cf_opt(handle(&self.0, family), options, mode);
        entries.map(|entry| entry.map_err(DbError::from))
    }

    /// An empty batch.
    pub(super) fn batch(&self) -> Batch<'_> {
        Batch { db: &self.0, changes: WriteBatch::default() }
    }

    /// Bytes that have to be written once more: they are in the log only.
    pub(super) fn unflushed(&self) -> Result<u64, DbError> {
        let chunks = handle(&self.0, Family::Chunks);
        Ok(self.0.property_int_value_cf(chunks, UNFLUSHED)?.unwrap_or(u64::from(u32::MAX)))
    }

    /// Flushes everything that is in memory, and waits for it, but not for ever: while RocksDB
    /// tries to recover from a failed write, its own waiting flush would. Says whether it came to
    /// an end.
    pub(super) fn flush(&self) -> Result<bool, DbError> {
        let mut options = FlushOptions::default();
        options.set_wait(false);
        let all = Family::ALL.map(|family| handle(&self.0, family));
        self.0.flush_cfs_opt(&all, &options)?;
        let started = Instant::now();
        loop {
            let mut waiting = 0;
            for family in all {
                waiting += self.0.property_int_value_cf(family, NOT_YET_FLUSHED)?.unwrap_or(0);
            }
            if waiting == 0 || started.elapsed() > FLUSH_WAIT_MAX {
                return Ok(waiting == 0);
            }
            std::thread::sleep(FLUSH_POLL_EVERY);
        }
    }

    /// Bytes of the files with chunks.
    pub(super) fn chunk_bytes(&self) -> Result<u64, DbError> {
        let chunks = handle(&self.0, Family::Chunks);
        let mut sum = 0;
        for property in [BLOB_FILES, TABLE_FILES] {
            sum += self.0.property_int_value_cf(chunks, property)?.unwrap_or(0);
        }
        Ok(sum)
    }

    /// Writes all chunks anew that are kept, and lets go of the files with those that were deleted.
    /// Takes as long as reading and writing them all.
    pub(super) fn rewrite_chunks(&self) -> Result<(), DbError> {
        let chunks = handle(&self.0, Family::Chunks);
        if !self.flush()? {
            return Err(DbError::Other("what is in memory could not be flushed".to_owned()));
        }
        let before = self.chunk_tables()?;
        let collecting = [(COLLECT_BLOBS, "true"), (COLLECT_BLOBS_YOUNG, "1.0")];
        self.0.set_options_cf(chunks, &collecting)?;
        let mut options = CompactOptions::default();
        options.set_bottommost_level_compaction(BottommostLevelCompaction::Force);
        // It may take long, and puts must not wait for it.
        options.set_exclusive_manual_compaction(false);
        let mut left = 0;
        for _ in 0..REWRITES_MAX {
            self.0.compact_range_cf_opt(chunks, None::<&[u8]>, None::<&[u8]>, &options);
            left = self.0.property_int_value_cf(chunks, BLOB_GARBAGE)?.unwrap_or(0);
            if left == 0 {
                break;
            }
        }
        self.0.set_options_cf(chunks, &[(COLLECT_BLOBS, "false")])?;
        // It gives no error when it stopped before its end.
        if left > 0 {
            return Err(DbError::Other(format!("{left} bytes of deleted chunks are left")));
        }
        match self.chunk_tables()?.intersection(&before).count() {
            0 => Ok(()),
            left => Err(DbError::Other(format!("{left} tables with chunks were not rewritten"))),
        }
    }

    /// The names of the files with chunks that are short.
    fn chunk_tables(&self) -> Result<HashSet<String>, DbError> {
        let files = self.0.live_files()?.into_iter();
        let chunks = files.filter(|file| file.column_family_name == Family::Chunks.name());
        Ok(chunks.map(|file| file.name).collect())
    }

    /// Ends what runs in the background, so that dropping the database is quick.
    pub(super) fn stop(&self) {
        self.0.cancel_all_background_work(true);
    }
}

impl Batch<'_> {
    /// Sets a key's value.
    pub(super) fn put(&mut self, family: Family, key: &[u8], value: &[u8]) {
        self.changes.put_cf(handle(self.db, family), key, value);
    }

    /// Removes a key.
    pub(super) fn delete(&mut self, family: Family, key: &[u8]) {
        self.changes.delete_cf(handle(self.db, family), key);
    }

    /// Makes the changes: all or none, and, if `sync`, on disk when this returns.
    pub(super) fn write(self, sync: bool) -> Result<(), DbError> {
        let mut options = WriteOptions::default();
        options.set_sync(sync);
        Ok(self.db.write_opt(self.changes, &options)?)
    }
}

impl From<rocksdb::Error> for DbError {
    fn from(error: rocksdb::Error) -> Self {
        let damaged = error.kind() == ErrorKind::Corruption;
        let reason = error.into_string();
        if reason.contains("No space left") {
            Self::Full(reason)
        } else if damaged || reason.contains("No such file") {
            Self::Damaged(reason)
        } else if reason.contains("Input/output error") {
            Self::Unreadable(reason)
        } else {
            Self::Other(reason)
        }
    }
}

impl DbError {
    /// What a failure to open means: a database whose files do not fit together, or are not what
    /// they should be, gives all sorts of errors.
    fn opening(error: rocksdb::Error) -> Self {
        let unlike_ours = matches!(
            error.kind(),
            ErrorKind::InvalidArgument
                | ErrorKind::NotSupported
                | ErrorKind::NotFound
                | ErrorKind::Incomplete
        );
        match Self::from(error) {
            Self::Other(reason) if unlike_ours => Self::Damaged(reason),
            error => error,
        }
    }

    /// What the library said.
    pub(super) fn into_reason(self) -> String {
        match self {
            Self::Full(reason)
            | Self::Damaged(reason)
            | Self::Unreadable(reason)
            | Self::Other(reason) => reason,
        }
    }
}

fn handle(db: &DB, family: Family) -> &ColumnFamily {
    db.cf_handle(family.name()).expect("the database is only ever opened with all of its families")
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
    options.set_stats_persist_period_sec(0);
    options
}

fn families() -> Vec<ColumnFamilyDescriptor> {
    let cache = Cache::new_lru_cache(CACHE_BYTES);
    Family::ALL
        .map(|family| ColumnFamilyDescriptor::new(family.name(), tune(family, &cache)))
        .into()
}

fn tune(family: Family, cache: &Cache) -> Options {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(cache);
    table.set_bloom_filter(10.0, false);
    table.set_cache_index_and_filter_blocks(true);
    let mut options = Options::default();
    options.set_block_based_table_factory(&table);
    options.set_compression_type(DBCompressionType::Lz4);
    options.set_write_buffer_size(SMALL_BUFFER_BYTES);
    if family == Family::Chunks {
        options.set_write_buffer_size(CHUNK_BUFFER_BYTES);
        options.set_max_write_buffer_number(CHUNK_BUFFERS);
        options.set_enable_blob_files(true);
        options.set_min_blob_size(BLOB_BYTES_MIN);
        options.set_blob_file_size(BLOB_FILE_BYTES);
        options.set_blob_compression_type(DBCompressionType::None);
        options.set_enable_blob_gc(false);
    }
    options
}
