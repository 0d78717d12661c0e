//! Paths: which relays a circuit goes over.
//!
//! Owns the client's guard sample; all else comes from the consensus handed in. Driven by the client: it asks for a path
//! ([`choose()`]), tells what became of guards, and keeps the sample on disk. Governed by `proto/08-paths.md`. It stands against
//! relays that would place themselves at both ends of a circuit: a few guards kept for months, no two relays of one
//! family, operator or network on a path, and no weight a relay claimed itself (`threat-model.md`).

mod choose;
mod guards;
mod hop;
mod restrict;
mod weigh;

pub(crate) use choose::exits;
pub use choose::{Path, PathError, Purpose, Requirement, choose, replace, suits};
pub use guards::{GuardSample, GuardSampleError};
pub(crate) use hop::Hop;
pub use hop::Relays;
