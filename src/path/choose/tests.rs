use std::collections::BTreeMap;

#[cfg(target_arch = "wasm32")]
use wasm_bindgen_test::wasm_bindgen_test as test;

use rand::{SeedableRng, rngs::ChaCha20Rng};

use super::*;
use crate::{
    directory::{
        Consensus, Parameters,
        fixture::{NOW, consensus, consensus_at, exit_profile, key, listed, profile},
    },
    wire::Host,
};

mod layer_two;
mod volunteers;

const SEED: u64 = 11;

fn rng() -> ChaCha20Rng {
    ChaCha20Rng::seed_from_u64(SEED)
}

fn id(number: u16) -> RelayId {
    key(number).id()
}

fn target(host: &str, port: u16) -> Purpose {
    Purpose::Target(Target { host: Host::parse(host).unwrap(), port })
}

fn sample(consensus: &Consensus, rng: &mut ChaCha20Rng) -> GuardSample {
    let mut guards = GuardSample::default();
    guards.update(consensus, rng);
    guards
}

fn web_exits(numbers: core::ops::RangeInclusive<u16>) -> impl Iterator<Item = ConsensusRelay> {
    numbers.map(|number| listed(exit_profile(number, &["accept 80", "accept 443"])))
}

/// Seven relays, of which 1 and 2 are exits.
fn seven() -> Consensus {
    consensus(web_exits(1..=2).chain((3..=7).map(|number| listed(profile(number)))))
}

#[test]
fn a_path_has_three_different_relays_and_always_the_same_guard() {
    let (consensus, mut rng) = (seven(), rng());
    let guards = sample(&consensus, &mut rng);
    let mut guard_counts = BTreeMap::new();
    for _ in 0..200 {
        let requirement = Requirement::three_hops(target("example.org", 443));
        let path = choose(&(&consensus).into(), &guards, &requirement, &[], &mut rng).unwrap();
        let hops = path.hops();
        assert_eq!(hops.len(), 3);
        assert!(hops[0] != hops[1] && hops[1] != hops[2] && hops[0] != hops[2], "seed {SEED}");
        assert!([id(1), id(2)].contains(&hops[2]), "seed {SEED}");
        *guard_counts.entry(hops[0]).or_insert(0) += 1;
    }
    assert_eq!(guard_counts.len(), 1, "seed {SEED}");
}

#[test]
fn paths_have_the_required_length() {
    let (consensus, mut rng) = (seven(), rng());
    let guards = sample(&consensus, &mut rng);
    for (hops, length) in [(2, 2), (5, 5), (0, 2), (6, 6)] {
        let requirement = Requirement { hops, ..Requirement::three_hops(Purpose::Streams) };
        let path = choose(&(&consensus).into(), &guards, &requirement, &[], &mut rng).unwrap();
        assert_eq!(path.hops().len(), length);
    }
    let requirement = Requirement { hops: 8, ..Requirement::three_hops(Purpose::Streams) };
    let error = choose(&(&consensus).into(), &guards, &requirement, &[], &mut rng).unwrap_err();
    assert_eq!(error, PathError::TooFewRelays);
}

#[test]
fn the_policy_of_the_exit_allows_the_target() {
    let mut rng = rng();
    let mail = || listed(exit_profile(1, &["accept 25"]));
    let web6 = || listed(exit_profile(2, &["accept [::]/0:443"]));
    let consensus = consensus([mail(), web6()].into_iter().chain((3..=7).map(|number| listed(profile(number)))));
    let guards = sample(&consensus, &mut rng);
    let mut exit = |purpose: Purpose| {
        choose(&(&consensus).into(), &guards, &Requirement::three_hops(purpose), &[], &mut rng)
            .map(|path| path.hops()[2])
    };
    assert_eq!(exit(target("example.org", 25)), Ok(id(1)));
    assert_eq!(exit(target("example.org", 443)), Ok(id(2)));
    assert_eq!(exit(target("2606:4700::1", 443)), Ok(id(2)));
    assert_eq!(exit(target("1.1.1.1", 443)), Err(PathError::NoExit));
    assert_eq!(exit(target("example.org", 22)), Err(PathError::NoExit));
    assert_eq!(exit(Purpose::Streams), Ok(id(2)), "a circuit built ahead ends at an exit that allows the usual port");
}

#[test]
fn no_two_hops_share_family_operator_or_network() {
    let related_pair = |change: &dyn Fn(&mut crate::directory::Profile)| {
        // Without the common property, relay 3 and exit 1 may be on one path.
        let mut relay = profile(3);
        change(&mut relay);
        let mut exit = exit_profile(1, &["accept *"]);
        exit.family = vec![id(3)];
        exit.operator = "one".into();
        exit.addresses.push("[2606:4700::1]:1".parse().unwrap());
        let others = (4..=5).map(|number| listed(profile(number)));
        (listed(exit), listed(relay), others.collect::<Vec<_>>())
    };
    let on_one_path = |change: &dyn Fn(&mut crate::directory::Profile), parameters: &Parameters| {
        let (exit, relay, others) = related_pair(change);
        let relays = [exit, relay].into_iter().chain(others);
        let consensus = consensus_at(NOW, relays, parameters).0;
        let mut rng = rng();
        (0..100).any(|_| {
            let guards = sample(&consensus, &mut rng);
            let requirement = Requirement::three_hops(Purpose::Streams);
            let path = choose(&(&consensus).into(), &guards, &requirement, &[], &mut rng).unwrap();
            path.hops().contains(&id(3))
        })
    };
    let strict = Parameters::default();
    let relaxed = Parameters::default().with("path.similar-addresses", 1).unwrap();
    let same_16 = |profile: &mut crate::directory::Profile| profile.addresses = vec!["20.1.200.200:9".parse().unwrap()];
    let same_32 =
        |profile: &mut crate::directory::Profile| profile.addresses.push("[2606:4700:ffff::]:9".parse().unwrap());
    let mutual = |profile: &mut crate::directory::Profile| profile.family = vec![id(1)];
    let operator = |profile: &mut crate::directory::Profile| profile.operator = "one".into();
    assert!(on_one_path(&|_| (), &strict), "a family must be mutual");
    assert!(!on_one_path(&same_16, &strict));
    assert!(!on_one_path(&same_32, &strict));
    assert!(!on_one_path(&mutual, &strict));
    assert!(!on_one_path(&operator, &strict));
    assert!(on_one_path(&same_16, &relaxed));
    assert!(on_one_path(&same_32, &relaxed));
    assert!(!on_one_path(&mutual, &relaxed));
}

#[test]
fn an_exit_that_claims_a_relation_to_the_guard_never_changes_the_guard() {
    let mut rng = rng();
    let operated = |mut profile: crate::directory::Profile| {
        profile.operator = "one".into();
        listed(profile)
    };
    // Exit 1 is the only one for port 8443, and states the operator of relays 4 to 6.
    let mut only = exit_profile(1, &["accept 8443"]);
    only.family = (4..=6).map(id).collect();
    let relays = web_exits(2..=3).chain((4..=6).map(|number| operated(profile(number))));
    let consensus = consensus(relays.chain([operated(only), listed(profile(7)), listed(profile(8))]));
    let (mut related, mut unrelated) = (0, 0);
    for _ in 0..100 {
        let guards = sample(&consensus, &mut rng);
        let mut path = |port| {
            let requirement = Requirement::three_hops(target("example.org", port));
            choose(&(&consensus).into(), &guards, &requirement, &[], &mut rng).map(|path| path.hops())
        };
        let guard = path(443).unwrap()[0];
        match path(8443) {
            Ok(hops) => {
                assert!(hops[0] == guard && hops[2] == id(1), "seed {SEED}");
                unrelated += 1;
            }
            Err(error) => {
                assert_eq!(error, PathError::OnlyRelatedExits);
                assert!([id(4), id(5), id(6)].contains(&guard), "seed {SEED}");
                related += 1;
            }
        }
    }
    assert!(related > 10 && unrelated > 10, "{related} and {unrelated}, seed {SEED}");
}

#[test]
fn the_next_guard_is_used_if_the_guard_and_its_family_are_the_only_exits() {
    let mut rng = rng();
    let with_family = |number, policy: &[&str], family| {
        let mut profile = exit_profile(number, policy);
        profile.family = vec![id(family)];
        listed(profile)
    };
    let mail = [with_family(1, &["accept 25"], 2), with_family(2, &["accept 25"], 1)];
    let consensus = consensus(mail.into_iter().chain(web_exits(3..=5)));
    let mut guards_used = BTreeMap::new();
    for _ in 0..100 {
        let guards = sample(&consensus, &mut rng);
        let requirement = Requirement::three_hops(target("example.org", 25));
        let path = choose(&(&consensus).into(), &guards, &requirement, &[], &mut rng).unwrap();
        *guards_used.entry(path.hops()[0]).or_insert(0) += 1;
    }
    assert!(guards_used.keys().all(|guard| [id(3), id(4), id(5)].contains(guard)), "seed {SEED}");
    assert_eq!(guards_used.len(), 3, "seed {SEED}");
}

#[test]
fn the_next_guard_is_used_in_a_network_without_an_exit_unrelated_to_the_first() {
    let mut rng = rng();
    let mut exit = exit_profile(1, &["accept *"]);
    exit.operator = "one".into();
    let relay = |number| {
        let mut profile = profile(number);
        profile.operator = if number == 2 { String::new() } else { "one".into() };
        listed(profile)
    };
    let consensus = consensus([listed(exit), relay(2), relay(3), listed(profile(4))]);
    for _ in 0..20 {
        let guards = sample(&consensus, &mut rng);
        let requirement = Requirement::three_hops(Purpose::Streams);
        let path = choose(&(&consensus).into(), &guards, &requirement, &[], &mut rng).unwrap();
        assert!([id(2), id(4)].contains(&path.hops()[0]), "seed {SEED}");
    }
}

#[test]
fn relays_to_avoid_are_used_only_if_no_others_remain() {
    let (consensus, mut rng) = (seven(), rng());
    let guards = sample(&consensus, &mut rng);
    let mut exits = |avoid: &[RelayId]| -> Vec<RelayId> {
        let requirement = Requirement::three_hops(Purpose::Streams);
        let mut choose = || choose(&(&consensus).into(), &guards, &requirement, avoid, &mut rng).unwrap();
        (0..50).map(|_| choose().hops()[2]).collect()
    };
    assert!(exits(&[id(1)]).iter().all(|exit| *exit == id(2)));
    assert!(exits(&[id(1), id(2)]).contains(&id(1)));
}

#[test]
fn relays_to_avoid_never_change_the_guard() {
    let mut rng = rng();
    let operated = |mut relay: ConsensusRelay| {
        relay.profile.operator = "one".into();
        relay
    };
    // With exit 1 avoided, only exit 2 remains, which is related to relays 3 to 5.
    let exits = web_exits(1..=2).map(|relay| if relay.identity() == id(2) { operated(relay) } else { relay });
    let relays = (3..=7).map(|number| listed(profile(number)));
    let relays = relays.map(|relay| if relay.identity() <= id(5) { operated(relay) } else { relay });
    let consensus = consensus(exits.chain(relays));
    for _ in 0..50 {
        let guards = sample(&consensus, &mut rng);
        let mut guard = |avoid: &[RelayId]| {
            let requirement = Requirement::three_hops(Purpose::Streams);
            choose(&(&consensus).into(), &guards, &requirement, avoid, &mut rng).unwrap().hops()[0]
        };
        assert_eq!(guard(&[id(1)]), guard(&[]), "seed {SEED}");
    }
}

#[test]
fn relays_are_chosen_in_proportion_to_their_weight() {
    let mut rng = rng();
    let weighted = |mut relay: ConsensusRelay, weight| {
        relay.weight = weight;
        relay
    };
    let exits = web_exits(1..=3).zip([1000, 2000, 3000]).map(|(relay, weight)| weighted(relay, weight));
    let middles = (4..=6).map(|number| weighted(listed(profile(number)), u32::from(number - 3) * 5000));
    let consensus = consensus(exits.chain(middles));
    let mut counts: BTreeMap<RelayId, u32> = BTreeMap::new();
    const ROUNDS: u32 = 6000;
    for _ in 0..ROUNDS {
        let guards = sample(&consensus, &mut rng);
        let requirement = Requirement { hops: 2, ..Requirement::three_hops(Purpose::Streams) };
        let path = choose(&(&consensus).into(), &guards, &requirement, &[], &mut rng).unwrap();
        for hop in path.hops() {
            *counts.entry(hop).or_default() += 1;
        }
    }
    // Exits have less than a third of the weight, so none is a guard. Guards are chosen as 1 : 2 : 3, and so are exits.
    for (number, share) in [(1, 1), (2, 2), (3, 3), (4, 1), (5, 2), (6, 3)] {
        let (found, expected) = (counts[&id(number)], ROUNDS / 6 * share);
        assert!(found.abs_diff(expected) < 150, "relay {number}: {found}, expected {expected}; seed {SEED}");
    }
}

#[test]
fn exits_get_other_positions_only_above_a_third_of_the_weight() {
    let share = |exits: u16, others: u16| {
        let others = (exits + 1..=exits + others).map(|number| listed(profile(number)));
        let consensus = consensus(web_exits(1..=exits).chain(others));
        let exit = consensus.relay(&id(1)).unwrap();
        ExitShare::of(&consensus).weight(&PathRelay::Listed(exit))
    };
    assert_eq!(share(2, 5), 0);
    assert_eq!(share(1, 2), 0);
    assert_eq!(share(2, 1), 500);
    assert_eq!(share(3, 0), 666);
}

#[test]
fn there_are_paths_in_a_network_of_exits_only_and_in_one_with_a_single_exit() {
    let mut rng = rng();
    for consensus in
        [consensus(web_exits(1..=3)), consensus(web_exits(1..=1).chain((2..=3).map(|number| listed(profile(number)))))]
    {
        for _ in 0..50 {
            let guards = sample(&consensus, &mut rng);
            let requirement = Requirement::three_hops(target("example.org", 80));
            choose(&(&consensus).into(), &guards, &requirement, &[], &mut rng).unwrap();
        }
    }
}

#[test]
fn missing_guards_exits_and_relays_cause_different_errors() {
    let mut rng = rng();
    let mut no_guard = listed(exit_profile(1, &["accept *"]));
    no_guard.flags = Flags::EXIT;
    let mut error = |relays: Vec<ConsensusRelay>| {
        let consensus = consensus(relays);
        let guards = sample(&consensus, &mut rng);
        choose(&(&consensus).into(), &guards, &Requirement::three_hops(Purpose::Streams), &[], &mut rng).unwrap_err()
    };
    assert_eq!(error(vec![no_guard]), PathError::NoGuard);
    assert_eq!(error((1..=3).map(|number| listed(profile(number))).collect()), PathError::NoExit);
    assert_eq!(error(web_exits(1..=2).collect()), PathError::TooFewRelays);
}
