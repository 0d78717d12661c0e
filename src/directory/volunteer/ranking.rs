//! The ranking of a volunteer's gateways (`proto/07-directory.md` §9).

use crate::{
    base::RelayId,
    crypto::sha256_parts,
    directory::{Consensus, Flags},
};

/// Maximum gateways of a ranking. A volunteer dials no other gateways, and no report of another relay counts for it.
pub const RANKED_GATEWAYS: usize = 8;

const LABEL: &[u8] = b"umbel gateway ranking\0";

/// The ranking of gateways for `volunteer`, the best first, at most [`RANKED_GATEWAYS`]. These are relays flagged as
/// guards in `consensus`, ascending by the SHA-256 of a label, the seed, the volunteer's identity and the relay's
/// identity.
///
/// The authority draws the seed after the registration, so a volunteer can't generate an identity for a particular
/// gateway.
#[must_use]
pub fn gateway_ranking(seed: &[u8; 32], volunteer: &RelayId, consensus: &Consensus) -> Vec<RelayId> {
    let guards = consensus.relays().iter().filter(|relay| relay.flags.contains(Flags::GUARD));
    let rank = |relay: RelayId| (sha256_parts(&[LABEL, seed, volunteer.as_bytes(), relay.as_bytes()]), relay);
    let mut ranked: Vec<([u8; 32], RelayId)> = Vec::new();
    // Insertion without a sort: the standard library's sorting code would be a twelfth of a page's download.
    for entry in guards.map(|relay| rank(relay.identity())) {
        let index = ranked.partition_point(|other| *other < entry);
        if index < RANKED_GATEWAYS {
            ranked.insert(index, entry);
            ranked.truncate(RANKED_GATEWAYS);
        }
    }
    ranked.into_iter().map(|(_, relay)| relay).collect()
}
