//! The simulated world: nodes and their network in virtual time.

use core::{net::SocketAddr, time::Duration};

use rand::{SeedableRng, rngs::ChaCha20Rng};

use crate::{
    base::{Instant, LinkMachine},
    transport::settle,
};

use super::{LinkProperties, Network, NodeId};

/// A network with a machine of type `M` at each node.
pub struct World<M> {
    now: Instant,
    network: Network,
    machines: Vec<Option<M>>,
    rng: ChaCha20Rng,
}

impl<M: LinkMachine> World<M> {
    /// An empty world; `seed` determines all random values of the network and of the machines.
    #[must_use]
    pub fn new(seed: u64, properties: LinkProperties) -> Self {
        Self {
            now: Instant::START,
            network: Network::new(seed, properties),
            machines: Vec::new(),
            rng: ChaCha20Rng::seed_from_u64(seed),
        }
    }

    /// The virtual time.
    #[must_use]
    pub const fn now(&self) -> Instant {
        self.now
    }

    /// The network.
    #[must_use]
    pub const fn network(&self) -> &Network {
        &self.network
    }

    /// The random number generator that all nodes share.
    pub const fn rng(&mut self) -> &mut ChaCha20Rng {
        &mut self.rng
    }

    /// Adds a node at `address`, without a machine until [`Self::place`]. If `listens`, others can dial it.
    pub fn add_node(&mut self, address: SocketAddr, listens: bool) -> NodeId {
        self.machines.push(None);
        self.network.add_node(address, listens)
    }

    /// Puts `machine` at `node`, which [`Self::add_node`] returned. Replaces the previous machine of the node.
    pub fn place(&mut self, node: NodeId, machine: M) {
        if let Some(place) = self.machines.get_mut(node.0) {
            *place = Some(machine);
        }
    }

    /// Ends `node` and its machine without closing its links.
    pub fn crash(&mut self, node: NodeId) {
        self.network.crash(self.now, node);
        if let Some(place) = self.machines.get_mut(node.0) {
            *place = None;
        }
    }

    /// Interrupts the line of `node` for `duration`, at least 3 s.
    pub fn interrupt(&mut self, node: NodeId, duration: Duration) {
        self.network.interrupt(self.now, node, duration);
    }

    /// Calls `operation` on the machine at `node`, then sends the node's output. `None` if the node has no machine.
    pub fn with<T>(
        &mut self,
        node: NodeId,
        operation: impl FnOnce(&mut M, Instant, &mut ChaCha20Rng) -> T,
    ) -> Option<T> {
        let machine = self.machines.get_mut(node.0)?.as_mut()?;
        let outcome = operation(machine, self.now, &mut self.rng);
        self.settle(node);
        Some(outcome)
    }

    /// Advances time to the next event or timeout, and handles all due events and timeouts. If none is due until
    /// `limit`, advances time to `limit` and returns `false`.
    pub fn step(&mut self, limit: Instant) -> bool {
        let deadlines = self.machines.iter().flatten().filter_map(LinkMachine::poll_timeout);
        let next = deadlines.chain(self.network.next_event_at()).min();
        let Some(next) = next.filter(|next| *next <= limit) else {
            self.now = self.now.max(limit);
            return false;
        };
        self.now = self.now.max(next);
        for node in self.network.deliver(self.now) {
            self.settle(node);
        }
        for index in 0..self.machines.len() {
            if let Some(Some(machine)) = self.machines.get_mut(index)
                && machine.poll_timeout().is_some_and(|due| due <= self.now)
            {
                machine.handle_timeout(self.now, &mut self.rng);
                self.settle(NodeId(index));
            }
        }
        true
    }

    /// Runs until `done` returns a value, at most for `limit` of virtual time. `None` if `done` has returned no value
    /// by then.
    pub fn run_until<T>(&mut self, limit: Duration, mut done: impl FnMut(&mut Self) -> Option<T>) -> Option<T> {
        let end = self.now.after(limit);
        loop {
            if let Some(outcome) = done(self) {
                return Some(outcome);
            }
            if !self.step(end) {
                return done(self);
            }
        }
    }

    /// Exchanges events and messages between a node and the network until there are none.
    fn settle(&mut self, node: NodeId) {
        let Some(Some(machine)) = self.machines.get_mut(node.0) else { return };
        let mut transport = self.network.transport(node);
        settle(self.now, machine, &mut transport, &mut self.rng);
    }
}
