//! The queued cells of one channel, and their fair scheduling.
//!
//! Fair queueing after fq_codel (RFC 8290 §4). A cell for a circuit on neither list puts the circuit at the end of the
//! *quiet* list, which is served before the *busy* list. A circuit that has used up its quantum, or has emptied its
//! queue in its quiet turn, goes to the end of the busy list. So a cell of an interactive circuit precedes the queued
//! cells of a bulk circuit, and bulk circuits share equally. A push or a pop takes amortised constant time.
//!
//! The queue caps the cells of a circuit ([`QueueFull`], after which the caller ends the circuit). The channel caps
//! circuits and refusals; [`Channels`](super::Channels) caps the cells of all channels.

use std::collections::{HashMap, VecDeque};

use slab::Slab;

use crate::{
    base::{CircuitId, Counter as _},
    wire::{Cell, Command},
};

use super::{QUEUE_LOW, QueueFull};

/// Cells that a circuit may send in one turn.
const QUANTUM: u8 = 4;
/// Maximum capacity, in cells, that a circuit's queue keeps once it is empty.
const MAX_KEPT_CAPACITY: usize = 64;

/// The list that contains a circuit.
#[derive(Clone, Copy, PartialEq, Eq)]
enum List {
    None,
    Quiet,
    Busy,
}

/// The queued cells of one circuit.
struct CircuitQueue {
    circuit: CircuitId,
    /// Cells, each with a serial number that is unique over all channels and orders cells by waiting time.
    cells: VecDeque<(u64, Cell)>,
    /// Cells left of the circuit's quantum.
    quantum_left: u8,
    list: List,
    /// Whether the circuit is live: admitted and not yet ended. The entry of a live circuit stays while its queue is
    /// empty.
    live: bool,
    /// Whether the circuit was not live when its first cell was queued, so that its queued cells are a refusal.
    refused: bool,
}

/// The queued cells of one circuit: at least one.
pub(super) struct QueuedCells {
    pub(super) circuit: CircuitId,
    pub(super) live: bool,
    pub(super) cells: usize,
    /// The serial number of the first cell.
    pub(super) first_serial: u64,
}

/// The next cell to send.
pub(super) struct NextCell {
    pub(super) cell: Cell,
    pub(super) circuit: CircuitId,
    /// Whether the removal of this cell reduced the queue of a live circuit to [`QUEUE_LOW`].
    pub(super) queue_low: bool,
}

/// The queued cells of a channel, by circuit.
#[derive(Default)]
pub(super) struct FairQueue {
    /// The slot in `entries` of each circuit.
    index: HashMap<CircuitId, usize>,
    entries: Slab<CircuitQueue>,
    /// The slot of the last cell's circuit. Consecutive cells often belong to one circuit, which then needs no look-up.
    last_slot: usize,
    quiet: VecDeque<usize>,
    busy: VecDeque<usize>,
    /// Number of queued cells.
    cells: usize,
    /// Number of live circuits.
    live: usize,
    /// Number of entries that are refusals.
    refused: usize,
}

impl FairQueue {
    /// Queued cells.
    pub(super) const fn len(&self) -> usize {
        self.cells
    }

    /// Live circuits of the channel.
    pub(super) const fn circuits(&self) -> usize {
        self.live
    }

    /// Circuits that have an entry: live, with queued cells, or ended and not yet removed from its list by
    /// [`Self::pop`].
    pub(super) fn entries(&self) -> usize {
        self.index.len()
    }

    /// Circuits whose queued cells are a refusal.
    pub(super) const fn refusals(&self) -> usize {
        self.refused
    }

    /// Whether the identifier has an entry (see [`Self::entries`]).
    pub(super) fn contains(&self, circuit: CircuitId) -> bool {
        self.index.contains_key(&circuit)
    }

    /// Queued cells of `circuit`.
    pub(super) fn queued_of(&self, circuit: CircuitId) -> usize {
        self.entry(circuit).map_or(0, |queue| queue.cells.len())
    }

    /// Makes `circuit` live; `false` if the circuit is live already.
    pub(super) fn admit(&mut self, circuit: CircuitId) -> bool {
        let slot = self.slot_or_new(circuit);
        let Some(queue) = self.entries.get_mut(slot) else { return false };
        if core::mem::replace(&mut queue.live, true) {
            return false;
        }
        if core::mem::take(&mut queue.refused) {
            self.refused.decrement();
        }
        self.live.increment();
        true
    }

    /// Ends `circuit`; its queued cells are still sent.
    pub(super) fn end(&mut self, circuit: CircuitId) {
        let Some(&slot) = self.index.get(&circuit) else { return };
        let Some(queue) = self.entries.get_mut(slot) else { return };
        if core::mem::take(&mut queue.live) {
            self.live.decrement();
        }
        if queue.list == List::None {
            self.vacate(slot);
        }
    }

    /// Drops the queued cells of `circuit`; returns the number of dropped cells.
    pub(super) fn clear(&mut self, circuit: CircuitId) -> usize {
        let Some(queue) = self.entry_mut(circuit) else { return 0 };
        let cleared = queue.cells.len();
        queue.cells = VecDeque::new();
        self.cells = self.cells.saturating_sub(cleared);
        cleared
    }

    /// Queues `cell`, with its serial number over all channels. A DESTROY first drops the queued cells of its circuit.
    ///
    /// # Errors
    /// When `limit` cells of the circuit are queued.
    pub(super) fn push(&mut self, circuit: CircuitId, serial: u64, cell: Cell, limit: usize) -> Result<(), QueueFull> {
        if cell.command() == Command::Destroy {
            self.clear(circuit);
        }
        let slot = self.slot_or_new(circuit);
        let Some(queue) = self.entries.get_mut(slot) else { return Err(QueueFull) };
        if queue.cells.len() >= limit {
            return Err(QueueFull);
        }
        queue.cells.push_back((serial, cell));
        if queue.list == List::None {
            if !queue.live {
                queue.refused = true;
                self.refused.increment();
            }
            queue.list = List::Quiet;
            queue.quantum_left = QUANTUM;
            self.quiet.push_back(slot);
        }
        self.cells.increment();
        Ok(())
    }

    /// Removes and returns the next cell to send.
    pub(super) fn pop(&mut self) -> Option<NextCell> {
        self.remove_idle();
        loop {
            let from_quiet = !self.quiet.is_empty();
            let list = if from_quiet { &mut self.quiet } else { &mut self.busy };
            let slot = *list.front()?;
            let Some(queue) = self.entries.get_mut(slot) else {
                list.pop_front();
                continue;
            };
            if queue.quantum_left == 0 || queue.cells.is_empty() {
                list.pop_front();
                // A circuit that has emptied its queue in a quiet turn goes to the busy list for one round. Otherwise
                // its next cell would always precede the cells of busy circuits.
                if !queue.cells.is_empty() || (from_quiet && queue.live) {
                    queue.list = List::Busy;
                    queue.quantum_left = QUANTUM;
                    self.busy.push_back(slot);
                } else {
                    queue.list = List::None;
                    if !queue.live {
                        self.vacate(slot);
                    }
                }
                continue;
            }
            let Some((_, cell)) = queue.cells.pop_front() else { continue };
            queue.quantum_left.decrement();
            self.cells.decrement();
            let left = queue.cells.len();
            if left == 0 && queue.cells.capacity() > MAX_KEPT_CAPACITY {
                queue.cells.shrink_to(MAX_KEPT_CAPACITY);
            }
            return Some(NextCell { cell, circuit: queue.circuit, queue_low: queue.live && left == QUEUE_LOW });
        }
    }

    /// Removes the first circuit of the busy list if it has no cell: its turn is over. The busy list isn't served while
    /// the quiet list never empties, so without this step ended circuits would fill the channel.
    fn remove_idle(&mut self) {
        let Some(&slot) = self.busy.front() else { return };
        if let Some(queue) = self.entries.get_mut(slot) {
            if !queue.cells.is_empty() {
                return;
            }
            queue.list = List::None;
            if !queue.live {
                self.vacate(slot);
            }
        }
        self.busy.pop_front();
    }

    /// The circuits with queued cells, live or not. Iterates over the two lists, which contain few circuits without
    /// cells.
    pub(super) fn queued_cells(&self) -> impl Iterator<Item = QueuedCells> {
        self.quiet.iter().chain(&self.busy).filter_map(|slot| {
            let CircuitQueue { circuit, cells, live, .. } = self.entries.get(*slot)?;
            let (first_serial, _) = cells.front()?;
            Some(QueuedCells { circuit: *circuit, live: *live, cells: cells.len(), first_serial: *first_serial })
        })
    }

    fn entry(&self, circuit: CircuitId) -> Option<&CircuitQueue> {
        self.entries.get(*self.index.get(&circuit)?)
    }

    fn entry_mut(&mut self, circuit: CircuitId) -> Option<&mut CircuitQueue> {
        self.entries.get_mut(*self.index.get(&circuit)?)
    }

    fn slot_or_new(&mut self, circuit: CircuitId) -> usize {
        if self.entries.get(self.last_slot).is_none_or(|queue| queue.circuit != circuit) {
            self.last_slot = *self.index.entry(circuit).or_insert_with(|| {
                let (cells, list) = (VecDeque::new(), List::None);
                self.entries.insert(CircuitQueue { circuit, cells, quantum_left: 0, list, live: false, refused: false })
            });
        }
        self.last_slot
    }

    fn vacate(&mut self, slot: usize) {
        if let Some(queue) = self.entries.try_remove(slot) {
            self.index.remove(&queue.circuit);
            if queue.refused {
                self.refused.decrement();
            }
        }
    }
}
