//! Room on the master's disk: what grows is refused before it is full, so that deletions, and
//! the database itself, always have room.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use atoll_proto::error::WireResult;
use atoll_proto::{Code, Retry, WireError};

/// Used share of the disk, in per cent, from which on nothing may grow, unless
/// [`PLENTY_BYTES`] are free.
const FULL_PERCENT: u64 = 95;

/// So much free room is enough, however small a share of a large disk it is.
const PLENTY_BYTES: u64 = 4 << 30;

/// How full the disk is, as last measured.
#[derive(Debug, Default)]
pub(crate) struct DiskGuard {
    used_percent: AtomicU64,
    free_bytes: AtomicU64,
}

impl DiskGuard {
    /// Measures the disk that holds this directory. As `df` does, blocks kept for the
    /// superuser count neither as used nor as free.
    pub(crate) fn measure(&self, directory: &Path) {
        match nix::sys::statvfs::statvfs(directory) {
            Ok(stat) => {
                let used = stat.blocks().saturating_sub(stat.blocks_free());
                let free = stat.blocks_available();
                let total = used.saturating_add(free).max(1);
                self.set(
                    used.saturating_mul(100) / total,
                    free.saturating_mul(stat.fragment_size()),
                );
            }
            Err(error) => tracing::warn!(%error, "cannot see how full the disk is"),
        }
    }

    /// Takes this for the measure.
    pub(crate) fn set(&self, used_percent: u64, free_bytes: u64) {
        self.used_percent.store(used_percent, Ordering::Relaxed);
        self.free_bytes.store(free_bytes, Ordering::Relaxed);
        metrics::gauge!("atoll_master_disk_used_percent").set(used_percent as f64);
    }

    /// Refuses what grows when the disk is nearly full.
    pub(crate) fn check_room(&self) -> WireResult<()> {
        let used = self.used_percent.load(Ordering::Relaxed);
        if used < FULL_PERCENT || self.free_bytes.load(Ordering::Relaxed) >= PLENTY_BYTES {
            return Ok(());
        }
        let message = format!(
            "the master's disk is {used} % full: it only takes deletions until there is room \
             again; remove files or give it a larger disk"
        );
        let mut error = WireError::new(Code::Full, message);
        error.retry = Retry::Same;
        Err(error)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn nothing_grows_on_a_full_disk() {
        let guard = DiskGuard::default();
        guard.measure(Path::new("/"));
        guard.set(94, 1 << 30);
        assert!(guard.check_room().is_ok());
        guard.set(95, PLENTY_BYTES);
        assert!(guard.check_room().is_ok());
        guard.set(95, PLENTY_BYTES - 1);
        assert_eq!(guard.check_room().unwrap_err().code, Code::Full);
    }
}
