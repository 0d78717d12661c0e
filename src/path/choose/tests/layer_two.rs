//! Tests of paths with layer-2 guards.

use std::collections::BTreeSet;

#[cfg(target_arch = "wasm32")]
use wasm_bindgen_test::wasm_bindgen_test as test;

use super::*;
use crate::directory::{
    VolunteerList,
    fixture::{listed_volunteer, volunteers},
};

/// A consensus with `layer_two` layer-2 guards for each client.
fn with_parameter(relays: impl IntoIterator<Item = ConsensusRelay>, layer_two: u64) -> Consensus {
    let parameters =
        Parameters::default().with("path.layer-2-guards", layer_two).unwrap().with("path.layer-2-network", 0).unwrap();
    let parameters = parameters.with("path.guard-sample", 3).unwrap().with("path.volunteer-share", 100).unwrap();
    consensus_at(NOW, relays, &parameters).0
}

/// `all` relays, of which the first `exits` are exits.
fn network(exits: u16, all: u16) -> Vec<ConsensusRelay> {
    web_exits(1..=exits).chain((exits + 1..=all).map(|number| listed(profile(number)))).collect()
}

fn path(relays: &Relays<'_>, guards: &GuardSample, avoid: &[RelayId], rng: &mut ChaCha20Rng) -> Vec<RelayId> {
    choose(relays, guards, &Requirement::three_hops(Purpose::Streams), avoid, rng).unwrap().hops()
}

#[test]
fn one_of_four_layer_two_guards_follows_the_guard_and_any_relay_precedes_the_exit() {
    let (consensus, mut rng) = (with_parameter(network(4, 40), 4), rng());
    let guards = sample(&consensus, &mut rng);
    let mut seen = [BTreeSet::new(), BTreeSet::new(), BTreeSet::new(), BTreeSet::new()];
    for _ in 0..400 {
        let path = path(&(&consensus).into(), &guards, &[], &mut rng);
        assert_eq!(path.len(), 4);
        for (seen, hop) in seen.iter_mut().zip(&path) {
            seen.insert(*hop);
        }
        assert_eq!(path.iter().collect::<BTreeSet<_>>().len(), 4, "all relays differ");
    }
    assert_eq!(seen[0].len(), 1);
    assert_eq!(seen[1], guards.layer_two().into_iter().collect());
    // All relays except the exits, which have no weight as middles, and the guard.
    assert_eq!(seen[2].len(), 35, "seed {SEED}");
    assert_eq!(seen[3].len(), 4);
}

/// The fraction of `clients` with an honest guard that a hostile second hop has seen after 40 circuits. Of the 60
/// relays that may be second hops, `hostile` are hostile.
fn seen_by_hostile(layer_two: u64, hostile: u16, clients: u64) -> f64 {
    let consensus = with_parameter(network(4, 64), layer_two);
    let is_hostile = |relay: &RelayId| (5..5 + hostile).any(|number| id(number) == *relay);
    let (mut honest, mut seen) = (0.0, 0.0);
    for seed in 0..clients {
        let mut rng = ChaCha20Rng::seed_from_u64(seed);
        let guards = sample(&consensus, &mut rng);
        let paths: Vec<_> = (0..40).map(|_| path(&(&consensus).into(), &guards, &[], &mut rng)).collect();
        if !is_hostile(&paths[0][0]) {
            honest += 1.0;
            seen += f64::from(u8::from(paths.iter().any(|path| is_hostile(&path[1]))));
        }
    }
    seen / honest
}

#[test]
fn hostile_relays_see_the_guards_of_few_clients() {
    let (four, any) = (seen_by_hostile(4, 6, 400), seen_by_hostile(0, 6, 50));
    // Six of sixty: 1 − 0.9⁴ = 0.344, and 1 − 0.9⁴⁰ = 0.985.
    assert!((four - 0.344).abs() < 0.06, "{four}");
    assert!(any > 0.95, "{any}");
}

#[test]
fn relays_to_avoid_lead_to_no_relay_beyond_the_layer_two_guards() {
    let (consensus, mut rng) = (with_parameter(network(4, 40), 4), rng());
    let guards = sample(&consensus, &mut rng);
    let layer_two = guards.layer_two();
    for _ in 0..50 {
        let hop = path(&(&consensus).into(), &guards, &layer_two[..3], &mut rng)[1];
        assert_eq!(hop, layer_two[3]);
        assert!(layer_two.contains(&path(&(&consensus).into(), &guards, &layer_two, &mut rng)[1]));
    }
}

#[test]
fn a_path_that_permits_no_layer_two_guard_has_another_relay_there() {
    let mut rng = rng();
    let consensus = with_parameter(network(4, 40), 4);
    let guards = sample(&consensus, &mut rng);
    let layer_two = guards.layer_two();
    // All exits and all layer-2 guards now have one operator.
    let related = network(4, 40).into_iter().map(|mut relay| {
        if relay.flags.contains(Flags::EXIT) || layer_two.contains(&relay.identity()) {
            relay.profile.operator = "one".into();
        }
        relay
    });
    let consensus = with_parameter(related, 4);
    for _ in 0..50 {
        let path = path(&(&consensus).into(), &guards, &[], &mut rng);
        assert!(path.len() == 4 && !layer_two.contains(&path[1]));
    }
}

/// The relay with an IPv4 address in the /16 of relay `ipv4`, and with the operator of relay `operator`.
fn related_to(mut relay: ConsensusRelay, ipv4: &RelayId, operator: Option<&RelayId>) -> ConsensusRelay {
    let number = (1..=40).find(|number| id(*number) == *ipv4).unwrap();
    relay.profile.addresses = profile(number).addresses;
    relay.profile.operator = operator.map(|_| "one".to_owned()).unwrap_or_default();
    relay
}

/// A consensus like `with_parameter(network(4, 40), …)`, in which exit 1 excludes the first two layer-2 guards of
/// `guards` from its paths, and exit 2 the first one.
fn with_excluding_exits(guards: &GuardSample, layer_two: u64) -> Consensus {
    let set = guards.layer_two();
    let relays = network(4, 40).into_iter().map(|mut relay| match relay.identity() {
        exit if exit == id(1) => related_to(relay, &set[0], set.get(1)),
        exit if exit == id(2) => related_to(relay, &set[0], None),
        other => {
            if Some(&other) == set.get(1) {
                relay.profile.operator = "one".into();
            }
            relay
        }
    });
    with_parameter(relays, layer_two)
}

#[test]
fn an_exit_that_excludes_more_than_one_layer_two_guard_is_not_used_while_others_fit() {
    let mut rng = rng();
    for number in [2, 3, 4] {
        let guards = sample(&with_parameter(network(4, 40), number), &mut rng);
        let (set, consensus) = (guards.layer_two(), with_excluding_exits(&guards, number));
        // Failed circuits through the other exits don't lead to exit 1.
        for avoid in [&[][..], &[id(2), id(3), id(4)]] {
            let paths: Vec<_> = (0..200).map(|_| path(&(&consensus).into(), &guards, avoid, &mut rng)).collect();
            assert!(paths.iter().all(|path| path.len() == 4 && set.contains(&path[1])), "seed {SEED}");
            let exits: BTreeSet<_> = paths.iter().map(|path| path[3]).collect();
            assert_eq!(exits, [id(2), id(3), id(4)].into(), "seed {SEED}");
            assert!(paths.iter().filter(|path| path[3] == id(2)).all(|path| path[1] != set[0]));
        }
    }
}

#[test]
fn an_exit_that_excludes_the_only_layer_two_guard_is_not_used_while_others_fit() {
    let mut rng = rng();
    let guards = sample(&with_parameter(network(4, 40), 1), &mut rng);
    let consensus = with_excluding_exits(&guards, 1);
    for _ in 0..200 {
        let path = path(&(&consensus).into(), &guards, &[id(3), id(4)], &mut rng);
        assert_eq!(path[1], guards.layer_two()[0]);
        assert!([id(3), id(4)].contains(&path[3]), "seed {SEED}");
    }
}

#[test]
fn an_exit_that_excludes_layer_two_guards_is_used_if_no_other_fits_the_target() {
    let mut rng = rng();
    let guards = sample(&with_parameter(network(4, 40), 4), &mut rng);
    let mut relays = with_excluding_exits(&guards, 4).relays().to_vec();
    let mail = exit_profile(1, &["accept 25"]).exit;
    relays.iter_mut().find(|relay| relay.identity() == id(1)).unwrap().profile.exit = mail;
    let consensus = with_parameter(relays, 4);
    let requirement = Requirement::three_hops(target("example.org", 25));
    for _ in 0..100 {
        let path = choose(&(&consensus).into(), &guards, &requirement, &[], &mut rng).unwrap().hops();
        assert!(path[3] == id(1) && guards.layer_two()[2..].contains(&path[1]));
    }
}

#[test]
fn an_exit_that_excludes_layer_two_guards_is_used_if_all_others_have_refused() {
    let mut rng = rng();
    let guards = sample(&with_parameter(network(4, 40), 4), &mut rng);
    let consensus = with_excluding_exits(&guards, 4);
    let excluded = vec![id(2), id(3), id(4)];
    let requirement = Requirement { excluded, ..Requirement::three_hops(Purpose::Streams) };
    for _ in 0..100 {
        let path = choose(&(&consensus).into(), &guards, &requirement, &[], &mut rng).unwrap().hops();
        assert_eq!(path[3], id(1), "seed {SEED}");
    }
    let excluded = (1..=4).map(id).collect();
    let requirement = Requirement { excluded, ..Requirement::three_hops(Purpose::Streams) };
    let error = choose(&(&consensus).into(), &guards, &requirement, &[], &mut rng).unwrap_err();
    assert_eq!(error, PathError::NoExit);
}

#[test]
fn a_network_with_too_few_relays_for_four_hops_has_paths_of_three() {
    let (consensus, mut rng) = (with_parameter(network(1, 3), 4), rng());
    let guards = sample(&consensus, &mut rng);
    for _ in 0..20 {
        assert_eq!(path(&(&consensus).into(), &guards, &[], &mut rng).len(), 3);
    }
    let requirement = Requirement { hops: 8, ..Requirement::three_hops(Purpose::Streams) };
    let consensus = with_parameter(network(4, 40), 4);
    let guards = sample(&consensus, &mut rng);
    let path = choose(&(&consensus).into(), &guards, &requirement, &[], &mut rng).unwrap().hops();
    assert!(path.len() == 8 && guards.layer_two().contains(&path[1]));
}

/// Ten volunteers behind each relay.
fn behind_all() -> VolunteerList {
    volunteers((0..400).map(|number| listed_volunteer(1000 + number, &[number % 40 + 1])))
}

#[test]
fn no_volunteer_follows_the_guard_and_their_share_behind_layer_two_guards_is_that_behind_guards() {
    let mut rng = rng();
    let list = behind_all();
    let is_volunteer = |hop: &RelayId| list.volunteer(hop).is_some();
    let mut shares = [0, 0];
    for (share, layer_two) in shares.iter_mut().zip([0, 4]) {
        let consensus = with_parameter(network(4, 40), layer_two);
        let relays = Relays { volunteers: Some(&list), ..(&consensus).into() };
        let guards = sample(&consensus, &mut rng);
        for _ in 0..1000 {
            let path = path(&relays, &guards, &[], &mut rng);
            let at: Vec<_> = (0..path.len()).filter(|at| is_volunteer(&path[*at])).collect();
            let position = if layer_two == 0 { 1 } else { 2 };
            assert!(at.is_empty() || at == [position], "{at:?}");
            if !at.is_empty() {
                assert_eq!(list.volunteer(&path[position]).unwrap().gateways, [path[position - 1]]);
                *share += 1;
            }
        }
    }
    // Ten volunteers, and 38 or 37 listed relays.
    assert!(shares.iter().all(|share| (160..260).contains(share)), "{shares:?}; seed {SEED}");
}

#[test]
fn the_replacement_of_a_volunteer_behind_a_layer_two_guard_keeps_the_other_hops() {
    let (consensus, mut rng) = (with_parameter(network(4, 40), 4), rng());
    let list = behind_all();
    let relays = Relays { volunteers: Some(&list), ..(&consensus).into() };
    let guards = sample(&consensus, &mut rng);
    let requirement = Requirement::three_hops(Purpose::Streams);
    let through_volunteer = || {
        let path = choose(&relays, &guards, &requirement, &[], &mut rng).unwrap();
        list.volunteer(&path.hops()[2]).is_some().then_some(path)
    };
    let path = core::iter::repeat_with(through_volunteer).take(1000).flatten().next().unwrap();
    let hops = path.hops();
    let (keys, _) = path.into_keys();
    let mut rng = ChaCha20Rng::seed_from_u64(SEED);
    let mut replaced_by_volunteers = 0;
    for _ in 0..100 {
        let replaced = replace(&relays, &keys, 2, true, &[hops[2]], &mut rng).unwrap().hops();
        assert_eq!([replaced[0], replaced[1], replaced[3]], [hops[0], hops[1], hops[3]]);
        replaced_by_volunteers += u32::from(list.volunteer(&replaced[2]).is_some());
        let listed = replace(&relays, &keys, 2, false, &[hops[2]], &mut rng).unwrap().hops();
        assert!(list.volunteer(&listed[2]).is_none());
    }
    assert!((5..40).contains(&replaced_by_volunteers), "{replaced_by_volunteers}");
}

#[test]
fn a_fixed_middle_follows_the_guard_directly() {
    let (consensus, mut rng) = (with_parameter(network(4, 40), 4), rng());
    let guards = sample(&consensus, &mut rng);
    let middle =
        (5..=40).map(id).find(|relay| *relay != path(&(&consensus).into(), &guards, &[], &mut rng)[0]).unwrap();
    let relays = Relays { middle: Some(middle), ..(&consensus).into() };
    let path = path(&relays, &guards, &[], &mut rng);
    assert!(path.len() == 3 && path[1] == middle);
}
