//! Dials of the native transport: in virtual time over a network that loses, doubles, reorders and forges, and over
//! real sockets.
#![allow(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

#[path = "dial/attacks.rs"]
mod attacks;
#[path = "dial/sockets.rs"]
mod sockets;
#[path = "dial/virtual_time.rs"]
mod virtual_time;
#[path = "dial/world.rs"]
mod world;
