//! Turns of the owners of queued items, so that each network and each listed relay has items handled at the same rate.

use std::collections::{BTreeMap, HashMap, VecDeque};

use super::{AddressPrefix, Counter as _, Owner, RelayId};

/// Items of a network in one turn.
const TURN_OF_NETWORK: usize = 1;
/// Items of a listed relay in one turn. A listed relay carries the circuits of many clients.
pub const TURN_OF_RELAY: usize = 4;

/// The holder of a turn: many sources of one network have one turn.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum TurnHolder {
    Network(AddressPrefix),
    Relay(RelayId),
}

impl TurnHolder {
    const fn of(owner: &Owner) -> Self {
        match owner {
            Owner::Source(_, network) => Self::Network(*network),
            Owner::Relay(relay) => Self::Relay(*relay),
        }
    }

    const fn items(self) -> usize {
        match self {
            Self::Network(_) => TURN_OF_NETWORK,
            Self::Relay(_) => TURN_OF_RELAY,
        }
    }
}

/// The turn of a holder.
struct Turn {
    /// The place of the turn among all turns.
    number: u64,
    /// Items that the holder may still have handled in this turn.
    left: usize,
    /// The holder's owners with an item. They take turns too; the next one is first.
    owners: VecDeque<Owner>,
}

/// The turns of the owners that have an item in a queue. An operation takes logarithmic time, and at most
/// one iteration over the sources of one network.
#[derive(Default)]
pub struct OwnerTurns {
    /// The turn of each holder.
    turns: HashMap<TurnHolder, Turn>,
    /// The holders by the numbers of their turns.
    order: BTreeMap<u64, TurnHolder>,
    next_number: u64,
}

impl OwnerTurns {
    /// The owner of the next item. Counts the item towards the turn of the owner's holder.
    pub fn next_owner(&mut self) -> Option<Owner> {
        let (_, &holder) = self.order.first_key_value()?;
        let turn = self.turns.get_mut(&holder)?;
        let owner = *turn.owners.front()?;
        turn.owners.rotate_left(1);
        turn.left.decrement();
        if turn.left == 0 {
            self.order.remove(&turn.number);
            (turn.number, turn.left) = (self.next_number, holder.items());
            self.order.insert(turn.number, holder);
            self.next_number = self.next_number.wrapping_add(1);
        }
        Some(owner)
    }

    /// Adds an owner with its first item. A new holder is behind all others.
    pub fn add(&mut self, owner: Owner) {
        let holder = TurnHolder::of(&owner);
        let (number, order) = (self.next_number, &mut self.order);
        let turn = self.turns.entry(holder).or_insert_with(|| {
            order.insert(number, holder);
            Turn { number, left: holder.items(), owners: VecDeque::new() }
        });
        if turn.number == number {
            self.next_number = number.wrapping_add(1);
        }
        turn.owners.push_back(owner);
    }

    /// Removes an owner without an item.
    pub fn remove(&mut self, owner: &Owner) {
        let holder = TurnHolder::of(owner);
        let Some(turn) = self.turns.get_mut(&holder) else { return };
        turn.owners.retain(|other| other != owner);
        if turn.owners.is_empty() {
            self.order.remove(&turn.number);
            self.turns.remove(&holder);
        }
    }

    /// The numbers of turns in both indexes.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn len(&self) -> (usize, usize) {
        (self.turns.len(), self.order.len())
    }
}
