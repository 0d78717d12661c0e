//! A seeded simulation of nodes and their network in virtual time.
//!
//! Owns a simulated [`Network`] of reliable, ordered lanes with delay, jitter, loss and limited rates, and a
//! [`World`] that drives machines over it. Runs with the same seed are identical. The simulation complements runs over
//! real data channels and doesn't replace them: it leaves out all layers below messages.

mod network;
#[cfg(test)]
mod tests;
mod world;

pub use network::{LinkProperties, Network, NodeId, NodeTransport};
pub use world::World;
