//! One channel: its handshake, received cells, and outgoing messages.

use core::time::Duration;
use std::collections::VecDeque;

use rand::CryptoRng;

use crate::{
    base::{
        CircuitId, Instant, Lane, LinkId, LinkOpened, MESSAGE_CELLS, Owner, ReadyQueue, RelayId, Slots, Ticket,
        TokenBucket,
    },
    wire::{CELL_LEN, Cell, Command},
};

use super::{
    ChannelError, ChannelEvent, ChannelId, ChannelParameters, HandshakeOutcome, LocalRole, QueueFull,
    handshake::{AfterHello, AwaitingHello, AwaitingProof},
    queue::FairQueue,
};

/// Maximum bytes of messages in lanes other than the first that a channel keeps until the end of its handshake.
const MAX_EARLY_LEN: usize = 128 << 10;
/// Maximum cells of the queue that are packed into messages in one step.
const MAX_PACK_CELLS: usize = MESSAGE_CELLS * 4;
/// Maximum length of a message of cells, in bytes.
const MAX_MESSAGE_LEN: usize = MESSAGE_CELLS * CELL_LEN;

/// The action that [`Channel::handle_timeout`] requires of the owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TimeoutAction {
    Nothing,
    /// The channel has had no circuit for the idle time, and closes.
    CloseIdle,
}

/// The state of the handshake, and its outcome.
enum State {
    AwaitingHello(Box<AwaitingHello>, EarlyMessages),
    AwaitingProof(Box<AwaitingProof>, EarlyMessages),
    Open(HandshakeOutcome),
    /// The handshake has failed; the owner drops the channel.
    Ended,
}

/// Messages received in lanes other than the first before the end of the handshake.
#[derive(Default)]
struct EarlyMessages {
    messages: Vec<(Lane, Slots)>,
    /// Total length of the messages, in bytes.
    length: usize,
}

/// A channel to one neighbour, open or not.
pub(super) struct Channel {
    id: ChannelId,
    dialled: Option<RelayId>,
    state: State,
    /// Number of lanes of the link.
    lanes: u8,
    /// Bytes that the link accepts now.
    room: usize,
    /// The time since which the link has accepted no data; `None` while it has room.
    full_since: Option<Instant>,
    /// Packed messages, to be sent before the queued cells.
    messages: VecDeque<(Lane, Slots)>,
    queue: FairQueue,
    creates: TokenBucket,
    owner: Owner,
    /// Whether the relay at the other end is listed; `None` until the owner of the channels states it.
    listed: Option<bool>,
    /// The time at which the channel opened; until then, the time at which the link opened.
    opened_at: Instant,
    last_sent: Instant,
    last_received: Instant,
    /// The time since which no circuit has been live.
    idle_since: Option<Instant>,
    /// The channel's place in the queue of channels that may have a message to send.
    ready: Ticket,
    /// Whether the channel stays open without circuits.
    pub(super) kept: bool,
    /// Whether the channel counts towards the cap of volunteers.
    pub(super) has_volunteer_place: bool,
    /// Whether the directory counts the volunteer at the other end.
    pub(super) counted: bool,
    /// Whether the keys of the link are close to their limit. The channel then closes with its last circuit.
    is_retiring: bool,
}

impl Channel {
    pub(super) fn new(
        now: Instant,
        link: LinkId,
        opened: LinkOpened,
        role: LocalRole,
        requests_reach: bool,
        rng: &mut dyn CryptoRng,
    ) -> Self {
        let owner = Owner::of_address(opened.peer_address.0.ip());
        let (dialled, lanes) = (opened.dialled, opened.lanes);
        let (handshake, hello) = AwaitingHello::start(role, opened, requests_reach, rng);
        Self {
            id: ChannelId(link),
            dialled,
            state: State::AwaitingHello(Box::new(handshake), EarlyMessages::default()),
            lanes,
            room: 0,
            full_since: Some(now),
            messages: VecDeque::from([(Lane::FIRST, hello.into())]),
            queue: FairQueue::default(),
            creates: TokenBucket::new(),
            owner,
            listed: None,
            opened_at: now,
            last_sent: now,
            last_received: now,
            idle_since: Some(now),
            ready: Ticket::new(),
            kept: false,
            has_volunteer_place: false,
            counted: false,
            is_retiring: false,
        }
    }

    /// The relay that this end dialled.
    pub(super) const fn dialled(&self) -> Option<RelayId> {
        self.dialled
    }

    /// The time at which the channel opened; until then, the time at which the link opened.
    pub(super) const fn opened_at(&self) -> Instant {
        self.opened_at
    }

    /// The time since which no circuit has been live.
    pub(super) const fn idle_since(&self) -> Option<Instant> {
        self.idle_since
    }

    /// The outcome of the handshake; `None` if the channel is not open.
    pub(super) const fn outcome(&self) -> Option<&HandshakeOutcome> {
        match &self.state {
            State::Open(outcome) => Some(outcome),
            _ => None,
        }
    }

    pub(super) const fn is_open(&self) -> bool {
        matches!(self.state, State::Open(_))
    }

    /// Whether the channel waits for the other end's HELLO.
    pub(super) const fn awaits_hello(&self) -> bool {
        matches!(self.state, State::AwaitingHello(..))
    }

    /// Whether this node reaches a volunteer over this channel, or will reach one after a valid PROOF.
    pub(super) const fn reaches(&self) -> bool {
        match &self.state {
            State::AwaitingProof(handshake, _) => handshake.has_accepted_reach(),
            State::Open(outcome) => outcome.accepted_reach,
            State::AwaitingHello(..) | State::Ended => false,
        }
    }

    pub(super) const fn stop_reaching(&mut self) {
        if let State::Open(outcome) = &mut self.state {
            outcome.accepted_reach = false;
            self.kept = false;
        }
    }

    pub(super) const fn retire(&mut self) {
        self.is_retiring = true;
    }

    /// Whether the keys of the link are close to their limit.
    pub(super) const fn is_retiring(&self) -> bool {
        self.is_retiring
    }

    /// Whether this end may open circuits on this channel. A retiring channel to a volunteer still accepts circuits,
    /// because this end can't dial another.
    pub(super) const fn accepts_circuits(&self) -> bool {
        !self.is_retiring || self.reaches()
    }

    pub(super) const fn queue(&self) -> &FairQueue {
        &self.queue
    }

    /// The owner, by address, to whose caps and rates the other end counts.
    pub(super) const fn owner(&self) -> Owner {
        self.owner
    }

    /// The order in which the channels of an owner are evicted, the lowest rank first:
    /// 1. channels without circuits, the longest idle first;
    /// 2. channels with few circuits, then with more; of equal numbers, the youngest first;
    /// 3. channels of listed relays and volunteers, in the same order.
    pub(super) fn rank(&self) -> (bool, usize, u64) {
        let by_time =
            self.idle_since.map_or_else(|| u64::MAX.saturating_sub(self.opened_at.as_nanos()), Instant::as_nanos);
        (self.kept || (self.has_relay_limits() && self.is_open()), self.queue.circuits(), by_time)
    }

    /// Sets whether the relay at the other end is listed. Returns whether the owner must report this to the transport:
    /// the other end dialled, and was not listed before.
    pub(super) fn set_listed(&mut self, listed: bool) -> bool {
        self.listed.replace(listed) != Some(true) && listed && self.dialled.is_none()
    }

    /// Whether the other end has the limits of a relay.
    pub(super) fn has_relay_limits(&self) -> bool {
        self.peer().is_some() && (self.listed != Some(false) || self.reaches())
    }

    pub(super) fn set_room(&mut self, now: Instant, bytes: usize) {
        self.room = bytes;
        // The link reports its room after it has accepted data, so the stall time starts again.
        self.full_since = (bytes == 0).then_some(now);
    }

    fn update_full_since(&mut self, now: Instant) {
        self.full_since = if self.room == 0 { self.full_since.or(Some(now)) } else { None };
    }

    /// Handles one message of the link. `may_be_gateway` states whether this node accepts one more volunteer from the
    /// link's source.
    pub(super) fn handle_message(
        &mut self,
        now: Instant,
        lane: Lane,
        message: Slots,
        may_be_gateway: bool,
        events: &mut VecDeque<ChannelEvent>,
    ) -> Result<(), ChannelError> {
        self.last_received = now;
        match core::mem::replace(&mut self.state, State::Ended) {
            State::Open(outcome) => {
                let result = self.read_cells(now, &outcome, lane, message, events);
                self.state = State::Open(outcome);
                result
            }
            State::AwaitingHello(handshake, mut early) => {
                if lane != Lane::FIRST {
                    early.keep(lane, message)?;
                    self.state = State::AwaitingHello(handshake, early);
                    return Ok(());
                }
                let (next, proof) = handshake.handle_hello(&message.to_vec(), may_be_gateway)?;
                self.messages.extend(proof.map(|proof| (Lane::FIRST, proof.into())));
                match next {
                    AfterHello::AwaitingProof(handshake) => {
                        self.state = State::AwaitingProof(Box::new(handshake), early);
                    }
                    AfterHello::Open(outcome) => return self.open(now, outcome, early, events),
                }
                Ok(())
            }
            State::AwaitingProof(handshake, mut early) => {
                if lane != Lane::FIRST {
                    early.keep(lane, message)?;
                    self.state = State::AwaitingProof(handshake, early);
                    return Ok(());
                }
                let outcome = handshake.handle_proof(&message.to_vec())?;
                self.open(now, outcome, early, events)
            }
            State::Ended => Err(ChannelError::Malformed),
        }
    }

    fn open(
        &mut self,
        now: Instant,
        outcome: HandshakeOutcome,
        early: EarlyMessages,
        events: &mut VecDeque<ChannelEvent>,
    ) -> Result<(), ChannelError> {
        let HandshakeOutcome { peer, observed, accepted_reach, .. } = outcome;
        self.kept |= accepted_reach;
        events.push_back(ChannelEvent::Open { channel: self.id, peer, observed, reaches_volunteer: accepted_reach });
        self.opened_at = now;
        self.idle_since = Some(now);
        let mut result = Ok(());
        for (lane, message) in early.messages {
            result = result.and_then(|()| self.read_cells(now, &outcome, lane, message, events));
        }
        self.state = State::Open(outcome);
        result
    }

    /// Decodes a message of an open channel: whole cells, each in its circuit's lane (`proto/02-channel.md` §4).
    fn read_cells(
        &mut self,
        now: Instant,
        outcome: &HandshakeOutcome,
        lane: Lane,
        mut message: Slots,
        events: &mut VecDeque<ChannelEvent>,
    ) -> Result<(), ChannelError> {
        if message.is_empty() || message.len() > MAX_MESSAGE_LEN {
            return Err(ChannelError::Malformed);
        }
        for slot in message.take_full().ok_or(ChannelError::Malformed)? {
            let cell = Cell::decode(slot).map_err(|_| ChannelError::Malformed)?;
            let Some(circuit) = cell.circuit() else { continue };
            if lane_of(circuit, self.lanes) != lane {
                return Err(ChannelError::WrongLane);
            }
            let in_peer_half = circuit.is_in_upper_half() != outcome.dialler;
            match cell.command() {
                Command::Create if !in_peer_half => return Err(ChannelError::WrongHalf),
                Command::Created if in_peer_half => return Err(ChannelError::WrongHalf),
                // The other end would drop further cells of the ended circuit, so none are sent.
                Command::Destroy => {
                    self.queue.clear(circuit);
                    self.end(now, circuit);
                }
                _ => {}
            }
            events.push_back(ChannelEvent::Cell { channel: self.id, cell });
        }
        Ok(())
    }

    /// Allocates an unused identifier of this end's half, and makes its circuit live. `None` if the channel is not open
    /// or at its limit of circuits, or if each try gave an identifier in use.
    pub(super) fn allocate(&mut self, parameters: &ChannelParameters, rng: &mut dyn CryptoRng) -> Option<CircuitId> {
        const TRIES: usize = 8;
        let half = if self.outcome()?.dialler { 1 << 31 } else { 0 };
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

    /// Whether the other end may open a circuit now. Below the limit of circuits, the call uses one token of the rate.
    pub(super) fn may_create(&mut self, now: Instant, parameters: &ChannelParameters) -> bool {
        let rate = if self.has_relay_limits() { parameters.creates_of_relay } else { parameters.creates_of_client };
        self.has_capacity(parameters) && self.creates.take(now, rate)
    }

    /// Whether the channel may have one more live circuit: its live circuits are fewer than the limit, and the entries
    /// of its queue fewer than twice the limit.
    pub(super) fn has_capacity(&self, parameters: &ChannelParameters) -> bool {
        let limit = self.max_circuits(parameters);
        self.queue.circuits() < limit && self.queue.entries() < limit.saturating_mul(2)
    }

    /// The limit of live circuits.
    pub(super) fn max_circuits(&self, parameters: &ChannelParameters) -> usize {
        if self.has_relay_limits() { parameters.circuits_per_channel } else { parameters.circuits_per_client }
    }

    /// Makes a circuit live; `false` if the circuit is live already or the channel is at its limit of circuits.
    pub(super) fn admit(&mut self, parameters: &ChannelParameters, circuit: CircuitId) -> bool {
        let admitted = self.has_capacity(parameters) && self.queue.admit(circuit);
        if admitted {
            self.idle_since = None;
        }
        admitted
    }

    pub(super) fn end(&mut self, now: Instant, circuit: CircuitId) {
        self.queue.end(circuit);
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

    /// Appends the channel to `ready` if [`Self::poll_message`] has a message to return.
    pub(super) fn make_ready(&mut self, ready: &mut ReadyQueue<ChannelId>) {
        if self.room > 0 && (!self.messages.is_empty() || self.queue.len() > 0) {
            ready.push(self.id, &mut self.ready);
        }
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

    /// Takes cells in fair order while there is room, at most [`MAX_PACK_CELLS`], and packs the cells of each lane into
    /// messages, in the order of their first cells. If the room is too small for all queued cells, but takes a full
    /// message, packs full messages only.
    fn pack(&mut self, events: &mut VecDeque<ChannelEvent>) {
        if self.room >= MAX_MESSAGE_LEN && self.room < self.queue.len().saturating_mul(CELL_LEN) {
            // A small message for the remaining room would fill packets badly. The link reports its room again when
            // the room has grown.
            self.room = self.room.saturating_sub(self.room.checked_rem(MAX_MESSAGE_LEN).unwrap_or_default());
        }
        let cells = self.room.div_ceil(CELL_LEN).min(MAX_PACK_CELLS).min(self.queue.len());
        // The message of the last cell: consecutive cells often belong to one circuit.
        let mut at = 0;
        for _ in 0..cells {
            let Some(next) = self.queue.pop() else { break };
            if next.queue_low {
                events.push_back(ChannelEvent::QueueLow { channel: self.id, circuit: next.circuit });
            }
            let lane = lane_of(next.circuit, self.lanes);
            let has_space = |(of, message): &(Lane, Slots)| *of == lane && message.len() < MAX_MESSAGE_LEN;
            if !self.messages.get(at).is_some_and(has_space) {
                at = self.messages.iter().position(has_space).unwrap_or_else(|| {
                    self.messages.push_back((lane, Slots::with_capacity(cells.min(MESSAGE_CELLS))));
                    self.messages.len().saturating_sub(1)
                });
            }
            if let Some((_, message)) = self.messages.get_mut(at) {
                message.push(next.cell.encode());
            }
        }
    }

    /// Checks the timeouts, and queues padding when the keep-alive interval has passed.
    pub(super) fn handle_timeout(
        &mut self,
        now: Instant,
        parameters: &ChannelParameters,
    ) -> Result<TimeoutAction, ChannelError> {
        let State::Open(outcome) = &self.state else {
            let expired = now.since(self.opened_at) >= parameters.handshake_timeout;
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
        let idle_factor = if outcome.dialler { 1 } else { 2 };
        let idle_timeout =
            if self.is_retiring { Duration::ZERO } else { parameters.idle_timeout.saturating_mul(idle_factor) };
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
        match self.outcome() {
            Some(outcome) => outcome.peer,
            None => None,
        }
    }
}

impl EarlyMessages {
    fn keep(&mut self, lane: Lane, message: Slots) -> Result<(), ChannelError> {
        // Messages must be whole cells, so that the cap on bytes also bounds the number of messages.
        if message.is_empty() || !message.len().is_multiple_of(CELL_LEN) {
            return Err(ChannelError::Malformed);
        }
        if self.length.saturating_add(message.len()) > MAX_EARLY_LEN {
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
