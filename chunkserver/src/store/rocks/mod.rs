//! Chunks on a disk.
//!
//! `db` is the database and knows RocksDB; `segments` are the files with the bytes of large
//! chunks; `schema` says what is in the database; `edit` makes changes of records with all that
//! follows, `read` reads them; `operations`
//! are the store's; `open` is about the directory, `verify` about what a crash
//! may have left, `room` about a full disk.
//!
//! There is one writer at a time (the totals are its). A batch of puts is two syncs: its large
//! chunks are written and synced, then the database's log, which makes them valid. Reads share a
//! lock that is only ever taken exclusively to open the database again.
//!
//! **A full disk.** Puts are refused unless, beside the reserve, there is room for the segments
//! and to write everything twice that goes into the database: so a flush never fails for lack of
//! room, nor does opening the database after a crash, which flushes too. If something else fills
//! the disk, RocksDB may refuse all further writes; then the database is opened again before the
//! next write, or for reading only while that is impossible.
//!
//! **Damage.** Bytes of a chunk that are wrong, cut or gone are that chunk's problem only. An index
//! that cannot be read is nobody's: the whole store is set aside, and an empty one takes its
//! place; `salvage` takes back what can be taken back, the rest has to come from the other servers.

mod db;
mod edit;
mod erase;
mod frame;
mod open;
mod operations;
mod read;
mod room;
mod salvage;
mod schema;
mod segments;
#[cfg(test)]
mod spoiling;
mod verify;

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use atoll_proto::ChunkId;

use self::db::DbError;
use self::edit::{Edit, Freed};
use self::open::Open;
use self::read::{failure, file_failure, read_totals};
use self::salvage::Progress;
pub use self::schema::FORMAT;
use self::schema::Family;
use super::tally::ChangedGroups;
use super::{ChunkStore, Meta, Space, StoreError, Totals};

/// Chunks of this length and more go to segment files.
const SEGMENT_BYTES_MIN: usize = 64 << 10;
/// What the index needs for a chunk on disk, generously, beside its bytes.
const INDEX_BYTES: u64 = 512;
/// How often opening a failed database again is tried at most.
const MEND_EVERY: Duration = Duration::from_secs(1);
/// Most records that one write changes, where the caller does not say.
const EDIT_RECORDS: usize = 1024;

/// A store in a directory.
pub struct RocksStore {
    dir: PathBuf,
    reserve: Option<u64>,
    segment_bytes_min: usize,
    slot: RwLock<Slot>,
    /// Held over every write: there is one writer.
    keeper: Mutex<Keeper>,
    totals: Mutex<Totals>,
    /// The values beside the chunks, in case the database is lost.
    values: Mutex<BTreeMap<Meta, Vec<u8>>>,
    changed: ChangedGroups,
    /// A write failed; nothing is written before the database was opened again.
    broken: AtomicBool,
    closed: AtomicBool,
    refilling: AtomicBool,
    /// What was set aside has not all been gone through.
    unsalvaged: AtomicBool,
    salvaging: Mutex<Progress>,
    /// Chunks that are not stored.
    refused: RwLock<Arc<HashSet<ChunkId>>>,
    /// Held while chunks are erased.
    erasing: Mutex<()>,
    syncs: AtomicU64,
}

/// The open store, unless it is closed or could not be opened again.
struct Slot {
    open: Option<Open>,
    /// Counts the stores that were set aside.
    generation: u64,
}

/// What belongs to the one writer.
struct Keeper {
    mended: Option<Instant>,
}

impl std::fmt::Debug for RocksStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RocksStore").field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl RocksStore {
    /// Whether a store was made in this directory, in order or not.
    pub fn exists(dir: &Path) -> bool {
        open::exists(dir)
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
    /// When it is not there or is in use by another process; [`StoreError::Damaged`] when it
    /// cannot be read.
    pub fn open(dir: &Path, reserve: Option<u64>) -> Result<Self, StoreError> {
        Self::open_with(dir, reserve, false)
    }

    /// Sets a damaged store aside and makes an empty one with these values in its place. Other
    /// values are taken over if they can be read.
    ///
    /// # Errors
    /// When the disk fails; then the damaged store is where it was.
    pub fn replace(
        dir: &Path,
        reserve: Option<u64>,
        values: &[(Meta, Vec<u8>)],
    ) -> Result<Self, StoreError> {
        let mut all = Self::remains(dir);
        all.extend(values.iter().cloned());
        let open = open::begin_anew(dir, &all, Totals::default())?;
        Self::new(dir, reserve, open, false)
    }

    /// The values beside the chunks of a store that may be damaged, as far as they can be read. Writes
    /// nothing.
    pub fn remains(dir: &Path) -> BTreeMap<Meta, Vec<u8>> {
        Open::open_for_reading(dir).map(|open| open.values()).unwrap_or_default()
    }

    /// The same store, in which chunks from this length on go to segment files, for measurements.
    #[must_use]
    pub fn with_segments_from(mut self, bytes: usize) -> Self {
        self.segment_bytes_min = bytes;
        self
    }

    fn open_with(dir: &Path, reserve: Option<u64>, create: bool) -> Result<Self, StoreError> {
        open::finish_interrupted(dir)?;
        match Open::at(dir, create) {
            // Opening flushes the log. On a disk without room for that, reads still work.
            Err(error @ StoreError::Full { .. }) if !create => {
                tracing::error!(dir = %dir.display(), "no room: serving reads only");
                Self::new(dir, reserve, open_for_reading(dir).ok_or(error)?, true)
            }
            opened => Self::new(dir, reserve, opened?, false),
        }
    }

    fn new(dir: &Path, reserve: Option<u64>, open: Open, broken: bool) -> Result<Self, StoreError> {
        let (totals, _) = read_totals(&open.db)?;
        let aside = open::set_aside(dir);
        let aside = aside.map_err(|error| file_failure("look for what was set aside", &error))?;
        let refilling = !aside.is_empty();
        let store = Self {
            dir: dir.to_owned(),
            reserve,
            segment_bytes_min: SEGMENT_BYTES_MIN,
            values: Mutex::new(open.values()),
            slot: RwLock::new(Slot { open: Some(open), generation: 0 }),
            keeper: Mutex::new(Keeper { mended: None }),
            totals: Mutex::new(totals),
            changed: ChangedGroups::all(),
            broken: AtomicBool::new(broken),
            closed: AtomicBool::new(false),
            refilling: AtomicBool::new(refilling),
            unsalvaged: AtomicBool::new(refilling),
            salvaging: Mutex::default(),
            refused: RwLock::default(),
            erasing: Mutex::default(),
            syncs: AtomicU64::new(0),
        };
        store.drop_ballast_aside();
        store.take_ballast();
        Ok(store)
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

    fn values(&self) -> MutexGuard<'_, BTreeMap<Meta, Vec<u8>>> {
        self.values.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reader(&self) -> RwLockReadGuard<'_, Slot> {
        self.slot.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why there is no open store.
    fn absent(&self) -> StoreError {
        if self.closed.load(Ordering::Acquire) {
            return StoreError::Closed;
        }
        let reason = "it could not be opened again".to_owned();
        StoreError::Disk { verb: "use the chunk store", reason }
    }

    /// Reads something.
    fn read<R>(&self, read: impl FnOnce(&Open) -> Result<R, StoreError>) -> Result<R, StoreError> {
        let (generation, answer) = {
            let slot = self.reader();
            let open = slot.open.as_ref().ok_or_else(|| self.absent());
            (slot.generation, open.and_then(read))
        };
        self.watch(generation, answer)
    }

    /// Makes one change as the only writer: `change` edits records; the edit is written, synced or
    /// not, if the answer comes with `true`.
    fn edit<R>(
        &self,
        verb: &'static str,
        sync: bool,
        change: impl FnOnce(&Open, &mut Edit<'_>) -> Result<(R, bool), StoreError>,
    ) -> Result<R, StoreError> {
        let (generation, answer) = {
            let mut keeper = self.keeper();
            self.mend(&mut keeper)?;
            let slot = self.reader();
            let open = slot.open.as_ref().ok_or_else(|| self.absent());
            (slot.generation, open.and_then(|open| self.edit_alone(open, verb, sync, change)))
        };
        self.watch(generation, answer)
    }

    fn edit_alone<R>(
        &self,
        open: &Open,
        verb: &'static str,
        sync: bool,
        change: impl FnOnce(&Open, &mut Edit<'_>) -> Result<(R, bool), StoreError>,
    ) -> Result<R, StoreError> {
        let mut edit = Edit::new(&open.db);
        let (answer, changed) = change(open, &mut edit)?;
        if !changed {
            return Ok(answer);
        }
        let edited = edit.finish(self.totals(), &open.segments)?;
        // What is freed is deleted at once: the index must have let go of it for good.
        let sync = sync || !edited.freed.is_empty();
        self.written(edited.batch.write(sync), verb)?;
        self.syncs.fetch_add(u64::from(sync), Ordering::Relaxed);
        *self.shown() = edited.totals;
        if let Some(appended) = &edited.appended {
            open.segments.keep(appended);
        }
        for pg in edited.groups {
            self.changed.note(pg);
        }
        self.delete(open, &edited.freed)?;
        Ok(answer)
    }

    /// Gives back the room of what nothing refers to any more.
    fn delete(&self, open: &Open, freed: &Freed) -> Result<(), StoreError> {
        for segment in &freed.segments {
            open.segments.remove(*segment);
        }
        let mut batch = open.db.batch();
        for (spot, len) in &freed.holes {
            match open.segments.punch(*spot, *len) {
                Ok(true) => batch.delete(Family::Holes, &schema::hole_key(*spot)),
                // The bytes are there still: an erasure has to know.
                Ok(false) => {}
                // It stays on the list, and is tried again when the store is opened.
                Err(error) => tracing::warn!(%error, "cannot give back the room of a chunk"),
            }
        }
        if freed.holes.is_empty() {
            return Ok(());
        }
        self.written(batch.write(false), "note what was deleted")
    }

    /// After a failed write the store is broken until it is mended.
    fn written(&self, outcome: Result<(), DbError>, verb: &'static str) -> Result<(), StoreError> {
        outcome.map_err(|error| {
            self.broken.store(true, Ordering::Release);
            tracing::error!(dir = %self.dir.display(), ?error, "cannot {verb}");
            self.explain(failure(verb, error))
        })
    }

    /// A failure for lack of room, with figures.
    fn explain(&self, error: StoreError) -> StoreError {
        match (self.measure(), error) {
            (Ok(Space { free, reserve, .. }), StoreError::Full { .. }) => {
                StoreError::Full { free, reserve }
            }
            (_, error) => error,
        }
    }

    /// Makes a store writable again that failed to write: RocksDB refuses all writes after some
    /// failures, and its binding has no way to resume but to open the database anew.
    fn mend(&self, keeper: &mut Keeper) -> Result<(), StoreError> {
        if !self.broken.load(Ordering::Acquire) || self.closed.load(Ordering::Acquire) {
            return Ok(());
        }
        let verb = "write to the chunk store again";
        if keeper.mended.is_some_and(|at| at.elapsed() < MEND_EVERY) {
            self.check_free(0)?;
            return Err(StoreError::Disk { verb, reason: "it failed a moment ago".to_owned() });
        }
        keeper.mended = Some(Instant::now());
        let mut slot = self.slot.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = slot.open.take() {
            open.give_up();
        }
        let opened = Open::at(&self.dir, false);
        match opened.and_then(|open| Ok((read_totals(&open.db)?, open))) {
            Ok(((totals, _), open)) => {
                *self.shown() = totals;
                slot.open = Some(open);
                self.broken.store(false, Ordering::Release);
                self.changed.note_all();
                tracing::info!(dir = %self.dir.display(), "the chunk store is writable again");
                Ok(())
            }
            Err(StoreError::Damaged { reason }) => self.begin_anew(&mut slot, &reason),
            Err(error) => {
                slot.open = open_for_reading(&self.dir);
                drop(slot);
                Err(self.explain(error))
            }
        }
    }

    /// Sets the store aside if this is what an answer means that the store of a generation gave.
    fn watch<R>(&self, generation: u64, answer: Result<R, StoreError>) -> Result<R, StoreError> {
        let Err(StoreError::Damaged { reason }) = &answer else { return answer };
        let _keeper = self.keeper();
        let mut slot = self.slot.write().unwrap_or_else(PoisonError::into_inner);
        if slot.generation == generation
            && !self.closed.load(Ordering::Acquire)
            && let Err(error) = self.begin_anew(&mut slot, reason)
        {
            tracing::error!(dir = %self.dir.display(), %error, "cannot begin anew");
        }
        answer
    }

    fn begin_anew(&self, slot: &mut Slot, reason: &str) -> Result<(), StoreError> {
        tracing::error!(dir = %self.dir.display(), reason, "the index of the chunks is damaged");
        if let Some(open) = slot.open.take() {
            open.give_up();
        }
        // If this fails, the next write tries to mend, and comes here again.
        self.broken.store(true, Ordering::Release);
        // In this order: what is being refilled and was salvaged may be deleted. And before
        // anything is set aside: a new store that cannot be opened at once is one all the same.
        self.unsalvaged.store(true, Ordering::Release);
        self.refilling.store(true, Ordering::Release);
        let opened = open::begin_anew(&self.dir, &self.values(), self.totals());
        let open = opened.map_err(|error| self.explain(error))?;
        (*self.shown(), _) = read_totals(&open.db)?;
        slot.open = Some(open);
        slot.generation += 1;
        self.broken.store(false, Ordering::Release);
        self.drop_ballast_aside();
        self.changed.note_all();
        Ok(())
    }
}

impl Drop for RocksStore {
    fn drop(&mut self) {
        self.close();
    }
}

fn open_for_reading(dir: &Path) -> Option<Open> {
    match Open::open_for_reading(dir) {
        Ok(open) => Some(open),
        Err(error) => {
            tracing::error!(dir = %dir.display(), %error, "cannot even read the chunk store");
            None
        }
    }
}
