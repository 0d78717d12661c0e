//! Half-built circuits: CREATEs that lack fragments.

use std::collections::BTreeMap;

use crate::{
    base::{AtCap, Deadlines, HopIndex, Instant, Owner},
    channel::ChannelId,
    wire::Fragments,
};

use super::{
    circuit::{CircuitEndpoint, FRAGMENTS_TIMEOUT},
    owners::Owned,
};

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

/// All half-built circuits, with their deadlines.
pub(super) struct HalfBuilt {
    creates: BTreeMap<CircuitEndpoint, PartialCreate>,
    deadlines: Deadlines<CircuitEndpoint>,
    /// The share of each owner, with its CREATEs ordered by deadline.
    owned: Owned<Instant, CircuitEndpoint>,
}

impl HalfBuilt {
    pub(super) fn new(cap: usize) -> Self {
        Self { creates: BTreeMap::new(), deadlines: Deadlines::default(), owned: Owned::new(cap) }
    }

    /// Adds a CREATE that `endpoint` has none of. At the cap, removes the oldest one of the fullest owner and returns
    /// its endpoint; it is to be refused.
    ///
    /// # Errors
    /// When its owner may have no more.
    pub(super) fn insert(
        &mut self,
        endpoint: CircuitEndpoint,
        create: PartialCreate,
    ) -> Result<Option<CircuitEndpoint>, AtCap> {
        let evicted = match self.owned.check(&create.owner) {
            Ok(()) => None,
            Err(AtCap::Part) => return Err(AtCap::Part),
            Err(AtCap::All) => self.owned.lowest().map(|(_, endpoint)| endpoint),
        };
        if let Some(evicted) = evicted {
            self.remove(evicted);
        }
        self.owned.insert(create.owner, create.deadline, endpoint)?;
        self.deadlines.set(endpoint, create.deadline);
        self.creates.insert(endpoint, create);
        Ok(evicted)
    }

    pub(super) fn remove(&mut self, endpoint: CircuitEndpoint) -> Option<PartialCreate> {
        let create = self.creates.remove(&endpoint)?;
        self.deadlines.remove(endpoint);
        self.owned.remove(&create.owner, create.deadline, endpoint);
        Some(create)
    }

    /// Removes those of a closed channel.
    pub(super) fn remove_channel(&mut self, channel: ChannelId) {
        let endpoints: Vec<_> =
            self.creates.range(CircuitEndpoint::range(channel)).map(|(endpoint, _)| *endpoint).collect();
        for endpoint in endpoints {
            self.remove(endpoint);
        }
    }

    /// Removes the next one whose deadline is `now` or earlier; it is to be refused.
    pub(super) fn pop_late(&mut self, now: Instant) -> Option<CircuitEndpoint> {
        let endpoint = self.deadlines.pop_due(now)?;
        self.remove(endpoint);
        Some(endpoint)
    }

    /// The time of the next [`Self::pop_late`].
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.deadlines.earliest()
    }

    /// The numbers of half-built circuits and of their deadlines.
    #[cfg(test)]
    pub(super) fn len(&self) -> (usize, usize) {
        (self.creates.len(), self.deadlines.len())
    }
}
