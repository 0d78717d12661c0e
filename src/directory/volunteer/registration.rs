//! The directory's answer to a volunteer's registration.

use prost::Message;

use super::list::MAX_GATEWAYS;
use crate::{
    base::RelayId,
    directory::{
        bounded::{self, BoundError, Bounds},
        profile::{Impossible, decode_identities, encode_identities, exactly, require},
        schema,
    },
};

const BOUNDS: Bounds = Bounds { len: 1 << 10, fields: &[] };

/// Why an answer is invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegistrationError {
    /// The bytes are no registration.
    #[error("registration: {0}")]
    Malformed(#[from] BoundError),
    /// It contradicts itself or the specification.
    #[error("registration: {0}")]
    Impossible(#[from] Impossible),
}

/// A volunteer's registration at the directory.
///
/// It isn't signed, because it affects only the volunteer. A directory that falsifies it can direct the volunteer to
/// gateways of its choice among those in the consensus, but could as well leave the volunteer out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registration {
    /// The seed of the volunteer's ranking.
    pub seed: [u8; 32],
    /// The gateways that it is or will be listed with, the best ranked first, at most [`MAX_GATEWAYS`]; empty while
    /// no gateway reports it.
    pub gateways: Vec<RelayId>,
}

impl Registration {
    /// Encodes it.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        schema::Registration { seed: self.seed.to_vec(), gateways: encode_identities(&self.gateways) }.encode_to_vec()
    }

    /// Decodes the registration.
    ///
    /// # Errors
    /// When `bytes` are no registration.
    pub fn decode(bytes: &[u8]) -> Result<Self, RegistrationError> {
        let document: schema::Registration = bounded::decode(bytes, &BOUNDS)?;
        let seed = exactly(&document.seed).ok_or(Impossible("the seed is not 32 bytes"))?;
        let gateways = decode_identities(&document.gateways).ok_or(Impossible("a gateway is not 32 bytes"))?;
        require(gateways.len() <= MAX_GATEWAYS, "the registration has more than three gateways")?;
        Ok(Self { seed, gateways })
    }
}
