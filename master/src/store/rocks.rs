//! The only file that knows RocksDB: opening, reading, batches, checkpoints.
//!
//! [`crate::store`] and the Raft log use it. It knows nothing of key families. One database holds
//! the replicated state and another the Raft log; both have a single key space, so that one
//! batch is always one atomic write and a crash can never separate two families.

use std::fmt;
use std::path::Path;
use std::sync::{Arc, Weak};

use rocksdb::checkpoint::Checkpoint;
use rocksdb::{
    BlockBasedOptions, Cache, DB, DBCompressionType, Direction, IteratorMode, Options, ReadOptions,
    WriteBatch, WriteOptions,
};

use super::{Order, Read, StoreError, Visit};

/// What a database is for; decides its options.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tuning {
    /// The replicated state: random reads, rewritten keys.
    State,
    /// The Raft log: appended, read back soon, deleted from the front.
    Log,
    /// A checkpoint: read through once.
    Copy,
}

/// An open database.
pub(crate) struct Rocks {
    db: DB,
    /// Dropped after the database: it is gone once that is closed, with its lock.
    open: Arc<()>,
}

/// Changes that are written together or not at all.
#[derive(Default)]
pub(crate) struct Batch(WriteBatch);

/// The database as it was at one moment.
pub(crate) struct View<'a> {
    snapshot: rocksdb::Snapshot<'a>,
}

impl Rocks {
    /// Opens the database in `path`, making it if need be.
    pub(crate) fn open(path: &Path, tuning: Tuning) -> Result<Rocks, StoreError> {
        let db = DB::open(&options(tuning), path).map_err(|e| StoreError::io("open", &e))?;
        Ok(Rocks { db, open: Arc::default() })
    }

    /// Opens a checkpoint to look into it.
    pub(crate) fn open_read_only(path: &Path) -> Result<Rocks, StoreError> {
        let mut options = options(Tuning::Copy);
        options.create_if_missing(false);
        let db = DB::open_for_read_only(&options, path, false)
            .map_err(|e| StoreError::io("open checkpoint", &e))?;
        Ok(Rocks { db, open: Arc::default() })
    }

    /// Is gone once the database is closed.
    pub(crate) fn open_mark(&self) -> Weak<()> {
        Arc::downgrade(&self.open)
    }

    /// Writes a batch. With `sync` it is on disk when this returns; without, it survives the
    /// death of the process but not of the machine.
    pub(crate) fn write(&self, batch: Batch, sync: bool) -> Result<(), StoreError> {
        let mut options = WriteOptions::default();
        options.set_sync(sync);
        self.db.write_opt(batch.0, &options).map_err(|e| StoreError::io("write", &e))
    }

    /// The database as it is now, unchanged by later writes.
    pub(crate) fn view(&self) -> View<'_> {
        View { snapshot: self.db.snapshot() }
    }

    /// Makes a consistent copy in `path` by hard links. Everything written before is durable in
    /// this database too when it returns: the memory tables are flushed first.
    pub(crate) fn checkpoint(&self, path: &Path) -> Result<(), StoreError> {
        Checkpoint::new(&self.db)
            .and_then(|checkpoint| checkpoint.create_checkpoint(path))
            .map_err(|e| StoreError::io("checkpoint", &e))
    }
}

impl Read for Rocks {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.db.get(key).map_err(|e| StoreError::io("read", &e))
    }

    fn scan(
        &self,
        from: &[u8],
        to: &[u8],
        order: Order,
        visit: &mut Visit<'_>,
    ) -> Result<(), StoreError> {
        let iterator = self.db.iterator_opt(mode(from, to, order), bounds(from, to));
        drive(iterator, visit)
    }
}

impl Read for View<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.snapshot.get(key).map_err(|e| StoreError::io("read", &e))
    }

    fn scan(
        &self,
        from: &[u8],
        to: &[u8],
        order: Order,
        visit: &mut Visit<'_>,
    ) -> Result<(), StoreError> {
        let iterator = self.snapshot.iterator_opt(mode(from, to, order), bounds(from, to));
        drive(iterator, visit)
    }
}

impl Batch {
    pub(crate) fn put(&mut self, key: &[u8], value: &[u8]) {
        self.0.put(key, value);
    }

    pub(crate) fn delete(&mut self, key: &[u8]) {
        self.0.delete(key);
    }

    /// Deletes every key in `from..to`.
    pub(crate) fn delete_range(&mut self, from: &[u8], to: &[u8]) {
        self.0.delete_range(from, to);
    }
}

impl fmt::Debug for Rocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Rocks({})", self.db.path().display())
    }
}

fn options(tuning: Tuning) -> Options {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.set_keep_log_file_num(4);
    options.set_max_open_files(512);
    options.set_compression_type(DBCompressionType::Lz4);
    let mut table = BlockBasedOptions::default();
    table.set_bloom_filter(10.0, false);
    match tuning {
        Tuning::State => {
            table.set_block_cache(&Cache::new_lru_cache(128 << 20));
            table.set_cache_index_and_filter_blocks(true);
            options.set_write_buffer_size(32 << 20);
            options.set_max_write_buffer_number(3);
            options.set_max_total_wal_size(128 << 20);
        }
        Tuning::Copy => {
            table.set_block_cache(&Cache::new_lru_cache(16 << 20));
            table.set_cache_index_and_filter_blocks(true);
        }
        Tuning::Log => {
            table.set_block_cache(&Cache::new_lru_cache(8 << 20));
            options.set_write_buffer_size(32 << 20);
            options.set_max_write_buffer_number(3);
            options.set_max_total_wal_size(64 << 20);
        }
    }
    options.set_block_based_table_factory(&table);
    options
}

fn bounds(from: &[u8], to: &[u8]) -> ReadOptions {
    let mut options = ReadOptions::default();
    options.set_iterate_lower_bound(from);
    options.set_iterate_upper_bound(to);
    options
}

fn mode<'a>(from: &'a [u8], to: &'a [u8], order: Order) -> IteratorMode<'a> {
    match order {
        Order::Ascending => IteratorMode::From(from, Direction::Forward),
        Order::Descending => IteratorMode::From(to, Direction::Reverse),
    }
}

type Item = Result<(Box<[u8]>, Box<[u8]>), rocksdb::Error>;

fn drive(iterator: impl Iterator<Item = Item>, visit: &mut Visit<'_>) -> Result<(), StoreError> {
    for item in iterator {
        let (key, value) = item.map_err(|e| StoreError::io("scan", &e))?;
        if !visit(&key, &value)? {
            break;
        }
    }
    Ok(())
}
