//! Fuzz target: a relay's machine with an origin that obeys the rules of channels and may violate all other rules.

use core::net::SocketAddr;
use std::sync::Arc;

use rand::{SeedableRng as _, rngs::ChaCha8Rng};

use super::{
    Choices, FuzzClock, FuzzTarget,
    wire::{body, encode, messages},
};
use crate::{
    base::{CircuitId, HopIndex, Instant, LinkEvent, LinkId, LinkMachine as _},
    channel::{
        ChannelParameters, Channels, LocalRole,
        fixture::{Neighbours, NewLink},
    },
    crypto::{IdentityKey, LayerKey, OnionSecret},
    handshake::{ClientHandshake, HopKeys, OnionKeyring, RelayKeys},
    onion::{OriginLayers, RelayLayer, message_capacity},
    relay::{ExitStream, Relay, RelayEvent, RelayParameters},
    stream::{StreamCommand, StreamEvent},
    wire::{Cell, Command, EndReason, Fragments, RelayMessage, create_cells},
};

pub(super) const TARGETS: &[FuzzTarget] =
    &[FuzzTarget { name: "relay_of_hostile_origin", run: hostile_origin, seeds: origin_seeds }];

const LINK: LinkId = LinkId(1);
const ROOM: usize = 1 << 20;

/// A relay and the channels of a first hop. The relay is the second hop, so that it serves streams.
struct RelayHarness {
    relay: Relay,
    /// The first hop.
    neighbours: Neighbours,
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
            neighbours: Neighbours::new(Some(identity.id())),
            relay: Relay::new(identity, keyring, parameters),
            layers: OriginLayers::new(),
            first_layer: RelayLayer::new(HopIndex::FIRST, first_keys()),
            rng: ChaCha8Rng::seed_from_u64(3),
        };
        let first_hop = Channels::new(LocalRole::Relay(first), ChannelParameters::default());
        let (now, address) = (Instant::START, SocketAddr::from(([192, 0, 2, 7], 4443)));
        let link = NewLink { dialled: None, address, room: ROOM, is_silent: false };
        let opened = harness.neighbours.open(now, &mut harness.relay, first_hop, &link, &mut harness.rng);
        assert_eq!(opened, LINK);
        harness.settle(now);
        harness
    }

    /// Passes messages in both directions until no message is left; returns the cells that the first hop received.
    fn settle(&mut self, now: Instant) -> Vec<Cell> {
        let room = LinkEvent::Room { link: LINK, bytes: ROOM };
        loop {
            self.relay.handle_link(now, room.clone(), &mut self.rng);
            if let Some(first_hop) = self.neighbours.channels(LINK) {
                first_hop.handle_link(now, room.clone(), &mut self.rng);
            }
            if !self.neighbours.exchange(now, &mut self.relay, &mut self.rng) {
                return self.neighbours.take_cells(LINK);
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
        let mut fragments = Fragments::new();
        let reply = fragments.push(created.body()).unwrap().expect("a reply fits a cell");
        self.layers = OriginLayers::new();
        self.first_layer = RelayLayer::new(HopIndex::FIRST, first_keys());
        self.layers.push(first_keys()).unwrap();
        self.layers.push(handshake.finish(&reply).expect("the relay is honest").keys).unwrap();
    }

    /// Sends a cell from the first hop.
    fn send(&mut self, cell: Cell) {
        let Some(first_hop) = self.neighbours.channels(LINK) else { return };
        let Some(channel) = first_hop.lookup(&self.relay.identity()) else { return };
        if let Some(circuit) = cell.circuit() {
            first_hop.admit_circuit(channel, circuit);
        }
        let _ = first_hop.send(channel, cell);
    }

    /// Answers the events of the streams. Each stream returns the bytes of the origin.
    fn serve(&mut self, choices: &mut Choices<'_>) {
        serve_streams(&mut self.relay, choices, |relay, stream, event, _| {
            if let StreamEvent::Data(bytes) = event {
                let room = relay.room(stream);
                assert_eq!(relay.write(stream, bytes), bytes.len().min(room));
            }
        });
    }
}

/// Answers the events of the streams at a relay, according to the choices. Passes each accepted event to `send`, which
/// may send bytes of the target.
pub(super) fn serve_streams(
    relay: &mut Relay,
    choices: &mut Choices<'_>,
    send: impl Fn(&mut Relay, ExitStream, &StreamEvent, &mut Choices<'_>),
) {
    while let Some(event) = relay.poll_event() {
        let RelayEvent::Stream(stream, event) = event else { continue };
        let command = match (&event, choices.u8() % 4) {
            (StreamEvent::Begin(_), 0) => StreamCommand::Reset(EndReason::Refused),
            (StreamEvent::Begin(_), 1 | 2) => StreamCommand::Connected(None),
            (StreamEvent::Resolve(_), 1) => StreamCommand::Resolved { ttl: 60, answers: Vec::new() },
            (StreamEvent::Data(bytes), 1..) => StreamCommand::Consumed(bytes.len()),
            (StreamEvent::Finished, 1..) => StreamCommand::Finish,
            _ => continue,
        };
        let is_refused = matches!(command, StreamCommand::Reset(_));
        relay.handle_command(stream, command);
        if !is_refused {
            send(relay, stream, &event, choices);
        }
    }
}

/// For any input of the origin, the relay's circuits stay within the share of one source: a sixteenth of the cap.
fn hostile_origin(bytes: &[u8]) {
    let mut choices = Choices::new(bytes);
    let (mut clock, mut harness) = (FuzzClock::new(), RelayHarness::new());
    while !choices.is_empty() {
        let now = clock.advance(choices.u8() % 12);
        match choices.u8() % 8 {
            0 => harness.relay.handle_timeout(now, &mut harness.rng),
            1 => harness.create(now, upper(choices.u8())),
            2 | 3 => {
                let commands = [Command::Create, Command::Created, Command::Relay, Command::Destroy];
                let command = commands[usize::from(choices.u8() % 4)];
                let circuit = upper(choices.u8());
                harness.send(Cell::new(circuit, command, body(choices.bytes())));
            }
            _ => {
                let circuit = upper(choices.u8());
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

/// The keys of a first hop that only forwards.
pub(super) fn first_keys() -> HopKeys {
    HopKeys { forward: LayerKey::from_bytes([6; 32]), backward: LayerKey::from_bytes([7; 32]) }
}

/// An identifier of the upper half, from which a dialler allocates.
pub(super) fn upper(choice: u8) -> CircuitId {
    CircuitId::new(0x8000_0001 + u32::from(choice % 24)).unwrap()
}

/// Inputs that create a circuit and send messages: one input for each message, and one with all messages of streams.
fn origin_seeds() -> Vec<Vec<u8>> {
    let send_message = |message: &RelayMessage| {
        let encoded = encode(message);
        let length = u16::try_from(encoded.len()).unwrap().to_be_bytes();
        [&[0, 4, 0], &length[..], &encoded, &[1]].concat()
    };
    let create = [0, 1, 0].to_vec();
    let each = messages().into_iter().map(|message| [create.clone(), send_message(&message)].concat());
    let begin = messages().into_iter().next().unwrap();
    let of_stream = messages().into_iter().filter(|message| message.kind().from_origin() && message.stream().is_some());
    let all = of_stream.flat_map(|message| send_message(&message));
    each.chain([create.iter().copied().chain(send_message(&begin)).chain(all).collect()]).collect()
}
