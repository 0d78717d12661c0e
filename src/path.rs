//! Path selection: the relays of a circuit.
//!
//! Owns the client's guard sample; all other input is the consensus that the caller passes. Driven by the client,
//! which requests paths ([`choose()`]), reports the outcome of guards, and stores the sample on disk. Governed by
//! `proto/08-paths.md`. Threat addressed: relays that would place themselves at both ends of a circuit. Clients keep
//! few guards for months, no path has two relays of one family, operator or network, and weights aren't the relays'
//! claims (`threat-model.md`).

mod choose;
mod guards;
mod hop;
mod restrict;
mod weigh;

pub(crate) use choose::exits;
pub use choose::{Path, PathError, Purpose, Requirement, choose, replace, suits};
pub use guards::{GuardSample, GuardSampleError};
pub(crate) use hop::PathRelay;
pub use hop::Relays;
