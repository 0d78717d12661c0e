//! Benchmark of onion layers: the cost of a cell at the origin and at each relay, and of the primitives.
//!
//! `cargo bench --bench onion`. Throughput is in body bytes. The time of several layers is their sum.
#![allow(missing_docs, clippy::unwrap_used, clippy::arithmetic_side_effects, clippy::indexing_slicing)]

use std::hint::black_box;

use chacha20poly1305::{AeadInOut as _, ChaCha20Poly1305, KeyInit as _, Nonce};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use umbel::{
    base::HopIndex,
    crypto::LayerKey,
    handshake::HopKeys,
    onion::{OriginLayers, RelayLayer, message_capacity},
    wire::BODY_LEN,
};

fn keys(hop: u8) -> HopKeys {
    HopKeys { forward: LayerKey::from_bytes([hop; 32]), backward: LayerKey::from_bytes([hop | 0x80; 32]) }
}

fn origin(hops: u8) -> OriginLayers {
    let mut origin = OriginLayers::new();
    for hop in 1..=hops {
        origin.push(keys(hop)).unwrap();
    }
    origin
}

fn primitive(c: &mut Criterion) {
    let mut group = c.benchmark_group("primitive");
    group.throughput(Throughput::Bytes(BODY_LEN as u64));
    let cipher = ChaCha20Poly1305::new(&[7; 32].into());
    let mut body = [0; BODY_LEN - 16];
    group.bench_function("portable AEAD alone, 1,003 bytes", |b| {
        b.iter(|| cipher.encrypt_inout_detached(&Nonce::default(), &[], black_box(&mut body[..]).into()).unwrap());
    });
    group.finish();
}

fn origin_side(c: &mut Criterion) {
    let mut group = c.benchmark_group("origin");
    group.throughput(Throughput::Bytes(BODY_LEN as u64));
    for hops in [1, 3, 8] {
        let hop = HopIndex::new(hops).unwrap();
        let message = vec![7; message_capacity(hop)];
        let (mut layers, mut body) = (origin(hops), [0; BODY_LEN]);
        group.bench_function(format!("seal, {hops} layers"), |b| {
            b.iter(|| layers.seal_message(hop, black_box(&message), &mut body).unwrap());
        });
    }
    // Cells must be opened in order, so the relays seal each cell outside the measurement.
    let hop = HopIndex::new(3).unwrap();
    let message = vec![7; message_capacity(hop)];
    let mut layers = origin(3);
    let mut relays: Vec<_> = (1..=3).map(|at| RelayLayer::new(HopIndex::new(at).unwrap(), keys(at))).collect();
    group.bench_function("open, 3 layers", |b| {
        let sealed = || {
            let mut body = [0; BODY_LEN];
            relays[2].seal_message(&message, &mut body).unwrap();
            relays[1].seal_backward(&mut body).unwrap();
            relays[0].seal_backward(&mut body).unwrap();
            body
        };
        b.iter_batched_ref(sealed, |body| layers.open_backward(black_box(body)).unwrap(), BatchSize::SmallInput);
    });
    group.finish();
}

fn relay_side(c: &mut Criterion) {
    let mut group = c.benchmark_group("relay");
    group.throughput(Throughput::Bytes(BODY_LEN as u64));
    let (first, last) = (HopIndex::FIRST, HopIndex::new(2).unwrap());
    let message = vec![7; message_capacity(last)];
    let mut layers = origin(2);
    let mut relay = RelayLayer::new(first, keys(1));
    group.bench_function("open forward", |b| {
        let sealed = || {
            let mut body = [0; BODY_LEN];
            layers.seal_message(last, &message, &mut body).unwrap();
            body
        };
        b.iter_batched_ref(sealed, |body| relay.open_forward(black_box(body)).unwrap(), BatchSize::SmallInput);
    });
    group.bench_function("add a layer backward", |b| {
        let from_next = || {
            let mut body = [7; BODY_LEN];
            body[BODY_LEN - 17..].fill(0);
            body
        };
        b.iter_batched_ref(from_next, |body| relay.seal_backward(black_box(body)).unwrap(), BatchSize::SmallInput);
    });
    let mut body = [0; BODY_LEN];
    group.bench_function("seal a message backward", |b| {
        b.iter(|| relay.seal_message(black_box(&message), &mut body).unwrap());
    });
    group.finish();
}

criterion_group!(benches, primitive, origin_side, relay_side);
criterion_main!(benches);
