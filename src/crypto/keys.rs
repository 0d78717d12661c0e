//! Long-term and ephemeral keys: X25519 for circuits, ed25519 for identities.

use core::fmt;

use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use rand::CryptoRng;
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::{Zeroize as _, Zeroizing};

use crate::base::RelayId;

use super::CryptoError;

/// Prefix of every signed message, before the purpose.
const SIGNATURE_LABEL: &[u8] = b"umbel 1 signature ";

/// An X25519 public key (RFC 7748), 32 bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OnionPublic(pub [u8; 32]);

impl fmt::Debug for OnionPublic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OnionPublic")
    }
}

/// An X25519 secret: a relay's onion key, or an ephemeral key of a handshake.
pub struct OnionSecret {
    secret: StaticSecret,
    public: OnionPublic,
}

impl OnionSecret {
    /// A new random secret.
    #[must_use]
    pub fn generate<R: CryptoRng + ?Sized>(rng: &mut R) -> Self {
        let mut bytes = Zeroizing::new([0; 32]);
        rng.fill_bytes(bytes.as_mut_slice());
        Self::from_bytes(*bytes)
    }

    /// The secret with these bytes, in the encoding of RFC 7748 §5 (clamped on use).
    #[must_use]
    pub fn from_bytes(mut bytes: [u8; 32]) -> Self {
        let secret = StaticSecret::from(bytes);
        bytes.zeroize();
        let public = OnionPublic(PublicKey::from(&secret).to_bytes());
        Self { secret, public }
    }

    /// The secret's bytes, for a key file.
    #[must_use]
    pub fn to_bytes(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.secret.to_bytes())
    }

    /// The public key.
    #[must_use]
    pub const fn public(&self) -> OnionPublic {
        self.public
    }

    /// X25519 of this secret and the other end's public key.
    ///
    /// # Errors
    /// When the result is all zero, which only a key of small order causes.
    pub(crate) fn agree(&self, peer: &OnionPublic) -> Result<SharedSecret, CryptoError> {
        let shared = self.secret.diffie_hellman(&PublicKey::from(peer.0));
        if shared.was_contributory() { Ok(SharedSecret(shared)) } else { Err(CryptoError::SmallOrder) }
    }
}

/// The result of X25519; never all zero.
pub(crate) struct SharedSecret(x25519_dalek::SharedSecret);

impl SharedSecret {
    pub(crate) fn as_bytes(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }
}

/// A relay's or an authority's identity: its ed25519 signing key.
pub struct IdentityKey(SigningKey);

impl IdentityKey {
    /// A new random identity.
    #[must_use]
    pub fn generate<R: CryptoRng + ?Sized>(rng: &mut R) -> Self {
        let mut seed = Zeroizing::new([0; 32]);
        rng.fill_bytes(seed.as_mut_slice());
        Self::from_bytes(&seed)
    }

    /// The identity with this seed (the secret key of RFC 8032 §5.1.5).
    #[must_use]
    pub fn from_bytes(seed: &[u8; 32]) -> Self {
        Self(SigningKey::from_bytes(seed))
    }

    /// The seed, for a key file.
    #[must_use]
    pub fn to_bytes(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.0.to_bytes())
    }

    /// The public key.
    #[must_use]
    pub fn id(&self) -> RelayId {
        RelayId::from_bytes(self.0.verifying_key().to_bytes())
    }

    /// Signs `message` for the purpose `context`, a constant of the specification without zero bytes.
    #[must_use]
    pub fn sign(&self, context: &str, message: &[u8]) -> [u8; 64] {
        self.0.sign(&signed_bytes(context, message)).to_bytes()
    }
}

/// Checks that `id` signed `message` for the purpose `context`.
///
/// Verification is strict: keys and nonces of small order are rejected, so that all verifiers agree on every signature.
///
/// # Errors
/// When `id` is not a valid key, or the signature is not by `id` over this message and purpose.
pub fn verify(id: &RelayId, context: &str, message: &[u8], signature: &[u8; 64]) -> Result<(), CryptoError> {
    let key = VerifyingKey::from_bytes(id.as_bytes()).map_err(|_| CryptoError::Signature)?;
    key.verify_strict(&signed_bytes(context, message), &Signature::from_bytes(signature))
        .map_err(|_| CryptoError::Signature)
}

/// The bytes that a signature covers: label, purpose, a zero byte, message. A purpose has no zero byte, so signatures
/// for two purposes never cover the same bytes (`proto/04-handshake.md` §6).
fn signed_bytes(context: &str, message: &[u8]) -> Vec<u8> {
    [SIGNATURE_LABEL, context.as_bytes(), &[0], message].concat()
}
