//! Outgoing messages in their order: acknowledgements, control messages, CREDIT, then bytes of the streams in turn.

use rand::CryptoRng;

use super::{SEND_BUFFER, Sending, StreamEvent, Streams};
use crate::{
    base::{Instant, StreamId, shrink_queue},
    flow::SendmeTag,
    wire::{EndReason, MESSAGE_HEADER_LEN, RelayMessage, SENDME_TAG_LEN},
};

impl Streams {
    /// Whether [`Self::poll_message`] has a message to return.
    #[must_use]
    pub fn has_message(&self) -> bool {
        !self.acknowledger.is_empty()
            || !self.control.is_empty()
            || !self.credit_queue.is_empty()
            || (!self.send_queue.is_empty() && self.window.has_room())
    }

    /// The next message to send, at most `capacity` bytes long with its header.
    pub fn poll_message<R: CryptoRng + ?Sized>(
        &mut self,
        now: Instant,
        capacity: usize,
        rng: &mut R,
    ) -> Option<RelayMessage> {
        if let Some(tag) = self.acknowledger.poll_tag() {
            return Some(RelayMessage::SendMe { tag });
        }
        if let Some(message) = self.control.pop_front() {
            if let RelayMessage::Resolved { answers, .. } = &message {
                self.queued_answers = self.queued_answers.saturating_sub(answers.len());
            }
            shrink_queue(&mut self.control);
            return Some(message);
        }
        if let Some(message) = self.poll_credit() {
            return Some(message);
        }
        if self.window.has_room() { self.poll_data(now, capacity, rng) } else { None }
    }

    fn poll_credit(&mut self) -> Option<RelayMessage> {
        let id = self.credit_queue.pop()?;
        let stream = self.streams.get_mut(&id)?;
        let extra = stream.extra_credit();
        let circuit_remaining = u64::from(self.parameters.circuit_credit_max).saturating_sub(self.extra_credit);
        let stream_remaining = u64::from(self.parameters.stream_credit_max).saturating_sub(extra);
        // After the grant, a stream's extra credit is at most four times the circuit's remaining credit. So a later
        // stream gets a share.
        let share = circuit_remaining.saturating_mul(4).saturating_sub(extra) / 5;
        let bytes = stream.grant(share.min(stream_remaining));
        self.extra_credit = self.extra_credit.saturating_add(stream.extra_credit().saturating_sub(extra));
        Some(RelayMessage::Credit { stream: id, bytes })
    }

    fn poll_data<R: CryptoRng + ?Sized>(&mut self, now: Instant, capacity: usize, rng: &mut R) -> Option<RelayMessage> {
        let tag = self.window.needs_tag().then(|| {
            let mut tag: SendmeTag = [0; SENDME_TAG_LEN];
            rng.fill_bytes(&mut tag);
            tag
        });
        let overhead = MESSAGE_HEADER_LEN.saturating_add(tag.map_or(0, |tag| tag.len()));
        let capacity = capacity.saturating_sub(overhead);
        if capacity == 0 {
            return None;
        }
        let id = self.send_queue.pop()?;
        let stream = self.streams.get_mut(&id)?;
        let credit = usize::try_from(stream.sent.credit()).unwrap_or(usize::MAX);
        let length = capacity.min(credit).min(stream.outgoing.len());
        let bytes = stream.outgoing.split_to(length).freeze();
        stream.sent.handle_sent(length);
        if stream.above_threshold && stream.outgoing.len() <= SEND_BUFFER / 2 {
            stream.above_threshold = false;
            if stream.sending == Sending::Open {
                self.events.push_back((id, StreamEvent::Writable));
            }
        }
        self.window.handle_sent(now, tag);
        self.queue_to_send(id);
        self.end_if_sent(id);
        Some(RelayMessage::Data { stream: id, tag, bytes })
    }

    /// Queues the stream for its turn, if the stream may send bytes.
    pub(super) fn queue_to_send(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.get_mut(&id)
            && stream.may_send()
        {
            self.send_queue.push(id, &mut stream.send_ticket);
        }
    }

    /// Queues END if the stream is open and finishing, and its buffer is empty.
    pub(super) fn end_if_sent(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let Sending::Finishing(reason) = stream.sending else { return };
        if !stream.outgoing.is_empty() || stream.phase != super::StreamPhase::Open {
            return;
        }
        if reason != EndReason::Done {
            self.reset(id, reason);
            return self.events.push_back((id, StreamEvent::Closed(reason)));
        }
        stream.sending = Sending::Finished;
        self.control.push_back(RelayMessage::End { stream: id, reason: EndReason::Done });
        if stream.receiving == super::Receiving::Finished {
            self.close(id, 0);
        }
    }
}
