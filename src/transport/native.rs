//! WebRTC data channels over UDP, composed of parts without I/O.
//!
//! STUN answers of our own, a stateless DTLS cookie front, DTLS 1.2 handshakes by `dimpl` and records and SCTP of our own
//! ([`sctp`](super::sctp)), pre-negotiated data channels as lanes; no ICE agent, no peer connection, no SDP. [`Endpoint`] is the machine, [`Sockets`] the
//! sockets it speaks through; the driver owns the loop:
//!
//! 1. wait for [`Sockets::readable`], the core, or [`Transport::poll_timeout`](super::Transport::poll_timeout);
//! 2. [`Sockets::receive`] into [`Endpoint::handle_datagrams`], and `handle_timeout`;
//! 3. drain `poll_link_event` into the core and the core's requests into `handle_transmit`;
//! 4. [`Sockets::flush`], which sends what [`Endpoint::poll_datagrams`] gives.
//!
//! Governed by `proto/01-transport.md`; the reasoning about floods and forged datagrams stands in `docs/transport.md`.

mod certificate;
mod config;
mod datagrams;
mod dtls;
mod endpoint;
mod front;
mod link;
mod memory;
mod records;
mod socket;
mod sources;
mod stun;

pub use certificate::{Certificate, CertificateError};
pub use config::{Caps, EndpointConfig, EndpointError, Ice, IceError};
pub use datagrams::Batch;
pub use endpoint::{Counts, Endpoint};
pub use records::{CipherSuite, DirectionKey, KeyLimits, OVERHEAD, Opened, RecordError, Records};
pub use socket::{Port, PortUse, Route, SocketError, Sockets};
