//! The state of one stream at one end.

use bytes::BytesMut;

use super::{INITIAL_CREDIT, SEND_BUFFER, credit::SentBytes};
use crate::base::{Instant, Ticket};

/// The phase of a stream.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum StreamPhase {
    /// Origin: BEGIN is unanswered.
    Beginning,
    /// Origin: RESOLVE is unanswered.
    Resolving,
    /// Exit: BEGIN is unanswered.
    Serving,
    /// Exit: RESOLVE is unanswered.
    Answering,
    /// After CONNECTED, or after REQUEST.
    Open,
}

/// This end's direction.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Sending {
    Open,
    /// END(Done) follows the buffered bytes.
    Finishing,
    /// END(Done) is sent.
    Finished,
}

/// The peer's direction.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Receiving {
    Open,
    /// END(Done) was received.
    Finished,
}

pub(super) struct StreamState {
    pub(super) phase: StreamPhase,
    /// The time at which the stream was opened, or last carried bytes.
    pub(super) active_at: Instant,
    pub(super) sending: Sending,
    pub(super) outgoing: BytesMut,
    /// The bytes sent, and the peer's credit for them.
    pub(super) sent: SentBytes,
    /// The stream's place in the queue of streams that may send bytes.
    pub(super) ready: Ticket,
    /// Whether more than half the send buffer was used. `Writable` follows when half of it is free.
    pub(super) above_threshold: bool,

    pub(super) receiving: Receiving,
    received: u64,
    consumed: u64,
    granted: u64,
    /// The maximum of `granted` beyond `consumed`.
    allowance: u64,
    /// The stream's place in the queue of streams whose peer is to receive CREDIT.
    pub(super) credit_due: Ticket,
}

impl StreamState {
    pub(super) fn new(now: Instant, phase: StreamPhase) -> Self {
        let initial = u64::from(INITIAL_CREDIT);
        Self {
            phase,
            active_at: now,
            sending: Sending::Open,
            outgoing: BytesMut::new(),
            sent: SentBytes::default(),
            ready: Ticket::new(),
            above_threshold: false,
            receiving: Receiving::Open,
            received: 0,
            consumed: 0,
            granted: initial,
            allowance: initial,
            credit_due: Ticket::new(),
        }
    }

    /// Whether the stream carries bytes and is not a RESOLVE.
    pub(super) const fn carries_data(&self) -> bool {
        matches!(self.phase, StreamPhase::Beginning | StreamPhase::Serving | StreamPhase::Open)
    }

    pub(super) fn room(&self) -> usize {
        if self.sending == Sending::Open && self.carries_data() {
            SEND_BUFFER.saturating_sub(self.outgoing.len())
        } else {
            0
        }
    }

    pub(super) fn may_send(&self) -> bool {
        self.phase == StreamPhase::Open && self.sent.credit() > 0 && !self.outgoing.is_empty()
    }

    /// Counts received bytes; `false` if they exceed the credit.
    pub(super) const fn receive(&mut self, bytes: u64) -> bool {
        self.received = self.received.saturating_add(bytes);
        self.received <= self.granted
    }

    pub(super) fn consume(&mut self, bytes: usize) {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        self.consumed = self.consumed.saturating_add(bytes).min(self.received);
    }

    /// Bytes that the peer may still send.
    pub(super) const fn credit_left(&self) -> u64 {
        self.granted.saturating_sub(self.received)
    }

    /// The credit of this stream beyond its initial credit.
    pub(super) fn extra_credit(&self) -> u64 {
        self.allowance.saturating_sub(INITIAL_CREDIT.into())
    }

    /// The credit that the next CREDIT grants.
    const fn grantable(&self) -> u64 {
        self.consumed.saturating_add(self.allowance).saturating_sub(self.granted)
    }

    /// Whether enough was consumed to send a CREDIT. An exit sends none before CONNECTED.
    pub(super) fn is_credit_due(&self) -> bool {
        self.phase == StreamPhase::Open && self.receiving == Receiving::Open && self.grantable() >= self.allowance / 4
    }

    /// Grants credit and returns its bytes. First doubles the allowance if the reader has no backlog, by at most
    /// `growth` bytes.
    pub(super) fn grant(&mut self, growth: u64) -> u32 {
        let unread = self.received.saturating_sub(self.consumed);
        if unread <= self.allowance / 4 {
            self.allowance = self.allowance.saturating_add(growth.min(self.allowance));
        }
        let bytes = u32::try_from(self.grantable()).unwrap_or(u32::MAX);
        self.granted = self.granted.saturating_add(bytes.into());
        bytes
    }
}
