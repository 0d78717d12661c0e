//! Links: what the protocol core knows of a transport.
//!
//! A link is one peer association of a transport (for WebRTC: one DTLS association with its data channels). The core
//! names links, asks for them ([`Transmit`]) and is told about them ([`LinkEvent`]); it never sees a socket.

use core::{fmt, net::SocketAddr};

use super::{Redacted, RelayId, Slots};

/// Lanes of a link to a stock WebRTC stack: reliable, ordered data channels over which its circuits are spread
/// (`proto/01-transport.md`).
pub const LANES: u8 = 4;

/// Lanes of a link between nodes of ours. A lost packet holds up the circuits of its lane, so many lanes hold up few.
pub const MAX_LANES: u8 = 64;

/// Cells in one data-channel message at the most. In datagrams of 1,232 bytes so many fill 15 SCTP packets; 16 would take 15 too,
/// the last nearly empty, and it is packets that cost time.
pub const MESSAGE_CELLS: usize = 17;

/// One link of this node's transport; never used again after the link has closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(pub u64);

/// One of the data channels of a link, of which there are [`LANES`] to [`MAX_LANES`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lane(u8);

impl Lane {
    /// The lane that carries the channel handshake.
    pub const FIRST: Self = Self(0);

    /// The lane `value`, unless there is none.
    #[must_use]
    pub const fn new(value: u8) -> Option<Self> {
        if value < MAX_LANES { Some(Self(value)) } else { None }
    }

    /// The lane's number, also its data channel's stream identifier.
    #[must_use]
    pub const fn value(self) -> u8 {
        self.0
    }
}

/// All a dialler must know of a relay; every field stands in the relay's descriptor.
#[derive(Clone, PartialEq, Eq)]
pub struct DialTarget {
    /// Who must prove to be at the other end.
    pub relay: RelayId,
    /// Where it listens, in order of preference; never empty.
    pub addresses: Vec<SocketAddr>,
    /// ICE user-name fragment (RFC 8839 §5.4), 4 to 256 characters.
    pub ice_ufrag: String,
    /// ICE password (RFC 8839 §5.4), 22 to 256 characters. Public, so it proves nothing.
    pub ice_password: String,
    /// SHA-256 of the DTLS certificate (DER).
    pub fingerprint: [u8; 32],
}

impl fmt::Debug for DialTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DialTarget").field("relay", &self.relay).finish_non_exhaustive()
    }
}

/// What the transport established about a link when it opened.
#[derive(Clone, Debug)]
pub struct LinkOpened {
    /// The relay this node dialled; `None` if the other end dialled.
    pub dialled: Option<RelayId>,
    /// SHA-256 of the certificate this end showed (DER).
    pub local_certificate: [u8; 32],
    /// SHA-256 of the certificate the other end showed (DER).
    pub peer_certificate: [u8; 32],
    /// Where the other end's datagrams come from.
    pub peer_address: Redacted<SocketAddr>,
    /// How many lanes the link has: the same number at both ends.
    pub lanes: u8,
}

/// Why a dial did not lead to a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DialError {
    /// Nothing usable came back in time.
    #[error("no answer in time")]
    TimedOut,
    /// The other end showed a certificate that is not the descriptor's.
    #[error("the certificate is not the one in the descriptor")]
    WrongFingerprint,
    /// The other end broke a protocol below the channel, or refused.
    #[error("the other end refused or broke the protocol")]
    Refused,
    /// This node can't dial: no address of a family it has, or too many dials under way.
    #[error("this node can't dial now")]
    Unable,
}

/// Why a link ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LinkClose {
    /// The other end closed it.
    #[error("closed by the other end")]
    ByPeer,
    /// Nothing came from the other end for too long.
    #[error("the other end fell silent")]
    TimedOut,
    /// The other end broke a protocol below the channel.
    #[error("the other end broke the protocol")]
    Broken,
    /// Memory for links was short, and of those that hold some it had made no progress for longest.
    #[error("this node's memory for links is used up")]
    Overloaded,
    /// Its keys have protected as many records as they may.
    #[error("the link's keys are used up")]
    KeyLimit,
}

/// What a transport tells the core.
#[derive(Clone, Debug)]
pub enum LinkEvent {
    /// A link is up and its lanes carry messages. The first [`LinkEvent::Room`] follows.
    Opened {
        /// The new link.
        link: LinkId,
        /// What the transport knows of it.
        opened: LinkOpened,
    },
    /// A dial that [`Transmit::Dial`] asked for came to nothing.
    DialFailed {
        /// Whom the dial was for.
        relay: RelayId,
        /// Why.
        error: DialError,
    },
    /// One whole data-channel message arrived.
    Message {
        /// The link it came over.
        link: LinkId,
        /// The lane it came in.
        lane: Lane,
        /// Its bytes, at most 64 KiB.
        message: Slots,
    },
    /// The link has taken something, and takes `bytes` more before its send buffer stands at its mark; it may be none yet.
    /// Replaces the figure told before. The core may leave as much unused as makes no whole message, so this is told as long as
    /// something is in the buffer.
    Room {
        /// The link.
        link: LinkId,
        /// Bytes.
        bytes: usize,
    },
    /// The link's keys are soon used up: it is to take no new circuits, and a second link is to be opened for them. It goes on
    /// carrying those it has, until they end or [`LinkEvent::Closed`] tells of [`LinkClose::KeyLimit`]. Told once.
    Retire {
        /// The link.
        link: LinkId,
    },
    /// The link is gone; its identifier is never heard of again.
    Closed {
        /// The link.
        link: LinkId,
        /// Why.
        reason: LinkClose,
    },
}

/// What the core asks of a transport.
#[derive(Clone, Debug)]
pub enum Transmit {
    /// Open a link; answered by [`LinkEvent::Opened`] with `dialled` set, or by [`LinkEvent::DialFailed`].
    Dial(DialTarget),
    /// Send one message. The core sends no more bytes than the link has [`LinkEvent::Room`] for, but for the last
    /// message, which may go over.
    Message {
        /// The link.
        link: LinkId,
        /// The lane.
        lane: Lane,
        /// The message, at most `MESSAGE_CELLS` cells.
        message: Slots,
    },
    /// Send what was handed over, then close the link. No [`LinkEvent::Closed`] follows.
    Close(LinkId),
}
