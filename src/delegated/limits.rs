//! Rate and concurrency limits of the requests that an exit performs, for each circuit, for each neighbour and in total.
//!
//! A client has any number of circuits, but few of them come over the neighbours of others. So a neighbour gets at most a
//! part of the total.

use std::collections::BTreeMap;

use super::Refusal;
use crate::base::{Counter as _, Instant, Owner, Rate, TokenBucket};

/// Cap on circuits with a token bucket. At the cap, requests of new circuits are refused until a circuit has been idle
/// and its bucket is full.
const MAX_CIRCUITS: usize = 16 * 1024;
/// As [`MAX_CIRCUITS`], of neighbours.
const MAX_NEIGHBOURS: usize = 4 * 1024;
/// Burst, as seconds at the average rate.
const BURST: u64 = 4;

/// Rates and concurrency of requests.
#[derive(Clone, Copy, Debug)]
pub struct Rates {
    /// Requests per second in total, on average.
    pub in_total: u32,
    /// Requests per second of one neighbour, on average.
    pub per_neighbour: u32,
    /// Requests per second of one circuit, on average.
    pub per_circuit: u32,
    /// Concurrent requests in total.
    pub concurrent: usize,
    /// Concurrent requests of one neighbour.
    pub concurrent_of_neighbour: usize,
    /// Concurrent requests of one circuit. A client normally uses one circuit for each request.
    pub concurrent_of_circuit: usize,
}

impl Default for Rates {
    fn default() -> Self {
        Self {
            in_total: 100,
            per_neighbour: 25,
            per_circuit: 2,
            concurrent: 256,
            concurrent_of_neighbour: 64,
            concurrent_of_circuit: 4,
        }
    }
}

impl Rates {
    /// With these requests per second in total and of one circuit. A neighbour gets a quarter of the total, and no less
    /// than a circuit.
    #[must_use]
    pub fn with_averages(self, in_total: u32, per_circuit: u32) -> Self {
        let per_neighbour = in_total.div_ceil(4).max(per_circuit);
        Self { in_total, per_neighbour, per_circuit, ..self }
    }
}

/// The owner of a request, which shares limits with its other requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RequestOwner {
    /// The neighbour over whose channel the circuit comes.
    pub neighbour: Owner,
    /// The number of the circuit.
    pub circuit: u64,
}

#[derive(Debug, Default)]
struct OwnerUse {
    bucket: TokenBucket,
    /// Requests in progress.
    running: usize,
}

/// The use by owners of one kind.
#[derive(Debug)]
struct Owners<K>(BTreeMap<K, OwnerUse>);

impl<K: Ord> Owners<K> {
    /// The entry of `owner`. At the cap of `most` entries, drops those that aren't needed.
    fn entry(&mut self, now: Instant, owner: K, most: usize, rate: Rate) -> Result<&mut OwnerUse, Refusal> {
        if self.0.len() >= most && !self.0.contains_key(&owner) {
            // An owner with a full bucket needs no entry.
            self.0.retain(|_, owner| owner.running > 0 || !owner.bucket.is_full(now, rate));
            if self.0.len() >= most {
                return Err(Refusal::RateLimited);
            }
        }
        Ok(self.0.entry(owner).or_default())
    }

    fn release(&mut self, owner: &K) {
        if let Some(owner) = self.0.get_mut(owner) {
            owner.running.decrement();
        }
    }
}

/// An exit's limits, with their current use.
#[derive(Debug)]
pub struct RequestLimits {
    rates: Rates,
    in_total: TokenBucket,
    circuits: Owners<u64>,
    neighbours: Owners<Owner>,
    /// Requests in progress.
    running: usize,
}

impl RequestLimits {
    /// RequestLimits without requests in progress.
    #[must_use]
    pub const fn new(rates: Rates) -> Self {
        Self {
            rates,
            in_total: TokenBucket::new(),
            circuits: Owners(BTreeMap::new()),
            neighbours: Owners(BTreeMap::new()),
            running: 0,
        }
    }

    /// Admits one request of `owner`. It is in progress until it is [released](Self::release).
    ///
    /// # Errors
    /// [`Refusal::Busy`] at the cap on concurrent requests, [`Refusal::RateLimited`] at the other limits.
    pub fn admit(&mut self, now: Instant, owner: RequestOwner) -> Result<(), Refusal> {
        if self.running >= self.rates.concurrent {
            return Err(Refusal::Busy);
        }
        let Rates { in_total, per_neighbour, per_circuit, .. } = self.rates;
        let (in_total, per_neighbour, per_circuit) = (rate(in_total), rate(per_neighbour), rate(per_circuit));
        let neighbour = self.neighbours.entry(now, owner.neighbour, MAX_NEIGHBOURS, per_neighbour)?;
        // A refused request consumes nothing of the larger limits, and a neighbour at its limit stores no circuits.
        if neighbour.running >= self.rates.concurrent_of_neighbour
            || neighbour.bucket.available(now, per_neighbour) == 0
            || self.in_total.available(now, in_total) == 0
        {
            return Err(Refusal::RateLimited);
        }
        let circuit = self.circuits.entry(now, owner.circuit, MAX_CIRCUITS, per_circuit)?;
        if circuit.running >= self.rates.concurrent_of_circuit || !circuit.bucket.take(now, per_circuit) {
            return Err(Refusal::RateLimited);
        }
        neighbour.bucket.spend(now, per_neighbour, 1);
        self.in_total.spend(now, in_total, 1);
        circuit.running.increment();
        neighbour.running.increment();
        self.running.increment();
        Ok(())
    }

    /// Ends an admitted request of `owner`.
    pub fn release(&mut self, owner: RequestOwner) {
        self.running.decrement();
        self.circuits.release(&owner.circuit);
        self.neighbours.release(&owner.neighbour);
    }
}

/// The limit of `per_second` requests per second.
fn rate(per_second: u32) -> Rate {
    let per_second = u64::from(per_second);
    Rate { per_second, burst: per_second.saturating_mul(BURST) }
}

#[cfg(test)]
impl RequestOwner {
    /// A circuit behind a neighbour of its own.
    pub(crate) fn alone(circuit: u64) -> Self {
        Self::behind(circuit, circuit)
    }

    /// A circuit behind the neighbour `neighbour`.
    pub(crate) fn behind(neighbour: u64, circuit: u64) -> Self {
        let address = core::net::Ipv6Addr::from(u128::from(neighbour) << 64);
        Self { neighbour: Owner::of_address(address.into()), circuit }
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
        let (mut limits, now) = limits(Rates { in_total: u32::MAX, per_neighbour: u32::MAX, ..Rates::default() });
        for circuit in 0..MAX_CIRCUITS as u64 {
            limits.admit(now, RequestOwner::behind(1, circuit)).unwrap();
            limits.release(RequestOwner::behind(1, circuit));
        }
        assert_eq!(limits.admit(now, RequestOwner::behind(1, u64::MAX)), Err(Refusal::RateLimited));
        assert_eq!(limits.admit(later(now, 5), RequestOwner::behind(1, u64::MAX)), Ok(()));
        assert_eq!((limits.circuits.0.len(), limits.neighbours.0.len()), (1, 1));
    }

    #[test]
    fn requests_of_one_neighbour_leave_places_to_others() {
        let (mut limits, now) = limits(Rates { in_total: 1000, per_neighbour: 1000, ..Rates::default() });
        let admitted = (0..1000).filter(|circuit| limits.admit(now, RequestOwner::behind(1, *circuit)).is_ok()).count();
        assert_eq!(admitted, 64);
        assert!(limits.circuits.0.len() <= 64, "refused requests are stored");
        let others = (0..64).filter(|circuit| limits.admit(now, RequestOwner::behind(2, 1000 + circuit)).is_ok());
        assert_eq!(others.count(), 64);
        limits.release(RequestOwner::behind(1, 0));
        assert_eq!(limits.admit(now, RequestOwner::behind(1, 2000)), Ok(()));
    }

    #[test]
    fn a_client_with_many_circuits_behind_one_neighbour_takes_no_requests_of_others() {
        let (mut limits, mut now) = limits(Rates::default());
        let mut answered = 0;
        for _ in 0..60 {
            for step in 0..10 {
                now = now.after(Duration::from_millis(100));
                // 100 circuits without a pause, and another circuit once a second.
                for owner in (0..100).map(|circuit| RequestOwner::behind(1, circuit)) {
                    if limits.admit(now, owner).is_ok() {
                        limits.release(owner);
                    }
                }
                let honest = RequestOwner::behind(2, 1000);
                if step == 0 && limits.admit(now, honest).is_ok() {
                    limits.release(honest);
                    answered += 1;
                }
            }
        }
        assert_eq!(answered, 60);
    }
}
