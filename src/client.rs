//! The core of a client: streams, circuits and channels to guards, without I/O.
//!
//! [`ClientMachine`] owns the channels to guards, the guard sample and the directory's documents. It drives the pool of
//! circuits and the placement of requests on circuits. Driven as a [`LinkMachine`] by the links, and by
//! [`ClientMachine::open`] and similar calls of the owner. The client builds circuits ahead, places each stream on a
//! circuit of the stream's isolation, and rebuilds failed circuits. A stream that failed before it was connected is
//! retried on another circuit, unless the target was the cause. Governed by `proto/08-paths.md` §5.
//!
//! | module | owns |
//! |---|---|
//! | `pool` | circuits, their deadlines, and the policy of builds; emits events |
//! | `placement` | requests, and the stream that carries each |
//! | `documents` | consensus and volunteers, and their expiry |
//!
//! Threats addressed:
//!
//! - An exit links activities of one person. Streams of different isolations never share a circuit, and a circuit
//!   accepts no new streams ten minutes after its first.
//! - Relays fail circuits until a circuit has a path of their choice. Retries are few, with pauses, and failures beyond
//!   the guard don't change the guard, except for path bias (`proto/08-paths.md` §4).
//!
//! Caps: [`ClientParameters`]. Beyond the caps on requests and circuits, a request fails immediately with
//! [`StreamFailure::LimitReached`].

#[cfg(any(test, fuzzing))]
mod check;
mod documents;
mod event;
mod isolation;
mod parameters;
mod placement;
mod pool;
mod requests;
#[cfg(test)]
mod tests;

use core::time::Duration;
use std::{collections::VecDeque, sync::Arc};

use rand::CryptoRng;

use crate::{
    base::{Instant, LinkClose, LinkEvent, LinkMachine, RelayId, StreamId, Transmit, WallTime},
    channel::{ChannelEvent, ChannelId, Channels, LocalRole},
    delegated::Delegation,
    directory::{Consensus, VolunteerList},
    path::{GuardSample, SpecialHost},
    stream::{StreamCommand, Streams},
    wire::{Host, Target},
};
use documents::Documents;
use placement::{Placement, StreamOutcome};
use pool::{DelegatedCircuit, GuardPair, Pool, PoolEvent, PoolInputs};
use requests::{Demand, RequestKind, StreamPosition};

pub use event::{ClientEvent, StreamFailure};
pub use isolation::Isolation;
pub use parameters::ClientParameters;

/// The identifier of one request of the client: a stream, RESOLVE or delegated request. Never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientStream(pub u64);

impl From<u64> for ClientStream {
    fn from(number: u64) -> Self {
        Self(number)
    }
}

impl From<ClientStream> for u64 {
    fn from(stream: ClientStream) -> Self {
        stream.0
    }
}

/// The key of a circuit of the pool, from the start of its build to its end; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct PooledCircuitKey(u64);

/// Interval at which the ages of circuits and consensus are checked.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);
/// Interval at which the guard sample is stored with changed counts of circuits.
const STORE_INTERVAL: Duration = Duration::from_secs(10 * 60);
/// Interval of the circuits that measure a suspect guard.
const MEASUREMENT_INTERVAL: Duration = Duration::from_secs(60);

/// A client of the overlay.
///
/// **Drain contract.** The contract of [`LinkMachine`] applies. In addition, after [`LinkMachine::poll_transmit`] has
/// returned `None`, call [`ClientMachine::poll_event`] until it returns `None`. [`LinkMachine::handle_batch_end`]
/// handles the circuits' events and places requests, so that a batch of inputs costs little more than one input.
pub struct ClientMachine {
    parameters: ClientParameters,
    channels: Channels,
    guards: GuardSample,
    documents: Documents,
    pool: Pool,
    placement: Placement,
    /// Whether placements or builds may be due, because requests or circuits have changed.
    replan: bool,
    /// The next check of ages, from the first consensus on.
    sweep_at: Option<Instant>,
    /// The time to store the guard sample with its changed counts of circuits.
    store_at: Option<Instant>,
    /// The time of the next measurement of a suspect guard.
    measure_at: Option<Instant>,
    events: VecDeque<ClientEvent>,
}

impl ClientMachine {
    /// A client without a consensus. `guards` is the stored sample of the last run, or an empty one.
    #[must_use]
    pub fn new(parameters: ClientParameters, guards: GuardSample) -> Self {
        Self {
            channels: Channels::new(LocalRole::Client, parameters.channels.clone()),
            parameters,
            guards,
            documents: Documents::default(),
            pool: Pool::default(),
            placement: Placement::default(),
            replan: false,
            sweep_at: None,
            store_at: None,
            measure_at: None,
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
            self.report_guards();
        }
        if self.documents.set_consensus(now, wall, consensus) {
            self.guards.handle_contact(now);
        }
        self.replan = true;
        self.sweep_at.get_or_insert_with(|| now.after(SWEEP_INTERVAL));
    }

    /// Sets a verified list of volunteers; `wall` is the wall-clock time at `now`. Open circuits stay.
    pub fn set_volunteers(&mut self, now: Instant, wall: WallTime, list: Arc<VolunteerList>) {
        if self.documents.set_volunteers(now, wall, list) {
            self.guards.handle_contact(now);
        }
    }

    /// The guard sample, for storage.
    #[must_use]
    pub const fn guards(&self) -> &GuardSample {
        &self.guards
    }

    /// Returns whether circuits were counted since the last [`ClientEvent::GuardsChanged`] and the last call. If so,
    /// the owner stores the guard sample before the client ends.
    pub const fn take_guard_changes(&mut self) -> bool {
        self.store_at = None;
        self.guards.take_counts_changed()
    }

    /// The consensus in use, expired or not.
    #[must_use]
    pub const fn consensus(&self) -> Option<&Arc<Consensus>> {
        self.documents.consensus()
    }

    /// Requests a stream to `target`. [`StreamEvent::Connected`](crate::stream::StreamEvent::Connected),
    /// [`StreamEvent::Closed`](crate::stream::StreamEvent::Closed) or [`ClientEvent::Failed`] follows. Bytes can be
    /// written only after `Connected`.
    pub fn open(&mut self, now: Instant, target: Target, isolation: Isolation) -> ClientStream {
        self.request(now, Demand::new(RequestKind::Stream(target), isolation, Vec::new()))
    }

    /// Resolves a name to addresses, or an address to names.
    /// [`StreamEvent::Resolved`](crate::stream::StreamEvent::Resolved),
    /// [`StreamEvent::Closed`](crate::stream::StreamEvent::Closed) or [`ClientEvent::Failed`] follows.
    pub fn resolve(&mut self, now: Instant, host: Host, isolation: Isolation) -> ClientStream {
        self.request(now, Demand::new(RequestKind::Resolve(host), isolation, Vec::new()))
    }

    /// Places a delegated request at an exit that offers it and isn't in `excluded_exits`, over a circuit that carries
    /// nothing else. Exits that carry no stream of this client are preferred. [`ClientEvent::Delegated`],
    /// [`StreamEvent::Closed`](crate::stream::StreamEvent::Closed) or [`ClientEvent::Failed`] follows.
    pub fn delegate(
        &mut self,
        now: Instant,
        delegation: Delegation,
        excluded_exits: Vec<RelayId>,
        isolation: Isolation,
    ) -> ClientStream {
        self.request(now, Demand::new(RequestKind::Delegated(delegation), isolation, excluded_exits))
    }

    /// Keeps `count` spare circuits for this kind of delegated request from now on, and none for other kinds.
    pub fn keep_ready(&mut self, delegation: Delegation, count: usize) {
        self.pool.keep_ready(delegation, count);
        self.replan = true;
    }

    /// Handles a command for a stream. [`StreamCommand::Reset`] ends a request in any state. The other commands have an
    /// effect only on a connected stream.
    pub fn handle_command(&mut self, stream: ClientStream, command: StreamCommand) {
        let position = match command {
            StreamCommand::Reset(_) => self.placement.remove(stream),
            _ => self.placement.connected(stream),
        };
        let Some(position) = position else { return };
        if matches!(command, StreamCommand::Finish) {
            self.placement.handle_finish(stream);
        }
        self.pool.with_streams(position.circuit, |streams| streams.handle_command(position.stream, command));
    }

    /// Queues bytes to send, up to [`Self::room`], and returns their number.
    pub fn write(&mut self, stream: ClientStream, bytes: &[u8]) -> usize {
        self.with_stream(stream, |streams, id| streams.write(id, bytes)).unwrap_or(0)
    }

    /// Bytes that [`Self::write`] accepts now; zero before the stream is connected.
    pub fn room(&mut self, stream: ClientStream) -> usize {
        self.with_stream(stream, |streams, id| streams.room(id)).unwrap_or(0)
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<ClientEvent> {
        self.events.pop_front()
    }

    /// Adds a request, or fails it immediately.
    fn request(&mut self, now: Instant, demand: Demand) -> ClientStream {
        let stream = self.placement.next();
        let host_failure = self.host_failure(now, &demand);
        let failure = if self.documents.is_expired() {
            Some(StreamFailure::ConsensusExpired)
        } else if self.placement.len() >= self.parameters.max_streams {
            Some(StreamFailure::LimitReached)
        } else {
            host_failure
        };
        if let Some(failure) = failure {
            self.events.push_back(ClientEvent::Failed(stream, failure));
        } else {
            self.placement.insert(stream, demand, now.after(self.parameters.circuit_wait));
            self.replan = true;
        }
        stream
    }

    /// The failure of a request whose host may not be sent to an exit. Without a consensus, private hosts are checked
    /// later.
    fn host_failure(&self, now: Instant, demand: &Demand) -> Option<StreamFailure> {
        let is_refused = match demand.special_host? {
            SpecialHost::Reserved => true,
            SpecialHost::Private => {
                self.documents.relays(now, None).is_some_and(|relays| !relays.allow_private_targets())
            }
        };
        is_refused.then_some(StreamFailure::NotPublic)
    }

    /// Calls `act` with a connected stream.
    fn with_stream<T>(&mut self, stream: ClientStream, act: impl FnOnce(&mut Streams, StreamId) -> T) -> Option<T> {
        let position = self.placement.connected(stream)?;
        self.pool.with_streams(position.circuit, |streams| act(streams, position.stream))
    }

    /// The pool and the placement with the parts of the client that they use; `None` without a consensus.
    fn parts(&mut self, now: Instant) -> Option<(&mut Pool, &mut Placement, PoolInputs<'_>)> {
        let Self { parameters, channels, guards, documents, pool, placement, .. } = self;
        let relays = documents.relays(now, parameters.middle)?;
        Some((pool, placement, PoolInputs { relays, guards, channels, parameters }))
    }

    /// Places waiting requests, and builds missing circuits.
    fn plan(&mut self, now: Instant, rng: &mut dyn CryptoRng) {
        if self.documents.is_expired() {
            return;
        }
        let Some(candidates) = self.parts(now).map(|(pool, ..)| pool.circuit_candidates()) else { return };
        for stream in self.placement.waiting() {
            if let Some(failure) = self.placement.demand(stream).and_then(|demand| self.host_failure(now, demand)) {
                self.placement.remove(stream);
                self.events.push_back(ClientEvent::Failed(stream, failure));
                continue;
            }
            let Some((pool, placement, mut inputs)) = self.parts(now) else { return };
            let Some(demand) = placement.demand(stream) else { continue };
            if !pool.may_serve(now, demand, &candidates, &inputs.relays) {
                continue;
            }
            match placement.place(now, stream, pool, &mut inputs, rng) {
                Ok(None) => {}
                Ok(Some(DelegatedCircuit { path, hop_times, shared_exit })) => {
                    self.events.push_back(ClientEvent::Delegated { stream, path, hop_times, shared_exit });
                }
                Err(failure) => self.events.push_back(ClientEvent::Failed(stream, failure)),
            }
        }
        if let Some((pool, _, mut inputs)) = self.parts(now) {
            pool.keep_spares(now, &mut inputs, rng);
        }
    }

    /// Counts a circuit by its guard and next relay.
    fn count_circuit(&mut self, now: Instant, GuardPair { guard, next }: GuardPair, built: bool) {
        self.guards.handle_circuit(&guard, next, built);
        self.store_at.get_or_insert_with(|| now.after(STORE_INTERVAL));
    }

    /// Emits [`ClientEvent::GuardsChanged`].
    fn report_guards(&mut self) {
        self.take_guard_changes();
        self.events.push_back(ClientEvent::GuardsChanged);
    }

    /// Fails the waiting requests of `isolation`, or all waiting requests if it is `None`.
    fn fail_waiting(&mut self, isolation: Option<Isolation>, failure: StreamFailure) {
        let failed = self.placement.remove_waiting(isolation);
        self.events.extend(failed.into_iter().map(|stream| ClientEvent::Failed(stream, failure)));
    }

    fn handle_pool_events(&mut self, now: Instant, rng: &mut dyn CryptoRng) {
        while let Some((pool, _, mut inputs)) = self.parts(now)
            && let Some(event) = pool.poll_event(now, &mut inputs, rng)
        {
            self.handle_pool_event(now, event);
        }
    }

    fn handle_pool_event(&mut self, now: Instant, event: PoolEvent) {
        match event {
            PoolEvent::Stream(circuit, id, event) => {
                let position = StreamPosition { circuit, stream: id };
                let deadline = now.after(self.parameters.circuit_wait);
                match self.placement.handle_event(now, position, &event, &mut self.pool, deadline) {
                    StreamOutcome::Report(stream) => self.events.push_back(ClientEvent::Stream(stream, event)),
                    StreamOutcome::Retry => self.replan = true,
                    StreamOutcome::Ignore => {}
                }
            }
            PoolEvent::GuardAnswered(guard) => self.guards.handle_answered(&guard),
            PoolEvent::GuardSilent { guard, began } => {
                self.guards.handle_silent(now, &guard, began);
                self.replan = true;
            }
            PoolEvent::GuardFailed(guard) => {
                self.guards.handle_unreachable(now, &guard);
                self.replan = true;
            }
            PoolEvent::Built { first, path, channel_time, hop_times, pair } => {
                if let Some(pair) = pair {
                    self.count_circuit(now, pair, true);
                }
                self.events.push_back(ClientEvent::CircuitBuilt { path, channel_time, hop_times });
                self.events.extend(first.then_some(ClientEvent::Ready));
                self.replan = true;
            }
            PoolEvent::BuildFailed { pair, exhausted } => {
                if let Some(pair) = pair {
                    self.count_circuit(now, pair, false);
                }
                if exhausted.is_some() {
                    self.fail_waiting(exhausted, StreamFailure::NoCircuit);
                }
                self.replan = true;
            }
            PoolEvent::EndedEarly(GuardPair { guard, next }) => self.guards.handle_early_end(&guard, next),
            PoolEvent::Ended(circuit) => {
                self.placement.handle_circuit_ended(circuit);
                self.replan = true;
            }
        }
    }

    fn handle_channel_events(&mut self, now: Instant, rng: &mut dyn CryptoRng) {
        while let Some(event) = self.channels.poll_event() {
            match event {
                ChannelEvent::Cell { channel, cell } => self.pool.handle_cell(now, channel, cell, rng),
                ChannelEvent::QueueLow { channel, circuit } => {
                    self.pool.handle_queue_low(now, channel, circuit, &mut self.channels, rng);
                }
                ChannelEvent::Open { channel, peer: Some(relay), .. } => {
                    let superseded = self.guards.handle_opened(now, &relay);
                    self.replan |= !superseded.is_empty();
                    self.pool.handle_guards_superseded(&superseded);
                    if let Some((pool, _, mut inputs)) = self.parts(now) {
                        pool.handle_channel_open(now, channel, &relay, &mut inputs, rng);
                    }
                }
                // A client accepts no links from others.
                ChannelEvent::Open { channel, peer: None, .. } => self.channels.close(channel),
                ChannelEvent::DialFailed { relay, error } => {
                    tracing::debug!(%error, class = %error.class(), "a guard can't be reached");
                    self.pool.handle_guard_failed(now, relay);
                }
                ChannelEvent::Closed { channel } => self.pool.handle_channel_closed(channel),
            }
        }
    }

    /// Dials unreachable guards again. No circuit waits for these dials.
    fn dial_guards(&mut self, now: Instant) {
        let Some(consensus) = self.documents.consensus().filter(|_| !self.documents.is_expired()) else { return };
        for guard in self.guards.guards_to_dial(consensus, now) {
            // An open channel needs no action: its event was handled when it opened.
            let _ = self.channels.connect(now, &guard.dial_target());
        }
    }

    /// Checks the ages of the consensus and of all circuits, and starts the dials and measurements that are due.
    fn sweep(&mut self, now: Instant, rng: &mut dyn CryptoRng) {
        if self.documents.handle_expiry(now) {
            self.events.push_back(ClientEvent::ConsensusExpired);
            self.fail_waiting(None, StreamFailure::ConsensusExpired);
        }
        self.dial_guards(now);
        if self.store_at.is_some_and(|at| at <= now) && self.take_guard_changes() {
            self.report_guards();
        }
        let expired = self.documents.is_expired();
        let measures = !expired && self.measure_at.is_none_or(|at| at <= now);
        if measures {
            self.measure_at = Some(now.after(MEASUREMENT_INTERVAL));
        }
        if let Some((pool, _, mut inputs)) = self.parts(now) {
            pool.sweep(now, &inputs, expired, rng);
            if measures {
                pool.build_measuring_circuit(now, &mut inputs, rng);
            }
            self.replan = true;
        }
    }
}

impl LinkMachine for ClientMachine {
    fn handle_link(&mut self, now: Instant, event: LinkEvent, rng: &mut dyn CryptoRng) {
        let silent = match event {
            LinkEvent::Closed { link, reason: LinkClose::TimedOut } => self.channels.peer(ChannelId(link)),
            _ => None,
        };
        self.channels.handle_link(now, event, rng);
        self.handle_channel_events(now, rng);
        if let Some(guard) = silent {
            self.pool.handle_guard_silent(guard, now);
        }
    }

    fn handle_timeout(&mut self, now: Instant, rng: &mut dyn CryptoRng) {
        self.channels.handle_timeout(now);
        self.handle_channel_events(now, rng);
        self.replan |= self.pool.handle_timeout(now);
        for stream in self.placement.remove_overdue(now) {
            let failure = match self.documents.consensus() {
                None => StreamFailure::NoConsensus,
                Some(_) if self.pool.is_guard_unreachable() => StreamFailure::GuardUnreachable,
                Some(_) => StreamFailure::NoCircuit,
            };
            self.events.push_back(ClientEvent::Failed(stream, failure));
        }
        if self.sweep_at.is_some_and(|at| at <= now) {
            self.sweep(now, rng);
            self.sweep_at = Some(now.after(SWEEP_INTERVAL));
        }
    }

    fn handle_batch_end(&mut self, now: Instant, rng: &mut dyn CryptoRng) {
        loop {
            self.handle_pool_events(now, rng);
            if !core::mem::take(&mut self.replan) {
                return;
            }
            self.plan(now, rng);
            self.handle_channel_events(now, rng);
        }
    }

    fn poll_transmit(&mut self, now: Instant, rng: &mut dyn CryptoRng) -> Option<Transmit> {
        let transmit = self.channels.poll_transmit(now);
        // Fills the queues that are low.
        self.handle_channel_events(now, rng);
        transmit
    }

    fn poll_timeout(&self) -> Option<Instant> {
        let waiting = self.placement.poll_timeout();
        // The end of a pause between builds is a deadline only if requests wait. The sweep builds spare circuits.
        let pause = waiting.and(self.pool.pause_end());
        let deadlines = [self.channels.poll_timeout(), self.pool.poll_timeout(), waiting, pause, self.sweep_at];
        deadlines.into_iter().flatten().min()
    }
}
