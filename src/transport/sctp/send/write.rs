//! Output of the sending half: retransmissions, tail loss probes, and fragments of new messages.

use super::{
    super::{
        congestion::{Controller as _, Sent},
        packet::{DATA_HEADER, Data, PacketWriter},
        serial::wire,
    },
    ChunkState, Flight, IMMEDIATE_SACK_THRESHOLD, MIN_FRAGMENT, OutgoingMessages, SendHalf, Snapshot, index,
};
use crate::base::Instant;

impl SendHalf {
    /// Writes chunks that may leave now; returns whether any were written.
    pub(in super::super) fn write(&mut self, now: Instant, writer: &mut PacketWriter<'_>) -> bool {
        if !self.may_send(now) {
            return false;
        }
        let mut any = false;
        // A retransmission after a timeout is not progress: `flights` is not empty then.
        let first_packet = self.flights.is_empty();
        loop {
            let wrote = match self.lost.first().copied() {
                Some(tsn) => self.write_lost(now, tsn, writer),
                None => self.write_new(now, writer) || (!any && self.probe_due && self.write_probe(now, writer)),
            };
            if !wrote {
                break;
            }
            any = true;
        }
        if any {
            self.probe_due = false;
            self.active_at = now;
            if first_packet {
                self.progress_at = now;
            }
        } else if self.unsent() == 0 && self.lost.is_empty() {
            self.app_limited_since = self.app_limited_since.or(Some(now));
        }
        any
    }

    /// Whether the windows and the pacer allow a packet.
    fn may_send(&mut self, now: Instant) -> bool {
        let has_data = self.unsent() > 0 || !self.lost.is_empty();
        if self.probe_due {
            return true;
        }
        let window = self.window();
        if self.in_flight >= window {
            return false;
        }
        if !has_data {
            // The caller records the time with room but without data.
            return true;
        }
        let Some(rate) = self.control.pacing_rate() else { return true };
        match self.pacer.poll(now, rate) {
            Ok(()) => true,
            Err(at) => {
                self.paced_until = Some(at);
                false
            }
        }
    }

    /// Retransmits a lost TSN if the packet has room for it.
    fn write_lost(&mut self, now: Instant, tsn: u64, writer: &mut PacketWriter<'_>) -> bool {
        let Some(flight) = index(self.first, tsn).and_then(|at| self.flights.get(at)) else {
            self.lost.remove(&tsn);
            return true;
        };
        if flight.part.length.saturating_add(DATA_HEADER).next_multiple_of(4) > writer.room() {
            return false;
        }
        self.lost.remove(&tsn);
        let immediate = self.lost.is_empty();
        self.retransmit(now, tsn, immediate, writer);
        true
    }

    /// Sends a tail loss probe: retransmits the last TSN in flight (RFC 8985 §7).
    fn write_probe(&mut self, now: Instant, writer: &mut PacketWriter<'_>) -> bool {
        let last = self.flights.iter().rposition(|flight| flight.state == ChunkState::InFlight);
        let Some((at, flight)) = last.and_then(|at| self.flights.get(at).map(|flight| (at, flight))) else {
            self.probe_due = false;
            return false;
        };
        // After a long SACK the packet may have no room. The next packet then carries the probe.
        if flight.part.length.saturating_add(DATA_HEADER).next_multiple_of(4) > writer.room() {
            return false;
        }
        self.probe_due = false;
        let tsn = self.first.saturating_add(at as u64);
        self.in_flight = self.in_flight.saturating_sub(flight.bytes());
        self.unreported_probes = self.unreported_probes.saturating_add(1).min(20);
        self.retransmit(now, tsn, true, writer);
        true
    }

    fn retransmit(&mut self, now: Instant, tsn: u64, immediate: bool, writer: &mut PacketWriter<'_>) {
        let snapshot = self.snapshot(now);
        let Some(flight) = index(self.first, tsn).and_then(|at| self.flights.get_mut(at)) else { return };
        flight.state = ChunkState::InFlight;
        flight.retransmitted = true;
        flight.sent_at = now;
        let bytes = flight.bytes();
        let prior_in_flight = self.in_flight;
        self.in_flight = self.in_flight.saturating_add(bytes);
        flight.snapshot = Snapshot { in_flight: self.in_flight, ..snapshot };
        flight.write(&self.messages, tsn, immediate, writer);
        self.pacer.spend(bytes);
        self.control.on_sent(&Sent { now, bytes, prior_in_flight, retransmission: true });
    }

    /// Writes the next fragment of the first queued message.
    fn write_new(&mut self, now: Instant, writer: &mut PacketWriter<'_>) -> bool {
        let Some(left) = self.messages.next_unsent() else { return false };
        let space = writer.room().saturating_sub(DATA_HEADER);
        let length = if left.next_multiple_of(4) <= space { left } else { space & !3 };
        // With nothing in flight, one fragment may exceed the receive window (RFC 9260 §6.1).
        let beyond_window = self.in_flight.saturating_add(length as u64) > self.peer_window;
        let blocked = (beyond_window && self.in_flight > 0) || (self.span >= self.max_span && !self.flights.is_empty());
        if length < MIN_FRAGMENT.min(left) {
            return false;
        }
        if blocked {
            // The receive window or the memory cap is the limit, not the path.
            self.delivery.app_limited_until = self.delivery.delivered.saturating_add(self.in_flight).max(1);
            return false;
        }
        let snapshot = self.snapshot(now);
        let Some(part) = self.messages.take(length) else { return false };
        let tsn = self.next_tsn();
        let bytes = length as u64;
        self.span = self.span.saturating_add(bytes);
        let prior_in_flight = self.in_flight;
        self.in_flight = self.in_flight.saturating_add(bytes);
        // The last packet of a burst requests an immediate SACK, so that round-trip samples exclude the peer's
        // acknowledgement delay.
        let few = self.in_flight < IMMEDIATE_SACK_THRESHOLD.saturating_mul(self.sizes.segment);
        let immediate = self.unsent() == 0 || few;
        let flight = Flight {
            part,
            state: ChunkState::InFlight,
            retransmitted: false,
            losses: 0,
            sent_at: now,
            snapshot: Snapshot { in_flight: self.in_flight, ..snapshot },
        };
        flight.write(&self.messages, tsn, immediate, writer);
        self.flights.push_back(flight);
        self.pacer.spend(bytes);
        self.control.on_sent(&Sent { now, bytes, prior_in_flight, retransmission: false });
        true
    }

    /// The delivery state for a packet that leaves now.
    fn snapshot(&mut self, now: Instant) -> Snapshot {
        if self.in_flight == 0 {
            if self.flights.is_empty() && self.active_at < now {
                self.control.on_idle_end(now, self.active_at);
            }
            self.delivery.first_sent_at = now;
            self.delivery.delivered_at = now;
            self.delivery.last_arrival = None;
        }
        Snapshot {
            delivered: self.delivery.delivered,
            delivered_at: self.delivery.delivered_at,
            last_arrival: self.delivery.last_arrival,
            first_sent_at: self.delivery.first_sent_at,
            lost: self.delivery.lost,
            in_flight: 0,
            app_limited: self.delivery.app_limited_until != 0,
        }
    }
}

impl Flight {
    /// Payload length in bytes.
    pub(super) const fn bytes(&self) -> u64 {
        self.part.length as u64
    }

    /// Writes the DATA chunk of this TSN.
    fn write(&self, messages: &OutgoingMessages, tsn: u64, immediate: bool, writer: &mut PacketWriter<'_>) {
        let part = &self.part;
        let Some(message) = messages.message(part) else { return };
        let data = Data {
            tsn: wire(tsn),
            stream: message.stream,
            sequence: message.sequence,
            protocol: message.protocol,
            begin: part.begin,
            end: part.end,
            immediate,
            payload: &[],
        };
        writer.data_in_pieces(&data, part.length, message.pieces(part));
    }
}
