//! Exit policies: the operator's rules for targets, and their summary for path selection.
//!
//! Has no I/O: `exit` resolves names and connects, and a policy decides on each address. Owns only the parsed rules.
//! Governed by `proto/08-paths.md` ("Exit policies"). Threat addressed: use of an exit against its local network.
//! Private, loopback and link-local addresses are refused unless the operator allows them.

mod address;
mod nat64;
mod policy;
mod summary;

pub use address::is_global;
pub use nat64::{InvalidNat64Prefix, Nat64Prefix};
pub use policy::{Policy, PolicyError};
pub use summary::{MAX_RANGES, PortRange, Summary};
