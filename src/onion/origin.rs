//! The origin's onion layers of a circuit.

use crate::{base::HopIndex, handshake::HopKeys, wire::BODY_LEN};

use super::{
    KIND_MESSAGE, KIND_PASS, OnionError,
    cipher::LayerCipher,
    message_capacity,
    relay::{cipher_error, place_message},
    sealed_len,
};

/// The origin's layers of one circuit, one for each hop built so far; at most [`HopIndex::MAX`].
#[derive(Default)]
pub struct OriginLayers {
    hops: Vec<HopLayers>,
}

struct HopLayers {
    index: HopIndex,
    forward: LayerCipher,
    backward: LayerCipher,
}

impl OriginLayers {
    /// Layers of a circuit without a hop.
    #[must_use]
    pub const fn new() -> Self {
        Self { hops: Vec::new() }
    }

    /// Adds the next hop, with the keys of its handshake.
    ///
    /// # Errors
    /// When the circuit has [`HopIndex::MAX`] hops.
    pub fn push(&mut self, keys: HopKeys) -> Result<HopIndex, OnionError> {
        let index = match self.hops.last() {
            None => HopIndex::FIRST,
            Some(hop) => hop.index.next().ok_or(OnionError::NoSuchHop)?,
        };
        let (forward, backward) = (LayerCipher::new(keys.forward), LayerCipher::new(keys.backward));
        self.hops.push(HopLayers { index, forward, backward });
        Ok(index)
    }

    /// The number of hops.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.hops.len()
    }

    /// Whether the circuit has no hop yet.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.hops.is_empty()
    }

    /// Seals a relay message for `hop` under the layers of `hop` and of all hops before it; `body` is overwritten.
    ///
    /// # Errors
    /// When the circuit has no hop `hop` or the message is longer than [`message_capacity`] (the layers stay usable),
    /// or a layer has ended.
    pub fn seal_message(&mut self, hop: HopIndex, message: &[u8], body: &mut [u8; BODY_LEN]) -> Result<(), OnionError> {
        let hops = self.hops.get_mut(..usize::from(hop.value())).ok_or(OnionError::NoSuchHop)?;
        if message.len() > message_capacity(hop) {
            return Err(OnionError::TooLong);
        }
        body.fill(0);
        place_message(message, layer(hop, body)?)?;
        for HopLayers { index, forward, .. } in hops.iter_mut().rev() {
            // The kind byte of the outer layers is KIND_PASS, the zero that `fill` has written.
            forward.seal(layer(*index, body)?).map_err(|error| cipher_error(*index, &error))?;
        }
        Ok(())
    }

    /// Opens the layers of a backward cell, in place. Returns the hop that sent the relay message, and the length of
    /// the message with its padding. The message is then at the start of the body.
    ///
    /// # Errors
    /// When a layer is not authentic or has ended, or the kind of a layer is not valid. The circuit must end. Every
    /// later call fails.
    pub fn open_backward(&mut self, body: &mut [u8; BODY_LEN]) -> Result<(HopIndex, usize), OnionError> {
        let opened = self.try_open_backward(body);
        if opened.is_err() {
            for hop in &mut self.hops {
                hop.backward.end();
            }
        }
        opened
    }

    fn try_open_backward(&mut self, body: &mut [u8; BODY_LEN]) -> Result<(HopIndex, usize), OnionError> {
        let mut without_message = OnionError::NoSuchHop;
        for HopLayers { index, backward, .. } in &mut self.hops {
            let layer = layer(*index, body)?;
            backward.open(layer).map_err(|error| cipher_error(*index, &error))?;
            match layer.first() {
                Some(&KIND_MESSAGE) => {
                    let length = message_capacity(*index);
                    let start = usize::from(index.value());
                    body.copy_within(start..start.saturating_add(length), 0);
                    return Ok((*index, length));
                }
                Some(&KIND_PASS) => without_message = OnionError::Kind(*index),
                _ => return Err(OnionError::Kind(*index)),
            }
        }
        // The last hop forwarded a cell although no hop follows it.
        Err(without_message)
    }
}

/// The layer of `hop` in a body whose outer layers are open. The kind byte of each outer layer precedes the layer.
fn layer(hop: HopIndex, body: &mut [u8; BODY_LEN]) -> Result<&mut [u8], OnionError> {
    let start = usize::from(hop.value()).saturating_sub(1);
    body.get_mut(start..start.saturating_add(sealed_len(hop))).ok_or(OnionError::NoSuchHop)
}
