//! A queue in which items wait for their turn: with shares of a cap, and turns of the owners.

use std::collections::BTreeMap;

use super::{AtCap, Instant, Owned, Owner, OwnerTurns};

/// The items of all owners, by key. Each network and each listed relay has items handled in turn, each owner's oldest
/// first. An operation takes logarithmic time, and at most one iteration over the sources of one network.
pub struct TurnQueue<K, T> {
    items: BTreeMap<K, (Owner, Instant, T)>,
    /// The share of each owner, whose items are ordered by the time since which they wait.
    owned: Owned<Instant, K>,
    /// The turns of the owners with an item.
    turns: OwnerTurns,
}

impl<K: Copy + Ord, T> TurnQueue<K, T> {
    /// No item; at most `cap` items.
    #[must_use]
    pub fn new(cap: usize) -> Self {
        Self { items: BTreeMap::new(), owned: Owned::new(cap), turns: OwnerTurns::default() }
    }

    /// Whether no item waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Whether [`insert`](Self::insert) adds an item of `owner`.
    #[must_use]
    pub fn admits(&self, owner: &Owner) -> bool {
        self.owned.admits(owner)
    }

    /// Adds an item that waits since `since`. There must be none with this key. At a cap, removes the oldest item of
    /// another owner, and returns its key ([`Owned::to_evict`]).
    ///
    /// # Errors
    /// As [`Owned::to_evict`]; then nothing is added.
    pub fn insert(&mut self, since: Instant, owner: Owner, key: K, item: T) -> Result<Option<K>, AtCap> {
        let evicted = self.owned.to_evict(&owner)?;
        if let Some(evicted) = evicted {
            self.remove(evicted);
        }
        let is_first = self.owned.lowest_of(&owner).is_none();
        self.owned.insert(owner, since, key)?;
        if is_first {
            self.turns.add(owner);
        }
        self.items.insert(key, (owner, since, item));
        Ok(evicted)
    }

    /// The item with this key.
    pub fn get_mut(&mut self, key: K) -> Option<&mut T> {
        self.items.get_mut(&key).map(|(_, _, item)| item)
    }

    /// Removes and returns the item with this key.
    pub fn remove(&mut self, key: K) -> Option<T> {
        let (owner, since, item) = self.items.remove(&key)?;
        self.owned.remove(&owner, since, key);
        if self.owned.lowest_of(&owner).is_none() {
            self.turns.remove(&owner);
        }
        Some(item)
    }

    /// The keys in a range.
    pub fn range(&self, range: core::ops::RangeInclusive<K>) -> impl Iterator<Item = K> {
        self.items.range(range).map(|(key, _)| *key)
    }

    /// Removes and returns the next item: the oldest of the owner whose turn it is.
    pub fn pop(&mut self) -> Option<(K, T)> {
        let owner = self.turns.next_owner()?;
        let (_, key) = self.owned.lowest_of(&owner)?;
        Some((key, self.remove(key)?))
    }

    /// The numbers of items, and of turns in both indexes.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn counts(&self) -> (usize, usize, usize) {
        let (turns, order) = self.turns.len();
        (self.items.len(), turns, order)
    }
}
