//! Congestion control of a circuit: how many DATA cells may be in flight between the origin and one hop.
//!
//! Owns the sender's [`CongestionWindow`] and the receiver's [`Acknowledger`]. Each end of a circuit has a pair of them
//! for each hop with streams, driven by `stream::Streams`. Governed by `proto/06-flow.md`. Threat: a peer that
//! acknowledges cells which it has not received, so that the sender floods the relays between the ends. Therefore a
//! SENDME must echo 16 random bytes of the acknowledged cell.

mod window;

use core::time::Duration;
use std::collections::VecDeque;

pub use window::CongestionWindow;

use crate::{base::shrink_queue, wire::SENDME_TAG_LEN};

/// The random bytes in a DATA cell that a SENDME echoes.
pub type SendmeTag = [u8; SENDME_TAG_LEN];

/// Maximum received tags whose SENDME is not sent yet. A window of the default maximum has 512 tags.
const MAX_QUEUED_TAGS: usize = 1024;

/// Parameters of a circuit's congestion control and of the streams' credit. The consensus sets most of them
/// (`directory::Parameters::flow`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowParameters {
    /// DATA cells from one tag to the next. Default 32.
    pub tag_interval: u32,
    /// Initial window, in DATA cells. Default 128.
    pub window_initial: u32,
    /// Smallest window, in DATA cells. It must be at least twice `tag_interval`; otherwise a full window could have no
    /// outstanding tag. Default 64.
    pub window_min: u32,
    /// Largest window, in DATA cells; a relay ends a circuit that queues more. Default 16,384 (16 MiB).
    pub window_max: u32,
    /// Length of the queue that the window keeps in the path, as the time to deliver the queue. Default 40 ms.
    pub queue_time: Duration,
    /// Smallest queue that the window keeps in the path, in cells, for slow paths. Default 16.
    pub queue_min: u32,
    /// Largest queue that the window keeps in the path, in cells, for fast paths. Default 1,024.
    pub queue_max: u32,
    /// Time for which the min RTT (the smallest measured round-trip time) is valid, if ten round trips are shorter.
    /// Default 3 s.
    pub min_rtt_age: Duration,
    /// Largest credit of one stream beyond its initial credit, in bytes. Bounds the memory that one stalled reader
    /// occupies. Default 16 MiB: 20 MiB/s over a round trip of 0.8 s.
    pub stream_credit_max: u32,
    /// Largest total credit of all streams to one hop of a circuit beyond their initial credit, in bytes. One stream
    /// gets at most four times the credit that remains for the others. Default 20 MiB.
    pub circuit_credit_max: u32,
    /// Maximum open streams to one hop of a circuit. Default 256. Worst-case memory at one end of a circuit: for
    /// received bytes `max_streams` × initial credit + `circuit_credit_max` = 52 MiB; for bytes to send `max_streams` ×
    /// `stream::SEND_BUFFER` = 32 MiB.
    pub max_streams: u32,
}

impl Default for FlowParameters {
    fn default() -> Self {
        Self {
            tag_interval: 32,
            window_initial: 128,
            window_min: 64,
            window_max: 16_384,
            queue_time: Duration::from_millis(40),
            queue_min: 16,
            queue_max: 1024,
            min_rtt_age: Duration::from_secs(3),
            stream_credit_max: 16 << 20,
            circuit_credit_max: 20 << 20,
            max_streams: 256,
        }
    }
}

/// A breach by the peer, which ends the circuit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FlowError {
    /// A SENDME does not echo the oldest outstanding tag.
    #[error("the SENDME does not echo the oldest outstanding tag")]
    WrongTag,
    /// More tags than the maximum wait for their SENDME to be sent.
    #[error("more than {MAX_QUEUED_TAGS} received tags wait for a SENDME")]
    TooManyTags,
}

/// The received tags that no SENDME has echoed yet, in order.
///
/// Holds at most 1,024 tags; more are a breach by the sender.
#[derive(Default)]
pub struct Acknowledger {
    tags: VecDeque<SendmeTag>,
}

impl Acknowledger {
    /// Handles the tag of a received cell.
    ///
    /// # Errors
    /// When the maximum number of tags is queued already.
    pub fn handle_tag(&mut self, tag: SendmeTag) -> Result<(), FlowError> {
        if self.tags.len() >= MAX_QUEUED_TAGS {
            return Err(FlowError::TooManyTags);
        }
        self.tags.push_back(tag);
        Ok(())
    }

    /// Removes and returns the next tag to echo.
    pub fn poll_tag(&mut self) -> Option<SendmeTag> {
        let tag = self.tags.pop_front();
        shrink_queue(&mut self.tags);
        tag
    }

    /// The number of queued tags.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tags.len()
    }

    /// Whether no tag is queued.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tags.is_empty()
    }
}

#[cfg(test)]
mod tests;
