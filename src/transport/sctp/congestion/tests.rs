//! Tests of the controllers with a flow model in virtual time.

use core::time::Duration;

use super::Algorithm::{self, Bbr, Cubic};
use super::{Ack, Control, Controller, Lost, RateSample};
use crate::base::Instant;
use network::{Flow, MILLISECOND, Network, Path, Random, SECOND, SEGMENT, Source, sizes};

mod network;
mod sharing;

/// A network of one endless flow.
fn single_flow(algorithm: Algorithm, path: Path, seed: u64) -> Network {
    Network::new(path, vec![Flow::new(algorithm, 0, Source::Endless, seed)], seed)
}

/// Share of the bottleneck rate that `network` delivers from now to `end` seconds.
fn share(network: &mut Network, end: u64) -> f64 {
    let time = (end * SECOND - network.now) as f64 / SECOND as f64;
    let delivered: u64 = network.delivered_until(end * SECOND).iter().sum();
    delivered as f64 / time / network.path.rate as f64
}

/// Share of the sent bytes that were lost.
fn loss(network: &Network) -> f64 {
    let lost: u64 = network.flows.iter().map(|flow| flow.lost).sum();
    let sent: u64 = network.flows.iter().map(|flow| flow.sent).sum();
    lost as f64 / sent.max(1) as f64
}

fn model(network: &Network, flow: usize) -> &super::Bbr {
    match &network.flows[flow].control {
        Control::Bbr(bbr) => bbr,
        Control::Cubic(_) => panic!("not a BBR flow"),
    }
}

/// The duration of each complete period in `state`, in milliseconds.
fn durations_in(flow: &Flow, state: &str) -> Vec<u64> {
    let changes = flow.states.windows(2).filter(|pair| pair[0].1 == state);
    changes.map(|pair| (pair[1].0 - pair[0].0) / MILLISECOND).collect()
}

#[track_caller]
fn assert_fills(path: Path, least: f64) {
    // On a fast path, one run of two seconds has enough packets.
    let seeds = if path.rate > 50_000_000 { 1 } else { 2 };
    for seed in 1..=seeds {
        let mut network = single_flow(Bbr, path, seed);
        network.run(SECOND);
        let share = share(&mut network, if path.rate > 50_000_000 { 2 } else { 4 });
        assert!(share >= least, "seed {seed}: {share:.3} of {path:?}");
    }
}

#[test]
fn bbr_fills_the_path_despite_random_loss() {
    for rate in [20_000_000, 100_000_000] {
        for loss in [0, 1_000, 10_000] {
            assert_fills(Path { loss, ..Path::new(rate, 25, 50) }, 0.93);
        }
    }
    assert_fills(Path { loss: 10_000, ..Path::new(2_000_000, 50, 100) }, 0.9);
    assert_fills(Path { loss: 10_000, ..Path::new(20_000_000, 200, 100) }, 0.6);
}

#[test]
fn bbr_fills_the_path_with_bursts_of_loss() {
    for rate in [2_000_000, 10_000_000] {
        for seed in 1..=4 {
            let mut network = single_flow(Bbr, Path { loss: 10_000, burst: 4, ..Path::new(rate, 50, 50) }, seed);
            network.run(2 * SECOND);
            let share = share(&mut network, 6);
            assert!(share >= 0.8, "seed {seed}: {share:.3} of {rate}");
        }
    }
}

#[test]
fn bbr_fills_the_path_with_jitter_and_reordering() {
    assert_fills(Path { jitter: 10 * MILLISECOND, ..Path::new(20_000_000, 50, 50) }, 0.9);
    assert_fills(Path { jitter: 10 * MILLISECOND, loss: 10_000, ..Path::new(20_000_000, 50, 50) }, 0.9);
}

#[test]
fn bbr_fills_the_path_with_aggregated_acknowledgements() {
    assert_fills(Path { grid: 5 * MILLISECOND, ..Path::new(20_000_000, 25, 50) }, 0.9);
    assert_fills(Path { grid: 20 * MILLISECOND, ..Path::new(20_000_000, 25, 50) }, 0.85);
}

#[test]
fn bbr_fills_slow_and_shallow_paths() {
    let mut network = single_flow(Bbr, Path::new(125_000, 100, 500), 1);
    network.run(3 * SECOND);
    assert!(share(&mut network, 30) >= 0.93);
    for queue in [1, 5] {
        let mut network = single_flow(Bbr, Path::new(20_000_000, 50, queue), 1);
        network.run(3 * SECOND);
        let share = share(&mut network, 10);
        assert!(share >= 0.85, "{share:.3} with a queue of {queue} ms");
        assert!(loss(&network) < 0.02, "{:.4} lost with a queue of {queue} ms", loss(&network));
    }
}

#[test]
fn bbr_alone_keeps_the_queue_nearly_empty_and_loses_nothing() {
    let mut network = single_flow(Bbr, Path::new(6_250_000, 25, 100), 1);
    network.run(2 * SECOND);
    network.reset_statistics();
    let share = share(&mut network, 30);
    assert!(share >= 0.97, "{share:.3}");
    assert!(network.backlog() <= 0.25, "a mean queue of {:.2} BDP", network.backlog());
    assert_eq!(network.flows[0].lost, 0);
}

#[test]
fn bbr_adapts_to_a_policer() {
    let path = Path { policer: Some((20_000_000, 100_000)), ..Path::new(125_000_000, 50, 20) };
    let mut network = single_flow(Bbr, path, 1);
    network.run(3 * SECOND);
    network.reset_statistics();
    let share = share(&mut network, 10) * 125.0 / 20.0;
    assert!(share >= 0.85, "{share:.3}");
    assert!(loss(&network) < 0.02, "{:.4} lost", loss(&network));
}

#[test]
fn an_application_limited_sender_keeps_its_estimate() {
    let mut network = single_flow(Bbr, Path::new(20_000_000, 25, 100), 1);
    network.run(3 * SECOND);
    let before = model(&network, 0).bandwidth();
    network.flows[0].set_source(Source::Rate(500_000));
    network.run(30 * SECOND);
    let after = model(&network, 0).bandwidth();
    assert!(after * 10 >= before * 9, "{after} after {before}");
    network.flows[0].set_source(Source::Endless);
    let share = share(&mut network, 31);
    assert!(share >= 0.9, "{share:.3} of the path in the first second");
}

#[test]
fn startup_lasts_while_the_application_limits_the_rate() {
    let mut network = single_flow(Bbr, Path::new(20_000_000, 25, 100), 1);
    network.flows[0].set_source(Source::Rate(200_000));
    network.run(10 * SECOND);
    assert_eq!(network.flows[0].control.state(), "startup");
    network.flows[0].set_source(Source::Endless);
    network.run(11 * SECOND);
    let share = share(&mut network, 13);
    assert!(share >= 0.9, "{share:.3}");
}

#[test]
fn idle_time_keeps_the_rate_and_cuts_the_window_to_one_bdp() {
    let path = Path::new(20_000_000, 25, 100);
    let mut network = single_flow(Bbr, path, 1);
    network.run(3 * SECOND);
    let rate = model(&network, 0).bandwidth();
    let control = &mut network.flows[0].control;
    control.on_idle_end(Instant::from_nanos(60 * SECOND), Instant::from_nanos(4 * SECOND));
    assert!(control.window() <= path.bdp() * 11 / 10, "a window of {}", control.window());
    let paced = control.pacing_rate().unwrap();
    assert!((rate * 95 / 100..=rate).contains(&paced), "{paced} of {rate}");
}

#[test]
fn bbr_follows_a_longer_and_a_shorter_round_trip() {
    for (before, after) in [(25, 60), (60, 25)] {
        let mut network = single_flow(Bbr, Path::new(5_000_000, before, 100), 1);
        network.run(5 * SECOND);
        network.path.delay = after * MILLISECOND;
        network.run(25 * SECOND);
        let min_rtt = model(&network, 0).min_rtt().unwrap().as_secs_f64() * 1000.0;
        assert!((min_rtt - after as f64).abs() < 2.0, "{min_rtt} ms after {before} became {after}");
        let share = share(&mut network, 30);
        assert!(share >= 0.9, "{share:.3} after {before} ms became {after} ms");
    }
}

#[test]
fn bbr_follows_a_change_of_the_bandwidth() {
    for (before, after) in [(10_000_000, 3_000_000), (3_000_000, 10_000_000)] {
        let mut network = single_flow(Bbr, Path::new(before, 25, 100), 1);
        network.run(5 * SECOND);
        network.path = Path::new(after, 25, 100);
        network.run(15 * SECOND);
        network.reset_statistics();
        let share = share(&mut network, 20);
        assert!(share >= 0.9, "{share:.3} after {before} became {after}");
        assert!(network.backlog() < 1.0, "a mean queue of {:.2} BDP", network.backlog());
    }
}

#[test]
fn probe_rtt_lasts_200_milliseconds_and_a_round_trip_to_drain() {
    // After the round trip grows, no sample confirms the old minimum, so ProbeRTT becomes due.
    let mut network = single_flow(Bbr, Path::new(5_000_000, 25, 100), 1);
    network.run(5 * SECOND);
    network.path.delay = 40 * MILLISECOND;
    network.run(30 * SECOND);
    let durations = durations_in(&network.flows[0], "probe-rtt");
    assert!((2..=5).contains(&durations.len()), "{} times", durations.len());
    assert!(durations.iter().all(|duration| (200..300).contains(duration)), "{durations:?} ms");
}

#[test]
fn a_short_path_is_not_paced_and_its_window_stays_large() {
    for (delay, grid) in [(50_000, 1), (200_000, MILLISECOND), (1_000_000, 4 * MILLISECOND)] {
        let path = Path { delay, grid, queue: 2 << 20, ..Path::new(250_000_000, 1, 1) };
        let mut network = single_flow(Bbr, path, 1);
        network.run(SECOND / 4);
        network.flows[0].min_window = u64::MAX;
        let delivered = network.delivered_until(3 * SECOND / 4)[0];
        assert!(network.flows[0].min_window >= sizes().min_short_path_window, "{:?}", network.flows[0].min_window);
        assert_eq!(network.flows[0].control.pacing_rate(), None);
        // With acknowledgements every 4 ms, a window of 2 ms plus the aggregation limits the rate.
        assert!(delivered >= 77_000_000, "{delivered} bytes with a grid of {grid} ns");
    }
}

#[test]
fn a_short_path_with_a_short_queue_loses_little() {
    let path = Path { delay: MILLISECOND, queue: 64 << 10, ..Path::new(12_500_000, 1, 1) };
    let mut network = single_flow(Bbr, path, 1);
    network.run(2 * SECOND);
    network.reset_statistics();
    let share = share(&mut network, 8);
    assert!(share >= 0.95, "{share:.3}");
    assert!(loss(&network) <= 0.03, "{:.4} lost", loss(&network));
}

#[test]
fn pauses_of_the_bottleneck_do_not_slow_a_short_path() {
    for (queue, delay, least) in [(2 << 20, 50_000, 0.9), (2 << 20, 1_000_000, 0.9), (208 << 10, 300_000, 0.85)] {
        for (interval, length) in [(20, 5), (4, 2)] {
            let pauses = Some((interval * MILLISECOND, length * MILLISECOND));
            let path = Path { delay, queue, pauses, grid: delay, ..Path::new(250_000_000, 1, 1) };
            let mut network = single_flow(Bbr, path, 1);
            network.run(SECOND / 4);
            network.reset_statistics();
            let possible = interval as f64 / (interval + length) as f64;
            let delivered = network.delivered_until(3 * SECOND / 4)[0] as f64;
            let share = delivered * 2.0 / path.rate as f64 / possible;
            assert!(share >= least, "{share:.3} of the possible rate of {path:?}");
            assert!(network.flows[0].control.window() >= sizes().min_short_path_window / 4);
        }
    }
}

#[test]
fn jitter_does_not_make_a_short_path_long() {
    let path = Path { delay: 100_000, jitter: 6 * MILLISECOND, queue: 2 << 20, ..Path::new(100_000_000, 1, 1) };
    let mut network = single_flow(Bbr, path, 1);
    network.run(SECOND / 10);
    network.flows[0].min_window = u64::MAX;
    network.run(SECOND);
    assert!(network.flows[0].min_window >= sizes().min_short_path_window);
    assert_eq!(network.flows[0].control.pacing_rate(), None);
}

#[test]
fn the_window_has_at_least_four_segments_despite_heavy_loss() {
    for algorithm in [Bbr, Cubic] {
        let path = Path { loss: 500_000, ..Path::new(1_000_000, 50, 100) };
        let mut network = single_flow(algorithm, path, 1);
        network.run(10 * SECOND);
        assert!(network.flows[0].min_window >= 4 * SEGMENT);
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let run = |seed| {
        let mut network = single_flow(Bbr, Path { loss: 5_000, ..Path::new(5_000_000, 25, 50) }, seed);
        network.run(8 * SECOND);
        (network.flows[0].delivered, network.flows[0].states.clone())
    };
    assert_eq!(run(3), run(3));
    assert_ne!(run(3), run(4));
}

#[test]
fn a_time_out_resets_the_model() {
    let mut network = single_flow(Bbr, Path::new(20_000_000, 25, 100), 1);
    network.run(3 * SECOND);
    let control = &mut network.flows[0].control;
    control.on_time_out(Instant::from_nanos(4 * SECOND));
    assert_eq!((control.state(), control.window(), control.pacing_rate()), ("startup", 10 * SEGMENT, None));
    network.run(6 * SECOND);
    let share = share(&mut network, 8);
    assert!(share >= 0.9, "{share:.3}");
}

/// Reports a whole window of packets, sent a millisecond before, as lost to `control`.
fn report_window_lost(control: &mut Control, now: u64, delivered: u64) {
    let window = control.window();
    for index in 1..=window / SEGMENT {
        control.on_lost(&Lost {
            now: Instant::from_nanos(now),
            bytes: SEGMENT,
            sent_at: Instant::from_nanos(now - MILLISECOND),
            prior_delivered: delivered,
            tx_in_flight: window,
            prior_lost: 0,
            total_lost: index * SEGMENT,
        });
    }
}

#[test]
fn a_spurious_loss_is_undone() {
    for (algorithm, state) in [(Bbr, "probe-bw-up"), (Cubic, "congestion-avoidance")] {
        let mut network = single_flow(algorithm, Path::new(20_000_000, 25, 50), 1);
        while network.flows[0].control.state() != state {
            network.run(network.now + MILLISECOND);
        }
        network.run(network.now + 30 * MILLISECOND);
        let (now, delivered) = (network.now, network.flows[0].delivered);
        let control = &mut network.flows[0].control;
        let window = control.window();
        report_window_lost(control, now, delivered);
        assert!(control.window() < window, "{algorithm:?} does not cut {window}");
        let lost = window / SEGMENT * SEGMENT;
        control.on_spurious(Instant::from_nanos(now + MILLISECOND), lost / 2);
        assert!(control.window() < window, "{algorithm:?} undoes a cut for half of the losses");
        control.on_spurious(Instant::from_nanos(now + MILLISECOND), lost - lost / 2);
        assert!(control.window() >= window, "{algorithm:?}: {} of {window}", control.window());
        if algorithm == Cubic {
            report_window_lost(control, now, delivered);
            assert!(control.window() < window, "real losses of the same flight cut {window} as before");
        }
    }
}

#[test]
fn only_heavy_loss_ends_the_startup_of_an_application_limited_sender() {
    for (loss, leaves) in [(10_000, false), (200_000, true)] {
        let flow = Flow::new(Bbr, 0, Source::Rate(2_000_000), 1);
        let mut network = Network::new(Path { loss, ..Path::new(20_000_000, 50, 50) }, vec![flow], 1);
        network.run(4 * SECOND);
        let state = network.flows[0].control.state();
        assert_eq!(state != "startup", leaves, "{state} with {loss} of a million lost");
    }
}

#[test]
fn a_source_slightly_above_the_bottleneck_rate_keeps_the_queue_short() {
    for hundredths in [101, 105] {
        let path = Path::new(5_000_000, 50, 200);
        let flow = Flow::new(Bbr, 0, Source::Rate(path.rate / 2), 1);
        let mut network = Network::new(path, vec![flow], 1);
        network.run(3 * SECOND);
        assert_eq!(network.flows[0].control.state(), "startup");
        network.flows[0].source = Source::Rate(path.rate / 100 * hundredths);
        network.reset_statistics();
        network.run(13 * SECOND);
        let (backlog, loss) = (network.backlog(), loss(&network));
        assert!(backlog <= 0.2 && loss == 0.0, "{hundredths} %: a mean queue of {backlog:.2} BDP, {loss:.4} lost");
    }
}

#[test]
fn cubic_fills_a_clean_path_and_leaves_slow_start_without_much_loss() {
    for rate in [2_000_000, 10_000_000] {
        let mut network = single_flow(Cubic, Path::new(rate, 50, 100), 1);
        network.run(2 * SECOND);
        assert!(loss(&network) < 0.05, "{:.4} lost at {rate}", loss(&network));
        let share = share(&mut network, 12);
        assert!(share >= 0.95, "{share:.3} of {rate}");
    }
}

#[test]
fn cubic_cuts_once_for_the_losses_of_a_round_trip() {
    let mut network = single_flow(Cubic, Path::new(20_000_000, 25, 100), 1);
    network.run(3 * SECOND);
    let (now, delivered) = (network.now, network.flows[0].delivered);
    let control = &mut network.flows[0].control;
    let window = control.window();
    report_window_lost(control, now, delivered);
    assert_eq!(control.window(), window * 7 / 10);
}

#[test]
fn cubic_lowers_the_window_after_idle_time() {
    let mut network = single_flow(Cubic, Path::new(20_000_000, 25, 100), 1);
    network.run(3 * SECOND);
    let control = &mut network.flows[0].control;
    let window = control.window();
    control.on_idle_end(Instant::from_nanos(4 * SECOND), Instant::from_nanos(3 * SECOND));
    assert!(control.window() < window && control.window() >= 10 * SEGMENT);
}

#[test]
fn the_window_stays_within_its_bounds_under_random_calls() {
    // Most of the random calls are inconsistent with each other.
    for seed in 0..40 {
        for algorithm in [Bbr, Cubic] {
            let mut random = Random(seed);
            let mut control = Control::new(algorithm, sizes(), Instant::START, seed);
            let (mut now, mut delivered, mut lost) = (0, 0_u64, 0_u64);
            for _ in 0..2_000 {
                now += random.size(40);
                let at = Instant::from_nanos(now);
                match random.below(12) {
                    0 => control.on_spurious(at, random.size(40)),
                    1 => control.on_idle_end(at, Instant::from_nanos(random.size(40))),
                    2 if random.below(20) == 0 => control.on_time_out(at),
                    3 | 4 => {
                        let bytes = random.size(20);
                        lost = lost.saturating_add(bytes);
                        control.on_lost(&Lost {
                            now: at,
                            bytes,
                            sent_at: Instant::from_nanos(random.size(60)),
                            prior_delivered: random.size(64),
                            tx_in_flight: random.size(64),
                            prior_lost: random.size(64),
                            total_lost: lost,
                        });
                    }
                    _ => {
                        let acked = random.size(24);
                        delivered = delivered.saturating_add(acked);
                        control.on_ack(&random_ack(&mut random, at, acked, delivered, lost));
                    }
                }
                let window = control.window();
                assert!((4 * SEGMENT..=sizes().max_window).contains(&window), "seed {seed}: {window}");
                assert_ne!(control.pacing_rate(), Some(0), "seed {seed}");
            }
        }
    }
}

fn random_ack(random: &mut Random, now: Instant, acked: u64, delivered: u64, total_lost: u64) -> Ack {
    let rate = RateSample {
        prior_delivered: random.size(64),
        prior_lost: random.size(64),
        tx_in_flight: random.size(64),
        delivered: random.size(64),
        interval: Duration::from_nanos(random.size(64)),
        app_limited: random.below(2) == 0,
    };
    Ack {
        now,
        acked,
        lost: random.size(20),
        prior_in_flight: random.size(64),
        in_flight: random.size(64),
        delivered,
        total_lost,
        rtt: (random.below(4) > 0).then(|| Duration::from_nanos(random.size(64))),
        queueing_delay: (random.below(2) > 0).then(|| Duration::from_nanos(random.size(64))),
        rate: (random.below(8) > 0).then_some(rate),
        window_limited: random.below(2) == 0,
    }
}
