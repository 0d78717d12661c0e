//! Following the directories: the choice of directory and time for each fetch; for processes and pages.
//!
//! [`FetchRound`] is one fetch: each directory at most once, beginning with the last successful one. [`Schedule`] is the
//! time of the next fetch. Both have no I/O: the owner sends the requests and waits. Governed by
//! `proto/07-directory.md` §7. Directories are not trusted: if the document in use is stale, an answer without a newer
//! one is a failure. Otherwise a directory could withhold new documents from nodes.

#[cfg(test)]
mod tests;

use core::time::Duration;

use rand::CryptoRng;

use super::{Consensus, ConsensusBody, Document, DocumentKind, VolunteerList, VolunteerListBody};
use crate::base::WallTime;

/// The first delay between retries; it doubles with each retry.
const FIRST_RETRY: Duration = Duration::from_millis(200);
/// Maximum wait until the wall clock is read again, because a clock may be set and a device may be suspended.
const MAX_WAIT: Duration = Duration::from_secs(60);

/// A kind of document that nodes follow.
pub trait Followed: DocumentKind {
    /// The last segment of the document's path at a directory.
    const PATH: &'static str;
    /// Whether nodes store the document for their next start.
    const IS_STORED: bool;

    /// The maximum delay between retries.
    fn longest_retry(in_use: Option<&Document<Self>>) -> Duration;
}

impl Followed for ConsensusBody {
    const PATH: &'static str = "consensus";
    const IS_STORED: bool = true;

    /// Shorter before the first consensus, which a new network signs within seconds.
    fn longest_retry(in_use: Option<&Consensus>) -> Duration {
        Duration::from_secs(if in_use.is_some() { 60 } else { 1 })
    }
}

impl Followed for VolunteerListBody {
    const PATH: &'static str = "volunteers";
    // A volunteer list expires within minutes.
    const IS_STORED: bool = false;

    fn longest_retry(in_use: Option<&VolunteerList>) -> Duration {
        let interval = |list: &VolunteerList| list.fresh_until().since(list.valid_after());
        in_use.map_or(Duration::from_secs(20), |list| {
            interval(list).clamp(Duration::from_secs(1), Duration::from_secs(60))
        })
    }
}

/// One fetch, for which each directory is queried at most once.
#[derive(Clone, Copy, Debug)]
pub struct FetchRound {
    directories: usize,
    index: usize,
    tried: usize,
    /// Whether the document in use is no longer fresh.
    is_stale: bool,
}

impl FetchRound {
    /// A round over `directories` directories, at least one, beginning with number `first`.
    #[must_use]
    pub const fn new(directories: usize, first: usize) -> Self {
        Self { directories, index: first, tried: 0, is_stale: false }
    }

    /// Sets the document `in_use`: from the end of its freshness, an answer without a newer document is a failure.
    #[must_use]
    pub fn newer_than<B: DocumentKind>(self, now: WallTime, in_use: Option<&Document<B>>) -> Self {
        Self { is_stale: in_use.is_some_and(|in_use| now >= in_use.fresh_until()), ..self }
    }

    /// The number of the directory to query now; after the round, of the first directory in the next round.
    #[must_use]
    pub const fn index(&self) -> usize {
        self.index
    }

    /// Handles the outcome of the query; `Ok(None)` states that the directory has no newer document. If the document
    /// in use is no longer fresh, this is the error `nothing_newer`. Returns the outcome of the round at its end: the
    /// first success, or the last error.
    pub fn handle_outcome<T, E>(
        &mut self,
        outcome: Result<Option<T>, E>,
        nothing_newer: E,
    ) -> Option<Result<Option<T>, E>> {
        let outcome = match outcome {
            Ok(None) if self.is_stale => Err(nothing_newer),
            outcome => outcome,
        };
        if outcome.is_ok() {
            return Some(outcome);
        }
        self.tried = self.tried.saturating_add(1);
        self.index = self.index.saturating_add(1).checked_rem(self.directories).unwrap_or_default();
        (self.tried >= self.directories).then_some(outcome)
    }
}

/// The time of the next fetch of a document.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    due: Due,
    /// The next delay between retries.
    retry: Duration,
}

#[derive(Clone, Copy, Debug)]
enum Due {
    Now,
    After(Duration),
    At(WallTime),
}

impl Default for Schedule {
    /// A schedule whose first fetch is due now.
    fn default() -> Self {
        Self { due: Due::Now, retry: FIRST_RETRY }
    }
}

impl Schedule {
    /// A schedule whose first fetch is due after the freshness of the document `in_use`.
    pub fn after<B: DocumentKind, R: CryptoRng + ?Sized>(in_use: &Document<B>, rng: &mut R) -> Self {
        Self { due: Due::At(in_use.next_fetch(rng)), ..Self::default() }
    }

    /// The time to wait before the next call; `None` if a fetch is due.
    pub fn poll_wait(&mut self, now: WallTime) -> Option<Duration> {
        let wait = match self.due {
            Due::Now => Duration::ZERO,
            Due::After(delay) => {
                self.due = Due::Now;
                delay
            }
            Due::At(due) => due.since(now).min(MAX_WAIT),
        };
        Some(wait).filter(|wait| !wait.is_zero())
    }

    /// Schedules the next fetch after a fetch. `is_new` states whether it returned the document `in_use`.
    pub fn handle_fetch<B: Followed, R: CryptoRng + ?Sized>(
        &mut self,
        now: WallTime,
        is_new: bool,
        in_use: Option<&Document<B>>,
        rng: &mut R,
    ) {
        if is_new {
            self.retry = FIRST_RETRY;
        }
        match in_use.map(|in_use| in_use.next_fetch(rng)).filter(|due| *due > now) {
            Some(due) => self.due = Due::At(due),
            None => self.retry(B::longest_retry(in_use)),
        }
    }

    /// Schedules the next fetch after a delay of at most `longest`.
    pub fn retry(&mut self, longest: Duration) {
        self.due = Due::After(self.retry);
        self.retry = self.retry.saturating_mul(2).min(longest);
    }
}
