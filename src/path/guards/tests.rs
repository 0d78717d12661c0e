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

/// The listed guards, in the order to try.
fn order(guards: &GuardSample, consensus: &Consensus) -> Vec<RelayId> {
    guards.candidates(consensus, &mut rng()).into_iter().map(ConsensusRelay::identity).collect()
}

/// A sample drawn from `consensus`.
fn sampled(consensus: &Consensus) -> GuardSample {
    let mut guards = GuardSample::default();
    assert!(guards.update(consensus, &mut rng()));
    guards
}

#[test]
fn the_sample_has_its_configured_size_and_ignores_new_relays() {
    let first = consensus(relays(1..=50));
    let mut guards = sampled(&first);
    let before = order(&guards, &first);
    assert_eq!(before.len(), 20);
    let next = consensus_at(NOW.after(days(1)), relays(1..=60), &Parameters::default()).0;
    assert!(!guards.update(&next, &mut rng()), "new relays change nothing");
    assert_eq!(order(&guards, &next), before);
}

#[test]
fn a_stored_sample_decodes_to_an_equal_one() {
    let consensus = consensus(relays(1..=30));
    let guards = sampled(&consensus);
    let stored = GuardSample::decode(&guards.encode()).unwrap();
    assert_eq!(order(&stored, &consensus), order(&guards, &consensus));
    assert_eq!(stored.encode(), guards.encode());
    assert!(GuardSample::decode(&[1, 2, 3]).is_err());
    let invalid = schema::GuardSample { guards: vec![schema::SampledGuard::default()], ..Default::default() };
    assert!(GuardSample::decode(&invalid.encode_to_vec()).is_err());
}

fn after(seconds: u64) -> Instant {
    Instant::START.after(Duration::from_secs(seconds))
}

/// A sample of twenty guards, their order, and a consensus of thirty relays.
fn twenty() -> (GuardSample, Vec<RelayId>, Consensus) {
    let consensus = consensus(relays(1..=30));
    let guards = sampled(&consensus);
    let all = order(&guards, &consensus);
    (guards, all, consensus)
}

fn first(guards: &GuardSample, consensus: &Consensus) -> RelayId {
    order(guards, consensus)[0]
}

fn guards_to_dial(guards: &GuardSample, consensus: &Consensus, now: Instant) -> Vec<RelayId> {
    guards.guards_to_dial(consensus, now).into_iter().map(ConsensusRelay::identity).collect()
}

#[test]
fn a_silent_guard_is_dialled_again_before_any_other() {
    let (mut guards, all, consensus) = twenty();
    guards.handle_silent(after(3), &all[0], after(3));
    assert_eq!(first(&guards, &consensus), all[0], "the first silence causes a new dial");
    guards.handle_silent(after(4), &all[0], after(2));
    assert_eq!(
        first(&guards, &consensus),
        all[0],
        "the silence of a circuit that began before the first silence doesn't count"
    );
    guards.handle_opened(after(4), &all[0]);
    guards.handle_answered(&all[0]);
    guards.handle_silent(after(10), &all[0], after(10));
    assert_eq!(first(&guards, &consensus), all[0], "an answer resets the count of silences");
    guards.handle_silent(after(12), &all[0], after(11));
    assert_eq!(first(&guards, &consensus), all[1], "a second silence makes the guard unreachable");
}

#[test]
fn an_unreachable_guard_follows_the_other_primaries_until_it_answers() {
    let (mut guards, all, consensus) = twenty();
    guards.handle_unreachable(after(0), &all[0]);
    assert_eq!(order(&guards, &consensus)[..3], [all[1], all[2], all[0]]);
    assert_eq!(guards_to_dial(&guards, &consensus, after(4)), []);
    assert_eq!(guards_to_dial(&guards, &consensus, after(5)), [all[0]]);
    guards.handle_unreachable(after(5), &all[0]);
    assert_eq!(guards_to_dial(&guards, &consensus, after(14)), []);
    for _ in 0..10 {
        guards.handle_unreachable(after(15), &all[0]);
    }
    assert_eq!(guards_to_dial(&guards, &consensus, after(75)), [all[0]], "the longest wait is a minute");
    assert_eq!(order(&guards, &consensus)[..3], [all[1], all[2], all[0]], "a due dial changes no circuit's guard");
    assert_eq!(guards.handle_opened(after(76), &all[0]), all[1..], "circuits through later guards are superseded");
    assert_eq!(order(&guards, &consensus), all);
    assert_eq!(guards.handle_opened(after(77), &all[0]), []);
}

#[test]
fn while_no_guard_answers_only_primaries_are_dialled() {
    let (mut guards, all, consensus) = twenty();
    let mut now = after(0);
    while now < after(3600) {
        let guard = first(&guards, &consensus);
        assert!(all[..3].contains(&guard));
        guards.handle_unreachable(now, &guard);
        let dialled_soon = guards_to_dial(&guards, &consensus, now.after(Duration::from_secs(15)));
        assert!(now < after(10) || dialled_soon.len() == 3, "each primary is dialled at least every 15 s");
        now = now.after(Duration::from_secs(5));
    }
    guards.handle_opened(now, &all[1]);
    assert_eq!(first(&guards, &consensus), all[1]);
    assert_eq!(guards_to_dial(&guards, &consensus, now), [all[0], all[2]], "an answer causes new dials of all others");
    guards.handle_opened(now, &all[0]);
    assert_eq!(first(&guards, &consensus), all[0]);
}

#[test]
fn short_outages_lead_to_no_other_guard() {
    let (mut guards, all, consensus) = twenty();
    // For an hour, the line fails for 3 s in each 10 s. The directory answers between the outages.
    for round in 0..360 {
        let now = after(round * 10 + 3);
        let guard = first(&guards, &consensus);
        assert_eq!(guard, all[0], "round {round}");
        guards.handle_silent(now, &guard, now);
        if round % 2 == 0 {
            // The line works again too late for the first dials.
            for guard in &all[..3] {
                guards.handle_unreachable(now, guard);
            }
        }
        guards.handle_contact(now);
        for guard in guards_to_dial(&guards, &consensus, after(round * 10 + 8)) {
            guards.handle_opened(now, &guard);
            guards.handle_answered(&guard);
        }
        guards.handle_answered(&all[0]);
    }
}

#[test]
fn a_fourth_guard_is_used_only_if_other_nodes_answer_for_ten_minutes() {
    let (mut guards, all, consensus) = twenty();
    for guard in &all[..3] {
        guards.handle_contact(after(0));
        guards.handle_unreachable(after(1), guard);
    }
    assert_eq!(first(&guards, &consensus), all[0], "time alone leads to no other guard");
    guards.handle_contact(after(5000));
    guards.handle_contact(after(5599));
    assert_eq!(first(&guards, &consensus), all[0]);
    guards.handle_contact(after(5600));
    assert_eq!(first(&guards, &consensus), all[3]);
    guards.handle_unreachable(after(5610), &all[3]);
    assert_ne!(first(&guards, &consensus), all[4]);
    guards.handle_contact(after(5611));
    guards.handle_contact(after(6211));
    assert_eq!(first(&guards, &consensus), all[4], "each further guard takes as long");
    guards.handle_opened(after(6300), &all[2]);
    assert_eq!(first(&guards, &consensus), all[2]);
    guards.handle_unreachable(after(6301), &all[2]);
    assert!(
        all[..3].contains(&first(&guards, &consensus)),
        "a primary that answers ends the use of guards beyond the primaries"
    );
}

#[test]
fn a_contact_before_a_guard_answers_does_not_count_later() {
    let (mut guards, all, consensus) = twenty();
    let fail_all =
        |guards: &mut GuardSample, now| all[..3].iter().for_each(|guard| guards.handle_unreachable(now, guard));
    fail_all(&mut guards, after(0));
    guards.handle_contact(after(1));
    guards.handle_opened(after(2), &all[1]);
    fail_all(&mut guards, after(700));
    guards.handle_contact(after(701));
    assert!(all[..3].contains(&first(&guards, &consensus)));
}

#[test]
fn a_guard_that_opens_channels_and_answers_nothing_else_is_dialled_ever_less_often() {
    let (mut guards, all, consensus) = twenty();
    guards.handle_unreachable(after(0), &all[0]);
    guards.handle_opened(after(5), &all[0]);
    guards.handle_silent(after(7), &all[0], after(6));
    assert_eq!(first(&guards, &consensus), all[1]);
    assert_eq!(guards_to_dial(&guards, &consensus, after(16)), [], "its failures are remembered");
    assert_eq!(guards_to_dial(&guards, &consensus, after(17)), [all[0]]);
}

#[test]
fn failures_beyond_a_guard_never_change_it() {
    let consensus = consensus(relays(1..=5));
    let mut guards = sampled(&consensus);
    let before = order(&guards, &consensus);
    for _ in 0..1000 {
        guards.handle_circuit(&before[0], None, false);
    }
    assert_eq!(order(&guards, &consensus), before);
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
fn counts_of_circuits_survive_a_restart() {
    let (mut guards, all, _) = twenty();
    assert!(!guards.take_counts_changed());
    guards.handle_circuit(&all[0], Some(all[5]), true);
    guards.handle_circuit(&all[0], None, false);
    assert!(guards.take_counts_changed() && !guards.take_counts_changed());
    let stored = GuardSample::decode(&guards.encode()).unwrap();
    let counts = |guard: &Guard| (guard.circuits_begun, guard.circuits_built);
    assert_eq!(stored.guards.iter().map(counts).collect::<Vec<_>>()[..2], [(2, 1), (0, 0)]);
}

#[test]
fn an_unlisted_guard_is_skipped_and_removed_after_twenty_days() {
    let first = consensus(relays(1..=3));
    let mut guards = sampled(&first);
    let unlisted = order(&guards, &first)[0];
    let mut without = |day| {
        let others = relays(1..=3).filter(|relay| relay.identity() != unlisted);
        let later = consensus_at(NOW.after(days(day)), others, &Parameters::default()).0;
        guards.update(&later, &mut rng());
        (order(&guards, &later).len(), guards.guards.len())
    };
    assert_eq!(without(1), (2, 3));
    assert_eq!(without(20), (2, 3));
    assert_eq!(without(21), (2, 2));
    let back = consensus_at(NOW.after(days(22)), relays(1..=3), &Parameters::default()).0;
    guards.update(&back, &mut rng());
    assert_eq!(*order(&guards, &back).last().unwrap(), unlisted, "a guard that is listed again is added at the end");
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
        let first = guards.candidates(&consensus, &mut rng)[0].identity();
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
