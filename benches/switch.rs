//! Benchmark of the switch: the cost for a relay to receive cells over one channel and send them over another.
//!
//! `cargo bench --bench switch`. The measurement covers all steps between two links: split messages, decode cells, look
//! up circuits, open or add a layer, queue, pack and encode cells. `layer alone` is the cryptographic part. Throughput
//! is in body bytes.
#![allow(missing_docs, clippy::unwrap_used, clippy::arithmetic_side_effects, clippy::indexing_slicing, clippy::panic)]

#[path = "switch/relay.rs"]
mod relay;

use std::{cell::RefCell, hint::black_box};

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use umbel::{
    base::{HopIndex, Instant, Lane, LinkEvent, LinkId, LinkMachine, Slots, Transmit},
    onion::{RelayLayer, sealed_len},
    wire::{BODY_LEN, CELL_LEN, CellBody},
};

use relay::{BenchRelay, CELLS, NEXT, PREVIOUS, keys, message, second_hop};

impl BenchRelay {
    fn backward_messages(&self) -> Vec<(Lane, Slots)> {
        let bodies = || {
            (0..CELLS).map(|_| {
                let mut body = CellBody::zero();
                body[..sealed_len(second_hop())].fill(7);
                body
            })
        };
        self.circuits.iter().map(|(_, _, next_circuit)| message(*next_circuit, bodies())).collect()
    }

    fn switch(&mut self, link: LinkId, messages: Vec<(Lane, Slots)>) {
        for (lane, message) in messages {
            self.relay.handle_link(Instant::START, LinkEvent::Message { link, lane, message }, &mut self.rng);
        }
        let mut sent = 0;
        while let Some(transmit) = self.relay.poll_transmit(Instant::START, &mut self.rng) {
            let Transmit::Message { message, .. } = transmit else { panic!("{transmit:?}") };
            sent += black_box(message).len();
        }
        assert_eq!(sent, self.circuits.len() * CELLS * CELL_LEN);
    }
}

fn bench_switch(c: &mut Criterion) {
    let mut group = c.benchmark_group("switch");
    group.throughput(Throughput::Bytes(BODY_LEN as u64));
    let (mut layer, mut body) = (RelayLayer::new(HopIndex::FIRST, keys(1)), [0; BODY_LEN]);
    group.bench_function("layer alone", |b| {
        b.iter(|| {
            // The filler for the next hop must be zero: one kind byte and one tag (`proto/03-cells.md` §3).
            body[sealed_len(second_hop())..].fill(0);
            layer.seal_backward(black_box(&mut body)).unwrap();
        });
    });
    for circuits in [1, 16, 1000] {
        group.throughput(Throughput::Bytes((circuits * CELLS * BODY_LEN) as u64));
        // In the forward benchmark, the closure that prepares a batch and the closure that switches it both borrow the
        // relay.
        let bench = RefCell::new(BenchRelay::new(circuits));
        group.bench_function(BenchmarkId::new("backward, circuits", circuits), |b| {
            let messages = bench.borrow().backward_messages();
            let run = |messages| bench.borrow_mut().switch(NEXT, messages);
            b.iter_batched(|| messages.clone(), run, BatchSize::PerIteration);
        });
        group.bench_function(BenchmarkId::new("forward, circuits", circuits), |b| {
            // A cell can be opened only once and in order, so batches are prepared one at a time.
            let run = |messages| bench.borrow_mut().switch(PREVIOUS, messages);
            b.iter_batched(|| bench.borrow_mut().forward_messages(), run, BatchSize::PerIteration);
        });
    }
    group.finish();
}

criterion_group!(benches, bench_switch);
criterion_main!(benches);
