//! The only place of the edge that reads the wall clock; everything else takes `now`.

use std::time::SystemTime;

/// Now, by the clock that dates in HTTP are about.
pub(crate) fn wall() -> SystemTime {
    SystemTime::now()
}
