//! One channel: its handshake, received cells, and outgoing messages.

use core::time::Duration;
use std::collections::VecDeque;

use rand::CryptoRng;

use crate::{
    base::{
        AddressPrefix, CircuitId, Instant, Lane, LinkId, LinkOpened, MESSAGE_CELLS, Owner, RelayId, Slots, Ticket,
        TokenBucket,
    },
    wire::{CELL_LEN, Cell, Command},
};

use super::{
    ChannelError, ChannelEvent, ChannelId, ChannelParameters, HandshakeOutcome, LocalRole, QueueFull,
    handshake::{AfterHello, AwaitingHello, AwaitingProof},
    queue::FairQueue,
};

/// Maximum bytes of messages in other lanes that a channel keeps until the end of its handshake.
const EARLY_LEN: usize = 128 << 10;
/// Cells taken from the queue at a time for distribution over lanes and packing.
const PACK_CELLS: usize = MESSAGE_CELLS * 4;
const MESSAGE_LEN: usize = MESSAGE_CELLS * CELL_LEN;

/// The action due after a timeout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TimeoutAction {
    Nothing,
    /// The channel has had no circuit for the idle time, and closes.
    CloseIdle,
}

enum State {
    AwaitingHello(Box<AwaitingHello>, Early),
    AwaitingProof(Box<AwaitingProof>, Early),
    Open(HandshakeOutcome),
    /// The handshake has failed; the owner drops the channel.
    Ended,
}

/// Messages received in other lanes before the end of the handshake.
#[derive(Default)]
struct Early {
    messages: Vec<(Lane, Slots)>,
    length: usize,
}

/// A channel to one neighbour, open or not.
pub(super) struct Channel {
    id: ChannelId,
    dialled: Option<RelayId>,
    state: State,
    lanes: u8,
    room: usize,
    /// The time since which the link has accepted no data; `None` while it has room.
    full_since: Option<Instant>,
    /// Packed messages.
    messages: VecDeque<(Lane, Slots)>,
    queue: FairQueue,
    creates: TokenBucket,
    source: AddressPrefix,
    owner: Owner,
    /// Whether the other end is a relay, but has the limits of a client.
    unlisted: bool,
    since: Instant,
    last_sent: Instant,
    last_received: Instant,
    /// The time since which no circuit has been live.
    idle_since: Option<Instant>,
    /// The channel's place in the queue of channels that may have a message to send.
    pub(super) ready: Ticket,
    /// Whether the channel stays open without circuits.
    pub(super) kept: bool,
    /// Whether the keys of the link are close to their limit. The channel then closes with its last circuit.
    retires: bool,
}

impl Channel {
    pub(super) fn new(
        now: Instant,
        link: LinkId,
        opened: LinkOpened,
        role: LocalRole,
        reach: bool,
        rng: &mut dyn CryptoRng,
    ) -> Self {
        let address = opened.peer_address.0.ip().to_canonical();
        let (source, owner) = (AddressPrefix::source(address), Owner::of_address(address));
        let (dialled, lanes) = (opened.dialled, opened.lanes);
        let (handshake, hello) = AwaitingHello::start(role, opened, reach, rng);
        Self {
            id: ChannelId(link),
            dialled,
            state: State::AwaitingHello(Box::new(handshake), Early::default()),
            lanes,
            room: 0,
            full_since: Some(now),
            messages: VecDeque::from([(Lane::FIRST, hello.into())]),
            queue: FairQueue::default(),
            creates: TokenBucket::new(),
            source,
            owner,
            unlisted: false,
            since: now,
            last_sent: now,
            last_received: now,
            idle_since: Some(now),
            ready: Ticket::new(),
            kept: false,
            retires: false,
        }
    }

    /// The relay that this end dialled.
    pub(super) const fn dialled(&self) -> Option<RelayId> {
        self.dialled
    }

    /// The time at which the channel opened; the time at which the link opened if the channel is not open.
    pub(super) const fn since(&self) -> Instant {
        self.since
    }

    /// The time since which no circuit has been live.
    pub(super) const fn idle_since(&self) -> Option<Instant> {
        self.idle_since
    }

    pub(super) const fn established(&self) -> Option<&HandshakeOutcome> {
        match &self.state {
            State::Open(established) => Some(established),
            _ => None,
        }
    }

    /// Whether the other end's HELLO has not been received.
    pub(super) const fn awaits_hello(&self) -> bool {
        matches!(self.state, State::AwaitingHello(..))
    }

    /// Whether this node reaches a volunteer over this channel, or will once the volunteer's proof is verified.
    pub(super) const fn reaches(&self) -> bool {
        match &self.state {
            State::AwaitingProof(handshake, _) => handshake.reach(),
            State::Open(established) => established.reach,
            State::AwaitingHello(..) | State::Ended => false,
        }
    }

    pub(super) const fn stop_reaching(&mut self) {
        if let State::Open(established) = &mut self.state {
            established.reach = false;
            self.kept = false;
        }
    }

    pub(super) const fn retire(&mut self) {
        self.retires = true;
    }

    /// Whether the keys of the link are close to their limit.
    pub(super) const fn retires(&self) -> bool {
        self.retires
    }

    /// Whether this end may open circuits on this channel. A retiring channel still takes circuits to a volunteer,
    /// which can't be dialled.
    pub(super) const fn takes_circuits(&self) -> bool {
        !self.retires || self.reaches()
    }

    pub(super) const fn queue(&self) -> &FairQueue {
        &self.queue
    }

    /// The source of the other end's address.
    pub(super) const fn source(&self) -> AddressPrefix {
        self.source
    }

    /// The owner of what the other end uses up, by its address.
    pub(super) const fn owner(&self) -> Owner {
        self.owner
    }

    /// Sets whether a relay at the other end has the limits of a relay.
    pub(super) const fn set_listed(&mut self, listed: bool) {
        self.unlisted = !listed;
    }

    pub(super) fn set_room(&mut self, now: Instant, bytes: usize) {
        self.room = bytes;
        // The link reports its room after it has accepted data, so the stall time starts again.
        self.full_since = (bytes == 0).then_some(now);
    }

    fn update_full_since(&mut self, now: Instant) {
        self.full_since = if self.room == 0 { self.full_since.or(Some(now)) } else { None };
    }

    /// Takes one message of the link. `gateway`: whether this node accepts one more volunteer from the link's source.
    pub(super) fn handle_message(
        &mut self,
        now: Instant,
        lane: Lane,
        message: Slots,
        gateway: bool,
        events: &mut VecDeque<ChannelEvent>,
    ) -> Result<(), ChannelError> {
        self.last_received = now;
        match core::mem::replace(&mut self.state, State::Ended) {
            State::Open(established) => {
                let outcome = self.read_cells(now, &established, lane, message, events);
                self.state = State::Open(established);
                outcome
            }
            State::AwaitingHello(handshake, mut early) => {
                if lane != Lane::FIRST {
                    early.keep(lane, message)?;
                    self.state = State::AwaitingHello(handshake, early);
                    return Ok(());
                }
                let (next, proof) = handshake.handle_hello(&message.to_vec(), gateway)?;
                self.messages.extend(proof.map(|proof| (Lane::FIRST, proof.into())));
                match next {
                    AfterHello::AwaitingProof(handshake) => {
                        self.state = State::AwaitingProof(Box::new(handshake), early);
                    }
                    AfterHello::Open(established) => return self.open(now, established, early, events),
                }
                Ok(())
            }
            State::AwaitingProof(handshake, mut early) => {
                if lane != Lane::FIRST {
                    early.keep(lane, message)?;
                    self.state = State::AwaitingProof(handshake, early);
                    return Ok(());
                }
                let established = handshake.handle_proof(&message.to_vec())?;
                self.open(now, established, early, events)
            }
            State::Ended => Err(ChannelError::Malformed),
        }
    }

    fn open(
        &mut self,
        now: Instant,
        established: HandshakeOutcome,
        early: Early,
        events: &mut VecDeque<ChannelEvent>,
    ) -> Result<(), ChannelError> {
        let HandshakeOutcome { peer, observed, reach, .. } = established;
        self.kept |= reach;
        events.push_back(ChannelEvent::Open { channel: self.id, peer, observed, reach });
        self.since = now;
        self.idle_since = Some(now);
        let mut outcome = Ok(());
        for (lane, message) in early.messages {
            outcome = outcome.and_then(|()| self.read_cells(now, &established, lane, message, events));
        }
        self.state = State::Open(established);
        outcome
    }

    /// Decodes a message of an open channel: whole cells, each in its circuit's lane (`proto/02-channel.md` §4).
    fn read_cells(
        &mut self,
        now: Instant,
        established: &HandshakeOutcome,
        lane: Lane,
        message: Slots,
        events: &mut VecDeque<ChannelEvent>,
    ) -> Result<(), ChannelError> {
        if message.is_empty() || message.len() > MESSAGE_LEN {
            return Err(ChannelError::Malformed);
        }
        for slot in message.into_full().ok_or(ChannelError::Malformed)? {
            let cell = Cell::decode(slot).map_err(|_| ChannelError::Malformed)?;
            let Some(circuit) = cell.circuit() else { continue };
            if lane_of(circuit, self.lanes) != lane {
                return Err(ChannelError::WrongLane);
            }
            let of_peer = circuit.is_in_upper_half() != established.dialler;
            match cell.command() {
                Command::Create if !of_peer => return Err(ChannelError::WrongHalf),
                Command::Created if of_peer => return Err(ChannelError::WrongHalf),
                // The other end drops cells of the ended circuit, so they are not sent.
                Command::Destroy => {
                    self.queue.clear(circuit);
                    self.forget(now, circuit);
                }
                _ => {}
            }
            events.push_back(ChannelEvent::Cell { channel: self.id, cell });
        }
        Ok(())
    }

    /// Makes an unused identifier of this end's half live, and returns it.
    pub(super) fn allocate(&mut self, parameters: &ChannelParameters, rng: &mut dyn CryptoRng) -> Option<CircuitId> {
        const TRIES: usize = 8;
        let half = if self.established()?.dialler { 1 << 31 } else { 0 };
        for _ in 0..TRIES {
            let value = (rng.next_u32() & (u32::MAX >> 1)) | half;
            match CircuitId::new(value) {
                Some(circuit) if !self.queue.contains(circuit) => {
                    return self.admit(parameters, circuit).then_some(circuit);
                }
                _ => {}
            }
        }
        None
    }

    /// Whether the other end may open a circuit now; takes one of its tokens.
    pub(super) fn may_create(&mut self, now: Instant, parameters: &ChannelParameters) -> bool {
        let relay = self.peer().is_some() && !self.unlisted;
        let rate = if relay { parameters.creates_of_relay } else { parameters.creates_of_client };
        self.has_capacity(parameters) && self.creates.take(now, rate)
    }

    /// Whether the channel has fewer live circuits than its limit, and fewer than twice the limit together with ended
    /// circuits that have queued cells.
    fn has_capacity(&self, parameters: &ChannelParameters) -> bool {
        let relay = self.peer().is_some() && !self.unlisted;
        let limit = if relay { parameters.circuits_per_channel } else { parameters.circuits_per_client };
        self.queue.circuits() < limit && self.queue.entries() < limit.saturating_mul(2)
    }

    /// Makes a circuit live; `false` if it is already live, or at the limit.
    pub(super) fn admit(&mut self, parameters: &ChannelParameters, circuit: CircuitId) -> bool {
        let admitted = self.has_capacity(parameters) && self.queue.admit(circuit);
        if admitted {
            self.idle_since = None;
        }
        admitted
    }

    pub(super) fn forget(&mut self, now: Instant, circuit: CircuitId) {
        self.queue.forget(circuit);
        if self.queue.circuits() == 0 && self.idle_since.is_none() {
            self.idle_since = Some(now);
        }
    }

    pub(super) fn send(&mut self, parameters: &ChannelParameters, serial: u64, cell: Cell) -> Result<(), QueueFull> {
        let Some(circuit) = cell.circuit() else { return Ok(()) };
        if self.queue.refusals() >= parameters.refusals && !self.queue.contains(circuit) {
            return Err(QueueFull);
        }
        self.queue.push(circuit, serial, cell, parameters.circuit_queue)
    }

    /// Whether [`Self::poll_message`] has a message to return.
    pub(super) fn has_message(&self) -> bool {
        self.room > 0 && (!self.messages.is_empty() || self.queue.len() > 0)
    }

    /// The next message to send, while the link has room.
    pub(super) fn poll_message(&mut self, now: Instant, events: &mut VecDeque<ChannelEvent>) -> Option<(Lane, Slots)> {
        if self.room == 0 {
            return None;
        }
        if self.messages.is_empty() {
            self.pack(events);
        }
        let (lane, message) = self.messages.pop_front()?;
        self.room = self.room.saturating_sub(message.len());
        self.update_full_since(now);
        self.last_sent = now;
        Some((lane, message))
    }

    /// Takes cells in fair order, as many as there is room for, and packs the cells of each lane into messages. If
    /// cells must wait, uses only the room for whole messages.
    fn pack(&mut self, events: &mut VecDeque<ChannelEvent>) {
        let mut lanes: Vec<(Lane, Slots)> = Vec::new();
        if self.room >= MESSAGE_LEN && self.room < self.queue.len().saturating_mul(CELL_LEN) {
            // A small message for the rest of the room would fill packets badly. The link reports its room again
            // when it has more.
            self.room = self.room.saturating_sub(self.room.checked_rem(MESSAGE_LEN).unwrap_or_default());
        }
        let cells = self.room.div_ceil(CELL_LEN).min(PACK_CELLS).min(self.queue.len());
        for _ in 0..cells {
            let Some(next) = self.queue.pop() else { break };
            if next.queue_low {
                events.push_back(ChannelEvent::QueueLow { channel: self.id, circuit: next.circuit });
            }
            let lane = lane_of(next.circuit, self.lanes);
            let at = lanes.iter().position(|(of, _)| *of == lane).unwrap_or_else(|| {
                lanes.push((lane, Slots::with_capacity(cells.min(MESSAGE_CELLS))));
                lanes.len().saturating_sub(1)
            });
            let Some((_, message)) = lanes.get_mut(at) else { continue };
            message.push(next.cell.encode());
            if message.len() >= MESSAGE_LEN {
                self.messages.push_back((lane, lanes.swap_remove(at).1));
            }
        }
        self.messages.extend(lanes);
    }

    /// Handles the timeouts and the keep-alive that are due.
    pub(super) fn handle_timeout(
        &mut self,
        now: Instant,
        parameters: &ChannelParameters,
    ) -> Result<TimeoutAction, ChannelError> {
        let State::Open(established) = &self.state else {
            let expired = now.since(self.since) >= parameters.handshake_timeout;
            return if expired { Err(ChannelError::TimedOut) } else { Ok(TimeoutAction::Nothing) };
        };
        if now.since(self.last_received) >= parameters.silence_timeout {
            return Err(ChannelError::TimedOut);
        }
        let unsent = self.queue.len() > 0 || !self.messages.is_empty();
        if unsent && self.full_since.is_some_and(|since| now.since(since) >= parameters.stall_timeout) {
            return Err(ChannelError::Stalled);
        }
        // The dialler closes first, so that the other end's new circuits seldom arrive on a closing channel.
        let idle_factor = if established.dialler { 1 } else { 2 };
        let idle_timeout =
            if self.retires { Duration::ZERO } else { parameters.idle_timeout.saturating_mul(idle_factor) };
        let idle = self.idle_since.is_some_and(|since| now.since(since) >= idle_timeout) && self.queue.len() == 0;
        if idle && !self.kept {
            return Ok(TimeoutAction::CloseIdle);
        }
        if now.since(self.last_sent) >= parameters.keep_alive && self.messages.is_empty() {
            self.messages.push_back((Lane::FIRST, Slots::from_iter([Cell::padding().encode()])));
        }
        Ok(TimeoutAction::Nothing)
    }

    /// The authenticated relay at the other end.
    pub(super) const fn peer(&self) -> Option<RelayId> {
        match self.established() {
            Some(established) => established.peer,
            None => None,
        }
    }
}

impl Early {
    fn keep(&mut self, lane: Lane, message: Slots) -> Result<(), ChannelError> {
        // Only whole cells, so that the cap on bytes also bounds the number of messages.
        if message.is_empty() || !message.len().is_multiple_of(CELL_LEN) {
            return Err(ChannelError::Malformed);
        }
        if self.length.saturating_add(message.len()) > EARLY_LEN {
            return Err(ChannelError::TooEarly);
        }
        self.length = self.length.saturating_add(message.len());
        self.messages.push((lane, message));
        Ok(())
    }
}

/// The lane of a circuit's cells on a link with `lanes` lanes.
pub(super) fn lane_of(circuit: CircuitId, lanes: u8) -> Lane {
    let lane = circuit.value().checked_rem(u32::from(lanes)).and_then(|lane| u8::try_from(lane).ok());
    lane.and_then(Lane::new).unwrap_or(Lane::FIRST)
}
