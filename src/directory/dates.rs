//! The dates of a document: the start of its validity, the time of the next one, and the end of its validity.

use core::time::Duration;

use rand::{CryptoRng, RngExt};

use super::profile::{Impossible, require};
use crate::base::WallTime;

/// The dates of a document, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dates {
    /// Start of its validity, later in each document than in the one before.
    pub valid_after: WallTime,
    /// Time from which on a newer one should be fetched.
    pub fresh_until: WallTime,
    /// End of its validity.
    pub valid_until: WallTime,
}

impl Dates {
    /// The dates in a decoded document, in Unix seconds.
    pub(super) const fn from_unix(valid_after: u64, fresh_until: u64, valid_until: u64) -> Self {
        Self {
            valid_after: WallTime::from_unix(valid_after),
            fresh_until: WallTime::from_unix(fresh_until),
            valid_until: WallTime::from_unix(valid_until),
        }
    }

    /// The dates of a document made at `now`, to be fresh for `interval` and valid for `lifetime`. It becomes valid
    /// strictly later than the last one, even if two fall in one second or the clock was set back.
    pub(super) fn of_next(now: WallTime, last: Option<WallTime>, interval: Duration, lifetime: Duration) -> Self {
        let valid_after = last.map_or(now, |last| last.after(Duration::from_secs(1)).max(now));
        let fresh_until = valid_after.after(interval);
        Self { valid_after, fresh_until, valid_until: valid_after.after(lifetime).max(fresh_until) }
    }

    /// Checks the order of the dates, and that the validity is at most `longest`.
    pub(super) fn check(&self, longest: Duration) -> Result<(), Impossible> {
        let Self { valid_after, fresh_until, valid_until } = self;
        let ordered = valid_after <= fresh_until && fresh_until <= valid_until && valid_after < valid_until;
        require(ordered, "the dates are out of order")?;
        require(valid_until.since(*valid_after) <= longest, "valid for longer than the maximum")
    }

    /// Time of the next fetch: random within half an interval after `fresh_until`, so that the fetches of nodes are
    /// spread.
    pub(super) fn next_fetch<R: CryptoRng + ?Sized>(&self, rng: &mut R) -> WallTime {
        let spread = self.fresh_until.since(self.valid_after).as_secs() / 2;
        self.fresh_until.after(Duration::from_secs(rng.random_range(0..=spread)))
    }
}
