//! The machine's wall clock, used only for signed documents and the reports of gateways, and its running time.

use std::time::{Duration, SystemTime};

use nix::time::{ClockId, clock_gettime};

use crate::base::{Instant, WallTime};

/// The time of the machine's wall clock; 1970 for times before 1970.
#[must_use]
pub fn wall_time() -> WallTime {
    WallTime::from_unix(since_epoch().as_secs())
}

/// The time of the wall clock in milliseconds since the Unix epoch, the unit of gateways' reports.
#[must_use]
pub fn wall_milliseconds() -> u64 {
    u64::try_from(since_epoch().as_millis()).unwrap_or(u64::MAX)
}

/// The time since the machine started, on Linux and Android including suspended time. Independent of changes of the
/// wall clock.
#[must_use]
pub fn running_time() -> Instant {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    let clock = ClockId::CLOCK_BOOTTIME;
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    let clock = ClockId::CLOCK_MONOTONIC;
    Instant::START.after(clock_gettime(clock).map_or(Duration::ZERO, Duration::from))
}

#[expect(clippy::disallowed_methods, reason = "the source of the core's wall-clock time")]
fn since_epoch() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}
