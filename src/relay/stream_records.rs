//! Shares of the memory for records of streams: recently closed streams, and messages that wait to be sent to origins.

use std::collections::{BTreeSet, HashMap};

use crate::base::{Owner, Shares};

use super::table::CircuitKey;

/// The records of all circuits, counted by owner and by circuit.
pub(super) struct StreamRecords {
    owners: Shares,
    /// The circuits of an owner in the order of their records.
    circuits: HashMap<Owner, BTreeSet<(usize, CircuitKey)>>,
}

impl StreamRecords {
    /// No record of at most `cap`.
    pub(super) fn new(cap: usize) -> Self {
        Self { owners: Shares::new(cap), circuits: HashMap::new() }
    }

    /// Changes the number of records of a circuit from `before` to `after`, whatever the shares.
    pub(super) fn set(&mut self, owner: &Owner, key: CircuitKey, before: usize, after: usize) {
        self.owners.subtract(owner, before);
        self.owners.add(owner, after);
        let circuits = self.circuits.entry(*owner).or_default();
        circuits.remove(&(before, key));
        if after > 0 {
            circuits.insert((after, key));
        }
        if circuits.is_empty() {
            self.circuits.remove(owner);
        }
    }

    /// The circuit that must have fewer records so that `owner` can have another one: the one with the most, of the
    /// owner that makes room. `None` below the shares and the cap.
    pub(super) fn fullest(&self, owner: &Owner) -> Option<CircuitKey> {
        let owner = self.owners.crowding(owner)?;
        self.circuits.get(&owner)?.last().map(|(_, key)| *key)
    }

    /// The numbers of records in the shares and of those of all circuits.
    #[cfg(any(test, fuzzing))]
    pub(super) fn len(&self) -> (usize, usize) {
        (self.owners.len(), self.circuits.values().flatten().map(|(records, _)| *records).sum())
    }
}
