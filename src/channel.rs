//! Channels: authenticated links to neighbours, which carry cells.
//!
//! [`Channels`] owns every channel of a node. It performs the channel handshake on each link: it proves this relay's
//! identity and verifies the peer's. [`Channels`] also spreads circuits over lanes, packs cells into messages,
//! schedules circuits fairly, sends keep-alives and closes idle channels. It doesn't interpret relay messages. Driven
//! by [`Relay`](crate::relay::Relay), the client's core, and a directory's dials to relays, by the contract of
//! [`LinkMachine`](crate::base::LinkMachine).
//!
//! Governed by `proto/02-channel.md`. Threats addressed (`threat-model.md`): an adversary in the middle of a link,
//! false relays, and hostile neighbours. Against the first two, a proof of identity covers both certificates and both
//! nonces of the link. Against the third, every queue is capped, and a breach closes the channel.

mod channels;
mod eviction;
#[cfg(any(test, fuzzing))]
pub(crate) mod fixture;
mod handshake;
mod hello;
mod queue;
mod state;
#[cfg(test)]
mod tests;

use core::{net::SocketAddr, time::Duration};

use crate::{
    base::{CircuitId, DialError, ErrorClass, LinkId, Owner, Rate, Redacted, RelayId},
    wire::Cell,
};

pub use channels::Channels;
pub use handshake::LocalRole;

/// Number of cells of a circuit's queue at which the owner adds no more, so that the delay in the queue stays short.
pub const QUEUE_HIGH: usize = 32;
/// Number of cells of a circuit's queue at which [`ChannelEvent::QueueLow`] is emitted.
pub const QUEUE_LOW: usize = 16;

/// The identifier of a channel of this node. It is not reused after the channel has closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChannelId(pub(crate) LinkId);

/// A circuit or channel that the relay must end, because more cells are queued than a node may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Eviction {
    /// The relay ends this circuit.
    Circuit(ChannelId, CircuitId),
    /// The relay closes this channel.
    Channel(ChannelId),
}

/// The owner of queued cells.
#[derive(Clone, Copy, Debug)]
pub struct CellOwner {
    /// The owner for which the cells count.
    pub owner: Owner,
    /// The channel that closes if the end of none of the owner's circuits would free cells.
    pub channel: ChannelId,
}

/// Limits of a node's channels.
#[derive(Clone, Debug)]
pub struct ChannelParameters {
    /// Maximum channels that other nodes dialled. A source (IPv4 address, IPv6 /64) has at most a sixteenth, a network
    /// (/24, /48) a quarter; the new link of an owner at its share closes. At the cap, the owner closest to its share
    /// loses its least used channel, if the owner of the new link stays below it. Otherwise the new link closes, or
    /// replaces an idle channel. Also the maximum of channels that this node dialled: beyond it, the longest idle one
    /// closes. Default 4,096.
    pub channels: usize,
    /// Maximum half-open channels that other nodes dialled; each may hold 128 KiB. The shares are those of `channels`.
    /// At the cap, the owner closest to its share loses its oldest such channel. Default 512.
    pub handshakes: usize,
    /// Maximum dials in flight; further dials fail with [`DialError::Unable`]. Default 256.
    pub dials: usize,
    /// Maximum circuits on one channel to a relay. A relay that [`Channels::set_listed`] marks as unlisted has the
    /// limit of a client instead. Default 8,192.
    pub circuits_per_channel: usize,
    /// Maximum circuits on one channel to a client or an unlisted relay. Default 1,024.
    pub circuits_per_client: usize,
    /// Rate at which a relay at the other end may open circuits. Default 500 a second, in bursts of up to 1,000.
    pub creates_of_relay: Rate,
    /// Rate at which a client or an unlisted relay at the other end may open circuits. Default 50 a second, in bursts
    /// of up to 200.
    pub creates_of_client: Rate,
    /// Maximum queued refusals of circuits on one channel; beyond the cap the channel closes. Default 256.
    pub refusals: usize,
    /// Maximum queued cells of one circuit on one channel; at the cap the caller of [`Channels::send`] ends the
    /// circuit. Must exceed the largest congestion window. Default 16,896 (16.5 MiB).
    pub circuit_queue: usize,
    /// Maximum queued cells of all channels. Beyond the cap, [`Channels::evictions`] selects circuits and channels to
    /// end. Default 131,072 (128 MiB).
    pub queued: usize,
    /// Timeout from the dial to the open link. Default 10 s.
    pub dial_timeout: Duration,
    /// Timeout from the open link to the open channel. Default 10 s.
    pub handshake_timeout: Duration,
    /// Time after the last sent message until a padding cell is sent. Default 20 s.
    pub keep_alive: Duration,
    /// Time without a received message after which the channel closes. Default 90 s.
    pub silence_timeout: Duration,
    /// Time after which a channel with queued cells closes if its link accepts no data. Default 30 s.
    pub stall_timeout: Duration,
    /// Time without a circuit after which the dialler closes the channel; the other end waits twice as long. Default
    /// 180 s.
    pub idle_timeout: Duration,
    /// Maximum volunteers for which this node is a gateway, with the shares of `channels`. The channel to a volunteer
    /// whose owner is at its share is an ordinary channel. At the cap, the owner closest to its share loses a channel:
    /// first that of a volunteer that the directory doesn't count. Default 512; a node with 0 is no gateway.
    pub volunteers: usize,
}

impl Default for ChannelParameters {
    fn default() -> Self {
        Self {
            channels: 4096,
            handshakes: 512,
            dials: 256,
            circuits_per_channel: 8192,
            circuits_per_client: 1024,
            creates_of_relay: Rate { per_second: 500, burst: 1000 },
            creates_of_client: Rate { per_second: 50, burst: 200 },
            refusals: 256,
            circuit_queue: 16_896,
            queued: 131_072,
            dial_timeout: Duration::from_secs(10),
            handshake_timeout: Duration::from_secs(10),
            keep_alive: Duration::from_secs(20),
            silence_timeout: Duration::from_secs(90),
            stall_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(180),
            volunteers: 512,
        }
    }
}

/// An event that [`Channels`] reports to its owner.
#[derive(Clone, Debug)]
pub enum ChannelEvent {
    /// A channel is open. Any [`Channels::connect`] to `peer` in flight is complete.
    Open {
        /// The channel.
        channel: ChannelId,
        /// The authenticated relay at the other end; `None` for a client.
        peer: Option<RelayId>,
        /// This end's address as reported by the other end.
        observed: Option<Redacted<SocketAddr>>,
        /// Whether the peer is a volunteer and this node a gateway of the volunteer. Circuits then reach the volunteer
        /// over this channel.
        reaches_volunteer: bool,
    },
    /// A dial of [`Channels::connect`] failed, and no other channel to the relay accepts new circuits.
    DialFailed {
        /// The relay.
        relay: RelayId,
        /// The reason.
        error: ChannelOpenError,
    },
    /// A cell other than padding was received.
    Cell {
        /// The channel that received the cell.
        channel: ChannelId,
        /// The cell.
        cell: Cell,
    },
    /// The queue of a live circuit has shrunk to [`QUEUE_LOW`] cells.
    QueueLow {
        /// The channel.
        channel: ChannelId,
        /// The circuit.
        circuit: CircuitId,
    },
    /// An open channel has closed, with all its circuits.
    Closed {
        /// The channel.
        channel: ChannelId,
    },
}

/// A failure to reach a relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChannelOpenError {
    /// The dial failed.
    #[error("the dial failed: {0}")]
    Dial(#[from] DialError),
    /// The link opened, but the channel handshake failed.
    #[error("the channel handshake failed: {0}")]
    Handshake(#[from] ChannelError),
    /// The link closed before the channel was open.
    #[error("the link closed during the channel handshake")]
    Closed,
}

impl ChannelOpenError {
    /// The class of the error.
    #[must_use]
    pub const fn class(self) -> ErrorClass {
        match self {
            Self::Dial(error) => error.class(),
            Self::Handshake(error) => error.class(),
            Self::Closed => ErrorClass::Network,
        }
    }
}

/// The reason for which this end closes a channel: a breach by the other end, or a timeout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChannelError {
    /// The message is malformed.
    #[error("the message is malformed")]
    Malformed,
    /// The two ends have no version in common.
    #[error("the two ends have no protocol version in common")]
    NoCommonVersion,
    /// The other end is not the dialled relay.
    #[error("the peer's identity is not that of the dialled relay")]
    WrongIdentity,
    /// The other end presents this relay's own identity.
    #[error("the peer presents this relay's own identity")]
    OwnIdentity,
    /// The proof of identity is not valid for this link.
    #[error("the proof of identity is not valid for this link")]
    BadProof,
    /// The other end sent too many cells before the end of the handshake.
    #[error("too many cells before the end of the handshake")]
    TooEarly,
    /// The other end sent a cell in a lane other than its circuit's.
    #[error("a cell arrived in the lane of another circuit")]
    WrongLane,
    /// The other end sent CREATE with an identifier of this end's half, or CREATED with an identifier of the other
    /// end's half.
    #[error("the circuit identifier is of the wrong half")]
    WrongHalf,
    /// The handshake did not finish in time, or no message was received in time.
    #[error("no message from the peer, or no end of the handshake, before the timeout")]
    TimedOut,
    /// The link accepted no data before the timeout while cells were queued.
    #[error("the link accepted no queued cell before the timeout")]
    Stalled,
}

impl ChannelError {
    /// The class of the error.
    #[must_use]
    pub const fn class(self) -> ErrorClass {
        match self {
            Self::TimedOut | Self::Stalled => ErrorClass::Network,
            Self::Malformed
            | Self::NoCommonVersion
            | Self::WrongIdentity
            | Self::OwnIdentity
            | Self::BadProof
            | Self::TooEarly
            | Self::WrongLane
            | Self::WrongHalf => ErrorClass::Peer,
        }
    }
}

/// A circuit's queue has reached its cap: the caller ends the circuit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the circuit's queue is full")]
pub struct QueueFull;

/// The result of a channel handshake.
#[derive(Clone, Copy)]
struct HandshakeOutcome {
    /// Whether this end dialled, so that the identifiers it chooses are in the upper half.
    dialler: bool,
    peer: Option<RelayId>,
    observed: Option<Redacted<SocketAddr>>,
    /// Whether the other end sent REACH, and this end accepted it.
    accepted_reach: bool,
    /// Whether this end sent REACH.
    requested_reach: bool,
}
