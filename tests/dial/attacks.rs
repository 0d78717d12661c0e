//! Floods and forgeries: limits on the state, the answers and the damage that unverified peers cause.

use std::{
    net::SocketAddr,
    time::{Duration, Instant as StdInstant},
};

use umbel::{
    base::{Instant, Lane, LinkEvent, Transmit},
    transport::{
        Transport,
        native::{Endpoint, EndpointConfig, Port, PortUse, SocketRoute},
    },
};

use super::{
    virtual_time::{CLIENT, RELAY, linked},
    world::{Faults, SplitMix64, client_config, relay_config, target},
};

/// A single listening or dialling endpoint.
fn endpoint(config: EndpointConfig, purpose: PortUse) -> Endpoint {
    let mut endpoint = Endpoint::new(config, StdInstant::now()).unwrap();
    endpoint.set_ports(&[Port { id: 0, purpose, ipv6: false }], 64);
    endpoint
}

/// A listening endpoint.
pub(crate) fn listening_endpoint() -> Endpoint {
    endpoint(relay_config(), PortUse::Listen)
}

/// Polls all datagrams that an endpoint has to send.
fn take_datagrams(endpoint: &mut Endpoint, now: Instant) -> Vec<Vec<u8>> {
    let mut sent = Vec::new();
    while let Some(batch) = endpoint.poll_datagrams(now) {
        sent.extend(batch.bytes.chunks(batch.segment).map(<[u8]>::to_vec));
    }
    sent
}

/// The address of attacker `number`.
fn source(number: u64) -> SocketAddr {
    let [_, a, b, c, port @ ..] = (number << 16 | 9).to_be_bytes();
    SocketAddr::from(([203, a, b, c], u16::from_be_bytes([port[2], port[3]]).max(1)))
}

/// A client that has started to dial `relay`, and its first ClientHello.
pub(crate) fn start_dial(relay: &Endpoint) -> (Endpoint, Vec<u8>) {
    let mut client = endpoint(client_config(), PortUse::Dial);
    client.handle_transmit(Instant::START, Transmit::Dial(target(relay, ([192, 0, 2, 1], 4443).into())));
    let hello = take_datagrams(&mut client, Instant::START).remove(0);
    (client, hello)
}

/// Passes a datagram to the relay and returns the answers. Asserts that the answers have no more bytes than the
/// datagram.
fn deliver(relay: &mut Endpoint, now: Instant, remote: SocketAddr, datagram: &[u8]) -> Vec<Vec<u8>> {
    relay.handle_datagram(now, SocketRoute { port: 0, remote }, &mut datagram.to_vec());
    let answers = take_datagrams(relay, now);
    let bytes: usize = answers.iter().map(Vec::len).sum();
    assert!(bytes <= datagram.len(), "{bytes} bytes for {} of an unverified peer", datagram.len());
    answers
}

#[test]
fn a_flood_of_garbage_creates_no_state_and_gets_no_answer() {
    let (mut relay, mut rng) = (listening_endpoint(), SplitMix64(1));
    for number in 0..50_000 {
        let mut datagram: Vec<u8> = (0..rng.next() % 1_400).map(|_| rng.next() as u8).collect();
        // The first byte varies. Half of the longer datagrams have the form of DTLS handshake records.
        if let Some(first) = datagram.first_mut() {
            *first = number as u8;
        }
        if datagram.len() > 60 && number % 2 == 0 {
            let record = (datagram.len() as u16 - 13).to_be_bytes();
            datagram[..13].copy_from_slice(&[22, 0xfe, 0xfd, 0, 0, 0, 0, 0, 0, 0, 0, record[0], record[1]]);
            datagram[13] = 1;
        }
        assert!(deliver(&mut relay, Instant::START, source(number % 100), &datagram).is_empty());
    }
    assert_eq!((relay.counts().links, relay.counts().half_open), (0, 0));
    assert!(relay.poll_link_event().is_none() && relay.poll_timeout().is_none());
}

#[test]
fn a_flood_of_spoofed_hellos_creates_no_state_and_no_amplification() {
    let mut relay = listening_endpoint();
    let (_, hello) = start_dial(&relay);
    for number in 0..50_000u64 {
        let mut hello = hello.clone();
        hello[27..35].copy_from_slice(&number.to_be_bytes()); // the client random
        let answers = deliver(&mut relay, Instant::START, source(number), &hello);
        assert_eq!(answers.len(), 1);
        // A forged cookie.
        let mut second = hello.clone();
        let at = 60;
        second.splice(at..=at, [32].into_iter().chain([number as u8; 32]));
        for length in [11, 15, 23] {
            let old = u16::from_be_bytes([second[length], second[length + 1]]);
            second[length..length + 2].copy_from_slice(&(old + 32).to_be_bytes());
        }
        assert!(deliver(&mut relay, Instant::START, source(number), &second).is_empty());
    }
    let counts = relay.counts();
    assert_eq!((counts.links, counts.half_open), (0, 0));
    assert_eq!((counts.hellos_answered, counts.cookies_refused), (50_000, 50_000));
    assert!(relay.poll_timeout().is_none());
}

/// The datagrams of a hello with the relay's cookie, from a new dial at `remote`.
pub(crate) fn hello_with_cookie(relay: &mut Endpoint, now: Instant, remote: SocketAddr) -> Vec<Vec<u8>> {
    let (mut client, hello) = start_dial(relay);
    let mut answers = deliver(relay, now, remote, &hello);
    let back = SocketRoute { port: 0, remote: ([192, 0, 2, 1], 4443).into() };
    client.handle_datagram(Instant::START, back, &mut answers[0]);
    take_datagrams(&mut client, Instant::START)
}

/// Leaves a handshake from `remote` half-open: the client returns the cookie and then sends nothing more.
pub(crate) fn half_open(relay: &mut Endpoint, now: Instant, remote: SocketAddr) {
    for mut datagram in hello_with_cookie(relay, now, remote) {
        relay.handle_datagram(now, SocketRoute { port: 0, remote }, &mut datagram);
    }
    take_datagrams(relay, now);
}

#[test]
fn half_open_links_are_capped_for_each_source_and_time_out() {
    let mut relay = listening_endpoint();
    let mut now = Instant::START;
    for port in 1..=100 {
        now = now.after(Duration::from_millis(2));
        half_open(&mut relay, now, SocketAddr::from(([203, 0, 113, 1], port)));
    }
    assert_eq!(relay.counts().half_open, 32);
    assert_eq!(relay.counts().over_caps, 68);
    half_open(&mut relay, now, SocketAddr::from(([203, 0, 113, 2], 1)));
    assert_eq!(relay.counts().half_open, 33);

    let mut later = now;
    while let Some(next) = relay.poll_timeout() {
        later = later.max(next);
        assert!(later.since(now) < Duration::from_secs(11));
        relay.handle_timeout(later);
        take_datagrams(&mut relay, later);
    }
    assert_eq!((relay.counts().links, relay.counts().half_open), (0, 0));
    assert!(relay.poll_link_event().is_none(), "the core received no event");
}

#[test]
fn repeated_hellos_with_one_cookie_create_one_link() {
    let mut relay = listening_endpoint();
    let remote = source(1);
    let second = hello_with_cookie(&mut relay, Instant::START, remote);
    for _ in 0..100 {
        for datagram in &second {
            relay.handle_datagram(Instant::START, SocketRoute { port: 0, remote }, &mut datagram.clone());
        }
    }
    // A peer can cause the bytes of one flight and of a few retransmissions.
    let bytes: usize = take_datagrams(&mut relay, Instant::START).iter().map(Vec::len).sum();
    assert!(bytes < 20_000, "{bytes}");
    assert_eq!(relay.counts().links, 1);
    // From another address the cookie is invalid.
    for datagram in &second {
        assert!(deliver(&mut relay, Instant::START, source(2), datagram).is_empty());
    }
    assert_eq!(relay.counts().links, 1);
}

#[test]
fn forged_datagrams_from_the_peers_address_close_no_open_link() {
    let (mut world, at_client, _) = linked(20, Faults::default());
    let (to_relay, to_client) = (world.nodes[CLIENT].dial_address(), world.nodes[RELAY].address());
    let (_, hello) = start_dial(&world.nodes[RELAY].endpoint);
    let mut rng = SplitMix64(21);
    for number in 0..20_000u64 {
        let mut forged = match number % 5 {
            // Application data, an alert or a handshake message, sealed without a valid key.
            0 => vec![23, 0xfe, 0xfd, 0, 1, 0, 0, 0, 0, 1, 0, 0, 64],
            1 => vec![21, 0xfe, 0xfd, 0, 1, 0, 0, 0, 0, 1, 0, 0, 26],
            // An unencrypted fatal alert.
            2 => vec![21, 0xfe, 0xfd, 0, 0, 0, 0, 0, 0, 1, 0, 0, 2, 2, 40],
            // A ClientHello, as after a restart, but without a cookie.
            3 => hello.clone(),
            _ => vec![22, 0xfe, 0xfd, 0, 0, 0, 0, 0, 0, 1, 0, 0, 64],
        };
        if number % 5 != 2 && number % 5 != 3 {
            forged.extend((0..64).map(|_| rng.next() as u8));
        }
        world.inject(RELAY, 0, to_relay, &forged);
        world.inject(CLIENT, 1, to_client, &forged);
    }
    let message = b"still there"[..].into();
    world.transmit(CLIENT, Transmit::Message { link: at_client, lane: Lane::FIRST, message });
    world.run_until(Duration::from_secs(5), "the message has arrived", |world| {
        let events = &world.nodes[RELAY].events;
        events
            .iter()
            .any(|event| matches!(event, LinkEvent::Message { message, .. } if message.to_vec() == b"still there"))
    });
    for node in &world.nodes {
        assert!(!node.events.iter().any(|event| matches!(event, LinkEvent::Closed { .. })));
        assert_eq!(node.endpoint.counts().links, 1);
    }
}
