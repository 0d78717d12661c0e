//! Cryptographic primitives: key agreement, signatures, hashing, key derivation, layer keys.
//!
//! Typed wrappers that allow only one use of each primitive. A Diffie-Hellman result that a peer forced to zero is
//! rejected. Every signature covers its purpose. Secrets are erased when dropped and can be neither printed nor copied.
//! Results depend on the inputs alone; the caller passes randomness. Governed by `proto/03-cells.md` (layer keys) and
//! `proto/04-handshake.md` (the rest).

mod aead;
mod derive;
mod keys;

#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) mod vectors;

pub use derive::{LayerKey, sha256};
pub use keys::{IdentityKey, OnionPublic, OnionSecret, verify};

pub(crate) use aead::{AeadKey, InvalidTag, NONCE_LEN, TAG_LEN};
pub(crate) use derive::{KeySource, sha256_parts};
pub(crate) use keys::SharedSecret;

/// A failure of a primitive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CryptoError {
    /// A Diffie-Hellman result is all zero: the other end sent a point of small order (RFC 7748 §6.1).
    #[error("the public key is of small order")]
    SmallOrder,
    /// The signature does not verify with this key, message and purpose, or the key is not valid.
    #[error("the signature is not valid")]
    Signature,
}
