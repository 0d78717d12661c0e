//! Dials of the native transport: in virtual time over a network with loss, duplication, reordering and forgery, and
//! over real sockets.
#![allow(
    clippy::arithmetic_side_effects,
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test fails by panicking, and tests over sockets use the system's clock"
)]

#[path = "dial/attacks.rs"]
mod attacks;
#[path = "dial/caps.rs"]
mod caps;
#[path = "dial/certificates.rs"]
mod certificates;
#[path = "dial/drive.rs"]
mod drive;
#[path = "dial/hellos.rs"]
mod hellos;
#[path = "dial/sockets.rs"]
mod sockets;
#[path = "dial/stock.rs"]
mod stock;
#[path = "dial/virtual_time.rs"]
mod virtual_time;
#[path = "dial/windows.rs"]
mod windows;
#[path = "dial/world.rs"]
mod world;
