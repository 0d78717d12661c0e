//! Caps on accepted links, against addresses that hold as many links as they can, in virtual time.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use umbel::base::{LinkEvent, Transmit};

use super::{
    attacks::half_open,
    virtual_time::opened,
    world::{World, client_config, relay_config},
};

const RELAY: usize = 0;

/// Sixteen sources in four networks, each in a block of its own.
fn sixteen_sources() -> Vec<IpAddr> {
    (0..16).map(|number| [198, 51 + number % 4, 0, number / 4].into()).collect()
}

/// Sources in one network.
fn one_48(sources: u16) -> Vec<IpAddr> {
    (0..sources).map(|subnet| Ipv6Addr::new(0x2001, 0xdb8, 1, subnet, 0, 0, 0, 1).into()).collect()
}

/// A relay with small caps, in whose network other nodes are.
fn world() -> World {
    let mut config = relay_config();
    (config.caps.links, config.caps.half_open) = (64, 64);
    let mut world = World::new(1);
    assert_eq!(world.add(config), RELAY);
    world
}

/// Adds an honest client of its own network, and opens its link to the relay.
fn add_honest(world: &mut World, number: u8) -> usize {
    let client = world.add_at(client_config(), [203, 0, number, 1].into());
    world.dial(client, RELAY);
    client
}

/// Whether a node's link has opened and has not closed.
fn stands(world: &World, node: usize) -> bool {
    let events = &world.nodes[node].events;
    opened(events).is_some() && !events.iter().any(|event| matches!(event, LinkEvent::Closed { .. }))
}

/// Each address opens links as often as it can, and opens another one for each link that ends. Asserts that honest links
/// stand, and that other networks open links.
fn hold_all_links(addresses: &[IpAddr], links: usize) {
    let mut world = world();
    let mut honest: Vec<_> = (0..3).map(|number| add_honest(&mut world, number)).collect();
    world.run_until(Duration::from_secs(1), "the first honest links", |world| {
        honest.iter().all(|client| stands(world, *client))
    });
    let mut attackers = Vec::new();
    for address in addresses.iter().cycle().take(addresses.len() * links) {
        let attacker = world.add_at(client_config(), *address);
        world.dial(attacker, RELAY);
        attackers.push(attacker);
        world.run_for(Duration::from_millis(30));
    }
    for number in 10..20 {
        for attacker in &attackers {
            let events = &mut world.nodes[*attacker].events;
            if matches!(events.last(), Some(LinkEvent::Closed { .. } | LinkEvent::DialFailed { .. })) {
                events.clear();
                world.dial(*attacker, RELAY);
            }
        }
        let client = add_honest(&mut world, number);
        world.run_until(Duration::from_secs(1), "an honest link", |world| stands(world, client));
        honest.push(client);
        assert!(honest.iter().all(|client| stands(&world, *client)), "after {} honest links", honest.len());
        assert!(world.nodes[RELAY].endpoint.counts().links <= 64);
    }
    let counts = world.nodes[RELAY].endpoint.counts();
    assert!(counts.over_caps > 0 || counts.evicted > 0, "no cap is reached");
}

#[test]
fn honest_links_stand_and_others_open_while_sixteen_sources_hold_all_they_can() {
    hold_all_links(&sixteen_sources(), 4);
}

#[test]
fn honest_links_stand_and_others_open_while_a_48_holds_all_it_can() {
    hold_all_links(&one_48(32), 1);
}

#[test]
fn honest_links_stand_and_others_open_while_the_networks_of_a_32_hold_all_they_can() {
    let networks = (0..100).map(|network| Ipv6Addr::new(0x2001, 0xdb8, network, 0, 0, 0, 0, 1).into());
    hold_all_links(&networks.collect::<Vec<_>>(), 1);
}

#[test]
fn strangers_at_the_address_of_a_listed_relay_lose_their_links_before_it() {
    let mut world = world();
    let address: IpAddr = [198, 51, 100, 1].into();
    let open = |world: &mut World, address| {
        world.nodes[RELAY].events.clear();
        let client = world.add_at(client_config(), address);
        world.dial(client, RELAY);
        world.run_until(Duration::from_secs(1), "a link", |world| opened(&world.nodes[RELAY].events).is_some());
        (client, opened(&world.nodes[RELAY].events).unwrap())
    };
    let strangers = [(); 3].map(|()| open(&mut world, address).0);
    // The youngest link of the source.
    let (listed, at_relay) = open(&mut world, address);
    world.transmit(RELAY, Transmit::PeerListed(at_relay));
    for block in 0..60 {
        open(&mut world, [203, block, 0, 1].into());
    }
    assert_eq!(world.nodes[RELAY].endpoint.counts().links, 64);
    for block in 60..62 {
        open(&mut world, [203, block, 0, 1].into());
    }
    world.run_for(Duration::from_secs(1));
    let standing: Vec<_> = strangers.iter().map(|client| stands(&world, *client)).collect();
    assert!(stands(&world, listed) && standing == [true, false, false], "{standing:?}");
}

/// Each address leaves as many links half-open as it can. Asserts that clients of other networks open their links.
fn hold_all_half_open_links(addresses: &[IpAddr]) {
    let mut world = world();
    let mut attack = (1..).zip(addresses.iter().cycle().copied());
    let mut leave_half_open = |world: &mut World| {
        let (number, address) = attack.next().unwrap();
        half_open(&mut world.nodes[RELAY].endpoint, world.now, SocketAddr::from((address, 1_000 + number)));
    };
    for _ in 0..256 {
        leave_half_open(&mut world);
        world.run_for(Duration::from_millis(5));
    }
    assert!(world.nodes[RELAY].endpoint.counts().half_open >= 16, "the attacker holds its share");
    for number in 0..8 {
        let client = add_honest(&mut world, number);
        world.run_until(Duration::from_secs(1), "an honest link", |world| {
            // The attack goes on during the handshake.
            leave_half_open(world);
            stands(world, client)
        });
        assert!(world.nodes[RELAY].endpoint.counts().half_open <= 64);
    }
}

#[test]
fn honest_links_open_while_sixteen_sources_leave_all_they_can_half_open() {
    hold_all_half_open_links(&sixteen_sources());
}

#[test]
fn honest_links_open_while_a_48_leaves_all_it_can_half_open() {
    hold_all_half_open_links(&one_48(256));
}
