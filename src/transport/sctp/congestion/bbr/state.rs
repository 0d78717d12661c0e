//! BBR's state machine: Startup, Drain, the phases of ProbeBW, and ProbeRTT (draft-ietf-ccwg-bbr-06 §5.3).

use super::super::{Ack, SECOND};
use super::model::{LossCount, Sample};
use super::{BETA, Bbr, BbrState, Feedback, ProbePhase, UNBOUNDED, WITHOUT_HEADROOM, percent};

/// Time with few bytes in flight to measure the round trip (`ProbeRTTDuration`), in nanoseconds.
const PROBE_RTT_DURATION: u64 = 200_000_000;

/// Shortest wait for the next bandwidth probe, in nanoseconds, unless [`MAX_RENO_ROUNDS`] ends the wait (§5.3.3.3).
const MIN_PROBE_WAIT: u64 = 2 * SECOND;
/// Largest random time added to the wait, in nanoseconds.
const MAX_RANDOM_PROBE_WAIT: u64 = SECOND;

/// Divisor of the wait on a short path, where conditions change within milliseconds.
const SHORT_PATH_PROBE_FACTOR: u64 = 8;

/// Most rounds between probes, to coexist with Reno (§5.3.3.3).
const MAX_RENO_ROUNDS: u64 = 63;

/// Rounds of UP after which a standing queue ends the probe.
const QUEUEING_ROUNDS: u64 = 2;

/// Most rounds of Drain after the round in which it began.
const MAX_DRAIN_ROUNDS: u64 = 3;

impl Bbr {
    pub(super) fn is_probe_rtt(&self) -> bool {
        matches!(self.state, BbrState::ProbeRtt { .. })
    }

    /// Long-term bound less headroom for other flows (`InflightWithHeadroom`), in bytes.
    pub(super) fn with_headroom(&self) -> u64 {
        if self.long_in_flight == UNBOUNDED {
            return UNBOUNDED;
        }
        let bound = percent(self.long_in_flight, WITHOUT_HEADROOM);
        bound.min(self.long_in_flight.saturating_sub(self.sizes.segment)).max(self.sizes.min_window())
    }

    /// Bytes in flight that leave no queue.
    fn drained_volume(&self) -> u64 {
        self.quantized(self.bdp(100).saturating_add(self.return_path_bytes()))
    }

    /// Largest window during ProbeRTT, in bytes.
    pub(super) fn probe_rtt_window(&self) -> u64 {
        let (_, gain) = BbrState::ProbeRtt { done_at: None, round_done: false }.gains();
        self.bdp(gain).saturating_add(self.return_path_bytes()).max(self.sizes.min_window())
    }

    /// Transitions after an acknowledgement, except those of ProbeRTT (`UpdateModelAndState`).
    pub(super) fn update_state(&mut self, now: u64, ack: &Ack, sample: &Sample) {
        if self.state == BbrState::Startup && self.full_pipe.reached {
            self.state = BbrState::Drain { start_round: self.rounds.count };
        }
        if let BbrState::Drain { start_round } = self.state
            && (ack.in_flight <= self.drained_volume()
                || self.rounds.count > start_round.saturating_add(MAX_DRAIN_ROUNDS))
        {
            self.start_down(now);
        }
        if !self.full_pipe.reached || self.adapt_long_bound(ack, sample) {
            return;
        }
        let BbrState::ProbeBw(phase) = self.state else { return };
        match phase {
            ProbePhase::Down | ProbePhase::Cruise if self.is_probe_due(now) => self.start_refill(),
            ProbePhase::Down if self.has_drained(ack.in_flight) => self.state = BbrState::ProbeBw(ProbePhase::Cruise),
            ProbePhase::Refill if self.rounds.started => self.start_up(sample),
            ProbePhase::Up if self.is_probe_done(ack, sample) => {
                self.probe.was_too_high = false;
                self.start_down(now);
            }
            ProbePhase::Down | ProbePhase::Cruise | ProbePhase::Refill | ProbePhase::Up => {}
        }
    }

    /// Ends Startup after a round with too high a loss rate (`CheckStartupHighLoss`).
    pub(super) fn end_startup_after_loss(&mut self) {
        self.full_pipe.reached = true;
        self.long_in_flight = self.bdp(100).max(self.latest.in_flight);
    }

    /// Starts a cycle by draining the queue (`StartProbeBW_DOWN`).
    fn start_down(&mut self, now: u64) {
        self.latest.loss = false;
        self.latest.bandwidth = 0;
        self.latest.in_flight = 0;
        self.losses = LossCount::default();
        self.probe.up_acked_per_segment = UNBOUNDED;
        self.probe.rounds_since = self.random.below(2);
        let wait = MIN_PROBE_WAIT.saturating_add(self.random.below(MAX_RANDOM_PROBE_WAIT));
        self.probe.wait = if self.is_short_path() { wait / SHORT_PATH_PROBE_FACTOR } else { wait };
        self.probe.cycle_start = now;
        self.probe.feedback = Feedback::Stopping;
        self.start_round();
        self.state = BbrState::ProbeBw(ProbePhase::Down);
    }

    /// Refills the pipe for a round before the probe (`StartProbeBW_REFILL`).
    fn start_refill(&mut self) {
        self.reset_short_bounds();
        self.probe.up_rounds = 0;
        self.probe.up_acked = 0;
        self.probe.precautionary = false;
        self.probe.feedback = Feedback::Refilling;
        self.start_round();
        self.state = BbrState::ProbeBw(ProbePhase::Refill);
    }

    /// Sends faster than the estimate (`StartProbeBW_UP`).
    fn start_up(&mut self, sample: &Sample) {
        self.probe.sampling = true;
        self.probe.from = self.delivered;
        self.probe.losses = LossCount::default();
        self.probe.feedback = Feedback::Starting;
        self.start_round();
        self.full_pipe.restart(sample.rate);
        self.state = BbrState::ProbeBw(ProbePhase::Up);
        self.probe.up_start = self.rounds.count;
        self.steepen_growth();
    }

    /// `IsTimeToProbeBW`.
    fn is_probe_due(&self, now: u64) -> bool {
        if now > self.probe.cycle_start.saturating_add(self.probe.wait) {
            return true;
        }
        // A short path has thousands of rounds a second. After a probe with too much loss, or with a standing queue, an
        // earlier probe would cause more loss or a longer queue.
        let queueing = self.rounds.queueing_rounds > 0 && self.reacts_to_queue();
        if self.is_short_path() || self.probe.was_too_high || queueing {
            return false;
        }
        let packets = self.bdp(100).min(self.window).checked_div(self.sizes.segment).unwrap_or(0);
        self.probe.rounds_since >= packets.min(MAX_RENO_ROUNDS)
    }

    /// `IsTimeToCruise`.
    fn has_drained(&self, in_flight: u64) -> bool {
        in_flight <= self.with_headroom() && in_flight <= self.drained_volume()
    }

    /// `IsTimeToGoDown`.
    fn is_probe_done(&mut self, ack: &Ack, sample: &Sample) -> bool {
        if self.probe.was_too_high && ack.in_flight >= self.long_in_flight {
            self.probe.precautionary = true;
            return true;
        }
        // A whole round of the probe had a standing queue, so there is no more bandwidth.
        if self.rounds.queueing_rounds > 0
            && self.reacts_to_queue()
            && self.rounds.count >= self.probe.up_start.saturating_add(QUEUEING_ROUNDS)
        {
            return true;
        }
        if ack.window_limited && self.window >= self.long_in_flight {
            self.full_pipe.restart(sample.rate);
            return false;
        }
        self.full_pipe.is_full()
    }

    /// `RaiseInflightLongtermSlope`: doubles the growth of the long-term bound in each round of a probe.
    fn steepen_growth(&mut self) {
        let divisor = 1_u64.checked_shl(self.probe.up_rounds).unwrap_or(u64::MAX);
        self.probe.up_rounds = self.probe.up_rounds.saturating_add(1).min(30);
        self.probe.up_acked_per_segment = self.window.checked_div(divisor).unwrap_or(0).max(self.sizes.segment);
    }

    /// `ProbeInflightLongtermUpward`.
    fn grow_long_bound(&mut self, ack: &Ack) {
        if !ack.window_limited || self.window < self.long_in_flight {
            return;
        }
        self.probe.up_acked = self.probe.up_acked.saturating_add(ack.acked);
        let step = self.probe.up_acked_per_segment.max(1);
        let segments = self.probe.up_acked.checked_div(step).unwrap_or(0);
        self.probe.up_acked = self.probe.up_acked.checked_rem(step).unwrap_or(0);
        self.long_in_flight = self.long_in_flight.saturating_add(segments.saturating_mul(self.sizes.segment));
        if self.rounds.started {
            self.steepen_growth();
        }
    }

    /// `AdaptLongTermModel`. Returns `true` after a transition.
    fn adapt_long_bound(&mut self, ack: &Ack, sample: &Sample) -> bool {
        if self.rounds.started && self.advance_feedback(sample) {
            return true;
        }
        if self.probe.sampling && sample.prior_delivered >= self.probe.from {
            self.probe.losses.acked = self.probe.losses.acked.saturating_add(ack.acked);
            if self.rounds.started {
                self.probe.losses.end_round(self.sizes.segment);
            }
        }
        // More than 2 % of the data in flight was lost: the bound is not raised.
        let lost = ack.total_lost.saturating_sub(sample.prior_lost);
        if lost.saturating_mul(50) > sample.tx_in_flight || self.long_in_flight == UNBOUNDED {
            return false;
        }
        // Packets sent before the last cut filled the queue that caused it, so they do not raise the bound.
        if sample.prior_delivered >= self.probe.from {
            self.long_in_flight = self.long_in_flight.max(sample.tx_in_flight);
        }
        if self.state == BbrState::ProbeBw(ProbePhase::Up) {
            self.grow_long_bound(ack);
        }
        false
    }

    /// Advances the feedback of the probe at the start of a round. Returns `true` after a transition.
    fn advance_feedback(&mut self, sample: &Sample) -> bool {
        match self.probe.feedback {
            Feedback::Starting => self.probe.feedback = Feedback::Arriving,
            Feedback::Stopping => {
                self.probe.sampling = false;
                self.probe.feedback = Feedback::None;
                if !self.state.is_probe_bw() {
                    return false;
                }
                if !sample.limited {
                    self.max_bandwidth.advance();
                }
                if self.probe.precautionary && !self.probe.was_too_high {
                    self.start_refill();
                    return true;
                }
            }
            Feedback::None | Feedback::Refilling | Feedback::Arriving => {}
        }
        false
    }

    /// Handles a probe with too much loss at `in_flight` bytes in flight (`HandleInflightTooHigh`).
    pub(super) fn reduce_long_bound(&mut self, in_flight: u64, now: u64) {
        self.probe.was_too_high = true;
        self.probe.sampling = false;
        self.probe.from = self.delivered;
        if !self.limited {
            self.long_in_flight = in_flight.max(percent(self.bdp(100).min(self.window), BETA));
        }
        if self.state == BbrState::ProbeBw(ProbePhase::Up) {
            self.start_down(now);
        }
        self.bound_window();
    }

    /// Returns to probing after a spurious cut (`HandleSpuriousLossDetection`).
    pub(super) fn return_to(&mut self, state: BbrState, now: u64) {
        match state {
            BbrState::Startup if self.state != BbrState::Startup => {
                self.full_pipe.reached = false;
                if !self.is_probe_rtt() {
                    self.state = BbrState::Startup;
                }
            }
            BbrState::ProbeBw(ProbePhase::Up)
                if matches!(self.state, BbrState::ProbeBw(ProbePhase::Down | ProbePhase::Cruise)) =>
            {
                self.probe.was_too_high = false;
                self.probe.cycle_start = now;
                self.start_refill();
            }
            _ => {}
        }
    }

    /// `CheckProbeRTT` (§5.3.4.4).
    pub(super) fn update_probe_rtt(&mut self, now: u64, in_flight: u64, rtt: Option<u64>) {
        if !self.is_probe_rtt() && self.min_rtt.expired() && !self.idle_restart {
            self.prior_window = self.window;
            self.state = BbrState::ProbeRtt { done_at: None, round_done: false };
            self.probe.feedback = Feedback::Stopping;
            self.start_round();
        }
        self.idle_restart = false;
        let BbrState::ProbeRtt { done_at, round_done } = self.state else { return };
        // ProbeRTT limits the rate of these packets, so their samples do not measure the path.
        self.limited_until = self.delivered.saturating_add(in_flight).max(1);
        match done_at {
            None if in_flight <= self.probe_rtt_window() => {
                self.state =
                    BbrState::ProbeRtt { done_at: Some(now.saturating_add(PROBE_RTT_DURATION)), round_done: false };
                self.start_round();
            }
            None => {}
            Some(done_at) => {
                let round_done = round_done || self.rounds.started;
                self.state = BbrState::ProbeRtt { done_at: Some(done_at), round_done };
                // On a short path one sample suffices to show that the path is still short.
                let confirmed = self.is_short_path() && rtt.is_some_and(|rtt| rtt < self.short_path);
                if round_done && (confirmed || now > done_at) {
                    self.exit_probe_rtt(now);
                }
            }
        }
    }

    /// Leaves ProbeRTT after idle time if its duration is over. The idle time has drained the path.
    pub(super) fn finish_probe_rtt(&mut self, now: u64) {
        if let BbrState::ProbeRtt { done_at: Some(done_at), .. } = self.state
            && now > done_at
        {
            self.exit_probe_rtt(now);
        }
    }

    fn exit_probe_rtt(&mut self, now: u64) {
        self.min_rtt.end_probe_rtt(now);
        self.window = self.window.max(self.prior_window);
        self.reset_short_bounds();
        if self.full_pipe.reached {
            self.start_down(now);
            self.state = BbrState::ProbeBw(ProbePhase::Cruise);
        } else {
            self.state = BbrState::Startup;
        }
    }
}
