//! The streams of the circuits that end at a relay, between their origins and the node's exit.
//!
//! [`ExitStreams`] owns the [`Streams`] of each such circuit, the exit's identifiers of streams, and the queue of
//! circuits with messages to send. [`Relay`](super::Relay) drives it. Messages of origins and commands of the exit go
//! in; events for the exit ([`ExitStreams::poll_event`]) and messages to origins ([`ExitStreams::poll_ready`] and
//! [`ExitStreams::poll_message`]) come out. The caps are those of [`stream`](crate::stream), for each circuit.

use std::collections::{BTreeMap, HashMap, VecDeque};

use rand::CryptoRng;

use crate::{
    base::{Deadlines, HopIndex, Instant, Rate, ReadyQueue, StreamId, Ticket, TokenBucket},
    flow::FlowParameters,
    stream::{StreamCommand, StreamError, StreamEvent, StreamRole, Streams},
    wire::{EndReason, RelayMessage},
};

use super::{parameters::RelayParameters, table::CircuitKey};

/// A stream or RESOLVE at this relay as an exit; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExitStream(pub u64);

impl From<u64> for ExitStream {
    fn from(number: u64) -> Self {
        Self(number)
    }
}

impl From<ExitStream> for u64 {
    fn from(stream: ExitStream) -> Self {
        stream.0
    }
}

/// BEGINs and REQUESTs of a circuit; as many at once as it may have streams.
const BEGINS: Rate = Rate { per_second: 20, burst: 256 };
/// RESOLVEs of a circuit.
const RESOLVES: Rate = Rate { per_second: 10, burst: 64 };

/// The streams of one circuit.
struct ExitCircuit {
    /// This relay knows the origin's address; an exit here would know both ends (`proto/05-relay-messages.md` §4).
    is_first_hop: bool,
    /// Time of the origin's last stream message.
    received_at: Instant,
    begins: TokenBucket,
    resolves: TokenBucket,
    streams: Streams,
    open: BTreeMap<StreamId, ExitStreamState>,
    /// The time at which a stream was last served; not updated while one is open.
    last_use: Option<Instant>,
    /// Its place in the queue of circuits with messages to send.
    ready: Ticket,
}

impl ExitCircuit {
    /// Removes a stream that has ended.
    fn remove(&mut self, id: StreamId) {
        if self.open.remove(&id).is_some_and(|open| open.served) {
            self.last_use = Some(self.received_at);
        }
    }
}

/// A stream or RESOLVE that the exit has open.
struct ExitStreamState {
    stream: ExitStream,
    /// The exit has connected it, or performs its request.
    served: bool,
    /// The origin has finished its direction.
    origin_finished: bool,
    /// The target has finished its direction.
    target_finished: bool,
}

/// The streams of all circuits that end at this relay.
pub(super) struct ExitStreams {
    flow: FlowParameters,
    /// Whether BEGIN and RESOLVE are served.
    exit: bool,
    /// Whether REQUEST is served.
    delegate: bool,
    circuits: HashMap<CircuitKey, ExitCircuit>,
    /// The streams that the exit has open.
    streams: BTreeMap<ExitStream, (CircuitKey, StreamId)>,
    next: u64,
    /// Circuits that may have messages to send.
    ready: ReadyQueue<CircuitKey>,
    /// Deadlines of circuits; an entry may be earlier than the deadline.
    deadlines: Deadlines<CircuitKey>,
    events: VecDeque<(ExitStream, StreamEvent)>,
}

impl ExitCircuit {
    /// Takes a request from the circuit's rate, without which one client could scan ports and flood name servers in the
    /// exit's name (`proto/08-paths.md` §6).
    fn is_within_rate(&mut self, request: &StreamEvent) -> bool {
        match request {
            StreamEvent::Resolve(_) => self.resolves.take(self.received_at, RESOLVES),
            _ => self.begins.take(self.received_at, BEGINS),
        }
    }
}

impl ExitStreams {
    pub(super) fn new(parameters: &RelayParameters) -> Self {
        Self {
            flow: parameters.flow.clone(),
            exit: parameters.exit,
            delegate: parameters.delegate,
            circuits: HashMap::new(),
            streams: BTreeMap::new(),
            next: 1,
            ready: ReadyQueue::new(),
            deadlines: Deadlines::default(),
            events: VecDeque::new(),
        }
    }

    /// The number of streams and RESOLVEs that the exit has open.
    pub(super) fn len(&self) -> usize {
        self.streams.len()
    }

    /// Whether the exit has a stream or RESOLVE of a circuit open.
    pub(super) fn has_open(&self, key: CircuitKey) -> bool {
        self.circuits.get(&key).is_some_and(|circuit| !circuit.open.is_empty())
    }

    /// The time at which a circuit last served a stream: `now` if one is open. Messages that cost the relay next to
    /// nothing (DROP, an echo request, a refused BEGIN) are no use.
    pub(super) fn last_use(&self, now: Instant, key: CircuitKey) -> Option<Instant> {
        let circuit = self.circuits.get(&key)?;
        if circuit.open.values().any(|open| open.served) { Some(now) } else { circuit.last_use }
    }

    /// Handles a stream message of the origin of a circuit, at which this relay is `hop`.
    ///
    /// # Errors
    /// When the message is a violation or exceeds a cap: the circuit must end.
    pub(super) fn handle_message(
        &mut self,
        now: Instant,
        key: CircuitKey,
        hop: HopIndex,
        message: RelayMessage,
    ) -> Result<(), StreamError> {
        let circuit = self.circuits.entry(key).or_insert_with(|| ExitCircuit {
            is_first_hop: hop == HopIndex::FIRST,
            received_at: now,
            begins: TokenBucket::new(),
            resolves: TokenBucket::new(),
            streams: Streams::new(StreamRole::Exit, self.flow.clone()),
            open: BTreeMap::new(),
            last_use: None,
            ready: Ticket::new(),
        });
        circuit.received_at = now;
        circuit.streams.handle_message(now, message)?;
        self.settle(key, true);
        Ok(())
    }

    /// Carries out a command of the exit. Ignores streams that have ended.
    pub(super) fn handle_command(&mut self, stream: ExitStream, command: StreamCommand) {
        let ends = matches!(command, StreamCommand::Resolved { .. } | StreamCommand::Reset(_));
        let finishes = matches!(command, StreamCommand::Finish);
        if matches!(command, StreamCommand::Connected(_)) {
            self.set_served(stream);
        }
        self.with_stream(stream, |streams, id| streams.handle_command(id, command));
        if ends || (finishes && self.finish_target(stream)) {
            self.forget(stream);
        }
    }

    /// Takes bytes from the target, up to [`Self::room`], and returns how many.
    pub(super) fn write(&mut self, stream: ExitStream, bytes: &[u8]) -> usize {
        self.with_stream(stream, |streams, id| streams.write(id, bytes)).unwrap_or(0)
    }

    /// The number of bytes that [`Self::write`] takes now.
    pub(super) fn room(&self, stream: ExitStream) -> usize {
        let Some((key, id)) = self.streams.get(&stream) else { return 0 };
        self.circuits.get(key).map_or(0, |circuit| circuit.streams.room(*id))
    }

    /// The circuit of a stream; `None` if the stream has ended.
    pub(super) fn circuit(&self, stream: ExitStream) -> Option<CircuitKey> {
        self.streams.get(&stream).map(|(key, _)| *key)
    }

    /// The queue of a circuit's cells is low: its streams may send.
    pub(super) fn handle_queue_low(&mut self, key: CircuitKey) {
        self.settle(key, true);
    }

    /// Handles the end of a circuit: its streams end too.
    pub(super) fn handle_closed(&mut self, key: CircuitKey) {
        let Some(circuit) = self.circuits.remove(&key) else { return };
        self.deadlines.remove(key);
        for open in circuit.open.into_values() {
            self.streams.remove(&open.stream);
            self.events.push_back((open.stream, StreamEvent::Closed(EndReason::Reset)));
        }
    }

    /// Handles the deadlines that are due, up to the next circuit that must end.
    pub(super) fn handle_timeout(&mut self, now: Instant) -> Option<CircuitKey> {
        while let Some(key) = self.deadlines.pop_due(now) {
            let Some(circuit) = self.circuits.get_mut(&key) else { continue };
            if circuit.streams.handle_timeout(now).is_err() {
                return Some(key);
            }
            self.settle(key, true);
        }
        None
    }

    /// The deadline for [`Self::handle_timeout`].
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.deadlines.earliest()
    }

    /// The next event for the exit.
    pub(super) fn poll_event(&mut self) -> Option<(ExitStream, StreamEvent)> {
        self.events.pop_front()
    }

    /// Whether a circuit may have messages to send.
    pub(super) fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// The next circuit that may have messages to send. Its owner calls [`Self::poll_message`] while the circuit's
    /// queue has room, then [`Self::handle_sent`].
    pub(super) fn poll_ready(&mut self) -> Option<CircuitKey> {
        self.ready.pop()
    }

    /// The next message of a circuit to its origin, at most `capacity` bytes with its header.
    pub(super) fn poll_message(
        &mut self,
        now: Instant,
        key: CircuitKey,
        capacity: usize,
        rng: &mut dyn CryptoRng,
    ) -> Option<RelayMessage> {
        self.circuits.get_mut(&key)?.streams.poll_message(now, capacity, rng)
    }

    /// Messages of a circuit were sent, which makes room in send buffers.
    pub(super) fn handle_sent(&mut self, key: CircuitKey) {
        self.settle(key, false);
    }

    /// Collects the events and the deadline of a circuit after a change, and with `may_send`, queues it if it has a
    /// message. Refuses streams that this relay doesn't serve.
    fn settle(&mut self, key: CircuitKey, may_send: bool) {
        let Some(circuit) = self.circuits.get_mut(&key) else { return };
        while let Some((id, event)) = circuit.streams.poll_event() {
            let serves = match event {
                StreamEvent::Begin(_) | StreamEvent::Resolve(_) => Some(self.exit && !circuit.is_first_hop),
                StreamEvent::Request(_) => Some(self.delegate && !circuit.is_first_hop),
                _ => None,
            };
            match serves {
                Some(true) if !circuit.is_within_rate(&event) => {
                    circuit.streams.handle_command(id, StreamCommand::Reset(EndReason::ResourceLimit));
                    continue;
                }
                Some(true) => {
                    let stream = ExitStream(self.next);
                    self.next = self.next.saturating_add(1);
                    let served = matches!(event, StreamEvent::Request(_));
                    let state = ExitStreamState { stream, served, origin_finished: false, target_finished: false };
                    circuit.open.insert(id, state);
                    self.streams.insert(stream, (key, id));
                }
                Some(false) => {
                    circuit.streams.handle_command(id, StreamCommand::Reset(EndReason::Policy));
                    continue;
                }
                None => {}
            }
            let Some(open) = circuit.open.get_mut(&id) else { continue };
            let stream = open.stream;
            open.origin_finished |= matches!(event, StreamEvent::Finished);
            let over = matches!(event, StreamEvent::Closed(_)) || (open.origin_finished && open.target_finished);
            self.events.push_back((stream, event));
            if over {
                circuit.remove(id);
                self.streams.remove(&stream);
            }
        }
        if may_send && circuit.streams.has_message() {
            self.ready.push(key, &mut circuit.ready);
        }
        if let Some(due) = circuit.streams.poll_timeout() {
            self.deadlines.set_earlier(key, due);
        }
    }

    fn with_stream<T>(&mut self, stream: ExitStream, act: impl FnOnce(&mut Streams, StreamId) -> T) -> Option<T> {
        let (key, id) = *self.streams.get(&stream)?;
        let outcome = act(&mut self.circuits.get_mut(&key)?.streams, id);
        self.settle(key, true);
        Some(outcome)
    }

    /// Records that the target has finished its direction; returns whether the origin has too.
    fn finish_target(&mut self, stream: ExitStream) -> bool {
        let Some((key, id)) = self.streams.get(&stream) else { return false };
        let open = self.circuits.get_mut(key).and_then(|circuit| circuit.open.get_mut(id));
        open.is_some_and(|open| {
            open.target_finished = true;
            open.origin_finished
        })
    }

    /// Removes a stream that has ended.
    fn forget(&mut self, stream: ExitStream) {
        let Some((key, id)) = self.streams.remove(&stream) else { return };
        if let Some(circuit) = self.circuits.get_mut(&key) {
            circuit.remove(id);
        }
    }

    fn set_served(&mut self, stream: ExitStream) {
        let Some((key, id)) = self.streams.get(&stream) else { return };
        if let Some(open) = self.circuits.get_mut(key).and_then(|circuit| circuit.open.get_mut(id)) {
            open.served = true;
        }
    }
}
