//! Real runs: the real binary, a process a node, real data channels over loopback, real clients.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::panic
)]

mod applications;
mod failures;
mod harness;
mod logs;
mod requests;
mod start;
