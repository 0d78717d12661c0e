//! Checks for tests and fuzzing: no pair of key and nonce is used twice.

use core::cell::RefCell;
use std::collections::BTreeSet;

/// Pairs of key and nonce.
type UsedNonces = BTreeSet<(Vec<u8>, [u8; 12])>;

thread_local! {
    /// The pairs of key and nonce of all records sealed on this thread since [`NonceWatch::new`]; `None` without a watch.
    static SEALED: RefCell<Option<UsedNonces>> = const { RefCell::new(None) };
}

/// While this value exists, a second use of a pair of key and nonce on this thread is a panic.
pub(in super::super) struct NonceWatch(());

impl NonceWatch {
    pub(in super::super) fn new() -> Self {
        SEALED.set(Some(UsedNonces::new()));
        Self(())
    }

    /// Number of records sealed since the start of the watch.
    pub(in super::super) fn sealed(&self) -> usize {
        SEALED.with_borrow(|sealed| sealed.as_ref().map_or(0, UsedNonces::len))
    }
}

impl Drop for NonceWatch {
    fn drop(&mut self) {
        SEALED.set(None);
    }
}

/// Notes key and nonce of a record that this layer or `dimpl` seals.
pub(super) fn note_sealed(key: &[u8], nonce: &[u8; 12]) {
    let is_new =
        SEALED.with_borrow_mut(|sealed| sealed.as_mut().is_none_or(|sealed| sealed.insert((key.to_vec(), *nonce))));
    assert!(is_new, "a nonce was used twice");
}
