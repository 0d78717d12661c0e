//! Tests of retiring channels: the keys of the link approach their limit.

#[cfg(target_arch = "wasm32")]
use wasm_bindgen_test::wasm_bindgen_test as test;

use super::*;

fn retire(node: &mut Node, now: Instant, link: u64, rng: &mut ChaCha20Rng) {
    node.handle(now, LinkEvent::Retire { link: LinkId(link) }, rng);
}

fn dials(node: &Node) -> usize {
    node.sent.iter().filter(|sent| matches!(sent, Transmit::Dial(_))).count()
}

#[test]
fn a_retiring_channel_is_replaced_and_closes_with_its_last_circuit() {
    let (mut pair, old) = client_and_relay();
    let relay = key(2);
    pair.advance(Duration::from_secs(30));
    let circuit = pair.a.channels.allocate_circuit(old, &mut pair.rng).unwrap();
    assert!(pair.b.channels.admit_circuit(old, circuit));
    retire(&mut pair.a, pair.now, 1, &mut pair.rng);
    assert_eq!(pair.a.channels.lookup(&relay.id()), None);
    // Repeated calls cause one dial.
    assert_eq!(pair.a.channels.connect(pair.now, &target(&relay)), None);
    assert_eq!(pair.a.channels.connect(pair.now, &target(&relay)), None);
    pair.a.collect(pair.now);
    assert_eq!(dials(&pair.a), 1);
    pair.link(2, relay.id());
    pair.settle();
    let new = ChannelId(LinkId(2));
    assert_eq!(pair.a.channels.connect(pair.now, &target(&relay)), Some(new));

    pair.advance(Duration::from_secs(120));
    assert!(!pair.closed.contains(&LinkId(1)), "a channel with a circuit stays open");
    pair.a.channels.send(old, cell(circuit, 9)).unwrap();
    pair.settle();
    assert_eq!(pair.b.cells().len(), 1, "cells of the circuit are delivered");
    let other = pair.a.channels.allocate_circuit(new, &mut pair.rng).unwrap();
    assert!(pair.b.channels.admit_circuit(new, other));
    pair.a.channels.end_circuit(pair.now, old, circuit);
    pair.advance(Duration::from_secs(2));
    assert_eq!(pair.closed, BTreeSet::from([LinkId(1)]));
    assert_eq!(pair.a.channels.lookup(&relay.id()), Some(new));
}

#[test]
fn a_retiring_channel_without_circuits_closes_within_two_seconds() {
    for retires_at_dialler in [true, false] {
        let (mut pair, _) = client_and_relay();
        let node = if retires_at_dialler { &mut pair.a } else { &mut pair.b };
        retire(node, pair.now, 1, &mut pair.rng);
        pair.advance(Duration::from_secs(2));
        assert_eq!(pair.closed, BTreeSet::from([LinkId(1)]));
        assert!(pair.a.events.iter().any(|event| matches!(event, ChannelEvent::Closed { .. })));
        assert!(pair.b.events.iter().any(|event| matches!(event, ChannelEvent::Closed { .. })));
    }
}

#[test]
fn a_retiring_channel_accepts_circuits_of_the_other_end() {
    let (mut pair, channel) = client_and_relay();
    let first = pair.a.channels.allocate_circuit(channel, &mut pair.rng).unwrap();
    assert!(pair.b.channels.admit_circuit(channel, first));
    retire(&mut pair.b, pair.now, 1, &mut pair.rng);
    // The ends retire a channel at different times. Here, only B has retired it.
    let second = pair.a.channels.allocate_circuit(channel, &mut pair.rng).unwrap();
    assert!(pair.b.channels.may_create(pair.now, channel) && pair.b.channels.admit_circuit(channel, second));
}

#[test]
fn a_failed_dial_beside_a_retiring_channel_is_reported() {
    let (mut pair, old) = client_and_relay();
    let relay = key(2);
    pair.a.channels.allocate_circuit(old, &mut pair.rng).unwrap();
    retire(&mut pair.a, pair.now, 1, &mut pair.rng);
    assert_eq!(pair.a.channels.connect(pair.now, &target(&relay)), None);
    let event = LinkEvent::DialFailed { relay: relay.id(), error: DialError::Refused };
    pair.a.handle(pair.now, event, &mut pair.rng);
    assert_eq!(pair.a.failure(), Some(DialError::Refused.into()));
}

#[test]
fn a_link_that_retires_before_its_channel_is_open_is_closed() {
    let mut pair = Pair::new(Node::new(LocalRole::Client), Node::relay(2));
    pair.link(1, key(2).id());
    retire(&mut pair.a, pair.now, 1, &mut pair.rng);
    assert_eq!(pair.a.failure(), Some(ChannelOpenError::Closed));
    assert!(pair.a.sent.contains_close());
    // An event of a closed link causes no panic.
    retire(&mut pair.a, pair.now, 1, &mut pair.rng);
}

#[test]
fn two_relays_select_the_new_channel_after_both_ends_retire_the_old_one() {
    let mut pair = Pair::new(Node::relay(1), Node::relay(2));
    pair.link(1, key(2).id());
    pair.settle();
    pair.advance(Duration::from_secs(1));
    let circuit = pair.a.channels.allocate_circuit(ChannelId(LinkId(1)), &mut pair.rng).unwrap();
    assert!(pair.b.channels.admit_circuit(ChannelId(LinkId(1)), circuit));
    retire(&mut pair.a, pair.now, 1, &mut pair.rng);
    retire(&mut pair.b, pair.now, 1, &mut pair.rng);
    pair.link(2, key(2).id());
    pair.settle();
    let new = Some(ChannelId(LinkId(2)));
    assert_eq!((pair.a.channels.lookup(&key(2).id()), pair.b.channels.lookup(&key(1).id())), (new, new));
    // The old channel gets no new circuits even after the new one has closed.
    pair.a.handle(pair.now, LinkEvent::Closed { link: LinkId(2), reason: LinkClose::ByPeer }, &mut pair.rng);
    assert_eq!(pair.a.channels.lookup(&key(2).id()), None);
}

#[test]
fn the_second_channel_takes_new_circuits_when_both_channels_retire() {
    let (mut pair, first) = client_and_relay();
    let relay = key(2);
    let circuit = pair.a.channels.allocate_circuit(first, &mut pair.rng).unwrap();
    assert!(pair.b.channels.admit_circuit(first, circuit));
    // After the first channel has retired, a second one is dialled.
    retire(&mut pair.a, pair.now, 1, &mut pair.rng);
    pair.a.channels.connect(pair.now, &target(&relay));
    pair.link(2, relay.id());
    pair.settle();
    let second = ChannelId(LinkId(2));
    let other = pair.a.channels.allocate_circuit(second, &mut pair.rng).unwrap();
    assert!(pair.b.channels.admit_circuit(second, other));
    retire(&mut pair.a, pair.now, 2, &mut pair.rng);
    assert_eq!(pair.a.channels.connect(pair.now, &target(&relay)), Some(second), "no third link is dialled");
    pair.a.collect(pair.now);
    assert_eq!(dials(&pair.a), 0);
}

#[test]
fn an_older_channel_takes_new_circuits_when_the_selected_one_retires() {
    let (mut pair, first) = client_and_relay();
    let relay = key(2);
    let circuit = pair.a.channels.allocate_circuit(first, &mut pair.rng).unwrap();
    assert!(pair.b.channels.admit_circuit(first, circuit));
    pair.link(2, relay.id());
    pair.settle();
    assert_eq!(pair.a.channels.lookup(&relay.id()), Some(ChannelId(LinkId(2))));
    let other = pair.a.channels.allocate_circuit(ChannelId(LinkId(2)), &mut pair.rng).unwrap();
    assert!(pair.b.channels.admit_circuit(ChannelId(LinkId(2)), other));
    retire(&mut pair.a, pair.now, 2, &mut pair.rng);
    assert_eq!(pair.a.channels.connect(pair.now, &target(&relay)), Some(first));
}

#[test]
fn a_relay_is_dialled_again_after_one_of_two_retiring_channels_has_closed() {
    let (mut pair, first) = client_and_relay();
    let relay = key(2);
    let circuit = pair.a.channels.allocate_circuit(first, &mut pair.rng).unwrap();
    assert!(pair.b.channels.admit_circuit(first, circuit));
    // A channel that retires twice counts once.
    (0..2).for_each(|_| retire(&mut pair.a, pair.now, 1, &mut pair.rng));
    assert_eq!(pair.a.channels.lookup(&relay.id()), None);
    pair.link(2, relay.id());
    pair.settle();
    retire(&mut pair.a, pair.now, 2, &mut pair.rng);
    assert_eq!(pair.a.channels.lookup(&relay.id()), Some(ChannelId(LinkId(2))));
    pair.a.handle(pair.now, LinkEvent::Closed { link: LinkId(2), reason: LinkClose::ByPeer }, &mut pair.rng);
    assert_eq!(pair.a.channels.lookup(&relay.id()), None);
    pair.a.handle(pair.now, LinkEvent::Closed { link: LinkId(1), reason: LinkClose::ByPeer }, &mut pair.rng);
    pair.a.collect(pair.now);
    pair.a.events.clear();
    pair.a.channels.assert_closed();
}
