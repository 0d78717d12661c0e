//! Settings of an association, and parameters of its peer.

use core::time::Duration;

use super::super::{congestion::Algorithm, packet::OwnPeer, send::PeerParameters};

/// Number of gap ack blocks from which a SACK of a stock peer may be truncated. `dcSCTP` sends at most 20 blocks.
const STOCK_GAP_BLOCK_THRESHOLD: usize = 20;
/// Number of gap ack blocks from which a SACK of our nodes may be truncated: the blocks for which the smallest packet
/// ([`Config::max_packet`]) has room.
const OWN_GAP_BLOCK_THRESHOLD: usize = 128;
/// Largest burst to a stock peer, in bytes. The socket buffers of browsers hold 56 to 63 full datagrams.
const MAX_STOCK_BURST: u64 = 34 << 10;
/// Most bytes in flight to a stock peer on a path too short for pacing.
const MAX_STOCK_SHORT_PATH_WINDOW: u64 = 51 << 10;

/// Settings shared by associations.
#[derive(Clone, Debug)]
pub struct Config {
    /// Largest packet sent, in bytes; at least 540, so that a SACK has room for 128 gap ack blocks.
    pub max_packet: usize,
    /// Initial receive window, in bytes. Default 1 MiB.
    pub initial_window: usize,
    /// Largest receive window, in bytes. The window grows to twice the bytes of a round trip. Default 2 MiB. A peer
    /// that never completes its messages can occupy nine eighths of the largest window and 129 KiB.
    pub max_window: usize,
    /// Most bytes in flight (upper bound of the congestion window). Default 16 MiB.
    pub max_send_window: u64,
    /// Number of streams offered to our nodes. Default 64; with other peers an association has 4.
    pub streams: u16,
    /// Longest message sent, in bytes. Default 17,408.
    pub max_message: usize,
    /// Congestion control.
    pub algorithm: Algorithm,
    /// Accept packets without a checksum, and send them to peers that accept them: DTLS authenticates packets (RFC
    /// 9653).
    pub zero_checksum: bool,
}

impl Config {
    /// The defaults for packets of at most `max_packet` bytes.
    #[must_use]
    pub const fn new(max_packet: usize) -> Self {
        Self {
            max_packet,
            initial_window: 1 << 20,
            max_window: 2 << 20,
            max_send_window: 16 << 20,
            streams: 64,
            max_message: 17 << 10,
            algorithm: Algorithm::Bbr,
            zero_checksum: true,
        }
    }
}

/// Assumed parameters of a stock peer, such as a browser.
pub(super) fn stock_peer() -> PeerParameters {
    PeerParameters {
        ack_delay: Duration::from_millis(200),
        min_timeout: Duration::from_millis(400),
        gap_block_threshold: STOCK_GAP_BLOCK_THRESHOLD,
        max_burst: MAX_STOCK_BURST,
        max_short_path_window: MAX_STOCK_SHORT_PATH_WINDOW,
    }
}

/// Parameters of one of our nodes.
pub(super) fn own_peer(own: OwnPeer) -> PeerParameters {
    PeerParameters {
        ack_delay: Duration::from_millis(own.ack_delay.min(200).into()),
        min_timeout: Duration::from_millis(200),
        gap_block_threshold: OWN_GAP_BLOCK_THRESHOLD,
        max_burst: u64::MAX,
        max_short_path_window: u64::MAX,
    }
}
