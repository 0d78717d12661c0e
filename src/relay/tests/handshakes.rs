//! Tests of CREATEs that wait for their handshake.

#[cfg(target_arch = "wasm32")]
use wasm_bindgen_test::wasm_bindgen_test as test;

use super::*;
use crate::base::LinkClose;

/// The interval of the turns in the test with a flood. The default rate has four handshakes in it.
const TURN: Duration = Duration::from_millis(2);

/// Parameters with which no handshake is performed.
fn no_handshakes() -> RelayParameters {
    RelayParameters { circuit_handshakes: Rate { per_second: 0, burst: 0 }, ..RelayParameters::default() }
}

/// The cell of a complete CREATE by a client.
fn create_cell(bench: &mut Bench, number: u32) -> Cell {
    let (_, request) = ClientHandshake::start(&bench.keys, HopIndex::FIRST, &[], &mut bench.rng).unwrap();
    create_cells(upper(number), HopIndex::FIRST, &request).unwrap().remove(0)
}

/// Sources of an attacker, which repeat one request on new identifiers.
struct Flood {
    links: Vec<LinkId>,
    request: Vec<u8>,
    /// The number of CREATEs so far.
    sent: u32,
}

impl Flood {
    /// 64 sources in 16 networks, two links each.
    fn new(bench: &mut Bench) -> Self {
        let mut links = Vec::new();
        for source in 0..64 {
            bench.address = [198, 51, source / 4, 1 + source % 4].into();
            links.extend([bench.client(), bench.client()]);
        }
        let (_, request) = ClientHandshake::start(&bench.keys, HopIndex::FIRST, &[], &mut bench.rng).unwrap();
        Self { links, request, sent: 0 }
    }

    /// Sends `count` CREATEs, by one link after the other.
    fn send(&mut self, bench: &mut Bench, count: usize) {
        for _ in 0..count {
            let link = self.links[self.sent as usize % self.links.len()];
            self.sent += 1;
            bench.deliver(link, &create_cells(upper(self.sent), HopIndex::FIRST, &self.request).unwrap()[0]);
        }
    }
}

#[test]
fn a_create_is_answered_and_cells_pass_while_sixty_four_sources_flood_creates() {
    let mut bench = Bench::limited(RelayParameters::default());
    let (link, next, circuit, _) = extended_open(&mut bench);
    bench.address = [203, 0, 113, 1].into();
    let honest = bench.client();
    let mut flood = Flood::new(&mut bench);
    // The bursts of all channels and sources.
    let burst = 200 * flood.links.len();
    flood.send(&mut bench, burst);
    bench.settle();
    assert!(bench.relay.waiting_creates.len().0 > 8192 - 4, "the queue is full");
    bench.neighbours.cells.clear();
    for number in 1..=20 {
        let create = create_cell(&mut bench, number);
        bench.deliver(honest, &create);
        let mut turns = 0;
        loop {
            // Slightly above the rates of all sources.
            flood.send(&mut bench, 16);
            let before = bench.circuits();
            bench.deliver(next, &Cell::new(circuit, Command::Relay, CellBody::zero()));
            bench.pass(TURN);
            turns += 1;
            assert_eq!(bench.commands(link), [Command::Relay], "a cell passes in the turn in which it arrives");
            assert!(bench.circuits() - before <= 4, "handshakes of one turn");
            let answer = bench.commands(honest);
            bench.neighbours.cells.clear();
            if !answer.is_empty() {
                assert_eq!(answer, [Command::Created]);
                break;
            }
        }
        assert!(turns <= 18, "CREATE {number} of the honest client was answered after {turns} turns");
    }
    assert!(bench.relay.waiting_creates.len().0 > 4096, "the flood has not ended");
}

#[test]
fn handshakes_above_the_rate_are_performed_when_they_are_due() {
    let mut bench = Bench::limited(RelayParameters::default());
    let link = bench.client();
    for number in 1..=9 {
        let create = create_cell(&mut bench, number);
        bench.deliver(link, &create);
    }
    bench.settle();
    let mut answers = vec![bench.commands(link).len()];
    while !bench.relay.waiting_creates.is_empty() {
        let due = bench.relay.poll_timeout().unwrap();
        assert!(due > bench.now, "the driver can wait for the next handshake");
        bench.pass(due.since(bench.now));
        answers.push(bench.commands(link).len());
    }
    assert_eq!(answers, [4, 1, 1, 1, 1, 1]);
    assert!(bench.now.since(Instant::START) <= Duration::from_millis(3));
    assert_eq!(bench.circuits(), 9);
}

#[test]
fn a_waiting_create_is_refused_at_its_deadline_and_removed_at_destroy_and_with_its_channel() {
    let mut bench = Bench::limited(no_handshakes());
    let (link, other) = (bench.client(), bench.client());
    for (link, number) in [(link, 1), (link, 2), (link, 3), (link, 4), (other, 1)] {
        let create = create_cell(&mut bench, number);
        bench.send(link, &create);
    }
    assert_eq!(bench.relay.waiting_creates.len(), (5, 5, 1, 1));
    bench.send(link, &Cell::destroy(upper(1)));
    assert_eq!((bench.relay.waiting_creates.len().0, bench.commands(link)), (4, vec![]));
    let again = create_cell(&mut bench, 2);
    bench.send(link, &again);
    bench.send(link, &Cell::new(upper(3), Command::Relay, CellBody::from([7; BODY_LEN])));
    assert_eq!(bench.cells(link), [Cell::destroy(upper(2)), Cell::destroy(upper(3))]);
    bench.relay.handle_link(bench.now, LinkEvent::Closed { link: other, reason: LinkClose::ByPeer }, &mut bench.rng);
    assert_eq!(bench.relay.waiting_creates.len(), (1, 1, 1, 1));
    bench.pass(Duration::from_millis(2999));
    assert_eq!(bench.commands(link), []);
    bench.pass(Duration::from_millis(1));
    assert_eq!(bench.cells(link), [Cell::destroy(upper(4))]);
    assert_eq!(bench.relay.waiting_creates.len(), (0, 0, 0, 0));
    assert!(bench.circuits() == 0 && !bench.neighbours.closed.contains(&link));
}

#[test]
fn many_creates_of_a_relay_that_expire_together_do_not_close_its_channel() {
    let mut bench = Bench::limited(no_handshakes());
    let link = bench.join(LocalRole::Relay(Arc::new(fixture::key(PREVIOUS))), None);
    let hop = HopIndex::FIRST.next().unwrap();
    let (_, request) = ClientHandshake::start(&bench.keys, hop, &[], &mut bench.rng).unwrap();
    for number in 1..=600 {
        bench.deliver(link, &create_cells(upper(number), hop, &request).unwrap()[0]);
    }
    bench.settle();
    assert_eq!(bench.relay.waiting_creates.len().0, 600);
    // The neighbour accepts no cells for a moment.
    bench.relay.handle_link(bench.now, LinkEvent::Room { link, bytes: 0 }, &mut bench.rng);
    bench.pass(Duration::from_secs(3));
    assert_eq!(bench.relay.waiting_creates.len().0, 600 - 128);
    bench.pass(Duration::from_secs(1));
    assert_eq!(bench.relay.waiting_creates.len().0, 600 - 128, "no further refusal has room");
    bench.relay.handle_link(bench.now, LinkEvent::Room { link, bytes: ROOM }, &mut bench.rng);
    bench.settle();
    for _ in 0..4 {
        bench.pass(Duration::from_millis(50));
    }
    assert_eq!(bench.commands(link), [Command::Destroy; 600]);
    assert!(!bench.neighbours.closed.contains(&link));
}

#[test]
fn waiting_creates_of_one_source_leave_room_for_others() {
    let mut bench = Bench::limited(RelayParameters { waiting_creates: 64, ..no_handshakes() });
    let creates = |bench: &mut Bench, network: u8, links: usize| {
        bench.address = [198, 51, network, 1].into();
        let links: Vec<_> = (0..links).map(|_| bench.client()).collect();
        for link in &links {
            for number in 1..=5 {
                let create = create_cell(bench, number);
                bench.send(*link, &create);
            }
        }
        links.iter().map(|link| bench.commands(*link).len()).sum::<usize>()
    };
    assert_eq!(creates(&mut bench, 1, 3), 15 - 4, "a sixteenth");
    assert_eq!((2..=16).map(|network| creates(&mut bench, network, 1)).sum::<usize>(), 15);
    assert_eq!(bench.relay.waiting_creates.len(), (64, 64, 16, 16));
    bench.address = [203, 0, 113, 1].into();
    let honest = bench.client();
    let create = create_cell(&mut bench, 1);
    bench.send(honest, &create);
    assert_eq!((bench.commands(honest), bench.relay.waiting_creates.len()), (vec![], (64, 64, 17, 17)));
}

#[test]
fn a_create_waits_in_place_of_one_of_the_fullest_source_of_its_full_network() {
    let mut bench = Bench::limited(RelayParameters { waiting_creates: 64, ..no_handshakes() });
    let creates = |bench: &mut Bench, host: u8, count: u32| {
        bench.address = [198, 51, 100, host].into();
        let link = bench.client();
        for number in 1..=count {
            let create = create_cell(bench, number);
            bench.send(link, &create);
        }
        link
    };
    let attackers = [1, 2, 3, 4, 5, 6].map(|host| creates(&mut bench, host, 4));
    let refused: usize = attackers.iter().map(|link| bench.commands(*link).len()).sum();
    assert_eq!((refused, bench.relay.waiting_creates.len().0), (24 - 16, 16), "a quarter");
    let honest = creates(&mut bench, 200, 1);
    assert_eq!((bench.commands(honest), bench.relay.waiting_creates.len().0), (vec![], 16));
    let ended: Vec<_> = attackers.iter().flat_map(|link| bench.commands(*link)).collect();
    assert_eq!(ended, [Command::Destroy]);
}

#[test]
fn a_relay_that_accepts_no_more_circuits_refuses_waiting_creates() {
    let mut bench = Bench::limited(RelayParameters {
        circuit_handshakes: Rate { per_second: 1, burst: 1 },
        ..RelayParameters::default()
    });
    let link = bench.client();
    bench.create(link, upper(1), HopIndex::FIRST);
    let create = create_cell(&mut bench, 2);
    bench.send(link, &create);
    bench.relay.drain(bench.now, &mut bench.rng);
    bench.pass(Duration::from_secs(1));
    assert_eq!((bench.cells(link), bench.circuits()), (vec![Cell::destroy(upper(2))], 1));
}
