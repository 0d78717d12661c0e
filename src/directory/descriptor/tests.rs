use proptest::prelude::*;
use prost::Message as _;

#[cfg(target_arch = "wasm32")]
use wasm_bindgen_test::wasm_bindgen_test as test;

use super::*;
use crate::{
    delegated::{EngineName, HttpOffer, Offer},
    directory::fixture::{NOW, descriptor, exit_profile, key, profile},
    exit_policy::Policy,
};

fn verify(bytes: &[u8], now: WallTime) -> Result<Descriptor, DescriptorError> {
    UnverifiedDescriptor::decode(bytes)?.verify(now)
}

/// Signs `document` without a check of its content.
fn signed(document: &schema::Descriptor) -> Vec<u8> {
    let descriptor = document.encode_to_vec();
    let signature = key(1).sign(Descriptor::PURPOSE, &descriptor).to_vec();
    schema::SignedDescriptor { descriptor, signature }.encode_to_vec()
}

/// A signed descriptor of relay 1 with a changed profile.
fn changed(change: impl FnOnce(&mut schema::Profile)) -> Vec<u8> {
    let mut profile = exit_profile(1, &["accept 80", "accept 443"]).encode();
    change(&mut profile);
    signed(&schema::Descriptor { profile: Some(profile), published: NOW.as_unix() })
}

#[test]
fn a_verified_descriptor_equals_the_signed_one() {
    let mut expected = exit_profile(1, &["accept 80", "accept [::]/0:443"]);
    expected.addresses.push("[2606:4700::1]:443".parse().unwrap());
    expected.family = vec![key(2).id()];
    expected.operator = "someone".into();
    let found = verify(&descriptor(1, expected.clone(), NOW), NOW).unwrap();
    assert_eq!(found, Descriptor { profile: expected, published: NOW });
}

#[test]
fn a_descriptor_signed_by_another_relay_is_refused() {
    let mut bytes = schema::SignedDescriptor::decode(descriptor(1, profile(1), NOW).as_slice()).unwrap();
    bytes.signature = key(2).sign(Descriptor::PURPOSE, &bytes.descriptor).to_vec();
    assert_eq!(verify(&bytes.encode_to_vec(), NOW), Err(DescriptorError::BadSignature));
    bytes.signature = Vec::new();
    assert_eq!(verify(&bytes.encode_to_vec(), NOW), Err(DescriptorError::BadSignature));
    assert!(matches!(
        Descriptor { profile: profile(1), published: NOW }.sign(&key(2)),
        Err(DescriptorError::Impossible(_))
    ));
}

#[test]
fn a_signature_for_another_purpose_is_refused() {
    let mut bytes = schema::SignedDescriptor::decode(descriptor(1, profile(1), NOW).as_slice()).unwrap();
    bytes.signature = key(1).sign("directory consensus", &bytes.descriptor).to_vec();
    assert_eq!(verify(&bytes.encode_to_vec(), NOW), Err(DescriptorError::BadSignature));
}

#[test]
fn a_descriptor_is_valid_from_an_hour_before_its_date_to_the_end_of_its_lifetime() {
    let bytes = descriptor(1, profile(1), NOW);
    assert!(verify(&bytes, NOW.before(CLOCK_SKEW)).is_ok());
    assert_eq!(verify(&bytes, NOW.before(CLOCK_SKEW + Duration::from_secs(1))), Err(DescriptorError::FromTheFuture));
    assert!(verify(&bytes, NOW.after(DESCRIPTOR_LIFETIME)).is_ok());
    assert_eq!(verify(&bytes, NOW.after(DESCRIPTOR_LIFETIME + Duration::from_secs(1))), Err(DescriptorError::Stale));
}

#[test]
fn a_descriptor_with_invalid_content_is_refused_with_the_reason() {
    let address = |ip: &[u8], port| schema::Address { ip: ip.to_vec(), port };
    let reason = |change: &dyn Fn(&mut schema::Profile)| match verify(&changed(change), NOW) {
        Err(DescriptorError::Impossible(reason)) => reason.to_string(),
        other => panic!("{other:?}"),
    };
    let offer = |engines: &[&str], hosts: &[&str]| {
        let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        Some(schema::Offer { engines: owned(engines), hosts: owned(hosts), any_host: false })
    };
    type Change<'a> = &'a dyn Fn(&mut schema::Profile);
    let cases: &[(Change<'_>, &str)] = &[
        (&|it| it.addresses.clear(), "one of each"),
        (&|it| it.addresses = vec![address(&[1, 1, 1, 1], 1), address(&[1, 1, 1, 2], 1)], "one of each"),
        (&|it| it.addresses = vec![address(&[1, 1, 1, 1], 0)], "port 0"),
        (&|it| it.addresses = vec![address(&[1, 1, 1, 1], 65_536)], "IPv4 or IPv6"),
        (&|it| it.addresses = vec![address(&[1, 1, 1], 1)], "IPv4 or IPv6"),
        (&|it| it.addresses = vec![address(&[0, 0, 0, 0], 1)], "single host"),
        (&|it| it.addresses = vec![address(&[224, 0, 0, 1], 1)], "single host"),
        (&|it| it.addresses = vec![address(&[0; 16], 1)], "single host"),
        (&|it| it.addresses = vec![address(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 1, 1, 1, 1], 1)], "single host"),
        (&|it| it.ice_ufrag = "abc".into(), "ufrag"),
        (&|it| it.ice_ufrag = "a\r\nb".into(), "ufrag"),
        (&|it| it.ice_password = "a".repeat(257), "password"),
        (&|it| it.fingerprint = vec![1; 31], "fingerprint"),
        (&|it| it.onion_key = vec![0; 32], "onion key"),
        (&|it| it.onion_key = vec![], "onion key"),
        (&|it| it.family = vec![vec![1; 33]], "family member"),
        (&|it| it.family = vec![vec![1; 32]; 65], "64 relays"),
        (&|it| it.family = vec![it.identity.clone()], "itself"),
        (&|it| it.operator = "o\u{202e}".into(), "operator"),
        (&|it| it.version = "v".repeat(33), "version"),
        (&|it| it.exit.as_mut().unwrap().ipv4.reverse(), "port ranges"),
        (&|it| it.exit.as_mut().unwrap().ipv4 = vec![schema::PortRange { first: 0, last: 9 }], "port ranges"),
        (&|it| it.exit.as_mut().unwrap().ipv4 = vec![schema::PortRange { first: 9, last: 8 }], "port ranges"),
        (&|it| it.exit.as_mut().unwrap().ipv6 = vec![schema::PortRange { first: 9, last: 70_000 }], "port ranges"),
        (&|it| it.offer = offer(&["b", "a"], &[]), "offer"),
        (&|it| it.offer = offer(&["<script>"], &[]), "engine's name"),
        (&|it| it.offer = offer(&[], &["UPPER.example"]), "offer"),
        (&|it| it.identity = vec![], "identity"),
    ];
    for (change, expected) in cases {
        let reason = reason(change);
        assert!(reason.contains(expected), "{reason}; expected {expected}");
    }
    let none = signed(&schema::Descriptor { profile: None, published: NOW.as_unix() });
    assert!(matches!(verify(&none, NOW), Err(DescriptorError::Impossible(_))));
}

#[test]
fn a_descriptor_with_the_summary_of_a_long_policy_is_valid() {
    let rules: Vec<String> = (1..=200).map(|port| format!("accept {}", port * 2)).collect();
    let exit = Policy::parse(&rules, false).unwrap().summary();
    let expected = Profile { exit, ..profile(1) };
    assert_eq!(verify(&descriptor(1, expected.clone(), NOW), NOW).unwrap().profile, expected);
}

#[test]
fn a_descriptor_with_the_largest_offer_is_valid() {
    let engines = (0..32).map(|number| EngineName::parse(&format!("{number:032}")).unwrap()).collect();
    let hosts = (0..64).map(|number| format!("{number:0100}")).collect();
    let offer = Offer { engines, requests: HttpOffer::Hosts(hosts) };
    let expected = Profile { offer, ..profile(1) };
    assert_eq!(verify(&descriptor(1, expected.clone(), NOW), NOW).unwrap().profile, expected);
}

#[test]
fn a_descriptor_that_is_too_long_is_refused_before_decoding() {
    let bytes = vec![0; MAX_DESCRIPTOR_LEN + 1];
    assert_eq!(verify(&bytes, NOW), Err(DescriptorError::Malformed(BoundError::TooLong(MAX_DESCRIPTOR_LEN))));
}

proptest! {
    #[test]
    fn the_decoder_does_not_panic_on_any_input(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = verify(&bytes, NOW);
        let document = schema::SignedDescriptor { descriptor: bytes, signature: vec![0; 64] };
        let _ = verify(&document.encode_to_vec(), NOW);
    }

    #[test]
    fn a_descriptor_with_one_changed_bit_is_refused(position in any::<prop::sample::Index>(), bit in 0u8..8) {
        let whole = descriptor(1, profile(1), NOW);
        let mut bytes = whole.clone();
        bytes[position.index(whole.len())] ^= 1 << bit;
        prop_assert!(verify(&bytes, NOW).is_err());
    }
}
