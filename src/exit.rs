//! What an exit forwards: the operator's policy, and its summary for path selection.
//!
//! Pure: decides on addresses that the exit's resolver has found, and does no I/O (that is `io::exit`). Owns no state
//! but the parsed rules. Governed by `proto/08-paths.md` ("Exit policies"). It keeps an exit from being turned against its
//! own network: private, loopback and link-local addresses are refused unless the operator allows them.

mod address;
mod policy;
mod summary;

pub use address::is_global;
pub use policy::{Policy, PolicyError};
pub use summary::{MAX_RANGES, PortRange, Summary};
