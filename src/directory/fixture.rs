//! Relays, volunteers and signed documents for tests and fuzzers.
#![allow(clippy::unwrap_used, reason = "tests construct valid values")]

use prost::Message as _;

use super::{
    Consensus, ConsensusBody, ConsensusRelay, Dates, Descriptor, Document, DocumentKind, Flags, Parameters, Profile,
    SignedConsensus, SignedVolunteerList, Statement as _, Volunteer, VolunteerDescriptor, VolunteerList,
    VolunteerListBody, VolunteerProfile, document::Envelope, schema,
};
use crate::{
    base::WallTime,
    crypto::{IdentityKey, OnionPublic},
    exit_policy::Policy,
};

/// The date of test documents.
pub(crate) const NOW: WallTime = WallTime::from_unix(1_800_000_000);
/// Seconds for which a consensus is fresh.
pub(crate) const FRESH: u64 = 1_800;
/// Seconds for which a consensus is valid.
pub(crate) const VALID: u64 = 86_400;

/// The identity key of relay (or authority) `number`.
pub(crate) fn key(number: u16) -> IdentityKey {
    let mut seed = [7; 32];
    seed[..2].copy_from_slice(&number.to_be_bytes());
    IdentityKey::from_bytes(&seed)
}

/// The profile of relay `number`: not an exit, with an address in a /16 of its own.
pub(crate) fn profile(number: u16) -> Profile {
    let [high, low] = number.to_be_bytes();
    Profile {
        identity: key(number).id(),
        addresses: vec![std::net::SocketAddr::from(([20 + high, low, 0, 1], 4443))],
        ice_ufrag: "ufrag".into(),
        ice_password: "password-is-public+22/".replace('-', "0"),
        fingerprint: [low; 32],
        onion_key: OnionPublic([low.max(1); 32]),
        family: Vec::new(),
        operator: String::new(),
        exit: crate::exit_policy::Summary::default(),
        offer: crate::delegated::Offer::default(),
        version: "umbel 0.1.0".into(),
    }
}

/// The profile of relay `number`: an exit with the policy `rules`.
pub(crate) fn exit_profile(number: u16, rules: &[&str]) -> Profile {
    Profile { exit: Policy::parse(rules, true).unwrap().summary(), ..profile(number) }
}

/// The signed descriptor of relay `number` with this profile.
pub(crate) fn descriptor(number: u16, profile: Profile, published: WallTime) -> Vec<u8> {
    Descriptor { profile, published }.sign(&key(number)).unwrap()
}

/// A listed relay: stable, a guard, and an exit if the profile has an exit policy.
pub(crate) fn listed(profile: Profile) -> ConsensusRelay {
    let flags = (Flags::STABLE | Flags::GUARD).with_if(Flags::EXIT, !profile.exit.is_empty());
    ConsensusRelay { profile, flags, weight: 1000 }
}

/// A consensus of `relays`, valid after `valid_after`, and its encoding.
pub(crate) fn consensus_at(
    valid_after: WallTime,
    relays: impl IntoIterator<Item = ConsensusRelay>,
    parameters: &Parameters,
) -> (Consensus, Vec<u8>) {
    let at = |seconds| WallTime::from_unix(valid_after.as_unix() + seconds);
    let dates = Dates { valid_after, fresh_until: at(FRESH), valid_until: at(VALID) };
    Consensus::new(&dates, &ConsensusBody::new(parameters.clone(), relays)).unwrap()
}

/// A consensus of `relays`, valid after [`NOW`].
pub(crate) fn consensus(relays: impl IntoIterator<Item = ConsensusRelay>) -> Consensus {
    consensus_at(NOW, relays, &Parameters::default()).0
}

/// A consensus of relays 1 to 3, valid after `valid_after`, signed by these authorities.
pub(crate) fn signed_by(authorities: &[u16], valid_after: WallTime) -> SignedConsensus {
    let relays = (1..=3).map(|number| listed(profile(number)));
    let (_, encoded) = consensus_at(valid_after, relays, &Parameters::default());
    let keys: Vec<IdentityKey> = authorities.iter().map(|number| key(*number)).collect();
    Consensus::sign(encoded, &keys)
}

/// Signs the bytes `descriptor` as relay `number`, without a check.
pub(crate) fn sign_descriptor(number: u16, descriptor: &[u8]) -> Vec<u8> {
    let signature = key(number).sign(Descriptor::PURPOSE, descriptor).to_vec();
    schema::SignedDescriptor { descriptor: descriptor.to_vec(), signature }.encode_to_vec()
}

/// The bytes of a signed descriptor that the signature covers.
pub(crate) fn unsigned_descriptor(signed: &[u8]) -> Vec<u8> {
    schema::SignedDescriptor::decode(signed).unwrap().descriptor
}

/// Signs the bytes `document` as authority `number`, without a check.
pub(crate) fn sign_document<B: DocumentKind>(number: u16, document: &[u8]) -> Vec<u8> {
    Document::<B>::sign(document.to_vec(), [&key(number)]).into_bytes()
}

/// The bytes of a signed document of any kind that the signatures cover.
pub(crate) fn unsigned_document(signed: &[u8]) -> Vec<u8> {
    Envelope::decode(signed).unwrap().document
}

/// The profile of volunteer `number`. Relays and volunteers share one range of numbers.
pub(crate) fn volunteer_profile(number: u16) -> VolunteerProfile {
    let Profile { identity, onion_key, family, operator, offer, version, .. } = profile(number);
    VolunteerProfile { identity, onion_key, family, operator, offer, version }
}

/// The signed descriptor of volunteer `number` with this profile.
pub(crate) fn volunteer(number: u16, profile: VolunteerProfile, published: WallTime) -> Vec<u8> {
    VolunteerDescriptor { profile, published }.sign(&key(number)).unwrap()
}

/// Listed volunteer `number` with these gateways.
pub(crate) fn listed_volunteer(number: u16, gateways: &[u16]) -> Volunteer {
    let gateways = gateways.iter().map(|gateway| key(*gateway).id()).collect();
    Volunteer { profile: volunteer_profile(number), gateways }
}

/// Seconds for which a volunteer list is fresh.
pub(crate) const LIST_FRESH: u64 = 60;
/// Seconds for which a volunteer list is valid.
pub(crate) const LIST_VALID: u64 = 300;

/// A list of `volunteers`, valid after `valid_after`, and its encoding.
pub(crate) fn volunteers_at(
    valid_after: WallTime,
    volunteers: impl IntoIterator<Item = Volunteer>,
) -> (VolunteerList, Vec<u8>) {
    let at = |seconds| WallTime::from_unix(valid_after.as_unix() + seconds);
    let dates = Dates { valid_after, fresh_until: at(LIST_FRESH), valid_until: at(LIST_VALID) };
    VolunteerList::new(&dates, &VolunteerListBody::new(volunteers)).unwrap()
}

/// A list of `volunteers`, valid after [`NOW`].
pub(crate) fn volunteers(volunteers: impl IntoIterator<Item = Volunteer>) -> VolunteerList {
    volunteers_at(NOW, volunteers).0
}

/// A list of volunteers 21 and 22 with relays 1 to 3 as gateways, valid after `valid_after`, signed by these
/// authorities.
pub(crate) fn volunteers_signed_by(authorities: &[u16], valid_after: WallTime) -> SignedVolunteerList {
    let listed = [listed_volunteer(21, &[3, 1, 2]), listed_volunteer(22, &[2])];
    let keys: Vec<IdentityKey> = authorities.iter().map(|number| key(*number)).collect();
    VolunteerList::sign(volunteers_at(valid_after, listed).1, &keys)
}
