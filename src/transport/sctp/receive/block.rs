//! Memory of out-of-order fragments.

use core::ops::Deref;
use std::cell::RefCell;

/// Bytes of a block. Holds the payload of a packet of 1,232 bytes.
const BLOCK: usize = 1_280;
/// Dropped blocks that a thread keeps for reuse: 320 KiB.
const MAX_SPARE_BLOCKS: usize = 256;

thread_local! {
    /// Blocks that this thread has dropped, each with a capacity of [`BLOCK`].
    static SPARE_BLOCKS: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// A copy of a payload, in a block. A thread reuses the blocks that it drops. A payload longer than a block has memory
/// of its own.
pub(super) struct FragmentBlock(Vec<u8>);

impl FragmentBlock {
    /// Bytes of the whole blocks that `length` bytes of payload occupy.
    pub(super) fn memory(length: usize) -> usize {
        length.div_ceil(BLOCK).saturating_mul(BLOCK)
    }
}

impl From<&[u8]> for FragmentBlock {
    fn from(payload: &[u8]) -> Self {
        let spare = SPARE_BLOCKS.try_with(|spare| spare.try_borrow_mut().ok().and_then(|mut spare| spare.pop()));
        let mut bytes = spare.ok().flatten().unwrap_or_else(|| Vec::with_capacity(BLOCK));
        bytes.extend_from_slice(payload);
        Self(bytes)
    }
}

impl Deref for FragmentBlock {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for FragmentBlock {
    fn drop(&mut self) {
        let mut bytes = core::mem::take(&mut self.0);
        bytes.clear();
        // An ending thread no longer has the list.
        let _ = SPARE_BLOCKS.try_with(|spare| {
            if let Ok(mut spare) = spare.try_borrow_mut()
                && spare.len() < MAX_SPARE_BLOCKS
                && bytes.capacity() == BLOCK
            {
                spare.push(bytes);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    #[cfg(target_arch = "wasm32")]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    use super::*;

    #[test]
    fn a_dropped_block_is_reused_and_exposes_no_earlier_bytes() {
        let first = FragmentBlock::from(&[7; BLOCK][..]);
        let place = first.as_ptr();
        drop(first);
        let second = FragmentBlock::from(&[1; 10][..]);
        assert_eq!((second.as_ptr(), &*second), (place, &[1; 10][..]));
    }

    #[test]
    fn a_thread_keeps_few_blocks_and_none_of_a_longer_payload() {
        drop(FragmentBlock::from(&[7; BLOCK + 1][..]));
        assert!(SPARE_BLOCKS.with_borrow(|spare| spare.iter().all(|block| block.capacity() == BLOCK)));
        let blocks: Vec<_> = (0..MAX_SPARE_BLOCKS + 10).map(|_| FragmentBlock::from(&[7; 10][..])).collect();
        drop(blocks);
        assert_eq!(SPARE_BLOCKS.with_borrow(Vec::len), MAX_SPARE_BLOCKS);
    }
}
