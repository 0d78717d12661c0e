//! The sending half: messages cut into fragments, what is in flight, and what counts as lost.
//!
//! Loss detection is RACK-TLP (RFC 8985) on TSNs and gap blocks; how much may be in flight and how fast it leaves is the
//! [congestion controller](super::congestion)'s. A gap block is final: its TSNs are never asked for again, but the
//! payload is kept until the cumulative TSN passes it only where the peer may renege, which none of ours, `dcSCTP` and
//! `rtc-sctp` do; so it is dropped at once.

use core::time::Duration;
use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
};

use super::{
    clock::Tick,
    congestion::{Algorithm, Control, Controller as _, Limits},
    pacer::Pacer,
    packet::{Arrival, DATA_HEADER, HEADER},
    rtt::RoundTrip,
};
use crate::base::{Instant, Slots};

mod acked;
#[cfg(any(test, fuzzing))]
pub(super) mod check;
mod forward;
mod loss;
mod sack;
mod write;

use acked::Acked;
use forward::Forward;

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
/// Times that one TSN may count as lost. Even a tenth of packets lost makes so many in a row next to impossible; a peer that feigns losses
/// gets no more repetitions than that.
const MAX_LOSSES: u8 = 24;
/// Packets in flight below which each asks for its acknowledgement at once.
const FEW: u64 = 10;

/// A message that is not wholly sent.
struct Unsent {
    stream: u16,
    protocol: u32,
    bytes: Arc<Slots>,
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
    /// The message that it is a piece of; none once it is acknowledged.
    message: Option<Arc<Slots>>,
    /// Where in the message it begins.
    from: usize,
    length: u64,
    state: State,
    retransmitted: bool,
    /// How often it has counted as lost.
    losses: u8,
    sent_at: Instant,
    snapshot: Snapshot,
}

/// The delivery state when a packet left (draft-ietf-ccwg-bbr §4.1.2.2).
#[derive(Clone, Copy)]
struct Snapshot {
    delivered: u64,
    delivered_at: Instant,
    /// What the last of that was, if the peer told.
    arrived: Option<Arrived>,
    first_sent_at: Instant,
    lost: u64,
    in_flight: u64,
    app_limited: bool,
}

/// When data arrived by the peer's clock, and when it had been sent by ours: the peer can't have told a time before that.
#[derive(Clone, Copy)]
struct Arrived {
    tick: Tick,
    sent_at: Instant,
}

/// What is delivered how fast.
struct Delivery {
    delivered: u64,
    delivered_at: Instant,
    /// The last of it, if the peer told when it arrived.
    arrived: Option<Arrived>,
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
    /// Bytes acknowledged whose loss was none.
    spurious: u64,
    /// The highest TSN acknowledged before.
    highest_before: u64,
    /// The last of these, if the peer told when it arrived.
    arrived: Option<Arrived>,
    /// How long it waited on its way, if it was sent once.
    queued: Option<Duration>,
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
    /// What the peer told of the data that the SACK after it acknowledges.
    arrival: Option<Arrival>,
    forward: Forward,
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
    /// When the cumulative TSN last advanced, or the first of what is in flight was sent.
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
    /// Something was lost too often.
    hopeless: bool,
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
            arrival: None,
            forward: Forward::default(),
            delivery: Delivery {
                delivered: 0,
                delivered_at: now,
                arrived: None,
                first_sent_at: now,
                lost: 0,
                app_limited_until: 0,
            },
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
            hopeless: false,
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

    /// Notes when the newest of the data arrived that the next SACK acknowledges.
    pub(super) fn note_arrival(&mut self, arrival: Option<Arrival>) {
        self.arrival = arrival;
    }

    /// Queues a message; `false` if the peer has no such stream.
    pub(super) fn send(&mut self, now: Instant, stream: u16, protocol: u32, bytes: Slots) -> bool {
        if usize::from(stream) >= self.sequences.len() || bytes.is_empty() {
            return false;
        }
        if let Some(since) = self.starved_since.take()
            && since < now
        {
            self.delivery.app_limited_until = self.delivery.delivered.saturating_add(self.in_flight).max(1);
        }
        self.unsent_bytes = self.unsent_bytes.saturating_add(bytes.len());
        self.unsent.push_back(Unsent { stream, protocol, bytes: Arc::new(bytes), cut: 0 });
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

    /// Whether something was lost so often that the peer feigns it, or the line carries nothing.
    pub(super) const fn is_hopeless(&self) -> bool {
        self.hopeless
    }

    /// Since when the first TSN in flight is the first; none if nothing is in flight.
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

    fn is_window_limited(&self) -> bool {
        let nearly = self.in_flight.saturating_add(self.limits.segment.saturating_mul(3)) >= self.window();
        nearly || !self.unsent.is_empty() || !self.lost.is_empty()
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
