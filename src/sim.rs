//! A seeded world of nodes in virtual time.
//!
//! Owns a simulated [`Network`] of reliable, ordered lanes with delay, jitter, loss and limited rates, and a
//! [`World`] that drives protocol cores over it. The same seed gives the same run. Simulation comes on top of the
//! runs over real data channels, not in their place: what it leaves out is everything below messages.

mod network;
#[cfg(test)]
mod tests;
mod world;

pub use network::{Network, NodeId, NodeTransport, PathProfile};
pub use world::World;
