//! The directory's answer to a volunteer's registration.

use prost::Message;

use super::list::MAX_GATEWAYS;
use crate::{
    base::RelayId,
    directory::{
        bounded::{self, BoundError, Bounds},
        profile::{Impossible, decode_identities, encode_identities, require, to_array},
        schema,
    },
};

const BOUNDS: Bounds = Bounds { len: 1 << 10, fields: &[] };

/// Why a registration is invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegistrationError {
    /// The bytes are not a registration within its bounds.
    #[error("registration: {0}")]
    Malformed(#[from] BoundError),
    /// The content is invalid.
    #[error("registration: {0}")]
    Impossible(#[from] Impossible),
}

/// A volunteer's registration at the directory.
///
/// A registration isn't signed, because it affects only the volunteer. A directory that falsifies the seed can select
/// gateways among the guards of the consensus. Such a directory could equally omit the volunteer from the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registration {
    /// The seed of the volunteer's ranking.
    pub seed: [u8; 32],
    /// The gateways in the volunteer's entry of the next list, the best ranked first, at most [`MAX_GATEWAYS`]. Empty
    /// while no gateway reports the volunteer.
    pub gateways: Vec<RelayId>,
}

impl Registration {
    /// Encodes the registration.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        schema::Registration { seed: self.seed.to_vec(), gateways: encode_identities(&self.gateways) }.encode_to_vec()
    }

    /// Decodes the registration.
    ///
    /// # Errors
    /// When `bytes` are not a registration.
    pub fn decode(bytes: &[u8]) -> Result<Self, RegistrationError> {
        let document: schema::Registration = bounded::decode(bytes, &BOUNDS)?;
        let seed = to_array(&document.seed).ok_or(Impossible("the seed is not 32 bytes"))?;
        let gateways = decode_identities(&document.gateways).ok_or(Impossible("a gateway is not 32 bytes"))?;
        require(gateways.len() <= MAX_GATEWAYS, "the registration has more than three gateways")?;
        Ok(Self { seed, gateways })
    }
}
