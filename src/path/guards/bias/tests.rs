#[cfg(target_arch = "wasm32")]
use wasm_bindgen_test::wasm_bindgen_test as test;

use rand::{RngExt as _, SeedableRng as _, rngs::ChaCha20Rng};

use super::*;
use crate::directory::{
    Parameters,
    fixture::{NOW, consensus_at, key, listed, profile},
};

const RELAYS: u16 = 400;
const DAYS: u32 = 30;
const CLIENTS: u64 = 40;
const CIRCUITS_A_DAY: usize = 100;
/// Circuits that fail for no one's fault.
const NATURAL: f64 = 0.03;

/// Consensuses of thirty days, and the identities of their relays.
fn days() -> (Vec<Consensus>, Vec<RelayId>) {
    let consensus = |day| {
        let relays = (1..=RELAYS).map(|number| listed(profile(number)));
        consensus_at(NOW.after(DAY * day), relays, &Parameters::default()).0
    };
    ((0..DAYS).map(consensus).collect(), (1..=RELAYS).map(|number| key(number).id()).collect())
}

/// A client, and its first primaries.
struct Simulated {
    guards: GuardSample,
    first: Vec<RelayId>,
    rng: ChaCha20Rng,
}

impl Simulated {
    fn new(seed: u64, consensus: &Consensus) -> Self {
        let (mut guards, mut rng) = (GuardSample::default(), ChaCha20Rng::seed_from_u64(seed));
        guards.update(consensus, &mut rng);
        let first = guards.primaries().map(|guard| guard.identity).collect();
        Self { guards, first, rng }
    }

    fn count(&mut self, guard: RelayId, next: RelayId, works: impl Fn(&RelayId, &RelayId) -> f64) {
        let built = self.rng.random::<f64>() < works(&guard, &next) * (1.0 - NATURAL);
        self.guards.handle_circuit(&guard, Some(next), built);
    }

    /// Lives through all days, in a network in which `works` returns the chance of a circuit over a guard and a next
    /// relay.
    fn live(&mut self, days: &[Consensus], relays: &[RelayId], works: impl Fn(&RelayId, &RelayId) -> f64) {
        for consensus in days {
            self.guards.update(consensus, &mut self.rng);
            for _ in 0..CIRCUITS_A_DAY {
                let guard = self.guards.primaries().next().unwrap().identity;
                let next = relays[self.rng.random_range(0..relays.len())];
                if next != guard {
                    self.count(guard, next, &works);
                }
                if let Some((guard, next)) = self.guards.measurement(consensus, &mut self.rng) {
                    self.count(guard.identity(), next, &works);
                }
            }
        }
    }

    fn has(&self, guard: &RelayId) -> bool {
        self.guards.primaries().any(|it| it.identity == *guard)
    }
}

#[test]
fn honest_guards_are_kept_though_half_of_the_middles_fail_circuits_behind_them() {
    let (days, relays) = days();
    for seed in 0..CLIENTS {
        let mut client = Simulated::new(seed, &days[0]);
        let guard = client.first[0];
        // The worst case: hostile middles work behind every guard except the one that they want to push out.
        let hostile: BTreeSet<RelayId> = relays.iter().step_by(2).copied().collect();
        let works = |by: &RelayId, next: &RelayId| if *by == guard && hostile.contains(next) { 0.0 } else { 1.0 };
        client.live(&days, &relays, works);
        assert!(client.first.clone().iter().all(|guard| client.has(guard)), "seed {seed}");
    }
}

#[test]
fn a_guard_that_fails_circuits_to_all_but_its_accomplices_is_replaced() {
    let (days, relays) = days();
    let mut replaced = 0;
    for seed in 0..CLIENTS {
        let mut client = Simulated::new(seed, &days[0]);
        let guard = client.first[0];
        // One circuit of ten ends at an accomplice.
        client.live(&days, &relays, |by, _| if *by == guard { 0.1 } else { 1.0 });
        replaced += u64::from(!client.has(&guard));
        assert!(client.has(&client.first[1].clone()), "seed {seed}");
    }
    assert!(replaced * 10 >= CLIENTS * 9, "{replaced} of {CLIENTS} replaced the guard");
}

#[test]
fn a_network_that_fails_behind_every_guard_replaces_none() {
    let (days, relays) = days();
    let mut client = Simulated::new(1, &days[0]);
    client.live(&days[..27], &relays, |_, _| 0.1);
    assert_eq!(client.guards.suspects(&days[0]).count(), 1, "the guard is suspect");
    assert!(client.first.clone().iter().all(|guard| client.has(guard)));
}

#[test]
fn only_failures_in_twenty_blocks_of_addresses_replace_a_guard() {
    for (blocks, is_replaced) in [(19, false), (20, true)] {
        let relays = (1..=200).map(|number| {
            let mut profile = profile(number);
            let block = u8::try_from(number % blocks).unwrap();
            profile.addresses = vec![std::net::SocketAddr::from(([30, block, number.to_be_bytes()[1], 1], 1))];
            listed(profile)
        });
        let consensus = consensus_at(NOW, relays, &Parameters::default()).0;
        let mut client = Simulated::new(2, &consensus);
        let (first, second) = (client.first[0], client.first[1]);
        for next in (1..=200).map(|number| key(number).id()) {
            for _ in 0..MIN_CIRCUITS {
                client.guards.handle_circuit(&first, Some(next), false);
                client.guards.handle_circuit(&second, Some(next), true);
            }
        }
        client.guards.update(&consensus, &mut client.rng);
        assert_eq!(!client.has(&first), is_replaced, "{blocks} blocks");
    }
}

#[test]
fn a_relay_that_fails_behind_one_guard_is_avoided_there_alone() {
    let (days, relays) = days();
    let mut client = Simulated::new(3, &days[0]);
    let (first, second) = (client.first[0], client.first[1]);
    for _ in 0..MIN_CIRCUITS {
        client.guards.handle_circuit(&first, Some(relays[7]), false);
        client.guards.handle_circuit(&first, Some(relays[8]), true);
        client.guards.handle_circuit(&second, Some(relays[7]), true);
    }
    assert_eq!(client.guards.avoided_next(&days[0], &first), [relays[7]]);
    assert_eq!(client.guards.avoided_next(&days[0], &second), []);
    // More than a quarter of all relays: rather the guard's fault.
    for next in &relays[..=101] {
        for _ in 0..MIN_CIRCUITS {
            client.guards.handle_circuit(&first, Some(*next), false);
        }
    }
    assert_eq!(client.guards.avoided_next(&days[0], &first), []);
}

#[test]
fn an_early_end_makes_a_built_circuit_a_failed_one() {
    let (days, relays) = days();
    let mut client = Simulated::new(4, &days[0]);
    let guard = client.first[0];
    for _ in 0..MIN_CIRCUITS {
        client.guards.handle_circuit(&guard, Some(relays[7]), true);
        client.guards.handle_early_end(&guard, Some(relays[7]));
    }
    assert_eq!(client.guards.avoided_next(&days[0], &guard), [relays[7]]);
}

#[test]
fn counts_of_pairs_are_capped_stored_and_halved_after_two_weeks() {
    let (days, relays) = days();
    let mut client = Simulated::new(5, &days[0]);
    let guard = client.first[0];
    for _ in 0..3 {
        client.guards.handle_circuit(&guard, Some(relays[7]), true);
    }
    for number in 0..2000_u16 {
        client.guards.handle_circuit(&guard, Some(key(number.saturating_add(1000)).id()), true);
    }
    let count = |guards: &GuardSample| {
        let guard = guards.guards.iter().find(|it| it.identity == guard).unwrap();
        (guard.next.len(), guard.next.pairs.get(&relays[7]).map(|count| count.begun))
    };
    assert_eq!(count(&client.guards), (MAX_NEXT, Some(3)), "the pairs with the fewest circuits are evicted");
    let encoded = client.guards.encode();
    assert!(encoded.len() < 80_000, "{}", encoded.len());
    let mut guards = GuardSample::decode(&encoded).unwrap();
    assert_eq!(count(&guards), (MAX_NEXT, Some(3)));
    guards.update(&days[13], &mut client.rng);
    assert_eq!(count(&guards), (MAX_NEXT, Some(3)));
    guards.update(&days[14], &mut client.rng);
    assert_eq!(count(&guards), (1, Some(1)));
}
