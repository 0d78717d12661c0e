//! Tests of channels between two or three nodes joined in memory.

use core::time::Duration;
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

#[cfg(target_arch = "wasm32")]
use wasm_bindgen_test::wasm_bindgen_test as test;

use proptest::prelude::*;
use rand::{SeedableRng, rngs::ChaCha20Rng};

use super::{fixture::opened, queue::FairQueue, state::lane_of, *};
use crate::{
    base::{DialTarget, Instant, LANES, Lane, LinkClose, LinkEvent, LinkOpened, MESSAGE_CELLS, Slots, Transmit},
    crypto::IdentityKey,
    wire::{BODY_LEN, CELL_LEN, CellBody, Command},
};

mod caps;
mod handshake;
mod queues;
mod reach;
mod retire;

const ROOM: usize = 256 << 10;

fn key(seed: u8) -> Arc<IdentityKey> {
    Arc::new(IdentityKey::from_bytes(&[seed; 32]))
}

fn target(key: &IdentityKey) -> DialTarget {
    DialTarget {
        relay: key.id(),
        addresses: vec!["192.0.2.1:4443".parse().unwrap()],
        ice_ufrag: "ufrag".into(),
        ice_password: "password-password-password".into(),
        fingerprint: [0; 32],
    }
}

/// The channels of a node, with their events and output.
struct Node {
    channels: Channels,
    events: Vec<ChannelEvent>,
    sent: VecDeque<Transmit>,
}

impl Node {
    fn new(role: LocalRole) -> Self {
        Self::with(role, ChannelParameters::default())
    }

    fn relay(seed: u8) -> Self {
        Self::new(LocalRole::Relay(key(seed)))
    }

    fn with(role: LocalRole, parameters: ChannelParameters) -> Self {
        Self { channels: Channels::new(role, parameters), events: Vec::new(), sent: VecDeque::new() }
    }

    /// Takes all events and output of the channels.
    fn collect(&mut self, now: Instant) {
        loop {
            let before = self.events.len() + self.sent.len();
            self.events.extend(core::iter::from_fn(|| self.channels.poll_event()));
            while let Some(transmit) = self.channels.poll_transmit(now) {
                self.sent.push_back(transmit);
            }
            if self.events.len() + self.sent.len() == before {
                return;
            }
        }
    }

    fn handle(&mut self, now: Instant, event: LinkEvent, rng: &mut ChaCha20Rng) {
        self.channels.handle_link(now, event, rng);
        self.collect(now);
    }

    /// The cells received since the last call.
    fn cells(&mut self) -> Vec<Cell> {
        let events = core::mem::take(&mut self.events);
        let cells = events.into_iter().filter_map(|event| match event {
            ChannelEvent::Cell { cell, .. } => Some(cell),
            _ => None,
        });
        cells.collect()
    }

    /// The error of the first failed dial.
    fn failure(&self) -> Option<ChannelOpenError> {
        self.events.iter().find_map(|event| match event {
            ChannelEvent::DialFailed { error, .. } => Some(*error),
            _ => None,
        })
    }

    /// The first channel that opened, with the relay at its other end.
    fn open(&self) -> Option<(ChannelId, Option<RelayId>)> {
        self.events.iter().find_map(|event| match event {
            ChannelEvent::Open { channel, peer, .. } => Some((*channel, *peer)),
            _ => None,
        })
    }
}

/// Two nodes, and links between them: link `n` of one is link `n` of the other.
struct Pair {
    now: Instant,
    rng: ChaCha20Rng,
    a: Node,
    b: Node,
    closed: BTreeSet<LinkId>,
}

impl Pair {
    fn new(a: Node, b: Node) -> Self {
        Self { now: Instant::START, rng: ChaCha20Rng::seed_from_u64(1), a, b, closed: BTreeSet::new() }
    }

    /// Opens a link over which `a` dialled `relay`.
    fn link(&mut self, number: u64, relay: RelayId) {
        let link = LinkId(number);
        self.a.handle(self.now, LinkEvent::Opened { link, opened: opened(Some(relay), 1, 2) }, &mut self.rng);
        self.b.handle(self.now, LinkEvent::Opened { link, opened: opened(None, 2, 1) }, &mut self.rng);
        self.room(number, ROOM);
    }

    /// Sets the room of link `number` at both ends.
    fn room(&mut self, number: u64, bytes: usize) {
        for node in [&mut self.a, &mut self.b] {
            node.handle(self.now, LinkEvent::Room { link: LinkId(number), bytes }, &mut self.rng);
        }
    }

    /// Delivers one transmit from `a` or from `b`; `false` if there is none.
    fn deliver(&mut self, from_a: bool) -> bool {
        let (from, to) = if from_a { (&mut self.a, &mut self.b) } else { (&mut self.b, &mut self.a) };
        from.collect(self.now);
        let Some(transmit) = from.sent.pop_front() else { return false };
        match transmit {
            Transmit::Dial(_) | Transmit::PeerListed(_) => {}
            Transmit::Message { link, lane, message } => {
                to.handle(self.now, LinkEvent::Message { link, lane, message }, &mut self.rng);
                from.handle(self.now, LinkEvent::Room { link, bytes: ROOM }, &mut self.rng);
            }
            Transmit::Close(link) => {
                self.closed.insert(link);
                to.handle(self.now, LinkEvent::Closed { link, reason: LinkClose::ByPeer }, &mut self.rng);
            }
        }
        true
    }

    fn settle(&mut self) {
        while self.deliver(true) || self.deliver(false) {}
    }

    fn advance(&mut self, duration: Duration) {
        let until = self.now.after(duration);
        while self.now < until {
            self.now = self.now.after(Duration::from_secs(1)).min(until);
            self.a.channels.handle_timeout(self.now);
            self.b.channels.handle_timeout(self.now);
            self.settle();
        }
    }
}

/// A client and a relay with an open channel.
fn client_and_relay() -> (Pair, ChannelId) {
    client_and_relay_with(ChannelParameters::default(), ChannelParameters::default())
}

/// A client and a relay with these parameters and an open channel.
fn client_and_relay_with(client: ChannelParameters, relay: ChannelParameters) -> (Pair, ChannelId) {
    let (a, b) = (Node::with(LocalRole::Client, client), Node::with(LocalRole::Relay(key(2)), relay));
    let mut pair = Pair::new(a, b);
    pair.link(1, key(2).id());
    pair.settle();
    let channel = ChannelId(LinkId(1));
    assert_eq!(pair.a.open(), Some((channel, Some(key(2).id()))));
    assert_eq!(pair.b.open(), Some((channel, None)));
    pair.a.events.clear();
    pair.b.events.clear();
    (pair, channel)
}

fn cell(circuit: CircuitId, tag: u8) -> Cell {
    Cell::new(circuit, Command::Relay, CellBody::from([tag; BODY_LEN]))
}

fn circuit(value: u32) -> CircuitId {
    CircuitId::new(value).unwrap()
}

/// The event of a message of link 1 with these cells.
fn one_message(lane: u8, cells: &[Cell]) -> LinkEvent {
    let message = cells.iter().cloned().map(Cell::encode).collect();
    LinkEvent::Message { link: LinkId(1), lane: Lane::new(lane).unwrap(), message }
}

trait ContainsClose {
    fn contains_close(&self) -> bool;
}

impl ContainsClose for VecDeque<Transmit> {
    fn contains_close(&self) -> bool {
        self.iter().any(|transmit| matches!(transmit, Transmit::Close(_)))
    }
}

#[test]
fn a_breach_closes_the_channel() {
    let body = || CellBody::zero();
    let upper = circuit(0x8000_0004);
    let lower = circuit(4);
    let short = LinkEvent::Message { link: LinkId(1), lane: Lane::FIRST, message: vec![0; 1025].into() };
    let empty = LinkEvent::Message { link: LinkId(1), lane: Lane::FIRST, message: Slots::new() };
    let unknown_command = LinkEvent::Message { link: LinkId(1), lane: Lane::FIRST, message: vec![9; CELL_LEN].into() };
    let too_many = one_message(0, &vec![Cell::padding(); MESSAGE_CELLS + 1]);
    for broken in [
        one_message(0, &[Cell::new(lower, Command::Create, body())]),
        one_message(0, &[Cell::new(upper, Command::Created, body())]),
        one_message(1, &[Cell::new(upper, Command::Relay, body())]),
        short,
        empty,
        unknown_command,
        too_many,
    ] {
        let (mut pair, _) = client_and_relay();
        pair.b.handle(pair.now, broken, &mut pair.rng);
        assert!(pair.b.sent.contains_close());
        assert!(pair.b.events.iter().any(|event| matches!(event, ChannelEvent::Closed { .. })));
        assert!(pair.b.channels.is_empty());
    }
}

#[test]
fn clients_have_lower_limits_for_circuits_than_relays() {
    let parameters = || ChannelParameters {
        circuits_per_client: 2,
        creates_of_client: Rate { per_second: 2, burst: 3 },
        ..ChannelParameters::default()
    };
    for (role, attempts, circuits) in [(LocalRole::Client, 3, 2), (LocalRole::Relay(key(1)), 9, 9)] {
        let mut pair = Pair::new(Node::new(role), Node::with(LocalRole::Relay(key(2)), parameters()));
        pair.link(1, key(2).id());
        pair.settle();
        let (channel, now) = (ChannelId(LinkId(1)), pair.now);
        let channels = &mut pair.b.channels;
        channels.set_listed(channel, true);
        assert_eq!((0..9).filter(|_| channels.may_create(now, channel)).count(), attempts);
        if attempts == 3 {
            let later = now.after(Duration::from_secs(1));
            assert_eq!((0..9).filter(|_| channels.may_create(later, channel)).count(), 2);
        }
        let admitted = (1..=9).filter(|number| channels.admit_circuit(channel, circuit(0x8000_0000 + number)));
        assert_eq!(admitted.count(), circuits);
    }
}

/// The links that the node has closed.
fn closed(node: &Node) -> Vec<LinkId> {
    let closed = node.sent.iter().filter_map(|sent| match sent {
        Transmit::Close(link) => Some(*link),
        _ => None,
    });
    closed.collect()
}

/// Opens a link from `address`.
fn accept_link(node: &mut Node, now: Instant, number: u64, address: core::net::SocketAddr) {
    let opened = LinkOpened { peer_address: Redacted(address), ..opened(None, 2, 1) };
    let mut rng = ChaCha20Rng::seed_from_u64(number);
    node.handle(now, LinkEvent::Opened { link: LinkId(number), opened }, &mut rng);
}

#[test]
fn queue_low_is_emitted_once_at_the_low_threshold() {
    let (mut pair, channel) = client_and_relay();
    let circuit = pair.a.channels.allocate_circuit(channel, &mut pair.rng).unwrap();
    (0..u8::try_from(QUEUE_HIGH).unwrap()).for_each(|tag| pair.a.channels.send(channel, cell(circuit, tag)).unwrap());
    pair.a.collect(pair.now);
    let reports = pair.a.events.iter().filter(|event| matches!(event, ChannelEvent::QueueLow { .. })).count();
    assert_eq!(reports, 1);
}

#[test]
fn after_simultaneous_dials_the_channel_of_the_lower_identity_takes_new_circuits() {
    for (first, second) in [(1, 2), (2, 1)] {
        let (one, two) = (key(first), key(second));
        let mut a = Node::relay(first);
        let mut b = Node::relay(second);
        let mut rng = ChaCha20Rng::seed_from_u64(1);
        let now = Instant::START;
        for (link, a_dials) in [(LinkId(1), true), (LinkId(2), false)] {
            let (for_a, for_b) = if a_dials { (Some(two.id()), None) } else { (None, Some(one.id())) };
            a.handle(now, LinkEvent::Opened { link, opened: opened(for_a, 1, 2) }, &mut rng);
            b.handle(now, LinkEvent::Opened { link, opened: opened(for_b, 2, 1) }, &mut rng);
            a.handle(now, LinkEvent::Room { link, bytes: ROOM }, &mut rng);
            b.handle(now, LinkEvent::Room { link, bytes: ROOM }, &mut rng);
        }
        let mut pair = Pair { now, rng, a, b, closed: BTreeSet::new() };
        pair.settle();
        let stays = if one.id() < two.id() { LinkId(1) } else { LinkId(2) };
        assert_eq!(pair.a.channels.lookup(&two.id()), Some(ChannelId(stays)));
        assert_eq!(pair.b.channels.lookup(&one.id()), Some(ChannelId(stays)));
        assert_eq!(pair.a.channels.len(), 2);
        let circuit = pair.a.channels.allocate_circuit(ChannelId(stays), &mut pair.rng).unwrap();
        assert!(pair.b.channels.admit_circuit(ChannelId(stays), circuit));
        pair.advance(Duration::from_secs(400));
        assert_eq!(pair.a.channels.len(), 1, "the channel without circuits is closed");
        assert_eq!(pair.a.channels.lookup(&two.id()), Some(ChannelId(stays)));
    }
}

#[test]
fn repeated_connects_dial_once_and_return_the_open_channel() {
    let mut pair = Pair::new(Node::new(LocalRole::Client), Node::relay(2));
    for _ in 0..3 {
        assert_eq!(pair.a.channels.connect(pair.now, &target(&key(2))), None);
    }
    pair.a.collect(pair.now);
    assert_eq!(pair.a.sent.len(), 1, "one dial");
    pair.a.sent.clear();
    pair.link(1, key(2).id());
    assert_eq!(pair.a.channels.connect(pair.now, &target(&key(2))), None, "the handshake is in progress");
    pair.settle();
    let open = pair.a.channels.connect(pair.now, &target(&key(2)));
    assert_eq!(open, pair.a.open().map(|open| open.0));
}

#[test]
fn unanswered_dials_and_handshakes_time_out() {
    let mut pair = Pair::new(Node::new(LocalRole::Client), Node::relay(2));
    pair.a.channels.connect(pair.now, &target(&key(2)));
    pair.advance(Duration::from_secs(12));
    assert_eq!(pair.a.failure(), Some(DialError::TimedOut.into()));

    let mut pair = Pair::new(Node::new(LocalRole::Client), Node::relay(2));
    let opened = opened(Some(key(2).id()), 1, 2);
    pair.a.handle(pair.now, LinkEvent::Opened { link: LinkId(1), opened }, &mut pair.rng);
    pair.advance(Duration::from_secs(12));
    assert_eq!(pair.a.failure(), Some(ChannelError::TimedOut.into()));
}

#[test]
fn an_idle_channel_closes_and_one_with_a_circuit_is_kept_alive() {
    let (mut pair, channel) = client_and_relay();
    let circuit = pair.a.channels.allocate_circuit(channel, &mut pair.rng).unwrap();
    pair.b.channels.admit_circuit(channel, circuit);
    pair.advance(Duration::from_secs(3600));
    assert_eq!(pair.a.channels.len(), 1);
    pair.a.channels.end_circuit(pair.now, channel, circuit);
    pair.b.channels.end_circuit(pair.now, channel, circuit);
    pair.advance(Duration::from_secs(200));
    assert!(pair.a.channels.is_empty() && pair.b.channels.is_empty());
    assert_eq!(pair.a.channels.poll_timeout(), None);
}

#[test]
fn the_channel_of_a_silent_neighbour_closes() {
    let (mut pair, channel) = client_and_relay();
    pair.a.channels.allocate_circuit(channel, &mut pair.rng).unwrap();
    for _ in 0..100 {
        pair.now = pair.now.after(Duration::from_secs(1));
        pair.a.channels.handle_timeout(pair.now);
        pair.a.collect(pair.now);
    }
    assert!(pair.a.events.iter().any(|event| matches!(event, ChannelEvent::Closed { .. })));
}

proptest! {
    #[test]
    fn arbitrary_messages_neither_panic_nor_open_a_channel(
        messages in proptest::collection::vec((0..LANES, proptest::collection::vec(any::<u8>(), 0..2100)), 0..8),
    ) {
        let mut rng = ChaCha20Rng::seed_from_u64(1);
        let mut node = Node::new(LocalRole::Client);
        let link = LinkId(1);
        node.handle(Instant::START, LinkEvent::Opened { link, opened: opened(Some(key(2).id()), 1, 2) }, &mut rng);
        for (lane, message) in messages {
            let lane = Lane::new(lane).unwrap();
            node.handle(Instant::START, LinkEvent::Message { link, lane, message: message.into() }, &mut rng);
        }
        prop_assert!(node.open().is_none());
    }

    #[test]
    fn the_queue_keeps_count_and_order_under_any_operations(steps in proptest::collection::vec((0..5_u8, 1..5_u32), 0..300)) {
        let mut queue = FairQueue::default();
        let mut model: BTreeMap<u32, VecDeque<u64>> = BTreeMap::new();
        for (serial, (step, number)) in steps.into_iter().enumerate() {
            let serial = serial as u64;
            let id = circuit(number);
            let waiting = model.entry(number).or_default();
            match step {
                0 => { queue.admit(id); }
                1 => queue.end(id),
                2 => { prop_assert_eq!(queue.clear(id), waiting.len()); waiting.clear(); }
                3 => {
                    let mut body = CellBody::zero();
                    body[..8].copy_from_slice(&serial.to_be_bytes());
                    let full = queue.push(id, serial, Cell::new(id, Command::Relay, body), 20).is_err();
                    prop_assert_eq!(full, waiting.len() == 20);
                    if !full { waiting.push_back(serial); }
                }
                _ => match queue.pop() {
                    Some(next) => {
                        let first = model.get_mut(&next.circuit.value()).unwrap().pop_front().unwrap();
                        prop_assert_eq!(&next.cell.body()[..8], &first.to_be_bytes()[..]);
                    }
                    None => prop_assert!(model.values().all(VecDeque::is_empty)),
                },
            }
            prop_assert_eq!(queue.len(), model.values().map(VecDeque::len).sum::<usize>());
            let listed: BTreeMap<_, _> =
                queue.queued_cells().map(|queued| (queued.circuit.value(), (queued.first_serial, queued.cells))).collect();
            let expected = model.iter().filter_map(|(number, cells)| Some((*number, (*cells.front()?, cells.len()))));
            prop_assert_eq!(listed, expected.collect::<BTreeMap<_, _>>());
        }
    }
}
