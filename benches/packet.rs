//! Benchmark of the SCTP packet codec in an association: reading and writing a full data packet and a SACK with 20
//! gap blocks, with CRC32c and without it (RFC 9653).
//!
//! `cargo bench --bench packet`. The packets come from two real associations. The read packets contain no
//! new data, so each can be processed many times. The cost includes a look-up of the TSN for a data packet, and of each
//! block for a SACK.
#![allow(
    missing_docs,
    clippy::arithmetic_side_effects,
    clippy::disallowed_methods,
    clippy::indexing_slicing,
    clippy::panic
)]

use std::{
    hint::black_box,
    time::{Duration, Instant as StdInstant},
};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use rand::{SeedableRng as _, rngs::ChaCha8Rng};
use umbel::{
    base::{Instant, Slots},
    transport::sctp::{Association, Config},
};

const PACKET: usize = 1_195;
/// 14 full packets and one nearly full.
const MESSAGE: usize = 17 << 10;
const BLOCKS: usize = 20;
/// Offset of the first chunk's type in a packet.
const CHUNK_TYPE: usize = 12;
/// Offset of the number of gap blocks in a SACK packet.
const NUMBER_OF_BLOCKS: usize = 24;

/// A sender and a receiver, 0.1 ms apart, with a large window.
struct Pair {
    now: Instant,
    ends: [Association; 2],
    message: Slots,
    buffer: [u8; PACKET],
}

impl Pair {
    fn new(checksum: bool) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let now = Instant::from_nanos(1_000_000_000);
        let config = Config { zero_checksum: !checksum, ..Config::new(PACKET) };
        let ends = [Association::connect(&config, now, &mut rng), Association::accept(&config, now, &mut rng)];
        let mut pair = Self { now, ends, message: Slots::from(vec![7; MESSAGE]), buffer: [0; PACKET] };
        (0..200).for_each(|_| pair.exchange());
        pair
    }

    /// Fills the queue of the sender.
    fn fill(&mut self) {
        while self.ends[0].room(self.now) > 0 {
            self.ends[0].send(self.now, 0, self.message.clone());
        }
    }

    /// All packets that an end can send now.
    fn packets(&mut self, end: usize) -> Vec<Vec<u8>> {
        let mut packets = Vec::new();
        loop {
            self.fill();
            let length = self.ends[end].poll_packet(self.now, &mut self.buffer);
            if length == 0 {
                return packets;
            }
            packets.push(self.buffer[..length].to_vec());
        }
    }

    /// Delivers the packets of each end once.
    fn exchange(&mut self) {
        for end in [0, 1] {
            let packets = self.packets(end);
            self.now = self.now.after(Duration::from_micros(50));
            packets.iter().for_each(|packet| self.receive(1 - end, packet));
            if self.ends[1 - end].poll_timeout().is_some_and(|due| due <= self.now) {
                self.ends[1 - end].handle_timeout(self.now);
            }
        }
    }

    fn receive(&mut self, end: usize, packet: &[u8]) {
        self.ends[end].handle_packet(self.now, packet);
        while let Some(event) = self.ends[end].poll_event() {
            black_box(event);
        }
    }

    /// A data packet that the receiver already has, and a SACK with gap blocks that the sender already has.
    fn known_packets(&mut self) -> [Vec<u8>; 2] {
        let packets = self.packets(0);
        let carried: Vec<_> = packets.into_iter().skip(1).step_by(2).take(BLOCKS).collect();
        carried.iter().for_each(|packet| self.receive(1, packet));
        let sack = self.packets(1).pop().unwrap_or_default();
        assert!(sack[CHUNK_TYPE] == 3 && usize::from(sack[NUMBER_OF_BLOCKS + 1]) == BLOCKS, "{sack:?}");
        self.receive(0, &sack);
        let data = carried.into_iter().max_by_key(Vec::len).unwrap_or_default();
        assert!(data[CHUNK_TYPE] == 0 && data.len() > PACKET - 4, "{} bytes", data.len());
        [data, sack]
    }
}

fn packet(criterion: &mut Criterion) {
    for (name, checksum) in [("CRC32c", true), ("no checksum", false)] {
        let mut group = criterion.benchmark_group(format!("packet, {name}"));
        let mut pair = Pair::new(checksum);
        let [data, sack] = pair.known_packets();
        for (kind, end, packet) in [("data", 1, &data), ("SACK of 20 blocks", 0, &sack)] {
            group.throughput(Throughput::Bytes(packet.len() as u64));
            group.bench_function(format!("read, {kind}"), |bencher| {
                bencher.iter(|| pair.ends[end].handle_packet(pair.now, black_box(packet)));
            });
        }
        group.throughput(Throughput::Bytes(sack.len() as u64));
        group.bench_function("write, SACK of 20 blocks", |bencher| {
            bencher.iter_custom(|number| {
                let mut spent = Duration::ZERO;
                for _ in 0..number {
                    // A duplicate is acknowledged immediately.
                    pair.receive(1, &data);
                    let start = StdInstant::now();
                    black_box(pair.ends[1].poll_packet(pair.now, &mut pair.buffer));
                    spent += start.elapsed();
                }
                spent
            });
        });
        let mut pair = Pair::new(checksum);
        group.throughput(Throughput::Bytes(data.len() as u64));
        group.bench_function("write, data", |bencher| {
            bencher.iter_custom(|number| {
                let (mut spent, mut written) = (Duration::ZERO, 0_u64);
                let mut buffers = [[0; PACKET]; 16];
                while written < number {
                    pair.fill();
                    let start = StdInstant::now();
                    let lengths = buffers.each_mut().map(|buffer| pair.ends[0].poll_packet(pair.now, buffer));
                    spent += start.elapsed();
                    written += lengths.iter().filter(|length| **length > 0).count() as u64;
                    for (buffer, length) in buffers.iter().zip(lengths) {
                        pair.receive(1, &buffer[..length]);
                    }
                    pair.exchange();
                }
                spent.mul_f64(number as f64 / written as f64)
            });
        });
        group.finish();
    }
}

criterion_group!(benches, packet);
criterion_main!(benches);
