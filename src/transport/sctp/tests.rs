//! Two associations over a path in virtual time; each failure prints its seed.

mod path;

use core::time::Duration;

use path::{Line, Pair};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

fn secs(pair: &Pair, seconds: f64) -> crate::base::Instant {
    pair.now.after(Duration::from_secs_f64(seconds))
}

#[test]
fn the_handshake_takes_one_round_trip_for_the_dialler_and_two_for_its_first_answer() {
    let mut pair = Pair::new(1, Line::new(25));
    let start = pair.now;
    pair.ends[0].queue.push_back((0, vec![1; 100]));
    pair.ends[1].keep = true;
    assert!(pair.run(secs(&pair, 1.0), |pair| !pair.ends[1].received.is_empty()));
    assert_eq!(pair.now.since(start), Duration::from_millis(75));
    assert_eq!(pair.ends[0].open, Some(64));
    assert_eq!(pair.ends[1].open, Some(64));
}

/// Sends messages of random sizes over random streams both ways, and compares.
fn exchange(seed: u64, line: Line, count: usize) {
    let mut pair = Pair::new(seed, line);
    let mut rng = StdRng::seed_from_u64(seed);
    let mut sent: [Vec<Vec<Vec<u8>>>; 2] = [vec![Vec::new(); 64], vec![Vec::new(); 64]];
    for end in [0, 1] {
        pair.ends[end].keep = true;
        for _ in 0..count {
            let stream = rng.random_range(0..64_u16);
            let length = if rng.random_bool(0.3) { 17 << 10 } else { rng.random_range(1..17_000) };
            let message: Vec<u8> = (0..length).map(|_| rng.random()).collect();
            sent[end][usize::from(stream)].push(message.clone());
            pair.ends[end].queue.push_back((stream, message));
        }
    }
    let until = secs(&pair, 600.0);
    let done = pair.run(until, |pair| pair.ends.iter().all(|end| end.received.len() == count));
    let closed = (pair.ends[0].closed, pair.ends[1].closed);
    assert!(
        done,
        "{} and {} of {count} arrived, {closed:?} (seed {seed})",
        pair.ends[0].received.len(),
        pair.ends[1].received.len()
    );
    for (from, to) in [(0, 1), (1, 0)] {
        let mut received = vec![Vec::new(); 64];
        for (stream, message) in pair.ends[to].received.drain(..) {
            received[usize::from(stream)].push(message);
        }
        assert!(received == sent[from], "messages differ (seed {seed})");
    }
}

#[test]
fn messages_arrive_once_and_in_order_whatever_the_line_does() {
    for seed in 0..40 {
        let mut rng = StdRng::seed_from_u64(seed ^ 0xabcd);
        let mut line = Line::new(rng.random_range(1..100));
        line.jitter = Duration::from_millis(rng.random_range(0..20));
        line.loss = rng.random_range(0.0..0.1);
        line.burst = rng.random_range(1.0..5.0);
        line.late = rng.random_range(0.0..0.1);
        line.lateness = Duration::from_millis(rng.random_range(0..30));
        line.doubled = rng.random_range(0.0..0.1);
        line.rate = rng.random_bool(0.5).then(|| rng.random_range(100_000..50_000_000));
        exchange(seed, line, 60);
    }
}

#[test]
#[ignore = "prints rates, for whoever tunes"]
fn show_rates() {
    let megabytes = |rate: f64| rate / f64::from(1 << 20);
    for (name, delay, rate, loss, jitter, late) in [
        ("25 ms, 100 MB/s", 25, 100_000_000, 0.0, 0, 0.0),
        ("25 ms, 0.1 %", 25, 100_000_000, 0.001, 0, 0.0),
        ("25 ms, 1 %", 25, 100_000_000, 0.01, 0, 0.0),
        ("25 ms, 5 %", 25, 100_000_000, 0.05, 0, 0.0),
        ("25 ms, jitter 10 ms, 5 % 5 ms late", 25, 100_000_000, 0.0, 10, 0.05),
        ("100 ms", 100, 100_000_000, 0.0, 0, 0.0),
        ("100 ms, 1 %", 100, 100_000_000, 0.01, 0, 0.0),
        ("25 ms, 6.25 MB/s", 25, 6_250_000, 0.0, 0, 0.0),
        ("25 ms, 6.25 MB/s, 1 %", 25, 6_250_000, 0.01, 0, 0.0),
        ("0.1 ms, 300 MB/s", 0, 300_000_000, 0.0, 0, 0.0),
    ] {
        let mut line = Line::new(delay);
        if delay == 0 {
            line.delay = Duration::from_micros(100);
        }
        line.rate = Some(rate);
        line.loss = loss;
        line.jitter = Duration::from_millis(jitter);
        line.late = late;
        line.lateness = Duration::from_millis(5);
        let mut pair = Pair::new(7, line);
        pair.ends[0].association.set_window_max(16 << 20);
        pair.ends[1].association.set_window_max(16 << 20);
        pair.ends[0].bulk = u64::MAX;
        let first = pair.rate(1, 1.0);
        let rate = pair.rate(1, 5.0);
        let statistics = pair.ends[0].association.statistics();
        println!(
            "{name}: first second {:.1}, then {:.1} MiB/s, longest gap {:?}, lost {} dropped {} {statistics:?}",
            megabytes(first),
            megabytes(rate),
            pair.ends[1].longest_gap,
            pair.lost,
            pair.dropped
        );
    }
}
