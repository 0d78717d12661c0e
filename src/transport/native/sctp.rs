//! SCTP over DTLS (RFC 8261) with WebRTC's data channels (RFC 8831) behind a small trait of ours, since better
//! implementations may come; today's is `rtc-sctp`.
//!
//! The lanes are data channels negotiated beforehand, streams 0 to 3 in both directions. A peer that opens them by DCEP
//! (RFC 8832) is acknowledged, once a lane. Any other stream ends the link: it would cost memory per stream.

use std::{collections::VecDeque, net::SocketAddr, sync::Arc, time::Instant};

use bytes::Bytes;
use rtc_sctp::{
    Association, AssociationError, AssociationHandle, ClientConfig, DatagramEvent, Endpoint, Event, Payload,
    PayloadProtocolIdentifier, ServerConfig, StreamEvent, TimerConfig, TransportConfig, max_payload_size_for_mtu,
};
use rtc_shared::TransportProtocol;

use super::{
    EndpointError,
    inbound::{Inbound, Verdict},
};
use crate::base::{LANES, Lane, LinkClose};

/// Largest message taken from a peer, in bytes.
pub(super) const MAX_MESSAGE: usize = 64 << 10;

/// An SCTP association of one link, without I/O. After each call that takes a time, drain [`Self::poll_event`].
pub(super) trait Sctp: Send {
    /// Takes an authenticated packet; one that no honest peer sends ends the association.
    fn handle_packet(&mut self, now: Instant, packet: &[u8]);
    /// Does what has become due.
    fn handle_timeout(&mut self, now: Instant);
    /// When [`Self::handle_timeout`] wants to be called.
    fn poll_timeout(&self) -> Option<Instant>;
    /// What the link must know.
    fn poll_event(&mut self) -> Option<SctpEvent>;
    /// Hands over all packets that may be sent now.
    fn poll_packets(&mut self, now: Instant, send: &mut dyn FnMut(&[u8]));
    /// Queues a message. Nothing happens on an association that isn't open.
    fn send(&mut self, now: Instant, lane: Lane, message: &Bytes);
    /// Asks the other end for a sign of life, with the next packets.
    fn probe(&mut self);
    /// Ends the association without waiting, with the next packets.
    fn abort(&mut self);
}

/// What an association tells its link.
#[derive(Debug)]
pub(super) enum SctpEvent {
    /// The lanes carry messages.
    Open,
    /// A whole message.
    Message(Lane, Bytes),
    /// This many bytes of sent messages have been acknowledged.
    Released(usize),
    /// It is over; nothing follows.
    Closed(LinkClose),
}

/// Settings that all associations of an endpoint share.
#[derive(Clone)]
pub(super) struct SctpConfig {
    endpoint: Arc<rtc_sctp::EndpointConfig>,
    transport: TransportConfig,
    mtu: u16,
    receive_window: u32,
}

impl SctpConfig {
    /// For packets of at most `mtu` bytes and this receive window.
    pub(super) fn new(mtu: u16, receive_window: u32) -> Result<Self, EndpointError> {
        if mtu < 500 {
            return Err(EndpointError::DatagramSize(mtu));
        }
        let mut endpoint = rtc_sctp::EndpointConfig::new();
        endpoint.max_payload_size(max_payload_size_for_mtu(u32::from(mtu)));
        let timers = TimerConfig {
            // `rtc-sctp` would stop sending for good and tell nobody; silence is the link's to judge.
            max_t3_rtx_retrans: usize::MAX,
            ..TimerConfig::default()
        };
        let transport = TransportConfig::default()
            .with_max_receive_buffer_size(receive_window)
            .with_max_message_size(u32::try_from(MAX_MESSAGE).unwrap_or(u32::MAX))
            .with_timer_config(timers);
        Ok(Self { endpoint: Arc::new(endpoint), transport, mtu, receive_window })
    }
}

/// [`Sctp`] by `rtc-sctp`.
pub(super) struct RtcSctp {
    endpoint: Endpoint,
    association: Option<(AssociationHandle, Association)>,
    events: VecDeque<SctpEvent>,
    ended: bool,
    inbound: Inbound,
    /// Lanes that the peer has opened in band.
    in_band: [bool; LANES as usize],
    /// Bytes of our answers to that which have not been acknowledged.
    answers: [usize; LANES as usize],
    /// Ports and verification tag of the packets to the peer, for the packets we make ourselves.
    header: Option<[u8; 8]>,
    probe: bool,
}

impl RtcSctp {
    /// The side that waits for the other's INIT. `peer` is for the books only.
    pub(super) fn accept(config: &SctpConfig, peer: SocketAddr) -> Self {
        let server = ServerConfig::new(config.transport.clone());
        let endpoint =
            Endpoint::new(peer, TransportProtocol::UDP, Arc::clone(&config.endpoint), Some(Arc::new(server)));
        Self {
            endpoint,
            association: None,
            events: VecDeque::new(),
            ended: false,
            inbound: Inbound::new(config.mtu, config.receive_window),
            in_band: [false; LANES as usize],
            answers: [0; LANES as usize],
            header: None,
            probe: false,
        }
    }

    /// The side that sends the INIT.
    pub(super) fn connect(config: &SctpConfig, peer: SocketAddr, now: Instant) -> Self {
        let mut this = Self::accept(config, peer);
        match this.endpoint.connect(now, ClientConfig::new(config.transport.clone()), peer) {
            Ok(association) => this.association = Some(association),
            Err(_) => this.end(LinkClose::Broken),
        }
        this
    }

    fn end(&mut self, reason: LinkClose) {
        if !self.ended {
            self.ended = true;
            self.events.push_back(SctpEvent::Closed(reason));
        }
    }

    /// Turns what `rtc-sctp` tells into events of ours.
    fn take_events(&mut self, now: Instant) {
        let Some((handle, mut association)) = self.association.take() else { return };
        while let Some(event) = association.poll() {
            match event {
                Event::Connected => {
                    for lane in 0..LANES {
                        // It exists already if the peer's first message was quicker.
                        let _ = association.open_stream(u16::from(lane), PayloadProtocolIdentifier::Binary);
                    }
                    self.events.push_back(SctpEvent::Open);
                }
                Event::Stream(StreamEvent::Opened { id }) if id >= u16::from(LANES) => self.end(LinkClose::Broken),
                Event::Stream(StreamEvent::Readable { id }) => self.read(now, &mut association, id),
                Event::Stream(StreamEvent::BufferedAmountReleased { id, n_bytes }) => {
                    let answers = self.answers.get_mut(usize::from(id)).map(core::mem::take).unwrap_or_default();
                    self.events.push_back(SctpEvent::Released(n_bytes.saturating_sub(answers)));
                }
                Event::HandshakeFailed { .. } => self.end(LinkClose::TimedOut),
                // Also when the peer closes a single lane: a link has all of them or none.
                Event::AssociationLost { reason: AssociationError::Reset, .. } => self.end(LinkClose::ByPeer),
                Event::AssociationLost { .. } => self.end(LinkClose::Broken),
                _ => {}
            }
        }
        // Queued for new streams; each has been told by its event.
        while association.accept_stream().is_some() {}
        while let Some(event) = association.poll_endpoint_event() {
            self.endpoint.handle_event(handle, event);
        }
        if association.is_closed() && !association.is_handshaking() {
            self.end(LinkClose::ByPeer);
        }
        self.association = Some((handle, association));
    }

    /// Reads all whole messages of a stream.
    fn read(&mut self, now: Instant, association: &mut Association, id: u16) {
        let Some(lane) = u8::try_from(id).ok().and_then(Lane::new) else { return self.end(LinkClose::Broken) };
        let Ok(mut stream) = association.stream(id) else { return };
        while let Ok(Some(chunks)) = stream.read_sctp() {
            self.inbound.read(chunks.chunks.len());
            let Ok(message) = chunks.to_payload(MAX_MESSAGE) else { return self.end(LinkClose::Broken) };
            match chunks.ppi {
                PayloadProtocolIdentifier::Binary => {
                    self.events.push_back(SctpEvent::Message(lane, message.freeze()));
                }
                PayloadProtocolIdentifier::Dcep => {
                    // DATA_CHANNEL_OPEN of a reliable, ordered channel (RFC 8832 §5.1), and DATA_CHANNEL_ACK.
                    const OPEN: [u8; 2] = [3, 0];
                    const ACK: u8 = 2;
                    let anew = match self.in_band.get_mut(usize::from(id)) {
                        Some(in_band) if message.starts_with(&OPEN) => !core::mem::replace(in_band, true),
                        _ => false,
                    };
                    if anew {
                        let _ = stream.write_sctp(now, &Bytes::from_static(&[ACK]), PayloadProtocolIdentifier::Dcep);
                        if let Some(answers) = self.answers.get_mut(usize::from(id)) {
                            *answers = answers.saturating_add(1);
                        }
                    } else if *message != [ACK] {
                        // Answers to more would pile up while the peer takes none.
                        return self.end(LinkClose::Broken);
                    }
                }
                // Text and empty messages carry no cells.
                _ => return self.end(LinkClose::Broken),
            }
        }
    }
}

impl Sctp for RtcSctp {
    fn handle_packet(&mut self, now: Instant, packet: &[u8]) {
        // `rtc-sctp` knows no HEARTBEAT ACK; it answers our probe, and having come is all it has to say.
        if self.ended || packet.get(12) == Some(&HEARTBEAT_ACK) {
            return;
        }
        match self.inbound.judge(packet) {
            Verdict::Pass => {}
            Verdict::Drop => return,
            Verdict::End(reason) => return self.end(reason),
        }
        // The address only says that packets are of the same peer, which DTLS has shown.
        let peer = SocketAddr::from(([0, 0, 0, 0], 1));
        match self.endpoint.handle(now, peer, None, Bytes::copy_from_slice(packet)) {
            Some((handle, DatagramEvent::NewAssociation(association))) => {
                // A link has one association.
                if self.association.is_some() {
                    return self.end(LinkClose::Broken);
                }
                self.association = Some((handle, association));
            }
            Some((_, DatagramEvent::AssociationEvent(event))) => {
                if let Some((_, association)) = &mut self.association {
                    association.handle_event(event);
                }
            }
            _ => {}
        }
        self.take_events(now);
    }

    fn handle_timeout(&mut self, now: Instant) {
        if let Some((_, association)) = &mut self.association {
            association.handle_timeout(now);
        }
        self.take_events(now);
    }

    fn poll_timeout(&self) -> Option<Instant> {
        self.association.as_ref().filter(|_| !self.ended)?.1.poll_timeout()
    }

    fn poll_event(&mut self) -> Option<SctpEvent> {
        self.events.pop_front()
    }

    fn poll_packets(&mut self, now: Instant, send: &mut dyn FnMut(&[u8])) {
        let Some((_, association)) = &mut self.association else { return };
        while let Some(transmit) = association.poll_transmit(now) {
            let Payload::RawEncode(packets) = transmit.message else { continue };
            for packet in packets {
                // The INIT alone has no tag yet.
                if self.header.is_none()
                    && let Some(header) = packet.first_chunk::<8>()
                    && !header.ends_with(&[0; 4])
                {
                    self.header = Some(*header);
                }
                self.inbound.sent(&packet);
                send(&packet);
            }
        }
        if let Some(header) = self.header.filter(|_| core::mem::take(&mut self.probe)) {
            send(&heartbeat(header));
        }
    }

    fn send(&mut self, now: Instant, lane: Lane, message: &Bytes) {
        let Some((_, association)) = &mut self.association else { return };
        let sent = association
            .stream(u16::from(lane.value()))
            .and_then(|mut stream| stream.write_sctp(now, message, PayloadProtocolIdentifier::Binary));
        if sent.is_err() {
            self.end(LinkClose::Broken);
        }
    }

    fn probe(&mut self) {
        self.probe = true;
    }

    fn abort(&mut self) {
        if let Some((_, association)) = &mut self.association {
            let _ = association.abort();
        }
        self.ended = true;
    }
}

const HEARTBEAT: u8 = 4;
const HEARTBEAT_ACK: u8 = 5;

/// A packet with a HEARTBEAT chunk (RFC 9260 §3.3.5), which every SCTP must answer. `rtc-sctp` sends none.
fn heartbeat(header: [u8; 8]) -> [u8; 28] {
    let mut packet = [0; 28];
    let chunk = [HEARTBEAT, 0, 0, 16, 0, 1, 0, 12];
    for (byte, part) in packet.iter_mut().zip(header.iter().chain(&[0; 4]).chain(&chunk)) {
        *byte = *part;
    }
    let sum = crc32c(&packet).to_le_bytes();
    for (byte, part) in packet.iter_mut().skip(8).zip(sum) {
        *byte = part;
    }
    packet
}

/// CRC-32C (RFC 9260 appendix A), bit by bit: it runs once per probe.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 })
    })
}

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a moment to start from")]
mod tests {
    use super::*;

    #[test]
    fn crc32c_is_that_of_rfc_3720() {
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    /// Carries packets both ways until neither side has any.
    fn settle(now: Instant, a: &mut RtcSctp, b: &mut RtcSctp) {
        loop {
            let (mut from_a, mut from_b) = (Vec::new(), Vec::new());
            a.poll_packets(now, &mut |packet| from_a.push(packet.to_vec()));
            b.poll_packets(now, &mut |packet| from_b.push(packet.to_vec()));
            if from_a.is_empty() && from_b.is_empty() {
                return;
            }
            from_a.iter().for_each(|packet| b.handle_packet(now, packet));
            from_b.iter().for_each(|packet| a.handle_packet(now, packet));
        }
    }

    fn pair() -> (Instant, RtcSctp, RtcSctp) {
        let config = SctpConfig::new(1_195, 1 << 20).unwrap();
        let (now, peer) = (Instant::now(), "192.0.2.1:1".parse().unwrap());
        let (mut a, mut b) = (RtcSctp::connect(&config, peer, now), RtcSctp::accept(&config, peer));
        settle(now, &mut a, &mut b);
        assert!(matches!((a.poll_event(), b.poll_event()), (Some(SctpEvent::Open), Some(SctpEvent::Open))));
        (now, a, b)
    }

    #[test]
    fn a_message_of_seventeen_cells_is_fifteen_packets() {
        let (now, mut a, mut b) = pair();
        a.send(now, Lane::FIRST, &Bytes::from(vec![0; 17 << 10]));
        let mut lengths = Vec::new();
        loop {
            let (mut from_a, mut from_b) = (Vec::new(), Vec::new());
            a.poll_packets(now, &mut |packet| from_a.push(packet.to_vec()));
            b.poll_packets(now, &mut |packet| from_b.push(packet.to_vec()));
            if from_a.is_empty() && from_b.is_empty() {
                break;
            }
            lengths.extend(from_a.iter().map(Vec::len));
            from_a.iter().for_each(|packet| b.handle_packet(now, packet));
            from_b.iter().for_each(|packet| a.handle_packet(now, packet));
        }
        assert_eq!(lengths.len(), 15);
        assert!(lengths.iter().all(|length| *length <= 1_195), "{lengths:?}");
    }

    /// A packet of `a`'s with these chunks, sealed with its checksum.
    fn packet(a: &RtcSctp, chunks: &[u8]) -> Vec<u8> {
        let mut packet = [&a.header.unwrap()[..], &[0; 4], chunks].concat();
        let sum = crc32c(&packet).to_le_bytes();
        packet[8..12].copy_from_slice(&sum);
        packet
    }

    /// A DATA chunk on stream 0.
    fn data(flags: u8, tsn: u32, sequence: u16, ppi: u32, bytes: &[u8]) -> Vec<u8> {
        let length = (16 + bytes.len() as u16).to_be_bytes();
        let mut chunk = [&[0, flags][..], &length, &tsn.to_be_bytes(), &[0; 2], &sequence.to_be_bytes()].concat();
        chunk.extend(ppi.to_be_bytes().iter().chain(bytes));
        chunk.resize(chunk.len().next_multiple_of(4), 0);
        chunk
    }

    /// The first TSN that `b` waits for.
    fn first_tsn(b: &RtcSctp) -> u32 {
        b.inbound.next_tsn()
    }

    fn strike(now: Instant, a: &RtcSctp, b: &mut RtcSctp, chunks: &[u8]) -> Option<LinkClose> {
        b.handle_packet(now, &packet(a, chunks));
        b.poll_packets(now, &mut |_| {});
        core::iter::from_fn(|| b.poll_event()).find_map(|event| match event {
            SctpEvent::Closed(reason) => Some(reason),
            _ => None,
        })
    }

    const WHOLE: u8 = 3;
    const BEGINNING: u8 = 2;
    const MIDDLE: u8 = 0;
    const UNORDERED: u8 = 4;

    #[test]
    fn unordered_empty_skipping_and_reconfiguring_chunks_end_the_association() {
        let tsn = first_tsn(&pair().2).to_be_bytes();
        let breaches = [
            data(UNORDERED | BEGINNING, 0, 0, 53, b"x"),
            data(WHOLE, 0, 0, 53, b""),
            [&[64, 3, 0, 24][..], &tsn, &[0; 16]].concat(),
            [&[192, 0, 0, 8][..], &[0x7f; 4]].concat(),
            [&[130, 0, 0, 20, 0, 13, 0, 16][..], &[0; 12]].concat(),
        ];
        for chunks in breaches {
            let (now, a, mut b) = pair();
            assert!(strike(now, &a, &mut b, &chunks).is_some(), "{chunks:?}");
        }
    }

    #[test]
    fn a_chunk_hidden_in_another_or_reaching_beyond_it_goes_unread() {
        let hidden = data(WHOLE, 0, 0, 53, b"hidden");
        let shutdown = [&[7, 0, 0, 8 + hidden.len() as u8, 0, 0, 0, 0][..], &hidden].concat();
        let beat = [&[4, 0, 0, 8 + hidden.len() as u8, 0, 1, 0, 4][..], &hidden].concat();
        // Their lengths point behind the packet's end: `rtc-sctp` would panic.
        let cause = vec![9, 0, 0, 8, 0, 1, 0xff, 0];
        for chunks in [shutdown, beat, cause] {
            let (now, a, mut b) = pair();
            assert_eq!(b.inbound.judge(&packet(&a, &chunks)), Verdict::Drop, "{chunks:?}");
            assert!(strike(now, &a, &mut b, &chunks).is_none());
        }
        let (now, a, mut b) = pair();
        assert_eq!(strike(now, &a, &mut b, &[6, 0, 0, 8, 0, 1, 0xff, 0]), Some(LinkClose::ByPeer));
    }

    #[test]
    fn a_tsn_far_ahead_is_dropped_and_the_next_one_still_arrives() {
        let (now, a, mut b) = pair();
        let tsn = first_tsn(&b);
        let far = data(WHOLE, tsn.wrapping_add(1 << 20), 9, 53, b"far");
        assert_eq!(b.inbound.judge(&packet(&a, &far)), Verdict::Drop);
        b.handle_packet(now, &packet(&a, &data(WHOLE, tsn, 0, 53, b"near")));
        let event = b.poll_event();
        assert!(matches!(&event, Some(SctpEvent::Message(_, message)) if message == "near"), "{event:?}");
    }

    #[test]
    fn fragments_that_are_never_completed_end_the_association() {
        let (now, a, mut b) = pair();
        let first = first_tsn(&b);
        let bound = (1 << 20) / 512 + 256;
        let ended = (0..=bound).find(|number| {
            let flags = if *number == 0 { BEGINNING } else { MIDDLE };
            strike(now, &a, &mut b, &data(flags, first.wrapping_add(*number), 0, 53, b"x")).is_some()
        });
        assert_eq!(ended, Some(bound));
    }

    #[test]
    fn messages_held_back_by_one_that_never_comes_end_the_association() {
        let (now, a, mut b) = pair();
        let first = first_tsn(&b);
        let ended = (0..4_000).any(|number: u32| {
            let chunk = data(WHOLE, first.wrapping_add(number), 1 + number as u16, 53, b"x");
            strike(now, &a, &mut b, &chunk).is_some()
        });
        assert!(ended);
    }

    #[test]
    fn a_lane_is_opened_in_band_once_and_anything_but_an_acknowledgement_ends_the_association() {
        let open = [3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let (now, a, mut b) = pair();
        let tsn = first_tsn(&b);
        assert!(strike(now, &a, &mut b, &data(WHOLE, tsn, 0, 50, &open)).is_none());
        assert!(strike(now, &a, &mut b, &data(WHOLE, tsn.wrapping_add(1), 1, 50, &[2])).is_none());
        let again = data(WHOLE, tsn.wrapping_add(2), 2, 50, &open);
        assert_eq!(strike(now, &a, &mut b, &again), Some(LinkClose::Broken));
        for other in [&[7][..], &[3, 0x80, 0, 0], &[2, 2]] {
            let (now, a, mut b) = pair();
            let chunk = data(WHOLE, first_tsn(&b), 0, 50, other);
            assert_eq!(strike(now, &a, &mut b, &chunk), Some(LinkClose::Broken), "{other:?}");
        }
    }

    #[test]
    fn a_probe_is_answered_and_leaves_the_association_open() {
        let config = SctpConfig::new(1_195, 1 << 20).unwrap();
        let (now, peer) = (Instant::now(), "192.0.2.1:1".parse().unwrap());
        let (mut a, mut b) = (RtcSctp::connect(&config, peer, now), RtcSctp::accept(&config, peer));
        settle(now, &mut a, &mut b);
        assert!(matches!(a.poll_event(), Some(SctpEvent::Open)));
        a.probe();
        let mut asked = Vec::new();
        a.poll_packets(now, &mut |packet| asked.push(packet.to_vec()));
        asked.iter().for_each(|packet| b.handle_packet(now, packet));
        let mut answers = Vec::new();
        b.poll_packets(now, &mut |packet| answers.push(packet.to_vec()));
        assert!(answers.iter().any(|packet| packet[12] == HEARTBEAT_ACK));
        answers.iter().for_each(|packet| a.handle_packet(now, packet));
        assert!(a.poll_event().is_none());
    }

    #[test]
    fn a_stream_beyond_the_lanes_ends_the_association() {
        let config = SctpConfig::new(1_195, 1 << 20).unwrap();
        let (now, peer) = (Instant::now(), "192.0.2.1:1".parse().unwrap());
        let (mut a, mut b) = (RtcSctp::connect(&config, peer, now), RtcSctp::accept(&config, peer));
        settle(now, &mut a, &mut b);
        let (_, association) = a.association.as_mut().unwrap();
        let mut stream = association.open_stream(4, PayloadProtocolIdentifier::Binary).unwrap();
        stream.write_sctp(now, &Bytes::from_static(b"x"), PayloadProtocolIdentifier::Binary).unwrap();
        settle(now, &mut a, &mut b);
        let events: Vec<_> = core::iter::from_fn(|| b.poll_event()).collect();
        assert!(events.iter().any(|event| matches!(event, SctpEvent::Closed(LinkClose::Broken))), "{events:?}");
    }
}
