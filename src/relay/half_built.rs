//! Half-built circuits: CREATEs that lack fragments.

use std::collections::BTreeMap;

use crate::{
    base::{Deadlines, HopIndex, Instant},
    channel::ChannelId,
    wire::Fragments,
};

use super::circuit::{CircuitEndpoint, FRAGMENTS_LIMIT};

/// Cap on half-built circuits of one channel.
const HALF_BUILT_PER_CHANNEL: usize = 64;

/// A CREATE that lacks fragments.
pub(super) struct PartialCreate {
    pub(super) hop: HopIndex,
    pub(super) request: Fragments,
    deadline: Instant,
}

impl PartialCreate {
    pub(super) fn new(now: Instant, hop: HopIndex) -> Self {
        Self { hop, request: Fragments::new(), deadline: now.after(FRAGMENTS_LIMIT) }
    }
}

/// All half-built circuits, with their deadlines.
pub(super) struct HalfBuilt {
    creates: BTreeMap<CircuitEndpoint, PartialCreate>,
    deadlines: Deadlines<CircuitEndpoint>,
    /// The cap on half-built circuits of all channels.
    cap: usize,
}

impl HalfBuilt {
    pub(super) fn new(cap: usize) -> Self {
        Self { creates: BTreeMap::new(), deadlines: Deadlines::default(), cap }
    }

    /// Adds a CREATE that `endpoint` has none of; false if a cap is reached.
    pub(super) fn insert(&mut self, endpoint: CircuitEndpoint, create: PartialCreate) -> bool {
        let of_channel =
            self.creates.range(CircuitEndpoint::range(endpoint.channel)).take(HALF_BUILT_PER_CHANNEL).count();
        if self.creates.len() >= self.cap || of_channel >= HALF_BUILT_PER_CHANNEL {
            return false;
        }
        self.deadlines.set(endpoint, create.deadline);
        self.creates.insert(endpoint, create);
        true
    }

    pub(super) fn remove(&mut self, endpoint: CircuitEndpoint) -> Option<PartialCreate> {
        self.deadlines.remove(endpoint);
        self.creates.remove(&endpoint)
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
        self.creates.remove(&endpoint);
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
