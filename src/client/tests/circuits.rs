//! Tests of circuits: failed builds, age, unlisted relays, capacity.

#[cfg(target_arch = "wasm32")]
use wasm_bindgen_test::wasm_bindgen_test as test;

use super::*;
use crate::wire::Cell;

#[test]
fn a_circuit_takes_no_new_streams_ten_minutes_after_its_first() {
    let mut net = Net::ready(12, 2);
    let first = net.connected(1);
    net.pass(590);
    let second = net.connected(1);
    assert_eq!(net.circuit_of(first), net.circuit_of(second));
    net.pass(12);
    let third = net.connected(1);
    assert_ne!(net.circuit_of(first), net.circuit_of(third));
    // The old circuit stays only while it carries streams.
    let old = net.circuit_of(first);
    net.pass(60);
    for stream in [first, second] {
        net.client(|party, _, _| {
            assert!(party.client.pool.circuit(old).is_some());
            party.client.handle_command(stream, StreamCommand::Reset(EndReason::Reset));
        });
        net.pass(2);
    }
    net.pass(LONGEST_END);
    net.client(|party, _, _| assert!(party.client.pool.circuit(old).is_none()));
}

#[test]
fn a_request_fails_after_four_failed_builds() {
    let mut net = Net::ready(13, 1);
    net.client(|party, _, _| {
        let keys: Vec<_> = party.client.pool.circuits().map(|(key, _)| key).collect();
        keys.into_iter().for_each(|key| party.client.pool.close(key));
    });
    // Without its only exit, the network has no path.
    let exit = net.relays[&key(1).id()];
    net.world.crash(exit);
    let before = net.client(|party, _, _| party.client.pool.builds());
    let stream = net.open(1);
    assert_eq!(net.closed(stream, 30), StreamFailure::NoCircuit);
    let builds = net.client(|party, _, _| party.client.pool.builds()) - before;
    assert!(builds <= 4 * 3, "{builds} builds");
}

#[test]
fn a_request_fails_with_the_reason_that_no_guard_is_reachable() {
    let mut net = Net::new(42, 2);
    for relay in net.relays.values().copied().collect::<Vec<_>>() {
        net.world.crash(relay);
    }
    net.give_consensus(NOW);
    let stream = net.open(1);
    assert_eq!(net.closed(stream, 31), StreamFailure::GuardUnreachable);
}

#[test]
fn a_request_fails_with_the_reason_that_there_are_too_few_relays() {
    let mut net = Net::new(43, 2);
    net.listed.truncate(2);
    net.give_consensus(NOW);
    let stream = net.open(1);
    assert_eq!(net.closed(stream, 1), StreamFailure::NoPath(PathError::TooFewRelays));
}

#[test]
fn the_guard_stays_when_circuits_fail_beyond_it() {
    let mut net = Net::ready(14, 1);
    let guard = net.client(|party, _, _| party.built[0][0]);
    let exit = net.relays[&key(1).id()];
    assert_ne!(guard, key(1).id(), "the only exit is no guard");
    net.world.crash(exit);
    let before = net.client(|party, _, _| party.client.pool.builds());
    let stream = net.open(1);
    assert_eq!(net.closed(stream, 60), StreamFailure::NoCircuit);
    net.pass(300);
    net.client(|party, _, _| {
        let failed = party.client.pool.builds() - before;
        assert!(failed >= 8, "{failed} circuits failed");
        assert_eq!(party.built.len(), 2, "no circuit was built without the exit");
        // A circuit through another guard would need a dial.
        assert!(party.dialled.iter().all(|relay| *relay == guard), "{} dials", party.dialled.len());
    });
}

#[test]
fn a_request_beyond_the_cap_fails_immediately() {
    let mut net = Net::new(15, 2);
    let max_requests = net.client(|party, _, _| party.client.parameters.max_streams);
    let last = net.client(|party, now, _| {
        (0..=max_requests).map(|_| party.client.open(now, target(443), Isolation([1; 32]))).last().unwrap()
    });
    assert_eq!(net.closed(last, 1), StreamFailure::LimitReached);
}

#[test]
fn a_hundred_simultaneous_requests_all_connect() {
    let mut net = Net::ready(16, 2);
    let streams: Vec<_> = (0..100).map(|number| net.open(number % 8)).collect();
    net.wait(10, |party| {
        streams
            .iter()
            .all(|stream| party.streams.get(stream).is_some_and(|seen| seen.connected.is_some()))
            .then_some(())
    });
}

#[test]
fn a_pause_between_builds_ends_even_if_no_build_may_start() {
    let mut net = Net::new(17, 2);
    net.client(|party, _, _| party.client.parameters.max_builds = 0);
    net.give_consensus(NOW);
    net.open(1);
    net.client(|party, now, _| {
        party.client.pool.pause_builds(now);
        assert!(party.client.poll_timeout().unwrap() <= now.after(Duration::from_millis(50)));
    });
    net.pass(1);
    net.client(|party, now, _| assert!(party.client.poll_timeout().unwrap() > now));
}

#[test]
fn a_guard_that_destroys_circuits_over_an_open_channel_stays_the_guard() {
    let mut net = Net::ready(18, 2);
    let guard = net.client(|party, _, _| party.built[0][0]);
    for _ in 0..3 {
        net.building();
        let destroyed = net.client(|party, now, rng| {
            let building = party.client.pool.circuits().filter(|(_, circuit)| circuit.is_building());
            let endpoints: Vec<_> = building
                .map(|(_, circuit)| {
                    assert_eq!(circuit.hop_times().len(), 0);
                    circuit.endpoint().expect("the channel is open")
                })
                .collect();
            for (channel, circuit) in &endpoints {
                party.client.pool.handle_cell(now, *channel, Cell::destroy(*circuit), rng);
            }
            endpoints.len()
        });
        assert!(destroyed > 0, "seed {}", net.seed);
        net.pass(5);
    }
    net.client(|party, _, _| {
        assert!(party.built.len() > 2);
        assert!(party.built.iter().all(|path| path[0] == guard));
    });
}

#[test]
fn a_guard_that_builds_a_first_hop_is_reachable() {
    let mut net = Net::ready(19, 2);
    let guard = net.client(|party, _, _| party.built[0][0]);
    net.building();
    net.client(|party, now, _| {
        party.client.guards.handle_unreachable(now, &guard);
    });
    net.wait(5, |party| (party.built.len() == 3).then_some(()));
    net.open(1);
    let next = net.wait(5, |party| party.built.get(3).cloned());
    assert_eq!(next[0], guard);
}

#[test]
fn an_unused_circuit_ends_at_the_age_limit_even_if_it_is_assigned() {
    let mut net = Net::ready(20, 2);
    let unused = net.client(|party, _, _| {
        party.client.parameters.max_spare_age = Duration::from_secs(10);
        let (key, _) = party.client.pool.circuits().next().unwrap();
        party.client.pool.circuit_mut(key).unwrap().assign(Isolation([1; 32]));
        key
    });
    net.pass(10 + LONGEST_END);
    net.client(|party, _, _| assert!(party.client.pool.circuit(unused).is_none()));
}

#[test]
fn a_circuit_over_a_relay_no_longer_listed_takes_no_new_stream() {
    let mut net = Net::ready(21, 3);
    let before = net.connected(1);
    let (circuit, middle) = (net.circuit_of(before), net.path_of(before)[1]);
    net.listed.retain(|relay| relay.identity() != middle);
    net.give_consensus(NOW);
    net.pass(2);
    let after = net.connected(1);
    assert_ne!(net.circuit_of(after), circuit);
    assert!(!net.path_of(after).contains(&middle));
    net.client(|party, _, _| assert_eq!(party.seen(before).closed, None));
}

#[test]
fn a_request_is_not_retried_on_a_circuit_without_room() {
    let (mut net, stream) = Net::refusing(22, 2, EndReason::ResourceLimit);
    assert_eq!(net.closed(stream, 10), StreamFailure::Ended(EndReason::ResourceLimit));
    let used = net.client(|party, _, _| party.client.pool.circuits().filter(|(_, circuit)| circuit.is_used()).count());
    assert_eq!(used, usize::from(requests::MAX_TRIES));
}
