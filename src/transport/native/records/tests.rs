//! What the record layer must hold.

use std::cell::RefCell;

thread_local! {
    static SEALED: RefCell<Vec<(Vec<u8>, [u8; 12])>> = const { RefCell::new(Vec::new()) };
}

/// Notes a key and a nonce that a record was sealed with, by this layer or by `dimpl`.
pub(super) fn note_sealed(key: &[u8], nonce: &[u8; 12]) {
    SEALED.with_borrow_mut(|sealed| sealed.push((key.to_vec(), *nonce)));
}
