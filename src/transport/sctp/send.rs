//! The sending half: fragmentation of messages, data in flight, and loss detection.
//!
//! Loss detection is RACK-TLP (RFC 8985) on TSNs and gap blocks. The [congestion controller](super::congestion)
//! bounds the data in flight and its rate. A gap block is final: its TSNs are never retransmitted, and their payload
//! is freed at once. Only a peer that reneges would need the payload, and our nodes, `dcSCTP` and `rtc-sctp` never
//! renege.

use core::time::Duration;
use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
};

use super::{
    clock::Tick,
    congestion::{Algorithm, Control, Controller as _, ControllerSizes},
    pacer::Pacer,
    packet::{Arrival, DATA_HEADER, HEADER},
    rtt::RoundTrip,
};
use crate::base::{Instant, Slots};

mod acked;
#[cfg(any(test, fuzzing))]
pub(super) mod check;
mod forward_delay;
mod loss;
mod sack;
mod write;

use acked::Acked;
use forward_delay::ForwardDelay;

/// Shortest piece of a message that gets a chunk at the end of a packet.
const LEAST_PIECE: usize = 64;
/// Number of later acknowledged TSNs that make a TSN count as lost while no reordering has been seen.
const DUPLICATE_THRESHOLD: u64 = 3;
/// Recoveries for which a widened reordering window is kept.
const WIDENED_FOR: u8 = 16;
/// Least probe timeout: scheduling may delay processes on one machine for as long.
const LEAST_PROBE: Duration = Duration::from_millis(10);
/// Least window on a path too short for pacing, in bytes.
const SHORT_PATH_WINDOW: u64 = 256 << 10;
/// Most times that one TSN may count as lost. Even at a loss rate of a tenth, so many losses in a row are next to
/// impossible. A peer that feigns losses gets no more retransmissions than these.
const MAX_LOSSES: u8 = 24;
/// Packets in flight below which each requests an immediate acknowledgement.
const FEW: u64 = 10;

/// A message that is not completely sent.
struct Unsent {
    stream: u16,
    protocol: u32,
    bytes: Arc<Slots>,
    /// Bytes already sent.
    cut: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum ChunkState {
    InFlight,
    Acked,
    /// Counts as lost and has not been retransmitted.
    Lost,
}

/// A sent TSN beyond the peer's cumulative TSN.
struct Flight {
    stream: u16,
    sequence: u16,
    protocol: u32,
    begin: bool,
    end: bool,
    /// The message that contains it; `None` once it is acknowledged.
    message: Option<Arc<Slots>>,
    /// Its offset in the message.
    from: usize,
    length: u64,
    state: ChunkState,
    retransmitted: bool,
    /// How often it has counted as lost.
    losses: u8,
    sent_at: Instant,
    snapshot: Snapshot,
}

/// The delivery state at the departure of a packet (draft-ietf-ccwg-bbr §4.1.2.2).
#[derive(Clone, Copy)]
struct Snapshot {
    delivered: u64,
    delivered_at: Instant,
    /// Arrival of the last delivered data, if the peer reported it.
    arrived: Option<Arrived>,
    first_sent_at: Instant,
    lost: u64,
    in_flight: u64,
    app_limited: bool,
}

/// Arrival of data on the peer's clock, and its time of sending on ours: a valid arrival is never earlier.
#[derive(Clone, Copy)]
struct Arrived {
    tick: Tick,
    sent_at: Instant,
}

/// Delivered bytes with their times, from which the delivery rate is sampled.
struct Delivery {
    delivered: u64,
    delivered_at: Instant,
    /// Arrival of the last delivered data, if the peer reported it.
    arrived: Option<Arrived>,
    first_sent_at: Instant,
    lost: u64,
    /// Packets that leave before this many bytes are delivered are application-limited.
    app_limited_until: u64,
}

/// The most recently sent packet that has been acknowledged.
#[derive(Clone, Copy, Default)]
struct Rack {
    sent_at: Instant,
    tsn: u64,
    round_trip: Duration,
}

/// Effects of one SACK, collected while it is handled.
#[derive(Default)]
struct Taken {
    acked: u64,
    lost: u64,
    newest: Option<(Instant, u64, Snapshot, bool)>,
    /// Acknowledged bytes that had wrongly counted as lost.
    spurious: u64,
    /// The highest TSN acknowledged before this SACK.
    highest_before: u64,
    /// Arrival of the newest data acknowledged by this SACK, if the peer reported it.
    arrived: Option<Arrived>,
    /// Its queueing delay on the forward path, if it was sent once.
    queued: Option<Duration>,
}

/// The settings of a sending half.
#[derive(Clone, Copy)]
pub(super) struct SendConfig {
    /// Largest packet, in bytes.
    pub(super) packet: usize,
    pub(super) algorithm: Algorithm,
    pub(super) seed: u64,
    /// Most bytes in flight, whatever the controller allows.
    pub(super) max_window: u64,
}

/// Parameters of the peer.
#[derive(Clone, Copy)]
pub(super) struct PeerParameters {
    /// Longest delay of its acknowledgements.
    pub(super) ack_delay: Duration,
    /// Least retransmission timeout.
    pub(super) least_timeout: Duration,
    /// Most gap blocks that it reports: in a SACK with as many, TSNs beyond the last are unknown.
    pub(super) gap_blocks: usize,
    /// Largest burst that it can receive, in bytes.
    pub(super) max_burst: u64,
    /// Most bytes in flight on a path too short for pacing.
    pub(super) short_path_window: u64,
}

/// Statistics of a sending half.
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
    /// Bytes counted as lost.
    pub lost: u64,
    /// Bytes delivered.
    pub delivered: u64,
    /// Spurious losses.
    pub spurious: u64,
    /// Tail loss probes.
    pub probes: u64,
    /// Retransmission timeouts.
    pub timeouts: u64,
    /// The controller's state.
    pub state: &'static str,
}

/// The sending half of an association.
pub(super) struct SendHalf {
    config: SendConfig,
    peer: PeerParameters,
    limits: ControllerSizes,
    unsent: VecDeque<Unsent>,
    unsent_bytes: usize,
    /// Sequence number of the next message of each stream.
    sequences: Vec<u16>,
    flights: VecDeque<Flight>,
    /// The TSN of the first of `flights`, next after the peer's cumulative TSN.
    first: u64,
    acked: Acked,
    lost: BTreeSet<u64>,
    in_flight: u64,
    /// Bytes of `flights`, acknowledged beyond a gap or not: a bound on the memory of the messages they belong to.
    span: u64,
    /// Most bytes of `flights`.
    limit: u64,
    /// The peer's receive window as last reported.
    peer_window: u64,
    control: Control,
    pacer: Pacer,
    round_trip: RoundTrip,
    /// The peer's report for the data that the following SACK acknowledges.
    arrival: Option<Arrival>,
    forward: ForwardDelay,
    delivery: Delivery,
    rack: Rack,
    reordering_seen: bool,
    /// Width of the reordering window, in quarters of the smallest round trip.
    widened: u32,
    widened_for: u8,
    /// Duplicates reported until this TSN is acknowledged belong to one round.
    widen_after: u64,
    /// Probes whose duplicate the peer has not reported.
    repeated_in_probes: usize,
    /// Whether the last SACK had room for all received ranges, so that TSNs beyond its last block have not arrived.
    tail_known: bool,
    /// When the next TSN that is late so far counts as lost.
    reorder_at: Option<Instant>,
    /// Time of the last acknowledgement, send or timer expiry.
    active_at: Instant,
    /// When the cumulative TSN last advanced, or the first data in flight was sent.
    progress_at: Instant,
    /// A tail loss probe has been sent since the last acknowledgement.
    probed: bool,
    /// A tail loss probe is due.
    probe_due: bool,
    /// Consecutive retransmission timeouts.
    expired: u32,
    paced_until: Option<Instant>,
    /// Since when there has been room without data to send.
    starved_since: Option<Instant>,
    /// A TSN was lost too often.
    hopeless: bool,
    spurious: u64,
    probes: u64,
    timeouts: u64,
}

impl SendHalf {
    /// A sending half whose first TSN is `first`.
    pub(super) fn new(now: Instant, config: SendConfig, peer: PeerParameters, first: u32) -> Self {
        let segment = config.packet.saturating_sub(HEADER).saturating_sub(DATA_HEADER) as u64;
        let limits = ControllerSizes {
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
            forward: ForwardDelay::default(),
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

    /// Sets the peer's parameters: its first window, its number of streams, and its acknowledgement behaviour.
    pub(super) fn set_peer(&mut self, now: Instant, peer: PeerParameters, window: u32, streams: u16) {
        self.peer = peer;
        self.limits.short_path_window = peer.short_path_window.min(SHORT_PATH_WINDOW);
        self.control = Control::new(self.config.algorithm, self.limits, now, self.config.seed);
        self.peer_window = window.into();
        self.sequences = vec![0; usize::from(streams)];
        self.pacer = Pacer::new(now, self.limits.segment, peer.max_burst);
    }

    /// Takes a round trip measured by the handshake.
    pub(super) fn handshake_took(&mut self, now: Instant, round_trip: Duration) {
        self.round_trip.measured(now, round_trip);
    }

    /// Takes the arrival of the newest data that the next SACK acknowledges.
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

    /// Bytes kept in memory.
    pub(super) fn held(&self) -> usize {
        usize::try_from(self.span).unwrap_or(usize::MAX).saturating_add(self.unsent_bytes)
    }

    /// Bounds the memory for sent data.
    pub(super) fn set_limit(&mut self, bytes: usize) {
        self.limit = bytes as u64;
    }

    /// Whether everything queued has been acknowledged.
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

    /// Bytes that leave in `time` at the current rate; `None` without pacing.
    pub(super) fn paced_in(&self, time: Duration) -> Option<usize> {
        let rate = self.control.pacing_rate()?;
        let bytes = u128::from(rate).saturating_mul(time.as_nanos()).checked_div(1_000_000_000)?;
        Some(usize::try_from(bytes).unwrap_or(usize::MAX))
    }

    /// The smoothed round trip.
    pub(super) fn round_trip(&self) -> Duration {
        self.round_trip.smoothed()
    }

    /// Whether a TSN was lost so often that the peer feigns it or the path delivers nothing.
    pub(super) const fn is_hopeless(&self) -> bool {
        self.hopeless
    }

    /// When the cumulative TSN last advanced; `None` if nothing is in flight.
    pub(super) fn stuck_since(&self) -> Option<Instant> {
        (!self.flights.is_empty()).then_some(self.progress_at)
    }

    /// The current statistics.
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

    /// Most bytes that may be in flight.
    fn window(&self) -> u64 {
        let window = self.control.window().min(self.config.max_window);
        if self.control.pacing_rate().is_some() { window } else { window.min(self.peer.short_path_window) }
    }

    fn next_tsn(&self) -> u64 {
        self.first.saturating_add(self.flights.len() as u64)
    }
}

/// The index of `tsn` in a list that starts at `first`.
fn index(first: u64, tsn: u64) -> Option<usize> {
    tsn.checked_sub(first).and_then(|at| usize::try_from(at).ok())
}
