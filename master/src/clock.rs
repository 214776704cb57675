//! The clock that leases are counted by: the only place of the master that reads it.

use nix::time::{ClockId, clock_gettime};

/// Nanoseconds since this machine started, counted on while it sleeps.
pub(crate) fn boot_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME);
    let now = std::time::Duration::from(now.expect("every Linux since 2.6.39 has this clock"));
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}
