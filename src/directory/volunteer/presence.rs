//! Presence reports: a gateway's signed report of the volunteers that it reaches, and the directory's answer, which
//! lists the volunteers for which the report counts.

use prost::Message;

use crate::{
    base::{RelayId, WallTime},
    crypto::IdentityKey,
    directory::{
        CLOCK_SKEW,
        bounded::{self, BoundError, Bounds},
        profile::{Impossible, decode_identities, decode_identity, encode_identities, require},
        schema,
        statement::{self, Statement, UnverifiedStatement},
    },
};

/// Maximum volunteers of one report.
pub const MAX_PRESENT: usize = 512;

const MAX_LEN: usize = 20 << 10;
const COUNTED_BOUNDS: Bounds = Bounds { len: MAX_COUNTED_LEN, fields: &[(1, MAX_PRESENT, 32)] };
/// Maximum bytes of an answer to a report.
pub const MAX_COUNTED_LEN: usize = MAX_LEN;

/// Why a report is refused. The messages may be shown to the sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PresenceError {
    /// The bytes are not a report within its bounds.
    #[error("presence: {0}")]
    Malformed(#[from] BoundError),
    /// The signature is not of the gateway in the report.
    #[error("presence: not signed by the gateway in it")]
    BadSignature,
    /// The date differs from the current time by more than [`CLOCK_SKEW`].
    #[error("presence: made too long ago or in the future; check the relay's clock")]
    WrongTime,
    /// The content is invalid.
    #[error("presence: {0}")]
    Impossible(#[from] Impossible),
    /// The last consensus doesn't list the gateway.
    #[error("presence: the gateway is not listed")]
    NotListed,
    /// The last report of the same gateway is as new or newer.
    #[error("presence: not newer than the previous one")]
    Older,
}

/// A signed report with an unverified signature.
pub type UnverifiedPresence = UnverifiedStatement<Presence>;

/// A gateway's report: verified, or created by this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Presence {
    /// The gateway, which signs the report.
    pub gateway: RelayId,
    /// The date in Unix milliseconds, later than the date of the last report.
    pub at_ms: u64,
    /// All volunteers with a channel to the gateway, ascending, at most [`MAX_PRESENT`].
    pub volunteers: Vec<RelayId>,
}

impl Presence {
    /// The encoded, signed report.
    ///
    /// # Errors
    /// [`PresenceError::Impossible`] when the volunteers are too many or out of order, or the gateway is not `key`'s.
    pub fn sign(&self, key: &IdentityKey) -> Result<Vec<u8>, PresenceError> {
        Ok(statement::sign(self, key)?)
    }
}

impl Statement for Presence {
    const PURPOSE: &'static str = "directory presence";
    const MAX_LEN: usize = MAX_LEN;
    const REPEATED: &'static [(u32, usize, usize)] = &[(3, MAX_PRESENT, 32)];
    type Schema = schema::Presence;
    type Error = PresenceError;
    const BAD_SIGNATURE: PresenceError = PresenceError::BadSignature;

    fn signer(&self) -> &RelayId {
        &self.gateway
    }

    fn check(&self) -> Result<(), Impossible> {
        require(self.volunteers.len() <= MAX_PRESENT, "the report has more than 512 volunteers")?;
        require_ascending(&self.volunteers)
    }

    fn check_date(&self, now: WallTime) -> Result<(), PresenceError> {
        let at = WallTime::from_unix(self.at_ms / 1000);
        let is_near = at <= now.after(CLOCK_SKEW) && at >= now.before(CLOCK_SKEW);
        if is_near { Ok(()) } else { Err(PresenceError::WrongTime) }
    }

    fn decode(document: schema::Presence) -> Result<Self, Impossible> {
        let gateway = decode_identity(&document.gateway).ok_or(Impossible("the gateway is not 32 bytes"))?;
        let volunteers = decode_identities(&document.volunteers).ok_or(Impossible("a volunteer is not 32 bytes"))?;
        Ok(Self { gateway, at_ms: document.at_ms, volunteers })
    }

    fn encode(&self) -> schema::Presence {
        schema::Presence {
            gateway: self.gateway.as_bytes().to_vec(),
            at_ms: self.at_ms,
            volunteers: encode_identities(&self.volunteers),
        }
    }
}

/// The directory's answer to a report.
///
/// The answer isn't signed: a directory that falsifies an answer could equally omit the volunteers from the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counted {
    /// The volunteers for which the report counted, ascending.
    pub volunteers: Vec<RelayId>,
}

impl Counted {
    /// Encodes the answer.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        schema::Counted { volunteers: encode_identities(&self.volunteers) }.encode_to_vec()
    }

    /// Decodes the answer.
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
    require(volunteers.is_sorted_by(|one, next| one < next), "volunteers are out of order or duplicated")
}
