//! The sending half: messages cut into fragments, what is in flight, and what counts as lost.
//!
//! Loss detection is RACK-TLP (RFC 8985) on TSNs and gap blocks; how much may be in flight and how fast it leaves is the
//! [congestion controller](super::congestion)'s. A gap block is final: its TSNs are never asked for again, but the
//! payload is kept until the cumulative TSN passes it only where the peer may renege, which none of ours, `dcSCTP` and
//! `rtc-sctp` do; so it is dropped at once.

use core::time::Duration;
use std::collections::{BTreeSet, VecDeque};

use bytes::Bytes;

use super::{
    Broken,
    congestion::{Ack, Algorithm, Control, Controller, Limits, Lost, RateSample, Sent},
    pacer::Pacer,
    packet::{DATA_HEADER, Data, HEADER, Sack, Writer},
    rtt::RoundTrip,
    serial::{expand, wire},
};
use crate::base::Instant;

mod acked;
#[cfg(any(test, fuzzing))]
pub(super) mod check;

use acked::Acked;

/// Shortest piece of a message that is worth a chunk of its own at the end of a packet.
const LEAST_PIECE: usize = 64;
/// Later TSNs acknowledged that make one count as lost while no reordering has been seen.
const DUPLICATE_THRESHOLD: u64 = 3;
/// Recoveries for which a widened reordering window is kept.
const WIDENED_FOR: u8 = 16;
/// Least probe time-out: processes on one machine may be held up for as long.
const LEAST_PROBE: Duration = Duration::from_millis(10);
/// Least window on a path too short for pacing, in bytes.
const SHORT_PATH_WINDOW: u64 = 256 << 10;
/// Packets in flight below which each asks for its acknowledgement at once.
const FEW: u64 = 10;

/// A message that is not wholly sent.
struct Unsent {
    stream: u16,
    protocol: u32,
    bytes: Bytes,
    /// Bytes of it that have been cut off.
    cut: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    InFlight,
    Acked,
    /// Counts as lost and has not been sent again.
    Lost,
}

/// A TSN that has been sent and is not before the cumulative TSN.
struct Flight {
    stream: u16,
    sequence: u16,
    protocol: u32,
    begin: bool,
    end: bool,
    payload: Bytes,
    length: u64,
    state: State,
    retransmitted: bool,
    /// Has counted as lost.
    was_lost: bool,
    sent_at: Instant,
    snapshot: Snapshot,
}

/// The delivery state when a packet left (draft-ietf-ccwg-bbr §4.1.2.2).
#[derive(Clone, Copy)]
struct Snapshot {
    delivered: u64,
    delivered_at: Instant,
    first_sent_at: Instant,
    lost: u64,
    in_flight: u64,
    app_limited: bool,
}

/// What is delivered how fast.
struct Delivery {
    delivered: u64,
    delivered_at: Instant,
    first_sent_at: Instant,
    lost: u64,
    /// Packets that leave before so much has been delivered are application-limited.
    app_limited_until: u64,
}

/// The most recently sent packet that has been acknowledged.
#[derive(Clone, Copy, Default)]
struct Rack {
    sent_at: Instant,
    tsn: u64,
    round_trip: Duration,
}

/// What one SACK did, while it is being taken.
#[derive(Default)]
struct Taken {
    acked: u64,
    lost: u64,
    newest: Option<(Instant, u64, Snapshot, bool)>,
    spurious: bool,
    /// The highest TSN acknowledged before.
    highest_before: u64,
}

/// The settings of a sending half.
#[derive(Clone, Copy)]
pub(super) struct SendConfig {
    /// Largest packet, in bytes.
    pub(super) packet: usize,
    pub(super) algorithm: Algorithm,
    pub(super) seed: u64,
    /// Most bytes in flight, in all cases.
    pub(super) max_window: u64,
}

/// What depends on the peer.
#[derive(Clone, Copy)]
pub(super) struct Peer {
    /// Longest that it withholds an acknowledgement.
    pub(super) ack_delay: Duration,
    /// Least retransmission time-out towards it.
    pub(super) least_timeout: Duration,
    /// Gap blocks that it reports at the most: when there are as many, TSNs beyond the last are unknown.
    pub(super) gap_blocks: usize,
    /// Largest burst that it can take, in bytes.
    pub(super) max_burst: u64,
    /// Most bytes in flight on a path too short for pacing.
    pub(super) short_path_window: u64,
}

/// What a link may show of its sending half.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct SendStatistics {
    /// Smoothed round trip.
    pub round_trip: Duration,
    /// Smallest round trip.
    pub min_round_trip: Duration,
    /// Congestion window in bytes.
    pub window: u64,
    /// Pacing rate in bytes a second, if paced.
    pub pacing_rate: Option<u64>,
    /// Bytes in flight.
    pub in_flight: u64,
    /// Bytes that have counted as lost.
    pub lost: u64,
    /// Bytes delivered.
    pub delivered: u64,
    /// Losses that were none.
    pub spurious: u64,
    /// Tail loss probes.
    pub probes: u64,
    /// Retransmission time-outs.
    pub timeouts: u64,
    /// The controller's state.
    pub state: &'static str,
}

/// The sending half of an association.
pub(super) struct SendHalf {
    config: SendConfig,
    peer: Peer,
    limits: Limits,
    unsent: VecDeque<Unsent>,
    unsent_bytes: usize,
    /// Sequence number of the next message of each stream.
    sequences: Vec<u16>,
    flights: VecDeque<Flight>,
    /// The TSN of the first of `flights`; the one before it is the peer's cumulative TSN.
    first: u64,
    acked: Acked,
    lost: BTreeSet<u64>,
    in_flight: u64,
    /// Bytes of `flights`, acknowledged beyond a gap or not: what the messages they are cut from may keep in memory.
    span: u64,
    /// Most bytes of `flights`.
    limit: u64,
    /// The peer's receive window as last told.
    peer_window: u64,
    control: Control,
    pacer: Pacer,
    round_trip: RoundTrip,
    delivery: Delivery,
    rack: Rack,
    reordering_seen: bool,
    /// Quarters of the smallest round trip that the reordering window is wide.
    widened: u32,
    widened_for: u8,
    /// Duplicates reported until this TSN is acknowledged belong to one round.
    widen_after: u64,
    /// Probes whose duplicate the peer has not reported.
    repeated_in_probes: usize,
    /// The last SACK had room for all that the peer holds: TSNs beyond its last block have not arrived.
    tail_known: bool,
    /// When a TSN that is merely late so far counts as lost.
    reorder_at: Option<Instant>,
    /// Since when neither an acknowledgement came nor anything was sent.
    active_at: Instant,
    /// Since when nothing new has been acknowledged, while something is in flight.
    progress_at: Instant,
    /// A tail loss probe has been sent since the last acknowledgement.
    probed: bool,
    /// A tail loss probe is to be sent.
    probe_due: bool,
    /// Retransmission time-outs in a row.
    expired: u32,
    paced_until: Option<Instant>,
    /// Since when there has been room and nothing to send.
    starved_since: Option<Instant>,
    spurious: u64,
    probes: u64,
    timeouts: u64,
}

impl SendHalf {
    /// For our first TSN `first`.
    pub(super) fn new(now: Instant, config: SendConfig, peer: Peer, first: u32) -> Self {
        let segment = config.packet.saturating_sub(HEADER).saturating_sub(DATA_HEADER) as u64;
        let limits = Limits {
            segment,
            short_path_window: SHORT_PATH_WINDOW,
            short_path: Duration::from_millis(2),
            max_window: config.max_window,
        };
        let first = u64::from(first) | 1 << 32;
        Self {
            control: Control::new(config.algorithm, limits, now, config.seed),
            pacer: Pacer::new(now, segment, peer.max_burst),
            config,
            peer,
            limits,
            unsent: VecDeque::new(),
            unsent_bytes: 0,
            sequences: Vec::new(),
            flights: VecDeque::new(),
            first,
            acked: Acked::default(),
            lost: BTreeSet::new(),
            in_flight: 0,
            span: 0,
            limit: u64::MAX,
            peer_window: 0,
            round_trip: RoundTrip::new(),
            delivery: Delivery { delivered: 0, delivered_at: now, first_sent_at: now, lost: 0, app_limited_until: 0 },
            rack: Rack::default(),
            reordering_seen: false,
            widened: 1,
            widened_for: 0,
            widen_after: 0,
            repeated_in_probes: 0,
            tail_known: true,
            reorder_at: None,
            active_at: now,
            progress_at: now,
            probed: false,
            probe_due: false,
            expired: 0,
            paced_until: None,
            starved_since: None,
            spurious: 0,
            probes: 0,
            timeouts: 0,
        }
    }

    /// The peer is known: its first window, how many streams it takes, and how it acknowledges.
    pub(super) fn set_peer(&mut self, now: Instant, peer: Peer, window: u32, streams: u16) {
        self.peer = peer;
        self.limits.short_path_window = peer.short_path_window.min(SHORT_PATH_WINDOW);
        self.control = Control::new(self.config.algorithm, self.limits, now, self.config.seed);
        self.peer_window = window.into();
        self.sequences = vec![0; usize::from(streams)];
        self.pacer = Pacer::new(now, self.limits.segment, peer.max_burst);
    }

    /// Notes a round trip that the handshake measured.
    pub(super) fn handshake_took(&mut self, now: Instant, round_trip: Duration) {
        self.round_trip.measured(now, round_trip);
    }

    /// Queues a message; `false` if the peer has no such stream.
    pub(super) fn send(&mut self, now: Instant, stream: u16, protocol: u32, bytes: Bytes) -> bool {
        if usize::from(stream) >= self.sequences.len() || bytes.is_empty() {
            return false;
        }
        if let Some(since) = self.starved_since.take()
            && since < now
        {
            self.delivery.app_limited_until = self.delivery.delivered.saturating_add(self.in_flight).max(1);
        }
        self.unsent_bytes = self.unsent_bytes.saturating_add(bytes.len());
        self.unsent.push_back(Unsent { stream, protocol, bytes, cut: 0 });
        true
    }

    /// Bytes of messages that are queued and not sent.
    pub(super) const fn unsent(&self) -> usize {
        self.unsent_bytes
    }

    /// Bytes that it keeps in memory.
    pub(super) fn held(&self) -> usize {
        usize::try_from(self.span).unwrap_or(usize::MAX).saturating_add(self.unsent_bytes)
    }

    /// Bounds what it keeps of data that has been sent.
    pub(super) fn set_limit(&mut self, bytes: usize) {
        self.limit = bytes as u64;
    }

    /// Whether all that was queued has arrived.
    pub(super) fn is_flushed(&self) -> bool {
        self.unsent.is_empty() && self.flights.is_empty()
    }

    /// Bytes of new data that may leave at once.
    pub(super) fn sendable(&mut self, now: Instant) -> usize {
        if !self.lost.is_empty() {
            return 0;
        }
        let window = self.window();
        let mut bytes = window.saturating_sub(self.in_flight).min(self.peer_window.saturating_sub(self.in_flight));
        bytes = bytes.min(self.limit.saturating_sub(self.span));
        if let Some(rate) = self.control.pacing_rate() {
            let _ = self.pacer.poll(now, rate);
            bytes = bytes.min(self.pacer.tokens());
        }
        usize::try_from(bytes).unwrap_or(usize::MAX)
    }

    /// Bytes that leave in `time` at the present rate; none if nothing paces.
    pub(super) fn paced_in(&self, time: Duration) -> Option<usize> {
        let rate = self.control.pacing_rate()?;
        let bytes = u128::from(rate).saturating_mul(time.as_nanos()).checked_div(1_000_000_000)?;
        Some(usize::try_from(bytes).unwrap_or(usize::MAX))
    }

    /// The smoothed round trip.
    pub(super) fn round_trip(&self) -> Duration {
        self.round_trip.smoothed()
    }

    /// Since when nothing new has been acknowledged; none if nothing is in flight.
    pub(super) fn stuck_since(&self) -> Option<Instant> {
        (!self.flights.is_empty()).then_some(self.progress_at)
    }

    /// What may be shown of it.
    pub(super) fn statistics(&self) -> SendStatistics {
        SendStatistics {
            round_trip: self.round_trip.smoothed(),
            min_round_trip: self.round_trip.min(),
            window: self.control.window(),
            pacing_rate: self.control.pacing_rate(),
            in_flight: self.in_flight,
            lost: self.delivery.lost,
            delivered: self.delivery.delivered,
            spurious: self.spurious,
            probes: self.probes,
            timeouts: self.timeouts,
            state: self.control.state(),
        }
    }

    /// Takes a SACK.
    ///
    /// # Errors
    /// [`Broken`] if it acknowledges what was never sent.
    pub(super) fn handle_sack(&mut self, now: Instant, sack: &Sack<'_>) -> Result<(), Broken> {
        let cumulative = expand(self.first, sack.cumulative);
        let next = self.next_tsn();
        if cumulative >= next {
            return Err(Broken);
        }
        // An older one that was overtaken says nothing new; its window may be wrong by now (RFC 9260 §6.2.1).
        if cumulative.saturating_add(1) < self.first {
            return Ok(());
        }
        let prior_in_flight = self.in_flight;
        let window_limited = self.is_window_limited();
        let mut taken = Taken { highest_before: self.acked.highest(), ..Taken::default() };
        while self.first <= cumulative {
            self.acknowledge(now, self.first, &mut taken);
            if let Some(flight) = self.flights.pop_front() {
                self.span = self.span.saturating_sub(flight.length);
            }
            self.first = self.first.saturating_add(1);
        }
        self.acked.forget_before(self.first);
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
        self.peer_window = sack.window.into();
        if sack.duplicates > 0 {
            self.widen(sack.duplicates);
        }
        self.tail_known = sack.blocks().len() < self.peer.gap_blocks;
        self.finish_ack(now, taken, prior_in_flight, window_limited);
        Ok(())
    }

    /// Marks a TSN as delivered.
    fn acknowledge(&mut self, now: Instant, tsn: u64, taken: &mut Taken) {
        let Some(flight) = index(self.first, tsn).and_then(|at| self.flights.get_mut(at)) else { return };
        let was = core::mem::replace(&mut flight.state, State::Acked);
        if was == State::Acked {
            return;
        }
        let length = flight.length;
        flight.payload = Bytes::new();
        let (sent_at, snapshot) = (flight.sent_at, flight.snapshot);
        let (retransmitted, was_lost) = (flight.retransmitted, flight.was_lost);
        let age = now.since(sent_at);
        // What is acknowledged while it waits to be repeated, or sooner than a repetition can be, was only late.
        let early = was == State::Lost || (retransmitted && age < self.round_trip.min());
        match was {
            State::InFlight => self.in_flight = self.in_flight.saturating_sub(length),
            _ => {
                self.lost.remove(&tsn);
            }
        }
        self.delivery.delivered = self.delivery.delivered.saturating_add(length);
        taken.acked = taken.acked.saturating_add(length);
        if early {
            taken.spurious |= was_lost;
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

    /// The second half of taking a SACK: losses, samples, the controller.
    fn finish_ack(&mut self, now: Instant, mut taken: Taken, prior_in_flight: u64, window_limited: bool) {
        if taken.acked > 0 {
            self.active_at = now;
            self.progress_at = now;
            self.probed = false;
            self.probe_due = false;
            self.expired = 0;
            self.delivery.delivered_at = now;
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
            self.delivery.first_sent_at = self.delivery.first_sent_at.max(sent_at);
            rate = Some(RateSample {
                prior_delivered: snapshot.delivered,
                prior_lost: snapshot.lost,
                tx_in_flight: snapshot.in_flight,
                delivered: self.delivery.delivered.saturating_sub(snapshot.delivered),
                interval: sending.max(acking),
                app_limited: snapshot.app_limited,
            });
        }
        self.detect_losses(now, &mut taken);
        if taken.spurious {
            self.spurious = self.spurious.saturating_add(1);
            self.reordering_seen = true;
            self.control.on_spurious(now);
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
                rate,
                window_limited,
            });
        }
    }

    /// The reordering window of RACK.
    fn reordering_window(&self) -> Duration {
        let quarter = self.round_trip.min().checked_div(4).unwrap_or_default();
        quarter.saturating_mul(self.widened).min(self.round_trip.smoothed())
    }

    /// A duplicate was reported: something was repeated for nothing. Widens the reordering window once a round.
    fn widen(&mut self, duplicates: usize) {
        // Those of probes say nothing.
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

    /// RACK (RFC 8985 §6.2): what was sent before the newest acknowledged packet, by more than the reordering window, is lost.
    fn detect_losses(&mut self, now: Instant, taken: &mut Taken) {
        self.reorder_at = None;
        if self.rack.round_trip == Duration::ZERO {
            return;
        }
        let window = self.reordering_window();
        let mut found: Vec<u64> = Vec::new();
        let mut reorder_at: Option<Instant> = None;
        let mut judge = |tsn: u64, flight: &Flight, near: bool| {
            if flight.state != State::InFlight || (flight.sent_at, tsn) >= (self.rack.sent_at, self.rack.tsn) {
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
                if flight.state == State::InFlight && !flight.retransmitted && flight.sent_at >= self.rack.sent_at {
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
            self.widened_for = self.widened_for.saturating_sub(1);
            if self.widened_for == 0 {
                self.widened = 1;
            }
        }
    }

    /// Counts a TSN in flight as lost.
    fn lose(&mut self, now: Instant, tsn: u64, taken: &mut Taken) {
        let Some(flight) = index(self.first, tsn).and_then(|at| self.flights.get_mut(at)) else { return };
        if flight.state != State::InFlight {
            return;
        }
        flight.state = State::Lost;
        flight.was_lost = true;
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
    fn timer(&self) -> Option<Instant> {
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

    /// When [`Self::handle_timeout`] wants to be called.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        [self.timer(), self.reorder_at, self.paced_until].into_iter().flatten().min()
    }

    /// Does what has become due.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
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
                self.probes = self.probes.saturating_add(1);
            }
        }
    }

    /// Retransmission timed out: all that is in flight longer than a round trip counts as lost (RFC 8985 §6.3).
    fn time_out(&mut self, now: Instant) {
        self.expired = self.expired.saturating_add(1);
        self.timeouts = self.timeouts.saturating_add(1);
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
        // One may be a line that was away for a moment.
        if self.expired == 2 {
            self.control.on_time_out(now);
        }
    }

    /// Runs something that may count packets as lost, and tells the controller.
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
                rate: None,
                window_limited,
            });
        }
    }

    fn is_window_limited(&self) -> bool {
        let nearly = self.in_flight.saturating_add(self.limits.segment.saturating_mul(3)) >= self.window();
        nearly || !self.unsent.is_empty() || !self.lost.is_empty()
    }

    /// Writes chunks that may leave now; gives whether any were written.
    pub(super) fn write(&mut self, now: Instant, writer: &mut Writer<'_>) -> bool {
        if !self.may_send(now) {
            return false;
        }
        let mut any = false;
        // Not after a time-out, which leaves nothing in flight: what is sent again is no progress.
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
        } else if self.unsent.is_empty() && self.lost.is_empty() {
            self.starved_since = self.starved_since.or(Some(now));
        }
        any
    }

    /// Whether the windows and the pacer let a packet leave.
    fn may_send(&mut self, now: Instant) -> bool {
        let waits = !self.unsent.is_empty() || !self.lost.is_empty();
        if self.probe_due {
            return true;
        }
        let window = self.window();
        if self.in_flight >= window {
            return false;
        }
        if !waits {
            // Nothing to send, though there is room: noted by whoever finds it so.
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

    /// Sends a lost TSN again, if it fits.
    fn write_lost(&mut self, now: Instant, tsn: u64, writer: &mut Writer<'_>) -> bool {
        let Some(flight) = index(self.first, tsn).and_then(|at| self.flights.get(at)) else {
            self.lost.remove(&tsn);
            return true;
        };
        if flight.payload.len().saturating_add(DATA_HEADER).next_multiple_of(4) > writer.room() {
            return false;
        }
        self.lost.remove(&tsn);
        let immediate = self.lost.is_empty();
        self.repeat(now, tsn, immediate, writer);
        true
    }

    /// Repeats the last TSN, to learn whether the tail was lost (RFC 8985 §7).
    fn write_probe(&mut self, now: Instant, writer: &mut Writer<'_>) -> bool {
        let last = self.flights.iter().rposition(|flight| flight.state == State::InFlight);
        let Some((at, flight)) = last.and_then(|at| self.flights.get(at).map(|flight| (at, flight))) else {
            self.probe_due = false;
            return false;
        };
        // Beside an acknowledgement there may be no room: then it has the next packet.
        if flight.payload.len().saturating_add(DATA_HEADER).next_multiple_of(4) > writer.room() {
            return false;
        }
        self.probe_due = false;
        let tsn = self.first.saturating_add(at as u64);
        self.in_flight = self.in_flight.saturating_sub(flight.length);
        self.repeated_in_probes = self.repeated_in_probes.saturating_add(1).min(20);
        self.repeat(now, tsn, true, writer);
        true
    }

    fn repeat(&mut self, now: Instant, tsn: u64, immediate: bool, writer: &mut Writer<'_>) {
        let snapshot = self.snapshot(now);
        let Some(flight) = index(self.first, tsn).and_then(|at| self.flights.get_mut(at)) else { return };
        flight.state = State::InFlight;
        flight.retransmitted = true;
        flight.sent_at = now;
        let bytes = flight.length;
        let prior_in_flight = self.in_flight;
        self.in_flight = self.in_flight.saturating_add(bytes);
        flight.snapshot = Snapshot { in_flight: self.in_flight, ..snapshot };
        writer.data(&Data {
            tsn: wire(tsn),
            stream: flight.stream,
            sequence: flight.sequence,
            protocol: flight.protocol,
            begin: flight.begin,
            end: flight.end,
            immediate,
            payload: &flight.payload,
        });
        self.pacer.spend(bytes);
        self.control.on_sent(&Sent { now, bytes, prior_in_flight, retransmission: true });
    }

    /// Sends the next piece of the first message.
    fn write_new(&mut self, now: Instant, writer: &mut Writer<'_>) -> bool {
        let Some(message) = self.unsent.front() else { return false };
        let space = writer.room().saturating_sub(DATA_HEADER);
        let left = message.bytes.len().saturating_sub(message.cut);
        let length = if left.next_multiple_of(4) <= space { left } else { space & !3 };
        // A window of the peer's that is used up lets one packet through when nothing else is in flight.
        let beyond_window = self.in_flight.saturating_add(length as u64) > self.peer_window || self.span >= self.limit;
        if length < LEAST_PIECE.min(left) {
            return false;
        }
        if beyond_window && self.in_flight > 0 {
            // The peer's window is the limit, not the path.
            self.delivery.app_limited_until = self.delivery.delivered.saturating_add(self.in_flight).max(1);
            return false;
        }
        let snapshot = self.snapshot(now);
        let Some(message) = self.unsent.front_mut() else { return false };
        let begin = message.cut == 0;
        let to = message.cut.saturating_add(length);
        let end = to >= message.bytes.len();
        let payload = message.bytes.slice(message.cut..to);
        message.cut = to;
        let (stream, protocol) = (message.stream, message.protocol);
        if end {
            self.unsent.pop_front();
        }
        self.unsent_bytes = self.unsent_bytes.saturating_sub(length);
        let sequence = self.sequences.get(usize::from(stream)).copied().unwrap_or_default();
        if end && let Some(next) = self.sequences.get_mut(usize::from(stream)) {
            *next = next.wrapping_add(1);
        }
        let tsn = self.next_tsn();
        let bytes = length as u64;
        self.span = self.span.saturating_add(bytes);
        let prior_in_flight = self.in_flight;
        self.in_flight = self.in_flight.saturating_add(bytes);
        // The last of a burst is acknowledged at once, so that no delay of the peer's is taken for the path's.
        let few = self.in_flight < FEW.saturating_mul(self.limits.segment);
        let immediate = self.unsent.is_empty() || few;
        writer.data(&Data { tsn: wire(tsn), stream, sequence, protocol, begin, end, immediate, payload: &payload });
        self.flights.push_back(Flight {
            stream,
            sequence,
            protocol,
            begin,
            end,
            payload,
            length: bytes,
            state: State::InFlight,
            retransmitted: false,
            was_lost: false,
            sent_at: now,
            snapshot: Snapshot { in_flight: self.in_flight, ..snapshot },
        });
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
        }
        Snapshot {
            delivered: self.delivery.delivered,
            delivered_at: self.delivery.delivered_at,
            first_sent_at: self.delivery.first_sent_at,
            lost: self.delivery.lost,
            in_flight: 0,
            app_limited: self.delivery.app_limited_until != 0,
        }
    }

    /// Bytes that may be in flight.
    fn window(&self) -> u64 {
        let window = self.control.window().min(self.config.max_window);
        if self.control.pacing_rate().is_some() { window } else { window.min(self.peer.short_path_window) }
    }

    fn next_tsn(&self) -> u64 {
        self.first.saturating_add(self.flights.len() as u64)
    }
}

/// The place of `tsn` among those from `first` on.
fn index(first: u64, tsn: u64) -> Option<usize> {
    tsn.checked_sub(first).and_then(|at| usize::try_from(at).ok())
}
