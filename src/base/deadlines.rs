//! Deadlines by key, at most one deadline for each key, ordered by time.

use std::collections::{BTreeMap, BTreeSet};

use super::Instant;

/// Deadlines by key.
///
/// Memory: two entries for each key with a deadline; the owner bounds the number of keys.
#[derive(Debug)]
pub struct Deadlines<K> {
    order: BTreeSet<(Instant, K)>,
    by_key: BTreeMap<K, Instant>,
}

impl<K> Default for Deadlines<K> {
    fn default() -> Self {
        Self { order: BTreeSet::new(), by_key: BTreeMap::new() }
    }
}

impl<K: Copy + Ord> Deadlines<K> {
    /// Sets the deadline of `key`; replaces the key's previous deadline.
    pub fn set(&mut self, key: K, deadline: Instant) {
        if let Some(old) = self.by_key.insert(key, deadline) {
            self.order.remove(&(old, key));
        }
        self.order.insert((deadline, key));
    }

    /// Sets the deadline of `key` unless the key has an earlier deadline.
    ///
    /// Saves work for a deadline that often moves later: the earlier deadline expires once, and the owner then sets the
    /// current one.
    pub fn set_earlier(&mut self, key: K, deadline: Instant) {
        if self.by_key.get(&key).is_none_or(|old| deadline < *old) {
            self.set(key, deadline);
        }
    }

    /// Whether `key` has a deadline.
    #[must_use]
    pub fn contains(&self, key: K) -> bool {
        self.by_key.contains_key(&key)
    }

    /// Removes the deadline of `key`, if the key has one.
    pub fn remove(&mut self, key: K) {
        if let Some(deadline) = self.by_key.remove(&key) {
            self.order.remove(&(deadline, key));
        }
    }

    /// Removes and returns the key with the earliest deadline, if that deadline is `now` or earlier.
    pub fn pop_due(&mut self, now: Instant) -> Option<K> {
        let (deadline, key) = *self.order.first()?;
        if deadline > now {
            return None;
        }
        self.remove(key);
        Some(key)
    }

    /// The earliest deadline.
    #[must_use]
    pub fn earliest(&self) -> Option<Instant> {
        self.order.first().map(|(deadline, _)| *deadline)
    }

    /// The keys in the order of their deadlines.
    pub fn keys(&self) -> impl Iterator<Item = K> {
        self.order.iter().map(|(_, key)| *key)
    }

    /// The number of keys with a deadline.
    #[must_use]
    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// Whether no key has a deadline.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// Removes all deadlines.
    pub fn clear(&mut self) {
        self.order.clear();
        self.by_key.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(nanos: u64) -> Instant {
        Instant::from_nanos(nanos)
    }

    #[test]
    fn each_key_expires_once_at_its_last_deadline_in_the_order_of_time() {
        let mut deadlines = Deadlines::default();
        for (key, deadline) in [(1, 30), (2, 10), (3, 20), (2, 40), (4, 20)] {
            deadlines.set(key, at(deadline));
        }
        deadlines.remove(4);
        assert!(deadlines.contains(2) && !deadlines.contains(4));
        assert_eq!((deadlines.len(), deadlines.earliest()), (3, Some(at(20))));
        assert_eq!(deadlines.pop_due(at(19)), None);
        assert_eq!(deadlines.keys().collect::<Vec<_>>(), [3, 1, 2]);
        let expired: Vec<_> = core::iter::from_fn(|| deadlines.pop_due(at(40))).collect();
        assert_eq!(expired, [3, 1, 2]);
        assert!(deadlines.is_empty() && deadlines.earliest().is_none());
    }

    #[test]
    fn a_later_deadline_does_not_replace_an_earlier_one_unless_it_is_set() {
        let mut deadlines = Deadlines::default();
        deadlines.set_earlier('a', at(5));
        deadlines.set_earlier('a', at(9));
        assert_eq!(deadlines.earliest(), Some(at(5)));
        deadlines.set_earlier('a', at(3));
        assert_eq!((deadlines.len(), deadlines.earliest()), (1, Some(at(3))));
        deadlines.set('a', at(9));
        assert_eq!((deadlines.len(), deadlines.earliest()), (1, Some(at(9))));
        deadlines.clear();
        assert!(deadlines.is_empty());
    }
}
