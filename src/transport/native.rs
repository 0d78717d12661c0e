//! The native transport: WebRTC data channels over UDP.
//!
//! [`Endpoint`] is a machine without I/O: a STUN responder, a stateless DTLS cookie front, DTLS 1.2 handshakes by
//! `dimpl`, our DTLS records and SCTP ([`sctp`](super::sctp)), and pre-negotiated data channels as lanes. There is no
//! ICE agent, peer connection or SDP. [`Sockets`] performs the I/O. The driver owns the loop:
//!
//! 1. wait for [`Sockets::readable`], the core, or [`Transport::poll_timeout`](super::Transport::poll_timeout);
//! 2. [`Sockets::receive`] into [`Endpoint::handle_datagrams`], and `handle_timeout`;
//! 3. drain `poll_link_event` into the core, and the core's outputs into `handle_transmit`;
//! 4. [`Sockets::flush`], which sends the output of [`Endpoint::poll_datagrams`]. While [`Endpoint::has_link_event`] is
//!    true, steps 3 and 4 again.
//!
//! Governed by `proto/01-transport.md`; `docs/transport.md` covers floods and forged datagrams.

mod accepted;
mod certificate;
mod config;
mod datagrams;
mod dtls;
mod endpoint;
mod front;
mod hellos;
mod link;
mod memory;
mod records;
mod route;
mod socket;
mod stun;

pub use certificate::{Certificate, CertificateError};
pub use config::{EndpointCaps, EndpointConfig, EndpointError, Ice, IceError};
pub use datagrams::Batch;
#[cfg(any(test, fuzzing))]
pub(crate) use dtls::check::{CLIENT, DtlsPair, SERVER};
pub use endpoint::{Counts, Endpoint};
pub use records::{CipherSuite, DirectionKey, KeyLimits, OVERHEAD, Opened, RecordError, Records};
pub use route::{Port, PortUse, SocketRoute};
pub use socket::{SocketError, Sockets};
