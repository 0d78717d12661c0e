//! The sockets of a node and the routes over them: names for the endpoint, which does no I/O.

use core::{fmt, net::SocketAddr};

/// The use of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortUse {
    /// Accepts links.
    Listen,
    /// Dials.
    Dial,
}

/// One of a node's sockets, as described to its [`Endpoint`](super::Endpoint).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Port {
    /// Its number.
    pub id: u8,
    /// Its use.
    pub purpose: PortUse,
    /// Whether it carries IPv6 (and nothing else) or IPv4.
    pub ipv6: bool,
}

/// A local socket and a remote address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SocketRoute {
    /// [`Port::id`].
    pub port: u8,
    /// The remote address.
    pub remote: SocketAddr,
}

impl fmt::Debug for SocketRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SocketRoute").field("port", &self.port).finish_non_exhaustive()
    }
}
