//! The key schedule of the circuit handshake, the same at both ends (`proto/04-handshake.md` §3).

use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

use crate::{
    base::HopIndex,
    crypto::{AeadKey, KeySource, LayerKey, NONCE_LEN, OnionPublic, SharedSecret, TAG_LEN, sha256_parts},
};

use super::{HandshakeError, HopKeys, MAX_PAYLOAD_LEN, RelayKeys};

/// Handshake type 0x0001: X25519 alone. (0x0002 is reserved for X25519 with ML-KEM-768.)
pub(super) const TYPE_X25519: u16 = 0x0001;

const REQUEST_LABEL: &[u8] = b"umbel 1 handshake request";
const REPLY_LABEL: &[u8] = b"umbel 1 handshake reply";
const DONE_LABEL: &[u8] = b"umbel 1 handshake done";
const REQUEST_KEY_LABEL: &[u8] = b"umbel 1 request payload";
const REPLY_KEY_LABEL: &[u8] = b"umbel 1 reply payload";
const AUTH_LABEL: &[u8] = b"umbel 1 authenticator";
const HOP_KEYS_LABEL: &[u8] = b"umbel 1 hop keys";

/// The state after the keys of the request: the hash h1 and the first secret.
pub(super) struct RequestStage {
    hash: [u8; 32],
    /// X25519 of the origin's ephemeral key and the relay's onion key.
    es: SharedSecret,
}

impl RequestStage {
    pub(super) fn new(relay: &RelayKeys, hop: HopIndex, ephemeral: &OnionPublic, es: SharedSecret) -> Self {
        let hash = sha256_parts(&[
            REQUEST_LABEL,
            &TYPE_X25519.to_be_bytes(),
            &[hop.value()],
            relay.identity.as_bytes(),
            &relay.onion_key.0,
            &ephemeral.0,
        ]);
        Self { hash, es }
    }

    pub(super) fn payload_key(&self) -> PayloadKey {
        PayloadKey(KeySource::extract(&self.hash, &[self.es.as_bytes()]).expand(REQUEST_KEY_LABEL, &[]))
    }

    /// Adds the relay's ephemeral key. `sealed` is the request's sealed payload, as encoded on the wire; `ee` is X25519
    /// of both ephemeral keys.
    pub(super) fn reply(&self, sealed: &[u8], ephemeral: &OnionPublic, ee: &SharedSecret) -> ReplyStage {
        let hash = sha256_parts(&[REPLY_LABEL, &self.hash, &ephemeral.0, sealed]);
        let source = KeySource::extract(&hash, &[self.es.as_bytes(), ee.as_bytes()]);
        ReplyStage { hash, source }
    }
}

/// The state after the relay's ephemeral key: the hash h2 and the final secret.
pub(super) struct ReplyStage {
    hash: [u8; 32],
    source: KeySource,
}

impl ReplyStage {
    pub(super) fn payload_key(&self) -> PayloadKey {
        PayloadKey(self.source.expand(REPLY_KEY_LABEL, &[]))
    }

    /// Adds the reply's sealed payload, as encoded on the wire.
    pub(super) fn finish(self, sealed: &[u8]) -> FinalStage {
        let hash = sha256_parts(&[DONE_LABEL, &self.hash, sealed]);
        let auth = self.source.expand(AUTH_LABEL, &hash);
        let (forward, backward) = self.source.expand_pair(HOP_KEYS_LABEL, &hash);
        let keys = HopKeys { forward: LayerKey::from_bytes(*forward), backward: LayerKey::from_bytes(*backward) };
        FinalStage { auth: *auth, keys }
    }
}

/// The state after the reply: the authenticator and the layer keys. At the origin, only [`Self::verify`] authenticates
/// the keys.
pub(super) struct FinalStage {
    pub(super) auth: [u8; 32],
    pub(super) keys: HopKeys,
}

impl FinalStage {
    /// The layer keys, if `auth` equals the authenticator. Compares in constant time.
    pub(super) fn verify(self, auth: &[u8; 32]) -> Result<HopKeys, HandshakeError> {
        if bool::from(self.auth.ct_eq(auth)) { Ok(self.keys) } else { Err(HandshakeError::Forged) }
    }
}

/// A key that seals a single payload.
pub(super) struct PayloadKey(Zeroizing<[u8; 32]>);

impl PayloadKey {
    /// The ciphertext and the tag of `payload`.
    pub(super) fn seal(self, payload: &[u8]) -> Result<Vec<u8>, HandshakeError> {
        if payload.len() > MAX_PAYLOAD_LEN {
            return Err(HandshakeError::PayloadTooLong);
        }
        let mut sealed = [payload, &[0; TAG_LEN]].concat();
        AeadKey::new(&self.0).seal([0; NONCE_LEN], &mut sealed).map_err(|_| HandshakeError::PayloadTooLong)?;
        Ok(sealed)
    }

    /// The payload that [`Self::seal`] sealed.
    pub(super) fn open(self, sealed: &[u8]) -> Result<Vec<u8>, HandshakeError> {
        let length = sealed.len().checked_sub(TAG_LEN).ok_or(HandshakeError::Malformed)?;
        if length > MAX_PAYLOAD_LEN {
            return Err(HandshakeError::Malformed);
        }
        let mut payload = sealed.to_vec();
        AeadKey::new(&self.0).open([0; NONCE_LEN], &mut payload).map_err(|_| HandshakeError::Forged)?;
        payload.truncate(length);
        Ok(payload)
    }
}

/// Splits a field of fixed length off the front of a message.
pub(super) fn field<'a, const N: usize>(message: &mut &'a [u8]) -> Result<&'a [u8; N], HandshakeError> {
    let (field, remaining) = message.split_first_chunk().ok_or(HandshakeError::Malformed)?;
    *message = remaining;
    Ok(field)
}

/// Splits the handshake type off the front of a message and checks that it is [`TYPE_X25519`].
pub(super) fn expect_type(message: &mut &[u8]) -> Result<(), HandshakeError> {
    match u16::from_be_bytes(*field(message)?) {
        TYPE_X25519 => Ok(()),
        other => Err(HandshakeError::Type(other)),
    }
}
