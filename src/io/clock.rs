//! The machine's wall clock, which only documents use.

use std::time::{Duration, SystemTime};

use crate::base::WallTime;

/// The time of the machine's clock; a clock before 1970 gives 1970.
#[must_use]
pub fn wall_time() -> WallTime {
    WallTime::from_unix(since_epoch().as_secs())
}

/// The same in milliseconds since the Unix epoch, as gateways' reports carry it.
#[must_use]
pub fn wall_milliseconds() -> u64 {
    u64::try_from(since_epoch().as_millis()).unwrap_or(u64::MAX)
}

#[expect(clippy::disallowed_methods, reason = "this is where the core's wall time comes from")]
fn since_epoch() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}
