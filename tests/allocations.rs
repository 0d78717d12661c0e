//! Memory allocations on the path of a cell through a relay, from a received datagram to a sealed one.
#![allow(missing_docs, clippy::unwrap_used, clippy::arithmetic_side_effects, clippy::indexing_slicing, clippy::panic)]

#[path = "../benches/switch/link.rs"]
mod link;
#[path = "../benches/switch/relay.rs"]
mod relay;

use allocation_counter::measure;
use umbel::{
    base::{Instant, LinkEvent, LinkMachine, Transmit},
    wire::CELL_LEN,
};

use link::Link;
use relay::{BenchRelay, CELLS, PREVIOUS};

const CIRCUITS: usize = 16;
/// Rounds before the first counted one. They allocate the memory that later rounds reuse.
const WARM_UP: usize = 8;
const ROUNDS: usize = 16;

/// Forwards cells through a relay. Returns the number of allocations and of datagrams that arrived after a later one,
/// both after the warm-up.
fn forward(reordered: bool) -> (u64, usize) {
    let (mut bench, mut previous, mut next) = (BenchRelay::new(CIRCUITS), Link::open(), Link::open());
    let (mut allocations, mut late, mut forwarded) = (0, 0, 0);
    for round in 0..WARM_UP + ROUNDS {
        if round == WARM_UP {
            (allocations, late) = (0, 0);
        }
        for (lane, message) in bench.forward_messages() {
            previous.send(lane, message);
        }
        while !previous.is_flushed() || !next.is_flushed() {
            previous.write();
            previous.travel();
            if reordered {
                late += previous.reorder();
            }
            let counted = measure(|| {
                previous.receive(|lane, message| {
                    let event = LinkEvent::Message { link: PREVIOUS, lane, message };
                    bench.relay.handle_link(Instant::START, event, &mut bench.rng);
                });
                while let Some(transmit) = bench.relay.poll_transmit(Instant::START, &mut bench.rng) {
                    let Transmit::Message { lane, message, .. } = transmit else { panic!("{transmit:?}") };
                    next.send(lane, message);
                }
                next.write();
            });
            allocations += counted.count_total;
            previous.acknowledge();
            next.travel();
            next.receive(|_, message| forwarded += message.len());
            allocations += measure(|| next.acknowledge()).count_total;
        }
    }
    assert_eq!(forwarded, (WARM_UP + ROUNDS) * CIRCUITS * CELLS * CELL_LEN, "every cell is forwarded");
    (allocations, late)
}

#[test]
fn a_relay_forwards_cells_without_an_allocation() {
    assert_eq!(forward(false), (0, 0));
}

/// The tree of out-of-order fragments has a node for at least five fragments.
#[test]
fn fragments_out_of_order_are_stored_without_an_allocation_for_each() {
    let (allocations, late) = forward(true);
    assert!(late > 0 && allocations <= late as u64 / 4, "{allocations} allocations for {late} fragments");
}
