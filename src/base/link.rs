//! Links: the interface between the protocol core and a transport.
//!
//! A link is one association of a transport with a peer (for WebRTC: one DTLS association with its data channels). The
//! core identifies a link by its [`LinkId`], emits outputs ([`Transmit`]) and receives events ([`LinkEvent`]). The
//! core has no access to sockets.

use core::{fmt, net::SocketAddr};

use super::{ErrorClass, Redacted, RelayId, Slots};

/// Lanes of a link to a stock WebRTC stack: reliable, ordered data channels. The circuits of the link are spread over
/// the lanes (`proto/01-transport.md`).
pub const LANES: u8 = 4;

/// Maximum lanes of a link. A link between two native nodes has this number. A lost packet delays all circuits of its
/// lane, so it delays fewer circuits if the link has more lanes.
pub const MAX_LANES: u8 = 64;

/// Maximum cells in one data-channel message. In datagrams of 1,232 bytes, 17 cells fill 15 SCTP packets. 16 cells
/// would also take 15 packets, the last of them nearly empty, and each packet has a cost.
pub const MESSAGE_CELLS: usize = 17;

/// The identifier of a link of this node's transport. It is not reused after the link has closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(pub u64);

/// One of the [`LANES`] to [`MAX_LANES`] data channels of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lane(u8);

impl Lane {
    /// The lane that carries the channel handshake.
    pub const FIRST: Self = Self(0);

    /// The lane `value`; `None` from [`MAX_LANES`] on.
    #[must_use]
    pub const fn new(value: u8) -> Option<Self> {
        if value < MAX_LANES { Some(Self(value)) } else { None }
    }

    /// The lane's number, which is also the number of its SCTP stream.
    #[must_use]
    pub const fn value(self) -> u8 {
        self.0
    }
}

/// The fields of a relay's descriptor that a dialler needs.
#[derive(Clone, PartialEq, Eq)]
pub struct DialTarget {
    /// The identity that the other end must prove.
    pub relay: RelayId,
    /// The relay's addresses, in order of preference; never empty.
    pub addresses: Vec<SocketAddr>,
    /// ICE user-name fragment (RFC 8839 §5.4), 4 to 256 characters.
    pub ice_ufrag: String,
    /// ICE password (RFC 8839 §5.4), 22 to 256 characters. Public, so it authenticates nothing.
    pub ice_password: String,
    /// SHA-256 of the DTLS certificate (DER).
    pub fingerprint: [u8; 32],
}

impl fmt::Debug for DialTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DialTarget").field("relay", &self.relay).finish_non_exhaustive()
    }
}

/// Properties of a link, as the transport established them before the link opened.
#[derive(Clone, Debug)]
pub struct LinkOpened {
    /// The relay that this node dialled; `None` if the other end dialled.
    pub dialled: Option<RelayId>,
    /// SHA-256 of the certificate (DER) that this end presented.
    pub local_certificate: [u8; 32],
    /// SHA-256 of the certificate (DER) that the other end presented.
    pub peer_certificate: [u8; 32],
    /// The source address of the other end's datagrams.
    pub peer_address: Redacted<SocketAddr>,
    /// The number of lanes, the same at both ends.
    pub lanes: u8,
}

/// The reason for a failed dial.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DialError {
    /// No usable answer before the timeout.
    #[error("no answer before the timeout")]
    TimedOut,
    /// The other end presented a certificate that is not the descriptor's.
    #[error("the certificate differs from the fingerprint in the descriptor")]
    WrongFingerprint,
    /// The other end violated a protocol below the channel, or refused.
    #[error("the other end refused or violated the protocol")]
    Refused,
    /// This node can't dial: the target is this node, or has no address of this node's families, or too many dials are
    /// in flight.
    #[error(
        "this node can't dial: the target is this node, no target address is of its address families, or too many dials are \
         in flight"
    )]
    Unable,
}

impl DialError {
    /// The class of the error.
    #[must_use]
    pub const fn class(self) -> ErrorClass {
        match self {
            Self::TimedOut => ErrorClass::Network,
            Self::WrongFingerprint | Self::Refused => ErrorClass::Peer,
            Self::Unable => ErrorClass::Local,
        }
    }
}

/// The reason for the end of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LinkClose {
    /// The other end closed the link.
    #[error("closed by the other end")]
    ByPeer,
    /// No packet from the other end before the timeout.
    #[error("no packet from the other end before the timeout")]
    TimedOut,
    /// The other end violated a protocol below the channel.
    #[error("the other end violated the protocol")]
    Broken,
    /// The memory for links was exhausted, and this link had made no progress for the longest time.
    #[error("this node's memory for links is exhausted")]
    Overloaded,
    /// The link's keys have protected the maximum number of records.
    #[error("the link's keys have reached their limit of records")]
    KeyLimit,
}

/// An event that a transport reports to the core.
#[derive(Clone, Debug)]
pub enum LinkEvent {
    /// A link is open and its lanes carry messages. The first [`LinkEvent::Room`] follows.
    Opened {
        /// The new link.
        link: LinkId,
        /// The properties of the link.
        opened: LinkOpened,
    },
    /// A dial requested by [`Transmit::Dial`] failed.
    DialFailed {
        /// The dialled relay.
        relay: RelayId,
        /// The reason.
        error: DialError,
    },
    /// One whole data-channel message was received.
    Message {
        /// The link of the message.
        link: LinkId,
        /// The lane of the message.
        lane: Lane,
        /// The bytes of the message, at most 64 KiB.
        message: Slots,
    },
    /// The number of bytes that the link accepts until its send buffer reaches its threshold, possibly zero. Replaces
    /// the room of the previous event. The core may leave room unused that is too small for a whole message. So the
    /// event follows each growth of the room, not only growth from zero.
    Room {
        /// The link.
        link: LinkId,
        /// The room, in bytes.
        bytes: usize,
    },
    /// The link's keys are close to their limit. The core puts no new circuits on the link, and opens a second link for
    /// new circuits. The first link carries its current circuits until they end or [`LinkEvent::Closed`] reports
    /// [`LinkClose::KeyLimit`]. Reported once.
    Retire {
        /// The link.
        link: LinkId,
    },
    /// The link is closed. No further event has its identifier.
    Closed {
        /// The link.
        link: LinkId,
        /// The reason.
        reason: LinkClose,
    },
}

/// An output of the core for a transport.
#[derive(Clone, Debug)]
pub enum Transmit {
    /// Open a link; answered by [`LinkEvent::Opened`] with `dialled` set, or by [`LinkEvent::DialFailed`].
    Dial(DialTarget),
    /// Send one message. The core sends no more bytes than the last [`LinkEvent::Room`] allows, except that the last
    /// message may exceed this room.
    Message {
        /// The link.
        link: LinkId,
        /// The lane.
        lane: Lane,
        /// The message, at most [`MESSAGE_CELLS`] cells.
        message: Slots,
    },
    /// The other end, which dialled the link, has proved to be a relay that the consensus lists. The transport may grant
    /// this link as much memory as a link that this node dialled. A repetition changes nothing.
    PeerListed(LinkId),
    /// Send all messages accepted before, then close the link. No [`LinkEvent::Closed`] follows.
    Close(LinkId),
}
