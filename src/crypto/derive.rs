//! Hashing and key derivation: SHA-256, HKDF-SHA256 (RFC 5869) with labels, and the ratchet of layer keys.

use hkdf::{Hkdf, HkdfExtract};
use sha2::{Digest as _, Sha256};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::AeadKey;

const RATCHET_LABEL: &[u8] = b"umbel 1 ratchet";

/// SHA-256 of `bytes`.
#[must_use]
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    sha256_parts(&[bytes])
}

/// SHA-256 of the concatenation of `parts`.
pub(crate) fn sha256_parts(parts: &[&[u8]]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part);
    }
    hash.finalize().into()
}

/// A pseudo-random key for deriving other keys.
pub(crate) struct KeySource(Hkdf<Sha256>);

impl KeySource {
    /// HKDF-Extract of the concatenation of `secrets`.
    pub(crate) fn extract(salt: &[u8], secrets: &[&[u8]]) -> Self {
        let mut extract = HkdfExtract::new(Some(salt));
        for secret in secrets {
            extract.input_ikm(secret);
        }
        let (mut key, source) = extract.finalize();
        key.as_mut_slice().zeroize();
        Self(source)
    }

    /// HKDF-Expand with the info `label ‖ context`.
    pub(crate) fn expand<const N: usize>(&self, label: &[u8], context: &[u8]) -> Zeroizing<[u8; N]> {
        const { assert!(N <= 255 * 32, "longer than the maximum output of HKDF-SHA256") };
        let mut key = Zeroizing::new([0; N]);
        #[expect(clippy::expect_used, reason = "fails only for a length beyond 255 blocks, which doesn't compile")]
        self.0.expand_multi_info(&[label, context], key.as_mut_slice()).expect("length checked at compile time");
        key
    }

    /// HKDF-Expand to 64 bytes: two keys.
    pub(crate) fn expand_pair(&self, label: &[u8], context: &[u8]) -> (Zeroizing<[u8; 32]>, Zeroizing<[u8; 32]>) {
        let both = self.expand::<64>(label, context);
        let (mut first, mut second) = (Zeroizing::new([0; 32]), Zeroizing::new([0; 32]));
        let (first_half, second_half) = both.split_at(32);
        first.copy_from_slice(first_half);
        second.copy_from_slice(second_half);
        (first, second)
    }
}

/// The secret from which all cell keys of one hop and direction are derived in order. Each step replaces the secret. An
/// earlier secret can't be derived from a later one.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct LayerKey([u8; 32]);

impl LayerKey {
    /// The layer key with these bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Returns the next cell key and replaces the layer key, so that the cell key can't be derived again
    /// (`proto/03-cells.md` §4).
    pub(crate) fn ratchet(&mut self) -> AeadKey {
        #[expect(clippy::expect_used, reason = "32 bytes are a pseudo-random key of SHA-256")]
        let source = KeySource(Hkdf::from_prk(&self.0).expect("as long as a digest"));
        let (cell_key, next) = source.expand_pair(RATCHET_LABEL, &[]);
        self.0.copy_from_slice(next.as_slice());
        AeadKey::new(&cell_key)
    }

    #[cfg(test)]
    pub(crate) const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}
