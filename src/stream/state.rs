//! The state of one stream at one end.

use bytes::BytesMut;

use super::{INITIAL_CREDIT, SEND_BUFFER, credit::SentBytes};
use crate::{base::Ticket, wire::EndReason};

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

/// The state of the direction in which this end sends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Sending {
    Open,
    /// END with this reason follows the buffered bytes.
    Finishing(EndReason),
    /// END(Done) is sent.
    Finished,
}

/// The state of the direction in which the peer sends.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Receiving {
    Open,
    /// END(Done) was received.
    Finished,
}

/// One stream at one end.
pub(super) struct StreamState {
    pub(super) phase: StreamPhase,
    pub(super) sending: Sending,
    /// The send buffer: bytes written and not sent.
    pub(super) outgoing: BytesMut,
    /// The bytes sent, and the credit received for them.
    pub(super) sent: SentBytes,
    /// The stream's place in the queue of streams that may send bytes.
    pub(super) send_ticket: Ticket,
    /// Whether more than half the send buffer was used. `Writable` follows when half the buffer is free again.
    pub(super) above_threshold: bool,

    pub(super) receiving: Receiving,
    /// Bytes received.
    received: u64,
    /// Bytes that the application has used.
    consumed: u64,
    /// Bytes that the peer may send in total: the initial credit and all CREDITs sent.
    granted: u64,
    /// Maximum bytes granted beyond `consumed`.
    allowance: u64,
    /// The stream's place in the queue of streams with a CREDIT to send.
    pub(super) credit_ticket: Ticket,
}

impl StreamState {
    pub(super) fn new(phase: StreamPhase) -> Self {
        let initial = u64::from(INITIAL_CREDIT);
        Self {
            phase,
            sending: Sending::Open,
            outgoing: BytesMut::new(),
            sent: SentBytes::default(),
            send_ticket: Ticket::new(),
            above_threshold: false,
            receiving: Receiving::Open,
            received: 0,
            consumed: 0,
            granted: initial,
            allowance: initial,
            credit_ticket: Ticket::new(),
        }
    }

    /// Whether the stream carries bytes: it is no RESOLVE.
    pub(super) const fn carries_data(&self) -> bool {
        matches!(self.phase, StreamPhase::Beginning | StreamPhase::Serving | StreamPhase::Open)
    }

    /// Bytes that the send buffer accepts now.
    pub(super) fn room(&self) -> usize {
        if self.sending == Sending::Open && self.carries_data() {
            SEND_BUFFER.saturating_sub(self.outgoing.len())
        } else {
            0
        }
    }

    /// Whether the stream has bytes to send and credit for them.
    pub(super) fn may_send(&self) -> bool {
        self.phase == StreamPhase::Open && self.sent.credit() > 0 && !self.outgoing.is_empty()
    }

    /// Counts received bytes; `false` if all received bytes exceed the granted ones.
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

    /// The allowance of this stream beyond its initial credit, in bytes.
    pub(super) fn extra_credit(&self) -> u64 {
        self.allowance.saturating_sub(INITIAL_CREDIT.into())
    }

    /// Bytes that a CREDIT can grant now.
    const fn grantable(&self) -> u64 {
        self.consumed.saturating_add(self.allowance).saturating_sub(self.granted)
    }

    /// Whether enough was consumed to send a CREDIT. An exit sends none before CONNECTED.
    pub(super) fn is_credit_due(&self) -> bool {
        self.phase == StreamPhase::Open && self.receiving == Receiving::Open && self.grantable() >= self.allowance / 4
    }

    /// Grants credit and returns the granted bytes. If at most a quarter of the allowance is unread, first doubles the
    /// allowance, or raises it by `max_growth` bytes if that is less.
    pub(super) fn grant(&mut self, max_growth: u64) -> u32 {
        let unread = self.received.saturating_sub(self.consumed);
        if unread <= self.allowance / 4 {
            self.allowance = self.allowance.saturating_add(max_growth.min(self.allowance));
        }
        let bytes = u32::try_from(self.grantable()).unwrap_or(u32::MAX);
        self.granted = self.granted.saturating_add(bytes.into());
        bytes
    }
}
