//! The dates of a document: start of validity, end of freshness, and end of validity.

use core::time::Duration;

use rand::{CryptoRng, RngExt};

use super::profile::{Impossible, require};
use crate::base::WallTime;

/// The dates of a document, in ascending order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dates {
    /// The start of validity, later in each document than in the previous one.
    pub valid_after: WallTime,
    /// The end of freshness, after which nodes fetch a newer document.
    pub fresh_until: WallTime,
    /// The end of validity.
    pub valid_until: WallTime,
}

impl Dates {
    /// Dates in Unix seconds.
    pub(super) const fn from_unix(valid_after: u64, fresh_until: u64, valid_until: u64) -> Self {
        Self {
            valid_after: WallTime::from_unix(valid_after),
            fresh_until: WallTime::from_unix(fresh_until),
            valid_until: WallTime::from_unix(valid_until),
        }
    }

    /// The dates of a document created at `now`, fresh for `interval` and valid for `lifetime`. `valid_after` is later
    /// than `last`, even if both documents are created in one second or the clock was set back.
    pub(super) fn of_next(now: WallTime, last: Option<WallTime>, interval: Duration, lifetime: Duration) -> Self {
        let valid_after = last.map_or(now, |last| last.after(Duration::from_secs(1)).max(now));
        let fresh_until = valid_after.after(interval);
        Self { valid_after, fresh_until, valid_until: valid_after.after(lifetime).max(fresh_until) }
    }

    /// Checks the order of the dates, and that the validity is at most `max_validity`.
    pub(super) fn check(&self, max_validity: Duration) -> Result<(), Impossible> {
        let Self { valid_after, fresh_until, valid_until } = self;
        let is_ordered = valid_after <= fresh_until && fresh_until <= valid_until && valid_after < valid_until;
        require(is_ordered, "the dates are out of order")?;
        require(valid_until.since(*valid_after) <= max_validity, "valid for longer than the maximum")
    }

    /// The time of the next fetch: random within half an interval after `fresh_until`, so that nodes don't fetch at the
    /// same time.
    pub(super) fn next_fetch<R: CryptoRng + ?Sized>(&self, rng: &mut R) -> WallTime {
        let spread = self.fresh_until.since(self.valid_after).as_secs() / 2;
        self.fresh_until.after(Duration::from_secs(rng.random_range(0..=spread)))
    }
}
