//! Checks for tests and fuzzing: the invariants of the pool that hold after each drained batch of inputs.

use std::collections::BTreeMap;

use super::{Pool, PooledCircuit};

impl Pool {
    /// Asserts that the pool is settled and that its indexes agree with the circuits. Returns the number of circuits,
    /// and the largest number of those that are being built for one isolation.
    pub(in crate::client) fn assert_sound(&self) -> (usize, usize) {
        assert!(self.events.is_empty() && self.settling.is_none() && self.ready.is_empty(), "the pool is not settled");
        for ((channel, circuit), key) in &self.by_channel {
            let endpoint = self.circuits.get(key).and_then(|found| found.endpoint());
            assert!(endpoint == Some((*channel, *circuit)), "index of circuits");
        }
        assert!(self.deadlines.keys().all(|key| self.circuits.contains_key(&key)), "a deadline without a circuit");
        let mut building = BTreeMap::<_, usize>::new();
        for circuit in self.circuits.values().filter(|circuit| circuit.is_building()) {
            *building.entry(PooledCircuit::owner(circuit)).or_default() += 1;
        }
        (self.circuits.len(), building.into_values().max().unwrap_or_default())
    }
}
