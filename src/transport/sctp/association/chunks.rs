//! Handling of the peer's chunks, one by one.

use core::time::Duration;

use super::{
    super::{
        Broken, MAX_MESSAGE, Message,
        packet::{self, Arrival, Chunk, Data, Packet, Sack},
    },
    Association, AssociationEvent, AssociationState, BINARY, Close,
};
use crate::base::{Instant, Slots};

/// Payload protocol identifier of channels opened in band (RFC 8831 §8).
const DCEP: u32 = 50;
/// RFC 8832 §5: DATA_CHANNEL_OPEN of a reliable, ordered channel, and DATA_CHANNEL_ACK.
const DCEP_OPEN: [u8; 2] = [3, 0];
const DCEP_ACK: u8 = 2;
/// Least time between two reports of unknown chunks.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// Most DATA chunks of a packet that are a whole message each. Two cells don't fit a packet, and the handshakes of
/// channels have six messages. Each message takes a slot, however short it is.
const MAX_WHOLE: usize = 16;

/// Kinds of chunks that a packet held.
#[derive(Default)]
pub(super) struct SeenChunks {
    pub(super) data: bool,
    /// DATA chunks that are a whole message each.
    whole: usize,
    pub(super) sack: bool,
}

impl Association {
    /// RFC 9260 §8.5: the tag must be this end's, except for INIT, and for ABORT and SHUTDOWN COMPLETE with the T
    /// bit.
    pub(super) fn tag_fits(&self, packet: &Packet<'_>, chunk: &Chunk<'_>) -> bool {
        const REFLECTED: u8 = 1;
        match chunk.kind {
            packet::INIT => packet.tag == 0,
            packet::ABORT | packet::SHUTDOWN_COMPLETE if chunk.flags & REFLECTED != 0 => packet.tag == self.peer_tag,
            _ => packet.tag == self.local_tag,
        }
    }

    pub(super) fn handle_chunk(&mut self, now: Instant, chunk: &Chunk<'_>, seen: &mut SeenChunks) -> Result<(), Close> {
        const BROKEN: Close = Close::Broken;
        // The sender of these chunks has accepted the cookie: its COOKIE ACK was lost.
        if matches!(chunk.kind, packet::DATA | packet::SACK) && matches!(self.state, AssociationState::CookieEchoed(..))
        {
            self.establish(now, None);
        }
        match chunk.kind {
            packet::DATA => {
                let data = Data::parse(chunk).map_err(|Broken| BROKEN)?;
                seen.data = true;
                seen.whole = seen.whole.saturating_add((data.begin && data.end).into());
                if seen.whole > MAX_WHOLE {
                    return Err(BROKEN);
                }
                self.handle_data(now, &data)
            }
            packet::SACK => {
                // Only the first SACK of a packet counts: each costs a scan of all missing data.
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
                self.send.note_arrival(Arrival::parse(chunk.body).filter(|_| self.own.is_some()));
                Ok(())
            }
            packet::INIT if chunk.last => self.handle_init(now, chunk.body),
            packet::INIT_ACK if chunk.last => self.handle_init_ack(now, chunk.body),
            packet::COOKIE_ECHO => self.handle_cookie_echo(now, chunk.body),
            packet::COOKIE_ACK => {
                if let AssociationState::CookieEchoed(attempts, _) = &self.state {
                    let once = (attempts.made == 1).then(|| now.since(attempts.first_at));
                    self.establish(now, once);
                }
                Ok(())
            }
            packet::HEARTBEAT => {
                if packet::is_heartbeat(chunk.body) {
                    self.replies.heartbeat = Some(chunk.body.to_vec());
                }
                Ok(())
            }
            // Their arrival is their only content.
            packet::HEARTBEAT_ACK | packet::ERROR => Ok(()),
            // This end resets no streams, and an association has all its streams or none.
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
            self.replies.error = Some(chunk.to_bytes(self.config.packet));
        }
    }

    fn handle_data(&mut self, now: Instant, data: &Data<'_>) -> Result<(), Close> {
        let Some(receive) = self.receive.as_mut().filter(|_| self.state.takes_data()) else {
            // Data arrived before its COOKIE ECHO; the peer retransmits it.
            return Ok(());
        };
        let mut whole = core::mem::take(&mut self.whole);
        let outcome = receive.handle_data(now, data, &mut whole);
        for message in whole.drain(..) {
            self.deliver(now, data.stream, message)?;
        }
        self.whole = whole;
        outcome.map_err(|Broken| Close::Broken)
    }

    fn deliver(&mut self, now: Instant, stream: u16, message: Message) -> Result<(), Close> {
        match message.protocol {
            BINARY if message.bytes.len() <= MAX_MESSAGE => {
                self.events.push_back(AssociationEvent::Message { stream, message: message.bytes });
                Ok(())
            }
            DCEP => {
                let bytes = message.bytes.to_vec();
                let anew = match self.in_band.get_mut(usize::from(stream)) {
                    Some(in_band) if bytes.starts_with(&DCEP_OPEN) => !core::mem::replace(in_band, true),
                    _ => false,
                };
                if anew {
                    self.send.send(now, stream, DCEP, Slots::from(&[DCEP_ACK][..]));
                    Ok(())
                } else if bytes == [DCEP_ACK] {
                    Ok(())
                } else {
                    // Further answers would accumulate while the peer receives none.
                    Err(Close::Broken)
                }
            }
            // Text and empty messages carry no cells.
            _ => Err(Close::Broken),
        }
    }
}
