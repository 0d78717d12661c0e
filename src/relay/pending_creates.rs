//! CREATEs without an answer, by endpoint, with caps and deadlines.

use std::collections::BTreeMap;

use crate::{
    base::{AtCap, Deadlines, HopIndex, Instant, Owner},
    channel::ChannelId,
};

use super::{circuit::CircuitEndpoint, owners::Owned};

/// A CREATE without an answer. `T` is its request: the fragments received so far, or the complete request.
pub(super) struct PendingCreate<T> {
    pub(super) hop: HopIndex,
    pub(super) request: T,
    pub(super) owner: Owner,
    pub(super) deadline: Instant,
}

/// The CREATEs of one stage, which have a common cap. An operation takes logarithmic time.
pub(super) struct PendingCreates<T> {
    creates: BTreeMap<CircuitEndpoint, PendingCreate<T>>,
    deadlines: Deadlines<CircuitEndpoint>,
    /// The share of each owner, whose CREATEs are ordered by deadline.
    owned: Owned<Instant, CircuitEndpoint>,
}

impl<T> PendingCreates<T> {
    pub(super) fn new(cap: usize) -> Self {
        Self { creates: BTreeMap::new(), deadlines: Deadlines::default(), owned: Owned::new(cap) }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.creates.is_empty()
    }

    /// Whether `owner` may have one more CREATE.
    pub(super) fn check(&self, owner: &Owner) -> Result<(), AtCap> {
        self.owned.check(owner)
    }

    /// The CREATE that the caller must remove and refuse before it inserts one of `owner`: at the cap, the oldest CREATE
    /// of the owner closest to its share.
    ///
    /// # Errors
    /// When the share of `owner` is reached.
    pub(super) fn to_evict(&self, owner: &Owner) -> Result<Option<CircuitEndpoint>, AtCap> {
        match self.owned.check(owner) {
            Ok(()) => Ok(None),
            Err(AtCap::Share) => Err(AtCap::Share),
            Err(AtCap::All) => Ok(self.owned.lowest().map(|(_, endpoint)| endpoint)),
        }
    }

    /// Adds a CREATE on `endpoint`, which must have none.
    ///
    /// # Errors
    /// When the share of the owner of `create`, or the cap, is reached.
    pub(super) fn insert(&mut self, endpoint: CircuitEndpoint, create: PendingCreate<T>) -> Result<(), AtCap> {
        self.owned.insert(create.owner, create.deadline, endpoint)?;
        self.deadlines.set(endpoint, create.deadline);
        self.creates.insert(endpoint, create);
        Ok(())
    }

    /// Removes the CREATE on `endpoint`, if there is one.
    pub(super) fn remove(&mut self, endpoint: CircuitEndpoint) -> Option<PendingCreate<T>> {
        let create = self.creates.remove(&endpoint)?;
        self.deadlines.remove(endpoint);
        self.owned.remove(&create.owner, create.deadline, endpoint);
        Some(create)
    }

    /// The endpoints on `channel` that have a CREATE.
    pub(super) fn on_channel(&self, channel: ChannelId) -> Vec<CircuitEndpoint> {
        self.creates.range(CircuitEndpoint::range(channel)).map(|(endpoint, _)| *endpoint).collect()
    }

    /// The oldest CREATE of `owner`.
    pub(super) fn oldest_of(&self, owner: &Owner) -> Option<CircuitEndpoint> {
        self.owned.lowest_of(owner).map(|(_, endpoint)| endpoint)
    }

    /// The next CREATE whose deadline is `now` or earlier. The caller must remove the CREATE, or defer its deadline.
    pub(super) fn poll_expired(&mut self, now: Instant) -> Option<CircuitEndpoint> {
        self.deadlines.pop_due(now)
    }

    /// Defers the deadline of the CREATE on `endpoint`, which must have one. Its age remains.
    pub(super) fn defer(&mut self, endpoint: CircuitEndpoint, deadline: Instant) {
        self.deadlines.set(endpoint, deadline);
    }

    /// The time of the next [`Self::poll_expired`].
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.deadlines.earliest()
    }

    /// The numbers of CREATEs and of their deadlines.
    #[cfg(any(test, fuzzing))]
    pub(super) fn len(&self) -> (usize, usize) {
        (self.creates.len(), self.deadlines.len())
    }
}
