//! BBR's rounds and bounds: assigns acknowledgements to rounds, and lowers the bounds of the model after loss and
//! during standing queues (draft-ietf-ccwg-bbr-06 §5.5.1, §5.5.10).

use super::model::{LossCount, Sample};
use super::{BETA, Bbr, BbrState, MIN_STANDING_QUEUE, ProbePhase, UNBOUNDED, Undo, percent, scale};
use crate::base::Counter as _;

/// Decrease of the cruising gain in percent, for a queue of one round trip (of 40 ms if the round trip is shorter).
const QUEUE_FALL: u64 = 40;
/// Steps of the cruising level in one percent.
pub(super) const LEVEL_STEPS: u64 = 4;
/// Decrease of the cruising level in a round with a standing queue, in steps.
const LEVEL_FALL: u64 = 4;
/// Increase of the cruising level in a round with a shorter queue, in steps.
const LEVEL_RISE: u64 = 1;
/// Increase of the cruising level in a round without a queue, in steps.
const EMPTY_RISE: u64 = 12;
/// Lowest cruising gain, in percent.
const MIN_CRUISE_GAIN: u64 = 70;

/// Rounds at the lowest cruising gain after which a queue that has not halved counts as delay of the path: jitter, or
/// a queue of other senders.
const FOREIGN_DELAY_ROUNDS: u64 = 8;

/// Rounds with a standing queue after which a sender that lacks data paces at the cruising gain in Startup.
const STARTUP_QUEUE_ROUNDS: u64 = 4;

/// Largest accepted delay of acknowledgements on the return path, in nanoseconds. Without this cap a peer could
/// attribute a whole queue to the return path.
const MAX_RETURN_DELAY: u64 = 100_000_000;

/// Rounds after a cut in which `on_spurious` can undo the cut.
const UNDO_ROUNDS: u64 = 16;

impl Bbr {
    /// Assigns an acknowledgement to a round, and measures the delays of the round.
    pub(super) fn update_round(&mut self, sample: &Sample, rtt: Option<u64>, queueing_delay: Option<u64>) {
        self.rounds.started = sample.prior_delivered >= self.rounds.end;
        if self.rounds.started {
            self.start_round();
            self.rounds.count.increment();
            self.end_queue_round();
            let [current, _] = self.rounds.return_delay;
            let previous = if current == u64::MAX { 0 } else { current.min(MAX_RETURN_DELAY) };
            self.rounds.return_delay = [u64::MAX, previous];
            self.probe.rounds_since.increment();
            if self.undo.is_some_and(|undo| self.rounds.count > undo.round.saturating_add(UNDO_ROUNDS)) {
                self.undo = None;
            }
        }
        let Some(rtt) = rtt else { return };
        let forward_rtt = match (self.min_rtt.value(), queueing_delay) {
            (Some(min_rtt), Some(queueing_delay)) => rtt.min(min_rtt.saturating_add(queueing_delay)),
            _ => rtt,
        };
        self.rounds.min_rtt = self.rounds.min_rtt.min(forward_rtt);
        if queueing_delay.is_some() {
            let [current, _] = &mut self.rounds.return_delay;
            *current = (*current).min(rtt.saturating_sub(forward_rtt));
        }
    }

    /// Adapts the cruising gain after a round. The estimates of several senders may exceed the rate of the bottleneck
    /// in total; a fixed gain would then leave a standing queue.
    pub(super) fn end_queue_round(&mut self) {
        let lowest = core::mem::replace(&mut self.rounds.min_rtt, u64::MAX);
        let Some(min_rtt) = self.min_rtt.value() else { return };
        // A round without samples is skipped.
        if lowest == u64::MAX {
            return;
        }
        self.rounds.foreign_rtt = self.rounds.foreign_rtt.min(lowest);
        let base = min_rtt.max(self.rounds.foreign_rtt);
        let queueing = lowest > base.saturating_add(MIN_STANDING_QUEUE.max(min_rtt >> 2));
        let was_lowest = self.rounds.cruise_gain == MIN_CRUISE_GAIN;
        let applied = match self.state {
            BbrState::ProbeBw(ProbePhase::Down | ProbePhase::Cruise) => self.reacts_to_queue(),
            BbrState::Startup => self.rounds.startup_at_cruise_gain,
            _ => false,
        };
        self.adapt_cruise_gain(lowest.saturating_sub(base), queueing, applied);
        if !queueing {
            (self.rounds.queueing_rounds, self.rounds.startup_at_cruise_gain) = (0, false);
            return;
        }
        if self.rounds.queueing_rounds == 0 {
            (self.rounds.queue_start_rtt, self.rounds.slowest_rounds) = (lowest, 0);
        }
        self.rounds.queueing_rounds.increment();
        self.rounds.startup_at_cruise_gain = self.limited && self.rounds.queueing_rounds >= STARTUP_QUEUE_ROUNDS;
        if was_lowest && applied {
            self.rounds.slowest_rounds.increment();
        }
        let half = self.rounds.queue_start_rtt.saturating_sub(base) / 2;
        if self.rounds.slowest_rounds >= FOREIGN_DELAY_ROUNDS && lowest > base.saturating_add(half) {
            (self.rounds.queue_start_rtt, self.rounds.slowest_rounds) = (lowest, 0);
            // A quarter exceeds the jitter of most lines, and bounds the queue that several senders with this rule
            // cause.
            let foreign_rtt = lowest.min(min_rtt.saturating_add(min_rtt >> 2));
            if foreign_rtt > self.rounds.foreign_rtt {
                self.rounds.foreign_rtt = foreign_rtt;
                self.rounds.cruise_level = 100 * LEVEL_STEPS;
                (self.rounds.queueing_rounds, self.rounds.startup_at_cruise_gain) = (0, false);
            }
        }
    }

    /// Sets the cruising gain after a round with a queue of `queue` nanoseconds. A `standing` queue lowers the level if
    /// the cruising gain was `applied` in the round. Below the full level, the gain also falls in proportion to the
    /// queue.
    fn adapt_cruise_gain(&mut self, queue: u64, standing: bool, applied: bool) {
        let reference = self.min_rtt.value().unwrap_or(0).max(MIN_STANDING_QUEUE.saturating_mul(4));
        // A sixteenth of the reference counts as jitter of an empty line.
        let queue = queue.saturating_sub(reference >> 4);
        let level = self.rounds.cruise_level;
        let level = match (standing, queue) {
            (true, _) if applied => level.saturating_sub(LEVEL_FALL),
            (true, _) => level,
            (false, 0) => level.saturating_add(EMPTY_RISE),
            (false, _) => level.saturating_add(LEVEL_RISE),
        };
        let full = 100 * LEVEL_STEPS;
        let level = level.clamp(MIN_CRUISE_GAIN * LEVEL_STEPS, full);
        let fall = if level < full { scale(queue, QUEUE_FALL, reference) } else { 0 };
        self.rounds.cruise_level = level;
        self.rounds.cruise_gain = (level / LEVEL_STEPS).saturating_sub(fall).max(MIN_CRUISE_GAIN);
    }

    /// `UpdateLatestDeliverySignals` and `UpdateCongestionSignals` (§5.5.10.3).
    pub(super) fn update_congestion(&mut self, sample: &Sample, acked: u64) {
        self.latest.started = sample.prior_delivered >= self.latest.end;
        self.latest.bandwidth = self.latest.bandwidth.max(sample.rate);
        self.latest.in_flight = self.latest.in_flight.max(sample.delivered);
        self.max_bandwidth.update(sample);
        self.losses.acked = self.losses.acked.saturating_add(acked);
        if !self.latest.started {
            return;
        }
        self.latest.end = self.delivered;
        if core::mem::take(&mut self.latest.loss) && self.losses.is_too_high(0, self.sizes.segment) {
            self.cut_after_loss(sample);
            self.losses = LossCount::default();
        }
        self.losses.end_round(self.sizes.segment);
    }

    /// Cuts the bounds after a round with too high a loss rate.
    fn cut_after_loss(&mut self, sample: &Sample) {
        let heavy = self.losses.is_heavy(self.sizes.segment);
        match self.state {
            // While the rate grows without a standing queue, losses count as random, even in long bursts. Without data
            // the growth can't be measured, so heavy loss ends Startup.
            BbrState::Startup
                if self.full_pipe.is_slowing() || self.rounds.queueing_rounds > 0 || (heavy && sample.limited) =>
            {
                self.save_undo(self.losses, 0);
                self.end_startup_after_loss();
            }
            BbrState::Startup => {}
            state if heavy || !state.is_probing() => {
                self.save_undo(self.losses, 0);
                if !state.is_probing() {
                    self.lower_short_bounds();
                }
                if heavy {
                    self.lower_long_bound();
                }
            }
            _ => {}
        }
    }

    /// `AdvanceLatestDeliverySignals`.
    pub(super) fn advance_latest(&mut self, sample: &Sample) {
        if self.latest.started {
            self.latest.bandwidth = sample.rate;
            self.latest.in_flight = sample.delivered;
        }
    }

    /// `InitLowerBounds` and `LossLowerBounds`.
    fn lower_short_bounds(&mut self) {
        let bandwidth = self.short_bandwidth.min(self.max_bandwidth.value());
        let in_flight = self.short_in_flight.min(self.window);
        let (mut delivered, mut rate) = (self.latest.in_flight, self.latest.bandwidth);
        // With few packets in a round, the highest sample is far above the mean, so the mean over rounds is used.
        if self.losses.rounds > 0 {
            let mean = self.losses.acked_in_round();
            rate = scale(rate, mean, delivered.max(1)).min(rate);
            delivered = delivered.min(mean);
        }
        self.short_bandwidth = percent(bandwidth, BETA).max(rate);
        self.short_in_flight = percent(in_flight, BETA).max(delivered);
    }

    /// Lowers the long-term bound after heavy loss, also outside a probe. Many senders, each with a few packets in
    /// flight, can fill the queue without probing, and the short-term bounds last for one cycle only.
    fn lower_long_bound(&mut self) {
        self.probe.was_too_high = true;
        let bound = percent(self.bdp(100).min(self.window), BETA).max(self.losses.acked_in_round());
        self.long_in_flight = self.long_in_flight.min(bound.max(self.sizes.min_window()));
    }

    pub(super) fn reset_short_bounds(&mut self) {
        self.short_bandwidth = UNBOUNDED;
        self.short_in_flight = UNBOUNDED;
    }

    /// Saves the model before a cut that `losses` cause, judged over at least `volume` bytes. Cuts within
    /// [`UNDO_ROUNDS`] are undone together.
    pub(super) fn save_undo(&mut self, losses: LossCount, volume: u64) {
        if let Some(undo) = &mut self.undo {
            // `on_lost` has counted the losses since the first cut.
            undo.losses.acked = undo.losses.acked.saturating_add(losses.acked);
            return;
        }
        self.undo = Some(Undo {
            round: self.rounds.count,
            state: self.state,
            window: self.window,
            short_bandwidth: self.short_bandwidth,
            short_in_flight: self.short_in_flight,
            long_in_flight: self.long_in_flight,
            losses,
            volume,
        });
    }
}
