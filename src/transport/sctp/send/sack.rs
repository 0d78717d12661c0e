//! Handling of SACKs: acknowledged data, and samples of round trip and delivery rate.

use core::time::Duration;

use super::{
    super::{
        Broken,
        congestion::{Ack, Controller as _, RateSample},
        packet::{Arrival, Sack},
        serial::expand,
    },
    AckEffects, ArrivalSample, ChunkState, Rack, SendHalf, index,
};
use crate::base::{Counter as _, Instant};

impl SendHalf {
    /// Handles a SACK.
    ///
    /// # Errors
    /// [`Broken`] if the SACK acknowledges data that was never sent, has invalid gap ack blocks, or reneges.
    pub(in super::super) fn handle_sack(&mut self, now: Instant, sack: &Sack<'_>) -> Result<(), Broken> {
        // An outdated SACK discards its ARRIVAL.
        let arrival = self.arrival.take();
        let cumulative = expand(self.first, sack.cumulative);
        let next = self.next_tsn();
        if cumulative >= next {
            return Err(Broken);
        }
        // A SACK overtaken by a newer one is ignored, since its window may be outdated (RFC 9260 §6.2.1).
        if cumulative.saturating_add(1) < self.first {
            return Ok(());
        }
        let prior_in_flight = self.in_flight;
        let window_limited = self.is_window_limited();
        let mut effects = AckEffects { highest_before: self.acked.highest(), ..AckEffects::default() };
        if let Some(arrival) = arrival {
            self.handle_arrival(now, arrival, &mut effects);
        }
        if cumulative >= self.first {
            self.progress_at = now;
        }
        while self.first <= cumulative {
            self.acknowledge(now, self.first, &mut effects);
            if let Some(flight) = self.flights.pop_front() {
                self.span = self.span.saturating_sub(flight.bytes());
            }
            self.first.increment();
        }
        self.acked.remove_before(self.first);
        // Our nodes and browsers never renege, so the cumulative TSN ack can't stop just before a TSN that a gap ack
        // block acknowledged.
        if self.flights.front().is_some_and(|flight| flight.state == ChunkState::Acked) {
            return Err(Broken);
        }
        let mut last = cumulative;
        let mut new_ranges = core::mem::take(&mut self.acked.new_ranges);
        new_ranges.clear();
        let mut at = 0;
        for (from, to) in sack.blocks() {
            let (from, to) = (cumulative.saturating_add(from.into()), cumulative.saturating_add(to.into()));
            if from <= last.saturating_add(1) || to < from || to >= next {
                self.acked.new_ranges = new_ranges;
                return Err(Broken);
            }
            last = to;
            self.acked.collect_new(from, to, &mut at, &mut new_ranges);
        }
        self.acked.merge(&mut new_ranges);
        for (from, to) in new_ranges.iter().copied() {
            for tsn in from..=to {
                self.acknowledge(now, tsn, &mut effects);
            }
        }
        self.acked.new_ranges = new_ranges;
        if arrival.is_some_and(|arrival| !self.is_acknowledged(expand(self.first, arrival.tsn))) {
            (effects.newest_arrival, effects.queueing_delay) = (None, None);
        }
        self.peer_window = sack.window.into();
        if sack.duplicates > 0 {
            self.widen_reordering_window(sack.duplicates);
        }
        self.tail_known = sack.blocks().len() < self.peer.gap_block_threshold;
        self.finish_ack(now, effects, prior_in_flight, window_limited);
        Ok(())
    }

    /// Handles an ARRIVAL, unless an earlier SACK acknowledged its data.
    fn handle_arrival(&mut self, now: Instant, Arrival { tsn, tick }: Arrival, effects: &mut AckEffects) {
        let tsn = expand(self.first, tsn);
        let Some(flight) = index(self.first, tsn).and_then(|at| self.flights.get(at)) else { return };
        if flight.state == ChunkState::Acked {
            return;
        }
        effects.newest_arrival = Some(ArrivalSample { tick, sent_at: flight.sent_at });
        if !flight.retransmitted {
            effects.queueing_delay = Some(self.forward.queueing_delay(now, flight.sent_at, tick));
        }
    }

    fn is_acknowledged(&self, tsn: u64) -> bool {
        let flight = index(self.first, tsn).and_then(|at| self.flights.get(at));
        flight.map_or(tsn < self.first, |flight| flight.state == ChunkState::Acked)
    }

    /// Marks a TSN as delivered.
    fn acknowledge(&mut self, now: Instant, tsn: u64, effects: &mut AckEffects) {
        let Some(flight) = index(self.first, tsn).and_then(|at| self.flights.get_mut(at)) else { return };
        let was = core::mem::replace(&mut flight.state, ChunkState::Acked);
        if was == ChunkState::Acked {
            return;
        }
        let length = flight.bytes();
        self.messages.acknowledge(&flight.part);
        let (sent_at, snapshot) = (flight.sent_at, flight.snapshot);
        let (retransmitted, was_lost) = (flight.retransmitted, flight.losses > 0);
        let age = now.since(sent_at);
        // An acknowledgement before the retransmission, or within the smallest round trip after it, is for the original
        // packet.
        let early = was == ChunkState::Lost || (retransmitted && age < self.round_trip.min());
        match was {
            ChunkState::InFlight => self.in_flight = self.in_flight.saturating_sub(length),
            _ => {
                self.lost.remove(&tsn);
            }
        }
        self.delivery.delivered = self.delivery.delivered.saturating_add(length);
        effects.acked = effects.acked.saturating_add(length);
        if early {
            if was_lost {
                effects.spurious = effects.spurious.saturating_add(length);
            }
            return;
        }
        if !retransmitted && tsn < effects.highest_before {
            self.reordering_seen = true;
        }
        let newer = effects.newest.is_none_or(|(at, other, ..)| (at, other) < (sent_at, tsn));
        if newer {
            effects.newest = Some((sent_at, tsn, snapshot, retransmitted));
        }
    }

    /// Completes the handling of a SACK: round-trip and rate samples, loss detection, the controller.
    fn finish_ack(&mut self, now: Instant, mut effects: AckEffects, prior_in_flight: u64, window_limited: bool) {
        if effects.acked > 0 {
            self.active_at = now;
            self.probed = false;
            self.probe_due = false;
            self.backoff = 0;
            self.delivery.delivered_at = now;
            self.delivery.last_arrival = effects.newest_arrival;
            if self.delivery.app_limited_until != 0 && self.delivery.delivered > self.delivery.app_limited_until {
                self.delivery.app_limited_until = 0;
            }
        }
        let mut round_trip = None;
        let mut rate = None;
        if let Some((sent_at, tsn, snapshot, retransmitted)) = effects.newest {
            let measured = now.since(sent_at);
            if !retransmitted {
                self.round_trip.add_sample(now, measured);
                round_trip = Some(measured);
            }
            if (sent_at, tsn) > (self.rack.sent_at, self.rack.tsn) {
                self.rack = Rack { sent_at, tsn, round_trip: measured };
            }
            let sending = sent_at.since(snapshot.first_sent_at);
            let acking = now.since(snapshot.delivered_at);
            // A queue on the return path compresses the intervals between acknowledgements, so the interval between
            // arrivals counts too. The time since the earlier data was sent caps the reported interval.
            let arriving = match (effects.newest_arrival, snapshot.last_arrival) {
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
        if effects.acked > 0 {
            self.detect_losses(now, &mut effects);
        }
        if effects.spurious > 0 {
            self.spurious.increment();
            self.reordering_seen = true;
            self.control.on_spurious(now, effects.spurious);
        }
        if effects.acked > 0 || effects.lost > 0 {
            self.control.on_ack(&Ack {
                now,
                acked: effects.acked,
                lost: effects.lost,
                prior_in_flight,
                in_flight: self.in_flight,
                delivered: self.delivery.delivered,
                total_lost: self.delivery.lost,
                rtt: round_trip,
                queueing_delay: effects.queueing_delay,
                rate,
                window_limited,
            });
        }
    }
}
