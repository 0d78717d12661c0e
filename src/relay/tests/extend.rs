//! Tests of EXTEND and of circuits with a next hop.

#[cfg(target_arch = "wasm32")]
use wasm_bindgen_test::wasm_bindgen_test as test;

use super::*;

#[test]
fn an_extend_to_this_or_the_previous_relay_and_a_second_extend_end_the_circuit() {
    for (hop, to) in [(1, 1), (2, PREVIOUS)] {
        let mut bench = Bench::new(RelayParameters::default());
        let link = if hop == 1 {
            bench.client()
        } else {
            bench.join(LocalRole::Relay(Arc::new(fixture::key(PREVIOUS))), None)
        };
        let mut layers = bench.create(link, upper(1), HopIndex::new(hop).unwrap());
        if hop == 2 {
            // The bench lacks the keys of the first hop, so the test passes the decoded message to the relay.
            let key =
                bench.relay.table.find(CircuitEndpoint { channel: ChannelId(link), circuit: upper(1) }).unwrap().0;
            let body = encode_extend(&relay_id(to), &[1; 100]);
            let fragment = split(&body, 900).unwrap().remove(0);
            bench.relay.handle_extend(bench.now, key, &fragment, &mut bench.rng);
            bench.settle();
        } else {
            bench.extend(link, upper(1), &mut layers, relay_id(to));
        }
        assert_eq!(bench.commands(link), [Command::Destroy], "to {to}");
        assert!(bench.neighbours.dials.is_empty());
    }
    let mut bench = Bench::new(RelayParameters::default());
    let (link, next, _, mut layers) = extended(&mut bench);
    bench.extend(link, upper(1), &mut layers, relay_id(4));
    assert_eq!((bench.commands(link), bench.commands(next)), (vec![Command::Destroy], vec![Command::Destroy]));
}

#[test]
fn an_extend_without_its_last_fragment_or_an_answer_ends_the_circuit_at_the_deadline() {
    let mut bench = Bench::new(RelayParameters::default());
    let link = bench.client();
    let mut layers = bench.create(link, upper(1), HopIndex::FIRST);
    let fragment = [&[8, 0][..], &[1; 500]].concat();
    bench.send_message(link, upper(1), &mut layers, &RelayMessage::Extend { fragment: fragment.into() });
    bench.pass(Duration::from_secs(5));
    assert_eq!(bench.commands(link), [Command::Destroy], "fragments");

    let mut bench = Bench::new(RelayParameters::default());
    let link = bench.client();
    let mut layers = bench.create(link, upper(1), HopIndex::FIRST);
    bench.extend(link, upper(1), &mut layers, relay_id(NEXT));
    bench.pass(Duration::from_secs(10));
    assert_eq!(bench.commands(link), [Command::Destroy], "the dial");
    assert!(bench.relay.waiting_extends.is_empty());

    let mut bench = Bench::new(RelayParameters::default());
    let (link, next, ..) = extended(&mut bench);
    bench.pass(Duration::from_secs(10));
    assert_eq!(
        (bench.commands(link), bench.commands(next)),
        (vec![Command::Destroy], vec![Command::Destroy]),
        "CREATED"
    );
    assert_eq!(bench.circuits(), 0);
}

#[test]
fn a_cell_of_the_next_hop_that_is_illegal_in_the_state_ends_the_circuit() {
    for command in [Command::Relay, Command::Created] {
        let mut bench = Bench::new(RelayParameters::default());
        let (link, next, circuit, _) = extended(&mut bench);
        // A RELAY before CREATED, or an invalid CREATED.
        bench.send(next, &Cell::new(circuit, command, CellBody::zero()));
        assert_eq!((bench.commands(link), bench.commands(next)), (vec![Command::Destroy], vec![Command::Destroy]));
    }
    let mut bench = Bench::new(RelayParameters::default());
    let (link, next, circuit, _) = extended(&mut bench);
    let mut body = CellBody::zero();
    body[..3].copy_from_slice(&[0, 1, 9]);
    let created = Cell::new(circuit, Command::Created, body);
    bench.send(next, &created);
    assert_eq!(bench.commands(link), [Command::Relay], "EXTENDED");
    bench.send(next, &created);
    assert_eq!((bench.commands(link), bench.commands(next)), (vec![Command::Destroy], vec![Command::Destroy]), "twice");
}

#[test]
fn a_forward_cell_without_a_next_hop_ends_the_circuit() {
    let mut bench = Bench::new(RelayParameters::default());
    let link = bench.client();
    let mut layers = bench.create(link, upper(1), HopIndex::FIRST);
    let second = HopKeys { forward: LayerKey::from_bytes([1; 32]), backward: LayerKey::from_bytes([2; 32]) };
    layers.push(second).unwrap();
    let mut body = CellBody::zero();
    layers.seal_message(HopIndex::new(2).unwrap(), &[], &mut body).unwrap();
    bench.send(link, &Cell::new(upper(1), Command::Relay, body));
    assert_eq!(bench.commands(link), [Command::Destroy]);
}

#[test]
fn a_closed_channel_ends_its_circuits_and_partial_creates() {
    let mut bench = Bench::new(RelayParameters::default());
    let (link, next, ..) = extended(&mut bench);
    bench.send(link, &incomplete_create(upper(2)));
    let reason = crate::base::LinkClose::ByPeer;
    bench.relay.handle_link(bench.now, LinkEvent::Closed { link, reason }, &mut bench.rng);
    bench.settle();
    assert_eq!(bench.commands(next), [Command::Destroy]);
    assert_eq!((bench.circuits(), bench.relay.partial_creates.len()), (0, (0, 0)));
}
