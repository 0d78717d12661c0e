//! The circuits that may serve waiting requests, by isolation.
//!
//! With this list, many waiting requests of isolations without a circuit cost little.

use std::collections::BTreeSet;

use super::{Pool, circuit::PooledCircuit};
use crate::{
    base::Instant,
    client::{Isolation, PooledCircuitKey, requests::Demand},
    path::Relays,
};

/// The circuits that may serve requests, at the start of a plan.
pub(in crate::client) struct CircuitCandidates {
    /// The isolations with circuits.
    isolations: BTreeSet<Isolation>,
    /// The spare circuits.
    spares: Vec<PooledCircuitKey>,
}

impl Pool {
    /// The circuits that may serve requests.
    pub(in crate::client) fn circuit_candidates(&self) -> CircuitCandidates {
        let spares = self.circuits.iter().filter(|(_, circuit)| circuit.is_spare()).map(|(key, _)| *key);
        let mut isolations = BTreeSet::new();
        // Inserted one by one, because `collect` would sort them first (see `gateway_ranking`).
        isolations.extend(self.circuits.values().filter_map(PooledCircuit::isolation));
        CircuitCandidates { isolations, spares: spares.collect() }
    }

    /// Whether a circuit may serve the request, or may be built for it. If not, the request waits. `candidates` are
    /// those at the start of the plan. They lack only the circuits whose builds start during the plan, and these can't
    /// be open yet.
    pub(in crate::client) fn may_serve(
        &mut self,
        now: Instant,
        demand: &Demand,
        candidates: &CircuitCandidates,
        relays: &Relays<'_>,
    ) -> bool {
        let fits = |key| self.circuits.get(key).is_some_and(|circuit| circuit.fits(demand, relays));
        candidates.isolations.contains(&demand.isolation)
            || candidates.spares.iter().any(fits)
            || (self.policy.history.may_build(now, Some(demand.isolation)) && self.build_rate.may_build(now))
    }
}
