//! The class of an error: the party that caused it.

use core::fmt;

/// The party or condition that caused an error. The error types of machines and of links have a method `class()`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorClass {
    /// A peer violated the protocol, or refused. The error counts against the peer.
    Peer,
    /// The network: a timeout, a lost or closed link, or an unavailable part of the overlay. The error counts against
    /// no party.
    Network,
    /// The caller: an invalid request, a requested end, or this node's configuration.
    Local,
    /// A resource limit of this node or of a peer.
    Limit,
    /// A bug of this program.
    Bug,
}

impl fmt::Display for ErrorClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Peer => "peer",
            Self::Network => "network",
            Self::Local => "local",
            Self::Limit => "limit",
            Self::Bug => "bug",
        })
    }
}
