//! A FIFO queue of keys that holds each key at most once.

use std::collections::VecDeque;

/// Keys of entries with pending work, in the order in which the entries became ready.
///
/// Each entry has a [`Ticket`], so that a test for membership costs one comparison and no look-up. The key of an entry
/// that was removed from its collection may stay queued: the owner of the queue skips keys without an entry.
///
/// Memory: one key and one number for each queued entry; the owner bounds the number of entries.
#[derive(Debug)]
pub struct ReadyQueue<K> {
    /// The keys, with the numbers of their tickets in ascending order.
    keys: VecDeque<(u64, K)>,
    /// The number of the last ticket that was issued.
    last_issued: u64,
    /// The number of the last ticket whose key was popped.
    last_popped: u64,
}

/// The place of an entry in one [`ReadyQueue`]. A new ticket is in no queue.
#[derive(Debug, Default)]
pub struct Ticket(u64);

impl Ticket {
    /// A ticket that is in no queue.
    #[must_use]
    pub const fn new() -> Self {
        Self(0)
    }
}

impl<K> Default for ReadyQueue<K> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K> ReadyQueue<K> {
    /// An empty queue.
    #[must_use]
    pub const fn new() -> Self {
        Self { keys: VecDeque::new(), last_issued: 0, last_popped: 0 }
    }

    /// Appends `key` unless it is queued. `ticket` is the ticket of the key's entry for this queue.
    pub fn push(&mut self, key: K, ticket: &mut Ticket) {
        if ticket.0 <= self.last_popped {
            self.last_issued = self.last_issued.wrapping_add(1);
            ticket.0 = self.last_issued;
            self.keys.push_back((ticket.0, key));
        }
    }

    /// Removes and returns the first key, which can then be appended again.
    pub fn pop(&mut self) -> Option<K> {
        let (number, key) = self.keys.pop_front()?;
        self.last_popped = number;
        Some(key)
    }

    /// Removes the key of `ticket`, if the key is queued. Takes time in proportion to the smaller number of keys before
    /// or after the key.
    pub fn remove(&mut self, ticket: &mut Ticket) {
        if ticket.0 > self.last_popped
            && let Ok(at) = self.keys.binary_search_by_key(&ticket.0, |(number, _)| *number)
        {
            self.keys.remove(at);
        }
        *ticket = Ticket::new();
    }

    /// Removes all keys.
    pub fn clear(&mut self) {
        self.keys.clear();
        self.last_popped = self.last_issued;
    }

    /// Whether no key is queued.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }
}

#[cfg(test)]
mod tests {
    #[cfg(target_arch = "wasm32")]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    use super::*;

    /// A queue of the keys 0 to 3, with their tickets.
    fn queue() -> (ReadyQueue<usize>, [Ticket; 4]) {
        let (mut queue, mut tickets) = (ReadyQueue::default(), [const { Ticket::new() }; 4]);
        for (key, ticket) in tickets.iter_mut().enumerate() {
            queue.push(key, ticket);
        }
        (queue, tickets)
    }

    fn drain(queue: &mut ReadyQueue<usize>) -> Vec<usize> {
        core::iter::from_fn(|| queue.pop()).collect()
    }

    #[test]
    fn each_key_is_queued_once_at_its_first_place() {
        let (mut queue, mut tickets) = queue();
        queue.push(2, &mut tickets[2]);
        queue.push(0, &mut tickets[0]);
        assert_eq!(drain(&mut queue), [0, 1, 2, 3]);
        assert!(queue.is_empty());
    }

    #[test]
    fn a_popped_key_goes_to_the_end() {
        let (mut queue, mut tickets) = queue();
        let mut served = Vec::new();
        for _ in 0..6 {
            let key = queue.pop().unwrap();
            served.push(key);
            queue.push(key, &mut tickets[key]);
            queue.push(key, &mut tickets[key]);
        }
        assert_eq!(served, [0, 1, 2, 3, 0, 1]);
        assert_eq!(drain(&mut queue), [2, 3, 0, 1]);
    }

    #[test]
    fn a_removed_key_leaves_the_others_in_order_and_can_be_appended_again() {
        let (mut queue, mut tickets) = queue();
        queue.remove(&mut tickets[2]);
        queue.remove(&mut tickets[2]);
        assert_eq!(queue.pop(), Some(0));
        queue.remove(&mut tickets[0]);
        queue.push(3, &mut tickets[3]);
        queue.push(2, &mut tickets[2]);
        assert_eq!(drain(&mut queue), [1, 3, 2]);
    }

    #[test]
    fn a_cleared_queue_accepts_every_key_again() {
        let (mut queue, mut tickets) = queue();
        queue.pop();
        queue.clear();
        assert!(queue.is_empty());
        for key in [3, 0] {
            queue.push(key, &mut tickets[key]);
            queue.push(key, &mut tickets[key]);
        }
        assert_eq!(drain(&mut queue), [3, 0]);
    }

    #[test]
    fn a_new_entry_with_the_key_of_a_removed_one_is_appended() {
        let (mut queue, _) = queue();
        queue.push(1, &mut Ticket::new());
        assert_eq!(drain(&mut queue), [0, 1, 2, 3, 1]);
    }
}
