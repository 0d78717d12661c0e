//! Limits on the requests that an exit performs, and counts of refusals.

use core::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use tokio::time::sleep;

pub(crate) use crate::delegated::limits::Rates;
use crate::{base, delegated::limits, http_exchange::refusal::Refusal};

/// Interval between two lines in the log.
const REPORT_INTERVAL: Duration = Duration::from_secs(60 * 60);

/// An admitted request; it counts as running until this is dropped.
#[derive(Debug)]
pub(crate) struct Admitted {
    owner: limits::RequestOwner,
    limits: Arc<Mutex<limits::RequestLimits>>,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.limits.lock().unwrap_or_else(PoisonError::into_inner).release(self.owner);
    }
}

/// The limits and counts of an exit.
#[derive(Debug)]
pub(crate) struct ExitLimits {
    start: Instant,
    limits: Arc<Mutex<limits::RequestLimits>>,
    counts: HashMap<Refusal, AtomicU64>,
}

impl ExitLimits {
    pub(crate) fn new(rates: Rates, now: Instant) -> Self {
        Self {
            start: now,
            limits: Arc::new(Mutex::new(limits::RequestLimits::new(rates))),
            counts: Refusal::all().map(|refusal| (refusal, AtomicU64::new(0))).collect(),
        }
    }

    /// Admits a request of `owner`. It counts as running until the result is dropped.
    ///
    /// # Errors
    /// [`Refusal::RateLimited`] and [`Refusal::Busy`].
    pub(crate) fn admit(&self, now: Instant, owner: limits::RequestOwner) -> Result<Admitted, Refusal> {
        let now = base::Instant::START.after(now.saturating_duration_since(self.start));
        self.limits.lock().unwrap_or_else(PoisonError::into_inner).admit(now, owner)?;
        Ok(Admitted { owner, limits: Arc::clone(&self.limits) })
    }

    /// Counts a refusal.
    pub(crate) fn count(&self, refusal: Refusal) {
        if let Some(count) = self.counts.get(&refusal) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The counts since the last call, without zeros.
    pub(crate) fn take_counts(&self) -> Vec<(Refusal, u64)> {
        let counts = Refusal::all().filter_map(|refusal| {
            let count = self.counts.get(&refusal)?.swap(0, Ordering::Relaxed);
            (count > 0).then_some((refusal, count))
        });
        counts.collect()
    }

    /// Logs the counts once an hour, and nothing else about the requests.
    pub(crate) async fn report(&self) {
        loop {
            sleep(REPORT_INTERVAL).await;
            let counts = self.take_counts();
            if !counts.is_empty() {
                let counts: Vec<String> =
                    counts.iter().map(|(refusal, count)| format!("{} {count}", refusal.name())).collect();
                tracing::info!(refused = counts.join(", "), "delegated requests refused in the last hour");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delegated::limits::RequestOwner;

    #[test]
    fn a_request_is_in_progress_until_it_is_dropped() {
        let now = Instant::now();
        let limits = ExitLimits::new(Rates { concurrent: 1, ..Rates::default() }, now);
        let first = limits.admit(now, RequestOwner::alone(1)).unwrap();
        assert_eq!(limits.admit(now, RequestOwner::alone(2)).unwrap_err(), Refusal::Busy);
        drop(first);
        assert!(limits.admit(now, RequestOwner::alone(2)).is_ok());
    }

    #[test]
    fn refusals_are_counted_by_reason() {
        let limits = ExitLimits::new(Rates::default(), Instant::now());
        limits.count(Refusal::Busy);
        limits.count(Refusal::Busy);
        limits.count(Refusal::Prohibited);
        assert_eq!(limits.take_counts(), [(Refusal::Busy, 2), (Refusal::Prohibited, 1)]);
        assert_eq!(limits.take_counts(), []);
    }
}
