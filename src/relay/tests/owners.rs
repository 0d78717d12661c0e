//! Tests of a relay against sources that open as many circuits as they can.

use core::net::Ipv6Addr;

#[cfg(target_arch = "wasm32")]
use wasm_bindgen_test::wasm_bindgen_test as test;

use super::*;
use crate::base::{LinkClose, Owner};

/// Not in the consensus.
const UNLISTED: u16 = 77;

/// Sends CREATEs on `count` identifiers, beginning at `first`. Returns the number of refused CREATEs.
fn flood(bench: &mut Bench, link: LinkId, hop: u8, first: u32, count: u32) -> usize {
    let hop = HopIndex::new(hop).unwrap();
    let (_, request) = ClientHandshake::start(&bench.keys, hop, &[], &mut bench.rng).unwrap();
    for number in first..first + count {
        bench.send(link, &create_cells(upper(number), hop, &request).unwrap()[0]);
    }
    bench.commands(link).iter().filter(|command| **command == Command::Destroy).count()
}

fn close(bench: &mut Bench, link: LinkId) {
    bench.relay.handle_link(bench.now, LinkEvent::Closed { link, reason: LinkClose::ByPeer }, &mut bench.rng);
    bench.neighbours.remove(link);
    bench.settle();
}

/// Whether the relay has the circuit `number` of `link`.
fn stands(bench: &Bench, link: LinkId, number: u32) -> bool {
    bench.relay.table.find(CircuitEndpoint { channel: ChannelId(link), circuit: upper(number) }).is_some()
}

/// Each address opens as many circuits as it can for a minute, over `links` links, while an honest client of another
/// network opens one a second. Asserts that all circuits of the honest client stand. Returns the number of the
/// attacker's circuits.
fn attack(addresses: &[IpAddr], links: usize) -> usize {
    attack_on([203, 0, 113, 1].into(), 60, addresses, links)
}

/// As [`attack`], with the honest client at the address `client`, which opens `count` circuits at the end.
fn attack_on(client: IpAddr, count: u32, addresses: &[IpAddr], links: usize) -> usize {
    const CIRCUITS: usize = 1024;
    let mut bench = Bench::new(RelayParameters { circuits: CIRCUITS, ..RelayParameters::default() });
    let (_, request) = ClientHandshake::start(&bench.keys, HopIndex::FIRST, &[], &mut bench.rng).unwrap();
    let mut attackers = Vec::new();
    for address in addresses {
        bench.address = *address;
        attackers.extend((0..links).map(|_| bench.client()));
    }
    bench.address = client;
    let honest = bench.client();
    for number in 1..=60 {
        for link in &attackers {
            for attempt in 0..8 {
                let cell = create_cells(upper(8 * number + attempt), HopIndex::FIRST, &request).unwrap().remove(0);
                bench.deliver(*link, &cell);
            }
        }
        bench.settle();
        if number > 60 - count {
            bench.create(honest, upper(number), HopIndex::FIRST);
        }
        bench.pass(Duration::from_secs(1));
        assert!((61 - count..=number).all(|number| stands(&bench, honest, number)), "after {number} s");
    }
    let held = |address: &IpAddr| bench.relay.table.owners().held(&Owner::of_address(*address));
    assert!(addresses.iter().all(|address| held(address) <= CIRCUITS / 16));
    bench.circuits() - count as usize
}

#[test]
fn an_honest_clients_circuits_stand_while_one_address_opens_all_it_can() {
    assert_eq!(attack(&[[192, 0, 2, 1].into()], 16), 1024 / 16);
}

#[test]
fn an_honest_clients_circuits_stand_while_sixteen_addresses_open_all_they_can() {
    let addresses: Vec<_> = (1..=16).map(|block| [198, block, 0, 1].into()).collect();
    assert_eq!(attack(&addresses, 2), 1024 - 60, "the table is full");
}

#[test]
fn an_honest_clients_circuits_stand_while_a_24_opens_all_it_can() {
    let addresses: Vec<_> = (1..=32).map(|host| [198, 51, 100, host].into()).collect();
    assert_eq!(attack(&addresses, 1), 1024 / 4);
}

#[test]
fn an_honest_clients_circuits_stand_while_a_48_opens_all_it_can() {
    let address = |subnet: u16| Ipv6Addr::new(0x2001, 0xdb8, 1, subnet, 0, 0, 0, 1).into();
    let addresses: Vec<_> = (1..=32).map(address).collect();
    assert_eq!(attack(&addresses, 1), 1024 / 4);
}

#[test]
fn an_honest_clients_circuits_stand_while_its_neighbours_in_a_24_open_all_they_can() {
    let addresses: Vec<_> = (1..=32).map(|host| [198, 51, 100, host].into()).collect();
    // Each of the 33 addresses of the network can have 7 circuits.
    assert_eq!(attack_on([198, 51, 100, 200].into(), 7, &addresses, 2), 1024 / 4 - 7);
}

#[test]
fn a_client_opens_circuits_while_its_neighbours_in_a_24_use_up_the_rate_of_creates() {
    let creates_of_source = Rate { per_second: 10, burst: 40 };
    let mut bench = Bench::new(RelayParameters { creates_of_source, ..RelayParameters::default() });
    let (_, request) = ClientHandshake::start(&bench.keys, HopIndex::FIRST, &[], &mut bench.rng).unwrap();
    let client = |bench: &mut Bench, host: u8| {
        bench.address = [198, 51, 100, host].into();
        bench.client()
    };
    let attackers: Vec<_> = (1..=32).map(|host| client(&mut bench, host)).collect();
    let honest = client(&mut bench, 200);
    for number in 1..=20 {
        // Circuits that end immediately occupy no place, but use the rate.
        for circuit in (1..=8).map(|attempt| upper(8 * number + attempt)) {
            for link in &attackers {
                bench.deliver(*link, &create_cells(circuit, HopIndex::FIRST, &request).unwrap()[0]);
                bench.deliver(*link, &Cell::destroy(circuit));
            }
        }
        bench.settle();
        let attacker = Owner::of_address([198, 51, 100, 1].into());
        let is_used_up = !bench.relay.allowances.take(bench.now, &attacker);
        assert!(is_used_up || number < 5, "after {number} s");
        bench.create(honest, upper(number), HopIndex::FIRST);
        bench.pass(Duration::from_secs(1));
    }
    assert!((1..=20).all(|number| stands(&bench, honest, number)));
}

/// Opens circuits on a new link whose client then reads nothing, and queues `answers` answers on each.
fn open_unread_circuits(bench: &mut Bench, circuits: u32, answers: u16) -> LinkId {
    let link = bench.client();
    let mut layers: Vec<_> = (1..=circuits).map(|number| bench.create(link, upper(number), HopIndex::FIRST)).collect();
    bench.relay.handle_link(bench.now, LinkEvent::Room { link, bytes: 0 }, &mut bench.rng);
    for (number, layers) in (1..).zip(&mut layers) {
        for stream in 1..=answers {
            let (stream, host) = (StreamId::new(stream).unwrap(), Host::parse("a.b").unwrap());
            bench.send_message(link, upper(number), layers, &RelayMessage::Resolve { stream, host });
        }
        while let Some(RelayEvent::Stream(exit, _)) = bench.relay.poll_event() {
            bench.relay.handle_command(exit, StreamCommand::Reset(EndReason::NotFound));
        }
        bench.settle();
    }
    link
}

#[test]
fn a_source_with_eight_circuits_of_young_cells_ends_no_circuit_of_slow_clients() {
    let channel = ChannelParameters { queued: 300, ..ChannelParameters::default() };
    let mut bench = Bench::new(RelayParameters { channel, exit: true, ..RelayParameters::default() });
    let mut honest = Vec::new();
    for network in 1..=4 {
        bench.address = [198, 51, network, 1].into();
        honest.push(open_unread_circuits(&mut bench, 1, 15));
    }
    bench.address = [203, 0, 113, 1].into();
    let mut hostile = Vec::new();
    for _ in 0..10 {
        bench.pass(Duration::from_secs(1));
        // All cells of these circuits are younger than those of the honest clients.
        hostile.push(open_unread_circuits(&mut bench, 8, 40));
        assert!(honest.iter().all(|link| stands(&bench, *link, 1)));
    }
    let left = hostile.iter().flat_map(|link| (1..=8).map(move |number| (*link, number)));
    let left = left.filter(|(link, number)| stands(&bench, *link, *number)).count();
    assert!((1..=8).contains(&left), "the attacker has ended its own circuits, except {left}");
    for link in honest {
        bench.relay.handle_link(bench.now, LinkEvent::Room { link, bytes: ROOM }, &mut bench.rng);
        bench.settle();
        assert_eq!(bench.commands(link), [Command::Relay; 15]);
    }
}

#[test]
fn sources_with_many_circuits_of_one_cell_lose_a_channel_and_end_no_circuit_of_others() {
    let channel = ChannelParameters { queued: 100, ..ChannelParameters::default() };
    let mut bench = Bench::new(RelayParameters { channel, exit: true, ..RelayParameters::default() });
    bench.address = [203, 0, 113, 1].into();
    let honest = open_unread_circuits(&mut bench, 1, 30);
    let mut hostile = Vec::new();
    for network in 1..=2 {
        bench.address = [198, 51, network, 1].into();
        hostile.push(open_unread_circuits(&mut bench, 40, 1));
        bench.pass(Duration::from_secs(1));
    }
    assert!(stands(&bench, honest, 1));
    assert_eq!(hostile.iter().map(|link| bench.neighbours.closed.contains(link)).collect::<Vec<_>>(), [true, false]);
    bench.relay.handle_link(bench.now, LinkEvent::Room { link: honest, bytes: ROOM }, &mut bench.rng);
    bench.settle();
    assert_eq!(bench.commands(honest), [Command::Relay; 30]);
}

#[test]
fn a_full_table_ends_the_least_used_circuit_of_the_fullest_source() {
    let mut bench = Bench::new(RelayParameters { circuits: 64, exit: true, ..RelayParameters::default() });
    // Two listed relays with less than their quarters, one source with its sixteenth, and a client.
    let relays = [PREVIOUS, 4].map(|number| bench.join(LocalRole::Relay(Arc::new(fixture::key(number))), None));
    let (first, second) = (flood(&mut bench, relays[0], 2, 1, 15), flood(&mut bench, relays[1], 2, 1, 15));
    assert_eq!((first, second), (0, 0));
    let mut sources = Vec::new();
    for network in 1..=10 {
        bench.address = [198, 51, network, 1].into();
        let link = bench.client();
        assert_eq!(flood(&mut bench, link, 1, 10, 3), 0);
        sources.push(link);
    }
    bench.address = [203, 0, 113, 1].into();
    let full = bench.join(LocalRole::Relay(Arc::new(fixture::key(UNLISTED))), None);
    let stream = StreamId::new(1).unwrap();
    let target = Target { host: Host::parse("example.org").unwrap(), port: 443 };
    let mut with_stream = bench.create_second(full, upper(1));
    bench.send_to_second(&mut with_stream, &RelayMessage::Begin { stream, target });
    let mut with_echo = bench.create_second(full, upper(2));
    assert_eq!(flood(&mut bench, full, 2, 3, 2), 0);
    assert_eq!(flood(&mut bench, full, 2, 5, 1), 1, "a source at its sixteenth ends no circuit of others");
    assert_eq!(bench.circuits(), 64);
    bench.pass(Duration::from_secs(1));
    let echo = RelayMessage::Resolve { stream, host: Host::Ip([0, 0, 0, 0].into()) };
    bench.send_to_second(&mut with_echo, &echo);
    bench.cells(full);
    bench.address = [203, 0, 114, 1].into();
    let new = bench.client();
    bench.create(new, upper(1), HopIndex::FIRST);
    assert_eq!((bench.circuits(), bench.cells(full)), (64, vec![Cell::destroy(upper(3))]));
    let remaining = [1, 2, 3, 4].map(|number| stands(&bench, full, number));
    assert_eq!(remaining, [true, true, false, true], "one with a stream, one with a later cell");
    for link in relays.into_iter().chain(sources).chain([full, new]) {
        close(&mut bench, link);
    }
    assert_eq!(bench.relay.table.owners().counts(), (0, 0, 0));
}

#[test]
fn only_listed_relays_that_dial_are_reported_to_the_transport() {
    let mut bench = Bench::new(RelayParameters::default());
    bench.client();
    let volunteer = bench.join_volunteer(Arc::new(fixture::key(78)));
    let unlisted = bench.join(LocalRole::Relay(Arc::new(fixture::key(UNLISTED))), None);
    bench.next();
    assert_eq!(flood(&mut bench, unlisted, 2, 1, 2) + flood(&mut bench, volunteer, 2, 1, 2), 0);
    assert_eq!(
        bench.neighbours.listed,
        [],
        "a client, a volunteer, an unlisted relay, and a relay that this relay dialled"
    );

    let listed = bench.join(LocalRole::Relay(Arc::new(fixture::key(PREVIOUS))), None);
    assert_eq!(bench.neighbours.listed, [listed], "as soon as the channel is open");
    assert_eq!(flood(&mut bench, listed, 2, 1, 2), 0);
    assert_eq!(bench.neighbours.listed, [listed], "once");

    let relays = (1..=9).chain([UNLISTED]).map(|number| fixture::listed(fixture::profile(number)));
    bench.relay.set_consensus(Arc::new(fixture::consensus(relays)));
    bench.settle();
    assert_eq!(bench.neighbours.listed, [listed, unlisted], "a relay that a later consensus lists");
}

#[test]
fn a_neighbour_that_no_consensus_lists_has_the_limits_of_a_client() {
    for (number, refused) in [(UNLISTED, 20), (PREVIOUS, 0)] {
        let creates_of_client = Rate { per_second: 1, burst: 20 };
        let channel = ChannelParameters { creates_of_client, ..ChannelParameters::default() };
        // A sixteenth is 100 circuits.
        let parameters = RelayParameters { channel, circuits: 1600, ..RelayParameters::default() };
        let mut bench = Bench::new(parameters);
        let link = bench.join(LocalRole::Relay(Arc::new(fixture::key(number))), None);
        assert_eq!(flood(&mut bench, link, 2, 1, 40), refused);
        assert_eq!(bench.relay.table.owners().held(&Owner::of_address(bench.address)), refused);
    }
}

#[test]
fn many_links_and_new_links_of_a_source_bring_no_more_creates() {
    let creates_of_source = Rate { per_second: 10, burst: 40 };
    let mut bench = Bench::new(RelayParameters { creates_of_source, ..RelayParameters::default() });
    let links = [(); 5].map(|()| bench.client());
    let refused: usize = links.iter().map(|link| flood(&mut bench, *link, 1, 1, 20)).sum();
    assert_eq!((refused, bench.circuits()), (60, 40));
    for link in links {
        close(&mut bench, link);
    }
    assert_eq!(bench.circuits(), 0);
    let link = bench.client();
    assert_eq!(flood(&mut bench, link, 1, 1, 20), 20);
    bench.pass(Duration::from_secs(1));
    assert_eq!(flood(&mut bench, link, 1, 21, 20), 10);
    bench.address = [198, 51, 100, 1].into();
    let other = bench.client();
    assert_eq!(flood(&mut bench, other, 1, 1, 20), 0);
}

#[test]
fn partial_creates_of_one_source_leave_room_for_others() {
    let mut bench = Bench::new(RelayParameters { partial_creates: 64, ..RelayParameters::default() });
    let incomplete = |bench: &mut Bench, network: u8, links: usize| {
        bench.address = [198, 51, network, 1].into();
        let links: Vec<_> = (0..links).map(|_| bench.client()).collect();
        for link in &links {
            (1..=5).for_each(|number| bench.send(*link, &incomplete_create(upper(number))));
        }
        links.iter().map(|link| bench.commands(*link).len()).sum::<usize>()
    };
    assert_eq!(incomplete(&mut bench, 1, 3), 15 - 4, "a sixteenth");
    assert_eq!((2..=16).map(|network| incomplete(&mut bench, network, 1)).sum::<usize>(), 15);
    assert_eq!(bench.relay.partial_creates.len(), (64, 64));
    bench.address = [203, 0, 113, 1].into();
    let honest = bench.client();
    bench.send(honest, &incomplete_create(upper(1)));
    assert_eq!((bench.commands(honest), bench.relay.partial_creates.len()), (vec![], (64, 64)));
    bench.pass(Duration::from_secs(5));
    assert_eq!(bench.relay.partial_creates.len(), (0, 0));
}

/// Creates a circuit and extends it to a relay without a channel.
fn extend_to(bench: &mut Bench, link: LinkId, number: u32, relay: u16) {
    let mut layers = bench.create(link, upper(number), HopIndex::FIRST);
    bench.extend(link, upper(number), &mut layers, relay_id(relay));
    bench.cells(link);
}

#[test]
fn circuits_of_one_source_that_wait_for_channels_leave_room_for_others() {
    let mut bench = Bench::new(RelayParameters { waiting_extends: 64, ..RelayParameters::default() });
    let mut links = Vec::new();
    for network in 1..=16 {
        bench.address = [198, 51, network, 1].into();
        for _ in 0..2 {
            let link = bench.client();
            (1..=3).for_each(|number| extend_to(&mut bench, link, number, NEXT));
            links.push(link);
        }
        let expected = 4 * usize::from(network);
        assert_eq!((bench.circuits(), bench.relay.waiting_extends.len(&relay_id(NEXT))), (expected, expected));
    }
    bench.address = [203, 0, 113, 1].into();
    let honest = bench.client();
    extend_to(&mut bench, honest, 1, NEXT);
    assert!(stands(&bench, honest, 1));
    assert_eq!((bench.circuits(), bench.relay.waiting_extends.len(&relay_id(NEXT))), (64, 64));
    let next = bench.next();
    assert_eq!(bench.commands(next).len(), 64);
    assert!(bench.relay.waiting_extends.is_empty());
}

#[test]
fn a_circuit_waits_for_a_channel_in_place_of_one_of_the_fullest_source_of_its_full_network() {
    let mut bench = Bench::new(RelayParameters { waiting_extends: 64, ..RelayParameters::default() });
    let waits = |bench: &Bench| bench.relay.waiting_extends.len(&relay_id(NEXT));
    for host in 1..=8 {
        bench.address = [198, 51, 100, host].into();
        let link = bench.client();
        (1..=4).for_each(|number| extend_to(&mut bench, link, number, NEXT));
    }
    assert_eq!((bench.circuits(), waits(&bench)), (16, 16), "a quarter");
    bench.address = [198, 51, 100, 200].into();
    let honest = bench.client();
    extend_to(&mut bench, honest, 1, NEXT);
    assert!(stands(&bench, honest, 1));
    assert_eq!((bench.circuits(), waits(&bench)), (16, 16));
    extend_to(&mut bench, honest, 2, NEXT);
    assert!(stands(&bench, honest, 1) && !stands(&bench, honest, 2), "no other source has three");
}

#[test]
fn a_client_extends_over_a_channel_that_circuits_of_two_sources_fill() {
    let channel = ChannelParameters { circuits_per_channel: 64, ..ChannelParameters::default() };
    let mut bench = Bench::new(RelayParameters { channel, ..RelayParameters::default() });
    let next = bench.next();
    let mut attackers = Vec::new();
    for network in 1..=2 {
        bench.address = [198, 51, network, 1].into();
        let link = bench.client();
        (1..=40).for_each(|number| extend_to(&mut bench, link, number, NEXT));
        attackers.push(link);
    }
    let held = |bench: &Bench, link| (1..=40).filter(|number| stands(bench, link, *number)).count();
    let attackers_hold: Vec<_> = attackers.iter().map(|link| held(&bench, *link)).collect();
    assert_eq!(attackers_hold, [32, 32], "the second source evicts circuits of the first until both have as many");
    bench.address = [203, 0, 113, 1].into();
    let honest = bench.client();
    (1..=20).for_each(|number| extend_to(&mut bench, honest, number, NEXT));
    assert!((1..=20).all(|number| has_created(&bench, honest, number)));
    assert_eq!(bench.circuits(), 64);
    for link in [honest, next].into_iter().chain(attackers) {
        close(&mut bench, link);
    }
    assert_eq!((bench.circuits(), bench.relay.table.next_channels()), (0, 0));
}

#[test]
fn an_extend_over_a_stalled_channel_with_ended_circuits_ends_no_circuit_of_others() {
    let channel = ChannelParameters { circuits_per_channel: 8, ..ChannelParameters::default() };
    let mut bench = Bench::new(RelayParameters { channel, ..RelayParameters::default() });
    let next = bench.next();
    bench.address = [203, 0, 113, 1].into();
    let honest = bench.client();
    (1..=4).for_each(|number| extend_to(&mut bench, honest, number, NEXT));
    bench.relay.handle_link(bench.now, LinkEvent::Room { link: next, bytes: 0 }, &mut bench.rng);
    bench.address = [198, 51, 100, 1].into();
    let attacker = bench.client();
    // Each ended circuit leaves a DESTROY on the channel.
    for number in 1..=12 {
        extend_to(&mut bench, attacker, number, NEXT);
        bench.send(attacker, &Cell::destroy(upper(number)));
    }
    extend_to(&mut bench, attacker, 13, NEXT);
    assert!(!stands(&bench, attacker, 13), "the channel has no entry left");
    assert!((1..=4).all(|number| stands(&bench, honest, number)));
}

/// Parameters with a low rate of CREATEs to the next relay.
fn slow_creates() -> RelayParameters {
    RelayParameters { creates_to_relay: Rate { per_second: 10, burst: 5 }, ..RelayParameters::default() }
}

/// Whether the CREATE of a circuit to its next hop has been sent.
fn has_created(bench: &Bench, link: LinkId, number: u32) -> bool {
    let endpoint = CircuitEndpoint { channel: ChannelId(link), circuit: upper(number) };
    let (key, _) = bench.relay.table.find(endpoint).expect("the circuit stands");
    matches!(bench.relay.table.circuit(key).unwrap().next, super::super::circuit::NextHop::Creating { .. })
}

#[test]
fn a_client_extends_in_its_turn_while_sixteen_sources_extend_to_the_same_relay_above_its_rate() {
    let mut bench = Bench::new(slow_creates());
    let next = bench.next();
    for network in 1..=16 {
        bench.address = [198, 51, network, 1].into();
        let link = bench.client();
        (1..=3).for_each(|number| extend_to(&mut bench, link, number, NEXT));
    }
    assert_eq!((bench.commands(next).len(), bench.relay.waiting_extends.len(&relay_id(NEXT))), (5, 43));
    bench.address = [203, 0, 113, 1].into();
    let honest = bench.client();
    extend_to(&mut bench, honest, 1, NEXT);
    let mut waits = Vec::new();
    for step in 1..=44 {
        let due = bench.relay.poll_timeout().unwrap();
        assert!(due > bench.now, "the driver can wait for the next CREATE");
        bench.pass(Duration::from_millis(100));
        assert_eq!(bench.commands(next), [Command::Create], "one CREATE in a tenth of a second");
        if !has_created(&bench, honest, 1) {
            waits.push(step);
        }
    }
    assert!(waits.len() <= 16, "the client waits for one turn of each network at most, not {}", waits.len());
    assert_eq!(bench.circuits(), 49, "no circuit has ended");
    assert!(bench.relay.waiting_extends.is_empty());
}

#[test]
fn circuits_that_wait_for_the_rate_end_at_the_deadline_with_their_origin_and_at_gone() {
    let mut bench = Bench::new(slow_creates());
    let next = bench.next();
    let link = bench.client();
    (1..=8).for_each(|number| extend_to(&mut bench, link, number, NEXT));
    assert_eq!(bench.relay.waiting_extends.len(&relay_id(NEXT)), 3);
    bench.send(link, &Cell::destroy(upper(6)));
    assert_eq!(bench.relay.waiting_extends.len(&relay_id(NEXT)), 2);
    // Without its channel the relay is dialled again, and the circuits end with the dial.
    close(&mut bench, next);
    bench.neighbours.dials.clear();
    bench.pass(Duration::from_millis(100));
    assert_eq!(bench.neighbours.dials, [relay_id(NEXT)]);
    bench.pass(Duration::from_secs(22));
    assert_eq!(bench.circuits(), 0);
    assert!(bench.relay.waiting_extends.is_empty());

    let mut bench = Bench::new(slow_creates());
    let volunteer = bench.join_volunteer(Arc::new(fixture::key(UNLISTED)));
    let link = bench.client();
    (1..=6).for_each(|number| extend_to(&mut bench, link, number, UNLISTED));
    assert_eq!((bench.commands(volunteer).len(), bench.circuits()), (5, 6));
    close(&mut bench, volunteer);
    bench.cells(link);
    bench.pass(Duration::from_millis(100));
    assert_eq!(bench.commands(link), [Command::Relay], "GONE");
    assert!(stands(&bench, link, 6) && bench.relay.waiting_extends.is_empty());
}

#[test]
fn circuits_of_one_source_wait_for_at_most_sixteen_relays() {
    let mut bench = Bench::new(RelayParameters::default());
    let listed = (1..=30).map(|number| fixture::listed(fixture::profile(number)));
    bench.relay.set_consensus(Arc::new(fixture::consensus(listed)));
    let links = [bench.client(), bench.client()];
    for number in 2..=20 {
        extend_to(&mut bench, links[usize::from(number % 2)], number.into(), number);
    }
    assert_eq!((bench.neighbours.dials.len(), bench.circuits()), (16, 16));
    bench.address = [203, 0, 113, 1].into();
    let other = bench.client();
    extend_to(&mut bench, other, 1, 25);
    assert_eq!((bench.neighbours.dials.len(), bench.circuits()), (17, 17));
}

#[test]
fn networks_that_extend_to_dead_relays_leave_dials_to_others() {
    let channel = ChannelParameters { dials: 32, ..ChannelParameters::default() };
    let mut bench = Bench::new(RelayParameters { channel, ..RelayParameters::default() });
    let listed = (1..=250).map(|number| fixture::listed(fixture::profile(number)));
    bench.relay.set_consensus(Arc::new(fixture::consensus(listed)));
    let mut dialled = Vec::new();
    let mut dead = 10..=250;
    for network in 1..=4 {
        bench.address = [198, 51, network, 1].into();
        let link = bench.client();
        (1..=20).for_each(|number| extend_to(&mut bench, link, number, dead.next().unwrap()));
        dialled.push(bench.neighbours.dials.len());
    }
    // The sources of one network.
    for host in 1..=10 {
        bench.address = [198, 51, 100, host].into();
        let link = bench.client();
        (1..=10).for_each(|number| extend_to(&mut bench, link, number, dead.next().unwrap()));
    }
    dialled.push(bench.neighbours.dials.len());
    assert_eq!(dialled, [6, 11, 15, 18, 21], "a quarter of the free dials each");
    bench.address = [203, 0, 113, 1].into();
    let honest = bench.client();
    extend_to(&mut bench, honest, 1, 9);
    assert!(stands(&bench, honest, 1) && bench.neighbours.dials.last() == Some(&relay_id(9)));
}

/// Advances the time by `minutes`, during which padding keeps a link alive.
fn minutes(bench: &mut Bench, link: LinkId, minutes: u64) {
    for _ in 0..minutes {
        bench.send(link, &Cell::padding());
        bench.pass(Duration::from_secs(60));
    }
}

#[test]
fn a_circuit_with_only_echoes_and_refused_streams_ends_as_unused() {
    let mut bench = Bench::new(RelayParameters { exit: true, ..RelayParameters::default() });
    let link = bench.client();
    let mut layers = bench.create(link, upper(1), HopIndex::FIRST);
    let target = Target { host: Host::parse("example.org").unwrap(), port: 25 };
    for minute in 0..9 {
        let stream = StreamId::new(2 * minute + 1).unwrap();
        let echo = RelayMessage::Resolve { stream, host: Host::Ip([0, 0, 0, 0].into()) };
        bench.send_message(link, upper(1), &mut layers, &echo);
        let stream = StreamId::new(2 * minute + 2).unwrap();
        bench.send_message(link, upper(1), &mut layers, &RelayMessage::Begin { stream, target: target.clone() });
        while let Some(RelayEvent::Stream(exit, _)) = bench.relay.poll_event() {
            bench.relay.handle_command(exit, StreamCommand::Reset(EndReason::Policy));
        }
        minutes(&mut bench, link, 1);
    }
    assert_eq!(bench.circuits(), 1);
    minutes(&mut bench, link, 1);
    assert_eq!(bench.circuits(), 0);
}

#[test]
fn a_circuit_whose_streams_have_ended_ends_an_hour_later() {
    let mut bench = Bench::new(RelayParameters { exit: true, ..RelayParameters::default() });
    let link = bench.join(LocalRole::Relay(Arc::new(fixture::key(PREVIOUS))), None);
    let mut circuit = bench.create_second(link, upper(1));
    let stream = StreamId::new(1).unwrap();
    let target = Target { host: Host::parse("example.org").unwrap(), port: 443 };
    bench.send_to_second(&mut circuit, &RelayMessage::Begin { stream, target });
    let Some(RelayEvent::Stream(exit, _)) = bench.relay.poll_event() else { panic!("no request") };
    bench.relay.handle_command(exit, StreamCommand::Connected(None));
    minutes(&mut bench, link, 150);
    assert_eq!(bench.circuits(), 1, "the stream is open");
    bench.send_to_second(&mut circuit, &RelayMessage::End { stream, reason: EndReason::Done });
    bench.relay.handle_command(exit, StreamCommand::Finish);
    bench.settle();
    assert_eq!(bench.relay.statistics().exit_streams, 0);
    minutes(&mut bench, link, 59);
    assert_eq!(bench.circuits(), 1);
    minutes(&mut bench, link, 1);
    assert_eq!(bench.circuits(), 0);
}
