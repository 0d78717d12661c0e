//! The interface by which ports, requests and the search page open streams and resolve names.
//!
//! The client in `node` implements [`Connector`]. Ports, requests and the search page are generic over the trait, so
//! that tests can replace the overlay.

use core::{future::Future, time::Duration};

use crate::{
    base::RelayId,
    client::StreamFailure,
    delegated::Delegation,
    io::stream::Stream,
    path::PathError,
    wire::{EndReason, Host, ResolvedAnswer, Target},
};

pub use crate::client::Isolation;

/// The reason why a stream was not opened, or a name not resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// There is no path or circuit, or the exit ended the stream.
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

/// The stream of a delegated request, with its path. The stream accepts data before the exit has confirmed the request.
#[derive(Debug)]
pub struct Delegated {
    /// The stream to the exit.
    pub stream: Stream,
    /// The circuit's path, from guard to exit.
    pub path: Vec<Hop>,
    /// Whether the exit also carries other streams of this client, or did so recently, because no other exit was
    /// suitable.
    pub shared_exit: bool,
}

/// One hop of a circuit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    /// The relay.
    pub relay: RelayId,
    /// The time of the handshake with this hop, from CREATE or EXTEND to the answer.
    pub handshake_time: Duration,
}

/// A request for the stream of a delegated request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DelegatedRequest {
    /// The service that the exit must offer.
    pub delegation: Delegation,
    /// Excluded exits.
    pub excluded_exits: Vec<RelayId>,
    /// The isolation of the stream's circuit.
    pub isolation: Isolation,
}

/// Opens streams and resolves names through the overlay. Cheap to clone.
pub trait Connector: Clone + Send + Sync + 'static {
    /// Opens a stream to `target`, on a circuit with streams of this isolation only.
    ///
    /// Dropping the future cancels the stream.
    ///
    /// # Errors
    /// When there is no circuit, or the exit can't connect to the target.
    fn open(&self, target: Target, isolation: Isolation) -> impl Future<Output = Result<Stream, ConnectError>> + Send;

    /// Resolves a name to addresses, or an address to names, by an exit.
    ///
    /// # Errors
    /// When there is no circuit, or the exit has no answer.
    fn resolve(
        &self,
        host: Host,
        isolation: Isolation,
    ) -> impl Future<Output = Result<Vec<ResolvedAnswer>, ConnectError>> + Send;

    /// Opens a stream to an exit that offers the service and isn't excluded, on a separate circuit.
    ///
    /// # Errors
    /// When there is no circuit; [`PathError::NotOffered`] when no other exit offers the service.
    fn delegate(&self, request: DelegatedRequest) -> impl Future<Output = Result<Delegated, ConnectError>> + Send;
}
