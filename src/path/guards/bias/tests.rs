//! Tests of the counts of circuits by guard and next relay, with simulated clients over thirty days.

use std::collections::BTreeSet;

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
const CIRCUITS_PER_DAY: usize = 100;
/// The probability that a circuit fails though no relay is hostile.
const NATURAL_FAILURES: f64 = 0.03;

/// Consensuses of thirty days, and the identities of their relays.
fn days() -> (Vec<Consensus>, Vec<RelayId>) {
    let parameters = Parameters::default().with("path.layer-2-guards", 0).unwrap();
    let consensus = |day| {
        let relays = (1..=RELAYS).map(|number| listed(profile(number)));
        consensus_at(NOW.after(DAY * day), relays, &parameters).0
    };
    ((0..DAYS).map(consensus).collect(), (1..=RELAYS).map(|number| key(number).id()).collect())
}

/// A client, and its initial primaries.
struct SimulatedClient {
    guards: GuardSample,
    primaries: Vec<RelayId>,
    rng: ChaCha20Rng,
}

impl SimulatedClient {
    fn new(seed: u64, consensus: &Consensus) -> Self {
        let (mut guards, mut rng) = (GuardSample::default(), ChaCha20Rng::seed_from_u64(seed));
        guards.update(consensus, &mut rng);
        let primaries = guards.primaries().map(|guard| guard.identity).collect();
        Self { guards, primaries, rng }
    }

    /// Counts a circuit over `guard` and `next`. The circuit is built with the result of `probability`, reduced by
    /// [`NATURAL_FAILURES`].
    fn count(&mut self, guard: RelayId, next: RelayId, probability: impl Fn(&RelayId, &RelayId) -> f64) {
        let built = self.rng.random::<f64>() < probability(&guard, &next) * (1.0 - NATURAL_FAILURES);
        self.guards.handle_circuit(&guard, Some(next), built);
    }

    /// Simulates the circuits of all `days`. `probability` returns the probability that a circuit over a guard and a
    /// next relay is built.
    fn run(&mut self, days: &[Consensus], relays: &[RelayId], probability: impl Fn(&RelayId, &RelayId) -> f64) {
        for consensus in days {
            self.guards.update(consensus, &mut self.rng);
            for _ in 0..CIRCUITS_PER_DAY {
                let guard = self.guards.primaries().next().unwrap().identity;
                let next = relays[self.rng.random_range(0..relays.len())];
                if next != guard {
                    self.count(guard, next, &probability);
                }
                if let Some((guard, next)) = self.guards.measurement(consensus, &mut self.rng) {
                    self.count(guard.identity(), next, &probability);
                }
            }
        }
    }

    /// Simulates the circuits of all `days` over layer-2 guards. `probability` returns the probability that a circuit
    /// over a guard, a layer-2 guard and any relay is built.
    fn run_layer_two(
        &mut self,
        days: &[Consensus],
        relays: &[RelayId],
        probability: impl Fn(&RelayId, &RelayId, &RelayId) -> f64,
    ) {
        for consensus in days {
            self.guards.update(consensus, &mut self.rng);
            for _ in 0..CIRCUITS_PER_DAY / 2 {
                let guard = self.guards.primaries().next().unwrap().identity;
                let layer_two = self.guards.layer_two();
                let next = layer_two[self.rng.random_range(0..layer_two.len())];
                let third = relays[self.rng.random_range(0..relays.len())];
                self.count(guard, next, |guard, next| probability(guard, next, &third));
                if let Some((guard, next)) = self.guards.measurement(consensus, &mut self.rng) {
                    let guard = guard.identity();
                    self.count(guard, next, |guard, next| probability(guard, next, &third));
                }
            }
        }
    }

    /// Whether `guard` is still a primary.
    fn has(&self, guard: &RelayId) -> bool {
        self.guards.primaries().any(|it| it.identity == *guard)
    }
}

#[test]
fn honest_guards_are_kept_though_half_of_the_middles_fail_circuits_behind_them() {
    let (days, relays) = days();
    for seed in 0..CLIENTS {
        let mut client = SimulatedClient::new(seed, &days[0]);
        let guard = client.primaries[0];
        // The worst case: hostile middles fail circuits only behind the attacked guard.
        let hostile: BTreeSet<RelayId> = relays.iter().step_by(2).copied().collect();
        let probability = |by: &RelayId, next: &RelayId| if *by == guard && hostile.contains(next) { 0.0 } else { 1.0 };
        client.run(&days, &relays, probability);
        assert!(client.primaries.clone().iter().all(|guard| client.has(guard)), "seed {seed}");
    }
}

/// Two consensuses a day for thirty days, with four layer-2 guards, and the identities of their relays.
fn half_days_with_layer_two() -> (Vec<Consensus>, Vec<RelayId>) {
    let parameters =
        Parameters::default().with("path.layer-2-guards", 4).unwrap().with("path.layer-2-network", 0).unwrap();
    let consensus = |half_day| {
        let relays = (1..=RELAYS).map(|number| listed(profile(number)));
        consensus_at(NOW.after(DAY / 2 * half_day), relays, &parameters).0
    };
    ((0..DAYS * 2).map(consensus).collect(), (1..=RELAYS).map(|number| key(number).id()).collect())
}

#[test]
fn honest_guards_are_kept_though_half_of_the_layer_two_guards_and_middles_fail_circuits() {
    let (half_days, relays) = half_days_with_layer_two();
    let hostile: BTreeSet<RelayId> = relays.iter().step_by(2).copied().collect();
    let mut kept_honest = 0;
    for seed in 0..CLIENTS {
        let mut client = SimulatedClient::new(seed, &half_days[0]);
        let guard = client.primaries[0];
        // The worst case: hostile relays fail circuits only behind the attacked guard.
        client.run_layer_two(&half_days, &relays, |by, next, third| {
            f64::from(u8::from(*by != guard || !(hostile.contains(next) || hostile.contains(third))))
        });
        assert!(client.primaries.clone().iter().all(|guard| client.has(guard)), "seed {seed}");
        kept_honest += client.guards.layer_two().iter().filter(|relay| !hostile.contains(relay)).count();
    }
    let all = usize::try_from(CLIENTS).unwrap() * 4;
    assert!(kept_honest * 10 > all * 7, "hostile layer-2 guards are replaced: {kept_honest} of {all} are honest");
}

#[test]
fn a_guard_that_fails_circuits_over_all_layer_two_guards_is_replaced() {
    let (half_days, relays) = half_days_with_layer_two();
    let mut replaced = 0;
    for seed in 0..CLIENTS {
        let mut client = SimulatedClient::new(seed, &half_days[0]);
        let guard = client.primaries[0];
        client.run_layer_two(&half_days, &relays, |by, _, _| if *by == guard { 0.1 } else { 1.0 });
        replaced += u64::from(!client.has(&guard));
        assert!(client.has(&client.primaries[1].clone()), "seed {seed}");
    }
    assert!(replaced * 10 >= CLIENTS * 9, "{replaced} of {CLIENTS} replaced the guard");
}

#[test]
fn a_guard_that_fails_circuits_to_all_but_its_accomplices_is_replaced() {
    let (days, relays) = days();
    let mut replaced = 0;
    for seed in 0..CLIENTS {
        let mut client = SimulatedClient::new(seed, &days[0]);
        let guard = client.primaries[0];
        // One circuit in ten continues to an accomplice, and is built.
        client.run(&days, &relays, |by, _| if *by == guard { 0.1 } else { 1.0 });
        replaced += u64::from(!client.has(&guard));
        assert!(client.has(&client.primaries[1].clone()), "seed {seed}");
    }
    assert!(replaced * 10 >= CLIENTS * 9, "{replaced} of {CLIENTS} replaced the guard");
}

#[test]
fn circuits_that_fail_behind_every_guard_remove_no_guard() {
    let (days, relays) = days();
    let mut client = SimulatedClient::new(1, &days[0]);
    client.run(&days[..27], &relays, |_, _| 0.1);
    assert_eq!(client.guards.suspects(&days[0]).count(), 1, "the guard is suspect");
    assert!(client.primaries.clone().iter().all(|guard| client.has(guard)));
}

#[test]
fn a_guard_is_removed_only_for_failing_relays_in_twenty_address_blocks() {
    for (blocks, removed) in [(19, false), (20, true)] {
        let relays = (1..=200).map(|number| {
            let mut profile = profile(number);
            let block = u8::try_from(number % blocks).unwrap();
            profile.addresses = vec![std::net::SocketAddr::from(([30, block, number.to_be_bytes()[1], 1], 1))];
            listed(profile)
        });
        let consensus = consensus_at(NOW, relays, &Parameters::default()).0;
        let mut client = SimulatedClient::new(2, &consensus);
        let (first, second) = (client.primaries[0], client.primaries[1]);
        for next in (1..=200).map(|number| key(number).id()) {
            for _ in 0..MIN_RATED_CIRCUITS {
                client.guards.handle_circuit(&first, Some(next), false);
                client.guards.handle_circuit(&second, Some(next), true);
            }
        }
        client.guards.update(&consensus, &mut client.rng);
        assert_eq!(!client.has(&first), removed, "{blocks} blocks");
    }
}

#[test]
fn a_relay_that_fails_behind_one_guard_is_avoided_there_alone() {
    let (days, relays) = days();
    let mut client = SimulatedClient::new(3, &days[0]);
    let (first, second) = (client.primaries[0], client.primaries[1]);
    for _ in 0..MIN_RATED_CIRCUITS {
        client.guards.handle_circuit(&first, Some(relays[7]), false);
        client.guards.handle_circuit(&first, Some(relays[8]), true);
        client.guards.handle_circuit(&second, Some(relays[7]), true);
    }
    assert_eq!(client.guards.avoided_next(&days[0], &first), [relays[7]]);
    assert_eq!(client.guards.avoided_next(&days[0], &second), []);
    // If more than a quarter of all relays fail, the guard is the more likely cause.
    for next in &relays[..=101] {
        for _ in 0..MIN_RATED_CIRCUITS {
            client.guards.handle_circuit(&first, Some(*next), false);
        }
    }
    assert_eq!(client.guards.avoided_next(&days[0], &first), []);
}

#[test]
fn an_early_end_makes_a_built_circuit_a_failed_one() {
    let (days, relays) = days();
    let mut client = SimulatedClient::new(4, &days[0]);
    let guard = client.primaries[0];
    for _ in 0..MIN_RATED_CIRCUITS {
        client.guards.handle_circuit(&guard, Some(relays[7]), true);
        client.guards.handle_early_end(&guard, Some(relays[7]));
    }
    assert_eq!(client.guards.avoided_next(&days[0], &guard), [relays[7]]);
}

#[test]
fn counts_of_pairs_are_capped_stored_and_halved_after_two_weeks() {
    let (days, relays) = days();
    let mut client = SimulatedClient::new(5, &days[0]);
    let guard = client.primaries[0];
    for _ in 0..3 {
        client.guards.handle_circuit(&guard, Some(relays[7]), true);
    }
    for number in 0..2000_u16 {
        client.guards.handle_circuit(&guard, Some(key(number.saturating_add(1000)).id()), true);
    }
    let count = |guards: &GuardSample| {
        let guard = guards.guards.iter().find(|it| it.identity == guard).unwrap();
        (guard.next_relays.len(), guard.next_relays.pairs.get(&relays[7]).map(|count| count.begun))
    };
    assert_eq!(count(&client.guards), (MAX_NEXT_RELAYS, Some(3)), "the pairs with the fewest circuits are evicted");
    let encoded = client.guards.encode();
    assert!(encoded.len() < 80_000, "{}", encoded.len());
    let mut guards = GuardSample::decode(&encoded).unwrap();
    assert_eq!(count(&guards), (MAX_NEXT_RELAYS, Some(3)));
    guards.update(&days[13], &mut client.rng);
    assert_eq!(count(&guards), (MAX_NEXT_RELAYS, Some(3)));
    guards.update(&days[14], &mut client.rng);
    assert_eq!(count(&guards), (1, Some(1)));
}
