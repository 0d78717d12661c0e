//! Events of a client, and the reasons for which a stream ends or is never opened.

use core::time::Duration;

use super::ClientStream;
use crate::{
    base::{ErrorClass, RelayId},
    path::PathError,
    stream::StreamEvent,
    wire::EndReason,
};

/// Why a stream ended or was never opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StreamFailure {
    /// The reason of [`StreamEvent::Closed`].
    #[error("{0}")]
    Ended(EndReason),
    /// The client has the maximum number of requests and streams.
    #[error("the client has the maximum number of open streams; close some")]
    LimitReached,
    /// No consensus arrived in time.
    #[error("the client has no consensus yet; check that a directory can be reached")]
    NoConsensus,
    /// The consensus has expired and no newer one was available. An expired consensus is never used.
    #[error("the consensus has expired and no directory has a newer one; check the clock and the directories")]
    ConsensusExpired,
    /// The consensus has no path to that target.
    #[error(transparent)]
    NoPath(#[from] PathError),
    /// The target is a name or address of a local network, or a reserved name, and is sent to no exit.
    #[error(
        "no exit can reach this host: it is on a local network or has a reserved name; exclude local hosts from the proxy"
    )]
    NotPublic,
    /// No guard could be reached.
    #[error("no guard can be reached; check that this network allows UDP")]
    GuardUnreachable,
    /// No circuit could be built beyond the guard.
    #[error("no circuit could be built beyond the guard; try again later")]
    NoCircuit,
}

impl StreamFailure {
    /// Its class.
    #[must_use]
    pub const fn class(self) -> ErrorClass {
        match self {
            Self::Ended(EndReason::ResourceLimit) | Self::LimitReached => ErrorClass::Limit,
            Self::Ended(_) => ErrorClass::Peer,
            Self::NoPath(error) => error.class(),
            Self::NotPublic => ErrorClass::Local,
            Self::NoConsensus | Self::ConsensusExpired | Self::GuardUnreachable | Self::NoCircuit => {
                ErrorClass::Network
            }
        }
    }
}

/// An event for the client's owner.
#[derive(Clone, Debug)]
pub enum ClientEvent {
    /// The first circuit is open: requests are served without delay.
    Ready,
    /// A circuit is open.
    CircuitBuilt {
        /// Its relays, the guard first.
        path: Vec<RelayId>,
        /// Time from the start of the build to the open channel; near zero if the channel was open before.
        channel: Duration,
        /// Time of each hop, from its first cell to its answer.
        hops: Vec<Duration>,
    },
    /// The guard sample has changed and should be stored ([`ClientMachine::guards`](super::ClientMachine::guards)).
    GuardsChanged,
    /// The consensus has expired: all requests fail until there is a newer one.
    ConsensusExpired,
    /// An event of a stream or RESOLVE, as its circuit emitted it.
    Stream(ClientStream, StreamEvent),
    /// The stream to an exit that offers the delegated request is open; takes the place of
    /// [`StreamEvent::Connected`].
    Delegated {
        /// The stream.
        stream: ClientStream,
        /// The relays of its circuit, the guard first.
        path: Vec<RelayId>,
        /// Time of each hop when the circuit was built.
        hops: Vec<Duration>,
        /// The exit also carries streams of this client, because no other exit offers the same.
        shared_exit: bool,
    },
    /// The request failed before a stream was opened for it; nothing follows.
    Failed(ClientStream, StreamFailure),
}
