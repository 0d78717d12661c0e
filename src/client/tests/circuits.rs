//! Tests of circuits: failed builds, age, unlisted relays, capacity.

#[cfg(target_arch = "wasm32")]
use wasm_bindgen_test::wasm_bindgen_test as test;

use super::*;

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
            assert!(party.client.circuits.contains_key(&old));
            party.client.handle_command(stream, StreamCommand::Reset(EndReason::Reset));
        });
        net.pass(2);
    }
    net.client(|party, _, _| assert!(!party.client.circuits.contains_key(&old)));
}

#[test]
fn builds_that_fail_are_tried_four_times_and_then_given_up() {
    let mut net = Net::ready(13, 1);
    net.client(|party, _, _| {
        let keys: Vec<_> = party.client.circuits.keys().copied().collect();
        for key in keys {
            party.client.circuits.get_mut(&key).unwrap().close();
            party.client.make_ready(key);
        }
    });
    // The only exit has vanished, so no circuit can be built.
    let exit = net.relays[&key(1).id()];
    net.world.vanish(exit);
    let before = net.client(|party, _, _| party.client.next_circuit);
    let stream = net.open(1);
    assert_eq!(net.closed(stream, 30), StreamFailure::NoCircuit);
    let begun = net.client(|party, _, _| party.client.next_circuit) - before;
    assert!(begun <= 4 * 3, "{begun} circuits were begun");
}

#[test]
fn a_request_whose_guards_are_all_unreachable_fails_with_that_reason() {
    let mut net = Net::new(42, 2);
    for relay in net.relays.values().copied().collect::<Vec<_>>() {
        net.world.vanish(relay);
    }
    net.give_consensus(NOW);
    let stream = net.open(1);
    assert_eq!(net.closed(stream, 31), StreamFailure::GuardUnreachable);
}

#[test]
fn a_network_with_too_few_relays_is_not_reported_as_a_policy() {
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
    if guard == key(1).id() {
        return;
    }
    net.world.vanish(exit);
    let stream = net.open(1);
    net.closed(stream, 60);
    net.client(|party, _, _| {
        assert!(!party.client.circuits.is_empty());
        assert!(party.client.circuits.values().all(|circuit| circuit.guard() == Some(guard)));
    });
}

#[test]
fn more_requests_than_fit_are_refused_at_once() {
    let mut net = Net::new(15, 2);
    let most = net.client(|party, _, _| party.client.parameters.streams);
    let last = net.client(|party, now, _| {
        (0..=most).map(|_| party.client.open(now, target(443), Isolation([1; 32]))).last().unwrap()
    });
    assert_eq!(net.closed(last, 1), StreamFailure::LimitReached);
}

#[test]
fn a_hundred_streams_at_once_are_all_served() {
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
fn a_pause_between_builds_is_over_though_nothing_can_be_built() {
    let mut net = Net::new(17, 2);
    net.client(|party, _, _| party.client.parameters.building = 0);
    net.give_consensus(NOW);
    net.open(1);
    net.client(|party, now, _| {
        party.client.builds.handle_failed(now, now, None);
        assert!(party.client.poll_timeout().unwrap() <= now.after(Duration::from_millis(50)));
    });
    net.pass(1);
    net.client(|party, now, _| assert!(party.client.poll_timeout().unwrap() > now));
}

#[test]
fn a_guard_that_destroys_circuits_over_an_open_channel_stays_the_guard() {
    let mut net = Net::ready(18, 2);
    let guard = net.client(|party, _, _| party.built[0][0]);
    for isolation in 0..3 {
        net.open(isolation);
        let destroyed = net.client(|party, now, rng| {
            let building: Vec<_> =
                party.client.circuits.iter().filter(|(_, pooled)| pooled.is_building()).map(|(key, _)| *key).collect();
            for key in &building {
                let pooled = party.client.circuits.get_mut(key).unwrap();
                let PooledStage::Circuit { origin, .. } = &pooled.stage else { panic!("the channel is open") };
                assert_eq!(pooled.hop_times.len(), 0);
                let destroy = crate::wire::Cell::destroy(origin.circuit());
                pooled.handle_cell(now, destroy, rng);
                party.client.make_ready(*key);
            }
            building.len()
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
fn a_first_hop_that_is_built_shows_the_guard_to_be_reachable() {
    let mut net = Net::ready(19, 2);
    let guard = net.client(|party, _, _| party.built[0][0]);
    net.open(1);
    net.client(|party, now, _| {
        assert!(party.client.circuits.values().any(Pooled::is_building));
        party.client.guards.handle_unreachable(now, &guard);
    });
    net.wait(5, |party| (party.built.len() == 3).then_some(()));
    net.open(2);
    let next = net.wait(5, |party| party.built.get(3).cloned());
    assert_eq!(next[0], guard);
}

#[test]
fn a_circuit_never_used_ends_when_it_is_old_whatever_it_was_made_for() {
    let mut net = Net::ready(20, 2);
    let made = net.client(|party, _, _| {
        party.client.parameters.spare_age = Duration::from_secs(10);
        let (key, pooled) = party.client.circuits.iter_mut().next().unwrap();
        pooled.isolation = Some(Isolation([1; 32]));
        *key
    });
    net.pass(12);
    net.client(|party, _, _| assert!(!party.client.circuits.contains_key(&made)));
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
fn a_circuit_that_had_no_room_for_a_request_is_not_asked_again() {
    let mut net = Net::ready(22, 2);
    net.serve(Serves::Refuses(EndReason::ResourceLimit));
    let stream = net.open(1);
    assert_eq!(net.closed(stream, 10), StreamFailure::Ended(EndReason::ResourceLimit));
    let used =
        net.client(|party, _, _| party.client.circuits.values().filter(|pooled| pooled.first_used.is_some()).count());
    assert_eq!(used, usize::from(requests::MAX_TRIES));
}
