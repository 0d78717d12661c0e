//! Identifiers of sockets and of routes over them, for the endpoint, which has no I/O.

use core::{fmt, net::SocketAddr};

/// The use of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortUse {
    /// Accepts links.
    Listen,
    /// Dials.
    Dial,
}

/// A socket of a node, as described to its [`Endpoint`](super::Endpoint).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Port {
    /// Index of the socket.
    pub id: u8,
    /// Use of the socket.
    pub purpose: PortUse,
    /// Whether the socket carries only IPv6; otherwise it carries only IPv4.
    pub ipv6: bool,
}

/// A local socket and a remote address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SocketRoute {
    /// [`Port::id`] of the local socket.
    pub port: u8,
    /// The remote address.
    pub remote: SocketAddr,
}

impl fmt::Debug for SocketRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SocketRoute").field("port", &self.port).finish_non_exhaustive()
    }
}
