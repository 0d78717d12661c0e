//! Commands of this end's application for its streams: answers to the peer's requests, bytes to send, and ends.

use core::net::IpAddr;

use bytes::Bytes;

use super::{SEND_BUFFER, Sending, StreamPhase, StreamState, Streams};
use crate::{
    base::StreamId,
    wire::{EndReason, RelayMessage, ResolvedAnswer},
};

/// A command of this end's application for a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StreamCommand {
    /// Exit: the target of [`StreamEvent::Begin`](super::StreamEvent::Begin) is connected. Contains the target's
    /// address, if the exit discloses the address.
    Connected(Option<IpAddr>),
    /// Exit: answers [`StreamEvent::Resolve`](super::StreamEvent::Resolve). Answers beyond 16 are dropped. Without an
    /// answer, the request fails with `NotFound`.
    Resolved {
        /// Seconds for which the answers may be cached.
        ttl: u32,
        /// The answers.
        answers: Vec<ResolvedAnswer>,
    },
    /// Sends bytes, at most [`Streams::room`].
    Write(Bytes),
    /// The application has used this number of received bytes, so the peer may send more.
    Consumed(usize),
    /// Ends this direction after the written bytes (a half-close). The other direction stays open.
    Finish,
    /// Ends both directions after the written bytes. [`StreamEvent::Closed`](super::StreamEvent::Closed) follows once
    /// they are sent. The reason `Done` is sent as `Reset`.
    Fail(EndReason),
    /// Ends both directions immediately, or refuses the peer's request. Drops unsent bytes. No event follows. The
    /// reason `Done` is sent as `Reset`.
    Reset(EndReason),
}

impl Streams {
    /// Executes a command. Ignores commands that don't fit the state of the stream.
    pub fn handle_command(&mut self, id: StreamId, command: StreamCommand) {
        match command {
            StreamCommand::Connected(address) => self.handle_target_connected(id, address),
            StreamCommand::Resolved { ttl, answers } => self.send_resolved(id, ttl, answers),
            StreamCommand::Write(bytes) => {
                let written = self.write(id, &bytes);
                debug_assert!(written == bytes.len() || written == 0, "the write exceeds the room");
            }
            StreamCommand::Consumed(bytes) => self.consume(id, bytes),
            StreamCommand::Finish => self.finish(id, EndReason::Done),
            StreamCommand::Fail(reason) => {
                self.finish(id, if reason == EndReason::Done { EndReason::Reset } else { reason });
            }
            StreamCommand::Reset(reason) => self.reset(id, reason),
        }
    }

    /// The number of bytes that [`Self::write`] accepts now.
    #[must_use]
    pub fn room(&self, id: StreamId) -> usize {
        self.streams.get(&id).map_or(0, StreamState::room)
    }

    /// Queues bytes to send, as many as [`Self::room`] allows, and returns their number. [`StreamCommand::Write`] must
    /// not exceed the room.
    pub fn write(&mut self, id: StreamId, bytes: &[u8]) -> usize {
        let Some(stream) = self.streams.get_mut(&id) else { return 0 };
        let accepted = bytes.get(..stream.room()).unwrap_or(bytes);
        stream.outgoing.extend_from_slice(accepted);
        stream.above_threshold |= stream.outgoing.len() > SEND_BUFFER / 2;
        self.queue_to_send(id);
        accepted.len()
    }

    /// Opens a requested stream.
    fn handle_target_connected(&mut self, id: StreamId, address: Option<IpAddr>) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if stream.phase != StreamPhase::Serving {
            return;
        }
        stream.phase = StreamPhase::Open;
        self.deadlines.remove(id);
        self.control.push_back(RelayMessage::Connected { stream: id, address });
        if stream.is_credit_due() {
            self.credit_queue.push(id, &mut stream.credit_ticket);
        }
        self.queue_to_send(id);
        self.end_if_sent(id);
    }

    fn send_resolved(&mut self, id: StreamId, ttl: u32, mut answers: Vec<ResolvedAnswer>) {
        if self.streams.get(&id).is_none_or(|stream| stream.phase != StreamPhase::Answering) {
            return;
        }
        if answers.is_empty() {
            return self.reset(id, EndReason::NotFound);
        }
        answers.truncate(16);
        self.queued_answers = self.queued_answers.saturating_add(answers.len());
        self.control.push_back(RelayMessage::Resolved { stream: id, ttl, answers });
        self.close(id, 0);
    }

    fn consume(&mut self, id: StreamId, bytes: usize) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.consume(bytes);
        if stream.is_credit_due() {
            self.credit_queue.push(id, &mut stream.credit_ticket);
        }
    }

    /// Ends this direction, or with a reason other than Done both directions, after the buffered bytes.
    fn finish(&mut self, id: StreamId, reason: EndReason) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if stream.carries_data() && (stream.sending == Sending::Open || reason != EndReason::Done) {
            stream.sending = Sending::Finishing(reason);
            self.end_if_sent(id);
        }
    }

    pub(super) fn reset(&mut self, id: StreamId, reason: EndReason) {
        let Some(stream) = self.streams.get(&id) else { return };
        let reason = if reason == EndReason::Done { EndReason::Reset } else { reason };
        // An opening message that is the last in the queue is removed. The peer then needs no END.
        let is_last_queued = match self.control.back() {
            Some(
                RelayMessage::Begin { stream, .. }
                | RelayMessage::Resolve { stream, .. }
                | RelayMessage::Request { stream, .. },
            ) => *stream == id,
            _ => false,
        };
        if is_last_queued {
            self.control.pop_back();
            self.take(id);
            return;
        }
        let late_bytes = stream.credit_left();
        self.control.push_back(RelayMessage::End { stream: id, reason });
        self.close(id, late_bytes);
    }
}
