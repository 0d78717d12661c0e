//! Tests of the channel handshake: the proofs of each role, and invalid proofs.

#[cfg(target_arch = "wasm32")]
use wasm_bindgen_test::wasm_bindgen_test as test;

use super::*;

#[test]
fn relays_prove_their_identity_and_clients_do_not() {
    let mut pair = Pair::new(Node::relay(1), Node::relay(2));
    pair.link(1, key(2).id());
    pair.settle();
    assert_eq!(pair.a.open().unwrap().1, Some(key(2).id()));
    assert_eq!(pair.b.open().unwrap().1, Some(key(1).id()));
    assert_eq!(pair.b.channels.lookup(&key(1).id()), Some(ChannelId(LinkId(1))));
    client_and_relay();
}

#[test]
fn each_end_learns_its_observed_address() {
    let mut pair = Pair::new(Node::relay(1), Node::relay(2));
    pair.link(1, key(2).id());
    pair.settle();
    let observed = pair.a.events.iter().find_map(|event| match event {
        ChannelEvent::Open { observed, .. } => *observed,
        _ => None,
    });
    assert_eq!(observed.unwrap().0, "192.0.2.9:999".parse::<core::net::SocketAddr>().unwrap());
}

#[test]
fn a_relay_other_than_the_dialled_one_receives_no_proof() {
    let mut pair = Pair::new(Node::relay(1), Node::relay(3));
    pair.link(1, key(2).id());
    while pair.deliver(false) {}
    assert_eq!(pair.a.failure(), Some(ChannelError::WrongIdentity.into()));
    let messages = pair.a.sent.iter().filter(|transmit| matches!(transmit, Transmit::Message { .. })).count();
    assert_eq!(messages, 1, "the HELLO alone");
    assert!(pair.a.sent.contains_close());
}

#[test]
fn a_client_at_the_dialled_address_is_refused() {
    let mut pair = Pair::new(Node::relay(1), Node::new(LocalRole::Client));
    let link = LinkId(1);
    pair.a.handle(pair.now, LinkEvent::Opened { link, opened: opened(Some(key(2).id()), 1, 2) }, &mut pair.rng);
    pair.a.handle(pair.now, LinkEvent::Room { link, bytes: ROOM }, &mut pair.rng);
    let hello =
        hello::ChannelHello { versions: vec![1], capabilities: 0, identity: None, nonce: [1; 32], observed: None };
    let message = hello.encode().into();
    pair.a.handle(pair.now, LinkEvent::Message { link, lane: Lane::FIRST, message }, &mut pair.rng);
    assert_eq!(pair.a.failure(), Some(ChannelError::WrongIdentity.into()));
}

#[test]
fn a_client_refuses_links_that_other_ends_dialled() {
    let mut client = Node::new(LocalRole::Client);
    let mut rng = ChaCha20Rng::seed_from_u64(1);
    client.handle(Instant::START, LinkEvent::Opened { link: LinkId(1), opened: opened(None, 1, 2) }, &mut rng);
    assert!(client.sent.contains_close());
}

#[test]
fn a_proof_for_a_link_with_other_certificates_is_refused() {
    // A man in the middle terminates both links and forwards the handshake, so the certificates differ.
    let mut pair = Pair::new(Node::relay(1), Node::relay(2));
    let (link, relay) = (LinkId(1), key(2).id());
    pair.a.handle(pair.now, LinkEvent::Opened { link, opened: opened(Some(relay), 1, 66) }, &mut pair.rng);
    pair.b.handle(pair.now, LinkEvent::Opened { link, opened: opened(None, 2, 66) }, &mut pair.rng);
    pair.room(1, ROOM);
    pair.settle();
    assert!(pair.a.open().is_none() && pair.b.open().is_none());
    assert!(!pair.closed.is_empty());
}

#[test]
fn a_handshake_replayed_on_another_link_is_refused() {
    let mut pair = Pair::new(Node::relay(1), Node::relay(2));
    pair.link(1, key(2).id());
    let mut recorded = Vec::new();
    loop {
        pair.b.collect(pair.now);
        recorded.extend(pair.b.sent.iter().filter_map(|transmit| match transmit {
            Transmit::Message { message, .. } => Some(message.clone()),
            _ => None,
        }));
        if !pair.deliver(false) && !pair.deliver(true) {
            break;
        }
    }
    recorded.dedup();
    let mut victim = Node::new(LocalRole::Client);
    let link = LinkId(9);
    victim.handle(pair.now, LinkEvent::Opened { link, opened: opened(Some(key(2).id()), 1, 2) }, &mut pair.rng);
    for message in recorded {
        victim.handle(pair.now, LinkEvent::Message { link, lane: Lane::FIRST, message }, &mut pair.rng);
    }
    assert!(victim.open().is_none());
    assert_eq!(victim.failure(), Some(ChannelError::BadProof.into()));
}

#[test]
fn a_relay_refuses_its_own_reflected_messages() {
    let mut relay = Node::relay(2);
    let mut rng = ChaCha20Rng::seed_from_u64(1);
    let link = LinkId(1);
    relay.handle(Instant::START, LinkEvent::Opened { link, opened: opened(None, 2, 2) }, &mut rng);
    relay.handle(Instant::START, LinkEvent::Room { link, bytes: ROOM }, &mut rng);
    let Some(Transmit::Message { message, .. }) = relay.sent.pop_front() else { panic!("no HELLO") };
    relay.handle(Instant::START, LinkEvent::Message { link, lane: Lane::FIRST, message }, &mut rng);
    assert!(relay.sent.contains_close() && relay.open().is_none());
}

#[test]
fn a_channel_without_a_common_version_closes() {
    let mut relay = Node::relay(2);
    let mut rng = ChaCha20Rng::seed_from_u64(1);
    let link = LinkId(1);
    relay.handle(Instant::START, LinkEvent::Opened { link, opened: opened(None, 2, 1) }, &mut rng);
    let hello =
        hello::ChannelHello { versions: vec![7], capabilities: 0, identity: None, nonce: [1; 32], observed: None };
    let message = hello.encode().into();
    relay.handle(Instant::START, LinkEvent::Message { link, lane: Lane::FIRST, message }, &mut rng);
    assert!(relay.sent.contains_close());
}

#[test]
fn cells_that_overtake_the_handshake_are_kept_up_to_a_cap() {
    let (relay, mut rng) = (Node::relay(2), ChaCha20Rng::seed_from_u64(1));
    let mut pair = Pair::new(Node::relay(1), relay);
    pair.link(1, key(2).id());
    let early = circuit(0x8000_0001);
    let cell = Cell::new(early, Command::Create, CellBody::from([1; BODY_LEN]));
    let message = Slots::from_iter([cell.encode()]);
    let event = LinkEvent::Message { link: LinkId(1), lane: lane_of(early, LANES), message };
    pair.b.handle(pair.now, event.clone(), &mut rng);
    assert!(pair.b.events.is_empty());
    pair.settle();
    assert_eq!(pair.b.cells().len(), 1);

    let mut relay = Node::relay(3);
    relay.handle(pair.now, LinkEvent::Opened { link: LinkId(1), opened: opened(None, 2, 1) }, &mut rng);
    for _ in 0..128 {
        relay.handle(pair.now, event.clone(), &mut rng);
    }
    assert!(relay.sent.is_empty());
    relay.handle(pair.now, event, &mut rng);
    assert!(relay.sent.contains_close());
}

#[test]
fn identifiers_of_the_dialler_are_in_the_upper_half_and_others_in_the_lower() {
    let (mut pair, channel) = client_and_relay();
    for _ in 0..50 {
        assert!(pair.a.channels.allocate_circuit(channel, &mut pair.rng).unwrap().is_in_upper_half());
        assert!(!pair.b.channels.allocate_circuit(channel, &mut pair.rng).unwrap().is_in_upper_half());
    }
}
