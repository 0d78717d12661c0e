//! The simulated world: nodes and their network in virtual time.

use core::{net::SocketAddr, time::Duration};

use rand::{SeedableRng, rngs::ChaCha20Rng};

use crate::{
    base::{Instant, LinkMachine},
    transport::settle,
};

use super::{Network, NodeId, PathProfile};

/// A network with a protocol core of type `M` at each node.
pub struct World<M> {
    now: Instant,
    network: Network,
    machines: Vec<Option<M>>,
    rng: ChaCha20Rng,
}

impl<M: LinkMachine> World<M> {
    /// An empty world; `seed` determines all its random values.
    #[must_use]
    pub fn new(seed: u64, profile: PathProfile) -> Self {
        Self {
            now: Instant::START,
            network: Network::new(seed, profile),
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

    /// The random generator of the nodes.
    pub const fn rng(&mut self) -> &mut ChaCha20Rng {
        &mut self.rng
    }

    /// Reserves a place for a node at `address`; a node that `listens` can be dialled.
    pub fn add_node(&mut self, address: SocketAddr, listens: bool) -> NodeId {
        self.machines.push(None);
        self.network.add_node(address, listens)
    }

    /// Puts `machine` at `node`, which [`Self::add_node`] reserved.
    pub fn place(&mut self, node: NodeId, machine: M) {
        if let Some(place) = self.machines.get_mut(node.0) {
            *place = Some(machine);
        }
    }

    /// Removes `node` without closing its links.
    pub fn vanish(&mut self, node: NodeId) {
        self.network.vanish(self.now, node);
        if let Some(place) = self.machines.get_mut(node.0) {
            *place = None;
        }
    }

    /// Interrupts the line of `node` for `duration`, at least 3 s.
    pub fn interrupt(&mut self, node: NodeId, duration: Duration) {
        self.network.interrupt(self.now, node, duration);
    }

    /// Calls `operation` on the core at `node`, then sends the node's output.
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

    /// Advances time to the next event, at most to `limit`, and handles that event; `false` when `limit` is reached.
    pub fn step(&mut self, limit: Instant) -> bool {
        let deadlines = self.machines.iter().flatten().filter_map(LinkMachine::poll_timeout);
        let next = deadlines.chain(self.network.next_arrival()).min();
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

    /// Runs until `done` returns a value, at most for `limit` of virtual time.
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

    /// Exchanges events and messages between a node and the network until neither has more.
    fn settle(&mut self, node: NodeId) {
        let Some(Some(machine)) = self.machines.get_mut(node.0) else { return };
        let mut transport = self.network.transport(node);
        settle(self.now, machine, &mut transport, &mut self.rng);
    }
}
