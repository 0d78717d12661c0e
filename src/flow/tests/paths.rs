//! Tests of the window over simulated paths of three links, in virtual time. The tests run only natively, because
//! they take minutes as unoptimised WebAssembly.

use super::{
    super::*,
    simulation::{Link, PathSimulation, fairness},
};

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A rate of `mib` MiB/s, in cells a second.
const fn mib_per_second(mib: u64) -> u64 {
    mib * 1024
}

/// Three links with a one-way delay of `delay_ms` milliseconds each. The middle link has `rate` cells a second; the
/// others are faster.
fn links(delay_ms: u64, rate: u64, loss: f64) -> [Link; 3] {
    let fast = Link { loss, ..Link::new(delay_ms, mib_per_second(250)) };
    [fast, Link { rate, ..fast }, fast]
}

/// The throughput in MiB/s during `measured`, after a run of `warm_up`.
fn throughput(path: &mut PathSimulation, warm_up: Duration, measured: Duration) -> f64 {
    path.run(warm_up);
    path.rate(measured) / 1024.0
}

/// The throughput of one circuit in MiB/s, over links with a delay of 25 ms and with `loss` each. The middle link has
/// 60 MiB/s.
fn throughput_with_loss(seed: u64, loss: f64, warm_up: Duration, measured: Duration) -> f64 {
    throughput(&mut PathSimulation::new(seed, &links(25, mib_per_second(60), loss), 1), warm_up, measured)
}

#[test]
fn one_circuit_fills_a_line_of_60_mib_a_second_at_25_ms_a_link_within_two_seconds() {
    let mut path = PathSimulation::new(1, &links(25, mib_per_second(60), 0.0), 1);
    let rate = throughput(&mut path, seconds(2), seconds(8));
    assert!(rate >= 57.0, "{rate} MiB/s");
}

#[test]
fn sixteen_circuits_fill_a_line_of_120_mib_a_second_at_25_ms_a_link_and_share_it_equally() {
    let mut path = PathSimulation::new(1, &links(25, mib_per_second(120), 0.0), 16);
    path.run(seconds(2));
    let rates = path.rates(seconds(4));
    let sum = rates.iter().sum::<f64>() / 1024.0;
    assert!(sum >= 115.0 && fairness(&rates) >= 0.99, "{sum} MiB/s, {rates:?}");
}

#[test]
fn one_circuit_gets_25_mib_a_second_at_25_ms_a_link_and_a_loss_of_one_in_a_thousand() {
    for seed in 1..=3 {
        let rate = throughput_with_loss(seed, 0.001, seconds(4), seconds(6));
        assert!(rate >= 25.0, "seed {seed}: {rate} MiB/s");
    }
}

#[test]
fn one_circuit_gets_12_mib_a_second_at_25_ms_a_link_and_a_loss_of_one_in_a_hundred() {
    for seed in 1..=4 {
        let rate = throughput_with_loss(seed, 0.01, seconds(8), seconds(8));
        assert!(rate >= 12.0, "seed {seed}: {rate} MiB/s");
    }
}

#[test]
fn sixteen_circuits_fill_a_line_of_60_mib_a_second_with_a_loss_of_one_in_a_hundred() {
    let mut path = PathSimulation::new(1, &links(25, mib_per_second(60), 0.01), 16);
    path.run(seconds(6));
    let rates = path.rates(seconds(6));
    let sum = rates.iter().sum::<f64>() / 1024.0;
    assert!(sum >= 55.0 && fairness(&rates) >= 0.95, "{sum} MiB/s, {rates:?}");
}

#[test]
fn one_circuit_gets_20_mib_a_second_at_100_ms_a_link_and_sixteen_get_45() {
    let mut path = PathSimulation::new(1, &links(100, mib_per_second(50), 0.0), 1);
    let rate = throughput(&mut path, seconds(6), seconds(6));
    assert!(rate >= 20.0, "{rate} MiB/s");
    let mut path = PathSimulation::new(1, &links(100, mib_per_second(50), 0.0), 16);
    let rate = throughput(&mut path, seconds(8), seconds(6));
    assert!(rate >= 45.0, "{rate} MiB/s");
}

#[test]
fn after_slow_start_the_mean_queueing_delay_is_at_most_twice_the_queue_time() {
    let queue_time = FlowParameters::default().queue_time;
    for (delay, rate) in [
        (1, mib_per_second(50)),
        (5, mib_per_second(20)),
        (25, mib_per_second(6)),
        (25, mib_per_second(40)),
        (60, mib_per_second(5)),
        (100, mib_per_second(10)),
    ] {
        let mut path = PathSimulation::new(1, &links(delay, rate, 0.0), 1);
        path.run(seconds(15));
        let mut mean_wait = Duration::ZERO;
        for _ in 0..50 {
            path.run(Duration::from_millis(100));
            mean_wait += Duration::from_secs_f64(path.queued(0) as f64 / rate as f64) / 50;
        }
        assert!(mean_wait <= queue_time * 2, "{delay} ms, {rate} cells/s: {mean_wait:?}");
    }
}

#[test]
fn sixteen_circuits_fill_50_mbit_a_second_with_a_short_queue_and_do_not_delay_a_light_circuit() {
    let light = 16;
    let mut path = PathSimulation::new(1, &links(25, 6000, 0.0), 17);
    path.circuits[light].remaining = 0;
    path.run(seconds(4));
    path.circuits[light].longest_delivery = Duration::ZERO;
    let (mut delivered, mut queued) = (vec![0.0; light], 0);
    for _ in 0..40 {
        path.set_remaining(light, 1);
        let rates = path.rates(Duration::from_millis(250));
        delivered.iter_mut().zip(rates).for_each(|(sum, rate)| *sum += rate / 40.0);
        queued += (0..light).map(|circuit| path.queued(circuit)).sum::<u64>();
    }
    let sum: f64 = delivered.iter().sum();
    assert!(sum >= 5800.0 && fairness(&delivered) >= 0.98, "{delivered:?}");
    let mean_wait = queued as f64 / 40.0 / 6000.0;
    assert!(mean_wait <= 0.15, "{mean_wait} s wait");
    // The bound is the propagation delay of 75 ms, plus the time to send one message of other circuits on each link.
    assert!(
        path.circuits[light].longest_delivery <= Duration::from_millis(90),
        "{:?}",
        path.circuits[light].longest_delivery
    );
}

#[test]
fn batches_on_a_short_path_cost_little_throughput() {
    for (pause, circuits) in [(500, 1), (2000, 1), (5000, 1), (5000, 16)] {
        let link = Link {
            delay: Duration::from_micros(50),
            pause: Duration::from_micros(pause),
            ..Link::new(0, mib_per_second(90))
        };
        for seed in 1..=2 {
            let mut path = PathSimulation::new(seed, &[link; 3], circuits);
            let rate = throughput(&mut path, seconds(1), seconds(3));
            assert!(rate >= 86.0, "seed {seed}, {pause} us, {circuits}: {rate} MiB/s");
        }
    }
}

#[test]
fn a_circuit_queues_at_most_the_largest_window_at_a_relay() {
    for delay in [1, 10, 50, 150] {
        let mut path = PathSimulation::new(1, &links(delay, 8000, 0.01), 1);
        path.run(seconds(30));
        assert!(path.longest_queue <= u64::from(FlowParameters::default().window_max));
    }
}

#[test]
fn slow_start_queues_at_most_three_bandwidth_delay_products_at_a_relay() {
    for (delay, rate) in [(25, mib_per_second(40)), (25, 6000), (100, mib_per_second(5))] {
        let mut path = PathSimulation::new(1, &links(delay, rate, 0.0), 1);
        path.run(seconds(10));
        let bdp = rate * delay * 6 / 1000;
        assert!(path.longest_queue <= bdp * 3 + 512, "{delay} ms, {rate} cells/s: {} of {bdp}", path.longest_queue);
    }
}

#[test]
fn a_path_with_increased_delay_carries_nine_tenths_of_its_rate_within_ten_seconds() {
    let mut path = PathSimulation::new(1, &links(5, mib_per_second(10), 0.0), 1);
    path.run(seconds(5));
    path.change_link(0, |link| link.delay = Duration::from_millis(75));
    let rate = throughput(&mut path, seconds(10), seconds(5));
    assert!(rate >= 9.0, "{rate} MiB/s");
}

#[test]
fn the_window_fills_a_faster_line_within_three_seconds_and_drains_the_queue_of_a_slower_line() {
    let mut path = PathSimulation::new(1, &links(25, mib_per_second(5), 0.0), 1);
    path.run(seconds(6));
    path.change_link(1, |link| link.rate = mib_per_second(40));
    let rate = throughput(&mut path, seconds(3), seconds(4));
    assert!(rate >= 36.0, "{rate} MiB/s");
    path.change_link(1, |link| link.rate = mib_per_second(4));
    path.run(seconds(6));
    let wait = path.queued(0) as f64 / mib_per_second(4) as f64;
    assert!(wait <= 0.1, "{wait} s wait");
}

#[test]
fn two_circuits_get_equal_rates_and_one_gets_the_whole_rate_after_the_other_stops() {
    let mut path = PathSimulation::new(1, &links(25, mib_per_second(20), 0.0), 2);
    path.circuits[1].remaining = 0;
    path.run(seconds(5));
    path.set_remaining(1, u64::MAX);
    path.run(seconds(3));
    let rates = path.rates(seconds(4));
    assert!(fairness(&rates) >= 0.97, "{rates:?}");
    path.set_remaining(1, 0);
    path.run(seconds(2));
    let rate = path.rates(seconds(4))[0] / 1024.0;
    assert!(rate >= 18.5, "{rate} MiB/s");
}

#[test]
fn the_queue_that_the_window_causes_is_not_measured_as_propagation_delay() {
    let mut path = PathSimulation::new(1, &links(5, mib_per_second(10), 0.0), 1);
    path.run(seconds(10));
    let rate = path.rate(seconds(90)) / 1024.0;
    assert!(rate >= 9.7, "{rate} MiB/s");
    let bdp = mib_per_second(10) * 30 / 1000;
    assert!(path.circuits[0].window.window() <= bdp + 600, "{}", path.circuits[0].window.window());
}

#[test]
fn an_application_limited_sender_does_not_grow_its_window() {
    let mut path = PathSimulation::new(1, &links(25, mib_per_second(10), 0.0), 1);
    path.circuits[0].remaining = 0;
    for _ in 0..100 {
        path.set_remaining(0, 40);
        path.run(Duration::from_millis(100));
    }
    assert!(path.circuits[0].window.window() <= 256, "{}", path.circuits[0].window.window());
}

#[test]
fn a_slow_line_reduces_the_window_to_no_less_than_the_minimum() {
    let mut path = PathSimulation::new(1, &links(1, 100, 0.0), 1);
    path.run(seconds(60));
    let (window, parameters) = (path.circuits[0].window.window(), FlowParameters::default());
    assert!(window <= 128 && window >= u64::from(parameters.window_min), "{window}");
    let rate = path.rate(seconds(10));
    assert!(rate >= 95.0, "{rate} cells/s");
}

#[test]
fn the_first_mebibyte_arrives_within_four_round_trips() {
    let mut path = PathSimulation::new(1, &links(25, mib_per_second(60), 0.0), 1);
    path.run(Duration::from_millis(3 * 151 + 100));
    assert!(path.circuits[0].delivered >= 1024, "{}", path.circuits[0].delivered);
}
