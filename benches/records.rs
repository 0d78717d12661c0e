//! Benchmark of DTLS records: sealing and opening a record that fills a datagram of 1,232 bytes.
//!
//! `cargo bench --bench records`. Throughput is in bytes of plaintext.
#![allow(missing_docs, clippy::unwrap_used, clippy::arithmetic_side_effects, clippy::indexing_slicing)]

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use umbel::transport::native::{CipherSuite, DirectionKey, KeyLimits, OVERHEAD, Records};

/// Bytes of the SCTP packet in the record.
const PACKET: usize = 1_232 - OVERHEAD;

fn record_layers(suite: CipherSuite) -> [Records; 2] {
    let (key, iv) = match suite {
        CipherSuite::Aes128Gcm => (16, 4),
        CipherSuite::ChaCha20Poly1305 => (32, 12),
    };
    let direction = |fill: u8| DirectionKey::new(suite, &vec![fill; key], &vec![fill; iv]).unwrap();
    let limits = KeyLimits { retire: u64::MAX, end: u64::MAX, ..KeyLimits::default() };
    [(1, 2), (2, 1)].map(|(write, read)| Records::new(suite, &direction(write), &direction(read), limits).unwrap())
}

fn records(c: &mut Criterion) {
    let mut group = c.benchmark_group("records");
    group.throughput(Throughput::Bytes(PACKET as u64));
    for suite in CipherSuite::ALL {
        let [mut a, mut b] = record_layers(suite);
        let mut buffer = vec![7; PACKET + OVERHEAD];
        group.bench_function(format!("seal, {suite:?}"), |bencher| {
            bencher.iter(|| a.seal(black_box(&mut buffer), PACKET).unwrap());
        });
        // A record can be opened only once, so the other end seals each record outside the measurement.
        group.bench_function(format!("open, {suite:?}"), |bencher| {
            let sealed = || {
                let mut datagram = vec![7; PACKET + OVERHEAD];
                let length = a.seal(&mut datagram, PACKET).unwrap();
                datagram.truncate(length);
                datagram
            };
            let open = |datagram: &mut Vec<u8>| {
                let mut opened = 0;
                b.open(datagram, |_| opened += 1).unwrap();
                assert_eq!(opened, 1);
            };
            bencher.iter_batched_ref(sealed, open, BatchSize::SmallInput);
        });
    }
    group.finish();
}

criterion_group!(benches, records);
criterion_main!(benches);
