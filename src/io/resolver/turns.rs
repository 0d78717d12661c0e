//! The places of concurrent lookups, shared among the circuits that ask.
//!
//! A circuit, and a neighbour, has a share of the places. Beyond it, and when all places are taken, a lookup waits. A free
//! place goes to the neighbour with fewest lookups, then to its circuit with fewest, then to the first that came. A
//! lookup that has been running for [`SLOW`] makes room for a waiting one whose neighbour or circuit has fewer. So slow
//! name servers delay nobody else for long.

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

/// Lookups of a circuit that run at once.
const OF_CIRCUIT: usize = 8;
/// The part of the places that one neighbour may have.
const NEIGHBOUR_PART: usize = 4;
/// Most waiting lookups in all, and of a circuit.
const WAITING: usize = 1024;
const WAITING_OF_CIRCUIT: usize = 64;
/// Time after which a lookup may have to make room.
const SLOW: Duration = Duration::from_secs(2);
/// The part of [`SLOW`] after which a waiting lookup searches for a slow one, again and again.
const CHECKS: u32 = 8;

/// Whose lookup it is; `None` for the exit's own ones, which count as one neighbour.
type LookupOwner = Option<RequestOwner>;

#[derive(Clone)]
pub(super) struct LookupPlaces {
    places: usize,
    slow: Duration,
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
    /// Its drop ends the lookup.
    _ends: oneshot::Sender<()>,
}

struct WaitingLookup {
    owner: LookupOwner,
    /// Its drop refuses the lookup.
    granted: oneshot::Sender<LookupPlace>,
}

/// The place of a running lookup.
pub(super) struct LookupPlace {
    key: u64,
    turns: LookupPlaces,
    ended: oneshot::Receiver<()>,
}

/// Removes a waiting lookup that is given up.
struct WaitingGuard<'a> {
    key: u64,
    turns: &'a LookupPlaces,
}

/// The numbers of lookups of an owner: of its neighbour, and of its circuit.
type OwnerLoad = (usize, usize);

impl LookupPlaces {
    pub(super) fn new(places: usize) -> Self {
        Self { places, slow: SLOW, state: Arc::default() }
    }

    /// Waits for a place.
    pub(super) async fn take(&self, owner: LookupOwner) -> Result<LookupPlace, EndReason> {
        let (key, mut granted) = {
            let mut state = self.lock();
            if !state.makes_room_to_wait(owner) {
                return Err(EndReason::ResourceLimit);
            }
            let key = state.number();
            let (sender, granted) = oneshot::channel();
            state.waiting.insert(key, WaitingLookup { owner, granted: sender });
            (key, granted)
        };
        let guard = WaitingGuard { key, turns: self };
        self.grant();
        let check = self.slow.checked_div(CHECKS).unwrap_or(self.slow);
        loop {
            match timeout(check, &mut granted).await {
                Ok(turn) => {
                    drop(guard);
                    return turn.map_err(|_| EndReason::ResourceLimit);
                }
                Err(_) => {
                    self.lock().end_a_slow_one(owner, self.places, self.slow);
                    self.grant();
                }
            }
        }
    }

    /// Gives the free places to waiting lookups.
    fn grant(&self) {
        while let Some((granted, turn)) = self.next_grant() {
            // The turn of a lookup that was given up frees its place again.
            let _ = granted.send(turn);
        }
    }

    fn next_grant(&self) -> Option<(oneshot::Sender<LookupPlace>, LookupPlace)> {
        let mut state = self.lock();
        let key = state.next_to_run(self.places)?;
        let WaitingLookup { owner, granted } = state.waiting.remove(&key)?;
        let (ends, ended) = oneshot::channel();
        state.running.insert(key, RunningLookup { owner, since: Instant::now(), _ends: ends });
        Some((granted, LookupPlace { key, turns: self.clone(), ended }))
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

    /// Whether another lookup of `owner` may wait. If too many wait, the newest of the fullest owner is refused.
    fn makes_room_to_wait(&mut self, owner: LookupOwner) -> bool {
        let loads = OwnerLoads::of(self.waiting.values().map(|waiting| waiting.owner));
        let load = loads.load(owner);
        if owner.is_some() && load.1 >= WAITING_OF_CIRCUIT {
            return false;
        }
        if self.waiting.len() < WAITING {
            return true;
        }
        match self.waiting.iter().map(|(key, waiting)| (loads.load(waiting.owner), *key)).max() {
            Some((most, newest)) if most > load => self.waiting.remove(&newest).is_some(),
            _ => false,
        }
    }

    fn within_share(owner: LookupOwner, load: OwnerLoad, places: usize) -> bool {
        let of_neighbour = places.div_ceil(NEIGHBOUR_PART);
        load.0 < of_neighbour && (owner.is_none() || load.1 < OF_CIRCUIT)
    }

    fn next_to_run(&self, places: usize) -> Option<u64> {
        if self.running.len() >= places {
            return None;
        }
        let loads = self.running_loads();
        let candidates = self.waiting.iter().map(|(key, waiting)| (loads.load(waiting.owner), *key, waiting.owner));
        candidates.filter(|(load, _, owner)| Self::within_share(*owner, *load, places)).min().map(|(_, key, _)| key)
    }

    /// Ends a slow lookup of an owner with more lookups than `owner`, if `owner` lacks a place because of it.
    fn end_a_slow_one(&mut self, owner: LookupOwner, places: usize, slow: Duration) {
        let (loads, now) = (self.running_loads(), Instant::now());
        let load = loads.load(owner);
        if owner.is_some() && load.1 >= OF_CIRCUIT {
            return;
        }
        let neighbour_is_full = load.0 >= places.div_ceil(NEIGHBOUR_PART);
        if !neighbour_is_full && self.running.len() < places {
            return;
        }
        let slow_ones = self.running.iter().filter(|(_, running)| {
            (!neighbour_is_full || neighbour(running.owner) == neighbour(owner))
                && now.saturating_duration_since(running.since) >= slow
        });
        let oldest_of_fullest = slow_ones.map(|(key, running)| (loads.load(running.owner), Reverse(*key))).max();
        if let Some((most, Reverse(key))) = oldest_of_fullest
            && most > load
        {
            self.running.remove(&key);
        }
    }
}

/// The numbers of lookups of each neighbour and circuit.
struct OwnerLoads {
    of_neighbour: BTreeMap<Option<Owner>, usize>,
    of_circuit: BTreeMap<LookupOwner, usize>,
}

impl OwnerLoads {
    fn of(owners: impl Iterator<Item = LookupOwner>) -> Self {
        let mut loads = Self { of_neighbour: BTreeMap::new(), of_circuit: BTreeMap::new() };
        for owner in owners {
            let of_neighbour = loads.of_neighbour.entry(neighbour(owner)).or_default();
            *of_neighbour = of_neighbour.saturating_add(1);
            let of_circuit = loads.of_circuit.entry(owner).or_default();
            *of_circuit = of_circuit.saturating_add(1);
        }
        loads
    }

    fn load(&self, owner: LookupOwner) -> OwnerLoad {
        let of_neighbour = self.of_neighbour.get(&neighbour(owner)).copied().unwrap_or_default();
        (of_neighbour, self.of_circuit.get(&owner).copied().unwrap_or_default())
    }
}

fn neighbour(owner: LookupOwner) -> Option<Owner> {
    owner.map(|owner| owner.neighbour)
}

impl LookupPlace {
    /// Completes when the lookup has to make room. Cancel-safe.
    pub(super) async fn ended(&mut self) {
        let _ = (&mut self.ended).await;
    }
}

impl Drop for LookupPlace {
    fn drop(&mut self) {
        self.turns.lock().running.remove(&self.key);
        self.turns.grant();
    }
}

impl Drop for WaitingGuard<'_> {
    fn drop(&mut self) {
        self.turns.lock().waiting.remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::RelayId;

    /// Less than in a node, because tests run in real time.
    const SLOW: Duration = Duration::from_millis(200);

    fn turns() -> LookupPlaces {
        LookupPlaces { slow: SLOW, ..LookupPlaces::new(64) }
    }

    fn owner(neighbour: u8, circuit: u64) -> LookupOwner {
        Some(RequestOwner { neighbour: Owner::Relay(RelayId::from_bytes([neighbour; 32])), circuit })
    }

    /// A lookup that runs until it has to make room.
    fn slow(turns: &LookupPlaces, owner: LookupOwner) -> tokio::task::JoinHandle<Option<Duration>> {
        let turns = turns.clone();
        tokio::spawn(async move {
            let start = Instant::now();
            let mut turn = turns.take(owner).await.ok()?;
            let waited = start.elapsed();
            turn.ended().await;
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
        let turns = turns();
        let slow: Vec<_> = (0..100).map(|_| slow(&turns, owner(1, 1))).collect();
        refused(&slow, 100 - OF_CIRCUIT - WAITING_OF_CIRCUIT).await;
        for circuit in 2..50 {
            let start = Instant::now();
            drop(turns.take(owner(1, circuit)).await.unwrap());
            assert!(start.elapsed() < SLOW, "{:?}", start.elapsed());
        }
        slow.iter().for_each(tokio::task::JoinHandle::abort);
    }

    #[tokio::test]
    async fn slow_lookups_of_many_circuits_and_neighbours_delay_those_behind_others_for_little() {
        let turns = turns();
        let attack: Vec<_> =
            (0..2000_u64).map(|at| slow(&turns, owner(u8::try_from(at % 8).unwrap(), 1000 + at % 64))).collect();
        refused(&attack, 2000 - 64 - WAITING).await;
        for (neighbour, circuit, times) in [(100, 1, 4), (101, 2, 4), (100, 4, 4)] {
            let start = Instant::now();
            let turn = turns.take(owner(neighbour, circuit)).await.unwrap();
            assert!(start.elapsed() <= SLOW * times, "{neighbour}: {:?}", start.elapsed());
            drop(turn);
        }
        attack.iter().for_each(tokio::task::JoinHandle::abort);
    }

    #[tokio::test]
    async fn a_lookup_makes_room_only_when_it_is_slow_and_places_lack() {
        let turns = turns();
        let first = slow(&turns, owner(1, 1));
        tokio::time::sleep(SLOW * 4).await;
        drop(turns.take(owner(2, 2)).await.unwrap());
        assert!(!first.is_finished());
        first.abort();
    }

    #[tokio::test]
    async fn places_are_free_again_after_all_lookups_ended_or_were_given_up() {
        let turns = turns();
        for round in 0..3 {
            let tasks: Vec<_> = (0..300).map(|at| slow(&turns, owner(round, at % 40))).collect();
            tokio::time::sleep(SLOW * u32::from(round)).await;
            tasks.iter().for_each(tokio::task::JoinHandle::abort);
            for task in tasks {
                let _ = task.await;
            }
            let state = turns.lock();
            assert_eq!((state.running.len(), state.waiting.len()), (0, 0), "round {round}");
        }
    }
}
