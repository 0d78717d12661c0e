//! Handling of the peer's chunks.

use core::time::Duration;

use super::{
    super::{
        Broken, MAX_MESSAGE, Message,
        packet::{self, Arrival, Chunk, Data, Packet, Sack},
    },
    Association, AssociationEvent, AssociationState, BINARY, Close,
};
use crate::base::{Counter as _, Instant, Slots};

/// Payload protocol identifier of channels opened in band (RFC 8831 §8).
const DCEP: u32 = 50;
/// The first bytes of a DATA_CHANNEL_OPEN for a reliable, ordered channel (RFC 8832 §5.1).
const DCEP_OPEN: [u8; 2] = [3, 0];
/// A DATA_CHANNEL_ACK (RFC 8832 §5.2).
const DCEP_ACK: u8 = 2;
/// Shortest interval between reports of unknown chunks.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// Most DATA chunks of a packet that are handled. Honest peers send fewer: a packet has no room for two cells, and the
/// handshake of a channel has six messages. Each chunk, even of one byte, occupies a slot or a range.
const MAX_DATA_CHUNKS: usize = 16;

/// Chunks of the current packet that have been handled.
#[derive(Default)]
pub(super) struct SeenChunks {
    /// Number of DATA chunks.
    pub(super) data: usize,
    pub(super) sack: bool,
}

impl Association {
    /// RFC 9260 §8.5: the tag must be this end's, except for INIT, and for ABORT and SHUTDOWN COMPLETE with the T
    /// bit. Those have the peer's tag, which must be known.
    pub(super) fn is_tag_valid(&self, packet: &Packet<'_>, chunk: &Chunk<'_>) -> bool {
        const REFLECTED: u8 = 1;
        match chunk.kind {
            packet::INIT => packet.tag == 0,
            packet::ABORT | packet::SHUTDOWN_COMPLETE if chunk.flags & REFLECTED != 0 => {
                self.peer_tag != 0 && packet.tag == self.peer_tag
            }
            _ => packet.tag == self.local_tag,
        }
    }

    pub(super) fn handle_chunk(&mut self, now: Instant, chunk: &Chunk<'_>, seen: &mut SeenChunks) -> Result<(), Close> {
        const BROKEN: Close = Close::Broken;
        // DATA and SACK show that the peer accepted the cookie, even if its COOKIE ACK is lost or late.
        if matches!(chunk.kind, packet::DATA | packet::SACK) && matches!(self.state, AssociationState::CookieEchoed(..))
        {
            self.establish(now, None);
        }
        match chunk.kind {
            packet::DATA => {
                let data = Data::parse(chunk).map_err(|Broken| BROKEN)?;
                seen.data.increment();
                // The peer retransmits further chunks.
                if seen.data <= MAX_DATA_CHUNKS { self.handle_data(now, &data) } else { Ok(()) }
            }
            packet::SACK => {
                // Only the first SACK of a packet counts, since each causes a scan of all missing data.
                let first = !core::mem::replace(&mut seen.sack, true);
                let Some(sack) = Sack::parse(chunk.body).filter(|_| first) else { return Ok(()) };
                match self.state {
                    AssociationState::Established | AssociationState::CookieEchoed(..) => {
                        self.send.handle_sack(now, &sack).map_err(|Broken| BROKEN)
                    }
                    _ => Ok(()),
                }
            }
            packet::ARRIVAL => {
                self.send.set_arrival(Arrival::parse(chunk.body).filter(|_| self.own_peer.is_some()));
                Ok(())
            }
            packet::INIT if chunk.last => self.handle_init(now, chunk.body),
            packet::INIT_ACK if chunk.last => self.handle_init_ack(now, chunk.body),
            packet::COOKIE_ECHO => self.handle_cookie_echo(now, chunk.body),
            packet::COOKIE_ACK => {
                if let AssociationState::CookieEchoed(attempts, _) = &self.state {
                    let round_trip = (attempts.made == 1).then(|| now.since(attempts.first_at));
                    self.establish(now, round_trip);
                }
                Ok(())
            }
            packet::HEARTBEAT => {
                if packet::is_heartbeat(chunk.body) {
                    self.pending.heartbeat_ack = Some(chunk.body.to_vec());
                }
                Ok(())
            }
            // No action: the link counts every authenticated packet as a keep-alive.
            packet::HEARTBEAT_ACK | packet::ERROR => Ok(()),
            // A reset of a stream (RE-CONFIG) ends the association too, since every stream is a lane.
            packet::ABORT | packet::RE_CONFIG | packet::SHUTDOWN_COMPLETE => Err(Close::ByPeer),
            packet::SHUTDOWN | packet::SHUTDOWN_ACK => Err(Close::ByPeer),
            // Never negotiated.
            packet::I_DATA | packet::FORWARD_TSN | packet::I_FORWARD_TSN => Err(BROKEN),
            _ => Ok(()),
        }
    }

    /// Stores an unknown chunk for the next packet's ERROR (RFC 9260 §3.2), at most one in each [`REPORT_INTERVAL`].
    pub(super) fn report(&mut self, now: Instant, chunk: &Chunk<'_>) {
        let due = self.reported_at.is_none_or(|at| at.after(REPORT_INTERVAL) <= now);
        if due && matches!(self.state, AssociationState::Established) {
            self.reported_at = Some(now);
            self.pending.error = Some(chunk.to_bytes(self.config.max_packet));
        }
    }

    fn handle_data(&mut self, now: Instant, data: &Data<'_>) -> Result<(), Close> {
        let Some(receive) = self.receive.as_mut().filter(|_| self.state.accepts_data()) else {
            // Data before COOKIE ECHO is dropped as if lost; the peer retransmits it.
            return Ok(());
        };
        let mut reassembled = core::mem::take(&mut self.reassembled);
        let outcome = receive.handle_data(now, data, &mut reassembled);
        for message in reassembled.drain(..) {
            self.queue_message(now, data.stream, message)?;
        }
        self.reassembled = reassembled;
        outcome.map_err(|Broken| Close::Broken)
    }

    fn queue_message(&mut self, now: Instant, stream: u16, message: Message) -> Result<(), Close> {
        match message.protocol {
            BINARY if message.bytes.len() <= MAX_MESSAGE => {
                self.events.push_back(AssociationEvent::Message { stream, message: message.bytes });
                Ok(())
            }
            DCEP => {
                let bytes = message.bytes.to_vec();
                let first_open = match self.in_band.get_mut(usize::from(stream)) {
                    Some(in_band) if bytes.starts_with(&DCEP_OPEN) => !core::mem::replace(in_band, true),
                    _ => false,
                };
                if first_open {
                    self.send.send(now, stream, DCEP, Slots::from(&[DCEP_ACK][..]));
                    Ok(())
                } else if bytes == [DCEP_ACK] {
                    Ok(())
                } else {
                    // Answers to repeated requests would accumulate if the peer acknowledged none of them.
                    Err(Close::Broken)
                }
            }
            // Text and empty messages carry no cells.
            _ => Err(Close::Broken),
        }
    }
}
