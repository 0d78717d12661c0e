//! Shares of a relay's caps: items of a cap by owner, and which of them makes room.

use std::collections::{BTreeSet, HashMap};

use crate::base::{AtCap, Instant, Owner, Shares};

/// The use of a circuit, by which its owner's circuits are ordered. The one with the least use makes room.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct CircuitRank {
    /// Whether the circuit has a next hop or an open stream.
    pub(super) serves: bool,
    /// The time of the last cell from the origin.
    pub(super) last_cell: Instant,
}

/// The items of all owners, each owner's ordered by rank. At the cap, the lowest one of the fullest owner makes room.
///
/// Circuits have the rank of their use at their last visit, so a cell changes nothing here. A choice visits each
/// circuit that had cells since its last visit, and each visit is paid for by a cell.
pub(super) struct Owned<R, K> {
    shares: Shares,
    by_rank: HashMap<Owner, BTreeSet<(R, K)>>,
}

impl<R: Copy + Ord, K: Copy + Ord> Owned<R, K> {
    pub(super) fn new(cap: usize) -> Self {
        Self { shares: Shares::new(cap), by_rank: HashMap::new() }
    }

    /// Admits nothing from now on.
    pub(super) const fn close(&mut self) {
        self.shares.close();
    }

    /// Whether `owner` may have one more.
    pub(super) fn check(&self, owner: &Owner) -> Result<(), AtCap> {
        self.shares.check(owner)
    }

    /// Adds an item within the shares.
    pub(super) fn insert(&mut self, owner: Owner, rank: R, key: K) -> Result<(), AtCap> {
        self.shares.take(&owner)?;
        self.by_rank.entry(owner).or_default().insert((rank, key));
        Ok(())
    }

    /// Removes an item.
    pub(super) fn remove(&mut self, owner: &Owner, rank: R, key: K) {
        self.shares.release(owner);
        if let Some(items) = self.by_rank.get_mut(owner) {
            items.remove(&(rank, key));
            if items.is_empty() {
                self.by_rank.remove(owner);
            }
        }
    }

    /// The lowest item of the fullest owner, with its rank.
    pub(super) fn lowest(&self) -> Option<(R, K)> {
        self.by_rank.get(&self.shares.fullest()?)?.first().copied()
    }

    /// Changes the rank of an item.
    pub(super) fn set_rank(&mut self, owner: &Owner, before: R, rank: R, key: K) {
        if let Some(items) = self.by_rank.get_mut(owner) {
            items.remove(&(before, key));
            items.insert((rank, key));
        }
    }

    /// The number of items of an owner.
    #[cfg(test)]
    pub(super) fn held(&self, owner: &Owner) -> usize {
        self.shares.held(owner)
    }

    /// The numbers of items in the shares and in the order, and of owners.
    #[cfg(test)]
    pub(super) fn len(&self) -> (usize, usize, usize) {
        (self.shares.len(), self.by_rank.values().map(BTreeSet::len).sum(), self.by_rank.len())
    }
}
