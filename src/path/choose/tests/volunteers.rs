//! Tests of paths with volunteers.

#[cfg(target_arch = "wasm32")]
use wasm_bindgen_test::wasm_bindgen_test as test;

use super::*;
use crate::{
    delegated::EngineName,
    directory::{
        Volunteer, VolunteerList,
        fixture::{listed_volunteer, volunteers},
    },
};

/// Seven relays, of which 1 and 2 are exits, with a volunteer share of 100 percent.
fn full_share() -> Consensus {
    let relays = web_exits(1..=2).chain((3..=7).map(|number| listed(profile(number))));
    let parameters = Parameters::default().with("path.volunteer-share", 100).unwrap();
    consensus_at(NOW, relays, &parameters).0
}

/// Volunteers 21 to 27, each with one gateway: relays 1 to 7 in order.
fn one_behind_each() -> VolunteerList {
    volunteers((1..=7).map(|gateway| listed_volunteer(20 + gateway, &[gateway])))
}

/// The number of the relay that a client with this sample uses as guard.
fn guard_of(consensus: &Consensus, guards: &GuardSample, rng: &mut ChaCha20Rng) -> u16 {
    let guard = choose(&consensus.into(), guards, &streams(2), &[], rng).unwrap().hops()[0];
    (1..=7).find(|number| id(*number) == guard).unwrap()
}

/// Enough volunteers behind `gateway` that a listed relay is rarely chosen.
fn many_behind(gateway: u16) -> VolunteerList {
    volunteers((1000..4000).map(|number| listed_volunteer(number, &[gateway])))
}

fn relays_of<'a>(consensus: &'a Consensus, list: &'a VolunteerList) -> Relays<'a> {
    Relays { volunteers: Some(list), ..consensus.into() }
}

fn streams(hops: u8) -> Requirement {
    Requirement { hops, ..Requirement::three_hops(Purpose::Streams) }
}

fn engine() -> EngineName {
    EngineName::parse("engine").unwrap()
}

/// The relay, with searches by [`engine`].
fn offering(mut relay: ConsensusRelay) -> ConsensusRelay {
    relay.profile.offer.engines = vec![engine()];
    relay
}

#[test]
fn a_volunteer_is_only_the_hop_behind_its_gateway() {
    let (consensus, mut rng) = (full_share(), rng());
    let guards = sample(&consensus, &mut rng);
    let list = many_behind(guard_of(&consensus, &guards, &mut rng));
    for hops in [2, 3, 4, 5] {
        let path = choose(&relays_of(&consensus, &list), &guards, &streams(hops), &[], &mut rng).unwrap();
        let is_volunteer = |hop: &RelayId| list.volunteer(hop).is_some();
        let at: Vec<usize> = (0..path.hops().len()).filter(|at| is_volunteer(&path.hops()[*at])).collect();
        assert_eq!(at, if hops == 2 { vec![] } else { vec![1] }, "seed {SEED}");
        if hops > 2 {
            assert_eq!(list.volunteer(&path.hops()[1]).unwrap().gateways, [path.hops()[0]]);
        }
        let (keys, volunteers) = path.clone().into_keys();
        assert_eq!(volunteers.len(), at.len());
        assert_eq!(keys.iter().map(|keys| keys.identity).collect::<Vec<_>>(), path.hops());
    }
}

#[test]
fn no_volunteer_follows_a_guard_without_volunteers_and_avoided_volunteers_are_not_used() {
    let (consensus, list, mut rng) = (full_share(), one_behind_each(), rng());
    let guards = sample(&consensus, &mut rng);
    let gateways_without_volunteers: Vec<RelayId> = (1..=7).map(id).collect();
    let avoided: Vec<RelayId> = (21..=27).map(id).collect();
    let without_volunteers =
        Relays { gateways_without_volunteers: &gateways_without_volunteers, ..relays_of(&consensus, &list) };
    for (relays, avoid) in [(without_volunteers, &[][..]), (relays_of(&consensus, &list), &avoided)] {
        let path = choose(&relays, &guards, &streams(3), avoid, &mut rng).unwrap();
        assert!(list.volunteer(&path.hops()[1]).is_none());
    }
}

#[test]
fn a_volunteer_is_not_on_a_path_with_an_exit_of_its_operator() {
    let (consensus, mut rng) = (full_share(), rng());
    let guards = sample(&consensus, &mut rng);
    let mut exit = consensus.relay(&id(1)).unwrap().profile.clone();
    exit.operator = "one".into();
    let others = (3..=7).map(|number| listed(profile(number)));
    let parameters = Parameters::default().with("path.volunteer-share", 100).unwrap();
    let consensus = consensus_at(NOW, [listed(exit)].into_iter().chain(others), &parameters).0;
    let operated = |number: u16| {
        let mut volunteer = listed_volunteer(number, &[number - 20]);
        volunteer.profile.operator = "one".into();
        volunteer
    };
    let list = volunteers((21..=27).map(operated));
    let path = choose(&relays_of(&consensus, &list), &guards, &streams(3), &[], &mut rng).unwrap();
    assert!(list.volunteer(&path.hops()[1]).is_none(), "the exit is of the same operator");
}

#[test]
fn a_volunteer_is_not_on_a_path_with_an_exit_of_its_listed_family() {
    let (consensus, mut rng) = (full_share(), rng());
    let guards = sample(&consensus, &mut rng);
    let guard = guard_of(&consensus, &guards, &mut rng);
    let related_to_exits = |number| {
        let mut volunteer = listed_volunteer(number, &[guard]);
        volunteer.profile.family = vec![id(1), id(2)];
        volunteer
    };
    let list = volunteers((1000..2000).map(related_to_exits));
    let path = choose(&relays_of(&consensus, &list), &guards, &streams(3), &[], &mut rng).unwrap();
    assert!(list.volunteer(&path.hops()[1]).is_none(), "both exits are of its family");
}

#[test]
fn a_required_middle_is_used_or_there_is_no_path() {
    let (consensus, list, mut rng) = (full_share(), one_behind_each(), rng());
    let guards = sample(&consensus, &mut rng);
    for (number, guard) in [(23, Some(3)), (25, Some(5)), (6, None)] {
        let relays = Relays { middle: Some(id(number)), ..relays_of(&consensus, &list) };
        for _ in 0..20 {
            let path = choose(&relays, &guards, &streams(3), &[], &mut rng).unwrap();
            assert_eq!(path.hops()[1], id(number));
            assert!(guard.is_none_or(|guard| path.hops()[0] == id(guard)));
        }
    }
    let unknown = Relays { middle: Some(id(99)), ..relays_of(&consensus, &list) };
    let error = choose(&unknown, &guards, &streams(3), &[], &mut rng).unwrap_err();
    assert_eq!(error, PathError::TooFewRelays);
}

#[test]
fn the_replacement_of_a_middle_keeps_the_other_hops() {
    let (consensus, mut rng) = (full_share(), rng());
    let guards = sample(&consensus, &mut rng);
    let list = many_behind(guard_of(&consensus, &guards, &mut rng));
    let relays = relays_of(&consensus, &list);
    for allow_volunteer in [true, false] {
        let path = choose(&relays, &guards, &streams(3), &[], &mut rng).unwrap();
        let (keys, _) = path.clone().into_keys();
        let gone = path.hops()[1];
        let replaced = replace(&relays, &keys, 1, allow_volunteer, &[gone], &mut rng).unwrap().hops();
        assert_eq!([replaced[0], replaced[2]], [path.hops()[0], path.hops()[2]]);
        assert!(!path.hops().contains(&replaced[1]));
        assert_eq!(list.volunteer(&replaced[1]).is_some(), allow_volunteer);
        for position in [0, 2, 3] {
            assert_eq!(replace(&relays, &keys, position, true, &[], &mut rng), None);
        }
    }
}

#[test]
fn a_volunteer_with_an_offer_is_the_last_hop_behind_its_gateway() {
    let (consensus, mut rng) = (full_share(), rng());
    let guards = sample(&consensus, &mut rng);
    let searching = |number: u16, gateways: &[u16]| {
        let mut volunteer: Volunteer = listed_volunteer(number, gateways);
        volunteer.profile.offer.engines = vec![engine()];
        volunteer
    };
    let list = volunteers([searching(21, &[5, 6]), searching(22, &[7])]);
    let purpose = Purpose::Delegated(Delegation::Search(engine()));
    for _ in 0..50 {
        let requirement = Requirement::three_hops(purpose.clone());
        let relays = relays_of(&consensus, &list);
        let path = choose(&relays, &guards, &requirement, &[], &mut rng).unwrap().hops();
        assert!(list.volunteer(&path[2]).unwrap().gateways.contains(&path[1]), "seed {SEED}");
        assert!(path[0] != path[1]);
    }
}

#[test]
fn volunteers_that_fit_no_guard_do_not_change_the_guard() {
    let mut rng = rng();
    let gateway = |mut relay: ConsensusRelay| {
        relay.profile.operator = "one".into();
        relay
    };
    let relays = web_exits(1..=2).map(offering).chain((3..=7).map(|number| listed(profile(number))));
    let relays = relays.map(|relay| if relay.identity() == id(5) { gateway(relay) } else { relay });
    let parameters = Parameters::default().with("path.volunteer-exit-share", 100).unwrap();
    let consensus = consensus_at(NOW, relays, &parameters).0;
    let guards = sample(&consensus, &mut rng);
    let guard = guard_of(&consensus, &guards, &mut rng);
    // Half of the volunteers have the guard as their only gateway. The others have the operator of their gateway.
    let list = volunteers((1000..2000).map(|number| {
        let mut volunteer = listed_volunteer(number, &[if number % 2 == 0 { 5 } else { guard }]);
        volunteer.profile.operator = if number % 2 == 0 { "one".into() } else { String::new() };
        volunteer.profile.offer.engines = vec![engine()];
        volunteer
    }));
    let requirement = Requirement::three_hops(Purpose::Delegated(Delegation::Search(engine())));
    for _ in 0..50 {
        let relays = relays_of(&consensus, &list);
        let path = choose(&relays, &guards, &requirement, &[], &mut rng).unwrap().hops();
        assert_eq!(path[0], id(guard), "seed {SEED}");
        assert!(list.volunteer(&path[2]).is_none());
    }
}

#[test]
fn avoiding_all_listed_exits_at_most_doubles_the_share_of_volunteers() {
    let mut rng = rng();
    let relays = web_exits(1..=2).map(offering).chain((3..=7).map(|number| listed(profile(number))));
    let consensus = consensus_at(NOW, relays, &Parameters::default()).0;
    let guards = sample(&consensus, &mut rng);
    let list = volunteers((1000..1100).map(|number| {
        let mut volunteer = listed_volunteer(number, &[3, 4, 5]);
        volunteer.profile.offer.engines = vec![engine()];
        volunteer
    }));
    let requirement = Requirement::three_hops(Purpose::Delegated(Delegation::Search(engine())));
    let relays = relays_of(&consensus, &list);
    let mut through_volunteers = 0;
    for _ in 0..400 {
        let path = choose(&relays, &guards, &requirement, &[id(1), id(2)], &mut rng).unwrap();
        through_volunteers += u32::from(list.volunteer(&path.hops()[2]).is_some());
    }
    // At most twice a tenth: one choice with the avoided exits excluded, and one without.
    assert!((20..110).contains(&through_volunteers), "{through_volunteers} of 400");
}

#[test]
fn few_volunteers_get_at_most_their_proportion() {
    let (consensus, mut rng) = (full_share(), rng());
    let guards = sample(&consensus, &mut rng);
    let guard = guard_of(&consensus, &guards, &mut rng);
    let list = volunteers([listed_volunteer(21, &[guard])]);
    let relays = relays_of(&consensus, &list);
    let mut through_volunteer = 0;
    for _ in 0..4000 {
        let path = choose(&relays, &guards, &streams(3), &[], &mut rng).unwrap();
        through_volunteer += u32::from(path.hops()[1] == id(21));
    }
    // One of six candidates gets 667 of 4,000, with a standard deviation of 24.
    assert!((595..740).contains(&through_volunteer), "{through_volunteer} of 4000");
}
