//! The sending half: fragmentation of messages, data in flight, and loss detection.
//!
//! Loss detection is RACK-TLP (RFC 8985) on TSNs and gap ack blocks. The [congestion controller](super::congestion)
//! bounds the data in flight and its rate. A gap ack block is final: its TSNs are never retransmitted, and a message is
//! freed once all its TSNs are acknowledged. A peer that reneges would need the payload, but our nodes, `dcSCTP` and
//! `rtc-sctp` never renege.

use core::time::Duration;
use std::collections::{BTreeSet, VecDeque};

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
mod messages;
mod sack;
mod write;

use acked::AckedRanges;
use forward_delay::ForwardDelay;
use messages::{MessagePart, OutgoingMessages};

/// Smallest fragment in bytes, except the last fragment of a message.
const MIN_FRAGMENT: usize = 64;
/// Distance below the highest acknowledged TSN from which the reordering window is zero, while no reordering has been
/// observed (`DupThresh`, RFC 8985 §6.2).
const DUPLICATE_THRESHOLD: u64 = 3;
/// Recoveries for which the reordering window stays widened (`RACK.reo_wnd_persist`, RFC 8985 §6.2).
const REORDERING_PERSIST: u8 = 16;
/// Smallest timeout of a tail loss probe: the scheduler may delay a process this long.
const MIN_PROBE_TIMEOUT: Duration = Duration::from_millis(10);
/// Smallest window on a path too short for pacing, in bytes.
const MIN_SHORT_PATH_WINDOW: u64 = 256 << 10;
/// Most times that one TSN may count as lost: at 10 % random loss, 25 losses have probability 10⁻²⁵. The cap bounds
/// the retransmissions to a peer that feigns losses.
const MAX_LOSSES: u8 = 24;
/// Number of packets in flight below which each packet requests an immediate SACK.
const IMMEDIATE_SACK_THRESHOLD: u64 = 10;

#[derive(Clone, Copy, PartialEq, Eq)]
enum ChunkState {
    InFlight,
    Acked,
    /// Counts as lost and has not been retransmitted.
    Lost,
}

/// A sent TSN that the cumulative TSN ack has not passed.
struct Flight {
    part: MessagePart,
    state: ChunkState,
    retransmitted: bool,
    /// Number of times that the TSN has counted as lost.
    losses: u8,
    sent_at: Instant,
    snapshot: Snapshot,
}

/// The delivery state when a packet was sent (draft-ietf-ccwg-bbr §4.1.2.2).
#[derive(Clone, Copy)]
struct Snapshot {
    delivered: u64,
    delivered_at: Instant,
    /// Arrival of the last delivered data, if the peer reported it.
    last_arrival: Option<ArrivalSample>,
    first_sent_at: Instant,
    lost: u64,
    in_flight: u64,
    app_limited: bool,
}

/// Arrival time of data on the peer's clock, and send time of that data on the local clock. The send time bounds
/// intervals that begin at the arrival.
#[derive(Clone, Copy)]
struct ArrivalSample {
    tick: Tick,
    sent_at: Instant,
}

/// Delivered bytes and times, the input of delivery-rate samples (draft-ietf-ccwg-bbr §4.1).
struct Delivery {
    delivered: u64,
    delivered_at: Instant,
    /// Arrival of the last delivered data, if the peer reported it.
    last_arrival: Option<ArrivalSample>,
    first_sent_at: Instant,
    lost: u64,
    /// Packets sent before this many bytes are delivered are application-limited; zero for none.
    app_limited_until: u64,
}

/// The most recently sent packet among the acknowledged ones (RFC 8985 §5.2).
#[derive(Clone, Copy, Default)]
struct Rack {
    sent_at: Instant,
    tsn: u64,
    round_trip: Duration,
}

/// Effects of one SACK or timeout, collected while it is handled.
#[derive(Default)]
struct AckEffects {
    acked: u64,
    lost: u64,
    /// The most recently sent of the acknowledged packets: send time, TSN, delivery state when it was sent, and whether
    /// it was a retransmission.
    newest: Option<(Instant, u64, Snapshot, bool)>,
    /// Acknowledged bytes whose loss was spurious.
    spurious: u64,
    /// Highest TSN acknowledged by gap ack blocks before this SACK.
    highest_before: u64,
    /// Arrival of the newest data acknowledged by this SACK, if the peer reported it.
    newest_arrival: Option<ArrivalSample>,
    /// Queueing delay of the same data on the forward path, if it was sent once.
    queueing_delay: Option<Duration>,
}

/// The settings of a sending half.
#[derive(Clone, Copy)]
pub(super) struct SendConfig {
    /// Largest packet, in bytes.
    pub(super) max_packet: usize,
    pub(super) algorithm: Algorithm,
    pub(super) seed: u64,
    /// Upper bound of the congestion window, in bytes.
    pub(super) max_window: u64,
}

/// Parameters of the peer.
#[derive(Clone, Copy)]
pub(super) struct PeerParameters {
    /// Longest delay of the peer's acknowledgements.
    pub(super) ack_delay: Duration,
    /// Smallest retransmission timeout towards the peer.
    pub(super) min_timeout: Duration,
    /// Number of gap ack blocks from which a SACK may be truncated. The state of TSNs beyond its last block is then
    /// unknown.
    pub(super) gap_block_threshold: usize,
    /// Largest burst that the peer can receive, in bytes.
    pub(super) max_burst: u64,
    /// Most bytes in flight on a path too short for pacing.
    pub(super) max_short_path_window: u64,
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
    /// Bytes that counted as lost, in total.
    pub lost: u64,
    /// Bytes delivered, in total.
    pub delivered: u64,
    /// SACKs that showed a loss to be spurious.
    pub spurious: u64,
    /// Expiries of the timer for a tail loss probe.
    pub probes: u64,
    /// Retransmission timeouts.
    pub timeouts: u64,
    /// Name of the controller's state.
    pub state: &'static str,
}

/// The sending half of an association.
pub(super) struct SendHalf {
    config: SendConfig,
    peer: PeerParameters,
    sizes: ControllerSizes,
    messages: OutgoingMessages,
    /// Sequence number of the next message of each stream.
    sequences: Vec<u16>,
    flights: VecDeque<Flight>,
    /// TSN of the first of `flights`: the one after the cumulative TSN ack.
    first: u64,
    acked: AckedRanges,
    /// TSNs that count as lost and have not been retransmitted.
    lost: BTreeSet<u64>,
    in_flight: u64,
    /// Bytes of all `flights`, including those that gap ack blocks acknowledged.
    span: u64,
    /// Cap on `span`.
    max_span: u64,
    /// The peer's receive window as last reported.
    peer_window: u64,
    control: Control,
    pacer: Pacer,
    round_trip: RoundTrip,
    /// ARRIVAL of the current packet, for the SACK that follows it.
    arrival: Option<Arrival>,
    forward: ForwardDelay,
    delivery: Delivery,
    rack: Rack,
    reordering_seen: bool,
    /// Width of the reordering window, in quarters of the smallest round trip (`RACK.reo_wnd_mult`).
    reordering_quarters: u32,
    /// Recoveries until the window returns to one quarter.
    reordering_persist: u8,
    /// End of the round in which the window was last widened (`RACK.dsack_round`).
    duplicate_round_end: u64,
    /// Probes whose duplicates the peer has not reported yet.
    unreported_probes: usize,
    /// Whether the last SACK listed all received ranges, so that TSNs beyond its last block have not arrived.
    tail_known: bool,
    /// Expiry of the reordering timer of RACK, at which the next missing TSN counts as lost.
    reorder_at: Option<Instant>,
    /// Time of the last acknowledgement, send or timer expiry.
    active_at: Instant,
    /// Time of the last advance of the cumulative TSN ack, or of the first data sent since all data was acknowledged.
    progress_at: Instant,
    /// A tail loss probe has been sent since the last acknowledgement.
    probed: bool,
    /// A tail loss probe is due.
    probe_due: bool,
    /// Consecutive retransmission timeouts.
    backoff: u32,
    /// Time of the next burst, if the pacer has delayed a packet.
    paced_until: Option<Instant>,
    /// Start of the current period with room but without data to send.
    app_limited_since: Option<Instant>,
    /// A TSN has counted as lost more than [`MAX_LOSSES`] times.
    excess_losses: bool,
    spurious: u64,
    probes: u64,
    timeouts: u64,
}

impl SendHalf {
    /// A sending half whose first TSN is `first`.
    pub(super) fn new(now: Instant, config: SendConfig, peer: PeerParameters, first: u32) -> Self {
        let segment = config.max_packet.saturating_sub(HEADER).saturating_sub(DATA_HEADER) as u64;
        let sizes = ControllerSizes {
            segment,
            min_short_path_window: MIN_SHORT_PATH_WINDOW,
            short_path: Duration::from_millis(2),
            max_window: config.max_window,
        };
        let first = u64::from(first) | 1 << 32;
        Self {
            control: Control::new(config.algorithm, sizes, now, config.seed),
            pacer: Pacer::new(now, segment, peer.max_burst),
            config,
            peer,
            sizes,
            messages: OutgoingMessages::default(),
            sequences: Vec::new(),
            flights: VecDeque::new(),
            first,
            acked: AckedRanges::default(),
            lost: BTreeSet::new(),
            in_flight: 0,
            span: 0,
            max_span: u64::MAX,
            peer_window: 0,
            round_trip: RoundTrip::new(),
            arrival: None,
            forward: ForwardDelay::default(),
            delivery: Delivery {
                delivered: 0,
                delivered_at: now,
                last_arrival: None,
                first_sent_at: now,
                lost: 0,
                app_limited_until: 0,
            },
            rack: Rack::default(),
            reordering_seen: false,
            reordering_quarters: 1,
            reordering_persist: 0,
            duplicate_round_end: 0,
            unreported_probes: 0,
            tail_known: true,
            reorder_at: None,
            active_at: now,
            progress_at: now,
            probed: false,
            probe_due: false,
            backoff: 0,
            paced_until: None,
            app_limited_since: None,
            excess_losses: false,
            spurious: 0,
            probes: 0,
            timeouts: 0,
        }
    }

    /// Sets the peer's parameters, its initial receive window in bytes, and the number of streams.
    pub(super) fn set_peer(&mut self, now: Instant, peer: PeerParameters, window: u32, streams: u16) {
        self.peer = peer;
        self.sizes.min_short_path_window = peer.max_short_path_window.min(MIN_SHORT_PATH_WINDOW);
        self.control = Control::new(self.config.algorithm, self.sizes, now, self.config.seed);
        self.peer_window = window.into();
        self.sequences = vec![0; usize::from(streams)];
        self.pacer = Pacer::new(now, self.sizes.segment, peer.max_burst);
    }

    /// Adds a round trip measured by the handshake.
    pub(super) fn add_round_trip(&mut self, now: Instant, round_trip: Duration) {
        self.round_trip.add_sample(now, round_trip);
    }

    /// Sets the ARRIVAL of the current packet, for the SACK that follows it.
    pub(super) fn set_arrival(&mut self, arrival: Option<Arrival>) {
        self.arrival = arrival;
    }

    /// Queues a message; `false` if the message is empty or the stream does not exist.
    pub(super) fn send(&mut self, now: Instant, stream: u16, protocol: u32, bytes: Slots) -> bool {
        let Some(next) = self.sequences.get_mut(usize::from(stream)).filter(|_| !bytes.is_empty()) else {
            return false;
        };
        let sequence = core::mem::replace(next, next.wrapping_add(1));
        if let Some(since) = self.app_limited_since.take()
            && since < now
        {
            self.delivery.app_limited_until = self.delivery.delivered.saturating_add(self.in_flight).max(1);
        }
        self.messages.push(stream, sequence, protocol, bytes);
        true
    }

    /// Bytes of messages that are queued and not sent.
    pub(super) const fn unsent(&self) -> usize {
        self.messages.unsent_bytes()
    }

    /// Bytes queued, or sent and not passed by the cumulative TSN ack.
    pub(super) fn held(&self) -> usize {
        usize::try_from(self.span).unwrap_or(usize::MAX).saturating_add(self.unsent())
    }

    /// Caps the bytes sent and not passed by the cumulative TSN ack.
    pub(super) fn set_limit(&mut self, bytes: usize) {
        self.max_span = bytes as u64;
    }

    /// Whether all queued data has been acknowledged.
    pub(super) fn is_flushed(&self) -> bool {
        self.unsent() == 0 && self.flights.is_empty()
    }

    /// Bytes of new data that may leave now.
    pub(super) fn sendable(&mut self, now: Instant) -> usize {
        if !self.lost.is_empty() {
            return 0;
        }
        let window = self.window();
        let mut bytes = window.saturating_sub(self.in_flight).min(self.peer_window.saturating_sub(self.in_flight));
        bytes = bytes.min(self.max_span.saturating_sub(self.span));
        if let Some(rate) = self.control.pacing_rate() {
            let _ = self.pacer.poll(now, rate);
            bytes = bytes.min(self.pacer.tokens());
        }
        usize::try_from(bytes).unwrap_or(usize::MAX)
    }

    /// Bytes that leave in `time` at the pacing rate; `None` without pacing.
    pub(super) fn paced_in(&self, time: Duration) -> Option<usize> {
        let rate = self.control.pacing_rate()?;
        let bytes = u128::from(rate).saturating_mul(time.as_nanos()).checked_div(1_000_000_000)?;
        Some(usize::try_from(bytes).unwrap_or(usize::MAX))
    }

    /// The smoothed round trip.
    pub(super) fn round_trip(&self) -> Duration {
        self.round_trip.smoothed()
    }

    /// Whether a TSN has counted as lost more than [`MAX_LOSSES`] times: the peer feigns losses, or the path delivers
    /// nothing.
    pub(super) const fn has_excess_losses(&self) -> bool {
        self.excess_losses
    }

    /// Time of the last advance of the cumulative TSN ack, or of the first data sent since all data was acknowledged.
    /// `None` if all data is acknowledged.
    pub(super) fn stalled_since(&self) -> Option<Instant> {
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
        let almost_full = self.in_flight.saturating_add(self.sizes.segment.saturating_mul(3)) >= self.window();
        almost_full || self.unsent() > 0 || !self.lost.is_empty()
    }

    /// Most bytes that may be in flight.
    fn window(&self) -> u64 {
        let window = self.control.window().min(self.config.max_window);
        if self.control.pacing_rate().is_some() { window } else { window.min(self.peer.max_short_path_window) }
    }

    fn next_tsn(&self) -> u64 {
        self.first.saturating_add(self.flights.len() as u64)
    }
}

/// The index of `tsn` in a list that starts at `first`.
fn index(first: u64, tsn: u64) -> Option<usize> {
    tsn.checked_sub(first).and_then(|at| usize::try_from(at).ok())
}
