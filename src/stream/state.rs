//! One stream's state at one end.

use bytes::BytesMut;

use super::{INITIAL_CREDIT, SEND_BUFFER};
use crate::base::Instant;

/// How far a stream has come.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Origin: BEGIN awaits its answer.
    Beginning,
    /// Origin: RESOLVE awaits its answer.
    Resolving,
    /// Exit: BEGIN is to be answered.
    Serving,
    /// Exit: RESOLVE is to be answered.
    Answering,
    /// CONNECTED has passed.
    Open,
}

/// This end's direction.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Sending {
    Open,
    /// END(Done) follows what is buffered.
    Finishing,
    /// END(Done) is sent.
    Finished,
}

/// The peer's direction.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Receiving {
    Open,
    /// END(Done) came.
    Finished,
}

pub(super) struct Stream {
    pub(super) phase: Phase,
    /// When the answer must have come; of no meaning once open.
    pub(super) deadline: Instant,

    pub(super) sending: Sending,
    pub(super) outgoing: BytesMut,
    /// Bytes the peer lets us send.
    pub(super) credit: u64,
    /// It stands in the ring of those with bytes to send.
    pub(super) ready: bool,
    /// More than half the send buffer was taken; `Writable` is due when it no longer is.
    pub(super) above_mark: bool,

    pub(super) receiving: Receiving,
    /// Bytes that came before the exit's side was connected: copied, for the cells they came in hold more memory than the
    /// credit counts.
    pub(super) early: BytesMut,
    received: u64,
    consumed: u64,
    granted: u64,
    /// How far ahead of `consumed` the peer may be.
    allowance: u64,
    /// It stands in the queue of those that owe CREDIT.
    pub(super) owing: bool,
}

impl Stream {
    pub(super) fn new(phase: Phase, deadline: Instant) -> Self {
        let initial = u64::from(INITIAL_CREDIT);
        Self {
            phase,
            deadline,
            sending: Sending::Open,
            outgoing: BytesMut::new(),
            credit: initial,
            ready: false,
            above_mark: false,
            receiving: Receiving::Open,
            early: BytesMut::new(),
            received: 0,
            consumed: 0,
            granted: initial,
            allowance: initial,
            owing: false,
        }
    }

    /// Whether it is a stream of bytes rather than a question.
    pub(super) const fn carries_data(&self) -> bool {
        matches!(self.phase, Phase::Beginning | Phase::Serving | Phase::Open)
    }

    pub(super) fn room(&self) -> usize {
        if self.sending == Sending::Open && self.carries_data() {
            SEND_BUFFER.saturating_sub(self.outgoing.len())
        } else {
            0
        }
    }

    pub(super) fn may_send(&self) -> bool {
        self.phase == Phase::Open && self.credit > 0 && !self.outgoing.is_empty()
    }

    /// Counts bytes that came; false if they are beyond the credit.
    pub(super) const fn receive(&mut self, bytes: u64) -> bool {
        self.received = self.received.saturating_add(bytes);
        self.received <= self.granted
    }

    pub(super) fn consume(&mut self, bytes: usize) {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        self.consumed = self.consumed.saturating_add(bytes).min(self.received);
    }

    /// Bytes the peer may still send.
    pub(super) const fn credit_left(&self) -> u64 {
        self.granted.saturating_sub(self.received)
    }

    /// What this stream has of the circuit's extra credit.
    pub(super) fn extra_credit(&self) -> u64 {
        self.allowance.saturating_sub(INITIAL_CREDIT.into())
    }

    const fn due(&self) -> u64 {
        self.consumed.saturating_add(self.allowance).saturating_sub(self.granted)
    }

    /// Whether enough was consumed for a CREDIT to be worth a cell.
    pub(super) fn owes_credit(&self) -> bool {
        self.receiving == Receiving::Open && self.due() >= self.allowance / 4
    }

    /// The credit to grant now. A reader that keeps up gets `growth` more bytes of allowance at the most, doubling.
    pub(super) fn grant(&mut self, growth: u64) -> u32 {
        let waiting = self.received.saturating_sub(self.consumed);
        if waiting <= self.allowance / 4 {
            self.allowance = self.allowance.saturating_add(growth.min(self.allowance));
        }
        let due = u32::try_from(self.due()).unwrap_or(u32::MAX);
        self.granted = self.granted.saturating_add(due.into());
        due
    }
}
