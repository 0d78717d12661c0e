//! Tests of delegated requests: their circuits, and the separation of their exits from those of streams.

#[cfg(target_arch = "wasm32")]
use wasm_bindgen_test::wasm_bindgen_test as test;

use super::*;

#[test]
fn a_delegated_request_has_its_own_circuit_which_ends_with_it() {
    let mut net = Net::ready(31, 2);
    let first = net.delegate(&[], 1);
    net.delegated(first);
    let circuit = net.circuit_of(first);
    let second = net.delegate(&[], 1);
    net.delegated(second);
    assert_ne!(net.circuit_of(second), circuit, "each request has another circuit, even with the same isolation");
    let stream = net.connected(1);
    assert_ne!(net.circuit_of(stream), circuit);
    net.send_query(first);
    net.send_query(second);
    net.wait(5, |party| party.client.pool.circuit(circuit).is_none().then_some(()));
}

#[test]
fn a_delegated_request_avoids_exits_with_streams_while_another_remains() {
    let mut net = Net::ready(32, 2);
    let stream = net.connected(1);
    let carrying = net.path_of(stream)[2];
    for isolation in 2..8 {
        let request = net.delegate(&[], isolation);
        let (exit, shared_exit) = net.delegated(request);
        assert_ne!(exit, carrying);
        assert!(!shared_exit);
        net.send_query(request);
    }
    // The other exit is excluded, so the exit with the stream is the only choice.
    let other = net.offering().into_iter().find(|relay| *relay != carrying).unwrap();
    let request = net.delegate(&[other], 9);
    assert_eq!(net.delegated(request), (carrying, true));
}

#[test]
fn a_delegated_request_that_no_other_exit_offers_fails_immediately() {
    let mut net = Net::ready(33, 2);
    let both = net.offering();
    assert_eq!(both.len(), 2);
    let request = net.delegate(&both, 1);
    assert_eq!(net.closed(request, 1), StreamFailure::NoPath(PathError::NotOffered));
}

#[test]
fn spare_circuits_for_delegated_requests_carry_no_streams() {
    let mut net = Net::ready(34, 2);
    net.client(|party, _, _| party.client.keep_ready(Delegation::Search(engine()), 3));
    net.wait(95, |party| (party.built.len() == 5).then_some(()));
    for isolation in 1..4 {
        net.connected(isolation);
    }
    let request = net.delegate(&[], 9);
    let requested_at = net.client(|_, now, _| now);
    net.delegated(request);
    assert_eq!(net.client(|_, now, _| now), requested_at, "a spare circuit was open");
}

#[test]
fn no_spare_circuit_is_built_to_an_avoided_exit() {
    let mut net = Net::ready(36, RELAYS);
    let carrying = |net: &mut Net| {
        net.client(|party, _, _| {
            let carrying = party.client.pool.circuits().filter(|(_, circuit)| circuit.has_carried_streams());
            carrying.filter_map(|(_, circuit)| circuit.exit()).collect::<Vec<_>>()
        })
    };
    let guard = net.client(|party, _, _| party.built[0][0]);
    let others: Vec<_> = net.offering().into_iter().filter(|relay| *relay != guard).collect();
    let mut isolation = 0;
    while !others.iter().all(|exit| carrying(&mut net).contains(exit)) {
        isolation += 1;
        net.connected(isolation);
    }
    assert!(!carrying(&mut net).contains(&guard));
    let before = net.client(|party, _, _| party.built.len());
    net.client(|party, _, _| party.client.keep_ready(Delegation::Search(engine()), 3));
    net.pass(20);
    let built = net.client(|party, _, _| party.built.len());
    assert!(built <= before + 2, "{} circuits that no request would use", built - before);
    let request = net.delegate(&[], 200);
    let (exit, shared_exit) = net.delegated(request);
    assert!(exit != guard && shared_exit);
    net.send_query(request);
}

#[test]
fn a_stream_avoids_exits_with_delegated_requests_while_another_remains() {
    let mut net = Net::ready(35, 2);
    let request = net.delegate(&[], 1);
    let (exit, shared_exit) = net.delegated(request);
    assert!(!shared_exit);
    net.send_query(request);
    for isolation in 2..8 {
        let stream = net.connected(isolation);
        assert_ne!(net.path_of(stream)[2], exit);
    }
    // The next request uses the same exit, which carries no stream.
    let request = net.delegate(&[], 9);
    assert_eq!(net.delegated(request), (exit, false));
}
