//! The sender's congestion window, computed from a model of the path as in BBR (Cardwell et al. 2016). Unlike BBR, the
//! sender does not pace: the window alone limits the cells in flight.
//!
//! A round lasts one round trip, and measures a delivery rate. The window is
//!
//! ```text
//! greatest delivery rate of the last rounds × (min RTT + 2 × jitter) + queue
//! ```
//!
//! where `queue` is the number of cells delivered in `queue_time`, at least `queue_min` and at most `queue_max`. A
//! circuit loses no cell, because links retransmit. Cells behind a lost datagram wait for its retransmission, up to
//! five quarters of the link's round trip. Two measurements distinguish this delay from a queue that the window causes:
//!
//! - **Jitter** is the moving average of a round's mean round-trip time minus the round's smallest. A standing queue
//!   delays all cells of a round equally. A retransmission delays only the cells that wait for it, the first ones
//!   longest.
//! - **Probes** measure the min RTT, the smallest round-trip time. A probe starts when all samples have exceeded the
//!   min RTT by more than a sixteenth for `min_rtt_age` and for ten round trips. A probe reduces the window below the
//!   path's bandwidth-delay product. Once the path's queue has drained, the tags sent during one further round trip
//!   measure min RTT and jitter again. The probe ends when these tags are acknowledged. The remaining delay counts as
//!   propagation delay.
//!
//! At first the window doubles each round trip (slow start). Growth halts while the recent samples show a delay that a
//! queue may cause. If growth is halted at the end of a round, and the round's rate is below 1.4 times the previous
//! one, a probe ends slow start. The model then determines the window.
//!
//! A *step* is growth above the model's window, while no queue exceeds its bound. After three successive steps, slow
//! start begins again.

mod round;

use core::time::Duration;
use std::collections::VecDeque;

use super::{FlowError, FlowParameters, SendmeTag};
use crate::base::{Counter as _, Instant};
use round::{RttSamples, WindowRound, cells_in, duration_of, part};

/// Maximum recorded rates of rounds. The path's delivery rate is the greatest of them.
const MAX_RATES: usize = 4;
/// Maximum recorded rates while the queue exceeds its bound. Older rates are dropped, because the path may have become
/// slower.
const MAX_RATES_WHEN_QUEUED: usize = 2;
/// Successive steps after which slow start begins again.
const STEPS_TO_SLOW_START: u32 = 3;
/// Multiple of the jitter in the model's window. With a multiple of one, the window would not grow on a path whose
/// delay is mostly retransmission. While the standing delay exceeds the queue's delay plus half the jitter, the
/// multiple is one instead.
const JITTER_FACTOR: u32 = 2;
/// The min RTT is valid for at least this many round trips.
const MIN_RTT_ROUNDS: u32 = 10;

/// A tag without its SENDME.
struct OutstandingTag {
    tag: SendmeTag,
    sent_at: Instant,
    /// DATA cells sent up to and including the tagged one.
    sent: u64,
}

enum WindowPhase {
    /// The window doubles each round trip.
    SlowStart {
        /// Whether growth is halted, because recent samples show a delay that a queue may cause.
        halted: bool,
        /// Samples since the last evaluation.
        samples: RttSamples,
    },
    /// The window follows the model.
    Steady,
    /// The window is below the path's bandwidth-delay product, so that the path's queue drains.
    Probe {
        /// The earliest send time of a tag whose round trip excludes the queue that the window caused.
        drained_at: Instant,
        /// The round that measures the path. It begins with the SENDME of the first tag sent at `drained_at` or later.
        round: Option<WindowRound>,
    },
}

impl WindowPhase {
    const SLOW_START: Self = Self::SlowStart { halted: false, samples: RttSamples::NONE };
}

/// The sender's window over the DATA cells to the other end: from the origin to one hop of a circuit, or back.
///
/// The caller uses [`Self::has_room`] and [`Self::needs_tag`] before each DATA cell, [`Self::handle_sent`] after it,
/// and [`Self::handle_sendme`] for each SENDME. Memory: one entry for each outstanding tag, at most
/// `window_max / tag_interval`.
pub struct CongestionWindow {
    parameters: FlowParameters,
    phase: WindowPhase,
    /// Maximum DATA cells in flight.
    window: u64,
    /// DATA cells sent.
    sent: u64,
    /// DATA cells acknowledged.
    acknowledged: u64,
    /// DATA cells sent since the last tag.
    untagged: u64,
    /// The value of `sent` at the time when the window was last full.
    sent_when_full: u64,
    outstanding: VecDeque<OutstandingTag>,
    latest_rtt: Duration,
    /// The min RTT, and the time of the last sample that exceeded the min RTT by at most a sixteenth.
    min_rtt: Option<(Duration, Instant)>,
    jitter: Duration,
    round: WindowRound,
    /// Delivery rates in cells a second, of the last rounds that were window-limited or faster than all recorded ones.
    rates: VecDeque<u64>,
    /// Number of successive steps.
    steps: u32,
    /// Whether the last window-limited round added a step.
    stepped: bool,
}

impl CongestionWindow {
    /// A window at its initial size.
    #[must_use]
    pub fn new(parameters: &FlowParameters) -> Self {
        let mut parameters = parameters.clone();
        // The consensus may have any values. These bounds ensure that a full window always has an outstanding tag.
        parameters.tag_interval = parameters.tag_interval.clamp(1, 1024);
        parameters.window_min = parameters.window_min.max(parameters.tag_interval.saturating_mul(2));
        parameters.window_max = parameters.window_max.max(parameters.window_min);
        parameters.queue_max = parameters.queue_max.max(parameters.queue_min);
        let window = parameters.window_initial.clamp(parameters.window_min, parameters.window_max).into();
        Self {
            parameters,
            phase: WindowPhase::SLOW_START,
            window,
            sent: 0,
            acknowledged: 0,
            untagged: 0,
            sent_when_full: 0,
            outstanding: VecDeque::new(),
            latest_rtt: Duration::ZERO,
            min_rtt: None,
            jitter: Duration::ZERO,
            round: WindowRound::new(Instant::START, 0),
            rates: VecDeque::new(),
            steps: 0,
            stepped: false,
        }
    }

    /// Whether one more DATA cell may be sent.
    #[must_use]
    pub const fn has_room(&self) -> bool {
        self.in_flight() < self.window
    }

    /// Whether the next DATA cell must carry a tag.
    #[must_use]
    pub fn needs_tag(&self) -> bool {
        self.untagged.saturating_add(1) >= u64::from(self.parameters.tag_interval)
    }

    /// Records a sent DATA cell, with its tag if [`Self::needs_tag`] was true.
    pub fn handle_sent(&mut self, now: Instant, tag: Option<SendmeTag>) {
        self.sent.increment();
        self.untagged.increment();
        if !self.has_room() {
            self.sent_when_full = self.sent;
        }
        if let Some(tag) = tag {
            self.untagged = 0;
            if self.outstanding.is_empty() {
                // Without an outstanding tag, the sender was idle before. A round that includes the idle time would
                // measure too low a rate.
                self.begin_round(now);
            }
            self.outstanding.push_back(OutstandingTag { tag, sent_at: now, sent: self.sent });
        }
    }

    /// Handles a SENDME: acknowledges the cells up to its tag, and adapts the window.
    ///
    /// # Errors
    /// When the SENDME does not echo the oldest outstanding tag. The caller must end the circuit.
    pub fn handle_sendme(&mut self, now: Instant, tag: &SendmeTag) -> Result<(), FlowError> {
        let oldest = match self.outstanding.pop_front() {
            Some(oldest) if oldest.tag == *tag => oldest,
            _ => return Err(FlowError::WrongTag),
        };
        let was_full = self.sent_when_full >= oldest.sent;
        self.acknowledged = oldest.sent;
        self.record_rtt(now, now.since(oldest.sent_at).max(Duration::from_nanos(1)), was_full);
        if matches!(self.phase, WindowPhase::SlowStart { .. }) {
            self.grow_by_acknowledged(was_full);
        }
        if matches!(self.phase, WindowPhase::Probe { .. }) {
            self.handle_probe(now, oldest.sent_at);
        } else if oldest.sent_at >= self.round.began {
            self.end_round(now);
        }
        Ok(())
    }

    /// The time at which the oldest outstanding tag was sent.
    #[must_use]
    pub fn oldest_tag_at(&self) -> Option<Instant> {
        self.outstanding.front().map(|oldest| oldest.sent_at)
    }

    /// DATA cells sent and not acknowledged. Cells after the last tag, at most `tag_interval` − 1, stay in flight until
    /// a later tag is acknowledged.
    #[must_use]
    pub const fn in_flight(&self) -> u64 {
        self.sent.saturating_sub(self.acknowledged)
    }

    /// The window, in DATA cells.
    #[must_use]
    pub const fn window(&self) -> u64 {
        self.window
    }

    /// Records the round-trip time of a tag. `was_full` states whether the window was full when the tag was sent or
    /// later.
    fn record_rtt(&mut self, now: Instant, rtt: Duration, was_full: bool) {
        self.latest_rtt = rtt;
        self.round.rtt.add(rtt);
        self.round.full_samples = self.round.full_samples.saturating_add(was_full.into());
        let min = self.min_rtt();
        if self.min_rtt.is_none() || rtt <= min.saturating_add(part(min, 16)) {
            self.min_rtt = Some((min.min(rtt), now));
        }
    }

    fn min_rtt(&self) -> Duration {
        self.min_rtt.map_or(self.latest_rtt, |(min, _)| min)
    }

    /// The path's delivery rate, in cells a second.
    fn rate(&self) -> u64 {
        self.rates.iter().copied().max().unwrap_or(0)
    }

    /// The bound of the queue in the path, in cells.
    fn queue_bound(&self) -> u64 {
        let cells = cells_in(self.rate(), self.parameters.queue_time);
        cells.clamp(self.parameters.queue_min.into(), self.parameters.queue_max.into())
    }

    /// The delay that a queue of [`Self::queue_bound`] cells causes.
    fn queue_delay(&self) -> Duration {
        duration_of(self.rate(), self.queue_bound())
    }

    /// The model's window, with `factor` times the jitter.
    fn model_window(&self, factor: u32) -> u64 {
        let time = self.min_rtt().saturating_add(self.jitter.saturating_mul(factor));
        cells_in(self.rate(), time).saturating_add(self.queue_bound())
    }

    /// In slow start, grows the window by the acknowledged cells if the window was full and growth is not halted. Once
    /// a round has measured a rate, growth halts while the smallest recent sample exceeds the min RTT by more than the
    /// queue's delay and by more than an eighth of the min RTT.
    ///
    /// Of the cells that wait for a retransmission, the last ones wait least. Therefore many samples are evaluated
    /// together: a quarter of the outstanding tags, at least four.
    fn grow_by_acknowledged(&mut self, was_full: bool) {
        let max_rtt = self.min_rtt().saturating_add(self.queue_delay().max(part(self.min_rtt(), 8)));
        let evaluated_samples = u32::try_from(self.outstanding.len() / 4).unwrap_or(u32::MAX).max(4);
        let (latest_rtt, has_rate) = (self.latest_rtt, !self.rates.is_empty());
        let WindowPhase::SlowStart { halted, samples } = &mut self.phase else { return };
        let grows = was_full && !*halted;
        samples.add(latest_rtt);
        if samples.count >= evaluated_samples {
            *halted = has_rate && samples.min > max_rtt;
            *samples = RttSamples::NONE;
        }
        if grows {
            self.set_window(self.window.saturating_add(self.parameters.tag_interval.into()));
        }
    }

    /// Records the delivery rate of the round, adapts the window, and begins the next round.
    fn end_round(&mut self, now: Instant) {
        let limited = self.round.is_window_limited();
        let rate = self.round.delivery_rate(now, self.acknowledged);
        let grew_by_two_fifths = self.rates.back().is_none_or(|last| rate.saturating_mul(5) >= last.saturating_mul(7));
        let rate_rose = rate > self.rate().saturating_add(self.rate() / 8);
        if limited || rate > self.rate() {
            self.rates.push_back(rate);
            if self.rates.len() > MAX_RATES {
                self.rates.pop_front();
            }
        }
        match &mut self.phase {
            WindowPhase::SlowStart { halted: true, .. } if !grew_by_two_fifths => self.begin_probe(now),
            WindowPhase::SlowStart { halted, .. } => *halted = false,
            WindowPhase::Steady => {
                if limited {
                    self.follow_model(rate_rose);
                }
                let max_age = self.parameters.min_rtt_age.max(self.latest_rtt.saturating_mul(MIN_RTT_ROUNDS));
                if self.min_rtt.is_none_or(|(_, seen_at)| now.since(seen_at) >= max_age) {
                    self.begin_probe(now);
                }
            }
            WindowPhase::Probe { .. } => {}
        }
        self.begin_round(now);
    }

    /// Sets the window to the model's. Adds a step if the rate rose while the queue was within its bound, or if there
    /// is almost no queue. Adds no step in the round after a step, unless jitter hides the step's effect.
    fn follow_model(&mut self, rate_rose: bool) {
        let standing_delay = self.round.rtt.min.saturating_sub(self.min_rtt());
        let queued = standing_delay > self.queue_delay().saturating_add(self.jitter);
        if queued {
            let old = self.rates.len().saturating_sub(MAX_RATES_WHEN_QUEUED);
            self.rates.drain(..old);
        } else {
            // The jitter is not updated while the queue exceeds its bound, because that queue would count as jitter.
            self.jitter = part(self.jitter.saturating_mul(3).saturating_add(self.round.rtt.jitter()), 4);
        }
        let delay = self.queue_delay();
        let factor = if standing_delay > delay.saturating_add(part(self.jitter, 2)) { 1 } else { JITTER_FACTOR };
        let model_window = self.model_window(factor);
        // The effect of a step is measurable a round later, unless the jitter exceeds the queue's delay. Until then no
        // further step is added.
        let waits = core::mem::take(&mut self.stepped) && self.jitter <= delay;
        let nearly_empty = standing_delay <= part(delay, 4);
        let step = match (queued || waits, rate_rose, nearly_empty) {
            (false, true, _) => self.window / 2,
            (false, false, true) => (self.window / 4).max(self.parameters.tag_interval.into()),
            (true, ..) | (false, false, false) => 0,
        };
        if step > 0 {
            self.stepped = true;
            self.steps.increment();
            self.set_window(model_window.max(self.window.saturating_add(step)));
        } else {
            if !waits || queued {
                self.steps = 0;
            }
            self.set_window(model_window);
        }
        if self.steps >= STEPS_TO_SLOW_START {
            self.steps = 0;
            self.phase = WindowPhase::SLOW_START;
        }
    }

    fn begin_round(&mut self, now: Instant) {
        self.round = WindowRound::new(now, self.acknowledged);
    }

    /// Starts a probe: sets the window to 7/8 of the bandwidth-delay product (with jitter), or to 7/8 of the current
    /// window if the window is smaller.
    fn begin_probe(&mut self, now: Instant) {
        let bdp = cells_in(self.rate(), self.min_rtt().saturating_add(self.jitter));
        self.set_window(bdp.min(self.window).saturating_mul(7) / 8);
        let excess = self.in_flight().saturating_sub(self.window);
        let drain_time = duration_of(self.rate(), excess).min(self.latest_rtt);
        self.phase = WindowPhase::Probe { drained_at: now.after(drain_time), round: None };
        self.steps = 0;
        self.stepped = false;
    }

    /// During a probe, handles the SENDME of a tag sent at `sent_at`. The probe ends with the first tag that was sent
    /// after the measuring round began.
    fn handle_probe(&mut self, now: Instant, sent_at: Instant) {
        let WindowPhase::Probe { drained_at, round } = &mut self.phase else { return };
        if sent_at < *drained_at {
            return;
        }
        let round = round.get_or_insert_with(|| WindowRound::new(now, self.acknowledged));
        if sent_at <= round.began {
            round.rtt.add(self.latest_rtt);
            return;
        }
        self.min_rtt = Some((round.rtt.min, now));
        self.jitter = round.rtt.jitter();
        self.phase = WindowPhase::Steady;
        self.set_window(self.model_window(JITTER_FACTOR));
        self.begin_round(now);
    }

    fn set_window(&mut self, window: u64) {
        self.window = window.clamp(self.parameters.window_min.into(), self.parameters.window_max.into());
    }
}
