//! Checks for tests and fuzzing: the invariants of a client that hold after each drained batch of inputs.

use std::collections::BTreeMap;

use super::{ClientMachine, Isolation, PooledCircuitKey};

impl ClientMachine {
    /// Asserts that the caps hold, that the indexes agree, and that no circuit carries two isolations.
    pub(crate) fn assert_sound(&self) {
        let Self { parameters, channels, pool, placement, .. } = self;
        channels.assert_sound();
        assert!(self.events.is_empty(), "the client is not drained");
        assert!(placement.len() <= parameters.max_streams, "{} requests", placement.len());
        let (circuits, building) = pool.assert_sound();
        assert!(circuits <= parameters.max_circuits, "{circuits} circuits");
        // Requests also take over spare circuits that are being built, and a circuit that measures a guard is built
        // beyond the cap.
        let max_building = parameters.max_builds.saturating_mul(2).saturating_add(1);
        assert!(building <= max_building, "an isolation has {building} circuits that are being built");
        let mut isolations = BTreeMap::<PooledCircuitKey, Isolation>::new();
        for (circuit, isolation) in placement.placed() {
            assert!(pool.circuit(circuit).is_some(), "a request is placed on a circuit that has ended");
            let first = *isolations.entry(circuit).or_insert(isolation);
            assert!(first == isolation, "a circuit carries two isolations");
        }
    }

    /// Asserts that neither a request nor a circuit nor a channel is left.
    pub(crate) fn assert_idle(&self) {
        self.assert_sound();
        self.channels.assert_closed();
        assert!(self.placement.is_empty());
        assert_eq!(self.pool.assert_sound(), (0, 0));
    }
}
