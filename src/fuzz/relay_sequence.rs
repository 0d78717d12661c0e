//! Fuzz target: a relay with an honest origin, an honest next hop, and hostile neighbours that the input drives.

mod honest;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use core::time::Duration;

use rand::{SeedableRng as _, rngs::ChaCha8Rng};

use super::{
    Choices, FuzzTarget,
    relay::{first_keys, serve_streams, upper},
    wire::{body, encode, messages},
};
use crate::{
    base::{
        CircuitId, DialError, HopIndex, Instant, LinkClose, LinkEvent, LinkId, LinkMachine as _, Rate, RelayId,
        StreamId,
    },
    channel::{
        ChannelParameters, Channels, LocalRole,
        fixture::{Neighbours, NewLink, message},
    },
    crypto::OnionSecret,
    directory::fixture,
    handshake::{ClientHandshake, OnionKeyring, RelayKeys},
    onion::{OriginLayers, RelayLayer, message_capacity},
    relay::{Relay, RelayParameters},
    stream::StreamEvent,
    wire::{Cell, CellBody, Command, Fragments, RelayMessage, create_cells, encode_extend, split},
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
        create_window: 2,
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

/// The circuits of a hostile neighbour at the relay.
#[derive(Default)]
struct Neighbour {
    is_client: bool,
    /// The handshakes of circuits without an answer.
    handshakes: BTreeMap<CircuitId, ClientHandshake>,
    /// The keys of the circuits that the relay has created: all layers, and the first hop's layer if the relay is the
    /// second hop.
    circuits: BTreeMap<CircuitId, (OriginLayers, Option<RelayLayer>)>,
    /// The circuits that the relay has created at this neighbour.
    allocated: BTreeSet<CircuitId>,
}

/// A relay and its neighbours, joined without a network.
struct RelayWorld {
    now: Instant,
    rng: ChaCha8Rng,
    parameters: RelayParameters,
    relay: Relay,
    keys: RelayKeys,
    neighbours: Neighbours,
    honest_links: Vec<LinkId>,
    hostile: BTreeMap<LinkId, Neighbour>,
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
            neighbours: Neighbours::new(Some(id(1))),
            honest_links: Vec::new(),
            hostile: BTreeMap::new(),
        };
        world.list(LISTED);
        world
    }

    /// Gives the relay a consensus of the first relays.
    fn list(&mut self, relays: u16) {
        let listed = (1..=relays).map(|number| fixture::listed(fixture::profile(number)));
        self.relay.set_consensus(Arc::new(fixture::consensus(listed)));
    }

    /// Opens a link with a neighbour, which the neighbour dials or the relay.
    fn open(&mut self, role: LocalRole, dialled: Option<RelayId>, address: [u8; 4], is_silent: bool) -> LinkId {
        let link = NewLink { dialled, address: (address, 1).into(), room: FIRST_ROOM, is_silent };
        let channels = Channels::new(role, ChannelParameters::default());
        self.neighbours.open(self.now, &mut self.relay, channels, &link, &mut self.rng)
    }

    /// Passes messages in both directions until no message is left, and drains the relay.
    fn settle(&mut self) {
        for turn in 0.. {
            assert!(turn < 1000, "the relay doesn't become idle");
            for link in &self.honest_links {
                let room = LinkEvent::Room { link: *link, bytes: FIRST_ROOM };
                self.relay.handle_link(self.now, room.clone(), &mut self.rng);
                if let Some(channels) = self.neighbours.channels(*link) {
                    channels.handle_link(self.now, room, &mut self.rng);
                }
            }
            let has_output = self.neighbours.exchange(self.now, &mut self.relay, &mut self.rng);
            for link in core::mem::take(&mut self.neighbours.listed) {
                let is_client = self.hostile.get(&link).is_some_and(|neighbour| neighbour.is_client);
                assert!(!is_client, "the relay reports a client as listed");
            }
            for link in core::mem::take(&mut self.neighbours.closed) {
                assert!(!self.honest_links.contains(&link), "the relay closes the channel of an honest neighbour");
                self.hostile.remove(&link);
            }
            for (link, neighbour) in &mut self.hostile {
                self.neighbours.take_cells(*link).iter().for_each(|cell| neighbour.handle_cell(cell));
            }
            if !has_output && self.relay.poll_timeout().is_none_or(|due| due > self.now) {
                return;
            }
            self.relay.handle_timeout(self.now, &mut self.rng);
        }
    }

    /// Sends a cell of a hostile neighbour.
    fn send(&mut self, link: LinkId, cell: Cell) {
        self.relay.handle_link(self.now, message(link, cell), &mut self.rng);
    }

    /// Time passes, in steps that keep the honest channels alive.
    fn pass(&mut self, time: Duration) {
        let end = self.now.after(time);
        while self.now < end {
            self.now = self.now.after(MAX_STEP.min(end.since(self.now)));
            for link in &self.honest_links {
                if let Some(channels) = self.neighbours.channels(*link) {
                    channels.handle_timeout(self.now);
                }
            }
            self.relay.handle_timeout(self.now, &mut self.rng);
            self.settle();
        }
    }

    /// The hostile link that the choice selects.
    fn hostile(&self, choice: u8) -> Option<LinkId> {
        self.hostile.keys().nth(usize::from(choice).checked_rem(self.hostile.len())?).copied()
    }

    /// A hostile neighbour opens a link, or the relay's dial of a hostile relay succeeds.
    fn open_hostile(&mut self, choice: u8) {
        if self.is_at_cap() {
            return;
        }
        let role = match choice % 4 {
            0 | 1 => LocalRole::Client,
            2 => relay_role(3 + u16::from(choice / 16) % (LISTED - 2)),
            _ => relay_role(UNLISTED),
        };
        // At the small caps each of these sources is as full as the honest one. Of equally full sources, the one with the
        // highest address loses a channel first.
        self.join_hostile(role, None, [203, 0, choice / 4 % 4, 1 + choice / 16 % 2], choice >= 240);
    }

    fn join_hostile(&mut self, role: LocalRole, dialled: Option<RelayId>, address: [u8; 4], is_silent: bool) {
        let is_client = matches!(role, LocalRole::Client);
        let link = self.open(role, dialled, address, is_silent);
        self.hostile.insert(link, Neighbour { is_client, ..Neighbour::default() });
        self.settle();
    }

    fn is_at_cap(&self) -> bool {
        self.neighbours.links().count() >= MAX_LINKS
    }

    /// The outcome of a dial of a hostile relay.
    fn answer_dial(&mut self, choice: u8) {
        let Some(relay) = self.neighbours.dials.pop() else { return };
        let number = (3..=LISTED).find(|number| id(*number) == relay);
        match number {
            Some(number) if !choice.is_multiple_of(4) && !self.is_at_cap() => {
                self.join_hostile(relay_role(number), Some(relay), [203, 0, 113, 200], choice % 4 == 1);
            }
            _ => {
                let error = DialError::TimedOut;
                self.relay.handle_link(self.now, LinkEvent::DialFailed { relay, error }, &mut self.rng);
            }
        }
    }

    /// A hostile neighbour creates a circuit as an honest origin or an honest previous hop.
    fn create(&mut self, link: LinkId, circuit: CircuitId) {
        let Some(neighbour) = self.hostile.get_mut(&link) else { return };
        let position = if neighbour.is_client { HopIndex::FIRST } else { hop(2) };
        let (handshake, request) = ClientHandshake::start(&self.keys, position, &[], &mut self.rng).unwrap();
        neighbour.handshakes.insert(circuit, handshake);
        for cell in create_cells(circuit, position, &request).unwrap() {
            self.send(link, cell);
        }
    }

    /// A hostile neighbour sends a message in valid layers.
    fn send_message(&mut self, link: LinkId, circuit: CircuitId, message: &[u8]) {
        let Some(neighbour) = self.hostile.get_mut(&link) else { return };
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
                    self.neighbours.remove(link);
                    self.hostile.remove(&link);
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
                let stream = StreamId::new(u16::from(choices.u8() % 40) + 1).unwrap();
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
        let allocated = &self.hostile.get(&link)?.allocated;
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

/// For any operations of hostile neighbours, the caps hold, the cells of the honest circuit arrive unaltered, and no
/// state is left once all neighbours have left.
fn relay_sequence(bytes: &[u8]) {
    let mut choices = Choices::new(bytes);
    let mut world = RelayWorld::new();
    let mut honest = world.build();
    while !choices.is_empty() {
        world.step(&mut choices);
        world.settle();
        serve_streams(&mut world.relay, &mut choices, |relay, stream, event, choices| {
            if matches!(event, StreamEvent::Begin(_)) {
                let length = relay.room(stream).min(usize::from(choices.u8()) << 8);
                assert_eq!(relay.write(stream, &vec![7; length]), length);
            }
        });
        world.settle();
        world.use_honest(&mut honest);
        world.relay.assert_sound(&world.parameters);
    }
    world.honest_links.clear();
    for link in world.neighbours.links().collect::<Vec<_>>() {
        world.neighbours.remove(link);
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
