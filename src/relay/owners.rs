//! The owners of a relay's circuits: the share of each in the table, and its circuits in the order of their use.

use std::collections::{BTreeSet, HashMap};

use crate::base::{AtCap, Instant, Owner, Shares};

use super::table::CircuitKey;

/// The use of a circuit. Of an owner's circuits, the one with the least use makes room.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct CircuitUse {
    /// Whether the circuit has a next hop or an open stream.
    pub(super) serves: bool,
    /// The time of the last cell from the origin.
    pub(super) last_cell: Instant,
}

/// The circuits of all owners.
///
/// The order keeps the use of a circuit as of its last visit, so a cell changes nothing here. A choice visits each
/// circuit that had cells since its last visit, and each visit is paid for by a cell.
pub(super) struct CircuitOwners {
    shares: Shares,
    by_use: HashMap<Owner, BTreeSet<(CircuitUse, CircuitKey)>>,
}

impl CircuitOwners {
    pub(super) fn new(cap: usize) -> Self {
        Self { shares: Shares::new(cap), by_use: HashMap::new() }
    }

    /// Admits no further circuit from now on.
    pub(super) const fn close(&mut self) {
        self.shares.close();
    }

    /// Whether `owner` may have one more circuit.
    pub(super) fn check(&self, owner: &Owner) -> Result<(), AtCap> {
        self.shares.check(owner)
    }

    /// Adds a circuit. The caller has checked the share.
    pub(super) fn insert(&mut self, owner: Owner, usage: CircuitUse, key: CircuitKey) -> Result<(), AtCap> {
        self.shares.take(&owner)?;
        self.by_use.entry(owner).or_default().insert((usage, key));
        Ok(())
    }

    /// Removes a circuit that has ended. `usage`: as of its last visit.
    pub(super) fn remove(&mut self, owner: &Owner, usage: CircuitUse, key: CircuitKey) {
        self.shares.give_back(owner);
        if let Some(circuits) = self.by_use.get_mut(owner) {
            circuits.remove(&(usage, key));
            if circuits.is_empty() {
                self.by_use.remove(owner);
            }
        }
    }

    /// The circuit of the fullest owner that had the least use at its last visit, with that use.
    pub(super) fn least_used(&self) -> Option<(CircuitUse, CircuitKey)> {
        self.by_use.get(&self.shares.fullest()?)?.first().copied()
    }

    /// Sets the use of a circuit, `before` as of its last visit.
    pub(super) fn set_use(&mut self, owner: &Owner, before: CircuitUse, usage: CircuitUse, key: CircuitKey) {
        if let Some(circuits) = self.by_use.get_mut(owner) {
            circuits.remove(&(before, key));
            circuits.insert((usage, key));
        }
    }

    /// The number of circuits of an owner.
    #[cfg(test)]
    pub(super) fn held(&self, owner: &Owner) -> usize {
        self.shares.held(owner)
    }

    /// The numbers of circuits in the shares and in the order, and of owners.
    #[cfg(test)]
    pub(super) fn len(&self) -> (usize, usize, usize) {
        (self.shares.len(), self.by_use.values().map(BTreeSet::len).sum(), self.by_use.len())
    }
}
