//! Shares of a relay's caps: the items of a cap by owner, and the item that is evicted at the cap.

use std::collections::{BTreeSet, HashMap};

use crate::base::{AtCap, Instant, Owner, Shares};

/// The use of a circuit, by which the circuits of an owner are ordered. At the cap, the least used circuit is evicted.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct CircuitRank {
    /// Whether the circuit has a next hop or an open stream.
    pub(super) serves: bool,
    /// The time of the last cell from the origin.
    pub(super) last_cell: Instant,
}

/// The items of all owners, ordered by rank within each owner. At the cap, the caller evicts the lowest item of the
/// owner closest to its share.
///
/// A cell does not update the rank of its circuit here. An eviction ([`Table::least_used`](super::table::Table))
/// updates the ranks of the lowest circuits until the lowest rank is current. So there are no more updates than cells.
pub(super) struct Owned<R, K> {
    shares: Shares,
    by_rank: HashMap<Owner, BTreeSet<(R, K)>>,
}

impl<R: Copy + Ord, K: Copy + Ord> Owned<R, K> {
    pub(super) fn new(cap: usize) -> Self {
        Self { shares: Shares::new(cap), by_rank: HashMap::new() }
    }

    /// Admits no item from now on.
    pub(super) const fn close(&mut self) {
        self.shares.close();
    }

    /// Whether `owner` may have one more item.
    pub(super) fn check(&self, owner: &Owner) -> Result<(), AtCap> {
        self.shares.check(owner)
    }

    /// Adds an item within the shares.
    pub(super) fn insert(&mut self, owner: Owner, rank: R, key: K) -> Result<(), AtCap> {
        self.shares.take(&owner)?;
        self.by_rank.entry(owner).or_default().insert((rank, key));
        Ok(())
    }

    /// Adds an item whatever the share of its owner.
    pub(super) fn add(&mut self, owner: Owner, rank: R, key: K) {
        self.shares.add(&owner, 1);
        self.by_rank.entry(owner).or_default().insert((rank, key));
    }

    /// Whether `owner` is further from its share than the owner closest to its share.
    pub(super) fn is_below_fullest(&self, owner: &Owner) -> bool {
        let fullest = self.shares.fullest().map(|fullest| self.shares.fullness(&fullest));
        fullest.is_some_and(|fullest| self.shares.fullness(owner) < fullest)
    }

    /// Whether there is no item.
    pub(super) fn is_empty(&self) -> bool {
        self.shares.is_empty()
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

    /// The lowest item of the owner closest to its share, with the item's rank.
    pub(super) fn lowest(&self) -> Option<(R, K)> {
        self.lowest_of(&self.shares.fullest()?)
    }

    /// The lowest item of `owner`, with the item's rank.
    pub(super) fn lowest_of(&self, owner: &Owner) -> Option<(R, K)> {
        self.by_rank.get(owner)?.first().copied()
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
