//! Tests of the caps on relays at one address, in one network and in one block.

#[cfg(target_arch = "wasm32")]
use wasm_bindgen_test::wasm_bindgen_test as test;

use super::*;

#[test]
fn of_one_address_network_and_block_only_the_longest_known_relays_are_listed() {
    for (cap, place) in [(4, "20.0.0.1"), (16, "20.0.0.H"), (128, "20.0.H.1")] {
        let mut authority = public_authority();
        for number in (1..=cap + 1).rev() {
            let address = format!("{}:{number}", place.replace('H', &number.to_string()));
            insert_proved(&mut authority, number, &address, NOW.before(Duration::from_secs(1000 - u64::from(number))));
        }
        insert_proved(&mut authority, 500, "20.1.0.1:1", NOW);
        authority.handle_timeout(NOW);
        let consensus = published(&mut authority, NOW).unwrap();
        let listed = |number| consensus.relay(&key(number).id()).is_some();
        assert_eq!(consensus.relays().len(), usize::from(cap) + 1, "{place}");
        assert!(listed(1) && listed(cap) && listed(500) && !listed(cap + 1), "{place}");
    }
}

#[test]
fn at_most_eight_relays_are_proved_at_one_address_and_others_are_accepted() {
    let mut authority = public_authority();
    let mut dialled = 0;
    for number in 1..=MAX_RELAYS as u16 {
        let refused = authority.handle_descriptor(
            NOW,
            &descriptor(number, profile_at(number, &[&format!("20.0.0.1:{}", 1000 + number)]), NOW),
            None,
        );
        assert!(refused.is_ok() || refused == Err(DescriptorError::Crowded), "{refused:?}");
        for target in drain(&mut authority).proofs {
            dialled += 1;
            authority.handle_proof(NOW, &target, Ok(()));
        }
    }
    assert_eq!((authority.relays.len(), authority.listed(NOW)), (8, 8));
    assert!(dialled <= 8, "{dialled}");
    register(&mut authority, 20_000, profile(20_000), NOW);
    assert_eq!(authority.listed(NOW), 9);
}

#[test]
fn relays_that_are_proved_at_the_same_time_do_not_exceed_the_caps() {
    let mut authority = public_authority();
    for number in 1..=7 {
        register(&mut authority, number, profile_at(number, &[&format!("20.0.0.1:{number}")]), NOW);
    }
    drain(&mut authority);
    for number in 8..=10 {
        submit(&mut authority, number, profile_at(number, &[&format!("20.0.0.1:{number}")]), NOW);
    }
    let proofs = drain(&mut authority).proofs;
    assert_eq!(proofs.len(), 3);
    for target in &proofs {
        authority.handle_proof(NOW, target, Ok(()));
    }
    let actions = drain(&mut authority);
    assert_eq!((authority.listed(NOW), actions.deleted.len(), actions.records.len()), (8, 2, 1));
    // A relay at another address can't move to this address either.
    register(&mut authority, 11, profile_at(11, &["20.1.0.1:1"]), NOW);
    let moved =
        authority.handle_descriptor(later(1), &descriptor(11, profile_at(11, &["20.0.0.1:11"]), later(1)), None);
    assert_eq!(moved, Err(DescriptorError::Crowded));
    assert_eq!(authority.listed(later(1)), 9, "the relay stays listed at its old address");
}

#[test]
fn stored_relays_beyond_the_caps_are_deleted_the_shortest_known_first() {
    let mut before = authority(AuthorityConfig::testnet(1));
    for number in 1..=9 {
        register(
            &mut before,
            number,
            profile_at(number, &[&format!("20.0.0.1:{number}")]),
            later(u64::from(10 - number)),
        );
    }
    let records = drain(&mut before).records;
    let mut after = public_authority();
    after.restore(later(20), records.iter().map(Vec::as_slice), None);
    assert_eq!((after.listed(later(20)), drain(&mut after).deleted), (8, vec![key(1).id()]));
}

/// An authority with the maximum number of relays. Relays 1 to 100 are in one block, and relay *n* is known from *n*
/// seconds after `known_since` on. All other relays are known for 1,000 s, in blocks with fewer relays.
fn full_authority(known_since: WallTime) -> Authority {
    let mut authority = public_authority();
    for number in 1..=MAX_RELAYS as u16 {
        let [high, low] = number.to_be_bytes();
        let (address, since) = match number {
            1..=100 => (format!("20.0.{number}.1:1"), known_since.after(Duration::from_secs(number.into()))),
            _ => (format!("{}.{}.0.1:1", 30 + high, low), NOW.before(Duration::from_secs(1000))),
        };
        insert_proved(&mut authority, number, &address, since);
    }
    authority
}

#[test]
fn in_a_full_directory_a_relay_of_the_most_crowded_block_is_displaced() {
    let mut authority = full_authority(NOW.before(Duration::from_secs(1000)));
    register(&mut authority, 20_000, profile_at(20_000, &["90.0.0.1:1"]), NOW);
    assert_eq!(drain(&mut authority).deleted, [key(100).id()], "the youngest relay of that block");
    assert!(authority.relays.entry(&key(20_000).id()).unwrap().is_proved());
    let crowded =
        authority.handle_descriptor(NOW, &descriptor(20_001, profile_at(20_001, &["20.0.200.1:1"]), NOW), None);
    assert_eq!(crowded, Err(DescriptorError::Full), "its own block is the most crowded");
}

#[test]
fn descriptors_of_unproved_relays_displace_no_proved_one() {
    let mut authority = full_authority(NOW.before(Duration::from_secs(1000)));
    for number in 20_000..20_100 {
        let [high, low] = (number - 20_000_u16).to_be_bytes();
        _ = authority.handle_descriptor(
            NOW,
            &descriptor(number, profile_at(number, &[&format!("{}.{low}.0.1:1", 90 + high)]), NOW),
            None,
        );
    }
    assert_eq!(authority.listed(NOW), MAX_RELAYS);
    assert!(drain(&mut authority).deleted.is_empty());
}

#[test]
fn unproved_relays_have_places_beside_a_full_list_of_proved_ones() {
    let mut authority = full_authority(NOW.before(Duration::from_secs(1000)));
    for number in 20_000..21_100_u16 {
        let [high, low] = number.to_be_bytes();
        submit(&mut authority, number, profile_at(number, &[&format!("{}.{low}.0.1:1", 60 + high)]), NOW);
    }
    assert_eq!((authority.relays.len(), authority.listed(NOW)), (MAX_HELD, MAX_RELAYS));
}

#[test]
fn a_relay_that_is_proved_when_the_directory_is_full_is_dropped() {
    let days = |days: u64| NOW.before(Duration::from_secs(days * 24 * 60 * 60));
    let mut authority = full_authority(days(10));
    for number in 101..=MAX_RELAYS as u16 {
        let [high, low] = number.to_be_bytes();
        insert_proved(&mut authority, number, &format!("{}.{}.0.1:1", 30 + high, low), days(9));
    }
    insert_proved(&mut authority, 100, "20.0.100.1:1", days(1));
    // The two newcomers are in one block. One relay can be displaced.
    let newcomers = [(20_000, "90.0.0.1:1"), (20_001, "90.0.1.1:1")];
    for (number, address) in newcomers {
        submit(&mut authority, number, profile_at(number, &[address]), NOW);
    }
    for (number, address) in newcomers {
        authority.handle_proof(NOW, &profile_at(number, &[address]).dial_target(), Ok(()));
    }
    assert_eq!(drain(&mut authority).deleted, [key(100).id(), key(20_001).id()]);
    assert_eq!(authority.listed(NOW), MAX_RELAYS);
}

#[test]
fn a_relay_known_for_eight_days_is_never_displaced() {
    let mut authority = full_authority(NOW.before(Duration::from_secs(8 * 24 * 60 * 60 + 200)));
    for number in 101..=MAX_RELAYS as u16 {
        let [high, low] = number.to_be_bytes();
        let since = NOW.before(Duration::from_secs(9 * 24 * 60 * 60));
        insert_proved(&mut authority, number, &format!("{}.{}.0.1:1", 30 + high, low), since);
    }
    let full = authority.handle_descriptor(NOW, &descriptor(20_000, profile_at(20_000, &["90.0.0.1:1"]), NOW), None);
    assert_eq!(full, Err(DescriptorError::Full));
}
