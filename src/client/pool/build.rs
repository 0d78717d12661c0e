//! Builds of circuits: spare ones, those for waiting requests, and substitutes for relays that are gone.

use rand::CryptoRng;

use super::{GuardPair, Pool, PoolEvent, PoolInputs, build_policy::delegation_of, circuit::Pooled};
use crate::{
    base::{HopIndex, Instant, RelayId},
    channel::{ChannelId, Channels},
    circuit::{CircuitError, Origin},
    client::{Isolation, PooledCircuitKey, requests::Demand},
    path::{PathError, Purpose, measure},
};

impl Pool {
    /// Starts the spare circuits that are missing.
    pub(in crate::client) fn keep_spares(
        &mut self,
        now: Instant,
        inputs: &mut PoolInputs<'_>,
        rng: &mut dyn CryptoRng,
    ) {
        self.keep_spare(now, &Purpose::Streams, inputs.parameters.spare_circuits, inputs, rng);
        if let Some((delegation, count)) = self.spare_delegated.clone() {
            self.keep_spare(now, &Purpose::Delegated(delegation), count, inputs, rng);
        }
    }

    /// Starts the circuits that are missing from `count` spare ones for the purpose.
    fn keep_spare(
        &mut self,
        now: Instant,
        purpose: &Purpose,
        count: usize,
        inputs: &mut PoolInputs<'_>,
        rng: &mut dyn CryptoRng,
    ) {
        let avoided = self.avoided_exits(now, &inputs.relays, purpose, &[]);
        let spare = |circuit: &&Pooled| {
            circuit.is_spare_for(delegation_of(purpose)) && circuit.exit().is_none_or(|exit| !avoided.contains(&exit))
        };
        let missing = count.saturating_sub(self.circuits.values().filter(spare).count());
        for _ in 0..missing {
            if !matches!(self.build(now, purpose.clone(), None, &[], inputs, rng), Ok(true)) {
                break;
            }
        }
    }

    /// Ensures that a circuit for a waiting request is being built.
    ///
    /// # Errors
    /// When there is no path.
    pub(in crate::client) fn ensure_build_for(
        &mut self,
        now: Instant,
        demand: &Demand,
        inputs: &mut PoolInputs<'_>,
        rng: &mut dyn CryptoRng,
    ) -> Result<(), PathError> {
        let purpose = demand.purpose();
        let avoided = self.avoided_exits(now, &inputs.relays, &purpose, &demand.refused_by);
        let building = self
            .circuits
            .iter_mut()
            .filter(|(_, circuit)| circuit.is_building() && circuit.takes(demand, &inputs.relays))
            .filter(|(_, circuit)| circuit.is_permitted_by(&avoided))
            .min_by_key(|(key, circuit)| (circuit.is_spare(), **key));
        match building {
            Some((_, circuit)) => circuit.assign(demand.isolation),
            None => _ = self.build(now, purpose, Some(demand.isolation), &demand.refused_by, inputs, rng)?,
        }
        Ok(())
    }

    /// Starts a circuit, if the limits allow it; returns whether it did.
    fn build(
        &mut self,
        now: Instant,
        purpose: Purpose,
        isolation: Option<Isolation>,
        refused_by: &[RelayId],
        inputs: &mut PoolInputs<'_>,
        rng: &mut dyn CryptoRng,
    ) -> Result<bool, PathError> {
        let building = self.circuits.values().filter(|circuit| circuit.is_building()).count();
        if building >= inputs.parameters.building || !self.policy.history.may_build(now) {
            return Ok(false);
        }
        let delegation = delegation_of(&purpose).cloned();
        let avoided = self.avoided_exits(now, &inputs.relays, &purpose, refused_by);
        let path = self.policy.choose(now, &inputs.relays, inputs.guards, purpose, (refused_by, &avoided), rng)?;
        let relays = path.hops();
        let uses_avoided_exit = relays.last().is_some_and(|exit| avoided.contains(exit));
        if uses_avoided_exit && isolation.is_none() {
            // No request would be placed on it.
            return Ok(false);
        }
        if self.circuits.len() >= inputs.parameters.circuits && !self.make_room() {
            return Ok(false);
        }
        self.connect(now, Pooled::new(now, path, delegation, isolation, uses_avoided_exit), inputs, rng)?;
        Ok(true)
    }

    /// Starts a circuit without requests if a guard is suspect. It closes once it is open.
    pub(in crate::client) fn measure(&mut self, now: Instant, inputs: &mut PoolInputs<'_>, rng: &mut dyn CryptoRng) {
        if self.circuits.len() < inputs.parameters.circuits
            && let Some(path) = measure(&inputs.relays, inputs.guards, rng)
        {
            let mut circuit = Pooled::new(now, path, None, None, false);
            circuit.retire();
            let _ = self.connect(now, circuit, inputs, rng);
        }
    }

    /// Adds a circuit, and starts it once the channel to its guard is open.
    fn connect(
        &mut self,
        now: Instant,
        circuit: Pooled,
        inputs: &mut PoolInputs<'_>,
        rng: &mut dyn CryptoRng,
    ) -> Result<(), PathError> {
        let guard = circuit.guard().and_then(|guard| inputs.relays.consensus.relay(&guard));
        let guard = guard.ok_or(PathError::TooFewRelays)?.dial_target();
        self.last = self.last.saturating_add(1);
        let key = PooledCircuitKey(self.last);
        self.circuits.insert(key, circuit);
        self.deadlines.set(key, now.after(self.policy.history.dial_timeout()));
        if let Some(channel) = inputs.channels.connect(now, &guard) {
            self.start(now, key, channel, inputs, rng);
        }
        Ok(())
    }

    /// Starts the first hop of a circuit whose channel is open.
    pub(super) fn start(
        &mut self,
        now: Instant,
        key: PooledCircuitKey,
        channel: ChannelId,
        inputs: &mut PoolInputs<'_>,
        rng: &mut dyn CryptoRng,
    ) {
        let hop_timeout = self.policy.history.hop_timeout();
        let flow = inputs.relays.consensus.parameters().flow();
        let channels = &mut *inputs.channels;
        let Some(circuit) = self.circuits.get_mut(&key) else { return };
        let origin = channels.allocate_circuit(channel, rng).and_then(|id| {
            let origin = Origin::start(now, circuit.path().to_vec(), id, flow, hop_timeout, rng);
            origin.map_err(|_| channels.forget_circuit(now, channel, id)).ok()
        });
        let Some(origin) = origin else {
            // The guard takes no more circuits, or its onion key is unusable.
            let (began, guard) = (circuit.began(), circuit.guard());
            self.remove(key);
            return self.handle_build_failed(now, began, None, guard);
        };
        self.by_channel.insert((channel, origin.circuit()), key);
        circuit.start(now, channel, origin);
        self.ready.push(key, &mut circuit.ready);
    }

    /// Handles GONE from the hop before `hop` during a build: another relay takes the position, at most once another
    /// volunteer. GONE is invalid for a relay of the consensus, and at the third time. Otherwise a guard could repeat
    /// it until the middle is one of its accomplices. After an invalid GONE the build fails.
    pub(in crate::client) fn handle_gone(
        &mut self,
        now: Instant,
        key: PooledCircuitKey,
        hop: HopIndex,
        inputs: &PoolInputs<'_>,
        rng: &mut dyn CryptoRng,
    ) {
        let position = usize::from(hop.value()).saturating_sub(1);
        let Some(circuit) = self.circuits.get_mut(&key) else { return };
        let Some(report) = circuit.count_gone(position) else { return };
        tracing::debug!(position, is_volunteer = report.of_volunteer, "the hop before reports a relay as gone");
        // A guard without a consensus yet has no relays at all, so only volunteers count.
        if let (Some(guard), 1, true) = (circuit.guard(), position, report.of_volunteer) {
            self.policy.gone_reports.handle_answer(now, guard, true);
        }
        // A middle fixed by the settings has no substitute.
        let substitute = if report.credible && inputs.relays.middle.is_none() {
            let path = circuit.path();
            self.policy.substitute(now, &inputs.relays, path, position, report.volunteer_follows, rng)
        } else {
            None
        };
        match substitute {
            Some(path) => circuit.extend_over(now, path, position, rng),
            None => circuit.close(),
        }
    }

    /// Handles the end with `error` of a circuit that was never open.
    pub(super) fn handle_unbuilt(
        &mut self,
        now: Instant,
        circuit: &Pooled,
        error: CircuitError,
        channels: &mut Channels,
    ) {
        let (Some(guard), Some((channel, _))) = (circuit.guard(), circuit.endpoint()) else { return };
        let reached = circuit.hop_times().len();
        if reached > 0 {
            // The end of the channel says nothing about the relays behind the guard.
            let behind = circuit.guard_pair().filter(|_| circuit.has_channel(channels));
            if circuit.is_retired() {
                // No request waits for it.
                return self.events.push_back(PoolEvent::BuildFailed { behind, give_up: false });
            }
            let relay = circuit.path().get(reached).map(|relay| relay.identity);
            return self.handle_build_failed(now, circuit.began(), behind, relay);
        }
        if channels.peer(channel) != Some(guard) {
            return self.handle_guard_silent(guard, circuit.began());
        }
        // A guard that refuses a circuit, or is slow, is reachable: it stays the guard.
        if !matches!(error, CircuitError::BuildTimedOut(_)) || self.has_answered_since(&guard, circuit.began()) {
            return self.handle_build_failed(now, circuit.began(), None, None);
        }
        channels.close(channel);
        self.handle_guard_silent(guard, circuit.began());
    }

    /// A build that began at `began` failed, `behind` its guard if that was built, at `relay` if known.
    fn handle_build_failed(&mut self, now: Instant, began: Instant, behind: Option<GuardPair>, relay: Option<RelayId>) {
        let give_up = self.policy.history.handle_failed(now, began, relay);
        self.events.push_back(PoolEvent::BuildFailed { behind, give_up });
    }

    /// Whether any circuit through this guard has received a message since `time`.
    fn has_answered_since(&self, guard: &RelayId, time: Instant) -> bool {
        let mut through = self.circuits.values().filter(|circuit| circuit.guard() == Some(*guard));
        through.any(|circuit| circuit.has_received_since(time))
    }

    /// Closes the circuit that has been without a stream for longest; false if all carry streams.
    fn make_room(&mut self) -> bool {
        let idle = self.circuits.iter().filter(|(_, circuit)| circuit.is_idle());
        let longest = idle.min_by_key(|(_, circuit)| circuit.idle_since()).map(|(key, _)| *key);
        if let Some(key) = longest {
            self.close(key);
        }
        longest.is_some()
    }
}
