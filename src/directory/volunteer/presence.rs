//! What gateways report: which volunteers have a channel to them; and for whom of those it counts.

use prost::Message;

use crate::{
    base::{RelayId, WallTime},
    crypto::{self, IdentityKey},
    directory::{
        CLOCK_SKEW,
        bounded::{self, BoundError, Bounds},
        profile::{Impossible, decode_identities, decode_identity, encode_identities, exactly, require},
        schema,
    },
};

/// Volunteers in one report at the most.
pub const MAX_PRESENT: usize = 512;

pub(crate) const CONTEXT: &str = "directory presence";
const MAX_LEN: usize = 20 << 10;
const SIGNED_BOUNDS: Bounds = Bounds { len: MAX_LEN, fields: &[(1, 1, MAX_LEN), (2, 1, 64)] };
const BOUNDS: Bounds = Bounds { len: MAX_LEN, fields: &[(3, MAX_PRESENT, 32)] };
const COUNTED_BOUNDS: Bounds = Bounds { len: MAX_COUNTED_LEN, fields: &[(1, MAX_PRESENT, 32)] };
/// Bytes of an answer to a report at the most.
pub const MAX_COUNTED_LEN: usize = MAX_LEN;

/// Why a report is refused. Every text may be shown to whoever sent it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PresenceError {
    /// The bytes are no report.
    #[error("presence: {0}")]
    Malformed(#[from] BoundError),
    /// The gateway in it has not signed it.
    #[error("presence: not signed by the gateway in it")]
    BadSignature,
    /// It was made at another time than this.
    #[error("presence: made too long ago or in the future; is the relay's clock right?")]
    WrongTime,
    /// It contradicts itself or the specification.
    #[error("presence: {0}")]
    Impossible(#[from] Impossible),
    /// The gateway is no relay of the last consensus.
    #[error("presence: the gateway is not listed")]
    NotListed,
    /// A newer one of the same gateway is known.
    #[error("presence: not newer than the last")]
    Older,
}

/// A signed report whose signature nobody has looked at.
#[derive(Clone)]
pub struct UnverifiedPresence {
    signed: schema::SignedPresence,
    claimed: Presence,
}

impl UnverifiedPresence {
    /// Takes an encoded `SignedPresence` apart.
    ///
    /// # Errors
    /// [`PresenceError::Malformed`] and [`PresenceError::Impossible`].
    pub fn decode(bytes: &[u8]) -> Result<Self, PresenceError> {
        let signed: schema::SignedPresence = bounded::decode(bytes, &SIGNED_BOUNDS)?;
        let document: schema::Presence = bounded::decode(&signed.presence, &BOUNDS)?;
        let gateway = decode_identity(&document.gateway).ok_or(Impossible("the gateway is not 32 bytes"))?;
        let volunteers = decode_identities(&document.volunteers).ok_or(Impossible("a volunteer is not 32 bytes"))?;
        let claimed = Presence { gateway, at_ms: document.at_ms, volunteers };
        claimed.check()?;
        Ok(Self { signed, claimed })
    }

    /// What it says, whoever made it: for refusing it before its signature is looked at.
    #[must_use]
    pub const fn claimed(&self) -> &Presence {
        &self.claimed
    }

    /// The report, if the gateway in it has signed it, about now.
    ///
    /// # Errors
    /// [`PresenceError::BadSignature`] and [`PresenceError::WrongTime`].
    pub fn verify(self, now: WallTime) -> Result<Presence, PresenceError> {
        let at = WallTime::from_unix(self.claimed.at_ms / 1000);
        if at > now.after(CLOCK_SKEW) || at < now.before(CLOCK_SKEW) {
            return Err(PresenceError::WrongTime);
        }
        let signature = exactly(&self.signed.signature).ok_or(PresenceError::BadSignature)?;
        crypto::verify(&self.claimed.gateway, CONTEXT, &self.signed.presence, &signature)
            .map_err(|_| PresenceError::BadSignature)?;
        Ok(self.claimed)
    }
}

/// A gateway's report: verified, or its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Presence {
    /// The relay that reports.
    pub gateway: RelayId,
    /// When, in Unix milliseconds: later than its last.
    pub at_ms: u64,
    /// All volunteers with a channel to it, ascending, at most [`MAX_PRESENT`].
    pub volunteers: Vec<RelayId>,
}

impl Presence {
    /// The encoded, signed report, as it is sent.
    ///
    /// # Errors
    /// [`PresenceError::Impossible`] when the volunteers are too many or out of order, or the gateway is not `key`'s.
    pub fn sign(&self, key: &IdentityKey) -> Result<Vec<u8>, PresenceError> {
        self.check()?;
        require(key.id() == self.gateway, "is not of the identity that signs")?;
        let document = schema::Presence {
            gateway: self.gateway.as_bytes().to_vec(),
            at_ms: self.at_ms,
            volunteers: encode_identities(&self.volunteers),
        };
        let presence = document.encode_to_vec();
        let signature = key.sign(CONTEXT, &presence).to_vec();
        Ok(schema::SignedPresence { presence, signature }.encode_to_vec())
    }

    fn check(&self) -> Result<(), Impossible> {
        require(self.volunteers.len() <= MAX_PRESENT, "more than 512 volunteers")?;
        require_ascending(&self.volunteers)
    }
}

/// What a directory answers to a report.
///
/// Believed as it comes, for a directory that lies in it could as well leave the volunteers out of the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counted {
    /// The volunteers that the report counted for, ascending.
    pub volunteers: Vec<RelayId>,
}

impl Counted {
    /// The encoding.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        schema::Counted { volunteers: encode_identities(&self.volunteers) }.encode_to_vec()
    }

    /// The answer that `bytes` are.
    ///
    /// # Errors
    /// [`PresenceError::Malformed`] and [`PresenceError::Impossible`].
    pub fn decode(bytes: &[u8]) -> Result<Self, PresenceError> {
        let document: schema::Counted = bounded::decode(bytes, &COUNTED_BOUNDS)?;
        let volunteers = decode_identities(&document.volunteers).ok_or(Impossible("a volunteer is not 32 bytes"))?;
        require_ascending(&volunteers)?;
        Ok(Self { volunteers })
    }
}

fn require_ascending(volunteers: &[RelayId]) -> Result<(), Impossible> {
    require(volunteers.is_sorted_by(|one, next| one < next), "volunteers are out of order, or one stands twice")
}
