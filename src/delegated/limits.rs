//! Rate and concurrency limits of the requests that an exit performs, for each circuit and in total.

use std::collections::BTreeMap;

use super::Refusal;
use crate::base::{Counter as _, Instant, Rate, TokenBucket};

/// Cap on circuits with a token bucket. At the cap, all requests are refused until a circuit has been idle and its
/// bucket is full.
const MAX_CIRCUITS: usize = 16 * 1024;
/// Burst, as seconds at the average rate.
const BURST: u64 = 4;

/// Rates and concurrency of requests.
#[derive(Clone, Copy, Debug)]
pub struct Rates {
    /// Requests per second in total, on average.
    pub in_total: u32,
    /// Requests per second of one circuit, on average.
    pub per_circuit: u32,
    /// Concurrent requests in total.
    pub concurrent: usize,
    /// Concurrent requests of one circuit. A client normally uses one circuit for each request.
    pub concurrent_of_circuit: usize,
}

impl Default for Rates {
    fn default() -> Self {
        Self { in_total: 100, per_circuit: 2, concurrent: 256, concurrent_of_circuit: 4 }
    }
}

#[derive(Debug, Default)]
struct CircuitUse {
    bucket: TokenBucket,
    /// Requests in progress.
    running: usize,
}

/// The limits of an exit and their current use.
#[derive(Debug)]
pub struct RequestLimits {
    rates: Rates,
    in_total: TokenBucket,
    circuits: BTreeMap<u64, CircuitUse>,
    /// Requests in progress.
    running: usize,
}

impl RequestLimits {
    /// RequestLimits without requests in progress.
    #[must_use]
    pub const fn new(rates: Rates) -> Self {
        Self { rates, in_total: TokenBucket::new(), circuits: BTreeMap::new(), running: 0 }
    }

    /// Admits one request of the circuit `number`. The request is in progress until [`Self::release`].
    ///
    /// # Errors
    /// [`Refusal::Busy`] at the cap on concurrent requests, [`Refusal::RateLimited`] at the other limits.
    pub fn admit(&mut self, now: Instant, number: u64) -> Result<(), Refusal> {
        if self.running >= self.rates.concurrent {
            return Err(Refusal::Busy);
        }
        let (rate, in_total) = (rate(self.rates.per_circuit), rate(self.rates.in_total));
        if self.circuits.len() >= MAX_CIRCUITS {
            // A circuit with a full bucket needs no entry.
            self.circuits.retain(|_, circuit| circuit.running > 0 || !circuit.bucket.is_full(now, rate));
            if self.circuits.len() >= MAX_CIRCUITS {
                return Err(Refusal::RateLimited);
            }
        }
        let circuit = self.circuits.entry(number).or_default();
        // The circuit's bucket is first, so that a circuit above its rate consumes nothing of the total rate.
        let is_admitted = circuit.running < self.rates.concurrent_of_circuit
            && circuit.bucket.take(now, rate)
            && self.in_total.take(now, in_total);
        if !is_admitted {
            return Err(Refusal::RateLimited);
        }
        circuit.running.increment();
        self.running.increment();
        Ok(())
    }

    /// Ends an admitted request of the circuit `number`.
    pub fn release(&mut self, number: u64) {
        self.running.decrement();
        if let Some(circuit) = self.circuits.get_mut(&number) {
            circuit.running.decrement();
        }
    }
}

/// The limit of `a_second` requests per second.
fn rate(a_second: u32) -> Rate {
    let a_second = u64::from(a_second);
    Rate { a_second, burst: a_second.saturating_mul(BURST) }
}

#[cfg(test)]
mod tests {
    use core::time::Duration;

    #[cfg(target_arch = "wasm32")]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    use super::*;

    fn limits(rates: Rates) -> (RequestLimits, Instant) {
        (RequestLimits::new(rates), Instant::START)
    }

    fn later(now: Instant, seconds: u64) -> Instant {
        now.after(Duration::from_secs(seconds))
    }

    #[test]
    fn one_circuit_is_limited_and_others_are_not() {
        let (mut limits, now) = limits(Rates::default());
        for _ in 0..8 {
            limits.admit(now, 1).unwrap();
            limits.release(1);
        }
        assert_eq!(limits.admit(now, 1), Err(Refusal::RateLimited));
        assert_eq!(limits.admit(now, 2), Ok(()));
        assert_eq!(limits.admit(later(now, 1), 1), Ok(()));
    }

    #[test]
    fn all_circuits_together_are_limited() {
        let (mut limits, now) = limits(Rates { in_total: 10, ..Rates::default() });
        let admitted = (0..100).filter(|circuit| limits.admit(now, *circuit).is_ok()).count();
        assert_eq!(admitted, 40);
        assert_eq!(limits.admit(later(now, 1), 200), Ok(()));
    }

    #[test]
    fn concurrent_requests_are_limited() {
        let (mut limits, now) = limits(Rates { concurrent: 1, ..Rates::default() });
        limits.admit(now, 1).unwrap();
        assert_eq!(limits.admit(now, 2), Err(Refusal::Busy));
        limits.release(1);
        assert_eq!(limits.admit(now, 2), Ok(()));
    }

    #[test]
    fn concurrent_requests_of_one_circuit_are_limited_and_others_are_admitted() {
        let (mut limits, now) = limits(Rates::default());
        (0..4).for_each(|_| limits.admit(now, 1).unwrap());
        let later = later(now, 5);
        assert_eq!(limits.admit(later, 1), Err(Refusal::RateLimited));
        assert_eq!(limits.admit(later, 2), Ok(()));
        limits.release(1);
        assert_eq!(limits.admit(later, 1), Ok(()));
    }

    #[test]
    fn the_number_of_stored_circuits_is_bounded() {
        let (mut limits, now) = limits(Rates { in_total: u32::MAX, ..Rates::default() });
        for circuit in 0..MAX_CIRCUITS as u64 {
            limits.admit(now, circuit).unwrap();
            limits.release(circuit);
        }
        assert_eq!(limits.admit(now, u64::MAX), Err(Refusal::RateLimited));
        assert_eq!(limits.admit(later(now, 5), u64::MAX), Ok(()));
        assert_eq!(limits.circuits.len(), 1);
    }
}
