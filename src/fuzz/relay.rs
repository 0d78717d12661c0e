//! Fuzz target: a relay's machine with an origin that obeys the rules of channels and may violate all other rules.

use std::sync::Arc;

use bytes::Bytes;
use rand::{SeedableRng as _, rngs::ChaCha8Rng};

use super::{Choices, FuzzClock, FuzzTarget, wire::messages};
use crate::{
    base::{CircuitId, HopIndex, Instant, LANES, LinkEvent, LinkId, LinkMachine as _, LinkOpened, Redacted, Transmit},
    channel::{ChannelEvent, ChannelParameters, Channels, LocalRole},
    crypto::{IdentityKey, LayerKey, OnionSecret},
    handshake::{ClientHandshake, HopKeys, OnionKeyring, RelayKeys},
    onion::{OriginLayers, RelayLayer, message_capacity},
    relay::{Relay, RelayEvent, RelayParameters},
    stream::{StreamCommand, StreamEvent},
    wire::{BODY_LEN, Cell, CellBody, Command, EndReason, create_cells},
};

pub(super) const TARGETS: &[FuzzTarget] =
    &[FuzzTarget { name: "relay_of_hostile_origin", run: hostile_origin, seeds: origin_seeds }];

const LINK: LinkId = LinkId(1);
const ROOM: usize = 1 << 20;

/// A relay and the channels of a first hop, joined by one link without a network. The relay is the second hop, so that
/// it serves streams.
struct RelayHarness {
    relay: Relay,
    first_hop: Channels,
    /// The origin's layers.
    layers: OriginLayers,
    /// The first hop's layer.
    first_layer: RelayLayer,
    rng: ChaCha8Rng,
}

impl RelayHarness {
    fn new() -> Self {
        let identity = Arc::new(IdentityKey::from_bytes(&[1; 32]));
        let keyring = OnionKeyring::new(OnionSecret::from_bytes([2; 32]), None);
        let first = Arc::new(IdentityKey::from_bytes(&[5; 32]));
        let parameters =
            RelayParameters { exit: true, circuits: 256, partial_creates: 128, ..RelayParameters::default() };
        let mut harness = Self {
            relay: Relay::new(identity, keyring, parameters),
            first_hop: Channels::new(LocalRole::Relay(first), ChannelParameters::default()),
            layers: OriginLayers::new(),
            first_layer: RelayLayer::new(HopIndex::FIRST, first_keys()),
            rng: ChaCha8Rng::seed_from_u64(3),
        };
        let (first_certificate, relay_certificate) = ([3; 32], [4; 32]);
        let dialled = Some(harness.relay.identity());
        let peer_address = Redacted("192.0.2.7:4443".parse().unwrap());
        let to_relay = LinkOpened {
            dialled,
            local_certificate: first_certificate,
            peer_certificate: relay_certificate,
            peer_address,
            lanes: LANES,
        };
        let from_first_hop = LinkOpened {
            dialled: None,
            local_certificate: relay_certificate,
            peer_certificate: first_certificate,
            peer_address,
            lanes: LANES,
        };
        let now = Instant::START;
        harness.relay.handle_link(now, LinkEvent::Opened { link: LINK, opened: from_first_hop }, &mut harness.rng);
        harness.first_hop.handle_link(now, LinkEvent::Opened { link: LINK, opened: to_relay }, &mut harness.rng);
        harness.settle(now);
        harness
    }

    /// Passes messages in both directions until no message is left; returns the cells that the first hop received.
    fn settle(&mut self, now: Instant) -> Vec<Cell> {
        let mut cells = Vec::new();
        let room = LinkEvent::Room { link: LINK, bytes: ROOM };
        loop {
            self.relay.handle_link(now, room.clone(), &mut self.rng);
            self.first_hop.handle_link(now, room.clone(), &mut self.rng);
            let mut moved = false;
            while let Some(transmit) = self.first_hop.poll_transmit(now) {
                moved = true;
                if let Transmit::Message { lane, message, .. } = transmit {
                    self.relay.handle_link(now, LinkEvent::Message { link: LINK, lane, message }, &mut self.rng);
                }
            }
            self.relay.handle_batch_end(now, &mut self.rng);
            while let Some(transmit) = self.relay.poll_transmit(now, &mut self.rng) {
                moved = true;
                if let Transmit::Message { lane, message, .. } = transmit {
                    self.first_hop.handle_link(now, LinkEvent::Message { link: LINK, lane, message }, &mut self.rng);
                }
            }
            while let Some(event) = self.first_hop.poll_event() {
                if let ChannelEvent::Cell { cell, .. } = event {
                    cells.push(cell);
                }
            }
            if !moved {
                return cells;
            }
        }
    }

    /// Creates a circuit at the relay as an honest origin, unless the relay refuses.
    fn create(&mut self, now: Instant, circuit: CircuitId) {
        let keys = RelayKeys { identity: self.relay.identity(), onion_key: self.relay.onion_key() };
        let (handshake, request) = ClientHandshake::start(&keys, second(), b"", &mut self.rng).unwrap();
        for cell in create_cells(circuit, second(), &request).unwrap() {
            self.send(cell);
        }
        let created = self.settle(now).into_iter().find(|cell| cell.command() == Command::Created);
        let Some(created) = created else { return };
        let mut fragments = crate::wire::Fragments::new();
        let reply = fragments.push(created.body()).unwrap().expect("a reply fits a cell");
        self.layers = OriginLayers::new();
        self.first_layer = RelayLayer::new(HopIndex::FIRST, first_keys());
        self.layers.push(first_keys()).unwrap();
        self.layers.push(handshake.finish(&reply).expect("the relay is honest").keys).unwrap();
    }

    /// Sends a cell from the first hop.
    fn send(&mut self, cell: Cell) {
        let Some(channel) = self.first_hop.lookup(&self.relay.identity()) else { return };
        if let Some(circuit) = cell.circuit() {
            self.first_hop.admit_circuit(channel, circuit);
        }
        let _ = self.first_hop.send(channel, cell);
    }

    /// Answers the events of the streams at the relay, according to the choices.
    fn serve(&mut self, choices: &mut Choices<'_>) {
        while let Some(event) = self.relay.poll_event() {
            let RelayEvent::Stream(stream, event) = event else { continue };
            match (event, choices.u8() % 4) {
                (StreamEvent::Begin(_), 0) => {
                    self.relay.handle_command(stream, StreamCommand::Reset(EndReason::Refused));
                }
                (StreamEvent::Begin(_), 1..) => self.relay.handle_command(stream, StreamCommand::Connected(None)),
                (StreamEvent::Resolve(_), 1) => {
                    let answers = Vec::new();
                    self.relay.handle_command(stream, StreamCommand::Resolved { ttl: 60, answers });
                }
                (StreamEvent::Data(bytes), 1..) => {
                    self.relay.handle_command(stream, StreamCommand::Consumed(bytes.len()));
                    let room = self.relay.room(stream);
                    assert_eq!(self.relay.write(stream, &bytes), bytes.len().min(room));
                }
                (StreamEvent::Finished, 1..) => self.relay.handle_command(stream, StreamCommand::Finish),
                _ => {}
            }
        }
    }
}

/// For any input of the origin, the relay's circuits stay within the share of one source: a sixteenth of the cap.
fn hostile_origin(bytes: &[u8]) {
    let mut choices = Choices::new(bytes);
    let (mut clock, mut harness) = (FuzzClock::new(), RelayHarness::new());
    let circuit = |choice: u8| CircuitId::new(0x8000_0001 + u32::from(choice % 24)).unwrap();
    while !choices.is_empty() {
        let now = clock.advance(choices.u8() % 12);
        match choices.u8() % 8 {
            0 => harness.relay.handle_timeout(now, &mut harness.rng),
            1 => harness.create(now, circuit(choices.u8())),
            2 | 3 => {
                let commands = [Command::Create, Command::Created, Command::Relay, Command::Destroy];
                let command = commands[usize::from(choices.u8() % 4)];
                let circuit = circuit(choices.u8());
                harness.send(Cell::new(circuit, command, body(choices.bytes())));
            }
            _ => {
                let circuit = circuit(choices.u8());
                let message = choices.bytes();
                let message = &message[..message.len().min(message_capacity(second()))];
                let mut sealed = body(&[]);
                if harness.layers.seal_message(second(), message, &mut sealed).is_ok()
                    && harness.first_layer.open_forward(&mut sealed).is_ok()
                {
                    harness.send(Cell::new(circuit, Command::Relay, sealed));
                }
            }
        }
        harness.settle(now);
        harness.serve(&mut choices);
        harness.settle(now);
        assert!(harness.relay.statistics().circuits <= 16);
    }
}

fn second() -> HopIndex {
    HopIndex::new(2).unwrap()
}

fn first_keys() -> HopKeys {
    HopKeys { forward: LayerKey::from_bytes([6; 32]), backward: LayerKey::from_bytes([7; 32]) }
}

fn body(bytes: &[u8]) -> CellBody {
    let mut body = CellBody::zero();
    let length = bytes.len().min(BODY_LEN);
    body[..length].copy_from_slice(&bytes[..length]);
    body
}

/// Inputs that create a circuit and send messages: one input for each message, and one with all messages of streams.
fn origin_seeds() -> Vec<Vec<u8>> {
    let send_message = |message: &crate::wire::RelayMessage| {
        let mut encoded = Vec::new();
        message.encode(&mut encoded).unwrap();
        let length = u16::try_from(encoded.len()).unwrap().to_be_bytes();
        [&[0, 4, 0], &length[..], &*Bytes::from(encoded), &[1]].concat()
    };
    let create = [0, 1, 0].to_vec();
    let each = messages().into_iter().map(|message| [create.clone(), send_message(&message)].concat());
    let begin = messages().into_iter().next().unwrap();
    let of_stream = messages().into_iter().filter(|message| message.kind().from_origin() && message.stream().is_some());
    let all = of_stream.flat_map(|message| send_message(&message));
    each.chain([create.iter().copied().chain(send_message(&begin)).chain(all).collect()]).collect()
}
