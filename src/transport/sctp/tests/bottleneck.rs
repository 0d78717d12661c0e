//! Tests of the throughput and fairness of associations over one bottleneck.

use core::time::Duration;

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use super::{
    super::{Config, congestion::Algorithm},
    path::{Pair, PathConditions},
};

/// A direction of `rate` bytes a second with `delay` milliseconds one way and a queue of `queue_bdps` bandwidth-delay
/// products.
fn bottleneck(delay: u64, rate: u64, queue_bdps: f64) -> PathConditions {
    let mut conditions = PathConditions::new(delay);
    conditions.rate = Some(rate);
    conditions.queue = (conditions.delay * 2).mul_f64(queue_bdps);
    conditions
}

fn links(number: usize, algorithm: Algorithm) -> Vec<[Config; 2]> {
    let config = Config { algorithm, ..Config::new(1_195) };
    vec![[config.clone(), config]; number]
}

/// Sends `bytes` over the first link; asserts that all arrive and are acknowledged.
fn send(pair: &mut Pair, bytes: u64) {
    pair.ends[0].bulk = bytes;
    let (all, seed) = (pair.ends[1].bytes + bytes, pair.seed);
    let done = pair.run(pair.now.after(Duration::from_secs(60)), |pair| {
        pair.ends[1].bytes == all && pair.ends[0].association.is_flushed()
    });
    assert!(done, "{} of {all} bytes arrived (seed {seed})", pair.ends[1].bytes);
}

/// Delivery rate of each link during `seconds`, in bytes a second, after a warm-up of one second.
fn rates(pair: &mut Pair, seconds: f64) -> Vec<f64> {
    pair.ends.iter_mut().step_by(2).for_each(|end| end.bulk = u64::MAX);
    pair.run_for(1.0);
    let before: Vec<_> = pair.ends.iter().map(|end| end.bytes).collect();
    pair.run_for(seconds);
    let arrived = pair.ends.iter().zip(before).skip(1).step_by(2);
    arrived.map(|(end, before)| (end.bytes - before) as f64 / seconds).collect()
}

/// Spurious retransmissions by the diallers, that is, of TSNs of which an earlier copy arrives. Tail loss probes are
/// excluded.
fn spurious_retransmissions(pair: &Pair) -> u64 {
    let diallers = pair.ends.iter().step_by(2);
    diallers.map(|end| end.spurious.saturating_sub(end.association.statistics().probes)).sum()
}

fn longest_stall(pair: &Pair) -> Duration {
    pair.ends.iter().map(|end| end.longest_stall).max().unwrap()
}

#[test]
fn jitter_without_reordering_causes_no_retransmission() {
    for seed in 0..20 {
        let mut rng = StdRng::seed_from_u64(seed);
        let delay = [1, 5, 25, 100, 200][usize::try_from(seed % 5).unwrap()];
        let mut conditions = PathConditions::new(delay);
        conditions.jitter = conditions.delay.mul_f64(rng.random_range(0.0..2.0)).min(Duration::from_millis(100));
        let mut pair = Pair::with(
            seed,
            [conditions, conditions],
            &links(1, [Algorithm::Bbr, Algorithm::Cubic][usize::from(seed % 2 == 1)]),
        );
        send(&mut pair, 300_000);
        let statistics = pair.ends[0].association.statistics();
        assert_eq!(spurious_retransmissions(&pair), 0, "seed {seed}, {conditions:?}, {statistics:?}");
        assert_eq!((statistics.lost, statistics.timeouts), (0, 0), "seed {seed}, {conditions:?}");
    }
}

#[test]
fn reordering_within_a_quarter_of_the_round_trip_causes_spurious_retransmissions_only_at_first() {
    for seed in 0..20 {
        let mut rng = StdRng::seed_from_u64(seed);
        let delay = [4, 10, 25, 100, 200][usize::try_from(seed % 5).unwrap()];
        let mut conditions = PathConditions::new(delay);
        conditions.reordered = rng.random_range(0.01..0.2);
        conditions.reorder_delay = (conditions.delay / 2).mul_f64(rng.random_range(0.1..0.95));
        let mut pair = Pair::new(seed, conditions);
        send(&mut pair, 600_000);
        let first = spurious_retransmissions(&pair);
        send(&mut pair, 400_000);
        let statistics = pair.ends[0].association.statistics();
        assert!(first <= 16, "{first} (seed {seed}, {conditions:?})");
        assert_eq!(spurious_retransmissions(&pair), first, "seed {seed}, {conditions:?}, {statistics:?}");
    }
}

#[test]
fn one_four_and_sixty_four_links_use_most_of_a_bottleneck_with_any_queue() {
    for (seed, number, delay, rate, queue_bdps, min_used) in [
        (1, 1, 1, 4_000_000, 4.0, 0.8),
        (2, 1, 25, 2_000_000, 0.1, 0.6),
        (3, 1, 100, 1_000_000, 1.0, 0.6),
        (4, 4, 10, 2_000_000, 0.5, 0.7),
        (5, 4, 50, 2_000_000, 4.0, 0.7),
        (6, 64, 25, 3_000_000, 1.0, 0.7),
        (7, 64, 100, 3_000_000, 0.1, 0.6),
    ] {
        let mut pair = Pair::with(
            seed,
            [bottleneck(delay, rate, queue_bdps), PathConditions::new(delay)],
            &links(number, Algorithm::Bbr),
        );
        let rates = rates(&mut pair, 1.5);
        let sum: f64 = rates.iter().sum::<f64>() / rate as f64;
        let smallest = rates.iter().copied().fold(f64::MAX, f64::min) / (rate as f64 / number as f64);
        let sent: u64 = pair.ends.iter().step_by(2).map(|end| end.packets).sum();
        let dropped = pair.dropped as f64 / sent as f64;
        println!(
            "seed {seed}: {number} links, {delay} ms, {queue_bdps} BDP: {sum:.2} used, smallest share {smallest:.2}, dropped {dropped:.3}, spurious {}, stall {:?}",
            spurious_retransmissions(&pair),
            longest_stall(&pair)
        );
        assert!(sum > min_used, "{sum:.2} of the rate (seed {seed})");
        assert!(pair.ends.iter().all(|end| end.closed.is_none() && end.open_streams.is_some()), "seed {seed}");
        assert!(longest_stall(&pair) < Duration::from_secs(2), "{:?} (seed {seed})", longest_stall(&pair));
    }
}

#[test]
fn one_link_uses_97_percent_of_50_mbit_with_any_queue() {
    // Payload bytes a second at the rate of the bottleneck, in full datagrams of 1,164 bytes of payload and 93 of
    // headers.
    const CAPACITY: f64 = 6_250_000.0 * 1_164.0 / 1_257.0;
    for (seed, queue_bdps, jitter) in [(1, 1.0, 0), (2, 8.0, 0), (3, 2.0, 1)] {
        let conditions =
            PathConditions { jitter: Duration::from_millis(jitter), ..bottleneck(25, 6_250_000, queue_bdps) };
        let mut pair = Pair::with(seed, [conditions, PathConditions::new(25)], &links(1, Algorithm::Bbr));
        let used = rates(&mut pair, 9.0)[0] / CAPACITY;
        println!("{queue_bdps} BDP, {jitter} ms of jitter: {used:.4}");
        assert!(used >= 0.97, "{used:.4} of the bottleneck with a queue of {queue_bdps} BDP (seed {seed})");
    }
}

#[test]
fn jitter_raised_by_load_soon_stops_counting_as_a_queue() {
    // The simulated jitter doesn't reorder packets. So at this rate nearly every packet waits for an earlier one with
    // the maximum jitter.
    let conditions = PathConditions {
        jitter: Duration::from_millis(10),
        reordered: 0.05,
        reorder_delay: Duration::from_millis(5),
        ..bottleneck(25, 80_000_000, 1.0)
    };
    let return_conditions = PathConditions { rate: None, ..conditions };
    let config = Config { max_window: 16 << 20, ..Config::new(1_195) };
    let mut pair = Pair::with(7, [conditions, return_conditions], &[[config.clone(), config]]);
    rates(&mut pair, 1.0);
    let used = rates(&mut pair, 2.0)[0] / 80_000_000.0;
    assert!(used >= 0.75, "{used:.3} of the bottleneck");
}

#[test]
fn jitter_on_the_return_path_does_not_slow_the_sender() {
    for (seed, jitter) in [(1, 30), (3, 80)] {
        let return_conditions = PathConditions { jitter: Duration::from_millis(jitter), ..PathConditions::new(25) };
        let mut pair = Pair::with(seed, [bottleneck(25, 2_000_000, 2.0), return_conditions], &links(1, Algorithm::Bbr));
        rates(&mut pair, 1.0);
        let used = rates(&mut pair, 6.0)[0] / 2_000_000.0;
        assert!(
            used >= 0.84,
            "{used:.3} of the bottleneck with {jitter} ms of jitter on the return path (seed {seed})"
        );
    }
}

#[test]
fn a_fast_clock_of_the_peer_slows_the_sender_but_does_not_stop_it() {
    for ticks in [1 << 16, 1 << 20, 1 << 28] {
        let mut pair =
            Pair::with(1, [bottleneck(25, 2_000_000, 2.0), PathConditions::new(25)], &links(1, Algorithm::Bbr));
        rates(&mut pair, 1.0);
        pair.false_ticks = Some(ticks);
        pair.run_for(60.0);
        let rate = pair.run_and_measure(1, 60.0);
        assert!(rate >= 500.0 && pair.ends[0].closed.is_none(), "{rate} bytes a second, {ticks} ticks an arrival");
    }
}

#[test]
fn the_sender_keeps_half_the_rate_with_a_policer_a_slow_return_path_or_loss_bursts() {
    let policed = PathConditions { policer: Some((1_500_000, 40_000)), ..PathConditions::new(20) };
    let slow = PathConditions { rate: Some(45_000), queue: Duration::from_millis(200), ..PathConditions::new(20) };
    let bursts = PathConditions { loss: 0.01, burst: 12.0, ..bottleneck(20, 1_500_000, 2.0) };
    for (seed, name, conditions, return_conditions, number) in [
        (1, "policer", policed, PathConditions::new(20), 1),
        (2, "policer, four links", policed, PathConditions::new(20), 4),
        (3, "slow return path", bottleneck(20, 1_500_000, 1.0), slow, 1),
        (4, "slow return path, four links", bottleneck(20, 1_500_000, 1.0), slow, 4),
        (5, "bursts", bursts, PathConditions::new(20), 1),
        (6, "bursts both ways", bursts, PathConditions { loss: 0.1, burst: 5.0, ..PathConditions::new(20) }, 1),
    ] {
        let mut pair = Pair::with(seed, [conditions, return_conditions], &links(number, Algorithm::Bbr));
        let sum: f64 = rates(&mut pair, 3.0).iter().sum();
        println!("{name}: {:.2}, dropped {}, stall {:?}", sum / 1_500_000.0, pair.dropped, longest_stall(&pair));
        assert!(sum > 750_000.0, "{name}: {sum:.0} bytes a second (seed {seed})");
        assert!(longest_stall(&pair) < Duration::from_secs(2), "{name}: {:?} (seed {seed})", longest_stall(&pair));
    }
}

#[test]
fn neither_bbr_nor_cubic_starves_the_other() {
    for (seed, delay, queue_bdps) in [(1, 10, 1.0), (2, 25, 2.0), (3, 25, 4.0)] {
        let both = [links(1, Algorithm::Bbr), links(1, Algorithm::Cubic)].concat();
        let mut pair = Pair::with(seed, [bottleneck(delay, 1_500_000, queue_bdps), PathConditions::new(delay)], &both);
        let rates = rates(&mut pair, 6.0);
        println!("{delay} ms, {queue_bdps} BDP: {rates:?}");
        assert!(rates.iter().all(|rate| *rate > 100_000.0), "{rates:?} (seed {seed})");
        assert!(rates.iter().sum::<f64>() > 1_000_000.0, "{rates:?} (seed {seed})");
    }
}
