//! A client's circuit: the origin's end of the whole path.
//!
//! [`Origin`] owns the onion layers, the handshake under way and the streams at each hop spoken to. It is driven by the
//! client, which brings the circuit's cells ([`Origin::handle_cell`]) and pulls those to send ([`Origin::poll_cell`])
//! while the channel's queue for the circuit is short, so that SENDME and CREDIT never wait behind this end's own data.
//! Governed by `proto/03-cells.md`, `proto/04-handshake.md` and `proto/05-relay-messages.md`. Threat addressed: relays
//! that tag a circuit by what they send: any message not legal from the hop it came from, in the state the circuit is
//! in, ends it.
//!
//! | cell or message | legal | from |
//! |---|---|---|
//! | CREATED | while the first hop is built | |
//! | EXTENDED | while a later hop is built | the last hop that stands |
//! | GONE | while a later hop is built, before its EXTENDED | the last hop that stands |
//! | DROP | always | any hop |
//! | others (`stream`'s table) | once streams were begun there | any hop |
//! | DESTROY | always | |
//!
//! Caps: cells of one handshake (at most four), and those of [`Streams`].

mod build;

use core::time::Duration;
use std::collections::VecDeque;

use bytes::Bytes;
use rand::CryptoRng;

use crate::{
    base::{CircuitId, HopIndex, Instant, StreamId},
    flow::FlowParameters,
    handshake::{HandshakeError, RelayKeys},
    onion::{OnionError, OriginLayers, message_capacity},
    stream::{Role, StreamError, StreamEvent, Streams},
    wire::{BODY_LEN, Cell, CellBody, Command, EndReason, Host, MessageKind, RelayMessage, Service, Target, WireError},
};
use build::{Building, Short};

/// A circuit with open streams that says nothing for so long is asked whether it still stands.
const SILENCE: Duration = Duration::from_secs(15);
/// One on which a stream waits for its answer, after so long.
const SILENCE_BEFORE_ANSWER: Duration = Duration::from_millis(500);
const ECHO_TIMEOUT_MIN: Duration = Duration::from_secs(1);
const ECHO_TIMEOUT_MAX: Duration = Duration::from_secs(5);

/// Why a circuit ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CircuitError {
    /// A relay on it ended it, or its channel is gone. Which one, and why, can't be known.
    #[error("a relay ended the circuit")]
    Destroyed,
    /// This end closed it.
    #[error("closed by this end")]
    Closed,
    /// A hop did not answer in time.
    #[error("hop {} did not answer in time", .0.value())]
    BuildTimedOut(HopIndex),
    /// The circuit did not answer an echo request.
    #[error("the circuit no longer answers")]
    Silent,
    /// A path of no hops or too many.
    #[error("a path has one to eight hops")]
    PathLength,
    /// A message that may not come from that hop, or not now.
    #[error("{kind:?} is not legal from hop {} now", .hop.value())]
    Illegal {
        /// Who sent it.
        hop: HopIndex,
        /// What.
        kind: MessageKind,
    },
    /// A cell that may not come, or not now.
    #[error("a {0:?} cell is not legal now")]
    IllegalCell(Command),
    /// A handshake failed.
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    /// A layer did not open: some cell was altered, dropped, repeated or put out of order.
    #[error(transparent)]
    Onion(#[from] OnionError),
    /// A message could not be read.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The streams' rules were broken.
    #[error(transparent)]
    Stream(#[from] StreamError),
}

/// What happened on a circuit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CircuitEvent {
    /// One more hop stands.
    HopBuilt {
        /// Which.
        hop: HopIndex,
        /// From its first cell to its answer.
        elapsed: Duration,
    },
    /// The relay that was to be `hop` can't be had from the one before it. The circuit stands as it is:
    /// [`Origin::extend_to`] another, or close it.
    Gone {
        /// Which.
        hop: HopIndex,
    },
    /// All hops stand; streams may begin.
    Built,
    /// Something happened on a stream at a hop.
    Stream(HopIndex, StreamEvent),
    /// The circuit has ended; its streams' [`StreamEvent::Closed`] came before, nothing follows.
    Closed(CircuitError),
}

enum State {
    Building(Box<Building>),
    /// The relay that was to be the next hop is gone, and no other has been named yet.
    Short(Short),
    Open,
    Closed,
}

/// The origin's end of a circuit.
///
/// Drain after every call: [`Self::poll_event`] until `None`, [`Self::poll_cell`] while the channel takes cells. Once
/// [`CircuitEvent::Closed`] came, one DESTROY may be left to send; after it the machine does nothing.
pub struct Origin {
    circuit: CircuitId,
    path: Vec<RelayKeys>,
    parameters: FlowParameters,
    layers: OriginLayers,
    state: State,
    /// Cells that are ready as they are: CREATE and DESTROY.
    cells: VecDeque<Cell>,
    /// EXTEND fragments, for the last hop that stands.
    extends: VecDeque<RelayMessage>,
    /// Streams at the hops spoken to.
    streams: Vec<(HopIndex, Streams)>,
    heard_at: Instant,
    /// When the last hop must have been heard, once the circuit is in doubt.
    echo: Option<Instant>,
    echo_timeout: Duration,
    scratch: Vec<u8>,
    events: VecDeque<CircuitEvent>,
}

impl Origin {
    /// Begins to build a circuit over `path`, under the identifier `circuit`. Each hop may take `hop_timeout`.
    ///
    /// # Errors
    /// When the path has no hop or more than eight, or the first relay's onion key is of no use.
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
            state: State::Building(Box::new(building)),
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

    /// The relays of the path, the nearest first.
    #[must_use]
    pub fn path(&self) -> &[RelayKeys] {
        &self.path
    }

    /// When the last hop that stands was last heard from; the start, if none stands.
    #[must_use]
    pub const fn heard_at(&self) -> Instant {
        self.heard_at
    }

    /// Whether all hops stand and the circuit has not ended.
    #[must_use]
    pub const fn is_open(&self) -> bool {
        matches!(self.state, State::Open)
    }

    /// The hop under construction; `None` once all stand or the circuit has ended.
    #[must_use]
    pub const fn building(&self) -> Option<HopIndex> {
        match &self.state {
            State::Building(building) => Some(building.hop),
            State::Short(short) => Some(short.hop),
            State::Open | State::Closed => None,
        }
    }

    /// Opens a stream to `target` that leaves at the last hop.
    ///
    /// # Errors
    /// [`StreamError::Full`] when no more fit, or the circuit isn't open.
    pub fn begin(&mut self, now: Instant, target: Target) -> Result<StreamId, StreamError> {
        let id = self.exit_streams().ok_or(StreamError::Full)?.begin(now, target)?;
        self.ask_if_silent(now);
        Ok(id)
    }

    /// Opens a stream to a service of the last hop's own.
    ///
    /// # Errors
    /// [`StreamError::Full`] when no more fit, or the circuit isn't open.
    pub fn request(&mut self, now: Instant, service: Service) -> Result<StreamId, StreamError> {
        let id = self.exit_streams().ok_or(StreamError::Full)?.request(now, service)?;
        self.ask_if_silent(now);
        Ok(id)
    }

    /// Asks the last hop about `host`.
    ///
    /// # Errors
    /// [`StreamError::Full`] when no more fit, or the circuit isn't open.
    pub fn resolve(&mut self, now: Instant, host: Host) -> Result<StreamId, StreamError> {
        let id = self.exit_streams().ok_or(StreamError::Full)?.resolve(now, host)?;
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

    /// The streams at `hop`; `None` if there is no such hop yet.
    pub fn streams_at(&mut self, hop: HopIndex) -> Option<&mut Streams> {
        if usize::from(hop.value()) > self.layers.len() {
            return None;
        }
        let at = self.streams.iter().position(|(other, _)| *other == hop).unwrap_or_else(|| {
            self.streams.push((hop, Streams::new(Role::Origin, self.parameters.clone())));
            self.streams.len().saturating_sub(1)
        });
        self.streams.get_mut(at).map(|(_, streams)| streams)
    }

    /// Streams open at all hops.
    #[must_use]
    pub fn open_streams(&self) -> usize {
        self.streams.iter().map(|(_, streams)| streams.len()).sum()
    }

    /// Asks whether the circuit still reaches its last hop; [`CircuitError::Silent`] ends it if nothing comes.
    pub fn ask(&mut self, now: Instant) {
        self.send_echo(now);
    }

    /// Takes one cell of this circuit.
    pub fn handle_cell<R: CryptoRng + ?Sized>(&mut self, now: Instant, cell: Cell, rng: &mut R) {
        let taken = match (&self.state, cell.command()) {
            (State::Closed, _) => return,
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

    /// Whether [`Self::poll_cell`] would give a cell.
    #[must_use]
    pub fn has_cell(&self) -> bool {
        !self.cells.is_empty()
            || !self.extends.is_empty()
            || self.streams.iter().any(|(_, streams)| streams.has_message())
    }

    /// What happened next.
    pub fn poll_event(&mut self) -> Option<CircuitEvent> {
        for (hop, streams) in &mut self.streams {
            if let Some(event) = streams.poll_event() {
                return Some(CircuitEvent::Stream(*hop, event));
            }
        }
        self.events.pop_front()
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        match &self.state {
            State::Building(building) if building.deadline <= now => {
                return self.fail(CircuitError::BuildTimedOut(building.hop));
            }
            State::Closed => return,
            State::Building(_) | State::Short(_) | State::Open => {}
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

    /// When [`Self::handle_timeout`] is due.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let own = match &self.state {
            State::Building(building) => Some(building.deadline),
            State::Short(_) => None,
            State::Open => self.echo.or_else(|| Some(self.heard_at.after(self.patience()?))),
            State::Closed => return None,
        };
        self.streams.iter().filter_map(|(_, streams)| streams.poll_timeout()).chain(own).min()
    }

    /// Ends the circuit; its streams fail, and DESTROY goes out.
    pub fn close(&mut self) {
        self.fail(CircuitError::Closed);
    }

    /// The circuit's channel is gone: nothing more can be sent.
    pub fn handle_channel_closed(&mut self) {
        self.end(CircuitError::Destroyed);
    }

    fn handle_relay<R: CryptoRng + ?Sized>(
        &mut self,
        now: Instant,
        mut body: CellBody,
        rng: &mut R,
    ) -> Result<(), CircuitError> {
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
                // Hops take turns.
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

    /// How long the circuit may be silent before it is asked; for ever, if no stream is open.
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

    /// Gives the last hop a time to be heard in, and a reason to speak: an echo request, or the last if it is unanswered.
    /// The time runs even if none can be sent.
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
        if !matches!(self.state, State::Closed) {
            self.end(error);
            self.cells.push_back(Cell::destroy(self.circuit));
        }
    }

    fn end(&mut self, error: CircuitError) {
        if matches!(self.state, State::Closed) {
            return;
        }
        self.state = State::Closed;
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
