//! The exit streams of a relay, between their origins and the node's exit.
//!
//! [`ExitStreams`] owns the [`Streams`] of each circuit with such streams, the exit's identifiers of streams, and the
//! queue of circuits with messages to send. [`Relay`](super::Relay) drives this machine. Its inputs are messages of
//! origins and commands of the exit. Its outputs are events for the exit ([`ExitStreams::poll_event`]) and messages to
//! origins ([`ExitStreams::poll_ready`] and [`ExitStreams::poll_message`]).
//!
//! Caps: those of [`stream`](crate::stream) for each circuit, and [`RelayParameters::exit_streams`] for all and for
//! each owner. At the cap, the owner closest to its share loses its least active stream ([`Activity`]), however many
//! circuits its streams have. A new stream of an owner that is as close to its share, or at it, displaces the least
//! active stream of the same owner. Each circuit displaces few such streams ([`DISPLACEMENT_RATE`]), so that streams
//! that connect are not displaced by many new ones.
//!
//! The memory for records of streams ([`Streams::records`]) has the cap [`RelayParameters::stream_records`], with the
//! same shares. At the cap, the circuit with the most records, of the owner closest to its share, forgets its oldest
//! closed streams. If it has none, its unsent messages are too many, and the circuit ends.

use std::collections::{BTreeMap, HashMap, VecDeque};

use rand::CryptoRng;

use crate::{
    base::{
        Activity, Counter as _, Deadlines, HopIndex, Instant, Owned, Owner, Rate, ReadyQueue, StreamId, Ticket,
        TokenBucket,
    },
    flow::FlowParameters,
    stream::{StreamCommand, StreamError, StreamEvent, StreamRole, Streams},
    wire::{EndReason, RelayMessage},
};

use super::{circuit::Circuit, parameters::RelayParameters, stream_records::StreamRecords, table::CircuitKey};

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

/// Rate of the BEGINs and REQUESTs of a circuit. The burst equals the default cap on open streams of a circuit.
const BEGIN_RATE: Rate = Rate { per_second: 20, burst: 256 };
/// Rate of the RESOLVEs of a circuit.
const RESOLVE_RATE: Rate = Rate { per_second: 10, burst: 64 };
/// Rate at which new streams of a circuit displace streams of the same owner: four streams at once, one in 15 s.
const DISPLACEMENT_RATE: Rate = Rate { per_second: 1, burst: 4 * DISPLACEMENT };
/// Tokens of [`DISPLACEMENT_RATE`] for a displaced stream.
const DISPLACEMENT: u64 = 15;

/// The streams of one circuit.
struct ExitCircuit {
    /// The owner of the circuit.
    owner: Owner,
    /// Whether this relay is the first hop, whose neighbour is the origin. A first hop serves no streams, so that no
    /// relay gets both the origin's address and the target (`proto/05-relay-messages.md` §4).
    is_first_hop: bool,
    /// Time of the origin's last stream message.
    received_at: Instant,
    begins: TokenBucket,
    resolves: TokenBucket,
    displacements: TokenBucket,
    streams: Streams,
    /// The records of `streams` as counted in [`ExitStreams::records`].
    records: usize,
    /// Whether the circuit ends because its unsent messages exceed its share; they are not counted any more.
    is_overfull: bool,
    open: BTreeMap<StreamId, ExitStreamState>,
    /// The time at which a stream was last served; not updated while one is open.
    last_use: Option<Instant>,
    /// The circuit's place in the queue of circuits with messages to send.
    ready: Ticket,
}

impl ExitCircuit {
    /// Counts bytes of a stream, in either direction.
    fn carry(&mut self, now: Instant, id: StreamId, bytes: usize) {
        let streams = self.open.len();
        if let Some(open) = self.open.get_mut(&id) {
            open.activity.carry(now, bytes, streams);
        }
    }

    /// Counts a displacement of a stream of the same owner; `false` beyond the rate.
    fn may_displace(&mut self) -> bool {
        let may = self.displacements.available(self.received_at, DISPLACEMENT_RATE) >= DISPLACEMENT;
        if may {
            self.displacements.spend(self.received_at, DISPLACEMENT_RATE, DISPLACEMENT);
        }
        may
    }

    /// Removes a stream that has ended.
    fn remove(&mut self, id: StreamId) -> Option<ExitStreamState> {
        let open = self.open.remove(&id)?;
        if open.is_served {
            self.last_use = Some(self.received_at);
        }
        Some(open)
    }
}

/// A stream or RESOLVE that the exit has open.
struct ExitStreamState {
    stream: ExitStream,
    activity: Activity,
    /// The activity by which the stream is ordered in [`ExitStreams::shares`].
    listed_activity: Activity,
    /// Whether the exit has connected the stream, or performs its request.
    is_served: bool,
    /// Whether the origin has finished its direction.
    origin_finished: bool,
    /// Whether the target has finished its direction.
    target_finished: bool,
}

/// The exit streams of all circuits.
pub(super) struct ExitStreams {
    flow: FlowParameters,
    /// Whether BEGIN and RESOLVE are served.
    exit: bool,
    /// Whether REQUEST is served.
    delegate: bool,
    circuits: HashMap<CircuitKey, ExitCircuit>,
    /// The share of each owner. An eviction updates the order, as in [`Owned`].
    shares: Owned<Activity, ExitStream>,
    records: StreamRecords,
    /// The streams that the exit has open.
    streams: BTreeMap<ExitStream, (CircuitKey, StreamId)>,
    /// The number of the next [`ExitStream`].
    next_stream: u64,
    /// Circuits that may have messages to send.
    ready: ReadyQueue<CircuitKey>,
    /// Deadlines of circuits; an entry may be earlier than the deadline.
    deadlines: Deadlines<CircuitKey>,
    events: VecDeque<(ExitStream, StreamEvent)>,
}

impl ExitCircuit {
    /// Counts a request towards the circuit's rate. Without a rate, one client could scan ports and flood name servers
    /// from the exit's address (`proto/08-paths.md` §6).
    fn is_within_rate(&mut self, request: &StreamEvent) -> bool {
        match request {
            StreamEvent::Resolve(_) => self.resolves.take(self.received_at, RESOLVE_RATE),
            _ => self.begins.take(self.received_at, BEGIN_RATE),
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
            shares: Owned::new(parameters.exit_streams),
            records: StreamRecords::new(parameters.stream_records),
            streams: BTreeMap::new(),
            next_stream: 1,
            ready: ReadyQueue::new(),
            deadlines: Deadlines::default(),
            events: VecDeque::new(),
        }
    }

    /// The shares of streams.
    #[cfg(any(test, fuzzing))]
    pub(super) const fn shares(&self) -> &Owned<Activity, ExitStream> {
        &self.shares
    }

    /// The shares of records, and the records of all circuits.
    #[cfg(any(test, fuzzing))]
    pub(super) fn records(&self) -> (&StreamRecords, usize) {
        let counted = self.circuits.values().filter(|circuit| !circuit.is_overfull);
        (&self.records, counted.map(|circuit| circuit.streams.records()).sum())
    }

    /// The number of streams and RESOLVEs that the exit has open.
    pub(super) fn len(&self) -> usize {
        self.streams.len()
    }

    /// Whether the exit has a stream or RESOLVE of a circuit open.
    pub(super) fn has_open(&self, key: CircuitKey) -> bool {
        self.circuits.get(&key).is_some_and(|circuit| !circuit.open.is_empty())
    }

    /// The time at which a circuit last served a stream: `now` if a served stream is open. Echo requests and refused
    /// BEGINs don't count as use, because they cost the origin almost nothing.
    pub(super) fn last_use(&self, now: Instant, key: CircuitKey) -> Option<Instant> {
        let circuit = self.circuits.get(&key)?;
        if circuit.open.values().any(|open| open.is_served) { Some(now) } else { circuit.last_use }
    }

    /// Handles a stream message of the origin of `of`.
    ///
    /// # Errors
    /// When the message is a breach or exceeds a cap. The circuit must end.
    pub(super) fn handle_message(
        &mut self,
        now: Instant,
        key: CircuitKey,
        of: &Circuit,
        message: RelayMessage,
    ) -> Result<(), StreamError> {
        let circuit = self.circuits.entry(key).or_insert_with(|| ExitCircuit {
            owner: of.owner,
            is_first_hop: of.hop == HopIndex::FIRST,
            received_at: now,
            begins: TokenBucket::new(),
            resolves: TokenBucket::new(),
            displacements: TokenBucket::new(),
            streams: Streams::new(StreamRole::Exit, self.flow.clone()),
            records: 0,
            is_overfull: false,
            open: BTreeMap::new(),
            last_use: None,
            ready: Ticket::new(),
        });
        circuit.received_at = now;
        circuit.streams.handle_message(now, message)?;
        self.settle(key, true);
        Ok(())
    }

    /// Handles a command of the exit. Ignores commands for streams that have ended.
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

    /// Queues bytes of the target for the origin, up to [`Self::room`]. Returns the number of queued bytes.
    pub(super) fn write(&mut self, stream: ExitStream, bytes: &[u8]) -> usize {
        self.with_stream(stream, |streams, id| streams.write(id, bytes)).unwrap_or(0)
    }

    /// The number of bytes that [`Self::write`] accepts now.
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
        self.records.set(&circuit.owner, key, circuit.records, 0);
        for open in circuit.open.into_values() {
            self.shares.remove(&circuit.owner, open.listed_activity, open.stream);
            self.streams.remove(&open.stream);
            self.events.push_back((open.stream, StreamEvent::Closed(EndReason::Reset)));
        }
    }

    /// Handles the deadlines that are due, up to the next circuit that must end.
    pub(super) fn handle_timeout(&mut self, now: Instant) -> Option<CircuitKey> {
        while let Some(key) = self.deadlines.pop_due(now) {
            let Some(circuit) = self.circuits.get_mut(&key) else { continue };
            if circuit.is_overfull || circuit.streams.handle_timeout(now).is_err() {
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
        let circuit = self.circuits.get_mut(&key)?;
        let message = circuit.streams.poll_message(now, capacity, rng)?;
        if let RelayMessage::Data { stream, bytes, .. } = &message {
            circuit.carry(now, *stream, bytes.len());
        }
        Some(message)
    }

    /// Handles the sending of a circuit's messages, which makes room in send buffers.
    pub(super) fn handle_sent(&mut self, key: CircuitKey) {
        self.settle(key, false);
    }

    /// Collects the events and the deadline of a circuit after a change. With `may_send`, queues a circuit that has a
    /// message. Refuses streams that this relay doesn't serve.
    fn settle(&mut self, key: CircuitKey, may_send: bool) {
        while let Some(circuit) = self.circuits.get_mut(&key)
            && let Some((id, event)) = circuit.streams.poll_event()
        {
            if matches!(event, StreamEvent::Begin(_) | StreamEvent::Resolve(_) | StreamEvent::Request(_)) {
                self.admit(key, id, event);
                continue;
            }
            if let StreamEvent::Data(bytes) = &event {
                circuit.carry(circuit.received_at, id, bytes.len());
            }
            let Some(open) = circuit.open.get_mut(&id) else { continue };
            open.origin_finished |= matches!(event, StreamEvent::Finished);
            let has_ended = matches!(event, StreamEvent::Closed(_)) || (open.origin_finished && open.target_finished);
            self.events.push_back((open.stream, event));
            if has_ended {
                self.remove(key, id);
            }
        }
        let Some(circuit) = self.circuits.get_mut(&key) else { return };
        if may_send && circuit.streams.has_message() {
            self.ready.push(key, &mut circuit.ready);
        }
        if let Some(due) = circuit.streams.poll_timeout() {
            self.deadlines.set_earlier(key, due);
        }
        self.count_records(key);
    }

    /// Counts the records of a circuit after a change. Beyond a share or the cap, frees records of the fullest circuits.
    fn count_records(&mut self, key: CircuitKey) {
        let Some(circuit) = self.circuits.get_mut(&key) else { return };
        let (before, after) = (circuit.records, circuit.streams.records());
        if circuit.is_overfull || before == after {
            return;
        }
        circuit.records = after;
        let owner = circuit.owner;
        self.records.set(&owner, key, before, after);
        while after > before
            && let Some(fullest) = self.records.fullest(&owner)
        {
            self.free_records(fullest);
        }
    }

    /// Forgets the older half of a circuit's closed streams. Without closed streams, the circuit ends.
    fn free_records(&mut self, key: CircuitKey) {
        let Some(circuit) = self.circuits.get_mut(&key) else { return };
        circuit.streams.forget_closed();
        let before = circuit.records;
        circuit.records = circuit.streams.records();
        if circuit.records >= before {
            (circuit.is_overfull, circuit.records) = (true, 0);
            self.deadlines.set_earlier(key, circuit.received_at);
        }
        self.records.set(&circuit.owner, key, before, circuit.records);
    }

    /// Calls `call` for an open stream, then settles its circuit. `None` if the stream has ended.
    fn with_stream<T>(&mut self, stream: ExitStream, call: impl FnOnce(&mut Streams, StreamId) -> T) -> Option<T> {
        let (key, id) = *self.streams.get(&stream)?;
        let outcome = call(&mut self.circuits.get_mut(&key)?.streams, id);
        self.settle(key, true);
        Some(outcome)
    }

    /// Records that the target has finished its direction. Returns whether the origin has finished too.
    fn finish_target(&mut self, stream: ExitStream) -> bool {
        let Some((key, id)) = self.streams.get(&stream) else { return false };
        let open = self.circuits.get_mut(key).and_then(|circuit| circuit.open.get_mut(id));
        open.is_some_and(|open| {
            open.target_finished = true;
            open.origin_finished
        })
    }

    /// Passes an origin's request to the exit, or refuses it.
    fn admit(&mut self, key: CircuitKey, id: StreamId, request: StreamEvent) {
        let Some(circuit) = self.circuits.get_mut(&key) else { return };
        let serves = match request {
            StreamEvent::Request(_) => self.delegate,
            _ => self.exit,
        };
        let admitted = if !serves || circuit.is_first_hop {
            Err(EndReason::Policy)
        } else if !circuit.is_within_rate(&request) {
            Err(EndReason::ResourceLimit)
        } else {
            self.take_share(key)
        };
        let Some(circuit) = self.circuits.get_mut(&key) else { return };
        let (stream, activity) = match admitted {
            Ok(admitted) => admitted,
            Err(reason) => return circuit.streams.handle_command(id, StreamCommand::Reset(reason)),
        };
        let is_served = matches!(request, StreamEvent::Request(_));
        let state = ExitStreamState {
            stream,
            activity,
            listed_activity: activity,
            is_served,
            origin_finished: false,
            target_finished: false,
        };
        circuit.open.insert(id, state);
        self.streams.insert(stream, (key, id));
        self.events.push_back((stream, request));
    }

    /// Takes a share for a new stream of a circuit, if necessary of a less active stream, which ends.
    fn take_share(&mut self, key: CircuitKey) -> Result<(ExitStream, Activity), EndReason> {
        let limit = EndReason::ResourceLimit;
        let circuit = self.circuits.get_mut(&key).ok_or(limit)?;
        let (owner, activity) = (circuit.owner, Activity::new(circuit.received_at));
        match self.shares.to_lose(&owner) {
            Ok(None) => {}
            Ok(Some(loser)) => self.evict_least_active(&loser),
            Err(_) if circuit.may_displace() => self.evict_least_active(&owner),
            Err(_) => return Err(limit),
        }
        let stream = ExitStream(self.next_stream);
        self.shares.insert(owner, activity, stream).map_err(|_| limit)?;
        self.next_stream.increment();
        Ok((stream, activity))
    }

    /// Ends the least active stream of `owner`.
    fn evict_least_active(&mut self, owner: &Owner) {
        while let Some((listed, stream)) = self.shares.lowest_of(owner) {
            let Some((key, id)) = self.streams.get(&stream).copied() else { return };
            let Some(circuit) = self.circuits.get_mut(&key) else { return };
            let Some(open) = circuit.open.get_mut(&id) else { return };
            if open.activity <= listed {
                return self.evict(key, id);
            }
            open.listed_activity = open.activity;
            self.shares.set_rank(owner, listed, open.activity, stream);
        }
    }

    /// Ends a stream to make room for another.
    fn evict(&mut self, key: CircuitKey, id: StreamId) {
        if let Some(circuit) = self.circuits.get_mut(&key) {
            circuit.streams.handle_command(id, StreamCommand::Reset(EndReason::ResourceLimit));
            self.ready.push(key, &mut circuit.ready);
        }
        if let Some(stream) = self.remove(key, id) {
            self.events.push_back((stream, StreamEvent::Closed(EndReason::ResourceLimit)));
        }
    }

    /// Removes a stream that has ended.
    fn forget(&mut self, stream: ExitStream) {
        if let Some((key, id)) = self.streams.get(&stream) {
            self.remove(*key, *id);
        }
    }

    /// Removes a stream that has ended, and returns its identifier at the exit.
    fn remove(&mut self, key: CircuitKey, id: StreamId) -> Option<ExitStream> {
        let circuit = self.circuits.get_mut(&key)?;
        let ended = circuit.remove(id)?;
        self.shares.remove(&circuit.owner, ended.listed_activity, ended.stream);
        self.streams.remove(&ended.stream);
        Some(ended.stream)
    }

    /// Records that the exit has connected a stream.
    fn set_served(&mut self, stream: ExitStream) {
        let Some((key, id)) = self.streams.get(&stream) else { return };
        if let Some(open) = self.circuits.get_mut(key).and_then(|circuit| circuit.open.get_mut(id)) {
            open.is_served = true;
        }
    }
}
