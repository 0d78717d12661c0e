//! The table of a relay's circuits, indexed by channel and identifier on both sides, with their deadlines.

use std::collections::HashMap;

use slab::Slab;

use crate::{
    base::{CircuitId, Deadlines, Instant, Owned, Owner},
    channel::ChannelId,
};

use super::circuit::{Circuit, CircuitEndpoint, CircuitRank, Side};

/// The key of a circuit, never reused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct CircuitKey {
    slot: usize,
    generation: u64,
}

impl CircuitKey {
    /// A number that no other circuit of this relay has had.
    pub(super) const fn number(self) -> u64 {
        self.generation
    }

    #[cfg(test)]
    pub(super) const fn numbered(generation: u64) -> Self {
        Self { slot: 0, generation }
    }
}

/// All circuits. Lookup takes constant time.
pub(super) struct Table {
    /// Each circuit with its generation, since slots are reused.
    slots: Slab<(u64, Circuit)>,
    endpoints: HashMap<ChannelId, HashMap<CircuitId, (CircuitKey, Side)>>,
    /// Deadlines of circuits; an entry may be earlier than the deadline.
    deadlines: Deadlines<CircuitKey>,
    next_generation: u64,
    /// The circuit that [`Self::find_for_cell`] last found.
    last_found: Option<CircuitKey>,
    /// The cap on circuits, and the share of each owner.
    owners: Owned<CircuitRank, CircuitKey>,
    /// The circuits on the channel to each next hop, by owner.
    on_next: HashMap<ChannelId, Owned<CircuitRank, CircuitKey>>,
}

impl Table {
    /// An empty table for at most `cap` circuits.
    pub(super) fn new(cap: usize) -> Self {
        Self {
            slots: Slab::new(),
            endpoints: HashMap::new(),
            deadlines: Deadlines::default(),
            next_generation: 0,
            last_found: None,
            owners: Owned::new(cap),
            on_next: HashMap::new(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether `owner` may have one more circuit, if necessary after the end of another ([`Self::least_used`]).
    pub(super) fn admits(&self, owner: &Owner) -> bool {
        self.owners.admits(owner)
    }

    /// The circuit to end before one more of `owner` is added: the least used circuit of the owner that
    /// [`Owned::to_evict`] selects. `None` if there is room, or if the circuit of `owner` must be refused. `has_stream`
    /// returns whether a stream of a circuit is open at this relay.
    pub(super) fn least_used(&mut self, owner: &Owner, has_stream: impl Fn(CircuitKey) -> bool) -> Option<CircuitKey> {
        loop {
            let key = self.owners.to_evict(owner).ok()??;
            let circuit = self.circuit_mut(key)?;
            let (listed, current) = (circuit.listed_rank, circuit.current_rank(has_stream(key)));
            if current <= listed {
                return Some(key);
            }
            circuit.listed_rank = current;
            let loser = circuit.owner;
            self.owners.set_rank(&loser, listed, current, key);
        }
    }

    /// The circuit to end so that one more circuit of `owner` has room on a full channel to a next hop: the least used
    /// circuit there of the owner closest to its share. `None` if `owner` is as close to its share.
    pub(super) fn least_used_on(&mut self, channel: ChannelId, owner: &Owner) -> Option<CircuitKey> {
        if !self.on_next.get(&channel)?.is_below_fullest(owner) {
            return None;
        }
        loop {
            let (listed, key) = self.on_next.get(&channel)?.lowest()?;
            let circuit = self.circuit_mut(key)?;
            let current = circuit.current_rank(false);
            if current <= listed {
                return Some(key);
            }
            circuit.listed_next_rank = current;
            let owner = circuit.owner;
            self.on_next.get_mut(&channel)?.set_rank(&owner, listed, current, key);
        }
    }

    /// Admits no further circuit from now on.
    pub(super) const fn close(&mut self) {
        self.owners.close();
    }

    /// Adds a circuit. `None` if the share of its owner, or the cap, is reached.
    pub(super) fn insert(&mut self, circuit: Circuit) -> Option<CircuitKey> {
        let generation = self.next_generation;
        self.next_generation = generation.wrapping_add(1);
        let previous = circuit.previous;
        let key = CircuitKey { slot: self.slots.vacant_key(), generation };
        self.owners.insert(circuit.owner, circuit.listed_rank, key).ok()?;
        self.slots.insert((generation, circuit));
        self.insert_endpoint(previous, key, Side::Previous);
        self.schedule(key);
        Some(key)
    }

    /// Adds the endpoint towards the next hop.
    pub(super) fn insert_next(&mut self, endpoint: CircuitEndpoint, key: CircuitKey) {
        self.insert_endpoint(endpoint, key, Side::Next);
        let Some(circuit) = self.circuit_mut(key) else { return };
        circuit.listed_next_rank = circuit.current_rank(false);
        let (owner, rank) = (circuit.owner, circuit.listed_next_rank);
        self.on_next.entry(endpoint.channel).or_insert_with(|| Owned::new(0)).add(owner, rank, key);
    }

    /// Removes the endpoint of a circuit towards the next hop.
    pub(super) fn remove_next(&mut self, endpoint: CircuitEndpoint, key: CircuitKey) {
        self.remove_endpoint(endpoint);
        if let Some(circuit) = self.circuit(key) {
            let (owner, rank) = (circuit.owner, circuit.listed_next_rank);
            self.forget_next(endpoint.channel, &owner, rank, key);
        }
    }

    fn forget_next(&mut self, channel: ChannelId, owner: &Owner, rank: CircuitRank, key: CircuitKey) {
        let Some(circuits) = self.on_next.get_mut(&channel) else { return };
        circuits.remove(owner, rank, key);
        if circuits.is_empty() {
            self.on_next.remove(&channel);
        }
    }

    fn insert_endpoint(&mut self, endpoint: CircuitEndpoint, key: CircuitKey, side: Side) {
        self.endpoints.entry(endpoint.channel).or_default().insert(endpoint.circuit, (key, side));
    }

    /// Removes an endpoint, so that [`Self::find`] finds no circuit there.
    fn remove_endpoint(&mut self, endpoint: CircuitEndpoint) {
        let Some(endpoints) = self.endpoints.get_mut(&endpoint.channel) else { return };
        endpoints.remove(&endpoint.circuit);
        if endpoints.is_empty() {
            self.endpoints.remove(&endpoint.channel);
        }
    }

    /// The circuit with this endpoint, and the endpoint's side.
    pub(super) fn find(&self, endpoint: CircuitEndpoint) -> Option<(CircuitKey, Side)> {
        self.endpoints.get(&endpoint.channel)?.get(&endpoint.circuit).copied()
    }

    /// The same as [`Self::find`], for the endpoint of a received cell. Consecutive cells often belong to one circuit,
    /// which then needs no look-up.
    pub(super) fn find_for_cell(&mut self, endpoint: CircuitEndpoint) -> Option<(CircuitKey, Side)> {
        let last = self.last_found.and_then(|key| Some((key, self.circuit(key)?.side(endpoint)?)));
        let found = last.or_else(|| self.find(endpoint));
        debug_assert!(found == self.find(endpoint), "a circuit's endpoints differ from those of the table");
        self.last_found = found.map(|(key, _)| key);
        found
    }

    pub(super) fn circuit(&self, key: CircuitKey) -> Option<&Circuit> {
        let (generation, circuit) = self.slots.get(key.slot)?;
        (*generation == key.generation).then_some(circuit)
    }

    pub(super) fn circuit_mut(&mut self, key: CircuitKey) -> Option<&mut Circuit> {
        let (generation, circuit) = self.slots.get_mut(key.slot)?;
        (*generation == key.generation).then_some(circuit)
    }

    pub(super) fn remove(&mut self, key: CircuitKey) -> Option<Circuit> {
        self.circuit_mut(key)?;
        let (_, circuit) = self.slots.try_remove(key.slot)?;
        self.deadlines.remove(key);
        self.owners.remove(&circuit.owner, circuit.listed_rank, key);
        self.remove_endpoint(circuit.previous);
        if let Some(endpoint) = circuit.next.endpoint() {
            self.remove_endpoint(endpoint);
            self.forget_next(endpoint.channel, &circuit.owner, circuit.listed_next_rank, key);
        }
        Some(circuit)
    }

    /// The keys of all circuits.
    pub(super) fn keys(&self) -> Vec<CircuitKey> {
        self.slots.iter().map(|(slot, (generation, _))| CircuitKey { slot, generation: *generation }).collect()
    }

    /// Whether a circuit has an endpoint on a channel.
    pub(super) fn is_on(&self, channel: ChannelId) -> bool {
        self.endpoints.contains_key(&channel)
    }

    /// The circuits with an endpoint on a channel, and the side of that endpoint.
    pub(super) fn on_channel(&self, channel: ChannelId) -> Vec<(CircuitKey, Side)> {
        self.endpoints.get(&channel).into_iter().flat_map(HashMap::values).copied().collect()
    }

    /// Updates the deadline of a circuit after a change, if the new deadline is earlier.
    pub(super) fn schedule(&mut self, key: CircuitKey) {
        if let Some(due) = self.circuit(key).and_then(Circuit::poll_timeout) {
            self.deadlines.set_earlier(key, due);
        }
    }

    /// The next circuit whose deadline is `now` or earlier, which must end. `last_use` returns the time at which a
    /// circuit last served a stream.
    pub(super) fn poll_expired(
        &mut self,
        now: Instant,
        last_use: impl Fn(CircuitKey) -> Option<Instant>,
    ) -> Option<CircuitKey> {
        while let Some(key) = self.deadlines.pop_due(now) {
            let Some(circuit) = self.circuit_mut(key) else { continue };
            if let Some(time) = last_use(key) {
                circuit.set_served(time);
            }
            match circuit.poll_timeout() {
                Some(due) if due <= now => return Some(key),
                // The deadline is later than the entry.
                Some(due) => self.deadlines.set(key, due),
                None => {}
            }
        }
        None
    }

    /// The time of the next [`Self::poll_expired`].
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.deadlines.earliest()
    }

    #[cfg(any(test, fuzzing))]
    pub(super) const fn owners(&self) -> &Owned<CircuitRank, CircuitKey> {
        &self.owners
    }

    /// The number of channels to next hops.
    #[cfg(test)]
    pub(super) fn next_channels(&self) -> usize {
        self.on_next.len()
    }

    /// The number of circuits with a deadline.
    #[cfg(any(test, fuzzing))]
    pub(super) fn deadlines(&self) -> usize {
        self.deadlines.len()
    }
}
