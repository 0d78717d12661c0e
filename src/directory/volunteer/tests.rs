use std::collections::BTreeSet;

#[cfg(target_arch = "wasm32")]
use wasm_bindgen_test::wasm_bindgen_test as test;

use proptest::prelude::*;

use super::*;
use crate::{
    base::WallTime,
    directory::{
        AuthorityId, CLOCK_SKEW, Consensus, ConsensusRelay, DESCRIPTOR_LIFETIME, DescriptorError, DocumentError, Flags,
        MAX_VOLUNTEERS, NotCounted, Statement as _,
        bounded::BoundError,
        fixture::{
            LIST_VALID, NOW, consensus, key, listed, listed_volunteer, profile, volunteer, volunteer_profile,
            volunteers, volunteers_at, volunteers_signed_by,
        },
    },
};
use core::time::Duration;

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn authorities(numbers: &[u16]) -> Vec<AuthorityId> {
    numbers.iter().map(|number| key(*number).id().into()).collect()
}

fn verify(bytes: &[u8], now: WallTime) -> Result<VolunteerDescriptor, DescriptorError> {
    UnverifiedVolunteer::decode(bytes)?.verify(now)
}

fn verify_list(bytes: &[u8], by: &[u16], now: WallTime) -> Result<VolunteerList, DocumentError> {
    UnverifiedVolunteerList::decode(bytes)?.verify(&authorities(by), now, None)
}

#[test]
fn a_verified_volunteer_descriptor_equals_the_signed_one() {
    let mut expected = volunteer_profile(21);
    expected.family = vec![key(2).id()];
    expected.operator = "someone".into();
    let found = verify(&volunteer(21, expected.clone(), NOW), NOW).unwrap();
    assert_eq!(found, VolunteerDescriptor { profile: expected, published: NOW });
    assert_eq!(found.profile.keys().identity, key(21).id());
}

#[test]
fn a_volunteer_descriptor_of_another_signer_or_purpose_is_refused() {
    let good = volunteer(21, volunteer_profile(21), NOW);
    let document = schema::SignedVolunteer::decode(good.as_slice()).unwrap();
    for signature in [
        key(22).sign(VolunteerDescriptor::PURPOSE, &document.volunteer).to_vec(),
        key(21).sign("directory descriptor", &document.volunteer).to_vec(),
        Vec::new(),
    ] {
        let forged = schema::SignedVolunteer { signature, ..document.clone() };
        assert_eq!(verify(&forged.encode_to_vec(), NOW), Err(DescriptorError::BadSignature));
    }
    let other = VolunteerDescriptor { profile: volunteer_profile(21), published: NOW }.sign(&key(22));
    assert!(matches!(other, Err(DescriptorError::Impossible(_))));
}

#[test]
fn a_volunteer_descriptor_is_valid_for_the_lifetime_of_a_descriptor() {
    let bytes = volunteer(21, volunteer_profile(21), NOW);
    assert!(verify(&bytes, NOW.before(CLOCK_SKEW)).is_ok());
    assert_eq!(verify(&bytes, NOW.before(CLOCK_SKEW + seconds(1))), Err(DescriptorError::FromTheFuture));
    assert!(verify(&bytes, NOW.after(DESCRIPTOR_LIFETIME)).is_ok());
    assert_eq!(verify(&bytes, NOW.after(DESCRIPTOR_LIFETIME + seconds(1))), Err(DescriptorError::Stale));
}

#[test]
fn a_volunteer_descriptor_with_invalid_content_is_refused_with_the_reason() {
    let reason = |change: &dyn Fn(&mut schema::VolunteerProfile)| {
        let mut profile = volunteer_profile(21).encode();
        change(&mut profile);
        let document = schema::VolunteerDescriptor { profile: Some(profile), published: NOW.as_unix() }.encode_to_vec();
        let signature = key(21).sign(VolunteerDescriptor::PURPOSE, &document).to_vec();
        match verify(&schema::SignedVolunteer { volunteer: document, signature }.encode_to_vec(), NOW) {
            Err(DescriptorError::Impossible(reason)) => reason.to_string(),
            other => panic!("{other:?}"),
        }
    };
    type Change<'a> = &'a dyn Fn(&mut schema::VolunteerProfile);
    let cases: &[(Change<'_>, &str)] = &[
        (&|it| it.identity = vec![], "identity"),
        (&|it| it.onion_key = vec![0; 32], "onion key"),
        (&|it| it.onion_key = vec![1; 31], "onion key"),
        (&|it| it.family = vec![vec![1; 33]], "family member"),
        (&|it| it.family = vec![vec![1; 32]; 9], "8 relays"),
        (&|it| *it = profile_of_length(401).encode(), "400 bytes"),
        (&|it| it.family = vec![it.identity.clone()], "itself"),
        (&|it| it.operator = "o\u{202e}".into(), "operator"),
        (&|it| it.version = "v".repeat(33), "version"),
        (&|it| it.offer = Some(schema::Offer { engines: vec!["<".into()], ..Default::default() }), "engine's name"),
    ];
    for (change, expected) in cases {
        let reason = reason(change);
        assert!(reason.contains(expected), "{reason} / {expected}");
    }
}

/// A profile of volunteer 21 with an encoding of `length` bytes.
fn profile_of_length(length: usize) -> VolunteerProfile {
    let with = |host: usize| {
        let requests = crate::delegated::HttpOffer::Hosts(vec!["h".repeat(host)]);
        let offer = Offer { requests, ..Offer::default() };
        VolunteerProfile { operator: "o".repeat(64), offer, ..volunteer_profile(21) }
    };
    (200..250).map(with).find(|profile| profile.encode().encoded_len() == length).unwrap()
}

#[test]
fn a_volunteer_profile_that_is_too_long_is_neither_signed_nor_decoded() {
    let sign = |profile| VolunteerDescriptor { profile, published: NOW }.sign(&key(21));
    assert!(verify(&sign(profile_of_length(MAX_VOLUNTEER_PROFILE_LEN)).unwrap(), NOW).is_ok());
    let long = sign(profile_of_length(MAX_VOLUNTEER_PROFILE_LEN + 1)).unwrap_err().to_string();
    assert!(long.contains("400 bytes"), "{long}");
    let too_long = DescriptorError::Malformed(BoundError::TooLong(MAX_VOLUNTEER_LEN));
    assert_eq!(verify(&vec![0; MAX_VOLUNTEER_LEN + 1], NOW), Err(too_long));
}

#[test]
fn the_maximum_number_of_longest_profiles_fits_into_one_list() {
    let longest = |number| {
        let profile = VolunteerProfile { identity: key(number).id(), ..profile_of_length(MAX_VOLUNTEER_PROFILE_LEN) };
        Volunteer { profile, gateways: (1..=3).map(|number| key(number).id()).collect() }
    };
    let (_, encoded) = volunteers_at(NOW, (1000..).take(MAX_VOLUNTEERS).map(longest));
    let signed = VolunteerList::sign(encoded, &(100..105).map(key).collect::<Vec<_>>());
    let list = verify_list(signed.as_bytes(), &[100, 101, 102, 103, 104], NOW).unwrap();
    assert_eq!(list.volunteers().len(), MAX_VOLUNTEERS);
}

#[test]
fn a_decoded_registration_equals_the_encoded_one_and_others_are_refused() {
    let registration = Registration { seed: [7; 32], gateways: vec![key(2).id(), key(1).id()] };
    assert_eq!(Registration::decode(&registration.encode()), Ok(registration.clone()));
    let none = Registration { gateways: Vec::new(), ..registration.clone() };
    assert_eq!(Registration::decode(&none.encode()), Ok(none));
    let four = Registration { gateways: (1..=4).map(|number| key(number).id()).collect(), ..registration };
    assert!(Registration::decode(&four.encode()).is_err());
    assert!(Registration::decode(&[]).is_err(), "an empty seed");
    assert!(Registration::decode(&[0; 2000]).is_err());
}

fn presence(volunteers: &[u16]) -> Presence {
    let mut volunteers: Vec<_> = volunteers.iter().map(|number| key(*number).id()).collect();
    volunteers.sort_unstable();
    Presence { gateway: key(1).id(), at_ms: NOW.as_unix() * 1000 + 5, volunteers }
}

#[test]
fn a_verified_presence_equals_the_signed_one() {
    for volunteers in [&[][..], &[21, 22, 23]] {
        let expected = presence(volunteers);
        let unverified = UnverifiedPresence::decode(&expected.sign(&key(1)).unwrap()).unwrap();
        assert_eq!(unverified.claimed(), &expected);
        assert_eq!(unverified.verify(NOW), Ok(expected));
    }
}

#[test]
fn a_presence_of_another_signer_or_time_is_refused() {
    let bytes = presence(&[21]).sign(&key(1)).unwrap();
    let mut forged = schema::SignedPresence::decode(bytes.as_slice()).unwrap();
    forged.signature = key(2).sign(Presence::PURPOSE, &forged.presence).to_vec();
    let forged = UnverifiedPresence::decode(&forged.encode_to_vec()).unwrap();
    assert_eq!(forged.verify(NOW), Err(PresenceError::BadSignature));
    let at = |now| UnverifiedPresence::decode(&bytes).unwrap().verify(now);
    assert!(at(NOW.before(CLOCK_SKEW)).is_ok() && at(NOW.after(CLOCK_SKEW)).is_ok());
    assert_eq!(at(NOW.before(CLOCK_SKEW + seconds(1))), Err(PresenceError::WrongTime));
    assert_eq!(at(NOW.after(CLOCK_SKEW + seconds(1))), Err(PresenceError::WrongTime));
    assert!(presence(&[21]).sign(&key(2)).is_err(), "a presence must be signed by its gateway");
}

#[test]
fn an_unordered_or_too_long_presence_is_refused() {
    let mut many = presence(&(1000..1512).collect::<Vec<_>>());
    assert!(UnverifiedPresence::decode(&many.sign(&key(1)).unwrap()).is_ok());
    many.volunteers.push(RelayId::from_bytes([255; 32]));
    assert!(many.sign(&key(1)).is_err());
    let twice = Presence { volunteers: vec![key(21).id(); 2], ..presence(&[]) };
    assert!(twice.sign(&key(1)).is_err());
    let raw = |presence: Vec<u8>| schema::SignedPresence { presence, signature: vec![0; 64] }.encode_to_vec();
    let flood = UnverifiedPresence::decode(&raw([0x1a, 0].repeat(MAX_PRESENT + 1))).map(|_| ());
    assert_eq!(flood, Err(PresenceError::Malformed(BoundError::TooMany(MAX_PRESENT))));
}

#[test]
fn a_decoded_answer_to_a_report_equals_the_encoded_one_and_others_are_refused() {
    for volunteers in [&[][..], &[21, 22, 23]] {
        let expected = Counted { volunteers: presence(volunteers).volunteers };
        assert_eq!(Counted::decode(&expected.encode()), Ok(expected));
    }
    let twice = Counted { volunteers: vec![key(21).id(); 2] };
    assert!(matches!(Counted::decode(&twice.encode()), Err(PresenceError::Impossible(_))));
    let flood = Counted::decode(&[0x0a, 0].repeat(MAX_PRESENT + 1));
    assert_eq!(flood, Err(PresenceError::Malformed(BoundError::TooMany(MAX_PRESENT))));
}

#[test]
fn a_verified_list_equals_the_signed_one() {
    let bytes = volunteers_signed_by(&[100], NOW).into_bytes();
    let found = verify_list(&bytes, &[100], NOW).unwrap();
    assert_eq!(found, volunteers([listed_volunteer(22, &[2]), listed_volunteer(21, &[3, 1, 2])]));
    assert_eq!(found.volunteer(&key(21).id()), Some(&listed_volunteer(21, &[3, 1, 2])));
    assert!(found.volunteer(&key(23).id()).is_none());
    let reached_by =
        |gateway: u16| -> BTreeSet<_> { found.reached_by(&key(gateway).id()).map(Volunteer::identity).collect() };
    assert_eq!(reached_by(2), BTreeSet::from([key(21).id(), key(22).id()]));
    assert_eq!(reached_by(1), BTreeSet::from([key(21).id()]));
    assert!(reached_by(4).is_empty());
    assert!(volunteers([]).volunteers().is_empty(), "an empty list is valid");
}

#[test]
fn a_list_is_verified_by_the_rules_of_a_consensus() {
    let at = |signers: &[u16], valid_after, configured: &[u16], now| {
        verify_list(volunteers_signed_by(signers, valid_after).as_bytes(), configured, now)
    };
    let reason = |outcome: Result<VolunteerList, DocumentError>| match outcome {
        Err(DocumentError::NotCounted(reason)) => reason,
        other => panic!("{other:?}"),
    };
    assert!(at(&[100, 102], NOW, &[100, 101, 102], NOW).is_ok());
    assert_eq!(
        reason(at(&[100; 3], NOW, &[100, 101, 102], NOW)),
        NotCounted::TooFewSignatures { signed: 1, configured: 3 }
    );
    assert_eq!(reason(at(&[100], NOW, &[], NOW)), NotCounted::NoAuthorities);
    assert!(at(&[100], NOW, &[100], NOW.after(seconds(LIST_VALID - 1))).is_ok());
    assert_eq!(reason(at(&[100], NOW, &[100], NOW.after(seconds(LIST_VALID)))), NotCounted::Expired);
    assert_eq!(reason(at(&[100], NOW.after(CLOCK_SKEW + seconds(1)), &[100], NOW)), NotCounted::NotYetValid);

    let previous = at(&[100], NOW, &[100], NOW).unwrap();
    let against = |bytes: &[u8]| {
        UnverifiedVolunteerList::decode(bytes).unwrap().verify(&authorities(&[100]), NOW, Some(&previous))
    };
    let older = volunteers_signed_by(&[100], NOW.before(seconds(1)));
    assert_eq!(reason(against(older.as_bytes())), NotCounted::Older);
    assert!(against(volunteers_signed_by(&[100], NOW).as_bytes()).is_ok());
    let other = VolunteerList::sign(volunteers_at(NOW, []).1, [&key(100)]);
    assert_eq!(reason(against(other.as_bytes())), NotCounted::Conflicting);
}

#[test]
fn a_consensus_is_not_accepted_as_a_volunteer_list() {
    let signed = crate::directory::fixture::signed_by(&[100], NOW);
    let document = schema::SignedConsensus::decode(signed.as_bytes()).unwrap();
    let list = schema::SignedVolunteerList { list: document.consensus, signatures: document.signatures };
    let outcome = verify_list(&list.encode_to_vec(), &[100], NOW);
    assert!(matches!(outcome, Err(DocumentError::NotCounted(NotCounted::TooFewSignatures { signed: 0, .. }))));
}

#[test]
fn a_signed_list_with_invalid_content_is_refused() {
    let refused = |change: &dyn Fn(&mut schema::VolunteerList)| {
        let listed = [listed_volunteer(21, &[3, 1, 2]), listed_volunteer(22, &[2])];
        let mut document = schema::VolunteerList::decode(volunteers_at(NOW, listed).1.as_slice()).unwrap();
        change(&mut document);
        let signed = VolunteerList::sign(document.encode_to_vec(), [&key(100)]);
        match verify_list(signed.as_bytes(), &[100], NOW) {
            Err(DocumentError::Impossible(reason)) => reason.to_string(),
            other => panic!("{other:?}"),
        }
    };
    type Change<'a> = &'a dyn Fn(&mut schema::VolunteerList);
    let cases: &[(Change<'_>, &str)] = &[
        (&|it| it.volunteers.reverse(), "out of order"),
        (&|it| it.volunteers[1] = it.volunteers[0].clone(), "out of order"),
        (&|it| it.volunteers[0].profile = None, "no profile"),
        (&|it| it.volunteers[0].gateways.clear(), "one to three"),
        (&|it| it.volunteers[0].gateways = (1..=4).map(|it| vec![it; 32]).collect(), "one to three"),
        (&|it| it.volunteers[0].gateways = vec![vec![1; 32]; 2], "twice"),
        (&|it| it.volunteers[0].gateways = vec![vec![1; 31]], "32 bytes"),
        (&|it| it.volunteers[0].gateways = vec![it.volunteers[0].profile.clone().unwrap().identity], "its own"),
        (&|it| it.valid_until = it.valid_after, "dates"),
        (&|it| it.valid_until = it.valid_after + 3601, "longer"),
    ];
    for (change, expected) in cases {
        let reason = refused(change);
        assert!(reason.contains(expected), "{reason} / {expected}");
    }
}

#[test]
fn too_many_empty_volunteers_are_refused_before_decoding() {
    let flood = VolunteerList::sign([0x22, 0].repeat(MAX_VOLUNTEERS + 1), [&key(100)]);
    let too_many = Err(DocumentError::Malformed(BoundError::TooMany(MAX_VOLUNTEERS)));
    assert_eq!(verify_list(flood.as_bytes(), &[100], NOW), too_many);
}

fn relays(numbers: impl IntoIterator<Item = u16>) -> Consensus {
    consensus(numbers.into_iter().map(|number| listed(profile(number))))
}

#[test]
fn a_ranking_contains_the_first_eight_guards() {
    let guards = relays(1..=40);
    let ranking = gateway_ranking(&[7; 32], &key(21).id(), &guards);
    assert_eq!(ranking.len(), RANKED_GATEWAYS);
    assert_eq!(ranking, gateway_ranking(&[7; 32], &key(21).id(), &guards));
    // The removal of a relay outside the ranking changes nothing.
    let others = (1..=40).filter(|number| ranking.contains(&key(*number).id()) || number % 2 == 0);
    assert_eq!(ranking, gateway_ranking(&[7; 32], &key(21).id(), &relays(others)));
    let without_first = (1..=40).filter(|number| key(*number).id() != ranking[0]);
    assert_eq!(ranking[1..], gateway_ranking(&[7; 32], &key(21).id(), &relays(without_first))[..7]);
    let no_guard = |number| ConsensusRelay { flags: Flags::STABLE, ..listed(profile(number)) };
    let few = consensus((1..=40).map(|number| if number == 5 { listed(profile(5)) } else { no_guard(number) }));
    assert_eq!(gateway_ranking(&[7; 32], &key(21).id(), &few), [key(5).id()]);
}

#[test]
fn seeds_distribute_a_volunteer_evenly_over_all_guards() {
    let guards = relays(1..=10);
    let mut firsts = std::collections::BTreeMap::<RelayId, u32>::new();
    for seed in 0_u16..1000 {
        let mut bytes = [0; 32];
        bytes[..2].copy_from_slice(&seed.to_be_bytes());
        *firsts.entry(gateway_ranking(&bytes, &key(21).id(), &guards)[0]).or_default() += 1;
    }
    assert_eq!(firsts.len(), 10);
    assert!(firsts.values().all(|count| (60..150).contains(count)), "{:?}", firsts.values());
}

proptest! {
    #[test]
    fn decoders_do_not_panic_on_any_input(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = verify(&bytes, NOW);
        let _ = Registration::decode(&bytes);
        let _ = UnverifiedPresence::decode(&bytes);
        let _ = Counted::decode(&bytes);
        let _ = verify_list(VolunteerList::sign(bytes, [&key(100)]).as_bytes(), &[100], NOW);
    }

    #[test]
    fn a_list_with_one_changed_bit_is_refused(position in any::<prop::sample::Index>(), bit in 0u8..8) {
        let mut bytes = volunteers_signed_by(&[100], NOW).into_bytes();
        let position = position.index(bytes.len());
        bytes[position] ^= 1 << bit;
        prop_assert!(verify_list(&bytes, &[100], NOW).is_err());
    }
}
