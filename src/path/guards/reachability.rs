//! Reachability of guards: which guards a client may dial, in which order, and when again.
//!
//! An observer of the client's line can drop datagrams. Silence alone must therefore never lead a client to a guard of
//! the observer's choice (`proto/08-paths.md` §4).

use core::time::Duration;

use crate::base::{Counter as _, Instant};

/// The number of primary guards: the first listed guards of the sample.
pub(super) const PRIMARIES: usize = 3;
/// Time for which the primaries stay unreachable, while something else answers, before one more guard is used.
pub(super) const LINE_PROVED: Duration = Duration::from_secs(10 * 60);
const FIRST_RETRY: Duration = Duration::from_secs(5);
const LAST_RETRY: Duration = Duration::from_secs(60);
/// The longest wait while no guard is reachable, so that a client recovers soon after its line does.
const LAST_RETRY_OFFLINE: Duration = Duration::from_secs(15);

/// The state of one guard. Not stored on disk.
#[derive(Clone, Copy, Debug, Default)]
pub(super) enum GuardReach {
    /// Never dialled, or answered last.
    #[default]
    Usable,
    /// Fell silent `since`, or opened a channel after failed dials; dialled before any other guard.
    Doubted { since: Instant, failures: u32 },
    /// The last dial failed; other guards precede it.
    Unreachable { failures: u32, retry: Instant },
}

impl GuardReach {
    /// Whether new circuits may use the guard.
    pub(super) const fn is_usable(&self) -> bool {
        !matches!(self, Self::Unreachable { .. })
    }

    /// The time of the next dial of an unreachable guard.
    pub(super) const fn retry(&self) -> Option<Instant> {
        match self {
            Self::Unreachable { retry, .. } => Some(*retry),
            Self::Usable | Self::Doubted { .. } => None,
        }
    }

    /// The guard left a channel or circuit unanswered that began at `began`. The first silence causes only a new dial.
    pub(super) fn handle_silent(&mut self, now: Instant, began: Instant, offline: bool) {
        match self {
            Self::Usable => *self = Self::Doubted { since: now, failures: 0 },
            // One silence ends several circuits.
            Self::Doubted { since, .. } if began < *since => {}
            Self::Doubted { .. } => self.handle_unreachable(now, offline),
            Self::Unreachable { .. } => {}
        }
    }

    /// A dial failed, or did not succeed in time. `offline` is set if no other guard is reachable.
    pub(super) fn handle_unreachable(&mut self, now: Instant, offline: bool) {
        let mut failures = self.failures();
        let last = if offline { LAST_RETRY_OFFLINE } else { LAST_RETRY };
        let wait = FIRST_RETRY.saturating_mul(1 << failures.min(16)).min(last);
        failures.increment();
        *self = Self::Unreachable { failures, retry: now.after(wait) };
    }

    /// A channel opened. Until a circuit's first hop is built, the next silence makes the guard unreachable: a guard
    /// that opens channels and answers nothing else delays circuits no more often than one without an answer.
    pub(super) const fn handle_opened(&mut self, now: Instant) {
        if let Self::Unreachable { failures, .. } = self {
            *self = Self::Doubted { since: now, failures: *failures };
        }
    }

    /// Another guard answered: the own line works again.
    pub(super) fn retry_at_once(&mut self, now: Instant) {
        if let Self::Unreachable { retry, .. } = self {
            *retry = now.min(*retry);
        }
    }

    const fn failures(&self) -> u32 {
        match self {
            Self::Usable => 0,
            Self::Doubted { failures, .. } | Self::Unreachable { failures, .. } => *failures,
        }
    }
}

/// Guards that a client uses beyond its primaries, and the evidence that its line works.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Reserve {
    guards: usize,
    /// The first answer of something else since all guards in use became unreachable.
    contact: Option<Instant>,
}

impl Reserve {
    /// The number of guards in use beyond the primaries.
    pub(super) const fn guards(&self) -> usize {
        self.guards
    }

    /// Something other than a guard answered while all guards in use are unreachable.
    pub(super) fn handle_contact(&mut self, now: Instant) {
        let first = *self.contact.get_or_insert(now);
        if now.since(first) >= LINE_PROVED {
            self.guards.increment();
            self.contact = None;
        }
    }

    /// A guard answered.
    pub(super) const fn handle_opened(&mut self, is_primary: bool) {
        self.contact = None;
        if is_primary {
            self.guards = 0;
        }
    }
}
