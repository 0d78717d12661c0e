//! The pool of circuits: places requests, builds missing circuits, retires old ones.

use rand::CryptoRng;

use super::{
    ClientEvent, ClientMachine, ClientStream, Isolation, PooledCircuitKey, StreamFailure,
    pooled::{Pooled, PooledStage},
    requests::Wanted,
};
use crate::{
    base::{Counter as _, HopIndex, Instant, RelayId},
    channel::ChannelId,
    circuit::{CircuitError, Origin},
    delegated::Delegation,
    path::{Path, PathError, PathRelay, Purpose, Relays, Requirement, choose, exits, replace},
};

/// Volunteers that a guard may report as gone during one build, before a relay of the consensus takes the position.
const MAX_GONE: u8 = 2;

const fn delegation_of(purpose: &Purpose) -> Option<&Delegation> {
    match purpose {
        Purpose::Delegated(delegation) => Some(delegation),
        Purpose::Streams | Purpose::Target(_) => None,
    }
}

impl ClientMachine {
    /// Places waiting requests and starts missing circuits.
    pub(super) fn plan(&mut self, now: Instant, rng: &mut dyn CryptoRng) {
        if self.in_use.is_none() || self.expired {
            return;
        }
        for stream in self.requests.waiting() {
            let refusal = self.requests.get(stream).and_then(|request| self.refusal(now, &request.wanted));
            if let Some(failure) = refusal {
                self.requests.remove(stream);
                self.events.push_back(ClientEvent::Failed(stream, failure));
            } else if !self.place(now, stream)
                && let Err(failure) = self.provide(now, stream, rng)
            {
                self.requests.remove(stream);
                self.events.push_back(ClientEvent::Failed(stream, failure));
            }
        }
        self.keep_spare(now, &Purpose::Streams, self.parameters.spare_circuits, rng);
        if let Some((delegation, count)) = self.spare_delegated.clone() {
            self.keep_spare(now, &Purpose::Delegated(delegation), count, rng);
        }
    }

    /// Starts the circuits that are missing from `count` spare ones for the purpose.
    fn keep_spare(&mut self, now: Instant, purpose: &Purpose, count: usize, rng: &mut dyn CryptoRng) {
        let delegation = delegation_of(purpose);
        let avoided = self.avoided(now, purpose, &[]);
        let spare =
            |pooled: &&Pooled| pooled.is_spare(delegation) && pooled.exit().is_none_or(|exit| !avoided.contains(&exit));
        let lacking = count.saturating_sub(self.circuits.values().filter(spare).count());
        for _ in 0..lacking {
            if !matches!(self.build(now, purpose.clone(), None, &[], rng), Ok(true)) {
                break;
            }
        }
    }

    /// Exits that `purpose` avoids while an unused exit remains: those with delegated requests, for a stream; those
    /// with streams, for a delegated request. Exits in `refused_by` don't count as remaining, nor do volunteers where
    /// a listed relay offers the same. Otherwise a volunteer that offers it would get the requests of all clients
    /// that use the listed exits for streams.
    fn avoided(&self, now: Instant, purpose: &Purpose, refused_by: &[RelayId]) -> Vec<RelayId> {
        let Some(relays) = self.relays(now, &[]) else { return Vec::new() };
        let delegated = delegation_of(purpose).is_some();
        let mut avoided: Vec<RelayId> = self.exit_separation.avoided(now, delegated).collect();
        if delegated {
            let carrying = self.circuits.values().filter(|pooled| pooled.has_carried_streams());
            avoided.extend(carrying.filter_map(Pooled::exit));
        }
        let free = |exit: RelayId| !avoided.contains(&exit) && !refused_by.contains(&exit);
        let (listed, volunteers): (Vec<_>, Vec<_>) =
            exits(&relays, purpose).into_iter().partition(|exit| matches!(exit, PathRelay::Listed(_)));
        let others = if listed.is_empty() { volunteers } else { listed };
        if others.into_iter().any(|exit| free(exit.identity())) { avoided } else { Vec::new() }
    }

    /// Places a waiting request on an open circuit that suits it: one of its isolation first, then a spare.
    fn place(&mut self, now: Instant, stream: ClientStream) -> bool {
        let (Some(request), Some(relays)) = (self.requests.get(stream), self.relays(now, &[])) else { return true };
        let avoided = self.avoided(now, &request.wanted.purpose(), &request.refused_by);
        let suiting = self
            .circuits
            .iter()
            .filter(|(key, pooled)| !request.refused_on.contains(key) && pooled.is_open())
            .filter(|(_, pooled)| pooled.suits(request, &relays))
            // Streams may still join circuits that already carry some.
            .filter(|(_, pooled)| {
                pooled.has_carried_streams()
                    || pooled.uses_avoided_exit
                    || pooled.exit().is_some_and(|exit| !avoided.contains(&exit))
            })
            .min_by_key(|(key, pooled)| (pooled.isolation.is_none(), pooled.streams.len(), **key));
        let Some(key) = suiting.map(|(key, _)| *key) else { return false };
        let Some(pooled) = self.circuits.get_mut(&key) else { return false };
        let PooledStage::Circuit { origin, .. } = &mut pooled.stage else { return false };
        let begun = match &request.wanted {
            Wanted::Stream(target) => origin.begin(now, target.clone()),
            Wanted::Resolve(host) => origin.resolve(now, host.clone()),
            Wanted::Delegated(delegation) => origin.request(now, delegation.service()),
        };
        let Ok(begun) = begun else { return false };
        pooled.isolation = Some(request.isolation);
        pooled.first_used.get_or_insert(now);
        pooled.streams.insert(begun, stream);
        pooled.retired |= pooled.delegation.is_some();
        let used = pooled.exit().map(|exit| (exit, pooled.delegation.is_some()));
        self.requests.place(stream, key, begun);
        self.tell_if_delegated(now, stream, key);
        if let Some((exit, delegated)) = used {
            self.exit_separation.handle_used(now, exit, delegated);
        }
        self.make_ready(key);
        true
    }

    /// Reports a placed delegated request, which is open at once, unlike a stream.
    fn tell_if_delegated(&mut self, now: Instant, stream: ClientStream, key: PooledCircuitKey) {
        let Some(pooled) = self.circuits.get(&key).filter(|pooled| pooled.delegation.is_some()) else { return };
        let (path, hops) = (pooled.path.iter().map(|relay| relay.identity).collect(), pooled.hop_times.clone());
        let carries_streams = |other: &Pooled| other.has_carried_streams() && other.exit() == pooled.exit();
        let carried = self.exit_separation.avoided(now, true).any(|exit| Some(exit) == pooled.exit());
        let shared_exit = carried || self.circuits.values().any(carries_streams);
        if let Some(request) = self.requests.get_mut(stream) {
            request.connected = true;
        }
        self.events.push_back(ClientEvent::Delegated { stream, path, hops, shared_exit });
    }

    /// Ensures that a circuit for a waiting request is being built.
    fn provide(&mut self, now: Instant, stream: ClientStream, rng: &mut dyn CryptoRng) -> Result<(), StreamFailure> {
        let (Some(request), Some(relays)) = (self.requests.get(stream), self.relays(now, &[])) else { return Ok(()) };
        let isolation = request.isolation;
        let avoided = self.avoided(now, &request.wanted.purpose(), &request.refused_by);
        let coming = self
            .circuits
            .iter()
            .filter(|(_, pooled)| pooled.is_building() && pooled.suits(request, &relays))
            .filter(|(_, pooled)| {
                pooled.uses_avoided_exit || pooled.exit().is_some_and(|exit| !avoided.contains(&exit))
            })
            .min_by_key(|(key, pooled)| (pooled.isolation.is_none(), **key))
            .map(|(key, _)| *key);
        if let Some(pooled) = coming.and_then(|key| self.circuits.get_mut(&key)) {
            pooled.isolation = Some(isolation);
            return Ok(());
        }
        let (purpose, refused_by) = (request.wanted.purpose(), request.refused_by.clone());
        self.build(now, purpose, Some(isolation), &refused_by, rng)?;
        Ok(())
    }

    /// Starts a circuit, if the limits allow it; returns whether it did.
    fn build(
        &mut self,
        now: Instant,
        purpose: Purpose,
        isolation: Option<Isolation>,
        refused_by: &[RelayId],
        rng: &mut dyn CryptoRng,
    ) -> Result<bool, PathError> {
        let doubted = self.gone.doubted(now);
        let Some(relays) = self.relays(now, &doubted) else { return Ok(false) };
        let building = self.circuits.values().filter(|pooled| pooled.is_building()).count();
        if building >= self.parameters.building || !self.builds.may_build(now) {
            return Ok(false);
        }
        let mut avoid = self.builds.avoided(now);
        avoid.extend(refused_by);
        let delegation = delegation_of(&purpose).cloned();
        let avoided = self.avoided(now, &purpose, refused_by);
        avoid.extend(&avoided);
        let requirement = Requirement::three_hops(purpose);
        let mut path = choose(&relays, &self.guards, &requirement, &avoid, now, rng)?;
        // Avoided exits are chosen if no others remain; an exit that has refused is useless even then.
        let refused = |path: &Path| path.hops().last().is_some_and(|exit| refused_by.contains(exit));
        if refused(&path) {
            path = choose(&relays, &self.guards, &requirement, refused_by, now, rng)?;
        }
        if refused(&path) {
            return Err(requirement.purpose.without_exit());
        }
        let uses_avoided_exit = path.hops().last().is_some_and(|exit| avoided.contains(exit));
        if uses_avoided_exit && isolation.is_none() {
            // No request would be placed on it.
            return Ok(false);
        }
        let (keys, volunteers) = path.into_keys();
        let guard = keys.first().and_then(|guard| relays.consensus.relay(&guard.identity));
        let guard = guard.ok_or(PathError::TooFewRelays)?.dial_target();
        if self.circuits.len() >= self.parameters.circuits && !self.make_room() {
            return Ok(false);
        }
        self.next_circuit = self.next_circuit.saturating_add(1);
        let key = PooledCircuitKey(self.next_circuit);
        let due = now.after(self.builds.hop_timeout());
        let pooled = Pooled { uses_avoided_exit, ..Pooled::new(now, keys, volunteers, delegation, isolation) };
        self.circuits.insert(key, pooled);
        self.timeouts.set(key, due);
        if let Some(channel) = self.channels.connect(now, &guard) {
            self.start_circuit(now, key, channel, rng);
        }
        Ok(true)
    }

    /// Starts the circuits that waited for this channel.
    pub(super) fn start_circuits(
        &mut self,
        now: Instant,
        channel: ChannelId,
        relay: &RelayId,
        rng: &mut dyn CryptoRng,
    ) {
        for key in self.connecting(relay) {
            self.start_circuit(now, key, channel, rng);
        }
    }

    fn start_circuit(&mut self, now: Instant, key: PooledCircuitKey, channel: ChannelId, rng: &mut dyn CryptoRng) {
        let hop_timeout = self.builds.hop_timeout();
        let flow = self.in_use.as_ref().map(|in_use| in_use.consensus.parameters().flow()).unwrap_or_default();
        let Some(pooled) = self.circuits.get_mut(&key) else { return };
        let origin = self.channels.allocate_circuit(channel, rng).and_then(|circuit| {
            let origin = Origin::start(now, pooled.path.clone(), circuit, flow, hop_timeout, rng);
            origin.map_err(|_| self.channels.forget_circuit(now, channel, circuit)).ok()
        });
        let Some(origin) = origin else {
            // The guard takes no more circuits, or its onion key is unusable.
            let (began, guard) = (pooled.began, pooled.guard());
            self.remove(key);
            self.build_failed(now, began, guard);
            return;
        };
        pooled.channel_time = now.since(pooled.began);
        self.by_channel.insert((channel, origin.circuit()), key);
        pooled.stage = PooledStage::Circuit { channel, origin: Box::new(origin) };
        self.make_ready(key);
    }

    /// The guard can't be reached, or no longer answers.
    pub(super) fn fail_guard(&mut self, now: Instant, relay: &RelayId) {
        self.guards.handle_unreachable(now, relay);
        self.builds.handle_guard_failed(now, *relay);
        for key in self.connecting(relay) {
            self.remove(key);
        }
        self.replan = true;
    }

    /// Handles the end with `error` of a circuit that was never open.
    pub(super) fn handle_build_failed(&mut self, now: Instant, pooled: &Pooled, error: CircuitError) {
        let Some(guard) = pooled.guard() else { return };
        let reached = pooled.hop_times.len();
        if reached == 0 {
            let PooledStage::Circuit { channel, .. } = &pooled.stage else { return self.fail_guard(now, &guard) };
            let stands = self.channels.peer(*channel) == Some(guard);
            let silent = matches!(error, CircuitError::BuildTimedOut(_)) && !self.was_heard(&guard, pooled.began);
            // A guard that refuses a circuit, or is slow, is reachable: it stays the guard.
            if stands && !silent {
                return self.build_failed(now, pooled.began, None);
            }
            if stands {
                self.channels.close(*channel);
            }
            return self.fail_guard(now, &guard);
        }
        self.guards.handle_circuit(&guard, false);
        self.build_failed(now, pooled.began, pooled.path.get(reached).map(|relay| relay.identity));
    }

    /// Whether any circuit through this guard has received a cell since.
    fn was_heard(&self, guard: &RelayId, since: Instant) -> bool {
        let through = self.circuits.values().filter(|pooled| pooled.guard() == Some(*guard));
        through.filter_map(Pooled::heard_at).any(|heard| heard > since)
    }

    fn build_failed(&mut self, now: Instant, began: Instant, relay: Option<RelayId>) {
        if self.builds.handle_failed(now, began, relay) {
            for stream in self.requests.waiting() {
                self.requests.remove(stream);
                self.events.push_back(ClientEvent::Failed(stream, StreamFailure::NoCircuit));
            }
        }
        self.replan = true;
    }

    /// Handles GONE from the hop before `hop` during a build: another relay takes the position, at most once another
    /// volunteer. GONE is invalid for a relay of the consensus, and at the third time. Otherwise a guard could repeat
    /// it until the middle is one of its accomplices. After an invalid GONE the build fails.
    pub(super) fn handle_gone(&mut self, now: Instant, key: PooledCircuitKey, hop: HopIndex, rng: &mut dyn CryptoRng) {
        let position = usize::from(hop.value()).saturating_sub(1);
        let Some(pooled) = self.circuits.get_mut(&key) else { return };
        pooled.gone.increment();
        let volunteers = pooled.gone < MAX_GONE;
        let (path, guard) = (pooled.path.clone(), pooled.guard());
        let lost = path.get(position).map(|relay| relay.identity);
        let is_volunteer = lost.is_some_and(|lost| pooled.volunteers.contains(&lost));
        let credible = pooled.gone <= MAX_GONE && is_volunteer;
        tracing::debug!(position, is_volunteer, "the hop before reports a relay as gone");
        // A guard without a consensus yet has no relays at all, so only volunteers count.
        if let (Some(guard), true, true) = (guard, position == 1, is_volunteer) {
            self.gone.handle_answer(now, guard, true);
        }
        let mut avoid = self.builds.avoided(now);
        avoid.extend(lost);
        let doubted = self.gone.doubted(now);
        let relays = self.relays(now, &doubted).map(|relays| Relays { middle: None, ..relays });
        let other = relays.and_then(|relays| replace(&relays, &path, position, volunteers, &avoid, rng));
        let Some(pooled) = self.circuits.get_mut(&key) else { return };
        let PooledStage::Circuit { origin, .. } = &mut pooled.stage else { return };
        // A middle fixed by the settings has no substitute.
        match other.filter(|_| credible && self.parameters.middle.is_none()).map(Path::into_keys) {
            Some((keys, volunteers)) => {
                if let Some(relay) = keys.get(position) {
                    origin.extend_to(now, *relay, rng);
                }
                (pooled.path, pooled.volunteers) = (keys, volunteers);
            }
            None => origin.close(),
        }
        self.make_ready(key);
    }

    /// Checks the ages of the consensus and of all circuits.
    pub(super) fn sweep(&mut self, now: Instant) {
        let Some(in_use) = &self.in_use else { return };
        if in_use.expires <= now && !self.expired {
            self.expired = true;
            self.events.push_back(ClientEvent::ConsensusExpired);
            for stream in self.requests.waiting() {
                self.requests.remove(stream);
                self.events.push_back(ClientEvent::Failed(stream, StreamFailure::ConsensusExpired));
            }
        }
        self.exit_separation.sweep(now);
        let age = core::time::Duration::from_secs(in_use.consensus.parameters().circuit_age());
        let mut ended = Vec::new();
        for (key, pooled) in &mut self.circuits {
            let worn = pooled.first_used.is_some_and(|first| now.since(first) >= age);
            let stale = pooled.first_used.is_none() && now.since(pooled.began) >= self.parameters.spare_age;
            // The gateway of a volunteer ends the circuit when the volunteer disconnects.
            let listed = pooled.path.iter().all(|relay| {
                pooled.volunteers.contains(&relay.identity) || in_use.consensus.relay(&relay.identity).is_some()
            });
            pooled.retired |= worn || stale || !listed || self.expired;
            if pooled.retired && pooled.is_open() && pooled.is_idle() {
                ended.push(*key);
            }
        }
        for key in ended {
            self.close_circuit(key);
        }
        self.replan = true;
    }

    /// Closes the circuit that has been without a stream for longest; false if all carry streams.
    fn make_room(&mut self) -> bool {
        let idle = self.circuits.iter().filter(|(_, pooled)| pooled.is_open() && pooled.is_idle());
        let longest = idle.min_by_key(|(_, pooled)| pooled.idle_since).map(|(key, _)| *key);
        if let Some(key) = longest {
            self.close_circuit(key);
        }
        longest.is_some()
    }

    pub(super) fn close_circuit(&mut self, key: PooledCircuitKey) {
        if let Some(pooled) = self.circuits.get_mut(&key) {
            pooled.retired = true;
            pooled.close();
        }
        self.make_ready(key);
    }

    fn connecting(&self, relay: &RelayId) -> Vec<PooledCircuitKey> {
        let waits = |pooled: &Pooled| matches!(pooled.stage, PooledStage::Connecting) && pooled.guard() == Some(*relay);
        self.circuits.iter().filter(|(_, pooled)| waits(pooled)).map(|(key, _)| *key).collect()
    }

    pub(super) fn remove(&mut self, key: PooledCircuitKey) -> Option<Pooled> {
        self.timeouts.remove(key);
        self.circuits.remove(&key)
    }
}
