//! Construction of a circuit, hop by hop.

use core::time::Duration;

use rand::CryptoRng;

use super::{CircuitError, CircuitEvent, CircuitState, MAX_ECHO_TIMEOUT, MIN_ECHO_TIMEOUT, Origin};
use crate::{
    base::{HopIndex, Instant},
    handshake::{ClientHandshake, RelayKeys},
    onion::message_capacity,
    wire::{
        BODY_LEN, Command, Fragments, MESSAGE_HEADER_LEN, MessageKind, RelayMessage, WireError, encode_extend, split,
    },
};

/// Timeout from the first fragment of a reply to its last.
const FRAGMENTS_TIMEOUT: Duration = Duration::from_secs(5);

/// Bounds of the timeout of a hop behind the first. The minimum allows for the dial of a relay by the hop before it.
const MIN_HOP_TIMEOUT: Duration = Duration::from_millis(2500);
const MAX_HOP_TIMEOUT: Duration = Duration::from_secs(10);

/// The timeout of a hop behind the first: at least ten times the slowest hop of the same circuit, in one of three
/// steps.
///
/// The hop can measure its own timeout. A value that depends on times of other circuits would link the circuits of an
/// origin. A value that contains the exact round-trip time of the origin's line would link them too, because they share
/// the line.
pub(super) fn hop_timeout(slowest: Duration) -> Duration {
    let least = slowest.saturating_mul(10);
    let middle = MIN_HOP_TIMEOUT.saturating_mul(2);
    if least <= MIN_HOP_TIMEOUT {
        MIN_HOP_TIMEOUT
    } else if least <= middle {
        middle
    } else {
        MAX_HOP_TIMEOUT
    }
}

/// The handshake with one hop.
pub(super) struct Building {
    pub(super) hop: HopIndex,
    pub(super) deadline: Instant,
    began: Instant,
    handshake: ClientHandshake,
    reply: Fragments,
}

impl Building {
    pub(super) fn start<R: CryptoRng + ?Sized>(
        now: Instant,
        relay: &RelayKeys,
        hop: HopIndex,
        timeout: Duration,
        rng: &mut R,
    ) -> Result<(Self, Vec<u8>), CircuitError> {
        let (handshake, request) = ClientHandshake::start(relay, hop, &[], rng)?;
        let deadline = now.after(timeout);
        Ok((Self { hop, deadline, began: now, handshake, reply: Fragments::new() }, request))
    }

    /// Handles a fragment of the reply; the last fragment must arrive within [`FRAGMENTS_TIMEOUT`] of the first
    /// (`proto/03-cells.md` §5).
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
            CircuitState::Building(building) if building.hop == HopIndex::FIRST => {
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
            CircuitState::Building(building) if from.next() == Some(building.hop) => {
                match building.handle_fragment(now, fragment)? {
                    Some(reply) => self.finish_hop(now, &reply, rng),
                    None => Ok(()),
                }
            }
            _ => Err(CircuitError::Illegal { hop: from, kind: MessageKind::Extended }),
        }
    }

    /// Handles the complete reply of a hop: adds the hop's layer, and starts the next hop, if there is one.
    fn finish_hop<R: CryptoRng + ?Sized>(
        &mut self,
        now: Instant,
        reply: &[u8],
        rng: &mut R,
    ) -> Result<(), CircuitError> {
        let CircuitState::Building(building) = core::mem::replace(&mut self.state, CircuitState::Open) else {
            return Ok(());
        };
        let Building { hop, began, handshake, .. } = *building;
        let established = handshake.finish(reply)?;
        self.layers.push(established.keys)?;
        self.last_message_at = now;
        let elapsed = now.since(began);
        self.slowest_hop = self.slowest_hop.max(elapsed);
        self.events.push_back(CircuitEvent::HopBuilt { hop, elapsed });
        let Some(relay) = self.path.get(usize::from(hop.value())).copied() else {
            // The last hop's time is at least a round trip of the whole path: it includes a dial and the handshake.
            self.echo_timeout = elapsed.saturating_mul(4).clamp(MIN_ECHO_TIMEOUT, MAX_ECHO_TIMEOUT);
            self.events.push_back(CircuitEvent::Built);
            return Ok(());
        };
        let next = hop.next().ok_or(CircuitError::PathLength)?;
        self.begin_hop(now, &relay, next, rng)
    }

    /// Handles GONE: the previous hop can't reach the relay of the next hop (`proto/05-relay-messages.md` §7).
    pub(super) fn handle_gone(&mut self, from: HopIndex) -> Result<(), CircuitError> {
        let extend_sent = self.extends.is_empty();
        match &self.state {
            CircuitState::Building(building)
                if from.next() == Some(building.hop) && !building.reply.is_partial() && extend_sent =>
            {
                let hop = building.hop;
                self.events.push_back(CircuitEvent::Gone { hop });
                self.state = CircuitState::NextHopGone(hop);
                Ok(())
            }
            _ => Err(CircuitError::Illegal { hop: from, kind: MessageKind::Gone }),
        }
    }

    /// Makes `relay` the next hop after [`CircuitEvent::Gone`]. Does nothing in any other state.
    pub fn extend_to<R: CryptoRng + ?Sized>(&mut self, now: Instant, relay: RelayKeys, rng: &mut R) {
        let CircuitState::NextHopGone(hop) = self.state else { return };
        if let Some(place) = self.path.get_mut(usize::from(hop.value()).saturating_sub(1)) {
            *place = relay;
        }
        if let Err(error) = self.begin_hop(now, &relay, hop, rng) {
            self.fail(error);
        }
    }

    /// Starts the handshake with a hop after the first, through the hop before it.
    fn begin_hop<R: CryptoRng + ?Sized>(
        &mut self,
        now: Instant,
        relay: &RelayKeys,
        hop: HopIndex,
        rng: &mut R,
    ) -> Result<(), CircuitError> {
        let (building, request) = Building::start(now, relay, hop, hop_timeout(self.slowest_hop), rng)?;
        self.state = CircuitState::Building(Box::new(building));
        let before = HopIndex::new(hop.value().saturating_sub(1)).ok_or(CircuitError::PathLength)?;
        let capacity = message_capacity(before).saturating_sub(MESSAGE_HEADER_LEN);
        for fragment in split(&encode_extend(&relay.identity, &request), capacity)? {
            self.extends.push_back(RelayMessage::Extend { fragment: fragment.into() });
        }
        Ok(())
    }
}
