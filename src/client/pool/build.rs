//! Builds of circuits: spare circuits, circuits for waiting requests, and the replacement of volunteers that are gone.

use rand::CryptoRng;

use super::{
    GuardPair, Pool, PoolEvent, PoolInputs, build_policy::delegation_of, circuit::PooledCircuit,
    spare_schedule::SpareSchedule,
};
use crate::{
    base::{Counter as _, HopIndex, Instant, RelayId},
    channel::{ChannelId, Channels},
    circuit::{CircuitError, Origin},
    client::{ClientParameters, Isolation, PooledCircuitKey, StreamFailure, requests::Demand},
    path::{PathError, Purpose, Relays, measure},
};

impl Pool {
    /// Starts the builds of missing spare circuits that are due.
    pub(in crate::client) fn keep_spares(
        &mut self,
        now: Instant,
        inputs: &mut PoolInputs<'_>,
        rng: &mut dyn CryptoRng,
    ) {
        self.keep_spares_for(now, &Purpose::Streams, inputs.parameters.spare_circuits, inputs, rng);
        if let Some((delegation, count)) = self.kept_delegated.clone() {
            self.keep_spares_for(now, &Purpose::Delegated(delegation), count, inputs, rng);
        }
    }

    /// Starts the due builds of spare circuits for `purpose`, up to `count` circuits in total.
    fn keep_spares_for(
        &mut self,
        now: Instant,
        purpose: &Purpose,
        count: usize,
        inputs: &mut PoolInputs<'_>,
        rng: &mut dyn CryptoRng,
    ) {
        let avoided = self.avoided_exits(now, &inputs.relays, purpose, &[]);
        let spare = |circuit: &&PooledCircuit| {
            circuit.is_spare_for(delegation_of(purpose)) && circuit.exit().is_none_or(|exit| !avoided.contains(&exit))
        };
        let missing = count.saturating_sub(self.circuits.values().filter(spare).count());
        // The first circuit of all is built without delay, because a request would wait for the whole build.
        let is_first = !self.policy.history.has_built() && self.circuits.is_empty();
        let schedule = self.spare_schedule(purpose);
        if missing == 0 {
            schedule.handle_complete();
        } else if is_first || schedule.take_due(now, missing, rng) {
            let _ = self.build(now, purpose.clone(), None, &[], inputs, rng);
        }
    }

    const fn spare_schedule(&mut self, purpose: &Purpose) -> &mut SpareSchedule {
        if delegation_of(purpose).is_some() {
            &mut self.delegated_spare_schedule
        } else {
            &mut self.stream_spare_schedule
        }
    }

    /// Reserves a circuit that is being built for a waiting request. Without such a circuit, starts a build if pauses,
    /// caps and rates of builds allow it.
    ///
    /// # Errors
    /// When there is no path, or when the cap on circuits is reached.
    pub(in crate::client) fn ensure_build_for(
        &mut self,
        now: Instant,
        demand: &Demand,
        inputs: &mut PoolInputs<'_>,
        rng: &mut dyn CryptoRng,
    ) -> Result<(), StreamFailure> {
        match self.building_circuit_for(now, demand, &inputs.relays).and_then(|key| self.circuits.get_mut(&key)) {
            Some(circuit) => circuit.assign(demand.isolation),
            None => self.build(now, demand.purpose(), Some(demand.isolation), &demand.refused_by, inputs, rng)?,
        }
        Ok(())
    }

    /// The circuit for the request among those that are being built.
    fn building_circuit_for(&self, now: Instant, demand: &Demand, relays: &Relays<'_>) -> Option<PooledCircuitKey> {
        let mut building = self
            .circuits
            .iter()
            .filter(|(_, circuit)| circuit.is_building() && circuit.fits(demand, relays))
            .peekable();
        // Returns before `avoided_exits`, as in `open_circuit_for`.
        building.peek()?;
        let avoided = self.avoided_exits(now, relays, &demand.purpose(), &demand.refused_by);
        building
            .filter(|(_, circuit)| circuit.is_permitted_by(&avoided))
            .min_by_key(|(key, circuit)| (circuit.is_spare(), **key))
            .map(|(key, _)| *key)
    }

    /// Starts the build of a circuit if pauses, the cap on builds of the isolation and the rate of builds allow it.
    ///
    /// # Errors
    /// When there is no path, or when the cap on circuits is reached.
    fn build(
        &mut self,
        now: Instant,
        purpose: Purpose,
        isolation: Option<Isolation>,
        refused_by: &[RelayId],
        inputs: &mut PoolInputs<'_>,
        rng: &mut dyn CryptoRng,
    ) -> Result<(), StreamFailure> {
        // With a cap on the builds of all isolations, the end of a build of one isolation could start a build of
        // another. The time would link the two circuits.
        let is_building = |circuit: &&PooledCircuit| circuit.is_building() && circuit.owner() == isolation;
        let building = self.circuits.values().filter(is_building).count();
        if building >= inputs.parameters.max_builds || !self.policy.history.may_build(now, isolation) {
            return Ok(());
        }
        if !self.build_rate.may_build(now) {
            return Ok(());
        }
        // Checked before the choice of a path, which iterates over all relays.
        let replaced = self.circuit_to_replace(isolation, inputs.parameters)?;
        let delegation = delegation_of(&purpose).cloned();
        let avoided = self.avoided_exits(now, &inputs.relays, &purpose, refused_by);
        let excluded = (isolation, refused_by, &avoided[..]);
        let path = self.policy.choose(now, &inputs.relays, inputs.guards, purpose, excluded, rng)?;
        let relays = path.hops();
        let uses_avoided_exit = relays.last().is_some_and(|exit| avoided.contains(exit));
        if uses_avoided_exit && isolation.is_none() {
            // Only a waiting request without an alternative justifies an avoided exit.
            return Ok(());
        }
        if let Some(replaced) = replaced {
            self.close(replaced);
        }
        let circuit = PooledCircuit::new(now, path, delegation, isolation, uses_avoided_exit, rng);
        Ok(self.connect(now, circuit, inputs, rng)?)
    }

    /// Builds a circuit without requests if a guard is suspect. The circuit ends some time after it is open.
    pub(in crate::client) fn build_measuring_circuit(
        &mut self,
        now: Instant,
        inputs: &mut PoolInputs<'_>,
        rng: &mut dyn CryptoRng,
    ) {
        if self.circuits.len() < inputs.parameters.max_circuits
            && let Some(path) = measure(&inputs.relays, inputs.guards, rng)
        {
            let mut circuit = PooledCircuit::new(now, path, None, None, false, rng);
            circuit.retire();
            let _ = self.connect(now, circuit, inputs, rng);
        }
    }

    /// Adds a circuit, and connects to its guard. Starts the first hop if the channel is open already.
    ///
    /// # Errors
    /// When the consensus doesn't list the guard.
    fn connect(
        &mut self,
        now: Instant,
        circuit: PooledCircuit,
        inputs: &mut PoolInputs<'_>,
        rng: &mut dyn CryptoRng,
    ) -> Result<(), PathError> {
        let guard = circuit.guard().and_then(|guard| inputs.relays.consensus.relay(&guard));
        let guard = guard.ok_or(PathError::NoGuard)?.dial_target();
        self.build_rate.handle_build(now);
        self.last_key.increment();
        let key = PooledCircuitKey(self.last_key);
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
        let guard_timeout = self.policy.history.guard_timeout();
        let flow = inputs.relays.consensus.parameters().flow();
        let channels = &mut *inputs.channels;
        let Some(circuit) = self.circuits.get_mut(&key) else { return };
        let origin = channels.allocate_circuit(channel, rng).and_then(|id| {
            let origin = Origin::start(now, circuit.path().to_vec(), id, flow, guard_timeout, rng);
            origin.map_err(|_| channels.end_circuit(now, channel, id)).ok()
        });
        let Some(origin) = origin else {
            // The channel has the maximum number of circuits, or the guard's onion key is unusable.
            let guard = circuit.guard();
            let Some(circuit) = self.remove(key) else { return };
            return self.handle_build_failed(now, &circuit, None, guard);
        };
        self.by_channel.insert((channel, origin.circuit()), key);
        circuit.start(now, channel, origin);
        self.ready.push(key, &mut circuit.ready);
    }

    /// Handles GONE from the hop before `hop` during a build. After a valid GONE, another relay takes the position of
    /// the volunteer: after the first GONE possibly a volunteer, after the second only a relay of the consensus. A
    /// third GONE is invalid, and so is GONE for a relay of the consensus. Otherwise a guard could repeat GONE until
    /// the middle is an accomplice of the guard. After an invalid GONE the circuit ends.
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
        tracing::debug!(position, is_volunteer = report.is_of_volunteer, "the hop before reports a relay as gone");
        // A relay that has no consensus yet reports all relays as gone, so only reports of volunteers count.
        if let Some(gateway) = circuit.gateway_of_middle(position) {
            self.policy.gone_reports.handle_answer(now, gateway, true);
        }
        // A middle that the settings fix is not replaced.
        let substitute = if report.is_valid && inputs.relays.middle.is_none() {
            let path = (circuit.owner(), circuit.path());
            self.policy.substitute(now, &inputs.relays, path, position, report.allow_volunteer, rng)
        } else {
            None
        };
        match substitute {
            Some(path) => circuit.extend_over(now, path, position, rng),
            None => circuit.close(),
        }
    }

    /// Handles the end with `error` of a circuit that was never open.
    pub(super) fn handle_ended_unbuilt(
        &mut self,
        now: Instant,
        circuit: &PooledCircuit,
        error: CircuitError,
        channels: &mut Channels,
    ) {
        let (Some(guard), Some((channel, _))) = (circuit.guard(), circuit.endpoint()) else { return };
        let reached = circuit.hop_times().len();
        if reached > 0 {
            // If the channel has ended, the relays behind the guard aren't the cause.
            let pair = circuit.guard_pair().filter(|_| circuit.has_channel(channels));
            if circuit.is_retired() {
                // No request waits for the circuit.
                return self.events.push_back(PoolEvent::BuildFailed { pair, exhausted: None });
            }
            let relay = circuit.path().get(reached).map(|relay| relay.identity);
            return self.handle_build_failed(now, circuit, pair, relay);
        }
        if channels.peer(channel) != Some(guard) {
            return self.handle_guard_silent(guard, circuit.began());
        }
        // A guard that refuses a circuit, or answers other circuits, is reachable and stays the guard.
        if !matches!(error, CircuitError::BuildTimedOut(_)) || self.has_answered_since(&guard, circuit.began()) {
            return self.handle_build_failed(now, circuit, None, None);
        }
        channels.close(channel);
        self.handle_guard_silent(guard, circuit.began());
    }

    /// Handles a failed build of a circuit, which failed at `relay` if known. `pair` is given if the first hop was
    /// built and the channel is open.
    fn handle_build_failed(
        &mut self,
        now: Instant,
        circuit: &PooledCircuit,
        pair: Option<GuardPair>,
        relay: Option<RelayId>,
    ) {
        let isolation = circuit.isolation();
        let is_exhausted = self.policy.history.handle_failed(now, isolation, circuit.began(), relay);
        let exhausted = isolation.filter(|_| is_exhausted);
        self.events.push_back(PoolEvent::BuildFailed { pair, exhausted });
    }

    /// Whether any circuit through this guard has received a message since `time`.
    fn has_answered_since(&self, guard: &RelayId, time: Instant) -> bool {
        let mut through = self.circuits.values().filter(|circuit| circuit.guard() == Some(*guard));
        through.any(|circuit| circuit.has_received_since(time))
    }

    /// The circuit that a new circuit for `isolation` replaces; `None` below the caps.
    ///
    /// At the cap on all circuits, or on those of the isolation, the new circuit replaces one of the same isolation
    /// without a stream. Retired circuits precede others, then the longest time without a stream counts. A new spare
    /// circuit (without an isolation) replaces none. The end of another isolation's circuit would show that both
    /// circuits belong to one client.
    ///
    /// # Errors
    /// When there is no such circuit.
    fn circuit_to_replace(
        &self,
        isolation: Option<Isolation>,
        parameters: &ClientParameters,
    ) -> Result<Option<PooledCircuitKey>, StreamFailure> {
        let owned = |circuit: &PooledCircuit| isolation.is_some() && circuit.owner() == isolation;
        let of_isolation = self.circuits.values().filter(|circuit| owned(circuit)).count();
        if self.circuits.len() < parameters.max_circuits && of_isolation < parameters.max_circuits_of_isolation() {
            return Ok(None);
        }
        let idle = self.circuits.iter().filter(|(_, circuit)| owned(circuit) && circuit.is_idle());
        let longest_idle = idle.min_by_key(|(_, circuit)| (!circuit.is_retired(), circuit.idle_since()));
        longest_idle.map(|(key, _)| Some(*key)).ok_or(StreamFailure::LimitReached)
    }
}
