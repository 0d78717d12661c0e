//! Tests of both ends of the handshake, with changed messages and the test vectors.

use rand::{SeedableRng as _, rngs::ChaCha20Rng};

#[cfg(target_arch = "wasm32")]
use wasm_bindgen_test::wasm_bindgen_test as test;

use crate::{
    base::{HopIndex, RelayId},
    crypto::{
        CryptoError, OnionPublic, OnionSecret,
        vectors::{array, bytes, cases, number, read},
    },
};

use super::*;

fn rng() -> ChaCha20Rng {
    ChaCha20Rng::seed_from_u64(1)
}

fn hop(value: u8) -> HopIndex {
    HopIndex::new(value).unwrap()
}

struct Relay {
    identity: RelayId,
    keyring: OnionKeyring,
}

impl Relay {
    fn new(rng: &mut ChaCha20Rng) -> Self {
        Self { identity: RelayId::from_bytes([7; 32]), keyring: OnionKeyring::new(OnionSecret::generate(rng), None) }
    }

    fn keys(&self) -> RelayKeys {
        RelayKeys { identity: self.identity, onion_key: self.keyring.public() }
    }

    fn open(&self, at: u8, request: &[u8]) -> Result<VerifiedRequest, HandshakeError> {
        VerifiedRequest::open(&self.identity, &self.keyring, hop(at), request)
    }
}

#[test]
fn both_ends_derive_the_same_keys_and_payloads() {
    let (rng, payload) = (&mut rng(), b"request".as_slice());
    let relay = Relay::new(rng);
    let (state, request) = ClientHandshake::start(&relay.keys(), hop(2), payload, rng).unwrap();
    let request = relay.open(2, &request).unwrap();
    assert_eq!(request.payload(), payload);
    let answer = request.answer(b"reply", rng).unwrap();
    let established = state.finish(&answer.reply).unwrap();
    assert_eq!((answer.payload.as_slice(), established.payload.as_slice()), (payload, b"reply".as_slice()));
    assert_eq!(answer.keys.forward.as_bytes(), established.keys.forward.as_bytes());
    assert_eq!(answer.keys.backward.as_bytes(), established.keys.backward.as_bytes());
    assert_ne!(answer.keys.forward.as_bytes(), answer.keys.backward.as_bytes());
}

#[test]
fn a_request_for_another_relay_hop_or_onion_key_is_refused() {
    let rng = &mut rng();
    let relay = Relay::new(rng);
    let (_, request) = ClientHandshake::start(&relay.keys(), hop(2), &[], rng).unwrap();
    assert!(relay.open(2, &request).is_ok());
    assert_eq!(relay.open(3, &request).err(), Some(HandshakeError::Forged));
    let other = RelayId::from_bytes([8; 32]);
    assert_eq!(VerifiedRequest::open(&other, &relay.keyring, hop(2), &request).err(), Some(HandshakeError::Forged));
    assert_eq!(Relay::new(rng).open(2, &request).err(), Some(HandshakeError::UnknownOnionKey));
}

#[test]
fn the_previous_onion_key_is_accepted_and_an_older_one_is_refused() {
    let rng = &mut rng();
    let mut relay = Relay::new(rng);
    let (state, request) = ClientHandshake::start(&relay.keys(), hop(1), &[], rng).unwrap();
    relay.keyring.rotate(OnionSecret::generate(rng));
    let answer = relay.open(1, &request).unwrap().answer(&[], rng).unwrap();
    assert!(state.finish(&answer.reply).is_ok());
    relay.keyring.rotate(OnionSecret::generate(rng));
    assert_eq!(relay.open(1, &request).err(), Some(HandshakeError::UnknownOnionKey));
}

#[test]
fn a_request_with_a_changed_bit_is_refused() {
    let rng = &mut rng();
    let relay = Relay::new(rng);
    let (_, request) = ClientHandshake::start(&relay.keys(), hop(1), b"payload", rng).unwrap();
    for at in 0..request.len() {
        for bit in 0..8 {
            let mut changed = request.clone();
            changed[at] ^= 1 << bit;
            let error =
                relay.open(1, &changed).err().unwrap_or_else(|| panic!("byte {at} bit {bit} is not authenticated"));
            match at {
                0..2 => assert!(matches!(error, HandshakeError::Type(_))),
                2..34 => assert_eq!(error, HandshakeError::UnknownOnionKey),
                // X25519 ignores the top bit of a public key, but the transcript covers that bit.
                _ => assert_eq!(error, HandshakeError::Forged),
            }
        }
        assert!(relay.open(1, &request[..at]).is_err());
    }
}

#[test]
fn a_reply_with_a_changed_bit_is_refused() {
    let rng = &mut rng();
    let relay = Relay::new(rng);
    let secret = OnionSecret::generate(rng).to_bytes();
    let start =
        || ClientHandshake::start_with(OnionSecret::from_bytes(*secret), &relay.keys(), hop(1), b"payload").unwrap();
    let reply = relay.open(1, &start().1).unwrap().answer(b"answer", rng).unwrap().reply;
    assert!(start().0.finish(&reply).is_ok());
    for at in 0..reply.len() {
        for bit in 0..8 {
            let mut changed = reply.clone();
            changed[at] ^= 1 << bit;
            assert!(start().0.finish(&changed).is_err(), "byte {at} bit {bit} is not authenticated");
        }
        assert!(start().0.finish(&reply[..at]).is_err());
    }
    assert!(start().0.finish(&[&*reply, &[0]].concat()).is_err());
}

#[test]
fn a_reply_to_another_request_is_refused() {
    let rng = &mut rng();
    let relay = Relay::new(rng);
    let (first, _) = ClientHandshake::start(&relay.keys(), hop(1), &[], rng).unwrap();
    let (_, second) = ClientHandshake::start(&relay.keys(), hop(1), &[], rng).unwrap();
    let reply = relay.open(1, &second).unwrap().answer(&[], rng).unwrap().reply;
    assert_eq!(first.finish(&reply).err(), Some(HandshakeError::Forged));
}

#[test]
fn a_replayed_request_yields_other_keys() {
    let rng = &mut rng();
    let relay = Relay::new(rng);
    let (_, request) = ClientHandshake::start(&relay.keys(), hop(1), &[], rng).unwrap();
    let first = respond(&relay.identity, &relay.keyring, hop(1), &request, rng).unwrap();
    let second = respond(&relay.identity, &relay.keyring, hop(1), &request, rng).unwrap();
    assert_ne!(first.keys.forward.as_bytes(), second.keys.forward.as_bytes());
}

/// Points of small order: eight times the point is the identity (RFC 7748 §6.1). Little-endian coordinates.
fn small_order_points() -> Vec<[u8; 32]> {
    let one = core::array::from_fn(|at| u8::from(at == 0));
    let p = |low: u8| {
        core::array::from_fn(|at| {
            if at == 0 {
                low
            } else if at == 31 {
                0x7f
            } else {
                0xff
            }
        })
    };
    vec![[0; 32], one, p(0xec), p(0xed), p(0xee)]
}

#[test]
fn keys_of_small_order_are_refused_in_every_field() {
    let rng = &mut rng();
    let relay = Relay::new(rng);
    let (_, request) = ClientHandshake::start(&relay.keys(), hop(1), &[], rng).unwrap();
    for point in small_order_points() {
        let error = Some(HandshakeError::Key(CryptoError::SmallOrder));
        let keys = RelayKeys { onion_key: OnionPublic(point), ..relay.keys() };
        assert_eq!(ClientHandshake::start(&keys, hop(1), &[], rng).err(), error);
        let mut forged = request.clone();
        forged[34..66].copy_from_slice(&point);
        assert_eq!(relay.open(1, &forged).err(), error);
        let (state, request) = ClientHandshake::start(&relay.keys(), hop(1), &[], rng).unwrap();
        let mut reply = relay.open(1, &request).unwrap().answer(&[], rng).unwrap().reply;
        reply[2..34].copy_from_slice(&point);
        assert_eq!(state.finish(&reply).err(), error);
    }
}

#[test]
fn an_unknown_type_is_refused_at_both_ends() {
    let rng = &mut rng();
    let relay = Relay::new(rng);
    let (state, mut request) = ClientHandshake::start(&relay.keys(), hop(1), &[], rng).unwrap();
    let mut reply = relay.open(1, &request).unwrap().answer(&[], rng).unwrap().reply;
    request[1] = 2;
    reply[1] = 2;
    assert_eq!(relay.open(1, &request).err(), Some(HandshakeError::Type(2)));
    assert_eq!(state.finish(&reply).err(), Some(HandshakeError::Type(2)));
}

#[test]
fn a_payload_beyond_the_limit_is_refused_at_both_ends() {
    let rng = &mut rng();
    let relay = Relay::new(rng);
    let long = vec![0; MAX_PAYLOAD_LEN + 1];
    assert_eq!(ClientHandshake::start(&relay.keys(), hop(1), &long, rng).err(), Some(HandshakeError::PayloadTooLong));
    let (state, request) = ClientHandshake::start(&relay.keys(), hop(1), &long[1..], rng).unwrap();
    assert_eq!(relay.open(1, &[&*request, &[0]].concat()).err(), Some(HandshakeError::Malformed));
    assert_eq!(relay.open(1, &request).unwrap().answer(&long, rng).err(), Some(HandshakeError::PayloadTooLong));
    let answer = relay.open(1, &request).unwrap().answer(&long[1..], rng).unwrap();
    assert_eq!(state.finish(&answer.reply).unwrap().payload.len(), MAX_PAYLOAD_LEN);
}

#[test]
fn handshakes_match_the_vectors() {
    let vectors = read(include_str!("../../proto/vectors/handshake.json"));
    for case in cases(&vectors, "handshakes") {
        let secret = |name: &str| OnionSecret::from_bytes(array(&case[name]));
        let (at, identity) = (hop(number(&case["hop"])), RelayId::from_bytes(array(&case["identity"])));
        let keyring = OnionKeyring::new(secret("onion_secret"), None);
        let keys = RelayKeys { identity, onion_key: OnionPublic(array(&case["onion_public"])) };
        assert_eq!(keyring.public(), keys.onion_key);
        assert_eq!(secret("origin_ephemeral_secret").public().0, array(&case["origin_ephemeral_public"]));

        let (state, request) =
            ClientHandshake::start_with(secret("origin_ephemeral_secret"), &keys, at, &bytes(&case["request_payload"]))
                .unwrap();
        assert_eq!(request, bytes(&case["request"]));

        let opened = VerifiedRequest::open(&identity, &keyring, at, &request).unwrap();
        assert_eq!(opened.payload(), bytes(&case["request_payload"]));
        let answer = opened.answer_with(secret("relay_ephemeral_secret"), &bytes(&case["reply_payload"])).unwrap();
        assert_eq!(answer.reply, bytes(&case["reply"]));
        let established = state.finish(&answer.reply).unwrap();
        assert_eq!(established.payload, bytes(&case["reply_payload"]));
        for keys in [answer.keys, established.keys] {
            assert_eq!(keys.forward.as_bytes(), &array(&case["forward"]));
            assert_eq!(keys.backward.as_bytes(), &array(&case["backward"]));
        }
    }
}

#[test]
fn invalid_requests_of_the_vectors_are_refused() {
    let vectors = read(include_str!("../../proto/vectors/handshake.json"));
    for case in cases(&vectors, "refused_requests") {
        let keyring = OnionKeyring::new(OnionSecret::from_bytes(array(&case["onion_secret"])), None);
        let identity = RelayId::from_bytes(array(&case["identity"]));
        let opened = VerifiedRequest::open(&identity, &keyring, hop(number(&case["hop"])), &bytes(&case["request"]));
        assert!(opened.is_err(), "{}", case["why"]);
    }
}

proptest::proptest! {
    #[test]
    fn arbitrary_requests_and_replies_are_refused_without_a_panic(bytes: Vec<u8>) {
        let rng = &mut rng();
        let relay = Relay::new(rng);
        proptest::prop_assert!(relay.open(1, &bytes).is_err());
        let (state, _) = ClientHandshake::start(&relay.keys(), hop(1), &[], rng).unwrap();
        proptest::prop_assert!(state.finish(&bytes).is_err());
    }
}
