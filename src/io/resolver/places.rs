//! The places of concurrent lookups, shared among circuits.
//!
//! A circuit and the owner of circuits each have a share of the places. Beyond the share, or when all places are taken,
//! a lookup waits. A free place goes to the circuit owner with fewest lookups, then to its circuit with fewest, then to
//! the oldest lookup. A slow lookup loses its place to a waiting lookup whose circuit owner or circuit has fewer: after
//! [`SLOW_AFTER`], or earlier if many lookups wait or the other has less than half as many ([`State::slow_after`]). So
//! slow name servers delay the lookups of other circuits only briefly.

use core::{cmp::Reverse, time::Duration};
use std::{
    collections::{BTreeMap, BTreeSet, BinaryHeap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::{
    sync::oneshot,
    time::{Instant, timeout},
};

use crate::{
    base::{Counter as _, Owner},
    delegated::limits::RequestOwner,
    wire::EndReason,
};

/// Cap on concurrent lookups of a circuit.
const MAX_RUNNING_OF_CIRCUIT: usize = 8;
/// A circuit owner gets at most the number of places divided by this divisor.
const OWNER_DIVISOR: usize = 4;
/// Cap on waiting lookups in total.
const MAX_WAITING: usize = 1024;
/// Cap on waiting lookups of a circuit.
const MAX_WAITING_OF_CIRCUIT: usize = 64;
/// Time after which a running lookup may lose its place while few lookups wait.
const SLOW_AFTER: Duration = Duration::from_secs(2);
/// Divisor of [`SLOW_AFTER`] for the shortest time after which a running lookup may lose its place.
const SHORTEST_DIVISOR: u32 = 8;
/// Divisor of [`SLOW_AFTER`] for the interval of searches for slow lookups, while lookups wait.
const INTERVAL_DIVISOR: u32 = 16;

/// The circuit of a lookup and its owner; `None` for lookups of the exit itself, which count as one circuit owner.
type LookupOwner = Option<RequestOwner>;

#[derive(Clone)]
pub(super) struct LookupPlaces {
    count: usize,
    slow_after: Duration,
    state: Arc<Mutex<State>>,
}

/// The running and waiting lookups. A lookup that starts to wait, to run, or ends, visits no other lookup.
#[derive(Default)]
struct State {
    next: u64,
    running: BTreeMap<u64, RunningLookup>,
    /// The number of waiting lookups.
    waiting: usize,
    by_owner: BTreeMap<Option<Owner>, LookupsOfOwner>,
    /// The next lookup to run of each circuit owner, by the running lookups; the first one runs first.
    to_run: BTreeSet<RankedLookup>,
    /// The waiting lookup of each circuit owner to refuse at the cap, by the waiting lookups; the last one is refused
    /// first.
    to_refuse: BTreeSet<RankedLookup>,
    /// The time of the last search for slow lookups.
    checked_at: Option<Instant>,
}

/// A waiting lookup: the lookups of its circuit owner and of its circuit, its number, and its circuit.
type RankedLookup = (OwnerLoad, u64, LookupOwner);
/// The same within a circuit owner: the lookups of the circuit, the number of the lookup, and the circuit.
type RankedInOwner = (usize, u64, LookupOwner);

/// The lookups of a circuit owner.
#[derive(Default)]
struct LookupsOfOwner {
    running: usize,
    waiting: usize,
    circuits: BTreeMap<LookupOwner, LookupsOfCircuit>,
    /// The next lookup to run of each circuit below its share, by the running lookups.
    to_run: BTreeSet<RankedInOwner>,
    /// The newest waiting lookup of each circuit, by the waiting lookups.
    to_refuse: BTreeSet<RankedInOwner>,
}

/// The lookups of a circuit.
#[derive(Default)]
struct LookupsOfCircuit {
    running: usize,
    /// Sends the place to each waiting lookup. Dropping a sender refuses the lookup.
    waiting: BTreeMap<u64, oneshot::Sender<LookupPlace>>,
}

struct RunningLookup {
    owner: LookupOwner,
    since: Instant,
    /// Dropping this sender ends the lookup.
    _end: oneshot::Sender<()>,
}

/// The place of a running lookup.
pub(super) struct LookupPlace {
    key: u64,
    places: LookupPlaces,
    ended: oneshot::Receiver<()>,
}

/// Removes a waiting lookup whose task has ended.
struct WaitingGuard<'a> {
    key: u64,
    owner: LookupOwner,
    places: &'a LookupPlaces,
}

/// The numbers of lookups of the circuit owner, and of the circuit.
type OwnerLoad = (usize, usize);

impl LookupPlaces {
    pub(super) fn new(count: usize) -> Self {
        Self { count, slow_after: SLOW_AFTER, state: Arc::default() }
    }

    /// Waits for a place.
    ///
    /// # Errors
    /// [`EndReason::ResourceLimit`] at a cap on waiting lookups.
    pub(super) async fn take(&self, owner: LookupOwner) -> Result<LookupPlace, EndReason> {
        let (key, mut granted) = {
            let mut state = self.lock();
            if !state.admit_waiting(owner) {
                return Err(EndReason::ResourceLimit);
            }
            let key = state.number();
            let (sender, granted) = oneshot::channel();
            state.change(owner, |lookups| _ = lookups.waiting.insert(key, sender));
            (key, granted)
        };
        let guard = WaitingGuard { key, owner, places: self };
        self.grant();
        let interval = part(self.slow_after, INTERVAL_DIVISOR);
        loop {
            match timeout(interval, &mut granted).await {
                Ok(place) => {
                    drop(guard);
                    return place.map_err(|_| EndReason::ResourceLimit);
                }
                Err(_) => self.end_slow_lookups(interval),
            }
        }
    }

    /// Grants the free places to waiting lookups.
    fn grant(&self) {
        while let Some((grant, place)) = self.next_grant() {
            // If the task of the lookup has ended, the dropped place becomes free again.
            let _ = grant.send(place);
        }
    }

    fn next_grant(&self) -> Option<(oneshot::Sender<LookupPlace>, LookupPlace)> {
        let mut state = self.lock();
        let (key, owner) = state.next_to_run(self.count)?;
        let grant = state.change(owner, |lookups| {
            let grant = lookups.waiting.remove(&key)?;
            lookups.running.increment();
            Some(grant)
        })?;
        let (end, ended) = oneshot::channel();
        state.running.insert(key, RunningLookup { owner, since: Instant::now(), _end: end });
        Some((grant, LookupPlace { key, places: self.clone(), ended }))
    }

    /// Ends the slow lookups that prevent a waiting lookup of an owner with fewer, once in each `interval`.
    fn end_slow_lookups(&self, interval: Duration) {
        let mut slow = self.lock().slow_lookups(interval, part(self.slow_after, SHORTEST_DIVISOR));
        while let Some((load, Reverse(key))) = slow.pop() {
            let mut state = self.lock();
            match state.load_of_running(key) {
                // Since the search, the owner has lost lookups, so that another owner may have more.
                Some(current) if current < load => slow.push((current, Reverse(key))),
                Some(_) if state.is_preventing(key, self.count, self.slow_after) => {
                    state.remove_running(key);
                    drop(state);
                    self.grant();
                }
                _ => {}
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn number(&mut self) -> u64 {
        self.next.increment();
        self.next
    }

    /// Changes the lookups of a circuit, and updates the orders.
    fn change<T>(&mut self, owner: LookupOwner, change: impl FnOnce(&mut LookupsOfCircuit) -> T) -> T {
        let lookups = self.by_owner.entry(circuit_owner(owner)).or_default();
        let before = lookups.waiting;
        if let Some(lookup) = lookups.next_to_run() {
            self.to_run.remove(&lookup);
        }
        if let Some(lookup) = lookups.first_to_refuse() {
            self.to_refuse.remove(&lookup);
        }
        let outcome = lookups.change(owner, change);
        self.waiting = self.waiting.saturating_sub(before).saturating_add(lookups.waiting);
        self.to_run.extend(lookups.next_to_run());
        self.to_refuse.extend(lookups.first_to_refuse());
        if lookups.circuits.is_empty() {
            self.by_owner.remove(&circuit_owner(owner));
        }
        outcome
    }

    fn remove_running(&mut self, key: u64) {
        if let Some(running) = self.running.remove(&key) {
            self.change(running.owner, |lookups| lookups.running.decrement());
        }
    }

    /// The running lookups of the circuit owner and of the circuit of a running lookup.
    fn load_of_running(&self, key: u64) -> Option<OwnerLoad> {
        let owner = self.running.get(&key)?.owner;
        let lookups = self.by_owner.get(&circuit_owner(owner))?;
        Some((lookups.running, lookups.circuits.get(&owner)?.running))
    }

    /// The waiting lookups of a circuit owner and of a circuit.
    fn waiting_load(&self, owner: LookupOwner) -> OwnerLoad {
        let lookups = self.by_owner.get(&circuit_owner(owner));
        let of_circuit = lookups.and_then(|lookups| lookups.circuits.get(&owner));
        (lookups.map_or(0, |lookups| lookups.waiting), of_circuit.map_or(0, |circuit| circuit.waiting.len()))
    }

    /// Whether another lookup of `owner` may wait. At the cap, refuses the newest waiting lookup of the owner with
    /// most, if that owner has more than `owner`.
    fn admit_waiting(&mut self, owner: LookupOwner) -> bool {
        let load = self.waiting_load(owner);
        if owner.is_some() && load.1 >= MAX_WAITING_OF_CIRCUIT {
            return false;
        }
        if self.waiting < MAX_WAITING {
            return true;
        }
        match self.to_refuse.last().copied() {
            Some((highest, newest, fullest)) if highest > load => {
                self.change(fullest, |lookups| lookups.waiting.remove(&newest)).is_some()
            }
            _ => false,
        }
    }

    /// The waiting lookup that runs next, and its circuit, if a place is free.
    fn next_to_run(&self, places: usize) -> Option<(u64, LookupOwner)> {
        if self.running.len() >= places {
            return None;
        }
        self.first_within_share(places).map(|(_, key, owner)| (key, owner))
    }

    /// The waiting lookup that runs next, except for those of circuit owners at their share.
    fn first_within_share(&self, places: usize) -> Option<RankedLookup> {
        // The circuit owner with the fewest lookups is first.
        self.to_run.first().copied().filter(|((of_owner, _), ..)| *of_owner < places.div_ceil(OWNER_DIVISOR))
    }

    /// The lookups that have run for `shortest`, the first to end last. Empty if the last search was less than
    /// `interval` ago, so that many waiting lookups cause few searches.
    fn slow_lookups(&mut self, interval: Duration, shortest: Duration) -> BinaryHeap<(OwnerLoad, Reverse<u64>)> {
        let now = Instant::now();
        if self.checked_at.is_some_and(|checked| now.saturating_duration_since(checked) < interval) {
            return BinaryHeap::new();
        }
        self.checked_at = Some(now);
        let running = self.running.iter();
        let slow = running.filter(|(_, running)| now.saturating_duration_since(running.since) >= shortest);
        slow.filter_map(|(key, _)| Some((self.load_of_running(*key)?, Reverse(*key)))).collect()
    }

    /// Whether a slow running lookup prevents a waiting one of an owner with fewer lookups: of the same circuit owner, if
    /// that one is at its share, or of any other, if no place is free.
    fn is_preventing(&self, key: u64, places: usize, slow_after: Duration) -> bool {
        let (Some(running), Some(load)) = (self.running.get(&key), self.load_of_running(key)) else { return false };
        let is_at_share = load.0 >= places.div_ceil(OWNER_DIVISOR);
        let of_same_owner = self.by_owner.get(&circuit_owner(running.owner)).and_then(LookupsOfOwner::next_to_run);
        let is_all_taken = self.running.len() >= places;
        let age = running.since.elapsed();
        let makes_room =
            |(waiting, ..): RankedLookup| load > waiting && age >= self.slow_after(load, waiting, places, slow_after);
        (is_at_share && of_same_owner.is_some_and(makes_room))
            || (is_all_taken && self.first_within_share(places).is_some_and(makes_room))
    }

    /// The time after which a lookup of a circuit and owner with the lookups `load` loses its place to one of a circuit
    /// and owner with the lookups `waiting`. At most `slow_after`, and less the more lookups wait, so that the last one
    /// waits about as long. The shortest time if `load` is more than twice as high.
    fn slow_after(&self, load: OwnerLoad, waiting: OwnerLoad, places: usize, slow_after: Duration) -> Duration {
        let (more, fewer) = if load.0 == waiting.0 { (load.1, waiting.1) } else { (load.0, waiting.0) };
        let shortest = part(slow_after, SHORTEST_DIVISOR);
        if more > fewer.saturating_mul(2).saturating_add(1) {
            return shortest;
        }
        // As if all lookups waited for the share of one owner.
        let share = places.div_ceil(OWNER_DIVISOR);
        let rounds =
            u32::try_from(share.saturating_add(self.waiting).checked_div(share).unwrap_or(1)).unwrap_or(u32::MAX);
        part(slow_after, rounds).max(shortest)
    }
}

impl LookupsOfOwner {
    fn change<T>(&mut self, owner: LookupOwner, change: impl FnOnce(&mut LookupsOfCircuit) -> T) -> T {
        let circuit = self.circuits.entry(owner).or_default();
        let (running, waiting) = (circuit.running, circuit.waiting.len());
        if let Some(lookup) = circuit.next_to_run(owner) {
            self.to_run.remove(&lookup);
        }
        if let Some(lookup) = circuit.first_to_refuse(owner) {
            self.to_refuse.remove(&lookup);
        }
        let outcome = change(circuit);
        self.running = self.running.saturating_sub(running).saturating_add(circuit.running);
        self.waiting = self.waiting.saturating_sub(waiting).saturating_add(circuit.waiting.len());
        self.to_run.extend(circuit.next_to_run(owner));
        self.to_refuse.extend(circuit.first_to_refuse(owner));
        if circuit.running == 0 && circuit.waiting.is_empty() {
            self.circuits.remove(&owner);
        }
        outcome
    }

    fn next_to_run(&self) -> Option<RankedLookup> {
        self.to_run.first().map(|(of_circuit, key, owner)| ((self.running, *of_circuit), *key, *owner))
    }

    fn first_to_refuse(&self) -> Option<RankedLookup> {
        self.to_refuse.last().map(|(of_circuit, key, owner)| ((self.waiting, *of_circuit), *key, *owner))
    }
}

impl LookupsOfCircuit {
    /// The oldest waiting lookup, if the circuit is below its share.
    fn next_to_run(&self, owner: LookupOwner) -> Option<RankedInOwner> {
        let is_below = owner.is_none() || self.running < MAX_RUNNING_OF_CIRCUIT;
        self.waiting.keys().next().filter(|_| is_below).map(|key| (self.running, *key, owner))
    }

    /// The newest waiting lookup.
    fn first_to_refuse(&self, owner: LookupOwner) -> Option<RankedInOwner> {
        self.waiting.keys().next_back().map(|key| (self.waiting.len(), *key, owner))
    }
}

/// `time`, divided by `divisor`.
fn part(time: Duration, divisor: u32) -> Duration {
    time.checked_div(divisor).unwrap_or(time)
}

fn circuit_owner(owner: LookupOwner) -> Option<Owner> {
    owner.map(|owner| owner.circuit_owner)
}

impl LookupPlace {
    /// Completes when the lookup loses its place. Cancel-safe.
    pub(super) async fn ended(&mut self) {
        let _ = (&mut self.ended).await;
    }
}

impl Drop for LookupPlace {
    fn drop(&mut self) {
        self.places.lock().remove_running(self.key);
        self.places.grant();
    }
}

impl Drop for WaitingGuard<'_> {
    fn drop(&mut self) {
        self.places.lock().change(self.owner, |lookups| _ = lookups.waiting.remove(&self.key));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::base::RelayId;

    /// Less than in a node, because tests run in real time.
    const SLOW_AFTER: Duration = Duration::from_millis(200);

    fn places() -> LookupPlaces {
        LookupPlaces { slow_after: SLOW_AFTER, ..LookupPlaces::new(64) }
    }

    fn owner(relay: u8, circuit: u64) -> LookupOwner {
        Some(RequestOwner { circuit_owner: Owner::Relay(RelayId::from_bytes([relay; 32])), circuit })
    }

    /// A lookup that runs until it loses its place. Returns the time for which it waited.
    fn slow(places: &LookupPlaces, owner: LookupOwner) -> tokio::task::JoinHandle<Option<Duration>> {
        let places = places.clone();
        tokio::spawn(async move {
            let start = Instant::now();
            let mut place = places.take(owner).await.ok()?;
            let waited = start.elapsed();
            place.ended().await;
            Some(waited)
        })
    }

    /// Waits until `count` lookups are refused, so that all others run or wait.
    async fn refused(lookups: &[tokio::task::JoinHandle<Option<Duration>>], count: usize) {
        while lookups.iter().filter(|lookup| lookup.is_finished()).count() < count {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn slow_lookups_of_one_circuit_delay_no_other_circuit() {
        let places = places();
        let slow: Vec<_> = (0..100).map(|_| slow(&places, owner(1, 1))).collect();
        refused(&slow, 100 - MAX_RUNNING_OF_CIRCUIT - MAX_WAITING_OF_CIRCUIT).await;
        for circuit in 2..50 {
            let start = Instant::now();
            drop(places.take(owner(1, circuit)).await.unwrap());
            assert!(start.elapsed() < SLOW_AFTER, "{:?}", start.elapsed());
        }
        slow.iter().for_each(tokio::task::JoinHandle::abort);
    }

    #[tokio::test]
    async fn slow_lookups_of_many_circuits_and_owners_delay_those_of_others_briefly() {
        let places = places();
        let attack: Vec<_> =
            (0..2000_u64).map(|at| slow(&places, owner(u8::try_from(at % 8).unwrap(), 1000 + at % 64))).collect();
        refused(&attack, 2000 - 64 - MAX_WAITING).await;
        for (relay, circuit, times) in [(100, 1, 4), (101, 2, 4), (100, 4, 4)] {
            let start = Instant::now();
            let place = places.take(owner(relay, circuit)).await.unwrap();
            assert!(start.elapsed() <= SLOW_AFTER * times, "{relay}: {:?}", start.elapsed());
            drop(place);
        }
        attack.iter().for_each(tokio::task::JoinHandle::abort);
    }

    /// The time for which a lookup waits for its place.
    async fn waited(places: &LookupPlaces, owner: LookupOwner) -> Duration {
        let start = Instant::now();
        let _place = places.take(owner).await.unwrap();
        start.elapsed()
    }

    #[tokio::test]
    async fn lookups_of_one_client_behind_four_relays_delay_those_behind_others_by_a_fraction_of_a_second() {
        let places = places();
        // Two circuits behind each of four relays fill all places, and no lookup waits.
        let attack: Vec<_> =
            (0..64_u64).map(|at| slow(&places, owner(u8::try_from(at % 4).unwrap(), at % 8))).collect();
        while places.lock().running.len() < 64 {
            tokio::task::yield_now().await;
        }
        for circuit in 100..104 {
            let waited = waited(&places, owner(50, circuit)).await;
            assert!(waited < SLOW_AFTER * 3 / 4, "{waited:?}");
        }
        attack.iter().for_each(tokio::task::JoinHandle::abort);
    }

    #[tokio::test]
    async fn lookups_of_many_circuits_behind_a_relay_delay_those_behind_the_same_relay_for_seconds_only() {
        let places = LookupPlaces { slow_after: SLOW_AFTER, ..LookupPlaces::new(256) };
        // Each circuit has a lookup, and another one when that has lost its place.
        let attack = (0..600).map(|circuit| {
            let places = places.clone();
            tokio::spawn(async move {
                while let Ok(mut place) = places.take(owner(1, circuit)).await {
                    place.ended().await;
                }
            })
        });
        let attack: Vec<_> = attack.collect();
        while places.lock().waiting < 536 {
            tokio::task::yield_now().await;
        }
        for circuit in 1000..1003 {
            let waited = waited(&places, owner(1, circuit)).await;
            // At the usual limit, the places would be free for it after 536 / 64 times the limit.
            assert!(waited <= SLOW_AFTER * 4, "{waited:?}");
        }
        attack.iter().for_each(tokio::task::JoinHandle::abort);
    }

    #[tokio::test]
    async fn a_slow_lookup_keeps_its_place_while_others_are_free() {
        let places = places();
        let mut first = slow(&places, owner(1, 1));
        assert!(tokio::time::timeout(SLOW_AFTER * 4, &mut first).await.is_err(), "the lookup ended");
        drop(places.take(owner(2, 2)).await.unwrap());
        assert!(!first.is_finished());
        first.abort();
    }

    #[tokio::test]
    async fn all_places_are_free_after_all_lookups_ended_or_were_cancelled() {
        let places = places();
        for round in 0..3 {
            let tasks: Vec<_> = (0..300).map(|at| slow(&places, owner(round, at % 40))).collect();
            tokio::time::sleep(SLOW_AFTER * u32::from(round)).await;
            tasks.iter().for_each(tokio::task::JoinHandle::abort);
            for task in tasks {
                let _ = task.await;
            }
            let state = places.lock();
            assert_eq!((state.running.len(), state.waiting), (0, 0), "round {round}");
            assert!(state.by_owner.is_empty() && state.to_run.is_empty() && state.to_refuse.is_empty());
        }
    }

    /// The lookup that runs next and the one to refuse at the cap, by visits of all lookups.
    fn expected(state: &State, places: usize) -> (Option<(u64, LookupOwner)>, Option<u64>) {
        let owners: Vec<LookupOwner> = state.running.values().map(|running| running.owner).collect();
        let waiting = || {
            let circuits = state.by_owner.values().flat_map(|lookups| &lookups.circuits);
            circuits.flat_map(|(owner, circuit)| circuit.waiting.keys().map(|key| (*key, *owner)))
        };
        let load = |owners: &[LookupOwner], owner: LookupOwner| {
            let of_owner = owners.iter().filter(|other| circuit_owner(**other) == circuit_owner(owner)).count();
            (of_owner, owners.iter().filter(|other| **other == owner).count())
        };
        let candidates = waiting().map(|(key, owner)| (load(&owners, owner), key, owner));
        let within_share = candidates.filter(|(load, _, owner)| {
            load.0 < places.div_ceil(OWNER_DIVISOR) && (owner.is_none() || load.1 < MAX_RUNNING_OF_CIRCUIT)
        });
        let of_waiting: Vec<LookupOwner> = waiting().map(|(_, owner)| owner).collect();
        let refused = waiting().map(|(key, owner)| (load(&of_waiting, owner), key)).max().map(|(_, key)| key);
        assert_eq!(state.waiting, of_waiting.len());
        (within_share.min().map(|(_, key, owner)| (key, owner)), refused)
    }

    proptest! {
        #[test]
        fn after_any_changes_the_next_lookup_is_that_of_the_owner_and_circuit_with_the_fewest(
            changes in proptest::collection::vec((0..4_u8, 0..4_u8, 0..4_u64), 1..200)
        ) {
            let places = LookupPlaces::new(40);
            let (mut waiting, mut running) = (BTreeMap::new(), Vec::new());
            for (change, relay, circuit) in changes {
                let lookup_owner = owner(relay, circuit).filter(|_| relay > 0);
                match change {
                    0 | 1 => {
                        let mut state = places.lock();
                        let ((sender, receiver), key) = (oneshot::channel(), state.number());
                        state.change(lookup_owner, |lookups| _ = lookups.waiting.insert(key, sender));
                        waiting.insert(key, (lookup_owner, receiver));
                    }
                    2 if !running.is_empty() => drop(running.swap_remove(usize::from(relay) % running.len())),
                    3 if relay == 3 => {
                        if let Some((key, (owner, receiver))) = waiting.pop_first() {
                            drop(WaitingGuard { key, owner, places: &places });
                            drop(receiver);
                        }
                    }
                    _ => places.grant(),
                }
                let granted: Vec<u64> = waiting.iter_mut().filter_map(|(key, (_, receiver))| {
                    running.push(receiver.try_recv().ok()?);
                    Some(*key)
                }).collect();
                granted.iter().for_each(|key| _ = waiting.remove(key));
                let state = places.lock();
                prop_assert_eq!(state.running.len(), running.len());
                let refused = state.to_refuse.last().map(|(_, key, _)| *key);
                let next = state.first_within_share(places.count).map(|(_, key, owner)| (key, owner));
                prop_assert_eq!((next, refused), expected(&state, places.count));
            }
        }
    }
}
