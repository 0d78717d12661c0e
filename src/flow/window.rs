//! The sender's congestion window: a model of the path after BBR (Cardwell et al. 2016), with a window in place of a
//! pacer.
//!
//! A round lasts one round trip and gives a delivery rate. The window is
//!
//! ```text
//! greatest delivery rate of the last rounds × (min RTT + 2 × jitter) + queue
//! ```
//!
//! where the queue is `queue_time` at that rate. A circuit loses no cell: links retransmit, and then deliver late and
//! in bursts. A link's retransmission adds up to five quarters of its round trip, several times a second. Two
//! measurements distinguish that delay from a queue that the window causes:
//!
//! - **Jitter** is a round's mean round trip minus its smallest. A standing queue delays all cells of a round alike;
//!   a retransmission doesn't.
//! - **Probes.** When no sample has been near the smallest round trip for `min_rtt_age`, the window becomes smaller
//!   than the path's capacity, for one round trip after its queue has drained. The smallest round trip and the jitter
//!   of that round replace the previous ones: the remaining delay is the path's.
//!
//! At first the window doubles each round trip (slow start). Delay that a queue may cause stops growth until the round
//! ends. If the delivery rate has not grown either, a probe drains the queue, and the model determines the window.
//! Three successive steps of growth without a queue start slow start again.

mod round;

use core::time::Duration;
use std::collections::VecDeque;

use super::{FlowError, FlowParameters, SendmeTag};
use crate::base::{Counter as _, Instant};
use round::{RttSamples, WindowRound, cells_in, part, time_of};

/// Number of rounds whose greatest delivery rate is the path's.
const RATE_ROUNDS: usize = 4;
/// The same number while a queue exceeds its bound: greater rates of earlier rounds are no longer available.
const QUEUED_RATE_ROUNDS: usize = 2;
/// Successive steps of growth without a queue after which slow start begins again.
const STEPS_TO_SLOW_START: u32 = 3;
/// Multiple of the jitter that the window covers. At one, retransmissions as a path's main delay would keep the window
/// from growing. A standing delay of more than the queue's delay and half the jitter reduces the multiple to one.
const JITTER_FACTOR: u32 = 2;
/// The smallest round trip is valid for at least this many round trips.
const MIN_RTT_ROUNDS: u32 = 10;

/// A tag without its SENDME.
struct Outstanding {
    tag: SendmeTag,
    sent_at: Instant,
    /// DATA cells sent on the circuit, up to and including the tagged one.
    sent: u64,
}

enum WindowPhase {
    /// The window doubles each round trip.
    SlowStart {
        /// Whether growth is halted, because recent samples show a delay that a queue may cause.
        halted: bool,
        /// Samples since the last evaluation.
        recent: RttSamples,
    },
    /// The window follows the model.
    Steady,
    /// The window is below the path's capacity, so that its queue drains.
    Probe {
        /// The time from which sent tags meet no queue that the window caused.
        from: Instant,
        /// The round that measures the path. It begins when the first tag sent from that time is acknowledged.
        round: Option<WindowRound>,
    },
}

impl WindowPhase {
    const SLOW_START: Self = Self::SlowStart { halted: false, recent: RttSamples::NONE };
}

/// The sender's window over the DATA cells of one circuit and hop.
///
/// The caller uses [`Self::has_room`] and [`Self::wants_tag`] before each DATA cell, [`Self::handle_sent`] after it,
/// and [`Self::handle_sendme`] for each SENDME. Memory: one entry for each outstanding tag, at most
/// `window_max / tag_every`.
pub struct CongestionWindow {
    parameters: FlowParameters,
    phase: WindowPhase,
    window: u64,
    sent: u64,
    acknowledged: u64,
    /// DATA cells sent since the last tag.
    untagged: u64,
    /// The value of `sent` when the window was last full.
    full_at: u64,
    outstanding: VecDeque<Outstanding>,
    latest_rtt: Duration,
    /// The smallest round trip, and the time of the last sample within a sixteenth of it.
    min_rtt: Option<(Duration, Instant)>,
    jitter: Duration,
    round: WindowRound,
    /// Delivery rates of the last rounds, in cells a second.
    rates: VecDeque<u64>,
    /// Successive steps of growth without a queue.
    steps: u32,
    /// Whether the last round ended with such a step.
    stepped: bool,
}

impl CongestionWindow {
    /// A window at its initial size.
    #[must_use]
    pub fn new(parameters: &FlowParameters) -> Self {
        let mut parameters = parameters.clone();
        // The consensus may have any values. These bounds ensure that a full window always has an outstanding tag.
        parameters.tag_every = parameters.tag_every.clamp(1, 1024);
        parameters.window_min = parameters.window_min.max(parameters.tag_every.saturating_mul(2));
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
            full_at: 0,
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
    pub fn wants_tag(&self) -> bool {
        self.untagged.saturating_add(1) >= u64::from(self.parameters.tag_every)
    }

    /// Records a sent DATA cell, with its tag if [`Self::wants_tag`] was true.
    pub fn handle_sent(&mut self, now: Instant, tag: Option<SendmeTag>) {
        self.sent.increment();
        self.untagged.increment();
        if !self.has_room() {
            self.full_at = self.sent;
        }
        if let Some(tag) = tag {
            self.untagged = 0;
            if self.outstanding.is_empty() {
                // A round that began before the pause would count the pause.
                self.begin_round(now);
            }
            self.outstanding.push_back(Outstanding { tag, sent_at: now, sent: self.sent });
        }
    }

    /// Takes a SENDME.
    ///
    /// # Errors
    /// When the SENDME does not echo the oldest outstanding tag: the circuit ends.
    pub fn handle_sendme(&mut self, now: Instant, tag: &SendmeTag) -> Result<(), FlowError> {
        let oldest = match self.outstanding.pop_front() {
            Some(oldest) if oldest.tag == *tag => oldest,
            _ => return Err(FlowError::WrongTag),
        };
        let full = self.full_at >= oldest.sent;
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

    /// DATA cells sent and not acknowledged. Up to `tag_every` − 1 of them are never acknowledged.
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
        self.round.full = self.round.full.saturating_add(full.into());
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
    fn queue(&self) -> u64 {
        let cells = cells_in(self.rate(), self.parameters.queue_time);
        cells.clamp(self.parameters.queue_min.into(), self.parameters.queue_max.into())
    }

    /// The delay that a queue of this length causes.
    fn queue_delay(&self) -> Duration {
        time_of(self.rate(), self.queue())
    }

    /// The window of the model, with `factor` times the jitter.
    fn target(&self, factor: u32) -> u64 {
        let time = self.min_rtt().saturating_add(self.jitter.saturating_mul(factor));
        cells_in(self.rate(), time).saturating_add(self.queue())
    }

    /// In slow start, grows the window by the acknowledged cells, unless all recent samples exceed the limit. An
    /// evaluation takes the samples of a quarter of the window, because a retransmission delays only the first cells of
    /// a burst.
    fn grow_by_acknowledged(&mut self, full: bool) {
        let limit = self.min_rtt().saturating_add(self.queue_delay().max(part(self.min_rtt(), 8)));
        let enough = u32::try_from(self.outstanding.len() / 4).unwrap_or(u32::MAX).max(4);
        let (latest_rtt, measured) = (self.latest_rtt, !self.rates.is_empty());
        let WindowPhase::SlowStart { halted, recent } = &mut self.phase else { return };
        let grows = full && !*halted;
        recent.add(latest_rtt);
        if recent.count >= enough {
            *halted = measured && recent.min > limit;
            *recent = RttSamples::NONE;
        }
        if grows {
            self.set_window(self.window.saturating_add(self.parameters.tag_every.into()));
        }
    }

    fn end_round(&mut self, now: Instant) {
        let limited = self.round.is_window_limited();
        let rate = self.round.delivery_rate(now, self.acknowledged);
        let rate_grew = self.rates.back().is_none_or(|last| rate.saturating_mul(5) >= last.saturating_mul(7));
        let faster = rate > self.rate().saturating_add(self.rate() / 8);
        if limited || rate > self.rate() {
            self.rates.push_back(rate);
            if self.rates.len() > RATE_ROUNDS {
                self.rates.pop_front();
            }
        }
        match &mut self.phase {
            WindowPhase::SlowStart { halted: true, .. } if !rate_grew => self.begin_probe(now),
            WindowPhase::SlowStart { halted, .. } => *halted = false,
            WindowPhase::Steady => {
                if limited {
                    self.follow(faster);
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

    /// Sets the window to that of the model, or adds a step while there is no queue.
    fn follow(&mut self, faster: bool) {
        let standing = self.round.rtt.min.saturating_sub(self.min_rtt());
        let queued = standing > self.queue_delay().saturating_add(self.jitter);
        if queued {
            let old = self.rates.len().saturating_sub(QUEUED_RATE_ROUNDS);
            self.rates.drain(..old);
        } else {
            // Not while queued: a growing queue would count as jitter.
            self.jitter = part(self.jitter.saturating_mul(3).saturating_add(self.round.rtt.jitter()), 4);
        }
        let delay = self.queue_delay();
        let factor = if standing > delay.saturating_add(part(self.jitter, 2)) { 1 } else { JITTER_FACTOR };
        let target = self.target(factor);
        // The effect of a step can be measured a round later, unless jitter hides it.
        let waits = core::mem::take(&mut self.stepped) && self.jitter <= delay;
        let empty = standing <= part(delay, 4);
        let step = match (queued || waits, faster, empty) {
            (false, true, _) => self.window / 2,
            (false, false, true) => (self.window / 4).max(self.parameters.tag_every.into()),
            (true, ..) | (false, false, false) => 0,
        };
        if step > 0 {
            self.stepped = true;
            self.steps.increment();
            self.set_window(target.max(self.window.saturating_add(step)));
        } else {
            if !waits || queued {
                self.steps = 0;
            }
            self.set_window(target);
        }
        if self.steps >= STEPS_TO_SLOW_START {
            self.steps = 0;
            self.phase = WindowPhase::SLOW_START;
        }
    }

    fn begin_round(&mut self, now: Instant) {
        self.round = WindowRound::new(now, self.acknowledged);
    }

    /// Starts a probe: sets the window an eighth below the path's capacity without a queue.
    fn begin_probe(&mut self, now: Instant) {
        let capacity = cells_in(self.rate(), self.min_rtt().saturating_add(self.jitter));
        self.set_window(capacity.min(self.window).saturating_mul(7) / 8);
        let excess = self.in_flight().saturating_sub(self.window);
        let drain_time = time_of(self.rate(), excess).min(self.latest_rtt);
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
        self.set_window(self.target(JITTER_FACTOR));
        self.begin_round(now);
    }

    fn set_window(&mut self, window: u64) {
        self.window = window.clamp(self.parameters.window_min.into(), self.parameters.window_max.into());
    }
}
