//! Channels: authenticated links to neighbours, over which cells go.
//!
//! [`Channels`] owns every channel of a node. It greets the other end of each link, proves this relay's identity and
//! checks the other's, spreads circuits over lanes, packs cells into messages, serves circuits fairly, keeps links
//! alive and closes idle ones. It does not know what cells mean: [`Relay`](crate::relay::Relay) and the client's core
//! stand above it and drive it, after [`LinkMachine`](crate::base::LinkMachine).
//!
//! Governed by `proto/02-channel.md`. Against `threat-model.md`'s network adversary in the middle of a link and false
//! relays: an identity is proved over both certificates and nonces of the very link. Against hostile neighbours: every
//! queue is capped, and whoever breaks a rule loses the channel.

mod channels;
mod handshake;
mod hello;
mod limits;
mod link;
mod queue;
#[cfg(test)]
mod tests;

use core::{net::SocketAddr, time::Duration};

use crate::{
    base::{CircuitId, DialError, LinkId, Redacted, RelayId},
    wire::Cell,
};

pub use channels::Channels;
pub use handshake::LocalRole;

/// Who fills a circuit's queue stops at so many cells, so that little waits behind what comes later.
pub const QUEUE_HIGH: usize = 32;
/// [`ChannelEvent::Drained`] says that a circuit's queue has fallen to so many cells.
pub const QUEUE_LOW: usize = 16;

/// One channel of this node; never used again after it has closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChannelId(pub(crate) LinkId);

/// How often something may happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// In the long run, a second.
    pub a_second: u32,
    /// At once, after a pause.
    pub burst: u32,
}

/// What makes room when more cells wait than a node may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Overdue {
    /// To end this circuit.
    Circuit(ChannelId, CircuitId),
    /// To close this channel.
    Channel(ChannelId),
}

/// Limits of a node's channels.
#[derive(Clone, Debug)]
pub struct ChannelParameters {
    /// Channels at once. Beyond it the one idle for longest gives way, or the new link is closed. Default 4,096.
    pub channels: usize,
    /// Links at once whose handshake is not done; each may hold 128 KiB. Beyond it the oldest gives way of the address (or
    /// IPv6 /64) that has most. Default 256.
    pub handshakes: usize,
    /// Dials at once; more fail with [`DialError::Unable`]. Default 256.
    pub dials: usize,
    /// Circuits at once on one channel to a relay. Default 8,192.
    pub circuits_per_channel: usize,
    /// Circuits at once on one channel to a client. Default 1,024.
    pub circuits_per_client: usize,
    /// Circuits that a relay at the other end may open. Default 500 a second, 1,000 at once.
    pub creates_of_relay: Rate,
    /// Circuits that a client at the other end may open. Default 50 a second, 200 at once.
    pub creates_of_client: Rate,
    /// Refusals of circuits that may wait on one channel; beyond it the channel closes. Default 256.
    pub refusals: usize,
    /// Cells that may wait for one circuit on one channel; the sender ends the circuit at the cap. It must exceed the
    /// largest congestion window. Default 16,896 (16.5 MiB).
    pub circuit_queue: usize,
    /// Cells that may wait on all channels together; at the cap the circuit ends whose first cell has waited longest.
    /// Default 131,072 (128 MiB).
    pub queued: usize,
    /// A dial, to the open link. Default 10 s.
    pub dial_limit: Duration,
    /// From the open link to the open channel. Default 10 s.
    pub handshake_limit: Duration,
    /// Nothing sent for so long: a padding cell. Default 20 s.
    pub keep_alive: Duration,
    /// Nothing received for so long: the channel closes. Default 90 s.
    pub silence_limit: Duration,
    /// Cells wait and the link has taken nothing for so long: the channel closes. Default 30 s.
    pub stall_limit: Duration,
    /// No circuit for so long: the dialler closes the channel, the other end after twice the time. Default 180 s.
    pub idle_limit: Duration,
    /// Volunteers that this node is a gateway of, all told; others' channels are as any. Default 512, 0 for no gateway.
    pub volunteers: usize,
    /// Volunteers of one address (or IPv6 /64) that it is a gateway of. Default 64.
    pub volunteers_per_source: usize,
}

impl Default for ChannelParameters {
    fn default() -> Self {
        Self {
            channels: 4096,
            handshakes: 256,
            dials: 256,
            circuits_per_channel: 8192,
            circuits_per_client: 1024,
            creates_of_relay: Rate { a_second: 500, burst: 1000 },
            creates_of_client: Rate { a_second: 50, burst: 200 },
            refusals: 256,
            circuit_queue: 16_896,
            queued: 131_072,
            dial_limit: Duration::from_secs(10),
            handshake_limit: Duration::from_secs(10),
            keep_alive: Duration::from_secs(20),
            silence_limit: Duration::from_secs(90),
            stall_limit: Duration::from_secs(30),
            idle_limit: Duration::from_secs(180),
            volunteers: 512,
            volunteers_per_source: 64,
        }
    }
}

/// What [`Channels`] tells its owner.
#[derive(Clone, Debug)]
pub enum ChannelEvent {
    /// A channel is open. Any [`Channels::connect`] to `peer` that was under way is done.
    Open {
        /// The channel.
        channel: ChannelId,
        /// The relay at the other end, proved; `None` is a client.
        peer: Option<RelayId>,
        /// Where the other end says that it sees this one.
        observed: Option<Redacted<SocketAddr>>,
        /// The peer is a volunteer, and this node a gateway of it: it is reached over this channel.
        reach: bool,
    },
    /// A [`Channels::connect`] came to nothing, and no other channel to the relay is there.
    DialFailed {
        /// The relay.
        relay: RelayId,
        /// Why.
        error: ConnectError,
    },
    /// A cell came in; never padding.
    Cell {
        /// The channel it came over.
        channel: ChannelId,
        /// The cell.
        cell: Cell,
    },
    /// A living circuit's queue has fallen to [`QUEUE_LOW`] cells.
    Drained {
        /// The channel.
        channel: ChannelId,
        /// The circuit.
        circuit: CircuitId,
    },
    /// A channel that was open is gone, and with it its circuits.
    Closed {
        /// The channel.
        channel: ChannelId,
    },
}

/// Why a relay could not be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// No link.
    #[error("dialling: {0}")]
    Dial(#[from] DialError),
    /// A link, but not with the relay behind it.
    #[error("channel handshake: {0}")]
    Handshake(#[from] ChannelError),
    /// The link went away before the channel was open.
    #[error("the link closed during the channel handshake")]
    Closed,
}

/// What the other end of a channel did wrong. All are faults of the peer, and close the channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChannelError {
    /// A message that is none.
    #[error("a malformed message")]
    Malformed,
    /// No version in common.
    #[error("no version of the protocol in common")]
    NoCommonVersion,
    /// The other end is not the relay that was dialled.
    #[error("another identity than the one dialled")]
    WrongIdentity,
    /// The other end shows this relay's own identity.
    #[error("this relay's own identity")]
    OwnIdentity,
    /// The proof of identity doesn't hold for this link.
    #[error("the proof of identity does not hold")]
    BadProof,
    /// Too many cells before the handshake was done.
    #[error("too much before the handshake was done")]
    TooEarly,
    /// A cell in another lane than its circuit's.
    #[error("a cell in the wrong lane")]
    WrongLane,
    /// A circuit opened from the other end's half of the identifiers, or an answer to one that this end never opened.
    #[error("a circuit identifier of the wrong half")]
    WrongHalf,
    /// The handshake took too long, or nothing came for too long.
    #[error("silent for too long")]
    TimedOut,
    /// Cells wait for it, and it has read nothing for too long.
    #[error("read nothing for too long")]
    Stalled,
}

/// A circuit's queue has reached its cap: the caller ends the circuit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the circuit's queue is full")]
pub struct QueueFull;

/// What a handshake settled.
#[derive(Clone, Copy)]
struct Established {
    /// This end dialled, so its circuits are of the upper half.
    dialler: bool,
    peer: Option<RelayId>,
    observed: Option<Redacted<SocketAddr>>,
    /// The other end asked to be reached over this channel, and may.
    reach: bool,
    /// This end asked to be.
    said_reach: bool,
}
