//! What the listeners for applications need of the client: streams and answers, for a target and an isolation.
//!
//! The client's assembly implements [`Connector`]; SOCKS and the HTTP proxy are generic over it, and so are their tests.

use core::{fmt, future::Future, time::Duration};

use sha2::{Digest, Sha256};

use crate::{
    base::RelayId,
    delegated::Delegation,
    wire::{Answer, EndReason, Host, Target},
};

use super::stream::Stream;

/// What must not share a circuit with anything else: streams of different isolations never do.
///
/// A digest of the listener and the credentials an application gave, so that no credentials are kept. Prints
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

    /// The isolation of those who gave no credentials at `listener`.
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

/// Why a stream could not be opened, or a question not be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// The overlay was reached, and this is what the exit said, or the client in its place.
    #[error("{}", reason_text(*.0))]
    Ended(EndReason),
    /// The client has no consensus or no circuit yet, or none any more.
    #[error("the client has no circuit through the overlay yet")]
    NotReady,
    /// The client is shutting down.
    #[error("the client has stopped")]
    Stopped,
}

impl From<EndReason> for ConnectError {
    fn from(reason: EndReason) -> Self {
        Self::Ended(reason)
    }
}

/// What a stream's end means, in words for a person.
#[must_use]
pub const fn reason_text(reason: EndReason) -> &'static str {
    match reason {
        EndReason::Done => "the other end had nothing more to send",
        EndReason::Refused => "the target refused the connection",
        EndReason::Unreachable => "the target can't be reached from the exit",
        EndReason::Policy => "no exit's policy allows this target",
        EndReason::TimedOut => "the target did not answer in time",
        EndReason::NotFound => "the name has no address",
        EndReason::Reset => "the stream was reset",
        EndReason::ResourceLimit => "a limit of the client or of the exit is reached",
        EndReason::Failed => "the stream failed",
    }
}

/// A request on its way: the stream to the exit that performs it, open at once.
#[derive(Debug)]
pub struct Delegated {
    /// To the exit's service.
    pub stream: Stream,
    /// The way it takes, the guard first, the exit last.
    pub path: Vec<Hop>,
    /// The exit carries streams of this client too, for no other offers the same.
    pub shared_exit: bool,
}

/// One hop of a circuit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    /// The relay.
    pub relay: RelayId,
    /// What building the circuit to it took, from its first cell to its answer.
    pub took: Duration,
}

/// Opens streams and resolves names through the overlay. Cheap to clone.
pub trait Connector: Clone + Send + Sync + 'static {
    /// Opens a stream to `target`, on a circuit that carries no other isolation.
    ///
    /// Dropping the future gives the stream up.
    ///
    /// # Errors
    /// When no circuit can be had, or the exit could not connect.
    fn connect(
        &self,
        target: Target,
        isolation: Isolation,
    ) -> impl Future<Output = Result<Stream, ConnectError>> + Send;

    /// Asks an exit for the addresses of a name, or for the names of an address.
    ///
    /// # Errors
    /// When no circuit can be had, or the exit has no answer.
    fn resolve(
        &self,
        host: Host,
        isolation: Isolation,
    ) -> impl Future<Output = Result<Vec<Answer>, ConnectError>> + Send;

    /// Has a request performed by an exit that offers it and is none of `not_by`, over a circuit of its own.
    ///
    /// # Errors
    /// When no circuit can be had; `Ended(Policy)` when no other exit offers it.
    fn delegate(
        &self,
        delegation: Delegation,
        not_by: Vec<RelayId>,
        isolation: Isolation,
    ) -> impl Future<Output = Result<Delegated, ConnectError>> + Send;
}
