//! Tests of an origin's and its relays' layers in memory, with attacks on cells, and the test vectors.

use crate::{
    base::HopIndex,
    crypto::{
        LayerKey,
        vectors::{array, bytes, cases, number, read},
    },
    handshake::HopKeys,
    wire::BODY_LEN,
};

#[cfg(target_arch = "wasm32")]
use wasm_bindgen_test::wasm_bindgen_test as test;

use super::{cipher::CELLS_PER_KEY, *};

type Body = [u8; BODY_LEN];

fn hop(value: u8) -> HopIndex {
    HopIndex::new(value).unwrap()
}

fn keys(value: u8) -> HopKeys {
    HopKeys { forward: LayerKey::from_bytes([value; 32]), backward: LayerKey::from_bytes([value | 0x80; 32]) }
}

/// An origin and its relays, connected directly.
struct Circuit {
    origin: OriginLayers,
    relays: Vec<RelayLayer>,
}

impl Circuit {
    fn new(length: u8) -> Self {
        let mut origin = OriginLayers::new();
        let relays = (1..=length).map(|value| RelayLayer::new(origin.push(keys(value)).unwrap(), keys(value)));
        let relays = relays.collect();
        Self { origin, relays }
    }

    fn seal(&mut self, to: u8, message: &[u8]) -> Body {
        let mut body = [0xaa; BODY_LEN];
        self.origin.seal_message(hop(to), message, &mut body).unwrap();
        body
    }

    /// Passes a body through the relays from `from` on, until a relay finds a message or fails.
    fn forward_from(&mut self, from: u8, body: &mut Body) -> Result<u8, (u8, OnionError)> {
        for (relay, at) in self.relays.iter_mut().zip(1..).skip(usize::from(from) - 1) {
            match relay.open_forward(body) {
                Ok(ForwardContent::Pass) => {}
                Ok(ForwardContent::Message) => return Ok(at),
                Err(error) => return Err((at, error)),
            }
        }
        panic!("forwarded by the last hop");
    }

    /// A body with a message of the relay `sender`, with the layers of all relays back to `until`.
    fn send_backward(&mut self, sender: u8, message: &[u8], until: u8) -> Body {
        let mut body = [0xaa; BODY_LEN];
        self.relays[usize::from(sender) - 1].seal_message(message, &mut body).unwrap();
        self.backward_from(sender - 1, until, &mut body);
        body
    }

    /// Adds the layers of the relays from `from` back to `until`.
    fn backward_from(&mut self, from: u8, until: u8, body: &mut Body) {
        for at in (until..=from).rev() {
            self.relays[usize::from(at) - 1].seal_backward(body).unwrap();
        }
    }
}

/// A message to or from the hop `at` that fills its layer.
fn full_message(at: u8) -> Vec<u8> {
    (0..message_capacity(hop(at))).map(|value| value as u8 ^ at).collect()
}

#[test]
fn each_layer_takes_seventeen_bytes() {
    assert_eq!(sealed_len(hop(1)), 1019);
    assert_eq!(sealed_len(hop(8)), 1019 - 7 * 17);
    assert_eq!(message_capacity(hop(1)), 1002);
    assert_eq!(message_capacity(hop(3)), 968);
}

#[test]
fn messages_pass_between_the_origin_and_each_hop_at_every_length() {
    for length in 1..=HopIndex::MAX {
        let mut circuit = Circuit::new(length);
        for round in 0..3 {
            for at in 1..=length {
                let (message, capacity) = (full_message(at), message_capacity(hop(at)));
                let mut body = circuit.seal(at, &message);
                assert_eq!(circuit.forward_from(1, &mut body), Ok(at), "round {round}");
                assert_eq!(body[..capacity], message);
                assert!(body[capacity..].iter().all(|byte| *byte == 0));
                let mut body = circuit.send_backward(at, &message, 1);
                assert_eq!(circuit.origin.open_backward(&mut body), Ok((hop(at), capacity)));
                assert_eq!(body[..capacity], message);
            }
        }
    }
}

#[test]
fn a_short_message_is_padded_with_zeros() {
    let mut circuit = Circuit::new(2);
    let mut body = circuit.seal(2, b"short");
    circuit.forward_from(1, &mut body).unwrap();
    assert_eq!(&body[..5], b"short");
    assert!(body[5..].iter().all(|byte| *byte == 0));
    let mut body = circuit.send_backward(2, b"", 1);
    circuit.origin.open_backward(&mut body).unwrap();
    assert!(body[..message_capacity(hop(2))].iter().all(|byte| *byte == 0));
}

#[test]
fn a_circuit_has_eight_hops_at_most() {
    let mut circuit = Circuit::new(8);
    assert_eq!(circuit.origin.push(keys(9)), Err(OnionError::NoSuchHop));
    assert_eq!(circuit.origin.len(), 8);
}

#[test]
fn refused_messages_leave_the_layers_usable() {
    let mut circuit = Circuit::new(2);
    let mut body = [0; BODY_LEN];
    let long = [0; BODY_LEN];
    assert_eq!(circuit.origin.seal_message(hop(3), &[], &mut body), Err(OnionError::NoSuchHop));
    assert_eq!(circuit.origin.seal_message(hop(2), &long, &mut body), Err(OnionError::TooLong));
    assert_eq!(circuit.relays[1].seal_message(&long, &mut body), Err(OnionError::TooLong));
    let mut body = circuit.seal(2, b"m");
    assert_eq!(circuit.forward_from(1, &mut body), Ok(2));
    let mut body = circuit.send_backward(2, b"m", 1);
    assert!(circuit.origin.open_backward(&mut body).is_ok());
}

#[test]
fn a_byte_changed_forward_fails_at_the_next_hop_and_ends_its_layer() {
    for receiver in 1..=3 {
        for at in 0..BODY_LEN {
            let mut circuit = Circuit::new(3);
            let mut body = circuit.seal(3, b"message");
            for relay in &mut circuit.relays[..usize::from(receiver) - 1] {
                assert_eq!(relay.open_forward(&mut body), Ok(ForwardContent::Pass));
            }
            body[at] ^= 1;
            let filler = at >= sealed_len(hop(receiver));
            let error = if filler { OnionError::Filler(hop(receiver)) } else { OnionError::Forged(hop(receiver)) };
            assert_eq!(circuit.forward_from(receiver, &mut body), Err((receiver, error)));
            body[at] ^= 1;
            assert_eq!(circuit.forward_from(receiver, &mut body), Err((receiver, OnionError::Ended)));
        }
    }
}

#[test]
fn a_byte_changed_backward_fails_at_the_origin_or_as_filler_at_the_next_hop() {
    for sender in 1..=3_u8 {
        for at in 0..BODY_LEN {
            let mut circuit = Circuit::new(3);
            // The cell that hop `sender` sends to the previous hop.
            let mut body = circuit.send_backward(3, b"message", sender);
            body[at] ^= 1;
            if at >= sealed_len(hop(sender)) {
                let relay = &mut circuit.relays[usize::from(sender) - 2];
                assert_eq!(relay.seal_backward(&mut body), Err(OnionError::Filler(hop(sender))));
                body[at] ^= 1;
                assert_eq!(relay.seal_backward(&mut body), Err(OnionError::Ended));
                continue;
            }
            circuit.backward_from(sender - 1, 1, &mut body);
            assert_eq!(circuit.origin.open_backward(&mut body), Err(OnionError::Forged(hop(sender))));
            let mut next = circuit.send_backward(3, b"message", 1);
            assert_eq!(circuit.origin.open_backward(&mut next), Err(OnionError::Ended));
        }
    }
}

/// Attacks on three successive cells between two hops: the name, and the order of delivery.
const DELIVERIES: [(&str, &[usize]); 3] = [("replay", &[0, 0]), ("reorder", &[1, 0]), ("drop", &[0, 2])];

#[test]
fn cells_replayed_reordered_or_dropped_forward_fail_at_the_next_hop() {
    for (attack, order) in DELIVERIES {
        for receiver in 1..=3 {
            let mut circuit = Circuit::new(3);
            let mut cells: Vec<_> = (0..3).map(|value| circuit.seal(3, &[value])).collect();
            for body in &mut cells {
                for relay in &mut circuit.relays[..usize::from(receiver) - 1] {
                    relay.open_forward(body).unwrap();
                }
            }
            let outcomes: Vec<_> =
                order.iter().map(|index| circuit.forward_from(receiver, &mut cells[*index].clone())).collect();
            let failed = outcomes.iter().find_map(|outcome| outcome.err());
            assert_eq!(failed, Some((receiver, OnionError::Forged(hop(receiver)))), "{attack} before hop {receiver}");
        }
    }
}

#[test]
fn cells_replayed_reordered_or_dropped_backward_fail_at_the_origin() {
    for (attack, order) in DELIVERIES {
        for sender in 1..=3 {
            let mut circuit = Circuit::new(3);
            let cells: Vec<_> = (0..3).map(|value| circuit.send_backward(3, &[value], sender)).collect();
            let mut outcomes = Vec::new();
            for index in order {
                let mut body = cells[*index];
                circuit.backward_from(sender - 1, 1, &mut body);
                outcomes.push(circuit.origin.open_backward(&mut body));
            }
            let failed = outcomes.iter().find_map(|outcome| outcome.err());
            assert_eq!(failed, Some(OnionError::Forged(hop(sender))), "{attack} after hop {sender}");
        }
    }
}

#[test]
fn cells_of_one_direction_do_not_open_in_the_other() {
    let mut circuit = Circuit::new(1);
    let mut body = circuit.seal(1, b"message");
    assert_eq!(circuit.origin.open_backward(&mut body), Err(OnionError::Forged(hop(1))));
}

#[test]
fn a_cell_for_a_hop_after_the_last_one_ends_the_circuit() {
    // The relay at hop 2 adds its layer to a forged cell. The origin has no hop 3.
    let mut circuit = Circuit::new(2);
    let mut body = [0; BODY_LEN];
    circuit.backward_from(2, 1, &mut body);
    assert_eq!(circuit.origin.open_backward(&mut body), Err(OnionError::Kind(hop(2))));
    // Hop 8 has no next hop in either direction.
    let mut last = RelayLayer::new(hop(8), keys(8));
    let mut cipher = cipher::LayerCipher::new(keys(8).forward);
    let mut body = [0; BODY_LEN];
    cipher.seal(&mut body[..sealed_len(hop(8))]).unwrap();
    assert_eq!(last.open_forward(&mut body), Err(OnionError::Kind(hop(8))));
    assert_eq!(last.seal_backward(&mut [0; BODY_LEN]), Err(OnionError::NoSuchHop));
}

#[test]
fn an_unknown_kind_ends_the_circuit() {
    for kind in 2..=255 {
        let mut body = [0; BODY_LEN];
        body[0] = kind;
        cipher::LayerCipher::new(keys(1).forward).seal(&mut body).unwrap();
        assert_eq!(RelayLayer::new(hop(1), keys(1)).open_forward(&mut body), Err(OnionError::Kind(hop(1))));
        let mut body = [0; BODY_LEN];
        body[0] = kind;
        cipher::LayerCipher::new(keys(1).backward).seal(&mut body).unwrap();
        assert_eq!(Circuit::new(1).origin.open_backward(&mut body), Err(OnionError::Kind(hop(1))));
    }
}

#[test]
fn keys_change_after_their_last_cell_and_the_counter_continues() {
    let mut origin = OriginLayers::new();
    origin.push(keys(1)).unwrap();
    let mut relay = RelayLayer::new(hop(1), keys(1));
    let mut body = [0; BODY_LEN];
    for count in 0..CELLS_PER_KEY * 2 + 3 {
        origin.seal_message(hop(1), &count.to_be_bytes(), &mut body).unwrap();
        assert_eq!(relay.open_forward(&mut body), Ok(ForwardContent::Message), "cell {count}");
        assert_eq!(body[..8], count.to_be_bytes());
    }
}

#[test]
fn the_ratchet_matches_the_vectors() {
    let vectors = read(include_str!("../../proto/vectors/ratchet.json"));
    let mut layer = LayerKey::from_bytes(array(&vectors["layer_key"]));
    for key in cases(&vectors, "keys") {
        layer.ratchet();
        assert_eq!(layer.as_bytes(), &array(&key["next_layer_key"]));
    }
    let mut sealing = cipher::LayerCipher::new(LayerKey::from_bytes(array(&vectors["layer_key"])));
    let mut opening = cipher::LayerCipher::new(LayerKey::from_bytes(array(&vectors["layer_key"])));
    let cells = vectors["cells"].as_array().unwrap();
    let last = cells.last().unwrap()["counter"].as_u64().unwrap();
    assert_eq!(last, 2 * CELLS_PER_KEY);
    for counter in 0..=last {
        let case = cells.iter().find(|cell| cell["counter"] == counter);
        let text = case.map_or_else(Vec::new, |case| bytes(&case["plaintext"]));
        let mut sealed = [&*text, &[0; TAG_LEN]].concat();
        sealing.seal(&mut sealed).unwrap();
        if let Some(case) = case {
            assert_eq!(sealed, bytes(&case["sealed"]), "cell {counter}");
        }
        opening.open(&mut sealed).unwrap();
        assert_eq!(sealed[..text.len()], text);
    }
}

/// The keys of one hop of a circuit in the vectors.
fn vector_keys(hop: &serde_json::Value) -> HopKeys {
    let key = |direction| LayerKey::from_bytes(array(&hop[direction]));
    HopKeys { forward: key("forward"), backward: key("backward") }
}

#[test]
fn cells_match_the_vectors_between_all_hops() {
    for case in cases(&read(include_str!("../../proto/vectors/onion.json")), "circuits") {
        let mut circuit = Circuit { origin: OriginLayers::new(), relays: Vec::new() };
        for hop in cases(case, "hops") {
            let index = circuit.origin.push(vector_keys(hop)).unwrap();
            circuit.relays.push(RelayLayer::new(index, vector_keys(hop)));
        }
        for cell in cases(case, "cells") {
            let (at, message) = (number(&cell["hop"]), bytes(&cell["message"]));
            let bodies: Vec<Body> = cell["bodies"].as_array().unwrap().iter().map(array).collect();
            assert_eq!(bodies.len(), usize::from(at));
            if cell["direction"] == "forward" {
                let mut body = circuit.seal(at, &message);
                for (relay, expected) in circuit.relays.iter_mut().zip(&bodies) {
                    assert_eq!(&body, expected);
                    relay.open_forward(&mut body).unwrap();
                }
                assert_eq!(body[..message.len()], message);
            } else {
                let mut body = circuit.send_backward(at, &message, at);
                for (before, expected) in (0..at).rev().zip(&bodies) {
                    assert_eq!(&body, expected);
                    circuit.backward_from(before, before.max(1), &mut body);
                }
                let (sender, length) = circuit.origin.open_backward(&mut body).unwrap();
                assert_eq!((sender, length), (hop(at), message_capacity(hop(at))));
                assert_eq!(body[..message.len()], message);
            }
        }
    }
}

proptest::proptest! {
    #[test]
    fn arbitrary_bodies_never_open(bytes in proptest::collection::vec(proptest::num::u8::ANY, BODY_LEN), at in 1..=8_u8) {
        let body: Body = bytes.try_into().unwrap();
        let mut circuit = Circuit::new(8);
        proptest::prop_assert!(circuit.relays[usize::from(at) - 1].open_forward(&mut body.clone()).is_err());
        proptest::prop_assert!(circuit.origin.open_backward(&mut body.clone()).is_err());
    }
}
