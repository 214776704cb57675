//! Room on the disk: what puts must leave, and how deleting works when something else has taken
//! even that.

use std::fs::{self, File};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use atoll_proto::chunk::disk_reserve;
use nix::fcntl::{FallocateFlags, fallocate};

use super::RocksStore;
use super::db::Db;
use super::read::failure;
use crate::store::{Space, StoreError};

/// With less than this in memory a flush would give back no room worth the wait.
const FLUSH_BYTES_MIN: u64 = 2 << 20;
/// RocksDB deletes a superfluous log a moment after the flush.
const LOG_DELETED_AFTER: Duration = Duration::from_millis(500);
const FREE_POLL_EVERY: Duration = Duration::from_millis(2);
/// A file of this size, or of a hundredth of the disk if that is less, is there to be deleted when
/// something has to be written to delete chunks.
const BALLAST_BYTES: u64 = 16 << 20;
pub(super) const BALLAST: &str = "BALLAST";
/// Deleting chunks writes less than this.
const DELETING_BYTES: u64 = 1 << 20;

/// What a write of chunks leaves free.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Leave {
    /// What puts must leave.
    Reserve,
    /// Half of that: the write frees as much as it takes, and must get on beside puts.
    HalfReserve,
}

impl RocksStore {
    /// Refuses a write for which there is no room: for `twice` bytes in the log now and in the
    /// database's files later, and for `once` bytes in segments.
    pub(super) fn check_room(
        &self,
        db: &Db,
        twice: u64,
        once: u64,
        leave: Leave,
    ) -> Result<(), StoreError> {
        let wanted = twice.saturating_mul(2).saturating_add(once);
        let unflushed =
            db.unflushed().map_err(|error| failure("see what is not flushed", error))?;
        let all = wanted.saturating_add(unflushed);
        let Err(full) = self.check_left(all, leave) else {
            return Ok(());
        };
        if unflushed < FLUSH_BYTES_MIN {
            return Err(full);
        }
        self.check_left(wanted, leave)?;
        // What is flushed gives back its room in the log.
        match db.flush() {
            Ok(true) => self.await_free(wanted, leave),
            Ok(false) => {
                self.broken.store(true, Ordering::Release);
                let reason = "the flush does not end".to_owned();
                Err(StoreError::Disk { verb: "flush chunks", reason })
            }
            Err(error) => self.written(Err(error), "flush chunks"),
        }
    }

    /// As [`Self::check_left`], while the log that a flush made superfluous is being deleted.
    fn await_free(&self, wanted: u64, leave: Leave) -> Result<(), StoreError> {
        let started = Instant::now();
        loop {
            let free = self.check_left(wanted, leave);
            if free.is_ok() || started.elapsed() > LOG_DELETED_AFTER {
                return free;
            }
            std::thread::sleep(FREE_POLL_EVERY);
        }
    }

    /// Whether so much is free beside the reserve.
    pub(super) fn check_free(&self, wanted: u64) -> Result<(), StoreError> {
        self.check_left(wanted, Leave::Reserve)
    }

    fn check_left(&self, wanted: u64, leave: Leave) -> Result<(), StoreError> {
        let Space { free, mut reserve, .. } = self.measure()?;
        if leave == Leave::HalfReserve {
            reserve /= 2;
        }
        if free < reserve.saturating_add(wanted) {
            return Err(StoreError::Full { free, reserve });
        }
        Ok(())
    }

    /// Room on the disk of the store. As `df` does, blocks kept for the superuser count for
    /// nothing.
    pub(super) fn measure(&self) -> Result<Space, StoreError> {
        let stat = nix::sys::statvfs::statvfs(&self.dir).map_err(|error| StoreError::Disk {
            verb: "see how much room there is",
            reason: error.to_string(),
        })?;
        let unit = stat.fragment_size();
        let used = stat.blocks().saturating_sub(stat.blocks_free());
        let free = stat.blocks_available().saturating_mul(unit);
        let total = used.saturating_mul(unit).saturating_add(free);
        let reserve = self.reserve.unwrap_or_else(|| disk_reserve(total));
        Ok(Space { free, total, reserve })
    }

    /// Before deleting: gives up the ballast if without it the deleting could not be written.
    pub(super) fn free_for_deleting(&self) {
        if self.measure().is_ok_and(|space| space.free < DELETING_BYTES) {
            self.drop_ballast();
        }
    }

    /// Gives up the ballast. Says whether there was any.
    pub(super) fn drop_ballast(&self) -> bool {
        let dropped = fs::remove_file(self.dir.join(BALLAST)).is_ok();
        if dropped {
            tracing::warn!(dir = %self.dir.display(), "the disk is full: gave up the ballast");
        }
        dropped
    }

    /// Takes ballast, if there is none and room for it.
    pub(super) fn take_ballast(&self) {
        let path = self.dir.join(BALLAST);
        let Ok(Space { free, total, reserve }) = self.measure() else { return };
        let bytes = BALLAST_BYTES.min(total / 100);
        if path.exists() || free < reserve.saturating_add(bytes.saturating_mul(4)) {
            return;
        }
        let taken = File::create(&path).and_then(|file| {
            fallocate(&file, FallocateFlags::empty(), 0, bytes.cast_signed())?;
            Ok(())
        });
        if let Err(error) = taken {
            tracing::debug!(%error, "cannot take ballast");
            drop(fs::remove_file(&path));
        }
    }
}
