//! The party at the other end of a channel, for limits that its circuits share.

use core::fmt;

use super::{AddressPrefix, RelayId};

/// A neighbour. Prints redacted.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Neighbour {
    /// A relay of the consensus.
    Listed(RelayId),
    /// Any other neighbour: its source, because anyone can make up identities.
    Source(AddressPrefix),
}

impl fmt::Debug for Neighbour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Neighbour([redacted])")
    }
}
