//! Which gateways fall to a volunteer.

use crate::{
    base::RelayId,
    crypto::sha256_parts,
    directory::{Consensus, Flags},
};

/// Gateways in a ranking: a volunteer tries no further, and a report of any other relay about it does not count.
pub const RANKED_GATEWAYS: usize = 8;

const LABEL: &[u8] = b"umbel gateway ranking\0";

/// The gateways of `volunteer`, the best first, at most [`RANKED_GATEWAYS`]: relays that `consensus` flags as guards,
/// ascending by the SHA-256 of a label, the seed, the volunteer's and the relay's identity.
///
/// The authority draws the seed once the volunteer has registered, so nobody can make up an identity to which a certain
/// gateway falls (`proto/07-directory.md`, "Ranking").
#[must_use]
pub fn gateway_ranking(seed: &[u8; 32], volunteer: &RelayId, consensus: &Consensus) -> Vec<RelayId> {
    let guards = consensus.relays().iter().filter(|relay| relay.flags.contains(Flags::GUARD));
    let rank = |relay: RelayId| (sha256_parts(&[LABEL, seed, volunteer.as_bytes(), relay.as_bytes()]), relay);
    let mut ranked: Vec<([u8; 32], RelayId)> = Vec::new();
    // Of thousands only the first few are kept. Nothing here or below is sorted by the library, whose ways to sort make up a
    // twelfth of what a page loads.
    for entry in guards.map(|relay| rank(relay.identity())) {
        let place = ranked.partition_point(|before| *before < entry);
        if place < RANKED_GATEWAYS {
            ranked.insert(place, entry);
            ranked.truncate(RANKED_GATEWAYS);
        }
    }
    ranked.into_iter().map(|(_, relay)| relay).collect()
}
