//! The ranking of a volunteer's gateways.

use crate::{
    base::RelayId,
    crypto::sha256_parts,
    directory::{Consensus, Flags},
};

/// Gateways of a ranking. A volunteer tries no others, and reports of other relays about it do not count.
pub const RANKED_GATEWAYS: usize = 8;

const LABEL: &[u8] = b"umbel gateway ranking\0";

/// The gateways of `volunteer`, best first, at most [`RANKED_GATEWAYS`]: relays that `consensus` flags as guards,
/// ascending by the SHA-256 of a label, the seed, the volunteer's and the relay's identity.
///
/// The authority draws the seed after the volunteer has registered, so an identity can't be generated for a
/// particular gateway (`proto/07-directory.md`, "Ranking").
#[must_use]
pub fn gateway_ranking(seed: &[u8; 32], volunteer: &RelayId, consensus: &Consensus) -> Vec<RelayId> {
    let guards = consensus.relays().iter().filter(|relay| relay.flags.contains(Flags::GUARD));
    let rank = |relay: RelayId| (sha256_parts(&[LABEL, seed, volunteer.as_bytes(), relay.as_bytes()]), relay);
    let mut ranked: Vec<([u8; 32], RelayId)> = Vec::new();
    // Only the best few of thousands are kept, by insertion. The library's sorting code would be a twelfth of a
    // page's download.
    for entry in guards.map(|relay| rank(relay.identity())) {
        let place = ranked.partition_point(|before| *before < entry);
        if place < RANKED_GATEWAYS {
            ranked.insert(place, entry);
            ranked.truncate(RANKED_GATEWAYS);
        }
    }
    ranked.into_iter().map(|(_, relay)| relay).collect()
}
