//! What a directory answers a volunteer.

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

/// Why an answer is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegistrationError {
    /// The bytes are no registration.
    #[error("registration: {0}")]
    Malformed(#[from] BoundError),
    /// It contradicts itself or the specification.
    #[error("registration: {0}")]
    Impossible(#[from] Impossible),
}

/// How the directory has taken a volunteer.
///
/// Believed as it comes, for it steers nobody but the volunteer: a lying directory can send that to gateways of its choice
/// among those that the authorities list, and could as well leave it out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registration {
    /// What the volunteer's ranking follows from.
    pub seed: [u8; 32],
    /// The gateways that it is or will be listed with, the best ranked first, at most [`MAX_GATEWAYS`]; none while nobody
    /// can reach it.
    pub gateways: Vec<RelayId>,
}

impl Registration {
    /// The encoding.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        schema::Registration { seed: self.seed.to_vec(), gateways: encode_identities(&self.gateways) }.encode_to_vec()
    }

    /// The registration that `bytes` are.
    ///
    /// # Errors
    /// When they are none.
    pub fn decode(bytes: &[u8]) -> Result<Self, RegistrationError> {
        let document: schema::Registration = bounded::decode(bytes, &BOUNDS)?;
        let seed = exactly(&document.seed).ok_or(Impossible("the seed is not 32 bytes"))?;
        let gateways = decode_identities(&document.gateways).ok_or(Impossible("a gateway is not 32 bytes"))?;
        require(gateways.len() <= MAX_GATEWAYS, "more than three gateways")?;
        Ok(Self { seed, gateways })
    }
}
