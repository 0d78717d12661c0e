//! Rate and concurrency limits of the requests that an exit performs, for each circuit, for each owner of circuits and
//! in total.
//!
//! A client can build any number of circuits, also over several owners of circuits. So neither a circuit's limit nor an
//! owner's bounds one client, and the total is shared by use:
//!
//! - **Rate.** The more of its burst an owner has used recently, the more of the total must be left for its next request
//!   ([`RecentUse`]). So owners that use much leave tokens to those that use little. The same holds for the circuits
//!   of an owner. The last quarter of an owner's tokens is for the first tries of circuits ([`RESERVED_DIVISOR`]), since
//!   a client uses a circuit for one request. So further tries of circuits, however many, take no token from new
//!   circuits, each of which costs a handshake.
//! - **Concurrency.** At the cap, the oldest request of the owner with the most ends for an owner with fewer.

use core::{cmp::Reverse, time::Duration};
use std::collections::BTreeMap;

use super::Refusal;
use crate::base::{Counter as _, Instant, Owner, Rate, RecentUse, TokenBucket};

/// Cap on circuits with a token bucket. At the cap, the oldest circuit without a request in progress is forgotten. Its
/// further tries don't count as the first.
const MAX_CIRCUITS: usize = 16 * 1024;
/// Cap on circuit owners with a token bucket. At the cap, requests of new owners are refused until an owner has been
/// idle and its bucket is full.
const MAX_OWNERS: usize = 4 * 1024;
/// The burst, in seconds of the average rate.
const BURST_SECONDS: u64 = 4;
/// Divisor of an owner's burst for the tokens that only the first tries of circuits get.
const RESERVED_DIVISOR: u64 = 4;
/// The time after which a request ends at the cap for another one of the same owner, or of an owner with as many. Longer
/// than a search may take.
pub(super) const SLOW_AFTER: Duration = Duration::from_secs(10);

/// Rates and concurrency of requests.
#[derive(Clone, Copy, Debug)]
pub struct Rates {
    /// Requests per second in total, on average.
    pub in_total: u32,
    /// Requests per second of one circuit owner (a listed relay, or a network), on average.
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
    /// The value of [`RequestLimits::changes`] at the last change of `running`.
    changed: u64,
    recent: RecentUse,
}

impl LimitUse {
    /// Counts an admitted request of a holder with the rate `rate`.
    fn admit(&mut self, now: Instant, rate: Rate, change: u64) {
        self.recent.add(now, rate);
        self.running.increment();
        self.changed = change;
    }

    fn release(&mut self, change: u64) {
        self.running.decrement();
        self.changed = change;
    }
}

/// The use of the limits by all circuits, or by all circuit owners.
#[derive(Debug)]
struct LimitUses<K>(BTreeMap<K, LimitUse>);

impl LimitUses<Owner> {
    /// The entry of `owner`. At the cap on entries, drops idle entries with a full bucket.
    fn of_owner(&mut self, now: Instant, owner: Owner, rate: Rate) -> Result<&mut LimitUse, Refusal> {
        if self.0.len() >= MAX_OWNERS && !self.0.contains_key(&owner) {
            // A new entry has a full bucket too.
            self.0.retain(|_, entry| entry.running > 0 || !entry.bucket.is_full(now, rate));
            if self.0.len() >= MAX_OWNERS {
                return Err(Refusal::RateLimited);
            }
        }
        Ok(self.0.entry(owner).or_default())
    }
}

impl LimitUses<u64> {
    /// The entry of a circuit, and whether this is its first try. `forgotten` is the highest number of a forgotten
    /// circuit. Later circuits have higher numbers.
    fn of_circuit(&mut self, circuit: u64, forgotten: &mut Option<u64>) -> (&mut LimitUse, bool) {
        let is_known = self.0.contains_key(&circuit);
        if !is_known && self.0.len() >= MAX_CIRCUITS {
            let oldest = self.0.iter().find(|(_, entry)| entry.running == 0).map(|(circuit, _)| *circuit);
            if let Some(oldest) = oldest {
                self.0.remove(&oldest);
            }
            *forgotten = oldest.max(*forgotten);
        }
        let is_first = !is_known && Some(circuit) > *forgotten;
        (self.0.entry(circuit).or_default(), is_first)
    }
}

impl<K: Ord> LimitUses<K> {
    fn running(&self, key: &K) -> usize {
        self.0.get(key).map_or(0, |entry| entry.running)
    }

    /// The requests in progress of `key`, in an order: of equal numbers, the one that changed last is lower, so that no
    /// key is preferred for its value.
    fn rank(&self, key: &K) -> (usize, Reverse<u64>) {
        self.0.get(key).map_or_else(Default::default, |entry| (entry.running, Reverse(entry.changed)))
    }

    fn release(&mut self, key: &K, change: u64) {
        if let Some(entry) = self.0.get_mut(key) {
            entry.release(change);
        }
    }
}

/// A request in progress.
#[derive(Debug)]
struct RunningRequest<T> {
    /// The owner of the circuit; all sources of a network are one.
    owner: Owner,
    circuit: u64,
    since: Instant,
    request: T,
}

/// An admitted request.
#[derive(Debug, PartialEq, Eq)]
pub struct Admission<T> {
    /// The number by which the request is [released](RequestLimits::release).
    pub number: u64,
    /// The displaced request, which must end. It needs no release.
    pub displaced: Option<T>,
}

/// An exit's limits, with their current use. `T` identifies a request at the exit.
#[derive(Debug)]
pub struct RequestLimits<T> {
    rates: Rates,
    in_total: TokenBucket,
    /// By the number of the circuit.
    circuits: LimitUses<u64>,
    /// The highest number of a circuit that `circuits` has dropped.
    forgotten_circuit: Option<u64>,
    /// By owner; all sources of a network are one.
    owners: LimitUses<Owner>,
    /// The requests in progress by their numbers, in the order of their admission.
    running: BTreeMap<u64, RunningRequest<T>>,
    next_number: u64,
    /// The number of changes of `running` so far.
    changes: u64,
}

impl<T> RequestLimits<T> {
    /// Limits with no request in progress.
    #[must_use]
    pub const fn new(rates: Rates) -> Self {
        Self {
            rates,
            in_total: TokenBucket::new(),
            circuits: LimitUses(BTreeMap::new()),
            forgotten_circuit: None,
            owners: LimitUses(BTreeMap::new()),
            running: BTreeMap::new(),
            next_number: 0,
            changes: 0,
        }
    }

    /// Admits one request of `owner`. The request is in progress until it is [released](Self::release), or displaced.
    ///
    /// # Errors
    /// [`Refusal::Busy`] at the cap on concurrent requests in total, [`Refusal::RateLimited`] at the other limits.
    pub fn admit(&mut self, now: Instant, owner: RequestOwner, request: T) -> Result<Admission<T>, Refusal> {
        let RequestOwner { circuit_owner, circuit } = owner;
        let owner = circuit_owner.of_network();
        let Rates { in_total, per_owner, per_circuit, .. } = self.rates;
        let (in_total, per_owner, per_circuit) = (rate(in_total), rate(per_owner), rate(per_circuit));
        let victim = self.victim(now, &owner);
        // Each try takes a token of its circuit. A refused try consumes nothing else.
        let (of_circuit, is_first) = self.circuits.of_circuit(circuit, &mut self.forgotten_circuit);
        let has_token = of_circuit.bucket.take(now, per_circuit);
        let victim = victim?;
        let is_own = |victim| self.running.get(&victim).is_some_and(|running| running.circuit == circuit);
        let freed = usize::from(victim.is_some_and(is_own));
        let of_owner = self.owners.of_owner(now, owner, per_owner)?;
        let total_left = self.in_total.available(now, in_total);
        let owner_left = of_owner.recent.tokens_left(now, per_owner, total_left, in_total);
        let owner_left = owner_left.min(of_owner.bucket.available(now, per_owner));
        let reserved = if is_first { 0 } else { per_owner.burst / RESERVED_DIVISOR };
        if !has_token
            || owner_left <= reserved
            || of_circuit.running.saturating_sub(freed) >= self.rates.concurrent_of_circuit
            || of_circuit.recent.tokens_left(now, per_circuit, owner_left, per_owner) == 0
        {
            return Err(Refusal::RateLimited);
        }
        self.in_total.spend(now, in_total, 1);
        self.changes.increment();
        of_owner.bucket.spend(now, per_owner, 1);
        of_owner.admit(now, per_owner, self.changes);
        of_circuit.admit(now, per_circuit, self.changes);
        let displaced = victim.and_then(|victim| self.release(victim));
        let number = self.next_number;
        self.next_number.increment();
        self.running.insert(number, RunningRequest { owner, circuit, since: now, request });
        Ok(Admission { number, displaced })
    }

    /// The request that ends if `owner` gets another one; `None` if no cap is reached.
    fn victim(&self, now: Instant, owner: &Owner) -> Result<Option<u64>, Refusal> {
        let held = self.owners.running(owner);
        let is_at_part = held >= self.rates.concurrent_of_owner;
        if !is_at_part && self.running.len() < self.rates.concurrent {
            return Ok(None);
        }
        let owners = self.running.values().map(|running| (self.owners.rank(&running.owner), running.owner));
        let fullest = owners.max().filter(|((most, _), _)| !is_at_part && *most > held);
        let (from, is_below) =
            fullest.map_or((*owner, false), |((most, _), fullest)| (fullest, most > held.saturating_add(1)));
        let oldest = self.running.iter().find(|(_, running)| running.owner == from);
        match oldest.filter(|(_, running)| is_below || running.since.after(SLOW_AFTER) <= now) {
            Some((number, _)) => Ok(Some(*number)),
            None if is_at_part => Err(Refusal::RateLimited),
            None => Err(Refusal::Busy),
        }
    }

    /// Ends an admitted request. Returns it, unless it was displaced.
    pub fn release(&mut self, number: u64) -> Option<T> {
        let ended = self.running.remove(&number)?;
        self.changes.increment();
        self.circuits.release(&ended.circuit, self.changes);
        self.owners.release(&ended.owner, self.changes);
        Some(ended.request)
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

    /// A circuit of the source number `source`, which has a network of its own.
    pub(crate) fn of_source(source: u64, circuit: u64) -> Self {
        let address = core::net::Ipv6Addr::from(u128::from(source) << 80);
        Self { circuit_owner: Owner::of_address(address.into()), circuit }
    }
}

#[cfg(test)]
mod tests {
    use core::time::Duration;

    #[cfg(target_arch = "wasm32")]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    use super::*;

    fn limits(rates: Rates) -> (RequestLimits<u64>, Instant) {
        (RequestLimits::new(rates), Instant::START)
    }

    /// Admits a request that displaces none. Returns its number.
    fn admit(limits: &mut RequestLimits<u64>, now: Instant, owner: RequestOwner) -> Result<u64, Refusal> {
        limits.admit(now, owner, owner.circuit).map(|admitted| {
            assert_eq!(admitted.displaced, None);
            admitted.number
        })
    }

    /// Admits a request that ends immediately.
    fn admit_brief(limits: &mut RequestLimits<u64>, now: Instant, owner: RequestOwner) -> Result<(), Refusal> {
        admit(limits, now, owner).map(|number| assert!(limits.release(number).is_some()))
    }

    fn later(now: Instant, seconds: u64) -> Instant {
        now.after(Duration::from_secs(seconds))
    }

    #[test]
    fn one_circuit_is_limited_and_others_are_not() {
        let (mut limits, now) = limits(Rates::default());
        (0..8).for_each(|_| admit_brief(&mut limits, now, RequestOwner::alone(1)).unwrap());
        assert_eq!(admit(&mut limits, now, RequestOwner::alone(1)), Err(Refusal::RateLimited));
        assert!(admit(&mut limits, now, RequestOwner::alone(2)).is_ok());
        assert!(admit(&mut limits, later(now, 1), RequestOwner::alone(1)).is_ok());
    }

    #[test]
    fn all_circuits_together_are_limited() {
        let (mut limits, now) = limits(Rates { in_total: 10, ..Rates::default() });
        let owners = (0..100).map(RequestOwner::alone);
        let admitted = owners.filter(|owner| admit(&mut limits, now, *owner).is_ok()).count();
        assert_eq!(admitted, 40);
        assert!(admit(&mut limits, later(now, 1), RequestOwner::alone(200)).is_ok());
    }

    #[test]
    fn concurrent_requests_are_limited() {
        let (mut limits, now) = limits(Rates { concurrent: 1, ..Rates::default() });
        let number = admit(&mut limits, now, RequestOwner::alone(1)).unwrap();
        assert_eq!(admit(&mut limits, now, RequestOwner::alone(2)), Err(Refusal::Busy));
        limits.release(number);
        assert!(admit(&mut limits, now, RequestOwner::alone(2)).is_ok());
    }

    #[test]
    fn concurrent_requests_of_one_circuit_are_limited_and_others_are_admitted() {
        let (mut limits, now) = limits(Rates::default());
        let numbers = [(); 4].map(|()| admit(&mut limits, now, RequestOwner::alone(1)).unwrap());
        let later = later(now, 5);
        assert_eq!(admit(&mut limits, later, RequestOwner::alone(1)), Err(Refusal::RateLimited));
        assert!(admit(&mut limits, later, RequestOwner::alone(2)).is_ok());
        limits.release(numbers[0]);
        assert!(admit(&mut limits, later, RequestOwner::alone(1)).is_ok());
    }

    #[test]
    fn the_number_of_stored_circuits_is_bounded() {
        let (mut limits, now) = limits(Rates { in_total: u32::MAX, per_owner: u32::MAX, ..Rates::default() });
        for circuit in 0..MAX_CIRCUITS as u64 {
            admit_brief(&mut limits, now, RequestOwner::of_source(1, circuit)).unwrap();
        }
        let running = admit(&mut limits, now, RequestOwner::of_source(1, 0)).unwrap();
        admit(&mut limits, now, RequestOwner::of_source(1, u64::MAX)).unwrap();
        assert_eq!((limits.circuits.0.len(), limits.owners.0.len()), (MAX_CIRCUITS, 1));
        assert_eq!(limits.circuits.running(&0), 1, "the circuit has a request in progress");
        assert!(limits.release(running).is_some());
        let mut is_first = |circuit| limits.circuits.of_circuit(circuit, &mut limits.forgotten_circuit).1;
        assert!(!is_first(1), "the circuit is forgotten, not new");
        assert!(is_first(u64::MAX - 1));
    }

    #[test]
    fn tries_on_many_circuits_behind_all_relays_leave_first_tries_their_tokens() {
        let (mut limits, mut now) = limits(Rates::default());
        let (mut admitted, mut honest) = (0, 0);
        for step in 0..1200 {
            now = now.after(Duration::from_millis(50));
            // 1,200 circuits behind forty relays, each with five tries a second, and twenty new ones a second.
            let old = (0..1200).filter(|circuit| circuit % 4 == step % 4);
            for circuit in old.chain([10_000 + step]) {
                let tried = admit_brief(&mut limits, now, RequestOwner::of_source(circuit % 40, circuit));
                admitted += u32::from(tried.is_ok());
            }
            // A client with a request a second behind the same relays, each on a new circuit.
            if step % 20 == 10 {
                let tried = admit_brief(&mut limits, now, RequestOwner::of_source(step % 40, 20_000 + step));
                honest += u32::from(tried.is_ok());
            }
        }
        assert!(honest >= 58, "{honest} of 60");
        assert!(admitted > 3000, "{admitted}: the exit serves the others with the rest of the rate");
    }

    #[test]
    fn requests_of_one_owner_leave_places_to_others() {
        let (mut limits, now) = limits(Rates { in_total: 1000, per_owner: 1000, ..Rates::default() });
        let owners =
            |source: u64| (0..1000).map(move |circuit| RequestOwner::of_source(source, source * 1000 + circuit));
        let numbers: Vec<u64> = owners(1).filter_map(|owner| admit(&mut limits, now, owner).ok()).collect();
        assert_eq!(numbers.len(), 64);
        assert_eq!(owners(2).filter(|owner| admit(&mut limits, now, *owner).is_ok()).count(), 64);
        limits.release(numbers[0]);
        assert!(admit(&mut limits, now, RequestOwner::of_source(1, 9000)).is_ok());
    }

    #[test]
    fn a_client_with_many_circuits_behind_four_relays_exhausts_no_rate_of_others() {
        let (mut limits, mut now) = limits(Rates::default());
        let (mut of_others, mut behind_the_same) = (0, 0);
        for step in 0..6000 {
            now = now.after(Duration::from_millis(10));
            // 50 circuits behind each of four relays, without a pause.
            for owner in (0..200).map(|circuit| RequestOwner::of_source(circuit % 4, circuit)) {
                let _ = admit_brief(&mut limits, now, owner);
            }
            // Clients with a request a second, each on a circuit of its own.
            if step % 100 == 50 {
                let mut is_admitted = |source, circuit| {
                    usize::from(admit_brief(&mut limits, now, RequestOwner::of_source(source, circuit)).is_ok())
                };
                of_others += is_admitted(100, 1000 + 2 * step);
                behind_the_same += is_admitted(1, 1001 + 2 * step);
            }
        }
        assert_eq!((of_others, behind_the_same), (60, 60));
    }

    #[test]
    fn one_owner_may_use_its_whole_burst_and_almost_its_whole_rate() {
        let (mut limits, now) = limits(Rates::default());
        let mut circuits = 0..;
        let mut admitted = |now| {
            let owners = circuits.by_ref().take(200).map(|circuit| RequestOwner::of_source(1, circuit));
            owners.filter(|owner| admit_brief(&mut limits, now, *owner).is_ok()).count()
        };
        assert_eq!(admitted(now), 100);
        let later = (1..=100).map(|second| admitted(later(now, second))).sum::<usize>();
        assert!((2400..=2500).contains(&later), "{later} of 2500");
    }

    #[test]
    fn the_sources_of_a_network_are_one_owner() {
        let (mut limits, now) = limits(Rates::default());
        let of_network = |host: u8| {
            let circuit_owner = Owner::of_address([192, 0, 2, host].into());
            RequestOwner { circuit_owner, circuit: host.into() }
        };
        let admitted = (0..200).filter(|host| admit_brief(&mut limits, now, of_network(*host)).is_ok()).count();
        assert_eq!(admitted, 100);
    }

    #[test]
    fn requests_of_others_displace_slow_requests_of_four_owners() {
        let (mut limits, now) = limits(Rates::default());
        let slow = (0..256).map(|circuit| RequestOwner::of_source(circuit % 4, circuit));
        let admitted: Vec<_> = slow.map(|owner| admit(&mut limits, now, owner).unwrap()).collect();
        let mut displaced = Vec::new();
        let mut honest = Vec::new();
        for request in 0..8 {
            let admitted =
                limits.admit(later(now, 1), RequestOwner::of_source(100, 1000 + request), 1000 + request).unwrap();
            displaced.extend(admitted.displaced);
            honest.push(admitted.number);
        }
        assert_eq!(displaced.len(), 8, "a request ends for each");
        // The attacker's further requests end only requests of its own.
        for circuit in 2000..2100 {
            if let Ok(admitted) = limits.admit(later(now, 2), RequestOwner::of_source(circuit % 4, circuit), circuit) {
                assert!(admitted.displaced.is_none_or(|circuit| !(1000..1008).contains(&circuit)));
            }
        }
        assert!(honest.into_iter().all(|number| limits.release(number).is_some()));
        assert!(displaced.iter().all(|circuit| *circuit < 256));
        assert_eq!(limits.release(admitted[usize::try_from(displaced[0]).unwrap()]), None, "released before");
    }

    #[test]
    fn of_equally_full_owners_the_one_unchanged_for_longest_loses_a_request_whatever_its_address() {
        // The numbers of sources order their identities.
        for sources in [[1, 2, 3], [3, 2, 1], [2, 3, 1]] {
            let (mut limits, now) = limits(Rates { concurrent: 6, ..Rates::default() });
            for (circuit, source) in sources.into_iter().flat_map(|source| [source; 2]).enumerate() {
                admit(&mut limits, now, RequestOwner::of_source(source, circuit as u64)).unwrap();
            }
            let displaced = [100, 101, 102]
                .map(|number| limits.admit(now, RequestOwner::of_source(number, number), number).unwrap().displaced);
            assert_eq!(displaced, [Some(0), Some(2), Some(4)], "{sources:?}");
        }
    }

    #[test]
    fn a_request_displaces_a_slow_one_of_the_same_circuit() {
        let (mut limits, now) = limits(Rates::default());
        for number in 0..64 {
            admit(&mut limits, now, RequestOwner::of_source(1, number / 4)).unwrap();
        }
        let (of_first, of_second) = (RequestOwner::of_source(1, 0), RequestOwner::of_source(1, 1));
        assert_eq!(
            limits.admit(later(now, 10), of_second, 9),
            Err(Refusal::RateLimited),
            "its circuit stays at its cap"
        );
        assert_eq!(limits.admit(later(now, 10), of_first, 9).unwrap().displaced, Some(0));
    }

    #[test]
    fn a_request_displaces_a_slow_one_of_the_same_owner() {
        let (mut limits, now) = limits(Rates::default());
        for circuit in 0..64 {
            admit(&mut limits, now, RequestOwner::of_source(1, circuit)).unwrap();
        }
        let further = RequestOwner::of_source(1, 100);
        assert_eq!(limits.admit(later(now, 9), further, 100), Err(Refusal::RateLimited));
        assert_eq!(limits.admit(later(now, 10), further, 100).unwrap().displaced, Some(0));
    }
}
