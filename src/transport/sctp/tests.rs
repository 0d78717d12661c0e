//! Tests of associations over paths in virtual time, and with forged peers. Each failure prints its seed.

mod acknowledging;
mod bottleneck;
mod forged;
mod handshake;
#[cfg(not(target_arch = "wasm32"))]
mod interoperation;
mod path;
mod receiving;

use core::time::Duration;

use path::{Line, Pair};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use super::{Config, congestion::Algorithm};
use crate::base::Instant;

/// Number of seeds, each with another path, in an ordinary test run.
const SEEDS: u64 = 150;

/// The time `seconds` from now.
fn in_seconds(pair: &Pair, seconds: f64) -> Instant {
    pair.now.after(Duration::from_secs_f64(seconds))
}

#[test]
fn the_first_message_of_a_dialler_arrives_after_one_and_a_half_round_trips() {
    let mut pair = Pair::new(1, Line::new(25));
    let start = pair.now;
    pair.ends[0].queue.push_back((0, vec![1; 100]));
    pair.ends[1].keep = true;
    assert!(pair.run(in_seconds(&pair, 1.0), |pair| !pair.ends[1].received.is_empty()));
    assert_eq!(pair.now.since(start), Duration::from_millis(75));
    assert_eq!(pair.ends[0].open, Some(64));
    assert_eq!(pair.ends[1].open, Some(64));
}

/// Sends `count` messages of random sizes over random streams each way; asserts that all arrive.
fn exchange(pair: &mut Pair, count: usize) {
    let seed = pair.seed;
    let mut rng = StdRng::seed_from_u64(seed);
    let mut sent: [Vec<Vec<Vec<u8>>>; 2] = [vec![Vec::new(); 64], vec![Vec::new(); 64]];
    for end in [0, 1] {
        pair.ends[end].keep = true;
        for _ in 0..count {
            let stream = rng.random_range(0..64_u16);
            let length = if rng.random_bool(0.3) { 17 << 10 } else { rng.random_range(1..17_000) };
            let mut message = vec![0; length];
            rng.fill(&mut message[..]);
            sent[end][usize::from(stream)].push(message.clone());
            pair.ends[end].queue.push_back((stream, message));
        }
    }
    let until = in_seconds(pair, 600.0);
    let flushed = |pair: &Pair| pair.ends.iter().all(|end| end.received.len() == count && end.association.is_flushed());
    let done = pair.run(until, flushed);
    let arrived = [0, 1].map(|end| (pair.ends[end].received.len(), pair.ends[end].closed));
    assert!(done, "{arrived:?} of {count} arrived (seed {seed})");
    for (from, to) in [(0, 1), (1, 0)] {
        let mut received = vec![Vec::new(); 64];
        for (stream, message) in pair.ends[to].received.drain(..) {
            received[usize::from(stream)].push(message);
        }
        assert!(received == sent[from], "messages differ (seed {seed})");
        assert_eq!(pair.ends[to].association.held(), 0, "nothing is held (seed {seed})");
    }
}

/// A line with random delay, jitter, loss, reordering, duplication, rate and queue.
fn any_line(seed: u64) -> Line {
    let mut rng = StdRng::seed_from_u64(seed ^ 0xabcd);
    let mut line = Line::new(rng.random_range(1..100));
    line.jitter = Duration::from_millis(rng.random_range(0..20));
    line.loss = rng.random_range(0.0..0.1);
    line.burst = rng.random_range(1.0..5.0);
    line.reordered = rng.random_range(0.0..0.1);
    line.reorder_delay = Duration::from_millis(rng.random_range(0..30));
    line.duplicated = rng.random_range(0.0..0.1);
    line.rate = rng.random_bool(0.5).then(|| rng.random_range(100_000..50_000_000));
    line.queue = line.delay.mul_f64(2.0 * rng.random_range(0.1..4.0)).max(Duration::from_millis(1));
    line
}

/// A pair over random lines, with one of the controllers and, for odd seeds, TSNs that soon wrap.
fn any_pair(seed: u64) -> Pair {
    let line = any_line(seed);
    let mut config = Config::new(1_195);
    if seed % 4 == 3 {
        config.algorithm = Algorithm::Cubic;
    }
    let mut pair = Pair::with(seed, [line, line], &[[config.clone(), config]]);
    if seed % 2 == 1 {
        let now = pair.now;
        for end in &mut pair.ends {
            end.association.set_first_tsn(now, u32::MAX - 20);
        }
    }
    pair
}

fn messages_arrive(seeds: core::ops::Range<u64>) {
    let mut longest = Duration::ZERO;
    for seed in seeds {
        let mut pair = any_pair(seed);
        exchange(&mut pair, 12);
        let stall = pair.ends.iter().map(|end| end.longest_stall).max().unwrap();
        assert!(stall < Duration::from_secs(15), "nothing acknowledged for {stall:?} (seed {seed})");
        longest = longest.max(stall);
    }
    println!("longest stall {longest:?}");
}

#[test]
fn messages_arrive_once_and_in_order_over_any_path() {
    messages_arrive(0..SEEDS);
}

#[test]
#[ignore = "thousands of seeds take minutes"]
fn messages_arrive_once_and_in_order_with_thousands_of_seeds() {
    messages_arrive(SEEDS..20 * SEEDS);
}

/// The losses are the worst case of `tests/dial/virtual_time.rs`, at its seed 202: six of eight consecutive datagrams.
/// If the sender doubled its timeout for each loss, starting at one second, it would be silent for 30 s, and the link
/// would close.
#[test]
fn losses_of_six_of_eight_packets_stall_less_than_three_seconds() {
    const LOST: u128 = 0b1101_1101;
    for at in 0..100 {
        let mut pair = Pair::new(at, Line::new(5));
        pair.drop_first(LOST << at);
        exchange(&mut pair, 4);
        let stall = pair.ends.iter().map(|end| end.longest_stall).max().unwrap();
        assert!(stall < Duration::from_secs(3), "{stall:?} with losses from packet {at} on");
    }
}

#[test]
fn the_rate_recovers_within_three_seconds_of_an_outage() {
    for (seed, delay) in [(1, 1), (2, 25), (3, 100)] {
        let mut line = Line::new(delay);
        line.rate = Some(2_000_000);
        let mut pair = Pair::new(seed, line);
        pair.ends[0].bulk = u64::MAX;
        pair.rate(1, 1.0);
        for direction in [0, 1] {
            pair.set_line(direction, Line { loss: 1.0, burst: 1e9, ..line });
        }
        pair.rate(1, 2.0);
        (0..2).for_each(|direction| pair.set_line(direction, line));
        pair.rate(1, 3.0);
        let rate = pair.rate(1, 1.0);
        assert!(rate > 1_500_000.0, "{rate} bytes a second (seed {seed})");
    }
}
