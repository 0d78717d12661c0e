//! The circuit handshake: how an origin and one relay come to share layer keys.
//!
//! The ntor pattern (Goldberg, Stebila, Ustaoglu 2013): the origin's ephemeral X25519 key against the relay's onion key and
//! against the relay's ephemeral, with a sealed payload in each direction. Each state is a value that its step consumes;
//! no state outlives its handshake. Driven by the circuit at the origin and by the relay. Governed by
//! `proto/04-handshake.md`. Against relays that would sit between the origin and a later hop: the keys are bound to
//! identity, onion key, hop number and type, and only the holder of the onion key can answer.

mod origin;
mod relay;
mod transcript;

#[cfg(test)]
mod tests;

pub use origin::{ClientHandshake, Established};
pub use relay::{Answer, OnionKeyring, Request, respond};

use crate::{
    base::RelayId,
    crypto::{CryptoError, LayerKey, OnionPublic},
};

/// The longest payload in either direction, in bytes.
pub const MAX_PAYLOAD_LEN: usize = 1024;

/// What an origin must know of a relay to shake hands with it; both stand in the consensus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RelayKeys {
    /// Who it is.
    pub identity: RelayId,
    /// Its onion key.
    pub onion_key: OnionPublic,
}

/// The layer keys of one hop.
pub struct HopKeys {
    /// For cells away from the origin.
    pub forward: LayerKey,
    /// For cells towards the origin.
    pub backward: LayerKey,
}

/// Why a handshake came to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// The message is too short or too long for its type.
    #[error("the handshake message is malformed")]
    Malformed,
    /// The type is unknown, or the reply's is not the request's.
    #[error("handshake type {0:#06x} is not the one expected")]
    Type(u16),
    /// The request names an onion key that is neither the current nor the previous one.
    #[error("the onion key is not known")]
    UnknownOnionKey,
    /// The other end's key is of small order.
    #[error(transparent)]
    Key(#[from] CryptoError),
    /// The message was changed, is meant for another relay or hop, or comes from someone without the onion key.
    #[error("the handshake does not authenticate")]
    Forged,
    /// The payload to send is longer than [`MAX_PAYLOAD_LEN`].
    #[error("the payload is too long")]
    PayloadTooLong,
}
