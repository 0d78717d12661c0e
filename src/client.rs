//! The client's core: streams in, circuits beneath, channels at the bottom; no I/O.
//!
//! [`Client`] owns the channels to guards, the pool of circuits and the requests for streams. It is driven as a
//! [`LinkMachine`] from below and by [`Client::open`] and its like from above. It builds circuits ahead of need, puts
//! each stream on a circuit of its isolation, tries a stream elsewhere that was not connected through no fault of its
//! target, and builds anew what fails. Governed by `proto/08-paths.md` §5. Threats addressed: linking what a
//! person does under different isolations (they never share a circuit), or over time (a circuit takes no new streams
//! ten minutes after its first), and relays that fail circuits until one goes where they want it (few tries, with
//! pauses; failures beyond the guard never change the guard).
//!
//! Caps: [`ClientParameters`]; beyond them a request fails at once with `ResourceLimit`.

mod apart;
mod attempts;
mod gone;
mod pool;
mod pooled;
mod requests;
mod settle;

use core::{fmt, net::IpAddr, time::Duration};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use bytes::Bytes;
use rand::CryptoRng;

use crate::{
    base::{CircuitId, Instant, LinkClose, LinkEvent, LinkMachine, RelayId, Transmit, WallTime},
    channel::{ChannelEvent, ChannelId, ChannelParameters, Channels, LocalRole},
    delegated::Delegation,
    directory::{Consensus, VolunteerList},
    path::{GuardSample, PathError, Relays},
    wire::{Answer, EndReason, Host, Target},
};
use apart::Apart;
use attempts::Attempts;
use gone::Gone;
use pooled::{Pooled, PooledId, Stage};
use requests::{Request, Requests};

/// One stream or question of the client; never used again after its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientStream(pub u64);

/// What must not share a circuit with anything else: streams under different keys never do. Prints redacted.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IsolationKey(pub [u8; 32]);

impl fmt::Debug for IsolationKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("IsolationKey([redacted])")
    }
}

/// Why a stream ended, or never came to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StreamFailure {
    /// The exit said so; or the circuit was lost after data could flow (`Reset`); or a cap of the client is reached
    /// (`ResourceLimit`).
    #[error("the stream ended: {0:?}")]
    Ended(EndReason),
    /// There was no consensus in time.
    #[error("there is no consensus yet")]
    NoConsensus,
    /// The consensus has expired and no newer one was had: the client goes nowhere by an old list.
    #[error("the consensus has expired and no directory gave a newer one")]
    ConsensusExpired,
    /// The consensus holds no path to that target.
    #[error(transparent)]
    NoPath(#[from] PathError),
    /// No circuit could be built.
    #[error("no circuit could be built")]
    NoCircuit,
}

/// What the client tells.
#[derive(Clone, Debug)]
pub enum ClientEvent {
    /// The first circuit stands: requests will be served without wait.
    Ready,
    /// A circuit stands.
    CircuitBuilt {
        /// Its relays, the guard first.
        path: Vec<RelayId>,
        /// From the wish for the circuit to the open channel; near zero if it was open before.
        channel: Duration,
        /// What each hop took, from its first cell to its answer.
        hops: Vec<Duration>,
    },
    /// The guard sample has changed and should be kept ([`Client::guards`]).
    GuardsChanged,
    /// The consensus has expired: all requests fail until there is a newer one.
    ConsensusExpired,
    /// The stream is open.
    Connected {
        /// The stream.
        stream: ClientStream,
        /// The address connected to, if the exit told.
        address: Option<IpAddr>,
    },
    /// The request is on its way to an exit that offers it; the stream to that exit is open.
    Delegated {
        /// The stream.
        stream: ClientStream,
        /// The relays of its circuit, the guard first.
        path: Vec<RelayId>,
        /// What each hop took when the circuit was built.
        hops: Vec<Duration>,
        /// The exit carries streams of this client too, for no other offers the same.
        shared_exit: bool,
    },
    /// The answer to a question; nothing follows.
    Resolved {
        /// The question.
        stream: ClientStream,
        /// Seconds for which the answers may be kept.
        ttl: u32,
        /// One or more.
        answers: Vec<Answer>,
    },
    /// Bytes came; tell [`Client::consumed`] when they have been used.
    Data {
        /// The stream.
        stream: ClientStream,
        /// One cell's.
        bytes: Bytes,
    },
    /// The peer has sent all it had: a clean end of its direction.
    Finished {
        /// The stream.
        stream: ClientStream,
    },
    /// There is room again in a send buffer that was more than half full.
    Writable {
        /// The stream.
        stream: ClientStream,
    },
    /// The stream failed; nothing follows. Not given for one reset by this end.
    Closed {
        /// The stream.
        stream: ClientStream,
        /// Why.
        reason: StreamFailure,
    },
}

/// Limits of a client.
#[derive(Clone, Debug)]
pub struct ClientParameters {
    /// Limits of its channels.
    pub channels: ChannelParameters,
    /// Circuits kept ready for whatever comes. Default 2.
    pub spare_circuits: usize,
    /// Circuits at once. Beyond it those longest without a stream give way. Default 512.
    pub circuits: usize,
    /// Circuits under construction at once. Default 16.
    pub building: usize,
    /// Requests at once, open streams included. Default 8,192.
    pub streams: usize,
    /// How long a request waits for a circuit. Default 30 s.
    pub circuit_wait: Duration,
    /// How long a spare circuit is kept unused. Default 30 min.
    pub spare_age: Duration,
    /// What stands right behind the guard on every circuit. For tests and measurements: it makes a client stand out.
    /// Default none.
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

/// How often the ages of circuits are looked at.
const SWEEP: Duration = Duration::from_secs(1);

/// The consensus in use, and until when.
struct InUse {
    consensus: Arc<Consensus>,
    expires: Instant,
}

/// A client of the overlay.
///
/// **Drain contract.** After any call, call [`LinkMachine::poll_transmit`] until it gives `None`, then
/// [`Client::poll_event`] until it gives `None`; [`LinkMachine::poll_timeout`] counts only then. Most of the work is done
/// in `poll_transmit`, so that a batch of events costs little more than one.
pub struct Client {
    parameters: ClientParameters,
    channels: Channels,
    guards: GuardSample,
    in_use: Option<InUse>,
    /// The volunteers, and until when the list counts.
    volunteers: Option<(Arc<VolunteerList>, Instant)>,
    gone: Gone,
    expired: bool,
    ready: bool,

    circuits: BTreeMap<PooledId, Pooled>,
    next_circuit: u64,
    by_channel: BTreeMap<(ChannelId, CircuitId), PooledId>,
    /// Circuits to be settled, each once.
    touched: VecDeque<PooledId>,
    /// When each circuit wants to be called.
    timeouts: BTreeSet<(Instant, PooledId)>,
    attempts: Attempts,
    /// Requests or circuits have changed so that builds may be due.
    replan: bool,
    sweep_at: Option<Instant>,
    apart: Apart,
    /// Circuits to be kept ready for requests of one kind.
    spare_delegated: Option<(Delegation, usize)>,

    requests: Requests,
    events: VecDeque<ClientEvent>,
}

impl Client {
    /// A client without a consensus. `guards` is the sample kept from the last run, or an empty one.
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
            ready: false,
            circuits: BTreeMap::new(),
            next_circuit: 0,
            by_channel: BTreeMap::new(),
            touched: VecDeque::new(),
            timeouts: BTreeSet::new(),
            attempts: Attempts::default(),
            replan: false,
            sweep_at: None,
            apart: Apart::default(),
            spare_delegated: None,
            requests: Requests::default(),
            events: VecDeque::new(),
        }
    }

    /// Takes up a consensus, verified; `wall` is the time of day at `now`. Circuits that stand go on.
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

    /// Takes up a list of volunteers, verified; `wall` is the time of day at `now`. Circuits that stand go on.
    pub fn set_volunteers(&mut self, now: Instant, wall: WallTime, list: Arc<VolunteerList>) {
        let expires = now.after(list.valid_until().since(wall));
        self.volunteers = Some((list, expires));
    }

    /// The guard sample, to be kept.
    #[must_use]
    pub const fn guards(&self) -> &GuardSample {
        &self.guards
    }

    /// The consensus in use, expired or not.
    #[must_use]
    pub fn consensus(&self) -> Option<&Arc<Consensus>> {
        self.in_use.as_ref().map(|in_use| &in_use.consensus)
    }

    /// Wants a stream to `target`. [`ClientEvent::Connected`] or [`ClientEvent::Closed`] follows; until then nothing can
    /// be written.
    pub fn open(&mut self, now: Instant, target: Target, isolation: IsolationKey) -> ClientStream {
        self.request(now, requests::Wanted::Stream(target), Vec::new(), isolation)
    }

    /// Asks about a name (for addresses) or an address (for names). [`ClientEvent::Resolved`] or
    /// [`ClientEvent::Closed`] follows.
    pub fn resolve(&mut self, now: Instant, host: Host, isolation: IsolationKey) -> ClientStream {
        self.request(now, requests::Wanted::Answer(host), Vec::new(), isolation)
    }

    /// Wants a request performed by an exit that offers it, over a circuit that carries nothing else, by none of
    /// `not_by`, and by one that carries no stream of this client as long as there is such. [`ClientEvent::Delegated`] or
    /// [`ClientEvent::Closed`] follows.
    pub fn delegate(
        &mut self,
        now: Instant,
        delegation: Delegation,
        not_by: Vec<RelayId>,
        isolation: IsolationKey,
    ) -> ClientStream {
        self.request(now, requests::Wanted::Delegated(delegation), not_by, isolation)
    }

    /// Keeps `count` circuits ready for requests of this kind from now on, and for no other kind.
    pub fn keep_ready(&mut self, delegation: Delegation, count: usize) {
        self.spare_delegated = Some((delegation, count));
        self.replan = true;
    }

    /// Takes as much of `bytes` to send as there is [`Self::room`] for, and says how much.
    pub fn write(&mut self, now: Instant, stream: ClientStream, bytes: &[u8]) -> usize {
        self.with_stream(stream, |streams, id| streams.write(now, id, bytes)).unwrap_or(0)
    }

    /// Bytes that [`Self::write`] would take now; zero before the stream is connected.
    pub fn room(&mut self, stream: ClientStream) -> usize {
        self.with_stream(stream, |streams, id| streams.room(id)).unwrap_or(0)
    }

    /// Sends no more after what was written; the other direction goes on.
    pub fn finish(&mut self, stream: ClientStream) {
        self.with_stream(stream, |streams, id| streams.finish(id));
        let over = self.requests.get_mut(stream).is_some_and(|request| {
            request.finished = request.connected;
            request.over()
        });
        if over {
            self.forget(stream);
        }
    }

    /// The reader has used `bytes` of what came.
    pub fn consumed(&mut self, stream: ClientStream, bytes: usize) {
        self.with_stream(stream, |streams, id| streams.consumed(id, bytes));
    }

    /// Gives a stream or question up, in whatever state; no event follows.
    pub fn reset(&mut self, stream: ClientStream, reason: EndReason) {
        let Some(request) = self.requests.remove(stream) else { return };
        let Some((circuit, id)) = request.placed else { return };
        if let Some(pooled) = self.circuits.get_mut(&circuit) {
            pooled.streams.remove(&id);
            if let Some(streams) = pooled.exit_streams() {
                streams.reset(id, reason);
            }
            self.touch(circuit);
        }
    }

    /// What happened next.
    pub fn poll_event(&mut self) -> Option<ClientEvent> {
        self.events.pop_front()
    }

    /// What paths are chosen from now.
    fn relays<'a>(&'a self, now: Instant, doubted: &'a [RelayId]) -> Option<Relays<'a>> {
        let consensus = &self.in_use.as_ref()?.consensus;
        let volunteers = self.volunteers.as_ref().filter(|(_, expires)| now < *expires).map(|(list, _)| &**list);
        Some(Relays { consensus, volunteers, middle: self.parameters.middle, doubted })
    }

    /// Both directions of a stream have ended; what is left to send goes out all the same.
    fn forget(&mut self, stream: ClientStream) {
        if let Some((circuit, id)) = self.requests.remove(stream).and_then(|request| request.placed)
            && let Some(pooled) = self.circuits.get_mut(&circuit)
        {
            pooled.streams.remove(&id);
        }
    }

    fn request(
        &mut self,
        now: Instant,
        wanted: requests::Wanted,
        not_by: Vec<RelayId>,
        isolation: IsolationKey,
    ) -> ClientStream {
        let stream = self.requests.next();
        let refused = if self.expired {
            Some(StreamFailure::ConsensusExpired)
        } else if self.requests.len() >= self.parameters.streams {
            Some(StreamFailure::Ended(EndReason::ResourceLimit))
        } else {
            None
        };
        if let Some(reason) = refused {
            self.events.push_back(ClientEvent::Closed { stream, reason });
        } else {
            let deadline = now.after(self.parameters.circuit_wait);
            self.requests.insert(stream, Request::new(wanted, isolation, not_by, deadline));
            self.replan = true;
        }
        stream
    }

    /// Does something with a connected stream, after which its circuit may have something to send.
    fn with_stream<T>(
        &mut self,
        stream: ClientStream,
        act: impl FnOnce(&mut crate::stream::Streams, crate::base::StreamId) -> T,
    ) -> Option<T> {
        let request = self.requests.get(stream).filter(|request| request.connected)?;
        let (circuit, id) = request.placed?;
        let done = act(self.circuits.get_mut(&circuit)?.exit_streams()?, id);
        self.touch(circuit);
        Some(done)
    }

    fn touch(&mut self, circuit: PooledId) {
        if let Some(pooled) = self.circuits.get_mut(&circuit)
            && !pooled.touched
        {
            pooled.touched = true;
            self.touched.push_back(circuit);
        }
    }

    fn handle_channel_events(&mut self, now: Instant, rng: &mut dyn CryptoRng) {
        while let Some(event) = self.channels.poll_event() {
            match event {
                ChannelEvent::Cell { channel, cell } => {
                    let circuit = cell.circuit().and_then(|circuit| self.by_channel.get(&(channel, circuit))).copied();
                    let Some(circuit) = circuit else { continue };
                    if let Some(pooled) = self.circuits.get_mut(&circuit) {
                        pooled.handle_cell(now, cell, rng);
                        self.touch(circuit);
                    }
                }
                ChannelEvent::Drained { channel, circuit } => {
                    if let Some(circuit) = self.by_channel.get(&(channel, circuit)).copied() {
                        self.touch(circuit);
                    }
                }
                ChannelEvent::Open { channel, peer: Some(relay), .. } => {
                    self.attempts.handle_guard_reached();
                    self.guards.handle_reached(&relay);
                    self.start_circuits(now, channel, &relay, rng);
                }
                // A client takes no links of others.
                ChannelEvent::Open { channel, peer: None, .. } => self.channels.close(channel),
                ChannelEvent::DialFailed { relay, error } => {
                    tracing::debug!(%relay, %error, "a guard can't be reached");
                    self.fail_guard(now, &relay);
                }
                ChannelEvent::Closed { channel } => self.handle_channel_closed(channel),
            }
        }
    }

    fn handle_circuit_timeout(&mut self, now: Instant, circuit: PooledId) {
        let Some(pooled) = self.circuits.get_mut(&circuit) else { return };
        pooled.timeout = None;
        match (&mut pooled.stage, pooled.path.first().map(|relay| relay.identity)) {
            // Its dial goes on for a while, but nobody waits for it.
            (Stage::Connecting, Some(guard)) => self.fail_guard(now, &guard),
            (Stage::Connecting, None) => {}
            (Stage::Circuit { origin, .. }, _) => origin.handle_timeout(now),
        }
        self.touch(circuit);
    }

    fn handle_channel_closed(&mut self, channel: ChannelId) {
        let lost = self.by_channel.iter().filter(|((other, _), _)| *other == channel);
        let lost: Vec<_> = lost.map(|(_, circuit)| *circuit).collect();
        for circuit in lost {
            if let Some(pooled) = self.circuits.get_mut(&circuit) {
                pooled.handle_channel_closed();
            }
            self.touch(circuit);
        }
    }
}

impl LinkMachine for Client {
    fn handle_link(&mut self, now: Instant, event: LinkEvent, rng: &mut dyn CryptoRng) {
        // A guard that fell silent has just failed to answer for seconds: dialling it again would only wait once more.
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
        while let Some((due, circuit)) = self.timeouts.first().copied() {
            if due > now {
                break;
            }
            self.timeouts.remove(&(due, circuit));
            self.handle_circuit_timeout(now, circuit);
        }
        for stream in self.requests.overdue(now) {
            let reason = if self.in_use.is_none() { StreamFailure::NoConsensus } else { StreamFailure::NoCircuit };
            self.events.push_back(ClientEvent::Closed { stream, reason });
        }
        if self.sweep_at.is_some_and(|at| at <= now) {
            self.sweep(now);
            self.sweep_at = Some(now.after(SWEEP));
        }
        self.replan |= self.attempts.handle_timeout(now);
    }

    fn poll_transmit(&mut self, now: Instant, rng: &mut dyn CryptoRng) -> Option<Transmit> {
        loop {
            while self.replan || !self.touched.is_empty() {
                while let Some(circuit) = self.touched.pop_front() {
                    self.settle(now, circuit, rng);
                }
                if core::mem::take(&mut self.replan) {
                    self.plan(now, rng);
                    self.handle_channel_events(now, rng);
                }
            }
            let transmit = self.channels.poll_transmit(now);
            self.handle_channel_events(now, rng);
            if transmit.is_some() || (self.touched.is_empty() && !self.replan) {
                return transmit;
            }
        }
    }

    fn poll_timeout(&self) -> Option<Instant> {
        let circuits = self.timeouts.first().map(|(due, _)| *due);
        let waiting = self.requests.poll_timeout();
        // A pause between builds only matters to what waits for a build; the sweep looks after spares.
        let attempts = waiting.and(self.attempts.poll_timeout());
        [self.channels.poll_timeout(), circuits, waiting, attempts, self.sweep_at].into_iter().flatten().min()
    }
}

#[cfg(test)]
mod tests;
