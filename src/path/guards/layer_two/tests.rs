#[cfg(target_arch = "wasm32")]
use wasm_bindgen_test::wasm_bindgen_test as test;

use rand::{SeedableRng as _, rngs::ChaCha20Rng};

use super::*;
use crate::directory::{
    ConsensusRelay, Parameters,
    fixture::{NOW, consensus_at, key, listed, profile},
};

const SEED: u64 = 21;

fn rng() -> ChaCha20Rng {
    ChaCha20Rng::seed_from_u64(SEED)
}

fn relays(numbers: core::ops::RangeInclusive<u16>) -> impl Iterator<Item = ConsensusRelay> {
    numbers.map(|number| listed(profile(number)))
}

/// A consensus with the parameter `path.layer-2-guards` at 4.
fn four(date: WallTime, relays: impl Iterator<Item = ConsensusRelay>) -> Consensus {
    let parameters =
        Parameters::default().with("path.layer-2-guards", 4).unwrap().with("path.layer-2-network", 0).unwrap();
    consensus_at(date, relays, &parameters).0
}

fn sampled(consensus: &Consensus, rng: &mut ChaCha20Rng) -> GuardSample {
    let mut guards = GuardSample::default();
    guards.update(consensus, rng);
    guards
}

#[test]
fn lifetimes_of_layer_two_guards_are_the_greater_of_two_uniform_times() {
    let mut rng = rng();
    let lifetimes: Vec<_> = (0..20_000).map(|_| draw_lifetime(&mut rng).as_secs_f64() / DAY.as_secs_f64()).collect();
    assert!(lifetimes.iter().all(|days| (1.0..=12.0).contains(days)));
    let mean = lifetimes.iter().sum::<f64>() / 20_000.0;
    assert!((mean - (1.0 + 11.0 * 2.0 / 3.0)).abs() < 0.1, "{mean}; seed {SEED}");
}

#[test]
fn layer_two_guards_stay_until_the_end_of_their_lifetime() {
    let mut rng = rng();
    let mut guards = sampled(&four(NOW, relays(1..=60)), &mut rng);
    let ends: Vec<_> = guards.layer_two.guards.iter().map(|guard| (guard.identity, guard.expires)).collect();
    assert_eq!(ends.len(), 4);
    for hour in 1..=13 * 24 {
        let date = NOW.after(Duration::from_secs(3600 * hour));
        let changed = guards.update(&four(date, relays(1..=60)), &mut rng);
        assert_eq!(guards.layer_two().len(), 4);
        for (relay, end) in &ends {
            assert!(date >= *end || guards.layer_two.contains(relay), "hour {hour}; seed {SEED}");
        }
        assert!(changed || ends.iter().all(|(_, end)| date < *end) || hour > 24, "a replacement is stored");
    }
    let kept = ends
        .iter()
        .filter(|(relay, end)| guards.layer_two.guards.iter().any(|it| it.identity == *relay && it.expires == *end));
    assert_eq!(kept.count(), 0, "no lifetime is longer than twelve days");
}

#[test]
fn an_unlisted_or_unstable_layer_two_guard_is_replaced_after_two_days() {
    let mut rng = rng();
    let mut guards = sampled(&four(NOW, relays(1..=60)), &mut rng);
    guards.layer_two.guards.iter_mut().for_each(|guard| guard.expires = NOW.after(MAX_LIFETIME));
    let before = guards.layer_two();
    // A consensus without the first `gone` layer-2 guards; the last of these is listed but not stable.
    let without = |hours: u64, gone: usize| {
        let relays = relays(1..=60).filter(|relay| !before[..gone.saturating_sub(1)].contains(&relay.identity()));
        let relays = relays.map(|mut relay| {
            if before[..gone].contains(&relay.identity()) {
                relay.flags = Flags::GUARD;
            }
            relay
        });
        four(NOW.after(Duration::from_secs(3600 * hours)), relays)
    };
    guards.update(&without(1, 2), &mut rng);
    assert_eq!(guards.layer_two(), before[2..], "two of four suffice");

    assert!(guards.update(&without(2, 3), &mut rng), "the new layer-2 guard is stored");
    let with_substitute = guards.layer_two();
    assert_eq!((with_substitute.len(), with_substitute[0]), (2, before[3]));
    guards.update(&without(3, 0), &mut rng);
    assert_eq!(guards.layer_two(), before, "all four have their places back");
    guards.update(&without(4, 3), &mut rng);
    assert_eq!(guards.layer_two(), with_substitute, "the same substitute follows another outage");

    guards.update(&without(50, 2), &mut rng);
    assert!(guards.layer_two.contains(&before[0]), "not listed for less than two days");
    guards.update(&without(53, 2), &mut rng);
    let after = guards.layer_two();
    assert!(after.len() == 4 && !after.contains(&before[0]) && !after.contains(&before[1]), "{after:?}");
    assert_eq!(after[1..3], [before[3], with_substitute[1]]);
}

#[test]
fn with_the_parameter_at_zero_a_client_has_no_layer_two_guards() {
    let mut rng = rng();
    let off = consensus_at(NOW, relays(1..=100), &Parameters::default().with("path.layer-2-guards", 0).unwrap()).0;
    assert_eq!(sampled(&off, &mut rng).layer_two(), []);
    let mut guards = sampled(&four(NOW, relays(1..=60)), &mut rng);
    guards.update(&off, &mut rng);
    assert_eq!(guards.layer_two(), []);
}

#[test]
fn layer_two_guards_survive_a_restart() {
    let mut rng = rng();
    let consensus = four(NOW, relays(1..=60));
    let mut guards = sampled(&consensus, &mut rng);
    guards.layer_two.replaced_at = Some(NOW);
    let mut stored = GuardSample::decode(&guards.encode()).unwrap();
    assert_eq!(stored.encode(), guards.encode());
    stored.update(&consensus, &mut rng);
    assert_eq!(stored.layer_two(), guards.layer_two());
    let one = schema::LayerTwoGuard { identity: key(1).id().as_bytes().to_vec(), expires: 1, last_listed: 1 };
    assert!(LayerTwoGuards::decode(&vec![one.clone(); 16], 0).is_some());
    assert!(LayerTwoGuards::decode(&vec![one; 17], 0).is_none());
    assert!(LayerTwoGuards::decode(&[schema::LayerTwoGuard::default()], 0).is_none());
}

#[test]
fn layer_two_guards_are_unrelated_to_the_primaries_and_to_each_other_while_such_relays_remain() {
    let mut rng = rng();
    for _ in 0..20 {
        let operated = relays(1..=60).enumerate().map(|(index, mut relay)| {
            relay.profile.operator = (index / 6).to_string();
            relay
        });
        let consensus = four(NOW, operated);
        let guards = sampled(&consensus, &mut rng);
        let all = guards.layer_two().into_iter().chain(guards.primaries().map(|guard| guard.identity));
        let operators: Vec<_> = all.map(|relay| consensus.relay(&relay).unwrap().profile.operator.clone()).collect();
        assert!(operators[..4].iter().all(|one| operators.iter().filter(|other| one == *other).count() == 1));
    }
    let one_operator = relays(1..=8).map(|mut relay| {
        relay.profile.operator = "one".into();
        relay
    });
    assert_eq!(sampled(&four(NOW, one_operator), &mut rng).layer_two().len(), 4);
}

#[test]
fn a_layer_two_guard_that_fails_is_replaced_and_at_most_two_a_day_are() {
    let mut rng = rng();
    let mut guards = sampled(&four(NOW, relays(1..=60)), &mut rng);
    let primary = guards.primaries().next().unwrap().identity;
    let before = guards.layer_two();
    for circuit in 0..20 {
        guards.handle_circuit(&primary, Some(before[0]), circuit >= 15);
        guards.handle_circuit(&primary, Some(before[1]), circuit >= 15);
        guards.handle_circuit(&primary, Some(before[2]), circuit >= 14);
    }
    let mut after = |hours: u64| {
        guards.update(&four(NOW.after(Duration::from_secs(3600 * hours)), relays(1..=60)), &mut rng);
        let kept: Vec<_> = before.iter().map(|relay| guards.layer_two.contains(relay)).collect();
        kept
    };
    assert_eq!(after(1), [false, true, true, true]);
    assert_eq!(after(12), [false, true, true, true]);
    assert_eq!(after(13), [false, false, true, true], "more than a quarter of the circuits of the third succeeded");
    assert_eq!(after(26)[..3], [false, false, true]);
}

#[test]
fn layer_two_guards_are_used_from_sixty_four_stable_relays_and_down_to_half() {
    let mut rng = rng();
    let mut guards = GuardSample::default();
    let mut drawn = Vec::new();
    for (hour, relays, is_on) in
        [(0, 63, false), (1, 64, true), (2, 63, true), (3, 32, true), (4, 27, false), (5, 64, true)]
    {
        let relays = (1..=64).map(|number| listed(profile(number))).map(|mut relay| {
            // Layer-2 guards stay stable, so that only their number changes.
            let index = (1..=64).position(|number| key(number).id() == relay.identity()).unwrap();
            if index >= relays && !drawn.contains(&relay.identity()) {
                relay.flags = Flags::GUARD;
            }
            relay
        });
        let date = NOW.after(Duration::from_secs(3600 * hour));
        guards.update(&consensus_at(date, relays, &Parameters::default()).0, &mut rng);
        assert_eq!(guards.layer_two().is_empty(), !is_on, "hour {hour}");
        if is_on && drawn.is_empty() {
            drawn = guards.layer_two();
        }
        assert!(!is_on || guards.layer_two() == drawn, "hour {hour}");
        guards = GuardSample::decode(&guards.encode()).unwrap();
    }
    assert_eq!(drawn.len(), 4);
}
