//! Restrictions on relays of one path (`proto/08-paths.md`, "Restrictions").

use super::hop::PathRelay;
use crate::{
    base::AddressPrefix,
    directory::{ConsensusRelay, Parameters},
};

/// Whether two relays may not be on one path: they are identical, of one family or operator, or have similar
/// addresses.
pub(super) fn related(one: &PathRelay<'_>, other: &PathRelay<'_>, parameters: &Parameters) -> bool {
    let close = match (one, other) {
        (PathRelay::Listed(one), PathRelay::Listed(other)) => {
            !parameters.allows_similar_addresses() && similar_addresses(one, other)
        }
        // The addresses of volunteers aren't published.
        _ => false,
    };
    one.identity() == other.identity() || same_family(one, other) || close
}

/// A family counts only if both relays name each other. Otherwise a relay could name all relays but its accomplices,
/// and paths through it would have to use those. In the volunteer list, all members of a family name the volunteer too.
/// The authorities ensure this, because no consensus names volunteers.
fn same_family(one: &PathRelay<'_>, other: &PathRelay<'_>) -> bool {
    let ((family, operator), (other_family, other_operator)) = (one.kin(), other.kin());
    let (one_names, other_names) = (family.contains(&other.identity()), other_family.contains(&one.identity()));
    let mutual = match (one, other) {
        (PathRelay::Volunteer(_), PathRelay::Listed(_)) => one_names,
        (PathRelay::Listed(_), PathRelay::Volunteer(_)) => other_names,
        _ => one_names && other_names,
    };
    mutual || (!operator.is_empty() && operator == other_operator)
}

/// Whether any addresses of the two relays are in one block.
fn similar_addresses(one: &ConsensusRelay, other: &ConsensusRelay) -> bool {
    blocks(one).any(|block| blocks(other).any(|of_other| of_other == block))
}

fn blocks(relay: &ConsensusRelay) -> impl Iterator<Item = AddressPrefix> {
    relay.profile.addresses.iter().map(|address| AddressPrefix::block(address.ip()))
}
