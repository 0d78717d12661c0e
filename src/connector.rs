//! The interface between listeners and client: [`Connector`] opens streams and resolves names under an isolation.
//!
//! The client's assembly implements [`Connector`]. The SOCKS and HTTP proxy ports are generic over it, as are tests.

use core::{fmt, future::Future, time::Duration};

use sha2::{Digest, Sha256};

use crate::{
    base::RelayId,
    client::StreamFailure,
    delegated::Delegation,
    io::stream::Stream,
    path::PathError,
    wire::{Answer, EndReason, Host, Target},
};

/// The isolation of a stream: streams of different isolations never share a circuit.
///
/// A digest of the listener and the application's credentials, so that the credentials aren't stored. Prints
/// redacted.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Isolation([u8; 32]);

impl Isolation {
    /// The isolation of `user` and `password` at `listener`.
    #[must_use]
    pub fn new(listener: &str, user: &[u8], password: &[u8]) -> Self {
        let mut digest = Sha256::new();
        for part in [listener.as_bytes(), user, password] {
            digest.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
            digest.update(part);
        }
        Self(digest.finalize().into())
    }

    /// The isolation of applications without credentials at `listener`.
    #[must_use]
    pub fn of_listener(listener: &str) -> Self {
        Self::new(listener, &[], &[])
    }

    /// The digest.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for Isolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Isolation([redacted])")
    }
}

/// The reason why a stream could not be opened or a name not resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// The client found no path or built no circuit, or the exit ended the stream.
    #[error(transparent)]
    Stream(#[from] StreamFailure),
    /// The client is shutting down.
    #[error("the client has stopped")]
    Stopped,
}

impl From<EndReason> for ConnectError {
    fn from(reason: EndReason) -> Self {
        Self::Stream(StreamFailure::Ended(reason))
    }
}

impl From<PathError> for ConnectError {
    fn from(error: PathError) -> Self {
        Self::Stream(StreamFailure::NoPath(error))
    }
}

/// A delegated request: the stream to the exit that performs it, open at once.
#[derive(Debug)]
pub struct Delegated {
    /// The stream to the exit's service.
    pub stream: Stream,
    /// The circuit's path, from guard to exit.
    pub path: Vec<Hop>,
    /// Whether the exit also carries other streams of this client, because no other exit offers the service.
    pub shared_exit: bool,
}

/// One hop of a circuit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    /// The relay.
    pub relay: RelayId,
    /// The time to add this hop when the circuit was built, from the first cell to the answer.
    pub took: Duration,
}

/// Opens streams and resolves names through the overlay. Cheap to clone.
pub trait Connector: Clone + Send + Sync + 'static {
    /// Opens a stream to `target`, on a circuit that carries no other isolation.
    ///
    /// Dropping the future cancels the stream.
    ///
    /// # Errors
    /// When there is no circuit, or the exit could not connect.
    fn connect(
        &self,
        target: Target,
        isolation: Isolation,
    ) -> impl Future<Output = Result<Stream, ConnectError>> + Send;

    /// Resolves a name to addresses, or an address to names, at an exit.
    ///
    /// # Errors
    /// When there is no circuit, or the exit has no answer.
    fn resolve(
        &self,
        host: Host,
        isolation: Isolation,
    ) -> impl Future<Output = Result<Vec<Answer>, ConnectError>> + Send;

    /// Opens a delegated stream to an exit that offers `delegation` and isn't in `not_by`, over a separate circuit.
    ///
    /// # Errors
    /// When there is no circuit; [`PathError::NotOffered`] when no other exit offers it.
    fn delegate(
        &self,
        delegation: Delegation,
        not_by: Vec<RelayId>,
        isolation: Isolation,
    ) -> impl Future<Output = Result<Delegated, ConnectError>> + Send;
}
