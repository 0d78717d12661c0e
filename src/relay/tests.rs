//! Tests of a relay against misbehaving neighbours, cell by cell.

use core::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};
use std::collections::BTreeSet;

#[cfg(target_arch = "wasm32")]
use wasm_bindgen_test::wasm_bindgen_test as test;

use bytes::Bytes;
use proptest::prelude::*;
use rand::{SeedableRng, rngs::ChaCha20Rng};

use super::*;
use crate::{
    base::{CircuitId, HopIndex, LinkId, Rate, StreamId},
    channel::{
        ChannelParameters,
        fixture::{Neighbours, NewLink, message},
    },
    crypto::LayerKey,
    directory::fixture,
    handshake::{ClientHandshake, HopKeys, RelayKeys},
    onion::OriginLayers,
    wire::{
        BODY_LEN, Cell, CellBody, Command, EndReason, Fragments, Host, RelayMessage, Target, create_cells,
        encode_extend, split,
    },
};

mod exit;
mod extend;
mod extend_windows;
mod handshakes;
mod owners;
mod reach;
mod stream_records;
mod streams;

const ROOM: usize = 1 << 30;
const NEXT: u16 = 2;
const PREVIOUS: u16 = 3;
/// A rate that delays no handshake.
const UNLIMITED: Rate = Rate { per_second: 1_000_000, burst: 1_000_000 };

/// A relay (number 1 of the consensus) and its neighbours at the other ends of its links.
struct Bench {
    now: Instant,
    rng: ChaCha20Rng,
    relay: Relay,
    keys: RelayKeys,
    /// The address of the neighbours that join.
    address: IpAddr,
    neighbours: Neighbours,
}

impl Bench {
    /// A relay whose handshakes don't wait, nor its CREATEs for the answers to earlier ones.
    fn new(parameters: RelayParameters) -> Self {
        Self::limited(RelayParameters { circuit_handshakes: UNLIMITED, create_window: usize::MAX, ..parameters })
    }

    fn limited(parameters: RelayParameters) -> Self {
        let mut rng = ChaCha20Rng::seed_from_u64(1);
        let onion = OnionSecret::generate(&mut rng);
        let identity = Arc::new(fixture::key(1));
        let keys = RelayKeys { identity: identity.id(), onion_key: onion.public() };
        let neighbours = Neighbours::new(Some(keys.identity));
        let mut relay = Relay::new(identity, OnionKeyring::new(onion, None), parameters);
        let listed = (1..=9).map(|number| fixture::listed(fixture::profile(number)));
        relay.set_consensus(Arc::new(fixture::consensus(listed)));
        Self { now: Instant::START, rng, relay, keys, address: [192, 0, 2, 1].into(), neighbours }
    }

    /// Opens a channel by which a volunteer dials the relay as its gateway.
    fn join_volunteer(&mut self, key: Arc<IdentityKey>) -> LinkId {
        let mut channels = Channels::new(LocalRole::Volunteer(key), ChannelParameters::default());
        channels.set_gateways(BTreeSet::from([self.keys.identity]));
        self.join_channels(channels, None)
    }

    /// Opens a channel that a neighbour dials, or that the relay dials to `relay_dials`.
    fn join(&mut self, role: LocalRole, relay_dials: Option<RelayId>) -> LinkId {
        self.join_channels(Channels::new(role, ChannelParameters::default()), relay_dials)
    }

    fn join_channels(&mut self, channels: Channels, relay_dials: Option<RelayId>) -> LinkId {
        let address = SocketAddr::new(self.address, 1);
        let link = NewLink { dialled: relay_dials, address, room: ROOM, is_silent: false };
        let link = self.neighbours.open(self.now, &mut self.relay, channels, &link, &mut self.rng);
        self.settle();
        assert_eq!(self.neighbours.channels(link).unwrap().len(), 1, "the channel is open");
        link
    }

    fn client(&mut self) -> LinkId {
        self.join(LocalRole::Client, None)
    }

    fn settle(&mut self) {
        while self.neighbours.exchange(self.now, &mut self.relay, &mut self.rng) {}
    }

    /// Cells from the relay over `link` since the last call.
    fn cells(&mut self, link: LinkId) -> Vec<Cell> {
        self.neighbours.take_cells(link)
    }

    fn commands(&mut self, link: LinkId) -> Vec<Command> {
        self.cells(link).iter().map(Cell::command).collect()
    }

    /// Sends a cell of a neighbour to the relay, unchanged, and settles.
    fn send(&mut self, link: LinkId, cell: &Cell) {
        self.deliver(link, cell);
        self.settle();
    }

    /// Sends a cell of a neighbour to the relay, without settling.
    fn deliver(&mut self, link: LinkId, cell: &Cell) {
        self.relay.handle_link(self.now, message(link, cell.clone()), &mut self.rng);
    }

    /// A neighbour creates a circuit at the relay.
    fn create(&mut self, link: LinkId, circuit: CircuitId, hop: HopIndex) -> OriginLayers {
        let (handshake, request) = ClientHandshake::start(&self.keys, hop, &[], &mut self.rng).unwrap();
        for cell in create_cells(circuit, hop, &request).unwrap() {
            self.send(link, &cell);
        }
        let reply = self.cells(link);
        assert_eq!(reply[0].command(), Command::Created);
        let reply = Fragments::new().push(reply[0].body()).unwrap().unwrap();
        let mut layers = OriginLayers::new();
        layers.push(handshake.finish(&reply).unwrap().keys).unwrap();
        layers
    }

    fn send_message(&mut self, link: LinkId, circuit: CircuitId, layers: &mut OriginLayers, message: &RelayMessage) {
        let (mut plain, mut body) = (Vec::new(), CellBody::zero());
        message.encode(&mut plain).unwrap();
        layers.seal_message(HopIndex::FIRST, &plain, &mut body).unwrap();
        self.send(link, &Cell::new(circuit, Command::Relay, body));
    }

    fn extend(&mut self, link: LinkId, circuit: CircuitId, layers: &mut OriginLayers, to: RelayId) {
        let second = HopIndex::new(2).unwrap();
        let keys = RelayKeys { identity: to, ..self.keys };
        let (_, request) = ClientHandshake::start(&keys, second, &[], &mut self.rng).unwrap();
        for fragment in split(&encode_extend(&to, &request), 900).unwrap() {
            self.send_message(link, circuit, layers, &RelayMessage::Extend { fragment: fragment.into() });
        }
    }

    /// Opens the channel to the next relay, which the bench's relay has dialled.
    fn next(&mut self) -> LinkId {
        self.join(LocalRole::Relay(Arc::new(fixture::key(NEXT))), Some(relay_id(NEXT)))
    }

    fn circuits(&self) -> usize {
        self.relay.statistics().circuits
    }

    fn pass(&mut self, time: Duration) {
        self.now = self.now.after(time);
        self.relay.handle_timeout(self.now, &mut self.rng);
        self.settle();
    }
}

/// An identifier of the upper half, from which a dialler allocates.
fn upper(number: u32) -> CircuitId {
    CircuitId::new(0x8000_0000 + number).unwrap()
}

fn relay_id(number: u16) -> RelayId {
    fixture::key(number).id()
}

/// A circuit whose CREATE has been sent to the next hop: both links, the CREATE's circuit and the layers.
fn extended(bench: &mut Bench) -> (LinkId, LinkId, CircuitId, OriginLayers) {
    let link = bench.client();
    let mut layers = bench.create(link, upper(1), HopIndex::FIRST);
    bench.extend(link, upper(1), &mut layers, relay_id(NEXT));
    let next = bench.next();
    let create = bench.cells(next).remove(0);
    (link, next, create.circuit().unwrap(), layers)
}

/// The circuit of [`extended`], after CREATED of the next hop.
fn extended_open(bench: &mut Bench) -> (LinkId, LinkId, CircuitId, OriginLayers) {
    let (link, next, circuit, layers) = extended(bench);
    let mut body = CellBody::zero();
    body[..3].copy_from_slice(&[0, 1, 9]);
    bench.send(next, &Cell::new(circuit, Command::Created, body));
    (link, next, circuit, layers)
}

#[test]
fn cells_of_unknown_circuits_are_dropped_without_an_answer() {
    let mut bench = Bench::new(RelayParameters::default());
    let link = bench.client();
    for circuit in [upper(1), CircuitId::LOWEST] {
        for command in [Command::Relay, Command::Destroy] {
            bench.send(link, &Cell::new(circuit, command, CellBody::from([7; BODY_LEN])));
        }
    }
    bench.send(link, &Cell::new(CircuitId::LOWEST, Command::Created, CellBody::from([7; BODY_LEN])));
    assert_eq!(bench.commands(link), []);
    assert!(bench.neighbours.closed.is_empty());
}

#[test]
fn a_create_on_an_identifier_in_use_ends_the_circuit() {
    let mut bench = Bench::new(RelayParameters::default());
    let link = bench.client();
    bench.create(link, upper(1), HopIndex::FIRST);
    let (_, request) = ClientHandshake::start(&bench.keys, HopIndex::FIRST, &[], &mut bench.rng).unwrap();
    for cell in create_cells(upper(1), HopIndex::FIRST, &request).unwrap() {
        bench.send(link, &cell);
    }
    assert_eq!(bench.commands(link), [Command::Destroy]);
    assert_eq!(bench.circuits(), 0);
}

#[test]
fn an_identifier_is_free_again_after_destroy() {
    let mut bench = Bench::new(RelayParameters::default());
    let link = bench.client();
    for _ in 0..3 {
        bench.create(link, upper(1), HopIndex::FIRST);
        bench.send(link, &Cell::destroy(upper(1)));
        assert_eq!((bench.circuits(), bench.commands(link)), (0, vec![]), "DESTROY is not echoed");
    }
}

#[test]
fn an_invalid_create_is_refused() {
    let mut bench = Bench::new(RelayParameters::default());
    let client = bench.client();
    let previous = bench.join(LocalRole::Relay(Arc::new(fixture::key(PREVIOUS))), None);
    let third = HopIndex::new(3).unwrap();
    for (link, hop, number) in
        [(client, third, 3), (previous, HopIndex::FIRST, 1), (client, HopIndex::FIRST, 9), (client, HopIndex::FIRST, 0)]
    {
        let (_, request) = ClientHandshake::start(&bench.keys, hop, &[], &mut bench.rng).unwrap();
        let mut body = create_cells(upper(1), hop, &request).unwrap().remove(0).into_body();
        body[0] = number;
        bench.send(link, &Cell::new(upper(1), Command::Create, body));
        assert_eq!(bench.commands(link), [Command::Destroy], "hop {number}");
    }
    bench.send(client, &Cell::new(upper(2), Command::Create, CellBody::from([1; BODY_LEN])));
    assert_eq!(bench.commands(client), [Command::Destroy], "incomplete fragments");
    bench.create(previous, upper(1), third);
}

/// The first of two cells of a CREATE.
fn incomplete_create(circuit: CircuitId) -> Cell {
    let body = [7; BODY_LEN + 100];
    create_cells(circuit, HopIndex::FIRST, &body).unwrap().remove(0)
}

#[test]
fn an_incomplete_create_is_refused_at_its_deadline_and_removed_at_destroy() {
    let mut bench = Bench::new(RelayParameters::default());
    let link = bench.client();
    bench.send(link, &incomplete_create(upper(1)));
    bench.send(link, &incomplete_create(upper(2)));
    bench.send(link, &Cell::destroy(upper(2)));
    assert_eq!(bench.relay.partial_creates.len(), (1, 1));
    bench.pass(Duration::from_secs(5));
    assert_eq!(bench.commands(link), [Command::Destroy]);
    assert_eq!(bench.relay.partial_creates.len(), (0, 0));
}

#[test]
fn circuits_of_a_source_are_capped() {
    let mut bench = Bench::new(RelayParameters { circuits: 32, ..RelayParameters::default() });
    let link = bench.client();
    bench.create(link, upper(1), HopIndex::FIRST);
    bench.create(link, upper(2), HopIndex::FIRST);
    let (_, request) = ClientHandshake::start(&bench.keys, HopIndex::FIRST, &[], &mut bench.rng).unwrap();
    bench.send(link, &create_cells(upper(3), HopIndex::FIRST, &request).unwrap()[0]);
    assert_eq!(bench.commands(link), [Command::Destroy]);
}

#[test]
fn an_extend_dials_once_and_creates_when_the_channel_opens() {
    let mut bench = Bench::new(RelayParameters::default());
    let link = bench.client();
    for number in 1..=2 {
        let mut layers = bench.create(link, upper(number), HopIndex::FIRST);
        bench.extend(link, upper(number), &mut layers, relay_id(NEXT));
    }
    assert_eq!(bench.neighbours.dials, [relay_id(NEXT)]);
    let next = bench.next();
    let creates = bench.cells(next);
    assert_eq!(creates.iter().map(Cell::command).collect::<Vec<_>>(), [Command::Create; 2]);
    assert!(creates.iter().all(|cell| cell.body()[0] == 2 && cell.circuit().unwrap().is_in_upper_half()));
    // With the channel open, no dial is needed.
    let mut layers = bench.create(link, upper(3), HopIndex::FIRST);
    bench.extend(link, upper(3), &mut layers, relay_id(NEXT));
    assert_eq!(bench.commands(next), [Command::Create]);
    assert_eq!(bench.neighbours.dials.len(), 1);
}

#[test]
fn creates_beyond_the_rate_of_a_channel_are_refused_and_other_channels_are_served() {
    let mut bench = Bench::new(RelayParameters::default());
    let links = [bench.client(), bench.client()];
    let (_, request) = ClientHandshake::start(&bench.keys, HopIndex::FIRST, &[], &mut bench.rng).unwrap();
    for number in 1..=300 {
        bench.send(links[0], &create_cells(upper(number), HopIndex::FIRST, &request).unwrap()[0]);
    }
    let answers = bench.commands(links[0]);
    assert_eq!(answers.iter().filter(|command| **command == Command::Destroy).count(), 100);
    assert_eq!(bench.circuits(), 200);
    bench.create(links[1], upper(1), HopIndex::FIRST);
    bench.pass(Duration::from_secs(1));
    bench.create(links[0], upper(1000), HopIndex::FIRST);
}

#[test]
fn an_unused_circuit_ends_and_an_extended_one_stays() {
    let mut bench = Bench::new(RelayParameters::default());
    let (link, next, ..) = extended_open(&mut bench);
    let previous = bench.join(LocalRole::Relay(Arc::new(fixture::key(PREVIOUS))), None);
    bench.create(previous, upper(1), HopIndex::new(3).unwrap());
    bench.cells(link);
    bench.create(link, upper(7), HopIndex::FIRST);
    let minutes = |bench: &mut Bench, minutes: u64| {
        for _ in 0..minutes {
            // Padding keeps all links alive.
            for link in [link, next, previous] {
                bench.send(link, &Cell::padding());
            }
            bench.pass(Duration::from_secs(60));
        }
    };
    minutes(&mut bench, 9);
    assert_eq!(bench.circuits(), 3);
    minutes(&mut bench, 1);
    assert_eq!((bench.circuits(), bench.commands(link)), (2, vec![Command::Destroy]));
    minutes(&mut bench, 50);
    assert_eq!((bench.circuits(), bench.commands(previous)), (1, vec![Command::Destroy]), "kept ready for an hour");
}

#[test]
fn refusals_queued_for_stalled_links_end_no_circuit_of_another_link() {
    let channel = ChannelParameters { queued: 300, ..ChannelParameters::default() };
    let mut bench = Bench::new(RelayParameters { channel, exit: true, ..RelayParameters::default() });
    let honest = bench.client();
    let mut layers = bench.create(honest, upper(1), HopIndex::FIRST);
    bench.relay.handle_link(bench.now, LinkEvent::Room { link: honest, bytes: 0 }, &mut bench.rng);
    for number in 1..=9 {
        let stream = StreamId::new(number).unwrap();
        let host = Host::parse("a.b").unwrap();
        bench.send_message(honest, upper(1), &mut layers, &RelayMessage::Resolve { stream, host });
    }
    while let Some(RelayEvent::Stream(exit, _)) = bench.relay.poll_event() {
        bench.relay.handle_command(exit, StreamCommand::Reset(EndReason::NotFound));
    }
    bench.settle();
    let hostile: Vec<_> = (0..5).map(|_| bench.client()).collect();
    for link in &hostile {
        bench.relay.handle_link(bench.now, LinkEvent::Room { link: *link, bytes: 0 }, &mut bench.rng);
    }
    for number in 1..=300 {
        for link in &hostile {
            let invalid = Cell::new(upper(number), Command::Create, CellBody::from([9; BODY_LEN]));
            bench.send(*link, &invalid);
        }
    }
    assert_eq!(bench.circuits(), 1);
    assert!(
        hostile.iter().all(|link| bench.neighbours.closed.contains(link)) && !bench.neighbours.closed.contains(&honest)
    );
    bench.relay.handle_link(bench.now, LinkEvent::Room { link: honest, bytes: ROOM }, &mut bench.rng);
    bench.settle();
    assert_eq!(bench.commands(honest), [Command::Relay; 9]);
}

#[test]
fn a_circuit_with_a_full_queue_ends_and_its_queue_is_freed() {
    let channel = ChannelParameters { circuit_queue: 50, ..ChannelParameters::default() };
    let mut bench = Bench::new(RelayParameters { channel, ..RelayParameters::default() });
    let (link, next, circuit, _) = extended_open(&mut bench);
    bench.cells(link);
    // The client's link has no room; the next hop floods.
    bench.relay.handle_link(bench.now, LinkEvent::Room { link, bytes: 0 }, &mut bench.rng);
    for _ in 0..60 {
        bench.send(next, &Cell::new(circuit, Command::Relay, CellBody::zero()));
    }
    assert_eq!(bench.circuits(), 0);
    assert_eq!(bench.commands(next), [Command::Destroy]);
    bench.relay.handle_link(bench.now, LinkEvent::Room { link, bytes: ROOM }, &mut bench.rng);
    bench.settle();
    assert_eq!(bench.commands(link), [Command::Destroy], "queued cells are dropped");
}

#[test]
fn the_circuit_that_has_waited_longest_ends_at_the_cap_of_queued_cells() {
    for first in [0, 1] {
        let channel = ChannelParameters { queued: 20, ..ChannelParameters::default() };
        let parameters = RelayParameters { channel, exit: true, ..RelayParameters::default() };
        let mut bench = Bench::new(parameters);
        let links = [bench.client(), bench.client()];
        for link in [links[first], links[1 - first]] {
            let mut layers = bench.create(link, upper(1), HopIndex::FIRST);
            bench.relay.handle_link(bench.now, LinkEvent::Room { link, bytes: 0 }, &mut bench.rng);
            // Fourteen pending answers each.
            for number in 1..=14 {
                let message =
                    RelayMessage::Resolve { stream: StreamId::new(number).unwrap(), host: Host::parse("a.b").unwrap() };
                bench.send_message(link, upper(1), &mut layers, &message);
            }
            while let Some(RelayEvent::Stream(exit, _)) = bench.relay.poll_event() {
                bench.relay.handle_command(exit, StreamCommand::Reset(EndReason::NotFound));
            }
            bench.settle();
        }
        bench.pass(Duration::from_secs(1));
        for link in links {
            bench.relay.handle_link(bench.now, LinkEvent::Room { link, bytes: ROOM }, &mut bench.rng);
        }
        bench.settle();
        assert_eq!(bench.commands(links[first]), [Command::Destroy], "the circuit with the first queued cell ends");
        assert_eq!(bench.commands(links[1 - first]).len(), 14);
    }
}

#[test]
fn a_relay_message_that_is_illegal_from_an_origin_ends_the_circuit() {
    let stream = StreamId::new(1).unwrap();
    for message in [
        RelayMessage::Extended { fragment: Bytes::from_static(b"x") },
        RelayMessage::Connected { stream, address: None },
        RelayMessage::SendMe { tag: [1; 16] },
        RelayMessage::Data { stream, tag: None, bytes: Bytes::from_static(b"x") },
    ] {
        let mut bench = Bench::new(RelayParameters { exit: true, ..RelayParameters::default() });
        let link = bench.client();
        let mut layers = bench.create(link, upper(1), HopIndex::FIRST);
        bench.send_message(link, upper(1), &mut layers, &message);
        assert_eq!(bench.commands(link), [Command::Destroy], "{:?}", message.kind());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Any sequence of cells of two neighbours: no panic, no circuit beyond the created ones, and no state after both
    /// have disconnected.
    #[test]
    fn no_sequence_of_cells_leaves_state_after_its_channels_close(
        steps in proptest::collection::vec((any::<bool>(), 1..5_u32, any::<bool>(), 0..7_u8, any::<u8>()), 0..120),
    ) {
        let circuit_handshakes = Rate { per_second: 1, burst: 4 };
        let parameters = RelayParameters { exit: true, circuit_handshakes, ..RelayParameters::default() };
        let mut bench = Bench::limited(parameters);
        let links = [bench.client(), bench.join(LocalRole::Relay(Arc::new(fixture::key(PREVIOUS))), None)];
        for (which, number, is_upper, step, byte) in steps {
            let link = links[usize::from(which)];
            let hop = HopIndex::new(1 + u8::from(which)).unwrap();
            let circuit = if is_upper { upper(number) } else { CircuitId::new(number).unwrap() };
            let cell = match step {
                0 | 1 => {
                    let (_, request) = ClientHandshake::start(&bench.keys, hop, &[], &mut bench.rng).unwrap();
                    create_cells(upper(number), hop, &request).unwrap().remove(0)
                }
                2 => incomplete_create(upper(number)),
                3 => Cell::new(circuit, Command::Relay, CellBody::from([byte; BODY_LEN])),
                4 => Cell::new(CircuitId::new(number).unwrap(), Command::Created, CellBody::from([byte; BODY_LEN])),
                5 => { bench.pass(Duration::from_secs(1)); continue }
                _ => Cell::destroy(circuit),
            };
            bench.send(link, &cell);
            prop_assert!(bench.circuits() <= 8 && bench.neighbours.closed.is_empty());
            let (partial_creates, deadlines) = bench.relay.partial_creates.len();
            prop_assert_eq!(partial_creates, deadlines);
            let (waiting, deadlines, turns, order) = bench.relay.waiting_creates.len();
            prop_assert_eq!((waiting, turns), (deadlines, order));
        }
        for link in links {
            let reason = crate::base::LinkClose::ByPeer;
            bench.relay.handle_link(bench.now, LinkEvent::Closed { link, reason }, &mut bench.rng);
        }
        prop_assert_eq!(bench.circuits(), 0);
        prop_assert_eq!((bench.relay.partial_creates.len(), bench.relay.table.deadlines()), ((0, 0), 0));
        prop_assert_eq!(bench.relay.waiting_creates.len(), (0, 0, 0, 0));
        prop_assert!(bench.relay.streams.poll_timeout().is_none());
    }
}
