//! Building a circuit, hop by hop.

use core::time::Duration;

use rand::CryptoRng;

use super::{CircuitError, CircuitEvent, ECHO_TIMEOUT_MAX, ECHO_TIMEOUT_MIN, Origin, State};
use crate::{
    base::{HopIndex, Instant},
    handshake::{ClientHandshake, RelayKeys},
    onion::message_capacity,
    wire::{
        BODY_LEN, Command, Fragments, MESSAGE_HEADER_LEN, MessageKind, RelayMessage, WireError, encode_extend, split,
    },
};

/// From the first fragment of a reply to its last.
const FRAGMENTS_TIMEOUT: Duration = Duration::from_secs(5);

/// The handshake with one hop.
pub(super) struct Building {
    pub(super) hop: HopIndex,
    pub(super) deadline: Instant,
    began: Instant,
    hop_timeout: Duration,
    handshake: ClientHandshake,
    reply: Fragments,
}

impl Building {
    pub(super) fn start<R: CryptoRng + ?Sized>(
        now: Instant,
        relay: &RelayKeys,
        hop: HopIndex,
        hop_timeout: Duration,
        rng: &mut R,
    ) -> Result<(Self, Vec<u8>), CircuitError> {
        let (handshake, request) = ClientHandshake::start(relay, hop, &[], rng)?;
        let deadline = now.after(hop_timeout);
        Ok((Self { hop, deadline, began: now, hop_timeout, handshake, reply: Fragments::new() }, request))
    }

    /// Takes a fragment of the reply; the others must follow soon (`proto/03-cells.md` §5).
    fn handle_fragment(&mut self, now: Instant, fragment: &[u8]) -> Result<Option<Vec<u8>>, WireError> {
        self.deadline = self.deadline.min(now.after(FRAGMENTS_TIMEOUT));
        self.reply.push(fragment)
    }
}

impl Origin {
    pub(super) fn handle_created<R: CryptoRng + ?Sized>(
        &mut self,
        now: Instant,
        body: &[u8; BODY_LEN],
        rng: &mut R,
    ) -> Result<(), CircuitError> {
        match &mut self.state {
            State::Building(building) if building.hop == HopIndex::FIRST => {
                match building.handle_fragment(now, body)? {
                    Some(reply) => self.finish_hop(now, &reply, rng),
                    None => Ok(()),
                }
            }
            _ => Err(CircuitError::IllegalCell(Command::Created)),
        }
    }

    pub(super) fn handle_extended<R: CryptoRng + ?Sized>(
        &mut self,
        now: Instant,
        from: HopIndex,
        fragment: &[u8],
        rng: &mut R,
    ) -> Result<(), CircuitError> {
        match &mut self.state {
            State::Building(building) if from.next() == Some(building.hop) => {
                match building.handle_fragment(now, fragment)? {
                    Some(reply) => self.finish_hop(now, &reply, rng),
                    None => Ok(()),
                }
            }
            _ => Err(CircuitError::Illegal { hop: from, kind: MessageKind::Extended }),
        }
    }

    /// The hop's whole reply is there: adds its layer, and goes on to the next hop.
    fn finish_hop<R: CryptoRng + ?Sized>(
        &mut self,
        now: Instant,
        reply: &[u8],
        rng: &mut R,
    ) -> Result<(), CircuitError> {
        let State::Building(building) = core::mem::replace(&mut self.state, State::Open) else { return Ok(()) };
        let Building { hop, began, hop_timeout, handshake, .. } = *building;
        let established = handshake.finish(reply)?;
        self.layers.push(established.keys)?;
        self.heard_at = now;
        let elapsed = now.since(began);
        self.events.push_back(CircuitEvent::HopBuilt { hop, elapsed });
        let Some(relay) = self.path.get(usize::from(hop.value())).copied() else {
            // The last hop's time holds a dial and key exchange besides the whole path's round trip.
            self.echo_timeout = elapsed.saturating_mul(4).clamp(ECHO_TIMEOUT_MIN, ECHO_TIMEOUT_MAX);
            self.events.push_back(CircuitEvent::Built);
            return Ok(());
        };
        let next = hop.next().ok_or(CircuitError::PathLength)?;
        let (building, request) = Building::start(now, &relay, next, hop_timeout, rng)?;
        self.state = State::Building(Box::new(building));
        let capacity = message_capacity(hop).saturating_sub(MESSAGE_HEADER_LEN);
        for fragment in split(&encode_extend(&relay.identity, &request), capacity)? {
            self.extends.push_back(RelayMessage::Extend { fragment: fragment.into() });
        }
        Ok(())
    }
}
