//! Tests of the simulated network with a machine that records messages.

use rand::CryptoRng;

#[cfg(target_arch = "wasm32")]
use wasm_bindgen_test::wasm_bindgen_test as test;

use super::*;
use crate::base::{Instant, Lane, LinkEvent, LinkId, LinkMachine, RelayId, Slots, Transmit};
use core::time::Duration;

/// Sends given messages, and records arrivals with their times.
#[derive(Default)]
struct Recorder {
    out: Vec<Transmit>,
    link: Option<LinkId>,
    received: Vec<(Instant, u8, Slots)>,
    closed: bool,
    failed: bool,
}

impl LinkMachine for Recorder {
    fn handle_link(&mut self, now: Instant, event: LinkEvent, _: &mut dyn CryptoRng) {
        match event {
            LinkEvent::Opened { link, .. } => self.link = Some(link),
            LinkEvent::Message { lane, message, .. } => self.received.push((now, lane.value(), message)),
            LinkEvent::Closed { .. } => self.closed = true,
            LinkEvent::DialFailed { .. } => self.failed = true,
            LinkEvent::Room { .. } | LinkEvent::Retire { .. } => {}
        }
    }

    fn handle_timeout(&mut self, _: Instant, _: &mut dyn CryptoRng) {}

    fn handle_batch_end(&mut self, _: Instant, _: &mut dyn CryptoRng) {}

    fn poll_transmit(&mut self, _: Instant, _: &mut dyn CryptoRng) -> Option<Transmit> {
        (!self.out.is_empty()).then(|| self.out.remove(0))
    }

    fn poll_timeout(&self) -> Option<Instant> {
        None
    }
}

const RELAY: RelayId = RelayId::from_bytes([1; 32]);
const TIMEOUT: Duration = Duration::from_secs(20);

fn linked(seed: u64, properties: LinkProperties) -> (World<Recorder>, NodeId, NodeId) {
    let mut world = World::new(seed, properties);
    let near = world.add_node("10.0.0.1:1".parse().unwrap(), false);
    let far = world.add_node("10.0.0.2:2".parse().unwrap(), true);
    world.place(near, Recorder::default());
    world.place(far, Recorder::default());
    let target = world.network().dial_target(far, RELAY).unwrap();
    world.with(near, |node, _, _| node.out.push(Transmit::Dial(target)));
    world.run_until(TIMEOUT, |world| world.with(near, |node, _, _| node.link)?).expect("the link opens");
    (world, near, far)
}

fn arrivals(seed: u64) -> Vec<(Instant, u8, Slots)> {
    let properties = LinkProperties { loss: 0.05, jitter: Duration::from_millis(4), ..LinkProperties::default() };
    let (mut world, near, far) = linked(seed, properties);
    world.with(near, |node, _, _| {
        let link = node.link.unwrap();
        for number in 0..200_u8 {
            let message = Slots::from(vec![number; 1024]);
            node.out.push(Transmit::Message { link, lane: Lane::new(number % 4).unwrap(), message });
        }
    });
    world.run_until(TIMEOUT, |world| world.with(far, |node, _, _| (node.received.len() == 200).then_some(()))?);
    world.with(far, |node, _, _| core::mem::take(&mut node.received)).unwrap()
}

#[test]
fn the_same_seed_gives_the_same_run() {
    assert_eq!(arrivals(7), arrivals(7));
    assert_ne!(arrivals(7), arrivals(8));
}

#[test]
fn a_lane_keeps_its_order_and_lanes_overtake_each_other() {
    let received = arrivals(3);
    assert_eq!(received.len(), 200);
    for lane in 0..4 {
        assert!(received.iter().filter(|(_, of, _)| *of == lane).is_sorted_by_key(|(_, _, message)| message.to_vec()));
    }
    assert!(!received.is_sorted_by_key(|(_, _, message)| message.to_vec()));
}

#[test]
fn a_link_carries_no_more_than_its_rate() {
    let (mut world, near, far) = linked(1, LinkProperties { rate: 1_000_000, ..LinkProperties::default() });
    let began = world.now();
    world.with(near, |node, _, _| {
        let link = node.link.unwrap();
        for _ in 0..100 {
            node.out.push(Transmit::Message { link, lane: Lane::FIRST, message: Slots::from(vec![0; 10_000]) });
        }
    });
    world
        .run_until(TIMEOUT, |world| world.with(far, |node, _, _| (node.received.len() == 100).then_some(()))?)
        .unwrap();
    assert_eq!(world.now().since(began), Duration::from_millis(1010));
}

#[test]
fn links_to_a_crashed_node_close_and_dials_to_it_fail() {
    let (mut world, near, far) = linked(1, LinkProperties::default());
    let target = world.network().dial_target(far, RELAY).unwrap();
    world.crash(far);
    world.run_until(TIMEOUT, |world| world.with(near, |node, _, _| node.closed.then_some(()))?).unwrap();
    world.with(near, |node, _, _| node.out.push(Transmit::Dial(target)));
    world.run_until(TIMEOUT, |world| world.with(near, |node, _, _| node.failed.then_some(()))?).unwrap();
}

#[test]
fn a_wrong_fingerprint_is_refused() {
    let (mut world, near, far) = linked(1, LinkProperties::default());
    let mut target = world.network().dial_target(far, RELAY).unwrap();
    target.fingerprint[0] ^= 1;
    world.with(near, |node, _, _| node.out.push(Transmit::Dial(target)));
    world.run_until(TIMEOUT, |world| world.with(near, |node, _, _| node.failed.then_some(()))?).unwrap();
}
