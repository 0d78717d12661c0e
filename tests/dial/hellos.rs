//! Floods of ClientHellos with valid cookies, in virtual time: handshakes have a rate, and dials of others succeed.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use umbel::base::{Instant, Rate};

use super::{
    attacks::hello_with_cookie,
    virtual_time::opened,
    world::{World, client_config, relay_config},
};

const RELAY: usize = 0;
/// Lower than the defaults, so that an attack needs few handshakes.
const RATE: Rate = Rate { per_second: 100, burst: 4 };
const RATE_OF_SOURCE: Rate = Rate { per_second: 20, burst: 40 };

fn world() -> World {
    let mut config = relay_config();
    (config.caps.handshakes, config.caps.handshakes_of_source) = (RATE, RATE_OF_SOURCE);
    let mut world = World::new(1);
    assert_eq!(world.add(config), RELAY);
    world
}

/// Hellos of an attacker, each with the address and port that received the cookie.
struct Flood {
    hellos: Vec<(SocketAddr, Vec<u8>)>,
    sent: usize,
}

impl Flood {
    /// Two hellos with different randoms for each of `ports` ports of each address.
    fn new(world: &mut World, addresses: &[IpAddr], ports: u16) -> Self {
        let mut hellos = Vec::new();
        for _ in 0..2 {
            for port in 1..=ports {
                for address in addresses {
                    let remote = SocketAddr::from((*address, port));
                    let datagrams = hello_with_cookie(&mut world.nodes[RELAY].endpoint, world.now, remote);
                    hellos.extend(datagrams.into_iter().map(|datagram| (remote, datagram)));
                }
            }
        }
        Self { hellos, sent: 0 }
    }

    /// Sends hellos in a millisecond.
    fn send(&mut self, world: &mut World, count: usize) {
        for _ in 0..count {
            let (remote, hello) = &self.hellos[self.sent % self.hellos.len()];
            world.inject(RELAY, 0, *remote, hello);
            self.sent += 1;
        }
        world.run_for(Duration::from_millis(1));
    }
}

/// The number of DTLS handshakes that the relay has begun.
fn handshakes(world: &World) -> u64 {
    world.nodes[RELAY].endpoint.counts().handshakes
}

#[test]
fn alternate_hellos_of_one_port_cause_two_handshakes_a_second() {
    let mut world = world();
    let mut flood = Flood::new(&mut world, &[[198, 51, 100, 1].into()], 1);
    for _ in 0..2_950 {
        flood.send(&mut world, 8);
    }
    assert_eq!(handshakes(&world), 6);
}

#[test]
fn hellos_of_one_address_cause_handshakes_within_its_rate() {
    let mut world = world();
    let mut flood = Flood::new(&mut world, &[[198, 51, 100, 1].into()], 100);
    for _ in 0..1_000 {
        flood.send(&mut world, 20);
    }
    let handshakes = handshakes(&world);
    assert!(
        (RATE_OF_SOURCE.burst..=RATE_OF_SOURCE.burst + RATE_OF_SOURCE.per_second).contains(&handshakes),
        "{handshakes}"
    );
}

/// The addresses of honest clients, each in a network of its own.
fn other_networks() -> [IpAddr; 8] {
    core::array::from_fn(|number| [203, 0, u8::try_from(number).unwrap(), 1].into())
}

/// Floods a relay from these addresses. Asserts the rate of handshakes. Asserts that a dial of each of the `clients`
/// waits for at most `others` turns of other networks, or of other sources of its network.
fn flood(addresses: &[IpAddr], others: u32, clients: [IpAddr; 8]) {
    let mut world = world();
    let ports = u16::try_from(512 / addresses.len()).unwrap().clamp(1, 8);
    let mut flood = Flood::new(&mut world, addresses, ports);
    let start = world.now;
    (0..300).for_each(|_| flood.send(&mut world, 20));
    let turns = Duration::from_secs(1) / u32::try_from(RATE.per_second).unwrap() * (others + 1);
    // A dial takes five round trips of 10 ms, and a timer may fire a millisecond late.
    let limit = turns + Duration::from_millis(60);
    for address in clients {
        let client = world.add_at(client_config(), address);
        world.dial(client, RELAY);
        let dialled = world.now;
        while opened(&world.nodes[client].events).is_none() {
            flood.send(&mut world, 20);
            assert!(world.now.since(dialled) <= limit, "the dial of {address} takes longer than {limit:?}");
        }
    }
    let most = RATE.burst + RATE.per_second * (elapsed_millis(start, world.now)) / 1_000;
    assert!(handshakes(&world) <= most, "{} of {most}", handshakes(&world));
}

fn elapsed_millis(start: Instant, now: Instant) -> u64 {
    u64::try_from(now.since(start).as_millis()).unwrap() + 1
}

#[test]
fn dials_succeed_in_turn_while_sixteen_sources_flood_hellos() {
    flood(&(0..16).map(|number| [198, 51, number % 4, number / 4].into()).collect::<Vec<_>>(), 4, other_networks());
}

#[test]
fn dials_succeed_in_turn_while_a_48_floods_hellos() {
    let addresses: Vec<_> = (0..256).map(|subnet| Ipv6Addr::new(0x2001, 0xdb8, 1, subnet, 0, 0, 0, 1).into()).collect();
    flood(&addresses, 1, other_networks());
}

#[test]
fn dials_succeed_in_turn_while_sixty_four_networks_flood_hellos() {
    flood(&(0..64).map(|network| [198, 51, network, 1].into()).collect::<Vec<_>>(), 64, other_networks());
}

#[test]
fn dials_succeed_in_turn_while_sixteen_neighbours_in_the_same_24_flood_hellos() {
    let addresses: Vec<_> = (1..=16).map(|host| [198, 51, 100, host].into()).collect();
    flood(&addresses, 16, core::array::from_fn(|host| [198, 51, 100, 200 + u8::try_from(host).unwrap()].into()));
}
