//! SCTP for WebRTC's data channels (RFC 9260, RFC 8831), over DTLS (RFC 8261), without I/O.
//!
//! An [`Association`] is handed packets, messages and the time, and gives packets, messages and a deadline. It has no
//! socket, clock or randomness of its own, and knows nothing of DTLS: its owner seals what
//! [`Association::poll_packet`] writes and hands [`Association::handle_packet`] what it has opened, authenticated. It
//! speaks the part of SCTP that reliable, ordered data channels negotiated beforehand need; what an honest peer never
//! sends ends it. Governed by `proto/01-transport.md` §5; `docs/transport.md` has the reasons.
//!
//! | part | owns |
//! |---|---|
//! | `packet` | bytes to chunks and back |
//! | `receive` | TSNs that arrived, acknowledgements, reassembly |
//! | `send` | fragments, what is in flight, what is lost (RACK-TLP, RFC 8985) |
//! | `congestion` | how much may be in flight, and how fast: BBR, CUBIC |
//! | `pacer` | when the next packet may leave |
//! | `association` | the handshake, timers, and what ties the parts together |
//!
//! The drain contract: after any call that takes `&mut self`, call [`Association::poll_event`] until it gives `None`,
//! [`Association::poll_packet`] until it gives 0, and ask [`Association::poll_timeout`] anew.

mod association;
mod clock;
pub mod congestion;
mod pacer;
mod packet;
mod receive;
mod rtt;
mod send;
mod serial;

use crate::base::Slots;

pub use association::{Association, Close, Config, Event};
pub use send::SendStatistics;

/// Largest message taken from a peer, in bytes.
pub const MAX_MESSAGE: usize = 64 << 10;

/// The peer sent what no honest one does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Broken;

/// A whole message.
struct Message {
    /// Payload protocol identifier.
    protocol: u32,
    bytes: Slots,
}

#[cfg(test)]
mod tests;
