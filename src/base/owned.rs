//! The items of a cap by owner, within the shares of the owners, and the item that is evicted at the cap.

use core::cmp::Ordering;
use std::collections::{BTreeSet, HashMap};

use super::{AtCap, Owner, Shares};

/// The items of all owners, ordered by rank within each owner. At the cap, the caller evicts the lowest item of the
/// owner closest to its share.
///
/// The rank of an item need not be current: the caller may update the ranks of the lowest items at an eviction, until
/// the lowest rank is current.
pub struct Owned<R, K> {
    shares: Shares,
    by_rank: HashMap<Owner, BTreeSet<(R, K)>>,
}

impl<R: Copy + Ord, K: Copy + Ord> Owned<R, K> {
    /// No item; at most `cap` items.
    #[must_use]
    pub fn new(cap: usize) -> Self {
        Self { shares: Shares::new(cap), by_rank: HashMap::new() }
    }

    /// Admits no item from now on.
    pub const fn close(&mut self) {
        self.shares.close();
    }

    /// Whether `owner` may have one more item.
    ///
    /// # Errors
    /// As [`Shares::check`].
    pub fn check(&self, owner: &Owner) -> Result<(), AtCap> {
        self.shares.check(owner)
    }

    /// Whether one more item of `owner` may be added, if necessary after an eviction ([`to_evict`](Self::to_evict)).
    #[must_use]
    pub fn admits(&self, owner: &Owner) -> bool {
        self.to_evict(owner).is_ok()
    }

    /// The item that the caller must evict before it adds one of `owner`: at the cap, the lowest item of the owner
    /// closest to its share, even if `owner` is as close. At the share of the network of `owner`, the lowest item of the
    /// source with the most items in it, if that source keeps more than `owner`. `None` below both.
    ///
    /// # Errors
    /// [`AtCap::Share`] if the share of `owner` is reached, or that of its network and no source of it has more items.
    pub fn to_evict(&self, owner: &Owner) -> Result<Option<K>, AtCap> {
        Ok(self.loser(owner)?.and_then(|loser| self.lowest_of(&loser)).map(|(_, key)| key))
    }

    /// The owner whose item [`to_evict`](Self::to_evict) selects.
    ///
    /// # Errors
    /// As [`to_evict`](Self::to_evict).
    pub fn loser(&self, owner: &Owner) -> Result<Option<Owner>, AtCap> {
        match self.to_lose(owner) {
            Err(AtCap::All) => Ok(self.shares.crowding(owner)),
            loser => loser,
        }
    }

    /// The owner that must lose an item before the caller adds one of `owner`: at the cap, the owner closest to its
    /// share; at the share of the network of `owner`, the source with the most items in it. `None` below both.
    ///
    /// # Errors
    /// [`AtCap::Share`] and [`AtCap::All`] if the owner would lose an item although it would not have more of its share
    /// than `owner` ([`Shares::compare_with_one_more`]).
    pub fn to_lose(&self, owner: &Owner) -> Result<Option<Owner>, AtCap> {
        let Err(at_cap) = self.check(owner) else { return Ok(None) };
        let loser = self.shares.crowding(owner).filter(|loser| self.compare(owner, loser).is_lt());
        loser.map(Some).ok_or(at_cap)
    }

    /// Adds an item within the shares.
    ///
    /// # Errors
    /// As [`check`](Self::check); then nothing is added.
    pub fn insert(&mut self, owner: Owner, rank: R, key: K) -> Result<(), AtCap> {
        self.shares.take(&owner)?;
        self.by_rank.entry(owner).or_default().insert((rank, key));
        Ok(())
    }

    /// Adds an item whatever the share of its owner.
    pub fn add(&mut self, owner: Owner, rank: R, key: K) {
        self.shares.add(&owner, 1);
        self.by_rank.entry(owner).or_default().insert((rank, key));
    }

    /// The owner closest to its share.
    #[must_use]
    pub fn fullest(&self) -> Option<Owner> {
        self.shares.fullest()
    }

    /// Whether `owner` would be further from its share than the owner closest to its share even with one more item.
    #[must_use]
    pub fn is_below_fullest(&self, owner: &Owner) -> bool {
        self.fullest().is_some_and(|fullest| self.compare(owner, &fullest).is_lt())
    }

    /// As [`Shares::compare_with_one_more`].
    #[must_use]
    pub fn compare(&self, owner: &Owner, other: &Owner) -> Ordering {
        self.shares.compare_with_one_more(owner, other)
    }

    /// Whether there is no item.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.shares.is_empty()
    }

    /// The number of items.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shares.len()
    }

    /// Removes an item.
    pub fn remove(&mut self, owner: &Owner, rank: R, key: K) {
        self.shares.release(owner);
        if let Some(items) = self.by_rank.get_mut(owner) {
            items.remove(&(rank, key));
            if items.is_empty() {
                self.by_rank.remove(owner);
            }
        }
    }

    /// The lowest item of the owner closest to its share, with the item's rank.
    #[must_use]
    pub fn lowest(&self) -> Option<(R, K)> {
        self.lowest_of(&self.fullest()?)
    }

    /// The lowest item of `owner`, with the item's rank.
    #[must_use]
    pub fn lowest_of(&self, owner: &Owner) -> Option<(R, K)> {
        self.by_rank.get(owner)?.first().copied()
    }

    /// The items of `owner`, in the order of their rank.
    pub fn items_of(&self, owner: &Owner) -> impl Iterator<Item = K> {
        self.by_rank.get(owner).into_iter().flatten().map(|(_, key)| *key)
    }

    /// Changes the rank of an item.
    pub fn set_rank(&mut self, owner: &Owner, before: R, rank: R, key: K) {
        if let Some(items) = self.by_rank.get_mut(owner) {
            items.remove(&(before, key));
            items.insert((rank, key));
        }
    }

    /// The number of items of an owner.
    #[cfg(test)]
    pub(crate) fn held(&self, owner: &Owner) -> usize {
        self.shares.held(owner)
    }

    /// The numbers of items in the shares and in the order, and of owners.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn counts(&self) -> (usize, usize, usize) {
        (self.shares.len(), self.by_rank.values().map(BTreeSet::len).sum(), self.by_rank.len())
    }
}
