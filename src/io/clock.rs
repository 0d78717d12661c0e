//! The machine's wall clock, which only documents use.

use std::time::SystemTime;

use crate::base::WallTime;

/// The time of the machine's clock; a clock before 1970 gives 1970.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "this is where the core's wall time comes from")]
pub fn wall_time() -> WallTime {
    let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    WallTime::from_unix(since_epoch.as_secs())
}
