//! The cells that wait on one channel, and whose turn it is.
//!
//! Fair queueing after fq_codel (RFC 8290 §4): a circuit that had nothing waiting goes to the *quiet* list and is
//! served before the *busy* ones; a circuit that has used up its quantum, or has been served empty, goes to the end of
//! the busy list. So one cell of an interactive circuit passes a bulk circuit's thousands, and bulk circuits share
//! alike. All steps take constant time.
//!
//! Caps: cells per circuit ([`QueueFull`], upon which the caller ends the circuit); circuits and refusals are capped by
//! the channel, cells in all across channels by [`Channels`](super::Channels).

use std::collections::{HashMap, VecDeque, hash_map::Entry};

use crate::{
    base::CircuitId,
    wire::{Cell, Command},
};

use super::{QUEUE_LOW, QueueFull};

/// Cells that a circuit may send before it is another's turn.
const QUANTUM: u8 = 4;
/// A drained queue gives back memory beyond this many cells.
const KEEP_CAPACITY: usize = 64;

/// Where a circuit stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Listed {
    No,
    Quiet,
    Busy,
}

struct Waiting {
    circuit: CircuitId,
    /// With each cell its serial number over all channels, which tells who has waited longest.
    cells: VecDeque<(u64, Cell)>,
    /// Cells left of the quantum.
    turn: u8,
    listed: Listed,
    /// The circuit lives: the entry stays when its queue is empty.
    held: bool,
    /// It never lived: what waits is a refusal.
    refused: bool,
}

/// A cell whose turn it is.
pub(super) struct Next {
    pub(super) cell: Cell,
    pub(super) circuit: CircuitId,
    /// With this cell the queue of a living circuit fell to the low mark.
    pub(super) drained: bool,
}

#[derive(Default)]
pub(super) struct FairQueue {
    index: HashMap<CircuitId, usize>,
    entries: Vec<Option<Waiting>>,
    vacant: Vec<usize>,
    quiet: VecDeque<usize>,
    busy: VecDeque<usize>,
    cells: usize,
    held: usize,
    refused: usize,
}

impl FairQueue {
    /// Cells that wait.
    pub(super) const fn len(&self) -> usize {
        self.cells
    }

    /// Circuits that live on the channel.
    pub(super) const fn circuits(&self) -> usize {
        self.held
    }

    /// Circuits that live or still have cells to be sent.
    pub(super) fn entries(&self) -> usize {
        self.index.len()
    }

    /// Circuits that never lived, with a refusal to be sent.
    pub(super) const fn refusals(&self) -> usize {
        self.refused
    }

    /// Whether the identifier is taken, by a living circuit or by what is still to be sent of a past one.
    pub(super) fn knows(&self, circuit: CircuitId) -> bool {
        self.index.contains_key(&circuit)
    }

    /// Cells of `circuit` that wait.
    pub(super) fn queued(&self, circuit: CircuitId) -> usize {
        self.entry(circuit).map_or(0, |waiting| waiting.cells.len())
    }

    /// Notes that `circuit` lives; `false` if it did already.
    pub(super) fn hold(&mut self, circuit: CircuitId) -> bool {
        let Some(slot) = self.slot_or_new(circuit) else { return false };
        let Some(Some(waiting)) = self.entries.get_mut(slot) else { return false };
        if core::mem::replace(&mut waiting.held, true) {
            return false;
        }
        if core::mem::take(&mut waiting.refused) {
            self.refused = self.refused.saturating_sub(1);
        }
        self.held = self.held.saturating_add(1);
        true
    }

    /// Notes that `circuit` is past; what it has queued is still sent.
    pub(super) fn forget(&mut self, circuit: CircuitId) {
        let Some(&slot) = self.index.get(&circuit) else { return };
        let Some(Some(waiting)) = self.entries.get_mut(slot) else { return };
        if core::mem::take(&mut waiting.held) {
            self.held = self.held.saturating_sub(1);
        }
        if waiting.listed == Listed::No {
            self.vacate(slot);
        }
    }

    /// Drops what `circuit` has queued; gives how many cells that were.
    pub(super) fn clear(&mut self, circuit: CircuitId) -> usize {
        let Some(waiting) = self.entry_mut(circuit) else { return 0 };
        let cleared = waiting.cells.len();
        waiting.cells = VecDeque::new();
        self.cells = self.cells.saturating_sub(cleared);
        cleared
    }

    /// Queues a cell. A DESTROY takes the place of all that its circuit has queued.
    pub(super) fn push(&mut self, circuit: CircuitId, serial: u64, cell: Cell, limit: usize) -> Result<(), QueueFull> {
        if cell.command() == Command::Destroy {
            self.clear(circuit);
        }
        let Some(slot) = self.slot_or_new(circuit) else { return Err(QueueFull) };
        let Some(Some(waiting)) = self.entries.get_mut(slot) else { return Err(QueueFull) };
        if waiting.cells.len() >= limit {
            return Err(QueueFull);
        }
        waiting.cells.push_back((serial, cell));
        if waiting.listed == Listed::No {
            if !waiting.held {
                waiting.refused = true;
                self.refused = self.refused.saturating_add(1);
            }
            waiting.listed = Listed::Quiet;
            waiting.turn = QUANTUM;
            self.quiet.push_back(slot);
        }
        self.cells = self.cells.saturating_add(1);
        Ok(())
    }

    /// The next cell to send.
    pub(super) fn pop(&mut self) -> Option<Next> {
        loop {
            let from_quiet = !self.quiet.is_empty();
            let list = if from_quiet { &mut self.quiet } else { &mut self.busy };
            let slot = *list.front()?;
            let Some(Some(waiting)) = self.entries.get_mut(slot) else {
                list.pop_front();
                continue;
            };
            if waiting.turn == 0 || waiting.cells.is_empty() {
                list.pop_front();
                // A circuit served empty out of turn waits one round among the busy, else it would always go first.
                if !waiting.cells.is_empty() || (from_quiet && waiting.held) {
                    waiting.listed = Listed::Busy;
                    waiting.turn = QUANTUM;
                    self.busy.push_back(slot);
                } else {
                    waiting.listed = Listed::No;
                    if !waiting.held {
                        self.vacate(slot);
                    }
                }
                continue;
            }
            let Some((_, cell)) = waiting.cells.pop_front() else { continue };
            waiting.turn = waiting.turn.saturating_sub(1);
            self.cells = self.cells.saturating_sub(1);
            let left = waiting.cells.len();
            if left == 0 && waiting.cells.capacity() > KEEP_CAPACITY {
                waiting.cells = VecDeque::new();
            }
            return Some(Next { cell, circuit: waiting.circuit, drained: waiting.held && left == QUEUE_LOW });
        }
    }

    /// The living circuit whose first cell has waited longest, of those whose end makes room (a DESTROY takes the place of
    /// one cell), with that cell's serial number. Looks at every circuit.
    pub(super) fn longest_waiting(&self) -> Option<(u64, CircuitId)> {
        let heads = self.entries.iter().flatten().filter(|waiting| waiting.held && waiting.cells.len() > 1);
        heads.filter_map(|waiting| Some((waiting.cells.front()?.0, waiting.circuit))).min()
    }

    /// Cells of circuits that don't live, such as refusals. Looks at every circuit.
    pub(super) fn dead(&self) -> usize {
        self.entries.iter().flatten().filter(|waiting| !waiting.held).map(|waiting| waiting.cells.len()).sum()
    }

    fn entry(&self, circuit: CircuitId) -> Option<&Waiting> {
        self.entries.get(*self.index.get(&circuit)?)?.as_ref()
    }

    fn entry_mut(&mut self, circuit: CircuitId) -> Option<&mut Waiting> {
        self.entries.get_mut(*self.index.get(&circuit)?)?.as_mut()
    }

    fn slot_or_new(&mut self, circuit: CircuitId) -> Option<usize> {
        let entry = match self.index.entry(circuit) {
            Entry::Occupied(entry) => return Some(*entry.get()),
            Entry::Vacant(entry) => entry,
        };
        let waiting =
            Waiting { circuit, cells: VecDeque::new(), turn: 0, listed: Listed::No, held: false, refused: false };
        let slot = match self.vacant.pop() {
            Some(slot) => {
                *self.entries.get_mut(slot)? = Some(waiting);
                slot
            }
            None => {
                self.entries.push(Some(waiting));
                self.entries.len().saturating_sub(1)
            }
        };
        Some(*entry.insert(slot))
    }

    fn vacate(&mut self, slot: usize) {
        if let Some(waiting) = self.entries.get_mut(slot).and_then(Option::take) {
            self.index.remove(&waiting.circuit);
            self.vacant.push(slot);
            if waiting.refused {
                self.refused = self.refused.saturating_sub(1);
            }
        }
    }
}
