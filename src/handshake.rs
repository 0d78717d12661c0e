//! The circuit handshake: an origin and one relay derive shared layer keys.
//!
//! The handshake follows ntor (Goldberg, Stebila, Ustaoglu 2013). The origin's ephemeral X25519 key is combined with
//! the relay's onion key and with the relay's ephemeral key; each direction carries a sealed payload. Each state is a
//! value that the next step consumes. No state outlives its handshake. Driven by the circuit at the origin and by the
//! relay. Governed by `proto/04-handshake.md`. Threat: relays that impersonate a later hop. The keys are bound to
//! identity, onion key, hop number and handshake type. Only the holder of the onion key can answer.

mod origin;
mod relay;
mod transcript;

#[cfg(test)]
mod tests;

pub use origin::{ClientHandshake, EstablishedHop};
pub use relay::{HandshakeAnswer, OnionKeyring, VerifiedRequest, respond};

use crate::{
    base::{ErrorClass, RelayId},
    crypto::{CryptoError, LayerKey, OnionPublic},
};

/// The longest payload in either direction, in bytes.
pub const MAX_PAYLOAD_LEN: usize = 1024;

/// The keys of a relay that an origin needs for the handshake. The consensus lists both keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RelayKeys {
    /// The relay's identity.
    pub identity: RelayId,
    /// The relay's onion key.
    pub onion_key: OnionPublic,
}

/// The layer keys of one hop.
pub struct HopKeys {
    /// The key for cells away from the origin.
    pub forward: LayerKey,
    /// The key for cells towards the origin.
    pub backward: LayerKey,
}

/// A failure of a handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// The message is too short or too long for its handshake type.
    #[error("the handshake message is malformed")]
    Malformed,
    /// The handshake type is unknown.
    #[error("handshake type {0:#06x} is unknown")]
    Type(u16),
    /// The request names an onion key that is neither the current nor the previous key of the relay.
    #[error("the onion key is neither the relay's current nor its previous key")]
    UnknownOnionKey,
    /// The other end's key is of small order.
    #[error(transparent)]
    Key(#[from] CryptoError),
    /// The message was modified or is for another relay or hop, or the sender doesn't hold the onion key.
    #[error("the handshake message is not authentic")]
    Forged,
    /// The payload to send is longer than [`MAX_PAYLOAD_LEN`].
    #[error("the payload is longer than {MAX_PAYLOAD_LEN} bytes")]
    PayloadTooLong,
}

impl HandshakeError {
    /// The class of the error.
    #[must_use]
    pub const fn class(self) -> ErrorClass {
        match self {
            Self::Malformed | Self::Type(_) | Self::UnknownOnionKey | Self::Key(_) | Self::Forged => ErrorClass::Peer,
            Self::PayloadTooLong => ErrorClass::Local,
        }
    }
}
