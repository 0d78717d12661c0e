//! Rate and concurrency limits of the requests that an exit performs, for each circuit, for each owner of circuits and
//! in total.
//!
//! A client can build any number of circuits, so the limit of a circuit does not bound one client. A circuit owner gets
//! at most a part of the total, so that circuits of one owner can't exhaust the total.

use std::collections::BTreeMap;

use super::Refusal;
use crate::base::{Counter as _, Instant, Owner, Rate, TokenBucket};

/// Cap on circuits with a token bucket. At the cap, requests of new circuits are refused until a circuit has been idle
/// and its bucket is full.
const MAX_CIRCUITS: usize = 16 * 1024;
/// Cap on circuit owners with a token bucket. At the cap, requests of new owners are refused until an owner has been
/// idle and its bucket is full.
const MAX_OWNERS: usize = 4 * 1024;
/// The burst, in seconds of the average rate.
const BURST_SECONDS: u64 = 4;

/// Rates and concurrency of requests.
#[derive(Clone, Copy, Debug)]
pub struct Rates {
    /// Requests per second in total, on average.
    pub in_total: u32,
    /// Requests per second of one circuit owner, on average.
    pub per_owner: u32,
    /// Requests per second of one circuit, on average.
    pub per_circuit: u32,
    /// Concurrent requests in total.
    pub concurrent: usize,
    /// Concurrent requests of one circuit owner.
    pub concurrent_of_owner: usize,
    /// Concurrent requests of one circuit. A client normally uses one circuit for each request.
    pub concurrent_of_circuit: usize,
}

impl Default for Rates {
    fn default() -> Self {
        Self {
            in_total: 100,
            per_owner: 25,
            per_circuit: 2,
            concurrent: 256,
            concurrent_of_owner: 64,
            concurrent_of_circuit: 4,
        }
    }
}

impl Rates {
    /// These limits, with other average rates: requests per second in total and of one circuit. A circuit owner gets a
    /// quarter of the total, and no less than a circuit.
    #[must_use]
    pub fn with_averages(self, in_total: u32, per_circuit: u32) -> Self {
        let per_owner = in_total.div_ceil(4).max(per_circuit);
        Self { in_total, per_owner, per_circuit, ..self }
    }
}

/// To whose limits a request counts: its circuit, and the owner of the circuit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RequestOwner {
    /// The owner of the circuit: the listed relay or the source over whose channel the circuit comes.
    pub circuit_owner: Owner,
    /// The number of the circuit at the exit.
    pub circuit: u64,
}

/// The use of the limits by one circuit or one circuit owner.
#[derive(Debug, Default)]
struct LimitUse {
    bucket: TokenBucket,
    /// Requests in progress.
    running: usize,
}

/// The use of the limits by all circuits, or by all circuit owners.
#[derive(Debug)]
struct LimitUses<K>(BTreeMap<K, LimitUse>);

impl<K: Ord> LimitUses<K> {
    /// The entry of `key`. At the `cap` on entries, drops idle entries with a full bucket.
    fn entry(&mut self, now: Instant, key: K, cap: usize, rate: Rate) -> Result<&mut LimitUse, Refusal> {
        if self.0.len() >= cap && !self.0.contains_key(&key) {
            // A new entry has a full bucket too.
            self.0.retain(|_, entry| entry.running > 0 || !entry.bucket.is_full(now, rate));
            if self.0.len() >= cap {
                return Err(Refusal::RateLimited);
            }
        }
        Ok(self.0.entry(key).or_default())
    }

    fn release(&mut self, key: &K) {
        if let Some(entry) = self.0.get_mut(key) {
            entry.running.decrement();
        }
    }
}

/// An exit's limits, with their current use.
#[derive(Debug)]
pub struct RequestLimits {
    rates: Rates,
    in_total: TokenBucket,
    circuits: LimitUses<u64>,
    owners: LimitUses<Owner>,
    /// Requests in progress.
    running: usize,
}

impl RequestLimits {
    /// Limits with no request in progress.
    #[must_use]
    pub const fn new(rates: Rates) -> Self {
        Self {
            rates,
            in_total: TokenBucket::new(),
            circuits: LimitUses(BTreeMap::new()),
            owners: LimitUses(BTreeMap::new()),
            running: 0,
        }
    }

    /// Admits one request of `owner`. The request is in progress until it is [released](Self::release).
    ///
    /// # Errors
    /// [`Refusal::Busy`] at the cap on concurrent requests in total, [`Refusal::RateLimited`] at the other limits.
    pub fn admit(&mut self, now: Instant, owner: RequestOwner) -> Result<(), Refusal> {
        if self.running >= self.rates.concurrent {
            return Err(Refusal::Busy);
        }
        let Rates { in_total, per_owner, per_circuit, .. } = self.rates;
        let (in_total, per_owner, per_circuit) = (rate(in_total), rate(per_owner), rate(per_circuit));
        let circuit_owner = self.owners.entry(now, owner.circuit_owner, MAX_OWNERS, per_owner)?;
        // A refused request consumes nothing of the larger limits. A circuit owner at its limit adds no entries
        // of circuits.
        if circuit_owner.running >= self.rates.concurrent_of_owner
            || circuit_owner.bucket.available(now, per_owner) == 0
            || self.in_total.available(now, in_total) == 0
        {
            return Err(Refusal::RateLimited);
        }
        let circuit = self.circuits.entry(now, owner.circuit, MAX_CIRCUITS, per_circuit)?;
        if circuit.running >= self.rates.concurrent_of_circuit || !circuit.bucket.take(now, per_circuit) {
            return Err(Refusal::RateLimited);
        }
        circuit_owner.bucket.spend(now, per_owner, 1);
        self.in_total.spend(now, in_total, 1);
        circuit.running.increment();
        circuit_owner.running.increment();
        self.running.increment();
        Ok(())
    }

    /// Ends an admitted request of `owner`.
    pub fn release(&mut self, owner: RequestOwner) {
        self.running.decrement();
        self.circuits.release(&owner.circuit);
        self.owners.release(&owner.circuit_owner);
    }
}

/// The limit of `per_second` requests per second.
fn rate(per_second: u32) -> Rate {
    let per_second = u64::from(per_second);
    Rate { per_second, burst: per_second.saturating_mul(BURST_SECONDS) }
}

#[cfg(test)]
impl RequestOwner {
    /// A circuit whose owner has no other circuits.
    pub(crate) fn alone(circuit: u64) -> Self {
        Self::of_source(circuit, circuit)
    }

    /// A circuit of the source number `source`.
    pub(crate) fn of_source(source: u64, circuit: u64) -> Self {
        let address = core::net::Ipv6Addr::from(u128::from(source) << 64);
        Self { circuit_owner: Owner::of_address(address.into()), circuit }
    }
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
            limits.admit(now, RequestOwner::alone(1)).unwrap();
            limits.release(RequestOwner::alone(1));
        }
        assert_eq!(limits.admit(now, RequestOwner::alone(1)), Err(Refusal::RateLimited));
        assert_eq!(limits.admit(now, RequestOwner::alone(2)), Ok(()));
        assert_eq!(limits.admit(later(now, 1), RequestOwner::alone(1)), Ok(()));
    }

    #[test]
    fn all_circuits_together_are_limited() {
        let (mut limits, now) = limits(Rates { in_total: 10, ..Rates::default() });
        let admitted = (0..100).filter(|circuit| limits.admit(now, RequestOwner::alone(*circuit)).is_ok()).count();
        assert_eq!(admitted, 40);
        assert_eq!(limits.admit(later(now, 1), RequestOwner::alone(200)), Ok(()));
    }

    #[test]
    fn concurrent_requests_are_limited() {
        let (mut limits, now) = limits(Rates { concurrent: 1, ..Rates::default() });
        limits.admit(now, RequestOwner::alone(1)).unwrap();
        assert_eq!(limits.admit(now, RequestOwner::alone(2)), Err(Refusal::Busy));
        limits.release(RequestOwner::alone(1));
        assert_eq!(limits.admit(now, RequestOwner::alone(2)), Ok(()));
    }

    #[test]
    fn concurrent_requests_of_one_circuit_are_limited_and_others_are_admitted() {
        let (mut limits, now) = limits(Rates::default());
        (0..4).for_each(|_| limits.admit(now, RequestOwner::alone(1)).unwrap());
        let later = later(now, 5);
        assert_eq!(limits.admit(later, RequestOwner::alone(1)), Err(Refusal::RateLimited));
        assert_eq!(limits.admit(later, RequestOwner::alone(2)), Ok(()));
        limits.release(RequestOwner::alone(1));
        assert_eq!(limits.admit(later, RequestOwner::alone(1)), Ok(()));
    }

    #[test]
    fn the_number_of_stored_circuits_is_bounded() {
        let (mut limits, now) = limits(Rates { in_total: u32::MAX, per_owner: u32::MAX, ..Rates::default() });
        for circuit in 0..MAX_CIRCUITS as u64 {
            limits.admit(now, RequestOwner::of_source(1, circuit)).unwrap();
            limits.release(RequestOwner::of_source(1, circuit));
        }
        assert_eq!(limits.admit(now, RequestOwner::of_source(1, u64::MAX)), Err(Refusal::RateLimited));
        assert_eq!(limits.admit(later(now, 5), RequestOwner::of_source(1, u64::MAX)), Ok(()));
        assert_eq!((limits.circuits.0.len(), limits.owners.0.len()), (1, 1));
    }

    #[test]
    fn requests_of_one_owner_leave_places_to_others() {
        let (mut limits, now) = limits(Rates { in_total: 1000, per_owner: 1000, ..Rates::default() });
        let admitted =
            (0..1000).filter(|circuit| limits.admit(now, RequestOwner::of_source(1, *circuit)).is_ok()).count();
        assert_eq!(admitted, 64);
        assert!(limits.circuits.0.len() <= 64, "refused requests are stored");
        let others = (0..64).filter(|circuit| limits.admit(now, RequestOwner::of_source(2, 1000 + circuit)).is_ok());
        assert_eq!(others.count(), 64);
        limits.release(RequestOwner::of_source(1, 0));
        assert_eq!(limits.admit(now, RequestOwner::of_source(1, 2000)), Ok(()));
    }

    #[test]
    fn a_client_with_many_circuits_of_one_owner_does_not_exhaust_the_limits() {
        let (mut limits, mut now) = limits(Rates::default());
        let mut answered = 0;
        for _ in 0..60 {
            for step in 0..10 {
                now = now.after(Duration::from_millis(100));
                // 100 circuits without a pause, and another circuit once a second.
                for owner in (0..100).map(|circuit| RequestOwner::of_source(1, circuit)) {
                    if limits.admit(now, owner).is_ok() {
                        limits.release(owner);
                    }
                }
                let honest = RequestOwner::of_source(2, 1000);
                if step == 0 && limits.admit(now, honest).is_ok() {
                    limits.release(honest);
                    answered += 1;
                }
            }
        }
        assert_eq!(answered, 60);
    }
}
