//! Tests of streams that end at a relay.

#[cfg(target_arch = "wasm32")]
use wasm_bindgen_test::wasm_bindgen_test as test;

use super::*;
use crate::{
    onion::{ForwardContent, RelayLayer},
    stream::StreamCommand,
    wire::Service,
};

/// The layers of a circuit whose second hop is the bench's relay. The test has the keys of the first hop.
pub(super) struct SecondHop {
    link: LinkId,
    circuit: CircuitId,
    first: RelayLayer,
    layers: OriginLayers,
}

fn first_keys() -> HopKeys {
    HopKeys { forward: LayerKey::from_bytes([1; 32]), backward: LayerKey::from_bytes([2; 32]) }
}

impl Bench {
    /// A circuit over `link`, whose neighbour is the first hop.
    pub(super) fn create_second(&mut self, link: LinkId, circuit: CircuitId) -> SecondHop {
        let second = HopIndex::new(2).unwrap();
        let (handshake, request) = ClientHandshake::start(&self.keys, second, &[], &mut self.rng).unwrap();
        for cell in create_cells(circuit, second, &request).unwrap() {
            self.send(link, &cell);
        }
        let reply = self.cells(link);
        let reply = Fragments::new().push(reply[0].body()).unwrap().unwrap();
        let mut layers = OriginLayers::new();
        layers.push(first_keys()).unwrap();
        layers.push(handshake.finish(&reply).unwrap().keys).unwrap();
        SecondHop { link, circuit, first: RelayLayer::new(HopIndex::FIRST, first_keys()), layers }
    }

    pub(super) fn send_to_second(&mut self, at: &mut SecondHop, message: &RelayMessage) {
        let (mut plain, mut body) = (Vec::new(), CellBody::zero());
        message.encode(&mut plain).unwrap();
        at.layers.seal_message(HopIndex::new(2).unwrap(), &plain, &mut body).unwrap();
        assert_eq!(at.first.open_forward(&mut body), Ok(ForwardContent::Pass));
        self.send(at.link, &Cell::new(at.circuit, Command::Relay, body));
    }

    /// The relay's messages to the origin of `at` since the last call.
    fn answers(&mut self, at: &mut SecondHop) -> Vec<RelayMessage> {
        let cells = self.cells(at.link).into_iter();
        let messages = cells.map(|cell| {
            assert_eq!(cell.command(), Command::Relay);
            let mut body = cell.into_body();
            at.first.seal_backward(&mut body).unwrap();
            let (_, length) = at.layers.open_backward(&mut body).unwrap();
            RelayMessage::decode(&Bytes::copy_from_slice(&body[..length])).unwrap()
        });
        messages.collect()
    }

    fn events(&mut self) -> Vec<StreamEvent> {
        let event = || self.relay.poll_event();
        let streams = core::iter::from_fn(event).filter_map(|event| match event {
            RelayEvent::Stream(_, event) => Some(event),
            _ => None,
        });
        streams.collect()
    }
}

fn exit() -> Bench {
    Bench::new(RelayParameters { exit: true, delegate: true, ..RelayParameters::default() })
}

fn target() -> Target {
    Target { host: Host::parse("example.org").unwrap(), port: 443 }
}

fn stream(number: u16) -> StreamId {
    StreamId::new(number).unwrap()
}

/// The requests of an origin, one of each kind.
fn requests() -> [RelayMessage; 3] {
    [
        RelayMessage::Begin { stream: stream(1), target: target() },
        RelayMessage::Resolve { stream: stream(2), host: target().host },
        RelayMessage::Request { stream: stream(3), service: Service::Http },
    ]
}

#[test]
fn an_exit_serves_no_stream_at_the_first_hop() {
    let mut bench = exit();
    let link = bench.client();
    let mut layers = bench.create(link, upper(1), HopIndex::FIRST);
    for message in requests() {
        bench.send_message(link, upper(1), &mut layers, &message);
    }
    assert_eq!(bench.events(), []);
    let answers = reach::received(&mut bench, link, &mut layers);
    let refused = |number| RelayMessage::End { stream: stream(number), reason: EndReason::Policy };
    assert_eq!(answers, [1, 2, 3].map(refused));
    let echo = Host::parse("0.0.0.0").unwrap();
    bench.send_message(link, upper(1), &mut layers, &RelayMessage::Resolve { stream: stream(4), host: echo });
    let answers = reach::received(&mut bench, link, &mut layers);
    assert!(matches!(answers[..], [RelayMessage::Resolved { .. }]), "a first hop answers echo requests");

    let link = bench.join(LocalRole::Relay(Arc::new(fixture::key(PREVIOUS))), None);
    let mut second = bench.create_second(link, upper(1));
    for message in requests() {
        bench.send_to_second(&mut second, &message);
    }
    assert_eq!(bench.events().len(), 3, "the second hop serves all");
    assert_eq!(bench.answers(&mut second), []);
}

#[test]
fn streams_of_an_ended_circuit_are_closed_at_the_exit() {
    let mut bench = exit();
    let link = bench.join(LocalRole::Relay(Arc::new(fixture::key(PREVIOUS))), None);
    let mut second = bench.create_second(link, upper(1));
    bench.send_to_second(&mut second, &RelayMessage::Begin { stream: stream(5), target: target() });
    let Some(RelayEvent::Stream(exit, event)) = bench.relay.poll_event() else { panic!("no request") };
    assert_eq!(event, StreamEvent::Begin(target()));
    bench.send(link, &Cell::destroy(upper(1)));
    assert_eq!(bench.relay.poll_event(), Some(RelayEvent::Stream(exit, StreamEvent::Closed(EndReason::Reset))));
    // Later calls of the exit for the stream have no effect.
    bench.relay.handle_command(exit, StreamCommand::Connected(None));
    assert_eq!((bench.relay.write(exit, b"late"), bench.relay.room(exit)), (0, 0));
    assert_eq!(bench.relay.statistics().exit_streams, 0);
}

#[test]
fn streams_begin_no_faster_than_the_rate_of_their_circuit() {
    let mut bench = exit();
    let link = bench.join(LocalRole::Relay(Arc::new(fixture::key(PREVIOUS))), None);
    let (mut hasty, mut other) = (bench.create_second(link, upper(1)), bench.create_second(link, upper(2)));
    let mut numbers = 1..;
    // The number of requests that reach the exit, which refuses them immediately.
    let mut begin = |bench: &mut Bench, at: &mut SecondHop, resolves: bool, count: usize| {
        let mut served = 0;
        for number in numbers.by_ref().take(count) {
            let stream = stream(number);
            let message = match resolves {
                true => RelayMessage::Resolve { stream, host: target().host },
                false => RelayMessage::Begin { stream, target: target() },
            };
            bench.send_to_second(at, &message);
            while let Some(event) = bench.relay.poll_event() {
                let RelayEvent::Stream(exit, event) = event else { continue };
                assert!(matches!(event, StreamEvent::Begin(_) | StreamEvent::Resolve(_)));
                served += 1;
                bench.relay.handle_command(exit, StreamCommand::Reset(EndReason::Refused));
            }
            bench.settle();
        }
        served
    };
    assert_eq!(begin(&mut bench, &mut hasty, false, 300), 256);
    assert_eq!(begin(&mut bench, &mut hasty, true, 100), 64);
    let limited =
        |message: &RelayMessage| matches!(message, RelayMessage::End { reason: EndReason::ResourceLimit, .. });
    assert_eq!(bench.answers(&mut hasty).iter().filter(|message| limited(message)).count(), 44 + 36);
    assert_eq!(begin(&mut bench, &mut other, false, 100), 100, "another circuit has a separate rate");
    bench.pass(Duration::from_secs(1));
    assert_eq!(begin(&mut bench, &mut hasty, false, 100), 20);
    assert_eq!(begin(&mut bench, &mut hasty, true, 100), 10);
}

#[test]
fn a_neighbour_that_no_consensus_lists_counts_by_its_source() {
    let mut bench = exit();
    let listed = bench.join(LocalRole::Relay(Arc::new(fixture::key(PREVIOUS))), None);
    let stranger = bench.join(LocalRole::Relay(Arc::new(fixture::key(77))), None);
    let client = bench.client();
    let neighbours = [listed, stranger, client].map(|link| bench.relay.owner(ChannelId(link)));
    assert_eq!(neighbours[0], Some(Owner::Relay(relay_id(PREVIOUS))));
    assert!(matches!(neighbours[1], Some(Owner::Source(..))) && neighbours[1] == neighbours[2]);

    let mut second = bench.create_second(stranger, upper(1));
    bench.send_to_second(&mut second, &RelayMessage::Begin { stream: stream(1), target: target() });
    let Some(RelayEvent::Stream(exit, _)) = bench.relay.poll_event() else { panic!("no request") };
    assert_eq!(bench.relay.request_owner(exit).map(|owner| owner.circuit_owner), neighbours[1]);
}
