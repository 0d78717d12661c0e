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
//! - **Concurrency.** At the cap, the oldest request of the owner with the most ends for an owner with fewer. Without
//!   such an owner, a slow request ends. For the first try of a circuit, a request is slow after the time in which the
//!   rate alone fills the places ([`Rates::slow_at_cap`]). So nobody can keep all places filled with younger requests.

#[cfg(test)]
mod tests;

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
/// The time after which a request ends at the cap for a further try of a circuit, and the longest one after which it ends
/// for a first try. Longer than a search may take.
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

    /// The time after which a request ends at the cap on all requests for the first try of a circuit, 2.56 s by default:
    /// the time in which the average rate fills all places. To keep all places filled with younger requests, a client
    /// would need a higher rate.
    pub(super) fn slow_at_cap(&self) -> Duration {
        filling_time(self.concurrent, self.in_total)
    }

    /// As [`Self::slow_at_cap`], for the part of one circuit owner.
    fn slow_at_part(&self) -> Duration {
        filling_time(self.concurrent_of_owner, self.per_owner)
    }
}

/// The time in which `per_second` requests per second fill `places`, at most [`SLOW_AFTER`].
fn filling_time(places: usize, per_second: u32) -> Duration {
    let places = u32::try_from(places).unwrap_or(u32::MAX);
    let time = Duration::from_secs(places.into()).checked_div(per_second);
    time.map_or(SLOW_AFTER, |time| time.min(SLOW_AFTER))
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
        // Each try takes a token of its circuit. A refused try consumes nothing else.
        let (of_circuit, is_first) = self.circuits.of_circuit(circuit, &mut self.forgotten_circuit);
        let has_token = of_circuit.bucket.take(now, per_circuit);
        let victim = self.victim(now, &owner, is_first)?;
        let of_circuit = self.circuits.0.entry(circuit).or_default();
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

    /// The request that ends if `owner` gets another one; `None` if no cap is reached. `is_first` tells whether the other
    /// one is the first try of its circuit.
    fn victim(&self, now: Instant, owner: &Owner, is_first: bool) -> Result<Option<u64>, Refusal> {
        let held = self.owners.running(owner);
        let is_at_part = held >= self.rates.concurrent_of_owner;
        if !is_at_part && self.running.len() < self.rates.concurrent {
            return Ok(None);
        }
        let owners = self.running.values().map(|running| (self.owners.rank(&running.owner), running.owner));
        let fullest = owners.max().filter(|((most, _), _)| !is_at_part && *most > held.saturating_add(1));
        let victim = if let Some((_, fullest)) = fullest {
            self.running.iter().find(|(_, running)| running.owner == fullest)
        } else {
            let slow_after = match (is_first, is_at_part) {
                (false, _) => SLOW_AFTER,
                (true, false) => self.rates.slow_at_cap(),
                (true, true) => self.rates.slow_at_part(),
            };
            // In the order of their ages. Any of these owners may lose one, so that an owner with only young requests
            // doesn't protect old ones of others.
            let mut slow = self.running.iter().take_while(|(_, running)| running.since.after(slow_after) <= now);
            slow.find(|(_, running)| {
                running.owner == *owner || (!is_at_part && self.owners.running(&running.owner) > held)
            })
        };
        match victim {
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
