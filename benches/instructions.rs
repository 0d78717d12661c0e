//! Workloads for instruction counts: sealing, receiving, reordering, switching and packing a cell.
//!
//! `cargo xtask instructions` runs this program under callgrind, once for each of [`sealing`], [`receiving`],
//! [`reordering`], [`switching`] and [`packing`]. It compares callgrind's count within the function with the function's
//! budget. All other code is preparation. Keys, cells and times are fixed. The program prints the number of cells that
//! each of these functions has processed.
#![allow(missing_docs, clippy::unwrap_used, clippy::arithmetic_side_effects, clippy::indexing_slicing, clippy::panic)]

#[path = "switch/link.rs"]
mod link;
#[path = "switch/relay.rs"]
mod relay;

use std::hint::black_box;

use umbel::{
    base::{HopIndex, Instant, Lane, LinkEvent, LinkMachine, Slots, Transmit},
    onion::{OriginLayers, message_capacity},
    wire::{BODY_LEN, CELL_LEN},
};

use link::Link;
use relay::{BenchRelay, CELLS, PREVIOUS, keys};

const ROUNDS: usize = 16;
const CIRCUITS: usize = 16;
const CELLS_PER_ROUND: usize = CIRCUITS * CELLS;

fn main() {
    let (mut origin, mut bench) = (three_hops(), BenchRelay::new(CIRCUITS));
    let (mut link, mut reordered) = (Link::open(), Link::open());
    let (mut received, mut received_reordered) = (0, 0);
    for _ in 0..ROUNDS {
        sealing(&mut origin, CELLS_PER_ROUND);
        let messages = bench.forward_messages();
        for (lane, message) in &messages {
            reordered.send(*lane, message.clone());
        }
        switching(&mut bench, messages);
        packing(&mut bench, &mut link);
        while !link.is_flushed() {
            link.travel();
            received += receiving(&mut link);
            link.acknowledge();
            packing(&mut bench, &mut link);
        }
        while !reordered.is_flushed() {
            reordered.write();
            reordered.travel();
            received_reordered += reordering(&mut reordered);
            reordered.acknowledge();
        }
    }
    let cells = ROUNDS * CELLS_PER_ROUND;
    assert_eq!([received, received_reordered], [cells * CELL_LEN; 2], "every cell arrives");
    println!("{cells}");
}

/// A client seals cells for the third hop of its circuit.
#[inline(never)]
fn sealing(layers: &mut OriginLayers, cells: usize) {
    let hop = third();
    let (message, mut body) = ([7; BODY_LEN], [0; BODY_LEN]);
    for _ in 0..cells {
        layers.seal_message(hop, black_box(&message[..message_capacity(hop)]), black_box(&mut body)).unwrap();
    }
}

/// A link opens records and reassembles messages of cells. Returns the bytes of the messages.
#[inline(never)]
fn receiving(link: &mut Link) -> usize {
    let mut received = 0;
    link.receive(|_, message| received += message.len());
    received
}

/// The same with datagrams out of order: the first one arrives last.
#[inline(never)]
fn reordering(link: &mut Link) -> usize {
    link.reorder();
    let mut received = 0;
    link.receive(|_, message| received += message.len());
    received
}

/// A relay takes cells off one channel, opens their layer and queues the cells for the next channel.
#[inline(never)]
fn switching(bench: &mut BenchRelay, messages: Vec<(Lane, Slots)>) {
    for (lane, message) in messages {
        let event = LinkEvent::Message { link: PREVIOUS, lane, message };
        bench.relay.handle_link(Instant::START, event, &mut bench.rng);
    }
}

/// The relay packs the cells of one channel into messages. Its link writes the messages into packets, and seals the
/// records.
#[inline(never)]
fn packing(bench: &mut BenchRelay, link: &mut Link) {
    while let Some(transmit) = bench.relay.poll_transmit(Instant::START, &mut bench.rng) {
        let Transmit::Message { lane, message, .. } = transmit else { panic!("{transmit:?}") };
        link.send(lane, message);
    }
    link.write();
}

fn third() -> HopIndex {
    HopIndex::new(3).unwrap()
}

fn three_hops() -> OriginLayers {
    let mut layers = OriginLayers::new();
    for hop in 1..=3 {
        layers.push(keys(hop)).unwrap();
    }
    layers
}
