//! The core of a client: streams, circuits and channels to guards, without I/O.
//!
//! [`ClientMachine`] owns the channels to guards, the pool of circuits, and the requests for streams. Driven as a
//! [`LinkMachine`] from below, and by [`ClientMachine::open`] and similar calls from above. It builds circuits ahead and
//! puts each stream on a circuit of its isolation. It retries a stream elsewhere if the stream failed before it was
//! connected and the target wasn't the cause. It rebuilds failed circuits. Governed by `proto/08-paths.md` §5.
//!
//! Threats addressed: linking of a person's activities under different isolations, which never share a circuit, or
//! over time, since a circuit takes no new streams ten minutes after its first. Relays that fail circuits until one
//! has the path they want: retries are few, with pauses, and failures beyond the guard never change the guard.
//!
//! Caps: [`ClientParameters`]. Beyond them a request fails at once with [`StreamFailure::LimitReached`].

mod build_history;
mod exit_separation;
mod gone;
mod isolation;
mod pool;
mod pooled;
mod requests;
mod settle;

use core::time::Duration;
use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use rand::CryptoRng;

use crate::{
    base::{
        CircuitId, Deadlines, ErrorClass, Instant, LinkClose, LinkEvent, LinkMachine, ReadyQueue, RelayId, StreamId,
        Transmit, WallTime,
    },
    channel::{ChannelEvent, ChannelId, ChannelParameters, Channels, LocalRole},
    delegated::Delegation,
    directory::{Consensus, VolunteerList},
    path::{GuardSample, PathError, Relays, SpecialHost},
    stream::{StreamCommand, StreamEvent, Streams},
    wire::{EndReason, Host, Target},
};
use build_history::BuildHistory;
use exit_separation::ExitSeparation;
use gone::Gone;
use pooled::{Pooled, PooledStage};
use requests::{Request, Requests};

pub use isolation::Isolation;

/// One stream or RESOLVE of the client; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientStream(pub u64);

/// The key of a circuit of the pool, from the start of its build to its end; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct PooledCircuitKey(u64);

/// Why a stream ended or was never opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StreamFailure {
    /// The reason of [`StreamEvent::Closed`].
    #[error("{0}")]
    Ended(EndReason),
    /// The client has the maximum number of requests and streams.
    #[error("the client has the maximum number of open streams; close some")]
    LimitReached,
    /// No consensus arrived in time.
    #[error("the client has no consensus yet; check that a directory can be reached")]
    NoConsensus,
    /// The consensus has expired and no newer one was available. An expired consensus is never used.
    #[error("the consensus has expired and no directory has a newer one; check the clock and the directories")]
    ConsensusExpired,
    /// The consensus has no path to that target.
    #[error(transparent)]
    NoPath(#[from] PathError),
    /// The target is a name or address of a local network, or a reserved name, and is sent to no exit.
    #[error(
        "the host is on a local network or has a reserved name, so it is not sent to an exit; connect to it without Umbel"
    )]
    NotPublic,
    /// No guard could be reached.
    #[error("no guard can be reached; check that this network allows UDP")]
    GuardUnreachable,
    /// No circuit could be built beyond the guard.
    #[error("no circuit could be built beyond the guard; try again later")]
    NoCircuit,
}

impl StreamFailure {
    /// Its class.
    #[must_use]
    pub const fn class(self) -> ErrorClass {
        match self {
            Self::Ended(EndReason::ResourceLimit) | Self::LimitReached => ErrorClass::Limit,
            Self::Ended(_) => ErrorClass::Peer,
            Self::NoPath(error) => error.class(),
            Self::NotPublic => ErrorClass::Local,
            Self::NoConsensus | Self::ConsensusExpired | Self::GuardUnreachable | Self::NoCircuit => {
                ErrorClass::Network
            }
        }
    }
}

/// An event for the client's owner.
#[derive(Clone, Debug)]
pub enum ClientEvent {
    /// The first circuit is open: requests are served without delay.
    Ready,
    /// A circuit is open.
    CircuitBuilt {
        /// Its relays, the guard first.
        path: Vec<RelayId>,
        /// Time from the start of the build to the open channel; near zero if the channel was open before.
        channel: Duration,
        /// Time of each hop, from its first cell to its answer.
        hops: Vec<Duration>,
    },
    /// The guard sample has changed and should be stored ([`ClientMachine::guards`]).
    GuardsChanged,
    /// The consensus has expired: all requests fail until there is a newer one.
    ConsensusExpired,
    /// An event of a stream or RESOLVE, as its circuit emitted it.
    Stream(ClientStream, StreamEvent),
    /// The stream to an exit that offers the delegated request is open; takes the place of
    /// [`StreamEvent::Connected`].
    Delegated {
        /// The stream.
        stream: ClientStream,
        /// The relays of its circuit, the guard first.
        path: Vec<RelayId>,
        /// Time of each hop when the circuit was built.
        hops: Vec<Duration>,
        /// The exit also carries streams of this client, because no other exit offers the same.
        shared_exit: bool,
    },
    /// The request failed before a stream was opened for it; nothing follows.
    Failed(ClientStream, StreamFailure),
}

/// Limits of a client.
#[derive(Clone, Debug)]
pub struct ClientParameters {
    /// Limits of its channels.
    pub channels: ChannelParameters,
    /// Spare circuits kept ready. Default 2.
    pub spare_circuits: usize,
    /// Cap on circuits. Beyond it, the circuits longest without a stream are closed. Default 512.
    pub circuits: usize,
    /// Cap on circuits that are being built. Default 16.
    pub building: usize,
    /// Cap on requests, open streams included. Default 8,192.
    pub streams: usize,
    /// Time for which a request waits for a circuit. Default 30 s.
    pub circuit_wait: Duration,
    /// Time for which an unused spare circuit is kept. Default 30 min.
    pub spare_age: Duration,
    /// The relay directly behind the guard on every circuit. For tests and measurements only, because it makes a
    /// client distinguishable. Default none.
    pub middle: Option<RelayId>,
}

impl Default for ClientParameters {
    fn default() -> Self {
        Self {
            channels: ChannelParameters::default(),
            spare_circuits: 2,
            circuits: 512,
            building: 16,
            streams: 8192,
            circuit_wait: Duration::from_secs(30),
            spare_age: Duration::from_secs(30 * 60),
            middle: None,
        }
    }
}

/// Interval of the check of circuits' ages.
const SWEEP: Duration = Duration::from_secs(1);

/// The consensus in use, and its expiry.
struct InUse {
    consensus: Arc<Consensus>,
    expires: Instant,
}

/// A client of the overlay.
///
/// **Drain contract.** After any call, call [`LinkMachine::poll_transmit`] until it returns `None`, then
/// [`ClientMachine::poll_event`] until it returns `None`; only then is [`LinkMachine::poll_timeout`] valid. `poll_transmit`
/// does most of the work, so that a batch of events costs little more than one.
pub struct ClientMachine {
    parameters: ClientParameters,
    channels: Channels,
    guards: GuardSample,
    in_use: Option<InUse>,
    /// The volunteers, and the expiry of their list.
    volunteers: Option<(Arc<VolunteerList>, Instant)>,
    gone: Gone,
    expired: bool,
    reported_ready: bool,

    circuits: BTreeMap<PooledCircuitKey, Pooled>,
    next_circuit: u64,
    by_channel: BTreeMap<(ChannelId, CircuitId), PooledCircuitKey>,
    /// Circuits to settle.
    ready: ReadyQueue<PooledCircuitKey>,
    /// The deadline of each circuit.
    timeouts: Deadlines<PooledCircuitKey>,
    builds: BuildHistory,
    /// Builds may be due, because requests or circuits have changed.
    replan: bool,
    sweep_at: Option<Instant>,
    exit_separation: ExitSeparation,
    /// The kind and number of spare circuits for delegated requests.
    spare_delegated: Option<(Delegation, usize)>,

    requests: Requests,
    events: VecDeque<ClientEvent>,
}

impl ClientMachine {
    /// A client without a consensus. `guards` is the stored sample of the last run, or an empty one.
    #[must_use]
    pub fn new(parameters: ClientParameters, guards: GuardSample) -> Self {
        Self {
            channels: Channels::new(LocalRole::Anonymous, parameters.channels.clone()),
            parameters,
            guards,
            in_use: None,
            volunteers: None,
            gone: Gone::default(),
            expired: false,
            reported_ready: false,
            circuits: BTreeMap::new(),
            next_circuit: 0,
            by_channel: BTreeMap::new(),
            ready: ReadyQueue::new(),
            timeouts: Deadlines::default(),
            builds: BuildHistory::default(),
            replan: false,
            sweep_at: None,
            exit_separation: ExitSeparation::default(),
            spare_delegated: None,
            requests: Requests::default(),
            events: VecDeque::new(),
        }
    }

    /// Sets a verified consensus; `wall` is the wall-clock time at `now`. Open circuits stay.
    pub fn set_consensus<R: CryptoRng + ?Sized>(
        &mut self,
        now: Instant,
        wall: WallTime,
        consensus: Arc<Consensus>,
        rng: &mut R,
    ) {
        if self.guards.update(&consensus, rng) {
            self.events.push_back(ClientEvent::GuardsChanged);
        }
        let expires = now.after(consensus.valid_until().since(wall));
        self.in_use = Some(InUse { consensus, expires });
        self.expired = false;
        self.replan = true;
        self.sweep_at.get_or_insert_with(|| now.after(SWEEP));
    }

    /// Sets a verified list of volunteers; `wall` is the wall-clock time at `now`. Open circuits stay.
    pub fn set_volunteers(&mut self, now: Instant, wall: WallTime, list: Arc<VolunteerList>) {
        let expires = now.after(list.valid_until().since(wall));
        self.volunteers = Some((list, expires));
    }

    /// The guard sample, for storage.
    #[must_use]
    pub const fn guards(&self) -> &GuardSample {
        &self.guards
    }

    /// The consensus in use, expired or not.
    #[must_use]
    pub fn consensus(&self) -> Option<&Arc<Consensus>> {
        self.in_use.as_ref().map(|in_use| &in_use.consensus)
    }

    /// Requests a stream to `target`. [`StreamEvent::Connected`], [`StreamEvent::Closed`] or [`ClientEvent::Failed`]
    /// follows; before that nothing can be written.
    pub fn open(&mut self, now: Instant, target: Target, isolation: Isolation) -> ClientStream {
        self.request(now, requests::Wanted::Stream(target), Vec::new(), isolation)
    }

    /// Resolves a name to addresses, or an address to names. [`StreamEvent::Resolved`], [`StreamEvent::Closed`] or
    /// [`ClientEvent::Failed`] follows.
    pub fn resolve(&mut self, now: Instant, host: Host, isolation: Isolation) -> ClientStream {
        self.request(now, requests::Wanted::Resolve(host), Vec::new(), isolation)
    }

    /// Places a delegated request at an exit that offers it and isn't in `not_by`, over a circuit that carries
    /// nothing else. Exits that carry no stream of this client are preferred. [`ClientEvent::Delegated`],
    /// [`StreamEvent::Closed`] or [`ClientEvent::Failed`] follows.
    pub fn delegate(
        &mut self,
        now: Instant,
        delegation: Delegation,
        not_by: Vec<RelayId>,
        isolation: Isolation,
    ) -> ClientStream {
        self.request(now, requests::Wanted::Delegated(delegation), not_by, isolation)
    }

    /// Keeps `count` spare circuits for requests of this kind from now on, and none for other kinds.
    pub fn keep_ready(&mut self, delegation: Delegation, count: usize) {
        self.spare_delegated = Some((delegation, count));
        self.replan = true;
    }

    /// Carries out a command for a stream. [`StreamCommand::Reset`] ends a stream or RESOLVE in any state; the others
    /// need a connected stream.
    pub fn handle_command(&mut self, stream: ClientStream, command: StreamCommand) {
        if let StreamCommand::Reset(reason) = command {
            return self.reset(stream, reason);
        }
        let finishes = matches!(command, StreamCommand::Finish);
        self.with_stream(stream, |streams, id| streams.handle_command(id, command));
        if finishes {
            self.handle_finish(stream);
        }
    }

    /// Takes bytes to send, up to [`Self::room`], and returns how many.
    pub fn write(&mut self, stream: ClientStream, bytes: &[u8]) -> usize {
        self.with_stream(stream, |streams, id| streams.write(id, bytes)).unwrap_or(0)
    }

    /// Bytes that [`Self::write`] takes now; zero before the stream is connected.
    pub fn room(&mut self, stream: ClientStream) -> usize {
        self.with_stream(stream, |streams, id| streams.room(id)).unwrap_or(0)
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<ClientEvent> {
        self.events.pop_front()
    }

    /// The current input of path selection.
    fn relays<'a>(&'a self, now: Instant, doubted: &'a [RelayId]) -> Option<Relays<'a>> {
        let consensus = &self.in_use.as_ref()?.consensus;
        let volunteers = self.volunteers.as_ref().filter(|(_, expires)| now < *expires).map(|(list, _)| &**list);
        Some(Relays { consensus, volunteers, middle: self.parameters.middle, doubted })
    }

    fn handle_finish(&mut self, stream: ClientStream) {
        let over = self.requests.get_mut(stream).is_some_and(|request| {
            request.finished = request.connected;
            request.over()
        });
        if over {
            self.forget(stream);
        }
    }

    fn reset(&mut self, stream: ClientStream, reason: EndReason) {
        let Some(request) = self.requests.remove(stream) else { return };
        let Some((key, id)) = request.placed else { return };
        if let Some(pooled) = self.circuits.get_mut(&key) {
            pooled.streams.remove(&id);
            if let Some(streams) = pooled.exit_streams() {
                streams.handle_command(id, StreamCommand::Reset(reason));
            }
            self.make_ready(key);
        }
    }

    /// Removes a stream whose directions have both ended; pending data is still sent.
    fn forget(&mut self, stream: ClientStream) {
        if let Some((key, id)) = self.requests.remove(stream).and_then(|request| request.placed)
            && let Some(pooled) = self.circuits.get_mut(&key)
        {
            pooled.streams.remove(&id);
        }
    }

    fn request(
        &mut self,
        now: Instant,
        wanted: requests::Wanted,
        not_by: Vec<RelayId>,
        isolation: Isolation,
    ) -> ClientStream {
        let stream = self.requests.next();
        let refused = if self.expired {
            Some(StreamFailure::ConsensusExpired)
        } else if self.requests.len() >= self.parameters.streams {
            Some(StreamFailure::LimitReached)
        } else {
            self.refusal(now, &wanted)
        };
        if let Some(failure) = refused {
            self.events.push_back(ClientEvent::Failed(stream, failure));
        } else {
            let deadline = now.after(self.parameters.circuit_wait);
            self.requests.insert(stream, Request::new(wanted, isolation, not_by), deadline);
            self.replan = true;
        }
        stream
    }

    /// The failure of a request whose host is sent to no exit. Without a consensus, private hosts are judged later.
    fn refusal(&self, now: Instant, wanted: &requests::Wanted) -> Option<StreamFailure> {
        let refused = match wanted.special_host()? {
            SpecialHost::Reserved => true,
            SpecialHost::Private => self.relays(now, &[]).is_some_and(|relays| !relays.take_private_targets()),
        };
        refused.then_some(StreamFailure::NotPublic)
    }

    /// Applies `act` to a connected stream, and marks its circuit for settling.
    fn with_stream<T>(&mut self, stream: ClientStream, act: impl FnOnce(&mut Streams, StreamId) -> T) -> Option<T> {
        let request = self.requests.get(stream).filter(|request| request.connected)?;
        let (key, id) = request.placed?;
        let done = act(self.circuits.get_mut(&key)?.exit_streams()?, id);
        self.make_ready(key);
        Some(done)
    }

    fn make_ready(&mut self, key: PooledCircuitKey) {
        if let Some(pooled) = self.circuits.get_mut(&key) {
            self.ready.push(key, &mut pooled.ready);
        }
    }

    fn handle_channel_events(&mut self, now: Instant, rng: &mut dyn CryptoRng) {
        while let Some(event) = self.channels.poll_event() {
            match event {
                ChannelEvent::Cell { channel, cell } => {
                    let key = cell.circuit().and_then(|circuit| self.by_channel.get(&(channel, circuit))).copied();
                    let Some(key) = key else { continue };
                    if let Some(pooled) = self.circuits.get_mut(&key) {
                        pooled.handle_cell(now, cell, rng);
                        self.make_ready(key);
                    }
                }
                ChannelEvent::Drained { channel, circuit } => {
                    if let Some(key) = self.by_channel.get(&(channel, circuit)).copied() {
                        self.make_ready(key);
                    }
                }
                ChannelEvent::Open { channel, peer: Some(relay), .. } => {
                    self.builds.handle_guard_reached();
                    self.guards.handle_reached(&relay);
                    self.start_circuits(now, channel, &relay, rng);
                }
                // A client accepts no links from others.
                ChannelEvent::Open { channel, peer: None, .. } => self.channels.close(channel),
                ChannelEvent::DialFailed { relay, error } => {
                    tracing::debug!(%error, class = %error.class(), "a guard can't be reached");
                    self.fail_guard(now, &relay);
                }
                ChannelEvent::Closed { channel } => self.handle_channel_closed(channel),
            }
        }
    }

    fn handle_circuit_timeout(&mut self, now: Instant, key: PooledCircuitKey) {
        let Some(pooled) = self.circuits.get_mut(&key) else { return };
        match (&mut pooled.stage, pooled.path.first().map(|relay| relay.identity)) {
            // The dial goes on for a while, but no circuit waits for it.
            (PooledStage::Connecting, Some(guard)) => self.fail_guard(now, &guard),
            (PooledStage::Connecting, None) => {}
            (PooledStage::Circuit { origin, .. }, _) => origin.handle_timeout(now),
        }
        self.make_ready(key);
    }

    fn handle_channel_closed(&mut self, channel: ChannelId) {
        let lost = self.by_channel.iter().filter(|((other, _), _)| *other == channel);
        let lost: Vec<_> = lost.map(|(_, key)| *key).collect();
        for key in lost {
            if let Some(pooled) = self.circuits.get_mut(&key) {
                pooled.handle_channel_closed();
            }
            self.make_ready(key);
        }
    }
}

impl LinkMachine for ClientMachine {
    fn handle_link(&mut self, now: Instant, event: LinkEvent, rng: &mut dyn CryptoRng) {
        // A guard whose link timed out has not answered for seconds: a new dial would only wait once more.
        let silent = match event {
            LinkEvent::Closed { link, reason: LinkClose::TimedOut } => self.channels.peer(ChannelId(link)),
            _ => None,
        };
        self.channels.handle_link(now, event, rng);
        self.handle_channel_events(now, rng);
        if let Some(guard) = silent {
            self.fail_guard(now, &guard);
        }
    }

    fn handle_timeout(&mut self, now: Instant, rng: &mut dyn CryptoRng) {
        self.channels.handle_timeout(now);
        self.handle_channel_events(now, rng);
        while let Some(key) = self.timeouts.pop_due(now) {
            self.handle_circuit_timeout(now, key);
        }
        for stream in self.requests.overdue(now) {
            let failure = match &self.in_use {
                None => StreamFailure::NoConsensus,
                Some(_) if self.builds.is_guard_unreachable() => StreamFailure::GuardUnreachable,
                Some(_) => StreamFailure::NoCircuit,
            };
            self.events.push_back(ClientEvent::Failed(stream, failure));
        }
        if self.sweep_at.is_some_and(|at| at <= now) {
            self.sweep(now);
            self.sweep_at = Some(now.after(SWEEP));
        }
        self.replan |= self.builds.handle_timeout(now);
    }

    fn poll_transmit(&mut self, now: Instant, rng: &mut dyn CryptoRng) -> Option<Transmit> {
        loop {
            while self.replan || !self.ready.is_empty() {
                while let Some(key) = self.ready.pop() {
                    self.settle_circuit(now, key, rng);
                }
                if core::mem::take(&mut self.replan) {
                    self.plan(now, rng);
                    self.handle_channel_events(now, rng);
                }
            }
            let transmit = self.channels.poll_transmit(now);
            self.handle_channel_events(now, rng);
            if transmit.is_some() || (self.ready.is_empty() && !self.replan) {
                return transmit;
            }
        }
    }

    fn poll_timeout(&self) -> Option<Instant> {
        let circuits = self.timeouts.earliest();
        let waiting = self.requests.poll_timeout();
        // A pause between builds matters only to waiting requests; the sweep handles spares.
        let attempts = waiting.and(self.builds.poll_timeout());
        [self.channels.poll_timeout(), circuits, waiting, attempts, self.sweep_at].into_iter().flatten().min()
    }
}

#[cfg(test)]
mod tests;
