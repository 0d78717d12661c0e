//! Tests of the shares of streams that end at a relay.

#[cfg(target_arch = "wasm32")]
use wasm_bindgen_test::wasm_bindgen_test as test;

use super::{exit::SecondHop, *};
use crate::stream::StreamCommand;

const CAP: usize = 64;

fn bench() -> Bench {
    Bench::new(RelayParameters { exit: true, exit_streams: CAP, ..RelayParameters::default() })
}

impl Bench {
    fn relay_link(&mut self, number: u16) -> LinkId {
        self.join(LocalRole::Relay(Arc::new(fixture::key(number))), None)
    }

    /// Begins streams, and connects those that reach the exit. Returns their number, and that of the streams that end
    /// at the exit.
    fn begin(&mut self, at: &mut SecondHop, streams: core::ops::Range<u16>) -> (usize, usize) {
        let target = Target { host: Host::parse("example.org").unwrap(), port: 443 };
        let (mut begun, mut ended) = (0, 0);
        for stream in streams {
            let stream = StreamId::new(stream).unwrap();
            self.send_to_second(at, &RelayMessage::Begin { stream, target: target.clone() });
            while let Some(event) = self.relay.poll_event() {
                let RelayEvent::Stream(exit, event) = event else { continue };
                match event {
                    StreamEvent::Begin(_) => {
                        begun += 1;
                        self.relay.handle_command(exit, StreamCommand::Connected(None));
                    }
                    StreamEvent::Closed(EndReason::ResourceLimit) => ended += 1,
                    event => panic!("{event:?}"),
                }
            }
            self.settle();
        }
        (begun, ended)
    }

    fn send_bytes(&mut self, at: &mut SecondHop, streams: core::ops::Range<u16>) {
        for stream in streams {
            let bytes = Bytes::from_static(b"x");
            self.send_to_second(at, &RelayMessage::Data { stream: StreamId::new(stream).unwrap(), tag: None, bytes });
            let event = self.relay.poll_event();
            assert!(matches!(event, Some(RelayEvent::Stream(_, StreamEvent::Data(_)))), "{event:?}");
        }
    }
}

#[test]
fn one_client_with_many_circuits_takes_no_streams_of_others() {
    let mut bench = bench();
    // The attacker comes over four listed relays, a quarter of the streams each. One of them has an honest client too.
    let links = [PREVIOUS, 4, 5, 6].map(|number| bench.relay_link(number));
    let mut attacking: Vec<_> = links.iter().map(|link| bench.create_second(*link, upper(1))).collect();
    let held: Vec<_> = attacking.iter_mut().map(|circuit| bench.begin(circuit, 1..20)).collect();
    assert_eq!(held, [(16, 0); 4], "the rest is refused");
    // The answers to the refused streams.
    bench.cells(links[3]);
    let mut honest = bench.create_second(links[3], upper(2));
    assert_eq!(bench.begin(&mut honest, 1..5), (4, 4), "its neighbour's fullest circuit makes room");
    let link = bench.relay_link(7);
    let mut other = bench.create_second(link, upper(3));
    assert_eq!(bench.begin(&mut other, 1..5), (4, 4), "the fullest neighbour makes room");
    assert_eq!(bench.relay.statistics().exit_streams, CAP);
    bench.send_bytes(&mut honest, 1..5);
    bench.send_bytes(&mut other, 1..5);
    for link in links {
        bench.relay.handle_link(
            bench.now,
            LinkEvent::Closed { link, reason: crate::base::LinkClose::ByPeer },
            &mut bench.rng,
        );
    }
    assert_eq!(bench.relay.statistics().exit_streams, 4);
    assert_eq!(bench.relay.streams.shares().len(), (4, 1));
}

#[test]
fn the_most_silent_stream_makes_room() {
    let mut bench = bench();
    let (first, second) = (bench.relay_link(PREVIOUS), bench.relay_link(4));
    let mut full = bench.create_second(first, upper(1));
    assert_eq!(bench.begin(&mut full, 1..17), (16, 0));
    bench.pass(Duration::from_secs(59));
    bench.send_bytes(&mut full, 1..7);
    bench.send_bytes(&mut full, 8..17);
    assert_eq!(bench.begin(&mut full, 17..18), (0, 0), "no stream of the circuit was silent for a minute");
    bench.pass(Duration::from_secs(1));
    assert_eq!(bench.begin(&mut full, 18..19), (1, 1));
    bench.send_bytes(&mut full, 8..17);
    bench.send_bytes(&mut full, 1..7);

    let mut even = bench.create_second(second, upper(2));
    assert_eq!(bench.begin(&mut even, 1..17), (16, 0), "another neighbour has its share");
}
