//! Loss detection: RACK, the tail loss probe and the retransmission timeout (RFC 8985).

use core::time::Duration;

use super::{
    super::congestion::{Ack, Controller as _, Lost},
    AckEffects, ChunkState, DUPLICATE_THRESHOLD, Flight, MAX_LOSSES, MIN_PROBE_TIMEOUT, REORDERING_PERSIST, SendHalf,
    index,
};
use crate::base::{Counter as _, Instant};

impl SendHalf {
    /// The reordering window of RACK (RFC 8985 §6.2).
    fn reordering_window(&self) -> Duration {
        let quarter = self.round_trip.min().checked_div(4).unwrap_or_default();
        quarter.saturating_mul(self.reordering_quarters).min(self.round_trip.smoothed())
    }

    /// Widens the reordering window, at most once a round, after the peer has reported duplicates. A duplicate shows a
    /// spurious retransmission.
    pub(super) fn widen_reordering_window(&mut self, duplicates: usize) {
        // Tail loss probes cause duplicates too.
        let unexplained = duplicates.saturating_sub(self.unreported_probes);
        self.unreported_probes = self.unreported_probes.saturating_sub(duplicates);
        if unexplained == 0 || self.first < self.duplicate_round_end {
            return;
        }
        self.duplicate_round_end = self.next_tsn();
        self.reordering_quarters = self.reordering_quarters.saturating_add(1).min(8);
        self.reordering_persist = REORDERING_PERSIST;
        self.reordering_seen = true;
    }

    /// RACK (RFC 8985 §6.2): a TSN counts as lost if a packet sent later is acknowledged, and the age of the TSN is at
    /// least the round trip of that packet plus the reordering window.
    pub(super) fn detect_losses(&mut self, now: Instant, effects: &mut AckEffects) {
        self.reorder_at = None;
        if self.rack.round_trip == Duration::ZERO {
            return;
        }
        let window = self.reordering_window();
        let mut lost: Vec<u64> = Vec::new();
        let mut reorder_at: Option<Instant> = None;
        let mut check = |tsn: u64, flight: &Flight, with_window: bool| {
            if flight.state != ChunkState::InFlight || (flight.sent_at, tsn) >= (self.rack.sent_at, self.rack.tsn) {
                return;
            }
            let window = if with_window { window } else { Duration::ZERO };
            let due = flight.sent_at.after(self.rack.round_trip.saturating_add(window));
            if due <= now {
                lost.push(tsn);
            } else {
                reorder_at = Some(reorder_at.map_or(due, |at| at.min(due)));
            }
        };
        let highest = self.acked.highest();
        for (from, to) in self.acked.holes(self.first) {
            for tsn in from..=to {
                let Some(flight) = index(self.first, tsn).and_then(|at| self.flights.get(at)) else { continue };
                let with_window = self.reordering_seen || highest.saturating_sub(tsn) < DUPLICATE_THRESHOLD;
                check(tsn, flight, with_window);
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
                check(tsn, flight, true);
            }
        }
        self.reorder_at = reorder_at;
        let recovery_starts = self.lost.is_empty() && !lost.is_empty();
        for tsn in lost {
            self.mark_lost(now, tsn, effects);
        }
        if recovery_starts && self.reordering_persist > 0 {
            self.reordering_persist.decrement();
            if self.reordering_persist == 0 {
                self.reordering_quarters = 1;
            }
        }
    }

    /// Counts a TSN in flight as lost.
    fn mark_lost(&mut self, now: Instant, tsn: u64, effects: &mut AckEffects) {
        let Some(flight) = index(self.first, tsn).and_then(|at| self.flights.get_mut(at)) else { return };
        if flight.state != ChunkState::InFlight {
            return;
        }
        flight.state = ChunkState::Lost;
        flight.losses.increment();
        self.excess_losses |= flight.losses > MAX_LOSSES;
        let bytes = flight.bytes();
        self.in_flight = self.in_flight.saturating_sub(bytes);
        self.delivery.lost = self.delivery.lost.saturating_add(bytes);
        effects.lost = effects.lost.saturating_add(bytes);
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

    /// Deadline of the next tail loss probe or retransmission timeout.
    pub(super) fn timer(&self) -> Option<Instant> {
        if self.in_flight == 0 && self.lost.is_empty() {
            return None;
        }
        let timeout = self.round_trip.timeout(self.peer.ack_delay, self.peer.min_timeout, self.backoff);
        if self.probed || self.in_flight == 0 || !self.round_trip.is_known() {
            return Some(self.active_at.after(timeout));
        }
        // The SACK for a single packet may be delayed (RFC 8985 §7.2).
        let ack_delay = if self.in_flight <= self.sizes.segment { self.peer.ack_delay } else { Duration::ZERO };
        let probe = self.round_trip.smoothed().saturating_mul(2).saturating_add(ack_delay).max(MIN_PROBE_TIMEOUT);
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
            self.report_losses(now, |this, effects| this.detect_losses(now, effects));
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

    /// Handles a retransmission timeout (RFC 8985 §6.3). The first TSN counts as lost. So does each TSN whose age is at
    /// least the smoothed round trip plus the reordering window.
    fn time_out(&mut self, now: Instant) {
        self.backoff.increment();
        self.timeouts.increment();
        self.probed = false;
        let age_limit = self.round_trip.smoothed().saturating_add(self.reordering_window());
        self.report_losses(now, |this, effects| {
            let next = this.next_tsn();
            for tsn in this.first..next {
                let flight = index(this.first, tsn).and_then(|at| this.flights.get(at));
                if flight.is_some_and(|flight| flight.sent_at.after(age_limit) <= now || tsn == this.first) {
                    this.mark_lost(now, tsn, effects);
                }
            }
        });
        // The controller reacts to the second consecutive timeout: the first may be a short outage of the line.
        if self.backoff == 2 {
            self.control.on_time_out(now);
        }
    }

    /// Runs `detect`, which may mark TSNs as lost, and reports the losses to the controller.
    fn report_losses(&mut self, now: Instant, detect: impl FnOnce(&mut Self, &mut AckEffects)) {
        let (prior_in_flight, window_limited) = (self.in_flight, self.is_window_limited());
        let mut effects = AckEffects::default();
        detect(self, &mut effects);
        if effects.lost > 0 {
            self.control.on_ack(&Ack {
                now,
                acked: 0,
                lost: effects.lost,
                prior_in_flight,
                in_flight: self.in_flight,
                delivered: self.delivery.delivered,
                total_lost: self.delivery.lost,
                rtt: None,
                queueing_delay: None,
                rate: None,
                window_limited,
            });
        }
    }
}
