//! A relay's onion layer of a circuit.

use crate::{
    base::HopIndex,
    handshake::HopKeys,
    wire::{BODY_LEN, is_zero},
};

use super::{
    KIND_MESSAGE, KIND_PASS, OnionError,
    cipher::{CipherError, LayerCipher},
    message_capacity, sealed_len,
};

/// The content of a forward cell under a relay's layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForwardContent {
    /// A body for the next hop, which the relay forwards unchanged.
    Pass,
    /// A relay message with its padding, in the first [`message_capacity`] bytes of the body.
    Message,
}

/// A relay's layer of one circuit, both directions.
pub struct RelayLayer {
    hop: HopIndex,
    forward: LayerCipher,
    backward: LayerCipher,
}

impl RelayLayer {
    /// The layer of the relay at `hop`, from the keys of its handshake.
    #[must_use]
    pub fn new(hop: HopIndex, keys: HopKeys) -> Self {
        Self { hop, forward: LayerCipher::new(keys.forward), backward: LayerCipher::new(keys.backward) }
    }

    /// Opens this hop's layer of a forward cell, in place.
    ///
    /// # Errors
    /// When the filler isn't zero, the layer is not authentic or has ended, or the kind is not valid. The circuit must
    /// end. Every later call for this direction fails.
    pub fn open_forward(&mut self, body: &mut [u8; BODY_LEN]) -> Result<ForwardContent, OnionError> {
        let opened = self.try_open_forward(body);
        if opened.is_err() {
            self.forward.end();
        }
        opened
    }

    fn try_open_forward(&mut self, body: &mut [u8; BODY_LEN]) -> Result<ForwardContent, OnionError> {
        let sealed = sealed_part(self.hop, body)?;
        self.forward.open(sealed).map_err(|error| cipher_error(self.hop, &error))?;
        let kind = match sealed.first() {
            Some(&KIND_MESSAGE) => ForwardContent::Message,
            Some(&KIND_PASS) if self.hop.next().is_some() => ForwardContent::Pass,
            _ => return Err(OnionError::Kind(self.hop)),
        };
        let capacity = message_capacity(self.hop);
        sealed.copy_within(1..capacity.saturating_add(1), 0);
        if let Some(filler) = sealed.get_mut(capacity..) {
            filler.fill(0);
        }
        Ok(kind)
    }

    /// Adds this hop's layer to a backward cell from the next hop, in place.
    ///
    /// # Errors
    /// When the filler isn't zero, this hop is the last possible hop, or the layer has ended. The circuit must end.
    /// Every later call for this direction fails.
    pub fn seal_backward(&mut self, body: &mut [u8; BODY_LEN]) -> Result<(), OnionError> {
        let added = self.try_seal_backward(body);
        if added.is_err() {
            self.backward.end();
        }
        added
    }

    fn try_seal_backward(&mut self, body: &mut [u8; BODY_LEN]) -> Result<(), OnionError> {
        let next = self.hop.next().ok_or(OnionError::NoSuchHop)?;
        sealed_part(next, body)?;
        let sealed = body.get_mut(..sealed_len(self.hop)).ok_or(OnionError::NoSuchHop)?;
        sealed.copy_within(..sealed_len(next), 1);
        if let Some(kind) = sealed.first_mut() {
            *kind = KIND_PASS;
        }
        self.backward.seal(sealed).map_err(|error| cipher_error(self.hop, &error))
    }

    /// Seals a relay message from this hop to the origin; `body` is overwritten.
    ///
    /// # Errors
    /// When the message is longer than [`message_capacity`] (the layer stays usable), or the backward direction has
    /// ended.
    pub fn seal_message(&mut self, message: &[u8], body: &mut [u8; BODY_LEN]) -> Result<(), OnionError> {
        if message.len() > message_capacity(self.hop) {
            return Err(OnionError::TooLong);
        }
        body.fill(0);
        let sealed = body.get_mut(..sealed_len(self.hop)).ok_or(OnionError::NoSuchHop)?;
        place_message(message, sealed)?;
        self.backward.seal(sealed).map_err(|error| cipher_error(self.hop, &error))
    }
}

/// Writes the kind byte and the message to the start of a layer.
pub(super) fn place_message(message: &[u8], layer: &mut [u8]) -> Result<(), OnionError> {
    let (kind, content) = layer.split_first_mut().ok_or(OnionError::TooLong)?;
    *kind = KIND_MESSAGE;
    content.get_mut(..message.len()).ok_or(OnionError::TooLong)?.copy_from_slice(message);
    Ok(())
}

pub(super) const fn cipher_error(hop: HopIndex, error: &CipherError) -> OnionError {
    match error {
        CipherError::Ended => OnionError::Ended,
        CipherError::Forged => OnionError::Forged(hop),
    }
}

/// The sealed part of a body for `hop`. Fails if the filler is not zero (`proto/03-cells.md` §3).
fn sealed_part(hop: HopIndex, body: &mut [u8; BODY_LEN]) -> Result<&mut [u8], OnionError> {
    let (sealed, filler) = body.split_at_mut_checked(sealed_len(hop)).ok_or(OnionError::NoSuchHop)?;
    if is_zero(filler) { Ok(sealed) } else { Err(OnionError::Filler(hop)) }
}
