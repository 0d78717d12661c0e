//! The machine's wall clock, used for documents only.

use std::time::{Duration, SystemTime};

use crate::base::WallTime;

/// The machine's wall clock; a time before 1970 gives 1970.
#[must_use]
pub fn wall_time() -> WallTime {
    WallTime::from_unix(since_epoch().as_secs())
}

/// The wall clock in milliseconds since the Unix epoch, the unit of gateways' reports.
#[must_use]
pub fn wall_milliseconds() -> u64 {
    u64::try_from(since_epoch().as_millis()).unwrap_or(u64::MAX)
}

#[expect(clippy::disallowed_methods, reason = "the source of the core's wall-clock time")]
fn since_epoch() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}
