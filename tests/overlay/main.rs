//! End-to-end tests: the real binary, a process for each node, real data channels over loopback, real applications.
#![allow(
    clippy::arithmetic_side_effects,
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    unreachable_pub,
    reason = "tests processes, fails by panicking and uses the system's clock"
)]

mod applications;
mod attack;
mod chaos;
mod clients;
mod engines;
mod examples;
mod failures;
mod fetch;
mod harness;
mod logs;
mod lossy;
mod machines;
mod oblivious;
mod origin;
mod requests;
mod search;
mod start;
mod volunteers;
