//! The channel handshake: each state is a type, and each step consumes the state (`proto/02-channel.md` §2 and §3).
//!
//! Each end sends HELLO when the link opens. A relay answers the other end's HELLO with PROOF; a client sends no PROOF.
//! The channel is open once the other end's HELLO is valid, and also its PROOF if the other end is a relay. The
//! signature in PROOF covers the certificates and nonces of this link, so a PROOF of another link is invalid.

use std::sync::Arc;

use rand::CryptoRng;

use crate::{
    base::{LinkOpened, Redacted, RelayId},
    crypto::{IdentityKey, verify},
};

use super::{
    ChannelError, HandshakeOutcome,
    hello::{ChannelEnd, ChannelHello, PROOF_CONTEXT, REACH, VERSIONS, decode_proof, encode_proof, proof_message},
};

/// The role of this end on every channel.
#[derive(Clone)]
pub enum LocalRole {
    /// A client: proves no identity, and accepts no channel that another end dialled.
    Client,
    /// A relay that others can dial: always proves its identity, as dialler and as listener.
    Relay(Arc<IdentityKey>),
    /// A relay that others can't dial: accepts no channel that another end dialled, and always proves its identity. It
    /// sets REACH on the channels that it dials to its gateways
    /// ([`Channels::set_gateways`](super::Channels::set_gateways)).
    Volunteer(Arc<IdentityKey>),
}

impl LocalRole {
    /// The identity that this end proves; `None` for a client.
    #[must_use]
    pub fn identity(&self) -> Option<RelayId> {
        match self {
            Self::Client => None,
            Self::Relay(key) | Self::Volunteer(key) => Some(key.id()),
        }
    }
}

/// The state after this end's HELLO was sent, before the other end's HELLO.
pub(super) struct AwaitingHello {
    role: LocalRole,
    opened: LinkOpened,
    hello: ChannelHello,
}

/// The state after the other end's HELLO, before its PROOF. This end has sent its own PROOF, if it is a relay.
pub(super) struct AwaitingProof {
    relay: RelayId,
    signed: Vec<u8>,
    outcome: HandshakeOutcome,
}

/// The state after the other end's HELLO.
pub(super) enum AfterHello {
    /// The other end stated the identity of a relay and must send PROOF.
    AwaitingProof(AwaitingProof),
    /// The other end is a client.
    Open(HandshakeOutcome),
}

impl AwaitingHello {
    /// Starts the handshake on a link that has just opened. Also returns this end's HELLO, which has REACH if
    /// `requests_reach` is true.
    pub(super) fn start(
        role: LocalRole,
        opened: LinkOpened,
        requests_reach: bool,
        rng: &mut dyn CryptoRng,
    ) -> (Self, Vec<u8>) {
        let mut nonce = [0; 32];
        rng.fill_bytes(&mut nonce);
        let hello = ChannelHello {
            versions: VERSIONS.to_vec(),
            capabilities: if requests_reach { REACH } else { 0 },
            identity: role.identity(),
            nonce,
            observed: Some(opened.peer_address.0),
        };
        let message = hello.encode();
        (Self { role, opened, hello }, message)
    }

    /// Checks the other end's HELLO. Also returns this end's PROOF, if this end is a relay. If `may_be_gateway` is
    /// true, this end accepts REACH from a relay that dialled it.
    pub(super) fn handle_hello(
        self,
        message: &[u8],
        may_be_gateway: bool,
    ) -> Result<(AfterHello, Option<Vec<u8>>), ChannelError> {
        let theirs = ChannelHello::decode(message)?;
        let version = self.hello.common_version(&theirs).ok_or(ChannelError::NoCommonVersion)?;
        // A peer that states an identity other than the dialled one receives no PROOF.
        if self.opened.dialled.is_some() && self.opened.dialled != theirs.identity {
            return Err(ChannelError::WrongIdentity);
        }
        if theirs.identity.is_some() && theirs.identity == self.hello.identity {
            return Err(ChannelError::OwnIdentity);
        }
        let end = if self.opened.dialled.is_some() { ChannelEnd::Dialler } else { ChannelEnd::Listener };
        let signed_by = |signer: ChannelEnd| {
            let ours = (&self.hello, &self.opened.local_certificate);
            let theirs = (&theirs, &self.opened.peer_certificate);
            match end {
                ChannelEnd::Dialler => proof_message(signer, version, ours, theirs),
                ChannelEnd::Listener => proof_message(signer, version, theirs, ours),
            }
        };
        let proof = match &self.role {
            LocalRole::Client => None,
            LocalRole::Relay(key) | LocalRole::Volunteer(key) => {
                Some(encode_proof(&key.sign(PROOF_CONTEXT, &signed_by(end))))
            }
        };
        let outcome = HandshakeOutcome {
            dialler: end == ChannelEnd::Dialler,
            peer: theirs.identity,
            requested_reach: self.hello.capabilities & REACH != 0,
            observed: theirs.observed.map(Redacted),
            accepted_reach: may_be_gateway
                && end == ChannelEnd::Listener
                && theirs.identity.is_some()
                && theirs.capabilities & REACH != 0,
        };
        let next = match theirs.identity {
            Some(relay) => AfterHello::AwaitingProof(AwaitingProof { relay, signed: signed_by(end.other()), outcome }),
            None => AfterHello::Open(outcome),
        };
        Ok((next, proof))
    }
}

impl AwaitingProof {
    /// Whether the other end sent REACH, and this end accepted it.
    pub(super) const fn has_accepted_reach(&self) -> bool {
        self.outcome.accepted_reach
    }

    /// Verifies the other end's PROOF.
    pub(super) fn handle_proof(self, message: &[u8]) -> Result<HandshakeOutcome, ChannelError> {
        let signature = decode_proof(message)?;
        verify(&self.relay, PROOF_CONTEXT, &self.signed, &signature).map_err(|_| ChannelError::BadProof)?;
        Ok(self.outcome)
    }
}
