//! Test vectors of `proto/vectors/directory.json`: documents and the outcomes of their verification.
//!
//! Signatures are deterministic, so the fixture determines the file. If the file differs, the test prints the expected
//! content.

use core::time::Duration;

#[cfg(target_arch = "wasm32")]
use wasm_bindgen_test::wasm_bindgen_test as test;

use data_encoding::HEXLOWER;
use prost::Message;
use serde_json::{Value, json};

use super::{
    DESCRIPTOR_LIFETIME, Profile, UnverifiedConsensus, UnverifiedDescriptor,
    fixture::{NOW, VALID, descriptor, exit_profile, key, profile, signed_by},
    schema,
};
use crate::base::WallTime;

const FILE: &str = include_str!("../../proto/vectors/directory.json");

fn hex(bytes: &[u8]) -> String {
    HEXLOWER.encode(bytes)
}

fn later(seconds: u64) -> WallTime {
    NOW.after(Duration::from_secs(seconds))
}

fn descriptor_case(name: &str, signed: &[u8], now: WallTime, expected: &str) -> Value {
    let outcome = UnverifiedDescriptor::decode(signed).and_then(|unverified| unverified.verify(now));
    let found = outcome.map_or_else(|error| error.to_string(), |_| "counts".to_owned());
    assert!(found.contains(expected), "{name}: {found}");
    json!({ "name": name, "signed": hex(signed), "now": now.as_unix(), "outcome": expected })
}

fn descriptors() -> Vec<Value> {
    let mut full = exit_profile(1, &["accept 80", "accept 443", "accept [::]/0:8443"]);
    full.addresses.push("[2606:4700::1]:443".parse().unwrap());
    full.family = vec![key(2).id()];
    full.operator = "someone".into();
    let good = descriptor(1, full, NOW);
    let mut other_signer = schema::SignedDescriptor::decode(good.as_slice()).unwrap();
    other_signer.signature = key(2).sign("directory descriptor", &other_signer.descriptor).to_vec();
    let mut other_purpose = schema::SignedDescriptor::decode(good.as_slice()).unwrap();
    other_purpose.signature = key(1).sign("directory consensus", &other_purpose.descriptor).to_vec();
    let mut port_zero = Profile { ..profile(1) }.encode();
    port_zero.addresses[0].port = 0;
    let port_zero = schema::Descriptor { profile: Some(port_zero), published: NOW.as_unix() }.encode_to_vec();
    let signature = key(1).sign("directory descriptor", &port_zero).to_vec();
    let port_zero = schema::SignedDescriptor { descriptor: port_zero, signature }.encode_to_vec();
    let lifetime = DESCRIPTOR_LIFETIME.as_secs();
    vec![
        descriptor_case("minimal", &descriptor(1, profile(1), NOW), NOW, "counts"),
        descriptor_case("every field", &good, NOW, "counts"),
        descriptor_case("last second", &good, later(lifetime), "counts"),
        descriptor_case("stale", &good, later(lifetime + 1), "made too long ago"),
        descriptor_case("from the future", &good, NOW.before(Duration::from_secs(3601)), "made in the future"),
        descriptor_case("another signer", &other_signer.encode_to_vec(), NOW, "not signed by the identity"),
        descriptor_case("another purpose", &other_purpose.encode_to_vec(), NOW, "not signed by the identity"),
        descriptor_case("impossible", &port_zero, NOW, "an address has port 0"),
        descriptor_case("cut short", &good[..good.len() - 1], NOW, "not a document of this schema"),
    ]
}

fn consensus_case(
    name: &str,
    (signers, valid_after): (&[u16], WallTime),
    configured: &[u16],
    now: WallTime,
    in_use: Option<WallTime>,
    expected: &str,
) -> Value {
    let authorities: Vec<_> = configured.iter().map(|number| key(*number).id().into()).collect();
    let all_authorities: Vec<u16> = (100..110).collect();
    let in_use = in_use.map(|valid_after| signed_by(&all_authorities, valid_after));
    let previous = in_use
        .as_ref()
        .map(|signed| UnverifiedConsensus::decode(signed.as_bytes()).unwrap().verify_signatures(&authorities).unwrap());
    let signed = signed_by(signers, valid_after);
    let unverified = UnverifiedConsensus::decode(signed.as_bytes()).unwrap();
    let outcome = unverified.verify(&authorities, now, previous.as_ref());
    let found = outcome.map_or_else(|error| error.to_string(), |_| "counts".to_owned());
    assert!(found.contains(expected), "{name}: {found}");
    json!({
        "name": name,
        "signed": hex(signed.as_bytes()),
        "authorities": configured.iter().map(|number| hex(key(*number).id().as_bytes())).collect::<Vec<_>>(),
        "now": now.as_unix(),
        "in_use": in_use.map(|signed| hex(signed.as_bytes())),
        "outcome": expected,
    })
}

fn consensuses() -> Vec<Value> {
    let one: (&[u16], WallTime) = (&[100], NOW);
    let before = NOW.before(Duration::from_secs(3601));
    vec![
        consensus_case("one authority", one, &[100], NOW, None, "counts"),
        consensus_case("two of three", (&[100, 102], NOW), &[100, 101, 102], NOW, None, "counts"),
        consensus_case("one of two", one, &[100, 101], NOW, None, "signed by 1 of 2"),
        consensus_case("one of three, thrice", (&[100; 3], NOW), &[100, 101, 102], NOW, None, "signed by 1 of 3"),
        consensus_case("strangers", (&[101, 102], NOW), &[100], NOW, None, "signed by 0 of 1"),
        consensus_case("not yet valid", one, &[100], before, None, "not valid yet"),
        consensus_case("expired", one, &[100], later(VALID), None, "expired"),
        consensus_case("newer", one, &[100], NOW, Some(NOW.before(Duration::from_secs(1))), "counts"),
        consensus_case("the one in use", one, &[100], NOW, Some(NOW), "counts"),
        consensus_case("older", one, &[100], NOW, Some(later(1)), "older than the one in use"),
    ]
}

#[test]
fn the_vector_file_equals_the_generated_documents() {
    let expected = json!({
        "specification": "proto/07-directory.md sections 3 and 4",
        "descriptors": descriptors(),
        "consensuses": consensuses(),
    });
    let found: Value = serde_json::from_str(FILE).unwrap_or_default();
    assert!(
        found == expected,
        "proto/vectors/directory.json must be\n{}",
        serde_json::to_string_pretty(&expected).unwrap()
    );
}
