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
    /// The client has the maximum number of requests and streams, or of circuits.
    #[error("the client has the maximum number of streams or circuits; close some streams, or use fewer isolations")]
    LimitReached,
    /// The client received no consensus in time.
    #[error("the client has no consensus yet; check that a directory can be reached")]
    NoConsensus,
    /// The consensus has expired and no newer one was available. An expired consensus is never used.
    #[error("the consensus has expired and no directory has a newer one; check the clock and the directories")]
    ConsensusExpired,
    /// The consensus has no path for the request.
    #[error(transparent)]
    NoPath(#[from] PathError),
    /// The host is a name or address of a local network, or a reserved name. Such a host is sent to no exit.
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
    /// The failure's class.
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
    /// The first circuit is open, so that requests are placed without delay.
    Ready,
    /// A circuit is open.
    CircuitBuilt {
        /// The circuit's relays, the guard first.
        path: Vec<RelayId>,
        /// Time from the start of the build to the open channel; near zero if the channel was open before.
        channel_time: Duration,
        /// Build time of each hop, from the first cell to the answer.
        hop_times: Vec<Duration>,
    },
    /// The guard sample has changed, and the owner should store it
    /// ([`ClientMachine::guards`](super::ClientMachine::guards)).
    GuardsChanged,
    /// The consensus has expired. New and waiting requests fail until there is a newer consensus.
    ConsensusExpired,
    /// An event of a stream or RESOLVE, as its circuit emitted it.
    Stream(ClientStream, StreamEvent),
    /// The stream of a delegated request is open. This event replaces [`StreamEvent::Connected`].
    Delegated {
        /// The stream.
        stream: ClientStream,
        /// The relays of the stream's circuit, the guard first.
        path: Vec<RelayId>,
        /// Build time of each hop of the circuit.
        hop_times: Vec<Duration>,
        /// Whether the exit also carries streams of this client, or did so recently, because no other exit was
        /// suitable.
        shared_exit: bool,
    },
    /// The request failed before a stream was opened for it. No further event of the request follows.
    Failed(ClientStream, StreamFailure),
}
