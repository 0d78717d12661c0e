//! Restrictions on relays of one path (`proto/08-paths.md`, "Restrictions").

use core::net::IpAddr;

use super::hop::Hop;
use crate::directory::{ConsensusRelay, Parameters};

/// Whether two relays may not be on one path: they are identical, of one family or operator, or have similar
/// addresses.
pub(super) fn related(one: &Hop<'_>, other: &Hop<'_>, parameters: &Parameters) -> bool {
    let close = match (one, other) {
        (Hop::Listed(one), Hop::Listed(other)) => {
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
fn same_family(one: &Hop<'_>, other: &Hop<'_>) -> bool {
    let ((family, operator), (other_family, other_operator)) = (one.kin(), other.kin());
    let (one_names, other_names) = (family.contains(&other.identity()), other_family.contains(&one.identity()));
    let mutual = match (one, other) {
        (Hop::Volunteer(_), Hop::Listed(_)) => one_names,
        (Hop::Listed(_), Hop::Volunteer(_)) => other_names,
        _ => one_names && other_names,
    };
    mutual || (!operator.is_empty() && operator == other_operator)
}

/// Whether any addresses of the two relays share their first 16 (IPv4) or 32 (IPv6) bits.
fn similar_addresses(one: &ConsensusRelay, other: &ConsensusRelay) -> bool {
    let similar = |pair: (IpAddr, IpAddr)| match pair {
        (IpAddr::V4(one), IpAddr::V4(other)) => one.to_bits() >> 16 == other.to_bits() >> 16,
        (IpAddr::V6(one), IpAddr::V6(other)) => one.to_bits() >> 96 == other.to_bits() >> 96,
        _ => false,
    };
    let (one, other) = (&one.profile.addresses, &other.profile.addresses);
    one.iter().any(|a| other.iter().any(|b| similar((a.ip(), b.ip()))))
}
