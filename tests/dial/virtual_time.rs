//! Dials and transfers over a faulty network, in virtual time.

use std::{
    ops::Range,
    time::{Duration, Instant as StdInstant},
};

use umbel::{
    base::{DialError, Lane, LinkClose, LinkEvent, LinkId, Slots, Transmit},
    transport::native::{CipherSuite, Endpoint, EndpointError, KeyLimits},
};

use super::world::{Faults, World, client_config, relay_config, target};

/// The link that opened at a node, if one has.
pub(crate) fn opened(events: &[LinkEvent]) -> Option<LinkId> {
    events.iter().find_map(|event| match event {
        LinkEvent::Opened { link, .. } => Some(*link),
        _ => None,
    })
}

fn lane(value: u8) -> Lane {
    Lane::new(value).unwrap()
}

/// A client, a relay, and a link between them.
pub(crate) fn linked(seed: u64, faults: Faults) -> (World, LinkId, LinkId) {
    linked_with(seed, faults, &CipherSuite::ALL, KeyLimits::default())
}

/// [`linked`], with these suites and limits at both ends.
fn linked_with(seed: u64, faults: Faults, suites: &[CipherSuite], key_limits: KeyLimits) -> (World, LinkId, LinkId) {
    let linked = try_linked(seed, faults, suites, key_limits);
    linked.unwrap_or_else(|error| panic!("the dial failed: {error} (seed {seed})"))
}

/// [`linked_with`], but returns the error of a failed dial.
fn try_linked(
    seed: u64,
    faults: Faults,
    suites: &[CipherSuite],
    key_limits: KeyLimits,
) -> Result<(World, LinkId, LinkId), DialError> {
    let mut world = World::new(seed);
    let (mut relay, mut client) = (relay_config(), client_config());
    for config in [&mut relay, &mut client] {
        config.cipher_suites = suites.to_vec();
        config.key_limits = key_limits;
    }
    if faults.lost > 0.0 {
        // The loss of consecutive keep-alives would end the link. Another test covers that end.
        relay.caps.silence_timeout = Duration::from_secs(300);
        client.caps.silence_timeout = Duration::from_secs(300);
    }
    let (relay, client) = (world.add(relay), world.add(client));
    world.faults = faults;
    world.dial(client, relay);
    world.run_until(Duration::from_secs(12), &format!("both ends open (seed {seed})"), |world| {
        world.nodes.iter().all(|node| opened(&node.events).is_some())
            || world.nodes[client].events.iter().any(|event| matches!(event, LinkEvent::DialFailed { .. }))
    });
    let failed = world.nodes[client].events.iter().find_map(|event| match event {
        LinkEvent::DialFailed { error, .. } => Some(*error),
        _ => None,
    });
    if let Some(error) = failed {
        return Err(error);
    }
    let [at_client, at_relay] = [client, relay].map(|node| opened(&world.nodes[node].events).unwrap());
    Ok((world, at_client, at_relay))
}

pub(crate) const RELAY: usize = 0;
pub(crate) const CLIENT: usize = 1;

#[test]
fn a_dial_opens_in_five_round_trips_with_both_certificates_known() {
    let (world, ..) = linked(1, Faults::default());
    assert!(world.now.as_nanos() <= 50_000_000, "{:?} at 10 ms a round trip", world.now);
    let opened = |node: usize| {
        world.nodes[node].events.iter().find_map(|event| match event {
            LinkEvent::Opened { opened, .. } => Some(opened.clone()),
            _ => None,
        })
    };
    let (client, relay) = (opened(CLIENT).unwrap(), opened(RELAY).unwrap());
    assert_eq!(client.peer_certificate, world.nodes[RELAY].endpoint.fingerprint());
    assert_eq!(client.peer_certificate, relay.local_certificate);
    assert_eq!(client.local_certificate, relay.peer_certificate);
    assert_ne!(client.local_certificate, world.nodes[CLIENT].endpoint.fingerprint(), "a fresh certificate");
    assert!(client.dialled.is_some() && relay.dialled.is_none());
    let counts = world.nodes[RELAY].endpoint.counts();
    assert_eq!((counts.links, counts.half_open), (1, 0));
}

#[test]
fn a_wrong_fingerprint_is_refused_immediately() {
    let mut world = World::new(2);
    let (relay, client) = (world.add(relay_config()), world.add(client_config()));
    let mut target = target(&world.nodes[relay].endpoint, world.nodes[relay].address());
    target.fingerprint[0] ^= 1;
    world.transmit(client, Transmit::Dial(target));
    world.run_until(Duration::from_millis(100), "the dial has failed", |world| !world.nodes[client].events.is_empty());
    let event = &world.nodes[client].events[0];
    assert!(matches!(event, LinkEvent::DialFailed { error: DialError::WrongFingerprint, .. }), "{event:?}");
    assert!(opened(&world.nodes[relay].events).is_none());
}

#[test]
fn a_dial_without_an_answer_times_out() {
    let mut world = World::new(3);
    let (relay, client) = (world.add(relay_config()), world.add(client_config()));
    let mut target = target(&world.nodes[relay].endpoint, world.nodes[relay].address());
    target.addresses = vec!["10.9.9.9:1".parse().unwrap()];
    world.transmit(client, Transmit::Dial(target));
    world.run_until(Duration::from_secs(11), "the dial has failed", |world| !world.nodes[client].events.is_empty());
    let event = &world.nodes[client].events[0];
    assert!(matches!(event, LinkEvent::DialFailed { error: DialError::TimedOut, .. }), "{event:?}");
    assert_eq!(world.nodes[client].endpoint.counts().links, 0);
}

#[test]
fn a_dial_continues_at_the_second_address_if_the_first_is_unreachable() {
    let mut world = World::new(4);
    let (relay, client) = (world.add(relay_config()), world.add(client_config()));
    let mut target = target(&world.nodes[relay].endpoint, world.nodes[relay].address());
    target.addresses.insert(0, "10.9.9.9:1".parse().unwrap());
    world.transmit(client, Transmit::Dial(target));
    world.run_until(Duration::from_secs(3), "open", |world| opened(&world.nodes[client].events).is_some());
}

#[test]
fn two_relays_that_dial_each_other_simultaneously_get_two_links() {
    let mut world = World::new(5);
    let (one, two) = (world.add(relay_config()), world.add(relay_config()));
    world.dial(one, two);
    world.dial(two, one);
    world.run_until(Duration::from_secs(1), "two links", |world| {
        world
            .nodes
            .iter()
            .all(|node| node.events.iter().filter(|event| matches!(event, LinkEvent::Opened { .. })).count() == 2)
    });
}

#[test]
fn a_silent_link_is_closed_at_both_ends() {
    let (mut world, ..) = linked(6, Faults::default());
    // An idle link that answers probes stays open.
    world.run_for(Duration::from_secs(120));
    assert_eq!(world.nodes[CLIENT].endpoint.counts().links, 1);
    world.faults.lost = 1.0;
    world.run_for(Duration::from_secs(31));
    for node in &world.nodes {
        assert!(node.events.iter().any(|event| matches!(event, LinkEvent::Closed { reason: LinkClose::TimedOut, .. })));
        assert_eq!(node.endpoint.counts().links, 0);
    }
}

#[test]
fn a_closed_link_delivers_its_queued_messages_and_notifies_the_peer() {
    let (mut world, at_client, _) = linked(7, Faults { lost: 0.01, ..Faults::default() });
    for _ in 0..16 {
        let message = Slots::from(vec![1; 17 << 10]);
        world.transmit(CLIENT, Transmit::Message { link: at_client, lane: lane(1), message });
    }
    world.transmit(CLIENT, Transmit::Close(at_client));
    world.run_for(Duration::from_secs(6));
    let events = &world.nodes[RELAY].events;
    let messages = events.iter().filter(|event| matches!(event, LinkEvent::Message { .. })).count();
    assert_eq!(messages, 16);
    assert!(matches!(events.last(), Some(LinkEvent::Closed { reason: LinkClose::ByPeer, .. })), "{:?}", events.last());
    assert_eq!(world.nodes[CLIENT].endpoint.counts().links, 0);
    assert_eq!(world.nodes[RELAY].endpoint.counts(), {
        let mut counts = world.nodes[RELAY].endpoint.counts();
        (counts.links, counts.half_open) = (0, 0);
        counts
    });
}

#[test]
fn a_restarted_dialler_at_the_same_address_replaces_its_link() {
    let (mut world, ..) = linked(8, Faults::default());
    // The client loses its state, but keeps its address.
    world.nodes[CLIENT].endpoint = {
        let mut fresh = World::new(0);
        fresh.start = world.start;
        fresh.add(client_config());
        fresh.nodes.remove(0).endpoint
    };
    world.nodes[CLIENT].events.clear();
    world.dial(CLIENT, RELAY);
    world.run_until(Duration::from_secs(1), "open again", |world| opened(&world.nodes[CLIENT].events).is_some());
    assert_eq!(world.nodes[RELAY].endpoint.counts().links, 1);
    assert!(world.nodes[RELAY].events.iter().any(|event| matches!(event, LinkEvent::Closed { .. })));
}

fn opened_count(events: &[LinkEvent]) -> usize {
    events.iter().filter(|event| matches!(event, LinkEvent::Opened { .. })).count()
}

#[test]
fn a_relay_can_be_dialled_while_the_old_link_still_closes() {
    let (mut world, at_client, _) = linked(9, Faults::default());
    for _ in 0..16 {
        let message = Slots::from(vec![1; 17 << 10]);
        world.transmit(CLIENT, Transmit::Message { link: at_client, lane: lane(0), message });
    }
    world.transmit(CLIENT, Transmit::Close(at_client));
    assert_eq!(world.nodes[CLIENT].endpoint.counts().links, 1, "the link still delivers");
    world.dial(CLIENT, RELAY);
    world.run_until(Duration::from_secs(1), "open again", |world| {
        world.nodes.iter().all(|node| opened_count(&node.events) == 2)
    });
    assert!(world.nodes.iter().all(|node| node.endpoint.counts().links == 1));
}

#[test]
fn a_dial_waits_for_its_route_until_its_timeout() {
    let (mut world, at_client, _) = linked(10, Faults::default());
    world.dial(CLIENT, RELAY);
    world.run_for(Duration::from_secs(9));
    let events = &world.nodes[CLIENT].events;
    let other = |event: &&LinkEvent| !matches!(event, LinkEvent::Room { .. });
    assert_eq!(events.iter().filter(other).count(), 1, "open, and no failure: {events:?}");
    world.transmit(CLIENT, Transmit::Close(at_client));
    world.run_until(Duration::from_secs(1), "open again", |world| opened_count(&world.nodes[CLIENT].events) == 2);

    world.nodes[CLIENT].events.clear();
    world.dial(CLIENT, RELAY);
    world.run_for(Duration::from_millis(10_100));
    let failed = |event: &LinkEvent| matches!(event, LinkEvent::DialFailed { error: DialError::TimedOut, .. });
    assert!(world.nodes[CLIENT].events.iter().any(failed), "{:?}", world.nodes[CLIENT].events);
}

/// Sends numbered messages in both directions over all lanes, as room allows. All must arrive, complete and in order.
fn transfer(mut world: World, links: [LinkId; 2], count: u32, limit: Duration, seed: u64) {
    let ends = [CLIENT, RELAY];
    let mut sent = [0u32; 2];
    let mut room = [0usize; 2];
    let mut received = [[0u32; 4]; 2];
    let message = |number: u32| {
        let mut bytes = vec![number as u8; 1 + (number as usize * 37) % (17 << 10)];
        bytes.splice(0..0, number.to_be_bytes());
        Slots::from(bytes)
    };
    world.run_until(limit, &format!("all messages have arrived (seed {seed})"), |world| {
        for (side, node) in ends.into_iter().enumerate() {
            for event in core::mem::take(&mut world.nodes[node].events) {
                match event {
                    LinkEvent::Room { bytes, .. } => room[side] = bytes,
                    LinkEvent::Message { lane, message: arrived, .. } => {
                        let next = &mut received[side][usize::from(lane.value())];
                        let number = *next * 4 + u32::from(lane.value());
                        assert_eq!(arrived, message(number), "altered or out of order (seed {seed})");
                        *next += 1;
                    }
                    LinkEvent::Opened { .. } => {}
                    other => panic!("{other:?} (seed {seed})"),
                }
            }
            while sent[side] < count && room[side] > 0 {
                let bytes = message(sent[side]);
                room[side] = room[side].saturating_sub(bytes.len());
                let lane = lane((sent[side] % 4) as u8);
                world.transmit(node, Transmit::Message { link: links[side], lane, message: bytes });
                sent[side] += 1;
            }
        }
        received.iter().all(|lanes| lanes.iter().sum::<u32>() == count)
    });
    eprintln!("took {:?} of virtual time", world.now);
}

#[test]
fn messages_of_many_sizes_arrive_in_order_on_a_network_without_faults() {
    let (world, client, relay) = linked(9, Faults::default());
    transfer(world, [client, relay], 1_000, Duration::from_secs(60), 9);
}

/// Transfers `messages` for each seed within `limit`, over a network with each fault at this rate.
fn transfer_with_faults(seeds: Range<u64>, rate: f64, messages: u32, limit: Duration) {
    for seed in seeds {
        let faults = Faults { lost: rate, duplicated: rate, reordered: rate, forged: rate };
        let (world, client, relay) = linked(seed, faults);
        transfer(world, [client, relay], messages, limit, seed);
    }
}

#[test]
fn messages_arrive_in_order_with_one_percent_of_each_fault() {
    transfer_with_faults(100..104, 0.01, 400, Duration::from_secs(300));
}

#[test]
fn messages_arrive_in_order_with_five_percent_of_each_fault() {
    transfer_with_faults(200..204, 0.05, 200, Duration::from_secs(900));
}

#[test]
fn dials_open_in_time_with_five_percent_of_each_fault() {
    let faults = Faults { lost: 0.05, duplicated: 0.05, reordered: 0.05, forged: 0.05 };
    // One in 190 dials fails on such a network, and the dependencies use unseeded randomness.
    let fails = |seed: &u64| try_linked(*seed, faults, &CipherSuite::ALL, KeyLimits::default()).is_err();
    let failed: Vec<u64> = (300..340).filter(fails).collect();
    assert!(failed.len() <= 2, "seeds {failed:?}");
}

#[test]
fn messages_arrive_in_order_with_each_cipher_suite_and_two_percent_of_each_fault() {
    for (seed, suite) in (400..).zip(CipherSuite::ALL) {
        let faults = Faults { lost: 0.02, duplicated: 0.02, reordered: 0.02, forged: 0.02 };
        let (world, client, relay) = linked_with(seed, faults, &[suite], KeyLimits::default());
        transfer(world, [client, relay], 200, Duration::from_secs(300), seed);
    }
}

#[test]
fn ends_without_a_cipher_suite_in_common_get_no_link() {
    let mut world = World::new(410);
    let (mut relay, mut client) = (relay_config(), client_config());
    relay.cipher_suites = vec![CipherSuite::Aes128Gcm];
    client.cipher_suites = vec![CipherSuite::ChaCha20Poly1305];
    let (relay, client) = (world.add(relay), world.add(client));
    world.dial(client, relay);
    world.run_until(Duration::from_secs(11), "the dial has failed", |world| !world.nodes[client].events.is_empty());
    let event = &world.nodes[client].events[0];
    assert!(matches!(event, LinkEvent::DialFailed { .. }), "{event:?}");
}

#[test]
fn key_limits_that_retire_a_link_immediately_or_after_its_end_are_rejected() {
    let limits =
        [(0, 600, 9, false), (585, 600, 9, false), (1, 16, 9, false), (584, 600, 1, false), (584, 600, 2, true)];
    for (retire, end, forged, valid) in limits {
        let mut config = client_config();
        config.key_limits = KeyLimits { retire, end, forged };
        match Endpoint::new(config, StdInstant::now()) {
            Ok(_) => assert!(valid, "{retire}, {end}, {forged}"),
            Err(EndpointError::KeyLimits(rejected)) => {
                assert!(!valid && rejected.retire == retire, "{retire}, {end}, {forged}")
            }
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn a_link_with_aes_retires_once_at_both_ends_at_its_key_limit_and_then_ends() {
    let key_limits = KeyLimits { retire: 200, end: 600, ..KeyLimits::default() };
    for suite in CipherSuite::ALL {
        let (mut world, at_client, _) = linked_with(420, Faults::default(), &[suite], key_limits);
        for _ in 0..80 {
            // 15 packets each.
            let message = Slots::from(vec![1; 17 << 10]);
            world.transmit(CLIENT, Transmit::Message { link: at_client, lane: lane(0), message });
            world.run_for(Duration::from_millis(200));
        }
        let count = |node: usize, wanted: fn(&LinkEvent) -> bool| {
            world.nodes[node].events.iter().filter(|event| wanted(event)).count()
        };
        let retired = [CLIENT, RELAY].map(|node| count(node, |event| matches!(event, LinkEvent::Retire { .. })));
        let ended = count(CLIENT, |event| matches!(event, LinkEvent::Closed { reason: LinkClose::KeyLimit, .. }));
        let closed = count(RELAY, |event| matches!(event, LinkEvent::Closed { .. }));
        match suite {
            CipherSuite::Aes128Gcm => assert_eq!((retired, ended, closed), ([1, 1], 1, 1)),
            CipherSuite::ChaCha20Poly1305 => assert_eq!((retired, ended, closed), ([0, 0], 0, 0)),
        }
    }
}

#[test]
fn a_relay_is_dialled_beside_a_retired_link_and_both_links_carry_messages() {
    let key_limits = KeyLimits { retire: 100, end: 100_000, ..KeyLimits::default() };
    let (mut world, old, _) = linked_with(430, Faults::default(), &[CipherSuite::Aes128Gcm], key_limits);
    for _ in 0..10 {
        let message = Slots::from(vec![1; 17 << 10]);
        world.transmit(CLIENT, Transmit::Message { link: old, lane: lane(0), message });
        world.run_for(Duration::from_millis(200));
    }
    assert!(world.nodes[CLIENT].events.iter().any(|event| matches!(event, LinkEvent::Retire { .. })));
    world.nodes.iter_mut().for_each(|node| node.events.clear());
    world.dial(CLIENT, RELAY);
    world.run_until(Duration::from_secs(1), "a second link", |world| {
        world.nodes.iter().all(|node| opened(&node.events).is_some())
    });
    let new = opened(&world.nodes[CLIENT].events).unwrap();
    for link in [old, new] {
        let message = b"still there"[..].into();
        world.transmit(CLIENT, Transmit::Message { link, lane: lane(1), message });
    }
    world.run_for(Duration::from_secs(1));
    let received = |event: &&LinkEvent| matches!(event, LinkEvent::Message { .. });
    assert_eq!(world.nodes[RELAY].events.iter().filter(received).count(), 2);
    assert!(world.nodes.iter().all(|node| node.endpoint.counts().links == 2));
}
