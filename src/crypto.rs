//! Cryptographic primitives, typed: key agreement, signatures, hashing, key derivation, layer keys.
//!
//! Thin wrappers that leave one way to do each thing and none to do it wrongly: results of a Diffie-Hellman exchange that
//! the other end forced are refused, every signature names its purpose, secrets are erased when dropped and can be
//! neither printed nor copied. Pure functions of their inputs; randomness is handed in. Governed by
//! `proto/03-cells.md` (layer keys) and `proto/04-handshake.md` (the rest).

mod aead;
mod derive;
mod keys;

#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) mod vectors;

pub use derive::{LayerKey, sha256};
pub use keys::{IdentityKey, OnionPublic, OnionSecret, verify};

pub(crate) use aead::{AeadKey, Forged, NONCE_LEN, TAG_LEN};
pub(crate) use derive::{KeySource, sha256_parts};
pub(crate) use keys::SharedSecret;

/// Why a primitive refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CryptoError {
    /// A Diffie-Hellman result is all zero: the other end sent a point of small order (RFC 7748 §6.1).
    #[error("the public key is of small order")]
    SmallOrder,
    /// A signature is not this key's over this message for this purpose, or the key is none.
    #[error("the signature is not valid")]
    Signature,
}
