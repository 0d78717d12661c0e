//! Fuzz targets: documents of the directory, their stored state, and exit policies.

use super::FuzzTarget;
use crate::{
    base::WallTime,
    directory::{
        Authority, AuthorityConfig, AuthorityId, ConsensusBody, Counted, Document, DocumentKind, MAX_PRESENT, Presence,
        Registration, UnverifiedDescriptor, UnverifiedDocument, UnverifiedPresence, UnverifiedVolunteer,
        VolunteerListBody, fixture,
    },
    exit_policy::Policy,
    path::GuardSample,
};

pub(super) const TARGETS: &[FuzzTarget] = &[
    FuzzTarget { name: "descriptor", run: descriptor, seeds: || vec![unsigned_descriptor()] },
    FuzzTarget { name: "signed_descriptor", run: signed_descriptor, seeds: || vec![valid_descriptor()] },
    FuzzTarget { name: "consensus", run: consensus, seeds: || vec![unsigned_consensus()] },
    FuzzTarget { name: "signed_consensus", run: signed_consensus, seeds: || vec![valid_consensus()] },
    FuzzTarget {
        name: "authority_records",
        run: authority_records,
        seeds: || vec![valid_descriptor(), valid_consensus()],
    },
    FuzzTarget { name: "signed_volunteer", run: signed_volunteer, seeds: || vec![valid_volunteer()] },
    FuzzTarget { name: "volunteer_list", run: volunteer_list, seeds: || vec![unsigned_volunteer_list()] },
    FuzzTarget { name: "signed_volunteer_list", run: signed_volunteer_list, seeds: || vec![valid_volunteer_list()] },
    FuzzTarget { name: "registration", run: registration, seeds: registration_seeds },
    FuzzTarget { name: "signed_presence", run: signed_presence, seeds: presence_seeds },
    FuzzTarget { name: "counted", run: counted, seeds: counted_seeds },
    FuzzTarget { name: "guard_sample", run: guard_sample, seeds: guard_seeds },
    FuzzTarget { name: "exit_policy", run: exit_policy, seeds: policy_seeds },
];

const NOW: WallTime = fixture::NOW;

fn valid_descriptor() -> Vec<u8> {
    fixture::descriptor(1, fixture::exit_profile(1, &["accept 443", "reject *:25"]), NOW)
}

fn unsigned_descriptor() -> Vec<u8> {
    fixture::unsigned_descriptor(&valid_descriptor())
}

fn valid_consensus() -> Vec<u8> {
    fixture::signed_by(&[1], NOW).into_bytes()
}

fn unsigned_consensus() -> Vec<u8> {
    fixture::unsigned_document(&valid_consensus())
}

/// Arbitrary bytes signed by a relay.
fn descriptor(bytes: &[u8]) {
    signed_descriptor(&fixture::sign_descriptor(1, bytes));
}

fn signed_descriptor(bytes: &[u8]) {
    let mut authority = Authority::new(fixture::key(9), AuthorityConfig::testnet(1));
    let accepted = authority.handle_descriptor(NOW, bytes, None);
    let verified = UnverifiedDescriptor::decode(bytes).and_then(|descriptor| descriptor.verify(NOW));
    assert!(accepted.is_err() || verified.is_ok());
    if let Ok(descriptor) = verified {
        // A verified descriptor can be signed again, and the result decodes to an equal descriptor.
        let signed = descriptor.sign(&fixture::key(1)).expect("a verified descriptor can be signed");
        assert_eq!(UnverifiedDescriptor::decode(&signed).unwrap().verify(NOW).unwrap(), descriptor);
    }
}

/// Arbitrary bytes signed by the authority.
fn consensus(bytes: &[u8]) {
    signed_consensus(&fixture::sign_document::<ConsensusBody>(1, bytes));
}

/// The document in `bytes`, if the authority 1 has signed it. No other authority has.
fn verified<B: DocumentKind + Clone>(bytes: &[u8]) -> Option<Document<B>> {
    let [authority, other] = [1, 2].map(|number| [AuthorityId::from(fixture::key(number).id())]);
    let unverified = UnverifiedDocument::decode(bytes).ok()?;
    let document = unverified.clone().verify(&authority, NOW, None).ok()?;
    assert!(unverified.verify(&other, NOW, None).is_err());
    Some(document)
}

fn signed_consensus(bytes: &[u8]) {
    let Some(consensus) = verified::<ConsensusBody>(bytes) else { return };
    assert!(consensus.relays().is_sorted_by(|one, next| one.identity() < next.identity()));
    let mut rng = <rand::rngs::ChaCha8Rng as rand::SeedableRng>::seed_from_u64(1);
    let mut guards = GuardSample::default();
    guards.update(&consensus, &mut rng);
}

fn valid_volunteer() -> Vec<u8> {
    fixture::volunteer(21, fixture::volunteer_profile(21), NOW)
}

fn signed_volunteer(bytes: &[u8]) {
    let mut authority = Authority::new(fixture::key(9), AuthorityConfig::testnet(1));
    let mut rng = <rand::rngs::ChaCha8Rng as rand::SeedableRng>::seed_from_u64(1);
    let accepted = authority.handle_volunteer(NOW, bytes, &mut rng);
    let verified = UnverifiedVolunteer::decode(bytes).and_then(|volunteer| volunteer.verify(NOW));
    assert_eq!(accepted.is_ok(), verified.is_ok());
    if let Ok(volunteer) = verified
        && volunteer.profile.identity == fixture::key(21).id()
        && let Ok(signed) = volunteer.sign(&fixture::key(21))
    {
        assert_eq!(UnverifiedVolunteer::decode(&signed).unwrap().verify(NOW).unwrap(), volunteer);
    }
}

fn valid_volunteer_list() -> Vec<u8> {
    fixture::volunteers_signed_by(&[1], NOW).into_bytes()
}

fn unsigned_volunteer_list() -> Vec<u8> {
    fixture::unsigned_document(&valid_volunteer_list())
}

/// Arbitrary bytes signed by the authority.
fn volunteer_list(bytes: &[u8]) {
    signed_volunteer_list(&fixture::sign_document::<VolunteerListBody>(1, bytes));
}

fn signed_volunteer_list(bytes: &[u8]) {
    let Some(list) = verified::<VolunteerListBody>(bytes) else { return };
    assert!(list.volunteers().is_sorted_by(|one, next| one.identity() < next.identity()));
    for volunteer in list.volunteers() {
        assert!((1..=3).contains(&volunteer.gateways.len()));
        assert!(list.reached_by(&volunteer.gateways[0]).any(|other| other == volunteer));
    }
}

/// A decoded answer of a directory to a registration encodes and decodes to an equal answer.
fn registration(bytes: &[u8]) {
    let Ok(registration) = Registration::decode(bytes) else { return };
    assert_eq!(Registration::decode(&registration.encode()), Ok(registration));
}

fn registration_seeds() -> Vec<Vec<u8>> {
    let gateways = [1, 2].map(|number| fixture::key(number).id()).to_vec();
    vec![Registration { seed: [7; 32], gateways }.encode()]
}

/// An authority that lists the gateway accepts a gateway's report at most once.
fn signed_presence(bytes: &[u8]) {
    if let Ok(presence) = UnverifiedPresence::decode(bytes).and_then(|presence| presence.verify(NOW)) {
        assert!(presence.volunteers.len() <= MAX_PRESENT);
    }
    let mut authority = Authority::new(fixture::key(9), AuthorityConfig::testnet(1));
    let relay = fixture::profile(1);
    let target = relay.dial_target();
    authority.handle_descriptor(NOW, &fixture::descriptor(1, relay, NOW), None).unwrap();
    authority.handle_proof(NOW, &target, Ok(()));
    let accepted = authority.handle_presence(NOW, bytes);
    assert!(accepted.is_err() || authority.handle_presence(NOW, bytes).is_err(), "a report is accepted once");
}

fn presence_seeds() -> Vec<Vec<u8>> {
    let mut volunteers = [21, 22].map(|number| fixture::key(number).id()).to_vec();
    volunteers.sort_unstable();
    let presence = Presence { gateway: fixture::key(1).id(), at_ms: NOW.as_unix() * 1000, volunteers };
    vec![presence.sign(&fixture::key(1)).unwrap()]
}

/// A decoded answer of a directory to a report is within the cap, and encodes and decodes to an equal answer.
fn counted(bytes: &[u8]) {
    let Ok(counted) = Counted::decode(bytes) else { return };
    assert!(counted.volunteers.len() <= MAX_PRESENT);
    assert_eq!(Counted::decode(&counted.encode()), Ok(counted));
}

fn counted_seeds() -> Vec<Vec<u8>> {
    let mut volunteers = [21, 22].map(|number| fixture::key(number).id()).to_vec();
    volunteers.sort_unstable();
    vec![Counted { volunteers }.encode()]
}

/// Corrupted stored records of an authority cause no panic.
fn authority_records(bytes: &[u8]) {
    let mut authority = Authority::new(fixture::key(1), AuthorityConfig::testnet(1));
    authority.restore(NOW, [bytes], Some(bytes));
    while authority.poll_event().is_some() {}
}

fn guard_sample(bytes: &[u8]) {
    let Ok(guards) = GuardSample::decode(bytes) else { return };
    assert!(GuardSample::decode(&guards.encode()).is_ok());
}

fn guard_seeds() -> Vec<Vec<u8>> {
    let consensus = fixture::consensus((1..=3).map(|number| fixture::listed(fixture::profile(number))));
    let mut rng = <rand::rngs::ChaCha8Rng as rand::SeedableRng>::seed_from_u64(1);
    let mut guards = GuardSample::default();
    guards.update(&consensus, &mut rng);
    vec![guards.encode()]
}

/// A policy with one rule per line rejects private, loopback and link-local addresses.
fn exit_policy(bytes: &[u8]) {
    let Ok(text) = core::str::from_utf8(bytes) else { return };
    let Ok(policy) = Policy::parse(text.lines(), false) else { return };
    let _ = policy.summary();
    for address in ["127.0.0.1", "10.1.2.3", "169.254.169.254", "::1", "fe80::1", "::ffff:192.168.0.1"] {
        assert!(!policy.allows(address.parse().unwrap(), 443));
    }
}

fn policy_seeds() -> Vec<Vec<u8>> {
    let text = "accept 443\naccept 80-443\nreject 192.0.2.0/24\naccept [2001:db8::]/32:443\naccept *:443\nreject *";
    vec![text.into()]
}
