//! Path selection: the relays of a circuit.
//!
//! Owns the client's guard sample; the caller passes the consensus and the volunteer list. Driven by the client, which
//! requests paths ([`choose()`]), reports the reachability of guards, and stores the sample on disk. Governed by
//! `proto/08-paths.md`. Threat: relays of one adversary at both ends of a circuit. Clients keep few guards for
//! months, and layer-2 guards for days if the consensus has them. No path has two relays of one family, operator or
//! network, and relays can't claim a weight (`threat-model.md`).

mod choose;
mod guards;
mod hop;
mod names;
mod restrict;
mod weigh;

pub(crate) use choose::exits;
pub use choose::{Path, PathError, Purpose, Requirement, choose, measure, permits_target, replace};
pub use guards::{GuardSample, GuardSampleError};
pub(crate) use hop::PathRelay;
pub use hop::Relays;
pub(crate) use names::SpecialHost;
