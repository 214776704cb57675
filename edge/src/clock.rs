//! The only place of the edge that reads clocks of the machine; everything else takes `now`.

use std::time::SystemTime;

use nix::time::{ClockId, clock_gettime};

/// Now, by the clock that dates in HTTP are about.
pub(crate) fn wall() -> SystemTime {
    SystemTime::now()
}

/// The same in milliseconds since the Unix epoch.
pub(crate) fn wall_ms() -> u64 {
    let since = wall().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// The clock that leases are counted by: nanoseconds since this machine started, counted on while
/// it sleeps.
pub(crate) fn boot_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME);
    let now = std::time::Duration::from(now.expect("every Linux since 2.6.39 has this clock"));
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}
