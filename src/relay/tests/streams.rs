//! Tests of the shares of streams that end at a relay.

#[cfg(target_arch = "wasm32")]
use wasm_bindgen_test::wasm_bindgen_test as test;

use super::{exit::SecondHop, *};
use crate::stream::StreamCommand;

const CAP: usize = 64;
/// The share of a listed relay.
const SHARE: u32 = 16;
/// Numbers of listed relays.
const RELAYS: [u16; 4] = [PREVIOUS, 4, 5, 6];

fn bench() -> Bench {
    Bench::new(RelayParameters { exit: true, exit_streams: CAP, ..RelayParameters::default() })
}

/// The events at the exit after BEGINs.
#[derive(Default)]
struct BeginOutcome {
    admitted: Vec<ExitStream>,
    /// Evicted streams.
    evicted: Vec<ExitStream>,
}

impl BeginOutcome {
    fn counts(&self) -> (usize, usize) {
        (self.admitted.len(), self.evicted.len())
    }
}

/// A circuit with one stream.
struct Single {
    circuit: SecondHop,
    stream: ExitStream,
}

impl Bench {
    fn relay_link(&mut self, number: u16) -> LinkId {
        self.join(LocalRole::Relay(Arc::new(fixture::key(number))), None)
    }

    /// Begins streams, and connects those that reach the exit.
    fn begin(&mut self, at: &mut SecondHop, streams: core::ops::Range<u16>) -> BeginOutcome {
        let target = Target { host: Host::parse("example.org").unwrap(), port: 443 };
        let mut outcome = BeginOutcome::default();
        for stream in streams {
            let stream = StreamId::new(stream).unwrap();
            self.send_to_second(at, &RelayMessage::Begin { stream, target: target.clone() });
            while let Some(event) = self.relay.poll_event() {
                let RelayEvent::Stream(exit, event) = event else { continue };
                match event {
                    StreamEvent::Begin(_) => {
                        outcome.admitted.push(exit);
                        self.relay.handle_command(exit, StreamCommand::Connected(None));
                    }
                    StreamEvent::Closed(EndReason::ResourceLimit) => outcome.evicted.push(exit),
                    event => panic!("{event:?}"),
                }
            }
            self.settle();
        }
        outcome
    }

    /// Creates a circuit over `link`, and begins its first stream, which the relay must admit. Returns the evicted
    /// streams too.
    fn begin_single(&mut self, link: LinkId, circuit: u32) -> (Single, Vec<ExitStream>) {
        // Discards the cells that answer evicted streams.
        self.cells(link);
        let mut circuit = self.create_second(link, upper(circuit));
        let outcome = self.begin(&mut circuit, 1..2);
        (Single { circuit, stream: outcome.admitted[0] }, outcome.evicted)
    }

    /// Sends `bytes` bytes on each of these streams of an origin.
    fn send_bytes(&mut self, at: &mut SecondHop, streams: core::ops::Range<u16>, bytes: usize) {
        for stream in streams {
            for piece in vec![7; bytes].chunks(900) {
                let stream = StreamId::new(stream).unwrap();
                let bytes = Bytes::copy_from_slice(piece);
                self.send_to_second(at, &RelayMessage::Data { stream, tag: None, bytes });
                let event = self.relay.poll_event();
                let Some(RelayEvent::Stream(exit, StreamEvent::Data(bytes))) = event else { panic!("{event:?}") };
                self.relay.handle_command(exit, StreamCommand::Consumed(bytes.len()));
            }
        }
    }
}

#[test]
fn a_client_with_one_stream_on_each_circuit_evicts_no_stream_behind_other_relays() {
    let mut bench = bench();
    // The attacker's circuits pass four listed relays, with a quarter of the streams each.
    let links = RELAYS.map(|number| bench.relay_link(number));
    let mut attack = Vec::new();
    for (link, circuit) in links.into_iter().flat_map(|link| (1..=SHARE).map(move |circuit| (link, circuit))) {
        let (single, evicted) = bench.begin_single(link, circuit);
        assert_eq!(evicted, []);
        attack.push(single);
    }
    assert_eq!(bench.relay.statistics().exit_streams, CAP);
    for _ in 0..3 {
        bench.pass(Duration::from_secs(50));
        attack.iter_mut().for_each(|single| bench.send_bytes(&mut single.circuit, 1..2, 1));
    }
    let link = bench.relay_link(7);
    let mut honest = bench.create_second(link, upper(1));
    let served = bench.begin(&mut honest, 1..9);
    assert_eq!(
        served.counts(),
        (8, 8),
        "streams of the relays with the most streams are evicted, although each circuit has one"
    );
    assert!(served.evicted.iter().all(|evicted| attack.iter().any(|single| single.stream == *evicted)));
    // Further circuits of the attacker evict only the attacker's streams.
    for (link, circuit) in links.into_iter().flat_map(|link| (101..=100 + SHARE).map(move |circuit| (link, circuit))) {
        let (single, evicted) = bench.begin_single(link, circuit);
        attack.push(single);
        assert!(evicted.iter().all(|evicted| attack.iter().any(|single| single.stream == *evicted)));
    }
    bench.send_bytes(&mut honest, 1..9, 1);
    assert_eq!(bench.relay.statistics().exit_streams, CAP);
    for link in links {
        bench.relay.handle_link(
            bench.now,
            LinkEvent::Closed { link, reason: crate::base::LinkClose::ByPeer },
            &mut bench.rng,
        );
    }
    assert_eq!(bench.relay.statistics().exit_streams, 8);
    assert_eq!(bench.relay.streams.shares().counts(), (8, 8, 1));
}

#[test]
fn streams_that_carry_more_are_not_evicted_by_many_streams_of_an_attacker_behind_the_same_relay() {
    let mut bench = bench();
    let link = bench.relay_link(PREVIOUS);
    let mut attack: Vec<Single> = (1..=SHARE).map(|circuit| bench.begin_single(link, circuit).0).collect();
    bench.pass(Duration::from_secs(50));
    attack.iter_mut().for_each(|single| bench.send_bytes(&mut single.circuit, 1..2, 1));
    bench.cells(link);
    let mut honest = bench.create_second(link, upper(1000));
    assert_eq!(bench.begin(&mut honest, 1..4).counts(), (3, 3), "the least active streams of the relay are evicted");
    for round in 0..4 {
        bench.send_bytes(&mut honest, 1..4, 50_000);
        bench.pass(Duration::from_secs(10));
        // In each round the attacker opens as many streams as the relay's share, each on a new circuit, and sends a
        // byte on each.
        for circuit in 0..SHARE {
            let (mut single, evicted) = bench.begin_single(link, 2000 + round * SHARE + circuit);
            assert_eq!(evicted.len(), 1);
            bench.send_bytes(&mut single.circuit, 1..2, 1);
        }
    }
    bench.send_bytes(&mut honest, 1..4, 1);
}

#[test]
fn the_least_active_stream_is_evicted() {
    let mut bench = bench();
    let (first, second) = (bench.relay_link(PREVIOUS), bench.relay_link(4));
    let mut full = bench.create_second(first, upper(1));
    let outcome = bench.begin(&mut full, 1..17);
    assert_eq!(outcome.counts(), (16, 0));
    bench.pass(Duration::from_secs(30));
    bench.send_bytes(&mut full, 1..17, 1);
    // A byte a minute is no protection: the stream with fewer bytes is evicted, even if its last byte is later.
    bench.send_bytes(&mut full, 1..7, 30_000);
    bench.send_bytes(&mut full, 8..17, 30_000);
    bench.pass(Duration::from_secs(1));
    bench.send_bytes(&mut full, 7..8, 1);
    assert_eq!(bench.begin(&mut full, 17..18).evicted, outcome.admitted[6..7]);

    let mut second_circuit = bench.create_second(second, upper(2));
    assert_eq!(bench.begin(&mut second_circuit, 1..17).counts(), (16, 0), "another relay has a share of its own");
}

#[test]
fn a_circuit_displaces_streams_of_its_owner_at_a_limited_rate() {
    let mut bench = bench();
    let link = bench.relay_link(PREVIOUS);
    (1..=SHARE).for_each(|circuit| _ = bench.begin_single(link, circuit));
    bench.pass(Duration::from_secs(20));
    bench.cells(link);
    let mut circuit = bench.create_second(link, upper(100));
    assert_eq!(bench.begin(&mut circuit, 1..9).counts(), (4, 4));
    bench.pass(Duration::from_secs(15));
    assert_eq!(bench.begin(&mut circuit, 9..17).counts(), (1, 1));
    bench.cells(link);
    let mut other = bench.create_second(link, upper(101));
    assert_eq!(bench.begin(&mut other, 1..3).counts(), (2, 2), "another circuit has a separate rate");
}

#[test]
fn at_an_exit_full_of_active_streams_a_client_opens_four_streams_on_each_circuit() {
    let mut bench = bench();
    let links = RELAYS.map(|number| bench.relay_link(number));
    let mut attack = Vec::new();
    for (link, circuit) in links.into_iter().flat_map(|link| (1..=SHARE).map(move |circuit| (link, circuit))) {
        attack.push(bench.begin_single(link, circuit).0);
    }
    // A KiB a second on each stream of the attacker.
    let carry = |bench: &mut Bench, attack: &mut Vec<Single>| {
        bench.pass(Duration::from_secs(10));
        attack.retain(|single| bench.relay.streams.circuit(single.stream).is_some());
        attack.iter_mut().for_each(|single| bench.send_bytes(&mut single.circuit, 1..2, 10 << 10));
        links.into_iter().for_each(|link| _ = bench.cells(link));
    };
    (0..3).for_each(|_| carry(&mut bench, &mut attack));
    let mut honest = [1000, 1001].map(|circuit| bench.create_second(links[0], upper(circuit)));
    for circuit in &mut honest {
        // The client tries the refused streams on another circuit.
        assert_eq!(bench.begin(circuit, 1..9).counts(), (4, 4));
    }
    for round in 0..3 {
        honest.iter_mut().for_each(|circuit| bench.send_bytes(circuit, 1..5, 60_000));
        for circuit in 0..SHARE {
            attack.push(bench.begin_single(links[0], 2000 + round * SHARE + circuit).0);
        }
        carry(&mut bench, &mut attack);
    }
    honest.iter_mut().for_each(|circuit| bench.send_bytes(circuit, 1..5, 1));
    assert_eq!(bench.relay.statistics().exit_streams, CAP);
}
