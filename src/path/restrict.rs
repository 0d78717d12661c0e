//! Restrictions on relays of one path (`proto/08-paths.md`, "Restrictions").

use super::hop::PathRelay;
use crate::{
    base::AddressPrefix,
    directory::{ConsensusRelay, Parameters},
};

/// Whether two relays must not be on one path: they are identical, of one family or operator, or have similar
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

/// Whether two relays are of one family or operator. A family counts only if both relays name each other. Otherwise a
/// relay could name all relays except those of its own operator, and paths through it would have to use these. No
/// consensus names volunteers, so the authorities list only family members of a volunteer that name the volunteer.
fn same_family(one: &PathRelay<'_>, other: &PathRelay<'_>) -> bool {
    let ((family, operator), (other_family, other_operator)) = (one.family_and_operator(), other.family_and_operator());
    let (one_names, other_names) = (family.contains(&other.identity()), other_family.contains(&one.identity()));
    let mutual = match (one, other) {
        (PathRelay::Volunteer(_), PathRelay::Listed(_)) => one_names,
        (PathRelay::Listed(_), PathRelay::Volunteer(_)) => other_names,
        _ => one_names && other_names,
    };
    mutual || (!operator.is_empty() && operator == other_operator)
}

/// Whether the two relays have addresses in one block.
fn similar_addresses(one: &ConsensusRelay, other: &ConsensusRelay) -> bool {
    blocks(one).any(|block| blocks(other).any(|of_other| of_other == block))
}

fn blocks(relay: &ConsensusRelay) -> impl Iterator<Item = AddressPrefix> {
    relay.profile.addresses.iter().map(|address| AddressPrefix::block(address.ip()))
}
