//! Receive windows of links, in virtual time: the bytes that a sender has in flight.

use std::time::Duration;

use umbel::base::{Instant, Lane, LinkEvent, LinkId, Slots, Transmit};

use super::{
    virtual_time::{CLIENT, RELAY, opened},
    world::{World, client_config, relay_config},
};

/// One-way delay.
const DELAY: Duration = Duration::from_millis(50);

/// The client sends as much as it may for `seconds`. Returns the most bytes that arrive at the relay within a round
/// trip.
fn flood(world: &mut World, link: LinkId, seconds: u64) -> usize {
    let (mut room, mut number) = (0_usize, 0_u8);
    let mut arrivals: Vec<(Instant, usize)> = Vec::new();
    let end = world.now.after(Duration::from_secs(seconds));
    world.transmit(CLIENT, Transmit::Message { link, lane: Lane::FIRST, message: vec![1].into() });
    world.run_until(Duration::from_secs(seconds + 1), "the end of the flood", |world| {
        let now = world.now;
        for event in core::mem::take(&mut world.nodes[RELAY].events) {
            match event {
                LinkEvent::Message { message, .. } => arrivals.push((now, message.len())),
                LinkEvent::Room { .. } => {}
                other => panic!("{other:?}"),
            }
        }
        for event in core::mem::take(&mut world.nodes[CLIENT].events) {
            if let LinkEvent::Room { bytes, .. } = event {
                room = bytes;
            }
        }
        while room > 0 {
            let message = Slots::from(vec![0; 17 << 10]);
            room = room.saturating_sub(message.len());
            number = (number + 1) % 64;
            world.transmit(CLIENT, Transmit::Message { link, lane: Lane::new(number).unwrap(), message });
        }
        now >= end
    });
    let (mut first, mut sum, mut most) = (0, 0, 0);
    for (at, bytes) in &arrivals {
        sum += bytes;
        while at.since(arrivals[first].0) >= DELAY * 2 {
            sum -= arrivals[first].1;
            first += 1;
        }
        most = most.max(sum);
    }
    most
}

#[test]
fn the_window_of_an_accepted_link_exceeds_two_mib_once_the_peer_is_a_listed_relay() {
    const WINDOW: usize = 5 << 20;
    let mut world = World::new(500);
    let mut config = relay_config();
    config.receive_window = WINDOW;
    let (relay, client) = (world.add(config), world.add(client_config()));
    world.delay = DELAY;
    world.dial(client, relay);
    world.run_until(Duration::from_secs(2), "both ends open", |world| {
        world.nodes.iter().all(|node| opened(&node.events).is_some())
    });
    let [at_client, at_relay] = [client, relay].map(|node| opened(&world.nodes[node].events).unwrap());
    world.nodes.iter_mut().for_each(|node| node.events.clear());
    let before = flood(&mut world, at_client, 2);
    assert!(((3 << 19)..=(2 << 20) + (64 << 10)).contains(&before), "{before} bytes in flight from a stranger");
    world.transmit(relay, Transmit::PeerListed(at_relay));
    let after = flood(&mut world, at_client, 2);
    assert!(after > 3 << 20 && after <= WINDOW + (64 << 10), "{after} bytes in flight from a listed relay");
}
