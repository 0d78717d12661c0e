//! Congestion control of a circuit: how many DATA cells may be under way between the origin and one hop.
//!
//! Owns the sender's [`CongestionWindow`] and the receiver's [`Acknowledger`]; driven by `stream::Streams`,
//! which has one of each for its end of a (circuit, hop). Governed by `proto/06-flow.md`. Threat addressed: a peer that
//! acknowledges what it has not received, to make the sender flood the relays between (a SENDME must echo 16 random
//! bytes that stood in the cell it acknowledges).

mod window;

use core::time::Duration;
use std::collections::VecDeque;

pub use window::CongestionWindow;

use crate::wire::MARK_LEN;

/// Random bytes that stand in a marked DATA cell and that its SENDME echoes.
pub type Mark = [u8; MARK_LEN];

/// Marks a receiver may owe at once. An honest sender's window holds half of it.
const MAX_OWED: usize = 1024;

/// How a sender paces a circuit, and how much a receiver lets streams send. From the consensus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowParameters {
    /// DATA cells from one mark to the next. Default 32.
    pub mark_every: u32,
    /// Window at the start, in DATA cells. Default 128.
    pub window_initial: u32,
    /// Smallest window, in DATA cells; at least twice `mark_every`, or the sender could wait for a mark it can't send.
    /// Default 64.
    pub window_min: u32,
    /// Largest window, in DATA cells; a relay ends a circuit that queues more. Default 16,384 (16 MiB).
    pub window_max: u32,
    /// How long the cells wait, together, that the window lets stand in the path's queues. Default 40 ms.
    pub queue_time: Duration,
    /// Fewest cells that the window lets stand in queues, however slow the path is. Default 16.
    pub queue_min: u32,
    /// Most cells that the window lets stand in queues, however fast the path is. Default 1,024.
    pub queue_max: u32,
    /// How long the smallest round trip measured is believed, and ten round trips at least. Default 3 s.
    pub min_rtt_age: Duration,
    /// Largest credit of one stream, in bytes: what one stalled reader costs. Default 16 MiB: 20 MiB/s
    /// over a round trip of 0.8 s.
    pub stream_credit_max: u32,
    /// Credit beyond the initial credit that all streams of a circuit and hop may have together, in bytes. One stream
    /// takes at most four times what it leaves to the others. Default 20 MiB.
    pub circuit_credit_max: u32,
    /// Streams open at once on a circuit and hop. Default 256. Worst-case memory of one circuit's end:
    /// `max_streams` × initial credit + `circuit_credit_max` = 52 MiB.
    pub max_streams: u32,
}

impl Default for FlowParameters {
    fn default() -> Self {
        Self {
            mark_every: 32,
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

/// What a peer did that ends the circuit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FlowError {
    /// A SENDME that does not echo the oldest outstanding mark.
    #[error("a SENDME does not echo the oldest outstanding mark")]
    WrongMark,
    /// More marks than any window holds came unanswered.
    #[error("more marks than a window holds are waiting for their SENDME")]
    TooManyMarks,
}

/// The receiver's side: marks that came, in order, each to be echoed by one SENDME.
///
/// Holds at most 1,024 marks; more is the sender's breach.
#[derive(Default)]
pub struct Acknowledger {
    owed: VecDeque<Mark>,
}

impl Acknowledger {
    /// A cell with `mark` arrived.
    ///
    /// # Errors
    /// When more marks wait than any honest sender has outstanding.
    pub fn handle_mark(&mut self, mark: Mark) -> Result<(), FlowError> {
        if self.owed.len() >= MAX_OWED {
            return Err(FlowError::TooManyMarks);
        }
        self.owed.push_back(mark);
        Ok(())
    }

    /// The mark to echo next.
    pub fn poll_mark(&mut self) -> Option<Mark> {
        self.owed.pop_front()
    }

    /// Whether no mark waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.owed.is_empty()
    }
}

#[cfg(test)]
mod tests;
