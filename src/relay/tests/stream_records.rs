//! Tests of the shares of records of streams.

#[cfg(target_arch = "wasm32")]
use wasm_bindgen_test::wasm_bindgen_test as test;

use super::{exit::SecondHop, *};

/// The cap on records. The share of a source is 16, that of a listed relay 64.
const CAP: usize = 256;

fn bench() -> Bench {
    Bench::new(RelayParameters { stream_records: CAP, ..RelayParameters::default() })
}

fn stream(number: u16) -> StreamId {
    StreamId::new(number).unwrap()
}

fn begin(number: u16) -> RelayMessage {
    let target = Target { host: Host::parse("example.org").unwrap(), port: 443 };
    RelayMessage::Begin { stream: stream(number), target }
}

impl Bench {
    /// A circuit over a new channel of a listed relay.
    fn second_behind(&mut self, number: u16) -> (LinkId, SecondHop) {
        let link = self.join(LocalRole::Relay(Arc::new(fixture::key(number))), None);
        (link, self.create_second(link, upper(1)))
    }

    /// The records of all circuits, which the shares must count.
    fn records(&self) -> usize {
        let (records, held) = self.relay.streams.records();
        assert_eq!(records.len(), (held, held));
        held
    }
}

#[test]
fn closed_streams_of_many_circuits_occupy_bounded_memory_and_leave_those_of_others() {
    let mut bench = bench();
    let (honest_link, mut honest) = bench.second_behind(7);
    for number in 1..9 {
        bench.send_to_second(&mut honest, &begin(number));
    }
    assert_eq!(bench.commands(honest_link), [Command::Relay; 8]);
    // The attacker has circuits behind four listed relays, and a link of its own. All its streams are refused.
    let own_link = bench.client();
    for circuit in 1..9 {
        let mut layers = bench.create(own_link, upper(circuit), HopIndex::FIRST);
        (1..65).for_each(|number| bench.send_message(own_link, upper(circuit), &mut layers, &begin(number)));
        bench.cells(own_link);
    }
    assert!(bench.records() <= 8 + 16, "the share of a source: {}", bench.records());
    for link in [PREVIOUS, 4, 5, 6].map(|relay| bench.join(LocalRole::Relay(Arc::new(fixture::key(relay))), None)) {
        for circuit in 1..9 {
            let mut attacking = bench.create_second(link, upper(circuit));
            (1..65).for_each(|number| bench.send_to_second(&mut attacking, &begin(number)));
            bench.cells(link);
        }
    }
    assert!((CAP / 2..=CAP).contains(&bench.records()), "{}", bench.records());
    // Messages in flight at the end of the honest streams.
    for number in 1..9 {
        let bytes = Bytes::from_static(b"late");
        bench.send_to_second(&mut honest, &RelayMessage::Data { stream: stream(number), tag: None, bytes });
        bench.send_to_second(&mut honest, &RelayMessage::End { stream: stream(number), reason: EndReason::Reset });
    }
    assert_eq!(bench.commands(honest_link), [], "no message is a breach");
    bench.relay.end_circuits(bench.now);
    assert_eq!(bench.records(), 0);
}

#[test]
fn answers_that_an_origin_does_not_accept_end_its_circuit_beyond_its_share() {
    let mut bench = bench();
    let (honest_link, mut honest) = bench.second_behind(7);
    let (stalled, mut attacking) = bench.second_behind(PREVIOUS);
    bench.send_to_second(&mut honest, &begin(1));
    bench.relay.handle_link(bench.now, LinkEvent::Room { link: stalled, bytes: 0 }, &mut bench.rng);
    // The channel takes the first answers, the others wait.
    for number in 1..65 {
        bench.send_to_second(&mut attacking, &begin(number));
        bench.pass(Duration::ZERO);
    }
    assert_eq!(bench.circuits(), 2, "only closed streams are forgotten");
    for number in 65..200 {
        bench.send_to_second(&mut attacking, &begin(number));
        bench.pass(Duration::ZERO);
    }
    assert_eq!((bench.circuits(), bench.records()), (1, 1));
    bench.send_to_second(&mut honest, &RelayMessage::End { stream: stream(1), reason: EndReason::Reset });
    assert_eq!(bench.commands(honest_link), [Command::Relay], "the answer to the first BEGIN");
}
