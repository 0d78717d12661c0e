//! Benchmark of the SCTP association: the cost of a bulk packet for both ends, and of an acknowledgement for the
//! sender.
//!
//! `cargo bench --bench association`. Two associations run in memory, in virtual time. `bulk` measures both ends of a
//! transfer of 16 MiB of payload, at 1,164 bytes a packet. `acknowledgement` measures one SACK for a sender of 120 MB/s
//! over 100 ms, with about 10,000 packets in flight, of which 1 % are lost.
#![allow(
    missing_docs,
    clippy::arithmetic_side_effects,
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic
)]

use std::{
    collections::VecDeque,
    hint::black_box,
    time::{Duration, Instant as StdInstant},
};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use rand::{RngExt as _, SeedableRng, rngs::ChaCha8Rng};
use umbel::{
    base::{Instant, Slots},
    transport::sctp::{Association, AssociationEvent, Config},
};

const PACKET: usize = 1_195;
const MESSAGE: usize = 17 << 10;

/// A sender, a receiver, and the packets between them.
struct Pair {
    now: Instant,
    rng: ChaCha8Rng,
    ends: [Association; 2],
    /// Packets in flight towards each end, with their arrival times.
    in_flight: [VecDeque<(Instant, Vec<u8>)>; 2],
    spare: Vec<Vec<u8>>,
    delay: Duration,
    /// Rate of the sender's line, in bytes per second.
    rate: Option<u64>,
    /// The time at which the sender's line is free.
    free_at: Instant,
    loss: f64,
    message: Slots,
    received: u64,
    /// Acknowledgements processed by the sender.
    acknowledgements: u64,
    /// Time spent on these acknowledgements.
    spent: Duration,
    open: bool,
}

impl Pair {
    fn new(delay: Duration, rate: Option<u64>, loss: f64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let now = Instant::from_nanos(1_000_000_000);
        let mut config = Config::new(PACKET);
        (config.initial_window, config.max_window, config.max_send_window) = (64 << 20, 64 << 20, 64 << 20);
        let ends = [Association::connect(&config, now, &mut rng), Association::accept(&config, now, &mut rng)];
        Self {
            now,
            rng,
            ends,
            in_flight: Default::default(),
            spare: Vec::new(),
            delay,
            rate,
            free_at: now,
            loss,
            message: Slots::from(vec![7; MESSAGE]),
            received: 0,
            acknowledgements: 0,
            spent: Duration::ZERO,
            open: false,
        }
    }

    /// Drains end `at`. End 0 also fills its send queue.
    fn drain(&mut self, at: usize) {
        while let Some(event) = self.ends[at].poll_event() {
            match event {
                AssociationEvent::Message { message, .. } => self.received += black_box(message).len() as u64,
                AssociationEvent::Open { .. } => self.open |= at == 0,
                AssociationEvent::Closed(close) => panic!("closed: {close:?}"),
            }
        }
        loop {
            while at == 0 && self.open && self.ends[0].room(self.now) > 0 {
                self.ends[0].send(self.now, 0, self.message.clone());
            }
            let mut packet = self.spare.pop().unwrap_or_default();
            packet.resize(PACKET, 0);
            let length = self.ends[at].poll_packet(self.now, &mut packet);
            if length == 0 {
                self.spare.push(packet);
                return;
            }
            packet.truncate(length);
            if at == 0 && self.loss > 0.0 && self.rng.random_bool(self.loss) {
                self.spare.push(packet);
                continue;
            }
            let mut sent_at = self.now;
            if let Some(rate) = self.rate.filter(|_| at == 0) {
                self.free_at =
                    self.free_at.max(self.now).after(Duration::from_nanos(length as u64 * 1_000_000_000 / rate));
                sent_at = self.free_at;
            }
            self.in_flight[1 - at].push_back((sent_at.after(self.delay), packet));
        }
    }

    /// Advances to the next event.
    fn step(&mut self) {
        let packets = self.in_flight.iter().filter_map(|packets| packets.front().map(|packet| packet.0));
        let timers = self.ends.iter().filter_map(Association::poll_timeout);
        self.now = self.now.max(packets.chain(timers).min().expect("a packet or a timer is due"));
        for at in [0, 1] {
            while self.in_flight[at].front().is_some_and(|packet| packet.0 <= self.now)
                && let Some((_, packet)) = self.in_flight[at].pop_front()
            {
                let start = StdInstant::now();
                self.ends[at].handle_packet(self.now, &packet);
                if at == 0 {
                    self.acknowledgements += 1;
                    self.spent += start.elapsed();
                }
                self.spare.push(packet);
            }
            if self.ends[at].poll_timeout().is_some_and(|due| due <= self.now) {
                self.ends[at].handle_timeout(self.now);
            }
            self.drain(at);
        }
    }

    fn begin(&mut self) {
        self.drain(0);
        self.drain(1);
    }
}

fn bulk(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("bulk");
    group.throughput(Throughput::Bytes(16 << 20)).sample_size(20);
    for (name, delay, loss) in [("0.1 ms", 100, 0.0), ("10 ms", 10_000, 0.0), ("10 ms, 1 % lost", 10_000, 0.01)] {
        let rate = (delay > 1_000).then_some(200_000_000);
        let mut pair = Pair::new(Duration::from_micros(delay), rate, loss);
        pair.begin();
        group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
            bencher.iter(|| {
                let until = pair.received + (16 << 20);
                while pair.received < until {
                    pair.step();
                }
            });
        });
    }
    group.finish();
}

fn acknowledgement(criterion: &mut Criterion) {
    let mut pair = Pair::new(Duration::from_millis(50), Some(120_000_000), 0.01);
    pair.begin();
    // Runs until the packets in flight fill the window or the rate.
    while pair.received < 400 << 20 {
        pair.step();
    }
    println!("{:?}", pair.ends[0].statistics());
    criterion.bench_function("acknowledgement, 10,000 packets in flight, 1 % lost", |bencher| {
        bencher.iter_custom(|number| {
            (pair.acknowledgements, pair.spent) = (0, Duration::ZERO);
            while pair.acknowledgements < number {
                pair.step();
            }
            pair.spent.mul_f64(number as f64 / pair.acknowledgements as f64)
        });
    });
}

criterion_group!(benches, bulk, acknowledgement);
criterion_main!(benches);
