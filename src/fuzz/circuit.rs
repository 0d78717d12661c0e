//! Fuzz targets: handshake, onion layers and the origin's circuit, with fixed keys.

use bytes::Bytes;
use core::time::Duration;
use rand::{SeedableRng as _, rngs::ChaCha8Rng};

use super::{
    Choices, FuzzClock, FuzzTarget,
    wire::{body, encode, messages},
};
use crate::{
    base::{CircuitId, HopIndex, RelayId},
    circuit::{CircuitEvent, Origin},
    crypto::{LayerKey, OnionSecret},
    flow::FlowParameters,
    handshake::{ClientHandshake, HopKeys, OnionKeyring, RelayKeys, respond},
    onion::{ForwardContent, OriginLayers, RelayLayer, message_capacity},
    wire::{Cell, Command, Fragments, RelayMessage, created_cells, decode_create},
};

pub(super) const TARGETS: &[FuzzTarget] = &[
    FuzzTarget { name: "handshake_request", run: request, seeds: || vec![handshake().0] },
    FuzzTarget { name: "handshake_reply", run: reply, seeds: || vec![handshake().1] },
    FuzzTarget { name: "onion_forward", run: forward, seeds: || vec![sealed_forward()] },
    FuzzTarget { name: "onion_backward", run: backward, seeds: || vec![sealed_backward()] },
    FuzzTarget { name: "circuit_of_hostile_hop", run: hostile_hop, seeds: hop_seeds },
];

const IDENTITY: RelayId = RelayId::from_bytes([1; 32]);

fn onion_keys() -> OnionKeyring {
    OnionKeyring::new(OnionSecret::from_bytes([2; 32]), Some(OnionSecret::from_bytes([3; 32])))
}

fn relay() -> RelayKeys {
    RelayKeys { identity: IDENTITY, onion_key: onion_keys().public() }
}

fn rng() -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(4)
}

/// A handshake's request and reply, the same for each call.
fn handshake() -> (Vec<u8>, Vec<u8>) {
    let (_, request) = ClientHandshake::start(&relay(), HopIndex::FIRST, b"payload", &mut rng()).unwrap();
    let answer = respond(&IDENTITY, &onion_keys(), HopIndex::FIRST, &request, &mut rng()).unwrap();
    (request, answer.reply)
}

fn request(bytes: &[u8]) {
    let _ = respond(&IDENTITY, &onion_keys(), HopIndex::FIRST, bytes, &mut rng());
}

/// Only the relay's own reply is accepted.
fn reply(bytes: &[u8]) {
    let (client, request) = ClientHandshake::start(&relay(), HopIndex::FIRST, b"payload", &mut rng()).unwrap();
    if client.finish(bytes).is_ok() {
        let answer = respond(&IDENTITY, &onion_keys(), HopIndex::FIRST, &request, &mut rng()).unwrap();
        assert_eq!(bytes, answer.reply);
    }
}

fn keys() -> HopKeys {
    HopKeys { forward: LayerKey::from_bytes([5; 32]), backward: LayerKey::from_bytes([6; 32]) }
}

fn sealed_forward() -> Vec<u8> {
    let mut layers = OriginLayers::new();
    let hop = layers.push(keys()).unwrap();
    let mut body = body(&[]);
    layers.seal_message(hop, b"message", &mut body).unwrap();
    body.to_vec()
}

fn sealed_backward() -> Vec<u8> {
    let mut body = body(&[]);
    RelayLayer::new(HopIndex::FIRST, keys()).seal_message(b"message", &mut body).unwrap();
    body.to_vec()
}

/// A relay opens only cells sealed by its origin.
fn forward(bytes: &[u8]) {
    let mut cell = body(bytes);
    if RelayLayer::new(HopIndex::FIRST, keys()).open_forward(&mut cell).is_ok() {
        assert_eq!(body(bytes).to_vec(), sealed_forward());
    }
}

/// The origin opens only cells sealed by a hop.
fn backward(bytes: &[u8]) {
    let mut layers = OriginLayers::new();
    layers.push(keys()).unwrap();
    let mut cell = body(bytes);
    if layers.open_backward(&mut cell).is_ok() {
        assert_eq!(body(bytes).to_vec(), sealed_backward());
    }
}

/// For any input of a hop that completes its handshake honestly, then sends arbitrary messages in valid layers, the
/// origin sends only valid cells on its circuit.
fn hostile_hop(bytes: &[u8]) {
    let mut choices = Choices::new(bytes);
    let (mut clock, mut rng) = (FuzzClock::new(), rng());
    let hops = usize::from(choices.u8() % 2) + 1;
    let circuit = CircuitId::new(0x8000_0001).unwrap();
    let limit = Duration::from_secs(5);
    let mut origin =
        Origin::start(clock.0, vec![relay(); hops], circuit, FlowParameters::default(), limit, &mut rng).unwrap();
    let mut layer = build(&mut origin, circuit, &clock, &mut rng);
    while !choices.is_empty() {
        let now = clock.advance(choices.u8());
        match choices.u8() % 8 {
            0 => origin.handle_timeout(now),
            1 => {
                let target = crate::wire::Target { host: crate::wire::Host::parse("example.org").unwrap(), port: 443 };
                let _ = origin.open(now, target);
            }
            2 => {
                let command = [Command::Created, Command::Create, Command::Destroy][usize::from(choices.u8() % 3)];
                origin.handle_cell(now, Cell::new(circuit, command, body(choices.bytes())), &mut rng);
            }
            _ => {
                let message = choices.bytes();
                let message = &message[..message.len().min(message_capacity(HopIndex::FIRST))];
                let mut cell = body(&[]);
                layer.seal_message(message, &mut cell).expect("the message fits");
                origin.handle_cell(now, Cell::new(circuit, Command::Relay, cell), &mut rng);
            }
        }
        while let Some(cell) = origin.poll_cell(now, &mut rng) {
            assert_eq!(cell.circuit(), Some(circuit));
            if cell.command() == Command::Relay {
                let mut body = cell.into_body();
                let opened = layer.open_forward(&mut body).expect("the origin's layers can be opened");
                assert!(opened == ForwardContent::Message);
                let capacity = message_capacity(HopIndex::FIRST);
                RelayMessage::decode(&Bytes::copy_from_slice(&body[..capacity]))
                    .expect("the origin's message can be decoded");
            }
        }
        while let Some(event) = origin.poll_event() {
            if matches!(event, CircuitEvent::Closed(_)) {
                return;
            }
        }
    }
}

/// Answers the origin's CREATE as an honest first hop.
fn build(origin: &mut Origin, circuit: CircuitId, clock: &FuzzClock, rng: &mut ChaCha8Rng) -> RelayLayer {
    let mut fragments = Fragments::new();
    while let Some(cell) = origin.poll_cell(clock.0, rng) {
        let (hop, fragment) = decode_create(cell.body()).unwrap();
        if let Some(request) = fragments.push(fragment).unwrap() {
            let answer = respond(&IDENTITY, &onion_keys(), hop, &request, rng).unwrap();
            for cell in created_cells(circuit, &answer.reply).unwrap() {
                origin.handle_cell(clock.0, cell, rng);
            }
            return RelayLayer::new(hop, answer.keys);
        }
    }
    unreachable!("the origin begins with CREATE")
}

fn hop_seeds() -> Vec<Vec<u8>> {
    let messages_for = |hops: u8| {
        // The application opens a stream, then the hop sends.
        let mut input = vec![hops, 0, 1];
        for message in messages().iter().filter(|message| message.kind().from_hop()) {
            let encoded = encode(message);
            input.extend([3, 3]);
            input.extend(u16::try_from(encoded.len()).unwrap().to_be_bytes());
            input.extend(encoded);
        }
        input
    };
    vec![messages_for(0), messages_for(1)]
}
