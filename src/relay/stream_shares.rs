//! Shares of a relay's exit streams: how many each circuit and each owner of circuits has, and which circuit
//! makes room at the cap.

use std::collections::{BTreeSet, HashMap};

use crate::base::{AtCap, Owner, Shares};

use super::table::CircuitKey;

/// The open streams of all circuits, counted by owner and by circuit.
pub(super) struct StreamShares {
    owners: Shares,
    /// The circuits of an owner in the order of their streams.
    circuits: HashMap<Owner, BTreeSet<(usize, CircuitKey)>>,
}

impl StreamShares {
    /// No stream of at most `cap`.
    pub(super) fn new(cap: usize) -> Self {
        Self { owners: Shares::new(cap), circuits: HashMap::new() }
    }

    /// The circuit that loses a stream before `owner` can get one: the one with the most streams, at an owner's share
    /// among those of `owner`, at the cap among those of the fullest owner. `None` below both.
    pub(super) fn fullest(&self, owner: &Owner) -> Option<(usize, CircuitKey)> {
        let owner = match self.owners.check(owner) {
            Ok(()) => return None,
            Err(AtCap::Share) => *owner,
            Err(AtCap::All) => self.owners.fullest()?,
        };
        self.circuits.get(&owner)?.last().copied()
    }

    /// Counts a new stream of a circuit that has `streams` others.
    ///
    /// # Errors
    /// At the cap or the owner's share.
    pub(super) fn take(&mut self, owner: &Owner, circuit: CircuitKey, streams: usize) -> Result<(), AtCap> {
        self.owners.take(owner)?;
        let circuits = self.circuits.entry(*owner).or_default();
        circuits.remove(&(streams, circuit));
        circuits.insert((streams.saturating_add(1), circuit));
        Ok(())
    }

    /// Counts the end of a stream of a circuit that has `streams` others.
    pub(super) fn release(&mut self, owner: &Owner, circuit: CircuitKey, streams: usize) {
        self.owners.release(owner);
        let Some(circuits) = self.circuits.get_mut(owner) else { return };
        circuits.remove(&(streams.saturating_add(1), circuit));
        if streams > 0 {
            circuits.insert((streams, circuit));
        }
        if circuits.is_empty() {
            self.circuits.remove(owner);
        }
    }

    /// The numbers of streams and of circuits with streams.
    #[cfg(any(test, fuzzing))]
    pub(super) fn len(&self) -> (usize, usize) {
        (self.owners.len(), self.circuits.values().map(BTreeSet::len).sum())
    }
}
