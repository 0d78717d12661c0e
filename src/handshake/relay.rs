//! The relay's side of the circuit handshake.

use rand::CryptoRng;

use crate::{
    base::{HopIndex, RelayId},
    crypto::{OnionPublic, OnionSecret},
};

use super::{
    HandshakeError, HopKeys, RelayKeys,
    transcript::{RequestStage, TYPE_X25519, expect_type, field},
};

/// A relay's onion keys: the current key, and the previous key for origins with an older consensus.
pub struct OnionKeyring {
    current: OnionSecret,
    previous: Option<OnionSecret>,
}

impl OnionKeyring {
    /// A keyring with the current and the previous key.
    #[must_use]
    pub const fn new(current: OnionSecret, previous: Option<OnionSecret>) -> Self {
        Self { current, previous }
    }

    /// The current public key, which the descriptor lists.
    #[must_use]
    pub const fn public(&self) -> OnionPublic {
        self.current.public()
    }

    /// Makes `next` the current key, and the current key the previous key. Erases the old previous key.
    pub fn rotate(&mut self, next: OnionSecret) {
        self.previous = Some(core::mem::replace(&mut self.current, next));
    }

    fn find(&self, public: &OnionPublic) -> Option<&OnionSecret> {
        [Some(&self.current), self.previous.as_ref()].into_iter().flatten().find(|key| key.public() == *public)
    }
}

/// A request whose payload is authentic, before the relay's answer.
pub struct VerifiedRequest {
    stage: RequestStage,
    ephemeral: OnionPublic,
    /// The sealed payload of the request.
    sealed_payload: Vec<u8>,
    payload: Vec<u8>,
}

/// The result of a handshake at the relay.
pub struct HandshakeAnswer {
    /// The reply to send.
    pub reply: Vec<u8>,
    /// The hop's layer keys.
    pub keys: HopKeys,
    /// The payload of the request; may be a replay.
    pub payload: Vec<u8>,
}

impl VerifiedRequest {
    /// Opens a request to the relay `identity` as the hop `hop`.
    ///
    /// # Errors
    /// When the request is malformed, was modified, or was made for another relay or hop. Also when it has an unknown
    /// handshake type, an unknown onion key or a key of small order.
    pub fn open(
        identity: &RelayId,
        keys: &OnionKeyring,
        hop: HopIndex,
        request: &[u8],
    ) -> Result<Self, HandshakeError> {
        let mut unread = request;
        expect_type(&mut unread)?;
        let onion_key = OnionPublic(*field(&mut unread)?);
        let ephemeral = OnionPublic(*field(&mut unread)?);
        let sealed_payload = unread;
        let secret = keys.find(&onion_key).ok_or(HandshakeError::UnknownOnionKey)?;
        let relay = RelayKeys { identity: *identity, onion_key };
        let stage = RequestStage::new(&relay, hop, &ephemeral, secret.agree(&ephemeral)?);
        let payload = stage.payload_key().open(sealed_payload)?;
        Ok(Self { stage, ephemeral, sealed_payload: sealed_payload.to_vec(), payload })
    }

    /// The payload of the request; may be a replay.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        &self.payload
    }

    /// Answers with `payload`.
    ///
    /// # Errors
    /// When the payload is longer than [`super::MAX_PAYLOAD_LEN`].
    pub fn answer<R: CryptoRng + ?Sized>(self, payload: &[u8], rng: &mut R) -> Result<HandshakeAnswer, HandshakeError> {
        self.answer_with(OnionSecret::generate(rng), payload)
    }

    pub(super) fn answer_with(self, ephemeral: OnionSecret, payload: &[u8]) -> Result<HandshakeAnswer, HandshakeError> {
        let public = ephemeral.public();
        let ee = ephemeral.agree(&self.ephemeral)?;
        let stage = self.stage.reply(&self.sealed_payload, &public, &ee);
        let sealed_payload = stage.payload_key().seal(payload)?;
        let final_stage = stage.finish(&sealed_payload);
        let reply = [&TYPE_X25519.to_be_bytes(), public.0.as_slice(), &final_stage.auth, &sealed_payload].concat();
        Ok(HandshakeAnswer { reply, keys: final_stage.keys, payload: self.payload })
    }
}

/// Opens a request and answers with an empty payload: [`VerifiedRequest::open`], then [`VerifiedRequest::answer`].
///
/// # Errors
/// As [`VerifiedRequest::open`].
pub fn respond<R: CryptoRng + ?Sized>(
    identity: &RelayId,
    keys: &OnionKeyring,
    hop: HopIndex,
    request: &[u8],
    rng: &mut R,
) -> Result<HandshakeAnswer, HandshakeError> {
    VerifiedRequest::open(identity, keys, hop, request)?.answer(&[], rng)
}
