//! The directory's documents, what is kept on disk of them, and exit policies.

use super::Target;
use crate::{
    base::WallTime,
    directory::{Authority, AuthorityConfig, AuthorityId, UnverifiedConsensus, UnverifiedDescriptor, fixture},
    exit::Policy,
    path::GuardSample,
};

pub(super) const TARGETS: &[Target] = &[
    Target { name: "descriptor", run: descriptor, seeds: || vec![own_descriptor()] },
    Target { name: "signed_descriptor", run: signed_descriptor, seeds: || vec![whole_descriptor()] },
    Target { name: "consensus", run: consensus, seeds: || vec![own_consensus()] },
    Target { name: "signed_consensus", run: signed_consensus, seeds: || vec![whole_consensus()] },
    Target { name: "authority_records", run: authority_records, seeds: || vec![whole_descriptor(), whole_consensus()] },
    Target { name: "guard_sample", run: guard_sample, seeds: guard_seeds },
    Target { name: "exit_policy", run: exit_policy, seeds: policy_seeds },
];

const NOW: WallTime = fixture::NOW;

fn whole_descriptor() -> Vec<u8> {
    fixture::descriptor(1, fixture::exit_profile(1, &["accept 443", "reject *:25"]), NOW)
}

fn own_descriptor() -> Vec<u8> {
    fixture::unsigned_descriptor(&whole_descriptor())
}

fn whole_consensus() -> Vec<u8> {
    fixture::signed_by(&[1], NOW).into_bytes()
}

fn own_consensus() -> Vec<u8> {
    fixture::unsigned_consensus(&whole_consensus())
}

/// What a relay signed of itself, whatever that is.
fn descriptor(bytes: &[u8]) {
    signed_descriptor(&fixture::sign_descriptor(1, bytes));
}

fn signed_descriptor(bytes: &[u8]) {
    let mut authority = Authority::new(fixture::key(9), AuthorityConfig::testnet(1));
    let taken = authority.handle_descriptor(NOW, bytes);
    let verified = UnverifiedDescriptor::decode(bytes).and_then(|descriptor| descriptor.verify(NOW));
    assert!(taken.is_err() || verified.is_ok());
    if let Ok(descriptor) = verified {
        // What counts can be signed again, and says the same.
        let again = descriptor.sign(&fixture::key(1)).expect("a verified descriptor is a possible one");
        assert_eq!(UnverifiedDescriptor::decode(&again).unwrap().verify(NOW).unwrap(), descriptor);
    }
}

/// What the authority signed, whatever that is.
fn consensus(bytes: &[u8]) {
    signed_consensus(&fixture::sign_consensus(1, bytes));
}

fn signed_consensus(bytes: &[u8]) {
    let authorities = [AuthorityId::from(fixture::key(1).id())];
    let Ok(unverified) = UnverifiedConsensus::decode(bytes) else { return };
    let Ok(consensus) = unverified.clone().verify(&authorities, NOW, None) else { return };
    assert!(consensus.relays().is_sorted_by(|one, next| one.identity() < next.identity()));
    assert!(unverified.verify(&[AuthorityId::from(fixture::key(2).id())], NOW, None).is_err());
    let mut rng = <rand::rngs::ChaCha8Rng as rand::SeedableRng>::seed_from_u64(1);
    let mut guards = GuardSample::default();
    guards.update(&consensus, &mut rng);
}

/// What an authority kept, from a disk that may have changed it.
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

/// A policy, one rule a line, refuses what no policy may allow.
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
