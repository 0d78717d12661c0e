//! Tests of the time for which a relay counts as proved although it fails its proofs.

#[cfg(target_arch = "wasm32")]
use wasm_bindgen_test::wasm_bindgen_test as test;

use std::collections::BTreeMap;

use super::*;
use crate::directory::authority::relays::PROOF_LIFETIME;

const HOUR: u64 = 60 * 60;
const ADDRESS: &str = "20.0.0.1:1";

/// An authority that requests a proof of each relay once an hour.
fn hourly_authority() -> Authority {
    authority(AuthorityConfig { first_consensus_relays: 100, ..AuthorityConfig::default() })
}

/// Relays 1 to 8 at one address, which reach the cap on proved relays there.
fn register_eight(authority: &mut Authority) {
    for number in 1..=8 {
        register(authority, number, profile_at(number, &[ADDRESS]), NOW);
    }
    drain(authority);
}

/// Runs the authority in these seconds. Each six hours, relays 1 to 8 send a descriptor. `answers` states whether a
/// relay answers at a second. Returns the last record of each relay.
fn run(
    authority: &mut Authority,
    seconds: core::ops::Range<u64>,
    answers: impl Fn(RelayId, u64) -> bool,
) -> BTreeMap<RelayId, Vec<u8>> {
    let mut records = Vec::new();
    for second in seconds.step_by(60) {
        authority.handle_timeout(later(second));
        for number in (1..=8).filter(|_| second % (6 * HOUR) == 0) {
            _ = authority.handle_descriptor(
                later(second),
                &descriptor(number, profile_at(number, &[ADDRESS]), later(second)),
                None,
            );
        }
        let actions = drain(authority);
        records.extend(actions.records);
        for target in actions.proofs {
            let outcome = if answers(target.relay, second) { Ok(()) } else { FAILED };
            authority.handle_proof(later(second), &target, outcome);
        }
    }
    records.extend(drain(authority).records);
    records.into_iter().map(|record| (RelayEntry::decode(&record, NOW).unwrap().identity(), record)).collect()
}

fn is_proved(authority: &Authority, number: u16) -> bool {
    authority.relays.entry(&key(number).id()).unwrap().is_proved()
}

/// The answer to the descriptor of a newcomer at the address of relays 1 to 8.
fn newcomer(authority: &mut Authority, second: u64) -> Result<(), DescriptorError> {
    let bytes = descriptor(9, profile_at(9, &[ADDRESS]), later(second));
    authority.handle_descriptor(later(second), &bytes, None).map(drop)
}

#[test]
fn a_relay_that_stops_answering_loses_its_place_after_a_day_and_not_after_an_hour() {
    let mut authority = hourly_authority();
    register_eight(&mut authority);
    // Relay 1 never answers again. Relay 2 is down for an hour of each day.
    let answers =
        |relay, second| relay != key(1).id() && (relay != key(2).id() || !(20..21).contains(&(second / HOUR % 24)));
    run(&mut authority, 0..24 * HOUR, answers);
    assert_eq!(newcomer(&mut authority, 24 * HOUR), Err(DescriptorError::Crowded));
    run(&mut authority, 24 * HOUR..26 * HOUR, answers);
    assert_eq!((is_proved(&authority, 1), is_proved(&authority, 2)), (false, true));
    assert_eq!(newcomer(&mut authority, 26 * HOUR), Ok(()));
    run(&mut authority, 26 * HOUR..40 * HOUR, answers);
    assert!((2..=9).all(|number| is_proved(&authority, number)));
    // The relay answers again, but its place is taken.
    run(&mut authority, 40 * HOUR..42 * HOUR, |_, _| true);
    assert!(authority.relays.entry(&key(1).id()).is_none() && authority.ages.contains(&key(1).id()));
}

#[test]
fn a_held_relay_gains_no_age_while_it_fails_its_proofs() {
    let mut authority = hourly_authority();
    register_eight(&mut authority);
    // Relay 1 answers only at the start and at the end. Relay 2 is down for an hour of each day.
    let answers = |relay, second| {
        (relay != key(1).id() || second >= 216 * HOUR) && (relay != key(2).id() || second / HOUR % 24 != 20)
    };
    let records = run(&mut authority, 0..100 * HOUR, answers);
    let mut authority = hourly_authority();
    authority.restore(later(100 * HOUR), records.values().map(Vec::as_slice), None);
    drain(&mut authority);
    run(&mut authority, 100 * HOUR..219 * HOUR, answers);
    let age = |number: u16| {
        let entry = authority.relays.entry(&key(number).id()).unwrap();
        assert!(entry.is_proved());
        later(219 * HOUR).since(entry.known_since()).as_secs() / HOUR
    };
    assert!(age(1) <= 24 && age(2) >= 9 * 21 && age(3) == 219, "{} {} {}", age(1), age(2), age(3));
}

#[test]
fn a_relay_whose_proof_waits_keeps_its_place() {
    let mut authority = hourly_authority();
    register_eight(&mut authority);
    run(&mut authority, 0..2 * HOUR, |_, _| true);
    for number in 1..=8 {
        submit(&mut authority, number, profile_at(number, &[ADDRESS]), later(15 * HOUR));
    }
    let proofs = drain(&mut authority).proofs;
    assert!(!proofs.is_empty());
    // The outcomes are those of the authority itself.
    for target in &proofs {
        authority.handle_proof(later(15 * HOUR), target, Err(ProofError::Dial(DialError::Unable)));
    }
    drain(&mut authority);
    let late = NOW.after(PROOF_LIFETIME).after(Duration::from_secs(3 * HOUR));
    authority.handle_timeout(late);
    let first = drain(&mut authority).proofs.remove(0);
    authority.handle_proof(late, &first, FAILED);
    assert!((1..=8).all(|number| is_proved(&authority, number)), "the first failure may be short");
}

#[test]
fn a_restart_of_the_authority_neither_ends_nor_extends_the_lifetime_of_a_proof() {
    let mut before = hourly_authority();
    register_eight(&mut before);
    let records = run(&mut before, 0..23 * HOUR, |relay, _| relay != key(1).id());
    let mut after = hourly_authority();
    after.restore(later(23 * HOUR), records.values().map(Vec::as_slice), None);
    drain(&mut after);
    after.handle_timeout(later(23 * HOUR));
    assert!((1..=8).all(|number| is_proved(&after, number)));
    run(&mut after, 23 * HOUR..26 * HOUR, |relay, _| relay != key(1).id());
    assert!(!is_proved(&after, 1) && (2..=8).all(|number| is_proved(&after, number)));

    // Before the restart, the clock was ten hours ahead.
    let mut before = hourly_authority();
    let profile = profile_at(1, &[ADDRESS]);
    before.handle_descriptor(later(10 * HOUR), &descriptor(1, profile.clone(), NOW), None).unwrap();
    before.handle_proof(later(10 * HOUR), &profile.dial_target(), Ok(()));
    let record = drain(&mut before).records.remove(0);
    let mut after = hourly_authority();
    after.restore(NOW, [record.as_slice()], None);
    run(&mut after, 0..26 * HOUR, |_, _| false);
    assert!(!is_proved(&after, 1));
}
