//! Several senders over one bottleneck.

use super::network::{Flow, MILLISECOND, Network, Path, SECOND, Source};
use super::{Algorithm, Bbr, Cubic, loss, share};

/// A common access line: 50 Mbit/s, 25 ms, and a drop-tail queue of 100 ms.
fn line() -> Path {
    Path::new(6_250_000, 25, 100)
}

/// A network whose flows, one for each of `algorithms`, start 200 ms apart.
fn shared(path: Path, algorithms: &[Algorithm], seed: u64) -> Network {
    let flows = algorithms.iter().zip(0..).map(|(algorithm, index)| {
        Flow::new(*algorithm, index * 200 * MILLISECOND, Source::Endless, seed * 1000 + index)
    });
    Network::new(path, flows.collect(), seed)
}

/// Jain's fairness index: 1 for equal shares, the inverse of the number of flows if one flow has all.
fn fairness(shares: &[u64]) -> f64 {
    let total: f64 = shares.iter().map(|share| *share as f64).sum();
    let squares: f64 = shares.iter().map(|share| (*share as f64).powi(2)).sum();
    total * total / squares / shares.len() as f64
}

#[test]
fn two_bbr_flows_share_fairly() {
    for path in [line(), Path::new(10_000_000, 50, 100)] {
        for seed in 1..=2 {
            let mut network = shared(path, &[Bbr, Bbr], seed);
            network.run(10 * SECOND);
            let shares = network.delivered_until(30 * SECOND);
            assert!(fairness(&shares) >= 0.9, "seed {seed}: {:.3} of {shares:?} over {path:?}", fairness(&shares));
        }
    }
}

#[test]
fn the_mean_queue_of_two_bbr_flows_is_at_most_55_percent_of_a_bdp() {
    for path in [line(), Path::new(10_000_000, 50, 100)] {
        let backlogs = (1..=4).map(|seed| {
            let mut network = shared(path, &[Bbr, Bbr], seed);
            network.run(10 * SECOND);
            network.reset_statistics();
            let share = share(&mut network, 30);
            assert!(share >= 0.97, "seed {seed}: {share:.3} of {path:?}");
            network.backlog()
        });
        let mean = backlogs.sum::<f64>() / 4.0;
        assert!(mean <= 0.55, "a mean queue of {mean:.2} BDP over {path:?}");
    }
}

#[test]
fn many_bbr_flows_keep_a_queue_of_at_most_130_percent_of_a_bdp_and_lose_at_most_2_in_1000() {
    for count in [2, 4, 16] {
        for seed in 1..=2 {
            let mut network = shared(line(), &vec![Bbr; count], seed);
            network.run(20 * SECOND);
            network.reset_statistics();
            let share = share(&mut network, 40);
            let (backlog, loss) = (network.backlog(), loss(&network));
            assert!(share >= 0.97, "seed {seed}, {count} flows: {share:.3}");
            assert!(backlog <= 1.3, "seed {seed}, {count} flows: a mean queue of {backlog:.2} BDP");
            assert!(loss <= 0.002, "seed {seed}, {count} flows: {loss:.4} lost");
        }
    }
}

#[test]
fn sixty_four_bbr_flows_with_two_packets_each_lose_at_most_a_tenth() {
    let mut network = shared(line(), &[Bbr; 64], 1);
    network.run(40 * SECOND);
    network.reset_statistics();
    let share = share(&mut network, 60);
    assert!(share >= 0.97, "{share:.3}");
    assert!(loss(&network) <= 0.1, "{:.4} lost", loss(&network));
}

#[test]
fn sixty_four_bbr_flows_with_eight_packets_each_keep_the_queue_below_their_windows() {
    // Flows that start together share nearly equally. Flows that start 20 ms apart find a queue at their start, which they
    // count as the path's round trip until the ProbeRTTs coincide. The first flows still have most of the rate after 30 s.
    for (stagger, backlog_bound, loss_bound, least_fairness) in [(0, 1.0, 0.003, 0.8), (20, 1.7, 0.01, 0.3)] {
        let path = Path::new(12_500_000, 50, 100);
        let flows = (0..64).map(|index| Flow::new(Bbr, index * stagger * MILLISECOND, Source::Endless, index));
        let mut network = Network::new(path, flows.collect(), 1);
        network.run(20 * SECOND);
        network.reset_statistics();
        let shares = network.delivered_until(30 * SECOND);
        let used = shares.iter().sum::<u64>() as f64 / (path.rate * 10) as f64;
        let (backlog, loss, fairness) = (network.backlog(), loss(&network), fairness(&shares));
        let figures =
            format!("{stagger} ms apart: {used:.3} used, {backlog:.2} BDP, {loss:.4} lost, index {fairness:.3}");
        println!("{figures}");
        assert!(
            used >= 0.97 && backlog <= backlog_bound && loss <= loss_bound && fairness >= least_fairness,
            "{figures}"
        );
    }
}

#[test]
fn a_slow_bbr_flow_whose_source_becomes_endless_gets_a_share_beside_cubic() {
    for seed in 1..=3 {
        let path = Path::new(5_000_000, 50, 50);
        let slow = Flow::new(Bbr, 0, Source::Rate(30_000), seed);
        let other = Flow::new(Cubic, SECOND, Source::Endless, seed + 10);
        let mut network = Network::new(path, vec![slow, other], seed);
        network.run(6 * SECOND);
        network.flows[0].source = Source::Endless;
        let before = network.flows[0].delivered;
        network.run(9 * SECOND);
        let delivered = network.flows[0].delivered - before;
        assert!(delivered > 1_000_000, "seed {seed}: {delivered} bytes in three seconds");
    }
}

#[test]
fn bbr_and_cubic_each_get_at_least_a_fifth() {
    for algorithms in [[Bbr, Cubic], [Cubic, Bbr]] {
        for seed in 1..=2 {
            let mut network = shared(line(), &algorithms, seed);
            network.run(20 * SECOND);
            let shares = network.delivered_until(60 * SECOND);
            let smallest = shares.iter().min().unwrap() * 1000 / shares.iter().sum::<u64>();
            assert!(smallest >= 200, "seed {seed}: {algorithms:?} got {shares:?}");
        }
    }
}

#[test]
fn two_cubic_flows_share_fairly() {
    let mut network = shared(line(), &[Cubic, Cubic], 1);
    network.run(10 * SECOND);
    let shares = network.delivered_until(90 * SECOND);
    assert!(fairness(&shares) >= 0.9, "{:.3} of {shares:?}", fairness(&shares));
}
