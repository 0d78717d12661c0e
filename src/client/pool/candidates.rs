//! The circuits that may take waiting requests, by isolation. So many requests of isolations without a circuit cost little
//! while they wait for a build.

use std::collections::BTreeSet;

use super::{Pool, circuit::PooledCircuit};
use crate::{
    base::Instant,
    client::{Isolation, PooledCircuitKey, requests::Demand},
    path::Relays,
};

/// The circuits that may take requests, at the start of a plan.
pub(in crate::client) struct CircuitCandidates {
    /// The isolations with circuits.
    isolations: BTreeSet<Isolation>,
    /// The spare circuits.
    spares: Vec<PooledCircuitKey>,
}

impl Pool {
    /// The circuits that may take requests.
    pub(in crate::client) fn circuit_candidates(&self) -> CircuitCandidates {
        let spares = self.circuits.iter().filter(|(_, circuit)| circuit.is_spare()).map(|(key, _)| *key);
        let mut isolations = BTreeSet::new();
        // Inserted one by one, because `collect` would sort them first (see `gateway_ranking`).
        isolations.extend(self.circuits.values().filter_map(PooledCircuit::isolation));
        CircuitCandidates { isolations, spares: spares.collect() }
    }

    /// Whether a circuit may take the request, or one may be built for it. If not, the request waits. During a plan, `candidates` lack only circuits whose builds start in it, which open later.
    pub(in crate::client) fn may_serve(
        &mut self,
        now: Instant,
        demand: &Demand,
        candidates: &CircuitCandidates,
        relays: &Relays<'_>,
    ) -> bool {
        let takes = |key| self.circuits.get(key).is_some_and(|circuit| circuit.takes(demand, relays));
        candidates.isolations.contains(&demand.isolation)
            || candidates.spares.iter().any(takes)
            || (self.policy.history.may_build(now, Some(demand.isolation)) && self.build_rate.may_build(now))
    }
}
