//! Path restrictions: rules by which two relays are not on one path (`proto/08-paths.md` §2).

use super::hop::PathRelay;
use crate::{
    base::AddressPrefix,
    directory::{ConsensusRelay, Parameters},
};

/// Whether two relays must not be on one path: they are identical, of one family or operator, or have similar
/// addresses.
pub(super) fn related(one: &PathRelay<'_>, other: &PathRelay<'_>, parameters: &Parameters) -> bool {
    let are_similar = match (one, other) {
        (PathRelay::Listed(one), PathRelay::Listed(other)) => {
            !parameters.allows_similar_addresses() && similar_addresses(one, other)
        }
        // The addresses of volunteers aren't published.
        _ => false,
    };
    related_by_consent(one, other) || same_operator(one, other) || are_similar
}

/// Whether two relays are identical, or of one family. A family counts only if both relays name each other. Otherwise a
/// relay could name all relays except its accomplices, and every path through that relay would continue through them.
/// A family in the consensus doesn't name volunteers. A volunteer's family in the list is already reduced to members
/// that name the volunteer.
pub(super) fn related_by_consent(one: &PathRelay<'_>, other: &PathRelay<'_>) -> bool {
    let ((family, _), (other_family, _)) = (one.family_and_operator(), other.family_and_operator());
    let (one_names, other_names) = (family.contains(&other.identity()), other_family.contains(&one.identity()));
    let mutual = match (one, other) {
        (PathRelay::Volunteer(_), PathRelay::Listed(_)) => one_names,
        (PathRelay::Listed(_), PathRelay::Volunteer(_)) => other_names,
        _ => one_names && other_names,
    };
    one.identity() == other.identity() || mutual
}

/// Whether two relays state the same operator.
fn same_operator(one: &PathRelay<'_>, other: &PathRelay<'_>) -> bool {
    let ((_, operator), (_, other_operator)) = (one.family_and_operator(), other.family_and_operator());
    !operator.is_empty() && operator == other_operator
}

/// Whether two relays have addresses in one block.
fn similar_addresses(one: &ConsensusRelay, other: &ConsensusRelay) -> bool {
    blocks(one).any(|block| blocks(other).any(|other_block| other_block == block))
}

/// The address blocks of a relay: an IPv4 /16, an IPv6 /32, or one of each.
fn blocks(relay: &ConsensusRelay) -> impl Iterator<Item = AddressPrefix> {
    relay.profile.addresses.iter().map(|address| AddressPrefix::block(address.ip()))
}
