//! The places of concurrent lookups, shared among circuits.
//!
//! A circuit and the owner of circuits each have a share of the places. Beyond the share, or when all places are taken,
//! a lookup waits. A free place goes to the circuit owner with fewest lookups, then to its circuit with fewest, then to
//! the oldest lookup. A lookup that has run for [`SLOW_AFTER`] loses its place to a waiting lookup whose circuit owner
//! or circuit has fewer. So slow name servers delay the lookups of other circuits only briefly.

use core::{cmp::Reverse, time::Duration};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::{
    sync::oneshot,
    time::{Instant, timeout},
};

use crate::{base::Owner, delegated::limits::RequestOwner, wire::EndReason};

/// Cap on concurrent lookups of a circuit.
const MAX_RUNNING_OF_CIRCUIT: usize = 8;
/// A circuit owner gets at most the number of places divided by this divisor.
const OWNER_DIVISOR: usize = 4;
/// Cap on waiting lookups in total.
const MAX_WAITING: usize = 1024;
/// Cap on waiting lookups of a circuit.
const MAX_WAITING_OF_CIRCUIT: usize = 64;
/// Time after which a running lookup may lose its place.
const SLOW_AFTER: Duration = Duration::from_secs(2);
/// The number of times that a waiting lookup searches for a slow lookup in each [`SLOW_AFTER`].
const CHECKS_PER_SLOW: u32 = 8;

/// The circuit of a lookup and its owner; `None` for lookups of the exit itself, which count as one circuit owner.
type LookupOwner = Option<RequestOwner>;

#[derive(Clone)]
pub(super) struct LookupPlaces {
    count: usize,
    slow_after: Duration,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    next: u64,
    running: BTreeMap<u64, RunningLookup>,
    waiting: BTreeMap<u64, WaitingLookup>,
}

struct RunningLookup {
    owner: LookupOwner,
    since: Instant,
    /// Dropping this sender ends the lookup.
    _end: oneshot::Sender<()>,
}

struct WaitingLookup {
    owner: LookupOwner,
    /// Sends the place. Dropping this sender refuses the lookup.
    grant: oneshot::Sender<LookupPlace>,
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
            state.waiting.insert(key, WaitingLookup { owner, grant: sender });
            (key, granted)
        };
        let guard = WaitingGuard { key, places: self };
        self.grant();
        let check = self.slow_after.checked_div(CHECKS_PER_SLOW).unwrap_or(self.slow_after);
        loop {
            match timeout(check, &mut granted).await {
                Ok(place) => {
                    drop(guard);
                    return place.map_err(|_| EndReason::ResourceLimit);
                }
                Err(_) => {
                    self.lock().end_slow_lookup(owner, self.count, self.slow_after);
                    self.grant();
                }
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
        let key = state.next_to_run(self.count)?;
        let WaitingLookup { owner, grant } = state.waiting.remove(&key)?;
        let (end, ended) = oneshot::channel();
        state.running.insert(key, RunningLookup { owner, since: Instant::now(), _end: end });
        Some((grant, LookupPlace { key, places: self.clone(), ended }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn number(&mut self) -> u64 {
        self.next = self.next.saturating_add(1);
        self.next
    }

    fn running_loads(&self) -> OwnerLoads {
        OwnerLoads::of(self.running.values().map(|running| running.owner))
    }

    /// Whether another lookup of `owner` may wait. At the cap, refuses the newest waiting lookup of the owner with
    /// most, if that owner has more than `owner`.
    fn admit_waiting(&mut self, owner: LookupOwner) -> bool {
        let loads = OwnerLoads::of(self.waiting.values().map(|waiting| waiting.owner));
        let load = loads.load(owner);
        if owner.is_some() && load.1 >= MAX_WAITING_OF_CIRCUIT {
            return false;
        }
        if self.waiting.len() < MAX_WAITING {
            return true;
        }
        match self.waiting.iter().map(|(key, waiting)| (loads.load(waiting.owner), *key)).max() {
            Some((highest, newest)) if highest > load => self.waiting.remove(&newest).is_some(),
            _ => false,
        }
    }

    fn within_share(owner: LookupOwner, load: OwnerLoad, places: usize) -> bool {
        let of_owner = places.div_ceil(OWNER_DIVISOR);
        load.0 < of_owner && (owner.is_none() || load.1 < MAX_RUNNING_OF_CIRCUIT)
    }

    fn next_to_run(&self, places: usize) -> Option<u64> {
        if self.running.len() >= places {
            return None;
        }
        let loads = self.running_loads();
        let candidates = self.waiting.iter().map(|(key, waiting)| (loads.load(waiting.owner), *key, waiting.owner));
        candidates.filter(|(load, _, owner)| Self::within_share(*owner, *load, places)).min().map(|(_, key, _)| key)
    }

    /// Ends a slow lookup of an owner with more lookups than `owner`, if the slow lookup prevents one of `owner`.
    fn end_slow_lookup(&mut self, owner: LookupOwner, places: usize, slow_after: Duration) {
        let (loads, now) = (self.running_loads(), Instant::now());
        let load = loads.load(owner);
        if owner.is_some() && load.1 >= MAX_RUNNING_OF_CIRCUIT {
            return;
        }
        let owner_is_full = load.0 >= places.div_ceil(OWNER_DIVISOR);
        if !owner_is_full && self.running.len() < places {
            return;
        }
        let slow_lookups = self.running.iter().filter(|(_, running)| {
            (!owner_is_full || circuit_owner(running.owner) == circuit_owner(owner))
                && now.saturating_duration_since(running.since) >= slow_after
        });
        let oldest_of_fullest = slow_lookups.map(|(key, running)| (loads.load(running.owner), Reverse(*key))).max();
        if let Some((highest, Reverse(key))) = oldest_of_fullest
            && highest > load
        {
            self.running.remove(&key);
        }
    }
}

/// The numbers of lookups of each circuit owner and circuit.
struct OwnerLoads {
    of_owner: BTreeMap<Option<Owner>, usize>,
    of_circuit: BTreeMap<LookupOwner, usize>,
}

impl OwnerLoads {
    fn of(owners: impl Iterator<Item = LookupOwner>) -> Self {
        let mut loads = Self { of_owner: BTreeMap::new(), of_circuit: BTreeMap::new() };
        for owner in owners {
            let of_owner = loads.of_owner.entry(circuit_owner(owner)).or_default();
            *of_owner = of_owner.saturating_add(1);
            let of_circuit = loads.of_circuit.entry(owner).or_default();
            *of_circuit = of_circuit.saturating_add(1);
        }
        loads
    }

    fn load(&self, owner: LookupOwner) -> OwnerLoad {
        let of_owner = self.of_owner.get(&circuit_owner(owner)).copied().unwrap_or_default();
        (of_owner, self.of_circuit.get(&owner).copied().unwrap_or_default())
    }
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
        self.places.lock().running.remove(&self.key);
        self.places.grant();
    }
}

impl Drop for WaitingGuard<'_> {
    fn drop(&mut self) {
        self.places.lock().waiting.remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
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

    #[tokio::test]
    async fn a_slow_lookup_keeps_its_place_while_others_are_free() {
        let places = places();
        let first = slow(&places, owner(1, 1));
        tokio::time::sleep(SLOW_AFTER * 4).await;
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
            assert_eq!((state.running.len(), state.waiting.len()), (0, 0), "round {round}");
        }
    }
}
