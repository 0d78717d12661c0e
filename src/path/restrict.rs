//! Which relays must not be on one path (`proto/08-paths.md`, "Restrictions").

use core::net::IpAddr;

use crate::directory::{ConsensusRelay, Parameters, Profile};

/// Whether the two may not be on one path: they are the same, of one family, of one operator, or close in address.
pub(super) fn related(one: &ConsensusRelay, other: &ConsensusRelay, parameters: &Parameters) -> bool {
    let (one, other) = (&one.profile, &other.profile);
    one.identity == other.identity
        || same_family(one, other)
        || (!parameters.allows_similar_addresses() && similar_addresses(one, other))
}

/// Naming counts only when it is mutual: else a relay could name all but its fellows, and whoever passes through it would
/// have to choose those.
fn same_family(one: &Profile, other: &Profile) -> bool {
    let mutual = one.family.contains(&other.identity) && other.family.contains(&one.identity);
    mutual || (!one.operator.is_empty() && one.operator == other.operator)
}

/// Whether any addresses of the two share their first 16 (IPv4) or 32 (IPv6) bits.
fn similar_addresses(one: &Profile, other: &Profile) -> bool {
    let similar = |pair: (IpAddr, IpAddr)| match pair {
        (IpAddr::V4(one), IpAddr::V4(other)) => one.to_bits() >> 16 == other.to_bits() >> 16,
        (IpAddr::V6(one), IpAddr::V6(other)) => one.to_bits() >> 96 == other.to_bits() >> 96,
        _ => false,
    };
    one.addresses.iter().any(|a| other.addresses.iter().any(|b| similar((a.ip(), b.ip()))))
}
