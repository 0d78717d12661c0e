//! The queued cells of one channel, and their fair scheduling.
//!
//! Fair queueing after fq_codel (RFC 8290 §4). A circuit whose queue was empty goes to the *quiet* list, which is
//! served before the *busy* list. A circuit that has used up its quantum, or has emptied its queue in its quiet turn,
//! goes to the end of the busy list. So a cell of an interactive circuit precedes the queued cells of a bulk circuit,
//! and bulk circuits share equally. A push or a pop takes constant time.
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
/// Number of cells beyond which an empty queue frees its memory.
const KEEP_CAPACITY: usize = 64;

/// The list in which a circuit is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Listed {
    No,
    Quiet,
    Busy,
}

struct Waiting {
    circuit: CircuitId,
    /// Cells, each with a serial number that is unique over all channels and orders cells by waiting time.
    cells: VecDeque<(u64, Cell)>,
    /// Cells left of the circuit's quantum.
    turn: u8,
    listed: Listed,
    /// Whether the circuit is live. The entry of a live circuit stays while its queue is empty.
    live: bool,
    /// Whether the circuit was never live, so that its queued cells are a refusal.
    refused: bool,
}

/// The next cell to send.
pub(super) struct Next {
    pub(super) cell: Cell,
    pub(super) circuit: CircuitId,
    /// Whether this cell reduced the queue of a live circuit to [`QUEUE_LOW`].
    pub(super) queue_low: bool,
}

#[derive(Default)]
pub(super) struct FairQueue {
    index: HashMap<CircuitId, usize>,
    entries: Slab<Waiting>,
    quiet: VecDeque<usize>,
    busy: VecDeque<usize>,
    cells: usize,
    live: usize,
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

    /// Circuits that are live or have queued cells.
    pub(super) fn entries(&self) -> usize {
        self.index.len()
    }

    /// Circuits that were never live and have a queued refusal.
    pub(super) const fn refusals(&self) -> usize {
        self.refused
    }

    /// Whether the identifier is in use, by a live circuit or by queued cells of an ended one.
    pub(super) fn contains(&self, circuit: CircuitId) -> bool {
        self.index.contains_key(&circuit)
    }

    /// Queued cells of `circuit`.
    pub(super) fn queued(&self, circuit: CircuitId) -> usize {
        self.entry(circuit).map_or(0, |waiting| waiting.cells.len())
    }

    /// Makes `circuit` live; `false` if it is already live.
    pub(super) fn admit(&mut self, circuit: CircuitId) -> bool {
        let slot = self.slot_or_new(circuit);
        let Some(waiting) = self.entries.get_mut(slot) else { return false };
        if core::mem::replace(&mut waiting.live, true) {
            return false;
        }
        if core::mem::take(&mut waiting.refused) {
            self.refused.decrement();
        }
        self.live.increment();
        true
    }

    /// Ends `circuit`; its queued cells are still sent.
    pub(super) fn forget(&mut self, circuit: CircuitId) {
        let Some(&slot) = self.index.get(&circuit) else { return };
        let Some(waiting) = self.entries.get_mut(slot) else { return };
        if core::mem::take(&mut waiting.live) {
            self.live.decrement();
        }
        if waiting.listed == Listed::No {
            self.vacate(slot);
        }
    }

    /// Drops the queued cells of `circuit`; returns their number.
    pub(super) fn clear(&mut self, circuit: CircuitId) -> usize {
        let Some(waiting) = self.entry_mut(circuit) else { return 0 };
        let cleared = waiting.cells.len();
        waiting.cells = VecDeque::new();
        self.cells = self.cells.saturating_sub(cleared);
        cleared
    }

    /// Queues a cell. A DESTROY replaces all queued cells of its circuit.
    pub(super) fn push(&mut self, circuit: CircuitId, serial: u64, cell: Cell, limit: usize) -> Result<(), QueueFull> {
        if cell.command() == Command::Destroy {
            self.clear(circuit);
        }
        let slot = self.slot_or_new(circuit);
        let Some(waiting) = self.entries.get_mut(slot) else { return Err(QueueFull) };
        if waiting.cells.len() >= limit {
            return Err(QueueFull);
        }
        waiting.cells.push_back((serial, cell));
        if waiting.listed == Listed::No {
            if !waiting.live {
                waiting.refused = true;
                self.refused.increment();
            }
            waiting.listed = Listed::Quiet;
            waiting.turn = QUANTUM;
            self.quiet.push_back(slot);
        }
        self.cells.increment();
        Ok(())
    }

    /// The next cell to send.
    pub(super) fn pop(&mut self) -> Option<Next> {
        loop {
            let from_quiet = !self.quiet.is_empty();
            let list = if from_quiet { &mut self.quiet } else { &mut self.busy };
            let slot = *list.front()?;
            let Some(waiting) = self.entries.get_mut(slot) else {
                list.pop_front();
                continue;
            };
            if waiting.turn == 0 || waiting.cells.is_empty() {
                list.pop_front();
                // A circuit that has emptied its queue in a quiet turn goes to the busy list for one round. Otherwise
                // its next cell would always be first.
                if !waiting.cells.is_empty() || (from_quiet && waiting.live) {
                    waiting.listed = Listed::Busy;
                    waiting.turn = QUANTUM;
                    self.busy.push_back(slot);
                } else {
                    waiting.listed = Listed::No;
                    if !waiting.live {
                        self.vacate(slot);
                    }
                }
                continue;
            }
            let Some((_, cell)) = waiting.cells.pop_front() else { continue };
            waiting.turn.decrement();
            self.cells.decrement();
            let left = waiting.cells.len();
            if left == 0 && waiting.cells.capacity() > KEEP_CAPACITY {
                waiting.cells = VecDeque::new();
            }
            return Some(Next { cell, circuit: waiting.circuit, queue_low: waiting.live && left == QUEUE_LOW });
        }
    }

    /// The live circuit whose first cell has waited longest, with that cell's serial number. Circuits with one cell are
    /// ignored: their end frees no memory, because a DESTROY replaces the cell. Visits every circuit.
    pub(super) fn longest_waiting(&self) -> Option<(u64, CircuitId)> {
        let circuits = self.entries.iter().map(|(_, waiting)| waiting);
        let heads = circuits.filter(|waiting| waiting.live && waiting.cells.len() > 1);
        heads.filter_map(|waiting| Some((waiting.cells.front()?.0, waiting.circuit))).min()
    }

    /// Queued cells of circuits that are not live, such as refusals. Visits every circuit.
    pub(super) fn ended_cells(&self) -> usize {
        self.entries.iter().filter(|(_, waiting)| !waiting.live).map(|(_, waiting)| waiting.cells.len()).sum()
    }

    fn entry(&self, circuit: CircuitId) -> Option<&Waiting> {
        self.entries.get(*self.index.get(&circuit)?)
    }

    fn entry_mut(&mut self, circuit: CircuitId) -> Option<&mut Waiting> {
        self.entries.get_mut(*self.index.get(&circuit)?)
    }

    fn slot_or_new(&mut self, circuit: CircuitId) -> usize {
        *self.index.entry(circuit).or_insert_with(|| {
            let (cells, listed) = (VecDeque::new(), Listed::No);
            self.entries.insert(Waiting { circuit, cells, turn: 0, listed, live: false, refused: false })
        })
    }

    fn vacate(&mut self, slot: usize) {
        if let Some(waiting) = self.entries.try_remove(slot) {
            self.index.remove(&waiting.circuit);
            if waiting.refused {
                self.refused.decrement();
            }
        }
    }
}
