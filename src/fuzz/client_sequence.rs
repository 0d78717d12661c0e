//! Fuzz target: a client with a hostile guard, which has the keys of all relays of the consensus.

use std::{collections::BTreeMap, sync::Arc};

use core::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use rand::{SeedableRng as _, rngs::ChaCha8Rng};

use super::{
    Choices, FuzzTarget,
    wire::{body, encode, messages},
};
use crate::{
    base::{
        CircuitId, DialError, HopIndex, Instant, LinkClose, LinkEvent, LinkId, LinkMachine as _, RelayId, StreamId,
    },
    channel::{
        ChannelParameters, Channels, LocalRole,
        fixture::{Neighbours, NewLink, message},
    },
    client::{ClientEvent, ClientMachine, ClientParameters, ClientStream, Isolation},
    crypto::OnionSecret,
    delegated::{Delegation, EngineName},
    directory::{
        Parameters,
        fixture::{self, NOW, VALID},
    },
    handshake::{OnionKeyring, respond},
    onion::{ForwardContent, RelayLayer, message_capacity},
    path::GuardSample,
    stream::{StreamCommand, StreamEvent},
    wire::{
        Cell, CellBody, Command, EndReason, Fragments, Host, RelayMessage, Target, created_cells, decode_create,
        decode_extend, split,
    },
};

pub(super) const TARGETS: &[FuzzTarget] =
    &[FuzzTarget { name: "client_sequence", run: client_sequence, seeds: sequence_seeds }];

const RELAYS: u16 = 8;
/// The relays with an exit policy and an offer: the first ones.
const EXITS: u16 = 3;
const ROOM: usize = 1 << 20;
/// Cap on links, so that an input takes bounded time.
const MAX_LINKS: usize = 8;

/// Caps that an input can reach.
fn parameters() -> ClientParameters {
    ClientParameters { max_circuits: 12, max_builds: 4, max_streams: 24, ..ClientParameters::default() }
}

fn keyring() -> OnionKeyring {
    OnionKeyring::new(OnionSecret::from_bytes([2; 32]), None)
}

fn engine() -> Delegation {
    Delegation::Search(EngineName::parse("test").unwrap())
}

fn target() -> Target {
    Target { host: Host::parse("example.org").unwrap(), port: 443 }
}

/// A circuit of the client, of which the guard performs all hops.
#[derive(Default)]
struct HostileCircuit {
    /// The layers of the built hops.
    layers: Vec<RelayLayer>,
    fragments: Fragments,
    /// The request for the next hop, and the hop's identity.
    request: Option<(RelayId, Vec<u8>)>,
    /// The open streams and RESOLVEs.
    streams: Vec<StreamId>,
}

/// The guard of a link, and the client's circuits over the link.
struct GuardLink {
    guard: RelayId,
    circuits: BTreeMap<CircuitId, HostileCircuit>,
}

/// The events of a request so far.
#[derive(Clone, Copy, Default)]
struct Progress {
    is_connected: bool,
    is_finished: bool,
    is_closed: bool,
    /// Received bytes that the application has not read.
    unread: usize,
}

/// A client and its guards, joined without a network.
struct ClientWorld {
    now: Instant,
    rng: ChaCha8Rng,
    client: ClientMachine,
    keyring: OnionKeyring,
    /// The guards' channels.
    neighbours: Neighbours,
    links: BTreeMap<LinkId, GuardLink>,
    requests: BTreeMap<ClientStream, Progress>,
    /// Whether the guard answers CREATE, EXTEND and BEGIN honestly.
    is_obedient: bool,
}

impl ClientWorld {
    fn new(is_obedient: bool) -> Self {
        let mut world = Self {
            now: Instant::START,
            rng: ChaCha8Rng::seed_from_u64(5),
            client: ClientMachine::new(parameters(), GuardSample::default()),
            keyring: keyring(),
            neighbours: Neighbours::new(None),
            links: BTreeMap::new(),
            requests: BTreeMap::new(),
            is_obedient,
        };
        world.list(RELAYS);
        world
    }

    /// Gives the client a consensus of the first `relays`.
    fn list(&mut self, relays: u16) {
        let listed = (1..=relays).map(|number| {
            let rules: &[&str] = if number <= EXITS { &["accept 443", "accept 25"] } else { &[] };
            let mut profile = fixture::exit_profile(number, rules);
            profile.onion_key = self.keyring.public();
            if number <= EXITS {
                profile.offer.engines = vec![EngineName::parse("test").unwrap()];
            }
            fixture::listed(profile)
        });
        let consensus = Arc::new(fixture::consensus_at(NOW, listed, &Parameters::default()).0);
        self.client.set_consensus(self.now, NOW, consensus, &mut self.rng);
    }

    /// Drains the client, and collects the cells that it sends to its guards.
    fn settle(&mut self) {
        for turn in 0.. {
            assert!(turn < 1000, "the client doesn't become idle");
            let mut is_idle = !self.neighbours.exchange(self.now, &mut self.client, &mut self.rng);
            assert!(self.neighbours.listed.is_empty(), "a client accepts no links");
            for link in core::mem::take(&mut self.neighbours.closed) {
                self.links.remove(&link);
            }
            for (link, guard) in &mut self.links {
                self.neighbours.take_cells(*link).into_iter().for_each(|cell| guard.handle_cell(cell));
            }
            while let Some(event) = self.client.poll_event() {
                is_idle = false;
                self.handle_event(event);
            }
            if self.is_obedient {
                is_idle &= !self.obey();
            }
            if is_idle && self.client.poll_timeout().is_none_or(|due| due > self.now) {
                return;
            }
            self.client.handle_timeout(self.now, &mut self.rng);
        }
    }

    /// An event of the client. The events of a request have an order, and none follows the last one.
    fn handle_event(&mut self, event: ClientEvent) {
        let (stream, event) = match event {
            ClientEvent::Stream(stream, event) => (stream, Some(event)),
            ClientEvent::Failed(stream, _) => (stream, None),
            ClientEvent::Delegated { stream, path, .. } => {
                let progress = self.requests.get_mut(&stream).expect("the request exists");
                assert!(!progress.is_connected && !progress.is_closed && path.len() >= 3);
                progress.is_connected = true;
                return;
            }
            ClientEvent::CircuitBuilt { path, hop_times, .. } => return assert_eq!(path.len(), hop_times.len()),
            ClientEvent::Ready | ClientEvent::GuardsChanged | ClientEvent::ConsensusExpired => return,
        };
        let progress = self.requests.get_mut(&stream).expect("the request exists");
        assert!(!progress.is_closed, "an event after the last one");
        match event {
            None => {
                assert!(!progress.is_connected, "a connected request ends with an event of its stream");
                progress.is_closed = true;
            }
            Some(StreamEvent::Connected(_)) => {
                assert!(!progress.is_connected);
                progress.is_connected = true;
            }
            Some(StreamEvent::Data(bytes)) => {
                assert!(progress.is_connected && !progress.is_finished);
                progress.unread += bytes.len();
                assert!(progress.unread <= 64 << 20, "unread bytes");
            }
            Some(StreamEvent::Finished) => {
                assert!(progress.is_connected && !progress.is_finished);
                progress.is_finished = true;
            }
            Some(StreamEvent::Resolved { .. } | StreamEvent::Closed(_)) => progress.is_closed = true,
            Some(StreamEvent::Writable) => assert!(progress.is_connected),
            Some(event) => panic!("{event:?} at an origin"),
        }
    }

    /// Answers all requests of the client honestly. Returns whether there was one.
    fn obey(&mut self) -> bool {
        let mut was_asked = false;
        let circuits: Vec<_> = self
            .links
            .iter()
            .flat_map(|(link, guard)| guard.circuits.keys().map(|circuit| (*link, *circuit)))
            .collect();
        for (link, circuit) in circuits {
            was_asked |= self.build(link, circuit);
            let guard = self.links.get_mut(&link).and_then(|guard| guard.circuits.get_mut(&circuit));
            for stream in guard.map(|guard| core::mem::take(&mut guard.streams)).unwrap_or_default() {
                was_asked = true;
                self.send_message(link, circuit, u8::MAX, &RelayMessage::Connected { stream, address: None });
            }
        }
        was_asked
    }

    /// Answers a waiting CREATE or EXTEND of a circuit honestly. Returns whether there was one.
    fn build(&mut self, link: LinkId, circuit: CircuitId) -> bool {
        let found = self.links.get_mut(&link).and_then(|guard| guard.circuits.get_mut(&circuit));
        let Some(state) = found else { return false };
        let Some((relay, request)) = state.request.take() else { return false };
        let hop = HopIndex::new(u8::try_from(state.layers.len()).unwrap() + 1).unwrap();
        let answer = respond(&relay, &self.keyring, hop, &request, &mut self.rng).expect("the client is honest");
        let last = state.layers.len();
        state.layers.push(RelayLayer::new(hop, answer.keys));
        if last == 0 {
            for cell in created_cells(circuit, &answer.reply).unwrap() {
                self.send(link, cell);
            }
        } else {
            for fragment in split(&answer.reply, 900).unwrap() {
                let message = RelayMessage::Extended { fragment: fragment.into() };
                self.send_message(link, circuit, u8::try_from(last - 1).unwrap(), &message);
            }
        }
        true
    }

    /// Sends a cell of the guard.
    fn send(&mut self, link: LinkId, cell: Cell) {
        self.client.handle_link(self.now, message(link, cell), &mut self.rng);
    }

    fn send_message(&mut self, link: LinkId, circuit: CircuitId, from: u8, message: &RelayMessage) {
        self.send_sealed(link, circuit, from, &encode(message));
    }

    /// Sends a message in the layers of a hop (from 0) and of those before it; from the last hop if it has fewer hops.
    fn send_sealed(&mut self, link: LinkId, circuit: CircuitId, from: u8, message: &[u8]) {
        let found = self.links.get_mut(&link).and_then(|guard| guard.circuits.get_mut(&circuit));
        let Some(state) = found.filter(|state| !state.layers.is_empty()) else { return };
        let from = usize::from(from).min(state.layers.len() - 1);
        let capacity = message_capacity(HopIndex::new(u8::try_from(from).unwrap() + 1).unwrap());
        let mut body = CellBody::zero();
        let (before, layers) = state.layers.split_at_mut(from);
        if layers[0].seal_message(&message[..message.len().min(capacity)], &mut body).is_err() {
            return;
        }
        if before.iter_mut().rev().all(|layer| layer.seal_backward(&mut body).is_ok()) {
            self.send(link, Cell::new(circuit, Command::Relay, body));
        }
    }

    /// The outcome of the client's oldest dial.
    fn answer_dial(&mut self, choice: u8) {
        if self.neighbours.dials.is_empty() {
            return;
        }
        let relay = self.neighbours.dials.remove(0);
        let number = (1..=RELAYS).find(|number| fixture::key(*number).id() == relay).expect("the relay is listed");
        if choice.is_multiple_of(8) || self.links.len() >= MAX_LINKS {
            let error = DialError::TimedOut;
            return self.client.handle_link(self.now, LinkEvent::DialFailed { relay, error }, &mut self.rng);
        }
        // Sometimes the guard proves the identity of another relay.
        let proved = if choice == 1 { number % RELAYS + 1 } else { number };
        let channels = Channels::new(LocalRole::Relay(Arc::new(fixture::key(proved))), ChannelParameters::default());
        let address = SocketAddr::from(([192, 0, 2, 1], 1));
        let link = NewLink { dialled: Some(relay), address, room: ROOM, is_silent: false };
        let link = self.neighbours.open(self.now, &mut self.client, channels, &link, &mut self.rng);
        self.links.insert(link, GuardLink { guard: relay, circuits: BTreeMap::new() });
    }

    /// The link and the circuit that the choice selects.
    fn circuit(&self, choice: u8) -> Option<(LinkId, CircuitId)> {
        let circuits: Vec<_> = self
            .links
            .iter()
            .flat_map(|(link, guard)| guard.circuits.keys().map(|circuit| (*link, *circuit)))
            .collect();
        circuits.get(usize::from(choice).checked_rem(circuits.len())?).copied()
    }

    /// Performs one operation of the application, of the guard or of the network.
    fn step(&mut self, choices: &mut Choices<'_>) {
        let (operation, choice) = (choices.u8() % 16, choices.u8());
        match operation {
            0 => {
                let milliseconds = 1_u64 << (choice % 18);
                self.now = self.now.after(Duration::from_millis(milliseconds));
                self.client.handle_timeout(self.now, &mut self.rng);
            }
            1..=3 => self.request(operation, choice),
            4 | 5 => self.command(choice, choices),
            6 => self.answer_dial(choice),
            7 => self.list(RELAYS - u16::from(choice % 3)),
            8 => self.handle_network(choice, choices),
            _ => {
                let Some((link, circuit)) = self.circuit(choice) else { return };
                self.attack(operation, link, circuit, choices);
            }
        }
    }

    /// The application makes a request.
    fn request(&mut self, operation: u8, choice: u8) {
        let isolation = Isolation([choice % 4; 32]);
        let stream = match operation {
            1 => self.client.open(self.now, target(), isolation),
            2 => self.client.resolve(self.now, target().host, isolation),
            _ if choice >= 128 => {
                return self.client.keep_ready(engine(), usize::from(choice % 3));
            }
            _ => self.client.delegate(self.now, engine(), Vec::new(), isolation),
        };
        self.requests.insert(stream, Progress::default());
    }

    /// The application acts on a request.
    fn command(&mut self, choice: u8, choices: &mut Choices<'_>) {
        let open: Vec<_> =
            self.requests.iter().filter(|(_, progress)| !progress.is_closed).map(|(it, _)| *it).collect();
        let Some(index) = usize::from(choice).checked_rem(open.len()) else { return };
        let stream = open[index];
        match choices.u8() % 4 {
            0 => {
                self.client.handle_command(stream, StreamCommand::Reset(EndReason::Reset));
                self.requests.remove(&stream);
            }
            1 => self.client.handle_command(stream, StreamCommand::Finish),
            2 => {
                let unread = self.requests.get_mut(&stream).map_or(0, |progress| core::mem::take(&mut progress.unread));
                self.client.handle_command(stream, StreamCommand::Consumed(unread));
            }
            _ => {
                let (room, length) = (self.client.room(stream), usize::from(choices.u16()));
                assert_eq!(self.client.write(stream, &vec![7; length]), length.min(room));
            }
        }
    }

    /// An event of a link.
    fn handle_network(&mut self, choice: u8, choices: &mut Choices<'_>) {
        let Some(index) = usize::from(choice).checked_rem(self.links.len()) else { return };
        let link = *self.links.keys().nth(index).expect("the index is below the number of links");
        let event = match choices.u8() % 5 {
            0 => LinkEvent::Closed { link, reason: LinkClose::ByPeer },
            1 => LinkEvent::Closed { link, reason: LinkClose::TimedOut },
            2 => LinkEvent::Retire { link },
            3 => LinkEvent::Room { link, bytes: 0 },
            _ => LinkEvent::Room { link, bytes: ROOM },
        };
        if matches!(event, LinkEvent::Closed { .. }) {
            self.close(link);
        }
        self.client.handle_link(self.now, event, &mut self.rng);
    }

    /// Removes the guard's end of a link.
    fn close(&mut self, link: LinkId) {
        self.links.remove(&link);
        self.neighbours.remove(link);
    }

    /// The guard acts on a circuit.
    fn attack(&mut self, operation: u8, link: LinkId, circuit: CircuitId, choices: &mut Choices<'_>) {
        match operation {
            9 => _ = self.build(link, circuit),
            10 => {
                let commands = [Command::Create, Command::Created, Command::Relay, Command::Destroy];
                let command = commands[usize::from(choices.u8() % 4)];
                self.send(link, Cell::new(circuit, command, body(choices.bytes())));
            }
            11 => {
                let (from, message) = (choices.u8(), choices.bytes());
                self.send_sealed(link, circuit, from, message);
            }
            _ => {
                let (from, messages) = (choices.u8(), messages());
                let mut message = messages[usize::from(choices.u8()) % messages.len()].clone();
                if let Some(id) = StreamId::new(u16::from(choices.u8() % 8) + 1) {
                    set_stream(&mut message, id);
                }
                self.send_message(link, circuit, from, &message);
            }
        }
    }

    /// All applications and guards leave. Nothing of them is left at the client.
    fn leave(mut self) {
        for stream in core::mem::take(&mut self.requests).into_keys() {
            self.client.handle_command(stream, StreamCommand::Reset(EndReason::Reset));
        }
        self.client.keep_ready(engine(), 0);
        for link in self.links.keys().copied().collect::<Vec<_>>() {
            self.close(link);
            let closed = LinkEvent::Closed { link, reason: LinkClose::ByPeer };
            self.client.handle_link(self.now, closed, &mut self.rng);
        }
        // After the end of the consensus, the client builds no circuit.
        self.now = self.now.after(Duration::from_secs(2 * VALID));
        for _ in 0..60 {
            self.client.handle_timeout(self.now, &mut self.rng);
            self.settle();
            self.client.assert_sound();
            self.now = self.now.after(Duration::from_secs(1));
        }
        self.client.assert_idle();
    }
}

/// Sets the stream of a message.
fn set_stream(message: &mut RelayMessage, id: StreamId) {
    match message {
        RelayMessage::Begin { stream, .. }
        | RelayMessage::Connected { stream, .. }
        | RelayMessage::Data { stream, .. }
        | RelayMessage::End { stream, .. }
        | RelayMessage::Resolve { stream, .. }
        | RelayMessage::Resolved { stream, .. }
        | RelayMessage::Credit { stream, .. }
        | RelayMessage::Request { stream, .. } => *stream = id,
        _ => {}
    }
}

impl GuardLink {
    /// A cell from the client, which obeys the protocol.
    fn handle_cell(&mut self, cell: Cell) {
        let circuit = cell.circuit().expect("padding is not an event");
        match cell.command() {
            Command::Create => {
                let (hop, fragment) = decode_create(cell.body()).expect("the client is honest");
                assert_eq!(hop, HopIndex::FIRST);
                let guard = self.guard;
                let state = self.circuits.entry(circuit).or_default();
                if let Some(request) = state.fragments.push(fragment).expect("the client is honest") {
                    state.request = Some((guard, request));
                }
            }
            Command::Relay => {
                let Some(state) = self.circuits.get_mut(&circuit) else { return };
                state.open(cell.into_body());
            }
            Command::Destroy => drop(self.circuits.remove(&circuit)),
            command => panic!("a client sends {command:?}"),
        }
    }
}

impl HostileCircuit {
    /// Opens the layers of a cell from the client, and reads its message.
    fn open(&mut self, mut body: CellBody) {
        for (index, layer) in self.layers.iter_mut().enumerate() {
            match layer.open_forward(&mut body).expect("the origin's layers can be opened") {
                ForwardContent::Pass => {}
                ForwardContent::Message => {
                    let capacity = message_capacity(HopIndex::new(u8::try_from(index).unwrap() + 1).unwrap());
                    let message = RelayMessage::decode(&Bytes::copy_from_slice(&body[..capacity]));
                    return self.handle_message(message.expect("the origin's message can be decoded"));
                }
            }
        }
        panic!("a cell for no hop");
    }

    fn handle_message(&mut self, message: RelayMessage) {
        match message {
            RelayMessage::Extend { fragment } => {
                if let Some(body) = self.fragments.push(&fragment).expect("the client is honest") {
                    let (relay, request) = decode_extend(&body).expect("the client is honest");
                    self.request = Some((relay, request.to_vec()));
                }
            }
            RelayMessage::Begin { stream, .. } => self.streams.push(stream),
            _ => {}
        }
    }
}

/// For any messages of a guard with the keys of all hops, the client's caps hold, no circuit carries two isolations, the
/// events of each request have an order, and no state is left once all requests and channels have ended.
fn client_sequence(bytes: &[u8]) {
    let mut choices = Choices::new(bytes);
    let mut world = ClientWorld::new(choices.u8().is_multiple_of(2));
    world.settle();
    while !choices.is_empty() {
        world.step(&mut choices);
        world.settle();
        world.client.assert_sound();
    }
    world.leave();
}

/// Inputs with requests of several isolations over obedient and hostile circuits.
fn sequence_seeds() -> Vec<Vec<u8>> {
    let dials = [6, 2, 6, 2, 6, 2];
    let requests = [1, 0, 1, 0, 1, 1, 2, 2, 3, 3];
    let commands = [4, 0, 3, 0x10, 0, 4, 1, 3, 1, 0, 4, 0, 2, 4, 2, 1, 0, 12, 4, 1, 0];
    let mut obedient = [&[0][..], &dials, &requests, &dials, &commands].concat();
    let mut messages_of_exit = Vec::new();
    for message in 0..17 {
        messages_of_exit.extend([12, 0, 2, message, 0, 12, 1, 2, message, 1]);
    }
    obedient.extend(&messages_of_exit);
    let build = [9, 0].repeat(6);
    let hostile = [&[1][..], &dials, &build, &requests, &build, &messages_of_exit, &[0, 17, 8, 0, 1, 0, 12]].concat();
    let destroyed = [&[0][..], &dials, &requests, &[10, 0, 3, 0, 0, 10, 1, 3, 0, 0, 0, 12, 7, 1, 0, 17, 6, 0]].concat();
    vec![obedient, hostile, destroyed]
}
