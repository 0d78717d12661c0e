//! CUBIC: loss-based congestion control whose window grows along a cubic function of time (RFC 9438).
//!
//! HyStart++ ends slow start early (RFC 9406). Proportional rate reduction spreads a cut over a round trip (RFC 9937).
//! The pacing rate is 1.25 windows a round trip, and two windows a round trip in slow start.

use core::time::Duration;

use crate::base::Instant;

use super::{Ack, Controller, ControllerSizes, Lost, SECOND, Sent, nanos, scale};
use hystart::HyStart;

mod hystart;

/// Share of the window that a cut leaves (`beta_cubic`, RFC 9438 §4.6), in percent.
const BETA: u64 = 70;

/// Scaling constant of the cubic function, in segments per cubic second (RFC 9438 §5).
const C: f64 = 0.4;

/// Growth of the Reno-friendly window in segments for each round trip: 3 * (1 - beta) / (1 + beta) (RFC 9438 §4.3).
const ALPHA: f64 = 9.0 / 17.0;

/// Round trip assumed before the first sample, in nanoseconds (RFC 9002 §6.2.2).
const ASSUMED_RTT: u64 = 333_000_000;

/// Shortest idle time that halves the window, in nanoseconds: the smallest retransmission timeout.
const MIN_IDLE: u64 = 200_000_000;

/// The cubic function's parameters since congestion avoidance began (RFC 9438 §4.1), in segments and seconds.
#[derive(Clone, Copy, Debug)]
struct Epoch {
    start: Instant,
    /// Time until the function reaches `W_max` (`K`).
    k: f64,
    /// Reno-friendly window (`W_est`).
    reno: f64,
}

/// A cut that is spread over a round trip (RFC 9937).
#[derive(Clone, Copy, Debug)]
struct Recovery {
    /// Bytes in flight at the start of recovery; zero until its first acknowledgement is handled.
    flight: u64,
    /// The acknowledgement of a packet sent at this count of delivered bytes or later ends recovery.
    end: u64,
    /// Bytes delivered during recovery.
    delivered: u64,
    /// Bytes sent during recovery.
    sent: u64,
    /// Window during recovery.
    window: u64,
}

/// State before the last cut, for [`Controller::on_spurious`].
#[derive(Clone, Copy, Debug)]
struct Undo {
    window: u64,
    threshold: u64,
    max: f64,
    epoch: Option<Epoch>,
    cut_at: Option<Instant>,
    /// Bytes lost at the cut and since, except spurious losses.
    lost: u64,
}

/// The CUBIC controller of one association.
#[derive(Debug)]
pub struct Cubic {
    sizes: ControllerSizes,
    /// Congestion window outside recovery, in bytes.
    window: u64,
    /// Slow-start threshold, in bytes.
    threshold: u64,
    /// Window before the last cut (`W_max`), in segments.
    max: f64,
    epoch: Option<Epoch>,
    recovery: Option<Recovery>,
    /// Time of the last cut. Losses of packets sent before it cause no further cut.
    cut_at: Option<Instant>,
    undo: Option<Undo>,
    hystart: HyStart,
    /// Smoothed round trip in nanoseconds.
    smoothed_rtt: Option<u64>,
    /// Lowest round trip in nanoseconds.
    min_rtt: u64,
}

impl Cubic {
    /// A controller in slow start.
    #[must_use]
    pub fn new(sizes: ControllerSizes, _: Instant) -> Self {
        Self {
            sizes,
            window: sizes.initial_window(),
            threshold: u64::MAX,
            max: 0.0,
            epoch: None,
            recovery: None,
            cut_at: None,
            undo: None,
            hystart: HyStart::default(),
            smoothed_rtt: None,
            min_rtt: u64::MAX,
        }
    }

    fn is_slow_start(&self) -> bool {
        self.window < self.threshold
    }

    fn is_short_path(&self) -> bool {
        self.min_rtt < self.sizes.short_path_nanos()
    }

    /// `bytes` within the fixed limits of the window. On a short path, the first cut lowers the smallest window.
    /// Otherwise a bottleneck with a queue shorter than [`ControllerSizes::min_short_path_window`] would continue to
    /// lose most packets.
    fn bounded(&self, bytes: u64) -> u64 {
        let floor = match (self.is_short_path(), self.cut_at) {
            (true, None) => self.sizes.min_short_path_window,
            (true, Some(_)) => (self.sizes.min_short_path_window >> 2).max(self.sizes.min_window()),
            (false, _) => self.sizes.min_window(),
        };
        bytes.max(floor).min(self.sizes.max_window)
    }

    /// `bytes` in segments.
    fn segments(&self, bytes: u64) -> f64 {
        bytes as f64 / self.sizes.segment.max(1) as f64
    }

    fn update_rtt(&mut self, rtt: u64) {
        self.min_rtt = self.min_rtt.min(rtt);
        self.smoothed_rtt = Some(match self.smoothed_rtt {
            Some(smoothed) => smoothed.saturating_sub(smoothed >> 3).saturating_add(rtt >> 3),
            None => rtt,
        });
    }

    /// Grows the window along the cubic function, or the Reno-friendly estimate if that is larger (RFC 9438 §4.2 to
    /// §4.5).
    fn avoid_congestion(&mut self, now: Instant, acked: u64) {
        let window = self.segments(self.window);
        let mut epoch = self.epoch.unwrap_or_else(|| {
            self.max = self.max.max(window);
            Epoch { start: now, k: ((self.max - window) / C).cbrt(), reno: window }
        });
        let rtt = Duration::from_nanos(self.smoothed_rtt.unwrap_or(ASSUMED_RTT));
        let elapsed = now.since(epoch.start).as_secs_f64() + rtt.as_secs_f64();
        let target = (C * (elapsed - epoch.k).powi(3) + self.max).clamp(window, window * 1.5);
        let acked = self.segments(acked);
        let alpha = if epoch.reno >= self.max { 1.0 } else { ALPHA };
        epoch.reno += alpha * acked / window.max(1.0);
        self.epoch = Some(epoch);
        let grown = (window + (target - window) / window.max(1.0) * acked).max(epoch.reno);
        let bytes = (grown * self.sizes.segment as f64) as u64;
        // Rounding must not lower the window.
        self.window = self.bounded(self.window.max(bytes));
    }

    /// Cuts the window (RFC 9438 §4.6 and §4.7).
    fn cut(&mut self, now: Instant) {
        let Self { window, threshold, max, epoch, cut_at, .. } = *self;
        self.undo = Some(Undo { window, threshold, max, epoch, cut_at, lost: 0 });
        let window = self.segments(self.window);
        // Fast convergence: a flow below its former maximum releases bandwidth to other flows.
        let share = (100 + BETA) as f64 / 200.0;
        self.max = if window < self.max { window * share } else { window };
        self.window = self.bounded(scale(self.window, BETA, 100));
        self.threshold = self.window;
        self.epoch = None;
        self.recovery = Some(Recovery { flight: 0, end: u64::MAX, delivered: 0, sent: 0, window: self.window });
        self.cut_at = Some(now);
    }

    /// Spreads the cut over the round trip (RFC 9937 §5).
    fn reduce(&mut self, ack: &Ack) {
        let Some(recovery) = &mut self.recovery else { return };
        if recovery.flight == 0 {
            recovery.flight = ack.prior_in_flight.max(1);
            recovery.end = ack.delivered;
        }
        recovery.delivered = recovery.delivered.saturating_add(ack.acked);
        let allowance = if ack.in_flight > self.window {
            let due = scale(recovery.delivered, self.window, recovery.flight);
            due.saturating_sub(recovery.sent)
        } else {
            let due = recovery.delivered.saturating_sub(recovery.sent).max(ack.acked);
            due.saturating_add(self.sizes.segment).min(self.window.saturating_sub(ack.in_flight))
        };
        recovery.window = ack.in_flight.saturating_add(allowance);
    }
}

impl Controller for Cubic {
    fn on_sent(&mut self, sent: &Sent) {
        if let Some(recovery) = &mut self.recovery {
            recovery.sent = recovery.sent.saturating_add(sent.bytes);
        }
    }

    fn on_lost(&mut self, lost: &Lost) {
        if self.cut_at.is_none_or(|cut_at| lost.sent_at > cut_at) {
            self.cut(lost.now);
        }
        if let Some(undo) = &mut self.undo {
            undo.lost = undo.lost.saturating_add(lost.bytes);
        }
    }

    fn on_ack(&mut self, ack: &Ack) {
        let rtt = ack.rtt.map(nanos);
        if let Some(rtt) = rtt {
            self.update_rtt(rtt);
        }
        let prior_delivered = ack.rate.map_or(0, |rate| rate.prior_delivered);
        match self.recovery {
            Some(recovery) if prior_delivered < recovery.end => return self.reduce(ack),
            _ => self.recovery = None,
        }
        if self.is_slow_start() {
            let exit = self.hystart.on_ack(rtt, prior_delivered, ack.delivered);
            if ack.window_limited {
                let grown = self.window.saturating_add(self.hystart.growth(ack.acked));
                self.window = self.bounded(grown.min(self.threshold.max(self.window)));
            }
            if exit {
                self.threshold = self.window;
            }
        } else if ack.window_limited {
            self.avoid_congestion(ack.now, ack.acked);
        }
    }

    fn on_spurious(&mut self, _: Instant, bytes: u64) {
        let Some(mut undo) = self.undo.take() else { return };
        undo.lost = undo.lost.saturating_sub(bytes);
        if undo.lost > 0 {
            self.undo = Some(undo);
            return;
        }
        self.window = self.window.max(undo.window);
        self.threshold = self.threshold.max(undo.threshold);
        self.max = undo.max;
        self.epoch = undo.epoch;
        // Further losses of the same flight cause a new cut.
        self.cut_at = undo.cut_at;
        self.recovery = None;
    }

    fn on_time_out(&mut self, _: Instant) {
        self.threshold = scale(self.window, BETA, 100).max(self.sizes.min_window());
        self.max = self.segments(self.window);
        self.window = self.bounded(self.sizes.min_window());
        self.epoch = None;
        self.recovery = None;
        self.undo = None;
        self.hystart = HyStart::default();
    }

    fn on_idle_end(&mut self, now: Instant, since: Instant) {
        let idle = now.since(since);
        // The window does not grow during idle time (RFC 9438 §5.8).
        if let Some(epoch) = &mut self.epoch {
            epoch.start = epoch.start.after(idle);
        }
        // An old window is unreliable: it is halved for each retransmission timeout of idle time (RFC 2861 §2).
        let timeout = self.smoothed_rtt.unwrap_or(ASSUMED_RTT).saturating_mul(2).max(MIN_IDLE);
        let halvings = u32::try_from(nanos(idle).checked_div(timeout).unwrap_or(0)).unwrap_or(u32::MAX);
        if halvings > 0 {
            let old = self.window;
            self.threshold = self.threshold.max(scale(old, 3, 4));
            let halved = old.checked_shr(halvings).unwrap_or(0);
            self.window = self.bounded(halved.max(self.sizes.initial_window())).min(old);
            self.epoch = None;
        }
    }

    fn window(&self) -> u64 {
        let window = self.recovery.map_or(self.window, |recovery| recovery.window);
        self.bounded(window)
    }

    fn pacing_rate(&self) -> Option<u64> {
        if self.is_short_path() {
            return None;
        }
        let rate = scale(self.window, SECOND, self.smoothed_rtt?.max(1)).max(1);
        Some(if self.is_slow_start() { rate.saturating_mul(2) } else { scale(rate, 5, 4).max(1) })
    }

    fn state(&self) -> &'static str {
        if self.recovery.is_some() {
            "recovery"
        } else if !self.is_slow_start() {
            "congestion-avoidance"
        } else if self.hystart.is_conservative() {
            "conservative-slow-start"
        } else {
            "slow-start"
        }
    }
}
