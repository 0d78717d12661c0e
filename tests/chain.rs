//! Integration tests of an origin and a chain of relays, joined in memory and in virtual time.
//!
//! The tests check the end-to-end properties of circuits. In particular, a modification of cells by a hostile relay or
//! link is detected: forward by the next honest hop, backward by the origin. Filler that is not zero is detected by the
//! next hop. No part of a modified cell is delivered.
#![allow(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

#[path = "chain/party.rs"]
mod party;
#[path = "chain/setup.rs"]
mod setup;

use core::time::Duration;

use party::{Direction, Tamper, is_pattern};
use setup::Chain;
use umbel::{
    base::HopIndex,
    circuit::CircuitError,
    onion::sealed_len,
    relay::RelayParameters,
    sim::{LinkProperties, NodeId},
    wire::{BODY_LEN, EndReason},
};

/// Command codes of cells.
const CREATE: u8 = 1;
const CREATED: u8 = 2;
const RELAY: u8 = 3;
/// Bytes of a stream in each direction.
const LENGTH: usize = 600_000;
const SEED: u64 = 1;

/// A circuit of three hops with an open stream.
fn three_hops() -> Chain {
    let mut chain = Chain::new(SEED, 3);
    chain.build(chain.origin, 3);
    chain.connect(chain.origin);
    chain
}

/// Starts a transfer of [`LENGTH`] bytes in each direction.
fn transfer(chain: &mut Chain, origin: NodeId, exit: usize) {
    chain.at_relay(exit, |relay| relay.serves = LENGTH);
    chain.at_origin(origin, |origin| origin.to_send = LENGTH);
}

#[test]
fn bytes_cross_three_hops_both_ways_unchanged_and_end_cleanly() {
    let mut chain = three_hops();
    let origin = chain.origin;
    transfer(&mut chain, origin, 3);
    let both_done = chain.run_until(|chain| {
        chain.origin_is(origin, |party| party.finished) && chain.at_relay(3, |relay| relay.finished)
    });
    assert!(both_done);
    chain.at_origin(origin, |party| {
        assert!(party.received.len() == LENGTH && is_pattern(&party.received));
        assert_eq!((party.ended, party.closed), (None, None));
    });
    chain.at_relay(3, |relay| {
        assert!(relay.received.len() == LENGTH && is_pattern(&relay.received));
        assert_eq!(relay.relay.statistics().exit_streams, 0);
    });
}

#[test]
fn bytes_cross_slow_and_lossy_links_unchanged() {
    for seed in 1..=8 {
        let (delay, jitter) = (Duration::from_millis(5 * seed), Duration::from_millis(3 * seed));
        let links = LinkProperties { delay, jitter, loss: 0.02, rate: 2_000_000 * seed };
        let parameters = RelayParameters { exit: true, ..RelayParameters::default() };
        let mut chain = Chain::with_links(seed, links, 3, &parameters);
        let origin = chain.origin;
        chain.build(origin, 3);
        chain.connect(origin);
        transfer(&mut chain, origin, 3);
        let both_done = chain.run_until(|chain| {
            chain.origin_is(origin, |party| party.finished) && chain.at_relay(3, |relay| relay.finished)
        });
        assert!(both_done, "seed {seed}");
        assert!(chain.origin_is(origin, |party| is_pattern(&party.received)), "seed {seed}");
        assert!(chain.at_relay(3, |relay| is_pattern(&relay.received)), "seed {seed}");
    }
}

#[test]
fn circuits_of_two_and_of_eight_hops_carry_streams() {
    for hops in [2, 8] {
        let mut chain = Chain::new(SEED, 8);
        let origin = chain.origin;
        chain.build(origin, hops);
        chain.connect(origin);
        transfer(&mut chain, origin, hops);
        assert!(chain.run_until(|chain| chain.origin_is(origin, |party| party.finished)), "{hops} hops");
        assert!(chain.origin_is(origin, |party| is_pattern(&party.received)));
    }
}

#[test]
fn a_circuit_that_its_origin_ends_leaves_nothing_behind() {
    let mut chain = three_hops();
    let origin = chain.origin;
    chain.at_origin(origin, |party| party.origin.as_mut().unwrap().1.close());
    chain.run_for(Duration::from_secs(5));
    for number in 1..=3 {
        let statistics = chain.at_relay(number, |relay| relay.relay.statistics());
        assert_eq!((statistics.circuits, statistics.exit_streams), (0, 0));
    }
    assert_eq!(chain.at_relay(3, |relay| relay.closed), 1, "the exit closes the connection to the target");
}

/// The sending and the receiving node of a link in a direction. Link 1 is that between the origin and the first relay.
fn link_ends(chain: &Chain, link: usize, direction: Direction) -> (NodeId, NodeId) {
    let near = if link == 1 { chain.origin } else { chain.relays[link - 2] };
    let far = chain.relays[link - 1];
    match direction {
        Direction::Forward => (near, far),
        Direction::Backward => (far, near),
    }
}

/// The node that sent the first DESTROY.
fn first_to_destroy(chain: &mut Chain) -> Option<NodeId> {
    let nodes: Vec<_> = [chain.origin].into_iter().chain(chain.relays.clone()).collect();
    let ended = nodes.into_iter().filter_map(|node| {
        let at = chain.world.with(node, |tap, _, _| tap.destroyed_at).flatten()?;
        Some((at, node))
    });
    ended.min_by_key(|(at, _)| *at).map(|(_, node)| node)
}

/// Applies `tamper` to a link during a transfer; returns the node that detected the tampering.
fn tamper_with_link(link: usize, direction: Direction, skip: usize, tamper: Tamper) -> (Chain, Option<NodeId>) {
    let mut chain = three_hops();
    let (sender, _) = link_ends(&chain, link, direction);
    chain.world.with(sender, |tap, _, _| tap.tamper = Some((direction, RELAY, skip, tamper)));
    let origin = chain.origin;
    transfer(&mut chain, origin, 3);
    chain.run_for(Duration::from_secs(30));
    assert!(chain.world.with(sender, |tap, _, _| tap.has_tampered()).unwrap(), "no cell was tampered with");
    let detected_by = first_to_destroy(&mut chain);
    (chain, detected_by)
}

/// Asserts that the circuit has ended at all nodes, and that the delivered bytes are an undamaged prefix.
fn assert_ended_without_damage(chain: &mut Chain, direction: Direction, what: &str) {
    let origin = chain.origin;
    chain.at_origin(origin, |party| {
        assert!(party.closed.is_some(), "{what}: the origin has an error");
        assert!(party.ended.is_some(), "{what}: the stream failed");
        assert!(is_pattern(&party.received), "{what}: the bytes delivered backward are undamaged");
        if direction == Direction::Backward {
            assert!(!party.finished && party.received.len() < LENGTH, "{what}: no clean end backward");
        }
    });
    chain.at_relay(3, |relay| {
        assert!(is_pattern(&relay.received), "{what}: the bytes delivered forward are undamaged");
        if direction == Direction::Forward {
            assert!(!relay.finished && relay.received.len() < LENGTH, "{what}: no clean end forward");
        }
        assert_eq!(relay.closed, 1, "{what}: the exit closes the connection to the target");
    });
    for number in 1..=3 {
        assert_eq!(
            chain.at_relay(number, |relay| relay.relay.statistics().circuits),
            0,
            "{what}: no circuit is left at relay {number}"
        );
    }
}

/// All kinds of tampering with a cell; `length` bounds the modified positions.
fn tampers(length: usize) -> Vec<Tamper> {
    let positions = [0, 1, 7, length / 2, length - 17, length - 1];
    let mut tampers: Vec<_> = positions.into_iter().map(Tamper::Alter).collect();
    tampers.extend([Tamper::Drop, Tamper::Replay, Tamper::Reorder]);
    tampers
}

#[test]
fn the_next_hop_detects_every_cell_altered_replayed_dropped_or_reordered_forward() {
    for link in 1..=3 {
        // Forward, the filler is authenticated like the sealed bytes.
        for (number, tamper) in tampers(BODY_LEN).into_iter().enumerate() {
            let (mut chain, detected_by) = tamper_with_link(link, Direction::Forward, 3 + 7 * number, tamper);
            let what = format!("{tamper:?} forward on link {link}");
            let (_, receiver) = link_ends(&chain, link, Direction::Forward);
            assert_eq!(detected_by, Some(receiver), "{what}");
            assert_ended_without_damage(&mut chain, Direction::Forward, &what);
            let origin = chain.origin;
            assert!(chain.origin_is(origin, |party| party.closed == Some(CircuitError::Destroyed)), "{what}");
        }
    }
}

#[test]
fn the_origin_detects_every_cell_altered_replayed_dropped_or_reordered_backward() {
    for link in 1..=3 {
        let hop = HopIndex::new(u8::try_from(link).unwrap()).unwrap();
        for (number, tamper) in tampers(sealed_len(hop)).into_iter().enumerate() {
            let (mut chain, detected_by) = tamper_with_link(link, Direction::Backward, 3 + 7 * number, tamper);
            let what = format!("{tamper:?} backward on link {link}");
            assert_eq!(detected_by, Some(chain.origin), "{what}");
            assert_ended_without_damage(&mut chain, Direction::Backward, &what);
            let origin = chain.origin;
            assert!(chain.origin_is(origin, |party| matches!(party.closed, Some(CircuitError::Onion(_)))), "{what}");
        }
    }
}

#[test]
fn the_next_hop_detects_filler_that_is_not_zero_backward() {
    for link in 2..=3 {
        let hop = HopIndex::new(u8::try_from(link).unwrap()).unwrap();
        for at in [sealed_len(hop), BODY_LEN - 1] {
            let (mut chain, detected_by) = tamper_with_link(link, Direction::Backward, 5, Tamper::Alter(at));
            let (_, receiver) = link_ends(&chain, link, Direction::Backward);
            assert_eq!(detected_by, Some(receiver));
            assert_ended_without_damage(&mut chain, Direction::Backward, &format!("byte {at} on link {link}"));
        }
    }
}

#[test]
fn a_circuit_whose_handshake_is_altered_is_never_built() {
    for (link, direction, command) in [
        (1, Direction::Forward, CREATE),
        (2, Direction::Forward, CREATE),
        (3, Direction::Forward, CREATE),
        (1, Direction::Backward, CREATED),
        (2, Direction::Backward, CREATED),
        (3, Direction::Backward, CREATED),
    ] {
        // Positions in the length, the type, the keys, the sealed payload or tag, the padding.
        for at in [1, 3, 4, 20, 60, 75, 90, 1000] {
            let mut chain = Chain::new(SEED, 3);
            let (sender, _) = link_ends(&chain, link, direction);
            let tamper = Some((direction, command, 0, Tamper::Alter(at)));
            chain.world.with(sender, |tap, _, _| tap.tamper = tamper);
            chain.start(chain.origin, chain.keys.clone());
            let origin = chain.origin;
            let ended = chain.run_until(|chain| chain.origin_is(origin, |party| party.closed.is_some()));
            assert!(ended, "byte {at} of command {command} on link {link}");
            assert!(chain.origin_is(origin, |party| !party.built && party.hops_built.len() < link));
            chain.run_for(Duration::from_secs(20));
            for number in 1..=3 {
                assert_eq!(chain.at_relay(number, |relay| relay.relay.statistics().circuits), 0);
            }
        }
    }
}

#[test]
fn a_relay_refuses_to_extend_to_itself_to_the_previous_hop_or_to_an_unlisted_relay() {
    let chain = Chain::new(SEED, 3);
    let [one, two, ..] = chain.keys[..] else { panic!("three relays") };
    let unlisted = chain.unlisted();
    for path in [vec![one, one], vec![one, two, one], vec![one, two, two], vec![one, unlisted]] {
        let listed = path.last() != Some(&unlisted);
        let mut chain = Chain::new(SEED, 3);
        let hops = path.len();
        chain.start(chain.origin, path);
        let origin = chain.origin;
        assert!(chain.run_until(|chain| chain.origin_is(origin, |party| party.closed.is_some() || party.gone)));
        chain.at_origin(origin, |party| {
            assert_eq!(party.hops_built.len(), hops - 1, "refused at the last hop, not before");
            assert_eq!((party.closed, party.gone), (listed.then_some(CircuitError::Destroyed), !listed));
        });
    }
}

#[test]
fn a_next_hop_that_is_gone_ends_the_circuit() {
    let mut chain = Chain::new(SEED, 3);
    chain.world.crash(chain.relays[1]);
    chain.start(chain.origin, chain.keys.clone());
    let origin = chain.origin;
    assert!(chain.run_until(|chain| chain.origin_is(origin, |party| party.closed.is_some())));
    assert!(chain.run_until(|chain| chain.at_relay(1, |relay| relay.relay.statistics().circuits) == 0));
}

#[test]
fn a_relay_that_does_not_exit_answers_with_policy() {
    let mut chain = Chain::with(SEED, 3, &RelayParameters::default());
    let origin = chain.origin;
    chain.build(origin, 3);
    chain.begin(origin);
    assert!(chain.run_until(|chain| chain.origin_is(origin, |party| party.ended == Some(EndReason::Policy))));
    assert!(chain.origin_is(origin, |party| party.closed.is_none()), "the circuit is still open");
}

#[test]
fn a_relay_that_vanishes_in_mid_stream_is_an_error_and_never_a_clean_end() {
    for number in 1..=3 {
        let mut chain = three_hops();
        let origin = chain.origin;
        transfer(&mut chain, origin, 3);
        assert!(chain.run_until(|chain| chain.origin_is(origin, |party| party.received.len() > 50_000)));
        let node = chain.relays[number - 1];
        chain.world.crash(node);
        assert!(chain.run_until(|chain| chain.origin_is(origin, |party| party.ended.is_some())), "relay {number}");
        assert!(chain.origin_is(origin, |party| !party.finished && is_pattern(&party.received)));
    }
}

#[test]
fn a_stalled_reader_delays_no_other_circuit() {
    let mut chain = three_hops();
    let stalled = chain.origin;
    let other = chain.add_origin("10.1.0.2:5000");
    chain.build(other, 3);
    chain.connect(other);
    chain.at_origin(stalled, |party| party.stalled = true);
    chain.at_relay(3, |relay| relay.serves = LENGTH);
    assert!(chain.run_until(|chain| chain.origin_is(other, |party| party.finished)), "the other stream finishes");
    chain.at_origin(stalled, |party| {
        assert!(party.received.len() < LENGTH && party.closed.is_none());
        assert!(!party.received.is_empty(), "the stalled stream delivers bytes up to its credit");
    });
}
