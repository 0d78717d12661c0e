//! Buffers: [`Slot`] for a cell, and [`Slots`], a list of slots, for a message.
//!
//! A cell stays in one slot from the packet in which it arrives to the packet in which it leaves. Reassembly fills
//! slots, the onion layer works in place, and the sending association keeps slots until their data is acknowledged.

use core::{
    cmp::Ordering,
    fmt,
    ops::{Deref, DerefMut, Range},
};
use std::{cell::RefCell, vec};

/// Bytes of a slot: the length of a cell.
pub const SLOT_LEN: usize = 1024;
/// Dropped slots that a thread keeps for reuse: 1 MiB.
const MAX_SPARE_SLOTS: usize = 1024;
/// Dropped lists of slots that a thread keeps for reuse: at most 64 KiB.
const MAX_SPARE_LISTS: usize = 256;
/// Largest capacity of a list that a thread keeps, in slots. Holds a message of [`MESSAGE_CELLS`](super::MESSAGE_CELLS)
/// cells.
const MAX_LIST_CAPACITY: usize = 32;

thread_local! {
    static SPARE: RefCell<SpareMemory> = const { RefCell::new(SpareMemory { slots: Vec::new(), lists: Vec::new() }) };
}

/// Memory that a thread has dropped and reuses.
struct SpareMemory {
    /// Slots, with their old content.
    slots: Vec<Slot>,
    /// Empty lists of slots.
    lists: Vec<Vec<Slot>>,
}

impl SpareMemory {
    /// Calls `act` with the memory of this thread. `None` if the thread is ending.
    fn with<T>(act: impl FnOnce(&mut Self) -> T) -> Option<T> {
        SPARE.try_with(|spare| spare.try_borrow_mut().ok().map(|mut spare| act(&mut spare))).ok().flatten()
    }
}

/// Memory for one cell. A thread reuses the slots that it drops, so forwarding a cell normally allocates no memory.
pub struct Slot(Option<Box<[u8; SLOT_LEN]>>);

impl Slot {
    /// A slot of zeros.
    #[must_use]
    pub fn zero() -> Self {
        Self::from([0; SLOT_LEN])
    }

    /// A slot that may hold bytes of another circuit. The caller must write a byte of the slot before reading it.
    fn unwritten() -> Self {
        SpareMemory::with(|spare| spare.slots.pop()).flatten().unwrap_or_else(|| Self(Some(new())))
    }
}

fn new() -> Box<[u8; SLOT_LEN]> {
    Box::new([0; SLOT_LEN])
}

impl Drop for Slot {
    fn drop(&mut self) {
        let Some(bytes) = self.0.take() else { return };
        SpareMemory::with(|spare| {
            if spare.slots.len() < MAX_SPARE_SLOTS {
                spare.slots.push(Self(Some(bytes)));
            }
        });
    }
}

impl From<[u8; SLOT_LEN]> for Slot {
    fn from(bytes: [u8; SLOT_LEN]) -> Self {
        let mut slot = Self::unwritten();
        *slot = bytes;
        slot
    }
}

impl Clone for Slot {
    fn clone(&self) -> Self {
        Self::from(**self)
    }
}

impl Deref for Slot {
    type Target = [u8; SLOT_LEN];

    fn deref(&self) -> &[u8; SLOT_LEN] {
        // `None` only in `drop`.
        self.0.as_deref().unwrap_or(&[0; SLOT_LEN])
    }
}

impl DerefMut for Slot {
    fn deref_mut(&mut self) -> &mut [u8; SLOT_LEN] {
        self.0.get_or_insert_with(new)
    }
}

/// The bytes of one message. All slots but the last are full. Only appended bytes can be read. A thread reuses the list of
/// a dropped message, as it reuses slots.
#[derive(Clone, Default)]
pub struct Slots {
    slots: Vec<Slot>,
    len: usize,
}

impl Slots {
    /// An empty buffer.
    #[must_use]
    pub const fn new() -> Self {
        Self { slots: Vec::new(), len: 0 }
    }

    /// An empty buffer whose list has capacity for `slots` slots.
    #[must_use]
    pub fn with_capacity(slots: usize) -> Self {
        let mut list = SpareMemory::with(|spare| spare.lists.pop()).flatten().unwrap_or_default();
        list.reserve_exact(slots);
        Self { slots: list, len: 0 }
    }

    /// The number of bytes.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether the message has no bytes.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of memory that the slots take.
    #[must_use]
    pub fn memory(&self) -> usize {
        self.slots.len().saturating_mul(SLOT_LEN)
    }

    /// Appends the bytes of `slot`. Copies them if the last slot isn't full.
    pub fn push(&mut self, slot: Slot) {
        if self.len.is_multiple_of(SLOT_LEN) {
            self.slots.push(slot);
            self.len = self.len.saturating_add(SLOT_LEN);
        } else {
            self.extend_from_slice(slot.as_slice());
        }
    }

    /// Appends a copy of `bytes`.
    pub fn extend_from_slice(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let offset = self.len % SLOT_LEN;
            if offset == 0 {
                self.slots.push(Slot::unwritten());
            }
            let (part, remaining) = bytes.split_at(bytes.len().min(SLOT_LEN.saturating_sub(offset)));
            let place = self.slots.last_mut().and_then(|slot| slot.get_mut(offset..offset.saturating_add(part.len())));
            if let Some(place) = place {
                place.copy_from_slice(part);
            }
            self.len = self.len.saturating_add(part.len());
            bytes = remaining;
        }
    }

    /// The bytes in `range`, clipped to the message's length, as one piece for each slot.
    pub fn pieces(&self, range: Range<usize>) -> impl Iterator<Item = &[u8]> {
        let end = range.end.min(self.len);
        let first = range.start / SLOT_LEN;
        let slots = self.slots.get(first..end.div_ceil(SLOT_LEN)).unwrap_or_default();
        let starts = (first.saturating_mul(SLOT_LEN)..).step_by(SLOT_LEN);
        slots.iter().zip(starts).filter_map(move |(slot, start)| {
            let from = range.start.saturating_sub(start);
            slot.get(from..end.saturating_sub(start).min(SLOT_LEN))
        })
    }

    /// Removes the slots; `None` if the last slot isn't full.
    pub fn take_full(&mut self) -> Option<vec::Drain<'_, Slot>> {
        if !self.len.is_multiple_of(SLOT_LEN) {
            return None;
        }
        self.len = 0;
        Some(self.slots.drain(..))
    }

    /// A copy of all bytes in one piece.
    #[must_use]
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.len);
        self.pieces(0..self.len).for_each(|piece| bytes.extend_from_slice(piece));
        bytes
    }
}

impl Drop for Slots {
    fn drop(&mut self) {
        let mut list = core::mem::take(&mut self.slots);
        if list.capacity() == 0 {
            return;
        }
        SpareMemory::with(|spare| {
            let free = MAX_SPARE_SLOTS.saturating_sub(spare.slots.len());
            spare.slots.extend(list.drain(list.len().saturating_sub(free)..));
            list.clear();
            if list.capacity() <= MAX_LIST_CAPACITY && spare.lists.len() < MAX_SPARE_LISTS {
                spare.lists.push(list);
            }
        });
    }
}

impl PartialEq for Slots {
    fn eq(&self, other: &Self) -> bool {
        self.pieces(0..self.len).eq(other.pieces(0..other.len))
    }
}

impl Eq for Slots {}

impl PartialOrd for Slots {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Slots {
    fn cmp(&self, other: &Self) -> Ordering {
        self.pieces(0..self.len).flatten().cmp(other.pieces(0..other.len).flatten())
    }
}

impl From<&[u8]> for Slots {
    fn from(bytes: &[u8]) -> Self {
        let mut slots = Self::with_capacity(bytes.len().div_ceil(SLOT_LEN));
        slots.extend_from_slice(bytes);
        slots
    }
}

impl From<Vec<u8>> for Slots {
    fn from(bytes: Vec<u8>) -> Self {
        Self::from(bytes.as_slice())
    }
}

impl FromIterator<Slot> for Slots {
    fn from_iter<I: IntoIterator<Item = Slot>>(slots: I) -> Self {
        let mut message = Self::with_capacity(0);
        message.slots.extend(slots);
        message.len = message.slots.len().saturating_mul(SLOT_LEN);
        message
    }
}

impl fmt::Debug for Slots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slots").field("len", &self.len).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    #[cfg(target_arch = "wasm32")]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    use super::*;

    fn bytes(length: usize) -> Vec<u8> {
        (0..=u8::MAX).cycle().take(length).collect()
    }

    #[test]
    fn appended_bytes_are_read_back_unchanged() {
        for length in [0, 1, 1023, 1024, 1025, 2048, 17 * 1024, 65_536] {
            let bytes = bytes(length);
            for piece in [1, 700, 1188, 5000] {
                let mut slots = Slots::new();
                bytes.chunks(piece).for_each(|piece| slots.extend_from_slice(piece));
                assert_eq!(slots.to_vec(), bytes);
                assert_eq!((slots.len(), slots.memory()), (length, length.div_ceil(1024) * 1024));
                assert_eq!(slots, Slots::from(bytes.as_slice()));
                assert_eq!(slots.take_full().map(|slots| slots.len()), (length % 1024 == 0).then_some(length / 1024));
            }
        }
        assert_ne!(Slots::from(vec![0; 5]), Slots::from(vec![0; 6]));
    }

    #[test]
    fn pieces_cover_exactly_the_range() {
        let bytes = bytes(5000);
        let slots = Slots::from(&bytes[..]);
        for range in [0..0, 0..1, 1000..1024, 1000..1025, 1024..2048, 1023..3000, 4999..5000, 4000..9000, 6000..7000] {
            let pieces: Vec<u8> = slots.pieces(range.clone()).flatten().copied().collect();
            assert_eq!(pieces, bytes[range.start.min(5000)..range.end.min(5000)], "{range:?}");
        }
    }

    #[test]
    fn a_reused_slot_exposes_no_earlier_bytes() {
        let drop_used = || {
            let slot = Slot::from([7; SLOT_LEN]);
            slot.as_ptr()
        };
        let place = drop_used();
        let slot = Slot::zero();
        assert_eq!((slot.as_ptr(), *slot), (place, [0; SLOT_LEN]));
        drop(slot);
        let place = drop_used();
        let mut slots = Slots::from(&[1; 10][..]);
        assert_eq!(slots.pieces(0..SLOT_LEN).next().map(<[u8]>::as_ptr), Some(place));
        assert_eq!(slots.pieces(0..SLOT_LEN).flatten().count(), 10);
        assert_eq!((slots.to_vec(), &slots), (vec![1; 10], &Slots::from(&[1; 10][..])));
        assert!(slots.take_full().is_none());
        slots.extend_from_slice(&[1; SLOT_LEN - 10]);
        assert_eq!(slots.take_full().map(|mut slots| slots.next().unwrap().to_vec()), Some(vec![1; SLOT_LEN]));
        assert_eq!((slots.len(), slots.to_vec()), (0, Vec::new()));
    }

    #[test]
    fn a_dropped_message_leaves_its_list_to_the_next() {
        let slots = Slots::from(&[7; 3 * SLOT_LEN][..]);
        let place = slots.slots.as_ptr();
        drop(slots);
        let slots = Slots::from(&[1; 10][..]);
        assert_eq!((slots.slots.as_ptr(), slots.slots.len(), slots.to_vec()), (place, 1, vec![1; 10]));
    }

    #[test]
    fn a_thread_keeps_a_bounded_number_of_slots_and_lists() {
        let spare = || SPARE.with_borrow(|spare| (spare.slots.len(), spare.lists.len()));
        drop(vec![Slot::zero(); MAX_SPARE_SLOTS + 100]);
        drop((0..MAX_SPARE_LISTS + 10).map(|_| Slots::from(&[7; 10 * SLOT_LEN][..])).collect::<Vec<_>>());
        assert_eq!(spare(), (MAX_SPARE_SLOTS, MAX_SPARE_LISTS));
        drop(Slots::from(&[7; 64 * SLOT_LEN][..]));
        assert_eq!(spare(), (MAX_SPARE_SLOTS, MAX_SPARE_LISTS - 1), "a long list is not kept");
    }

    #[test]
    fn a_slot_can_follow_a_partial_one() {
        let mut slots = Slots::from(&[1; 10][..]);
        slots.push(Slot::from([2; SLOT_LEN]));
        assert_eq!(slots.to_vec(), [vec![1; 10], vec![2; SLOT_LEN]].concat());
    }
}
