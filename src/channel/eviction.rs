//! The choice of circuits and channels to end when more cells are queued than a node may hold.
//!
//! Queued cells count for the owner that opened their circuit, so an attacker can't choose the victim by the age of its
//! own cells.

use core::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use crate::base::{CircuitId, Owner, Shares};

use super::{ChannelId, Eviction, queue::QueuedCells};

/// The queued cells of one owner that evictions can free.
#[derive(Default)]
struct OwnedCells {
    /// Cells that the evictions of all circuits and channels below free.
    cells: usize,
    /// The circuits whose end frees cells, by the serial number of the first cell, each with the number of freed cells.
    /// The end of a circuit queues a DESTROY on each of its channels.
    circuits: BinaryHeap<Reverse<(u64, ChannelId, CircuitId, usize)>>,
    /// Cells of circuits that are not live, such as refusals.
    ended: usize,
    /// The same for each channel, with the number of cells.
    channels: BinaryHeap<(usize, ChannelId)>,
}

impl OwnedCells {
    /// The next eviction, and the number of cells that it frees: if most cells belong to no live circuit, the channel
    /// with the most of those cells, otherwise the circuit whose first cell has waited longest.
    fn pop(&mut self) -> Option<(Eviction, usize)> {
        let popped = if self.ended > self.cells / 2 { None } else { self.circuits.pop() };
        let (eviction, freed) = match popped {
            Some(Reverse((_, channel, circuit, freed))) => (Eviction::Circuit(channel, circuit), freed),
            None => {
                let (ended, channel) = self.channels.pop()?;
                self.ended = self.ended.saturating_sub(ended);
                (Eviction::Channel(channel), ended)
            }
        };
        self.cells = self.cells.saturating_sub(freed);
        Some((eviction, freed))
    }
}

/// The queued cells of all owners that evictions can free.
#[derive(Default)]
pub(super) struct Candidates {
    by_owner: HashMap<Owner, OwnedCells>,
}

impl Candidates {
    /// Adds the queued cells of a live circuit, whose end queues this number of DESTROYs.
    pub(super) fn add_circuit(&mut self, owner: Owner, channel: ChannelId, queued: &QueuedCells, destroys: usize) {
        let freed = queued.cells.saturating_sub(destroys);
        if freed == 0 {
            return;
        }
        let owned = self.by_owner.entry(owner).or_default();
        owned.cells = owned.cells.saturating_add(freed);
        owned.circuits.push(Reverse((queued.first_serial, channel, queued.circuit, freed)));
    }

    /// Adds queued cells of a channel that belong to no live circuit.
    pub(super) fn add_ended(&mut self, owner: Owner, channel: ChannelId, cells: usize) {
        let owned = self.by_owner.entry(owner).or_default();
        owned.cells = owned.cells.saturating_add(cells);
        owned.ended = owned.ended.saturating_add(cells);
        owned.channels.push((cells, channel));
    }

    /// Evictions that free at least `excess` cells, or all candidates. Each eviction is one of the owner that is the
    /// closest to its share after the evictions before.
    pub(super) fn select(mut self, excess: usize) -> Vec<Eviction> {
        // Only the order of the owners counts; no cap applies here.
        let mut shares = Shares::new(0);
        for (owner, owned) in &self.by_owner {
            shares.add(owner, owned.cells);
        }
        let (mut evictions, mut freed) = (Vec::new(), 0_usize);
        while freed < excess {
            let Some(owner) = shares.fullest() else { break };
            let Some((eviction, cells)) = self.by_owner.get_mut(&owner).and_then(OwnedCells::pop) else { break };
            shares.subtract(&owner, cells);
            freed = freed.saturating_add(cells);
            evictions.push(eviction);
        }
        evictions
    }
}
