//! The schedule of builds of missing spare circuits.
//!
//! A spare circuit that is built directly after the use or end of another circuit shows the time of that event to its
//! relays. A later isolation uses the spare circuit, so its relays could link the two isolations. Therefore a missing
//! spare circuit is built after a random delay. The delay has an exponential distribution, so that the time of the
//! build doesn't depend on the time of the event. The same applies to the spare circuits that are missing at the start.
//! Circuits that were built simultaneously would be recognised as circuits of one client. A request doesn't wait for a
//! spare circuit: a circuit for it is built immediately.

use core::time::Duration;

use rand::{CryptoRng, RngExt};

use crate::base::Instant;

/// The mean delay of each missing spare.
const MEAN_DELAY: Duration = Duration::from_secs(4);
const MAX_DELAY: Duration = Duration::from_secs(30);

/// The schedule of spares for one purpose.
#[derive(Default)]
pub(super) struct SpareSchedule {
    next: Option<NextSpare>,
}

/// The next build of a spare circuit.
#[derive(Clone, Copy, PartialEq, Eq)]
enum NextSpare {
    /// Due at this time.
    At(Instant),
    /// Due now.
    Due,
}

impl SpareSchedule {
    /// Whether a spare circuit is built now, if `missing` of them are missing. Otherwise the next build is scheduled.
    pub(super) fn take_due(&mut self, now: Instant, missing: usize, rng: &mut dyn CryptoRng) -> bool {
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

    /// No spare circuit is missing.
    pub(super) const fn handle_complete(&mut self) {
        self.next = None;
    }

    /// Returns true once for each scheduled build, when it is due.
    pub(super) fn handle_timeout(&mut self, now: Instant) -> bool {
        let is_due = self.poll_timeout().is_some_and(|at| at <= now);
        if is_due {
            self.next = Some(NextSpare::Due);
        }
        is_due
    }

    /// The time of the next scheduled build.
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
    MEAN_DELAY.mul_f64(exponential / missing).min(MAX_DELAY)
}
