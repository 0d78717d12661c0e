//! The origin's side of the circuit handshake.

use rand::CryptoRng;

use crate::{
    base::HopIndex,
    crypto::{OnionPublic, OnionSecret},
};

use super::{
    HandshakeError, HopKeys, RelayKeys,
    transcript::{RequestStage, TYPE_X25519, expect_type, field},
};

/// The state before the relay's reply.
pub struct ClientHandshake {
    ephemeral: OnionSecret,
    stage: RequestStage,
    /// The sealed payload of the request.
    sealed_payload: Vec<u8>,
}

/// The result of a handshake at the origin. The other end has proved that it holds the relay's onion key.
pub struct EstablishedHop {
    /// The hop's layer keys.
    pub keys: HopKeys,
    /// The payload of the reply.
    pub payload: Vec<u8>,
}

impl ClientHandshake {
    /// Starts a handshake with `relay` as the hop `hop`. Returns the state and the request to send.
    ///
    /// `payload` has no forward secrecy and can be replayed, so a relay must be able to process it twice without harm.
    ///
    /// # Errors
    /// When the relay's onion key is of small order or the payload is longer than [`super::MAX_PAYLOAD_LEN`].
    pub fn start<R: CryptoRng + ?Sized>(
        relay: &RelayKeys,
        hop: HopIndex,
        payload: &[u8],
        rng: &mut R,
    ) -> Result<(Self, Vec<u8>), HandshakeError> {
        Self::start_with(OnionSecret::generate(rng), relay, hop, payload)
    }

    pub(super) fn start_with(
        ephemeral: OnionSecret,
        relay: &RelayKeys,
        hop: HopIndex,
        payload: &[u8],
    ) -> Result<(Self, Vec<u8>), HandshakeError> {
        let public = ephemeral.public();
        let stage = RequestStage::new(relay, hop, &public, ephemeral.agree(&relay.onion_key)?);
        let sealed_payload = stage.payload_key().seal(payload)?;
        let request = [&TYPE_X25519.to_be_bytes(), relay.onion_key.0.as_slice(), &public.0, &sealed_payload].concat();
        Ok((Self { ephemeral, stage, sealed_payload }, request))
    }

    /// Takes the relay's reply.
    ///
    /// # Errors
    /// When the reply is malformed, or has another handshake type or a key of small order. Also when it is not the
    /// reply of the onion key's holder to this request.
    pub fn finish(self, reply: &[u8]) -> Result<EstablishedHop, HandshakeError> {
        let mut unread = reply;
        expect_type(&mut unread)?;
        let ephemeral = OnionPublic(*field(&mut unread)?);
        let auth = field(&mut unread)?;
        let sealed_payload = unread;
        let ee = self.ephemeral.agree(&ephemeral)?;
        let stage = self.stage.reply(&self.sealed_payload, &ephemeral, &ee);
        let payload_key = stage.payload_key();
        let keys = stage.finish(sealed_payload).verify(auth)?;
        Ok(EstablishedHop { keys, payload: payload_key.open(sealed_payload)? })
    }
}
