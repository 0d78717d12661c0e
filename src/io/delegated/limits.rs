//! How many requests an exit performs, and a count of what it refused.

use core::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::sleep,
};

use super::refusal::Refusal;

/// From one line in the log to the next.
const REPORT_EVERY: Duration = Duration::from_secs(60 * 60);
/// Circuits remembered for their rate; more are refused until some have been quiet.
const MAX_CIRCUITS: usize = 16 * 1024;

/// How often, and how many at a time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rates {
    /// Requests per second in all, on average.
    pub(crate) in_all: u32,
    /// Requests per second of one circuit, on average.
    pub(crate) per_circuit: u32,
    /// Requests at a time.
    pub(crate) at_once: usize,
    /// Requests of one circuit at a time; a client has a circuit for each.
    pub(crate) at_once_of_circuit: usize,
}

impl Default for Rates {
    fn default() -> Self {
        Self { in_all: 100, per_circuit: 2, at_once: 256, at_once_of_circuit: 4 }
    }
}

/// Seconds' worth of requests that may come at once.
const BURST: f64 = 4.0;

/// A token bucket.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Bucket {
    fn full(rate: u32, at: Instant) -> Self {
        Self { tokens: f64::from(rate) * BURST, at }
    }

    fn fill(&mut self, rate: u32, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.tokens = passed.mul_add(f64::from(rate), self.tokens).min(f64::from(rate) * BURST);
        self.at = now;
    }

    fn take(&mut self) -> bool {
        let taken = self.tokens >= 1.0;
        if taken {
            self.tokens -= 1.0;
        }
        taken
    }
}

#[derive(Debug)]
struct Buckets {
    in_all: Bucket,
    circuits: HashMap<u64, Circuit>,
}

#[derive(Debug)]
struct Circuit {
    bucket: Bucket,
    /// Requests under way.
    running: usize,
}

/// A request that may be under way; it counts as such until this is dropped.
#[derive(Debug)]
pub(crate) struct Admitted {
    circuit: u64,
    buckets: Arc<Mutex<Buckets>>,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(circuit) = buckets.circuits.get_mut(&self.circuit) {
            circuit.running = circuit.running.saturating_sub(1);
        }
    }
}

/// An exit's limits and counts.
#[derive(Debug)]
pub(crate) struct Limits {
    rates: Rates,
    buckets: Arc<Mutex<Buckets>>,
    permits: Arc<Semaphore>,
    counts: HashMap<Refusal, AtomicU64>,
}

impl Limits {
    pub(crate) fn new(rates: Rates, now: Instant) -> Self {
        let buckets = Buckets { in_all: Bucket::full(rates.in_all, now), circuits: HashMap::new() };
        Self {
            rates,
            buckets: Arc::new(Mutex::new(buckets)),
            permits: Arc::new(Semaphore::new(rates.at_once)),
            counts: Refusal::all().map(|refusal| (refusal, AtomicU64::new(0))).collect(),
        }
    }

    /// Lets one request of the circuit `number` begin, which lasts as long as what this gives.
    ///
    /// # Errors
    /// [`Refusal::RateLimited`] and [`Refusal::Busy`].
    pub(crate) fn admit(&self, now: Instant, number: u64) -> Result<Admitted, Refusal> {
        let permit = Arc::clone(&self.permits).try_acquire_owned().map_err(|_| Refusal::Busy)?;
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let Buckets { in_all, circuits } = &mut *buckets;
        let rate = self.rates.per_circuit;
        if circuits.len() >= MAX_CIRCUITS {
            // One that is full again is as one never seen.
            circuits.retain(|_, circuit| {
                circuit.running > 0 || now.saturating_duration_since(circuit.bucket.at).as_secs_f64() < BURST
            });
            if circuits.len() >= MAX_CIRCUITS {
                return Err(Refusal::RateLimited);
            }
        }
        let own = circuits.entry(number).or_insert_with(|| Circuit { bucket: Bucket::full(rate, now), running: 0 });
        own.bucket.fill(rate, now);
        in_all.fill(self.rates.in_all, now);
        // The circuit's own first, so that one that asks too much takes nothing from others.
        let within = own.running < self.rates.at_once_of_circuit && own.bucket.take() && in_all.take();
        if !within {
            return Err(Refusal::RateLimited);
        }
        own.running = own.running.saturating_add(1);
        Ok(Admitted { circuit: number, buckets: Arc::clone(&self.buckets), _permit: permit })
    }

    /// Counts what was not done.
    pub(crate) fn count(&self, refusal: Refusal) {
        if let Some(count) = self.counts.get(&refusal) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// What was counted since this was last asked, without what there was none of.
    pub(crate) fn take_counts(&self) -> Vec<(Refusal, u64)> {
        let counts = Refusal::all().filter_map(|refusal| {
            let count = self.counts.get(&refusal)?.swap(0, Ordering::Relaxed);
            (count > 0).then_some((refusal, count))
        });
        counts.collect()
    }

    /// Says in the log once an hour what was counted, and nothing more about it.
    pub(crate) async fn report(&self) {
        loop {
            sleep(REPORT_EVERY).await;
            let counts = self.take_counts();
            if !counts.is_empty() {
                let words: Vec<String> = counts.iter().map(|(why, count)| format!("{} {count}", why.word())).collect();
                tracing::info!(refused = words.join(", "), "delegated requests not done in the last hour");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(rates: Rates) -> (Limits, Instant) {
        let now = Instant::now();
        (Limits::new(rates, now), now)
    }

    #[test]
    fn one_circuit_is_limited_and_others_are_not() {
        let (limits, now) = limits(Rates::default());
        for _ in 0..8 {
            assert!(limits.admit(now, 1).is_ok());
        }
        assert_eq!(limits.admit(now, 1).unwrap_err(), Refusal::RateLimited);
        assert!(limits.admit(now, 2).is_ok());
        assert!(limits.admit(now + Duration::from_secs(1), 1).is_ok());
    }

    #[test]
    fn all_together_are_limited() {
        let (limits, now) = limits(Rates { in_all: 10, ..Rates::default() });
        let admitted = (0..100).filter(|circuit| limits.admit(now, *circuit).is_ok()).count();
        assert_eq!(admitted, 40);
        assert!(limits.admit(now + Duration::from_secs(1), 200).is_ok());
    }

    #[test]
    fn so_many_at_a_time_and_no_more() {
        let (limits, now) = limits(Rates { at_once: 1, ..Rates::default() });
        let first = limits.admit(now, 1).unwrap();
        assert_eq!(limits.admit(now, 2).unwrap_err(), Refusal::Busy);
        drop(first);
        assert!(limits.admit(now, 2).is_ok());
    }

    #[test]
    fn one_circuit_does_not_take_all_there_is() {
        let (limits, now) = limits(Rates::default());
        let mut running: Vec<Admitted> = (0..4).map(|_| limits.admit(now, 1).unwrap()).collect();
        let later = now + Duration::from_secs(5);
        assert_eq!(limits.admit(later, 1).unwrap_err(), Refusal::RateLimited);
        assert!(limits.admit(later, 2).is_ok());
        running.pop();
        assert!(limits.admit(later, 1).is_ok());
    }

    #[test]
    fn circuits_without_number_take_no_memory_without_end() {
        let (limits, now) = limits(Rates { in_all: u32::MAX, ..Rates::default() });
        for circuit in 0..MAX_CIRCUITS as u64 {
            assert!(limits.admit(now, circuit).is_ok());
        }
        assert_eq!(limits.admit(now, u64::MAX).unwrap_err(), Refusal::RateLimited);
        assert!(limits.admit(now + Duration::from_secs(5), u64::MAX).is_ok());
        assert_eq!(limits.buckets.lock().unwrap().circuits.len(), 1);
    }

    #[test]
    fn refusals_are_counted_by_reason() {
        let (limits, _) = limits(Rates::default());
        limits.count(Refusal::Busy);
        limits.count(Refusal::Busy);
        limits.count(Refusal::Prohibited);
        assert_eq!(limits.take_counts(), [(Refusal::Busy, 2), (Refusal::Prohibited, 1)]);
        assert_eq!(limits.take_counts(), []);
    }
}
