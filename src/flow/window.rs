//! The sender's congestion window, from a model of the path as in BBR (Cardwell et al. 2016). Unlike BBR, it limits
//! cells in flight and does not pace.
//!
//! A round lasts one round trip and gives a delivery rate. The window is
//!
//! ```text
//! greatest delivery rate of the last rounds × (min RTT + 2 × jitter) + queue
//! ```
//!
//! where `queue` is the number of cells delivered in `queue_time`, at least `queue_min` and at most `queue_max`. A
//! circuit loses no cell, because links retransmit. A retransmission delays all later cells by up to five quarters of
//! the link's round trip. Two measurements distinguish this delay from a queue that the window causes:
//!
//! - **Jitter** is the moving average of a round's mean round-trip time minus the round's smallest. A standing queue
//!   delays all cells of a round alike; a retransmission doesn't.
//! - **Probes** measure the min RTT, the smallest round-trip time. A probe starts when no sample has been within a
//!   sixteenth of the min RTT for `min_rtt_age` and for ten round trips. It reduces the window below the path's
//!   bandwidth-delay product. Once the path's queue has drained, the tags sent during one further round trip measure
//!   min RTT and jitter again. The probe ends when these tags are acknowledged. Delay that remains is the path's.
//!
//! At first the window doubles each round trip (slow start). Growth halts while the recent samples show a delay that a
//! queue may cause. If growth is halted when a round ends and the rate is below 1.4 times the previous round's, a probe
//! ends slow start. The model then determines the window.
//!
//! A *step* is growth above the model's window, while no queue exceeds its bound. After three successive steps, slow
//! start begins again.

mod round;

use core::time::Duration;
use std::collections::VecDeque;

use super::{FlowError, FlowParameters, SendmeTag};
use crate::base::{Counter as _, Instant};
use round::{RttSamples, WindowRound, cells_in, duration_of, part};

/// Number of recorded rounds. The path's delivery rate is the maximum of their rates.
const RATE_ROUNDS: usize = 4;
/// Number of recorded rounds while the queue exceeds its bound. Older rates are dropped, because the path no longer
/// delivers them.
const QUEUED_RATE_ROUNDS: usize = 2;
/// Successive steps after which slow start begins again.
const STEPS_TO_SLOW_START: u32 = 3;
/// Multiple of the jitter in the model's window. With a multiple of one, the window would not grow on a path whose
/// delay is mostly retransmission. The multiple is one while the standing delay exceeds the queue's delay plus half the
/// jitter.
const JITTER_FACTOR: u32 = 2;
/// The min RTT is valid for at least this many round trips.
const MIN_RTT_ROUNDS: u32 = 10;

/// A tag without its SENDME.
struct OutstandingTag {
    tag: SendmeTag,
    sent_at: Instant,
    /// DATA cells sent to the hop, up to and including the tagged one.
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
        from: Instant,
        /// The round that measures the path. It begins with the SENDME of the first tag sent at `from` or later.
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
    window: u64,
    sent: u64,
    acknowledged: u64,
    /// DATA cells sent since the last tag.
    untagged: u64,
    /// The value of `sent` at the time when the window was last full.
    sent_when_full: u64,
    outstanding: VecDeque<OutstandingTag>,
    latest_rtt: Duration,
    /// The min RTT, and the time of the last sample at most a sixteenth above it.
    min_rtt: Option<(Duration, Instant)>,
    jitter: Duration,
    round: WindowRound,
    /// Delivery rates of the last rounds that the window limited or that were faster, in cells a second.
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
                // Without outstanding tags the sender was idle. A round that includes the idle time would measure too
                // low a rate.
                self.begin_round(now);
            }
            self.outstanding.push_back(OutstandingTag { tag, sent_at: now, sent: self.sent });
        }
    }

    /// Takes a SENDME.
    ///
    /// # Errors
    /// When the SENDME does not echo the oldest outstanding tag. The caller must end the circuit.
    pub fn handle_sendme(&mut self, now: Instant, tag: &SendmeTag) -> Result<(), FlowError> {
        let oldest = match self.outstanding.pop_front() {
            Some(oldest) if oldest.tag == *tag => oldest,
            _ => return Err(FlowError::WrongTag),
        };
        let full = self.sent_when_full >= oldest.sent;
        self.acknowledged = oldest.sent;
        self.measure(now, now.since(oldest.sent_at).max(Duration::from_nanos(1)), full);
        if matches!(self.phase, WindowPhase::SlowStart { .. }) {
            self.grow_by_acknowledged(full);
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

    /// DATA cells sent and not acknowledged. The up to `tag_interval` − 1 cells after the last tag stay in flight until a
    /// later tag is acknowledged.
    #[must_use]
    pub const fn in_flight(&self) -> u64 {
        self.sent.saturating_sub(self.acknowledged)
    }

    /// The window, in DATA cells.
    #[must_use]
    pub const fn window(&self) -> u64 {
        self.window
    }

    fn measure(&mut self, now: Instant, rtt: Duration, full: bool) {
        self.latest_rtt = rtt;
        self.round.rtt.add(rtt);
        self.round.full_samples = self.round.full_samples.saturating_add(full.into());
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

    /// In slow start, grows the window by the acknowledged cells if it was full and growth is not halted. Once
    /// a round has given a rate, growth halts while the smallest recent sample exceeds the min RTT by the queue's delay
    /// and by an eighth.
    ///
    /// Evaluates as many samples as a quarter of the outstanding tags, at least four, because a retransmission delays
    /// only the first cells of a burst.
    fn grow_by_acknowledged(&mut self, full: bool) {
        let limit = self.min_rtt().saturating_add(self.queue_delay().max(part(self.min_rtt(), 8)));
        let evaluated_samples = u32::try_from(self.outstanding.len() / 4).unwrap_or(u32::MAX).max(4);
        let (latest_rtt, has_rate) = (self.latest_rtt, !self.rates.is_empty());
        let WindowPhase::SlowStart { halted, samples } = &mut self.phase else { return };
        let grows = full && !*halted;
        samples.add(latest_rtt);
        if samples.count >= evaluated_samples {
            *halted = has_rate && samples.min > limit;
            *samples = RttSamples::NONE;
        }
        if grows {
            self.set_window(self.window.saturating_add(self.parameters.tag_interval.into()));
        }
    }

    fn end_round(&mut self, now: Instant) {
        let limited = self.round.is_window_limited();
        let rate = self.round.delivery_rate(now, self.acknowledged);
        let exceeds_last = self.rates.back().is_none_or(|last| rate.saturating_mul(5) >= last.saturating_mul(7));
        let exceeds_maximum = rate > self.rate().saturating_add(self.rate() / 8);
        if limited || rate > self.rate() {
            self.rates.push_back(rate);
            if self.rates.len() > RATE_ROUNDS {
                self.rates.pop_front();
            }
        }
        match &mut self.phase {
            WindowPhase::SlowStart { halted: true, .. } if !exceeds_last => self.begin_probe(now),
            WindowPhase::SlowStart { halted, .. } => *halted = false,
            WindowPhase::Steady => {
                if limited {
                    self.follow_model(exceeds_maximum);
                }
                let age = self.parameters.min_rtt_age.max(self.latest_rtt.saturating_mul(MIN_RTT_ROUNDS));
                if self.min_rtt.is_none_or(|(_, seen_at)| now.since(seen_at) >= age) {
                    self.begin_probe(now);
                }
            }
            WindowPhase::Probe { .. } => {}
        }
        self.begin_round(now);
    }

    /// Sets the window to the model's. Adds a step if the rate rose while the queue was within its bound, or if there
    /// is almost no queue. Adds no step in the round after a step whose effect is measurable.
    fn follow_model(&mut self, rate_rose: bool) {
        let standing_delay = self.round.rtt.min.saturating_sub(self.min_rtt());
        let queued = standing_delay > self.queue_delay().saturating_add(self.jitter);
        if queued {
            let old = self.rates.len().saturating_sub(QUEUED_RATE_ROUNDS);
            self.rates.drain(..old);
        } else {
            // A queue above its bound would count as jitter, so the jitter is updated only without one.
            self.jitter = part(self.jitter.saturating_mul(3).saturating_add(self.round.rtt.jitter()), 4);
        }
        let delay = self.queue_delay();
        let factor = if standing_delay > delay.saturating_add(part(self.jitter, 2)) { 1 } else { JITTER_FACTOR };
        let model_window = self.model_window(factor);
        // The effect of a step is measurable a round later, if jitter doesn't exceed the queue's delay. Until then no
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

    /// Starts a probe: sets the window to 7/8 of the bandwidth-delay product (with jitter), or of the current window if
    /// that is smaller.
    fn begin_probe(&mut self, now: Instant) {
        let product = cells_in(self.rate(), self.min_rtt().saturating_add(self.jitter));
        self.set_window(product.min(self.window).saturating_mul(7) / 8);
        let excess = self.in_flight().saturating_sub(self.window);
        let drain_time = duration_of(self.rate(), excess).min(self.latest_rtt);
        self.phase = WindowPhase::Probe { from: now.after(drain_time), round: None };
        self.steps = 0;
        self.stepped = false;
    }

    fn handle_probe(&mut self, now: Instant, sent_at: Instant) {
        let WindowPhase::Probe { from, round } = &mut self.phase else { return };
        if sent_at < *from {
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
