//! Repeated fetches of a document: the choice of directory and time for each fetch, in processes and pages.
//!
//! [`FetchRound`] is one fetch: it queries each directory at most once, beginning with the last successful one.
//! [`accept`] verifies an answer. [`Schedule`] determines the time of the next fetch. None of them has I/O: the owner
//! sends the requests and waits.
//! Governed by `proto/07-directory.md` §7. Directories are not trusted: once the document in use is no longer fresh, an
//! answer without a newer document is a failure. Otherwise a directory could withhold new documents from nodes.

#[cfg(test)]
mod tests;

use core::time::Duration;

use rand::CryptoRng;

use super::{
    AuthorityId, Consensus, ConsensusBody, Document, DocumentError, DocumentKind, UnverifiedDocument, VolunteerList,
    VolunteerListBody,
};
use crate::base::{Counter as _, WallTime};

/// The first delay between retries; it doubles with each retry.
const FIRST_RETRY_DELAY: Duration = Duration::from_millis(200);
/// Maximum wait until the wall clock is read again, because a clock may be set and a device may be suspended.
const MAX_WAIT: Duration = Duration::from_secs(60);

/// A kind of document that nodes fetch repeatedly.
pub trait Followed: DocumentKind + Send + Sync + 'static {
    /// The last segment of the document's path at a directory.
    const PATH: &'static str;
    /// Whether nodes store the document for their next start.
    const IS_STORED: bool;
    /// Whether a fetch can be due in the second in which the authority signs the next document, and precede that
    /// document.
    const IS_OFTEN_EARLY: bool;

    /// The maximum delay between retries.
    fn max_retry_delay(in_use: Option<&Document<Self>>) -> Duration;
}

impl Followed for ConsensusBody {
    const PATH: &'static str = "consensus";
    const IS_STORED: bool = true;
    const IS_OFTEN_EARLY: bool = false;

    /// The delay is shorter before the first consensus, because the authority of a new network signs it within seconds.
    fn max_retry_delay(in_use: Option<&Consensus>) -> Duration {
        Duration::from_secs(if in_use.is_some() { 60 } else { 1 })
    }
}

impl Followed for VolunteerListBody {
    const PATH: &'static str = "volunteers";
    // A volunteer list expires within minutes.
    const IS_STORED: bool = false;
    const IS_OFTEN_EARLY: bool = true;

    fn max_retry_delay(in_use: Option<&VolunteerList>) -> Duration {
        let interval = |list: &VolunteerList| list.fresh_until().since(list.valid_after());
        in_use.map_or(Duration::from_secs(20), |list| {
            interval(list).clamp(Duration::from_secs(1), Duration::from_secs(60))
        })
    }
}

/// Decodes and verifies the document in a directory's answer, or a stored document. `None` if it is the document
/// `in_use`.
///
/// # Errors
/// When the document is invalid at the time `now`, or older than `in_use`.
pub fn accept<B: DocumentKind>(
    bytes: &[u8],
    authorities: &[AuthorityId],
    now: WallTime,
    in_use: Option<&Document<B>>,
) -> Result<Option<Document<B>>, DocumentError> {
    let document = UnverifiedDocument::decode(bytes)?.verify(authorities, now, in_use)?;
    match in_use {
        Some(in_use) if in_use.digest() == document.digest() => Ok(None),
        _ => Ok(Some(document)),
    }
}

/// One fetch, which queries each directory at most once.
#[derive(Clone, Copy, Debug)]
pub struct FetchRound {
    directories: usize,
    index: usize,
    tried: usize,
    /// Whether an answer without a newer document is a failure, because the document in use is no longer fresh.
    requires_newer: bool,
}

impl FetchRound {
    /// A round over `directories` directories, at least one, beginning at the index `first`.
    #[must_use]
    pub const fn new(directories: usize, first: usize) -> Self {
        Self { directories, index: first, tried: 0, requires_newer: false }
    }

    /// The same round for a newer document than `in_use`. If `in_use` is no longer fresh at `now`, an answer without a
    /// newer document is a failure.
    #[must_use]
    pub fn newer_than<B: DocumentKind>(self, now: WallTime, in_use: Option<&Document<B>>) -> Self {
        Self { requires_newer: in_use.is_some_and(|in_use| now >= in_use.fresh_until()), ..self }
    }

    /// The index of the directory to query now. After the round, the index of the first directory of the next round.
    #[must_use]
    pub const fn index(&self) -> usize {
        self.index
    }

    /// Handles the outcome of the query; `Ok(None)` states that the directory has no newer document. If the document
    /// in use is no longer fresh, `Ok(None)` counts as the error `nothing_newer`. At the end of the round, returns its
    /// outcome: the first success, or the last error.
    pub fn handle_outcome<T, E>(
        &mut self,
        outcome: Result<Option<T>, E>,
        nothing_newer: E,
    ) -> Option<Result<Option<T>, E>> {
        let outcome = match outcome {
            Ok(None) if self.requires_newer => Err(nothing_newer),
            outcome => outcome,
        };
        if outcome.is_ok() {
            return Some(outcome);
        }
        self.tried.increment();
        self.index = self.index.saturating_add(1).checked_rem(self.directories).unwrap_or_default();
        (self.tried >= self.directories).then_some(outcome)
    }
}

/// The time of the next fetch of a document.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    next_fetch: NextFetch,
    /// The next delay between retries.
    retry_delay: Duration,
}

#[derive(Clone, Copy, Debug)]
enum NextFetch {
    Now,
    After(Duration),
    At(WallTime),
}

impl Default for Schedule {
    /// A schedule whose first fetch is due now.
    fn default() -> Self {
        Self { next_fetch: NextFetch::Now, retry_delay: FIRST_RETRY_DELAY }
    }
}

impl Schedule {
    /// A schedule whose first fetch is due after the end of the freshness of the document `in_use`.
    pub fn after<B: DocumentKind, R: CryptoRng + ?Sized>(in_use: &Document<B>, rng: &mut R) -> Self {
        Self { next_fetch: NextFetch::At(in_use.next_fetch(rng)), ..Self::default() }
    }

    /// The time to wait before the next call of this function; `None` if a fetch is due.
    pub fn poll_wait(&mut self, now: WallTime) -> Option<Duration> {
        let wait = match self.next_fetch {
            NextFetch::Now => Duration::ZERO,
            NextFetch::After(delay) => {
                self.next_fetch = NextFetch::Now;
                delay
            }
            NextFetch::At(due) => due.since(now).min(MAX_WAIT),
        };
        Some(wait).filter(|wait| !wait.is_zero())
    }

    /// Schedules the next fetch after a fetch has ended. `is_new` states whether that fetch returned `in_use`.
    pub fn handle_fetch<B: Followed, R: CryptoRng + ?Sized>(
        &mut self,
        now: WallTime,
        is_new: bool,
        in_use: Option<&Document<B>>,
        rng: &mut R,
    ) {
        if is_new {
            self.retry_delay = FIRST_RETRY_DELAY;
        }
        match in_use.map(|in_use| in_use.next_fetch(rng)).filter(|due| *due > now) {
            Some(due) => self.next_fetch = NextFetch::At(due),
            None => self.retry(B::max_retry_delay(in_use)),
        }
    }

    /// Schedules the next fetch after a delay. The delay doubles with each retry, up to `max_delay`.
    pub fn retry(&mut self, max_delay: Duration) {
        self.next_fetch = NextFetch::After(self.retry_delay);
        self.retry_delay = self.retry_delay.saturating_mul(2).min(max_delay);
    }
}
