//! Circuits that wait for a channel to their next hop, with the CREATEs to send over it.

use std::collections::BTreeMap;

use crate::{base::RelayId, channel::ChannelId};

use super::table::CircuitKey;

/// Cap on waiting circuits of one channel. It leaves room for other neighbours if one extends to relays that don't
/// answer.
const DIALLING_PER_CHANNEL: usize = 256;
/// Cap on relays that the circuits of one channel wait for, because a node's dials are few.
const DIALS_PER_CHANNEL: usize = 16;

/// A waiting circuit.
struct Waiting {
    /// The channel towards the origin.
    previous: ChannelId,
    /// The request of the CREATE.
    request: Vec<u8>,
}

/// All waiting circuits, by the relay that is dialled.
pub(super) struct Dialling {
    relays: BTreeMap<RelayId, BTreeMap<CircuitKey, Waiting>>,
    /// The cap on waiting circuits of all channels.
    cap: usize,
}

impl Dialling {
    pub(super) const fn new(cap: usize) -> Self {
        Self { relays: BTreeMap::new(), cap }
    }

    /// Whether a circuit from the channel `previous` may wait for a channel to `relay`.
    pub(super) fn has_room(&self, previous: ChannelId, relay: &RelayId) -> bool {
        let (mut all, mut of_channel, mut relays) = (0_usize, 0_usize, 0_usize);
        for (dialled, circuits) in &self.relays {
            let own = circuits.values().filter(|waiting| waiting.previous == previous).count();
            all = all.saturating_add(circuits.len());
            of_channel = of_channel.saturating_add(own);
            relays = relays.saturating_add(usize::from(own > 0 && dialled != relay));
        }
        all < self.cap && of_channel < DIALLING_PER_CHANNEL && relays < DIALS_PER_CHANNEL
    }

    /// Adds a circuit from the channel `previous` that waits for a channel to `relay`.
    pub(super) fn insert(&mut self, relay: RelayId, key: CircuitKey, previous: ChannelId, request: Vec<u8>) {
        self.relays.entry(relay).or_default().insert(key, Waiting { previous, request });
    }

    /// Removes a circuit that has ended.
    pub(super) fn remove(&mut self, relay: &RelayId, key: CircuitKey) {
        if let Some(circuits) = self.relays.get_mut(relay) {
            circuits.remove(&key);
            if circuits.is_empty() {
                self.relays.remove(relay);
            }
        }
    }

    /// Removes the circuits that wait for `relay`, with the request of each one's CREATE.
    pub(super) fn take(&mut self, relay: &RelayId) -> impl Iterator<Item = (CircuitKey, Vec<u8>)> + use<> {
        let circuits = self.relays.remove(relay).unwrap_or_default();
        circuits.into_iter().map(|(key, waiting)| (key, waiting.request))
    }

    /// The number of circuits that wait for `relay`.
    #[cfg(test)]
    pub(super) fn len(&self, relay: &RelayId) -> usize {
        self.relays.get(relay).map_or(0, BTreeMap::len)
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.relays.is_empty()
    }
}
