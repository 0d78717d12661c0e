//! An SCTP association: the handshake, timers, and the composition of the sending and receiving halves.

use core::time::Duration;
use std::collections::VecDeque;

use rand::{CryptoRng, RngExt as _};

use super::{
    Message, SendStatistics,
    clock::ArrivalClock,
    packet::{self, CHUNK_HEADER, OwnPeer, Packet, PacketWriter},
    receive::ReceiveHalf,
    send::{SendConfig, SendHalf},
};
use crate::base::{Counter as _, Instant, Slots};

#[cfg(any(test, fuzzing))]
mod check;
mod chunks;
mod config;
mod handshake;

use chunks::SeenChunks;
pub use config::Config;
use config::{own_peer, stock_peer};
use handshake::Attempts;

/// Payload protocol identifier of messages (RFC 8831 §8).
const BINARY: u32 = 53;

/// Body of a HEARTBEAT: Heartbeat Info without a value.
const EMPTY_HEARTBEAT: [u8; 4] = [0, 1, 0, 4];

/// Longest packet accepted, in bytes, unless [`Config::max_packet`] is larger. No stock peer sends longer packets.
const MAX_RECEIVED_PACKET: usize = 1_500;
/// Number of streams with a stock peer: one for each lane (`proto/01-transport.md` §5.3).
const STOCK_STREAMS: u16 = 4;
/// Most attempts at INIT, and at COOKIE ECHO.
const MAX_HANDSHAKE_ATTEMPTS: u32 = 8;
/// Time after which the association ends if the first missing TSN is still missing.
const HOLE_TIMEOUT: Duration = Duration::from_secs(30);
/// The same while memory is short for the peer's source; ten round trips if those are longer, at most [`HOLE_TIMEOUT`].
const SHORT_HOLE_TIMEOUT: Duration = Duration::from_secs(3);
/// Time after which the association ends if data is in flight and the cumulative TSN ack has not advanced.
const STALL_TIMEOUT: Duration = Duration::from_secs(30);
/// Target time to send one message at the pacing rate. It bounds the delay of the following message.
const MESSAGE_TIME: Duration = Duration::from_millis(2);

/// Reason for the end of an association.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Close {
    /// The peer closed the association or one of its streams.
    ByPeer,
    /// The peer violated the protocol.
    Broken,
    /// The peer did not answer, acknowledged nothing new, or left a TSN missing for too long.
    TimedOut,
}

/// An event of an association for its owner.
#[derive(Debug)]
pub enum AssociationEvent {
    /// Messages may be sent, on streams 0 to `streams` − 1.
    Open {
        /// Number of streams that carry messages, in both directions.
        streams: u16,
    },
    /// A whole message arrived.
    Message {
        /// The stream of the message.
        stream: u16,
        /// The bytes of the message: 1 to [`MAX_MESSAGE`](super::MAX_MESSAGE).
        message: Slots,
    },
    /// The association ended; no event follows.
    Closed(Close),
}

/// State of the association (RFC 9260 §4).
enum AssociationState {
    /// Waits for the peer's INIT.
    Listening,
    /// INIT has been sent.
    CookieWait(Attempts),
    /// COOKIE ECHO has been sent, with this cookie.
    CookieEchoed(Attempts, Vec<u8>),
    Established,
    Ended,
}

/// Pending control chunks, at most one of each kind.
#[derive(Default)]
struct PendingChunks {
    /// INIT ACK, with the report of the INIT's unknown parameters.
    init_ack: Option<Vec<u8>>,
    cookie_ack: bool,
    /// HEARTBEAT ACK, with the body of the HEARTBEAT.
    heartbeat_ack: Option<Vec<u8>>,
    /// ERROR, with the unknown chunk.
    error: Option<Vec<u8>>,
    /// HEARTBEAT of this end.
    heartbeat: bool,
    abort: bool,
}

/// One SCTP association. The [module](super) states its drain contract.
pub struct Association {
    config: Config,
    state: AssociationState,
    local_tag: u32,
    local_tsn: u32,
    /// State Cookie of this end's INIT ACK.
    cookie: [u8; 16],
    /// The clock for the arrival times that this end sends.
    clock: ArrivalClock,
    peer_tag: u32,
    /// The peer's first TSN, once received.
    peer_tsn: Option<u32>,
    /// The peer accepts packets without a checksum.
    zero_checksum: bool,
    /// Parameters of the peer if it is one of our nodes.
    own_peer: Option<OwnPeer>,
    /// Number of streams that the peer accepts.
    peer_streams: u16,
    /// Whether a missing TSN ends the association after [`SHORT_HOLE_TIMEOUT`].
    short_hole_timeout: bool,
    send: SendHalf,
    receive: Option<ReceiveHalf>,
    /// Time of the last INIT ACK. If only one was sent, it gives the listener's first round-trip sample.
    init_ack_at: Option<Instant>,
    init_acks: u32,
    pending: PendingChunks,
    /// Time of the last report of an unknown chunk.
    reported_at: Option<Instant>,
    /// Streams on which the peer has opened a data channel in band.
    in_band: [bool; STOCK_STREAMS as usize],
    events: VecDeque<AssociationEvent>,
    /// Output of the receiving half; kept between calls to reuse its memory.
    reassembled: VecDeque<Message>,
    /// Round trip of INIT and INIT ACK, if the INIT was sent once.
    handshake_round_trip: Option<Duration>,
}

impl Association {
    /// An association that waits for the peer's INIT.
    pub fn accept(config: &Config, now: Instant, rng: &mut impl CryptoRng) -> Self {
        let local_tsn = rng.random();
        let send_config = SendConfig {
            max_packet: config.max_packet,
            algorithm: config.algorithm,
            seed: rng.random(),
            max_window: config.max_send_window,
        };
        Self {
            config: config.clone(),
            state: AssociationState::Listening,
            local_tag: rng.random_range(1..=u32::MAX),
            local_tsn,
            cookie: rng.random(),
            clock: ArrivalClock::new(rng),
            peer_tag: 0,
            peer_tsn: None,
            zero_checksum: false,
            own_peer: None,
            peer_streams: STOCK_STREAMS,
            short_hole_timeout: false,
            send: SendHalf::new(now, send_config, stock_peer(), local_tsn),
            receive: None,
            init_ack_at: None,
            init_acks: 0,
            pending: PendingChunks::default(),
            reported_at: None,
            in_band: [false; STOCK_STREAMS as usize],
            events: VecDeque::new(),
            reassembled: VecDeque::new(),
            handshake_round_trip: None,
        }
    }

    /// An association that sends the INIT.
    pub fn connect(config: &Config, now: Instant, rng: &mut impl CryptoRng) -> Self {
        let mut this = Self::accept(config, now, rng);
        this.state = AssociationState::CookieWait(Attempts::new(now));
        this
    }

    /// Handles an authenticated packet of the peer. A malformed chunk and the chunks after it are ignored. A violation
    /// of the protocol ends the association.
    pub fn handle_packet(&mut self, now: Instant, packet: &[u8]) {
        if matches!(self.state, AssociationState::Ended)
            || packet.len() > MAX_RECEIVED_PACKET.max(self.config.max_packet)
        {
            return;
        }
        let Some(packet) = Packet::parse(packet, self.config.zero_checksum) else { return };
        let mut seen = SeenChunks::default();
        self.send.set_arrival(None);
        for chunk in packet.chunks() {
            let Some(chunk) = chunk else { break };
            if !self.is_tag_valid(&packet, &chunk) {
                break;
            }
            if chunk.requests_report() {
                self.report(now, &chunk);
            }
            // The rest of the packet is ignored (RFC 9260 §3.2).
            if chunk.ends_packet() {
                break;
            }
            let outcome = self.handle_chunk(now, &chunk, &mut seen);
            if let Err(close) = outcome {
                // An ABORT is not answered (RFC 9260 §8.5.1), and none is sent before the peer's tag is known.
                let is_end = matches!(chunk.kind, packet::ABORT | packet::SHUTDOWN_COMPLETE);
                self.pending.abort = !is_end && self.peer_tag != 0;
                self.end(close);
                return;
            }
            if matches!(self.state, AssociationState::Ended) {
                return;
            }
        }
        if self.send.has_excess_losses() {
            self.pending.abort = true;
            return self.end(Close::Broken);
        }
        if seen.data > 0 {
            let round_trip = self.send.round_trip();
            if let Some(receive) = &mut self.receive
                && receive.handle_packet_end(now, round_trip).is_err()
            {
                self.pending.abort = true;
                self.end(Close::Broken);
            }
        }
    }

    /// Performs the work due now.
    pub fn handle_timeout(&mut self, now: Instant) {
        match &mut self.state {
            AssociationState::CookieWait(attempts) | AssociationState::CookieEchoed(attempts, _) => {
                if !attempts.due && attempts.retry_at <= now {
                    attempts.due = true;
                    if attempts.made >= MAX_HANDSHAKE_ATTEMPTS {
                        self.end(Close::TimedOut);
                    }
                }
            }
            AssociationState::Established => {
                self.send.handle_timeout(now);
                if self.send.has_excess_losses() {
                    self.pending.abort = true;
                    return self.end(Close::Broken);
                }
                if self.expires_at().is_some_and(|at| at <= now) {
                    self.end(Close::TimedOut);
                }
            }
            AssociationState::Listening | AssociationState::Ended => {}
        }
    }

    /// The deadline for [`Self::handle_timeout`], if any.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        match &self.state {
            AssociationState::CookieWait(attempts) | AssociationState::CookieEchoed(attempts, _) => {
                Some(attempts.retry_at)
            }
            AssociationState::Established => {
                let ack = self.receive.as_ref().and_then(ReceiveHalf::deadline);
                [self.send.poll_timeout(), ack, self.expires_at()].into_iter().flatten().min()
            }
            AssociationState::Listening | AssociationState::Ended => None,
        }
    }

    /// Time at which the association ends unless the hole is filled or data is acknowledged.
    fn expires_at(&self) -> Option<Instant> {
        let hole_timeout = if self.short_hole_timeout {
            SHORT_HOLE_TIMEOUT.max(self.send.round_trip().saturating_mul(10)).min(HOLE_TIMEOUT)
        } else {
            HOLE_TIMEOUT
        };
        let hole = self.hole_since().map(|since| since.after(hole_timeout));
        let stall = self.stalled_since().map(|since| since.after(STALL_TIMEOUT));
        [hole, stall].into_iter().flatten().min()
    }

    /// The next event for the owner.
    pub fn poll_event(&mut self) -> Option<AssociationEvent> {
        self.events.pop_front()
    }

    /// Writes the next packet that may leave now into `buffer`, which must hold [`Config::max_packet`] bytes. Returns its
    /// length; 0 if there is none.
    pub fn poll_packet(&mut self, now: Instant, buffer: &mut [u8]) -> usize {
        let length = buffer.len().min(self.config.max_packet);
        let buffer = buffer.get_mut(..length).unwrap_or_default();
        if self.pending.abort {
            self.pending.abort = false;
            let mut writer = PacketWriter::new(buffer, self.peer_tag, self.zero_checksum);
            writer.chunk(packet::ABORT, 0, &[]);
            return writer.finish();
        }
        if let Some(unrecognized) = self.pending.init_ack.take() {
            self.init_ack_at = Some(now);
            self.init_acks.increment();
            return self.write_init(buffer, packet::INIT_ACK, self.peer_tag, &unrecognized);
        }
        match &mut self.state {
            AssociationState::Ended | AssociationState::Listening => 0,
            AssociationState::CookieWait(attempts) => {
                if !attempts.due {
                    return 0;
                }
                attempts.sent(now);
                self.write_init(buffer, packet::INIT, 0, &[])
            }
            AssociationState::CookieEchoed(attempts, cookie) => {
                if !attempts.due {
                    return 0;
                }
                attempts.sent(now);
                let mut writer = PacketWriter::new(buffer, self.peer_tag, false);
                writer.chunk(packet::COOKIE_ECHO, 0, cookie);
                // Data in the same packet saves a round trip (RFC 9260 §5.1).
                self.send.write(now, &mut writer);
                writer.finish()
            }
            AssociationState::Established => self.write_established(now, buffer),
        }
    }

    /// Writes a packet with the SACK that is due to a stock peer. Returns its length; 0 if none is due. The owner calls
    /// this after each received packet.
    ///
    /// For each SACK, `dcSCTP` raises its window by at most one packet and sends at most four packets. So a single
    /// SACK for a batch of packets would limit its rate.
    pub fn poll_acknowledgement(&mut self, now: Instant, buffer: &mut [u8]) -> usize {
        if self.own_peer.is_some() || !matches!(self.state, AssociationState::Established) {
            return 0;
        }
        let Some(receive) = &mut self.receive else { return 0 };
        if !receive.sack_due(now) {
            return 0;
        }
        let length = buffer.len().min(self.config.max_packet);
        let mut writer =
            PacketWriter::new(buffer.get_mut(..length).unwrap_or_default(), self.peer_tag, self.zero_checksum);
        receive.write_sack(&mut writer);
        writer.finish()
    }

    /// Queues a message of 1 to [`Config::max_message`] bytes on one of the streams of [`AssociationEvent::Open`]. Has no
    /// effect unless the association is open.
    pub fn send(&mut self, now: Instant, stream: u16, message: Slots) {
        if self.is_open() {
            self.send.send(now, stream, BINARY, message);
        }
    }

    /// Bytes of messages that the owner may queue now: the bytes that may leave now and one message, less the unsent
    /// bytes. With this limit the owner selects the next message as late as possible.
    pub fn room(&mut self, now: Instant) -> usize {
        if !self.is_open() {
            return 0;
        }
        let sendable = if matches!(self.state, AssociationState::Established) { self.send.sendable(now) } else { 0 };
        let message = self.send.paced_in(MESSAGE_TIME).unwrap_or(usize::MAX).clamp(1 << 10, self.config.max_message);
        let unsent = self.send.unsent();
        if unsent >= message {
            return 0;
        }
        sendable.saturating_add(message).saturating_sub(unsent)
    }

    /// Whether messages may be sent.
    #[must_use]
    pub const fn is_open(&self) -> bool {
        matches!(self.state, AssociationState::CookieEchoed(..) | AssociationState::Established)
    }

    /// Whether all queued messages have been acknowledged.
    #[must_use]
    pub fn is_flushed(&self) -> bool {
        self.send.is_flushed()
    }

    /// Sets the largest receive window, in bytes.
    pub fn set_max_window(&mut self, bytes: usize) {
        self.config.max_window = bytes;
        if let Some(receive) = &mut self.receive {
            receive.set_max_window(bytes);
        }
    }

    /// Bytes held for incomplete messages and out-of-order fragments.
    #[must_use]
    pub fn held(&self) -> usize {
        self.receive.as_ref().map_or(0, ReceiveHalf::held)
    }

    /// Caps the bytes held for incomplete messages and out-of-order fragments. Data beyond the cap is dropped as if
    /// lost. While memory is short, the cap applies to the window too, and a missing TSN ends the association sooner.
    pub fn set_receive_limit(&mut self, bytes: usize, memory_short: bool) {
        if let Some(receive) = &mut self.receive {
            receive.set_limit(bytes, memory_short);
        }
    }

    /// Sets whether a missing TSN ends the association sooner, because memory is short for the peer's source.
    pub const fn set_hole_timeout(&mut self, short: bool) {
        self.short_hole_timeout = short;
    }

    /// Bytes held for sending: queued, or sent and not passed by the cumulative TSN ack.
    #[must_use]
    pub fn held_for_sending(&self) -> usize {
        self.send.held()
    }

    /// Caps the bytes sent and not passed by the cumulative TSN ack.
    pub fn set_send_limit(&mut self, bytes: usize) {
        self.send.set_limit(bytes);
    }

    /// Start of the hole at the first missing TSN; `None` without a hole.
    #[must_use]
    pub fn hole_since(&self) -> Option<Instant> {
        self.receive.as_ref().and_then(ReceiveHalf::hole_since)
    }

    /// Time of the last advance of the cumulative TSN ack, or of the first data sent since all data was acknowledged.
    /// `None` if all data is acknowledged.
    #[must_use]
    pub fn stalled_since(&self) -> Option<Instant> {
        self.send.stalled_since()
    }

    /// Queues a HEARTBEAT as a keep-alive.
    pub fn send_heartbeat(&mut self) {
        self.pending.heartbeat = matches!(self.state, AssociationState::Established);
    }

    /// Ends the association immediately, without an event. The next packet is an ABORT if the peer's tag is known.
    pub fn abort(&mut self) {
        if !matches!(self.state, AssociationState::Ended) {
            self.state = AssociationState::Ended;
            self.pending = PendingChunks { abort: self.peer_tag != 0, ..PendingChunks::default() };
        }
    }

    /// The statistics of the sending half.
    #[must_use]
    pub fn statistics(&self) -> SendStatistics {
        self.send.statistics()
    }

    /// Ends the association with an event.
    fn end(&mut self, close: Close) {
        if !matches!(self.state, AssociationState::Ended) {
            self.state = AssociationState::Ended;
            self.events.push_back(AssociationEvent::Closed(close));
        }
    }

    fn write_established(&mut self, now: Instant, buffer: &mut [u8]) -> usize {
        let mut writer = PacketWriter::new(buffer, self.peer_tag, self.zero_checksum);
        if core::mem::take(&mut self.pending.cookie_ack) {
            writer.chunk(packet::COOKIE_ACK, 0, &[]);
        }
        // A HEARTBEAT that exceeds the largest packet of this end has no answer.
        if let Some(info) = self.pending.heartbeat_ack.take()
            && info.len().saturating_add(CHUNK_HEADER).next_multiple_of(4) <= writer.room()
        {
            writer.chunk(packet::HEARTBEAT_ACK, 0, &info);
        }
        // A long HEARTBEAT ACK may leave no room for the following chunks. They are written to the next packet.
        if let Some(chunk) = self.pending.error.take() {
            if writer.unrecognized_chunk(&chunk) {
                // A SACK in the same packet might be truncated, and the peer would count TSNs without a block as lost.
                return writer.finish();
            }
            self.pending.error = Some(chunk);
        }
        if self.pending.heartbeat && writer.room() >= CHUNK_HEADER.saturating_add(EMPTY_HEARTBEAT.len()) {
            self.pending.heartbeat = false;
            writer.chunk(packet::HEARTBEAT, 0, &EMPTY_HEARTBEAT);
        }
        if let Some(receive) = &mut self.receive
            && receive.sack_due(now)
        {
            receive.write_sack(&mut writer);
        }
        self.send.write(now, &mut writer);
        writer.finish()
    }
}

impl AssociationState {
    const fn accepts_data(&self) -> bool {
        matches!(self, Self::CookieEchoed(..) | Self::Established)
    }
}
