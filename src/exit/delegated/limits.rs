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

use tokio::{sync::Notify, time::sleep};

pub(crate) use crate::delegated::limits::Rates;
use crate::{base, delegated::limits, http_exchange::refusal::Refusal};

/// Interval between two reports of counts in the log.
const REPORT_INTERVAL: Duration = Duration::from_secs(60 * 60);

/// An admitted request, in progress until this value is dropped.
#[derive(Debug)]
pub(crate) struct Admitted {
    number: u64,
    limits: Arc<Mutex<limits::RequestLimits<Arc<Notify>>>>,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.limits.lock().unwrap_or_else(PoisonError::into_inner).release(self.number);
    }
}

/// The limits and counts of an exit. The limits identify a request by the notification of its end for another.
#[derive(Debug)]
pub(crate) struct ExitLimits {
    start: Instant,
    limits: Arc<Mutex<limits::RequestLimits<Arc<Notify>>>>,
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

    /// Admits a request of `owner`, in progress until the result is dropped. Notifies `displaced` when the request must
    /// end for another.
    ///
    /// # Errors
    /// As [`limits::RequestLimits::admit`].
    pub(crate) fn admit(
        &self,
        now: Instant,
        owner: limits::RequestOwner,
        displaced: Arc<Notify>,
    ) -> Result<Admitted, Refusal> {
        let now = base::Instant::START.after(now.saturating_duration_since(self.start));
        let admitted = self.limits.lock().unwrap_or_else(PoisonError::into_inner).admit(now, owner, displaced)?;
        if let Some(other) = admitted.displaced {
            other.notify_one();
        }
        Ok(Admitted { number: admitted.number, limits: Arc::clone(&self.limits) })
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
        let admit = |circuit| limits.admit(now, RequestOwner::alone(circuit), Arc::default());
        let first = admit(1).unwrap();
        assert_eq!(admit(2).unwrap_err(), Refusal::Busy);
        drop(first);
        assert!(admit(2).is_ok());
    }

    #[tokio::test]
    async fn a_displaced_request_is_notified() {
        let now = Instant::now();
        let limits = ExitLimits::new(Rates { concurrent: 2, ..Rates::default() }, now);
        let displaced = [1, 2].map(|circuit| {
            let displaced = Arc::default();
            (limits.admit(now, RequestOwner::of_source(1, circuit), Arc::clone(&displaced)).unwrap(), displaced)
        });
        let other = limits.admit(now, RequestOwner::alone(3), Arc::default()).unwrap();
        displaced[0].1.notified().await;
        drop(displaced);
        drop(other);
        assert!(limits.admit(now, RequestOwner::alone(4), Arc::default()).is_ok());
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
