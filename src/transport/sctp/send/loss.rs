//! Loss detection: RACK, the tail loss probe and the retransmission timeout (RFC 8985).

use core::time::Duration;

use super::{
    super::congestion::{Ack, Controller as _, Lost},
    ChunkState, DUPLICATE_THRESHOLD, Flight, LEAST_PROBE, MAX_LOSSES, SendHalf, Taken, WIDENED_FOR, index,
};
use crate::base::{Counter as _, Instant};

impl SendHalf {
    /// The reordering window of RACK.
    fn reordering_window(&self) -> Duration {
        let quarter = self.round_trip.min().checked_div(4).unwrap_or_default();
        quarter.saturating_mul(self.widened).min(self.round_trip.smoothed())
    }

    /// Widens the reordering window, once a round, after a reported duplicate: a needless retransmission.
    pub(super) fn widen(&mut self, duplicates: usize) {
        // Duplicates from probes are expected.
        let unexplained = duplicates.saturating_sub(self.repeated_in_probes);
        self.repeated_in_probes = self.repeated_in_probes.saturating_sub(duplicates);
        if unexplained == 0 || self.first < self.widen_after {
            return;
        }
        self.widen_after = self.next_tsn();
        self.widened = self.widened.saturating_add(1).min(8);
        self.widened_for = WIDENED_FOR;
        self.reordering_seen = true;
    }

    /// RACK (RFC 8985 §6.2): data sent before the newest acknowledged packet by more than the reordering window is
    /// lost.
    pub(super) fn detect_losses(&mut self, now: Instant, taken: &mut Taken) {
        self.reorder_at = None;
        if self.rack.round_trip == Duration::ZERO {
            return;
        }
        let window = self.reordering_window();
        let mut found: Vec<u64> = Vec::new();
        let mut reorder_at: Option<Instant> = None;
        let mut judge = |tsn: u64, flight: &Flight, near: bool| {
            if flight.state != ChunkState::InFlight || (flight.sent_at, tsn) >= (self.rack.sent_at, self.rack.tsn) {
                return;
            }
            let window = if near { window } else { Duration::ZERO };
            let due = flight.sent_at.after(self.rack.round_trip.saturating_add(window));
            if due <= now {
                found.push(tsn);
            } else {
                reorder_at = Some(reorder_at.map_or(due, |at| at.min(due)));
            }
        };
        let highest = self.acked.highest();
        for (from, to) in self.acked.holes(self.first) {
            for tsn in from..=to {
                let Some(flight) = index(self.first, tsn).and_then(|at| self.flights.get(at)) else { continue };
                let near = self.reordering_seen || highest.saturating_sub(tsn) < DUPLICATE_THRESHOLD;
                judge(tsn, flight, near);
            }
        }
        if self.tail_known {
            let tail = highest.max(self.first.saturating_sub(1)).saturating_add(1);
            let flights = index(self.first, tail).map(|at| self.flights.range(at.min(self.flights.len())..));
            for (tsn, flight) in (tail..).zip(flights.into_iter().flatten()) {
                if flight.state == ChunkState::InFlight && !flight.retransmitted && flight.sent_at >= self.rack.sent_at
                {
                    break;
                }
                judge(tsn, flight, true);
            }
        }
        self.reorder_at = reorder_at;
        let began_recovery = self.lost.is_empty() && !found.is_empty();
        for tsn in found {
            self.lose(now, tsn, taken);
        }
        if began_recovery && self.widened_for > 0 {
            self.widened_for.decrement();
            if self.widened_for == 0 {
                self.widened = 1;
            }
        }
    }

    /// Counts a TSN in flight as lost.
    fn lose(&mut self, now: Instant, tsn: u64, taken: &mut Taken) {
        let Some(flight) = index(self.first, tsn).and_then(|at| self.flights.get_mut(at)) else { return };
        if flight.state != ChunkState::InFlight {
            return;
        }
        flight.state = ChunkState::Lost;
        flight.losses.increment();
        self.hopeless |= flight.losses > MAX_LOSSES;
        let bytes = flight.length;
        self.in_flight = self.in_flight.saturating_sub(bytes);
        self.delivery.lost = self.delivery.lost.saturating_add(bytes);
        taken.lost = taken.lost.saturating_add(bytes);
        self.lost.insert(tsn);
        self.control.on_lost(&Lost {
            now,
            bytes,
            sent_at: flight.sent_at,
            prior_delivered: flight.snapshot.delivered,
            tx_in_flight: flight.snapshot.in_flight,
            prior_lost: flight.snapshot.lost,
            total_lost: self.delivery.lost,
        });
    }

    /// When the tail is probed, or retransmission times out.
    pub(super) fn timer(&self) -> Option<Instant> {
        if self.in_flight == 0 && self.lost.is_empty() {
            return None;
        }
        let timeout = self.round_trip.timeout(self.peer.ack_delay, self.peer.least_timeout, self.expired);
        if self.probed || self.in_flight == 0 || !self.round_trip.is_known() {
            return Some(self.active_at.after(timeout));
        }
        let lone = if self.in_flight <= self.limits.segment { self.peer.ack_delay } else { Duration::ZERO };
        let probe = self.round_trip.smoothed().saturating_mul(2).saturating_add(lone).max(LEAST_PROBE);
        Some(self.active_at.after(probe.min(timeout)))
    }

    /// The deadline for [`Self::handle_timeout`].
    pub(in super::super) fn poll_timeout(&self) -> Option<Instant> {
        [self.timer(), self.reorder_at, self.paced_until].into_iter().flatten().min()
    }

    /// Performs the work due now.
    pub(in super::super) fn handle_timeout(&mut self, now: Instant) {
        if self.paced_until.is_some_and(|at| at <= now) {
            self.paced_until = None;
        }
        if self.reorder_at.is_some_and(|at| at <= now) {
            self.recount(now, |this, taken| this.detect_losses(now, taken));
        }
        if self.timer().is_some_and(|at| at <= now) {
            self.active_at = now;
            let timed_out = self.probed || self.in_flight == 0 || !self.round_trip.is_known();
            if timed_out {
                self.time_out(now);
            } else {
                self.probed = true;
                self.probe_due = true;
                self.probes.increment();
            }
        }
    }

    /// Retransmission timeout (RFC 8985 §6.3): the first TSN counts as lost, and so does data in flight for longer
    /// than the smoothed round trip and the reordering window.
    fn time_out(&mut self, now: Instant) {
        self.expired.increment();
        self.timeouts.increment();
        self.probed = false;
        let old = self.round_trip.smoothed().saturating_add(self.reordering_window());
        self.recount(now, |this, taken| {
            let next = this.next_tsn();
            for tsn in this.first..next {
                let flight = index(this.first, tsn).and_then(|at| this.flights.get(at));
                if flight.is_some_and(|flight| flight.sent_at.after(old) <= now || tsn == this.first) {
                    this.lose(now, tsn, taken);
                }
            }
        });
        // A single timeout may be a short outage of the line.
        if self.expired == 2 {
            self.control.on_time_out(now);
        }
    }

    /// Runs `act`, which may count packets as lost, and reports the losses to the controller.
    fn recount(&mut self, now: Instant, act: impl FnOnce(&mut Self, &mut Taken)) {
        let (prior_in_flight, window_limited) = (self.in_flight, self.is_window_limited());
        let mut taken = Taken::default();
        act(self, &mut taken);
        if taken.lost > 0 {
            self.control.on_ack(&Ack {
                now,
                acked: 0,
                lost: taken.lost,
                prior_in_flight,
                in_flight: self.in_flight,
                delivered: self.delivery.delivered,
                total_lost: self.delivery.lost,
                rtt: None,
                queued: None,
                rate: None,
                window_limited,
            });
        }
    }
}
