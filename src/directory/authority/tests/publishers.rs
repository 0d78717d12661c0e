//! Tests of descriptors from many publishers.

use std::collections::BTreeSet;

#[cfg(target_arch = "wasm32")]
use wasm_bindgen_test::wasm_bindgen_test as test;

use super::*;

/// Submits a descriptor from the publisher at `from`.
fn submit_from(authority: &mut Authority, from: [u8; 4], number: u16, profile: Profile, now: WallTime) {
    let publisher = Publisher::at(from.into());
    assert!(publisher.is_some());
    authority.handle_descriptor(now, &descriptor(number, profile, now), publisher).unwrap();
}

/// Fails each proof after 20 s, for up to `seconds`. Returns the time until the proof of relay `honest` is requested.
fn seconds_until_proof(authority: &mut Authority, honest: u16, seconds: u64) -> Option<u64> {
    let mut running: VecDeque<(u64, DialTarget)> = VecDeque::new();
    for second in 0..seconds {
        while let Some((_, target)) = running.pop_front_if(|(since, _)| *since + 20 <= second) {
            authority.handle_proof(later(second), &target, FAILED);
        }
        authority.handle_timeout(later(second));
        for target in drain(authority).proofs {
            if target.relay == key(honest).id() {
                return Some(second);
            }
            running.push_back((second, target));
        }
    }
    None
}

#[test]
fn descriptors_of_one_publisher_delay_no_proofs_of_others() {
    let mut authority = public_authority();
    for number in 0..500 {
        submit_from(&mut authority, [90, 0, 0, 1], number, profile(number), NOW);
    }
    let proofs = drain(&mut authority).proofs.len();
    assert_eq!(proofs, 4, "the cap on running proofs of one network of publishers");
    submit_from(&mut authority, [91, 0, 0, 1], 1_000, profile(1_000), NOW);
    assert_eq!(drain(&mut authority).proofs, [profile(1_000).dial_target()], "without a wait");
}

#[test]
fn publishers_of_many_networks_and_sources_take_turns() {
    let mut authority = public_authority();
    for number in 0..640_u16 {
        // 32 networks; the honest relay is in one of them.
        submit_from(&mut authority, [90, (number % 32) as u8, 0, 1], number, profile(number), NOW);
    }
    submit_from(&mut authority, [90, 31, 0, 2], 1_000, profile(1_000), NOW);
    let waited = seconds_until_proof(&mut authority, 1_000, 600).expect("never proved");
    assert!(waited <= 100, "{waited} s");
}

#[test]
fn the_start_of_a_proof_examines_few_of_many_waiting_publishers() {
    const PUBLISHERS: u16 = 5_000;
    let mut authority = public_authority();
    for number in 0..PUBLISHERS {
        let [high, low] = number.to_be_bytes();
        let descriptor = crate::directory::Descriptor { profile: profile(number), published: NOW };
        let entry = RelayEntry::new(descriptor, &[], NOW).with_publisher(Publisher::at([90, high, low, 1].into()));
        authority.relays.insert(entry);
    }
    authority.handle_timeout(NOW);
    let mut running: VecDeque<DialTarget> = drain(&mut authority).proofs.into();
    assert_eq!(running.len(), MAX_PROOFS / 2);
    let (mut proved, before) = (BTreeSet::new(), authority.relays.examined_networks());
    for _ in 0..1_000 {
        let target = running.pop_front().unwrap();
        authority.handle_proof(later(1), &target, FAILED);
        assert!(proved.insert(target.relay), "each publisher has one turn");
        running.extend(drain(&mut authority).proofs);
    }
    let examined = authority.relays.examined_networks() - before;
    assert!(examined <= 2_000, "{examined} networks for 1,000 proofs");
    authority.assert_sound(later(1));
}

#[test]
fn proofs_of_new_and_of_proved_relays_do_not_delay_each_other() {
    let mut authority = public_authority();
    for number in 0..100 {
        insert_proved(&mut authority, number, &format!("30.{number}.0.1:1"), NOW);
    }
    for number in 100..200_u16 {
        submit_from(&mut authority, [90, number as u8, 0, 1], number, profile(number), NOW);
    }
    drain(&mut authority);
    authority.handle_timeout(later(3600));
    let proofs = drain(&mut authority).proofs;
    let proved = proofs.iter().filter(|target| target.addresses[0].to_string().starts_with("30.")).count();
    assert_eq!((proved, proofs.len()), (MAX_PROOFS / 2, MAX_PROOFS));
    assert!(authority.poll_timeout().unwrap() > later(3600), "proofs without a place set no deadline");
}

#[test]
fn a_full_directory_evicts_a_relay_of_the_publisher_with_the_most_unproved_ones() {
    let mut authority = public_authority();
    submit_from(&mut authority, [91, 0, 0, 1], 0, profile(0), NOW);
    authority.handle_proof(NOW, &profile(0).dial_target(), FAILED);
    for number in 1..MAX_HELD as u16 {
        let descriptor = crate::directory::Descriptor { profile: profile(number), published: NOW };
        let entry = RelayEntry::new(descriptor, &[], later(1)).with_publisher(Publisher::at([90, 0, 0, 1].into()));
        authority.relays.insert(entry);
    }
    submit_from(&mut authority, [92, 0, 0, 1], 20_000, profile(20_000), NOW);
    let deleted = drain(&mut authority).deleted;
    assert!(deleted.len() == 1 && deleted != [key(0).id()], "{deleted:?}");
}

#[test]
fn descriptors_each_second_cause_one_write_a_minute_after_a_burst() {
    let mut authority = public_authority();
    register(&mut authority, 1, profile(1), NOW);
    drain(&mut authority);
    let (mut records, mut accepted) = (0, 0);
    for second in 1..=600 {
        let profile = Profile { operator: second.to_string(), ..profile(1) };
        accepted +=
            u64::from(authority.handle_descriptor(later(second), &descriptor(1, profile, later(second)), None).is_ok());
        records += drain(&mut authority).records.len();
    }
    assert_eq!((accepted, records), (14, 14), "a burst of 5, and 9 in almost 10 minutes");
}
