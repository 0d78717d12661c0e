//! A client's circuit: the state machine at the origin for the whole path.
//!
//! [`Origin`] owns the onion layers, the handshake in flight and the streams at each hop. The client drives it: it
//! passes the circuit's cells ([`Origin::handle_cell`]) and pulls those to send ([`Origin::poll_cell`]) while the
//! channel's queue for the circuit is short, so that SENDME and CREDIT never wait behind this end's own data.
//! Governed by `proto/03-cells.md`, `proto/04-handshake.md` and `proto/05-relay-messages.md`. Threat: relays that tag
//! a circuit by their messages. Any message that is illegal from its hop, or in the circuit's present state, ends the
//! circuit.
//!
//! | cell or message | legal | from |
//! |---|---|---|
//! | CREATED | while the first hop is built | |
//! | EXTENDED | while a later hop is built | the last built hop |
//! | GONE | while a later hop is built, after its EXTEND and before its EXTENDED | the last built hop |
//! | DROP | always | any hop |
//! | others (`stream`'s table) | after streams were opened there | any hop |
//! | DESTROY | always | |
//!
//! Caps: cells of one handshake (at most four), and those of [`Streams`].

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
use build::{Building, Short};

/// Time without a message of the last hop, while streams are open, after which an echo is requested.
const SILENCE: Duration = Duration::from_secs(15);
/// The same while a stream is unanswered.
const SILENCE_BEFORE_ANSWER: Duration = Duration::from_millis(500);
const ECHO_TIMEOUT_MIN: Duration = Duration::from_secs(1);
const ECHO_TIMEOUT_MAX: Duration = Duration::from_secs(5);

/// Why a circuit ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CircuitError {
    /// A relay of the circuit ended it, or its channel closed. The origin can't find out which relay, or why.
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
    Silent,
    /// The path has no hop, or too many.
    #[error("a path has one to eight hops")]
    PathLength,
    /// A message that is illegal from that hop, or in this state.
    #[error("{kind:?} is illegal from hop {} in this state", .hop.value())]
    Illegal {
        /// The sender.
        hop: HopIndex,
        /// The kind of the message.
        kind: MessageKind,
    },
    /// A cell that is illegal, or illegal in this state.
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
    /// A violation of the streams' rules.
    #[error(transparent)]
    Stream(#[from] StreamError),
}

impl CircuitError {
    /// The class of the error.
    #[must_use]
    pub const fn class(self) -> ErrorClass {
        match self {
            Self::Destroyed | Self::BuildTimedOut(_) | Self::Silent => ErrorClass::Network,
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
    /// The hop before `hop` can't reach the relay chosen as `hop`. The circuit is unchanged:
    /// [`Origin::extend_to`] another relay, or close it.
    Gone {
        /// The hop.
        hop: HopIndex,
    },
    /// All hops are built; streams may be opened.
    Built,
    /// An event of a stream at a hop.
    Stream(HopIndex, StreamId, StreamEvent),
    /// The circuit has ended. The [`StreamEvent::Closed`] of its streams came before; no event follows.
    Closed(CircuitError),
}

enum CircuitState {
    Building(Box<Building>),
    /// GONE was received for the next hop, and no other relay has been named yet.
    Short(Short),
    Open,
    Closed,
}

/// The origin's end of a circuit.
///
/// Drain after every call: [`Self::poll_event`] until `None`, [`Self::poll_cell`] while the channel accepts cells.
/// After [`CircuitEvent::Closed`] one DESTROY may be left to send; then the machine does nothing.
pub struct Origin {
    circuit: CircuitId,
    path: Vec<RelayKeys>,
    parameters: FlowParameters,
    layers: OriginLayers,
    state: CircuitState,
    /// Cells that need no layer: CREATE and DESTROY.
    cells: VecDeque<Cell>,
    /// EXTEND fragments for the last built hop.
    extends: VecDeque<RelayMessage>,
    /// Streams at each hop that has any.
    streams: Vec<(HopIndex, Streams)>,
    heard_at: Instant,
    /// The deadline of the next message from the last hop, after an echo request.
    echo: Option<Instant>,
    echo_timeout: Duration,
    scratch: Vec<u8>,
    events: VecDeque<CircuitEvent>,
}

impl Origin {
    /// Starts to build a circuit over `path`, under the identifier `circuit`. Each hop has the timeout `hop_timeout`.
    ///
    /// # Errors
    /// When the path has no hop or more than eight, or the first relay's onion key is of small order.
    pub fn start<R: CryptoRng + ?Sized>(
        now: Instant,
        path: Vec<RelayKeys>,
        circuit: CircuitId,
        parameters: FlowParameters,
        hop_timeout: Duration,
        rng: &mut R,
    ) -> Result<Self, CircuitError> {
        if path.len() > usize::from(HopIndex::MAX) {
            return Err(CircuitError::PathLength);
        }
        let first = path.first().ok_or(CircuitError::PathLength)?;
        let (building, request) = Building::start(now, first, HopIndex::FIRST, hop_timeout, rng)?;
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
            heard_at: now,
            echo: None,
            echo_timeout: ECHO_TIMEOUT_MAX,
            scratch: Vec::with_capacity(BODY_LEN),
            events: VecDeque::new(),
        })
    }

    /// The identifier on the first channel.
    #[must_use]
    pub const fn circuit(&self) -> CircuitId {
        self.circuit
    }

    /// The relays of the path, nearest first.
    #[must_use]
    pub fn path(&self) -> &[RelayKeys] {
        &self.path
    }

    /// The time of the last message from the last built hop; the start, if no hop is built.
    #[must_use]
    pub const fn heard_at(&self) -> Instant {
        self.heard_at
    }

    /// Whether all hops are built and the circuit has not ended.
    #[must_use]
    pub const fn is_open(&self) -> bool {
        matches!(self.state, CircuitState::Open)
    }

    /// The hop under construction; `None` once all are built or the circuit has ended.
    #[must_use]
    pub const fn building(&self) -> Option<HopIndex> {
        match &self.state {
            CircuitState::Building(building) => Some(building.hop),
            CircuitState::Short(short) => Some(short.hop),
            CircuitState::Open | CircuitState::Closed => None,
        }
    }

    /// Opens a stream to `target` that exits at the last hop.
    ///
    /// # Errors
    /// [`StreamError::Full`] at the maximum number of streams; [`StreamError::NotOpen`] unless the circuit is open.
    pub fn open(&mut self, now: Instant, target: Target) -> Result<StreamId, StreamError> {
        let id = self.exit_streams().ok_or(StreamError::NotOpen)?.open(now, target)?;
        self.ask_if_silent(now);
        Ok(id)
    }

    /// Opens a stream to a service of the last hop itself.
    ///
    /// # Errors
    /// [`StreamError::Full`] at the maximum number of streams; [`StreamError::NotOpen`] unless the circuit is open.
    pub fn request(&mut self, now: Instant, service: Service) -> Result<StreamId, StreamError> {
        let id = self.exit_streams().ok_or(StreamError::NotOpen)?.request(now, service)?;
        self.ask_if_silent(now);
        Ok(id)
    }

    /// Resolves `host` at the last hop.
    ///
    /// # Errors
    /// [`StreamError::Full`] at the maximum number of streams; [`StreamError::NotOpen`] unless the circuit is open.
    pub fn resolve(&mut self, now: Instant, host: Host) -> Result<StreamId, StreamError> {
        let id = self.exit_streams().ok_or(StreamError::NotOpen)?.resolve(now, host)?;
        self.ask_if_silent(now);
        Ok(id)
    }

    /// The streams at the last hop; `None` unless the circuit is open.
    pub fn exit_streams(&mut self) -> Option<&mut Streams> {
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

    /// Tests whether the circuit still reaches its last hop. Without an answer, [`CircuitError::Silent`] ends the
    /// circuit.
    pub fn ask(&mut self, now: Instant) {
        self.send_echo(now);
    }

    /// Handles one cell of this circuit.
    pub fn handle_cell<R: CryptoRng + ?Sized>(&mut self, now: Instant, cell: Cell, rng: &mut R) {
        let taken = match (&self.state, cell.command()) {
            (CircuitState::Closed, _) => return,
            (_, Command::Destroy) => return self.end(CircuitError::Destroyed),
            (_, Command::Created) => self.handle_created(now, cell.body(), rng),
            (_, Command::Relay) => self.handle_relay(now, cell.into_body(), rng),
            (_, command @ (Command::Create | Command::Padding)) => Err(CircuitError::IllegalCell(command)),
        };
        if let Err(error) = taken {
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
            CircuitState::Building(_) | CircuitState::Short(_) | CircuitState::Open => {}
        }
        if self.echo.is_some_and(|deadline| deadline <= now) {
            return self.fail(CircuitError::Silent);
        }
        self.ask_if_silent(now);
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
            CircuitState::Short(_) => None,
            CircuitState::Open => self.echo.or_else(|| Some(self.heard_at.after(self.patience()?))),
            CircuitState::Closed => return None,
        };
        self.streams.iter().filter_map(|(_, streams)| streams.poll_timeout()).chain(own).min()
    }

    /// Ends the circuit; its streams fail, and a DESTROY is sent.
    pub fn close(&mut self) {
        self.fail(CircuitError::Closed);
    }

    /// The circuit's channel has closed: no more cells can be sent.
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
            self.heard_at = now;
            self.echo = None;
        }
        match message {
            RelayMessage::Drop => Ok(()),
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
                // Round-robin over the hops.
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

    /// Time without a message after which an echo is requested; `None` if no stream is open.
    fn patience(&self) -> Option<Duration> {
        if self.streams.iter().any(|(_, streams)| streams.awaits_answer()) {
            Some(SILENCE_BEFORE_ANSWER)
        } else {
            (self.open_streams() > 0).then_some(SILENCE)
        }
    }

    fn ask_if_silent(&mut self, now: Instant) {
        if self.patience().is_some_and(|patience| now.since(self.heard_at) >= patience) {
            self.send_echo(now);
        }
    }

    /// Sets a deadline for a message from the last hop and sends an echo request, unless one is unanswered. The
    /// deadline applies even if no request can be sent.
    fn send_echo(&mut self, now: Instant) {
        let timeout = self.echo_timeout;
        if self.echo.is_none()
            && let Some(streams) = self.exit_streams()
        {
            streams.echo();
            self.echo = Some(now.after(timeout));
        }
    }

    /// Ends the circuit with a DESTROY to the first hop.
    fn fail(&mut self, error: CircuitError) {
        if !matches!(self.state, CircuitState::Closed) {
            self.end(error);
            self.cells.push_back(Cell::destroy(self.circuit));
        }
    }

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
