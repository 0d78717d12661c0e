//! The choice of circuits and channels to end when more cells are queued than a node may hold.
//!
//! Queued cells count for the owner that opened their circuit, so an attacker can't choose the victim by the age of its
//! own cells. All queued cells of an owner count. The end of a circuit with few cells frees none, because a DESTROY
//! replaces them, so the owner of many such circuits loses a channel.

use core::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use crate::base::{CircuitId, Owner, Shares};

use super::{CellOwner, ChannelId, Eviction, queue::QueuedCells};

/// The cells that the close of a channel frees.
#[derive(Default)]
struct ChannelCells {
    /// Cells of circuits that are not live, and of circuits whose end frees no cell, minus the DESTROYs that the close
    /// queues on other channels.
    freed: usize,
    /// Cells of circuits that are not live.
    ended: usize,
}

/// The queued cells of one owner.
#[derive(Default)]
struct OwnedCells {
    /// All queued cells of the owner, whether an eviction frees them or not.
    cells: usize,
    /// The circuits whose end frees cells, by the serial number of the first cell, each with the number of freed cells.
    /// The end of a circuit queues a DESTROY on each of its channels.
    circuits: BinaryHeap<Reverse<(u64, ChannelId, CircuitId, usize)>>,
    /// Cells of circuits that are not live, such as refusals.
    ended: usize,
    by_channel: HashMap<ChannelId, ChannelCells>,
    /// The channels whose close frees cells, by the number of freed cells, each with its cells of ended circuits.
    channels: BinaryHeap<(usize, usize, ChannelId)>,
}

impl OwnedCells {
    /// Adds cells to those that the close of a channel frees.
    fn add_to_channel(&mut self, channel: ChannelId, freed: usize, ended: usize) {
        let cells = self.by_channel.entry(channel).or_default();
        cells.freed = cells.freed.saturating_add(freed);
        cells.ended = cells.ended.saturating_add(ended);
    }

    /// Orders the channels, once all cells are added.
    fn order_channels(&mut self) {
        let freeing = self.by_channel.drain().filter(|(_, cells)| cells.freed > 0);
        self.channels = freeing.map(|(channel, cells)| (cells.freed, cells.ended, channel)).collect();
    }

    /// The next eviction, and the number of cells that it frees: the circuit whose first cell has waited longest. If
    /// most cells belong to no live circuit, or if the end of no circuit frees cells, the channel whose close frees the
    /// most.
    fn pop(&mut self) -> Option<(Eviction, usize)> {
        let popped = if self.ended > self.cells / 2 { None } else { self.circuits.pop() };
        let (eviction, freed) = match popped {
            Some(Reverse((_, channel, circuit, freed))) => (Eviction::Circuit(channel, circuit), freed),
            None => {
                let (freed, ended, channel) = self.channels.pop()?;
                self.ended = self.ended.saturating_sub(ended);
                (Eviction::Channel(channel), freed)
            }
        };
        self.cells = self.cells.saturating_sub(freed);
        Some((eviction, freed))
    }
}

/// The queued cells of all owners.
#[derive(Default)]
pub(super) struct Candidates {
    by_owner: HashMap<Owner, OwnedCells>,
}

impl Candidates {
    /// Adds the queued cells of a live circuit on `channel`, whose end queues a DESTROY there and `added` DESTROYs on
    /// other channels.
    pub(super) fn add_circuit(&mut self, owner: CellOwner, channel: ChannelId, queued: &QueuedCells, added: usize) {
        let owned = self.by_owner.entry(owner.owner).or_default();
        owned.cells = owned.cells.saturating_add(queued.cells);
        let freed = queued.cells.saturating_sub(added.saturating_add(1));
        if freed > 0 {
            owned.circuits.push(Reverse((queued.first_serial, channel, queued.circuit, freed)));
            return;
        }
        // The close of the owner's channel queues no DESTROY there.
        let destroys = if owner.channel == channel { added } else { 1 };
        owned.add_to_channel(owner.channel, queued.cells.saturating_sub(destroys), 0);
    }

    /// Adds queued cells that belong to no live circuit, and that the close of the owner's channel frees.
    pub(super) fn add_ended(&mut self, owner: CellOwner, cells: usize) {
        let owned = self.by_owner.entry(owner.owner).or_default();
        owned.cells = owned.cells.saturating_add(cells);
        owned.ended = owned.ended.saturating_add(cells);
        owned.add_to_channel(owner.channel, cells, cells);
    }

    /// Evictions that free at least `excess` cells, or all candidates. Each eviction is of the owner that is closest to
    /// its share after the previous evictions. An owner without a further eviction is skipped.
    pub(super) fn select(mut self, excess: usize) -> Vec<Eviction> {
        // Only the order of the owners counts; no cap applies here.
        let mut shares = Shares::new(0);
        for (owner, owned) in &mut self.by_owner {
            owned.order_channels();
            shares.add(owner, owned.cells);
        }
        let (mut evictions, mut freed) = (Vec::new(), 0_usize);
        while freed < excess {
            let Some(owner) = shares.fullest() else { break };
            let Some((eviction, cells)) = self.by_owner.get_mut(&owner).and_then(OwnedCells::pop) else {
                shares.subtract(&owner, shares.held(&owner));
                continue;
            };
            shares.subtract(&owner, cells);
            freed = freed.saturating_add(cells);
            evictions.push(eviction);
        }
        evictions
    }
}
