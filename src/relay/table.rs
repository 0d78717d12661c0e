//! The table of a relay's circuits, by the channel and identifier of either side.

use core::ops::RangeInclusive;
use std::collections::HashMap;

use slab::Slab;

use crate::{
    base::{CircuitId, HopIndex, Instant, RelayId, Ticket},
    channel::ChannelId,
    onion::RelayLayer,
    wire::Fragments,
};

use super::{UNUSED_LATER_LIMIT, UNUSED_LIMIT, exit_side::ExitSide};

/// A circuit on one channel: its endpoint towards the origin, or towards the next hop.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct CircuitEndpoint {
    pub(super) channel: ChannelId,
    pub(super) circuit: CircuitId,
}

impl CircuitEndpoint {
    /// All possible endpoints of a channel.
    pub(super) fn range(channel: ChannelId) -> RangeInclusive<Self> {
        Self { channel, circuit: CircuitId::LOWEST }..=Self { channel, circuit: CircuitId::HIGHEST }
    }
}

/// The endpoint by which a circuit was found.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// Towards the origin.
    Previous,
    /// Towards the next hop.
    Next,
}

/// The key of a circuit, never reused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct CircuitKey {
    slot: usize,
    generation: u64,
}

impl CircuitKey {
    /// A number that no other circuit of this relay has had.
    pub(super) const fn number(self) -> u64 {
        self.generation
    }
}

/// The state of a circuit's next hop.
pub(super) enum NextHop {
    /// The circuit ends here.
    None,
    /// The channel to the next hop is being dialled; `request` is sent once it is open.
    Dialling { relay: RelayId, request: Vec<u8> },
    /// CREATE is sent; CREATED is incomplete.
    Creating { endpoint: CircuitEndpoint, volunteer: bool, reply: Fragments },
    /// The next hop has answered.
    Open(CircuitEndpoint),
}

impl NextHop {
    /// The endpoint towards the next hop, if there is one.
    pub(super) const fn endpoint(&self) -> Option<CircuitEndpoint> {
        match self {
            Self::Creating { endpoint, .. } | Self::Open(endpoint) => Some(*endpoint),
            Self::None | Self::Dialling { .. } => None,
        }
    }
}

/// One circuit.
pub(super) struct Circuit {
    pub(super) hop: HopIndex,
    pub(super) previous: CircuitEndpoint,
    pub(super) next: NextHop,
    pub(super) layer: RelayLayer,
    /// The fragments of an incomplete EXTEND.
    pub(super) extend: Fragments,
    /// Number of GONE messages sent.
    pub(super) gone: u8,
    /// The deadline of a running EXTEND.
    pub(super) deadline: Option<Instant>,
    /// The time of the last cell from the origin.
    pub(super) last_cell: Instant,
    /// The streams that end here, from the first stream message on.
    pub(super) exit_side: Option<Box<ExitSide>>,
    /// Its place in the queue of circuits with pending messages.
    pub(super) ready: Ticket,
}

/// A deadline has passed, and the circuit must end.
pub(super) struct DeadlinePassed;

impl Circuit {
    pub(super) const fn new(now: Instant, hop: HopIndex, previous: CircuitEndpoint, layer: RelayLayer) -> Self {
        Self {
            hop,
            previous,
            next: NextHop::None,
            layer,
            extend: Fragments::new(),
            gone: 0,
            deadline: None,
            last_cell: now,
            exit_side: None,
            ready: Ticket::new(),
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let exit_side = self.exit_side.as_ref().and_then(|exit_side| exit_side.streams.poll_timeout());
        [self.deadline, exit_side, self.unused_until()].into_iter().flatten().min()
    }

    /// When the circuit ends as unused; `None` once it is extended or has had a stream.
    fn unused_until(&self) -> Option<Instant> {
        let unused = matches!(self.next, NextHop::None) && self.exit_side.is_none();
        let limit = if self.hop == HopIndex::FIRST { UNUSED_LIMIT } else { UNUSED_LATER_LIMIT };
        unused.then(|| self.last_cell.after(limit))
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) -> Result<(), DeadlinePassed> {
        if [self.deadline, self.unused_until()].into_iter().flatten().any(|due| due <= now) {
            return Err(DeadlinePassed);
        }
        match self.exit_side.as_mut().map(|exit_side| exit_side.streams.handle_timeout(now)) {
            Some(Err(_)) => Err(DeadlinePassed),
            Some(Ok(())) | None => Ok(()),
        }
    }
}

/// All circuits. Lookup takes constant time.
#[derive(Default)]
pub(super) struct Table {
    /// Each circuit with its generation, since slots are reused.
    slots: Slab<(u64, Circuit)>,
    endpoints: HashMap<ChannelId, HashMap<CircuitId, (CircuitKey, Side)>>,
    next_generation: u64,
}

impl Table {
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn insert(&mut self, circuit: Circuit) -> CircuitKey {
        let generation = self.next_generation;
        self.next_generation = generation.wrapping_add(1);
        let previous = circuit.previous;
        let slot = self.slots.insert((generation, circuit));
        let key = CircuitKey { slot, generation };
        self.insert_endpoint(previous, key, Side::Previous);
        key
    }

    /// Adds the endpoint towards the next hop.
    pub(super) fn insert_next(&mut self, endpoint: CircuitEndpoint, key: CircuitKey) {
        self.insert_endpoint(endpoint, key, Side::Next);
    }

    fn insert_endpoint(&mut self, endpoint: CircuitEndpoint, key: CircuitKey, side: Side) {
        self.endpoints.entry(endpoint.channel).or_default().insert(endpoint.circuit, (key, side));
    }

    /// Removes an endpoint, so that it finds no circuit.
    pub(super) fn remove_endpoint(&mut self, endpoint: CircuitEndpoint) {
        let Some(endpoints) = self.endpoints.get_mut(&endpoint.channel) else { return };
        endpoints.remove(&endpoint.circuit);
        if endpoints.is_empty() {
            self.endpoints.remove(&endpoint.channel);
        }
    }

    pub(super) fn find(&self, endpoint: CircuitEndpoint) -> Option<(CircuitKey, Side)> {
        self.endpoints.get(&endpoint.channel)?.get(&endpoint.circuit).copied()
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
        self.remove_endpoint(circuit.previous);
        if let Some(endpoint) = circuit.next.endpoint() {
            self.remove_endpoint(endpoint);
        }
        Some(circuit)
    }

    /// All circuits.
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
}
