use super::*;
use crate::directory::{
    DESCRIPTOR_LIFETIME, Flags, Profile,
    fixture::{NOW, descriptor, exit_profile, key, profile},
};

#[cfg(target_arch = "wasm32")]
use wasm_bindgen_test::wasm_bindgen_test as test;

mod ages;
mod crowding;
mod length;
mod lifetime;
mod publishers;
mod schedule;

fn later(seconds: u64) -> WallTime {
    NOW.after(Duration::from_secs(seconds))
}

fn authority(config: AuthorityConfig) -> Authority {
    Authority::new(key(100), config)
}

/// The actions that the authority requested.
#[derive(Default)]
struct Actions {
    proofs: Vec<DialTarget>,
    published: Vec<Vec<u8>>,
    volunteers: Vec<Vec<u8>>,
    /// The records of relays.
    records: Vec<Vec<u8>>,
    /// The records of former relays.
    ages: Vec<Vec<u8>>,
    /// The relays whose records were deleted or replaced by their ages.
    deleted: Vec<RelayId>,
}

fn drain(authority: &mut Authority) -> Actions {
    let mut actions = Actions::default();
    while let Some(event) = authority.poll_event() {
        match event {
            AuthorityEvent::Prove(target) => actions.proofs.push(target),
            AuthorityEvent::Publish(consensus) => actions.published.push(consensus.into_bytes()),
            AuthorityEvent::PublishVolunteers(list) => actions.volunteers.push(list.into_bytes()),
            AuthorityEvent::StoreRecord { relay, record } if FormerRelay::decode(&record, NOW).is_some() => {
                actions.ages.push(record);
                actions.deleted.push(relay);
            }
            AuthorityEvent::StoreRecord { record, .. } => actions.records.push(record),
            AuthorityEvent::DeleteRecord(relay) => actions.deleted.push(relay),
        }
    }
    actions
}

fn verified(bytes: &[u8], now: WallTime) -> Consensus {
    UnverifiedConsensus::decode(bytes).unwrap().verify(&[key(100).id().into()], now, None).unwrap()
}

/// The published consensus, of which there is at most one.
fn published(authority: &mut Authority, now: WallTime) -> Option<Consensus> {
    let actions = drain(authority);
    assert!(actions.published.len() <= 1);
    actions.published.first().map(|bytes| verified(bytes, now))
}

fn submit(authority: &mut Authority, number: u16, profile: Profile, now: WallTime) {
    authority.handle_descriptor(now, &descriptor(number, profile, now), None).unwrap();
}

/// Submits the relay's descriptor, and reports a successful proof.
fn register(authority: &mut Authority, number: u16, profile: Profile, now: WallTime) {
    let target = profile.dial_target();
    submit(authority, number, profile, now);
    authority.handle_proof(now, &target, Ok(()));
}

const FAILED: Result<(), ProofError> = Err(ProofError::Dial(DialError::TimedOut));

#[test]
fn the_first_consensus_waits_for_all_relays_and_the_next_for_the_interval() {
    let mut authority = authority(AuthorityConfig::testnet(2));
    register(&mut authority, 1, profile(1), NOW);
    assert!(published(&mut authority, NOW).is_none());
    register(&mut authority, 2, profile(2), NOW);
    let first = published(&mut authority, NOW).unwrap();
    assert_eq!(first.relays().len(), 2);
    assert!(first.parameters().allows_similar_addresses());
    assert_eq!(first.fresh_until(), later(20));
    register(&mut authority, 3, profile(3), later(1));
    authority.handle_timeout(later(19));
    assert!(published(&mut authority, later(19)).is_none());
    authority.handle_timeout(later(20));
    let second = published(&mut authority, later(20)).unwrap();
    assert_eq!(second.relays().len(), 3);
    assert!(second.valid_after() > first.valid_after());
}

#[test]
fn a_consensus_is_later_than_the_last_one_even_if_the_clock_is_set_back() {
    let mut authority = authority(AuthorityConfig { interval: Duration::ZERO, ..AuthorityConfig::testnet(1) });
    register(&mut authority, 1, profile(1), NOW);
    let (mut last, mut count) = (None, 0);
    for now in [NOW, NOW, later(5), NOW.before(Duration::from_secs(60)), later(5)] {
        authority.handle_timeout(now);
        for bytes in drain(&mut authority).published {
            let consensus = verified(&bytes, later(10));
            assert!(last.is_none_or(|last| last < consensus.valid_after()));
            last = Some(consensus.valid_after());
            count += 1;
        }
    }
    assert!(count > 2, "{count} consensuses");
}

#[test]
fn a_relay_is_dialled_at_its_address_and_listed_only_after_a_proof() {
    let mut authority = authority(AuthorityConfig::testnet(1));
    submit(&mut authority, 1, profile(1), NOW);
    assert_eq!(drain(&mut authority).proofs, [profile(1).dial_target()]);
    assert_eq!(authority.listed(NOW), 0);
    authority.handle_proof(NOW, &profile(1).dial_target(), Err(ProofError::Identity));
    assert_eq!(authority.listed(NOW), 0);
    authority.handle_timeout(later(4));
    assert!(drain(&mut authority).proofs.is_empty(), "a failed dial is repeated after a wait");
    authority.handle_timeout(later(5));
    assert_eq!(drain(&mut authority).proofs.len(), 1);
    authority.handle_proof(later(5), &profile(1).dial_target(), Ok(()));
    assert_eq!(authority.listed(later(5)), 1);
}

#[test]
fn a_proof_at_one_address_does_not_count_at_another() {
    let mut authority = authority(AuthorityConfig::testnet(1));
    submit(&mut authority, 1, profile(1), NOW);
    let moved = Profile { addresses: profile(9).addresses, ..profile(1) };
    submit(&mut authority, 1, moved.clone(), later(1));
    assert_eq!(drain(&mut authority).proofs, [profile(1).dial_target()], "one dial at a time");
    authority.handle_proof(later(1), &profile(1).dial_target(), Ok(()));
    assert_eq!(authority.listed(later(1)), 0);
    authority.handle_timeout(later(6));
    assert_eq!(drain(&mut authority).proofs, [moved.dial_target()]);
    authority.handle_proof(later(6), &moved.dial_target(), Ok(()));
    assert_eq!(authority.listed(later(6)), 1);
    submit(&mut authority, 1, profile(1), later(7));
    assert_eq!(authority.listed(later(7)), 0, "a new address needs a new proof");
    assert!(drain(&mut authority).proofs.is_empty(), "the next proof is not within 5 s of the last");
    authority.handle_timeout(later(11));
    assert_eq!(drain(&mut authority).proofs, [profile(1).dial_target()]);
}

#[test]
fn a_new_onion_key_needs_no_new_proof() {
    let mut authority = authority(AuthorityConfig::testnet(1));
    register(&mut authority, 1, profile(1), NOW);
    drain(&mut authority);
    let rotated = Profile { onion_key: profile(7).onion_key, ..profile(1) };
    submit(&mut authority, 1, rotated, later(1));
    assert!(drain(&mut authority).proofs.is_empty());
    authority.handle_timeout(later(20));
    let consensus = published(&mut authority, later(20)).unwrap();
    assert_eq!(consensus.relay(&key(1).id()).unwrap().keys().onion_key, profile(7).onion_key);
}

#[test]
fn a_relay_is_not_listed_after_two_failed_proofs_until_it_passes_one() {
    let mut authority = authority(AuthorityConfig::testnet(1));
    register(&mut authority, 1, profile(1), NOW);
    let target = profile(1).dial_target();
    drain(&mut authority);
    authority.handle_timeout(later(20));
    assert_eq!(drain(&mut authority).proofs.len(), 1);
    authority.handle_proof(later(20), &target, FAILED);
    assert_eq!(authority.listed(later(20)), 1, "one failure is not sufficient");
    authority.handle_timeout(later(25));
    assert_eq!(drain(&mut authority).proofs.len(), 1);
    authority.handle_proof(later(25), &target, FAILED);
    assert_eq!(authority.listed(later(25)), 0);
    authority.handle_timeout(later(35));
    assert_eq!(drain(&mut authority).proofs.len(), 1);
    authority.handle_proof(later(35), &target, Ok(()));
    assert_eq!(authority.listed(later(35)), 1);
}

#[test]
fn a_proof_without_outcome_times_out() {
    let mut authority = authority(AuthorityConfig::testnet(1));
    submit(&mut authority, 1, profile(1), NOW);
    drain(&mut authority);
    assert_eq!(authority.poll_timeout(), Some(later(30)));
    authority.handle_timeout(later(30));
    assert_eq!(authority.poll_timeout(), Some(later(35)));
    authority.handle_timeout(later(35));
    assert_eq!(drain(&mut authority).proofs.len(), 1);
}

#[test]
fn the_number_of_proofs_in_progress_is_capped() {
    let mut authority = authority(AuthorityConfig::testnet(100));
    for number in 1..=MAX_PROOFS as u16 + 5 {
        submit(&mut authority, number, profile(number), NOW);
    }
    let proofs = drain(&mut authority).proofs;
    assert_eq!(proofs.len(), MAX_PROOFS);
    assert!(authority.poll_timeout().unwrap() > NOW, "a relay that can't be dialled yet sets no deadline");
    authority.handle_proof(NOW, &proofs[0], Ok(()));
    assert_eq!(drain(&mut authority).proofs.len(), 1);
}

#[test]
fn a_relay_with_a_stale_descriptor_is_dropped() {
    let mut authority = authority(AuthorityConfig::testnet(1));
    register(&mut authority, 1, profile(1), NOW);
    drain(&mut authority);
    let stale = NOW.after(DESCRIPTOR_LIFETIME + Duration::from_secs(1));
    authority.handle_timeout(stale);
    let actions = drain(&mut authority);
    assert_eq!(actions.deleted, [key(1).id()]);
    assert!(actions.published.is_empty(), "an empty consensus is not created");
}

#[test]
fn descriptors_are_refused_with_the_reason() {
    let mut strict = authority(AuthorityConfig { private_addresses: false, ..AuthorityConfig::testnet(1) });
    let error = |authority: &mut Authority, profile: Profile, published: WallTime| {
        authority.handle_descriptor(NOW, &descriptor(1, profile, published), None).err()
    };
    let at = |address: &str| Profile { addresses: vec![address.parse().unwrap()], ..profile(1) };
    for private in ["127.0.0.1:1", "10.0.0.1:1", "[::1]:1", "169.254.169.254:80"] {
        assert_eq!(error(&mut strict, at(private), NOW), Some(DescriptorError::PrivateAddress), "{private}");
    }
    assert_eq!(error(&mut strict, at("20.0.0.1:1"), NOW), None);
    assert_eq!(error(&mut strict, at("20.0.0.1:1"), NOW), None, "the same descriptor is accepted again");
    assert_eq!(error(&mut strict, at("20.0.0.2:1"), NOW), Some(DescriptorError::Older));
    let before = NOW.before(Duration::from_secs(1));
    assert_eq!(error(&mut strict, at("20.0.0.2:1"), before), Some(DescriptorError::Older));
    assert!(matches!(strict.handle_descriptor(NOW, b"garbage", None), Err(DescriptorError::Malformed(_))));
    assert_eq!(
        error(&mut authority(AuthorityConfig::testnet(1)), at("127.0.0.1:1"), NOW),
        None,
        "a testnet accepts private addresses"
    );
}

#[test]
fn unproved_relays_are_evicted_for_new_ones() {
    let mut authority = authority(AuthorityConfig::testnet(1));
    register(&mut authority, 1, profile(1), NOW);
    for number in 2..=MAX_HELD as u16 {
        let descriptor = crate::directory::Descriptor { profile: profile(number), published: NOW };
        authority.relays.insert(RelayEntry::new(descriptor, &[], later(u64::from(number))));
    }
    drain(&mut authority);
    submit(&mut authority, 20_000, profile(20_000), NOW);
    assert_eq!(drain(&mut authority).deleted, [key(2).id()]);
    for number in 3..=MAX_RELAYS as u16 {
        authority.relays.change(&key(number).id(), |entry| entry.handle_proved(NOW, Duration::from_secs(60)));
    }
    authority.handle_proof(NOW, &profile(20_000).dial_target(), Ok(()));
    let full = authority.handle_descriptor(NOW, &descriptor(20_001, profile(20_001), NOW), None);
    assert_eq!(full, Err(DescriptorError::Full));
}

#[test]
fn stored_relays_are_listed_and_dialled_again_after_a_restart() {
    let mut before = authority(AuthorityConfig::testnet(2));
    register(&mut before, 1, profile(1), NOW);
    register(&mut before, 2, exit_profile(2, &["accept *"]), NOW);
    let actions = drain(&mut before);
    let (records, consensus) = (&actions.records, &actions.published[0]);

    let restart = |now: WallTime, key_number: u16, damaged: bool| {
        let mut after = Authority::new(key(key_number), AuthorityConfig::testnet(2));
        let garbage = [vec![0xff; 40], Vec::new()];
        let garbage = if damaged { &garbage[..] } else { &[] };
        let records = records.iter().chain(garbage).map(Vec::as_slice);
        after.restore(now, records, Some(consensus));
        after
    };
    let mut after = restart(later(5), 100, true);
    assert_eq!(after.listed(later(5)), 2);
    let actions = drain(&mut after);
    assert_eq!(
        actions.published,
        core::slice::from_ref(consensus),
        "the stored consensus is published immediately, and the next one at its time"
    );
    assert_eq!(actions.proofs.len(), 2);
    after.handle_timeout(later(20));
    let next = published(&mut after, later(20)).unwrap();
    assert_eq!(next.relays().len(), 2);
    assert!(next.relay(&key(2).id()).unwrap().flags.contains(Flags::EXIT));

    let mut much_later = restart(NOW.after(DESCRIPTOR_LIFETIME * 2), 100, false);
    assert_eq!(much_later.listed(NOW.after(DESCRIPTOR_LIFETIME * 2)), 0);
    assert!(drain(&mut much_later).published.is_empty(), "an expired consensus is not served");

    let mut other = restart(later(5), 101, false);
    let actions = drain(&mut other).published;
    assert!(!actions.contains(consensus), "another authority's consensus is not served as its own");
}

#[test]
fn a_clock_that_does_not_match_the_last_consensus_is_detected_at_the_start() {
    let mut before = authority(AuthorityConfig::testnet(1));
    register(&mut before, 1, profile(1), NOW);
    let last = drain(&mut before).published.remove(0);
    let config = AuthorityConfig { clock_is_right: true, ..AuthorityConfig::testnet(1) };
    let (strict, trusting) = (authority(AuthorityConfig::testnet(1)), authority(config));
    let day = 24 * 60 * 60;
    let minute = Duration::from_secs(60);
    for (now, expected) in [
        (NOW, None),
        (NOW.before(minute), None),
        (later(day - 1), None),
        (NOW.before(minute * 2), Some(ClockMismatch::Behind(minute * 2))),
        (later(day), Some(ClockMismatch::Ahead(Duration::from_secs(day)))),
    ] {
        assert_eq!(strict.clock_mismatch(now, &last), expected);
        assert_eq!(trusting.clock_mismatch(now, &last), None);
        assert_eq!(strict.clock_mismatch(now, b"none"), None);
    }
}

#[test]
fn after_a_consensus_from_the_future_the_next_one_has_the_right_date() {
    let ten_years = later(10 * 365 * 24 * 60 * 60);
    let mut before = authority(AuthorityConfig::testnet(1));
    register(&mut before, 1, profile(1), ten_years);
    let last = drain(&mut before).published.remove(0);
    let config = AuthorityConfig { clock_is_right: true, ..AuthorityConfig::testnet(1) };
    let mut after = authority(config);
    after.restore(NOW, [], Some(&last));
    assert!(drain(&mut after).published.is_empty(), "the consensus from the future is not served");
    register(&mut after, 1, profile(1), NOW);
    assert_eq!(published(&mut after, NOW).unwrap().valid_after(), NOW);
}

#[test]
fn the_consensus_lists_only_mutual_family_of_listed_relays() {
    let mut authority = authority(AuthorityConfig::testnet(3));
    let family = |numbers: &[u16]| numbers.iter().map(|number| key(*number).id()).collect::<Vec<_>>();
    register(&mut authority, 1, Profile { family: family(&[2, 3, 9]), ..profile(1) }, NOW);
    register(&mut authority, 2, Profile { family: family(&[1]), ..profile(2) }, NOW);
    register(&mut authority, 3, profile(3), NOW);
    let consensus = published(&mut authority, NOW).unwrap();
    let listed = |number| consensus.relay(&key(number).id()).unwrap().profile.family.clone();
    assert_eq!(listed(1), family(&[2]));
    assert_eq!(listed(2), family(&[1]));
    assert!(listed(3).is_empty());
}

#[test]
fn relays_are_stable_after_the_configured_time_or_the_median_time() {
    let hour = 60 * 60;
    let day = Duration::from_secs(24 * hour);
    let config = AuthorityConfig {
        stable_after: Duration::from_secs(10 * hour),
        proof_interval: day,
        ..AuthorityConfig::testnet(4)
    };
    let mut authority = authority(config);
    for number in 1..=4_u16 {
        register(&mut authority, number, profile(number), later(u64::from(number) * hour));
    }
    let consensus = published(&mut authority, later(4 * hour)).unwrap();
    let guard = |consensus: &Consensus, number| {
        consensus.relay(&key(number).id()).unwrap().flags.contains(Flags::GUARD | Flags::STABLE)
    };
    assert_eq!([1, 2, 3, 4].map(|number| guard(&consensus, number)), [true, true, false, false]);
    authority.handle_timeout(later(13 * hour));
    let consensus = published(&mut authority, later(13 * hour)).unwrap();
    assert_eq!([1, 2, 3, 4].map(|number| guard(&consensus, number)), [true, true, true, false]);
}

/// An authority that accepts only global addresses, with the caps for each address, network and block.
fn public_authority() -> Authority {
    authority(AuthorityConfig { private_addresses: false, ..AuthorityConfig::testnet(1) })
}

/// The profile of relay `number` at these addresses.
fn profile_at(number: u16, addresses: &[&str]) -> Profile {
    Profile { addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(), ..profile(number) }
}

/// Inserts a proved relay that is known since `known_since`.
fn insert_proved(authority: &mut Authority, number: u16, address: &str, known_since: WallTime) {
    let descriptor = crate::directory::Descriptor { profile: profile_at(number, &[address]), published: NOW };
    let mut entry = RelayEntry::new(descriptor, &[], known_since);
    entry.handle_proved(NOW, Duration::from_secs(3600));
    entry.set_known_since(known_since);
    authority.relays.insert(entry);
}

#[test]
fn a_relay_is_listed_only_after_a_proof_at_each_address() {
    let mut authority = authority(AuthorityConfig::testnet(1));
    submit(&mut authority, 1, profile_at(1, &["20.0.0.1:1", "[2606:4700::1]:1"]), NOW);
    let proofs = drain(&mut authority).proofs;
    let dialled: Vec<_> = proofs.iter().map(|target| target.addresses.clone()).collect();
    assert_eq!(
        dialled,
        ["20.0.0.1:1", "[2606:4700::1]:1"].map(|address| [address.parse::<std::net::SocketAddr>().unwrap()])
    );
    authority.handle_proof(NOW, &proofs[0], Ok(()));
    authority.handle_proof(NOW, &proofs[0], Ok(()));
    assert_eq!(authority.listed(NOW), 0);
    authority.handle_proof(NOW, &proofs[1], FAILED);
    assert_eq!(authority.listed(NOW), 0);
    authority.handle_timeout(later(5));
    for proof in drain(&mut authority).proofs {
        authority.handle_proof(later(5), &proof, Ok(()));
    }
    assert_eq!(authority.listed(later(5)), 1);
}

#[test]
fn an_address_added_during_a_proof_is_not_listed_unproved() {
    let mut authority = authority(AuthorityConfig::testnet(1));
    submit(&mut authority, 1, profile_at(1, &["20.0.0.1:1"]), NOW);
    submit(&mut authority, 1, profile_at(1, &["20.0.0.1:1", "[2606:4700::1]:1"]), later(1));
    let proofs = drain(&mut authority).proofs;
    authority.handle_proof(later(1), &proofs[0], Ok(()));
    assert_eq!((proofs.len(), authority.listed(later(1))), (1, 0));
}

#[test]
fn new_descriptors_of_an_unproved_relay_do_not_advance_its_proof() {
    let mut authority = authority(AuthorityConfig::testnet(1));
    submit(&mut authority, 1, profile(1), NOW);
    let mut dials = 0;
    for second in 1..600 {
        for target in drain(&mut authority).proofs {
            dials += 1;
            authority.handle_proof(later(second), &target, FAILED);
        }
        // The descriptors alternate between two addresses.
        authority.handle_timeout(later(second));
        let profile = profile_at(1, &[["20.0.0.1:1", "20.0.0.2:1"][second as usize % 2]]);
        let change = authority.handle_descriptor(later(second), &descriptor(1, profile, later(second)), None);
        assert!(change.is_ok() || change == Err(DescriptorError::TooSoon), "{change:?}");
    }
    assert!((25..=35).contains(&dials), "{dials} dials; about one in 20 s, as with an unchanged descriptor");
}

#[test]
fn an_address_that_the_authority_cannot_dial_is_no_failure() {
    let mut authority = authority(AuthorityConfig::testnet(1));
    register(&mut authority, 1, profile(1), NOW);
    let mut proofs = 0;
    for second in (20..100).step_by(5) {
        authority.handle_timeout(later(second));
        for target in drain(&mut authority).proofs {
            authority.handle_proof(later(second), &target, Err(ProofError::Dial(DialError::Unable)));
            proofs += 1;
        }
    }
    assert!(proofs > 0, "no proof was due");
    assert_eq!(authority.listed(later(100)), 1);
}

#[test]
fn proofs_and_unproved_relays_of_one_network_are_capped() {
    let mut authority = public_authority();
    let mut actions = Actions::default();
    for number in 0..40 {
        submit(&mut authority, number, profile_at(number, &[&format!("20.0.0.{number}:1")]), NOW);
        let more = drain(&mut authority);
        actions.proofs.extend(more.proofs);
        actions.deleted.extend(more.deleted);
    }
    assert_eq!((actions.proofs.len(), actions.deleted.len()), (4, 8));
    assert!(authority.poll_timeout().unwrap() > NOW, "a relay that can't be dialled yet sets no deadline");
    submit(&mut authority, 50, profile_at(50, &["20.0.1.1:1"]), NOW);
    assert_eq!(drain(&mut authority).proofs.len(), 1, "proofs in another network are not delayed");
}

#[test]
fn a_record_is_stored_only_after_a_proof() {
    let mut authority = public_authority();
    submit(&mut authority, 1, profile(1), NOW);
    authority.handle_proof(NOW, &profile(1).dial_target(), FAILED);
    assert!(drain(&mut authority).records.is_empty());
    authority.handle_timeout(later(5));
    authority.handle_proof(later(5), &profile(1).dial_target(), Ok(()));
    assert_eq!(drain(&mut authority).records.len(), 1);
}
