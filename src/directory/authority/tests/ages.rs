//! Tests of the ages of relays that were dropped and return.

#[cfg(target_arch = "wasm32")]
use wasm_bindgen_test::wasm_bindgen_test as test;

use super::*;
use crate::directory::authority::ages::{MAX_ABSENCE, MAX_FORMER_RELAYS};

const DAY: u64 = 24 * 60 * 60;

/// The time since which relay `number` is known.
fn known_since(authority: &Authority, number: u16) -> WallTime {
    authority.relays.entry(&key(number).id()).unwrap().known_since()
}

/// A former relay in a /16.
fn former(known_since: WallTime, absent_since: WallTime, address: [u8; 4]) -> FormerRelay {
    FormerRelay { known_since, absent_since, addresses: vec![(address, 1).into()] }
}

fn identity(number: u16) -> RelayId {
    let mut bytes = [0; 32];
    bytes[..2].copy_from_slice(&number.to_be_bytes());
    RelayId::from_bytes(bytes)
}

#[test]
fn a_relay_that_returns_within_sixty_days_keeps_its_age_without_the_absence() {
    // The relay is dropped after a day.
    for (days, expected) in [(58, later(57 * DAY)), (62, later(62 * DAY))] {
        let mut authority = public_authority();
        register(&mut authority, 1, profile(1), NOW);
        authority.handle_timeout(later(DAY));
        assert_eq!(drain(&mut authority).deleted, [key(1).id()]);
        register(&mut authority, 1, profile(1), later(days * DAY));
        assert_eq!(known_since(&authority, 1), expected, "after {days} days");
    }
}

#[test]
fn a_relay_is_known_from_its_first_proof_on() {
    let mut authority = public_authority();
    submit(&mut authority, 1, profile(1), NOW);
    authority.handle_proof(NOW, &profile(1).dial_target(), FAILED);
    authority.handle_timeout(later(5));
    authority.handle_proof(later(5), &profile(1).dial_target(), Ok(()));
    assert_eq!(known_since(&authority, 1), later(5));
}

#[test]
fn ages_survive_restarts_and_a_long_absence_of_the_directory() {
    let mut before = public_authority();
    register(&mut before, 1, profile(1), NOW);
    let records = drain(&mut before).records;
    // The relay's record is stale at the first restart, and its age is stored in place of the record.
    let mut after = public_authority();
    after.restore(later(90 * DAY), records.iter().map(Vec::as_slice), None);
    let ages = drain(&mut after).ages;
    assert_eq!((after.relays.len(), ages.len()), (0, 1));
    let mut again = public_authority();
    again.restore(later(91 * DAY), ages.iter().map(Vec::as_slice), None);
    submit(&mut again, 1, profile(1), later(91 * DAY));
    again.handle_proof(later(91 * DAY), &profile(1).dial_target(), FAILED);
    again.relays.remove(&key(1).id());
    register(&mut again, 1, profile(1), later(92 * DAY));
    assert_eq!(known_since(&again, 1), later(2 * DAY), "the restart dropped the relay");
    let actions = drain(&mut again);
    assert!(
        actions.deleted.is_empty() && !actions.records.is_empty(),
        "the record of the relay replaces that of its age"
    );
}

#[test]
fn an_age_is_deleted_after_sixty_days() {
    let mut authority = public_authority();
    register(&mut authority, 1, profile(1), NOW);
    authority.handle_timeout(later(DAY));
    assert_eq!(drain(&mut authority).deleted.len(), 1);
    let expired = later(DAY).after(MAX_ABSENCE);
    authority.handle_timeout(expired.before(Duration::from_secs(1)));
    assert!(drain(&mut authority).deleted.is_empty());
    authority.handle_timeout(expired);
    assert_eq!(drain(&mut authority).deleted, [key(1).id()]);
    assert!(!authority.ages.contains(&key(1).id()));
}

#[test]
fn an_attacker_that_takes_the_places_of_a_relay_does_not_reset_its_age() {
    let mut authority = public_authority();
    let honest = profile_at(1, &["20.0.0.200:1"]);
    register(&mut authority, 1, honest.clone(), NOW);
    drain(&mut authority);
    let mut number = 2;
    for day in 1..=4 {
        // The attacker fills the network each day with new identities. Those of the day before become former relays.
        let now = later(day * DAY);
        authority.handle_timeout(now);
        for host in 1..=32 {
            register(&mut authority, number, profile_at(number, &[&format!("20.0.0.{host}:1")]), now);
            number += 1;
        }
        assert_eq!(authority.listed(now), 32);
        let returned = authority.handle_descriptor(now, &descriptor(1, honest.clone(), now), None);
        assert_eq!(returned, Err(DescriptorError::Crowded));
    }
    let now = later(5 * DAY);
    authority.handle_timeout(now);
    register(&mut authority, 1, honest, now);
    assert_eq!(known_since(&authority, 1), later(4 * DAY), "the relay loses only its absence");
}

#[test]
fn an_unproved_descriptor_of_a_former_relay_does_not_delete_its_age() {
    let mut authority = public_authority();
    register(&mut authority, 1, profile_at(1, &["20.0.0.1:1"]), NOW);
    authority.handle_timeout(later(DAY));
    drain(&mut authority);
    // The relay returns, but isn't proved, and is evicted by unproved relays of its network.
    for number in 1..=40 {
        let now = later(DAY + u64::from(number));
        submit(&mut authority, number, profile_at(number, &[&format!("20.0.0.{number}:1")]), now);
        for target in drain(&mut authority).proofs {
            authority.handle_proof(now, &target, FAILED);
        }
    }
    assert!(authority.relays.entry(&key(1).id()).is_none());
    assert!(!drain(&mut authority).deleted.contains(&key(1).id()));
    register(&mut authority, 1, profile_at(1, &["20.0.0.1:1"]), later(2 * DAY));
    assert_eq!(known_since(&authority, 1), later(DAY));
}

/// Sends a descriptor of relay 1 at a claimed address each half day, from half day `from` to `to`, and fails its proofs.
fn claim(authority: &mut Authority, from: u64, to: u64) {
    for half_day in from..to {
        let now = later(half_day * DAY / 2);
        submit(authority, 1, profile_at(1, &["30.0.0.1:1"]), now);
        for target in drain(authority).proofs {
            authority.handle_proof(now, &target, FAILED);
        }
        assert!(authority.relays.entry(&key(1).id()).is_some_and(|entry| !entry.is_proved()));
    }
}

#[test]
fn a_relay_gains_no_age_at_addresses_that_it_only_claims() {
    for (days, restarts) in [(9, false), (9, true), (61, false)] {
        let mut authority = public_authority();
        register(&mut authority, 1, profile_at(1, &["20.0.0.1:1"]), NOW);
        claim(&mut authority, 1, days);
        if restarts {
            submit(&mut authority, 1, profile_at(1, &["30.0.0.1:1"]), later(days * DAY / 2));
            let record = drain(&mut authority).records.pop().unwrap();
            authority = public_authority();
            authority.restore(later(days * DAY / 2), [record.as_slice()], None);
            drain(&mut authority);
            authority.handle_proof(later(days * DAY / 2), &profile_at(1, &["30.0.0.1:1"]).dial_target(), FAILED);
        }
        claim(&mut authority, days + 1, 2 * days);
        let now = later(days * DAY);
        register(&mut authority, 1, profile_at(1, &["30.0.0.1:1"]), now);
        assert!(authority.relays.entry(&key(1).id()).unwrap().is_proved());
        assert_eq!(known_since(&authority, 1), now, "{days} days, {restarts}");
    }
}

#[test]
fn the_absence_of_a_dropped_relay_starts_at_its_last_proof() {
    let mut authority = public_authority();
    register(&mut authority, 1, profile_at(1, &["20.0.0.1:1"]), NOW);
    register(&mut authority, 1, profile_at(1, &["20.0.0.1:1"]), later(DAY / 4));
    claim(&mut authority, 1, 8);
    authority.handle_timeout(later(6 * DAY));
    assert!(authority.relays.entry(&key(1).id()).is_none() && authority.ages.contains(&key(1).id()));
    register(&mut authority, 1, profile_at(1, &["30.0.0.1:1"]), later(7 * DAY));
    assert_eq!(known_since(&authority, 1), later(7 * DAY - DAY / 4), "it was proved for a quarter of a day");
}

#[test]
fn an_age_counts_for_the_proved_addresses_and_not_for_claimed_ones() {
    let mut authority = public_authority();
    register(&mut authority, 1, profile_at(1, &["20.0.0.1:1"]), NOW);
    submit(&mut authority, 1, profile_at(1, &["30.0.0.1:1"]), later(1));
    authority.handle_timeout(later(DAY));
    let ages = drain(&mut authority).ages;
    let (_, former) = FormerRelay::decode(&ages[0], later(DAY)).unwrap();
    assert_eq!(former.addresses, ["20.0.0.1:1".parse::<SocketAddr>().unwrap()]);
}

#[test]
fn at_a_cap_of_ages_the_youngest_relay_of_the_fullest_prefix_loses_its_age() {
    let mut ages = Ages::new(false);
    let honest = identity(u16::MAX);
    assert!(ages.add(honest, former(later(1000), later(1000), [20, 0, 0, 1])).is_empty());
    // 63 blocks are at their cap of 256, of 8 networks at their cap of 32. All these relays are older.
    for number in 0..63 * 256_u16 {
        let [block, rest] = number.to_be_bytes();
        let former = former(later(u64::from(number) % 500), later(1000), [90, block, rest / 32, rest % 32]);
        assert!(ages.add(identity(number), former).is_empty());
    }
    let older = ages.add(identity(50_000), former(NOW, later(1000), [90, 0, 0, 200]));
    assert_eq!(older.len(), 1, "the network is at its cap");
    let younger = ages.add(identity(50_001), former(later(999), later(1000), [90, 0, 0, 201]));
    assert_eq!(younger, [identity(50_001)], "a younger relay displaces none");
    // Further relays in blocks of their own fill the table.
    for extra in 0..300_u16 {
        let [high, low] = extra.to_be_bytes();
        let dropped = ages.add(identity(60_000 + extra), former(later(2000), later(2000), [100 + high, low, 0, 1]));
        assert!(
            dropped.iter().all(|relay| *relay != honest && relay.as_bytes()[0] < 200),
            "the fullest block loses one"
        );
    }
    assert!(ages.contains(&honest));
    assert!(ages.len() == MAX_FORMER_RELAYS, "{}", ages.len());
}
