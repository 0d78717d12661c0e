//! The origin's end of a circuit: the state machine for the whole path.
//!
//! [`Origin`] owns the onion layers, the handshake in flight and the streams at each hop. The client drives it: the
//! client passes received cells ([`Origin::handle_cell`]) and pulls cells to send ([`Origin::poll_cell`]). The client
//! pulls only while the channel's queue for the circuit is short. So SENDME and CREDIT wait behind few DATA cells of
//! this end. Governed by `proto/03-cells.md`, `proto/04-handshake.md` and `proto/05-relay-messages.md`. Threat: relays
//! that tag a circuit by illegal messages. A message that is illegal from its hop, or in the circuit's state, ends the
//! circuit.
//!
//! | cell or message | legal | from |
//! |---|---|---|
//! | CREATED | during the handshake with the first hop | |
//! | EXTENDED | during the handshake with a later hop | the last built hop |
//! | GONE | during the handshake with a later hop, after all EXTENDs and before EXTENDED | the last built hop |
//! | DROP | never, because no padding is negotiated | |
//! | others (table of `stream`) | after streams were opened at the hop | any hop |
//! | DESTROY | always | |
//!
//! Caps: at most four cells of one handshake, and the caps of [`Streams`].

mod build;

use core::time::Duration;
use std::collections::VecDeque;

use bytes::Bytes;
use rand::CryptoRng;

use crate::{
    base::{CircuitId, ErrorClass, HopIndex, Instant, StreamId},
    flow::FlowParameters,
    handshake::{HandshakeError, RelayKeys},
    onion::{OnionError, OriginLayers, message_capacity},
    stream::{StreamError, StreamEvent, StreamRole, Streams},
    wire::{BODY_LEN, Cell, CellBody, Command, EndReason, Host, MessageKind, RelayMessage, Service, Target, WireError},
};
use build::Building;

/// Time without a message from the last hop, while streams are open, after which the origin requests an echo.
const ECHO_DELAY: Duration = Duration::from_secs(15);
/// [`ECHO_DELAY`] while a BEGIN or RESOLVE is unanswered.
const ECHO_DELAY_BEFORE_ANSWER: Duration = Duration::from_millis(500);
const MIN_ECHO_TIMEOUT: Duration = Duration::from_secs(1);
const MAX_ECHO_TIMEOUT: Duration = Duration::from_secs(5);

/// The reason for the end of a circuit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CircuitError {
    /// A relay ended the circuit, or the channel closed. The origin can't determine the relay or the reason.
    #[error("a relay ended the circuit, or its channel closed")]
    Destroyed,
    /// This end closed the circuit.
    #[error("this end closed the circuit")]
    Closed,
    /// A hop did not answer in time.
    #[error("hop {} did not answer in time", .0.value())]
    BuildTimedOut(HopIndex),
    /// The circuit did not answer an echo request.
    #[error("no answer to an echo request before the timeout")]
    EchoTimedOut,
    /// The path has no hop, or too many.
    #[error("a path has one to eight hops")]
    PathLength,
    /// A message is illegal from its hop, or in the circuit's state.
    #[error("{kind:?} is illegal from hop {} in this state", .hop.value())]
    Illegal {
        /// The sender.
        hop: HopIndex,
        /// The kind of the message.
        kind: MessageKind,
    },
    /// A cell's command is illegal at an origin, or in the circuit's state.
    #[error("a {0:?} cell is illegal in this state")]
    IllegalCell(Command),
    /// A handshake failed.
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    /// A layer could not be opened: a cell was modified, dropped, replayed or reordered.
    #[error(transparent)]
    Onion(#[from] OnionError),
    /// A message could not be decoded or encoded.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// A breach of the rules for streams, or a stalled circuit.
    #[error(transparent)]
    Stream(#[from] StreamError),
}

impl CircuitError {
    /// The class of the error.
    #[must_use]
    pub const fn class(self) -> ErrorClass {
        match self {
            Self::Destroyed | Self::BuildTimedOut(_) | Self::EchoTimedOut => ErrorClass::Network,
            Self::Closed | Self::PathLength => ErrorClass::Local,
            Self::Illegal { .. } | Self::IllegalCell(_) | Self::Wire(_) => ErrorClass::Peer,
            Self::Handshake(error) => error.class(),
            Self::Onion(error) => error.class(),
            Self::Stream(error) => error.class(),
        }
    }
}

/// An event of a circuit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CircuitEvent {
    /// A hop was built.
    HopBuilt {
        /// The hop.
        hop: HopIndex,
        /// Time from the start of its handshake to the complete reply.
        elapsed: Duration,
    },
    /// The hop before `hop` can't reach the relay chosen as `hop`. The circuit is unchanged: the owner calls
    /// [`Origin::extend_to`] with another relay, or closes the circuit.
    Gone {
        /// The hop.
        hop: HopIndex,
    },
    /// All hops are built; streams may be opened.
    Built,
    /// An event of a stream at a hop.
    Stream(HopIndex, StreamId, StreamEvent),
    /// The circuit has ended. [`StreamEvent::Closed`] of its streams precedes this event; no event follows.
    Closed(CircuitError),
}

enum CircuitState {
    Building(Box<Building>),
    /// The last built hop has answered GONE for this hop, and the owner has named no other relay yet.
    NextHopGone(HopIndex),
    Open,
    Closed,
}

/// The origin's end of a circuit.
///
/// Drain after every call: [`Self::poll_event`] until `None`, [`Self::poll_cell`] while the channel accepts cells.
/// After [`CircuitEvent::Closed`] one DESTROY may remain to be sent; then the machine does nothing.
pub struct Origin {
    circuit: CircuitId,
    path: Vec<RelayKeys>,
    parameters: FlowParameters,
    layers: OriginLayers,
    state: CircuitState,
    /// Cells without a layer: CREATE and DESTROY.
    cells: VecDeque<Cell>,
    /// EXTEND fragments for the last built hop.
    extends: VecDeque<RelayMessage>,
    /// The streams of each hop that has streams.
    streams: Vec<(HopIndex, Streams)>,
    last_message_at: Instant,
    /// The longest build time of a hop so far.
    slowest_hop: Duration,
    /// The deadline of the next message from the last hop, after an echo request.
    echo_deadline: Option<Instant>,
    echo_timeout: Duration,
    scratch: Vec<u8>,
    events: VecDeque<CircuitEvent>,
}

impl Origin {
    /// Starts to build a circuit over `path`, with the identifier `circuit`. The timeout of the first hop is
    /// `first_timeout`. The timeout of each later hop depends only on the times of the hops before it.
    ///
    /// # Errors
    /// When the path has no hop or more than eight, or the first relay's onion key is of small order.
    pub fn start<R: CryptoRng + ?Sized>(
        now: Instant,
        path: Vec<RelayKeys>,
        circuit: CircuitId,
        parameters: FlowParameters,
        first_timeout: Duration,
        rng: &mut R,
    ) -> Result<Self, CircuitError> {
        if path.len() > usize::from(HopIndex::MAX) {
            return Err(CircuitError::PathLength);
        }
        let first = path.first().ok_or(CircuitError::PathLength)?;
        let (building, request) = Building::start(now, first, HopIndex::FIRST, first_timeout, rng)?;
        let cells = crate::wire::create_cells(circuit, HopIndex::FIRST, &request)?;
        Ok(Self {
            circuit,
            path,
            parameters,
            layers: OriginLayers::new(),
            state: CircuitState::Building(Box::new(building)),
            cells: cells.into(),
            extends: VecDeque::new(),
            streams: Vec::new(),
            last_message_at: now,
            slowest_hop: Duration::ZERO,
            echo_deadline: None,
            echo_timeout: MAX_ECHO_TIMEOUT,
            scratch: Vec::with_capacity(BODY_LEN),
            events: VecDeque::new(),
        })
    }

    /// The circuit's identifier on the channel to the first hop.
    #[must_use]
    pub const fn circuit(&self) -> CircuitId {
        self.circuit
    }

    /// The relays of the path, nearest first.
    #[must_use]
    pub fn path(&self) -> &[RelayKeys] {
        &self.path
    }

    /// The time of the last message from the last built hop; before its first message, the time at which the hop was
    /// built. Without a built hop, the time of the start.
    #[must_use]
    pub const fn last_message_at(&self) -> Instant {
        self.last_message_at
    }

    /// Whether all hops are built and the circuit has not ended.
    #[must_use]
    pub const fn is_open(&self) -> bool {
        matches!(self.state, CircuitState::Open)
    }

    /// The hop that is being built; `None` once all hops are built or the circuit has ended.
    #[must_use]
    pub const fn building(&self) -> Option<HopIndex> {
        match &self.state {
            CircuitState::Building(building) => Some(building.hop),
            CircuitState::NextHopGone(hop) => Some(*hop),
            CircuitState::Open | CircuitState::Closed => None,
        }
    }

    /// Opens a stream to `target` that exits at the last hop.
    ///
    /// # Errors
    /// [`StreamError::Full`] at the maximum number of streams; [`StreamError::NotOpen`] unless the circuit is open.
    pub fn open(&mut self, now: Instant, target: Target) -> Result<StreamId, StreamError> {
        self.begin(now, |streams| streams.open(now, target))
    }

    /// Opens a stream to a service of the last hop itself.
    ///
    /// # Errors
    /// [`StreamError::Full`] at the maximum number of streams; [`StreamError::NotOpen`] unless the circuit is open.
    pub fn request(&mut self, now: Instant, service: Service) -> Result<StreamId, StreamError> {
        self.begin(now, |streams| streams.request(now, service))
    }

    /// Resolves `host` at the last hop.
    ///
    /// # Errors
    /// [`StreamError::Full`] at the maximum number of streams; [`StreamError::NotOpen`] unless the circuit is open.
    pub fn resolve(&mut self, now: Instant, host: Host) -> Result<StreamId, StreamError> {
        self.begin(now, |streams| streams.resolve(now, host))
    }

    /// Begins a stream or a lookup at the last hop by `begin`.
    fn begin(
        &mut self,
        now: Instant,
        begin: impl FnOnce(&mut Streams) -> Result<StreamId, StreamError>,
    ) -> Result<StreamId, StreamError> {
        let id = begin(self.last_hop_streams().ok_or(StreamError::NotOpen)?)?;
        self.echo_if_silent(now);
        Ok(id)
    }

    /// The streams at the last hop; `None` unless the circuit is open.
    pub fn last_hop_streams(&mut self) -> Option<&mut Streams> {
        if !self.is_open() {
            return None;
        }
        let last = HopIndex::new(u8::try_from(self.path.len()).ok()?)?;
        self.streams_at(last)
    }

    /// The streams at `hop`; `None` if that hop isn't built.
    pub fn streams_at(&mut self, hop: HopIndex) -> Option<&mut Streams> {
        if usize::from(hop.value()) > self.layers.len() {
            return None;
        }
        let at = self.streams.iter().position(|(other, _)| *other == hop).unwrap_or_else(|| {
            self.streams.push((hop, Streams::new(StreamRole::Origin, self.parameters.clone())));
            self.streams.len().saturating_sub(1)
        });
        self.streams.get_mut(at).map(|(_, streams)| streams)
    }

    /// The number of open streams at all hops.
    #[must_use]
    pub fn open_streams(&self) -> usize {
        self.streams.iter().map(|(_, streams)| streams.len()).sum()
    }

    /// Handles one cell of this circuit.
    pub fn handle_cell<R: CryptoRng + ?Sized>(&mut self, now: Instant, cell: Cell, rng: &mut R) {
        let outcome = match (&self.state, cell.command()) {
            (CircuitState::Closed, _) => return,
            (_, Command::Destroy) => return self.end(CircuitError::Destroyed),
            (_, Command::Created) => self.handle_created(now, cell.body(), rng),
            (_, Command::Relay) => self.handle_relay(now, cell.into_body(), rng),
            (_, command @ (Command::Create | Command::Padding)) => Err(CircuitError::IllegalCell(command)),
        };
        if let Err(error) = outcome {
            self.fail(error);
        }
    }

    /// The next cell to send.
    pub fn poll_cell<R: CryptoRng + ?Sized>(&mut self, now: Instant, rng: &mut R) -> Option<Cell> {
        if let Some(cell) = self.cells.pop_front() {
            return Some(cell);
        }
        let (hop, message) = self.poll_message(now, rng)?;
        match self.seal(hop, &message) {
            Ok(cell) => Some(cell),
            Err(error) => {
                self.fail(error);
                self.cells.pop_front()
            }
        }
    }

    /// Whether [`Self::poll_cell`] has a cell to return.
    #[must_use]
    pub fn has_cell(&self) -> bool {
        !self.cells.is_empty()
            || !self.extends.is_empty()
            || self.streams.iter().any(|(_, streams)| streams.has_message())
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<CircuitEvent> {
        for (hop, streams) in &mut self.streams {
            if let Some((stream, event)) = streams.poll_event() {
                return Some(CircuitEvent::Stream(*hop, stream, event));
            }
        }
        self.events.pop_front()
    }

    /// Handles expired deadlines.
    pub fn handle_timeout(&mut self, now: Instant) {
        match &self.state {
            CircuitState::Building(building) if building.deadline <= now => {
                return self.fail(CircuitError::BuildTimedOut(building.hop));
            }
            CircuitState::Closed => return,
            CircuitState::Building(_) | CircuitState::NextHopGone(_) | CircuitState::Open => {}
        }
        if self.echo_deadline.is_some_and(|deadline| deadline <= now) {
            return self.fail(CircuitError::EchoTimedOut);
        }
        self.echo_if_silent(now);
        let stalled = self.streams.iter_mut().find_map(|(_, streams)| streams.handle_timeout(now).err());
        if let Some(error) = stalled {
            self.fail(error.into());
        }
    }

    /// The deadline for [`Self::handle_timeout`].
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let own = match &self.state {
            CircuitState::Building(building) => Some(building.deadline),
            CircuitState::NextHopGone(_) => None,
            CircuitState::Open => self.echo_deadline.or_else(|| Some(self.last_message_at.after(self.echo_delay()?))),
            CircuitState::Closed => return None,
        };
        self.streams.iter().filter_map(|(_, streams)| streams.poll_timeout()).chain(own).min()
    }

    /// Ends the circuit; its streams fail, and a DESTROY is sent.
    pub fn close(&mut self) {
        self.fail(CircuitError::Closed);
    }

    /// Ends the circuit after its channel has closed, so that no more cells can be sent.
    pub fn handle_channel_closed(&mut self) {
        self.end(CircuitError::Destroyed);
    }

    fn handle_relay<R: CryptoRng + ?Sized>(
        &mut self,
        now: Instant,
        mut body: CellBody,
        rng: &mut R,
    ) -> Result<(), CircuitError> {
        if self.layers.is_empty() {
            return Err(CircuitError::IllegalCell(Command::Relay));
        }
        let (hop, length) = self.layers.open_backward(&mut body)?;
        let mut plaintext = Bytes::from(body);
        plaintext.truncate(length);
        let message = RelayMessage::decode(&plaintext)?;
        let kind = message.kind();
        if usize::from(hop.value()) == self.layers.len() {
            self.last_message_at = now;
            self.echo_deadline = None;
        }
        match message {
            RelayMessage::Drop => Err(CircuitError::Illegal { hop, kind }),
            RelayMessage::Extended { fragment } => self.handle_extended(now, hop, &fragment, rng),
            RelayMessage::Gone => self.handle_gone(hop),
            message => match self.streams.iter_mut().find(|(other, _)| *other == hop) {
                Some((_, streams)) => Ok(streams.handle_message(now, message)?),
                None => Err(CircuitError::Illegal { hop, kind }),
            },
        }
    }

    fn poll_message<R: CryptoRng + ?Sized>(&mut self, now: Instant, rng: &mut R) -> Option<(HopIndex, RelayMessage)> {
        if let Some(message) = self.extends.pop_front() {
            let last = HopIndex::new(u8::try_from(self.layers.len()).ok()?)?;
            return Some((last, message));
        }
        for at in 0..self.streams.len() {
            let (hop, streams) = self.streams.get_mut(at)?;
            let hop = *hop;
            if let Some(message) = streams.poll_message(now, message_capacity(hop), rng) {
                // The hops take turns.
                if self.streams.len() > 1 {
                    self.streams.rotate_left(at.saturating_add(1));
                }
                return Some((hop, message));
            }
        }
        None
    }

    fn seal(&mut self, hop: HopIndex, message: &RelayMessage) -> Result<Cell, CircuitError> {
        self.scratch.clear();
        message.encode(&mut self.scratch)?;
        let mut body = CellBody::zero();
        self.layers.seal_message(hop, &self.scratch, &mut body)?;
        Ok(Cell::new(self.circuit, Command::Relay, body))
    }

    /// The time without a message after which an echo is requested; `None` if no stream is open.
    fn echo_delay(&self) -> Option<Duration> {
        if self.streams.iter().any(|(_, streams)| streams.awaits_answer()) {
            Some(ECHO_DELAY_BEFORE_ANSWER)
        } else {
            (self.open_streams() > 0).then_some(ECHO_DELAY)
        }
    }

    fn echo_if_silent(&mut self, now: Instant) {
        if self.echo_delay().is_some_and(|delay| now.since(self.last_message_at) >= delay) {
            self.send_echo(now);
        }
    }

    /// Sets a deadline for a message from the last hop and sends an echo request, unless an echo request is unanswered.
    /// The deadline applies even if no request can be sent.
    fn send_echo(&mut self, now: Instant) {
        let timeout = self.echo_timeout;
        if self.echo_deadline.is_none()
            && let Some(streams) = self.last_hop_streams()
        {
            streams.echo();
            self.echo_deadline = Some(now.after(timeout));
        }
    }

    /// Ends the circuit with a DESTROY to the first hop.
    fn fail(&mut self, error: CircuitError) {
        if !matches!(self.state, CircuitState::Closed) {
            self.end(error);
            self.cells.push_back(Cell::destroy(self.circuit));
        }
    }

    /// Ends the circuit without a DESTROY.
    fn end(&mut self, error: CircuitError) {
        if matches!(self.state, CircuitState::Closed) {
            return;
        }
        self.state = CircuitState::Closed;
        self.cells.clear();
        self.extends.clear();
        for (_, streams) in &mut self.streams {
            streams.abort(EndReason::Reset);
        }
        self.events.push_back(CircuitEvent::Closed(error));
    }
}

#[cfg(test)]
mod tests;
