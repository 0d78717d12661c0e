//! The recent use of a stream, as a measure by which streams are compared when one of them must end.

use core::time::Duration;

use super::Instant;

/// Bytes that keep a stream active for a second.
const BYTES_PER_SECOND: u64 = 1024;
/// The time for which any number of bytes keeps a stream active, and so the time to which the measure looks back.
const MAX_ACTIVE: Duration = Duration::from_secs(60);
/// The time for which a new stream is active without bytes: for its connect and first bytes.
const NEW_ACTIVE: Duration = Duration::from_secs(10);

/// The time up to which a stream is active: its bytes of about the last minute, a second for each 1,024 bytes. Of two
/// streams, the one with the lower value is less active.
///
/// A few bytes protect a stream for milliseconds only, so that an attacker must transfer as much as the streams that it
/// tries to displace. The value has no record of single transfers: times are rounded to a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Activity(Instant);

impl Activity {
    /// The activity of a stream that is opened at `now`.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self(rounded(now).after(NEW_ACTIVE))
    }

    /// Counts `bytes` that the stream has carried. With `streams` streams of its circuit, each byte counts that many
    /// times less, so that more streams don't multiply the activity of a circuit.
    pub fn carry(&mut self, now: Instant, bytes: usize, streams: usize) {
        let now = rounded(now);
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        let streams = u64::try_from(streams).unwrap_or(u64::MAX);
        let nanos = bytes.saturating_mul(1_000_000_000 / BYTES_PER_SECOND);
        let nanos = nanos.checked_div(streams).unwrap_or(nanos);
        self.0 = self.0.max(now).after(Duration::from_nanos(nanos)).min(now.after(MAX_ACTIVE));
    }
}

/// `time`, rounded down to a second.
fn rounded(time: Instant) -> Instant {
    Instant::START.after(Duration::from_secs(time.since(Instant::START).as_secs()))
}

#[cfg(test)]
mod tests {
    #[cfg(target_arch = "wasm32")]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    use super::*;

    fn at(seconds: u64) -> Instant {
        Instant::START.after(Duration::from_secs(seconds))
    }

    fn carried(bytes: &[(u64, usize)], streams: usize) -> Activity {
        let mut activity = Activity::new(at(0));
        bytes.iter().for_each(|(second, bytes)| activity.carry(at(*second), *bytes, streams));
        activity
    }

    #[test]
    fn more_bytes_of_the_last_minute_are_more_activity_and_a_byte_is_almost_none() {
        let (idle, trickle) = (carried(&[], 1), carried(&[(20, 1), (70, 1), (120, 1)], 1));
        assert!(idle < trickle && trickle < carried(&[(121, 1)], 1), "the last byte was earlier");
        assert!(trickle < carried(&[(110, 20_000)], 1), "20 KiB ten seconds before a byte");
        assert!(carried(&[(120, 5_000)], 1) < carried(&[(119, 10_000)], 1));
        assert_eq!(carried(&[(60, 1 << 20)], 1), carried(&[(60, 1 << 30)], 1), "at most a minute counts");
        assert!(
            carried(&[(60, 1 << 30)], 1) < carried(&[(121, 1)], 1),
            "a minute later, any number of bytes is forgotten"
        );
    }

    #[test]
    fn a_new_stream_is_active_for_ten_seconds() {
        assert_eq!(Activity::new(at(5)).0, at(15));
        assert_eq!(Activity::new(Instant::from_nanos(5_999_999_999)).0, at(15), "rounded to a second");
    }

    #[test]
    fn the_bytes_of_a_circuit_are_shared_by_its_streams() {
        assert!(carried(&[(20, 16 * 1024)], 16) < carried(&[(20, 2 * 1024)], 1));
        assert_eq!(carried(&[(20, 16 * 1024)], 16), carried(&[(20, 1024)], 1));
    }

    #[test]
    fn no_time_and_no_number_overflows() {
        let mut activity = Activity::new(Instant::from_nanos(u64::MAX));
        activity.carry(Instant::from_nanos(u64::MAX), usize::MAX, 0);
        assert!(activity.0 <= Instant::from_nanos(u64::MAX));
    }
}
