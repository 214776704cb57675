//! The directory of a store: opening it, and setting it aside when it cannot be read.
//!
//! ```text
//! chunks/              the database's files
//! chunks/segments/     segment files
//! chunks/BALLAST       room for deleting on a full disk
//! chunks.new/          a store that is being made to take the place of a damaged one
//! chunks.damaged-N/    stores that could not be read, until the refill is over
//! ```
//! A store that takes another's place is made completely, then the damaged one is renamed away,
//! then the new one is renamed to its place; a start finishes what a crash cut off.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::db::{Db, DbError};
use super::read::{failure, file_failure, read_fills, read_holes, read_totals};
use super::schema::{self, FORMAT, Family};
use super::segments::Segments;
use super::verify::verify;
use crate::store::{Meta, StoreError, Totals};

/// How long who writes small chunks anew may take to notice that the database is given up.
const GIVE_UP_WAIT_MAX: Duration = Duration::from_millis(if cfg!(test) { 200 } else { 5000 });
const GIVE_UP_POLL_EVERY: Duration = Duration::from_millis(2);
/// The folder of the segment files in that of a store.
pub(super) const SEGMENTS: &str = "segments";
const OPENING: &str = "open the chunk store";
const SET_ASIDE: &str = "set a damaged chunk store aside";

/// The parts of an open store.
pub(super) struct Open {
    /// The index, and small chunks. Others than the store have it only while they write all small
    /// chunks anew.
    pub(super) db: Arc<Db>,
    /// Large chunks.
    pub(super) segments: Segments,
}

impl Open {
    /// Opens the store in a directory, or makes one there.
    pub(super) fn at(dir: &Path, create: bool) -> Result<Self, StoreError> {
        let db = Db::open(dir, create).map_err(|error| failure(OPENING, error))?;
        let (_, closed) = read_totals(&db)?;
        let corrections = if closed { 0 } else { verify(&db)? };
        if corrections > 0 {
            let dir = dir.display();
            tracing::error!(%dir, corrections, "the disk has lost a part of the index");
        }
        let segments = tidy(&db, &dir.join(SEGMENTS))?;
        Ok(Self { db: Arc::new(db), segments })
    }

    /// Notes that the store is being closed, and writes what is in memory to files.
    pub(super) fn close(&self) -> Result<bool, StoreError> {
        const CLOSING: &str = "close the chunk store";
        let failed = |error| failure(CLOSING, error);
        if let (totals, false) = read_totals(&self.db)? {
            let mut batch = self.db.batch();
            batch.put(Family::Meta, schema::TOTALS, &schema::totals_value(&totals, true));
            batch.write(true).map_err(failed)?;
        }
        self.db.flush().map_err(failed)
    }

    /// Opens a store without writing anything.
    pub(super) fn open_for_reading(dir: &Path) -> Result<Self, StoreError> {
        let db = Db::open_for_reading(dir).map_err(|error| failure(OPENING, error))?;
        let segments = Segments::open(&dir.join(SEGMENTS), 0, None);
        let segments = segments.map_err(|error| file_failure(OPENING, &error))?;
        Ok(Self { db: Arc::new(db), segments })
    }

    /// Closes the database without writing anything, so that it can be opened again. Ends what runs in
    /// the background, and waits a while for who has it still.
    pub(super) fn give_up(self) {
        self.db.stop();
        let db = Arc::downgrade(&self.db);
        drop(self);
        let started = Instant::now();
        while db.strong_count() > 0 && started.elapsed() < GIVE_UP_WAIT_MAX {
            std::thread::sleep(GIVE_UP_POLL_EVERY);
        }
    }

    /// All values beside the chunks that can be read.
    pub(super) fn values(&self) -> BTreeMap<Meta, Vec<u8>> {
        let read = |key: Meta| {
            let value = self.db.get(Family::Meta, key.key()).ok()??;
            Some((key, value.as_ref().to_vec()))
        };
        Meta::ALL.into_iter().filter_map(read).collect()
    }
}

/// Opens the segments and finishes what a crash may have cut off: deletes what the index has
/// deleted, and files it does not know, which were never valid.
fn tidy(db: &Db, dir: &Path) -> Result<Segments, StoreError> {
    let failed = |error: io::Error| file_failure(OPENING, &error);
    let fills = read_fills(db)?;
    let holes = read_holes(db)?;
    let files = Segments::files(dir).map_err(failed)?;
    let last = fills.last().map(|(segment, fill)| (*segment, fill.end));
    let known = |segment: &u32| fills.binary_search_by_key(segment, |(it, _)| *it).is_ok();
    let next = files.iter().chain(last.iter().map(|(segment, _)| segment)).max();
    let next = next.map_or(0, |highest| highest.saturating_add(1));
    let segments = Segments::open(dir, next, last).map_err(failed)?;
    let mut batch = db.batch();
    for (spot, len) in &holes {
        match segments.punch(*spot, *len) {
            Ok(true) => {}
            Ok(false) => continue,
            Err(error) => {
                tracing::warn!(%error, segment = spot.segment, "cannot give back a chunk's room");
                continue;
            }
        }
        batch.delete(Family::Holes, &schema::hole_key(*spot));
    }
    let dead = fills.iter().filter(|(_, fill)| fill.chunks == 0).map(|(segment, _)| *segment);
    let dead: Vec<u32> = dead.filter(|segment| !segments.is_open_ended(*segment)).collect();
    for segment in &dead {
        batch.delete(Family::Segments, &schema::segment_key(*segment));
    }
    if !holes.is_empty() || !dead.is_empty() {
        batch.write(true).map_err(|error| failure(OPENING, error))?;
    }
    for segment in dead.iter().chain(files.iter().filter(|segment| !known(segment))) {
        segments.remove(*segment);
    }
    Ok(segments)
}

/// Whether there is a store in a directory, in order or not.
pub(super) fn exists(dir: &Path) -> bool {
    // RocksDB leaves files also where it finds nothing to open.
    let tells = |name: &str| {
        let starts = ["CURRENT", "MANIFEST-", SEGMENTS].iter().any(|it| name.starts_with(it));
        starts || [".sst", ".blob", ".log"].iter().any(|it| name.ends_with(it))
    };
    let has_files = |dir: &Path| {
        fs::read_dir(dir).is_ok_and(|mut entries| {
            entries.any(|entry| entry.is_ok_and(|it| tells(&it.file_name().to_string_lossy())))
        })
    };
    let any_aside = || set_aside(dir).is_ok_and(|stores| !stores.is_empty());
    has_files(dir) || (has_files(&draft(dir)) && any_aside())
}

/// Finishes, or takes back, what a crash left of setting a store aside.
pub(super) fn finish_interrupted(dir: &Path) -> Result<(), StoreError> {
    let failed = |error: io::Error| file_failure(SET_ASIDE, &error);
    let draft = draft(dir);
    if !draft.exists() {
        return Ok(());
    }
    if dir.exists() || set_aside(dir).map_err(failed)?.is_empty() {
        return fs::remove_dir_all(&draft).map_err(failed);
    }
    fs::rename(&draft, dir).map_err(failed)?;
    sync_parent(dir).map_err(failed)
}

/// Sets the store in a directory aside, and opens an empty one in its place, with these values and
/// what the totals count for ever.
pub(super) fn begin_anew(
    dir: &Path,
    values: &BTreeMap<Meta, Vec<u8>>,
    before: Totals,
) -> Result<Open, StoreError> {
    let failed = |error: io::Error| file_failure(SET_ASIDE, &error);
    let draft = draft(dir);
    match fs::remove_dir_all(&draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let open = Open::at(&draft, true)?;
    write_values(&open.db, values, before).map_err(|error| failure(SET_ASIDE, error))?;
    open.close()?;
    open.give_up();
    let number = (1..).find(|number| !damaged(dir, *number).exists());
    let aside = damaged(dir, number.unwrap_or(u32::MAX));
    fs::rename(dir, &aside).map_err(failed)?;
    fs::rename(&draft, dir).map_err(failed)?;
    sync_parent(dir).map_err(failed)?;
    tracing::error!(dir = %dir.display(), aside = %aside.display(), "the chunk store is damaged: \
        set aside; what can be read is taken back, the rest has to come from others");
    Open::at(dir, false)
}

fn write_values(db: &Db, values: &BTreeMap<Meta, Vec<u8>>, before: Totals) -> Result<(), DbError> {
    let Totals { corrupt_found, repaired, .. } = before;
    let totals = Totals { corrupt_found, repaired, ..Totals::default() };
    let mut batch = db.batch();
    for (key, value) in values {
        batch.put(Family::Meta, key.key(), value);
    }
    batch.put(Family::Meta, Meta::Format.key(), &FORMAT.to_be_bytes());
    batch.put(Family::Meta, schema::TOTALS, &schema::totals_value(&totals, false));
    batch.write(true)
}

/// The stores that were set aside.
///
/// # Errors
/// When the directory cannot be read: then nobody knows whether there are any.
pub(super) fn set_aside(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let prefix = format!("{name}.damaged-");
    let named = |path: &PathBuf| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix))
    };
    let mut stores = Vec::new();
    for entry in fs::read_dir(parent(dir))? {
        let path = entry?.path();
        stores.extend(named(&path).then_some(path));
    }
    Ok(stores)
}

fn draft(dir: &Path) -> PathBuf {
    beside(dir, "new")
}

fn damaged(dir: &Path, number: u32) -> PathBuf {
    beside(dir, &format!("damaged-{number}"))
}

fn beside(dir: &Path, what: &str) -> PathBuf {
    let mut name = dir.file_name().unwrap_or_default().to_owned();
    name.push(".");
    name.push(what);
    dir.with_file_name(name)
}

fn parent(dir: &Path) -> &Path {
    match dir.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn sync_parent(dir: &Path) -> io::Result<()> {
    File::open(parent(dir))?.sync_all()
}
