//! Handling of messages from the peer: checks each message against the state of its stream, and emits events.

use core::net::{IpAddr, Ipv4Addr};

use bytes::Bytes;

use super::{MAX_CONTROL, Receiving, Sending, StreamError, StreamEvent, StreamPhase, StreamRole, StreamState, Streams};
use crate::{
    base::{Instant, StreamId},
    flow::SendmeTag,
    wire::{EndReason, MessageKind, RelayMessage, ResolvedAnswer},
};

const ECHO_ANSWER: ResolvedAnswer = ResolvedAnswer::Ip(IpAddr::V4(Ipv4Addr::UNSPECIFIED));

impl Streams {
    /// Handles one message of the peer.
    ///
    /// # Errors
    /// When the message is a breach or exceeds a cap: the circuit must end.
    pub fn handle_message(&mut self, now: Instant, message: RelayMessage) -> Result<(), StreamError> {
        let kind = message.kind();
        let legal = match self.role {
            StreamRole::Origin => kind.from_hop(),
            StreamRole::Exit => kind.from_origin(),
        };
        if !legal {
            return Err(StreamError::Illegal(kind));
        }
        match message {
            RelayMessage::Data { stream, tag, bytes } => self.handle_data(stream, tag, bytes),
            RelayMessage::SendMe { tag } => Ok(self.window.handle_sendme(now, &tag)?),
            RelayMessage::Credit { stream, bytes } => self.handle_credit(stream, bytes),
            RelayMessage::End { stream, reason: EndReason::Done } => self.handle_finished(stream),
            RelayMessage::End { stream, reason } => self.handle_reset(stream, reason),
            RelayMessage::Connected { stream, address } => self.handle_connected(stream, address),
            RelayMessage::Resolved { stream, ttl, answers } => self.handle_resolved(stream, ttl, answers),
            RelayMessage::Begin { stream, target } => {
                if self.accept(now, stream, StreamPhase::Serving, kind)? {
                    self.events.push_back((stream, StreamEvent::Begin(target)));
                }
                Ok(())
            }
            RelayMessage::Resolve { stream, host: super::ECHO } => {
                if self.streams.contains_key(&stream) {
                    return Err(StreamError::Illegal(kind));
                }
                self.answer(RelayMessage::Resolved { stream, ttl: 0, answers: vec![ECHO_ANSWER] })
            }
            RelayMessage::Resolve { stream, host } => {
                if self.accept(now, stream, StreamPhase::Answering, kind)? {
                    self.events.push_back((stream, StreamEvent::Resolve(host)));
                }
                Ok(())
            }
            RelayMessage::Request { stream, service } => {
                if self.accept(now, stream, StreamPhase::Open, kind)? {
                    self.events.push_back((stream, StreamEvent::Request(service)));
                }
                Ok(())
            }
            RelayMessage::Drop | RelayMessage::Extend { .. } | RelayMessage::Extended { .. } | RelayMessage::Gone => {
                Err(StreamError::Illegal(kind))
            }
        }
    }

    fn handle_data(&mut self, id: StreamId, tag: Option<SendmeTag>, bytes: Bytes) -> Result<(), StreamError> {
        if let Some(tag) = tag {
            self.acknowledger.handle_tag(tag)?;
        }
        let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        let Some(stream) = self.streams.get_mut(&id) else {
            return ok_if(self.closed.handle_data(id, length), StreamError::Illegal(MessageKind::Data));
        };
        let receives =
            matches!(stream.phase, StreamPhase::Open | StreamPhase::Serving) && stream.receiving == Receiving::Open;
        if !receives {
            return Err(StreamError::Illegal(MessageKind::Data));
        }
        if !stream.receive(length) {
            return Err(StreamError::BeyondCredit);
        }
        self.events.push_back((id, StreamEvent::Data(bytes)));
        Ok(())
    }

    fn handle_credit(&mut self, id: StreamId, bytes: u32) -> Result<(), StreamError> {
        let Some(stream) = self.streams.get_mut(&id) else {
            return ok_if(self.closed.handle_credit(id, bytes), StreamError::SurplusCredit);
        };
        if !matches!(stream.phase, StreamPhase::Open) {
            return Err(StreamError::Illegal(MessageKind::Credit));
        }
        if !stream.sent.handle_credit(bytes) {
            return Err(StreamError::SurplusCredit);
        }
        self.queue_to_send(id);
        Ok(())
    }

    fn handle_finished(&mut self, id: StreamId) -> Result<(), StreamError> {
        let Some(stream) = self.streams.get_mut(&id) else {
            return ok_if(self.closed.handle_finished(id), StreamError::Illegal(MessageKind::End));
        };
        let receives =
            matches!(stream.phase, StreamPhase::Open | StreamPhase::Serving) && stream.receiving == Receiving::Open;
        if !receives {
            return Err(StreamError::Illegal(MessageKind::End));
        }
        stream.receiving = Receiving::Finished;
        self.credit_queue.remove(&mut stream.credit_ticket);
        self.events.push_back((id, StreamEvent::Finished));
        if stream.sending == Sending::Finished {
            self.close(id, 0);
        }
        Ok(())
    }

    fn handle_reset(&mut self, id: StreamId, reason: EndReason) -> Result<(), StreamError> {
        if self.echo == Some(id) {
            self.echo = None;
            return self.answer(RelayMessage::End { stream: id, reason: EndReason::Reset });
        }
        if self.take(id).is_some() {
            self.events.push_back((id, StreamEvent::Closed(reason)));
            return self.answer(RelayMessage::End { stream: id, reason: EndReason::Reset });
        }
        // An END with another reason than Done is the peer's last message on the stream.
        ok_if(self.closed.remove(id), StreamError::Illegal(MessageKind::End))
    }

    fn handle_connected(&mut self, id: StreamId, address: Option<IpAddr>) -> Result<(), StreamError> {
        let Some(stream) = self.streams.get_mut(&id) else {
            return ok_if(self.closed.handle_connected(id), StreamError::Illegal(MessageKind::Connected));
        };
        if stream.phase != StreamPhase::Beginning {
            return Err(StreamError::Illegal(MessageKind::Connected));
        }
        stream.phase = StreamPhase::Open;
        self.deadlines.remove(id);
        self.events.push_back((id, StreamEvent::Connected(address)));
        self.queue_to_send(id);
        self.end_if_sent(id);
        Ok(())
    }

    fn handle_resolved(&mut self, id: StreamId, ttl: u32, answers: Vec<ResolvedAnswer>) -> Result<(), StreamError> {
        if self.echo == Some(id) {
            self.echo = None;
            return Ok(());
        }
        match self.streams.get(&id) {
            Some(stream) if stream.phase == StreamPhase::Resolving => {
                self.take(id);
                self.events.push_back((id, StreamEvent::Resolved { ttl, answers }));
                Ok(())
            }
            Some(_) => Err(StreamError::Illegal(MessageKind::Resolved)),
            None => ok_if(self.closed.handle_resolved(id), StreamError::Illegal(MessageKind::Resolved)),
        }
    }

    /// Exit: accepts a stream that the origin opens; `false` if the stream is refused.
    fn accept(
        &mut self,
        now: Instant,
        id: StreamId,
        phase: StreamPhase,
        kind: MessageKind,
    ) -> Result<bool, StreamError> {
        if self.streams.contains_key(&id) {
            return Err(StreamError::Illegal(kind));
        }
        if self.control.len() >= MAX_CONTROL {
            return Err(StreamError::TooManyAnswers);
        }
        self.closed.remove(id);
        if self.is_full() {
            self.closed.insert(id, &StreamState::new(phase), super::INITIAL_CREDIT.into());
            self.answer(RelayMessage::End { stream: id, reason: EndReason::ResourceLimit })?;
            return Ok(false);
        }
        self.insert(now, id, phase);
        Ok(true)
    }

    /// Queues an answer to a message of the peer.
    fn answer(&mut self, message: RelayMessage) -> Result<(), StreamError> {
        if self.control.len() >= MAX_CONTROL {
            return Err(StreamError::TooManyAnswers);
        }
        if let RelayMessage::Resolved { answers, .. } = &message {
            self.queued_answers = self.queued_answers.saturating_add(answers.len());
        }
        self.control.push_back(message);
        Ok(())
    }
}

/// `Ok` for a legal message, else `error`.
const fn ok_if(legal: bool, error: StreamError) -> Result<(), StreamError> {
    if legal { Ok(()) } else { Err(error) }
}
