//! Fuzz target: a relay with an honest origin, an honest next hop, and hostile neighbours that the input drives.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use core::{net::SocketAddr, time::Duration};

use rand::{SeedableRng as _, rngs::ChaCha8Rng};

use super::{Choices, FuzzTarget, wire::messages};
use crate::{
    base::{
        CircuitId, HopIndex, Instant, LANES, Lane, LinkClose, LinkEvent, LinkId, LinkMachine as _, LinkOpened, Rate,
        Redacted, RelayId, Slots, Transmit,
    },
    channel::{ChannelEvent, ChannelId, ChannelParameters, Channels, LocalRole},
    crypto::{LayerKey, OnionSecret},
    directory::fixture,
    handshake::{ClientHandshake, HopKeys, OnionKeyring, RelayKeys, respond},
    onion::{ForwardContent, OriginLayers, RelayLayer, message_capacity},
    relay::{Relay, RelayEvent, RelayParameters},
    stream::{StreamCommand, StreamEvent},
    wire::{
        BODY_LEN, Cell, CellBody, Command, EndReason, Fragments, RelayMessage, create_cells, created_cells,
        decode_create, encode_extend, split,
    },
};

pub(super) const TARGETS: &[FuzzTarget] =
    &[FuzzTarget { name: "relay_sequence", run: relay_sequence, seeds: sequence_seeds }];

/// The number of the honest next hop. The relay itself has number 1.
const NEXT: u16 = 2;
/// The listed relays; those from 3 on are hostile.
const LISTED: u16 = 5;
/// A relay that no consensus lists.
const UNLISTED: u16 = 30;
/// Cap on links, so that an input takes bounded time.
const MAX_LINKS: usize = 12;
/// Bytes that a link accepts after it has opened.
const FIRST_ROOM: usize = 1 << 16;
/// The longest time that passes at once, shorter than an interval of keep-alives.
const MAX_STEP: Duration = Duration::from_secs(15);

/// Caps that an input can reach.
fn parameters() -> RelayParameters {
    let channel = ChannelParameters {
        channels: 8,
        handshakes: 4,
        dials: 4,
        refusals: 16,
        circuit_queue: 64,
        queued: 256,
        ..ChannelParameters::default()
    };
    RelayParameters {
        channel,
        circuits: 128,
        partial_creates: 64,
        waiting_creates: 64,
        circuit_handshakes: Rate { per_second: 20, burst: 4 },
        waiting_extends: 64,
        exit_streams: 64,
        stream_records: 128,
        exit: true,
        ..RelayParameters::default()
    }
}

fn hop(number: u8) -> HopIndex {
    HopIndex::new(number).unwrap()
}

fn id(number: u16) -> RelayId {
    fixture::key(number).id()
}

fn relay_role(number: u16) -> LocalRole {
    LocalRole::Relay(Arc::new(fixture::key(number)))
}

fn first_keys() -> HopKeys {
    HopKeys { forward: LayerKey::from_bytes([6; 32]), backward: LayerKey::from_bytes([7; 32]) }
}

/// An identifier of the upper half, from which a dialler allocates.
fn upper(choice: u8) -> CircuitId {
    CircuitId::new(0x8000_0001 + u32::from(choice % 24)).unwrap()
}

fn body(bytes: &[u8]) -> CellBody {
    let mut body = CellBody::zero();
    let length = bytes.len().min(BODY_LEN);
    body[..length].copy_from_slice(&bytes[..length]);
    body
}

/// The other end of a link of the relay.
struct Neighbour {
    channels: Channels,
    is_client: bool,
    /// The handshakes of circuits without an answer.
    handshakes: BTreeMap<CircuitId, ClientHandshake>,
    /// The keys of the circuits that the relay has created: all layers, and the first hop's layer if the relay is the
    /// second hop.
    circuits: BTreeMap<CircuitId, (OriginLayers, Option<RelayLayer>)>,
    /// The circuits that the relay has created at this neighbour.
    allocated: BTreeSet<CircuitId>,
}

impl Neighbour {
    fn channel(&self, link: LinkId) -> ChannelId {
        assert_eq!(self.channels.len(), 1);
        ChannelId(link)
    }
}

/// The honest circuit: its endpoints on both channels, and the keys of both ends.
struct HonestCircuit {
    origin: LinkId,
    at_origin: CircuitId,
    layers: OriginLayers,
    next: LinkId,
    at_next: CircuitId,
    layer: RelayLayer,
    /// The number of messages sent, from which the next message is made.
    sent: u8,
}

/// A relay and its neighbours, joined without a network.
struct RelayWorld {
    now: Instant,
    rng: ChaCha8Rng,
    parameters: RelayParameters,
    relay: Relay,
    keys: RelayKeys,
    last_link: u64,
    neighbours: BTreeMap<LinkId, Neighbour>,
    /// The relays that the relay dials, without an answer.
    dials: Vec<RelayId>,
    /// Cells from the relay to honest neighbours.
    honest_cells: BTreeMap<LinkId, Vec<Cell>>,
    honest_links: Vec<LinkId>,
}

impl RelayWorld {
    fn new() -> Self {
        let onion = OnionSecret::from_bytes([2; 32]);
        let keys = RelayKeys { identity: id(1), onion_key: onion.public() };
        let relay = Relay::new(Arc::new(fixture::key(1)), OnionKeyring::new(onion, None), parameters());
        let mut world = Self {
            now: Instant::START,
            rng: ChaCha8Rng::seed_from_u64(3),
            parameters: parameters(),
            relay,
            keys,
            last_link: 0,
            neighbours: BTreeMap::new(),
            dials: Vec::new(),
            honest_cells: BTreeMap::new(),
            honest_links: Vec::new(),
        };
        world.list(LISTED);
        world
    }

    /// Gives the relay a consensus of the first relays.
    fn list(&mut self, relays: u16) {
        let listed = (1..=relays).map(|number| fixture::listed(fixture::profile(number)));
        self.relay.set_consensus(Arc::new(fixture::consensus(listed)));
    }

    /// Opens a link with a neighbour, which the neighbour dials or the relay. Without a handshake, the neighbour sends
    /// nothing.
    fn open(&mut self, role: LocalRole, dialled: Option<RelayId>, address: [u8; 4], handshake: bool) -> LinkId {
        self.last_link += 1;
        let link = LinkId(self.last_link);
        let opened = |dialled, local, peer| LinkEvent::Opened {
            link,
            opened: LinkOpened {
                dialled,
                local_certificate: [local; 32],
                peer_certificate: [peer; 32],
                peer_address: Redacted(SocketAddr::from((address, 1))),
                lanes: LANES,
            },
        };
        self.relay.handle_link(self.now, opened(dialled, 2, 1), &mut self.rng);
        self.relay.handle_link(self.now, LinkEvent::Room { link, bytes: FIRST_ROOM }, &mut self.rng);
        let is_client = matches!(role, LocalRole::Client);
        let mut channels = Channels::new(role, ChannelParameters::default());
        if handshake {
            let neighbour_dials = dialled.is_none().then_some(self.keys.identity);
            channels.handle_link(self.now, opened(neighbour_dials, 1, 2), &mut self.rng);
            channels.handle_link(self.now, LinkEvent::Room { link, bytes: FIRST_ROOM }, &mut self.rng);
        }
        let (handshakes, circuits, allocated) = (BTreeMap::new(), BTreeMap::new(), BTreeSet::new());
        self.neighbours.insert(link, Neighbour { channels, is_client, handshakes, circuits, allocated });
        self.settle();
        link
    }

    /// Opens a link with an honest neighbour.
    fn open_honest(&mut self, role: LocalRole, dialled: Option<RelayId>, address: [u8; 4]) -> LinkId {
        self.honest_links.push(LinkId(self.last_link + 1));
        self.open(role, dialled, address, true)
    }

    /// Passes messages in both directions until no message is left, and drains the relay.
    fn settle(&mut self) {
        for turn in 0.. {
            assert!(turn < 1000, "the relay doesn't become idle");
            let mut is_idle = true;
            for link in &self.honest_links {
                let room = LinkEvent::Room { link: *link, bytes: FIRST_ROOM };
                self.relay.handle_link(self.now, room.clone(), &mut self.rng);
                if let Some(neighbour) = self.neighbours.get_mut(link) {
                    neighbour.channels.handle_link(self.now, room, &mut self.rng);
                }
            }
            self.relay.handle_batch_end(self.now, &mut self.rng);
            while let Some(transmit) = self.relay.poll_transmit(self.now, &mut self.rng) {
                is_idle = false;
                self.handle_transmit(transmit);
            }
            for (link, neighbour) in &mut self.neighbours {
                while let Some(transmit) = neighbour.channels.poll_transmit(self.now) {
                    let Transmit::Message { lane, message, .. } = transmit else { continue };
                    is_idle = false;
                    self.relay.handle_link(self.now, LinkEvent::Message { link: *link, lane, message }, &mut self.rng);
                }
            }
            if is_idle && self.relay.poll_timeout().is_none_or(|due| due > self.now) {
                return;
            }
            self.relay.handle_timeout(self.now, &mut self.rng);
        }
    }

    fn handle_transmit(&mut self, transmit: Transmit) {
        match transmit {
            Transmit::Dial(target) => self.dials.push(target.relay),
            Transmit::Close(link) => {
                assert!(!self.honest_links.contains(&link), "the relay closes the channel of an honest neighbour");
                self.neighbours.remove(&link);
            }
            Transmit::Message { link, lane, message } => {
                let Some(neighbour) = self.neighbours.get_mut(&link) else { return };
                neighbour.channels.handle_link(self.now, LinkEvent::Message { link, lane, message }, &mut self.rng);
                while let Some(event) = neighbour.channels.poll_event() {
                    let ChannelEvent::Cell { cell, .. } = event else { continue };
                    if self.honest_links.contains(&link) {
                        self.honest_cells.entry(link).or_default().push(cell);
                    } else {
                        neighbour.handle_cell(&cell);
                    }
                }
            }
        }
    }

    /// Sends a cell of a hostile neighbour.
    fn send(&mut self, link: LinkId, cell: Cell) {
        let lane = cell.circuit().map_or(0, |circuit| circuit.value() % u32::from(LANES));
        let lane = Lane::new(lane.try_into().unwrap()).unwrap();
        let message = Slots::from_iter([cell.encode()]);
        self.relay.handle_link(self.now, LinkEvent::Message { link, lane, message }, &mut self.rng);
    }

    /// Sends a cell of an honest neighbour.
    fn send_honest(&mut self, link: LinkId, cell: Cell) {
        let neighbour = self.neighbours.get_mut(&link).expect("an honest neighbour stays");
        let channel = neighbour.channel(link);
        neighbour.channels.send(channel, cell).expect("the queue is short");
    }

    /// Cells from the relay to an honest neighbour on a circuit since the last call.
    fn honest_cells(&mut self, link: LinkId, circuit: CircuitId) -> Vec<Cell> {
        let mut cells = self.honest_cells.remove(&link).unwrap_or_default();
        cells.retain(|cell| cell.circuit() == Some(circuit));
        cells
    }

    /// Builds the honest circuit: the relay is the first hop, relay 2 the second.
    fn build(&mut self) -> HonestCircuit {
        let origin = self.open_honest(LocalRole::Client, None, [192, 0, 2, 1]);
        let neighbour = self.neighbours.get_mut(&origin).unwrap();
        let at_origin = neighbour.channels.allocate_circuit(ChannelId(origin), &mut self.rng).unwrap();
        let mut layers = OriginLayers::new();
        let (handshake, request) = ClientHandshake::start(&self.keys, HopIndex::FIRST, &[], &mut self.rng).unwrap();
        for cell in create_cells(at_origin, HopIndex::FIRST, &request).unwrap() {
            self.send_honest(origin, cell);
        }
        self.settle();
        let created = self.honest_cells(origin, at_origin).remove(0);
        let reply = Fragments::new().push(created.body()).unwrap().unwrap();
        layers.push(handshake.finish(&reply).unwrap().keys).unwrap();

        let keyring = OnionKeyring::new(OnionSecret::from_bytes([4; 32]), None);
        let keys = RelayKeys { identity: id(NEXT), onion_key: keyring.public() };
        let (handshake, request) = ClientHandshake::start(&keys, hop(2), &[], &mut self.rng).unwrap();
        for fragment in split(&encode_extend(&id(NEXT), &request), 900).unwrap() {
            let message = encode(&RelayMessage::Extend { fragment: fragment.into() });
            let mut sealed = CellBody::zero();
            layers.seal_message(HopIndex::FIRST, &message, &mut sealed).unwrap();
            self.send_honest(origin, Cell::new(at_origin, Command::Relay, sealed));
        }
        self.settle();
        assert_eq!(core::mem::take(&mut self.dials), [id(NEXT)]);
        let next = self.open_honest(relay_role(NEXT), Some(id(NEXT)), [198, 51, 100, 1]);
        let created = self.honest_cells.remove(&next).unwrap();
        let at_next = created[0].circuit().unwrap();
        let mut fragments = Fragments::new();
        let request = created.iter().find_map(|cell| fragments.push(decode_create(cell.body()).unwrap().1).unwrap());
        let answer = respond(&id(NEXT), &keyring, hop(2), &request.unwrap(), &mut self.rng).unwrap();
        self.neighbours.get_mut(&next).unwrap().channels.admit_circuit(ChannelId(next), at_next);
        for cell in created_cells(at_next, &answer.reply).unwrap() {
            self.send_honest(next, cell);
        }
        self.settle();
        let mut fragments = Fragments::new();
        let mut reply = None;
        for cell in self.honest_cells(origin, at_origin) {
            let mut sealed = cell.into_body();
            let (from, length) = layers.open_backward(&mut sealed).unwrap();
            let message = RelayMessage::decode(&bytes::Bytes::copy_from_slice(&sealed[..length])).unwrap();
            let RelayMessage::Extended { fragment } = message else { panic!("no EXTENDED from {from:?}") };
            reply = fragments.push(&fragment).unwrap();
        }
        layers.push(handshake.finish(&reply.unwrap()).unwrap().keys).unwrap();
        HonestCircuit { origin, at_origin, layers, next, at_next, layer: RelayLayer::new(hop(2), answer.keys), sent: 0 }
    }

    /// Sends a message in each direction of the honest circuit. Each must arrive unaltered.
    fn use_honest(&mut self, honest: &mut HonestCircuit) {
        honest.sent = honest.sent.wrapping_add(1);
        let message = [honest.sent; 64];
        let mut sealed = CellBody::zero();
        honest.layers.seal_message(hop(2), &message, &mut sealed).unwrap();
        self.send_honest(honest.origin, Cell::new(honest.at_origin, Command::Relay, sealed));
        self.settle();
        let arrived = self.honest_cells(honest.next, honest.at_next);
        assert_eq!(arrived.iter().map(Cell::command).collect::<Vec<_>>(), [Command::Relay], "forward");
        let mut opened = arrived.into_iter().next().unwrap().into_body();
        assert!(honest.layer.open_forward(&mut opened) == Ok(ForwardContent::Message));
        assert_eq!(opened[..message.len()], message);

        let mut sealed = CellBody::zero();
        honest.layer.seal_message(&message, &mut sealed).unwrap();
        self.send_honest(honest.next, Cell::new(honest.at_next, Command::Relay, sealed));
        self.settle();
        let arrived = self.honest_cells(honest.origin, honest.at_origin);
        assert_eq!(arrived.iter().map(Cell::command).collect::<Vec<_>>(), [Command::Relay], "backward");
        let mut opened = arrived.into_iter().next().unwrap().into_body();
        assert_eq!(honest.layers.open_backward(&mut opened).unwrap().0, hop(2));
        assert_eq!(opened[..message.len()], message);
    }

    /// Time passes, in steps that keep the honest channels alive.
    fn pass(&mut self, time: Duration) {
        let end = self.now.after(time);
        while self.now < end {
            self.now = self.now.after(MAX_STEP.min(end.since(self.now)));
            for link in &self.honest_links {
                if let Some(neighbour) = self.neighbours.get_mut(link) {
                    neighbour.channels.handle_timeout(self.now);
                }
            }
            self.relay.handle_timeout(self.now, &mut self.rng);
            self.settle();
        }
    }

    /// The hostile link that the choice selects.
    fn hostile(&self, choice: u8) -> Option<LinkId> {
        let mut hostile: Vec<_> = self.neighbours.keys().collect();
        hostile.retain(|link| !self.honest_links.contains(link));
        hostile.get(usize::from(choice).checked_rem(hostile.len())?).map(|link| **link)
    }

    /// A hostile neighbour opens a link, or the relay's dial of a hostile relay succeeds.
    fn open_hostile(&mut self, choice: u8) {
        if self.neighbours.len() >= MAX_LINKS {
            return;
        }
        let role = match choice % 4 {
            0 | 1 => LocalRole::Client,
            2 => relay_role(3 + u16::from(choice / 16) % (LISTED - 2)),
            _ => relay_role(UNLISTED),
        };
        self.open(role, None, [203, 0, 113, choice / 4 % 4], choice < 240);
    }

    /// The outcome of a dial of a hostile relay.
    fn answer_dial(&mut self, choice: u8) {
        let Some(relay) = self.dials.pop() else { return };
        let number = (3..=LISTED).find(|number| id(*number) == relay);
        match number {
            Some(number) if !choice.is_multiple_of(4) && self.neighbours.len() < MAX_LINKS => {
                self.open(relay_role(number), Some(relay), [203, 0, 113, 200], choice % 4 > 1);
            }
            _ => {
                let error = crate::base::DialError::TimedOut;
                self.relay.handle_link(self.now, LinkEvent::DialFailed { relay, error }, &mut self.rng);
            }
        }
    }

    /// A hostile neighbour creates a circuit as an honest origin or an honest previous hop.
    fn create(&mut self, link: LinkId, circuit: CircuitId) {
        let Some(neighbour) = self.neighbours.get_mut(&link) else { return };
        let position = if neighbour.is_client { HopIndex::FIRST } else { hop(2) };
        let (handshake, request) = ClientHandshake::start(&self.keys, position, &[], &mut self.rng).unwrap();
        neighbour.handshakes.insert(circuit, handshake);
        for cell in create_cells(circuit, position, &request).unwrap() {
            self.send(link, cell);
        }
    }

    /// A hostile neighbour sends a message in valid layers.
    fn send_message(&mut self, link: LinkId, circuit: CircuitId, message: &[u8]) {
        let Some(neighbour) = self.neighbours.get_mut(&link) else { return };
        let position = if neighbour.is_client { HopIndex::FIRST } else { hop(2) };
        let Some((layers, first)) = neighbour.circuits.get_mut(&circuit) else { return };
        let message = &message[..message.len().min(message_capacity(position))];
        let mut sealed = CellBody::zero();
        if layers.seal_message(position, message, &mut sealed).is_err() {
            return;
        }
        if let Some(first) = first {
            first.open_forward(&mut sealed).expect("the layer is the origin's");
        }
        self.send(link, Cell::new(circuit, Command::Relay, sealed));
    }

    /// The events of the streams at the relay, answered according to the choices.
    fn serve(&mut self, choices: &mut Choices<'_>) {
        while let Some(event) = self.relay.poll_event() {
            let RelayEvent::Stream(stream, event) = event else { continue };
            match (event, choices.u8() % 4) {
                (StreamEvent::Begin(_), 0) => {
                    self.relay.handle_command(stream, StreamCommand::Reset(EndReason::Refused));
                }
                (StreamEvent::Begin(_), 1 | 2) => {
                    self.relay.handle_command(stream, StreamCommand::Connected(None));
                    let length = self.relay.room(stream).min(usize::from(choices.u8()) << 8);
                    assert_eq!(self.relay.write(stream, &vec![7; length]), length);
                }
                (StreamEvent::Resolve(_), 1) => {
                    let answers = Vec::new();
                    self.relay.handle_command(stream, StreamCommand::Resolved { ttl: 60, answers });
                }
                (StreamEvent::Data(bytes), 1..) => {
                    self.relay.handle_command(stream, StreamCommand::Consumed(bytes.len()));
                }
                (StreamEvent::Finished, 1..) => self.relay.handle_command(stream, StreamCommand::Finish),
                _ => {}
            }
        }
    }

    /// Performs one operation of the hostile neighbours.
    fn step(&mut self, choices: &mut Choices<'_>) {
        let (operation, choice) = (choices.u8() % 16, choices.u8());
        match operation {
            0 => self.open_hostile(choice),
            1 => self.answer_dial(choice),
            2 => self.list(if choice % 2 == 0 { LISTED } else { LISTED - 1 }),
            3 => {
                let milliseconds = 1_u64 << (choice % 18);
                self.pass(Duration::from_millis(milliseconds));
            }
            _ => {
                let Some(link) = self.hostile(choice) else { return };
                self.act(link, operation, choices);
            }
        }
    }

    /// Performs one operation of a hostile neighbour.
    fn act(&mut self, link: LinkId, operation: u8, choices: &mut Choices<'_>) {
        match operation {
            4 => {
                let event = match choices.u8() % 4 {
                    0 => LinkEvent::Closed { link, reason: LinkClose::ByPeer },
                    1 => LinkEvent::Retire { link },
                    2 => LinkEvent::Room { link, bytes: 0 },
                    _ => LinkEvent::Room { link, bytes: usize::from(choices.u16()) },
                };
                if matches!(event, LinkEvent::Closed { .. }) {
                    self.neighbours.remove(&link);
                }
                self.relay.handle_link(self.now, event, &mut self.rng);
            }
            5..=7 => self.create(link, upper(choices.u8())),
            8 => {
                // The first fragment of a CREATE.
                let circuit = upper(choices.u8());
                let position = HopIndex::new(1 + choices.u8() % 3).unwrap();
                let cell = create_cells(circuit, position, &[7; 2000]).unwrap().remove(0);
                self.send(link, cell);
            }
            9 => {
                let commands = [Command::Create, Command::Created, Command::Relay, Command::Destroy];
                let command = commands[usize::from(choices.u8() % 4)];
                let circuit = match choices.u8() {
                    choice if choice < 128 => upper(choice),
                    // The identifiers that the relay has allocated are random.
                    choice => self.allocated(link, choice).unwrap_or(CircuitId::LOWEST),
                };
                self.send(link, Cell::new(circuit, command, body(choices.bytes())));
            }
            10 => {
                let circuit = upper(choices.u8());
                let (_, request) = {
                    let keys = RelayKeys { identity: id(3), onion_key: self.keys.onion_key };
                    ClientHandshake::start(&keys, hop(2), &[], &mut self.rng).unwrap()
                };
                let relay = id([NEXT, 3, 4, LISTED, UNLISTED, 1][usize::from(choices.u8() % 6)]);
                for fragment in split(&encode_extend(&relay, &request), 900).unwrap() {
                    let message = encode(&RelayMessage::Extend { fragment: fragment.into() });
                    self.send_message(link, circuit, &message);
                }
            }
            11 => {
                let circuit = upper(choices.u8());
                self.send_message(link, circuit, choices.bytes());
            }
            _ => {
                let circuit = upper(choices.u8());
                let messages = messages();
                let mut message = messages[usize::from(choices.u8()) % messages.len()].clone();
                let stream = crate::base::StreamId::new(u16::from(choices.u8() % 40) + 1).unwrap();
                if let RelayMessage::Begin { stream: of, .. } | RelayMessage::Resolve { stream: of, .. } = &mut message
                {
                    *of = stream;
                }
                self.send_message(link, circuit, &encode(&message));
            }
        }
    }

    /// A circuit that the relay has created at a hostile neighbour.
    fn allocated(&self, link: LinkId, choice: u8) -> Option<CircuitId> {
        let allocated = &self.neighbours.get(&link)?.allocated;
        allocated.iter().nth(usize::from(choice).checked_rem(allocated.len())?).copied()
    }
}

impl Neighbour {
    /// A cell from the relay to a hostile neighbour.
    fn handle_cell(&mut self, cell: &Cell) {
        let Some(circuit) = cell.circuit() else { return };
        match cell.command() {
            Command::Created => {
                let Some(handshake) = self.handshakes.remove(&circuit) else { return };
                let Ok(Some(reply)) = Fragments::new().push(cell.body()) else { return };
                // The CREATED can answer an earlier CREATE with the same identifier.
                let Ok(established) = handshake.finish(&reply) else { return };
                let (mut layers, mut first) = (OriginLayers::new(), None);
                if !self.is_client {
                    layers.push(first_keys()).unwrap();
                    first = Some(RelayLayer::new(HopIndex::FIRST, first_keys()));
                }
                layers.push(established.keys).unwrap();
                self.circuits.insert(circuit, (layers, first));
            }
            Command::Create => _ = self.allocated.insert(circuit),
            Command::Destroy => {
                self.allocated.remove(&circuit);
                self.circuits.remove(&circuit);
            }
            Command::Relay | Command::Padding => {}
        }
    }
}

fn encode(message: &RelayMessage) -> Vec<u8> {
    let mut encoded = Vec::new();
    message.encode(&mut encoded).unwrap();
    encoded
}

/// For any operations of hostile neighbours, the caps hold, the cells of the honest circuit arrive unaltered, and no
/// state is left once all neighbours have left.
fn relay_sequence(bytes: &[u8]) {
    let mut choices = Choices::new(bytes);
    let mut world = RelayWorld::new();
    let mut honest = world.build();
    while !choices.is_empty() {
        world.step(&mut choices);
        world.settle();
        world.serve(&mut choices);
        world.settle();
        world.use_honest(&mut honest);
        world.relay.assert_sound(&world.parameters);
    }
    world.honest_links.clear();
    for link in core::mem::take(&mut world.neighbours).into_keys() {
        let closed = LinkEvent::Closed { link, reason: LinkClose::ByPeer };
        world.relay.handle_link(world.now, closed, &mut world.rng);
    }
    // Dials without an answer time out.
    world.pass(Duration::from_secs(60));
    world.relay.assert_without_neighbours();
    assert_eq!(world.relay.poll_timeout(), None);
}

/// Inputs with circuits of clients and relays, streams, extended circuits, a flood of CREATEs and stalled links.
fn sequence_seeds() -> Vec<Vec<u8>> {
    let (client, relay) = ([0, 0], [0, 2]);
    let create = |circuit: u8| [5, 0, circuit];
    let begin = |circuit: u8, stream: u8| [12, 0, circuit, 0, stream, 1, 200];
    let extend = |circuit: u8, to: u8| [10, 0, circuit, to];
    let mut extended = [&client[..], &create(0), &extend(0, 1), &[1, 2], &[3, 10]].concat();
    extended.extend([&create(1)[..], &extend(1, 0), &extend(1, 4), &[9, 0, 3, 0, 0, 0]].concat());
    let mut streams = [&relay[..], &create(0)].concat();
    for stream in 0..6 {
        streams.extend(begin(0, stream));
    }
    streams.extend([4, 0, 2, 3, 17, 4, 0, 3, 255, 255, 12, 0, 0, 6, 0]);
    let mut flood = client.to_vec();
    for circuit in 0..24 {
        flood.extend([&create(circuit)[..], &[8, 0, circuit, 0]].concat());
    }
    flood.extend([3, 12, 4, 0, 0]);
    vec![extended, streams, flood]
}
