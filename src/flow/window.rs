//! The sender's window: delay-based, after TCP Vegas (Brakmo and Peterson 1995), over cells instead of segments.
//!
//! Each mark gives one sample: its round trip, and how many cells were under way when it was sent. With the smallest
//! round trip of late, the cells that stand in queues are `in flight × (1 − smallest / measured)` (Little's law).
//! Slow start doubles the window each round trip until that exceeds `queue_gamma`; then, once a round trip, the window
//! moves half-way to where the queue holds between `queue_low` and `queue_high` cells. It grows only if it was full.
//! The smallest round trip is forgotten after `min_rtt_age`, and measured anew with the window made small for one
//! round trip, since one's own queue would otherwise pass for distance.

use core::time::Duration;
use std::collections::VecDeque;

use super::{FlowError, FlowParameters, Mark};
use crate::base::Instant;

/// A mark waiting for its SENDME.
struct Outstanding {
    mark: Mark,
    sent_at: Instant,
    /// DATA cells sent up to and including the marked one, since the circuit stands.
    sent: u64,
    /// DATA cells under way when it was sent, itself included.
    in_flight: u64,
}

/// One round trip's course: from an adjustment to the SENDME of the first mark sent after it.
struct Round {
    began: Instant,
    shortest: Option<(Duration, u64)>,
}

enum Phase {
    SlowStart,
    Steady,
    /// The window is small so that queues drain; marks sent from `measure_from` on measure the bare path.
    Probe {
        measure_from: Instant,
        resume: u64,
    },
}

/// The sender's window over the DATA cells of one circuit and hop.
///
/// Drive it by: [`Self::has_room`] before each DATA cell, [`Self::wants_mark`] to learn whether it must carry a mark,
/// [`Self::handle_sent`] after it, [`Self::handle_sendme`] for each SENDME. Memory: one entry per outstanding mark, at
/// most `window_max / mark_every`.
pub struct CongestionWindow {
    parameters: FlowParameters,
    phase: Phase,
    window: u64,
    sent: u64,
    acknowledged: u64,
    unmarked: u64,
    outstanding: VecDeque<Outstanding>,
    shortest: Option<(Duration, Instant)>,
    latest: Duration,
    round: Round,
    was_full: bool,
}

impl CongestionWindow {
    /// A window at its initial size.
    #[must_use]
    pub fn new(parameters: &FlowParameters) -> Self {
        let mut parameters = parameters.clone();
        // A document may hold anything; these keep every window able to move.
        parameters.mark_every = parameters.mark_every.clamp(1, 1024);
        parameters.window_min = parameters.window_min.max(parameters.mark_every.saturating_mul(2));
        parameters.window_max = parameters.window_max.max(parameters.window_min);
        let window = parameters.window_initial.clamp(parameters.window_min, parameters.window_max).into();
        Self {
            parameters,
            phase: Phase::SlowStart,
            window,
            sent: 0,
            acknowledged: 0,
            unmarked: 0,
            outstanding: VecDeque::new(),
            shortest: None,
            latest: Duration::ZERO,
            round: Round { began: Instant::START, shortest: None },
            was_full: false,
        }
    }

    /// Whether one more DATA cell may be sent.
    #[must_use]
    pub const fn has_room(&self) -> bool {
        self.in_flight() < self.window
    }

    /// Whether the next DATA cell must carry a mark.
    #[must_use]
    pub fn wants_mark(&self) -> bool {
        self.unmarked.saturating_add(1) >= u64::from(self.parameters.mark_every)
    }

    /// A DATA cell was sent; with `mark`, if [`Self::wants_mark`] said so.
    pub fn handle_sent(&mut self, now: Instant, mark: Option<Mark>) {
        self.sent = self.sent.saturating_add(1);
        self.unmarked = self.unmarked.saturating_add(1);
        let in_flight = self.in_flight();
        if let Some(mark) = mark {
            self.unmarked = 0;
            self.outstanding.push_back(Outstanding { mark, sent_at: now, sent: self.sent, in_flight });
        }
        if in_flight >= self.window {
            self.was_full = true;
        }
    }

    /// A SENDME arrived.
    ///
    /// # Errors
    /// When it does not echo the oldest outstanding mark: the circuit ends.
    pub fn handle_sendme(&mut self, now: Instant, mark: &Mark) -> Result<(), FlowError> {
        let oldest = match self.outstanding.pop_front() {
            Some(oldest) if oldest.mark == *mark => oldest,
            _ => return Err(FlowError::WrongMark),
        };
        self.acknowledged = oldest.sent;
        self.latest = now.since(oldest.sent_at).max(Duration::from_nanos(1));
        self.measure(now, &oldest);
        match self.phase {
            Phase::SlowStart => self.slow_start(now, &oldest),
            Phase::Steady => self.steady(now, &oldest),
            Phase::Probe { measure_from, resume } if oldest.sent_at >= measure_from => self.end_probe(now, resume),
            Phase::Probe { .. } => {}
        }
        if matches!(self.phase, Phase::Steady) {
            self.begin_probe_if_stale(now);
        }
        Ok(())
    }

    /// When the oldest outstanding mark was sent.
    #[must_use]
    pub fn oldest_mark_at(&self) -> Option<Instant> {
        self.outstanding.front().map(|oldest| oldest.sent_at)
    }

    /// DATA cells sent and not known to have arrived. Up to `mark_every` − 1 of them are never acknowledged.
    #[must_use]
    pub const fn in_flight(&self) -> u64 {
        self.sent.saturating_sub(self.acknowledged)
    }

    /// The window, in DATA cells.
    #[must_use]
    pub const fn window(&self) -> u64 {
        self.window
    }

    fn measure(&mut self, now: Instant, sample: &Outstanding) {
        let confirmed = match self.shortest {
            None => true,
            Some((shortest, _)) => self.latest <= shortest.saturating_add(shortest.checked_div(16).unwrap_or_default()),
        };
        if confirmed {
            let shortest = self.shortest.map_or(self.latest, |(shortest, _)| shortest.min(self.latest));
            self.shortest = Some((shortest, now));
        }
        if self.round.shortest.is_none_or(|(shortest, _)| self.latest < shortest) {
            self.round.shortest = Some((self.latest, sample.in_flight));
        }
    }

    /// Cells in queues, by a sample of `rtt` taken with `in_flight` cells under way.
    fn queued(&self, rtt: Duration, in_flight: u64) -> u64 {
        let shortest = self.shortest.map_or(rtt, |(shortest, _)| shortest.min(rtt));
        let beyond = rtt.saturating_sub(shortest).as_nanos();
        let queued = u128::from(in_flight).saturating_mul(beyond).checked_div(rtt.as_nanos()).unwrap_or(0);
        u64::try_from(queued).unwrap_or(u64::MAX)
    }

    fn slow_start(&mut self, now: Instant, sample: &Outstanding) {
        let queued = self.queued(self.latest, sample.in_flight);
        if queued > self.parameters.queue_gamma.into() {
            // The last doubling went too far: keep what the path held, and the queue we want.
            let wanted = sample.in_flight.saturating_sub(queued).saturating_add(self.parameters.queue_low.into());
            self.set_window(self.window.min(wanted));
            self.phase = Phase::Steady;
            self.begin_round(now);
        } else if self.was_full {
            self.set_window(self.window.saturating_add(self.parameters.mark_every.into()));
        }
        if sample.sent_at >= self.round.began {
            self.begin_round(now);
        }
    }

    fn steady(&mut self, now: Instant, sample: &Outstanding) {
        if sample.sent_at < self.round.began {
            return;
        }
        let Some((rtt, in_flight)) = self.round.shortest else { return };
        let queued = self.queued(rtt, in_flight);
        let (low, high) = (u64::from(self.parameters.queue_low), u64::from(self.parameters.queue_high));
        if queued > high {
            let excess = queued.saturating_sub(high);
            self.set_window(self.window.saturating_sub((excess / 2).max(1)));
        } else if queued < low && self.was_full {
            let lack = low.saturating_sub(queued);
            self.set_window(self.window.saturating_add((lack / 2).max(1)));
        }
        self.begin_round(now);
    }

    fn begin_round(&mut self, now: Instant) {
        self.round = Round { began: now, shortest: None };
        self.was_full = !self.has_room();
    }

    fn begin_probe_if_stale(&mut self, now: Instant) {
        let Some((shortest, seen_at)) = self.shortest else { return };
        if now.since(seen_at) < self.parameters.min_rtt_age {
            return;
        }
        // Half of what the path itself holds leaves every queue empty once the cells under way have left.
        let held = self.window.saturating_sub(self.queued(self.latest, self.window));
        let resume = self.window;
        self.set_window(held / 2);
        self.phase = Phase::Probe { measure_from: now.after(self.latest.max(shortest)), resume };
    }

    fn end_probe(&mut self, now: Instant, resume: u64) {
        self.shortest = Some((self.latest, now));
        self.set_window(resume);
        self.phase = Phase::Steady;
        self.begin_round(now);
    }

    fn set_window(&mut self, window: u64) {
        self.window = window.clamp(self.parameters.window_min.into(), self.parameters.window_max.into());
    }
}
