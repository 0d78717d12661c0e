//! Tests of volunteers: at the gateway that reaches them, and at the volunteer itself.

#[cfg(target_arch = "wasm32")]
use wasm_bindgen_test::wasm_bindgen_test as test;

use super::*;

/// Not in the consensus.
const VOLUNTEER: u16 = 77;

fn volunteer(bench: &mut Bench) -> LinkId {
    bench.join_volunteer(Arc::new(fixture::key(VOLUNTEER)))
}

/// The relay's messages to the origin in its cells over `link`.
pub(super) fn received(bench: &mut Bench, link: LinkId, layers: &mut OriginLayers) -> Vec<RelayMessage> {
    let cells = bench.cells(link).into_iter();
    let messages = cells.map(|cell| {
        assert_eq!(cell.command(), Command::Relay);
        let mut body = cell.into_body();
        let (_, length) = layers.open_backward(&mut body).unwrap();
        RelayMessage::decode(&Bytes::copy_from_slice(&body[..length])).unwrap()
    });
    messages.collect()
}

fn changes(bench: &mut Bench) -> Vec<RelayEvent> {
    core::iter::from_fn(|| bench.relay.poll_event()).collect()
}

#[test]
fn a_circuit_is_extended_to_a_volunteer_over_the_channel_that_it_dialled() {
    let mut bench = Bench::new(RelayParameters::default());
    let (link, volunteer_link) = (bench.client(), volunteer(&mut bench));
    assert_eq!(changes(&mut bench), [RelayEvent::VolunteersChanged]);
    assert_eq!(bench.relay.volunteers(), [relay_id(VOLUNTEER)]);
    let mut layers = bench.create(link, upper(1), HopIndex::FIRST);
    bench.extend(link, upper(1), &mut layers, relay_id(VOLUNTEER));
    let creates = bench.cells(volunteer_link);
    assert_eq!(creates.iter().map(Cell::command).collect::<Vec<_>>(), [Command::Create]);
    assert!(!creates[0].circuit().unwrap().is_in_upper_half());
    assert!(bench.neighbours.dials.is_empty());
}

#[test]
fn an_extend_to_an_absent_volunteer_is_answered_by_gone_and_can_be_repeated() {
    let mut bench = Bench::new(RelayParameters::default());
    let link = bench.client();
    let mut layers = bench.create(link, upper(1), HopIndex::FIRST);
    bench.extend(link, upper(1), &mut layers, relay_id(VOLUNTEER));
    assert_eq!(received(&mut bench, link, &mut layers), [RelayMessage::Gone]);
    bench.extend(link, upper(1), &mut layers, relay_id(NEXT));
    assert_eq!(bench.neighbours.dials, [relay_id(NEXT)]);
    let next = bench.next();
    assert_eq!(bench.commands(next), [Command::Create]);
    assert_eq!(bench.circuits(), 1);
}

#[test]
fn an_unlisted_relay_that_dials_without_reach_gets_no_circuit() {
    let mut bench = Bench::new(RelayParameters::default());
    let link = bench.client();
    let other = bench.join(LocalRole::Relay(Arc::new(fixture::key(VOLUNTEER))), None);
    let mut layers = bench.create(link, upper(1), HopIndex::FIRST);
    bench.extend(link, upper(1), &mut layers, relay_id(VOLUNTEER));
    assert_eq!(received(&mut bench, link, &mut layers), [RelayMessage::Gone]);
    assert_eq!(bench.cells(other), []);
}

#[test]
fn the_fifth_gone_ends_the_circuit() {
    let mut bench = Bench::new(RelayParameters::default());
    let link = bench.client();
    let mut layers = bench.create(link, upper(1), HopIndex::FIRST);
    for _ in 0..4 {
        bench.extend(link, upper(1), &mut layers, relay_id(VOLUNTEER));
        assert_eq!(received(&mut bench, link, &mut layers), [RelayMessage::Gone]);
    }
    bench.extend(link, upper(1), &mut layers, relay_id(VOLUNTEER));
    assert_eq!((bench.circuits(), bench.commands(link)), (0, vec![Command::Destroy]));
}

#[test]
fn a_volunteer_lost_before_created_is_gone_and_one_lost_later_ends_the_circuit() {
    for answered in [false, true] {
        let mut bench = Bench::new(RelayParameters::default());
        let (link, volunteer_link) = (bench.client(), volunteer(&mut bench));
        let mut layers = bench.create(link, upper(1), HopIndex::FIRST);
        bench.extend(link, upper(1), &mut layers, relay_id(VOLUNTEER));
        let create = bench.cells(volunteer_link).remove(0);
        if answered {
            let mut body = CellBody::zero();
            body[..3].copy_from_slice(&[0, 1, 9]);
            bench.send(volunteer_link, &Cell::new(create.circuit().unwrap(), Command::Created, body));
            let fragment = RelayMessage::Extended { fragment: Bytes::from_static(&[0, 1, 9]) };
            assert_eq!(received(&mut bench, link, &mut layers), [fragment]);
        }
        changes(&mut bench);
        let event = LinkEvent::Closed { link: volunteer_link, reason: crate::base::LinkClose::TimedOut };
        bench.relay.handle_link(bench.now, event, &mut bench.rng);
        bench.settle();
        assert_eq!(changes(&mut bench), [RelayEvent::VolunteersChanged]);
        if answered {
            assert_eq!((bench.circuits(), bench.commands(link)), (0, vec![Command::Destroy]));
        } else {
            assert_eq!(received(&mut bench, link, &mut layers), [RelayMessage::Gone]);
            assert_eq!(bench.circuits(), 1);
        }
    }
}

fn registration(gateways: &[RelayId]) -> Registration {
    Registration { seed: [9; 32], gateways: gateways.to_vec() }
}

/// A volunteer with the bench's consensus and a seed, and its ranking of gateways.
fn volunteer_with_gateways() -> (Bench, Vec<RelayId>) {
    let mut bench = Bench::new(RelayParameters { reach: Reach::Gateways, ..RelayParameters::default() });
    bench.relay.handle_registration(bench.now, &registration(&[]));
    let consensus = fixture::consensus((1..=9).map(|number| fixture::listed(fixture::profile(number))));
    let ranking = crate::directory::gateway_ranking(&[9; 32], &bench.relay.identity(), &consensus);
    bench.settle();
    (bench, ranking)
}

/// A volunteer with channels to the first three gateways of its ranking.
fn reachable_volunteer() -> (Bench, Vec<RelayId>) {
    let (mut bench, ranking) = volunteer_with_gateways();
    for relay in &ranking[..3] {
        open_dialled(&mut bench, *relay);
    }
    bench.neighbours.dials.clear();
    (bench, ranking)
}

fn open_dialled(bench: &mut Bench, relay: RelayId) {
    let number = (1..=9).find(|number| relay_id(*number) == relay).unwrap();
    bench.join(LocalRole::Relay(Arc::new(fixture::key(number))), Some(relay));
}

#[test]
fn a_volunteer_that_the_directory_does_not_count_is_dropped_after_ten_intervals() {
    let mut bench = Bench::new(RelayParameters::default());
    let (link, counted) = (bench.client(), volunteer(&mut bench));
    let other = bench.join_volunteer(Arc::new(fixture::key(78)));
    let answer = Counted { volunteers: vec![relay_id(VOLUNTEER)] };
    // The directory's answers start late.
    for interval in 0..30 {
        assert_eq!(bench.relay.volunteers().len(), 2, "{interval}");
        if interval >= 20 {
            bench.relay.handle_counted(bench.now, &answer);
        }
        for link in [link, counted, other] {
            bench.send(link, &Cell::padding());
        }
        bench.pass(Duration::from_secs(60));
    }
    changes(&mut bench);
    bench.relay.handle_counted(bench.now, &answer);
    assert_eq!(bench.relay.volunteers(), [relay_id(VOLUNTEER)]);
    assert_eq!(changes(&mut bench), [RelayEvent::VolunteersChanged]);
    // An EXTEND to the dropped volunteer is answered by GONE.
    let link = bench.client();
    let mut layers = bench.create(link, upper(1), HopIndex::FIRST);
    bench.extend(link, upper(1), &mut layers, relay_id(78));
    assert_eq!(received(&mut bench, link, &mut layers), [RelayMessage::Gone]);
}

#[test]
fn a_relay_that_shuts_down_closes_its_channels_and_opens_none() {
    let (mut bench, _) = reachable_volunteer();
    bench.relay.shut_down();
    let mut closed = Vec::new();
    for _ in 0..100 {
        bench.relay.handle_batch_end(bench.now, &mut bench.rng);
        while let Some(transmit) = bench.relay.poll_transmit(bench.now, &mut bench.rng) {
            match transmit {
                Transmit::Close(link) => closed.push(link),
                other => panic!("{other:?}"),
            }
        }
        bench.now = bench.now.after(Duration::from_secs(1));
        bench.relay.handle_timeout(bench.now, &mut bench.rng);
    }
    assert_eq!(closed, [LinkId(1), LinkId(2), LinkId(3)]);
    assert_eq!(bench.relay.statistics().channels, 0);
}

#[test]
fn a_draining_relay_closes_unused_channels_refuses_circuits_and_serves_existing_ones() {
    let mut bench = Bench::new(RelayParameters::default());
    let (link, idle) = (bench.client(), bench.client());
    let mut layers = bench.create(link, upper(1), HopIndex::FIRST);
    bench.cells(link);
    bench.relay.drain(bench.now, &mut bench.rng);
    bench.settle();
    assert!(bench.neighbours.closed.contains(&idle) && !bench.neighbours.closed.contains(&link));
    // A new circuit is refused; the existing one is served.
    let (_, request) = ClientHandshake::start(&bench.keys, HopIndex::FIRST, &[], &mut bench.rng).unwrap();
    for cell in create_cells(upper(2), HopIndex::FIRST, &request).unwrap() {
        bench.send(link, &cell);
    }
    assert_eq!(bench.commands(link), [Command::Destroy]);
    bench.extend(link, upper(1), &mut layers, relay_id(VOLUNTEER));
    assert_eq!(received(&mut bench, link, &mut layers), [RelayMessage::Gone]);
}

#[test]
fn a_draining_volunteer_closes_gateways_without_circuits_and_dials_none() {
    let (mut bench, _) = reachable_volunteer();
    bench.relay.drain(bench.now, &mut bench.rng);
    bench.settle();
    assert_eq!((bench.relay.gateways(), bench.neighbours.closed.len()), (Vec::new(), 3));
    bench.pass(Duration::from_secs(600));
    assert!(bench.neighbours.dials.is_empty());
}

#[test]
fn the_end_of_all_circuits_sends_destroy_to_both_sides_of_each() {
    let mut bench = Bench::new(RelayParameters::default());
    let (link, next, ..) = extended(&mut bench);
    bench.relay.end_circuits(bench.now);
    bench.settle();
    assert_eq!((bench.commands(link), bench.commands(next)), (vec![Command::Destroy], vec![Command::Destroy]));
    assert_eq!(bench.circuits(), 0);
}

#[test]
fn a_volunteer_dials_the_first_three_of_its_ranking_and_keeps_them() {
    let (mut bench, ranking) = volunteer_with_gateways();
    assert_eq!(bench.neighbours.dials, ranking[..3]);
    assert!(!ranking.contains(&bench.relay.identity()));
    for relay in &ranking[..3] {
        open_dialled(&mut bench, *relay);
    }
    let mut expected = ranking[..3].to_vec();
    expected.sort_unstable();
    assert_eq!(bench.relay.gateways(), expected);
    assert!(changes(&mut bench).contains(&RelayEvent::GatewaysChanged));
    for _ in 0..60 {
        bench.relay.handle_registration(bench.now, &registration(&expected));
        for link in 1..=3 {
            bench.send(LinkId(link), &Cell::padding());
        }
        bench.pass(Duration::from_secs(60));
    }
    assert_eq!((bench.relay.gateways(), bench.neighbours.dials.len()), (expected, 3), "the idle channel stays open");
}

#[test]
fn a_failed_gateway_is_replaced_by_the_next_ranked_up_to_the_eighth() {
    let (mut bench, ranking) = volunteer_with_gateways();
    open_dialled(&mut bench, ranking[0]);
    for relay in &ranking[1..3] {
        let event = LinkEvent::DialFailed { relay: *relay, error: crate::base::DialError::TimedOut };
        bench.relay.handle_link(bench.now, event, &mut bench.rng);
    }
    bench.settle();
    assert_eq!(bench.neighbours.dials, ranking[..5]);
    // All further dials fail, repeatedly.
    for _ in 0..100 {
        for relay in bench.neighbours.dials.split_off(0) {
            assert!(ranking[..8].contains(&relay));
            let event = LinkEvent::DialFailed { relay, error: crate::base::DialError::TimedOut };
            bench.relay.handle_link(bench.now, event, &mut bench.rng);
        }
        bench.send(LinkId(1), &Cell::padding());
        bench.pass(Duration::from_secs(2));
    }
    assert_eq!(bench.relay.gateways(), [ranking[0]]);
}

#[test]
fn a_lost_gateway_is_replaced() {
    let (mut bench, ranking) = reachable_volunteer();
    let event = LinkEvent::Closed { link: LinkId(1), reason: crate::base::LinkClose::TimedOut };
    bench.relay.handle_link(bench.now, event, &mut bench.rng);
    bench.settle();
    assert_eq!(bench.relay.gateways().len(), 2);
    assert_eq!(bench.neighbours.dials, [ranking[3]]);
    open_dialled(&mut bench, ranking[3]);
    assert_eq!(bench.relay.gateways().len(), 3);
}

#[test]
fn an_unconfirmed_gateway_is_replaced_by_the_next_ranked() {
    let (mut bench, ranking) = reachable_volunteer();
    for _ in 0..6 {
        bench.relay.handle_registration(bench.now, &registration(&ranking[1..3]));
        for link in 1..=3 {
            bench.send(LinkId(link), &Cell::padding());
        }
        bench.pass(Duration::from_secs(60));
    }
    assert_eq!(bench.neighbours.dials.first(), Some(&ranking[3]));
    assert!(!bench.relay.gateways().contains(&ranking[0]));
}
