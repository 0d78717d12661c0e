use proptest::prelude::*;
use rand::{SeedableRng, rngs::ChaCha20Rng};

#[cfg(target_arch = "wasm32")]
use wasm_bindgen_test::wasm_bindgen_test as test;

use super::*;
use crate::directory::{
    Parameters,
    fixture::{NOW, consensus, consensus_at, exit_profile, key, listed, profile},
};

fn rng() -> ChaCha20Rng {
    ChaCha20Rng::seed_from_u64(5)
}

fn relays(numbers: core::ops::RangeInclusive<u16>) -> impl Iterator<Item = ConsensusRelay> {
    numbers.map(|number| listed(profile(number)))
}

fn days(days: u32) -> Duration {
    DAY * days
}

fn order(guards: &GuardSample, consensus: &Consensus, now: Instant) -> Vec<RelayId> {
    guards.candidates(consensus, now, &mut rng()).into_iter().map(ConsensusRelay::identity).collect()
}

fn sampled(consensus: &Consensus) -> GuardSample {
    let mut guards = GuardSample::default();
    assert!(guards.update(consensus, &mut rng()));
    guards
}

#[test]
fn the_sample_has_its_configured_size_and_ignores_new_relays() {
    let first = consensus(relays(1..=50));
    let mut guards = sampled(&first);
    let before = order(&guards, &first, Instant::START);
    assert_eq!(before.len(), 20);
    let next = consensus_at(NOW.after(days(1)), relays(1..=100), &Parameters::default()).0;
    assert!(!guards.update(&next, &mut rng()), "new relays change nothing");
    assert_eq!(order(&guards, &next, Instant::START), before);
}

#[test]
fn a_stored_sample_decodes_to_an_equal_one() {
    let consensus = consensus(relays(1..=30));
    let guards = sampled(&consensus);
    let stored = GuardSample::decode(&guards.encode()).unwrap();
    assert_eq!(order(&stored, &consensus, Instant::START), order(&guards, &consensus, Instant::START));
    assert_eq!(stored.encode(), guards.encode());
    assert!(GuardSample::decode(&[1, 2, 3]).is_err());
    let invalid = schema::GuardSample { guards: vec![schema::SampledGuard::default()] };
    assert!(GuardSample::decode(&invalid.encode_to_vec()).is_err());
}

#[test]
fn an_unreachable_guard_follows_the_others_until_its_retry() {
    let consensus = consensus(relays(1..=5));
    let mut guards = sampled(&consensus);
    let before = order(&guards, &consensus, Instant::START);
    guards.handle_unreachable(Instant::START, &before[0]);
    let after = |seconds| Instant::START.after(Duration::from_secs(seconds));
    let rotated = [&before[1..], &before[..1]].concat();
    assert_eq!(order(&guards, &consensus, after(9)), rotated);
    assert_eq!(order(&guards, &consensus, after(10)), before, "the retry is due");
    guards.handle_unreachable(after(10), &before[0]);
    assert_eq!(order(&guards, &consensus, after(29)), rotated, "the second wait is twice as long");
    guards.handle_reached(&before[0]);
    assert_eq!(order(&guards, &consensus, after(29)), before);
    for guard in &before {
        guards.handle_unreachable(after(30), guard);
    }
    assert_eq!(order(&guards, &consensus, after(31)).len(), 5, "all guards are tried if none can be reached");
}

#[test]
fn failures_beyond_a_guard_never_change_it() {
    let consensus = consensus(relays(1..=5));
    let mut guards = sampled(&consensus);
    let before = order(&guards, &consensus, Instant::START);
    for _ in 0..1000 {
        guards.handle_circuit(&before[0], false);
    }
    assert_eq!(order(&guards, &consensus, Instant::START), before);
}

#[test]
fn guards_expire_after_their_lifetime_and_at_different_times() {
    let mut guards = sampled(&consensus(relays(1..=40)));
    let first: Vec<RelayId> = guards.guards.iter().map(|guard| guard.identity).collect();
    let mut kept_at = |day| {
        let later = consensus_at(NOW.after(days(day)), relays(1..=40), &Parameters::default()).0;
        guards.update(&later, &mut rng());
        guards.guards.iter().filter(|guard| first.contains(&guard.identity) && guard.added <= NOW).count()
    };
    assert_eq!(kept_at(107), 20);
    assert!((1..20).contains(&kept_at(114)));
    assert_eq!(kept_at(121), 0);
}

#[test]
fn an_unlisted_guard_is_skipped_and_removed_after_twenty_days() {
    let first = consensus(relays(1..=3));
    let mut guards = sampled(&first);
    let gone = order(&guards, &first, Instant::START)[0];
    let mut without = |day| {
        let others = relays(1..=3).filter(|relay| relay.identity() != gone);
        let later = consensus_at(NOW.after(days(day)), others, &Parameters::default()).0;
        guards.update(&later, &mut rng());
        (order(&guards, &later, Instant::START).len(), guards.guards.len())
    };
    assert_eq!(without(1), (2, 3));
    assert_eq!(without(20), (2, 3));
    assert_eq!(without(21), (2, 2));
    let back = consensus_at(NOW.after(days(22)), relays(1..=3), &Parameters::default()).0;
    guards.update(&back, &mut rng());
    assert_eq!(
        *order(&guards, &back, Instant::START).last().unwrap(),
        gone,
        "a guard that is listed again is added at the end"
    );
}

#[test]
fn exits_of_weight_zero_are_sampled_only_below_the_minimum() {
    let exit = |number| listed(exit_profile(number, &["accept *"]));
    let large = consensus([exit(1), exit(2)].into_iter().chain(relays(3..=7)));
    assert_eq!(sampled(&large).guards.len(), 5);
    let small = consensus([exit(1)].into_iter().chain(relays(2..=3)));
    let guards = sampled(&small);
    assert_eq!(guards.guards.len(), 3);
    assert_eq!(guards.guards[2].identity, key(1).id());
}

#[test]
fn relays_without_the_guard_flag_are_never_sampled() {
    let mut relay = listed(profile(1));
    relay.flags = Flags::STABLE;
    let mut guards = GuardSample::default();
    assert!(!guards.update(&consensus([relay]), &mut rng()));
}

#[test]
fn two_guards_in_use_are_first_about_equally_often() {
    let parameters = Parameters::default().with("path.guards-in-use", 2).unwrap();
    let consensus = consensus_at(NOW, relays(1..=9), &parameters).0;
    let guards = sampled(&consensus);
    let mut rng = rng();
    let mut firsts = std::collections::BTreeMap::new();
    for _ in 0..1000 {
        let first = guards.candidates(&consensus, Instant::START, &mut rng)[0].identity();
        *firsts.entry(first).or_insert(0) += 1;
    }
    assert_eq!(firsts.len(), 2);
    assert!(firsts.values().all(|count| (400..600).contains(count)), "{:?}; seed 5", firsts.values());
}

#[test]
fn guards_are_sampled_in_proportion_to_their_weight() {
    let weighted = relays(1..=4).enumerate().map(|(index, mut relay)| {
        relay.weight = [100, 200, 300, 400][index];
        relay
    });
    let consensus = consensus(weighted);
    let mut rng = rng();
    let mut firsts = std::collections::BTreeMap::new();
    for _ in 0..5000 {
        let mut guards = GuardSample::default();
        guards.update(&consensus, &mut rng);
        *firsts.entry(guards.guards[0].identity).or_insert(0_i32) += 1;
    }
    for (number, expected) in [(1, 500), (2, 1000), (3, 1500), (4, 2000)] {
        let found = firsts[&key(number).id()];
        assert!((found - expected).abs() < 150, "relay {number}: {found}, expected {expected}; seed 5");
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_cause_no_panic_in_the_decoder(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = GuardSample::decode(&bytes);
    }
}
