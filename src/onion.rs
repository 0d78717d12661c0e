//! Onion layers: one authenticated layer per hop around each RELAY cell's body.
//!
//! Owns the cell keys and counters of a circuit: one [`RelayLayer`] at each relay, [`OriginLayers`] at the origin.
//! Driven by `relay` and by the origin (`circuit`). Works in place on a body, without allocation. Governed by
//! `proto/03-cells.md`. Threat: relays that mark traffic by modifying it. A modified, replayed or reordered cell,
//! and the cell after a dropped cell, can't be opened. Forward, the next honest hop detects the failure; backward, the
//! origin. After a failure to open a layer the direction has ended and the circuit must end.

mod cipher;
mod origin;
mod relay;

#[cfg(test)]
mod tests;

pub use origin::OriginLayers;
pub use relay::{ForwardContent, RelayLayer};

use crate::{
    base::{ErrorClass, HopIndex},
    crypto::TAG_LEN,
    wire::BODY_LEN,
};

/// Bytes that a layer adds: one kind byte and a Poly1305 tag.
const OVERHEAD: usize = 1 + TAG_LEN;
/// Kind byte: the rest is the next hop's sealed body.
const KIND_PASS: u8 = 0;
/// Kind byte: the rest is a relay message for (or from) this hop.
const KIND_MESSAGE: u8 = 1;

/// A failure to open or seal a layer. The circuit must end, except after [`OnionError::TooLong`], and after
/// [`OnionError::NoSuchHop`] at the origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OnionError {
    /// The cell was modified, replayed or reordered, or an earlier cell is missing.
    #[error("the layer of hop {} is not authentic", .0.value())]
    Forged(HopIndex),
    /// The bytes after the sealed part of the body are not zero.
    #[error("the filler at hop {} is not zero", .0.value())]
    Filler(HopIndex),
    /// The kind byte is unknown, or it marks a cell for the next hop and there is no next hop.
    #[error("the kind byte in the layer of hop {} is not valid", .0.value())]
    Kind(HopIndex),
    /// This direction failed before, or its counter is used up.
    #[error("the layer failed before, or its counter is used up")]
    Ended,
    /// The message does not fit the hop's layer. Nothing was sealed.
    #[error("the message is longer than the layer's capacity")]
    TooLong,
    /// The circuit has no such hop, or has the maximum number of hops.
    #[error("the circuit has no such hop, or has the maximum number of hops")]
    NoSuchHop,
}

impl OnionError {
    /// The class of the error.
    #[must_use]
    pub const fn class(self) -> ErrorClass {
        match self {
            Self::Forged(_) | Self::Filler(_) | Self::Kind(_) => ErrorClass::Peer,
            Self::Ended => ErrorClass::Limit,
            Self::TooLong | Self::NoSuchHop => ErrorClass::Bug,
        }
    }
}

/// Bytes of a body that hop `hop`'s layer covers; the filler after them is zero.
#[must_use]
pub const fn sealed_len(hop: HopIndex) -> usize {
    // Subtracts at most 7 · 17 of 1,019 bytes, so no operation saturates.
    BODY_LEN.saturating_sub(OVERHEAD.saturating_mul(hop.value() as usize).saturating_sub(OVERHEAD))
}

/// Bytes of a relay message, including its header, that fit hop `hop`'s layer.
#[must_use]
pub const fn message_capacity(hop: HopIndex) -> usize {
    sealed_len(hop).saturating_sub(OVERHEAD)
}
