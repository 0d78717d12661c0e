//! What an association is told when it is made, and what is assumed of its peer.

use core::time::Duration;

use super::super::{congestion::Algorithm, packet::OwnPeer, send::Peer};

/// Gap blocks in a SACK of a stock peer at the most.
const STOCK_GAP_BLOCKS: usize = 20;
/// The same of a node of ours: what fits the smallest packets that one may be set to.
const OWN_GAP_BLOCKS: usize = 128;
/// Largest burst to a stock peer, and most that is in flight on a path too short for pacing: browsers' sockets hold
/// 56 to 63 full datagrams.
const STOCK_BURST: u64 = 34 << 10;
const STOCK_SHORT_PATH_WINDOW: u64 = 51 << 10;

/// Settings that associations share.
#[derive(Clone, Debug)]
pub struct Config {
    /// Largest packet sent, in bytes; at least 500.
    pub packet: usize,
    /// Receive window at first, in bytes. Default 1 MiB.
    pub window: usize,
    /// Receive window at the most: it grows to twice what a round trip carries. Default 2 MiB. What a peer that never
    /// completes its messages makes this end hold is an eighth and 132 KiB more.
    pub window_max: usize,
    /// Most bytes in flight. Default 16 MiB.
    pub send_window_max: u64,
    /// Streams offered to nodes of ours. Default 64; others get 4.
    pub streams: u16,
    /// Longest message that is sent, in bytes. Default 17,408.
    pub message: usize,
    /// Congestion control.
    pub algorithm: Algorithm,
    /// Take packets without a checksum, as DTLS has one of its own (RFC 9653).
    pub zero_checksum: bool,
}

impl Config {
    /// The defaults for packets of at most `packet` bytes.
    #[must_use]
    pub const fn new(packet: usize) -> Self {
        Self {
            packet,
            window: 1 << 20,
            window_max: 2 << 20,
            send_window_max: 16 << 20,
            streams: 64,
            message: 17 << 10,
            algorithm: Algorithm::Bbr,
            zero_checksum: true,
        }
    }
}

/// What is assumed of a peer that is not a node of ours: a browser.
pub(super) fn stock_peer() -> Peer {
    Peer {
        ack_delay: Duration::from_millis(200),
        least_timeout: Duration::from_millis(400),
        gap_blocks: STOCK_GAP_BLOCKS,
        max_burst: STOCK_BURST,
        short_path_window: STOCK_SHORT_PATH_WINDOW,
    }
}

/// What is known of a node of ours.
pub(super) fn own_peer(own: OwnPeer) -> Peer {
    Peer {
        ack_delay: Duration::from_millis(own.ack_delay.min(200).into()),
        least_timeout: Duration::from_millis(200),
        gap_blocks: OWN_GAP_BLOCKS,
        max_burst: u64::MAX,
        short_path_window: u64::MAX,
    }
}
