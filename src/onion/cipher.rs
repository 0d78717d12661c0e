//! The cipher of one hop and direction: cell key, counter, ratchet.

use crate::crypto::{AeadKey, InvalidTag, LayerKey, NONCE_LEN};

/// Cells sealed under one key (`proto/03-cells.md` §4).
pub(super) const CELLS_PER_KEY: u64 = 1 << 16;

/// Seals or opens the cells of one hop and direction in order. After a failure the cipher holds no key.
pub(super) struct LayerCipher(Option<CipherState>);

struct CipherState {
    layer: LayerKey,
    key: AeadKey,
    /// Number of cells processed under all keys. The number is the next nonce, so nonces stay unique even if a key
    /// repeats.
    counter: u64,
}

impl CipherState {
    fn nonce(&self) -> [u8; NONCE_LEN] {
        let mut nonce = [0; NONCE_LEN];
        if let Some(low) = nonce.last_chunk_mut() {
            *low = self.counter.to_be_bytes();
        }
        nonce
    }

    /// Counts a cell, and replaces the key after the key's last cell. Fails if the counter is used up.
    fn step(&mut self) -> Result<(), CipherError> {
        self.counter = self.counter.checked_add(1).ok_or(CipherError::Ended)?;
        if self.counter.is_multiple_of(CELLS_PER_KEY) {
            self.key = self.layer.ratchet();
        }
        Ok(())
    }
}

/// A final failure: the layer has ended, or a cell is not authentic.
#[derive(Debug)]
pub(super) enum CipherError {
    Ended,
    Forged,
}

impl LayerCipher {
    pub(super) fn new(mut layer: LayerKey) -> Self {
        let key = layer.ratchet();
        Self(Some(CipherState { layer, key, counter: 0 }))
    }

    /// Encrypts `sealed` except the last 16 bytes, and overwrites these with the tag.
    pub(super) fn seal(&mut self, sealed: &mut [u8]) -> Result<(), CipherError> {
        self.process(CipherError::Ended, |key, nonce| key.seal(nonce, sealed))
    }

    /// Checks the tag in the last 16 bytes of `sealed` and decrypts the rest. Fills `sealed` with zeros if the tag is
    /// wrong.
    pub(super) fn open(&mut self, sealed: &mut [u8]) -> Result<(), CipherError> {
        self.process(CipherError::Forged, |key, nonce| key.open(nonce, sealed))
    }

    /// Processes one cell by `operation`. The state isn't moved, because a move leaves a copy that is not erased.
    fn process(
        &mut self,
        failure: CipherError,
        operation: impl FnOnce(&AeadKey, [u8; NONCE_LEN]) -> Result<(), InvalidTag>,
    ) -> Result<(), CipherError> {
        let state = self.0.as_mut().ok_or(CipherError::Ended)?;
        if operation(&state.key, state.nonce()).is_err() {
            self.end();
            return Err(failure);
        }
        if state.step().is_err() {
            self.end();
        }
        Ok(())
    }

    /// Erases the key.
    pub(super) fn end(&mut self) {
        self.0 = None;
    }
}
