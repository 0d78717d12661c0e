//! CREATEs that lack fragments, by endpoint, with caps and deadlines.

use std::collections::BTreeMap;

use crate::{
    base::{AtCap, Deadlines, HopIndex, Instant, Owned, Owner},
    channel::ChannelId,
    wire::Fragments,
};

use super::circuit::{CircuitEndpoint, FRAGMENTS_TIMEOUT};

/// A CREATE that lacks fragments.
pub(super) struct PartialCreate {
    pub(super) hop: HopIndex,
    pub(super) request: Fragments,
    owner: Owner,
    deadline: Instant,
}

impl PartialCreate {
    pub(super) fn new(now: Instant, hop: HopIndex, owner: Owner) -> Self {
        Self { hop, request: Fragments::new(), owner, deadline: now.after(FRAGMENTS_TIMEOUT) }
    }
}

/// All CREATEs that lack fragments, with their deadlines.
pub(super) struct PartialCreates {
    creates: BTreeMap<CircuitEndpoint, PartialCreate>,
    deadlines: Deadlines<CircuitEndpoint>,
    /// The share of each owner, whose CREATEs are ordered by deadline.
    owned: Owned<Instant, CircuitEndpoint>,
}

impl PartialCreates {
    pub(super) fn new(cap: usize) -> Self {
        Self { creates: BTreeMap::new(), deadlines: Deadlines::default(), owned: Owned::new(cap) }
    }

    /// Adds a CREATE on `endpoint`, which must have none. At a cap, removes the oldest CREATE of another owner, and
    /// returns its endpoint for the caller to refuse.
    ///
    /// # Errors
    /// As [`Owned::to_evict`]; then nothing is added.
    pub(super) fn insert(
        &mut self,
        endpoint: CircuitEndpoint,
        create: PartialCreate,
    ) -> Result<Option<CircuitEndpoint>, AtCap> {
        let evicted = self.owned.to_evict(&create.owner)?;
        if let Some(evicted) = evicted {
            self.remove(evicted);
        }
        self.owned.insert(create.owner, create.deadline, endpoint)?;
        self.deadlines.set(endpoint, create.deadline);
        self.creates.insert(endpoint, create);
        Ok(evicted)
    }

    /// Removes the CREATE on `endpoint`, if there is one.
    pub(super) fn remove(&mut self, endpoint: CircuitEndpoint) -> Option<PartialCreate> {
        let create = self.creates.remove(&endpoint)?;
        self.deadlines.remove(endpoint);
        self.owned.remove(&create.owner, create.deadline, endpoint);
        Some(create)
    }

    /// Removes the CREATEs on a closed channel.
    pub(super) fn remove_channel(&mut self, channel: ChannelId) {
        let endpoints: Vec<_> =
            self.creates.range(CircuitEndpoint::range(channel)).map(|(endpoint, _)| *endpoint).collect();
        for endpoint in endpoints {
            self.remove(endpoint);
        }
    }

    /// Removes the next CREATE whose deadline is `now` or earlier. Returns its endpoint for the caller to refuse.
    pub(super) fn pop_expired(&mut self, now: Instant) -> Option<CircuitEndpoint> {
        let endpoint = self.deadlines.pop_due(now)?;
        self.remove(endpoint);
        Some(endpoint)
    }

    /// The time of the next [`Self::pop_expired`].
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.deadlines.earliest()
    }

    /// The numbers of CREATEs and of their deadlines.
    #[cfg(any(test, fuzzing))]
    pub(super) fn len(&self) -> (usize, usize) {
        (self.creates.len(), self.deadlines.len())
    }
}
