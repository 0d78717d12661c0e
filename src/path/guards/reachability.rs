//! Reachability of guards: the state of each guard, the times of repeated dials, and the number of guards in use beyond
//! the primaries.
//!
//! An observer of the client's line can drop datagrams. Silence alone must therefore never lead a client to a guard of
//! the observer's choice (`proto/08-paths.md` §4).

use core::time::Duration;

use crate::base::{Counter as _, Instant};

/// The number of primary guards: the first listed guards of the sample.
pub(super) const PRIMARIES: usize = 3;
/// Minimum time between two answers of nodes other than guards, after which one more guard is used.
const CONTACT_INTERVAL: Duration = Duration::from_secs(10 * 60);
/// The delay of the first repeated dial; it doubles with each failure.
const FIRST_RETRY_DELAY: Duration = Duration::from_secs(5);
const MAX_RETRY_DELAY: Duration = Duration::from_secs(60);
/// The maximum delay while no other guard is reachable, so that a client recovers soon after its line does.
const MAX_RETRY_DELAY_OFFLINE: Duration = Duration::from_secs(15);

/// The state of one guard. Not stored on disk.
#[derive(Clone, Copy, Debug, Default)]
pub(super) enum GuardReachability {
    /// No silence and no failed dial since the guard last built the first hop of a circuit.
    #[default]
    Usable,
    /// At the time `since`, the guard was silent, or opened a channel after failed dials. New circuits still use it.
    Doubted { since: Instant, failures: u32 },
    /// The last dial failed. Other guards precede this one. The next dial is due at the time `retry_at`.
    Unreachable { failures: u32, retry_at: Instant },
}

impl GuardReachability {
    /// Whether new circuits may use the guard.
    pub(super) const fn is_usable(&self) -> bool {
        !matches!(self, Self::Unreachable { .. })
    }

    /// The time of the next dial of an unreachable guard.
    pub(super) const fn retry_at(&self) -> Option<Instant> {
        match self {
            Self::Unreachable { retry_at, .. } => Some(*retry_at),
            Self::Usable | Self::Doubted { .. } => None,
        }
    }

    /// The guard did not answer a circuit that began at `began`, or the link to the guard timed out at that time. The
    /// first silence causes only a new dial. `offline` is set if no other guard is reachable.
    pub(super) fn handle_silent(&mut self, now: Instant, began: Instant, offline: bool) {
        match self {
            Self::Usable => *self = Self::Doubted { since: now, failures: 0 },
            // One silence can end several circuits.
            Self::Doubted { since, .. } if began < *since => {}
            Self::Doubted { .. } => self.handle_unreachable(now, offline),
            Self::Unreachable { .. } => {}
        }
    }

    /// A dial failed, or did not succeed in time. `offline` is set if no other guard is reachable.
    pub(super) fn handle_unreachable(&mut self, now: Instant, offline: bool) {
        let mut failures = self.failures();
        let max_delay = if offline { MAX_RETRY_DELAY_OFFLINE } else { MAX_RETRY_DELAY };
        let delay = FIRST_RETRY_DELAY.saturating_mul(1 << failures.min(16)).min(max_delay);
        failures.increment();
        *self = Self::Unreachable { failures, retry_at: now.after(delay) };
    }

    /// A channel to the guard opened. If the guard was unreachable, its next silence makes it unreachable again unless
    /// it has built a first hop before. So a guard that opens channels but builds no hop delays circuits no more often
    /// than a guard that doesn't answer.
    pub(super) const fn handle_opened(&mut self, now: Instant) {
        if let Self::Unreachable { failures, .. } = self {
            *self = Self::Doubted { since: now, failures: *failures };
        }
    }

    /// A channel to a guard opened, so the client's line works: the next dial of an unreachable guard is due now.
    pub(super) fn retry_now(&mut self, now: Instant) {
        if let Self::Unreachable { retry_at, .. } = self {
            *retry_at = now.min(*retry_at);
        }
    }

    /// Failed dials since the guard last built a first hop.
    const fn failures(&self) -> u32 {
        match self {
            Self::Usable => 0,
            Self::Doubted { failures, .. } | Self::Unreachable { failures, .. } => *failures,
        }
    }
}

/// The number of guards that a client uses beyond its primaries, and the evidence that the client's line works.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct FurtherGuards {
    count: usize,
    /// The first answer of a node other than a guard since the last channel to a guard opened, or since the last
    /// increment of `count`.
    first_contact: Option<Instant>,
}

impl FurtherGuards {
    /// The number of guards in use beyond the primaries.
    pub(super) const fn count(&self) -> usize {
        self.count
    }

    /// A node other than a guard answered while all guards in use are unreachable.
    pub(super) fn handle_contact(&mut self, now: Instant) {
        let first = *self.first_contact.get_or_insert(now);
        if now.since(first) >= CONTACT_INTERVAL {
            self.count.increment();
            self.first_contact = None;
        }
    }

    /// A channel to a guard opened.
    pub(super) const fn handle_opened(&mut self, is_primary: bool) {
        self.first_contact = None;
        if is_primary {
            self.count = 0;
        }
    }
}
