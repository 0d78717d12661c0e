//! The pool of circuits: builds and closes circuits, and finds the circuit for a request.
//!
//! [`Pool`] owns the circuits, their deadlines and the policy of builds. It has no requests: [`Pool::poll_event`]
//! returns the effects on them. [`ClientMachine`](super::ClientMachine) drives it. Cells and channel events come from
//! the client's channels. At the end of a batch of inputs the client calls [`Pool::poll_event`] until it returns
//! `None`.
//!
//! Caps: [`ClientParameters`] for circuits and builds. One delegated request a circuit.

mod build;
mod build_history;
mod build_pauses;
mod build_policy;
mod circuit;
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
use circuit::Pooled;
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
        /// The start of the channel or circuit that the guard left unanswered.
        began: Instant,
    },
    /// A dial of a guard failed, or did not succeed in time.
    GuardFailed(RelayId),
    /// A circuit is open.
    Built {
        /// No circuit was open before.
        first: bool,
        /// Its relays, the guard first.
        path: Vec<RelayId>,
        /// Time from the start of the build to the open channel.
        channel: Duration,
        /// Time of each hop.
        hops: Vec<Duration>,
        /// Its guard and next relay.
        pair: Option<GuardPair>,
    },
    /// A build failed. The guard is reachable.
    BuildFailed {
        /// The guard and the next relay, if the first hop was built.
        behind: Option<GuardPair>,
        /// The isolation whose retries are used up.
        give_up: Option<Isolation>,
    },
    /// A relay ended an open circuit before or soon after its first use.
    EndedEarly(GuardPair),
    /// A circuit has ended. The events of its streams came before.
    Ended(PooledCircuitKey),
}

/// The first two relays of a circuit, by which circuits are counted.
#[derive(Clone, Copy)]
pub(super) struct GuardPair {
    pub(super) guard: RelayId,
    /// The relay behind the guard; `None` for a volunteer.
    pub(super) next: Option<RelayId>,
}

/// The circuit of a delegated request.
pub(super) struct DelegatedCircuit {
    /// Its relays, the guard first.
    pub(super) path: Vec<RelayId>,
    /// Time of each hop.
    pub(super) hops: Vec<Duration>,
    /// The exit also carries streams of this client.
    pub(super) shared_exit: bool,
}

/// All circuits of a client.
#[derive(Default)]
pub(super) struct Pool {
    circuits: BTreeMap<PooledCircuitKey, Pooled>,
    last: u64,
    by_channel: BTreeMap<(ChannelId, CircuitId), PooledCircuitKey>,
    /// Circuits to settle: those that may have events, cells to send or another deadline.
    ready: ReadyQueue<PooledCircuitKey>,
    /// The circuit that is being settled.
    settling: Option<PooledCircuitKey>,
    deadlines: Deadlines<PooledCircuitKey>,
    policy: BuildPolicy,
    lost: LostRelays,
    spares: SpareSchedule,
    /// The kind and number of spare circuits for delegated requests.
    spare_delegated: Option<(Delegation, usize)>,
    delegated_spares: SpareSchedule,
    /// Events apart from those of streams. At most two for each circuit, because every batch of inputs empties it.
    events: VecDeque<PoolEvent>,
}

impl Pool {
    /// A circuit.
    pub(super) fn circuit(&self, key: PooledCircuitKey) -> Option<&Pooled> {
        self.circuits.get(&key)
    }

    /// Whether the last guard that was tried could not be reached.
    pub(super) const fn is_guard_unreachable(&self) -> bool {
        self.policy.history.is_guard_unreachable()
    }

    /// The open circuit for the request: one without a relay of a recently lost circuit first, of these one of its
    /// isolation, then a spare. Of several, the one with the lowest `load`.
    pub(super) fn open_circuit_for(
        &self,
        now: Instant,
        demand: &Demand,
        relays: &Relays<'_>,
        load: impl Fn(PooledCircuitKey) -> usize,
    ) -> Option<PooledCircuitKey> {
        let avoided = self.avoided_exits(now, relays, &demand.purpose(), &demand.refused_by);
        self.circuits
            .iter()
            .filter(|(key, circuit)| !demand.refused_on.contains(key) && circuit.is_open())
            .filter(|(_, circuit)| circuit.takes(demand, relays))
            // Streams may still join circuits that already carry some.
            .filter(|(_, circuit)| circuit.has_carried_streams() || circuit.is_permitted_by(&avoided))
            .min_by_key(|(key, circuit)| {
                let has_lost_relay = circuit.path().iter().any(|relay| self.lost.contains(now, &relay.identity));
                (has_lost_relay, circuit.is_spare(), load(**key), **key)
            })
            .map(|(key, _)| *key)
    }

    /// Opens a stream for the request on an open circuit; `None` if the circuit has the maximum number.
    pub(super) fn open_stream(&mut self, now: Instant, key: PooledCircuitKey, demand: &Demand) -> Option<StreamId> {
        let circuit = self.circuits.get_mut(&key)?;
        let id = circuit.open_stream(now, demand)?;
        self.ready.push(key, &mut circuit.ready);
        if let Some(exit) = circuit.exit() {
            self.policy.exit_separation.handle_used(now, exit, circuit.delegation().is_some());
        }
        Some(id)
    }

    /// The circuit `key`, if it is one for a delegated request.
    pub(super) fn delegated_circuit(&self, now: Instant, key: PooledCircuitKey) -> Option<DelegatedCircuit> {
        let circuit = self.circuits.get(&key).filter(|circuit| circuit.delegation().is_some())?;
        let is_exit = |other: Option<RelayId>| other == circuit.exit();
        let carried = self.policy.exit_separation.avoided(now, true).any(|exit| is_exit(Some(exit)));
        let shared_exit = carried || self.carrying_exits().any(|exit| is_exit(Some(exit)));
        Some(DelegatedCircuit { path: circuit.relays(), hops: circuit.hop_times().to_vec(), shared_exit })
    }

    /// Calls `act` with the streams at the exit of an open circuit.
    pub(super) fn with_streams<T>(&mut self, key: PooledCircuitKey, act: impl FnOnce(&mut Streams) -> T) -> Option<T> {
        let circuit = self.circuits.get_mut(&key)?;
        let done = act(circuit.exit_streams()?);
        self.ready.push(key, &mut circuit.ready);
        Some(done)
    }

    /// A stream of the circuit has ended.
    pub(super) fn handle_stream_ended(&mut self, now: Instant, key: PooledCircuitKey) {
        if let Some(circuit) = self.circuits.get_mut(&key) {
            circuit.handle_stream_ended(now);
        }
    }

    /// Keeps `count` spare circuits for requests of this kind from now on, and none for other kinds.
    pub(super) fn keep_ready(&mut self, delegation: Delegation, count: usize) {
        let kept = self.spare_delegated.replace((delegation, count));
        if kept.map(|(delegation, _)| delegation)
            != self.spare_delegated.as_ref().map(|(delegation, _)| delegation.clone())
        {
            self.delegated_spares = SpareSchedule::default();
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
        // A dial for which no circuit waits delays no build.
        if !waiting.is_empty() {
            self.policy.history.handle_guard_failed(now, guard);
        }
        for key in waiting {
            self.remove(key);
        }
        self.events.push_back(PoolEvent::GuardFailed(guard));
    }

    /// The guard left a channel or circuit unanswered that began at `began`.
    pub(super) fn handle_guard_silent(&mut self, guard: RelayId, began: Instant) {
        self.events.push_back(PoolEvent::GuardSilent { guard, began });
    }

    /// A guard that precedes `guards` is usable again: unused circuits through these are replaced.
    pub(super) fn handle_superseded(&mut self, guards: &[RelayId]) {
        for guard in guards {
            for key in self.connecting_to(guard) {
                self.remove(key);
            }
        }
        let through = |circuit: &Pooled| circuit.guard().is_some_and(|guard| guards.contains(&guard));
        let mut closed = Vec::new();
        for (key, circuit) in self.circuits.iter_mut().filter(|(_, circuit)| circuit.is_spare() && through(circuit)) {
            // A circuit that is being built closes once it is open.
            circuit.retire();
            if circuit.is_idle() {
                closed.push(*key);
            }
        }
        for key in closed {
            self.close(key);
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

    /// The channel's queue of a circuit is low: sends more cells.
    pub(super) fn handle_queue_low(
        &mut self,
        now: Instant,
        channel: ChannelId,
        circuit: CircuitId,
        channels: &mut Channels,
        rng: &mut dyn CryptoRng,
    ) {
        if let Some(key) = self.by_channel.get(&(channel, circuit)).copied() {
            self.send_messages(now, key, channels, rng);
            self.make_ready(key);
        }
    }

    /// Handles expired deadlines; returns whether a build may be due.
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
        let spare = self.spares.handle_timeout(now) | self.delegated_spares.handle_timeout(now);
        self.policy.history.handle_timeout(now) | spare
    }

    /// The earliest deadline of a circuit, or the time of the next build of a spare.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let deadlines = [self.deadlines.earliest(), self.spares.poll_timeout(), self.delegated_spares.poll_timeout()];
        deadlines.into_iter().flatten().min()
    }

    /// The earliest end of a pause between builds.
    pub(super) fn pause_end(&self) -> Option<Instant> {
        self.policy.history.poll_timeout()
    }

    /// The next event. Settles the circuits with changes, one after the other: handles the circuit's events, and fills
    /// its channel's queue, until neither remains.
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
            match self.circuits.get_mut(&key).and_then(Pooled::poll_event) {
                Some(event) => {
                    self.settling = Some(key);
                    if let Some(event) = self.handle_circuit_event(now, key, event, inputs, rng) {
                        return Some(event);
                    }
                }
                None if self.send_messages(now, key, inputs.channels, rng) => self.settling = Some(key),
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

    /// Moves cells to the channel while its queue for the circuit is short; returns whether any were moved.
    fn send_messages(
        &mut self,
        now: Instant,
        key: PooledCircuitKey,
        channels: &mut Channels,
        rng: &mut dyn CryptoRng,
    ) -> bool {
        let Some((channel, origin)) = self.circuits.get_mut(&key).and_then(Pooled::origin_mut) else { return false };
        let room = QUEUE_HIGH.saturating_sub(channels.queued(channel, origin.circuit()));
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

    /// A circuit has neither events nor cells to send.
    fn handle_settled(&mut self, key: PooledCircuitKey) {
        let Some(circuit) = self.circuits.get_mut(&key) else { return };
        if circuit.is_spent() {
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
        match built {
            1 => {
                self.policy.history.handle_guard_reached();
                Some(PoolEvent::GuardAnswered(guard))
            }
            2 => {
                if circuit.is_volunteer(1) {
                    self.policy.gone_reports.handle_answer(now, guard, false);
                }
                None
            }
            _ => None,
        }
    }

    fn handle_built(&mut self, key: PooledCircuitKey) -> Option<PoolEvent> {
        let circuit = self.circuits.get_mut(&key)?;
        let channel = circuit.handle_built();
        let first = self.policy.history.handle_built(circuit.isolation(), circuit.hop_times());
        let (path, pair, hops) = (circuit.relays(), circuit.guard_pair(), circuit.hop_times().to_vec());
        Some(PoolEvent::Built { first, path, channel, hops, pair })
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
        if by_relay && circuit.is_unproved(now) {
            self.events.extend(circuit.guard_pair().map(PoolEvent::EndedEarly));
        }
        if let Some((channel, origin)) = circuit.origin_mut() {
            // DESTROY is sent however full the queue is.
            if let Some(destroy) = origin.poll_cell(now, rng) {
                let _ = inputs.channels.send(channel, destroy);
            }
            self.by_channel.remove(&(channel, origin.circuit()));
            inputs.channels.forget_circuit(now, channel, origin.circuit());
        }
        let (class, hops) = (error.class(), circuit.hop_times().len());
        match class {
            ErrorClass::Bug => tracing::error!(%error, "a circuit has ended after an internal error"),
            _ => tracing::debug!(%error, %class, hops, "a circuit has ended"),
        }
        if !circuit.was_open() {
            self.handle_unbuilt(now, &circuit, error, inputs.channels);
        } else if class != ErrorClass::Local {
            self.lost.handle_lost(now, circuit.relays());
        }
        PoolEvent::Ended(key)
    }

    /// Retires circuits by age, unlisted relays, or if the consensus has `expired`. Closes retired ones without a
    /// stream.
    pub(super) fn sweep(&mut self, now: Instant, inputs: &PoolInputs<'_>, expired: bool) {
        self.policy.exit_separation.sweep(now);
        let consensus = inputs.relays.consensus;
        let used_limit = Duration::from_secs(consensus.parameters().circuit_age());
        let unused_limit = inputs.parameters.spare_age;
        let mut closed = Vec::new();
        for (key, circuit) in &mut self.circuits {
            if expired || circuit.is_too_old(now, used_limit, unused_limit) || !circuit.is_listed(consensus) {
                circuit.retire();
            }
            if circuit.is_retired() && circuit.is_idle() {
                closed.push(*key);
            }
        }
        for key in closed {
            self.close(key);
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

    fn make_ready(&mut self, key: PooledCircuitKey) {
        if let Some(circuit) = self.circuits.get_mut(&key) {
            self.ready.push(key, &mut circuit.ready);
        }
    }

    fn connecting_to(&self, relay: &RelayId) -> Vec<PooledCircuitKey> {
        self.circuits.iter().filter(|(_, circuit)| circuit.is_connecting_to(relay)).map(|(key, _)| *key).collect()
    }

    /// The exits of circuits that carry streams, or have carried some.
    fn carrying_exits(&self) -> impl Iterator<Item = RelayId> {
        self.circuits.values().filter(|circuit| circuit.has_carried_streams()).filter_map(Pooled::exit)
    }

    fn avoided_exits(
        &self,
        now: Instant,
        relays: &Relays<'_>,
        purpose: &Purpose,
        refused_by: &[RelayId],
    ) -> Vec<RelayId> {
        self.policy.avoided_exits(now, relays, purpose, refused_by, self.carrying_exits())
    }

    fn remove(&mut self, key: PooledCircuitKey) -> Option<Pooled> {
        self.deadlines.remove(key);
        self.circuits.remove(&key)
    }
}

#[cfg(test)]
impl Pool {
    pub(super) fn circuits(&self) -> impl Iterator<Item = (PooledCircuitKey, &Pooled)> {
        self.circuits.iter().map(|(key, circuit)| (*key, circuit))
    }

    pub(super) fn circuit_mut(&mut self, key: PooledCircuitKey) -> Option<&mut Pooled> {
        self.circuits.get_mut(&key)
    }

    /// The number of builds since the start.
    pub(super) const fn begun(&self) -> u64 {
        self.last
    }

    /// Counts a failed build of a spare circuit, which starts a pause.
    pub(super) fn pause_builds(&mut self, now: Instant) {
        self.policy.history.handle_failed(now, None, now, None);
    }

    /// A circuit over `path` was lost.
    pub(super) fn handle_lost(&mut self, now: Instant, path: Vec<RelayId>) {
        self.lost.handle_lost(now, path);
    }

    /// Guards that no volunteer may follow.
    pub(super) fn guards_without_volunteers(&self, now: Instant) -> Vec<RelayId> {
        self.policy.gone_reports.guards_without_volunteers(now)
    }
}
