//! Tests of streams and lookups: their circuits, bytes, refusals, deadlines, and the loss of a relay.

#[cfg(target_arch = "wasm32")]
use wasm_bindgen_test::wasm_bindgen_test as test;

use super::*;

#[test]
fn the_client_is_ready_with_two_spare_circuits_of_three_hops() {
    let mut net = Net::new(1, 2);
    net.give_consensus(NOW);
    net.wait(5, |party| (party.ready == 1).then_some(()));
    net.pass(35);
    net.client(|party, _, _| {
        assert_eq!((party.ready, party.built.len()), (1, 2));
        assert!(party.guards_changed);
        assert!(party.built.iter().all(|path| path.len() == 3));
    });
}

#[test]
fn a_stream_carries_bytes_both_ways_and_is_removed_at_its_end() {
    let mut net = Net::ready(2, 2);
    let stream = net.connected(1);
    let sent: Vec<u8> = (0..300_000_u32).map(|n| n.to_le_bytes()[1]).collect();
    let mut unsent = sent.clone();
    while !unsent.is_empty() {
        let written = net.client(|party, _, _| party.client.write(stream, &unsent));
        unsent.drain(..written);
        net.world.step(Instant::from_nanos(u64::MAX));
    }
    net.client(|party, _, _| party.client.handle_command(stream, StreamCommand::Finish));
    net.wait(20, |party| party.seen(stream).finished.then_some(()));
    net.pass(1);
    net.client(|party, _, _| {
        assert!(party.seen(stream).bytes == sent);
        assert!(party.client.placement.is_empty());
        assert!(party.client.pool.circuits().count() > 0);
        assert!(party.client.pool.circuits().all(|(_, circuit)| circuit.is_idle()));
    });
}

#[test]
fn a_resolve_returns_the_answers_of_the_exit() {
    let mut net = Net::ready(3, 2);
    let host = Host::parse("example.org").unwrap();
    let stream = net.client(|party, now, _| party.client.resolve(now, host, Isolation([1; 32])));
    let answers = net.wait(5, |party| Some(core::mem::take(&mut party.seen(stream).answers)).filter(|a| !a.is_empty()));
    assert_eq!(answers, [ResolvedAnswer::Ip([192, 0, 2, 7].into())]);
    net.client(|party, _, _| assert!(party.client.placement.is_empty()));
}

#[test]
fn streams_share_a_circuit_if_and_only_if_they_share_their_isolation() {
    let mut net = Net::ready(4, 2);
    let streams: Vec<_> = [1, 1, 2, 3, 3, 2, 1].into_iter().map(|key| (key, net.connected(key))).collect();
    for (key, stream) in &streams {
        for (other_key, other) in &streams {
            assert_eq!(net.circuit_of(*stream) == net.circuit_of(*other), key == other_key);
        }
    }
    // Two other circuits are spare ones.
    net.pass(60);
    net.client(|party, _, _| {
        assert_eq!(party.client.pool.circuits().filter(|(_, circuit)| circuit.is_open()).count(), 5);
    });
}

#[test]
fn a_request_waits_for_the_first_circuit() {
    let mut net = Net::new(5, 2);
    let stream = net.open(1);
    net.pass(2);
    net.give_consensus(NOW);
    net.wait(5, |party| party.seen(stream).connected);
}

#[test]
fn a_request_without_a_consensus_fails_at_its_deadline() {
    let mut net = Net::new(6, 2);
    let stream = net.open(1);
    assert_eq!(net.closed(stream, 31), StreamFailure::NoConsensus);
}

#[test]
fn an_expired_consensus_fails_requests_until_there_is_a_newer_one() {
    let mut net = Net::ready(7, 2);
    let before = net.connected(1);
    // The consensus expires in a minute.
    net.give_consensus(NOW.after(Duration::from_secs(VALID - 60)));
    net.pass(62);
    let waiting = net.open(2);
    assert_eq!(net.closed(waiting, 2), StreamFailure::ConsensusExpired);
    net.pass(LONGEST_END);
    net.client(|party, _, _| {
        assert!(party.expired);
        assert_eq!(party.client.pool.circuits().count(), 1, "only the circuit with a stream stays open");
        assert_eq!(party.seen(before).closed, None);
    });
    net.give_consensus(NOW);
    net.connected(2);
}

#[test]
fn a_stream_that_the_policy_of_one_exit_refuses_is_opened_at_another_exit() {
    let mut net = Net::ready(8, 2);
    let first = net.relays[&key(1).id()];
    net.relay(first, |party| party.behaviour = ExitBehaviour::Refuses(EndReason::Policy));
    for isolation in 0..8 {
        let stream = net.connected(isolation);
        assert_eq!(net.path_of(stream)[2], key(2).id());
    }
}

#[test]
fn a_stream_that_the_policy_of_every_exit_refuses_fails_for_lack_of_an_exit() {
    let mut net = Net::ready(9, 2);
    net.set_behaviour(ExitBehaviour::Refuses(EndReason::Policy));
    let no_exit = StreamFailure::NoPath(PathError::NoExit);
    for (port, seconds) in [(443, 10), (7, 1)] {
        let target = Target { host: Host::Ip([1, 1, 1, 1].into()), port };
        let stream = net.client(|party, now, _| party.client.open(now, target, Isolation([1; 32])));
        assert_eq!(net.closed(stream, seconds), no_exit);
    }
}

#[test]
fn a_stream_refused_by_its_target_is_not_retried() {
    let (mut net, stream) = Net::refusing(10, 2, EndReason::Refused);
    assert_eq!(net.closed(stream, 1), StreamFailure::Ended(EndReason::Refused));
}

#[test]
fn a_stream_without_an_answer_times_out_and_its_circuit_stays_open() {
    let mut net = Net::ready(11, 2);
    net.set_behaviour(ExitBehaviour::Nothing);
    let stream = net.open(1);
    assert_eq!(net.closed(stream, 21), StreamFailure::Ended(EndReason::TimedOut));
    net.client(|party, _, _| assert_eq!(party.built.len(), 3, "one circuit is used and one more is spare"));
}

#[test]
fn after_the_loss_of_a_relay_its_stream_fails_and_a_new_request_succeeds_within_five_seconds() {
    for seed in 100..190 {
        let mut net = Net::ready(seed, 3);
        net.set_behaviour(ExitBehaviour::Flood);
        let stream = net.connected(1);
        net.wait(5, |party| (party.seen(stream).bytes.len() > 100_000).then_some(()));
        let hop = usize::try_from(seed % 3).unwrap();
        let victim = net.path_of(stream)[hop];
        let node = net.relays[&victim];
        net.world.crash(node);
        // With even seeds, the next request follows the detection of the loss; with odd seeds, it precedes the
        // detection.
        if seed % 2 == 0 {
            net.closed(stream, 25);
        }
        let began = net.world.now();
        let next = net.open(1);
        let connected = net.wait(30, |party| party.seen(next).connected);
        let elapsed = connected.since(began);
        assert!(elapsed <= Duration::from_secs(5), "{elapsed:?}, hop {hop}, seed {seed}");
        assert!(!net.path_of(next).contains(&victim), "seed {seed}");
        if seed % 2 == 1 {
            assert_eq!(net.closed(stream, 25), StreamFailure::Ended(EndReason::Reset), "seed {seed}");
        }
        net.client(|party, _, _| assert!(!party.seen(stream).finished, "a lost circuit causes no regular end"));
    }
}
