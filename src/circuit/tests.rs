//! Tests of an origin and its relays in memory.

use rand::{SeedableRng, rngs::ChaCha8Rng};

#[cfg(target_arch = "wasm32")]
use wasm_bindgen_test::wasm_bindgen_test as test;

use super::*;
use crate::{
    base::RelayId,
    crypto::OnionSecret,
    handshake::{OnionKeyring, respond},
    onion::{ForwardContent, RelayLayer},
    stream::StreamCommand,
    wire::{Fragments, created_cells, decode_create, decode_extend, split},
};

const HOP_TIMEOUT: Duration = Duration::from_secs(10);

fn rng() -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(11)
}

/// One relay of the chain, with its state of the circuit.
struct Hop {
    identity: RelayId,
    keyring: OnionKeyring,
    layer: Option<RelayLayer>,
    request: Fragments,
    streams: Streams,
}

/// The relays of one circuit; each forwards cells to the next directly.
struct Chain {
    circuit: CircuitId,
    hops: Vec<Hop>,
    rng: ChaCha8Rng,
    now: Instant,
}

impl Chain {
    fn new(length: u8) -> Self {
        let mut rng = rng();
        let hop = |number| Hop {
            identity: RelayId::from_bytes([number; 32]),
            keyring: OnionKeyring::new(OnionSecret::generate(&mut rng), None),
            layer: None,
            request: Fragments::new(),
            streams: Streams::new(StreamRole::Exit, FlowParameters::default()),
        };
        let hops = (1..=length).map(hop).collect();
        Self { circuit: CircuitId::new(0x8000_0001).unwrap(), hops, rng, now: Instant::START }
    }

    fn keys(&self) -> Vec<RelayKeys> {
        let keys = |hop: &Hop| RelayKeys { identity: hop.identity, onion_key: hop.keyring.public() };
        self.hops.iter().map(keys).collect()
    }

    fn origin(&mut self) -> Origin {
        let keys = self.keys();
        Origin::start(self.now, keys, self.circuit, FlowParameters::default(), HOP_TIMEOUT, &mut self.rng).unwrap()
    }

    /// Handles a cell to the first hop; returns the answer.
    fn handle(&mut self, cell: Cell) -> Vec<Cell> {
        match cell.command() {
            Command::Create => {
                let (hop, fragment) = decode_create(cell.body()).unwrap();
                let Some(request) = self.hops[0].request.push(fragment).unwrap() else { return vec![] };
                created_cells(self.circuit, &self.answer_handshake(hop, &request)).unwrap()
            }
            Command::Relay => self.handle_relay(cell),
            Command::Destroy => vec![],
            command => panic!("the origin sent {command:?}"),
        }
    }

    fn answer_handshake(&mut self, hop: HopIndex, request: &[u8]) -> Vec<u8> {
        let at = &mut self.hops[usize::from(hop.value()) - 1];
        let answer = respond(&at.identity, &at.keyring, hop, request, &mut self.rng).unwrap();
        at.layer = Some(RelayLayer::new(hop, answer.keys));
        answer.reply
    }

    fn handle_relay(&mut self, cell: Cell) -> Vec<Cell> {
        let mut body = cell.into_body();
        for at in 0..self.hops.len() {
            let opened = self.hops[at].layer.as_mut().unwrap().open_forward(&mut body).unwrap();
            if matches!(opened, ForwardContent::Message) {
                let hop = HopIndex::new(u8::try_from(at + 1).unwrap()).unwrap();
                let plaintext = Bytes::copy_from_slice(&body[..message_capacity(hop)]);
                return self.handle_message(hop, RelayMessage::decode(&plaintext).unwrap());
            }
        }
        panic!("no message was sent to a hop");
    }

    fn handle_message(&mut self, hop: HopIndex, message: RelayMessage) -> Vec<Cell> {
        let at = usize::from(hop.value()) - 1;
        let RelayMessage::Extend { fragment } = message else {
            self.hops[at].streams.handle_message(self.now, message).unwrap();
            return vec![];
        };
        let Some(body) = self.hops[at].request.push(&fragment).unwrap() else { return vec![] };
        let (identity, request) = decode_extend(&body).unwrap();
        assert_eq!(identity, self.hops[at + 1].identity);
        let reply = self.answer_handshake(hop.next().unwrap(), request);
        split(&reply, message_capacity(hop) - 5)
            .unwrap()
            .into_iter()
            .map(|fragment| self.seal(hop, &RelayMessage::Extended { fragment: fragment.into() }))
            .collect()
    }

    /// A cell to the origin with a message of `hop`.
    fn seal(&mut self, hop: HopIndex, message: &RelayMessage) -> Cell {
        let mut bytes = Vec::new();
        message.encode(&mut bytes).unwrap();
        let mut body = CellBody::zero();
        let (before, last) = self.hops.split_at_mut(usize::from(hop.value()) - 1);
        last[0].layer.as_mut().unwrap().seal_message(&bytes, &mut body).unwrap();
        for hop in before.iter_mut().rev() {
            hop.layer.as_mut().unwrap().seal_backward(&mut body).unwrap();
        }
        Cell::new(self.circuit, Command::Relay, body)
    }

    /// Delivers cells both ways until none is left.
    fn settle(&mut self, origin: &mut Origin) {
        loop {
            let mut moved = false;
            self.now = self.now.after(Duration::from_millis(1));
            while let Some(cell) = origin.poll_cell(self.now, &mut self.rng) {
                moved = true;
                for answer in self.handle(cell) {
                    origin.handle_cell(self.now, answer, &mut self.rng);
                }
            }
            for at in 0..self.hops.len() {
                let hop = HopIndex::new(u8::try_from(at + 1).unwrap()).unwrap();
                while let Some(message) =
                    self.hops[at].streams.poll_message(self.now, message_capacity(hop), &mut self.rng)
                {
                    moved = true;
                    let cell = self.seal(hop, &message);
                    origin.handle_cell(self.now, cell, &mut self.rng);
                }
            }
            if !moved {
                return;
            }
        }
    }

    /// A circuit over the whole chain.
    fn build(length: u8) -> (Self, Origin) {
        let mut chain = Self::new(length);
        let mut origin = chain.origin();
        chain.settle(&mut origin);
        assert!(origin.is_open());
        events(&mut origin);
        (chain, origin)
    }

    /// A circuit with a connected stream.
    fn stream() -> (Self, Origin, StreamId) {
        let (mut chain, mut origin) = Self::build(3);
        let id = origin.open(chain.now, target()).unwrap();
        chain.settle(&mut origin);
        chain.hops[2].streams.handle_command(id, StreamCommand::Connected(None));
        chain.settle(&mut origin);
        events(&mut origin);
        (chain, origin, id)
    }
}

fn hop(number: u8) -> HopIndex {
    HopIndex::new(number).unwrap()
}

fn target() -> Target {
    Target { host: Host::parse("umbel.test").unwrap(), port: 443 }
}

fn events(origin: &mut Origin) -> Vec<CircuitEvent> {
    core::iter::from_fn(|| origin.poll_event()).collect()
}

#[test]
fn a_circuit_is_built_hop_by_hop_up_to_the_maximum_length() {
    for length in 1..=HopIndex::MAX {
        let mut chain = Chain::new(length);
        let mut origin = chain.origin();
        assert_eq!(origin.open(chain.now, target()), Err(StreamError::NotOpen));
        chain.settle(&mut origin);
        let received = events(&mut origin);
        assert_eq!(received.len(), usize::from(length) + 1);
        assert!(matches!(received[0], CircuitEvent::HopBuilt { hop: HopIndex::FIRST, .. }));
        assert_eq!(received.last(), Some(&CircuitEvent::Built));
        assert_eq!(origin.poll_timeout(), None);
    }
    let keys = Chain::new(9).keys();
    let circuit = CircuitId::new(1).unwrap();
    let refused = Origin::start(Instant::START, keys, circuit, FlowParameters::default(), HOP_TIMEOUT, &mut rng());
    assert_eq!(refused.err(), Some(CircuitError::PathLength));
}

#[test]
fn bytes_pass_both_ways_over_three_hops() {
    let (mut chain, mut origin, id) = Chain::stream();
    let sent: Vec<u8> = (0..100_000_u32).map(|n| n.to_le_bytes()[0]).collect();
    assert_eq!(origin.last_hop_streams().unwrap().write(id, &sent), sent.len());
    chain.hops[2].streams.write(id, &sent);
    chain.settle(&mut origin);
    let at_origin = events(&mut origin).into_iter().filter_map(|event| match event {
        CircuitEvent::Stream(_, _, StreamEvent::Data(bytes)) => Some(bytes),
        _ => None,
    });
    assert_eq!(at_origin.collect::<Vec<_>>().concat(), sent);
    let at_exit = core::iter::from_fn(|| chain.hops[2].streams.poll_event()).filter_map(|(_, event)| match event {
        StreamEvent::Data(bytes) => Some(bytes),
        _ => None,
    });
    assert_eq!(at_exit.collect::<Vec<_>>().concat(), sent);
}

#[test]
fn streams_open_at_any_hop() {
    let (mut chain, mut origin) = Chain::build(3);
    let id = origin.streams_at(hop(2)).unwrap().open(chain.now, target()).unwrap();
    assert!(origin.streams_at(hop(4)).is_none());
    chain.settle(&mut origin);
    chain.hops[1].streams.handle_command(id, StreamCommand::Connected(None));
    chain.settle(&mut origin);
    let connected = StreamEvent::Connected(None);
    assert_eq!(events(&mut origin), [CircuitEvent::Stream(hop(2), id, connected)]);
}

#[test]
fn a_message_from_a_hop_without_streams_ends_the_circuit() {
    let (mut chain, mut origin, id) = Chain::stream();
    let data = RelayMessage::Data { stream: id, tag: None, bytes: Bytes::from_static(b"x") };
    let cell = chain.seal(hop(2), &data);
    origin.handle_cell(chain.now, cell, &mut chain.rng);
    let received = events(&mut origin);
    let closed = StreamEvent::Closed(EndReason::Reset);
    let error = CircuitError::Illegal { hop: hop(2), kind: MessageKind::Data };
    assert_eq!(received, [CircuitEvent::Stream(hop(3), id, closed), CircuitEvent::Closed(error)]);
    assert_eq!(origin.poll_cell(chain.now, &mut chain.rng).unwrap().command(), Command::Destroy);
    assert!(!origin.has_cell());
}

#[test]
fn a_drop_from_any_hop_ends_the_circuit() {
    for number in 1..=3 {
        let (mut chain, mut origin, _) = Chain::stream();
        let cell = chain.seal(hop(number), &RelayMessage::Drop);
        origin.handle_cell(chain.now, cell, &mut chain.rng);
        let error = CircuitError::Illegal { hop: hop(number), kind: MessageKind::Drop };
        assert_eq!(events(&mut origin).last(), Some(&CircuitEvent::Closed(error)));
        assert_eq!(origin.poll_cell(chain.now, &mut chain.rng).unwrap().command(), Command::Destroy);
    }
}

#[test]
fn an_unrequested_extended_ends_the_circuit() {
    let (mut chain, mut origin) = Chain::build(2);
    let cell = chain.seal(hop(2), &RelayMessage::Extended { fragment: Bytes::from_static(b"abc") });
    origin.handle_cell(chain.now, cell, &mut chain.rng);
    let error = CircuitError::Illegal { hop: hop(2), kind: MessageKind::Extended };
    assert_eq!(events(&mut origin), [CircuitEvent::Closed(error)]);
}

#[test]
fn cells_that_are_illegal_in_the_state_end_the_circuit() {
    for command in [Command::Create, Command::Created] {
        let (mut chain, mut origin) = Chain::build(2);
        let cell = Cell::new(chain.circuit, command, CellBody::zero());
        origin.handle_cell(chain.now, cell, &mut chain.rng);
        assert_eq!(events(&mut origin), [CircuitEvent::Closed(CircuitError::IllegalCell(command))]);
    }
    let mut chain = Chain::new(2);
    let mut origin = chain.origin();
    let cell = Cell::new(chain.circuit, Command::Relay, CellBody::zero());
    origin.handle_cell(chain.now, cell, &mut chain.rng);
    let error = CircuitError::IllegalCell(Command::Relay);
    assert_eq!(error.class(), ErrorClass::Peer, "a guard that sends RELAY before CREATED");
    assert_eq!(events(&mut origin), [CircuitEvent::Closed(error)]);
}

#[test]
fn a_modified_cell_ends_the_circuit_and_is_not_delivered() {
    let (mut chain, mut origin, id) = Chain::stream();
    let data = RelayMessage::Data { stream: id, tag: None, bytes: Bytes::from_static(b"secret") };
    let mut body = chain.seal(hop(3), &data).into_body();
    body[500] ^= 1;
    origin.handle_cell(chain.now, Cell::new(chain.circuit, Command::Relay, body), &mut chain.rng);
    let received = events(&mut origin);
    assert!(!received.iter().any(|event| matches!(event, CircuitEvent::Stream(_, _, StreamEvent::Data(_)))));
    assert!(matches!(received.last(), Some(CircuitEvent::Closed(CircuitError::Onion(_)))));
}

#[test]
fn a_forged_reply_ends_the_circuit() {
    let mut chain = Chain::new(3);
    let mut origin = chain.origin();
    let create = origin.poll_cell(chain.now, &mut chain.rng).unwrap();
    let mut body = chain.handle(create).remove(0).into_body();
    body[20] ^= 1;
    origin.handle_cell(chain.now, Cell::new(chain.circuit, Command::Created, body), &mut chain.rng);
    assert!(matches!(events(&mut origin)[..], [CircuitEvent::Closed(CircuitError::Handshake(_))]));
}

#[test]
fn a_first_hop_without_an_answer_times_out() {
    let mut chain = Chain::new(3);
    let mut origin = chain.origin();
    let at = origin.poll_timeout().unwrap();
    assert_eq!(at, chain.now.after(HOP_TIMEOUT));
    origin.handle_timeout(at);
    assert_eq!(events(&mut origin), [CircuitEvent::Closed(CircuitError::BuildTimedOut(hop(1)))]);
}

#[test]
fn the_timeout_of_a_later_hop_depends_only_on_the_times_of_the_hops_before_it() {
    for (first_hop, timeout) in [(5, 2500), (250, 2500), (251, 5000), (500, 5000), (501, 10_000), (9000, 10_000)] {
        let mut chain = Chain::new(3);
        let mut origin = chain.origin();
        let create = origin.poll_cell(chain.now, &mut chain.rng).unwrap();
        chain.now = chain.now.after(Duration::from_millis(first_hop));
        for created in chain.handle(create) {
            origin.handle_cell(chain.now, created, &mut chain.rng);
        }
        assert_eq!(origin.building(), Some(hop(2)));
        events(&mut origin);
        let at = origin.poll_timeout().unwrap();
        assert_eq!(at, chain.now.after(Duration::from_millis(timeout)));
        origin.handle_timeout(at);
        assert_eq!(events(&mut origin), [CircuitEvent::Closed(CircuitError::BuildTimedOut(hop(2)))]);
    }
}

#[test]
fn a_circuit_without_an_answer_to_an_echo_request_ends() {
    let (mut chain, mut origin, id) = Chain::stream();
    // An answer of the last hop keeps the circuit open.
    let at = origin.poll_timeout().unwrap();
    origin.handle_timeout(at);
    chain.now = at;
    chain.settle(&mut origin);
    assert!(origin.is_open());
    // Without an answer the circuit ends.
    for _ in 0..2 {
        let at = origin.poll_timeout().unwrap();
        origin.handle_timeout(at);
        while origin.poll_cell(at, &mut chain.rng).is_some() {}
    }
    let closed = StreamEvent::Closed(EndReason::Reset);
    assert_eq!(
        events(&mut origin),
        [CircuitEvent::Stream(hop(3), id, closed), CircuitEvent::Closed(CircuitError::EchoTimedOut)]
    );
}

/// Asserts that the circuit ends at the second deadline without an answer, after the echo request of the first.
fn assert_echo_times_out(chain: &mut Chain, origin: &mut Origin) {
    advance_without_delivery(chain, origin);
    advance_without_delivery(chain, origin);
    assert_eq!(events(origin).last(), Some(&CircuitEvent::Closed(CircuitError::EchoTimedOut)));
}

/// Advances to the next deadline, which must be in the future. Drops the cells that the origin sends, and returns their
/// number.
fn advance_without_delivery(chain: &mut Chain, origin: &mut Origin) -> usize {
    let at = origin.poll_timeout().unwrap();
    assert!(at > chain.now, "due in the past");
    chain.now = at;
    origin.handle_timeout(at);
    core::iter::from_fn(|| origin.poll_cell(at, &mut chain.rng)).count()
}

#[test]
fn at_most_one_echo_request_is_outstanding_and_any_message_answers_it() {
    let (mut chain, mut origin, id) = Chain::stream();
    let data = RelayMessage::Data { stream: id, tag: None, bytes: Bytes::from_static(b"x") };
    let mut sent = 0;
    for _ in 0..600 {
        sent += advance_without_delivery(&mut chain, &mut origin);
        chain.now = chain.now.after(Duration::from_millis(1));
        let cell = chain.seal(hop(3), &data);
        origin.handle_cell(chain.now, cell, &mut chain.rng);
        assert_eq!(origin.open_streams(), 1);
    }
    assert!(origin.is_open());
    assert_eq!(sent, 1);
    assert_echo_times_out(&mut chain, &mut origin);
}

#[test]
fn a_dead_circuit_is_detected_at_the_maximum_number_of_streams() {
    let (mut chain, mut origin, _) = Chain::stream();
    while origin.open(chain.now, target()).is_ok() {}
    while origin.poll_cell(chain.now, &mut chain.rng).is_some() {}
    assert_eq!(origin.open_streams(), usize::try_from(FlowParameters::default().max_streams).unwrap());
    assert_echo_times_out(&mut chain, &mut origin);
}

#[test]
fn a_destroy_fails_the_streams_and_is_not_answered() {
    let (mut chain, mut origin, id) = Chain::stream();
    origin.handle_cell(chain.now, Cell::destroy(chain.circuit), &mut chain.rng);
    let closed = StreamEvent::Closed(EndReason::Reset);
    let received = events(&mut origin);
    assert_eq!(received, [CircuitEvent::Stream(hop(3), id, closed), CircuitEvent::Closed(CircuitError::Destroyed)]);
    assert!(!origin.has_cell());
    assert_eq!(origin.poll_timeout(), None);
}

/// A circuit of three hops whose second hop has not answered yet.
fn awaiting_second_hop() -> (Chain, Origin) {
    let mut chain = Chain::new(3);
    let mut origin = chain.origin();
    let create = origin.poll_cell(chain.now, &mut chain.rng).unwrap();
    for created in chain.handle(create) {
        origin.handle_cell(chain.now, created, &mut chain.rng);
    }
    while origin
        .poll_cell(chain.now, &mut chain.rng)
        .is_some_and(|cell| chain.hops[0].layer.as_mut().unwrap().open_forward(&mut cell.into_body()).is_ok())
    {}
    events(&mut origin);
    (chain, origin)
}

#[test]
fn another_relay_replaces_one_that_is_gone() {
    let (mut chain, mut origin) = awaiting_second_hop();
    let gone = chain.seal(hop(1), &RelayMessage::Gone);
    origin.handle_cell(chain.now, gone, &mut chain.rng);
    assert_eq!(events(&mut origin), [CircuitEvent::Gone { hop: hop(2) }]);
    assert!(origin.building().is_some() && origin.poll_cell(chain.now, &mut chain.rng).is_none());
    chain.hops[1].identity = RelayId::from_bytes([9; 32]);
    let other = chain.keys()[1];
    origin.extend_to(chain.now, other, &mut chain.rng);
    assert_eq!(origin.path()[1], other);
    chain.settle(&mut origin);
    assert!(origin.is_open());
    assert_eq!(events(&mut origin).last(), Some(&CircuitEvent::Built));
}

#[test]
fn gone_is_legal_only_as_the_first_answer_to_an_extend() {
    let (mut chain, mut origin) = awaiting_second_hop();
    for _ in 0..2 {
        let gone = chain.seal(hop(1), &RelayMessage::Gone);
        origin.handle_cell(chain.now, gone, &mut chain.rng);
    }
    let illegal = |number| CircuitEvent::Closed(CircuitError::Illegal { hop: hop(number), kind: MessageKind::Gone });
    assert_eq!(events(&mut origin).last(), Some(&illegal(1)));

    let (mut chain, mut origin) = awaiting_second_hop();
    let partial = RelayMessage::Extended { fragment: Bytes::from_static(&[0, 200, 1]) };
    for message in [partial, RelayMessage::Gone] {
        let cell = chain.seal(hop(1), &message);
        origin.handle_cell(chain.now, cell, &mut chain.rng);
    }
    assert_eq!(events(&mut origin), [illegal(1)]);

    let (mut chain, mut origin) = Chain::build(3);
    let gone = chain.seal(hop(3), &RelayMessage::Gone);
    origin.handle_cell(chain.now, gone, &mut chain.rng);
    assert_eq!(events(&mut origin), [illegal(3)]);
}

#[test]
fn the_class_of_an_error_matches_its_cause() {
    for (error, class) in [
        (CircuitError::Closed, ErrorClass::Local),
        (CircuitError::Destroyed, ErrorClass::Network),
        (CircuitError::EchoTimedOut, ErrorClass::Network),
        (CircuitError::Illegal { hop: hop(1), kind: MessageKind::Gone }, ErrorClass::Peer),
        (OnionError::Forged(hop(2)).into(), ErrorClass::Peer),
        (OnionError::NoSuchHop.into(), ErrorClass::Bug),
        (HandshakeError::Forged.into(), ErrorClass::Peer),
        (StreamError::BeyondCredit.into(), ErrorClass::Peer),
        (StreamError::Full.into(), ErrorClass::Limit),
        (StreamError::NotOpen.into(), ErrorClass::Local),
        (StreamError::Stalled.into(), ErrorClass::Network),
    ] {
        assert_eq!(error.class(), class, "{error}");
    }
}
