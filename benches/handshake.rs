//! Benchmark of the circuit handshake: the cost for each end.
//!
//! `cargo bench --bench handshake`.
#![allow(missing_docs, clippy::unwrap_used)]

use std::hint::black_box;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use rand::{SeedableRng as _, rngs::ChaCha20Rng};
use umbel::{
    base::HopIndex,
    crypto::{IdentityKey, OnionSecret},
    handshake::{ClientHandshake, OnionKeyring, RelayKeys, respond},
};

fn handshake(c: &mut Criterion) {
    let mut group = c.benchmark_group("handshake");
    let rng = &mut ChaCha20Rng::seed_from_u64(1);
    let identity = IdentityKey::generate(rng).id();
    let ring = OnionKeyring::new(OnionSecret::generate(rng), None);
    let keys = RelayKeys { identity, onion_key: ring.public() };
    let hop = HopIndex::FIRST;
    group.bench_function("origin: start", |b| {
        b.iter(|| ClientHandshake::start(black_box(&keys), hop, &[], rng).unwrap());
    });
    let (_, request) = ClientHandshake::start(&keys, hop, &[], rng).unwrap();
    group.bench_function("relay: respond", |b| {
        b.iter(|| respond(&identity, &ring, hop, black_box(&request), rng).unwrap());
    });
    group.bench_function("origin: finish", |b| {
        let answered = || {
            let (state, request) = ClientHandshake::start(&keys, hop, &[], rng).unwrap();
            (state, respond(&identity, &ring, hop, &request, rng).unwrap().reply)
        };
        b.iter_batched(answered, |(state, reply)| state.finish(black_box(&reply)).unwrap(), BatchSize::SmallInput);
    });
    group.finish();
}

criterion_group!(benches, handshake);
criterion_main!(benches);
