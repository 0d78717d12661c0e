//! Handling of SACKs: acknowledged data, and samples of round trip and delivery rate.

use core::time::Duration;

use super::{
    super::{
        Broken,
        congestion::{Ack, Controller as _, RateSample},
        packet::{Arrival, Sack},
        serial::expand,
    },
    Arrived, ChunkState, Rack, SendHalf, Taken, index,
};
use crate::base::{Counter as _, Instant};

impl SendHalf {
    /// Takes a SACK.
    ///
    /// # Errors
    /// [`Broken`] if it acknowledges data that was never sent.
    pub(in super::super) fn handle_sack(&mut self, now: Instant, sack: &Sack<'_>) -> Result<(), Broken> {
        // The arrival of an overtaken SACK is dropped with it.
        let arrival = self.arrival.take();
        let cumulative = expand(self.first, sack.cumulative);
        let next = self.next_tsn();
        if cumulative >= next {
            return Err(Broken);
        }
        // An older SACK that was overtaken has no new content, and its window may be outdated (RFC 9260 §6.2.1).
        if cumulative.saturating_add(1) < self.first {
            return Ok(());
        }
        let prior_in_flight = self.in_flight;
        let window_limited = self.is_window_limited();
        let mut taken = Taken { highest_before: self.acked.highest(), ..Taken::default() };
        if let Some(arrival) = arrival {
            self.take_arrival(now, arrival, &mut taken);
        }
        if cumulative >= self.first {
            self.progress_at = now;
        }
        while self.first <= cumulative {
            self.acknowledge(now, self.first, &mut taken);
            if let Some(flight) = self.flights.pop_front() {
                self.span = self.span.saturating_sub(flight.length);
            }
            self.first = self.first.saturating_add(1);
        }
        self.acked.forget_before(self.first);
        // Our receivers and those of browsers never renege, so the cumulative TSN can't stop just before an
        // acknowledged TSN.
        if self.flights.front().is_some_and(|flight| flight.state == ChunkState::Acked) {
            return Err(Broken);
        }
        let mut last = cumulative;
        let mut fresh = core::mem::take(&mut self.acked.fresh);
        fresh.clear();
        let mut at = 0;
        for (from, to) in sack.blocks() {
            let (from, to) = (cumulative.saturating_add(from.into()), cumulative.saturating_add(to.into()));
            if from <= last.saturating_add(1) || to < from || to >= next {
                self.acked.fresh = fresh;
                return Err(Broken);
            }
            last = to;
            self.acked.add(from, to, &mut at, &mut fresh);
        }
        self.acked.merge(&mut fresh);
        for (from, to) in fresh.iter().copied() {
            for tsn in from..=to {
                self.acknowledge(now, tsn, &mut taken);
            }
        }
        self.acked.fresh = fresh;
        if arrival.is_some_and(|arrival| !self.is_acknowledged(expand(self.first, arrival.tsn))) {
            (taken.arrived, taken.queued) = (None, None);
        }
        self.peer_window = sack.window.into();
        if sack.duplicates > 0 {
            self.widen(sack.duplicates);
        }
        self.tail_known = sack.blocks().len() < self.peer.gap_blocks;
        self.finish_ack(now, taken, prior_in_flight, window_limited);
        Ok(())
    }

    /// Takes the arrival of the newest data, unless that was acknowledged before.
    fn take_arrival(&mut self, now: Instant, Arrival { tsn, tick }: Arrival, taken: &mut Taken) {
        let tsn = expand(self.first, tsn);
        let Some(flight) = index(self.first, tsn).and_then(|at| self.flights.get(at)) else { return };
        if flight.state == ChunkState::Acked {
            return;
        }
        taken.arrived = Some(Arrived { tick, sent_at: flight.sent_at });
        if !flight.retransmitted {
            taken.queued = Some(self.forward.measured(now, flight.sent_at, tick));
        }
    }

    fn is_acknowledged(&self, tsn: u64) -> bool {
        let flight = index(self.first, tsn).and_then(|at| self.flights.get(at));
        flight.map_or(tsn < self.first, |flight| flight.state == ChunkState::Acked)
    }

    /// Marks a TSN as delivered.
    fn acknowledge(&mut self, now: Instant, tsn: u64, taken: &mut Taken) {
        let Some(flight) = index(self.first, tsn).and_then(|at| self.flights.get_mut(at)) else { return };
        let was = core::mem::replace(&mut flight.state, ChunkState::Acked);
        if was == ChunkState::Acked {
            return;
        }
        let length = flight.length;
        flight.message = None;
        let (sent_at, snapshot) = (flight.sent_at, flight.snapshot);
        let (retransmitted, was_lost) = (flight.retransmitted, flight.losses > 0);
        let age = now.since(sent_at);
        // Data acknowledged before its retransmission, or sooner than that can be acknowledged, was only late.
        let early = was == ChunkState::Lost || (retransmitted && age < self.round_trip.min());
        match was {
            ChunkState::InFlight => self.in_flight = self.in_flight.saturating_sub(length),
            _ => {
                self.lost.remove(&tsn);
            }
        }
        self.delivery.delivered = self.delivery.delivered.saturating_add(length);
        taken.acked = taken.acked.saturating_add(length);
        if early {
            if was_lost {
                taken.spurious = taken.spurious.saturating_add(length);
            }
            return;
        }
        if !retransmitted && tsn < taken.highest_before {
            self.reordering_seen = true;
        }
        let newer = taken.newest.is_none_or(|(at, other, ..)| (at, other) < (sent_at, tsn));
        if newer {
            taken.newest = Some((sent_at, tsn, snapshot, retransmitted));
        }
    }

    /// The second part of handling a SACK: losses, samples, the controller.
    fn finish_ack(&mut self, now: Instant, mut taken: Taken, prior_in_flight: u64, window_limited: bool) {
        if taken.acked > 0 {
            self.active_at = now;
            self.probed = false;
            self.probe_due = false;
            self.expired = 0;
            self.delivery.delivered_at = now;
            self.delivery.arrived = taken.arrived;
            if self.delivery.app_limited_until != 0 && self.delivery.delivered > self.delivery.app_limited_until {
                self.delivery.app_limited_until = 0;
            }
        }
        let mut round_trip = None;
        let mut rate = None;
        if let Some((sent_at, tsn, snapshot, retransmitted)) = taken.newest {
            let measured = now.since(sent_at);
            if !retransmitted {
                self.round_trip.measured(now, measured);
                round_trip = Some(measured);
            }
            if (sent_at, tsn) > (self.rack.sent_at, self.rack.tsn) {
                self.rack = Rack { sent_at, tsn, round_trip: measured };
            }
            let sending = sent_at.since(snapshot.first_sent_at);
            let acking = now.since(snapshot.delivered_at);
            // Queueing on the return path brings acknowledgements closer together than the data. A reported interval
            // can't exceed the time since the earlier data was sent.
            let arriving = match (taken.arrived, snapshot.arrived) {
                (Some(last), Some(earlier)) => last.tick.since(earlier.tick).min(now.since(earlier.sent_at)),
                _ => Duration::ZERO,
            };
            self.delivery.first_sent_at = self.delivery.first_sent_at.max(sent_at);
            rate = Some(RateSample {
                prior_delivered: snapshot.delivered,
                prior_lost: snapshot.lost,
                tx_in_flight: snapshot.in_flight,
                delivered: self.delivery.delivered.saturating_sub(snapshot.delivered),
                interval: sending.max(acking).max(arriving),
                app_limited: snapshot.app_limited,
            });
        }
        if taken.acked > 0 {
            self.detect_losses(now, &mut taken);
        }
        if taken.spurious > 0 {
            self.spurious.increment();
            self.reordering_seen = true;
            self.control.on_spurious(now, taken.spurious);
        }
        if taken.acked > 0 || taken.lost > 0 {
            self.control.on_ack(&Ack {
                now,
                acked: taken.acked,
                lost: taken.lost,
                prior_in_flight,
                in_flight: self.in_flight,
                delivered: self.delivery.delivered,
                total_lost: self.delivery.lost,
                rtt: round_trip,
                queued: taken.queued,
                rate,
                window_limited,
            });
        }
    }
}
