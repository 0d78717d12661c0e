//! The memory of queues.

use std::collections::VecDeque;

/// A queue with at most this capacity is never shrunk.
const SMALL: usize = 64;

/// Frees half of the capacity of a queue that uses less than a quarter of it, so that a queue that was long in the past
/// occupies little memory.
pub fn shrink_queue<T>(queue: &mut VecDeque<T>) {
    if queue.capacity() > SMALL && queue.len() < queue.capacity() / 4 {
        queue.shrink_to(queue.capacity() / 2);
    }
}

#[cfg(test)]
mod tests {
    #[cfg(target_arch = "wasm32")]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    use super::*;

    #[test]
    fn an_emptied_queue_occupies_little_memory() {
        let mut queue: VecDeque<u64> = (0..1000).collect();
        while queue.pop_front().is_some() {
            shrink_queue(&mut queue);
            assert!(queue.capacity() <= (queue.len() * 8).max(2 * SMALL), "{} of {}", queue.len(), queue.capacity());
        }
        assert!(queue.capacity() <= SMALL);
    }
}
