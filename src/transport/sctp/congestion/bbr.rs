//! BBR, version 3: congestion control from a model of the path's bandwidth and round trip (draft-ietf-ccwg-bbr-06).
//!
//! The controller paces at the highest delivery rate of the last two probing cycles, and caps the bytes in flight at
//! about twice the bandwidth-delay product. Loss lowers both only if the loss rate is too high to be random. Section
//! numbers in comments are those of the draft.
//!
//! Differences from the draft, with the reasons in `docs/transport.md` or beside the code:
//!
//! | topic | here |
//! |---|---|
//! | loss threshold | 2 % plus two standard deviations, over at least 250 packets ([`model::LossCount`]) |
//! | short-term bounds | cut after a round with too high a loss rate, not after a round with any loss |
//! | long-term bound | cut after heavy loss (8 %) outside a probe too |
//! | Startup | loss ends it only if the rate has stopped growing, there is a standing queue, or loss is heavy and data lacking |
//! | paths under `ControllerSizes::short_path` | no pacing; window at least `min_short_path_window`, at least a quarter of that after loss |
//! | standing queue | lowers the cruising gain (not below 0.7) and ends probes after two rounds |
//! | persistent queue | if the last two ProbeRTTs both found a queue, a standing queue has no effect |
//! | foreign delay | delay that the lowest gain doesn't shorten, up to a quarter of the round trip, doesn't count as a queue |
//! | return path | delay of acknowledgements, by the peer's clock, doesn't count as a queue, and raises the window |
//! | Startup without data | paces at the cruising gain during a standing queue |
//! | spurious loss | undoes a cut once the remaining losses would not have caused it |
//! | ProbeRTT | delayed while samples confirm the lowest round trip ever to within 1/64 |
//! | lowest round trip | valid for 15 s (three ProbeRTTs), not 10 s |
//! | full-pipe detection | compares the rounds' highest rates, not the rates of their first samples |

use crate::base::Instant;

use super::{Ack, Controller, ControllerSizes, Lost, SECOND, Sent, nanos, scale};
use model::{Aggregation, FullPipe, LossCount, MIN_LOSS_PACKETS, MaxBandwidth, MinRtt, Random, Sample};

mod bounds;
mod model;
mod state;

/// Value of an absent bound.
const UNBOUNDED: u64 = u64::MAX;

/// Share of the estimated bandwidth in the pacing rate, in percent (§5.6.2). The margin drains queues that estimation
/// errors cause.
const PACING_PERCENT: u64 = 99;

/// Share of a bound that remains after a cut (`Beta`), in percent.
const BETA: u64 = 70;

/// Share of the long-term bound used while cruising (1 - `Headroom`), in percent.
const WITHOUT_HEADROOM: u64 = 85;

/// Smallest queueing delay that counts as a standing queue, in nanoseconds.
const MIN_STANDING_QUEUE: u64 = 10_000_000;

/// Phase of bandwidth probing within ProbeBW (§5.3.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ProbePhase {
    Down,
    Cruise,
    Refill,
    Up,
}

/// State of the sender (§5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BbrState {
    Startup,
    /// Ends at the latest once more than three rounds have begun since `start_round`.
    Drain {
        start_round: u64,
    },
    ProbeBw(ProbePhase),
    /// `done_at` (nanoseconds) is set once the bytes in flight have fallen to the window, and `round_done` a round
    /// later.
    ProbeRtt {
        done_at: Option<u64>,
        round_done: bool,
    },
}

impl BbrState {
    /// Pacing gain and window gain, in percent (§5.6.1).
    fn gains(self) -> (u64, u64) {
        match self {
            Self::Startup => (277, 200),
            Self::Drain { .. } => (50, 200),
            Self::ProbeBw(ProbePhase::Down) => (90, 200),
            Self::ProbeBw(ProbePhase::Cruise | ProbePhase::Refill) => (100, 200),
            Self::ProbeBw(ProbePhase::Up) => (125, 225),
            Self::ProbeRtt { .. } => (100, 50),
        }
    }

    /// Whether the sender probes for bandwidth. During a probe, loss does not lower the short-term bounds.
    fn is_probing(self) -> bool {
        matches!(self, Self::Startup | Self::ProbeBw(ProbePhase::Refill | ProbePhase::Up))
    }

    fn is_probe_bw(self) -> bool {
        matches!(self, Self::ProbeBw(_))
    }
}

/// Packet-timed rounds (§5.5.1). Ends are counts of delivered bytes.
#[derive(Clone, Copy, Debug, Default)]
struct Rounds {
    /// The acknowledgement of a packet sent at or after this count begins the next round.
    end: u64,
    /// The current acknowledgement begins a round.
    started: bool,
    count: u64,
    /// Lowest round trip of the current round, in nanoseconds; without the delay on the return path if that is known.
    min_rtt: u64,
    /// Smallest delay of acknowledgements on the return path, in the current and the previous round, in nanoseconds.
    return_delay: [u64; 2],
    /// Consecutive rounds whose lowest round trip shows a standing queue.
    queueing_rounds: u64,
    /// The sender lacked data during a standing queue. Startup can't measure the rate of the bottleneck then, so
    /// Startup paces at the cruising gain.
    startup_at_cruise_gain: bool,
    /// Lowest round trip of the round in which the count of [`Self::slowest_rounds`] began, in nanoseconds.
    queue_start_rtt: u64,
    /// Rounds with a standing queue at the lowest cruising gain, counted to detect foreign delay.
    slowest_rounds: u64,
    /// Lowest round trip that the lowest cruising gain did not shorten, in nanoseconds; zero for none.
    foreign_rtt: u64,
    /// Upper bound of the pacing gain outside probes, in percent.
    cruise_gain: u64,
    /// The same bound before the decrease in proportion to the queue, in steps ([`bounds::LEVEL_STEPS`] for a percent).
    cruise_level: u64,
}

/// Delivery since the last loss round began (§5.5.10.3).
#[derive(Clone, Copy, Debug, Default)]
struct Latest {
    /// The acknowledgement of a packet sent at or after this count of delivered bytes begins the next loss round.
    end: u64,
    /// The current acknowledgement begins a loss round.
    started: bool,
    /// Highest delivery rate, in bytes a second.
    bandwidth: u64,
    /// Most bytes delivered in the interval of a sample.
    in_flight: u64,
    /// A packet has counted as lost.
    loss: bool,
}

/// Relation of the current acknowledgements to a bandwidth probe (`ack_phase`, §5.3.3.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Feedback {
    None,
    Refilling,
    Starting,
    Arriving,
    Stopping,
}

/// Progress of bandwidth probing.
#[derive(Clone, Copy, Debug)]
struct Probe {
    feedback: Feedback,
    /// Losses of packets sent at or after `from` may lower the long-term bound.
    sampling: bool,
    /// Count of delivered bytes at the start of the probe or at the last cut.
    from: u64,
    losses: LossCount,
    /// Start of the cycle, in nanoseconds.
    cycle_start: u64,
    /// Time from the start of the cycle to the next probe, in nanoseconds.
    wait: u64,
    /// Rounds since the start of the cycle, plus a random 0 or 1.
    rounds_since: u64,
    /// Round in which UP started.
    up_start: u64,
    /// Rounds for which the long-term bound has grown in UP (`probe_up_rounds`).
    up_rounds: u32,
    /// Acknowledged bytes not yet counted towards growth (`probe_up_acks`).
    up_acked: u64,
    /// Number of acknowledged bytes for which the bound grows by a segment (`probe_up_cnt`).
    up_acked_per_segment: u64,
    /// The last probe caused too much loss (`prev_probe_too_high`).
    was_too_high: bool,
    /// The current probe ended early, since the last one caused too much loss (`prev_probe_precautionary`).
    precautionary: bool,
}

/// The model before a cut, for [`Controller::on_spurious`].
#[derive(Clone, Copy, Debug)]
struct Undo {
    round: u64,
    state: BbrState,
    window: u64,
    short_bandwidth: u64,
    short_in_flight: u64,
    long_in_flight: u64,
    /// The losses that caused the cut and the losses since, except spurious ones. Later acknowledgements are not
    /// counted, because the cut prevents further losses.
    losses: LossCount,
    /// Smallest volume over which `losses` is judged, in bytes.
    volume: u64,
}

/// The BBR controller of one association.
#[derive(Debug)]
pub struct Bbr {
    sizes: ControllerSizes,
    /// [`ControllerSizes::short_path`] in nanoseconds.
    short_path: u64,
    random: Random,
    state: BbrState,
    window: u64,
    pacing_rate: Option<u64>,
    max_bandwidth: MaxBandwidth,
    min_rtt: MinRtt,
    aggregation: Aggregation,
    full_pipe: FullPipe,
    rounds: Rounds,
    latest: Latest,
    /// Losses and deliveries of the current count, which [`LossCount::end_round`] restarts.
    losses: LossCount,
    probe: Probe,
    /// Short-term bounds (`bw_shortterm`, `inflight_shortterm`): bytes a second and bytes.
    short_bandwidth: u64,
    short_in_flight: u64,
    /// Long-term bound (`inflight_longterm`), in bytes.
    long_in_flight: u64,
    undo: Option<Undo>,
    /// Bytes delivered so far.
    delivered: u64,
    /// The most recent sample was limited by the application.
    limited: bool,
    /// Samples of packets sent before this delivery count were limited by ProbeRTT.
    limited_until: u64,
    /// The window before ProbeRTT.
    prior_window: u64,
    /// No acknowledgement has arrived since the sender was idle.
    idle_restart: bool,
}

impl Bbr {
    /// A controller in Startup. `seed` determines the intervals between bandwidth probes.
    #[must_use]
    pub fn new(sizes: ControllerSizes, now: Instant, seed: u64) -> Self {
        Self::with_random(sizes, now.as_nanos(), Random::new(seed))
    }

    fn with_random(sizes: ControllerSizes, now: u64, random: Random) -> Self {
        Self {
            sizes,
            short_path: sizes.short_path_nanos(),
            random,
            state: BbrState::Startup,
            window: sizes.initial_window(),
            pacing_rate: None,
            max_bandwidth: MaxBandwidth::default(),
            min_rtt: MinRtt::new(now),
            aggregation: Aggregation::new(now),
            full_pipe: FullPipe::default(),
            rounds: Rounds {
                min_rtt: u64::MAX,
                return_delay: [u64::MAX, 0],
                cruise_gain: 100,
                cruise_level: 100 * bounds::LEVEL_STEPS,
                ..Rounds::default()
            },
            latest: Latest::default(),
            losses: LossCount::default(),
            probe: Probe {
                feedback: Feedback::None,
                sampling: false,
                from: 0,
                losses: LossCount::default(),
                cycle_start: now,
                wait: 0,
                rounds_since: 0,
                up_start: 0,
                up_rounds: 0,
                up_acked: 0,
                up_acked_per_segment: UNBOUNDED,
                was_too_high: false,
                precautionary: false,
            },
            short_bandwidth: UNBOUNDED,
            short_in_flight: UNBOUNDED,
            long_in_flight: UNBOUNDED,
            undo: None,
            delivered: 0,
            limited: false,
            limited_until: 0,
            prior_window: 0,
            idle_restart: false,
        }
    }

    /// Estimated bandwidth in bytes a second, after short-term bounds; zero before the first sample.
    #[must_use]
    pub fn bandwidth(&self) -> u64 {
        self.max_bandwidth.value().min(self.short_bandwidth)
    }

    /// Lowest recent round trip; `None` before the first sample.
    #[must_use]
    pub fn min_rtt(&self) -> Option<core::time::Duration> {
        self.min_rtt.value().map(core::time::Duration::from_nanos)
    }

    /// Whether the round trip is too short for pacing by timers.
    fn is_short_path(&self) -> bool {
        self.min_rtt.value().is_some_and(|min_rtt| min_rtt < self.short_path)
    }

    /// `gain` percent of the bandwidth-delay product in bytes (`BDPMultiple`, §5.6.4.2).
    fn bdp(&self, gain: u64) -> u64 {
        match self.min_rtt.value() {
            Some(min_rtt) if self.bandwidth() > 0 => percent(scale(self.bandwidth(), min_rtt, SECOND), gain),
            _ => self.sizes.initial_window(),
        }
    }

    /// Bytes that have arrived at the peer, but whose acknowledgements are delayed on the return path.
    fn return_path_bytes(&self) -> u64 {
        let [_, return_delay] = self.rounds.return_delay;
        scale(self.bandwidth(), return_delay, SECOND)
    }

    /// `in_flight`, raised to the minimum for bursts of the pacer and delayed acknowledgements (`QuantizationBudget`).
    fn quantized(&self, in_flight: u64) -> u64 {
        let burst = (self.pacing_rate.unwrap_or(0) / 1000).min(1 << 16);
        in_flight.max(burst.saturating_mul(3)).max(self.sizes.min_window())
    }

    /// Starts a round with the next packet sent (`StartRound`).
    fn start_round(&mut self) {
        self.rounds.end = self.delivered;
    }

    /// Whether a standing queue lowers the rate: not if the last two ProbeRTTs both found a queue, which slower sending
    /// does not shorten.
    fn reacts_to_queue(&self) -> bool {
        !self.min_rtt.has_persistent_queue(MIN_STANDING_QUEUE)
    }

    /// The pacing gain in percent, lowered by a standing queue outside probes.
    fn pacing_gain(&self) -> u64 {
        let (gain, _) = self.state.gains();
        match self.state {
            BbrState::ProbeBw(ProbePhase::Down | ProbePhase::Cruise) if self.reacts_to_queue() => {
                gain.min(self.rounds.cruise_gain)
            }
            BbrState::Startup if self.rounds.startup_at_cruise_gain => gain.min(self.rounds.cruise_gain),
            _ => gain,
        }
    }

    fn set_pacing_rate(&mut self, gain: u64) {
        let bandwidth = self.bandwidth();
        let rate = if bandwidth > 0 {
            percent(percent(bandwidth, gain), PACING_PERCENT)
        } else if let Some(min_rtt) = self.min_rtt.value() {
            percent(scale(self.sizes.initial_window(), SECOND, min_rtt.max(1)), gain)
        } else {
            return;
        };
        // During Startup the rate only rises (§5.6.2).
        if self.full_pipe.reached
            || self.rounds.startup_at_cruise_gain
            || self.pacing_rate.is_none_or(|current| rate > current)
        {
            // At a rate near zero there would be no further samples.
            self.pacing_rate = Some(rate.max(self.sizes.segment));
        }
    }

    /// `SetCwnd` (§5.6.4.6).
    fn set_window(&mut self, acked: u64) {
        let (_, gain) = self.state.gains();
        let aggregated = self.return_path_bytes().max(self.aggregation.excess());
        let mut target = self.quantized(self.bdp(gain).saturating_add(aggregated));
        if self.state == BbrState::ProbeBw(ProbePhase::Up) {
            target = target.saturating_add(self.sizes.segment.saturating_mul(2));
        }
        if self.is_short_path() && !self.is_probe_rtt() {
            target = target.max(scale(self.bandwidth(), self.short_path, SECOND)).max(self.sizes.min_short_path_window);
        }
        if self.full_pipe.reached {
            self.window = self.window.saturating_add(acked).min(target);
        } else if self.window < target || self.delivered < self.sizes.initial_window() {
            self.window = self.window.saturating_add(acked);
        }
        self.bound_window();
    }

    /// Smallest window in bytes. On a short path, a long-term bound (after loss) lowers it. Otherwise a bottleneck with
    /// a queue shorter than [`ControllerSizes::min_short_path_window`] would continue to lose most packets.
    fn smallest_window(&self) -> u64 {
        if !self.is_short_path() || self.is_probe_rtt() {
            return self.sizes.min_window();
        }
        let floor = self.sizes.min_short_path_window;
        self.long_in_flight.clamp(floor >> 2, floor).max(self.sizes.min_window())
    }

    /// `BoundCwndForProbeRTT` and `BoundCwndForModel` (§5.6.4.7), and the fixed bounds of the window.
    fn bound_window(&mut self) {
        let mut cap = match self.state {
            BbrState::Startup | BbrState::Drain { .. } => UNBOUNDED,
            BbrState::ProbeBw(ProbePhase::Cruise) => self.with_headroom(),
            BbrState::ProbeBw(_) => self.long_in_flight,
            BbrState::ProbeRtt { .. } => self.with_headroom().min(self.probe_rtt_window()),
        };
        if self.state != BbrState::Startup {
            cap = cap.min(self.short_in_flight);
        }
        let floor = self.smallest_window();
        self.window = self.window.min(cap).max(floor).min(self.sizes.max_window);
    }
}

/// `gain` percent of `value`.
fn percent(value: u64, gain: u64) -> u64 {
    scale(value, gain, 100)
}

impl Controller for Bbr {
    fn on_sent(&mut self, _: &Sent) {}

    fn on_lost(&mut self, lost: &Lost) {
        if let Some(undo) = &mut self.undo {
            undo.losses.lost = undo.losses.lost.saturating_add(lost.bytes);
        }
        if !self.latest.loss {
            self.latest.loss = true;
            self.latest.end = self.delivered;
        }
        self.losses.lost = self.losses.lost.saturating_add(lost.bytes);
        if !self.probe.sampling || lost.prior_delivered < self.probe.from {
            return;
        }
        self.probe.losses.lost = self.probe.losses.lost.saturating_add(lost.bytes);
        if self.probe.losses.is_too_high(lost.tx_in_flight, self.sizes.segment) {
            // With few packets in flight the loss rate is known only long after the bound was exceeded.
            let in_flight = if lost.tx_in_flight < self.sizes.segment.saturating_mul(MIN_LOSS_PACKETS) {
                self.probe.losses.delivered_of(lost.tx_in_flight)
            } else {
                lost.tx_in_flight.saturating_sub(lost.bytes)
            };
            self.save_undo(self.probe.losses, lost.tx_in_flight);
            self.reduce_long_bound(in_flight, lost.now.as_nanos());
        }
    }

    fn on_ack(&mut self, ack: &Ack) {
        self.delivered = ack.delivered;
        let Some(rate) = &ack.rate else {
            self.bound_window();
            return;
        };
        let now = ack.now.as_nanos();
        let rtt = ack.rtt.map(nanos);
        let sample = Sample::new(rate, self.min_rtt.value(), self.limited_until);
        self.limited = rate.app_limited;
        self.update_round(&sample, rtt, ack.queueing_delay.map(nanos));
        self.update_congestion(&sample, ack.acked);
        let startup = !self.full_pipe.reached;
        self.aggregation.update(now, ack.acked, self.bandwidth(), self.window, self.rounds.count, startup);
        self.full_pipe.update(&sample, self.rounds.started);
        self.update_state(now, ack, &sample);
        self.min_rtt.update(rtt, now, self.short_path);
        self.update_probe_rtt(now, ack.in_flight, rtt);
        self.advance_latest(&sample);
        self.set_pacing_rate(self.pacing_gain());
        self.set_window(ack.acked);
    }

    fn on_spurious(&mut self, now: Instant, bytes: u64) {
        self.losses.lost = self.losses.lost.saturating_sub(bytes);
        if self.probe.sampling {
            self.probe.losses.lost = self.probe.losses.lost.saturating_sub(bytes);
        }
        let Some(mut undo) = self.undo.take() else { return };
        undo.losses.count_as_late(bytes);
        // With reordering among real losses, some losses are spurious but the cut remains justified.
        if undo.losses.is_too_high(undo.volume, self.sizes.segment) {
            self.undo = Some(undo);
            return;
        }
        // The remaining losses are added to later ones.
        self.losses = undo.losses;
        self.probe.losses = undo.losses;
        self.latest.loss = false;
        self.full_pipe.restart(0);
        self.short_bandwidth = self.short_bandwidth.max(undo.short_bandwidth);
        self.short_in_flight = self.short_in_flight.max(undo.short_in_flight);
        self.long_in_flight = self.long_in_flight.max(undo.long_in_flight);
        if !self.is_probe_rtt() {
            self.window = self.window.max(undo.window);
        }
        self.prior_window = self.prior_window.max(undo.window);
        self.return_to(undo.state, now.as_nanos());
        self.bound_window();
    }

    fn on_time_out(&mut self, now: Instant) {
        let delivered = self.delivered;
        let mut fresh = Self::with_random(self.sizes, now.as_nanos(), self.random);
        fresh.delivered = delivered;
        fresh.rounds.end = delivered;
        fresh.latest.end = delivered;
        *self = fresh;
    }

    fn on_idle_end(&mut self, now: Instant, _: Instant) {
        let now = now.as_nanos();
        self.idle_restart = true;
        self.aggregation.restart(now);
        match self.state {
            BbrState::ProbeBw(_) => self.set_pacing_rate(100),
            BbrState::ProbeRtt { .. } => self.finish_probe_rtt(now),
            BbrState::Startup | BbrState::Drain { .. } => {}
        }
        self.window = self.window.min(self.bdp(100).max(self.sizes.initial_window()));
        self.bound_window();
    }

    fn window(&self) -> u64 {
        self.window
    }

    fn pacing_rate(&self) -> Option<u64> {
        if self.is_short_path() { None } else { self.pacing_rate }
    }

    fn state(&self) -> &'static str {
        match self.state {
            BbrState::Startup => "startup",
            BbrState::Drain { .. } => "drain",
            BbrState::ProbeBw(ProbePhase::Down) => "probe-bw-down",
            BbrState::ProbeBw(ProbePhase::Cruise) => "probe-bw-cruise",
            BbrState::ProbeBw(ProbePhase::Refill) => "probe-bw-refill",
            BbrState::ProbeBw(ProbePhase::Up) => "probe-bw-up",
            BbrState::ProbeRtt { .. } => "probe-rtt",
        }
    }
}
