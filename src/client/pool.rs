//! The pool of circuits: builds and closes circuits, and finds the circuit for a request.
//!
//! [`Pool`] owns the circuits, their deadlines and the policy of builds. The client owns the requests:
//! [`Pool::poll_event`] returns the events that concern them. Driven by [`ClientMachine`](super::ClientMachine), which
//! passes cells and events of the channels. At the end of a batch of inputs the client calls [`Pool::poll_event`] until
//! it returns `None`.
//!
//! Caps: [`ClientParameters`] for circuits and builds; one delegated request for each circuit built for such a request.
//!
//! Threat: relays of two circuits recognise that the circuits belong to one client. No event of one isolation ends a
//! circuit of another, or changes the path or the timeouts of another's build. An event of the whole client ends each
//! circuit at a separate random time (`circuit_ends`). Isolations share the history of the guard's hop, the rate of
//! builds (`build_rate`) and the cap on circuits.

mod avoided_relays;
mod build;
mod build_history;
mod build_pauses;
mod build_policy;
mod build_rate;
mod candidates;
#[cfg(any(test, fuzzing))]
mod check;
mod circuit;
mod circuit_ends;
mod exit_separation;
mod gone_reports;
mod lost_relays;
mod spare_schedule;

use core::time::Duration;
use std::collections::{BTreeMap, VecDeque};

use rand::CryptoRng;

use super::{ClientParameters, Isolation, PooledCircuitKey, requests::Demand};
use crate::{
    base::{CircuitId, Deadlines, ErrorClass, Instant, ReadyQueue, RelayId, StreamId},
    channel::{ChannelId, Channels, QUEUE_HIGH},
    circuit::{CircuitError, CircuitEvent},
    delegated::Delegation,
    path::{GuardSample, Purpose, Relays},
    stream::{StreamEvent, Streams},
    wire::Cell,
};
use build_policy::BuildPolicy;
use build_rate::BuildRate;
use circuit::PooledCircuit;
use circuit_ends::CircuitEnds;
use lost_relays::LostRelays;
use spare_schedule::SpareSchedule;

/// The parts of the client that the pool uses.
pub(super) struct PoolInputs<'a> {
    pub(super) relays: Relays<'a>,
    pub(super) guards: &'a GuardSample,
    pub(super) channels: &'a mut Channels,
    pub(super) parameters: &'a ClientParameters,
}

/// An event of the pool, for the client.
pub(super) enum PoolEvent {
    /// An event of a stream at the exit of a circuit.
    Stream(PooledCircuitKey, StreamId, StreamEvent),
    /// A guard built the first hop of a circuit.
    GuardAnswered(RelayId),
    /// A guard no longer answers.
    GuardSilent {
        /// The guard.
        guard: RelayId,
        /// The start of the circuit that the guard did not answer, or the time at which the link to the guard timed
        /// out.
        began: Instant,
    },
    /// A dial of a guard failed or timed out.
    GuardFailed(RelayId),
    /// A circuit is open.
    Built {
        /// Whether no circuit was built before.
        first: bool,
        /// The circuit's relays, the guard first.
        path: Vec<RelayId>,
        /// Time from the start of the build to the open channel.
        channel_time: Duration,
        /// Build time of each hop.
        hop_times: Vec<Duration>,
        /// The guard and the next relay.
        pair: Option<GuardPair>,
    },
    /// A build failed. The guard is reachable.
    BuildFailed {
        /// The guard and the next relay, if the first hop was built and the channel is open.
        pair: Option<GuardPair>,
        /// The isolation of the build, if the isolation's retries are used up.
        exhausted: Option<Isolation>,
    },
    /// A relay ended an open circuit before or soon after its first use.
    EndedEarly(GuardPair),
    /// A circuit has ended. The events of its streams have been returned before.
    Ended(PooledCircuitKey),
}

/// The first two relays of a circuit, by which circuits are counted.
#[derive(Clone, Copy)]
pub(super) struct GuardPair {
    pub(super) guard: RelayId,
    /// The relay behind the guard; `None` on a path with a volunteer.
    pub(super) next: Option<RelayId>,
}

/// The circuit of a delegated request.
pub(super) struct DelegatedCircuit {
    /// The circuit's relays, the guard first.
    pub(super) path: Vec<RelayId>,
    /// Build time of each hop.
    pub(super) hop_times: Vec<Duration>,
    /// Whether the exit also carries streams of this client, or did so recently.
    pub(super) shared_exit: bool,
}

/// All circuits of a client.
#[derive(Default)]
pub(super) struct Pool {
    circuits: BTreeMap<PooledCircuitKey, PooledCircuit>,
    build_rate: BuildRate,
    /// The last key, which is also the number of builds since the start.
    last_key: u64,
    by_channel: BTreeMap<(ChannelId, CircuitId), PooledCircuitKey>,
    /// Circuits to settle: they may have events, cells to send or a changed deadline.
    ready: ReadyQueue<PooledCircuitKey>,
    /// The circuit that is being settled.
    settling: Option<PooledCircuitKey>,
    deadlines: Deadlines<PooledCircuitKey>,
    /// The scheduled ends of circuits without a stream.
    ends: CircuitEnds,
    policy: BuildPolicy,
    lost_relays: LostRelays,
    /// The schedule of spare circuits for streams.
    stream_spare_schedule: SpareSchedule,
    /// The kind and number of spare circuits that are kept for delegated requests.
    kept_delegated: Option<(Delegation, usize)>,
    /// The schedule of spare circuits for delegated requests.
    delegated_spare_schedule: SpareSchedule,
    /// Events except those of streams. At most two for each circuit, because the client empties the queue after each
    /// batch of inputs.
    events: VecDeque<PoolEvent>,
}

impl Pool {
    /// The circuit with this key.
    pub(super) fn circuit(&self, key: PooledCircuitKey) -> Option<&PooledCircuit> {
        self.circuits.get(&key)
    }

    /// Whether the last dialled guard could not be reached.
    pub(super) const fn is_guard_unreachable(&self) -> bool {
        self.policy.history.is_guard_unreachable()
    }

    /// The open circuit for the request, by these criteria in order:
    /// 1. Its relays were in no circuit that the isolation of the request recently lost.
    /// 2. The isolation already uses it, so it isn't a spare circuit.
    /// 3. It has the lowest `load`.
    pub(super) fn open_circuit_for(
        &self,
        now: Instant,
        demand: &Demand,
        relays: &Relays<'_>,
        load: impl Fn(PooledCircuitKey) -> usize,
    ) -> Option<PooledCircuitKey> {
        let mut circuits = self
            .circuits
            .iter()
            .filter(|(key, circuit)| !demand.refused_on.contains(key) && circuit.is_open())
            .filter(|(_, circuit)| circuit.fits(demand, relays))
            .peekable();
        // Without a candidate, returns before `avoided_exits`, which may iterate over all exits for each waiting
        // request.
        circuits.peek()?;
        let avoided = self.avoided_exits(now, relays, &demand.purpose(), &demand.refused_by);
        circuits
            // A circuit that has carried streams accepts more, even if its exit is now avoided.
            .filter(|(_, circuit)| circuit.has_carried_streams() || circuit.is_permitted_by(&avoided))
            .min_by_key(|(key, circuit)| {
                let is_lost = |relay| self.lost_relays.contains(now, demand.isolation, relay);
                let has_lost_relay = circuit.path().iter().any(|relay| is_lost(relay.identity));
                (has_lost_relay, circuit.is_spare(), load(**key), **key)
            })
            .map(|(key, _)| *key)
    }

    /// Opens a stream for the request on an open circuit; `None` if the circuit has the maximum number of streams.
    pub(super) fn open_stream(&mut self, now: Instant, key: PooledCircuitKey, demand: &Demand) -> Option<StreamId> {
        let circuit = self.circuits.get_mut(&key)?;
        let id = circuit.open_stream(now, demand)?;
        self.ends.cancel(key);
        self.ready.push(key, &mut circuit.ready);
        if let Some(exit) = circuit.exit() {
            self.policy.exit_separation.handle_used(now, exit, circuit.delegation().is_some());
        }
        Some(id)
    }

    /// The circuit `key`, if it was built for a delegated request.
    pub(super) fn delegated_circuit(&self, now: Instant, key: PooledCircuitKey) -> Option<DelegatedCircuit> {
        let circuit = self.circuits.get(&key).filter(|circuit| circuit.delegation().is_some())?;
        let is_exit = |other: RelayId| Some(other) == circuit.exit();
        let carried_recently = self.policy.exit_separation.avoided(now, true).any(is_exit);
        let shared_exit = carried_recently || self.carrying_exits().any(is_exit);
        Some(DelegatedCircuit { path: circuit.relays(), hop_times: circuit.hop_times().to_vec(), shared_exit })
    }

    /// Calls `act` with the streams at the exit of an open circuit.
    pub(super) fn with_streams<T>(&mut self, key: PooledCircuitKey, act: impl FnOnce(&mut Streams) -> T) -> Option<T> {
        let circuit = self.circuits.get_mut(&key)?;
        let result = act(circuit.last_hop_streams()?);
        self.ready.push(key, &mut circuit.ready);
        Some(result)
    }

    /// A stream of the circuit has ended.
    pub(super) fn handle_stream_ended(&mut self, now: Instant, key: PooledCircuitKey) {
        if let Some(circuit) = self.circuits.get_mut(&key) {
            circuit.handle_stream_ended(now);
        }
    }

    /// Keeps `count` spare circuits for this kind of delegated request from now on, and none for other kinds.
    pub(super) fn keep_ready(&mut self, delegation: Delegation, count: usize) {
        let previous = self.kept_delegated.replace((delegation, count));
        if previous.map(|(delegation, _)| delegation)
            != self.kept_delegated.as_ref().map(|(delegation, _)| delegation.clone())
        {
            self.delegated_spare_schedule = SpareSchedule::default();
        }
    }

    /// A channel to `relay` is open: starts the circuits that waited for it.
    pub(super) fn handle_channel_open(
        &mut self,
        now: Instant,
        channel: ChannelId,
        relay: &RelayId,
        inputs: &mut PoolInputs<'_>,
        rng: &mut dyn CryptoRng,
    ) {
        self.policy.history.handle_guard_reached();
        for key in self.connecting_to(relay) {
            self.start(now, key, channel, inputs, rng);
        }
    }

    /// A channel has closed, and its circuits with it.
    pub(super) fn handle_channel_closed(&mut self, channel: ChannelId) {
        for (_, key) in self.by_channel.iter().filter(|((other, _), _)| *other == channel) {
            if let Some(circuit) = self.circuits.get_mut(key) {
                circuit.handle_channel_closed();
                self.ready.push(*key, &mut circuit.ready);
            }
        }
    }

    /// The guard can't be reached. Circuits no longer wait for a channel to it.
    pub(super) fn handle_guard_failed(&mut self, now: Instant, guard: RelayId) {
        let waiting = self.connecting_to(&guard);
        // Only failed dials for which circuits wait count towards a pause in builds.
        if !waiting.is_empty() {
            self.policy.history.handle_guard_failed(now, guard);
        }
        for key in waiting {
            self.remove(key);
        }
        self.events.push_back(PoolEvent::GuardFailed(guard));
    }

    /// The guard did not answer a circuit that began at `began`, or the link to the guard timed out at that time.
    pub(super) fn handle_guard_silent(&mut self, guard: RelayId, began: Instant) {
        self.events.push_back(PoolEvent::GuardSilent { guard, began });
    }

    /// A guard that precedes `guards` is usable again. Retires spare circuits through `guards`, so that new ones
    /// replace them. The next [`Self::sweep`] sets the end of each.
    pub(super) fn handle_guards_superseded(&mut self, guards: &[RelayId]) {
        for guard in guards {
            for key in self.connecting_to(guard) {
                self.remove(key);
            }
        }
        let through = |circuit: &PooledCircuit| circuit.guard().is_some_and(|guard| guards.contains(&guard));
        for circuit in self.circuits.values_mut().filter(|circuit| circuit.is_spare() && through(circuit)) {
            circuit.retire();
        }
    }

    /// Handles a cell of a channel. Cells of unknown circuits are dropped.
    pub(super) fn handle_cell(&mut self, now: Instant, channel: ChannelId, cell: Cell, rng: &mut dyn CryptoRng) {
        let key = cell.circuit().and_then(|circuit| self.by_channel.get(&(channel, circuit))).copied();
        if let Some(key) = key
            && let Some(circuit) = self.circuits.get_mut(&key)
        {
            circuit.handle_cell(now, cell, rng);
            self.ready.push(key, &mut circuit.ready);
        }
    }

    /// The channel's queue for a circuit is low. Sends more cells.
    pub(super) fn handle_queue_low(
        &mut self,
        now: Instant,
        channel: ChannelId,
        circuit: CircuitId,
        channels: &mut Channels,
        rng: &mut dyn CryptoRng,
    ) {
        if let Some(key) = self.by_channel.get(&(channel, circuit)).copied() {
            self.send_cells(now, key, channels, rng);
            self.make_ready(key);
        }
    }

    /// Handles expired deadlines. Returns whether a build may be due.
    pub(super) fn handle_timeout(&mut self, now: Instant) -> bool {
        while let Some(key) = self.deadlines.pop_due(now) {
            let Some(circuit) = self.circuits.get_mut(&key) else { continue };
            if let Some((_, origin)) = circuit.origin_mut() {
                origin.handle_timeout(now);
                self.ready.push(key, &mut circuit.ready);
            } else if let Some(guard) = circuit.guard() {
                // The dial continues, but no circuit waits for it.
                self.handle_guard_failed(now, guard);
            }
        }
        while let Some(key) = self.ends.pop_due(now) {
            if self.circuits.get(&key).is_some_and(PooledCircuit::is_idle) {
                self.close(key);
            }
        }
        let spare = self.stream_spare_schedule.handle_timeout(now) | self.delegated_spare_schedule.handle_timeout(now);
        self.policy.history.handle_timeout(now) | self.build_rate.handle_timeout(now) | spare
    }

    /// The earliest deadline or end of a circuit, or build of a spare circuit.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let circuits = self.deadlines.earliest().into_iter().chain(self.ends.poll_timeout());
        let spares =
            self.stream_spare_schedule.poll_timeout().into_iter().chain(self.delegated_spare_schedule.poll_timeout());
        circuits.chain(spares).min()
    }

    /// The earliest time at which a pause between builds ends, or at which the build rate admits a build.
    pub(super) fn pause_end(&self) -> Option<Instant> {
        [self.policy.history.poll_timeout(), self.build_rate.poll_timeout()].into_iter().flatten().min()
    }

    /// The next event. Settles the changed circuits one after the other: handles the circuit's events and moves its
    /// cells to the channel, until there are none or the channel's queue is full.
    pub(super) fn poll_event(
        &mut self,
        now: Instant,
        inputs: &mut PoolInputs<'_>,
        rng: &mut dyn CryptoRng,
    ) -> Option<PoolEvent> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Some(event);
            }
            let key = self.settling.take().or_else(|| self.ready.pop())?;
            match self.circuits.get_mut(&key).and_then(PooledCircuit::poll_event) {
                Some(event) => {
                    self.settling = Some(key);
                    if let Some(event) = self.handle_circuit_event(now, key, event, inputs, rng) {
                        return Some(event);
                    }
                }
                None if self.send_cells(now, key, inputs.channels, rng) => self.settling = Some(key),
                None => self.handle_settled(key),
            }
        }
    }

    fn handle_circuit_event(
        &mut self,
        now: Instant,
        key: PooledCircuitKey,
        event: CircuitEvent,
        inputs: &mut PoolInputs<'_>,
        rng: &mut dyn CryptoRng,
    ) -> Option<PoolEvent> {
        match event {
            CircuitEvent::Stream(_, stream, event) => Some(PoolEvent::Stream(key, stream, event)),
            CircuitEvent::HopBuilt { elapsed, .. } => self.handle_hop_built(now, key, elapsed),
            CircuitEvent::Built => self.handle_built(key),
            CircuitEvent::Gone { hop } => {
                self.handle_gone(now, key, hop, inputs, rng);
                None
            }
            CircuitEvent::Closed(error) => Some(self.handle_ended(now, key, error, inputs, rng)),
        }
    }

    /// Moves cells to the channel while the channel's queue for the circuit is short. Returns whether cells were moved.
    fn send_cells(
        &mut self,
        now: Instant,
        key: PooledCircuitKey,
        channels: &mut Channels,
        rng: &mut dyn CryptoRng,
    ) -> bool {
        let Some((channel, origin)) = self.circuits.get_mut(&key).and_then(PooledCircuit::origin_mut) else {
            return false;
        };
        let room = QUEUE_HIGH.saturating_sub(channels.queued_of(channel, origin.circuit()));
        for sent in 0..room {
            let Some(cell) = origin.poll_cell(now, rng) else { return sent > 0 };
            if channels.send(channel, cell).is_err() {
                // The queue's cap is far above [`QUEUE_HIGH`].
                origin.close();
                return true;
            }
        }
        room > 0
    }

    /// A circuit has neither events nor cells to send. Closes a circuit whose delegated request has ended, or sets the
    /// deadline.
    fn handle_settled(&mut self, key: PooledCircuitKey) {
        let Some(circuit) = self.circuits.get_mut(&key) else { return };
        if circuit.is_done() {
            return self.close(key);
        }
        if let Some((_, origin)) = circuit.origin_mut() {
            match origin.poll_timeout() {
                Some(due) => self.deadlines.set(key, due),
                None => self.deadlines.remove(key),
            }
        }
    }

    fn handle_hop_built(&mut self, now: Instant, key: PooledCircuitKey, elapsed: Duration) -> Option<PoolEvent> {
        let circuit = self.circuits.get_mut(&key)?;
        let (built, guard) = (circuit.handle_hop_built(elapsed), circuit.guard()?);
        if let Some(gateway) = circuit.gateway_of_middle(built.saturating_sub(1)) {
            self.policy.gone_reports.handle_answer(now, gateway, false);
        }
        if built > 1 {
            return None;
        }
        self.policy.history.handle_guard_reached();
        Some(PoolEvent::GuardAnswered(guard))
    }

    fn handle_built(&mut self, key: PooledCircuitKey) -> Option<PoolEvent> {
        let circuit = self.circuits.get_mut(&key)?;
        let channel_time = circuit.handle_built();
        let first = self.policy.history.handle_built(circuit.isolation(), circuit.hop_times());
        let (path, pair, hop_times) = (circuit.relays(), circuit.guard_pair(), circuit.hop_times().to_vec());
        Some(PoolEvent::Built { first, path, channel_time, hop_times, pair })
    }

    /// Removes a circuit that has ended with `error`.
    fn handle_ended(
        &mut self,
        now: Instant,
        key: PooledCircuitKey,
        error: CircuitError,
        inputs: &mut PoolInputs<'_>,
        rng: &mut dyn CryptoRng,
    ) -> PoolEvent {
        let Some(mut circuit) = self.remove(key) else { return PoolEvent::Ended(key) };
        let by_relay = matches!(error, CircuitError::Destroyed) && circuit.has_channel(inputs.channels);
        if by_relay && circuit.is_in_early_use(now) {
            self.events.extend(circuit.guard_pair().map(PoolEvent::EndedEarly));
        }
        if let Some((channel, origin)) = circuit.origin_mut() {
            // DESTROY is sent regardless of the queue's length.
            if let Some(destroy) = origin.poll_cell(now, rng) {
                let _ = inputs.channels.send(channel, destroy);
            }
            self.by_channel.remove(&(channel, origin.circuit()));
            inputs.channels.end_circuit(now, channel, origin.circuit());
        }
        let (class, built_hops) = (error.class(), circuit.hop_times().len());
        match class {
            ErrorClass::Bug => tracing::error!(%error, "a circuit has ended after an internal error"),
            _ => tracing::debug!(%error, %class, hops = built_hops, "a circuit has ended"),
        }
        if !circuit.was_open() {
            self.handle_ended_unbuilt(now, &circuit, error, inputs.channels);
        } else if class != ErrorClass::Local
            && let Some(isolation) = circuit.owner()
        {
            self.lost_relays.handle_lost(now, isolation, circuit.relays());
        }
        PoolEvent::Ended(key)
    }

    /// Retires circuits that are too old, circuits with unlisted relays, and all circuits if the consensus has
    /// `expired`. Sets the ends of circuits without a stream, except spare circuits.
    pub(super) fn sweep(&mut self, now: Instant, inputs: &PoolInputs<'_>, expired: bool, rng: &mut dyn CryptoRng) {
        self.policy.exit_separation.sweep(now);
        let consensus = inputs.relays.consensus;
        let max_use = Duration::from_secs(consensus.parameters().circuit_age());
        let max_spare_age = inputs.parameters.max_spare_age;
        for (key, circuit) in &mut self.circuits {
            if expired || circuit.is_too_old(now, max_use, max_spare_age) || !circuit.is_listed(consensus) {
                circuit.retire();
            }
            if circuit.is_idle() && !circuit.is_spare() {
                self.ends.schedule(now, *key, circuit.is_retired(), rng);
            }
        }
    }

    /// Closes a circuit.
    pub(super) fn close(&mut self, key: PooledCircuitKey) {
        if let Some(circuit) = self.circuits.get_mut(&key) {
            circuit.retire();
            circuit.close();
            self.ready.push(key, &mut circuit.ready);
        }
    }

    /// Queues a circuit to be settled.
    fn make_ready(&mut self, key: PooledCircuitKey) {
        if let Some(circuit) = self.circuits.get_mut(&key) {
            self.ready.push(key, &mut circuit.ready);
        }
    }

    /// The circuits that wait for a channel to `relay`.
    fn connecting_to(&self, relay: &RelayId) -> Vec<PooledCircuitKey> {
        self.circuits.iter().filter(|(_, circuit)| circuit.is_connecting_to(relay)).map(|(key, _)| *key).collect()
    }

    /// The exits of circuits that carry streams, or have carried some.
    fn carrying_exits(&self) -> impl Iterator<Item = RelayId> {
        self.circuits.values().filter(|circuit| circuit.has_carried_streams()).filter_map(PooledCircuit::exit)
    }

    /// The exits to avoid for `purpose`; none if no other exit remains.
    fn avoided_exits(
        &self,
        now: Instant,
        relays: &Relays<'_>,
        purpose: &Purpose,
        refused_by: &[RelayId],
    ) -> Vec<RelayId> {
        self.policy.avoided_exits(now, relays, purpose, refused_by, self.carrying_exits())
    }

    /// Removes a circuit and its deadline.
    fn remove(&mut self, key: PooledCircuitKey) -> Option<PooledCircuit> {
        self.deadlines.remove(key);
        self.ends.cancel(key);
        self.circuits.remove(&key)
    }
}

#[cfg(test)]
impl Pool {
    pub(super) fn circuits(&self) -> impl Iterator<Item = (PooledCircuitKey, &PooledCircuit)> {
        self.circuits.iter().map(|(key, circuit)| (*key, circuit))
    }

    pub(super) fn circuit_mut(&mut self, key: PooledCircuitKey) -> Option<&mut PooledCircuit> {
        self.circuits.get_mut(&key)
    }

    /// The number of builds since the start.
    pub(super) const fn builds(&self) -> u64 {
        self.last_key
    }

    /// Counts a failed build of a spare circuit, which starts a pause.
    pub(super) fn pause_builds(&mut self, now: Instant) {
        self.policy.history.handle_failed(now, None, now, None);
    }

    /// A circuit of `isolation` over `path` was lost.
    pub(super) fn handle_lost(&mut self, now: Instant, isolation: Isolation, path: Vec<RelayId>) {
        self.lost_relays.handle_lost(now, isolation, path);
    }

    /// Records a use of `exit` by a delegated request or a stream.
    pub(super) fn handle_exit_used(&mut self, now: Instant, exit: RelayId, delegated: bool) {
        self.policy.exit_separation.handle_used(now, exit, delegated);
    }

    /// The number of scans of the exits for one that isn't avoided.
    pub(super) fn exit_scans(&self) -> usize {
        self.policy.exit_scans.get()
    }

    /// Gateways after which a path has no volunteer as middle.
    pub(super) fn gateways_without_volunteers(&self, now: Instant) -> Vec<RelayId> {
        self.policy.gone_reports.gateways_without_volunteers(now)
    }
}
