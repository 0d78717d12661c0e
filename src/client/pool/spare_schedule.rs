//! The times at which missing spare circuits are built.
//!
//! A spare that is built directly after another circuit was used or has ended shows the time of that event to its
//! relays. A later isolation uses the spare, so that they could link the two. So a missing spare is built after a
//! random delay. The delay is distributed exponentially: the time of a build contains nothing about the time of the
//! loss. Requests don't wait for spares, because a waiting request has a circuit built at once.

use core::time::Duration;

use rand::{CryptoRng, RngExt};

use crate::base::Instant;

/// The mean delay of each missing spare.
const MEAN_DELAY: Duration = Duration::from_secs(4);
const LONGEST_DELAY: Duration = Duration::from_secs(30);

/// The schedule of spares for one purpose.
#[derive(Default)]
pub(super) struct SpareSchedule {
    /// All spares were there once. Until then they are built without a delay.
    complete: bool,
    next: Option<NextSpare>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum NextSpare {
    At(Instant),
    Due,
}

impl SpareSchedule {
    /// Whether a spare is built now, of which `missing` are missing.
    pub(super) fn takes_due(&mut self, now: Instant, missing: usize, rng: &mut dyn CryptoRng) -> bool {
        if !self.complete {
            return true;
        }
        match self.next {
            Some(NextSpare::Due) => {
                self.next = None;
                true
            }
            Some(NextSpare::At(_)) => false,
            None => {
                self.next = Some(NextSpare::At(now.after(delay(missing, rng))));
                false
            }
        }
    }

    /// No spare is missing.
    pub(super) const fn handle_complete(&mut self) {
        self.complete = true;
        self.next = None;
    }

    /// Returns whether the time of a build has come, once.
    pub(super) fn handle_timeout(&mut self, now: Instant) -> bool {
        let due = self.poll_timeout().is_some_and(|at| at <= now);
        if due {
            self.next = Some(NextSpare::Due);
        }
        due
    }

    /// The time of the next build, if one is missing.
    pub(super) const fn poll_timeout(&self) -> Option<Instant> {
        match self.next {
            Some(NextSpare::At(at)) => Some(at),
            Some(NextSpare::Due) | None => None,
        }
    }
}

/// The shortest of `missing` independent delays.
fn delay(missing: usize, rng: &mut dyn CryptoRng) -> Duration {
    let missing = u32::try_from(missing).map_or(f64::MAX, f64::from).max(1.0);
    let exponential = -(1.0 - rng.random::<f64>()).ln();
    MEAN_DELAY.mul_f64(exponential / missing).min(LONGEST_DELAY)
}
