//! SCTP for WebRTC data channels (RFC 9260, RFC 8831), over DTLS (RFC 8261), without I/O.
//!
//! An [`Association`] takes packets, messages and the time, and returns packets, messages and a deadline. It has no
//! socket, no system clock and no randomness of its own, and does not depend on DTLS. Its owner seals the output of
//! [`Association::poll_packet`] and passes opened, authenticated packets to [`Association::handle_packet`]. The module
//! implements the part of SCTP that reliable, ordered data channels need. A violation of the protocol
//! by the peer ends the association. Governed by `proto/01-transport.md` §5; `docs/transport.md` has the reasons.
//!
//! | part | owns |
//! |---|---|
//! | `packet` | encoding and decoding of chunks |
//! | `receive` | received TSNs, acknowledgements, reassembly |
//! | `send` | fragments, data in flight, loss detection (RACK-TLP, RFC 8985) |
//! | `congestion` | congestion window and pacing rate: BBR, CUBIC |
//! | `pacer` | departure time of the next packet |
//! | `rtt` | round-trip times and the retransmission timeout |
//! | `clock` | arrival times of data, as reported to the peer |
//! | `serial` | TSNs as 64-bit numbers |
//! | `association` | the handshake, timers, and the composition of the parts |
//!
//! The drain contract: after any call that takes `&mut self`, call [`Association::poll_event`] until it returns
//! `None` and [`Association::poll_packet`] until it returns 0. Then call [`Association::poll_timeout`] again.

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

pub use association::{Association, AssociationEvent, Close, Config};
pub use send::SendStatistics;

/// Largest message accepted from a peer, in bytes.
pub const MAX_MESSAGE: usize = 64 << 10;

/// The peer violated the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Broken;

/// A reassembled message.
struct Message {
    /// Payload protocol identifier.
    protocol: u32,
    bytes: Slots,
}

#[cfg(test)]
mod tests;
